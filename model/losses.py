"""Losses of the segmentor: classes, and masks at sampled points, for every prediction.

Formulas are those of Mask2Former as X-SAM uses it (AAAI26_Archive, model/segmentors/mask2former).

Targets stay bool or run-length coded; only sampled points of them are ever read, so cost and memory grow with points,
not with pixels. On small canvases they are float maps, which are quicker to read. Points are float32 and come from a
`Draws`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dataengine import masks
from model.config import DecoderConfig
from model.matching import Pairs, assign, match_cost, read_points
from model.segmentor import SegOutputs

_MAP_PIXELS = 1 << 16  # canvases up to 256 x 256


class Draws(Protocol):
    """Where random points come from; each is float32 in 0 to 1, x and y. `prediction` counts as in `SegOutputs`."""

    def matching(self, prediction: int, rows: int, points: int) -> Tensor:
        """(rows, points, 2): one set per row, shared by its queries and targets."""
        ...

    def candidates(self, prediction: int, pairs: int, points: int) -> Tensor:
        """(pairs, points, 2), of which the most uncertain ones are kept."""
        ...

    def rest(self, prediction: int, pairs: int, points: int) -> Tensor:
        """(pairs, points, 2), all kept."""
        ...


class RandomDraws:
    """Uniform points of a generator, on the generator's device."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def matching(self, prediction: int, rows: int, points: int) -> Tensor:
        return self._uniform(rows, points)

    def candidates(self, prediction: int, pairs: int, points: int) -> Tensor:
        return self._uniform(pairs, points)

    def rest(self, prediction: int, pairs: int, points: int) -> Tensor:
        return self._uniform(pairs, points)

    def _uniform(self, count: int, points: int) -> Tensor:
        device = self.generator.device
        return torch.rand(count, points, 2, generator=self.generator, device=device, dtype=torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """T masks of one canvas by run lengths.

    ends: (T, R) int64, where each run ends, counted column by column; runs are zeros and ones in turn, zeros first.
    Rows are filled up with the number of pixels. size: (height, width).
    """

    ends: Tensor
    size: tuple[int, int]

    @classmethod
    def of_rles(cls, rles: Sequence[bytes], size: tuple[int, int]) -> Runs:
        """Of compressed COCO counts.

        Raises:
            MaskError: a code does not cover the canvas.
        """
        pixels = size[0] * size[1]
        ends = [torch.from_numpy(masks.counts_from_rle(rle, *size).astype("int64")).cumsum(0) for rle in rles]
        filled = torch.full((len(ends), max(map(len, ends), default=1)), pixels, dtype=torch.int64)
        for row, run in zip(filled, ends, strict=True):
            row[: len(run)] = run
        return cls(ends=filled, size=size)

    def to(self, device: torch.device | str) -> Runs:
        return Runs(ends=self.ends.to(device), size=self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What a row should say. labels: (T,) int64, columns of its class logits. masks: (T, H, W) bool or float32, or
    `Runs`."""

    labels: Tensor
    masks: Tensor | Runs

    def __post_init__(self) -> None:
        count = len(self.masks.ends if isinstance(self.masks, Runs) else self.masks)
        if count != len(self.labels):
            raise ValueError(f"{len(self.labels)} labels of {count} masks")
        if self.labels.device.type == "cpu" and bool((self.labels < 0).any()):  # elsewhere it would cost a wait
            raise ValueError(f"labels must not be negative: {self.labels.tolist()}")

    @classmethod
    def of_rles(cls, labels: Tensor, rles: Sequence[bytes], size: tuple[int, int]) -> Targets:
        """Of compressed COCO counts, in whichever form is the cheapest to read.

        Raises:
            MaskError: a code does not cover the canvas.
        """
        if size[0] * size[1] > _MAP_PIXELS or not rles:
            return cls(labels=labels, masks=Runs.of_rles(rles, size))
        maps = np.stack([masks.decode(rle, *size) for rle in rles])
        return cls(labels=labels, masks=torch.from_numpy(maps).float())

    def to(self, device: torch.device | str) -> Targets:
        return Targets(labels=self.labels.to(device), masks=self.masks.to(device))


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What sums are divided by where a batch is only a part of a step; each () float32, above 0.

    tokens: labelled ids. masks: targets. classes: weights of the class term, `class_weights`.
    """

    tokens: Tensor
    masks: Tensor
    classes: Tensor


def read_masks(target: Tensor | Runs, chosen: Tensor, points: Tensor) -> Tensor:
    """Masks at points, bilinearly, zero outside: as `read_points` of float maps, without making such maps.

    Args:
        target: (T, H, W) bool or float32, or `Runs` of T masks.
        chosen: (K,) int64, which masks.
        points: (K, P, 2) float32, or (1, P, 2) for all alike; 0 and 1 are the outer borders.
    Returns:
        (K, P) float32.
    """
    if isinstance(target, Tensor) and target.is_floating_point():
        if len(points) == 1:
            return read_points(target[chosen][None], points)[0]
        return read_points(target[chosen][:, None], points)[:, 0]
    height, width = target.size if isinstance(target, Runs) else target.shape[1:]
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    right_share, low_share = x - left, y - top
    values = points.new_zeros(len(chosen), points.shape[1])
    for column, x_share in ((left.long(), 1 - right_share), (left.long() + 1, right_share)):
        for row, y_share in ((top.long(), 1 - low_share), (top.long() + 1, low_share)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            pixels = _pixels(target, chosen, row.clamp(0, height - 1), column.clamp(0, width - 1))
            values = values + pixels * (x_share * y_share * inside)
    return values


def segmentation_losses(
    outputs: SegOutputs,
    targets: Sequence[Targets],
    config: DecoderConfig,
    draws: Draws,
    totals: Totals | None = None,
) -> dict[str, Tensor]:
    """All weighted terms; their sum is the loss.

    `loss_cls`, `loss_mask` and `loss_dice` belong to the final prediction, `loss_cls_0` … to those before it. Mask
    terms are sums over matched pairs, divided by the number of targets (at least 1; its mean over processes). Rows
    without targets count in the class term alone.

    Args:
        outputs: of R rows.
        targets: R of them, on any device; only labels on the CPU can be checked without a wait.
        totals: of all that is learned from together; None: these rows, and the targets of other processes.
    Raises:
        ValueError: a label is none of the classes.
    """
    device, num_classes = outputs.final[0].device, outputs.final[0].shape[-1] - 1
    for target in targets:
        if target.labels.device.type == "cpu" and bool((target.labels >= num_classes).any()):
            raise ValueError(f"labels must be below {num_classes}, the number of classes: {target.labels.tolist()}")
    targets = [target.to(device) for target in targets]
    matched = match(outputs, targets, config, draws)
    num_masks = count_masks(targets, device) if totals is None else totals.masks
    weight = None if totals is None else totals.classes
    last = len(outputs.class_logits) - 1
    terms: dict[str, Tensor] = {}
    for index in (last, *range(last)):
        suffix = "" if index == last else f"_{index}"
        pairs = matched[index]
        classes = class_loss(outputs.class_logits[index], targets, pairs, config.no_object, weight)
        mask, dice = mask_losses(outputs.mask_logits[index], targets, pairs, config, draws, index)
        terms[f"loss_mask{suffix}"] = config.mask_weight * mask / num_masks
        terms[f"loss_dice{suffix}"] = config.dice_weight * dice / num_masks
        terms[f"loss_cls{suffix}"] = config.class_weight * classes
    return terms


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The plain sum of all terms."""
    return torch.stack(list(terms.values())).sum()


@torch.no_grad()
def match(outputs: SegOutputs, targets: Sequence[Targets], config: DecoderConfig, draws: Draws) -> list[list[Pairs]]:
    """Pairs of every prediction and row; scipy runs once all costs are known."""
    rows = len(targets)
    costs = []
    for index, (classes, mask_logits) in enumerate(zip(outputs.class_logits, outputs.mask_logits, strict=True)):
        points = draws.matching(index, rows, config.points).to(mask_logits.device)
        for row, target in enumerate(targets):
            with torch.autocast(mask_logits.device.type, enabled=False):
                read = read_points(mask_logits[row, None].float(), points[row, None])[0]  # a row is widened at a time
            everything = torch.arange(len(target.labels), device=points.device)
            wanted = read_masks(target.masks, everything, points[row, None])
            weights = (config.class_weight, config.mask_weight, config.dice_weight)
            costs.append(match_cost(classes[row], read, target.labels, wanted, weights))
    pairs = assign(costs)
    return [pairs[start : start + rows] for start in range(0, len(pairs), rows)]


def class_loss(
    class_logits: Tensor,
    targets: Sequence[Targets],
    pairs: Sequence[Pairs],
    no_object: float,
    total_weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of all queries, weighted mean; those without a target belong to the last class, of weight
    `no_object`.

    total_weight: what the weighted sum is divided by; None: the weights of these queries.
    """
    rows, queries, classes = class_logits.shape
    wanted = torch.full((rows, queries), classes - 1, dtype=torch.int64, device=class_logits.device)
    for row, (target, (matched, which)) in enumerate(zip(targets, pairs, strict=True)):
        wanted[row, matched] = target.labels[which]
    weight = torch.ones(classes, device=class_logits.device)
    weight[-1] = no_object
    logits = class_logits.flatten(0, 1).float()
    if total_weight is None:
        return functional.cross_entropy(logits, wanted.flatten(), weight)
    return functional.cross_entropy(logits, wanted.flatten(), weight, reduction="sum") / total_weight


def class_weights(num_targets: int, queries: int, no_object: float) -> float:
    """The weights of a row's queries in the class term: as many targets as have a query weigh 1, the rest
    `no_object`."""
    matched = min(num_targets, queries)
    return matched + no_object * (queries - matched)


def mask_losses(
    mask_logits: Tensor,
    targets: Sequence[Targets],
    pairs: Sequence[Pairs],
    config: DecoderConfig,
    draws: Draws,
    prediction: int,
) -> tuple[Tensor, Tensor]:
    """Sums over matched pairs of the mean cross-entropy and of 1 - (2 Σ p t + 1) / (Σ p + Σ t + 1), at points where
    the mask is uncertain."""
    rows = torch.cat([torch.full_like(queries, row) for row, (queries, _) in enumerate(pairs)])
    queries = torch.cat([queries for queries, _ in pairs])
    with torch.autocast(mask_logits.device.type, enabled=False):
        chosen = mask_logits[rows, queries].float()[:, None]
        points = uncertain_points(chosen.detach(), config, draws, prediction)
        logits = read_points(chosen, points)[:, 0]
        wanted = torch.cat(
            [
                read_masks(target.masks, which, own)
                for target, (_, which), own in zip(
                    targets, pairs, points.split([len(p[0]) for p in pairs]), strict=True
                )
            ]
        )
        mask = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1).sum()
        shares = logits.sigmoid()
        dice = 1 - (2 * (shares * wanted).sum(-1) + 1) / (shares.sum(-1) + wanted.sum(-1) + 1)
    return mask, dice.sum()


@torch.no_grad()
def uncertain_points(mask_logits: Tensor, config: DecoderConfig, draws: Draws, prediction: int) -> Tensor:
    """The points of the mask losses: of `oversample` times as many candidates those nearest to logit 0, and a rest
    anywhere (PointRend's importance sampling).

    Args:
        mask_logits: (K, 1, h, w) float32.
    Returns:
        (K, points, 2).
    """
    pairs, kept = len(mask_logits), int(config.importance * config.points)
    device = mask_logits.device
    candidates = draws.candidates(prediction, pairs, int(config.points * config.oversample)).to(device)
    doubt = -read_points(mask_logits, candidates)[:, 0].abs()
    nearest = doubt.topk(kept, dim=1).indices
    points = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
    return torch.cat([points, draws.rest(prediction, pairs, config.points - kept).to(device)], 1)


def count_masks(targets: Sequence[Targets], device: torch.device) -> Tensor:
    """Number of targets, matched or not, at least 1; the mean over processes where there are several."""
    count = torch.tensor(float(sum(len(target.labels) for target in targets)), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count.clamp(min=1)


def _pixels(target: Tensor | Runs, chosen: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Pixels of the chosen masks, (K, P) bool; rows and columns are (K or 1, P) and lie inside."""
    if not isinstance(target, Runs):
        return target[chosen[:, None], row, column]
    place = (column * target.size[0] + row).expand(len(chosen), -1)
    return torch.searchsorted(target.ends[chosen], place.contiguous(), right=True) % 2 == 1
