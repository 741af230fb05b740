"""Filters: each measures all masks of a picture and gives its verdict on each; none takes a mask away.

`apply` runs a chain of them. A mask that one filter rejects is still measured by the next, but no longer suppresses
others, and the labeler is not asked again about it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from dataengine import masks, tokens
from dataengine.kernels import crops
from dataengine.ledger.records import Check, Concept, Picture, Proposal
from dataengine.masks import Crop
from pipelines.relabel import chain as chains
from pipelines.relabel import consistency, overlaps
from pipelines.relabel.chain import Chain, Filter
from pipelines.relabel.overlaps import Masks

Checked = tuple[Proposal, tuple[Check, ...]]
Values = Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of a picture besides the proposals; a filter whose evidence is missing does not apply.

    others: proposals of labelers of another family, by their name. looked_for: ids of the categories that they looked
    for, of those that did not look for whatever there is. again: runs the labeler that is being checked.
    verifier: the probability of accepting each proposal, or None; or what tells it. exhaustive: the probability that
    all instances of a concept were found. caption: a text in which phrases must stand. seed: of the look `jitter`.
    """

    others: Mapping[str, Sequence[Proposal]] = field(default_factory=dict)
    looked_for: Mapping[str, Collection[int]] = field(default_factory=dict)
    again: consistency.Again | None = None
    verifier: Values | Callable[[Proposal], float] | None = None
    exhaustive: Mapping[Concept, float] = field(default_factory=dict)
    caption: str | None = None
    seed: int = 0


def apply(
    proposals: Sequence[Proposal], picture: Picture, chain: Chain, evidence: Evidence | None = None
) -> list[Checked]:
    """What each filter of a chain says of each mask, in the order of both.

    Raises:
        MaskError: a mask, or one that the evidence brings, is malformed or not of the picture's size.
        ReasonError: `bad_answer`: what was asked again was not answered, or not once for each mask.
    """
    case = _Case(proposals, picture, evidence or Evidence())
    checks: list[list[Check]] = [[] for _ in proposals]
    for one in chain.filters:
        for place, value in enumerate(MEASURES[type(one)](case, one)):
            check = one.check(value)
            checks[place].append(check)
            if check.verdict == "reject":
                case.alive[place] = False
    return [(proposal, tuple(said)) for proposal, said in zip(proposals, checks, strict=True)]


class _Case:
    """A picture's proposals, and what was measured of them so far. alive: (n,) bool, no filter has rejected them."""

    def __init__(self, proposals: Sequence[Proposal], picture: Picture, evidence: Evidence) -> None:
        self.proposals, self.picture, self.evidence = proposals, picture, evidence
        self.masks = overlaps.decoded([one.rle for one in proposals], picture.height, picture.width)
        self.concepts = [one.concept for one in proposals]
        self.alive = np.ones(len(proposals), dtype=bool)

    @cached_property
    def box_iou(self) -> np.ndarray:
        return overlaps.box_iou(self.masks, self.masks)

    @cached_property
    def overlaps(self) -> overlaps.Overlaps:
        return overlaps.overlaps(self.masks, self.masks)

    @cached_property
    def same(self) -> np.ndarray:
        return overlaps.same_concepts(self.concepts, self.concepts)

    @cached_property
    def crops(self) -> list[Crop | None]:
        """None: no pixel is set."""
        size = self.picture.height, self.picture.width
        return [
            masks.crop_from_rle(one.rle, *size) if area else None
            for one, area in zip(self.proposals, self.masks.areas.tolist(), strict=True)
        ]

    @cached_property
    def others(self) -> list[tuple[Sequence[Proposal], Masks]]:
        size = self.picture.height, self.picture.width
        given = (self.evidence.others[name] for name in sorted(self.evidence.others))
        return [(proposals, overlaps.decoded([one.rle for one in proposals], *size)) for proposals in given]

    @cached_property
    def order(self) -> list[int]:
        """From the best mask to the worst, whatever the order in which they came."""
        return sorted(range(len(self.proposals)), key=lambda place: _rank(self.proposals[place]))


def _rank(one: Proposal) -> tuple[Any, ...]:
    figures = (one.score, -1.0 if one.predicted_iou is None else one.predicted_iou)
    falling = (math.inf if math.isnan(figure) else -figure for figure in figures)
    return *falling, one.rle, one.concept.text, one.concept.category_id, one.prompt


# --- of a mask alone -----------------------------------------------------------------------------------------------


def _confidence(case: _Case, one: Filter) -> Values:
    return [proposal.score for proposal in case.proposals]


def _predicted_iou(case: _Case, one: Filter) -> Values:
    return [proposal.predicted_iou for proposal in case.proposals]


def _stability(case: _Case, one: Filter) -> Values:
    return [proposal.stability for proposal in case.proposals]


def _area(case: _Case, one: Filter) -> Values:
    values: list[float] = (case.masks.areas / (case.picture.height * case.picture.width)).tolist()
    return values


def _components(case: _Case, one: chains.Components) -> Values:
    return [None if crop is None else small_components(crop, one.pixels) for crop in case.crops]


def _holes(case: _Case, one: chains.Holes) -> Values:
    return [None if crop is None else small_holes(crop, one.pixels) for crop in case.crops]


def small_components(crop: Crop, pixels: int) -> float:
    """Share of a mask in 8-connected components of less than `pixels`, not counting the largest one."""
    sizes = np.sort(crops.components(crop.mask)[1][:, 0])
    return float(sizes[:-1][sizes[:-1] < pixels].sum() / sizes.sum())


def small_holes(crop: Crop, pixels: int) -> float:
    """Pixels in holes of less than `pixels`, 8-connected as SAM takes them, as a share of the mask."""
    h, w = crop.mask.shape
    empty = np.ones((h + 2, w + 2), dtype=bool)
    np.logical_not(crop.mask, out=empty[1:-1, 1:-1])
    sizes = crops.components(empty)[1][1:, 0]  # the first begins at the corner, which is no hole
    return float(sizes[sizes < pixels].sum() / np.count_nonzero(crop.mask))


def _crop_edge(case: _Case, one: chains.CropEdge) -> Values:
    picture = case.picture
    frame = np.array([0, 0, picture.width, picture.height])
    found: list[float | None] = []
    for proposal, box in zip(case.proposals, case.masks.boxes_xyxy, strict=True):
        if proposal.crop is None:
            found.append(None)
            continue
        x, y, w, h = proposal.crop
        counts = abs(box - frame) > one.edge
        distances = abs(box - np.array([x, y, x + w, y + h]))[counts]
        found.append(float(distances.min()) if distances.size else None)
    return found


# --- between the masks of a labeler --------------------------------------------------------------------------------


def _box_nms(case: _Case, one: chains.BoxNMS) -> Values:
    return _suppressed(case, one, case.box_iou)


def _mask_nms(case: _Case, one: chains.MaskNMS) -> Values:
    return _suppressed(case, one, case.overlaps.iou)


def _iom_nms(case: _Case, one: chains.IoMNMS) -> Values:
    return _suppressed(case, one, case.overlaps.iom)


def _suppressed(case: _Case, one: chains.BoxNMS, shares: np.ndarray) -> Values:
    """Of each mask, the largest share with a better one that no filter rejects, this one included."""
    if one.scope == "concept":
        shares = np.where(case.same, shares, 0.0)
    values = np.zeros(len(shares))
    stay: list[int] = []
    for place in case.order:
        if stay:
            values[place] = shares[place, stay].max()
        if case.alive[place] and one.check(float(values[place])).verdict != "reject":
            stay.append(place)
    found: list[float] = values.tolist()
    return found


# --- between labelers ----------------------------------------------------------------------------------------------


def _partners(case: _Case, one: chains.Agreement | chains.Exhaustivity, their: Masks) -> np.ndarray:
    """Which mask agrees with which of another labeler, whatever it is called: (n, m) bool."""
    near = overlaps.box_iou(case.masks, their) >= one.box_iou
    agree: np.ndarray = near & (overlaps.overlaps(case.masks, their).dice >= one.dice)
    return agree


def _agreement(case: _Case, one: chains.Agreement) -> Values:
    if not case.others:
        return [None] * len(case.proposals)
    votes, was_asked = np.zeros(len(case.proposals)), np.zeros(len(case.proposals), dtype=bool)
    categories = np.array([concept.category_id for concept in case.concepts], dtype=np.int64)
    for name, (other, their) in zip(sorted(case.evidence.others), case.others, strict=True):
        agree = _partners(case, one, their)
        if one.scope == "concept":
            agree &= overlaps.same_concepts(case.concepts, [proposal.concept for proposal in other])
        votes += agree.any(axis=1)
        looked_for = case.evidence.looked_for.get(name)
        was_asked |= agree.any(axis=1) | (looked_for is None or np.isin(categories, list(looked_for)))
    return [value if asked else None for value, asked in zip(votes.tolist(), was_asked.tolist(), strict=True)]


def _exhaustivity(case: _Case, one: chains.Exhaustivity) -> Values:
    theirs, have = np.zeros(len(case.proposals)), np.zeros(len(case.proposals))
    for other, their in case.others:
        same = overlaps.same_concepts(case.concepts, [proposal.concept for proposal in other])
        agree = _partners(case, one, their) & case.alive[:, None]
        theirs += same.sum(axis=1)
        # a mask of theirs has a partner if any of ours, of the same concept, agrees with it
        have += (same & (agree & same).any(axis=0)).sum(axis=1)
    estimate: list[float | None] = [None] * len(case.proposals)
    if case.others:
        estimate = np.divide(have, theirs, out=np.ones_like(have), where=theirs > 0).tolist()
    return [
        case.evidence.exhaustive.get(concept, value) for concept, value in zip(case.concepts, estimate, strict=True)
    ]


# --- with evidence from outside ------------------------------------------------------------------------------------


def _augmentation(case: _Case, one: chains.Augmentation) -> Values:
    def ask(asked: Sequence[Proposal], again: consistency.Again) -> Values:
        return consistency.augmentation(asked, case.picture, one.looks, again, case.evidence.seed)

    return _asked_again(case, ask)


def _reprompt(case: _Case, one: Filter) -> Values:
    return _asked_again(case, lambda asked, again: consistency.reprompt(asked, case.picture, again))


def _asked_again(case: _Case, ask: Callable[[Sequence[Proposal], consistency.Again], Values]) -> list[float | None]:
    """The values of the masks that are not rejected yet, if they have pixels; None for the others."""
    values: list[float | None] = [None] * len(case.proposals)
    places = np.flatnonzero(case.alive & (case.masks.areas > 0)).tolist()
    if case.evidence.again is not None and places:
        found = ask([case.proposals[place] for place in places], case.evidence.again)
        for place, value in zip(places, found, strict=True):
            values[place] = value
    return values


def _verifier(case: _Case, one: Filter) -> Values:
    given = case.evidence.verifier
    if given is None:
        return [None] * len(case.proposals)
    if callable(given):
        return [given(one) if alive else None for one, alive in zip(case.proposals, case.alive.tolist(), strict=True)]
    if len(given) != len(case.proposals):
        raise ValueError(f"a verifier's word on {len(given)} masks is no word on {len(case.proposals)}")
    return given


def _text(case: _Case, one: chains.Text) -> Values:
    faults = {concept: text_fault(concept, one, case.evidence.caption) for concept in set(case.concepts)}
    return [faults[concept] for concept in case.concepts]


def text_fault(concept: Concept, limits: chains.Text, caption: str | None = None) -> float | None:
    """How bad a phrase is: 0, 1 or 2, see `chain.Text`; None of a category."""
    if concept.category_id >= 0:
        return None
    text = concept.text
    unusable = (
        not limits.shortest <= len(text.strip()) <= limits.longest
        or not text.isprintable()
        or any(marker in text for marker in tokens.MARKERS)
        or (caption is not None and not _stands_in(text, caption))
    )
    if unusable:
        return 2.0
    return 1.0 if limits.sides and consistency.SIDES.search(text) else 0.0


def _stands_in(phrase: str, caption: str) -> bool:
    words = r"\s+".join(re.escape(word) for word in phrase.casefold().split())
    return re.search(rf"(?<!\w){words}(?!\w)", caption.casefold()) is not None


MEASURES: dict[type[Filter], Callable[[_Case, Any], Values]] = {
    chains.Confidence: _confidence,
    chains.PredictedIoU: _predicted_iou,
    chains.Stability: _stability,
    chains.MinArea: _area,
    chains.MaxArea: _area,
    chains.Components: _components,
    chains.Holes: _holes,
    chains.CropEdge: _crop_edge,
    chains.BoxNMS: _box_nms,
    chains.MaskNMS: _mask_nms,
    chains.IoMNMS: _iom_nms,
    chains.Agreement: _agreement,
    chains.Augmentation: _augmentation,
    chains.Reprompt: _reprompt,
    chains.Verifier: _verifier,
    chains.Exhaustivity: _exhaustivity,
    chains.Text: _text,
}
