"""COCO: instances to `vgdseg`, `intseg` and instance `genseg`; panoptic PNG + json to panoptic and semantic `genseg`.

Where its files are → one index row an image → samples without turns. Published layout (2014 and 2017 naming):
`annotations/instances_{split}.json`, `annotations/panoptic_{split}.json` with `annotations/panoptic_{split}/*.png`,
pictures in `{split}/` or `images/{split}/`.
"""

from __future__ import annotations

import errno
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from builders import options as opts
from builders import panoptic, places
from builders.categories import ask_for_categories, region_samples, targets_of
from builders.coco_index import index_file
from builders.pictures import NAME_ERRORS, numbered_key, read_picture, safe_file_name, sample_of
from builders.reading import (
    RecordError,
    bad,
    checked_category,
    checked_flag,
    checked_size,
    clean_name,
    is_whole,
    make_object,
    outcomes,
    plain,
)
from builders.rows import Row, read_keys, read_rows, select
from dataengine import images, masks
from dataengine.builder import About, Context, IndexReport, Outcome, Part, SourceError
from dataengine.errors import ReasonError
from dataengine.jsonstream import decode
from dataengine.records import Account, Bad, Category
from dataengine.sample import HUMAN, License, Lineage, Object, Sample
from dataengine.store.files import Folder

__all__ = [
    "ABOUT",
    "HELD_OUT",
    "MARKS",
    "NAME",
    "TASKS",
    "VERSION",
    "exemplars",
    "image_keys",
    "index",
    "locate",
    "parse_options",
    "read",
    "select",
]

NAME = "coco"
VERSION = 1
TASKS = ("vgdseg", "intseg", "genseg")
ABOUT = About(
    title="COCO",
    url="https://cocodataset.org/#download",
    license=License(name="CC BY 4.0", url="https://creativecommons.org/licenses/by/4.0/"),
)
HELD_OUT = ("val2017",)  # not any `val`: other trees number the pictures of each split from 1
MARKS = ("annotations/instances_*.json", "annotations/panoptic_*.json")
ORIGINS = ("human", "model", "merged")
Variant = Literal["instance", "panoptic", "semantic"]


class Options(opts.NumberedOptions):
    """What a recipe may choose.

    variants: of `genseg`; `instance` reads the instances file, `panoptic` and `semantic` the panoptic one.
    categories: which are asked for in `genseg`: `all` (ascending id), `positives`, `sampled` (X-SAM's published mix:
        half the time the positives and a random number of negatives, else all; shuffled), or `auto`: `sampled` in
        splits named train…, `all` elsewhere.
    max_negatives: of a sampled list; -1 for no limit.
    max_regions: of one `intseg` sample; more objects make more samples.
    federated: pictures say which categories are known in them, as LVIS's do (`neg_category_ids`,
        `not_exhaustive_category_ids`); only these are asked for. Of instances files.
    """

    task: Literal["vgdseg", "intseg", "genseg"]
    variants: tuple[Variant, ...] = Field(default=("panoptic", "semantic"), min_length=1)
    categories: Literal["all", "positives", "sampled", "auto"] = "auto"
    max_negatives: int = Field(default=-1, ge=-1, strict=True)
    max_regions: int = Field(default=32, ge=1, strict=True)
    federated: bool = Field(default=False, strict=True)

    @field_validator("variants")
    @classmethod
    def _readable_together(cls, variants: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(variants)) < len(variants):
            raise ValueError("a variant is named twice")
        if "instance" in variants and len(variants) > 1:
            raise ValueError("instance is read from another file than panoptic and semantic; use two sources")
        return variants

    @model_validator(mode="after")
    def _says_what_is_known(self) -> Options:
        if self.federated and self.is_panoptic:
            raise ValueError("federated: panoptic files say nothing of it; variants: [instance] is read from instances")
        return self

    @property
    def is_panoptic(self) -> bool:
        return self.task == "genseg" and "instance" not in self.variants


def parse_options(task: str, options: Mapping[str, Any]) -> Options:
    """See `Builder.parse_options`."""
    return opts.parse(Options, NAME, TASKS, task, options)


# --- where the files are ---------------------------------------------------------------------------------------------


def locate(root: str | None, files: Mapping[str, str], splits: Sequence[str], options: Options) -> list[Part]:
    """See `Builder.locate`. Roles: `annotations`, `images`, `segments` (the folder of panoptic PNGs)."""
    kind = "panoptic" if options.is_panoptic else "instances"
    roles = ("annotations", "images") + (("segments",) if options.is_panoptic else ())
    places.check_roles(NAME, files, roles)
    if "annotations" in files:
        if len(splits) > 1:
            raise SourceError(f"{NAME}: one annotation file is one split, but the recipe names {', '.join(splits)}")
        stem = PurePosixPath(files["annotations"].partition("?")[0]).stem
        found = [splits[0] if splits else stem.removeprefix(f"{kind}_")]
    else:
        found = _splits(places.given_root(NAME, root), kind, splits)
    return [_part(root, files, split, kind, roles) for split in found]


def _annotated(root: str, kind: str) -> list[str]:
    """The splits that have an annotation file."""
    pattern = re.compile(rf"{kind}_([A-Za-z0-9_.-]+)\.json")
    return [m.group(1) for name in (Folder(root) / "annotations").names() if (m := pattern.fullmatch(name))]


def _splits(root: str, kind: str, wanted: Sequence[str]) -> list[str]:
    there = _annotated(root, kind)
    missing = [split for split in wanted if split not in there]
    if missing or not there:
        hint = f"; there are {', '.join(there)}" if there else ""
        raise SourceError(
            f"{root}: annotations/{kind}_{missing[0] if missing else '*'}.json is missing{hint}. A COCO folder has "
            f"annotations/{kind}_SPLIT.json and pictures in SPLIT/ or images/SPLIT/"
        )
    return list(wanted) or there


def _part(root: str | None, files: Mapping[str, str], split: str, kind: str, roles: Sequence[str]) -> Part:
    candidates = {
        "annotations": [f"annotations/{kind}_{split}.json"],
        "images": [split, f"images/{split}"],
        "segments": [f"annotations/panoptic_{split}", f"panoptic_{split}"],
    }
    if root is not None and not any((Folder(root) / "images" / other).kind() for other in _annotated(root, kind)):
        candidates["images"].append("images")  # one folder for all splits, unless it has one for each
    found = {
        role: places.find(
            f"{NAME} {split}", role, "file" if role == "annotations" else "folder", root, files, candidates[role]
        )
        for role in roles
    }
    return Part(split=split, files=found)


# --- index -----------------------------------------------------------------------------------------------------------


def index(part: Part, options: Options, target: Path) -> IndexReport:
    """See `Builder.index`."""
    place = Folder(part.files["annotations"])
    name = PurePosixPath(place.uri.partition("?")[0]).name
    found = index_file(place, name, target, key="image_id" if options.is_panoptic else "id")
    categories = categories_of(found.categories, place.uri)
    return IndexReport(
        rows=found.images,
        records=found.images + found.annotations,
        account=found.account,
        bad=tuple(found.bad),
        categories=categories,
        inputs={"annotations": found.sha256},
        extra={"licenses": found.licenses, "image_namespace": found.namespace, "file": name},
        fingerprint=found.fingerprint,
    )


def categories_of(records: Sequence[Mapping[str, Any]], uri: str) -> tuple[Category, ...]:
    """The categories of an instances or panoptic file, by ascending id.

    Args:
        records: checked to have an id and a name. uri: of their file, for the message.
    Raises:
        SourceError: a category has no name that could be written in a question.
    """
    categories = tuple(
        Category(id=c["id"], name=plain(c["name"]), text=clean_name(c["name"]), is_thing=bool(c.get("isthing", 1)))
        for c in sorted(records, key=lambda c: c["id"])
    )
    nameless = [c.id for c in categories if not c.text]
    if nameless:
        raise SourceError(f"{uri}: category {nameless[0]} has no name that could be written in a question")
    return categories


def image_keys(context: Context, index: Folder) -> Iterator[str]:
    """See `Builder.image_keys`."""
    for key in read_keys(index):
        yield numbered_key(namespace_of(context), int(key))


def exemplars(context: Context, index: Folder) -> Iterator[list[tuple[str, int]]]:
    """See `Builder`: annotation and category ids, of each row; crowds are none."""
    known = {category.id for category in context.categories}
    for row in read_rows(index):
        yield [
            (str(value["id"]), value["category_id"])
            for value in map(decode, row.members)
            if is_whole(value.get("category_id")) and value["category_id"] in known and not value.get("iscrowd")
        ]


def namespace_of(context: Context) -> str:
    """Whose numbers the pictures of a source have."""
    return context.options.image_namespace or context.extra["image_namespace"] or "coco"


# --- samples ---------------------------------------------------------------------------------------------------------


def read(context: Context, index: Folder, start: int, stop: int) -> Iterator[Outcome]:
    """See `Builder.read`. Counts images and annotations; panoptic ones also segments."""
    return outcomes(context, read_rows(index, start, stop), _outcome, lambda row: _held(context, row))


def _outcome(context: Context, row: Row) -> Outcome:
    base = _base(context, row)
    absent, withheld = None, 0
    if context.options.is_panoptic:
        found, refused = _segments(context, row, base)
    else:
        categories = {c.id for c in context.categories}
        found, refused = objects_of(row, context.extra["file"], base.height, base.width, categories)
        if context.options.federated:
            whole = len(found.objects)
            found, absent = known_of(decode(row.record), found, categories, keep=context.options.task == "intseg")
            withheld = whole - len(found.objects)
    samples = _samples(context, base, found, absent)
    account = _account(context, row, found, refused, built=bool(samples))
    account.filter("annotations", "not_exhaustive", withheld)
    return Outcome(group=row.key, samples=samples, bad=refused, account=account, absent=absent)


def _held(context: Context, row: Row) -> Counter[str]:
    """What a picture's row holds, however bad it is."""
    held = Counter(annotations=len(row.members))
    if context.options.is_panoptic:
        held["segments"] = _num_segments(row)
    return held


def _num_segments(row: Row) -> int:
    """How many segments a panoptic picture states."""
    infos = decode(row.members[0]).get("segments_info") if row.members else None
    return len(infos) if isinstance(infos, list) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The objects of a picture.

    ignore: the pixels that count neither way. incomplete: categories of which an annotation was refused.
    """

    objects: tuple[Object, ...]
    ignore: bytes | None = None
    incomplete: frozenset[int] = frozenset()


def known_of(
    record: Mapping[str, Any], found: Found, categories: Collection[int], *, keep: bool
) -> tuple[Found, frozenset[int]]:
    """What a picture with federated annotation knows: its objects of finished categories, and what it lacks.

    Args:
        record: of the image, with LVIS's lists. keep: objects of unfinished categories too, which are those that it
            lists as not exhaustive and those of which an annotation was refused.
    Raises:
        RecordError: `bad_field`: without a list nobody knows what is absent or unfinished in the picture.
    """
    negatives, unfinished = (_ids_in(record, f"{kind}_category_ids", categories) for kind in ("neg", "not_exhaustive"))
    withheld = frozenset() if keep else unfinished | found.incomplete
    kept = tuple(thing for thing in found.objects if thing.category_id not in withheld)
    absent = negatives - withheld - {thing.category_id for thing in found.objects}
    return replace(found, objects=kept), absent


def _ids_in(record: Mapping[str, Any], field: str, categories: Collection[int]) -> frozenset[int]:
    ids = record.get(field)
    if not isinstance(ids, list) or not all(is_whole(c) and c in categories for c in ids):
        raise RecordError("bad_field", f"{field} must be a list of category ids")
    return frozenset(ids)


def _account(context: Context, row: Row, found: Found, refused: list[Bad], built: bool) -> Account:
    account = Account(read=Counter(images=1, annotations=len(row.members)))
    account.quarantine(refused)
    whole = Counter(images=1, annotations=len(found.objects))
    if built and context.options.task == "intseg":  # crowds stay out of it
        crowds = sum(thing.crowd for thing in found.objects)
        whole["annotations"] -= crowds
        account.filter("annotations", "crowd", crowds)
    if context.options.is_panoptic:
        account.read["segments"] = len(found.objects) + sum(b.unit == "segments" for b in refused)
        whole = Counter(images=1, annotations=len(row.members), segments=len(found.objects))
    if built:
        account.built = whole
    else:
        for unit, count in whole.items():
            account.filter(unit, "no_target", count)
    return account


def _base(context: Context, row: Row) -> Sample:
    """The sample of a picture with nothing in it yet; the picture is read and its header checked."""
    value = decode(row.record)
    height, width = checked_size(value)
    name = safe_file_name(value.get("file_name"))
    picture = read_picture(Folder(context.part.files["images"]), [name], height, width)
    return sample_of(
        context,
        picture,
        key=numbered_key(namespace_of(context), int(row.key)),
        file=context.extra["file"],
        record=f"image {row.key}",
        license=license_of(context, value),
    )


def license_of(context: Context, value: Mapping[str, Any]) -> License | None:
    """The licence that an image record names, where the file describes it."""
    names = context.extra["licenses"].get(str(value.get("license")))
    return None if names is None else License(name=names[0], url=names[1])


def objects_of(row: Row, file: str, height: int, width: int, categories: Collection[int]) -> tuple[Found, list[Bad]]:
    """The objects of one image's instances, and the annotations that cannot be used.

    Every annotation is in exactly one of the two. Crowds are kept, flagged.
    """
    objects, refused, incomplete = [], [], set()
    values = [decode(text) for text in row.members]
    drawn = masks.measured_from_polygon_lists([value.get("segmentation") for value in values], height, width)
    for text, value, mask in zip(row.members, values, drawn, strict=True):
        try:
            objects.append(object_of(value, height, width, categories, mask))
        except ReasonError as error:
            record = f"annotation {value['id']} (image {row.key})"
            refused.append(bad("annotations", file, record, row, error, text))
            incomplete |= {value["category_id"]} if is_whole(value.get("category_id")) else set()
    return Found(objects=tuple(objects), incomplete=frozenset(incomplete)), refused


def object_of(
    annotation: Mapping[str, Any],
    height: int,
    width: int,
    categories: Collection[int],
    mask: masks.Measured | None = None,
) -> Object:
    """The object of a COCO annotation. mask: of its segmentation, where that was drawn before.

    Raises:
        RecordError, masks.MaskError
    """
    category = checked_category(annotation.get("category_id"), categories)
    rle, measured = mask or masks.measured_from_segmentation(annotation.get("segmentation"), height, width)
    crowd = checked_flag(annotation.get("iscrowd", 0))
    lineage = lineage_of(annotation.get("lineage"))
    number = str(annotation["id"])
    return make_object(rle, height, width, category, number, crowd=crowd, lineage=lineage, measured=measured)


def lineage_of(value: object) -> Lineage:
    """Where the mask of an annotation comes from, as `dataengine ledger export` says it; None: from people.

    Raises:
        RecordError: `bad_lineage`.
    """
    if value is None:
        return HUMAN
    if not isinstance(value, dict) or value.get("origin") not in ORIGINS:
        raise RecordError("bad_lineage", f"lineage needs an origin, one of {', '.join(ORIGINS)}")
    texts = {name: value.get(name) for name in ("labeler", "revision", "reviewer")}
    if bad := [name for name, text in texts.items() if text is not None and not isinstance(text, str)]:
        raise RecordError("bad_lineage", f"lineage: {bad[0]} must be a text")
    number = value.get("round")
    if number is not None and not (is_whole(number) and 0 <= number < 1 << 15):
        raise RecordError("bad_lineage", f"lineage: {number!r:.40} is no round")
    shares = {name: value.get(name) for name in ("score", "stability")}
    for name, share in shares.items():
        if share is not None and (type(share) not in (int, float) or not 0 <= share <= 1):
            raise RecordError("bad_lineage", f"lineage: {name} is from 0 to 1, not {share!r:.40}")
    if value["origin"] == "human" and not number and texts["reviewer"] is None:
        return HUMAN
    labeler, revision, reviewer = (None if text is None else plain(text) for text in texts.values())
    score, stability = (None if share is None else float(share) for share in shares.values())
    return Lineage(
        origin=value["origin"],
        labeler=labeler,
        revision=revision,
        round=number,
        score=score,
        stability=stability,
        reviewer=reviewer,
    )


def _segments(context: Context, row: Row, base: Sample) -> tuple[Found, list[Bad]]:
    """The segments of a panoptic picture, and those that cannot be used.

    Void pixels count neither way, and those of refused segments do not: what they show is not known.
    """
    if not row.members:
        raise RecordError("no_segments", "the picture has no panoptic annotation")
    value = decode(row.members[0])
    infos = value.get("segments_info")
    if not isinstance(infos, list) or not all(isinstance(i, dict) and is_whole(i.get("id")) for i in infos):
        raise RecordError("bad_field", "segments_info must be a list of segments with whole-number ids")
    if len({i["id"] for i in infos}) < len(infos):
        raise RecordError("duplicate_segment", "segments_info gives an id twice")
    try:
        file_name = safe_file_name(value.get("file_name"))
        data = Folder(context.part.files["segments"]).read(file_name)
        starts, owners = panoptic.runs_from_png(data, base.height, base.width)
        by_id = panoptic.masks_from_runs(starts, owners, base.height, base.width)
    except ValueError as error:
        reason = error.reason if isinstance(error, images.ImageError) else "unsafe_file_name"
        raise RecordError(reason, f"panoptic PNG: {error}") from None
    except OSError as error:
        if error.errno not in (errno.ENOENT, *NAME_ERRORS) and not isinstance(error, FileNotFoundError):
            raise
        raise RecordError("segments_missing", f"panoptic PNG {file_name} is not in its folder") from None
    stray = sorted(set(by_id) - {i["id"] for i in infos} - {panoptic.VOID})
    if stray:
        raise RecordError("unknown_segment", f"the PNG has segment {stray[0]}, which segments_info does not")
    objects, refused, ignored = [], [], {panoptic.VOID}
    categories = {c.id for c in context.categories}
    for info in sorted(infos, key=lambda i: i["id"]):
        try:
            category = checked_category(info.get("category_id"), categories)
            if info["id"] not in by_id or info["id"] == panoptic.VOID:
                raise RecordError("empty_mask", "the segment has no pixel in the PNG")
            crowd = checked_flag(info.get("iscrowd", 0))
            rle, measured = by_id[info["id"]]
            thing = make_object(rle, base.height, base.width, category, str(info["id"]), crowd=crowd, measured=measured)
            if info.get("area", thing.area) != thing.area:
                raise RecordError("segment_area", f"area {info['area']!r} is stated, the PNG has {thing.area} px")
            objects.append(thing)
        except RecordError as error:
            record = f"segment {info['id']} (image {row.key})"
            refused.append(bad("segments", context.extra["file"], record, row, error, json.dumps(info)))
            ignored.add(info["id"])
    ignore = panoptic.rle_of(ignored & by_id.keys(), starts, owners, base.height, base.width)
    return Found(objects=tuple(objects), ignore=ignore), refused


def _samples(context: Context, base: Sample, found: Found, absent: frozenset[int] | None) -> list[Sample]:
    """absent: categories that are known not to be in a picture; None: all that have no object."""
    options: Options = context.options
    base = replace(base, objects=found.objects, ignore=found.ignore)
    if options.task == "genseg":
        known = None
        if absent is not None:
            known = sorted(absent | {base.objects[i].category_id for i in targets_of(base)})
            if not known:
                return []
        return [_generic(context, base, variant, known) for variant in options.variants]
    return region_samples(context, base, options.max_regions)


def _generic(context: Context, base: Sample, variant: str, known: Sequence[int] | None) -> Sample:
    """Categories to segment; in the semantic variant, all pixels of a category are one object, crowds among them.

    known: categories that may be asked for; None: all.
    """
    base = replace(base, sample_id=f"{base.sample_id}/{variant}", variant=variant)
    if variant == "semantic":
        base = replace(base, objects=_merged(base))
    return ask_for_categories(context, base, known)


def _merged(base: Sample) -> tuple[Object, ...]:
    merged = []
    for category in sorted({thing.category_id for thing in base.objects}):
        parts = [thing.rle for thing in base.objects if thing.category_id == category]
        rle = masks.union(parts, base.height, base.width) if len(parts) > 1 else parts[0]
        merged.append(make_object(rle, base.height, base.width, category, f"category {category}"))
    return tuple(merged)
