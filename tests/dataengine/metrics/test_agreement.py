"""Agreement of reviewers, against Cohen's own example and figures worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.masks import encode
from dataengine.metrics.agreement import Word, agreement, cohens_kappa, text


def test_kappa_of_a_table_worked_out_by_hand():
    """20 accept/accept, 5 accept/reject, 10 reject/accept, 15 reject/reject: p_o = 35/50 = 0.7,
    p_e = 25/50 * 30/50 + 25/50 * 20/50 = 0.5, kappa = 0.2 / 0.5."""
    table = {("accept", "accept"): 20, ("accept", "reject"): 5, ("reject", "accept"): 10, ("reject", "reject"): 15}
    first = [a for (a, _), number in table.items() for _ in range(number)]
    second = [b for (_, b), number in table.items() for _ in range(number)]
    assert cohens_kappa(first, second) == pytest.approx(0.4, abs=1e-12)


def test_kappa_of_the_table_of_the_paper():
    """Cohen (1960), table 1: 200 ratings of three kinds, kappa = .492 (rounded there)."""
    table = [[88, 14, 18], [10, 40, 10], [2, 6, 12]]
    first = [str(row) for row in range(3) for column in range(3) for _ in range(table[row][column])]
    second = [str(column) for row in range(3) for column in range(3) for _ in range(table[row][column])]
    assert cohens_kappa(first, second) == pytest.approx(0.492, abs=5e-4)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("", "", None), ("aaa", "aaa", None), ("ab", "ab", 1.0), ("ab", "ba", -1.0), ("aabb", "abab", 0.0)],
    ids=["nothing", "one rating only", "always", "never", "as chance has it"],
)
def test_kappa_at_its_ends(first, second, expected):
    assert cohens_kappa(list(first), list(second)) == expected


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1))
def test_kappa_by_its_definition(ratings):
    first, second = (np.array(side) for side in zip(*ratings, strict=True))
    chance = sum((first == rating).mean() * (second == rating).mean() for rating in "abc")
    found = cohens_kappa(first.tolist(), second.tolist())
    if found is None:
        assert chance == pytest.approx(1)
    else:
        assert found == pytest.approx(((first == second).mean() - chance) / (1 - chance), abs=1e-9)


def test_figures_of_two_reviewers():
    def columns(number):
        return encode(np.arange(10)[None, :].repeat(4, 0) < number)

    def word(action, drawn=None):
        mask = None if drawn is None else columns(drawn)
        return Word(action=action, shown=columns(4), height=4, width=10, drawn=mask)

    found = agreement(
        {
            "a": {"1": word("accept"), "2": word("edit", 8), "3": word("reject"), "5": word("edit", 2)},
            "b": {"1": word("accept"), "2": word("edit", 2), "3": word("accept"), "4": word("reject")},
        }
    )
    first, second = found.reviewers
    assert (first.decided, first.actions) == (4, {"accept": 1, "edit": 2, "reject": 1})
    assert first.edit_iou == 0.5  # 4 of 8 columns, and 2 of 4
    assert (second.decided, second.edit_iou) == (4, 0.5)
    (pair,) = found.pairs
    assert (pair.both, pair.same, pair.drawn, pair.drawn_iou) == (3, 2, 1, 0.25)
    assert pair.kappa == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))  # p_e = (1 * 2 + 1 * 1) / 9
    assert "a and b: the same on 2 of 3, Cohen's kappa 0.500; IoU of 1 masks that both drew 0.250" in text(found)


def test_reviewers_who_have_nothing_in_common():
    found = agreement({"a": {}, "b": {}})
    assert (found.pairs[0].both, found.pairs[0].kappa, found.pairs[0].drawn_iou) == (0, None, None)
    assert "not defined" in text(found)
