"""What is drawn in a step, keyed by what it is for: neither micro-batches nor processes nor workers change it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dataengine.keyed import Key, key_hash, keyed
from dataengine.sample import Sample
from model.batches import Batch, collate
from model.inputs import Inputs, Processor
from model.regions import RandomDraws
from model.training.settings import Stage

VERSION = 1


class Draw(Protocol):
    """A time that a sample is drawn: `dataengine.loader.Draw`. copy: which one of the epoch."""

    @property
    def epoch(self) -> int: ...
    @property
    def copy(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Make:
    """A loader's `make`: inputs of a sample, with prompts drawn for this time; can be pickled."""

    processor: Processor
    stage: Stage

    def __call__(self, sample: Sample, draw: Draw) -> Inputs:
        """Raises ReasonError: the sample cannot be used."""
        rng = keyed(self.stage.seed, sample.sample_id, "prompts", draw.epoch, draw.copy, VERSION)
        return self.processor.from_sample(sample, rng=rng, every_instance=self.stage.prompt_swap)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collate:
    """A loader's `collate`; can be pickled."""

    stage: Stage

    def __call__(self, inputs: Sequence[Inputs]) -> Batch:
        return collate(inputs, is_shared=self.stage.shared_phrases)


class StepPoints:
    """Points of the mask losses (`losses.Draws`), keyed by step, sample, row and prediction; on a device.

    Each row has as many pairs as it has targets, at most one for each query, so a row's points are its own however
    many rows stand before it.
    """

    def __init__(self, seed: int, step: int, batch: Batch, queries: int, device: torch.device) -> None:
        self.seed, self.step = seed, step
        self.rows: list[tuple[Key, ...]] = [
            (batch.inputs[row.sample].sample_id, row.seg, -1 if row.own is None else row.classes[row.own][1])
            for row in batch.rows
        ]
        self.pairs = [min(queries, len(target.labels)) for target in batch.targets]
        self.generator = torch.Generator(device)

    def matching(self, prediction: int, rows: int, points: int) -> Tensor:
        return torch.cat([self._uniform("matching", prediction, row, 1, points) for row in range(rows)])

    def candidates(self, prediction: int, pairs: int, points: int) -> Tensor:
        return self._of_pairs("candidates", prediction, points)

    def rest(self, prediction: int, pairs: int, points: int) -> Tensor:
        return self._of_pairs("rest", prediction, points)

    def _of_pairs(self, purpose: str, prediction: int, points: int) -> Tensor:
        return torch.cat(
            [self._uniform(purpose, prediction, row, count, points) for row, count in enumerate(self.pairs)]
        )

    def _uniform(self, purpose: str, prediction: int, row: int, count: int, points: int) -> Tensor:
        _seed(self.generator, self.seed, self.step, purpose, prediction, *self.rows[row])
        device = self.generator.device
        return torch.rand(count, points, 2, generator=self.generator, device=device, dtype=torch.float32)


class StepPrompts:
    """Pixels under prompts (`regions.Draws`), keyed by step and number: a prompt has the same in any batch."""

    def __init__(self, seed: int, step: int) -> None:
        self.seed, self.step = seed, step
        self.generator = torch.Generator()

    def permutation(self, number: int) -> Tensor:
        _seed(self.generator, self.seed, self.step, "permutation", number)
        return torch.randperm(number, generator=self.generator)

    def integers(self, high: int, number: int) -> Tensor:
        _seed(self.generator, self.seed, self.step, "integers", high)
        return torch.randint(high, (number,), generator=self.generator)


def swap_draws(seed: int, step: int, batch: Batch) -> RandomDraws:
    """Draws of `batches.swap`, keyed by step and samples."""
    generator = torch.Generator()
    _seed(generator, seed, step, "swap", *(inputs.sample_id for inputs in batch.inputs))
    return RandomDraws(generator)


def _seed(generator: torch.Generator, *parts: Key) -> None:
    generator.manual_seed(int.from_bytes(key_hash(*parts, VERSION)[:8], "big") >> 1)
