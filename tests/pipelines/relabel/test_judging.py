"""A round of a ledger held against people's masks, by the commands."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml
from typer.testing import CliRunner

from dataengine.ledger.ledger import Ledger
from dataengine.ledger.records import Check, Decision, Entry, Picture, entry_id_of, mask_id_of
from dataengine.records import Category
from pipelines.cli import app
from pipelines.relabel.calibrate import lower_bound
from pipelines.relabel.chain import Chain
from tests.pipelines.relabel.masked import CAT, DOG, entry, picture

CHAIN = Chain.parse("confidence:0.5:0.1,stability,components,text:sides=false")
CATEGORIES = [Category(id=1, name="cat", text="cat"), Category(id=2, name="dog", text="dog")]
FACTS = {"rules": {"filters": CHAIN.settings()}}


def run(*arguments, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["ledger", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


def drawn(of: Picture, *box, concept=CAT) -> Entry:
    """A person's rectangle."""
    return _of(of, entry(box, concept=concept))


def said(of: Picture, *box, concept=CAT, score=0.9, round=1, verdict="accept") -> Entry:
    """The labeler's."""
    checks = (Check(name="confidence", value=score, limit=0.5, verdict=verdict),)
    return _of(of, entry(box, concept=concept, origin="model", round=round, score=score, checks=checks))


def _of(of: Picture, one: Entry) -> Entry:
    mask_id = mask_id_of(of, one.concept, one.rle)
    return replace(one, picture=of.key, mask_id=mask_id, entry_id=entry_id_of(mask_id, one.round, one.labeler))


@pytest.fixture
def disputed(tmp_path):
    """A cat that the labeler calls a dog, one that it does not find, one that nobody drew, one that it is sure of.

    The second picture was called bad, of the third nothing was proposed.
    """
    one, two, three = (picture(key=key, exhaustive=(1, 2)) for key in ("one", "two", "three"))
    human = [drawn(one, *box) for box in ((20, 20, 60, 60), (100, 0, 140, 40), (0, 70, 20, 90))]
    bad = drawn(two, 0, 0, 20, 20)
    ledger = Ledger.create(
        str(tmp_path / "ledger"), [one, two, three], CATEGORIES, [*human, bad, drawn(three, 0, 0, 9, 9)]
    )
    first = [said(one, 20, 20, 60, 60), said(one, 0, 70, 20, 90), said(two, 100, 0, 140, 40)]
    ledger.append("relabel", 1, first, facts=FACTS)
    second = [
        said(one, 20, 20, 60, 60, concept=DOG, round=2),
        said(one, 150, 50, 190, 90, score=0.8, round=2),
        said(one, 0, 70, 20, 90, round=2),
        said(two, 100, 0, 140, 40, round=2),
    ]
    ledger.append("relabel", 2, second, facts=FACTS)
    word = Decision(entry_id=bad.entry_id, state="rejected", by="reviewer:ann", action="whole_image_bad")
    ledger.append("review", 2, [], [word])
    return ledger, human, second


def test_mistakes_of_the_newest_round(disputed, tmp_path):
    ledger, human, second = disputed
    folder, out = ledger.folder.uri, tmp_path / "mistakes.json"
    lines = run("mistakes", folder, "--out", out).splitlines()
    assert lines[0] == f"{folder}: step 2, round 2, 1 pictures: 1 missed, 1 spurious, 1 wrong_class"
    assert [line.split() for line in lines[1:]] == [
        ["score", "kind", "concept", "picture", "annotation", "proposal"],
        ["0.900", "wrong_class", "cat", "→", "dog", "one", human[0].entry_id[:12], second[0].entry_id[:12]],
        ["0.800", "missed", "cat", "one", "-", second[1].entry_id[:12]],
        ["0.400", "spurious", "cat", "one", human[1].entry_id[:12], "-"],  # of three cats one is found: 2 / 5
    ]
    told = json.loads(out.read_text())
    assert (told["step"], told["kinds"]) == (2, {"missed": 1, "spurious": 1, "wrong_class": 1})
    assert told["mistakes"][0] == {
        "kind": "wrong_class",
        "suspicion": 0.9,
        "picture": "one",
        "entry_id": human[0].entry_id,
        "concept": {"text": "cat", "category_id": 1},
        "proposal": {"entry_id": second[0].entry_id, "concept": {"text": "dog", "category_id": 2}, "score": 0.9},
        "iou": 1.0,
        "boundary_iou": None,
    }
    assert [one["entry_id"] for one in told["mistakes"][1:]] == [None, human[1].entry_id]
    assert "wrong_class" in run("mistakes", folder, "--top", 1)
    assert len(run("mistakes", folder, "--top", 1).splitlines()) == 3
    earlier = run("mistakes", folder, "--step", 1)
    assert "step 1, round 1, 2 pictures: 1 missed, 2 spurious" in earlier, (
        "nobody had said yet that the second one is bad"
    )


def test_what_reviewers_said_is_no_mistake(disputed):
    """The missing cat was rejected, and the dog accepted in the cat's place."""
    ledger, human, second = disputed
    states = [(human[0], "rejected", "reject"), (second[0], "kept", "accept"), (second[1], "rejected", "reject")]
    words = [Decision(entry_id=e.entry_id, state=s, by="reviewer:bo", action=a) for e, s, a in states]  # type: ignore
    ledger.append("review", 2, [], words)
    assert "1 pictures: 1 spurious\n" in run("mistakes", ledger.folder.uri)


@pytest.fixture
def gold(tmp_path):
    """60 pictures: a right cat of score 0.9 each, a wrong one of 0.3 in every second; dogs that do not count."""
    pictures = [picture(key=f"p{n:02d}", exhaustive=(1,)) for n in range(60)]
    human = [drawn(one, 20, 20, 60, 60) for one in pictures]
    ledger = Ledger.create(str(tmp_path / "ledger"), pictures, CATEGORIES, human)
    masks = [said(one, 20, 20, 60, 60) for one in pictures]
    masks += [said(one, 100, 0, 140, 40, score=0.3) for one in pictures[::2]]
    masks += [said(one, 100, 0, 140, 40, concept=DOG, score=0.99) for one in pictures]
    ledger.append("relabel", 1, masks, facts=FACTS)
    return ledger


def test_limits_of_a_round_are_a_filters_file(gold, tmp_path):
    told = run("calibrate", gold.folder.uri, "--precision", "0.9")
    [bound] = lower_bound([60], [60], 0.975)  # two limits are tried
    lines = told.splitlines()
    assert lines[:3] == [
        "# step 1, round 1: 90 proposals in 60 pictures, 60 of them right; 60 masks of people",
        f"# confidence: 0.9 accepts 60 of 90 (precision 1.000, at least {bound:.3f}, recall 1.000)",
        "- confidence: {accept: 0.9, reject: 0.3}",
    ]
    assert lines[3] == "# stability: no proposal of the gold set has a value; the limits stay as they were"
    assert lines[-1] == "# together they accept 60 (precision 1.000, recall 1.000)"
    (tmp_path / "filters.yaml").write_text(told)
    expected = CHAIN.with_limits({"confidence": (0.9, 0.3)})
    assert Chain.load(str(tmp_path / "filters.yaml")) == expected
    assert [next(iter(item)) for item in yaml.safe_load(told)] == [one.name for one in CHAIN.filters]


def test_too_little_data_is_said(gold):
    told = run("calibrate", gold.folder.uri, "--precision", "0.99")
    # 0.99 ** 368 is the first below 0.025
    assert (
        "# confidence: too little data: a precision of 0.99 takes at least 368 proposals, there are 90; "
        "the limits stay as they were\n- confidence: {accept: 0.5, reject: 0.1}\n"
    ) in told


@pytest.mark.parametrize(
    ("step", "facts", "exhaustive", "message"),
    [
        (0, FACTS, (1,), "nothing was labelled up to step 0; `dataengine relabel` adds a round"),
        (1, {}, (1,), "step 1 does not say its filters"),
        (1, {"rules": {"filters": "[]"}}, (1,), "had no filter whose limits can be set (confidence,"),
        (1, FACTS, (), "step 1 has 0 proposals in categories that are annotated throughout"),
    ],
    ids=["no round", "no filters known", "no filters", "nothing annotated throughout"],
)
def test_what_cannot_be_calibrated_is_told(tmp_path, step, facts, exhaustive, message):
    one = picture(key="one", exhaustive=exhaustive)
    ledger = Ledger.create(str(tmp_path / "ledger"), [one], CATEGORIES, [drawn(one, 20, 20, 60, 60)])
    ledger.append("relabel", 1, [said(one, 20, 20, 60, 60)], facts=facts)
    told = run("calibrate", ledger.folder.uri, "--precision", "0.9", "--step", step, code=1)
    assert message in told.replace("\n", "")
