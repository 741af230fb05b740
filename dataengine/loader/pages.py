"""Where the values of a plain, uncompressed Parquet column of binaries lie in the file, so that one can be read alone.

Shards keep pictures like that. The layout is Parquet's format specification (Encodings.md: PLAIN, RLE; parquet.thrift:
PageHeader), its headers are in Thrift's compact protocol.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow.parquet as pq

HEADER_BYTES = 1 << 16  # of a page; its statistics may hold a value
DATA_PAGE, DATA_PAGE_V2 = 0, 3  # PageType
PLAIN, RLE = 0, 3  # Encoding

Read = Callable[[int, int], bytes]


class PageError(ValueError):
    """A column whose values cannot be found like this: damaged, or written in another way."""


def places(read: Read, footer: pq.FileMetaData, group: int, leaf: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Where each value of a column of a row group lies.

    Args:
        read: bytes of the file, by offset and number; fewer at its end. leaf: path of the column, no list.
    Returns:
        (rows,) int64 offset in the file, and (rows,) int64 length in bytes, -1 for null; None where the column is not
        plain and uncompressed.
    Raises:
        PageError: it says that it is, but its pages do not hold as many values.
    """
    about = footer.row_group(group)
    column = next(i for i in range(about.num_columns) if about.column(i).path_in_schema == leaf)
    chunk, levels = about.column(column), footer.schema.column(column)
    plain = (
        chunk.physical_type == "BYTE_ARRAY" and chunk.compression == "UNCOMPRESSED" and not chunk.has_dictionary_page
    )
    if not plain or levels.max_repetition_level:
        return None
    width = levels.max_definition_level.bit_length()
    at, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
    found: list[tuple[int, int]] = []
    try:
        while at < end and len(found) < about.num_rows:
            header, size = _header(read(at, min(HEADER_BYTES, end - at)))
            at += size
            stop = at + _whole(header[3])
            if stop > end:
                raise PageError("a page reaches beyond its column")
            if header[1] in (DATA_PAGE, DATA_PAGE_V2):
                found += _page(read, header, at, stop, about.num_rows, width, levels.max_definition_level)
            at = stop
    except (KeyError, IndexError, TypeError, struct.error) as error:
        raise PageError(f"a page header is damaged ({type(error).__name__})") from None
    if len(found) != about.num_rows:
        raise PageError(f"its pages hold {len(found)} values, not {about.num_rows}")
    both = np.array(found, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _page(
    read: Read, header: dict[int, Any], at: int, stop: int, rows: int, width: int, defined: int
) -> list[tuple[int, int]]:
    """Offset and length of each value of a page that lies from `at` to `stop`, of at most `rows` values."""
    about = header[5] if header[1] == DATA_PAGE else header[8]
    number = _whole(about[1])
    if about[2 if header[1] == DATA_PAGE else 4] != PLAIN:
        raise PageError("a page is not plain")
    if header[1] == DATA_PAGE:
        size = struct.unpack("<I", read(at, 4))[0] if width else 0
        at += 4 if width else 0
    else:
        size = _whole(about[5])
    if at + size > stop or number > rows:
        raise PageError("a page holds more than it can")
    there = _levels(read(at, size), width, number) == defined if width else np.ones(number, dtype=bool)
    at += size
    found = []
    for is_there in there.tolist():
        if not is_there:
            found.append((0, -1))
            continue
        length = struct.unpack("<I", read(at, 4))[0]
        at += 4
        if at + length > stop:
            raise PageError("a value reaches beyond its page")
        found.append((at, length))
        at += length
    if at != stop:
        raise PageError("a page is longer than its values")
    return found


def _levels(data: bytes, width: int, number: int) -> np.ndarray:
    """Levels in Parquet's hybrid of runs and bit-packed groups of eight."""
    levels = np.zeros(number, dtype=np.int64)
    at = done = 0
    while done < number:
        head, at = _varint(data, at)
        count = head >> 1
        if head & 1:
            packed = np.frombuffer(data, dtype=np.uint8, count=min(count * width, len(data) - at), offset=at)
            bits = np.unpackbits(packed, bitorder="little")
            values = bits[: len(bits) // width * width].reshape(-1, width) @ (1 << np.arange(width))
            at, count = at + count * width, len(values)
        else:
            size = (width + 7) // 8
            values = np.full(min(count, number - done), int.from_bytes(data[at : at + size], "little"))
            at += size
        if not count:
            raise PageError("a page's levels are damaged")
        part = values[: number - done]
        levels[done : done + len(part)] = part
        done += len(part)
    return levels


# --- Thrift's compact protocol ----------------------------------------------------------------------------------------


def _header(data: bytes) -> tuple[dict[int, Any], int]:
    """The fields of a struct by number, and how many bytes it took."""
    return _struct(data, 0, 0)


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    if depth > 8:
        raise PageError("a page header is damaged (its depth)")
    fields: dict[int, Any] = {}
    number = 0
    while data[at]:
        kind, step = data[at] & 15, data[at] >> 4
        at += 1
        if step:
            number += step
        else:
            coded, at = _varint(data, at)
            number = _zigzag(coded)
        fields[number], at = _value(data, at, kind, depth)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        coded, at = _varint(data, at)
        return _zigzag(coded), at
    if kind == 7:
        return struct.unpack_from("<d", data, at)[0], at + 8
    if kind == 8:
        size, at = _varint(data, at)
        return data[at : at + size], at + size
    if kind == 12:
        return _struct(data, at, depth + 1)
    raise PageError(f"a page header is damaged (type {kind})")  # lists and maps are in none


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while data[at] & 128:
        number |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if shift > 63:
            raise PageError("a page header is damaged (a number)")
    return number | data[at] << shift, at + 1


def _zigzag(coded: int) -> int:
    return (coded >> 1) ^ -(coded & 1)


def _whole(number: Any) -> int:
    if not isinstance(number, int) or number < 0:
        raise PageError(f"a page header is damaged ({number!r})")
    return number
