"""ADE20K as ADEChallengeData2016: semantic maps, instance maps, the tables of classes. And as the full edition.

The world has fewer than 150 classes: its stuff takes the first ids and its things the next, in the order of
`builders.world`; the rest are published names that no picture shows. Instance classes count things from 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from builders.ade20k_names import NAMES
from builders.layouts import ade20k_full
from builders.layouts.picture import Picture, Record
from builders.layouts.tree import Layout, Sections
from builders.world import STUFF, SYNONYMS, THINGS
from builders.world_text import scene_name
from builders.world_tree import PNG, labels_of

ROOT = "ade20k/ADEChallengeData2016"
CLASSES = {kind: number for number, kind in enumerate((*STUFF, *THINGS), start=1)}
INSTANCE_CLASSES = {kind: number for number, kind in enumerate(THINGS, start=1)}
PARTS = {"training": "train", "validation": "val"}


def records(picture: Picture) -> Iterator[tuple[str, Record]]:
    part = "training" if picture.is_train else "validation"
    stem = f"ADE_{PARTS[part]}_{picture.number + 1:08d}"
    picture.publish(f"{ROOT}/images/{part}/{stem}.jpg")
    classes = np.zeros(256, dtype=np.uint8)
    instances = np.zeros((3, 256), dtype=np.uint8)  # blue, green, red
    for label, kind in labels_of(picture.scene):
        classes[label] = CLASSES[kind]
    for index, (fact, _) in enumerate(picture.objects, start=1):
        instances[1:, fact.label] = index, INSTANCE_CLASSES[fact.kind]
    labels = picture.scene.labels
    semantic = cv2.LUT(labels, classes)
    picture.write_png(f"{ROOT}/annotations/{part}/{stem}.png", semantic, PNG)
    instance = cv2.merge([cv2.LUT(labels, table) for table in instances])
    picture.write_png(f"{ROOT}/annotations_instance/{part}/{stem}.png", instance, PNG)
    pixels = np.bincount(semantic.ravel(), minlength=len(CLASSES) + 1).tolist()
    yield f"ade20k/{part}", {"stem": stem, "scene": scene_name(picture.scene), "pixels": pixels}
    yield from ade20k_full.records(picture, part, stem)


def write(sections: Sections) -> None:
    pictures = {part: np.zeros(len(CLASSES) + 1, dtype=np.int64) for part in PARTS}
    total = np.zeros(len(CLASSES) + 1, dtype=np.int64)
    for part in PARTS:
        for record in sections.records(f"ade20k/{part}"):
            pixels = np.array(record["pixels"])
            pictures[part] += pixels > 0
            total += pixels
    share = total / max(1, int(total.sum()))
    rows = [
        f"{number}\t{share[number]:.4f}\t{pictures['training'][number]}\t{pictures['validation'][number]}\t"
        + ", ".join((kind.name, *SYNONYMS.get(kind.name, ())))
        for kind, number in CLASSES.items()
    ]
    unseen = [f"{number}\t0.0000\t0\t0\t{name}" for number, name in enumerate(_unseen(), start=len(rows) + 1)]
    sections.write_text(f"{ROOT}/objectInfo150.txt", ["Idx\tRatio\tTrain\tVal\tName", *rows, *unseen])
    every = (record for part in PARTS for record in sections.records(f"ade20k/{part}"))
    sections.write_text(f"{ROOT}/sceneCategories.txt", (f"{record['stem']} {record['scene']}" for record in every))
    mapping = [(number, CLASSES[kind], ade20k_full.CLASSES[kind]) for kind, number in INSTANCE_CLASSES.items()]
    mapping.insert(1, (1, mapping[0][1], 101))  # one class may be several of the full ADE20K
    sections.write_text(
        f"{ROOT}/ade20k_instance_catid_mapping.txt",
        ["Instacne100\tSceneParse150\tFullADE20K", *("\t".join(map(str, row)) for row in mapping)],  # so published
    )
    ade20k_full.write(sections)


def _unseen() -> list[str]:
    """Published names that fill the table up, none of which the world uses."""
    used = {word for kind in CLASSES for word in (kind.name, *SYNONYMS.get(kind.name, ()))}
    others = [name for name in NAMES if not used & {word.strip() for word in name.split(",")}]
    return others[: len(NAMES) - len(CLASSES)]


LAYOUT = Layout(records=records, write=write)
