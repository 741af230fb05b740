"""The command line as a person meets it: help, summaries, messages, exit codes."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import dataengine
from dataengine.store.files import Folder
from pipelines import progress, recipe
from pipelines.cli import app

COMMANDS = {
    "build": {
        *("--out", "--source", "--root", "--split", "--workers", "--engine", "--resume", "--limit", "--seed"),
        "--no-report",
    },
    "synth shapes": {"--images", "--out", "--layout", "--split", "--seed", "--style", "--workers"},
    "validate": set(),
    "mix": {"--source", "--root"},
    "detect": {"--recipe"},
    "inspect": {"--sample"},
    "stats": {"--json", "--tokenizer"},
    "card": {"--out", "--url", "--creator", "--published", "--force"},
    "preview": {"--out", "--samples", "--seed", "--sample"},
    "replay": {"--source", "--out"},
    "reproduce": {"--sample", "--source", "--out"},
    "report": {"--out", "--samples", "--seed", "--tokenizer"},
    "vgd build": {
        *(
            "--coco",
            "--split",
            "--out",
            "--name",
            "--profile",
            "--seed",
            "--images",
            "--limit",
            "--workers",
            "--resume",
            "--no-report",
        ),
        *("--cross-image", "--negatives", "--shots"),
    },
    "vgd verify": {"--source", "--share", "--seed"},
    "vgd quality": {"--out", "--objects", "--seed"},
    "eval": {
        *("--benchmark", "--predictions", "--out", "--split", "--convention", "--backend", "--prompt"),
        *("--exclude-faults", "--strata"),
    },
    "train": {
        *("--data", "--out", "--root", "--init", "--resume", "--launcher", "--processes", "--device", "--set"),
        *("--steps", "--workers"),
    },
    "leaks": {"--near", "--no-near", "--workers", "--json"},
    "predict": {
        *("--model", "--image", "--prompt", "--point", "--box", "--scribble", "--mask", "--answer", "--task"),
        *("--variant", "--thresholds", "--max-new", "--device", "--out"),
    },
    "import-xsam": {"--out", "--tokenizer", "--settings"},
}


@pytest.fixture
def call(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def built(call, coco_tree, tmp_path) -> Path:
    tree = coco_tree(4)
    (tree.root / "train" / "3.jpg").unlink()
    assert call("build", "vgd", "--source", f"coco={tree.root}", "--out", tmp_path / "out").exit_code == 0
    return tmp_path / "out"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_are_these(call, command):
    """A change here is a change for everyone who has a script."""
    group = app
    import typer.main

    found = typer.main.get_command(group)
    for name in command.split():
        found = found.commands[name]
    options = {option for p in found.params for option in p.opts if option.startswith("--")}
    assert options == COMMANDS[command]
    assert call(*command.split(), "--help").exit_code == 0


def test_help_is_quick():
    def once() -> float:
        """CPU time, for the machine may be busy."""
        before = os.times()
        subprocess.run([sys.executable, "-m", "pipelines.cli", "--help"], check=True, capture_output=True)
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])

    assert any(once() < 0.3 for _ in range(20))


def test_version(call):
    assert call("--version").output.strip() == dataengine.__version__


def test_build_says_what_it_built(built, call, tmp_path):
    tree = tmp_path / "coco1"
    result = call("build", "vgd", "--source", f"coco={tree}", "--out", tmp_path / "mine")
    assert result.exit_code == 0
    assert "3 samples, 6 objects in 1 shards" in result.stdout
    assert "images: 4 read = 3 built + 1 quarantined (image_missing)" in result.stdout
    assert "annotations: 8 read = 6 built + 2 filtered (image_quarantined)" in result.stdout
    assert "indexing coco/train" in result.stderr
    status = json.loads((tmp_path / "mine" / "status.json").read_text())
    assert (status["state"], status["images"], status["images_total"], status["samples"]) == ("done", 4, 4, 3)


def test_inspect(built, call):
    assert "vgdseg by coco, 3 categories" in call("inspect", built).stdout
    sample = "coco/train/coco/000000000001/vgdseg"
    shown = json.loads(call("inspect", built, "--sample", sample).stdout)
    assert shown["sample_id"] == sample
    assert shown["image"]["bytes"].endswith(" bytes>")
    missing = call("inspect", built, "--sample", "coco/none")
    assert (missing.exit_code, missing.stderr) == (1, f"error: {built}: no sample 'coco/none'\n")


def test_validate(built, call):
    assert call("validate", built).stdout == f"{built}: 3 samples, all good\n"
    shard = next(built.glob("shards/*"))
    shard.write_bytes(shard.read_bytes()[:-9])
    result = call("validate", built)
    assert result.exit_code == 1
    assert "is not the file that task" in result.stdout


def test_preview(built, call, tmp_path):
    assert call("preview", built, "--out", tmp_path / "sheet.png", "--samples", 2, "--seed", 1).exit_code == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 500
    sample = "coco/train/coco/000000000001/vgdseg"
    assert "1 samples" in call("preview", built, "--out", tmp_path / "one.png", "--sample", sample).stdout
    for wrong in (
        ["--out", tmp_path / "one.png", "--sample", "none"],
        ["--out", tmp_path / "one"],
        ["--out", "s3://a/b"],
    ):
        result = call("preview", built, *wrong)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")


def test_damaged_shards_and_plans_are_named(built, call, tmp_path):
    (shard,) = built.glob("shards/*")
    shard.write_bytes(shard.read_bytes()[:-9])
    for command in (["preview", "--out", tmp_path / "a.png"], ["inspect", "--sample", "coco/train/x"]):
        result = call(command[0], built, *command[1:])
        assert result.exit_code == 1
        assert f"error: {built}: shards/{shard.name} is damaged: " in result.stderr


def test_a_defect_leaves_no_build_behind_that_seems_to_run(call, tmp_path, coco_tree, monkeypatch):
    from pipelines import build

    def broken(*_):
        raise ZeroDivisionError("defect")

    monkeypatch.setattr(build, "build_task", broken)
    result = call("build", "vgd", "--source", f"coco={coco_tree(2).root}", "--out", tmp_path / "o")
    assert isinstance(result.exception, ZeroDivisionError)
    assert json.loads((tmp_path / "o" / "status.json").read_text())["state"] == "failed"


def test_replay(built, call):
    result = call("replay", built)
    assert "instances_train.json: image 3: image_missing -> image_missing" in result.stdout
    assert "0 of 1 quarantined records pass now" in result.stdout


def test_synth(call, tmp_path):
    assert call("synth", "shapes", "--images", 3, "--out", tmp_path / "shapes").exit_code == 0
    again = call("synth", "shapes", "--images", 3, "--out", tmp_path / "shapes")
    assert again.exit_code == 1
    assert again.stderr.startswith("error: ")
    assert call("build", "genseg", "--source", f"shapes={tmp_path / 'shapes'}", "--out", tmp_path / "o").exit_code == 0


def test_synth_in_published_layouts(call, tmp_path):
    root = tmp_path / "published"
    result = call("synth", "shapes", "--images", 3, "--layout", "published", "--out", root)
    assert result.exit_code == 0
    assert "2 of train2017 and 1 of val2017 images as coco, refer, " in result.stdout
    assert call("build", "genseg", "--source", f"coco={root / 'coco'}", "--out", tmp_path / "o").exit_code == 0
    for wrong in (["--layout", "coca"], ["--layout", "published", "--split", "val"]):
        result = call("synth", "shapes", "--images", 3, "--out", tmp_path / "other", *wrong)
        assert (result.exit_code, (tmp_path / "other").exists()) == (2, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--out", "x"], "error: nothing: no recipe of that name and no such file; recipes that ship with"),
        (["vgd", "--out", "x"], "error: vgd, line 4, source coco: coco: no folder is given; use --source NAME=FOLDER"),
        (["vgd", "--out", "x", "--source", "coco"], "error: --source coco: write NAME=PATH"),
        (
            ["vgd", "--out", "x", "--source", "coco=/nowhere"],
            "error: vgd, line 4, source coco: /nowhere: annotations/instances_*.json is missing",
        ),
        (["vgd", "--out", "x", "--source", "a=1", "--source", "b=2"], "recipe vgd has the sources coco"),
        (["vgd", "--out", "x", "--seed", str(1 << 63)], "error: seed 9223372036854775808: a seed is a whole number"),
        (["vgd", "--out", "x", "--source", "cooc=1"], "recipe vgd has the sources coco"),
        (["vgd", "--out", "x", "--source", "coco=1", "--source", "coco=2"], "--source coco: given twice"),
        (["vgd", "--out", "x", "--split", "a", "--split", "a"], "--split: a is named twice"),
    ],
)
def test_mistakes_are_named(call, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = call("build", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_wrong_options_are_usage_errors(call):
    assert call("build", "vgd", "--out", "x", "--engine", "spark").exit_code == 2
    assert call("build", "vgd").exit_code == 2
    assert call("build", "vgd", "--out", "x", "--engine", "local", "--workers", 2).exit_code == 2


def test_one_split_is_built(call, tmp_path, coco_tree):
    tree = coco_tree(3)
    shutil.copy(tree.file, tree.file.with_name("instances_other.json"))  # its pictures are not here
    result = call("build", "vgd", "--source", f"coco={tree.root}", "--out", tmp_path / "o")
    assert result.exit_code == 1
    assert "--split" in result.stderr
    assert (
        call("build", "vgd", "--source", f"coco={tree.root}", "--out", tmp_path / "p", "--split", "train").exit_code
        == 0
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a", "sources: Field required"),
        ("[]", "the top level: keys with values are needed"),
        ("name: [", "not a YAML file"),
        (
            "{name: a, sources: {s: {builder: coco, task: vgdseg}}, shards: 3}",
            "shards: there is no such key; there are name, .*, shard,",
        ),
        ("{name: a, sources: {s: {builder: coco, task: paint}}}", "sources.s.task"),
        ("{name: a, sources: {'../s': {builder: coco, task: vgdseg}}}", "sources"),
        ("{name: a, sources: {s: {builder: coco, task: vgdseg}}, prompts: {profile: best}}", "prompts.profile"),
        ("{name: a, sources: {s: {builder: coco, task: intseg}}}", "source s needs visual prompts"),
        ("{name: a, sources: {s: {builder: coco, task: genseg, splits: [a, a]}}}", "splits: .*named twice"),
        ("{name: a, sources: {s: {builder: coco, task: vgdseg}}, prompts: {kinds: []}}", "prompts.kinds"),
        ("{name: a, sources: {s: {builder: coco, task: vgdseg}}, prompts: {kinds: [box, box]}}", "named twice"),
        ("{name: a, seed: 100000000000000000000, sources: {s: {builder: coco, task: genseg}}}", "seed"),
        ("!!python/object/apply:os.system ['true']", "not a YAML file"),
    ],
)
def test_bad_recipes_are_named(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(recipe.RecipeError, match=f"mine.yaml(, line 1)?: .*{message}"):
        recipe.load(str(path))


def test_shipped_recipes_load():
    assert {"vgd", "vgd-strict", "interactive", "genseg", "genseg-instance"} <= set(recipe.shipped())
    for name in recipe.shipped():
        assert recipe.load(name).name == name


def test_unknown_builders_are_named(call, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{name: a, sources: {s: {builder: nothing, task: genseg}}}")
    result = call("build", path, "--out", tmp_path / "o")
    assert "there is no builder 'nothing'; installed: ade20k, coco, coco_interactive, " in result.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["log file", "terminal"])
def test_progress_shows_rate_and_time_left(built, tmp_path, monkeypatch, stream):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    from pipelines import build

    loaded = recipe.with_sources(recipe.load("vgd"), [f"coco={tmp_path / 'coco1'}"])
    build.run(loaded, str(tmp_path / "again"), build.Settings(), progress.Console(stream))
    shown = stream.getvalue()
    if stream.isatty():
        assert "4/4" in shown
        assert "/s" in shown
    else:
        assert "4 of 4 images, 3 samples, 1 quarantined, " in shown
        assert "images/s, about 0 s left" in shown


def test_the_command_is_remembered_without_its_secrets(monkeypatch):
    words = ["/usr/bin/dataengine", "build", "my recipe.yaml", "--out", "s3://key:secret@bucket/vgd"]
    monkeypatch.setattr(sys, "argv", words)
    assert progress.command_line() == "dataengine build 'my recipe.yaml' --out s3://bucket/vgd"
    monkeypatch.setattr(sys, "argv", ["/opt/train.py", "--out", "x"])
    assert progress.command_line() is None


def test_stages_are_timed_until_the_next_begins(tmp_path, monkeypatch):
    clock = iter([0.0, 2.0, 2.0, 5.0, 5.0, 6.5])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    console = progress.Console(io.StringIO())
    console.start(Folder(str(tmp_path)), workers=3)
    for stage in ("indexing", "planning", "indexing"):
        console.stage(stage)
    console.end({"counts": {"samples": 1}})
    console.reported(0.25)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["seconds"] == {"indexing": 3.5, "planning": 3.0, "report": 0.25}
    assert status["workers"] == 3


def test_the_report_takes_nothing_from_the_speed_of_the_build(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(progress.time, "time", lambda: now)
    console = progress.Console(io.StringIO())
    console.start(Folder(str(tmp_path)))
    console._images = 50
    now = 1010.0
    console.end({"counts": {"samples": 1}})
    now = 1100.0
    console.reported(90.0)
    assert json.loads((tmp_path / "status.json").read_text())["images_per_s"] == 5
