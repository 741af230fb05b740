"""Phrases in a caption: where they stand once it is stripped, which of them are kept, the caption with its `<p>` tags.

A span is [start, end) in code points of the stripped caption. Published offsets refer to the caption as it is in the
file, so they move with what is stripped in front.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from dataengine import tokens

Span = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """A stripped caption.

    folded: in lower case, of the same length. shift: code points stripped in front. raw_length: of the published one.
    """

    text: str
    folded: str
    shift: int
    raw_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """A caption with tags, the phrases between them, and how many markers of its own were escaped."""

    caption: str
    phrases: tuple[str, ...]
    escaped: int


def strip_caption(raw: str) -> Caption:
    """A caption without the blanks and double quotes around it."""
    text = raw.strip().strip('"').strip()
    return Caption(text=text, folded=_fold(text), shift=raw.index(text), raw_length=len(raw))


def published(caption: Caption, start: int, end: int) -> Span | None:
    """The span of published offsets, without blanks at its ends; None where they hold nothing or leave it."""
    if not 0 <= start < end <= caption.raw_length:
        return None
    start = max(start - caption.shift, 0)
    inside = caption.text[start : max(end - caption.shift, 0)]
    start += len(inside) - len(inside.lstrip())
    return (start, start + len(inside.strip())) if inside.strip() else None


def says(caption: Caption, span: Span, phrase: str) -> bool:
    """Whether a span is a phrase, in any case."""
    return caption.folded[slice(*span)] == _fold(phrase.strip())


def find(caption: Caption, phrase: str, near: int | None = None, taken: Collection[Span] = ()) -> Span | None:
    """Where a phrase stands in any case; None where it does not.

    Whole words come before words that only begin with it ("giraffe" in "giraffes"); it never begins inside a word.

    Args:
        near: the nearest to this place is meant; else the first that is not taken yet, or the first.
    """
    wanted = _fold(phrase.strip())
    whole: list[Span] = []
    begun: list[Span] = []
    at = caption.folded.find(wanted) if wanted else -1
    while at >= 0:
        end = at + len(wanted)
        if not _is_inside_word(caption.text, at):
            (begun if _is_inside_word(caption.text, end) else whole).append((at, end))
        at = caption.folded.find(wanted, at + 1)
    places = whole or begun
    if not places:
        return None
    if near is not None:
        return min(places, key=lambda span: abs(span[0] - near))
    return next((span for span in places if span not in taken), places[0])


def without_overlaps(spans: Iterable[Span]) -> list[Span]:
    """Those that are kept: by their start, each that begins where or after the last kept one ends.

    Of spans with one start the first given is kept.
    """
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: span[0]):
        if not kept or span[0] >= kept[-1][1]:
            kept.append(span)
    return kept


def tag(caption: Caption, spans: Sequence[Span], lower: bool) -> Tagged:
    """The caption with `<p>` and `</p>` around each span.

    Args:
        spans: in order, without overlaps. lower: whether the caption is written in lower case.
    """
    pieces, phrases, escaped, at = [], [], 0, 0
    for start, end in [*spans, (len(caption.text), len(caption.text))]:
        for piece in (caption.text[at:start], caption.text[start:end]):
            text, number = tokens.escape(piece.lower() if lower else piece)
            pieces.append(text)
            escaped += number
        at = end
        phrases.append(pieces[-1])
    tagged = "".join(
        f"{before}{tokens.PHRASE_OPEN}{phrase}{tokens.PHRASE_CLOSE}"
        for before, phrase in zip(pieces[:-2:2], pieces[1:-2:2], strict=True)
    )
    return Tagged(caption=tagged + pieces[-2], phrases=tuple(phrases[:-1]), escaped=escaped)


def _fold(text: str) -> str:
    """Lower case of the same length, so that offsets stay, letter by letter, so that a part folds as the whole does.

    A letter whose small form is longer becomes the first of its code points; both small sigmas are one.
    """
    return text.lower() if text.isascii() else "".join(c.lower()[0] for c in text).replace("ς", "σ")


def _is_inside_word(text: str, at: int) -> bool:
    return 0 < at < len(text) and _is_of_word(text[at - 1]) and _is_of_word(text[at])


def _is_of_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character)[0] == "M"  # marks: accents, vowel signs
