"""A row group as flat arrays, from which single samples are made without touching the others.

A list is where its elements begin, an optional value has a flag, a text that recurs is a code, a field that has one
value throughout is that value. All arrays of a row group are one block of bytes, so that processes can map the same
file. Built from the fields of `Sample`, as the schema is.
"""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise, repeat
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dataengine.sample import _VALUES, Sample
from dataengine.store.commits import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

ALIGNED = 8  # bytes
FEW = 255  # different texts, of which codes of one byte can speak
PICTURE = "image.bytes"
ITEM = "[]"

Buffer = bytes | memoryview
Scalar = str | int | float | bool | None
Fetch = Callable[[int, int], bytes]
Put = Callable[[Any, Any], None]


# --- from Arrow to arrays ---------------------------------------------------------------------------------------------


def pack(table: pa.Table, picture: tuple[np.ndarray, np.ndarray] | None) -> list[Buffer]:
    """The arrays of a row group, as parts of one block.

    Args:
        table: its rows; without `image.bytes` where `picture` says where these lie in the file: offset and length in
            bytes, (rows,) int64 each, length -1 for null.
    Raises:
        DatasetError: a column is missing, of another type, or null where a sample needs a value.
    """
    import pyarrow as pa

    packed = _Packed()
    if picture is not None:
        packed.arrays[f"{PICTURE}.start"], packed.arrays[f"{PICTURE}.length"] = picture
    for field in dataclasses.fields(Sample):
        if field.name not in table.column_names:
            raise DatasetError(f"column {field.name} is missing")
        try:
            packed.add(field.name, field, table[field.name].combine_chunks())
        except (pa.ArrowException, AttributeError) as error:
            raise DatasetError(f"column {field.name} is not as a sample's: {error}") from None
    return packed.parts(table.num_rows)


class _Packed:
    """Arrays by path. names: the different texts of those that hold codes. same: the value of those that have one."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.names: dict[str, list[str]] = {}
        self.same: dict[str, Scalar] = {}

    def add(self, path: str, field: dataclasses.Field[Any], array: pa.Array) -> None:
        """A field of a value, with all that it holds."""
        if array.null_count:
            if not _is_optional(field):
                raise DatasetError(f"column {path} has nulls")
            if array.null_count == len(array):
                self.same[path] = None
                return
            self.arrays[f"{path}?"] = array.is_valid().to_numpy(zero_copy_only=False)
        self._add(path, field.metadata["arrow"], array)

    def _add(self, path: str, kind: str, array: pa.Array) -> None:
        import pyarrow as pa

        if kind.startswith("list<"):
            item, _, size = kind.removeprefix("list<").partition(">")
            inner = array.flatten()
            if inner.null_count and item not in _VALUES:
                raise DatasetError(f"column {path} has nulls")
            if size:
                number = int(size.strip("[]"))
                if len(inner) != number * len(array):
                    raise DatasetError(f"column {path} has not {number} values each")
                self.arrays[path] = _numbers(inner, item).reshape(-1, number)
                return
            ends = np.asarray(array.offsets)
            self.arrays[f"{path}#"] = (ends - ends[0]).astype(np.int32)
            self._add(path + ITEM, item, inner)
        elif kind in _VALUES:
            for field in dataclasses.fields(_VALUES[kind]):
                leaf = f"{path}.{field.name}"
                if leaf != PICTURE or f"{PICTURE}.start" not in self.arrays:
                    index = array.type.get_field_index(field.name)
                    if index < 0:
                        raise DatasetError(f"column {leaf} is missing")
                    self.add(leaf, field, array.flatten()[index])
        elif kind == "string":
            self._add_texts(path, array.cast(pa.string()))
        elif kind == "binary":
            self._add_binary(path, array.cast(pa.binary()))
        else:
            self.arrays[path] = _numbers(array, kind)
            value = self.arrays[path][:1].tolist()
            if not array.null_count and value and (self.arrays[path] == value[0]).all() and abs(value[0]) != np.inf:
                self.same[path] = value[0]
                del self.arrays[path]
            elif kind == "float":
                self.arrays[path] = _halved(self.arrays[path])

    def _add_texts(self, path: str, array: pa.Array) -> None:
        encoded = array.dictionary_encode()
        if len(encoded.dictionary) == 1 and not array.null_count:
            self.same[path] = encoded.dictionary[0].as_py()
        elif len(encoded.dictionary) < min(FEW, len(array) / 2):
            self.names[path] = encoded.dictionary.to_pylist()
            self.arrays[path] = np.asarray(encoded.indices.fill_null(len(encoded.dictionary))).astype(np.uint8)
        else:
            self._add_binary(path, array)

    def _add_binary(self, path: str, array: pa.Array) -> None:
        _, places, data = array.buffers()
        ends = np.zeros(1, dtype=np.int32)
        if len(array):
            ends = np.frombuffer(places, dtype=np.int32)[array.offset : array.offset + len(array) + 1]
        self.arrays[f"{path}#"] = ends - ends[0]
        self.arrays[path] = np.frombuffer(data or b"", dtype=np.uint8)[ends[0] : ends[-1]]

    def parts(self, rows: int) -> list[Buffer]:
        described, at = [], 0
        for path, array in self.arrays.items():
            described.append((path, array.dtype.str, array.shape, at))
            at += -(-array.nbytes // ALIGNED) * ALIGNED
        head = json.dumps({"rows": rows, "arrays": described, "names": self.names, "same": self.same}).encode()
        head += b" " * (-(len(head) + 8) % ALIGNED)
        parts: list[Buffer] = [len(head).to_bytes(8, "little") + head]
        for array in self.arrays.values():
            if array.nbytes:
                parts += [np.ascontiguousarray(array).data.cast("B"), b"\0" * (-array.nbytes % ALIGNED)]
        return parts


def _numbers(array: pa.Array, kind: str) -> np.ndarray:
    import pyarrow as pa

    types = {"bool": pa.bool_(), "float": pa.float32()}
    values = array.cast(types[kind] if kind in types else pa.type_for_alias(kind))
    if values.null_count:
        values = values.fill_null(False if kind == "bool" else 0)
    found: np.ndarray = values.to_numpy(zero_copy_only=False)
    return found


def _halved(values: np.ndarray) -> np.ndarray:
    """Numbers as float16 where it holds all of them exactly, as it does pixels of most pictures and their halves."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    return halves if np.array_equal(halves, values) else values


def _is_optional(field: dataclasses.Field[Any]) -> bool:
    return str(field.type).endswith("| None")


# --- from arrays to samples -------------------------------------------------------------------------------------------


class Unpacked:
    """The samples of a packed row group."""

    def __init__(self, data: Buffer, fetch: Fetch) -> None:
        """
        Args:
            data: the block of what `pack` gave. fetch: bytes of the shard, by offset and number: pictures lie there.
        """
        size = int.from_bytes(data[:8], "little")
        head = json.loads(bytes(data[8 : 8 + size]))
        self.num_rows: int = head["rows"]
        self.num_bytes = len(data)
        arrays = {}
        for path, dtype, shape, at in head["arrays"]:
            number = int(np.prod(shape))
            array = np.frombuffer(data, dtype=dtype, count=number, offset=8 + size + at)
            arrays[path] = array.reshape(shape) if len(shape) > 1 else array
        self._arrays = _Arrays(arrays=arrays, names=head["names"], same=head["same"], fetch=fetch)
        self._samples = _Structs("", Sample, self._arrays)

    @cached_property
    def asked(self) -> tuple[np.ndarray, np.ndarray]:
        """(conditions,) the row of each condition, and (conditions,) its category id."""
        counts = np.diff(self._arrays.arrays["conditions#"])
        rows = np.repeat(np.arange(self.num_rows), counts)
        path = "conditions[].category_id"
        if path in self._arrays.same:
            return rows, np.full(len(rows), self._arrays.same[path])
        return rows, self._arrays.arrays[path]

    def sample(self, row: int) -> Sample:
        """The sample of a row."""
        found: Sample = self._samples.values(row, row + 1)[0]
        return found


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Arrays:
    arrays: dict[str, np.ndarray]
    names: dict[str, list[str]]
    same: dict[str, Scalar]
    fetch: Fetch


class _Column(Protocol):
    """Values of a field, by the numbers of the first one and the one behind the last."""

    def values(self, start: int, stop: int) -> Sequence[Any]: ...


def _column(path: str, kind: str, given: _Arrays) -> _Column:
    """The column of a field; its nulls are none yet."""
    arrays = given.arrays
    if path in given.same:
        return _Same(given.same[path])
    if kind.startswith("list<"):
        if f"{path}#" not in arrays:
            return _Fixed(arrays[path])
        if not arrays[f"{path}#"][-1]:
            return _Same(())
        return _Lists(arrays[f"{path}#"], _column(path + ITEM, kind.removeprefix("list<").partition(">")[0], given))
    if kind in _VALUES:
        structs = _Structs(path, _VALUES[kind], given)
        return _Same(structs.values(0, 1)[0]) if structs.is_same else structs
    if path == PICTURE and f"{path}.start" in arrays:
        return _Elsewhere(arrays[f"{path}.start"], arrays[f"{path}.length"], given.fetch)
    if path in given.names:
        return _Named(arrays[path], given.names[path])
    if kind in ("string", "binary"):
        return _Texts(arrays[f"{path}#"], arrays[path], kind == "string")
    return _Numbers(arrays[path])


class _Same:
    """One value throughout; that of a dataclass is shared, as it cannot be changed."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def values(self, start: int, stop: int) -> list[Any]:
        return [self.value] * (stop - start)


class _Numbers:
    __slots__ = ("_array",)

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def values(self, start: int, stop: int) -> list[Any]:
        found: list[Any] = self._array[start:stop].tolist()
        return found


class _Fixed:
    __slots__ = ("_array",)

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def values(self, start: int, stop: int) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self._array[start:stop].tolist()]


class _Named:
    __slots__ = ("_codes", "_names")

    def __init__(self, codes: np.ndarray, names: list[str]) -> None:
        self._codes, self._names = codes, [*names, None]

    def values(self, start: int, stop: int) -> list[str | None]:
        names = self._names
        return [names[code] for code in self._codes[start:stop].tolist()]


class _Texts:
    __slots__ = ("_data", "_ends", "_is_text")

    def __init__(self, ends: np.ndarray, data: np.ndarray, is_text: bool) -> None:
        self._ends, self._data, self._is_text = ends, data, is_text

    def values(self, start: int, stop: int) -> list[Any]:
        ends = self._ends[start : stop + 1].tolist()
        first = ends[0]
        block = self._data[first : ends[-1]].tobytes()
        if self._is_text:
            return [block[a - first : b - first].decode() for a, b in pairwise(ends)]
        return [block[a - first : b - first] for a, b in pairwise(ends)]


class _Elsewhere:
    """Binaries that lie in the shard itself."""

    __slots__ = ("_fetch", "_lengths", "_starts")

    def __init__(self, starts: np.ndarray, lengths: np.ndarray, fetch: Fetch) -> None:
        self._starts, self._lengths, self._fetch = starts, lengths, fetch

    def values(self, start: int, stop: int) -> list[bytes | None]:
        places = zip(self._starts[start:stop].tolist(), self._lengths[start:stop].tolist(), strict=True)
        return [self._fetch(at, length) if length >= 0 else None for at, length in places]


class _Lists:
    __slots__ = ("_ends", "_inner")

    def __init__(self, ends: np.ndarray, inner: _Column) -> None:
        self._ends, self._inner = ends, inner

    def values(self, start: int, stop: int) -> list[tuple[Any, ...]]:
        ends = self._ends[start : stop + 1].tolist()
        first = ends[0]
        if ends[-1] == first:
            return [()] * (stop - start)
        inner = self._inner.values(first, ends[-1])
        return [tuple(inner[a - first : b - first]) for a, b in pairwise(ends)]


class _Optional:
    __slots__ = ("_inner", "_there")

    def __init__(self, there: np.ndarray, inner: _Column) -> None:
        self._there, self._inner = there, inner

    def values(self, start: int, stop: int) -> list[Any]:
        found = zip(self._inner.values(start, stop), self._there[start:stop].tolist(), strict=True)
        return [value if there else None for value, there in found]


class _Structs:
    """Values of a dataclass, filled field by field: its own `__init__`, called value by value, takes three times as
    long, and a sample has a hundred."""

    __slots__ = ("_columns", "_kind", "_same")

    def __init__(self, path: str, kind: type, given: _Arrays) -> None:
        self._kind = kind
        self._columns: list[tuple[Put, _Column]] = []
        self._same: list[tuple[Put, Any]] = []
        for field in dataclasses.fields(kind):
            name = f"{path}.{field.name}" if path else field.name
            column = _column(name, field.metadata["arrow"], given)
            if f"{name}?" in given.arrays:
                column = _Optional(given.arrays[f"{name}?"], column)
            put = getattr(kind, field.name).__set__
            if isinstance(column, _Same):
                self._same.append((put, column.value))
            else:
                self._columns.append((put, column))

    @property
    def is_same(self) -> bool:
        return not self._columns

    def values(self, start: int, stop: int) -> list[Any]:
        new, kind = object.__new__, self._kind
        made: list[Any] = [new(kind) for _ in range(stop - start)]
        for put, value in self._same:
            deque(map(put, made, repeat(value)), maxlen=0)
        for put, column in self._columns:
            deque(map(put, made, column.values(start, stop)), maxlen=0)
        return made
