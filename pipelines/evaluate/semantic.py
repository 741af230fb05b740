"""Semantic variant of `genseg` and `ovseg`: mIoU, fwIoU, mAcc and pAcc from one confusion matrix of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dataengine import masks
from dataengine.errors import ReasonError
from dataengine.metrics.semantic import Confusion
from dataengine.store.files import Folder
from pipelines.evaluate import maps
from pipelines.evaluate.generic import Asked
from pipelines.evaluate.predictions import Faults, mask_of, number_of
from pipelines.evaluate.samples import empty
from pipelines.evaluate.scorers import Rules


class Semantic:
    """See `Part` in `pipelines.evaluate.generic`. Classes are the source's categories, in ascending order of ids."""

    def __init__(self, things: Mapping[int, bool], rules: Rules, faults: Faults) -> None:
        self._rules = rules
        self._faults = faults
        self._known = set(things)
        self._asked: dict[int, Asked] = {}
        self._from_maps: dict[int, bool] = {}  # answered samples; whether by a map, and so counted already
        self._counted: Confusion | None = None
        self._masks: dict[int, dict[int, bytes]] = {}  # of samples answered by masks: by category
        self._covered: dict[int, bytes] = {}  # the union of those masks

    def ask(self, asked: Asked) -> None:
        self._asked[asked.number] = asked
        self._known |= asked.categories

    def add(self, asked: Asked, place: str, record: Mapping[str, Any], folder: Folder | None) -> None:
        by_map = record.get("file_name") is not None
        if asked.number in self._from_maps and (by_map or self._from_maps[asked.number]):
            raise ReasonError("duplicate", f"{asked.name}: a second semantic prediction")
        if by_map:
            self._add_map(asked, place, record, folder)
        else:
            self._add_mask(asked, record)
        self._from_maps[asked.number] = by_map

    def _add_map(self, asked: Asked, place: str, record: Mapping[str, Any], folder: Folder | None) -> None:
        """Count a PNG of category ids."""
        labels, unlabelled = maps.labels(folder, record["file_name"], asked.height, asked.width)
        values = np.flatnonzero(np.bincount(labels.ravel())).tolist()
        strange = [value for value in values if value not in self._known and value != unlabelled]
        if strange:
            raise ReasonError("bad_file", f"{asked.name}: {strange[0]} is no category; {unlabelled} stands for none")
        classes = self._classes()
        table = np.full(values[-1] + 1, len(classes), dtype=np.int32)
        for value in values:
            if value in asked.categories:
                table[value] = classes[value]
            elif value in self._known:
                self._faults.add("not_asked", f"{place}: {asked.name} does not ask for category {value}")
        if self._counted is None:
            self._counted = self._empty()
        self._counted.add(self._truth(asked), table[labels])

    def _add_mask(self, asked: Asked, record: Mapping[str, Any]) -> None:
        """Keep the mask of one category."""
        category = number_of(record, "category_id")
        rle = mask_of(record, asked.height, asked.width)
        if category not in asked.categories:
            raise ReasonError("not_asked", f"{asked.name} does not ask for category {category}")
        known = self._masks.get(asked.number, {})
        if category in known:
            raise ReasonError("duplicate", f"{asked.name}: a second mask for category {category}")
        size = asked.height, asked.width
        covered = self._covered.get(asked.number) or empty(*size)
        if masks.area(masks.intersection([covered, rle], *size), *size):
            raise ReasonError("overlap", f"{asked.name}: the mask of category {category} overlaps another one")
        self._masks.setdefault(asked.number, {})[category] = rle
        self._covered[asked.number] = masks.union([covered, rle], *size)

    def result(self) -> dict[str, Any]:
        """Over all samples; those without a prediction have no class anywhere. X-SAM's convention leaves them out."""
        confusion = self._empty()
        if self._counted is not None:
            confusion.merge(self._counted)
        published, classes = self._rules.convention == "xsam", self._classes()
        for number, asked in self._asked.items():
            if self._from_maps.get(number) or (published and number not in self._from_maps):
                continue
            rles = [(rle, classes[category]) for category, rle in self._masks.get(number, {}).items()]
            confusion.add(self._truth(asked), maps.painted(rles, len(classes), asked.height, asked.width))
        made = confusion.result().to_json()
        names = list(classes)
        per_category = {str(names[int(label)]): scores for label, scores in made.pop("per_class").items()}
        counted = len(self._from_maps) if published else len(self._asked)
        return {
            **made,
            "per_category": per_category,
            "samples": counted,
            "samples_with_predictions": len(self._from_maps),
        }

    def _empty(self) -> Confusion:
        return Confusion(len(self._known), ignore=len(self._known))

    def _classes(self) -> dict[int, int]:
        """From category id to class."""
        return {category: label for label, category in enumerate(sorted(self._known))}

    def _truth(self, asked: Asked) -> np.ndarray:
        """(H, W) classes; pixels that are ignored, or of no object, are of none."""
        classes = self._classes()
        rles = [(thing.rle, classes[thing.category]) for thing in asked.truth]
        if asked.ignore is not None:
            rles.append((asked.ignore, len(classes)))
        return maps.painted(rles, len(classes), asked.height, asked.width)
