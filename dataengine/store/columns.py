"""Fields of nested lists as flat arrays: of a table of samples, the objects, prompts, turns and conditions of all rows.

Only the leaves that are asked for need to be read: `leaves` names them for `Dataset.tables`, `rows` takes its tables.

    for table in dataset.tables(leaves("height", "objects.area", "objects.prompts.kind")):
        objects = rows(table).each("objects")
        objects.numbers("area"), objects.row           # (n,) each: the area of every object, and the row it stands in
        objects.each("prompts").texts("kind")          # of every prompt of every object
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from dataengine.sample import arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa


def leaves(*fields: str) -> list[str]:
    """Parquet's paths of fields of a sample: `objects.area` is `objects.list.element.area`.

    A field that holds others stands for all of them, so name its leaves. Raises KeyError where a sample has no such
    field.
    """
    return [_leaf(field) for field in fields]


@cache
def _leaf(field: str) -> str:
    import pyarrow as pa

    schema = arrow_schema()
    name, *rest = field.split(".")
    kind, path = schema.field(name).type, name
    for part in rest:
        if pa.types.is_list(kind):
            kind, path = kind.value_type, f"{path}.list.element"
        kind, path = kind.field(part).type, f"{path}.{part}"
    return f"{path}.list.element" if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) else path


def rows(table: pa.Table) -> Elements:
    """The rows of a table. It may hold any columns, with only some of their leaves."""
    import pyarrow as pa

    arrays = [column.combine_chunks() for column in table.columns]
    values = pa.StructArray.from_arrays(arrays, names=table.column_names)
    every = np.arange(table.num_rows)
    return Elements(values=values, row=every, parent=every, num_rows=table.num_rows, counts=np.ones_like(every))


@dataclass(frozen=True, slots=True, kw_only=True)
class Elements:
    """Elements of the same kind, one after the other, in order of the rows and in their order there.

    values: their fields, (n,). row: (n,) int64, ascending: the row of the table that each stands in. parent: (n,)
    int64, ascending: the number of the element one level up that holds it (for elements of rows, the same as `row`).
    num_rows: of the table. counts: (number of parents,) int64: how many elements each parent has; 0 for a null list.
    """

    values: pa.StructArray
    row: np.ndarray
    parent: np.ndarray
    num_rows: int
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def each(self, name: str) -> Elements:
        """The elements of a list of structs, such as `objects` of rows or `prompts` of objects."""
        import pyarrow.compute as pc

        lists = self.array(name)
        counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        parent = np.repeat(np.arange(len(counts)), counts)
        return Elements(
            values=lists.flatten(), row=self.row[parent], parent=parent, num_rows=self.num_rows, counts=counts
        )

    def array(self, name: str) -> pa.Array:
        """A field, (n,); null where it is null or what holds it is: `lineage.score`, `image.path`.

        Raises:
            ArrowInvalid: it is not among the columns that were read.
        """
        import pyarrow.compute as pc

        return pc.struct_field(self.values, name.split("."))

    def valid(self, name: str) -> np.ndarray:
        """(n,) bool: whether a field is there."""
        there: np.ndarray = self.array(name).is_valid().to_numpy(zero_copy_only=False)
        return there

    def numbers(self, name: str, null: float | None = None) -> np.ndarray:
        """A field of numbers, (n,) of the field's dtype; nulls become `null`, or else NaN, in float64."""
        import pyarrow.compute as pc

        array = self.array(name)
        if null is not None:
            array = pc.fill_null(array, null)
        values: np.ndarray = array.to_numpy(zero_copy_only=False)
        return values

    def texts(self, name: str) -> Texts:
        """A field of texts, of which few are different."""
        encoded = self.array(name).dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return Texts(codes=codes, names=tuple(encoded.dictionary.to_pylist()))

    def per_row(self, values: np.ndarray, how: np.ufunc, empty: float) -> np.ndarray:
        """What comes of the elements of each row, (num_rows,) of the values' dtype.

        Args:
            values: (n,), one for each element. how: `np.add`, `np.minimum`, `np.maximum`, `np.bitwise_or`, ….
            empty: for rows without elements.
        """
        result = np.full(self.num_rows, empty, dtype=values.dtype)
        if len(values):
            starts = np.flatnonzero(np.diff(self.row, prepend=-1))
            result[self.row[starts]] = how.reduceat(values, starts)
        return result

    def num_per_row(self) -> np.ndarray:
        """How many elements each row has, (num_rows,) int64."""
        return np.bincount(self.row, minlength=self.num_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """codes: (n,) int32, indices of `names`, -1 for null. names: each once, in the order in which they first occur."""

    codes: np.ndarray
    names: tuple[str, ...]

    def to_list(self) -> list[str | None]:
        """(n,): the texts."""
        names = [*self.names, None]  # which -1 means
        return [names[code] for code in self.codes.tolist()]


def combine(texts: Sequence[Texts]) -> tuple[np.ndarray, list[tuple[str | None, ...]]]:
    """Several fields of the same elements as one.

    Args:
        texts: at least one, each (n,).
    Returns:
        (n,) int64 indices of the combinations, and those that there are.
    """
    codes = np.zeros(len(texts[0].codes), dtype=np.int64)
    for one in texts:
        codes = codes * (len(one.names) + 1) + one.codes + 1
    found, places = _numbered(codes)
    keys = []
    for code in found.tolist():
        key: list[str | None] = []
        for one in reversed(texts):
            code, digit = divmod(code, len(one.names) + 1)
            key.append(one.names[digit - 1] if digit else None)
        keys.append(tuple(reversed(key)))
    return places, keys


def _numbered(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct codes, and the place of each code among them; without sorting, where they are small numbers."""
    if not len(codes) or codes.max() >= 1 << 16:
        return np.unique(codes, return_inverse=True)
    found = np.flatnonzero(np.bincount(codes))
    places = np.zeros(found[-1] + 1, dtype=np.int64)
    places[found] = np.arange(len(found))
    return found, places[codes]
