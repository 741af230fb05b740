"""Folders on a local disk or in an object store behind one value, and publishing a file exactly once.

Paths and URIs alike name a folder: `out/vgd`, `s3://bucket/vgd`. pyarrow opens what it knows (s3, gs, hdfs), fsspec
the rest. An S3 endpoint other than Amazon's is taken from `AWS_ENDPOINT_URL` or from the URI
(`s3://bucket/vgd?endpoint_override=127.0.0.1:9000&scheme=http`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from dataengine.engine.faults import fault_point
from dataengine.errors import UserError

_TEMPORARY = re.compile(r"\.[^/]+\.[0-9a-f]{32}\.tmp")
_CHUNK = 1 << 20
_USER = re.compile(r"(?<=://)[^/@?#]*@")
_SECRET = re.compile(r"(?i)([?&](?:access_key|secret_key|session_token|token|sig|[^=&?#]*(?:secret|password))=)[^&#]*")


class StoreError(OSError):
    """A place that cannot be read or written; the message names it and what to do."""


class NondeterminismError(UserError):
    """A file that exists already differs from the one that was made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A published file: its name in the folder, size in bytes and sha256 (hex)."""

    name: str
    bytes: int
    sha256: str


@cache
def _filesystem(uri: str) -> tuple[Any, str]:
    """The pyarrow filesystem of a URI and the path in it."""
    import pyarrow as pa
    import pyarrow.fs

    try:
        return pyarrow.fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(uri)
        except (ValueError, ImportError) as error:
            raise StoreError(f"{uri}: {error}") from None
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(system)), path


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder by path or URI. Values travel between processes; connections are made where they are used."""

    uri: str

    @property
    def is_local(self) -> bool:
        return "://" not in self.uri or self.uri.startswith("file://")

    @property
    def path(self) -> Path:
        """Of a local folder."""
        return Path(self.uri.removeprefix("file://"))

    def __truediv__(self, name: str) -> Folder:
        base, mark, query = self.uri.partition("?")
        return Folder(f"{base.rstrip('/')}/{name}{mark}{query}" if not self.is_local else str(self.path / name))

    @property
    def parent(self) -> Folder:
        """The folder that this one lies in; a bucket lies in itself."""
        if self.is_local:
            return Folder(str(self.path.absolute().parent))
        base, mark, query = self.uri.partition("?")
        above = base.rstrip("/").rpartition("/")[0]
        return self if above.endswith(":/") else Folder(f"{above}{mark}{query}")

    def _remote(self, name: str = "") -> tuple[Any, str]:
        system, base = _filesystem(self.uri)
        return system, f"{base.rstrip('/')}/{name}".rstrip("/")

    def open(self, name: str = "") -> BinaryIO:
        """A file of the folder for reading; without a name, the URI itself is the file.

        Raises:
            FileNotFoundError, OSError
        """
        if self.is_local:
            return _open_regular(self.path / name if name else self.path)
        system, path = self._remote(name)
        opened: BinaryIO = system.open_input_file(path)
        return opened

    def read(self, name: str = "") -> bytes:
        with self.open(name) as file:
            return file.read()

    def exists(self, name: str = "") -> bool:
        return self.kind(name) is not None

    def kind(self, name: str = "") -> str | None:
        """`file`, `folder` or None."""
        if self.is_local:
            local = self.path / name if name else self.path
            return "file" if local.is_file() else "folder" if local.is_dir() else None
        import pyarrow.fs

        system, path = self._remote(name)
        kind = system.get_file_info(path).type
        return {pyarrow.fs.FileType.File: "file", pyarrow.fs.FileType.Directory: "folder"}.get(kind)

    def size(self, name: str) -> int:
        if self.is_local:
            return (self.path / name).stat().st_size
        system, path = self._remote(name)
        return int(system.get_file_info(path).size)

    def names(self, recursive: bool = False) -> list[str]:
        """Files below the folder, sorted, relative to it; empty where the folder does not exist."""
        if self.is_local:
            found = self.path.rglob("*") if recursive else self.path.glob("*")
            return sorted(p.relative_to(self.path).as_posix() for p in found if p.is_file())
        import pyarrow.fs

        system, path = self._remote()
        selector = pyarrow.fs.FileSelector(path, allow_not_found=True, recursive=recursive)
        infos = system.get_file_info(selector)
        return sorted(info.path[len(path) :].lstrip("/") for info in infos if info.type == pyarrow.fs.FileType.File)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file of the folder, in no order. Raises OSError where it cannot be listed."""
        if self.is_local:
            with os.scandir(self.path) as found:
                return {entry.name: entry.stat().st_size for entry in found if entry.is_file()}
        import pyarrow.fs

        system, path = self._remote()
        infos = system.get_file_info(pyarrow.fs.FileSelector(path))
        return {info.base_name: info.size for info in infos if info.type == pyarrow.fs.FileType.File}

    def times(self) -> dict[str, float | None]:
        """When each file of the folder was written: seconds since 1970 by the store's clock, or None."""
        if self.is_local:
            return {name: (self.path / name).stat().st_mtime for name in self.names()}
        import pyarrow.fs

        system, path = self._remote()
        infos = system.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
        return {
            info.base_name: None if info.mtime_ns is None else info.mtime_ns / 1e9
            for info in infos
            if info.type == pyarrow.fs.FileType.File
        }

    def entries(self) -> list[str]:
        """Names of what stands in the folder, sorted; sub-folders end with a slash. Empty where it does not exist.

        In an object store a sub-folder is whatever keys have in common up to a slash.
        """
        if self.is_local:
            found = self.path.iterdir() if self.path.is_dir() else ()
            return sorted(p.name + ("/" if p.is_dir() else "") for p in found)
        import pyarrow.fs

        system, path = self._remote()
        infos = system.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name + ("" if info.type == pyarrow.fs.FileType.File else "/") for info in infos)

    def delete(self, name: str) -> None:
        if self.is_local:
            (self.path / name).unlink(missing_ok=True)
            return
        system, path = self._remote(name)
        with contextlib.suppress(FileNotFoundError):
            system.delete_file(path)

    def make(self) -> None:
        """Create the folder. Raises StoreError where that is not possible."""
        if self.is_local:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(error.errno, f"{self.uri}: cannot create the folder: {error.strerror}") from None

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """A local path to write a file to before it is published; nothing of it stays behind on an error.

        Raises:
            StoreError: the disk is full, with the name of what was to be written, which the system leaves out.
        """
        if self.is_local:
            path = self.path / temporary_name(name)
            path.parent.mkdir(parents=True, exist_ok=True)
        else:
            path = Path(tempfile.mkdtemp(prefix="dataengine-")) / Path(name).name
        try:
            with _naming(self.path / name if self.is_local else path):
                yield path
        finally:
            path.unlink(missing_ok=True)
            if not self.is_local:
                path.parent.rmdir()

    def publish(self, staged: Path, name: str) -> Stored:
        """Make a staged file visible under its name, whole or not at all, and never twice.

        Where the name exists already, its content must be the same: the work was done before and is done.

        Raises:
            NondeterminismError: another content stands there.
        """
        stored = Stored(name=name, bytes=staged.stat().st_size, sha256=_sha256(staged))
        if self.is_local:
            with _naming(self.path / name):
                _sync(staged)
                fault_point("staged")
            try:
                os.link(staged, self.path / name)
            except FileExistsError:
                self._compare(stored)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EXDEV, errno.EMLINK):
                    raise
                if (self.path / name).exists():
                    self._compare(stored)
                else:  # a filesystem without hard links
                    staged.rename(self.path / name)
            fault_point("linked")
            _sync((self.path / name).parent)
        elif self.exists(name):
            self._compare(stored)
        else:
            with staged.open("rb") as source:
                self._upload(source, name)
            fault_point("linked")
        return stored

    def _upload(self, source: BinaryIO, name: str) -> None:
        """Write an object of a store, whole or not at all.

        A stream that is left by an exception is closed, which completes its object with what was written so far. So
        it is written under a temporary name; the store itself moves what is complete to its own.
        """
        system, path = self._remote(name)
        _, temporary = self._remote(temporary_name(name))
        try:
            with system.open_output_stream(temporary) as sink:
                shutil.copyfileobj(source, sink, _CHUNK)
            fault_point("uploaded")
            system.move(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                system.delete_file(temporary)
            raise

    def _compare(self, stored: Stored) -> None:
        found = self.sha256(stored.name)
        if found != stored.sha256:
            raise NondeterminismError(
                f"{self.uri}: {stored.name} exists with sha256 {found[:12]}…, but was made again with "
                f"{stored.sha256[:12]}…; the sources or the program changed since it was written"
            )

    def sha256(self, name: str) -> str:
        with self.open(name) as file:
            return hash_file(file)

    def write_new(self, name: str, data: bytes) -> Stored:
        """Publish bytes."""
        with self.staging(name) as staged:
            staged.write_bytes(data)
            return self.publish(staged, name)

    def replace(self, name: str, data: bytes) -> None:
        """Write a file that is allowed to change (`status.json`), whole or not at all."""
        if not self.is_local:
            self._upload(io.BytesIO(data), name)
            return
        with self.staging(name) as staged:
            staged.write_bytes(data)
            staged.replace(self.path / name)


def _open_regular(path: Path) -> BinaryIO:
    """Open a file; what is none, such as a pipe, is refused and not waited for."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return file


def public(uri: str) -> str:
    """A path or URI as others may see it: without names, keys and passwords."""
    return _SECRET.sub(r"\1…", _USER.sub("", uri))


def temporary_name(name: str) -> str:
    """A fresh name, in the same sub-folder, for what will be called `name` once it is whole."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}.{base}.{uuid.uuid4().hex}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a name is one of `temporary_name`, in whatever sub-folder."""
    return _TEMPORARY.fullmatch(name.rpartition("/")[2]) is not None


def hash_file(file: BinaryIO) -> str:
    """sha256 (hex) of what is left of an open file."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hash_file(file)


@contextmanager
def _naming(place: Path) -> Iterator[None]:
    """Name the file in errors of a disk that takes no more: those of `write` do not say which file it was."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise StoreError(error.errno, os.strerror(error.errno), str(place)) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
