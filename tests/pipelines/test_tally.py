"""Histograms that one can read: few bins, round edges, nothing lost."""

import numpy as np
import pytest

from pipelines.tally import MAX_BINS, Numbers, Shares


def histogram(values, **how):
    numbers = Numbers()
    numbers.add(np.array(values, dtype=np.int64))
    return numbers.to_json(**how)["histogram"]


@pytest.mark.parametrize(
    ("values", "edges", "counts", "is_open"),
    [
        pytest.param([2, 2, 2], [2, 3], [3], False, id="all the same"),
        pytest.param([0, 3, 1, 1], [0, 1, 2, 3, 4], [1, 2, 0, 1], False, id="a bin for each small number"),
        pytest.param([3, 100, 59], list(range(0, 106, 5)), None, False, id="wider bins begin at round numbers"),
        pytest.param([1] * 99 + [2] * 900 + [5000], list(range(1, 18)), None, True, id="a far tail is one bin"),
        pytest.param([10**9, 10**9 + 7], list(range(10**9, 10**9 + 9)), None, False, id="large numbers, near together"),
    ],
)
def test_counts(values, edges, counts, is_open):
    found = histogram(values)
    assert found["edges"] == edges
    assert counts is None or found["counts"] == counts
    assert sum(found["counts"]) == len(values)
    assert found["open"] is is_open


def test_the_last_bin_holds_the_tail():
    assert histogram([1] * 999 + [5000])["counts"] == [999, *[0] * 14, 1]


@pytest.mark.parametrize("scale", [1, 7, 31, 299, 12345, 10**7])
def test_few_bins_whatever_the_numbers(scale):
    values = np.random.default_rng(scale).integers(0, scale + 1, 5000)
    found = histogram(values)
    assert len(found["counts"]) <= MAX_BINS
    assert sum(found["counts"]) == 5000


def test_sizes_have_bins_that_grow():
    found = histogram([0, 1, 4, 99, 100, 499], log=True)
    assert found == {
        "edges": [0, 1, 2, 5, 10, 20, 50, 100, 200, 500],
        "counts": [1, 1, 1, 0, 0, 0, 1, 1, 1],
        "open": False,
    }
    assert histogram([30, 60], log=True)["edges"] == [20, 50, 100]
    assert histogram([-5, 3], log=True)["counts"] == [1, 0, 1]  # damaged data ends no report


def test_shares_at_edges_of_bins():
    shares = Shares()
    shares.add(np.array([0, 0.05, 0.95, 1, 1, np.nan, 0.15], dtype=np.float32))
    found = shares.to_json()
    assert found["count"] == 6
    assert {k: n for k, n in enumerate(found["histogram"]["counts"]) if n} == {0: 1, 1: 1, 3: 1, 19: 3}
    assert (found["histogram"]["zeros"], found["histogram"]["ones"]) == (1, 2)
    assert found["mean"] == pytest.approx(3.15 / 6)
    assert Shares().to_json()["mean"] is None
