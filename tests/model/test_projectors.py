import pytest

torch = pytest.importorskip("torch")

from model.config import PRESETS, ConnectorConfig  # noqa: E402
from model.projectors import Connector, Projector, connected_channels  # noqa: E402
from model.shuffle import pixel_shuffle, pixel_shuffle_nchw  # noqa: E402


def test_packing_puts_the_row_offset_outermost():
    # one channel, 2 x 4: [[0, 1, 2, 3], [4, 5, 6, 7]]
    packed = pixel_shuffle(torch.arange(8.0).view(1, 2, 4, 1), 0.5)
    assert packed.tolist() == [[[[0, 1, 4, 5], [2, 3, 6, 7]]]]


def test_unpacking_puts_the_column_offset_outermost():
    # channels 0..3 of one pixel become rows [0, 2] and [1, 3]
    assert pixel_shuffle(torch.arange(4.0).view(1, 1, 1, 4), 2)[0, :, :, 0].tolist() == [[0, 2], [1, 3]]


def test_packing_and_unpacking_do_not_undo_each_other():
    x = torch.arange(16.0).view(1, 2, 2, 4)
    assert not torch.equal(pixel_shuffle(pixel_shuffle(x, 0.5), 2), x)


@pytest.mark.parametrize(
    ("shape", "scale"),
    [((1, 3, 4, 2), 0.5), ((1, 4, 3, 2), 0.5), ((1, 2, 2, 6), 2)],
    ids=["odd height", "odd width", "channels"],
)
def test_what_cannot_be_shuffled(shape, scale):
    with pytest.raises(ValueError, match="cannot be shuffled"):
        pixel_shuffle(torch.zeros(shape), scale)


def test_shuffle_as_recorded(golden):
    tensors = golden("pixel_shuffle").tensors("tensors")
    for kind in ("input_nhwc", "index_nhwc"):
        out = kind.replace("input_", "")
        assert torch.equal(pixel_shuffle(tensors[kind], 0.5), tensors[f"{out}_half"])
        assert torch.equal(pixel_shuffle(tensors[kind], 2), tensors[f"{out}_double"])
    nchw = tensors["input_nhwc"].permute(0, 3, 1, 2)
    assert torch.equal(pixel_shuffle_nchw(nchw, 0.5), tensors["nchw_half"])
    assert torch.equal(pixel_shuffle_nchw(nchw, 2), tensors["nchw_double"])
    assert torch.equal(pixel_shuffle(tensors["nhwc_half"], 2), tensors["roundtrip_half_double"])


def test_projectors_as_recorded(golden):
    case = golden("projector")
    io = case.tensors("io")
    visual, seg = Projector(24, 32), Projector(24, 32, downsample=0.5)
    visual.load_state_dict(case.tensors("weights", "visual_projector."))
    seg.load_state_dict(case.tensors("weights", "seg_projector."))
    torch.testing.assert_close(visual(io["x3"]), io["visual_projector_out"], atol=1e-5, rtol=0)
    torch.testing.assert_close(seg(io["x4_nhwc"]), io["seg_projector_out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", ["", "odd_"], ids=["even grid", "odd grid"])
def test_connector_as_recorded(golden, grid):
    case = golden("connector")
    io = case.tensors("io")
    connector = Connector(ConnectorConfig(hidden_dim=16), [32, 32, 32])
    connector.load_state_dict(case.tensors("weights", "seg_connector."))
    maps = connector([io[f"{grid}in_{level}"] for level in range(3)])
    for level, made in enumerate(maps):
        torch.testing.assert_close(made, io[f"{grid}out_{level}"], atol=1e-5, rtol=0)


def test_connector_at_full_size_makes_strides_8_16_32():
    config = PRESETS["xsam-phi3-siglip2-saml"].connector
    with torch.device("meta"):
        maps = Connector(config, [1024] * 3)([torch.empty(2, 64, 64, 1024)] * 3)
    assert [tuple(x.shape) for x in maps] == [(2, 512, 128, 128), (2, 1024, 64, 64), (2, 2048, 32, 32)]
    assert connected_channels(config, [1024] * 3) == [512, 1024, 2048]


def test_convolutions_of_the_connector_begin_small_and_norms_as_identity():
    torch.manual_seed(0)
    for neck in Connector(ConnectorConfig(hidden_dim=64), [64] * 3).model:
        assert all(abs(neck.model[i].weight.std().item() - 0.02) < 0.002 for i in (0, 2, 4))
        assert all(bool((neck.model[i].weight == 1).all()) for i in (1, 3, 5))
