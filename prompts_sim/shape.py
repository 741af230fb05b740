"""An object as the formulas see it: crop, canvas and components; and where random numbers come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dataengine import masks
from dataengine.kernels import crops
from dataengine.keyed import Key, uniforms
from dataengine.masks import Crop

Box = tuple[int, int, int, int]  # row 0, column 0, row 1, column 1, half open, px
BLOCK = 32  # numbers a kind of prompt has at hand before it must ask for more


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A connected component: area in px, box on the canvas, centroid (row, column) in px."""

    area: int
    box: Box
    centroid: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """An object ready for prompting. parts: its 8-connected components, in raster order of their first pixel.

    labels: (h, w) int32, component of each pixel of the crop, or None where there is one component.
    """

    crop: Crop
    height: int
    width: int
    parts: tuple[Part, ...]
    labels: np.ndarray | None

    def covers(self, row: int, column: int) -> bool:
        row, column = row - self.crop.y0, column - self.crop.x0
        h, w = self.crop.mask.shape
        return 0 <= row < h and 0 <= column < w and bool(self.crop.mask[row, column])


def shape_from_rle(rle: bytes, height: int, width: int) -> Shape:
    """Prepare an object for prompting.

    Raises:
        MaskError: the RLE is malformed or empty.
    """
    return shape_from_crop(masks.crop_from_rle(rle, height, width), height, width)


def shape_from_crop(crop: Crop, height: int, width: int) -> Shape:
    """Prepare an object that is already decoded; the crop must be tight."""
    labels, stats = crops.components(crop.mask)
    x, y = crop.x0, crop.y0
    parts = tuple(
        Part(
            area=area,
            box=(y + y0, x + x0, y + y1, x + x1),
            centroid=((sum_y + y * area) / area, (sum_x + x * area) / area),
        )
        for area, x0, y0, x1, y1, sum_x, sum_y in stats.tolist()
    )
    return Shape(crop=crop, height=height, width=width, parts=parts, labels=labels if len(parts) > 1 else None)


class Draws(Protocol):
    """Where random numbers come from, so that recorded ones can be replayed."""

    def uniform(self, low: float, high: float) -> float: ...

    def choice(self, number: int) -> int:
        """An index in 0..number-1."""
        ...


class KeyedDraws:
    """Draws for one kind of prompt of one object; they depend on their key only.

    The kinds of an object share one generator, whose first numbers are dealt out in blocks; a kind that needs more asks
    a generator of its own. So no kind's numbers depend on which other kinds are made.
    """

    __slots__ = ("_key", "_kind", "_numbers", "_rounds", "_seed")

    def __init__(self, seed: int, key: tuple[Key, ...], kind: str, numbers: list[float]) -> None:
        self._seed, self._key, self._kind = seed, key, kind
        self._numbers, self._rounds = numbers, 0

    def _next(self) -> float:
        if not self._numbers:
            self._rounds += 1
            self._numbers = uniforms(1024, self._seed, *self._key, self._kind, self._rounds)[::-1].tolist()
        return self._numbers.pop()

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self._next()

    def choice(self, number: int) -> int:
        return min(int(number * self._next()), number - 1)


def draws_of(seed: int, key: tuple[Key, ...], kinds: tuple[str, ...]) -> dict[str, KeyedDraws]:
    """The draws of each kind of prompt of one object."""
    numbers = uniforms(len(kinds) * BLOCK, seed, *key).reshape(len(kinds), BLOCK)[:, ::-1].tolist()
    return {kind: KeyedDraws(seed, key, kind, block) for kind, block in zip(kinds, numbers, strict=True)}
