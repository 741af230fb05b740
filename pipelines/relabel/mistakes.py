"""Mistakes in people's annotations: where a labeler disagrees with them, most suspicious first.

`find` looks at one picture, `rank` puts those of all pictures in order. Four kinds: an object that nobody annotated,
an annotation of what is no such object, one with the wrong category, one whose outline is off. A suspicion is never
more than a reason to look: it is the labeler's word against a person's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dataengine.ledger.records import Concept, Entry, Picture, Proposal
from pipelines.relabel import overlaps
from pipelines.relabel.filters import Checked

Kind = Literal["missed", "spurious", "wrong_class", "sloppy_boundary"]
Share = Annotated[float, Field(gt=0, le=1)]


class Limits(BaseModel):
    """When a disagreement is one. match: IoU from which on two masks are of one object.

    apart: share of a proposal that may lie in annotations when it is to be one that nobody annotated. boundary: IoU of
    the boundaries below which an outline is off. all_categories: look for missed objects also of categories of which
    the picture does not say that all are annotated, or that there are none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    match: Share = 0.5
    apart: Share = 0.3
    boundary: Share = 0.6
    all_categories: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """One disagreement. suspicion: 0 to 1.

    entry_id: of the annotation; None where one is missing. proposal: what the labeler says instead; None where it says
    that there is nothing. proposal_id: of its entry, where it comes from a ledger. iou: of the two masks. boundary_iou:
    of their boundaries, where it was measured.
    """

    kind: Kind
    picture: str
    concept: Concept
    suspicion: float
    entry_id: str | None = None
    proposal: Proposal | None = None
    proposal_id: str | None = None
    iou: float = 0.0
    boundary_iou: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A picture's mistakes, and of each concept how many annotations there are and how many the labeler found too."""

    mistakes: tuple[Mistake, ...]
    annotated: Counter[Concept]
    found: Counter[Concept]


def find(
    checked: Sequence[Checked], human: Sequence[Entry], picture: Picture, limits: Limits | None = None
) -> Compared:
    """Where a labeler and people disagree on a picture.

    Proposals that a filter rejects are left out, as are crowd regions and what lies in them. The suspicion of

    - a missed object is the proposal's confidence;
    - a spurious annotation is what no proposal, of any concept, covers of it; `rank` weighs it with how many of its
      concept the labeler finds at all;
    - a wrong category is IoU times confidence of the other category, less what its own category has there;
    - an outline is 1 - boundary IoU (Cheng et al., CVPR 2021), times the confidence.

    Raises:
        MaskError: a mask is malformed or not of the picture's size.
    """
    limits = limits or Limits()
    proposals = [one for one, checks in checked if all(check.verdict != "reject" for check in checks)]
    things = [one for one in human if not one.crowd]
    crowds = [one for one in human if one.crowd]
    size = picture.height, picture.width
    ours, theirs, crowded = (overlaps.decoded([one.rle for one in some], *size) for some in (proposals, things, crowds))
    shared = overlaps.overlaps(ours, theirs)
    concepts = [one.concept for one in proposals], [one.concept for one in things]
    same = overlaps.same_concepts(*concepts)
    others = overlaps.other_categories(*concepts)
    scores = np.array([min(max(one.score, 0.0), 1.0) for one in proposals])
    in_crowd = (overlaps.overlaps(ours, crowded).inside >= 0.5).any(axis=1)

    mistakes = []
    for place in np.flatnonzero(~in_crowd & (shared.inside <= limits.apart).all(axis=1) & (ours.areas > 0)).tolist():
        if limits.all_categories or _is_counted(proposals[place].concept, picture):
            mistakes.append(_missed(proposals[place], float(scores[place]), picture))
    annotated, found = Counter(concepts[1]), Counter[Concept]()
    iou = shared.iou
    for place, entry in enumerate(things):
        own = np.where(same[:, place], iou[:, place], 0.0)
        if own.size and own.max() >= limits.match:
            found[entry.concept] += 1
        swapped = np.where(others[:, place], iou[:, place], 0.0) * scores
        mistake = _of_annotation(entry, proposals, iou[:, place], own, swapped, scores, picture, limits)
        if mistake is not None:
            mistakes.append(mistake)
    return Compared(mistakes=tuple(mistakes), annotated=annotated, found=found)


def rank(compared: Iterable[Compared], top: int | None = None) -> list[Mistake]:
    """The mistakes of all pictures, most suspicious first; the order of the pictures does not matter.

    A spurious annotation counts for the share of its concept's annotations that the labeler does find, with one found
    and one not found added to the count: what a labeler never finds says nothing about people.

    Args:
        top: how many at most; then not many more are in memory at once.
    """
    annotated, found = Counter[Concept](), Counter[Concept]()
    groups: dict[Concept | None, list[Mistake]] = {}  # in each the order does not change any more
    for one in compared:
        annotated.update(one.annotated)
        found.update(one.found)
        for mistake in one.mistakes:
            group = groups.setdefault(mistake.concept if mistake.kind == "spurious" else None, [])
            group.append(mistake)
            if top is not None and len(group) > 2 * top:
                group.sort(key=_order)
                del group[top:]

    def weighed(mistake: Mistake) -> Mistake:
        if mistake.kind != "spurious":
            return mistake
        known = (found[mistake.concept] + 1) / (annotated[mistake.concept] + 2)
        return replace(mistake, suspicion=mistake.suspicion * known)

    return sorted((weighed(mistake) for group in groups.values() for mistake in group), key=_order)[:top]


def _order(mistake: Mistake) -> tuple[float, str, str, str, bytes]:
    rle = b"" if mistake.proposal is None else mistake.proposal.rle
    return -mistake.suspicion, mistake.picture, mistake.kind, mistake.entry_id or "", rle


def _is_counted(concept: Concept, picture: Picture) -> bool:
    return concept.category_id in picture.exhaustive or concept.category_id in picture.absent


def _missed(proposal: Proposal, score: float, picture: Picture) -> Mistake:
    return Mistake(kind="missed", picture=picture.key, concept=proposal.concept, suspicion=score, proposal=proposal)


def _of_annotation(
    entry: Entry,
    proposals: Sequence[Proposal],
    iou: np.ndarray,
    own: np.ndarray,
    other: np.ndarray,
    scores: np.ndarray,
    picture: Picture,
    limits: Limits,
) -> Mistake | None:
    """What is most suspicious about an annotation.

    iou: (n,) with the proposals. own: the same, 0 of other concepts. other: times the score, 0 of all but other
    categories. scores: (n,).
    """
    made = Mistake(kind="spurious", picture=picture.key, concept=entry.concept, suspicion=1.0, entry_id=entry.entry_id)
    if not iou.size:
        return made
    swapped, best, kept = int(other.argmax()), int(own.argmax()), float((own * scores).max())
    if iou[swapped] >= limits.match and other[swapped] > kept:
        doubt = float(other[swapped] * (1 - kept))
        return replace(made, kind="wrong_class", suspicion=doubt, proposal=proposals[swapped], iou=float(iou[swapped]))
    if own[best] < limits.match:
        nearest = float(iou.max())
        return replace(made, suspicion=1 - nearest, iou=nearest) if nearest < limits.match else None
    value = overlaps.boundary_iou(proposals[best].rle, entry.rle, picture.height, picture.width)
    if value >= limits.boundary:
        return None
    return replace(
        made,
        kind="sloppy_boundary",
        suspicion=(1 - value) * float(scores[best]),
        proposal=proposals[best],
        iou=float(own[best]),
        boundary_iou=value,
    )
