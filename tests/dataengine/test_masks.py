"""Masks against pycocotools as the oracle."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as oracle

from dataengine import masks

rasters = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


def truth(mask: np.ndarray) -> bytes:
    return oracle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


@given(rasters)
def test_encode_decode_round_trip(mask):
    rle = masks.encode(mask)
    assert rle == truth(mask)
    assert (masks.decode(rle, *mask.shape) == mask).all()
    assert masks.area(rle, *mask.shape) == mask.sum()


@given(rasters)
def test_run_lengths_round_trip(mask):
    rle = truth(mask)
    runs = masks.counts_from_rle(rle, *mask.shape)
    assert runs.sum() == mask.size
    assert masks.rle_from_counts(runs, *mask.shape) == rle


@given(rasters)
def test_crop_round_trip(mask):
    height, width = mask.shape
    if not mask.any():
        with pytest.raises(masks.MaskError, match="no pixel"):
            masks.crop_from_rle(truth(mask), height, width)
        return
    crop = masks.crop_from_rle(truth(mask), height, width)
    full = np.zeros_like(mask)
    h, w = crop.mask.shape
    full[crop.y0 : crop.y0 + h, crop.x0 : crop.x0 + w] = crop.mask
    assert (full == mask).all()
    assert crop.mask.any(axis=0)[[0, -1]].all()
    assert crop.mask.any(axis=1)[[0, -1]].all()
    assert masks.rle_from_crop(crop, height, width) == truth(mask)
    assert masks.bbox_xywh(truth(mask), height, width) == tuple(
        oracle.toBbox({"size": [height, width], "counts": truth(mask)})
    )


@settings(max_examples=60)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14)))
def test_outlines_give_the_mask_back(mask):
    height, width = mask.shape
    pieces = masks.polygons_from_rle(truth(mask), height, width)
    if not mask.any():
        assert pieces == []
        return
    rles = oracle.frPyObjects([piece.ravel().tolist() for piece in pieces], height, width)
    assert oracle.merge(rles)["counts"] == truth(mask)


@given(st.lists(st.tuples(st.floats(0, 40), st.floats(0, 30)), min_size=3, max_size=12))
def test_polygons_equal_pycocotools(points):
    flat = [float(v) for point in points for v in point]
    expected = oracle.merge(oracle.frPyObjects([flat], 30, 40))["counts"]
    try:
        assert masks.rle_from_polygons([flat], 30, 40) == expected
    except masks.MaskError as error:
        assert error.reason == "polygon_self_intersecting"


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.lists(st.lists(st.tuples(st.integers(-19, 419), st.integers(-19, 419)), min_size=3, max_size=9), max_size=4),
)
def test_several_polygons_equal_pycocotools(height, width, polygons):
    """Vertices on tenths of a pixel, where rounding decides, repeated and out of the frame; polygons that overlap."""
    flat = [
        [limit for x, y in polygon for limit in (min(x / 10, width + 1.9), min(y / 10, height + 1.9))]
        for polygon in [*polygons, [(1, 1), (1, 1), (25, 30)]]
    ]
    expected = oracle.merge(oracle.frPyObjects(flat, height, width))
    try:
        rle, (area, box) = masks.measured_from_segmentation(flat, height, width)
    except masks.MaskError as error:
        assert error.reason == "polygon_self_intersecting" or oracle.area(expected) == 0
    else:
        assert rle == expected["counts"]
        assert (area, box) == (oracle.area(expected), tuple(oracle.toBbox(expected)))


@given(rasters, st.integers(0, 2**32 - 1))
def test_iou_union_and_intersection(mask, seed):
    other = np.random.default_rng(seed).random(mask.shape) < 0.5
    both, either = (mask & other), (mask | other)
    a, b = truth(mask), truth(other)
    assert masks.union([a, b], *mask.shape) == truth(either)
    assert masks.intersection([a, b], *mask.shape) == truth(both)
    expected = both.sum() / either.sum() if either.any() else 0.0
    assert masks.iou([a], [b], *mask.shape)[0, 0] == pytest.approx(expected)


def test_components_touch_diagonally():
    mask = np.array([[1, 0, 0, 0], [0, 1, 0, 1]], bool)
    found = masks.components(truth(mask), 2, 4)
    assert [(c.x0, c.y0, int(c.mask.sum())) for c in found] == [(0, 0, 2), (3, 1, 1)]


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        pytest.param([[0, 0, 5, 0, 5]], "polygon_odd", id="odd length"),
        pytest.param([[0, 0, 5, 0]], "polygon_short", id="two points"),
        pytest.param([[0, 0, 5, float("nan"), 5, 5]], "polygon_not_finite", id="nan"),
        pytest.param([[0, 0, 50, 0, 5, 5]], "polygon_out_of_frame", id="out of frame"),
        pytest.param([[0, 0, 9, 9, 9, 0, 0, 9]], "polygon_self_intersecting", id="bow tie"),
        pytest.param([[0, 0, 1e308, 0, -1e308, 5]], "polygon_out_of_frame", id="huge numbers"),
        pytest.param([["1", "2", "9", "2", "9", "9"]], "segmentation_invalid", id="numbers as text"),
        pytest.param([["x" * 10**6] + ["y"] * 10**5], "segmentation_invalid", id="texts that would fill the memory"),
        pytest.param([[["x" * 10**6]] + [["y"]] * 10**5], "segmentation_invalid", id="such texts in lists"),
        pytest.param({"size": [10, 10], "counts": ["x" * 10**6] + ["y"] * 10**5}, "rle_invalid", id="such counts"),
        pytest.param([[0, 0, 10, 10] * 150_000 + [0, 10]], "polygon_too_long", id="an outline that never ends"),
        pytest.param({"size": [10, 10], "counts": [2**62] * 4 + [100]}, "rle_size", id="sum overflows"),
        pytest.param({"size": [10, 10], "counts": [2**80]}, "rle_invalid", id="no machine number"),
        pytest.param([], "segmentation_invalid", id="empty list"),
        pytest.param("abc", "segmentation_invalid", id="text"),
        pytest.param([["a", "b", "c", "d", "e", "f"]], "segmentation_invalid", id="words"),
        pytest.param({"size": [10, 10], "counts": [50, 20]}, "rle_size", id="counts do not add up"),
        pytest.param({"size": [10, 9], "counts": [100]}, "rle_size", id="another size"),
        pytest.param({"size": [10, 10], "counts": [120, -20]}, "rle_invalid", id="negative run"),
        pytest.param({"size": [10, 10], "counts": "\u00e9"}, "rle_invalid", id="not ascii"),
        pytest.param({"size": [10, 10], "counts": "PPPP"}, "rle_invalid", id="unfinished number"),
        pytest.param({"size": [10, 10], "counts": ""}, "rle_invalid", id="no counts"),
        pytest.param({"size": [10, 10], "counts": [100]}, "empty_mask", id="no pixel"),
    ],
)
def test_bad_segmentations_say_why(segmentation, reason):
    with pytest.raises(masks.MaskError) as caught:
        masks.rle_from_segmentation(segmentation, 10, 10)
    assert caught.value.reason == reason
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.reason, str(again)) == (reason, str(caught.value))


def test_many_polygons_equal_pycocotools():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 190, (3001, 1, 2)) + np.array([(0, 0), (4, 0), (4, 3), (0, 6)])
    flat = corners.reshape(3001, 8).tolist()
    expected = oracle.merge(oracle.frPyObjects(flat, 200, 200))["counts"]
    assert masks.rle_from_polygons(flat, 200, 200) == expected


def test_a_star_whose_middle_is_ambiguous_is_refused():
    angles = np.arange(5) * 4 * np.pi / 5
    star = np.column_stack((30 + 25 * np.sin(angles), 30 - 25 * np.cos(angles))).ravel().tolist()
    with pytest.raises(masks.MaskError, match="crosses itself"):
        masks.rle_from_polygons([star], 60, 60)


@given(st.binary(max_size=30))
def test_any_bytes_are_checked_before_native_code(data):
    try:
        runs = masks.counts_from_rle(data, 9, 7)
    except masks.MaskError:
        return
    assert runs.sum() == 63


@pytest.mark.parametrize("place", [(-1, 0), (0, -1), (8, 0), (0, 7)])
def test_a_crop_must_lie_on_its_canvas(place):
    with pytest.raises(masks.MaskError, match="leaves its 10 x 9 canvas"):
        masks.rle_from_crop(masks.Crop(np.ones((3, 3), bool), *place), 9, 10)


def test_polygons_of_a_picture_are_drawn_as_one_by_one():
    good, hole = [1, 1, 9, 1, 9, 9, 1, 9], [3.5, 3.5, 6, 4, 5, 7]
    bow_tie = [0, 0, 30, 30, 30, 0, 0, 30]
    outside, short, odd = [1, 1, 90, 1, 9, 9], [1, 1, 2, 2], [1, 1, 2, 2, 3]
    plain = [[good], [good, hole], [[20, 3, 28, 3, 24, 12]]]
    unusual = [[bow_tie], [outside], [good, short], [odd], [], None, "text", [[True] * 6], [[1, 1, 1, 1, 1, 1]], {}]
    unusual += [[[float("nan"), 1, 2, 2, 3, 3]], [[1e300, 1, 2, 2, 3, 3]]]
    drawn = masks.measured_from_polygon_lists([*plain, *unusual], 40, 32)
    assert drawn[:3] == [masks.measured_from_segmentation(value, 40, 32) for value in plain]
    assert drawn[3:] == [None] * len(unusual)
    for strange in ("text", None, [1], 10**400):  # a polygon with such a number leaves all to the other way
        assert masks.measured_from_polygon_lists([[good], [[*good, 3, strange]]], 40, 32) == [None, None]
    assert masks.measured_from_polygon_lists([[good]], 0, 32) == [None]


@given(st.lists(st.lists(st.lists(st.integers(-3, 43), min_size=6, max_size=12), min_size=1, max_size=3), max_size=4))
def test_what_is_drawn_at_once_is_what_is_drawn_alone(segmentations):
    for value, mask in zip(segmentations, masks.measured_from_polygon_lists(segmentations, 41, 40), strict=True):
        if mask is not None:
            assert mask == masks.measured_from_segmentation(value, 41, 40)
