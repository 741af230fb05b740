"""Scoring from a program, such as a training loop, and from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import dataengine
from dataengine.errors import ReasonError, UserError
from pipelines.evaluate.benchmark import open_benchmark
from pipelines.evaluate.predictions import FAULTS, PredictionError, Source
from pipelines.evaluate.scorers import Rules, scorer_of

BOTH = "both"  # conventions: the standard one, and X-SAM's beside it


class Evaluator:
    """Takes predictions for a benchmark, and gives scores over all its samples.

    evaluator = Evaluator("bench", "vgdseg")
    evaluator.add(sample_id, masks=masks, scores=scores, categories=categories, prompt="point")
    print(evaluator.result()["scores"])
    """

    def __init__(
        self,
        benchmark: str,
        task: str,
        rules: Rules | None = None,
        split: str | None = None,
        limit: int | None = None,
    ) -> None:
        """
        Args:
            limit: only the first so many samples are scored; None for all.
        Raises:
            DatasetError, LockError, UserError: see `open_benchmark` and `scorer_of`.
        """
        self.benchmark = open_benchmark(benchmark, task, split, limit)
        self._rules = rules or Rules()
        conventions = ("standard", "xsam") if self._rules.convention == BOTH else (self._rules.convention,)
        self._scorers = [scorer_of(self.benchmark, replace(self._rules, convention=name)) for name in conventions]

    def add(
        self,
        sample_id: str,
        *,
        masks: Any,
        scores: Any = None,
        categories: Any = None,
        conditions: Any = None,
        prompt: str | None = None,
    ) -> None:
        """The masks of one sample. Where n is 0, nothing was found: the kind of prompt counts as answered.

        Args:
            masks: (n, height, width) bool or whole numbers, of which all but 0 are set, on the canvas of the sample; an
                empty list where there is none. Like all arrays here a numpy array, a list, or a torch tensor on any
                device. scores: (n,) float.
            categories: (n,) category ids, or conditions: (n,) indices of the sample's conditions, as the task has it.
            prompt: the kind of prompt that was shown.
        Raises:
            PredictionError: an array has another shape or type, or a prediction cannot be scored. The latter are
                counted too, so that `result` raises as well, unless faults are to be excluded.
        """
        from dataengine.masks import encode

        maps = _maps(masks, sample_id)
        columns: dict[str, list[Any]] = {
            name: _column(values, len(maps), f"{sample_id}: {argument}")
            for name, argument, values in (
                ("score", "scores", scores),
                ("category_id", "categories", categories),
                ("condition", "conditions", conditions),
            )
            if values is not None
        }
        if not len(maps):
            try:
                for scorer in self._scorers:
                    scorer.add_nothing(sample_id, prompt)
            except ReasonError as error:
                raise PredictionError(f"{sample_id}: {error}") from None
        before = self._scorers[0].faults.wrong
        for number, mask in enumerate(maps):
            record: dict[str, Any] = {name: values[number] for name, values in columns.items()}
            record["sample_id"] = sample_id
            record["segmentation"] = {"size": list(mask.shape), "counts": encode(mask)}
            if prompt is not None:
                record["prompt"] = prompt
            self.add_record(f"masks[{number}]", record)
        wrong = self._scorers[0].faults.wrong - before
        if wrong:
            reason, message = self._scorers[0].faults.last
            raise PredictionError(
                f"{sample_id}: {wrong:,} masks cannot be scored: {reason} ({FAULTS[reason]}): {message}"
            )

    def add_record(self, place: str, record: Any, folder: Any = None) -> None:
        """One prediction as a file holds it; what is wrong with it is told by `result`.

        Args:
            place: where it stands, for messages. folder: files that it names are below it.
        """
        for scorer in self._scorers:
            scorer.add(place, record, folder)

    def result(self, *, exclude_faults: bool = False) -> dict[str, Any]:
        """Scores and counts as JSON values; see docs/evaluate.md.

        Raises:
            PredictionError: a prediction cannot be scored, and `exclude_faults` is not set.
        """
        first, *others = self._scorers
        first.faults.check(exclude_faults)
        result = {
            "benchmark": self.benchmark.id,
            "name": self.benchmark.name,
            "task": self.benchmark.task,
            "split": self.benchmark.split,
            "convention": self._rules.convention,
            "dataengine": dataengine.__version__,
            "predictions": first.predictions,
            "excluded": first.faults.to_json(),
            **first.result(),
        }
        if others:
            result["xsam"] = others[0].result()
        return result


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
    pictures = source.pictures
    for place, record in source.records():
        if source.benchmark not in (None, evaluator.benchmark.id):
            break
        evaluator.add_record(place, record, pictures)
    if source.benchmark not in (None, evaluator.benchmark.id):
        raise PredictionError(
            f"{predictions}: made for the benchmark {source.benchmark:.80}, not for {evaluator.benchmark.id} "
            f"({evaluator.benchmark.name})"
        )
    result = evaluator.result(exclude_faults=exclude_faults)
    return {**result, "names_benchmark": source.benchmark is not None}


# --- arrays ----------------------------------------------------------------------------------------------------------


def _maps(values: Any, sample_id: str) -> np.ndarray:
    """(n, height, width) bool."""
    if hasattr(values, "detach") and not _is_whole(str(values.dtype)):  # a tensor, that need not be copied to say so
        raise _float_masks(sample_id, values.dtype)
    maps = _array(values)
    if maps.shape == (0,):  # an empty list
        return np.zeros((0, 0, 0), bool)
    if maps.ndim != 3:
        raise PredictionError(f"{sample_id}: masks must have the shape (n, height, width), not {maps.shape}")
    if maps.dtype != bool:
        if maps.dtype.kind not in "iu" and maps.size:
            raise _float_masks(sample_id, maps.dtype)
        maps = maps != 0
    return maps


def _is_whole(dtype: str) -> bool:
    return "bool" in dtype or "int" in dtype


def _float_masks(sample_id: str, dtype: Any) -> UserError:
    return PredictionError(
        f"{sample_id}: masks must be bool or whole numbers, not {dtype}: say what is set, as in `logits > 0`"
    )


def _column(values: Any, number: int, what: str) -> list[Any]:
    column = _array(values)
    if column.shape != (number,):
        raise PredictionError(f"{what} must have the shape ({number},), one for each mask, not {column.shape}")
    listed: list[Any] = column.tolist()
    return listed


def _array(values: Any) -> np.ndarray:
    """An array of what numpy takes, or of a tensor on any device; it may be half precision, which numpy lacks."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.float() if "bfloat16" in str(values.dtype) else values).numpy()
    elif isinstance(values, Sequence) and any(hasattr(value, "detach") for value in values):
        values = [_array(value) for value in values]
    return np.asarray(values)
