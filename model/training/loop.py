"""The loop: steps one after the other, with checkpoints, logs, evaluation, interrupts, and the way back after them."""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dataengine.errors import UserError
from model.training import export as exporting
from model.training import logs, optim, parallel, state
from model.training.settings import Stage, StageError, changes, check
from model.training.step import Learner, LossError, Micro, Taken
from model.xsam import XSam

CHECKPOINTS, EXPORT = "checkpoints", "model"

Loader = Callable[[int], Iterable[Micro]]
Evaluate = Callable[[XSam, int], Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What a run reads.

    loader: gives this process's micro-batches from a step on, steps in order, and those of one in order; called with
    the first step after processes have met. tasks: those it has. fingerprint: of the dataset; order: settings that say
    which samples a step takes, values of JSON; a resume must find both as they were. place: the dataset of a sample,
    for the command that reproduces it. described, check_same: what is stored of the data besides, as values of JSON,
    and what raises UserError, with what changed, when it is given that and the data is another.
    """

    loader: Loader
    tasks: frozenset[str]
    steps_per_epoch: int
    fingerprint: str
    order: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    place: Callable[[str], str] = lambda sample_id: "DATASET"
    described: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    check_same: Callable[[dict[str, Any]], None] = lambda described: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a run ended. steps: taken, by all runs in this folder. signal: that interrupted it, or None; a program that
    was interrupted exits with 128 + signal. loss: of the last step; NaN where none was taken."""

    steps: int
    signal: int | None
    loss: float


def train(
    stage: Stage,
    model: XSam,
    data: Data,
    out: str | Path,
    *,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    cpu: bool = False,
    asked: Asked | None = None,
    say: Callable[[str], None] = print,
) -> Result:
    """Train a model by a stage, in this process or as one of several.

    In `out`: `checkpoints/`, `metrics.jsonl`, `tensorboard/`, and when all steps are taken `model/`, a checkpoint
    folder. SIGTERM and SIGINT end a run after the step in work with a checkpoint, and at once where no step is in work;
    a second one ends the process.

    Args:
        model: with the weights it begins with; also when a run is resumed, as checkpoints hold only what is learned.
        resume: go on from the newest sound checkpoint, if there is one.
        evaluate: gives scores by name of a model after so many steps, which go to the logs; all processes call it.
        cpu: leave accelerators alone.
        asked: says when to stop, instead of signals that are caught here.
    Raises:
        StageError: it cannot be trained so; nothing was done. UserError: the data is not what the run began with.
            StateError: `out` holds another run, or a checkpoint cannot be read or written. LossError: a loss is not
            finite; the message has the samples and how to reproduce them.
    """
    run: _Run | None = None
    with nullcontext(asked) if asked is not None else interrupts() as asked:
        try:
            run = _Run(stage, model, data, Path(out), parallel.join(cpu), evaluate, asked)
            start = run.begin(resume, say)
            with run.log(start, say) as log, asked.finishing():
                return run.go(start, log)
        except Interrupted:
            return Result(steps=0 if run is None else run.done, signal=asked.signal, loss=float("nan"))


class _Run:
    """A stage, ready to be trained."""

    def __init__(
        self,
        stage: Stage,
        model: XSam,
        data: Data,
        out: Path,
        processes: parallel.Processes,
        evaluate: Evaluate | None,
        asked: Asked,
    ) -> None:
        self.stage, self.data, self.out, self.processes = stage, data, out, processes
        self.evaluate, self.asked = evaluate, asked
        self.done, self.saved = 0, -1  # steps: taken, and in the newest checkpoint
        self.steps = stage.num_steps(data.steps_per_epoch)
        if stage.threads is not None:
            torch.set_num_threads(stage.threads)
        torch.use_deterministic_algorithms(stage.deterministic, warn_only=True)
        self.model = _prepared(stage, model, data, processes)
        parallel.align(model)
        frozen = {name: weight for name, weight in model.named_parameters() if not weight.requires_grad}
        self.frozen = state.digest_of(frozen)
        if stage.parallel == "fsdp":
            parallel.shard(model, stage)
        self.optimizer = optim.make_optimizer(model, stage)
        self.average = None if stage.ema is None else optim.Average(model, stage.ema)
        self.learner = Learner(model, self.optimizer, stage, processes)
        self.checkpoints = state.Checkpoints(out / CHECKPOINTS, stage.keep, processes)

    def begin(self, resume: bool, say: Callable[[str], None]) -> int:
        """The first step: 0, or where the newest checkpoint ends."""
        found, unsound = self.checkpoints.look()
        if found is None and unsound:
            raise state.StateError("\n".join(["no checkpoint can be gone on with; move them away:", *unsound]))
        if found is None and (self.out / EXPORT).exists():
            raise state.StateError(f"{self.out}: holds a trained model without its checkpoints; take another folder")
        if found is None:
            return 0
        if not resume:
            raise state.StateError(
                f"{self.out}: holds a run of {found.step:,} steps; resume it, or take another folder"
            )
        self.data.check_same(found.run.get("data", {}))
        if changed := self._changed(found.run):
            raise state.StateError("\n".join([f"{found.folder}: another run; it cannot be gone on with:", *changed]))
        for reason in unsound if self.processes.is_first else ():
            say(f"passed over: {reason}")
        state.restore(self.checkpoints, found, self.model, self.optimizer, self.average)
        self.done = self.saved = found.step
        return found.step

    def log(self, start: int, say: Callable[[str], None]) -> logs.Log:
        return logs.Log(self.out, start, say) if self.processes.is_first else logs.Silent()

    def go(self, start: int, log: logs.Log) -> Result:
        """All steps from `start` on, or until a signal."""
        meter, loss, done, asked = logs.Meter(), float("nan"), start, self.asked
        if start and self._is_due(start, self.stage.evaluate_every) and not self._is_scored(log, start):
            self._evaluate(log, start)  # it was interrupted
        read = self.data.loader(start) if start < self.steps else ()
        for waited, micros in _steps(read, start, self.steps, self._may_fail()):
            rate = optim.set_rates(self.optimizer, self.stage, done, self.steps, self.data.steps_per_epoch)
            try:
                taken = self.learner.step(done, micros, asked)
            except LossError as error:
                raise self._explained(error) from None
            if self.average is not None:
                self.average.update(self.model)
            meter.add(waited, taken)
            self.done = done = done + 1
            loss = taken.parts["loss"]
            if done % (self.stage.log_every or self.steps) == 0 or done == self.steps:
                self._tell(log, meter, done, rate, taken, micros)
            before = time.perf_counter()
            if taken.stop:
                return self._stopped(done, loss)
            if self._is_due(done, self.stage.save_every):
                self._save(done)
            if self._is_due(done, self.stage.evaluate_every):
                self._evaluate(log, done)
            meter.leave_out(time.perf_counter() - before)
        if done < self.steps and asked():
            return self._stopped(done, loss)
        if done < self.steps:
            raise StageError(f"{self.stage.name}: the data ended after {done:,} of {self.steps:,} steps")
        with self.asked.at_once(), self._averaged():
            exporting.export(self.model, self.out / EXPORT)
        return Result(steps=done, signal=None, loss=loss)

    def _stopped(self, done: int, loss: float) -> Result:
        self._save(done)
        return Result(steps=done, signal=max(number or 0 for number in parallel.gather(self.asked.signal)), loss=loss)

    def _may_fail(self) -> Callable[[], bool]:
        """Whether data that fails means the end: its workers may have got the signal that stops the run, too. Among
        several processes the others would wait for this one's next step."""
        return lambda: self.asked() and self.processes.world == 1

    def _is_due(self, done: int, every: int) -> bool:
        return done == self.steps or (every > 0 and done % every == 0)

    def _is_scored(self, log: logs.Log, done: int) -> bool:
        return self.evaluate is None or done in parallel.gather(log.scored)[0]

    def _save(self, done: int) -> None:
        if done == self.saved:
            return
        tensors = state.tensors_of(self.model, self.optimizer, self.average)
        self.checkpoints.save(done, tensors, self._described())
        self.saved = done

    def _described(self) -> dict[str, Any]:
        described = {
            "stage": dataclasses.asdict(self.stage),
            "model": dataclasses.asdict(self.model.config),
            "fingerprint": self.data.fingerprint,
            "data": dict(self.data.described),
            "order": dict(self.data.order),
            "frozen": self.frozen,
            "steps": self.steps,
        }
        read: dict[str, Any] = json.loads(json.dumps(described))
        return read

    def _changed(self, stored: Mapping[str, Any]) -> list[str]:
        """What a stored run says otherwise, in words."""
        now, before = self._described(), stored.get("stage")
        found = [f"  stage.{line}" for line in changes(before if isinstance(before, dict) else {}, self.stage)]
        model = stored.get("model")
        had: dict[str, Any] = model if isinstance(model, dict) else {}
        has = now["model"]
        found += [f"  model.{n}: was {had.get(n)}, is {has[n]}" for n in sorted(has) if had.get(n) != has[n]]
        for key, what in (
            ("fingerprint", "the dataset"),
            ("order", "the order of samples"),
            ("frozen", "the weights that are not learned"),
            ("steps", "the number of steps"),
        ):
            if stored.get(key) != now[key]:
                found.append(f"  {what}: was {stored.get(key)}, is {now[key]}")
        return found

    def _evaluate(self, log: logs.Log, done: int) -> None:
        if self.evaluate is None:
            return
        self.model.eval()
        with self.asked.at_once(), self._averaged(), torch.no_grad():
            scores = dict(self.evaluate(self.model, done))
        self.model.train()
        text = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        log.write(done, {f"eval/{name}": value for name, value in scores.items()}, f"step {done:,} evaluated: {text}")

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        if self.average is None:
            yield
            return
        with self.average.applied(self.model):
            yield

    def _tell(
        self, log: logs.Log, meter: logs.Meter, done: int, rate: float, taken: Taken, micros: list[Micro]
    ) -> None:
        values = {
            **taken.parts,
            "rate": rate,
            "gradient": taken.norm,
            **meter.read(),
            "memory_gib": logs.memory_gib(self.processes.device),
        }
        epoch, task = (done - 1) // self.data.steps_per_epoch, micros[0].task
        log.write(done, {"epoch": epoch, "task": task, **values}, logs.line(done, self.steps, task, values))
        meter.reset()

    def _explained(self, error: LossError) -> LossError:
        """With the way back to the step, and a command for each of its samples."""
        commands = [
            shlex.join(["dataengine", "reproduce", self.data.place(i), "--sample", i]) for i in error.sample_ids
        ]
        found = self.checkpoints.newest()
        left = "there is no checkpoint" if found is None else f"a resume comes to it again from {found.folder}"
        return LossError("\n".join([f"{error}; {left}. Its samples, as stored:", *commands]), error.sample_ids)


def _prepared(stage: Stage, model: XSam, data: Data, processes: parallel.Processes) -> XSam:
    """The model on its device, with its adapters, in its precision, and with gradients where it learns."""
    if stage.lora is not None:
        exporting.add_adapters(model, stage.lora, stage.seed)
    check(stage, model.config, [name for name, _ in model.named_parameters()], data.tasks)
    optim.freeze(model, stage)
    model.to(processes.device)
    if stage.precision == "pure-bf16":
        model.to(torch.bfloat16)
    model.set_checkpointing(stage.checkpointing)
    if stage.compile:
        for block in parallel.blocks(model):
            block.compile()
    return model.train()


def _steps(
    micros: Iterable[Micro], start: int, stop: int, may_fail: Callable[[], bool]
) -> Iterator[tuple[float, list[Micro]]]:
    """The micro-batches of each step, and how long they were waited for.

    Args:
        may_fail: whether an error of the loader is the end of the data.
    Raises:
        UserError: the loader leaves something out.
    """
    source = iter(micros)
    for number in range(start, stop):
        before, together = time.perf_counter(), list[Micro]()
        while not together or len(together) < together[0].count:
            try:
                micro = next(source, None)
            except Exception:
                if not may_fail():
                    raise
                return
            if micro is None:
                return
            if micro.step != number or micro.index != len(together):
                raise UserError(
                    f"the loader gave micro-batch {micro.index} of step {micro.step}, "
                    f"where {len(together)} of {number} was due"
                )
            together.append(micro)
        yield time.perf_counter() - before, together


# --- interrupts ------------------------------------------------------------------------------------------------------


class Interrupted(KeyboardInterrupt):
    """A signal that came where no step was in work."""


@dataclass(slots=True)
class Asked:
    """Whether a run is asked to stop, and by which signal; called, it says so.

    look: gives the signal where another way than signals asks.
    """

    signal: int | None = None
    look: Callable[[], int | None] = lambda: None
    waits: bool = False  # for the end of a step

    def __call__(self) -> bool:
        if self.signal is None:
            self.signal = self.look()
        return self.signal is not None

    def tell(self, number: int) -> None:
        self.signal = number
        if not self.waits:
            raise Interrupted(number)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Within, the step in work is finished first."""
        before, self.waits = self.waits, True
        try:
            yield
        finally:
            self.waits = before

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, nothing is in work that a resume would not do again."""
        if self():
            raise Interrupted(self.signal)
        before, self.waits = self.waits, False
        try:
            yield
        finally:
            self.waits = before


@contextmanager
def interrupts() -> Iterator[Asked]:
    """Within, the first SIGTERM or SIGINT is noted, and the second has its usual effect."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():  # signals are the launcher's then
        yield asked
        return

    def note(number: int, _: object) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        # workers that got the signal too must not break the step: torch raises from where the main thread is
        signal.signal(signal.SIGCHLD, lambda *_: None)
        asked.tell(number)

    before = {signal.SIGCHLD: signal.getsignal(signal.SIGCHLD)}
    before |= {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
