"""Folders, publishing exactly once, and the driver's lock, on a disk and on a real S3 API on loopback."""

from __future__ import annotations

import datetime
import errno
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataengine.store import commits, lock
from dataengine.store.files import Folder, NondeterminismError, StoreError
from dataengine.store.lock import LockedError, driver_lock


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path) -> Folder:
    if request.param == "disk":
        return Folder(str(tmp_path / "out"))
    return Folder(request.getfixturevalue("s3_bucket") + "/out")


def test_publishing_is_once(folder):
    folder.make()
    first = folder.write_new("a/b.bin", b"hello")
    assert first.bytes == 5
    assert folder.write_new("a/b.bin", b"hello") == first
    with pytest.raises(NondeterminismError, match=r"a/b.bin exists with sha256 2cf24dba5fb0…"):
        folder.write_new("a/b.bin", b"other")
    assert folder.read("a/b.bin") == b"hello"
    assert folder.names(recursive=True) == ["a/b.bin"]
    assert (folder / "a").names() == ["b.bin"]
    assert folder.size("a/b.bin") == 5
    assert folder.sha256("a/b.bin") == first.sha256


def test_sizes_are_those_of_the_files_of_one_folder(folder):
    folder.make()
    for name, data in (("a.json", b"12345"), ("b.jpg", b"x"), ("sub/c.json", b"123")):
        folder.write_new(name, data)
    assert folder.sizes() == {"a.json": 5, "b.jpg": 1}
    with pytest.raises(FileNotFoundError):
        (folder / "nowhere").sizes()


def test_files_come_and_go(folder):
    folder.make()
    assert folder.names(recursive=True) == []
    folder.replace("s.json", b"1")
    folder.replace("s.json", b"22")
    assert folder.read("s.json") == b"22"
    assert (folder.kind("s.json"), folder.kind("t.json")) == ("file", None)
    folder.delete("s.json")
    folder.delete("s.json")
    with pytest.raises(FileNotFoundError):
        folder.read("s.json")


def test_sub_folders_are_entries_too(folder):
    assert folder.entries() == []
    folder.make()
    assert folder.entries() == []
    for name in ("b.txt", "a.txt", "photos/2024/x.jpg", "photos/y.jpg"):
        folder.write_new(name, b"1")
    assert folder.entries() == ["a.txt", "b.txt", "photos/"]
    assert (folder / "photos").entries() == ["2024/", "y.jpg"]


def test_an_empty_sub_folder_is_an_entry(tmp_path):
    (tmp_path / "photos").mkdir()
    assert Folder(str(tmp_path)).entries() == ["photos/"]


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Files cannot grow beyond a size in bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("write", ["write_new", "replace"])
def test_a_full_disk_is_named(tmp_path, write):
    folder = Folder(str(tmp_path))
    with pytest.raises(StoreError, match=r"File too large: '.*/shards/a\.bin'$") as caught, no_file_above(1000):
        getattr(folder, write)("shards/a.bin", b"x" * 5000)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "shards" / "a.bin"))
    assert folder.names(recursive=True) == []
    back = pickle.loads(pickle.dumps(caught.value))
    assert (type(back), str(back), back.filename) == (StoreError, str(caught.value), caught.value.filename)


def test_a_full_disk_is_named_when_arrow_writes(tmp_path):
    folder = Folder(str(tmp_path))
    table = pa.table({"a": np.random.default_rng(0).random(5000)})

    def write() -> None:
        with folder.staging("shards/a.parquet") as staged:
            pq.write_table(table, staged)

    with pytest.raises(StoreError, match=r"/shards/a\.parquet'$"), no_file_above(1000):
        write()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_when_files_are_synced(tmp_path, monkeypatch, number):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(StoreError, match=re.escape(f"{os.strerror(number)}: '{tmp_path / 'a.bin'}'")):
        Folder(str(tmp_path)).write_new("a.bin", b"x")


def test_errors_of_other_places_are_left_alone(tmp_path):
    def fail() -> None:
        with Folder(str(tmp_path)).staging("a.bin"):
            (tmp_path / "source.jpg").read_bytes()

    with pytest.raises(FileNotFoundError, match=r"source\.jpg"):
        fail()


def test_an_error_leaves_nothing_behind(folder):
    folder.make()

    def fail() -> None:
        with folder.staging("x.bin") as staged:
            staged.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert folder.names(recursive=True) == []


@pytest.mark.parametrize("write", ["publish", "replace"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_an_interrupted_upload_leaves_no_part_of_an_object(s3_bucket, monkeypatch, write, kind):
    folder = Folder(s3_bucket + f"/{write}-{kind.__name__}")
    data = bytes(range(256)) * 1000

    def half(source, sink, *_):
        sink.write(source.read(len(data) // 2))
        raise kind

    def put() -> None:
        if write == "publish":
            folder.write_new("shards/a.bin", data)
        else:
            folder.replace("shards/a.bin", data)

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", half)
        with pytest.raises(kind):
            put()
    assert folder.names(recursive=True) == []
    put()
    assert folder.names(recursive=True) == ["shards/a.bin"]
    assert folder.read("shards/a.bin") == data


def test_a_killed_upload_leaves_nothing_under_its_name(s3_bucket):
    folder = Folder(s3_bucket + "/killed")
    killed = subprocess.run(
        [sys.executable, "-c", "import sys; from dataengine.store.files import Folder; "
         "Folder(sys.argv[1]).write_new('shards/a.bin', b'hello')", folder.uri],
        env={**os.environ, "DATAENGINE_FAULT": "uploaded:kill"},
        cwd=Path(__file__).parents[3],
        check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert folder.kind("shards/a.bin") is None
    assert commits.remove_temporary_files(folder) == 1
    folder.write_new("shards/a.bin", b"hello")
    assert folder.names(recursive=True) == ["shards/a.bin"]


def test_what_a_killed_upload_left_is_removed(folder):
    folder.make()
    theirs = ["notes.tmp", ".vimrc.tmp", f"shards/mine/.a.{'0' * 32}.tmp", f"photos/.a.{'0' * 32}.tmp"]
    ours = [f".plan.parquet.{'0' * 32}.tmp", *(f"{f}/.a.b.{'f' * 32}.tmp" for f in ("shards", "commits", "quarantine"))]
    for name in [*theirs, *ours, "shards/a"]:
        folder.write_new(name, b"1")
    assert commits.remove_temporary_files(folder) == 4
    assert folder.names(recursive=True) == sorted([*theirs, "shards/a"])


def test_a_filesystem_without_links_is_served(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "not supported")

    monkeypatch.setattr("os.link", refuse)
    folder = Folder(str(tmp_path))
    folder.write_new("a", b"1")
    folder.write_new("a", b"1")
    with pytest.raises(NondeterminismError):
        folder.write_new("a", b"2")
    assert folder.names() == ["a"]


def test_one_driver_at_a_time(folder):
    folder.make()
    with driver_lock(folder) as renew:
        renew()
        with pytest.raises(LockedError, match="another build is writing here"), driver_lock(folder):
            pass
    with driver_lock(folder):
        pass
    assert folder.names(recursive=True) == []


def age(folder: Folder, name: str, seconds: float) -> None:
    """Make an object of the test's S3 server older."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    bucket, _, path = folder.uri.removeprefix("s3://").partition("/")
    key = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket].keys[f"{path}/{name}"]
    key.last_modified -= datetime.timedelta(seconds=seconds)


def until(true: Callable[[], bool]) -> None:
    """Wait for something that another thread brings about."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_dead_remote_driver_is_passed_over(s3_bucket):
    out = Folder(s3_bucket + "/dead")
    for name in ("old.json", "odd.json", f".old.json.{'0' * 32}.tmp"):
        (out / lock.REMOTE).replace(name, b"what")
        age(out / lock.REMOTE, name, 2 * lock.STALE_S)
    with driver_lock(out):
        assert len((out / lock.REMOTE).names()) == 1


def test_the_age_of_a_remote_lock_is_the_stores(s3_bucket):
    out = Folder(s3_bucket + "/clocks")
    (out / lock.REMOTE).replace("slow.json", json.dumps({"since": time.time() - 2 * lock.STALE_S}).encode())
    with pytest.raises(LockedError, match="another build is writing here"), driver_lock(out):
        pass
    assert (out / lock.REMOTE).names() == ["slow.json"]


def test_a_store_without_times_has_the_drivers(tmp_path):
    out = Folder(f"memory://{tmp_path.name}/times")
    (out / lock.REMOTE).replace("old.json", json.dumps({"since": time.time() - 2 * lock.STALE_S}).encode())
    with driver_lock(out), pytest.raises(LockedError), driver_lock(out):
        pass


def test_a_remote_lock_is_renewed_while_its_driver_is_busy(s3_bucket, monkeypatch):
    monkeypatch.setattr(lock, "STALE_S", 1.0)
    out = Folder(s3_bucket + "/busy")
    with driver_lock(out) as check:
        (name,) = (out / lock.REMOTE).names()
        for _ in range(2):
            age(out / lock.REMOTE, name, 3600)
            until(lambda: time.time() - (out / lock.REMOTE).times()[name] < 60)
        check()
    assert (out / lock.REMOTE).names() == []


def test_a_driver_whose_lock_was_taken_over_stops(s3_bucket):
    out = Folder(s3_bucket + "/taken")
    with driver_lock(out) as check:
        check()
        (name,) = (out / lock.REMOTE).names()
        age(out / lock.REMOTE, name, 2 * lock.STALE_S)
        with driver_lock(out) as other:
            with pytest.raises(LockedError, match="another one took over"):
                check()
            other()
        with pytest.raises(LockedError):
            check()


def test_a_lock_that_was_taken_over_is_not_written_again(s3_bucket, monkeypatch):
    monkeypatch.setattr(lock, "STALE_S", 1.0)
    out = Folder(s3_bucket + "/again")
    with driver_lock(out) as check:
        (out / lock.REMOTE).delete((out / lock.REMOTE).names()[0])
        until(lambda: not any(thread.name == "dataengine-lock" for thread in threading.enumerate()))
        assert (out / lock.REMOTE).names() == []
        with pytest.raises(LockedError):
            check()


def test_an_unknown_scheme_is_refused():
    with pytest.raises(StoreError, match="nosuch://x"):
        Folder("nosuch://x").names()


def test_nothing_lies_above_a_bucket():
    """Else `../images` beside a bucket would be looked for on the local disk."""
    for uri in ("s3://bucket", "s3://bucket/", "s3://bucket?scheme=http", "memory://x"):
        assert Folder(uri).parent == Folder(uri)
    assert Folder("s3://bucket/a/b?scheme=http").parent.parent == Folder("s3://bucket?scheme=http")


def test_other_filesystems_come_through_fsspec():
    folder = Folder("memory://some/out")
    folder.write_new("a", b"1")
    assert folder.names() == ["a"]
    assert folder.read("a") == b"1"
