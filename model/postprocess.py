"""Masks of one picture from the segmentor's logits, by the rule of each task.

Throughout, p is the softmax over conditions and background; the background, the last column, is then dropped. Rules and
order of steps are those of X-SAM (branch AAAI26_Archive): mask logits go to the padded square canvas, are cut to the
picture's part of it and resized to its own size (bilinear, align_corners False), and only then become masks. Semantic
maps alone are mixed on the canvas first, and their scores resized. No tensor of all queries at a picture's own size is
made: masks are made some at a time, and kept as RLE.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dataengine import masks

CELLS = 1 << 25  # numbers in a float tensor that is made at a time, about


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where a picture lies. canvas: side of the padded square, px. scaled: height and width of the picture on it, at
    the top left. size: its own height and width, px.
    """

    canvas: int
    scaled: tuple[int, int]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if min(*self.scaled, *self.size) < 1 or max(self.scaled) > self.canvas:
            raise ValueError(f"a picture of {self.size} px cannot lie as {self.scaled} on a canvas of {self.canvas} px")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What counts as found.

    instance: least score of an instance, p times the mean probability inside its mask. panoptic: p that a query must
    exceed. overlap: share of a query's pixels that must remain visible in a panoptic map. mask: probability that a
    pixel must exceed. generalized: least p of the queries that are united. keep_best: unite the best one whatever its
    p, as published; without, nothing may be found. interactive: least score of those among which the prompt chooses.
    choice: by which IoU with the prompt, of `box`es (AAAI) or of `mask`s (default branch). published: keep what are
    flaws of the published code: panoptic ids that collide after stuff was fused, fused stuff listed again, and
    grounded phrases painted over earlier ones.
    """

    instance: float = 0.0
    panoptic: float = 0.0
    overlap: float = 0.8
    mask: float = 0.5
    generalized: float = 0.6
    keep_best: bool = True
    interactive: float = 0.5
    choice: Literal["box", "mask"] = "box"
    published: bool = False


EVALUATE = Thresholds()
EVALUATE_STAGE1 = replace(EVALUATE, panoptic=0.5)
SHOW = replace(EVALUATE, instance=0.5, panoptic=0.5)
PUBLISHED = replace(EVALUATE, published=True)
THRESHOLDS = {"evaluate": EVALUATE, "evaluate-stage1": EVALUATE_STAGE1, "show": SHOW, "published": PUBLISHED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A mask. rle: compressed COCO counts at the picture's own size. condition: its column. query: whose mask it is,
    the best one where several were united.
    """

    rle: bytes
    condition: int
    score: float
    query: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A segment of a panoptic map. score: the largest p of the queries it was made of."""

    id: int
    condition: int
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PanopticMap:
    """ids: (H, W) int32 at the picture's own size, 0 where nothing is. segments: what the others are."""

    ids: np.ndarray
    segments: tuple[Segment, ...]


# --- tasks -----------------------------------------------------------------------------------------------------------


def semantic(class_logits: Tensor, mask_logits: Tensor, frame: Frame) -> np.ndarray:
    """The condition of each pixel: argmax over conditions of the sum over queries of p times probability.

    Args:
        class_logits: (N, C + 1) float, any precision. mask_logits: (N, h, w) float, of the canvas at any resolution.
    Returns:
        (H, W) int32.
    """
    p = _probabilities(class_logits, mask_logits)
    height, width = frame.size
    scaled_height, scaled_width = frame.scaled
    found = np.empty(frame.size, np.int32)
    of_canvas = len(p) * frame.canvas * (1 + scaled_height / height)
    step = max(1, int(CELLS / (of_canvas + p.shape[1] * (width + frame.canvas))))
    for start in range(0, height, step):
        stop = min(height, start + step)
        above, below, share = _taps(scaled_height, height, start, stop, p.device)
        first, last = int(above[0]), int(below[-1]) + 1
        part = _canvas_rows(mask_logits, frame.canvas, first, last)[..., :scaled_width].sigmoid_()
        scores = torch.einsum("qc,qhw->chw", p, part)
        scores = torch.lerp(scores[:, above - first], scores[:, below - first], share)
        scores = _resized(scores, (stop - start, width))
        found[start:stop] = scores.argmax(0).to(torch.int32).cpu().numpy()
    return found


def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    frame: Frame,
    thresholds: Thresholds = EVALUATE,
    *,
    among: Sequence[int] | None = None,
) -> list[Found]:
    """Instances of categories, or of the categories that regions show: the N likeliest of all N x C pairs.

    A mask is where its logit is positive; its score is p times the mean probability inside, 0 where it is empty.

    Args:
        class_logits, mask_logits: see `semantic`. among: conditions that count, as the default branch keeps things
            alone; None for all.
    Returns:
        by falling score, of equal ones the earlier query first; one of several for a query may be another condition.
    """
    p = _probabilities(class_logits, mask_logits)
    columns = torch.arange(p.shape[1], device=p.device) if among is None else torch.tensor(among, device=p.device)
    ranked = p[:, columns].flatten().sort(descending=True, stable=True)
    chosen = ranked.indices[: len(p)]
    of_query: dict[int, list[tuple[int, float]]] = {}
    for pair, likelihood in zip(chosen.tolist(), ranked.values.tolist(), strict=False):
        query, column = divmod(pair, len(columns))
        of_query.setdefault(query, []).append((int(columns[column]), likelihood))
    found = []
    for queries, logits in _at_own_size(mask_logits, sorted(of_query), frame):
        inside, sharp = _sharpness(logits)
        for place, query in enumerate(queries):
            pairs = [(condition, likelihood * sharp[place]) for condition, likelihood in of_query[query]]
            kept = [pair for pair in pairs if pair[1] >= thresholds.instance]
            rle = _rle(inside[place]) if kept else b""
            found += [Found(rle=rle, condition=condition, score=score, query=query) for condition, score in kept]
    return sorted(found, key=lambda one: (-one.score, one.query, one.condition))


def panoptic(
    class_logits: Tensor,
    mask_logits: Tensor,
    frame: Frame,
    thresholds: Thresholds = EVALUATE,
    *,
    stuff: Sequence[int] = (),
) -> PanopticMap:
    """Segments that do not overlap: each pixel goes to the query with the largest p times probability, however small.

    A query's segment stands if it won more than `overlap` of the pixels where that product is at least `mask`.

    Args:
        class_logits, mask_logits: see `semantic`. stuff: conditions whose segments become one.
    """
    p, columns = _probabilities(class_logits, mask_logits).max(dim=-1)
    kept = torch.nonzero(p > thresholds.panoptic).flatten()
    p, labels = p[kept], columns[kept].tolist()
    best = torch.full(frame.size, -1.0, device=p.device)
    owner = torch.zeros(frame.size, dtype=torch.int32, device=p.device)  # place in `kept` + 1
    strong: list[int] = []
    for _, logits in _at_own_size(mask_logits, kept.tolist(), frame):
        done = len(strong)
        weighed = logits.sigmoid_().mul_(p[done : done + len(logits), None, None])
        strong += (weighed >= thresholds.mask).sum((1, 2)).tolist()
        value, place = weighed.max(dim=0)
        owner = torch.where(value > best, place.to(torch.int32) + (done + 1), owner)
        best = torch.maximum(best, value)
    won = torch.bincount(owner.flatten(), minlength=len(labels) + 1)[1:].tolist()
    valid = [
        place
        for place, (area, whole) in enumerate(zip(won, strong, strict=True))
        if area and whole and area / whole > thresholds.overlap
    ]
    number = _numbers_as_published if thresholds.published else _numbers
    ids, segments = number(valid, labels, p.tolist(), frozenset(stuff))
    table = np.zeros(len(labels) + 1, np.int32)
    table[[place + 1 for place in valid]] = ids
    return PanopticMap(ids=table[owner.cpu().numpy()], segments=tuple(segments))


def referring(
    class_logits: Tensor, mask_logits: Tensor, frame: Frame, thresholds: Thresholds = EVALUATE, *, condition: int = 0
) -> Found:
    """One mask for a phrase: that of the query with the largest p.

    Args:
        class_logits, mask_logits: see `semantic`. condition: the column of the phrase; with a row for each phrase, the
            number of the row.
    """
    p = _probabilities(class_logits, mask_logits)[:, condition]
    return _best(p, mask_logits, frame, thresholds, condition)


def generalized(
    class_logits: Tensor, mask_logits: Tensor, frame: Frame, thresholds: Thresholds = EVALUATE, *, condition: int = 0
) -> Found:
    """One mask for a phrase with any number of targets: the union of likely queries, perhaps empty.

    Args:
        class_logits, mask_logits, condition: see `referring`.
    """
    p = _probabilities(class_logits, mask_logits)[:, condition]
    best = int(p.argmax())
    likely = p >= thresholds.generalized
    if thresholds.keep_best:
        likely[best] = True
    union = torch.zeros(frame.size, dtype=torch.bool, device=p.device)
    for _, logits in _at_own_size(mask_logits, torch.nonzero(likely).flatten().tolist(), frame):
        union |= (logits.sigmoid_() > thresholds.mask).any(dim=0)
    return Found(rle=_rle(union), condition=condition, score=float(p[best]), query=best)


def grounded(class_logits: Tensor, mask_logits: Tensor, frame: Frame, thresholds: Thresholds = EVALUATE) -> list[Found]:
    """One mask for each phrase of a caption, in their order: that of the query with the largest p.

    Args:
        class_logits, mask_logits: see `semantic`.
    """
    p = _probabilities(class_logits, mask_logits)
    found = [_best(p[:, number], mask_logits, frame, thresholds, number) for number in range(p.shape[1])]
    return _painted_over(found, frame.size) if thresholds.published else found


def interactive(
    class_logits: Tensor,
    mask_logits: Tensor,
    frame: Frame,
    prompt: Tensor,
    thresholds: Thresholds = EVALUATE,
    *,
    condition: int = 0,
) -> Found:
    """One mask for a visual prompt: among the queries that score well, the one that overlaps the prompt most.

    Scores are those of `instances`. The best one is always among them; of equal overlaps the higher score wins.

    Args:
        class_logits, mask_logits, condition: see `referring`. prompt: (canvas, canvas) bool or {0, 1}.
    """
    p = _probabilities(class_logits, mask_logits)[:, condition]
    shown = prompt[None, None, : frame.scaled[0], : frame.scaled[1]].to(p.device, torch.float32)
    shown = functional.interpolate(shown, frame.size, mode="nearest")[0] > 0.5
    scores: list[float] = []
    overlaps: list[float] = []
    for queries, logits in _at_own_size(mask_logits, range(len(p)), frame):
        inside, sharp = _sharpness(logits)
        scores += [float(p[query]) * share for query, share in zip(queries, sharp, strict=True)]
        overlaps += (_box_ious if thresholds.choice == "box" else _mask_ious)(inside, shown).tolist()
    top = max(scores)
    likely = [query for query, score in enumerate(scores) if score >= min(thresholds.interactive, top)]
    query = max(likely, key=lambda one: (overlaps[one], scores[one], -one))
    ((_, logits),) = _at_own_size(mask_logits, [query], frame)
    return Found(rle=_rle(logits[0] > 0), condition=condition, score=scores[query], query=query)


# --- what tasks have in common ---------------------------------------------------------------------------------------


def _probabilities(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """(N, C) float32, without background. Raises ValueError where the logits cannot be used."""
    if class_logits.ndim != 2 or mask_logits.ndim != 3 or len(class_logits) != len(mask_logits):
        shapes = f"{tuple(class_logits.shape)} and {tuple(mask_logits.shape)}"
        raise ValueError(f"logits of classes and masks must have the shapes (N, C + 1) and (N, h, w), not {shapes}")
    if class_logits.shape[1] < 2 or not len(class_logits):
        raise ValueError(f"there is no query, or no condition beside the background: {tuple(class_logits.shape)}")
    if class_logits.isnan().any() or mask_logits.isnan().any():
        raise ValueError("logits hold NaN")
    return class_logits.float().softmax(dim=-1)[:, :-1]


def _at_own_size(mask_logits: Tensor, queries: Sequence[int], frame: Frame) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Some queries at a time, and their (k, H, W) float32 logits at the picture's own size, to be overwritten."""
    step = max(1, CELLS // max(frame.canvas**2, frame.size[0] * frame.size[1]))
    for start in range(0, len(queries), step):
        some = queries[start : start + step]
        logits = mask_logits[list(some)].float()
        logits = _resized(logits, (frame.canvas, frame.canvas))[:, : frame.scaled[0], : frame.scaled[1]]
        yield some, _resized(logits, frame.size)


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(k, h, w) float to (k, *size); the same tensor where it has that size."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return functional.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def _canvas_rows(mask_logits: Tensor, canvas: int, first: int, last: int) -> Tensor:
    """Rows `first` to `last` of all masks on the canvas: (N, last - first, canvas) float32, a new tensor."""
    if tuple(mask_logits.shape[-2:]) == (canvas, canvas):
        return mask_logits[:, first:last].to(torch.float32, copy=True)
    above, below, share = _taps(mask_logits.shape[-2], canvas, first, last, mask_logits.device)
    rows = torch.lerp(mask_logits[:, above].float(), mask_logits[:, below].float(), share)
    return _resized(rows, (last - first, canvas))


def _taps(source: int, target: int, first: int, last: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For rows `first` to `last` of `target` rows resized from `source`: both rows to mix, and the lower one's share.

    As `interpolate` has it: row y of the target lies at (y + 0.5) source / target - 0.5, and not above the first.
    """
    at = (torch.arange(first, last, device=device, dtype=torch.float32) + 0.5) * (source / target) - 0.5
    at = at.clamp(min=0)
    above = at.long().clamp(max=source - 1)
    return above, (above + 1).clamp(max=source - 1), (at - above)[:, None]


def _sharpness(logits: Tensor) -> tuple[Tensor, list[float]]:
    """(k, H, W) bool masks, and the mean probability inside each; the logits are used up."""
    inside = logits > 0
    total = logits.sigmoid_().mul_(inside).sum((1, 2))
    return inside, (total / (inside.sum((1, 2)) + 1e-6)).tolist()


def _best(p: Tensor, mask_logits: Tensor, frame: Frame, thresholds: Thresholds, condition: int) -> Found:
    query = int(p.argmax())
    ((_, logits),) = _at_own_size(mask_logits, [query], frame)
    mask = logits[0].sigmoid_() > thresholds.mask
    return Found(rle=_rle(mask), condition=condition, score=float(p[query]), query=query)


def _rle(mask: Tensor) -> bytes:
    return masks.encode(mask.cpu().numpy())


def _painted_over(found: Sequence[Found], size: tuple[int, int]) -> list[Found]:
    """Without the pixels of later masks."""
    free = np.ones(size, bool)
    kept = []
    for one in reversed(found):
        mask = masks.decode(one.rle, *size)
        kept.append(replace(one, rle=masks.encode(mask & free)))
        free &= ~mask
    return kept[::-1]


def _numbers(
    valid: Sequence[int], labels: Sequence[int], p: Sequence[float], stuff: frozenset[int]
) -> tuple[list[int], list[Segment]]:
    """The id of each valid query, and the segments; those of one kind of stuff are one."""
    ids: list[int] = []
    segments: list[Segment] = []
    of_stuff: dict[int, int] = {}
    for place in valid:
        label = labels[place]
        number = of_stuff.get(label, len(segments) + 1)
        ids.append(number)
        if number > len(segments):
            segments.append(Segment(id=number, condition=label, score=p[place]))
            if label in stuff:
                of_stuff[label] = number
        else:
            earlier = segments[number - 1]
            segments[number - 1] = replace(earlier, score=max(earlier.score, p[place]))
    return ids, segments


def _numbers_as_published(
    valid: Sequence[int], labels: Sequence[int], p: Sequence[float], stuff: frozenset[int]
) -> tuple[list[int], list[Segment]]:
    """As `_numbers`; fused stuff is listed again, and ids go on from its id, so that two things can have one."""
    ids: list[int] = []
    segments: list[Segment] = []
    of_stuff: dict[int, int] = {}
    number = 0
    for place in valid:
        label = labels[place]
        number = of_stuff.get(label, number + 1)
        if label in stuff:
            of_stuff[label] = number
        ids.append(number)
        segments.append(Segment(id=number, condition=label, score=p[place]))
    return ids, segments


# --- overlap with a prompt -------------------------------------------------------------------------------------------


def _mask_ious(inside: Tensor, shown: Tensor) -> Tensor:
    """(k,) IoU of (k, H, W) masks with a (1, H, W) one; 0 where both are empty."""
    both = (inside & shown).sum((1, 2))
    return both / (inside | shown).sum((1, 2)).clamp(min=1)


def _box_ious(inside: Tensor, shown: Tensor) -> Tensor:
    """(k,) IoU of the boxes of masks with that of a (1, H, W) one, half open, px; 0 where one is empty."""
    boxes, other = _boxes(inside), _boxes(shown)
    corner = torch.minimum(boxes[:, 2:], other[:, 2:]) - torch.maximum(boxes[:, :2], other[:, :2])
    both = corner.clamp(min=0).prod(dim=1)
    areas = [(sides[:, 2:] - sides[:, :2]).prod(dim=1) for sides in (boxes, other)]
    return both / (areas[0] + areas[1] - both).clamp(min=1)


def _boxes(inside: Tensor) -> Tensor:
    """(k, H, W) bool to (k, 4) int64 x0, y0, x1, y1, half open; zeros where nothing is set."""
    ends = []
    for axis in (1, 2):
        line = inside.any(dim=axis).to(torch.uint8)  # along x, then along y
        size = line.shape[1]
        ends.append((line.argmax(dim=1), size - line.flip(1).argmax(dim=1)))
    (x0, x1), (y0, y1) = ends
    return torch.stack([x0, y0, x1, y1], dim=1) * inside.flatten(1).any(dim=1)[:, None]
