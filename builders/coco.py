"""COCO instances: finds an annotation file, indexes it by image, and turns an index row into checked values.

Layout read: `images[{id, file_name, height, width}]`, `annotations[{id, image_id, category_id, bbox, area, iscrowd,
segmentation}]`, `categories[{id, name, supercategory}]`; train2014 and train2017 naming alike. The index holds the
source's own JSON records, grouped by image and sorted by id, so that a bad record can be quoted exactly.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from dataengine import masks
from dataengine.jsonstream import Record, SourceError, iter_records
from dataengine.sample import Object

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
ROWS_PER_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """A record that cannot be built: where it stands, why, and what it is."""

    file: str
    record: str
    reason: str
    message: str
    payload: str

    def __str__(self) -> str:
        return f"{self.file}: {self.record}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A category of the source; `name` as published, `text` as it is written in a conversation."""

    id: int
    name: str
    text: str


@dataclass(slots=True, kw_only=True)
class Index:
    """What indexing found: `images_read = images + bad images`, `annotations_read = annotations + bad annotations`."""

    images: int = 0
    annotations: int = 0
    images_read: int = 0
    annotations_read: int = 0
    categories: list[Category] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)

    def reasons(self) -> Counter[str]:
        return Counter(bad.reason for bad in self.bad)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One image of the index with its annotations, as the source's own JSON text."""

    image_id: int
    image: str
    annotations: tuple[str, ...]


def clean_name(name: str) -> str:
    """A category name as it is written in a prompt: X-SAM's AAAI form ("sky-other-merged" becomes "sky")."""
    for suffix in ("-merged", "-other", "-stuff"):
        name = name.replace(suffix, "")
    return name.replace("-", " ").lower()


def image_key(namespace: str, image_id: int) -> str:
    """Identity of a picture across sources: `coco/000000000139`, the same for the 2014 and 2017 file names."""
    return f"{namespace}/{image_id:012d}"


def safe_file_name(name: Any) -> str:
    """A relative path that stays inside its folder.

    Raises:
        ValueError: it is no text, empty, absolute, or climbs out with `..`.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"file_name {name!r} is no file name")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"^[A-Za-z]:", name):
        raise ValueError(f"file_name {name!r} leaves the image folder")
    return str(path)


class _Spill:
    """Record texts on disk, with what is needed to read them in another order: 28 bytes a record in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.owner: list[np.ndarray] = []
        self._rows: list[tuple[int, int, int, int]] = []
        self._end = 0

    def add(self, owner: int, key: int, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        self.file.write(data)
        self._rows.append((owner, key, self._end, len(data)))
        self._end += len(data)
        if len(self._rows) == 1 << 16:
            self._pack()

    def _pack(self) -> None:
        if self._rows:
            self.owner.append(np.array(self._rows, dtype=np.int64))
            self._rows = []

    def ordered(self) -> np.ndarray:
        """(n, 4) int64 of owner, key, offset, length, sorted by owner, then key."""
        self._pack()
        if not self.owner:
            return np.zeros((0, 4), dtype=np.int64)
        rows = np.concatenate(self.owner)
        return rows[np.lexsort((rows[:, 1], rows[:, 0]))]

    def text(self, offset: int, length: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(length)


def build_index(annotations: Path, target: Path) -> Index:
    """Read an instances file once and write its Arrow index: one row an image, sorted by image id.

    Memory is bounded: records are spilled to a temporary file beside the target and gathered in order.

    Args:
        annotations: `instances_{split}.json`.
        target: the Arrow IPC file to write (image_id: int64, image: binary, annotations: list<binary>).
    Raises:
        SourceError: the file is missing, damaged, or not a COCO instances file.
    """
    name = annotations.name
    index = Index()
    sections: Counter[str] = Counter()
    try:
        source = annotations.open("rb")
    except OSError as error:
        raise SourceError(f"{annotations}: {error.strerror}") from None
    with (
        source,
        tempfile.TemporaryFile(dir=target.parent) as image_file,
        tempfile.TemporaryFile(dir=target.parent) as annotation_file,
    ):
        images, found = _Spill(image_file), _Spill(annotation_file)
        for record in iter_records(source, name):
            sections[record.section] += 1
            if record.section == "categories":
                _add_category(index, name, record)
            elif record.section == "images":
                index.images_read += 1
                _add(index, images, name, record, ("id", "id"))
            elif record.section == "annotations":
                index.annotations_read += 1
                _add(index, found, name, record, ("image_id", "id"))
        missing = [s for s in ("images", "annotations", "categories") if s not in sections]
        if "images" in missing or "categories" in missing:
            raise SourceError(f"{name}: no COCO instances file: {', '.join(missing)} missing or empty")
        _write(index, name, images, found, target)
    return index


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _add_category(index: Index, name: str, record: Record) -> None:
    value = record.value
    if not isinstance(value, dict) or not _whole(value.get("id")) or not isinstance(value.get("name"), str):
        raise SourceError(f"{name}: category {record.position} needs a whole-number id and a name")
    if any(category.id == value["id"] for category in index.categories):
        raise SourceError(f"{name}: category id {value['id']} is given twice")
    text = clean_name(value["name"])
    index.categories.append(Category(id=value["id"], name=value["name"], text=text))


def _add(index: Index, spill: _Spill, name: str, record: Record, keys: tuple[str, str]) -> None:
    value = record.value
    kind = record.section.removesuffix("s")
    wrong = [key for key in keys if not isinstance(value, dict) or not _whole(value.get(key))]
    if wrong:
        message = f"{wrong[0]} must be a whole number"
        place = f"{kind} number {record.position}"
        index.bad.append(
            Bad(file=name, record=place, reason="bad_field", message=message, payload=record.text[: 1 << 20])
        )
        return
    spill.add(value[keys[0]], value[keys[1]], record.text)


def _write(index: Index, name: str, images: _Spill, found: _Spill, target: Path) -> None:
    import pyarrow as pa

    schema = pa.schema([("image_id", pa.int64()), ("image", pa.binary()), ("annotations", pa.list_(pa.binary()))])
    pictures = _without_duplicates(index, name, images.ordered(), images, "image", 0)
    rows = _without_duplicates(index, name, found.ordered(), found, "annotation", 1)
    known = np.isin(rows[:, 0], pictures[:, 0])
    for owner, key, offset, length in rows[~known].tolist():
        _refuse(
            index, name, f"annotation {key}", "unknown_image", f"image {owner} does not exist", found, offset, length
        )
    rows = rows[known]
    first = np.searchsorted(rows[:, 0], pictures[:, 0], "left")
    last = np.searchsorted(rows[:, 0], pictures[:, 0], "right")
    index.images, index.annotations = len(pictures), len(rows)
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(pictures), ROWS_PER_BATCH):
            chunk = slice(start, start + ROWS_PER_BATCH)
            columns = [
                pa.array(pictures[chunk, 0]),
                pa.array([images.text(int(o), int(n)) for _, _, o, n in pictures[chunk]], pa.binary()),
                pa.array(
                    [
                        [found.text(int(o), int(n)) for _, _, o, n in rows[a:b]]
                        for a, b in zip(first[chunk], last[chunk], strict=True)
                    ],
                    pa.list_(pa.binary()),
                ),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _without_duplicates(index: Index, name: str, rows: np.ndarray, spill: _Spill, kind: str, column: int) -> np.ndarray:
    """The first record in the file of each id; the others are bad."""
    by_id = np.lexsort((rows[:, 2], rows[:, column]))
    ids = rows[by_id, column]
    again = np.zeros(len(rows), dtype=bool)
    again[by_id[1:]] = ids[1:] == ids[:-1]
    for _, key, offset, length in rows[again].tolist():
        _refuse(index, name, f"{kind} {key}", f"duplicate_{kind}", f"id {key} is given twice", spill, offset, length)
    return rows[~again]


def _refuse(
    index: Index, name: str, record: str, reason: str, message: str, spill: _Spill, offset: int, length: int
) -> None:
    payload = spill.text(offset, length).decode("utf-8", "replace")
    index.bad.append(Bad(file=name, record=record, reason=reason, message=message, payload=payload))


def read_index(path: Path, start: int = 0, stop: int | None = None) -> Iterator[Row]:
    """Rows of an index, memory-mapped, in order."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(start // ROWS_PER_BATCH, reader.num_record_batches):
            base = number * ROWS_PER_BATCH
            if stop is not None and base >= stop:
                return
            batch: pa.RecordBatch = reader.get_batch(number)
            end = len(batch) if stop is None else min(len(batch), stop - base)
            for entry in batch.slice(max(0, start - base), end - max(0, start - base)).to_pylist():
                yield Row(
                    image_id=entry["image_id"],
                    image=entry["image"].decode("utf-8", "surrogatepass"),
                    annotations=tuple(a.decode("utf-8", "surrogatepass") for a in entry["annotations"]),
                )


def objects_of(row: Row, file: str, height: int, width: int, categories: set[int]) -> tuple[list[Object], list[Bad]]:
    """The objects of one image, and the annotations that cannot be used.

    Every annotation is in exactly one of the two. Crowds are kept, flagged.
    """
    objects, bad = [], []
    for text in row.annotations:
        value = json.loads(text)
        try:
            objects.append(_object(value, height, width, categories))
        except masks.MaskError as error:
            where = f"annotation {value['id']} (image {row.image_id})"
            bad.append(Bad(file=file, record=where, reason=error.reason, message=str(error), payload=text))
    return objects, bad


def _object(value: dict[str, Any], height: int, width: int, categories: set[int]) -> Object:
    category = value.get("category_id")
    if not _whole(category) or category not in categories:
        raise masks.MaskError("unknown_category", f"category {category!r} does not exist")
    rle = masks.rle_from_segmentation(value.get("segmentation"), height, width)
    x, y, w, h = masks.bbox_xywh(rle, height, width)
    return Object(
        rle=rle,
        bbox=(float(x), float(y), float(w), float(h)),
        area=masks.area(rle),
        category_id=value["category_id"],
        annotation_id=str(value["id"]),
        crowd=bool(value.get("iscrowd", 0)),
    )
