"""Panoptic variant of `genseg` and `ovseg`: PQ, SQ and RQ over all categories, things and stuff."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dataengine.errors import ReasonError
from dataengine.metrics import panoptic
from dataengine.metrics.panoptic import PanopticQuality, Tally
from dataengine.store.files import Folder
from pipelines.evaluate import maps
from pipelines.evaluate.generic import Asked
from pipelines.evaluate.predictions import Faults, mask_of, number_of
from pipelines.evaluate.scorers import Rules

MAX_SEGMENTS = 100_000  # of one prediction


class Panoptic:
    """See `Part` in `pipelines.evaluate.generic`."""

    def __init__(self, things: Mapping[int, bool], rules: Rules, faults: Faults) -> None:
        self._things = dict(things)
        self._rules = rules
        self._faults = faults
        self._asked: dict[int, Asked] = {}
        self._tallies: dict[int, dict[int, Tally]] = {}

    def ask(self, asked: Asked) -> None:
        self._asked[asked.number] = asked
        for category in asked.categories:
            self._things.setdefault(category, True)

    def add(self, asked: Asked, place: str, record: Mapping[str, Any], folder: Folder | None) -> None:
        if asked.number in self._tallies:
            raise ReasonError("duplicate", f"{asked.name}: a second panoptic prediction")
        listed = _listed(record)
        if record.get("file_name") is not None:
            found, segments = _from_png(asked, record, listed, folder)
        else:
            found, segments = _from_masks(asked, listed)
        kept = [segment for segment in segments if segment.category in asked.categories]
        dropped = [segment for segment in segments if segment.category not in asked.categories]
        truth, real = _truth(asked)
        try:
            if dropped:  # what is wrong with them is said even so
                panoptic.compare(truth, real, found, segments, {one.category for one in (*real, *segments)})
                found = np.where(np.isin(found, [one.id for one in dropped]), panoptic.VOID, found)
            tallies = panoptic.compare(truth, real, found, kept, asked.categories)
        except ReasonError as error:
            raise ReasonError("bad_mask", str(error)) from None
        self._tallies[asked.number] = tallies
        for one in dropped:
            self._faults.add("not_asked", f"{place}: {asked.name} does not ask for category {one.category}")

    def result(self) -> dict[str, Any]:
        published = self._rules.convention == "xsam"
        scores = PanopticQuality(self._things, "xsam" if published else "all_images")
        for number, asked in self._asked.items():
            tallies = self._tallies.get(number)
            if tallies is not None:
                scores.add(number, tallies)
            else:
                scores.add(number, panoptic.missed(_truth(asked)[1], asked.categories), missing=True)
        made = scores.result().to_json()
        counted = made.pop("num_images")
        del made["num_missing"]
        return {**made, "samples": counted, "samples_with_predictions": len(self._tallies)}


def _listed(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    listed = record.get("segments_info")
    if not isinstance(listed, list) or not all(isinstance(segment, dict) for segment in listed):
        raise ReasonError("bad_record", f"segments_info must be a list of objects, not {listed!r:.80}")
    if len(listed) > MAX_SEGMENTS:
        raise ReasonError(
            "bad_record", f"segments_info lists {len(listed):,} segments; at most {MAX_SEGMENTS:,} can be"
        )
    return listed


def _from_png(
    asked: Asked, record: Mapping[str, Any], listed: Sequence[Mapping[str, Any]], folder: Folder | None
) -> tuple[np.ndarray, list[panoptic.Segment]]:
    """The map of ids and the segments of a PNG."""
    segments = [panoptic.Segment(id=number_of(one, "id"), category=number_of(one, "category_id")) for one in listed]
    return maps.segment_ids(folder, record["file_name"], asked.height, asked.width), segments


def _from_masks(asked: Asked, listed: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, list[panoptic.Segment]]:
    """The map of ids and the segments of masks, which get numbers from 1."""
    rles = [(mask_of(one, asked.height, asked.width), number) for number, one in enumerate(listed, start=1)]
    segments = [
        panoptic.Segment(id=number, category=number_of(one, "category_id"))
        for number, one in enumerate(listed, start=1)
    ]
    return maps.painted(rles, panoptic.VOID, asked.height, asked.width, disjoint=True).view(np.uint32), segments


def _truth(asked: Asked) -> tuple[np.ndarray, list[panoptic.Segment]]:
    """The map of ids and the segments of the ground truth; ignored pixels are void, as are those of no segment."""
    rles = [(segment.rle, number) for number, segment in enumerate(asked.truth, start=1)]
    if asked.ignore is not None:
        rles.append((asked.ignore, panoptic.VOID))
    painted = maps.painted(rles, panoptic.VOID, asked.height, asked.width)
    areas = np.bincount(painted.ravel(), minlength=len(asked.truth) + 1).tolist()
    segments = [
        panoptic.Segment(id=number, category=segment.category, area=areas[number], crowd=segment.crowd)
        for number, segment in enumerate(asked.truth, start=1)
        if areas[number]
    ]
    return painted.view(np.uint32), segments
