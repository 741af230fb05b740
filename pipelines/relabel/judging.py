"""A ledger's newest round held against what people drew: mistakes in annotations, and limits for its filters.

People's masks are those that they drew, and those of models that a reviewer accepted. Pictures that a reviewer called
bad are left out. One picture is in memory at a time.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import yaml

from dataengine.errors import UserError
from dataengine.ledger.records import Entry, Picture, Proposal
from dataengine.ledger.steps import Step
from dataengine.ledger.view import Standing, View
from pipelines.relabel import calibrate, mistakes
from pipelines.relabel.calibrate import Calibration, Judged
from pipelines.relabel.chain import Chain
from pipelines.relabel.mistakes import Compared, Mistake


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """The most suspicious mistakes, and how many there are of each kind, in how many pictures with proposals."""

    step: Step
    mistakes: list[Mistake]
    kinds: Counter[str]
    pictures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """Limits, and what they rest on: pictures, people's masks in them and proposals that were judged, `right` of them
    rightly made."""

    step: Step
    found: Calibration
    pictures: int
    masks: int
    proposals: int
    right: int


def ranked(view: View, top: int | None = None) -> Ranked:
    """Where people and the newest round of a view disagree; what a reviewer rejected is no word against them.

    Raises:
        UserError: the view has no round of labelling.
    """
    step = newest_round(view)
    kinds: Counter[str] = Counter()
    pictures = 0

    def compared() -> Iterator[Compared]:
        nonlocal pictures
        for picture, proposed, human in _pages(view, step, with_refused=False):
            pictures += 1
            ids = {_proposal(entry): entry.entry_id for entry in proposed}
            one = mistakes.find([(_proposal(entry), entry.checks) for entry in proposed], human, picture)
            kinds.update(mistake.kind for mistake in one.mistakes)
            named = (
                replace(mistake, proposal_id=None if mistake.proposal is None else ids[mistake.proposal])
                for mistake in one.mistakes
            )
            yield replace(one, mistakes=tuple(named))

    found = mistakes.rank(compared(), top)
    return Ranked(step=step, mistakes=found, kinds=kinds, pictures=pictures)


def calibrated(view: View, precision: float) -> Calibrated:
    """Limits for the filters of a view's newest round, from the pictures that people annotated throughout.

    Of each picture only the categories count of which all objects are annotated, or of which there are none.

    Raises:
        UserError: the view has no round of labelling, its filters are not known, or there is nothing to judge by.
    """
    step = newest_round(view)
    chain = _chain_of(view, step)
    judged: list[Judged] = []
    pictures = num_masks = 0
    for picture, proposed, human in _pages(view, step):
        whole = {*picture.exhaustive, *picture.absent}
        asked, gold = ([entry for entry in some if entry.concept.category_id in whole] for some in (proposed, human))
        if asked or gold:
            pictures += 1
            num_masks += len(gold)
            judged += calibrate.judge([(_proposal(entry), entry.checks) for entry in asked], gold, picture)
    if not num_masks or not judged:
        raise UserError(
            f"{view.ledger.folder.uri}: step {step.number} has {len(judged)} proposals in categories that are "
            f"annotated throughout, and people have {num_masks} masks there; limits need both (--exhaustive of "
            "`dataengine ledger init` says in which pictures all objects are annotated)"
        )
    return Calibrated(
        step=step,
        found=calibrate.thresholds(judged, chain, precision),
        pictures=pictures,
        masks=num_masks,
        proposals=len(judged),
        right=sum(one.is_right for one in judged),
    )


def newest_round(view: View) -> Step:
    """The step of a view that labelled last. Raises UserError where none did."""
    for step in reversed(view.chain):
        if step.kind == "relabel":
            return step
    raise UserError(
        f"{view.ledger.folder.uri}: nothing was labelled up to step {view.step}; `dataengine relabel` adds a round"
    )


def _chain_of(view: View, step: Step) -> Chain:
    told = step.facts.get("rules", {}).get("filters")
    if told is None:
        raise UserError(f"{view.ledger.folder.uri}: step {step.number} does not say its filters")
    chain = Chain.parse(json.loads(told), f"step {step.number}")
    if not any(chain.get(name) for name in calibrate.CONTINUOUS):
        names = ", ".join(calibrate.CONTINUOUS)
        raise UserError(f"{view.ledger.folder.uri}: step {step.number} had no filter whose limits can be set ({names})")
    return chain


def _pages(view: View, step: Step, *, with_refused: bool = True) -> Iterator[tuple[Picture, list[Entry], list[Entry]]]:
    """Each picture with what the step proposed for it and people's masks; where it proposed nothing, nobody knows
    whether the labeler was asked.

    Args:
        with_refused: also what a reviewer rejected.
    """
    for picture, found in view.walk():
        proposed = [s for s in found if s.step == step.number and s.entry.origin == "model"]
        if not proposed or any(s.decision is not None and s.decision.action == "whole_image_bad" for s in found):
            continue
        human = [s.entry for s in found if not s.is_superseded and _is_of_people(s)]
        yield picture, [s.entry for s in proposed if with_refused or not _is_said(s, "rejected")], human


def _is_of_people(standing: Standing) -> bool:
    if standing.entry.origin == "human":
        return standing.entry.state == "kept"
    return _is_said(standing, "kept")


def _is_said(standing: Standing, state: str) -> bool:
    """Whether a reviewer gave a mask this state."""
    said = standing.decision
    return said is not None and said.is_by_reviewer and said.state == state


def _proposal(entry: Entry) -> Proposal:
    return Proposal(
        rle=entry.rle,
        concept=entry.concept,
        score=entry.score,
        predicted_iou=entry.predicted_iou,
        stability=entry.stability,
        prompt=entry.prompt,
        crop=entry.crop,
    )


# --- as they are written ---------------------------------------------------------------------------------------------


def as_json(found: Ranked) -> dict[str, Any]:
    """For programs that let people look at the mistakes."""
    return {
        "step": found.step.number,
        "pictures": found.pictures,
        "kinds": dict(sorted(found.kinds.items())),
        "mistakes": [
            {
                "kind": one.kind,
                "suspicion": one.suspicion,
                "picture": one.picture,
                "entry_id": one.entry_id,
                "concept": {"text": one.concept.text, "category_id": one.concept.category_id},
                "proposal": None if one.proposal is None else _proposed(one),
                "iou": one.iou,
                "boundary_iou": one.boundary_iou,
            }
            for one in found.mistakes
        ],
    }


def _proposed(one: Mistake) -> dict[str, Any]:
    assert one.proposal is not None
    concept = {"text": one.proposal.concept.text, "category_id": one.proposal.concept.category_id}
    return {"entry_id": one.proposal_id, "concept": concept, "score": one.proposal.score}


def as_yaml(found: Calibrated) -> str:
    """The chain as `--filters FILE` takes it, with what each limit rests on in comments."""
    limits = {limit.name: limit for limit in found.found.limits}
    lines = [
        f"# step {found.step.number}, round {found.step.round}: {found.proposals:,} proposals in {found.pictures:,} "
        f"pictures, {found.right:,} of them right; {found.masks:,} masks of people",
    ]
    for one in found.found.chain.filters:
        limit = limits.get(one.name)
        if limit is not None:
            lines.append(f"# {limit}" + ("; the limits stay as they were" if limit.accept is None else ""))
        values = {"accept": one.accept} | one.model_dump(mode="json", exclude_defaults=True)
        flow = yaml.safe_dump(values, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
        lines.append(f"- {one.name}: {flow.strip()}")
    reached = found.found
    if reached.precision is not None:
        recall = "" if reached.recall is None else f", recall {reached.recall:.3f}"
        lines.append(f"# together they accept {reached.num_accepted:,} (precision {reached.precision:.3f}{recall})")
    return "\n".join(lines)


def table(found: Ranked) -> list[list[str]]:
    """A row for each mistake, below a row of names. concept: as people say → as the labeler does."""
    rows = [["score", "kind", "concept", "picture", "annotation", "proposal"]]
    for one in found.mistakes:
        concept = one.concept.text
        if one.proposal is not None and one.proposal.concept != one.concept:
            concept += f" → {one.proposal.concept.text}"
        ids = ["-" if name is None else name[:12] for name in (one.entry_id, one.proposal_id)]
        rows.append([f"{one.suspicion:.3f}", one.kind, concept, one.picture, *ids])
    return rows


def tally(kinds: Counter[str]) -> str:
    return ", ".join(f"{number:,} {kind}" for kind, number in sorted(kinds.items())) or "no mistakes"
