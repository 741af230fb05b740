"""Grounded captions in the forms of GranD-f's parts of RefCOCOg and Flickr30k, which are not that of its other files.

RefCOCOg: a list of {id: {img_file_name, image_id, caption, height, width, refs: [{sentence, segmentation}]}}; a
sentence stands where it is first found. Flickr30k: COCO's images with captions, and annotations with `tokens_positive`.
"""

from __future__ import annotations

import re
from typing import Any

from builders import spans
from dataengine import masks
from dataengine.sample import Sample
from pipelines.export.coco import Document, Ids
from pipelines.export.output import JsonLists, Key, LeftOut, Output, compressed, safe_name, without_year

MIN_WORDS = 3  # loaders leave shorter captions of Flickr30k out
COCO = "coco2017"  # where pictures of COCO are written, whatever year's they are called
Spans = list[tuple[int, int]]


class RefCocog:
    """RefCOCOg_GCG_{split}.json in a folder; pictures of COCO, found by their number."""

    def __init__(self, output: Output, folder: str) -> None:
        self._output = output
        self._list = JsonLists(output, f"{folder}/RefCOCOg_GCG_{{split}}.json", yearless=True)
        self._ids: dict[Key, Ids] = {}

    def check(self, sample: Sample, caption: str, places: Spans) -> None:
        """Raises LeftOut: nothing of it can be written."""
        if not _refs(sample, caption, places)[0]:
            raise LeftOut("nothing_grounded", "no phrase of the caption can be written")

    def write(self, sample: Sample, caption: str, places: Spans) -> None:
        """Raises LeftOut: the picture cannot be read."""
        refs, reasons, joined = _refs(sample, caption, places)
        key = sample.source, sample.split
        image_id, _ = self._ids.setdefault(key, Ids()).image(sample.image_key)
        record = {
            "img_file_name": self._output.picture(sample, COCO, f"train2017/{safe_name(sample.image_key)}"),
            "image_id": image_id,
            "height": sample.height,
            "width": sample.width,
            "caption": caption,
            "refs": refs,
        }
        self._list.add(key, {str(image_id): record})
        for reason in reasons:
            self._output.note(sample, f"conditions: {reason}")
        self._output.note(sample, "objects: joined with others of their phrase", joined)

    def finish(self) -> None:
        self._list.finish()


def _refs(sample: Sample, caption: str, places: Spans) -> tuple[list[dict[str, Any]], list[str], int]:
    """Sentences with a mask each, why phrases are not among them, and how many objects were joined with others."""
    refs: list[dict[str, Any]] = []
    reasons: list[str] = []
    joined = 0
    taken: set[tuple[int, int]] = set()
    searched = spans.strip_caption(caption)
    for place, condition in zip(places, sample.conditions, strict=True):
        sentence = caption[slice(*place)]
        if not sentence or not condition.objects:
            reasons.append("nothing to ground")
        elif spans.find(searched, sentence, taken=taken) != place:
            reasons.append("stands elsewhere before")
        else:
            taken.add(place)
            rle = masks.union([sample.objects[i].rle for i in condition.objects], sample.height, sample.width)
            refs.append({"sentence": sentence, "segmentation": compressed(rle, sample.height, sample.width)})
            joined += len(condition.objects) - 1
    return refs, reasons, joined


class Flickr:
    """flickr_mergedGT_GCG_{split}.json in a folder. pictures: the folder of Flickr30k's."""

    def __init__(self, output: Output, folder: str, pictures: str) -> None:
        self._output, self._pictures = output, pictures
        self._pattern = f"{folder}/flickr_mergedGT_GCG_{{split}}.json"
        self._files: dict[Key, Document] = {}

    def check(self, sample: Sample, caption: str, places: Spans) -> None:
        """Raises LeftOut: nothing of it can be written."""
        if len(caption.split()) < MIN_WORDS:
            raise LeftOut("short_caption", f"loaders leave captions of fewer than {MIN_WORDS} words out")
        if not _meant(sample, places):
            raise LeftOut("nothing_grounded", "no phrase of the caption has a mask")

    def write(self, sample: Sample, caption: str, places: Spans) -> None:
        """Raises LeftOut: the picture cannot be read."""
        meant = _meant(sample, places)
        name = self._output.picture(sample, self._pictures, _stem(sample.image_key))
        empty = sum(not condition.objects for condition in sample.conditions)
        self._output.note(sample, "conditions: nothing to ground", empty)
        self._output.note(sample, "objects: of no phrase", len(sample.objects) - len(meant))
        document = self._document(sample)
        number, _ = document.ids.image(sample.sample_id)  # a caption is an image of its own
        image = {"id": number, "file_name": name, "caption": caption, "height": sample.height, "width": sample.width}
        more = {"sentence_id": 0, "tokens_negative": [[0, len(caption)]], "dataset_name": "flickr"}
        document.add("images", image | {"original_img_id": _stem(sample.image_key)} | more)
        for i, tokens in sorted(meant.items()):
            thing = sample.objects[i]
            annotation = {
                "id": document.ids.annotation(number, thing.annotation_id)[0],
                "image_id": number,
                "category_id": 1,
                "bbox": list(thing.bbox),
                "area": thing.area,
                "iscrowd": 0,
                "tokens_positive": tokens,
                "sam_mask": compressed(thing.rle, sample.height, sample.width),
            }
            document.add("annotations", annotation)

    def _document(self, sample: Sample) -> Document:
        key = sample.source, without_year(sample.split)
        if key not in self._files:
            self._files[key] = Document.start(self._output, sample)
            self._files[key].categories[:] = [{"id": 1, "name": "object"}]
        return self._files[key]

    def finish(self) -> None:
        several = len({source for source, _ in self._files}) > 1
        for key, document in self._files.items():
            document.save(self._output.place(self._pattern, key, several))


def _meant(sample: Sample, places: Spans) -> dict[int, list[list[int]]]:
    """Where the caption says each object that it says."""
    found: dict[int, list[list[int]]] = {}
    for (start, end), condition in zip(places, sample.conditions, strict=True):
        for i in condition.objects if start < end else ():
            found.setdefault(i, []).append([start, end])
    return found


def _stem(key: str) -> str:
    """The name of a picture's file: as Flickr30k calls its own."""
    return key.partition("/")[2] if re.fullmatch(r"flickr30k/[0-9]{1,18}", key) else safe_name(key)
