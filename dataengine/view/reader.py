"""Rows of a dataset by number: only the row group that holds one is read, and a few of them are kept.

Pictures are kept apart from everything else, so that leafing through rows does not read them. What is kept is bounded
in bytes whatever the dataset's size; a reader may be used by several threads.
"""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

from dataengine.sample import Image, Sample, from_row
from dataengine.store.commits import DatasetError
from dataengine.store.dataset import Dataset

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

OWN_PICTURE = "image.bytes"
REFERENCES = "references.list.element.image.bytes"
PICTURES = (OWN_PICTURE, REFERENCES)
KEPT_BYTES = 16 << 20  # of row groups without their pictures
KEPT_PICTURE_BYTES = 16 << 20
KEPT_FOOTERS = 16
MAX_GROUP_BYTES = 1 << 30  # of the columns of a row group that are read together; a build writes about 16 MiB

T = TypeVar("T")


class Kept:
    """The values used last, up to a number of bytes; the newest one stays whatever its size."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._bytes = 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """The value of a key, made where it is not kept."""
        if key in self._values:
            self._values.move_to_end(key)
            found: T = self._values[key][0]
            return found
        value = make()
        self._values[key] = value, size(value)
        self._bytes += size(value)
        while self._bytes > self._max and len(self._values) > 1:
            self._bytes -= self._values.popitem(last=False)[1][1]
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a row stands. shard: its index in the manifest. row: in the shard. group, inside: row group, row in it."""

    shard: int
    row: int
    group: int
    inside: int


class Reader:
    """Rows of a dataset, by number in the order of the manifest's shards."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.shards: list[dict[str, Any]] = dataset.manifest["shards"]
        self.starts = [0, *accumulate(shard["rows"] for shard in self.shards)]
        self._lock = threading.RLock()
        self._rows: dict[int, list[int]] = {}
        self._footers: OrderedDict[int, pq.FileMetaData] = OrderedDict()
        self._groups = Kept(KEPT_BYTES)
        self._pictures = Kept(KEPT_PICTURE_BYTES)

    @property
    def num_rows(self) -> int:
        return self.starts[-1]

    def shard_of(self, number: int) -> int:
        """Index of the shard that holds a row of the dataset."""
        return bisect.bisect_right(self.starts, number) - 1

    def place(self, number: int) -> Place:
        """Where a row stands.

        Raises:
            DatasetError: there is no such row, or its shard is damaged.
        """
        if not 0 <= number < self.num_rows:
            raise DatasetError(f"there is no row {number}; the dataset has {self.num_rows:,}")
        shard = self.shard_of(number)
        row = number - self.starts[shard]
        with self._lock:
            first = 0
            for group, rows in enumerate(self._group_rows(shard)):
                if row < first + rows:
                    return Place(shard=shard, row=row, group=group, inside=row - first)
                first += rows
        raise DatasetError(f"{self.shards[shard]['name']} has {first} rows, the manifest says more")

    def sample(self, number: int) -> Sample:
        """A whole sample, pictures among it.

        Raises:
            DatasetError: there is none, or its shard cannot be read.
        """
        place = self.place(number)
        with self._lock:
            row = self._slice(self._group(place), place)
            own = self._slice(self._picture_group(place, OWN_PICTURE), place)["image"]
            others: list[Any] = []
            if row["references"]:
                others = self._slice(self._picture_group(place, REFERENCES), place)["references"]
        if row["image"] is not None:
            row["image"]["bytes"] = own["bytes"]
        for reference, other in zip(row["references"] or (), others, strict=True):
            if reference["image"] is not None:
                reference["image"]["bytes"] = other["image"]["bytes"]
        try:
            return from_row(row)
        except (KeyError, TypeError) as error:
            raise DatasetError(f"{self.shards[place.shard]['name']}: row {place.row} is damaged: {error}") from None

    def picture(self, number: int, reference: int = -1) -> tuple[Image | None, int, int]:
        """A picture of a row, with the height and width (px) that the row states.

        Args:
            reference: index of the row's reference, or -1 for its own picture.
        Raises:
            DatasetError: there is no such row or reference, or its shard cannot be read.
        """
        place = self.place(number)
        with self._lock:
            row = self._slice(self._group(place), place)
            if reference < 0:
                thing, found = row, self._slice(self._picture_group(place, OWN_PICTURE), place)["image"]
            else:
                if not 0 <= reference < len(row["references"] or ()):
                    raise DatasetError(f"row {number} has no reference {reference}")
                thing = row["references"][reference]
                others = self._slice(self._picture_group(place, REFERENCES), place)["references"]
                found = others[reference]["image"]
        if thing["image"] is None:
            return None, thing["height"], thing["width"]
        return Image(bytes=found["bytes"], path=thing["image"]["path"]), thing["height"], thing["width"]

    def column(self, place: Place, leaves: tuple[str, ...]) -> pa.Table:
        """Some leaves of a row group, which are kept as well."""
        with self._lock:
            return self._groups.get((place.shard, place.group, leaves), lambda: self.read(place, leaves), _size)

    def values(self, number: int, leaves: tuple[str, ...]) -> dict[str, Any]:
        """Some leaves of a row, as nested plain values. Raises DatasetError."""
        place = self.place(number)
        return self._slice(self.column(place, leaves), place)

    def leaf_names(self, shard: int) -> list[str]:
        """Names of the leaves that a shard has. Raises DatasetError."""
        with self._lock:
            footer = self._footer(shard)
        return [footer.schema.column(index).path for index in range(len(footer.schema))]

    def groups(self, shard: int, leaves: Sequence[str]) -> Iterator[pa.Table]:
        """Some leaves of a shard, row group by row group; nothing is kept.

        Raises:
            DatasetError: it cannot be read, or has not as many rows as the manifest says.
        """
        rows = 0
        with self._file(shard) as file:
            self._rows.setdefault(shard, _rows_of(file.metadata))
            for group in range(file.num_row_groups):
                rows += file.metadata.row_group(group).num_rows
                if rows > self.shards[shard]["rows"]:
                    break
                yield self._read_group(file, shard, group, leaves)
        if rows != self.shards[shard]["rows"]:
            raise DatasetError(f"{self.shards[shard]['name']} has not the rows that the manifest says")

    def _group(self, place: Place) -> pa.Table:
        return self._groups.get((place.shard, place.group), lambda: self.read(place, None), _size)

    def _picture_group(self, place: Place, leaf: str) -> pa.Table:
        return self._pictures.get((place.shard, place.group, leaf), lambda: self.read(place, (leaf,)), _size)

    def _slice(self, table: pa.Table, place: Place) -> dict[str, Any]:
        row: dict[str, Any] = table.slice(place.inside, 1).to_pylist()[0]
        return row

    def _group_rows(self, shard: int) -> list[int]:
        """Of each row group of a shard; small enough to be kept for all."""
        if shard not in self._rows:
            self._rows[shard] = _rows_of(self._footer(shard))
        return self._rows[shard]

    def _footer(self, shard: int) -> pq.FileMetaData:
        if shard not in self._footers:
            with self._file(shard) as file:
                self._keep(shard, file.metadata)
        return self._footers[shard]

    def _keep(self, shard: int, footer: pq.FileMetaData) -> None:
        self._footers[shard] = footer
        self._footers.move_to_end(shard)
        while len(self._footers) > KEPT_FOOTERS:
            self._footers.popitem(last=False)

    def read(self, place: Place, leaves: Sequence[str] | None) -> pa.Table:
        """Leaves of a row group, which are not kept. leaves: None for all but the pictures."""
        with self._file(place.shard, self._footers.get(place.shard)) as file:
            with self._lock:
                self._keep(place.shard, file.metadata)
            return self._read_group(file, place.shard, place.group, leaves)

    def _read_group(self, file: pq.ParquetFile, shard: int, group: int, leaves: Sequence[str] | None) -> pa.Table:
        about = file.metadata.row_group(group)
        sizes = {
            about.column(i).path_in_schema: about.column(i).total_uncompressed_size for i in range(about.num_columns)
        }
        names = [name for name in sizes if name not in PICTURES] if leaves is None else list(leaves)
        if sum(sizes.get(name, 0) for name in names) > MAX_GROUP_BYTES:
            raise DatasetError(f"{self.shards[shard]['name']}: row group {group} is larger than memory should hold")
        table = file.read_row_group(group, columns=names, use_threads=False)
        table.validate(full=True)  # texts may be no UTF-8
        return table

    @contextmanager
    def _file(self, shard: int, footer: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
        import pyarrow.parquet as pq

        with self.dataset.opened(self.shards[shard]["name"]) as file:
            yield pq.ParquetFile(file, metadata=footer)


def _rows_of(footer: pq.FileMetaData) -> list[int]:
    return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]


def _size(table: pa.Table) -> int:
    return int(table.get_total_buffer_size())
