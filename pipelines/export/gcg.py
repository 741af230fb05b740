"""GranD-f's forms of grounded captions: that of `GranDf_HA_GCG_train.json`, and the benchmark's for val and test.

Training: a list of {file_name, image_id, caption, height, width, groundings}, where groundings are
{phrase: {token_positives: [start, end], rle_masks: [RLE, …]}}. Loaders strip and lower-case the caption without moving
offsets, so it is written stripped and in lower case, and offsets count in that. They keep a span only if it starts
behind the end of the one before, and know a phrase once.
RefCOCOg's and Flickr30k's parts have forms of their own (`gcg_parts`).
Benchmark: a file of captions with labels, and one of masks; mask i is of label i, or all are of the only label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dataengine import masks, tokens
from dataengine.sample import Condition, Sample
from pipelines.export import gcg_parts
from pipelines.export.coco import Document, Ids
from pipelines.export.output import (
    JsonLists,
    Key,
    LeftOut,
    Output,
    compressed,
    safe_name,
    suffix_of,
    without_year,
)

STRIPPED = ' \t\n\r\f\v"'  # what loaders take away at both ends
BENCHMARK = ("val", "test")
HUMAN, PSG = "GranDf_HA_GCG", "OpenPsgGCG"


class Gcg:
    """annotations: the folder of the files' folders. pictures: that of the pictures' folders."""

    def __init__(self, output: Output, annotations: str, pictures: str) -> None:
        self._output, self._pictures = output, pictures
        self._lists = {
            name: JsonLists(output, f"{annotations}/train/{name}_{{split}}.json", yearless=True)
            for name in (HUMAN, PSG)
        }
        self._benchmark = _Benchmark(output, f"{annotations}/val_test", f"{pictures}/val_test")
        self._parts: dict[str | None, gcg_parts.RefCocog | gcg_parts.Flickr] = {
            "refcocog": gcg_parts.RefCocog(output, f"{annotations}/train"),
            "flickr": gcg_parts.Flickr(
                output, f"{annotations}/train", f"{pictures.rpartition('/')[0]}/flickr30k/images/train"
            ),
        }
        self._ids: dict[Key, Ids] = {}

    def write(self, group: Sequence[Sample]) -> None:
        if without_year(group[0].split) in BENCHMARK:
            self._benchmark.write(group)
            return
        source = self._output.manifest["sources"][f"{group[0].source}/{group[0].split}"]
        chosen = source.get("options", {}).get("part")
        if chosen in self._parts:
            self._write_part(self._parts[chosen], group)
            return
        part = PSG if chosen == "psg" else HUMAN
        records = [self._record(sample, part) for sample in group]
        for sample, (record, reasons) in zip(group, records, strict=True):
            self._lists[part].add((sample.source, sample.split), record)
            for reason in reasons:
                self._output.note(sample, f"conditions: {reason}")

    def _write_part(self, part: gcg_parts.RefCocog | gcg_parts.Flickr, group: Sequence[Sample]) -> None:
        found = [(sample, *_spans(sample)) for sample in group]
        for sample, caption, places in found:
            part.check(sample, caption, places)
        for sample, caption, places in found:
            part.write(sample, caption, places)

    def _record(self, sample: Sample, part: str) -> tuple[dict[str, Any], list[str]]:
        """What is written of a sample, and why phrases are not in it."""
        caption, spans = _spans(sample)
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
        if part == PSG:
            name = self._output.picture(sample, gcg_parts.COCO, f"train2017/{safe_name(sample.image_key)}")
        else:
            name = self._output.picture(sample, f"{self._pictures}/train")
        record = {
            "file_name": name,
            "image_id": str(image_id),
            "caption": caption,
            "height": sample.height,
            "width": sample.width,
            "groundings": groundings,
        }
        return record, reasons

    def finish(self) -> None:
        for lists in (*self._lists.values(), *self._parts.values()):
            lists.finish()
        self._benchmark.finish()


class _Benchmark:
    """Captions and masks of the splits that are evaluated on. A picture's file is named by its id, and is a JPEG."""

    def __init__(self, output: Output, folder: str, pictures: str) -> None:
        self._output, self._folder, self._pictures = output, folder, pictures
        self._files: dict[Key, tuple[Document, Document]] = {}

    def write(self, group: Sequence[Sample]) -> None:
        if len(group) > 1:
            raise LeftOut("picture_twice", "a picture has one caption in the benchmark's files")
        sample = group[0]
        if suffix_of(sample) != ".jpg":
            raise LeftOut("picture_not_jpeg", "the layout knows JPEG pictures")
        caption, spans = _spans(sample)
        grounded = [(span, c) for span, c in zip(spans, sample.conditions, strict=True) if c.objects]
        if not grounded:
            raise LeftOut("nothing_grounded", "no phrase of the caption has a mask")
        self._output.picture(sample, self._pictures)
        self._note(sample, [condition for _, condition in grounded])
        captions, shown = self._documents(sample)
        stem = safe_name(sample.image_key)
        number, _ = shown.ids.image(sample.image_key)
        image = {"id": stem, "height": sample.height, "width": sample.width, "file_name": f"{stem}.jpg"}
        for document in (captions, shown):
            document.add("images", image)
        labels = [caption[start:end] for (start, end), _ in grounded]
        captions.add("annotations", {"id": number, "image_id": stem, "caption": caption, "labels": labels})
        for rle, name in _masks(sample, [condition for _, condition in grounded]):
            area, bbox = masks.measure(rle, sample.height, sample.width)
            annotation = {
                "id": shown.ids.annotation(number, name)[0],
                "image_id": stem,
                "category_id": 1,
                "iscrowd": 0,
                "area": area,
                "bbox": list(bbox),
                "segmentation": compressed(rle, sample.height, sample.width),
            }
            shown.add("annotations", annotation)

    def _note(self, sample: Sample, grounded: Sequence[Condition]) -> None:
        self._output.note(sample, "conditions: nothing to ground", len(sample.conditions) - len(grounded))
        used = {i for condition in grounded for i in condition.objects}
        self._output.note(sample, "objects: of no phrase", len(sample.objects) - len(used))
        if len(grounded) > 1:
            joined = sum(len(condition.objects) - 1 for condition in grounded)
            self._output.note(sample, "objects: joined with others of their phrase", joined)

    def _documents(self, sample: Sample) -> tuple[Document, Document]:
        key = sample.source, without_year(sample.split)
        if key not in self._files:
            self._files[key] = Document.start(self._output, sample), Document.start(self._output, sample)
            self._files[key][1].categories[:] = [{"id": 1, "name": "object"}]
        return self._files[key]

    def finish(self) -> None:
        several = len({source for source, _ in self._files}) > 1
        for key, documents in self._files.items():
            for document, kind in zip(documents, ("caption", "mask"), strict=True):
                document.save(self._output.place(f"{self._folder}/{{split}}_gcg_coco_{kind}_gt.json", key, several))


def _masks(sample: Sample, grounded: Sequence[Condition]) -> list[tuple[bytes, str]]:
    """Masks with the names of their annotations: all of an only phrase, else one a phrase, of all its objects."""
    if len(grounded) == 1:
        return [(sample.objects[i].rle, sample.objects[i].annotation_id) for i in grounded[0].objects]
    found, names = [], Counter[str]()
    for condition in grounded:
        things = [sample.objects[i] for i in condition.objects]
        rle = masks.union([thing.rle for thing in things], sample.height, sample.width)
        name = things[0].annotation_id
        found.append((rle, f"{name} again {names[name]}" if names[name] else name))
        names[name] += 1
    return found


def _spans(sample: Sample) -> tuple[str, list[tuple[int, int]]]:
    """See `plain_caption`; one span a condition.

    Raises:
        LeftOut: there are others.
    """
    caption, spans = plain_caption(sample.caption or "")
    if len(spans) != len(sample.conditions):
        raise LeftOut("no_caption", "each condition needs its span in the caption")
    return caption, spans


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
