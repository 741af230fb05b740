"""`stats` against the same numbers counted sample by sample."""

import json
from collections import Counter

import numpy as np
import pytest
from typer.testing import CliRunner

from dataengine.store.dataset import open_dataset
from pipelines import build, recipe, stats
from pipelines.build import Settings
from pipelines.cli import app


@pytest.fixture
def out(coco_tree, tmp_path) -> str:
    """Two sources: COCO-VGD with prompts, and instances to segment; shards of two pictures."""
    tree = coco_tree(5)
    path = tmp_path / "two.yaml"
    path.write_text(
        json.dumps(
            {
                "name": "two",
                "sources": {
                    "vgd": {"builder": "coco", "task": "vgdseg", "root": str(tree.root)},
                    "things": {
                        "builder": "coco",
                        "task": "genseg",
                        "root": str(tree.root),
                        "options": {"variants": ["instance"]},
                    },
                },
                "prompts": {"profile": "published"},
                "shard": {"images": 2},
            }
        )
    )
    build.run(recipe.load(str(path)), str(tmp_path / "out"), Settings(engine="local"))
    return str(tmp_path / "out")


def test_numbers_are_those_of_the_samples(out):
    found = stats.stats(out)
    samples = list(open_dataset(out).samples())
    objects = [thing for sample in samples for thing in sample.objects]
    assert found["samples"] == len(samples) > 5
    by = {(row["task"], row["variant"], row["source"], row["split"]): row["samples"] for row in found["by"]}
    assert by == Counter((s.task, s.variant or "", s.source, s.split) for s in samples)
    each = {
        "objects": [len(s.objects) for s in samples],
        "conditions": [len(s.conditions) for s in samples],
        "turns": [len(s.turns) for s in samples],
        "words": [sum(len(turn.text.split()) for turn in s.turns) for s in samples],
    }
    for name, values in each.items():
        check(found["per_sample"][name], values)
    check(found["mask_area_px"], [thing.area for thing in objects])
    assert sum(found["mask_area_px"]["sizes"].values()) == len(objects)
    assert found["mask_area_px"]["sizes"]["small"] == sum(thing.area < 32**2 for thing in objects)
    for source, rows in found["categories"].items():
        counted = Counter(thing.category_id for s in samples if s.source == source for thing in s.objects)
        assert {row["id"]: row["objects"] for row in rows if row["objects"]} == counted
        assert [row["objects"] for row in rows] == sorted((row["objects"] for row in rows), reverse=True)


def check(found, values):
    assert found["count"] == len(values)
    assert found["mean"] == pytest.approx(np.mean(values))
    expected = np.quantile(values, stats.QUANTILES, method="inverted_cdf")
    assert list(found["quantiles"].values()) == expected.tolist()


def test_prompts_are_summed_up(out):
    prompts = [p for s in open_dataset(out).samples() for thing in s.objects for p in thing.prompts]
    assert sum(row["count"] for row in stats.stats(out)["prompts"]) == len(prompts)
    for row in stats.stats(out)["prompts"]:
        mine = [p for p in prompts if (p.kind, p.profile, p.status) == (row["kind"], row["profile"], row["status"])]
        assert row["count"] == len(mine)
        assert row["inside"] == pytest.approx(np.mean([p.inside for p in mine]))
        assert row["whole"] == np.mean([p.inside >= 1 for p in mine])
        assert row["ambiguous"] == np.mean([p.other > p.inside for p in mine])


def test_samples_without_objects_are_counted():
    numbers = stats.Numbers()
    numbers.add(np.zeros(0, dtype=np.int64))
    assert numbers.to_json() == {"count": 0, "mean": None, "quantiles": {}}


def test_the_command_prints_tables_or_json(out):
    assert json.loads(CliRunner().invoke(app, ["stats", out, "--json"]).stdout) == stats.stats(out)
    lines = CliRunner().invoke(app, ["stats", out]).stdout.splitlines()
    assert lines[0].startswith(f"{stats.stats(out)['samples']} samples, ")
    assert any(line.startswith("vgdseg") for line in lines)
    assert CliRunner().invoke(app, ["stats", "nowhere"]).exit_code == 1
