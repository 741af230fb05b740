"""`genseg`, `ovseg`: every sample is of one variant (panoptic, semantic or instance), which says how it is scored.

Scores are kept apart by variant and by source, because category ids are those of a source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dataengine.errors import UserError
from dataengine.sample import Sample
from dataengine.store.files import Folder
from pipelines.evaluate import scorers
from pipelines.evaluate.benchmark import Benchmark
from pipelines.evaluate.predictions import Faults
from pipelines.evaluate.samples import Samples
from pipelines.evaluate.scorers import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Something of the ground truth. rle: on the sample's canvas."""

    rle: bytes
    category: int
    area: int
    crowd: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a sample asks. number: of the sample, among all. categories: that it asks for, present or not.

    truth: objects of those categories; pixels of others belong to none.
    """

    number: int
    name: str
    variant: str
    source: str
    height: int
    width: int
    categories: frozenset[int]
    truth: tuple[Segment, ...]
    ignore: bytes | None


class Part(Protocol):
    """Scores the samples of one variant and source."""

    def ask(self, asked: Asked) -> None:
        """Count a sample in, before any prediction."""
        ...

    def add(self, asked: Asked, place: str, record: Mapping[str, Any], folder: Folder | None) -> None:
        """Take a prediction. Raises ReasonError where it cannot be scored."""
        ...

    def result(self) -> dict[str, Any]:
        """Scores as JSON values."""
        ...


class Scorer(scorers.Scorer):
    """See `scorers.Scorer`."""

    def __init__(self, benchmark: Benchmark, rules: Rules) -> None:
        super().__init__()
        self._samples = Samples(benchmark, _asked)
        self._parts: dict[tuple[str, str], Part] = {}
        self._answered: set[int] = set()
        things = things_of(benchmark)
        for asked in self._samples:
            key = asked.variant, asked.source
            if key not in self._parts:
                self._parts[key] = _part(asked, things.get(asked.source, {}), rules, self.faults)
            self._parts[key].ask(asked)

    def _take(self, record: Mapping[str, Any], place: str, folder: Folder | None) -> None:
        asked = self._samples.find(record, _variant(record))
        self._parts[asked.variant, asked.source].add(asked, place, record, folder)
        self._answered.add(asked.number)

    def add_nothing(self, sample_id: str, prompt: str | None) -> None:
        self._samples.find({"sample_id": sample_id})

    def result(self) -> dict[str, Any]:
        scores: dict[str, Any] = {}
        for (variant, source), part in sorted(self._parts.items()):
            scores.setdefault(variant, {})[source] = part.result()
        backends = {
            made.pop("backend") for of_variant in scores.values() for made in of_variant.values() if "backend" in made
        }
        return {
            **({"backend": backends.pop()} if backends else {}),
            "samples": len(self._samples),
            "samples_with_predictions": len(self._answered),
            "scores": scores,
        }


def things_of(benchmark: Benchmark) -> dict[str, dict[int, bool]]:
    """For each of the task's sources its category ids, and whether they are things."""
    sources: dict[str, dict[int, bool]] = {}
    for name, source in benchmark.dataset.manifest["sources"].items():
        if source["task"] == benchmark.task:
            ids = {category["id"]: bool(category["is_thing"]) for category in source["categories"]}
            sources.setdefault(name.partition("/")[0], {}).update(ids)
    return sources


def _part(asked: Asked, things: Mapping[int, bool], rules: Rules, faults: Faults) -> Part:
    if asked.variant == "instance":
        from pipelines.evaluate.instances import Instances

        return Instances(rules)
    if asked.variant == "panoptic":
        from pipelines.evaluate.panoptic import Panoptic

        return Panoptic(things, rules, faults)
    if asked.variant == "semantic":
        from pipelines.evaluate.semantic import Semantic

        return Semantic(things, rules, faults)
    raise UserError(f"{asked.name}: nothing scores the variant {asked.variant!r}")


def _asked(sample: Sample, number: int) -> Asked:
    categories = frozenset(condition.category_id for condition in sample.conditions)
    return Asked(
        number=number,
        name=sample.sample_id,
        variant=sample.variant or "",
        source=sample.source,
        height=sample.height,
        width=sample.width,
        categories=categories,
        truth=tuple(
            Segment(rle=thing.rle, category=thing.category_id, area=int(thing.area), crowd=thing.crowd)
            for thing in sample.objects
            if thing.category_id in categories
        ),
        ignore=sample.ignore,
    )


def _variant(record: Mapping[str, Any]) -> str:
    """The variant that a prediction without `sample_id` is meant for: it says so, or its fields do."""
    stated = record.get("variant")
    if isinstance(stated, str):
        return stated
    if record.get("segments_info") is not None:
        return "panoptic"
    return "semantic" if record.get("file_name") is not None or record.get("score") is None else "instance"
