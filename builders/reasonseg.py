"""ReasonSeg to `reaseg`: questions that take thought, each with the mask of its answer.

Where its files are → one index row a picture → samples. Published layout: `{train,val,test}/NAME.jpg` with `NAME.json`
beside it, and `explanatory/train.json`. Masks are those of LISA's loader, pixel for pixel.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from builders import options as opts
from builders import places
from builders.coco_index import MAX_BAD
from builders.pictures import NAME_ERRORS, read_picture, safe_file_name, sample_of
from builders.reading import RecordError, bad, checked_flag, clean_phrase, make_object, outcomes, plain
from builders.rows import Gathering, Row, read_keys, read_rows, select
from dataengine import masks
from dataengine.builder import About, Context, IndexReport, Outcome, Part, SourceError
from dataengine.errors import ReasonError
from dataengine.jsonstream import decode, is_too_deep, iter_rows
from dataengine.keyed import uniforms
from dataengine.records import MAX_MESSAGE, MAX_PAYLOAD, Account, Bad
from dataengine.sample import Condition, Sample
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
    "is_source",
    "locate",
    "parse_options",
    "read",
    "select",
]

NAME = "reasonseg"
VERSION = 1
TASKS = ("reaseg",)
ABOUT = About(title="ReasonSeg", url="https://github.com/dvlab-research/LISA")
SPLITS = ("train", "val", "test")
HELD_OUT = ("val", "test")
MARKS = (
    *(f"{base}explanatory/train.json" for base in ("", "ReasonSeg/")),
    *(f"{base}{split}/*.json" for base in ("", "ReasonSeg/") for split in SPLITS),
)
LAYOUT = "train/, val/ or test/ with NAME.jpg and NAME.json, and explanatory/train.json"
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
MAX_TRIED = 10  # json files that are opened to see whose they are
MAX_FILE = 1 << 26  # bytes of one picture's json
MAX_COORDINATE = 1 << 15  # px; OpenCV draws in 32-bit fixed point with 16 bits after the point


class Options(opts.SourceOptions):
    """What a recipe may choose.

    queries: `long` are whole sentences (`is_sentence`), `short` are phrases.
    explanations: how many of the train questions that have an explanation come with it: `none`, `half` (X-SAM's rule,
        drawn for each question), or `all`.
    """

    task: Literal["reaseg"]
    queries: Literal["all", "short", "long"] = "all"
    explanations: Literal["none", "half", "all"] = "half"


def parse_options(task: str, options: Mapping[str, Any]) -> Options:
    """See `Builder.parse_options`."""
    return opts.parse(Options, NAME, TASKS, task, options)


# --- where the files are ---------------------------------------------------------------------------------------------


def locate(root: str | None, files: Mapping[str, str], splits: Sequence[str], options: Options) -> list[Part]:
    """See `Builder.locate`. Roles: `annotations` and `images` (folders of one split), `explanatory` (a file)."""
    places.check_roles(NAME, files, ("annotations", "images", "explanatory"))
    if "annotations" in files or "images" in files:
        if len(splits) > 1:
            raise SourceError(f"{NAME}: one folder is one split, but the recipe names {', '.join(splits)}")
        folder = files.get("annotations") or files["images"]
        wanted = list(splits) or [PurePosixPath(folder.partition("?")[0]).name]
    else:
        folder = places.given_root(NAME, root)
        there = [split for split in SPLITS if any(Folder(folder).kind(place) == "folder" for place in _below(split))]
        wanted = places.check_splits(NAME, folder, splits, there, LAYOUT)
    return [_part(root, files, split, options) for split in wanted]


def _below(place: str) -> list[str]:
    return [place, f"ReasonSeg/{place}"]


def _part(root: str | None, files: Mapping[str, str], split: str, options: Options) -> Part:
    for role, other in (("annotations", "images"), ("images", "annotations")):
        if role not in files and other in files:  # json and jpg lie in one folder
            files = {**files, role: files[other]}
    found = {
        role: places.find(f"{NAME} {split}", role, "folder", root, files, _below(split))
        for role in ("annotations", "images")
    }
    if split == "train" and options.explanations != "none":
        there = "explanatory" in files or (
            root is not None and any(Folder(root).kind(p) == "file" for p in _below("explanatory/train.json"))
        )
        if there or options.explanations == "all":
            found["explanatory"] = places.find(
                f"{NAME} {split}", "explanatory", "file", root, files, _below("explanatory/train.json")
            )
    return Part(split=split, files=found)


def is_source(root: Folder) -> bool:
    """See `Builder`. Other sources have json files in folders of these names; these are pairs with a picture."""
    if any(root.kind(place) == "file" for place in _below("explanatory/train.json")):
        return True
    folders = [root / place for split in SPLITS for place in _below(split)]
    return any(_has_pair(folder) for folder in folders if folder.kind() == "folder")


def _has_pair(folder: Folder) -> bool:
    names = set(folder.names())
    stems = sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))
    for stem in [stem for stem in stems if not names.isdisjoint(f"{stem}{suffix}" for suffix in SUFFIXES)][:MAX_TRIED]:
        try:
            _checked(_decoded(_file(folder, f"{stem}.json")))
        except (RecordError, OSError):
            continue
        return True
    return False


# --- index -----------------------------------------------------------------------------------------------------------


def index(part: Part, options: Options, target: Path) -> IndexReport:
    """See `Builder.index`. A row's record is a picture's json, its members the explanations for that picture."""
    folder, refused = Folder(part.files["annotations"]), list[Bad]()
    digest = hashlib.sha256()
    inputs = {}
    try:
        names = folder.names()
    except OSError as error:
        raise SourceError(f"{folder.uri}: cannot be read: {error.strerror or error}") from None
    with Gathering(target.parent) as gathering:
        numbers: dict[str, int] = {}
        for name in [name for name in names if name.endswith(".json")]:
            stem = name.removesuffix(".json")
            try:
                data = _file(folder, name)
                digest.update(f"{len(plain(name))} {plain(name)} {len(data)}\n".encode() + data)
                gathering.row(len(numbers), stem, _decoded(data))
                numbers[stem] = len(numbers)
            except RecordError as error:
                refused.append(_refused("images", part.split, name, error))
        inputs["annotations"] = digest.hexdigest()
        if not numbers:
            raise SourceError(f"{folder.uri}: it holds no NAME.json that could be used. Expected: {LAYOUT}")
        refused += _without_annotation(part, set(names))
        if "explanatory" in part.files:
            inputs["explanatory"], unknown = _add_explanations(gathering, Folder(part.files["explanatory"]), numbers)
            refused += unknown
        assert not list(gathering.settle())  # every row and member has a number of its own
        written = gathering.write(target)
    if len(refused) > MAX_BAD:
        raise SourceError(f"{folder.uri}: more than {MAX_BAD} records cannot be used; the last one: {refused[-1]}")
    account = Account(read=Counter(record.unit for record in refused))
    account.quarantine(refused)
    return IndexReport(
        rows=written.rows,
        records=written.rows + written.members,
        account=account,
        bad=tuple(refused),
        categories=(),
        inputs=inputs,
        extra={"file": part.split},
        fingerprint=written.fingerprint,
    )


def _refused(unit: str, file: str, record: str, error: RecordError, payload: str = "") -> Bad:
    return Bad(
        unit=unit,
        file=file,
        record=plain(record),
        reason=error.reason,
        message=str(error)[:MAX_MESSAGE],
        payload=payload[:MAX_PAYLOAD],
    )


def _file(folder: Folder, name: str) -> bytes:
    """A picture's json as it stands on the disk.

    Raises:
        RecordError: `unsafe_file_name`, `annotation_unreadable`. OSError: the disk or the network fails.
    """
    if "\n" in safe_file_name(name) or name == ".json":
        raise RecordError("unsafe_file_name", f"{name!r} is no name of a picture")
    try:
        with folder.open(name) as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        if error.errno not in NAME_ERRORS:
            raise
        raise RecordError("annotation_unreadable", f"{name} cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE:
        raise RecordError("annotation_unreadable", f"{name} has more than {MAX_FILE:,} bytes")
    return data


def _decoded(data: bytes) -> str:
    """The text of a json file; some of the published ones are in cp1252.

    Raises:
        RecordError: `bad_encoding`.
    """
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise RecordError("bad_encoding", "the file is neither UTF-8 nor cp1252 text")


def _without_annotation(part: Part, annotated: set[str]) -> list[Bad]:
    """The pictures that no json describes."""
    error = RecordError("annotation_missing", "there is no json of that name")
    names = [PurePosixPath(name) for name in Folder(part.files["images"]).names()]
    lonely = [str(n) for n in names if n.suffix.lower() in SUFFIXES and f"{n.stem}.json" not in annotated]
    return [_refused("images", part.split, name, error) for name in lonely]


def _add_explanations(gathering: Gathering, file: Folder, numbers: Mapping[str, int]) -> tuple[str, list[Bad]]:
    """Add each record of `explanatory/train.json` to its picture; gives the file's sha256 and the records without one.

    Args:
        numbers: the rows' numbers by the picture's stem.
    Raises:
        SourceError: the file cannot be read, or is damaged.
    """
    refused = []
    try:
        with file.open() as opened:
            for record in iter_rows(opened, file.uri):
                value = record.value
                image = value.get("image") if isinstance(value, dict) else None
                number = numbers.get(PurePosixPath(image).stem) if isinstance(image, str) else None
                if number is not None:
                    gathering.member(number, record.position, record.text)
                    continue
                error = RecordError("unknown_image", f"image {image!r} is not in this split")
                name = f"explanation {record.position}"
                refused.append(_refused("explanations", "explanatory/train.json", name, error, record.text))
        return file.sha256(""), refused
    except OSError as problem:
        raise SourceError(f"{file.uri}: cannot be read: {problem.strerror or problem}") from None


def image_keys(context: Context, index: Folder) -> Iterator[str]:
    """See `Builder.image_keys`."""
    for stem in read_keys(index):
        yield f"{NAME}/{stem}"


# --- samples ---------------------------------------------------------------------------------------------------------


def read(context: Context, index: Folder, start: int, stop: int) -> Iterator[Outcome]:
    """See `Builder.read`. Counts images, shapes, questions and explanations."""
    return outcomes(context, read_rows(index, start, stop), _outcome, _held)


def _held(row: Row) -> Counter[str]:
    """What a picture's row holds, however bad it is."""
    try:
        value = None if is_too_deep(row.record) else decode(row.record)
    except ValueError:
        value = None
    held = Counter(explanations=len(row.members))
    for unit, field in (("shapes", "shapes"), ("questions", "text")):
        entries = value.get(field) if isinstance(value, dict) else None
        held[unit] = len(entries) if isinstance(entries, list) else 0
    return held


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A polygon as drawn: its pixels on the canvas, how many there are, and whether they count neither way."""

    crop: masks.Crop
    area: int
    ignored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question, and what its answer says besides the mask. explained: number of that explanation in the row."""

    text: str
    explanation: str | None
    explained: int = -1


def _outcome(context: Context, row: Row) -> Outcome:
    value = _checked(row.record)
    is_long = checked_flag(value.get("is_sentence"), "is_sentence")
    if context.options.queries not in ("all", "long" if is_long else "short"):
        return _left_out(row, _held(row), "long_query" if is_long else "short_query")
    names = [f"{row.key}{suffix}" for suffix in SUFFIXES]
    picture = read_picture(Folder(context.part.files["images"]), names)
    base = sample_of(context, picture, key=f"{NAME}/{row.key}", file=_name(context, row), record=f"image {row.key}")
    base = replace(base, variant="long" if is_long else "short")
    shapes, account, refused = _shapes(context, row, value["shapes"], base.height, base.width)
    target, ignored = paint(shapes, base.height, base.width)
    asked, escaped, wrong = _asked(context, row, value["text"], base.sample_id)
    refused += wrong
    account.quarantine(refused)
    account.read += Counter(images=1, questions=len(value["text"]))
    whole = Counter(images=1, shapes=len(shapes), questions=len(asked))
    reason = "no_target" if target is None else "no_question" if not asked else ""
    if reason:
        for unit, number in whole.items():
            account.filter(unit, reason, number)
    else:
        account.built = whole
        account.read["escaped_markers"] = account.built["escaped_markers"] = escaped
    _account_explanations(account, row, asked, reason)
    samples = _samples(context, base, target, ignored, asked) if target is not None and asked else []
    return Outcome(group=row.key, samples=samples, bad=refused, account=account)


def _name(context: Context, row: Row) -> str:
    return f"{context.part.split}/{row.key}.json"


def _left_out(row: Row, held: Counter[str], reason: str) -> Outcome:
    account = Account(read=held + Counter(images=1))
    for unit, number in account.read.items():
        account.filter(unit, reason, number)
    return Outcome(group=row.key, account=account)


def _checked(text: str) -> dict[str, Any]:
    """The picture's json with its lists.

    Raises:
        RecordError: `bad_json`, `bad_field`.
    """
    if is_too_deep(text):
        raise RecordError("bad_json", "the json is nested too deeply")
    try:
        value = decode(text)
    except ValueError as error:
        raise RecordError("bad_json", f"the json cannot be read: {error}") from None
    for field in ("text", "shapes"):
        if not isinstance(value, dict) or not isinstance(value.get(field), list):
            raise RecordError("bad_field", f"the json must be an object with a list `{field}`")
    return value  # type: ignore[no-any-return]


def _samples(
    context: Context, base: Sample, target: bytes, ignored: bytes | None, asked: Sequence[Asked]
) -> list[Sample]:
    """One sample with all questions for training; one a question for evaluation."""
    things = (make_object(target, base.height, base.width, -1, base.image_key.removeprefix(f"{NAME}/")),)
    conditions = [Condition(kind="phrase", text=a.text, objects=(0,), explanation=a.explanation) for a in asked]
    if context.part.split == "train":
        return [replace(base, objects=things, ignore=ignored, conditions=tuple(conditions))]
    return [
        replace(base, sample_id=f"{base.sample_id}/{number}", objects=things, ignore=ignored, conditions=(condition,))
        for number, condition in enumerate(conditions)
    ]


# --- questions -------------------------------------------------------------------------------------------------------


def _asked(context: Context, row: Row, texts: Sequence[Any], sample_id: str) -> tuple[list[Asked], int, list[Bad]]:
    """The questions that can be used, how many markers were escaped in them, and the questions and explanations that
    cannot.

    An explanation belongs to the question it was written for, and to the others, which say the same in other words.
    """
    explained, escaped, refused = _explanations(context, row)
    drawn = np.zeros(len(texts))
    if explained and context.options.explanations == "half":
        drawn = uniforms(len(texts), context.seed, sample_id, "explanations", VERSION)
    asked = []
    for number, text in enumerate(texts):
        try:
            question, found = clean_phrase(text, "question")
        except RecordError as error:
            record = f"question {number} (image {row.key})"
            refused.append(bad("questions", _name(context, row), record, row, error, json.dumps(text)))
            continue
        escaped += found
        chosen = next((n for n, (query, _) in explained.items() if query == question), max(explained, default=-1))
        if chosen >= 0 and drawn[number] < 0.5:
            asked.append(Asked(text=question, explanation=explained[chosen][1], explained=chosen))
        else:
            asked.append(Asked(text=question, explanation=None))
    return asked, escaped, refused


def _explanations(context: Context, row: Row) -> tuple[dict[int, tuple[str, str]], int, list[Bad]]:
    """Question and explanation by number in the row, markers escaped, and the explanations that cannot be used."""
    found, escaped, refused = {}, 0, []
    for number, text in enumerate(row.members):
        value = decode(text)
        try:
            query, _ = clean_phrase(value.get("query"), "query")
            words, markers = clean_phrase(value.get("outputs"), "outputs")
        except RecordError as error:
            record = f"explanation {number} (image {row.key})"
            refused.append(bad("explanations", "explanatory/train.json", record, row, error, text))
            continue
        found[number] = (query, words)
        escaped += markers
    return found, escaped, refused


def _account_explanations(account: Account, row: Row, asked: Sequence[Asked], reason: str) -> None:
    """Explanations are built where an answer says them."""
    usable = len(row.members) - account.quarantined.get("explanations", Counter()).total()
    said = 0 if reason else len({a.explained for a in asked} - {-1})
    account.read["explanations"] = len(row.members)
    account.built["explanations"] = said
    account.filter("explanations", reason or "not_drawn", usable - said)


# --- masks -----------------------------------------------------------------------------------------------------------


def _shapes(
    context: Context, row: Row, values: Sequence[Any], height: int, width: int
) -> tuple[list[Shape], Account, list[Bad]]:
    """The shapes that can be drawn, an account of those that are flags, and those that cannot be used."""
    account, shapes, refused = Account(read=Counter(shapes=len(values))), [], []
    for number, value in enumerate(values):
        try:
            label = value.get("label") if isinstance(value, dict) else None
            if not isinstance(label, str):
                raise RecordError("bad_field", f"a shape needs a label, not {label!r}")
            if label.lower() == "flag":
                account.filter("shapes", "flag")
                continue
            crop = draw(checked_points(value.get("points")), height, width)
            shapes.append(Shape(crop=crop, area=int(np.count_nonzero(crop.mask)), ignored="ignore" in label.lower()))
        except ReasonError as error:
            record = f"shape {number} (image {row.key})"
            refused.append(bad("shapes", _name(context, row), record, row, error, json.dumps(value)))
    return shapes, account, refused


def checked_points(points: Any) -> np.ndarray:
    """The corners of a polygon.

    Returns:
        (n, 2) int32 of x, y in px, cut to whole numbers towards zero, as LISA's loader does.
    Raises:
        RecordError: `bad_points`.
    """
    corners = points if isinstance(points, list) else []
    flat = [value for corner in corners if isinstance(corner, list) and len(corner) == 2 for value in corner]
    # checked before NumPy sees them: it would give each text of a list the room of the longest
    if len(flat) < max(6, 2 * len(corners)) or not {int, float}.issuperset(map(type, flat)):
        raise RecordError("bad_points", "a polygon needs a list of at least 3 points [x, y]")
    try:
        array = np.array(flat, dtype=np.float64).reshape(-1, 2)
    except OverflowError:
        raise RecordError("bad_points", "a polygon has a number of too many digits") from None
    if not (np.abs(array) < MAX_COORDINATE).all():  # a NaN is not
        raise RecordError("bad_points", f"a polygon has a point that is NaN or {MAX_COORDINATE:,} px or more away")
    return array.astype(np.int32)


def draw(points: np.ndarray, height: int, width: int) -> masks.Crop:
    """The pixels of a polygon and its outline, as OpenCV draws them on the whole canvas.

    Args:
        points: (n, 2) int32 of x, y, px; they may leave the canvas.
    Raises:
        RecordError: `empty_mask`: it lies outside the canvas.
    """
    import cv2

    x, y, w, h = cv2.boundingRect(points)
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    raster = np.zeros((max(y1 - y0, 0), max(x1 - x0, 0)), dtype=np.uint8)
    if raster.size:
        corners = [points - np.array([x0, y0], dtype=np.int32)]
        cv2.polylines(raster, corners, True, 1, 1)
        cv2.fillPoly(raster, corners, 1)
    if not raster.any():
        raise RecordError("empty_mask", f"the polygon covers no pixel of the {width} x {height} picture")
    return masks.Crop(raster.view(bool), x0, y0)


def paint(shapes: Sequence[Shape], height: int, width: int) -> tuple[bytes | None, bytes | None]:
    """RLE of the target and of the ignored pixels, each None where there is no pixel.

    Smaller shapes lie on larger ones; of two with as many pixels the one that comes first in the file lies on top.
    """
    x0, y0, x1, y1 = _box(shapes)
    target, ignored = (np.zeros((y1 - y0, x1 - x0), dtype=bool) for _ in range(2))
    for shape in reversed(sorted(shapes, key=lambda s: s.area)):
        x, y, (h, w) = shape.crop.x0 - x0, shape.crop.y0 - y0, shape.crop.mask.shape
        own, other = (ignored, target) if shape.ignored else (target, ignored)
        own[y : y + h, x : x + w] |= shape.crop.mask
        other[y : y + h, x : x + w] &= ~shape.crop.mask
    found = []
    for pixels, flag in ((target, False), (ignored, True)):
        left, top, right, bottom = _box([shape for shape in shapes if shape.ignored == flag])
        part = np.ascontiguousarray(pixels[top - y0 : bottom - y0, left - x0 : right - x0])
        crop = masks.Crop(part, left, top)
        found.append(masks.rle_from_crop(crop, height, width) if crop.mask.any() else None)
    return found[0], found[1]


def _box(shapes: Sequence[Shape]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the part of the canvas in which all of some shapes lie, px."""
    crops = [shape.crop for shape in shapes]
    return (
        min((crop.x0 for crop in crops), default=0),
        min((crop.y0 for crop in crops), default=0),
        max((crop.x0 + crop.mask.shape[1] for crop in crops), default=0),
        max((crop.y0 + crop.mask.shape[0] for crop in crops), default=0),
    )
