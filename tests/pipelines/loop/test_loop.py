"""Whole loops, as a person runs them: to the end, killed anywhere, waiting for reviewers, with pictures kept apart."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from dataengine.ledger.ledger import Ledger
from dataengine.store.dataset import open_dataset
from pipelines.cli import app

ROOT = Path(__file__).parents[3]
STEPS = [*((0, s) for s in ("begin", "build", "train", "evaluate")), *((1, s) for s in ("relabel", "build", "train"))]


@pytest.fixture
def loop(world, tmp_path, monkeypatch):
    """Runs `dataengine loop`: `loop(recipe, "--resume", fault="loop-build-1", code=1)`."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(recipe, *more, out="out", fault=None, code=0):
        if fault is None:
            monkeypatch.delenv("DATAENGINE_FAULT", raising=False)
        else:
            monkeypatch.setenv("DATAENGINE_FAULT", f"{fault}:enospc")
        arguments = ["loop", recipe, "--root", world, "--out", tmp_path / out, "--device", "cpu", *more]
        result = CliRunner().invoke(app, [str(one) for one in arguments])
        assert result.exit_code == code, result.output
        return result.output

    return run


def report(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def ledger_of(out: Path) -> Ledger:
    return Ledger.open(str(out / "ledger"))


def test_the_model_labels_what_it_is_trained_on_next(loop, recipe, tmp_path):
    changes = {
        "labeler": {"name": "xsam", "settings": {"min_score": 0.0}},
        "training.start": "previous",
        "training.later_steps": 1,
        "people_alone": True,
        "frozen_teacher": True,
    }
    said = loop(recipe(changes))
    assert "all 2 rounds are done" in said
    out = tmp_path / "out"
    ledger = ledger_of(out)
    assert [(step.kind, step.round) for step in ledger.steps] == [("init", 0), ("relabel", 1), ("relabel", 2)]
    revisions = [step.facts["labeler"]["revision"] for step in ledger.steps[1:]]
    assert revisions[0] != revisions[1]  # each round has another model
    found = report(out)
    assert [one["round"] for one in found["rounds"]] == [0, 1, 2]
    assert found["rounds"][0]["kept"]["model"] == 0
    assert all(one["proposed"] > 0 and one["kept"]["model"] > 0 for one in found["rounds"][1:])
    assert found["rounds"][0]["gold"] is None
    assert all(one["gold"]["pictures"] == 3 and one["gold"]["kept"] > 0 for one in found["rounds"][1:])
    assert [one["alone"] is None for one in found["rounds"]] == [True, False, False]
    assert [one["frozen"] is None for one in found["rounds"]] == [True, True, False]
    runs = [out / "rounds" / folder for folder in ("000/train", "001/train", "001/alone", "002/alone", "002/frozen")]
    stages = [json.loads((run / "run.json").read_text())["recipe"]["stages"][-1] for run in runs]
    assert [stage["train"]["steps"] for stage in stages] == [2, 1, 1, 1, 1]
    assert all(one["before"] == before["score"] for before, one in pairwise(found["rounds"]))
    # 12 pictures, of which 0.34 are 4; what models drew is in the data, and says so
    begun = json.loads((out / "loop.json").read_text())["steps"][0]["facts"]
    assert (begun["pictures"], begun["hidden"]) == (12, 8)
    exported = json.loads((out / "rounds" / "000" / "coco" / "annotations" / "instances_train.json").read_text())
    shown = {image["id"] for image in exported["images"]}  # of the others nobody said what is in them
    assert shown == {one["image_id"] for one in exported["annotations"]}
    assert 0 < len(shown) <= 4
    # in pictures that it labelled the model is taken at its word
    assert all(step.facts["searched"] == [one.id for one in ledger.categories] for step in ledger.steps[1:])
    labelled = json.loads((out / "rounds" / "001" / "coco" / "annotations" / "instances_train.json").read_text())
    assert any(one["neg_category_ids"] for one in labelled["images"] if one["id"] not in shown)
    lineages = {
        (thing.lineage.origin, thing.lineage.labeler, thing.lineage.round)
        for sample in open_dataset(str(out / "rounds" / "002" / "data" / "labels")).samples()
        for thing in sample.objects
    }
    assert ("human", None, None) in lineages
    assert {one[:2] for one in lineages if one[0] == "model"} == {("model", "xsam")}
    assert "round 1's labels" in (out / "report.html").read_text()


def test_a_loop_that_dies_after_any_step_ends_like_one_that_does_not(loop, recipe, tmp_path):
    from safetensors.numpy import load_file

    file = recipe({"rounds": 1})
    loop(file, out="whole")
    for place, (number, step) in enumerate([*STEPS, (1, "evaluate")]):
        loop(file, *(["--resume"] if place else []), fault=f"loop-{step}-{number}", code=1)
    loop(file, "--resume")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert report(out) == report(whole)
    assert ledger_of(out).view().version == ledger_of(whole).view().version
    assert len(ledger_of(out).steps) == 2
    name = "rounds/001/train/only/model/model.safetensors"
    weights, expected = load_file(out / name), load_file(whole / name)
    assert weights.keys() == expected.keys()
    assert all(np.array_equal(weights[one], expected[one]) for one in expected)
    steps = [(one["round"], one["step"]) for one in json.loads((out / "loop.json").read_text())["steps"]]
    assert steps == [*STEPS, (1, "evaluate")]


def test_labels_come_from_the_ledger_alone(loop, recipe, world):
    """Another source could bring back what models are judged by."""
    extra = {"builder": "coco", "task": "genseg", "root": str(world / "coco"), "splits": ["val2017"]}
    said = loop(recipe({"training.recipe.datasets.labels.build.sources.extra": extra}), code=1)
    assert "labels come from the ledger alone" in said


def test_masks_of_people_may_have_a_share_of_their_own(loop, recipe, tmp_path):
    values = yaml.safe_load(recipe().read_text())
    training = values["training"]["recipe"]
    build = {
        "sources": {"people": {"builder": "coco", "task": "vgdseg", "root": "."}},
        "prompts": {"profile": "strict"},
    }
    changes = {
        "training.people": ["people"],
        "training.recipe.datasets": training["datasets"] | {"people": {"build": build}},
        "training.recipe.stages": [training["stages"][0] | {"data": ["labels", "people"]}],
    }
    loop(recipe(changes), fault="loop-build-1", code=1)
    data = tmp_path / "out" / "rounds" / "001" / "data"
    origins = {
        name: {thing.lineage.origin for one in open_dataset(str(data / name)).samples() for thing in one.objects}
        for name in ("labels", "people")
    }
    assert origins == {"labels": {"human", "model"}, "people": {"human"}}


def test_fewer_rounds_and_other_stops_keep_what_is_done(loop, recipe, tmp_path):
    file = recipe({"rounds": 2})
    loop(file)
    before = report(tmp_path / "out")
    for change in ("rounds=1", "stop.gain=100"):
        loop(file, "--resume", "--set", change)
        assert report(tmp_path / "out")["rounds"] == before["rounds"]


def test_the_gold_set_is_labelled_once(loop, recipe, tmp_path):
    file = recipe({"rounds": 1, "labeler": {"name": "xsam", "settings": {"min_score": 0.0}}})
    loop(file, fault="loop-gold-1", code=1)
    out = tmp_path / "out"
    loop(file, "--resume")
    (gold,) = [one["gold"] for one in report(out)["rounds"][1:]]
    assert len(Ledger.open(str(out / "rounds" / "001" / "gold")).steps) == 2
    assert (gold["pictures"], gold["precision"]) == (3, gold["right"] / gold["kept"])
    assert gold["objects"] > 0
    loop(recipe({"rounds": 1, "labeler": {"name": "xsam"}, "gold": False}), out="without")
    assert report(tmp_path / "without")["rounds"][1]["gold"] is None


def test_a_loop_that_is_killed_in_the_middle_of_a_step_goes_on(loop, recipe, tmp_path, world):
    """While the ledger begins, and when a round is in the ledger but not in the loop's log."""
    file, out = recipe({"rounds": 1}), tmp_path / "out"
    command = [sys.executable, "-m", "pipelines.cli", "loop", file, "--root", world, "--out", out, "--device", "cpu"]
    done = []
    for point in ("ledger:kill:2", "appended:kill"):
        killed = subprocess.run(
            [*map(str, command), *(["--resume"] if done else [])],
            env={**os.environ, "PYTHONPATH": str(ROOT), "DATAENGINE_FAULT": point},
            capture_output=True,
            text=True,
            timeout=300,
            cwd=ROOT,
        )
        assert killed.returncode == -9, killed.stderr
        done.append([one["step"] for one in json.loads((out / "loop.json").read_text())["steps"]])
    assert done == [[], ["begin", "build", "train", "evaluate"]]
    assert len(ledger_of(out).steps) == 2
    loop(file, "--resume")
    after = json.loads((out / "loop.json").read_text())["steps"]
    assert [(one["round"], one["step"]) for one in after] == [*STEPS, (1, "evaluate")]
    assert [step.kind for step in ledger_of(out).steps] == ["init", "relabel"]
    assert ledger_of(out).verify() == []


def test_a_loop_waits_for_reviewers(loop, recipe, tmp_path):
    file = recipe({"rounds": 1, "review": {"to": "coco", "pictures": "none"}, "labeler.settings": {"wrong_class": 0.5}})
    assert "masks wait for a review" in loop(file, code=3)
    folder = tmp_path / "out" / "rounds" / "001" / "review"
    assert "masks wait for a review" in loop(file, "--resume", code=3)  # nothing has come back
    sent = json.loads((folder / "package" / "annotations.json").read_text())
    accepted, rejected = (one["entry_id"] for one in sent["annotations"][:2])
    sent["annotations"][0]["decision"], sent["annotations"][1]["decision"] = "accept", "reject"
    (folder / "returned" / "ana.json").write_text(json.dumps(sent))
    loop(file, "--resume", fault="loop-review-1", code=1)
    loop(file, "--resume")
    ledger = ledger_of(tmp_path / "out")
    assert [step.kind for step in ledger.steps] == ["init", "relabel", "review"]  # it was not taken twice
    states = {entry.entry_id: entry.state for _, found in ledger.view().walk() for entry in (s.entry for s in found)}
    assert (states[accepted], states[rejected]) == ("kept", "rejected")
    assert report(tmp_path / "out")["rounds"][1]["by_people"] == {"accept": 1, "reject": 1}
    step = [one for one in json.loads((tmp_path / "out" / "loop.json").read_text())["steps"] if one["step"] == "review"]
    assert step[0]["facts"] == {"step": 2, "sent": len(sent["annotations"]), "reviewers": ["ana"], "refused": {}}


def test_what_models_are_judged_by_is_not_in_the_ledger(loop, recipe, tmp_path):
    """Of both splits: 12 pictures to train on, and 3 that are the gold set."""
    loop(recipe({"source": {"roots": ["coco"], "labelled": 0.5}}), fault="loop-begin-0", code=1)
    out = tmp_path / "out"
    gold = {sample.image_key for sample in open_dataset(str(out / "data" / "gold")).samples()}
    keys = {picture.key for picture in ledger_of(out).pictures()}
    assert (len(gold), len(keys)) == (3, 12)
    assert not gold & keys
    masked = {entry.picture for entry in ledger_of(out).view().kept()}
    assert len(masked) <= 6
    assert all(not p.exhaustive for p in ledger_of(out).pictures() if p.key not in masked)


def test_other_training_data_that_shares_pictures_with_the_gold_set_is_refused(loop, recipe):
    file = recipe()
    text = file.read_text().replace("data:\n      - labels", "data:\n      - labels\n      - more")
    more = """      more:
        build:
          sources:
            coco: {builder: coco, task: genseg, root: coco, splits: [val2017], options: {variants: [instance]}}
      labels:
"""
    file.write_text(text.replace("      labels:\n", more, 1))
    assert "more: 3 of its pictures are among those that models are judged by" in loop(file, code=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score.exam": "vgd"}, "score.exam: stage only has no exam vgd; there are: genseg"),
        ({"training.labels": ["label"]}, "training.labels: the training recipe has no dataset label with a `build`"),
        ({"training.labels": ["gold"]}, "training.labels: no stage trains on gold"),
        ({"training.people": ["labels"]}, "training.people: labels is in labels too"),
        ({"training.people": ["gold"]}, "training.people: no stage trains on gold"),
        ({"training.people": ["person"]}, "training.people: the training recipe has no dataset person with a `build`"),
        ({"rounds": 0}, "rounds: Input should be greater than or equal to 1"),
        ({"source.labelled": None, "labeler.settings": {"truth": "{truth}"}}, "nothing is hidden"),
        ({"filters": "confidense"}, "confidense"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
    ],
)
def test_recipes_that_cannot_work_are_refused_before_anything_is_written(loop, recipe, tmp_path, changes, message):
    assert message in loop(recipe(changes), code=1)
    assert not (tmp_path / "out").exists()


def test_a_loop_goes_on_only_as_what_it_was_begun(loop, recipe, tmp_path):
    loop(recipe(), fault="loop-begin-0", code=1)
    assert "add --resume" in loop(recipe(), code=1)
    assert "recipe.seed was 0 and is 1" in loop(recipe({"seed": 1}), "--resume", code=1)
    loop(recipe({"rounds": 5, "stop.gain": 2.0}), "--resume", fault="loop-begin-0", code=1)  # which may change
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "not empty, and no loop (notes.txt)" in loop(recipe(), code=1)


def test_training_that_is_interrupted_is_gone_on_with(loop, recipe, monkeypatch, tmp_path):
    from pipelines.training import launch

    with monkeypatch.context() as patched:
        patched.setattr(launch, "local", lambda run, processes, say: 143)
        assert "training was interrupted" in loop(recipe({"rounds": 1}), code=143)
    steps = json.loads((tmp_path / "out" / "loop.json").read_text())["steps"]
    assert [one["step"] for one in steps] == ["begin", "build"]
