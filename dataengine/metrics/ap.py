"""Average precision and recall of instance masks, as COCO defines them.

One adapter over hotcoco (the default) and pycocotools, which gives the same arrays and is the reference. Both are given
masks that were checked here, and only the images and categories that count.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from dataengine import masks
from dataengine.errors import ReasonError, UserError
from dataengine.kernels import runlengths

BACKENDS = ("hotcoco", "pycocotools")
_CHUNK_BYTES = 1 << 20  # of masks that are measured at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """Ground truth or predictions, as columns; among equal scores the order of the rows decides.

    image: (n,) int64, key into `sizes`.
    category: (n,) int64.
    rles: n compressed COCO counts, on the canvas of their image.
    area: (n,) float64, px. Of ground truth: as stated, which decides its size class; None: of the mask. Not used of
        predictions, whose size class is always that of the mask.
    crowd: (n,) bool, of ground truth; None: no crowds.
    score: (n,) float64, of predictions.
    """

    image: np.ndarray
    category: np.ndarray
    rles: Sequence[bytes]
    area: np.ndarray | None = None
    crowd: np.ndarray | None = None
    score: np.ndarray | None = None


class CategoryScores(NamedTuple):
    """AP over all thresholds, and at IoU 0.5, of one category; None without ground truth."""

    ap: float | None
    ap50: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragePrecision:
    """The twelve numbers of COCO, in [0, 1]; None where no ground truth is in question.

    ap: mean over categories and over IoU 0.50, 0.55 … 0.95. ap50, ap75: at one IoU.
    ar1, ar10, ar100: mean of the largest recall with that many predictions an image and category.
    small: area below 32² px, medium: to 96² px, large: above.
    per_category: by category, not given where categories are not told apart.
    backend: what computed it, with its version.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_category: dict[int, CategoryScores]
    backend: str

    def to_json(self) -> dict[str, Any]:
        """Plain values for a json file; categories become texts."""
        per_category = {str(category): scores._asdict() for category, scores in self.per_category.items()}
        return {**asdict(self), "per_category": per_category}


def average_precision(
    truth: Instances,
    found: Instances,
    sizes: Mapping[int, tuple[int, int]],
    *,
    categories: Sequence[int],
    images: Sequence[int] | None = None,
    backend: str = "hotcoco",
    class_agnostic: bool = False,
) -> AveragePrecision:
    """Mask AP and AR as `COCOeval` of pycocotools computes them ("segm", default parameters), number for number.

    Precision is interpolated at the recalls 0, 0.01 … 1 and averaged over them (Lin et al., ECCV 2014, and
    cocodataset.org/#detection-eval). A prediction matches the free ground truth of its image and category that it
    overlaps most, in the order of scores; crowds, and what is outside a size class, count neither for nor against.
    The reference divides by the number of predictions plus 2⁻⁵², so a perfect score may be 2⁻⁵² short of 1.

    Args:
        sizes: height, width of each image, in px.
        categories: that are evaluated; instances of others are left out.
        images: that are evaluated; instances in others are left out. None: all of `sizes`.
        backend: `hotcoco` or `pycocotools`.
        class_agnostic: whether categories are not told apart.
    Raises:
        ReasonError: naming the row: `unknown_image` (not in `sizes`), `rle_invalid`, `rle_size`, `bad_score` (NaN or
            infinite), `bad_area`; `bad_columns` (of different lengths, or predictions without scores).
        UserError: no such backend.
    """
    if backend not in BACKENDS:
        raise UserError(f"no AP backend {backend!r}; there are {', '.join(BACKENDS)}")
    names, kinds = _distinct(sizes if images is None else images), _distinct(categories)
    missing = [image for image in names.tolist() if image not in sizes]
    if missing:
        raise ReasonError("unknown_image", f"image {missing[0]} has no size")
    canvases = [sizes[image] for image in names.tolist()]
    for image, (height, width) in zip(names.tolist(), canvases, strict=True):
        if not (height > 0 and width > 0 and height * width < masks.MAX_PIXELS):
            raise ReasonError("bad_size", f"image {image}: a canvas of {height} x {width} pixels is not possible")
    if found.score is None:
        raise ReasonError("bad_columns", "predictions need scores")
    real = _selected(truth, "ground truth", sizes, canvases, names, kinds)
    guessed = _selected(found, "prediction", sizes, canvases, names, kinds)
    evaluate = _with_hotcoco if backend == "hotcoco" else _with_pycocotools
    if names.size and kinds.size:
        precision, recall = evaluate(real, guessed, canvases, kinds.size, class_agnostic)
    else:
        precision, recall = np.full((10, 101, kinds.size, 4, 3), -1.0), np.full((10, kinds.size, 4, 3), -1.0)
    version = f"{backend} {importlib.metadata.version(backend)}"
    return _summary(precision, recall, [] if class_agnostic else kinds.tolist(), version)


# --- what is evaluated -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """The rows that count. image, category: positions among those evaluated, in ascending order of their names.

    area: for the size class. size: px of the mask.
    """

    image: np.ndarray
    category: np.ndarray
    rles: list[bytes]
    area: np.ndarray
    crowd: np.ndarray
    score: np.ndarray


def _distinct(names: Mapping[int, Any] | Sequence[int]) -> np.ndarray:
    return np.unique(np.fromiter(names, dtype=np.int64, count=len(names)))


def _selected(
    instances: Instances,
    what: str,
    sizes: Mapping[int, tuple[int, int]],
    canvases: Sequence[tuple[int, int]],
    images: np.ndarray,
    categories: np.ndarray,
) -> _Columns:
    """The rows in question, checked. what: their name in messages."""
    number = len(instances.rles)
    for name in ("image", "category", "area", "crowd", "score"):
        column = getattr(instances, name)
        if column is not None and np.shape(column) != (number,):
            raise ReasonError("bad_columns", f"{what}: {number} masks, but `{name}` has the shape {np.shape(column)}")
    image, category = np.asarray(instances.image, np.int64), np.asarray(instances.category, np.int64)
    unknown = ~np.isin(image, _distinct(sizes))
    if unknown.any():
        row = int(np.argmax(unknown))
        raise ReasonError("unknown_image", f"{what} {row}: image {image[row]} has no size")
    rows = np.flatnonzero(np.isin(image, images) & np.isin(category, categories))
    place = np.searchsorted(images, image[rows])
    rles = list(instances.rles) if rows.size == number else [instances.rles[row] for row in rows.tolist()]
    area = _areas(rles, place, canvases, what, rows)
    stated = instances.area is not None and what == "ground truth"
    return _Columns(
        image=place,
        category=np.searchsorted(categories, category[rows]),
        rles=rles,
        area=_numbers(instances.area, rows, what, "area") if stated else area,
        crowd=np.zeros(rows.size, bool) if instances.crowd is None else np.asarray(instances.crowd, bool)[rows],
        score=np.zeros(rows.size) if instances.score is None else _numbers(instances.score, rows, what, "score"),
    )


def _numbers(column: Any, rows: np.ndarray, what: str, name: str) -> np.ndarray:
    values = np.asarray(column, np.float64)[rows]
    bad = ~np.isfinite(values)
    if bad.any():
        at = int(np.argmax(bad))
        raise ReasonError(f"bad_{name}", f"{what} {rows[at]}: its {name} is {values[at]}; a finite number is needed")
    return values


def _areas(
    rles: list[bytes], place: np.ndarray, canvases: Sequence[tuple[int, int]], what: str, rows: np.ndarray
) -> np.ndarray:
    """(n,) float64: pixels of each mask.

    Raises:
        ReasonError: a mask is malformed, or none of its image's canvas.
    """
    areas = np.zeros(len(rles))
    kinds, kind = np.unique(np.array(canvases, np.int64).reshape(-1, 2), axis=0, return_inverse=True)
    kind_of = kind.reshape(-1)[place]
    order = np.argsort(kind_of, kind="stable")
    lengths = np.fromiter(map(len, rles), np.int64, count=len(rles))
    bucket = np.cumsum(lengths[order]) // _CHUNK_BYTES
    cuts = np.flatnonzero((np.diff(kind_of[order]) != 0) | (np.diff(bucket) != 0)) + 1
    for chunk in np.split(order, cuts) if order.size else []:
        height, width = kinds[kind_of[chunk[0]]].tolist()
        codes = b"".join([rles[row] for row in chunk.tolist()])
        figures = runlengths.measure_codes(np.frombuffer(codes, np.uint8), np.cumsum(lengths[chunk]), height, width)
        areas[chunk] = figures[:, 0]
    wrong = areas < 0
    if wrong.any():
        at = int(np.argmax(wrong))
        try:
            masks.counts_from_rle(rles[at], *canvases[place[at]])  # says what is wrong
        except masks.MaskError as error:
            raise ReasonError(error.reason, f"{what} {rows[at]}: {error}") from None
    return areas


# --- backends --------------------------------------------------------------------------------------------------------


def _with_hotcoco(
    truth: _Columns,
    found: _Columns,
    canvases: Sequence[tuple[int, int]],
    num_categories: int,
    class_agnostic: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, R, K, A, M) and recall (T, K, A, M) of COCOeval; -1 where there is no ground truth."""
    import hotcoco

    images, categories = _heads(canvases, num_categories)
    real = hotcoco.COCO.from_arrays(
        images,
        categories,
        truth.image,
        truth.category,
        np.zeros((len(truth.rles), 4)),
        area=truth.area,
        iscrowd=truth.crowd,
        segmentation=_segmentations(truth, canvases),
    )
    # hotcoco takes the area of a row from its box, which nothing else of a mask evaluation reads
    rows = np.zeros((len(found.rles), 7))
    rows[:, 0], rows[:, 3], rows[:, 4], rows[:, 5], rows[:, 6] = found.image, found.area, 1, found.score, found.category
    guessed = real.load_res(rows, segmentation=_segmentations(found, canvases))
    evaluation: Any = hotcoco.COCOeval(real, guessed, "segm")
    evaluation.params.use_cats = not class_agnostic
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _with_pycocotools(
    truth: _Columns,
    found: _Columns,
    canvases: Sequence[tuple[int, int]],
    num_categories: int,
    class_agnostic: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """See `_with_hotcoco`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images, categories = _heads(canvases, num_categories)
    sets = []
    with contextlib.redirect_stdout(io.StringIO()):
        for columns in (truth, found):
            coco = COCO()
            coco.dataset = {"images": images, "categories": categories, "annotations": _annotations(columns, canvases)}
            coco.createIndex()
            sets.append(coco)
        evaluation = COCOeval(*sets, "segm")
        evaluation.params.useCats = int(not class_agnostic)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _heads(
    canvases: Sequence[tuple[int, int]], num_categories: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    images = [{"id": place, "height": height, "width": width} for place, (height, width) in enumerate(canvases)]
    return images, [{"id": place, "name": str(place)} for place in range(num_categories)]


def _segmentations(columns: _Columns, canvases: Sequence[tuple[int, int]]) -> list[Any]:
    shapes = [list(canvas) for canvas in canvases]
    return [
        {"size": shapes[place], "counts": rle} for place, rle in zip(columns.image.tolist(), columns.rles, strict=True)
    ]


def _annotations(columns: _Columns, canvases: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    names = ("image_id", "category_id", "area", "iscrowd", "score", "segmentation")
    values = (columns.image, columns.category, columns.area, columns.crowd.astype(int), columns.score)
    lists = [value.tolist() for value in values] + [_segmentations(columns, canvases)]
    # from 1: pycocotools takes a match with 0 for none
    return [
        {"id": number, **dict(zip(names, row, strict=True))}
        for number, row in enumerate(zip(*lists, strict=True), start=1)
    ]


# --- result ----------------------------------------------------------------------------------------------------------


def _summary(precision: np.ndarray, recall: np.ndarray, categories: list[int], backend: str) -> AveragePrecision:
    """Means over what is defined, as `COCOeval.summarize` takes them."""
    everything, small, medium, large = range(4)
    most = -1  # of the limits on predictions: 1, 10, 100
    iou50, iou75 = 0, 5
    return AveragePrecision(
        ap=_mean(precision[:, :, :, everything, most]),
        ap50=_mean(precision[iou50, :, :, everything, most]),
        ap75=_mean(precision[iou75, :, :, everything, most]),
        ap_small=_mean(precision[:, :, :, small, most]),
        ap_medium=_mean(precision[:, :, :, medium, most]),
        ap_large=_mean(precision[:, :, :, large, most]),
        ar1=_mean(recall[:, :, everything, 0]),
        ar10=_mean(recall[:, :, everything, 1]),
        ar100=_mean(recall[:, :, everything, 2]),
        ar_small=_mean(recall[:, :, small, most]),
        ar_medium=_mean(recall[:, :, medium, most]),
        ar_large=_mean(recall[:, :, large, most]),
        per_category={
            category: CategoryScores(
                _mean(precision[:, :, place, everything, most]), _mean(precision[iou50, :, place, everything, most])
            )
            for place, category in enumerate(categories)
        },
        backend=backend,
    )


def _mean(values: np.ndarray) -> float | None:
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else None
