"""A card's picture: masks tinted and outlined, crowds and ignored pixels hatched, numbers where colours run out."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dataengine import masks
from dataengine.sample import Sample
from dataengine.sheet.look import (
    CARD,
    CROWD,
    IGNORED,
    INK,
    MAX_PIXELS,
    MISSING,
    PAPER,
    RGB,
    SMALL_PX,
    STRIPE_PX,
    TINT,
    colors_of,
    tags_of,
)
from dataengine.sheet.marks import draw_prompts, lines_of, shown_prompts
from dataengine.sheet.text import draw_pill, draw_tag, drawable_text, font_of, shortened, tag_width, text_width
from dataengine.sheet.view import View, crop_of, draw_hatch, draw_outline, view_of
from dataengine.store.dataset import picture_of

if TYPE_CHECKING:
    from PIL import Image as Pillow


def picture_block(sample: Sample, width: int) -> Pillow.Image:
    """The picture with all that is drawn on it, in the middle of its place."""
    from PIL import Image as Pillow

    view = view_of(sample, width)
    base, notes = _decoded(sample, view.size)
    canvas = np.array(base)
    things, unread = _things(view)
    draw_hatch(canvas, [view.shrunk(thing.crop) for thing in things if thing.crowd], CROWD, crossed=False)
    if sample.ignore is not None and (ignored := crop_of(sample.ignore, sample)) is not None:
        draw_hatch(canvas, [view.shrunk(ignored)], IGNORED, crossed=True)
    _tint(canvas, view, [thing for thing in things if thing.colors])
    picture = Pillow.fromarray(canvas)
    draw_prompts(picture, view)
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
        crop = crop_of(thing.rle, view.sample)
        if crop is None:
            unread += 1
            continue
        things.append(Thing(crop=crop, crowd=thing.crowd, colors=owners.get(index, {})))
    return sorted(things, key=lambda thing: -int(np.count_nonzero(thing.crop.mask))), unread


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
        draw_outline(canvas, view.shrunk(thing.crop), next(iter(thing.colors.values())))


def _draw_tags(picture: Pillow.Image, view: View, things: Sequence[Thing]) -> None:
    """The number of each condition on its largest object, at the place farthest from the edge."""
    import cv2

    tags = tags_of(view.sample)
    todo = set(tags)
    clicks = [line for p, _ in shown_prompts(view.sample) if p.kind == "point" for line in lines_of(p, view)]
    taken = [(x - 7, y - 7, x + 7, y + 7) for line in clicks for x, y in line]
    for thing in things:
        for number in [n for n in thing.colors if n in todo]:
            depth = cv2.distanceTransform(np.pad(view.shrunk(thing.crop), 1).astype(np.uint8), cv2.DIST_L2, 3)[
                1:-1, 1:-1
            ]
            y, x = np.unravel_index(int(depth.argmax()), depth.shape)
            box = _free_box(float(x), float(y), tag_width(tags[number]), picture.size, taken)
            draw_tag(picture, box, tags[number], thing.colors[number])
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
        text = shortened(drawable_text(note), SMALL_PX + 1, place.width - 32)
        width = text_width(text, SMALL_PX + 1)
        draw_pill(place, (8, y, 24 + width, y + 24), CARD)
        ImageDraw.Draw(place).text((16, y + 12), text, INK, font_of(SMALL_PX + 1), anchor="lm")
        y += 28
