"""Lengths of samples, by which an order puts draws of like length into one step."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dataengine.loader.groups import Data
from dataengine.store.columns import leaves, rows
from dataengine.store.files import temporary_name


def text_lengths(data: Data, cache: Path | None = None) -> np.ndarray:
    """Bytes of each sample's conversation; only that column is read.

    Args:
        cache: a folder where they are kept, by the data's fingerprint.
    Returns:
        (samples,) int64.
    Raises:
        DatasetError: a shard cannot be read.
    """
    kept = None if cache is None else cache / f"lengths-{data.fingerprint}.npy"
    if kept is not None and kept.exists():
        found: np.ndarray = np.load(kept, allow_pickle=False)
        if found.shape == (data.num_samples,):
            return found
    found = np.concatenate([_of_shard(data, shard.dataset, shard.name) for shard in data.shards])
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        staged = kept.with_name(temporary_name(kept.name))
        with staged.open("wb") as file:
            np.save(file, found)
        staged.replace(kept)
    return found


def _of_shard(data: Data, dataset: int, name: str) -> np.ndarray:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found = []
    with data.datasets[dataset].opened(name) as file:
        shard = pq.ParquetFile(file)
        for group in range(shard.num_row_groups):
            turns = rows(shard.read_row_group(group, columns=leaves("turns.text"), use_threads=False)).each("turns")
            sizes = pc.binary_length(turns.array("text")).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
            found.append(turns.per_row(sizes, np.add, 0))
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
