"""What changed between steps, and the story of a mask; against worked examples and a plain model of the ledger."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from dataengine.ledger.history import blame, diff
from dataengine.ledger.ledger import Ledger
from dataengine.ledger.tables import LedgerError


@pytest.fixture
def told(squares):
    """A ledger in which everything happened once, and its entries by name."""
    ledger = squares.ledger()
    cat, dog = squares.entry(1, 1, annotation_id="11"), squares.entry(1, 9, concept=squares.DOG, annotation_id="12")
    found = {
        "cat": cat,
        "dog": dog,
        "same": squares.entry(1, 1, 1, by=squares.ROBOT, state="rejected", reason="confirmed", score=0.9),
        "new": squares.entry(2, 1, 1, by=squares.ROBOT, score=0.8),
        "grey": squares.entry(2, 9, 1, squares.DOG, squares.ROBOT, state="review", reason="stability"),
        "poor": squares.entry(2, 20, 1, squares.DOG, squares.ROBOT, state="rejected", reason="confidence"),
    }
    found["same"] = replace(found["same"], relation="duplicate", relative=cat.entry_id, overlap=1.0)
    ledger.append("relabel", 1, [found[name] for name in ("same", "new", "grey", "poor")])
    found["drawn"] = squares.entry(2, 10, 1, squares.DOG, supersedes=found["grey"].entry_id)
    said = [
        squares.decide(found["grey"], "edit", replacement=found["drawn"].entry_id, seconds=4.5),
        squares.decide(found["new"], "reject", reason="a shadow"),
        squares.decide(dog, "accept", "reviewer:bob"),
    ]
    ledger.append("review", 1, [found["drawn"]], said)
    return ledger, found


def test_diff_says_what_became_of_each_entry(told):
    ledger, found = told
    names = {entry.entry_id: name for name, entry in found.items()}

    def between(before, after):
        return {(names[c.entry.entry_id], c.kind, c.before, c.after) for c in diff(ledger, before, after)}

    assert between(0, 1) == {
        ("same", "confirmed", None, "rejected"),
        ("new", "added", None, "kept"),
        ("grey", "review", None, "review"),
        ("poor", "rejected", None, "rejected"),
    }
    assert between(1, 2) == {
        ("grey", "changed", "review", "superseded"),
        ("new", "changed", "kept", "rejected"),
        ("drawn", "added", None, "kept"),
    }
    assert between(0, 2) == {
        ("same", "confirmed", None, "rejected"),
        ("new", "rejected", None, "rejected"),
        ("drawn", "added", None, "kept"),
        ("poor", "rejected", None, "rejected"),
    }
    assert between(1, 0) == {(name, "gone", state, None) for name, _, _, state in between(0, 1)}
    assert between(2, 2) == set()
    ledger.rollback(1)
    assert between(1, 3) == set()
    assert between(2, 3) == {(name, "gone" if b is None else "changed", a, b) for name, _, b, a in between(1, 2)}
    with pytest.raises(LedgerError, match="there is no step 9"):
        list(diff(ledger, 0, 9))


def test_blame_tells_all_that_was_said_of_a_mask(told):
    ledger, found = told
    (story,) = blame(ledger, found["drawn"].entry_id)
    assert story == blame(ledger, found["grey"].entry_id[:8])[0]
    said = [(w.step.number, w.entry and w.entry.entry_id, w.decision and w.decision.action) for w in story.words]
    assert said == [(1, found["grey"].entry_id, None), (2, found["drawn"].entry_id, None), (2, None, "edit")]
    assert [(s.entry.entry_id, s.is_superseded) for s in story.standing] == [
        (found["grey"].entry_id, True),
        (found["drawn"].entry_id, False),
    ]
    (story,) = blame(ledger, found["cat"].entry_id)  # the robot's is the same mask
    assert [(w.step.number, w.entry.origin, w.is_other) for w in story.words] == [
        (0, "human", False),
        (1, "model", False),
    ]


def test_blame_tells_of_other_masks_that_name_it_and_of_undone_steps(squares):
    ledger = squares.ledger()
    cat = squares.entry(1, 1, annotation_id="11")
    near = squares.entry(1, 2, 1, by=squares.ROBOT, state="review", relation="conflict", relative=cat.entry_id)
    ledger.append("relabel", 1, [near])
    ledger.rollback(0)
    ledger.append("relabel", 1, [near])
    (story,) = blame(ledger, cat.entry_id)
    assert [(w.step.number, w.is_undone, w.is_other) for w in story.words] == [(0, 0, 0), (1, 1, 1), (3, 0, 1)]
    (story,) = blame(ledger, near.entry_id)
    assert [(w.step.number, w.is_undone) for w in story.words] == [(1, True), (3, False)]
    assert [s.step for s in story.standing] == [3]
    picture = blame(ledger, cat.picture)
    assert [story.words[0].entry.bbox[0] for story in picture] == [1.0, 9.0, 2.0]
    assert blame(ledger, squares.picture(2).key) == []


def test_blame_says_what_it_does_not_find(squares):
    ledger = squares.ledger()
    for name in ("0" * 32, "shapes/4", "", squares.entry(1, 1, annotation_id="11").entry_id[:5]):
        with pytest.raises(LedgerError, match="there is no picture and no entry"):
            blame(ledger, name)


def test_a_beginning_that_several_have_is_refused(squares, monkeypatch):
    monkeypatch.setattr("dataengine.ledger.history.MIN_PREFIX", 0)
    with pytest.raises(LedgerError, match="3 entries begin with"):
        blame(squares.ledger(), "")


class Model:
    """A ledger as plain lists, of which everything is worked out anew each time."""

    def __init__(self, entries) -> None:
        self.steps = [(None, list(entries), [])]

    def add(self, entries, decisions) -> None:
        self.steps.append((len(self.steps) - 1, list(entries), list(decisions)))

    def standing(self, step) -> dict[str, str]:
        line = []
        while step is not None:
            line.insert(0, self.steps[step])
            step = self.steps[step][0]
        entries = [entry for _, added, _ in line for entry in added]
        state = {entry.entry_id: entry.state for entry in entries}
        for _, _, decisions in line:
            for decision in decisions:
                state[decision.entry_id] = decision.state
        out = {e.supersedes for e in entries if e.supersedes is not None and state[e.entry_id] == "kept"}
        return {entry: "superseded" if entry in out else state[entry] for entry in state}


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_of_steps_stands_as_in_the_plain_model(squares, seed):
    rng = random.Random(seed)
    ledger = squares.ledger()
    first = [s.entry for _, found in ledger.view().walk() for s in found]
    model = Model(first)
    for round in range(1, 9):
        standing = model.standing(len(model.steps) - 1)
        there = [s.entry for _, found in ledger.view().walk() for s in found]
        if rng.random() < 0.25:
            back = rng.randrange(len(model.steps))
            ledger.rollback(back)
            model.steps.append((back, [], []))
            continue
        new = []
        for _ in range(rng.randrange(5)):
            number = rng.choice((1, 2, 3))
            mates = [e.entry_id for e in there if e.picture == squares.picture(number).key and e.origin == "model"]
            old = rng.choice([None, *mates])
            changes = {"state": rng.choice(("kept", "review", "rejected")), "supersedes": old, "prompt": str(len(new))}
            new.append(squares.entry(number, rng.randrange(26), round, by=squares.ROBOT, **changes))
        known = [e.entry_id for e in there + new]
        said = [
            squares.decide(replace(first[0], entry_id=rng.choice(known)), rng.choice(("accept", "reject")))
            for _ in range(rng.randrange(4))
        ]
        ledger.append(rng.choice(("relabel", "review")), round, new, said)
        model.add(new, said)
        assert len(standing) == len(there)
    opened = Ledger.open(ledger.folder)
    for step in range(len(model.steps)):
        found = [s for _, page in opened.view(step).walk() for s in page]
        stands = {s.entry.entry_id: "superseded" if s.is_superseded else s.entry.state for s in found}
        assert stands == model.standing(step)
    for before, after in [(0, len(model.steps) - 1), (len(model.steps) - 1, 1), (3, 5)]:
        old, new = model.standing(before), model.standing(after)
        expected = Counter()
        for entry in old.keys() | new.keys():
            pair = old.get(entry), new.get(entry)
            if pair[0] != pair[1] and set(pair) != {None, "superseded"}:
                expected[entry, *pair] += 1
        assert Counter((c.entry.entry_id, c.before, c.after) for c in diff(opened, before, after)) == expected
    assert opened.verify() == []
