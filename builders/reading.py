"""What all builders share between an index row and its outcome: bad records, objects, categories, texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from builders.rows import Row
from dataengine import masks, tokens
from dataengine.builder import Context, Outcome, SourceError
from dataengine.errors import ReasonError
from dataengine.records import MAX_MESSAGE, MAX_PAYLOAD, Account, Bad
from dataengine.sample import HUMAN, Lineage, Object

INT32_MAX = 2**31 - 1


class RecordError(ReasonError):
    """A record that cannot be used."""


def outcomes(
    context: Context,
    rows: Iterable[Row],
    make: Callable[[Context, Row], Outcome],
    counts: Callable[[Row], Counter[str]],
    unit: str = "images",
) -> Iterator[Outcome]:
    """The outcome of each row; a row that raises ReasonError, or meets a defect, is quarantined whole.

    Args:
        make: the outcome of a row that can be used.
        counts: what a row holds besides itself, by unit; it must work for any row. unit: what a row is.
    """
    for row in rows:
        try:
            outcome = make(context, row)
        except ReasonError as error:
            outcome = _refused(context, row, error, counts(row), unit)
        except (OSError, MemoryError, SourceError):
            raise
        except Exception as error:  # a defect; but this row's, not the job's
            defect = RecordError("internal_error", f"{type(error).__name__}: {error}")
            outcome = _refused(context, row, defect, counts(row), unit)
        yield outcome


def _refused(context: Context, row: Row, error: ReasonError, held: Counter[str], unit: str) -> Outcome:
    """What becomes of a row that cannot be used; what it holds is counted as left out."""
    payload = f'{{"record": {row.record}, "members": [{", ".join(row.members)}]}}'
    found = bad(unit, context.extra["file"], f"{unit.removesuffix('s')} {row.key}", row, error, payload)
    account = Account(read=Counter({unit: 1}) + held)
    for other, number in held.items():
        account.filter(other, f"{unit.removesuffix('s')}_quarantined", number)
    account.quarantine([found])
    return Outcome(group=row.key, unit=unit, bad=[found], account=account)


def bad(unit: str, file: str, record: str, row: Row, error: ReasonError, payload: str) -> Bad:
    """A bad record of a row. record: what messages call it."""
    return Bad(
        unit=unit,
        file=file,
        record=record,
        group=row.key,
        reason=error.reason,
        message=str(error)[:MAX_MESSAGE],
        payload=payload[:MAX_PAYLOAD],
    )


# --- checked values --------------------------------------------------------------------------------------------------


def is_whole(value: Any) -> bool:
    """Whether a JSON value can be an id: a whole number from 0 that fits 62 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def checked_size(record: dict[str, Any]) -> tuple[int, int]:
    """`height` and `width` of a record, px.

    Raises:
        RecordError: `bad_field`.
    """
    height, width = record.get("height"), record.get("width")
    if not is_whole(height) or not is_whole(width) or not 0 < height * width < masks.MAX_PIXELS:  # type: ignore[operator]
        raise RecordError("bad_field", f"height {height!r} and width {width!r} must be whole numbers of pixels")
    return height, width  # type: ignore[return-value]


def checked_category(value: Any, categories: Collection[int]) -> int:
    """A category id that exists.

    Raises:
        RecordError: `unknown_category`.
    """
    if not is_whole(value) or value not in categories:
        raise RecordError("unknown_category", f"category {value!r} does not exist")
    return int(value)


def checked_flag(value: Any, field: str = "iscrowd") -> bool:
    """A flag that is 0 or 1.

    Raises:
        RecordError: `bad_field`.
    """
    if value not in (0, 1):  # True and False are 1 and 0
        raise RecordError("bad_field", f"{field} must be 0 or 1, not {value!r}")
    return bool(value)


def make_object(
    rle: bytes,
    height: int,
    width: int,
    category: int,
    annotation_id: str,
    *,
    crowd: bool = False,
    lineage: Lineage = HUMAN,
    measured: tuple[int, tuple[int, int, int, int]] | None = None,
) -> Object:
    """An object with the area and the box of its mask.

    Args:
        rle: compressed COCO counts on height x width. category: -1 where there is none. measured: what `masks.measure`
            says of the mask, where that is known.
    """
    area, (x, y, w, h) = measured or masks.measure(rle, height, width)
    return Object(
        rle=rle,
        bbox=(float(x), float(y), float(w), float(h)),
        area=area,
        category_id=category,
        annotation_id=annotation_id,
        crowd=crowd,
        lineage=lineage,
    )


# --- texts -----------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Text without the lone surrogates that JSON can carry."""
    return text.encode("utf-8", "replace").decode()


def clean_name(name: str) -> str:
    """A category name as it is written in a prompt: X-SAM's AAAI form ("sky-other-merged" becomes "sky")."""
    cleaned = name
    for suffix in ("-merged", "-other", "-stuff"):
        cleaned = cleaned.replace(suffix, "")
    cleaned = cleaned if cleaned.strip("- \n\t") else name
    return tokens.escape(" ".join(cleaned.replace("-", " ").lower().split()))[0]


def clean_phrase(text: Any, field: str) -> tuple[str, int]:
    """A phrase or sentence of a source, safe to place in a conversation, and how many markers were escaped in it.

    White space is single, nothing else changes.

    Raises:
        RecordError: `bad_text`: it is no text, or holds no word.
    """
    if not isinstance(text, str) or not text.strip():
        raise RecordError("bad_text", f"{field} {text!r} is no text")
    return tokens.escape(" ".join(text.split()))
