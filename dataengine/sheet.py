"""Contact sheets: pictures with masks and prompts, and conversations whose phrases are coloured like their masks.

A card is a column of blocks: header, picture, legend, turns. Everything in a sample may be odd; what cannot be shown
is replaced by a place that says so.
"""

from __future__ import annotations

import io
import math
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dataengine import masks, tokens
from dataengine.sample import PROMPT_KINDS, Condition, Prompt, Sample
from dataengine.store.dataset import picture_of

if TYPE_CHECKING:
    from PIL import Image as Pillow
    from PIL import ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]

# Okabe and Ito's colours, which colour-blind people can tell apart, and some between them
_BASE: tuple[RGB, ...] = (
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
_PALE: tuple[RGB, ...] = tuple(((r + 255) // 2, (g + 255) // 2, (b + 255) // 2) for r, g, b in _BASE)
_DEEP: tuple[RGB, ...] = tuple((r * 5 // 8, g * 5 // 8, b * 5 // 8) for r, g, b in _BASE)
COLORS = _BASE + _DEEP + _PALE
EASY_COLORS = 8  # more than these are hard to tell apart: conditions are numbered too

PAPER, CARD, INK, FAINT = (240, 240, 238), (255, 255, 255), (32, 33, 36), (104, 107, 112)
SEG, ABSENT, MISSING, CROWD, IGNORED = (60, 64, 67), (229, 230, 232), (200, 200, 200), (150, 150, 150), (90, 90, 90)
TINT = 0.5  # of a mask's colour over the picture
MARGIN, GUTTER, PAD = 16, 74, 5
TEXT_PX, SMALL_PX = 15, 12
LINE_PX = 24
MAX_ABSENT = 6  # categories without an object that are written out
MAX_LINES = 14  # of a turn
MAX_TURNS = 12
MAX_TEXT = 4000  # code points of a turn between two spans
MAX_PHRASE = 240  # code points of a phrase
MAX_PIXELS = 1 << 26  # of a picture that is decoded
MAX_ASPECT = 1.2  # height of a shown picture to its width
MAX_ZOOM = 12.0
SMOOTH = 3  # prompts are drawn this many times larger, then reduced
HATCH_PX, STRIPE_PX = 9, 14  # across
SPECK_PX = 6  # objects that are shown no larger are marked


def contact_sheet(samples: Sequence[Sample], *, columns: int = 2, tile_px: int = 560) -> Pillow.Image:
    """One picture with a card for each sample.

    Masks are tinted in the colour of their condition, with which its phrase is written; smaller objects lie on larger
    ones, and an object of several conditions is striped. Prompts are those of the objects that regions show. Crowds
    are hatched, ignored pixels cross-hatched. A picture that cannot be shown becomes a grey place that says why.

    Args:
        columns: cards side by side; a card goes where the column is shortest. tile_px: width of a card's content.
    Returns:
        RGB; the same samples give the same pixels.
    """
    from PIL import Image as Pillow

    cards = [_card(sample, tile_px) for sample in samples]
    bottoms = [MARGIN] * max(1, min(columns, len(cards)))
    places = []
    for card in cards:
        column = bottoms.index(min(bottoms))
        places.append((MARGIN + column * (tile_px + 3 * MARGIN), bottoms[column]))
        bottoms[column] += card.height + MARGIN
    sheet = Pillow.new("RGB", (len(bottoms) * (tile_px + 3 * MARGIN) + MARGIN, max(bottoms)), PAPER)
    for card, place in zip(cards, places, strict=True):
        sheet.paste(card, place)
    return sheet


def colors_of(sample: Sample) -> dict[int, RGB]:
    """The colour of each condition that has an object, by its index; they repeat after `COLORS`."""
    return {number: COLORS[rank % len(COLORS)] for rank, number in enumerate(_found(sample))}


def _found(sample: Sample) -> list[int]:
    return [number for number, condition in enumerate(sample.conditions) if condition.objects]


def _tags(sample: Sample) -> dict[int, str]:
    """Numbers of conditions, by index, where there are too many colours to tell apart."""
    found = _found(sample)
    return {n: str(rank + 1) for rank, n in enumerate(found)} if len(found) > EASY_COLORS else {}


def _card(sample: Sample, width: int) -> Pillow.Image:
    from PIL import Image as Pillow

    blocks = [_lines(_header(sample, width), width)]
    if sample.image is not None:
        blocks += [_picture(sample, width)]
        legend = _legend(sample, width)
        blocks += [legend] if legend else []
    blocks += _conversation(sample, width)
    gap = MARGIN * 5 // 8
    card = Pillow.new("RGB", (width + 2 * MARGIN, 2 * MARGIN - gap + sum(b.height + gap for b in blocks)), CARD)
    y = MARGIN
    for block in blocks:
        card.paste(block, (MARGIN, y))
        y += block.height + gap
    return card


# --- the picture -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How a sample's canvas is shown: `size` is width, height in px, `scale` shown pixels for one of its own."""

    sample: Sample
    size: tuple[int, int]
    scale: float

    def shrunk(self, crop: masks.Crop) -> np.ndarray:
        """(H, W) bool of a mask at the shown size; never empty, so that specks stay visible."""
        import cv2

        h, w = crop.mask.shape
        x0, y0 = (min(int(at * self.scale), end - 1) for at, end in zip((crop.x0, crop.y0), self.size, strict=True))
        x1 = max(x0 + 1, min(self.size[0], round((crop.x0 + w) * self.scale)))
        y1 = max(y0 + 1, min(self.size[1], round((crop.y0 + h) * self.scale)))
        method = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_LINEAR
        soft = cv2.resize(crop.mask.astype(np.uint8) * 255, (x1 - x0, y1 - y0), interpolation=method)
        shown = np.zeros((self.size[1], self.size[0]), dtype=bool)
        shown[y0:y1, x0:x1] = soft >= min(128, int(soft.max()))
        return shown


def _view(sample: Sample, width: int) -> View:
    height_px, width_px = max(sample.height, 1), max(sample.width, 1)
    scale = min(width / width_px, MAX_ASPECT * width / height_px, MAX_ZOOM)
    return View(sample=sample, size=(max(1, round(width_px * scale)), max(1, round(height_px * scale))), scale=scale)


def _picture(sample: Sample, width: int) -> Pillow.Image:
    """The picture with all that is drawn on it, in the middle of its place."""
    from PIL import Image as Pillow

    view = _view(sample, width)
    base, notes = _decoded(sample, view.size)
    canvas = np.array(base)
    things, unread = _things(view)
    _hatch(canvas, [view.shrunk(thing.crop) for thing in things if thing.crowd], CROWD, crossed=False)
    if sample.ignore is not None and (ignored := _crop(sample.ignore, sample)) is not None:
        _hatch(canvas, [view.shrunk(ignored)], IGNORED, crossed=True)
    _tint(canvas, view, [thing for thing in things if thing.colors])
    picture = Pillow.fromarray(canvas)
    _draw_prompts(picture, view)
    _draw_tags(picture, view, things)
    if unread:
        notes.append(f"{unread} masks cannot be read" if unread > 1 else "a mask cannot be read")
    place = Pillow.new("RGB", (width, max(picture.height, 40 * bool(notes))), PAPER)
    place.paste(picture, ((width - picture.width) // 2, 0))
    _write_notes(place, notes)
    return place


def _decoded(sample: Sample, size: tuple[int, int]) -> tuple[Pillow.Image, list[str]]:
    """The picture at that size; or a grey one, and what is wrong."""
    from PIL import Image as Pillow

    grey = Pillow.new("RGB", size, MISSING)
    if sample.image is None:
        return grey, ["no picture"]
    try:
        data = picture_of(sample.image)
    except OSError:
        return grey, [f"not there: {sample.image.path}"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)
            image = Pillow.open(io.BytesIO(data))
        with image:
            if image.width * image.height > MAX_PIXELS:
                return grey, [f"too large to show: {image.width} x {image.height} px"]
            return image.convert("RGB").resize(size, Pillow.Resampling.LANCZOS), []
    except Pillow.DecompressionBombError:
        return grey, ["too large to show"]
    except Exception as error:  # decoders of untrusted bytes raise nearly anything
        return grey, [f"cannot be decoded: {type(error).__name__}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """An object to draw, and the colours of its conditions, by their index."""

    crop: masks.Crop
    crowd: bool
    colors: dict[int, RGB]


def _things(view: View) -> tuple[list[Thing], int]:
    """The objects to draw, larger ones first, and the number of masks that cannot be read."""
    colors = colors_of(view.sample)
    owners: dict[int, dict[int, RGB]] = {}
    for number, color in colors.items():
        for index in view.sample.conditions[number].objects:
            owners.setdefault(index, {})[number] = color
    things, unread = [], 0
    for index, thing in enumerate(view.sample.objects):
        if index not in owners and not thing.crowd:
            continue
        crop = _crop(thing.rle, view.sample)
        if crop is None:
            unread += 1
            continue
        things.append(Thing(crop=crop, crowd=thing.crowd, colors=owners.get(index, {})))
    return sorted(things, key=lambda thing: -int(np.count_nonzero(thing.crop.mask))), unread


def _crop(rle: bytes, sample: Sample) -> masks.Crop | None:
    try:
        return masks.crop_from_rle(rle, sample.height, sample.width)
    except masks.MaskError:
        return None


def _tint(canvas: np.ndarray, view: View, things: Sequence[Thing]) -> None:
    """Fill and outline in place; every pixel takes the colour of the smallest object over it, once.

    Args:
        canvas: (H, W, 3) uint8. things: larger ones first.
    """
    rows, columns = np.ogrid[: canvas.shape[0], : canvas.shape[1]]
    paint = np.zeros(canvas.shape, dtype=np.float32)
    covered = np.zeros(canvas.shape[:2], dtype=bool)
    for thing in things:
        inks = np.array(list(thing.colors.values()), dtype=np.float32)
        stripes = ((rows + columns) // STRIPE_PX) % len(inks)
        shown = view.shrunk(thing.crop)
        paint[shown] = inks[stripes[shown]]
        covered |= shown
    mixed = canvas[covered] * (1 - TINT) + paint[covered] * TINT
    canvas[covered] = np.floor(mixed + 0.5).astype(np.uint8)
    for thing in things:
        _outline(canvas, view.shrunk(thing.crop), next(iter(thing.colors.values())))


def _outline(canvas: np.ndarray, shown: np.ndarray, color: RGB) -> None:
    """A line in the colour with a dark edge; specks get a diamond to be found by."""
    import cv2

    contours, _ = cv2.findContours(shown.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    x, y, w, h = cv2.boundingRect(shown.astype(np.uint8))
    dark = tuple(channel // 3 for channel in color)
    if max(w, h) <= SPECK_PX:
        contours = [_diamond(x + w // 2, y + h // 2)]
    if max(w, h) <= SPECK_PX or min(w, h) > 12:
        cv2.drawContours(canvas, contours, -1, dark, 3, cv2.LINE_AA)
    cv2.drawContours(canvas, contours, -1, color, 1, cv2.LINE_AA)


def _diamond(x: int, y: int) -> np.ndarray:
    return np.array([[(x - 8, y)], [(x, y - 8)], [(x + 8, y)], [(x, y + 8)]], dtype=np.int32)


def _hatch(canvas: np.ndarray, regions: Sequence[np.ndarray], color: RGB, crossed: bool) -> None:
    """A grey veil with diagonal lines, in place."""
    import cv2

    if not regions:
        return
    covered = np.logical_or.reduce(regions)
    rows, columns = np.ogrid[: canvas.shape[0], : canvas.shape[1]]
    lines = (rows + columns) % HATCH_PX < 2
    if crossed:
        lines = lines | ((rows - columns) % HATCH_PX < 2)
    canvas[covered] = (canvas[covered].astype(np.uint16) + 210) // 2
    canvas[covered & lines] = color
    contours, _ = cv2.findContours(covered.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, IGNORED, 1)


def _draw_tags(picture: Pillow.Image, view: View, things: Sequence[Thing]) -> None:
    """The number of each condition on its largest object, at the place farthest from the edge."""
    import cv2

    tags = _tags(view.sample)
    todo = set(tags)
    clicks = [line for p, _ in _shown_prompts(view.sample) if p.kind == "point" for line in _lines_of(p, view)]
    taken = [(x - 7, y - 7, x + 7, y + 7) for line in clicks for x, y in line]
    for thing in things:
        for number in [n for n in thing.colors if n in todo]:
            depth = cv2.distanceTransform(np.pad(view.shrunk(thing.crop), 1).astype(np.uint8), cv2.DIST_L2, 3)[
                1:-1, 1:-1
            ]
            y, x = np.unravel_index(int(depth.argmax()), depth.shape)
            box = _free_box(float(x), float(y), _tag_width(tags[number]), picture.size, taken)
            _draw_tag(picture, box, tags[number], thing.colors[number])
            taken.append(box)
            todo.discard(number)


def _free_box(
    x: float, y: float, width: float, size: tuple[int, int], taken: Sequence[tuple[float, float, float, float]]
) -> tuple[float, float, float, float]:
    """A box for a tag about a place, or the nearest of some others that covers no earlier tag."""
    height = SMALL_PX + 3.0
    steps = [(0, 0), (0, -1), (0, 1), (1, 0), (-1, 0), (1, -1), (-1, -1), (1, 1), (-1, 1), (0, -2), (0, 2)]
    boxes = []
    for across, down in steps:
        left = min(max(x - width / 2 + across * (width + 1), 1), max(size[0] - width - 1, 0))
        top = min(max(y - height / 2 + down * (height + 1), 1), max(size[1] - height - 1, 0))
        boxes.append((left, top, left + width, top + height))
    for box in boxes:
        if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            return box
    return boxes[0]


def _write_notes(place: Pillow.Image, notes: Sequence[str]) -> None:
    from PIL import ImageDraw

    y = 8
    for note in notes:
        text = _shortened(_plain(note), SMALL_PX + 1, place.width - 32)
        width = _length(text, SMALL_PX + 1)
        _pill(place, (8, y, 24 + width, y + 24), CARD)
        ImageDraw.Draw(place).text((16, y + 12), text, INK, _font(SMALL_PX + 1), anchor="lm")
        y += 28


# --- prompts ---------------------------------------------------------------------------------------------------------


def _shown_prompts(sample: Sample) -> list[tuple[Prompt, RGB]]:
    """The prompts of the objects that regions show, and their colours."""
    colors = colors_of(sample)
    shown: dict[int, RGB] = {}
    for number, condition in enumerate(sample.conditions):
        if 0 <= condition.exemplar < len(sample.objects):
            shown.setdefault(condition.exemplar, colors.get(number, ABSENT))
    every = [(p, color) for index, color in shown.items() for p in sample.objects[index].prompts if p.status != "none"]
    return sorted(every, key=lambda item: item[0].kind != "scribble")  # what is translucent lies below


def _draw_prompts(picture: Pillow.Image, view: View) -> None:
    from PIL import Image as Pillow
    from PIL import ImageDraw

    shown = _shown_prompts(view.sample)
    if not shown:
        return
    layer = Pillow.new("RGBA", (picture.width * SMOOTH, picture.height * SMOOTH))
    draw = ImageDraw.Draw(layer)
    for prompt, color in shown:
        _paint(draw, prompt.kind, _lines_of(prompt, view), prompt.radius * view.scale, color)
    layer = layer.resize(picture.size, Pillow.Resampling.BOX)
    picture.paste(layer, (0, 0), layer)


def _lines_of(prompt: Prompt, view: View) -> list[list[Point]]:
    """Clicks, strokes, corners of boxes, or outlines of a mask prompt, in shown pixels."""
    import cv2

    if prompt.kind == "mask":
        crop = _crop(prompt.rle or b"", view.sample)
        if crop is None:
            return []
        contours, _ = cv2.findContours(view.shrunk(crop).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        return [[(x + 0.5, y + 0.5) for x, y in contour[:, 0].tolist()] for contour in contours]
    reach = 2 * max(view.sample.width, view.sample.height)
    places = [
        (x * view.scale, y * view.scale)
        for x, y in zip(prompt.points[::2], prompt.points[1::2], strict=False)
        if abs(x) < reach and abs(y) < reach  # also refuses what is no number
    ]
    lengths = prompt.parts or (len(places),)
    starts = np.cumsum((0, *lengths)).tolist()
    lines = [places[start : start + length] for start, length in zip(starts, lengths, strict=False)]
    return [line for line in lines if line]


def _paint(draw: ImageDraw.ImageDraw, kind: str, lines: Sequence[Sequence[Point]], radius: float, color: RGB) -> None:
    """Draw a prompt `SMOOTH` times larger: clicks in rings, bands with a core, frames, or dashed outlines.

    Args:
        lines: of points in shown pixels. radius: in shown pixels.
    """
    white, shade = (255, 255, 255, 255), (*INK, 170)
    big = [[(x * SMOOTH, y * SMOOTH) for x, y in line] for line in lines]
    for line in big:
        if kind == "point":
            for x, y in line:
                _ring(draw, x, y, max(radius, 4.5) * SMOOTH)
                _disc(draw, x, y, 4.0 * SMOOTH, white)
                _disc(draw, x, y, 2.8 * SMOOTH, (*color, 255))
        elif kind == "scribble":
            band = max(radius, 2.0) * SMOOTH
            _stroke(draw, line, band + SMOOTH, shade)
            _stroke(draw, line, band, (255, 255, 255, 150))
            _stroke(draw, line, 1.3 * SMOOTH, (*color, 255))
        elif kind == "box":
            for (x0, y0), (x1, y1) in zip(line[::2], line[1::2], strict=False):
                box = _inside((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), draw.im.size)
                for grow, paint, width in ((2.5, shade, 5.0), (1.8, white, 3.6), (0.9, (*color, 255), 1.8)):
                    _frame(draw, box, grow * SMOOTH, paint, width)
        else:
            draw.line([*line, line[0]], shade, round(3.6 * SMOOTH), joint="curve")
            for at in range(0, len(line), 11):
                dash = line[at : at + 7]
                if len(dash) > 1:
                    draw.line(dash, white, round(2.0 * SMOOTH), joint="curve")


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, paint: tuple[int, ...]) -> None:
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=paint)


def _ring(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    for grow, paint, width in ((0.8, (*INK, 170), 3.6), (0.0, (255, 255, 255, 255), 2.0)):
        r = radius + grow * SMOOTH
        draw.ellipse([x - r, y - r, x + r, y + r], outline=paint, width=round(width * SMOOTH))


def _inside(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box with all its edges where a frame can be seen."""
    edge = 2.5 * SMOOTH
    x0, y0, x1, y1 = box
    x0, y0 = min(max(x0, edge), size[0] - edge), min(max(y0, edge), size[1] - edge)
    return x0, y0, max(x0, min(x1, size[0] - 1 - edge)), max(y0, min(y1, size[1] - 1 - edge))


def _frame(
    draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], grow: float, paint: Any, width: float
) -> None:
    x0, y0, x1, y1 = box
    draw.rectangle([x0 - grow, y0 - grow, x1 + grow, y1 + grow], outline=paint, width=round(width * SMOOTH))


def _stroke(draw: ImageDraw.ImageDraw, line: Sequence[Point], radius: float, paint: tuple[int, ...]) -> None:
    if len(line) > 1:
        draw.line(list(line), paint, max(1, round(2 * radius)), joint="curve")
    for x, y in line:
        _disc(draw, x, y, radius, paint)


def _legend(sample: Sample, width: int) -> Pillow.Image | None:
    """What the marks on the picture are; None where there is none."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    kinds = [kind for kind in PROMPT_KINDS if any(p.kind == kind for p, _ in _shown_prompts(sample))]
    entries = [("", "Prompts:")] * bool(kinds) + [(kind, kind) for kind in kinds]
    others = [("speck", "tiny object")] * _has_specks(sample, width)
    others += [("crowd", "crowd")] * any(thing.crowd for thing in sample.objects)
    others += [("ignored", "ignored")] * (sample.ignore is not None)
    entries = others + entries
    if not entries:
        return None
    places, x, y = [], 0, 0
    for kind, label in entries:
        size = 34 * bool(kind) + math.ceil(_length(label, SMALL_PX))
        if x and x + size > width:
            x, y = 0, y + 22
        places.append((x, y, kind, label))
        x += size + (16 if kind else 8)
    rows = Pillow.new("RGB", (width, y + 20), CARD)
    for x, y, kind, label in places:
        if kind:
            rows.paste(_icon(kind), (x, y + 1))
        ImageDraw.Draw(rows).text((x + 34 * bool(kind), y + 10), label, FAINT, _font(SMALL_PX), anchor="lm")
    return rows


def _has_specks(sample: Sample, width: int) -> bool:
    scale = _view(sample, width).scale
    used = {index for condition in sample.conditions for index in condition.objects}
    sides = [max(thing.bbox[2:]) for index, thing in enumerate(sample.objects) if index in used]
    return any(side * scale <= SPECK_PX for side in sides)


def _icon(kind: str) -> Pillow.Image:
    """A mark as it looks on the picture, 28 x 18 px."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    canvas = np.full((18, 28, 3), 176, dtype=np.uint8)
    if kind in ("crowd", "ignored"):
        _hatch(canvas, [np.ones((18, 28), dtype=bool)], CROWD if kind == "crowd" else IGNORED, kind == "ignored")
    if kind == "speck":
        _outline(canvas, np.pad(np.ones((3, 3), dtype=bool), ((8, 7), (13, 12))), COLORS[0])
    icon = Pillow.fromarray(canvas)
    oval = [(14 + 10 * math.cos(a / 30 * math.pi), 9 + 5.5 * math.sin(a / 30 * math.pi)) for a in range(60)]
    shapes: dict[str, list[Point]] = {
        "point": [(14, 9)],
        "scribble": [(6, 11), (11, 7), (16, 11), (22, 7)],
        "box": [(6, 4.5), (22, 13.5)],
        "mask": oval,
    }
    if kind in shapes:
        layer = Pillow.new("RGBA", (28 * SMOOTH, 18 * SMOOTH))
        _paint(ImageDraw.Draw(layer), kind, [shapes[kind]], {"point": 7.0, "scribble": 3.5}.get(kind, 0.0), COLORS[0])
        layer = layer.resize(icon.size, Pillow.Resampling.BOX)
        icon.paste(layer, (0, 0), layer)
    return icon


# --- the conversation ------------------------------------------------------------------------------------------------


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
        tag = _tag_width(self.tag) + 1 if self.tag else 0.0
        return _length(self.text, self.px) + (2 * PAD + tag if self.chip else 0.0)


BREAK = Piece(text="\n")
Line = list[tuple[float, Piece]]  # left edges, px, and pieces


def _header(sample: Sample, width: int) -> list[Line]:
    task = Piece(text=_plain(sample.task), ink=CARD, chip=INK, px=SMALL_PX)
    name = _shortened(_plain(sample.sample_id), TEXT_PX, width - task.width - 8)
    facts = [sample.variant] if sample.variant else []
    facts.append("text only" if sample.image is None else f"{sample.width} x {sample.height} px")
    if sample.objects:
        facts.append(_counted(len(sample.objects), "object"))
    if sample.conditions:
        absent = len(sample.conditions) - len(_found(sample))
        facts.append(
            _counted(len(sample.conditions), "condition") + (f", {absent} without an object" if absent else "")
        )
    text = _shortened(_plain(" · ".join(facts)), SMALL_PX, width)
    return [[(0.0, task), (task.width + 8, Piece(text=name))], [(0.0, Piece(text=text, ink=FAINT, px=SMALL_PX))]]


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number != 1 else ''}"


def _conversation(sample: Sample, width: int) -> Iterator[Pillow.Image]:
    """A block for each turn: who speaks in the gutter, what is said beside it."""
    for number, turn in enumerate(sample.turns[:MAX_TURNS]):
        lines = _wrapped(list(_pieces(sample, number)), width - GUTTER)
        if len(lines) > MAX_LINES:
            more = Piece(text=f"… +{len(lines) - MAX_LINES} more lines", ink=FAINT)
            lines = [*lines[:MAX_LINES], [(0.0, more)]]
        shown = [[(x + GUTTER, piece) for x, piece in line] for line in lines] or [[]]
        role = _shortened(_plain(turn.role), SMALL_PX, GUTTER - 8)
        shown[0] = [(0.0, Piece(text=role, ink=FAINT, px=SMALL_PX)), *shown[0]]
        yield _lines(shown, width)
    if len(sample.turns) > MAX_TURNS:
        more = Piece(text=f"… +{_counted(len(sample.turns) - MAX_TURNS, 'more turn')}", ink=FAINT)
        yield _lines([[(float(GUTTER), more)]], width)


def _pieces(sample: Sample, turn: int) -> Iterator[Piece]:
    """A turn in words and chips; of many categories without an object, all but a few are only counted."""
    text = sample.turns[turn].text
    colors, tags = colors_of(sample), _tags(sample)
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
    text = _plain(shown[:MAX_PHRASE] + ("…" if len(shown) > MAX_PHRASE else "")).strip() or " "
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
            word = _plain(part).strip()
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
        if lines[-1] and _right(_set(lines[-1], unit)) > width:
            lines.append([])
        for piece in unit:  # one by one, should the unit be wider than a line
            if lines[-1] and _right(_set(lines[-1], [piece])) > width:
                lines.append([])
            lines[-1] = _set(lines[-1], [piece])
        at = end
    return lines if lines[-1] else lines[:-1]


def _set(line: Line, pieces: Sequence[Piece]) -> Line:
    """The line with pieces added at its end."""
    longer = list(line)
    for piece in pieces:
        x = _right(longer)
        if longer:
            x += _length(" ", piece.px) if piece.gap else 1.0 if piece.chip or longer[-1][1].chip else 0.0
            if piece.run >= 0 and piece.run == longer[-1][1].run:
                x -= 2 * PAD
        longer.append((x, piece))
    return longer


def _right(line: Line) -> float:
    return line[-1][0] + line[-1][1].width if line else 0.0


def _fitting(piece: Piece, width: int) -> Piece:
    if piece.width <= width:
        return piece
    text = _shortened(piece.text, piece.px, width - (piece.width - _length(piece.text, piece.px)))
    return replace(piece, text=text)


# --- drawing text ----------------------------------------------------------------------------------------------------


def _lines(lines: Sequence[Line], width: int) -> Pillow.Image:
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
            _pill(block, (x, middle - half, _right(line[start:end]), middle + half), piece.chip)
        start = end
    for x, piece in line:
        x += PAD if piece.chip else 0
        if piece.tag:
            width = _tag_width(piece.tag)
            _draw_tag(block, (x - 2, middle - 7.5, x - 2 + width, middle + 7.5), piece.tag, piece.chip or ABSENT)
            x += width + 1
        draw.text((x, middle + piece.px * 0.34), piece.text, piece.ink, _font(piece.px), anchor="ls")


def _draw_tag(picture: Pillow.Image, box: tuple[float, float, float, float], text: str, color: RGB) -> None:
    """A number on white, edged in the colour of its condition."""
    from PIL import ImageDraw

    x0, y0, x1, y1 = box
    _pill(picture, box, color)
    _pill(picture, (x0 + 1.5, y0 + 1.5, x1 - 1.5, y1 - 1.5), CARD)
    place = ((x0 + x1) / 2, (y0 + y1) / 2 + (SMALL_PX - 1) * 0.36)
    ImageDraw.Draw(picture).text(place, text, INK, _font(SMALL_PX - 1), anchor="ms")


def _tag_width(text: str) -> float:
    return math.ceil(_length(text, SMALL_PX - 1)) + 8.0


def _pill(picture: Pillow.Image, box: tuple[float, float, float, float], color: RGB) -> None:
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
def _font(px: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=px)


def _length(text: str, px: int) -> float:
    """Width of a text in pixels."""
    return float(_font(px).getlength(text))


def _shortened(text: str, px: int, width: float) -> str:
    """The text, or as much of its beginning as fits, and an ellipsis."""
    text = text[:1000]
    if _length(text, px) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _length(text[:middle] + "…", px) <= width else (low, middle - 1)
    return text[:low] + "…"


def _plain(text: str) -> str:
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
    font = _font(TEXT_PX)
    return bytes(font.getmask(char)) != bytes(font.getmask("\ufffe"))
