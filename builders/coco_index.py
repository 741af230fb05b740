"""The index of a COCO file: its own JSON records, grouped by image and sorted by id.

Layout read: `images[{id, …}]`, `annotations[{image_id, …}]` (instances, with an `id`; panoptic, one an image),
`categories[{id, name}]`, `licenses[{id, name, url}]`.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from builders.reading import is_whole
from builders.rows import Gathering, Hashing, Refused
from dataengine.builder import SourceError
from dataengine.jsonstream import Record, iter_records, shown
from dataengine.records import MAX_PAYLOAD, Account, Bad
from dataengine.store.files import Folder

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
    category_ids: set[int] = field(default_factory=set)
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


def build_index(file: BinaryIO, name: str, target: Path, *, key: str = "id") -> Index:
    """Read a COCO file once and write its Arrow index: one row an image, sorted by image id.

    Args:
        file: `instances_{split}.json` or `panoptic_{split}.json`, opened.
        name: what messages call it.
        target: the index to write; a row's key is the image id.
        key: what identifies an annotation: `id`, or `image_id` for panoptic files.
    Raises:
        SourceError: the file is damaged, or not a COCO file: it lacks a list of images, annotations or categories, or
            holds no image or no category.
    """
    index = Index()
    lists: dict[str, bool] = {}
    sections: Counter[str] = Counter()
    hashing = Hashing(file)
    with Gathering(target.parent) as gathering:
        for record in iter_records(cast("BinaryIO", hashing), name, lists):
            sections[record.section] += 1
            if len(lists) > MAX_KEYS:
                raise SourceError(f"{name}: no COCO file: it has more than {MAX_KEYS:,} keys")
            if record.section in REQUIRED and not lists[record.section]:
                continue
            if record.section == "images":
                if _is_usable(index, name, record, ("id",)):
                    gathering.row(record.value["id"], str(record.value["id"]), record.text)
            elif record.section == "annotations":
                if _is_usable(index, name, record, ("image_id", key)):
                    gathering.member(record.value["image_id"], record.value[key], record.text)
            elif record.section == "categories":
                add_category(index, name, record)
            elif record.section == "licenses":
                add_license(index, record)
            elif record.section == "info":
                add_info(index, record)
        check_sections(name, lists, sections)
        for refused in gathering.settle():
            _refuse(index, _bad(name, refused))
        written = gathering.write(target)
    index.images, index.annotations, index.fingerprint = written.rows, written.members, written.fingerprint
    index.sha256 = hashing.hexdigest()
    return index


def index_file(place: Folder, name: str, target: Path, *, key: str = "id") -> Index:
    """`build_index` of a file where it stands, which errors name whole.

    Raises:
        SourceError: also where the file cannot be read.
    """
    try:
        file = place.open()
    except OSError as error:
        raise SourceError(f"{place.uri}: cannot be read: {error.strerror or error}") from None
    with file:
        try:
            return build_index(file, name, target, key=key)
        except SourceError as error:
            raise SourceError(f"{place.uri.removesuffix(name)}{error}") from None


def read_tables(file: BinaryIO, name: str) -> Index:
    """What a COCO file says besides images and annotations: categories, licenses, namespace; and its sha256.

    Args:
        file, name: as for `build_index`.
    Raises:
        SourceError: the file is damaged, or holds no list of categories.
    """
    index = Index()
    hashing = Hashing(file)
    for record in iter_records(cast("BinaryIO", hashing), name):
        if record.section == "categories":
            add_category(index, name, record)
        elif record.section == "licenses":
            add_license(index, record)
        elif record.section == "info":
            add_info(index, record)
    if not index.categories:
        raise SourceError(f"{name}: it holds no category")
    index.sha256 = hashing.hexdigest()
    return index


def checked_namespace(text: Any) -> str:
    """A name of image ids, as it stands in keys of pictures and in file names.

    Raises:
        ValueError: it is no text of 1 to 40 small letters, digits, `_` and `-`.
    """
    if not isinstance(text, str) or not re.fullmatch(r"[a-z0-9_-]{1,40}", text):
        raise ValueError(f"image_namespace {text!r} must be 1 to 40 small letters, digits, _ or -")
    return text


def check_sections(name: str, lists: Mapping[str, bool], records: Mapping[str, int]) -> None:
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


def add_category(index: Index, name: str, record: Record) -> None:
    value = record.value
    usable = isinstance(value, dict) and is_whole(value.get("id")) and isinstance(value.get("name"), str)
    if not usable or value["id"] >= 1 << 31:
        problem = record.error or "a category needs a whole-number id and a name"
        raise SourceError(f"{name}: categories[{record.position}]: {problem}")
    if value["id"] in index.category_ids:
        raise SourceError(f"{name}: category id {value['id']} is given twice")
    index.category_ids.add(value["id"])
    index.categories.append(value)


def add_license(index: Index, record: Record) -> None:
    value = record.value
    if isinstance(value, dict) and is_whole(value.get("id")):
        entries = [value.get("name"), value.get("url")]
        texts = [e.encode("utf-8", "replace").decode() if isinstance(e, str) else None for e in entries]
        index.licenses[str(value["id"])] = texts


def add_info(index: Index, record: Record) -> None:
    value = record.value.get("image_namespace") if isinstance(record.value, dict) else None
    with contextlib.suppress(ValueError):
        index.namespace = checked_namespace(value)


def _is_usable(index: Index, name: str, record: Record, keys: tuple[str, ...]) -> bool:
    """Whether a record has its numbers; one that has not is noted."""
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
    return not wrong


def _refuse(index: Index, bad: Bad) -> None:
    index.bad.append(bad)
    if len(index.bad) > MAX_BAD:
        raise SourceError(f"{bad.file}: more than {MAX_BAD} records cannot be used; the last one: {bad}")


def _bad(name: str, refused: Refused) -> Bad:
    """What is wrong with a record that has no place among the others."""
    reason, message = {
        "repeated_row": ("duplicate_image", f"id {refused.order} is given twice"),
        "repeated_member": ("duplicate_annotation", f"id {refused.order} is given twice"),
        "unknown_row": ("unknown_image", f"image {refused.owner} does not exist"),
    }[refused.reason]
    is_image = refused.reason == "repeated_row"
    return Bad(
        unit="images" if is_image else "annotations",
        file=name,
        record=f"image {refused.order}" if is_image else f"annotation {refused.order} (image {refused.owner})",
        group=str(refused.owner),
        reason=reason,
        message=message,
        payload=refused.text[:MAX_PAYLOAD],
    )
