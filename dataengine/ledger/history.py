"""What changed between two steps of a ledger, and the whole story of a mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dataengine.ledger.ledger import Ledger
from dataengine.ledger.records import Decision, Entry
from dataengine.ledger.steps import Step
from dataengine.ledger.tables import LedgerError, decisions_of, entries_of, together
from dataengine.ledger.view import Standing, files_of, standings

Kind = Literal["added", "review", "confirmed", "rejected", "changed", "gone"]
KINDS = ("added", "review", "confirmed", "rejected", "changed", "gone")
MIN_PREFIX = 6  # characters of an entry's id that may stand for it


# --- what changed ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of an entry between two steps.

    kind: `added` is new and kept, `review` new and waiting, `confirmed` new and a duplicate of a mask that stays,
    `rejected` new and rejected otherwise; `changed` was there and stands otherwise; `gone` was there and is no longer.
    entry: as it stands after, or stood. before, after: its state, or `superseded`; None where it is not there.
    """

    kind: Kind
    entry: Entry
    before: str | None
    after: str | None


def diff(ledger: Ledger, before: int, after: int) -> Iterator[Change]:
    """What changed from one step to another, by picture, with one row group of each file in memory.

    Raises:
        LedgerError: there is no such step, or a file is damaged.
    """
    then, now = ({step.number for step in ledger.view(number).chain} for number in (before, after))
    steps = [step for step in ledger.steps if step.number in then | now]
    for page in _pages(ledger, steps):
        if not page.steps.isdisjoint(then ^ now):
            old, new = page.standing(then), page.standing(now)
            for entry_id in dict.fromkeys([*old, *new]):
                change = _change(old.get(entry_id), new.get(entry_id))
                if change is not None:
                    yield change


def _change(old: Standing | None, new: Standing | None) -> Change | None:
    before, after = (None if standing is None else _place(standing) for standing in (old, new))
    entry = (new or old).entry  # type: ignore[union-attr]
    if before == after or {before, after} == {None, "superseded"}:
        return None
    if after is None:
        kind: Kind = "gone"
    elif before is not None:
        kind = "changed"
    elif after == "rejected":
        kind = "confirmed" if (entry.relation, entry.reason) == ("duplicate", "confirmed") else "rejected"
    else:
        kind = "added" if after == "kept" else "review"
    return Change(kind=kind, entry=entry, before=before, after=after)


def _place(standing: Standing) -> str:
    return "superseded" if standing.is_superseded else standing.entry.state


# --- the story of a mask ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """Something that was said of a mask. step: in which. is_undone: that step was rolled back.

    entry: the proposal, or decision: on an entry. is_other: the entry is another mask's, which has a relation to it.
    """

    step: Step
    is_undone: bool
    entry: Entry | None = None
    decision: Decision | None = None
    is_other: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A mask, those that it stood for and those that stand for it. words: oldest first. standing: those of its entries
    that are in the newest step's view, as they stand."""

    picture: str
    words: tuple[Word, ...]
    standing: tuple[Standing, ...]


def blame(ledger: Ledger, name: str) -> list[Story]:
    """The whole history of a mask, or of all masks of a picture, undone steps too.

    Args:
        name: an entry's id or at least MIN_PREFIX characters of its beginning, or the key of a picture.
    Raises:
        LedgerError: there is no such entry or picture, several entries begin so, or a file is damaged.
    """
    for stored in (stored for step in ledger.steps for stored in step.files):
        ledger.check_file(stored)
    entry_id = None
    key = name
    if not ledger.has_picture(name):
        entry_id, key = _find(ledger, name)
    page = _page(ledger, key)
    chain = {step.number for step in ledger.chain()}
    standing = page.standing(chain)
    stories = []
    for group in _groups([entry for _, entry in page.entries]):
        if entry_id is None or entry_id in group:
            words = tuple(_words(ledger, page, group, chain))
            now = tuple(standing[one] for one in standing if one in group)
            stories.append(Story(picture=key, words=words, standing=now))
    return stories


def _find(ledger: Ledger, name: str) -> tuple[str, str]:
    """The entry that a name means, and its picture."""
    found = ledger.beginning(name) if len(name) >= MIN_PREFIX else {}
    if len(found) > 1:
        raise LedgerError(
            f"{ledger.folder.uri}: {len(found)} entries begin with {name}: {', '.join(sorted(found)[:3])} …"
        )
    if not found:
        raise LedgerError(f"{ledger.folder.uri}: there is no picture and no entry {name!r:.200}")
    return next(iter(found.items()))


def _words(ledger: Ledger, page: _Page, group: set[str], chain: set[int]) -> Iterator[Word]:
    found = []
    for step, entry in page.entries:
        is_own = entry.entry_id in group
        if is_own or entry.relative in group:
            found.append(
                (step, Word(step=ledger.steps[step], is_undone=step not in chain, entry=entry, is_other=not is_own))
            )
    for step, decision in page.decisions:
        if decision.entry_id in group:
            found.append((step, Word(step=ledger.steps[step], is_undone=step not in chain, decision=decision)))
    return (word for _, word in sorted(found, key=lambda one: one[0]))


def _groups(entries: Sequence[Entry]) -> list[set[str]]:
    """Ids of the entries that are the same mask, or stand for one another, in the order of the first of each."""
    owner: dict[str, set[str]] = {}
    by_mask: dict[str, str] = {}
    for entry in entries:
        owner.setdefault(entry.entry_id, {entry.entry_id})
        for other in (by_mask.setdefault(entry.mask_id, entry.entry_id), entry.supersedes):
            if other is not None and owner.setdefault(other, {other}) is not owner[entry.entry_id]:
                owner[other] |= owner[entry.entry_id]
                for member in owner[entry.entry_id]:
                    owner[member] = owner[other]
    return list({id(group): group for group in owner.values()}.values())


# --- pictures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """All that was said of a picture, by steps."""

    entries: list[tuple[int, Entry]]
    decisions: list[tuple[int, Decision]]

    @property
    def steps(self) -> set[int]:
        return {step for step, _ in (*self.entries, *self.decisions)}

    def standing(self, chain: set[int]) -> dict[str, Standing]:
        """How its entries stand, of what these steps say."""
        said = [(step, entry) for step, entry in self.entries if step in chain]
        found = standings(said, [decision for step, decision in self.decisions if step in chain])
        return {standing.entry.entry_id: standing for standing in found}


def _page(ledger: Ledger, key: str) -> _Page:
    files = {kind: files_of(ledger, ledger.steps, kind) for kind in ("entries", "decisions")}
    return _Page(
        entries=[(file.step, one) for file in files["entries"] for one in file.part(key, entries_of) or ()],
        decisions=[(file.step, one) for file in files["decisions"] for one in file.part(key, decisions_of) or ()],
    )


def _pages(ledger: Ledger, steps: Sequence[Step]) -> Iterator[_Page]:
    """The pictures of which these steps say something, in order."""
    decided = together(files_of(ledger, steps, "decisions"), decisions_of)
    waiting = next(decided, None)
    for key, parts in together(files_of(ledger, steps, "entries"), entries_of):
        words = []
        if waiting is not None and waiting[0] == key:  # every decision is on an entry of its picture
            words = [(file.step, one) for file, part in waiting[1] for one in part]
            waiting = next(decided, None)
        yield _Page(entries=[(file.step, one) for file, part in parts for one in part], decisions=words)
