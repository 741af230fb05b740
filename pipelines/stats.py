"""`stats`: what a dataset holds, in numbers. One pass over its shards, a row group at a time; no picture is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dataengine.store import columns
from dataengine.store.columns import Elements
from dataengine.store.dataset import Dataset, open_dataset
from pipelines import token_count
from pipelines.tally import Numbers, Shares
from pipelines.token_count import TokenCount

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

KEYS = ("task", "variant", "source", "split")
PROMPT_KEYS = ("kind", "profile", "status")
LINEAGE_KEYS = ("lineage.origin", "lineage.labeler", "lineage.round")
SCORES = ("score", "stability")
FIELDS = (
    *KEYS,
    *("image_key", "height", "width", "turns.text", "conditions.kind"),
    *(f"objects.{name}" for name in ("area", "category_id", *LINEAGE_KEYS, *(f"lineage.{s}" for s in SCORES))),
    *(f"objects.prompts.{name}" for name in (*PROMPT_KEYS, "inside", "other")),
)
SMALL, LARGE = 32**2, 96**2  # px: COCO's limits of small and large objects
SIZES = ("small", "medium", "large")
PENDING = 1 << 17  # samples whose pictures are noted, before those that are the same are put together


def stats(uri: str, tokenizer: str | None = None) -> dict[str, Any]:
    """The numbers of a finished dataset, as JSON values.

    Histograms are {"edges", "counts", "open"} of whole numbers, or {"edges", "counts", "zeros", "ones"} of shares, as
    `pipelines.tally` says. `per_sample` and `mask_area_px` are of samples and their objects: where several samples show
    a picture, its objects count in each. `pictures` is of distinct pictures (`image_key`), `pictures.objects` of each
    one's sample that has most; `pictures.samples` counts samples again.

    Args:
        tokenizer: a `tokenizer.json`, or its folder, whose tokens are counted; None for words, marks and markers.
    Raises:
        DatasetError: it is not finished, or damaged. TokenizerError: the tokenizer cannot be used.
    """
    tokens = token_count.pieces() if tokenizer is None else token_count.of_tokenizer(tokenizer)
    dataset = open_dataset(uri)
    counted = Counted()
    for table in dataset.tables(columns.leaves(*FIELDS)):
        counted.add(columns.rows(table), tokens)
    counts = dataset.manifest["counts"]
    return {
        "version": dataset.manifest["version"],
        "samples": counts["samples"],
        "by": [
            {**dict(zip(KEYS, (text or "" for text in key), strict=True)), "samples": number}
            for key, number in _sorted(counted.samples)
        ],
        "per_sample": {
            **{name: found.to_json() for name, found in counted.per_sample.items()},
            "tokens": {"unit": tokens.unit, **counted.tokens.to_json()},
        },
        "pictures": {**counted.pictures.to_json(), "samples": pictures_stored(dataset)},
        "mask_area_px": {
            **counted.area.to_json(log=True),
            "sizes": {size: sum(found[size] for found in counted.sizes.values()) for size in SIZES},
            "sizes_by_task": {
                task: {size: found[size] for size in SIZES} for task, found in sorted(counted.sizes.items())
            },
        },
        "categories": _named(dataset, counted.categories),
        "prompts": [
            {**dict(zip(PROMPT_KEYS, key, strict=True)), **counted.prompts[key].to_json()}
            for key, _ in _sorted(counted.prompts)
        ],
        "lineage": {
            "objects": [
                {**dict(zip(("origin", "labeler", "round"), key, strict=True)), "objects": number}
                for key, number in _sorted(counted.lineage)
            ],
            **{name: counted.scores[name].to_json() for name in SCORES},
        },
        "records": counts["records"],
        "licenses": counts["licenses"],
        "bytes": sum(shard["bytes"] for shard in dataset.manifest["shards"]),
    }


def _sorted(counts: Mapping[tuple[Any, ...], Any]) -> list[tuple[tuple[Any, ...], Any]]:
    """By key; what a key lacks comes first."""
    return sorted(counts.items(), key=lambda item: [(value is not None, value) for value in item[0]])


@dataclass(slots=True)
class Prompts:
    """Prompts of one kind, profile and status. ambiguous: how many lie in another object more than in their own."""

    count: int = 0
    inside: Shares = field(default_factory=Shares)
    other: Shares = field(default_factory=Shares)
    ambiguous: int = 0

    def add(self, inside: np.ndarray, other: np.ndarray) -> None:
        self.count += len(inside)
        self.inside.add(inside)
        self.other.add(other)
        self.ambiguous += int((other > inside).sum())

    def to_json(self) -> dict[str, Any]:
        """inside: mean share inside the object; whole: share of prompts that lie in it; ambiguous: in another more."""
        inside, other = self.inside.to_json(), self.other.to_json()
        return {
            "count": self.count,
            "inside": inside["mean"],
            "whole": self.inside.ones / self.count,
            "ambiguous": self.ambiguous / self.count,
            "inside_histogram": inside["histogram"],
            "other_histogram": other["histogram"],
        }


@dataclass(slots=True)
class Pictures:
    """Distinct pictures: their longest side, and the objects of that of their samples which has most."""

    noted: list[pa.Table] = field(default_factory=list)
    pending: int = 0

    def add(self, rows: Elements, num_objects: np.ndarray) -> None:
        import pyarrow as pa

        longest = np.maximum(rows.numbers("height", 0), rows.numbers("width", 0))
        table = pa.table({"key": rows.array("image_key"), "side": pa.array(longest), "objects": pa.array(num_objects)})
        self.noted.append(table.filter(pa.array(longest > 0)))
        self.pending += len(rows)
        if self.pending >= PENDING:
            self.noted, self.pending = [self._distinct()], 0

    def _distinct(self) -> pa.Table:
        import pyarrow as pa

        most = pa.concat_tables(self.noted).group_by("key", use_threads=False)
        return most.aggregate([("side", "max"), ("objects", "max")]).rename_columns(["key", "side", "objects"])

    def to_json(self) -> dict[str, Any]:
        """How many, histograms of their longest sides in px and of their objects."""
        found = {"longest_side_px": Numbers(), "objects": Numbers()}
        number = 0
        if self.noted:
            table = self._distinct()
            number = table.num_rows
            found["longest_side_px"].add(table.column("side").to_numpy())
            found["objects"].add(table.column("objects").to_numpy())
        return {"count": number, **{name: numbers.to_json() for name, numbers in found.items()}}


def _per_sample() -> dict[str, Numbers]:
    return {name: Numbers() for name in ("objects", "conditions", "turns", "words")}


@dataclass(slots=True)
class Counted:
    """What was counted so far. sizes: by task. lineage: objects by origin, labeler and round."""

    samples: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    per_sample: dict[str, Numbers] = field(default_factory=_per_sample)
    tokens: Numbers = field(default_factory=Numbers)
    pictures: Pictures = field(default_factory=Pictures)
    area: Numbers = field(default_factory=Numbers)
    sizes: dict[str, Counter[str]] = field(default_factory=dict)
    categories: dict[str, Counter[int]] = field(default_factory=dict)
    prompts: dict[tuple[Any, ...], Prompts] = field(default_factory=dict)
    lineage: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    scores: dict[str, Shares] = field(default_factory=lambda: {name: Shares() for name in SCORES})

    def add(self, rows: Elements, tokens: TokenCount) -> None:
        """The rows of one table."""
        objects, turns = rows.each("objects"), rows.each("turns")
        places, keys = columns.combine([rows.texts(name) for name in KEYS])
        self.samples.update(dict(zip(keys, np.bincount(places).tolist(), strict=True)))
        self.per_sample["objects"].add(objects.counts)
        self.per_sample["conditions"].add(rows.each("conditions").counts)
        self.per_sample["turns"].add(turns.counts)
        self.per_sample["words"].add(turns.per_row(_words(turns), np.add, 0))
        self.tokens.add(turns.per_row(tokens.count(turns.array("text")), np.add, 0))
        self.pictures.add(rows, objects.counts)
        self._add_masks(rows, objects)
        self._add_lineage(objects)
        self._add_prompts(objects.each("prompts"))

    def _add_masks(self, rows: Elements, objects: Elements) -> None:
        area, ids = objects.numbers("area", 0), objects.numbers("category_id", -1)
        self.area.add(area)
        size = (area >= SMALL).astype(int) + (area > LARGE)
        for task, mine in _by(rows.texts("task"), objects):
            found = np.bincount(size[mine], minlength=len(SIZES)).tolist()
            self.sizes.setdefault(task, Counter()).update(dict(zip(SIZES, found, strict=True)))
        for source, mine in _by(rows.texts("source"), objects):
            found, counts = np.unique(ids[mine], return_counts=True)
            self.categories.setdefault(source, Counter()).update(
                dict(zip(found.tolist(), counts.tolist(), strict=True))
            )

    def _add_lineage(self, objects: Elements) -> None:
        origin, labeler = (objects.texts(name) for name in LINEAGE_KEYS[:2])
        places, keys = columns.combine([origin, labeler])
        rounds = objects.numbers("lineage.round", -1)
        for place, key in enumerate(keys):
            found, counts = np.unique(rounds[places == place], return_counts=True)
            for number, count in zip(found.tolist(), counts.tolist(), strict=True):
                self.lineage[*key, number if number >= 0 else None] += count
        for name, shares in self.scores.items():
            shares.add(objects.numbers(f"lineage.{name}"))

    def _add_prompts(self, made: Elements) -> None:
        places, keys = columns.combine([made.texts(name) for name in PROMPT_KEYS])
        inside, other = made.numbers("inside", 0), made.numbers("other", 0)
        for number, key in enumerate(keys):
            mine = places == number
            self.prompts.setdefault(key, Prompts()).add(inside[mine], other[mine])


def pictures_stored(dataset: Dataset) -> dict[str, int]:
    """How many samples have their picture embedded, by reference, or none at all; pictures are not read."""
    import pyarrow.parquet as pq

    embedded = there = total = 0
    for entry in dataset.manifest["shards"]:
        with dataset.opened(entry["name"]) as file:
            shard = pq.ParquetFile(file)
            for group in range(shard.num_row_groups):
                total += shard.metadata.row_group(group).num_rows
                # a shard is of one source, which embeds all its pictures or none; nulls take next to no room
                small = _chunk_bytes(shard.metadata.row_group(group), "image.bytes") < 1 << 16
                names = ["image.path", "image.bytes"] if small else ["image.path"]
                rows = columns.rows(shard.read_row_group(group, columns=names, use_threads=False))
                there += int(rows.valid("image").sum())
                embedded += int(rows.valid("image.bytes" if small else "image").sum())
    return {"embedded": embedded, "by_reference": there - embedded, "none": total - there}


def _chunk_bytes(group: pq.RowGroupMetaData, leaf: str) -> int:
    chunks = (group.column(number) for number in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == leaf)


def _by(texts: columns.Texts, objects: Elements) -> Iterator[tuple[str, np.ndarray]]:
    """For each text of rows: which objects stand in such rows, (n,) bool."""
    codes = texts.codes[objects.row]
    for number, name in enumerate(texts.names):
        mine = codes == number
        if mine.any():
            yield name, mine


def _words(turns: Elements) -> np.ndarray:
    """(turns,) int64: words, as blanks part them."""
    import pyarrow.compute as pc

    words = pc.list_value_length(pc.utf8_split_whitespace(turns.array("text")))
    return np.asarray(pc.fill_null(words, 0)).astype(np.int64)


def _named(dataset: Dataset, counts: Mapping[str, Counter[int]]) -> dict[str, list[dict[str, Any]]]:
    """Objects of each category of each source, most frequent first; those that have none are listed too."""
    named: dict[str, list[dict[str, Any]]] = {}
    for key, source in dataset.manifest["sources"].items():
        name = key.partition("/")[0]
        found = counts.get(name, Counter())
        rows = [{"id": c["id"], "name": c["text"], "objects": found[c["id"]]} for c in source["categories"]]
        named[name] = sorted(rows, key=lambda row: (-row["objects"], row["id"]))
    return named


def text(found: Mapping[str, Any]) -> str:
    """The numbers as tables."""
    pictures = found["pictures"]["count"]
    lines = [f"{found['samples']:,} samples, {pictures:,} pictures, {found['bytes'] / 2**20:,.1f} MiB", ""]
    lines += _table(["task", "variant", "source", "split", "samples"], [list(row.values()) for row in found["by"]])
    heads = ["", "mean", *(f"{float(q):.0%}" for q in ("0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"))]
    rows = [[name, *_row(value)] for name, value in found["per_sample"].items() if value["count"]]
    if found["mask_area_px"]["count"]:
        rows.append(["mask area, px", *_row(found["mask_area_px"])])
    lines += ["", *_table([*heads], rows)]
    lines += [f"tokens: {found['per_sample']['tokens']['unit']}"]
    if found["prompts"]:
        shown = [
            [
                p["kind"],
                p["profile"],
                p["status"],
                p["count"],
                *("" if p[k] is None else f"{p[k]:.1%}" for k in ("inside", "whole", "ambiguous")),
            ]
            for p in found["prompts"]
        ]
        heads = ["prompt", "profile", "status", "count", "inside", "whole", "ambiguous"]
        lines += ["", *_table(heads, shown)]
    lineage = found["lineage"]["objects"]
    if any(row["origin"] != "human" for row in lineage):
        rows = [["" if value is None else value for value in row.values()] for row in lineage]
        lines += ["", *_table(["origin", "labeler", "round", "objects"], rows)]
    return "\n".join(lines)


def _row(value: Mapping[str, Any]) -> list[Any]:
    return [f"{value['mean']:,.1f}", *value["quantiles"].values()]


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of equal columns; numbers to the right."""
    cells = [list(heads), *([f"{v:,}" if isinstance(v, int) else str(v) for v in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    right = [
        all(cell[:1].isdigit() or not cell for cell in column)
        for column in list(zip(*cells[1:], strict=True)) or [()] * len(heads)
    ]
    return [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in cells
    ]
