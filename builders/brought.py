"""Prompts that a source brings as bitmaps: kept as geometry that is drawn as the same bitmap again, pixel for pixel.

Points and scribbles become the pixels that their discs lie about, boxes disjoint rectangles, masks stay masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from builders.reading import RecordError
from dataengine import masks, prompts
from dataengine.masks import Crop
from dataengine.measure import Drawn, Objects, crops_of, measured
from dataengine.sample import PROMPT_KINDS, Object

PROFILE = "published"
VERSION = 0  # of the generator: not ours
RADII = {"point": 10.0, "scribble": 5.0}  # px, with which PSALM and X-SAM draw them


def prompt_from_bitmap(kind: str, value: Any, height: int, width: int, *, is_traced: bool) -> Drawn:
    """The geometry of a prompt's bitmap; without a bitmap where no pixel is set.

    A drawn point or scribble is recovered as the pixels about which a disc of the usual radius fits into it; what is no
    union of such discs is kept as its pixels, with radius 0. Clicks that others cover, as they arise where a disc is
    cut at the border, are left out; a scribble keeps all its pixels, so that its trace stays whole.

    Args:
        value: COCO RLE, compressed or not, on the full canvas. height, width: of the canvas, px.
        is_traced: whether points and scribbles are bare pixels that are yet to be drawn with the usual radius.
    Raises:
        RecordError: `bad_prompt`: it is no RLE, or takes more than `prompts.MAX_PARTS` points or boxes.
        MaskError: the RLE is malformed.
    """
    crop = _crop(value, height, width)
    if crop is None:
        return Drawn(kind=kind, bitmap=None)
    if kind == "mask":
        return Drawn(kind=kind, bitmap=crop)
    if kind == "box":
        corners = _checked(kind, prompts.boxes_from_crop(crop))
        return _drawn(kind, crop, corners.reshape(-1, 2), [2] * len(corners))
    radius = RADII[kind]
    if is_traced:
        pixels = _checked(kind, prompts.discs_from_crop(crop, 0.0, height, width))
        crop = prompts.discs_crop(pixels, radius, height, width)
        return _drawn(kind, crop, pixels + 0.5, [1] * len(pixels), radius)
    pixels = _checked(kind, prompts.discs_from_crop(crop, radius, height, width))
    if not len(pixels) or not _is_drawn(pixels, radius, crop, height, width):
        radius, pixels = 0.0, _checked(kind, prompts.discs_from_crop(crop, 0.0, height, width))
    if kind == "point":
        pixels = prompts.needed_discs(pixels, radius, height, width)
    return _drawn(kind, crop, pixels + 0.5, [1] * len(pixels), radius)


def _crop(value: Any, height: int, width: int) -> Crop | None:
    if not isinstance(value, dict):
        raise RecordError("bad_prompt", "a prompt must be an RLE with size and counts")
    try:
        return masks.crop_from_segmentation(value, height, width)
    except masks.MaskError as error:
        if error.reason == "empty_mask":
            return None
        raise


def _checked(kind: str, points: np.ndarray) -> np.ndarray:
    if len(points) > prompts.MAX_PARTS:
        raise RecordError("bad_prompt", f"the bitmap is no {kind}: it takes over {prompts.MAX_PARTS:,} points or boxes")
    return points


def _is_drawn(pixels: np.ndarray, radius: float, crop: Crop, height: int, width: int) -> bool:
    """Whether discs about the pixels, which lie in the bitmap, make up all of it."""
    again = prompts.discs_crop(pixels, radius, height, width)
    return again.mask.shape == crop.mask.shape and bool((again.mask == crop.mask).all())


def _drawn(kind: str, bitmap: Crop, points: np.ndarray, parts: list[int], radius: float = 0.0) -> Drawn:
    return Drawn(kind=kind, bitmap=bitmap, points=tuple(points.ravel().tolist()), parts=tuple(parts), radius=radius)


def with_prompts(
    objects: Sequence[Object], brought: Mapping[str, Sequence[Drawn]], height: int, width: int
) -> tuple[Object, ...]:
    """The objects with their prompts, one of each kind; crowds get none.

    Args:
        objects: all of the picture. brought: by annotation id; kinds that are missing get the status `none`.
        height, width: of the picture, px.
    Raises:
        MaskError: see `measure.crops_of`.
    """
    if not objects:
        return ()
    together = Objects(crops_of(objects, height, width))
    prompted = []
    for own, thing in enumerate(objects):
        if not thing.crowd:
            there = {one.kind: one for one in brought.get(thing.annotation_id, ())}
            drawn = [there.get(kind) or Drawn(kind=kind, bitmap=None) for kind in PROMPT_KINDS]
            thing = replace(thing, prompts=measured(drawn, PROFILE, VERSION, height, width, together, own))
        prompted.append(thing)
    return tuple(prompted)
