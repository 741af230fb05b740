"""RefCOCO, RefCOCO+, RefCOCOg and RefCLEF: `refseg`.

In training splits a picture is one sample with all its phrases, cut into chunks; every sentence is used equally often.
Elsewhere each pair of a ref and a sentence is a sample, as the benchmarks score them. A ref belongs to its own split
(X-SAM takes the split of the picture's first ref, so that some refs are in none).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from builders import options as opts
from builders import places, refer
from builders.coco import object_of
from builders.pictures import coco_names, numbered_key, read_picture, safe_file_name, sample_of
from builders.reading import RecordError, bad, checked_size, clean_phrase, outcomes
from builders.rows import Row, read_keys, read_rows, select
from dataengine import masks, tokens
from dataengine.builder import About, Context, IndexReport, Outcome, Part
from dataengine.errors import ReasonError
from dataengine.jsonstream import decode
from dataengine.keyed import keyed
from dataengine.records import Account, Bad
from dataengine.sample import Condition, License, Object, Sample
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

NAME = "refcoco"
VERSION = 1
TASKS = ("refseg",)
ABOUT = About(title="RefCOCO, RefCOCO+, RefCOCOg, RefCLEF", url="https://github.com/lichengunc/refer")
HELD_OUT = ("val", "testA", "testB", "testC", "test")
MARKS = ("refs(*).p", "refcoco*/refs(*).p", "refclef/refs(*).p")
SPLITS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("refcoco", "unc"): ("train", "val", "testA", "testB"),
    ("refcoco", "google"): ("train", "val", "test"),
    ("refcoco+", "unc"): ("train", "val", "testA", "testB"),
    ("refcocog", "umd"): ("train", "val", "test"),
    ("refcocog", "google"): ("train", "val"),
    ("refclef", "unc"): ("train", "val", "testA", "testB", "testC"),
    ("refclef", "berkeley"): ("train", "val", "test"),
}
FOLDERS = ("refcoco", "refcoco+", "refcocop", "refcocog", "refclef")
EDITIONS = tuple({"dataset": dataset} for dataset in ("refcoco", "refcoco+", "refcocog", "refclef"))
IMAGES_INSIDE = ("train2014", "images/mscoco/images/train2014", "images/train2014")
IMAGES_BESIDE = (
    "../images/mscoco/images/train2014",
    *(f"{above}{name}" for above in ("../", "../../") for name in ("coco2014", "coco2017", "coco")),
)
IMAGES_OF_REFCLEF = (
    *(f"{above}{place}saiapr_tc-12" for above in ("", "../") for place in ("images/", "")),
    "../../saiapr_tc-12",
    "images",
)


class Options(opts.NumberedOptions):
    """What a recipe may choose.

    dataset, by: which refs; by default `unc` (RefCOCOg: `umd`).
    max_phrases: of one training sample; a picture with more makes more samples.
    """

    dataset: Literal["refcoco", "refcoco+", "refcocog", "refclef"] = "refcoco"
    by: Literal["unc", "umd", "google", "berkeley"] | None = None
    max_phrases: int = Field(default=8, ge=1, strict=True)

    @property
    def author(self) -> str:
        return self.by or ("umd" if self.dataset == "refcocog" else "unc")

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS.get((self.dataset, self.author), ())


def parse_options(task: str, options: Mapping[str, Any]) -> Options:
    """See `Builder.parse_options`."""
    parsed = opts.parse(Options, NAME, TASKS, task, options)
    if not parsed.splits:
        there = ", ".join(by for dataset, by in SPLITS if dataset == parsed.dataset)
        raise opts.OptionError(f"{NAME}: by: {parsed.dataset} is split by {there}, not {parsed.by}")
    return parsed


def locate(root: str | None, files: Mapping[str, str], splits: Sequence[str], options: Options) -> list[Part]:
    """See `Builder.locate`. Roles: `refs`, `instances`, `images`. The root holds the dataset's folder, or is it.

    A root with the name of another dataset is not this one's: their files have the same names.
    """
    roles = ("refs", "instances", "images")
    places.check_roles(NAME, files, roles)
    name = f"{options.dataset} by {options.author}"
    pickle = f"refs({options.author}).p"
    own = [options.dataset] + (["refcocop"] if options.dataset == "refcoco+" else [])
    called = (root or "").rstrip("/").rpartition("/")[2]
    of_another = called not in own and called in FOLDERS
    folders = own if of_another else [*own, ""]
    if root is not None and not set(files) >= {"refs", "instances"}:
        inside = [folder for folder in folders if (Folder(root) / folder if folder else Folder(root)).exists(pickle)]
        folders = inside[:1] or folders
    found = {
        "refs": places.find(
            name, "refs", "file", root, files, [f"{folder}/{pickle}".lstrip("/") for folder in folders]
        ),
        "instances": places.find(
            name, "instances", "file", root, files, [f"{folder}/instances.json".lstrip("/") for folder in folders]
        ),
        "images": places.find(
            name,
            "images",
            "folder",
            root,
            files,
            IMAGES_OF_REFCLEF if options.dataset == "refclef" else image_places(root),
        ),
    }
    layout = f"{options.dataset}/{pickle} and {options.dataset}/instances.json"
    return [
        Part(split=split, files=found) for split in places.check_splits(name, str(root), splits, options.splits, layout)
    ]


def image_places(root: str | None) -> list[str]:
    """Where COCO's pictures may lie, below a root and beside it; `images` may only hold the folder of RefCLEF's."""
    images = Folder(root) / "images" if root is not None else None
    has_pictures = images is not None and any(name.lower().endswith(".jpg") for name in images.names())
    return [*IMAGES_INSIDE, *(["images"] if has_pictures else []), *IMAGES_BESIDE, "images"]


def index(part: Part, options: Options, target: Path) -> IndexReport:
    """See `Builder.index`."""
    return refer.build_index(part, target, options.splits)


def image_keys(context: Context, index: Folder) -> Iterator[str]:
    """See `Builder.image_keys`."""
    for key in read_keys(index):
        yield numbered_key(namespace(context), int(key))


def namespace(context: Context) -> str:
    """Whose numbers the pictures have."""
    of_refclef = getattr(context.options, "dataset", "") == "refclef"
    given: str | None = context.options.image_namespace or context.extra["image_namespace"]
    return given or ("saiapr" if of_refclef else "coco")


def read(context: Context, index: Folder, start: int, stop: int) -> Iterator[Outcome]:
    """See `Builder.read`. Counts images, refs, sentences, and the markers that were escaped in sentences."""
    return outcomes(context, read_rows(index, start, stop), _outcome, held)


# --- one picture -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrase:
    """A sentence, and the objects it means by their place in the picture's list."""

    text: str
    objects: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class Refs:
    """What the refs of a picture become: objects by annotation id, sentences in order, and what cannot be used."""

    objects: dict[int, Object]
    phrases: list[Phrase]
    bad: list[Bad]
    account: Account


def held(row: Row) -> Counter[str]:
    """What a picture's row holds, however bad it is."""
    sentences = sum(len(refer.ref_of(member)["sentences"]) for member in row.members)
    return Counter(refs=len(row.members), sentences=sentences)


def base_of(context: Context, row: Row) -> Sample:
    """The sample of a picture with nothing in it yet; the picture is read and its header checked."""
    value = decode(row.record)
    height, width = checked_size(value)
    name = safe_file_name(value.get("file_name"))
    picture = read_picture(Folder(context.part.files["images"]), coco_names(int(row.key), name), height, width)
    names = context.extra["licenses"].get(str(value.get("license")))
    return sample_of(
        context,
        picture,
        key=numbered_key(namespace(context), int(row.key)),
        file=context.extra["file"],
        record=f"image {row.key}",
        license=None if names is None else License(name=names[0], url=names[1]),
    )


def refs_of(context: Context, row: Row, base: Sample, *, lower: bool, single: bool) -> Refs:
    """Objects and sentences of a picture's refs.

    Args:
        lower: sentences become lower case. single: each ref must mean exactly one object.
    """
    found = Refs(objects={}, phrases=[], bad=[], account=Account(read=Counter(images=1) + held(row)))
    places_of: dict[int, int] = {}
    categories = {c.id for c in context.categories}
    values = [decode(member) for member in row.members]
    drawn = _drawn(values, base)
    for member, value in zip(row.members, values, strict=True):
        ref = value["ref"]
        record = f"ref {ref['ref_id']} (image {row.key})"
        try:
            numbers = _objects_of(found.objects, value, base, categories, drawn, single)
        except ReasonError as error:
            found.bad.append(bad("refs", context.extra["file"], record, row, error, member))
            found.account.filter("sentences", "ref_quarantined", len(ref["sentences"]))
            continue
        for number in numbers:
            places_of.setdefault(number, len(places_of))
        before = len(found.phrases)
        for position, sentence in enumerate(ref["sentences"]):
            try:
                text, escaped = clean_phrase(sentence["sent"], "sent")
            except RecordError as error:
                where = f"{record}, sentence {position}"
                found.bad.append(bad("sentences", context.extra["file"], where, row, error, json.dumps(sentence)))
                continue
            if lower:  # which makes a marker of what was none: <P>
                text, more = tokens.escape(text.lower())
                escaped += more
            found.account.built["sentences"] += 1
            if escaped:
                found.account.read["escaped_markers"] += escaped
                found.account.built["escaped_markers"] += escaped
            means = tuple(places_of[number] for number in numbers)
            found.phrases.append(Phrase(text=text, objects=means))
        if len(found.phrases) > before:
            found.account.built["refs"] += 1
        else:
            found.account.filter("refs", "no_phrase")
    found.account.quarantine(found.bad)
    return found


def _drawn(values: Sequence[dict[str, Any]], base: Sample) -> dict[int, masks.Measured | None]:
    """The masks of all annotations that are plain polygons, by annotation id; several refs may have one annotation."""
    outlines = {a["id"]: a.get("segmentation") for value in values for a in value["annotations"]}
    drawn = masks.measured_from_polygon_lists(list(outlines.values()), base.height, base.width)
    return dict(zip(outlines, drawn, strict=True))


def _objects_of(
    objects: dict[int, Object],
    value: dict[str, Any],
    base: Sample,
    categories: set[int],
    drawn: Mapping[int, masks.Measured | None],
    single: bool,
) -> list[int]:
    """Annotation ids of a ref; their objects are made where they are not yet. drawn: see `_drawn`."""
    numbers: list[int] = value["ref"]["annotation_ids"]
    if single and len(numbers) != 1:
        raise RecordError("several_targets" if numbers else "no_target", f"ann_id {numbers} is not one annotation")
    annotations = {annotation["id"]: annotation for annotation in value["annotations"]}
    made = {}
    for number in numbers:
        if number not in annotations:
            raise RecordError("unknown_annotation", f"annotation {number} does not exist")
        if annotations[number].get("image_id") != value["ref"]["image_id"]:
            raise RecordError("other_image", f"annotation {number} is of another picture")
        if number not in objects:
            # what is referred to is a target, whatever its annotation says of crowds
            changes: dict[str, Any] = {"iscrowd": 0}
            if drawn[number] is None:
                changes["segmentation"] = _as_one(annotations[number].get("segmentation"), base)
            annotation = annotations[number] | changes
            made[number] = object_of(annotation, base.height, base.width, categories, drawn[number])
    objects |= made
    return numbers


def _as_one(segmentation: Any, base: Sample) -> Any:
    """RefCLEF's lists of RLEs as their union; anything else as it is."""
    if not isinstance(segmentation, list) or not segmentation or not isinstance(segmentation[0], dict):
        return segmentation
    parts = [masks.rle_from_segmentation(part, base.height, base.width) for part in segmentation]
    return {"size": [base.height, base.width], "counts": masks.union(parts, base.height, base.width)}


def is_training(split: str) -> bool:
    return split.startswith("train")


def _outcome(context: Context, row: Row) -> Outcome:
    base = base_of(context, row)
    found = refs_of(context, row, base, lower=True, single=True)
    if not found.phrases:
        return without_phrases(row, found)
    if is_training(context.part.split):
        texts: dict[str, tuple[int, ...]] = {}
        for phrase in found.phrases:  # equal sentences on several objects mean all of them
            texts[phrase.text] = tuple(dict.fromkeys((*texts.get(phrase.text, ()), *phrase.objects)))
        repeated = len(found.phrases) - len(texts)
        found.account.built["sentences"] -= repeated
        found.account.filter("sentences", "repeated", repeated)
        phrases = [Phrase(text=text, objects=objects) for text, objects in texts.items()]
        samples = chunked(context, base, found, phrases)
    else:
        samples = single_samples(base, found)
    found.account.built["images"] += 1
    return Outcome(group=row.key, samples=samples, bad=found.bad, account=found.account)


def without_phrases(row: Row, found: Refs) -> Outcome:
    """The outcome of a picture none of whose sentences can be used."""
    found.account.filter("images", "no_phrase")
    return Outcome(group=row.key, bad=found.bad, account=found.account)


def chunked(context: Context, base: Sample, found: Refs, phrases: Sequence[Phrase]) -> list[Sample]:
    """Training samples: the phrases in keyed order, whatever the file's is, at most `max_phrases` in each."""
    numbers = list(found.objects)
    sorted_phrases = sorted(
        (replace(phrase, objects=tuple(sorted(phrase.objects, key=numbers.__getitem__))) for phrase in phrases),
        key=lambda phrase: (phrase.text, [numbers[i] for i in phrase.objects]),
    )
    rng = keyed(context.seed, base.sample_id, "phrases", context.version)
    order = [sorted_phrases[i] for i in rng.permutation(len(phrases)).tolist()]
    most = context.options.max_phrases
    chunks = [order[at : at + most] for at in range(0, len(order), most)]
    return [_with_phrases(base, found, chunk, number) for number, chunk in enumerate(chunks)]


def single_samples(base: Sample, found: Refs) -> list[Sample]:
    """Evaluation samples: each sentence of each ref alone."""
    return [_with_phrases(base, found, [phrase], number) for number, phrase in enumerate(found.phrases)]


def _with_phrases(base: Sample, found: Refs, phrases: Sequence[Phrase], number: int) -> Sample:
    """One condition a phrase, with only the objects that they mean."""
    things = list(found.objects.values())
    used = list(dict.fromkeys(i for phrase in phrases for i in phrase.objects))
    places_in = {old: new for new, old in enumerate(used)}
    conditions = tuple(
        Condition(
            kind="phrase",
            text=phrase.text,
            category_id=things[phrase.objects[0]].category_id if len(phrase.objects) == 1 else -1,
            objects=tuple(places_in[i] for i in phrase.objects),
        )
        for phrase in phrases
    )
    return replace(
        base,
        sample_id=f"{base.sample_id}/{number}",
        objects=tuple(things[i] for i in used),
        conditions=conditions,
    )
