"""What is drawn anew each time a sample is drawn: wording, categories, exemplars, kinds of prompts.

Each choice is keyed by the seed, the sample, what the choice is for, the epoch and the copy, so it depends on nothing
else. What comes out passes `invariants.check`; masks and what is to be found for a category stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dataengine import conversation
from dataengine.errors import UserError
from dataengine.keyed import keyed
from dataengine.loader.order import Draw
from dataengine.loader.rows import Rows
from dataengine.sample import PROMPT_KINDS, Condition, Prompt, PromptKind, Reference, Sample, reference_to

VERSION = 1  # of the choices
FEDERATED = frozenset({"lvis"})  # builders of sources that do not say of most categories whether a picture has them
MAX_TRIES = 8  # pictures that are looked at for an exemplar
LISTED = ("genseg", "ovseg")
SHOWN = ("vgdseg", "intseg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Redraw:
    """Draws samples anew; callable as the loader's `fresh`.

    seed: of everything. wording: other questions and answers. Where anything else changes, the conversation is rendered
    anew as well.
    categories: `genseg`, `ovseg`: all categories that have objects, and some that have none, of those that the source
    knows: all of them half of the time, else U{0..number}, shuffled (X-SAM's rule). max_negatives: draw always
    U{0..max_negatives} instead. max_categories: of one question or of one sample's regions; what has objects comes
    first, a part of it where it is more.
    exemplars: `vgdseg`: each region is shown by any of its objects that has a prompt. cross_image: probability that it
    is shown by an object of another picture of the same row group instead, where there is one. region_negatives:
    half of the time, U{0..region_negatives} regions of categories that the picture lacks, shown in other pictures.
    kinds: of prompts; each object that is shown, or may be, keeps one of those that it has. (): prompts as stored.
    """

    seed: int
    wording: bool = True
    categories: bool = True
    max_negatives: int | None = None
    max_categories: int | None = None
    exemplars: bool = True
    cross_image: float = 0.0
    region_negatives: int = 0
    kinds: tuple[PromptKind, ...] = ("point", "scribble", "box", "mask")

    def __post_init__(self) -> None:
        if self.max_categories is not None and self.max_categories < 1:
            raise UserError(f"max_categories is {self.max_categories}; at least 1 is needed")
        if not 0 <= self.cross_image <= 1:
            raise UserError(f"cross_image is {self.cross_image}; a probability is needed")
        if self.region_negatives < 0 or (self.max_negatives or 0) < 0:
            raise UserError("there cannot be fewer than 0 negatives")
        unknown = sorted(set(self.kinds) - set(PROMPT_KINDS))
        if unknown:
            raise UserError(f"{unknown[0]!r} is no kind of prompt; there are {', '.join(PROMPT_KINDS)}")

    def __call__(self, sample: Sample, draw: Draw, rows: Rows) -> Sample:
        """The sample, drawn anew. Raises DatasetError: a row group cannot be read."""
        before = sample
        if sample.task in LISTED and self.categories:
            sample = self._with_categories(sample, draw, rows)
        elif sample.task == "vgdseg":
            sample = self._with_regions(sample, draw, rows)
        if sample.task in SHOWN and self.kinds:
            sample = self._with_kinds(sample, draw)
        if self.wording or sample.conditions != before.conditions or sample.references != before.references:
            sample = conversation.render(sample, self._rng(sample, draw, "wording"))
        return sample

    def _rng(self, sample: Sample, draw: Draw, purpose: str) -> np.random.Generator:
        return keyed(self.seed, sample.sample_id, purpose, draw.epoch, draw.copy, VERSION)

    # --- categories as words ------------------------------------------------------------------------------------------

    def _with_categories(self, sample: Sample, draw: Draw, rows: Rows) -> Sample:
        rng = self._rng(sample, draw, "categories")
        present = [condition for condition in sample.conditions if condition.objects]
        absent = {c.category_id: c for c in sample.conditions if not c.objects}
        facts = rows.data.facts_of(draw.number)
        if not _is_federated(facts):
            known = {thing.category_id for thing in sample.objects} | {c.category_id for c in present}
            for category in facts.get("categories", ()):
                if category["id"] not in known:
                    other = Condition(kind="phrase", text=category["text"], category_id=category["id"])
                    absent.setdefault(category["id"], other)
        chosen = _at_most(present, self.max_categories, rng)
        most = len(absent) if self.max_negatives is None else min(len(absent), self.max_negatives)
        if self.max_negatives is None and rng.random() < 0.5:
            number = most
        else:
            number = int(rng.integers(0 if chosen else min(1, most), most + 1))
        if self.max_categories is not None:
            number = min(number, self.max_categories - len(chosen))
        names = sorted(absent)
        chosen += [absent[names[i]] for i in rng.permutation(len(names))[:number].tolist()]
        return replace(sample, conditions=_shuffled(chosen, rng)) if chosen else sample

    # --- regions ------------------------------------------------------------------------------------------------------

    def _with_regions(self, sample: Sample, draw: Draw, rows: Rows) -> Sample:
        rng = self._rng(sample, draw, "regions")
        conditions = list(sample.conditions)
        if self.categories:
            conditions = _at_most(conditions, self.max_categories, rng)
            conditions = list(_shuffled(conditions, rng))
        references: list[Reference] = []
        drawn = [self._shown(c, sample, references, draw, rows, rng) for c in conditions]
        room = len(sample.objects) + 1 if self.max_categories is None else self.max_categories - len(drawn)
        if self.region_negatives and room > 0 and rng.random() < 0.5:
            number = min(int(rng.integers(0, self.region_negatives + 1)), room)
            drawn += self._negatives(number, sample, references, draw, rows, rng)
            drawn = list(_shuffled(drawn, rng))
        return replace(sample, conditions=tuple(drawn), references=tuple(references))

    def _shown(
        self,
        condition: Condition,
        sample: Sample,
        references: list[Reference],
        draw: Draw,
        rows: Rows,
        rng: np.random.Generator,
    ) -> Condition:
        """The condition with its exemplar; one in another picture is added to the references."""
        if condition.kind != "region":
            return condition
        if condition.objects and rng.random() < self.cross_image:
            found = self._elsewhere(condition.category_id, sample, draw, rows, rng)
            if found is not None:
                references.append(found[0])
                return replace(condition, exemplar=-1, reference=len(references) - 1, shots=())
        if condition.reference >= 0:  # as it is stored
            shown = [sample.references[i] for i in (condition.reference, *condition.shots)]
            first = len(references)
            references += shown
            return replace(condition, reference=first, shots=tuple(range(first + 1, first + len(shown))))
        able = [i for i in condition.objects if _usable(sample.objects[i].prompts, self.kinds)]
        if not self.exemplars or not able:
            return condition
        return replace(condition, exemplar=able[int(rng.integers(len(able)))])

    def _negatives(
        self,
        number: int,
        sample: Sample,
        references: list[Reference],
        draw: Draw,
        rows: Rows,
        rng: np.random.Generator,
    ) -> list[Condition]:
        """Regions of categories that the picture lacks."""
        if _is_federated(rows.data.facts_of(draw.number)):
            return []
        known = {thing.category_id for thing in sample.objects} | {c.category_id for c in sample.conditions}
        _, categories = rows.asked_beside(draw.number)
        absent = sorted(set(categories.tolist()) - known)
        made = []
        for i in rng.permutation(len(absent))[:number].tolist():
            found = self._elsewhere(absent[i], sample, draw, rows, rng)
            if found is not None:
                references.append(found[0])
                other = Condition(kind="region", text=found[1], category_id=absent[i], reference=len(references) - 1)
                made.append(other)
        return made

    def _elsewhere(
        self, category_id: int, sample: Sample, draw: Draw, rows: Rows, rng: np.random.Generator
    ) -> tuple[Reference, str] | None:
        """An object of a category in another picture of the row group, and the category's text; None: none found."""
        numbers, categories = rows.asked_beside(draw.number)
        there = np.unique(numbers[categories == category_id])
        for number in rng.permutation(there)[:MAX_TRIES].tolist():
            other = rows.read(number)
            if other.image is None or other.image_key == sample.image_key:
                continue
            for condition in other.conditions:
                able = [i for i in condition.objects if _usable(other.objects[i].prompts, self.kinds)]
                if condition.kind == "region" and condition.category_id == category_id and able:
                    thing = other.objects[able[int(rng.integers(len(able)))]]
                    return reference_to(other, thing), condition.text
        return None

    # --- prompts ------------------------------------------------------------------------------------------------------

    def _with_kinds(self, sample: Sample, draw: Draw) -> Sample:
        rng = self._rng(sample, draw, "prompts")
        objects = tuple(
            replace(thing, prompts=_one(thing.prompts, self.kinds, rng)) if thing.prompts else thing
            for thing in sample.objects
        )
        references = tuple(replace(r, prompts=_one(r.prompts, self.kinds, rng)) for r in sample.references)
        return replace(sample, objects=objects, references=references)


def _is_federated(facts: Mapping[str, Any]) -> bool:
    """Whether a source says nothing of some categories, so that what is not stored must not be asked for."""
    return facts["builder"] in FEDERATED or bool(facts.get("options", {}).get("federated"))


def _usable(prompts: Sequence[Prompt], kinds: Sequence[str]) -> list[Prompt]:
    """Prompts that can be shown: of the wanted kinds, or of any where there is none of those."""
    there = [prompt for prompt in prompts if prompt.status != "none"]
    return [prompt for prompt in there if prompt.kind in kinds] or there


def _one(prompts: Sequence[Prompt], kinds: Sequence[str], rng: np.random.Generator) -> tuple[Prompt, ...]:
    """One of the prompts that can be shown; as many draws whatever there is, so objects do not move each other's."""
    able, at = _usable(prompts, kinds), rng.random()
    return (able[int(at * len(able))],) if able else ()


def _at_most(conditions: Sequence[Condition], number: int | None, rng: np.random.Generator) -> list[Condition]:
    """The conditions, or so many of them, drawn, in their order."""
    if number is None or len(conditions) <= number:
        return list(conditions)
    return [conditions[i] for i in sorted(rng.choice(len(conditions), number, replace=False).tolist())]


def _shuffled(conditions: Sequence[Condition], rng: np.random.Generator) -> tuple[Condition, ...]:
    return tuple(conditions[i] for i in rng.permutation(len(conditions)).tolist())
