"""The index of a GranD-f file: one row a caption, and what its published layout says in each.

`groundings` and `refs` are lists of records; `coco` is an object of images with captions and annotations with spans;
`benchmark` joins a caption file and a mask file by their image ids. A row's key is `{image_key}/{n}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from builders.coco_index import MAX_BAD, MAX_KEYS
from builders.pictures import coco_id, numbered_key
from builders.reading import RecordError, is_whole, plain
from builders.rows import Gathering, Hashing, Row, Written
from dataengine.builder import SourceError
from dataengine.jsonstream import Record, decode, iter_records, iter_rows, shown
from dataengine.records import MAX_PAYLOAD, Account, Bad

Layout = Literal["groundings", "refs", "coco", "benchmark"]
MAX_ID = 200  # characters of an id that is text
_KEY = re.compile(r'"\s*:')  # what ends a key; in a text it may stand too
_SA1B = re.compile(r"(?:.*/)?(sa_[0-9]{1,18})\.(?:jpg|jpeg|png)", re.IGNORECASE)
_FLICKR = re.compile(r"(?:.*[/_])?([0-9]{1,18})\.(?:jpg|jpeg|png)", re.IGNORECASE)


@dataclass(slots=True, kw_only=True)
class Index:
    """What indexing found. account: the records that did not reach a row. inputs: sha256 of each file, by role."""

    written: Written = Written(rows=0, members=0, fingerprint="")
    bad: list[Bad] = field(default_factory=list)
    account: Account = field(default_factory=Account)
    inputs: dict[str, str] = field(default_factory=dict)

    def refuse(self, bad: Bad) -> None:
        self.bad.append(bad)
        self.account.read[bad.unit] += 1
        self.account.quarantine([bad])
        if len(self.bad) > MAX_BAD:
            raise SourceError(f"{bad.file}: more than {MAX_BAD} records cannot be used; the last one: {bad}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrase:
    """A phrase as published, nothing checked.

    text: None where only its place is published. places: [start, end], or a list of such. masks: annotation id and
    segmentation of each. quote: its JSON, for messages.
    """

    text: Any
    places: Any
    masks: tuple[tuple[str, Any], ...]
    quote: Any
    ignored: Any = 0
    is_record: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row as published, nothing checked. phrases and masks are counted before anything is.

    masks: of the whole picture, where the source does not say which phrase they belong to.
    """

    name: str
    value: dict[str, Any]
    caption: Any
    phrases: tuple[Phrase, ...]
    masks: tuple[tuple[str, Any], ...] = ()

    @property
    def num_masks(self) -> int:
        return len(self.masks) + sum(len(phrase.masks) for phrase in self.phrases)


# --- writing ---------------------------------------------------------------------------------------------------------


def build_list(file: BinaryIO, name: str, layout: Layout, target: Path) -> Index:
    """Index a list of records, one a caption. Raises SourceError."""
    index, hashing = Index(), Hashing(file)
    with Gathering(target.parent) as gathering:
        for record in iter_rows(cast("BinaryIO", hashing), name):
            value = record.value
            if layout == "refs" and isinstance(value, dict):
                value = next(iter(value.values())) if len(value) == 1 else None
            if isinstance(value, dict):
                picture = value.get("img_file_name" if layout == "refs" else "file_name")
                gathering.row(record.position, f"{image_key(layout, picture)}/{record.position}", record.text)
            else:
                wanted = "an object with one key, an object" if layout == "refs" else "an object"
                index.refuse(_unusable(name, "images", record, f"{wanted} was expected"))
        _settle(index, gathering, target, {"images": (name, {}), "annotations": (name, {})})
    index.inputs["annotations"] = hashing.hexdigest()
    return index


def build_coco(file: BinaryIO, name: str, target: Path) -> Index:
    """Index images with captions, and their annotations. Raises SourceError."""
    index, hashing = Index(), Hashing(file)
    joined = _Joined(index)
    with Gathering(target.parent) as gathering:
        for record in _sections(hashing, name, ("images", "annotations")):
            if record.section == "images":
                picture = record.value.get("file_name") if isinstance(record.value, dict) else None
                joined.row(gathering, name, record, "id", image_key("coco", picture))
            elif record.section == "annotations":
                joined.member(gathering, name, record)
        _settle(index, gathering, target, {"images": (name, joined.rows), "annotations": (name, joined.members)})
    index.inputs["annotations"] = hashing.hexdigest()
    return index


def build_benchmark(captions: BinaryIO, masks: BinaryIO, names: tuple[str, str], target: Path) -> Index:
    """Index a caption file and a mask file together; names: what messages call them. Raises SourceError."""
    index = Index()
    joined = _Joined(index)
    listed: set[str] = set()
    told: set[str] = set()
    with Gathering(target.parent) as gathering:
        for role, file, name in (("annotations", captions, names[0]), ("masks", masks, names[1])):
            hashing = Hashing(file)
            for record in _sections(hashing, name, ("images", "annotations")):
                value = record.value if isinstance(record.value, dict) else {}
                if record.section == "images" and _id(value.get("id")) is not None:
                    listed.add(str(value["id"]))
                elif record.section == "annotations" and role == "masks":
                    joined.member(gathering, name, record)
                elif record.section == "annotations":
                    told.add(str(value.get("image_id")))
                    joined.row(gathering, name, record, "image_id", image_key("benchmark", picture_name(value)))
            index.inputs[role] = hashing.hexdigest()
        _settle(
            index, gathering, target, {"images": (names[0], joined.rows), "annotations": (names[1], joined.members)}
        )
    untold = len(listed - told)
    index.account.read["images"] += untold
    index.account.filter("images", "no_caption", untold)
    return index


class _Joined:
    """Rows and members that find each other by ids, which may be numbers or texts; both are numbered as they come."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.rows: dict[str, int] = {}
        self.members: dict[str, int] = {}

    def row(self, gathering: Gathering, name: str, record: Record, field: str, key: str) -> None:
        if (own := self._ids(name, "images", record, (field,))) is not None:
            number = self.rows.setdefault(own[0], len(self.rows))
            gathering.row(number, f"{key}/{number}", record.text)

    def member(self, gathering: Gathering, name: str, record: Record) -> None:
        if (ids := self._ids(name, "annotations", record, ("image_id", "id"))) is not None:
            owner = self.rows.setdefault(ids[0], len(self.rows))
            gathering.member(owner, self.members.setdefault(ids[1], len(self.members)), record.text)

    def _ids(self, name: str, unit: str, record: Record, fields: tuple[str, ...]) -> list[str] | None:
        value = record.value if isinstance(record.value, dict) else {}
        wrong = [field for field in fields if _id(value.get(field)) is None]
        if wrong:
            self._index.refuse(_unusable(name, unit, record, f"{wrong[0]} must be a whole number or a name"))
            return None
        return [str(value[field]) for field in fields]


def _id(value: Any) -> str | None:
    is_name = isinstance(value, str) and 0 < len(value) <= MAX_ID and value.isprintable()
    return str(value) if is_name or is_whole(value) else None


def _sections(file: Hashing, name: str, wanted: tuple[str, ...]) -> Iterator[Record]:
    """The records of a COCO-like file; says so if it is none."""
    lists: dict[str, bool] = {}
    for record in iter_records(cast("BinaryIO", file), name, lists):
        if len(lists) > MAX_KEYS:
            raise SourceError(f"{name}: it has more than {MAX_KEYS:,} keys; {' and '.join(wanted)} were expected")
        if record.section in wanted and lists[record.section]:
            yield record
    missing = [section for section in wanted if not lists.get(section)]
    if missing:
        keys = ", ".join(shown(key) for key in list(lists)[:20]) or "none"
        raise SourceError(f"{name}: a list of {missing[0]} is missing; its keys are: {keys}")


def _settle(index: Index, gathering: Gathering, target: Path, units: dict[str, tuple[str, dict[str, int]]]) -> None:
    """Write the index; what has no place is noted. units: file and numbered ids of images and annotations."""
    called = {unit: {number: key for key, number in ids.items()} for unit, (_, ids) in units.items()}
    for refused in gathering.settle():
        unit = "images" if refused.reason == "repeated_row" else "annotations"
        missing = refused.reason == "unknown_row"
        index.refuse(
            Bad(
                unit=unit,
                file=units[unit][0],
                record=f"{unit.removesuffix('s')} {called[unit][refused.order]}",
                reason="unknown_image" if missing else f"duplicate_{unit.removesuffix('s')}",
                message="its image does not exist" if missing else "its id is given twice",
                payload=refused.text[:MAX_PAYLOAD],
            )
        )
    index.written = gathering.write(target)
    if not index.written.rows and not index.bad:
        raise SourceError(f"{units['images'][0]}: it holds no caption")


def _unusable(name: str, unit: str, record: Record, problem: str) -> Bad:
    return Bad(
        unit=unit,
        file=name,
        record=f"{record.section}[{record.position}]",
        reason="bad_json" if record.error else "bad_field",
        message=record.error or problem,
        payload=record.text[:MAX_PAYLOAD],
    )


# --- reading ---------------------------------------------------------------------------------------------------------


def image_key(layout: Layout, name: Any) -> str:
    """Identity of a picture by its file name; "" where the name does not tell."""
    if not isinstance(name, str):
        return ""
    if layout == "coco":
        found = _FLICKR.fullmatch(name)
        return f"flickr30k/{found.group(1)}" if found else ""
    if found := _SA1B.fullmatch(name):
        return f"sa1b/{found.group(1).lower()}"
    number = coco_id(name)
    return "" if number is None else numbered_key("coco", number)


def picture_name(value: dict[str, Any]) -> str:
    """File name of a benchmark's picture."""
    return f"{value.get('image_id')}.jpg"


def entry_of(layout: Layout, row: Row) -> Entry:
    """What a row says. It works for any row: what is of the wrong kind is left as it is, or counted as nothing."""
    value = decode(row.record)
    if layout == "refs":
        value = next(iter(value.values()))
    if layout == "benchmark":
        return _benchmark_entry(value, row)
    if layout == "coco":
        phrases = [_annotated_phrase(text) for text in row.members]
    elif layout == "refs":
        refs = value.get("refs")
        phrases = [_ref(number, ref) for number, ref in enumerate(refs if isinstance(refs, list) else ())]
    else:
        items = _groundings(value, row.record)
        phrases = [_grounding(number, text, grounding) for number, (text, grounding) in enumerate(items)]
    name = value.get("img_file_name" if layout == "refs" else "file_name")
    return Entry(name=name, value=value, caption=value.get("caption"), phrases=tuple(phrases))  # type: ignore[arg-type]


class _Object(dict[str, Any]):
    """A JSON object that remembers keys which are given twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def _groundings(value: dict[str, Any], text: str) -> list[tuple[str, Any]]:
    """The phrases of a record and what is said of each; one that is given twice stands there twice.

    Args:
        value: the record as decoded, which knows the last of equal keys. text: its JSON.
    """
    groundings = value.get("groundings")
    if isinstance(groundings, dict) and len(_KEY.findall(text)) > _num_keys(value):
        groundings = json.loads(text, object_pairs_hook=_Object)["groundings"]
        return groundings.pairs  # type: ignore[no-any-return]
    return list(groundings.items()) if isinstance(groundings, dict) else []


def _num_keys(value: Any) -> int:
    """How many keys a decoded value has, in all objects in it."""
    if isinstance(value, dict):
        return len(value) + sum(_num_keys(inner) for inner in value.values())
    return sum(_num_keys(inner) for inner in value if isinstance(inner, dict | list)) if isinstance(value, list) else 0


def _grounding(number: int, text: str, grounding: Any) -> Phrase:
    record = grounding if isinstance(grounding, dict) else {}
    rles = record.get("rle_masks")
    masks = tuple((f"{number}/{n}", rle) for n, rle in enumerate(rles)) if isinstance(rles, list) else ()
    places = record.get("token_positives", record.get("tokens_positive"))
    is_record = isinstance(rles, list)
    return Phrase(text=text, places=places, masks=masks, quote={text: grounding}, is_record=is_record)


def _ref(number: int, ref: Any) -> Phrase:
    if not isinstance(ref, dict):
        return Phrase(text=None, places=None, masks=(), quote=ref, is_record=False)
    masks = ((str(number), ref.get("segmentation")),)
    return Phrase(text=ref.get("sentence", ""), places=None, masks=masks, quote=ref)


def _annotated_phrase(text: str) -> Phrase:
    value = decode(text)
    places = value.get("tokens_positive", value.get("token_positives"))
    masks = ((str(value["id"]), value.get("sam_mask")),)
    return Phrase(text=None, places=places, masks=masks, quote=value, ignored=value.get("ignore", 0))


def _benchmark_entry(value: dict[str, Any], row: Row) -> Entry:
    """Label i names mask i, as GLaMM's evaluation takes it; one label names all masks. Else the masks stay apart."""
    found = [decode(text) for text in row.members]
    masks = tuple((str(mask["id"]), mask.get("segmentation")) for mask in found)
    labels = value.get("labels")
    labels = labels if isinstance(labels, list) else []
    parts: list[tuple[tuple[str, Any], ...]]
    if len(labels) == len(masks):
        parts = [(mask,) for mask in masks]
    elif len(labels) == 1:
        parts = [masks]
    else:
        parts = [()] * len(labels)
    phrases = tuple(
        Phrase(text=label, places=None, masks=part, quote=label) for label, part in zip(labels, parts, strict=True)
    )
    rest = masks if not any(parts) else ()
    return Entry(name=picture_name(value), value={}, caption=value.get("caption"), phrases=phrases, masks=rest)


def checked_places(places: Any) -> list[tuple[int, int]]:
    """Published offsets: one pair of start and end, or a list of them; whether they fit the caption is not checked.

    Raises:
        RecordError: `bad_span`.
    """
    pairs = [places] if isinstance(places, list) and places and not isinstance(places[0], list) else places
    if not isinstance(pairs, list) or not pairs or not all(map(_is_pair, pairs)):
        raise RecordError("bad_span", f"token positions {plain(str(places)[:200])} must be pairs of start and end")
    return [(start, end) for start, end in pairs]


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(place) is int for place in value)
