"""Rows by number, against the samples that were written."""

import threading
from dataclasses import replace

import pytest

from dataengine.store.commits import DatasetError
from dataengine.store.dataset import open_dataset
from dataengine.view import reader as reading
from dataengine.view.reader import Reader


@pytest.fixture
def samples(made_samples):
    return made_samples


@pytest.fixture
def reader(made_dataset):
    return Reader(open_dataset(str(made_dataset)))


def test_every_row_is_the_sample_that_was_written_with_its_pictures(reader, samples):
    assert [reader.sample(n) for n in range(120)] == samples


def test_a_picture_comes_with_the_size_that_its_row_states(reader, samples):
    number = next(n for n, sample in enumerate(samples) if sample.references)
    assert reader.picture(number) == (samples[number].image, 24, 32)
    assert reader.picture(number, 0) == (samples[number].references[0].image, 10, 12)
    with pytest.raises(DatasetError, match="no reference 1"):
        reader.picture(number, 1)


def test_a_text_only_sample_has_no_picture(make_sample, write_dataset):
    text_only = replace(make_sample(1), image=None)
    reader = Reader(open_dataset(str(write_dataset([text_only, make_sample(2)]))))
    assert reader.sample(0) == text_only
    assert reader.picture(0)[0] is None


@pytest.mark.parametrize("number", [-1, 120, 10**15])
def test_a_row_that_is_not_there(reader, number):
    with pytest.raises(DatasetError, match="there is no row"):
        reader.sample(number)


def test_what_is_kept_stays_bounded(reader, monkeypatch):
    monkeypatch.setattr(reader._groups, "_max", 1 << 12)
    monkeypatch.setattr(reader._pictures, "_max", 1 << 12)
    monkeypatch.setattr(reading, "KEPT_FOOTERS", 2)
    for number in range(120):
        reader.sample(number)
    assert len(reader._footers) <= 2
    for kept in (reader._groups, reader._pictures):
        assert kept._bytes == sum(size for _, size in kept._values.values())
        assert kept._bytes <= 1 << 12 or len(kept._values) == 1


def test_threads_get_their_own_rows(reader, samples):
    wrong = []

    def read(start: int) -> None:
        wrong.extend(n for n in range(start, 120, 4) if reader.sample(n) != samples[n])

    threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_row_group_larger_than_memory_is_refused(reader, monkeypatch):
    monkeypatch.setattr(reading, "MAX_GROUP_BYTES", 1000)
    with pytest.raises(DatasetError, match=r"shards/alpha-train-00000\.parquet: row group 0 is larger"):
        reader.sample(0)


def test_a_shard_with_fewer_rows_than_the_manifest_says(samples, write_dataset):
    out = write_dataset(samples, rows_a_shard=12)
    found = sorted((out / "shards").glob("alpha*"))  # 80 rows: six of 12, one of 8
    found[6].replace(found[0])
    reader = Reader(open_dataset(str(out)))
    assert reader.sample(3) == samples[72 + 3]
    with pytest.raises(DatasetError, match="has 8 rows, the manifest says more"):
        reader.sample(11)
    with pytest.raises(DatasetError, match="has not the rows"):
        list(reader.groups(0, ["sample_id"]))
