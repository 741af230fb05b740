"""The automatic mask generator does what was published: worked out by hand, and against `transformers`' own code."""

from __future__ import annotations

import numpy as np
import pytest

from dataengine import masks
from pipelines.relabel import automatic
from pipelines.relabel.automatic import PRESETS, Found, Generator


@pytest.fixture(scope="module")
def published():
    """`transformers`' port of the generator."""
    pytest.importorskip("torch")
    return pytest.importorskip("transformers.models.sam.image_processing_pil_sam")


def test_the_settings_are_the_published_ones():
    rows = {
        name: (p.points_per_side, p.predicted_iou, p.stability, p.crop_layers, p.min_region)
        for name, p in PRESETS.items()
    }
    assert rows == {
        "sam": (32, 0.88, 0.95, 0, 0),
        "sa-1b": (32, 0.88, 0.95, 2, 100),
        "sam2": (32, 0.80, 0.95, 0, 0),
        "semantic-sam": (32, 0.88, 0.92, 0, 10),
    }
    assert {(p.box_nms, p.crop_nms, p.stability_offset, p.crop_overlap) for p in PRESETS.values()} == {
        (0.7, 0.7, 1.0, 512 / 1500)
    }
    assert PRESETS["sa-1b"].max_area == 0.95


def test_points_lie_in_the_middle_of_cells():
    np.testing.assert_allclose(automatic.grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    layers = [len(automatic.points_of(layer, (0, 0, 10, 10), PRESETS["sa-1b"])) for layer in range(3)]
    assert layers == [32**2, 16**2, 8**2]  # as SA-1B was made
    np.testing.assert_allclose(automatic.points_of(0, (5, 7, 25, 17), Generator(points_per_side=1)), [[10.0, 5.0]])


@pytest.mark.parametrize("size", [(480, 640), (333, 500), (64, 48)])
def test_crops_are_the_published_ones(published, size):
    expected, layers = published._generate_per_layer_crops(2, 512 / 1500, size)
    found = list(automatic.crops(*size, PRESETS["sa-1b"]))
    assert [list(crop) for _, crop in found] == expected
    assert [layer for layer, _ in found] == layers
    assert len(found) == 1 + 4 + 16


def test_the_grid_is_the_published_one(published):
    np.testing.assert_allclose(automatic.grid(7), published._build_point_grid(7), atol=1e-7)


def test_boxes_at_the_edge_of_a_crop(published):
    import torch

    crop, height, width = (100, 0, 300, 200), 200, 400
    boxes = np.array(
        [[120, 50, 200, 100], [121, 50, 200, 100], [150, 0, 200, 30], [150, 60, 280, 100], [150, 60, 279, 199]]
    )
    expected = published._is_box_near_crop_edge(
        torch.tensor(boxes - [100, 0, 100, 0]).float(), list(crop), [0, 0, width, height]
    )
    found = automatic.near_crop_edge(boxes.astype(float), crop, height, width)
    assert found.tolist() == expected.tolist() == [True, False, False, True, False]  # 20 px is near, 21 is not


def test_of_two_boxes_that_are_alike_the_better_stays():
    boxes = np.array(
        [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 6.9], [50, 50, 60, 60]], float
    )  # IoU 0.8, 0.69 with first
    assert automatic.nms(boxes, np.array([0.9, 0.95, 0.8, 0.1]), 0.7).tolist() == [
        1,
        3,
    ]  # 6.9/8 with the second is 0.86
    assert automatic.nms(boxes[[0, 2]], np.array([0.9, 0.8]), 0.7).tolist() == [0, 1]
    assert automatic.nms(boxes[[0, 2]], np.array([0.9, 0.9]), 0.6).tolist() == [0]  # of equal ones the first
    assert automatic.nms(np.zeros((2, 4)), np.ones(2), 0.7).tolist() == [0, 1]  # without area nothing is alike
    assert automatic.nms(np.zeros((0, 4)), np.ones(0), 0.7).tolist() == []


def test_nms_against_every_pair():
    """By the definition: the best of what is left, then without what is alike."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 20, (60, 2))
    boxes, scores = np.hstack([corner, corner + rng.uniform(1, 20, (60, 2))]), rng.uniform(size=60)

    def iou(a, b):
        w = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        return w / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w)

    left, expected = set(range(60)), []
    while left:
        best = max(left, key=lambda place: scores[place])
        expected.append(best)
        left = {place for place in left - {best} if iou(boxes[best], boxes[place]) <= 0.4}
    assert automatic.nms(boxes, scores, 0.4).tolist() == expected


def ring(hole: int) -> np.ndarray:
    mask = np.zeros((40, 40), bool)
    mask[5:35, 5:35] = True
    mask[20 : 20 + hole, 20 : 20 + hole] = False
    return mask


def test_small_holes_are_filled_and_small_islands_removed():
    filled, changed = automatic.without_small_regions(ring(3), 10, holes=True)
    assert changed
    assert filled.sum() == 900
    assert not automatic.without_small_regions(ring(4), 10, holes=True)[1]  # 16 px are not less than 10
    with_island = ring(0)
    with_island[0:2, 0:2] = True
    alone, changed = automatic.without_small_regions(with_island, 10, holes=False)
    assert changed
    assert alone.sum() == 900
    touching = np.zeros((6, 6), bool)
    touching[0, 0] = touching[1, 1] = True
    touching[4, 4] = True
    largest, _ = automatic.without_small_regions(touching, 10, holes=False)
    assert np.argwhere(largest).tolist() == [[0, 0], [1, 1]]  # corners touch; where all is small, the largest stays


def found_of(rasters, crops) -> Found:
    rles = [masks.encode(raster) for raster in rasters]
    boxes = np.array([automatic.box_of(rle, 40, 40) for rle in rles], float)
    ones = np.linspace(0.9, 0.95, len(rles))
    return Found(
        rles=rles, boxes=boxes, scores=ones, stability=ones, points=np.zeros((len(rles), 2)), crops=np.array(crops)
    )


def test_a_mask_that_was_not_mended_is_preferred():
    found = automatic.tidy(found_of([ring(2), ring(0)], [[0, 0, 40, 40]] * 2), 40, 40, Generator(min_region=10))
    assert len(found) == 1
    assert found.scores.tolist() == [0.95]  # the second, though the first comes first
    assert automatic.tidy(found, 40, 40, Generator()) is found


def test_of_two_crops_the_smaller_ones_mask_stays():
    found = found_of([ring(0), ring(0)], [[0, 0, 40, 40], [0, 0, 38, 40]])
    assert automatic.between_crops(found, Generator(crop_layers=1)).crops.tolist() == [[0, 0, 38, 40]]
    assert automatic.between_crops(found, Generator()) is found
