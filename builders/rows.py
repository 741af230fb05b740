"""The index of a source: one row a picture or record, sorted, each with the source's own JSON texts that belong to it.

Every builder that reads JSON records regroups them here, so that a bad one can be quoted exactly and workers read only
their slice. Memory is bounded: texts are spilled to disk and gathered in order, 32 bytes a record stay in memory.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, Literal

import numpy as np
import xxhash

from dataengine.store.files import Folder

if TYPE_CHECKING:
    from types import TracebackType

    import pyarrow as pa

ROWS_PER_BATCH = 256
PACKED = 1 << 16  # records whose places are packed into an array at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of an index. key: names it (`Bad.group`). record, members: the source's own JSON texts."""

    key: str
    record: str
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A record that has no place in the index, because its number is given twice or its row does not exist."""

    reason: Literal["repeated_row", "repeated_member", "unknown_row"]
    owner: int
    order: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What an index holds; fingerprint: of its content, the same on every machine."""

    rows: int
    members: int
    fingerprint: str


class _Spill:
    """Record texts on disk, with what is needed to read them in another order."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._packed: list[np.ndarray] = []
        self._places: list[tuple[int, int, int, int]] = []
        self._end = 0

    def add(self, owner: int, order: int, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        self._file.write(data)
        self._places.append((owner, order, self._end, len(data)))
        self._end += len(data)
        if len(self._places) == PACKED:
            self._pack()

    def _pack(self) -> None:
        if self._places:
            self._packed.append(np.array(self._places, dtype=np.int64))
            self._places = []

    def ordered(self) -> np.ndarray:
        """(n, 4) int64 of owner, order, offset, length, sorted by owner, then order."""
        self._pack()
        if not self._packed:
            return np.zeros((0, 4), dtype=np.int64)
        places = np.concatenate(self._packed)
        return places[np.lexsort((places[:, 1], places[:, 0]))]

    def text(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)


class Gathering:
    """Rows and members on their way into an index: added in any order, settled, written sorted.

    with Gathering(target.parent) as gathering:
        gathering.row(image_id, str(image_id), text)
        gathering.member(image_id, annotation_id, text)
        for refused in gathering.settle(): ...
        written = gathering.write(target)
    """

    def __init__(self, folder: Path) -> None:
        self._files = ExitStack()
        self._rows, self._members = (
            _Spill(self._files.enter_context(tempfile.TemporaryFile(dir=folder)))  # noqa: SIM115
            for _ in range(2)
        )
        self._row_places = self._member_places = np.zeros((0, 4), dtype=np.int64)

    def __enter__(self) -> Gathering:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def row(self, number: int, key: str, text: str) -> None:
        """Add a row. number: by which rows are sorted and members find theirs, unique. key: its name, on one line."""
        self._rows.add(number, 0, f"{key}\n{text}")

    def member(self, owner: int, number: int, text: str) -> None:
        """Add what belongs to a row. owner: the row's number. number: by which members are sorted, unique in all."""
        self._members.add(owner, number, text)

    def settle(self) -> Iterator[Refused]:
        """Bring everything into order; gives what has no place. Of records with one number the first added stays."""
        rows, again = _without_repeats(self._rows.ordered(), 0)
        for number, _, offset, length in again.tolist():
            record = self._rows.text(offset, length).partition(b"\n")[2].decode("utf-8", "replace")
            yield Refused(reason="repeated_row", owner=number, order=number, text=record)
        members, again = _without_repeats(self._members.ordered(), 1)
        known = np.isin(members[:, 0], rows[:, 0])
        for reason, places in (("repeated_member", again), ("unknown_row", members[~known])):
            for owner, number, offset, length in places.tolist():
                text = self._members.text(offset, length).decode("utf-8", "replace")
                yield Refused(reason=reason, owner=owner, order=number, text=text)  # type: ignore[arg-type]
        self._row_places, self._member_places = rows, members[known]

    def write(self, target: Path) -> Written:
        """`write_rows` of what was settled."""
        return write_rows(target, self._settled())

    def _settled(self) -> Iterator[tuple[str, bytes, list[bytes]]]:
        rows, members = self._row_places, self._member_places
        first = np.searchsorted(members[:, 0], rows[:, 0], "left")
        last = np.searchsorted(members[:, 0], rows[:, 0], "right")
        for start in range(0, len(rows), ROWS_PER_BATCH):
            chunk = slice(start, start + ROWS_PER_BATCH)
            for (_, _, offset, length), a, b in zip(rows[chunk].tolist(), first[chunk], last[chunk], strict=True):
                key, _, text = self._rows.text(offset, length).partition(b"\n")
                group = [self._members.text(o, n) for _, _, o, n in members[a:b].tolist()]
                yield key.decode("utf-8", "replace"), text, group


def write_rows(target: Path, rows: Iterable[tuple[str, bytes, list[bytes]]]) -> Written:
    """Write an index, the Arrow IPC file (key: string, record: binary, members: list<binary>), of rows in their order.

    Args:
        rows: key, record and members of each; keys are Unicode text, unique.
    """
    import pyarrow as pa

    schema = pa.schema([("key", pa.string()), ("record", pa.binary()), ("members", pa.list_(pa.binary()))])
    digest = xxhash.xxh3_128()
    num_rows = num_members = 0
    source = iter(rows)
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        while batch := list(islice(source, ROWS_PER_BATCH)):
            for key, record, members in batch:
                for part in (key.encode(), record, *members):
                    digest.update(len(part).to_bytes(8, "little") + part)
                digest.update(b"\n")
                num_members += len(members)
            num_rows += len(batch)
            columns = [
                pa.array(column, field.type) for column, field in zip(zip(*batch, strict=True), schema, strict=True)
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    return Written(rows=num_rows, members=num_members, fingerprint=digest.hexdigest())


def _without_repeats(places: np.ndarray, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Places with a number of their own, the first added of each; and the others."""
    by_number = np.lexsort((places[:, 2], places[:, column]))
    numbers = places[by_number, column]
    again = np.zeros(len(places), dtype=bool)
    again[by_number[1:]] = numbers[1:] == numbers[:-1]
    return places[~again], places[again]


def read_rows(index: Folder, start: int = 0, stop: int | None = None) -> Iterator[Row]:
    """Rows of an index file, in order; of a remote one only the parts that hold them are fetched."""
    import pyarrow as pa

    with pa.memory_map(str(index.path)) if index.is_local else index.open() as source:
        reader = pa.ipc.open_file(source)
        for number in range(start // ROWS_PER_BATCH, reader.num_record_batches):
            base = number * ROWS_PER_BATCH
            if stop is not None and base >= stop:
                return
            batch: pa.RecordBatch = reader.get_batch(number)
            end = len(batch) if stop is None else min(len(batch), stop - base)
            for entry in batch.slice(max(0, start - base), end - max(0, start - base)).to_pylist():
                yield Row(
                    key=entry["key"],
                    record=entry["record"].decode("utf-8", "surrogatepass"),
                    members=tuple(member.decode("utf-8", "surrogatepass") for member in entry["members"]),
                )


def read_keys(index: Folder) -> Iterator[str]:
    """The keys of all rows, in order."""
    import pyarrow as pa

    with pa.memory_map(str(index.path)) if index.is_local else index.open() as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield from reader.get_batch(number).column("key").to_pylist()


def select(index: Path, groups: set[str], target: Path) -> int:
    """See `Builder.select`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(sorted(groups), pa.string())
    with pa.memory_map(str(index)) as source:
        reader = pa.ipc.open_file(source)
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        chosen = [batch.filter(pc.is_in(batch.column("key"), wanted)) for batch in batches]
        table = pa.Table.from_batches(chosen, schema=reader.schema).combine_chunks()
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, reader.schema) as writer:
            writer.write_table(table, max_chunksize=ROWS_PER_BATCH)
        return int(table.num_rows)


class Hashing:
    """A file that is hashed while it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        return data

    def hexdigest(self) -> str:
        """sha256 of the whole file; what was not read yet is."""
        while self.read(1 << 20):
            pass
        return self._digest.hexdigest()
