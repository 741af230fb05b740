"""The refer family: `refs(unc).p` and `instances.json` in a folder a dataset; gRefCOCO's form for grefseg.

The pickle (protocol 2) holds lists, dicts, text and whole numbers, nothing else; it is written ref by ref.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataengine.sample import Object, Sample
from pipelines.export.coco import Document, annotation_entry
from pipelines.export.output import LeftOut, Output, safe_name

HEAD = b"\x80\x02]"  # protocol 2, an empty list; each ref is appended to it
APPEND, STOP = b"a", b"."
BY = {"refcocog": "umd"}  # who split the dataset, as in the published file's name, where it is not unc
CALLED = {"refcoco+": "refcocop"}  # as X-SAM's loader calls its folder
NO_TARGET = -1


class Refer:
    """folder: of the datasets' folders. pictures: their folder."""

    def __init__(self, output: Output, folder: str, pictures: str) -> None:
        self._output, self._folder, self._pictures = output, folder, pictures
        self._files: dict[str, _Files] = {}
        self._datasets: dict[str, tuple[str, str]] = {}  # by source: what it is, and by whom

    def write(self, group: Sequence[Sample]) -> None:
        first = group[0]
        wanted: dict[tuple[str, ...], list[str]] = {}  # texts by the annotations that they mean
        things: dict[str, tuple[Sample, Object]] = {}
        for sample in group:
            for thing in sample.objects:
                things.setdefault(thing.annotation_id, (sample, thing))
            for condition in sample.conditions:
                names = tuple(sample.objects[i].annotation_id for i in condition.objects)
                # a ref is of one object; a phrase of several stands in the ref of each
                for meant in [names] if first.task == "grefseg" else [(name,) for name in names]:
                    texts = wanted.setdefault(meant, [])
                    texts += [condition.text] if condition.text not in texts else []
        if not wanted:
            raise LeftOut("no_target", "no phrase has an object")
        if first.task == "refseg":
            absent = sum(not condition.objects for sample in group for condition in sample.conditions)
            self._output.note(first, "conditions: nothing to be found", absent)
        picture = self._output.picture(first, self._pictures)
        if first.source not in self._files:
            self._files[first.source] = _Files(self._output, first)
            self._datasets[first.source] = self._dataset(first)
        files = self._files[first.source]
        image_id = files.image(first, picture)
        for names, texts in wanted.items():
            files.ref(first, image_id, [(files.object(*things[n], image_id), things[n][1]) for n in names], texts)

    def finish(self) -> None:
        known = Counter(dataset for dataset, _ in self._datasets.values())
        for source, files in self._files.items():
            dataset, by = self._datasets[source]
            name = CALLED.get(dataset, dataset) if known[dataset] == 1 else source  # two of one keep their own names
            places = (f"{self._folder}/{{source}}/{file}" for file in (f"refs({by}).p", "instances.json"))
            files.save(*(self._output.place(place, (name, ""), several=False) for place in places))

    def _dataset(self, sample: Sample) -> tuple[str, str]:
        """The published dataset that a source is, else its own name; and who split it."""
        source = self._output.manifest["sources"][f"{sample.source}/{sample.split}"]
        options = source.get("options", {})
        if sample.task == "grefseg":
            return "grefcoco", "unc"
        dataset = options.get("dataset", "refcoco") if source["builder"] == "refcoco" else sample.source
        return dataset, options.get("by") or BY.get(dataset, "unc")


class _Files:
    """The two files of a source while they are written."""

    def __init__(self, output: Output, sample: Sample) -> None:
        self._document = Document.start(output, sample)
        self._path = output.scratch()
        self._refs = self._path.open("wb")
        self._refs.write(HEAD)
        self._num_refs = self._num_sentences = 0
        self._splits: dict[str, str] = {}

    def image(self, sample: Sample, picture: str) -> int:
        """The id of a picture. Loaders take the split of its first ref for all, so it has an id for each split."""
        same = self._splits.setdefault(sample.image_key, sample.split) == sample.split
        return self._document.image(sample, picture, None if same else f"{sample.image_key} of {sample.split}")

    def object(self, sample: Sample, thing: Object, image_id: int) -> int:
        """The annotation id of an object, entered if it is new."""
        number, is_new = self._document.ids.annotation(image_id, thing.annotation_id)
        if is_new:
            known = self._document.categories
            if all(category["id"] != thing.category_id for category in known):
                known.append({"id": thing.category_id, "name": "object", "supercategory": "object"})
            self._document.add("annotations", annotation_entry(sample, thing, number, image_id))
        return number

    def ref(self, sample: Sample, image_id: int, things: Sequence[tuple[int, Object]], texts: Sequence[str]) -> None:
        """Append a ref. things: what it means, with their annotation ids."""
        sentences = [
            {"sent_id": number, "sent": text, "raw": text, "tokens": text.split()}
            for number, text in enumerate(texts, start=self._num_sentences)
        ]
        ref: dict[str, Any] = {
            "ref_id": self._num_refs,
            "image_id": image_id,
            "file_name": f"{safe_name(sample.image_key)}_{self._num_refs}.jpg",  # by custom; it is no file
            "split": sample.split,
            "sent_ids": [sentence["sent_id"] for sentence in sentences],
            "sentences": sentences,
        }
        if sample.task == "grefseg":
            ref["ann_id"] = [number for number, _ in things] or [NO_TARGET]
            ref["category_id"] = [thing.category_id for _, thing in things] or [NO_TARGET]
            ref["no_target"] = not things
        else:
            ref["ann_id"], ref["category_id"] = things[0][0], things[0][1].category_id
        self._num_refs += 1
        self._num_sentences += len(sentences)
        self._refs.write(pickle.dumps(ref, protocol=2)[2:-1] + APPEND)  # without its own protocol and end

    def save(self, refs: Path, instances: Path) -> None:
        self._refs.write(STOP)
        self._refs.close()
        self._path.rename(refs)
        self._document.save(instances)
