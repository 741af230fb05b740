"""Leaks: small datasets whose overlaps are known, as the report, the command and its JSON tell them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from typer.testing import CliRunner

from dataengine.records import Account
from dataengine.sample import Image, Provenance, Reference, Sample
from dataengine.store import commits
from dataengine.store.commits import Commit, DatasetError
from dataengine.store.files import Folder
from dataengine.store.shards import ShardWriter
from pipelines import leaks
from pipelines.cli import app


def png(seed: int) -> Pillow.Image:
    """Soft blobs: an enlarged grid of 8 x 6 random colours."""
    grid = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Pillow.fromarray(grid).resize((160, 120), Pillow.Resampling.BICUBIC)


def stored(image: Pillow.Image, kind: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


ONE, TWO, THREE, FOUR = (stored(png(seed)) for seed in range(4))
ONE_AGAIN = stored(png(0), "JPEG", quality=60)
GREY = stored(Pillow.new("L", (40, 30), 128))


def sample(
    place: str, key: str, picture: bytes | str | None, task: str = "vgdseg", n: int = 0, other: tuple = ()
) -> Sample:
    """place: `source/split`. picture: bytes, or a path. other: key and bytes of a reference."""
    source, split = place.split("/")
    embedded = isinstance(picture, bytes)
    image = Image(bytes=picture if embedded else None, path=None if embedded else picture)
    references = ()
    if other:
        references = (
            Reference(image=Image(bytes=other[1], path=None), image_key=other[0], annotation_id="1", category_id=1,
                      height=120, width=160, rle=b""),
        )  # fmt: skip
    return Sample(
        sample_id=f"{place}/{key}/{task}/{n}",
        task=task,
        source=source,
        split=split,
        image=None if picture is None else image,
        image_key=key,
        height=120,
        width=160,
        references=references,
        provenance=Provenance(file="a.json", record=key, builder="b", version=1, seed=0),
    )


@pytest.fixture
def make(tmp_path) -> Callable[..., str]:
    """Writes a finished dataset, a shard for each source and split; samples come in their order."""

    def write(name: str, *samples: Sample) -> str:
        out = Folder(str(tmp_path / name))
        out.make()
        done = []
        for number, ((source, split), inside) in enumerate(groupby(samples, lambda s: (s.source, s.split))):
            held = list(inside)
            with out.staging(f"shards/{number}.parquet") as staged:
                writer = ShardWriter(staged)
                for one in held:
                    writer.write(one, checked=True)
                digest = writer.close()
                shard = out.publish(staged, f"shards/{number}.parquet")
            done.append(
                Commit(task_id=f"t{number}", source=source, split=split, start=0, stop=1, rows=len(held), shard=shard,
                       logical_hash=digest, quarantine=None, tasks={}, licenses={}, objects=0,
                       prompts={}, account=Account())
            )  # fmt: skip
        commits.write_manifest(out, {}, done)
        return out.uri

    return write


def found(report: leaks.Report) -> set[tuple]:
    """kind, leak, sides, first pictures of all overlaps."""
    return {
        (o.kind, o.leak, *(f"{Path(s.dataset).name}:{s.source}/{s.split}" for s in o.sides), pair.a, pair.b)
        for o in report.overlaps
        for pair in o.examples
    }


def call(*arguments: object):
    return CliRunner().invoke(app, ["leaks", *map(str, arguments)])


def test_the_kinds_of_overlap(make):
    a = make("a", sample("coco/train2017", "coco/1", ONE), sample("coco/train2017", "coco/2", TWO),
             sample("coco/train2017", "coco/3", THREE))  # fmt: skip
    b = make("b", sample("ref/val", "coco/3", THREE), sample("ref/val", "web/1", ONE_AGAIN),
             sample("ref/val", "web/2", TWO), sample("ref/val", "web/4", FOUR))  # fmt: skip
    report = leaks.find([a, b], near=4)
    sides = ("a:coco/train2017", "b:ref/val")
    assert found(report) == {
        ("identity", True, *sides, "coco/3", "coco/3"),
        ("content", True, *sides, "coco/2", "web/2"),
        ("near", True, *sides, "coco/1", "web/1"),
    }
    assert report.leaked == {(a, "coco/1"), (a, "coco/2"), (a, "coco/3")}
    assert found(leaks.find([a, b], near=None)) == {row for row in found(report) if row[0] != "near"}


def test_mirrored_copies_are_found_as_such(make):
    """Swapped left and right and stored again; a picture that is its own mirror image is near, and not twice there."""
    symmetric = np.concatenate([np.asarray(png(7)), np.asarray(png(7))[:, ::-1]], axis=1)
    whole = Pillow.fromarray(symmetric)
    mirrored = png(0).transpose(Pillow.Transpose.FLIP_LEFT_RIGHT)
    a = make("a", sample("coco/train2017", "coco/1", ONE), sample("coco/train2017", "coco/2", stored(whole)))
    b = make("b", sample("ref/val", "web/1", stored(mirrored, "JPEG", quality=60)),
             sample("ref/val", "web/2", stored(whole, "JPEG", quality=60)))  # fmt: skip
    sides = ("a:coco/train2017", "b:ref/val")
    report = leaks.find([a, b], near=4)
    assert found(report) == {
        ("near", True, *sides, "coco/2", "web/2"),
        ("mirrored", True, *sides, "coco/1", "web/1"),
    }
    assert [o.num_pairs for o in report.overlaps] == [1, 1]
    assert report.leaked == {(a, "coco/1"), (a, "coco/2")}


@pytest.mark.parametrize(
    ("splits", "code", "word"),
    [
        pytest.param(("train2017", "val2017"), 1, "LEAK", id="training and validation"),
        pytest.param(("test", "train"), 1, "LEAK", id="the other way round"),
        pytest.param(("train", "train2014"), 0, "", id="training twice"),
        pytest.param(("val", "testA"), 0, "", id="validation and test"),
    ],
)
def test_the_exit_code_is_that_of_a_leak(make, splits, code, word):
    a, b = (
        make(split, sample(f"coco/{split}", "coco/1", ONE, task="refseg"), sample(f"coco/{split}", split, own))
        for split, own in zip(splits, (TWO, THREE), strict=True)
    )
    result = call(a, b, "--no-near")
    assert result.exit_code == code, result.output
    (line,) = [line for line in result.output.splitlines() if "identity" in line]
    parts = [word, "identity", "1", a, f"coco/{splits[0]}", "(refseg)", b, f"coco/{splits[1]}", "(refseg)", "coco/1"]
    assert line.split() == [part for part in parts if part]
    assert ("1 training pictures are also in splits" in result.output) == bool(code)
    assert ("no leak" in result.output) != bool(code)


def test_splits_of_one_dataset_are_compared(make):
    a = make("a", sample("coco/train", "coco/1", ONE), sample("coco/train", "copy", ONE),
             sample("ref/val", "coco/1", ONE, "refseg"), sample("ref/val", "coco/1", ONE, "reaseg"))  # fmt: skip
    report = leaks.find([a], near=4)
    assert found(report) == {
        ("identity", True, "a:coco/train", "a:ref/val", "coco/1", "coco/1"),
        ("content", True, "a:coco/train", "a:ref/val", "copy", "coco/1"),
    }
    assert [o.tasks for o in report.overlaps] == [({"vgdseg"}, {"refseg", "reaseg"})] * 2
    assert report.datasets == {a: 2}


def test_pictures_of_references_count(make):
    a = make("a", sample("coco/train", "coco/1", ONE, other=("coco/2", TWO)))
    b = make("b", sample("coco/val", "coco/2", TWO), sample("coco/val", "coco/9", FOUR, other=("web/1", ONE)))
    assert found(leaks.find([a, b], near=None)) == {
        ("identity", True, "a:coco/train", "b:coco/val", "coco/2", "coco/2"),
        ("content", True, "a:coco/train", "b:coco/val", "coco/1", "web/1"),
    }


def test_what_cannot_be_read_or_decoded_is_named(make, tmp_path):
    (tmp_path / "there.png").write_bytes(TWO)
    gone, half = str(tmp_path / "gone.png"), ONE[: len(ONE) // 2]
    a = make("a", sample("x/train", "x/half", half), sample("x/train", "x/gone", gone), sample("x/train", "x/2", TWO))
    b = make("b", sample("y/val", "y/half", half), sample("y/val", "y/there", str(tmp_path / "there.png")),
             sample("y/val", "y/call", "http://127.0.0.1/1.png"))  # fmt: skip
    report = leaks.find([a, b], near=4)
    sides = ("a:x/train", "b:y/val")
    assert found(report) == {("content", True, *sides, "x/half", "y/half"), ("content", True, *sides, "x/2", "y/there")}
    assert [(bad.dataset, bad.picture) for bad in report.uncompared] == [
        (a, "x/half"), (a, "x/gone"), (b, "y/half"), (b, "y/call")
    ]  # fmt: skip
    output = call(a, b).output
    assert "4 pictures could not be read or decoded" in output
    assert f"{a}: x/gone: " in output


def test_pictures_of_one_grey_are_alike_by_content_only(make):
    a = make("a", sample("x/train", "x/1", GREY))
    b = make("b", sample("y/val", "y/1", stored(Pillow.new("L", (30, 40), 127))))
    report = leaks.find([a, b], near=4)
    assert (report.overlaps, report.flat) == ([], 2)
    assert found(leaks.find([a, make("c", sample("y/val", "y/1", GREY))], near=4)) == {
        ("content", True, "a:x/train", "c:y/val", "x/1", "y/1")
    }


def test_text_and_nameless_pictures(make):
    """Text shows no picture; pictures without a key are told apart by their samples."""
    a = make("a", sample("chat/train", "", None), sample("chat/train", "", ONE, n=1))
    b = make("b", sample("chat/val", "", None), sample("chat/val", "", TWO, n=1), sample("chat/val", "", ONE, n=2))
    report = leaks.find([a, b], near=4)
    assert report.datasets == {a: 1, b: 2}
    assert found(report) == {
        ("content", True, "a:chat/train", "b:chat/val", "chat/train//vgdseg/1", "chat/val//vgdseg/2")
    }


def test_a_picture_of_many_samples_is_read_once(make, monkeypatch):
    a = make("a", *(sample("x/train", key, ONE, n=n) for n in range(3) for key in ("x/1", "x/2")))
    read: list[int] = []
    whole = leaks.picture_of

    def counted(image: Image) -> bytes:
        read.append(1)
        return whole(image)

    monkeypatch.setattr(leaks, "picture_of", counted)
    assert leaks.find([a], near=4).datasets == {a: 2}
    assert len(read) == 2


def test_json_holds_every_pair_whatever_the_number_of_workers(make, tmp_path):
    a = make("a", *(sample("x/train", f"x/{n}", ONE) for n in range(3)), sample("x/extra", "x/9", FOUR))
    b = make("b", *(sample("y/val", f"y/{n}", ONE_AGAIN) for n in range(2)), sample("y/test", "x/9", FOUR))
    texts = []
    for workers in (1, 2):
        result = call(a, b, "--json", tmp_path / "deep" / "pairs.json", "--workers", workers)
        assert result.exit_code == 1
        assert "3/2" in result.output
        texts.append((tmp_path / "deep" / "pairs.json").read_text())
    assert texts[0] == texts[1]
    document = json.loads(texts[0])
    near = [pair for pair in document["pairs"] if pair["kind"] == "near"]
    assert {(p["a"]["image_key"], p["b"]["image_key"]) for p in near} == {
        (f"x/{m}", f"y/{n}") for m in range(3) for n in range(2)
    }
    assert all(pair["leak"] and 0 <= pair["distance"] <= 4 for pair in near)
    side = {"source": "x", "tasks": ["vgdseg"], "image_key": "x/9"}
    assert [pair for pair in document["pairs"] if pair["kind"] != "near"] == [
        {"kind": "identity", "leak": False, "distance": None,
         "a": side | {"dataset": a, "split": "extra", "sample_id": "x/extra/x/9/vgdseg/0"},
         "b": side | {"dataset": b, "split": "test", "source": "y", "sample_id": "y/test/x/9/vgdseg/0"}}
    ]  # fmt: skip
    assert document["leaked"] == 3


def test_nothing_in_common(make, tmp_path):
    a, b = make("a", sample("x/train", "x/1", ONE)), make("b", sample("y/val", "y/1", TWO))
    result = call(a, b, "--json", tmp_path / "pairs.json")
    assert result.exit_code == 0
    assert json.loads((tmp_path / "pairs.json").read_text())["pairs"] == []


def test_more_bits_find_more(make):
    """The distance of two pictures is looked up first, then one bit less does not find them."""
    one, other = png(5), png(5).rotate(2, Pillow.Resampling.BICUBIC)
    a, b = make("a", sample("x/train", "x/1", stored(one))), make("b", sample("y/val", "y/1", stored(other)))
    (overlap,) = leaks.find([a, b], near=10).overlaps
    distance = overlap.examples[0].distance
    assert distance
    assert leaks.find([a, b], near=distance).overlaps
    assert not leaks.find([a, b], near=distance - 1).overlaps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(lambda a: (a, a), "named twice", id="twice"),
        pytest.param(lambda a: (a, f"{a}/shards"), "no dataset", id="no dataset"),
    ],
)
def test_what_cannot_be_compared_is_said(make, arguments, message):
    result = call(*arguments(make("a", sample("x/train", "x/1", ONE))))
    assert result.exit_code == 1
    assert message in result.output


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_shard_is_named(make, workers):
    a = make("a", sample("x/train", "x/1", ONE), sample("x/val", "x/2", TWO))
    path = Path(a, "shards", "1.parquet")
    data = bytearray(path.read_bytes())
    at = data.index(TWO)
    data[at - 4 : at] = b"\xff\xff\xff\x7f"  # the picture's length: only who reads the picture finds out
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"1\.parquet (is damaged|cannot be read)"):
        leaks.find([a], near=None, workers=workers)
