"""Overlap of one mask a sample with its truth: cIoU, gIoU and Pr@τ, with and without samples that have no target.

Masks are compressed COCO counts and never decoded. Accumulators of parts of a benchmark merge into that of the whole;
no result depends on the order of samples. Scores are in [0, 1], None where there is no sample they are about.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from dataengine import masks
from dataengine.errors import UserError

Key = tuple[str | int, ...]
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
Convention = Literal["all", "xsam"]
V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapScore:
    """ciou: Σ I / Σ U. giou: mean of I / U. precision: for each τ, share of samples with I / U ≥ τ. n: of samples."""

    ciou: float | None
    giou: float | None
    precision: dict[float, float | None]
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralizedScore(OverlapScore):
    """As `OverlapScore`; n_acc: share of samples without a target for which nothing was found; t_acc: share of those
    with a target for which something was."""

    n_acc: float | None
    t_acc: float | None


class Overlaps:
    """Scores of referring, reasoning and interactive segmentation: one target a sample.

    Ignored pixels leave prediction and truth. A sample whose union is empty counts as IoU 1; if all unions are, cIoU is
    1 (X-SAM, `evaluation/utils/iou.py`; it agrees but for the key of a sample, there the image's id and the sample's
    run together: 12, 34 and 123, 4 are one).
    """

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS) -> None:
        self.thresholds = tuple(thresholds)
        self._found: dict[Key, tuple[int, int]] = {}

    def add(
        self, key: Key, truth: bytes, found: bytes, height: int, width: int, ignore: bytes | None = None
    ) -> tuple[int, int]:
        """Take in a sample.

        Args:
            key: its name, a tuple such as (image, phrase). truth, found, ignore: RLE of height x width.
        Returns:
            intersection and union, px.
        Raises:
            UserError: the key was given before, or is no tuple.
            MaskError: an RLE is malformed.
        """
        check_key(key, self._found)
        self._found[key] = both = areas(truth, found, height, width, ignore)[:2]
        return both

    def merge(self, other: Overlaps) -> None:
        """Take in the samples of another accumulator.

        Raises:
            UserError: it has a key that is here too, or other thresholds.
        """
        _check_thresholds(self.thresholds, other.thresholds)
        unite(self._found, other._found)

    def result(self) -> OverlapScore:
        pairs = list(self._found.values())
        ious = [_ratio(inter, union) for inter, union in pairs]
        ciou = _ratio(sum(i for i, _ in pairs), sum(u for _, u in pairs)) if pairs else None
        return OverlapScore(ciou=ciou, giou=mean(ious), precision=_precision(ious, self.thresholds), n=len(ious))


class GeneralizedOverlaps:
    """Scores of generalized referring segmentation: expressions of several targets, of one, of none (gRefCOCO).

    A sample without a target counts as IoU 1 and adds nothing to cIoU if nothing was found, else as IoU 0 and adds
    what was found to the unions (Liu et al., GRES, CVPR 2023). "Nothing" is a mask without a pixel, in truth and
    prediction alike.
    """

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS) -> None:
        self.thresholds = tuple(thresholds)
        self._found: dict[Key, tuple[int, int, bool, bool]] = {}  # I, U, has a target, something was found

    def add(self, key: Key, truth: bytes, found: bytes, height: int, width: int) -> tuple[int, int]:
        """Take in a sample; see `Overlaps.add`."""
        check_key(key, self._found)
        inter, union, wanted, given = areas(truth, found, height, width)
        self._found[key] = (inter, union, wanted > 0, given > 0)
        return inter, union

    def merge(self, other: GeneralizedOverlaps) -> None:
        """Take in the samples of another accumulator; see `Overlaps.merge`."""
        _check_thresholds(self.thresholds, other.thresholds)
        unite(self._found, other._found)

    def result(self, convention: Convention = "all") -> GeneralizedScore:
        """The scores.

        Args:
            convention: `xsam` leaves samples without a target out of cIoU, gIoU, Pr@τ and their number, as X-SAM's
                gRefCOCO evaluation does; N-acc and T-acc are the same.
        """
        samples = list(self._found.values())
        counted = [(inter, union) for inter, union, target, _ in samples if target or convention == "all"]
        ious = [_ratio(inter, union) for inter, union in counted]
        ciou = _ratio(sum(i for i, _ in counted), sum(u for _, u in counted)) if counted else None
        return GeneralizedScore(
            ciou=ciou,
            giou=mean(ious),
            precision=_precision(ious, self.thresholds),
            n=len(ious),
            n_acc=mean([float(not given) for _, _, target, given in samples if not target]),
            t_acc=mean([float(given) for _, _, target, given in samples if target]),
        )


def areas(
    truth: bytes, found: bytes, height: int, width: int, ignore: bytes | None = None
) -> tuple[int, int, int, int]:
    """Areas of intersection, union, truth and prediction, px, all without the pixels of `ignore`.

    Raises:
        MaskError: an RLE is malformed.
    """

    def area(*rles: bytes) -> int:
        together = rles[0] if len(rles) == 1 else masks.intersection(rles, height, width)
        return masks.area(together, height, width)

    inter, wanted, given = area(truth, found), area(truth), area(found)
    if ignore is not None and area(ignore):
        inter -= area(truth, found, ignore)
        wanted -= area(truth, ignore)
        given -= area(found, ignore)
    return inter, wanted + given - inter, wanted, given


def mean(values: Sequence[float]) -> float | None:
    """The mean, the same in any order; None of nothing."""
    return math.fsum(values) / len(values) if values else None


def _ratio(inter: int, union: int) -> float:
    return inter / union if union else 1.0


def _precision(ious: Sequence[float], thresholds: Sequence[float]) -> dict[float, float | None]:
    return {threshold: mean([float(iou >= threshold) for iou in ious]) for threshold in thresholds}


def check_key(key: Key, known: Container[Key]) -> None:
    """See that a key is new.

    Raises:
        UserError: it is no tuple, or known.
    """
    if not isinstance(key, tuple):
        raise UserError(f"a key is a tuple, not {key!r}")
    if key in known:
        raise UserError(f"{key!r} was given twice")


def unite(known: dict[Key, V], other: Mapping[Key, V]) -> None:
    """Take in what another accumulator holds.

    Raises:
        UserError: both have a key.
    """
    if twice := known.keys() & other.keys():
        raise UserError(f"{min(twice, key=repr)!r} was given twice")
    known.update(other)


def _check_thresholds(own: tuple[float, ...], others: tuple[float, ...]) -> None:
    if own != others:
        raise UserError(f"thresholds {own} and {others} do not merge")
