"""GranD-f's form of grounded captions, that of `GranDf_HA_GCG_train.json`.

A list of {file_name, image_id, caption, height, width, groundings}, where groundings are
{phrase: {token_positives: [start, end], rle_masks: [RLE, …]}}. Loaders strip and lower-case the caption without moving
offsets, so it is written stripped and in lower case, and offsets count in that. They keep a span only if it starts
behind the end of the one before, and know a phrase once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dataengine import tokens
from dataengine.sample import Sample
from pipelines.export.coco import Ids, picture_folder
from pipelines.export.output import JsonLists, Key, LeftOut, Output, compressed

STRIPPED = ' \t\n\r\f\v"'  # what loaders take away at both ends


class Gcg:
    """pattern: of the files' names. pictures: their folder; `{split}` in it becomes the split."""

    def __init__(self, output: Output, pattern: str, pictures: str) -> None:
        self._output, self._pictures = output, pictures
        self._lists = JsonLists(output, pattern)
        self._ids: dict[Key, Ids] = {}

    def write(self, group: Sequence[Sample]) -> None:
        records = [self._record(sample) for sample in group]
        for sample, (record, reasons) in zip(group, records, strict=True):
            self._lists.add((sample.source, sample.split), record)
            for reason in reasons:
                self._output.note(sample, f"conditions: {reason}")

    def _record(self, sample: Sample) -> tuple[dict[str, Any], list[str]]:
        """What is written of a sample, and why phrases are not in it."""
        caption, spans = plain_caption(sample.caption or "")
        if len(spans) != len(sample.conditions):
            raise LeftOut("no_caption", "each condition needs its span in the caption")
        groundings: dict[str, Any] = {}
        reasons = []
        before = -1
        for (start, end), condition in zip(spans, sample.conditions, strict=True):
            phrase = caption[start:end]
            if not phrase or not condition.objects:
                reasons.append("nothing to ground")
            elif phrase in groundings:
                reasons.append("phrase given twice")
            elif start <= before:
                reasons.append("no gap to the phrase before")
            else:
                rles = [compressed(sample.objects[i].rle, sample.height, sample.width) for i in condition.objects]
                groundings[phrase] = {"token_positives": [start, end], "rle_masks": rles}
                before = end
        if not groundings:
            raise LeftOut("nothing_grounded", "no phrase of the caption can be written")
        image_id, _ = self._ids.setdefault((sample.source, sample.split), Ids()).image(sample.image_key)
        record = {
            "file_name": self._output.picture(sample, picture_folder(self._pictures, sample)),
            "image_id": str(image_id),
            "caption": caption,
            "height": sample.height,
            "width": sample.width,
            "groundings": groundings,
        }
        return record, reasons

    def finish(self) -> None:
        self._lists.finish()


def plain_caption(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """A caption without `<p>` and `</p>`, stripped and in lower case, and where its phrases stand in it.

    Returns:
        the caption, and [start, end) of each phrase without blanks at its ends, in code points.
    """
    text, spans, at = "", [], 0
    for span in tokens.find_spans(marked):
        text += marked[at : span.start].lower()
        start = len(text)
        text += span.content.lower()
        spans.append((start, len(text)))
        at = span.end
    text += marked[at:].lower()
    first = len(text) - len(text.lstrip(STRIPPED))
    caption = text.strip(STRIPPED)
    return caption, [_trimmed(caption, start - first, end - first) for start, end in spans]


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    start, end = max(start, 0), min(end, len(text))
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
