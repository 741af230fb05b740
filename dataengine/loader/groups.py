"""What there is to read: the row groups of one or several datasets, and the sources that they belong to.

Samples are numbered from 0: source after source, in each the shards in the order of the manifests. A number therefore
means the same as long as the fingerprint is the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dataengine.keyed import key_hash
from dataengine.mixing import is_training
from dataengine.store.commits import DatasetError
from dataengine.store.dataset import Dataset, open_dataset
from dataengine.store.files import Folder

FOOTERS_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceRows:
    """The samples of one source, which are all of one task.

    name: of the source; where several datasets have one of that name, `NAME#2` is that of the second. first: number of
    its first sample. starts: (row groups + 1,) int64, where each row group begins, counted from `first`.
    """

    name: str
    task: str
    first: int
    starts: np.ndarray

    @property
    def num_samples(self) -> int:
        return int(self.starts[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A file of row groups. dataset: index of its dataset. source: SOURCE/SPLIT. The rest is as its manifest says."""

    dataset: int
    source: str
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a sample stands. unit: number of its row group among all. group: in the shard. row: in the group.

    task: of its source.
    """

    shard: Shard
    task: str
    unit: int
    group: int
    row: int


class Data:
    """The samples of one or several datasets, by number. Values travel between processes; no file is kept open.

    sources: in the order of the datasets and their manifests. shards: in the order of the numbers.
    fingerprint: xxh3-128 (hex) of what numbers mean.
    """

    def __init__(self, datasets: Sequence[Dataset], chosen: Sequence[_Source]) -> None:
        self.datasets = tuple(datasets)
        self.sources: tuple[SourceRows, ...] = ()
        shards: list[Shard] = []
        self._shard_of: list[int] = []
        self._group_of: list[int] = []
        self._source_of: list[int] = []
        firsts = [0]
        for source in chosen:
            first = firsts[-1]
            start = len(firsts) - 1
            for shard, rows in source.shards:
                self._source_of += [len(self.sources)] * len(rows)
                self._shard_of += [len(shards)] * len(rows)
                self._group_of += range(len(rows))
                shards.append(shard)
                for number in rows:
                    firsts.append(firsts[-1] + number)
            starts = np.array(firsts[start:], dtype=np.int64) - first
            self.sources += (SourceRows(name=source.name, task=source.task, first=first, starts=starts),)
        self.shards = tuple(shards)
        self._firsts = np.array(firsts, dtype=np.int64)
        self.versions = tuple(dataset.manifest["version"] for dataset in datasets)
        self.fingerprint = key_hash(*self.versions, *(f"{s.name}/{s.task}/{s.num_samples}" for s in self.sources)).hex()

    @property
    def num_samples(self) -> int:
        return int(self._firsts[-1])

    def place(self, number: int) -> Place:
        """Where a sample stands.

        Raises:
            DatasetError: there is no sample of that number.
        """
        if not 0 <= number < self.num_samples:
            raise DatasetError(f"there is no sample {number}; there are {self.num_samples:,}")
        unit = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return Place(
            shard=self.shards[self._shard_of[unit]],
            task=self.sources[self._source_of[unit]].task,
            unit=unit,
            group=self._group_of[unit],
            row=number - int(self._firsts[unit]),
        )

    def facts_of(self, number: int) -> dict[str, Any]:
        """What the manifest says of a sample's source: builder, task, categories."""
        shard = self.place(number).shard
        facts: dict[str, Any] = self.datasets[shard.dataset].manifest["sources"][shard.source]
        return facts

    def rows_of(self, unit: int) -> range:
        """Numbers of the samples of a row group."""
        return range(int(self._firsts[unit]), int(self._firsts[unit + 1]))

    def name_of(self, place: Place) -> str:
        """Dataset, shard, row group and row in words."""
        folder = self.datasets[place.shard.dataset].folder
        return f"{folder.uri}: {place.shard.name}, row group {place.group}, row {place.row}"

    def describe(self) -> dict[str, Any]:
        """What a later run is compared with, as JSON values (`check_same`)."""
        sources = [{"name": s.name, "task": s.task, "samples": s.num_samples} for s in self.sources]
        return {"fingerprint": self.fingerprint, "datasets": list(self.versions), "sources": sources}

    def check_same(self, before: dict[str, Any]) -> None:
        """Check that numbers mean what they meant when `before` was described.

        Raises:
            DatasetError: they do not; the message says what changed.
        """
        now = self.describe()
        if now["fingerprint"] == before.get("fingerprint"):
            return
        said = []
        then = {source["name"]: source for source in before.get("sources", [])}
        for source in now["sources"]:
            old = then.pop(source["name"], None)
            if old is None:
                said.append(f"source {source['name']} is new")
            elif old != source:
                said.append(
                    f"source {source['name']} has {source['samples']:,} samples of {source['task']}, "
                    f"before {old['samples']:,} of {old['task']}"
                )
        said += [f"source {name} is gone" for name in then]
        changed = zip(self.datasets, now["datasets"], before.get("datasets", []), strict=False)
        said += [
            f"{d.folder.uri} is version {new[:12]}, before {str(old)[:12]}" for d, new, old in changed if new != old
        ]
        raise DatasetError(f"the data is not what the run began with: {'; '.join(said) or 'its order changed'}")


def open_data(
    uris: Sequence[str | Path],
    *,
    splits: Collection[str] | None = None,
    tasks: Collection[str] | None = None,
    sources: Collection[str] | None = None,
) -> Data:
    """Open finished datasets for reading in any order. Every shard is looked at: none is missing, all have their size.

    Args:
        uris: paths or URIs. splits: names of those to read; by default the ones that are trained on (`train…`), which
            a mixing rule counts too. tasks, sources: which to read; by default all.
    Raises:
        DatasetError: a dataset is not finished or was changed, a shard is missing or is not the manifest's, there is
            no such source or task, or nothing is left to read.
    """
    if isinstance(uris, (str, Path)):
        uris = [uris]
    datasets = [open_dataset(str(uri)) for uri in uris]
    found: dict[str, _Source] = {}
    for number, dataset in enumerate(datasets):
        names: dict[str, str] = {}
        for key, facts in dataset.manifest["sources"].items():
            name, _, split = key.rpartition("/")
            if split in splits if splits is not None else is_training(split):
                names.setdefault(name, name if name not in found else f"{name}#{number + 1}")
                found.setdefault(names[name], _Source(name=names[name], task=facts["task"], shards=[]))
        for entry in dataset.manifest["shards"]:
            if entry["split"] in splits if splits is not None else is_training(entry["split"]):
                if f"{entry['source']}/{entry['split']}" not in dataset.manifest["sources"]:
                    raise DatasetError(f"{dataset.folder.uri}: {entry['name']} is of a source that is not described")
                found[names[entry["source"]]].shards.append((_shard(dataset, number, entry), [entry["rows"]]))
    _check_known("source", sources, [source.name for source in found.values()])
    _check_known("task", tasks, [source.task for source in found.values()])
    chosen = [
        source
        for source in found.values()
        if (sources is None or source.name in sources) and (tasks is None or source.task in tasks)
    ]
    _read_footers(datasets, chosen)
    data = Data(datasets, chosen)
    if not data.num_samples:
        known = sorted({entry["split"] for dataset in datasets for entry in dataset.manifest["shards"]})
        raise DatasetError(f"there is nothing to read; the datasets have the splits {', '.join(known) or 'of nothing'}")
    return data


@dataclass(slots=True, kw_only=True)
class _Source:
    """shards: each with the rows of its row groups."""

    name: str
    task: str
    shards: list[tuple[Shard, list[int]]]


def _shard(dataset: Dataset, number: int, entry: dict[str, Any]) -> Shard:
    """A shard of the manifest, which must lie in the dataset's folder."""
    path = PurePosixPath(entry["name"])
    if path.is_absolute() or ".." in path.parts:
        raise DatasetError(f"{dataset.folder.uri}: shard {entry['name']!r} is not in the dataset's folder")
    source = f"{entry['source']}/{entry['split']}"
    return Shard(dataset=number, source=source, name=entry["name"], bytes=entry["bytes"], sha256=entry["sha256"])


def _check_known(what: str, wanted: Collection[str] | None, known: Collection[str]) -> None:
    for name in wanted or ():
        if name not in known:
            raise DatasetError(f"there is no {what} {name!r} to read; there is {', '.join(sorted(set(known)))}")


def _read_footers(datasets: Sequence[Dataset], chosen: Sequence[_Source]) -> None:
    """Replace the rows of each shard by those of its row groups."""

    def read(folder: Folder, shard: Shard, rows: int) -> list[int]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            size = folder.size(shard.name)
            if size != shard.bytes:
                raise DatasetError(
                    f"{folder.uri}: {shard.name} has {size:,} bytes, not the manifest's {shard.bytes:,}: it changed"
                )
            with folder.open(shard.name) as file:
                footer = pq.ParquetFile(file).metadata
        except FileNotFoundError:
            raise DatasetError(f"{folder.uri}: {shard.name} is missing, but the manifest lists it") from None
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{folder.uri}: {shard.name} cannot be read: {error}") from None
        groups = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        if sum(groups) != rows:
            raise DatasetError(f"{folder.uri}: {shard.name} has {sum(groups)} rows, the manifest says {rows}")
        return groups

    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        jobs = [
            (rows, pool.submit(read, datasets[shard.dataset].folder, shard, rows[0]))
            for source in chosen
            for shard, rows in source.shards
        ]
        for rows, job in jobs:
            rows[:] = job.result()
