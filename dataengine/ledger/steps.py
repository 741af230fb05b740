"""The steps of a ledger: what each added, to which earlier one. A step is published last and never changes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dataengine.ledger.tables import LedgerError
from dataengine.store.commits import canonical_json, version_of
from dataengine.store.files import Folder, Stored, is_temporary

Kind = Literal["init", "relabel", "review", "rollback"]
FOLDER = "steps"
PICTURES = "pictures"  # files of pictures that had no place of their own
_NAME = re.compile(r"([0-9]{6})\.json")
_FILE = re.compile(r"(entries|decisions|quarantine)/([0-9]{6})/[0-9]{5}\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step. parent: the step that it adds to, None for the first. round: of relabeling, 0 for human annotations.

    counts: of its entries by the state that they were written with, and of its decisions by action. facts: what else
    who wrote it says of it, JSON values. version: sha256 (hex) of all else and of the parent's version.
    """

    number: int
    parent: int | None
    kind: Kind
    round: int
    files: tuple[Stored, ...] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""

    def named(self, kind: str) -> list[Stored]:
        """Its files of `entries`, `decisions` or `quarantine`."""
        return [stored for stored in self.files if stored.name.startswith(f"{kind}/")]


def name_of(number: int) -> str:
    return f"{FOLDER}/{number:06d}.json"


def write(folder: Folder, step: Step, earlier: Sequence[Step]) -> Step:
    """Publish a step whose files are published. Raises NondeterminismError: another step has its number."""
    data = {
        "number": step.number,
        "parent": step.parent,
        "parent_version": None if step.parent is None else earlier[step.parent].version,
        "kind": step.kind,
        "round": step.round,
        "files": [{"name": s.name, "bytes": s.bytes, "sha256": s.sha256} for s in step.files],
        "counts": step.counts,
        "facts": step.facts,
    }
    try:
        data["version"] = version_of(data)
    except (TypeError, ValueError) as error:
        raise LedgerError(f"{folder.uri}: the facts of a step must be JSON values: {error}") from None
    folder.write_new(name_of(step.number), canonical_json(data))
    return _step(json.loads(canonical_json(data)))


def read_all(folder: Folder, known: Sequence[Step] = ()) -> list[Step]:
    """All steps by number. known: the first ones, if they were read before.

    Raises:
        LedgerError: one is missing, damaged or was changed; the message names it.
    """
    numbers = sorted(int(m[1]) for name in (folder / FOLDER).names() if (m := _NAME.fullmatch(name)))
    steps = list(known)
    for number in range(len(known), numbers[-1] + 1 if numbers else 1):
        steps.append(_read(folder, number, steps))
    return steps


def _read(folder: Folder, number: int, earlier: Sequence[Step]) -> Step:
    name = name_of(number)
    try:
        data = json.loads(folder.read(name))
        step = _step(data)
    except FileNotFoundError:
        raise LedgerError(f"{folder.uri}: {name} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LedgerError(f"{folder.uri}: {name} is damaged: {error}") from None
    if step.version != version_of(data) or step.number != number:
        raise LedgerError(f"{folder.uri}: {name} was changed after it was written: its version does not match")
    is_first = step.parent is None and data["parent_version"] is None and number == 0
    if not is_first:
        if step.parent is None or not 0 <= step.parent < number:
            raise LedgerError(f"{folder.uri}: {name} has no earlier step as its parent")
        if data["parent_version"] != earlier[step.parent].version:
            raise LedgerError(f"{folder.uri}: {name} was written for another {name_of(step.parent)} than there is")
    return step


def _step(data: dict[str, Any]) -> Step:
    files = tuple(Stored(**stored) for stored in data["files"])
    for stored in files:
        match = _FILE.fullmatch(stored.name)
        if match is None or int(match[2]) != data["number"]:
            raise ValueError(f"{stored.name!r} is no file of this step")
    if data["kind"] not in get_args(Kind):
        raise ValueError(f"there is no kind of step {data['kind']!r}")
    numbers = [data["number"], data["round"], *([] if data["parent"] is None else [data["parent"]])]
    if any(type(number) is not int for number in numbers):
        raise ValueError("its number, parent and round must be whole numbers")
    if not isinstance(data["counts"], dict) or not isinstance(data["facts"], dict):
        raise ValueError("its counts and facts must be objects")
    names = ("number", "parent", "kind", "round", "counts", "facts", "version")
    return Step(files=files, **{name: data[name] for name in names})


def chain(steps: Sequence[Step], number: int) -> list[Step]:
    """A step and those that it adds to, from the first one on."""
    found, at = [], steps[number]
    while True:
        found.append(at)
        if at.parent is None:
            return found[::-1]
        at = steps[at.parent]


def strays(folder: Folder, steps: Sequence[Step]) -> list[str]:
    """Files in the folders of steps that belong to none; what a killed process left among them."""
    known = {name_of(step.number) for step in steps} | {stored.name for step in steps for stored in step.files}
    places = (FOLDER, "entries", "decisions", "quarantine")
    found = [f"{place}/{name}" for place in places for name in (folder / place).names(recursive=True)]
    return [name for name in found if name not in known]


def remove_leftovers(folder: Folder, steps: Sequence[Step]) -> None:
    """Delete what killed processes left of steps that they did not publish. Only for the owner of the lock."""
    for name in strays(folder, steps):
        match = _FILE.fullmatch(name)
        if is_temporary(name) or (match is not None and int(match[2]) >= len(steps)):
            folder.delete(name)
    for place in (folder, folder / PICTURES):
        for name in filter(is_temporary, place.names()):
            place.delete(name)
