"""Leaks: pictures that stand on two sides of built datasets, by identity, by content, or nearly alike.

A side is one split of one source in one dataset. It is a leak where one of the two is for training and the other not.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from dataengine.errors import UserError
from dataengine.images import ImageError
from dataengine.phash import Looks, looks, near_pairs
from dataengine.store.dataset import Dataset, open_dataset, picture_of
from dataengine.store.files import Folder

KINDS = ("identity", "content", "near", "mirrored")
NUM_EXAMPLES = 3
_SAY_EVERY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Side:
    """A split of a source in a dataset; dataset: as it was named."""

    dataset: str
    source: str
    split: str

    @property
    def trains(self) -> bool:
        return self.split.startswith("train")

    def __str__(self) -> str:
        return f"{self.dataset} {self.source}/{self.split}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A picture of one side and one of another; distance: bits in which their hashes differ, where these count."""

    kind: str
    a: str
    b: str
    distance: int | None = None


@dataclass(slots=True, kw_only=True)
class Overlap:
    """What two sides have in common in one way. a, b, tasks: of the pictures concerned. examples: the first pairs."""

    sides: tuple[Side, Side]
    kind: str
    num_pairs: int = 0
    a: set[str] = field(default_factory=set)
    b: set[str] = field(default_factory=set)
    tasks: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))
    examples: list[Pair] = field(default_factory=list)

    @property
    def leak(self) -> bool:
        return self.sides[0].trains != self.sides[1].trains


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncompared:
    """A picture that could not be read or decoded; it is compared as far as it can be."""

    dataset: str
    picture: str
    message: str


@dataclass(slots=True, kw_only=True)
class Report:
    """What was found. datasets: number of pictures by dataset; near: bits, None where not looked for.

    flat: pictures of almost one grey, which are not compared by their looks. leaked: pictures of training sides that
    are on a side that is not for training, by dataset and name.
    """

    datasets: dict[str, int]
    near: int | None
    overlaps: list[Overlap] = field(default_factory=list)
    uncompared: list[Uncompared] = field(default_factory=list)
    flat: int = 0
    leaked: set[tuple[str, str]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Print:
    """sha256 of a picture's bytes, and its perceptual hashes, as far as each could be taken."""

    sha256: bytes | None
    looks: Looks | None
    problem: str | None = None


@dataclass(slots=True)
class _Shown:
    sample_id: str
    tasks: set[str]


@dataclass(slots=True)
class _Pictures:
    """Pictures of a side by name, and their names by content and by perceptual hash, as stored and mirrored."""

    side: Side
    shown: dict[str, _Shown] = field(default_factory=dict)
    by_content: dict[bytes, list[str]] = field(default_factory=lambda: defaultdict(list))
    by_looks: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    by_mirrored: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    prints: dict[str, _Print] = field(default_factory=dict)


def find(
    uris: Sequence[str],
    *,
    near: int | None,
    workers: int = 1,
    json_file: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Compare all sides of some datasets with each other.

    Args:
        uris: built datasets, one or more. near: pictures whose perceptual hashes differ in at most so many bits are
            near; None decodes none. workers: processes that read pictures. json_file: where to write every pair.
        say: is told how it goes on.
    Raises:
        DatasetError: one is no finished dataset. UserError: one is named twice.
    """
    if len(set(uris)) < len(uris):
        raise UserError(f"{', '.join(uris)}: a dataset is named twice")
    opened = {uri: open_dataset(uri) for uri in uris}
    report = Report(datasets={}, near=near)
    sides = [side for uri, dataset in opened.items() for side in _read(uri, dataset, workers, report, say)]
    pairs = _compare(sides, report)
    if json_file is None:
        for _ in pairs:
            pass
    else:
        _write(json_file, opened, pairs, report)
    report.overlaps.sort(key=lambda o: (not o.leak, o.sides, KINDS.index(o.kind)))
    return report


def text(report: Report) -> str:
    """The report for people: leaks first, then what two sides have in common without harm, then what was left out."""
    lines = []
    for overlap in report.overlaps:
        a, b = (
            f"{side} ({', '.join(sorted(tasks))})" for side, tasks in zip(overlap.sides, overlap.tasks, strict=True)
        )
        number = f"{len(overlap.a):,}" if len(overlap.a) == len(overlap.b) else f"{len(overlap.a):,}/{len(overlap.b):,}"
        lines.append(("LEAK" if overlap.leak else "", overlap.kind, number, a, b, _examples(overlap)))
    if lines:
        lines.insert(0, ("", "kind", "pictures", "side", "other side", "first"))
    widths = [max((len(line[column]) for line in lines), default=0) for column in range(6)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*table, *_left_out(report)])


def _examples(overlap: Overlap) -> str:
    def words(pair: Pair) -> str:
        if pair.kind == "identity":
            return pair.a
        return f"{pair.a} = {pair.b}" if pair.distance is None else f"{pair.a} ~ {pair.b} ({pair.distance} bits)"

    more = ", …" if overlap.num_pairs > len(overlap.examples) else ""
    return ", ".join(words(pair) for pair in overlap.examples) + more


def _left_out(report: Report) -> Iterator[str]:
    for dataset, number in report.datasets.items():
        yield f"{dataset}: {number:,} pictures"
    if report.near is None:
        yield "pictures were not compared by their looks"
    elif report.flat:
        yield f"{report.flat:,} pictures of almost one grey were not compared by their looks"
    if report.uncompared:
        yield f"{len(report.uncompared):,} pictures could not be read or decoded, and were not compared by their looks:"
        for bad in report.uncompared[:10]:
            yield f"  {bad.dataset}: {bad.picture}: {bad.message}"
        if len(report.uncompared) > 10:
            yield f"  and {len(report.uncompared) - 10:,} more"


def _read(uri: str, dataset: Dataset, workers: int, report: Report, say: Callable[[str], None]) -> Iterable[_Pictures]:
    """The sides of a dataset; each of its pictures is read once, whatever number of samples show it."""
    sides: dict[Side, _Pictures] = {}
    places: dict[str, list[tuple[int, int]]] = {}
    names: dict[str, list[str]] = {}
    known = set()
    for shown in dataset.shown():
        name = shown.image_key or shown.sample_id
        side = Side(dataset=uri, source=shown.source, split=shown.split)
        pictures = sides.setdefault(side, _Pictures(side)).shown
        pictures.setdefault(name, _Shown(shown.sample_id, set())).tasks.add(shown.task)
        if name not in known:
            known.add(name)
            places.setdefault(shown.shard, []).append((shown.row, shown.reference))
            names.setdefault(shown.shard, []).append(name)
    report.datasets[uri] = len(known)
    jobs = [(dataset.folder.uri, shard, rows, report.near is not None) for shard, rows in places.items()]
    prints: dict[str, _Print] = {}
    last = time.monotonic()
    for (shard, inside), found in zip(names.items(), _map(jobs, workers), strict=True):
        prints |= zip(inside, found, strict=True)
        if time.monotonic() - last > _SAY_EVERY_S:
            say(f"{uri}: {len(prints):,} of {len(known):,} pictures read ({shard})")
            last = time.monotonic()
    for name, taken in prints.items():
        if taken.problem is not None:
            report.uncompared.append(Uncompared(dataset=uri, picture=name, message=taken.problem))
        elif report.near is not None and taken.looks is None:
            report.flat += 1
    for pictures_of_side in sides.values():
        _index(pictures_of_side, prints)
    return [sides[side] for side in sorted(sides)]


def _index(pictures: _Pictures, prints: dict[str, _Print]) -> None:
    pictures.prints = prints
    for name in sorted(pictures.shown):
        taken = prints[name]
        if taken.sha256 is not None:
            pictures.by_content[taken.sha256].append(name)
        if taken.looks is not None:
            pictures.by_looks[taken.looks.plain].append(name)
            pictures.by_mirrored[taken.looks.mirrored].append(name)


_Job = tuple[str, str, list[tuple[int, int]], bool]


def _map(jobs: Sequence[_Job], workers: int) -> Iterator[list[_Print]]:
    """Prints of the pictures of each job, in order."""
    if workers == 1 or len(jobs) < 2:
        yield from map(_prints, jobs)
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(_prints, jobs)
        except BrokenProcessPool:
            raise UserError("a process that reads pictures was killed; try again with fewer --workers") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _prints(job: _Job) -> list[_Print]:
    uri, shard, places, look = job
    return [_print(partial(picture_of, image), look) for image in Dataset(Folder(uri), {}).pictures(shard, places)]


def _print(read: Callable[[], bytes], look: bool) -> _Print:
    try:
        data = read()
    except OSError as error:
        return _Print(None, None, str(error))
    digest = hashlib.sha256(data).digest()
    try:
        return _Print(digest, looks(data) if look else None)
    except ImageError as error:
        return _Print(digest, None, str(error))


def _compare(sides: Sequence[_Pictures], report: Report) -> Iterator[tuple[Pair, _Pictures, _Pictures]]:
    """All pairs of pictures, accounted for in the report as they pass."""
    for a, b in combinations(sides, 2):
        overlaps = {kind: Overlap(sides=(a.side, b.side), kind=kind) for kind in KINDS}
        for pair in _pairs(a, b, report.near):
            _count(overlaps[pair.kind], pair, a, b)
            yield pair, a, b
        report.overlaps += [overlap for overlap in overlaps.values() if overlap.num_pairs]
        for overlap in overlaps.values():
            if overlap.leak:
                side, names = (a.side, overlap.a) if a.side.trains else (b.side, overlap.b)
                report.leaked |= {(side.dataset, name) for name in names}


def _count(overlap: Overlap, pair: Pair, a: _Pictures, b: _Pictures) -> None:
    overlap.num_pairs += 1
    overlap.a.add(pair.a)
    overlap.b.add(pair.b)
    overlap.tasks[0].update(a.shown[pair.a].tasks)
    overlap.tasks[1].update(b.shown[pair.b].tasks)
    if len(overlap.examples) < NUM_EXAMPLES:
        overlap.examples.append(pair)


def _pairs(a: _Pictures, b: _Pictures, near: int | None) -> Iterator[Pair]:
    """Pairs of two sides, each of one kind: of equal names; of equal bytes; of near hashes; of a near mirrored hash."""
    for name in sorted(a.shown.keys() & b.shown.keys()):
        yield Pair(kind="identity", a=name, b=name)
    for x in sorted(a.shown):
        content = a.prints[x].sha256
        for y in b.by_content.get(content, ()) if content else ():
            if x != y:
                yield Pair(kind="content", a=x, b=y)
    if near is None:
        return
    for kind, hashes in (("near", a.by_looks), ("mirrored", a.by_mirrored)):
        for x, y, distance in _alike(hashes, b.by_looks, near):
            one, other = a.prints[x], b.prints[y]
            if x == y or one.sha256 == other.sha256:
                continue
            if kind == "near" or not _near(one.looks, other.looks, near):
                yield Pair(kind=kind, a=x, b=y, distance=distance)


def _alike(a: dict[int, list[str]], b: dict[int, list[str]], near: int) -> Iterator[tuple[str, str, int]]:
    """Names of pictures of a and of b whose hashes differ in at most `near` bits, and in how many they do."""
    hashes_a, hashes_b = (np.array(sorted(hashes), dtype=np.uint64) for hashes in (a, b))
    for rows, columns, bits in near_pairs(hashes_a, hashes_b, near):
        found = zip(hashes_a[rows].tolist(), hashes_b[columns].tolist(), bits.tolist(), strict=True)
        for hash_a, hash_b, distance in found:
            for x in a[hash_a]:
                for y in b[hash_b]:
                    yield x, y, distance


def _near(a: Looks | None, b: Looks | None, near: int) -> bool:
    return a is not None and b is not None and (a.plain ^ b.plain).bit_count() <= near


def _write(
    path: Path,
    opened: dict[str, Dataset],
    pairs: Iterable[tuple[Pair, _Pictures, _Pictures]],
    report: Report,
) -> None:
    """One JSON document, a pair a line, written as the pairs come."""
    with Folder(str(path.parent)).staging(path.name) as staged:
        with staged.open("w", encoding="utf-8") as file:
            file.write('{"pairs": [')
            comma = "\n"
            for pair, a, b in pairs:
                leak = a.side.trains != b.side.trains
                entry = {"kind": pair.kind, "leak": leak, "distance": pair.distance}
                entry |= {"a": _entry(a, pair.a), "b": _entry(b, pair.b)}
                file.write(comma + json.dumps(entry))
                comma = ",\n"
            rest = {
                "datasets": {uri: dataset.manifest["version"] for uri, dataset in opened.items()},
                "near": report.near,
                "flat": report.flat,
                "uncompared": [
                    {"dataset": bad.dataset, "image_key": bad.picture, "message": bad.message}
                    for bad in report.uncompared
                ],
                "leaked": len(report.leaked),
            }
            file.write("\n], " + json.dumps(rest, indent=1)[1:] + "\n")
        staged.replace(path)


def _entry(pictures: _Pictures, name: str) -> dict[str, Any]:
    side, shown = pictures.side, pictures.shown[name]
    return {
        "dataset": side.dataset,
        "source": side.source,
        "split": side.split,
        "tasks": sorted(shown.tasks),
        "image_key": name,
        "sample_id": shown.sample_id,
    }
