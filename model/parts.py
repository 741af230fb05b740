"""Parts of a model in the layouts of the Hugging Face hub: weights of SAM, SigLIP2, Phi-3, Qwen3 and Mask2Former are
loaded by a folder or a name on the hub, and parts of ours are written so that their own classes read them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoints import WEIGHTS, CheckpointError, load_into, some_of

_TOWER = "visual_encoder.vision_model"
_ENCODER = "segmentor.encoder"
_DECODERS = ("segmentor.pixel_decoder", "segmentor.decoder")
# of the pixel decoder, what depends on the channels of the picture encoder in front of it
_CHANNELS = ("segmentor.pixel_decoder.input_projections.", "segmentor.pixel_decoder.adapter_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What was loaded. weights: how many. left: names in our model that keep their values, and other remarks."""

    part: str
    source: str
    weights: int
    left: tuple[str, ...] = ()


def load_part(model: nn.Module, part: str, source: str | Path, *, revision: str | None = None) -> Loaded:
    """Put published weights into a part of an X-SAM.

    Of `llm`, rows for words that our tokenizer does not have are cut off, as the released model has it; words that the
    file has no rows for start as the mean of the others. Of `mask2former`, what depends on the channels of its picture
    encoder is only taken where it fits, and its classes are not.

    Args:
        part: `llm`, `visual_encoder`, `segmentor.encoder` or `mask2former` (pixel decoder and decoder).
        source: a folder that `save_pretrained` of transformers wrote, or a name on the hub; remote code is never run.
            revision: of the hub.
    Raises:
        CheckpointError: the weights cannot be read, or do not fit the part; the model is as it was.
    """
    if part not in _SOURCES:
        raise CheckpointError(f"no weights are published for {part!r}; there are {', '.join(_SOURCES)}")
    read, prefixes = _SOURCES[part]
    state, remarks = read(model, str(source), revision)
    load_into(model, state, only=prefixes, name=str(source))
    return Loaded(part=part, source=str(source), weights=len(state), left=tuple(remarks))


def check_source(source: str | Path) -> None:
    """Fetch the settings of published weights, and nothing else. Raises CheckpointError where they cannot be had."""
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(str(source), trust_remote_code=False)
    except Exception as error:  # of the hub, of files, of settings: they have no common base
        raise CheckpointError(f"{source}: no published weights: {error!s:.500}") from None


def export_part(model: nn.Module, part: str, folder: str | Path) -> None:
    """Write a part of an X-SAM alone.

    `llm`, `visual_encoder` and `segmentor.encoder` are folders for `from_pretrained` of transformers; any other module,
    such as `seg_connector`, is a `model.safetensors` with the model's names, for `load_into(…, only=[part])`.

    Raises:
        CheckpointError: the model has no such part.
    """
    from safetensors.torch import save_file
    from transformers import PreTrainedModel

    try:
        module = model.get_submodule(_TOWER if part == "visual_encoder" else part)
    except AttributeError:
        raise CheckpointError(f"the model has no part {part!r:.100}") from None
    if isinstance(module, PreTrainedModel):
        _exportable(module).save_pretrained(folder)
        return
    state = {f"{part}.{key}": tensor.contiguous() for key, tensor in module.state_dict().items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(state, Path(folder) / WEIGHTS, metadata={"format": "pt"})


def _exportable(module: nn.Module) -> Any:
    """The model that has a file layout of its own: SAM's encoder is published inside of one."""
    from transformers import SamVisionConfig, SamVisionModel
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    if not isinstance(module, SamVisionEncoder):
        return module
    with torch.device("meta"):
        holder = SamVisionModel(SamVisionConfig(**module.config.to_dict()))
    holder.vision_encoder = module
    return holder


# --- sources ---------------------------------------------------------------------------------------------------------

Read = tuple[dict[str, Tensor], list[str]]  # weights by our names, and remarks


def _llm(model: nn.Module, source: str, revision: str | None) -> Read:
    from transformers import AutoModelForCausalLM

    ours = model.get_submodule("llm")
    found = _fetch(AutoModelForCausalLM, source, revision)
    kinds = found.config.model_type, ours.config.model_type  # type: ignore[union-attr]
    if kinds[0] != kinds[1]:
        raise CheckpointError(f"{source}: a language model of kind {kinds[0]}, where the model has {kinds[1]}")
    state = found.state_dict()
    remarks = []
    for key, wanted in ours.state_dict().items():
        if key.endswith(("embed_tokens.weight", "lm_head.weight")) and key in state:
            rows = len(state[key]), len(wanted)
            state[key] = _with_rows(state[key], rows[1])
            if rows[0] != rows[1]:
                remarks.append(f"llm.{key}: {rows[0]:,} rows to {rows[1]:,}")
    return _prefixed(state, "llm"), remarks


def _with_rows(weight: Tensor, rows: int) -> Tensor:
    if rows <= len(weight):
        return weight[:rows].clone()
    mean = weight.float().mean(dim=0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)])


def _visual_encoder(model: nn.Module, source: str, revision: str | None) -> Read:
    found = _fetch(type(model.get_submodule(_TOWER)), source, revision)
    return _prefixed(found.state_dict(), _TOWER), []


def _seg_encoder(model: nn.Module, source: str, revision: str | None) -> Read:
    from transformers import SamVisionModel
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    ours = model.get_submodule(_ENCODER)
    if isinstance(ours, SamVisionEncoder):
        found = _fetch(SamVisionModel, source, revision).get_submodule("vision_encoder")
    else:
        found = _fetch(type(ours), source, revision)
    return _prefixed(found.state_dict(), _ENCODER), []


def _mask2former(model: nn.Module, source: str, revision: str | None) -> Read:
    from transformers import Mask2FormerForUniversalSegmentation

    found = _fetch(Mask2FormerForUniversalSegmentation, source, revision)
    places = ("model.pixel_level_module.decoder", "model.transformer_module")
    state: dict[str, Tensor] = {}
    for place, ours in zip(places, _DECODERS, strict=True):
        state |= _prefixed(found.get_submodule(place).state_dict(), ours)
    remarks = []
    for key, wanted in model.state_dict().items():
        if key.startswith(_CHANNELS) and (key not in state or state[key].shape != wanted.shape):
            remarks.append(key)
            state[key] = wanted
    for key in [key for key in state if key.startswith(_CHANNELS) and key not in model.state_dict()]:
        del state[key]
    return state, remarks


def _fetch(kind: Any, source: str, revision: str | None) -> nn.Module:
    """The model of a class or auto class, whole. Raises CheckpointError where it is not."""
    try:
        found, info = kind.from_pretrained(source, revision=revision, output_loading_info=True, trust_remote_code=False)
    except Exception as error:  # of the hub, of files, of settings: they have no common base
        raise CheckpointError(f"{source}: no weights of {kind.__name__}: {error!s:.500}") from None
    for what in ("missing_keys", "mismatched_keys"):
        if names := [str(one) for one in info.get(what, ())]:
            raise CheckpointError(f"{source}: {what.replace('_', ' ')} of {kind.__name__}: {some_of(names)}")
    model: nn.Module = found
    return model


def _prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": tensor for key, tensor in state.items()}


_SOURCES: Mapping[str, tuple[Callable[[nn.Module, str, str | None], Read], tuple[str, ...]]] = {
    "llm": (_llm, ("llm",)),
    "visual_encoder": (_visual_encoder, (_TOWER,)),
    "segmentor.encoder": (_seg_encoder, (_ENCODER,)),
    "mask2former": (_mask2former, _DECODERS),
}
