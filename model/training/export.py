"""A trained model as a checkpoint folder, what the next stage takes of it, and adapters of LoRA, merged in the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints import HANDED_ON, load_into, read_state, save_state
from model.training import parallel
from model.training.settings import Lora, StageError
from model.xsam import XSam

_ADAPTER = "default"


def take_over(model: XSam, folder: str | Path, stage: int) -> None:
    """Put what a stage hands on into the model of a later one.

    Args:
        folder: of `export`, or any checkpoint folder. stage: that it is of.
    Raises:
        StageError: the stage hands nothing on. CheckpointError: its weights do not fit; the model is as it was.
    """
    if stage not in HANDED_ON:
        raise StageError(f"{folder}: stage {stage} hands nothing on; its whole checkpoint is loaded")
    load_into(model, read_state(folder), only=HANDED_ON[stage], name=str(folder))


def add_adapters(model: XSam, lora: Lora, seed: int) -> None:
    """Put fresh adapters into the language model; its layers keep their names but for `.base_layer`.

    Args:
        seed: of the adapters' random weights.
    Raises:
        StageError: there is no language model, or it has no such layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if model.config.language is None:
        raise StageError(f"lora: {model.config.name} has no language model")
    targets: list[str] | str = list(lora.targets) or "all-linear"
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, task_type="CAUSAL_LM")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model.llm, _ADAPTER)
    except ValueError as error:
        raise StageError(f"lora: {error}") from None


def export(model: XSam, folder: str | Path) -> None:
    """Write the whole model, adapters merged into what they adapt; all processes call it, the first one writes."""
    state = merged(model, _whole(model))
    if state:
        save_state(state, folder, model.config)
    parallel.wait()


def merged(model: XSam, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without adapters: W + (alpha / rank) B A in float32 in the place of W (Hu et al. 2021, §4.1)."""
    from peft.tuners.lora import LoraLayer

    plain = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    for name, layer in model.named_modules():
        if state and isinstance(layer, LoraLayer):
            below, above = (state[f"{name}.{part}.{_ADAPTER}.weight"].float() for part in ("lora_A", "lora_B"))
            base = plain[f"{name}.weight"]
            plain[f"{name}.weight"] = (base.float() + layer.scaling[_ADAPTER] * (above @ below)).to(base.dtype)
    return plain


@torch.no_grad()
def _whole(model: XSam) -> dict[str, Tensor]:
    """All weights on the CPU for the first process, put together from all; nothing for the others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(model, FSDPModule):
        return model.state_dict() if not parallel.rank() else {}
    whole: Mapping[str, Tensor] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )  # type: ignore[assignment]
    # they are parts of larger blocks of memory, which safetensors does not take
    return {name: tensor.clone() for name, tensor in whole.items()}
