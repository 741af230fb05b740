"""The `published` profile: the prompt formulas of PSALM and X-SAM, bit for bit, on a crop of the object.

Formulas: PSALM's COCO-Interactive builder and X-SAM's COCO-VGD generator (`vprompt.py`, the same formulas in the same
order of draws). Their truncations, their 8-connectivity, their 1000 tries, and prompts that cannot be made (status
`none`) are part of the profile. The functions of the kinds give geometry in whole pixels, empty where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dataengine.kernels import simulated
from dataengine.masks import Crop
from dataengine.measure import Drawn, Objects
from dataengine.prompts import boxes_crop, discs_crop
from prompts_sim.shape import Box, Draws, Part, Shape

VERSION = 1
MIN_AREA = 5  # components up to this many pixels are not prompted
MAX_TRIES = 1000
RADII = {"point": 10.0, "scribble": 5.0, "box": 0.0, "mask": 0.0}
SIGMA = 2.0
REACH = 8  # px: the blur's kernel ends at 4 sigma
# A blur in single precision is off by some 40 roundings of 6e-8; nearer to the threshold it is done again in double.
DOUBT = 1e-5
_BELL = np.exp(-0.5 * (np.arange(REACH + 1) / SIGMA) ** 2)
_WEIGHTS = _BELL / (2 * _BELL.sum() - 1)
_WEIGHTS32 = _WEIGHTS.astype(np.float32)


def draw(shape: Shape, kinds: Sequence[str], draws: Mapping[str, Draws], _: Objects, __: int) -> list[Drawn]:
    """The prompts of an object; one for each kind, in that order. What else is in the picture makes no difference."""
    made = []
    for kind in kinds:
        bitmap, places, lengths = drawn(shape, kind, draws[kind])
        points = (places if kind == "box" else places + 0.5).ravel().tolist()
        made.append(Drawn(kind=kind, bitmap=bitmap, points=tuple(points), parts=tuple(lengths), radius=RADII[kind]))
    return made


def drawn(shape: Shape, kind: str, draws: Draws) -> tuple[Crop | None, np.ndarray, list[int]]:
    """A prompt's bitmap (None: it cannot be made), its points (n, 2) int64 x, y, and the lengths of its parts."""
    size = (shape.height, shape.width)
    nothing = np.empty((0, 2), dtype=np.int64)
    if kind == "mask":
        return mask(shape), nothing, []
    if kind == "box":
        corners = boxes(shape, draws)
        return (boxes_crop(corners) if len(corners) else None), corners.reshape(-1, 2), [2] * len(corners)
    if kind == "point":
        clicks = points(shape, draws)
        return (discs_crop(clicks, RADII[kind], *size) if len(clicks) else None), clicks, [1] * len(clicks)
    lines = strokes(shape, draws)
    if not lines:
        return None, nothing, []
    pixels = lines[0] if len(lines) == 1 else np.concatenate(lines)
    return discs_crop(pixels, RADII[kind], *size), pixels, [len(stroke) for stroke in lines]


def _parts(shape: Shape) -> list[Part]:
    return [part for part in shape.parts if part.area > MIN_AREA]


def points(shape: Shape, draws: Draws) -> np.ndarray:
    """One click a component, at a random polar offset from its centroid; drawn as discs of radius 10 px.

    Returns:
        (n, 2) int64, x, y.
    """
    clicks = []
    for part in _parts(shape):
        r0, c0, r1, c1 = part.box
        reach = 0.5 * min(r1 - r0, c1 - c0)
        for _ in range(MAX_TRIES):
            angle = draws.uniform(0.0, 2 * math.pi)
            # two independent radii, as published: not uniform over a disc
            row = int(part.centroid[0] + draws.uniform(0.0, reach) * math.cos(angle))
            column = int(part.centroid[1] + draws.uniform(0.0, reach) * math.sin(angle))
            row, column = min(max(row, r0), r1 - 1), min(max(column, c0), c1 - 1)
            if shape.covers(row, column):
                clicks.append((column, row))
                break
    return np.array(clicks, dtype=np.int64).reshape(-1, 2)


def strokes(shape: Shape, draws: Draws) -> list[np.ndarray]:
    """A sine wave along the diagonal of a jittered box, for each component; drawn with radius 5 px.

    The amplitude is 10 to 20 px whatever the object's size, and nothing keeps the stroke inside the object.

    Returns:
        (n, 2) int64 arrays of x, y.
    """
    boxes = ((_jittered_box(shape, part, draws), draws) for part in _parts(shape))
    return [_wave(box, shape, draws) for box, draws in boxes if box is not None]


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


def _wave(box: Box, shape: Shape, draws: Draws) -> np.ndarray:
    r0, c0, r1, c1 = box
    corners = ((r0, c0), (r0, c1), (r1, c0), (r1, c1))
    corner = draws.choice(4)
    stroke = simulated.line(*corners[corner], *corners[3 - corner])
    amplitude = draws.uniform(10.0, 20.0)
    frequency = draws.uniform(0.2, 1.0)
    phase = draws.uniform(0.0, 2 * math.pi)
    waved: np.ndarray = simulated.wave(stroke, amplitude, frequency, phase, shape.height, shape.width)
    return waved


def boxes(shape: Shape, draws: Draws) -> np.ndarray:
    """The box of each component, scaled about its centre by 0.9 to 1.1, truncated to whole pixels.

    Returns:
        (n, 4) int64, x0, y0, x1, y1.
    """
    corners = []
    for part in _parts(shape):
        scale = draws.uniform(0.9, 1.1)
        r0, c0, r1, c1 = part.box
        grow_r, grow_c = (r1 - r0) * (scale - 1), (c1 - c0) * (scale - 1)
        top, left = max(0, int(r0 - grow_r / 2)), max(0, int(c0 - grow_c / 2))
        bottom, right = min(shape.height, int(r1 + grow_r / 2)), min(shape.width, int(c1 + grow_c / 2))
        if top < bottom and left < right:
            corners.append((left, top, right, bottom))
    return np.array(corners, dtype=np.int64).reshape(-1, 4)


def mask(shape: Shape) -> Crop | None:
    """The pixels of the blurred mask (Gaussian, sigma 2) above its mean over the whole frame.

    A blur that mirrors what lies beyond the frame keeps the sum, so the mean is the object's share of the frame.
    """
    crop = shape.crop
    h, w = crop.mask.shape
    room = (crop.x0, crop.y0, shape.width - crop.x0 - w, shape.height - crop.y0 - h)
    margins = (min(REACH, room[0]), min(REACH, room[1]), min(REACH, room[2]), min(REACH, room[3]))
    size, frame = sum(part.area for part in shape.parts), shape.height * shape.width
    if size == frame:  # the sum of a constant blur may round either way; nothing exceeds its mean
        return None
    kept, close = simulated.blur_above(crop.mask, _WEIGHTS32, margins, size / frame, DOUBT)
    if close:
        kept, _ = simulated.blur_above(crop.mask, _WEIGHTS, margins, size / frame, 0.0)
    return Crop(kept, crop.x0 - margins[0], crop.y0 - margins[1]) if kept.any() else None
