"""The `strict` profile: prompts that lie inside their object, fit its size, and are never missing.

Depth is the exact Euclidean distance to the nearest pixel outside the object, the picture's border among them. What is
drawn is checked on the pixels, so that `inside` is 1 for points, scribbles and masks. A box cannot lie inside its
object; it stays close to the tight one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dataengine import masks
from dataengine.kernels import crops, simulated
from dataengine.masks import Crop
from dataengine.measure import Drawn, Objects
from dataengine.prompts import boxes_crop, discs_crop
from prompts_sim.shape import Draws, Shape

VERSION = 1
POINT_RADIUS = 10  # px, at most
STROKE_RADIUS = 5  # px, at most
PLACES = 4  # tries for a click that lies in no other object
BOX_NOISE, BOX_LIMIT = 0.1, 20.0  # SAM: sigma in sides, limit in px
MASK_IOU = (0.7, 0.95)
VERTICES = 12  # of a stroke, about
_PIXEL = np.ones((1, 1), dtype=bool)
MAX_SAMPLE = 2048  # pixels from which the depth that a mask prompt is cut at is estimated


def draw(shape: Shape, kinds: Sequence[str], draws: Mapping[str, Draws], objects: Objects, own: int) -> list[Drawn]:
    """The prompts of the object `own` of a picture; one for each kind, in that order."""
    depth = depth_of(shape.crop)
    core = _largest(shape, depth)
    corner = np.array([shape.crop.x0, shape.crop.y0])
    made = []
    for kind in kinds:
        radius, fallback = 0.0, False
        places, lengths = np.empty((0, 2)), []
        bitmap: Crop | None
        if kind == "mask":
            bitmap = mask(shape, depth, draws[kind])
        elif kind == "box":
            corners = box(shape, draws[kind])
            bitmap, places, lengths = boxes_crop(corners), corners.reshape(2, 2), [2]
        elif kind == "point":
            click = point(shape, core, objects, own, draws[kind])
            radius, bitmap = fitting(click, shape, int(core[click[0, 1], click[0, 0]]), POINT_RADIUS)
            places, lengths = click + corner + 0.5, [1]
        else:
            stroke, fallback = scribble(core, draws[kind])
            radius, bitmap = fitting(stroke, shape, _stroke_radius(core), STROKE_RADIUS)
            places, lengths = stroke + corner + 0.5, [len(stroke)]
        made.append(
            Drawn(
                kind=kind,
                bitmap=bitmap,
                points=tuple(places.ravel().tolist()),
                parts=tuple(lengths),
                radius=radius,
                fallback=fallback,
            )
        )
    return made


def depth_of(crop: Crop) -> np.ndarray:
    """(h, w) float32, px: 0 outside the object; 1 where it touches the outside. Exact, so the same everywhere."""
    h, w = crop.mask.shape
    squares = np.empty((h, w), dtype=np.float32 if h * h + w * w < 1 << 24 else np.float64)
    crops.squared_depth(crop.mask, squares)
    return np.sqrt(squares).astype(np.float32, copy=False)


def _largest(shape: Shape, depth: np.ndarray) -> np.ndarray:
    """Depth inside the largest component, 0 elsewhere; the first of equals."""
    if shape.labels is None:
        return depth
    largest = max(range(len(shape.parts)), key=lambda n: shape.parts[n].area)
    return np.where(shape.labels == largest + 1, depth, np.float32(0))


def fitting(pixels: np.ndarray, shape: Shape, most: int, limit: int) -> tuple[float, Crop]:
    """The largest radius up to both bounds with which discs about the pixels stay inside the object, and the bitmap.

    Args:
        pixels: (n, 2) int64, x, y in the object's crop, inside the object.
    """
    crop = shape.crop
    places = pixels + np.array([crop.x0, crop.y0])
    for radius in range(min(most, limit), -1, -1):
        bitmap = discs_crop(places, float(radius), shape.height, shape.width)
        if masks.overlap(bitmap, crop) == np.count_nonzero(bitmap.mask):
            return float(radius), bitmap
    raise AssertionError("a pixel of the object is not inside it")


def point(shape: Shape, core: np.ndarray, objects: Objects, own: int, draws: Draws) -> np.ndarray:
    """A click as a person would place it: uniform among pixels at least half as deep as the deepest one.

    Of a few such pixels, the first that lies in no other object, or else the first.

    Args:
        core: (h, w) depth in the largest component.
    Returns:
        (1, 2) int64, x, y in the object's crop.
    """
    w = core.shape[1]
    deep = np.flatnonzero(core >= 0.5 * core.max())
    places = [divmod(int(deep[draws.choice(deep.size)]), w) for _ in range(PLACES)]
    row, column = next((p for p in places if not _is_others(shape, objects, own, *p)), places[0])
    return np.array([(column, row)])


def _is_others(shape: Shape, objects: Objects, own: int, row: int, column: int) -> bool:
    """Whether a pixel of the object's crop lies in another object too."""
    pixel = Crop(_PIXEL, column + shape.crop.x0, row + shape.crop.y0)
    return objects.shares(pixel, own)[2] > 0


def _stroke_radius(core: np.ndarray) -> int:
    """A quarter of the object's depth."""
    return min(STROKE_RADIUS, int(core.max() / 4))


def scribble(core: np.ndarray, draws: Draws) -> tuple[np.ndarray, bool]:
    """A stroke along the object's ridge, where it is deepest, through its deepest pixel.

    From there it follows the ridge both ways along the longer side, with noise that the depth leaves room for, and ends
    at random before the end.

    Args:
        core: (h, w) depth in the largest component.
    Returns:
        (n, 2) int64, x, y in the object's crop, one pixel for each step along the longer side; and whether it is no
        stroke but a single pixel.
    """
    upright = core.shape[0] > core.shape[1]
    ridge = core.T if upright else core
    radius = _stroke_radius(core)
    row, column = divmod(int(np.argmax(ridge)), ridge.shape[1])
    step = max(1, ridge.shape[1] // VERTICES)
    ahead = _follow(ridge, row, column, step, radius)
    back = _follow(ridge, row, column, -step, radius)
    ahead = ahead[: math.ceil(len(ahead) * draws.uniform(0.6, 1.0))]
    back = back[: math.ceil(len(back) * draws.uniform(0.6, 1.0))]
    vertices = [*reversed(back), (column, row), *ahead]
    noisy = [
        (x, y + draws.uniform(-0.5, 0.5) * max(0.0, float(ridge[y, x]) - radius - 1)) if radius else (x, y)
        for x, y in vertices
    ]
    stroke = _traced(ridge, noisy, radius)
    if stroke is None:
        stroke = _traced(ridge, vertices, radius)
    if stroke is None:
        stroke = _around(ridge, vertices, column)
    return (stroke[:, ::-1] if upright else stroke), len(stroke) == 1


def _follow(ridge: np.ndarray, row: int, column: int, step: int, radius: int) -> list[tuple[int, int]]:
    """Vertices (column, row) of the ridge from a pixel on, as far as it is deeper than the radius."""
    found = []
    reach, (h, w) = abs(step), ridge.shape
    while 0 <= column + step < w:
        column += step
        top = max(0, row - reach)
        window = ridge[top : min(h, row + reach + 1), column]
        row = top + int(np.argmax(window))
        if ridge[row, column] <= radius:
            break
        found.append((column, row))
    return found


def _traced(ridge: np.ndarray, vertices: Sequence[tuple[int, float]], radius: int) -> np.ndarray | None:
    """The pixels of a polyline whose columns ascend, or None where it leaves what is deeper than the radius."""
    pixels = _pixels(ridge, vertices)
    return pixels if (ridge[pixels[:, 1], pixels[:, 0]] > radius).all() else None


def _pixels(ridge: np.ndarray, vertices: Sequence[tuple[int, float]]) -> np.ndarray:
    columns = np.arange(vertices[0][0], vertices[-1][0] + 1)
    rows = np.interp(columns, [x for x, _ in vertices], [y for _, y in vertices])
    pixels = np.empty((columns.size, 2), dtype=np.int64)
    pixels[:, 0] = columns
    pixels[:, 1] = np.minimum(np.maximum(np.floor(rows + 0.5), 0), ridge.shape[0] - 1)
    return pixels


def _around(ridge: np.ndarray, vertices: Sequence[tuple[int, int]], column: int) -> np.ndarray:
    """The run of a polyline's pixels inside the object that holds the deepest one."""
    pixels = _pixels(ridge, vertices)
    outside = np.flatnonzero(ridge[pixels[:, 1], pixels[:, 0]] <= 0)
    middle = column - vertices[0][0]
    before, after = outside[outside < middle], outside[outside > middle]
    start = int(before[-1]) + 1 if before.size else 0
    return pixels[start : int(after[0]) if after.size else len(pixels)]


def box(shape: Shape, draws: Draws) -> np.ndarray:
    """The tight box with SAM's noise: each side moves by N(0, 0.1 of its length), 20 px at most.

    Where that leaves an IoU with the tight box below 0.5, the noise is halved until it does not.

    Returns:
        (1, 4) int64, x0, y0, x1, y1.
    """
    crop = shape.crop
    h, w = crop.mask.shape
    tight = (crop.x0, crop.y0, crop.x0 + w, crop.y0 + h)
    noise = [max(-BOX_LIMIT, min(BOX_LIMIT, _normal(draws) * BOX_NOISE * side)) for side in (w, h, w, h)]
    limits = (shape.width, shape.height, shape.width, shape.height)
    for _ in range(6):
        moved = [min(max(round(t + n), 0), limit) for t, n, limit in zip(tight, noise, limits, strict=True)]
        if _iou(moved, tight) >= 0.5:
            return np.array([moved])
        noise = [n / 2 for n in noise]
    return np.array([tight])


def _normal(draws: Draws) -> float:
    """A standard normal number (Box and Muller 1958)."""
    length = math.sqrt(-2 * math.log(1 - draws.uniform(0.0, 1.0)))
    return length * math.cos(2 * math.pi * draws.uniform(0.0, 1.0))


def _iou(a: Sequence[int], b: Sequence[int]) -> float:
    both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return both / (sum(areas) - both)


def mask(shape: Shape, depth: np.ndarray, draws: Draws) -> Crop:
    """The object without some of its border, uneven as a hand would leave it; IoU with the object in 0.7..0.95.

    The shallowest pixels are left out, where depth is uneven by a smooth field of 0.05 of the root of the area: a
    morphological jitter that fits the size. It only takes away, so the prompt stays inside. (An object of fewer than
    four pixels cannot meet the band; it loses one pixel at most.)

    Args:
        depth: (h, w) of the whole object.
    """
    inside = shape.crop.mask
    size = sum(part.area for part in shape.parts)
    low, high = MASK_IOU
    keep = round(size * draws.uniform(low, high))
    keep = max(1, min(max(keep, math.ceil(low * size)), math.floor(high * size)))
    field = np.array([draws.uniform(-1.0, 1.0) for _ in range(16)], dtype=np.float32).reshape(4, 4)
    field *= 0.05 * math.sqrt(size)
    uneven = simulated.uneven(depth, field)
    found = uneven[inside]
    some = found[:: max(1, size // MAX_SAMPLE)]
    rank = int(some.size * (1 - keep / size))
    kept = inside & (uneven >= np.partition(some, rank)[rank])
    if not low * size <= np.count_nonzero(kept) <= high * size:
        kept = _exactly(inside, uneven, keep)
    return Crop(kept, shape.crop.x0, shape.crop.y0)


def _exactly(inside: np.ndarray, uneven: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` largest values inside; the first of equals in raster order."""
    places = np.flatnonzero(inside)
    best = places[np.argsort(-uneven.ravel()[places], kind="stable")[:keep]]
    kept = np.zeros(inside.size, dtype=bool)
    kept[best] = True
    return kept.reshape(inside.shape)
