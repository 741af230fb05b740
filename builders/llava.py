"""LLaVA's conversations to `chat`: the 558k pairs of its alignment stage and the 665k rows of its instruction mix.

Where its files are → one index row a JSON row, in file order → samples. Published layout: `LLaVA-Pretrain/` with
`blip_laion_cc_sbu_558k.json` and `images/`; `LLaVA-Instruct-150K/llava_v1_5_mix665k.json` with `llava_images/` beside
it, or the file among the picture folders (`playground/data`). `.jsonl` is read too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, cast

from builders import options as opts
from builders import places
from builders.coco_index import MAX_BAD
from builders.pictures import coco_id, coco_names, numbered_key, read_picture, safe_file_name, sample_of
from builders.reading import RecordError, outcomes
from builders.rows import Gathering, Hashing, Row, read_rows, select
from dataengine import tokens
from dataengine.builder import About, Context, IndexReport, Outcome, Part, SourceError
from dataengine.jsonstream import Record, decode, iter_rows
from dataengine.records import MAX_PAYLOAD, Account, Bad
from dataengine.sample import Turn
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

NAME = "llava"
VERSION = 1
TASKS = ("chat",)
ABOUT = About(
    title="LLaVA visual instruction tuning",
    url="https://github.com/haotian-liu/LLaVA/blob/main/docs/Data.md",
)
HELD_OUT = ()
EDITIONS = ({"edition": "pretrain"}, {"edition": "mix665k"})
STEMS = {"pretrain": "blip_laion_cc_sbu_558k", "mix665k": "llava_v1_5_mix665k"}
FOLDERS = {"pretrain": "LLaVA-Pretrain", "mix665k": "LLaVA-Instruct-150K"}
IMAGE_FOLDERS = {
    "pretrain": ("LLaVA-Pretrain/images", "images"),
    "mix665k": ("llava_images", "LLaVA-Instruct-150K/llava_images", "../llava_images", "images"),
}
EXPORTED = "llava_train.json"  # rows in the mix's form that a dataset was exported as
PICTURE_SOURCES = {"pretrain": ("00000",), "mix665k": ("coco", "gqa", "ocr_vqa", "textvqa", "vg")}
MARKS = (*(f"{base}{STEMS[e]}.json*" for e in STEMS for base in ("", f"{FOLDERS[e]}/")), EXPORTED)
ROLES: Mapping[str, Literal["user", "assistant"]] = {"human": "user", "gpt": "assistant"}
OCR_SUFFIXES = (".jpg", ".png", ".jpeg", ".gif")  # the rows call all of OCR-VQA's pictures .jpg
_KEYS = (
    (re.compile(r"(?:gqa/images|vg/VG_100K|vg/VG_100K_2)/0*(\d+)"), "vg"),  # GQA asks about pictures of Visual Genome
    (re.compile(r"textvqa/train_images/([^/]+)"), "textvqa"),
    (re.compile(r"ocr_vqa/images/([^/]+)"), "ocr_vqa"),
    (re.compile(r"(\d{5}/\d{9})"), "llava_pretrain"),
)


class Options(opts.SourceOptions):
    """What a recipe may choose.

    edition: `pretrain` (558,128 rows) or `mix665k` (665,298 rows); needed only where both are there.
    text_only: what becomes of rows without a picture.
    """

    task: Literal["chat"]
    edition: Literal["pretrain", "mix665k"] | None = None
    text_only: Literal["keep", "filter"] = "keep"


def parse_options(task: str, options: Mapping[str, Any]) -> Options:
    """See `Builder.parse_options`."""
    return opts.parse(Options, NAME, TASKS, task, options)


# --- where the files are ---------------------------------------------------------------------------------------------


def locate(root: str | None, files: Mapping[str, str], splits: Sequence[str], options: Options) -> list[Part]:
    """See `Builder.locate`. Roles: `annotations`, `images`. The only split is `train`."""
    places.check_roles(NAME, files, ("annotations", "images"))
    edition = options.edition or _edition(root, files)
    places.check_splits(NAME, root or files.get("annotations", ""), splits, ["train"], f"{STEMS[edition]}.json")
    pictures = list(IMAGE_FOLDERS[edition])
    if root is not None and any(Folder(root).kind(name) == "folder" for name in PICTURE_SOURCES[edition]):
        pictures.append("")
    found = {
        "annotations": places.find(f"{NAME} {edition}", "annotations", "file", root, files, _named(edition)),
        "images": places.find(f"{NAME} {edition}", "images", "folder", root, files, pictures),
    }
    return [Part(split="train", files=found)]


def _named(edition: str) -> list[str]:
    """Where the rows of an edition may lie below the root."""
    stem = STEMS[edition]
    names = [f"{base}{stem}{suffix}" for base in (f"{FOLDERS[edition]}/", "") for suffix in (".json", ".jsonl")]
    return [*names, EXPORTED] if edition == "mix665k" else names


def _edition(root: str | None, files: Mapping[str, str]) -> str:
    """The edition that is there; a file that the recipe names is known by its own name, else read as the mix."""
    if "annotations" in files:
        return "pretrain" if STEMS["pretrain"] in files["annotations"] else "mix665k"
    folder = Folder(places.given_root(NAME, root))
    there = [edition for edition in STEMS if any(folder.kind(name) == "file" for name in _named(edition))]
    if len(there) > 1:
        raise SourceError(f"{root}: {' and '.join(there)} are both here; choose one with the option `edition`")
    if not there:
        stems = " or ".join(f"{stem}.json" for stem in STEMS.values())
        raise SourceError(f"{root}: no {NAME} here. Expected: {stems}, here or in {' or '.join(FOLDERS.values())}")
    return there[0]


# --- index -----------------------------------------------------------------------------------------------------------


def index(part: Part, options: Options, target: Path) -> IndexReport:
    """See `Builder.index`. A row's key is its number in the file, from 0; ids repeat in the published files."""
    place = Folder(part.files["annotations"])
    name = PurePosixPath(place.uri.partition("?")[0]).name
    bad: list[Bad] = []
    try:
        file = place.open()
    except OSError as error:
        raise SourceError(f"{place.uri}: cannot be read: {error.strerror or error}") from None
    with file, Gathering(target.parent) as gathering:
        hashing = Hashing(file)
        for record in iter_rows(cast("BinaryIO", hashing), place.uri):
            if isinstance(record.value, dict):
                gathering.row(record.position, str(record.position), record.text)
            else:
                bad.append(_no_row(name, record))
            if len(bad) > MAX_BAD:
                raise SourceError(f"{place.uri}: more than {MAX_BAD} rows cannot be used; the last one: {bad[-1]}")
        refused = list(gathering.settle())
        assert not refused  # every row has a number of its own
        written = gathering.write(target)
        sha256 = hashing.hexdigest()
    if not written.rows:
        raise SourceError(f"{place.uri}: it holds no row that could be used")
    account = Account(read=Counter(rows=len(bad)))
    account.quarantine(bad)
    return IndexReport(
        rows=written.rows,
        records=written.rows,
        account=account,
        bad=tuple(bad),
        categories=(),
        inputs={"annotations": sha256},
        extra={"file": name},
        fingerprint=written.fingerprint,
    )


def _no_row(name: str, record: Record) -> Bad:
    return Bad(
        unit="rows",
        file=name,
        record=f"row {record.position}",
        reason="bad_json" if record.error else "bad_row",
        message=record.error or f"a row must be a JSON object, not {type(record.value).__name__}",
        payload=record.text[:MAX_PAYLOAD],
    )


def image_keys(context: Context, index: Folder) -> Iterator[str]:
    """See `Builder.image_keys`."""
    for row in read_rows(index):
        try:
            names = _picture_names(decode(row.record))
        except RecordError:
            names = []
        yield image_key(names[0]) if len(names) == 1 else ""


def image_key(name: str) -> str:
    """Identity of a picture across sources, from its path below the picture folder: `vg/2`, `coco/000000033471`."""
    number = _coco_number(name)
    if number is not None:
        return numbered_key("coco", number)
    stem = str(PurePosixPath(name).with_suffix(""))
    keys = (f"{source}/{found.group(1)}" for pattern, source in _KEYS if (found := pattern.fullmatch(stem)))
    return next(keys, f"llava/{stem}")


def _coco_number(name: str) -> int | None:
    """The COCO number of a picture below `coco/`, or of one that is named without a folder."""
    return coco_id(name) if name.startswith("coco/") or "/" not in name else None


# --- samples ---------------------------------------------------------------------------------------------------------


def read(context: Context, index: Folder, start: int, stop: int) -> Iterator[Outcome]:
    """See `Builder.read`. Counts rows and turns; turns that were joined and markers that were escaped by themselves."""
    return outcomes(context, read_rows(index, start, stop), _outcome, _held, "rows")


def _held(row: Row) -> Counter[str]:
    """What a row holds, however bad it is."""
    turns = decode(row.record).get("conversations")
    return Counter(turns=len(turns) if isinstance(turns, list) else 0)


def _outcome(context: Context, row: Row) -> Outcome:
    value = decode(row.record)
    said = _said(value)
    names = _picture_names(value)
    turns, account = _talk(said, bool(names))
    reason = None
    if len(names) > 1 or (names and sum(text.count(tokens.IMAGE) for _, text in said) > 1):
        reason = "several_images"
    elif not names and context.options.text_only == "filter":
        reason = "text_only"
    elif not turns:
        reason = "no_answered_question"
    if reason:
        account = Account(read=Counter(rows=1, turns=len(said)))
        account.filter("rows", reason)
        account.filter("turns", reason, len(said))
        return Outcome(group=row.key, unit="rows", account=account)
    picture = read_picture(Folder(context.part.files["images"]), _places(names[0])) if names else None
    key = image_key(names[0]) if names else ""
    base = sample_of(context, picture, key=key, file=context.extra["file"], record=f"row {row.key}")
    sample_id = f"{context.source}/{context.part.split}/{key or 'text'}/{context.task}/{row.key}"
    account.read["rows"] = account.built["rows"] = 1
    sample = replace(base, sample_id=sample_id, turns=turns)
    return Outcome(group=row.key, unit="rows", samples=[sample], account=account)


def _said(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Who said what, in order: `human` or `gpt`, and the text.

    Raises:
        RecordError: `bad_field`, `unknown_role`.
    """
    turns = value.get("conversations")
    if not isinstance(turns, list):
        raise RecordError("bad_field", f"conversations must be a list of turns, not {type(turns).__name__}")
    said = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise RecordError("bad_field", f"turn {number} must be an object with `from` and a text `value`")
        role = turn.get("from")
        if not isinstance(role, str) or role not in ROLES:
            raise RecordError("unknown_role", f"turn {number} is from {role!r}; human or gpt is expected")
        said.append((role, turn["value"]))
    return said


def _picture_names(value: Mapping[str, Any]) -> list[str]:
    """Names of a row's pictures below their folder; none for a row of text alone.

    Raises:
        RecordError: `unsafe_file_name`.
    """
    named = value.get("image")
    if named is None or named == "":
        return []
    return [safe_file_name(name, "image") for name in (named if isinstance(named, list) else [named])]


def _places(name: str) -> list[str]:
    """Where a picture may lie below its folder: COCO's also under 2014 names, OCR-VQA's with other suffixes."""
    path = PurePosixPath(name)
    number = _coco_number(name)
    if number is not None:
        return [name, *(f"coco/{place}" for place in coco_names(number, name.removeprefix("coco/")))]
    if path.parts[0] == "ocr_vqa":
        return list(dict.fromkeys([name, *(str(path.with_suffix(suffix)) for suffix in OCR_SUFFIXES)]))
    return [name]


def _talk(said: Sequence[tuple[str, str]], has_picture: bool) -> tuple[tuple[Turn, ...], Account]:
    """Alternating turns that begin with a question and end with an answer, and an account of the source's turns.

    Turns of one speaker in a row are joined by a newline: without one, X-SAM's way, the last word of a sentence runs
    into the first of the next. White space at the ends of a turn goes, and turns of nothing else.
    """
    account = Account(read=Counter(turns=len(said)))
    talk: list[tuple[str, list[str]]] = []
    escaped = 0
    for role, text in said:
        shows = has_picture and tokens.IMAGE in text
        text, number = tokens.escape(text.replace(tokens.IMAGE, "") if shows else text)
        text = text.strip()
        escaped += number
        asks = bool(text) or (shows and role == "human" and not talk)  # the picture alone is a question too
        if not asks:
            account.filter("turns", "empty")
        elif role == "gpt" and not talk:
            account.filter("turns", "leading_answer")
        elif talk and talk[-1][0] == role:
            talk[-1][1].append(text)
        else:
            talk.append((role, [text]))
    if talk and talk[-1][0] == "human":
        account.filter("turns", "trailing_question", len(talk.pop()[1]))
    account.built["turns"] = sum(len(texts) for _, texts in talk)
    for unit, number in (("joined_turns", account.built["turns"] - len(talk)), ("escaped_markers", escaped)):
        account.read[unit] = account.built[unit] = number
    opening = f"{tokens.IMAGE}\n" if has_picture else ""
    turns = tuple(
        Turn(
            role=ROLES[role],
            text=("" if number else opening) + "\n".join(text for text in texts if text),
            supervised=role == "gpt",
        )
        for number, (role, texts) in enumerate(talk)
    )
    return turns, account
