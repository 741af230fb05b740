"""LLaVA's conversations: `id`, `image` unless there is none, and turns `from` human and gpt with their markers.

Masks and prompts have no place in it; how many stayed behind is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dataengine.sample import Sample
from pipelines.export.output import JsonLists, LeftOut, Output

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
        pictures = [s.image and self._output.picture(s, self._pictures) for s in group]
        for sample, picture in zip(group, pictures, strict=True):
            record: dict[str, Any] = {"id": sample.sample_id}
            if picture is not None:
                record["image"] = picture
            record["conversations"] = [{"from": SPEAKERS[turn.role], "value": turn.text} for turn in sample.turns]
            self._lists.add(("", sample.split), record)
            self._output.note(sample, "objects: masks and prompts", len(sample.objects))

    def finish(self) -> None:
        self._lists.finish()
