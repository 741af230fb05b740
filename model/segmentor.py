"""The segmentor: pixel decoder and masked-attention decoder of Mask2Former, the `<SEG>` state, and the class heads.

Modules and weights' names are Hugging Face's, sizes and initial values X-SAM's (AAAI26_Archive,
model/segmentors/x_segmentor.py). What differs from the library: coordinates and position embeddings are float32 under
lower precision, attention is fused, and queries take up a vector for each row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import Mask2FormerConfig, PreTrainedModel
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMaskedAttentionDecoderLayer,
    Mask2FormerPixelDecoder,
    Mask2FormerPixelDecoderEncoderLayer,
    Mask2FormerTransformerModule,
)

from dataengine.errors import UserError
from model.attention import DeformableAttention
from model.config import DecoderConfig, XSamConfig
from model.encoders import EncoderOutput, build_seg_encoder, check_side, set_checkpointing
from model.projectors import connected_channels

MASKED_LOGIT = -1e9
_LOGIT_LIMIT = 500.0
_LOGIT_SCALE = math.log(1 / 0.07)
_EMBEDDING_STD = 0.02
_LEVELS, _POINTS = 3, 4  # the library's modules know no others


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelFeatures:
    """What the pixel decoder makes of a picture; computed once, it serves any number of questions.

    masks: (B, D, h, w), at the finest level. levels: three (B, D, h, w), from coarse to fine.
    """

    masks: Tensor
    levels: tuple[Tensor, ...]

    def rows(self, pictures: Tensor) -> PixelFeatures:
        """Features for rows: row r has those of picture `pictures[r]`, (R,) int64."""
        return PixelFeatures(masks=self.masks[pictures], levels=tuple(level[pictures] for level in self.levels))


@dataclass(frozen=True, slots=True, kw_only=True)
class SegOutputs:
    """Every prediction: before the first layer of the decoder, and after each. The last is the one that counts.

    class_logits: each (R, N, C + 1), background last; `MASKED_LOGIT` where a condition is padding.
    mask_logits: each (R, N, h, w), at the finest level of the pixel decoder.
    """

    class_logits: tuple[Tensor, ...]
    mask_logits: tuple[Tensor, ...]

    @property
    def final(self) -> tuple[Tensor, Tensor]:
        """Class logits (R, N, C + 1) and mask logits (R, N, h, w) after the last layer."""
        return self.class_logits[-1], self.mask_logits[-1]


class Segmentor(nn.Module):
    """Encoder, pixel decoder and decoder; `logit_scale` with the cosine head, `class_predictor` with the linear one.

    The connector between encoder and pixel decoder is no part of it (nor is it in released weights).
    """

    def __init__(self, config: XSamConfig) -> None:
        """
        Raises:
            UserError: the encoder is unknown, has no such hidden states, or cannot take pictures of `seg_px`.
        """
        super().__init__()
        self.config = config
        self.encoder = build_seg_encoder(config.seg_encoder)
        known = len(self.encoder.state_channels)
        for layer in (*config.connector.layers, config.visual_layer):
            if not -known <= layer < known:
                raise UserError(f"{config.name}: the segmentation encoder has {known} hidden states, none is {layer}")
        check_side(self.encoder, config.seg_px)
        channels = [self.encoder.state_channels[layer] for layer in config.connector.layers]
        settings = mask2former_config(config.decoder)
        self.pixel_decoder = PixelDecoder(settings, connected_channels(config.connector, channels))
        self.decoder = MaskDecoder(settings)
        if config.head == "cosine":
            self.logit_scale = nn.Parameter(torch.full((1,), _LOGIT_SCALE))
        else:
            self.class_predictor = nn.Linear(config.decoder.hidden_dim, config.num_labels + 1)

    def set_checkpointing(self, on: bool) -> None:
        """In training, layers of the encoder and of both decoders are computed again in the backward pass instead of
        stored."""
        assert isinstance(self.encoder, PreTrainedModel)  # as all kinds are
        set_checkpointing(self.encoder, on)
        self.pixel_decoder.checkpointing = self.decoder.checkpointing = on

    def encode(self, pixels: Tensor) -> EncoderOutput:
        """(B, 3, H, W), normalised, to the hidden states of which connector and projector are fed."""
        states = self.encoder.states(pixels)
        levels = tuple(states[layer] for layer in self.config.connector.layers)
        return EncoderOutput(levels=levels, tokens=states[self.config.visual_layer])

    def forward(
        self,
        features: PixelFeatures,
        seg: Tensor | None = None,
        conditions: Tensor | None = None,
        condition_mask: Tensor | None = None,
    ) -> SegOutputs:
        """Masks and classes of every query.

        Args:
            features: of `pixel_decoder`, one per row (`PixelFeatures.rows` repeats them).
            seg: (R, D), the projected `<SEG>` state of each row; None in stage 1.
            conditions: (R, C + 1, D), the class vectors, background last; None with the linear head.
            condition_mask: (R, C + 1), 0 or False where a condition is padding; None where none is.
        """
        states, masks = self.decoder.decode(features, seg)
        classes = tuple(self.classify(state, conditions, condition_mask) for state in states)
        return SegOutputs(class_logits=classes, mask_logits=masks)

    def classify(self, states: Tensor, conditions: Tensor | None, condition_mask: Tensor | None) -> Tensor:
        """(R, N, D) to class logits (R, N, C + 1)."""
        if self.config.head == "linear":
            return self.class_predictor(states)
        if conditions is None:
            raise ValueError("the cosine head needs condition vectors")
        return cosine_logits(states, conditions, self.logit_scale, condition_mask)


def cosine_logits(queries: Tensor, conditions: Tensor, logit_scale: Tensor, mask: Tensor | None = None) -> Tensor:
    """Open-vocabulary class logits: exp(logit_scale) cos(query, condition) within ±500, in float32.

    Args:
        queries: (R, N, D). conditions: (R, C, D); a vector of zeros has logit 0.
        logit_scale: (1,).
        mask: (R, C), 0 or False where `MASKED_LOGIT` stands instead.
    Returns:
        (R, N, C) float32.
    """
    with torch.autocast(queries.device.type, enabled=False):
        unit_queries = functional.normalize(queries.float(), dim=-1, eps=1e-12)
        unit_conditions = functional.normalize(conditions.float(), dim=-1, eps=1e-12)
        logits = logit_scale.float().exp() * (unit_queries @ unit_conditions.transpose(1, 2))
        logits = logits.clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT)
    if mask is not None:
        logits = logits.masked_fill(~mask.bool()[:, None], MASKED_LOGIT)
    return logits


def upsample_masks(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(R, N, h, w) to (R, N, *size), bilinear; for predictions, as losses sample points of the small masks."""
    return functional.interpolate(mask_logits, size, mode="bilinear", align_corners=False)


def mask2former_config(config: DecoderConfig) -> Mask2FormerConfig:
    """The library's settings; it counts the prediction before the first layer as a layer."""
    return Mask2FormerConfig(
        feature_size=config.hidden_dim,
        mask_feature_size=config.hidden_dim,
        hidden_dim=config.hidden_dim,
        encoder_feedforward_dim=config.encoder_feedforward,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.layers + 1,
        num_attention_heads=config.heads,
        dim_feedforward=config.feedforward,
        num_queries=config.num_queries,
        dropout=0.0,
        pre_norm=False,
    )


class PixelDecoder(Mask2FormerPixelDecoder):
    """Deformable attention over three levels, and one FPN level above; the finest map is its input a second time.

    Levels have no padding: pictures fill their canvas, so that no masks or valid ratios are needed.
    """

    adapter_1: nn.Module
    layer_1: nn.Module

    def __init__(self, config: Mask2FormerConfig, channels: Sequence[int]) -> None:
        """channels: of the three input maps, from fine to coarse."""
        super().__init__(config, list(channels))
        self.checkpointing = False
        _init_matrices(self)
        nn.init.normal_(self.level_embed, std=_EMBEDDING_STD)
        self.encoder.layers = nn.ModuleList(_PixelDecoderLayer(config) for _ in range(config.encoder_layers))

    def forward(self, maps: Sequence[Tensor]) -> PixelFeatures:  # type: ignore[override]
        """Three (B, C, h, w), from fine to coarse."""
        inputs = [project(x) for project, x in zip(self.input_projections, reversed(maps), strict=True)]
        shapes = [(x.shape[2], x.shape[3]) for x in inputs]
        x = torch.cat([x.flatten(2).transpose(1, 2) for x in inputs], 1)
        positions = torch.cat(
            [_positions(self.position_embedding, i) + e for i, e in zip(inputs, self.level_embed, strict=True)], 1
        )
        reference = _centres(shapes, x.device)
        for layer in self.encoder.layers:
            if self.checkpointing and self.training:
                x = checkpoint(layer, x, positions, reference, shapes, use_reentrant=False)
            else:
                x = layer(x, positions, reference, shapes)
        parts = x.split([h * w for h, w in shapes], dim=1)
        levels = tuple(p.transpose(1, 2).unflatten(2, s) for p, s in zip(parts, shapes, strict=True))
        lateral = self.adapter_1(maps[0])
        finer = functional.interpolate(levels[-1], lateral.shape[-2:], mode="bilinear", align_corners=False)
        return PixelFeatures(masks=self.mask_projection(self.layer_1(lateral + finer)), levels=levels)


class _PixelDecoderLayer(Mask2FormerPixelDecoderEncoderLayer):
    self_attn: DeformableAttention

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__(config)
        self.self_attn = DeformableAttention(config.feature_size, config.num_attention_heads, _LEVELS, _POINTS)
        _init_matrices(self)
        _init_sampling(self.self_attn)

    def forward(  # type: ignore[override]
        self, x: Tensor, positions: Tensor, reference: Tensor, shapes: list[tuple[int, int]]
    ) -> Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn.attend(x, positions, reference, shapes))
        return self.final_layer_norm(x + self.fc2(functional.relu(self.fc1(x))))


class MaskDecoder(Mask2FormerTransformerModule):
    """Queries read the levels in turn, coarse to fine, each only where its last mask is; a prediction after each."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__(in_features=config.feature_size, config=config)
        count = len(self.decoder.layers)
        self.decoder.layers = nn.ModuleList(_MaskDecoderLayer(config) for _ in range(count))
        self.checkpointing = False
        for embedding in (self.queries_embedder, self.queries_features, self.level_embed):
            nn.init.normal_(embedding.weight, std=_EMBEDDING_STD)

    def decode(self, features: PixelFeatures, seg: Tensor | None) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Normed query states, each (R, N, D), and mask logits, each (R, N, h, w), of every prediction.

        seg: (R, D), added to the content of all queries of its row, not to their places.
        """
        rows = features.masks.shape[0]
        keys = [
            level.flatten(2).transpose(1, 2) + e
            for level, e in zip(features.levels, self.level_embed.weight, strict=True)
        ]
        key_places = [_positions(self.position_embedder, level) for level in features.levels]
        places = self.queries_embedder.weight.expand(rows, -1, -1)
        x = self.queries_features.weight.expand(rows, -1, -1)
        if seg is not None:
            x = x + seg[:, None]
        states, masks = [], []
        for index in range(len(self.decoder.layers) + 1):
            states.append(self.decoder.layernorm(x))
            queries = self.decoder.mask_predictor.mask_embedder(states[-1])
            masks.append(torch.einsum("rnd,rdhw->rnhw", queries, features.masks))
            if index < len(self.decoder.layers):
                level = index % _LEVELS
                hidden = hidden_places(masks[-1], features.levels[level].shape[-2:])
                x = self._layer(index, x, places, keys[level], key_places[level], hidden)
        return tuple(states), tuple(masks)

    def _layer(self, index: int, *arguments: Tensor) -> Tensor:
        layer = self.decoder.layers[index]
        if self.checkpointing and self.training:
            return checkpoint(layer, *arguments, use_reentrant=False)
        return layer(*arguments)


@torch.no_grad()
def hidden_places(mask_logits: Tensor, size: Sequence[int]) -> Tensor:
    """Where queries must not look on a level of `size` (h, w): (R, N, h w) bool, True where the mask is unlikely."""
    smaller = functional.interpolate(mask_logits, tuple(size), mode="bilinear", align_corners=False)
    return smaller.sigmoid().flatten(2) < 0.5


class _MaskDecoderLayer(Mask2FormerMaskedAttentionDecoderLayer):
    """The library's post-norm layer, batch first and through fused attention, whose mask all heads share."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__(config)
        _init_matrices(self)

    def forward(  # type: ignore[override]
        self, x: Tensor, places: Tensor, keys: Tensor, key_places: Tensor, hidden: Tensor
    ) -> Tensor:
        """(R, N, D) queries, (R, S, D) keys, hidden (R, N, S) bool; who may look nowhere looks everywhere."""
        allowed = ~hidden | hidden.all(-1, keepdim=True)
        x = self.cross_attn_layer_norm(x + self._read(x + places, keys + key_places, keys, allowed[:, None]))
        x = self.self_attn_layer_norm(x + self._exchange(x + places, x))
        return self.final_layer_norm(x + self.fc2(self.activation_fn(self.fc1(x))))

    def _read(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
        attention = self.cross_attn
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        query, key, value = map(functional.linear, (query, key, value), weights, biases)
        return attention.out_proj(_attend(query, key, value, attention.num_heads, allowed))

    def _exchange(self, query: Tensor, value: Tensor) -> Tensor:
        attention = self.self_attn
        key = attention.k_proj(query)
        return attention.out_proj(_attend(attention.q_proj(query), key, attention.v_proj(value), attention.num_heads))


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int, allowed: Tensor | None = None) -> Tensor:
    """(R, N, D), (R, S, D) twice, and (R, 1, N, S) bool, to (R, N, D)."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    read = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    return read.transpose(1, 2).flatten(2)


def _positions(embedding: nn.Module, x: Tensor) -> Tensor:
    """Sine embeddings of a map's places, (B, h w, D), computed in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return embedding(x.shape, x.device, wide).flatten(2).transpose(1, 2).to(x.dtype)


def _centres(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Centres of all levels' positions, (S, 2) float32, x and y in 0 to 1."""
    levels = []
    for height, width in shapes:
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        levels.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1).flatten(0, 1))
    return torch.cat(levels)


def _init_matrices(module: nn.Module) -> None:
    """Xavier's weights for everything of two or more dimensions, zero biases; norms stay 1 and 0 (Mask2Former)."""
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


def _init_sampling(attention: DeformableAttention) -> None:
    """Each head looks its own way, point p at a distance of p + 1 cells, all points alike (Deformable DETR)."""
    heads, levels, points = attention.n_heads, attention.n_levels, attention.n_points
    angles = torch.arange(heads) * (2.0 * math.pi / heads)
    ways = torch.stack([angles.cos(), angles.sin()], -1)
    ways = ways / ways.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, points + 1)
    offsets = (ways[:, None, None] * steps[:, None]).expand(heads, levels, points, 2)
    with torch.no_grad():
        attention.sampling_offsets.bias.copy_(offsets.reshape(-1))
    nn.init.zeros_(attention.sampling_offsets.weight)
    nn.init.zeros_(attention.attention_weights.weight)
