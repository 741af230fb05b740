"""Shards: rows as they went in, a hash of values only, and pictures that `datasets` opens."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow

from dataengine import masks
from dataengine.invariants import InvariantError
from dataengine.sample import Condition, Image, Object, Prompt, Provenance, Sample, Turn
from dataengine.store import shards
from dataengine.store.shards import LogicalHash, ShardWriter, logical_hash, read_shard


def sample(number: int) -> Sample:
    rle = masks.rle_from_counts([number % 5, 7, 41 - number % 5], 6, 8)
    x, y, w, h = masks.bbox_xywh(rle, 6, 8)
    file = io.BytesIO()
    Pillow.fromarray(np.full((6, 8, 3), number, np.uint8)).save(file, "PNG")
    prompt = Prompt(kind="point", profile="strict", version=1, status="ok", points=(0.5, 3.5), parts=(1,), inside=1 / 3)
    thing = Object(rle=rle, bbox=(x, y, w, h), area=7, category_id=1, annotation_id=str(number), prompts=(prompt,))
    return Sample(
        sample_id=f"s/train/{number}",
        task="refseg",
        source="s",
        split="train",
        image=Image(bytes=file.getvalue(), path=None) if number % 3 else Image(bytes=None, path=f"{number}.jpg"),
        image_key=f"s/{number}",
        height=6,
        width=8,
        turns=(
            Turn(role="user", text="<image>\n<p>größe</p>", supervised=False),
            Turn(role="assistant", text="<SEG>", supervised=True),
        ),
        objects=(thing,) * (number % 4),
        conditions=(Condition(kind="phrase", text="größe", seg=0, turn=0, start=8, end=20),),
        ignore=rle if number % 2 else None,
        provenance=Provenance(file="a.json", record=str(number), builder="b", version=1, seed=0),
    )


SAMPLES = [sample(number) for number in range(50)]


def write(path, samples=SAMPLES) -> str:
    writer = ShardWriter(path)
    for one in samples:
        writer.write(one)
    assert writer.rows == len(samples)
    return writer.close()


def rounded(one: Sample) -> Sample:
    """Stored fractions have 32 bits."""
    prompts = tuple(replace(p, inside=float(np.float32(p.inside))) for o in one.objects[:1] for p in o.prompts)
    return replace(one, objects=tuple(replace(o, prompts=prompts) for o in one.objects))


def test_rows_come_back_and_row_groups_do_not_matter(tmp_path, monkeypatch):
    digest = write(tmp_path / "a.parquet")
    with (tmp_path / "a.parquet").open("rb") as file:
        assert list(read_shard(file)) == [rounded(one) for one in SAMPLES]
    monkeypatch.setattr(shards, "ROW_GROUP_ROWS", 7)
    assert write(tmp_path / "b.parquet") == digest
    assert pq.ParquetFile(tmp_path / "b.parquet").num_row_groups == 8
    for name in ("a", "b"):
        with (tmp_path / f"{name}.parquet").open("rb") as file:
            assert logical_hash(file) == digest


def test_same_samples_give_the_same_bytes(tmp_path):
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda one: replace(one, split="val"),
        lambda one: replace(one, ignore=None),
        lambda one: replace(one, image=replace(one.image, bytes=one.image.bytes + b"x")),
        lambda one: replace(one, turns=(replace(one.turns[0], supervised=True), one.turns[1])),
        lambda one: replace(one, objects=(replace(one.objects[0], crowd=True),)),
        lambda one: replace(one, objects=(replace(one.objects[0], prompts=()),)),
        lambda one: replace(one, conditions=(replace(one.conditions[0], category_id=0),)),
    ],
)
def test_every_value_counts(tmp_path, change):
    digest = write(tmp_path / "a.parquet")
    changed = [change(one) if one.sample_id == "s/train/25" else one for one in SAMPLES]
    assert changed[25] != SAMPLES[25]
    assert write(tmp_path / "b.parquet", changed) != digest


def test_the_hash_is_of_values_not_of_buffers():
    table = pa.table({"a": [["x", None], None, [], ["yz"]], "b": [1.5, None, 2.0, 0.0]})
    whole = LogicalHash()
    whole.update(table)
    parts = LogicalHash()
    for start in range(4):
        parts.update(table.slice(start, 1))
    assert whole.hexdigest() == parts.hexdigest()
    for other in (
        {"a": [["x", ""], None, [], ["yz"]]},
        {"a": [["x", None], [], [], ["yz"]]},
        {"a": [["x"], None, [], [None, "yz"]]},
    ):
        digest = LogicalHash()
        digest.update(pa.table(other | {"b": [1.5, None, 2.0, 0.0]}))
        assert digest.hexdigest() != whole.hexdigest()


def test_a_bad_sample_is_refused_and_the_rest_stays(tmp_path):
    writer = ShardWriter(tmp_path / "a.parquet")
    writer.write(SAMPLES[0])
    with pytest.raises(InvariantError):
        writer.write(replace(SAMPLES[1], conditions=()))
    writer.close()
    with (tmp_path / "a.parquet").open("rb") as file:
        assert [one.sample_id for one in read_shard(file)] == ["s/train/0"]


def test_datasets_opens_the_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "train-00000-of-00001.parquet", SAMPLES[1:3])
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded[0]["image"].size == (8, 6)
    assert loaded[1]["objects"][0]["annotation_id"] == "2"


def test_image_bytes_are_stored_as_they_are(tmp_path):
    write(tmp_path / "a.parquet")
    group = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0)
    codecs = {group.column(i).path_in_schema: group.column(i).compression for i in range(group.num_columns)}
    assert codecs.pop("image.bytes") == "UNCOMPRESSED"
    assert set(codecs.values()) == {"ZSTD"}
