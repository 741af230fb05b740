"""Whole mixtures from the published layouts: roles, what is forbidden, mixing tables, detection."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dataengine import builder
from dataengine.store.dataset import open_dataset, validate
from pipelines import build, detect, mix, recipe, roles
from pipelines.build import Settings
from pipelines.cli import app, summary
from pipelines.progress import Console
from pipelines.recipe import RecipeError
from pipelines.world_published import LAYOUTS, write_published

NUM_IMAGES = 25  # enough for every quirk of the world's layouts


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """The procedural world in every published layout."""
    root = tmp_path_factory.mktemp("published") / "data"
    write_published(root, NUM_IMAGES)
    return root


def run(loaded: recipe.Recipe, out: Path, **settings) -> dict:
    return build.run(loaded, str(out), Settings(**settings))


@pytest.fixture(scope="session")
def stage3(published, tmp_path_factory) -> Path:
    """The mixture of X-SAM's third stage, built from the tree."""
    out = tmp_path_factory.mktemp("stage3") / "out"
    run(recipe.load("xsam-s3").with_root(str(published)), out)
    return out


# --- mixtures --------------------------------------------------------------------------------------------------------


def test_stage_three_is_the_published_mixture_with_its_table(stage3):
    manifest = open_dataset(str(stage3)).manifest
    assert validate(str(stage3)).problems == []
    assert len(manifest["sources"]) == 11
    licenses = Counter(str(sample.license) for sample in open_dataset(str(stage3)).samples())
    assert manifest["counts"]["licenses"] == licenses
    assert len(licenses) > 1
    assert all(f"{name} ({number} samples)" in summary("x", manifest) for name, number in licenses.items())
    assert set(manifest["counts"]["tasks"]) == {"chat", "gcgseg", "genseg", "reaseg", "refseg", "vgdseg"}
    sizes = {row["name"]: row["num_samples"] for row in manifest["mixing"]}
    counted: dict[str, int] = {}
    for sample in open_dataset(str(stage3)).samples():
        counted[sample.source] = counted.get(sample.source, 0) + 1
        assert sample.task != "chat" or sample.image is not None  # X-SAM leaves text alone out
    assert sizes == counted
    total = sum(sizes.values())
    for row in manifest["mixing"]:  # X-SAM's rule, worked out again
        factor = max(1.0, (0.1 / (sizes[row["name"]] / total)) ** 0.5)
        assert row["factor"] == pytest.approx(factor)
        assert row["length"] == int(sizes[row["name"]] * factor)


def test_other_numbers_than_the_published_ones_are_said(published, tmp_path):
    rows = json.loads((published / "llava/LLaVA-Instruct-150K/llava_v1_5_mix665k.json").read_text())
    shown = sum("image" in row for row in rows)
    pictures = len(json.loads((published / "coco/annotations/instances_train2017.json").read_text())["images"])
    loaded = recipe.load("xsam-s3").with_root(str(published))
    chat, generic = loaded.sources["llava"], loaded.sources["coco_panoptic"]
    sources = {
        "llava": chat.model_copy(update={"expected": shown}),  # without rows of text alone, which its options filter
        "right": generic.model_copy(update={"expected": pictures}),  # forbidden pictures are published ones too
        "rounded": generic.model_copy(update={"expected": 0}),  # within 500 of it
        "more": generic.model_copy(update={"expected": pictures + 1}),
        "thousand": generic.model_copy(update={"expected": 1000}),
        "unsaid": generic.model_copy(update={"expected": None}),
    }
    loaded = loaded.model_copy(update={"sources": sources, "mixing": None})
    manifest = run(loaded, tmp_path / "out")
    assert manifest["expected"]["llava"] == {"expected": shown, "found": shown}
    assert manifest["expected"]["more"] == {"expected": pictures + 1, "found": pictures}
    warned = [line.strip() for line in summary("x", manifest).splitlines() if "are published" in line]
    assert warned == [
        f"warning: more has {pictures} training records; {pictures + 1} are published",
        f"warning: thousand has {pictures} training records; about 1,000 are published",
    ]
    assert run(loaded, tmp_path / "few", limit=3)["expected"] is None


@pytest.mark.parametrize("name", ["xsam-s1", "xsam-s2", "psalm", "gcg", "shapes-tiny"])
def test_every_mixture_builds_from_the_published_layouts(published, tmp_path, name):
    manifest = run(recipe.load(name).with_root(str(published)), tmp_path / "out")
    assert manifest["counts"]["samples"] > 0
    assert all(any(s["source"] == source for s in manifest["shards"]) for source in recipe.load(name).sources)
    assert validate(str(tmp_path / "out")).problems == []


@pytest.mark.parametrize("name", ["xsam-s1", "xsam-s3", "psalm", "gcg"])
def test_mixtures_hold_out_every_benchmark(published, name):
    found = roles.find(recipe.load(name).with_root(str(published)))
    held_out: dict[str, set[str]] = {}
    for part in found.parts:
        dataset = part.spec.options.get("dataset", part.spec.builder)
        held_out.setdefault(dataset, set()).add(part.part.split)
    assert held_out == {
        "refcoco": {"val", "testA", "testB"},
        "refcoco+": {"val", "testA", "testB"},
        "refcocog": {"val", "test"},
        "grefcoco": {"val", "testA", "testB"},
        "reasonseg": {"val", "test"},
        "grandf": {"val", "test"},
        "coco": {"val2017"},  # the VGD benchmark's
    } | ({"coco_interactive": {"val"}} if name == "psalm" else {})


def test_the_same_mixture_gives_the_same_bytes(stage3, published, tmp_path):
    run(recipe.load("xsam-s3").with_root(str(published)), tmp_path / "again")
    for name in ("manifest.json", "roles.parquet", "plan.parquet"):
        ours, theirs = (stage3 / name).read_bytes(), (tmp_path / "again" / name).read_bytes()
        assert ours == theirs


# --- what is forbidden -----------------------------------------------------------------------------------------------


def held_out_images(root: Path) -> dict[str, set[int]]:
    """Numbers of the pictures of held-out splits, read from the files themselves."""
    found: dict[str, set[int]] = {}
    for source, folder, by in (
        ("refcoco", "refcoco", "unc"),
        ("refcoco_plus", "refcoco+", "unc"),
        ("refcocog", "refcocog", "umd"),
    ):
        refs = pickle.loads((root / "refer" / folder / f"refs({by}).p").read_bytes(), encoding="latin1")
        for ref in refs:
            if ref["split"] != "train":
                found.setdefault(f"{source}/{ref['split']}", set()).add(ref["image_id"])
    for ref in json.loads((root / "grefcoco" / "grefs(unc).json").read_text()):
        if ref["split"] != "train":
            found.setdefault(f"grefcoco/{ref['split']}", set()).add(ref["image_id"])
    val = json.loads((root / "coco" / "annotations" / "instances_val2017.json").read_text())
    found["coco_vgd/val2017"] = {image["id"] for image in val["images"]}
    return found


def training_images(root: Path, with_objects: bool = False) -> set[int]:
    """Numbers of the pictures of train2017; only those with an object that is no crowd, if so wished."""
    document = json.loads((root / "coco" / "annotations" / "instances_train2017.json").read_text())
    if with_objects:
        return {annotation["image_id"] for annotation in document["annotations"] if not annotation["iscrowd"]}
    return {image["id"] for image in document["images"]}


def test_no_training_sample_shows_a_held_out_picture(stage3, published):
    held_out = held_out_images(published)
    numbers = set().union(*held_out.values())
    shown = {s.image_key for s in open_dataset(str(stage3)).samples()}
    assert not shown & {f"coco/{number:012d}" for number in numbers}
    manifest = open_dataset(str(stage3)).manifest
    for role, images in held_out.items():
        assert manifest["forbidden"]["roles"][role] == len(images)
    filtered = manifest["counts"]["by_source"]["coco_vgd"]["train2017"]["filtered"]["images"]
    shown_there = training_images(published, with_objects=True) & numbers
    assert sum(n for reason, n in filtered.items() if reason.startswith("forbidden: ")) == len(shown_there) > 0


def test_the_roles_of_every_picture_are_in_the_dataset(stage3, published):
    roles = {row["image_key"]: row["roles"] for row in pq.read_table(stage3 / "roles.parquet").to_pylist()}
    assert list(roles) == sorted(roles)
    for role, images in held_out_images(published).items():
        assert {f"coco/{number:012d}" for number in images} == {key for key, there in roles.items() if role in there}
    assert any("coco_panoptic/train2017" in there and "refcoco/val" in there for there in roles.values())


def test_what_is_forbidden_is_the_recipes_choice(published, tmp_path):
    loaded = recipe.load("xsam-s1").with_root(str(published))
    everything = run(loaded.model_copy(update={"forbid": ()}), tmp_path / "all")
    assert everything["forbidden"]["roles"] == {}
    held_out = {"refs": recipe.SourceSpec(builder="refcoco", task="refseg", root=str(published / "refer"))}
    some = loaded.model_copy(update={"held_out": held_out, "forbid": ("refs/testA",)})
    fewer = run(some, tmp_path / "some")
    held_out = held_out_images(published)["refcoco/testA"]
    number = len(held_out & training_images(published))
    assert fewer["forbidden"]["roles"] == {"refs/testA": len(held_out)}
    assert everything["counts"]["samples"] - fewer["counts"]["samples"] == number > 0
    assert fewer["counts"]["records"]["filtered"]["images"] == {"forbidden: refs/testA": number}


def test_held_out_sources_that_are_not_there_are_said(published, tmp_path):
    loaded = recipe.load("xsam-s1").with_root(str(published))
    spec = recipe.SourceSpec(builder="refcoco", task="refseg", root=str(tmp_path / "nowhere"))
    manifest = run(loaded.model_copy(update={"held_out": {"refs": spec}}), tmp_path / "out")
    assert manifest["forbidden"]["missing"] == ["refs/test", "refs/testA", "refs/testB", "refs/testC", "refs/val"]
    asked = loaded.model_copy(update={"held_out": {"refs": spec}, "forbid": ("refs/val",)})
    with pytest.raises(builder.SourceError, match=r"recipe xsam-s1, source refs: forbid refs/val: .*is missing"):
        run(asked.model_copy(), tmp_path / "other")


def test_splits_of_a_held_out_source_that_are_not_there_are_one_line(published, tmp_path):
    loaded = recipe.load("xsam-s1").with_root(str(published))
    refs = recipe.SourceSpec(builder="refcoco", task="refseg", root=str(published / "refer"))
    gone = refs.model_copy(update={"root": str(tmp_path / "nowhere")})
    said = io.StringIO()
    held_out = {"refs": refs, "gone": gone}
    build.run(loaded.model_copy(update={"held_out": held_out}), str(tmp_path / "out"), Settings(), Console(said))
    about = [line for line in said.getvalue().splitlines() if "held out" in line]
    assert about[0].startswith("nothing is held out of gone: ")
    assert about[1:] == ["held out of refs: val, testA, testB; it has no testC, test"]  # RefCLEF's and RefCOCOg's


def test_a_held_out_source_may_say_which_splits(published, tmp_path):
    loaded = recipe.load("xsam-s1").with_root(str(published))
    refs = recipe.SourceSpec(builder="refcoco", task="refseg", root=str(published / "refer"), splits=("testA",))
    manifest = run(loaded.model_copy(update={"held_out": {"refs": refs}}), tmp_path / "out")
    assert set(manifest["forbidden"]["roles"]) == {"coco_panoptic/val2017", "refs/testA"}
    wrong = {"refs": refs.model_copy(update={"splits": ("tset",)})}
    with pytest.raises(builder.SourceError, match=r"source refs: held_out refs/tset: .*; there are train, val, testA"):
        run(loaded.model_copy(update={"held_out": wrong}), tmp_path / "other")


def test_a_process_that_builds_at_one_place_twice_forbids_what_is_there_now(published, tmp_path):
    loaded = recipe.load("xsam-s1").with_root(str(tmp_path / "data"))
    for name in ("coco", "refer"):
        shutil.copytree(published / name, tmp_path / "data" / name)
    refs = recipe.SourceSpec(builder="refcoco", task="refseg", root=str(tmp_path / "data" / "refer"))
    loaded = loaded.model_copy(update={"held_out": {"refs": refs}, "forbid": ("refs/val",)})
    before = run(loaded, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    pickles = tmp_path / "data" / "refer" / "refcoco" / "refs(unc).p"
    refs_now = pickle.loads(pickles.read_bytes(), encoding="latin1")
    for ref in refs_now:  # every picture is in val
        ref["split"] = "val"
    pickles.write_bytes(pickle.dumps(refs_now, protocol=2))
    now = run(loaded, tmp_path / "out")
    shown = {s.image_key for s in open_dataset(str(tmp_path / "out")).samples()}
    assert not shown & {f"coco/{ref['image_id']:012d}" for ref in refs_now}
    assert now["counts"]["samples"] < before["counts"]["samples"]


def test_evaluation_splits_keep_their_pictures(published, tmp_path):
    text = (
        f"name: a\nsources:\n  refs: {{builder: refcoco, task: refseg, root: {published / 'refer'}, splits: [val]}}\n"
    )
    (tmp_path / "a.yaml").write_text(text)
    manifest = run(recipe.load(str(tmp_path / "a.yaml")), tmp_path / "out")
    assert manifest["counts"]["records"]["filtered"] == {}
    assert manifest["counts"]["samples"] == manifest["counts"]["records"]["read"]["sentences"]


@pytest.fixture
def strangers(published, tmp_path) -> tuple[recipe.Recipe, Path]:
    """LLaVA rows whose pictures are: one of ReasonSeg val's under two other names, it with a byte more, and another's.

    Gives the recipe, which holds ReasonSeg out, and the picture of ReasonSeg val.
    """
    reasonseg = tmp_path / "reasonseg"
    shutil.copytree(published / "reasonseg", reasonseg)
    picture = min((reasonseg / "val").glob("*.jpg"))
    other = min((reasonseg / "train").glob("*.jpg"))
    data = picture.read_bytes()
    assert other.read_bytes() != data
    files = {
        "ocr_vqa/images/1.jpg": data,
        "coco/train2017/000000000001.jpg": data,
        "textvqa/train_images/2.jpg": data + b"\0",
        "gqa/images/3.jpg": other.read_bytes(),
    }
    talk = [{"from": "human", "value": "<image>\nwhat is it"}, {"from": "gpt", "value": "a picture"}]
    for name, content in files.items():
        path = tmp_path / "llava" / "llava_images" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    rows = [{"id": name, "image": name, "conversations": talk} for name in files]
    rows.append({"id": "text", "conversations": talk})
    (tmp_path / "llava" / "llava_v1_5_mix665k.json").write_text(json.dumps(rows))
    text = f"""
name: a
sources:
  llava: {{builder: llava, task: chat, root: {tmp_path / "llava"}}}
held_out:
  reasonseg: {{builder: reasonseg, task: reaseg, root: {reasonseg}}}
"""
    (tmp_path / "a.yaml").write_text(text)
    return recipe.load(str(tmp_path / "a.yaml")), picture


@pytest.mark.parametrize("images", ["embed", "reference"])
def test_held_out_pictures_under_other_names_are_known_by_their_bytes(strangers, tmp_path, images):
    loaded, picture = strangers
    llava = loaded.sources["llava"].model_copy(update={"options": {"images": images}})
    manifest = run(loaded.model_copy(update={"sources": {"llava": llava}}), tmp_path / "out")
    shown = {s.image_key for s in open_dataset(str(tmp_path / "out")).samples()}
    assert shown == {"textvqa/2", "vg/3", ""}
    assert manifest["counts"]["records"]["filtered"]["rows"] == {"forbidden: reasonseg/val": 2}
    entries = {row["image_key"]: row for row in pq.read_table(tmp_path / "out" / "roles.parquet").to_pylist()}
    contents = entries[f"reasonseg/{picture.stem}"]["contents"]
    data = picture.read_bytes()
    assert contents == [{"sha256": hashlib.sha256(data).digest(), "size": len(data)}]
    assert entries["coco/000000000001"] == {
        "image_key": "coco/000000000001", "roles": ["llava/train"], "contents": []
    }  # fmt: skip


def test_the_bytes_of_held_out_pictures_are_part_of_the_dataset(strangers, tmp_path):
    """An unfinished build does not go on with other ones; a new one knows the new ones."""
    loaded, picture = strangers
    before = run(loaded, tmp_path / "out")
    again = run(loaded, tmp_path / "again")
    assert before == again
    held_out = [p for split in ("val", "test") for p in (picture.parent.parent / split).glob("*.jpg")]
    assert 0 < before["forbidden"]["by_content"] <= len(held_out)
    picture.write_bytes(picture.read_bytes() + b"\0")
    with pytest.raises(build.ResumeError, match=r"forbidden\.pictures was"):
        run(loaded, tmp_path / "out", resume=True)
    now = run(loaded, tmp_path / "now")
    assert {s.image_key for s in open_dataset(str(tmp_path / "now")).samples()} == {
        "ocr_vqa/1", "coco/000000000001", "vg/3", ""
    }  # fmt: skip
    assert now["version"] != before["version"]


def test_shared_numbers_need_no_reading(published, tmp_path):
    """RefCOCO's pictures have COCO's numbers; none of them is read to hold them out."""
    text = f"""
name: a
sources:
  coco: {{builder: coco, task: genseg, root: {published / "coco"}, splits: [train2017]}}
held_out:
  refs: {{builder: refcoco, task: refseg, root: {published / "refer"}}}
"""
    (tmp_path / "a.yaml").write_text(text)
    said = io.StringIO()
    manifest = build.run(recipe.load(str(tmp_path / "a.yaml")), str(tmp_path / "out"), Settings(), Console(said))
    assert manifest["forbidden"]["by_content"] == 0
    assert "reading" not in said.getvalue()


def test_pictures_of_ones_own_are_compared_with_held_out_ones_that_have_numbers(coco_tree, tmp_path):
    """What is trained on may be any picture of COCO's, if it has no number; each of these is read once."""
    train, val = coco_tree(8, split="train"), coco_tree(4, split="val")  # 1 to 4 are the same files
    options = {"variants": ["instance"]}
    spec = recipe.SourceSpec(builder="coco", task="genseg", root=str(val.root), splits=("val",), options=options)
    mine = {"root": str(train.root), "splits": ("train",), "options": options | {"image_namespace": "mine"}}
    own = spec.model_copy(update=mine)
    loaded = recipe.Recipe(name="own", sources={"own": own}, held_out={"eval": spec, "more": spec})
    said = io.StringIO()
    manifest = build.run(loaded, str(tmp_path / "out"), Settings(), Console(said))
    assert manifest["forbidden"]["by_content"] == 4
    assert {s.image_key for s in open_dataset(str(tmp_path / "out")).samples()} == {
        f"mine/{n:012d}" for n in range(5, 9)
    }
    assert manifest["counts"]["records"]["filtered"]["images"] == {"forbidden: eval/val": 4}
    assert said.getvalue().count("reading 4 pictures") == said.getvalue().count("reading ") == 1


def test_absent_splits_of_a_source_of_the_recipe_are_said(published, tmp_path):
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    for name in ("annotations/instances_train2017.json", "train2017"):
        (tmp_path / "coco" / name).symlink_to(published / "coco" / name)
    spec = f"{{builder: coco, task: genseg, root: {tmp_path / 'coco'}, options: {{variants: [instance]}}}}"
    text = f"name: a\nsources:\n  coco: {spec}\n"
    (tmp_path / "a.yaml").write_text(text)
    said = io.StringIO()
    manifest = build.run(recipe.load(str(tmp_path / "a.yaml")), str(tmp_path / "out"), Settings(), Console(said))
    assert manifest["forbidden"]["missing"] == ["coco/val2017"]
    assert "nothing is held out of coco: " in said.getvalue()


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: a\nsources:\n  s: {builder: coco, task: genseg}\nforbid: [x/val]\n",
            "line 4: forbid: x/val is of no source of this recipe",
        ),
        (
            "name: a\nsources:\n  s:\n    builder: coco\n    task: genseg\n    tusk: a\n",
            "line 6: sources.s.tusk: there is no such key; there are builder, task, root,",
        ),
        (
            "name: a\nsources:\n  s:\n    builder: coco\n    task: genseg\n    splits: 5\n",
            "line 6: sources.s.splits: a list is needed, such as [5]",
        ),
        (
            "name: a\nsources:\n  s: {builder: coco, task: genseg}\nmixing: {rule: even}\n",
            "line 4: mixing: there is no rule 'even'; there are balanced, temperature, weights",
        ),
        (
            "name: a\nsources:\n  s: {builder: coco, task: genseg}\nmixing: {rule: weights, weights: {t: 1}}\n",
            "line 4: mixing.weights: weights must name each source once; s is in only one",
        ),
        (
            "name: a\nsources:\n  s: {builder: coco, task: genseg}\nmixing: {rule: weights, weights: {s: 0}}\n",
            "line 4: mixing.weights: all weights are 0",
        ),
        (
            "name: a\nsources:\n  s: {builder: coco, task: genseg}\nmixing:\n  rule: balanced\n  treshold: 1\n",
            "line 6: mixing.treshold: there is no such key; there are rule, threshold, mult",
        ),
        (
            "name: a\nsources:\n  s: {builder: coco, task: genseg}\n  t: {builder: coco, task: vgdseg}\n",
            "line 4: sources.t: source t needs visual prompts",
        ),
        (
            "name: a\nsources:\n  s: {builder: coco, task: genseg}\n  s: {builder: coco, task: chat}\n",
            "line 4: sources.s: is given twice",
        ),
        ("name: a\nsources:\n  s t: {builder: coco, task: genseg}\n", "line 3: sources.s t: 's t' is no name"),
        (
            "name: a\nsources:\n  s: {builder: coco, task: genseg}\nforbid: [val]\n",
            "line 4: forbid.0: 'val' is no role",
        ),
        ("name: a\nsources:\n  s: {builder: coco, task: genseg}\nseed: yes\n", "line 4: seed: "),
        ("name: a\nsources: &s\n  s: *s\n", "mine.yaml: something in it holds itself"),
        (
            "name: a\nsources:\n  s: {builder: coco, task: genseg}\nheld_out:\n  s: {builder: coco, task: genseg}\n",
            "line 5: held_out.s: source s is named in sources and in held_out",
        ),
    ],
)
def test_mistakes_in_recipes_name_the_line(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        recipe.load(str(tmp_path / "mine.yaml"))
    assert str(tmp_path / "mine.yaml") in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{builder: coco, task: genseg, root: /nowhere}", r"line 3, source s: /nowhere: annotations/panoptic_\*"),
        (
            "{builder: refcoco, task: refseg, options: {datasat: x}}",
            "line 3, source s: refcoco has no option 'datasat'",
        ),
        ("{builder: rocooc, task: refseg}", "line 3, source s: there is no builder 'rocooc'"),
        (
            "{builder: coco, task: genseg, root: /nowhere}",
            r"there is no /nowhere: say where it is by --root DIR or --source s=PATH",
        ),
    ],
)
def test_missing_files_and_wrong_options_name_the_line(tmp_path, source, message):
    (tmp_path / "mine.yaml").write_text(f"name: a\nsources:\n  s: {source}\n")
    with pytest.raises(ValueError, match=message):
        run(recipe.load(str(tmp_path / "mine.yaml")), tmp_path / "out")


def test_relative_paths_are_below_the_root():
    loaded = recipe.load("xsam-s3").with_root("/data")
    assert {spec.root for spec in (loaded.sources | loaded.held_out).values()} == {
        f"/data/{name}" for name in ("coco", "grandf", "grefcoco", "llava", "reasonseg", "refer")
    }
    assert recipe.load("xsam-s1").with_root("s3://bucket/data").sources["coco_panoptic"].root == "s3://bucket/data/coco"
    moved = recipe.with_sources(loaded, ["reasonseg=/other", "grefcoco=/third"])
    assert (moved.sources["reasonseg"].root, moved.held_out["grefcoco"].root) == ("/other", "/third")


# --- mix -------------------------------------------------------------------------------------------------------------


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_mix_prints_published_sizes_sources_and_datasets(stage3, published, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    known = call("mix", "xsam-s3")
    assert known.exit_code == 0
    # 239 of 1,170,975 - 40,688 records (LLaVA's are without text alone): sqrt(0.1 / (239 / 1130287)) = 21.747
    assert any(line.split()[:2] == ["reasonseg", "239"] and "21.747" in line for line in known.stdout.splitlines())
    assert "records of the published sources" in known.stdout
    there = call("mix", "xsam-s3", "--root", published)
    assert "pictures or records of the sources" in there.stdout
    built = call("mix", stage3)
    assert "training samples of the dataset" in built.stdout
    rows = {line.split()[0]: line.split()[1] for line in built.stdout.splitlines()[1:-2]}
    assert rows == {row["name"]: str(row["num_samples"]) for row in open_dataset(str(stage3)).manifest["mixing"]}
    nowhere = call("mix", "xsam-s3", "--root", tmp_path / "nowhere")  # not the published sizes
    assert nowhere.exit_code == 1
    assert "nowhere/coco" in nowhere.stderr
    assert "whose sources are counted" in call("mix", stage3, "--root", published).stderr
    assert call("mix", "vgd").stderr.startswith("error: recipe vgd has no mixing rule")


def test_mixes_without_known_sizes_say_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "name: a\nsources:\n  s: {builder: coco, task: genseg}\nmixing: {rule: temperature, temperature: 2}\n"
    Path("a.yaml").write_text(text)
    with pytest.raises(mix.MixError, match="source s is not there; use --root DIR or --source NAME=PATH"):
        mix.of_recipe(recipe.load("a.yaml"))


# --- export ----------------------------------------------------------------------------------------------------------


def test_a_mixture_in_xsams_layout_is_found_again(stage3, tmp_path):
    assert call("export", stage3, "--to", "xsam", "--out", tmp_path / "x", "--pictures", "none").exit_code == 0
    folder = tmp_path / "x" / "img_refseg" / "refcocos"  # names of X-SAM's recipes, not of ours (`refcoco_plus`)
    assert {path.name for path in folder.iterdir()} == {"refcoco", "refcocop", "refcocog"}
    assert (folder / "refcocog" / "refs(umd).p").is_file()


# --- detect ----------------------------------------------------------------------------------------------------------


def test_every_source_of_the_tree_is_found_once(published):
    found = detect.detect(str(published))
    assert [s for s in found if s.missing is not None] == []
    there = {(s.builder, str(s.root.relative_to(published)), *s.options.values()) for s in found}
    assert there >= {
        ("coco", "coco"),
        ("refcoco", "refer", "refcoco"),
        ("refcoco", "refer", "refcoco+"),
        ("refcoco", "refer", "refcocog"),
        ("refcoco", "refer", "refclef"),
        ("ade20k", "ade20k/ADEChallengeData2016", "2016"),
        ("ade20k", "ade20k/ADE20K_2021_17_01", "2021"),
        ("grefcoco", "grefcoco"),
        ("reasonseg", "reasonseg"),
        ("sa1b", "sa1b"),
        ("lvis", "lvis"),
        ("coco_interactive", "coco_interactive"),
        ("coco_vgd", "."),  # the folder that its own and COCO's lie in
    }
    assert {s.builder for s in found} == set(builder.names()) - {"shapes"}
    assert len({(s.builder, str(s.options)) for s in found}) == len(found)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("refer/refcocog/refs(umd).p", "refcoco"),
        ("coco/annotations/instances_val2017.json", "coco"),
        ("lvis/lvis_v1_train.json", "lvis"),
        ("grefcoco/grefs(unc).json", "grefcoco"),
        ("grandf/annotations/train/GranDf_HA_GCG_train.json", "grandf"),
        ("llava/LLaVA-Instruct-150K/llava_v1_5_mix665k.json", "llava"),
        ("sa1b/sa_000000/sa_1.json", "sa1b"),
    ],
)
def test_a_file_says_what_source_it_is_of(published, file, name):
    assert name in {source.builder for source in detect.detect(str(published / file))}


def test_reasonseg_is_known_without_explanations(published, tmp_path):
    shutil.copytree(published / "reasonseg", tmp_path / "img_reaseg" / "lisa")
    shutil.rmtree(tmp_path / "img_reaseg" / "lisa" / "explanatory")
    (source,) = detect.detect(str(tmp_path))
    assert (source.builder, source.root) == ("reasonseg", tmp_path / "img_reaseg" / "lisa")
    assert source.splits == ("train", "val", "test")
    one = next((source.root / "val").glob("*.json"))
    assert [s.builder for s in detect.detect(str(one))] == ["reasonseg"]


def test_other_folders_called_train_are_no_reasonseg(published, tmp_path):
    for name, place in (("sa1b/sa_000000", "train"), ("grandf/annotations/train", "val")):
        shutil.copytree(published / name, tmp_path / place)
    assert "reasonseg" not in {source.builder for source in detect.detect(str(tmp_path))}


@pytest.mark.parametrize(
    ("called", "dataset"),
    [
        pytest.param("refcoco+", "refcoco+", id="by the folder's name"),
        pytest.param("refcocop", "refcoco+", id="by the name X-SAM links it by"),
        pytest.param("mine", "refcoco", id="the first of those that it may be"),
    ],
)
def test_a_folder_of_refs_is_one_dataset(published, tmp_path, called, dataset):
    folder = tmp_path / "refer" / called
    shutil.copytree(published / "refer" / "refcoco+", folder)
    shutil.copytree(published / "coco2014", tmp_path / "coco2014")
    for place in (folder, tmp_path):
        assert [s.options for s in detect.detect(str(place)) if s.missing is None] == [{"dataset": dataset}]


def test_what_is_missing_is_said(published, tmp_path):
    folder = tmp_path / "refer" / "refcoco"
    folder.mkdir(parents=True)
    os.link(published / "refer" / "refcoco" / "refs(unc).p", folder / "refs(unc).p")
    (source,) = detect.detect(str(tmp_path))
    assert "instances file is missing" in source.missing
    result = call("detect", tmp_path)
    assert result.exit_code == 1
    assert "incomplete: " in result.stdout
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no source that is known" in call("detect", empty).stdout
    assert call("detect", tmp_path / "none").stderr.startswith("error: ")


def test_the_recipe_of_what_was_found_builds(published, tmp_path):
    path = tmp_path / "found.yaml"
    result = call("detect", published / "refer", "--recipe", path)
    assert result.exit_code == 0
    assert call("detect", published / "refer", "--recipe", path).exit_code == 1  # it is there already
    manifest = run(recipe.load(str(path)), tmp_path / "out", limit=3)
    assert {key.split("/")[0] for key in manifest["sources"]} >= {"refcoco_refcoco", "refcoco_refcocog"}


def test_everything_that_is_found_builds(published, tmp_path):
    """Each builder on the layout that the world writes for it, through the whole engine."""
    found = detect.detect(str(published))
    (tmp_path / "all.yaml").write_text(detect.recipe_of(found, "all"))
    loaded = recipe.load(str(tmp_path / "all.yaml")).model_copy(update={"forbid": ()})
    manifest = run(loaded, tmp_path / "out", limit=3)
    assert validate(str(tmp_path / "out")).problems == []
    built = {
        source for source, splits in manifest["counts"]["by_source"].items() for a in splits.values() if a["built"]
    }
    assert built == set(loaded.sources)
    assert {spec.builder for spec in loaded.sources.values()} == set(builder.names()) - {"shapes"}


def built_from(published, tmp_path, **source) -> tuple[list, dict]:
    """The samples of one source, without what names files, and the account."""
    where = {key: str(published / source[key]) for key in ("root",) if key in source}
    files = {role: str(published / path) for role, path in source.get("files", {}).items()}
    out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
    loaded = recipe.Recipe(name="one", sources={"s": {**source, **where, "files": files}}, forbid=())
    manifest = run(loaded, out)
    samples = sorted(open_dataset(str(out)).samples(), key=lambda s: s.sample_id)
    return [replace(s, provenance=None) for s in samples], manifest["counts"]["records"]


def test_grefcocos_pickle_builds_the_same_as_its_json(published, tmp_path):
    source = {"builder": "grefcoco", "task": "grefseg", "root": "grefcoco"}
    plain = built_from(published, tmp_path, **source)
    assert built_from(published, tmp_path, **source, files={"refs": "grefcoco/grefs(unc).p"}) == plain
    alone = tmp_path / "grefcoco"
    shutil.copytree(published / "grefcoco", alone)
    (alone / "grefs(unc).json").unlink()
    shutil.copytree(published / "coco2014", tmp_path / "coco2014")
    assert built_from(tmp_path, tmp_path, **source) == plain
    assert [s.builder for s in detect.detect(str(alone / "grefs(unc).p"))] == ["grefcoco"]


def test_llavas_lines_build_the_same_and_leave_rows_of_several_pictures_out(published, tmp_path):
    source = {"builder": "llava", "task": "chat", "root": "llava", "options": {"edition": "mix665k"}}
    plain, account = built_from(published, tmp_path, **source)
    assert any(s.image is None for s in plain)  # text alone
    path = "llava/LLaVA-Instruct-150K/llava_v1_5_mix665k.jsonl"
    lines, theirs = built_from(published, tmp_path, **source, files={"annotations": path})
    assert lines == plain
    more = theirs["read"]["rows"] - account["read"]["rows"]
    several = [isinstance(json.loads(line).get("image"), list) for line in (published / path).read_text().splitlines()]
    assert theirs["filtered"]["rows"]["several_images"] == more == sum(several) > 0
    assert "several_images" not in account["filtered"].get("rows", {})


def test_full_ade20k_builds_the_same_masks_as_the_challenge(published, tmp_path):
    source = {"builder": "ade20k", "task": "genseg", "root": "ade20k"}

    def found(edition: str, variant: str) -> tuple[dict, dict]:
        options = {"edition": edition, "variants": [variant]}
        samples, account = built_from(published, tmp_path, **source, options=options)
        assert account["quarantined"] == {}
        return {s.image_key: sorted(thing.rle for thing in s.objects) for s in samples}, account

    semantic, account = found("2021", "semantic")
    assert semantic == found("2016", "semantic")[0]
    assert account["filtered"]["parts"] == {"part": account["read"]["parts"]}
    instances = found("2016", "instance")[0]
    full = found("2021", "instance")[0]  # where all but SceneParse150's stuff are things
    assert all(set(things) <= set(full[key]) for key, things in instances.items())


def test_pictures_of_refclef_are_not_taken_for_cocos(published):
    for dataset, folder in (("refclef", "refer/images/saiapr_tc-12"), ("refcoco", "coco2014")):
        made = builder.load("refcoco")
        parts = made.locate(str(published / "refer"), {}, (), made.parse_options("refseg", {"dataset": dataset}))
        assert {part.files["images"] for part in parts} == {str(published / folder)}


def test_every_layout_of_the_world_has_a_builder():
    assert {"refcoco" if name == "refer" else name for name in LAYOUTS} <= set(builder.names())
