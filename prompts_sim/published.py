"""The `published` profile: the prompt formulas of PSALM and X-SAM, bit for bit, on a crop of the object.

Formulas: PSALM's COCO-Interactive builder and X-SAM's COCO-VGD generator (`vprompt.py`, the same formulas in the same
order of draws). Their truncations, their 8-connectivity, their 1000 tries, and prompts that cannot be made (status
`none`) are part of the profile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from dataengine import masks
from dataengine.masks import Crop
from dataengine.sample import Prompt, PromptKind

VERSION = 1
MIN_AREA = 5  # components up to this many pixels are not prompted
MAX_TRIES = 1000
RADII = {"point": 10.0, "scribble": 5.0, "box": 0.0, "mask": 0.0}
SIGMA = 2.0
REACH = 8  # px: the blur's kernel ends at 4 sigma

Box = tuple[int, int, int, int]  # row 0, column 0, row 1, column 1, half open, px


class Draws(Protocol):
    """Where random numbers come from, so that recorded ones can be replayed."""

    def uniform(self, low: float, high: float) -> float: ...

    def choice(self, number: int) -> int:
        """An index in 0..number-1."""
        ...


@dataclass(frozen=True, slots=True)
class KeyedDraws:
    """Draws of a keyed generator."""

    rng: np.random.Generator

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def choice(self, number: int) -> int:
        return int(self.rng.integers(number))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A connected component: box on the canvas, centroid (row, column) in px."""

    box: Box
    centroid: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """An object as the formulas see it: its crop, its canvas, and its components of more than `MIN_AREA` pixels."""

    crop: Crop
    height: int
    width: int
    parts: tuple[Part, ...]

    def covers(self, row: int, column: int) -> bool:
        row, column = row - self.crop.y0, column - self.crop.x0
        h, w = self.crop.mask.shape
        return 0 <= row < h and 0 <= column < w and bool(self.crop.mask[row, column])


def shape_from_rle(rle: bytes, height: int, width: int) -> Shape:
    """Prepare an object for prompting.

    Raises:
        MaskError: the RLE is malformed or empty.
    """
    crop = masks.crop_from_rle(rle, height, width)
    parts = []
    for component in masks.components_of_crop(crop):
        in_row, in_column = component.mask.sum(axis=1), component.mask.sum(axis=0)
        area = int(in_row.sum())
        if area <= MIN_AREA:
            continue
        h, w = component.mask.shape
        r0, c0 = component.y0, component.x0
        row_sum, column_sum = int(in_row @ np.arange(r0, r0 + h)), int(in_column @ np.arange(c0, c0 + w))
        parts.append(Part(box=(r0, c0, r0 + h, c0 + w), centroid=(row_sum / area, column_sum / area)))
    return Shape(crop=crop, height=height, width=width, parts=tuple(parts))


def point_prompt(shape: Shape, draws: Draws) -> Prompt:
    """One click a component, at a random polar offset from its centroid; drawn as discs of radius 10 px."""
    points: list[float] = []
    for part in shape.parts:
        r0, c0, r1, c1 = part.box
        reach = 0.5 * min(r1 - r0, c1 - c0)
        for _ in range(MAX_TRIES):
            angle = draws.uniform(0.0, 2 * math.pi)
            # two independent radii, as published: not uniform over a disc
            row = int(part.centroid[0] + draws.uniform(0.0, reach) * math.cos(angle))
            column = int(part.centroid[1] + draws.uniform(0.0, reach) * math.sin(angle))
            row, column = min(max(row, r0), r1 - 1), min(max(column, c0), c1 - 1)
            if shape.covers(row, column):
                points += (column + 0.5, row + 0.5)
                break
    return _prompt("point", points, [1] * (len(points) // 2))


def scribble_prompt(shape: Shape, draws: Draws) -> Prompt:
    """A sine wave along the diagonal of a jittered box, for each component; drawn with radius 5 px.

    The amplitude is 10 to 20 px whatever the object's size, and nothing keeps the stroke inside the object.
    """
    points: list[float] = []
    lengths: list[int] = []
    for part in shape.parts:
        box = _jittered_box(shape, part, draws)
        if box is None:
            continue
        rows, columns = _wave(box, shape, draws)
        points += (np.column_stack((columns, rows)) + 0.5).ravel().tolist()
        lengths.append(len(rows))
    return _prompt("scribble", points, lengths)


def _jittered_box(shape: Shape, part: Part, draws: Draws) -> Box | None:
    r0, c0, r1, c1 = part.box
    row, column = part.centroid
    for _ in range(MAX_TRIES):
        height = (r1 - r0) * draws.uniform(0.5, 1.2)
        width = (c1 - c0) * draws.uniform(0.5, 1.2)
        box = (
            max(0, int(row - height / 2)),
            max(0, int(column - width / 2)),
            min(shape.height, int(row + height / 2)),
            min(shape.width, int(column + width / 2)),
        )
        if _iou_inclusive(box, part.box) >= 0.5:
            return box
    return None


def _iou_inclusive(a: Box, b: Box) -> float:
    """IoU of boxes whose far corners count as pixels (the "+1" convention)."""
    height = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    width = max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    both = height * width
    return both / (_area_inclusive(a) + _area_inclusive(b) - both)


def _area_inclusive(box: Box) -> int:
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def _wave(box: Box, shape: Shape, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    from skimage.draw import line

    r0, c0, r1, c1 = box
    corners = ((r0, c0), (r0, c1), (r1, c0), (r1, c1))
    corner = draws.choice(4)
    (row_a, column_a), (row_b, column_b) = corners[corner], corners[3 - corner]
    rows, columns = line(row_a, column_a, row_b, column_b)
    amplitude = draws.uniform(10.0, 20.0)
    frequency = draws.uniform(0.2, 1.0)
    phase = draws.uniform(0.0, 2 * math.pi)
    steps = np.linspace(0, 1, len(rows))
    waved = (rows + amplitude * np.sin(2 * np.pi * frequency * steps + phase)).astype(np.float32)
    rows = np.clip(waved, 0, shape.height - 1).astype(np.int64)
    return rows, np.clip(columns, 0, shape.width - 1)


def box_prompt(shape: Shape, draws: Draws) -> Prompt:
    """The box of each component, scaled about its centre by 0.9 to 1.1, truncated to whole pixels."""
    points: list[float] = []
    for part in shape.parts:
        scale = draws.uniform(0.9, 1.1)
        r0, c0, r1, c1 = part.box
        grow_r, grow_c = (r1 - r0) * (scale - 1), (c1 - c0) * (scale - 1)
        top, left = max(0, int(r0 - grow_r / 2)), max(0, int(c0 - grow_c / 2))
        bottom, right = min(shape.height, int(r1 + grow_r / 2)), min(shape.width, int(c1 + grow_c / 2))
        if top < bottom and left < right:
            points += (float(left), float(top), float(right), float(bottom))
    return _prompt("box", points, [2] * (len(points) // 4))


def mask_prompt(shape: Shape) -> Prompt:
    """The pixels of the blurred mask (Gaussian, sigma 2) above its mean over the whole frame."""
    import cv2

    crop = shape.crop
    h, w = crop.mask.shape
    y0, x0 = max(0, crop.y0 - REACH), max(0, crop.x0 - REACH)
    y1, x1 = min(shape.height, crop.y0 + h + REACH), min(shape.width, crop.x0 + w + REACH)
    padded = np.zeros((y1 - y0, x1 - x0))
    padded[crop.y0 - y0 : crop.y0 - y0 + h, crop.x0 - x0 : crop.x0 - x0 + w] = crop.mask
    size = 2 * REACH + 1
    blurred = cv2.GaussianBlur(padded, (size, size), SIGMA, borderType=cv2.BORDER_REFLECT)
    # the sum of a constant blur may round either way; nothing exceeds its mean
    kept = blurred > blurred.sum() / (shape.height * shape.width)
    if blurred.min() == blurred.max() or not kept.any():
        return _prompt("mask", [], [])
    rle = masks.rle_from_crop(Crop(kept, x0, y0), shape.height, shape.width)
    return Prompt(kind="mask", profile="published", version=VERSION, status="ok", rle=rle)


def _prompt(kind: PromptKind, points: list[float], parts: list[int]) -> Prompt:
    return Prompt(
        kind=kind,
        profile="published",
        version=VERSION,
        status="ok" if points else "none",
        points=tuple(points),
        parts=tuple(parts),
        radius=RADII[kind],
    )


# --- rendering -----------------------------------------------------------------------------------------------------


def render(prompt: Prompt, height: int, width: int) -> Crop | None:
    """The bitmap of a prompt, on a crop inside the canvas, or None where there is no prompt.

    Points and strokes are unions of discs `sqrt(dr^2 + dc^2) <= radius`, boxes are filled.
    """
    import cv2

    if prompt.status == "none":
        return None
    if prompt.rle is not None:
        return masks.crop_from_rle(prompt.rle, height, width)
    points = np.array(prompt.points).reshape(-1, 2)
    if prompt.kind == "box":
        corners = points.astype(np.int64).reshape(-1, 4)
        x0, y0 = corners[:, :2].min(axis=0).tolist()
        x1, y1 = corners[:, 2:].max(axis=0).tolist()
        bitmap = np.zeros((y1 - y0, x1 - x0), dtype=bool)
        for left, top, right, bottom in corners.tolist():
            bitmap[top - y0 : bottom - y0, left - x0 : right - x0] = True
        return Crop(bitmap, x0, y0)
    pixels = np.floor(points).astype(np.int64)
    reach = int(prompt.radius)
    x0, y0 = np.maximum(pixels.min(axis=0) - reach, 0).tolist()
    x1, y1 = np.minimum(pixels.max(axis=0) + reach + 1, (width, height)).tolist()
    dots = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
    dots[pixels[:, 1] - y0, pixels[:, 0] - x0] = 1
    return Crop(cv2.dilate(dots, _disc(prompt.radius)).view(bool), x0, y0)


@cache
def _disc(radius: float) -> np.ndarray:
    reach = int(radius)
    rows, columns = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return (rows**2 + columns**2 <= radius**2).astype(np.uint8)
