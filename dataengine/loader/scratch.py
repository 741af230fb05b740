"""A folder of unpacked row groups that the processes of a machine share: each is unpacked by whoever needs it first.

What is there may be deleted at any time. The folder is the user's own and is kept below a size.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dataengine.loader.unpacked import Buffer

SCRATCH_BYTES = 4 << 30
NUM_LOCKS = 64
SUFFIX = ".rows"
LEFT_AFTER = 3600.0  # s, after which a half-written file is nobody's


def default_folder() -> Path:
    """A folder of this user's among the system's temporary files."""
    return Path(tempfile.gettempdir()) / f"dataengine-{os.getuid()}"


class Scratch:
    """Blocks of bytes by key."""

    def __init__(self, folder: Path | None = None, max_bytes: int = SCRATCH_BYTES) -> None:
        """
        Args:
            folder: on a local disk; it is made where it is not there. max_bytes: of all files in it, about; never more
                than half of what the disk has left for them.
        """
        self._folder, self._max = folder or default_folder(), max_bytes

    def get(self, key: str, make: Callable[[], list[Buffer]]) -> Buffer:
        """The block of a key; its parts are made, and written for others, where it is not there.

        Where the folder cannot be written to (a full disk, somebody else's folder), it is made for this process alone.
        """
        path = self._folder / f"{key}{SUFFIX}"
        found = _mapped(path)
        if found is not None:
            return found
        with contextlib.ExitStack() as stack:
            try:
                self._make_folder()
                stack.enter_context(self._locked(key))
            except OSError:
                return b"".join(make())
            found = _mapped(path)  # another process made it meanwhile
            if found is not None:
                return found
            parts = make()
            with contextlib.suppress(OSError):
                self._write(path, parts)
                found = _mapped(path)
            return b"".join(parts) if found is None else found

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = self._folder.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
            raise PermissionError(f"{self._folder} can be written to by others")

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        handle = os.open(self._folder / f"lock-{int(key[:8], 16) % NUM_LOCKS}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _write(self, path: Path, parts: list[Buffer]) -> None:
        self._shrink(sum(len(part) for part in parts))
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.writelines(parts)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _shrink(self, more: int) -> None:
        """Delete what was not used for longest, until `more` bytes fit."""
        files = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):
                about = entry.stat(follow_symlinks=False)
                if entry.name.endswith(SUFFIX):
                    files.append((about.st_mtime, about.st_size, entry.path))
                elif entry.name.endswith(".tmp") and about.st_mtime < time.time() - LEFT_AFTER:
                    os.unlink(entry.path)
        total = sum(size for _, size, _ in files)
        allowed = min(self._max, (total + shutil.disk_usage(self._folder).free) // 2)
        for _, size, name in sorted(files):
            if total + more <= allowed:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)  # who has it mapped keeps it
            total -= size


def _mapped(path: Path) -> memoryview | None:
    try:
        with path.open("rb") as file:
            os.utime(path)
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError):
        return None
