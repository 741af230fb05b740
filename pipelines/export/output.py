"""What all exporters share: the output folder, its pictures, names that are safe as file names, JSON lists."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import IO, Any

from dataengine import images
from dataengine.errors import ReasonError, UserError
from dataengine.sample import Image, Sample
from dataengine.store.dataset import picture_of
from dataengine.store.files import Folder

PICTURES = ("copy", "link", "none")
SCRATCH = ".scratch"
_SIGNATURES = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp"}
Key = tuple[str, str]  # source, split


class LeftOut(ReasonError):
    """Samples that a layout cannot hold."""


def unit_of(sample: Sample) -> str:
    """What samples are counted by: the task, and the variant of those that have one."""
    return sample.task if sample.variant is None else f"{sample.task} {sample.variant}"


def safe_name(text: str) -> str:
    """A file name without dots, of at most 100 characters, different for different texts.

    `coco/000000000139` becomes `000000000139`, as COCO names its files, and `sa1b/sa_7` becomes `sa_7`, as SA-1B does;
    `shapes/7` becomes `shapes_7`; whatever does not read like that carries a hash.
    """
    if re.fullmatch(r"coco/[0-9]{12}|sa1b/sa_[0-9]{1,18}", text):
        return text[5:]
    if re.fullmatch(r"(?!sa/)[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9_-]+", text) and len(text) <= 100:
        return text.replace("/", "_")
    return _hashed(text)


def safe_folder(text: str) -> str:
    """A name of a split or source as part of a file name: itself, where it can be."""
    return text if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}", text) else _hashed(text)


def without_year(split: str) -> str:
    """A split as derived published files name it: `val2017` is `val`."""
    return re.sub("20[0-9]{2}$", "", split) or split


def _hashed(text: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", text).lstrip("-")[:60]
    return f"{plain}~{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def compressed(rle: bytes, height: int, width: int) -> dict[str, Any]:
    """A mask as COCO's JSON says it: `{"size": [h, w], "counts": ascii}`."""
    return {"size": [height, width], "counts": rle.decode("ascii")}


class Output:
    """The folder of an export while it is written."""

    def __init__(self, root: Path, manifest: dict[str, Any], pictures: str) -> None:
        self.root, self.manifest, self.pictures = root, manifest, pictures
        self.parts: dict[str, Counter[str]] = {}
        self._number = 0
        (root / SCRATCH).mkdir()

    def note(self, sample: Sample, what: str, number: int = 1) -> None:
        """Count parts of a written sample that the layout cannot hold."""
        if number:
            self.parts.setdefault(unit_of(sample), Counter())[what] += number

    def scratch(self) -> Path:
        """A fresh place for something whose name is known at the end."""
        self._number += 1
        return self.root / SCRATCH / str(self._number)

    def categories(self, sample: Sample) -> list[dict[str, Any]]:
        """The categories of a sample's source, by ascending id: id, name, text, is_thing."""
        try:
            found: list[dict[str, Any]] = self.manifest["sources"][f"{sample.source}/{sample.split}"]["categories"]
        except KeyError:
            raise UserError(f"{sample.sample_id}: the manifest does not know {sample.source}/{sample.split}") from None
        return found

    def place(self, pattern: str, key: Key, several: bool) -> Path:
        """A final path, its folder made. `{split}` becomes the split's name, after the source's where there are several
        of the kind; `{source}` the source's."""
        source, split = (safe_folder(text) for text in key)
        path = self.root / pattern.format(split=f"{source}_{split}" if several else split, source=source)
        if path.exists():
            raise UserError(f"{path.name} would be written twice: sources and splits have names that run together")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def picture(self, sample: Sample, folder: str, stem: str | None = None) -> str:
        """Write a sample's picture into a folder of the output, once; the name by which it is found there.

        Args:
            stem: of its name, where the layout has one of its own; no other picture's.
        Raises:
            LeftOut: it cannot be read, or there is none.
        """
        if sample.image is None:
            raise LeftOut("no_picture", "the layout needs a picture")
        if self.pictures == "none" and sample.image.path:
            return sample.image.path
        name = (stem or safe_name(sample.image_key)) + suffix_of(sample)
        if self.pictures == "none":
            return name
        path = self.root / folder / name
        if not os.path.lexists(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.put(sample, sample.image, path)
        return name

    def put(self, sample: Sample, image: Image, path: Path) -> None:
        """Copy a sample's picture to a path, or link it.

        Raises:
            LeftOut: it cannot be read.
        """
        if self.pictures == "copy":
            path.write_bytes(picture_bytes(image, sample.height, sample.width))
        else:
            _link(image, path)

    def close(self) -> int:
        """Remove what is temporary; the number of files."""
        shutil.rmtree(self.root / SCRATCH)
        return sum(len(names) for _, _, names in os.walk(self.root))


def picture_bytes(image: Image, height: int, width: int) -> bytes:
    """The bytes of a picture; one by reference is checked again, because it may have changed.

    Raises:
        LeftOut: it is gone or no longer that picture.
    """
    try:
        data = picture_of(image)
        if image.bytes is None:
            images.check(data, height, width)
    except FileNotFoundError:
        raise LeftOut("picture_missing", f"{image.path} is gone") from None
    except images.ImageError as error:
        raise LeftOut(error.reason, str(error)) from None
    return data


def suffix_of(sample: Sample) -> str:
    """`.jpg`, `.png` or `.webp`, by the file's first bytes."""
    image = sample.image
    if image is None:
        raise LeftOut("no_picture", "the layout needs a picture")
    return suffix_of_image(image)


def suffix_of_image(image: Image) -> str:
    """See `suffix_of`."""
    try:
        if image.bytes is None and (place := Folder(image.path or "")).is_local:
            with place.open() as file:
                data = file.read(4)
        else:
            data = picture_of(image)
    except FileNotFoundError:
        raise LeftOut("picture_missing", f"{image.path} is gone") from None
    for signature, suffix in _SIGNATURES.items():
        if data.startswith(signature):
            return suffix
    raise LeftOut("image_unreadable", f"{image.path} is no JPEG, PNG or WEBP file")


def _link(image: Image, path: Path) -> None:
    place = Folder(image.path or "")
    if image.bytes is not None or not place.is_local:
        raise UserError("--pictures link: the dataset's pictures are no files of this machine; copy them")
    path.symlink_to(place.path.absolute())


class JsonLists:
    """JSON lists, one a source and split, written element by element and named at the end.

    pattern: of their names; see `Output.place`. yearless: `val2017` is called `val`, as in derived published files.
    """

    def __init__(self, output: Output, pattern: str, *, yearless: bool = False) -> None:
        self._output, self._pattern, self._yearless = output, pattern, yearless
        self._files: dict[Key, tuple[Path, IO[str]]] = {}
        self.lengths: Counter[Key] = Counter()

    def add(self, key: Key, record: Any) -> None:
        if key not in self._files:
            path = self._output.scratch()
            self._files[key] = path, path.open("w", encoding="ascii")
        file = self._files[key][1]
        file.write(",\n" if self.lengths[key] else "[\n")
        file.write(json.dumps(record, separators=(",", ":")))
        self.lengths[key] += 1

    def finish(self) -> None:
        several = len({source for source, _ in self._files}) > 1
        short = {key: (key[0], without_year(key[1])) for key in self._files}
        if not self._yearless or len(set(short.values())) < len(short):
            short = {key: key for key in self._files}
        for key, (path, file) in self._files.items():
            file.write("\n]\n")
            file.close()
            path.rename(self._output.place(self._pattern, short[key], several))
