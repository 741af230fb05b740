"""`vgdseg`: each region shows a category by one of its objects; all objects of that category are wanted.

AP is COCO's, for each kind of prompt and variant of the benchmark, over all its samples. Regions of absent categories
must return nothing: of them the share is counted for which something is returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataengine.errors import ReasonError
from dataengine.metrics.ap import Instances, average_precision
from dataengine.sample import PROMPT_KINDS, Sample
from dataengine.store.files import Folder
from pipelines.evaluate.benchmark import Benchmark
from pipelines.evaluate.predictions import Faults, mask_of, number_of, score_of, text_of
from pipelines.evaluate.scorers import Rules, checked_record
from pipelines.variants import NEGATIVES, SAME_IMAGE

THRESHOLDS = (0.0, 0.3, 0.5, 0.7)  # of scores at which false positives are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a sample asks. number: of the sample, among all. categories: ids; absent: those that are not there."""

    number: int
    variant: str
    height: int
    width: int
    categories: frozenset[int]
    absent: frozenset[int]


class Scorer:
    """See `Scorer` in `pipelines.evaluate.scorers`."""

    def __init__(self, benchmark: Benchmark, rules: Rules) -> None:
        self.faults = Faults()
        self.predictions = 0
        self._rules = rules
        self._asked: dict[str, Asked] = {}
        self._truth = _Truth()
        for sample in benchmark.samples():
            asked = _asked(sample, len(self._asked))
            self._asked[sample.sample_id] = asked
            self._truth.add(sample, asked)
        self._found = _Found()

    def add(self, place: str, record: Any, folder: Folder | None = None) -> None:
        try:
            self._add(checked_record(record))
            self.predictions += 1
        except ReasonError as error:
            self.faults.add(error.reason, f"{place}: {error}")

    def _add(self, record: Mapping[str, Any]) -> None:
        name = text_of(record, "sample_id")
        asked = self._asked.get(name)
        if asked is None:
            raise ReasonError("unknown_sample", f"{name!r:.200} is no sample of the benchmark")
        kind = record.get("prompt", self._rules.prompt)
        if kind not in PROMPT_KINDS:
            raise ReasonError("bad_prompt", f"prompt must be one of {', '.join(PROMPT_KINDS)}, not {kind!r:.80}")
        category = number_of(record, "category_id")
        score = score_of(record)
        rle = mask_of(record, asked.height, asked.width)
        if category not in asked.categories:
            raise ReasonError("not_asked", f"{name} does not ask for category {category}")
        if not self._found.add(asked.number, category, PROMPT_KINDS.index(kind), score, rle):
            raise ReasonError("duplicate", f"{name}: the same mask with the same score for category {category}")

    def result(self) -> dict[str, Any]:
        variants: dict[str, list[Asked]] = {}
        for asked in self._asked.values():
            variants.setdefault(asked.variant, []).append(asked)
        found, truth = self._found.columns(), self._truth.columns()
        scores: dict[str, Any] = {}
        for variant, samples in variants.items():
            for number, kind in enumerate(PROMPT_KINDS):
                rows = np.flatnonzero((found.kind == number) & np.isin(found.image, [a.number for a in samples]))
                if rows.size:
                    scores.setdefault(variant, {})[kind] = self._scores(variant, kind, samples, truth, found.take(rows))
        return {"scores": scores, "not_answered": _not_answered(variants, scores)}

    def _scores(
        self, variant: str, kind: str, samples: Sequence[Asked], truth: _TruthColumns, found: _FoundColumns
    ) -> dict[str, Any]:
        """The scores of one variant by one kind of prompt."""
        sizes = {asked.number: (asked.height, asked.width) for asked in samples}
        published = self._rules.convention == "xsam"
        if published:  # only pictures with predictions count, and only objects that have such a prompt
            sizes = {number: sizes[number] for number in np.unique(found.image).tolist()}
        kept = np.isin(truth.image, list(sizes))
        if published:
            kept &= truth.prompted[:, PROMPT_KINDS.index(kind)] & ~truth.crowd
        rows = np.flatnonzero(kept)
        categories = sorted({category for asked in samples for category in asked.categories})
        real = truth.take(rows)
        made = average_precision(
            Instances(image=real.image, category=real.category, rles=real.rles, area=real.area, crowd=real.crowd),
            Instances(image=found.image, category=found.category, rles=found.rles, score=found.score),
            sizes,
            categories=categories,
            backend=self._rules.backend,
        )
        scores = made.to_json()
        if variant == NEGATIVES:
            scores["false_positives"] = _false_positives(samples, found)
        return scores


def _asked(sample: Sample, number: int) -> Asked:
    return Asked(
        number=number,
        variant=sample.variant or SAME_IMAGE,
        height=sample.height,
        width=sample.width,
        categories=frozenset(condition.category_id for condition in sample.conditions),
        absent=frozenset(condition.category_id for condition in sample.conditions if not condition.objects),
    )


def _not_answered(variants: Iterable[str], scores: Mapping[str, Any]) -> list[str]:
    """Variants and kinds of prompt for which there is no prediction at all, and so no score."""
    return [f"{v}/{kind}" for v in variants for kind in PROMPT_KINDS if kind not in scores.get(v, {})]


def _false_positives(samples: Sequence[Asked], found: _FoundColumns) -> dict[str, Any]:
    """Share of the absent regions for which a mask of at least that score is returned."""
    absent = {(asked.number, category) for asked in samples for category in asked.absent}
    best: dict[tuple[int, int], float] = {}
    for image, category, score in zip(found.image.tolist(), found.category.tolist(), found.score.tolist(), strict=True):
        if (image, category) in absent:
            best[image, category] = max(score, best.get((image, category), -np.inf))
    rates = {f"{t:g}": sum(score >= t for score in best.values()) / len(absent) if absent else None for t in THRESHOLDS}
    return {"regions": len(absent), "rate": rates}


# --- columns ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _TruthColumns:
    """All objects, once a sample. prompted: (n, 4) bool, whether there is a prompt of each kind."""

    image: np.ndarray
    category: np.ndarray
    rles: list[bytes]
    area: np.ndarray
    crowd: np.ndarray
    prompted: np.ndarray

    def take(self, rows: np.ndarray) -> _TruthColumns:
        return _TruthColumns(
            image=self.image[rows],
            category=self.category[rows],
            rles=[self.rles[row] for row in rows.tolist()],
            area=self.area[rows],
            crowd=self.crowd[rows],
            prompted=self.prompted[rows],
        )


class _Truth:
    """Objects on their way into columns."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, float, bool]] = []
        self._rles: list[bytes] = []
        self._prompted: list[list[bool]] = []

    def add(self, sample: Sample, asked: Asked) -> None:
        """The objects of a sample that it asks for; a variant may ask for fewer categories than there are."""
        for thing in sample.objects:
            if thing.category_id not in asked.categories:
                continue
            self._rows.append((asked.number, thing.category_id, float(thing.area), thing.crowd))
            self._rles.append(thing.rle)
            there = {prompt.kind for prompt in thing.prompts if prompt.status != "none"}
            self._prompted.append([not thing.prompts or kind in there for kind in PROMPT_KINDS])

    def columns(self) -> _TruthColumns:
        image, category, area, crowd = (
            (np.array(c) for c in zip(*self._rows, strict=True)) if self._rows else [np.zeros(0)] * 4
        )
        return _TruthColumns(
            image=image.astype(np.int64),
            category=category.astype(np.int64),
            rles=self._rles,
            area=area.astype(np.float64),
            crowd=crowd.astype(bool),
            prompted=np.array(self._prompted, dtype=bool).reshape(-1, len(PROMPT_KINDS)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _FoundColumns:
    """Predictions. kind: index into PROMPT_KINDS."""

    image: np.ndarray
    category: np.ndarray
    kind: np.ndarray
    score: np.ndarray
    rles: list[bytes]

    def take(self, rows: np.ndarray) -> _FoundColumns:
        return _FoundColumns(
            image=self.image[rows],
            category=self.category[rows],
            kind=self.kind[rows],
            score=self.score[rows],
            rles=[self.rles[row] for row in rows.tolist()],
        )


class _Found:
    """Predictions on their way into columns."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int]] = []
        self._scores: list[float] = []
        self._rles: list[bytes] = []
        self._seen: set[int] = set()

    def add(self, number: int, category: int, kind: int, score: float, rle: bytes) -> bool:
        """Whether it is new."""
        key = hash((number, category, kind, score, rle))
        if key in self._seen:
            return False
        self._seen.add(key)
        self._rows.append((number, category, kind))
        self._scores.append(score)
        self._rles.append(rle)
        return True

    def columns(self) -> _FoundColumns:
        rows = np.array(self._rows, dtype=np.int64).reshape(-1, 3)
        return _FoundColumns(
            image=rows[:, 0],
            category=rows[:, 1],
            kind=rows[:, 2],
            score=np.array(self._scores, dtype=np.float64),
            rles=self._rles,
        )
