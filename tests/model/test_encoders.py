from collections import Counter

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from dataengine.errors import UserError  # noqa: E402
from model.config import PRESETS, Part  # noqa: E402
from model.encoders import ImageEncoder, build_seg_encoder, set_checkpointing  # noqa: E402
from tests.model.pyramids import hiera, swin  # noqa: E402

SAM = Part(
    kind="sam_vision_model",
    settings={
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 16,
        "window_size": 3,
        "global_attn_indexes": [1],
        "mlp_dim": 64,
        "output_channels": 16,
        "initializer_range": 0.02,
    },
)
SWIN, HIERA = swin(64), hiera(64)
SIGLIP = Part(
    kind="siglip_vision_model",
    settings={
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
    },
)


@pytest.mark.parametrize(
    ("part", "channels", "strides"),
    [
        pytest.param(SAM, (32,) * 4, (16,) * 4, id="SAM ViT"),
        pytest.param(SWIN, (16, 32, 64, 128), (4, 8, 16, 32), id="Swin"),
        pytest.param(HIERA, (16, 32, 64, 128), (4, 8, 16, 32), id="SAM 2 Hiera"),
    ],
)
def test_states_have_the_channels_and_strides_they_promise(part, channels, strides):
    torch.manual_seed(0)
    encoder = build_seg_encoder(part)
    assert encoder.state_channels == channels
    assert encoder.state_strides == strides
    states = encoder.states(torch.randn(2, 3, 64, 64))
    assert [tuple(s.shape) for s in states] == [
        (2, 64 // stride, 64 // stride, width) for stride, width in zip(strides, channels, strict=True)
    ]
    assert all(state.std() > 1e-3 and state.isfinite().all() for state in states)


@pytest.mark.parametrize("part", [SAM, HIERA], ids=["SAM ViT", "SAM 2 Hiera"])
def test_a_fresh_encoder_tells_places_apart(part):
    # with positions at zero and one colour everywhere, all inner positions would be alike
    torch.manual_seed(0)
    encoder = build_seg_encoder(part).eval()
    state = encoder.states(torch.ones(1, 3, 64, 64))[0]
    assert state[0].flatten(0, 1).std(0).max() > 1e-3


def test_sam_states_as_recorded(golden):
    case = golden("sam_encoder")
    encoder = build_seg_encoder(Part(kind="sam_vision_model", settings=case.config["vision_config"]))
    encoder.load_state_dict(case.tensors("weights", "segmentor.encoder."))
    io = case.tensors("io")
    with torch.no_grad():
        states = encoder.states(io["pixel_values"])
        after_neck = encoder(io["pixel_values"]).last_hidden_state
    assert len(states) == case.config["num_hidden_states"]
    for index, state in enumerate(states):
        torch.testing.assert_close(state, io[f"hidden_states.{index}"], atol=1e-5, rtol=0)
    torch.testing.assert_close(after_neck, io["last_hidden_state"], atol=1e-5, rtol=0)


def test_sam_weights_have_a_size_that_trains():
    torch.manual_seed(0)
    encoder = build_seg_encoder(PRESETS["tiny"].seg_encoder)
    for name, weight in encoder.named_parameters():
        if weight.dim() > 1 and "rel_pos" not in name:
            assert 0.01 < weight.std() < 0.03, name


@pytest.mark.parametrize("layer", [-2, -1, 1])
def test_picture_tokens_are_the_librarys_hidden_state(layer):
    torch.manual_seed(0)
    encoder = ImageEncoder(SIGLIP, layer).eval()
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = encoder.vision_model(pixels, output_hidden_states=True).hidden_states[layer]
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-6, rtol=0)
    assert expected.shape == (2, 4, encoder.dim)


@pytest.mark.parametrize("again", [False, True], ids=["stored", "computed again"])
def test_unused_blocks_get_no_gradient(again):
    encoder = ImageEncoder(SIGLIP, -2).train()
    set_checkpointing(encoder.vision_model, again)
    encoder(torch.randn(1, 3, 28, 28)).sum().backward()
    without = {name.split("vision_model.")[1] for name, p in encoder.named_parameters() if p.grad is None}
    assert {name.split(".")[0] for name in without} == {"encoder", "post_layernorm", "head"}
    assert all(name.startswith("encoder.layers.2.") for name in without if name.startswith("encoder"))


@pytest.mark.parametrize("part", [SAM, SWIN, HIERA], ids=["SAM ViT", "Swin", "SAM 2 Hiera"])
def test_layers_are_computed_twice_and_no_more_where_they_are_not_stored(part):
    torch.manual_seed(0)
    encoder = build_seg_encoder(part).train()
    pixels = torch.randn(1, 3, 64, 64)
    ran = Counter()
    for name, module in encoder.named_modules():
        if name.endswith(("mlp.fc1", "mlp.lin1", "mlp.proj_in")):
            module.register_forward_pre_hook(lambda *_, name=name: ran.update([name]))
    gradients = []
    for again in (False, True, False):
        ran.clear()
        set_checkpointing(encoder, again)
        encoder.zero_grad()
        sum(state.square().mean() for state in encoder.states(pixels)).backward()
        assert ran
        assert set(ran.values()) == {2 if again else 1}
        gradients.append({name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        for other in gradients[1:]:
            torch.testing.assert_close(other[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_unknown_encoders_are_refused():
    with pytest.raises(UserError, match="seg_encoder: kind 'phi3'"):
        build_seg_encoder(Part(kind="phi3"))
    with pytest.raises(UserError, match="image_encoder: kind 'swin'"):
        ImageEncoder(SWIN, -2)
    with pytest.raises(UserError, match="4 hidden states, none is -5"):
        ImageEncoder(SIGLIP, -5)
