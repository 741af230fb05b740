"""PSALM's `coco_interactive_{split}_psalm.json`: objects with their prompts as bitmaps, undilated.

Points are single pixels and scribbles traces of one pixel; the loader draws its own discs about them (10 and 5 px).
An instances file beside it has the categories and licences, and says whose numbers the pictures have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dataengine import masks, prompts
from dataengine.sample import PROMPT_KINDS, Object, Sample
from pipelines.export.coco import CocoFiles, annotation_entry
from pipelines.export.output import JsonLists, LeftOut, Output, compressed


def exporter(output: Output) -> Psalm:
    """See `Exporter`."""
    return Psalm(output)


class Psalm:
    def __init__(self, output: Output) -> None:
        self._coco = CocoFiles(output, root="", segments="", pictures="{split}", dated=True)
        self._interactive = Interactive(output, "coco_interactive_{split}_psalm.json", self._coco)

    def write(self, group: Sequence[Sample]) -> None:
        if group[0].task != "intseg":
            raise LeftOut("not_interactive", f"PSALM's file is of intseg samples, not of {group[0].task}")
        self._interactive.write(group)

    def finish(self) -> None:
        self._interactive.finish()
        self._coco.finish()


class Interactive:
    """pattern: of the files' names. coco: gets the pictures, and the instances files."""

    def __init__(self, output: Output, pattern: str, coco: CocoFiles) -> None:
        self._output, self._coco = output, coco
        self._lists = JsonLists(output, pattern, yearless=True)

    def write(self, group: Sequence[Sample]) -> None:
        first = group[0]
        key = first.source, first.split
        entered = self._coco.instances(group)
        annotations: dict[str, dict[str, Any]] = {}
        for sample in group:
            for thing in sample.objects:
                if thing.annotation_id in annotations:
                    self._output.note(sample, "objects: given twice")
                    continue
                number = entered.annotations[thing.annotation_id]
                bitmaps = drawn(sample, thing, dilated=False)
                shown = {f"{kind}_visual_prompt_mask": bitmaps[kind] for kind in PROMPT_KINDS}
                annotations[thing.annotation_id] = annotation_entry(sample, thing, number, entered.image["id"]) | shown
        record = {"image": entered.image["file_name"], "image_info": entered.image}
        numbered = {"new_img_id": self._lists.lengths[key], "anns": list(annotations.values())}
        self._lists.add(key, record | numbered)

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
