"""What the refer family shares (RefCOCO, RefCOCO+, RefCOCOg, RefCLEF, gRefCOCO): its files, and their index.

`refs(BY).p` (a Python 2 pickle) or `grefs(BY).json` lists referring expressions by annotation id, `instances.json` has
the annotations. Index row: one picture; its members are refs of the split, each with its annotations' own JSON.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn, cast

from builders.coco_index import REQUIRED, add_category, add_info, add_license, check_sections
from builders.coco_index import Index as CocoIndex
from builders.reading import clean_name, is_whole, plain
from builders.rows import Gathering, Hashing, Refused
from dataengine.builder import IndexReport, Part, SourceError
from dataengine.jsonstream import iter_records, iter_rows
from dataengine.records import MAX_PAYLOAD, Account, Bad, Category
from dataengine.store.files import Folder

MAX_PICKLE = 1 << 27  # bytes; the largest published one has 40 million
MAX_VALUES = 1400 << 20  # bytes that a pickle's values may take; gRefCOCO's as a pickle takes 1.0 billion; see `_cost`
MAX_SENTENCES = 1000  # of one ref
MAX_TARGETS = 1000  # of one ref
MAX_TEXT = 10_000  # characters of a sentence
MAX_REPEATS = 64  # how many times larger than its file what is read may be: a pickle may name one value often
MAX_BAD = 100_000
_HEAD = '{"ref": '  # of a member

# what Python 2 and 3 write for lists, dicts, texts and numbers; anything else can run code, or nobody needs it
_ALLOWED = (
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 "
    "FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS "
    "GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE"
)


class _Refusal(Exception):
    """What a pickle asks for and does not get."""


class _TooLarge(Exception):
    """A pickle's values would take more memory than they may."""


def _refuse(unpickler: Any, name: str) -> NoReturn:
    what = ""
    if name in ("GLOBAL", "INST"):
        module, attribute = (unpickler.readline()[:-1].decode("utf-8", "replace")[:80] for _ in range(2))
        what = f" ({module}.{attribute})"
    elif name == "STACK_GLOBAL":
        what = f" ({', '.join(map(_scalar, unpickler.stack[-2:]))})"
    raise _Refusal(f"{name}{what}")


def _put(unpickler: Any) -> None:
    """PUT, whose number may be any: such are chosen so that they collide in the memo, which then takes hours."""
    number = int(unpickler.readline()[:-1])
    if not 0 <= number < MAX_PICKLE:
        raise _Refusal(f"value {number} of its memo")
    unpickler.memo[number] = unpickler.stack[-1]


def _set(unpickler: Any, own: Callable[[Any], None], keys: slice) -> None:
    """SETITEM, SETITEMS and DICT, with texts as keys: numbers can be chosen so that they collide.

    Args:
        own: Python's function. keys: where they stand on the stack.
    """
    if not all(type(key) is str for key in unpickler.stack[keys]):
        raise _Refusal("a dict whose keys are no texts")
    own(unpickler)


def _dispatch() -> dict[int, Any]:
    """What is done for each opcode: Python's own function for those of plain values, a refusal for the others."""
    own = pickle._Unpickler.dispatch  # type: ignore[attr-defined]
    allowed = _ALLOWED.split()
    done: dict[int, Any] = {
        ord(op.code): own[ord(op.code)] if op.name in allowed else partial(_refuse, name=op.name)
        for op in pickletools.opcodes
    }
    pairs, last = slice(None, None, 2), slice(-2, -1)
    for code, keys in ((pickle.SETITEM, last), (pickle.SETITEMS, pairs), (pickle.DICT, pairs)):
        done[code[0]] = partial(_set, own=own[code[0]], keys=keys)
    return done | {pickle.PUT[0]: _put}


def _cost(name: str) -> int:
    """Bytes that an opcode may take in memory, besides those it takes in the file; those of a mark come back.

    So much are: an empty dict and the room of its first entries; a list, or a mark and the list it begins; a text; a
    place in the memo; a reference to a value, with its place in a dict; a number; a place in a list and on the stack.
    """
    if name in ("SETITEMS", "APPENDS", "POP_MARK"):
        return -72
    if name in ("DICT", "EMPTY_DICT"):
        return 200
    if name in ("LIST", "EMPTY_LIST", "MARK"):
        return 96
    if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
        return 136
    if "STRING" in name or "UNICODE" in name:
        return 80
    return 48 if any(kind in name for kind in ("GET", "INT", "LONG", "FLOAT")) else 24


class _Metered(dict[int, Any]):
    """What is done for each opcode, while there is room for its value."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        super().__init__(_PlainUnpickler.dispatch)
        self.left = MAX_VALUES

    def __getitem__(self, code: int) -> Any:
        self.left -= _COSTS[code]
        if self.left < 0:
            raise _TooLarge
        return super().__getitem__(code)


_COSTS = {ord(op.code): _cost(op.name) for op in pickletools.opcodes}


class _PlainUnpickler(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Python's own unpickler with the opcodes of plain values only: it has no way to import or call anything.

    The one written in Python, because the one in C reserves whatever memory a pickle claims to need.
    """

    dispatch = _dispatch()

    def find_class(self, module: str, name: str) -> NoReturn:
        raise _Refusal(f"{module}.{name}")


def load_pickle(data: bytes, name: str) -> Any:
    """The value of a pickle that holds lists, dicts, texts and numbers, and nothing else; no code of it runs.

    Tuples are none of these: to hash one that is nested deeply, as a key, would end the process. Byte strings of
    Python 2 become text as latin-1, which keeps every byte.

    Raises:
        SourceError: the pickle names anything else, has too many values for the memory, or is damaged.
    """
    try:
        unpickler = _PlainUnpickler(io.BytesIO(data), encoding="latin1")
        unpickler.dispatch = _Metered()  # type: ignore[misc]
        return unpickler.load()
    except _Refusal as error:
        raise SourceError(
            f"{name}: this pickle asks for {error}; only lists, dicts, texts and numbers are read, and nothing was run"
        ) from None
    except _TooLarge:
        raise SourceError(
            f"{name}: the values of this pickle would take more than {MAX_VALUES:,} bytes of memory"
        ) from None
    except Exception as error:  # whatever damaged opcodes lead to
        raise SourceError(f"{name}: the pickle is damaged or cut off: {type(error).__name__}: {error}") from None


# --- refs ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Refs:
    """The refs of one split, by picture. sha256: of the file. bad: refs that cannot be used."""

    by_image: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)
    sha256: str = ""

    def annotation_ids(self) -> set[int]:
        return {number for refs in self.by_image.values() for ref in refs for number in ref["annotation_ids"]}


def read_refs(place: Folder, split: str, splits: Sequence[str]) -> Refs:
    """The refs of a split.

    Args:
        place: the pickle or JSON file. splits: all there are; a ref that names none of them is bad, in the first.
    Raises:
        SourceError
    """
    name = PurePosixPath(place.uri.partition("?")[0]).name
    found = Refs()
    seen: set[int] = set()
    held = 0
    with opened(place) as file:
        hashing = Hashing(file)
        values, size = _values(hashing, name)
        for position, (value, text) in enumerate(values):
            own = value.get("split") if isinstance(value, dict) else None
            if (own if isinstance(own, str) and own in splits else splits[0]) != split:
                continue
            problem, ref = _checked(value, splits, seen)
            if problem is not None:
                payload = text if text is not None else _shown(value)
                found.bad.append(_bad_ref(name, f"refs[{position}]", *problem, payload))
                if len(found.bad) > MAX_BAD:
                    raise SourceError(f"{name}: more than {MAX_BAD} refs cannot be used; the last: {found.bad[-1]}")
                continue
            found.by_image.setdefault(value["image_id"], []).append(ref)
            held += _size(ref)
            if size and held > MAX_REPEATS * size:
                raise SourceError(f"{name}: the pickle repeats itself: it is far larger than its file")
        found.sha256 = hashing.hexdigest()
    return found


def _values(file: Hashing, name: str) -> tuple[Iterator[tuple[Any, str | None]], int]:
    """The values of a list, each with its JSON text if it has one; and the size of a pickle, 0 for JSON."""
    if name.endswith(".json"):
        rows = iter_rows(cast("BinaryIO", file), name)
        return ((row.value, row.text) for row in rows), 0
    data = file.read(MAX_PICKLE + 1)
    if len(data) > MAX_PICKLE:
        raise SourceError(f"{name}: a pickle of more than {MAX_PICKLE:,} bytes")
    values = load_pickle(data, name)
    if not isinstance(values, list):
        raise SourceError(f"{name}: the pickle must hold a list of refs, not a {type(values).__name__}")
    return ((value, None) for value in values), len(data)


def _checked(value: Any, splits: Sequence[str], seen: set[int]) -> tuple[tuple[str, str] | None, dict[str, Any]]:
    """Reason and message of what is wrong with a ref, or None; and the ref with its plain values only."""
    if not isinstance(value, dict):
        return ("bad_field", "a ref must be a record"), {}
    if not isinstance(value.get("split"), str) or value["split"] not in splits:
        return ("bad_field", f"split {_shown(value.get('split'))} is none of {', '.join(splits)}"), {}
    for key in ("ref_id", "image_id"):
        if not is_whole(value.get(key)):
            return ("bad_field", f"{key} must be a whole number, not {_shown(value.get(key))}"), {}
    if value["ref_id"] in seen:
        return ("duplicate_ref", f"ref_id {value['ref_id']} is given twice"), {}
    seen.add(value["ref_id"])
    numbers = value.get("ann_id")
    numbers = numbers if isinstance(numbers, list) else [numbers]
    if value.get("no_target") is True or numbers == [-1]:
        numbers = []
    elif not 0 < len(numbers) <= MAX_TARGETS or not all(is_whole(number) for number in numbers):
        return (
            "bad_field",
            f"ann_id {_shown(value.get('ann_id'))} is no list of 1 to {MAX_TARGETS} annotation ids",
        ), {}
    sentences = value.get("sentences")
    if not isinstance(sentences, list) or not 0 < len(sentences) <= MAX_SENTENCES:
        return ("bad_field", f"sentences must be a list of 1 to {MAX_SENTENCES}"), {}
    texts = [entry.get("sent") if isinstance(entry, dict) else None for entry in sentences]
    usable = [text if isinstance(text, str) and len(text) <= MAX_TEXT else None for text in texts]
    ids = [entry.get("sent_id") if isinstance(entry, dict) else None for entry in sentences]
    return None, {
        "ref_id": value["ref_id"],
        "image_id": value["image_id"],
        "annotation_ids": list(dict.fromkeys(numbers)),
        "sentences": [
            {"sent_id": number if is_whole(number) else None, "sent": text}
            for number, text in zip(ids, usable, strict=True)
        ],
    }


def _size(ref: dict[str, Any]) -> int:
    """About how many bytes a checked ref takes in memory."""
    texts = sum(len(entry["sent"] or "") for entry in ref["sentences"])
    return 512 + 40 * len(ref["annotation_ids"]) + 256 * len(ref["sentences"]) + texts


def _shown(value: Any) -> str:
    """A value of a pickle in a few characters; one that holds itself, or names others often, takes no longer."""
    if isinstance(value, dict):
        inner = ", ".join(f"{_scalar(key)}: {_scalar(entry)}" for key, entry in islice(value.items(), 20))
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(_scalar(entry) for entry in value[:20])}]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return repr(value[:200])
    if isinstance(value, int) and value.bit_length() > 128:
        return "a huge number"
    return repr(value) if value is None or isinstance(value, int | float) else f"<{type(value).__name__}>"


def _bad_ref(file: str, record: str, reason: str, message: str, payload: str, group: str = "") -> Bad:
    return Bad(
        unit="refs",
        file=file,
        record=record,
        reason=reason,
        message=message,
        payload=plain(payload)[:MAX_PAYLOAD],
        group=group,
    )


def opened(place: Folder) -> BinaryIO:
    """A file of a source.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        return place.open()
    except OSError as error:
        raise SourceError(f"{place.uri}: cannot be read: {error.strerror or error}") from None


# --- index -----------------------------------------------------------------------------------------------------------


def build_index(part: Part, target: Path, splits: Sequence[str]) -> IndexReport:
    """Join the refs of a split with their annotations: one row a picture, sorted by its number. splits: all there are.

    A row's record is the picture's; a member is `{"ref": …, "annotations": […]}`. Refs of pictures that are not in
    `instances.json` are bad; annotations that are not in it are missing from the member.

    Raises:
        SourceError
    """
    refs = read_refs(Folder(part.files["refs"]), part.split, splits)
    name = PurePosixPath(part.files["refs"].partition("?")[0]).name
    coco, texts = CocoIndex(), dict[int, str]()
    wanted = refs.annotation_ids()
    with Gathering(target.parent) as gathering:
        known = _read_instances(Folder(part.files["instances"]), coco, gathering, set(refs.by_image), wanted, texts)
        for image_id, members in sorted(refs.by_image.items()):
            for ref in members:
                if image_id not in known:
                    message = f"image {image_id} does not exist"
                    payload = json.dumps(ref)
                    refs.bad.append(
                        _bad_ref(name, f"ref {ref['ref_id']}", "unknown_image", message, payload, str(image_id))
                    )
                    continue
                annotations = ", ".join(texts[number] for number in ref["annotation_ids"] if number in texts)
                text = f'{_HEAD}{json.dumps(ref)}, "annotations": [{annotations}]}}'
                gathering.member(image_id, ref["ref_id"], text)
        for refused in gathering.settle():  # pictures that are given twice; the first one stays
            coco.bad.append(_repeated_image(refused))
        written = gathering.write(target)
    bad = (*refs.bad, *coco.bad)
    account = Account(read=Counter(b.unit for b in bad))
    account.quarantine(bad)
    return IndexReport(
        rows=written.rows,
        records=written.rows + written.members,
        account=account,
        bad=bad,
        categories=tuple(
            Category(id=c["id"], name=plain(c["name"]), text=clean_name(c["name"]))
            for c in sorted(coco.categories, key=lambda c: c["id"])
        ),
        inputs={"refs": refs.sha256, "instances": coco.sha256},
        extra={"licenses": coco.licenses, "image_namespace": coco.namespace, "file": name},
        fingerprint=written.fingerprint,
    )


def ref_of(member: str) -> dict[str, Any]:
    """The ref of a member, whatever its annotations are."""
    ref: dict[str, Any] = json.JSONDecoder().raw_decode(member, len(_HEAD))[0]
    return ref


def _repeated_image(refused: Refused) -> Bad:
    return Bad(
        unit="images",
        file="instances.json",
        record=f"image {refused.order}",
        reason="duplicate_image",
        message=f"id {refused.order} is given twice",
        payload=refused.text[:MAX_PAYLOAD],
        group=str(refused.order),
    )


def _read_instances(
    place: Folder, coco: CocoIndex, gathering: Gathering, images: set[int], annotations: set[int], texts: dict[int, str]
) -> set[int]:
    """Read `instances.json`: wanted pictures become rows, wanted annotations texts; returns the pictures there are."""
    name = PurePosixPath(place.uri.partition("?")[0]).name
    known: set[int] = set()
    lists: dict[str, bool] = {}
    sections: Counter[str] = Counter()
    with opened(place) as file:
        hashing = Hashing(file)
        for record in iter_records(cast("BinaryIO", hashing), name, lists):
            sections[record.section] += 1
            number = record.value.get("id") if isinstance(record.value, dict) else None
            if record.section in REQUIRED and not lists[record.section]:
                continue
            if record.section == "images" and is_whole(number) and number in images:
                known.add(number)
                gathering.row(number, str(number), record.text)
            elif record.section == "annotations" and is_whole(number) and number in annotations:
                texts.setdefault(number, record.text)
            elif record.section == "categories":
                add_category(coco, name, record)
            elif record.section == "licenses":
                add_license(coco, record)
            elif record.section == "info":
                add_info(coco, record)
        check_sections(name, lists, sections)
        coco.sha256 = hashing.hexdigest()
    return known
