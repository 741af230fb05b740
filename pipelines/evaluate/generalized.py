"""`grefseg`: a condition wants all of its targets as one mask, or nothing. gIoU, cIoU, N-acc and T-acc."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataengine import masks
from dataengine.errors import ReasonError
from dataengine.metrics.overlap import GeneralizedOverlaps
from dataengine.store.files import Folder
from pipelines.evaluate.benchmark import Benchmark
from pipelines.evaluate.predictions import Faults, mask_of
from pipelines.evaluate.referring import ALL, Asked, asked_of, condition_of, score_json
from pipelines.evaluate.samples import Samples, empty
from pipelines.evaluate.scorers import Rules, checked_record


class Scorer:
    """See `Scorer` in `pipelines.evaluate.scorers`."""

    def __init__(self, benchmark: Benchmark, rules: Rules) -> None:
        self.faults = Faults()
        self.predictions = 0
        self._rules = rules
        self._samples: Samples[Asked] = Samples()
        self._asked: list[Asked] = []
        for number, sample in enumerate(benchmark.samples()):
            self._asked.append(asked_of(sample, number))
            self._samples.add(sample, self._asked[-1])
        self._found: dict[tuple[int, int], bytes] = {}

    def add(self, place: str, record: Any, folder: Folder | None = None) -> None:
        try:
            self._add(checked_record(record))
            self.predictions += 1
        except ReasonError as error:
            self.faults.add(error.reason, f"{place}: {error}")

    def _add(self, record: Mapping[str, Any]) -> None:
        asked = self._samples.find(record)
        key = (asked.number, condition_of(record, asked))
        rle = mask_of(record, asked.height, asked.width)
        if key in self._found:
            rle = masks.union([self._found[key], rle], asked.height, asked.width)
        self._found[key] = rle

    def result(self) -> dict[str, Any]:
        groups = sorted({asked.group for asked in self._asked})
        scores = {ALL: self._scores(groups)}
        if len(groups) > 1:
            scores |= {group: self._scores([group]) for group in groups}
        answered = len({number for number, _ in self._found})
        return {"samples": len(self._asked), "samples_with_predictions": answered, "scores": scores}

    def _scores(self, groups: list[str]) -> dict[str, Any]:
        """A condition without a prediction is one for which nothing was found; X-SAM's convention leaves it out."""
        published = self._rules.convention == "xsam"
        overlaps = GeneralizedOverlaps()
        for asked in self._asked:
            if asked.group not in groups:
                continue
            nothing = empty(asked.height, asked.width)
            for condition, truth in enumerate(asked.truths):
                key = (asked.number, condition)
                if key in self._found or not published:
                    overlaps.add(key, truth, self._found.get(key, nothing), asked.height, asked.width)
        answered = sum(self._asked[number].group in groups for number, _ in self._found)
        return score_json(overlaps.result("xsam" if published else "all"), answered)
