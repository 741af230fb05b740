"""Folders, publishing exactly once, and the driver's lock, on a disk and on a real S3 API on loopback."""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections.abc import Callable

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


def test_other_filesystems_come_through_fsspec():
    folder = Folder("memory://some/out")
    folder.write_new("a", b"1")
    assert folder.names() == ["a"]
    assert folder.read("a") == b"1"
