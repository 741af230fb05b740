"""Predictions without a model: what they predict, and that they are the same whenever they are made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from builders.world_tree import write_tree
from dataengine import masks
from dataengine.sample import PROMPT_KINDS
from pipelines import build
from pipelines.evaluate.benchmark import open_benchmark
from pipelines.vgd import baseline, benchmark
from pipelines.vgd.baseline import predictions


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list:
    root = tmp_path_factory.mktemp("baseline")
    write_tree(root / "shapes", 6, seed=1)
    settings = benchmark.Settings(root=str(root / "shapes"), split="train", negatives=3)
    benchmark.build(benchmark.recipe_of(settings), str(root / "bench"), build.Settings())
    return list(open_benchmark(str(root / "bench"), "vgdseg").samples())


def test_the_truth_is_every_object_once_a_kind(samples):
    made = list(predictions(samples, "truth"))
    wanted = [
        (s.sample_id, c.category_id, kind, s.objects[place].rle.decode(), 1.0)
        for s in samples
        for c in s.conditions
        for kind in PROMPT_KINDS
        for place in c.objects
    ]
    found = [(r["sample_id"], r["category_id"], r["prompt"], r["segmentation"]["counts"], r["score"]) for r in made]
    assert sorted(found) == sorted(wanted)


def test_objects_annotated_twice_are_two_predictions(samples):
    sample = next(s for s in samples if s.conditions and s.conditions[0].objects)
    condition = sample.conditions[0]
    copied = (*sample.objects, sample.objects[condition.objects[0]])
    condition = replace(condition, objects=(condition.objects[0], len(copied) - 1))
    doubled = replace(sample, objects=copied, conditions=(condition,))
    made = [r["score"] for r in predictions([doubled], "truth") if r["prompt"] == "point"]
    assert made == [1.0, 0.5]


def test_prompts_are_masks_where_they_lie_in_the_picture(samples):
    """Of a point it is the disc about it; absent categories are shown in other pictures, and get nothing."""
    made = list(predictions(samples, "prompts"))
    asked = {(s.sample_id, c.category_id): (s, c) for s in samples for c in s.conditions}
    assert made
    for record in made:
        sample, condition = asked[record["sample_id"], record["category_id"]]
        assert condition.objects
        if record["prompt"] != "point":
            continue
        prompt = next(p for p in sample.objects[condition.exemplar].prompts if p.kind == "point")
        rows, columns = np.nonzero(masks.decode(record["segmentation"]["counts"].encode(), sample.height, sample.width))
        centres = np.array(prompt.points).reshape(-1, 2)
        away = np.hypot(columns[:, None] + 0.5 - centres[:, 0], rows[:, None] + 0.5 - centres[:, 1])
        assert away.min(axis=1).max() <= prompt.radius


def test_noise_depends_on_seed_and_sample_alone(samples):
    made = list(predictions(samples, "noisy", 5))
    backwards = list(predictions(samples[::-1], "noisy", 5))
    assert sorted(map(str, made)) == sorted(map(str, backwards))
    assert made != list(predictions(samples, "noisy", 6))


def test_noise_loses_moves_and_invents(samples):
    truth, noisy = list(predictions(samples, "truth")), list(predictions(samples, "noisy"))
    absent = {(s.sample_id, c.category_id) for s in samples for c in s.conditions if not c.objects}
    invented = [r for r in noisy if (r["sample_id"], r["category_id"]) in absent]
    assert 0 < len(invented) < len(absent) * len(PROMPT_KINDS)
    right = {str(r["segmentation"]) for r in truth}
    kept = [r for r in noisy if (r["sample_id"], r["category_id"]) not in absent]
    # 20 % are lost, within four standard deviations
    assert abs(len(kept) / len(truth) - (1 - baseline.DROPPED)) < 4 * (0.16 / len(truth)) ** 0.5 + 0.05
    assert sum(str(r["segmentation"]) in right for r in kept) < len(kept) / 3
