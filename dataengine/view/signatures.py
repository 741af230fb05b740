"""A signature of each row of a table: 64 bits that differ where its values do.

FNV-1a over the values of every leaf that belong to a row, leaf by leaf: numbers as they lie in memory, texts and codes
as bytes, list lengths, and which values are null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dataengine.kernels.compiled import compiled

if TYPE_CHECKING:
    import pyarrow as pa

BASIS, PRIME = 0xCBF29CE484222325, 0x100000001B3  # http://www.isthe.com/chongo/tech/comp/fnv/


def signatures(table: pa.Table) -> np.ndarray:
    """(rows,) uint64. Columns are taken by name, so that their order does not matter."""
    found = np.full(table.num_rows, BASIS, dtype=np.uint64)
    every = np.arange(table.num_rows + 1, dtype=np.int64)
    for name in sorted(table.column_names):
        _add(found, table.column(name).combine_chunks(), every)
    return found


def _add(found: np.ndarray, array: pa.Array, bounds: np.ndarray) -> None:
    """bounds: (rows + 1,) int64; the values of row i are array[bounds[i] : bounds[i + 1]]."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    _mix(found, array.is_valid().to_numpy(zero_copy_only=False).view(np.uint8), bounds)
    if pa.types.is_struct(kind):
        names = sorted(field.name for field in kind)
        for name in names:
            _add(found, pc.struct_field(array, name), bounds)
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        _mix(found, lengths, bounds)
        _add(found, array.flatten(), np.concatenate([[0], np.cumsum(lengths)])[bounds])
    elif pa.types.is_binary(kind) or pa.types.is_string(kind):
        filled = pc.fill_null(array.cast(pa.binary()), b"")
        _, offsets, data = filled.buffers()
        ends = np.frombuffer(offsets, dtype=np.int32)[filled.offset : filled.offset + len(filled) + 1]
        _mix(found, np.diff(ends), bounds)
        content = np.frombuffer(data, dtype=np.uint8) if data else np.zeros(0, dtype=np.uint8)
        _mix(found, content, ends.astype(np.int64)[bounds])
    else:
        values = pc.fill_null(array, False if pa.types.is_boolean(kind) else 0).to_numpy(zero_copy_only=False)
        _mix(found, values, bounds)


def _mix(found: np.ndarray, values: np.ndarray, bounds: np.ndarray) -> None:
    _fnv(found, np.ascontiguousarray(values).view(np.uint8), bounds * values.itemsize)


@compiled
def _fnv(found: np.ndarray, data: np.ndarray, bounds: np.ndarray) -> None:
    prime = np.uint64(PRIME)
    for row in range(len(found)):
        value = found[row]
        for at in range(bounds[row], bounds[row + 1]):
            value = (value ^ np.uint64(data[at])) * prime
        found[row] = value
