"""Reviews of a ledger: its grey zone becomes a package, and what came back of one becomes a step; so do the words that
reviewers left in the viewer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dataengine.ledger.ledger import Ledger
from dataengine.ledger.records import Action, Concept, Decision, Entry, Picture
from dataengine.ledger.view import View
from dataengine.metrics.agreement import Agreement, Word, agreement
from dataengine.view.words import Said, reviewers
from dataengine.view.words import read as words_in
from pipelines.review.package import URL, Reviewed, Written, load, read, write


def grey(view: View) -> Iterator[tuple[Picture, list[Entry]]]:
    """Pictures with the masks that wait for a review, where there are any."""
    for picture, found in view.walk():
        entries = [s.entry for s in found if s.entry.state == "review" and not s.is_superseded]
        if entries:
            yield picture, entries


def export(
    ledger: Ledger,
    folder: str | Path,
    layout: str,
    *,
    step: int | None = None,
    pictures: str = "copy",
    url: str = URL,
    limit: int | None = None,
) -> Written:
    """Write the grey zone of a ledger as a package; see `package.write`. limit: of pictures."""
    view = ledger.view(step)
    work = islice(grey(view), limit)
    return write(folder, layout, work, concepts=_concepts(ledger), step=view.step, pictures=pictures, url=url)


def read_for(
    ledger: Ledger, view: View, folder: str | Path, reviewer: str, file: str | Path | None = None
) -> tuple[Reviewed, dict[str, tuple[Picture, Entry]]]:
    """What a reviewer made of a package, by the ledger as it stands; and the entries of its pictures by their ids."""
    known: dict[str, tuple[Picture, Entry]] = {}
    superseded: set[str] = set()
    work: list[tuple[Picture, list[Entry]]] = []
    for key in sorted({slot.key for slot in load(folder).slots}):
        if not ledger.has_picture(key):
            continue
        picture, standings = ledger.picture(key), view.standings(key)
        work.append((picture, [standing.entry for standing in standings]))
        known |= {standing.entry.entry_id: (picture, standing.entry) for standing in standings}
        superseded |= {standing.entry.entry_id for standing in standings if standing.is_superseded}
    reviewed = read(
        folder,
        work,
        reviewer=reviewer,
        round=view.round,
        concepts=_concepts(ledger),
        superseded=superseded,
        file=file,
    )
    return reviewed, known


def take(
    ledger: Ledger, folder: str | Path, reviewer: str, file: str | Path | None = None
) -> tuple[int | None, Reviewed]:
    """Make what came back of a package a step of the ledger; its number, None where nothing was decided."""
    view = ledger.view()
    reviewed, _ = read_for(ledger, view, folder, reviewer, file)
    if not reviewed.decisions and not reviewed.entries:
        return None, reviewed
    seconds = [decision.seconds for decision in reviewed.decisions if decision.seconds is not None]
    facts: dict[str, Any] = {
        "reviewer": reviewer,
        "package_step": load(folder).step,
        "refused": dict(sorted(Counter(refused.reason for refused in reviewed.refused).items())),
        **({"seconds": sum(seconds)} if seconds else {}),
    }
    return ledger.append("review", view.round, reviewed.entries, reviewed.decisions, facts), reviewed


def compare(ledger: Ledger, folder: str | Path, files: Mapping[str, str | Path]) -> Agreement:
    """How far reviewers agree who each worked on a copy of a package. files: by the reviewer's name."""
    view = ledger.view()
    words: dict[str, dict[str, Word]] = {}
    for name, file in files.items():
        reviewed, known = read_for(ledger, view, folder, name, file)
        words[name] = words_of(reviewed, known)
    return agreement(words)


def words_of(reviewed: Reviewed, known: Mapping[str, tuple[Picture, Entry]]) -> dict[str, Word]:
    """What a reviewer made of each entry, for `agreement`."""
    drawn = {entry.entry_id: entry.rle for entry in reviewed.entries}
    found = {}
    for decision in reviewed.decisions:
        picture, entry = known[decision.entry_id]
        mask = None if decision.replacement is None else drawn[decision.replacement]
        size = {"height": picture.height, "width": picture.width}
        found[decision.entry_id] = Word(action=decision.action, shown=entry.rle, drawn=mask, **size)
    return found


def collect(ledger: Ledger, folder: str | Path) -> tuple[int | None, list[Decision], list[str]]:
    """Make what reviewers said in the viewer a step of the ledger.

    Where they do not agree whether a mask is good, nothing is decided, and it goes on waiting. That a picture is bad
    is a word on all its masks that are not rejected yet. What was said of a mask that no longer waits is left out.

    Args:
        folder: of the reviewers' words.
    Returns:
        number of the step, None where nothing was decided; the decisions; ids of the entries that are disputed.
    Raises:
        UserError: a file of words is damaged.
    """
    view = ledger.view()
    waiting = {entry.entry_id: entry.picture for _, entries in grey(view) for entry in entries}
    words: dict[str, list[Decision]] = {}
    for reviewer in reviewers(Path(folder)):
        mine: dict[str, Said] = {}
        for said in words_in(Path(folder), reviewer):  # the last one on an entry counts
            if said.entry_id in waiting:
                mine |= dict.fromkeys(_meant(view, said, waiting[said.entry_id]), said)
        for entry_id, said in mine.items():
            if said.action != "skip":
                words.setdefault(entry_id, []).append(_decision(entry_id, said.action, said, reviewer))
    disputed = [entry_id for entry_id, found in words.items() if len({word.state for word in found}) > 1]
    decisions = [word for entry_id, found in words.items() if entry_id not in set(disputed) for word in found]
    if not decisions:
        return None, decisions, disputed
    facts = {
        "reviewers": sorted({decision.by.removeprefix("reviewer:") for decision in decisions}),
        "disputed": len(disputed),
        "seconds": sum(decision.seconds or 0.0 for decision in decisions),
    }
    return ledger.append("review", view.round, (), decisions, facts), decisions, disputed


def _meant(view: View, said: Said, picture: str) -> list[str]:
    """The entries that a word is on."""
    if said.action != "whole_image_bad":
        return [said.entry_id]
    return [entry.entry_id for entry in view.entries(picture) if entry.state != "rejected"]


def _decision(entry_id: str, action: Action, said: Said, reviewer: str) -> Decision:
    """seconds: counted once, where a word is on several entries."""
    return Decision(
        entry_id=entry_id,
        state="kept" if action == "accept" else "rejected",
        by=f"reviewer:{reviewer}",
        action=action,
        seconds=said.seconds if entry_id == said.entry_id else None,
    )


def _concepts(ledger: Ledger) -> Sequence[Concept]:
    return [ledger.concept(category.id) for category in ledger.categories]
