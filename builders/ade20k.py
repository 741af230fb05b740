"""ADE20K: label maps to semantic, instance and panoptic `genseg` and `ovseg`.

Two editions. 2016 (ADEChallengeData2016, SceneParse150): pictures in `images/{split}/`, label maps in
`annotations/{split}/`, instances in `annotations_instance/{split}/`, names in `objectInfo150.txt`.
2021 (full ADE20K, ADE20K_2021_17_01): `images/ADE/{split}/` with folders of scenes.
Category ids are 0 to 149 as in detectron2's files, and `name_ndx` in the 2021 edition.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, field_validator

from builders import ade20k_files, ade20k_maps, ade20k_names, places
from builders import options as opts
from builders.ade20k_maps import Maps, Meaning, Segments, Variant
from builders.categories import ask_for_categories
from builders.pictures import read_picture, safe_file_name, sample_of
from builders.reading import bad, outcomes
from builders.rows import Gathering, Row, read_keys, read_rows, select
from dataengine.builder import About, Context, IndexReport, Outcome, Part, SourceError
from dataengine.jsonstream import decode
from dataengine.records import Account, Bad, Category
from dataengine.sample import License, Sample
from dataengine.store.files import Folder

__all__ = [
    "ABOUT",
    "EDITIONS",
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

NAME = "ade20k"
VERSION = 1
TASKS = ("ovseg", "genseg")
ABOUT = About(
    title="ADE20K",
    url="https://groups.csail.mit.edu/vision/datasets/ADE20K/",
    license=License(
        name="ADE20K terms of use (pictures: non-commercial research and education)",
        url="https://groups.csail.mit.edu/vision/datasets/ADE20K/terms/",
    ),
)
HELD_OUT = ("validation",)
EDITIONS = ({"edition": "2016"}, {"edition": "2021"})
MARKS = (
    "annotations/training/ADE_train_*.png",
    "annotations/validation/ADE_val_*.png",
    "annotations/ADE_val_*.png",
    "annotations_instance/*/ADE_*.png",
    "images/ADE/training",
    "images/ADE/validation",
)
HOMES = {"2016": ("", "ADEChallengeData2016/"), "2021": ("images/ADE/", "ADE20K_2021_17_01/images/ADE/")}
LAYOUTS = {
    "2016": "images/SPLIT/*.jpg and annotations/SPLIT/*.png (annotations_instance/SPLIT/*.png for instances)",
    "2021": "images/ADE/SPLIT/SCENE/…/STEM.jpg with STEM_seg.png and STEM.json",
}


class Options(opts.SourceOptions):
    """What a recipe may choose.

    edition: 2016 (SceneParse150) or 2021 (all classes; the stuff of SceneParse150 is stuff there, all else are things).
    variants: `semantic` reads `annotations`, `instance` reads `annotations_instance`, `panoptic` both.
    names: of a category with synonyms ("road, route"), the question says the `first`, or `all` as X-SAM does.
    categories, max_negatives: as for `coco`; `auto` is `all` in `ovseg`. The instance variant asks for things alone.
    """

    task: Literal["ovseg", "genseg"]
    edition: Literal["2016", "2021"] = "2016"
    variants: tuple[Variant, ...] = Field(default=("semantic",), min_length=1)
    names: Literal["first", "all"] = "first"
    categories: Literal["all", "positives", "sampled", "auto"] = "auto"
    max_negatives: int = Field(default=-1, ge=-1, strict=True)

    @field_validator("edition", mode="before")
    @classmethod
    def _as_text(cls, edition: object) -> object:
        return str(edition) if isinstance(edition, int) else edition

    @field_validator("variants")
    @classmethod
    def _once_each(cls, variants: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(variants)) < len(variants):
            raise ValueError("a variant is named twice")
        return variants

    @property
    def maps(self) -> tuple[str, ...]:
        """Roles of the folders of label maps that are read."""
        if self.edition == "2021":
            return ()
        wanted = {"annotations": {"semantic", "panoptic"}, "instances": {"instance", "panoptic"}}
        return tuple(role for role, variants in wanted.items() if variants & set(self.variants))


def parse_options(task: str, options: Mapping[str, Any]) -> Options:
    """See `Builder.parse_options`."""
    return opts.parse(Options, NAME, TASKS, task, options)


# --- where the files are ---------------------------------------------------------------------------------------------


def locate(root: str | None, files: Mapping[str, str], splits: Sequence[str], options: Options) -> list[Part]:
    """See `Builder.locate`.

    Roles: `images`; in 2016 also the folders `annotations` and `instances`, and where there are such files, `names`
    and `mapping`.
    """
    folders = ("images", *options.maps)
    extras = ("names", "mapping") if options.edition == "2016" else ()
    places.check_roles(NAME, files, (*folders, *extras))
    main = folders[1] if options.maps else "images"
    if main in files:
        if len(splits) > 1:
            raise SourceError(f"{NAME}: one folder of {main} is one split, but the recipe names {', '.join(splits)}")
        found = {splits[0] if splits else PurePosixPath(files[main].partition("?")[0]).name: False}
    else:
        found = _splits(places.given_root(NAME, root), splits, options)
    return [_part(root, files, split, flat, folders, extras, options) for split, flat in found.items()]


def _splits(root: str, wanted: Sequence[str], options: Options) -> dict[str, bool]:
    """The splits to read, and whether there is one folder for all of them.

    A folder without splits is the validation split, which must not be trained on, unless it holds none of its pictures.
    """
    there: dict[str, bool] = {}
    for home in HOMES[options.edition]:
        base = _published(options.maps[0]) if options.maps else ""
        entries = (Folder(root) / f"{home}{base}" if home or base else Folder(root)).entries()
        there |= {entry[:-1]: False for entry in entries if entry.endswith("/")}
        if not there and options.edition == "2016" and any(entry.endswith(".png") for entry in entries):
            held_out = any(entry.startswith("ADE_val_") for entry in entries)
            there["validation" if held_out else "training"] = True
        if there:
            break
    found = places.check_splits(NAME, root, wanted, there, LAYOUTS[options.edition] + _hint(root, options))
    return {split: there[split] for split in found}


def _hint(root: str, options: Options) -> str:
    other = "2021" if options.edition == "2016" else "2016"
    names = ("images/ADE", "ADE20K_2021_17_01") if other == "2021" else ("annotations", "ADEChallengeData2016")
    is_other = any((Folder(root) / name).kind() == "folder" for name in names)
    return f"; the option edition: {other} reads another layout, which is here" if is_other else ""


def _published(role: str) -> str:
    return "annotations_instance" if role == "instances" else role


def _part(
    root: str | None,
    files: Mapping[str, str],
    split: str,
    flat: bool,
    folders: Sequence[str],
    extras: Sequence[str],
    options: Options,
) -> Part:
    homes = HOMES[options.edition]
    found = {}
    for role in folders:
        below = split if options.edition == "2021" else _published(role) if flat else f"{_published(role)}/{split}"
        found[role] = places.find(f"{NAME} {split}", role, "folder", root, files, [f"{home}{below}" for home in homes])
    published = {"names": "objectInfo150.txt", "mapping": "ade20k_instance_catid_mapping.txt"}
    for role in extras:
        candidates = [f"{home}{published[role]}" for home in homes]
        if role in files or (root and any((Folder(root) / c).kind() == "file" for c in candidates)):
            found[role] = places.find(f"{NAME} {split}", role, "file", root, files, candidates)
    return Part(split=split, files=found)


# --- index -----------------------------------------------------------------------------------------------------------


def index(part: Part, options: Options, target: Path) -> IndexReport:
    """See `Builder.index`."""
    inputs = {}
    names = dict(enumerate(ade20k_names.NAMES))
    instances = dict(enumerate((number - 1 for number in ade20k_names.INSTANCE_CLASSES), start=1))
    if "names" in part.files:
        data = _whole(part.files["names"])
        names = dict(enumerate(ade20k_names.read_names(data, part.files["names"])))
        inputs["names"] = hashlib.sha256(data).hexdigest()
    if "mapping" in part.files:
        data = _whole(part.files["mapping"])
        found = ade20k_names.read_instance_classes(data, part.files["mapping"])
        instances = {label: number - 1 for label, number in found.items()}
        inputs["mapping"] = hashlib.sha256(data).hexdigest()
    things = set(instances.values())
    if options.edition == "2021":
        listed = ade20k_files.list_full(Folder(part.files["images"]), _label(part))
        names = listed.names
        things = {number for number, name in names.items() if name not in _stuff_names()}
        instances = {number: number for number in things}
    else:
        folders = {role: Folder(part.files[role]) for role in ("images", *options.maps)}
        listed = ade20k_files.list_challenge(folders, _label(part))
    categories = ade20k_names.make_categories(names, things, options.names)
    if not listed.rows:
        problem = f"; the first: {listed.bad[0]}" if listed.bad else ""
        raise SourceError(f"{part.files['images']}: no picture has all its files{problem}")
    if not categories or (not things and "instance" in options.variants):
        raise SourceError(f"{part.files['images']}: no category is described that could be asked for")
    return _write(part, listed, categories, instances, inputs, target)


def _stuff_names() -> set[str]:
    """Names of SceneParse150's stuff; full ADE20K calls these classes the same."""
    things = set(ade20k_names.INSTANCE_CLASSES)
    return {name for number, name in enumerate(ade20k_names.NAMES, start=1) if number not in things}


def _write(
    part: Part,
    listed: ade20k_files.Listed,
    categories: tuple[Category, ...],
    instances: Mapping[int, int],
    inputs: Mapping[str, str],
    target: Path,
) -> IndexReport:
    with Gathering(target.parent) as gathering:
        for number, (stem, record) in enumerate(sorted(listed.rows.items())):
            gathering.row(number, stem, json.dumps(record))
        list(gathering.settle())
        written = gathering.write(target)
    account = Account(read=Counter(found.unit for found in listed.bad))
    account.quarantine(listed.bad)
    return IndexReport(
        rows=written.rows,
        records=written.rows,
        account=account,
        bad=tuple(listed.bad),
        categories=categories,
        inputs=inputs,
        extra={"file": _label(part), "instances": sorted(instances.items())},
        fingerprint=written.fingerprint,
    )


def _label(part: Part) -> str:
    """What messages call the folder of label maps: its path below the root."""
    uri = next(part.files[role] for role in ("annotations", "instances", "images") if role in part.files)
    path = PurePosixPath(uri.partition("?")[0])
    return f"{path.parent.name}/{path.name}" if path.name == part.split else path.name


def _whole(uri: str) -> bytes:
    try:
        return Folder(uri).read()
    except OSError as error:
        raise SourceError(f"{uri}: cannot be read: {error.strerror or error}") from None


def image_keys(context: Context, index: Folder) -> Iterator[str]:
    """See `Builder.image_keys`."""
    return (_key(stem) for stem in read_keys(index))


def _key(stem: str) -> str:
    return f"ade20k/{stem}"


# --- samples ---------------------------------------------------------------------------------------------------------


def read(context: Context, index: Folder, start: int, stop: int) -> Iterator[Outcome]:
    """See `Builder.read`. Counts images; segments, once for each variant; of the 2021 edition also parts."""
    is_full = context.options.edition == "2021"
    meaning = Meaning(
        classes={c.id if is_full else c.id + 1: c.id for c in context.categories},
        things={label: category for label, category in context.extra["instances"]},
        stuff=frozenset(c.id for c in context.categories if not c.is_thing),
    )
    return outcomes(context, read_rows(index, start, stop), lambda c, row: _outcome(c, row, meaning), _held)


def _held(row: Row) -> Counter[str]:
    """Parts that a picture's row holds; its segments are known only when its maps are read."""
    return Counter(parts=decode(row.record).get("parts", 0))


def _outcome(context: Context, row: Row, meaning: Meaning) -> Outcome:
    record = decode(row.record)
    picture = read_picture(Folder(context.part.files["images"]), [safe_file_name(record["images"])])
    named = next(record[role] for role in ("annotations", "instances", "segments") if role in record)
    file = f"{context.extra['file']}/{named}"
    base = sample_of(context, picture, key=_key(row.key), file=file, record=f"image {row.key}")
    maps = _maps(context, record, meaning, base.height, base.width)
    account = Account(read=_held(row) + Counter(images=1), built=Counter(images=1))
    account.filter("parts", "part", account.read["parts"])
    outcome = Outcome(group=row.key, account=account)
    for variant in context.options.variants:
        found = ade20k_maps.segments(maps, variant, meaning)
        refused = [
            bad("segments", file, f"{name} ({variant}, image {row.key})", row, error, row.record)
            for name, error in found.refused
        ]
        _count(account, found, refused)
        outcome.bad += refused
        outcome.samples.append(_sample(context, base, variant, found, meaning))
    return outcome


def _maps(context: Context, record: Mapping[str, Any], meaning: Meaning, height: int, width: int) -> Maps:
    """The label maps of a picture. Raises RecordError."""
    if "segments" in record:
        name = safe_file_name(record["segments"])
        return ade20k_maps.read_full(Folder(context.part.files["images"]), name, meaning.stuff, height, width)
    classes, things = (
        (Folder(context.part.files[role]), safe_file_name(record[role])) if role in record else None
        for role in ("annotations", "instances")
    )
    return ade20k_maps.read_challenge(classes, things, height, width)


def _count(account: Account, found: Segments, refused: Sequence[Bad]) -> None:
    account.read["segments"] += len(found.objects) + len(refused) + found.filtered.total()
    account.built["segments"] += len(found.objects)
    account.quarantine(refused)
    for reason, number in found.filtered.items():
        account.filter("segments", reason, number)


def _sample(context: Context, base: Sample, variant: Variant, found: Segments, meaning: Meaning) -> Sample:
    base = replace(
        base,
        sample_id=f"{base.sample_id}/{variant}",
        variant=variant,
        objects=tuple(found.objects),
        ignore=found.ignore,
    )
    asked = [c.id for c in context.categories if c.is_thing or variant != "instance"]
    return ask_for_categories(context, base, asked)
