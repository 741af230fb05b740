"""Who does the tasks: a worker in this process, or actors on Ray that load their labeler once.

A task that did not come to its end is done again with its doubtful pictures asked one by one; a picture that a labeler
hangs on or dies of when it is asked alone is quarantined. On Ray a labeler that hangs is ended with its process. In
this process nothing can end it: its thread is left behind and a new labeler made, a few times at most. What it hung on
is written down, so that a round that is resumed goes on without it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dataengine.engine.executors import TICK_S, EngineError, ray_session
from dataengine.store.commits import canonical_json
from dataengine.store.files import Folder
from pipelines.relabel import job as jobs
from pipelines.relabel.job import Done, Job, PictureTask
from pipelines.relabel.worker import Asking, Doubt, Event, HangError, Smaller, Worker

MAX_LEFT_BEHIND = 3  # threads of labelers that hang, each with its memory and perhaps a core
MAX_DEATHS = 4  # of a task's workers, none of them while its labeler was asked
LOAD_S = 1800.0  # for an actor to load its labeler, once it has begun
GRACE_S = 30.0  # for an actor to say itself that its labeler hangs; one that holds the interpreter's lock cannot
HANGS, DIED = "labeler_hangs", "labeler_died"

Tell = Callable[[Smaller], None]


@dataclass(slots=True)
class _Attempt:
    """A task under way, and what is known of its pictures."""

    task: PictureTask
    doubt: Doubt = field(default_factory=Doubt)
    asking: tuple[int, ...] = ()
    since: float = 0.0
    deaths: int = 0

    def note(self, event: Event) -> None:
        self.asking = event.rows if isinstance(event, Asking) else ()
        self.since = time.monotonic()

    def again(self, out: Folder, rows: tuple[int, ...], reason: str, message: str) -> _Attempt:
        """The next attempt. rows: pictures that the labeler had when it was lost."""
        jobs.discard(out, self.task)
        deaths = self.deaths + (not rows)
        if deaths > MAX_DEATHS:
            raise EngineError(f"{self.task}: its worker died {deaths} times")
        if len(rows) == 1 and (reason == HANGS or rows[0] in self.doubt.alone):  # any process may be killed once
            doubt = replace(self.doubt, lost={**(self.doubt.lost or {}), rows[0]: (reason, message)})
        else:
            doubt = replace(self.doubt, alone=self.doubt.alone | set(rows))
        return _Attempt(task=self.task, doubt=doubt, deaths=deaths)


def run_here(job: Job, tasks: Sequence[PictureTask], tell: Tell) -> Generator[Done | None]:
    """Do the tasks one after the other in this process.

    Raises:
        EngineError: the labeler hangs again and again.
    """
    if not tasks:
        return
    worker, left_behind, out = Worker(job), 0, Folder(job.out)
    for task in tasks:
        attempt, is_done = _Attempt(task, _doubt(out, job, task)), False
        while not is_done:
            try:
                for event in worker.run(task, attempt.doubt):
                    if isinstance(event, Smaller):
                        tell(event)
                    yield event if isinstance(event, Done) else None
                is_done = True
            except HangError as error:
                left_behind += 1
                attempt = attempt.again(out, error.rows, HANGS, _hangs(job))
                _note(out, job, attempt)
                if left_behind > MAX_LEFT_BEHIND:
                    raise EngineError(
                        f"the labeler hung {left_behind} times, last in {task}; what is committed stays, "
                        "and --resume goes on without the pictures that it hung on. "
                        "--engine ray ends a labeler that hangs, and goes on"
                    ) from None
                worker = Worker(job)


def _note(out: Folder, job: Job, attempt: _Attempt) -> None:
    """Write down what is known of a task's pictures."""
    doubt = attempt.doubt
    told = {"timeout_s": job.timeout_s, "alone": sorted(doubt.alone), "lost": sorted((doubt.lost or {}).items())}
    out.replace(f"{jobs.DOUBTS}/{attempt.task.task_id}.json", canonical_json(told))


def _doubt(out: Folder, job: Job, task: PictureTask) -> Doubt:
    """What was written down of a task's pictures; nothing, where the labeler has more time now."""
    try:
        told = json.loads(out.read(f"{jobs.DOUBTS}/{task.task_id}.json"))
    except FileNotFoundError:
        return Doubt()
    if job.timeout_s > told["timeout_s"]:
        return Doubt()
    lost = {row: (reason, message) for row, (reason, message) in told["lost"]}
    return Doubt(alone=frozenset(told["alone"]), lost=lost)


def _hangs(job: Job) -> str:
    return f"the labeler did not answer within {job.timeout_s:g} s"


# --- Ray -------------------------------------------------------------------------------------------------------------


class _RemoteWorker:
    """A worker in a process of its own."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def load(self) -> Generator[None]:
        """Says that it begins, for until then it waits for room on the cluster."""
        yield
        self._worker = Worker(self._job)

    def run(self, task: PictureTask, doubt: Doubt) -> Generator[Event | HangError]:
        """The events of a task; at its end a hang, which cannot be raised through Ray with what it knows."""
        try:
            yield from self._worker.run(task, doubt)
        except HangError as error:
            yield error


@dataclass(slots=True)
class _Hand:
    """An actor and what it does. ready: of its labeler's loading, until that is done; loads_since: when it began, s.
    events: of its task."""

    actor: Any
    ready: Any = None
    loads_since: float | None = None
    events: Any = None
    attempt: _Attempt | None = None


def run_ray(
    job: Job, tasks: Sequence[PictureTask], tell: Tell, workers: int, num_gpus: float = 0.0
) -> Generator[Done | None]:
    """Do the tasks on Ray: `workers` actors with a labeler each, one task at a time in each. Yields None meanwhile.

    Actors that the cluster has no room for are waited for while the others work. num_gpus: of each.

    Raises:
        EngineError: the cluster does not answer, or workers die again and again without a labeler at work.
        Exception: what a worker raised, as it raised it.
    """
    if not tasks:
        return
    with ray_session(workers) as ray:
        remote = ray.remote(num_cpus=1, num_gpus=num_gpus, max_restarts=0)(_RemoteWorker)
        crew = _Crew(ray, remote, ray.put(job), job, tell)
        try:
            yield from crew.work(tasks, min(workers, len(tasks)))
        finally:
            crew.dismiss()


class _Crew:
    """The actors, and the tasks that they have not done."""

    def __init__(self, ray: Any, remote: Any, shared: Any, job: Job, tell: Tell) -> None:
        self._ray, self._remote, self._shared, self._job, self._tell = ray, remote, shared, job, tell
        self._out = Folder(job.out)
        self._hands: list[_Hand] = []
        self._waiting: list[_Attempt] = []
        self._failed_starts = 0

    def work(self, tasks: Sequence[PictureTask], number: int) -> Generator[Done | None]:
        self._waiting = [_Attempt(task, _doubt(self._out, self._job, task)) for task in reversed(tasks)]
        for _ in range(number):
            self._hire()
        while self._waiting or any(hand.attempt for hand in self._hands):
            self._assign()
            waited = {hand.events or hand.ready: hand for hand in self._hands if hand.events or hand.ready}
            done, _ = self._ray.wait(list(waited), num_returns=1, timeout=TICK_S)
            yield from [self._hear(waited[reference]) for reference in done] or [None]
            self._end_the_silent()

    def dismiss(self) -> None:
        """End the actors; what one had begun is not committed, or is."""
        for hand in self._hands:
            self._ray.kill(hand.actor)
        self._hands.clear()

    def _hire(self) -> None:
        actor = self._remote.remote(self._shared)
        self._hands.append(_Hand(actor=actor, ready=actor.load.options(num_returns="streaming").remote()))

    def _assign(self) -> None:
        for hand in self._hands:
            if hand.ready is None and hand.attempt is None and self._waiting:
                hand.attempt = self._waiting.pop()
                call = hand.actor.run.options(num_returns="streaming")
                hand.events = call.remote(hand.attempt.task, hand.attempt.doubt)

    def _hear(self, hand: _Hand) -> Done | None:
        """Take the next word of an actor; returns what it has done."""
        try:
            if hand.ready is not None:
                self._ray.get(next(hand.ready))
                hand.loads_since = time.monotonic()
                return None
            event = self._ray.get(next(hand.events))
        except StopIteration:
            hand.ready = hand.loads_since = hand.events = hand.attempt = None
            return None
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            self._replace(hand, DIED, f"the labeler's process died ({type(error).__name__})")
            return None
        assert hand.attempt is not None
        if isinstance(event, HangError):
            hand.attempt.asking = event.rows
            self._replace(hand, HANGS, _hangs(self._job))
            return None
        hand.attempt.note(event)
        if isinstance(event, Smaller):
            self._tell(event)
        return event if isinstance(event, Done) else None

    def _end_the_silent(self) -> None:
        """Replace actors whose labeler hangs so that they cannot even say so, or does not get loaded."""
        for hand in list(self._hands):
            if hand.loads_since is not None and time.monotonic() - hand.loads_since > LOAD_S:
                self._replace(hand, HANGS, f"it was not loaded within {LOAD_S:g} s")
                continue
            attempt = hand.attempt
            silent_s = time.monotonic() - attempt.since if attempt is not None and attempt.asking else 0.0
            if silent_s > self._job.timeout_s + GRACE_S:
                self._replace(hand, HANGS, _hangs(self._job))

    def _replace(self, hand: _Hand, reason: str, message: str) -> None:
        """Put another actor in the place of one that is lost, and its task back in front."""
        self._hands.remove(hand)
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(hand.actor)
        if hand.attempt is None:
            self._failed_starts += 1
            if self._failed_starts > MAX_DEATHS:
                raise EngineError(f"{self._failed_starts} workers ended before their labeler was loaded: {message}")
        elif jobs.read(self._out, hand.attempt.task.task_id) is None:
            self._waiting.append(hand.attempt.again(self._out, hand.attempt.asking, reason, message))
        else:  # it died after its last word counted
            self._waiting.append(hand.attempt)
        self._hire()
