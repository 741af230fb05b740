"""A round on a ledger: its pictures as they stand are labelled, and what comes of it is the ledger's next step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from dataengine import masks
from dataengine.engine.faults import fault_point
from dataengine.errors import UserError
from dataengine.ledger import records, writing
from dataengine.ledger.ledger import Ledger
from dataengine.ledger.records import Check, Concept, Entry, Picture, Proposal
from dataengine.ledger.steps import Step
from dataengine.ledger.view import Search, View
from dataengine.records import Account, Category
from dataengine.store.files import Folder
from pipelines.relabel import consistency, filters, labelers, merge, pipeline
from pipelines.relabel.chain import Augmentation, Chain, Reprompt, Verifier
from pipelines.relabel.endpoint import function_of
from pipelines.relabel.filters import Evidence
from pipelines.relabel.forbidden import Forbidden
from pipelines.relabel.job import Known, known_of
from pipelines.relabel.labelers import AnswerError, Labeler, Question, Spec
from pipelines.relabel.merge import Rules
from pipelines.relabel.pipeline import Result, Settings
from pipelines.relabel.worker import pixels_of

FOLDER = "relabel"  # of a ledger: where a round is under way


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What became of a round. step: its number in the ledger."""

    step: int
    result: Result


def relabel(
    directory: str,
    labeler: Spec,
    chain: Chain,
    rules: Rules,
    settings: Settings,
    *,
    work: str | None = None,
    forbidden: Forbidden | None = None,
    say: Callable[[str], None] = lambda text: None,
    tick: Callable[[int, int], None] = lambda done, pictures: None,
) -> Round:
    """Label the pictures of a ledger as it stands now.

    Args:
        settings: its `round` is taken from the ledger. work: folder of the round until it is a step, by default in the
            ledger. With `settings.resume` a round that was stopped goes on there; one that is the newest step
            already is not done again; where there is neither, one begins.
        forbidden: pictures that must not be labelled.
    Raises:
        LedgerError: there is no ledger, or somebody added a step meanwhile. UserError: see `pipeline.run`.
    """
    ledger = Ledger.open(directory)
    asked = labelers.make(labeler)
    made = labelers.record_of(asked)
    searched = searched_by(asked, ledger.categories)
    told = {"filters": chain.settings(), "merge": rules.model_dump(mode="json"), "looks": consistency.VERSION}

    def after(view: View) -> tuple[pipeline.Rules, Settings]:
        searches = tuple(one for one in view.searches() if one.labeler != made.name)
        names = sorted({one.labeler for one in searches})
        return pipeline.Rules(
            filters=ChainFilters(chain=chain, labeler=made.name, seed=ledger.seed, searches=searches),
            merge=LedgerMerge(rules=rules, round=view.round + 1, labeler=made, categories=ledger.categories),
            facts={**told, "looked": names} if names else told,
            asks_again=any(isinstance(one, Augmentation | Reprompt) for one in chain.filters),
        ), replace(settings, round=view.round + 1)

    if settings.resume and (before := _before(ledger, work)) is not None:
        plan = pipeline.plan_of(_Standing(before, forbidden), asked, *after(before))
        if plan == ledger.head.facts.get("plan"):
            return _already(ledger.head, work or _place(ledger, before.step))
    view = ledger.view()
    place = work or _place(ledger, view.step)
    applied, settings = after(view)
    result = pipeline.run(_Standing(view, forbidden), labeler, applied, place, settings, say, tick)
    facts: dict[str, Any] = {
        **result.facts(),
        "labeler": asdict(made),
        "rules": told,
        "seconds": round(result.seconds, 1),
        "searched": searched,
        "unlabelled": sorted({*pipeline.quarantined_in(result), *(forbidden.found if forbidden is not None else ())}),
    }
    if forbidden is not None:
        facts["forbidden"] = len(forbidden.found)
    if result.batch is not None:
        facts["smallest_batch"] = result.batch
    step = ledger.append("relabel", settings.round, pipeline.entries_of(result), facts=facts)
    fault_point("appended")
    if work is None:
        _keep_quarantine_only(Folder(place))
    return Round(step=step, result=result)


def _place(ledger: Ledger, number: int) -> str:
    """Where a round on a step is under way."""
    return (ledger.folder / f"{FOLDER}/{number:06d}").uri


def _before(ledger: Ledger, work: str | None) -> View | None:
    """What a round was asked about that may be the newest step; None where it is none, or a later one was begun.

    What that round has left in the ledger is cleared away.
    """
    step = ledger.head
    if step.kind != "relabel" or step.parent is None:
        return None
    place, plan = work or _place(ledger, step.parent), step.facts.get("plan")
    there = pipeline.plan_in(place)
    if work is None and there in (None, plan):
        _keep_quarantine_only(Folder(place))
    is_begun = there != plan if work is not None else bool(Folder(_place(ledger, step.number)).entries())
    return None if is_begun else ledger.view(step.parent)


def _already(step: Step, place: str) -> Round:
    """A round that is a step."""
    facts = step.facts
    result = Result(out=place, plan=facts["plan"], pictures=facts["pictures"])
    result.states.update(facts["states"])
    result.relations.update(facts["relations"])
    result.account.add(Account.from_dict(facts["records"]))
    return Round(step=step.number, result=result)


def _keep_quarantine_only(place: Folder) -> None:
    """Delete what is in the ledger now; what could not be labelled stays where a person looks for it.

    The plan goes last: as long as it stands, the folder is known to be that of the step.
    """
    names = [name for name in place.names(recursive=True) if not name.startswith("quarantine/")]
    for name in sorted(names, key=lambda name: name == pipeline.PLAN):
        place.delete(name)
        fault_point("cleared")
    if place.is_local and place.path.is_dir():
        for folder in sorted((path for path in place.path.rglob("*") if path.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()
        if not any(place.path.iterdir()):
            place.path.rmdir()


class _Standing:
    """The pictures of a view, and their masks as they stand."""

    def __init__(self, view: View, forbidden: Forbidden | None) -> None:
        self._view, self._forbidden = view, forbidden

    def pictures(self) -> Iterator[Picture]:
        return (one for one in self._view.ledger.pictures() if self._forbidden is None or not self._forbidden(one))

    def entries(self, key: str) -> Sequence[Entry]:
        """Without their checks, which nobody asks for again."""
        standings = [one for one in self._view.standings(key) if not one.is_superseded]
        return [known_of(replace(one.entry, checks=()), one.decision) for one in standings]


# --- filters and merge, as values that travel ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainFilters:
    """A chain of filters. Labelers of earlier rounds are those that may agree; rejected masks are no word of theirs.

    searches: of other labelers; one that saw a picture and has no mask in it agrees with none of what it looked for.
    """

    chain: Chain
    labeler: str
    seed: int
    searches: tuple[Search, ...] = ()

    def __post_init__(self) -> None:
        """Raises UserError where a verifier cannot be had."""
        self.chain.check_answerable(others=True)
        self._verifier()

    def __call__(
        self, proposals: Sequence[Proposal], question: Question, labeler: Labeler | None
    ) -> list[tuple[Proposal, tuple[Check, ...]]]:
        again = None
        if labeler is not None and question.pixels is not None:
            ask = partial(prompted, labeler, question.pixels) if hasattr(labeler, "prompted") else None
            again = consistency.by_concepts(partial(look_again, labeler, question), ask)
        searches = [one for one in self.searches if question.picture.key not in one.unseen]
        others, verify = self._others(question, searches), self._verifier()
        verifier = partial(verified, verify, question, _pixels(question)) if verify and proposals else None
        evidence = Evidence(
            others=others, looked_for=looked_for(searches), again=again, verifier=verifier, seed=self.seed
        )
        return filters.apply(proposals, question.picture, self.chain, evidence)

    def _others(self, question: Question, searches: Sequence[Search]) -> Mapping[str, list[Proposal]]:
        said = others_of(question.known, self.labeler)
        return {name: said.get(name, []) for name in {*(one.labeler for one in searches), *said}}

    def _verifier(self) -> Callable[..., Any] | None:
        one = self.chain.get("verifier")
        return function_of(one.call, one.name) if isinstance(one, Verifier) and one.call is not None else None


def verified(verify: Callable[..., Any], question: Question, pixels: np.ndarray, proposal: Proposal) -> float:
    """The probability that a verifier gives to accepting a mask.

    Raises:
        AnswerError: `score_range`: it gives none.
    """
    picture = question.picture
    mask = masks.decode(proposal.rle, picture.height, picture.width)
    value = float(verify(pixels, mask, proposal.concept.text))
    if not 0 <= value <= 1:
        raise AnswerError("score_range", f"a verifier says a probability, not {value}")
    return value


def _pixels(question: Question) -> np.ndarray:
    """Those of the question; of a labeler that does not look, the picture is read."""
    return pixels_of(question.picture) if question.pixels is None else question.pixels


def others_of(known: Sequence[Entry], labeler: str) -> Mapping[str, list[Proposal]]:
    """What other labelers said of a picture, by their names."""
    found: dict[str, list[Proposal]] = {}
    for entry in known:
        if entry.labeler is not None and entry.labeler.name != labeler and entry.state != "rejected":
            proposal = Proposal(rle=entry.rle, concept=entry.concept, score=entry.score, prompt=entry.prompt)
            found.setdefault(entry.labeler.name, []).append(proposal)
    return found


def looked_for(searches: Sequence[Search]) -> dict[str, frozenset[int]]:
    """Ids of the categories that labelers looked for, by name; without those of which a round does not say."""
    found: dict[str, frozenset[int]] = {}
    for one in searches:
        found[one.labeler] = found.get(one.labeler, frozenset()) | one.categories
    silent = {one.labeler for one in searches if not one.categories}
    return {name: categories for name, categories in found.items() if name not in silent}


def look_again(labeler: Labeler, question: Question, look: consistency.Look) -> list[Proposal]:
    """What a labeler says of a changed picture, with what is known of it changed alike.

    Raises:
        AnswerError: its answer cannot be used.
    """
    assert question.pixels is not None
    picture = question.picture
    height, width = look.size(picture.height, picture.width)
    seen = replace(picture, height=height, width=width)
    known = tuple(_moved(entry, look, picture) for entry in question.known)
    answers = labeler.label([Question(picture=seen, pixels=look.pixels(question.pixels), known=known)])
    if len(answers) != 1:
        raise AnswerError("answer_type", f"{len(answers)} answers to one picture")
    return labelers.check(answers[0], seen)


def prompted(
    labeler: Any, pixels: np.ndarray, look: consistency.Look, queries: Sequence[consistency.Requery]
) -> list[list[bytes]]:
    """The masks that a labeler with `prompted` answers to boxes, or to points."""
    if look.name == "jitter":
        found = labeler.prompted(pixels, boxes=np.array([query.box_xyxy for query in queries]))
    else:
        found = labeler.prompted(pixels, points=np.array([query.point_xy for query in queries]))
    return [[rle] for rle in found]


def _moved(entry: Entry, look: consistency.Look, picture: Picture) -> Entry:
    rle = look.forth(entry.rle, picture.height, picture.width)
    area, box = masks.measure(rle, *look.size(picture.height, picture.width))
    x, y, w, h = map(float, box)
    phrase = entry.concept.category_id == -1
    concept = replace(entry.concept, text=look.text(entry.concept.text)) if phrase else entry.concept
    return replace(entry, concept=concept, rle=rle, area=area, bbox=(x, y, w, h))


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerMerge:
    """The rules of merging, for entries that the ledger takes."""

    rules: Rules
    round: int
    labeler: records.Labeler
    categories: tuple[Category, ...]

    def __call__(
        self,
        checked: Sequence[tuple[Proposal, tuple[Check, ...]]],
        human: Sequence[Entry],
        earlier: Sequence[Entry],
        picture: Picture,
    ) -> list[Entry]:
        """
        Raises:
            AnswerError: `unknown_category`: a proposal is of a category that the ledger does not have.
        """
        known = {category.id: category for category in self.categories}
        named = [(replace(one, concept=written(one.concept, known)), checks) for one, checks in checked]
        words = [one.decision for one in (*human, *earlier) if isinstance(one, Known) and one.decision is not None]
        entries = merge.merge(named, human, earlier, picture, self.rules, self.round, self.labeler, words)
        writing.check_entries(entries, picture, {number: one.text for number, one in known.items()})
        return entries


def written(concept: Concept, categories: Mapping[int, Category]) -> Concept:
    """A concept as a ledger writes it: what has one of a category's names is of it.

    Args:
        categories: the ledger's, by id.
    Raises:
        AnswerError: `unknown_category`: it is of a category that the ledger does not have.
    """
    if concept.category_id == -1:
        same = [one for one in categories.values() if concept.text in (one.text, one.name)]
        return Concept(text=same[0].text, category_id=same[0].id) if len(same) == 1 else concept
    found = categories.get(concept.category_id)
    if found is None or concept.text not in (found.text, found.name, *found.synonyms):
        message = f"the ledger has no category {concept.category_id} {concept.text!r:.80}"
        raise AnswerError("unknown_category", message)
    return replace(concept, text=found.text)


def searched_by(labeler: Labeler, categories: Sequence[Category]) -> list[int]:
    """Ids of a ledger's categories that a labeler looks for in every picture, ascending.

    Raises:
        UserError: its `asks` are no concepts.
    """
    found, known = set(), {category.id: category for category in categories}
    for concept in getattr(labeler, "asks", ()):
        if not isinstance(concept, Concept):
            raise UserError(f"labeler {labeler.name}: asks: a Concept is needed, not {type(concept).__name__}")
        with contextlib.suppress(AnswerError):  # what it is called in vain costs the pictures where it is found
            found.add(written(concept, known).category_id)
    return sorted(found - {-1})


def opened_or_begun(source: str, out: str | None) -> str:
    """The ledger to label: `source` itself, or one that is begun at `out` with the pictures of `source`.

    Raises:
        UserError: `source` is no ledger, and there is no `out`.
    """
    from dataengine.ledger.ledger import HEAD
    from pipelines.ledger_sources import Choice, create

    if Folder(source).exists(HEAD):
        if out is not None:
            raise UserError(f"{source}: is a ledger, to which the round is added; leave out --out")
        return source
    if out is None:
        raise UserError(f"{source}: no ledger; give --out DIR, where one is begun with its pictures")
    if not Folder(out).exists(HEAD):
        create([source], out, Choice(), 0)
    return out
