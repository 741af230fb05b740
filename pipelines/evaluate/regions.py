"""`vgdseg`: each region shows a category by one of its objects; all objects of that category are wanted.

AP is COCO's, for each kind of prompt and variant of the benchmark, over all its samples, and by stratum of difficulty.
Regions of absent categories must return nothing: of them the share is counted for which something is returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataengine import masks
from dataengine.errors import ReasonError, UserError
from dataengine.metrics.ap import AveragePrecision, average_precision
from dataengine.sample import PROMPT_KINDS, Sample
from dataengine.store.files import Folder
from pipelines.evaluate import scorers
from pipelines.evaluate.benchmark import Benchmark
from pipelines.evaluate.columns import Found, FoundRows, Truth, TruthRows
from pipelines.evaluate.predictions import mask_of, number_of, score_of, text_of
from pipelines.evaluate.scorers import Rules
from pipelines.evaluate.strata import RegionRows, Regions, each
from pipelines.variants import NEGATIVES, SAME_IMAGE

THRESHOLDS = (0.3, 0.5, 0.7)  # of scores at which false positives are counted
ANY = "any"  # and at whatever score


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a sample asks. number: of the sample, among all. categories: ids; absent: those that are not there."""

    number: int
    variant: str
    height: int
    width: int
    categories: frozenset[int]
    absent: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """All that scores are made of. regions: by kind of prompt."""

    truth: Truth
    found: Found
    regions: Sequence[Regions]


class Scorer(scorers.Scorer):
    """See `scorers.Scorer`."""

    def __init__(self, benchmark: Benchmark, rules: Rules) -> None:
        super().__init__()
        self._rules = rules
        self._asked: dict[str, Asked] = {}
        self._empty: set[tuple[str, str]] = set()  # variants and kinds of prompt that were answered with nothing
        self._truth, self._regions, self._found = TruthRows(), RegionRows(), FoundRows()
        names: dict[int, tuple[str, str]] = {}
        for sample in benchmark.samples():
            asked = _asked(sample, len(self._asked))
            _check_ids(sample, names)
            self._asked[sample.sample_id] = asked
            self._truth.add(sample, asked.number, asked.categories)
            self._regions.add(sample, asked.number)

    def _take(self, record: Mapping[str, Any], place: str, folder: Folder | None) -> None:
        name = text_of(record, "sample_id")
        asked, kind = self._shown(name, record.get("prompt"))
        category = number_of(record, "category_id")
        score = score_of(record)
        rle = mask_of(record, asked.height, asked.width)
        if category not in asked.categories:
            raise ReasonError("not_asked", f"{name} does not ask for category {category}")
        if not self._found.add(asked.number, category, PROMPT_KINDS.index(kind), score, rle):
            raise ReasonError("duplicate", f"{name}: the same mask with the same score for category {category}")

    def add_nothing(self, sample_id: str, prompt: str | None) -> None:
        asked, kind = self._shown(sample_id, prompt)
        self._empty.add((asked.variant, kind))

    def _shown(self, sample_id: str, prompt: Any) -> tuple[Asked, str]:
        """The sample, and the kind of prompt. Raises ReasonError `unknown_sample`, `bad_prompt`."""
        asked = self._asked.get(sample_id)
        if asked is None:
            raise ReasonError("unknown_sample", f"{sample_id!r:.200} is no sample of the benchmark")
        kind = self._rules.prompt if prompt is None else prompt
        if kind not in PROMPT_KINDS:
            raise ReasonError("bad_prompt", f"prompt must be one of {', '.join(PROMPT_KINDS)}, not {kind!r:.80}")
        return asked, kind

    def result(self) -> dict[str, Any]:
        variants: dict[str, list[Asked]] = {}
        for asked in self._asked.values():
            variants.setdefault(asked.variant, []).append(asked)
        columns = Columns(truth=self._truth.columns(), found=self._found.columns(), regions=self._regions.columns())
        variant_of = np.array([list(variants).index(asked.variant) for asked in self._asked.values()], dtype=np.int64)
        scores: dict[str, Any] = {}
        missing: list[str] = []
        backend = ""
        for number, (variant, samples) in enumerate(variants.items()):
            for kind, name in enumerate(PROMPT_KINDS):
                rows = np.flatnonzero((columns.found.kind == kind) & (variant_of[columns.found.image] == number))
                if rows.size or self._is_zero(name) or (variant, name) in self._empty:
                    part = _Part(self._rules, variant, kind, samples, columns, rows)
                    scores.setdefault(variant, {})[name], backend = part.scores()
                else:
                    missing.append(f"{variant}/{name}")
        return {
            "backend": backend,
            "samples": len(self._asked),
            "samples_with_predictions": int(np.unique(columns.found.image).size),
            "scores": scores,
            "not_answered": missing,
        }

    def _is_zero(self, kind: str) -> bool:
        """Whether a kind without predictions scores 0: where there are none at all, all that were to be scored do."""
        return not self.predictions and self._rules.prompt in (None, kind)


def _check_ids(sample: Sample, names: dict[int, tuple[str, str]]) -> None:
    """See that a category id means the same in all sources. names: by id the first source that has it, and its name.

    Raises:
        UserError
    """
    for condition in sample.conditions:
        number, name = condition.category_id, condition.text
        source, known = names.setdefault(number, (sample.source, name))
        if source != sample.source and known != name:
            raise UserError(
                f"category {number} is {known!r} in source {source} but {name!r} in {sample.source}; regions of "
                "sources with categories of their own cannot be scored together: make a benchmark of each"
            )


def _asked(sample: Sample, number: int) -> Asked:
    return Asked(
        number=number,
        variant=sample.variant or SAME_IMAGE,
        height=sample.height,
        width=sample.width,
        categories=frozenset(condition.category_id for condition in sample.conditions),
        absent=frozenset(condition.category_id for condition in sample.conditions if not condition.objects),
    )


class _Part:
    """One variant by one kind of prompt. found: rows of its predictions."""

    def __init__(
        self, rules: Rules, variant: str, kind: int, samples: Sequence[Asked], columns: Columns, found: np.ndarray
    ) -> None:
        self._rules, self._variant, self._kind = rules, variant, kind
        self._samples, self._columns, self._found = samples, columns, found
        self._sizes = {asked.number: (asked.height, asked.width) for asked in samples}
        truth, answered = columns.truth, np.unique(columns.found.image[found]).tolist()
        self._answered = len(answered)
        if rules.convention == "xsam":  # only pictures with predictions, and objects that have such a prompt
            self._sizes = {number: self._sizes[number] for number in answered}
        kept = np.isin(truth.image, list(self._sizes))
        if rules.convention == "xsam":
            kept &= truth.prompted[:, kind] & ~truth.crowd
        self._truth = np.flatnonzero(kept)

    def scores(self) -> tuple[dict[str, Any], str]:
        """Scores as JSON values, and the backend that made them."""
        everything = {category for asked in self._samples for category in asked.categories}
        made = self._precision(self._truth, self._found, self._sizes, sorted(everything))
        scores = made.to_json()
        backend = scores.pop("backend")
        scores["samples"] = len(self._sizes)
        scores["samples_with_predictions"] = self._answered
        scores["predictions"] = int(self._found.size)
        if self._variant == NEGATIVES:
            scores["false_positives"] = self._false_positives()
        if self._rules.strata and self._rules.convention == "standard":
            scores["strata"] = self._strata()
        return scores, backend

    def _precision(
        self, truth: np.ndarray, found: np.ndarray, sizes: Mapping[int, tuple[int, int]], categories: Sequence[int]
    ) -> AveragePrecision:
        return average_precision(
            self._columns.truth.instances(truth),
            self._columns.found.instances(found),
            sizes,
            categories=categories,
            backend=self._rules.backend,
        )

    def _strata(self) -> dict[str, dict[str, Any]]:
        """Scores of the regions of each stratum alone: their objects, and the predictions for them."""
        truth, found, regions = self._columns.truth, self._columns.found, self._columns.regions[self._kind]
        of_truth = regions.of(truth.image[self._truth], truth.category[self._truth])
        of_found = regions.of(found.image[self._found], found.category[self._found])
        own = np.isin(regions.image, list(self._sizes))
        scores: dict[str, dict[str, Any]] = {}
        for column, name, index, label in each():
            inside = own & (regions.strata[:, column] == index)
            images = np.unique(regions.image[inside]).tolist()
            made = self._precision(
                self._truth[of_truth[:, column] == index],
                self._found[of_found[:, column] == index],
                {number: self._sizes[number] for number in images},
                np.unique(regions.category[inside]).tolist(),
            )
            scores.setdefault(name, {})[label] = {
                "ap": made.ap,
                "ap50": made.ap50,
                "ar100": made.ar100,
                "regions": int(inside.sum()),
                "samples": len(images),
            }
        return scores

    def _false_positives(self) -> dict[str, Any]:
        """Share of the absent regions for which a mask of at least that score is returned; empty masks are none."""
        found = self._columns.found
        absent = {(asked.number, c) for asked in self._samples if asked.number in self._sizes for c in asked.absent}
        best: dict[tuple[int, int], float] = {}
        for row in self._found.tolist():
            region = int(found.image[row]), int(found.category[row])
            if region in absent and masks.area(found.rles[row], *self._sizes[region[0]]):
                best[region] = max(float(found.score[row]), best.get(region, -np.inf))
        rates = {ANY: len(best), **{f"{t:g}": sum(s >= t for s in best.values()) for t in THRESHOLDS}}
        return {
            "regions": len(absent),
            "rate": {name: number / len(absent) if absent else None for name, number in rates.items()},
        }
