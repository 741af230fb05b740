"""ReasonSeg in LISA's layout: `NAME.jpg` beside `NAME.json` with the questions of one mask and its outlines.

LISA draws an outline as a line through pixel centres and fills it, so a mask is written as outlines that give it back
under that rule: parts with holes are cut, and each piece is drawn again to see that it is right. Questions of other
masks make files of their own (`NAME-1`), with the picture again. `explanatory/{split}.json` has the explanations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataengine import masks
from dataengine.masks import Crop
from dataengine.sample import Sample
from pipelines.export.output import JsonLists, Key, LeftOut, Output, safe_name, suffix_of


class ReasonSeg:
    """root: of the splits' folders and of `explanatory/`."""

    def __init__(self, output: Output, root: str) -> None:
        self._output, self._folder = output, f"{root}/{{split}}"
        self._folders: dict[Key, Path] = {}
        self._explanations = JsonLists(output, f"{root}/explanatory/{{split}}.json")

    def write(self, group: Sequence[Sample]) -> None:
        first = group[0]
        if first.image is None or suffix_of(first) != ".jpg":
            raise LeftOut("picture_not_jpeg", "the layout knows JPEG pictures")
        questions: dict[tuple[bytes, bytes | None], dict[str, str | None]] = {}
        for sample in group:
            for condition in sample.conditions:
                target, ignore = _masks(sample, condition.objects)
                if target is None:
                    self._output.note(sample, "conditions: nothing to be found")
                else:
                    texts = questions.setdefault((target, ignore), {})
                    texts[condition.text] = texts.get(condition.text) or condition.explanation
        if not questions:
            raise LeftOut("no_target", "no question has a mask")
        folder = self._folder_of(first)
        for (target, ignore), texts in questions.items():
            name = _free(folder, file_stem(first.image_key))
            if self._output.pictures != "none":
                self._output.put(first, first.image, folder / f"{name}.jpg")
            shapes = _shapes("target", target, first, name)
            shapes += _shapes("ignore", ignore, first, name) if ignore is not None else []
            long = first.variant == "long" if first.variant else any(map(is_sentence, texts))
            record = {"text": list(texts), "is_sentence": long, "shapes": shapes}
            (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="ascii")
            for text, words in texts.items():
                if words is not None:
                    record = {"image": f"{name}.jpg", "query": text, "outputs": words}
                    self._explanations.add((first.source, first.split), record)

    def _folder_of(self, sample: Sample) -> Path:
        key = sample.source, sample.split
        if key not in self._folders:
            self._folders[key] = self._output.scratch()
            self._folders[key].mkdir()
        return self._folders[key]

    def finish(self) -> None:
        several = len({source for source, _ in self._folders}) > 1
        for key, folder in self._folders.items():
            folder.rename(self._output.place(self._folder, key, several))
        self._explanations.finish()


def file_stem(key: str) -> str:
    """The name of a picture's files: as the source had it, if it is ReasonSeg's."""
    return key.partition("/")[2] if re.fullmatch(r"reasonseg/[A-Za-z0-9_][A-Za-z0-9_-]{0,99}", key) else safe_name(key)


def is_sentence(text: str) -> bool:
    """Whether a question is a sentence and not a phrase, where the source does not say: it ends as one does."""
    return text.rstrip().endswith((".", "?", "!"))


def _free(folder: Path, stem: str) -> str:
    name, number = stem, 0
    while (folder / f"{name}.json").exists():
        number += 1
        name = f"{stem}-{number}"
    return name


def _masks(sample: Sample, objects: Sequence[int]) -> tuple[bytes | None, bytes | None]:
    """The union of objects, without what is ignored, and what is ignored; None for what has no pixel."""
    height, width = sample.height, sample.width
    ignore = sample.ignore if sample.ignore and masks.area(sample.ignore, height, width) else None
    if not objects:
        return None, ignore
    target = masks.union([sample.objects[i].rle for i in objects], height, width)
    if ignore is not None and masks.area(masks.intersection([target, ignore], height, width), height, width):
        target = masks.encode(masks.decode(target, height, width) & ~masks.decode(ignore, height, width))
    return (target if masks.area(target, height, width) else None), ignore


def _shapes(label: str, rle: bytes, sample: Sample, name: str) -> list[dict[str, Any]]:
    return [
        {
            "label": label,
            "labels": [label],
            "shape_type": "polygon",
            "image_name": f"{name}.jpg",
            "points": points.tolist(),
            "group_id": None,
            "group_ids": [],
            "flags": {},
        }
        for points in outlines(masks.crop_from_rle(rle, sample.height, sample.width))
    ]


def outlines(crop: Crop) -> list[np.ndarray]:
    """Closed outlines whose line and inside, drawn by OpenCV, are the mask; their insides are disjoint.

    Returns:
        (n, 2) int64 arrays of x, y of pixels, at least three each.
    """
    import cv2

    found = []
    pending = masks.components_of_crop(crop)[::-1]
    while pending:
        part = pending.pop()
        height, width = part.mask.shape
        contours, tree = cv2.findContours(part.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        holes = [contour for contour, links in zip(contours, tree[0], strict=True) if links[3] >= 0]
        if holes:
            x, _, w, _ = cv2.boundingRect(holes[0])
            pending += _cut(part, x + w // 2, across=False)
            continue
        points = contours[0][:, 0, :].astype(np.int64)
        points = np.concatenate([points, np.repeat(points[-1:], max(0, 3 - len(points)), axis=0)])
        if (draw(points, height, width) == part.mask).all():
            found.append(points + np.array((part.x0, part.y0)))
        else:  # a part whose line meets itself
            pending += _cut(part, max(height, width) // 2, across=height > width)
    return found


def _cut(part: Crop, at: int, across: bool) -> list[Crop]:
    """The components of a mask's two sides, last first. across: cut between rows, else between columns."""
    if across:
        sides = [Crop(part.mask[:at], part.x0, part.y0), Crop(part.mask[at:], part.x0, part.y0 + at)]
    else:
        sides = [Crop(part.mask[:, :at], part.x0, part.y0), Crop(part.mask[:, at:], part.x0 + at, part.y0)]
    pieces = []
    for side in sides:
        if side.mask.any():
            pieces += masks.components_of_crop(Crop(np.ascontiguousarray(side.mask), side.x0, side.y0))
    return pieces[::-1]


def draw(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width) bool: a closed outline of thickness 1 and its inside, as LISA draws it."""
    import cv2

    canvas = np.zeros((height, width), dtype=np.uint8)
    polygon = [points.astype(np.int32)]
    cv2.polylines(canvas, polygon, isClosed=True, color=1, thickness=1)
    cv2.fillPoly(canvas, polygon, color=1)
    return canvas.astype(bool)
