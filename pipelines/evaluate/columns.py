"""Objects and predictions of `vgdseg` as columns: built row by row in little memory, and cut to what is scored."""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, field

import numpy as np
import xxhash

from dataengine.metrics.ap import Instances
from dataengine.sample import PROMPT_KINDS, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """All objects, once a sample that asks for their category.

    prompted: (n, 4) bool, whether X-SAM would have kept the object, which drops those without a prompt of the kind.
    """

    image: np.ndarray
    category: np.ndarray
    rles: list[bytes]
    area: np.ndarray
    crowd: np.ndarray
    prompted: np.ndarray

    def instances(self, rows: np.ndarray) -> Instances:
        return Instances(
            image=self.image[rows],
            category=self.category[rows],
            rles=[self.rles[row] for row in rows.tolist()],
            area=self.area[rows],
            crowd=self.crowd[rows],
        )


@dataclass(slots=True)
class TruthRows:
    """Objects on their way into columns."""

    numbers: array[int] = field(default_factory=lambda: array("q"))  # image, category, area, crowd
    prompted: bytearray = field(default_factory=bytearray)
    rles: list[bytes] = field(default_factory=list)

    def add(self, sample: Sample, number: int, categories: frozenset[int]) -> None:
        """The objects of a sample of these categories; a variant may ask for fewer than there are."""
        for thing in sample.objects:
            if thing.category_id not in categories:
                continue
            self.numbers.extend((number, thing.category_id, thing.area, thing.crowd))
            made = {prompt.kind for prompt in thing.prompts if prompt.status == "ok"}
            self.prompted.extend(not thing.prompts or kind in made for kind in PROMPT_KINDS)
            self.rles.append(thing.rle)

    def columns(self) -> Truth:
        numbers = np.array(self.numbers, dtype=np.int64).reshape(-1, 4)
        return Truth(
            image=numbers[:, 0],
            category=numbers[:, 1],
            rles=self.rles,
            area=numbers[:, 2].astype(np.float64),
            crowd=numbers[:, 3].astype(bool),
            prompted=np.frombuffer(bytes(self.prompted), dtype=bool).reshape(-1, len(PROMPT_KINDS)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Predictions, in an order that does not depend on that of the file. kind: index into PROMPT_KINDS."""

    image: np.ndarray
    category: np.ndarray
    kind: np.ndarray
    score: np.ndarray
    rles: list[bytes]

    def instances(self, rows: np.ndarray) -> Instances:
        return Instances(
            image=self.image[rows],
            category=self.category[rows],
            rles=[self.rles[row] for row in rows.tolist()],
            score=self.score[rows],
        )


@dataclass(slots=True)
class FoundRows:
    """Predictions on their way into columns."""

    numbers: array[int] = field(default_factory=lambda: array("q"))  # image, category, kind
    scores: array[float] = field(default_factory=lambda: array("d"))
    rles: list[bytes] = field(default_factory=list)
    _seen: set[bytes] = field(default_factory=set)

    def add(self, number: int, category: int, kind: int, score: float, rle: bytes) -> bool:
        """Whether it is new.

        Told by a hash of 128 bit, a fifth of what the rows would take: that two of a million different ones share it
        has a chance of 10⁻²⁷, and would be reported as a duplicate.
        """
        key = xxhash.xxh3_128_digest(struct.pack("=qqqd", number, category, kind, score) + rle)
        if key in self._seen:
            return False
        self._seen.add(key)
        self.numbers.extend((number, category, kind))
        self.scores.append(score)
        self.rles.append(rle)
        return True

    def columns(self) -> Found:
        numbers = np.array(self.numbers, dtype=np.int64).reshape(-1, 3)
        scores = np.array(self.scores, dtype=np.float64)
        order = self._order(numbers, scores)
        numbers = numbers[order]
        return Found(
            image=numbers[:, 0],
            category=numbers[:, 1],
            kind=numbers[:, 2],
            score=scores[order],
            rles=[self.rles[row] for row in order.tolist()],
        )

    def _order(self, numbers: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """(n,) rows by sample, category, kind, score and, among equal ones, mask."""
        order = np.lexsort((scores, numbers[:, 2], numbers[:, 1], numbers[:, 0]))
        if order.size < 2:
            return order
        before, after = order[:-1], order[1:]
        same = (numbers[before] == numbers[after]).all(axis=1) & (scores[before] == scores[after])
        runs = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
        for first, last in runs.reshape(-1, 2).tolist():
            order[first : last + 1] = sorted(order[first : last + 1].tolist(), key=self.rles.__getitem__)
        return order
