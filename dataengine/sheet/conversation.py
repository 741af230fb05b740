"""A card's header and turns: text broken into lines, phrases as chips in the colour of their masks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dataengine import tokens
from dataengine.sample import Condition, Sample
from dataengine.sheet.look import (
    ABSENT,
    CARD,
    FAINT,
    GUTTER,
    INK,
    MAX_ABSENT,
    MAX_LINES,
    MAX_PHRASE,
    MAX_TEXT,
    MAX_TURNS,
    PAD,
    RGB,
    SEG,
    SMALL_PX,
    TEXT_PX,
    colors_of,
    tags_of,
    with_objects,
)
from dataengine.sheet.text import (
    BREAK,
    Line,
    Piece,
    drawable_text,
    right_end,
    shortened,
    text_block,
    text_width,
)

if TYPE_CHECKING:
    from PIL import Image as Pillow


def header_lines(sample: Sample, width: int) -> list[Line]:
    task = Piece(text=drawable_text(sample.task), ink=CARD, chip=INK, px=SMALL_PX)
    name = shortened(drawable_text(sample.sample_id), TEXT_PX, width - task.width - 8)
    facts = [sample.variant] if sample.variant else []
    facts.append("text only" if sample.image is None else f"{sample.width} x {sample.height} px")
    if sample.objects:
        facts.append(_counted(len(sample.objects), "object"))
    if sample.conditions:
        absent = len(sample.conditions) - len(with_objects(sample))
        facts.append(
            _counted(len(sample.conditions), "condition") + (f", {absent} without an object" if absent else "")
        )
    text = shortened(drawable_text(" · ".join(facts)), SMALL_PX, width)
    return [[(0.0, task), (task.width + 8, Piece(text=name))], [(0.0, Piece(text=text, ink=FAINT, px=SMALL_PX))]]


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number != 1 else ''}"


def turn_blocks(sample: Sample, width: int) -> Iterator[Pillow.Image]:
    """A block for each turn: who speaks in the gutter, what is said beside it."""
    for number, turn in enumerate(sample.turns[:MAX_TURNS]):
        lines = _wrapped(list(_pieces(sample, number)), width - GUTTER)
        if len(lines) > MAX_LINES:
            more = Piece(text=f"… +{len(lines) - MAX_LINES} more lines", ink=FAINT)
            lines = [*lines[:MAX_LINES], [(0.0, more)]]
        shown = [[(x + GUTTER, piece) for x, piece in line] for line in lines] or [[]]
        role = shortened(drawable_text(turn.role), SMALL_PX, GUTTER - 8)
        shown[0] = [(0.0, Piece(text=role, ink=FAINT, px=SMALL_PX)), *shown[0]]
        yield text_block(shown, width)
    if len(sample.turns) > MAX_TURNS:
        more = Piece(text=f"… +{_counted(len(sample.turns) - MAX_TURNS, 'more turn')}", ink=FAINT)
        yield text_block([[(float(GUTTER), more)]], width)


def _pieces(sample: Sample, turn: int) -> Iterator[Piece]:
    """A turn in words and chips; of many categories without an object, all but a few are only counted."""
    text = sample.turns[turn].text
    colors, tags = colors_of(sample), tags_of(sample)
    spans = [(n, c) for n, c in enumerate(sample.conditions) if c.turn == turn and c.start >= 0]
    hidden = _hidden(spans, text)
    at = 0
    for number, condition in spans:
        between = text[at : condition.start]
        at = condition.end
        if number not in hidden:
            yield from _words(between)
            yield from _chip(condition, number, colors.get(number), tags.get(number, ""), between[-1:].isspace())
    if hidden:
        yield Piece(text=f"… +{len(hidden)} more", ink=FAINT)
    yield from _words(text[at:])


def _hidden(spans: Sequence[tuple[int, Condition]], text: str) -> set[int]:
    """Conditions of a list that are only counted: without an object, after the first few."""
    absent, before = [], 0
    for number, condition in spans:
        listed = text[before : condition.start].strip() in (",", "")
        before = condition.end
        if condition.kind == "phrase" and not condition.objects:
            absent.append((number, listed))
    if len(absent) <= MAX_ABSENT + 2:
        return set()
    return {number for number, listed in absent[MAX_ABSENT:] if listed}


def _chip(condition: Condition, number: int, color: RGB | None, tag: str, gap: bool) -> Iterator[Piece]:
    """The chip of a condition; a long phrase is made of words that may stand on several lines."""
    shown = condition.text
    if condition.kind == "region":
        shown = f"{tokens.REGION} {condition.text}" + (" (other picture)" if condition.reference >= 0 else "")
    text = drawable_text(shown[:MAX_PHRASE] + ("…" if len(shown) > MAX_PHRASE else "")).strip() or " "
    chip, ink = (color, _ink_on(color)) if color else (ABSENT, FAINT)
    words = text.split() if len(text) > 28 else [text]
    for place, word in enumerate(words):
        first = place == 0
        yield Piece(text=word, ink=ink, chip=chip, tag=tag if first else "", gap=gap or not first, run=number)


def _ink_on(color: RGB) -> RGB:
    """The text colour with more contrast, by WCAG's relative luminance."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    return INK if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.19 else CARD


_SPLIT = re.compile(rf"({re.escape(tokens.SEG)}|{re.escape(tokens.IMAGE)}|\r\n|[\n\r]|\s+)")


def _words(text: str) -> Iterator[Piece]:
    gap, before = False, ""
    cut = text[:MAX_TEXT] + ("…" if len(text) > MAX_TEXT else "")
    for part in _SPLIT.split(cut):
        if part in ("\n", "\r", "\r\n"):
            if before != tokens.IMAGE:
                yield BREAK
        elif part in (tokens.SEG, tokens.IMAGE):
            ink, chip = (CARD, SEG) if part == tokens.SEG else (FAINT, ABSENT)
            yield Piece(text=part, ink=ink, chip=chip, gap=gap)
        elif part and not part.isspace():
            word = drawable_text(part).strip()
            if word:
                yield Piece(text=word, gap=gap)
        gap = part.isspace() or (gap and not part)
        before = part or before


def _wrapped(pieces: Sequence[Piece], width: int) -> list[Line]:
    """Lines of at most that many pixels; a piece without a gap stays with the one before it."""
    lines: list[Line] = [[]]
    at = 0
    while at < len(pieces):
        end = at + 1
        while end < len(pieces) and not pieces[end].gap and pieces[end] is not BREAK:
            end += 1
        if pieces[at] is BREAK:
            if lines[-1]:
                lines.append([])
            at += 1
            continue
        unit = [_fitting(piece, width - 12) for piece in pieces[at:end]]  # room for a comma
        if lines[-1] and right_end(_set(lines[-1], unit)) > width:
            lines.append([])
        for piece in unit:  # one by one, should the unit be wider than a line
            if lines[-1] and right_end(_set(lines[-1], [piece])) > width:
                lines.append([])
            lines[-1] = _set(lines[-1], [piece])
        at = end
    return lines if lines[-1] else lines[:-1]


def _set(line: Line, pieces: Sequence[Piece]) -> Line:
    """The line with pieces added at its end."""
    longer = list(line)
    for piece in pieces:
        x = right_end(longer)
        if longer:
            x += text_width(" ", piece.px) if piece.gap else 1.0 if piece.chip or longer[-1][1].chip else 0.0
            if piece.run >= 0 and piece.run == longer[-1][1].run:
                x -= 2 * PAD
        longer.append((x, piece))
    return longer


def _fitting(piece: Piece, width: int) -> Piece:
    if piece.width <= width:
        return piece
    text = shortened(piece.text, piece.px, width - (piece.width - text_width(piece.text, piece.px)))
    return replace(piece, text=text)
