"""What a ledger holds: pictures, masks that were proposed for them, what was measured of each, and what was decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dataengine.keyed import key_hash

Verdict = Literal["accept", "review", "reject"]
State = Literal["kept", "review", "rejected"]
Origin = Literal["human", "model"]
Relation = Literal["new", "duplicate", "conflict", "part_of", "in_crowd", "suspect"]
Action = Literal["accept", "reject", "edit", "whole_image_bad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """What a mask is said to show. text: a category's name or a phrase. category_id: the source's; -1 for a phrase."""

    text: str
    category_id: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture of a ledger.

    key: unique in the ledger (`Sample.image_key`). path: of the file, a path or URI. sha256: of the file's bytes.
    exhaustive: ids of the categories of which people annotated all instances. absent: ids of those known not to be in
    it.
    """

    key: str
    path: str
    sha256: str
    height: int
    width: int
    exhaustive: tuple[int, ...] = ()
    absent: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A mask that a labeler proposes for a picture.

    rle: compressed COCO counts on the picture's canvas. score: confidence, 0 to 1. predicted_iou, stability: as the
    labeler says, or None. prompt: canonical JSON of what it was asked with. crop: x, y, width and height in px of the
    part of the picture that it looked at; None: all of it.
    """

    rle: bytes
    concept: Concept
    score: float
    predicted_iou: float | None = None
    stability: float | None = None
    prompt: str = ""
    crop: tuple[int, int, int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a filter measured of a mask. value: None where it does not apply. limit: what it was held against."""

    name: str
    value: float | None
    limit: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Labeler:
    """Who proposed a mask. settings: canonical JSON."""

    name: str
    revision: str
    settings: str = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A mask that was proposed once: a row of the ledger. It is never changed; later words on it are `Decision`s.

    entry_id: see `entry_id_of`. mask_id: see `mask_id_of`. picture: `Picture.key`. round: 0 for what the ledger began
    with. annotation_id: the source's, of human masks. relation: to the entry `relative`, with which it has `overlap`:
    their IoU, or the share of the smaller one for `part_of` and `in_crowd`. state: when it was written; reason: the
    check or rule that decided. supersedes: the entry in whose place it stands.
    """

    entry_id: str
    mask_id: str
    picture: str
    round: int
    origin: Origin
    concept: Concept
    rle: bytes
    bbox: tuple[float, float, float, float]
    area: int
    crowd: bool = False
    annotation_id: str = ""
    labeler: Labeler | None = None
    score: float = 1.0
    predicted_iou: float | None = None
    stability: float | None = None
    prompt: str = ""
    crop: tuple[int, int, int, int] | None = None
    checks: tuple[Check, ...] = ()
    relation: Relation = "new"
    relative: str | None = None
    overlap: float | None = None
    state: State = "kept"
    reason: str = ""
    supersedes: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A later word on an entry. by: `reviewer:NAME` or `rule:NAME`. seconds: that it took. replacement: the entry, a
    human one, that an edit put in its place."""

    entry_id: str
    state: State
    by: str
    action: Action
    reason: str = ""
    seconds: float | None = None
    replacement: str | None = None

    @property
    def is_by_reviewer(self) -> bool:
        """Whether a person said it, and no rule."""
        return self.by.startswith("reviewer:")


def mask_id_of(picture: Picture, concept: Concept, rle: bytes) -> str:
    """The same for the same mask of the same picture under the same name, whoever proposes it, in any round."""
    return key_hash(picture.sha256, concept.text, str(concept.category_id), rle.decode("ascii")).hex()


def entry_id_of(mask_id: str, round: int, labeler: Labeler | None, prompt: str = "", annotation_id: str = "") -> str:
    """One for each time that a mask is proposed."""
    who = ("", "") if labeler is None else (labeler.name, labeler.revision)
    return key_hash(mask_id, str(round), *who, prompt, annotation_id).hex()
