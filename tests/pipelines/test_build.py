"""Builds: the same bytes whatever runs them and however often they die; clear refusals; counts that add up."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dataengine.builder import SourceError
from dataengine.records import AccountError
from dataengine.sample import PROMPT_KINDS
from dataengine.store import commits
from dataengine.store.commits import DatasetError
from dataengine.store.dataset import open_dataset, validate
from dataengine.store.files import Folder, NondeterminismError, StoreError
from dataengine.store.lock import LockedError, driver_lock
from dataengine.store.quarantine import BudgetError
from pipelines import build, recipe
from pipelines.build import EmptyError, ResumeError, Settings
from pipelines.replay import replay

RECIPE = """
name: small
sources:
  coco: {builder: coco, task: vgdseg, root: ROOT}
prompts: {profile: published}
shard: {images: 5}
budget: {min_count: 100}
"""


@pytest.fixture
def tree(coco_tree):
    """23 pictures, of which one is missing, one has a bad annotation, and one annotation has no picture."""
    tree = coco_tree(23)
    (tree.root / "train" / "7.jpg").unlink()
    tree.annotations[20] |= {"segmentation": [[1, 2, 3]]}
    tree.annotations.append(tree.annotations[0] | {"id": 9000, "image_id": 9000})
    tree.save()
    return tree


@pytest.fixture
def small(tree, tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.replace("ROOT", str(tree.root)))
    return path


def run(path: Path, out: Path, order=list, **settings) -> dict:
    return build.run(recipe.load(str(path)), str(out), Settings(**settings), order=order)


TIMED = ("status.json", "plan.parquet", "report.html")  # which hold times or paths, and are no part of the version


def contents(out: Path) -> dict[str, bytes]:
    """All files that make a dataset."""
    files = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in files.items() if name not in TIMED}


def cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_counts_add_up_and_everything_is_accounted_for(small, tmp_path):
    manifest = run(small, tmp_path / "out")
    records = manifest["counts"]["records"]
    assert records["read"] == {"images": 23, "annotations": 47, "conditions": 43}
    assert records["built"] == {"images": 22, "annotations": 43, "conditions": 43}
    assert records["quarantined"] == {
        "images": {"image_missing": 1},
        "annotations": {"polygon_odd": 1, "unknown_image": 1},
    }
    assert records["filtered"] == {"annotations": {"image_quarantined": 2}}
    assert manifest["counts"]["tasks"] == {"vgdseg": 22}
    assert [s["rows"] for s in manifest["shards"]] == [5, 4, 5, 5, 3]
    assert manifest["shards"][0]["name"] == "shards/train-00000-of-00005.parquet"
    assert validate(str(tmp_path / "out")).problems == []
    samples = list(open_dataset(str(tmp_path / "out")).samples())
    assert len({s.sample_id for s in samples}) == 22
    for sample in samples:
        assert sample.image.bytes == (Path(str(small)).parent / "coco1" / "train" / sample.image.path).read_bytes()
        for condition in sample.conditions:
            assert condition.exemplar in condition.objects
        for thing in sample.objects:
            assert [p.kind for p in thing.prompts] == list(PROMPT_KINDS)
    assert not any(name.startswith(".") or "tmp" in name for name in contents(tmp_path / "out"))


def test_pictures_by_reference_are_found_from_anywhere(small, tmp_path, tree, monkeypatch):
    small.write_text(small.read_text().replace("/coco1}", "/coco1, options: {images: reference}}"))
    run(small, tmp_path / "out")
    monkeypatch.chdir("/")
    assert validate(str(tmp_path / "out")).problems == []
    sample = next(open_dataset(str(tmp_path / "out")).samples())
    assert (sample.image.bytes, sample.image.path) == (None, str(tree.root / "train" / "1.jpg"))
    (tree.root / "train" / "1.jpg").unlink()
    assert "train/1.jpg" in validate(str(tmp_path / "out")).problems[0]


def test_order_and_place_do_not_matter(small, tmp_path):
    run(small, tmp_path / "a")
    run(small, tmp_path / "b", order=lambda tasks: random.Random(3).sample(tasks, len(tasks)))
    shutil.copytree(tmp_path / "coco1", tmp_path / "moved")
    small.write_text(small.read_text().replace("coco1", "moved"))
    run(small, tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")
    assert run(small, tmp_path / "d", seed=1)["version"] != run(small, tmp_path / "e", seed=2)["version"]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_ray_gives_the_same_bytes(small, tmp_path, ray_session, workers):
    run(small, tmp_path / "local", engine="local")
    run(small, tmp_path / "ray", engine="ray", workers=workers)
    assert contents(tmp_path / "local") == contents(tmp_path / "ray")


@pytest.mark.parametrize("point", [
    "index:kill", "plan:kill", "written:kill", "written:kill:3", "staged:kill", "staged:kill:2", "staged:kill:3",
    "staged:kill:4", "linked:kill", "linked:kill:2", "linked:kill:3", "linked:kill:4", "commit:kill", "commit:kill:2",
    "manifest:kill",
])  # fmt: skip
def test_a_killed_driver_is_resumed_to_the_same_bytes(small, tmp_path, point):
    run(small, tmp_path / "whole")
    killed = cli("build", str(small), "--out", str(tmp_path / "out"), DATAENGINE_FAULT=point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if not (tmp_path / "out" / "manifest.json").exists() and (tmp_path / "out" / "plan.parquet").exists():
        with pytest.raises(ResumeError, match="add --resume"):
            run(small, tmp_path / "out")
        with pytest.raises(DatasetError, match="not finished; run it again with --resume"):
            open_dataset(str(tmp_path / "out"))
    run(small, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("point", ["written:kill", "staged:kill:3", "linked:kill:3", "commit:kill"])
def test_a_killed_worker_changes_nothing(small, tmp_path, tree, point):
    tree.annotations.pop()  # with nothing for the driver to quarantine, it passes each point once: for the plan
    tree.save()
    run(small, tmp_path / "whole")
    marker = tmp_path / "killed"
    done = cli(
        *("build", str(small), "--out", str(tmp_path / "out"), "--engine", "ray", "--workers", "2"),
        DATAENGINE_FAULT=point,
        DATAENGINE_FAULT_ONCE=str(marker),
    )
    assert done.returncode == 0, done.stderr
    assert marker.exists()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_killed_ray_driver_is_resumed(small, tmp_path):
    small.write_text(small.read_text().replace("images: 5", "images: 1"))
    run(small, tmp_path / "whole")
    arguments = ("build", str(small), "--out", str(tmp_path / "out"), "--engine", "ray", "--workers", "2")
    assert cli(*arguments, DATAENGINE_FAULT="gathered:kill:4").returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "manifest.json").exists()
    run(small, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "point", ["plan", "staged", "staged:enospc:2", "staged:enospc:4", "linked:enospc:3", "commit", "manifest"]
)
def test_a_disk_that_fills_up_anywhere_is_resumed(small, tmp_path, point):
    run(small, tmp_path / "whole")
    fault = point if ":" in point else f"{point}:enospc"
    full = cli("build", str(small), "--out", str(tmp_path / "out"), DATAENGINE_FAULT=fault)
    assert full.returncode == 1
    assert "No space left on device" in full.stderr.strip().splitlines()[-1]
    assert not [p for p in (tmp_path / "out").rglob("*.tmp")]
    run(small, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_keeps_what_is_committed(small, tmp_path):
    run(small, tmp_path / "whole")
    full = cli("build", str(small), "--out", str(tmp_path / "out"), DATAENGINE_FAULT="written:enospc:3")
    assert full.returncode == 1
    shard = tmp_path / "out" / "shards" / "train-00002-of-00005.parquet"
    assert full.stderr.strip().splitlines()[-1] == f"error: [Errno 28] No space left on device: '{shard}'"
    assert json.loads((tmp_path / "out" / "status.json").read_text())["state"] == "failed"
    assert len(list((tmp_path / "out" / "commits").iterdir())) == 3  # the index and two shards
    assert not [p for p in (tmp_path / "out").rglob("*.tmp")]
    run(small, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_second_driver_is_refused(small, tmp_path):
    folder = Folder(str(tmp_path / "out"))
    folder.make()
    with driver_lock(folder):
        with pytest.raises(LockedError, match="another build is writing here"):
            run(small, tmp_path / "out")
        second = cli("build", str(small), "--out", str(tmp_path / "out"))
        assert second.returncode == 1
        assert "another build is writing here" in second.stderr
    run(small, tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self").exists(), reason="needs /proc, which nobody can write")
def test_an_output_that_cannot_be_written_is_named(small):
    with pytest.raises(StoreError, match="/proc/self/nothing: cannot create the folder"):
        run(small, Path("/proc/self/nothing"))


def test_a_lost_source_stops_and_keeps_what_is_committed(small, tmp_path, tree):
    calls = []

    def lose(tasks):
        for number, task in enumerate(tasks):
            if number == 2:
                (tree.root / "train").rename(tree.root / "elsewhere")
            calls.append(task)
            yield task

    with pytest.raises(SourceError, match="the image folder is gone"):
        run(small, tmp_path / "out", order=lose)
    (tree.root / "elsewhere").rename(tree.root / "train")
    run(small, tmp_path / "out", resume=True)
    run(small, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_changed_source_is_not_mixed_in(small, tmp_path, tree):
    run(small, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    tree.annotations.pop()
    tree.save()
    with pytest.raises(ResumeError, match=r"cannot be resumed.*sources.coco/train.inputs.annotations was"):
        run(small, tmp_path / "out", resume=True)


def test_a_changed_picture_is_noticed(small, tmp_path, tree):
    run(small, tmp_path / "out")
    for path in [tmp_path / "out" / "manifest.json", *(tmp_path / "out" / "commits").iterdir()]:
        path.unlink()
    (tree.root / "train" / "1.jpg").write_bytes((tree.root / "train" / "2.jpg").read_bytes())
    with pytest.raises(NondeterminismError, match=r"train-00000-of-00005\.parquet exists with sha256"):
        run(small, tmp_path / "out", resume=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda p: p.unlink(), "is missing, but task", id="shard is gone"),
        pytest.param(lambda p: p.write_bytes(p.read_bytes()[:-1] + b"x"), "is not the file", id="shard is changed"),
    ],
)
def test_damage_to_committed_files_is_found(small, tmp_path, damage, message):
    run(small, tmp_path / "out")
    damage(tmp_path / "out" / "shards" / "train-00001-of-00005.parquet")
    assert any(message in problem for problem in validate(str(tmp_path / "out")).problems)
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(DatasetError, match=message):
        run(small, tmp_path / "out", resume=True)


def test_validate_finds_what_is_wrong(small, tmp_path):
    run(small, tmp_path / "out")
    (tmp_path / "out" / "stray.txt").write_text("x")
    assert validate(str(tmp_path / "out")).problems == ["stray.txt belongs to nothing"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest["counts"]["objects"] += 1
    manifest["version"] = commits.version_of(manifest)
    (tmp_path / "out" / "manifest.json").write_bytes(commits.canonical_json(manifest))
    problems = validate(str(tmp_path / "out")).problems
    assert "the manifest counts 44 objects, the shards hold 43" in problems
    manifest["counts"]["objects"] += 1
    (tmp_path / "out" / "manifest.json").write_bytes(commits.canonical_json(manifest))
    with pytest.raises(DatasetError, match="was changed after it was written"):
        validate(str(tmp_path / "out"))


def test_too_many_bad_records_stop(small, tmp_path):
    small.write_text(small.read_text().replace("min_count: 100", "min_count: 1, max_fraction: 0.02"))
    with pytest.raises(BudgetError, match=r"more than the budget of 1 records or 2.0%: .*unknown_image"):
        run(small, tmp_path / "out")
    small.write_text(small.read_text().replace("0.02", "0.2"))
    run(small, tmp_path / "out", resume=True)


def test_foreign_folders_are_left_alone(small, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(ResumeError, match="not empty, and no build of ours"):
        run(small, tmp_path / "out", resume=True)
    mine = tmp_path / "mine"
    for name in ("index/precious.txt", "notes/draft.tmp"):
        (mine / name).parent.mkdir(parents=True)
        (mine / name).write_text("x")
    with pytest.raises(ResumeError, match="not empty, and no build of ours"):
        run(small, mine)
    assert sorted(p.name for p in mine.rglob("*.t*")) == ["draft.tmp", "precious.txt"]
    run(small, tmp_path / "done")
    with pytest.raises(ResumeError, match="a finished dataset stands here"):
        run(small, tmp_path / "done")
    assert run(small, tmp_path / "done", resume=True) == json.loads((tmp_path / "done" / "manifest.json").read_text())


def test_quarantine_is_replayed(small, tmp_path, tree):
    run(small, tmp_path / "out")
    before = contents(tmp_path / "out")
    rows = replay(str(tmp_path / "out"))
    assert sorted((r.record, r.before, r.now) for r in rows) == [
        ("annotation 110 (image 11)", "polygon_odd", "polygon_odd"),
        ("annotation 9000 (image 9000)", "unknown_image", "unknown_image"),
        ("image 7", "image_missing", "image_missing"),
    ]
    (tree.root / "train" / "7.jpg").write_bytes((tree.root / "train" / "8.jpg").read_bytes())
    tree.annotations[20] |= tree.annotations[22] | {"id": 110, "image_id": 11}
    tree.save()
    rows = replay(str(tmp_path / "out"), out=str(tmp_path / "patch"))
    assert sorted((r.record, r.now) for r in rows) == [
        ("annotation 110 (image 11)", None),
        ("annotation 9000 (image 9000)", "unknown_image"),
        ("image 7", None),
    ]
    patch = open_dataset(str(tmp_path / "patch"))
    assert patch.manifest["replays"] == open_dataset(str(tmp_path / "out")).manifest["version"]
    assert [s.image_key for s in patch.samples()] == ["coco/000000000007", "coco/000000000011"]
    assert validate(str(tmp_path / "patch")).problems == []
    assert contents(tmp_path / "out") == before


def test_limit_takes_the_first_pictures(small, tmp_path):
    manifest = run(small, tmp_path / "out", limit=3)
    assert manifest["counts"]["records"]["read"]["images"] == 3


def test_samples_are_found_and_picked(small, tmp_path):
    run(small, tmp_path / "out")
    dataset = open_dataset(str(tmp_path / "out"))
    every = list(dataset.samples())
    assert dataset.find(every[13].sample_id) == every[13]
    with pytest.raises(DatasetError, match="no sample"):
        dataset.find("coco/nothing")
    assert dataset.pick(8) == every[:8]
    some = dataset.pick(8, seed=1)
    assert some == dataset.pick(8, seed=1) != dataset.pick(8, seed=2)
    assert all(s in every for s in some)
    assert dataset.pick(99, seed=1) == every


def test_a_dataset_without_a_sample_is_an_error(small, tmp_path, tree):
    for path in (tree.root / "train").iterdir():
        path.unlink()
    with pytest.raises(EmptyError, match=r"nothing was built; 70 records were read: .*'image_missing': 23"):
        run(small, tmp_path / "out")


def test_sources_and_splits_of_like_names_are_kept_apart(small, tmp_path, coco_tree):
    trees = {"a": coco_tree(2, "b-train"), "a-b": coco_tree(3, "train")}
    sources = {
        name: {"builder": "coco", "task": "vgdseg", "root": str(tree.root), "options": {"image_namespace": name}}
        for name, tree in trees.items()
    }
    loaded = recipe.Recipe.model_validate({"name": "two", "prompts": {}, "sources": sources})
    build.run(loaded, str(tmp_path / "out"), Settings())
    found = Counter(s.source for s in open_dataset(str(tmp_path / "out")).samples())
    assert found == {"a": 2, "a-b": 3}


def test_objects_of_regions_that_cannot_be_shown_are_filtered(small, tmp_path, tree):
    tree.annotations[0]["segmentation"] = [[2, 2, 4, 2, 4, 4, 2, 4]]  # 4 px: the published click needs more than 5
    tree.save()
    text = small.read_text().replace("vgdseg", "intseg").replace("ROOT", str(tree.root))
    small.write_text(
        text.replace("profile: published", "kinds: [point]").replace("/coco1}", "/coco1, options: {max_regions: 1}}")
    )
    records = run(small, tmp_path / "out")["counts"]["records"]
    assert records["filtered"]["annotations"] == {"image_quarantined": 2, "no_prompt": 1}
    assert records["built"]["annotations"] == 42


def test_a_defect_in_one_picture_does_not_stop_the_others(small, tmp_path, monkeypatch):
    from pipelines import prompting

    original = prompting.attach

    def attach(samples, spec, seed):
        if samples[0].image_key.endswith("3"):
            raise IndexError("list index out of range")
        return original(samples, spec, seed)

    monkeypatch.setattr(prompting, "attach", attach)
    manifest = run(small, tmp_path / "out")
    assert manifest["counts"]["records"]["quarantined"]["images"] == {"image_missing": 1, "internal_error": 3}
    messages = {row["message"] for row in open_dataset(str(tmp_path / "out")).quarantined() if row["unit"] == "images"}
    assert "IndexError: list index out of range" in messages


def test_damaged_compiled_code_is_no_fault_of_the_pictures(small, tmp_path):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    run(small, tmp_path / "first")  # what was compiled before need not be compiled again
    half_written = shutil.ignore_patterns("*.tmp.*")  # by tests beside this one
    shutil.copytree(os.environ["NUMBA_CACHE_DIR"], tmp_path / "cache", ignore=half_written)
    assert cli("build", str(small), "--out", str(tmp_path / "out"), **cache).returncode == 0
    for file in (tmp_path / "cache").rglob("*.nbc"):
        file.write_bytes(file.read_bytes()[:100])
    failed = cli("build", str(small), "--out", str(tmp_path / "again"), **cache)
    assert failed.returncode == 1
    assert f"error: the compiled loops in {tmp_path / 'cache'}" in failed.stderr
    assert "delete that folder" in failed.stderr


def test_a_builder_that_miscounts_is_caught(small, tmp_path, monkeypatch):
    from builders import coco

    original = coco.read

    def miscount(*arguments):
        for outcome in original(*arguments):
            outcome.account.built["images"] += 1
            yield outcome

    monkeypatch.setattr(coco, "read", miscount)
    with pytest.raises(AccountError, match=r"coco/train images 0 to 5: 5 images read, but 10 built"):
        run(small, tmp_path / "out")


@pytest.mark.parametrize("point", ["index:term", "written:term:2", "commit:term:3"])
def test_an_interrupted_build_says_how_to_go_on(small, tmp_path, point):
    stopped = cli("build", str(small), "--out", str(tmp_path / "out"), DATAENGINE_FAULT=point)
    assert stopped.returncode == 130
    assert "interrupted; what is committed stays, --resume goes on" in stopped.stderr
    assert json.loads((tmp_path / "out" / "status.json").read_text())["state"] == "interrupted"
    run(small, tmp_path / "out", resume=True)
    run(small, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_sources_and_outputs_may_be_in_an_object_store(small, tmp_path, tree, s3_bucket):
    source = Folder(f"{s3_bucket}/coco")
    for path in tree.root.rglob("*"):
        if path.is_file():
            source.write_new(path.relative_to(tree.root).as_posix(), path.read_bytes())
    run(small, tmp_path / "local")
    small.write_text(small.read_text().replace(str(tree.root), source.uri))
    out = Folder(f"{s3_bucket}/out")
    build.run(recipe.load(str(small)), out.uri, Settings())
    expected = contents(tmp_path / "local")
    assert {n: out.read(n) for n in out.names(recursive=True) if n not in TIMED} == expected
    assert validate(out.uri).problems == []
    with driver_lock(out), pytest.raises(LockedError):
        build.run(recipe.load(str(small)), out.uri, Settings(resume=True))
    for name in ["manifest.json", *(f"commits/{n}" for n in (out / "commits").names()[:3])]:
        out.delete(name)
    build.run(recipe.load(str(small)), out.uri, Settings(resume=True))
    assert out.read("manifest.json") == expected["manifest.json"]


def test_published_instances_build_to_a_valid_dataset(tmp_path, fixtures):
    given = [f"coco={fixtures / 'coco'}"]
    manifest = build.run(recipe.with_sources(recipe.load("vgd"), given), str(tmp_path / "out"), Settings())
    assert validate(str(tmp_path / "out")).problems == []
    for split in ("train2017", "val2017"):
        document = json.loads((fixtures / "coco" / "annotations" / f"instances_{split}.json").read_text())
        counts = manifest["counts"]["by_source"]["coco"][split]
        annotated = {a["image_id"] for a in document["annotations"] if not a["iscrowd"]}
        assert counts["read"]["images"] == len(document["images"])
        assert counts["built"]["images"] == len(annotated)
        assert counts["built"]["annotations"] == len(document["annotations"])
        pairs = {(a["image_id"], a["category_id"]) for a in document["annotations"] if not a["iscrowd"]}
        assert counts["built"]["conditions"] == len(pairs)
        assert counts["quarantined"] == {}


def test_published_panoptic_builds_to_a_valid_dataset(tmp_path, fixtures):
    folder = fixtures / "panoptic"
    files = {
        "annotations": str(folder / "panoptic_examples.json"),
        "images": str(folder / "input_images"),
        "segments": str(folder / "panoptic_examples"),
    }
    loaded = recipe.load("genseg")
    spec = loaded.sources["coco"].model_copy(update={"files": files, "splits": ("val2017",)})
    loaded = loaded.model_copy(update={"sources": {"coco": spec}})
    manifest = build.run(loaded, str(tmp_path / "out"), Settings())
    assert validate(str(tmp_path / "out")).problems == []
    document = json.loads((folder / "panoptic_examples.json").read_text())
    counts = manifest["counts"]["by_source"]["coco"]["val2017"]
    assert counts["built"]["segments"] == sum(len(a["segments_info"]) for a in document["annotations"])
    samples = list(open_dataset(str(tmp_path / "out")).samples())
    assert [s.variant for s in samples] == ["panoptic", "semantic"] * 2
    for sample in samples:
        assert len(sample.conditions) == 133
        things = {sample.objects[i].category_id for c in sample.conditions for i in c.objects}
        assert things == {c.category_id for c in sample.conditions if c.objects}
