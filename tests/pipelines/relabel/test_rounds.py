"""A round on a ledger: with the real filters, merge and ledger, as a person runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("pipelines.relabel.merge")
pytest.importorskip("dataengine.ledger.ledger")

from dataengine import masks
from dataengine.errors import UserError
from dataengine.ledger.ledger import Ledger
from dataengine.ledger.records import Concept, Decision
from dataengine.records import Category
from pipelines.cli import app
from pipelines.relabel.labelers import AnswerError, Question
from pipelines.relabel.rounds import look_again, searched_by, written

ROOT = Path(__file__).parents[3]
EXACT = dict.fromkeys(("missed", "wrong_class", "eroded", "dilated", "shifted", "invented", "iou_spread"), 0)
SETTINGS = [part for key, value in EXACT.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def call(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments, code: int = 0):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def tree(coco_tree):
    """Six pictures, of which the first three are annotated with two objects each."""
    made = coco_tree(6)
    truth = made.root / "truth.json"
    truth.write_bytes(made.file.read_bytes())
    made.annotations = [one for one in made.annotations if one["image_id"] <= 3]
    made.save()
    return made, truth


def test_a_round_becomes_a_step(call, tree, tmp_path):
    made, truth = tree
    ledger = tmp_path / "ledger"
    call("ledger", "init", made.root, "--out", ledger)
    oracle = (
        "--labeler",
        "noisy-oracle",
        "--set",
        f"truth={truth}",
        *SETTINGS,
        "--filters",
        "confidence:0",
        "--batch",
        2,
    )
    result = call("relabel", ledger, *oracle, "--per-task", 2)
    assert "step 1: 6 pictures, masks: 6 kept, 6 rejected" in result.stdout
    assert "6 duplicate, 6 new" in result.stdout
    opened = Ledger.open(str(ledger))
    view = opened.view()
    assert (opened.head.kind, view.round) == ("relabel", 1)
    assert opened.head.facts["labeler"]["name"] == "noisy-oracle"
    entries = [entry for picture in opened.pictures() for entry in view.entries(picture.key)]
    assert sum(e.origin == "human" for e in entries) == 6
    confirmed = [e for e in entries if e.reason == "confirmed"]
    assert len(confirmed) == 6
    assert all(e.state == "rejected" and e.overlap == 1 for e in confirmed)
    assert not opened.verify()
    assert not (ledger / "relabel" / "000000").exists()
    again = call("relabel", ledger, *oracle)  # the next round finds nothing new
    assert "step 2: 6 pictures" in again.stdout
    assert Ledger.open(str(ledger)).view().round == 2


@pytest.mark.parametrize("reason", ["", "conflict"], ids=["no reason", "a reason that a rule gives too"])
def test_only_a_reviewer_refuses(call, tree, tmp_path, reason):
    """What a filter rejected may come back in a later round; what a reviewer rejected may not."""
    made, truth = tree
    ledger = tmp_path / "ledger"
    call("ledger", "init", made.root, "--out", ledger)
    oracle = ("--labeler", "noisy-oracle", "--set", f"truth={truth}", *SETTINGS)
    call("relabel", ledger, *oracle, "--filters", "confidence:1")
    opened = Ledger.open(str(ledger))
    (first, other) = (e for p in opened.pictures() for e in opened.view().entries(p.key) if Path(p.path).stem == "5")
    assert (first.state, first.reason, other.state) == ("rejected", "confidence", "rejected")
    refusal = Decision(entry_id=first.entry_id, state="rejected", by="reviewer:ann", action="reject", reason=reason)
    opened.append("review", 1, decisions=[refusal])
    call("relabel", ledger, *oracle, "--filters", "none")
    opened = Ledger.open(str(ledger))
    found = {e.mask_id: e for p in opened.pictures() for e in opened.view().entries(p.key) if e.round == 2}
    assert [e.mask_id for e in found.values() if e.reason == "refused"] == [first.mask_id]
    assert (found[other.mask_id].state, found[other.mask_id].supersedes) == ("kept", other.entry_id)
    assert sum(e.state == "kept" for e in found.values()) == 5


@pytest.mark.parametrize(
    "point", ["commit:2", "result", "entries", "step", "appended", "cleared:1", "cleared:7", "cleared:8"]
)
def test_a_killed_round_is_one_step_in_the_end(call, tree, tmp_path, point):
    made, truth = tree
    ledgers = [tmp_path / "whole", tmp_path / "killed"]
    for ledger in ledgers:
        call("ledger", "init", made.root, "--out", ledger)
    arguments = ["--labeler", "noisy-oracle", "--set", f"truth={truth}", "--per-task", "2"]
    call("relabel", ledgers[0], *arguments)
    name, _, number = point.partition(":")
    environment = {**os.environ, "DATAENGINE_FAULT": f"{name}:kill:{number or 1}", "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-m", "pipelines.cli", "relabel", str(ledgers[1]), *arguments]
    assert subprocess.run(run, cwd=ROOT, env=environment, check=False).returncode == -9
    call("relabel", ledgers[1], *arguments, "--resume")
    whole, killed = (Ledger.open(str(ledger)) for ledger in ledgers)
    assert len(whole.steps) == len(killed.steps) == 2
    assert whole.head.files == killed.head.files
    facts, others = (dict(one.head.facts) for one in (whole, killed))
    assert {**facts, "seconds": 0} == {**others, "seconds": 0}
    assert not killed.verify()
    assert not (ledgers[1] / "relabel" / "000000").exists()


def test_a_round_that_is_a_step_is_resumed_as_that_step(call, tree, tmp_path, monkeypatch):
    made, truth = tree
    ledger = tmp_path / "ledger"
    call("ledger", "init", made.root, "--out", ledger)
    oracle = ("relabel", ledger, "--labeler", "noisy-oracle", "--set", f"truth={truth}", "--per-task", 2)
    for _ in range(2):
        assert "step 1: 6 pictures" in call(*oracle, "--resume").stdout
    monkeypatch.setenv("DATAENGINE_FAULT", "commit:enospc")
    call(*oracle, code=1)
    monkeypatch.delenv("DATAENGINE_FAULT")
    assert "step 2: 6 pictures" in call(*oracle, "--resume").stdout, "one that was begun after it goes on"
    monkeypatch.setenv("DATAENGINE_FAULT", "appended:enospc")
    call(*oracle, code=1)
    monkeypatch.delenv("DATAENGINE_FAULT")
    found = call(*oracle, "--filters", "confidence:0.9", "--resume")
    assert "step 4: 6 pictures" in found.stdout, "another round is not the one that stands"
    opened = Ledger.open(str(ledger))
    *others, mine = [step.facts["rules"]["filters"] for step in opened.steps[1:]]
    assert mine not in others
    assert list((ledger / "relabel").iterdir()) == []


@pytest.mark.parametrize("resumed", ["the same", "other settings"])
def test_a_folder_of_ones_own_is_resumed_as_what_it_holds(call, tree, tmp_path, resumed):
    made, truth = tree
    ledger = tmp_path / "ledger"
    call("ledger", "init", made.root, "--out", ledger)
    oracle = ("relabel", ledger, "--labeler", "noisy-oracle", "--set", f"truth={truth}", "--work", tmp_path / "work")
    call(*oracle)
    if resumed == "the same":
        assert "step 1: 6 pictures" in call(*oracle, "--resume").stdout
    else:
        assert "what goes into it changed" in call(*oracle, "--filters", "none", "--resume", code=1).stderr
    assert len(Ledger.open(str(ledger)).steps) == 2


def test_pictures_alone_begin_a_ledger(call, tmp_path, make_jpeg):
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        (tmp_path / "pictures" / f"{number}.jpg").write_bytes(make_jpeg(seed=number))
    call("relabel", tmp_path / "pictures", "--labeler", "noisy-oracle", code=1)
    call("relabel", tmp_path / "pictures", "--labeler", "noisy-oracle", "--out", tmp_path / "ledger")
    assert Ledger.open(str(tmp_path / "ledger")).head.kind == "relabel"


def test_categories_that_the_ledger_lacks_are_refused(call, tree, tmp_path):
    made, truth = tree
    document = json.loads(truth.read_text())
    document["categories"][0]["name"] = "something else"
    truth.write_text(json.dumps(document))
    ledger = tmp_path / "ledger"
    call("ledger", "init", made.root, "--out", ledger)
    result = call("relabel", ledger, "--labeler", "noisy-oracle", "--set", f"truth={truth}", *SETTINGS)
    assert "(unknown_category)" in result.stdout
    assert list((ledger / "relabel").rglob("quarantine/*.parquet"))


def blind(pixels, categories, fails_at):
    """A labeler that never finds anything, and cannot read one picture."""
    if int(pixels.sum()) == fails_at:
        raise ValueError("unreadable")
    return []


def test_who_looked_and_found_nothing_does_not_agree(call, tree, tmp_path):
    """Who did not look, because the picture was forbidden or could not be labelled, says nothing."""
    made, truth = tree
    ledger, oracle = tmp_path / "ledger", ("--labeler", "noisy-oracle", "--set", f"truth={truth}", *SETTINGS)
    call("ledger", "init", made.root, "--out", ledger)
    (tmp_path / "gold").mkdir()
    (tmp_path / "gold" / "2.jpg").write_bytes((made.root / "train" / "2.jpg").read_bytes())
    call("ledger", "init", tmp_path / "gold", "--out", tmp_path / "gold-ledger")
    with Image.open(made.root / "train" / "5.jpg") as picture:
        fails_at = int(np.asarray(picture).sum())
    asked = {"call": f"{__name__}:blind", "categories": {"kind-1": 1, "kind-2": 2}, "arguments": {"fails_at": fails_at}}
    settings = [part for key, value in asked.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    call(
        *("relabel", ledger, "--labeler", "callable", *settings),
        *("--forbid", tmp_path / "gold-ledger"),
    )
    opened = Ledger.open(str(ledger))
    by_name = {Path(p.path).stem: p.key for p in opened.pictures()}
    searched = opened.view().searched()
    assert [searched(by_name[str(n)]) for n in range(1, 7)] == [{1, 2}, set(), {1, 2}, {1, 2}, set(), {1, 2}]
    call("relabel", ledger, *oracle, "--filters", "agreement")
    opened = Ledger.open(str(ledger))
    assert [opened.view().searched()(by_name[name]) for name in "12"] == [{1, 2}, set()]  # an oracle looks for nothing
    values = {
        (Path(p.path).stem, entry.concept.category_id): check.value
        for p in opened.pictures()
        for entry in opened.view().entries(p.key)
        for check in entry.checks
    }
    assert {name for name, _ in values} == set("123456")
    assert len({category for _, category in values}) == 3
    assert values == {(name, c): 0 if name in "1346" and c in (1, 2) else None for name, c in values}


def test_pictures_that_are_tested_on_are_not_labelled(call, tree, tmp_path):
    """By key, or where that is another one by content."""
    made, truth = tree
    ledger = tmp_path / "ledger"
    call("ledger", "init", made.root, "--out", ledger)
    (tmp_path / "gold").mkdir()
    for number in (2, 5):
        (tmp_path / "gold" / f"gold-{number}.jpg").write_bytes((made.root / "train" / f"{number}.jpg").read_bytes())
    call("ledger", "init", tmp_path / "gold", "--out", tmp_path / "gold-ledger")
    oracle = ("--labeler", "noisy-oracle", "--set", f"truth={truth}", *SETTINGS, "--filters", "none")
    result = call("relabel", ledger, *oracle, "--forbid", tmp_path / "gold-ledger")
    assert "step 1: 4 pictures" in result.stdout
    opened = Ledger.open(str(ledger))
    assert opened.head.facts["forbidden"] == 2
    by_model = {
        Path(p.path).stem for p in opened.pictures() for e in opened.view().entries(p.key) if e.origin == "model"
    }
    assert by_model == {"1", "3", "4", "6"}
    recipe = tmp_path / "recipe.yaml"
    source = f"builder: coco, task: genseg, root: {made.root}, options: {{variants: [instance]}}"
    recipe.write_text(f"name: x\nsources:\n  coco: {{{source}}}\n")
    call("build", recipe, "--out", tmp_path / "dataset", "--no-report")
    result = call("relabel", ledger, *oracle, "--forbid", tmp_path / "dataset", code=1)
    assert "there is no picture to label" in result.stderr
    assert "no dataset" in call("relabel", ledger, *oracle, "--forbid", tmp_path / "gold", code=1).stderr


def test_published_pictures_through_every_path(call, fixtures, tmp_path):
    """COCO's own: the oracle, then a SAM of random weights, automatic and by boxes, each a step of one ledger."""
    pytest.importorskip("transformers")
    from tests.pipelines.relabel import models

    source, ledger = fixtures / "coco", tmp_path / "ledger"
    call("ledger", "init", source, "--split", "val2017", "--out", ledger)
    call("relabel", ledger, "--labeler", "noisy-oracle")
    sam = models.sam(tmp_path / "sam")
    generator = '{"points_per_side": 2, "predicted_iou": 0, "stability": 0}'
    call(
        "relabel",
        ledger,
        "--labeler",
        "sam",
        "--set",
        f"model={sam}",
        "--set",
        f"generator={generator}",
        "--filters",
        "sam",
    )
    call("relabel", ledger, "--labeler", "sam", "--set", f"model={sam}", "--set", "prompt=box", "--filters", "default")
    opened = Ledger.open(str(ledger))
    assert [step.kind for step in opened.steps] == ["init", "relabel", "relabel", "relabel"]
    assert all(sum(step.counts["entries"].values()) for step in opened.steps)
    assert not any(step.facts["records"]["quarantined"] for step in opened.steps[1:])
    assert not opened.verify()


def test_mistakes_of_the_command_line(call, tree, tmp_path):
    made, _ = tree
    ledger = tmp_path / "ledger"
    call("ledger", "init", made.root, "--out", ledger)
    for arguments, said in (
        (["--labeler", "nobody"], "there are callable"),
        (["--labeler", "noisy-oracle", "--set", "missed"], "KEY=VALUE"),
        (["--labeler", "noisy-oracle", "--filters", "nothing"], "nothing"),
        (["--labeler", "noisy-oracle", "--merge", "duplicate=2"], "duplicate"),
        (["--labeler", "noisy-oracle", "--engine", "spark"], "ray or local"),
        (["--labeler", "noisy-oracle", "--out", str(tmp_path / "b")], "leave out --out"),
    ):
        assert said in call("relabel", ledger, *arguments, code=1).stderr
    assert len(Ledger.open(str(ledger)).steps) == 1


def test_categories_have_the_names_of_the_ledger():
    categories = {
        3: Category(id=3, name="hot-dog", text="hot dog", synonyms=("frankfurter",)),
        4: Category(id=4, name="a", text="a"),
    }
    dog = Concept(text="hot dog", category_id=3)
    for text, number in (("hot dog", 3), ("hot-dog", 3), ("frankfurter", 3), ("hot-dog", -1), ("hot dog", -1)):
        assert written(Concept(text=text, category_id=number), categories) == dog
    phrase = Concept(text="the left dog")
    assert written(phrase, categories) == phrase
    for text, number in (("dog", 3), ("hot dog", 4), ("hot dog", 5)):
        with pytest.raises(AnswerError, match="no category"):
            written(Concept(text=text, category_id=number), categories)


class Corner:
    """Finds the bright corner of a picture, where it is: the same in every look."""

    def label(self, questions):
        from dataengine.ledger.records import Proposal

        return [
            [Proposal(rle=masks.encode(q.pixels[..., 0] > 128), concept=Concept(text="corner"), score=1.0)]
            for q in questions
        ]


def test_a_labeler_is_asked_about_the_changed_picture():
    from dataengine.ledger.records import Picture
    from pipelines.relabel.consistency import look

    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10, :6] = 255
    question = Question(picture=Picture(key="a", path="a", sha256="", height=20, width=30), pixels=pixels)
    (mirrored,) = look_again(Corner(), question, look("hflip"))
    assert masks.measure(mirrored.rle, 20, 30) == (60, (24, 0, 6, 10))
    (larger,) = look_again(Corner(), question, look("scale-1.25"))
    area, (x, y, w, h) = masks.measure(larger.rle, 25, 38)
    assert (x, y) == (0, 0)
    assert (w, h) in {(7, 12), (8, 13), (8, 12), (7, 13)}
    assert area == w * h


def test_masks_of_sam_on_a_ledger(call, tree, tmp_path):
    """A model of random weights through the whole round, asked by the boxes of people."""
    pytest.importorskip("transformers")
    from tests.pipelines.relabel import models

    made, _ = tree
    folder = models.sam(tmp_path / "sam")
    ledger = tmp_path / "ledger"
    call("ledger", "init", made.root, "--out", ledger)
    result = call(
        *("relabel", ledger, "--labeler", "sam", "--set", f"model={folder}", "--set", "prompt=box", "--filters", "sam")
    )
    assert "step 1: 6 pictures" in result.stdout
    opened = Ledger.open(str(ledger))
    found = [e for p in opened.pictures() for e in opened.view().entries(p.key) if e.origin == "model"]
    assert all({check.name for check in e.checks} >= {"predicted_iou", "stability"} for e in found)
    assert not opened.verify()
    assert Path(folder).is_dir()
    assert Image.open(next(opened.pictures()).path).size == (32, 24)


def test_what_a_labeler_looks_for_is_named_as_its_masks_are():
    names = [("dog", "dog"), ("mouse", "mouse"), ("mouse (device)", "mouse"), ("bow_(weapon)", "bow")]
    known = [Category(id=n, name=name, text=text) for n, (name, text) in enumerate(names, start=1)]
    asks = [("dog", 1), ("mouse", -1), ("bow_(weapon)", -1), ("zebra", 3), ("a red thing", -1)]
    labeler = Corner()
    labeler.name = "corner"
    assert searched_by(labeler, known) == []
    labeler.asks = [Concept(text=text, category_id=number) for text, number in asks]
    assert searched_by(labeler, known) == [1, 4]  # which mouse is not known, zebra is none of them
    labeler.asks = ["dog"]
    with pytest.raises(UserError, match="asks: a Concept is needed, not str"):
        searched_by(labeler, known)
