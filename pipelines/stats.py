"""`stats`: what a dataset holds, in numbers. One pass over its shards, a row group at a time; no picture is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dataengine.store.dataset import Dataset, open_dataset

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("task", "variant", "source", "split", "turns", "objects", "conditions")
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
SMALL, LARGE = 32**2, 96**2  # px: COCO's limits of small and large objects


@dataclass(slots=True)
class Numbers:
    """Whole numbers, of which only how often each occurs is kept."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, values: np.ndarray) -> None:
        """values: (n,) integers."""
        found, counts = np.unique(values, return_counts=True)
        self.counts.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))

    def to_json(self) -> dict[str, Any]:
        """How many, their mean and quantiles (the smallest value that so large a share does not exceed)."""
        if not self.counts:
            return {"count": 0, "mean": None, "quantiles": {}}
        values = np.array(sorted(self.counts))
        counts = np.array([self.counts[value] for value in values.tolist()])
        ends = np.cumsum(counts)
        places = np.searchsorted(ends, np.ceil(np.array(QUANTILES) * ends[-1]).clip(1))
        return {
            "count": int(ends[-1]),
            "mean": float((values * counts).sum() / ends[-1]),
            "quantiles": {f"{q:g}": int(v) for q, v in zip(QUANTILES, values[places].tolist(), strict=True)},
        }


@dataclass(slots=True)
class Prompts:
    """Prompts of one kind, profile and status. inside, whole, ambiguous: sums over those that there are."""

    count: int = 0
    inside: float = 0.0
    whole: int = 0
    ambiguous: int = 0

    def to_json(self) -> dict[str, Any]:
        """inside: mean share inside the object; whole: share of prompts that lie in it; ambiguous: in another more."""
        shares = {name: getattr(self, name) / self.count for name in ("inside", "whole", "ambiguous")}
        return {"count": self.count, **shares}


def stats(uri: str) -> dict[str, Any]:
    """The numbers of a finished dataset, as JSON values.

    Raises:
        DatasetError: it is not finished, or damaged.
    """
    dataset = open_dataset(uri)
    samples: Counter[tuple[str, ...]] = Counter()
    categories: dict[str, Counter[int]] = {}
    numbers = {name: Numbers() for name in ("objects", "conditions", "turns", "words", "area")}
    sizes: Counter[str] = Counter()
    prompts: dict[tuple[str, str, str], Prompts] = {}
    for table in dataset.tables(COLUMNS):
        keys = zip(*(table.column(name).to_pylist() for name in ("task", "variant", "source", "split")), strict=True)
        samples.update((task, variant or "", source, split) for task, variant, source, split in keys)
        objects = _elements(table, "objects")
        for name in ("objects", "conditions", "turns"):
            numbers[name].add(_lengths(table, name))
        numbers["words"].add(_words(table))
        area = objects.field("area").to_numpy(zero_copy_only=False)
        numbers["area"].add(area)
        sizes.update(small=int((area < SMALL).sum()), large=int((area > LARGE).sum()))
        sizes["medium"] += len(area) - int((area < SMALL).sum()) - int((area > LARGE).sum())
        for source, ids in _by_source(table, objects):
            categories.setdefault(source, Counter()).update(ids.tolist())
        _add_prompts(prompts, objects)
    return {
        "version": dataset.manifest["version"],
        "samples": dataset.manifest["counts"]["samples"],
        "by": [
            dict(zip(("task", "variant", "source", "split", "samples"), (*key, n), strict=True))
            for key, n in sorted(samples.items())
        ],
        "per_sample": {name: numbers[name].to_json() for name in ("objects", "conditions", "turns", "words")},
        "mask_area_px": {
            **numbers["area"].to_json(),
            "sizes": {size: sizes[size] for size in ("small", "medium", "large")},
        },
        "categories": _named(dataset, categories),
        "prompts": [
            {"kind": kind, "profile": profile, "status": status, **found.to_json()}
            for (kind, profile, status), found in sorted(prompts.items())
        ],
        "records": dataset.manifest["counts"]["records"],
        "licenses": dataset.manifest["counts"]["licenses"],
        "bytes": sum(shard["bytes"] for shard in dataset.manifest["shards"]),
    }


def _elements(table: pa.Table, name: str) -> Any:
    """What the lists of a column hold, one after the other."""
    return table.column(name).combine_chunks().flatten()


def _lengths(table: pa.Table, name: str) -> np.ndarray:
    import pyarrow.compute as pc

    lengths: np.ndarray = pc.list_value_length(table.column(name)).to_numpy()
    return lengths


def _words(table: pa.Table) -> np.ndarray:
    """(samples,) int64: words of all turns of each sample, as blanks part them."""
    import pyarrow.compute as pc

    words = pc.list_value_length(pc.utf8_split_whitespace(_elements(table, "turns").field("text"))).to_numpy()
    owners = pc.list_parent_indices(table.column("turns").combine_chunks()).to_numpy()
    return np.bincount(owners, words, minlength=table.num_rows).astype(np.int64)


def _by_source(table: pa.Table, objects: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Category ids of the objects of each source."""
    import pyarrow.compute as pc

    owners = pc.list_parent_indices(table.column("objects").combine_chunks()).to_numpy()
    sources = np.array(table.column("source").to_pylist(), dtype=object)[owners]
    ids = objects.field("category_id").to_numpy(zero_copy_only=False)
    for source in sorted(set(sources)):
        yield source, ids[sources == source]


def _add_prompts(prompts: dict[tuple[str, str, str], Prompts], objects: Any) -> None:
    made = objects.field("prompts").flatten()
    columns = {name: made.field(name).to_pylist() for name in ("kind", "profile", "status")}
    inside, other = (made.field(name).to_numpy(zero_copy_only=False) for name in ("inside", "other"))
    keys = list(zip(*columns.values(), strict=True))
    for key in set(keys):
        mine = np.fromiter((one == key for one in keys), dtype=bool, count=len(keys))
        found = prompts.setdefault(key, Prompts())
        found.count += int(mine.sum())
        found.inside += float(inside[mine].sum())
        found.whole += int((inside[mine] >= 1).sum())
        found.ambiguous += int((other[mine] > inside[mine]).sum())


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
    lines = [f"{found['samples']:,} samples, {found['bytes'] / 2**20:,.1f} MiB", ""]
    lines += _table(["task", "variant", "source", "split", "samples"], [list(row.values()) for row in found["by"]])
    heads = ["", "mean", *(f"{float(q):.0%}" for q in ("0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"))]
    rows = [[name, *_row(value)] for name, value in found["per_sample"].items() if value["count"]]
    if found["mask_area_px"]["count"]:
        rows.append(["mask area, px", *_row(found["mask_area_px"])])
    lines += ["", *_table([*heads], rows)]
    if found["prompts"]:
        shown = [
            [
                p["kind"],
                p["profile"],
                p["status"],
                p["count"],
                *(f"{p[k]:.1%}" for k in ("inside", "whole", "ambiguous")),
            ]
            for p in found["prompts"]
        ]
        heads = ["prompt", "profile", "status", "count", "inside", "whole", "ambiguous"]
        lines += ["", *_table(heads, shown)]
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
