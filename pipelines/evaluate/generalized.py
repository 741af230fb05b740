"""`grefseg`: a condition wants all of its targets as one mask, or nothing. gIoU, cIoU, N-acc and T-acc."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataengine import masks
from dataengine.metrics.overlap import GeneralizedOverlaps
from dataengine.store.files import Folder
from pipelines.evaluate import scorers
from pipelines.evaluate.benchmark import Benchmark
from pipelines.evaluate.predictions import mask_of
from pipelines.evaluate.referring import ALL, asked_of, condition_of, score_json
from pipelines.evaluate.samples import Samples, empty
from pipelines.evaluate.scorers import Rules


class Scorer(scorers.Scorer):
    """See `scorers.Scorer`."""

    def __init__(self, benchmark: Benchmark, rules: Rules) -> None:
        super().__init__()
        self._rules = rules
        self._samples = Samples(benchmark, asked_of)
        self._found: dict[tuple[int, int], bytes] = {}

    def _take(self, record: Mapping[str, Any], place: str, folder: Folder | None) -> None:
        asked = self._samples.find(record)
        key = (asked.number, condition_of(record, asked))
        rle = mask_of(record, asked.height, asked.width)
        if key in self._found:
            rle = masks.union([self._found[key], rle], asked.height, asked.width)
        self._found[key] = rle

    def add_nothing(self, sample_id: str, prompt: str | None) -> None:
        self._samples.find({"sample_id": sample_id})

    def result(self) -> dict[str, Any]:
        groups = sorted({asked.group for asked in self._samples})
        scores = {ALL: self._scores(groups)}
        if len(groups) > 1:
            scores |= {group: self._scores([group]) for group in groups}
        answered = len({number for number, _ in self._found})
        return {"samples": len(self._samples), "samples_with_predictions": answered, "scores": scores}

    def _scores(self, groups: list[str]) -> dict[str, Any]:
        """A condition without a prediction is one for which nothing was found; X-SAM's convention leaves it out."""
        published = self._rules.convention == "xsam"
        overlaps = GeneralizedOverlaps()
        for asked in self._samples:
            if asked.group not in groups:
                continue
            nothing = empty(asked.height, asked.width)
            for condition, truth in enumerate(asked.truths):
                key = (asked.number, condition)
                if key in self._found or not published:
                    overlaps.add(key, truth, self._found.get(key, nothing), asked.height, asked.width)
        answered = sum(self._samples[number].group in groups for number, _ in self._found)
        return score_json(overlaps.result("xsam" if published else "all"), answered)
