"""SA-1B: one JSON file a picture to class-agnostic instance `genseg`, with the scores of the model that made the masks.

Published layout: `sa_000000/{sa_1.jpg,sa_1.json}`, a thousand folders; one such folder alone is read as well. The index
holds names and sizes only; a picture's JSON is read when its row is.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from pydantic import Field

from builders import options as opts
from builders import places
from builders.categories import category_phrases
from builders.pictures import NAME_ERRORS, read_picture, safe_file_name, sample_of
from builders.reading import RecordError, bad, checked_size, is_whole, make_object, outcomes, plain
from builders.rows import Row, read_keys, read_rows, select, write_rows
from dataengine import masks
from dataengine.builder import About, Context, IndexReport, Outcome, Part, SourceError
from dataengine.errors import ReasonError
from dataengine.records import Account, Bad, Category
from dataengine.sample import License, Lineage, Object, Sample
from dataengine.store.files import Folder

__all__ = [
    "ABOUT",
    "HELD_OUT",
    "MARKS",
    "NAME",
    "TASKS",
    "VERSION",
    "image_keys",
    "index",
    "locate",
    "parse_options",
    "read",
    "select",
]

NAME = "sa1b"
VERSION = 1
TASKS = ("genseg",)
ABOUT = About(
    title="SA-1B",
    url="https://ai.meta.com/datasets/segment-anything/",
    license=License(
        name="SA-1B Dataset Research License", url="https://ai.meta.com/datasets/segment-anything-downloads/"
    ),
)
HELD_OUT = ()
MARKS = ("sa_*/sa_*.json", "sa_*.json")
LAYOUT = "folders sa_*/ with sa_N.jpg and sa_N.json, or one such folder"
CATEGORY = Category(id=0, name="object", text="object")
LABELER, REVISION = "SA-1B", "2023-04"  # the release; the model behind it has no other public name
MAX_RECORD = 1 << 26  # bytes of one JSON file; published ones have less than one million
MAX_BAD = 100_000


class Options(opts.SourceOptions):
    """What a recipe may choose.

    max_masks: only so many masks of each file, the first ones, as X-SAM takes 100.
    min_predicted_iou, min_stability: masks whose scores are below are left out, and those without a score.
    """

    task: Literal["genseg"]
    max_masks: int | None = Field(default=None, ge=1, strict=True)
    min_predicted_iou: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    min_stability: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)


def parse_options(task: str, options: Mapping[str, Any]) -> Options:
    """See `Builder.parse_options`."""
    return opts.parse(Options, NAME, TASKS, task, options)


# --- where the files are ---------------------------------------------------------------------------------------------


def locate(root: str | None, files: Mapping[str, str], splits: Sequence[str], options: Options) -> list[Part]:
    """See `Builder.locate`. Role: `folder`, which holds pictures with their JSON files, or sa_*/ folders of them."""
    places.check_roles(NAME, files, ("folder",))
    folder = Folder(files.get("folder") or places.given_root(NAME, root))
    names = folder.entries()
    is_there = any(name.endswith(".json") for name in names) or _folders(names)
    places.check_splits(NAME, folder.uri, splits, ["train"] if is_there else [], LAYOUT)
    return [Part(split="train", files={"folder": folder.uri})]


def _folders(names: Sequence[str]) -> list[str]:
    return [name.rstrip("/") for name in names if re.fullmatch(r"sa_[^/]+/", name)]


# --- index -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Listing:
    """The JSON files of a source.

    folders: names below the root, "" for the root itself. numbered: (n, 3) int64 of N, folder and bytes of files
    `sa_N.json`, by ascending N. named: stem, folder and bytes of others, sorted. lone: pictures without a JSON file.
    """

    folders: list[str]
    numbered: np.ndarray
    named: list[tuple[str, int, int]] = field(default_factory=list)
    lone: int = 0


def index(part: Part, options: Options, target: Path) -> IndexReport:
    """See `Builder.index`. One row a JSON file, by its number; the record is the file's size in bytes.

    No file is opened, so that the fingerprint covers names and sizes, not contents.
    """
    place = Folder(part.files["folder"])
    listing = _list(place)
    refused: list[Bad] = []
    written = write_rows(target, _rows(listing, refused))
    account = Account(read=Counter(images=len(refused) + listing.lone))
    account.quarantine(refused)
    account.filter("images", "no_record", listing.lone)
    return IndexReport(
        rows=written.rows,
        records=written.rows + len(refused) + listing.lone,
        account=account,
        bad=tuple(refused),
        categories=(CATEGORY,),
        inputs={},
        extra={"file": ABOUT.title},
        fingerprint=written.fingerprint,
    )


def _list(place: Folder) -> _Listing:
    """List each folder once; 24 bytes a numbered file stay in memory."""
    listing = _Listing(folders=_folders(place.entries()) or [""], numbered=np.zeros((0, 3), dtype=np.int64))
    numbered = []
    for number, name in enumerate(listing.folders):
        folder = place / name if name else place
        try:
            sizes = folder.sizes()
        except OSError as error:
            raise SourceError(f"{folder.uri}: cannot be listed: {error.strerror or error}") from None
        found = []
        for file, size in sizes.items():
            stem, _, kind = file.rpartition(".")
            if file.startswith("."):  # what file managers leave behind
                continue
            if kind == "json" and stem:
                match = re.fullmatch(r"sa_(0|[1-9][0-9]{0,17})", stem, re.ASCII)
                if match:
                    found.append((int(match[1]), number, size))
                else:
                    listing.named.append((stem, number, size))
            elif kind.lower() in ("jpg", "jpeg", "png") and f"{stem}.json" not in sizes:
                listing.lone += 1
        numbered.append(np.array(found, dtype=np.int64).reshape(-1, 3))
    listing.numbered = np.concatenate([listing.numbered, *numbered])
    listing.named.sort()
    return listing


def _rows(listing: _Listing, refused: list[Bad]) -> Iterator[tuple[str, bytes, list[bytes]]]:
    """Index rows: `folder/stem` and the file's size. A stem that is there already, or is no text, is refused."""
    before = ""
    for stem, folder, size in _files(listing):
        name = listing.folders[folder]
        key = f"{name}/{stem}" if name else stem
        if plain(key) == key and stem != before:
            before = stem
            yield key, str(size).encode(), []
            continue
        is_repeated = stem == before
        reason = "duplicate_image" if is_repeated else "unsafe_file_name"
        message = f"there is another {stem}.json" if is_repeated else "the name is no text"
        shown = plain(f"{key}.json")
        refused.append(
            Bad(
                unit="images", file=ABOUT.title, record=shown, reason=reason, message=message, payload=json.dumps(shown)
            )
        )
        if len(refused) > MAX_BAD:
            raise SourceError(f"{ABOUT.title}: more than {MAX_BAD} files cannot be used; the last one: {refused[-1]}")


def _files(listing: _Listing) -> Iterator[tuple[str, int, int]]:
    """Stem, folder and bytes of each file: by number, then the others by name."""
    order = np.lexsort((listing.numbered[:, 1], listing.numbered[:, 0]))
    for at in range(0, len(order), 1 << 16):
        for number, folder, size in listing.numbered[order[at : at + (1 << 16)]].tolist():
            yield f"sa_{number}", folder, size
    yield from listing.named


def image_keys(context: Context, index: Folder) -> Iterator[str]:
    """See `Builder.image_keys`."""
    for key in read_keys(index):
        yield _image_key(key)


def _image_key(key: str) -> str:
    return f"sa1b/{key.rpartition('/')[2]}"


# --- samples ---------------------------------------------------------------------------------------------------------


def read(context: Context, index: Folder, start: int, stop: int) -> Iterator[Outcome]:
    """See `Builder.read`. Counts images and annotations."""
    return outcomes(context, read_rows(index, start, stop), _outcome, lambda row: _held(context, row))


def _outcome(context: Context, row: Row) -> Outcome:
    place, stem = _place(context, row)
    image, annotations = _record(place, stem, int(row.record))
    base = _base(context, row, image, place, stem)
    account = Account(read=Counter(images=1, annotations=len(annotations)))
    limit = context.options.max_masks
    if limit is not None and limit < len(annotations):
        account.filter("annotations", "max_masks", len(annotations) - limit)
        annotations = annotations[:limit]
    objects, refused = _objects(context, row, base, annotations, account)
    account.quarantine(refused)
    samples = []
    if objects:
        account.built = Counter(images=1, annotations=len(objects))
        asked = replace(base, sample_id=f"{base.sample_id}/instance", variant="instance", objects=tuple(objects))
        samples = [category_phrases(asked, [CATEGORY.id], {CATEGORY.id: CATEGORY.text})]
    else:
        account.filter("images", "no_target")
    return Outcome(group=row.key, samples=samples, bad=refused, account=account)


def _held(context: Context, row: Row) -> Counter[str]:
    """How many annotations the file of a refused picture holds, as far as it can be read."""
    try:
        _, annotations = _record(*_place(context, row), int(row.record))
    except RecordError:
        return Counter()
    return Counter(annotations=len(annotations))


def _place(context: Context, row: Row) -> tuple[Folder, str]:
    """The folder of a row's files, and their stem."""
    root = Folder(context.part.files["folder"])
    folder, _, stem = row.key.rpartition("/")
    return root / folder if folder else root, stem


def _record(place: Folder, stem: str, size: int) -> tuple[dict[str, Any], list[Any]]:
    """The `image` and the `annotations` of a picture's file.

    Args:
        size: bytes, when it was indexed.
    Raises:
        RecordError: `record_missing`, `record_unreadable`, `record_changed`, `record_too_large`, `bad_json` or
            `bad_field`.
        SourceError: the whole folder is gone. OSError: the disk or the network fails.
    """
    name = f"{stem}.json"
    try:
        with place.open(name) as file:
            data = file.read(MAX_RECORD + 1)
    except FileNotFoundError:
        if place.kind() != "folder":
            raise SourceError(f"{place.uri}: the folder is gone") from None
        raise RecordError("record_missing", f"{name} is gone") from None
    except OSError as error:
        if error.errno not in NAME_ERRORS:  # the disk or the network, not this record
            raise
        raise RecordError("record_unreadable", f"{name} cannot be read: {error.strerror}") from None
    if len(data) > MAX_RECORD:
        raise RecordError("record_too_large", f"{name} has more than {MAX_RECORD:,} bytes")
    if len(data) != size:
        raise RecordError("record_changed", f"{name} has {len(data):,} bytes; it had {size:,} when it was indexed")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError("bad_json", f"{name} cannot be read: {plain(str(error))}") from None
    image, annotations = (value.get("image"), value.get("annotations")) if isinstance(value, dict) else (None, None)
    if not isinstance(image, dict) or not isinstance(annotations, list):
        raise RecordError("bad_field", f"{name} needs an object `image` and a list `annotations`")
    return image, annotations


def _base(context: Context, row: Row, image: dict[str, Any], place: Folder, stem: str) -> Sample:
    """The sample of a picture with nothing in it yet."""
    height, width = checked_size(image)
    name = safe_file_name(image.get("file_name"))
    if PurePosixPath(name).stem != stem:  # it would pass for another picture wherever identities are compared
        raise RecordError("bad_field", f"file_name {name!r} is not the picture of {stem}.json")
    return sample_of(
        context,
        read_picture(place, [name], height, width),
        key=_image_key(row.key),
        file=f"{row.key}.json",
        record=f"image {stem}",
    )


def _objects(
    context: Context, row: Row, base: Sample, annotations: Sequence[Any], account: Account
) -> tuple[list[Object], list[Bad]]:
    """The objects of a picture, in the file's order, and the annotations that cannot be used; others are filtered."""
    options: Options = context.options
    limits = [("predicted_iou", options.min_predicted_iou), ("stability_score", options.min_stability)]
    objects: list[Object] = []
    refused: list[Bad] = []
    seen: set[int] = set()
    for position, value in enumerate(annotations):
        try:
            number = _checked_id(value, seen)
            scores = {name: _score(value, name) for name, _ in limits}
            low = [name for name, least in limits if least is not None and (scores[name] or 0.0) < least]
            if low:
                account.filter("annotations", f"low_{low[0]}")
                continue
            objects.append(_object(value, base, number, scores))
        except ReasonError as error:
            record = f"annotations[{position}] (image {row.key})"
            refused.append(bad("annotations", f"{row.key}.json", record, row, error, json.dumps(value)))
    return objects, refused


def _checked_id(value: Any, seen: set[int]) -> int:
    """The id of an annotation, which no other of the picture has.

    Raises:
        RecordError: `bad_field` or `duplicate_annotation`.
    """
    number: Any = value.get("id") if isinstance(value, dict) else None
    if not is_whole(number):
        raise RecordError("bad_field", "an annotation needs a whole-number id")
    if number in seen:
        raise RecordError("duplicate_annotation", f"id {number} is given twice")
    seen.add(number)
    return int(number)


def _score(value: Mapping[str, Any], name: str) -> float | None:
    """A score, 0..1; the model's estimates of IoU leave that range by a little, and are cut.

    Raises:
        RecordError: `bad_field`: it is no finite number.
    """
    score = value.get(name)
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float) or not -1 <= score <= 2:
        raise RecordError("bad_field", f"{name} {str(score)[:40]} must be a number from 0 to 1")
    return min(max(float(score), 0.0), 1.0)


def _object(value: Mapping[str, Any], base: Sample, number: int, scores: Mapping[str, float | None]) -> Object:
    """Raises MaskError."""
    rle, measured = masks.measured_from_segmentation(value.get("segmentation"), base.height, base.width)
    lineage = Lineage(
        origin="model",
        labeler=LABELER,
        revision=REVISION,
        score=scores["predicted_iou"],
        stability=scores["stability_score"],
    )
    return make_object(rle, base.height, base.width, CATEGORY.id, str(number), lineage=lineage, measured=measured)
