"""Which samples a step takes: a pure function of seed, sources, mixing rule and the step's number.

Nothing is kept between steps, so a run goes on with one integer, and processes agree without talking.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from dataengine import mixing
from dataengine.errors import UserError
from dataengine.keyed import keyed
from dataengine.loader.groups import SourceRows

VERSION = 1  # of the order


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """A sample that is drawn. copy: how often it was drawn before in this epoch. The key of all that is drawn anew."""

    number: int
    epoch: int
    copy: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What all processes together take in one step: draws of one task. number: counted over all epochs, from 0."""

    number: int
    epoch: int
    task: str
    draws: tuple[Draw, ...]

    def of_rank(self, rank: int, world: int) -> tuple[Draw, ...]:
        """The draws of one of `world` processes; every draw is one process's."""
        return self.draws[rank::world]


class Order:
    """The order of an epoch's draws, and how they are cut into steps.

    Each source is drawn as often as the mixing rule says (`mixing.indices`), and shuffled by blocks: its row groups are
    permuted, neighbouring ones make windows of about `block` rows, and the rows of a window are permuted. So only a few
    row groups are in use at a time. Sources of one task follow each other in proportion. A task's draws are cut into
    as few steps of at most `batch` as there can be, of sizes that differ by one at most: nothing is left out, repeated
    or padded. The steps of all tasks are permuted.
    """

    def __init__(
        self,
        sources: Sequence[SourceRows],
        rule: mixing.Rule | None = None,
        *,
        seed: int,
        batch: int,
        block: int = 4096,
        lengths: np.ndarray | None = None,
        stretch: int = 50,
    ) -> None:
        """
        Args:
            rule: how often each source is drawn; None: each sample once. seed: of everything. batch: draws of a step,
                of all processes together. block: rows that are shuffled among each other.
            lengths: (samples,) whole numbers; steps then hold draws of like length: within `stretch` steps of a task,
                draws are dealt out in order of length, and those steps permuted. None: lengths do not matter.
        Raises:
            UserError: a number that cannot be used, or a rule that does not fit the sources.
        """
        for name, number in (("batch", batch), ("block", block), ("stretch", stretch)):
            if number < 1:
                raise UserError(f"{name} is {number}; at least 1 is needed")
        self.sources = tuple(sources)
        self.rule, self.seed, self.batch, self.block, self.stretch = rule, seed, batch, block, stretch
        total = sum(source.num_samples for source in sources)
        if lengths is not None and lengths.shape != (total,):
            raise UserError(f"there are {lengths.size:,} lengths for {total:,} samples")
        self.lengths = lengths
        sizes = {source.name: source.num_samples for source in sources}
        try:
            self.table = None if rule is None else mixing.table(sizes, rule)
        except ValueError as error:
            raise UserError(str(error)) from None
        drawn = sizes if self.table is None else {row.name: row.length for row in self.table}
        self._drawn = drawn
        self.tasks = tuple(dict.fromkeys(source.task for source in sources if drawn[source.name]))
        self._steps = {
            task: -(-sum(drawn[source.name] for source in sources if source.task == task) // batch)
            for task in self.tasks
        }
        if not self.tasks:
            raise UserError("there is nothing to draw")
        self._plan: tuple[int, _Epoch] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return sum(self._steps.values())

    @property
    def draws_per_epoch(self) -> int:
        return sum(self._drawn.values())

    @property
    def settings(self) -> dict[str, Any]:
        """All that the order depends on besides the data, as JSON values. Another one is another order."""
        rule = None if self.rule is None else {"rule": type(self.rule).__name__, **dataclasses.asdict(self.rule)}
        lengths = None if self.lengths is None else xxhash.xxh3_128_hexdigest(self.lengths.astype("<i8").tobytes())
        return {
            "version": VERSION,
            "seed": self.seed,
            "batch": self.batch,
            "block": self.block,
            "rule": rule,
            "lengths": lengths,
            "stretch": self.stretch,
            "mixing": mixing.VERSION,
        }

    def step(self, number: int) -> Step:
        """What step `number`, counted over all epochs, takes."""
        epoch, index = divmod(number, self.steps_per_epoch)
        plan = self._of_epoch(epoch)
        task = self.tasks[plan.task[index]]
        draws = plan.draws[task]
        start, stop = draws.bounds[plan.place[index] : plan.place[index] + 2].tolist()
        return Step(number=number, epoch=epoch, task=task, draws=tuple(draws.slice(start, stop, epoch)))

    def after(self, step: Step) -> Iterator[Draw]:
        """Draws of the same task and epoch that follow a step's, then those before it; at last the step's own."""
        plan = self._of_epoch(step.epoch)
        draws, place = plan.draws[step.task], plan.place[step.number % self.steps_per_epoch]
        num = len(draws.bounds) - 1
        for index in (*range(place + 1, num), *range(place + 1)):
            yield from draws.slice(int(draws.bounds[index]), int(draws.bounds[index + 1]), step.epoch)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None}  # made again where it is needed

    def _of_epoch(self, epoch: int) -> _Epoch:
        if self._plan is None or self._plan[0] != epoch:
            self._plan = None  # not two at a time
            self._plan = epoch, self._planned(epoch)
        return self._plan[1]

    def _planned(self, epoch: int) -> _Epoch:
        draws = {task: self._of_task(task, epoch) for task in self.tasks}
        kinds = np.repeat(np.arange(len(self.tasks)), [self._steps[task] for task in self.tasks])
        kinds = keyed(self.seed, "steps", VERSION, epoch).permutation(kinds)
        place = np.empty_like(kinds)
        for kind in range(len(self.tasks)):
            place[kinds == kind] = np.arange(np.count_nonzero(kinds == kind))
        return _Epoch(task=kinds, place=place, draws=draws)

    def _of_task(self, task: str, epoch: int) -> _Draws:
        parts = [self._of_source(s, epoch) for s in self.sources if s.task == task and self._drawn[s.name]]
        at = np.concatenate([(np.arange(len(numbers)) + 0.5) / len(numbers) for numbers, _ in parts])
        merged = np.argsort(at, kind="stable")
        numbers = np.concatenate([numbers for numbers, _ in parts])[merged]
        copies = np.concatenate([copies for _, copies in parts])[merged]
        num = self._steps[task]
        bounds = np.arange(num + 1) * len(numbers) // num
        if self.lengths is not None:
            by_length = self._by_length(task, epoch, numbers, bounds)
            numbers, copies = numbers[by_length], copies[by_length]
        return _Draws(numbers=numbers, copies=copies, bounds=bounds)

    def _of_source(self, source: SourceRows, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and copies of an epoch's draws: pass after pass over the source, the last one perhaps of a part."""
        size, length = source.num_samples, self._drawn[source.name]
        drawn = mixing.indices(size, length, seed=self.seed, epoch=epoch, name=source.name)
        for number, start in enumerate(range(0, length, size)):
            rng = keyed(self.seed, source.name, "blocks", VERSION, epoch, number)
            rows = np.sort(drawn[start : start + size])
            drawn[start : start + size] = _by_blocks(rows, source.starts, self.block, rng)
        return drawn + source.first, (np.arange(length) // size).astype(np.int32)

    def _by_length(self, task: str, epoch: int, numbers: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """The order in which draws are taken so that those of a step are of like length."""
        assert self.lengths is not None
        order = np.empty(len(numbers), dtype=np.int64)
        for first in range(0, len(bounds) - 1, self.stretch):
            last = min(first + self.stretch, len(bounds) - 1)
            start, stop = bounds[first], bounds[last]
            ranked = start + np.argsort(self.lengths[numbers[start:stop]], kind="stable")
            at = 0
            for step in keyed(self.seed, task, "lengths", VERSION, epoch, first).permutation(np.arange(first, last)):
                size = bounds[step + 1] - bounds[step]
                order[bounds[step] : bounds[step + 1]] = ranked[at : at + size]
                at += size
        return order


@dataclass(frozen=True, slots=True, eq=False)
class _Draws:
    """An epoch's draws of a task. numbers, copies: (draws,). bounds: (steps + 1,) where each of its steps begins."""

    numbers: np.ndarray
    copies: np.ndarray
    bounds: np.ndarray

    def slice(self, start: int, stop: int, epoch: int) -> list[Draw]:
        found = zip(self.numbers[start:stop].tolist(), self.copies[start:stop].tolist(), strict=True)
        return [Draw(number=number, epoch=epoch, copy=copy) for number, copy in found]


@dataclass(frozen=True, slots=True, eq=False)
class _Epoch:
    """task, place: (steps,) of each step the index of its task, and its place among the steps of that task."""

    task: np.ndarray
    place: np.ndarray
    draws: dict[str, _Draws]


def _by_blocks(rows: np.ndarray, starts: np.ndarray, block: int, rng: np.random.Generator) -> np.ndarray:
    """Rows in an order in which only those of a few row groups follow each other.

    Args:
        rows: (n,) int64, ascending. starts: (row groups + 1,) int64. block: rows of a window, about.
    """
    group = np.searchsorted(starts, rows, side="right") - 1
    groups = rng.permutation(len(starts) - 1)
    sizes = np.bincount(group, minlength=len(groups))[groups]
    before = np.cumsum(sizes) - sizes
    window = np.empty(len(groups), dtype=np.int64)
    window[groups] = np.minimum(before // block, max(len(rows) // block - 1, 0))
    # the whole part decides the window, the rest the place in it: half the time of sorting by two keys
    order: np.ndarray = rows[np.argsort(window[group] + rng.random(len(rows)), kind="stable")]
    return order
