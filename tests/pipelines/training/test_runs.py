"""Runs of a small model through its stages: what is in the folder, how they go on, what stops them before step 1."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from dataengine.errors import UserError
from pipelines.training import data, models, recipe, report, run
from pipelines.training.recipe import TrainingError


def run_of(small: Path, datasets: dict[str, str], out: Path, *changes: str, resume: bool = False) -> run.Run:
    loaded = recipe.load(str(small), changes)
    return run.Run(recipe=loaded, datasets=datasets, out=str(out), resume=resume, cpu=True)


def train(made: run.Run) -> list[str]:
    said: list[str] = []
    run.check(made)
    run.write(made)
    assert run.go(made, said.append) is None
    return said


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def done(datasets, tmp_path_factory):
    """A run of all three stages, and what it said."""
    from .conftest import SMALL

    folder = tmp_path_factory.mktemp("done")
    (folder / "small.yaml").write_text(SMALL)
    made = run_of(folder / "small.yaml", datasets, folder / "out")
    return made, train(made)


def test_a_run_leaves_models_metrics_scores_pictures_and_a_report(done):
    made, said = done
    out = Path(made.out)
    for stage in ("one", "two", "three"):
        assert (out / stage / "model" / "config.json").is_file()
        assert [line["step"] for line in metrics(out / stage) if "loss" in line] == [1, 2]
    assert (out / "three" / "model" / "tokenizer.json").is_file()
    scored = [line for line in metrics(out / "three") if "eval/vgd/point/ap50" in line]
    assert [line["step"] for line in scored] == [1, 2]
    assert sorted(p.name for p in (out / "three" / "pictures" / "vgd-0").iterdir()) == [
        "step-00000001.webp",
        "step-00000002.webp",
        "truth.webp",
    ]
    results = json.loads((out / "results.json").read_text())
    assert set(results) == {"trained", "untrained", "prompts"}
    # a mask of one object of a category found exactly, and nothing of the others: not nothing, not all
    assert 0 < results["prompts"]["vgd/mask/ap50"] <= 1
    assert any("trained" in line and "untrained" in line for line in said)
    page = (out / "report.html").read_text()
    assert "Predictions over time" in page
    assert "data:image/webp;base64" in page


def test_on_the_way_few_samples_count_and_at_the_end_all(done):
    out = Path(done[0].out) / "three" / "evaluations"
    few, every = (json.loads((out / f"step-0000000{n}" / "vgd.json").read_text()) for n in (1, 2))
    assert (few["samples"], every["samples"]) == (2, 3)


def test_stages_hand_on_what_they_made(done):
    from safetensors.torch import load_file

    made, _ = done
    one, two, three = (
        load_file(Path(made.out) / name / "model" / "model.safetensors") for name in ("one", "two", "three")
    )
    config = models.config_of(made.recipe.model)
    begun = models.begin(
        made.recipe,
        made.recipe.stages[2],
        config,
        {name: Path(made.out) / name / "model" for name in ("one", "two")},
    ).state_dict()
    key = "segmentor.pixel_decoder.mask_projection.weight"
    key = (
        key if key in one else next(k for k in one if k.startswith("segmentor.pixel_decoder") and k.endswith("weight"))
    )
    projector = next(k for k in two if k.startswith("visual_projector") and k.endswith("weight"))
    assert (begun[key] == one[key]).all()
    assert (begun[projector] == two[projector]).all()
    assert (three[projector] != two[projector]).any()


def test_a_finished_run_that_is_resumed_stays_as_it_is(done):
    made, _ = done
    before = (Path(made.out) / "three" / "metrics.jsonl").read_text()
    train(made.model_copy(update={"resume": True}))
    assert (Path(made.out) / "three" / "metrics.jsonl").read_text() == before


def test_a_stage_whose_checkpoints_were_deleted_is_not_trained_again(done, tmp_path):
    made, _ = done
    out = tmp_path / "out"
    shutil.copytree(made.out, out)
    shutil.rmtree(out / "one" / "checkpoints")
    before = (out / "one" / "model" / "model.safetensors").read_bytes()
    said: list[str] = []
    assert run.go(made.model_copy(update={"resume": True, "out": str(out)}), said.append) is None
    assert any(line.endswith("its checkpoints are gone; its model is taken as it is") for line in said)
    assert (out / "one" / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.set.decoder.points=16", r"model\.set\.decoder\.points was 32 and is 16"),
        ("three.lr=0.5", r"three\.lr: was 0\.001, is 0\.5"),
        ("name=other", "holds a run of small, not of other"),
    ],
)
def test_a_run_that_goes_on_as_another_is_refused_and_stays_as_it_is(done, small, change, said):
    made, _ = done
    file = Path(made.out) / run.RUN
    before = file.read_bytes()
    changed = run.Run(
        recipe=recipe.load(str(small), [change]), datasets=made.datasets, out=made.out, resume=True, cpu=True
    )
    with pytest.raises(TrainingError, match=said):
        run.write(changed)
    assert file.read_bytes() == before


def test_steps_of_like_length_are_part_of_the_order(small, datasets, tmp_path):
    orders = []
    for change in ("three.by_length=false", "three.by_length=true"):
        made = run_of(small, datasets, tmp_path, change)
        orders.append(run.ready_of(made, made.recipe.stages[2]).source.order)
    assert orders[0].settings["lengths"] is None
    assert orders[1].settings["lengths"] is not None
    assert list((tmp_path / run.CACHE).iterdir())


def test_a_folder_with_a_run_is_not_written_over(done):
    with pytest.raises(TrainingError, match="add --resume"):
        run.write(done[0])


def test_another_dataset_is_refused_when_a_run_goes_on(done, shapes, tmp_path):
    made, _ = done
    other = data.prepare(
        made.recipe.model_copy(
            update={
                "datasets": {
                    **made.recipe.datasets,
                    "panoptic": made.recipe.datasets["panoptic"].model_copy(update={"limit": 5}),
                }
            }
        ),
        {name: place for name, place in made.datasets.items() if name != "panoptic"},
        str(shapes),
        tmp_path,
        1,
        lambda _: None,
    )
    out = tmp_path / "out"
    shutil.copytree(made.out, out)
    changed = made.model_copy(update={"datasets": other, "resume": True, "out": str(out)})
    with pytest.raises(UserError, match="source coco has 5 samples of genseg, before 12"):
        run.go(changed, lambda _: None)


# --- before step 1 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("one.tasks=[chat]", "no task 'chat'"),
        ("three.trainable=[lm]", "trainable: no weight of the model begins with 'lm'"),
        ("three.mixing={rule: weights, weights: {coco: 1}}", "coco"),
        ("three.init={stage1: nowhere}", "stage1: nowhere is no checkpoint folder"),
        ("three.take={two: [projector]}", "take: two: its model has no projector"),
        ("one.init={visual_encoder: shapes}", "no published weights"),
        ("model.tokenizer=nowhere/at-all", "nowhere/at-all"),
        ("two.requires=[2]", "begins with what stage 2 makes"),
        ("one.evaluate=[{name: x, data: vgd_val, task: vgdseg, prompts: [point]}]", "a fixed head only answers genseg"),
        ("three.evaluate=[{name: x, data: vgd_val, task: vgdseg}]", "needs the kinds of prompts"),
        ("three.evaluate=[{name: x, data: vgd_val, task: refseg}]", "holds no sample of refseg"),
    ],
)
def test_what_cannot_be_trained_is_told_before_the_first_step(small, datasets, tmp_path, change, said):
    made = run_of(small, datasets, tmp_path / "out", change)
    with pytest.raises(UserError, match=said):
        run.check(made)


def test_a_task_without_head_is_named(small, datasets, tmp_path):
    made = run_of(small, datasets, tmp_path / "out", "one.data=[captions]", "one.tasks=[]")
    with pytest.raises(UserError, match="has no head for chat"):
        run.check(made)


def test_a_missing_shard_is_named(small, datasets, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(datasets["mixed"], copy)
    shard = copy / json.loads((copy / "manifest.json").read_text())["shards"][0]["name"]
    shard.unlink()
    made = run_of(small, {**datasets, "mixed": str(copy)}, tmp_path / "out")
    with pytest.raises(UserError, match=shard.name):
        run.check(made)


def test_a_built_dataset_is_used_again_by_the_same_recipe_alone(shapes, tmp_path):
    coco = {"builder": "coco", "task": "genseg", "root": "coco", "splits": ["train2017"]}
    values = {"name": "x", "model": {"preset": "tiny"}, "stages": [{"name": "s", "stage": 3, "data": ["thing"]}]}

    def prepared(limit: int, **changed) -> list[str]:
        spec = {"limit": limit, "build": {"sources": {"coco": coco | changed}}}
        made = recipe.TrainRecipe.model_validate(values | {"datasets": {"thing": spec}})
        said: list[str] = []
        data.prepare(made, {}, str(shapes), tmp_path, 1, said.append)
        return said

    assert prepared(2) == ["building thing"]
    assert prepared(2) == []
    with pytest.raises(TrainingError, match="thing: built by another recipe, limit was 2 and is 3"):
        prepared(3)
    with pytest.raises(TrainingError, match=r"sources\.coco\.splits was \[\"train2017\"\] and is \[\"val2017\"\]"):
        prepared(2, splits=["val2017"])


def test_a_dataset_that_is_not_given_is_named(tmp_path):
    with pytest.raises(TrainingError, match="--data thing=DIR"):
        data.prepare(_nothing_built("thing"), {}, None, tmp_path, 1, lambda _: None)
    with pytest.raises(TrainingError, match="--data other: recipe x needs thing"):
        data.prepare(_nothing_built("thing"), {"other": "x"}, None, tmp_path, 1, lambda _: None)


def _nothing_built(name: str) -> recipe.TrainRecipe:
    values = {"name": "x", "model": {"preset": "tiny"}, "stages": [{"name": "s", "stage": 3, "data": [name]}]}
    return recipe.TrainRecipe.model_validate(values)


def test_a_build_that_cannot_be_is_told_before_anything_is_drawn(small, shapes, tmp_path):
    changes = ["world={images: 100000}", "datasets.mixed.build.sources.vgdseg.task=vgd"]
    with pytest.raises(UserError, match=r"datasets\.mixed\.build: sources\.vgdseg\.task"):
        data.prepare(recipe.load(str(small), changes), {}, None, tmp_path, 1, lambda _: None)


def test_a_report_of_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"run\.json"):
        report.write(tmp_path)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_the_report_is_readable_in_a_browser(done, watch, scheme, width):
    made, _ = done
    page = watch(width=width, scheme=scheme).page
    page.goto((Path(made.out) / "report.html").absolute().as_uri())
    page.locator("main h1").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    headings = page.eval_on_selector_all("h2", "all => all.map((one) => one.textContent)")
    assert headings == ["Results", "Stage one", "Stage two", "Stage three"]
    chart = page.locator(".curves", has_text="Parts of the loss").last
    chart.locator(".plot").focus()
    page.keyboard.press("Home")
    first = next(line for line in metrics(Path(made.out) / "three") if "loss" in line)
    legend = chart.locator(".legend").inner_text()
    assert "step 1" in legend
    shown = float(re.search(r"language\s*([0-9.]+)", legend)[1])
    assert shown == pytest.approx(first["language"], rel=0.01)
