import dataclasses
import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from dataengine.errors import UserError  # noqa: E402
from model.config import PRESETS, ConnectorConfig, DecoderConfig, hub_config, stage1  # noqa: E402
from model.encoders import ImageEncoder  # noqa: E402
from model.projectors import Connector, Projector  # noqa: E402
from model.segmentor import (  # noqa: E402
    MaskDecoder,
    PixelDecoder,
    PixelFeatures,
    Segmentor,
    cosine_logits,
    hidden_places,
    mask2former_config,
    upsample_masks,
)
from tests.model.pyramids import hiera, swin  # noqa: E402

TINY = PRESETS["tiny"]
PIXEL, DECODER = "segmentor.pixel_decoder.", "segmentor.decoder."


class Recorded:
    """Both decoders with recorded weights, and the features of the recorded maps."""

    def __init__(self, case):
        config = case.config["mask2former"]
        settings = mask2former_config(
            DecoderConfig(
                hidden_dim=config["hidden_dim"],
                num_queries=config["num_queries"],
                heads=config["num_attention_heads"],
                encoder_layers=config["encoder_layers"],
                encoder_feedforward=config["encoder_feedforward_dim"],
                layers=config["decoder_layers"] - 1,
                feedforward=config["dim_feedforward"],
            )
        )
        self.pixel_decoder = PixelDecoder(settings, config["feature_channels"])
        self.decoder = MaskDecoder(settings)
        self.pixel_decoder.load_state_dict(case.tensors("weights_open", PIXEL))
        self.decoder.load_state_dict(case.tensors("weights_open", DECODER))
        self.logit_scale = case.tensors("weights_open")["segmentor.logit_scale"]
        maps = case.tensors("inputs")
        self.features = self.pixel_decoder([maps[f"feature_stride{stride}"] for stride in (8, 16, 32)])


@pytest.fixture
def recorded(golden):
    case = golden("mask2former")
    with torch.no_grad():
        yield case, Recorded(case)


def close(made, expected):
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def test_pixel_decoder_as_recorded(recorded):
    case, model = recorded
    expected = case.tensors("open_outputs")
    close(model.features.masks, expected["mask_features"])
    for level, made in enumerate(model.features.levels):
        close(made, expected[f"multi_scale_features.{level}"])


@pytest.mark.parametrize("variant", ["open", "ref", "linear"])
def test_every_prediction_as_recorded(recorded, variant):
    case, model = recorded
    expected = case.tensors(f"{variant}_outputs")
    inputs = {} if variant == "linear" else case.tensors(f"{variant}_inputs")
    features = model.features
    if variant == "ref":
        features = features.rows(torch.arange(2).repeat_interleave(inputs["cond_lens"].flatten()))
    states, masks = model.decoder.decode(features, inputs["seg_embeddings"][:, 0] if inputs else None)
    linear = case.tensors("weights_linear", "segmentor.class_predictor.")
    assert len(states) == len(masks) == case.config["mask2former"]["decoder_layers"]
    for k, (state, mask) in enumerate(zip(states, masks, strict=True)):
        close(state.transpose(0, 1), expected[f"intermediate_hidden_states.{k}"])
        close(mask, expected[f"mask_logits.{k}"])
        hidden = hidden_places(mask, features.levels[k % 3].shape[-2:])
        assert torch.equal(hidden, expected[f"attention_mask.{k}"].bool())
        if inputs:
            classes = cosine_logits(state, inputs["cond_embeddings"], model.logit_scale, inputs.get("embed_masks"))
        else:
            classes = torch.nn.functional.linear(state, linear["weight"], linear["bias"])
        close(classes, expected[f"class_logits.{k}"])
    if variant == "open":
        side = case.config["image_size"]
        close(upsample_masks(masks[-1][:, :1], (side, side)), expected["final_mask_logits_upsampled_q0"])


@pytest.mark.parametrize("scale", ["init", "small", "saturating"])
def test_cosine_head_as_recorded(golden, scale):
    case = golden("class_head")
    t = case.tensors("tensors")
    logit_scale = torch.tensor([case.config["scales"][scale]])
    close(cosine_logits(t["queries"], t["conditions"], logit_scale), t[f"logits_unmasked.{scale}"])
    masked = cosine_logits(t["queries"], t["conditions"], logit_scale, t["embed_masks"])
    close(masked, t[f"logits_masked.{scale}"])


def test_a_condition_of_zeros_has_logit_zero(golden):
    case = golden("class_head")
    t = case.tensors("tensors")
    logit_scale = torch.tensor([case.config["scales"]["init"]])
    made = cosine_logits(t["queries"], t["zero_condition"], logit_scale, t["embed_masks"])
    close(made, t["logits_zero_condition"])


def test_cosine_logits_by_hand():
    # cos 45° is 0.7071, the scale e^ln 10; the second condition is padding; background last
    queries = torch.tensor([[[2.0, 2.0]]])
    conditions = torch.tensor([[[3.0, 0.0], [9.0, 9.0], [-1.0, -1.0]]])
    scale = torch.tensor([math.log(10.0)])
    logits = cosine_logits(queries, conditions, scale, torch.tensor([[True, False, True]]))
    assert logits[0, 0].tolist() == pytest.approx([7.0710678, -1e9, -10.0])
    assert cosine_logits(queries, conditions, torch.tensor([9.0]))[0, 0, 1] == 500


@pytest.mark.parametrize(
    ("preset", "layout"), [("xsam-phi3-siglip2-saml", "s3_keys"), ("s1", "s1_keys")], ids=["stage 3", "stage 1"]
)
def test_names_and_shapes_are_those_of_the_released_checkpoint(golden, preset, layout):
    full = PRESETS["xsam-phi3-siglip2-saml"]
    config = stage1(full) if preset == "s1" else full
    released = {name: tuple(shape) for name, shape in golden("key_layout").json(layout).items()}
    released.pop("segmentor.shared_image_embedding.positional_embedding")  # a buffer of SAM that nothing reads
    assert {name: tuple(weight.shape) for name, weight in parts(config).state_dict().items()} == released


def test_parameter_counts_are_those_of_the_reference(golden):
    expected = golden("key_layout").config["numel"]["s3"]
    for name, part in parts(PRESETS["xsam-phi3-siglip2-saml"]).named_children():
        if name != "segmentor":
            assert sum(p.numel() for p in part.parameters()) == expected[name], name
        else:
            for inner in ("encoder", "pixel_decoder", "decoder"):
                made = sum(p.numel() for p in getattr(part, inner).parameters())
                assert made == expected[f"segmentor.{inner}"], inner


def test_the_tiny_preset_has_at_most_five_million_parameters():
    assert sum(p.numel() for p in parts(TINY).parameters()) <= 5_000_000


def parts(config):
    """Everything with weights, without memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        segmentor = Segmentor(config)
        channels = segmentor.encoder.state_channels
        made = {
            "segmentor": segmentor,
            "seg_connector": Connector(config.connector, [channels[i] for i in config.connector.layers]),
        }
        if config.language is not None:
            llm = AutoModelForCausalLM.from_config(hub_config(config.language))
            tower = ImageEncoder(config.image_encoder, config.visual_layer)
            dim, hidden = llm.config.hidden_size, config.decoder.hidden_dim
            made |= {
                "llm": llm,
                "visual_encoder": tower,
                "visual_projector": Projector(tower.dim, dim),
                "seg_projector": Projector(channels[config.visual_layer], dim, config.downsample),
                "llm_projector": Projector(dim, hidden),
                "bg_embeds": torch.nn.Embedding(1, hidden),
            }
        return torch.nn.ModuleDict(made)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return Segmentor(TINY).eval(), Connector(TINY.connector, [128] * 3)


def questions(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dim = TINY.decoder.hidden_dim
    return torch.randn(rows, dim, generator=generator) * 0.1, torch.randn(rows, 4, dim, generator=generator)


def pictures(count, seed=1):
    return torch.randn(count, 3, 128, 128, generator=torch.Generator().manual_seed(seed))


def features(model, pixels):
    segmentor, connector = model
    return segmentor.pixel_decoder(connector(segmentor.encode(pixels).levels))


def test_fresh_weights_are_what_training_wants(tiny):
    segmentor, _ = tiny
    pixel, decoder = segmentor.pixel_decoder, segmentor.decoder
    # the library leaves these unset, at 1, or as plain linear layers
    for weight in (pixel.level_embed, decoder.level_embed.weight, decoder.queries_features.weight):
        assert 0.01 < weight.std() < 0.03
    assert 0.01 < decoder.queries_embedder.weight.std() < 0.03
    sampling = pixel.encoder.layers[0].self_attn
    assert not sampling.sampling_offsets.weight.any()
    assert not sampling.attention_weights.weight.any()
    # 4 heads look right, down, left, up (y grows downwards); points 1 to 4 cells away, on each of 3 levels
    ways = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    expected = ways[:, None, None] * torch.arange(1.0, 5)[:, None] * torch.ones(4, 3, 1, 1)
    torch.testing.assert_close(sampling.sampling_offsets.bias.view(4, 3, 4, 2), expected, atol=1e-6, rtol=0)
    assert segmentor.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert all(parameter.isfinite().all() for parameter in segmentor.parameters())


def test_two_fresh_models_of_one_seed_are_alike():
    # no weight is left to whatever memory holds
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(Segmentor(TINY).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_shapes_of_every_prediction(tiny):
    seg, conditions = questions(2)
    with torch.no_grad():
        output = tiny[0](features(tiny, pictures(2)), seg, conditions)
    assert len(output.class_logits) == len(output.mask_logits) == TINY.decoder.layers + 1
    assert {tuple(x.shape) for x in output.class_logits} == {(2, 20, 4)}
    assert {tuple(x.shape) for x in output.mask_logits} == {(2, 20, 32, 32)}  # stride 4 of 128 px
    assert output.final[1] is output.mask_logits[-1]


def test_rows_of_one_picture_equal_the_questions_one_by_one(tiny):
    segmentor, _ = tiny
    seg, conditions = questions(3)
    with torch.no_grad():
        pixels = features(tiny, pictures(2))
        together = segmentor(pixels.rows(torch.tensor([0, 0, 1])), seg, conditions)
        for row, picture in enumerate((0, 0, 1)):
            alone = features(tiny, pictures(2)[picture : picture + 1])
            one = segmentor(alone, seg[row : row + 1], conditions[row : row + 1])
            for many, single in zip(together.final, one.final, strict=True):
                torch.testing.assert_close(many[row], single[0], atol=1e-4, rtol=0)


def test_the_seg_state_shifts_the_content_of_every_query_and_not_its_place(tiny):
    segmentor, _ = tiny
    seg, conditions = questions(1)
    with torch.no_grad():
        pixels = features(tiny, pictures(1))
        injected = segmentor(pixels, seg, conditions)
        content = segmentor.decoder.queries_features.weight
        before = content.clone()
        content += seg
        by_hand = segmentor(pixels, None, conditions)
        content.copy_(before)
        without = segmentor(pixels, None, conditions)
    torch.testing.assert_close(injected.final[1], by_hand.final[1], atol=1e-5, rtol=0)
    assert (injected.final[1] - without.final[1]).abs().max() > 1e-3


def test_gradient_reaches_every_weight_but_those_never_used():
    torch.manual_seed(0)
    segmentor, connector = Segmentor(TINY).train(), Connector(TINY.connector, [128] * 3)
    seg, conditions = questions(2)
    seg.requires_grad_()
    conditions.requires_grad_()
    output = segmentor(features((segmentor, connector), pictures(2)), seg, conditions)
    sum(x.square().mean() for x in (*output.class_logits, *output.mask_logits)).backward()
    without = {name for name, p in [*segmentor.named_parameters(), *connector.named_parameters()] if p.grad is None}
    assert {name.rsplit(".", 2)[0] for name in without} == {"encoder.neck"}
    assert seg.grad.abs().sum() > 0
    assert conditions.grad.abs().sum() > 0


def test_recomputing_layers_changes_no_gradient():
    torch.manual_seed(0)
    segmentor, connector = Segmentor(TINY).train(), Connector(TINY.connector, [128] * 3)
    seg, conditions = questions(1)
    ran = []
    for kept in (segmentor.encoder.layers[0].mlp, segmentor.pixel_decoder.encoder.layers[0].fc1):
        kept.register_forward_pre_hook(lambda module, *_: ran.append(module))
    segmentor.decoder.decoder.layers[0].fc1.register_forward_pre_hook(lambda module, *_: ran.append(module))
    gradients = []
    for on in (False, True):
        segmentor.set_checkpointing(on)
        segmentor.zero_grad()
        output = segmentor(features((segmentor, connector), pictures(1)), seg, conditions)
        sum(x.mean() for x in (*output.class_logits, *output.mask_logits)).backward()
        gradients.append([p.grad.clone() for p in segmentor.parameters() if p.grad is not None])
    assert len(ran) == 3 + 6  # once each, and twice each
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16 weights", "autocast"])
def test_low_precision_is_finite_and_near(tiny, autocast):
    torch.manual_seed(0)
    low = Segmentor(TINY).eval(), Connector(TINY.connector, [128] * 3)
    for module, source in zip(low, tiny, strict=True):
        module.load_state_dict(source.state_dict())
    seg, conditions = questions(1)
    with torch.no_grad():
        exact = features(tiny, pictures(1))
        if autocast:
            with torch.autocast("cpu", torch.bfloat16):
                rough = features(low, pictures(1))
                output = low[0](rough, seg, conditions)
        else:
            low[0].bfloat16(), low[1].bfloat16()
            rough = features(low, pictures(1).bfloat16())
            output = low[0](rough, seg.bfloat16(), conditions.bfloat16())
    assert rough.masks.dtype == torch.bfloat16
    error = (rough.masks.float() - exact.masks).abs().mean() / exact.masks.abs().mean()
    assert error < 0.05
    assert all(x.isfinite().all() for x in (*output.class_logits, *output.mask_logits))


def test_the_linear_head_needs_no_language():
    config = dataclasses.replace(stage1(TINY), num_labels=7)
    model = Segmentor(config).eval(), Connector(TINY.connector, [128] * 3)
    with torch.no_grad():
        assert model[0](features(model, pictures(1))).final[0].shape == (1, 20, 8)
    assert "logit_scale" not in model[0].state_dict()


def test_the_cosine_head_asks_for_conditions(tiny):
    with torch.no_grad(), pytest.raises(ValueError, match="condition vectors"):
        tiny[0](features(tiny, pictures(1)))


@pytest.mark.parametrize(
    "change",
    [{"connector": ConnectorConfig(hidden_dim=64)}, {"visual_layer": -9}],
    ids=["connector of a deeper one", "tokens"],
)
def test_hidden_states_the_encoder_does_not_have(change):
    with pytest.raises(UserError, match="tiny: the segmentation encoder has 5 hidden states"):
        Segmentor(dataclasses.replace(TINY, **change))


def test_rows_repeat_features():
    made = PixelFeatures(masks=torch.arange(2.0).view(2, 1, 1, 1), levels=(torch.arange(2.0).view(2, 1, 1, 1),))
    rows = made.rows(torch.tensor([1, 0, 1]))
    assert rows.masks.flatten().tolist() == rows.levels[0].flatten().tolist() == [1, 0, 1]


@pytest.mark.parametrize("encoder", [swin(64), hiera(64)], ids=["Swin", "SAM 2 Hiera"])
def test_an_encoder_with_a_pyramid_of_its_own(encoder):
    # stages 2 to 4 have strides 8, 16, 32 already, so the connector keeps their sizes
    config = dataclasses.replace(
        TINY,
        seg_encoder=encoder,
        connector=ConnectorConfig(hidden_dim=32, layers=(1, 2, 3), scales=(1.0, 1.0, 1.0)),
        seg_px=64,
    )
    torch.manual_seed(0)
    segmentor = Segmentor(config).train()
    segmentor.set_checkpointing(True)
    connector = Connector(config.connector, [32, 64, 128])
    encoded = segmentor.encode(torch.randn(2, 3, 64, 64))
    assert encoded.tokens.shape == (2, 4, 4, 64)  # the stage before the last
    maps = connector(encoded.levels)
    assert [tuple(x.shape) for x in maps] == [(2, 32, 8, 8), (2, 64, 4, 4), (2, 128, 2, 2)]
    classes, masks = segmentor(segmentor.pixel_decoder(maps), *questions(2)).final
    assert classes.shape == (2, 20, 4)
    assert masks.shape == (2, 20, 8, 8)
    (classes.square().mean() + masks.square().mean()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in connector.parameters())
    assert any(x.grad is not None and x.grad.any() for x in segmentor.encoder.parameters())
