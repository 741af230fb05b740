"""ReasonSeg: a json beside each picture with questions and outlines, and explanations of the training answers."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from builders.layouts.picture import Picture, Record
from builders.layouts.tree import Layout, Sections
from builders.world import Fact


def records(picture: Picture) -> Iterator[tuple[str, Record]]:
    if not picture.references:
        return
    part = "train" if picture.is_train else ("val", "test")[picture.number % 2]
    stem = f"{picture.id}_{picture.seed:x}c_o"
    picture.publish(f"reasonseg/{part}/{stem}.jpg")
    reference = picture.references[0]
    is_sentence = picture.number % 3 != 2
    texts = [_question(sentence) for sentence in reference.sentences] if is_sentence else [reference.sentences[0]]
    is_old = picture.is_train and picture.number % 8 == 1  # a file in the encoding of old Windows
    if is_old:
        texts[0] = f"“{texts[0]}” – that’s it"
    others = [fact for fact, _ in picture.objects if fact.label != reference.label]
    facts = {fact.label: fact for fact, _ in picture.objects}
    shapes = _shapes(picture, facts[reference.label], "target", f"{stem}.jpg")
    for fact in others[:1] if picture.number % 4 == 0 else []:
        shapes += _shapes(picture, fact, "ignore", f"{stem}.jpg")
    if picture.number % 4 == 1:
        shapes.append(_shape([[1, 1], [2, 2], [3, 1]], "flag", f"{stem}.jpg"))
    record = {"text": texts, "is_sentence": is_sentence, "shapes": shapes}
    picture.write_json(f"reasonseg/{part}/{stem}.json", record, "cp1252" if is_old else "utf-8")
    if part == "train":
        fact = facts[reference.label]
        answer = f"It is {fact.color}, a {fact.kind.name}, and nothing else fits."
        yield "reasonseg/explanatory", {"image": f"{stem}.jpg", "query": texts[0], "outputs": answer}


def _question(sentence: str) -> str:
    return f"If you were to hand me {sentence}, which shape would you take?"


def _shapes(picture: Picture, fact: Fact, label: str, image_name: str) -> list[Record]:
    """The outlines of an object's parts, through the middles of pixels: filled with their lines, they are its pixels.

    Holes are filled too; the format has none.
    """
    crop = picture.crop(fact.label)
    outlines, _ = cv2.findContours(crop.mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [_shape((outline[:, 0] + (crop.x0, crop.y0)).tolist(), label, image_name) for outline in outlines]


def _shape(points: list[list[int]], label: str, image_name: str) -> Record:
    return {
        "label": label,
        "labels": [label],
        "shape_type": "polygon",
        "image_name": image_name,
        "points": points,
        "group_id": None,
        "group_ids": [],
        "flags": {},
    }


def write(sections: Sections) -> None:
    sections.write_list("reasonseg/explanatory/train.json", "reasonseg/explanatory")


LAYOUT = Layout(records=records, write=write)
