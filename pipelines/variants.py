"""Variants of region samples, for benchmarks: exemplars in other pictures, regions of absent categories, more shots.

Each picture of a `vgdseg` source has a sample whose categories are shown by objects of its own. Here the others are
made from it; what is to be found is the same. Which objects are shown is drawn by keys, from all that the split has.

| variant | its regions |
|---|---|
| `same_image` | the picture's categories, each shown by one of its own objects |
| `cross_image` | the same categories, each shown by an object of another picture |
| `negatives` | those of `same_image`, and absent categories, each shown by an object of another picture |
| `k_shot` | the same categories, each shown by objects of several other pictures, first that of `cross_image` |
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np

from dataengine import builder
from dataengine.builder import Builder, Context, Outcome
from dataengine.keyed import keyed
from dataengine.records import Bad
from dataengine.sample import Condition, Reference, Sample, reference_to
from dataengine.store.files import Folder
from pipelines.prompting import simulated
from pipelines.recipe import PromptSpec, VariantSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.roles import Forbidden

VERSION = 1  # of the choice of references
SAME_IMAGE, CROSS_IMAGE, NEGATIVES, K_SHOT = "same_image", "cross_image", "negatives", "k_shot"
NAMES = (SAME_IMAGE, CROSS_IMAGE, NEGATIVES, K_SHOT)
MAX_FAILURES = 100  # objects that turn out not to be fit for being shown, before a region goes without
KEPT = 256 << 20  # bytes of pictures that a process keeps at hand, about


# --- the objects that may be shown -----------------------------------------------------------------------------------


def write_pool(builder_name: str, context: Context, index: Path, refused: Iterable[Bad]) -> Path:
    """Write the objects of a split that other pictures may show: category_id, row, group, annotation_id; sorted.

    Its metadata lists the pictures of which an annotation was refused while indexing: what they show is not known.

    Args:
        index: of the split. refused: what indexing refused.
    Returns:
        The Parquet file, beside the index, under a name that no other build uses: what is read of it is kept by name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from builders.rows import read_keys

    folder = Folder(str(index))
    made = builder.load(builder_name)
    there = zip(made.exemplars(context, folder), read_keys(folder), strict=True)  # type: ignore[attr-defined]
    rows = [
        (category, row, group, annotation)
        for row, (objects, group) in enumerate(there)
        for annotation, category in objects
    ]
    columns = list(zip(*sorted(rows), strict=True)) or [()] * 4
    schema = _schema().with_metadata({_UNSURE: json.dumps(sorted({bad.group for bad in refused if bad.group}))})
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
    target = index.with_name(f"{index.stem}-{uuid4().hex}.pool.parquet")
    pq.write_table(table, target, compression="zstd")
    return target


_UNSURE = b"dataengine.unsure"


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [("category_id", pa.int64()), ("row", pa.int64()), ("group", pa.string()), ("annotation_id", pa.string())]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An object that may be shown: row of the index and its key, annotation id."""

    row: int
    group: str
    annotation_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """All objects that may be shown.

    starts: by category, where its own begin and end in the columns. unsure: pictures that may show more categories than
    they say. pictures: those at hand.
    """

    rows: np.ndarray
    groups: Sequence[str]
    annotation_ids: Sequence[str]
    starts: Mapping[int, tuple[int, int]]
    unsure: frozenset[str]
    pictures: Pictures = field(default_factory=lambda: Pictures())

    def draw(self, category: int, group: str, rng: np.random.Generator) -> Iterator[Candidate]:
        """Objects of a category in other pictures than `group`, in random order."""
        begin, end = self.starts.get(category, (0, 0))
        for place in _shuffled(end - begin, rng):
            if self.groups[begin + place] != group:
                yield Candidate(
                    row=int(self.rows[begin + place]),
                    group=self.groups[begin + place],
                    annotation_id=self.annotation_ids[begin + place],
                )


def _shuffled(number: int, rng: np.random.Generator) -> Iterator[int]:
    """0 … number - 1 in random order; few of many are drawn one by one, because few are looked at."""
    if number <= 1024:
        yield from rng.permutation(number).tolist()
        return
    seen = set[int]()
    while len(seen) < number:
        for place in rng.integers(number, size=8).tolist():
            if place not in seen:
                seen.add(place)
                yield place


class Pictures:
    """Pictures whose objects were shown or asked for lately, with the prompts made so far; the oldest are let go.

    Args:
        limit: bytes, about, that they may take.
    """

    def __init__(self, limit: int = KEPT) -> None:
        self._limit, self._size = limit, 0
        self._kept: OrderedDict[str, tuple[Sample, int]] = OrderedDict()

    def get(self, group: str) -> Sample | None:
        """The sample of a picture, or None where it is not at hand."""
        if group not in self._kept:
            return None
        self._kept.move_to_end(group)
        return self._kept[group][0]

    def put(self, group: str, sample: Sample) -> None:
        """Keep a picture's sample; it takes the place of one that was kept."""
        self._size -= self._kept.pop(group, (sample, 0))[1]
        size = _size_of(sample)
        self._kept[group] = (sample, size)
        self._size += size
        while self._size > self._limit:
            self._size -= self._kept.popitem(last=False)[1][1]


def _size_of(sample: Sample) -> int:
    """Bytes in memory, about; a number of a prompt takes 32."""
    size = 4096 + len((sample.image.bytes or b"") if sample.image else b"")
    for thing in sample.objects:
        size += 1024 + len(thing.rle)
        size += sum(512 + 32 * len(prompt.points) + len(prompt.rle or b"") for prompt in thing.prompts)
    return size


@lru_cache(maxsize=2)
def load_pool(uri: str) -> Pool:
    """The pool of a file by path or URI; read once in a process."""
    import pyarrow.parquet as pq

    with Folder(uri).open() as file:
        table = pq.ParquetFile(file).read(use_threads=False)
    categories = table.column("category_id").to_numpy()
    ids, begins = np.unique(categories, return_index=True)
    ends = [*begins[1:].tolist(), len(categories)]
    return Pool(
        rows=table.column("row").to_numpy(),
        groups=table.column("group").to_pylist(),
        annotation_ids=table.column("annotation_id").to_pylist(),
        starts=dict(zip(ids.tolist(), zip(begins.tolist(), ends, strict=True), strict=True)),
        unsure=frozenset(json.loads(table.schema.metadata[_UNSURE])),
    )


# --- samples ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """Where the objects of other pictures are fetched from.

    builder: that reads the split. index: of the split, as the worker finds it. pool: None where no variant needs other
    pictures. forbidden: pictures that must not be shown either; None where all may.
    """

    builder: Builder
    context: Context
    index: Folder
    pool: Pool | None
    prompts: PromptSpec | None
    spec: VariantSpec
    forbidden: Forbidden | None = None

    @property
    def seed(self) -> int:
        return self.context.seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Varied:
    """All samples of a picture; how many of the regions wanted could not be shown, by reason."""

    samples: tuple[Sample, ...]
    built: int
    filtered: Mapping[str, int]


def vary(base: Sample, outcome: Outcome, library: Library) -> Varied:
    """A picture's sample, and its variants. Regions of which no reference is to be had are left out, and counted.

    Args:
        base: with prompts and exemplars. outcome: what the builder gave, for what it knows to be absent.
    """
    spec = library.spec
    base = replace(base, variant=SAME_IMAGE)
    if library.pool is not None:
        library.pool.pictures.put(outcome.group, base)
    made = [base]
    filtered: dict[str, int] = {}
    wanted: list[tuple[str, Sequence[_Shown]]] = []
    if spec.cross_image:
        wanted.append((CROSS_IMAGE, [_referring(c, 1) for c in base.conditions]))
    if spec.shots:
        wanted.append((K_SHOT, [_referring(c, spec.shots) for c in base.conditions]))
    if spec.negatives:
        absent: list[_Shown] = []
        if _is_sure(outcome, library):
            absent = _absent(base, outcome, library)
        else:
            filtered["absence_unsure"] = spec.negatives
        wanted.append((NEGATIVES, [*(_Shown(condition=c) for c in base.conditions), *absent]))
    for variant, shown in wanted:
        sample = _with_references(base, variant, shown, outcome.group, library)
        missing = len(shown) - len(sample.conditions)
        if missing:
            filtered["no_reference"] = filtered.get("no_reference", 0) + missing
        if sample.conditions:
            made.append(sample)
    return Varied(samples=tuple(made), built=sum(len(s.conditions) for s in made[1:]), filtered=filtered)


def _is_sure(outcome: Outcome, library: Library) -> bool:
    """Whether it is known which categories a picture lacks: of refused records the category is not."""
    assert library.pool is not None
    return outcome.absent is not None or not (outcome.bad or outcome.group in library.pool.unsure)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """A region to be: its condition, and in how many other pictures it is shown; 0: by its own exemplar."""

    condition: Condition
    shots: int = 0


def _referring(condition: Condition, shots: int) -> _Shown:
    return _Shown(condition=replace(condition, exemplar=-1), shots=shots)


def _absent(base: Sample, outcome: Outcome, library: Library) -> list[_Shown]:
    """Regions of categories that are not in the picture, drawn among those that other pictures have."""
    assert library.pool is not None
    names = {category.id: category.text for category in library.context.categories}
    there = {thing.category_id for thing in base.objects}
    known = names.keys() if outcome.absent is None else outcome.absent
    possible = sorted((set(known) & set(library.pool.starts)) - there)
    rng = keyed(library.seed, base.image_key, "absent", VERSION)
    chosen = rng.permutation(np.array(possible, dtype=np.int64))[: library.spec.negatives].tolist()
    return [_Shown(condition=Condition(kind="region", text=names[c], category_id=c), shots=1) for c in chosen]


def _with_references(base: Sample, variant: str, shown: Sequence[_Shown], group: str, library: Library) -> Sample:
    """The sample with these regions, in random order; those that cannot be shown are left out."""
    order = keyed(library.seed, base.image_key, variant, VERSION).permutation(len(shown)).tolist()
    conditions, references = list[Condition](), list[Reference]()
    for number in order:
        one = shown[number]
        if not one.shots:
            conditions.append(one.condition)
            continue
        found = _references(base.image_key, one.condition.category_id, one.shots, group, library)
        if found:
            first = len(references)
            places = tuple(range(first, first + len(found)))
            conditions.append(replace(one.condition, reference=first, shots=places[1:]))
            references += found
    exemplars = {condition.exemplar for condition in conditions}
    return replace(
        base,
        sample_id=f"{base.sample_id}/{variant}",
        variant=variant,
        objects=tuple(o if i in exemplars else replace(o, prompts=()) for i, o in enumerate(base.objects)),
        conditions=tuple(conditions),
        references=tuple(references),
    )


def _references(image_key: str, category: int, number: int, group: str, library: Library) -> list[Reference]:
    """That many objects of a category, each in another picture; fewer where there are not enough.

    The draw is that of the picture and category: more shots are those of fewer, and some.
    """
    assert library.pool is not None
    rng = keyed(library.seed, image_key, category, "reference", VERSION)
    found: list[Reference] = []
    seen = set()
    failures = 0
    for candidate in library.pool.draw(category, group, rng):
        if candidate.group in seen:
            continue
        reference = _fetch(candidate, category, library)
        if reference is None:
            failures += 1
        else:
            seen.add(candidate.group)
            found.append(reference)
        if len(found) == number or failures == MAX_FAILURES:
            break
    return found


def _fetch(candidate: Candidate, category: int, library: Library) -> Reference | None:
    """The object of another picture with its prompts, or None where it cannot be shown."""
    assert library.pool is not None
    sample = library.pool.pictures.get(candidate.group)
    if sample is None:
        (outcome,) = library.builder.read(library.context, library.index, candidate.row, candidate.row + 1)
        if not outcome.samples:
            return None
        sample = outcome.samples[0]
        if library.forbidden is not None and library.forbidden.role_of(sample) is not None:
            return None
        library.pool.pictures.put(candidate.group, sample)
    name = candidate.annotation_id
    thing = next((thing for thing in sample.objects if thing.annotation_id == name), None)
    if thing is None or thing.category_id != category:
        return None
    if not thing.prompts:
        prompted = tuple(simulated(sample.objects, sample, library.prompts, library.seed, only=[name]))
        library.pool.pictures.put(candidate.group, replace(sample, objects=prompted))
        thing = next(thing for thing in prompted if thing.annotation_id == name)
    shows = bool(thing.prompts) and all(prompt.status != "none" for prompt in thing.prompts)
    return reference_to(sample, thing) if shows else None
