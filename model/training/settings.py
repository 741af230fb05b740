"""What a stage of training is: frozen settings, and what must hold before its first step.

Defaults are the values that X-SAM's recipes share (AAAI26_Archive, configs/xsam).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dataengine.errors import UserError
from dataengine.sample import TASKS

if TYPE_CHECKING:
    from model.config import XSamConfig

_STRICT = {"extra": "forbid"}  # what pydantic reads these classes with
WORDS_ALONE = "chat"  # the task that needs no segmentor
FIXED_CLASSES = ("genseg",)  # tasks that a linear head can learn: its classes are the same in every picture
# settings that change how a run is carried out, and not what it learns: a resume may have others
FREE = frozenset(
    {"micro", "parallel", "threads", "checkpointing", "compile", "deterministic"}
    | {"save_every", "keep", "log_every", "evaluate_every"}
)


class StageError(UserError):
    """A stage that cannot be trained as it is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Low-rank adapters on the language model, by peft; its own weights are frozen.

    targets: names of linear layers, such as `q_proj`; empty: all but the output head. also: prefixes of the language
    model's weights that are trained in whole beside them, such as `llm.model.embed_tokens` for the marker words.
    """

    __pydantic_config__: ClassVar = _STRICT
    rank: int = 64
    alpha: int = 128
    targets: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise ValueError(f"lora: rank and alpha must be at least 1, not {self.rank} and {self.alpha}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Everything a run needs but its model, data and output.

    Weights are named by prefixes, whole parts between dots (`segmentor.encoder`).

    Attributes:
        stage: 1 segmentor, 2 projectors, 3 everything; says what is handed on (`checkpoints.HANDED_ON`).
        tasks: those it learns; empty: all of its data.
        epochs: of the data. steps: overrides them; None: as the epochs say.
        batch: samples of a step, over all processes. micro: samples that a process takes at once; what is left of its
            part of the batch follows before the optimizer's step, with the same result.
        lr: of weights without a multiplier. lr_mult: multipliers by prefix; the longest one that matches counts.
        decay_norms: whether weights of one dimension (norms, biases, scales) decay like all others, as published.
        clip: L2 norm of the whole gradient that is not exceeded; 0: as it is.
        warmup: share of the steps in which the rate rises linearly from 1e-5 of itself.
        schedule: what follows: `cosine` to 0; `multistep`, times `gamma` after each epoch of `milestones`; `constant`.
        trainable: prefixes of what is learned; empty: everything. frozen: of what is not, even so.
        precision: `fp32`; `bf16`: computed in bfloat16 where that is safe, weights float32; `pure-bf16`: all of it.
        parallel: `ddp`: every process holds all weights; `fsdp`: each holds its part of them (`fully_shard`).
        checkpointing: of activations: computed again instead of stored. compile: blocks of the encoders and of the
            language model by `torch.compile`.
        ema: decay of a moving average of what is learned, which is what is exported; None: no average.
        shared_phrases: referring phrases are told from all phrases of the micro-batch, as published. It makes a loss
            depend on what is taken at once; without it the split into micro-batches and processes changes nothing.
        prompt_swap: a region may be shown by any instance of its category in the micro-batch, as published; this too
            depends on what is taken at once.
        seed: of everything that is drawn.
        threads: of torch on the CPU; None: its choice. deterministic: algorithms that give the same twice.
        save_every, log_every, evaluate_every: steps; 0: only at the end. keep: checkpoints that stay.
    """

    __pydantic_config__: ClassVar = _STRICT
    name: str
    stage: Literal[1, 2, 3]
    tasks: tuple[str, ...] = ()
    epochs: int = 1
    steps: int | None = None
    batch: int = 64
    micro: int = 4
    lr: float = 4e-5
    lr_mult: Mapping[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    decay_norms: bool = True
    clip: float = 1.0
    warmup: float = 0.03
    schedule: Literal["cosine", "multistep", "constant"] = "cosine"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    trainable: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    precision: Literal["fp32", "bf16", "pure-bf16"] = "bf16"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    checkpointing: bool = False
    compile: bool = False
    lora: Lora | None = None
    ema: float | None = None
    shared_phrases: bool = True
    prompt_swap: bool = True
    seed: int = 1024
    threads: int | None = None
    deterministic: bool = False
    save_every: int = 2000
    keep: int = 2
    log_every: int = 10
    evaluate_every: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "micro", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("save_every", "log_every", "evaluate_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        if (self.steps is not None and self.steps < 1) or (self.threads is not None and self.threads < 1):
            raise ValueError(f"steps and threads must be at least 1, not {self.steps} and {self.threads}")
        for name, value in {
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "clip": self.clip,
            **self.lr_mult,
        }.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative, but is {value}")
        if not 0 <= self.warmup <= 1 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"warmup and betas are shares, not {self.warmup} and {self.betas}")
        if self.schedule != "multistep" and self.milestones:
            raise ValueError(f"milestones belong to the schedule multistep, not to {self.schedule}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must lie between 0 and 1, not {self.ema}")
        if unknown := sorted(set(self.tasks) - set(TASKS)):
            raise ValueError(f"no task {', '.join(unknown)}; there are {', '.join(TASKS)}")

    def num_steps(self, steps_per_epoch: int) -> int:
        """How many steps the run has."""
        return self.steps or self.epochs * steps_per_epoch


# --- before step 1 ---------------------------------------------------------------------------------------------------


def check(stage: Stage, config: XSamConfig, weights: Sequence[str], tasks: Iterable[str]) -> None:
    """Say what would go wrong later.

    Args:
        weights: names of all parameters of the model, adapters among them.
        tasks: those of the data.
    Raises:
        StageError: a prefix names no weight, nothing is learned, or the model has no head for a task.
    """
    adapted = () if stage.lora is None else stage.lora.also
    for what, prefixes in (
        ("lr_mult", stage.lr_mult),
        ("trainable", stage.trainable),
        ("frozen", stage.frozen),
        ("lora.also", adapted),
    ):
        for prefix in prefixes:
            if not any(is_within(name, (prefix,)) for name in weights):
                parts = ", ".join(sorted({name.partition(".")[0] for name in weights}))
                raise StageError(f"{stage.name}: {what}: no weight of the model begins with {prefix!r}; it has {parts}")
    if not any(is_learned(stage, name) for name in weights):
        raise StageError(f"{stage.name}: trainable and frozen leave nothing to learn")
    found = sorted(set(tasks))
    if not found:
        raise StageError(f"{stage.name}: the data has no sample")
    if foreign := sorted(set(found) - set(stage.tasks)) if stage.tasks else []:
        raise StageError(f"{stage.name}: learns {', '.join(stage.tasks)}; the data has {', '.join(foreign)} too")
    without_head = [task for task in found if not has_head(config, task)]
    if without_head:
        kind = f"{'no' if config.language is None else 'a'} language model, {config.head} head"
        raise StageError(f"{stage.name}: {config.name} ({kind}) has no head for {', '.join(without_head)}")


def has_head(config: XSamConfig, task: str) -> bool:
    """Whether a model can learn a task: words need a language model, conditions that change need the cosine head."""
    if config.language is None:
        return task in FIXED_CLASSES
    return task == WORDS_ALONE or config.head == "cosine"


def is_learned(stage: Stage, name: str) -> bool:
    """Whether a stage learns a weight; the language model's own are frozen under adapters."""
    if stage.lora is not None and is_within(name, ("llm",)):
        return ".lora_" in name or is_within(name, stage.lora.also)
    return (not stage.trainable or is_within(name, stage.trainable)) and not is_within(name, stage.frozen)


def is_within(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def changes(stored: Mapping[str, Any], stage: Stage) -> list[str]:
    """What a stored stage (`dataclasses.asdict`, read from JSON) says otherwise about what is learned."""
    import json

    now = json.loads(json.dumps(dataclasses.asdict(stage)))
    names = sorted((stored.keys() | now.keys()) - FREE)
    return [f"{n}: was {stored.get(n)}, is {now.get(n)}" for n in names if stored.get(n) != now.get(n)]
