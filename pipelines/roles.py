"""Split roles: which splits of which sources each picture is in, and the pictures that must not be trained on.

A role is `source/split`. Pictures are the same where their `image_key` is, whatever file they lie in; held-out ones are
also known by their bytes, where their key or that of a training picture is no number that sources share. The roles of
all pictures are a file of the dataset. A training sample on a picture with a forbidden role is filtered with that as
the reason.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataengine import builder
from dataengine.builder import IndexReport, OptionError, Outcome, Part, SourceError
from dataengine.keyed import key_hash
from dataengine.mixing import is_training
from dataengine.records import Account
from dataengine.sample import Image, Sample
from dataengine.store.dataset import picture_of
from dataengine.store.files import Folder
from pipelines.plan import Split
from pipelines.progress import Progress
from pipelines.recipe import Recipe, SourceSpec

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "roles.parquet"
SHARED = frozenset({"coco", "flickr30k", "sa1b", "vg"})  # whose numbers all sources with these pictures give
NOT_FIXED = frozenset({"annotations", "captions", "masks"})  # roles of files that are one split


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """One held-out split that was found."""

    role: str
    spec: SourceSpec
    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Held-out splits that were found, and roles that were looked for but are not there, with what is missing."""

    parts: tuple[HeldOut, ...]
    missing: Mapping[str, str]


def find(recipe: Recipe) -> Found:
    """The held-out splits whose pictures a recipe forbids.

    These are the roles in `forbid`; without it, of each source the splits that its builder holds out, and of those in
    `held_out` that say `splits` these.

    Raises:
        SourceError, OptionError: a role that the recipe names is not there.
    """
    parts, missing = [], dict[str, str]()
    for name, spec in sorted((recipe.sources | recipe.held_out).items()):
        with recipe.naming(name):
            made = builder.load(spec.builder)
            options = made.parse_options(spec.task, spec.options)
        named = _named(recipe, name)
        for split in made.HELD_OUT if named is None else named:
            role = f"{name}/{split}"
            try:
                parts.append(HeldOut(role=role, spec=spec, part=_located(made, spec, split, options)))
            except (SourceError, OptionError) as error:
                if named is not None:
                    with recipe.naming(name):
                        key = "held_out" if recipe.forbid is None else "forbid"
                        raise type(error)(f"{key} {role}: {error}") from None
                missing[role] = str(error)
    return Found(parts=tuple(parts), missing=missing)


def _named(recipe: Recipe, source: str) -> Sequence[str] | None:
    """The splits of a source that the recipe itself names as held out; None where that is left to the builder."""
    if recipe.forbid is not None:
        return [role.partition("/")[2] for role in recipe.forbid if role.partition("/")[0] == source]
    return recipe.held_out[source].splits or None if source in recipe.held_out else None


def _located(made: builder.Builder, spec: SourceSpec, split: str, options: Any) -> Part:
    if NOT_FIXED & set(spec.files):
        raise SourceError(f"the recipe names the files of one split; {split} is looked for in published layouts only")
    parts = made.locate(spec.root, spec.files, [split], options)
    if [part.split for part in parts] != [split]:
        raise SourceError(f"{made.NAME} has no split {split}")
    return parts[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """The roles of all pictures of a build. file: where they stand. forbid: the roles that must not be trained on.

    forbidden: the pictures that have one. missing: held-out splits that were looked for and are not there.
    """

    file: Path
    forbid: tuple[str, ...]
    forbidden: Forbidden
    missing: Mapping[str, str]

    def identity(self) -> dict[str, Any]:
        """What goes into the identity of a dataset: roles, how many pictures each forbids, which were not there.

        by_content: how many of the pictures are also known by their bytes.
        """
        return {
            "roles": {role: self.forbidden.pictures[role] for role in self.forbid},
            "by_content": len(self.forbidden.by_content),
            "pictures": self.forbidden.fingerprint,
            "missing": sorted(self.missing),
        }


def gather(recipe: Recipe, splits: Sequence[Split], seed: int, place: Path, progress: Progress) -> Roles:
    """The roles of the pictures of built splits, and of held-out ones, which are indexed for that alone.

    Args:
        place: a folder for what is only needed while a build runs.
    Raises:
        SourceError, OptionError: a source, or a role that the recipe names, cannot be used.
    """
    found = find(recipe)
    indexed = {
        split.key: _Indexed(split.key, split.spec, split.part, split.options, split.report, split.index)
        for split in splits
    }
    trains = any(is_training(split.part.split) for split in splits)  # else nothing is forbidden to it
    reading = _Reading(wanted=trains, progress=progress)
    held = {held_out.role for held_out in found.parts}
    seen: dict[str, Iterator[_Seen]] = {
        key: _own(one, seed, reading) for key, one in indexed.items() if key not in held
    }
    for number, held_out in enumerate(found.parts):
        one = indexed.get(held_out.role)
        if one is None:
            progress.say(f"indexing {held_out.role}, which must not be trained on")
        target = place / f"held-out-{number:03d}.arrow"
        seen[held_out.role] = _held_out(recipe, held_out, one, target, seed, reading)
    target = place / FILE
    _write(seen, target)
    forbid = tuple(sorted(held_out.role for held_out in found.parts))
    with target.open("rb") as file:
        forbidden = forbidden_in(file, forbid)
    for line in _unfound(recipe, found):
        progress.say(line)
    return Roles(file=target, forbid=forbid, forbidden=forbidden, missing=found.missing)


def _unfound(recipe: Recipe, found: Found) -> Iterator[str]:
    """A line for each source that lacks a split which its builder would hold out."""
    for name in sorted(recipe.sources | recipe.held_out):
        there = [part.part.split for part in found.parts if part.role.startswith(f"{name}/")]
        absent = {role.partition("/")[2]: why for role, why in found.missing.items() if role.startswith(f"{name}/")}
        if absent and there:
            yield f"held out of {name}: {', '.join(there)}; it has no {', '.join(absent)}"
        elif absent:
            yield f"nothing is held out of {name}: {next(iter(absent.values()))}"


@dataclass(frozen=True, slots=True)
class _Seen:
    """A picture with a role. key: its identity; "" where a row has none. sha256: of its bytes, where it was read."""

    key: str
    sha256: bytes | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class _Indexed:
    """An indexed split."""

    role: str
    spec: SourceSpec
    part: Part
    options: Any
    report: IndexReport
    index: Path

    def keys(self, seed: int) -> Iterator[str]:
        """Identities of the pictures, row by row."""
        yield from self._made.image_keys(self._context(seed), Folder(str(self.index)))

    def read(self, rows: Sequence[int], seed: int) -> Iterator[_Seen]:
        """Pictures of some rows with their bytes' hash, as far as the builder gives samples of them."""
        context = self._context(seed)
        for _, run in groupby(enumerate(rows), key=lambda pair: pair[1] - pair[0]):  # rows without a gap
            numbers = [row for _, row in run]
            for outcome in self._made.read(context, Folder(str(self.index)), numbers[0], numbers[-1] + 1):
                if outcome.samples and outcome.samples[0].image is not None:
                    data = picture_of(outcome.samples[0].image)
                    digest = hashlib.sha256(data)
                    key = outcome.samples[0].image_key or f"sha256/{digest.hexdigest()}"
                    yield _Seen(key, digest.digest(), len(data))

    @property
    def _made(self) -> builder.Builder:
        return builder.load(self.spec.builder)

    def _context(self, seed: int) -> builder.Context:
        source = self.role.partition("/")[0]
        return builder.make_context(self._made, source, self.spec.task, self.part, self.report, self.options, seed)


@dataclass(slots=True, kw_only=True)
class _Reading:
    """Which held-out pictures are read, so that their bytes tell them.

    wanted: whether any is. strangers: whether some picture that is trained on has no shared number; then all held-out
    pictures are read, for it may be any of them; else those without such a number. known: keys of those that were read.
    """

    wanted: bool
    progress: Progress
    strangers: bool = False
    known: set[str] = field(default_factory=set)

    def rows(self, keys: Iterable[tuple[int, str]]) -> list[int]:
        """The rows to be read, of rows and their keys; one for each shared number."""
        new = dict[str, int]()
        nameless = []
        for row, key in keys:
            if not _is_shared(key):
                nameless.append(row)
            elif self.strangers and key not in self.known:
                new.setdefault(key, row)
        return sorted([*nameless, *new.values()]) if self.wanted else []


def _is_shared(key: str) -> bool:
    """Whether a picture's identity is a number that all sources with it give."""
    return key.partition("/")[0] in SHARED


def _own(one: _Indexed, seed: int, reading: _Reading) -> Iterator[_Seen]:
    """The pictures of a split that is built; what of them is trained on without a shared number is noted."""
    trains = is_training(one.part.split)
    for key in one.keys(seed):
        reading.strangers |= trains and key != "" and not _is_shared(key)
        yield _Seen(key)


def _held_out(
    recipe: Recipe, held_out: HeldOut, one: _Indexed | None, target: Path, seed: int, reading: _Reading
) -> Iterator[_Seen]:
    """The pictures of a held-out split; to be read after those of all splits that are trained on.

    Args:
        one: the split, where it is built too; else it is indexed, at target.
    """
    spec = held_out.spec
    with recipe.naming(held_out.role.partition("/")[0]):
        if one is None:
            made = builder.load(spec.builder)
            options = made.parse_options(spec.task, spec.options)
            report = made.index(held_out.part, options, target)
            one = _Indexed(held_out.role, spec, held_out.part, options, report, target)
        keys = list(one.keys(seed))
        yield from map(_Seen, keys)
        rows = reading.rows(enumerate(keys))
        if rows:
            reading.progress.say(f"reading {len(rows):,} pictures of {held_out.role}, to know them under other names")
            for picture in one.read(rows, seed):
                reading.known.add(picture.key)
                yield picture
    target.unlink(missing_ok=True)


def _write(seen: Mapping[str, Iterator[_Seen]], target: Path) -> None:
    """Write the roles of all pictures, sorted by key.

    Columns: image_key: string; roles: list<string>; contents: list<{sha256: binary, size: int64}>, of the files that
    show the picture in held-out splits, as far as they were read.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    tables = [pa.schema({"image_key": pa.string(), "role": pa.string()}).empty_table()]
    contents: dict[str, set[tuple[bytes, int]]] = {}
    for role, pictures in seen.items():
        unique = pa.array(_noted(pictures, contents), pa.string()).unique()
        unique = unique.filter(pc.not_equal(unique, ""))
        tables.append(pa.table({"image_key": unique, "role": pa.repeat(role, len(unique))}))
    table = pa.concat_tables(tables).sort_by([("image_key", "ascending"), ("role", "ascending")]).combine_chunks()
    keys, roles = (table.column(name).combine_chunks() for name in ("image_key", "role"))
    starts = [0] if len(keys) else []
    starts += (pc.indices_nonzero(pc.not_equal(keys[1:], keys[:-1])).to_numpy() + 1).tolist()
    firsts = keys.take(pa.array(starts, pa.int64()))
    files = pa.array(
        ([{"sha256": s, "size": n} for s, n in sorted(contents.get(key.as_py(), ()))] for key in firsts),
        pa.list_(pa.struct({"sha256": pa.binary(), "size": pa.int64()})),
        size=len(firsts),
    )
    lists = pa.ListArray.from_arrays(pa.array([*starts, len(keys)], pa.int32()), roles)
    pq.write_table(pa.table({"image_key": firsts, "roles": lists, "contents": files}), target, compression="zstd")


def _noted(pictures: Iterator[_Seen], contents: dict[str, set[tuple[bytes, int]]]) -> Iterator[str]:
    """The pictures' keys; what is known of their bytes is noted on the way."""
    for picture in pictures:
        if picture.sha256 is not None and picture.size is not None:
            contents.setdefault(picture.key, set()).add((picture.sha256, picture.size))
        yield picture.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Forbidden:
    """Pictures that must not be trained on.

    roles: their forbidden role, the first in order, by image_key. by_content: the same by the sha256 of their bytes, as
    far as that is known. sizes: of these, in bytes. pictures: how many each role has.
    """

    roles: Mapping[str, str]
    by_content: Mapping[bytes, str]
    sizes: frozenset[int]
    pictures: Mapping[str, int]

    @property
    def fingerprint(self) -> str:
        named = [part for pair in sorted(self.roles.items()) for part in pair]
        return key_hash(
            *named, *(part for sha, role in sorted(self.by_content.items()) for part in (sha.hex(), role))
        ).hex()

    def role_of(self, sample: Sample) -> str | None:
        """The forbidden role of a sample's picture. Its bytes are looked at where a forbidden picture has as many.

        Raises:
            OSError: a picture by reference cannot be read again.
        """
        role = self.roles.get(sample.image_key)
        if role is not None or not self.by_content or sample.image is None:
            return role
        if _size(sample.image) not in self.sizes:
            return None
        return self.by_content.get(hashlib.sha256(picture_of(sample.image)).digest())


def _size(image: Image) -> int:
    """Bytes of a picture, without reading it."""
    return len(image.bytes) if image.bytes is not None else Folder(image.path or "").size("")


NOTHING = Forbidden(roles={}, by_content={}, sizes=frozenset(), pictures={})


def forbidden_in(file: Any, roles: Sequence[str]) -> Forbidden:
    """The pictures of a roles file that have one of these roles."""
    import pyarrow.parquet as pq

    wanted = set(roles)
    if not wanted:
        return NOTHING
    found: dict[str, str] = {}
    by_content: dict[bytes, str] = {}
    sizes: set[int] = set()
    pictures: Counter[str] = Counter()
    for batch in pq.ParquetFile(file).iter_batches(use_threads=False):
        for row in _with_any(batch, wanted).to_pylist():
            there = wanted & set(row["roles"])
            found[row["image_key"]] = role = min(there)
            pictures.update(there)
            for content in row["contents"]:
                by_content[content["sha256"]] = min(role, by_content.get(content["sha256"], role))
                sizes.add(content["size"])
    return Forbidden(roles=found, by_content=by_content, sizes=frozenset(sizes), pictures=pictures)


def _with_any(batch: pa.RecordBatch, wanted: set[str]) -> pa.RecordBatch:
    """The rows that have one of the wanted roles."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = batch.column(1)
    hits = pc.is_in(pc.list_flatten(lists), pa.array(sorted(wanted)))
    return batch.take(pc.list_parent_indices(lists).filter(hits).unique())


@lru_cache(maxsize=4)
def load_forbidden(uri: str, sha256: str, roles: tuple[str, ...]) -> Forbidden:
    """The same, of a file by path or URI; read once in a process.

    Args:
        sha256: of the file; another one may stand there when a process builds there again.
    """
    if not roles:
        return NOTHING
    with Folder(uri).open() as file:
        return forbidden_in(file, roles)


def without_forbidden(outcome: Outcome, split: str, forbidden: Forbidden) -> Outcome:
    """The outcome of a row; in training splits without samples on forbidden pictures, which are counted as filtered."""
    role = forbidden.role_of(outcome.samples[0]) if outcome.samples and is_training(split) else None
    if role is None:
        return outcome
    account = Account()
    account.add(outcome.account)
    for unit, number in account.built.items():
        account.filter(unit, f"forbidden: {role}", number)
    account.built.clear()
    return replace(outcome, samples=[], account=account)
