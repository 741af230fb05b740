"""Full ADE20K (2021_17_01): in folders of scenes, beside each picture its classes and instances, and a JSON.

A class is `R // 10 * 256 + G` of `_seg.png`, which the JSON calls `name_ndx`; B numbers the objects, stuff among them.
What readers leave out is there too: a map of parts, the folder of instance masks, `index_ade20k.pkl`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from builders.layouts.picture import Picture, Record
from builders.layouts.tree import Sections
from builders.world import STUFF, SYNONYMS, THINGS, Kind
from builders.world_text import scene_name
from builders.world_tree import PNG, labels_of

ROOT = "ade20k/ADE20K_2021_17_01"
CLASSES = {kind: 100 * number for number, kind in enumerate((*THINGS, *STUFF), start=1)}  # as the mapping of 2016 says
PART = 2978  # class of the parts that are shown, which no object has
TERMS = "non-commercial research and education"


def records(picture: Picture, part: str, stem: str) -> Iterator[tuple[str, Record]]:
    """part: training or validation. stem: of the picture's files."""
    scene = scene_name(picture.scene)
    folder = f"images/ADE/{part}/outdoor/{scene}"
    base = f"{ROOT}/{folder}/{stem}"
    picture.publish(f"{base}.jpg")
    labels, tables = picture.scene.labels, np.zeros((3, 256), dtype=np.uint8)  # blue, green, red
    objects = []
    for number, (label, kind) in enumerate(labels_of(picture.scene), start=1):
        tables[:, label] = number, CLASSES[kind] % 256, CLASSES[kind] // 256 * 10
        name = f"{stem}/instance_{number - 1:03d}_{stem}.png"
        visible = (labels == label).astype(np.uint8) * 255
        picture.write_png(f"{ROOT}/{folder}/{name}", visible, PNG)
        objects.append(_object(picture, number, label, kind, name))
    picture.write_png(f"{base}_seg.png", cv2.merge([cv2.LUT(labels, table) for table in tables]), PNG)
    if objects and picture.number % 3 == 0:
        picture.write_png(f"{base}_parts_1.png", np.zeros((*labels.shape, 3), dtype=np.uint8), PNG)
        objects.append(_part_of(objects[0]))
    annotation = {
        "filename": f"{stem}.jpg",
        "folder": f"ADE20K_2021_17_01/{folder}",
        "imsize": [*picture.size, 3],
        "source": {"folder": "shapes", "filename": f"{stem}.jpg", "origin": TERMS},
        "scene": ["outdoor", scene],
        "object": objects,
    }
    picture.write_json(f"{base}.json", {"annotation": annotation}, "latin-1")
    names = [entry["name"] for entry in objects]
    yield f"ade20k_full/{part}", {"file": f"{stem}.jpg", "folder": annotation["folder"], "scene": scene, "names": names}


def _object(picture: Picture, number: int, label: int, kind: Kind, mask: str) -> Record:
    """Values that are empty are lists, whatever they are elsewhere."""
    x, y, w, h = picture.extents[label][1]
    hidden = any(fact.label == label and fact.occluded for fact in picture.scene.facts)
    return {
        "id": number - 1,
        "name": ", ".join((kind.name, *SYNONYMS.get(kind.name, ()))),
        "name_ndx": CLASSES[kind],
        "hypernym": [kind.name, "entity"],
        "raw_name": f"{kind.name} (dessiné)",  # beyond ASCII, in latin-1
        "attributes": [] if number % 2 else "painted",
        "depth_ordering_rank": number,
        "occluded": "yes" if hidden else "no" if number % 3 else [],
        "crop": "0",
        "parts": {"hasparts": [], "ispartof": [], "part_level": 0},
        "instance_mask": mask,
        "polygon": {"x": [x, x + w, x + w, x], "y": [y, y, y + h, y + h], "click_date": ["2021-01-17"] * 4},
        "saved_date": "17-Jan-2021 12:00:00",
    }


def _part_of(whole: Record) -> Record:
    parts = {"hasparts": [], "ispartof": whole["id"], "part_level": 1}
    return whole | {"id": 1000 + whole["id"], "name": "edge", "name_ndx": PART, "parts": parts}


def write(sections: Sections) -> None:
    """The index of all pictures: columns, and how often each class is in each picture."""
    found = [record for part in ("training", "validation") for record in sections.records(f"ade20k_full/{part}")]
    names = sorted({name for record in found for name in record["names"]})
    places = {name: place for place, name in enumerate(names)}
    presence = np.zeros((len(names), len(found)), dtype=np.uint8)
    for column, record in enumerate(found):
        for name in record["names"]:
            presence[places[name], column] += 1
    index: dict[str, Any] = {
        "filename": [record["file"] for record in found],
        "folder": [record["folder"] for record in found],
        "scene": [record["scene"] for record in found],
        "objectnames": names,
        "objectPresence": presence,
    }
    sections.write_bytes(f"{ROOT}/index_ade20k.pkl", pickle.dumps(index, protocol=4))
