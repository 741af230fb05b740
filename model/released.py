"""The checkpoints that X-SAM's authors published, in and out: `pytorch_model.bin` of stages 1, 2 and 3.

The layout is that of branch AAAI26_Archive, with which our modules share their names; the default branch renamed three
of them. What does not belong to the model is dropped with a reason, and what does not fit is refused with one.
"""

from __future__ import annotations

import dataclasses
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.checkpoints import CheckpointError, State, check_fit, read_state, some_of, tied_names, without_values
from model.config import Part, XSamConfig, preset, stage1

Layout = Literal["aaai", "main"]

BIN = "pytorch_model.bin"
MAX_PICKLE = 1 << 26  # bytes that describe the tensors of a file
MAX_ENTRIES = 100_000

# the default branch's names, as ours begin, and as they begin there
_RENAMED = (
    ("visual_encoder.", "vision_encoder."),
    ("segmentor.logit_scale", "segmentor.class_predictor.logit_scale"),
    ("segmentor.class_predictor.weight", "segmentor.class_predictor.predictor.weight"),
    ("segmentor.class_predictor.bias", "segmentor.class_predictor.predictor.bias"),
)
_TOWER = "visual_encoder.vision_model."  # a level that files saved with transformers 5 lack

_DROPPED = (
    (r"segmentor\.shared_image_embedding\.", "SAM's prompt encoding, which the segmentor never uses"),
    (r"(.*\.)?criterion\.empty_weight$", "weights of the loss, which the settings state"),
    (r"(.*\.)?rotary_emb\.(inv_freq|original_inv_freq)$", "computed from the settings"),
    (r"(.*\.)?position_ids$", "computed from the settings"),
    (r"pad_embeds\.", "fill for missing conditions, which are masked"),
)
_REFUSED = (
    (r"vlm\.", "of the Qwen3-VL variant, in which one model replaces language model and image encoder"),
    (r".*\.lora_|base_model\.", "an adapter; merge it into its model first"),
    (r"module\.", "of a wrapped model; save the model inside"),
)
_PROJECTORS = ("visual_projector", "seg_projector")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of a released file.

    mapped: our name of each of its names. dropped: why, by its name. missing: why, by our name. read: what its tensors
    say of the settings.
    """

    file: str
    stage: Literal[1, 2, 3]
    layout: Layout
    mapped: Mapping[str, str]
    dropped: Mapping[str, str]
    missing: Mapping[str, str]
    read: Mapping[str, int]

    def lines(self) -> list[str]:
        """The report as text; with a line for each dropped key, and for each kind of missing ones."""
        branch = "AAAI26_Archive" if self.layout == "aaai" else "the default branch"
        read = "".join(f", {name} {value:,}" for name, value in self.read.items())
        lines = [f"{self.file}: stage {self.stage}, names of {branch}{read}", f"  {len(self.mapped):,} mapped"]
        lines += [f"  dropped {key}: {reason}" for key, reason in self.dropped.items()]
        reasons = sorted(set(self.missing.values()))
        counts = {reason: sum(one == reason for one in self.missing.values()) for reason in reasons}
        return lines + [f"  {count:,} missing: {reason}" for reason, count in counts.items()]


def import_released(
    path: str | Path, build: Callable[[XSamConfig], nn.Module], base: XSamConfig | None = None
) -> tuple[XSamConfig, dict[str, Tensor], Report]:
    """Read a published file, under our names.

    Args:
        path: of `pytorch_model.bin` or a `.safetensors` file, or of a folder that has one. build: makes the model of
            settings; it is made without values, to know what must be there. base: settings that the file does not
            tell, such as numbers of heads; those of the published Phi-3 model by default.
    Returns:
        settings with the counts of layers, queries and words of the file; its tensors, in their dtypes (of a `.bin`
        they lie in the file until they are used); the report. Of stage 2 the tensors are those of two projectors.
    Raises:
        CheckpointError: the file is damaged, holds more than tensors, or does not fit; the message says why.
    """
    file = _file_of(Path(path))
    found = _read_pickle(file) if file.suffix != ".safetensors" else read_state(file)
    return from_released(found, build, base, file=str(file))


def from_released(
    found: State,
    build: Callable[[XSamConfig], nn.Module],
    base: XSamConfig | None = None,
    *,
    file: str = "the checkpoint",
) -> tuple[XSamConfig, dict[str, Tensor], Report]:
    """As `import_released`, of tensors by their published names, which may be without values (device `meta`)."""
    layout: Layout = "main" if any(key.startswith(there) for key in found for _, there in _RENAMED) else "aaai"
    mapped, dropped = _names(found, file)
    state = {ours: found[key] for key, ours in mapped.items()}
    stage = _stage(state, file)
    try:
        config, read = _config(state, stage, base or preset("xsam-phi3-siglip2-saml"), file)
        model = without_values(build, config)
    except ValueError as error:  # of settings with such sizes
        raise error if str(error).startswith(file) else CheckpointError(f"{file}: {error}") from None
    weights = model.state_dict(keep_vars=True)
    wanted = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    missing: dict[str, str] = {}
    if stage == 2:
        reason = "stage 2 saves the projectors that it trains alone"
        missing = {key: reason for key in wanted if key.partition(".")[0] not in _PROJECTORS}
    needed = {key: shape for key, shape in wanted.items() if key not in missing}
    check_fit(needed, state, tied_names({key: weights[key] for key in needed}), file)
    report = Report(file=file, stage=stage, layout=layout, mapped=mapped, dropped=dropped, missing=missing, read=read)
    return config, state, report


def to_released(state: State, layout: Layout = "aaai") -> dict[str, Tensor]:
    """Our weights under published names, for the authors' code, without SAM's prompt encoding, which is not used."""
    if layout == "aaai":
        return dict(state)
    return {_renamed(key, dict(_RENAMED)): tensor for key, tensor in state.items()}


# --- names -----------------------------------------------------------------------------------------------------------


def _names(found: State, file: str) -> tuple[dict[str, str], dict[str, str]]:
    """Our name of each key, and why the others are dropped."""
    mapped: dict[str, str] = {}
    dropped: dict[str, str] = {}
    refused: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    for key in found:
        if (reason := _reason(key, _REFUSED)) is not None:
            refused.setdefault(reason, []).append(key)
        elif (reason := _reason(key, _DROPPED)) is not None:
            dropped[key] = reason
        else:
            ours = _ours(key)
            if ours in owner:
                raise CheckpointError(f"{file}: {owner[ours]} and {key} are two names of one weight, {ours}")
            owner[ours], mapped[key] = key, ours
    if refused:
        raise CheckpointError(
            "\n".join(
                [f"{file}: cannot be imported", *(f"  {some_of(keys)}: {reason}" for reason, keys in refused.items())]
            )
        )
    return mapped, dropped


def _ours(key: str) -> str:
    key = _renamed(key, {there: here for here, there in _RENAMED})
    if key.startswith("visual_encoder.") and not key.startswith(_TOWER):
        key = _TOWER + key.removeprefix("visual_encoder.")
    return key


def _renamed(key: str, names: Mapping[str, str]) -> str:
    for here, there in names.items():
        if key == here or (here.endswith(".") and key.startswith(here)):
            return there + key.removeprefix(here)
    return key


def _reason(key: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    return next((reason for pattern, reason in rules if re.match(pattern, key)), None)


# --- settings --------------------------------------------------------------------------------------------------------


def _stage(state: State, file: str) -> Literal[1, 2, 3]:
    parts = {key.partition(".")[0] for key in state}
    if "segmentor" in parts and "llm" in parts:
        return 3
    if "segmentor" in parts and not parts & {"visual_encoder", *_PROJECTORS}:
        return 1
    if parts == set(_PROJECTORS):
        return 2
    raise CheckpointError(
        f"{file}: no stage of X-SAM: it holds {some_of(parts) or 'nothing'}; stage 1 has segmentor and seg_connector, "
        "stage 2 visual_projector and seg_projector, stage 3 everything"
    )


def _config(state: State, stage: int, base: XSamConfig, file: str) -> tuple[XSamConfig, dict[str, int]]:
    """Settings with what the tensors say, and that alone."""
    if stage == 2:
        return base, {}
    read = {
        "queries": _size(state, "segmentor.decoder.queries_features.weight", 0, file),
        "encoder layers of the pixel decoder": _layers(state, "segmentor.pixel_decoder.encoder.layers", file),
        "decoder layers": _layers(state, "segmentor.decoder.decoder.layers", file),
        "layers of the segmentation encoder": _layers(state, "segmentor.encoder.layers", file),
    }
    queries, of_pixels, of_decoder, of_encoder = read.values()
    config = replace(
        base,
        decoder=replace(base.decoder, num_queries=queries, encoder_layers=of_pixels, layers=of_decoder),
        seg_encoder=_with(base.seg_encoder, num_hidden_layers=of_encoder),
    )
    if "segmentor.class_predictor.weight" in state:
        read["classes"] = _size(state, "segmentor.class_predictor.weight", 0, file) - 1
        config = replace(config, head="linear", num_labels=read["classes"])
    if stage == 1:
        return (config if config.language is None else stage1(config)), read
    if config.language is None or config.image_encoder is None:
        raise CheckpointError(f"{file}: holds a language model, and the settings {base.name} have none")
    read["words"] = _size(state, "llm.model.embed_tokens.weight", 0, file)
    read["layers of the language model"] = _layers(state, "llm.model.layers", file)
    read["layers of the image encoder"] = _layers(state, _TOWER + "encoder.layers", file)
    return replace(
        config,
        language=_with(
            config.language, vocab_size=read["words"], num_hidden_layers=read["layers of the language model"]
        ),
        image_encoder=_with(config.image_encoder, num_hidden_layers=read["layers of the image encoder"]),
    ), read


def _with(part: Part, **settings: int) -> Part:
    return dataclasses.replace(part, settings={**part.settings, **settings})


def _size(state: State, key: str, dimension: int, file: str) -> int:
    if key not in state:
        raise CheckpointError(f"{file}: {key} is missing, whose shape is needed")
    if state[key].ndim != 2 or not state[key].numel():
        raise CheckpointError(f"{file}: {key} must be a matrix, and has the shape {list(state[key].shape)}")
    return state[key].shape[dimension]


def _layers(state: State, prefix: str, file: str) -> int:
    """How many layers there are."""
    begun = re.compile(rf"{re.escape(prefix)}\.(\d{{1,4}})\.")
    numbers = {int(found.group(1)) for key in state if (found := begun.match(key))}
    if not numbers or max(numbers) >= len(numbers):
        raise CheckpointError(f"{file}: {prefix} has {len(numbers)} layers, numbered up to {max(numbers, default=0)}")
    return len(numbers)


# --- files -----------------------------------------------------------------------------------------------------------


def _file_of(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in (BIN, "model.safetensors") if (path / name).is_file()]
        if not found:
            raise CheckpointError(f"{path}: neither {BIN} nor model.safetensors is here")
        return found[0]
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    return path


def _read_pickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` wrote, which stay in the file until they are used; no code is run."""
    _check_archive(file)
    try:
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        said = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines() or [""]
        raise CheckpointError(f"{file}: holds more than tensors, and is not loaded: {said[0]:.300}") from None
    except Exception as error:  # what damaged bytes lead to has no common base
        raise CheckpointError(f"{file}: damaged: {type(error).__name__}: {error!s:.300}") from None
    for key in ("state_dict", "module"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise CheckpointError(f"{file}: holds no weights by name, but a {type(loaded).__name__}")
    for key, value in loaded.items():
        _check_tensor(file, key, value)
    return dict(loaded)


def _check_archive(file: Path) -> None:
    """Refuse what is no plain archive of stored tensors, before anything of it is read."""
    size = file.stat().st_size
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{file}: truncated, or not written by torch.save (of torch 1.6 or later): {error}"
        ) from None
    if len(entries) > MAX_ENTRIES:
        raise CheckpointError(f"{file}: {len(entries):,} entries; at most {MAX_ENTRIES:,} can be")
    packed = [one.filename for one in entries if one.compress_type != zipfile.ZIP_STORED or one.flag_bits & 1]
    if packed:
        raise CheckpointError(
            f"{file}: compressed or encrypted entries, which torch.save does not write: {some_of(packed)}"
        )
    total = sum(one.file_size for one in entries)
    if total > size or any(one.header_offset + one.file_size > size for one in entries):
        raise CheckpointError(f"{file}: truncated: its entries have {total:,} bytes, the file {size:,}")
    for one in entries:
        if one.filename.endswith("data.pkl") and one.file_size > MAX_PICKLE:
            raise CheckpointError(f"{file}: {one.file_size:,} bytes describe its tensors; at most {MAX_PICKLE:,} can")


def _check_tensor(file: Path, key: object, value: object) -> None:
    if not isinstance(key, str):
        raise CheckpointError(f"{file}: a name must be a text, not {key!r:.80}")
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{file}: {key:.200} is no tensor but a {type(value).__name__}")
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        raise CheckpointError(f"{file}: {key:.200} is no plain tensor ({value.layout}, {value.device})")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(f"{file}: {key:.200} says {list(value.shape)}, for which the file has too few bytes")
