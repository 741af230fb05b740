"""Scores of interactive segmentation: RITM's recorded values, and what our definition changes."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.metrics.clicks import miou_at, noc, nof, spc

IOUS = st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=8), min_size=1, max_size=6)


def test_values_of_ritm(fixtures):
    cases = json.loads((fixtures / "golden" / "clicks" / "noc.json").read_text())["cases"]
    for case in cases:
        for limit, golden in case["by_max_clicks"].items():
            for threshold, clicks, failures in zip(case["thresholds"], golden["noc"], golden["over_max"], strict=True):
                arguments = case["ious"], threshold, int(limit)
                assert noc(*arguments, convention="ritm") == pytest.approx(clicks, rel=1e-12)
                assert nof(*arguments, convention="ritm") == failures
                if max(map(len, case["ious"])) <= int(limit):  # else theirs looks beyond the limit
                    assert noc(*arguments) == pytest.approx(clicks, rel=1e-12)


# reached at click 2; at click 3, the limit; at click 4, after it; never, stopped after 2
FOUR = [[0.1, 0.9, 0.9], [0.1, 0.2, 0.8], [0.1, 0.2, 0.3, 0.8], [0.5, 0.6]]


def test_what_differs_from_ritm():
    assert noc(FOUR, 0.8, 3) == (2 + 3 + 3 + 3) / 4
    assert noc(FOUR, 0.8, 3, convention="ritm") == (2 + 3 + 4 + 3) / 4
    assert nof(FOUR, 0.8, 3) == 2  # the last two
    assert nof(FOUR, 0.8, 3, convention="ritm") == 2  # the second and the last


def test_iou_after_a_number_of_clicks():
    assert miou_at(FOUR, 1) == pytest.approx((0.1 + 0.1 + 0.1 + 0.5) / 4)
    assert miou_at(FOUR, 4) == pytest.approx((0.9 + 0.8 + 0.8 + 0.6) / 4)


def test_seconds_a_click_are_over_all_clicks():
    assert spc([[1.0, 2.0], [6.0]]) == 3.0
    assert spc([[]]) is None


def test_no_objects():
    assert noc([], 0.8) is None
    assert nof([], 0.8) == 0
    assert miou_at([], 1) is None


@pytest.mark.parametrize(
    ("ious", "clicks", "said"),
    [([[0.5], []], 20, "object 1 has no IoU"), ([[math.nan]], 20, "not finite"), ([[0.5]], 0, "at least 1")],
    ids=["no click", "NaN", "no clicks allowed"],
)
def test_what_cannot_be_scored(ious, clicks, said):
    for score in (lambda: noc(ious, 0.8, clicks), lambda: nof(ious, 0.8, clicks), lambda: miou_at(ious, clicks)):
        with pytest.raises(ValueError, match=said):
            score()


@given(IOUS, st.floats(0, 1), st.integers(1, 10), st.randoms(use_true_random=False))
def test_bounds_order_and_monotony(ious, threshold, limit, random):
    value = noc(ious, threshold, limit)
    assert 1 <= value <= limit
    assert value <= noc(ious, min(threshold + 0.1, 1.0), limit)
    assert nof(ious, threshold, limit) >= nof(ious, threshold, limit + 1)
    shuffled = random.sample(ious, len(ious))
    assert noc(shuffled, threshold, limit) == value
    assert miou_at(shuffled, limit) == miou_at(ious, limit)


@given(IOUS)
def test_perfect_predictions_need_one_click(ious):
    perfect = [[1.0] * len(one) for one in ious]
    assert (noc(perfect, 0.9), nof(perfect, 0.9), miou_at(perfect, 1)) == (1.0, 0, 1.0)
