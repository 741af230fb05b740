"""Views of a picture: masks come back to where they were, and what several views say becomes one answer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dataengine import masks
from dataengine.ledger.records import Concept, Picture, Proposal
from pipelines.relabel import labelers
from pipelines.relabel.views import VIEWS, Transform, joined

HEIGHT, WIDTH = 30, 48  # moved by 2 px
PICTURE = Picture(key="p", path="p.png", sha256="0" * 64, height=HEIGHT, width=WIDTH)
DOG, CAT = Concept(text="dog", category_id=1), Concept(text="cat", category_id=2)


def square(x: int, y: int, side: int = 8) -> np.ndarray:
    raster = np.zeros((HEIGHT, WIDTH), dtype=bool)
    raster[y : y + side, x : x + side] = True
    return raster


def said(mask: np.ndarray, score: float, concept: Concept = DOG) -> Proposal:
    return Proposal(rle=masks.encode(mask), concept=concept, score=score)


def seen(view: Transform, mask: np.ndarray) -> np.ndarray:
    """A mask as the view shows it."""
    return view.pixels(np.repeat(mask[:, :, None], 3, axis=2))[..., 0]


@pytest.mark.parametrize("view", VIEWS)
def test_masks_come_back_to_where_they_were(view):
    mask = square(20, 7) | square(4, 18, 3)
    assert np.array_equal(view.back(seen(view, mask)), mask)
    assert seen(view, mask).sum() == mask.sum()


def test_views_differ_and_edges_fill_up():
    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    shown = [view.pixels(picture) for view in VIEWS]
    assert all(one.shape == picture.shape and one.dtype == np.uint8 for one in shown)
    assert np.array_equal(shown[0], picture)
    assert np.array_equal(shown[1], picture[:, ::-1])
    assert np.array_equal(shown[2][2:, 2:], picture[:-2, :-2])
    assert np.array_equal(shown[2][:3, 5], np.repeat(picture[:1, 3], 3, axis=0))
    assert np.array_equal(shown[3][:-2, 2:], picture[2:, ::-1][:, :-2])
    corner = np.zeros((HEIGHT, WIDTH), bool)
    corner[:4, :4] = True
    assert np.array_equal(VIEWS[2].back(corner), square(0, 0, 2))  # two rows and columns lie outside of the picture


def test_what_views_agree_on_is_one_mask_and_keeps_its_score():
    places = zip(VIEWS, (20, 21, 20, 22), (0.9, 0.8, 0.7, 0.6), strict=True)
    answers = [[said(seen(view, square(x, 7)), score)] for view, x, score in places]
    (one,) = joined(answers, VIEWS, PICTURE)
    assert one.concept == DOG
    assert one.score == pytest.approx(0.75)
    # column 20 has 1.6 of 3.0, 28 (of the masks at 21 and 22) 1.4, 21 2.4
    assert np.array_equal(masks.decode(one.rle, HEIGHT, WIDTH), square(20, 7))


@pytest.mark.parametrize(("x", "y"), [(0, 11), (40, 11), (20, 0), (20, 22), (0, 0), (40, 22), (40, 0), (0, 22)])
@pytest.mark.parametrize("scores", [(0.9, 0.8, 0.7, 0.6), (0.6, 0.7, 0.8, 0.9)])
def test_masks_at_edges_are_not_cut(x, y, scores):
    """Moved views do not see all of the picture; what they do not see they do not vote on."""
    answers = [[said(seen(view, square(x, y)), score)] for view, score in zip(VIEWS, scores, strict=True)]
    (one,) = joined(answers, VIEWS, PICTURE)
    assert np.array_equal(masks.decode(one.rle, HEIGHT, WIDTH), square(x, y))


def test_what_one_view_says_loses_the_share_of_the_others():
    answers = [[said(square(4, 4), 0.8)], [], [], [said(seen(VIEWS[3], square(30, 14)), 0.4)]]
    first, second = joined(answers, VIEWS, PICTURE)
    assert (first.score, second.score) == (pytest.approx(0.2), pytest.approx(0.1))
    assert np.array_equal(masks.decode(second.rle, HEIGHT, WIDTH), square(30, 14))
    assert joined([[], []], VIEWS[:2], PICTURE) == []


def test_each_mask_is_of_one_object_and_of_its_concept():
    two = VIEWS[:2]
    doubled = [said(square(4, 4), 0.9), said(square(5, 4), 0.5)]
    answers = [doubled, [said(seen(two[1], square(4, 4)), 0.7), said(seen(two[1], square(4, 4)), 0.6, CAT)]]
    found = joined(answers, two, PICTURE)
    assert [(one.concept.text, one.score) for one in found] == [
        ("dog", pytest.approx(0.8)),
        ("cat", pytest.approx(0.3)),
        ("dog", pytest.approx(0.25)),
    ]


def test_masks_that_overlap_by_less_than_half_stay_apart():
    answers = [[said(square(4, 4, 6), 0.9)], [said(seen(VIEWS[1], square(6, 4, 6)), 0.9)]]
    found = joined(answers, VIEWS[:2], PICTURE)  # IoU 24 / 48
    assert len(found) == 1
    answers[1] = [said(seen(VIEWS[1], square(7, 4, 6)), 0.9)]
    assert [one.score for one in joined(answers, VIEWS[:2], PICTURE)] == [0.45, 0.45]


def test_scores_that_are_none_stay_so():
    (one,) = joined([[said(square(4, 4), math.nan)], []], VIEWS[:2], PICTURE)
    with pytest.raises(labelers.AnswerError, match="nan"):
        labelers.check([one], PICTURE)
    (zero,) = joined([[said(square(4, 4), 0.0)], []], VIEWS[:2], PICTURE)
    assert (zero.score, masks.area(zero.rle, HEIGHT, WIDTH)) == (0.0, 64)
