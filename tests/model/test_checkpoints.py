"""Checkpoints of our own, released ones in both directions, and parts in the hub's layouts, on small real models."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from dataengine.errors import UserError  # noqa: E402
from model import checkpoints  # noqa: E402
from model.checkpoints import (  # noqa: E402
    HANDED_ON,
    CheckpointError,
    from_pretrained,
    load_into,
    read_state,
    save_pretrained,
    without_values,
)
from model.config import ConnectorConfig, DecoderConfig, Part, XSamConfig, hub_config, preset, stage1  # noqa: E402
from model.encoders import ImageEncoder  # noqa: E402
from model.parts import export_part, load_part  # noqa: E402
from model.projectors import Connector, Projector  # noqa: E402
from model.released import from_released, import_released, to_released  # noqa: E402
from model.segmentor import Segmentor  # noqa: E402


class Whole(nn.Module):
    """All parts of an X-SAM under their names."""

    def __init__(self, config: XSamConfig) -> None:
        super().__init__()
        self.segmentor = Segmentor(config)
        channels = self.segmentor.encoder.state_channels
        self.seg_connector = Connector(config.connector, [channels[layer] for layer in config.connector.layers])
        if config.language is None or config.image_encoder is None:
            return
        self.llm = AutoModelForCausalLM.from_config(hub_config(config.language))
        self.visual_encoder = ImageEncoder(config.image_encoder, config.visual_layer)
        dim, hidden = self.llm.config.hidden_size, config.decoder.hidden_dim
        self.visual_projector = Projector(self.visual_encoder.dim, dim)
        self.seg_projector = Projector(channels[config.visual_layer], dim, config.downsample)
        self.llm_projector = Projector(dim, hidden)
        self.bg_embeds = nn.Embedding(1, hidden)


# the sizes of the recorded whole model (golden/model/e2e)
SMALL = XSamConfig(
    name="small",
    language=Part(
        kind="phi3",
        settings={
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 256,
            "pad_token_id": 0,
            "tie_word_embeddings": False,
        },
    ),
    image_encoder=Part(
        kind="siglip_vision_model",
        settings={
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": 28,
            "patch_size": 14,
        },
    ),
    seg_encoder=Part(
        kind="sam_vision_model",
        settings={
            "hidden_size": 32,
            "output_channels": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 128,
            "patch_size": 16,
            "window_size": 3,
            "global_attn_indexes": [1, 3],
            "mlp_dim": 64,
        },
    ),
    connector=ConnectorConfig(hidden_dim=16, layers=(2, 3, 4)),
    decoder=DecoderConfig(
        hidden_dim=32, num_queries=10, heads=4, encoder_layers=2, encoder_feedforward=48, layers=3, feedforward=64
    ),
    image_px=28,
    seg_px=128,
)
TIED = replace(
    SMALL,
    language=Part(
        kind="qwen3",
        settings={
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "tie_word_embeddings": True,
        },
    ),
)
# knows heads and widths, and has every count wrong that a file tells
IGNORANT = replace(
    SMALL,
    language=Part(kind="phi3", settings={**SMALL.language.settings, "vocab_size": 7, "num_hidden_layers": 1}),
    image_encoder=Part(kind="siglip_vision_model", settings={**SMALL.image_encoder.settings, "num_hidden_layers": 1}),
    seg_encoder=Part(kind="sam_vision_model", settings={**SMALL.seg_encoder.settings, "num_hidden_layers": 9}),
    decoder=replace(SMALL.decoder, num_queries=3, layers=1, encoder_layers=1),
)


@pytest.fixture(scope="module")
def whole():
    torch.manual_seed(0)
    return Whole(SMALL)


def same(one, other):
    """Whether two state dicts hold the same values in the same dtypes."""
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


# --- our own folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["5GB", "100KB"], ids=["one file", "shards"])
def test_what_is_saved_is_loaded(tmp_path, whole, size):
    folder = tmp_path / "checkpoint"
    save_pretrained(whole, folder, SMALL, max_shard_size=size)
    assert (folder / "model.safetensors").exists() == (size == "5GB")
    loaded = from_pretrained(folder, Whole)
    assert same(loaded.state_dict(), whole.state_dict())
    assert checkpoints.load_config(folder) == SMALL
    ids = torch.arange(12)[None]
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():  # also what is computed, and so not saved, must be there
        assert torch.equal(loaded.llm(input_ids=ids).logits, whole.eval().llm(input_ids=ids).logits)
        assert torch.equal(loaded.visual_encoder(pixels), whole.visual_encoder(pixels))
    assert all(not tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    assert sorted(file.name for file in folder.iterdir() if not file.name.startswith("model")) == ["config.json"]


def test_a_folder_is_replaced_whole(tmp_path, whole):
    save_pretrained(whole, tmp_path, SMALL, max_shard_size="100KB")
    save_pretrained(whole, tmp_path, SMALL)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    save_pretrained(whole, tmp_path, SMALL, max_shard_size="100KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert same(read_state(tmp_path), whole.state_dict())


def test_dtypes_are_kept_unless_another_is_asked_for(tmp_path):
    model = Whole(stage1(SMALL))
    model.segmentor.encoder.bfloat16()
    save_pretrained(model, tmp_path, stage1(SMALL))
    loaded = from_pretrained(tmp_path, Whole)
    assert loaded.segmentor.encoder.pos_embed.dtype == torch.bfloat16
    assert loaded.seg_connector.model[0].model[0].weight.dtype == torch.float32
    loaded = from_pretrained(tmp_path, Whole, dtype=torch.float16)
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float16}


def test_what_is_computed_stays_exact_in_low_precision(tmp_path, whole):
    save_pretrained(whole, tmp_path, SMALL)
    loaded = from_pretrained(tmp_path, Whole, dtype=torch.bfloat16)
    assert loaded.llm.lm_head.weight.dtype == torch.bfloat16
    # rotary frequencies: a phase of a thousand positions has no digit left after the point in bfloat16
    frequencies = loaded.llm.model.rotary_emb.inv_freq
    assert frequencies.dtype == torch.float32
    assert torch.equal(frequencies, whole.llm.model.rotary_emb.inv_freq)


def test_files_that_are_not_ours_stay(tmp_path):
    (tmp_path / "model-best.safetensors").write_bytes(b"of somebody else")
    save_pretrained(Whole(stage1(SMALL)), tmp_path, stage1(SMALL))
    assert (tmp_path / "model-best.safetensors").exists()


def test_tied_weights_are_kept_once_and_stay_tied(tmp_path):
    model = Whole(TIED)
    save_pretrained(model, tmp_path, TIED)
    stored = read_state(tmp_path)
    assert len({"llm.lm_head.weight", "llm.model.embed_tokens.weight"} & stored.keys()) == 1
    loaded = from_pretrained(tmp_path, Whole)
    assert loaded.llm.lm_head.weight is loaded.llm.model.embed_tokens.weight
    assert torch.equal(loaded.llm.lm_head.weight, model.llm.lm_head.weight)
    # one that was written with both, and not alike, cannot be loaded
    both = {**stored, "llm.lm_head.weight": torch.zeros(64, 32), "llm.model.embed_tokens.weight": torch.ones(64, 32)}
    with pytest.raises(CheckpointError, match="tied in the model, but different"):
        load_into(model, both)


def test_all_that_does_not_fit_is_told_and_nothing_is_loaded(whole):
    model = Whole(SMALL)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state = dict(whole.state_dict())
    del state["bg_embeds.weight"]
    state["segmentor.decoder.queries_features.weight"] = torch.zeros(11, 32)
    state["segmentor.text_cross_attn.weight"] = torch.zeros(2)
    with pytest.raises(CheckpointError) as caught:
        load_into(model, state, name="here.safetensors")
    message = str(caught.value)
    assert message.startswith("here.safetensors: does not fit")
    assert "1 missing: bg_embeds.weight [1, 32]" in message
    assert "segmentor.decoder.queries_features.weight [11, 32], where the model has [10, 32]" in message
    assert "1 unknown to the model: segmentor.text_cross_attn.weight [2]" in message
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("is_new", [True, False], ids=["model without values", "model with values"])
def test_whole_numbers_are_no_weights(is_new):
    config = stage1(SMALL)
    model = without_values(Whole, config) if is_new else Whole(config)
    state = dict(Whole(config).state_dict())
    state["segmentor.decoder.queries_features.weight"] = torch.zeros(10, 32, dtype=torch.int8)
    with pytest.raises(CheckpointError, match=r"another kind.*decoder\.queries_features\.weight"):
        load_into(model, state)


def test_a_stage_takes_what_it_names_of_the_one_before(whole):
    first = Whole(stage1(SMALL))
    model = Whole(SMALL)
    scale = model.segmentor.logit_scale.clone()
    load_into(model, first.state_dict(), only=HANDED_ON[1])
    assert same(model.segmentor.decoder.state_dict(), first.segmentor.decoder.state_dict())
    assert same(model.seg_connector.state_dict(), first.seg_connector.state_dict())
    assert torch.equal(model.segmentor.logit_scale, scale)
    with pytest.raises(CheckpointError, match="nothing of visual_projector, seg_projector"):
        load_into(model, first.state_dict(), only=HANDED_ON[2])
    half = {key: tensor for key, tensor in whole.state_dict().items() if key.startswith("visual_projector")}
    with pytest.raises(CheckpointError, match="missing: seg_projector"):
        load_into(model, half, only=HANDED_ON[2])


def test_a_model_that_exists_keeps_its_dtype():
    model, state = Whole(stage1(SMALL)).bfloat16(), Whole(stage1(SMALL)).state_dict()
    load_into(model, state)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.segmentor.encoder.pos_embed, state["segmentor.encoder.pos_embed"].bfloat16())


def truncate(folder, index):
    file = folder / min(index["weight_map"].values())
    file.write_bytes(file.read_bytes()[:-100])


def outside(folder, index):
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../model.safetensors")


def lie(folder, index):
    index["weight_map"].popitem()


def no_map(folder, index):
    index["weight_map"] = [1]


def shard_gone(folder, index):
    (folder / min(index["weight_map"].values())).unlink()


def no_config(folder, index):
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (truncate, "truncated"),
        (outside, r"no \.safetensors file of this folder"),
        (lie, "holds other weights than"),
        (no_map, "must name a file"),
        (shard_gone, "00001-of"),
        (no_config, r"config\.json: cannot be read"),
    ],
)
def test_damaged_folders_are_refused(tmp_path, change, message):
    save_pretrained(Whole(stage1(SMALL)), tmp_path, stage1(SMALL), max_shard_size="100KB")
    index = json.loads((tmp_path / checkpoints.INDEX).read_text())
    change(tmp_path, index)
    (tmp_path / checkpoints.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        from_pretrained(tmp_path, Whole)


def test_an_empty_folder_has_no_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"no model\.safetensors here"):
        read_state(tmp_path)


def test_a_model_without_values_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match="without values"):
        save_pretrained(without_values(Whole, stage1(SMALL)), tmp_path, stage1(SMALL))


# --- released files --------------------------------------------------------------------------------------------------


def released(state, extra=True):
    """A state dict as the authors' code writes it."""
    found = to_released(state)
    if extra:
        found["segmentor.shared_image_embedding.positional_embedding"] = torch.zeros(2, 8)
    return found


def test_a_released_file_loads_with_the_counts_that_its_tensors_tell(tmp_path, whole):
    file = tmp_path / "pytorch_model.bin"
    torch.save(released(whole.state_dict()), file)
    config, state, report = import_released(tmp_path, Whole, IGNORANT)
    assert config == replace(
        IGNORANT, **{f: getattr(SMALL, f) for f in ("language", "image_encoder", "seg_encoder", "decoder")}
    )
    assert same(state, whole.state_dict())
    assert (report.stage, report.layout, len(report.mapped), report.missing) == (3, "aaai", len(state), {})
    assert list(report.dropped) == ["segmentor.shared_image_embedding.positional_embedding"]
    assert report.read["queries"] == 10
    assert report.read["words"] == 64
    lines = report.lines()
    assert "stage 3" in lines[0]
    assert "never uses" in lines[2]
    model = without_values(Whole, config)
    load_into(model, state)
    save_pretrained(model, tmp_path / "ours", config)
    assert same(from_pretrained(tmp_path / "ours", Whole).state_dict(), whole.state_dict())


def test_the_recorded_whole_model_is_one(fixtures):
    file = fixtures / "golden" / "model" / "e2e" / "weights.safetensors"
    config, state, report = import_released(file, Whole, IGNORANT)
    assert (config.decoder.num_queries, config.decoder.layers, config.decoder.encoder_layers) == (10, 3, 2)
    assert len(report.mapped) == 315
    assert len(report.dropped) == 1
    load_into(Whole(config), state)


def test_the_recorded_stage_1_is_one(fixtures):
    golden = fixtures / "golden" / "model"
    found = load_file(golden / "e2e" / "weights.safetensors")
    found = {key: tensor for key, tensor in found.items() if key.startswith(("segmentor.", "seg_connector."))}
    del found["segmentor.logit_scale"]
    found |= load_file(golden / "e2e_s1" / "weights_extra.safetensors")
    assert len(found) == json.loads((golden / "e2e_s1" / "config.json").read_text())["num_keys"]
    config, state, report = from_released(found, Whole, IGNORANT)
    assert (report.stage, config.num_labels, report.read["classes"], len(state)) == (1, 7, 7, len(found) - 1)
    load_into(Whole(config), state)


@pytest.mark.parametrize("stage", [1, 3])
def test_the_released_layout_at_full_size_maps_both_ways(fixtures, stage):
    text = (fixtures / "golden" / "model" / "key_layout" / f"s{stage}_keys.json").read_text()
    found = {key: torch.empty(shape, device="meta") for key, shape in json.loads(text).items()}
    base = preset("xsam-phi3-siglip2-saml")
    base = base if stage == 3 else stage1(base)
    full = without_values(Whole, base)
    config, state, report = from_released(found, lambda _: full, base)
    assert config == base  # the preset's counts are those of the file
    dropped = {"segmentor.shared_image_embedding.positional_embedding"}
    assert set(report.dropped) == dropped
    assert (report.stage, len(report.mapped)) == (stage, len(found) - 1)
    assert to_released(state).keys() == found.keys() - dropped
    there = to_released(state, "main")
    renamed = {key for key in there if key not in state and not key.startswith("vision_encoder.vision_model.")}
    of_head = ["logit_scale"] if stage == 3 else ["predictor.weight", "predictor.bias"]
    assert renamed == {f"segmentor.class_predictor.{name}" for name in of_head}
    again, back, other = from_released(there, lambda _: full, base)
    assert (again, other.layout) == (config, "main")
    assert back.keys() == state.keys()
    assert all(back[key] is state[key] for key in state)


def test_names_of_the_default_branch(whole):
    there = to_released(whole.state_dict(), "main")
    assert "segmentor.class_predictor.logit_scale" in there
    assert "vision_encoder.vision_model.post_layernorm.weight" in there
    first = to_released(Whole(stage1(SMALL)).state_dict(), "main")
    assert "segmentor.class_predictor.predictor.weight" in first


def test_files_without_siglips_inner_level_map_too(whole):
    found = {key.replace("visual_encoder.vision_model.", "visual_encoder."): t for key, t in whole.state_dict().items()}
    _, state, _ = from_released(found, Whole, SMALL)
    assert same(state, whole.state_dict())


def test_stage_1_tells_its_number_of_classes(tmp_path):
    model = Whole(replace(stage1(SMALL), num_labels=7))
    file = tmp_path / "stage1.bin"
    torch.save(released(model.state_dict()), file)
    config, state, report = import_released(file, Whole, SMALL)
    assert (report.stage, config.num_labels, config.head, config.language) == (1, 7, "linear", None)
    assert same(state, model.state_dict())


def test_stage_2_holds_two_projectors(tmp_path, whole):
    found = {key: tensor for key, tensor in whole.state_dict().items() if key.startswith(HANDED_ON[2])}
    torch.save(found, tmp_path / "pytorch_model.bin")
    config, state, report = import_released(tmp_path, Whole, SMALL)
    assert (report.stage, config, len(state)) == (2, SMALL, 8)
    assert len(report.missing) == len(whole.state_dict()) - 8
    assert f"{len(report.missing):,} missing: stage 2" in "\n".join(report.lines())
    del found["seg_projector.model.2.bias"]
    with pytest.raises(CheckpointError, match=r"missing: seg_projector\.model\.2\.bias"):
        from_released(found, Whole, SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("segmentor.decoder.queries_features.weight"), "queries_features.weight is missing"),
        (lambda s: s.pop("seg_connector.model.1.model.0.weight"), "missing: seg_connector.model.1.model.0.weight"),
        (
            lambda s: s.update({"llm.lm_head.weight": torch.zeros(63, 32)}),
            r"\[63, 32\], where the model has \[64, 32\]",
        ),
        (lambda s: s.update({"segmentor.memory.weight": torch.zeros(1)}), "1 unknown to the model: segmentor.memory"),
        (lambda s: s.update({"vlm.visual.weight": torch.zeros(1)}), "Qwen3-VL"),
        (lambda s: s.update({"llm.model.layers.0.lora_A.weight": torch.zeros(1)}), "merge"),
        (lambda s: s.update({"llm.model.layers.9999.mlp.down_proj.weight": torch.zeros(1)}), "numbered up to 9999"),
        (lambda s: s.update({"segmentor.class_predictor.logit_scale": torch.zeros(1)}), "two names of one weight"),
        (lambda s: s.update({"segmentor.decoder.queries_features.weight": torch.zeros(3)}), "must be a matrix"),
        (
            lambda s: [s.pop(key) for key in list(s) if key.startswith("segmentor.encoder.layers.3")],
            "4 hidden states, none is 4",
        ),
        (lambda s: [s.pop(key) for key in list(s) if key.startswith("segmentor.")], "no stage of X-SAM"),
        (lambda s: s.clear(), "nothing"),
    ],
    ids=[
        "no queries",
        "no weight",
        "shape",
        "unknown",
        "Qwen3-VL",
        "adapter",
        "layers",
        "twice",
        "rank",
        "shallow",
        "half",
        "none",
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(whole, change, message):
    found = released(whole.state_dict())
    change(found)
    with pytest.raises(CheckpointError, match=message):
        from_released(found, Whole, SMALL, file="x.bin")


def test_stage_3_needs_settings_with_a_language_model(whole):
    with pytest.raises(CheckpointError, match="the settings small-s1 have none"):
        from_released(whole.state_dict(), Whole, stage1(SMALL))


# --- files that are no checkpoints -----------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return (print, ("code was run",))


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"segmentor.logit_scale": Evil()}, file)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        import_released(file, Whole)
    assert capsys.readouterr().out == ""


def test_a_packed_file_is_refused_before_it_is_unpacked(tmp_path):
    plain, bomb = tmp_path / "plain.bin", tmp_path / "bomb.bin"
    torch.save({"a": torch.zeros(1 << 20)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    assert bomb.stat().st_size < 20_000
    with pytest.raises(CheckpointError, match="compressed or encrypted"):
        import_released(bomb, Whole)


def test_entries_that_share_bytes_are_refused(tmp_path):
    file = tmp_path / "overlap.bin"
    torch.save({"a": torch.zeros(1000), "b": torch.zeros(1000)}, file)
    content = bytearray(file.read_bytes())
    # in the directory at the end, both sizes of the last large entry are made as large as the whole file
    place = content.rfind(struct.pack("<II", 4000, 4000))
    content[place : place + 8] = struct.pack("<II", len(content), len(content))
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"truncated: its entries have"):
        import_released(file, Whole)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, whole, kept):
    file = tmp_path / "pytorch_model.bin"
    torch.save(released(whole.state_dict()), file)
    content = file.read_bytes()
    file.write_bytes(content[: kept if kept > 1 else int(len(content) * kept)])
    with pytest.raises(CheckpointError, match="truncated"):
        import_released(file, Whole)


def test_truncated_safetensors_are_refused(tmp_path, whole):
    file = tmp_path / "model.safetensors"
    save_file(released(whole.state_dict()), file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        import_released(tmp_path, Whole)


def test_a_tensor_that_says_more_than_the_file_has_is_refused(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"llm.model.embed_tokens.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, file)
    with pytest.raises(CheckpointError, match="too few bytes"):
        import_released(file, Whole)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.zeros(1)], "but a list"),
        ({}, "but a dict"),
        ({1: torch.zeros(1)}, "must be a text"),
        ({"a": 1}, "no tensor but a int"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "no plain tensor"),
    ],
    ids=["list", "empty", "number", "no tensor", "sparse"],
)
def test_what_is_no_state_dict_is_refused(tmp_path, value, message):
    file = tmp_path / "pytorch_model.bin"
    torch.save(value, file)
    with pytest.raises(CheckpointError, match=message):
        import_released(file, Whole)


def test_other_pickles_and_files_are_refused(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match=r"not written by torch\.save"):
        import_released(file, Whole)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "no tensors")
    with pytest.raises(CheckpointError, match="damaged"):
        import_released(file, Whole)
    with pytest.raises(CheckpointError, match="no such file"):
        import_released(tmp_path / "nothing.bin", Whole)
    file.unlink()
    with pytest.raises(CheckpointError, match="neither"):
        import_released(tmp_path, Whole)


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["llm", "visual_encoder", "segmentor.encoder", "seg_connector", "segmentor.decoder"])
def test_a_part_that_was_written_is_read(tmp_path, whole, part):
    export_part(whole, part, tmp_path)
    torch.manual_seed(1)
    other = Whole(SMALL)
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    if part in ("llm", "visual_encoder", "segmentor.encoder"):
        loaded = load_part(other, part, tmp_path)
        assert loaded.left == ()
    else:
        load_into(other, read_state(tmp_path), only=[part])
    for key, tensor in other.state_dict().items():
        expected = whole.state_dict() if key.startswith(part + ".") else before
        assert torch.equal(tensor, expected[key])


def test_parts_are_read_by_the_librarys_own_classes(tmp_path, whole):
    from transformers import SamVisionModel, SiglipVisionModel

    for part in ("llm", "visual_encoder", "segmentor.encoder"):
        export_part(whole, part, tmp_path / part)
    llm, info = AutoModelForCausalLM.from_pretrained(tmp_path / "llm", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert same(llm.state_dict(), whole.llm.state_dict())
    siglip = SiglipVisionModel.from_pretrained(tmp_path / "visual_encoder")
    assert same(siglip.state_dict(), whole.visual_encoder.vision_model.state_dict())
    sam, info = SamVisionModel.from_pretrained(tmp_path / "segmentor.encoder", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert same(sam.vision_encoder.state_dict(), whole.segmentor.encoder.state_dict())


def test_encoders_load_from_the_whole_models_they_are_published_in(tmp_path, whole):
    from transformers import SamConfig, SamModel, SiglipConfig, SiglipModel

    sam = SamModel(
        SamConfig(
            vision_config={**SMALL.seg_encoder.settings, "num_pos_feats": 16},
            prompt_encoder_config={"hidden_size": 16, "image_embedding_size": 8, "image_size": 128},
            mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 16, "iou_head_hidden_dim": 16},
        )
    )
    nn.init.normal_(sam.vision_encoder.pos_embed)
    sam.save_pretrained(tmp_path / "sam")
    text = {
        "hidden_size": 24,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    siglip = SiglipModel(SiglipConfig(vision_config=SMALL.image_encoder.settings, text_config=text))
    siglip.save_pretrained(tmp_path / "siglip")
    model = Whole(SMALL)
    load_part(model, "segmentor.encoder", tmp_path / "sam")
    assert same(model.segmentor.encoder.state_dict(), sam.vision_encoder.state_dict())
    load_part(model, "visual_encoder", tmp_path / "siglip")
    assert same(model.visual_encoder.vision_model.state_dict(), siglip.vision_model.state_dict())


@pytest.mark.parametrize("rows", [70, 60], ids=["cut", "grown"])
def test_a_language_models_rows_become_ours(tmp_path, rows):
    config = replace(SMALL, language=Part(kind="phi3", settings={**SMALL.language.settings, "vocab_size": rows}))
    source = Whole(config).llm
    source.save_pretrained(tmp_path)
    model = Whole(SMALL)
    loaded = load_part(model, "llm", tmp_path)
    assert loaded.left == (
        f"llm.model.embed_tokens.weight: {rows} rows to 64",
        f"llm.lm_head.weight: {rows} rows to 64",
    )
    ours, theirs = model.llm.lm_head.weight, source.lm_head.weight
    common = min(rows, 64)
    assert torch.equal(ours[:common], theirs[:common])
    for row in ours[common:]:
        assert torch.allclose(row, theirs.mean(dim=0), atol=1e-6)


def test_mask2former_gives_what_does_not_depend_on_its_encoder(tmp_path, whole):
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    settings = Mask2FormerConfig(
        backbone_config=SwinConfig(
            image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=32, mask_feature_size=32, hidden_dim=32, num_attention_heads=4, num_queries=10, encoder_layers=2,
        encoder_feedforward_dim=48, decoder_layers=4, dim_feedforward=64,
    )  # fmt: skip
    source = Mask2FormerForUniversalSegmentation(settings)
    source.save_pretrained(tmp_path)
    model = Whole(SMALL)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    loaded = load_part(model, "mask2former", tmp_path)
    assert same(model.segmentor.decoder.state_dict(), source.model.transformer_module.state_dict())
    theirs = source.model.pixel_level_module.decoder.state_dict()
    for key, tensor in model.segmentor.pixel_decoder.state_dict().items():
        name = f"segmentor.pixel_decoder.{key}"
        assert torch.equal(tensor, before[name] if name in loaded.left else theirs[key])
    assert loaded.left
    assert all("input_projections" in name or "adapter_1" in name for name in loaded.left)


@pytest.mark.parametrize(
    ("part", "message"),
    [("seg_connector", "no weights are published"), ("llm", "of kind qwen3, where the model has phi3")],
)
def test_parts_of_another_kind_are_refused(tmp_path, whole, part, message):
    Whole(TIED).llm.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_part(whole, part, tmp_path)


def test_a_part_of_another_size_is_refused(tmp_path, whole):
    other = replace(SMALL, language=Part(kind="phi3", settings={**SMALL.language.settings, "intermediate_size": 40}))
    Whole(other).llm.save_pretrained(tmp_path)
    before = whole.llm.lm_head.weight.clone()
    with pytest.raises(CheckpointError, match=r"of another shape: llm\.model\.layers\.0\.mlp\.down_proj"):
        load_part(whole, "llm", tmp_path)
    assert torch.equal(whole.llm.lm_head.weight, before)
    file = next(tmp_path.glob("*.safetensors"))
    save_file({k: v for k, v in load_file(file).items() if "layers.1" not in k}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="missing keys of AutoModelForCausalLM"):
        load_part(whole, "llm", tmp_path)
    with pytest.raises(CheckpointError, match="no weights of AutoModelForCausalLM"):
        load_part(whole, "llm", tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no part 'vision_tower'"):
        export_part(whole, "vision_tower", tmp_path)
