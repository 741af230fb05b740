"""Panoptic quality: of one picture, added up over many, and over PNG files by several processes.

A map holds a segment's id at each pixel; 0 is void. In a PNG the id is R + 256 G + 65536 B (COCO's panoptic format).
"""

from __future__ import annotations

import io
import math
import multiprocessing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dataengine import images
from dataengine.errors import ReasonError, UserError
from dataengine.images import ImageError

VOID = 0
MAX_ID = (1 << 24) - 1  # three bytes of a pixel
Convention = Literal["all_images", "xsam"]
_CHUNK = 32  # pictures that a process is given at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One segment of a picture.

    area: px. Of ground truth: as stated, which is what the union is made of; not used of predictions.
    crowd: of ground truth; never matched, and takes predictions of its category for nothing.
    """

    id: int
    category: int
    area: int = 0
    crowd: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Ground truth and prediction of one picture as PNG files; `found` None: there is no prediction.

    image: its name or id, unique, which messages give.
    """

    image: str | int
    truth: Path
    truth_segments: Sequence[Segment]
    found: Path | None = None
    found_segments: Sequence[Segment] = ()


@dataclass(slots=True, kw_only=True)
class Tally:
    """Matches of one category. ious: of the true positives. fp, fn: false positives and negatives."""

    ious: list[float] = field(default_factory=list)
    fp: int = 0
    fn: int = 0

    def add(self, other: Tally) -> None:
        self.ious += other.ious
        self.fp += other.fp
        self.fn += other.fn


class Quality(NamedTuple):
    """Panoptic, segmentation and recognition quality in [0, 1], means over `num_categories`; None where that is 0."""

    pq: float | None
    sq: float | None
    rq: float | None
    num_categories: int


class CategoryQuality(NamedTuple):
    """Of one category: qualities in [0, 1], None where it has no segment, and what they are made of."""

    pq: float | None
    sq: float | None
    rq: float | None
    iou_sum: float
    tp: int
    fp: int
    fn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PanopticScores:
    """Qualities over all categories that have a segment, over things, over stuff, and of each category.

    num_images: that were counted. num_missing: those without a (usable) prediction, whether or not they were counted.
    """

    all: Quality
    things: Quality
    stuff: Quality
    per_category: dict[int, CategoryQuality]
    num_images: int
    num_missing: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for a json file; categories become texts."""
        groups = {name: getattr(self, name)._asdict() for name in ("all", "things", "stuff")}
        per_category = {str(category): quality._asdict() for category, quality in self.per_category.items()}
        return {**asdict(self), **groups, "per_category": per_category}


# --- one picture -----------------------------------------------------------------------------------------------------


def compare(
    truth_map: np.ndarray,
    truth: Sequence[Segment],
    found_map: np.ndarray,
    found: Sequence[Segment],
    categories: Collection[int],
) -> dict[int, Tally]:
    """Match the segments of one picture (Kirillov et al., CVPR 2019, §4; rules of panopticapi's evaluation.py).

    A pair of one category matches at IoU > 0.5, where pixels of the prediction that are void in the ground truth leave
    the union. Crowds are no false negatives; a prediction of which more than half lies on void and on the (last listed)
    crowd of its category is no false positive. Pixels of ids that `truth` does not list count as other segments' do.

    Args:
        truth_map, found_map: (H, W) integers, ids; 0 is void.
        categories: that exist.
    Returns:
        category to its matches, for every category with a segment that counts.
    Raises:
        ReasonError: `segments_size` (maps of different shape), `segments_invalid` (no map of ids, an id out of range,
            an area that is not positive), `segment_twice`, `unknown_category`; of predictions `segment_unlisted` (an
            id of the map that `found` lacks) and `segment_empty` (listed, but without a pixel).
    """
    if np.shape(truth_map) != np.shape(found_map):
        raise ReasonError(
            "segments_size", f"the prediction's map is {_size(found_map)} px; the ground truth's is {_size(truth_map)}"
        )
    real = _listed_truth(truth, categories)
    guessed = _listed(found, "prediction", categories)
    shared = _overlaps(_ids(truth_map, "ground truth"), _ids(found_map, "prediction"))
    areas: dict[int, int] = {}
    for (_, name), area in shared.items():
        areas[name] = areas.get(name, 0) + area
    _check_pixels(areas, guessed)
    return _matched(real, guessed, shared, areas)


def missed(truth: Sequence[Segment], categories: Collection[int]) -> dict[int, Tally]:
    """`compare` of a picture without a prediction: all of its segments but crowds are false negatives.

    Raises:
        ReasonError: `segments_invalid`, `segment_twice` or `unknown_category`.
    """
    return _matched(_listed_truth(truth, categories), {}, {}, {})


def _matched(
    truth: dict[int, Segment], found: dict[int, Segment], shared: dict[tuple[int, int], int], areas: dict[int, int]
) -> dict[int, Tally]:
    """See `compare`. shared: px that two ids have in common, in ascending order. areas: px of predictions."""
    tallies: dict[int, Tally] = {}
    settled_truth, settled_found = set(), set()
    for (real_id, found_id), both in shared.items():
        real, guessed = truth.get(real_id), found.get(found_id)
        if real is None or guessed is None or real.crowd or real.category != guessed.category:
            continue
        iou = both / (areas[found_id] + real.area - both - shared.get((VOID, found_id), 0))
        if iou > 0.5:
            tallies.setdefault(real.category, Tally()).ious.append(iou)
            settled_truth.add(real_id)
            settled_found.add(found_id)
    crowds = {real.category: real_id for real_id, real in truth.items() if real.crowd}
    for real_id, real in truth.items():
        if not real.crowd and real_id not in settled_truth:
            tallies.setdefault(real.category, Tally()).fn += 1
    for found_id, guessed in found.items():
        if found_id in settled_found:
            continue
        excused = shared.get((VOID, found_id), 0)
        if guessed.category in crowds:
            excused += shared.get((crowds[guessed.category], found_id), 0)
        if not excused / areas[found_id] > 0.5:
            tallies.setdefault(guessed.category, Tally()).fp += 1
    return tallies


def _overlaps(truth: np.ndarray, found: np.ndarray) -> dict[tuple[int, int], int]:
    """Pixels of every pair of ids that meet, in ascending order; by runs, of which there are far fewer than pixels."""
    one, other = truth.ravel(), found.ravel()
    new = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    starts = np.flatnonzero(np.append(True, new)) if one.size else np.zeros(0, np.int64)
    kinds, kind = np.unique(one[starts].astype(np.uint64) << np.uint64(32) | other[starts], return_inverse=True)
    areas = np.bincount(kind, np.diff(starts, append=one.size), minlength=kinds.size).astype(np.int64)
    split = zip((kinds >> np.uint64(32)).tolist(), (kinds & np.uint64(0xFFFFFFFF)).tolist(), strict=True)
    return dict(zip(split, areas.tolist(), strict=True))


def _ids(ids: np.ndarray, what: str) -> np.ndarray:
    """The map as uint32."""
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ReasonError("segments_invalid", f"{what}: a map of ids is (H, W) integers, not {ids.shape} {ids.dtype}")
    if ids.dtype != np.uint32:
        if ids.size and not (ids.min() >= 0 and ids.max() <= MAX_ID):
            raise ReasonError("segments_invalid", f"{what}: its map has ids outside 0..{MAX_ID}")
        ids = ids.astype(np.uint32)
    return ids


def _listed(segments: Sequence[Segment], what: str, categories: Collection[int]) -> dict[int, Segment]:
    listed: dict[int, Segment] = {}
    for segment in segments:
        if not 0 < segment.id <= MAX_ID:
            raise ReasonError("segments_invalid", f"{what}: segment id {segment.id} is outside 1..{MAX_ID}")
        if segment.id in listed:
            raise ReasonError("segment_twice", f"{what}: segment {segment.id} is listed twice")
        if segment.category not in categories:
            raise ReasonError(
                "unknown_category", f"{what}: segment {segment.id} has the unknown category {segment.category}"
            )
        listed[segment.id] = segment
    return listed


def _listed_truth(segments: Sequence[Segment], categories: Collection[int]) -> dict[int, Segment]:
    listed = _listed(segments, "ground truth", categories)
    for segment in segments:
        if not (segment.area > 0 and math.isfinite(segment.area)):
            raise ReasonError(
                "segments_invalid", f"ground truth: segment {segment.id} has an area of {segment.area} px"
            )
    return listed


def _check_pixels(areas: dict[int, int], found: dict[int, Segment]) -> None:
    """areas: px of each id of the prediction's map."""
    unlisted = [name for name in areas if name != VOID and name not in found]
    if unlisted:
        raise ReasonError("segment_unlisted", f"prediction: its map has {len(unlisted)} unlisted ids, as {unlisted[0]}")
    empty = [name for name in found if name not in areas]
    if empty:
        raise ReasonError("segment_empty", f"prediction: {len(empty)} listed segments have no pixel, as {empty[0]}")


def _size(ids: np.ndarray) -> str:
    return " x ".join(map(str, reversed(np.shape(ids))))


def segments_from_json(rows: Any, *, truth: bool) -> list[Segment]:
    """The `segments_info` of a COCO panoptic json, which may hold anything.

    Args:
        truth: whether it is ground truth, whose `area` is needed and whose `iscrowd` counts.
    Raises:
        ReasonError: `segments_invalid`.
    """
    if not isinstance(rows, list):
        raise ReasonError("segments_invalid", f"segments_info is a {type(rows).__name__}; a list is needed")
    found = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ReasonError("segments_invalid", f"segments_info {number} is a {type(row).__name__}, no object")
        values: dict[str, Any] = {name: row.get(name) for name in ("id", "category_id", *(("area",) if truth else ()))}
        values["iscrowd"] = row.get("iscrowd", 0) if truth else 0
        for name, value in values.items():
            if type(value) is not int and not (name == "iscrowd" and isinstance(value, bool)):
                raise ReasonError(
                    "segments_invalid", f"segments_info {number}: its {name} is {value!r:.80}, no integer"
                )
        found.append(
            Segment(
                id=values["id"],
                category=values["category_id"],
                area=values.get("area", 0),
                crowd=bool(values["iscrowd"]),
            )
        )
    return found


# --- many pictures ---------------------------------------------------------------------------------------------------


class PanopticQuality:
    """Matches added up over pictures, in any order: sums are exact, so that parts merge to the very same whole."""

    def __init__(self, categories: Mapping[int, bool], convention: Convention = "all_images") -> None:
        """
        Args:
            categories: to whether it is a thing.
            convention: of pictures without a prediction: `all_images` counts their segments as false negatives;
                `xsam` leaves them out, as X-SAM's evaluation does, which makes a model that fails score higher.
        """
        if convention not in ("all_images", "xsam"):
            raise UserError(f"no convention {convention!r}; there are all_images, xsam")
        self._categories = dict(categories)
        self._convention = convention
        self._tallies: dict[int, Tally] = {}
        self._counted: set[str | int] = set()
        self._missing: set[str | int] = set()

    def add(self, image: str | int, tallies: Mapping[int, Tally], missing: bool = False) -> None:
        """Count a picture. tallies: of `compare`, or of `missed` where the prediction is missing.

        Raises:
            ReasonError: `image_twice`; `unknown_category`.
        """
        self._claim({image}, missing=missing)
        if missing and self._convention == "xsam":
            return
        self._counted.add(image)
        self._sum(tallies)

    def merge(self, other: PanopticQuality) -> None:
        """Count all pictures of another one, of other pictures.

        Raises:
            ReasonError: `image_twice`; `unknown_category`.
            UserError: the other's categories or convention differ.
        """
        if (self._categories, self._convention) != (other._categories, other._convention):
            raise UserError("scores of different categories or conventions cannot be merged")
        self._claim(other._counted | other._missing)
        self._counted |= other._counted
        self._missing |= other._missing
        self._sum(other._tallies)

    def result(self) -> PanopticScores:
        """PQ = Σ IoU / (TP + ½ FP + ½ FN), SQ = Σ IoU / TP (0 without TP), RQ = TP / (TP + ½ FP + ½ FN).

        Of one category each; a group is the mean over those of its categories that have TP + FP + FN > 0.
        """
        per_category = {name: _quality(self._tallies.get(name, Tally())) for name in sorted(self._categories)}
        return PanopticScores(
            all=_mean(per_category.values()),
            things=_mean(quality for name, quality in per_category.items() if self._categories[name]),
            stuff=_mean(quality for name, quality in per_category.items() if not self._categories[name]),
            per_category=per_category,
            num_images=len(self._counted),
            num_missing=len(self._missing),
        )

    def _claim(self, names: set[str | int], missing: bool = False) -> None:
        twice = names & (self._counted | self._missing)
        if twice:
            raise ReasonError("image_twice", f"image {min(twice, key=str)} was counted already")
        if missing:
            self._missing |= names

    def _sum(self, tallies: Mapping[int, Tally]) -> None:
        for category, tally in tallies.items():
            if category not in self._categories:
                raise ReasonError("unknown_category", f"no category {category}")
            self._tallies.setdefault(category, Tally()).add(tally)


def _quality(tally: Tally) -> CategoryQuality:
    tp, whole = len(tally.ious), len(tally.ious) + 0.5 * tally.fp + 0.5 * tally.fn
    total = math.fsum(tally.ious)
    counts = {"iou_sum": total, "tp": tp, "fp": tally.fp, "fn": tally.fn}
    if not whole:
        return CategoryQuality(None, None, None, **counts)  # type: ignore[arg-type]
    return CategoryQuality(total / whole, total / tp if tp else 0.0, tp / whole, **counts)  # type: ignore[arg-type]


def _mean(qualities: Iterable[CategoryQuality]) -> Quality:
    defined = [quality[:3] for quality in qualities if quality.pq is not None]
    if not defined:
        return Quality(None, None, None, 0)
    pq, sq, rq = (math.fsum(column) / len(defined) for column in zip(*defined, strict=True))  # type: ignore[arg-type]
    return Quality(pq, sq, rq, len(defined))


# --- files -----------------------------------------------------------------------------------------------------------


def panoptic_quality(
    pairs: Sequence[Pair],
    categories: Mapping[int, bool],
    *,
    convention: Convention = "all_images",
    workers: int = 1,
    refuse: Callable[[Pair, ReasonError], None] | None = None,
) -> PanopticScores:
    """Score predictions that are PNG files; the same numbers for any number of workers.

    Args:
        categories: to whether it is a thing.
        convention: of pictures without a prediction, see `PanopticQuality`.
        workers: processes.
        refuse: called for a prediction that cannot be used, which then counts as missing; None: it is raised.
    Raises:
        ReasonError: naming the image: see `compare`, `ids_from_png`, and `file_missing`. One of the ground truth is
            always raised.
    """
    scores = PanopticQuality(categories, convention)
    for pair, (tallies, error) in zip(pairs, _compared(pairs, frozenset(categories), workers), strict=True):
        if error is not None:
            if refuse is None:
                raise error
            refuse(pair, error)
        scores.add(pair.image, tallies, missing=pair.found is None or error is not None)
    return scores.result()


Compared = tuple[dict[int, Tally], ReasonError | None]


def _compared(pairs: Sequence[Pair], categories: frozenset[int], workers: int) -> Iterator[Compared]:
    """For each pair its matches, and why its prediction cannot be used, if so."""
    compared = partial(_compare_files, categories=categories)
    if workers <= 1 or len(pairs) <= _CHUNK:
        yield from map(compared, pairs)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy other libraries' threads
    with ProcessPoolExecutor(min(workers, -(-len(pairs) // _CHUNK)), mp_context=context) as pool:
        try:
            yield from pool.map(compared, pairs, chunksize=_CHUNK)
        finally:
            pool.shutdown(cancel_futures=True)


def _compare_files(pair: Pair, categories: frozenset[int]) -> Compared:
    try:
        truth = _read(pair.truth, "ground truth") if pair.found is not None else None
        nothing = missed(pair.truth_segments, categories)
    except ReasonError as error:
        raise _named(pair, error) from None
    if pair.found is None or truth is None:
        return nothing, None
    try:
        found = _read(pair.found, "prediction")
        return compare(truth, pair.truth_segments, found, pair.found_segments, categories), None
    except ReasonError as error:
        return nothing, _named(pair, error)


def _named(pair: Pair, error: ReasonError) -> ReasonError:
    return ReasonError(error.reason, f"image {pair.image}: {error}")


def _read(path: Path, what: str) -> np.ndarray:
    try:
        return ids_from_png(path.read_bytes())
    except OSError as error:
        raise ReasonError("file_missing", f"{what}: {path} cannot be read: {error.strerror}") from None
    except ImageError as error:
        raise ReasonError(error.reason, f"{what}: {path}: {error}") from None


def ids_from_png(data: bytes) -> np.ndarray:
    """(H, W) uint32 ids of a panoptic PNG: R + 256 G + 65536 B.

    Raises:
        ImageError: `segments_unreadable`, `segments_mode` (no 8-bit RGB) or `image_too_large`.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            images.check_size(image.height, image.width)
            if image.mode != "RGB" or data[24] != 8:  # Pillow shows 16-bit colours as RGB
                raise ImageError("segments_mode", f"mode {image.mode} of {data[24]} bits; 8-bit RGB is needed")
            images.check_png(data)
            ids = np.frombuffer(image.tobytes("raw", "RGBX"), dtype="<u4").reshape(image.height, image.width)
            return ids & np.uint32(MAX_ID)
    except ImageError as error:
        damaged = error.reason in ("image_truncated", "image_unreadable")
        raise ImageError("segments_unreadable", str(error)) if damaged else error from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("image_too_large", str(error)) from None
    except Exception as error:  # Pillow raises what it pleases on damaged files
        raise ImageError("segments_unreadable", f"cannot be read: {type(error).__name__}") from None
