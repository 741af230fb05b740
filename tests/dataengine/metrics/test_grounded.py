"""Masks of grounded captions: GLaMM's recorded values, and the denominators that differ."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dataengine import masks
from dataengine.errors import UserError
from dataengine.metrics.grounded import Grounded, columns, match, same_text, token_f1

H, W = 4, 10
ROWS = st.lists(hnp.arrays(bool, (H, W)).map(masks.encode), max_size=3)


def row(*places: int) -> bytes:
    mask = np.zeros((H, W), bool)
    mask[0, list(places)] = True
    return masks.encode(mask)


def test_values_of_x_sam(fixtures):
    golden = json.loads((fixtures / "golden" / "metrics" / "gcg_masks.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in golden["images"]}
    grounded = Grounded()
    ious = []
    for case in golden["cases"]:
        truth, found = ([rle["counts"].encode() for rle in case[name]] for name in ("gt", "pred"))
        grounded.add((case["image_id"],), truth, found, *sizes[case["image_id"]])
        matrix = np.array(case["iou_matrix_gt_by_pred"]).reshape(len(truth), len(found))
        matched = [matrix[pair] for pair in match(matrix)]
        assert (np.mean(matched) if matched else 0.0) == pytest.approx(case["miou_gt_rows"], rel=1e-12)
        ious += [*matched, *[0.0] * (len(truth) - len(matched))]
    published = grounded.result("xsam")
    assert 100 * published.miou == pytest.approx(golden["mIoU_percent_over_images_with_predictions"], rel=1e-12)
    assert published.images == len(golden["images_with_predictions"])
    ours = grounded.result()
    assert ours.images == len(golden["images"])
    assert ours.miou == pytest.approx(np.mean(ious), rel=1e-12)
    assert (ours.recall, ours.similarity) == (None, None)


def test_denominators_by_hand():
    grounded = Grounded()
    grounded.add((1,), [row(0, 1), row(4, 5)], [row(0, 1)], H, W, truth_phrases=["a", "b"], found_phrases=["a"])
    grounded.add((2,), [row(0)], [], H, W, truth_phrases=["c"], found_phrases=[])
    ours, published = grounded.result(), grounded.result("xsam")
    assert (ours.miou, ours.recall, ours.images, ours.objects) == (1 / 3, 1 / 3, 2, 3)
    assert (published.miou, published.recall, published.images, published.objects) == (1.0, 0.5, 1, 2)


def test_recall_needs_mask_and_phrase_and_goes_on_after_a_pair_that_fails():
    truth = [row(0, 1, 2, 3), row(5, 6, 7)]
    found = [row(0, 1, 2, 3), row(0, 1, 2), row(5, 6)]
    grounded = Grounded()
    phrases = {"truth_phrases": ["a red car", "a dog"], "found_phrases": ["a tree", "red car", "the dog"]}
    grounded.add((1,), truth, found, H, W, **phrases)
    # the best pair fails by its phrase; the first object still meets the second mask (IoU 0.75, words 2 of 2 and 3)
    assert token_f1("a dog", "the dog") == 0.5  # not more than 0.5
    assert grounded.result().recall == 0.5
    always = Grounded(lambda one, other: 1.0, name="anything")
    always.add((1,), truth, found, H, W, **phrases)
    assert (always.result().recall, always.result().similarity) == (1.0, "anything")


def test_an_overlap_of_half_is_no_match():
    grounded = Grounded(same_text)
    grounded.add((1,), [row(0, 1)], [row(0)], H, W, truth_phrases=["it"], found_phrases=["It."])
    assert (grounded.result().recall, grounded.result().miou) == (0.0, 0.5)
    assert grounded.result().similarity == "same_text"


def test_phrases_compared_by_words():
    assert token_f1("A red car.", "the red car") == pytest.approx(2 / 3)
    assert token_f1("dog dog", "dog") == pytest.approx(2 / 3)
    assert token_f1("sofa", "couch") == 0.0
    assert token_f1("", "...") == 1.0
    assert (same_text("Two dogs", "two dogs."), same_text("red car", "car red")) == (1.0, 0.0)


def test_pairs_are_taken_greatest_first():
    # the best sum would be 0.8 + 0.7; greedy takes 0.9 and is left with 0
    assert match(np.array([[0.9, 0.8], [0.7, 0.0]])) == [(0, 0)]
    assert match(np.array([[0.6, 0.6], [0.6, 0.6]])) == [(0, 0), (1, 1)]
    assert match(np.zeros((0, 3))) == match(np.zeros((3, 0))) == []


def test_columns_for_average_precision():
    flat = columns([[row(0), row(1)], [], [row(2)]], [[0.5, 0.25], [], [1.0]])
    assert flat["image"].tolist() == [0, 0, 2]
    assert flat["category"].tolist() == [1, 1, 1]
    assert flat["rles"] == [row(0), row(1), row(2)]
    assert flat["score"].tolist() == [0.5, 0.25, 1.0]
    assert "score" not in columns([[row(0)]])
    with pytest.raises(UserError, match="one score for each mask"):
        columns([[row(0)], [row(1)]], [[0.5, 0.5], []])


def test_what_cannot_be_taken_in():
    grounded = Grounded()
    grounded.add((1,), [row(0)], [], H, W)
    with pytest.raises(UserError, match=r"\(1,\) was given twice"):
        grounded.add((1,), [row(0)], [], H, W)
    with pytest.raises(UserError, match="is a tuple"):
        grounded.add("1", [row(0)], [], H, W)
    with pytest.raises(UserError, match="2 phrases for 1 masks"):
        grounded.add((2,), [row(0)], [], H, W, truth_phrases=["a", "b"])
    with pytest.raises(UserError, match="was given twice"):
        grounded.merge(grounded)
    with pytest.raises(UserError, match="do not merge"):
        grounded.merge(Grounded(same_text))


def test_a_mask_without_a_pixel_meets_nothing():
    grounded = Grounded()
    grounded.add((1,), [row(), row(0)], [row(), row(0)], H, W)
    assert grounded.result().miou == 0.5


def test_no_pictures():
    score = Grounded().result()
    assert (score.miou, score.recall, score.images, score.objects) == (None, None, 0, 0)


@given(st.lists(st.tuples(ROWS, ROWS), min_size=1, max_size=4), st.sampled_from(["all", "xsam"]))
def test_what_holds_of_any_masks(pictures, convention):
    whole, parts, perfect = Grounded(), (Grounded(), Grounded()), Grounded()
    for number, (truth, found) in enumerate(pictures):
        words = {"truth_phrases": ["it"] * len(truth), "found_phrases": ["it"] * len(found)}
        whole.add((number,), truth, found, H, W, **words)
        parts[number % 2].add((number,), truth, found, H, W, **words)
        same = [f"thing {n}" for n in range(len(truth))]
        perfect.add((number,), truth, truth, H, W, truth_phrases=same, found_phrases=same)
    parts[1].merge(parts[0])
    score = whole.result(convention)
    assert parts[1].result(convention) == score
    for value in (score.miou, score.recall):
        assert value is None or 0 <= value <= 1
    best = perfect.result(convention)
    empty = sum(not masks.area(rle, H, W) for truth, _ in pictures for rle in truth)
    if best.objects and not empty:
        assert (best.miou, best.recall) == (1.0, 1.0)
