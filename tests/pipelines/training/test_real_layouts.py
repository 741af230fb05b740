"""The shipped three stages on trees laid out like the published sources, and a few steps on published data."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.training import data, recipe, run
from pipelines.world_published import write_published

from .conftest import SMALL


@pytest.fixture(scope="module")
def small_model() -> dict:
    return yaml.safe_load(SMALL)["model"]


def metrics(stage: Path) -> list[dict]:
    lines = map(json.loads, (stage / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]


def test_the_shipped_recipe_trains_its_three_stages_from_published_layouts(small_model, tmp_path):
    tree, out = tmp_path / "data", tmp_path / "run"
    write_published(tree, 25)
    changes = {
        "model": {**small_model, "tokenizer": "tiny"},
        "init": {},  # what the authors began with is not here
        "batch": 4,
        "micro": 2,
        "workers": 0,
        "log_every": 1,
        "precision": "fp32",
    }
    sets = [text for key, value in changes.items() for text in ("--set", f"{key}={json.dumps(value)}")]
    call = ["train", "xsam", "--root", str(tree), "--out", str(out), "--device", "cpu", "--steps", "3", *sets]
    made = CliRunner().invoke(app, call)
    assert made.exit_code == 0, made.output
    assert (out / "report.html").is_file()
    for name in ("s1-segmentor", "s2-align", "s3-mixed"):
        assert (out / name / "model" / "config.json").is_file()
        assert [line["step"] for line in metrics(out / name)] == [1, 2, 3]
    manifest = json.loads((out / "data" / "mixed" / "manifest.json").read_text())
    assert len(manifest["sources"]) == 11
    again = CliRunner().invoke(app, [*call, "--resume"])  # what stands there is of the same recipes
    assert again.exit_code == 0, again.output
    assert "building" not in again.output


@pytest.fixture
def published(fixtures, tmp_path) -> dict:
    """Sources over the recorded real pictures and annotations, one of each task."""
    formats, root = fixtures / "golden" / "formats", tmp_path / "published"
    if not formats.is_dir():
        pytest.skip("needs the recorded formats")
    for name in ("refcoco", "gcg/annotations", "llava", "reasonseg"):
        shutil.copytree(formats / name, root / name)
    photos = sorted((fixtures / "coco" / "images").glob("*2017/*.jpg"))
    for folder in (
        "refcoco/images",
        "gcg/GranDf_HA_images/train",
        "llava/llava_images/coco/train2017",
        "llava/llava_images/gqa/images",
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for photo in photos:
            os.symlink(photo, root / folder / photo.name)
    for name, value in json.loads((formats / "reasonseg" / "expected.json").read_text())["lisa"].items():
        os.symlink(
            fixtures / "coco" / "images" / Path(*Path(value["photo"]).parts[-2:]), root / f"reasonseg/{name}.jpg"
        )
    return {
        "vgd": {"builder": "coco", "task": "vgdseg", "root": str(fixtures / "coco")},
        "names": {
            "builder": "coco",
            "task": "genseg",
            "root": str(fixtures / "coco"),
            "options": {"variants": ["instance"]},
        },
        "refs": {"builder": "refcoco", "task": "refseg", "root": str(root / "refcoco")},
        "captions": {"builder": "grandf", "task": "gcgseg", "root": str(root / "gcg"), "options": {"part": "ha"}},
        "reasons": {"builder": "reasonseg", "task": "reaseg", "root": str(root / "reasonseg")},
    }


def test_a_few_steps_on_published_data(published, small_model, tmp_path):
    file = tmp_path / "real.yaml"
    stage = {
        "name": "s3",
        "stage": 3,
        "data": ["real"],
        "redraw": {},
        "steps": 15,
        "batch": 4,
        "micro": 2,
        "precision": "fp32",
        "threads": 1,
        "workers": 0,
        "log_every": 1,
        "mixing": {"rule": "weights", "weights": dict.fromkeys(published, 1.0), "total": 60},
    }
    file.write_text(
        yaml.safe_dump(
            {
                "name": "real",
                "model": small_model,
                "datasets": {"real": {"build": {"prompts": {"profile": "strict"}, "sources": published}}},
                "stages": [stage],
            }
        )
    )
    loaded = recipe.load(str(file))
    places = data.prepare(loaded, {}, None, tmp_path / "run", 1, lambda _: None)
    made = run.Run(recipe=loaded, datasets=places, out=str(tmp_path / "run"), cpu=True)
    run.check(made)
    run.write(made)
    assert run.go(made, lambda _: None) is None
    learned = metrics(tmp_path / "run" / "s3")
    assert [line["step"] for line in learned] == list(range(1, 16))
    assert {line["task"] for line in learned} == {"vgdseg", "genseg", "refseg", "gcgseg", "reaseg"}
    assert all(line["loss"] == line["loss"] > 0 for line in learned)
