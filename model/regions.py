"""Visual prompts as tokens: points are drawn from a prompt's bitmap, and the features under them become its tokens.

Also the prompt swap of training: which instance of the batch shows a category. Rules of the reference (X-SAM
`modules/sampler`, `utils/point_sample.py`, branch AAAI26_Archive); `mean64` is that of its default branch, `geometry`
pools in the manner of Ferret's spatial-aware sampler (arXiv 2310.07704).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from dataengine.errors import ReasonError
from model.config import RegionConfig

MEAN_TOKENS = 64


class RegionError(ReasonError):
    """A region that cannot be shown: `empty_prompt`, `region_prompt`."""


class Draws(Protocol):
    """Where random numbers come from."""

    def permutation(self, number: int) -> torch.Tensor:
        """(number,) int64: 0 … number - 1 in random order."""

    def integers(self, high: int, number: int) -> torch.Tensor:
        """(number,) int64 in [0, high)."""


class RandomDraws:
    """Draws that go on with a generator: those of training. On the CPU, where a batch's prompts stay, nothing waits."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def permutation(self, number: int) -> torch.Tensor:
        return torch.randperm(number, generator=self.generator, device=self.generator.device)

    def integers(self, high: int, number: int) -> torch.Tensor:
        return torch.randint(high, (number,), generator=self.generator, device=self.generator.device)


class FixedDraws:
    """Draws that depend on the numbers asked for alone, so a prompt gives the same tokens in any batch."""

    def permutation(self, number: int) -> torch.Tensor:
        return torch.randperm(number, generator=torch.Generator().manual_seed(number))

    def integers(self, high: int, number: int) -> torch.Tensor:
        return torch.randint(high, (number,), generator=torch.Generator().manual_seed(high))


FIXED = FixedDraws()


def num_tokens(config: RegionConfig) -> int:
    """How many tokens a `<region>` becomes."""
    return MEAN_TOKENS if config.kind == "mean64" else 1


def points_of_mask(mask: torch.Tensor, number: int, draws: Draws = FIXED) -> torch.Tensor:
    """Points of a prompt: set pixels, a random part of them, or all of them and random ones again.

    Args:
        mask: (H, W), what is not 0 is set.
    Returns:
        (number, 2) float32, x and y as shares of the width and height (of a pixel's corner, as in the reference).
    Raises:
        RegionError: `empty_prompt`.
    """
    pixels = mask.nonzero()
    total = len(pixels)
    if not total:
        raise RegionError("empty_prompt", "a visual prompt has no pixel")
    if total > number:
        pixels = pixels[draws.permutation(total)[:number].to(pixels.device)]
    elif total < number:
        again = draws.integers(total, number - total).to(pixels.device)
        pixels = torch.cat([pixels, pixels[again]])
    size = torch.tensor(mask.shape, dtype=torch.float32, device=pixels.device)
    return (pixels / size).flip(1)


def features_at(features: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Features under points, bilinear between grid points; the outermost ones lie at 0 and 1 (`align_corners`).

    Args:
        features: (h, w, D). points: (P, N, 2) float32 x, y in [0, 1].
    Returns:
        (P, N, D) in the dtype of `features`; coordinates and weights are float32.
    """
    grid = features.float().permute(2, 0, 1)[None]
    found = functional.grid_sample(grid, 2 * points[None] - 1, mode="bilinear", align_corners=True)
    return found[0].permute(1, 2, 0).to(features.dtype)


class RegionSampler(nn.Module):
    """Tokens of visual prompts; without parameters but for `geometry`."""

    def __init__(self, config: RegionConfig, dim: int) -> None:
        """dim: of features and tokens.

        Raises:
            ValueError: `mean64` with points that 64 tokens cannot share evenly.
        """
        super().__init__()
        if config.kind == "mean64" and config.points % MEAN_TOKENS:
            raise ValueError(f"region: {config.points} points cannot be shared by {MEAN_TOKENS} tokens")
        self.config = config
        self.geometry = GeometryPool(dim) if config.kind == "geometry" else None

    def forward(
        self,
        features: torch.Tensor,
        masks: Sequence[torch.Tensor] | torch.Tensor,
        pictures: Sequence[int] | torch.Tensor,
        draws: Draws = FIXED,
    ) -> torch.Tensor:
        """Tokens of prompts.

        Args:
            features: (I, h, w, D), of the segmentation encoder after its projector, on the padded canvas.
            masks: (P, H, W) or P of (H, W), prompts on the canvas.
            pictures: (P,), the picture that each prompt is on.
        Returns:
            (P, T, D); T = `num_tokens(config)`.
        Raises:
            RegionError: a prompt has no pixel, or a picture that is not there.
        """
        wanted = torch.as_tensor(pictures).tolist()
        if len(wanted) != len(masks) or any(not 0 <= picture < len(features) for picture in wanted):
            raise RegionError("region_prompt", f"{len(masks)} prompts on the pictures {wanted} of {len(features)}")
        if not wanted:
            return features.new_zeros(0, num_tokens(self.config), features.shape[-1])
        points = torch.stack([points_of_mask(mask, self.config.points, draws) for mask in masks]).to(features.device)
        found: list[torch.Tensor | None] = [None] * len(wanted)
        for picture in sorted(set(wanted)):
            places = [place for place, other in enumerate(wanted) if other == picture]
            for place, values in zip(places, features_at(features[picture], points[places]), strict=True):
                found[place] = values
        return self.pool(torch.stack([values for values in found if values is not None]), points)

    def pool(self, values: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """(P, N, D) features at (P, N, 2) points as (P, T, D) tokens."""
        if self.config.kind == "mean64":
            return values.unflatten(1, (MEAN_TOKENS, -1)).mean(2)
        token = values.amax(1, keepdim=True)
        return token if self.geometry is None else token + self.geometry(values, points)


class GeometryPool(nn.Module):
    """Pools points with their places: twice, centres far apart gather their neighbours' features and offsets.

    What it gives is added to the maximum; its last layer starts at zero, so training starts from the `max` form.
    """

    def __init__(self, dim: int, hidden_dim: int = 256, centres: tuple[int, int] = (64, 16), neighbours: int = 16):
        super().__init__()
        self.centres, self.neighbours = centres, neighbours
        self.reduce = nn.Linear(dim, hidden_dim)
        # own feature, difference to the neighbour's, own place, offset to the neighbour
        self.stages = nn.ModuleList(nn.Linear(2 * hidden_dim + 4, hidden_dim) for _ in centres)
        self.expand = nn.Linear(hidden_dim, dim)
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)

    def forward(self, values: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """(P, N, D) features at (P, N, 2) points in [0, 1] as (P, 1, D)."""
        states = self.reduce(values)
        for stage, number in zip(self.stages, self.centres, strict=True):
            chosen = farthest_points(points, min(number, points.shape[1]))
            middle, own = _gather(points, chosen), _gather(states, chosen)
            # by products it would be no finer than the pixels that the points are
            apart = torch.cdist(middle, points, compute_mode="donot_use_mm_for_euclid_dist")
            near = apart.topk(min(self.neighbours, points.shape[1]), largest=False).indices
            offsets = _gather(points, near) - middle[:, :, None]
            difference = _gather(states, near) - own[:, :, None]
            place = torch.cat([middle[:, :, None].expand_as(offsets), offsets], dim=-1).to(states.dtype)
            joined = torch.cat([own[:, :, None].expand_as(difference), difference, place], dim=-1)
            states, points = functional.gelu(stage(joined)).amax(2), middle
        token: torch.Tensor = self.expand(states.amax(1, keepdim=True))
        return token


def farthest_points(points: torch.Tensor, number: int) -> torch.Tensor:
    """Points far apart: the first, then again and again the one farthest from all that were taken.

    Args:
        points: (P, N, 2).
    Returns:
        (P, number) int64.
    """
    rows = torch.arange(len(points), device=points.device)
    chosen = torch.zeros(len(points), number, dtype=torch.int64, device=points.device)
    nearest = torch.full(points.shape[:2], torch.inf, device=points.device)
    for step in range(1, number):
        last = points[rows, chosen[:, step - 1]]
        nearest = torch.minimum(nearest, (points - last[:, None]).square().sum(-1))
        chosen[:, step] = nearest.argmax(1)
    return chosen


def swap_prompts(
    instances: Sequence[Sequence[int]], shown: Sequence[Sequence[int]], draws: Draws
) -> list[list[tuple[int, int] | None]]:
    """Which instance of the batch shows each label, in training.

    Any instance of that label in the batch that shows nothing to the picture yet; where there is none (a sampled
    negative), one whose label neither the picture has nor shows already; else none, whose feature is zero.

    Args:
        instances: of each picture, the labels of the instances that have a prompt.
        shown: of each picture, the labels to be shown, in the order of its `<region>` tokens.
    Returns:
        of each picture, for each label to be shown, (picture, instance) or None.
    """
    everything = [(image, number) for image, labels in enumerate(instances) for number in range(len(labels))]
    chosen: list[list[tuple[int, int] | None]] = []
    for image, wanted in enumerate(shown):
        used: set[tuple[int, int]] = set()
        row: list[tuple[int, int] | None] = []
        for label in wanted:
            free = [place for place in everything if place not in used]
            candidates = [(i, n) for i, n in free if instances[i][n] == label]
            if not candidates:
                excluded = {instances[i][n] for i, n in used} | set(instances[image])
                candidates = [(i, n) for i, n in free if instances[i][n] not in excluded]
            if not candidates:
                row.append(None)
                continue
            place = candidates[int(draws.integers(len(candidates), 1))]
            used.add(place)
            row.append(place)
        chosen.append(row)
    return chosen


def _gather(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """(P, …, C): rows of (P, N, C) values at (P, …) indices."""
    rows = torch.arange(len(values), device=values.device).view(-1, *[1] * (indices.dim() - 1))
    return values[rows, indices]
