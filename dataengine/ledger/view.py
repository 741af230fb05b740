"""A ledger as it stands at one step: every mask with the state that the newest word on it gave it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from dataengine.ledger.records import Decision, Entry, Picture
from dataengine.ledger.steps import Step
from dataengine.ledger.tables import LEAN, LedgerError, SortedFile, decisions_of, entries_of, together
from dataengine.ledger.writing import Located, locate

if TYPE_CHECKING:
    from dataengine.ledger.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """An entry as it stands. entry: with the state and reason of the newest decision. step: that wrote it.

    decision: the newest, if there is one. is_superseded: a kept entry stands in its place.
    """

    entry: Entry
    step: int
    decision: Decision | None = None
    is_superseded: bool = False


def standings(entries: Iterable[tuple[int, Entry]], decisions: Iterable[Decision]) -> list[Standing]:
    """How the entries of one picture stand, in their order.

    An entry is superseded as soon as one that was written in its place is kept, and no longer.

    Args:
        entries: each with its step. decisions: oldest first.
    """
    newest = {decision.entry_id: decision for decision in decisions}
    found = []
    for step, entry in entries:
        decision = newest.get(entry.entry_id)
        if decision is not None:
            entry = replace(entry, state=decision.state, reason=decision.reason or decision.action)
        found.append(Standing(entry=entry, step=step, decision=decision))
    replaced = {s.entry.supersedes for s in found if s.entry.supersedes is not None and s.entry.state == "kept"}
    return [replace(s, is_superseded=True) if s.entry.entry_id in replaced else s for s in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What a round looked for: ids of categories (none: it does not say), in all pictures but the unseen ones, keys."""

    labeler: str
    round: int
    categories: frozenset[int]
    unseen: frozenset[str]


class View:
    """The ledger at a step. `entries` looks up one picture and is quickest in the order of `Ledger.pictures`; the
    others go through all of them, with one row group of each file in memory.
    """

    def __init__(self, ledger: Ledger, step: int, chain: Sequence[Step]) -> None:
        self.ledger, self.step, self.chain = ledger, step, tuple(chain)
        self._entries, self._decisions = files_of(ledger, chain, "entries"), files_of(ledger, chain, "decisions")

    @property
    def round(self) -> int:
        return max(step.round for step in self.chain)

    @property
    def version(self) -> str:
        """sha256 (hex) of what is in it: the same at an earlier step and after a rollback to it."""
        digest = hashlib.sha256()
        for step in self.chain:
            for stored in step.files:
                digest.update(f"{stored.name} {stored.sha256}\n".encode())
        return digest.hexdigest()

    def entries(self, picture: str) -> list[Entry]:
        """All masks of a picture that are not superseded, whatever their state, as they stand; oldest first.

        Raises:
            LedgerError: the ledger has no such picture.
        """
        return [standing.entry for standing in self.standings(picture) if not standing.is_superseded]

    def standings(self, picture: str) -> list[Standing]:
        """All masks of a picture, also superseded ones. Raises LedgerError as `entries` does."""
        self.ledger.picture(picture)
        found = [(f.step, entry) for f in self._entries for entry in f.part(picture, entries_of) or ()]
        return standings(found, [d for f in self._decisions for d in f.part(picture, decisions_of) or ()])

    def searched(self) -> Callable[[str], frozenset[int]]:
        """Of a picture's key: the categories that a labeler looked for there, whatever it found."""
        searches = self.searches()

        @cache
        def of(*looked: bool) -> frozenset[int]:
            return frozenset().union(*(one.categories for one, has in zip(searches, looked, strict=True) if has))

        return lambda key: of(*(key not in one.unseen for one in searches))

    def current(self) -> Callable[[str, Sequence[Standing]], list[Standing]]:
        """Of a picture's key and masks: those that are neither superseded nor lost.

        Lost is what a model proposed in an earlier round and a later one of the same labeler, by name, which looked
        for the category there, did not propose again, not even as worse; what a reviewer decided is never lost.
        """
        searches = self.searches()

        @cache
        def newest(*looked: bool) -> dict[tuple[str, int], int]:
            """By labeler and category the last round that looked for it."""
            rounds = [one for one, has in zip(searches, looked, strict=True) if has]
            return {(one.labeler, category): one.round for one in rounds for category in one.categories}

        def of(key: str, found: Sequence[Standing]) -> list[Standing]:
            rounds = newest(*(key not in one.unseen for one in searches))
            again = {(s.entry.relative, s.entry.round) for s in found if s.entry.relation == "duplicate"}

            def is_lost(standing: Standing) -> bool:
                entry, word = standing.entry, standing.decision
                if entry.labeler is None or (word is not None and word.is_by_reviewer):
                    return False
                round = rounds.get((entry.labeler.name, entry.concept.category_id), entry.round)
                return entry.round < round and (entry.entry_id, round) not in again

            return [one for one in found if not one.is_superseded and not is_lost(one)]

        return of

    def searches(self) -> list[Search]:
        """Of the rounds, oldest first, that say who did not see which pictures."""
        return [
            Search(
                labeler=step.facts["labeler"]["name"],
                round=step.round,
                categories=frozenset(step.facts.get("searched", ())),
                unseen=frozenset(step.facts["unlabelled"]),
            )
            for step in self.chain
            if step.kind == "relabel" and {"labeler", "unlabelled"} <= step.facts.keys()
        ]

    def locate(self, entry_ids: Collection[str]) -> dict[str, Located]:
        """Where entries of this view are; the others are left out."""
        return {name: places[-1] for name, places in locate(self._entries, entry_ids).items()}

    def walk(self, *, with_checks: bool = True) -> Iterator[tuple[Picture, list[Standing]]]:
        """Every picture of the ledger in order, with all masks that were proposed for it.

        Args:
            with_checks: whether entries have their checks, which take as long to read as all the rest.
        """
        proposed = together(self._entries, entries_of, None if with_checks else LEAN)
        decided = together(self._decisions, decisions_of)
        entries, decisions = next(proposed, None), next(decided, None)
        for picture in self.ledger.pictures():
            mine: list[tuple[int, Entry]] = []
            words: list[Decision] = []
            if entries is not None and entries[0] == picture.key:
                mine = [(file.step, entry) for file, part in entries[1] for entry in part]
                entries = next(proposed, None)
            if decisions is not None and decisions[0] == picture.key:
                words = [decision for _, part in decisions[1] for decision in part]
                decisions = next(decided, None)
            yield picture, standings(mine, words)
        for left in (entries, decisions):
            if left is not None:
                raise LedgerError(
                    f"{left[1][0][0]} is damaged: picture {left[0]} is none of the ledger's, or out of order"
                )

    def kept(self) -> Iterator[Entry]:
        """The masks that are to be trained on, by picture."""
        return self._in_state("kept")

    def grey(self) -> Iterator[Entry]:
        """The masks that wait for a review, by picture."""
        return self._in_state("review")

    def _in_state(self, state: str) -> Iterator[Entry]:
        for _, found in self.walk():
            yield from (s.entry for s in found if s.entry.state == state and not s.is_superseded)


def files_of(ledger: Ledger, steps: Iterable[Step], kind: str) -> list[SortedFile]:
    """The files of some steps, `entries` or `decisions`, in the steps' order."""
    return [SortedFile(ledger.folder, stored.name, step.number) for step in steps for stored in step.named(kind)]
