"""Samples by number are the samples of the shards, whatever these hold and however they were written."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import tracemalloc
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataengine.images import ImageError
from dataengine.loader import pages
from dataengine.loader.groups import open_data
from dataengine.loader.pictures import decoded
from dataengine.loader.rows import GroupError, Rows
from dataengine.loader.scratch import Scratch
from dataengine.sample import _VALUES, Image, Sample
from dataengine.store.commits import DatasetError
from dataengine.store.dataset import open_dataset

from .conftest import chat, save_manifest

TEXTS = ["", "a", "dog", "ёлка", "a\0b", "x" * 300, "<p>", "雪"]


def arbitrary(kind: str, rng: random.Random, optional: bool = False) -> Any:
    """Any value of a field's type."""
    if optional and rng.random() < 0.4:
        return None
    if kind.startswith("list<"):
        item, _, size = kind.removeprefix("list<").partition(">")
        number = int(size.strip("[]")) if size else rng.choice((0, 0, 1, 2, 3))
        return tuple(arbitrary(item, rng) for _ in range(number))
    if kind in _VALUES or kind == "Sample":
        value = _VALUES.get(kind, Sample)
        return value(
            **{
                f.name: arbitrary(f.metadata["arrow"], rng, str(f.type).endswith("| None"))
                for f in dataclasses.fields(value)
            }
        )
    if kind == "string":
        return rng.choice(TEXTS)
    if kind == "binary":
        return rng.randbytes(rng.choice((0, 1, 40)))
    if kind == "bool":
        return rng.random() < 0.5
    if kind == "float":
        return float(np.float32(rng.choice((0.0, -1.5, 3e30, rng.random()))))
    bits = int(kind.removeprefix("int"))
    return rng.choice((0, -1, 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1))


def as_chat(sample: Sample, n: int, **fields: Any) -> Sample:
    return dataclasses.replace(sample, sample_id=str(n), task="chat", source="a", split="train", **fields)


@pytest.mark.parametrize(
    "same",
    [
        pytest.param({}, id="anything"),
        pytest.param({"references": (), "conditions": (), "caption": None, "height": 7}, id="empty lists, one value"),
        pytest.param({"image": None}, id="no pictures"),
    ],
)
def test_every_field_comes_back_as_it_is_stored(write_dataset, same):
    rng = random.Random(5)
    samples = [as_chat(arbitrary("Sample", rng), n, **same) for n in range(40)]
    out = write_dataset("d", {"a/train": [samples[:25], samples[25:]]}, group=9)
    rows = Rows(open_data([out]))
    for number in rng.sample(range(40), 40):
        assert rows.read(number) == samples[number], number
    assert list(open_dataset(str(out)).samples()) == samples


def rewrite(path, **options: Any) -> None:
    table = pq.ParquetFile(path).read(use_threads=False)
    pq.write_table(table, path, row_group_size=6, **options)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"compression": "NONE", "use_dictionary": False}, id="plain"),
        pytest.param({"compression": "NONE", "use_dictionary": False, "data_page_version": "2.0"}, id="v2 pages"),
        pytest.param(
            {"compression": "NONE", "use_dictionary": False, "data_page_size": 64, "write_batch_size": 1},
            id="small pages",
        ),
        pytest.param({"compression": "ZSTD", "use_dictionary": False}, id="compressed"),
        pytest.param({"compression": "NONE", "use_dictionary": True}, id="dictionary"),
        pytest.param({"compression": "SNAPPY", "use_dictionary": True}, id="both"),
    ],
)
def test_pictures_are_found_however_they_are_written(write_dataset, make_jpeg, options):
    pictures = [Image(bytes=make_jpeg(24, 32, seed=n), path=f"{n}.jpg") for n in range(9)]
    samples = [chat("a", n, pictures[n // 2] if n % 5 else None) for n in range(18)]
    out = write_dataset("d", {"a/train": [samples]})
    rewrite(out / "shards" / "a-train-0.parquet", **options)
    save_manifest(out, open_dataset(str(out)).manifest)
    rows = Rows(open_data([out]))
    assert [rows.read(n) for n in range(18)] == samples


def test_pictures_are_not_copied_to_the_scratch_folder(write_dataset, scratch_folder):
    samples = [chat("a", n, Image(bytes=os.urandom(50_000), path=None)) for n in range(8)]
    rows = Rows(open_data([write_dataset("d", {"a/train": [samples]}, group=8)]))
    assert rows.read(3) == samples[3]
    (file,) = scratch_folder.glob("*.rows")
    assert file.stat().st_size < 20_000


def test_pictures_by_reference_are_decoded_from_their_place(write_dataset, make_jpeg, tmp_path):
    (tmp_path / "p.jpg").write_bytes(make_jpeg(24, 32, seed=1))
    samples = [chat("a", 0, Image(bytes=None, path=str(tmp_path / "p.jpg"))), chat("a", 1)]
    rows = Rows(open_data([write_dataset("d", {"a/train": [samples]})]))
    from PIL import Image as Pillow

    pixels = decoded(rows.read(0))
    assert (pixels == np.asarray(Pillow.open(tmp_path / "p.jpg"))).all()
    assert (pixels.shape, pixels.dtype) == ((24, 32, 3), np.uint8)
    with pytest.raises(ImageError, match="no picture"):
        decoded(rows.read(1))


def test_readers_travel_between_processes(write_dataset):
    samples = [chat("a", n) for n in range(9)]
    rows = Rows(open_data([write_dataset("d", {"a/train": [samples]})]))
    rows.read(0)
    assert pickle.loads(pickle.dumps(rows)).read(8) == samples[8]
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, b"1" if rows.read(5) == samples[5] and rows._pid == os.getpid() else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 1) == b"1"


def test_a_sample_of_another_task_is_refused(write_dataset, vgd):
    mixed = [chat("a", 0), dataclasses.replace(vgd("a", 1)[0])]
    rows = Rows(open_data([write_dataset("d", {"a/train": [mixed]})]))
    assert rows.read(0) == mixed[0]
    with pytest.raises(DatasetError, match="of 'vgdseg', its source is of chat"):
        rows.read(1)


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(path, at: int, number: int = 1) -> None:
    """Invert bytes of a file, which keeps its size."""
    data = bytearray(path.read_bytes())
    data[at : at + number] = bytes(255 - value for value in data[at : at + number])
    path.write_bytes(data)


def chunk(path, group: int, leaf: str):
    about = pq.read_metadata(path).row_group(group)
    return next(about.column(i) for i in range(about.num_columns) if about.column(i).path_in_schema == leaf)


@pytest.mark.parametrize("leaf", ["turns.list.element.text", "image.bytes"])
def test_a_damaged_row_group_is_named_and_the_others_are_read(write_dataset, make_jpeg, leaf):
    samples = [chat("a", n, Image(bytes=make_jpeg(24, 32, seed=n), path=None)) for n in range(12)]
    out = write_dataset("d", {"a/train": [samples]})
    path = out / "shards" / "a-train-0.parquet"
    place = chunk(path, 1, leaf)
    flip(path, place.data_page_offset, 40)  # the page's header
    rows = Rows(open_data([out]))
    for number in (4, 5, 7):
        with pytest.raises(GroupError, match=r"a-train-0\.parquet.*\(row group 1, 4 rows\)"):
            rows.read(number)
    assert [rows.read(n) for n in (0, 3, 8, 11)] == [samples[n] for n in (0, 3, 8, 11)]


def test_a_damaged_picture_is_that_sample_s_alone(write_dataset, make_jpeg):
    samples = [chat("a", n, Image(bytes=make_jpeg(24, 32, seed=n), path=None)) for n in range(4)]
    out = write_dataset("d", {"a/train": [samples]})
    path = out / "shards" / "a-train-0.parquet"
    flip(path, path.read_bytes().index(samples[2].image.bytes), 30)
    rows = Rows(open_data([out]))
    with pytest.raises(ImageError):
        decoded(rows.read(2))
    assert decoded(rows.read(1)).shape == (24, 32, 3)


def test_a_shard_that_was_replaced_is_read_anew(write_dataset):
    samples = [chat("a", n) for n in range(4)]
    out = write_dataset("d", {"a/train": [samples]})
    path = out / "shards" / "a-train-0.parquet"
    good = path.read_bytes()
    flip(path, chunk(path, 0, "turns.list.element.text").data_page_offset, 40)
    data = open_data([out])
    with pytest.raises(GroupError):
        Rows(data).read(0)
    path.write_bytes(good)
    assert Rows(data).read(0) == samples[0]


@pytest.mark.parametrize("value", [2**31 - 1, 2**20, 5])
def test_a_length_that_lies_takes_no_memory(write_dataset, make_jpeg, value):
    samples = [chat("a", n, Image(bytes=make_jpeg(24, 32, seed=n), path=None)) for n in range(4)]
    out = write_dataset("d", {"a/train": [samples]})
    path = out / "shards" / "a-train-0.parquet"
    data = bytearray(path.read_bytes())
    at = data.index(samples[1].image.bytes)
    data[at - 4 : at] = value.to_bytes(4, "little")
    path.write_bytes(data)
    rows = Rows(open_data([out]))
    tracemalloc.start()
    with pytest.raises(GroupError, match="page"):
        rows.read(1)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_page_headers_that_lie_are_errors(write_dataset, make_jpeg):
    """Every byte of a page header in turn set to other values: the places are right, or a PageError is raised."""
    samples = [chat("a", n, Image(bytes=make_jpeg(8, 8, seed=n), path=None)) for n in range(3)]
    out = write_dataset("d", {"a/train": [samples]})
    path = out / "shards" / "a-train-0.parquet"
    data, footer = path.read_bytes(), pq.read_metadata(path)
    place = chunk(path, 0, "image.bytes")
    stop = place.data_page_offset + place.total_compressed_size
    refused = 0
    for at in range(place.data_page_offset, place.data_page_offset + 40):
        for value in (0, 1, 0x7F, 0x80, 0xFF):
            bad = data[:at] + bytes([value]) + data[at + 1 :]
            try:
                starts, lengths = pages.places(lambda s, n, bad=bad: bad[s : s + n], footer, 0, "image.bytes")
            except pages.PageError:
                refused += 1
            else:
                assert all(s + n <= stop for s, n in zip(starts.tolist(), lengths.tolist(), strict=True) if n >= 0)
    assert refused > 50


def test_nulls_where_a_value_is_needed_are_refused(write_dataset):
    out = write_dataset("d", {"a/train": [[chat("a", n) for n in range(4)]]})
    path = out / "shards" / "a-train-0.parquet"
    table = pq.ParquetFile(path).read(use_threads=False)
    names = table.schema.get_field_index("image_key")
    table = table.set_column(names, "image_key", pa.array(["a", None, "b", "c"]))
    pq.write_table(table, path)
    save_manifest(out, open_dataset(str(out)).manifest)
    with pytest.raises(GroupError, match="column image_key has nulls"):
        Rows(open_data([out])).read(0)


# --- the scratch folder -----------------------------------------------------------------------------------------------


def test_a_row_group_is_unpacked_once_for_all(tmp_path):
    made = []

    def make() -> list[bytes]:
        made.append(1)
        return [b"ab", b"c"]

    assert bytes(Scratch(tmp_path / "s").get("0" * 32, make)) == b"abc"
    assert bytes(Scratch(tmp_path / "s").get("0" * 32, make)) == b"abc"
    assert len(made) == 1


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    folder.chmod(0o777)
    assert bytes(Scratch(folder).get("0" * 32, lambda: [b"abc"])) == b"abc"
    assert list(folder.iterdir()) == []


def test_a_file_in_place_of_the_folder_does_no_harm(tmp_path):
    (tmp_path / "s").write_bytes(b"")
    assert bytes(Scratch(tmp_path / "s").get("0" * 32, lambda: [b"abc"])) == b"abc"


def test_what_was_not_used_for_longest_makes_room(tmp_path):
    scratch = Scratch(tmp_path / "s", max_bytes=250)
    for number in range(4):
        scratch.get(f"{number}" * 32, lambda: [b"x" * 100])
        for age, file in enumerate(sorted((tmp_path / "s").glob("*.rows"), reverse=True)):
            os.utime(file, (1000 - age, 1000 - age))
    assert sorted(file.name[0] for file in (tmp_path / "s").glob("*.rows")) == ["2", "3"]
