"""A prompt's figures: how much of it lies inside its object, and how much inside another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from dataengine import masks
from dataengine.masks import Crop
from dataengine.sample import Prompt
from prompts_sim.shape import Shape


class Others:
    """The other objects of a picture that prompts of one object may touch."""

    __slots__ = ("_boxes", "_crops", "_near")

    def __init__(self, crops: Sequence[Crop]) -> None:
        self._crops = crops
        self._boxes = [(c.x0, c.y0, c.x0 + c.mask.shape[1], c.y0 + c.mask.shape[0]) for c in crops]
        self._near: list[tuple[int, int, int, int, Crop]] = []

    def than(self, own: int) -> Others:
        """The same, for the object of that index: all but itself. One value serves one object after the other."""
        x0, y0, x1, y1 = self._boxes[own]
        # a published stroke leaves the box by less than its size and its amplitude, a click by its radius
        reach_x, reach_y = x1 - x0 + 12, y1 - y0 + 32
        x0, y0, x1, y1 = x0 - reach_x, y0 - reach_y, x1 + reach_x, y1 + reach_y
        self._near = [
            (*box, self._crops[number])
            for number, box in enumerate(self._boxes)
            if number != own and box[0] < x1 and box[2] > x0 and box[1] < y1 and box[3] > y0
        ]
        return self

    def meeting(self, x0: int, y0: int, x1: int, y1: int) -> list[Crop]:
        """Those whose box meets a box, px, half open."""
        return [crop for a, b, c, d, crop in self._near if a < x1 and c > x0 and b < y1 and d > y0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A prompt before it is measured.

    bitmap: it rendered, or None where there is none. points, parts, radius: as stored in a `Prompt`; a mask prompt is
    stored as its bitmap instead.
    """

    kind: str
    bitmap: Crop | None
    points: tuple[float, ...] = ()
    parts: tuple[int, ...] = ()
    radius: float = 0.0
    fallback: bool = False


def measured(drawn: Sequence[Drawn], profile: str, version: int, shape: Shape, others: Others) -> tuple[Prompt, ...]:
    """The prompts of an object with their `inside` and `other`.

    All kinds are counted at once: the bitmaps become the bits of one small image, whose histogram inside an object says
    how much of every prompt lies there.
    """
    bitmaps = [one.bitmap for one in drawn if one.bitmap is not None]
    totals = inside = other = np.zeros(len(drawn))
    if bitmaps:
        code = _Code(drawn)
        totals, inside = code.counts(None), code.counts(shape.crop)
        for crop in others.meeting(code.x0, code.y0, code.x1, code.y1):
            other = np.maximum(other, code.counts(crop))
    return tuple(
        Prompt(
            kind=one.kind,  # type: ignore[arg-type]
            profile=profile,  # type: ignore[arg-type]
            version=version,
            status="none" if one.bitmap is None else "fallback" if one.fallback else "ok",
            points=one.points,
            parts=one.parts,
            radius=one.radius,
            rle=masks.rle_from_crop(one.bitmap, shape.height, shape.width)
            if one.kind == "mask" and one.bitmap
            else None,
            inside=float(inside[n] / totals[n]) if one.bitmap else 0.0,
            other=float(other[n] / totals[n]) if one.bitmap else 0.0,
        )
        for n, one in enumerate(drawn)
    )


class _Code:
    """Bitmaps as the bits of one image over their common box x0, y0, x1, y1."""

    def __init__(self, drawn: Sequence[Drawn]) -> None:
        crops = [one.bitmap for one in drawn if one.bitmap is not None]
        self.x0, self.y0 = min(c.x0 for c in crops), min(c.y0 for c in crops)
        self.x1 = max(c.x0 + c.mask.shape[1] for c in crops)
        self.y1 = max(c.y0 + c.mask.shape[0] for c in crops)
        self._image = np.zeros((self.y1 - self.y0, self.x1 - self.x0), dtype=np.uint8)
        self._bits = _bits(len(drawn))
        for bit, one in enumerate(drawn):
            if (crop := one.bitmap) is not None:
                h, w = crop.mask.shape
                y, x = crop.y0 - self.y0, crop.x0 - self.x0
                self._image[y : y + h, x : x + w] |= crop.mask.view(np.uint8) << bit

    def counts(self, crop: Crop | None) -> np.ndarray:
        """Pixels of each bitmap, in all or inside a mask; (n,) float64 of whole numbers."""
        import cv2

        image, mask = self._image, None
        if crop is not None:
            h, w = crop.mask.shape
            y0, y1 = max(self.y0, crop.y0), min(self.y1, crop.y0 + h)
            x0, x1 = max(self.x0, crop.x0), min(self.x1, crop.x0 + w)
            if y0 >= y1 or x0 >= x1:
                return np.zeros(len(self._bits))
            image = image[y0 - self.y0 : y1 - self.y0, x0 - self.x0 : x1 - self.x0]
            mask = crop.mask.view(np.uint8)[y0 - crop.y0 : y1 - crop.y0, x0 - crop.x0 : x1 - crop.x0]
        codes = self._bits.shape[1]
        histogram = cv2.calcHist([image], [0], mask, [codes], [0, codes])
        counts: np.ndarray = self._bits @ histogram.ravel().astype(np.float64)
        return counts


@cache
def _bits(number: int) -> np.ndarray:
    """(number, 2**number) float64: whether a code has a bit."""
    codes = np.arange(1 << number)
    return np.array([codes >> bit & 1 for bit in range(number)], dtype=np.float64)
