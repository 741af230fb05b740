"""The format's markers, and the scanner that finds where they stand in a text."""

from __future__ import annotations

import re
from dataclasses import dataclass

IMAGE = "<image>"
PHRASE_OPEN = "<p>"
PHRASE_CLOSE = "</p>"
REGION = "<region>"
SEG = "<SEG>"
MARKERS = (IMAGE, PHRASE_OPEN, PHRASE_CLOSE, REGION, SEG)
REGION_SPAN = PHRASE_OPEN + REGION + PHRASE_CLOSE

_MARKER = re.compile("|".join(re.escape(marker) for marker in MARKERS))
_SPAN_PART = re.compile(f"{re.escape(PHRASE_OPEN)}|{re.escape(PHRASE_CLOSE)}")


class SpanError(ValueError):
    """`<p>` and `</p>` do not pair up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """`text[start:end]` is `<p>…</p>`, in code points; `content` is what stands between the markers."""

    start: int
    end: int
    content: str

    @property
    def is_region(self) -> bool:
        return self.content == REGION


def find_spans(text: str) -> list[Span]:
    """All `<p>…</p>` spans of `text`, in order.

    Raises:
        SpanError: a span is nested, never closed, or closed without being opened.
    """
    spans = []
    start: int | None = None
    for match in _SPAN_PART.finditer(text):
        if match.group() == PHRASE_OPEN:
            if start is not None:
                raise SpanError(f"<p> at {match.start()} stands inside the span opened at {start}")
            start = match.start()
        else:
            if start is None:
                raise SpanError(f"</p> at {match.start()} closes nothing")
            content = text[start + len(PHRASE_OPEN) : match.start()]
            spans.append(Span(start=start, end=match.end(), content=content))
            start = None
    if start is not None:
        raise SpanError(f"<p> at {start} is never closed")
    return spans


def count(text: str, marker: str) -> int:
    """How often a marker occurs in `text`."""
    return text.count(marker)


def escape(text: str) -> tuple[str, int]:
    """Make source text safe to place in a conversation.

    A marker's `<` becomes U+2039 and its `>` U+203A (single angle quotation marks), so that it reads the same
    to a person and is no marker to a tokenizer.

    What is no Unicode text (lone surrogates, which JSON can carry) becomes "?".

    Returns:
        the text, and how many markers were escaped.
    """
    text = text.encode("utf-8", "replace").decode()
    return _MARKER.subn(lambda match: "\u2039" + match.group()[1:-1] + "\u203a", text)
