"""Pictures of `vgd quality`: prompts on objects of each size, and how their figures are spread.

Drawn by Matplotlib without a screen, in Okabe and Ito's colours, which colour-blind people can tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dataengine import images, masks
from dataengine.masks import Crop
from dataengine.prompts import render
from dataengine.sample import PROMPT_KINDS, Prompt, Sample
from dataengine.store.dataset import picture_of
from pipelines.vgd.benchmark import SIZES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipelines.vgd.quality import Example, Quality

BLUE, ORANGE, INK, FAINT = "#0072B2", "#E69F00", "#202124", "#686B70"
PROMPT_RGB = (230, 120, 0)
TINT = 0.65
MARGIN = 0.75  # of an object's longer side, around it
LEAST = 24  # px around an object at least: a published point reaches 10 px, a stroke's wave 20
DPI = 110


def draw_examples(quality: Quality, target: Path) -> None:
    """Write a PNG: an object of each size and profile in a row, each kind of prompt in a column."""
    rows = [(example, profile) for example in quality.examples for profile in quality.measured]
    figure = _figure(8.0, 1.95 * max(1, len(rows)) + 0.8)
    grid = figure.subplots(max(1, len(rows)), len(PROMPT_KINDS), squeeze=False)
    for number, (example, profile) in enumerate(rows):
        axes = grid[number].tolist()
        picture = _pixels(example.sample)
        for place, kind in zip(axes, PROMPT_KINDS, strict=True):
            _draw_prompt(place, example, picture, example.prompts[profile].get(kind))
            if not number:
                place.set_title(kind, fontsize=12, color=INK)
        axes[0].set_ylabel(f"{profile}\n{example.size}: {example.thing.area:,} px", fontsize=10, color=INK)
    figure.suptitle("Prompts (orange) on their objects (white outline)", fontsize=12, color=INK)
    _save(figure, target)


def _draw_prompt(place: Axes, example: Example, picture: np.ndarray, prompt: Prompt | None) -> None:
    sample, thing = example.sample, example.thing
    place.set_xticks([])
    place.set_yticks([])
    canvas = picture.copy()
    drawn = None if prompt is None else render(prompt, sample.height, sample.width)
    if drawn is not None:
        y, x = np.nonzero(drawn.mask)
        at = (y + drawn.y0, x + drawn.x0)
        canvas[at] = ((1 - TINT) * canvas[at] + TINT * np.array(PROMPT_RGB)).astype(np.uint8)
    place.imshow(canvas, interpolation="nearest")
    bitmap = np.pad(_whole(masks.crop_from_rle(thing.rle, sample.height, sample.width), sample), 1)
    xs, ys = np.arange(-1, sample.width + 1), np.arange(-1, sample.height + 1)
    for color, width in ((INK, 2.6), ("white", 1.3)):
        place.contour(xs, ys, bitmap, levels=[0.5], colors=[color], linewidths=width)
    x0, y0, w, h = thing.bbox
    reach = max(max(w, h) * (0.5 + MARGIN), max(w, h) / 2 + LEAST)
    place.set_xlim(x0 + w / 2 - reach - 0.5, x0 + w / 2 + reach - 0.5)
    place.set_ylim(y0 + h / 2 + reach - 0.5, y0 + h / 2 - reach - 0.5)
    place.set_facecolor("#D0D0D0")
    place.set_xlabel(_caption(prompt), fontsize=9, color=FAINT)


def _caption(prompt: Prompt | None) -> str:
    if prompt is None or prompt.status == "none":
        return "cannot be made"
    return f"{prompt.inside:.0%} inside" + (" (fallback)" if prompt.status == "fallback" else "")


def _whole(crop: Crop, sample: Sample) -> np.ndarray:
    bitmap = np.zeros((sample.height, sample.width))
    h, w = crop.mask.shape
    bitmap[crop.y0 : crop.y0 + h, crop.x0 : crop.x0 + w] = crop.mask
    return bitmap


def _pixels(sample: Sample) -> np.ndarray:
    """(height, width, 3) uint8; grey where the picture cannot be read."""
    from PIL import Image as Pillow

    grey = np.full((sample.height, sample.width, 3), 200, dtype=np.uint8)
    if sample.image is None:
        return grey
    try:
        data = picture_of(sample.image)
        images.check(data, sample.height, sample.width)
        with Pillow.open(io.BytesIO(data)) as image:
            shades = np.array(image.convert("L").convert("RGB"))  # without colours, so that the prompts' stands out
            return (70 + 0.7 * shades).astype(np.uint8)
    except (OSError, images.ImageError):
        return grey


def draw_distributions(quality: Quality, target: Path) -> None:
    """Write a PNG: by kind, size and profile, the share inside the object and the size relative to it."""
    figure = _figure(11.0, 6.4)
    grid = figure.subplots(2, len(PROMPT_KINDS), sharey="row", squeeze=False)
    for column, kind in enumerate(PROMPT_KINDS):
        for row, name in enumerate(("inside", "ratio")):
            _draw_boxes(grid[row][column], quality, kind, name)
        grid[0][column].set_title(kind, fontsize=12, color=INK)
        grid[0][column].set_ylim(-0.03, 1.03)
        grid[1][column].set_yscale("log")
        grid[1][column].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        grid[1][column].axhline(1.0, color=FAINT, linewidth=0.8, linestyle=":")
    grid[0][0].set_ylabel("share of the prompt\ninside its object", color=INK)
    grid[1][0].set_ylabel("area of the prompt /\narea of the object", color=INK)
    handles = [_patch(color, profile) for color, profile in zip((BLUE, ORANGE), quality.measured, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(
        f"{quality.lock.name}: {quality.objects:,} objects of {quality.pictures:,} pictures; "
        "boxes hold half of the prompts, whiskers 90 %",
        fontsize=11,
        color=INK,
    )
    _save(figure, target)


def _draw_boxes(place: Axes, quality: Quality, kind: str, name: str) -> None:
    for number, (color, found) in enumerate(zip((BLUE, ORANGE), quality.measured.values(), strict=True)):
        for at, size in enumerate(SIZES):
            made = (m for m in found if (m.kind, m.size, m.status) == (kind, size, "ok"))
            values: Sequence[float] = [getattr(m, name) for m in made]
            if values:
                box = place.boxplot(
                    [values],
                    positions=[at + 0.36 * number - 0.18],
                    widths=0.3,
                    whis=(5, 95),
                    showfliers=False,
                    patch_artist=True,
                    medianprops={"color": INK, "linewidth": 1.6},
                )
                box["boxes"][0].set(facecolor=color, edgecolor=INK, linewidth=0.8)
                if max(values) - min(values) < 1e-6:  # a box without height
                    box["medians"][0].set(color=color, linewidth=5, solid_capstyle="butt")
    place.set_xticks(range(len(SIZES)), SIZES)
    place.set_xlim(-0.5, len(SIZES) - 0.5)
    place.grid(axis="y", color="#E0E0E0", linewidth=0.6)
    place.set_axisbelow(True)


def _patch(color: str, profile: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=color, edgecolor=INK, linewidth=0.8, label=profile)


def _figure(width: float, height: float) -> Figure:
    """A figure of that many inches that needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, target: Path) -> None:
    """As a PNG of 256 colours, a third of the size of one of all colours."""
    from PIL import Image as Pillow

    file = io.BytesIO()
    figure.savefig(file, dpi=DPI, format="png")
    with Pillow.open(file) as drawn:
        drawn.convert("RGB").quantize(256, method=Pillow.Quantize.MEDIANCUT).save(target, optimize=True)
