"""`stats` against the same numbers counted sample by sample."""

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from typer.testing import CliRunner

from dataengine.sample import HUMAN, Image, Lineage, Object, Provenance, Sample, Turn
from dataengine.store import commits
from dataengine.store.dataset import Dataset, open_dataset
from dataengine.store.files import Folder
from dataengine.store.shards import ShardWriter
from pipelines import build, recipe, stats
from pipelines.build import Settings
from pipelines.cli import app
from pipelines.tally import QUANTILES

PIECE = re.compile(r"<image>|</?p>|<region>|<SEG>|\w+|[^\w\s]")


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
    each["tokens"] = [sum(len(PIECE.findall(turn.text)) for turn in s.turns) for s in samples]
    for name, values in each.items():
        check(found["per_sample"][name], values)
    assert found["per_sample"]["tokens"]["unit"] == "words, marks and markers"
    check(found["mask_area_px"], [thing.area for thing in objects])
    assert sum(found["mask_area_px"]["sizes"].values()) == len(objects)
    for task in ("vgdseg", "genseg"):
        mine = [thing.area for s in samples if s.task == task for thing in s.objects]
        assert sum(found["mask_area_px"]["sizes_by_task"][task].values()) == len(mine)
    assert found["mask_area_px"]["sizes"]["small"] == sum(thing.area < 32**2 for thing in objects)
    for source, rows in found["categories"].items():
        counted = Counter(thing.category_id for s in samples if s.source == source for thing in s.objects)
        assert {row["id"]: row["objects"] for row in rows if row["objects"]} == counted
        assert [row["objects"] for row in rows] == sorted((row["objects"] for row in rows), reverse=True)


def check(found, values):
    assert found["count"] == len(values)
    assert found["mean"] == pytest.approx(np.mean(values))
    expected = np.quantile(values, QUANTILES, method="inverted_cdf")
    assert list(found["quantiles"].values()) == expected.tolist()
    check_histogram(found["histogram"], values)


def check_histogram(found, values):
    edges = [*found["edges"][:-1], np.inf] if found["open"] else found["edges"]
    assert found["counts"] == [sum(a <= value < b for value in values) for a, b in pairwise(edges)]
    assert sum(found["counts"]) == len(values)


def test_prompts_are_summed_up(out):
    prompts = [p for s in open_dataset(out).samples() for thing in s.objects for p in thing.prompts]
    assert sum(row["count"] for row in stats.stats(out)["prompts"]) == len(prompts)
    for row in stats.stats(out)["prompts"]:
        mine = [p for p in prompts if (p.kind, p.profile, p.status) == (row["kind"], row["profile"], row["status"])]
        assert row["count"] == len(mine)
        assert row["inside"] == pytest.approx(np.mean([p.inside for p in mine]))
        assert row["whole"] == np.mean([p.inside >= 1 for p in mine])
        assert row["ambiguous"] == np.mean([p.other > p.inside for p in mine])


def test_shares_of_prompts_have_histograms(out):
    prompts = [p for s in open_dataset(out).samples() for thing in s.objects for p in thing.prompts]
    for row in stats.stats(out)["prompts"]:
        mine = [p for p in prompts if (p.kind, p.profile, p.status) == (row["kind"], row["profile"], row["status"])]
        for name, values in (("inside", [p.inside for p in mine]), ("other", [p.other for p in mine])):
            found = row[f"{name}_histogram"]
            counts, edges = np.histogram(values, bins=20, range=(0, 1))
            assert found["counts"] == counts.tolist()
            assert found["edges"] == pytest.approx(edges)
            assert (found["zeros"], found["ones"]) == (values.count(0), values.count(1))


def test_pictures_are_counted_once(out):
    samples = list(open_dataset(out).samples())
    found = stats.stats(out)["pictures"]
    assert found["count"] == len({s.image_key for s in samples}) < len(samples)
    assert found["longest_side_px"]["quantiles"]["1"] == 32
    most = [max(len(s.objects) for s in samples if s.image_key == key) for key in {s.image_key for s in samples}]
    check(found["objects"], most)
    assert found["samples"] == {"embedded": len(samples), "by_reference": 0, "none": 0}


def test_lineage_and_its_scores_are_counted(tmp_path):
    model = Lineage(origin="model", labeler="sam", round=1, score=0.95, stability=1.0)
    merged = Lineage(origin="merged", labeler="sam", round=2, score=0.5)
    out = written(tmp_path, [sample("a", HUMAN, model, model), sample("b", merged), sample("c")])
    found = stats.stats(out)["lineage"]
    assert found["objects"] == [
        {"origin": "human", "labeler": None, "round": None, "objects": 1},
        {"origin": "merged", "labeler": "sam", "round": 2, "objects": 1},
        {"origin": "model", "labeler": "sam", "round": 1, "objects": 2},
    ]
    assert found["score"]["count"] == 3
    assert found["score"]["mean"] == pytest.approx(0.8)
    assert {k: n for k, n in enumerate(found["score"]["histogram"]["counts"]) if n} == {10: 1, 19: 2}
    assert (found["stability"]["count"], found["stability"]["histogram"]["ones"]) == (2, 2)
    assert any(re.fullmatch(r"model +sam +1 +2", line) for line in stats.text(stats.stats(out)).splitlines())


def test_pictures_by_reference_and_text_alone(tmp_path):
    pictures = [Image(bytes=None, path="/data/1.jpg"), Image(bytes=b"x" * 100_000, path="2.jpg"), None]
    samples = [replace(sample(str(n)), image=picture) for n, picture in enumerate(pictures)]
    small = [replace(samples[1], sample_id="s/train/k/chat", image=Image(bytes=b"x", path="3.jpg"))]
    assert stats.pictures_stored(dataset_of(tmp_path / "few", [samples[0], *small, samples[2]])) == {
        "embedded": 1,
        "by_reference": 1,
        "none": 1,
    }
    assert stats.pictures_stored(dataset_of(tmp_path / "large", samples[1:])) == {
        "embedded": 1,
        "by_reference": 0,
        "none": 1,
    }


def test_no_samples_and_no_objects(tmp_path):
    for samples in ([], [replace(sample("a"), height=0, width=0)]):
        found = stats.stats(written(tmp_path / str(len(samples)), samples))
        assert found["pictures"]["count"] == found["pictures"]["objects"]["count"] == 0
        assert found["mask_area_px"]["count"] == found["lineage"]["score"]["count"] == 0
        assert found["mask_area_px"]["histogram"] == {"edges": [], "counts": [], "open": False}
        assert found["prompts"] == found["lineage"]["objects"] == []
        assert found["per_sample"]["objects"]["count"] == len(samples)
        assert "samples" in stats.text(found)


def test_the_command_prints_tables_or_json(out):
    assert json.loads(CliRunner().invoke(app, ["stats", out, "--json"]).stdout) == stats.stats(out)
    lines = CliRunner().invoke(app, ["stats", out]).stdout.splitlines()
    assert lines[0].startswith(f"{stats.stats(out)['samples']} samples, ")
    assert any(line.startswith("vgdseg") for line in lines)
    assert CliRunner().invoke(app, ["stats", "nowhere"]).exit_code == 1


def sample(name: str, *lineages: Lineage) -> Sample:
    """A sample of 8 x 8 px with objects of these lineages."""
    things = [
        Object(rle=b"0", bbox=(0, 0, 1, 1), area=4, category_id=1, annotation_id=str(n), lineage=lineage)
        for n, lineage in enumerate(lineages)
    ]
    return Sample(
        sample_id=f"s/train/{name}/chat",
        task="chat",
        source="s",
        split="train",
        image=None,
        image_key=name,
        height=8,
        width=8,
        turns=(Turn(role="user", text="Hello there!", supervised=False),),
        objects=tuple(things),
        provenance=Provenance(file="f", record="r", builder="b", version=1, seed=0),
    )


def dataset_of(folder, samples: list[Sample]) -> Dataset:
    """A dataset of one shard, whatever the samples are."""
    (folder / "shards").mkdir(parents=True)
    writer = ShardWriter(folder / "shards" / "one.parquet")
    for one in samples:
        writer.write(one, checked=True)
    writer.close()
    shard = {"name": "shards/one.parquet", "rows": len(samples), "bytes": 1, "source": "s", "split": "train"}
    counts = {"samples": len(samples), "records": {}, "licenses": {}}
    manifest = {"shards": [shard], "sources": {"s/train": {"categories": []}}, "counts": counts}
    return Dataset(Folder(str(folder)), {**manifest, "version": commits.version_of(manifest)})


def written(folder, samples: list[Sample]) -> str:
    made = dataset_of(folder, samples)
    (folder / commits.MANIFEST).write_text(json.dumps(made.manifest))
    return str(folder)
