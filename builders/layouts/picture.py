"""A picture of the world as the layouts publish it: its scene, COCO annotations, and files under many names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from builders import world_text
from builders.world import KINDS, VERSION, Fact, Kind, Scene, make_scene, stuff_label
from builders.world_paint import paint
from builders.world_text import Reference
from builders.world_tree import annotation_of, pixel_outlines, save
from dataengine import masks
from dataengine.keyed import keyed
from dataengine.masks import Crop

TRAIN, VAL = "train2017", "val2017"
FIRST_ID = {TRAIN: 1, VAL: 500_001}
WEB = "http://images.cocodataset.org"
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture. The files that show it are hard links to `jpeg`.

    split: of COCO 2017, TRAIN or VAL. number: in its split, from 0. id: of COCO, and wherever else ids are numbers.
    annotations: COCO's, in the order of `scene.facts`; polygons, and uncompressed RLE for crowds.
    root: of the tree that is written.
    """

    seed: int
    split: str
    number: int
    scene: Scene
    annotations: Sequence[Record]
    references: Sequence[Reference]
    jpeg: Path
    root: Path

    @property
    def id(self) -> int:
        return FIRST_ID[self.split] + self.number

    @property
    def is_train(self) -> bool:
        return self.split == TRAIN

    @property
    def size(self) -> list[int]:
        """height, width"""
        height, width = self.scene.labels.shape
        return [height, width]

    @cached_property
    def objects(self) -> list[tuple[Fact, Record]]:
        """Objects that are no crowd, with their annotations."""
        return [pair for pair in zip(self.scene.facts, self.annotations, strict=True) if not pair[0].crowd]

    @cached_property
    def by_label(self) -> dict[int, Record]:
        """Annotations by the label of their object."""
        return {fact.label: record for fact, record in zip(self.scene.facts, self.annotations, strict=True)}

    @cached_property
    def crowds(self) -> list[Kind]:
        return [fact.kind for fact in self.scene.facts if fact.crowd]

    def rng(self, purpose: str) -> np.random.Generator:
        return keyed(self.seed, self.split, self.number, purpose, VERSION)

    @cached_property
    def extents(self) -> dict[int, tuple[int, tuple[int, int, int, int]]]:
        """Area and box (x, y, width, height) in pixels of each label of an object or of stuff."""
        found = {fact.label: (fact.area, fact.bbox) for fact in self.scene.facts}
        for kind, area in self.scene.stuff:
            label = stuff_label(kind.name)
            x, y, w, h = cv2.boundingRect((self.scene.labels == label).view(np.uint8))
            found[label] = area, (x, y, w, h)
        return found

    def crop(self, label: int) -> Crop:
        _, (x, y, w, h) = self.extents[label]
        return Crop(np.ascontiguousarray(self.scene.labels[y : y + h, x : x + w] == label), x, y)

    def rle(self, label: int) -> Record:
        """Compressed COCO RLE of a label's pixels; counts are a string."""
        return compressed(masks.rle_from_crop(self.crop(label), *self.size), *self.size)

    # --- files ---------------------------------------------------------------------------------------------------

    def publish(self, name: str) -> str:
        """Show the picture under a name in the tree, if it is not there yet."""
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(self.jpeg, target)
        except FileExistsError:
            pass
        except OSError:  # no hard links here
            shutil.copyfile(self.jpeg, target)
        return name

    def publish_coco(self) -> str:
        """Show it in `coco/`; its name below that."""
        return self.publish(f"coco/{self.coco_name}").removeprefix("coco/")

    @property
    def coco_name(self) -> str:
        return f"{self.split}/{self.id:012d}.jpg"

    def publish_coco2014(self) -> str:
        """Show it in `coco2014/`, where all pictures are of train2014; its file name."""
        name = f"COCO_train2014_{self.id:012d}.jpg"
        self.publish(f"coco2014/train2014/{name}")
        return name

    def write_png(self, name: str, pixels: np.ndarray, parameters: tuple[int, ...]) -> None:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        save(target, ".png", pixels, parameters)

    def write_json(self, name: str, record: Record, encoding: str = "utf-8") -> None:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(json.dumps(record, ensure_ascii=False, indent=1).encode(encoding))

    def coco_image(self, file_name: str) -> Record:
        """An entry of COCO's `images`."""
        height, width = self.size
        return {
            "license": 1,
            "file_name": file_name,
            "coco_url": f"{WEB}/{self.coco_name}",
            "height": height,
            "width": width,
            "date_captured": "2013-11-14 12:00:00",
            "flickr_url": f"{WEB}/{self.coco_name}",
            "id": self.id,
        }


def compressed(rle: bytes, height: int, width: int) -> Record:
    return {"size": [height, width], "counts": rle.decode("ascii")}


def draw_picture(
    seed: int, split: str, number: int, jpegs: Path, root: Path, quality: int, style: str = "world"
) -> Picture:
    """Make and paint a picture; the JPEG lies in a folder of its own until the layouts name it."""
    key = (seed, split, number)
    scene = make_scene(*key, style)
    jpeg = jpegs / f"{split}-{number}.jpg"
    pixels = paint(scene, keyed(*key, "paint", VERSION))
    save(jpeg, ".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, quality))
    image_id = FIRST_ID[split] + number
    return Picture(
        seed=seed,
        split=split,
        number=number,
        scene=scene,
        annotations=[_coco_annotation(scene, fact, image_id, place) for place, fact in enumerate(scene.facts)],
        references=world_text.references(scene, keyed(*key, "refs", VERSION)),
        jpeg=jpeg,
        root=root,
    )


def _coco_annotation(scene: Scene, fact: Fact, image_id: int, place: int) -> Record:
    """As published: no attributes, and polygons for every object, cut where it has a hole."""
    record = annotation_of(scene, fact, image_id, place)
    record.pop("attributes", None)
    if not fact.crowd and isinstance(record["segmentation"], dict):
        x, y, w, h = fact.bbox
        mask = scene.labels[y : y + h, x : x + w] == fact.label
        record["segmentation"] = [(ring + np.array((x, y))).ravel().tolist() for ring in pieces_without_holes(mask)]
    return record


def pieces_without_holes(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines along pixel edges whose COCO rasterisation is the mask; one with a hole is halved until none is left.

    Args:
        mask: (h, w) bool.
    Returns:
        (n, 2) int arrays of x, y at pixel corners.
    """
    outlines = pixel_outlines(mask) if mask.any() else []
    if outlines is not None:
        return outlines
    middle = mask.shape[1] // 2
    left, right = np.ascontiguousarray(mask[:, :middle]), np.ascontiguousarray(mask[:, middle:])
    return pieces_without_holes(left) + [ring + np.array((middle, 0)) for ring in pieces_without_holes(right)]


def groups(picture: Picture) -> Iterator[tuple[Kind, str, list[Fact]]]:
    """Objects of a kind and color: all that there are, as kinds with a crowd are left out."""
    found: dict[tuple[str, str], list[Fact]] = {}
    for fact, _ in picture.objects:
        if fact.color is not None and fact.kind not in picture.crowds:
            found.setdefault((fact.kind.name, fact.color), []).append(fact)
    for (name, color), facts in sorted(found.items()):
        yield KINDS[name], color, facts


def cycle(splits: str, picture: Picture) -> str:
    """The split of a picture where splits take turns, as a blank-separated list."""
    names = splits.split()
    return names[picture.number % len(names)]
