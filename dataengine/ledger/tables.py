"""Rows of a ledger as Arrow tables, and Parquet files of them, sorted by picture: written, and several read as one.

The first column of each table names the picture. A picture is never split between row groups, so that whoever goes
through a ledger holds one row group of each file.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from dataengine.errors import UserError
from dataengine.ledger.records import Check, Concept, Decision, Entry, Labeler, Picture
from dataengine.store.files import Folder

if TYPE_CHECKING:
    from types import TracebackType

    import pyarrow as pa

GROUP_ROWS = 1024
GROUP_BYTES = 8 << 20
MAX_KEY = 1000  # bytes; Parquet keeps no statistics of long texts, by which pictures are found

Decode = Callable[["pa.Table"], Any]  # to something that can be sliced by row


class LedgerError(UserError):
    """A ledger that is not what its files say, or something that cannot be written to one."""


# --- schemas ---------------------------------------------------------------------------------------------------------

_PLAIN = {
    "picture": "string",
    "entry_id": "string",
    "mask_id": "string",
    "round": "int32",
    "origin": "string",
    "rle": "binary",
    "area": "int64",
    "crowd": "bool",
    "annotation_id": "string",
    "score": "double",
    "predicted_iou": "double",
    "stability": "double",
    "prompt": "string",
    "relation": "string",
    "relative": "string",
    "overlap": "double",
    "state": "string",
    "reason": "string",
    "supersedes": "string",
}
_LABELER = ("name", "revision", "settings")
_CHECK = {"name": "string", "value": "double", "limit": "double", "verdict": "string"}
_DECISION = {
    "entry_id": "string",
    "state": "string",
    "by": "string",
    "action": "string",
    "reason": "string",
    "seconds": "double",
    "replacement": "string",
}
_ALIKE = (  # columns of few different values
    *("picture", "origin", "text", "relation", "state", "reason", "by", "action"),
    *(f"labeler.{name}" for name in _LABELER),
    *("checks.list.element.name", "checks.list.element.limit", "checks.list.element.verdict"),
    *("exhaustive.list.element", "absent.list.element"),
)


def entry_schema() -> pa.Schema:
    """Of files of entries."""
    import pyarrow as pa

    return pa.schema(
        [
            *_fields(_PLAIN),
            ("text", pa.string()),
            ("category_id", pa.int64()),
            ("bbox", pa.list_(pa.float64())),
            ("labeler", pa.struct([(name, pa.string()) for name in _LABELER])),
            ("crop", pa.list_(pa.int32())),
            ("checks", pa.list_(pa.struct(_fields(_CHECK)))),
        ]
    )


def decision_schema() -> pa.Schema:
    """Of files of decisions."""
    return _schema({"picture": "string", **_DECISION})


def picture_schema() -> pa.Schema:
    """Of `pictures.parquet`."""
    import pyarrow as pa

    plain = {"key": "string", "path": "string", "sha256": "string", "height": "int32", "width": "int32"}
    return pa.schema([*_fields(plain), ("exhaustive", pa.list_(pa.int64())), ("absent", pa.list_(pa.int64()))])


def _fields(kinds: dict[str, str]) -> list[tuple[str, pa.DataType]]:
    import pyarrow as pa

    return [(name, pa.type_for_alias(kind)) for name, kind in kinds.items()]


def _schema(kinds: dict[str, str]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(_fields(kinds))


# --- values to tables and back ---------------------------------------------------------------------------------------


def table_of_entries(entries: Sequence[Entry]) -> pa.Table:
    """Entries as rows, in their order."""
    import pyarrow as pa

    columns: dict[str, Any] = {name: [getattr(entry, name) for entry in entries] for name in _PLAIN}
    columns["text"] = [entry.concept.text for entry in entries]
    columns["category_id"] = [entry.concept.category_id for entry in entries]
    columns["bbox"] = [entry.bbox for entry in entries]
    columns["labeler"] = [
        None if (by := entry.labeler) is None else {name: getattr(by, name) for name in _LABELER} for entry in entries
    ]
    columns["crop"] = [entry.crop for entry in entries]
    checks = [check for entry in entries for check in entry.checks]
    columns["checks"] = pa.ListArray.from_arrays(
        np.cumsum([0, *(len(entry.checks) for entry in entries)]).astype(np.int32),
        pa.StructArray.from_arrays(
            [pa.array([getattr(check, name) for check in checks], pa.type_for_alias(k)) for name, k in _CHECK.items()],
            names=list(_CHECK),
        ),
    )
    return pa.table(columns, schema=entry_schema())


LEAN = tuple(name for name in (*_PLAIN, "text", "category_id", "bbox", "labeler", "crop"))  # columns but the checks


def entries_of(table: pa.Table) -> list[Entry]:
    """The entries of rows with all columns, or without their checks, of rows with the columns LEAN."""
    import pyarrow.compute as pc

    table = table.combine_chunks()
    plain = [table.column(name).to_pylist() for name in _PLAIN]
    concepts: dict[tuple[str, int], Concept] = {}
    labelers: dict[tuple[str, ...], Labeler] = {}
    told = list(zip(table.column("text").to_pylist(), table.column("category_id").to_pylist(), strict=True))
    for text, number in set(told):
        concepts[text, number] = Concept(text=text, category_id=number)
    by = table.column("labeler")
    named = list(zip(*(pc.struct_field(by, [name]).to_pylist() for name in _LABELER), strict=True))
    for who in set(named):
        if who[0] is not None:
            labelers[who] = Labeler(**dict(zip(_LABELER, who, strict=True)))
    checks = _checks_of(table.column("checks")) if "checks" in table.column_names else [()] * len(told)
    boxes, crops = table.column("bbox").to_pylist(), table.column("crop").to_pylist()
    return [
        Entry(
            **dict(zip(_PLAIN, values, strict=True)),
            concept=concepts[concept],
            labeler=labelers.get(labeler),
            bbox=tuple(bbox),
            crop=None if crop is None else tuple(crop),
            checks=checked,
        )
        for values, concept, labeler, bbox, crop, checked in zip(
            zip(*plain, strict=True), told, named, boxes, crops, checks, strict=True
        )
    ]


def _checks_of(column: pa.ChunkedArray) -> list[tuple[Check, ...]]:
    import pyarrow.compute as pc

    flat = pc.list_flatten(column)
    values = [pc.struct_field(flat, [name]).to_pylist() for name in _CHECK]
    checks = [Check(name=n, value=v, limit=most, verdict=said) for n, v, most, said in zip(*values, strict=True)]
    stops = np.cumsum(pc.list_value_length(column).to_numpy()).tolist()
    return [tuple(checks[start:stop]) for start, stop in zip([0, *stops], stops, strict=False)]


def table_of_decisions(decisions: Sequence[tuple[str, Decision]]) -> pa.Table:
    """Decisions as rows, each with the key of its picture."""
    import pyarrow as pa

    columns: dict[str, Any] = {"picture": [key for key, _ in decisions]}
    columns |= {name: [getattr(decision, name) for _, decision in decisions] for name in _DECISION}
    return pa.table(columns, schema=decision_schema())


def decisions_of(table: pa.Table) -> list[Decision]:
    """The decisions of rows with all columns."""
    return [Decision(**row) for row in table.select(list(_DECISION)).to_pylist()]


def table_of_pictures(pictures: Sequence[Picture]) -> pa.Table:
    """Pictures as rows, in their order."""
    import pyarrow as pa

    schema = picture_schema()
    return pa.table({name: [getattr(p, name) for p in pictures] for name in schema.names}, schema=schema)


def pictures_of(table: pa.Table) -> list[Picture]:
    """The pictures of rows."""
    shared: dict[tuple[int, ...], tuple[int, ...]] = {}
    found = []
    for row in table.to_pylist():
        for name in ("exhaustive", "absent"):
            ids = tuple(row[name])
            row[name] = shared.setdefault(ids, ids)
        found.append(Picture(**row))
    return found


# --- files -----------------------------------------------------------------------------------------------------------


class SortedWriter:
    """Writes a Parquet file of rows that come sorted by picture, those of a picture in one part."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow.parquet as pq

        self.rows = 0
        self._writer = pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            use_dictionary=list(_ALIKE),
            write_statistics=[schema.names[0]],
            store_schema=True,
        )
        self._parts: list[pa.Table] = []
        self._pending = self._bytes = 0

    def __enter__(self) -> SortedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def write(self, part: pa.Table) -> None:
        """Add all rows of one or more pictures."""
        self._parts.append(part)
        self._pending += part.num_rows
        self._bytes += part.nbytes
        if self._pending >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._pending:
            self._writer.write_table(pa.concat_tables(self._parts).combine_chunks(), row_group_size=self._pending)
        self.rows += self._pending
        self._parts, self._pending, self._bytes = [], 0, 0


@dataclass(slots=True)
class _Held:
    """A row group. what: which, and as what. bounds: the rows of each picture. rows: all of them, decoded."""

    what: tuple[int, Decode, Sequence[str] | None]
    bounds: dict[str, tuple[int, int]]
    table: pa.Table
    rows: Any = None


@dataclass(slots=True)
class SortedFile:
    """A file that `SortedWriter` wrote. name: in the folder, or "" where the folder's URI is the file's own.

    Nothing stays open: several hundred of them may be read as one.
    """

    folder: Folder
    name: str = ""
    step: int = -1  # that it belongs to
    _metadata: Any = None
    _lasts: list[str] = field(default_factory=list)
    _firsts: list[str] = field(default_factory=list)
    _held: _Held | None = None  # the row group that was read last

    def __str__(self) -> str:
        return f"{self.folder.uri}: {self.name}" if self.name else self.folder.uri

    @property
    def firsts(self) -> list[str]:
        """The first picture of each row group."""
        if self._metadata is None:
            self._inspect()
        return self._firsts

    @property
    def rows(self) -> int:
        self.firsts  # noqa: B018
        return int(self._metadata.num_rows)

    def check_schema(self, schema: pa.Schema) -> None:
        """Raises LedgerError where the file has other columns."""
        self.firsts  # noqa: B018
        if self._metadata.schema.to_arrow_schema().remove_metadata() != schema:
            raise LedgerError(f"{self}: its columns are not those of this version's ledgers")

    def parts(self, decode: Decode, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
        """What each picture has in it, in order; one row group in memory.

        Raises:
            LedgerError: damaged, or not sorted by picture.
        """
        before = ""
        for group in range(len(self.firsts)):
            bounds, table = self._read(group, columns)
            rows = decode(table)
            for key, (start, stop) in bounds.items():
                if key <= before:
                    raise LedgerError(f"{self}: is damaged: {key!r} stands behind {before!r}, or is empty")
                before = key
                yield key, rows[start:stop]

    def part(self, key: str, decode: Decode, columns: Sequence[str] | None = None) -> Any | None:
        """What one picture has in it; None for nothing.

        The row group stays in memory, and is decoded whole when a second picture of it is asked for.
        """
        group = bisect_left(self._lasts, key) if self.firsts else 0
        if group == len(self._firsts) or key < self._firsts[group]:
            return None
        if self._held is None or self._held.what != (group, decode, columns):
            self._held = None  # not two at a time
            self._held = _Held((group, decode, columns), *self._read(group, columns))
        elif self._held.rows is None:
            self._held.rows = decode(self._held.table)
        held = self._held
        if key not in held.bounds:
            return None
        start, stop = held.bounds[key]
        return decode(held.table[start:stop]) if held.rows is None else held.rows[start:stop]

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns, one row group at a time."""
        for group in range(len(self.firsts)):
            yield self._table(group, columns)

    def _inspect(self) -> None:
        import pyarrow.parquet as pq

        with self._opened() as file:
            metadata = pq.ParquetFile(file).metadata
            spans = [metadata.row_group(n).column(0).statistics for n in range(metadata.num_row_groups)]
            if any(span is None or not span.has_min_max for span in spans):
                raise LedgerError(f"{self}: is no file of a ledger: its row groups do not say which pictures they hold")
            self._firsts, self._lasts = [str(s.min) for s in spans], [str(s.max) for s in spans]
            self._metadata = metadata

    def _table(self, group: int, columns: Sequence[str] | None) -> pa.Table:
        import pyarrow.parquet as pq

        with self._opened() as file:
            shard = pq.ParquetFile(file, metadata=self._metadata)
            table = shard.read_row_group(group, columns=None if columns is None else list(columns), use_threads=False)
            table.validate(full=True)
            return table

    def _read(self, group: int, columns: Sequence[str] | None) -> tuple[dict[str, tuple[int, int]], pa.Table]:
        import pyarrow.compute as pc

        table = self._table(group, columns).combine_chunks()
        runs = pc.run_end_encode(table.column(0).combine_chunks())
        keys, stops = runs.values.to_pylist(), runs.run_ends.to_pylist()
        bounds = dict(zip(keys, zip([0, *stops], stops, strict=False), strict=True))
        if len(bounds) < len(keys):
            raise LedgerError(f"{self}: is damaged: a picture stands in two places")
        return bounds, table

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        import pyarrow as pa

        try:
            with self.folder.open(self.name) as file:
                yield file
        except FileNotFoundError:
            raise LedgerError(f"{self} is missing") from None
        except (pa.ArrowException, KeyError, TypeError, UnicodeDecodeError) as error:
            raise LedgerError(f"{self} is damaged: {error}") from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise LedgerError(f"{self} cannot be read: {error}") from None


def together(
    files: Sequence[SortedFile], decode: Decode, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, list[tuple[SortedFile, Any]]]]:
    """What each picture has in several files, in the files' order; each is read from its first picture on only."""
    heap: list[tuple[str, int, Any, Iterator[tuple[str, Any]] | None]]
    heap = [(file.firsts[0], number, None, None) for number, file in enumerate(files) if file.firsts]
    heapify(heap)
    while heap:
        key = heap[0][0]
        found = []
        while heap and heap[0][0] == key:
            _, number, part, rest = heappop(heap)
            if rest is None:
                rest = files[number].parts(decode, columns)
                _, part = next(rest)
            found.append((files[number], part))
            following = next(rest, None)
            if following is not None:
                heappush(heap, (following[0], number, following[1], rest))
        yield key, found
