"""GranD-f: captions with grounded phrases, `gcgseg`. Four training parts, and the GCG benchmark's val and test.

Spans cover exactly their phrase: offsets move with what is stripped from the caption (X-SAM's do not), phrases are
searched in any case and as whole words, overlaps are resolved in the caption's order (GLaMM's RefCOCOg reader does not
sort). Several masks of a phrase are several objects (GLaMM sums them, X-SAM merges them).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

from builders import grandf_index as records
from builders import options as opts
from builders import places, spans
from builders.grandf_ground import ground
from builders.grandf_index import Entry, Layout
from builders.pictures import Picture, coco_id, coco_names, read_picture, safe_file_name, sample_of
from builders.reading import RecordError, checked_size, outcomes
from builders.rows import Row, read_keys, read_rows, select
from dataengine.builder import About, Context, IndexReport, Outcome, Part, SourceError
from dataengine.records import Account
from dataengine.sample import Condition, License
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

NAME = "grandf"
VERSION = 1
TASKS = ("gcgseg",)
ABOUT = About(
    title="GranD-f",
    url="https://huggingface.co/datasets/MBZUAI/GranD-f",
    license=License(name="Apache 2.0", url="https://www.apache.org/licenses/LICENSE-2.0"),
)
HELD_OUT = ("val", "test")
PartName = Literal["ha", "psg", "refcocog", "flickr"]
STEMS: Mapping[PartName, str] = {
    "ha": "GranDf_HA_GCG",
    "psg": "OpenPsgGCG",
    "refcocog": "RefCOCOg_GCG",
    "flickr": "flickr_mergedGT_GCG",
}
LAYOUTS: Mapping[PartName, Layout] = {"ha": "groundings", "psg": "groundings", "refcocog": "refs", "flickr": "coco"}
SPLITS = ("train", "val", "test")
CAPTIONS, MASKS = "_gcg_coco_caption_gt.json", "_gcg_coco_mask_gt.json"
EDITIONS = tuple({"part": part} for part in ("ha", "psg", "refcocog", "flickr"))
MARKS = (
    *(f"annotations/train/{stem}_*.json" for stem in STEMS.values()),
    f"annotations/val_test/*{CAPTIONS}",
    f"annotations/val_test/*{MASKS}",
)
LAYOUT = "annotations/train/{GranDf_HA_GCG,OpenPsgGCG,RefCOCOg_GCG,flickr_mergedGT_GCG}_train.json, " + (
    f"annotations/val_test/{{val,test}}{CAPTIONS} and {MASKS}"
)
_BESIDE = ("", "images/", "../", "../images/", "../../")
_COCO2017, _COCO2014 = ("coco2017", "coco_2017", "coco"), ("coco2014", "coco_2014")
_FLICKR = (
    "flickr30k/images",
    "flickr30k/flickr30k-images",
    "flickr30k-images",
    "flickr30k",
    "flickr_30k",
    "flikcr_30k",
)
MAX_CAPTION = 10_000  # characters
MIN_WORDS = 3  # of a Flickr30k caption; GLaMM and X-SAM drop shorter ones


class Options(opts.SourceOptions):
    """What a recipe may choose.

    part: which file a source is: recipes mix the four by their size. It may be left out where only one is there.
    case: of the caption: `lower`, as X-SAM trains, or `keep`.
    """

    part: PartName | None = None
    case: Literal["lower", "keep"] = "lower"


def parse_options(task: str, options: Mapping[str, Any]) -> Options:
    """See `Builder.parse_options`."""
    return opts.parse(Options, NAME, TASKS, task, options)


# --- where the files are ---------------------------------------------------------------------------------------------


def locate(root: str | None, files: Mapping[str, str], splits: Sequence[str], options: Options) -> list[Part]:
    """See `Builder.locate`. Roles: `annotations`, `images`, and for the benchmark `masks`."""
    places.check_roles(NAME, files, ("annotations", "masks", "images"))
    if "annotations" in files:
        if len(splits) > 1:
            raise SourceError(f"{NAME}: one annotation file is one split, but the recipe names {', '.join(splits)}")
        name = _file_name(files["annotations"])
        part = options.part or _part_named(name)
        suffix = (
            name.removesuffix(".json").rpartition("_")[2] if part and not _is_benchmark(name) else name.split("_")[0]
        )
        found = [splits[0] if splits else suffix]
    else:
        root = places.given_root(NAME, root)
        part = _only_part(root, splits, options.part)
        there = [split for split in SPLITS if _annotated(root, part, split)]
        found = places.check_splits(f"{NAME} {part}", root, splits, there, LAYOUT)
    if part is None:
        raise SourceError(f"{files['annotations']}: the name does not tell which part it is; add the option part")
    return [_part(root, files, part, split) for split in found]


def _candidates(part: PartName, split: str) -> list[str]:
    """Where the annotations of a part may lie below a root."""
    if part == "ha" and split != "train":
        return [f"{folder}{split}{CAPTIONS}" for folder in ("annotations/val_test/", "val_test/", "annotations/", "")]
    name = f"{STEMS[part]}_{split}.json"
    return [f"{folder}{name}" for folder in ("annotations/train/", "train/", "annotations/", "")]


def _annotated(root: str, part: PartName, split: str) -> bool:
    return any((Folder(root) / name).kind() == "file" for name in _candidates(part, split))


def _only_part(root: str, splits: Sequence[str], wanted: PartName | None) -> PartName:
    """The part that is asked for, or the only one there is."""
    there = [part for part in STEMS if any(_annotated(root, part, split) for split in splits or SPLITS)]
    if wanted is not None or len(there) == 1:
        return wanted or there[0]
    if there:
        raise SourceError(f"{root}: {NAME} has the parts {', '.join(there)} here; choose one with the option part")
    raise SourceError(f"{root}: no {NAME} here. Expected: {LAYOUT}")


def _part_named(name: str) -> PartName | None:
    """Which part a file is, by its name, as X-SAM tells them apart."""
    if _is_benchmark(name):
        return "ha"
    hints: dict[str, PartName] = {"grandf_ha": "ha", "psg": "psg", "refcocog": "refcocog", "flickr": "flickr"}
    return next((part for hint, part in hints.items() if hint in name.lower()), None)


def _is_benchmark(name: str) -> bool:
    return name.endswith(CAPTIONS)


def _file_name(uri: str) -> str:
    return PurePosixPath(uri.partition("?")[0]).name


def _part(root: str | None, files: Mapping[str, str], part: PartName, split: str) -> Part:
    called = f"{NAME} {part} {split}"
    annotations = places.find(called, "annotations", "file", root, files, _candidates(part, split))
    images = places.find(called, "images", "folder", root, files, _image_folders(part, split))
    found = {"annotations": annotations, "images": images}
    if "masks" in files or _is_benchmark(_file_name(annotations)):
        beside = annotations.replace(CAPTIONS, MASKS)
        found["masks"] = places.find(called, "masks", "file", root, {"masks": beside, **files}, [])
    return Part(split=split, files=found)


def _image_folders(part: PartName, split: str) -> list[str]:
    inner = "train" if split == "train" else "val_test"
    names = {
        "ha": [f"GranDf_HA_images/{inner}", "GranDf_HA_images"],
        "psg": _COCO2017,
        "refcocog": [*(f"{name}/train2014" for name in _COCO2014), *_COCO2014, *_COCO2017],
        "flickr": [*(f"{name}/{split}" for name in _FLICKR), *_FLICKR],
    }[part]
    return [f"{beside}{name}" for name in names for beside in _BESIDE]


# --- index -----------------------------------------------------------------------------------------------------------


def index(part: Part, options: Options, target: Path) -> IndexReport:
    """See `Builder.index`."""
    annotations = part.files["annotations"]
    name = _file_name(annotations)
    which = options.part or _part_named(name)
    assert which is not None, "locate found the part"
    layout: Layout = "benchmark" if "masks" in part.files else LAYOUTS[which]
    with ExitStack() as stack:
        file = _open(stack, annotations)
        try:
            if layout == "benchmark":
                names = (name, _file_name(part.files["masks"]))
                found = records.build_benchmark(file, _open(stack, part.files["masks"]), names, target)
            elif layout == "coco":
                found = records.build_coco(file, name, target)
            else:
                found = records.build_list(file, name, layout, target)
        except SourceError as error:
            raise SourceError(f"{annotations.removesuffix(name)}{error}") from None
    return IndexReport(
        rows=found.written.rows,
        records=found.written.rows + found.written.members,
        account=found.account,
        bad=tuple(found.bad),
        categories=(),
        inputs=found.inputs,
        extra={"layout": layout, "file": name},
        fingerprint=found.written.fingerprint,
    )


def _open(stack: ExitStack, uri: str) -> BinaryIO:
    try:
        return stack.enter_context(Folder(uri).open())
    except OSError as error:
        raise SourceError(f"{uri}: cannot be read: {error.strerror or error}") from None


def image_keys(context: Context, index: Folder) -> Iterator[str]:
    """See `Builder.image_keys`. "" where the file name is no number of SA-1B, COCO or Flickr30k."""
    for key in read_keys(index):
        yield key.rpartition("/")[0]


# --- samples ---------------------------------------------------------------------------------------------------------


def read(context: Context, index: Folder, start: int, stop: int) -> Iterator[Outcome]:
    """See `Builder.read`. Counts images (one a caption), phrases, annotations (masks) and markers in captions."""
    return outcomes(context, read_rows(index, start, stop), _outcome, lambda row: _held(context, row))


def _held(context: Context, row: Row) -> Counter[str]:
    """What a row holds, however bad it is."""
    entry = records.entry_of(context.extra["layout"], row)
    return Counter(phrases=len(entry.phrases), annotations=entry.num_masks)


def _outcome(context: Context, row: Row) -> Outcome:
    entry = records.entry_of(context.extra["layout"], row)
    account = Account(read=Counter(images=1, phrases=len(entry.phrases), annotations=entry.num_masks))
    if not isinstance(entry.caption, str) or not (caption := spans.strip_caption(entry.caption)).text:
        raise RecordError("bad_text", f"the caption {repr(entry.caption)[:200]} is no text")
    if len(entry.caption) > MAX_CAPTION:
        raise RecordError("bad_text", f"the caption has more than {MAX_CAPTION:,} characters")
    reason = _left_out(context, entry, caption)
    if reason:
        for unit, count in account.read.items():
            account.filter(unit, reason, count)
        return Outcome(group=row.key, account=account)
    picture = _picture(context, entry)
    found = ground(context, row, entry, caption, picture)
    account.quarantine(found.bad)
    account.add(found.left_out)
    if not found.spans:
        account.filter("images", "no_phrase")
        return Outcome(group=row.key, bad=found.bad, account=account)
    tagged = spans.tag(caption, list(found.spans), lower=context.options.case == "lower")
    key, _, number = row.key.rpartition("/")
    base = sample_of(
        context,
        picture,
        key=key or f"sha256/{hashlib.sha256(picture.data).hexdigest()[:32]}",
        file=context.extra["file"],
        record=f"image {row.key}",
    )
    conditions = [
        Condition(kind="phrase", text=text, objects=objects)
        for text, objects in zip(tagged.phrases, found.spans.values(), strict=True)
    ]
    sample = replace(
        base,
        sample_id=f"{base.sample_id}/{number}",
        caption=tagged.caption,
        objects=tuple(found.objects),
        conditions=tuple(conditions),
    )
    account.read += Counter(escaped_markers=tagged.escaped)
    account.built += Counter(
        images=1, phrases=found.num_phrases, annotations=len(found.objects), escaped_markers=tagged.escaped
    )
    return Outcome(group=row.key, samples=[sample], bad=found.bad, account=account)


def _left_out(context: Context, entry: Entry, caption: spans.Caption) -> str | None:
    """Why a caption is left out before its picture is read; None where it is not."""
    layout = context.extra["layout"]
    section = {"groundings": "groundings", "refs": "refs"}.get(layout)
    if section is not None and not isinstance(entry.value.get(section), dict if section == "groundings" else list):
        raise RecordError("bad_field", f"{section} must hold the phrases and their masks")
    if layout == "coco" and len(caption.text.split()) < MIN_WORDS:
        return "short_caption"
    return None if entry.phrases or entry.masks else "no_annotation"


def _picture(context: Context, entry: Entry) -> Picture:
    """The picture, checked; its size is its header's where the file does not say it."""
    name = safe_file_name(entry.name)
    number = None if context.extra["layout"] == "coco" else coco_id(name)
    if number is None:
        base = name.rpartition("/")[2]
        names = list(dict.fromkeys([name, base, base.rpartition("_")[2]]))
    else:
        names = coco_names(number, name)
    stated = any(entry.value.get(side) is not None for side in ("height", "width"))
    height, width = checked_size(entry.value) if stated else (None, None)
    return read_picture(Folder(context.part.files["images"]), names, height, width)
