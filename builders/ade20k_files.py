"""Which files of ADE20K belong to one picture, in both editions, and what the JSON files of the 2021 one say.

2016: `STEM.jpg` and `STEM.png` in one folder for each role. 2021: in folders of scenes, beside `STEM.jpg` lie
`STEM_seg.png` (classes and instances), `STEM.json` (latin-1), `STEM_parts_{1,2,3}.png` and a folder `STEM/` of instance
masks that reach behind what hides them; the last two are not read, nor is `index_ade20k.pkl`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from builders.ade20k_names import is_name
from builders.pictures import NAME_ERRORS
from builders.reading import RecordError, plain
from dataengine.builder import SourceError
from dataengine.records import MAX_PAYLOAD, Bad
from dataengine.store.files import Folder

PICTURES = (".jpg", ".jpeg", ".png")
MAX_JSON = 1 << 26  # bytes; published ones have some 30 thousand
MAX_OBJECTS = 1 << 16  # of one picture; published ones have a few hundred
MAX_BAD = 100_000  # more bad records than this are not bad records but the wrong folder
MAX_CLASS = 25 * 256 + 255  # the largest that red and green can say
MAX_DEPTH = 8  # of folders of scenes
_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_MAP = re.compile(r".*_(?:seg|parts_[0-9]+)\.png")

Record = dict[str, str | int]


@dataclass(slots=True, kw_only=True)
class Listed:
    """The pictures of a split.

    rows: by stem, their files by role, and how many `parts` of objects there are. names: of classes, by number.
    bad: pictures that lack a file, and objects that cannot be used.
    """

    rows: dict[str, Record] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)

    def refuse(self, file: str, stem: str, error: RecordError, payload: str, which: str = "") -> None:
        """Note what cannot be used: a picture, or an object of it. SourceError: there are too many."""
        stem = plain(stem)
        self.bad.append(
            Bad(
                unit="objects" if which else "images",
                file=file,
                record=which or f"image {stem}",
                group=stem,
                reason=error.reason,
                message=str(error),
                payload=payload[:MAX_PAYLOAD],
            )
        )
        if len(self.bad) > MAX_BAD:
            raise SourceError(f"{file}: more than {MAX_BAD:,} records cannot be used; the last one: {self.bad[-1]}")


def list_challenge(folders: Mapping[str, Folder], label: str) -> Listed:
    """Pictures and label maps of ADEChallengeData2016 that belong together.

    Args:
        folders: by role, `images` among them. label: what messages call the split.
    """
    listed = Listed()
    found = {
        role: _by_place(folder.names(), PICTURES if role == "images" else (".png",), listed, label)
        for role, folder in folders.items()
    }
    for stem in sorted(set().union(*found.values())):
        record: Record = {role: names[stem] for role, names in found.items() if stem in names}
        try:
            _check_stem(stem)
            for role in found:
                if role not in record:
                    raise RecordError(f"{role.removesuffix('s')}_missing", f"it is in no file of {role}")
            listed.rows[stem] = record
        except RecordError as error:
            listed.refuse(label, stem, error, json.dumps(record))
    return listed


def list_full(folder: Folder, label: str) -> Listed:
    """Pictures of full ADE20K with their map, and the names that JSON files give classes; the first one stays."""
    listed = Listed()
    names = list(_files_below(folder))
    there = set(names)
    pictures = _by_place((name for name in names if not _MAP.fullmatch(name)), PICTURES, listed, label)
    descriptions = _by_place((name for name in names if name.endswith(".json")), (".json",), listed, label)
    for place in sorted(pictures.keys() | descriptions.keys()):
        stem = PurePosixPath(place).name
        record: Record = {"images": pictures[place]} if place in pictures else {}
        try:
            _check_stem(stem)
            if place not in pictures:
                raise RecordError("image_missing", f"there is no picture {place}")
            record["segments"] = f"{place}_seg.png"
            if record["segments"] not in there:
                raise RecordError("segments_missing", f"there is no {record['segments']}")
            if place not in descriptions:
                raise RecordError("json_missing", f"there is no {place}.json")
            if stem in listed.rows:
                raise RecordError("duplicate_image", f"{place} and {listed.rows[stem]['images']} have one name")
            described = _read(folder, descriptions[place])
        except RecordError as error:
            listed.refuse(label, stem, error, json.dumps(record))
            continue
        for number, name in described.names.items():
            listed.names.setdefault(number, name)
        for which, problem, value in described.refused:
            listed.refuse(descriptions[place], stem, problem, value, which)
        listed.rows[stem] = record | {"parts": described.parts}
    return listed


def _check_stem(stem: str) -> None:
    if not _STEM.fullmatch(stem):
        raise RecordError("unsafe_file_name", "the name holds other than letters, digits and _ . -")


def _by_place(names: Iterable[str], suffixes: Sequence[str], listed: Listed, label: str) -> dict[str, str]:
    """Names of files by what they are without suffix; files of other kinds are none of the source's."""
    found: dict[str, str] = {}
    for name in names:
        path = PurePosixPath(name)
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if found.setdefault(str(path.with_suffix("")), name) != name:
            error = RecordError("duplicate_image", f"{name} and {found[str(path.with_suffix(''))]} have one name")
            listed.refuse(label, path.stem, error, json.dumps(name))
    return found


def _files_below(folder: Folder, below: str = "", depth: int = 0) -> Iterator[str]:
    """Files of the scenes, relative to the folder; folders of a picture's instance masks are not entered."""
    entries = (folder / below if below else folder).entries()
    pictures = {entry.rpartition(".")[0] for entry in entries if not entry.endswith("/")}
    for entry in entries:
        if not entry.endswith("/"):
            yield f"{below}{entry}"
        elif entry[:-1] not in pictures and depth < MAX_DEPTH:
            yield from _files_below(folder, f"{below}{entry}", depth + 1)


# --- the JSON of a picture --------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Described:
    """What a picture's JSON says.

    names: of its objects' classes. parts: how many of its objects are parts of others.
    refused: objects that cannot be used: which, what is wrong, and the object as JSON.
    """

    names: dict[int, str] = field(default_factory=dict)
    parts: int = 0
    refused: list[tuple[str, RecordError, str]] = field(default_factory=list)


def _read(folder: Folder, name: str) -> _Described:
    """Raises RecordError. OSError: the disk or the network fails."""
    try:
        data = folder.read(name)
    except OSError as error:
        if not isinstance(error, FileNotFoundError) and error.errno not in NAME_ERRORS:
            raise
        raise RecordError("json_unreadable", f"{name} cannot be read: {error.strerror}") from None
    return _describe(data)


def _describe(data: bytes) -> _Described:
    """What the JSON of a picture says: `{"annotation": {"object": [{name, name_ndx, parts: {part_level}}]}}`.

    Empty values are published as lists (`occluded: []`); one object alone may stand without its list.

    Raises:
        RecordError: `bad_json` or `bad_field`.
    """
    if len(data) > MAX_JSON:
        raise RecordError("bad_json", f"{len(data):,} bytes; at most {MAX_JSON:,} are read")
    try:
        return _described(json.loads(data.decode("latin-1"), strict=False))
    except RecordError:
        raise
    except (ValueError, RecursionError) as error:
        raise RecordError("bad_json", f"cannot be read as JSON: {error}") from None


def _described(document: Any) -> _Described:
    annotation = document.get("annotation") if isinstance(document, dict) else None
    objects = annotation.get("object") if isinstance(annotation, dict) else None
    if isinstance(objects, dict):
        objects = [objects]
    if not isinstance(objects, list):
        raise RecordError("bad_field", "annotation.object must be a list of objects")
    if len(objects) > MAX_OBJECTS:
        raise RecordError(
            "bad_field", f"annotation.object lists {len(objects):,} objects; at most {MAX_OBJECTS:,} are read"
        )
    found = _Described()
    for number, value in enumerate(objects):
        try:
            if _is_part(value):
                found.parts += 1
                continue
            label, name = _name_of(value)
            found.names.setdefault(label, name)
        except RecordError as error:
            found.refused.append((f"object {number}", error, json.dumps(value)))
    return found


def _is_part(value: Any) -> bool:
    parts = value.get("parts") if isinstance(value, dict) else None
    level = parts.get("part_level", 0) if isinstance(parts, dict) else 0
    if level == []:
        return False
    if not isinstance(level, int | str) or not re.fullmatch("[0-9]", str(level)):
        raise RecordError("bad_field", f"parts.part_level must be 0 to 9, not {str(level)[:40]}")
    return str(level) != "0"


def _name_of(value: Any) -> tuple[int, str]:
    if not isinstance(value, dict):
        raise RecordError("bad_field", "an object must be a JSON object")
    label, name = value.get("name_ndx"), value.get("name")
    if not isinstance(label, int) or isinstance(label, bool) or not 1 <= label <= MAX_CLASS:
        raise RecordError("bad_field", f"name_ndx must be a class from 1 to {MAX_CLASS}, not {str(label)[:40]}")
    if not isinstance(name, str) or not is_name(name):
        raise RecordError("bad_text", f"class {label} has no name that could be written in a question")
    return label, name
