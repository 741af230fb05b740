"""Picture encoders: SigLIP for the language model, SAM ViT, Swin and SAM 2 (Hiera) for segmentation.

Each is the Hugging Face module itself with its weights' names; a segmentation encoder adds how its hidden states are
asked for, so that the rest of the model need not know which one it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, SamVisionConfig, SiglipVisionConfig, SiglipVisionModel, SwinConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder
from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig
from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModel
from transformers.models.swin.modeling_swin import SwinBackbone, SwinStage

from dataengine.errors import UserError
from model.config import Part, hub_config

_POSITION_STD = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderOutput:
    """What the model takes of a segmentation encoder.

    levels: the connector's input, three (B, H, W, C), from fine to coarse where the encoder has a pyramid.
    tokens: (B, H, W, C), the projector's input.
    """

    levels: tuple[Tensor, ...]
    tokens: Tensor


class SegEncoder(Protocol):
    """A segmentation encoder: `state_channels` and `state_strides` (px of the picture) belong to its hidden states.

    `side`: of the pictures it takes, px; None: any multiple of its strides.
    """

    state_channels: tuple[int, ...]
    state_strides: tuple[int, ...]
    side: int | None

    def states(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W), normalised, to the hidden states, each (B, H / stride, W / stride, C)."""
        ...


class SamEncoder(SamVisionEncoder):
    """SAM's ViT. State 0 follows the embedding, state i block i; the neck after the last is kept, and never used."""

    def __init__(self, config: SamVisionConfig) -> None:
        super().__init__(config)
        patch: Any = config.patch_size
        size: Any = config.image_size
        self.side = size
        self.state_channels = (config.hidden_size,) * (config.num_hidden_layers + 1)
        self.state_strides = (patch,) * (config.num_hidden_layers + 1)
        if self.pos_embed is not None:
            # zeros, as the library leaves them, are meant to be overwritten by a checkpoint
            nn.init.trunc_normal_(self.pos_embed, std=_POSITION_STD)

    def states(self, pixels: Tensor) -> tuple[Tensor, ...]:
        state = self.patch_embed(pixels)
        if self.pos_embed is not None:
            state = state + self.pos_embed
        states = [state]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return tuple(states)


class SwinEncoder(SwinBackbone):
    """Swin as Mask2Former has it; a state for each stage, at strides 4, 8, 16, 32, normed."""

    side: int | None = None

    def __init__(self, config: SwinConfig) -> None:
        patch: Any = config.patch_size
        stages = [f"stage{i + 1}" for i in range(len(config.depths))]
        config.set_output_features_output_indices(out_features=stages, out_indices=None)
        super().__init__(config)
        self.state_channels = tuple(config.embed_dim * 2**i for i in range(len(stages)))
        self.state_strides = tuple(patch * 2**i for i in range(len(stages)))

    def states(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(feature.permute(0, 2, 3, 1) for feature in self(pixels).feature_maps)


class HieraEncoder(Sam2HieraDetModel):
    """SAM 2's Hiera; a state for each stage, at strides 4, 8, 16, 32, before SAM 2's feature pyramid."""

    side: int | None = None
    supports_gradient_checkpointing = True  # its blocks do, which the library does not say

    def __init__(self, config: Sam2HieraDetConfig) -> None:
        super().__init__(config)
        # lists once the library has filled in its defaults
        channels: Any = config.embed_dim_per_stage
        patch: Any = config.patch_stride
        query: Any = config.query_stride
        self.state_channels = tuple(channels)
        pools = (min(i, config.num_query_pool_stages) for i in range(len(channels)))
        self.state_strides = tuple(patch[0] * query[0] ** pool for pool in pools)
        for embed in (self.pos_embed, self.pos_embed_window):
            nn.init.trunc_normal_(embed, std=_POSITION_STD)

    def states(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return self(pixels).intermediate_hidden_states


_KINDS: dict[str, Callable[..., SegEncoder]] = {
    "sam_vision_model": SamEncoder,
    "swin": SwinEncoder,
    "sam2_hiera_det_model": HieraEncoder,
}


def build_seg_encoder(part: Part) -> SegEncoder:
    """A segmentation encoder with fresh weights, an `nn.Module`.

    Raises:
        UserError: the kind is unknown, or its settings are wrong.
    """
    if part.kind not in _KINDS:
        raise UserError(f"seg_encoder: kind {part.kind!r} is not known; there are {', '.join(_KINDS)}")
    return _KINDS[part.kind](hub_config(part))


def check_side(encoder: SegEncoder, seg_px: int) -> None:
    """Raise UserError where an encoder cannot take pictures of `seg_px`."""
    if encoder.side not in (None, seg_px):
        raise UserError(f"seg_px is {seg_px}, but image_size of the segmentation encoder {encoder.side}")
    if seg_px % (coarsest := max(encoder.state_strides)):
        raise UserError(f"seg_px is {seg_px}; the segmentation encoder needs a multiple of {coarsest}")


def state_strides(part: Part) -> tuple[int, ...]:
    """`SegEncoder.state_strides` of the encoder that a part describes, of which no weights are made.

    Raises:
        UserError: see `build_seg_encoder`.
    """
    with torch.device("meta"):
        return build_seg_encoder(part).state_strides


class ImageEncoder(nn.Module):
    """SigLIP's vision tower, as `vision_model`, which is the level that released weights have.

    `side`: of the pictures it takes, px.
    """

    def __init__(self, part: Part, layer: int) -> None:
        super().__init__()
        config = hub_config(part)
        if not isinstance(config, SiglipVisionConfig):
            raise UserError(f"image_encoder: kind {part.kind!r} is not known; there is siglip_vision_model")
        side: Any = config.image_size
        self.side = side
        known = config.num_hidden_layers + 1
        if not -known <= layer < known:
            raise UserError(f"image_encoder: it has {known} hidden states, none is {layer}")
        self.layer = layer
        self.dim = config.hidden_size
        self.vision_model = SiglipVisionModel(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W), normalised, to (B, tokens, C): hidden state `layer`, all of it.

        Blocks after that state and the pooling head have weights and are never run.
        """
        tower = self.vision_model
        wanted = range(len(tower.encoder.layers) + 1)[self.layer]
        state = tower.embeddings(pixels)
        for layer in tower.encoder.layers[:wanted]:
            state = layer(state, None)
        return state


def set_checkpointing(model: PreTrainedModel, on: bool) -> None:
    """In training, each layer of a model of the library is computed again in the backward pass instead of stored."""
    if not on:
        model.activation_checkpointing_disable()
        return
    model.activation_checkpointing_enable({"use_reentrant": False})
    # what the library adds for adapters: gradients through all layers down to embeddings, though nothing there learns
    model.disable_input_require_grads()
    for module in model.modules():
        if isinstance(module, SwinStage):
            module.gradient_checkpointing = False  # its layers do; computed again as a whole, they would run thrice
