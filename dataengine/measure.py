"""A prompt's figures: how much of it lies inside its object, and how much inside another one.

Simulated and imported prompts are measured alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataengine import masks
from dataengine.kernels import crops
from dataengine.masks import Crop, MaskError
from dataengine.sample import Object, Prompt

MAX_CROP_PIXELS = 1 << 29  # of all objects of a picture; a byte each, and as much again where they lie together


def crops_of(objects: Sequence[Object], height: int, width: int) -> list[Crop]:
    """The masks of a picture's objects, decoded, in their order.

    Args:
        height, width: of the canvas, px.
    Raises:
        MaskError: a mask is malformed or empty, or `objects_too_large`: the boxes of all objects hold more than
            MAX_CROP_PIXELS together, as thousands that each fill a large picture do.
    """
    crops = []
    pixels = 0
    for number, thing in enumerate(objects, start=1):
        crops.append(masks.crop_from_rle(thing.rle, height, width))
        pixels += crops[-1].mask.size
        if pixels > MAX_CROP_PIXELS:
            raise MaskError(
                "objects_too_large",
                f"the boxes of {number} of {len(objects)} objects hold {pixels:,} px; at most {MAX_CROP_PIXELS:,} can "
                "be compared with prompts",
            )
    return crops


class Objects:
    """The objects of a picture, ready for being compared with prompts."""

    __slots__ = ("_boxes", "_pixels", "_starts")

    def __init__(self, crops: Sequence[Crop]) -> None:
        sizes = [crop.mask.size for crop in crops]
        self._boxes = np.array([(c.x0, c.y0, c.x0 + c.mask.shape[1], c.y0 + c.mask.shape[0]) for c in crops])
        self._starts = np.cumsum([0, *sizes[:-1]])
        self._pixels = np.concatenate([crop.mask.ravel() for crop in crops])

    def shares(self, bitmap: Crop, own: int) -> tuple[int, int, int]:
        """Pixels of a bitmap; of those, how many lie in the object `own`, and at most in one other, crowds too."""
        shared: tuple[int, int, int] = crops.shares(
            bitmap.mask, bitmap.x0, bitmap.y0, own, self._boxes, self._starts, self._pixels
        )
        return shared


@dataclass(slots=True, kw_only=True)
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


def measured(
    drawn: Sequence[Drawn], profile: str, version: int, height: int, width: int, objects: Objects, own: int
) -> tuple[Prompt, ...]:
    """The prompts of the object `own` with their `inside` and `other`.

    Args:
        height, width: of the canvas, px. objects: all of the picture. own: index of the object among them.
    """
    return tuple(_measured(one, profile, version, height, width, objects, own) for one in drawn)


def _measured(one: Drawn, profile: str, version: int, height: int, width: int, objects: Objects, own: int) -> Prompt:
    inside = other = 0.0
    rle, status = None, "none"
    if one.bitmap is not None:
        total, in_own, in_other = objects.shares(one.bitmap, own)
        inside, other = in_own / total, in_other / total
        rle = masks.rle_from_crop(one.bitmap, height, width) if one.kind == "mask" else None
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
