"""Quarantined records page by page. Which there are is kept in a few bytes each; the rest is read when it is shown."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from dataengine.store.columns import rows
from dataengine.store.dataset import Dataset
from dataengine.store.files import public

if TYPE_CHECKING:
    import pyarrow.parquet as pq

FIELDS = ("source", "split", "unit", "file", "record", "group", "reason", "message", "payload")
SHOWN = 4000  # characters of a text that are shown; a payload may have a million
ROWS_A_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """reason, source: (records,) codes. reasons, sources: their names. starts: (files + 1,) first record of each."""

    reason: np.ndarray
    source: np.ndarray
    reasons: list[str]
    sources: list[str]
    starts: list[int]


class Quarantine:
    """The quarantined records of a dataset, file by file in the manifest's order."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._files: list[str] = [entry["name"] for entry in dataset.manifest["quarantine"]]
        self._index: Index | None = None
        self._lock = threading.Lock()

    def page(self, reasons: tuple[str, ...], sources: tuple[str, ...], offset: int, limit: int) -> dict[str, Any]:
        """Some records, and how many there are by reason and by source, each of those that pass the other filter.

        Raises:
            DatasetError: a file cannot be read.
        """
        with self._lock:
            if self._index is None:
                self._index = self._read_index()
            index = self._index
            by_reason = _among(index.reason, index.reasons, reasons)
            by_source = _among(index.source, index.sources, sources)
            chosen = np.flatnonzero(by_reason & by_source)
            return {
                "total": len(chosen),
                "reasons": _counts(index.reason[by_source], index.reasons),
                "sources": _counts(index.source[by_reason], index.sources),
                "replay": f"dataengine replay {shlex.quote(public(self._dataset.folder.uri))}",
                "rows": list(self._records(index, chosen[offset : offset + limit].tolist())),
            }

    def _read_index(self) -> Index:
        names: dict[str, dict[str, int]] = {"reason": {}, "source": {}}
        codes: dict[str, list[np.ndarray]] = {name: [np.zeros(0, dtype=np.uint16)] for name in names}
        counts = []
        for name in self._files:
            with self._opened(name) as file:
                table = file.read(columns=list(names), use_threads=False)
            counts.append(table.num_rows)
            for key, known in names.items():
                texts = rows(table).texts(key)
                mine = [known.setdefault(text or "", min(len(known), 65_535)) for text in (*texts.names, None)]
                codes[key].append(np.array(mine, dtype=np.uint16)[texts.codes])
        return Index(
            reason=np.concatenate(codes["reason"]),
            source=np.concatenate(codes["source"]),
            reasons=list(names["reason"]),
            sources=list(names["source"]),
            starts=[0, *accumulate(counts)],
        )

    def _records(self, index: Index, chosen: list[int]) -> Iterator[dict[str, Any]]:
        for number, name in enumerate(self._files):
            start, stop = index.starts[number], index.starts[number + 1]
            wanted = [record - start for record in chosen if start <= record < stop]
            if not wanted:
                continue
            first = 0
            with self._opened(name) as file:
                # in small batches: payloads of a file may be larger than memory
                for batch in file.iter_batches(ROWS_A_BATCH, columns=list(FIELDS), use_threads=False):
                    for record in wanted:
                        if first <= record < first + batch.num_rows:
                            yield _shown(batch.slice(record - first, 1).to_pylist()[0])
                    first += batch.num_rows
                    if first > wanted[-1]:
                        break

    @contextmanager
    def _opened(self, name: str) -> Iterator[pq.ParquetFile]:
        import pyarrow.parquet as pq

        with self._dataset.opened(name) as file:
            yield pq.ParquetFile(file)


def _among(codes: np.ndarray, names: list[str], wanted: tuple[str, ...]) -> np.ndarray:
    """(records,) bool; all where nothing is wanted."""
    if not wanted:
        return np.ones(len(codes), dtype=bool)
    return np.isin(codes, [code for code, name in enumerate(names) if name in wanted])


def _counts(codes: np.ndarray, names: list[str]) -> list[tuple[str, int]]:
    found = zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True)
    return sorted(((name, number) for name, number in found if number), key=lambda pair: (-pair[1], pair[0]))


def _shown(record: dict[str, str | None]) -> dict[str, Any]:
    """A record with its texts cut. left: characters of the payload that are left out."""
    texts = {name: record[name] or "" for name in FIELDS}
    return {
        **{name: text[:SHOWN] for name, text in texts.items()},
        "left": max(len(texts["payload"]) - SHOWN, 0),
    }
