"""Labelers that do what they should not, each with the pictures whose number is in its setting `at`.

Found by the name of their module, also by workers on Ray.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace

import numpy as np

from dataengine import masks
from dataengine.errors import UserError
from dataengine.ledger.records import (
    Check,
    Concept,
    Entry,
    Labeler,
    Picture,
    Proposal,
    entry_id_of,
    mask_id_of,
)

NAN = float("nan")
BY = Labeler(name="boxes", revision="1")


def box_rle(number: int, height: int = 24, width: int = 32) -> bytes:
    mask = np.zeros((height, width), bool)
    mask[2 : 10 + number % 8, 3:20] = True
    return masks.encode(mask)


def good(number: int) -> Proposal:
    return Proposal(rle=box_rle(number), concept=Concept(text="dog", category_id=1), score=0.5)


class Boxes:
    """One good mask for each picture; bad ones do `fault`. log: a file to which each call adds its pictures."""

    name, revision = "boxes", "1"

    def __init__(self, fault="", at=(), log=None, most=10**6, needs_pixels=False, seconds=60):
        self.fault, self.at, self.log, self.most, self.seconds = fault, set(at), log, most, seconds
        self.settings = json.dumps({"fault": fault, "at": sorted(at)})
        self.needs_pixels = needs_pixels

    def load(self):
        if self.fault == "loads":
            time.sleep(self.seconds)

    def label(self, questions):
        numbers = [int(q.picture.key) for q in questions]
        if self.log:
            with open(self.log, "a") as file:
                file.write(" ".join(map(str, numbers)) + "\n")
        if self.needs_pixels:
            assert all(q.pixels.shape == (24, 32, 3) for q in questions)
        if len(numbers) > self.most:
            raise MemoryError("a batch of more than there is room for")
        if self.at & set(numbers):
            self._fail_whole_batch()
        return [self._answer(number) for number in numbers]

    def _fail_whole_batch(self):
        if self.fault == "raises":
            raise ZeroDivisionError("this picture")
        if self.fault == "exits":
            raise SystemExit(3)
        if self.fault == "memory":
            raise MemoryError("too large a picture")
        if self.fault == "hangs":
            time.sleep(self.seconds)
        if self.fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)

    def _answer(self, number):
        if number not in self.at:
            return [good(number)]
        one = good(number)
        fields = {name: getattr(one, name) for name in one.__slots__}
        return {
            "nan": [Proposal(**fields | {"score": NAN})],
            "nan_iou": [Proposal(**fields | {"predicted_iou": NAN})],
            "score": [Proposal(**fields | {"score": 1.5})],
            "rle": [Proposal(**fields | {"rle": b"\xff\xff"})],
            "shape": [Proposal(**fields | {"rle": box_rle(number, 48, 64)})],
            "array": [np.zeros((24, 32), bool)],
            "none": None,
            "many": [one] * 10_000,
            "surrogate": [Proposal(**fields | {"concept": Concept(text="\ud800")})],
            "crop": [Proposal(**fields | {"crop": (0, 0, 33, 24)})],
            "empty": [Proposal(**fields | {"rle": masks.encode(np.zeros((24, 32), bool))})],
        }.get(self.fault, [one])


class TooFew(Boxes):
    """Answers to all but the last picture of a batch."""

    def label(self, questions):
        return super().label(questions)[:-1] if len(questions) > 1 else super().label(questions)


def plain_filters(proposals, question, labeler):
    """One check of the score."""
    return [(p, (Check(name="score", value=p.score, limit=0.1, verdict="accept"),)) for p in proposals]


def plain_merge(checked, human, earlier, picture: Picture) -> list[Entry]:
    """Everything is new, save what a person drew already."""
    found = []
    for proposal, checks in checked:
        mask_id = mask_id_of(picture, proposal.concept, proposal.rle)
        area, box = masks.measure(proposal.rle, picture.height, picture.width)
        is_known = any(entry.rle == proposal.rle for entry in human)
        found.append(
            Entry(
                entry_id=entry_id_of(mask_id, 1, BY, proposal.prompt),
                mask_id=mask_id,
                picture=picture.key,
                round=1,
                origin="model",
                concept=proposal.concept,
                rle=proposal.rle,
                bbox=tuple(map(float, box)),
                area=area,
                labeler=BY,
                score=proposal.score,
                checks=checks,
                relation="duplicate" if is_known else "new",
                state="rejected" if is_known else "kept",
            )
        )
    return found


class Away(Boxes):
    """Is no more there after the first task."""

    def label(self, questions):
        if any(q.picture.key == "4" for q in questions):
            raise UserError("the server is away")
        return super().label(questions)


class Unloadable(Boxes):
    """Lacks something."""

    def load(self):
        raise UserError("no weights are here")


def asking_filters(proposals, question, labeler):
    """One check that asks the labeler again about the mirrored picture; `raises` at picture 5."""
    if question.picture.key == "5":
        raise ZeroDivisionError("asked again")
    (again,) = labeler.label([replace(question, pixels=question.pixels[:, ::-1])])
    verdict = "accept" if again == proposals else "reject"
    return [(p, (Check(name="again", value=None, limit=None, verdict=verdict),)) for p in proposals]
