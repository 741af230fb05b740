"""Split roles: which splits of which sources each picture is in, and the pictures that must not be trained on.

A role is `source/split`. Pictures are the same where their `image_key` is, whatever file they lie in. The roles of all
pictures are a file of the dataset; a training sample on a picture with a forbidden role is filtered with that reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataengine import builder
from dataengine.builder import IndexReport, OptionError, Outcome, Part, SourceError
from dataengine.keyed import key_hash
from dataengine.records import Account
from dataengine.store.files import Folder
from pipelines.plan import Split
from pipelines.progress import Progress
from pipelines.recipe import Recipe, SourceSpec

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "roles.parquet"
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


def is_training(split: str) -> bool:
    """Whether samples of a split are trained on: its name starts with `train`."""
    return split.startswith("train")


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
                if name in recipe.held_out:  # a source of its own need not have every split that it could have
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
        """What goes into the identity of a dataset: roles, how many pictures each forbids, which were not there."""
        return {
            "roles": {role: self.forbidden.pictures[role] for role in self.forbid},
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
    built = {split.key: split for split in splits}
    pairs: dict[str, Iterator[str]] = {
        key: _keys(split.spec, split.part, split.options, split.report, split.index, key, seed)
        for key, split in built.items()
    }
    for number, held_out in enumerate(found.parts):
        if held_out.role not in built:
            progress.say(f"indexing {held_out.role}, which must not be trained on")
            pairs[held_out.role] = _held_out_keys(recipe, held_out, place / f"held-out-{number:03d}.arrow", seed)
    target = place / FILE
    _write(pairs, target)
    forbid = tuple(sorted(held_out.role for held_out in found.parts))
    with target.open("rb") as file:
        forbidden = forbidden_in(file, forbid)
    for line in _unfound(recipe, found):
        progress.say(line)
    return Roles(file=target, forbid=forbid, forbidden=forbidden, missing=found.missing)


def _unfound(recipe: Recipe, found: Found) -> Iterator[str]:
    """A line for each held-out source that lacks a split which its builder would hold out."""
    for name in sorted(recipe.held_out):
        there = [part.part.split for part in found.parts if part.role.startswith(f"{name}/")]
        absent = {role.partition("/")[2]: why for role, why in found.missing.items() if role.startswith(f"{name}/")}
        if absent and there:
            yield f"held out of {name}: {', '.join(there)}; it has no {', '.join(absent)}"
        elif absent:
            yield f"nothing is held out of {name}: {next(iter(absent.values()))}"


def _held_out_keys(recipe: Recipe, held_out: HeldOut, target: Path, seed: int) -> Iterator[str]:
    spec = held_out.spec
    with recipe.naming(held_out.role.partition("/")[0]):
        made = builder.load(spec.builder)
        options = made.parse_options(spec.task, spec.options)
        report = made.index(held_out.part, options, target)
    yield from _keys(spec, held_out.part, options, report, target, held_out.role, seed)
    target.unlink()


def _keys(
    spec: SourceSpec, part: Part, options: Any, report: IndexReport, index: Path, role: str, seed: int
) -> Iterator[str]:
    """The identities of an indexed split's pictures."""
    made = builder.load(spec.builder)
    context = builder.make_context(made, role.partition("/")[0], spec.task, part, report, options, seed)
    yield from made.image_keys(context, Folder(str(index)))


def _write(pairs: Mapping[str, Iterator[str]], target: Path) -> None:
    """Write the roles of all pictures, sorted by key: image_key: string, roles: list<string>.

    Args:
        pairs: the keys of each role's pictures; "" where a row has none.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    tables = [pa.schema({"image_key": pa.string(), "role": pa.string()}).empty_table()]
    for role, keys in pairs.items():
        unique = pa.array(keys, pa.string()).unique()
        unique = unique.filter(pc.not_equal(unique, ""))
        tables.append(pa.table({"image_key": unique, "role": pa.repeat(role, len(unique))}))
    table = pa.concat_tables(tables).sort_by([("image_key", "ascending"), ("role", "ascending")]).combine_chunks()
    keys, roles = (table.column(name).combine_chunks() for name in ("image_key", "role"))
    starts = [0] if len(keys) else []
    starts += (pc.indices_nonzero(pc.not_equal(keys[1:], keys[:-1])).to_numpy() + 1).tolist()
    lists = pa.ListArray.from_arrays(pa.array([*starts, len(keys)], pa.int32()), roles)
    pq.write_table(
        pa.table({"image_key": keys.take(pa.array(starts, pa.int64())), "roles": lists}), target, compression="zstd"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Forbidden:
    """Pictures that must not be trained on.

    roles: their forbidden role, the first in order, by image_key. pictures: how many each role has.
    """

    roles: Mapping[str, str]
    pictures: Mapping[str, int]

    @property
    def fingerprint(self) -> str:
        return key_hash(*(part for pair in sorted(self.roles.items()) for part in pair)).hex()


def forbidden_in(file: Any, roles: Sequence[str]) -> Forbidden:
    """The pictures of a roles file that have one of these roles."""
    import pyarrow.parquet as pq

    wanted = set(roles)
    found: dict[str, str] = {}
    pictures: Counter[str] = Counter()
    if wanted:
        for batch in pq.ParquetFile(file).iter_batches(use_threads=False):
            some = _with_any(batch, wanted)
            for key, there in zip(some.column(0).to_pylist(), some.column(1).to_pylist(), strict=True):
                found[key] = min(wanted & set(there))
                pictures.update(wanted & set(there))
    return Forbidden(roles=found, pictures=pictures)


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
        return Forbidden(roles={}, pictures={})
    with Folder(uri).open() as file:
        return forbidden_in(file, roles)


def without_forbidden(outcome: Outcome, split: str, forbidden: Forbidden) -> Outcome:
    """The outcome of a row; in training splits without samples on forbidden pictures, which are counted as filtered."""
    role = forbidden.roles.get(outcome.samples[0].image_key) if outcome.samples else None
    if role is None or not is_training(split):
        return outcome
    account = Account()
    account.add(outcome.account)
    for unit, number in account.built.items():
        account.filter(unit, f"forbidden: {role}", number)
    account.built.clear()
    return replace(outcome, samples=[], account=account)
