"""What a viewer lists of one dataset: which rows pass its filters, in which order, and a line about each."""

from __future__ import annotations

import contextlib
import math
import random
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataengine.store.columns import leaves
from dataengine.store.commits import DatasetError
from dataengine.store.dataset import Dataset
from dataengine.store.files import public
from dataengine.view import compare
from dataengine.view.catalog import Catalog, Filters
from dataengine.view.compare import Comparison
from dataengine.view.quarantine import Quarantine
from dataengine.view.reader import Reader

WAIT_S = 0.7  # for a search; then it is answered with what was searched
KEPT_ANSWERS = 4
LINE = 120  # code points of a conversation's start
_FIELDS = ("sample_id", "task", "variant", "image.path", "turns.role", "turns.text", "objects.area", "conditions.start")
_MARKERS = re.compile(r"</?(?:p|image|SEG)>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """numbers: (n,) of the rows, in order. ready: share of the dataset's rows that this is the answer for."""

    numbers: Sequence[int] | np.ndarray
    ready: float


class Listing:
    """One opened dataset. comparison: with another one; side: which of the two this is."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.reader = Reader(dataset)
        self.catalog = Catalog(self.reader)
        self.quarantine = Quarantine(dataset)
        self.comparison: Comparison | None = None
        self.side = 0
        self._kept: OrderedDict[tuple[Any, ...], Found] = OrderedDict()
        self._lock = threading.Lock()

    def about(self) -> dict[str, Any]:
        """What a page says of the dataset."""
        manifest = self.dataset.manifest
        quarantined = manifest["counts"]["records"]["quarantined"]
        return {
            "name": manifest["recipe"]["name"],
            "uri": public(self.dataset.folder.uri),
            "version": manifest["version"],
            "samples": self.reader.num_rows,
            "quarantined": sum(sum(reasons.values()) for reasons in quarantined.values()),
            "ready": self.catalog.ready,
            "damaged": [
                {"shard": self.reader.shards[index]["name"], "error": message}
                for index, message in sorted(self.catalog.damaged.items())
            ],
            "facets": self.catalog.facets(),
        }

    def find(self, filters: Filters, key: str = "number", descending: bool = False) -> Found:
        """The rows that pass. A search that takes long answers with a share of them, and goes on when asked again."""
        total = self.reader.num_rows
        if filters == Filters() and key == "number":
            return Found(numbers=range(total - 1, -1, -1) if descending else range(total), ready=1.0)
        mask, ready = self.catalog.search(filters, WAIT_S)
        if filters.change and self.comparison is not None:
            codes = [compare.CODES[change] for change in filters.change]
            mask &= np.isin(self.comparison.sides[self.side].change[: len(mask)], codes)
            ready = min(ready, 1.0 if self.comparison.joined.is_set() else 0.0)
        state = (filters, key, descending, ready, self._compared() if key == "change" or filters.change else None)
        with self._lock:
            if state in self._kept:
                self._kept.move_to_end(state)
                return self._kept[state]
        found = Found(numbers=self._ordered(np.flatnonzero(mask), key, descending), ready=ready)
        with self._lock:
            self._kept[state] = found
            while len(self._kept) > KEPT_ANSWERS:
                self._kept.popitem(last=False)
        return found

    def page(
        self, filters: Filters, key: str, descending: bool, offset: int, limit: int, around: int | None
    ) -> dict[str, Any]:
        """A page of the rows that pass. around: number of a row; the page that holds it is given, if there is one."""
        found = self.find(filters, key, descending)
        if around is not None:
            place = _place(found.numbers, around)
            offset = offset if place is None else place // limit * limit
        chosen = [int(number) for number in found.numbers[offset : offset + limit]]
        return {
            "total": len(found.numbers),
            "offset": offset,
            "ready": found.ready,
            "rows": self._lines(chosen, key),
        }

    def draw(self, filters: Filters) -> int | None:
        """A row that passes, or None."""
        numbers = self.find(filters).numbers
        return int(random.SystemRandom().choice(numbers)) if len(numbers) else None

    def number_of(self, sample_id: str) -> int:
        """Number of the row that has an id.

        Raises:
            DatasetError: there is none.
        """
        start = self.catalog.rows  # asked for first: rows that are catalogued meanwhile are read, not missed
        for number in self.catalog.candidates(sample_id):
            if self.reader.values(number, ("sample_id",))["sample_id"] == sample_id:
                return number
        for index, shard in enumerate(self.reader.shards):  # what is not catalogued yet
            if self.reader.starts[index] < start or not sample_id.startswith(f"{shard['source']}/{shard['split']}/"):
                continue
            with contextlib.suppress(DatasetError, OSError):  # the next one may hold it; catalogued, it is told
                place = self._place_of(sample_id, index)
                if place is not None:
                    return place
        raise DatasetError(f"no sample {sample_id!r}")

    def _place_of(self, sample_id: str, shard: int) -> int | None:
        """Number of the row of a shard that has an id, read from the shard."""
        first = self.reader.starts[shard]
        for table in self.reader.groups(shard, ("sample_id",)):
            ids = table.column("sample_id").to_pylist()
            if sample_id in ids:
                return first + ids.index(sample_id)
            first += len(ids)
        return None

    def _compared(self) -> float:
        return 0.0 if self.comparison is None else self.comparison.ready

    def _ordered(self, chosen: np.ndarray, key: str, descending: bool) -> np.ndarray:
        if key == "number":
            ordered = chosen[::-1] if descending else chosen
        elif key == "change":
            values = self._ious(chosen)
            ordered = chosen[np.argsort(-values if descending else values, kind="stable")]
        else:
            ordered = self.catalog.order(chosen, key, descending)
        return ordered.astype(np.uint32 if self.reader.num_rows < 2**32 else np.int64)

    def _ious(self, chosen: np.ndarray) -> np.ndarray:
        if self.comparison is None:
            return np.full(len(chosen), np.nan)
        ious: np.ndarray = self.comparison.sides[self.side].iou[chosen]
        return ious

    def _lines(self, chosen: Sequence[int], key: str) -> list[dict[str, Any]]:
        known = np.array(chosen, dtype=np.int64)
        if key == "number":
            values: list[float | None] = [None] * len(chosen)
        else:
            numbers = self._ious(known) if key == "change" else self.catalog.value(known, key)
            values = [None if math.isnan(value) else value for value in numbers.tolist()]
        lines = []
        for number, value in zip(chosen, values, strict=True):
            line = {"number": number, **self._line(number), "value": value}
            if self.comparison is not None:
                line["change"] = compare.NAMES.get(int(self.comparison.sides[self.side].change[number]))
            lines.append(line)
        return lines

    def _line(self, number: int) -> dict[str, Any]:
        """About one row; of a damaged one, why it cannot be read."""
        shard = self.reader.shards[self.reader.shard_of(number)]
        line = {"source": shard["source"], "split": shard["split"]}
        try:
            row = self.reader.values(number, tuple(leaves(*_FIELDS)))
            return {
                **line,
                "id": row["sample_id"],
                "task": row["task"],
                "variant": row["variant"],
                "picture": row["image"] is not None,
                "objects": len(row["objects"] or ()),
                "conditions": len(row["conditions"] or ()),
                "text": _start(row["turns"] or ()),
            }
        except FileNotFoundError:
            error = f"{shard['name']} is gone"
        except Exception as damage:  # whatever a file holds that is no shard
            error = f"{shard['name']} cannot be read: {type(damage).__name__}"
        empty = {"id": "", "task": "", "variant": None, "picture": False, "objects": 0, "conditions": 0, "text": ""}
        return {**line, **empty, "error": error}


def _start(turns: Iterable[dict[str, Any]]) -> str:
    """The start of what the user says first."""
    text = next((turn["text"] or "" for turn in turns if turn["role"] == "user"), "")
    return " ".join(_MARKERS.sub("", text[: 8 * LINE]).replace("<region>", "▢").split())[:LINE]


def _place(numbers: Sequence[int] | np.ndarray, number: int) -> int | None:
    if isinstance(numbers, range):
        return numbers.index(number) if number in numbers else None
    found = np.flatnonzero(np.asarray(numbers) == number)
    return int(found[0]) if len(found) else None
