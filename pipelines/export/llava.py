"""LLaVA's conversations: `id`, `image` unless there is none, and turns `from` human and gpt with their markers.

Masks and prompts have no place in it; how many stayed behind is counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dataengine.sample import Sample
from pipelines.export.output import JsonLists, LeftOut, Output, without_year

# where the published rows have pictures, by what they are called in all sources
PICTURES = {
    r"vg/([0-9]{1,18})": "vg/VG_100K/{}",
    r"textvqa/([A-Za-z0-9_-]{1,80})": "textvqa/train_images/{}",
    r"ocr_vqa/([A-Za-z0-9_-]{1,80})": "ocr_vqa/images/{}",
    r"llava_pretrain/([0-9]{5}/[0-9]{9})": "{}",
}
SPEAKERS = {"user": "human", "assistant": "gpt"}


def exporter(output: Output) -> Llava:
    """See `Exporter`."""
    return Llava(output, "llava_{split}.json", "images")


class Llava:
    """pattern: of the files' names. pictures: their folder."""

    def __init__(self, output: Output, pattern: str, pictures: str) -> None:
        self._output, self._pictures = output, pictures
        self._lists = JsonLists(output, pattern)

    def write(self, group: Sequence[Sample]) -> None:
        if not all(sample.turns for sample in group):
            raise LeftOut("no_turns", "there is no conversation")
        pictures = [s.image and self._output.picture(s, self._pictures, picture_stem(s.image_key)) for s in group]
        for sample, picture in zip(group, pictures, strict=True):
            record: dict[str, Any] = {"id": sample.sample_id}
            if picture is not None:
                record["image"] = picture
            record["conversations"] = [{"from": SPEAKERS[turn.role], "value": turn.text} for turn in sample.turns]
            self._lists.add(("", without_year(sample.split)), record)
            self._output.note(sample, "objects: masks and prompts", len(sample.objects))

    def finish(self) -> None:
        self._lists.finish()


def picture_stem(key: str) -> str | None:
    """Where LLaVA's mix has a picture, below its folder and without a suffix; None for what it has no place for."""
    found = ((re.fullmatch(pattern, key), place) for pattern, place in PICTURES.items())
    return next((place.format(match[1]) for match, place in found if match), None)
