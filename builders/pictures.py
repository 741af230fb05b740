"""The pictures of a source: where they lie, what they are called in all sources, and the sample of one."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from builders.reading import RecordError, plain
from dataengine import images
from dataengine.builder import Context, SourceError
from dataengine.sample import Image, License, Provenance, Sample
from dataengine.store.files import Folder

NAME_ERRORS = (errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
COCO_FOLDERS = ("train2017", "val2017", "train2014", "val2014", "images/train2014", "images/val2014")
_COCO_NAME = re.compile(r"(?:.*/)?(?:COCO_[A-Za-z0-9]+_)?(\d{12})(?:_\d+)?\.(?:jpg|jpeg|png)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture that was read and checked. name: in its folder. uri: its whole path or URI. height, width: px."""

    name: str
    uri: str
    data: bytes
    height: int
    width: int


def safe_file_name(name: Any, field: str = "file_name") -> str:
    """A relative path that stays inside its folder.

    Raises:
        RecordError: `unsafe_file_name`: it is no text, empty, absolute, or climbs out with `..`.
    """
    if not isinstance(name, str) or not name or "\0" in name or name != plain(name):
        raise RecordError("unsafe_file_name", f"{field} {name!r} is no file name")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"^[A-Za-z]:", name):
        raise RecordError("unsafe_file_name", f"{field} {name!r} leaves its folder")
    if not path.name:
        raise RecordError("unsafe_file_name", f"{field} {name!r} is a folder")
    return str(path)


def read_picture(folder: Folder, names: Sequence[str], height: int | None = None, width: int | None = None) -> Picture:
    """The first picture there is of some names, checked.

    Args:
        folder: where it lies. names: safe names in it, the likeliest first. height, width: px, as annotated; None
            where the source does not say.
    Raises:
        RecordError: `image_missing` or `image_unreadable`. ImageError: what `images.check` finds.
        SourceError: the whole folder is gone. OSError: the disk or the network fails.
    """
    for name in names:
        try:
            data = folder.read(name)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in NAME_ERRORS:  # the disk or the network, not this record
                raise
            raise RecordError("image_unreadable", f"{name} cannot be read: {error.strerror}") from None
        try:
            header = images.check(data, height, width)
        except images.ImageError as error:
            raise RecordError(error.reason, f"{name}: {error}") from None
        return Picture(name=name, uri=(folder / name).uri, data=data, height=header.height, width=header.width)
    if folder.kind() != "folder":  # not this record's fault: the source went away
        raise SourceError(f"{folder.uri}: the image folder is gone")
    raise RecordError("image_missing", f"{names[0]} is not in the image folder")


def numbered_key(namespace: str, image_id: int) -> str:
    """Identity of a picture that has a number: `coco/000000000139`, the same for its 2014 and 2017 file names."""
    return f"{namespace}/{image_id:012d}"


def coco_id(name: str) -> int | None:
    """The COCO number in a file name: `train2017/000000000139.jpg`, `COCO_train2014_000000000139.jpg`; else None."""
    found = _COCO_NAME.fullmatch(name)
    return int(found.group(1)) if found else None


def coco_names(image_id: int, name: str) -> list[str]:
    """Where a COCO picture may lie below a folder: as it is named, and in folders of the 2017 and 2014 releases.

    The releases hold the same pictures, split otherwise; a picture of train2014 lies in train2017 or val2017.
    """
    new, base = f"{image_id:012d}.jpg", PurePosixPath(name).name
    places = [f"{folder}/{new if '2017' in folder else base}" for folder in COCO_FOLDERS]
    old = [f"{folder}/COCO_{folder.rpartition('/')[2]}_{new}" for folder in COCO_FOLDERS if "2014" in folder]
    return list(dict.fromkeys([name, base, new, *places, *old]))


def sample_of(
    context: Context,
    picture: Picture | None,
    *,
    key: str,
    file: str,
    record: str,
    license: License | None = None,
) -> Sample:
    """The sample of a picture with nothing in it yet. Its id is `{source}/{split}/{key}/{task}`.

    Args:
        picture: None for text alone. key: identity of the picture across sources. file, record: where it comes from.
        license: of this picture, where the source says it; else the sample carries the source's own.
    """
    image = None
    if picture is not None and context.options.images == "embed":
        image = Image(bytes=picture.data, path=picture.name)
    elif picture is not None:
        image = Image(bytes=None, path=picture.uri)
    return Sample(
        sample_id=f"{context.source}/{context.part.split}/{key}/{context.task}",
        task=context.task,  # type: ignore[arg-type]
        source=context.source,
        split=context.part.split,
        image=image,
        image_key=key,
        height=picture.height if picture is not None else 0,
        width=picture.width if picture is not None else 0,
        license=license or context.about.license,
        provenance=Provenance(
            file=file,
            record=record,
            builder=context.builder,
            version=context.version,
            seed=context.seed,
            url=context.about.url,
        ),
    )
