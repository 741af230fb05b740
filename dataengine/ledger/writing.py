"""What is checked of entries and decisions on their way into a ledger, and the sorted files that they go through."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dataengine import masks
from dataengine.ledger import records
from dataengine.ledger.records import Decision, Entry, Picture, entry_id_of, mask_id_of
from dataengine.ledger.tables import (
    GROUP_ROWS,
    MAX_KEY,
    LedgerError,
    SortedFile,
    SortedWriter,
    entry_schema,
    table_of_entries,
    together,
)

if TYPE_CHECKING:
    import pyarrow as pa

RUN_ENTRIES = 1 << 15  # that are sorted in memory
RUN_BYTES = 64 << 20  # of their masks
FILE_ROWS = 1 << 20  # of one file of a step
LINKS = ("picture", "entry_id", "origin", "supersedes")
_ACTIONS = get_args(records.Action)
_ORIGINS = get_args(records.Origin)
_RELATIONS = get_args(records.Relation)
_STATES = get_args(records.State)
_VERDICTS = get_args(records.Verdict)


# --- entries ---------------------------------------------------------------------------------------------------------


def check_picture(picture: Picture) -> None:
    """Raises LedgerError where a picture cannot be in a ledger."""
    if not picture.key or len(picture.key.encode("utf-8", "replace")) > MAX_KEY or not _is_unicode(picture.key):
        raise LedgerError(f"picture {picture.key!r:.200}: a key is a text of 1 to {MAX_KEY} bytes")
    if not 0 < picture.height * picture.width < masks.MAX_PIXELS or picture.height < 0:
        raise LedgerError(f"picture {picture.key}: {picture.width} x {picture.height} px is no size of a picture")
    if re.fullmatch("[0-9a-f]{64}", picture.sha256) is None:
        raise LedgerError(f"picture {picture.key}: {picture.sha256!r:.80} is no sha256 of its file")
    if not picture.path or not _is_unicode(picture.path):
        raise LedgerError(f"picture {picture.key}: {picture.path!r:.200} is no path")


def check_entries(entries: Sequence[Entry], picture: Picture, texts: Mapping[int, str]) -> None:
    """Check all of a picture's entries that can be checked without others.

    Args:
        texts: of the ledger's categories, by id.
    Raises:
        LedgerError: it names the entry.
    """
    figures = masks.borders_from_rles([entry.rle for entry in entries], picture.height, picture.width).figures.tolist()
    for entry, measured in zip(entries, figures, strict=True):
        problem = _problem(entry, picture, texts) or _mask_problem(entry, picture, measured)
        if problem is not None:
            raise LedgerError(f"entry {entry.entry_id!r:.80} (picture {picture.key}): {problem}")


def _problem(entry: Entry, picture: Picture, texts: Mapping[int, str]) -> str | None:
    """What is wrong with an entry, besides its mask."""
    concept, by = entry.concept, entry.labeler
    names = (concept.text, entry.prompt, entry.annotation_id, *((by.name, by.revision) if by is not None else ()))
    if not all(map(_is_unicode, names)):
        return "one of its texts is no Unicode"
    if not entry.rle.isascii():
        return "RLE counts are no COCO-compressed string"
    if entry.mask_id != mask_id_of(picture, concept, entry.rle):
        return "its mask_id is not that of its mask and concept in this picture"
    if entry.entry_id != entry_id_of(entry.mask_id, entry.round, by, entry.prompt, entry.annotation_id):
        return "its entry_id is not that of its mask, round, labeler, prompt and annotation"
    if concept.text != (concept.text if concept.category_id == -1 else texts.get(concept.category_id)):
        return f"the ledger has no category {concept.category_id} {concept.text!r:.80}"
    if not concept.text.strip():
        return "its concept has no text"
    for allowed, value in ((_ORIGINS, entry.origin), (_RELATIONS, entry.relation), (_STATES, entry.state)):
        if value not in allowed:
            return f"one of {', '.join(allowed)} is needed, not {value!r:.80}"
    if (entry.origin == "human") != (by is None):
        return "models have a labeler, people have none"
    numbers = [entry.score, entry.predicted_iou, entry.stability, entry.overlap]
    for check in entry.checks:
        numbers += (check.value, check.limit)
        if check.verdict not in _VERDICTS:
            return f"check {check.name}: a verdict is {', '.join(_VERDICTS)}, not {check.verdict!r:.80}"
    if not all([isfinite(number) for number in numbers if number is not None]):
        return "a score, or the value or limit of a check, is not finite"
    return None


def _mask_problem(entry: Entry, picture: Picture, measured: Sequence[int]) -> str | None:
    """What is wrong with an entry's mask. measured: its area, -1 where it is none, and its box x0, y0, x1, y1."""
    area, x0, y0, x1, y1 = measured
    if area < 0:
        try:
            masks.counts_from_rle(entry.rle, picture.height, picture.width)
        except masks.MaskError as error:
            return str(error)
    box = (x0, y0, x1 - x0, y1 - y0)
    if (area, box) != (entry.area, tuple(entry.bbox)):
        return f"its mask has {area} px in the box {box}, it says {entry.area} in {tuple(entry.bbox)}"
    if not area and entry.state != "rejected":
        return "a mask without a pixel can only be rejected"
    return None


def _is_unicode(text: str) -> bool:
    return text.isascii() or text == text.encode("utf-8", "replace").decode()


def write_run(
    path: Path, entries: Iterable[Entry], picture_of: Callable[[str], Picture], texts: Mapping[int, str]
) -> Path:
    """Write entries that come sorted by picture to one file, each of them checked.

    Raises:
        LedgerError: an entry is refused, or out of order.
    """
    with SortedWriter(path, entry_schema()) as writer:
        pending: list[Entry] = []
        before = ""
        for key, group in groupby(entries, attrgetter("picture")):
            if key < before:
                raise LedgerError(f"entries of picture {key} come behind those of {before}")
            before, picture = key, picture_of(key)
            mine = list(group)
            check_entries(mine, picture, texts)
            pending += mine
            if len(pending) >= GROUP_ROWS:
                writer.write(_table(pending))
                pending = []
        if pending:
            writer.write(_table(pending))
    return path


def _table(entries: Sequence[Entry]) -> pa.Table:
    import pyarrow as pa

    try:
        return table_of_entries(entries)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError) as error:
        first, last = entries[0].entry_id, entries[-1].entry_id
        raise LedgerError(f"an entry from {first} to {last} holds what a ledger cannot: {error}") from None


def write_runs(
    entries: Iterable[Entry], folder: Path, picture_of: Callable[[str], Picture], texts: Mapping[int, str]
) -> list[Path]:
    """Write entries in any order to files that are sorted by picture, in bounded memory."""
    runs: list[Path] = []
    for buffer in _buffers(entries):
        buffer.sort(key=attrgetter("picture"))  # stable: a picture's entries stay in their order
        runs.append(write_run(folder / f"run{len(runs):05d}.parquet", buffer, picture_of, texts))
    return runs


def _buffers(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    buffer: list[Entry] = []
    size = 0
    for entry in entries:
        buffer.append(entry)
        size += len(entry.rle)
        if len(buffer) >= RUN_ENTRIES or size >= RUN_BYTES:
            yield buffer
            buffer, size = [], 0
    if buffer:
        yield buffer


def whole(table: pa.Table) -> pa.Table:
    """Rows as a table, where they need not become values."""
    return table


def merged(
    runs: Sequence[SortedFile], earlier: Sequence[SortedFile], has_picture: Callable[[str], object], round: int
) -> Iterator[pa.Table]:
    """The entries of sorted files, a picture at a time, checked against each other and those that the ledger has.

    Args:
        earlier: the ledger's own files. has_picture: raises LedgerError where the ledger has no such picture. round: of
            the step, which no entry may be ahead of.
    Raises:
        LedgerError: an entry is there already, or is linked to one that is not in its picture; a model's mask is to
            stand in the place of a person's.
    """
    import pyarrow as pa

    for key, parts in together(runs, whole):
        has_picture(key)
        old = [part for file in earlier if (part := file.part(key, whole, LINKS)) is not None]
        origins = {id: origin for part in old for id, origin in _rows(part, ("entry_id", "origin"))}
        new = pa.concat_tables([part for _, part in parts])
        rows = list(_rows(new, ("entry_id", "origin", "round", "supersedes", "relative")))
        for entry_id, origin, of_round, _, _ in rows:
            if entry_id in origins:
                raise LedgerError(f"entry {entry_id} (picture {key}) is in the ledger already, or is given twice")
            if not 0 <= of_round <= round:
                raise LedgerError(f"entry {entry_id} (picture {key}) is of round {of_round}, its step of {round}")
            origins[entry_id] = origin
        for entry_id, origin, _, supersedes, relative in rows:
            for field, other in (("supersedes", supersedes), ("relative", relative)):
                if other is not None and (other not in origins or other == entry_id):
                    raise LedgerError(f"entry {entry_id} (picture {key}): {field} names {other!r:.80}, no other there")
            if supersedes is not None and origin != "human" and origins[supersedes] == "human":
                raise LedgerError(f"entry {entry_id} (picture {key}): a model's mask cannot stand for a person's")
        yield new


def _rows(table: pa.Table, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    return zip(*(table.column(name).to_pylist() for name in columns), strict=True)


# --- decisions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """Where an entry stands. step: that wrote it, -1 for one that is being written."""

    picture: str
    origin: str
    supersedes: str | None
    step: int


def locate(files: Iterable[SortedFile], wanted: Collection[str]) -> dict[str, list[Located]]:
    """The places of some entries; more than one where a step was undone and done again."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: dict[str, list[Located]] = {}
    ids = pa.array(sorted(wanted), pa.string())
    for file in files if wanted else ():
        for table in file.tables(LINKS):
            for key, entry_id, origin, supersedes in _rows(table.filter(pc.is_in(table["entry_id"], ids)), LINKS):
                place = Located(picture=key, origin=origin, supersedes=supersedes, step=file.step)
                found.setdefault(entry_id, []).append(place)
    return found


def placed(decisions: Sequence[Decision], entries: Mapping[str, list[Located]]) -> list[tuple[str, Decision]]:
    """Decisions with the keys of their pictures, in the pictures' order and then their own.

    Raises:
        LedgerError: one is refused; it names its entry.
    """
    found = []
    for decision in decisions:
        name = f"decision on {decision.entry_id!r:.80} by {decision.by!r:.80}"
        if decision.state not in _STATES or decision.action not in _ACTIONS:
            raise LedgerError(
                f"{name}: state is {', '.join(_STATES)} and action {', '.join(_ACTIONS)}, not "
                f"{decision.state!r:.80} and {decision.action!r:.80}"
            )
        if re.match(r"(reviewer|rule):.", decision.by) is None or not _is_unicode(decision.by + decision.reason):
            raise LedgerError(f"{name}: it is by reviewer:NAME or rule:NAME")
        if decision.seconds is not None and not (isfinite(decision.seconds) and decision.seconds >= 0):
            raise LedgerError(f"{name}: {decision.seconds} s is no time that it took")
        if decision.entry_id not in entries:
            raise LedgerError(f"{name}: the ledger has no such entry")
        (place,) = entries[decision.entry_id][-1:]
        if place.origin == "human" and decision.by.startswith("rule:") and decision.state != "kept":
            raise LedgerError(f"{name}: only people take back what people annotated")
        if decision.replacement is not None:
            (other,) = entries.get(decision.replacement, [None])[-1:]
            if other is None or (other.picture, other.origin) != (place.picture, "human"):
                raise LedgerError(f"{name}: {decision.replacement!r:.80} is no mask that a person made in its picture")
            if other.supersedes != decision.entry_id:
                raise LedgerError(f"{name}: {decision.replacement} does not supersede it")
        elif decision.action == "edit":
            raise LedgerError(f"{name}: an edit names the mask that it put in its place")
        found.append((place.picture, decision))
    return sorted(found, key=lambda one: one[0])
