"""What an X-SAM is made of: frozen settings, the presets, and their JSON form (`config.json` of a checkpoint folder).

Sizes of the full presets are the public ones of Phi-3-mini-4k, Qwen3, SigLIP2 so400m/14-384 and SAM ViT-L, and those of
the X-SAM recipes (branch AAAI26_Archive).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dataengine.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_STRICT = {"extra": "forbid"}  # what pydantic reads these classes with
_CODE = ("auto_map", "attn_implementation", "trust_remote_code")  # settings that could make a library fetch code
_DEPTHS = ("num_hidden_layers", "depths", "blocks_per_stage")
MAX_LAYERS = 1000  # a file that asks for more would keep the machine busy for ever


def _is_depth(value: Any) -> bool:
    """Whether layers, or a list of layers by stage, are few enough; what is no number is told by the part's class."""
    counts = value if isinstance(value, list | tuple) else [value]
    return len(counts) <= MAX_LAYERS and all(count <= MAX_LAYERS for count in counts if isinstance(count, int | float))


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(config, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A Hugging Face model: `kind` is its `model_type`, `settings` are arguments of its config class."""

    __pydantic_config__: ClassVar = _STRICT
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.settings:
            if name.startswith("_") or name in _CODE:
                raise ValueError(f"{self.kind}: setting {name!r} is not a size of a model")
            if name in _DEPTHS and not _is_depth(self.settings[name]):
                raise ValueError(f"{self.kind}: {name} must be at most {MAX_LAYERS} layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorConfig:
    """The segmentation connector: one neck per level, from fine to coarse.

    `layers` index the encoder's hidden states (0: after the patch embedding), `scales` say how much finer the map gets.
    """

    __pydantic_config__: ClassVar = _STRICT
    hidden_dim: int = 512
    layers: tuple[int, int, int] = (12, 18, 24)
    scales: tuple[float, float, float] = (2.0, 1.0, 0.5)

    def __post_init__(self) -> None:
        _positive(self, "hidden_dim")
        if any(not 0 < scale <= 64 for scale in self.scales):
            raise ValueError(f"connector: scales must lie between 0 and 64, not {self.scales}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Pixel decoder, transformer decoder (`layers` real ones) and the weights and points of their losses."""

    __pydantic_config__: ClassVar = _STRICT
    hidden_dim: int = 256
    num_queries: int = 200
    heads: int = 8
    encoder_layers: int = 6
    encoder_feedforward: int = 1024
    layers: int = 9
    feedforward: int = 2048
    points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object: float = 0.1

    def __post_init__(self) -> None:
        _positive(self, "hidden_dim", "num_queries", "heads", "encoder_layers", "encoder_feedforward")
        _positive(self, "layers", "feedforward", "points")
        if self.hidden_dim % 32 or self.hidden_dim % self.heads:
            # 32 is the number of groups the pixel decoder normalises in
            raise ValueError(f"decoder: hidden_dim must be a multiple of 32 and of heads, not {self.hidden_dim}")
        if max(self.layers, self.encoder_layers) > MAX_LAYERS:
            raise ValueError(f"decoder: at most {MAX_LAYERS} layers, not {self.layers} and {self.encoder_layers}")
        if not (1 <= self.oversample <= 64 and 0 <= self.importance <= 1):
            raise ValueError("decoder: oversample must lie between 1 and 64, importance between 0 and 1")
        weights = (self.class_weight, self.mask_weight, self.dice_weight, self.no_object)
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            raise ValueError(f"decoder: weights must be finite and not negative, not {weights}")
        if not self.no_object:
            raise ValueError("decoder: no_object must be above 0: pictures without targets have no other class loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionConfig:
    """How a visual prompt becomes tokens: one by maximum, 64 means of four points, or one that knows the geometry."""

    __pydantic_config__: ClassVar = _STRICT
    kind: Literal["max", "mean64", "geometry"] = "max"
    points: int = 256

    def __post_init__(self) -> None:
        _positive(self, "points")


@dataclass(frozen=True, slots=True, kw_only=True)
class XSamConfig:
    """A whole X-SAM; without `language` and `image_encoder` it is the segmentor that stage 1 trains.

    `visual_layer` indexes the hidden states of both picture encoders that become tokens, `downsample` is the pixel
    shuffle in front of the segmentation encoder's projector. `num_labels` counts the classes of the linear head
    without background. `max_length` counts text ids alone.
    """

    __pydantic_config__: ClassVar = _STRICT
    name: str
    language: Part | None
    image_encoder: Part | None
    seg_encoder: Part
    connector: ConnectorConfig = ConnectorConfig()
    decoder: DecoderConfig = DecoderConfig()
    region: RegionConfig = RegionConfig()
    head: Literal["cosine", "linear"] = "cosine"
    num_labels: int = 133
    visual_layer: int = -2
    downsample: float = 0.5
    image_px: int = 384
    seg_px: int = 1024
    expand_to_square: bool = True
    template: str = "phi3"
    max_length: int = 2319
    tokens: tuple[str, str, str] = ("<SEG>", "<p>", "</p>")

    def __post_init__(self) -> None:
        _positive(self, "num_labels", "image_px", "seg_px", "max_length")
        if not 0 < self.downsample <= 1:
            raise ValueError(f"downsample must lie above 0 and be at most 1, not {self.downsample}")
        if (self.language is None) != (self.image_encoder is None):
            raise ValueError("language and image_encoder come together, or are both null (stage 1)")
        if self.language is None and self.head == "cosine":
            raise ValueError("the cosine head needs the conditions of a language model; stage 1 has head 'linear'")
        if len(set(self.tokens)) < 3:
            raise ValueError(f"tokens must differ: {self.tokens}")


def stage1(config: XSamConfig) -> XSamConfig:
    """The part of `config` that stage 1 trains: no language, a linear head over `num_labels` classes and background."""
    name = f"{config.name}-s1"
    return dataclasses.replace(config, name=name, language=None, image_encoder=None, head="linear")


def to_json(config: XSamConfig) -> str:
    """The text of a `config.json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str | bytes, file: str = "config.json") -> XSamConfig:
    """Reads what `to_json` wrote.

    Raises:
        UserError: names `file` and each field that is wrong.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(XSamConfig).validate_json(text)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
        raise UserError(f"{file}: not the settings of an X-SAM: {wrong}") from error


def preset(name: str) -> XSamConfig:
    """A preset by name.

    Raises:
        UserError: lists the names there are.
    """
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def hub_config(part: Part) -> PretrainedConfig:
    """The Hugging Face config object of a part.

    Raises:
        UserError: the kind is unknown, or a setting has the wrong type.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(part.kind, **part.settings)
    except Exception as error:  # the library's own errors have no common base
        raise UserError(f"part {part.kind!r}: {error}") from error


# initializer_range: the library's default for SAM is 1e-10, which does not train from scratch
_SAM_L = Part(
    kind="sam_vision_model",
    settings={
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "mlp_dim": 4096,
        "image_size": 1024,
        "patch_size": 16,
        "window_size": 14,
        "global_attn_indexes": [5, 11, 17, 23],
        "output_channels": 256,
        "initializer_range": 0.02,
    },
)
_SIGLIP2 = Part(
    kind="siglip_vision_model",
    settings={
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
)
# 32,011 words of the tokenizer and three of ours: the released matrix is smaller than the hub's 32,064 rows
_PHI3 = Part(
    kind="phi3",
    settings={
        "vocab_size": 32014,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "sliding_window": 2047,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
)
# 151,936 rows have room for three more words
_QWEN3 = {
    "vocab_size": 151936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "sliding_window": None,
    "tie_word_embeddings": True,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
_QWEN3_1_7B = Part(
    kind="qwen3",
    settings={
        **_QWEN3,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
)
_QWEN3_4B = Part(
    kind="qwen3",
    settings={
        **_QWEN3,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
)
_QWEN3_LENGTH = int(40960 - (384 / 14) ** 2 - 1024)  # the reference's rule: what pictures leave of the context

_TINY = XSamConfig(
    name="tiny",
    language=Part(
        kind="qwen3",
        settings={
            "vocab_size": 2048,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "max_position_embeddings": 2048,
            "sliding_window": None,
            "tie_word_embeddings": True,
        },
    ),
    image_encoder=Part(
        kind="siglip_vision_model",
        settings={
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 128,
            "patch_size": 16,
            "vision_use_head": False,
        },
    ),
    seg_encoder=Part(
        kind="sam_vision_model",
        settings={
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "mlp_dim": 384,
            "image_size": 128,
            "patch_size": 8,
            "window_size": 0,
            "global_attn_indexes": [0, 1, 2, 3],
            "output_channels": 32,
            "num_pos_feats": 16,
            "initializer_range": 0.02,
        },
    ),
    connector=ConnectorConfig(hidden_dim=64, layers=(2, 3, 4)),
    decoder=DecoderConfig(
        hidden_dim=64,
        num_queries=20,
        heads=4,
        encoder_layers=1,
        encoder_feedforward=128,
        layers=3,
        feedforward=256,
        points=512,
    ),
    region=RegionConfig(points=64),
    image_px=128,
    seg_px=128,
    template="plain",
    max_length=1024,
)

PRESETS: Mapping[str, XSamConfig] = {
    config.name: config
    for config in (
        XSamConfig(name="xsam-phi3-siglip2-saml", language=_PHI3, image_encoder=_SIGLIP2, seg_encoder=_SAM_L),
        *(
            XSamConfig(
                name=name,
                language=language,
                image_encoder=_SIGLIP2,
                seg_encoder=_SAM_L,
                template="qwen3",
                max_length=_QWEN3_LENGTH,
            )
            for name, language in (("xsam-qwen3-1.7b", _QWEN3_1_7B), ("xsam-qwen3-4b", _QWEN3_4B))
        ),
        _TINY,
    )
}
