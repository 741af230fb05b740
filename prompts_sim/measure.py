"""A prompt's figures: how much of it lies inside its object, and how much inside another one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dataengine import masks
from dataengine.masks import Crop
from dataengine.sample import Prompt, PromptKind
from prompts_sim.shape import Shape


class Others:
    """The other objects of a picture, by place."""

    __slots__ = ("_crops", "_high", "_low", "_own")

    def __init__(self, crops: Sequence[Crop]) -> None:
        self._crops = crops
        self._low = np.array([(crop.x0, crop.y0) for crop in crops])
        self._high = self._low + [crop.mask.shape[::-1] for crop in crops]
        self._own = -1

    def than(self, own: int) -> Others:
        """The same, for the object of that index: all but itself. One value serves one object after the other."""
        self._own = own
        return self

    def near(self, x0: int, y0: int, x1: int, y1: int) -> list[Crop]:
        """Those whose box meets a box, px, half open."""
        meets = ((self._low < (x1, y1)) & (self._high > (x0, y0))).all(axis=1)
        return [self._crops[index] for index in np.flatnonzero(meets).tolist() if index != self._own]


def finished(
    kind: PromptKind,
    profile: str,
    version: int,
    bitmap: Crop | None,
    shape: Shape,
    others: Others,
    *,
    points: Sequence[float] = (),
    parts: Sequence[int] = (),
    radius: float = 0.0,
    fallback: bool = False,
) -> Prompt:
    """The prompt with its `inside` and `other`, measured on its bitmap.

    Args:
        bitmap: the rendered prompt, or None where there is none.
        points, parts, radius: as stored in a `Prompt`; a mask prompt is stored as its bitmap instead.
    """
    if bitmap is None:
        return Prompt(kind=kind, profile=profile, version=version, status="none", radius=radius)  # type: ignore[arg-type]
    total = int(np.count_nonzero(bitmap.mask))
    inside = masks.overlap(bitmap, shape.crop)
    h, w = bitmap.mask.shape
    near = others.near(bitmap.x0, bitmap.y0, bitmap.x0 + w, bitmap.y0 + h)
    other = max((masks.overlap(bitmap, crop) for crop in near), default=0)
    return Prompt(
        kind=kind,
        profile=profile,  # type: ignore[arg-type]
        version=version,
        status="fallback" if fallback else "ok",
        points=tuple(points),
        parts=tuple(parts),
        radius=radius,
        rle=masks.rle_from_crop(bitmap, shape.height, shape.width) if kind == "mask" else None,
        inside=inside / total,
        other=other / total,
    )
