"""`refseg`, `reaseg`, `intseg`: each condition wants one mask. cIoU, gIoU and Pr@0.5 to 0.9 over all conditions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dataengine import masks
from dataengine.errors import ReasonError
from dataengine.metrics.overlap import Overlaps, OverlapScore
from dataengine.sample import PROMPT_KINDS, Condition, Sample
from dataengine.store.files import Folder
from pipelines.evaluate import scorers
from pipelines.evaluate.benchmark import Benchmark
from pipelines.evaluate.predictions import mask_of, number_of
from pipelines.evaluate.samples import Samples, empty
from pipelines.evaluate.scorers import Rules

ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a sample asks. number: of it among all. group: source, split, and `long` or `short`, if it says so.

    truths: RLE of what each condition wants. prompted: the kinds of prompt that each condition can be shown by.
    """

    number: int
    name: str
    group: str
    height: int
    width: int
    truths: tuple[bytes, ...]
    prompted: tuple[frozenset[str], ...]
    ignore: bytes | None


@dataclass(frozen=True, slots=True)
class Cell:
    """Conditions that are scored together. kind: of prompt, or None. prompted: whether they have it."""

    group: str
    kind: str | None
    prompted: bool


class Scorer(scorers.Scorer):
    """See `scorers.Scorer`."""

    def __init__(self, benchmark: Benchmark, rules: Rules) -> None:
        super().__init__()
        self._rules = rules
        self._by_prompt = benchmark.task == "intseg"
        self._samples = Samples(benchmark, asked_of)
        self._answered: dict[Cell, Overlaps] = {}
        self._seen: set[tuple[int, int, str | None]] = set()
        self._empty: set[str | None] = set()  # kinds of prompt that were answered with nothing

    def _take(self, record: Mapping[str, Any], place: str, folder: Folder | None) -> None:
        asked = self._samples.find(record)
        condition = condition_of(record, asked)
        kind = self._kind(record.get("prompt"))
        rle = mask_of(record, asked.height, asked.width)
        key = (asked.number, condition, kind)
        if key in self._seen:
            shown = f", prompt {kind}" if kind else ""
            raise ReasonError("duplicate", f"{asked.name}: a second mask for condition {condition}{shown}")
        self._seen.add(key)
        accumulator = self._answered.setdefault(_cell(asked, condition, kind), Overlaps())
        truth = asked.truths[condition]
        accumulator.add((asked.number, condition), truth, rle, asked.height, asked.width, ignore=asked.ignore)

    def add_nothing(self, sample_id: str, prompt: str | None) -> None:
        self._samples.find({"sample_id": sample_id})
        if (kind := self._kind(prompt)) is not None:
            self._empty.add(kind)

    def _kind(self, prompt: Any) -> str | None:
        """The kind of prompt that was shown; None in tasks without. Raises ReasonError `bad_prompt`."""
        if not self._by_prompt:
            return None
        kind = self._rules.prompt if prompt is None else prompt
        if not isinstance(kind, str) or kind not in PROMPT_KINDS:
            raise ReasonError("bad_prompt", f"prompt must be one of {', '.join(PROMPT_KINDS)}, not {kind!r:.80}")
        return kind

    def result(self) -> dict[str, Any]:
        counts = {
            "samples": len(self._samples),
            "samples_with_predictions": len({number for number, _, _ in self._seen}),
        }
        if not self._by_prompt:
            return {**counts, "scores": self._scores(None)}
        answered = {kind for _, _, kind in self._seen} | self._empty
        if not answered:  # nothing was answered: by whatever was asked for, which scores 0
            answered = set(PROMPT_KINDS) if self._rules.prompt is None else {self._rules.prompt}
        scores = {kind: self._scores(kind) for kind in PROMPT_KINDS if kind in answered}
        return {**counts, "scores": scores, "not_answered": [kind for kind in PROMPT_KINDS if kind not in answered]}

    def _scores(self, kind: str | None) -> dict[str, Any]:
        """Over all samples, and by source, split and variant where there are several."""
        parts = {group: self._overlaps(group, kind) for group in sorted({asked.group for asked in self._samples})}
        groups = Counter(self._samples[number].group for number, _, shown in self._seen if shown == kind)
        together = Overlaps()
        for part in parts.values():
            together.merge(part)
        scores = {ALL: score_json(together.result(), groups.total())}
        if len(parts) > 1:
            scores |= {group: score_json(part.result(), groups[group]) for group, part in parts.items()}
        return scores

    def _overlaps(self, group: str, kind: str | None) -> Overlaps:
        """All conditions of a group; those without a prediction as ones for which nothing was found.

        With X-SAM's convention, those with a prediction whose prompt is there.
        """
        found = Overlaps()
        published = self._rules.convention == "xsam"
        for prompted in (True,) if published else (True, False):
            if (part := self._answered.get(Cell(group, kind, prompted))) is not None:
                found.merge(part)
        for asked in self._samples:
            if asked.group != group or published:
                continue
            nothing = empty(asked.height, asked.width)
            for condition, truth in enumerate(asked.truths):
                if (asked.number, condition, kind) not in self._seen:
                    key = (asked.number, condition)
                    found.add(key, truth, nothing, asked.height, asked.width, ignore=asked.ignore)
        return found


def asked_of(sample: Sample, number: int) -> Asked:
    """What a sample asks."""
    nothing = empty(sample.height, sample.width)
    return Asked(
        number=number,
        name=sample.sample_id,
        group="/".join(filter(None, (sample.source, sample.split, sample.variant))),
        height=sample.height,
        width=sample.width,
        truths=tuple(
            masks.union(
                [nothing, *(sample.objects[place].rle for place in condition.objects)], sample.height, sample.width
            )
            for condition in sample.conditions
        ),
        prompted=tuple(_prompted(sample, condition) for condition in sample.conditions),
        ignore=sample.ignore,
    )


def condition_of(record: Mapping[str, Any], asked: Asked) -> int:
    """The index of the condition that a prediction answers, `condition`; it may be left out where there is but one.

    Raises:
        ReasonError: `bad_record`, `not_asked`.
    """
    if record.get("condition") is None and len(asked.truths) == 1:
        return 0
    number = number_of(record, "condition")
    if not 0 <= number < len(asked.truths):
        raise ReasonError("not_asked", f"{asked.name} has {len(asked.truths)} conditions, and none {number}")
    return number


def score_json(score: OverlapScore, answered: int) -> dict[str, Any]:
    """Scores as JSON values; thresholds become texts. answered: conditions for which there is a prediction."""
    values = asdict(score)
    number = values.pop("n")
    precision = {f"{t:g}": share for t, share in values.pop("precision").items()}
    return {**values, "precision": precision, "conditions": number, "conditions_with_predictions": answered}


def _prompted(sample: Sample, condition: Condition) -> frozenset[str]:
    if condition.exemplar >= 0:
        prompts = sample.objects[condition.exemplar].prompts
    elif condition.reference >= 0:
        prompts = sample.references[condition.reference].prompts
    else:
        return frozenset()
    return frozenset(prompt.kind for prompt in prompts if prompt.status != "none")


def _cell(asked: Asked, condition: int, kind: str | None) -> Cell:
    return Cell(asked.group, kind, kind is None or kind in asked.prompted[condition])
