"""Masks: COCO run-length encoding ⇄ polygons ⇄ raster, and what can be measured on them.

A mask is stored as `rle`: the bytes of COCO's compressed counts, for a canvas of `height` x `width` in column-major
order whose first run is zeros. Crops are `Crop` values: a small (h, w) bool array and the place of its top left
corner. Native code is only ever called with input that was checked here.

hotcoco does the work (bit-identical to pycocotools, measured over COCO-like masks, and 10-25 times faster);
`DATAENGINE_MASKS=pycocotools` selects pycocotools, which is also taken where hotcoco is not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate, chain
from typing import Any

import numpy as np

FRAME_TOLERANCE_PX = 2.0  # published polygons leave the frame by a fraction of a pixel
MAX_PIXELS = 1 << 31
_GOING_ON = bytes(range(80, 112))
_NUMBER = re.compile(rb"[P-o]*[0-O]")  # groups that go on, and a last one
_CODE = re.compile(rb"(?:[P-o]{0,7}[0-O])+")  # numbers of at most eight 5-bit groups


class MaskError(ValueError):
    """A segmentation that cannot be used. `reason` is a stable identifier for accounting."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Crop:
    """A mask cut to its bounding box.

    mask: (h, w) bool. x0, y0: pixel of its top left corner on the canvas.
    """

    mask: np.ndarray
    x0: int
    y0: int


@cache
def _backend() -> Any:
    """The module that has encode, decode, merge, iou, frPyObjects, with pycocotools' signatures."""
    names = ["hotcoco.mask", "pycocotools.mask"]
    if os.environ.get("DATAENGINE_MASKS") == "pycocotools":
        names.remove("hotcoco.mask")
    for name in names[:-1]:
        if importlib.util.find_spec(name.split(".")[0]) is not None:
            return importlib.import_module(name)
    return importlib.import_module(names[-1])


def backend_name() -> str:
    """Which library does the mask operations: `hotcoco` or `pycocotools`."""
    return _backend().__name__.split(".")[0]


def _dict(rle: bytes, height: int, width: int) -> dict[str, Any]:
    return {"size": [height, width], "counts": rle}


# --- run lengths -------------------------------------------------------------------------------------------------


def counts_from_rle(rle: bytes, height: int, width: int) -> np.ndarray:
    """Run lengths of a compressed mask, checked.

    Returns:
        (n,) int64; the runs alternate, zeros first, and sum to height * width.
    Raises:
        MaskError: `rle_invalid` (not such a code), `rle_size` (runs do not add up), or a negative run.
    """
    first, ones, zeros = _checked(rle, height, width)
    counts = np.empty(1 + len(ones) + len(zeros), dtype=np.int64)
    counts[0], counts[1::2], counts[2::2] = first, ones, zeros
    return counts


def _checked(rle: bytes, height: int, width: int) -> tuple[int, list[int], list[int]]:
    """First run, later runs of ones, later runs of zeros."""
    if not _CODE.fullmatch(rle):
        raise MaskError("rle_invalid", "RLE counts are no COCO-compressed string")
    first, ones, zeros = _decoded(rle)
    if first < 0 or min(ones, default=0) < 0 or min(zeros, default=0) < 0:
        raise MaskError("rle_invalid", "RLE counts hold a negative run")
    total = first + sum(ones) + sum(zeros)
    if total != height * width:
        raise MaskError(
            "rle_size", f"RLE counts sum to {total}; {height * width} are needed for {height} x {width} pixels"
        )
    return first, ones, zeros


def _decoded(rle: bytes) -> tuple[int, list[int], list[int]]:
    """First run, later runs of ones, later runs of zeros of a well-formed string.

    It is a base-32 variable-length code with offset 48, least significant group first, whose values from the fourth
    on are differences to the run before the previous one (pycocotools, maskApi.c, rleFrString).
    """
    values = [_NUMBERS[code] for code in _NUMBER.findall(rle)]
    return values[0], list(accumulate(values[1::2])), list(accumulate(values[2::2]))


class _Numbers(dict[bytes, int]):
    """Codes of numbers to numbers; the short ones, which are nearly all, are kept."""

    def __missing__(self, code: bytes) -> int:
        value = 0
        for place, byte in enumerate(code):
            value |= (byte - 48 & 0x1F) << 5 * place
        if code[-1] - 48 & 0x10:
            value -= 1 << 5 * len(code)
        if len(code) < 4:
            self[code] = value
        return value


_NUMBERS = _Numbers()


def _check_counts(counts: np.ndarray, height: int, width: int) -> None:
    if (counts < 0).any():
        raise MaskError("rle_invalid", f"RLE run {int(np.argmax(counts < 0))} is negative")
    total = int(counts.sum())
    if total != height * width:
        raise MaskError(
            "rle_size",
            f"RLE counts sum to {total}; {height * width} are needed for {height} x {width} pixels",
        )


def rle_from_counts(counts: Sequence[int] | np.ndarray, height: int, width: int) -> bytes:
    """Compress run lengths (uncompressed COCO RLE), checked.

    Raises:
        MaskError: `rle_invalid` or `rle_size`.
    """
    _check_size(height, width)
    runs = np.asarray(counts)
    if runs.ndim != 1 or runs.size == 0 or runs.dtype.kind not in "iu":
        raise MaskError("rle_invalid", "RLE counts must be a list of integers")
    runs = runs.astype(np.int64)
    _check_counts(runs, height, width)
    return _rle_from_runs(runs)


def _rle_from_runs(runs: np.ndarray) -> bytes:
    """Compressed string of valid runs (pycocotools, maskApi.c, rleToString)."""
    values = runs.astype(np.int64)
    values[3:] -= runs[1:-2]
    # number of 5-bit groups such that the remaining sign bits agree with the last group's sign bit
    magnitude = np.where(values < 0, ~values, values)
    groups = np.ones(values.size, dtype=np.int64)
    limit = 16
    while True:
        longer = magnitude >= limit
        if not longer.any():
            break
        groups += longer
        limit <<= 5
    ends = np.cumsum(groups)
    place = np.arange(int(ends[-1])) - np.repeat(ends - groups, groups)
    code = (np.repeat(values, groups) >> (5 * place)) & 0x1F
    code |= 0x20
    code[ends - 1] &= 0x1F
    return (code + 48).astype(np.uint8).tobytes()


def _check_size(height: int, width: int) -> None:
    if height <= 0 or width <= 0 or height * width >= MAX_PIXELS:
        raise MaskError("bad_size", f"a canvas of {height} x {width} pixels is not possible")


def rle_from_crop(crop: Crop, height: int, width: int) -> bytes:
    """Encode a crop onto its canvas; only its columns are touched.

    The crop must lie inside the canvas.
    """
    h, w = crop.mask.shape
    columns = np.zeros((w, height), dtype=np.uint8)
    columns[:, crop.y0 : crop.y0 + h] = crop.mask.T
    rle = _as_bytes(_backend().encode(columns.T)["counts"])
    before, after = crop.x0 * height, (width - crop.x0 - w) * height
    return rle if before == after == 0 else _lengthened(rle, before, after)


def _lengthened(rle: bytes, before: int, after: int) -> bytes:
    """A compressed mask with that many zeros more at its ends; only the numbers there are coded anew."""
    count = len(rle.translate(None, _GOING_ON))
    if count < 5 or count % 2 == 0:  # few runs, or the last one is of ones
        first, ones, zeros = _decoded(rle)
        if len(ones) > len(zeros):
            zeros.append(0)
        if zeros:
            zeros[-1] += after
        counts = [first + before, *chain.from_iterable(zip(ones, zeros, strict=True))]
        return _rle_from_runs(np.array(counts if counts[-1] else counts[:-1]))
    head, tail = 1, len(rle) - 1
    while rle[head - 1] >= 80:
        head += 1
    while rle[tail - 1] >= 80:
        tail -= 1
    return _coded(_NUMBERS[rle[:head]] + before) + rle[head:tail] + _coded(_NUMBERS[rle[tail:]] + after)


def _coded(value: int) -> bytes:
    code = bytearray()
    while True:
        group = value & 0x1F
        value >>= 5
        done = value == (-1 if group & 0x10 else 0)
        code.append(48 + (group if done else group | 0x20))
        if done:
            return bytes(code)


def crop_from_rle(rle: bytes, height: int, width: int) -> Crop:
    """Decode a mask and cut it to its bounding box.

    Raises:
        MaskError: the RLE is malformed (`rle_invalid`, `rle_size`) or has no pixel (`empty_mask`).
    """
    size, (x, y, w, h) = measure(rle, height, width)
    if not size:
        raise MaskError("empty_mask", "the mask has no pixel")
    raster = np.asarray(_backend().decode(_dict(rle, height, width)))
    return Crop(np.ascontiguousarray(raster[y : y + h, x : x + w]).view(bool), x, y)


# --- raster ------------------------------------------------------------------------------------------------------


def encode(mask: np.ndarray) -> bytes:
    """(H, W) bool or uint8 {0, 1} raster to compressed RLE."""
    if mask.ndim != 2:
        raise MaskError("bad_size", f"a mask has two dimensions, not {mask.ndim}")
    _check_size(*mask.shape)
    raster = np.asfortranarray(mask.astype(bool, copy=False)).view(np.uint8)
    return _as_bytes(_backend().encode(raster)["counts"])


def decode(rle: bytes, height: int, width: int) -> np.ndarray:
    """Compressed RLE to an (H, W) bool raster, column-major in memory ("Fortran order").

    Raises:
        MaskError: the RLE is malformed.
    """
    counts_from_rle(rle, height, width)
    return np.asarray(_backend().decode(_dict(rle, height, width))).view(bool)


def _as_bytes(counts: str | bytes) -> bytes:
    return counts.encode("ascii") if isinstance(counts, str) else counts


# --- polygons ----------------------------------------------------------------------------------------------------


def check_polygons(polygons: Any, height: int, width: int) -> list[np.ndarray]:
    """Check a COCO polygon list before native code sees it.

    Args:
        polygons: list of [x0, y0, x1, y1, …] in pixels; pixel centres lie at half-integers.
    Returns:
        one (n, 2) float64 array of x, y a polygon.
    Raises:
        MaskError: `polygon_odd`, `polygon_short`, `polygon_not_finite`, `polygon_out_of_frame` or
            `segmentation_invalid`, with the polygon's index.
    """
    if not isinstance(polygons, list) or not polygons:
        raise MaskError("segmentation_invalid", "a polygon segmentation must be a list of polygons")
    arrays = []
    for index, polygon in enumerate(polygons):
        try:
            array = np.asarray(polygon, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            array = None
        if array is None or array.ndim != 1:
            raise MaskError("segmentation_invalid", f"polygon {index} is no flat list of numbers")
        if array.size % 2:
            raise MaskError(
                "polygon_odd",
                f"polygon {index} has {array.size} numbers; an even count of at least 6 is needed",
            )
        if array.size < 6:
            raise MaskError(
                "polygon_short",
                f"polygon {index} has {array.size} numbers; an even count of at least 6 is needed",
            )
        if not np.isfinite(array).all():
            raise MaskError("polygon_not_finite", f"polygon {index} has a NaN or infinite number")
        points = array.reshape(-1, 2)
        low, high = points.min(axis=0), points.max(axis=0)
        if (low < -FRAME_TOLERANCE_PX).any() or (high > np.array([width, height]) + FRAME_TOLERANCE_PX).any():
            raise MaskError(
                "polygon_out_of_frame",
                f"polygon {index} spans x {low[0]:g}..{high[0]:g}, y {low[1]:g}..{high[1]:g}, "
                f"outside the {width} x {height} frame",
            )
        arrays.append(points)
    return arrays


def _signed_area(points: np.ndarray) -> float:
    x, y = points[:, 0], points[:, 1]
    inner = np.dot(x[:-1], y[1:]) - np.dot(y[:-1], x[1:])
    return 0.5 * abs(float(inner + x[-1] * y[0] - y[-1] * x[0]))


def _perimeter(points: np.ndarray) -> float:
    """Sum of the sides, each as far as it goes across and down."""
    sides = np.abs(points[1:] - points[:-1]).sum() + np.abs(points[0] - points[-1]).sum()
    return float(sides)


def rle_from_polygons(polygons: Any, height: int, width: int) -> bytes:
    """Union of COCO polygons as RLE, never through a raster; pixel for pixel what pycocotools gives.

    A polygon that crosses itself so that what it encloses is ambiguous is refused: the area it fills exceeds its
    signed area by more than a tenth and half its perimeter in pixels, and shapely confirms the crossing. Small
    loops at a vertex, of which hand-drawn outlines are full, are within that and stay as pycocotools fills them.

    Raises:
        MaskError: see `check_polygons`; `polygon_self_intersecting`.
    """
    _check_size(height, width)
    arrays = check_polygons(polygons, height, width)
    parts = _backend().frPyObjects([array.ravel().tolist() for array in arrays], height, width)
    for index, (points, part) in enumerate(zip(arrays, parts, strict=True)):
        signed = _signed_area(points)
        filled = int(_backend().area(part))
        spare = filled - signed - 0.1 * filled
        if spare > 0 and spare > 0.5 * _perimeter(points) and _crosses_itself(points):
            raise MaskError(
                "polygon_self_intersecting",
                f"polygon {index} crosses itself: it fills {filled} px but its signed area is {signed:.0f} px",
            )
    merged = parts[0] if len(parts) == 1 else _backend().merge(parts)
    return _as_bytes(merged["counts"])


def _crosses_itself(points: np.ndarray) -> bool:
    import shapely

    return not shapely.is_valid(shapely.polygons(points))


def rle_from_segmentation(segmentation: Any, height: int, width: int) -> bytes:
    """Any COCO `segmentation` value (polygons, uncompressed or compressed RLE) as compressed RLE.

    Raises:
        MaskError: with the reason; `empty_mask` where no pixel is set.
    """
    _check_size(height, width)
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if not isinstance(size, list) or size != [height, width]:
            raise MaskError("rle_size", f"RLE size {size} is not the image's [{height}, {width}]")
        if isinstance(counts, str | bytes):
            try:
                rle = _as_bytes(counts)
            except UnicodeEncodeError:
                raise MaskError("rle_invalid", "RLE counts are no ASCII string") from None
            runs = counts_from_rle(rle, height, width)
            rle = _rle_from_runs(runs)
        elif isinstance(counts, list):
            try:
                rle = rle_from_counts(counts, height, width)
            except (OverflowError, ValueError) as error:
                if isinstance(error, MaskError):
                    raise
                raise MaskError("rle_invalid", "RLE counts must be a list of integers") from None
        else:
            raise MaskError("rle_invalid", "RLE counts are missing")
    else:
        rle = rle_from_polygons(segmentation, height, width)
    if not _backend().area(_dict(rle, height, width)):
        raise MaskError("empty_mask", "the segmentation covers no pixel")
    return rle


def polygons_from_rle(rle: bytes, height: int, width: int) -> list[np.ndarray]:
    """Outlines that follow pixel edges, without holes; `rle_from_polygons` of them gives the mask back exactly.

    A part with holes is cut into hole-free pieces, because COCO polygon lists cannot say "hole".

    Returns:
        (n, 2) float64 arrays of x, y at integer pixel corners.
    """
    import shapely

    runs = counts_from_rle(rle, height, width)
    edges = np.cumsum(runs)
    starts, ends = edges[:-1:2], edges[1::2]
    boxes = []
    for start, end in zip(starts[: ends.size].tolist(), ends.tolist(), strict=True):
        while start < end:
            column = start // height
            stop = min(end, (column + 1) * height)
            boxes.append((column, start - column * height, column + 1, stop - column * height))
            start = stop
    if not boxes:
        return []
    pending = list(shapely.get_parts(shapely.union_all(shapely.box(*np.array(boxes, float).T))))
    pieces = []
    while pending:
        polygon = pending.pop()
        if not polygon.interiors:
            pieces.append(shapely.get_coordinates(polygon.exterior)[:-1])
            continue
        x0, y0, x1, y1 = polygon.bounds
        hole = polygon.interiors[0].bounds
        cut = float(int(hole[0] + hole[2]) // 2)
        for side in (shapely.box(x0, y0, cut, y1), shapely.box(cut, y0, x1, y1)):
            parts = shapely.get_parts(shapely.intersection(polygon, side))
            pending.extend(part for part in parts if part.geom_type == "Polygon")
    return sorted(pieces, key=lambda piece: piece.ravel().tolist())


# --- measures ----------------------------------------------------------------------------------------------------


def area(rle: bytes) -> int:
    """Number of set pixels of a valid RLE."""
    return sum(_decoded(rle)[1])


def bbox_xywh(rle: bytes, height: int, width: int) -> tuple[int, int, int, int]:
    """Tight box x, y, width, height in pixels; zeros where no pixel is set."""
    return measure(rle, height, width)[1]


@lru_cache(maxsize=4096)  # builder, prompts and checks ask for the same mask
def measure(rle: bytes, height: int, width: int) -> tuple[int, tuple[int, int, int, int]]:
    """Area in pixels, and tight box x, y, width, height in pixels; zeros where no pixel is set.

    Raises:
        MaskError: the RLE is malformed.
    """
    size = sum(_checked(rle, height, width)[1])
    if not size:
        return 0, (0, 0, 0, 0)
    x, y, w, h = _backend().toBbox(_dict(rle, height, width)).tolist()
    return size, (int(x), int(y), int(w), int(h))


def union(rles: Sequence[bytes], height: int, width: int) -> bytes:
    """Pixels set in any of the masks; at least one mask is needed."""
    return _merge(rles, height, width, intersect=False)


def intersection(rles: Sequence[bytes], height: int, width: int) -> bytes:
    """Pixels set in all of the masks; at least one mask is needed."""
    return _merge(rles, height, width, intersect=True)


def _merge(rles: Sequence[bytes], height: int, width: int, intersect: bool) -> bytes:
    if not rles:
        raise ValueError("at least one mask is needed")
    for rle in rles:
        counts_from_rle(rle, height, width)
    return _as_bytes(_backend().merge([_dict(rle, height, width) for rle in rles], intersect)["counts"])


def iou(
    masks: Sequence[bytes],
    others: Sequence[bytes],
    height: int,
    width: int,
    crowd: Sequence[bool] | None = None,
) -> np.ndarray:
    """Pairwise intersection over union.

    Args:
        crowd: one flag for each of `others`; against a crowd the union is the area of the mask itself (COCO).
    Returns:
        (len(masks), len(others)) float64.
    """
    if not masks or not others:
        return np.zeros((len(masks), len(others)))
    for rle in (*masks, *others):
        counts_from_rle(rle, height, width)
    flags = [bool(flag) for flag in crowd] if crowd is not None else [False] * len(others)
    values = _backend().iou(
        [_dict(rle, height, width) for rle in masks], [_dict(rle, height, width) for rle in others], flags
    )
    return np.asarray(values, dtype=np.float64).reshape(len(masks), len(others))


def overlap(a: Crop, b: Crop) -> int:
    """Number of pixels set in both."""
    y0, y1 = max(a.y0, b.y0), min(a.y0 + a.mask.shape[0], b.y0 + b.mask.shape[0])
    x0, x1 = max(a.x0, b.x0), min(a.x0 + a.mask.shape[1], b.x0 + b.mask.shape[1])
    if y0 >= y1 or x0 >= x1:
        return 0
    mine = a.mask[y0 - a.y0 : y1 - a.y0, x0 - a.x0 : x1 - a.x0]
    return int(np.count_nonzero(mine & b.mask[y0 - b.y0 : y1 - b.y0, x0 - b.x0 : x1 - b.x0]))


def components(rle: bytes, height: int, width: int) -> list[Crop]:
    """8-connected components, in raster order of their first pixel, each cut to its box."""
    try:
        crop = crop_from_rle(rle, height, width)
    except MaskError as error:
        if error.reason == "empty_mask":
            return []
        raise
    return components_of_crop(crop)


def components_of_crop(crop: Crop) -> list[Crop]:
    """`components` of a mask that is already decoded."""
    import cv2

    number, labels = cv2.connectedComponents(crop.mask.view(np.uint8), connectivity=8)
    edges = (crop.mask[0], crop.mask[-1], crop.mask[:, 0], crop.mask[:, -1])
    if number == 2 and all(bool(edge.any()) for edge in edges):
        return [crop]
    # OpenCV does not promise an order of labels
    names, first = np.unique(labels, return_index=True)
    ordered = names[np.argsort(first)]
    parts = []
    for name in ordered[ordered > 0].tolist():
        inside = labels == name
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        part = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        parts.append(Crop(np.ascontiguousarray(part), crop.x0 + int(columns[0]), crop.y0 + int(rows[0])))
    return parts
