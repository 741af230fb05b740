"""Prompts drawn as what they are, and the legend that explains them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dataengine.sample import PROMPT_KINDS, Prompt, Sample
from dataengine.sheet.look import (
    ABSENT,
    CARD,
    COLORS,
    CROWD,
    FAINT,
    IGNORED,
    INK,
    RGB,
    SMALL_PX,
    SMOOTH,
    SPECK_PX,
    Point,
    colors_of,
)
from dataengine.sheet.text import font_of, text_width
from dataengine.sheet.view import View, crop_of, draw_hatch, draw_outline, view_of

if TYPE_CHECKING:
    from PIL import Image as Pillow
    from PIL import ImageDraw


def shown_prompts(sample: Sample) -> list[tuple[Prompt, RGB]]:
    """The prompts of the objects that regions show, and their colours."""
    colors = colors_of(sample)
    shown: dict[int, RGB] = {}
    for number, condition in enumerate(sample.conditions):
        if 0 <= condition.exemplar < len(sample.objects):
            shown.setdefault(condition.exemplar, colors.get(number, ABSENT))
    every = [(p, color) for index, color in shown.items() for p in sample.objects[index].prompts if p.status != "none"]
    return sorted(every, key=lambda item: item[0].kind != "scribble")  # what is translucent lies below


def draw_prompts(picture: Pillow.Image, view: View) -> None:
    from PIL import Image as Pillow
    from PIL import ImageDraw

    shown = shown_prompts(view.sample)
    if not shown:
        return
    layer = Pillow.new("RGBA", (picture.width * SMOOTH, picture.height * SMOOTH))
    draw = ImageDraw.Draw(layer)
    for prompt, color in shown:
        _paint(draw, prompt.kind, lines_of(prompt, view), prompt.radius * view.scale, color)
    layer = layer.resize(picture.size, Pillow.Resampling.BOX)
    picture.paste(layer, (0, 0), layer)


def lines_of(prompt: Prompt, view: View) -> list[list[Point]]:
    """Clicks, strokes, corners of boxes, or outlines of a mask prompt, in shown pixels."""
    import cv2

    if prompt.kind == "mask":
        crop = crop_of(prompt.rle or b"", view.sample)
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


def legend_of(sample: Sample, width: int) -> Pillow.Image | None:
    """What the marks on the picture are; None where there is none."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    kinds = [kind for kind in PROMPT_KINDS if any(p.kind == kind for p, _ in shown_prompts(sample))]
    entries = [("", "Prompts:")] * bool(kinds) + [(kind, kind) for kind in kinds]
    others = [("speck", "tiny object")] * _has_specks(sample, width)
    others += [("crowd", "crowd")] * any(thing.crowd for thing in sample.objects)
    others += [("ignored", "ignored")] * (sample.ignore is not None)
    entries = others + entries
    if not entries:
        return None
    places, x, y = [], 0, 0
    for kind, label in entries:
        size = 34 * bool(kind) + math.ceil(text_width(label, SMALL_PX))
        if x and x + size > width:
            x, y = 0, y + 22
        places.append((x, y, kind, label))
        x += size + (16 if kind else 8)
    rows = Pillow.new("RGB", (width, y + 20), CARD)
    for x, y, kind, label in places:
        if kind:
            rows.paste(_icon(kind), (x, y + 1))
        ImageDraw.Draw(rows).text((x + 34 * bool(kind), y + 10), label, FAINT, font_of(SMALL_PX), anchor="lm")
    return rows


def _has_specks(sample: Sample, width: int) -> bool:
    scale = view_of(sample, width).scale
    used = {index for condition in sample.conditions for index in condition.objects}
    sides = [max(thing.bbox[2:]) for index, thing in enumerate(sample.objects) if index in used]
    return any(side * scale <= SPECK_PX for side in sides)


def _icon(kind: str) -> Pillow.Image:
    """A mark as it looks on the picture, 28 x 18 px."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    canvas = np.full((18, 28, 3), 176, dtype=np.uint8)
    if kind in ("crowd", "ignored"):
        draw_hatch(canvas, [np.ones((18, 28), dtype=bool)], CROWD if kind == "crowd" else IGNORED, kind == "ignored")
    if kind == "speck":
        draw_outline(canvas, np.pad(np.ones((3, 3), dtype=bool), ((8, 7), (13, 12))), COLORS[0])
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
