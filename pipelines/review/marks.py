"""What a review package holds, in no layout yet: pictures as pages, masks as marks, names as labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from dataengine import masks
from dataengine.errors import ReasonError
from dataengine.ledger.records import Concept

Said = Literal["", "accept", "reject", "add"]
SAID: tuple[Said, ...] = ("", "accept", "reject", "add")
WHOLE_IMAGE_BAD = "whole image bad"  # what a picture is marked with, where a tool can only mark with a label
MAX_LABEL = 64  # characters that CVAT keeps of a label
ENTRY_ID = re.compile("[0-9a-f]{32}")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class MarkError(ReasonError):
    """A record of a package that cannot be used."""


class PackageError(ReasonError):
    """A package that cannot be used at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A record of a package of which nothing comes. record: where it stands, and what it calls itself."""

    record: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.record}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A concept under the name that it has in the package, where names are unique, short, and what XML can hold."""

    name: str
    concept: Concept


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A picture of a package. name: of its file there. entries: ids of those that went out."""

    name: str
    key: str
    sha256: str
    height: int
    width: int
    entries: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A mask on a page. entry_id: "" for an added one. said: of it, by the reviewer. score, reason: why it is here."""

    entry_id: str
    label: str
    rle: bytes
    said: Said = ""
    score: float | None = None
    reason: str = ""


@dataclass(slots=True, kw_only=True)
class Page:
    """A picture of a package with its marks. bad: the whole picture is, says the reviewer. seconds: spent on it."""

    slot: Slot
    marks: list[Mark] = field(default_factory=list)
    bad: bool = False
    seconds: float | None = None


@dataclass(slots=True, kw_only=True)
class Found:
    """What a file of a package holds. named: how many refused records call themselves by an entry_id or file name."""

    pages: list[Page] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    named: Counter[str] = field(default_factory=Counter)

    def refuse(self, record: str, error: ReasonError, name: Any = None) -> None:
        """Note a record that is refused. name: what it calls itself."""
        if isinstance(name, str) and name:
            self.named[name.rpartition("/")[2]] += 1
            record += f" ({name!r:.80})"
        self.refused.append(Refused(record=record, reason=error.reason, message=str(error)))


@dataclass(frozen=True, kw_only=True)
class Package:
    """What goes out beside the marks. step: of the ledger that it shows. url: of a picture, up to its name."""

    layout: str
    step: int
    url: str
    labels: tuple[Label, ...]
    slots: tuple[Slot, ...]

    @cached_property
    def concepts(self) -> dict[str, Concept]:
        """What the labels stand for."""
        return {label.name: label.concept for label in self.labels}

    @cached_property
    def names(self) -> dict[Concept, str]:
        """The labels of concepts."""
        return {label.concept: label.name for label in self.labels}

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each label, from 1."""
        return {label.name: number for number, label in enumerate(self.labels, start=1)}

    @cached_property
    def _by_name(self) -> dict[str, Slot]:
        return {slot.name: slot for slot in self.slots}

    def slot(self, name: Any) -> Slot:
        """The picture of a name, in whatever folder a tool puts it.

        Raises:
            MarkError: `unsafe_name`, `unknown_picture`.
        """
        if not isinstance(name, str) or not name:
            raise MarkError("unknown_picture", "the picture has no name")
        check_name(name)
        slot = self._by_name.get(name.rpartition("/")[2])
        if slot is None:
            raise MarkError("unknown_picture", f"the package has no picture {name!r:.80}")
        return slot

    def check_label(self, name: Any) -> str:
        """Raises MarkError: `category_unknown`."""
        if not isinstance(name, str) or name not in self.concepts:
            raise MarkError("category_unknown", f"the package has no label {name!r:.80}")
        return name


def check_size(slot: Slot, height: Any, width: Any) -> None:
    """Raises MarkError: `image_size`, where what a file says of a picture is not so."""
    for what, said, true in (("height", height, slot.height), ("width", width, slot.width)):
        if type(said) is not int or said != true:
            raise MarkError("image_size", f"{what} {said!r:.40} is not the picture's, {true} px")


def check_name(name: str) -> None:
    """Raises MarkError: `unsafe_name`, where the name of a file leads out of its folder."""
    if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name) or "\0" in name:
        raise MarkError("unsafe_name", f"the name {name!r:.80} leads out of the package")


def said_of(value: Any) -> Said:
    """A reviewer's word on a mark. Raises MarkError: `decision_unknown`."""
    for said in SAID:
        if value == said or (value is None and not said):
            return said
    raise MarkError("decision_unknown", f"a decision is {', '.join(SAID[1:])} or nothing, not {value!r:.40}")


def id_of(value: Any, said: Said) -> str:
    """The id of an entry; "" for a mask that the reviewer added, which has none.

    Raises:
        MarkError: `missing_id`, `added_with_id`, `unknown_id` (no id looks like that).
    """
    if value in (None, ""):
        if said == "add":
            return ""
        raise MarkError("missing_id", "the record has no entry_id; a mask that was added says so by its decision, add")
    if said == "add":
        raise MarkError("added_with_id", "the record is added, but has the entry_id of another one")
    if not isinstance(value, str) or not ENTRY_ID.fullmatch(value):
        raise MarkError("unknown_id", f"entry_id {value!r:.80} is none")
    return value


def score_of(value: Any) -> float | None:
    """A score, which no decision depends on: what is none is left out."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= 1 else None


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else ""


def canonical(rle: bytes, height: int, width: int) -> bytes:
    """A mask as it is encoded here, so that equal masks are equal bytes.

    Raises:
        MaskError: `rle_invalid`, `rle_size`, `empty_mask`.
    """
    return masks.rle_from_crop(masks.crop_from_rle(rle, height, width), height, width)


def plain(text: str) -> str:
    """A text on one line, without what XML cannot hold."""
    return " ".join(_NOT_XML.sub("\ufffd", text).split())


def labels_of(concepts: Iterable[Concept]) -> tuple[Label, ...]:
    """A label for each concept: categories by their ids, then phrases."""
    found: dict[str, Label] = {}
    taken = {WHOLE_IMAGE_BAD}
    for concept in sorted(set(concepts), key=lambda c: (c.category_id < 0, c.category_id, c.text)):
        name = next(name for name in _names(plain(concept.text) or "unnamed") if name not in taken)
        taken.add(name)
        found[name] = Label(name=name, concept=concept)
    return tuple(found.values())


def _names(text: str) -> Iterator[str]:
    """A text and others like it, none longer than a label is."""
    yield text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…"
    number = 1
    while True:
        number += 1
        end = f" ({number})"
        room = MAX_LABEL - len(end)
        yield (text if len(text) <= room else text[: room - 1] + "…") + end
