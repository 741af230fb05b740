"""Merging: what becomes of a picture's checked proposals beside what people, and earlier rounds, said of it.

People always win: nothing here changes, hides or replaces what a person drew or decided. The rules are those of GranD's
and SAM's loops, put together; each entry says which of them decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dataengine.errors import UserError
from dataengine.ledger.records import (
    Decision,
    Entry,
    Labeler,
    Picture,
    Relation,
    State,
    Verdict,
    entry_id_of,
    mask_id_of,
)
from pipelines.relabel import overlaps
from pipelines.relabel.filters import Checked
from pipelines.relabel.overlaps import Masks, Overlaps

Share = Annotated[float, Field(gt=0, le=1)]
_BY_PEOPLE: tuple[Relation, ...] = ("duplicate", "conflict", "in_crowd")
_STANDING: dict[State, int] = {"rejected": 0, "review": 1, "kept": 2}


class RulesError(UserError):
    """Rules that cannot be used."""


class Rules(BaseModel):
    """Limits of the rules; IoU with a mask of the same concept, unless said otherwise.

    duplicate: from here on the proposal is the person's mask again. conflict: from here on it is another version of
    it; also of a mask of another category, a person's or one that an earlier round kept. part: intersection over the
    smaller mask, from which on one is a part of the other. crowd: share of the proposal that lies in a crowd region,
    from which on it is ignored. replaces: from here on it is a new version of an earlier round's mask.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    duplicate: Share = 0.8
    conflict: Share = 0.5
    part: Share = 0.9
    crowd: Share = 0.5
    replaces: Share = 0.5

    @model_validator(mode="after")
    def _a_duplicate_is_closer_than_a_conflict(self) -> Rules:
        if self.duplicate < self.conflict:
            raise ValueError(f"duplicate ({self.duplicate:g}) must not lie below conflict ({self.conflict:g})")
        return self

    @classmethod
    def parse(cls, values: object, where: str = "merge") -> Rules:
        """The rules of a YAML mapping. Raises RulesError."""
        try:
            return cls.model_validate({} if values is None else values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, (where, *first["loc"])))
            raise RulesError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Word:
    """What a rule says of a proposal. state: None where it leaves that to the checks."""

    relation: Relation = "new"
    relative: str | None = None
    overlap: float | None = None
    state: State | None = None
    reason: str = ""


def merge(
    checked: Sequence[Checked],
    human: Sequence[Entry],
    earlier: Sequence[Entry],
    picture: Picture,
    rules: Rules,
    round: int,
    labeler: Labeler,
    decisions: Sequence[Decision] = (),
) -> list[Entry]:
    """The entries of a round, one for each proposal, in their order.

    A proposal that came twice, the same in mask, concept and prompt, is one entry: the one with the higher score.
    A check's reason goes before a rule's, and what is rejected before what is reviewed.

    Args:
        checked: what `filters.apply` gave. human: what people drew of the picture. earlier: what models proposed in
            earlier rounds and nothing has superseded, in the state in which it stands now.
        decisions: words on those entries, the last one on each counts; those of reviewers bind: what they kept counts
            as a person's, what they rejected does not come back.
    Raises:
        MaskError: a mask is malformed or not of the picture's size.
    """
    known = sorted({one.entry_id: one for one in (*human, *earlier)}.values(), key=lambda one: one.entry_id)
    bound, is_bad = _bound(known, decisions)
    people, refused, models = [], [], []
    for one in known:
        state = bound.get(one.entry_id, one.state)
        if state == "rejected" and (one.origin == "human" or one.entry_id in bound):
            refused.append(one)
        elif one.origin == "human" or bound.get(one.entry_id) == "kept":
            people.append(one)
        else:
            models.append(one)
    entries, mine = _entries(checked, picture, round, labeler)
    said = _beside_people(entries, mine, people, picture, rules)
    said = _beside_refused(entries, mine, said, refused, picture, rules)
    if is_bad:
        said = [replace(one, state="rejected", reason="picture_refused") for one in said]
    entries = [_decided(entry, word) for entry, word in zip(entries, said, strict=True)]
    return _beside_models(entries, mine, models, picture, rules)


def _bound(known: Sequence[Entry], decisions: Sequence[Decision]) -> tuple[dict[str, State], bool]:
    """The states that a reviewer gave, by entry, and whether one said that the whole picture is bad."""
    ids = {one.entry_id for one in known}
    last = {one.entry_id: one for one in decisions if one.entry_id in ids}
    words = [one for one in last.values() if one.is_by_reviewer]
    return {one.entry_id: one.state for one in words}, any(one.action == "whole_image_bad" for one in words)


def _entries(checked: Sequence[Checked], picture: Picture, round: int, labeler: Labeler) -> tuple[list[Entry], Masks]:
    """The proposals as entries that nothing was decided of, and their masks."""
    best: dict[str, tuple[str, Checked]] = {}
    for one in checked:
        proposal = one[0]
        mask_id = mask_id_of(picture, proposal.concept, proposal.rle)
        entry_id = entry_id_of(mask_id, round, labeler, proposal.prompt)
        if entry_id not in best or proposal.score > best[entry_id][1][0].score:
            best[entry_id] = mask_id, one
    mine = overlaps.decoded([one.rle for _, (one, _) in best.values()], picture.height, picture.width)
    entries = [
        Entry(
            entry_id=entry_id,
            mask_id=mask_id,
            picture=picture.key,
            round=round,
            origin="model",
            concept=one.concept,
            rle=one.rle,
            bbox=(float(x0), float(y0), float(x1 - x0), float(y1 - y0)),
            area=area,
            labeler=labeler,
            score=one.score,
            predicted_iou=one.predicted_iou,
            stability=one.stability,
            prompt=one.prompt,
            crop=one.crop,
            checks=checks,
        )
        for (entry_id, (mask_id, (one, checks))), area, (x0, y0, x1, y1) in zip(
            best.items(), mine.areas.tolist(), mine.boxes_xyxy.tolist(), strict=True
        )
    ]
    return entries, mine


def _beside(
    entries: Sequence[Entry], mine: Masks, others: Sequence[Entry], picture: Picture
) -> tuple[Overlaps, np.ndarray]:
    """What the entries share with others, and which of those are of the same concept: (n, m) bool."""
    theirs = overlaps.decoded([one.rle for one in others], picture.height, picture.width)
    same = overlaps.same_concepts([one.concept for one in entries], [one.concept for one in others])
    return overlaps.overlaps(mine, theirs), same


def _beside_people(
    entries: Sequence[Entry], mine: Masks, people: Sequence[Entry], picture: Picture, rules: Rules
) -> list[_Word]:
    """The first rule that applies to each: duplicate, conflict, crowd, other category, part, exhaustive, absent."""
    things = [one for one in people if not one.crowd]
    crowds = [one for one in people if one.crowd]
    shared, same = _beside(entries, mine, things, picture)
    others = overlaps.other_categories([one.concept for one in entries], [one.concept for one in things])
    with_crowds, same_crowd = _beside(entries, mine, crowds, picture)
    found = []
    for entry, own, crowd, other, part, crowd_iom in zip(
        entries,
        _nearest(shared.iou * same),
        _nearest(with_crowds.inside * same_crowd),
        _nearest(shared.iou * others),
        _nearest(shared.iom * same),
        with_crowds.iom,
        strict=True,
    ):
        category = entry.concept.category_id
        if own[1] >= rules.duplicate:
            word = _word(things, own, "duplicate", "rejected", "confirmed")
        elif own[1] >= rules.conflict:
            word = _word(things, own, "conflict", "review", "conflict")
        elif crowd[1] >= rules.crowd:
            word = _word(crowds, (crowd[0], float(crowd_iom[crowd[0]])), "in_crowd", "rejected", "in_crowd")
        elif other[1] >= rules.conflict:
            word = _word(things, other, "conflict", "review", "other_category")
        elif part[1] >= rules.part:
            is_whole = category in picture.exhaustive  # so that a part is no instance of its own
            word = _word(things, part, "part_of", *(("review", "exhaustive") if is_whole else (None, "")))
        elif category in picture.exhaustive:
            word = _Word(relation="suspect", state="review", reason="exhaustive")
        elif category in picture.absent:
            word = _Word(relation="suspect", state="review", reason="absent")
        else:
            word = _Word()
        found.append(word)
    return found


def _word(
    others: Sequence[Entry], nearest: tuple[int, float], relation: Relation, state: State | None, reason: str
) -> _Word:
    place, overlap = nearest
    return _Word(relation=relation, relative=others[place].entry_id, overlap=overlap, state=state, reason=reason)


def _beside_refused(
    entries: Sequence[Entry],
    mine: Masks,
    said: Sequence[_Word],
    refused: Sequence[Entry],
    picture: Picture,
    rules: Rules,
) -> list[_Word]:
    """What a person rejected is rejected again; what only resembles it is reviewed."""
    shared, same = _beside(entries, mine, refused, picture)
    nearest = _nearest(shared.iou * same)
    found = []
    for word, (best, iou) in zip(said, nearest, strict=True):
        if word.relation in _BY_PEOPLE or iou < rules.conflict:
            found.append(word)
            continue
        again = iou >= rules.duplicate
        found.append(
            _Word(
                relation="duplicate" if again else "conflict",
                relative=refused[best].entry_id,
                overlap=iou,
                state="rejected" if again else "review",
                reason="refused",
            )
        )
    return found


def _decided(entry: Entry, word: _Word) -> Entry:
    """The entry with its relation, and with the state that its checks and the rule give it together."""
    by_checks: dict[Verdict, str] = {}
    for check in entry.checks:
        by_checks.setdefault(check.verdict, check.name)
    state: State
    if "reject" in by_checks:
        state, reason = "rejected", by_checks["reject"]
    elif word.state == "rejected":
        state, reason = "rejected", word.reason
    elif "review" in by_checks:
        state, reason = "review", by_checks["review"]
    else:
        state, reason = word.state or "kept", word.reason
    return replace(
        entry, relation=word.relation, relative=word.relative, overlap=word.overlap, state=state, reason=reason
    )


def _beside_models(
    entries: Sequence[Entry], mine: Masks, models: Sequence[Entry], picture: Picture, rules: Rules
) -> list[Entry]:
    """A new version of an earlier mask supersedes it, unless it stands worse; then it is that one's duplicate.

    What a person's mask or word decided supersedes in any case, because it came after the earlier mask. One entry
    supersedes one, the nearest pairs first; where several are near enough, one that stands best. What would be kept
    where another category was is reviewed.
    """
    shared, same = _beside(entries, mine, models, picture)
    nearest = _nearest(shared.iou * same)
    for state in ("rejected", "review", "kept"):  # an earlier mask that stands better goes before a nearer one
        here = np.array([one.state == state for one in models], dtype=bool)
        found_here = _nearest(shared.iou * same * here)
        nearest = [new if new[1] >= rules.replaces else old for new, old in zip(found_here, nearest, strict=True)]
    others = overlaps.other_categories([one.concept for one in entries], [one.concept for one in models])
    are_kept = np.array([one.state == "kept" for one in models], dtype=bool)
    swapped = _nearest(shared.iou * (others & are_kept))
    taken: set[int] = set()
    found = list(entries)
    for place in sorted(range(len(entries)), key=lambda place: (-nearest[place][1], entries[place].entry_id)):
        entry, (best, iou) = entries[place], nearest[place]
        if iou < rules.replaces:
            if entry.state == "kept" and swapped[place][1] >= rules.conflict:
                found[place] = _decided(entry, _word(models, swapped[place], "conflict", "review", "other_category"))
            continue
        if entry.relation not in _BY_PEOPLE and _STANDING[entry.state] < _STANDING[models[best].state]:
            found[place] = _stands_back(entry, models[best], iou)
        elif best not in taken:
            taken.add(best)
            found[place] = replace(entry, supersedes=models[best].entry_id)
    return found


def _stands_back(entry: Entry, earlier: Entry, iou: float) -> Entry:
    reason = entry.reason if entry.state == "rejected" else "earlier"
    return replace(entry, relation="duplicate", relative=earlier.entry_id, overlap=iou, state="rejected", reason=reason)


def _nearest(iou: np.ndarray) -> list[tuple[int, float]]:
    """Of each row the place and the value of the largest one; 0 where there is none."""
    if not iou.shape[1]:
        return [(-1, 0.0)] * len(iou)
    best = iou.argmax(axis=1)
    return list(zip(best.tolist(), iou[np.arange(len(iou)), best].tolist(), strict=True))
