import json

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from model import regions
from model.config import RegionConfig
from model.regions import RegionError, RegionSampler


class Recorded:
    """Draws of the reference, in the order in which it made them; each is checked to be what is asked for."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def permutation(self, number):
        draw = self.draws.pop(0)
        assert sorted(draw.tolist()) == list(range(number))
        return draw

    def integers(self, high, number):
        draw = self.draws.pop(0)
        assert draw.shape == (number,)
        assert 0 <= int(draw.min()) <= int(draw.max()) < high
        return draw


@pytest.fixture
def golden(fixtures):
    load_file = pytest.importorskip("safetensors.torch").load_file
    folder = fixtures / "golden/model/region_sampler"
    return load_file(folder / "tensors.safetensors"), json.loads((folder / "config.json").read_text())


def by_hand(features, x, y):
    """Bilinear value at shares x, y of the way from the first grid point to the last, in float64."""
    h, w, _ = features.shape
    column, row = x * (w - 1), y * (h - 1)
    j, i = min(int(column), w - 2), min(int(row), h - 2)
    u, v = column - j, row - i
    values = features.astype(np.float64)
    top = values[i, j] * (1 - u) + values[i, j + 1] * u
    bottom = values[i + 1, j] * (1 - u) + values[i + 1, j + 1] * u
    return top * (1 - v) + bottom * v


def sampler(kind="max", points=256, dim=5):
    return RegionSampler(RegionConfig(kind=kind, points=points), dim)


def test_tokens_and_points_of_the_reference(golden):
    tensors, config = golden
    features = tensors["features"].unflatten(1, config["grid"])
    masks = [*tensors["masks.0"], *tensors["masks.2"]]
    draws = [tensors[f"rng.{n}.{kind}"] for n, kind in enumerate(["randperm", "randperm", "randint", "randint"])]
    recorded = Recorded(*draws)
    found = sampler(dim=features.shape[-1])(features, masks, [0, 0, 0, 2, 2], recorded)
    assert not recorded.draws
    assert torch.equal(found[:3, 0], tensors["output.0"])
    assert torch.equal(found[3:, 0], tensors["output.2"])
    recorded = Recorded(*draws)
    names = ["0.0", "0.1", "0.2", "2.0", "2.1"]
    for name, mask in zip(names, masks, strict=True):
        assert torch.equal(regions.points_of_mask(mask, 256, recorded).flip(1), tensors[f"points_yx.{name}"])


def test_prompt_swap_of_the_reference(golden):
    tensors, config = golden
    swap = config["swap"]
    draws = Recorded(*torch.tensor(swap["draws"])[:, None])
    chosen = regions.swap_prompts(swap["class_labels"], swap["prompted_labels"], draws)
    assert not draws.draws
    for image, row in enumerate(chosen):
        for kind in ("feats", "masks"):
            rows = [
                tensors[f"swap.in_{kind}.0"][0] * 0
                if place is None
                else tensors[f"swap.in_{kind}.{place[0]}"][place[1]]
                for place in row
            ]
            assert torch.equal(torch.stack(rows), tensors[f"swap.out_{kind}.{image}"])


def test_a_token_is_the_maximum_under_the_prompt_worked_out_by_hand():
    features = np.random.default_rng(3).normal(size=(4, 3, 5)).astype(np.float32)
    mask = np.zeros((8, 6), dtype=bool)
    mask[2:5, 1:4] = mask[7, 5] = True
    values = [by_hand(features, x / 6, y / 8) for y, x in zip(*mask.nonzero(), strict=True)]
    found = sampler()(torch.from_numpy(features)[None], torch.from_numpy(mask)[None], [0])
    assert found.shape == (1, 1, 5)
    np.testing.assert_allclose(found[0, 0].numpy(), np.max(values, axis=0), atol=1e-6)


def test_mean64_gives_means_of_four_points_in_their_order():
    features = torch.randn(1, 4, 4, 5, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[8:24, 4:20] = True  # 256 pixels: all of them, in raster order
    found = sampler("mean64")(features, mask[None], [0])
    assert found.shape == (1, 64, 5)
    array = features[0].numpy()
    for token in (0, 5, 63):  # a row has 16 pixels, four tokens
        row, column = 8 + token // 4, 4 + 4 * (token % 4)
        expected = np.mean([by_hand(array, (column + k) / 32, row / 32) for k in range(4)], axis=0)
        np.testing.assert_allclose(found[0, token].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["max", "mean64", "geometry"])
def test_prompts_of_several_pictures_equal_one_by_one(kind):
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 4, 4, 8, generator=generator)
    masks = torch.rand(5, 40, 40, generator=generator) < 0.5
    module = sampler(kind, dim=8)
    if module.geometry:
        torch.nn.init.normal_(module.geometry.expand.weight, generator=generator)
    places = [1, 0, 1, 1, 0]
    together = module(features, masks, torch.tensor(places))
    assert together.shape == (5, regions.num_tokens(module.config), 8)
    for number, place in enumerate(places):
        alone = module(features, masks[number : number + 1], [place])
        torch.testing.assert_close(together[number], alone[0])


def test_other_draws_give_other_points_of_a_large_prompt():
    mask = torch.ones(40, 40)
    draws = regions.RandomDraws(torch.Generator().manual_seed(5))
    first, second = (regions.points_of_mask(mask, 16, draws) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(regions.points_of_mask(mask, 16), regions.points_of_mask(mask, 16))
    assert len(set(map(tuple, first.tolist()))) == 16  # without repeats


def test_the_geometry_form_starts_as_the_maximum_and_then_sees_places():
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(1, 8, 8, 6, generator=generator)
    masks = torch.rand(2, 16, 16, generator=generator) < 0.5
    geometry = sampler("geometry", dim=6)
    torch.testing.assert_close(geometry(features, masks, [0, 0]), sampler(dim=6)(features, masks, [0, 0]))
    torch.nn.init.normal_(geometry.geometry.expand.weight, generator=generator)
    flat = torch.ones(1, 8, 8, 6)  # all features alike: only places differ
    wide, narrow = torch.zeros(16, 16), torch.zeros(16, 16)
    wide[3:13:2, 3:13:2] = 1
    narrow[3:8, 3:8] = 1
    tokens = geometry(flat, torch.stack([wide, narrow]), [0, 0])
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3
    tokens.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in geometry.parameters())


def test_neighbours_of_pixels_that_lie_close_are_the_nearest():
    generator = torch.Generator().manual_seed(7)
    points = 0.9 + torch.rand(1, 256, 2, generator=generator) * 16 / 1024  # a prompt of 16 px in a corner
    values = torch.randn(1, 256, 6, generator=generator)
    pool = regions.GeometryPool(6, hidden_dim=8)
    torch.nn.init.normal_(pool.expand.weight, generator=generator)
    found = pool(values, points)
    torch.testing.assert_close(found, pool.double()(values.double(), points.double()).float(), atol=1e-4, rtol=1e-4)


def test_farthest_points_on_a_line():
    points = torch.tensor([[[0.0, 0], [0.1, 0], [1, 0], [0.6, 0]]])
    assert regions.farthest_points(points, 4).tolist() == [[0, 2, 3, 1]]


def test_gradients_reach_the_features():
    features = torch.randn(1, 4, 4, 3, requires_grad=True)
    sampler(dim=3)(features, torch.ones(1, 8, 8), [0]).sum().backward()
    assert features.grad.any()


def test_low_precision_features_are_sampled_in_single_precision():
    features = torch.randn(1, 4, 4, 3, generator=torch.Generator().manual_seed(6))
    mask = torch.ones(1, 16, 16)
    found = sampler(dim=3)(features.bfloat16(), mask, [0])
    assert found.dtype == torch.bfloat16
    expected = sampler(dim=3)(features.bfloat16().float(), mask, [0])
    torch.testing.assert_close(found, expected.bfloat16())


def test_no_prompts_give_no_tokens():
    assert sampler("mean64")(torch.zeros(1, 2, 2, 5), [], []).shape == (0, 64, 5)


@pytest.mark.parametrize(
    ("masks", "pictures", "reason"),
    [
        (torch.zeros(1, 4, 4), [0], "empty_prompt"),
        (torch.ones(1, 4, 4), [], "region_prompt"),
        (torch.ones(1, 4, 4), [1], "region_prompt"),
    ],
    ids=["no pixel", "no picture", "another picture"],
)
def test_what_cannot_be_shown_is_refused(masks, pictures, reason):
    with pytest.raises(RegionError) as caught:
        sampler()(torch.zeros(1, 2, 2, 5), masks, pictures)
    assert caught.value.reason == reason


def test_points_that_64_tokens_cannot_share_are_refused():
    with pytest.raises(ValueError, match="100 points"):
        sampler("mean64", points=100)


class TestSwap:
    def test_a_label_without_instance_is_shown_by_a_stranger(self):
        # picture 0 has 1 and shows it; 9 is nowhere: what picture 0 has not and shows not is label 2 of picture 1
        assert regions.swap_prompts([[1], [1, 2]], [[1, 9]], Recorded(torch.tensor([1]), torch.tensor([0]))) == [
            [(1, 0), (1, 1)]
        ]

    def test_no_instance_shows_two_labels_of_a_picture(self):
        chosen = regions.swap_prompts([[1, 1]], [[1, 1, 1]], regions.FIXED)
        assert {*chosen[0][:2]} == {(0, 0), (0, 1)}
        assert chosen[0][2] is None

    def test_alone_in_a_batch_a_picture_shows_its_own(self):
        assert regions.swap_prompts([[4, 2]], [[2, 4]], regions.FIXED) == [[(0, 1), (0, 0)]]
