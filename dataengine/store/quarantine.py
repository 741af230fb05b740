"""Quarantine: records that could not be built, kept with the reason and what they are, so that they can be replayed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataengine.errors import UserError
from dataengine.records import MAX_PAYLOAD, Bad

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "quarantine"
BATCH = 64  # rows


class BudgetError(UserError):
    """More records were quarantined than the recipe allows."""


def schema() -> pa.Schema:
    import pyarrow as pa

    names = ("source", "split", "unit", "file", "record", "group", "reason", "message", "payload")
    return pa.schema([(name, pa.string()) for name in names])


def write(path: Path, source: str, split: str, bad: Sequence[Bad]) -> None:
    """Write the quarantine of one task as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "source": source,
            "split": split,
            "unit": b.unit,
            "file": b.file,
            "record": b.record,
            "group": b.group,
            "reason": b.reason,
            "message": _text(b.message),
            "payload": _text(b.payload),
        }
        for b in bad
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), path, compression="zstd")


def _text(text: str) -> str:
    """Text that Arrow can hold: JSON may carry lone surrogates."""
    return text[:MAX_PAYLOAD].encode("utf-8", "backslashreplace").decode()


def read(file: Any) -> Iterator[dict[str, str]]:
    """The rows of one quarantine file, a few in memory at a time: each may hold a megabyte."""
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH, use_threads=False):
        yield from batch.to_pylist()


def over_budget(quarantined: int, records: int, *, max_fraction: float, min_count: int) -> bool:
    """Whether the job must stop: more than `min_count` bad records, and more than the fraction of all its records."""
    return quarantined > max(min_count, max_fraction * records)
