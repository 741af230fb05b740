"""The index of a COCO file: its own JSON records, grouped by image and sorted by id.

Layout read: `images[{id, …}]`, `annotations[{image_id, …}]` (instances, with an `id`; panoptic, one an image),
`categories[{id, name}]`, `licenses[{id, name, url}]`. Records stay the source's own text, so that a bad one can be
quoted exactly. Memory is bounded: texts are spilled to disk and gathered in order, 28 bytes a record stay in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import xxhash

from dataengine.builder import SourceError
from dataengine.jsonstream import Record, iter_records, shown
from dataengine.records import MAX_PAYLOAD, Account, Bad
from dataengine.store.files import Folder

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_BATCH = 256
MAX_BAD = 100_000  # more bad records than this are not bad records but the wrong file
MAX_KEYS = 1000  # as are more keys than this at the top
REQUIRED = ("images", "annotations", "categories")


@dataclass(slots=True, kw_only=True)
class Index:
    """What indexing found. account: the records that did not reach a row, and nothing else.

    categories: the source's records, checked to have an id and a name. licenses: name and URL by id. namespace: whose
    image ids these are. sha256: of the file. fingerprint: of the index's content.
    """

    images: int = 0
    annotations: int = 0
    categories: list[dict[str, Any]] = field(default_factory=list)
    licenses: dict[str, list[str | None]] = field(default_factory=dict)
    namespace: str | None = None
    bad: list[Bad] = field(default_factory=list)
    sha256: str = ""
    fingerprint: str = ""

    @property
    def account(self) -> Account:
        account = Account(read=Counter(bad.unit for bad in self.bad))
        account.quarantine(self.bad)
        return account


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One image of the index with its annotations, as the source's own JSON text."""

    image_id: int
    image: str
    annotations: tuple[str, ...]


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


class _Hashing:
    """A file that is hashed while it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        return data

    def hexdigest(self) -> str:
        while self.read(1 << 20):
            pass
        return self._digest.hexdigest()


def build_index(file: BinaryIO, name: str, target: Path, *, key: str = "id") -> Index:
    """Read a COCO file once and write its Arrow index: one row an image, sorted by image id.

    Args:
        file: `instances_{split}.json` or `panoptic_{split}.json`, opened.
        name: what messages call it.
        target: the Arrow IPC file to write (image_id: int64, image: binary, annotations: list<binary>).
        key: what identifies an annotation: `id`, or `image_id` for panoptic files.
    Raises:
        SourceError: the file is damaged, or not a COCO file: it lacks a list of images, annotations or categories, or
            holds no image or no category.
    """
    index = Index()
    lists: dict[str, bool] = {}
    sections: Counter[str] = Counter()
    hashing = _Hashing(file)
    with (
        tempfile.TemporaryFile(dir=target.parent) as image_file,
        tempfile.TemporaryFile(dir=target.parent) as annotation_file,
    ):
        images, found = _Spill(image_file), _Spill(annotation_file)
        for record in iter_records(cast("BinaryIO", hashing), name, lists):
            sections[record.section] += 1
            if len(lists) > MAX_KEYS:
                raise SourceError(f"{name}: no COCO file: it has more than {MAX_KEYS:,} keys")
            if record.section in REQUIRED and not lists[record.section]:
                continue
            if record.section == "images":
                _add(index, images, name, record, ("id", "id"))
            elif record.section == "annotations":
                _add(index, found, name, record, ("image_id", key))
            elif record.section == "categories":
                _add_category(index, name, record)
            elif record.section == "licenses":
                _add_license(index, record)
            elif record.section == "info":
                _add_info(index, record)
        _check_sections(name, lists, sections)
        _write(index, name, images, found, target)
    index.sha256 = hashing.hexdigest()
    return index


def is_whole(value: Any) -> bool:
    """Whether a JSON value can be an id: a whole number from 0 that fits 62 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def checked_namespace(text: Any) -> str:
    """A name of image ids, as it stands in keys of pictures and in file names.

    Raises:
        ValueError: it is no text of 1 to 40 small letters, digits, `_` and `-`.
    """
    if not isinstance(text, str) or not re.fullmatch(r"[a-z0-9_-]{1,40}", text):
        raise ValueError(f"image_namespace {text!r} must be 1 to 40 small letters, digits, _ or -")
    return text


def _check_sections(name: str, lists: Mapping[str, bool], records: Mapping[str, int]) -> None:
    """See `build_index`. lists: the file's keys, and whether each is a list. records: how many each holds."""
    keys = ", ".join(shown(key) for key in list(lists)[:20]) or "none"
    missing = [section for section in REQUIRED if section not in lists]
    if missing:
        raise SourceError(f"{name}: no COCO file: {', '.join(missing)} missing; its keys are: {keys}")
    other = [section for section in REQUIRED if not lists[section]]
    if other:
        raise SourceError(f"{name}: no COCO file: {other[0]} must be a list; its keys are: {keys}")
    for section, one in (("images", "image"), ("categories", "category")):
        if not records.get(section):
            raise SourceError(f"{name}: it holds no {one}")


def _add_category(index: Index, name: str, record: Record) -> None:
    value = record.value
    usable = isinstance(value, dict) and is_whole(value.get("id")) and isinstance(value.get("name"), str)
    if not usable or value["id"] >= 1 << 31:
        problem = record.error or "a category needs a whole-number id and a name"
        raise SourceError(f"{name}: categories[{record.position}]: {problem}")
    if any(category["id"] == value["id"] for category in index.categories):
        raise SourceError(f"{name}: category id {value['id']} is given twice")
    index.categories.append(value)


def _add_license(index: Index, record: Record) -> None:
    value = record.value
    if isinstance(value, dict) and is_whole(value.get("id")):
        entries = [value.get("name"), value.get("url")]
        texts = [e.encode("utf-8", "replace").decode() if isinstance(e, str) else None for e in entries]
        index.licenses[str(value["id"])] = texts


def _add_info(index: Index, record: Record) -> None:
    value = record.value.get("image_namespace") if isinstance(record.value, dict) else None
    with contextlib.suppress(ValueError):
        index.namespace = checked_namespace(value)


def _add(index: Index, spill: _Spill, name: str, record: Record, keys: tuple[str, str]) -> None:
    value = record.value
    wrong = [key for key in keys if not isinstance(value, dict) or not is_whole(value.get(key))]
    if wrong:
        _refuse(
            index,
            Bad(
                unit=record.section,
                file=name,
                record=f"{record.section}[{record.position}]",
                reason="bad_json" if record.error else "bad_field",
                message=record.error or f"{wrong[0]} must be a whole number",
                payload=record.text[:MAX_PAYLOAD],
            ),
        )
    else:
        spill.add(value[keys[0]], value[keys[1]], record.text)


def _refuse(index: Index, bad: Bad) -> None:
    index.bad.append(bad)
    if len(index.bad) > MAX_BAD:
        raise SourceError(f"{bad.file}: more than {MAX_BAD} records cannot be used; the last one: {bad}")


def _write(index: Index, name: str, images: _Spill, found: _Spill, target: Path) -> None:
    import pyarrow as pa

    schema = pa.schema([("image_id", pa.int64()), ("image", pa.binary()), ("annotations", pa.list_(pa.binary()))])
    pictures = _without_duplicates(index, name, images.ordered(), images, "image", 0)
    rows = _without_duplicates(index, name, found.ordered(), found, "annotation", 1)
    known = np.isin(rows[:, 0], pictures[:, 0])
    for owner, key, offset, length in rows[~known].tolist():
        text = found.text(offset, length)
        _refuse_text(index, name, ("annotation", key, owner), "unknown_image", f"image {owner} does not exist", text)
    rows = rows[known]
    first = np.searchsorted(rows[:, 0], pictures[:, 0], "left")
    last = np.searchsorted(rows[:, 0], pictures[:, 0], "right")
    index.images, index.annotations = len(pictures), len(rows)
    digest = xxhash.xxh3_128()
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(pictures), ROWS_PER_BATCH):
            chunk = slice(start, start + ROWS_PER_BATCH)
            texts = [images.text(o, n) for _, _, o, n in pictures[chunk].tolist()]
            groups = [
                [found.text(o, n) for _, _, o, n in rows[a:b].tolist()]
                for a, b in zip(first[chunk], last[chunk], strict=True)
            ]
            for text, group in zip(texts, groups, strict=True):
                for part in (text, *group):
                    digest.update(len(part).to_bytes(8, "little") + part)
                digest.update(b"\n")
            columns = [pa.array(pictures[chunk, 0]), pa.array(texts, pa.binary()), pa.array(groups, schema[2].type)]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    index.fingerprint = digest.hexdigest()


def _without_duplicates(index: Index, name: str, rows: np.ndarray, spill: _Spill, kind: str, column: int) -> np.ndarray:
    """The first record in the file of each id; the others are bad."""
    by_id = np.lexsort((rows[:, 2], rows[:, column]))
    ids = rows[by_id, column]
    again = np.zeros(len(rows), dtype=bool)
    again[by_id[1:]] = ids[1:] == ids[:-1]
    for owner, key, offset, length in rows[again].tolist():
        text = spill.text(offset, length)
        _refuse_text(index, name, (kind, key, owner), f"duplicate_{kind}", f"id {key} is given twice", text)
    return rows[~again]


def _refuse_text(index: Index, name: str, what: tuple[str, int, int], reason: str, message: str, text: bytes) -> None:
    kind, key, owner = what
    payload = text.decode("utf-8", "replace")[:MAX_PAYLOAD]
    record = f"{kind} {key}" + (f" (image {owner})" if kind == "annotation" else "")
    _refuse(
        index,
        Bad(
            unit=f"{kind}s",
            file=name,
            record=record,
            group=str(owner),
            reason=reason,
            message=message,
            payload=payload,
        ),
    )


def read_index(index: Folder, start: int = 0, stop: int | None = None) -> Iterator[Row]:
    """Rows of an index file, in order; of a remote one only the parts that hold them are fetched."""
    import pyarrow as pa

    with pa.memory_map(str(index.path)) if index.is_local else index.open() as source:
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


def select(path: Path, groups: set[str], target: Path) -> int:
    """Write an index of only those images; returns how many there are."""
    import pyarrow as pa

    wanted = np.array(sorted(int(g) for g in groups if g.isdecimal()), dtype=np.int64)
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        chosen = [
            batch.filter(pa.array(np.isin(np.asarray(batch.column("image_id")), wanted)))
            for batch in (reader.get_batch(number) for number in range(reader.num_record_batches))
        ]
        table = pa.Table.from_batches(chosen, schema=reader.schema).combine_chunks()
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, reader.schema) as writer:
            writer.write_table(table, max_chunksize=ROWS_PER_BATCH)
        return table.num_rows
