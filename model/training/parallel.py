"""Processes: which one this is, what they add up, and how they share the weights.

Launched by `torchrun`, `accelerate launch`, Ray Train or as a single process; accelerate tells which.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from model.batches import Batch
from model.config import XSamConfig
from model.training.settings import Stage, StageError
from model.xsam import XSam

PATIENCE = timedelta(hours=6)  # that processes wait for one another
BUCKET = 1 << 26  # bytes of gradients that are added up together

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """This process among those that train together. rank: 0 … world - 1. device: its own."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def join(cpu: bool = False) -> Processes:
    """Meet the other processes, as the launcher's environment says; alone there is nobody to wait for.

    Args:
        cpu: whether to leave accelerators alone.
    """
    from accelerate import PartialState

    # the first process may build data or score an evaluation while the others wait
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    return Processes(rank=state.process_index, world=state.num_processes, device=state.device)


def add_up(values: Tensor) -> Tensor:
    """Sums over all processes, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def gather(value: T) -> list[T]:
    """A small value of each process, by rank; it must be one that can be pickled."""
    if not distributed.is_initialized():
        return [value]
    found: list[T | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def rank() -> int:
    """Of this process, 0 where it is alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def wait() -> None:
    """Until all processes are here."""
    if distributed.is_initialized():
        distributed.barrier()


# --- every process has all weights -----------------------------------------------------------------------------------


def align(model: nn.Module) -> None:
    """Weights of all processes become those of the first."""
    if distributed.is_initialized():
        for tensor in model.state_dict(keep_vars=True).values():
            distributed.broadcast(tensor.data, 0)


@torch.no_grad()
def add_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Gradients become sums over all processes.

    What no process has used keeps no gradient, so that the optimizer leaves it alone, as it does for one process;
    what some have used counts as 0 for the others.
    """
    if not distributed.is_initialized() or not parameters:
        return
    used = torch.tensor([parameter.grad is not None for parameter in parameters], device=parameters[0].device).int()
    gradients: list[Tensor] = []
    for parameter, is_used in zip(parameters, add_up(used).tolist(), strict=True):
        if is_used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = add_up(torch.cat([gradient.reshape(-1) for gradient in bucket]))
        for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.nbytes > BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket


# --- every process has its part of the weights -----------------------------------------------------------------------


def shard(model: XSam, stage: Stage) -> None:
    """Share out the weights, block by block, and the rest together (`fully_shard`).

    All-gathers and reductions must come in the same order everywhere: a step must use the same blocks in all processes,
    see `with_picture` and `touch` of `XSam.forward`.

    Raises:
        StageError: torch is too old, or there are no other processes.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    if not distributed.is_initialized():
        raise StageError(f"{stage.name}: parallel: fsdp shares weights among processes; launch several")
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise StageError(f"{stage.name}: parallel: fsdp needs torch 2.13 or later")
    # no loss is changed in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    low = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    of_blocks = low if stage.precision == "bf16" else MixedPrecisionPolicy()
    for block in blocks(model):
        fully_shard(block, mp_policy=of_blocks)
    whole = fully_shard(model)
    whole.set_reduce_scatter_unused_params(True)
    for method in ("see", "answer", "generate"):
        register_fsdp_forward_method(model, method)


@torch.no_grad()
def drop_unused(parameters: Sequence[nn.Parameter]) -> None:
    """Take the gradients away that are 0 in all processes: of what a step did not use, as without sharing."""
    given = [parameter for parameter in parameters if parameter.grad is not None]
    if not given:
        return
    flags = [_own(parameter.grad).any() for parameter in given]
    for parameter, is_used in zip(given, add_up(torch.stack(flags).int()).tolist(), strict=True):
        if not is_used:
            parameter.grad = None


def _own(gradient: Tensor | None) -> Tensor:
    from torch.distributed.tensor import DTensor

    return gradient.to_local() if isinstance(gradient, DTensor) else gradient  # type: ignore[return-value]


def blocks(model: XSam) -> list[nn.Module]:
    """Layers of the encoders and of the language model, in which nearly all weights are."""
    encoder: Any = model.segmentor.encoder
    parts: list[nn.Module] = [encoder]
    if model.config.language is not None:
        parts += [model.visual_encoder.vision_model.encoder, model.llm.base_model]
    found: list[nn.Module] = []
    for part in parts:
        lists = [child for child in part.modules() if isinstance(child, nn.ModuleList)]
        inner = {id(child) for each in lists for layer in each for child in layer.modules()}
        found += [layer for each in lists if id(each) not in inner for layer in each]
    return found


def with_picture(batch: Batch, config: XSamConfig) -> Batch:
    """A batch of words alone with an empty picture that no input is about, so that the encoders run in it too."""
    if batch.seg_pixel_values is not None:
        return batch
    return replace(
        batch,
        pixel_values=torch.zeros(1, 3, config.image_px, config.image_px, dtype=torch.uint8),
        seg_pixel_values=torch.zeros(1, 3, config.seg_px, config.seg_px, dtype=torch.uint8),
        scaled_sizes=torch.zeros(1, 2, dtype=torch.int64),
    )


# --- precision -------------------------------------------------------------------------------------------------------


def precision(stage: Stage, device: torch.device) -> AbstractContextManager[object]:
    """What a forward pass runs in."""
    if stage.precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
