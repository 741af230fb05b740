"""LVIS v1: instances of 1,203 categories over COCO pictures, to `vgdseg`, `intseg` and instance `genseg`.

Published layout: `lvis_v1_{train,val}.json`, beside or above a COCO folder with `train2017/` and `val2017/`. Its
annotation is federated: in a picture, only the categories that were annotated to the last instance and those that
people found absent are known, and only these are asked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field

from builders import options as opts
from builders import places
from builders.categories import ask_for_categories, category_regions, object_regions, targets_of
from builders.coco import exemplars, known_of, license_of, objects_of
from builders.coco_index import index_file
from builders.pictures import coco_id, coco_names, numbered_key, read_picture, safe_file_name, sample_of
from builders.reading import RecordError, checked_size, outcomes, plain
from builders.rows import Row, read_keys, read_rows, select
from dataengine import tokens
from dataengine.builder import About, Context, IndexReport, Outcome, Part, SourceError
from dataengine.jsonstream import decode
from dataengine.records import Account, Category
from dataengine.sample import License, Object, Sample
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

NAME = "lvis"
VERSION = 1
TASKS = ("genseg", "vgdseg", "intseg")
ABOUT = About(
    title="LVIS v1",
    url="https://www.lvisdataset.org/dataset",
    license=License(name="CC BY 4.0", url="https://creativecommons.org/licenses/by/4.0/"),
)
HELD_OUT = ("val",)
MARKS = ("lvis_v1_*.json", "annotations/lvis_v1_*.json")
SPLITS = ("train", "val")
LAYOUT = "lvis_v1_SPLIT.json, or annotations/lvis_v1_SPLIT.json"
PICTURES = ("../coco/", "", "coco/", "../coco/images/", "images/", "../", "../images/")
PICTURE_FOLDERS = ("train2017", "val2017", "train2014", "val2014")


class Options(opts.NumberedOptions):
    """What a recipe may choose.

    categories: which are asked for in `genseg`: `all` that are known in the picture, the present and the negative
        ones; `positives`; `sampled` (X-SAM's published mix, over those known), or `auto`: `sampled` in splits named
        train…, `all` elsewhere.
    max_negatives: of a sampled list; -1 for no limit.
    max_regions: of one `intseg` sample; more objects make more samples.
    not_exhaustive: of categories whose instances are not all annotated in the picture; `filter` leaves them and their
        annotations out of `genseg` and `vgdseg`, `keep` asks for them as for any other.
    """

    task: Literal["genseg", "vgdseg", "intseg"]
    categories: Literal["all", "positives", "sampled", "auto"] = "auto"
    max_negatives: int = Field(default=-1, ge=-1, strict=True)
    max_regions: int = Field(default=32, ge=1, strict=True)
    not_exhaustive: Literal["filter", "keep"] = "filter"


def parse_options(task: str, options: Mapping[str, Any]) -> Options:
    """See `Builder.parse_options`."""
    return opts.parse(Options, NAME, TASKS, task, options)


# --- where the files are ---------------------------------------------------------------------------------------------


def locate(root: str | None, files: Mapping[str, str], splits: Sequence[str], options: Options) -> list[Part]:
    """See `Builder.locate`. Roles: `annotations`, `images` (the folder that holds `train2017/` and `val2017/`).

    Files other than those of `train` and `val` (`lvis_v1_train_norare.json`) are read where their split is named.
    """
    places.check_roles(NAME, files, ("annotations", "images"))
    if "annotations" in files:
        if len(splits) > 1:
            raise SourceError(f"{NAME}: one annotation file is one split, but the recipe names {', '.join(splits)}")
        stem = PurePosixPath(files["annotations"].partition("?")[0]).stem
        found = [splits[0] if splits else stem.removeprefix("lvis_v1_")]
    else:
        given = places.given_root(NAME, root)
        there = [split for split in _annotated(given) if split in SPLITS or split in splits]
        found = places.check_splits(NAME, given, splits, there, LAYOUT)
    return [_part(root, files, split) for split in found]


def _annotated(root: str) -> list[str]:
    """The splits that have an annotation file."""
    names = {*Folder(root).names(), *(Folder(root) / "annotations").names()}
    found = (re.fullmatch(r"lvis_v1_([A-Za-z0-9_.-]+)\.json", name) for name in sorted(names))
    return [match.group(1) for match in found if match]


def _part(root: str | None, files: Mapping[str, str], split: str) -> Part:
    name, what = f"lvis_v1_{split}.json", f"{NAME} {split}"
    annotations = places.find(what, "annotations", "file", root, files, [name, f"annotations/{name}"])
    candidates = [f"{place}{folder}" for place in PICTURES for folder in PICTURE_FOLDERS]
    images = places.find(what, "images", "folder", root, files, candidates)
    return Part(
        split=split,
        files={"annotations": annotations, "images": images if "images" in files else Folder(images).parent.uri},
    )


# --- index -----------------------------------------------------------------------------------------------------------


def index(part: Part, options: Options, target: Path) -> IndexReport:
    """See `Builder.index`."""
    place = Folder(part.files["annotations"])
    name = PurePosixPath(place.uri.partition("?")[0]).name
    found = index_file(place, name, target)
    categories = categories_of(found.categories)
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
        extra={
            "licenses": found.licenses,
            "image_namespace": found.namespace,
            "file": name,
            "frequency": {
                str(c["id"]): c["frequency"] for c in found.categories if c.get("frequency") in ("r", "c", "f")
            },
        },
        fingerprint=found.fingerprint,
    )


def categories_of(records: Sequence[Mapping[str, Any]]) -> tuple[Category, ...]:
    """The categories by ascending id, their names in words.

    Names are lower case with blanks. A qualifier goes where the word alone can mean no other category, by name or
    synonym (`bus_(vehicle)` is "bus"), else it stays (`bow_(weapon)` is "bow (weapon)", for there are other bows).
    Synonyms are written alike; those that are the name of another category are left out.
    """
    published = {record["id"]: [record["name"], *_synonyms(record)] for record in records}
    meanings: dict[str, set[int]] = {}
    for number, names in published.items():
        for name in names:
            for form in _forms(name):
                meanings.setdefault(form, set()).add(number)

    def written(name: str) -> str:
        full, short = _forms(name)
        return short if len(meanings[short]) == 1 else full

    texts = {number: written(names[0]) for number, names in published.items()}
    shared = {text for text, number in Counter(texts.values()).items() if number > 1}
    texts = {n: tokens.escape(published[n][0])[0] if text in shared else text for n, text in texts.items()}
    taken = set(texts.values())
    return tuple(
        Category(
            id=number,
            name=plain(names[0]),
            text=texts[number],
            synonyms=tuple(dict.fromkeys(w for name in names[1:] if (w := written(name)) and w not in taken)),
        )
        for number, names in sorted(published.items())
    )


def _synonyms(record: Mapping[str, Any]) -> list[str]:
    value = record.get("synonyms")
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _forms(name: str) -> tuple[str, str]:
    """A name in words, with its qualifier and without; what stands behind the qualifier repeats it."""
    words = " ".join(name.replace("_", " ").lower().split())
    found = re.fullmatch(r"([^()]+?) ?\(([^()]+)\).*", words)
    full, short = (f"{found[1]} ({found[2].strip()})", found[1]) if found else (words, words)
    return tokens.escape(full)[0], tokens.escape(short)[0]


def image_keys(context: Context, index: Folder) -> Iterator[str]:
    """See `Builder.image_keys`."""
    for key in read_keys(index):
        yield numbered_key(_namespace(context), int(key))


def _namespace(context: Context) -> str:
    return context.options.image_namespace or context.extra["image_namespace"] or "coco"


# --- samples ---------------------------------------------------------------------------------------------------------


def read(context: Context, index: Folder, start: int, stop: int) -> Iterator[Outcome]:
    """See `Builder.read`. Counts images and annotations."""
    names = {c.id: c.text for c in context.categories}
    make = partial(_outcome, names=names)
    return outcomes(context, read_rows(index, start, stop), make, lambda row: Counter(annotations=len(row.members)))


def _outcome(context: Context, row: Row, *, names: Mapping[int, str]) -> Outcome:
    value = decode(row.record)
    base = _base(context, row, value)
    every, refused = objects_of(row, context.extra["file"], base.height, base.width, names.keys())
    keep = context.options.task == "intseg" or context.options.not_exhaustive == "keep"
    known, absent = known_of(value, every, names.keys(), keep=keep)
    account = Account(read=Counter(images=1, annotations=len(row.members)))
    account.quarantine(refused)
    account.filter("annotations", "not_exhaustive", len(every.objects) - len(known.objects))
    kept = known.objects
    samples = _samples(context, base, kept, absent, names)
    _settle(account, context.options.task, kept, bool(samples))
    return Outcome(group=row.key, samples=samples, bad=refused, account=account, absent=absent)


def _base(context: Context, row: Row, value: dict[str, Any]) -> Sample:
    """The sample of a picture with nothing in it yet; the picture is found by its `coco_url` and checked."""
    height, width = checked_size(value)
    url = value.get("coco_url")
    path = "/".join(url.split("/")[-2:]) if isinstance(url, str) else None
    name = safe_file_name(path, "coco_url")
    number = int(row.key)
    if coco_id(name) not in (None, number):  # it would pass for another picture wherever identities are compared
        raise RecordError("bad_field", f"coco_url {name!r} is not the picture of image {number}")
    names = coco_names(number, name)
    return sample_of(
        context,
        read_picture(Folder(context.part.files["images"]), names, height, width),
        key=numbered_key(_namespace(context), number),
        file=context.extra["file"],
        record=f"image {row.key}",
        license=license_of(context, value),
    )


def _samples(
    context: Context, base: Sample, objects: tuple[Object, ...], absent: frozenset[int], names: Mapping[int, str]
) -> list[Sample]:
    """absent: categories that are known not to be in the picture."""
    options: Options = context.options
    base = replace(base, objects=objects)
    if options.task == "vgdseg":
        return category_regions(context, base, names)
    if options.task == "intseg":
        return object_regions(base, names, options.max_regions)
    present = {objects[i].category_id for i in targets_of(base)}
    known = sorted(present | absent)
    if not known:
        return []
    base = replace(base, sample_id=f"{base.sample_id}/instance", variant="instance")
    return [ask_for_categories(context, base, known)]


def _settle(account: Account, task: str, kept: Sequence[Object], built: bool) -> None:
    """Count the picture, and those of its annotations that are neither refused nor withheld."""
    if not built:
        account.filter("images", "no_target")
        account.filter("annotations", "no_target", len(kept))
        return
    crowds = sum(thing.crowd for thing in kept) if task == "intseg" else 0
    account.filter("annotations", "crowd", crowds)
    account.built = Counter(images=1, annotations=len(kept) - crowds)
