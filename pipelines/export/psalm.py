"""PSALM's `coco_interactive_{split}_psalm.json`: objects with their prompts as bitmaps, undilated.

Points are single pixels and scribbles traces of one pixel; the loader draws its own discs about them (10 and 5 px).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dataengine import masks, prompts
from dataengine.sample import PROMPT_KINDS, Object, Sample
from pipelines.export.coco import Ids, annotation_entry, image_entry, picture_folder
from pipelines.export.output import JsonLists, Key, LeftOut, Output, compressed


def exporter(output: Output) -> Psalm:
    """See `Exporter`."""
    return Psalm(output, "coco_interactive_{split}_psalm.json", "{split}")


class Psalm:
    """pattern: of the files' names. pictures: their folder; `{split}` in it becomes the split."""

    def __init__(self, output: Output, pattern: str, pictures: str) -> None:
        self._output, self._pictures = output, pictures
        self._lists = JsonLists(output, pattern, yearless=True)
        self._ids: dict[Key, Ids] = {}

    def write(self, group: Sequence[Sample]) -> None:
        first = group[0]
        if first.task != "intseg":
            raise LeftOut("not_interactive", f"PSALM's file is of intseg samples, not of {first.task}")
        key = first.source, first.split
        name = self._output.picture(first, picture_folder(self._pictures, first))
        ids = self._ids.setdefault(key, Ids())
        image_id, _ = ids.image(first.image_key)
        annotations = []
        for sample in group:
            for thing in sample.objects:
                number, is_new = ids.annotation(image_id, thing.annotation_id)
                if is_new:
                    entry = annotation_entry(sample, thing, number, image_id)
                    bitmaps = drawn(sample, thing, dilated=False)
                    annotations.append(entry | {f"{kind}_visual_prompt_mask": bitmaps[kind] for kind in PROMPT_KINDS})
                else:
                    self._output.note(sample, "objects: given twice")
        record = {"image": name, "image_info": image_entry(first, image_id, name)}
        self._lists.add(key, record | {"new_img_id": self._lists.lengths[key], "anns": annotations})

    def finish(self) -> None:
        self._lists.finish()


def drawn(sample: Sample, thing: Object, *, dilated: bool) -> dict[str, dict[str, Any]]:
    """An object's prompts of all four kinds as RLE of their bitmaps on the full canvas; one without a pixel is missing.

    Args:
        dilated: draw the discs about points and scribbles.
    """
    found = {}
    for kind in PROMPT_KINDS:
        crop = None
        for prompt in thing.prompts:
            if prompt.kind == kind:
                shown = prompt if dilated else replace(prompt, radius=0.0)
                crop = prompts.render(shown, sample.height, sample.width)
        if crop is None:
            crop = masks.Crop(np.zeros((1, 1), dtype=bool), 0, 0)
        rle = masks.rle_from_crop(crop, sample.height, sample.width)
        found[kind] = compressed(rle, sample.height, sample.width)
    return found
