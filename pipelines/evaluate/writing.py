"""Predictions of regions into a file: JSON, JSON lines or Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from dataengine.store.files import temporary_name
from pipelines.evaluate.predictions import PredictionError


def write(records: Iterable[Mapping[str, Any]], target: Path, benchmark: str) -> int:
    """Write predictions of regions for a benchmark, by its id: JSON, JSON lines or Parquet, as the name ends.

    The file stands there whole or not at all.

    Returns:
        how many there are.
    Raises:
        PredictionError: the name ends otherwise.
    """
    writers = {".json": _write_json, ".jsonl": _write_lines, ".parquet": _write_parquet}
    if target.suffix not in writers:
        raise PredictionError(f"{target}: the name must end in {', '.join(writers)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(temporary_name(target.name))
    try:
        number = writers[target.suffix](records, staged, benchmark)
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)
    return number


def _write_json(records: Iterable[Mapping[str, Any]], staged: Path, benchmark: str) -> int:
    number = 0
    with staged.open("w", encoding="utf-8") as file:
        file.write(f'{{"benchmark": {json.dumps(benchmark)}, "predictions": [')
        for number, record in enumerate(records, start=1):
            file.write(("\n" if number == 1 else ",\n") + json.dumps(record))
        file.write("\n]}\n")
    return number


def _write_lines(records: Iterable[Mapping[str, Any]], staged: Path, benchmark: str) -> int:
    number = 0
    with staged.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"benchmark": benchmark}) + "\n")
        for record in records:
            file.write(json.dumps(record) + "\n")
            number += 1
    return number


def _write_parquet(records: Iterable[Mapping[str, Any]], staged: Path, benchmark: str) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    mask = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
    columns = [("sample_id", pa.string()), ("category_id", pa.int64()), ("prompt", pa.string())]
    schema = pa.schema([*columns, ("segmentation", mask), ("score", pa.float64())], metadata={"benchmark": benchmark})
    number = 0
    with pq.ParquetWriter(staged, schema, compression="zstd") as writer:
        rest = iter(records)
        while rows := list(islice(rest, 10_000)):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            number += len(rows)
    return number
