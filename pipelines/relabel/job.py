"""What travels between processes: the job, its tasks, and the record of a finished one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from dataengine.ledger.records import Check, Decision, Entry, Picture, Proposal
from dataengine.records import Account
from dataengine.store.commits import DatasetError, canonical_json
from dataengine.store.files import Folder, Stored
from pipelines.relabel.labelers import Labeler, Question, Spec

COMMITS, ENTRIES, QUARANTINE, DOUBTS = "commits", "entries", "quarantine", "doubts"
INPUTS = "inputs.parquet"

Checked = tuple[Proposal, tuple[Check, ...]]
Filters = Callable[[Sequence[Proposal], Question, Labeler | None], list[Checked]]
Merge = Callable[[Sequence[Checked], Sequence[Entry], Sequence[Entry], Picture], list[Entry]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known(Entry):
    """A mask that a picture has, as it stands. decision: the newest word on it, if there is one."""

    decision: Decision | None = None


def known_of(entry: Entry, decision: Decision | None = None) -> Known:
    """An entry, as it stands, with the newest word on it."""
    if isinstance(entry, Known):
        return entry
    return Known(**{one.name: getattr(entry, one.name) for one in fields(Entry)}, decision=decision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A round of labelling.

    out: folder of its files. filters: what measures a picture's proposals; with `asks_again` it is given the pixels and
    the labeler, and runs where that does. merge: what makes entries of them, given the human and the earlier ones,
    each a `Known`. batch: pictures in a call of the labeler, at most. timeout_s: for such a call.
    """

    out: str
    labeler: Spec
    filters: Filters
    merge: Merge
    round: int
    asks_again: bool = False
    batch: int = 8
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureTask:
    """Some pictures to label. group: row group of INPUTS that holds them. start, stop: their numbers in all."""

    task_id: str
    group: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The record of a finished task.

    entries: the file of its entries, quarantine: of its bad pictures; None where there are none. states, relations:
    of the entries. account: of pictures and masks; a mask is built when it becomes an entry, kept or not.
    """

    task_id: str
    start: int
    stop: int
    entries: Stored | None
    quarantine: Stored | None
    states: dict[str, int]
    relations: dict[str, int]
    account: Account

    def files(self) -> list[Stored]:
        return [stored for stored in (self.entries, self.quarantine) if stored is not None]

    def as_dict(self) -> dict[str, Any]:
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Done:
        values = dict(data)
        for key in ("entries", "quarantine"):
            values[key] = Stored(**values[key]) if values[key] is not None else None
        values["account"] = Account.from_dict(values["account"])
        return cls(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, Account):
        return value.as_dict()
    return asdict(value) if isinstance(value, Stored) else value


def write(out: Folder, done: Done) -> None:
    """Publish the record of a task whose files are published."""
    out.write_new(f"{COMMITS}/{done.task_id}.json", canonical_json(done.as_dict()))


def read(out: Folder, task_id: str) -> Done | None:
    """The record of a task, or None if it is not done."""
    name = f"{COMMITS}/{task_id}.json"
    try:
        data = out.read(name)
    except FileNotFoundError:
        return None
    try:
        return Done.from_dict(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{out.uri}: {name} is damaged: {error}; delete it to do the task again") from None


def discard(out: Folder, task: PictureTask) -> None:
    """Delete what an attempt has published of a task without a record: it does not count, and a labeler that is not
    the same to the last bit twice could not do the task again beside it. Only where no such attempt is under way."""
    for folder in (ENTRIES, QUARANTINE):
        out.delete(f"{folder}/{task.group:06}.parquet")
