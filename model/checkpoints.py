"""Checkpoint folders: `config.json` and `model.safetensors`, in shards with an index where it is large.

Loading is strict: every name that is missing, unknown or of another shape is told, and nothing is loaded in part unless
the parts are named. The checkpoints that X-SAM's authors published are read by `model.released`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from dataengine.errors import UserError
from dataengine.store.files import temporary_name
from model.config import XSamConfig, from_json, to_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = WEIGHTS + ".index.json"
MAX_JSON = 1 << 26  # bytes of an index or of settings
SHOWN = 12  # names of a kind that a message lists

# what the next stage takes of a stage's checkpoint, for `load_into`
HANDED_ON = {
    1: ("segmentor.encoder", "segmentor.pixel_decoder", "segmentor.decoder", "seg_connector"),
    2: ("visual_projector", "seg_projector"),
}

State = Mapping[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)


class CheckpointError(UserError):
    """Weights that cannot be used."""


# --- folders ---------------------------------------------------------------------------------------------------------


def save_pretrained(model: nn.Module, folder: str | Path, config: XSamConfig, *, max_shard_size: str = "5GB") -> None:
    """Write a model's weights, in their own dtypes, and its settings; a weight that is tied to another is kept once.

    What was there before is replaced. `config.json` comes last: a folder without it was not finished.

    Raises:
        CheckpointError: a weight has no values (device `meta`).
    """
    save_state(model.state_dict(), folder, config, max_shard_size=max_shard_size)


def save_state(
    state: dict[str, Tensor], folder: str | Path, config: XSamConfig, *, max_shard_size: str = "5GB"
) -> None:
    """`save_pretrained` of a state dict."""
    from huggingface_hub import save_torch_state_dict

    if empty := [name for name, tensor in state.items() if tensor.is_meta]:
        raise CheckpointError(f"{folder}: weights without values cannot be saved: {some_of(empty)}")
    target = Path(folder)
    staged = target / temporary_name("saving")
    staged.mkdir(parents=True)
    try:
        save_torch_state_dict(state, staged, max_shard_size=max_shard_size)
        (target / CONFIG).unlink(missing_ok=True)
        for old in [target / WEIGHTS, *target.glob("model-*-of-*.safetensors"), target / INDEX]:
            old.unlink(missing_ok=True)
        for file in sorted(staged.iterdir()):
            file.replace(target / file.name)
        (staged / CONFIG).write_text(to_json(config), encoding="utf-8")
        (staged / CONFIG).replace(target / CONFIG)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def from_pretrained(
    folder: str | Path,
    build: Callable[[XSamConfig], Model],
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> Model:
    """The model of a folder that `save_pretrained` wrote, for evaluation (`model.eval()`).

    Args:
        build: makes the model of its settings. No memory is taken for the weights that it starts with.
        dtype: of all weights that are not whole numbers; None: as they were saved.
    Raises:
        UserError: settings, or a file of weights, cannot be read. CheckpointError: they do not fit.
    """
    config = load_config(folder)
    state = read_state(folder)
    if dtype is not None:  # of weights alone: what is computed, such as rotary frequencies, must stay exact
        state = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    model = without_values(build, config)
    load_into(model, state, name=str(folder))
    return model.to(device=device).eval()


def load_config(folder: str | Path) -> XSamConfig:
    """Raises UserError where there is no `config.json`, or it cannot be used."""
    file = Path(folder) / CONFIG
    return from_json(_small_text(file), str(file))


def read_state(path: str | Path) -> dict[str, Tensor]:
    """All weights of a `.safetensors` file, or of a folder with `model.safetensors` or its shards.

    Raises:
        CheckpointError: a file is missing or damaged, or shards are not those of their index.
    """
    place = Path(path)
    if place.is_file():
        return _read_file(place)
    if (place / INDEX).is_file():
        return _read_shards(place)
    if (place / WEIGHTS).is_file():
        return _read_file(place / WEIGHTS)
    raise CheckpointError(f"{place}: no {WEIGHTS} here, nor shards with {INDEX}")


def _read_shards(folder: Path) -> dict[str, Tensor]:
    file = folder / INDEX
    try:
        index = json.loads(_small_text(file))
    except ValueError as error:
        raise CheckpointError(f"{file}: no JSON: {error}") from None
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise CheckpointError(f"{file}: weight_map must name a file for each weight")
    state: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if shard != Path(shard).name or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{file}: {shard!r:.200} is no .safetensors file of this folder")
        part = _read_file(folder / shard)
        stated = {name for name, where in places.items() if where == shard}
        if part.keys() != stated:
            raise CheckpointError(
                f"{folder / shard}: holds other weights than {INDEX} says: {some_of(part.keys() ^ stated)}"
            )
        state |= part
    return state


def _read_file(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file}: damaged, truncated, or no safetensors file: {error}") from None


def _small_text(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_JSON + 1)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from None
    if len(text) > MAX_JSON:
        raise CheckpointError(f"{file}: larger than {MAX_JSON:,} bytes")
    return text


# --- into a model ----------------------------------------------------------------------------------------------------


def without_values(build: Callable[[XSamConfig], Model], config: XSamConfig) -> Model:
    """A model whose weights are on the device `meta`; what is computed instead of saved has its values.

    Raises:
        UserError: the settings contradict each other.
    """
    from accelerate import init_empty_weights
    from transformers import PreTrainedModel

    try:
        with init_empty_weights(include_buffers=False):
            model = build(config)
    except UserError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:  # of libraries
        raise CheckpointError(f"no model can be made of the settings {config.name}: {error}") from error
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.tie_weights()  # ties are lost on the way to `meta`
    return model


def load_into(model: nn.Module, state: State, *, only: Sequence[str] = (), name: str = "the checkpoint") -> None:
    """Put weights into a model, or into parts of it, all of them or none.

    Weights on the device `meta` are replaced by those given, with their dtype; others keep dtype and device.

    Args:
        only: prefixes of names, such as `segmentor.pixel_decoder`, that alone are to be loaded, whole; of `state` and
            of the model the rest is left. name: of the checkpoint, for messages.
    Raises:
        CheckpointError: a weight is missing, unknown, of another shape or kind of number; the model is as it was.
    """
    wanted = {key: tensor for key, tensor in model.state_dict(keep_vars=True).items() if _within(key, only)}
    given = {key: tensor for key, tensor in state.items() if _within(key, only)}
    if only and not given:
        raise CheckpointError(f"{name}: holds nothing of {', '.join(only)}")
    floating = {key: tensor.is_floating_point() for key, tensor in wanted.items()}
    if odd := [key for key in given if key in floating and given[key].is_floating_point() != floating[key]]:
        raise CheckpointError(f"{name}: numbers of another kind (whole or floating) than the model has: {some_of(odd)}")
    tied = tied_names(wanted)
    check_fit({key: tuple(tensor.shape) for key, tensor in wanted.items()}, given, tied, name)
    for keys in tied:
        value = next(given[key] for key in keys if key in given)
        _put(model, keys, wanted[keys[0]], value)


def check_fit(
    wanted: Mapping[str, Sequence[int]], given: State, tied: Iterable[Sequence[str]] = (), name: str = "the checkpoint"
) -> None:
    """Raise CheckpointError where weights are not exactly those wanted, with each name and what is wrong.

    Args:
        wanted: shapes by name. tied: names that share a weight, of which one suffices; equal values if there are more.
    """
    wrong: dict[str, list[str]] = {}
    spare = {key for keys in tied if any(one in given for one in keys) for key in keys}
    for key, shape in wanted.items():
        if key not in given:
            if key not in spare:
                wrong.setdefault("missing", []).append(f"{key} {_shape(shape)}")
        elif tuple(given[key].shape) != tuple(shape):
            wrong.setdefault("of another shape", []).append(
                f"{key} {_shape(given[key].shape)}, where the model has {_shape(shape)}"
            )
    if unknown := [f"{key} {_shape(given[key].shape)}" for key in given if key not in wanted]:
        wrong["unknown to the model"] = unknown
    for keys in tied:
        values = [given[key] for key in keys if key in given and not given[key].is_meta]
        if any(value.shape == values[0].shape and bool((value != values[0]).any()) for value in values[1:]):
            wrong.setdefault("tied in the model, but different", []).append(" = ".join(keys))
    if wrong:
        kinds = [f"  {len(lines):,} {kind}: {some_of(lines)}" for kind, lines in wrong.items()]
        raise CheckpointError("\n".join([f"{name}: does not fit; nothing was loaded", *kinds]))


def tied_names(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Names by weight: those that share one are together. tensors: of `state_dict(keep_vars=True)`."""
    groups: dict[int, list[str]] = {}
    for key, tensor in tensors.items():
        groups.setdefault(id(tensor), []).append(key)
    return list(groups.values())


def _put(model: nn.Module, keys: Sequence[str], old: Tensor, value: Tensor) -> None:
    if not old.is_meta:
        with torch.no_grad():
            old.copy_(value)
        return
    new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    for key in keys:
        path, _, leaf = key.rpartition(".")
        setattr(model.get_submodule(path), leaf, new)


def _within(key: str, prefixes: Sequence[str]) -> bool:
    return not prefixes or any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


def some_of(names: Iterable[str]) -> str:
    """The first names in order, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - SHOWN:,} more" if len(listed) > SHOWN else ""
    return ", ".join(f"{name:.200}" for name in listed[:SHOWN]) + more


def _shape(shape: Iterable[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
