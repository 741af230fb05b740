"""COCO: instances files for objects, panoptic PNG + json and class maps for generic segmentation.

annotations/instances_{split}.json        of vgdseg, intseg and instance genseg/ovseg; compressed RLE, so that masks
                                          stay exact
annotations/panoptic_{split}.json, annotations/panoptic_{split}/*.png
annotations/panoptic_semseg_{split}/*.png, semseg_{split}_classes.json
                                          semantic: 8-bit position of the class in that list, 255 for neither
images/                                   pictures
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from dataengine import masks
from dataengine.sample import Object, Sample
from pipelines.export.output import Key, LeftOut, Output, compressed, safe_folder, safe_name, unit_of

NO_CLASS = 255
DATED = {"train": "train2017", "val": "val2017"}
NAMESPACE = "exported"  # of pictures whose keys are no numbers
FIRST_IMAGE_ID = 10**13  # of pictures that have none of their own; theirs have 12 digits
FIRST_ANNOTATION_ID = 10**15  # below 2**53, which any JSON reader keeps
OBJECT_UNITS = ("vgdseg", "intseg", "genseg instance", "ovseg instance")


def exporter(output: Output) -> Coco:
    """See `Exporter`."""
    return Coco(output)


class Coco:
    def __init__(self, output: Output) -> None:
        self._files = CocoFiles(output, root="", segments="annotations/", pictures="images")

    def write(self, group: Sequence[Sample]) -> None:
        unit = unit_of(group[0])
        if unit in OBJECT_UNITS:
            self._files.instances(group)
        elif group[0].variant in ("panoptic", "semantic"):
            self._files.generic(group)
        else:
            raise LeftOut("no_such_form", f"COCO has no form for {group[0].task}")

    def finish(self) -> None:
        self._files.finish()


class Ids:
    """Ids of pictures and annotations in one file: the sources' own where they are numbers and free."""

    def __init__(self) -> None:
        self.namespace: str | None = None
        self._images: dict[str, int] = {}
        self._numbers: dict[int, int] = {}
        self._names: dict[tuple[int, str], int] = {}
        self._unnumbered = 0

    def __contains__(self, key: str) -> bool:
        return key in self._images

    def image(self, key: str) -> tuple[int, bool]:
        """The id of a picture, and whether it is new here. The first one decides whose numbers ids are."""
        if key in self._images:
            return self._images[key], False
        match = re.fullmatch(r"([a-z0-9_-]{1,40})/([0-9]{12})", key)
        if not self._images:
            self.namespace = match[1] if match else None
        if match and match[1] == self.namespace:
            found = int(match[2])
        else:
            self._unnumbered += 1
            found = self._unnumbered + (FIRST_IMAGE_ID if self.namespace else 0)
        self._images[key] = found
        return found, True

    def annotation(self, image_id: int, name: str) -> tuple[int, bool]:
        """The id of a picture's annotation, and whether it is new here."""
        if re.fullmatch(r"0|[1-9][0-9]{0,14}", name):
            owner = self._numbers.setdefault(int(name), -1)
            if owner in (-1, image_id):
                self._numbers[int(name)] = image_id
                return int(name), owner == -1
        is_new = (image_id, name) not in self._names
        return self._names.setdefault((image_id, name), FIRST_ANNOTATION_ID + len(self._names)), is_new


@dataclass(slots=True)
class Document:
    """A COCO file under way: images and annotations are on disk, ids and small tables in memory."""

    spills: dict[str, tuple[Path, IO[str]]]
    categories: list[dict[str, Any]]
    ids: Ids = field(default_factory=Ids)
    licenses: dict[tuple[str | None, str | None], int] = field(default_factory=dict)

    @classmethod
    def start(cls, output: Output, sample: Sample) -> Document:
        """A file of a sample's source and split."""
        categories = [
            {"id": c["id"], "name": c["name"], "supercategory": c["name"], "isthing": int(c["is_thing"])}
            for c in output.categories(sample)
        ]
        paths = {name: output.scratch() for name in ("images", "annotations")}
        return cls({name: (path, path.open("w", encoding="ascii")) for name, path in paths.items()}, categories)

    def add(self, section: str, record: dict[str, Any]) -> None:
        file = self.spills[section][1]
        file.write(",\n" if file.tell() else "")
        file.write(json.dumps(record, separators=(",", ":")))

    def image(self, sample: Sample, file_name: str, key: str | None = None) -> int:
        """The id of a sample's picture, entered if it is new. key: by which it is told from others, if not its own."""
        image_id, is_new = self.ids.image(key or sample.image_key)
        if is_new:
            self.add("images", image_entry(sample, image_id, file_name) | self.license(sample))
        return image_id

    def license(self, sample: Sample) -> dict[str, int]:
        """What an image record says of its licence: `license`, a number in the file's table, if it has any."""
        terms = sample.license.name, sample.license.url
        return {} if terms == (None, None) else {"license": self.licenses.setdefault(terms, len(self.licenses) + 1)}

    def save(self, path: Path) -> None:
        namespace = self.ids.namespace or NAMESPACE
        licenses = [{"id": n, "name": name, "url": url} for (name, url), n in self.licenses.items()]
        head = {"info": {"image_namespace": namespace}, "licenses": licenses, "categories": self.categories}
        with path.open("w", encoding="ascii") as file:
            file.write(json.dumps(head, separators=(",", ":"))[:-1])
            for name, (spill, handle) in self.spills.items():
                handle.close()
                file.write(f',\n"{name}":[\n')
                with spill.open(encoding="ascii") as source:
                    shutil.copyfileobj(source, file)
                file.write("\n]")
            file.write("}\n")


def image_entry(sample: Sample, image_id: int, file_name: str) -> dict[str, Any]:
    """`images[]` of a COCO file; `image_key` says whose picture it is where ids of several sources meet."""
    return {
        "id": image_id,
        "file_name": file_name,
        "height": sample.height,
        "width": sample.width,
        "image_key": sample.image_key,
    }


def annotation_entry(sample: Sample, thing: Object, annotation_id: int, image_id: int) -> dict[str, Any]:
    """`annotations[]` of an instances file."""
    score = {} if thing.lineage.score is None else {"score": thing.lineage.score}
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": thing.category_id,
        "bbox": list(thing.bbox),
        "area": thing.area,
        "iscrowd": int(thing.crowd),
        "segmentation": compressed(thing.rle, sample.height, sample.width),
        **score,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """A picture in an instances file: its record, and ids of its annotations by the sources' names."""

    image: dict[str, Any]
    annotations: dict[str, int]


class CocoFiles:
    """The COCO files of an export.

    root, segments, pictures: folders, below the output, of `annotations/`, of the PNG folders, and of pictures
    (`{split}` in it becomes the split). dated: `train` and `val` are called `train2017` and `val2017`, which is where
    readers of derived files look for COCO's.
    """

    def __init__(self, output: Output, *, root: str, segments: str, pictures: str, dated: bool = False) -> None:
        self._output, self._root, self._segments, self._pictures = output, root, segments, pictures
        self._names = DATED if dated else {}
        self._documents: dict[str, dict[Key, Document]] = {"instances": {}, "panoptic": {}}
        self._folders: dict[str, dict[Key, Path]] = {"panoptic": {}, "panoptic_semseg": {}}
        self._classes: dict[Key, list[dict[str, Any]]] = {}
        self._owners: dict[str, str] = {}  # the first source that has a table of categories

    def picture(self, sample: Sample) -> str:
        """Write a sample's picture; see `Output.picture`."""
        return self._output.picture(sample, self._pictures.format(split=safe_folder(self._split(sample))))

    def instances(self, group: Sequence[Sample]) -> Entered:
        """Enter a picture and its objects.

        Objects of a picture that several samples share are entered once.
        """
        first = group[0]
        name = self.picture(first)
        document = self._document("instances", first)
        image_id = document.image(first, name)
        entered = {}
        for sample in group:
            for thing in sample.objects:
                entered[thing.annotation_id], is_new = document.ids.annotation(image_id, thing.annotation_id)
                if is_new:
                    number = entered[thing.annotation_id]
                    document.add("annotations", annotation_entry(sample, thing, number, image_id))
        record = image_entry(first, image_id, name) | document.license(first)
        return Entered(image=record, annotations=entered)

    def generic(self, group: Sequence[Sample]) -> None:
        """Enter the panoptic or semantic segmentation of a picture."""
        sample = group[0]
        if len(group) > 1:
            raise LeftOut("picture_twice", "a picture has one segmentation")
        if sample.variant == "semantic":
            self._semantic(sample)
        else:
            self._panoptic(sample)

    def _panoptic(self, sample: Sample) -> None:
        numbers = segment_ids(sample.objects)
        canvas = paint(sample, numbers, np.zeros((sample.height, sample.width), dtype=np.uint32))
        document = self._document("panoptic", sample)
        if sample.image_key in document.ids:
            raise LeftOut("picture_twice", "a picture has one segmentation")
        image_id = document.image(sample, self.picture(sample))
        infos = [
            {
                "id": number,
                "category_id": thing.category_id,
                "iscrowd": int(thing.crowd),
                "area": thing.area,
                "bbox": [int(v) for v in thing.bbox],
            }
            for number, thing in zip(numbers, sample.objects, strict=True)
        ]
        name = safe_name(sample.image_key) + ".png"
        document.add("annotations", {"image_id": image_id, "file_name": name, "segments_info": infos})
        colors = canvas.astype("<u4").view(np.uint8).reshape(*canvas.shape, 4)[..., :3]
        save_png(colors, self._folder("panoptic", sample) / name)

    def _semantic(self, sample: Sample) -> None:
        categories = self._output.categories(sample)
        if len(categories) > NO_CLASS:
            raise LeftOut("too_many_categories", "a class map has 8 bits")
        place = {category["id"]: at for at, category in enumerate(categories)}
        if any(thing.category_id not in place for thing in sample.objects):
            raise LeftOut("unknown_category", "an object's category is none of its source's")
        numbers = [place[thing.category_id] for thing in sample.objects]
        blank = np.full((sample.height, sample.width), NO_CLASS, dtype=np.uint8)
        canvas = paint(sample, numbers, blank)
        target = self._folder("panoptic_semseg", sample) / (safe_name(sample.image_key) + ".png")
        if target.exists():
            raise LeftOut("picture_twice", "a picture has one segmentation")
        self.picture(sample)
        self._classes[self._key(sample)] = [
            {"index": at, "id": category["id"], "name": category["name"]} for at, category in enumerate(categories)
        ]
        save_png(canvas, target)

    def _split(self, sample: Sample) -> str:
        return self._names.get(sample.split, sample.split)

    def _key(self, sample: Sample) -> Key:
        """Whose file a sample goes to: sources with the same categories share theirs."""
        table = json.dumps(self._output.categories(sample))
        return self._owners.setdefault(table, sample.source), self._split(sample)

    def _document(self, kind: str, sample: Sample) -> Document:
        key = self._key(sample)
        if key not in self._documents[kind]:
            self._documents[kind][key] = Document.start(self._output, sample)
        return self._documents[kind][key]

    def _folder(self, kind: str, sample: Sample) -> Path:
        key = self._key(sample)
        if key not in self._folders[kind]:
            self._folders[kind][key] = self._output.scratch()
            self._folders[kind][key].mkdir()
        return self._folders[kind][key]

    def finish(self) -> None:
        for kind, documents in self._documents.items():
            several = len({source for source, _ in documents}) > 1
            for key, document in documents.items():
                pattern = f"{self._root}annotations/{kind}_{{split}}.json"
                document.save(self._output.place(pattern, key, several))
        for kind, folders in self._folders.items():
            several = len({source for source, _ in folders}) > 1
            for key, folder in folders.items():
                folder.rename(self._output.place(f"{self._segments}{kind}_{{split}}", key, several))
                if kind == "panoptic_semseg":
                    listed = self._output.place(f"{self._root}annotations/semseg_{{split}}_classes.json", key, several)
                    listed.write_text(json.dumps(self._classes[key], indent=1) + "\n", encoding="ascii")


def segment_ids(objects: Sequence[Object]) -> list[int]:
    """24-bit segment ids: the sources' own where they can be kept, else the lowest free numbers."""
    own = [int(o.annotation_id) if re.fullmatch(r"[1-9][0-9]{0,7}", o.annotation_id) else 0 for o in objects]
    taken: set[int] = set()
    for at, number in enumerate(own):
        own[at] = number if 0 < number < 1 << 24 and number not in taken else 0
        taken.add(own[at])
    free = (number for number in range(1, 1 << 24) if number not in taken)
    return [number or next(free) for number in own]


def paint(sample: Sample, numbers: Sequence[int], canvas: np.ndarray) -> np.ndarray:
    """Write each object's number where it is; canvas: (H, W), of one number that stands for nothing.

    Raises:
        LeftOut: two objects share a pixel.
    """
    blank = canvas[0, 0]
    painted = 0
    for number, thing in zip(numbers, sample.objects, strict=True):
        crop = masks.crop_from_rle(thing.rle, sample.height, sample.width)
        h, w = crop.mask.shape
        np.copyto(canvas[crop.y0 : crop.y0 + h, crop.x0 : crop.x0 + w], number, where=crop.mask, casting="unsafe")
        painted += int(np.count_nonzero(crop.mask))
    if painted != np.count_nonzero(canvas != blank):
        raise LeftOut("segments_overlap", "two objects share a pixel")
    return canvas


def save_png(pixels: np.ndarray, path: Path) -> None:
    """Write (H, W) or (H, W, 3) uint8, RGB, with what is quickest for large areas of one colour."""
    import cv2

    parameters = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)
    strategy = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT)
    done, data = cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels, (*parameters, *strategy))
    if not done:
        raise OSError(f"{path}: OpenCV cannot write a PNG of {pixels.shape[1]} x {pixels.shape[0]} px")
    path.write_bytes(data.data)
