"""Contact sheets: pictures with masks and prompts, and conversations whose phrases are coloured like their masks."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dataengine import masks, prompts, tokens
from dataengine.sample import Condition, Prompt, Sample

if TYPE_CHECKING:
    from PIL import Image as Pillow
    from PIL import ImageDraw

RGB = tuple[int, int, int]

# Okabe and Ito's colours, which colour-blind people can tell apart, and some between them
COLORS: tuple[RGB, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
    (154, 205, 50),
    (148, 103, 189),
    (255, 152, 150),
    (23, 190, 207),
    (188, 143, 99),
)
PAPER, INK, FAINT, CARD, SEG, ABSENT = (
    (244, 244, 242),
    (32, 33, 36),
    (112, 115, 120),
    (255, 255, 255),
    (60, 64, 67),
    (226, 227, 229),
)
TINT = 0.5  # of a mask's colour over the picture
MARGIN = 16
TEXT_PX, SMALL_PX = 15, 12
MAX_ABSENT = 6  # categories without an object that are written out
MAX_LINES = 14  # of a turn
MAX_PIXELS = 1 << 26  # of a picture that is decoded


def colors_of(sample: Sample) -> dict[int, RGB]:
    """The colour of each condition that has an object, by its index; they repeat after twelve."""
    found = [number for number, condition in enumerate(sample.conditions) if condition.objects]
    return {number: COLORS[rank % len(COLORS)] for rank, number in enumerate(found)}


def contact_sheet(samples: Sequence[Sample], *, columns: int = 2, tile_px: int = 560) -> Pillow.Image:
    """One picture with a card for each sample.

    Masks are tinted in the colour of their condition; prompts are those of the objects that regions show. Crowds and
    ignored pixels are hatched. A picture that cannot be shown becomes a grey place that says so.

    Args:
        columns: cards in a row. tile_px: width of a card's content.
    """
    from PIL import Image as Pillow

    cards = [_card(sample, tile_px) for sample in samples]
    columns = max(1, min(columns, len(cards)))
    rows = [cards[at : at + columns] for at in range(0, len(cards), columns)]
    width = columns * (tile_px + 3 * MARGIN) + MARGIN
    sheet = Pillow.new("RGB", (width, MARGIN + sum(max(c.height for c in row) + MARGIN for row in rows)), PAPER)
    y = MARGIN
    for row in rows:
        height = max(card.height for card in row)
        for column, card in enumerate(row):
            x = MARGIN + column * (tile_px + 3 * MARGIN)
            sheet.paste(CARD, (x, y, x + tile_px + 2 * MARGIN, y + height))
            sheet.paste(card, (x, y))
        y += height + MARGIN
    return sheet


def _card(sample: Sample, width: int) -> Pillow.Image:
    from PIL import Image as Pillow

    picture = _picture(sample, width)
    lines = [*_header(sample, width), *_conversation(sample, width)]
    height = 2 * MARGIN + (picture.height + MARGIN if picture else 0) + sum(line.height for line in lines)
    card = Pillow.new("RGB", (width + 2 * MARGIN, height), CARD)
    y = MARGIN
    for number, line in enumerate(lines):
        if number == 2 and picture:
            card.paste(picture, (MARGIN, y + 4))
            y += picture.height + MARGIN
        line.draw(card, MARGIN, y)
        y += line.height
    return card


# --- the picture -----------------------------------------------------------------------------------------------------


def _picture(sample: Sample, width: int) -> Pillow.Image | None:
    from PIL import Image as Pillow

    if sample.image is None:
        return None
    scale = width / sample.width
    if sample.height * scale > 1.2 * width:
        scale = 1.2 * width / sample.height
    size = (max(1, round(sample.width * scale)), max(1, round(sample.height * scale)))
    base, note = _decoded(sample, size)
    canvas = np.asarray(base).astype(np.float32)
    canvas[_hatched(sample, size, [o.rle for o in sample.objects if o.crowd])] = (150, 150, 150)
    if sample.ignore is not None:
        canvas[_hatched(sample, size, [sample.ignore], crossed=True)] = (90, 90, 90)
    outlines = []
    colors = colors_of(sample)
    for number, color in colors.items():
        for index in sample.conditions[number].objects:
            raster = _raster(sample, size, sample.objects[index].rle)
            canvas[raster] += TINT * (np.array(color, dtype=np.float32) - canvas[raster])
            outlines.append((raster, color))
    picture = Pillow.fromarray(np.round(canvas).astype(np.uint8))
    for raster, color in outlines:
        _outline(picture, raster, color)
    for number, condition in enumerate(sample.conditions):
        if condition.exemplar >= 0:
            for prompt in sample.objects[condition.exemplar].prompts:
                _draw_prompt(picture, prompt, sample, scale, colors.get(number, ABSENT))
    if note:
        _text(picture, note, (picture.width // 2, picture.height // 2), anchor="mm")
    return picture


def _decoded(sample: Sample, size: tuple[int, int]) -> tuple[Pillow.Image, str]:
    """The picture at that size; or a grey one, and what is wrong."""
    from PIL import Image as Pillow

    grey = Pillow.new("RGB", size, (200, 200, 200))
    data = sample.image.bytes if sample.image else None
    if data is None:
        return grey, f"by reference: {(sample.image.path if sample.image else None) or 'no path'}"
    try:
        with Pillow.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                return grey, "the picture is too large to show"
            return image.convert("RGB").resize(size, Pillow.Resampling.LANCZOS), ""
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError):
        return grey, "the picture cannot be decoded"


def _raster(sample: Sample, size: tuple[int, int], rle: bytes) -> np.ndarray:
    """(H, W) bool of a mask at the size of the shown picture."""
    import cv2

    full = masks.decode(rle, sample.height, sample.width).astype(np.uint8)
    shown: np.ndarray = cv2.resize(full, size, interpolation=cv2.INTER_NEAREST).view(bool)
    return shown


def _hatched(sample: Sample, size: tuple[int, int], rles: Sequence[bytes], crossed: bool = False) -> np.ndarray:
    rows, columns = np.mgrid[: size[1], : size[0]]
    lines = (rows + columns) % 9 < 2
    if crossed:
        lines |= (rows - columns) % 9 < 2
    covered = np.zeros_like(lines)
    for rle in rles:
        covered |= _raster(sample, size, rle)
    return lines & covered


def _outline(picture: Pillow.Image, raster: np.ndarray, color: RGB) -> None:
    import cv2
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    dark = tuple(channel * 5 // 8 for channel in color)
    contours, _ = cv2.findContours(raster.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        points = [tuple(point) for point in contour[:, 0].tolist()]
        if len(points) > 1:
            draw.line([*points, points[0]], fill=dark, width=2)


def _draw_prompt(picture: Pillow.Image, prompt: Prompt, sample: Sample, scale: float, color: RGB) -> None:
    """A point as a ringed dot, a scribble as a band, a box as a frame, a mask as a dotted outline."""
    from PIL import ImageDraw

    if prompt.status == "none":
        return
    draw = ImageDraw.Draw(picture)
    places = [(x * scale, y * scale) for x, y in zip(prompt.points[::2], prompt.points[1::2], strict=True)]
    if prompt.kind == "box":
        for corner, opposite in zip(places[::2], places[1::2], strict=True):
            draw.rectangle([*corner, *opposite], outline=(255, 255, 255), width=4)
            draw.rectangle([*corner, *opposite], outline=color, width=2)
    elif prompt.kind == "point":
        for x, y in places:
            for radius, fill, line in ((prompt.radius * scale, None, 2), (5, color, 2)):
                draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill, (255, 255, 255), line)
    elif prompt.kind == "scribble":
        start = 0
        for length in prompt.parts:
            stroke = places[start : start + length]
            start += length
            for width, paint in ((max(3.0, 2 * prompt.radius * scale) + 2, (255, 255, 255)), (3, color)):
                _band(picture, stroke, width, paint, 0.45 if width > 3 else 1.0)
    else:
        crop = prompts.render(prompt, sample.height, sample.width)
        if crop is not None:
            _dotted(draw, crop, scale)


def _band(
    picture: Pillow.Image, stroke: Sequence[tuple[float, float]], width: float, color: RGB, opacity: float
) -> None:
    from PIL import Image as Pillow
    from PIL import ImageDraw

    veil = Pillow.new("L", picture.size, 0)
    draw = ImageDraw.Draw(veil)
    for x, y in stroke:
        draw.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=round(255 * opacity))
    picture.paste(color, (0, 0, *picture.size), veil)


def _dotted(draw: ImageDraw.ImageDraw, crop: masks.Crop, scale: float) -> None:
    import cv2

    contours, _ = cv2.findContours(crop.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    every = max(1, round(6 / scale))
    for contour in contours:
        for x, y in contour[::every, 0].tolist():
            px, py = (x + crop.x0 + 0.5) * scale, (y + crop.y0 + 0.5) * scale
            draw.ellipse([px - 1.5, py - 1.5, px + 1.5, py + 1.5], fill=(255, 255, 255))


# --- the conversation ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A word, or a chip where it has a background."""

    text: str
    ink: RGB = INK
    chip: RGB | None = None
    px: int = TEXT_PX

    @property
    def width(self) -> float:
        extra = 10.0 if self.chip else 0.0
        return float(_font(self.px).getlength(self.text)) + extra


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Pieces side by side; height in px."""

    pieces: tuple[Piece, ...]
    height: int

    def draw(self, card: Pillow.Image, x: float, y: float) -> None:
        from PIL import ImageDraw

        draw = ImageDraw.Draw(card)
        middle = y + self.height / 2
        for piece in self.pieces:
            if piece.chip:
                box = [x, middle - piece.px * 0.72, x + piece.width, middle + piece.px * 0.72]
                draw.rounded_rectangle(box, radius=4, fill=piece.chip)
            draw.text((x + (5 if piece.chip else 0), middle), piece.text, piece.ink, _font(piece.px), anchor="lm")
            x += piece.width + (2 if piece.chip else 0)


def _font(px: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=px)


def _text(picture: Pillow.Image, text: str, place: tuple[int, int], anchor: str) -> None:
    from PIL import ImageDraw

    text = _shortened(_plain(text), TEXT_PX, picture.width - 8)
    ImageDraw.Draw(picture).text(place, text, INK, _font(TEXT_PX), anchor=anchor)


def _plain(text: str) -> str:
    """Text without what cannot be drawn on one line."""
    kept = (c if c.isprintable() else " " for c in text.encode("utf-8", "replace").decode())
    return "".join(kept)


def _shortened(text: str, px: int, width: float) -> str:
    font = _font(px)
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle] + "…") <= width else (low, middle - 1)
    return text[:low] + "…"


def _header(sample: Sample, width: int) -> list[Line]:
    what = sample.task if sample.variant is None else f"{sample.task}, {sample.variant}"
    facts = f"{what} · {sample.width} x {sample.height} px · {len(sample.objects)} objects"
    found = sum(bool(condition.objects) for condition in sample.conditions)
    facts += f" · {found} of {len(sample.conditions)} conditions have one" if sample.conditions else ""
    return [
        Line(pieces=(Piece(text=_shortened(_plain(sample.sample_id), TEXT_PX, width)),), height=TEXT_PX + 7),
        Line(pieces=(Piece(text=_shortened(facts, SMALL_PX, width), ink=FAINT, px=SMALL_PX),), height=SMALL_PX + 8),
    ]


def _conversation(sample: Sample, width: int) -> Iterator[Line]:
    for number, turn in enumerate(sample.turns):
        yield Line(pieces=(Piece(text=turn.role, ink=FAINT, px=SMALL_PX),), height=SMALL_PX + 8)
        lines = _wrapped(list(_pieces(sample, number)), width)
        for line in lines[:MAX_LINES]:
            yield Line(pieces=tuple(line), height=round(TEXT_PX * 1.6))
        if len(lines) > MAX_LINES:
            text = f"… {len(lines) - MAX_LINES} more lines"
            yield Line(pieces=(Piece(text=text, ink=FAINT, px=SMALL_PX),), height=SMALL_PX + 8)
        yield Line(pieces=(), height=6)


def _pieces(sample: Sample, turn: int) -> Iterator[Piece]:
    """A turn in words and chips; of many categories without an object, all but a few are only counted."""
    text = sample.turns[turn].text
    colors = colors_of(sample)
    spans = [(n, c) for n, c in enumerate(sample.conditions) if c.turn == turn]
    absent = [n for n, c in spans if c.kind == "phrase" and not c.objects]
    hidden = set(absent[MAX_ABSENT:]) if len(absent) > MAX_ABSENT + 2 else set()
    at = 0
    for number, condition in spans:
        between = text[at : condition.start]
        at = condition.end
        if number in hidden:
            continue
        yield from _words(between)
        yield _chip(condition, colors.get(number))
    if hidden:
        yield Piece(text=f" … {len(hidden)} more that are not in the picture", ink=FAINT)
    yield from _words(text[at:])


def _chip(condition: Condition, color: RGB | None) -> Piece:
    shown = f"{tokens.REGION} {condition.text}" if condition.kind == "region" else condition.text
    if color is None:
        return Piece(text=_plain(shown), ink=FAINT, chip=ABSENT)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    return Piece(text=_plain(shown), ink=INK if luminance > 120 else CARD, chip=color)


def _words(text: str) -> Iterator[Piece]:
    for number, part in enumerate(text.split(tokens.SEG)):
        if number:
            yield Piece(text=tokens.SEG, ink=CARD, chip=SEG)
        for word in _plain(part).split(" "):
            yield Piece(text=word + " ") if word else Piece(text=" ")


def _wrapped(pieces: Sequence[Piece], width: int) -> list[list[Piece]]:
    lines: list[list[Piece]] = [[]]
    used = 0.0
    for piece in pieces:
        size = piece.width + 2
        if size > width:
            text = _shortened(piece.text, piece.px, width - 16)
            piece = Piece(text=text, ink=piece.ink, chip=piece.chip, px=piece.px)
            size = piece.width + 2
        if used + size > width and lines[-1]:
            lines.append([])
            used = 0.0
        if not lines[-1] and not piece.chip and not piece.text.strip():
            continue
        lines[-1].append(piece)
        used += size
    return lines
