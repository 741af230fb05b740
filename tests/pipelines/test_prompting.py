"""Prompts in a build: simulated, or kept as the source brought them; exemplars chosen among what can be shown."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as oracle

from dataengine import masks
from dataengine.sample import Condition, Object, Prompt, Provenance, Sample
from dataengine.store.dataset import open_dataset, validate
from pipelines import build, prompting, recipe
from pipelines.build import Settings
from pipelines.recipe import PromptSpec, RecipeError

HEIGHT, WIDTH = 24, 32
RECIPE = (
    "{name: vgd, sources: {s: {builder: coco_vgd, task: vgdseg, files: {annotations: FILE, images: FOLDER}}}PROMPTS}"
)


def square(name: str, x: int, prompts: tuple[Prompt, ...] = (), crowd: bool = False) -> Object:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[4:12, x : x + 8] = True
    return Object(
        rle=masks.encode(mask),
        bbox=(x, 4, 8, 8),
        area=64,
        category_id=1,
        annotation_id=name,
        prompts=prompts,
        crowd=crowd,
    )


def click(x: float, status: str = "ok") -> Prompt:
    points = {"points": (x, 8.5), "parts": (1,)} if status == "ok" else {}
    return Prompt(kind="point", profile="published", version=0, status=status, **points)


def sample(*objects: Object) -> Sample:
    targets = tuple(i for i, thing in enumerate(objects) if not thing.crowd)
    return Sample(
        sample_id="s/train/coco/000000000001/vgdseg",
        task="vgdseg",
        source="s",
        split="train",
        image=None,
        image_key="coco/000000000001",
        height=HEIGHT,
        width=WIDTH,
        objects=objects,
        conditions=(Condition(kind="region", text="thing", category_id=1, objects=targets),),
        provenance=Provenance(file="f", record="r", builder="b", version=1, seed=0),
    )


@pytest.mark.parametrize("spec", [None, PromptSpec(profile="strict")])
def test_prompts_that_were_brought_are_kept(spec):
    given = sample(square("1", 2, (click(4.5, "none"),)), square("2", 14, (click(16.5),)), square("3", 20, crowd=True))
    (made,) = prompting.attach([given], spec, 0).samples
    assert made.objects == given.objects
    assert made.conditions[0].exemplar == 1  # the one that can be shown


def test_objects_without_prompts_are_simulated_beside_those_that_have_some():
    bare, brought = square("1", 2), square("2", 14, (click(16.5),))
    spec = PromptSpec(profile="strict", kinds=("box",))
    (mixed,) = prompting.attach([sample(bare, brought)], spec, 0).samples
    (alone,) = prompting.attach([sample(bare, replace(brought, prompts=()))], spec, 0).samples
    assert mixed.objects == (alone.objects[0], brought)


def test_nothing_is_simulated_without_being_asked_for():
    prompted = prompting.attach([sample(square("1", 2))], None, 0)
    assert (prompted.samples, prompted.conditions, prompted.dropped) == ((), 0, 1)


def test_only_samples_that_show_regions_get_prompts():
    shown = sample(square("1", 2), square("2", 14))
    (phrase,) = shown.conditions
    asked = replace(shown, sample_id="asked", task="genseg", conditions=(replace(phrase, kind="phrase"),))
    chat = replace(shown, sample_id="chat", task="chat", objects=(), conditions=())
    spec = PromptSpec(profile="strict", kinds=("box",))
    made = prompting.attach([asked, shown, chat], spec, 0).samples
    (alone,) = prompting.attach([shown], spec, 0).samples
    assert made == (asked, alone, chat)
    assert all(thing.prompts for thing in alone.objects)
    assert prompting.attach([asked, chat], spec, 0).samples == (asked, chat)


def encoded(*box: int) -> dict:
    bitmap = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    bitmap[box[1] : box[3], box[0] : box[2]] = 1
    return {"size": [HEIGHT, WIDTH], "counts": oracle.encode(bitmap)["counts"].decode()}


@pytest.mark.parametrize("prompts", ["", ", prompts: {profile: strict}"])
def test_a_build_keeps_the_prompts_of_its_source(coco_tree, tmp_path, prompts):
    tree = coco_tree(2)
    records = []
    for image in tree.images:
        annotations = [a for a in tree.annotations if a["image_id"] == image["id"]]
        for annotation in annotations:
            boxed = {"box_visual_prompt": encoded(1, 2, 20, annotation["id"] % 10 + 9)}
            annotation |= {"visual_prompts": boxed if annotation["id"] != 20 else {}}
        info = {"file_name": image["file_name"], "height": HEIGHT, "width": WIDTH, "image_id": image["id"]}
        records.append({"image_id": image["id"], "annotations": annotations, "image_info": info})
    file = tmp_path / "coco_vgdseg_train.json"
    file.write_text(json.dumps(records))
    path = tmp_path / "vgd.yaml"
    text = RECIPE.replace("FILE", str(file)).replace("FOLDER", str(tree.root / "train"))
    path.write_text(text.replace("PROMPTS", prompts))
    manifest = build.run(recipe.load(str(path)), str(tmp_path / "out"), Settings())
    assert validate(str(tmp_path / "out")).problems == []
    first, second = open_dataset(str(tmp_path / "out")).samples()
    for sample, ids in ((first, ("10", "11")), (second, ("20", "21"))):
        assert tuple(thing.annotation_id for thing in sample.objects) == ids
        for thing in sample.objects:
            kept = [(p.kind, p.version, p.points) for p in thing.prompts if p.status == "ok"]
            last = int(thing.annotation_id) % 10 + 9
            assert kept == ([("box", 0, (1, 2, 20, last))] if thing.annotation_id != "20" else [])
    assert [c.exemplar for c in second.conditions] == [1]  # nothing of the other category can be shown
    assert manifest["counts"]["records"]["filtered"]["conditions"] == {"no_prompt": 1}
    assert manifest["counts"]["records"]["built"]["prompts"] == 3


def test_regions_of_other_builders_still_need_prompts(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("{name: a, sources: {b: {builder: coco_vgd, task: vgdseg}, s: {builder: coco, task: vgdseg}}}")
    with pytest.raises(RecipeError, match="source s needs visual prompts"):
        recipe.load(str(path))
