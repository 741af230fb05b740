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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from builders import panoptic
from builders.coco_index import Row, build_index, checked_namespace, is_whole, read_index, select
from dataengine import images, masks, tokens
from dataengine.builder import Context, IndexReport, OptionError, Outcome, Part, SourceError
from dataengine.errors import ReasonError
from dataengine.keyed import keyed
from dataengine.records import MAX_PAYLOAD, Account, Bad, Category
from dataengine.sample import Condition, Image, License, Object, Provenance, Sample
from dataengine.store.files import Folder

__all__ = ["NAME", "TASKS", "VERSION", "index", "locate", "parse_options", "read", "select"]

NAME = "coco"
VERSION = 1
TASKS = ("vgdseg", "intseg", "genseg")
Variant = Literal["instance", "panoptic", "semantic"]
NAME_ERRORS = (errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


class Options(BaseModel):
    """What a recipe may choose.

    variants: of `genseg`; `instance` reads the instances file, `panoptic` and `semantic` the panoptic one.
    categories: which are asked for in `genseg`: `all` (ascending id), `positives`, `sampled` (X-SAM's published mix:
        half the time the positives and a random number of negatives, else all; shuffled), or `auto`: `sampled` in
        splits named train…, `all` elsewhere.
    max_negatives: of a sampled list; -1 for no limit.
    max_regions: of one `intseg` sample; more objects make more samples.
    images: `embed` the file's bytes, or `reference` its whole path or URI.
    image_namespace: whose image ids these are; by default what the file's `info.image_namespace` says, else `coco`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Literal["vgdseg", "intseg", "genseg"]
    variants: tuple[Variant, ...] = Field(default=("panoptic", "semantic"), min_length=1)
    categories: Literal["all", "positives", "sampled", "auto"] = "auto"
    max_negatives: int = Field(default=-1, ge=-1, strict=True)
    max_regions: int = Field(default=32, ge=1, strict=True)
    images: Literal["embed", "reference"] = "embed"
    image_namespace: Annotated[str, AfterValidator(checked_namespace)] | None = None

    @field_validator("variants")
    @classmethod
    def _readable_together(cls, variants: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(variants)) < len(variants):
            raise ValueError("a variant is named twice")
        if "instance" in variants and len(variants) > 1:
            raise ValueError("instance is read from another file than panoptic and semantic; use two sources")
        return variants

    @property
    def is_panoptic(self) -> bool:
        return self.task == "genseg" and "instance" not in self.variants


def parse_options(task: str, options: Mapping[str, Any]) -> Options:
    """See `Builder.parse_options`."""
    if task not in TASKS:
        raise OptionError(f"{NAME} builds {', '.join(TASKS)}, not {task}")
    unknown = sorted(set(options) - set(Options.model_fields) | {"task"} & set(options))
    if unknown:
        known = ", ".join(sorted(set(Options.model_fields) - {"task"}))
        raise OptionError(f"{NAME} has no option {unknown[0]!r}; it has {known}")
    try:
        return Options.model_validate({**options, "task": task})
    except ValidationError as error:
        first = error.errors()[0]
        problem = first["msg"].removeprefix("Value error, ")
        raise OptionError(f"{NAME}: {first['loc'][0]}: {problem}, not {first['input']!r}") from None


# --- where the files are ---------------------------------------------------------------------------------------------


def locate(root: str | None, files: Mapping[str, str], splits: Sequence[str], options: Options) -> list[Part]:
    """See `Builder.locate`. Roles: `annotations`, `images`, `segments` (the folder of panoptic PNGs)."""
    kind = "panoptic" if options.is_panoptic else "instances"
    roles = ("annotations", "images") + (("segments",) if options.is_panoptic else ())
    unknown = sorted(set(files) - set(roles))
    if unknown:
        raise SourceError(f"{NAME} has no file role {unknown[0]!r} here; it has {', '.join(roles)}")
    if "annotations" in files:
        if len(splits) > 1:
            raise SourceError(f"{NAME}: one annotation file is one split, but the recipe names {', '.join(splits)}")
        stem = PurePosixPath(files["annotations"].partition("?")[0]).stem
        found = [splits[0] if splits else stem.removeprefix(f"{kind}_")]
    elif root is None:
        raise SourceError(f"{NAME}: no folder is given; use --source NAME=FOLDER, or name the files in the recipe")
    else:
        found = _splits(root, kind, splits)
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
    found = {}
    for role in roles:
        wanted = "file" if role == "annotations" else "folder"
        places = [Folder(files[role])] if role in files else []
        if not places and root is not None:
            places = [Folder(root) / name for name in candidates[role]]
        there = [place.uri for place in places if place.kind() == wanted]
        if not there:
            tried = ", ".join(place.uri for place in places) or f"no {role} in the recipe"
            raise SourceError(
                f"{NAME} {split}: the {role} {wanted} is missing (looked for: {tried}); --split chooses others"
            )
        found[role] = there[0]
    return Part(split=split, files=found)


# --- index -----------------------------------------------------------------------------------------------------------


def index(part: Part, options: Options, target: Path) -> IndexReport:
    """See `Builder.index`."""
    place = Folder(part.files["annotations"])
    name = PurePosixPath(place.uri.partition("?")[0]).name
    try:
        file = place.open()
    except OSError as error:
        raise SourceError(f"{place.uri}: cannot be read: {error.strerror or error}") from None
    with file:
        try:
            found = build_index(file, name, target, key="image_id" if options.is_panoptic else "id")
        except SourceError as error:
            raise SourceError(f"{place.uri.removesuffix(name)}{error}") from None
    categories = tuple(
        Category(id=c["id"], name=plain(c["name"]), text=clean_name(c["name"]), is_thing=bool(c.get("isthing", 1)))
        for c in sorted(found.categories, key=lambda c: c["id"])
    )
    nameless = [c.id for c in categories if not c.text]
    if nameless:
        raise SourceError(f"{place.uri}: category {nameless[0]} has no name that could be written in a question")
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


def plain(text: str) -> str:
    """Text without the lone surrogates that JSON can carry."""
    return text.encode("utf-8", "replace").decode()


def clean_name(name: str) -> str:
    """A category name as it is written in a prompt: X-SAM's AAAI form ("sky-other-merged" becomes "sky")."""
    cleaned = name
    for suffix in ("-merged", "-other", "-stuff"):
        cleaned = cleaned.replace(suffix, "")
    cleaned = cleaned if cleaned.strip("- \n\t") else name
    return tokens.escape(" ".join(cleaned.replace("-", " ").lower().split()))[0]


def image_key(namespace: str, image_id: int) -> str:
    """Identity of a picture across sources: `coco/000000000139`, the same for the 2014 and 2017 file names."""
    return f"{namespace}/{image_id:012d}"


def safe_file_name(name: Any) -> str:
    """A relative path that stays inside its folder.

    Raises:
        ValueError: it is no text, empty, absolute, or climbs out with `..`.
    """
    if not isinstance(name, str) or not name or "\0" in name or name != plain(name):
        raise ValueError(f"file_name {name!r} is no file name")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"^[A-Za-z]:", name):
        raise ValueError(f"file_name {name!r} leaves its folder")
    return str(path)


# --- samples ---------------------------------------------------------------------------------------------------------


class RecordError(ReasonError):
    """A record that cannot be used."""


def read(context: Context, index: Folder, start: int, stop: int) -> Iterator[Outcome]:
    """See `Builder.read`. Counts images and annotations; panoptic ones also segments."""
    for row in read_index(index, start, stop):
        yield _outcome(context, row)


def _outcome(context: Context, row: Row) -> Outcome:
    name = context.extra["file"]
    try:
        base = _base(context, name, row)
        if context.options.is_panoptic:
            found, bad = _segments(context, name, row, base)
        else:
            found, bad = objects_of(row, name, base.height, base.width, {c.id for c in context.categories})
        samples = _samples(context, base, found)
    except RecordError as error:
        return _quarantined(context, name, row, error)
    except (OSError, MemoryError, SourceError):
        raise
    except Exception as error:  # a defect; but this picture's, not the job's
        return _quarantined(context, name, row, RecordError("internal_error", f"{type(error).__name__}: {error}"))
    account = _account(context, row, found, bad, built=bool(samples))
    return Outcome(group=str(row.image_id), samples=samples, bad=bad, account=account)


def _quarantined(context: Context, name: str, row: Row, error: RecordError) -> Outcome:
    """What becomes of a picture that cannot be used; its annotations are counted as left out."""
    payload = f'{{"image": {row.image}, "annotations": [{", ".join(row.annotations)}]}}'
    bad = _bad("images", name, f"image {row.image_id}", row, error, payload)
    left_out = Counter(annotations=len(row.annotations))
    if context.options.is_panoptic:
        left_out["segments"] = _num_segments(row)
    account = Account(read=Counter(images=1) + left_out)
    for unit, number in left_out.items():
        account.filter(unit, "image_quarantined", number)
    account.quarantine([bad])
    return Outcome(group=str(row.image_id), bad=[bad], account=account)


def _num_segments(row: Row) -> int:
    """How many segments a panoptic picture states."""
    try:
        infos = json.loads(row.annotations[0]).get("segments_info") if row.annotations else None
    except RecursionError:
        return 0
    return len(infos) if isinstance(infos, list) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The objects of a picture, and the pixels that count neither way."""

    objects: tuple[Object, ...]
    ignore: bytes | None = None


def _account(context: Context, row: Row, found: Found, bad: list[Bad], built: bool) -> Account:
    account = Account(read=Counter(images=1, annotations=len(row.annotations)))
    account.quarantine(bad)
    whole = Counter(images=1, annotations=len(found.objects))
    if built and context.options.task == "intseg":  # crowds stay out of it
        crowds = sum(thing.crowd for thing in found.objects)
        whole["annotations"] -= crowds
        account.filter("annotations", "crowd", crowds)
    if context.options.is_panoptic:
        refused = sum(b.unit == "segments" for b in bad)
        account.read["segments"] = len(found.objects) + refused
        whole = Counter(images=1, annotations=len(row.annotations), segments=len(found.objects))
    if built:
        account.built = whole
    else:
        for unit, count in whole.items():
            account.filter(unit, "no_target", count)
    return account


def _base(context: Context, name: str, row: Row) -> Sample:
    """The sample of a picture with nothing in it yet; the picture is read and its header checked."""
    value = json.loads(row.image)
    height, width = value.get("height"), value.get("width")
    if not is_whole(height) or not is_whole(width) or not 0 < height * width < masks.MAX_PIXELS:
        raise RecordError("bad_field", f"height {height!r} and width {width!r} must be whole numbers of pixels")
    try:
        file_name = safe_file_name(value.get("file_name"))
    except ValueError as error:
        raise RecordError("unsafe_file_name", str(error)) from None
    folder = Folder(context.part.files["images"])
    data = _picture(folder, file_name)
    try:
        images.check(data, height, width)
    except images.ImageError as error:
        raise RecordError(error.reason, f"{file_name}: {error}") from None
    key = image_key(context.options.image_namespace or context.extra["image_namespace"] or "coco", row.image_id)
    names = context.extra["licenses"].get(str(value.get("license")), (None, None))
    return Sample(
        sample_id=f"{context.source}/{context.part.split}/{key}/{context.task}",
        task=context.options.task,
        source=context.source,
        split=context.part.split,
        image=Image(bytes=data, path=file_name)
        if context.options.images == "embed"
        else Image(bytes=None, path=(folder / file_name).uri),
        image_key=key,
        height=height,
        width=width,
        license=License(name=names[0], url=names[1]),
        provenance=Provenance(
            file=name, record=f"image {row.image_id}", builder=NAME, version=VERSION, seed=context.seed
        ),
    )


def _picture(folder: Folder, file_name: str) -> bytes:
    try:
        return folder.read(file_name)
    except FileNotFoundError:
        if folder.kind() != "folder":  # not this record's fault: the source went away
            raise SourceError(f"{folder.uri}: the image folder is gone") from None
        raise RecordError("image_missing", f"{file_name} is not in the image folder") from None
    except OSError as error:
        if error.errno not in NAME_ERRORS:  # the disk or the network, not this record
            raise
        raise RecordError("image_unreadable", f"{file_name} cannot be read: {error.strerror}") from None


def objects_of(row: Row, file: str, height: int, width: int, categories: set[int]) -> tuple[Found, list[Bad]]:
    """The objects of one image's instances, and the annotations that cannot be used.

    Every annotation is in exactly one of the two. Crowds are kept, flagged.
    """
    objects, bad = [], []
    for text in row.annotations:
        value = json.loads(text)
        try:
            category = _category(value.get("category_id"), categories)
            rle = masks.rle_from_segmentation(value.get("segmentation"), height, width)
            crowd = _flag(value.get("iscrowd", 0))
            objects.append(_object(rle, height, width, category, str(value["id"]), crowd))
        except (masks.MaskError, RecordError) as error:
            bad.append(_bad("annotations", file, f"annotation {value['id']} (image {row.image_id})", row, error, text))
    return Found(objects=tuple(objects)), bad


def _bad(unit: str, file: str, record: str, row: Row, error: masks.MaskError | RecordError, text: str) -> Bad:
    return Bad(
        unit=unit,
        file=file,
        record=record,
        group=str(row.image_id),
        reason=error.reason,
        message=str(error),
        payload=text[:MAX_PAYLOAD],
    )


def _category(value: Any, categories: set[int]) -> int:
    if not is_whole(value) or value not in categories:
        raise RecordError("unknown_category", f"category {value!r} does not exist")
    return int(value)


def _flag(value: Any) -> bool:
    if value not in (0, 1):  # True and False are 1 and 0
        raise RecordError("bad_field", f"iscrowd must be 0 or 1, not {value!r}")
    return bool(value)


def _object(rle: bytes, height: int, width: int, category: int, annotation_id: str, crowd: bool) -> Object:
    area, (x, y, w, h) = masks.measure(rle, height, width)
    return Object(
        rle=rle,
        bbox=(float(x), float(y), float(w), float(h)),
        area=area,
        category_id=category,
        annotation_id=annotation_id,
        crowd=crowd,
    )


def _segments(context: Context, file: str, row: Row, base: Sample) -> tuple[Found, list[Bad]]:
    """The segments of a panoptic picture, and those that cannot be used.

    Void pixels count neither way, and those of refused segments do not: what they show is not known.
    """
    if not row.annotations:
        raise RecordError("no_segments", "the picture has no panoptic annotation")
    value = json.loads(row.annotations[0])
    infos = value.get("segments_info")
    if not isinstance(infos, list) or not all(isinstance(i, dict) and is_whole(i.get("id")) for i in infos):
        raise RecordError("bad_field", "segments_info must be a list of segments with whole-number ids")
    if len({i["id"] for i in infos}) < len(infos):
        raise RecordError("duplicate_segment", "segments_info gives an id twice")
    try:
        file_name = safe_file_name(value.get("file_name"))
        rles = panoptic.rles_from_png(Folder(context.part.files["segments"]).read(file_name), base.height, base.width)
    except ValueError as error:
        reason = error.reason if isinstance(error, images.ImageError) else "unsafe_file_name"
        raise RecordError(reason, f"panoptic PNG: {error}") from None
    except OSError as error:
        if error.errno not in (errno.ENOENT, *NAME_ERRORS) and not isinstance(error, FileNotFoundError):
            raise
        raise RecordError("segments_missing", f"panoptic PNG {file_name} is not in its folder") from None
    stray = sorted(set(rles) - {i["id"] for i in infos} - {panoptic.VOID})
    if stray:
        raise RecordError("unknown_segment", f"the PNG has segment {stray[0]}, which segments_info does not")
    objects, bad, ignored = [], [], {panoptic.VOID}
    categories = {c.id for c in context.categories}
    for info in sorted(infos, key=lambda i: i["id"]):
        try:
            category = _category(info.get("category_id"), categories)
            if info["id"] not in rles or info["id"] == panoptic.VOID:
                raise RecordError("empty_mask", "the segment has no pixel in the PNG")
            crowd = _flag(info.get("iscrowd", 0))
            thing = _object(rles[info["id"]], base.height, base.width, category, str(info["id"]), crowd)
            if info.get("area", thing.area) != thing.area:
                raise RecordError("segment_area", f"area {info['area']!r} is stated, the PNG has {thing.area} px")
            objects.append(thing)
        except RecordError as error:
            bad.append(
                _bad("segments", file, f"segment {info['id']} (image {row.image_id})", row, error, json.dumps(info))
            )
            ignored.add(info["id"])
    void = [rles[name] for name in sorted(ignored) if name in rles]
    return Found(objects=tuple(objects), ignore=masks.union(void, base.height, base.width) if void else None), bad


def _samples(context: Context, base: Sample, found: Found) -> list[Sample]:
    options: Options = context.options
    names = {c.id: c.text for c in context.categories}
    base = replace(base, objects=found.objects, ignore=found.ignore)
    targets = [i for i, thing in enumerate(found.objects) if not thing.crowd]
    if options.task == "genseg":
        return [_generic(context, base, variant) for variant in options.variants]
    if not targets:
        return []
    if options.task == "vgdseg":
        rng = keyed(context.seed, base.sample_id, "categories", VERSION)
        present = sorted({found.objects[i].category_id for i in targets})
        conditions = [
            Condition(kind="region", text=names[c], category_id=c, objects=_of_category(found.objects, targets, c))
            for c in rng.permutation(present).tolist()
        ]
        return [replace(base, conditions=tuple(conditions))]
    chunks = [targets[at : at + options.max_regions] for at in range(0, len(targets), options.max_regions)]
    return [_interactive(base, chunk, names, number) for number, chunk in enumerate(chunks)]


def _of_category(objects: Sequence[Object], targets: Sequence[int], category: int) -> tuple[int, ...]:
    return tuple(i for i in targets if objects[i].category_id == category)


def _interactive(base: Sample, chunk: Sequence[int], names: Mapping[int, str], number: int) -> Sample:
    """One region for each object of the chunk; the picture's other objects stay out."""
    objects = tuple(base.objects[i] for i in chunk)
    conditions = tuple(
        Condition(kind="region", text=names[thing.category_id], category_id=thing.category_id, objects=(i,), exemplar=i)
        for i, thing in enumerate(objects)
    )
    return replace(base, sample_id=f"{base.sample_id}/{number}", objects=objects, conditions=conditions)


def _generic(context: Context, base: Sample, variant: str) -> Sample:
    """Categories to segment; in the semantic variant, all pixels of a category are one object, crowds among them."""
    base = replace(base, sample_id=f"{base.sample_id}/{variant}", variant=variant)
    if variant == "semantic":
        base = replace(base, objects=_merged(base))
    targets = [i for i, thing in enumerate(base.objects) if not thing.crowd]
    present = {base.objects[i].category_id for i in targets}
    rng = keyed(context.seed, base.sample_id, "categories", VERSION)
    chosen = choose_categories(
        present, [c.id for c in context.categories], _mode(context), context.options.max_negatives, rng
    )
    names = {c.id: c.text for c in context.categories}
    conditions = tuple(
        Condition(kind="phrase", text=names[c], category_id=c, objects=_of_category(base.objects, targets, c))
        for c in chosen
    )
    return replace(base, conditions=conditions)


def _merged(base: Sample) -> tuple[Object, ...]:
    merged = []
    for category in sorted({thing.category_id for thing in base.objects}):
        parts = [thing.rle for thing in base.objects if thing.category_id == category]
        rle = masks.union(parts, base.height, base.width) if len(parts) > 1 else parts[0]
        merged.append(_object(rle, base.height, base.width, category, f"category {category}", crowd=False))
    return tuple(merged)


def _mode(context: Context) -> str:
    mode: str = context.options.categories
    return mode if mode != "auto" else "sampled" if context.part.split.startswith("train") else "all"


def choose_categories(
    present: set[int], every: Sequence[int], mode: str, max_negatives: int, rng: np.random.Generator
) -> list[int]:
    """Category ids to ask for in one sample, in the order of the question.

    `sampled` is X-SAM's training rule ("full & variant"): with probability 1/2 the positives and U{0..n} of the n
    absent categories, else all; shuffled. Where a picture has no positives, at least one negative is asked for.

    Args:
        present: ids with an object in the picture. every: all ids, ascending.
        max_negatives: upper bound of the negatives in a sampled list; -1 for none.
    """
    absent = [c for c in every if c not in present]
    if mode == "all" or (mode == "positives" and not present):
        return list(every)
    positives = sorted(present)
    if mode == "positives":
        return positives
    if max_negatives < 0 and rng.random() >= 0.5:
        return [int(c) for c in rng.permutation(np.array(every))]
    most = len(absent) if max_negatives < 0 else min(len(absent), max_negatives)
    number = int(rng.integers(0 if positives else min(1, most), most + 1))
    negatives = rng.permutation(np.array(absent, dtype=np.int64))[:number].tolist()
    return [int(c) for c in rng.permutation(np.array(positives + negatives, dtype=np.int64))]
