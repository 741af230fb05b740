"""Prompts as values: drawing their geometry as bitmaps, on a crop, never on the full frame."""

from __future__ import annotations

from functools import cache

import numpy as np

from dataengine import masks
from dataengine.masks import Crop
from dataengine.sample import Prompt


def render(prompt: Prompt, height: int, width: int) -> Crop | None:
    """The bitmap of a prompt on a crop inside the canvas, or None where there is no prompt.

    Points and strokes are unions of discs `sqrt(dx^2 + dy^2) <= radius` about their pixels, boxes are filled, masks are
    themselves.

    Args:
        height, width: of the canvas, px.
    """
    if prompt.status == "none":
        return None
    if prompt.rle is not None:
        return masks.crop_from_rle(prompt.rle, height, width)
    points = np.array(prompt.points).reshape(-1, 2)
    if prompt.kind == "box":
        return boxes_crop(points.astype(np.int64).reshape(-1, 4))
    return discs_crop(np.floor(points).astype(np.int64), prompt.radius, height, width)


def boxes_crop(corners: np.ndarray) -> Crop:
    """Union of filled boxes.

    Args:
        corners: (n, 4) int64, x0, y0, x1, y1 in px, half open, inside the canvas.
    """
    x0, y0 = corners[:, :2].min(axis=0).tolist()
    x1, y1 = corners[:, 2:].max(axis=0).tolist()
    if len(corners) == 1:
        return Crop(np.ones((y1 - y0, x1 - x0), dtype=bool), x0, y0)
    bitmap = np.zeros((y1 - y0, x1 - x0), dtype=bool)
    for left, top, right, bottom in corners.tolist():
        bitmap[top - y0 : bottom - y0, left - x0 : right - x0] = True
    return Crop(bitmap, x0, y0)


def discs_crop(pixels: np.ndarray, radius: float, height: int, width: int) -> Crop:
    """Union of discs about pixels, cut at the canvas.

    Args:
        pixels: (n, 2) int64, x, y of pixels inside the canvas. radius: px.
    """
    import cv2

    reach = int(radius)
    if len(pixels) == 1:
        x, y = pixels[0].tolist()
        x0, y0 = max(x - reach, 0), max(y - reach, 0)
        x1, y1 = min(x + reach + 1, width), min(y + reach + 1, height)
        rows = slice(y0 - y + reach, y1 - y + reach)
        return Crop(_disc(radius)[rows, x0 - x + reach : x1 - x + reach].view(bool), x0, y0)
    x0, y0 = np.maximum(pixels.min(axis=0) - reach, 0).tolist()
    x1, y1 = np.minimum(pixels.max(axis=0) + reach + 1, (width, height)).tolist()
    dots = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
    dots[pixels[:, 1] - y0, pixels[:, 0] - x0] = 1
    return Crop(cv2.dilate(dots, _disc(radius)).view(bool), x0, y0)


@cache
def _disc(radius: float) -> np.ndarray:
    reach = int(radius)
    rows, columns = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return (rows**2 + columns**2 <= radius**2).astype(np.uint8)
