"""The procedural world in every published layout; here are the two whose files hold simulated prompts.

COCO-Interactive (PSALM) and COCO-VGD (X-SAM) are drawn with `prompts_sim.published`, the formulas of their publishers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from builders.layouts import LAYOUTS as PLAIN
from builders.layouts.picture import Picture, Record, compressed
from builders.layouts.tree import Layout, PublishedSummary, Sections, write_layouts
from builders.world import VERSION, Fact
from dataengine import masks
from dataengine.prompts import discs_crop
from prompts_sim import published
from prompts_sim.shape import draws_of, shape_from_crop

KINDS = ("point", "scribble", "box", "mask")


def write_published(
    root: Path,
    num_images: int,
    *,
    seed: int = 0,
    workers: int = 1,
    quality: int = 90,
    layouts: Collection[str] | None = None,
    style: str = "world",
) -> PublishedSummary:
    """Write the world as the publishers of public datasets would have laid it out.

    Args:
        root: the folder of all layouts; must not hold anything yet.
        num_images: of COCO train2017 and val2017 together, a fifth of which is val2017; at least 2.
        workers: processes; 1 draws in this one.
        quality: of the JPEGs, 1..100.
        layouts: of LAYOUTS; by default all. The pictures that a layout needs are written with it; the files of another
            layout are not (COCO-VGD's reader wants `coco` too).
        style: one of `world.STYLES`.
    Raises:
        FileExistsError: the folder is not empty.
        ValueError: an argument is out of range, or there is no such layout or style.
    """
    unknown = sorted(set(layouts or ()) - set(LAYOUTS))
    if unknown:
        raise ValueError(f"there is no layout {unknown[0]!r}; there are {', '.join(LAYOUTS)}")
    chosen = {name: layout for name, layout in LAYOUTS.items() if layouts is None or name in layouts}
    return write_layouts(root, num_images, chosen, seed=seed, workers=workers, quality=quality, style=style)


def _prompts(picture: Picture, fact: Fact, purpose: str, *, drawn: bool) -> dict[str, Record]:
    """Prompts by kind, as RLE; without pixels where one cannot be made.

    drawn: clicks and strokes as discs, else as single pixels.
    """
    height, width = picture.size
    shape = shape_from_crop(picture.crop(fact.label), height, width)
    draws = draws_of(picture.seed, (picture.id, fact.label, purpose, VERSION), KINDS)
    found: dict[str, Record] = {}
    for kind in KINDS:
        bitmap, places, _ = published.drawn(shape, kind, draws[kind])
        if bitmap is not None and published.RADII[kind] and not drawn:
            bitmap = discs_crop(places, 0.0, height, width)
        rle = (
            masks.encode(np.zeros((height, width), dtype=bool))
            if bitmap is None
            else masks.rle_from_crop(bitmap, height, width)
        )
        found[kind] = compressed(rle, height, width)
    return found


# --- COCO-Interactive ------------------------------------------------------------------------------------------------


def _interactive(picture: Picture) -> Iterator[tuple[str, Record]]:
    """All annotations, crowds too; pictures without any are left out."""
    if not picture.annotations:
        return
    name = picture.publish_coco().partition("/")[2]
    annotations = []
    for fact, record in zip(picture.scene.facts, picture.annotations, strict=True):
        prompts = _prompts(picture, fact, "interactive", drawn=False)
        annotations.append(
            record | {f"{kind}_visual_prompt_mask": prompts[kind] for kind in ("point", "mask", "box", "scribble")}
        )
    yield (
        f"coco_interactive/{_part(picture)}",
        {"image": name, "image_info": picture.coco_image(name), "new_img_id": None, "anns": annotations},
    )


def _write_interactive(sections: Sections) -> None:
    for part in ("train", "val"):
        records = sections.records(f"coco_interactive/{part}")
        numbered = (record | {"new_img_id": number} for number, record in enumerate(records))
        sections.write_list(f"coco_interactive/coco_interactive_{part}_psalm.json", numbered)


def _part(picture: Picture) -> str:
    return "train" if picture.is_train else "val"


# --- COCO-VGD --------------------------------------------------------------------------------------------------------


def _vgd(picture: Picture) -> Iterator[tuple[str, Record]]:
    """Objects that are no crowd; a picture that has crowds only stays, one without annotations does not."""
    if not picture.annotations:
        return
    name = picture.publish_coco().partition("/")[2]
    annotations = []
    for fact, record in picture.objects:
        prompts = _prompts(picture, fact, "vgd", drawn=True)
        found = {f"{kind}_visual_prompt": prompt for kind, prompt in prompts.items()}
        annotations.append(record | {"bbox_mode": 1, "visual_prompts": found})  # 1: x, y, width, height
    height, width = picture.size
    yield (
        f"coco_vgd/{_part(picture)}",
        {
            "image_file": name,
            "image_id": picture.id,
            "image_size": picture.size,
            "annotations": annotations,
            "image_info": {"file_name": name, "image_id": picture.id, "height": height, "width": width},
        },
    )


def _write_vgd(sections: Sections) -> None:
    for part in ("train", "val"):
        sections.write_list(f"coco_vgd/annotations/coco_vgdseg_{part}.json", f"coco_vgd/{part}")


LAYOUTS = PLAIN | {
    "coco_interactive": Layout(records=_interactive, write=_write_interactive),
    "coco_vgd": Layout(records=_vgd, write=_write_vgd),
}
