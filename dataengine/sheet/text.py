"""Lines of text, chips and tags. Text may be anything; what the font lacks is written in other letters."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from dataengine.sheet.look import ABSENT, CARD, INK, LINE_PX, PAD, RGB, SMALL_PX, TEXT_PX

if TYPE_CHECKING:
    from PIL import Image as Pillow


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A word, or a chip where it has a background.

    tag: number shown before the text of a chip. gap: whether a space, and so perhaps a new line, comes before it.
    run: pieces of one phrase, drawn as one chip where they stand side by side; -1 for none.
    """

    text: str
    ink: RGB = INK
    chip: RGB | None = None
    px: int = TEXT_PX
    tag: str = ""
    gap: bool = True
    run: int = -1

    @property
    def width(self) -> float:
        tag = tag_width(self.tag) + 1 if self.tag else 0.0
        return text_width(self.text, self.px) + (2 * PAD + tag if self.chip else 0.0)


BREAK = Piece(text="\n")


Line = list[tuple[float, Piece]]  # left edges, px, and pieces


def right_end(line: Line) -> float:
    return line[-1][0] + line[-1][1].width if line else 0.0


def text_block(lines: Sequence[Line], width: int) -> Pillow.Image:
    from PIL import Image as Pillow

    block = Pillow.new("RGB", (width, LINE_PX * len(lines)), CARD)
    for number, line in enumerate(lines):
        _draw_line(block, line, number * LINE_PX + LINE_PX // 2)
    return block


def _draw_line(block: Pillow.Image, line: Line, middle: int) -> None:
    """Backgrounds first, words on them."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(block)
    start = 0
    while start < len(line):
        end = start + 1
        x, piece = line[start]
        while end < len(line) and piece.run >= 0 and line[end][1].run == piece.run:
            end += 1
        if piece.chip:
            half = piece.px * 0.68
            draw_pill(block, (x, middle - half, right_end(line[start:end]), middle + half), piece.chip)
        start = end
    for x, piece in line:
        x += PAD if piece.chip else 0
        if piece.tag:
            width = tag_width(piece.tag)
            draw_tag(block, (x - 2, middle - 7.5, x - 2 + width, middle + 7.5), piece.tag, piece.chip or ABSENT)
            x += width + 1
        draw.text((x, middle + piece.px * 0.34), piece.text, piece.ink, font_of(piece.px), anchor="ls")


def draw_tag(picture: Pillow.Image, box: tuple[float, float, float, float], text: str, color: RGB) -> None:
    """A number on white, edged in the colour of its condition."""
    from PIL import ImageDraw

    x0, y0, x1, y1 = box
    draw_pill(picture, box, color)
    draw_pill(picture, (x0 + 1.5, y0 + 1.5, x1 - 1.5, y1 - 1.5), CARD)
    place = ((x0 + x1) / 2, (y0 + y1) / 2 + (SMALL_PX - 1) * 0.36)
    ImageDraw.Draw(picture).text(place, text, INK, font_of(SMALL_PX - 1), anchor="ms")


def tag_width(text: str) -> float:
    return math.ceil(text_width(text, SMALL_PX - 1)) + 8.0


def draw_pill(picture: Pillow.Image, box: tuple[float, float, float, float], color: RGB) -> None:
    """A box with smooth round corners."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    x, y = math.floor(box[0]), math.floor(box[1])
    width, height = math.ceil(box[2]) - x, math.ceil(box[3]) - y
    veil = Pillow.new("L", (width * 4, height * 4))
    corners = [4 * (box[0] - x), 4 * (box[1] - y), 4 * (box[2] - x) - 1, 4 * (box[3] - y) - 1]
    ImageDraw.Draw(veil).rounded_rectangle(corners, radius=min(20, height), fill=255)
    veil = veil.resize((width, height), Pillow.Resampling.BOX)
    picture.paste(color, (x, y, x + width, y + height), veil)


@cache
def font_of(px: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=px)


def text_width(text: str, px: int) -> float:
    """Width of a text in pixels."""
    return float(font_of(px).getlength(text))


def shortened(text: str, px: int, width: float) -> str:
    """The text, or as much of its beginning as fits, and an ellipsis."""
    text = text[:1000]
    if text_width(text, px) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text_width(text[:middle] + "…", px) <= width else (low, middle - 1)
    return text[:low] + "…"


def drawable_text(text: str) -> str:
    """The text in characters that the bundled font has, on one line."""
    return "".join(map(_drawable, text))


_KIN = {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "–": "-", "—": "-", "−": "-", "×": "x", "→": "›"}


@cache
def _drawable(char: str) -> str:
    """The character, its nearest kin without marks, or a dot."""
    kind = unicodedata.category(char)
    if char.isspace() or kind == "Cc":
        return " "
    if kind in ("Mn", "Me", "Cf"):
        return ""
    plain = _KIN.get(char, char)
    for kin in (plain, unicodedata.normalize("NFKD", plain)):
        kept = [c for c in kin if not unicodedata.combining(c)]
        if kept and all(_has_glyph(c) for c in kept):
            return "".join(kept)
    return "·"


@cache
def _has_glyph(char: str) -> bool:
    if unicodedata.category(char) in ("Cs", "Cn", "Co"):
        return False
    font = font_of(TEXT_PX)
    return bytes(font.getmask(char)) != bytes(font.getmask("\ufffe"))
