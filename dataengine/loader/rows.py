"""Samples by number: a few row groups are kept, mapped from the scratch folder; pictures are read from the shard.

Pictures are read with one call each and not mapped: a mapped file that shrinks would kill the process, and its pages
would count as this process's memory.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict

import numpy as np

from dataengine.keyed import key_hash
from dataengine.loader import pages, unpacked
from dataengine.loader.groups import Data, Place
from dataengine.loader.scratch import Scratch
from dataengine.loader.unpacked import Buffer, Unpacked
from dataengine.sample import Sample
from dataengine.store.commits import DatasetError

VERSION = 2  # of unpacked row groups
KEPT_BYTES = 48 << 20  # of mapped row groups
KEPT_SHARDS = 64  # open files
MAX_GROUP_BYTES = 1 << 30  # of a row group without what lies verbatim in the shard; a build writes about 16 MiB


class GroupError(DatasetError):
    """A row group that cannot be read."""


class Rows:
    """Reads samples by number. May be handed to other processes: each opens its own files."""

    def __init__(self, data: Data, scratch: Scratch | None = None) -> None:
        self.data = data
        self._scratch = scratch or Scratch()
        self._forget()

    def read(self, number: int) -> Sample:
        """A sample.

        Raises:
            GroupError: its row group cannot be read. DatasetError: there is none of that number, or it is of another
            task than its source.
        """
        place = self.data.place(number)
        sample = self._group(place).sample(place.row)
        if sample.task != place.task:
            raise DatasetError(f"{sample.sample_id} is of {sample.task!r}, its source is of {place.task}")
        return sample

    def asked_beside(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """What the samples of a sample's row group ask for, its own conditions among it.

        Returns:
            (conditions,) number of each one's sample, and (conditions,) its category id.
        Raises:
            GroupError: the row group cannot be read.
        """
        place = self.data.place(number)
        rows, categories = self._group(place).asked
        return rows + self.data.rows_of(place.unit).start, categories

    def __getstate__(self) -> dict[str, object]:
        return {"data": self.data, "_scratch": self._scratch}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._groups: OrderedDict[int, Unpacked | GroupError] = OrderedDict()
        self._bytes = 0
        self._shards: OrderedDict[str, _File] = OrderedDict()

    def _group(self, place: Place) -> Unpacked:
        if self._pid != os.getpid():  # what was opened before a fork is the parent's
            self._forget()
        if place.unit not in self._groups:
            try:
                group = self._open(place)
                self._bytes += group.num_bytes
                found: Unpacked | GroupError = group
            except OSError as error:  # it may be there the next time
                raise self._broken(place, error) from None
            except DatasetError as error:
                found = self._broken(place, error)
            self._groups[place.unit] = found
            while self._bytes > KEPT_BYTES and len(self._groups) > 1:
                left = self._groups.popitem(last=False)[1]
                self._bytes -= left.num_bytes if isinstance(left, Unpacked) else 0
        self._groups.move_to_end(place.unit)
        found = self._groups[place.unit]
        if isinstance(found, GroupError):
            raise GroupError(str(found))
        return found

    def _broken(self, place: Place, error: Exception) -> GroupError:
        rows = len(self.data.rows_of(place.unit))
        return GroupError(f"{' '.join(str(error).split())} (row group {place.group}, {rows} rows)")

    def _open(self, place: Place) -> Unpacked:
        file = self._shard(place)
        key = key_hash(VERSION, file.identity, place.group).hex()
        return Unpacked(self._scratch.get(key, lambda: self._unpack(place, file)), file.read)

    def _unpack(self, place: Place, file: _File) -> list[Buffer]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = self.data.datasets[place.shard.dataset]
        name = f"{folder.folder.uri}: {place.shard.name}"
        with folder.opened(place.shard.name) as opened:
            shard = pq.ParquetFile(file.path or opened)
            found = None
            if file.path is not None:
                try:
                    found = pages.places(file.read, shard.metadata, place.group, unpacked.PICTURE)
                except pages.PageError as error:
                    raise DatasetError(f"{name}: pictures: {error}") from None
            about = shard.metadata.row_group(place.group)
            columns = [about.column(i) for i in range(about.num_columns)]
            chosen = [c for c in columns if found is None or c.path_in_schema != unpacked.PICTURE]
            if sum(column.total_uncompressed_size for column in chosen) > MAX_GROUP_BYTES:
                raise DatasetError(f"{name}: larger than memory should hold")
            names = [column.path_in_schema for column in chosen]
            table = shard.read_row_group(place.group, columns=names, use_threads=False)
            table.validate(full=True)  # texts may be no UTF-8
        try:
            return unpacked.pack(table, found)
        except DatasetError as error:
            raise DatasetError(f"{name}: {error}") from None
        finally:
            del table
            pa.default_memory_pool().release_unused()  # tens of megabytes, which the next row group may wait long for

    def _shard(self, place: Place) -> _File:
        folder = self.data.datasets[place.shard.dataset].folder
        name = f"{folder.uri}/{place.shard.name}"
        if name not in self._shards:
            path = folder.path / place.shard.name if folder.is_local else None
            self._shards[name] = _File(name, place.shard.sha256, path)
            while len(self._shards) > KEPT_SHARDS:
                self._shards.popitem(last=False)
        self._shards.move_to_end(name)
        return self._shards[name]


class _File:
    """A shard. identity: another one where the file is another. Pieces of a local one can be read."""

    def __init__(self, name: str, sha256: str, path: os.PathLike[str] | None) -> None:
        self._name, self.path = name, path
        self.identity = f"{name} {sha256}"
        self._handle = -1
        if path is not None:
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._handle)
            about = os.fstat(self._handle)
            self.identity += f" {about.st_dev} {about.st_ino} {about.st_size} {about.st_mtime_ns}"

    def read(self, start: int, number: int) -> bytes:
        """Bytes of a local shard. Raises DatasetError: it has become shorter."""
        found = os.pread(self._handle, number, start)
        while len(found) < number:
            more = os.pread(self._handle, number - len(found), start + len(found))
            if not more:
                raise DatasetError(f"{self._name} ends before its row group does")
            found += more
        return found
