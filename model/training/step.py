"""One step: micro-batches to losses over the whole step, their gradients, and the optimizer's move.

Every sum of the loss (labelled ids, masks, classes) is divided by its count over all micro-batches and processes, which
is known before the first forward pass; so how a step is split changes nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dataengine.errors import UserError
from model.batches import Batch, swap
from model.inputs import num_image_tokens
from model.losses import Totals, class_weights
from model.training import parallel
from model.training.draws import StepPoints, StepPrompts, swap_draws
from model.training.parallel import Processes
from model.training.settings import Stage
from model.words import IGNORED
from model.xsam import XSam

PARTS = ("loss", "language", "segmentation", "mask", "dice", "class")  # the last three of the final prediction
_TERMS = ("loss_mask", "loss_dice", "loss_cls")


class LossError(UserError):
    """A loss or a gradient that is no finite number. sample_ids: of what it was computed from."""

    def __init__(self, message: str, sample_ids: Sequence[str]) -> None:
        super().__init__(message, tuple(sample_ids))
        self.sample_ids = tuple(sample_ids)

    def __str__(self) -> str:
        return str(self.args[0])


class Micro(Protocol):
    """What a process takes at once of a step: `dataengine.loader.Micro`.

    step: from 0. index, count: which of how many of this process's micro-batches. stand_in: whether it is only there
    so that all processes take the same turns, and must not count. lost: samples that should have been in it.
    """

    @property
    def step(self) -> int: ...
    @property
    def task(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def sample_ids(self) -> Sequence[str]: ...
    @property
    def batch(self) -> Batch: ...
    @property
    def stand_in(self) -> bool: ...
    @property
    def lost(self) -> Sequence[object]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a step was.

    parts: `PARTS`, of all processes together. norm: of the gradient, before clipping. num_samples, num_lost,
    num_tokens: of all processes; lost samples could not be used, and tokens are positions of the language model.
    seconds: of this process's forward and backward passes and of the optimizer. stop: whether a process wants to stop.
    """

    parts: dict[str, float]
    norm: float
    num_samples: int
    num_lost: int
    num_tokens: int
    seconds: float
    stop: bool


class Learner:
    """A model and its optimizer, which learn step by step."""

    def __init__(self, model: XSam, optimizer: torch.optim.Optimizer, stage: Stage, processes: Processes) -> None:
        self.model, self.optimizer = model, optimizer
        self.stage, self.processes = stage, processes
        self.weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.is_sharded = stage.parallel == "fsdp"
        self.image_tokens = num_image_tokens(model.config)

    def step(self, number: int, micros: Sequence[Micro], asked: Callable[[], bool] = lambda: False) -> Taken:
        """Learn from a step's micro-batches.

        Args:
            number: of the step; all that is drawn depends on it. asked: whether this process is to stop after it.
        Raises:
            LossError: the loss or its gradient is no finite number; no weight was changed.
        """
        counts = self._count(micros)
        totals = Totals(tokens=counts[0].clamp(min=1), masks=counts[1].clamp(min=1), classes=counts[2].clamp(min=1e-6))
        self.optimizer.zero_grad(set_to_none=True)
        found, seconds = [], 0.0
        for micro in micros:
            if micro.stand_in and not self.is_sharded:  # nobody waits for what this process would compute
                found.append(torch.zeros(len(PARTS), device=self.processes.device))
                continue
            batch = self._prepared(micro.batch, number)
            start = time.perf_counter()
            found.append(self._learn(batch, number, totals, 0.0 if micro.stand_in else 1.0))
            seconds += time.perf_counter() - start
        start = time.perf_counter()
        if self.is_sharded:
            parallel.drop_unused(self.weights)
        else:
            parallel.add_gradients(self.weights)
        norm = self._clip()
        summed = torch.stack(found).sum(0)
        told = parallel.add_up(torch.cat([summed, summed.new_tensor([float(asked())])]))
        # the one wait for the device: what is not finite must not move a weight, in any process
        *values, stops, length = torch.cat([told, norm.reshape(1).to(told)]).tolist()
        parts = dict(zip(PARTS, values, strict=True))
        if not all(map(math.isfinite, (*values, length))):
            raise _blame(micros, found, {**parts, "gradient": length}, number)
        self.optimizer.step()
        return Taken(
            parts=parts,
            norm=length,
            num_samples=int(counts[3]),
            num_lost=int(counts[5]),
            num_tokens=int(counts[4]),
            seconds=seconds + time.perf_counter() - start,
            stop=stops > 0,
        )

    def _count(self, micros: Sequence[Micro]) -> Tensor:
        """(6,) of the whole step: labelled ids, targets, weights of the class term, samples, positions, lost ones."""
        decoder = self.model.config.decoder
        own = torch.zeros(6)
        for micro in micros:
            own[5] += len(micro.lost)
            if micro.stand_in:
                continue
            batch = micro.batch
            numbers = [len(target.labels) for target in batch.targets]
            weight = sum(class_weights(number, decoder.num_queries, decoder.no_object) for number in numbers)
            positions = int(batch.attention_mask.sum())
            if self.image_tokens:
                positions += int((batch.images >= 0).sum()) * (self.image_tokens - 1)
            labelled = int((batch.labels[:, 1:] != IGNORED).sum())
            own[:5] += torch.tensor([labelled, sum(numbers), weight, len(batch.inputs), positions])
        return parallel.add_up(own.to(self.processes.device))

    def _prepared(self, batch: Batch, number: int) -> Batch:
        if self.is_sharded:
            batch = parallel.with_picture(batch, self.model.config)
        if self.stage.prompt_swap and len(batch.region_masks):
            batch = swap(batch, swap_draws(self.stage.seed, number, batch))
        return batch.to(self.processes.device)

    def _learn(self, batch: Batch, number: int, totals: Totals, weight: float) -> Tensor:
        """Add a micro-batch's gradient; gives its `PARTS`, detached."""
        device, queries = self.processes.device, self.model.config.decoder.num_queries
        points = StepPoints(self.stage.seed, number, batch, queries, device)
        with parallel.precision(self.stage, device):
            prompts = StepPrompts(self.stage.seed, number)
            losses = self.model(batch, points, prompts, totals, touch=self.is_sharded)
        # `fully_shard` takes means over processes, and sums are wanted
        (losses.loss * (weight * self.processes.world if self.is_sharded else weight)).backward()
        nothing = torch.zeros_like(losses.loss)
        parts = [losses.loss, losses.language, losses.segmentation]
        parts += [losses.terms.get(term, nothing) for term in _TERMS]
        return torch.stack([part.detach().float() for part in parts]) * weight

    def _clip(self) -> Tensor:
        """The gradient's L2 norm, of which at most `stage.clip` is left."""
        from torch.distributed.tensor import DTensor

        norm = torch.nn.utils.get_total_norm([w.grad for w in self.weights if w.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self.stage.clip:
            torch.nn.utils.clip_grads_with_norm_(self.weights, self.stage.clip, norm)
        return norm


def _blame(micros: Sequence[Micro], found: Sequence[Tensor], values: dict[str, float], number: int) -> LossError:
    """Names the samples of micro-batches whose loss is not finite; those of all, where it is the gradient alone."""
    bad = [micro for micro, parts in zip(micros, found, strict=True) if not bool(parts.isfinite().all())]
    everyone = parallel.gather(([i for m in bad for i in m.sample_ids], [i for m in micros for i in m.sample_ids]))
    ids = [i for guilty, _ in everyone for i in guilty] or [i for _, every in everyone for i in every]
    what = ", ".join(f"{name} {value:g}" for name, value in values.items() if not math.isfinite(value))
    return LossError(f"step {number}: not finite: {what}; nothing was learned of it", ids)
