"""Reviews of a ledger: its grey zone becomes a package, and what came back of one becomes a step; so do the words that
reviewers left in the viewer."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from dataengine.ledger.ledger import Ledger
from dataengine.ledger.records import Action, Concept, Decision, Entry, Picture
from dataengine.ledger.view import Standing, View
from dataengine.metrics.agreement import Agreement, Word, agreement, disputed
from dataengine.view.words import Said, lines, reviewers, seconds_of
from dataengine.view.words import read as words_in
from pipelines.review.marks import Refused
from pipelines.review.package import URL, Reviewed, Written, load, read, write


class Collected(NamedTuple):
    """What comes of the words of several reviewers.

    step: its number, None where nothing was decided. disputed: ids of masks that go on waiting, as they do not agree.
    ignored: how many words say something else of masks that were decided before, and so are left out. added: masks that
    were drawn where there was none.
    """

    step: int | None
    decisions: list[Decision]
    disputed: list[str]
    ignored: int
    added: int = 0


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
    facts: dict[str, Any] = {
        "reviewer": reviewer,
        "package_step": load(folder).step,
        "refused": counted(reviewed.refused),
        **({"seconds": reviewed.seconds} if reviewed.seconds else {}),
    }
    return ledger.append("review", view.round, reviewed.entries, reviewed.decisions, facts), reviewed


def take_all(
    ledger: Ledger, folder: str | Path, files: Mapping[str, str | Path]
) -> tuple[Collected, dict[str, list[Refused]]]:
    """Make what several reviewers decided of copies of a package one step of the ledger.

    All are read by the package's own step, and nothing is decided of what they dispute, as in `collect`. What was
    decided since that step stays, so that the same files can be taken again.

    Args:
        files: by the reviewer's name.
    Returns:
        what comes of it, and the records of each reviewer that were refused.
    """
    package, now = load(folder), ledger.view()
    view = ledger.view(package.step)
    found: dict[str, Reviewed] = {}
    words: dict[str, dict[str, Word]] = {}
    pictures: dict[str, str] = {}
    for name, file in files.items():
        found[name], known = read_for(ledger, view, folder, name, file)
        added = {entry.entry_id: entry for entry in found[name].entries if entry.supersedes is None}
        words[name] = words_of(found[name], known) | dict.fromkeys(added, Word(action="add"))
        pictures |= {entry_id: picture.key for entry_id, (picture, _) in known.items()}
        pictures |= {entry_id: entry.picture for entry_id, entry in added.items()}
    keys = sorted(set(pictures.values()))
    before = {s.entry.entry_id: s for key in keys for s in view.standings(key)}
    states = {s.entry.entry_id: s.entry.state for key in keys for s in now.standings(key)}
    masks = {entry.mask_id for key in keys for entry in now.entries(key) if entry.state != "rejected"}
    is_open = {name for name, s in before.items() if states.get(name) == s.entry.state}
    unsettled = disputed(words, pictures)
    decisions, entries = _undisputed(found.values(), is_open - unsettled, unsettled, masks)
    said = [decision for reviewed in found.values() for decision in reviewed.decisions]
    ignored = sum(d.entry_id not in is_open and d.state != states.get(d.entry_id) for d in said)
    refused = {name: reviewed.refused for name, reviewed in found.items()}
    waiting = [name for name in unsettled if name not in before or (name in is_open and states[name] == "review")]
    if not decisions and not entries:
        return Collected(None, decisions, waiting, ignored), refused
    earlier = [s.facts for s in ledger.chain() if s.kind == "review" and s.facts.get("package_step") == package.step]
    heard = {name for facts in earlier for name in (*facts.get("reviewers", ()), facts.get("reviewer"))}
    seconds = sum(reviewed.seconds for name, reviewed in found.items() if name not in heard)
    facts = {
        "reviewers": sorted(files),
        "package_step": package.step,
        "refused": counted(one for each in refused.values() for one in each),
        "disputed": len(waiting),
        **({"seconds": seconds} if seconds else {}),
    }
    step = ledger.append("review", now.round, entries, decisions, facts)
    drawn = sum(entry.supersedes is None for entry in entries)
    return Collected(step, decisions, waiting, ignored, drawn), refused


def _undisputed(
    found: Iterable[Reviewed], is_open: Set[str], unsettled: Set[str], masks: Set[str]
) -> tuple[list[Decision], list[Entry]]:
    """What is decided, and the masks that were drawn. masks: ids of those that are there already; who draws the same is
    not heard twice."""
    decisions: list[Decision] = []
    entries: dict[str, Entry] = {}  # by their masks
    for reviewed in found:
        mine = [decision for decision in reviewed.decisions if decision.entry_id in is_open]
        replacing = {decision.replacement for decision in mine}
        new = {
            entry.mask_id: entry
            for entry in reviewed.entries
            if entry.mask_id not in masks and entry.mask_id not in entries
            if (entry.entry_id in replacing if entry.supersedes else entry.entry_id not in unsettled)
        }
        entries |= new
        names = {None, *(entry.entry_id for entry in new.values())}
        decisions += [decision for decision in mine if decision.replacement in names]
    return decisions, list(entries.values())


def counted(refused: Iterable[Refused]) -> dict[str, int]:
    """How often each reason stands there."""
    return dict(sorted(Counter(one.reason for one in refused).items()))


def compare(
    ledger: Ledger, folder: str | Path, files: Mapping[str, str | Path]
) -> tuple[Agreement, dict[str, list[Refused]]]:
    """How far reviewers agree who each worked on a copy of a package, by the ledger as it was when that went out; and
    the records of each that were refused. files: by the reviewer's name.
    """
    view = ledger.view(load(folder).step)
    words: dict[str, dict[str, Word]] = {}
    refused: dict[str, list[Refused]] = {}
    for name, file in files.items():
        reviewed, known = read_for(ledger, view, folder, name, file)
        words[name], refused[name] = words_of(reviewed, known), reviewed.refused
    return agreement(words), refused


def words_of(reviewed: Reviewed, known: Mapping[str, tuple[Picture, Entry]]) -> dict[str, Word]:
    """What a reviewer made of each entry, for `agreement`."""
    drawn = {entry.entry_id: entry for entry in reviewed.entries}
    found = {}
    for decision in reviewed.decisions:
        picture, entry = known[decision.entry_id]
        mask = None if decision.replacement is None else drawn[decision.replacement].rle
        size = {"height": picture.height, "width": picture.width}
        mask_id = "" if decision.replacement is None else drawn[decision.replacement].mask_id
        found[decision.entry_id] = Word(action=decision.action, shown=entry.rle, drawn=mask, mask_id=mask_id, **size)
    return found


def collect(ledger: Ledger, folder: str | Path) -> Collected:
    """Make what reviewers said in the viewer a step of the ledger.

    Where they do not agree whether a mask is good, nothing is decided, and it goes on waiting. That a picture is bad
    is a word on all its masks that are not rejected yet, unless somebody else accepted one there: then nothing of the
    picture is decided. What was said of a mask that no longer waits is left out.

    Args:
        folder: of the reviewers' words.
    Raises:
        UserError: a file of words is damaged.
    """
    view, folder = ledger.view(), Path(folder)
    said = {name: words_in(folder, name) for name in reviewers(folder)}
    mentioned = {word.entry_id for each in said.values() for word in each}
    standing: dict[str, Standing] = {}  # masks of pictures of which anything was said
    members: dict[str, list[str]] = {}  # those that the word on a bad picture is on
    for picture, found in view.walk(with_checks=False):
        if not mentioned.isdisjoint(s.entry.entry_id for s in found):
            standing |= {s.entry.entry_id: s for s in found}
            members[picture.key] = [
                s.entry.entry_id for s in found if s.entry.state != "rejected" and not s.is_superseded
            ]
    waiting = {name for name, s in standing.items() if s.entry.state == "review" and not s.is_superseded}
    last = {reviewer: _last(each, standing, waiting, members) for reviewer, each in said.items()}
    decided = [
        (reviewer, entry_id, word, "kept" if word.action == "accept" else "rejected")
        for reviewer, mine in last.items()
        for entry_id, word in mine.items()
        if word.action != "skip"
    ]
    words: dict[str, dict[str, Word]] = {}
    for reviewer, entry_id, word, state in decided:
        if word.entry_id in waiting or state == standing[entry_id].entry.state == "kept":
            words.setdefault(reviewer, {})[entry_id] = Word(action=word.action)
    unsettled = disputed(words, {name: s.entry.picture for name, s in standing.items()})
    decisions = [
        _decision(entry_id, word.action, word, reviewer)
        for reviewer, entry_id, word, _ in decided
        if word.entry_id in waiting and word.action != "skip" and entry_id not in unsettled
    ]
    others = [(entry_id, state) for _, entry_id, word, state in decided if word.entry_id not in waiting]
    ignored = sum(state != standing[entry_id].entry.state for entry_id, state in others)
    disputes = [name for name in standing if name in unsettled & waiting]
    if not decisions:
        return Collected(None, decisions, disputes, ignored)
    seconds, read = _spent(ledger, folder, said)
    facts = {
        "reviewers": sorted({decision.by.removeprefix("reviewer:") for decision in decisions}),
        "disputed": len(disputes),
        "seconds": seconds,
        "read": read,
    }
    return Collected(ledger.append("review", view.round, (), decisions, facts), decisions, disputes, ignored)


def _last(
    said: Iterable[Said], standing: Mapping[str, Standing], waiting: Set[str], members: Mapping[str, list[str]]
) -> dict[str, Said]:
    """A reviewer's last word on each mask."""
    found: dict[str, Said] = {}
    for word in said:
        if word.entry_id in waiting and word.action == "whole_image_bad":
            found |= dict.fromkeys(members[standing[word.entry_id].entry.picture], word)
        elif word.entry_id in standing:
            found[word.entry_id] = word
    return found


def _spent(ledger: Ledger, folder: Path, names: Iterable[str]) -> tuple[float, dict[str, list[Any]]]:
    """Seconds of all words that no step has counted; and what of each file is counted now: its bytes and their sha256.

    Files only grow, so a step has counted the beginning of a file if that has the same sha256.
    """
    earlier = [step.facts.get("read", {}) for step in ledger.chain() if step.kind == "review"]
    seconds, read = 0.0, {}
    for name in names:
        data = lines(folder, name)
        counted = [tuple(facts[name]) for facts in earlier if name in facts]
        begin = max((size for size, sha256 in counted if _sha256(data[:size]) == sha256), default=0)
        seconds += seconds_of(data[begin:])
        read[name] = [len(data), _sha256(data)]
    return seconds, read


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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
