"""Instances of `genseg` and `ovseg`: mask AP and AR, as COCO defines them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dataengine.errors import ReasonError
from dataengine.metrics import ap
from dataengine.store.files import Folder
from pipelines.evaluate.generic import Asked
from pipelines.evaluate.predictions import mask_of, number_of, score_of
from pipelines.evaluate.scorers import Rules

Row = tuple[int, int, float, bytes]  # number of the sample, category, score, mask


class Instances:
    """See `Part` in `pipelines.evaluate.generic`."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._asked: dict[int, Asked] = {}
        self._found: set[Row] = set()

    def ask(self, asked: Asked) -> None:
        self._asked[asked.number] = asked

    def add(self, asked: Asked, place: str, record: Mapping[str, Any], folder: Folder | None) -> None:
        category = number_of(record, "category_id")
        row = (asked.number, category, score_of(record), mask_of(record, asked.height, asked.width))
        if category not in asked.categories:
            raise ReasonError("not_asked", f"{asked.name} does not ask for category {category}")
        if row in self._found:
            raise ReasonError("duplicate", f"{asked.name}: the same mask with the same score for category {category}")
        self._found.add(row)

    def result(self) -> dict[str, Any]:
        """Over all samples; with X-SAM's convention over those with a prediction, and without crowds."""
        published = self._rules.convention == "xsam"
        answered = {row[0] for row in self._found}
        counted = [asked for asked in self._asked.values() if not published or asked.number in answered]
        truth = [(asked.number, thing) for asked in counted for thing in asked.truth if not (published and thing.crowd)]
        scores = ap.average_precision(
            ap.Instances(
                image=_column((number for number, _ in truth), np.int64),
                category=_column((thing.category for _, thing in truth), np.int64),
                rles=[thing.rle for _, thing in truth],
                area=_column((thing.area for _, thing in truth), np.float64),
                crowd=_column((thing.crowd for _, thing in truth), np.bool_),
            ),
            columns(self._found),
            {asked.number: (asked.height, asked.width) for asked in counted},
            categories=sorted({category for asked in self._asked.values() for category in asked.categories}),
            backend=self._rules.backend,
        )
        return {**scores.to_json(), "samples": len(counted), "samples_with_predictions": len(answered)}


def columns(rows: Iterable[Row]) -> ap.Instances:
    """Predictions as columns, in an order of their own: of equal scores, that of the file does not matter."""
    ordered = sorted(rows)
    return ap.Instances(
        image=_column((row[0] for row in ordered), np.int64),
        category=_column((row[1] for row in ordered), np.int64),
        score=_column((row[2] for row in ordered), np.float64),
        rles=[row[3] for row in ordered],
    )


def _column(values: Iterable[Any], dtype: Any) -> np.ndarray:
    return np.array(list(values), dtype=dtype)
