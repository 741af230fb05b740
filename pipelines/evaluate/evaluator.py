"""Scoring from a program, such as a training loop, and from a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import dataengine
from pipelines.evaluate.benchmark import open_benchmark
from pipelines.evaluate.predictions import PredictionError, Source
from pipelines.evaluate.scorers import Rules, scorer_of


class Evaluator:
    """Takes predictions for a benchmark, and gives scores over all its samples.

    evaluator = Evaluator("bench", "vgdseg")
    evaluator.add(sample_id, masks=masks, scores=scores, categories=categories, prompt="point")
    print(evaluator.result()["scores"])
    """

    def __init__(self, benchmark: str, task: str, rules: Rules | None = None, split: str | None = None) -> None:
        """Raises DatasetError, LockError, UserError: see `open_benchmark` and `scorer_of`."""
        self.benchmark = open_benchmark(benchmark, task, split)
        self._rules = rules or Rules()
        self._scorer = scorer_of(self.benchmark, self._rules)

    def add(
        self,
        sample_id: str,
        *,
        masks: Any,
        scores: Any = None,
        categories: Sequence[int] | None = None,
        conditions: Sequence[int] | None = None,
        prompt: str | None = None,
    ) -> None:
        """The masks of one sample.

        Args:
            masks: (n, height, width) bool, array or CPU tensor. scores: (n,) float. categories: (n,) category ids, or
            conditions: (n,) indices of the sample's conditions. prompt: the kind that was shown.
        """
        from dataengine.masks import encode

        maps = np.asarray(masks)
        for number, mask in enumerate(maps):
            record: dict[str, Any] = {
                "sample_id": sample_id,
                "segmentation": {"size": list(mask.shape), "counts": encode(np.asarray(mask, dtype=bool))},
            }
            if scores is not None:
                record["score"] = float(scores[number])
            if categories is not None:
                record["category_id"] = int(categories[number])
            if conditions is not None:
                record["condition"] = int(conditions[number])
            if prompt is not None:
                record["prompt"] = prompt
            self.add_record(f"{sample_id}[{number}]", record)

    def add_record(self, place: str, record: Any, folder: Any = None) -> None:
        """One prediction as a file holds it. place: where it stands, for messages."""
        self._scorer.add(place, record, folder)

    def result(self, *, exclude_faults: bool = False) -> dict[str, Any]:
        """Scores and counts as JSON values.

        Raises:
            PredictionError: a prediction cannot be scored, and `exclude_faults` is not set.
        """
        self._scorer.faults.check(exclude_faults)
        return {
            "benchmark": self.benchmark.id,
            "name": self.benchmark.name,
            "task": self.benchmark.task,
            "split": self.benchmark.split,
            "convention": self._rules.convention,
            "dataengine": dataengine.__version__,
            "predictions": self._scorer.predictions,
            "excluded": self._scorer.faults.to_json(),
            **self._scorer.result(),
        }


def evaluate(
    benchmark: str,
    task: str,
    predictions: str,
    rules: Rules | None = None,
    *,
    split: str | None = None,
    exclude_faults: bool = False,
) -> dict[str, Any]:
    """Score a file of predictions; see `Evaluator.result`.

    Raises:
        PredictionError: the file cannot be read, was made for another benchmark, or holds what cannot be scored.
    """
    evaluator = Evaluator(benchmark, task, rules, split)
    source = Source(predictions)
    for place, record in source.records():
        evaluator.add_record(place, record, source.folder)
    if source.benchmark is not None and source.benchmark != evaluator.benchmark.id:
        raise PredictionError(
            f"{predictions}: made for the benchmark {source.benchmark}, not for {evaluator.benchmark.id} "
            f"({evaluator.benchmark.name})"
        )
    result = evaluator.result(exclude_faults=exclude_faults)
    return {**result, "names_benchmark": source.benchmark is not None}
