"""Two datasets: which samples were added, removed or changed, and how.

Samples belong together by their id. Whether one changed is told by a signature of all its values but pictures and
provenance, which say where it comes from and not what it is; of two formats, the fields that both have are compared.
Objects of a sample belong together by annotation id; of several with one id, the first with the first.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

from dataengine.sample import Object, Sample
from dataengine.store.columns import leaves
from dataengine.view.catalog import hash_of
from dataengine.view.reader import Reader

UNKNOWN, SAME, CHANGED, ADDED, REMOVED = range(5)
CODES = {"same": SAME, "changed": CHANGED, "added": ADDED, "removed": REMOVED}
NAMES = {code: name for name, code in CODES.items()}
LEFT_OUT = ("image", "provenance")
MASK_FIELDS = ("height", "width", "objects.annotation_id", "objects.rle")
T = TypeVar("T")


@dataclass(slots=True)
class Side:
    """One of the datasets.

    ids, signatures: (rows,) uint64. change: (rows,) uint8 codes. iou: (rows,) float32, of the most changed mask of a
    changed sample; NaN where it is not known yet. other: (rows,) int64, number of the sample in the other dataset, -1
    where it has none. unread: source and split of shards that cannot be read.
    """

    reader: Reader
    unread: set[tuple[str, str]] = field(default_factory=set)
    ids: np.ndarray = field(init=False)
    signatures: np.ndarray = field(init=False)
    change: np.ndarray = field(init=False)
    iou: np.ndarray = field(init=False)
    other: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        total = self.reader.num_rows
        self.ids = np.zeros(total, dtype=np.uint64)
        self.signatures = np.zeros(total, dtype=np.uint64)
        self.change = np.zeros(total, dtype=np.uint8)
        self.iou = np.full(total, np.nan, dtype=np.float32)
        self.other = np.full(total, -1, dtype=np.int64)


class Comparison:
    """Two datasets, compared in the background.

    ready: share of the work that is done; the counts are known from `joined` on, the IoU of masks when all is done.
    """

    def __init__(self, left: Reader, right: Reader) -> None:
        self.sides = Side(left), Side(right)
        self.joined = threading.Event()
        self.problems: list[str] = []
        self._done = 0
        self._total = max(2 * (left.num_rows + right.num_rows), 1)

    @property
    def ready(self) -> float:
        return min(self._done / self._total, 1.0)

    def counts(self) -> dict[str, int]:
        """Samples of either dataset by what became of them."""
        left, right = (np.bincount(side.change, minlength=len(CODES) + 1).tolist() for side in self.sides)
        return {"same": left[SAME], "changed": left[CHANGED], "added": right[ADDED], "removed": left[REMOVED]}

    def fill(self, pause: Callable[[], bool]) -> None:
        """Compare. pause: called between row groups; may wait; true: stop."""
        names = [found for side in self.sides if (found := _leaf_names(side.reader))]
        common = sorted(set.intersection(*names)) if names else []
        for side in self.sides:
            if not self._sign(side, common, pause):
                return
        self._join()
        self.joined.set()
        self._measure(pause)

    def _sign(self, side: Side, names: Sequence[str], pause: Callable[[], bool]) -> bool:
        from dataengine.view.signatures import signatures

        for index, start in enumerate(side.reader.starts[:-1]):
            try:
                for table in side.reader.groups(index, names):
                    if pause():
                        return False
                    stop = start + table.num_rows
                    side.ids[start:stop] = [hash_of(name or "") for name in table.column("sample_id").to_pylist()]
                    side.signatures[start:stop] = signatures(table)
                    start = stop
            except Exception as error:  # whatever a file holds that is no shard
                self.problems.append(str(error) or type(error).__name__)
                side.unread.add(_part(side.reader.shards[index]))
            self._done += side.reader.shards[index]["rows"]
        return True

    def _join(self) -> None:
        left, right = self.sides
        known = [np.flatnonzero(side.ids) for side in self.sides]  # a damaged shard's rows have no id
        _, mine, theirs = np.intersect1d(left.ids[known[0]], right.ids[known[1]], return_indices=True)
        mine, theirs = known[0][mine], known[1][theirs]
        left.change[known[0]] = REMOVED
        right.change[known[1]] = ADDED
        codes = np.where(left.signatures[mine] == right.signatures[theirs], SAME, CHANGED)
        left.change[mine] = right.change[theirs] = codes
        left.other[mine], right.other[theirs] = theirs, mine
        for side, other in ((left, right), (right, left)):
            for index, start in enumerate(side.reader.starts[:-1]):
                if _part(side.reader.shards[index]) in other.unread:  # which may hold what seems to have no counterpart
                    change = side.change[start : side.reader.starts[index + 1]]
                    change[(change == ADDED) | (change == REMOVED)] = UNKNOWN

    def _measure(self, pause: Callable[[], bool]) -> None:
        """The IoU of the most changed mask of every changed sample."""
        left, right = self.sides
        names = tuple(leaves(*MASK_FIELDS))
        changed = np.flatnonzero(left.change == CHANGED).tolist()
        before = self._done
        for index, number in enumerate(changed):
            if index % 64 == 0 and pause():
                return
            other = int(left.other[number])
            try:
                rows = [side.reader.values(n, names) for side, n in ((left, number), (right, other))]
                iou = _smallest_iou(*rows)
            except Exception as error:  # masks that are none, shards that cannot be read
                self.problems.append(str(error) or type(error).__name__)
                del self.problems[100:]
                continue
            left.iou[number] = right.iou[other] = iou
            self._done = before + (self._total - before) * (index + 1) // len(changed)
        self._done = self._total


def _part(shard: Mapping[str, Any]) -> tuple[str, str]:
    return shard["source"], shard["split"]


def changes(left: Sample, right: Sample) -> dict[str, Any]:
    """How a sample differs.

    Returns:
        fields: names of its fields that differ. objects: what became of each object that is not the same, several
        entries where several things changed: `added`, `removed`, `mask` (with the IoU of both; null where it cannot
        be told), `category`, `prompts` or `lineage`.
    """
    found: list[dict[str, Any]] = []
    for key, (before, after) in _pairs(left.objects, right.objects, lambda thing: thing.annotation_id).items():
        for kind in _object_changes(before, after):
            iou = None
            if kind == "mask" and before is not None and after is not None:
                iou = _iou(before.rle, after.rle, left, right)
            found.append({"annotation_id": key[0], "change": kind, "iou": iou})
    names = [f.name for f in fields(Sample) if f.name not in LEFT_OUT]
    return {"fields": [name for name in names if getattr(left, name) != getattr(right, name)], "objects": found}


def _object_changes(before: Object | None, after: Object | None) -> list[str]:
    if before is None or after is None:
        return ["added" if before is None else "removed"]
    differ = {
        "mask": before.rle != after.rle,
        "category": before.category_id != after.category_id or before.crowd != after.crowd,
        "prompts": before.prompts != after.prompts,
        "lineage": before.lineage != after.lineage,
    }
    return [kind for kind, differs in differ.items() if differs]


def _iou(before: bytes, after: bytes, left: Sample, right: Sample) -> float | None:
    """Of two masks of the same canvas; None where they are not."""
    from dataengine import masks

    if (left.height, left.width) != (right.height, right.width):
        return None
    try:
        return float(masks.iou([before], [after], left.height, left.width)[0, 0])
    except masks.MaskError:
        return None


def _pairs(
    before: Sequence[T], after: Sequence[T], key: Callable[[T], str]
) -> dict[tuple[str, int], tuple[T | None, T | None]]:
    """What belongs together, by key and how often that key came before."""
    numbered: list[dict[tuple[str, int], T]] = []
    for things in (before, after):
        seen: Counter[str] = Counter()
        mine = {}
        for thing in things:
            mine[key(thing), seen[key(thing)]] = thing
            seen[key(thing)] += 1
        numbered.append(mine)
    keys = dict.fromkeys([*numbered[0], *numbered[1]])
    return {name: (numbered[0].get(name), numbered[1].get(name)) for name in keys}


def _smallest_iou(left: dict[str, Any], right: dict[str, Any]) -> float:
    """Of the masks of two rows; 0 where an object was added or removed, or the canvas is another."""
    from dataengine import masks

    if (left["height"], left["width"]) != (right["height"], right["width"]):
        return 0.0
    smallest = 1.0
    for before, after in _pairs(left["objects"], right["objects"], lambda thing: thing["annotation_id"]).values():
        if before is None or after is None:
            return 0.0
        if before["rle"] != after["rle"]:
            value = masks.iou([before["rle"]], [after["rle"]], left["height"], left["width"])
            smallest = min(smallest, float(value[0, 0]))
    return smallest


def _leaf_names(reader: Reader) -> set[str]:
    """The leaves that are compared, as the first shard that can be read has them; none where no shard can be."""
    left_out = tuple(f"{name}." for name in (*LEFT_OUT, "references.list.element.image"))
    for shard in range(len(reader.shards)):
        with contextlib.suppress(Exception):  # whatever a file holds that is no shard; it is told when rows are read
            return {name for name in reader.leaf_names(shard) if not name.startswith(left_out)}
    return set()
