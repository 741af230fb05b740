"""A labeler that knows the truth and spoils it in measured ways: for tests, and to study what filters find.

Each object is missed, named wrongly, drawn wrongly or found as it is; some masks are invented. All of it is drawn
from the picture's key, the annotation and the seed alone, and said in the proposal's `prompt`, which filters must not
look at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dataengine import masks
from dataengine.errors import UserError
from dataengine.keyed import keyed
from dataengine.ledger.records import Concept, Picture, Proposal
from pipelines.relabel.labelers import Question, canonical, settings_of

VERSION = "1"


class Noise(BaseModel):
    """How the truth is spoiled; the defaults are the documented noise.

    Of an object: missed: probability that it is not proposed. wrong_class: that it is proposed under another category
    of the truth. eroded, dilated, shifted: that its mask is; what is left is exact. strength: how far, as a share of
    the square root of the mask's area, drawn uniformly between half of it and all of it. invented: masks without an
    object, on average, for each object (ellipses as large as the truth's objects are).

    Of what a model says about itself: the logit of `score` is normal around `logit_right` for what is right and around
    `logit_wrong` for wrong categories and inventions, with `logit_spread`; `predicted_iou` is the true IoU, or for an
    invention one drawn between 0.4 and 0.9, plus a normal error of `iou_spread`; `stability` is 1 - (1 - IoU) / 3
    plus a normal error of half of that.

    truth: a COCO instances file; without it the truth are the human masks that a picture has.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    truth: str | None = None
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    missed: float = Field(default=0.10, ge=0, le=1)
    wrong_class: float = Field(default=0.05, ge=0, le=1)
    eroded: float = Field(default=0.05, ge=0, le=1)
    dilated: float = Field(default=0.05, ge=0, le=1)
    shifted: float = Field(default=0.05, ge=0, le=1)
    strength: float = Field(default=0.15, ge=0, le=1)
    invented: float = Field(default=0.10, ge=0, le=10)
    logit_right: float = 2.0
    logit_wrong: float = -0.5
    logit_spread: float = Field(default=1.0, ge=0)
    iou_spread: float = Field(default=0.05, ge=0)


@dataclass(frozen=True, slots=True)
class Truth:
    """An object. id: of its annotation, the key of its noise."""

    id: str
    concept: Concept
    rle: bytes


class NoisyOracle:
    """See `Noise`."""

    name = "noisy-oracle"
    needs_pixels = False

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._noise = settings_of(Noise, settings, self.name)
        if self._noise.wrong_class + self._noise.eroded + self._noise.dilated + self._noise.shifted > 1:
            raise UserError("noisy-oracle: wrong_class, eroded, dilated and shifted add up to more than 1")
        told = self._noise.model_dump(exclude={"truth"})
        self.revision = VERSION if self._noise.truth is None else f"{VERSION}-{_digest(self._noise.truth)}"
        self.settings = canonical(told)
        self._truth: dict[str, list[Truth]] | None = None
        self._concepts: list[Concept] = []

    def load(self) -> None:
        if self._noise.truth is not None:
            self._truth, self._concepts = read_truth(self._noise.truth)

    def label(self, questions: Sequence[Question]) -> list[list[Proposal]]:
        return [self._proposals(question) for question in questions]

    def _proposals(self, question: Question) -> list[Proposal]:
        picture = question.picture
        if self._truth is None:
            truth = [
                Truth(id=e.annotation_id or e.entry_id, concept=e.concept, rle=e.rle)
                for e in question.known
                if e.origin == "human" and not e.crowd
            ]
        else:
            truth = self._truth.get(Path(picture.path).name, [])
        concepts = self._concepts or sorted({t.concept for t in truth}, key=lambda c: (c.category_id, c.text))
        found = []
        for one in truth:
            proposal = self._spoiled(one, picture, concepts)
            found += [] if proposal is None else [proposal]
            found += self._invented(one, picture)
        return found

    def _spoiled(self, truth: Truth, picture: Picture, concepts: Sequence[Concept]) -> Proposal | None:
        """What is proposed of an object; None where it is missed."""
        noise = self._noise
        rng = keyed(noise.seed, picture.key, truth.id, "object", VERSION)
        if rng.random() < noise.missed:
            return None
        others = [concept for concept in concepts if concept != truth.concept]
        draw, kind = rng.random(), "exact"
        for name in ("wrong_class", "eroded", "dilated", "shifted"):
            share = getattr(noise, name)
            if draw < share:
                kind = name
                break
            draw -= share
        concept, rle = truth.concept, truth.rle
        if kind == "wrong_class" and others:
            concept = others[int(rng.integers(len(others)))]
        elif kind in ("eroded", "dilated", "shifted"):
            rle = spoiled(rle, picture.height, picture.width, kind, noise.strength, rng)
        elif kind == "wrong_class":
            kind = "exact"  # there is no other class
        overlap = float(masks.iou([rle], [truth.rle], picture.height, picture.width)[0, 0])
        return self._proposal(concept, rle, kind, truth.id, overlap, rng)

    def _invented(self, truth: Truth, picture: Picture) -> list[Proposal]:
        """Masks of nothing: ellipses as large as the object, somewhere."""
        rng = keyed(self._noise.seed, picture.key, truth.id, "invented", VERSION)
        number = int(self._noise.invented) + int(rng.random() < self._noise.invented % 1)
        _, (_, _, w, h) = masks.measure(truth.rle, picture.height, picture.width) if number else (0, (0, 0, 0, 0))
        found = []
        for _ in range(number):
            x = rng.uniform(0, max(picture.width - w, 1))
            y = rng.uniform(0, max(picture.height - h, 1))
            canvas = np.zeros((picture.height, picture.width), np.uint8)
            center, axes = (int(x + w / 2), int(y + h / 2)), (max(w // 2, 1), max(h // 2, 1))
            cv2.ellipse(canvas, center, axes, 0, 0, 360, 1, cv2.FILLED)
            rle = masks.encode(canvas)
            found.append(self._proposal(truth.concept, rle, "invented", truth.id, rng.uniform(0.4, 0.9), rng))
        return found

    def _proposal(
        self, concept: Concept, rle: bytes, kind: str, annotation: str, overlap: float, rng: np.random.Generator
    ) -> Proposal:
        """With what a model would say of itself. overlap: IoU with the object, or what it believes that to be."""
        noise = self._noise
        center = noise.logit_wrong if kind in ("wrong_class", "invented") else noise.logit_right
        logit, iou_error, stability_error = rng.normal(size=3)
        score = 1 / (1 + math.exp(-(center + noise.logit_spread * logit)))
        iou = overlap + noise.iou_spread * iou_error
        stability = 1 - (1 - overlap) / 3 + noise.iou_spread / 2 * stability_error
        return Proposal(
            rle=rle,
            concept=concept,
            score=round(float(score), 6),
            predicted_iou=round(float(min(max(iou, 0.0), 1.0)), 6),
            stability=round(float(min(max(stability, 0.0), 1.0)), 6),
            prompt=canonical({"kind": "oracle", "annotation": annotation, "noise": kind}),
        )


def spoiled(rle: bytes, height: int, width: int, kind: str, strength: float, rng: np.random.Generator) -> bytes:
    """A mask eroded, dilated or shifted by 0.5 to 1 times `strength` times the root of its area, a pixel at least.

    What would leave no pixel is left as it is. kind: `eroded`, `dilated` or `shifted`.
    """
    mask = np.ascontiguousarray(masks.decode(rle, height, width)).view(np.uint8)
    far = max(strength * rng.uniform(0.5, 1) * math.sqrt(float(mask.sum())), 1.0)
    if kind == "shifted":
        angle = rng.uniform(0, 2 * math.pi)
        dx, dy = (round(far * part) for part in (math.cos(angle), math.sin(angle)))
        moved = cv2.warpAffine(mask, np.array([[1, 0, dx], [0, 1, dy]], np.float64), (width, height), flags=0)
    else:
        side = 2 * round(far / 2) + 1  # an outline on both sides moves by half of it
        disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (max(side, 3), max(side, 3)))
        moved = (cv2.erode if kind == "eroded" else cv2.dilate)(mask, disk)
    return masks.encode(moved) if moved.any() else rle


def read_truth(path: str) -> tuple[dict[str, list[Truth]], list[Concept]]:
    """The objects of a COCO instances file by the name of their picture's file, and its categories; crowds are none.

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    try:
        document = json.loads(Path(path).read_bytes())
        concepts = {c["id"]: Concept(text=str(c["name"]), category_id=int(c["id"])) for c in document["categories"]}
        images = {i["id"]: (Path(i["file_name"]).name, i["height"], i["width"]) for i in document["images"]}
        found: dict[str, list[Truth]] = {}
        for one in document["annotations"]:
            name, height, width = images[one["image_id"]]
            if not one.get("iscrowd"):
                rle = masks.rle_from_segmentation(one["segmentation"], height, width)
                truth = Truth(id=str(one["id"]), concept=concepts[one["category_id"]], rle=rle)
                found.setdefault(name, []).append(truth)
    except OSError as error:
        raise UserError(f"truth: {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"truth: {path}: no COCO instances file: {type(error).__name__}: {error}") from None
    return found, [concepts[key] for key in sorted(concepts)]


def _digest(path: str) -> str:
    from dataengine.store.files import hash_file

    try:
        with open(path, "rb") as file:
            return hash_file(file)[:16]
    except OSError as error:
        raise UserError(f"truth: {path}: {error.strerror}") from None
