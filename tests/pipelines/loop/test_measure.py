"""Figures of rounds, by hand."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest

from dataengine import masks
from dataengine.ledger.ledger import Ledger
from dataengine.ledger.records import Concept, Entry, Labeler, Picture, entry_id_of, mask_id_of
from dataengine.records import Category
from pipelines.loop.measure import drift, measure, reason_to_stop

CAT, DOG = Concept(text="cat", category_id=1), Concept(text="dog", category_id=2)
ROBOT = Labeler(name="robot", revision="1")


def picture_of(key: str) -> Picture:
    return Picture(key=key, path=f"{key}.jpg", sha256=sha256(key.encode()).hexdigest(), height=20, width=20)


def entry(picture: Picture, concept: Concept, left: int, wide: int, round: int = 0, **more) -> Entry:
    """A mask of 10 rows from the top."""
    bitmap = np.zeros((20, 20), dtype=bool)
    bitmap[:10, left : left + wide] = True
    rle = masks.encode(bitmap)
    mask_id = mask_id_of(picture, concept, rle)
    by = ROBOT if round else None
    prompt = "" if by is None else f'"{left}"'
    return Entry(
        entry_id=entry_id_of(mask_id, round, by, prompt),
        mask_id=mask_id,
        picture=picture.key,
        round=round,
        origin="model" if round else "human",
        concept=concept,
        rle=rle,
        bbox=(float(left), 0.0, float(wide), 10.0),
        area=10 * wide,
        labeler=by,
        prompt=prompt,
        **more,
    )


@pytest.fixture
def ledgers(tmp_path):
    """A ledger of two pictures of which the second one's truth is hidden, after two rounds; and the truth."""
    one, two = picture_of("one"), picture_of("two")
    categories = [Category(id=c.category_id, name=c.text, text=c.text) for c in (CAT, DOG)]
    shown = entry(one, CAT, 0, 10)
    truth = [shown, entry(two, CAT, 0, 10), entry(two, DOG, 10, 10)]
    true = Ledger.create(str(tmp_path / "truth"), [one, two], categories, truth)
    ledger = Ledger.create(str(tmp_path / "ledger"), [one, two], categories, [shown])
    # of the cat of the second picture, 8 columns of 10 are an IoU of 0.8; of the dog, 7 of 10 are not enough
    cat = entry(two, CAT, 0, 8, 1)
    ledger.append(
        "relabel",
        1,
        [
            entry(
                one, CAT, 0, 9, 1, state="rejected", reason="confirmed", relation="duplicate", relative=shown.entry_id
            ),
            entry(
                one, DOG, 0, 8, 1, state="review", reason="other_category", relation="conflict", relative=shown.entry_id
            ),
            cat,
            entry(two, DOG, 10, 7, 1),
            entry(two, CAT, 15, 3, 1, state="rejected", reason="confidence"),
            entry(two, CAT, 14, 3, 1, state="rejected", reason="in_crowd", relation="in_crowd"),
        ],
    )
    facts = {"labeler": {"name": "robot"}, "searched": [2], "unlabelled": ["one"]}
    ledger.append("relabel", 2, [entry(two, CAT, 0, 10, 2, supersedes=cat.entry_id)], facts=facts)
    return ledger, true


def test_a_round_is_counted(ledgers):
    ledger, true = ledgers
    found = measure(ledger.view(1), 1, ["confidence"], true, {"two"})
    assert {name: found[name] for name in ("proposed", "added", "renewed", "in_review", "confirmed", "conflicted")} == {
        "proposed": 6,
        "added": 2,
        "renewed": 0,
        "in_review": 1,
        "confirmed": 1,
        "conflicted": 1,
    }
    assert (found["by_filter"], found["by_rule"]) == ({"confidence": 1}, {"in_crowd": 1})
    assert found["accept"] == 2 / 5
    assert found["kept"] == {"all": 3, "human": 1, "model": 2}
    assert found["categories"] == {"cat": 2, "dog": 1}
    assert found["hidden"] == {"pictures": 1, "kept": 2, "right": 1, "objects": 2, "precision": 0.5, "recall": 0.5}


def test_what_takes_the_place_of_an_earlier_mask_is_not_added(ledgers):
    ledger, true = ledgers
    found = measure(ledger.view(2), 2, [], true, {"two"})
    assert (found["proposed"], found["added"], found["renewed"], found["accept"]) == (1, 0, 1, 1.0)
    assert found["kept"] == {"all": 2, "human": 1, "model": 1}
    assert found["lost"] == 1  # the dog was looked for again
    assert found["hidden"]["kept"] == 1


def test_before_the_first_round_nothing_is_proposed(ledgers):
    ledger, _ = ledgers
    found = measure(ledger.view(0), 0, [], None, ())
    assert (found["proposed"], found["accept"], found["hidden"]) == (0, None, None)
    assert found["categories"] == {"cat": 1}


def test_drift_is_the_total_variation_distance():
    assert drift({"a": 1, "b": 1}, {"a": 30, "b": 30}) == 0
    assert drift({"a": 3, "b": 1}, {"a": 1, "b": 1, "c": 2}) == pytest.approx((0.5 + 0 + 0.5) / 2)
    assert drift({"a": 1}, {"b": 9}) == 1
    assert drift({"a": 1}, {}) is None


@pytest.mark.parametrize(
    ("scores", "accepts", "expected"),
    [
        ([0.10, 0.104], [None, 0.5], None),  # one weak round is not two
        ([0.10, 0.104, 0.108], [None, 0.5, 0.7], "the score rose by less than 0.5 points in 2 rounds running"),
        ([0.10, 0.104, 0.12, 0.121], [None, 0.5, 0.6, 0.7], None),  # the middle one was good
        ([0.10, 0.20, 0.15, 0.10], [None, 0.5, 0.6, 0.7], "the score rose by less than 0.5 points in 2 rounds running"),
        ([0.10, 0.20, 0.30], [None, 0.5, 0.509], "the share of accepted masks changed by 0.9 points, less than 1"),
        ([0.10, 0.20, 0.30], [None, 0.5, 0.49], None),
        ([0.10, 0.20, 0.30], [None, None, 0.5], None),
    ],
)
def test_when_a_loop_ends(scores, accepts, expected):
    rounds = [{"score": score, "accept": accept} for score, accept in zip(scores, accepts, strict=True)]
    assert reason_to_stop(rounds, 0.5, 2, 0.99) == (expected and expected.replace("than 1", "than 0.99"))
    assert reason_to_stop(rounds, None, 2, None) is None
