"""Samples by number: a few row groups are kept, everything else is read where it is needed."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import TYPE_CHECKING

from dataengine.loader.groups import Data, Place
from dataengine.sample import Sample, from_row
from dataengine.store.commits import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

KEPT_GROUPS = 16


class GroupError(DatasetError):
    """A row group that cannot be read."""


class Rows:
    """Reads samples by number. May be handed to other processes: each opens its own files."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self._pid = os.getpid()
        self._kept: OrderedDict[int, pa.Table | GroupError] = OrderedDict()

    def read(self, number: int) -> Sample:
        """A sample.

        Raises:
            GroupError: its row group cannot be read. DatasetError: there is none of that number.
        """
        place = self.data.place(number)
        table = self._group(place)
        return from_row(table.slice(place.row, 1).to_pylist()[0])

    def _group(self, place: Place) -> pa.Table:
        if self._pid != os.getpid():  # what was opened before a fork is the parent's
            self._pid, self._kept = os.getpid(), OrderedDict()
        if place.unit not in self._kept:
            try:
                self._kept[place.unit] = self._read(place)
            except DatasetError as error:
                rows = len(self.data.rows_of(place.unit))
                self._kept[place.unit] = GroupError(f"{error} (row group {place.group}, {rows} rows)")
            while len(self._kept) > KEPT_GROUPS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(place.unit)
        found = self._kept[place.unit]
        if isinstance(found, GroupError):
            raise found
        return found

    def _read(self, place: Place) -> pa.Table:
        import pyarrow.parquet as pq

        with self.data.datasets[place.shard.dataset].opened(place.shard.name) as file:
            table = pq.ParquetFile(file).read_row_group(place.group, use_threads=False)
            table.validate(full=True)
            return table
