"""Prompts as values: geometry ⇄ bitmaps, on a crop, never on the full frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from dataengine import masks
from dataengine.kernels import marks
from dataengine.masks import Borders, Crop, MaskError
from dataengine.sample import PROMPT_KINDS, Prompt

SMALL = 32  # px; a radius that any picture may have, those of a few pixels too
MAX_PARTS = 1 << 16  # discs or boxes; a bitmap that takes more is no click, stroke or box


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What a bitmap is drawn with.

    points: x, y, …, px, of discs' middles and of rectangles' corners. radius: px, of the discs. borders: of the bitmap
    as it is drawn. is_possible: False where it takes more than MAX_PARTS discs or rectangles; the rest is void then.
    """

    points: tuple[float, ...]
    radius: float
    borders: np.ndarray
    is_possible: bool


def render(prompt: Prompt, height: int, width: int) -> Crop | None:
    """The bitmap of a prompt on a crop inside the canvas, or None where there is no prompt.

    Points and strokes are unions of discs `sqrt(dx^2 + dy^2) <= radius` about their pixels, boxes are filled, masks are
    themselves.

    Args:
        height, width: of the canvas, px.
    Raises:
        MaskError: a mask that cannot be decoded, or `prompt_points`: points that are none of this canvas, boxes turned
            inside out, a radius larger than the canvas and SMALL.
    """
    if prompt.status == "none":
        return None
    if prompt.rle is not None:
        return masks.crop_from_rle(prompt.rle, height, width)
    if len(prompt.points) % 2 or not prompt.points:
        raise MaskError("prompt_points", f"a {prompt.kind} of {len(prompt.points)} numbers cannot be drawn")
    points = np.array(prompt.points, dtype=np.float64).reshape(-1, 2)
    inside = (points >= 0).all() and (points <= (width, height)).all()  # a NaN is neither
    turned = prompt.kind == "box" and (len(points) % 2 or (points[::2] >= points[1::2]).any())
    if not inside or turned or not 0 <= prompt.radius <= max(SMALL, height + width):
        raise MaskError("prompt_points", f"a {prompt.kind} has no place on {width} x {height} px: {prompt.points[:4]}…")
    if prompt.kind == "box":  # all pixels that it touches
        return boxes_crop(np.hstack([np.floor(points[::2]), np.ceil(points[1::2])]).astype(np.int64))
    pixels = np.minimum(np.floor(points), (width - 1, height - 1))  # the far edge belongs to the last pixel
    return discs_crop(pixels.astype(np.int64), prompt.radius, height, width)


def boxes_crop(corners: np.ndarray) -> Crop:
    """Union of filled boxes.

    Args:
        corners: (n, 4) int64, x0, y0, x1, y1 in px, half open, inside the canvas.
    """
    if len(corners) == 1:
        x0, y0, x1, y1 = corners[0].tolist()
        return Crop(np.ones((y1 - y0, x1 - x0), dtype=bool), x0, y0)
    x0, y0 = corners[:, :2].min(axis=0).tolist()
    x1, y1 = corners[:, 2:].max(axis=0).tolist()
    bitmap = np.zeros((y1 - y0, x1 - x0), dtype=bool)
    for left, top, right, bottom in corners.tolist():
        bitmap[top - y0 : bottom - y0, left - x0 : right - x0] = True
    return Crop(bitmap, x0, y0)


def discs_crop(pixels: np.ndarray, radius: float, height: int, width: int) -> Crop:
    """Union of discs about pixels, cut at the canvas.

    Args:
        pixels: (n, 2) int64, x, y of pixels inside the canvas. radius: px.
    """
    bitmap, x0, y0 = marks.discs(pixels, _halves(radius), height, width)
    return Crop(bitmap, x0, y0)


def geometry(
    bitmaps: Borders,
    kinds: Sequence[str],
    radii: Mapping[str, float],
    height: int,
    width: int,
    *,
    is_traced: bool,
) -> list[Geometry]:
    """What bitmaps of prompts are drawn with, all those of a picture at once.

    Boxes are disjoint. Points and scribbles are the pixels about which `discs_crop` draws within the bitmap, in raster
    order; what is outside the canvas counts as set (an erosion, which a dilation by the same disc turns into the
    opening). Of points those are left out whose discs the others cover. What is no union of such discs is kept as its
    pixels, with radius 0. A mask has no points.

    Args:
        kinds: of each bitmap. radii: px, of points and scribbles, whole. height, width: of the canvas, px.
        is_traced: whether the pixels of points and scribbles are middles of discs, which are yet to be drawn.
    """
    if not kinds:
        return []
    points, ends, are_discs, drawn, stops = marks.geometry(
        bitmaps.places,
        bitmaps.stops,
        bitmaps.figures,
        np.array([PROMPT_KINDS.index(kind) for kind in kinds]),
        _halves(radii["point"]),
        _halves(radii["scribble"]),
        is_traced,
        height,
        width,
        MAX_PARTS,
    )
    numbers = points.ravel().tolist()
    found = []
    start = begin = 0
    for kind, end, is_disc, stop in zip(kinds, ends.tolist(), are_discs.tolist(), stops.tolist(), strict=True):
        found.append(
            Geometry(
                points=tuple(numbers[2 * start : 2 * end]),
                radius=radii.get(kind, 0.0) if is_disc else 0.0,
                borders=drawn[begin:stop],
                is_possible=end - start <= (2 * MAX_PARTS if kind == "box" else MAX_PARTS),
            )
        )
        start, begin = end, stop
    return found


@cache
def _halves(radius: float) -> np.ndarray:
    """(2 r + 1,) int64: how far each row of a disc reaches to either side of its middle."""
    rows = range(-int(radius), int(radius) + 1)
    return np.array([int(math.sqrt(radius**2 - row**2)) for row in rows], dtype=np.int64)
