"""The optimizer: who learns at which rate, the rate of every step, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from model.training.settings import Stage, is_learned, is_within

WARMUP_START = 1e-5  # of the rate, as published


def freeze(model: nn.Module, stage: Stage) -> None:
    """Weights that a stage does not learn get no gradient."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_learned(stage, name))


def learned(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights with a gradient, by name; one that is tied to another once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def make_optimizer(model: nn.Module, stage: Stage) -> torch.optim.AdamW:
    """AdamW with a group for each multiplier and decay; a group's `mult` is its multiplier."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in learned(model).items():
        decays = stage.decay_norms or parameter.dim() > 1
        key = multiplier(stage.lr_mult, name), stage.weight_decay if decays else 0.0
        groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "mult": mult, "weight_decay": decay}
            for (mult, decay), parameters in sorted(groups.items(), key=lambda group: group[0])
        ],
        lr=stage.lr,
        betas=stage.betas,
        fused=True,
    )


def multiplier(mults: Mapping[str, float], name: str) -> float:
    """That of the longest prefix that matches, else 1."""
    matching = [prefix for prefix in mults if is_within(name, (prefix,))]
    return mults[max(matching, key=len)] if matching else 1.0


def set_rates(optimizer: torch.optim.Optimizer, stage: Stage, step: int, steps: int, steps_per_epoch: int) -> float:
    """Give each group its rate for a step; gives the one without multiplier."""
    rate = stage.lr * factor(stage, step, steps, steps_per_epoch)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["mult"]
    return rate


def factor(stage: Stage, step: int, steps: int, steps_per_epoch: int) -> float:
    """What a step's rate is multiplied with.

    Args:
        step: from 0. steps: of the whole run, the warm-up among them.
    """
    warmup = round(stage.warmup * steps)
    rising = WARMUP_START + (1 - WARMUP_START) * step / warmup if step < warmup else 1.0
    if stage.schedule == "multistep":
        passed = sum(step >= milestone * steps_per_epoch for milestone in stage.milestones)
        return rising * stage.gamma**passed
    if stage.schedule == "constant" or step < warmup:
        return rising
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class Average:
    """Exponential moving average of what is learned, in float32: v = decay v + (1 - decay) w after every step."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in learned(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        weights = [parameter.float() for parameter in learned(model).values()]
        torch._foreach_lerp_(list(self.values.values()), weights, 1 - self.decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within, the model has the averages as weights."""
        weights = learned(model)
        kept = {name: parameter.detach().clone() for name, parameter in weights.items()}
        try:
            _copy(self.values, weights)
            yield
        finally:
            _copy(kept, weights)


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], weights: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in weights.items():
        parameter.copy_(values[name])
