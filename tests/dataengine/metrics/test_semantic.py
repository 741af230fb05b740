"""Semantic scores against recorded ones, by hand, and for any maps."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.errors import ReasonError, UserError
from dataengine.metrics.semantic import Confusion


@pytest.fixture
def cases(fixtures):
    return json.loads(gzip.decompress((fixtures / "golden" / "metrics" / "semantic.json.gz").read_bytes()))["cases"]


def near(value: float | None):
    return None if value is None else pytest.approx(value, rel=1e-6)


def test_every_case_is_that_of_the_reference(cases):
    """It computes in float32, and gives 0 for the fwIoU of nothing, which is undefined here."""
    for case in cases:
        confusion = Confusion(case["num_classes"], case["ignore"])
        for image in case["images"]:
            confusion.add(np.array(image["gt"]), np.array(image["pred"], np.uint8))
        recorded = np.array(case["confusion_pred_by_gt"])
        np.testing.assert_array_equal(confusion.matrix, recorded[:, : case["num_classes"]])
        result, expected = confusion.result(), case["expected"]
        for name in ("miou", "fwiou", "macc", "pacc"):
            assert getattr(result, name) == near(expected[name] if expected["miou"] is not None else None)
        for label, scores in result.per_class.items():
            assert scores == (near(expected["iou"][label]), near(expected["acc"][label]))


def test_two_classes_by_hand():
    """Class 0: 2 of 3 px right, one predicted wrongly; class 1: 1 of 3 right; class 2: predicted only; 1 px ignored."""
    confusion = Confusion(3)
    confusion.add(np.array([[0, 0, 0, 1, 1, 1, 255]]), np.array([[0, 0, 2, 1, 0, 255, 1]]))
    result = confusion.result()
    assert result.per_class == {0: (2 / 4, 2 / 3), 1: (1 / 3, 1 / 3), 2: (None, None)}
    assert result.miou == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert result.fwiou == pytest.approx((3 / 2 + 3 / 3) / 6)
    assert (result.macc, result.pacc, result.num_pixels) == (0.5, 0.5, 6)


def test_without_a_counted_pixel_nothing_is_defined():
    confusion = Confusion(2)
    confusion.add(np.full((2, 2), 255), np.zeros((2, 2), int))
    result = json.loads(json.dumps(confusion.result().to_json()))
    assert [result[name] for name in ("miou", "fwiou", "macc", "pacc")] == [None] * 4
    assert result["per_class"]["1"] == {"iou": None, "acc": None}


@pytest.mark.parametrize(
    ("truth", "found", "reason", "names"),
    [
        pytest.param([[0, 1]], [[0, 2]], "unknown_label", "label 2 at x 1, y 0", id="prediction"),
        pytest.param([[-1, 1]], [[0, 1]], "unknown_label", "ground truth: label -1", id="negative"),
        pytest.param([[0, 1]], [[0], [1]], "labels_size", "1 x 2 px", id="shape"),
        pytest.param([[0, 1]], [[0.0, 1.0]], "labels_invalid", "float64", id="floats"),
        pytest.param([0, 1], [0, 1], "labels_invalid", "ground truth", id="flat"),
    ],
)
def test_what_cannot_be_counted_is_named_and_leaves_the_matrix(truth, found, reason, names):
    confusion = Confusion(2)
    with pytest.raises(ReasonError, match=names) as caught:
        confusion.add(np.array(truth), np.array(found))
    assert caught.value.reason == reason
    assert not confusion.matrix.any()


def test_a_label_to_ignore_is_no_class():
    with pytest.raises(UserError, match="outside"):
        Confusion(300)
    with pytest.raises(UserError, match="merged"):
        Confusion(300, 65_535).merge(Confusion(200))


maps = st.lists(st.sampled_from([0, 1, 2, 255]), min_size=12, max_size=12).map(lambda v: np.array(v).reshape(3, 4))


@settings(max_examples=50)
@given(st.lists(st.tuples(maps, maps), min_size=1, max_size=4), st.integers(0, 4))
def test_halves_merge_to_the_whole_in_any_order(pictures, cut):
    whole, one, two = Confusion(3), Confusion(3), Confusion(3)
    for place, pair in enumerate(pictures):
        whole.add(*pair)
        (one if place < cut else two).add(*pair)
    two.merge(one)
    assert two.result() == whole.result()


@settings(max_examples=50)
@given(maps.filter(lambda labels: (labels != 255).any()))
def test_ground_truth_as_prediction_scores_one_and_no_class_scores_zero(labels):
    for found, expected in ((labels, 1), (np.full_like(labels, 255), 0)):
        confusion = Confusion(3)
        confusion.add(labels, found)
        result = confusion.result()
        assert (result.miou, result.fwiou, result.macc, result.pacc) == (expected,) * 4
