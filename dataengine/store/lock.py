"""One driver an output: a second one is refused."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dataengine.errors import UserError
from dataengine.store.files import Folder, StoreError

NAME = ".lock"
REMOTE = "locks"
STALE_S = 120.0


class LockedError(UserError):
    """Another driver works on this output."""


@contextmanager
def driver_lock(out: Folder) -> Iterator[Callable[[], None]]:
    """Hold an output folder. Yields a function to be called now and then, which keeps a remote lock alive.

    A local lock ends with its process, however it dies. In an object store, which has no locks, each driver writes an
    object of its own and then looks for others; one that was not renewed for two minutes is taken for dead.

    Raises:
        LockedError: the message says who holds it, as far as known.
        StoreError: the folder cannot be written.
    """
    if out.is_local:
        with _flock(out):
            yield lambda: None
    else:
        with _objects(out) as renew:
            yield renew


def _who() -> bytes:
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}).encode()


@contextmanager
def _flock(out: Folder) -> Iterator[None]:
    path = out.path / NAME
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(error.errno, f"{out.uri}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(handle, 4096, 0).decode("utf-8", "replace")
            os.close(handle)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise LockedError(f"{out.uri}: another build is writing here ({holder}); wait for it to end") from None
        if path.exists() and os.stat(path).st_ino == os.fstat(handle).st_ino:
            break
        os.close(handle)  # the last holder removed it between our two steps
    os.ftruncate(handle, 0)
    os.pwrite(handle, _who(), 0)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def _objects(out: Folder) -> Iterator[Callable[[], None]]:
    locks = out / REMOTE
    mine = f"{uuid.uuid4().hex}.json"
    last = 0.0

    def renew() -> None:
        nonlocal last
        if time.time() - last > STALE_S / 4:
            locks.replace(mine, _who())
            last = time.time()

    renew()
    try:
        now = time.time()
        for name in locks.names():
            if name == mine:
                continue
            try:
                holder = json.loads(locks.read(name))
                alive = now - float(holder["since"]) < STALE_S
            except FileNotFoundError:
                continue
            except (ValueError, KeyError, TypeError):
                holder, alive = {}, False
            if alive:
                raise LockedError(f"{out.uri}: another build is writing here ({holder}); wait for it to end")
            locks.delete(name)
        yield renew
    finally:
        locks.delete(mine)
