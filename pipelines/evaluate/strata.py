"""How hard each region of a VGD benchmark is: its strata, by which scores are broken down."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dataengine.sample import PROMPT_KINDS, Sample
from pipelines.vgd.benchmark import SIZES, regions_of

# what is told apart → its strata
STRATA = {
    "size": SIZES,  # of the object that is shown
    "inside": ("<0.5", "0.5-0.9", ">=0.9"),  # share of the prompt inside that object
    "ambiguous": ("no", "yes"),  # whether more of the prompt lies in one other object
    "instances": ("1", "2-4", "5-9", ">=10"),  # objects to be found
}
_INSIDE = np.array([0.5, 0.9], dtype=np.float32)  # in the precision in which a shard holds it
_INSTANCES = (1, 2, 5, 10)
NONE = -1


def strata_of(region: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """The strata of a region of `regions_of`, as indices into STRATA; NONE where it is in none.

    Absent categories have no number of instances.
    """
    return (
        SIZES.index(region["size"]),
        int(np.searchsorted(_INSIDE, np.float32(region["inside"]), side="right")),
        int(region["ambiguous"]),
        sum(region["instances"] >= least for least in _INSTANCES) - 1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Regions:
    """Regions of one kind of prompt, sorted by sample and category. strata: (n, 4) indices into STRATA."""

    image: np.ndarray
    category: np.ndarray
    strata: np.ndarray

    def of(self, image: np.ndarray, category: np.ndarray) -> np.ndarray:
        """(k, 4): strata of objects or predictions by sample and category; NONE where the region is in none."""
        keys, wanted = _keys(self.image, self.category), _keys(image, category)
        found = np.full((wanted.size, len(STRATA)), NONE)
        if keys.size:
            place = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
            there = keys[place] == wanted
            found[there] = self.strata[place[there]]
        return found


def _keys(image: np.ndarray, category: np.ndarray) -> np.ndarray:
    """One number a pair; categories are 32 bit."""
    return (image << 32) + (category & 0xFFFFFFFF)


@dataclass(slots=True)
class RegionRows:
    """Regions on their way into columns. Those without a prompt of a kind are in no stratum of it."""

    numbers: tuple[array[int], ...] = field(default_factory=lambda: tuple(array("q") for _ in PROMPT_KINDS))

    def add(self, sample: Sample, number: int) -> None:
        for region in regions_of(sample):
            if region["status"] != "none":
                kind = PROMPT_KINDS.index(region["kind"])
                self.numbers[kind].extend((number, region["category_id"], *strata_of(region)))

    def columns(self) -> list[Regions]:
        """By kind of prompt."""
        return [self._kind(kind) for kind in range(len(PROMPT_KINDS))]

    def _kind(self, kind: int) -> Regions:
        rows = np.array(self.numbers[kind], dtype=np.int64).reshape(-1, 2 + len(STRATA))
        rows = rows[np.argsort(_keys(rows[:, 0], rows[:, 1]), kind="stable")]
        return Regions(image=rows[:, 0], category=rows[:, 1], strata=rows[:, 2:])


def each() -> Iterator[tuple[int, str, int, str]]:
    """All strata: column and name of what is told apart, index and name of the stratum."""
    for column, (name, labels) in enumerate(STRATA.items()):
        for index, label in enumerate(labels):
            yield column, name, index, label
