"""What a run reads: which splits and sources, under which names; what is wrong is said before anything is read."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dataengine.loader.groups import open_data
from dataengine.loader.lengths import text_lengths
from dataengine.loader.rows import Rows
from dataengine.store.commits import DatasetError, canonical_json, version_of

from .conftest import chat, save_manifest


@pytest.fixture
def two(write_dataset, vgd):
    """Two datasets; both have a source `a`, one a split that is held out."""
    first = write_dataset("first", {"a/train": [vgd("a", 6), vgd("a", 3)], "a/val": [vgd("a", 5)], "b/train": [[]]})
    second = write_dataset("second", {"c/train2017": [[chat("c", n) for n in range(7)]], "a/train": [vgd("a", 4)]})
    return [first, second]


def test_sources_are_those_that_are_trained_on_and_told_apart(two):
    data = open_data(two)
    found = [(s.name, s.task, s.first, s.starts.tolist()) for s in data.sources]
    assert found == [
        ("a", "vgdseg", 0, [0, 4, 6, 9]),
        ("b", "chat", 9, [0]),
        ("a#2", "vgdseg", 9, [0, 4]),
        ("c", "chat", 13, [0, 4, 7]),
    ]
    assert data.num_samples == 20


@pytest.mark.parametrize(
    ("chosen", "numbers"),
    [
        ({"splits": ["val"]}, {"a": 5}),
        ({"tasks": ["chat"]}, {"b": 0, "c": 7}),
        ({"sources": ["a#2", "c"]}, {"a#2": 4, "c": 7}),
    ],
)
def test_only_some_may_be_read(two, chosen, numbers):
    assert {s.name: s.num_samples for s in open_data(two, **chosen).sources} == numbers


def test_places_name_row_groups(two):
    data = open_data(two)
    place = data.place(8)
    assert (place.shard.name, place.group, place.row, place.task) == ("shards/a-train-1.parquet", 0, 2, "vgdseg")
    assert (data.place(13).group, data.place(13).row) == (0, 0)
    assert data.name_of(data.place(18)) == f"{two[1]}: shards/c-train2017-0.parquet, row group 1, row 1"
    for number in (-1, 20):
        with pytest.raises(DatasetError, match="20"):
            data.place(number)


def test_the_fingerprint_is_of_contents(two, tmp_path):
    data = open_data(two)
    moved = tmp_path / "moved"
    two[0].rename(moved)
    again = open_data([moved, two[1]])
    assert again.fingerprint == data.fingerprint
    again.check_same(json.loads(json.dumps(data.describe())))
    others = [open_data([two[1], moved]), open_data([moved]), open_data([moved, two[1]], sources=["a"])]
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_other_data_is_refused_with_what_changed(two, write_dataset, vgd):
    before = open_data(two).describe()
    grown = write_dataset("grown", {"a/train": [vgd("a", 10)], "d/train": [[chat("d", 1)]]})
    with pytest.raises(DatasetError) as caught:
        open_data([grown, two[1]]).check_same(before)
    said = str(caught.value)
    for part in (
        "source a has 10 samples of vgdseg, before 9 of vgdseg",
        "source d is new",
        "source b is gone",
        f"{grown} is version ",
    ):
        assert part in said


def test_lengths_are_of_conversations_and_kept(write_dataset, tmp_path):
    out = write_dataset("d", {"a/train": [[chat("a", n) for n in range(6)], [chat("a", n) for n in range(6, 9)]]})
    data = open_data([out])
    lengths = text_lengths(data, tmp_path / "cache")
    rows = Rows(data)
    wanted = [sum(len(turn.text.encode()) for turn in rows.read(n).turns) for n in range(9)]
    assert lengths.tolist() == wanted == [5 + 4 * n for n in range(9)]  # "Say ." and two letters of two bytes
    (kept,) = (tmp_path / "cache").iterdir()
    np.save(kept, np.arange(9))
    assert text_lengths(data, tmp_path / "cache").tolist() == list(range(9))


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_a_missing_shard_is_said_at_once(two):
    (two[0] / "shards" / "a-train-1.parquet").unlink()
    with pytest.raises(DatasetError, match=r"first: shards/a-train-1\.parquet is missing, but the manifest lists it"):
        open_data(two)


def test_a_shard_that_changed_is_said_at_once(two):
    path = two[0] / "shards" / "a-train-1.parquet"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DatasetError, match=r"a-train-1\.parquet has [\d,]+ bytes, not the manifest's"):
        open_data(two)


def test_a_shard_without_its_footer_is_said_at_once(two):
    path = two[0] / "shards" / "a-train-1.parquet"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(DatasetError, match=r"a-train-1\.parquet cannot be read"):
        open_data(two)


def test_a_shard_of_other_rows_is_said_at_once(two):
    manifest = json.loads((two[0] / "manifest.json").read_text())
    manifest["shards"][1]["rows"] += 1
    save_manifest(two[0], manifest)
    with pytest.raises(DatasetError, match=r"a-train-1\.parquet has 3 rows, the manifest says 4"):
        open_data(two)


def test_a_manifest_that_was_edited_is_refused(two):
    path = two[0] / "manifest.json"
    path.write_text(path.read_text().replace("kind 1", "kind one"))
    with pytest.raises(DatasetError, match=r"manifest\.json was changed after it was written"):
        open_data(two)


def test_a_shard_of_a_source_that_is_not_described_is_refused(two):
    manifest = json.loads((two[0] / "manifest.json").read_text())
    manifest["shards"][0]["source"] = "z"
    save_manifest(two[0], manifest)
    with pytest.raises(DatasetError, match="is of a source that is not described"):
        open_data(two)


@pytest.mark.parametrize("name", ["../shards/a.parquet", "/etc/passwd"])
def test_shards_lie_in_their_dataset(two, name):
    manifest = json.loads((two[0] / "manifest.json").read_text())
    manifest["shards"][0]["name"] = name
    manifest["version"] = version_of({k: v for k, v in manifest.items() if k != "version"})
    (two[0] / "manifest.json").write_bytes(canonical_json(manifest))
    with pytest.raises(DatasetError, match="is not in the dataset's folder"):
        open_data(two)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"splits": ["test"]}, "there is nothing to read; the datasets have the splits train, train2017, val"),
        ({"sources": ["z"]}, "there is no source 'z' to read; there is a, a#2, b, c"),
        ({"tasks": ["genseg"]}, "there is no task 'genseg' to read; there is chat, vgdseg"),
    ],
)
def test_what_is_not_there_is_said(two, chosen, said):
    with pytest.raises(DatasetError, match=said):
        open_data(two, **chosen)
