"""Packages as a whole: a folder with the pictures, `package.json`, and a file in one of the layouts; and what a
reviewer's work on it means: decisions, masks that were changed or added, and records of which nothing comes.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from dataengine import images, masks
from dataengine.errors import ReasonError, UserError
from dataengine.images import ImageError
from dataengine.ledger.records import Action, Concept, Decision, Entry, Picture, State, entry_id_of, mask_id_of
from dataengine.sample import Image
from dataengine.store.dataset import picture_of
from dataengine.store.files import Folder
from dataengine.view.words import check_reviewer
from pipelines.export.output import PICTURES, safe_name
from pipelines.review.marks import (
    Found,
    Label,
    Mark,
    MarkError,
    Package,
    PackageError,
    Page,
    Refused,
    Slot,
    canonical,
    check_name,
    labels_of,
    plain,
)

LAYOUTS = ("coco", "cvat", "label-studio")
PACKAGE = "package.json"
FOLDER = "images"
SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
URL = f"/data/local-files/?d={FOLDER}/"  # as Label Studio serves the files of a folder
MAX_BYTES = 1 << 30  # of a file in an archive
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError)  # OSError: of bzip2
Work = Iterable[tuple[Picture, Sequence[Entry]]]


class Layout(Protocol):
    """A module that reads and writes the files of packages in one layout."""

    FILE: str

    def extras(self, package: Package) -> dict[str, bytes]: ...

    def dump(self, package: Package, pages: Sequence[Page]) -> bytes: ...

    def parse(self, file: BinaryIO, package: Package, reviewer: str = "") -> Found: ...


class Reviewed(NamedTuple):
    """What comes of a package: decisions; the masks that reviewers changed or added; records that were refused; seconds
    that all its pages took, as far as the tool tells."""

    decisions: list[Decision]
    entries: list[Entry]
    refused: list[Refused]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A package that was written. left_out: pictures that could not go out."""

    package: Package
    left_out: list[Refused]


def layout_of(name: str) -> Layout:
    """The module of a layout. Raises UserError."""
    if name not in LAYOUTS:
        raise UserError(f"{name!r:.40} is no layout; there are {', '.join(LAYOUTS)}")
    return cast(Layout, import_module(f"pipelines.review.{name.replace('-', '_')}"))


# --- out -------------------------------------------------------------------------------------------------------------


def write(
    folder: str | Path,
    layout: str,
    work: Work,
    *,
    concepts: Iterable[Concept] = (),
    step: int = 0,
    pictures: str = "copy",
    url: str = URL,
) -> Written:
    """Write a package of all entries of the given pictures.

    Args:
        folder: new or empty. concepts: labels that a reviewer may choose besides those of the entries. step: of the
            ledger, for the record. pictures: copy or link them, or none: only name them. url: see `Package`.
    Raises:
        UserError: the folder is not empty, or there is nothing to review.
    """
    root, module = Path(folder), layout_of(layout)
    if pictures not in PICTURES:
        raise UserError(f"pictures are {', '.join(PICTURES)}, not {pictures!r:.40}")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root}: a package needs a new or empty folder")
    found: list[tuple[Slot, Sequence[Entry]]] = []
    left_out: list[Refused] = []
    for picture, entries in work:
        if not entries:
            continue
        try:
            name = safe_name(picture.key) + _place(picture, root, pictures)
        except (ReasonError, OSError) as error:
            reason = error.reason if isinstance(error, ReasonError) else "picture_missing"
            left_out.append(Refused(record=picture.key, reason=reason, message=str(error)))
            continue
        ids = tuple(entry.entry_id for entry in entries)
        size = {"height": picture.height, "width": picture.width}
        found.append((Slot(name=name, key=picture.key, sha256=picture.sha256, entries=ids, **size), entries))
    if not found:
        why = f"; {left_out[0]}" if left_out else ""
        raise UserError(f"{root}: there is nothing to review{why}")
    labels = labels_of([*concepts, *(entry.concept for _, entries in found for entry in entries)])
    package = Package(layout=layout, step=step, url=url, labels=labels, slots=tuple(slot for slot, _ in found))
    pages = [Page(slot=slot, marks=[_mark_of(entry, package) for entry in entries]) for slot, entries in found]
    root.mkdir(parents=True, exist_ok=True)
    for name, data in {module.FILE: module.dump(package, pages), **module.extras(package)}.items():
        (root / name).write_bytes(data)
    (root / PACKAGE).write_text(json.dumps(_as_dict(package), indent=1) + "\n", encoding="ascii")
    return Written(package=package, left_out=left_out)


def _mark_of(entry: Entry, package: Package) -> Mark:
    label, reason = package.names[entry.concept], plain(entry.reason)
    return Mark(entry_id=entry.entry_id, label=label, rle=entry.rle, score=entry.score, reason=reason)


def _place(picture: Picture, root: Path, pictures: str) -> str:
    """Copy or link a picture, checked; the suffix of its name."""
    if pictures == "none":
        suffix = os.path.splitext(picture.path.partition("?")[0])[1].lower()
        return suffix if re.fullmatch(r"\.[a-z0-9]{1,5}", suffix) else ""
    data = picture_of(Image(bytes=None, path=picture.path))
    suffix = SUFFIXES[images.check(data, picture.height, picture.width).format]
    if hashlib.sha256(data).hexdigest() != picture.sha256:
        raise ImageError("image_changed", f"{picture.path} is another file than the ledger has seen")
    target = root / FOLDER / (safe_name(picture.key) + suffix)
    target.parent.mkdir(parents=True, exist_ok=True)
    if pictures == "copy":
        target.write_bytes(data)
    elif (place := Folder(picture.path)).is_local:
        target.symlink_to(place.path.absolute())
    else:
        raise ImageError("image_elsewhere", f"{picture.path} is no file of this machine and cannot be linked to")
    return suffix


def _as_dict(package: Package) -> dict[str, Any]:
    labels = [
        {"name": label.name, "text": label.concept.text, "category_id": label.concept.category_id}
        for label in package.labels
    ]
    fields = ("name", "key", "sha256", "height", "width", "entries")
    pictures = [{field: getattr(slot, field) for field in fields} for slot in package.slots]
    head = {"version": 1, "layout": package.layout, "step": package.step, "url": package.url}
    return {**head, "labels": labels, "pictures": pictures}


# --- in --------------------------------------------------------------------------------------------------------------


def load(folder: str | Path) -> Package:
    """What `package.json` of a package says.

    Raises:
        PackageError: `package_invalid`.
    """
    from pydantic import ValidationError

    from pipelines.review.schema import PackageFile

    try:
        read = PackageFile.model_validate_json(Folder(str(folder)).read(PACKAGE))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PackageError("package_invalid", f"{folder}: {PACKAGE}: {where}: {first['msg']}") from None
    labels = tuple(
        Label(name=label.name, concept=Concept(text=label.text, category_id=label.category_id)) for label in read.labels
    )
    slots = tuple(Slot(**slot.model_dump()) for slot in read.pictures)
    return Package(layout=read.layout, step=read.step, url=read.url, labels=labels, slots=slots)


def read(
    folder: str | Path,
    work: Work,
    *,
    reviewer: str,
    round: int,
    concepts: Iterable[Concept] = (),
    superseded: Set[str] = frozenset(),
    file: str | Path | None = None,
) -> Reviewed:
    """What a reviewer made of a package.

    Nothing is decided of what the reviewer said nothing about. A mask or label that was changed makes a new entry,
    unless the reviewer rejects the mask; so does an added mask. Of records that cannot be used nothing comes.

    Args:
        folder: of the package, as it was written. work: the pictures of the package with all their entries, as the
            ledger has them now. reviewer: a name. round: of the new entries. concepts: the ledger's categories.
        superseded: ids of entries in whose place another one stands. file: that came back, also in a ZIP archive; by
            default that in the folder.
    Raises:
        UserError: the package cannot be used as a whole.
    """
    check_reviewer(reviewer)
    package = load(folder)
    known = set(concepts)
    for label in package.labels:
        if label.concept.category_id >= 0 and label.concept not in known:
            raise PackageError("category_unknown", f"{folder}: {PACKAGE}: the ledger has no category {label.concept}")
    with _opened(Path(folder), file, layout_of(package.layout).FILE) as opened:
        found = layout_of(package.layout).parse(opened, package, reviewer)
    reader = _Reader(package, work, superseded, f"reviewer:{reviewer}", round, found)
    reader.read()
    seconds = sum(page.seconds or 0.0 for page in found.pages)
    return Reviewed(reader.decisions, reader.entries, found.refused, seconds)


@contextmanager
def _opened(folder: Path, file: str | Path | None, name: str) -> Iterator[BinaryIO]:
    """A package's file, or that which came back from a tool, alone or in an archive; nothing is unpacked."""
    path = folder / name if file is None else Path(file)
    with Folder(str(path)).open() as opened:
        if file is None or not zipfile.is_zipfile(opened):
            opened.seek(0)
            yield opened
            return
        try:
            with zipfile.ZipFile(opened) as archive, archive.open(_member(archive, path, name)) as member:
                yield cast(BinaryIO, member)
        except (*_BROKEN, RuntimeError, NotImplementedError) as error:
            raise PackageError("archive_invalid", f"{path}: {str(error) or 'the archive is cut off'}") from None


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> zipfile.ZipInfo:
    infos = archive.infolist()
    for info in infos:
        try:
            check_name(info.filename)
        except MarkError as error:
            raise PackageError(error.reason, f"{path}: {error}") from None
    suffix = name[name.rfind(".") :]
    found = [info for info in infos if info.filename.rpartition("/")[2] == name]
    found = found or [info for info in infos if info.filename.endswith(suffix) and "/" not in info.filename]
    if len(found) != 1:
        raise PackageError("archive_invalid", f"{path}: the archive has {len(found)} files {name}; one is needed")
    if found[0].file_size > MAX_BYTES:
        raise PackageError("archive_invalid", f"{path}: {name} has more than {MAX_BYTES:,} bytes")
    return found[0]


class _Reader:
    """Decisions on the pages of a package, while they are made."""

    def __init__(self, package: Package, work: Work, superseded: Set[str], by: str, round: int, found: Found) -> None:
        keys = {slot.key for slot in package.slots}
        self._work = {picture.key: (picture, list(entries)) for picture, entries in work if picture.key in keys}
        self._all = {entry.entry_id: entry for _, entries in self._work.values() for entry in entries}
        current = (entry for entry in self._all.values() if entry.entry_id not in superseded)
        self._masks = {entry.mask_id for entry in current if entry.state != "rejected"}
        self._package, self._superseded, self._by, self._round, self._found = package, superseded, by, round, found
        self.decisions: list[Decision] = []
        self.entries: list[Entry] = []

    def read(self) -> None:
        found = self._found
        pages = found.named + Counter(page.slot.name for page in found.pages)
        marks = found.named + Counter(mark.entry_id for page in found.pages for mark in page.marks if mark.entry_id)
        for page in found.pages:
            try:
                if pages[page.slot.name] > 1:
                    times = pages[page.slot.name]
                    raise MarkError("duplicate_picture", f"the file has the picture {times} times")
                self._read_page(page, marks)
            except MarkError as error:
                found.refuse("picture", error, page.slot.name)
        for slot in self._package.slots:
            if not pages[slot.name]:
                missing = MarkError("missing_picture", "the picture went out, but is not in the file")
                found.refuse("picture", missing, slot.name)

    def _read_page(self, page: Page, marks: Counter[str]) -> None:
        picture, entries = self._picture(page.slot)
        before = len(self.decisions)
        if page.bad:
            self._reject_all(page, entries)
        else:
            for mark in page.marks:
                try:
                    if marks[mark.entry_id] > 1:
                        raise MarkError("duplicate_id", f"the file has the entry_id {marks[mark.entry_id]} times")
                    self._read_mark(mark, page.slot, picture)
                except ReasonError as error:
                    self._found.refuse(f"{page.slot.name} mask", error, mark.entry_id)
            for entry_id in page.slot.entries:
                if not marks[entry_id]:
                    missing = MarkError("missing_record", "the entry went out and is not there; to reject it, say so")
                    self._found.refuse(f"{page.slot.name} mask", missing, entry_id)
        mine = self.decisions[before:]
        if page.seconds is not None and mine:  # the time spent on a page, divided among what was decided there
            self.decisions[before:] = [replace(each, seconds=page.seconds / len(mine)) for each in mine]

    def _picture(self, slot: Slot) -> tuple[Picture, list[Entry]]:
        """The picture of a slot as the ledger has it, whatever `package.json` says."""
        if slot.key not in self._work:
            raise MarkError("unknown_picture", f"the ledger has no picture {slot.key!r:.80}")
        picture, entries = self._work[slot.key]
        if (picture.height, picture.width) != (slot.height, slot.width):
            size = f"{picture.width} x {picture.height} px, not {slot.width} x {slot.height}"
            raise MarkError("image_size", f"the ledger's picture {slot.key!r:.80} has {size}")
        if picture.sha256 != slot.sha256:
            raise MarkError("other_picture", f"the ledger has another picture under the key {slot.key!r:.80}")
        return picture, entries

    def _reject_all(self, page: Page, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.state != "rejected" and entry.entry_id not in self._superseded:
                self._decide(entry, "rejected", "whole_image_bad")
        for mark in page.marks:
            if not mark.entry_id:
                error = MarkError("whole_image_bad", "the picture is bad as a whole: nothing is added to it")
                self._found.refuse(f"{page.slot.name} mask", error)

    def _read_mark(self, mark: Mark, slot: Slot, picture: Picture) -> None:
        rle = canonical(mark.rle, picture.height, picture.width)
        concept = self._package.concepts[mark.label]
        if not mark.entry_id:
            self._draw(picture, concept, rle, None)
            return
        entry = self._entry(mark.entry_id, slot)
        changed = [
            what
            for what, is_same in (
                ("mask", rle == canonical(entry.rle, picture.height, picture.width)),
                ("label", concept == entry.concept),
            )
            if not is_same
        ]
        if mark.said == "reject":
            self._decide(entry, "rejected", "reject")
        elif changed:
            new = self._draw(picture, concept, rle, entry)
            self._decide(entry, "rejected", "edit", f"{' and '.join(changed)} changed", new.entry_id)
        elif mark.said == "accept":
            self._decide(entry, "kept", "accept")

    def _entry(self, entry_id: str, slot: Slot) -> Entry:
        entry = self._all.get(entry_id)
        if entry is None:
            raise MarkError("unknown_id", "neither the package nor its pictures in the ledger have this entry")
        if entry.picture != slot.key:
            raise MarkError("other_picture", f"the entry is one of the picture {entry.picture!r:.80}")
        if entry_id not in slot.entries:
            raise MarkError("unknown_id", "the entry is none of those that went out")
        if entry_id in self._superseded:
            raise MarkError("superseded", "another entry stands in its place since it went out")
        return entry

    def _draw(self, picture: Picture, concept: Concept, rle: bytes, replaced: Entry | None) -> Entry:
        """The entry of a mask that the reviewer drew."""
        new = human_entry(picture, concept, rle, self._round, self._by, replaced)
        if new.mask_id in self._masks or new.entry_id in self._all:
            raise MarkError("duplicate_mask", "the picture has this mask under this name already")
        self._masks.add(new.mask_id)
        self.entries.append(new)
        return new

    def _decide(
        self, entry: Entry, state: State, action: Action, reason: str = "", replacement: str | None = None
    ) -> None:
        self.decisions.append(
            Decision(
                entry_id=entry.entry_id,
                state=state,
                by=self._by,
                action=action,
                reason=reason,
                replacement=replacement,
            )
        )


def human_entry(picture: Picture, concept: Concept, rle: bytes, round: int, by: str, replaced: Entry | None) -> Entry:
    """The entry of a mask that a reviewer drew, in another's place or new."""
    area, box = masks.measure(rle, picture.height, picture.width)
    x, y, w, h = map(float, box)
    mask_id = mask_id_of(picture, concept, rle)
    # the same mask may be drawn by two reviewers, and in the place of two entries
    annotation_id = f"{by} {replaced.entry_id if replaced else 'added'}"
    return Entry(
        entry_id=entry_id_of(mask_id, round, None, annotation_id=annotation_id),
        mask_id=mask_id,
        picture=picture.key,
        round=round,
        origin="human",
        concept=concept,
        rle=rle,
        bbox=(x, y, w, h),
        area=area,
        crowd=replaced.crowd if replaced else False,
        annotation_id=annotation_id,
        reason=by,
        supersedes=replaced.entry_id if replaced else None,
    )
