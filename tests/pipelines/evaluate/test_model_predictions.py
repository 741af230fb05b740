"""What the model writes down is what the evaluation reads: logits made of the ground truth score 1 in every task."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dataengine import masks  # noqa: E402
from dataengine.sample import Condition, Prompt  # noqa: E402
from model.postprocess import Frame, Thresholds  # noqa: E402
from model.predictions import Asked, prediction_of, records_of  # noqa: E402

SHOWN = Prompt(
    kind="box", profile="strict", version=1, status="ok", points=(1.0, 1.0, 6.0, 6.0), parts=(2,), inside=1.0
)


def answer(sample, things, **more):
    """Records for a sample, from a query for each of its objects and one that finds nothing."""
    height, width = sample.height, sample.width
    frame = Frame(canvas=2 * width, scaled=(2 * height, 2 * width), size=(height, width))
    queries, conditions = len(sample.objects) + 1, len(sample.conditions)
    classes = torch.full((1, queries, conditions + 1), -20.0)
    classes[0, -1, -1] = 20.0
    shapes = torch.full((1, queries, 2 * width, 2 * width), -20.0)
    for query, thing in enumerate(sample.objects):
        mask = np.kron(masks.decode(thing.rle, height, width), np.ones((2, 2), bool))
        shapes[0, query, : 2 * height][torch.from_numpy(mask)] = 20.0
        for number, condition in enumerate(sample.conditions):
            if query in condition.objects:
                classes[0, query, number] = 20.0
    asked = [
        Asked(text=one.text, category_id=one.category_id, is_thing=things.get(one.category_id, True))
        for one in sample.conditions
    ]
    prediction = prediction_of(sample.task, classes, shapes, frame, asked, variant=sample.variant, **more)
    return records_of(prediction, sample.sample_id)


def condition(text, *objects, **more):
    return Condition(kind="phrase", text=text, objects=objects, **more)


@pytest.mark.parametrize("task", ["refseg", "reaseg"])
def test_referring_answers_score_fully(bench, task):
    objects = [bench.thing(bench.box(0, 0, 8, 8)), bench.thing(bench.box(12, 4, 20, 20))]
    bench.add(task, objects, [condition("left", 0), condition("right", 1)])
    records = answer(bench.samples[0], {})
    assert len(records) == 2
    assert bench.score(records)["scores"]["all"]["giou"] == 1


def test_generalized_answers_score_fully(bench):
    objects = [bench.thing(bench.box(0, 0, 8, 8)), bench.thing(bench.box(12, 4, 20, 20))]
    for wanted in (condition("left", 0), condition("both", 0, 1), condition("none")):
        bench.add("grefseg", objects, [wanted])
    records = [one for sample in bench.samples for one in answer(sample, {}, thresholds=Thresholds(keep_best=False))]
    scores = bench.score(records)["scores"]["all"]
    assert (scores["giou"], scores["ciou"], scores["n_acc"], scores["t_acc"]) == (1, 1, 1, 1)


@pytest.mark.parametrize(("variant", "score"), [("instance", "ap"), ("panoptic", "pq"), ("semantic", "miou")])
def test_generic_answers_score_fully(bench, variant, score):
    objects = [
        bench.thing(bench.box(0, 0, 8, 8), 1),
        bench.thing(bench.box(20, 0, 30, 8), 1),
        bench.thing(bench.box(0, 10, 30, 20), 7),
    ]
    bench.generic(variant, objects)
    things = {1: True, 2: True, 7: False, 9: False}
    made = bench.score(answer(bench.samples[0], things, thresholds=Thresholds(instance=0.5)))
    scores = made["scores"][variant]["src"]
    assert (scores["all"]["pq"] if variant == "panoptic" else scores[score]) == 1
    assert made["excluded"] == {}


def test_grounded_captions_score_fully(bench):
    objects = [bench.thing(bench.box(0, 0, 8, 8)), bench.thing(bench.box(12, 4, 20, 20))]
    caption = "<p>a ring</p> over <p>a bar</p>."
    bench.add("gcgseg", objects, [condition("a ring", 0), condition("a bar", 1)], caption=caption)
    made = bench.score(answer(bench.samples[0], {}, text=f"{caption} The masks are <SEG>."))
    scores = made["scores"]["all"]
    assert (scores["ap50"], scores["miou"], scores["recall"]) == (1, 1, 1)


def test_interactive_answers_score_fully(bench):
    code = bench.box(0, 0, 8, 8)
    objects = [bench.thing(code, prompts=(SHOWN,)), bench.thing(bench.box(12, 4, 20, 20))]
    bench.add("intseg", objects, [Condition(kind="region", text="x", objects=(0,), exemplar=0)])
    prompts = torch.zeros(1, 60, 60)
    prompts[0, 2:12, 2:12] = 1
    made = bench.score(answer(bench.samples[0], {}, prompts=prompts, prompt="box"))
    assert made["scores"]["box"]["all"]["giou"] == 1


def test_regions_score_fully(bench):
    objects = [
        bench.thing(bench.box(0, 0, 8, 8), 1, prompts=(SHOWN,)),
        bench.thing(bench.box(20, 0, 30, 8), 1),
        bench.thing(bench.box(0, 10, 30, 20), 2, prompts=(SHOWN,)),
    ]
    regions = [
        Condition(kind="region", text="one", category_id=1, objects=(0, 1), exemplar=0),
        Condition(kind="region", text="two", category_id=2, objects=(2,), exemplar=2),
    ]
    bench.add("vgdseg", objects, regions, variant="same_image")
    made = bench.score(answer(bench.samples[0], {}, prompt="box", thresholds=Thresholds(instance=0.5)))
    assert made["scores"]["same_image"]["box"]["ap"] == 1
