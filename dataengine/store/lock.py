"""One driver an output: a second one is refused."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dataengine.errors import UserError
from dataengine.store.files import Folder, StoreError, is_temporary

NAME = ".lock"
REMOTE = "locks"
STALE_S = 120.0


class LockedError(UserError):
    """Another driver works on this output."""


@contextmanager
def driver_lock(out: Folder) -> Iterator[Callable[[], None]]:
    """Hold an output folder. Yields a function to be called now and then, which raises LockedError if it is lost.

    A local lock ends with its process, however it dies. In an object store, which has no locks, each driver writes an
    object of its own and then looks for others; one that was not renewed for two minutes is taken for dead. A thread
    renews it while the context is open.

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
    beat = _Heartbeat(out)
    try:
        beat.write()
        beat.refuse_others()
        beat.start()
        yield beat.check
    finally:
        beat.stop()
        locks = out / REMOTE
        for name in filter(is_temporary, locks.names()):  # of drivers that were killed while they wrote
            locks.delete(name)


class _Heartbeat:
    """A driver's lock object, which a thread keeps young until it is stopped or somebody took the object away."""

    def __init__(self, out: Folder) -> None:
        self._out, self._locks = out, out / REMOTE
        self._mine = f"{uuid.uuid4().hex}.json"
        self._written = 0.0
        self._lost = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dataengine-lock", daemon=True)

    def write(self) -> None:
        self._locks.replace(self._mine, _who())
        self._written = time.time()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._locks.delete(self._mine)

    def refuse_others(self) -> None:
        """Remove the locks of the dead.

        Raises:
            LockedError: somebody else is alive.
        """
        ages = self._ages()
        for name in sorted(ages.keys() - {self._mine}):
            if ages[name] >= STALE_S:
                self._locks.delete(name)
            elif not is_temporary(name):
                holder = self._holder(name)
                raise LockedError(f"{self._out.uri}: another build is writing here ({holder}); wait for it to end")

    def check(self) -> None:
        """Raise LockedError if somebody else took this output over, as happens to one that did not run for minutes."""
        if self._lost or not self._locks.exists(self._mine):
            self._lost = True
            raise LockedError(
                f"{self._out.uri}: this build did not run for {STALE_S:.0f} s or more, and another one took over; "
                "what is committed stays"
            )

    def _run(self) -> None:
        while not self._stopped.wait(STALE_S / 8):
            # an object store that fails for a while is tried again; `check` tells the driver what came of it
            with contextlib.suppress(OSError, LockedError):
                self.check()
                late = time.time() - self._written >= STALE_S
                self.write()
                if late and len(self._ages()) > 1:  # somebody may have taken over between the check and the writing
                    self._lost = True
            if self._lost:
                return

    def _ages(self) -> dict[str, float]:
        """Seconds since each lock object was written: by the store's clock if it has one, else by the drivers' own."""
        times = self._locks.times()
        now = times.get(self._mine) or time.time()
        return {name: now - (self._since(name) if at is None else at) for name, at in times.items()}

    def _since(self, name: str) -> float:
        try:
            return float(json.loads(self._locks.read(name))["since"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0.0

    def _holder(self, name: str) -> str:
        try:
            return self._locks.read(name).decode("utf-8", "replace")
        except FileNotFoundError:
            return "which has just ended"
