"""Batches through worker processes, in the order of the steps whatever their number; what cannot be read is counted.

    for micro in Loader(data, order, make, collate, workers=4, start=step):
        ...                                        # micro.count of them are one step

Nothing here has a state: a loader that starts at a step gives what an uninterrupted one gives from there on.
"""

from __future__ import annotations

import gc
import logging
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Generic, Protocol, TypeVar

from dataengine import malloc
from dataengine.errors import ReasonError, UserError
from dataengine.loader.groups import Data
from dataengine.loader.order import Draw, Order, Step
from dataengine.loader.packed import Packing, unpack
from dataengine.loader.rows import GroupError, Rows
from dataengine.loader.scratch import Scratch
from dataengine.sample import Sample
from dataengine.store.commits import DatasetError

PREFETCHED = 2  # micro-batches of a worker
GRACE_S = 30  # that a worker goes on for after SIGTERM
logger = logging.getLogger(__name__)

T = TypeVar("T")
B = TypeVar("B")


class Fresh(Protocol):
    """Draws anew what is not a fact of a sample; must be picklable. `rows` reads other samples. Pure."""

    def __call__(self, sample: Sample, draw: Draw, rows: Rows) -> Sample: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A draw that could not be used. place: dataset, shard, row group, row. reason: a stable identifier."""

    draw: Draw
    place: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Micro(Generic[B]):
    """One process's part `index` of `count` of a step; count is the same in all processes.

    sample_ids: of what is in the batch, in order. lost: the draws of this part that are not. stand_in: none of this
    part's draws could be used, or there is none; the batch is of another draw of the task, so that all processes take
    the same turns, and must have no weight.
    """

    step: int
    epoch: int
    task: str
    index: int
    count: int
    sample_ids: tuple[str, ...]
    batch: B
    lost: tuple[Lost, ...]
    stand_in: bool


class Loader(Generic[T, B]):
    """The micro-batches of one process, from a step on.

    lost: draws that could not be used since the iteration began, by reason.
    """

    def __init__(
        self,
        data: Data,
        order: Order,
        make: Callable[[Sample, Draw], T],
        collate: Callable[[list[T]], B],
        *,
        rank: int = 0,
        world: int = 1,
        micro: int | None = None,
        workers: int = 0,
        start: int = 0,
        stop: int | None = None,
        fresh: Fresh | None = None,
        budget: float = 0.01,
        scratch: Scratch | None = None,
        start_method: str | None = None,
    ) -> None:
        """
        Args:
            make: what the model takes of one sample. collate: of those of a micro-batch, at least one. Both run in the
                workers, so they must be picklable where `start_method` is not fork.
            rank, world: this process, and how many share each step. micro: samples of a micro-batch at most; None: a
                process takes its part of a step at once.
            workers: processes that read; 0: none, this one does. Their number changes nothing but the speed.
            start, stop: the first step, and the one before which to stop; None: never.
            fresh: draws wording, categories, prompts anew; None: samples as they are stored.
            budget: share of the samples that may be lost, of all that there are; more stops the iteration. Each of
                the processes may lose its part of that.
            scratch: where unpacked row groups are shared with other processes; None: among the temporary files.
            start_method: how workers are started; None: the platform's own for torch.
        Raises:
            UserError: a number that cannot be used.
        """
        if not 0 <= rank < world:
            raise UserError(f"there is no process {rank} of {world}")
        if micro is not None and micro < 1:
            raise UserError(f"micro is {micro}; at least 1 is needed")
        if not 0 <= start <= (start if stop is None else stop):
            raise UserError(f"steps {start} to {stop} are none")
        self.data, self.order, self.workers, self.budget = data, order, workers, budget
        self.lost: Counter[str] = Counter()
        self._plans = _Plans(order, rank, world, micro, start, stop)
        self._allowed = int(budget * data.num_samples / world)
        self._maker = _Maker(Rows(data, scratch), order, make, collate, fresh, self._allowed)
        self._start_method = start_method
        self._numbers: set[int] = set()
        self._said: set[str] = set()

    def __iter__(self) -> Iterator[Micro[B]]:
        """
        Raises:
            DatasetError: more samples are lost than `budget` allows, or a task has none left that can be read.
        """
        self.lost.clear()
        self._numbers.clear()
        for made in self._made():
            if isinstance(made, UserError):
                raise made
            self._count(made)
            yield made

    def _made(self) -> Iterable[Micro[B] | UserError]:
        if not self.workers:
            return map(self._maker.__getitem__, self._plans)
        import torch
        from torch.utils.data import DataLoader

        made: DataLoader[Any] = DataLoader(
            Packing(self._maker),  # type: ignore[arg-type]
            batch_size=None,
            sampler=self._plans,
            num_workers=self.workers,
            prefetch_factor=PREFETCHED,
            collate_fn=_as_it_is,
            worker_init_fn=_start_worker,
            multiprocessing_context=self._start_method,
            generator=torch.Generator(),  # or the global one would be drawn from
        )
        return map(unpack, made)

    def _count(self, micro: Micro[B]) -> None:
        """Count what was lost, and say each thing once."""
        for lost in micro.lost:
            self.lost[lost.reason] += 1
            self._numbers.add(lost.draw.number)
            if lost.message not in self._said:
                self._said.add(lost.message)
                logger.warning("lost at step %d: %s", micro.step, lost.message)
        if micro.lost and len(self._numbers) > self._allowed:
            raise DatasetError(
                f"{len(self._numbers)} samples cannot be used by step {micro.step}, of {self.data.num_samples:,}; the "
                f"budget of {self.budget:g} allows {self._allowed}. The last one: {micro.lost[-1].message}"
            )


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a worker is asked for."""

    step: Step
    index: int
    count: int
    draws: tuple[Draw, ...]


class _Plans:
    """The micro-batches of a process, in order."""

    def __init__(self, order: Order, rank: int, world: int, micro: int | None, start: int, stop: int | None) -> None:
        self._order, self._rank, self._world, self._micro = order, rank, world, micro
        self._start, self._stop = start, stop

    def __iter__(self) -> Iterator[_Plan]:
        for number in count(self._start) if self._stop is None else range(self._start, self._stop):
            step = self._order.step(number)
            draws = step.of_rank(self._rank, self._world)
            most = -(-len(step.draws) // self._world)  # of any process
            num = -(-most // self._micro) if self._micro else 1
            bounds = [len(draws) * i // num for i in range(num + 1)]
            for index in range(num):
                # other processes' draws stay here: a worker that needs a stand-in asks the order
                about = Step(number=step.number, epoch=step.epoch, task=step.task, draws=())
                yield _Plan(about, index, num, draws[bounds[index] : bounds[index + 1]])


class _Maker:
    """Makes micro-batches; the same in this process and in workers."""

    def __init__(
        self,
        rows: Rows,
        order: Order,
        make: Callable[[Sample, Draw], Any],
        collate: Callable[[list[Any]], Any],
        fresh: Fresh | None,
        allowed: int,
    ) -> None:
        self._rows, self._order, self._make, self._collate, self._fresh = rows, order, make, collate, fresh
        self._allowed = allowed

    def __getitem__(self, plan: _Plan) -> Micro[Any] | UserError:
        ids, made, lost = [], [], []
        for draw in plan.draws:
            found = self._one(draw)
            if isinstance(found, Lost):
                lost.append(found)
            else:
                ids.append(found[0])
                made.append(found[1])
        stand_in = not made
        if stand_in:
            other = self._stand_in(plan.step)
            if isinstance(other, DatasetError):
                return other
            ids, made = [other[0]], [other[1]]
        return Micro(
            step=plan.step.number,
            epoch=plan.step.epoch,
            task=plan.step.task,
            index=plan.index,
            count=plan.count,
            sample_ids=tuple(ids),
            batch=self._collate(made),
            lost=tuple(lost),
            stand_in=stand_in,
        )

    def _stand_in(self, step: Step) -> tuple[str, Any] | DatasetError:
        """The next draw of the task that can be used; more that cannot than may be lost are an error."""
        message = ""
        for draw in islice(self._order.after(step), self._allowed + 1):
            found = self._one(draw)
            if not isinstance(found, Lost):
                return found
            message = found.message
        return DatasetError(f"step {step.number}: no sample of {step.task} can be used in its place: {message}")

    def _one(self, draw: Draw) -> tuple[str, Any] | Lost:
        """A sample's id and what was made of it; or why it cannot be used."""
        data = self._rows.data
        place = data.place(draw.number)
        sample_id = ""
        try:
            sample = self._rows.read(draw.number)
            sample_id = sample.sample_id
            if self._fresh is not None:
                sample = self._fresh(sample, draw, self._rows)
            return sample_id, self._make(sample, draw)
        except GroupError as error:
            reason, message = "row_group", str(error)
        except (UserError, OSError) as error:
            reason = error.reason if isinstance(error, ReasonError) else "unusable"
            message = f"{data.name_of(place)} ({sample_id}): {error}"
        except Exception as error:
            error.add_note(f"of {data.name_of(place)} ({sample_id}), {draw}")
            raise
        return Lost(draw=draw, place=data.name_of(place), reason=reason, message=message)


def _as_it_is(made: T) -> T:
    return made


def _start_worker(number: int) -> None:
    """Leave interrupts to the process that reads the batches; where all processes got one, it has a step to finish."""
    malloc.keep_pictures()
    gc.freeze()  # what was there before is not looked through again and again, nor copied for that
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _die_later)


def _die_later(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(GRACE_S)
