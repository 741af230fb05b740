"""Every task scored on datasets built from the published layouts: ground truth is perfect, no prediction scores 0."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dataengine import masks
from dataengine.metrics import captions
from dataengine.metrics.captions import Absent
from dataengine.sample import Sample
from dataengine.store.dataset import open_dataset
from pipelines import build, recipe
from pipelines.build import Settings
from pipelines.cli import app
from pipelines.evaluate.evaluator import evaluate
from pipelines.world_published import write_published

RECIPE = """
name: eval
sources:
  refcoco: {builder: refcoco, task: refseg, root: refer, splits: [val], options: {dataset: refcoco}}
  grefcoco: {builder: grefcoco, task: grefseg, root: grefcoco, splits: [val]}
  reasonseg: {builder: reasonseg, task: reaseg, root: reasonseg, splits: [val]}
  ade:
    {builder: ade20k, task: ovseg, root: ade20k, splits: [validation],
     options: {variants: [panoptic, semantic, instance]}}
  coco: {builder: coco, task: genseg, root: coco, splits: [val2017], options: {variants: [panoptic, semantic]}}
  coco_things: {builder: coco, task: genseg, root: coco, splits: [val2017], options: {variants: [instance]}}
  grandf: {builder: grandf, task: gcgseg, root: grandf, splits: [val], options: {part: ha}}
  interactive: {builder: coco_interactive, task: intseg, root: coco_interactive, splits: [val]}
"""
LAYOUTS = ("refer", "grefcoco", "reasonseg", "ade20k", "coco", "grandf", "coco_interactive")
NUM_IMAGES = 20
# where a task's scores lie, and those that are 1 for the ground truth
MAIN = {
    "refseg": {"all": ("ciou", "giou")},
    "reaseg": {"all": ("ciou", "giou"), "reasonseg/val/short": ("giou",), "reasonseg/val/long": ("giou",)},
    "grefseg": {"all": ("ciou", "giou", "t_acc")},
    "intseg": {"point/all": ("ciou", "giou"), "box/all": ("giou",)},
    "ovseg": {
        "instance/ade": ("ap", "ap50", "ar100"),
        "panoptic/ade/all": ("pq", "sq", "rq"),
        "panoptic/ade/stuff": ("pq",),
        "semantic/ade": ("miou", "fwiou", "macc", "pacc"),
    },
    "genseg": {
        "instance/coco_things": ("ap", "ap50", "ar100"),
        "panoptic/coco/things": ("pq", "sq", "rq"),
        "semantic/coco": ("miou", "pacc"),
    },
    "gcgseg": {"all": ("ap50", "miou", "recall")},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("eval")
    write_published(root / "data", NUM_IMAGES, layouts=LAYOUTS)
    (root / "eval.yaml").write_text(RECIPE)
    build.run(recipe.load(str(root / "eval.yaml")).with_root(str(root / "data")), str(root / "out"), Settings())
    return str(root / "out")


@pytest.fixture(autouse=True)
def _without_meteor(monkeypatch):
    """Which takes its time where it is installed."""
    monkeypatch.setattr(captions, "meteor", lambda said, truth: Absent("left out"))


def rle(sample: Sample, *objects: int) -> dict[str, Any]:
    found = np.zeros((sample.height, sample.width), bool)
    for place in objects:
        found |= masks.decode(sample.objects[place].rle, sample.height, sample.width)
    return {"size": [sample.height, sample.width], "counts": masks.encode(found).decode()}


def truth(sample: Sample) -> Iterator[dict[str, Any]]:
    """The ground truth of a sample as predictions."""
    name = {"sample_id": sample.sample_id}
    if sample.task in ("refseg", "reaseg", "grefseg", "intseg"):
        for kind in ("point", "box") if sample.task == "intseg" else (None,):
            for number, condition in enumerate(sample.conditions):
                shown = {"prompt": kind} if kind else {}
                yield {**name, "condition": number, "segmentation": rle(sample, *condition.objects), **shown}
    elif sample.task == "gcgseg":
        phrases = [
            {"text": c.text, "segmentation": rle(sample, place)} for c in sample.conditions for place in c.objects
        ]
        yield {**name, "caption": sample.caption, "phrases": phrases}
    else:
        parts = [
            {"category_id": thing.category_id, "segmentation": rle(sample, place)}
            for place, thing in enumerate(sample.objects)
            if not thing.crowd or sample.variant == "semantic"
        ]
        if sample.variant == "panoptic":
            yield {**name, "segments_info": parts}
        else:
            scored = {"score": 0.5} if sample.variant == "instance" else {}
            yield from ({**name, **part, **scored} for part in parts)


def at(scores: dict[str, Any], place: str) -> dict[str, Any]:
    """The scores at a place such as point/all; names of groups hold slashes too."""
    while place:
        key = next(key for key in scores if place == key or place.startswith(f"{key}/"))
        scores, place = scores[key], place[len(key) + 1 :]
    return scores


@pytest.mark.parametrize("task", MAIN)
def test_ground_truth_is_perfect_and_nothing_scores_nothing(dataset, task, tmp_path):
    records = [record for s in open_dataset(dataset).samples() if s.task == task for record in truth(s)]
    file = tmp_path / "predictions.json"
    for predictions, expected in ((records, 1.0), ([], 0.0)):
        file.write_text(json.dumps(predictions))
        result = evaluate(dataset, task, str(file))
        assert result["excluded"] == {}
        for place, names in MAIN[task].items():
            found = at(result["scores"], place)
            wanted = {name: expected for name in names}
            if task == "grefseg" and not predictions:  # expressions without a target are right to find nothing
                wanted["giou"] = found["precision"]["0.5"]
                assert found["n_acc"] == 1
            assert {name: found[name] for name in names} == pytest.approx(wanted), place


def test_the_command_writes_scores_in_percent(dataset, tmp_path):
    records = [record for s in open_dataset(dataset).samples() if s.task == "refseg" for record in truth(s)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    arguments = ["eval", "refseg", "--benchmark", dataset, "--predictions", str(tmp_path / "p.jsonl")]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "scores")])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "scores" / "result.json").read_text())
    assert result["scores"]["all"]["conditions"] == len(records) == result["predictions"]
    assert "100.0" in (tmp_path / "scores" / "result.txt").read_text()


def test_a_published_panoptic_prediction_is_perfect_on_its_own_ground_truth(fixtures, tmp_path):
    source = fixtures / "panoptic"
    files = {
        "annotations": str(source / "panoptic_examples.json"),
        "images": str(source / "input_images"),
        "segments": str(source / "panoptic_examples"),
    }
    loaded = recipe.load("genseg")
    spec = loaded.sources["coco"].model_copy(update={"files": files, "splits": ("val2017",)})
    build.run(loaded.model_copy(update={"sources": {"coco": spec}}), str(tmp_path / "out"), Settings())
    document = json.loads((source / "panoptic_examples.json").read_text())
    shutil.copytree(source / "panoptic_examples", tmp_path / "found")
    (tmp_path / "found.json").write_text(json.dumps(document))
    scores = evaluate(str(tmp_path / "out"), "genseg", str(tmp_path / "found.json"))["scores"]
    assert scores["panoptic"]["coco"]["all"]["pq"] == 1
    assert scores["panoptic"]["coco"]["samples_with_predictions"] == len(document["annotations"])

    (tmp_path / "labels").mkdir()
    for annotation in document["annotations"]:
        with Image.open(source / "panoptic_examples" / annotation["file_name"]) as image:
            red, green, blue = np.moveaxis(np.asarray(image).astype(np.int64), -1, 0)
        ids = red + 256 * green + 65536 * blue
        label_map = np.full(ids.shape, 255, np.uint8)
        for segment in annotation["segments_info"]:
            label_map[ids == segment["id"]] = segment["category_id"]
        Image.fromarray(label_map).save(tmp_path / "labels" / annotation["file_name"])
    records = [{"image_id": a["image_id"], "file_name": f"labels/{a['file_name']}"} for a in document["annotations"]]
    (tmp_path / "maps.json").write_text(json.dumps(records))
    scores = evaluate(str(tmp_path / "out"), "genseg", str(tmp_path / "maps.json"))["scores"]
    assert (scores["semantic"]["coco"]["miou"], scores["semantic"]["coco"]["pacc"]) == (1, 1)


def test_a_task_that_is_not_there_is_said(dataset, tmp_path):
    (tmp_path / "p.json").write_text("[]")
    arguments = ["eval", "vgd", "--benchmark", dataset, "--predictions", str(tmp_path / "p.json")]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "scores")])
    assert done.exit_code == 1
    assert "holds no sample of vgdseg" in done.output
