"""What a request asks for: its parameters, checked before anything is done with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dataengine.errors import UserError
from dataengine.view.catalog import FACETS, RANGES, Filters, check_sort

if TYPE_CHECKING:
    from starlette.datastructures import QueryParams

MAX_TEXT = 500  # characters of a value
MAX_VALUES = 200  # of one parameter
MAX_LIMIT = 500
CHANGES = ("same", "changed", "added", "removed")


def whole(params: QueryParams, name: str, default: int | None = None, low: int = 0, high: int = 2**53) -> int:
    """A whole number; one that is too large becomes `high`.

    Raises:
        UserError: it is none, or below `low`.
    """
    text = params.get(name)
    if text is None or text == "":
        if default is None:
            raise UserError(f"{name} is missing")
        return default
    if len(text) > 20 or not (text.isascii() and text.removeprefix("-").isdigit()):
        raise UserError(f"{name} is no whole number")
    number = int(text)
    if number < low:
        raise UserError(f"{name} is {number}; {low} is the least")
    return min(number, high)


def texts(params: QueryParams, name: str) -> tuple[str, ...]:
    """The values of a parameter that may be repeated.

    Raises:
        UserError: there are too many, one is too long, or is no text.
    """
    values = tuple(value for value in dict.fromkeys(params.getlist(name)) if value)
    if len(values) > MAX_VALUES:
        raise UserError(f"{name} is given {len(values)} times; {MAX_VALUES} at most")
    for value in values:
        if len(value) > MAX_TEXT:
            raise UserError(f"{name} has {len(value):,} characters; {MAX_TEXT} at most")
        if "\0" in value or any("\ud800" <= mark <= "\udfff" for mark in value):
            raise UserError(f"{name} is no text")
    return values


def text(params: QueryParams, name: str) -> str:
    """The value of a parameter, or "". Raises UserError."""
    values = texts(params, name)
    if len(values) > 1:
        raise UserError(f"{name} is given {len(values)} times")
    return values[0] if values else ""


def filters(params: QueryParams) -> Filters:
    """Raises UserError: something in it is wrong."""
    facets = ((name, texts(params, name)) for name in FACETS)
    changes = texts(params, "change")
    if unknown := [change for change in changes if change not in CHANGES]:
        raise UserError(f"change={unknown[0]}: one of {', '.join(CHANGES)} is needed")
    return Filters(
        facets=tuple((name, values) for name, values in facets if values),
        ranges=tuple(_range(params, name) for name in RANGES if text(params, name)),
        text=text(params, "q"),
        ambiguous=text(params, "ambiguous") == "1",
        change=changes,
    )


def order(params: QueryParams) -> tuple[str, bool]:
    """What rows are sorted by, and whether the largest comes first. Raises UserError."""
    return check_sort(text(params, "sort") or "number"), text(params, "desc") == "1"


def _range(params: QueryParams, name: str) -> tuple[str, float, float]:
    low, mark, high = text(params, name).partition("..")
    if not mark:
        raise UserError(f"{name} is no LO..HI")
    return name, _number(name, low, -math.inf), _number(name, high, math.inf)


def _number(name: str, text: str, default: float) -> float:
    try:
        number = float(text) if text.strip() else default
    except ValueError:
        raise UserError(f"{name} is no LO..HI: {text[:40]!r} is no number") from None
    if math.isnan(number):
        raise UserError(f"{name} is no LO..HI: NaN is no number")
    return number


def page(params: QueryParams, default: int = 50) -> tuple[int, int]:
    """offset, and a limit of at most MAX_LIMIT. Raises UserError."""
    return whole(params, "offset", 0), whole(params, "limit", default, low=1, high=MAX_LIMIT)


def index_of(params: QueryParams, values: Sequence[object]) -> int:
    """Which dataset is asked for. Raises UserError: there is none of that number."""
    number = whole(params, "d", 0)
    if number >= len(values):
        raise UserError(f"d={number}: there are {len(values)} datasets")
    return number
