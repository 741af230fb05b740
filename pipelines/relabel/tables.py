"""Pictures and entries as Arrow, column by column, by the fields of their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import accumulate, chain
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    import pyarrow as pa

Value = TypeVar("Value")
_FOUND: dict[Any, dict[str, Any]] = {}  # type hints, which take a while to find


def table_of(kind: type[Value], values: Sequence[Value]) -> pa.Table:
    """A row for each value, a column for each field."""
    import pyarrow as pa

    array = _column(kind, values)
    return pa.Table.from_arrays(array.flatten(), names=[field.name for field in array.type])


def column_of(kind: type[Value], values: Sequence[Value]) -> pa.Array:
    """Values as structs."""
    return _column(kind, values)


def lists_of(kind: type[Value], values: Sequence[Sequence[Value]]) -> pa.Array:
    """Lists of values as lists of structs."""
    return _lists(kind, values, None)


def values_of(kind: type[Value], rows: Sequence[dict[str, Any]]) -> list[Value]:
    """The values of rows, such as `Table.to_pylist` gives."""
    read: Callable[[Any], Value] = _reader(kind)  # type: ignore[arg-type]
    return [read(row) for row in rows]


def schema_of(kind: type) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(list(_type(kind)))


def _hints(kind: Any) -> dict[str, Any]:
    """The type hints of a dataclass's fields."""
    if kind not in _FOUND:
        hints = get_type_hints(kind)
        _FOUND[kind] = {field.name: hints[field.name] for field in fields(kind)}
    return _FOUND[kind]


def _without_none(hint: Any) -> Any:
    if get_origin(hint) is UnionType and NoneType in get_args(hint):
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    return hint


@cache
def _type(hint: Any) -> Any:
    """The Arrow type of a type hint."""
    import pyarrow as pa

    hint = _without_none(hint)
    plain = {str: pa.string(), bytes: pa.binary(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if hint in plain:
        return plain[hint]
    if get_origin(hint) is Literal:
        return pa.string()
    if get_origin(hint) is tuple:
        return pa.list_(_type(get_args(hint)[0]))
    return pa.struct([(name, _type(part)) for name, part in _hints(hint).items()])


def _column(hint: Any, values: Sequence[Any]) -> pa.Array:
    import pyarrow as pa

    hint = _without_none(hint)
    missing = [value is None for value in values]
    mask = pa.array(missing, pa.bool_()) if any(missing) else None
    if is_dataclass(hint):
        parts: list[Any] = []
        for name, part in _hints(hint).items():
            parts.append(_column(part, [None if value is None else getattr(value, name) for value in values]))
        return pa.StructArray.from_arrays(parts, fields=list(_type(cast(Any, hint))), mask=mask)
    if get_origin(hint) is tuple:
        return _lists(get_args(hint)[0], [() if value is None else value for value in values], mask)
    return pa.array(values, _type(hint))


def _lists(part: Any, values: Sequence[Sequence[Any]], mask: Any) -> pa.Array:
    import pyarrow as pa

    offsets = pa.array([0, *accumulate(map(len, values))], pa.int32())
    return pa.ListArray.from_arrays(offsets, _column(part, list(chain.from_iterable(values))), mask=mask)


@cache
def _reader(hint: Any) -> Callable[[Any], Any]:
    """What makes a value of what Arrow gives for it."""
    hint = _without_none(hint)
    if is_dataclass(hint):
        parts, make = {name: _reader(part) for name, part in _hints(hint).items()}, cast(Callable[..., Any], hint)
        return lambda row: None if row is None else make(**{name: read(row[name]) for name, read in parts.items()})
    if get_origin(hint) is tuple:
        read = _reader(get_args(hint)[0])
        return lambda row: None if row is None else tuple(map(read, row))
    return lambda row: row
