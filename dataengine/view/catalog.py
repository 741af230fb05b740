"""Facts of all rows of a dataset in compact columns, by which rows are filtered and sorted.

A catalogue is filled shard by shard, in the background, and answers for the rows that it has; `ready` says their share.
A few hundred bytes a row are read for that, about a hundred are kept: never pictures, masks or points. A damaged
shard's rows are in no answer of a filter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from dataengine.errors import UserError
from dataengine.store.columns import Elements, combine, leaves, rows
from dataengine.view import texts
from dataengine.view.reader import Reader
from dataengine.view.texts import Search, Texts

if TYPE_CHECKING:
    import pyarrow as pa

MAX_NAMES = 30_000  # of a facet; what comes later is counted as OTHERS
OTHERS = "(others)"
MAX_NAME = 200  # characters
SETS = ("kind", "origin", "round", "labeler")  # of which a row may have several, from a few
FACETS = ("task", "variant", "source", "split", "category", *SETS, "license")
COUNTS = ("objects", "conditions", "words", "largest", "smallest")  # uint32
SHARES = ("inside", "other", "score", "stability")  # float32, NaN where a row has none
SORTS = {"area": "largest"} | {name: name for name in (*COUNTS, *SHARES) if name != "largest"}
RANGES = ("objects", "area", *SHARES)
ROWS_A_PIECE = 1 << 16  # so that rows of a piece fit uint16
FIELDS = (
    "sample_id", "task", "variant", "license.name", "license.url", "turns.text", "conditions.text",
    "objects.area", "objects.category_id", "objects.lineage.origin", "objects.lineage.labeler",
    "objects.lineage.round", "objects.lineage.score", "objects.lineage.stability",
    *(f"{of}.prompts.{name}" for of in ("objects", "references") for name in ("kind", "status", "inside", "other")),
)  # fmt: skip


class Names:
    """The values of a facet, numbered as they come."""

    def __init__(self, limit: int = MAX_NAMES) -> None:
        self.names: list[str] = []
        self._codes: dict[str, int] = {}
        self._limit = limit

    def code(self, name: str) -> int:
        name = name[:MAX_NAME]
        if name not in self._codes:
            if len(self.names) >= self._limit - 1:
                name = OTHERS
            if name not in self._codes:
                self._codes[name] = len(self.names)
                self.names.append(name)
        return self._codes[name]

    def find(self, names: Sequence[str]) -> list[int]:
        """Codes of those names that there are."""
        return [self._codes[name] for name in names if name in self._codes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What objects of neighbouring rows are. start: number of the first row.

    row, area: of each object, the row less `start`, and px. category_row, category: each category of a row once.
    """

    start: int
    row: np.ndarray
    area: np.ndarray
    category_row: np.ndarray
    category: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What is asked for: rows for which all of it holds.

    facets: values, one of which a row must have, by name of the facet. ranges: lowest and highest value, both
    included: of objects the number; of `area` (px) any object's; of `inside`, `score`, `stability` the smallest, of
    `other` the largest that a row has. text: a part of its id, turns or conditions, in upper or lower case.
    ambiguous: a prompt lies in another object more than in its own. change: codes of `compare`.
    """

    facets: tuple[tuple[str, tuple[str, ...]], ...] = ()
    ranges: tuple[tuple[str, float, float], ...] = ()
    text: str = ""
    ambiguous: bool = False
    change: tuple[str, ...] = ()


@dataclass(slots=True)
class Catalog:
    """The facts of a dataset's rows.

    rows: how many are catalogued, from the first on. damaged: why a shard could not be read, by its index.
    """

    reader: Reader
    rows: int = 0
    damaged: dict[int, str] = field(default_factory=dict)
    ids: np.ndarray = field(init=False)
    numbers: dict[str, np.ndarray] = field(init=False)
    texts: Texts = field(init=False)
    _codes: dict[str, np.ndarray] = field(init=False)
    _names: dict[str, Names] = field(init=False)
    _sets: dict[str, dict[int, int]] = field(init=False)
    _counts: dict[str, np.ndarray] = field(init=False)
    _ambiguous: np.ndarray = field(init=False)
    _known: np.ndarray = field(init=False)
    _pieces: list[Piece] = field(default_factory=list)
    _searches: dict[str, Search] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        total = self.reader.num_rows
        self.ids = np.zeros(total, dtype=np.uint64)
        self.numbers = {name: np.zeros(total, dtype=np.uint32) for name in COUNTS}
        self.numbers |= {name: np.zeros(total, dtype=np.float32) for name in SHARES}
        self.texts = Texts(self._texts_again)
        self._codes = {name: np.zeros(total, dtype=np.uint16) for name in FACETS if name != "category"}
        self._names = {name: Names(63 if name in SETS else MAX_NAMES) for name in FACETS}
        self._sets = {name: {} for name in SETS}
        self._counts = {name: np.zeros(0, dtype=np.int64) for name in FACETS}
        self._ambiguous = np.zeros(total, dtype=bool)
        self._known = np.zeros(total, dtype=bool)
        for index, shard in enumerate(self.reader.shards):
            start, stop = self.reader.starts[index : index + 2]
            for name in ("source", "split"):
                self._codes[name][start:stop] = self._names[name].code(shard[name])
                self._count(name, self._codes[name][start:stop])

    @property
    def ready(self) -> float:
        """Share of the rows that are catalogued."""
        return self.rows / self.reader.num_rows if self.reader.num_rows else 1.0

    def fill(self, pause: Callable[[], bool]) -> None:
        """Catalogue all shards. pause: called between row groups; may wait; true: stop."""
        import pyarrow as pa

        for index in range(len(self.reader.shards)):
            start, counts = self.reader.starts[index], dict(self._counts)
            try:
                for table in self.reader.groups(index, leaves(*FIELDS)):
                    if pause():
                        return
                    self._add(index, start, table)
                    start += table.num_rows
            except Exception as error:  # whatever a file holds that is no shard
                self.damaged[index] = str(error) or type(error).__name__
                self._known[self.reader.starts[index] : self.reader.starts[index + 1]] = False
                self._counts = counts  # without what was read before the damage
            self.rows = self.reader.starts[index + 1]
            pa.default_memory_pool().release_unused()

    def facets(self) -> dict[str, list[tuple[str, int]]]:
        """How many catalogued rows have each value, most frequent first; source and split of all rows."""
        found = {}
        for name in FACETS:
            named = zip(self._names[name].names, self._counts[name].tolist(), strict=False)
            values = [(value, number) for value, number in named if number and value]
            found[name] = sorted(values, key=lambda pair: (-pair[1], pair[0]))
        return found

    def search(self, filters: Filters, seconds: float) -> tuple[np.ndarray, float]:
        """The rows that pass, and the share of all rows that this is the answer for.

        Args:
            seconds: after which a search for text answers with what it has.
        Returns:
            (rows catalogued,) bool; 0..1.
        """
        known = self.rows
        mask = self._known[:known].copy()
        for name, values in filters.facets:
            mask &= self._having(name, values, known)
        for name, low, high in filters.ranges:
            mask &= self._between(name, low, high, known)
        if filters.ambiguous:
            mask &= self._ambiguous[:known]
        answered = known
        if filters.text:
            search = self._searching(filters.text)
            if not search.advance(seconds):
                answered = min(known, search.searched)
            mask &= search.hits[:known]
        return mask, answered / self.reader.num_rows if self.reader.num_rows else 1.0

    def order(self, chosen: np.ndarray, key: str, descending: bool) -> np.ndarray:
        """Numbers of rows sorted by a number that they have; rows that have none come last.

        Args:
            chosen: (n,) row numbers, ascending. key: of SORTS.
        """
        values = self.value(chosen, key)
        order = np.argsort(-values if descending else values, kind="stable")  # NaN comes last either way
        sorted_rows: np.ndarray = chosen[order]
        return sorted_rows

    def value(self, chosen: np.ndarray, key: str) -> np.ndarray:
        """(n,) float: what rows are sorted by; NaN where they have none."""
        values = self.numbers[SORTS[key]][chosen].astype(np.float64)
        if key in ("area", "smallest"):
            values[self.numbers["objects"][chosen] == 0] = np.nan
        return values

    def candidates(self, sample_id: str) -> list[int]:
        """Catalogued rows that may have an id: those of its hash."""
        return np.flatnonzero(self.ids[: self.rows] == np.uint64(hash_of(sample_id))).tolist()

    # --- asking ---------------------------------------------------------------------------------------------------

    def _having(self, name: str, values: Sequence[str], known: int) -> np.ndarray:
        codes = self._names[name].find(values)
        if name == "category":
            mask = np.zeros(known, dtype=bool)
            for piece in tuple(self._pieces):
                mine = piece.category_row[np.isin(piece.category, codes)].astype(np.int64) + piece.start
                mask[mine[mine < known]] = True
            return mask
        if name in SETS:
            wanted = sum(1 << code for code in codes)
            table = np.array([bool(bits & wanted) for bits in tuple(self._sets[name])] or [False])
        else:
            table = np.zeros(max(len(self._names[name].names), 1), dtype=bool)
            table[codes] = True
        found: np.ndarray = table[self._codes[name][:known]]
        return found

    def _between(self, name: str, low: float, high: float, known: int) -> np.ndarray:
        if name != "area":
            values = self.numbers[name][:known]
            return (values >= low) & (values <= high)
        mask = np.zeros(known, dtype=bool)
        for piece in tuple(self._pieces):
            mine = piece.row[(piece.area >= low) & (piece.area <= high)].astype(np.int64) + piece.start
            mask[mine[mine < known]] = True
        return mask

    def _searching(self, text: str) -> Search:
        with self._lock:
            search = self._searches.pop(text, None) or Search(self.texts, text, self.reader.num_rows)
            self._searches[text] = search  # the one used last stands last
            while len(self._searches) > 4:
                self._searches.pop(next(iter(self._searches)))
        return search

    def _texts_again(self, start: int) -> pa.Array:
        place = self.reader.place(start)
        return texts.joined(self.reader.read(place, texts.leaf_names()))

    # --- filling --------------------------------------------------------------------------------------------------

    def _add(self, shard: int, start: int, table: pa.Table) -> None:
        """Catalogue a row group. start: number of its first row."""
        every = rows(table)
        stop = start + table.num_rows
        objects = every.each("objects")
        self.ids[start:stop] = [hash_of(text or "") for text in table.column("sample_id").to_pylist()]
        for name in ("task", "variant"):
            found = every.texts(name)
            self._put(name, start, found.codes, [*found.names, ""])
        codes, licenses = combine([every.texts("license.name"), every.texts("license.url")])
        self._put("license", start, codes, [name or url or "not stated" for name, url in licenses])
        self._add_lineage(start, objects)
        self._add_prompts(start, [objects.each("prompts"), every.each("references").each("prompts")])
        counts = self.numbers
        area = objects.numbers("area", null=0).clip(0, 2**32 - 1).astype(np.uint32)
        counts["objects"][start:stop] = objects.num_per_row()
        counts["conditions"][start:stop] = every.each("conditions").num_per_row()
        counts["words"][start:stop] = every.each("turns").per_row(_words(every.each("turns").array("text")), np.add, 0)
        counts["largest"][start:stop] = objects.per_row(area, np.maximum, 0)
        counts["smallest"][start:stop] = objects.per_row(area, np.minimum, 0)
        self._add_piece(shard, start, objects, area)
        self.texts.add(start, texts.joined(table))
        self._known[start:stop] = True

    def _put(self, name: str, start: int, places: np.ndarray, values: Sequence[str | None]) -> None:
        """places: (n,) which of the values each row has."""
        codes = np.array([self._names[name].code(value or "") for value in values], dtype=np.uint16)[places]
        self._codes[name][start : start + len(codes)] = codes
        self._count(name, codes)

    def _count(self, name: str, codes: np.ndarray) -> None:
        counts = np.bincount(codes, minlength=len(self._names[name].names))
        counts[: len(self._counts[name])] += self._counts[name]
        self._counts[name] = counts

    def _put_sets(self, name: str, start: int, bits: np.ndarray) -> None:
        """bits: (n,) uint64, of each row: one for each value that it has."""
        sets = self._sets[name]
        found, places, numbers = np.unique(bits, return_inverse=True, return_counts=True)
        codes = np.array([sets.setdefault(one, min(len(sets), 2**16 - 1)) for one in found.tolist()], dtype=np.uint16)
        self._codes[name][start : start + len(bits)] = codes[places]
        values = np.arange(len(self._names[name].names), dtype=np.uint64)
        held = (found[:, None] >> values & np.uint64(1)).astype(np.int64) * numbers[:, None]
        counts = held.sum(axis=0)
        counts[: len(self._counts[name])] += self._counts[name]
        self._counts[name] = counts

    def _bits(self, name: str, elements: Elements, values: Sequence[str | None], codes: np.ndarray) -> np.ndarray:
        """(rows,) uint64. values: the different ones of `elements`, and codes: (n,) which each has, or -1."""
        table = [0 if value is None else 1 << self._names[name].code(value) for value in (*values, None)]
        return elements.per_row(np.array(table, dtype=np.uint64)[codes], np.bitwise_or, 0)

    def _add_lineage(self, start: int, objects: Elements) -> None:
        for name in ("origin", "labeler"):
            found = objects.texts(f"lineage.{name}")
            self._put_sets(name, start, self._bits(name, objects, found.names, found.codes))
        rounds, codes = np.unique(objects.numbers("lineage.round", null=-1), return_inverse=True)
        named = [None if number < 0 else str(number) for number in rounds.tolist()]
        self._put_sets("round", start, self._bits("round", objects, named, codes))
        for name in ("score", "stability"):
            values = objects.numbers(f"lineage.{name}").astype(np.float32)
            self.numbers[name][start : start + objects.num_rows] = objects.per_row(values, np.fmin, np.nan)

    def _add_prompts(self, start: int, found: Sequence[Elements]) -> None:
        """Of objects and references; those that could not be made do not count."""
        stop = start + found[0].num_rows
        kinds = np.zeros(found[0].num_rows, dtype=np.uint64)
        inside = np.full(found[0].num_rows, np.nan, dtype=np.float32)
        other = inside.copy()
        for prompts in found:
            status = prompts.texts("status")
            made = np.array([name != "none" for name in (*status.names, "")], dtype=bool)[status.codes]
            kind = prompts.texts("kind")
            kinds |= self._bits("kind", prompts, kind.names, np.where(made, kind.codes, -1))
            shares = {n: np.where(made, prompts.numbers(n, null=np.nan), np.nan) for n in ("inside", "other")}
            inside = np.fmin(inside, prompts.per_row(shares["inside"], np.fmin, np.nan))
            other = np.fmax(other, prompts.per_row(shares["other"], np.fmax, np.nan))
            self._ambiguous[start:stop] |= prompts.per_row(shares["other"] > shares["inside"], np.logical_or, False)
        self._put_sets("kind", start, kinds)
        self.numbers["inside"][start:stop] = inside
        self.numbers["other"][start:stop] = other

    def _add_piece(self, shard: int, start: int, objects: Elements, area: np.ndarray) -> None:
        entry = self.reader.shards[shard]
        names = self._category_names(f"{entry['source']}/{entry['split']}")
        ids, places = np.unique(objects.numbers("category_id", null=-1).astype(np.int64), return_inverse=True)
        known = [names.get(n, f"category {n}" if n >= 0 else "no category") for n in ids.tolist()]
        table = np.array([self._names["category"].code(name) for name in known])
        codes = table.astype(np.int64)[places] if len(ids) else np.zeros(0, dtype=np.int64)
        pairs = np.unique(objects.row * (MAX_NAMES + 1) + codes)
        small = np.uint16 if objects.num_rows <= ROWS_A_PIECE else np.uint32
        piece = Piece(
            start=start,
            row=objects.row.astype(small),
            area=area,
            category_row=(pairs // (MAX_NAMES + 1)).astype(small),
            category=(pairs % (MAX_NAMES + 1)).astype(np.uint16),
        )
        self._count("category", piece.category)
        self._pieces.append(piece)

    def _category_names(self, key: str) -> dict[int, str]:
        source = self.reader.dataset.manifest["sources"].get(key, {})
        return {category["id"]: category["text"] for category in source.get("categories", ())}


def hash_of(sample_id: str) -> int:
    """64 bits that stand for an id."""
    return xxhash.xxh3_64_intdigest(sample_id.encode("utf-8", "surrogatepass"))


def _words(array: pa.Array) -> np.ndarray:
    """(n,) int64: words of each text, as ASCII white space parts them."""
    if not len(array):
        return np.zeros(0, dtype=np.int64)
    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int32)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    text = np.frombuffer(data, dtype=np.uint8)[bounds[0] : bounds[-1]] if data else np.zeros(0, dtype=np.uint8)
    bounds -= bounds[0]
    inside = (text > 0x20) & (text != 0x7F)
    first = inside.copy()
    first[1:] &= ~inside[:-1]
    begins = bounds[:-1][bounds[:-1] < bounds[1:]]
    first[begins] = inside[begins]
    total = np.concatenate([[0], np.cumsum(first)])
    words: np.ndarray = total[bounds[1:]] - total[bounds[:-1]]
    return words


def check_sort(key: str) -> str:
    """Raises UserError: rows cannot be sorted by that."""
    if key not in ("number", "change", *SORTS):
        raise UserError(f"sort={key}: rows are sorted by number, change, {', '.join(SORTS)}")
    return key
