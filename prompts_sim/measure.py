"""A prompt's figures: how much of it lies inside its object, and how much inside another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """The prompts of an object with their `inside` and `other`."""
    return tuple(_measured(one, profile, version, shape, others) for one in drawn)


def _measured(one: Drawn, profile: str, version: int, shape: Shape, others: Others) -> Prompt:
    inside = other = 0.0
    rle, status = None, "none"
    if (bitmap := one.bitmap) is not None:
        h, w = bitmap.mask.shape
        total = int(np.count_nonzero(bitmap.mask))
        inside = masks.overlap(bitmap, shape.crop) / total
        met = others.meeting(bitmap.x0, bitmap.y0, bitmap.x0 + w, bitmap.y0 + h)
        other = max((masks.overlap(bitmap, crop) for crop in met), default=0) / total
        rle = masks.rle_from_crop(bitmap, shape.height, shape.width) if one.kind == "mask" else None
        status = "fallback" if one.fallback else "ok"
    return Prompt(
        kind=one.kind,  # type: ignore[arg-type]
        profile=profile,  # type: ignore[arg-type]
        version=version,
        status=status,  # type: ignore[arg-type]
        points=one.points,
        parts=one.parts,
        radius=one.radius,
        rle=rle,
        inside=inside,
        other=other,
    )
