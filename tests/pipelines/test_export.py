"""Exports as files: what comes back from COCO, the same bytes twice, nothing half written, tars and hub folders."""

from __future__ import annotations

import base64
import io
import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image as Pictures
from typer.testing import CliRunner

from builders.world_tree import write_tree
from dataengine import masks
from dataengine.errors import UserError
from dataengine.sample import Provenance, Sample
from dataengine.store.dataset import open_dataset
from pipelines import build, export, recipe
from pipelines.build import Settings
from pipelines.cli import app
from pipelines.export import webdataset

NOWHERE = Provenance(file="", record="", builder="", version=0, seed=0)
RING = np.pad(np.pad(np.zeros((2, 2), bool), 2, constant_values=True), ((4, 14), (3, 23)))  # (24, 32), with a hole


def built(out: Path, **sources: dict) -> Path:
    """A dataset of these sources, as a recipe's `sources`."""
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps({"name": "small", "sources": sources, "prompts": {"profile": "published"}}))
    build.run(recipe.load(str(path)), str(out), Settings(engine="local"))
    return out


def round_trip(folder: Path, to: str, source: dict, again: dict, inside: str = "") -> tuple[list[Sample], list[Sample]]:
    """Samples of a source, and those that a builder makes of their export.

    source, again: a recipe's source; `again` reads the export, its `root` is the export's folder.
    inside: the folder in it where the layout's files are.
    """
    name = source["builder"]
    first = built(folder / "first", **{name: source})
    export.export(str(first), to, str(folder / "exported"))
    second = built(folder / "second", **{name: {**again, "root": str(folder / "exported" / inside)}})
    return list(open_dataset(str(first)).samples()), list(open_dataset(str(second)).samples())


def facts(samples: list[Sample]) -> list[Sample]:
    """Samples without what names files."""
    return [replace(s, provenance=NOWHERE, image=replace(s.image, path=None)) for s in samples]


@pytest.fixture
def tree(coco_tree):
    """Six pictures; crowds, a mask with a hole, a picture with nothing, licences, ids that are no running numbers."""
    tree = coco_tree(6)
    runs = masks.counts_from_rle(masks.encode(RING), 24, 32).tolist()
    tree.annotations[0] |= {"iscrowd": 1, "segmentation": {"size": [24, 32], "counts": runs}}
    tree.annotations[2] |= {"id": 900100000139, "segmentation": {"size": [24, 32], "counts": runs}}
    del tree.annotations[-2:]
    tree.images[1]["license"] = 4
    document = json.loads(tree.save().read_text())
    document["licenses"] = [{"id": 4, "name": "shared", "url": "https://creativecommons.org/licenses/by-sa/3.0/"}]
    tree.file.write_text(json.dumps(document))
    return tree


def coco(tree, task: str, **options) -> dict:
    return {"builder": "coco", "task": task, "root": str(tree.root), "options": options}


@pytest.mark.parametrize(("task", "options"), [
    ("vgdseg", {}), ("intseg", {"max_regions": 1}), ("genseg", {"variants": ["instance"]}),
])  # fmt: skip
def test_coco_instances_come_back(tree, tmp_path, task, options):
    before, after = round_trip(tmp_path, "coco", coco(tree, task, **options), coco(tree, task, **options))
    if task == "intseg":  # one object a sample; COCO knows pictures
        assert len(before) == 9
    assert facts(before) == facts(after)
    document = json.loads((tmp_path / "exported" / "annotations" / "instances_train.json").read_text())
    assert [i["id"] for i in document["images"]] == ([1, 2, 3, 4, 5, 6] if task == "genseg" else [1, 2, 3, 4, 5])
    assert [i["file_name"] for i in document["images"][:2]] == ["000000000001.jpg", "000000000002.jpg"]
    for annotation in document["annotations"]:
        rle = annotation["segmentation"]["counts"].encode()
        assert annotation["area"] == masks.area(rle, 24, 32)
    assert sum(a["iscrowd"] for a in document["annotations"]) == (task != "intseg")


def meant(samples: list[Sample]) -> dict[tuple, list]:
    """What phrases mean, by picture, split and text; how samples are cut is the builder's."""
    found: dict[tuple, list] = {}
    for sample in samples:
        for condition in sample.conditions:
            things = [replace(sample.objects[i], prompts=()) for i in condition.objects]
            found.setdefault((sample.image_key, sample.split, condition.text), []).append(things)
    return found


@pytest.mark.parametrize("split", ["train", "val"])
def test_refs_come_back(tree, tmp_path, split):
    tree.images = tree.images[:3]
    tree.annotations = [a | {"iscrowd": 0} for a in tree.annotations if a["image_id"] <= 3]
    document = json.loads(tree.save().read_text())
    (tree.root / "refcoco").mkdir()
    (tree.root / "refcoco" / "instances.json").write_text(json.dumps(document))
    refs = [
        {
            "ref_id": n,
            "ann_id": a["id"],
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "split": split,
            "file_name": "",
            "sent_ids": [2 * n, 2 * n + 1],
            "sentences": [
                {"sent_id": 2 * n + k, "sent": text, "raw": text, "tokens": text.split()}
                for k, text in enumerate((f"thing {n}", f"number {n} – größer"))
            ],
        }
        for n, a in enumerate(tree.annotations)
    ]
    (tree.root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (tree.root / "train").rename(tree.root / "train2014")
    source = {"builder": "refcoco", "task": "refseg", "root": str(tree.root), "splits": [split]}
    before, after = round_trip(tmp_path, "xsam", source, source, "img_refseg/refcocos")
    assert len(meant(before)) == 2 * len(refs)
    assert meant(before) == meant(after)


def test_coco_panoptic_comes_back(tmp_path):
    write_tree(tmp_path / "shapes", 4)
    source = {"builder": "shapes", "task": "genseg", "root": str(tmp_path / "shapes")}
    before, after = round_trip(tmp_path, "coco", source, {"builder": "coco", "task": "genseg"})
    assert [s.variant for s in before] == ["panoptic", "semantic"] * 4
    assert facts(before) == facts(after)
    assert before[0].image_key == "shapes-train-0/000000000001"
    exported = tmp_path / "exported" / "annotations"
    classes = json.loads((exported / "semseg_train_classes.json").read_text())
    pixels = np.asarray(Pictures.open(exported / "panoptic_semseg_train" / "shapes-train-0_000000000001.png"))
    covered = np.zeros(pixels.shape, bool)
    for thing in before[1].objects:
        mask = masks.decode(thing.rle, *pixels.shape)
        (index,) = set(pixels[mask].tolist())
        assert classes[index]["id"] == thing.category_id
        covered |= mask
    assert (pixels[~covered] == 255).all()


@pytest.fixture
def mixed(tree, tmp_path) -> Path:
    return built(
        tmp_path / "mixed",
        vgd=coco(tree, "vgdseg"),
        int=coco(tree, "intseg"),
        inst=coco(tree, "genseg", variants=["instance"]),
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("target", export.TARGETS)
def test_the_same_dataset_gives_the_same_bytes_and_the_report_adds_up(mixed, tmp_path, target):
    report = export.export(str(mixed), target, str(tmp_path / "a"))
    export.export(str(mixed), target, str(tmp_path / "elsewhere" / "b"))
    found = contents(tmp_path / "a")
    assert found == contents(tmp_path / "elsewhere" / "b")
    assert not any(part.startswith(".") for name in found for part in name.split("/"))
    stated = json.loads(found["export.json"])
    assert stated == report.as_dict()
    assert stated["files"] == len(found) - 1
    assert stated["dataset"] == open_dataset(str(mixed)).manifest["version"]
    assert {unit: n["read"] for unit, n in stated["samples"].items()} == {
        "vgdseg": 5, "intseg": 5, "genseg instance": 6
    }  # fmt: skip
    for counts in stated["samples"].values():
        assert counts["read"] == counts["written"] + sum(counts["left_out"].values())
    if target == "psalm":
        assert stated["samples"]["vgdseg"] == {"read": 5, "written": 0, "left_out": {"not_interactive": 5}}


def test_sources_with_the_same_categories_share_a_file_and_others_do_not(tree, coco_tree, tmp_path):
    other = coco_tree(2)
    other.categories = [{"id": c, "name": f"other {c}"} for c in (1, 2, 3)]
    other.save()
    dataset = built(tmp_path / "d", a=coco(tree, "vgdseg"), b=coco(tree, "intseg"), c=coco(other, "vgdseg"))
    export.export(str(dataset), "coco", str(tmp_path / "out"))
    names = sorted(p.name for p in (tmp_path / "out" / "annotations").iterdir())
    assert names == ["instances_a_train.json", "instances_c_train.json"]
    document = json.loads((tmp_path / "out" / "annotations" / "instances_a_train.json").read_text())
    ids = [a["id"] for a in document["annotations"]]
    assert len(ids) == len(set(ids)) == 10


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_is_stopped_leaves_nothing(mixed, tmp_path, monkeypatch, error):
    def stop(*_):
        raise error

    monkeypatch.setattr("pipelines.export.coco.Coco.finish", stop)
    before = sorted(tmp_path.iterdir())
    with pytest.raises((KeyboardInterrupt, OSError)):
        export.export(str(mixed), "coco", str(tmp_path / "out"))
    assert sorted(tmp_path.iterdir()) == before


def test_refusals(mixed, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for arguments, message in [
        (("coco", str(tmp_path / "full")), "not an empty folder"),
        (("voc", str(tmp_path / "x")), "--to voc: there are xsam"),
        (("coco", "s3://bucket/x"), "local folder"),
        (("coco", str(tmp_path / "x"), "move"), "--pictures move"),
        (("coco", str(tmp_path / "x"), "link"), "no files of this machine"),
        (("hub", str(tmp_path / "x"), "link"), "choose copy or none"),
    ]:
        with pytest.raises(UserError, match=message):
            export.export(str(mixed), *arguments)
    assert not (tmp_path / "x").exists()
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_nothing_exportable_is_an_error_and_writes_nothing(tree, tmp_path):
    dataset = built(tmp_path / "d", a=coco(tree, "vgdseg"))
    with pytest.raises(UserError, match=r"no.*place in the psalm layout \(not_interactive\)"):
        export.export(str(dataset), "psalm", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_pictures_by_reference(tree, tmp_path):
    dataset = built(tmp_path / "d", a=coco(tree, "vgdseg", images="reference"))
    original = tree.root / "train" / "1.jpg"
    export.export(str(dataset), "coco", str(tmp_path / "copied"))
    assert (tmp_path / "copied" / "images" / "000000000001.jpg").read_bytes() == original.read_bytes()
    export.export(str(dataset), "coco", str(tmp_path / "linked"), "link")
    link = tmp_path / "linked" / "images" / "000000000001.jpg"
    assert link.is_symlink()
    assert link.resolve() == original
    export.export(str(dataset), "coco", str(tmp_path / "named"), "none")
    document = json.loads((tmp_path / "named" / "annotations" / "instances_train.json").read_text())
    assert document["images"][0]["file_name"] == str(original)
    assert not (tmp_path / "named" / "images").exists()
    (tree.root / "train" / "2.jpg").unlink()
    (tree.root / "train" / "3.jpg").write_bytes(b"\xff\xd8 no picture")
    report = export.export(str(dataset), "coco", str(tmp_path / "gone"))
    assert report.as_dict()["samples"] == {
        "vgdseg": {"read": 5, "written": 3, "left_out": {"image_unreadable": 1, "picture_missing": 1}}
    }


def test_what_a_segmentation_file_cannot_hold(tmp_path, monkeypatch):
    write_tree(tmp_path / "shapes", 2)
    dataset = built(tmp_path / "d", s={"builder": "shapes", "task": "genseg", "root": str(tmp_path / "shapes")})
    samples = list(open_dataset(str(dataset)).samples())
    twice = replace(samples[0], objects=(samples[0].objects[0], *samples[0].objects))
    monkeypatch.setattr(
        "dataengine.store.dataset.Dataset.samples", lambda self: iter([twice, *samples[1:], samples[2]])
    )
    monkeypatch.setattr("pipelines.export.coco.NO_CLASS", 17)  # there are 18 categories
    report = export.export(str(dataset), "coco", str(tmp_path / "out"))
    assert report.as_dict()["samples"] == {
        "genseg panoptic": {"read": 3, "written": 1, "left_out": {"picture_twice": 1, "segments_overlap": 1}},
        "genseg semantic": {"read": 2, "written": 0, "left_out": {"too_many_categories": 2}},
    }


def test_the_command_says_what_was_written(mixed, tmp_path):
    done = CliRunner().invoke(app, ["export", str(mixed), "--to", "psalm", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0
    assert "5 samples in the psalm layout" in done.output
    assert "  intseg: 5 samples = 5 written\n" in done.output
    assert "  vgdseg: 5 samples = 0 written + 5 left out (not_interactive)\n" in done.output
    again = CliRunner().invoke(app, ["export", str(mixed), "--to", "psalm", "--out", str(tmp_path / "out")])
    assert again.exit_code == 1
    assert "not an empty folder" in again.stderr


def test_tars_follow_the_conventions(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "SAMPLES", 6)
    export.export(str(mixed), "webdataset", str(tmp_path / "out"))
    samples = list(open_dataset(str(mixed)).samples())
    tars = sorted((tmp_path / "out").glob("*.tar"))
    assert [path.name for path in tars] == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    found: dict[str, dict[str, bytes]] = {}
    for path in tars:
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert [m.name for m in members] == sorted(m.name for m in members)
            for member in members:
                assert (member.uid, member.gid, member.uname, member.gname, member.mtime) == (0, 0, "", "", 0)
                key, _, suffix = member.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    assert len(found) == len(samples) == 16
    for sample, files in zip(samples, found.values(), strict=True):
        assert sorted(files) == ["jpg", "json"]
        assert files["jpg"] == sample.image.bytes
        value = json.loads(files["json"])
        assert value["sample_id"] == sample.sample_id
        assert value["turns"][0]["text"] == sample.turns[0].text
        assert [base64.b64decode(o["rle"]) for o in value["objects"]] == [o.rle for o in sample.objects]


def test_the_hub_folder_opens_with_pictures(mixed, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("pipelines.export.hub.FILE_SAMPLES", 6)
    export.export(str(mixed), "hub", str(tmp_path / "out"))
    names = sorted(p.name for p in (tmp_path / "out" / "data").iterdir())
    assert names == [f"train-{n:05d}-of-00003.parquet" for n in range(3)]
    opened = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    samples = list(open_dataset(str(mixed)).samples())
    assert opened["train"].num_rows == len(samples)
    for row, sample in zip(opened["train"], samples, strict=True):
        assert row["sample_id"] == sample.sample_id
        assert row["image"].size == (32, 24)
        assert np.array_equal(row["image"], Pictures.open(io.BytesIO(sample.image.bytes)))
        assert [o["rle"] for o in row["objects"]] == [o.rle for o in sample.objects]
    card = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
    ]
    assert head["license"] == ["cc-by-4.0", "cc-by-sa-3.0"]
    assert head["size_categories"] == ["n<1K"]
    assert head["pretty_name"] == "small"
    assert "| shared | https://creativecommons.org/licenses/by-sa/3.0/ | 3 |" in card
    assert "| train | 16 |" in card
    assert "| vgdseg | visual grounded segmentation: all objects of the kinds shown by regions | 5 |" in card
