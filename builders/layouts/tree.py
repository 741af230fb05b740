"""Writes a tree of published layouts: every picture once, its records to sections on disk, the files from these.

Memory is bounded by a few pictures a worker. The tree appears under its name only when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from builders.layouts.pickles import pickled
from builders.layouts.picture import FIRST_ID, TRAIN, VAL, Picture, Record, draw_picture
from builders.world import STYLES, VERSION
from builders.world_tree import LICENSE, in_order

CHUNK = 16  # pictures a task
VAL_SHARE = 5  # one picture of so many is of val2017
Records = Callable[[Picture], Iterable[tuple[str, Record]]]  # to be imported by workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a family of datasets is laid out.

    records: shows a picture where the layout wants it, writes its own small files, and gives its records with the
    section that each goes to. write: the files that hold records of many pictures.
    """

    records: Records
    write: Callable[[Sections], None] = lambda _: None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSummary:
    """What was written. images: in train2017 and val2017. records: how many by section, such as `refcoco/refs(unc)`."""

    root: Path
    seed: int
    layouts: tuple[str, ...]
    images: dict[str, int]
    records: dict[str, int]

    def __str__(self) -> str:
        images = " and ".join(f"{number:,} of {split}" for split, number in self.images.items())
        return f"{self.root}: {images} images as {', '.join(self.layouts)} (seed {self.seed})"


class Sections:
    """Records by section, in the order of the pictures; and the tree that files are written to."""

    def __init__(self, folder: Path, root: Path, seed: int) -> None:
        self.folder, self.root, self.seed = folder, root, seed
        self.counts: Counter[str] = Counter()

    def add(self, name: str, lines: bytes, number: int) -> None:
        """Append JSON lines."""
        with self._path(name).open("ab") as file:
            file.write(lines)
        self.counts[name] += number

    def records(self, name: str) -> Iterator[Any]:
        return map(json.loads, self._lines(name))

    def write_list(self, path: str, records: str | Iterable[Record]) -> None:
        """A JSON list, of a section or of records."""
        with self._open(path) as file:
            self._dump(file, records)
            file.write(b"\n")

    def write_object(self, path: str, head: Record, **bodies: str) -> None:
        """A JSON object: its head, and a list for each section named."""
        with self._open(path) as file:
            file.write(json.dumps(head).removesuffix("}").encode())
            for place, (key, section) in enumerate(bodies.items()):
                file.write(f"{',' if head or place else ''}\n{json.dumps(key)}: ".encode())
                self._dump(file, section)
            file.write(b"}\n")

    def write_text(self, path: str, lines: Iterable[str]) -> None:
        with self._open(path) as file:
            file.writelines(f"{line}\n".encode() for line in lines)

    def write_lines(self, path: str, *sections: str) -> None:
        """JSON lines, of one section after the other."""
        with self._open(path) as file:
            for section in sections:
                file.writelines(self._lines(section))

    def write_bytes(self, path: str, data: bytes) -> None:
        with self._open(path) as file:
            file.write(data)

    def write_pickle(self, path: str, section: str, protocol: int) -> None:
        """A list as Python 2 would have pickled it."""
        with self._open(path) as file:
            file.writelines(pickled(self.records(section), protocol))

    def info(self, description: str) -> Record:
        return {
            "info": {
                "description": f"Shapes, a procedural world: {description}",
                "version": VERSION,
                "seed": self.seed,
            },
            "licenses": [LICENSE],
        }

    def _path(self, name: str) -> Path:
        return self.folder / name.replace("/", "|")

    def _lines(self, name: str) -> Iterator[bytes]:
        if self._path(name).exists():  # else no picture had any
            with self._path(name).open("rb") as file:
                yield from file

    def _open(self, path: str) -> Any:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.open("wb")

    def _dump(self, file: Any, records: str | Iterable[Record]) -> None:
        lines = self._lines(records) if isinstance(records, str) else map(_line, records)
        mark = b"[\n"
        for line in lines:
            file.write(mark + line.rstrip(b"\n"))
            mark = b",\n"
        file.write(b"[]" if mark == b"[\n" else b"\n]")


def _line(record: Record) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


# --- a tree ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What a worker needs to know. records: of the layouts. work: folder with `tree` and `jpegs`."""

    seed: int
    quality: int
    records: tuple[Records, ...]
    work: Path
    style: str


def write_layouts(
    root: Path,
    num_images: int,
    layouts: Mapping[str, Layout],
    *,
    seed: int = 0,
    workers: int = 1,
    quality: int = 90,
    style: str = "world",
) -> PublishedSummary:
    """Write the world in some layouts. Picture n of a split is the same whatever else is written.

    Args:
        root: the folder of all layouts; must not hold anything yet.
        num_images: of COCO train2017 and val2017 together, a fifth of which is val2017.
        workers: processes; 1 draws in this one. style: one of `world.STYLES`.
    Raises:
        FileExistsError: the folder is not empty.
        ValueError: an argument is out of range.
    """
    if num_images < 2 or workers < 1 or not 1 <= quality <= 100:
        raise ValueError(
            f"at least 2 images ({num_images}), 1 worker ({workers}), quality 1..100 ({quality}) are needed"
        )
    num_val = max(1, num_images // VAL_SHARE)
    images = {TRAIN: num_images - num_val, VAL: num_val}
    if style not in STYLES:
        raise ValueError(f"there is no style {style!r}; there are {', '.join(STYLES)}")
    if images[TRAIN] >= FIRST_ID[VAL]:
        raise ValueError(
            f"{images[TRAIN]:,} images of {TRAIN} would share ids with {VAL}, which starts at {FIRST_ID[VAL]:,}"
        )
    root = Path(root)
    _refuse_existing(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    chunks = [
        (split, start, min(start + CHUNK, number))
        for split, number in images.items()
        for start in range(0, number, CHUNK)
    ]
    try:
        for name in ("tree", "jpegs", "sections"):
            (work / name).mkdir()
        records = tuple(layout.records for layout in layouts.values())
        job = _Job(seed=seed, quality=quality, records=records, work=work, style=style)
        sections = Sections(work / "sections", work / "tree", seed)
        for chunk in in_order(partial(_draw_chunk, job), chunks, workers):
            for name, (lines, number) in chunk.items():
                sections.add(name, lines, number)
        for layout in layouts.values():
            layout.write(sections)
        _refuse_existing(root)
        os.replace(work / "tree", root)  # an empty folder may be replaced
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return PublishedSummary(
        root=root, seed=seed, layouts=tuple(layouts), images=images, records=dict(sorted(sections.counts.items()))
    )


def _refuse_existing(root: Path) -> None:
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise FileExistsError(f"{root} exists; published layouts are written once, to a folder of their own")


def _draw_chunk(job: _Job, chunk: tuple[str, int, int]) -> dict[str, tuple[bytes, int]]:
    """JSON lines by section, and how many, of some pictures."""
    split, start, stop = chunk
    lines: dict[str, list[bytes]] = {}
    for number in range(start, stop):
        picture = draw_picture(job.seed, split, number, job.work / "jpegs", job.work / "tree", job.quality, job.style)
        for records in job.records:
            for section, record in records(picture):
                lines.setdefault(section, []).append(_line(record))
        picture.jpeg.unlink()
    return {section: (b"".join(parts), len(parts)) for section, parts in lines.items()}
