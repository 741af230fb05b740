"""Benchmarks: one lock however they are built; verify finds what was changed; nothing asked loses its place."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as oracle
from typer.testing import CliRunner

from dataengine.prompts import render
from dataengine.store.dataset import open_dataset, validate
from pipelines import build as building
from pipelines.build import ResumeError
from pipelines.cli import app
from pipelines.evaluate.benchmark import open_benchmark
from pipelines.recipe import ShardSpec
from pipelines.vgd import benchmark, lock, verify
from pipelines.vgd.benchmark import Settings
from pipelines.vgd.lock import LockError

ALL = {"cross_image": True, "negatives": 1, "shots": 2}
FULL = [[0, 0, 32, 0, 32, 24, 0, 24]]


@pytest.fixture
def call(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def tree(coco_tree):
    """Eight pictures, and in the second a line of 1 px and an object that fills the frame."""
    made = coco_tree(8, split="val2017")
    line = np.zeros((24, 32), np.uint8, order="F")
    line[20, 3:20] = 1
    rle = {"size": [24, 32], "counts": oracle.encode(line)["counts"].decode()}
    made.categories += [{"id": 4, "name": "line"}, {"id": 5, "name": "frame"}]
    made.annotations += [
        {"id": 901, "image_id": 2, "category_id": 4, "iscrowd": 0, "segmentation": rle},
        {"id": 902, "image_id": 2, "category_id": 5, "iscrowd": 0, "segmentation": FULL},
    ]
    made.save()
    return made


@pytest.fixture
def made(tree, tmp_path):
    """A benchmark with all variants: its folder, lock and tree."""
    out = str(tmp_path / "bench")
    return out, build(tree, out), tree


def build(tree, out: str, *, images: int = 500, run: building.Settings | None = None, **changes) -> lock.Lock:
    recipe = benchmark.recipe_of(Settings(root=str(tree.root), **(ALL | changes)))
    recipe = recipe.model_copy(update={"shard": ShardSpec(images=images)})
    return benchmark.build(recipe, out, run or building.Settings())


# --- what it asks ----------------------------------------------------------------------------------------------------


def test_what_the_profile_cannot_make_keeps_its_place(made):
    out, locked, _ = made
    samples = {s.image_key: s for s in open_dataset(out).samples() if s.variant == "same_image"}
    sample = samples["coco/000000000002"]
    things = {thing.annotation_id: thing for thing in sample.objects}
    status = {(n, p.kind): (p.status, p.profile) for n, t in things.items() for p in t.prompts}
    odd = {key: found for key, found in status.items() if found[0] != "ok"}
    assert set(odd.values()) == {("fallback", "strict")}
    assert set(odd) - {("901", "box")} == {  # a box of 1 px that is scaled by less than 1 is empty
        ("901", "scribble"),  # no jittered box comes near a 1-px line's
        ("902", "mask"),  # nothing exceeds the mean of a full frame
    }
    assert {c.category_id for c in sample.conditions} >= {4, 5}
    assert locked.counts["prompts"]["scribble/fallback"] == locked.counts["prompts"]["mask/fallback"] == 1
    assert not any(kind.endswith("/none") for kind in locked.counts["prompts"])
    for thing in things.values():  # every kind can be drawn for every object
        assert all(render(p, 24, 32).mask.any() for p in thing.prompts)
        assert len(thing.prompts) == 4


def test_exemplars_are_frozen_by_picture_and_category(made, tree, tmp_path):
    """Neither other categories, other pictures nor variants change which object shows a category."""

    def exemplars(out):
        return {
            (s.image_key, c.category_id): s.objects[c.exemplar].annotation_id
            for s in open_dataset(out).samples()
            if s.variant == "same_image"
            for c in s.conditions
        }

    first = exemplars(made[0])
    tree.annotations += [dict(a, id=5000 + a["id"]) for a in tree.annotations if a["image_id"] == 1]
    tree.save()
    build(tree, str(tmp_path / "more"), cross_image=False, negatives=0, shots=0)
    second = exemplars(str(tmp_path / "more"))
    assert first.keys() == second.keys()
    assert {k: v for k, v in first.items() if "0001" not in k[0]} == {
        k: v for k, v in second.items() if "0001" not in k[0]
    }
    for key, name in first.items():
        assert {a["category_id"] for a in tree.annotations if str(a["id"]) == name} == {key[1]}


def test_the_table_of_regions_is_what_the_annotations_say(made):
    out, locked, tree = made
    rows = pq.read_table(f"{out}/{benchmark.REGIONS}").to_pylist()
    by_id = {str(a["id"]): a for a in tree.annotations}
    bitmaps = {name: decoded(a["segmentation"]) for name, a in by_id.items()}
    dataset = open_dataset(out)
    samples = {s.sample_id: s for s in dataset.samples()}
    own = {o.annotation_id: o for s in samples.values() if s.variant == "same_image" for o in s.objects}
    assert len(rows) == 4 * sum(locked.counts["regions"].values())
    for row in rows:
        image = int(samples[row["sample_id"]].image_key.split("/")[1])
        shown = by_id[row["annotation_id"]]
        wanted = [a for a in tree.annotations if a["image_id"] == image and a["category_id"] == row["category_id"]]
        assert row["instances"] == len(wanted)
        assert shown["category_id"] == row["category_id"]
        assert row["shown_in"] == f"coco/{shown['image_id']:012d}"
        assert row["area"] == bitmaps[row["annotation_id"]].sum()
        assert row["size"] == ("small" if row["area"] < 1024 else "medium")
        (prompt,) = [p for p in own[row["annotation_id"]].prompts if p.kind == row["kind"]]
        drawn = full(render(prompt, 24, 32))
        others = [bitmaps[n] for n, a in by_id.items() if a["image_id"] == shown["image_id"] and a is not shown]
        inside = (drawn & bitmaps[row["annotation_id"]]).sum() / drawn.sum()
        other = max((drawn & bitmap).sum() / drawn.sum() for bitmap in others)
        assert (row["inside"], row["other"]) == (pytest.approx(inside, abs=1e-6), pytest.approx(other, abs=1e-6))
        assert row["ambiguous"] == (other > inside)
        assert row["status"] == prompt.status
        assert (row["variant"] == "k_shot") or row["shots"] == 1


def decoded(segmentation) -> np.ndarray:
    rle = segmentation if isinstance(segmentation, dict) else oracle.merge(oracle.frPyObjects(segmentation, 24, 32))
    return oracle.decode(rle).astype(bool)


def full(crop) -> np.ndarray:
    bitmap = np.zeros((24, 32), bool)
    h, w = crop.mask.shape
    bitmap[crop.y0 : crop.y0 + h, crop.x0 : crop.x0 + w] = crop.mask
    return bitmap


@pytest.mark.parametrize(
    ("area", "size"), [(1, "small"), (1023, "small"), (1024, "medium"), (9216, "medium"), (9217, "large")]
)
def test_sizes_are_those_of_coco(area, size):
    assert benchmark.size_of(area) == size


# --- the lock --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 3])
def test_the_lock_does_not_depend_on_how_shards_are_cut(made, tmp_path, images):
    out, locked, tree = made
    assert build(tree, str(tmp_path / "cut"), images=images) == locked
    assert lock.read(open_dataset(out).folder) == locked


def test_the_lock_does_not_depend_on_workers(made, tmp_path, ray_session):
    _, locked, tree = made
    run = building.Settings(workers=2, engine="ray")
    assert build(tree, str(tmp_path / "ray"), images=2, run=run) == locked
    tables = [pq.read_table(tmp_path / name / benchmark.REGIONS) for name in ("bench", "ray")]
    assert tables[0].equals(tables[1])


def test_the_lock_does_not_depend_on_where_files_lie(made, tmp_path):
    _, locked, tree = made
    shutil.move(tree.root, tmp_path / "elsewhere")
    tree.root = tmp_path / "elsewhere"
    assert build(tree, str(tmp_path / "again")) == locked


def test_what_decides_what_is_asked_decides_the_lock(made, tmp_path):
    _, locked, tree = made
    ids = [locked.id]
    for number, changes in enumerate(({"seed": 1}, {"profile": "strict"}, {"negatives": 2}, {"shots": 3})):
        ids.append(build(tree, str(tmp_path / str(number)), **changes).id)
    tree.categories[0]["name"] = "renamed"
    tree.save()
    ids.append(build(tree, str(tmp_path / "renamed")).id)
    assert len(set(ids)) == len(ids)


def test_what_the_lock_states(made):
    out, locked, tree = made
    assert locked.sources["coco/val2017"]["annotations"] == hashlib.sha256(tree.file.read_bytes()).hexdigest()
    assert (locked.profile, locked.seed, locked.limit, locked.variants) == ("published", 0, None, ALL)
    assert locked.counts["objects"] == {"targets": 18, "crowds": 0}
    assert sum(locked.counts["prompts"].values()) == 4 * 18
    assert locked.counts["samples"] == dict.fromkeys(("cross_image", "k_shot", "negatives", "same_image"), 8)
    assert locked.counts["regions"]["same_image"] == 18
    assert locked.counts["regions"]["cross_image"] == 16  # line and frame are in one picture only
    assert locked.counts["negatives"] == {"cross_image": 0, "k_shot": 0, "negatives": 8, "same_image": 0}
    text = (tmp := open_dataset(out).folder).read(lock.FILE).decode()
    assert str(tree.root) not in text
    assert tmp.uri not in text


def test_a_build_that_was_stopped_before_its_lock_is_resumed(made, tmp_path):
    _, locked, tree = made
    out = str(tmp_path / "stopped")
    recipe = benchmark.recipe_of(Settings(root=str(tree.root), **ALL))
    building.run(recipe, out, building.Settings())
    with pytest.raises(LockError, match=r"no benchmark.lock.json; .* --resume"):
        verify.verify(out)
    with pytest.raises(ResumeError):
        benchmark.build(recipe, out, building.Settings())
    assert benchmark.build(recipe, out, building.Settings(resume=True)) == locked
    assert verify.verify(out).problems == []
    assert benchmark.build(recipe, out, building.Settings(resume=True)) == locked  # once more changes nothing


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"seed": 0', '"seed": 1', "was changed: its content has the hash"),
        ('"format": 1', '"format": 9', "has format 9; this version reads format 1"),
        ('"variants": {', '"varaints": {', "is damaged"),
        ('"limit": null,', '"limit": ,', "is damaged: it is no lock"),
        ('"lock"', '"look"', "is damaged: it is no lock"),
    ],
)
def test_a_lock_that_was_changed_is_refused(made, before, after, message):
    folder = open_dataset(made[0]).folder
    text = folder.read(lock.FILE).decode()
    assert before in text
    (folder.path / lock.FILE).write_text(text.replace(before, after, 1))
    with pytest.raises(LockError, match=message):
        lock.read(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xfe", b'{"lock": "a", "format": 1}', b"[" * 100_000])
def test_files_that_are_no_lock_are_refused(made, content):
    folder = open_dataset(made[0]).folder
    (folder.path / lock.FILE).write_bytes(content)
    with pytest.raises(LockError, match="is damaged"):
        lock.read(folder)


# --- verify ----------------------------------------------------------------------------------------------------------


def test_a_benchmark_verifies(made):
    found = verify.verify(made[0], share=1.0)
    assert (found.problems, found.samples, found.pictures, found.rebuilt) == ([], 32, 8, 32)
    assert verify.verify(made[0], share=0.1).pictures == 1
    assert verify.verify(made[0], share=0).pictures == 0


def test_sources_that_moved_are_named(made, tmp_path, call):
    out, _, tree = made
    shutil.move(tree.root, tmp_path / "elsewhere")
    lost = call("vgd", "verify", out)
    assert lost.exit_code == 1
    assert str(tree.root) in lost.output
    assert "--source" in lost.output
    found = call("vgd", "verify", out, "--source", f"coco={tmp_path / 'elsewhere'}", "--share", "1")
    assert (found.exit_code, "32 of them, of 8 pictures, were built again and are the same" in found.output) == (
        0,
        True,
    )


def test_another_annotation_file_is_named(made, call):
    out, _, tree = made
    tree.annotations[0]["category_id"] = 3
    tree.save()
    found = call("vgd", "verify", out)
    assert found.exit_code == 1
    assert f"{tree.file} is not the file that the benchmark was built from" in found.output


def test_a_changed_prompt_is_found(made):
    out, _, _ = made
    rewrite(out, lambda row: row["objects"][0]["prompts"][0]["points"].__setitem__(0, 3.5))
    (name,) = [s.sample_id for s in list(open_dataset(out).samples())[:1]]
    with pytest.raises(LockError, match=f"was changed: {name}, not as the lock says"):
        list(open_benchmark(out, "vgdseg").samples())
    assert verify.verify(out, share=0).problems == [f"{name}: asks something else than the lock says"]


def test_a_missing_sample_is_found(made):
    out, _, _ = made
    names = [s.sample_id for s in open_dataset(out).samples()]
    rewrite(out, drop=True)
    with pytest.raises(LockError, match="was changed: 31 of 32 samples"):
        list(open_benchmark(out, "vgdseg").samples())
    problems = verify.verify(out, share=0).problems
    assert f"{names[0]}: is in the lock but not in the benchmark" in problems
    assert f"{benchmark.REGIONS}: is not what the samples give" in problems


def rewrite(out, change=None, drop=False) -> None:
    """Change the first sample of the first shard, or drop it."""
    entry = open_dataset(out).manifest["shards"][0]
    file = open_dataset(out).folder.path / entry["name"]
    table = pq.read_table(file)
    rows = table.to_pylist()
    if change is not None:
        change(rows[0])
    file.unlink()
    pq.write_table(table.from_pylist(rows[1:] if drop else rows, schema=table.schema), file)


def test_a_picture_that_is_gone_is_found(made):
    out, _, tree = made
    (tree.root / "val2017" / "3.jpg").unlink()
    problems = verify.verify(out, share=1.0).problems
    gone = [problem for problem in problems if "000000000003/" in problem]
    assert len(gone) == 4
    assert all("cannot be built again" in problem and "3.jpg" in problem for problem in gone)


def test_a_changed_table_of_regions_is_found(made):
    out, _, _ = made
    file = open_dataset(out).folder.path / benchmark.REGIONS
    table = pq.read_table(file)
    file.unlink()
    assert verify.verify(out, share=0).problems == [f"{benchmark.REGIONS}: is missing"]
    pq.write_table(table.slice(1), file)
    assert verify.verify(out, share=0).problems == [f"{benchmark.REGIONS}: is not what the samples give"]
    file.write_bytes(b"PAR1")
    assert "regions.parquet: is damaged" in verify.verify(out, share=0).problems[0]


# --- the command line ------------------------------------------------------------------------------------------------


def test_build_and_verify_from_the_command_line(tree, tmp_path, call):
    out = tmp_path / "out"
    built = call("vgd", "build", "--coco", tree.root, "--out", out, "--cross-image", "--negatives", 1, "--shots", 2)
    assert built.exit_code == 0, built.output
    assert "coco-vgd-published, 18 objects, 0 crowds" in built.output
    assert "same_image: 8 samples, 18 regions" in built.output
    assert "negatives: 8 samples, 26 regions, 8 of them of absent categories" in built.output
    assert "1 mask/fallback, 1 scribble/fallback" in built.output
    assert validate(str(out)).problems == []
    verified = call("vgd", "verify", out)
    assert verified.exit_code == 0
    assert "32 samples are as locked; 4 of them, of 1 pictures, were built again and are the same" in verified.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--coco", "NOWHERE"], 1, "error: --coco NOWHERE: there is no such folder"),
        (["--split", "test"], 1, "instances_test.json is missing; there are val2017"),
        (["--profile", "loose"], 2, "--profile is published or strict"),
        (["--images", "copy"], 2, "--images is reference or embed"),
        (["--negatives", "-1"], 2, "Input should be greater than or equal to 0"),
        (["--seed", str(1 << 63)], 1, "error: benchmark: seed: "),
        (["--name", "a b"], 1, "error: benchmark: name: "),
    ],
)
def test_mistakes_are_named(tree, tmp_path, call, arguments, code, message):
    arguments = [str(tmp_path / "nowhere") if a == "NOWHERE" else a for a in arguments]
    found = call("vgd", "build", "--coco", tree.root, "--out", tmp_path / "out", *arguments)
    assert (found.exit_code, found.exception.__class__) == (code, SystemExit), found.output
    assert message.replace("NOWHERE", str(tmp_path / "nowhere")) in found.output
    assert not (tmp_path / "out" / lock.FILE).exists()


def test_a_finished_benchmark_is_not_written_over(made, call):
    out, _, tree = made
    found = call("vgd", "build", "--coco", tree.root, "--out", out)
    assert (found.exit_code, "a finished dataset stands here" in found.output) == (1, True)


def test_a_dataset_without_a_lock_is_no_benchmark(tree, tmp_path, call):
    assert call("build", "vgd", "--source", f"coco={tree.root}", "--out", tmp_path / "out").exit_code == 0
    found = call("vgd", "verify", tmp_path / "out")
    assert (found.exit_code, "no benchmark.lock.json" in found.output) == (1, True)
    assert call("vgd", "verify", tmp_path / "nothing").exit_code == 1


# --- X-SAM's released benchmark --------------------------------------------------------------------------------------


def test_the_released_file_becomes_a_benchmark(fixtures, tmp_path, call):
    """On records that X-SAM's generator wrote: their prompts to the pixel, all of its objects, exemplars frozen."""
    golden = fixtures / "golden/formats/coco_vgd"
    records = json.loads(gzip.decompress((golden / "coco_vgdseg_train.json.gz").read_bytes()))
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    source = gzip.decompress((golden / "instances_source.json.gz").read_bytes())
    (root / "annotations" / "instances_val2017.json").write_bytes(source)
    (root / "val2017").mkdir()
    from PIL import Image

    for record in records:
        h, w = record["image_size"]
        Image.new("RGB", (w, h)).save(root / "val2017" / record["image_file"])
    file = tmp_path / "coco_vgdseg_val.json"
    file.write_text(json.dumps(records))
    for name in ("one", "two"):
        found = call("vgd", "import-xsam", file, "--coco", root, "--out", tmp_path / name)
        assert found.exit_code == 0, found.output
    first, second = (lock.read(open_dataset(str(tmp_path / n)).folder) for n in ("one", "two"))
    assert first == second
    assert first.name == "coco-vgd-xsam-2025"
    assert call("vgd", "verify", tmp_path / "one", "--share", 1).exit_code == 0
    stated = {str(a["id"]): a for r in records for a in r["annotations"]}
    seen = set()
    for sample in open_dataset(str(tmp_path / "one")).samples():
        for thing in sample.objects:
            seen.add(thing.annotation_id)
            for prompt in thing.prompts:
                rle = stated[thing.annotation_id]["visual_prompts"][f"{prompt.kind}_visual_prompt"]
                drawn = render(prompt, sample.height, sample.width)
                area = 0 if drawn is None else int(drawn.mask.sum())
                assert area == int(oracle.area(rle))
                assert (prompt.status == "none") == (area == 0)
        for condition in sample.conditions:
            assert sample.objects[condition.exemplar].category_id == condition.category_id
    assert seen == set(stated)
