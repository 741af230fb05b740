"""COCO annotations that carry their visual prompts: what the builders `coco_vgd` and `coco_interactive` share.

A file is one JSON list with a record an image; the record holds its annotations. Categories stand in COCO's instances
file, or are COCO's 80.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from builders import coco, coco_categories, places
from builders.brought import Brought, prompts_from_bitmaps, with_prompts
from builders.categories import region_samples
from builders.coco_index import MAX_BAD, Index, read_tables
from builders.pictures import coco_names, numbered_key, read_picture, safe_file_name, sample_of
from builders.reading import RecordError, bad, checked_size, is_whole, outcomes
from builders.rows import Gathering, Hashing, Refused, Row, read_rows
from dataengine import masks
from dataengine.builder import Context, IndexReport, Outcome, Part, SourceError
from dataengine.errors import ReasonError
from dataengine.jsonstream import Record, decode, iter_rows
from dataengine.records import MAX_PAYLOAD, Account, Bad
from dataengine.sample import PROMPT_KINDS, License, Object, Sample
from dataengine.store.files import Folder

SPLITS = ("train", "val")
ROLES = ("annotations", "images", "instances")
# Where COCO itself lies beside these files: in the same folder, or in a neighbour of it.
COCO_PLACES = ("", "coco/", "coco2017/", "../", "../coco/", "../coco2017/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a published file is laid out.

    name: of the builder. files: places below the root, with `{split}`. annotations: key of a record's annotations.
    prompts: the bitmaps of an annotation by kind, None where there is none; raises RecordError. is_traced: see
    `prompts_from_bitmaps`.
    """

    name: str
    files: tuple[str, ...]
    annotations: str
    prompts: Callable[[dict[str, Any]], dict[str, Any]]
    is_traced: bool


# --- where the files are ---------------------------------------------------------------------------------------------


def locate(layout: Layout, root: str | None, files: Mapping[str, str], splits: Sequence[str]) -> list[Part]:
    """See `Builder.locate`. Roles: `annotations`, `images`, and `instances`, which need not be there."""
    places.check_roles(layout.name, files, ROLES)
    if "annotations" in files:
        if len(splits) > 1:
            raise SourceError(
                f"{layout.name}: one annotation file is one split, but the recipe names {', '.join(splits)}"
            )
        stem = PurePosixPath(files["annotations"].partition("?")[0]).stem
        named = re.search(r"(?:^|_)(train|val)(?:_|$)", stem)
        found = [splits[0] if splits else named.group(1) if named else stem]
    else:
        folder = Folder(places.given_root(layout.name, root))
        there = [s for s in SPLITS if any(folder.kind(file.format(split=s)) == "file" for file in layout.files)]
        wanted = " or ".join(file.format(split="SPLIT") for file in layout.files)
        found = places.check_splits(layout.name, folder.uri, splits, there, wanted)
    return [_part(layout, root, files, split) for split in found]


def _part(layout: Layout, root: str | None, files: Mapping[str, str], split: str) -> Part:
    name = f"{layout.name} {split}"
    pictures = [f"{place}{inner}{split}2017" for place in COCO_PLACES for inner in ("", "images/")]
    tables = [f"{place}annotations/instances_{split}2017.json" for place in COCO_PLACES]
    found = {
        "annotations": places.find(
            name, "annotations", "file", root, files, [file.format(split=split) for file in layout.files]
        ),
        "images": places.find(name, "images", "folder", root, files, [*pictures, "images"]),
    }
    try:
        found["instances"] = places.find(name, "instances", "file", root, files, tables)
    except SourceError:
        if "instances" in files:
            raise
    return Part(split=split, files=found)


# --- index -----------------------------------------------------------------------------------------------------------


def index(layout: Layout, part: Part, target: Path) -> IndexReport:
    """See `Builder.index`. A row holds a picture's whole record."""
    place = Folder(part.files["annotations"])
    name = PurePosixPath(place.uri.partition("?")[0]).name
    account, refused, held = Account(), list[Bad](), 0
    with _opened(place) as file, Gathering(target.parent) as gathering:
        hashing = Hashing(file)
        try:
            for record in iter_rows(cast("BinaryIO", hashing), name):
                try:
                    number = _image_id(record)
                except RecordError as error:
                    found = Bad(
                        unit="images",
                        file=name,
                        record=f"[{record.position}]",
                        reason=error.reason,
                        message=str(error),
                        payload=record.text[:MAX_PAYLOAD],
                    )
                    _refuse(account, refused, found, _counts(layout, record.value))
                else:
                    gathering.row(number, str(number), record.text)
                    held += _counts(layout, record.value).total()
        except SourceError as error:
            raise SourceError(f"{place.uri.removesuffix(name)}{error}") from None
        for again in gathering.settle():
            counts = _counts(layout, decode(again.text))
            held -= counts.total()
            _refuse(account, refused, _repeated(name, again), counts)
        written = gathering.write(target)
        inputs = {"annotations": hashing.hexdigest()}
    if not written.rows:
        raise SourceError(f"{place.uri}: it holds no record of an image; {layout.name} reads a list of them")
    tables = _tables(part)
    if tables.sha256:
        inputs["instances"] = tables.sha256
    return IndexReport(
        rows=written.rows,
        records=written.rows + held,
        account=account,
        bad=tuple(refused),
        categories=coco.categories_of(tables.categories, part.files.get("instances", "")),
        inputs=inputs,
        extra={"licenses": tables.licenses, "image_namespace": tables.namespace, "file": name},
        fingerprint=written.fingerprint,
    )


def _opened(place: Folder) -> BinaryIO:
    try:
        return place.open()
    except OSError as error:
        raise SourceError(f"{place.uri}: cannot be read: {error.strerror or error}") from None


def _tables(part: Part) -> Index:
    """Categories, licences and namespace of the instances file; where there is none, COCO's categories."""
    if "instances" not in part.files:
        return Index(categories=[{"id": number, "name": name} for number, name in coco_categories.NAMES.items()])
    place = Folder(part.files["instances"])
    with _opened(place) as file:
        return read_tables(file, place.uri)


def _image_id(record: Record) -> int:
    """The picture's number, which a record may state in several places.

    Raises:
        RecordError: `bad_json` or `bad_field`: there is none, or they differ.
    """
    if not isinstance(record.value, dict):
        raise RecordError(
            "bad_json" if record.error else "bad_field", record.error or "a record of an image is an object"
        )
    info = _info(record.value)
    stated = [
        place[key] for place, key in ((record.value, "image_id"), (info, "image_id"), (info, "id")) if key in place
    ]
    if not stated or not all(is_whole(number) and number == stated[0] for number in stated):
        raise RecordError("bad_field", f"an image needs one whole number as its id, not {stated!r:.200}")
    return int(stated[0])


def _info(value: dict[str, Any]) -> dict[str, Any]:
    info = value.get("image_info")
    return info if isinstance(info, dict) else {}


def _refuse(account: Account, refused: list[Bad], found: Bad, held: Counter[str]) -> None:
    refused.append(found)
    account.read.update(images=1)
    account.read.update(held)
    account.quarantine([found])
    for unit, number in held.items():
        account.filter(unit, "image_quarantined", number)
    if len(refused) > MAX_BAD:
        raise SourceError(f"{found.file}: more than {MAX_BAD} records cannot be used; the last one: {found}")


def _repeated(name: str, again: Refused) -> Bad:
    return Bad(
        unit="images",
        file=name,
        record=f"image {again.owner}",
        group=str(again.owner),
        reason="duplicate_image",
        message=f"id {again.owner} is given twice",
        payload=again.text[:MAX_PAYLOAD],
    )


def _counts(layout: Layout, value: Any) -> Counter[str]:
    """How many annotations and prompts a record holds, however bad it is."""
    entries = value.get(layout.annotations) if isinstance(value, dict) else None
    entries = entries if isinstance(entries, list) else []
    return Counter(annotations=len(entries), prompts=sum(_num_prompts(layout, entry) for entry in entries))


def _num_prompts(layout: Layout, entry: Any) -> int:
    try:
        return sum(value is not None for value in layout.prompts(entry).values()) if isinstance(entry, dict) else 0
    except RecordError:
        return 0


# --- samples ---------------------------------------------------------------------------------------------------------


def read(
    layout: Layout, context: Context, index: Folder, start: int, stop: int, max_regions: int = 0
) -> Iterator[Outcome]:
    """See `Builder.read`. Counts images, annotations and prompts. max_regions: of one `intseg` sample."""
    return outcomes(
        context,
        read_rows(index, start, stop),
        lambda context, row: _outcome(layout, context, row, max_regions),
        lambda row: _counts(layout, decode(row.record)),
    )


def _outcome(layout: Layout, context: Context, row: Row, max_regions: int) -> Outcome:
    value = decode(row.record)
    base = _base(context, row, value)
    made = Outcome(group=row.key)
    made.account.read = Counter(images=1) + _counts(layout, value)
    objects = _objects(layout, context, row, value, base, made)
    made.samples = region_samples(context, replace(base, objects=objects), max_regions)
    made.account.quarantine(made.bad)
    whole = Counter(
        images=1, annotations=len(objects), prompts=sum(p.status != "none" for o in objects for p in o.prompts)
    )
    if not made.samples:
        for unit, number in whole.items():
            made.account.filter(unit, "no_target", number)
        return made
    if context.task == "intseg":  # crowds stay out of it
        crowds = sum(thing.crowd for thing in objects)
        whole["annotations"] -= crowds
        made.account.filter("annotations", "crowd", crowds)
    made.account.built = whole
    return made


def _base(context: Context, row: Row, value: dict[str, Any]) -> Sample:
    """The sample of a picture with nothing in it yet; the picture is read and its header checked."""
    info = _info(value)
    size = value.get("image_size")
    if "height" not in info and isinstance(size, list) and len(size) == 2:
        info = info | {"height": size[0], "width": size[1]}
    height, width = checked_size(info)
    named = next(
        (n for n in (value.get("image_file"), value.get("image"), info.get("file_name")) if n is not None), None
    )
    name = safe_file_name(named)
    namespace = coco.namespace_of(context)
    names = coco_names(int(row.key), name) if namespace == "coco" else [name]
    license = context.extra["licenses"].get(str(info.get("license")))
    return sample_of(
        context,
        read_picture(Folder(context.part.files["images"]), names, height, width),
        key=numbered_key(namespace, int(row.key)),
        file=context.extra["file"],
        record=f"image {row.key}",
        license=None if license is None else License(name=license[0], url=license[1]),
    )


def _objects(
    layout: Layout, context: Context, row: Row, value: dict[str, Any], base: Sample, made: Outcome
) -> tuple[Object, ...]:
    """The objects of a picture with their prompts, by ascending annotation id; what cannot be used is noted."""
    entries = value.get(layout.annotations)
    if not isinstance(entries, list):
        raise RecordError("bad_field", f"{layout.annotations} must be a list")
    categories = {c.id for c in context.categories}
    found: dict[int, Object] = {}
    bitmaps: list[tuple[int, str, Any]] = []
    refused: list[tuple[int, Bad]] = []  # with the place of the annotation
    segmentations = [entry.get("segmentation") if isinstance(entry, dict) else None for entry in entries]
    drawn = masks.measured_from_polygon_lists(segmentations, base.height, base.width)
    for number, (entry, mask) in enumerate(zip(entries, drawn, strict=True)):
        try:
            name = _annotation_id(entry, row)
            if name in found:
                raise RecordError("duplicate_annotation", f"id {name} is given twice in one image")
            by_kind = layout.prompts(entry)
            thing = coco.object_of(entry, base.height, base.width, categories, mask)
        except ReasonError as error:
            record = f"{layout.annotations}[{number}] (image {row.key})"
            payload = json.dumps(entry)
            refused.append((number, bad("annotations", context.extra["file"], record, row, error, payload)))
            made.account.filter("prompts", "annotation_quarantined", _num_prompts(layout, entry))
            continue
        found[name] = thing
        if thing.crowd:
            made.account.filter("prompts", "crowd", _num_prompts(layout, entry))
        else:
            bitmaps += [(number, kind, by_kind[kind]) for kind in PROMPT_KINDS if by_kind[kind] is not None]
    brought: dict[str, list[Brought]] = {}
    read = prompts_from_bitmaps(
        [(kind, bitmap) for _, kind, bitmap in bitmaps], base.height, base.width, is_traced=layout.is_traced
    )
    for (number, kind, bitmap), one in zip(bitmaps, read, strict=True):
        name = entries[number]["id"]
        if isinstance(one, ReasonError):
            record = f"{kind} of annotation {name} (image {row.key})"
            payload = json.dumps({kind: bitmap})
            refused.append((number, bad("prompts", context.extra["file"], record, row, one, payload)))
            continue
        if not one.borders.size:
            made.account.filter("prompts", "empty")
        brought.setdefault(str(name), []).append(one)
    made.bad += [one for _, one in sorted(refused, key=itemgetter(0))]
    objects = [found[name] for name in sorted(found)]
    return with_prompts(objects, brought, base.height, base.width)


def _annotation_id(entry: Any, row: Row) -> int:
    if not isinstance(entry, dict) or not is_whole(entry.get("id")):
        raise RecordError("bad_field", "an annotation needs a whole number as its id")
    if str(entry.get("image_id", row.key)) != row.key:
        raise RecordError("unknown_image", f"it is of image {entry['image_id']!r:.80}")
    return int(entry["id"])
