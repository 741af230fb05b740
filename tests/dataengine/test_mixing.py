"""Mixing: the table against the reference loader's, and what an epoch draws."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.mixing import Balanced, Temperature, Weights, indices, table, text

FOUR = {"panoptic": 1000, "refer": 400, "interactive": 500, "chat": 100}


def test_balanced_is_the_reference_loaders(fixtures):
    recorded = json.loads((fixtures / "golden" / "mixing" / "mixing.json").read_text())
    cases = [case for branch in recorded.values() for case in branch]
    assert len(cases) == 24
    for case in cases:
        sizes = {str(number): size for number, size in enumerate(case["sizes"])}
        rows = table(sizes, Balanced(case["t"], case["mult"]))
        assert [row.length for row in rows] == case["lengths"]
        assert [row.factor * case["mult"] for row in rows] == case["repeats"]
        assert [row.share for row in rows] == [length / case["total"] for length in case["lengths"]]


def test_balanced_by_hand():
    """f = 0.99, 0.01; r = sqrt(0.1 / 0.01) = 3.162…; 10 * 3.162… = 31 after rounding down."""
    large, small = table({"large": 990, "small": 10}, Balanced())
    assert (large.fraction, large.factor, large.length, large.epochs) == (0.99, 1.0, 990, 1.0)
    assert (small.fraction, small.length, small.epochs) == (0.01, 31, 3.1)
    assert small.factor == pytest.approx(math.sqrt(10))
    assert small.share == 31 / 1021


@pytest.mark.parametrize("rule", [Balanced(), Temperature(2), Weights({"full": 1, "empty": 1})], ids=repr)
def test_a_source_without_samples_is_not_drawn(rule):
    full, empty = table({"full": 10, "empty": 0}, rule)
    assert (empty.factor, empty.length, empty.share, empty.epochs) == (1.0, 0, 0.0, 0.0)
    assert full.length >= 10


@pytest.mark.parametrize(
    ("t", "lengths"),
    [
        pytest.param(1, [1600, 400], id="proportions kept"),
        pytest.param(2, [1333, 667], id="square roots, 40:20 of 2000"),
        pytest.param(math.inf, [1000, 1000], id="all alike"),
        pytest.param(1e-3, [2000, 0], id="the largest alone, without overflow"),
    ],
)
def test_temperature(t, lengths):
    assert [row.length for row in table({"a": 1600, "b": 400}, Temperature(t))] == lengths


def test_weights_are_shares_of_an_epoch():
    rows = table(FOUR, Weights(dict.fromkeys(FOUR, 1)))
    assert [row.length for row in rows] == [500, 500, 500, 500]
    assert [row.factor for row in rows] == [row.epochs for row in rows] == [0.5, 1.25, 1.0, 5.0]
    rows = table(FOUR, Weights({"panoptic": 3, "refer": 2, "interactive": 0, "chat": 2}, total=10))
    assert [row.length for row in rows] == [4, 3, 0, 3]  # 4.29, 2.86, 0, 2.86: the largest remainders are the last two


@given(
    st.lists(st.integers(0, 10**9), min_size=1, max_size=8),
    st.lists(st.floats(0.01, 100), min_size=8, max_size=8),
    st.integers(1, 10**9),
)
def test_lengths_add_up_and_keep_to_their_shares(sizes, weights, total):
    names = {f"s{number}": size for number, size in enumerate(sizes)}
    rule = Weights(dict(zip(names, weights, strict=False)), total)
    rows = table(names, rule)
    assert sum(row.length for row in rows) == (total if any(sizes) else 0)
    drawn = sum(rule.weights[row.name] for row in rows if row.num_samples)
    for row in rows:
        if row.num_samples:
            assert abs(row.length - total * rule.weights[row.name] / drawn) < 1 + 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Balanced(threshold=-0.1), "threshold is -0.1", id="negative threshold"),
        pytest.param(lambda: Balanced(threshold=math.nan), "threshold is nan", id="no threshold"),
        pytest.param(lambda: Balanced(mult=0), "mult is 0", id="nothing of everything"),
        pytest.param(lambda: Temperature(0), "temperature is 0", id="zero temperature"),
        pytest.param(lambda: Temperature(1, total=0), "total is 0", id="empty epoch"),
        pytest.param(lambda: Weights({"a": -1}), "the weight of a is -1", id="negative weight"),
        pytest.param(lambda: table({}, Balanced()), "no sources", id="no sources"),
        pytest.param(lambda: table({"a": -1}, Balanced()), "source a has -1 samples", id="negative size"),
        pytest.param(lambda: table({"a": 1, "b": 1}, Weights({"a": 1})), "b has no weight", id="weight missing"),
        pytest.param(lambda: table({"a": 1}, Weights({"a": 1, "c": 1})), "c is no source", id="weight of nothing"),
        pytest.param(lambda: table({"a": 1}, Weights({"a": 0})), "all weights are 0", id="no weight at all"),
        pytest.param(lambda: table({"a": 0, "b": 1}, Weights({"a": 1, "b": 0})), "with a weight is empty",
                     id="weight on an empty source"),
        pytest.param(lambda: indices(0, 1, seed=0, epoch=0, name="a"), "a: cannot draw 1 of 0", id="draw from nothing"),
        pytest.param(lambda: indices(1, -1, seed=0, epoch=0, name="a"), "cannot draw -1", id="draw less than nothing"),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(st.integers(1, 50), st.integers(0, 300), st.integers(0, 5), st.integers(0, 5))
def test_every_sample_is_drawn_as_often_as_any_other(num_samples, length, seed, epoch):
    drawn = indices(num_samples, length, seed=seed, epoch=epoch, name="s")
    assert drawn.shape == (length,)
    assert drawn.dtype == np.int64
    counts = np.bincount(drawn, minlength=num_samples)
    assert len(counts) == num_samples
    assert set(counts) <= {length // num_samples, -(-length // num_samples)}
    assert (drawn == indices(num_samples, length, seed=seed, epoch=epoch, name="s")).all()


def test_draws_differ_with_their_key():
    one = indices(100, 100, seed=0, epoch=0, name="a")
    others = [(1, 0, "a"), (0, 1, "a"), (0, 0, "b")]
    assert all((one != indices(100, 100, seed=s, epoch=e, name=n)).any() for s, e, n in others)


@pytest.mark.parametrize("length", [30, 157], ids=["less than all", "more than all"])
def test_no_sample_is_favoured_over_epochs(length):
    """The rest of each epoch is a uniform choice: counts are binomial, and stay within five deviations."""
    num_samples, epochs = 100, 400
    counts = Counter(
        int(index) for epoch in range(epochs) for index in indices(num_samples, length, seed=0, epoch=epoch, name="s")
    )
    p = length / num_samples % 1
    deviation = math.sqrt(epochs * p * (1 - p))
    assert len(counts) == num_samples
    assert all(abs(count - epochs * length / num_samples) < 5 * deviation for count in counts.values())


def test_the_table_is_aligned():
    lines = text(table({"large": 990, "small": 10}, Balanced())).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "source samples n_d fraction f_d factor r_d drawn share epochs",
        "large 990 99.00% 1.000 990 96.96% 1.00",
        "small 10 1.00% 3.162 31 3.04% 3.10",
        "total 1,000 1,021 1.02",
    ]
    assert len({line.index(end) + len(end) for line, end in zip(lines[:3], ("n_d", "990", "10"), strict=True)}) == 1
