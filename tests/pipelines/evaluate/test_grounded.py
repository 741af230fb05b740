"""Scores of gcgseg, on cases worked out by hand."""

from __future__ import annotations

import pytest

from dataengine.metrics import captions
from dataengine.metrics.captions import Absent, CaptionScore
from dataengine.sample import Condition
from pipelines.evaluate.predictions import PredictionError


def phrase(text: str, *objects: int) -> Condition:
    return Condition(kind="phrase", text=text, objects=objects)


@pytest.fixture
def grounded(bench, monkeypatch):
    """Two pictures: a cat and two dogs of 100 px each, and a car. METEOR is not asked for."""
    monkeypatch.setattr(captions, "meteor", lambda said, truth: Absent("not asked for here"))
    boxes = [(0, 0, 10, 10), (10, 0, 20, 10), (20, 0, 30, 10)]
    things = [bench.thing(bench.box(*box)) for box in boxes]
    bench.first = bench.add(
        "gcgseg",
        things,
        [phrase("a black cat", 0), phrase("two dogs", 1, 2)],
        caption="<p>a black cat</p> beside <p>two dogs</p>.",
    )
    bench.second = bench.add("gcgseg", things[:1], [phrase("a car", 0)], caption="The street has <p>a car</p>.")
    return bench


def answer(bench, sample_id: str, caption: str, *phrases: tuple) -> dict:
    """phrases: text, box and score each."""
    listed = [{"text": text, "segmentation": bench.rle(bench.box(*box)), "score": s} for text, box, s in phrases]
    return {"sample_id": sample_id, "caption": caption, "phrases": listed}


def test_masks_score_as_worked_out_by_hand(grounded):
    record = answer(
        grounded,
        grounded.first,
        "<p>a cat</p> and <p>a wolf</p> <SEG>",
        ("a cat", (0, 0, 10, 10), 0.9),  # F1 of the words with "a black cat": 0.8
        ("a wolf", (10, 0, 20, 8), 0.8),  # IoU 0.8 with a dog, but another phrase
    )
    scores = grounded.score([record])["scores"]["all"]
    assert scores["miou"] == pytest.approx((1 + 0.8) / 4)
    assert scores["recall"] == pytest.approx(1 / 4)
    # 2 of 4 objects at precision 1: recalls 0 to 0.5 are 51 of 101 points
    assert scores["ap50"] == pytest.approx(51 / 101)
    assert (scores["samples"], scores["samples_with_predictions"], scores["objects"]) == (2, 1, 4)
    assert scores["similarity"] == "token_f1"
    published = grounded.score([record], convention="xsam")["scores"]["all"]
    assert published["miou"] == pytest.approx(0.9)
    assert published["ap50"] == pytest.approx(67 / 101)  # of the three objects of the one picture with masks
    assert (published["samples"], published["recall"]) == (1, pytest.approx(1 / 3))


def test_captions_are_compared_without_markers(grounded):
    records = [
        answer(grounded, grounded.first, "A black cat beside two dogs"),
        answer(grounded, grounded.second, "<p>the street</p> has a car. [SEG]"),
    ]
    # CIDEr of equal captions is 10, n-grams of one picture alone weigh ln 2 each
    assert grounded.score(records)["scores"]["all"]["cider"] == pytest.approx(10)
    assert grounded.score(records[:1])["scores"]["all"]["cider"] == pytest.approx(5)
    assert grounded.score(records)["scores"]["all"]["recall"] == 0


def test_meteor_is_absent_with_its_reason_or_there(grounded, monkeypatch):
    scores = grounded.score([])["scores"]["all"]
    assert (scores["meteor"], scores["meteor_absent"]) == (None, "not asked for here")
    monkeypatch.setattr(captions, "meteor", lambda said, truth: CaptionScore(corpus=0.25, per_item=(0.25,) * len(said)))
    scores = grounded.score([])["scores"]["all"]
    assert scores["meteor"] == 0.25
    assert "meteor_absent" not in scores


def test_no_predictions_score_nothing(grounded):
    scores = grounded.score([])["scores"]["all"]
    assert [scores[name] for name in ("cider", "ap50", "miou", "recall")] == [0.0, 0.0, 0.0, 0.0]
    published = grounded.score([], convention="xsam")["scores"]["all"]
    assert [published[name] for name in ("cider", "ap50", "miou", "recall")] == [None] * 4
    assert published["cider_absent"] == "there are no captions"


def test_phrases_without_text_have_no_recall(grounded):
    record = answer(grounded, grounded.first, "", (None, (0, 0, 10, 10), None))
    scores = grounded.score([record])["scores"]["all"]
    assert (scores["recall"], scores["miou"]) == (None, 0.25)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"caption": None}, "bad_record"),
        ({"caption": "x" * 100_001}, "bad_record"),
        ({"phrases": [{"text": "x" * 10_001, "segmentation": {"size": [20, 30], "counts": [600]}}]}, "bad_record"),
        ({"phrases": None}, "bad_record"),
        ({"phrases": {}}, "bad_record"),
        ({"phrases": [None]}, "bad_record"),
        ({"phrases": [{"text": "x"}]}, "bad_record"),
        ({"phrases": [{"text": 1, "segmentation": {"size": [20, 30], "counts": [600]}}]}, "bad_record"),
        ({"phrases": [{"score": "1", "segmentation": {"size": [20, 30], "counts": [600]}}]}, "bad_score"),
        ({"phrases": [{"text": "x", "segmentation": {"size": [20, 31], "counts": [600]}}]}, "bad_mask"),
        ({}, "duplicate"),
    ],
)
def test_captions_that_cannot_be_scored(grounded, change, reason):
    good = answer(grounded, grounded.second, "a car", ("a car", (0, 0, 10, 10), 0.5))
    with pytest.raises(PredictionError, match=reason):
        grounded.score([good, {**good, **change}])
    assert grounded.score([good, {**good, **change}], exclude=True)["scores"] == grounded.score([good])["scores"]


def test_the_order_of_captions_does_not_matter(grounded):
    records = [
        answer(grounded, grounded.first, "a cat", ("a cat", (0, 0, 9, 10), 0.5), ("dogs", (10, 0, 30, 10), 0.5)),
        answer(grounded, grounded.second, "a street", ("a car", (0, 0, 10, 9), 0.5)),
    ]
    assert grounded.score(records) == grounded.score(records[::-1])
