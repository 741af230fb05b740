"""A round of labelling: pictures → tasks → entries, in a folder of its own; it can be stopped anywhere and resumed.

plan.json          what goes into the round, and its tasks
inputs.parquet     the pictures and the masks that are known of them, a row group for each task; gone at the end
entries/N.parquet  what came of task N, quarantine/N.parquet: its pictures that could not be labelled
commits/ID.json    the record of a finished task; what has none does not count
doubts/ID.json     of a task that is not finished: the pictures that the labeler hung on; gone at the end
result.json        at the end: the files in order, and the counts
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import islice
from typing import Any, Protocol

from dataengine.engine.executors import EngineError
from dataengine.engine.faults import fault_point
from dataengine.errors import UserError
from dataengine.keyed import key_hash
from dataengine.ledger.records import Entry, Picture
from dataengine.records import Account
from dataengine.store import quarantine
from dataengine.store.commits import DatasetError, canonical_json
from dataengine.store.files import Folder, is_temporary
from dataengine.store.lock import driver_lock
from pipelines.plan import difference
from pipelines.relabel import hands, labelers, tables
from pipelines.relabel import job as jobs
from pipelines.relabel.job import Done, Filters, Job, Known, Merge, PictureTask
from pipelines.relabel.labelers import Spec
from pipelines.relabel.worker import UNIT, Smaller

FORMAT = 1
PLAN, RESULT = "plan.json", "result.json"


class Snapshot(Protocol):
    """The pictures to label, with the masks that they have: a view of a ledger, or pictures alone."""

    def pictures(self) -> Iterable[Picture]:
        """In an order that is always the same."""

    def entries(self, key: str) -> Sequence[Entry]:
        """Of people and of earlier rounds; a `Known` tells who decided on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is done with proposals. facts: JSON values that tell other filters and rules apart. asks_again: whether the
    filters need the labeler and the pixels."""

    filters: Filters
    merge: Merge
    facts: Mapping[str, Any]
    asks_again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a round runs; only `seed`-like settings of the labeler, `per_task` and `round` change what it gives.

    engine: `local`, `ray`, or None for Ray where there is more than one worker. per_task: pictures of a task, which is
    what is done again where a process dies. max_bad, min_bad: share and number of bad pictures that end the round.
    """

    round: int = 1
    workers: int = 1
    engine: str | None = None
    num_gpus: float = 0.0
    per_task: int = 64
    batch: int = 8
    timeout_s: float = 600.0
    max_bad: float = 0.01
    min_bad: int = 10
    resume: bool = False


@dataclass(slots=True)
class Result:
    """What came of a round.

    plan: digest of what went into it. files: of the entries, in the order of the pictures. seconds, batch: of this run
    alone: how long it took, and the smallest batch that memory allowed (None: as given); they are in no file.
    """

    out: str
    plan: str = ""
    pictures: int = 0
    files: list[dict[str, Any]] = field(default_factory=list)
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    relations: Counter[str] = field(default_factory=Counter)
    account: Account = field(default_factory=Account)
    seconds: float = 0.0
    batch: int | None = None

    def facts(self) -> dict[str, Any]:
        """For the ledger's step."""
        return {
            "plan": self.plan,
            "pictures": self.pictures,
            "states": dict(sorted(self.states.items())),
            "relations": dict(sorted(self.relations.items())),
            "records": self.account.as_dict(),
        }


def run(
    snapshot: Snapshot,
    labeler: Spec,
    rules: Rules,
    out: str,
    settings: Settings,
    say: Callable[[str], None] = lambda text: None,
    tick: Callable[[int, int], None] = lambda done, pictures: None,
    order: Callable[[list[PictureTask]], list[PictureTask]] = list,
) -> Result:
    """Label the pictures of a snapshot; `entries_of` reads what came of it.

    Args:
        out: a new folder, or with `settings.resume` one that a round was begun in.
        say: told what a person should know. tick: told how many pictures are done, of how many.
        order: in which order tasks are started; the result does not depend on it.
    Raises:
        UserError: the labeler cannot be had, the folder holds something else, too many pictures are bad, the labeler
            hangs or dies again and again.
        OSError: the output cannot be written; what is committed stays.
    """
    started = time.monotonic()
    _check(settings)
    folder = Folder(os.path.abspath(Folder(out).path) if Folder(out).is_local else out.rstrip("/"))
    made = labelers.make(labeler)
    _refuse_foreign(folder, settings.resume)
    folder.make()
    with driver_lock(folder) as renew:
        _remove_temporary_files(folder)
        is_done = folder.exists(RESULT)
        tasks, pictures = _plan(snapshot, folder, _identity(made, rules, settings), settings.per_task, not is_done)
        job = Job(
            out=folder.uri,
            labeler=labeler,
            filters=rules.filters,
            merge=rules.merge,
            asks_again=rules.asks_again,
            round=settings.round,
            batch=settings.batch,
            timeout_s=settings.timeout_s,
        )
        tally = _Tally(Result(out=folder.uri, pictures=pictures), settings, say, tick)
        todo = _not_done(folder, tasks, tally)
        with closing(_working(job, order(todo), tally, settings)) as working:
            for done in working:
                renew()
                if done is not None:
                    tally.add(done)
                    fault_point("gathered")
        result = tally.result
        result.plan = folder.sha256(PLAN)
        result.files, result.quarantine = _files(tally.done)
        _remove_temporary_files(folder)  # of workers that were killed
        for name in (folder / jobs.DOUBTS).names():
            folder.delete(f"{jobs.DOUBTS}/{name}")
        _write_result(folder, result)
        folder.delete(jobs.INPUTS)
    result.seconds = time.monotonic() - started
    return result


def plan_of(snapshot: Snapshot, labeler: labelers.Labeler, rules: Rules, settings: Settings) -> str:
    """The digest of the plan of a round, whether it was begun or not."""
    groups = [(len(some), _digest(some, known)) for some, known in _groups(snapshot, settings.per_task)]
    return sha256(canonical_json(_with_inputs(_identity(labeler, rules, settings), groups))).hexdigest()


def plan_in(out: str) -> str | None:
    """The digest of the plan of the round that stands in a folder; None where there is none."""
    folder = Folder(out)
    return folder.sha256(PLAN) if folder.exists(PLAN) else None


def entries_of(result: Result) -> Iterator[Entry]:
    """The entries of a round in the order of its pictures, a file in memory at a time."""
    import pyarrow.parquet as pq

    folder = Folder(result.out)
    for stored in result.files:
        with folder.open(stored["name"]) as file:
            yield from tables.values_of(Entry, pq.read_table(file, use_threads=False).to_pylist())


def quarantined_in(result: Result) -> Iterator[str]:
    """Keys of the pictures of a round that could not be labelled."""
    folder = Folder(result.out)
    for stored in result.quarantine:
        with folder.open(stored["name"]) as file:
            yield from (row["record"] for row in quarantine.read(file))


def _check(settings: Settings) -> None:
    if settings.engine not in (None, "local", "ray"):
        raise UserError("--engine is ray or local")
    if settings.engine == "local" and settings.workers > 1:
        raise UserError("--engine local is one process; leave --engine out for several workers")
    if min(settings.per_task, settings.batch, settings.workers, settings.round) < 1:
        raise UserError("pictures of a task and of a batch, workers and round are at least 1")
    if not settings.timeout_s > 0 or not 0 <= settings.max_bad <= 1 or not 0 <= settings.num_gpus < math.inf:
        raise UserError("a timeout is more than 0 s, the budget of bad pictures from 0 to 1, GPUs are not negative")


def _refuse_foreign(folder: Folder, resume: bool) -> None:
    there = [name for name in folder.entries() if name not in (".lock", "locks/") and not is_temporary(name)]
    if PLAN in there and not resume:
        raise UserError(f"{folder.uri}: a round of labelling stands here; add --resume, or choose another folder")
    if there and PLAN not in there and jobs.INPUTS not in there:
        raise UserError(f"{folder.uri}: not empty, and no round of labelling ({there[0]}); choose another folder")


def _remove_temporary_files(folder: Folder) -> None:
    for name in ("", jobs.COMMITS, jobs.ENTRIES, jobs.QUARANTINE, jobs.DOUBTS):
        place = folder / name if name else folder
        for left in filter(is_temporary, place.names()):
            place.delete(left)


# --- plan ------------------------------------------------------------------------------------------------------------


def _identity(labeler: labelers.Labeler, rules: Rules, settings: Settings) -> dict[str, Any]:
    """What decides the result, apart from the pictures: no paths, hosts or times."""
    return {
        "format": FORMAT,
        "labeler": asdict(labelers.record_of(labeler)),
        "rules": dict(rules.facts),
        "round": settings.round,
        "per_task": settings.per_task,
    }


def _with_inputs(identity: dict[str, Any], groups: Sequence[tuple[int, str]]) -> dict[str, Any]:
    pictures = sum(number for number, _ in groups)
    return {**identity, "pictures": pictures, "inputs": key_hash(*(digest for _, digest in groups)).hex()}


def _plan(
    snapshot: Snapshot, folder: Folder, identity: dict[str, Any], per_task: int, write: bool
) -> tuple[list[PictureTask], int]:
    """The tasks, and how many pictures there are; their inputs are written, a row group for each task.

    Raises:
        UserError: the folder holds a round of something else, or there is no picture.
    """
    with folder.staging(jobs.INPUTS) as staged:
        groups = _write_inputs(snapshot, staged, per_task)
        if not groups:
            raise UserError("there is no picture to label")
        pictures = sum(number for number, _ in groups)
        identity = _with_inputs(identity, groups)
        if folder.exists(PLAN):
            before = _read_plan(folder)
            if before != identity:
                raise UserError(
                    f"{folder.uri}: cannot be resumed, because what goes into it changed: "
                    f"{difference(before, identity)}"
                )
        if write:
            folder.delete(jobs.INPUTS)  # another version of Arrow writes other bytes
            folder.publish(staged, jobs.INPUTS)
            if not folder.exists(PLAN):
                folder.write_new(PLAN, canonical_json(identity))
            fault_point("plan")
    base = key_hash(json.dumps(identity, sort_keys=True)).hex()
    tasks, start = [], 0
    for group, (number, digest) in enumerate(groups):
        task_id = key_hash(base, group, digest).hex()
        tasks.append(PictureTask(task_id=task_id, group=group, start=start, stop=start + number))
        start += number
    return tasks, pictures


def _write_inputs(snapshot: Snapshot, staged: Any, per_task: int) -> list[tuple[int, str]]:
    """Of each row group how many pictures it has, and a digest of what it says of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([
        ("picture", pa.struct(list(tables.schema_of(Picture)))),
        ("entries", pa.list_(pa.struct(list(tables.schema_of(Known))))),
    ])  # fmt: skip
    groups: list[tuple[int, str]] = []
    keys: set[bytes] = set()
    with pq.ParquetWriter(staged, schema, compression="zstd") as writer:
        for some, known in _groups(snapshot, per_task):
            arrays = [tables.column_of(Picture, some), tables.lists_of(Known, known)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=per_task)
            for picture in some:
                key = key_hash(picture.key)
                if key in keys:
                    raise UserError(f"picture {picture.key!r}: there are two of this key")
                keys.add(key)
            groups.append((len(some), _digest(some, known)))
    return groups


def _groups(snapshot: Snapshot, per_task: int) -> Iterator[tuple[list[Picture], list[list[Known]]]]:
    """The pictures of each task, and the masks that are known of each."""
    pictures = iter(snapshot.pictures())
    while some := list(islice(pictures, per_task)):
        yield some, [[jobs.known_of(one) for one in snapshot.entries(picture.key)] for picture in some]


def _digest(pictures: Sequence[Picture], known: Sequence[Sequence[Known]]) -> str:
    told = [
        [p.key, p.sha256, p.height, p.width, list(p.exhaustive), list(p.absent), [_told(entry) for entry in masks]]
        for p, masks in zip(pictures, known, strict=True)
    ]
    return key_hash(json.dumps(told)).hex()


def _told(entry: Known) -> list[str]:
    word = entry.decision
    return [entry.entry_id, entry.state, *(() if word is None else (word.by, word.action))]


def _read_plan(folder: Folder) -> dict[str, Any]:
    try:
        plan: dict[str, Any] = json.loads(folder.read(PLAN))
    except ValueError as error:
        raise DatasetError(f"{folder.uri}: {PLAN} is damaged: {error}") from None
    return plan


# --- tasks -----------------------------------------------------------------------------------------------------------


def _not_done(folder: Folder, tasks: Sequence[PictureTask], tally: _Tally) -> list[PictureTask]:
    """The tasks without a record; what such a task has published is deleted, that of others compared and counted."""
    todo = []
    standing = set((folder / jobs.ENTRIES).names()) | set((folder / jobs.QUARANTINE).names())
    for task in tasks:
        done = jobs.read(folder, task.task_id)
        if done is None:
            if f"{task.group:06}.parquet" in standing:
                jobs.discard(folder, task)
            todo.append(task)
            continue
        for stored in done.files():
            if folder.kind(stored.name) != "file" or folder.sha256(stored.name) != stored.sha256:
                raise DatasetError(f"{folder.uri}: {stored.name} is not the file that task {task.task_id} committed")
        tally.add(done)
    return todo


def _working(job: Job, todo: list[PictureTask], tally: _Tally, settings: Settings) -> Generator[Done | None]:
    if settings.engine == "ray" or (settings.engine is None and settings.workers > 1):
        return hands.run_ray(job, todo, tally.smaller, settings.workers, settings.num_gpus)
    return hands.run_here(job, todo, tally.smaller)


class _Tally:
    """Counts of what is done, and the budget of what is bad."""

    def __init__(
        self, result: Result, settings: Settings, say: Callable[[str], None], tick: Callable[[int, int], None]
    ) -> None:
        self.result, self.done = result, list[Done]()
        self._settings, self._say, self._tick = settings, say, tick

    def smaller(self, event: Smaller) -> None:
        self.result.batch = min(event.batch, self.result.batch or event.batch)
        self._say(f"memory was too little for a batch of more; a worker goes on with {event.batch} pictures a batch")

    def add(self, done: Done) -> None:
        """Raises BudgetError where too many pictures are bad."""
        result = self.result
        self.done.append(done)
        result.states.update(done.states)
        result.relations.update(done.relations)
        result.account.add(done.account)
        self._tick(result.account.read[UNIT], result.pictures)
        bad = result.account.num_quarantined()
        limits = self._settings
        if quarantine.over_budget(bad, result.pictures, max_fraction=limits.max_bad, min_count=limits.min_bad):
            reasons = dict(result.account.quarantined[UNIT].most_common(5))
            raise quarantine.BudgetError(
                f"{bad} pictures are quarantined, more than the budget of {limits.min_bad} or {limits.max_bad:.1%} of "
                f"{result.pictures}: {reasons}. See the quarantine folder; raise the budget and --resume to go on"
            )


def _files(done: Sequence[Done]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    ordered = sorted(done, key=lambda one: one.start)
    entries = [asdict(one.entries) for one in ordered if one.entries is not None]
    return entries, [asdict(one.quarantine) for one in ordered if one.quarantine is not None]


def _write_result(folder: Folder, result: Result) -> None:
    result.account.check(RESULT)
    if result.account.read[UNIT] != result.pictures:
        raise EngineError(f"{folder.uri}: {result.account.read[UNIT]} of {result.pictures} pictures are done")
    told = {**result.facts(), "entries": result.files, "quarantine": result.quarantine}
    folder.write_new(RESULT, canonical_json(told))
    fault_point("result")
