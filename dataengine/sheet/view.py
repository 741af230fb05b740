"""A picture as it is shown: its scale, masks shrunk to it, and outlines and hatches on its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataengine import masks
from dataengine.sample import Sample
from dataengine.sheet.look import (
    HATCH_PX,
    IGNORED,
    MAX_ASPECT,
    MAX_ZOOM,
    RGB,
    SPECK_PX,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How a sample's canvas is shown: `size` is width, height in px, `scale` shown pixels for one of its own."""

    sample: Sample
    size: tuple[int, int]
    scale: float

    def shrunk(self, crop: masks.Crop) -> np.ndarray:
        """(H, W) bool of a mask at the shown size; never empty, so that specks stay visible."""
        import cv2

        h, w = crop.mask.shape
        x0, y0 = (min(int(at * self.scale), end - 1) for at, end in zip((crop.x0, crop.y0), self.size, strict=True))
        x1 = max(x0 + 1, min(self.size[0], round((crop.x0 + w) * self.scale)))
        y1 = max(y0 + 1, min(self.size[1], round((crop.y0 + h) * self.scale)))
        method = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_LINEAR
        soft = cv2.resize(crop.mask.astype(np.uint8) * 255, (x1 - x0, y1 - y0), interpolation=method)
        shown = np.zeros((self.size[1], self.size[0]), dtype=bool)
        shown[y0:y1, x0:x1] = soft >= min(128, int(soft.max()))
        return shown


def view_of(sample: Sample, width: int) -> View:
    height_px, width_px = max(sample.height, 1), max(sample.width, 1)
    scale = min(width / width_px, MAX_ASPECT * width / height_px, MAX_ZOOM)
    return View(sample=sample, size=(max(1, round(width_px * scale)), max(1, round(height_px * scale))), scale=scale)


def crop_of(rle: bytes, sample: Sample) -> masks.Crop | None:
    try:
        return masks.crop_from_rle(rle, sample.height, sample.width)
    except masks.MaskError:
        return None


def draw_outline(canvas: np.ndarray, shown: np.ndarray, color: RGB) -> None:
    """A line in the colour with a dark edge; specks get a diamond to be found by."""
    import cv2

    contours, _ = cv2.findContours(shown.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    x, y, w, h = cv2.boundingRect(shown.astype(np.uint8))
    dark = tuple(channel // 3 for channel in color)
    if max(w, h) <= SPECK_PX:
        contours = [_diamond(x + w // 2, y + h // 2)]
    if max(w, h) <= SPECK_PX or min(w, h) > 12:
        cv2.drawContours(canvas, contours, -1, dark, 3, cv2.LINE_AA)
    cv2.drawContours(canvas, contours, -1, color, 1, cv2.LINE_AA)


def draw_hatch(canvas: np.ndarray, regions: Sequence[np.ndarray], color: RGB, crossed: bool) -> None:
    """A grey veil with diagonal lines, in place."""
    import cv2

    if not regions:
        return
    covered = np.logical_or.reduce(regions)
    rows, columns = np.ogrid[: canvas.shape[0], : canvas.shape[1]]
    lines = (rows + columns) % HATCH_PX < 2
    if crossed:
        lines = lines | ((rows - columns) % HATCH_PX < 2)
    canvas[covered] = (canvas[covered].astype(np.uint16) + 210) // 2
    canvas[covered & lines] = color
    contours, _ = cv2.findContours(covered.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, IGNORED, 1)


def _diamond(x: int, y: int) -> np.ndarray:
    return np.array([[(x - 8, y)], [(x, y - 8)], [(x + 8, y)], [(x, y + 8)]], dtype=np.int32)
