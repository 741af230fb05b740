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
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain
from typing import Any

import numpy as np

from dataengine.errors import ReasonError
from dataengine.kernels import crops, runlengths

FRAME_TOLERANCE_PX = 2.0  # published polygons leave the frame by a fraction of a pixel
MAX_PIXELS = 1 << 31
Measured = tuple[bytes, tuple[int, tuple[int, int, int, int]]]  # compressed counts, and what `measure` says of them


class MaskError(ReasonError):
    """A segmentation that cannot be used."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A mask cut to its bounding box.

    mask: (h, w) bool. x0, y0: pixel of its top left corner on the canvas.
    """

    mask: np.ndarray
    x0: int
    y0: int


@dataclass(frozen=True, slots=True)
class Borders:
    """Many masks of one canvas, by the places, column by column, at which their pixels begin and end in turn.

    places: (2 n,) int64, those of a mask ascending, the masks one after the other. stops: (k,) int64, where each of
    them ends. figures: (k, 5) int64, area and box x0, y0, x1, y1, half open, px; the area of what is no mask is -1.
    """

    places: np.ndarray
    stops: np.ndarray
    figures: np.ndarray


@cache
def _backend() -> Any:
    """The module that has encode, decode, merge, iou, with pycocotools' signatures."""
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
        MaskError: `rle_invalid` (no such code, or a negative run), `rle_size` (the runs do not add up).
    """
    _check_size(height, width)
    runs = np.empty(len(rle), dtype=np.int64)
    number = runlengths.runs_from_code(np.frombuffer(rle, dtype=np.uint8), height * width, runs)
    runs = runs[: max(number, 0)]
    if number == runlengths.MALFORMED or number == 0:
        raise MaskError("rle_invalid", "RLE counts are no COCO-compressed string")
    if number == runlengths.NEGATIVE:
        raise MaskError("rle_invalid", "RLE counts hold a negative run")
    _check_total("more" if number == runlengths.TOO_LONG else int(runs.sum()), height, width)
    return runs


def _check_total(total: int | str, height: int, width: int) -> None:
    if total != height * width:
        raise MaskError(
            "rle_size", f"RLE counts sum to {total}; {height * width} are needed for {height} x {width} pixels"
        )


def rle_from_counts(counts: Sequence[int] | np.ndarray, height: int, width: int) -> bytes:
    """Compress run lengths (uncompressed COCO RLE), checked.

    Raises:
        MaskError: `rle_invalid` or `rle_size`.
    """
    _check_size(height, width)
    runs = _numbers(counts)
    if runs is None or runs.size == 0 or runs.dtype.kind not in "iu":
        raise MaskError("rle_invalid", "RLE counts must be a list of integers")
    if (runs < 0).any():
        raise MaskError("rle_invalid", f"RLE run {int(np.argmax(runs < 0))} is negative")
    # a single run that is too long could make the sum overflow
    _check_total("more" if runs.max() > height * width else int(runs.sum()), height, width)
    return _rle_from_runs(runs.astype(np.int64))


def _rle_from_runs(runs: np.ndarray) -> bytes:
    """Compressed string of valid runs."""
    code: bytes = runlengths.code_from_runs(runs).tobytes()
    return code


def _check_size(height: int, width: int) -> None:
    if height <= 0 or width <= 0 or height * width >= MAX_PIXELS:
        raise MaskError("bad_size", f"a canvas of {height} x {width} pixels is not possible")


def rle_from_crop(crop: Crop, height: int, width: int) -> bytes:
    """Encode a crop onto its canvas; only the crop is touched.

    Raises:
        MaskError: `bad_size`: the crop does not lie inside the canvas.
    """
    h, w = crop.mask.shape
    if not (0 <= crop.x0 <= width - w and 0 <= crop.y0 <= height - h):
        raise MaskError(
            "bad_size", f"a crop of {w} x {h} px at {crop.x0}, {crop.y0} leaves its {width} x {height} canvas"
        )
    return _rle_from_runs(runlengths.runs_of_crop(crop.mask, crop.x0, crop.y0, height, width))


def crop_from_rle(rle: bytes, height: int, width: int) -> Crop:
    """Decode a mask and cut it to its bounding box; only the box is touched.

    Raises:
        MaskError: the RLE is malformed (`rle_invalid`, `rle_size`) or has no pixel (`empty_mask`).
    """
    _check_size(height, width)
    mask, x0, y0, size = runlengths.crop_of_code(np.frombuffer(rle, dtype=np.uint8), height, width)
    if size < 0:
        counts_from_rle(rle, height, width)  # says what is wrong
    if size <= 0:
        raise MaskError("empty_mask", "the mask has no pixel")
    return Crop(mask, x0, y0)


def borders_from_rles(rles: Sequence[bytes], height: int, width: int) -> Borders:
    """Decode many masks of one canvas; `counts_from_rle` says what is wrong with one that is none."""
    _check_size(height, width)
    ends = np.array([len(rle) for rle in rles], dtype=np.int64).cumsum()
    return Borders(*runlengths.borders_of_codes(np.frombuffer(b"".join(rles), dtype=np.uint8), ends, height, width))


def rle_from_borders(places: np.ndarray, height: int, width: int) -> bytes:
    """Encode one mask. places: of its borders, see `Borders`."""
    code: bytes = runlengths.code_of_borders(places, height * width).tobytes()
    return code


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
    found = []
    for index, polygon in enumerate(polygons):
        array = _numbers(polygon)
        if array is None:
            raise MaskError("segmentation_invalid", f"polygon {index} is no flat list of numbers")
        if array.size % 2 or array.size < 6:
            raise MaskError(
                "polygon_odd" if array.size % 2 else "polygon_short",
                f"polygon {index} has {array.size} numbers; an even count of at least 6 is needed",
            )
        points = array.astype(np.float64).reshape(-1, 2)
        x0, y0, x1, y1, _, perimeter = runlengths.polygon_figures(points)
        if math.isnan(perimeter) or not all(map(math.isfinite, (x0, y0, x1, y1))):
            raise MaskError("polygon_not_finite", f"polygon {index} has a NaN or infinite number")
        room = FRAME_TOLERANCE_PX
        if x0 < -room or y0 < -room or x1 > width + room or y1 > height + room:
            raise MaskError(
                "polygon_out_of_frame",
                f"polygon {index} spans x {x0:g}..{x1:g}, y {y0:g}..{y1:g}, outside the {width} x {height} frame",
            )
        found.append(points)
    return found


def _numbers(values: Any) -> np.ndarray | None:
    """A flat list of numbers as an array; None where it is none."""
    if isinstance(values, list) and not all(
        issubclass(kind, int | float | np.number) for kind in set(map(type, values))
    ):
        return None  # of texts NumPy would make an array whose every cell is as wide as the longest one
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, OverflowError):
        return None
    return array if array.ndim == 1 and array.dtype.kind in "iuf" else None


def rle_from_polygons(polygons: Any, height: int, width: int) -> bytes:
    """Union of COCO polygons as RLE, never through a raster; pixel for pixel what pycocotools gives.

    A polygon that crosses itself so that what it encloses is ambiguous is refused: the area it fills differs from
    its signed area by more than a tenth and half its perimeter in pixels, and shapely confirms the crossing. Small
    loops at a vertex, of which hand-drawn outlines are full, are within that and stay as pycocotools fills them.

    Raises:
        MaskError: see `check_polygons`; `polygon_self_intersecting`, `polygon_too_long`.
    """
    return _measured_from_polygons(polygons, height, width)[0]


def _measured_from_polygons(polygons: Any, height: int, width: int) -> Measured:
    """`rle_from_polygons` and what `measure` says of it."""
    _check_size(height, width)
    arrays = [_numbers(polygon) for polygon in polygons] if isinstance(polygons, list) else []
    points = [array for array in arrays if array is not None and array.size >= 6 and array.size % 2 == 0]
    if not points or len(points) < len(arrays):
        points = [array.ravel() for array in check_polygons(polygons, height, width)]  # says what is wrong
    flat = points[0] if len(points) == 1 else np.concatenate(points)
    ends = np.array(list(accumulate(array.size // 2 for array in points)))
    code, figures, (size, x0, y0, x1, y1) = runlengths.code_of_polygons(
        flat.astype(np.float64, copy=False).reshape(-1, 2), ends, height, width, FRAME_TOLERANCE_PX
    )
    if not code.size:
        check_polygons(polygons, height, width)  # says what is wrong
        raise MaskError(
            "polygon_too_long",
            f"{len(points)} polygons have an outline of more than {runlengths.MAX_OUTLINE:,} px in all",
        )
    for index, (signed, perimeter, filled) in enumerate(figures.tolist()):
        if runlengths.is_doubtful(signed, perimeter, filled) and _crosses_itself(points[index].reshape(-1, 2)):
            raise MaskError(
                "polygon_self_intersecting",
                f"polygon {index} crosses itself: it fills {filled:.0f} px but its signed area is {signed:.0f} px",
            )
    return code.tobytes(), (size, (x0, y0, x1 - x0, y1 - y0))


def _crosses_itself(points: np.ndarray) -> bool:
    import shapely

    return not shapely.is_valid(shapely.polygons(points))


def rle_from_segmentation(segmentation: Any, height: int, width: int) -> bytes:
    """Any COCO `segmentation` value (polygons, uncompressed or compressed RLE) as compressed RLE.

    Raises:
        MaskError: with the reason; `empty_mask` where no pixel is set.
    """
    return measured_from_segmentation(segmentation, height, width)[0]


def measured_from_segmentation(segmentation: Any, height: int, width: int) -> Measured:
    """`rle_from_segmentation` and what `measure` says of it; the mask is decoded once.

    Raises:
        MaskError: see `rle_from_segmentation`.
    """
    _check_size(height, width)
    if isinstance(segmentation, dict):
        runs = counts_from_rle(code_from_segmentation(segmentation, height, width), height, width)
        rle, measured = _rle_from_runs(runs), _measured(runs, height)
    else:
        rle, measured = _measured_from_polygons(segmentation, height, width)
    if not measured[0]:
        raise MaskError("empty_mask", "the segmentation covers no pixel")
    return rle, measured


def measured_from_polygon_lists(segmentations: Sequence[Any], height: int, width: int) -> list[Measured | None]:
    """`measured_from_segmentation` of all objects of a picture, where they are polygons, in one go.

    Returns:
        None for what is refused, not plain, or no polygons: `measured_from_segmentation` says what becomes of it.
    """
    found: list[Measured | None] = [None] * len(segmentations)
    places = [place for place, value in enumerate(segmentations) if _is_plain(value)]
    if not places or height <= 0 or width <= 0 or height * width >= MAX_PIXELS:
        return found
    polygons = [polygon for place in places for polygon in segmentations[place]]
    numbers = list(chain.from_iterable(polygons))
    try:  # a third of the time that NumPy takes for a list
        points = np.frombuffer(struct.pack(f"{len(numbers)}d", *numbers)).reshape(-1, 2)
    except (struct.error, OverflowError):
        return found
    ends = np.array([len(polygon) for polygon in polygons]).cumsum() // 2
    lasts = np.array([len(segmentations[place]) for place in places]).cumsum()
    codes, stops, measures = runlengths.codes_of_polygons(points, ends, lasts, height, width, FRAME_TOLERANCE_PX)
    text, start = codes.tobytes(), 0
    for place, stop, (size, x0, y0, x1, y1) in zip(places, stops.tolist(), measures.tolist(), strict=True):
        if size:
            found[place] = text[start:stop], (size, (x0, y0, x1 - x0, y1 - y0))
        start = stop
    return found


def _is_plain(segmentation: Any) -> bool:
    """Whether a value is a list of lists as long as polygons are, none of them of truth values alone."""
    return (
        isinstance(segmentation, list)
        and len(segmentation) > 0
        and all(
            isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 and not isinstance(p[0], bool) for p in segmentation
        )
    )


def code_from_segmentation(segmentation: dict[str, Any], height: int, width: int) -> bytes:
    """Compressed counts of a COCO `segmentation` value that is an RLE with `size` and `counts`.

    Raises:
        MaskError: `rle_size`, `rle_invalid`; of compressed counts only that they are ASCII is checked.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or size != [height, width]:
        raise MaskError("rle_size", f"RLE size {size!r:.80} is not the image's [{height}, {width}]")
    if isinstance(counts, list):
        return rle_from_counts(counts, height, width)
    if not isinstance(counts, str | bytes):
        raise MaskError("rle_invalid", "RLE counts are missing")
    try:
        return _as_bytes(counts)
    except UnicodeEncodeError:
        raise MaskError("rle_invalid", "RLE counts are no ASCII string") from None


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


def area(rle: bytes, height: int, width: int) -> int:
    """Number of set pixels."""
    return measure(rle, height, width)[0]


def bbox_xywh(rle: bytes, height: int, width: int) -> tuple[int, int, int, int]:
    """Tight box x, y, width, height in pixels; zeros where no pixel is set."""
    return measure(rle, height, width)[1]


def measure(rle: bytes, height: int, width: int) -> tuple[int, tuple[int, int, int, int]]:
    """Area in pixels, and tight box x, y, width, height in pixels; zeros where no pixel is set.

    Raises:
        MaskError: the RLE is malformed.
    """
    return _measured(counts_from_rle(rle, height, width), height)


def _measured(runs: np.ndarray, height: int) -> tuple[int, tuple[int, int, int, int]]:
    """See `measure`."""
    size, x0, y0, x1, y1 = runlengths.measure_runs(runs, height)
    return size, (x0, y0, x1 - x0, y1 - y0)


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
    both: int = crops.count_both(a.mask, b.mask, b.x0 - a.x0, b.y0 - a.y0)
    return both


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
    labels, stats = crops.components(crop.mask)
    if len(stats) == 1:
        x0, y0, x1, y1 = stats[0, 1:5].tolist()
        return [Crop(np.ascontiguousarray(crop.mask[y0:y1, x0:x1]), crop.x0 + x0, crop.y0 + y0)]
    return [
        Crop(labels[y0:y1, x0:x1] == name, crop.x0 + x0, crop.y0 + y0)
        for name, (x0, y0, x1, y1) in enumerate(stats[:, 1:5].tolist(), start=1)
    ]
