"""`reproduce`: build one sample again from its sources, and say whether it is the one that the dataset holds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dataengine import builder
from dataengine.builder import SourceError
from dataengine.errors import UserError
from dataengine.keyed import key_hash
from dataengine.records import Account
from dataengine.sample import Sample
from dataengine.store.commits import Commit, DatasetError
from dataengine.store.dataset import Dataset, open_dataset
from dataengine.store.files import Folder
from dataengine.store.quarantine import read as read_quarantine
from dataengine.store.shards import read_shard
from dataengine.view.rows import printable
from pipelines import build
from pipelines import plan as planning
from pipelines.plan import Job, ShardTask, Split
from pipelines.progress import Progress, silent
from pipelines.recipe import with_sources

WIDTH = 60  # characters of a value that are shown
BEFORE = 15  # of them, those that are the same before the first that is not


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A field that differs: `objects[2].rle`. before, now: what of its values shows that, shortened."""

    field: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.field}: was {self.before}, is {self.now}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduced:
    """A sample as it was stored, and as it is built now.

    built: None where it is not built any more; reasons: why, as far as the build says it. changed: what goes into the
    sample and is not what it was, the first of it, in words; None where all is the same.
    """

    stored: Sample
    built: Sample | None
    differences: tuple[Difference, ...]
    changed: str | None
    reasons: tuple[str, ...]

    @property
    def is_identical(self) -> bool:
        return self.built is not None and not self.differences


def reproduce(
    uri: str, sample_id: str, *, sources: list[str] | None = None, out: str | None = None, progress: Progress = silent
) -> Reproduced:
    """Build a sample again, with its source and the program as they are now.

    Of the sources only the sample's split is needed: which pictures must not be trained on is taken from the dataset,
    as its roles say. The dataset knows where the source was; `sources` says where it is now (NAME=PATH).

    Args:
        out: a local folder for `stored.json` and `built.json`, the sample as it was and is.
    Raises:
        DatasetError: there is no finished dataset, or no such sample in it. SourceError, OptionError: the source cannot
            be used. RecipeError: `sources` names none of the dataset's. UserError: `out` holds such files already.
    """
    dataset = open_dataset(uri)
    shard, stored = dataset.locate(sample_id)
    target = None if out is None else _new_folder(out)
    with dataset.folder.open(planning.PLAN) as file:
        recipe = with_sources(planning.recipe_of(file), sources or []).with_absolute_paths()
    manifest = dataset.manifest
    key, seed, limit = f"{stored.source}/{stored.split}", manifest["seed"], manifest["limit"]
    with tempfile.TemporaryDirectory(prefix="dataengine-reproduce-") as place:
        splits = build.index(recipe, Path(place), progress, None, only=key)
        if not splits:
            raise SourceError(f"source {stored.source} has no split {stored.split} any more")
        plan = planning.make(recipe, splits, seed, limit, forbidden=manifest["forbidden"])
        roles, sha256 = _roles_of(dataset)
        forbid = tuple(sorted(manifest["forbidden"]["roles"]))
        job = build.job_of(recipe, Folder(place) / "out", splits, roles, sha256, forbid, seed)
        built, reasons = _build(job, splits[0], stored, _planned(dataset, shard), limit)
    result = Reproduced(
        stored=stored,
        built=built,
        differences=() if built is None else tuple(differences(stored, built)),
        changed=_changed(manifest, plan.identity, key),
        reasons=tuple(reasons),
    )
    if target is not None:
        _write(target, result)
    return result


def text(found: Reproduced) -> str:
    """What came out, one line for each thing to be said."""
    name = found.stored.sample_id
    changed = [] if found.changed is None else [f"what goes into it changed: {found.changed}"]
    if found.built is None:
        why = found.reasons or ("its source has no such record any more",)
        return "\n".join([*changed, f"{name} is not built any more", *(f"  {reason}" for reason in why)])
    if found.is_identical:
        return "\n".join([*changed, f"identical: {name}"])
    return "\n".join([*changed, f"{name} differs", *(f"  {difference}" for difference in found.differences)])


# --- building it -----------------------------------------------------------------------------------------------------


def _roles_of(dataset: Dataset) -> tuple[str, str]:
    """Where the roles of the dataset's pictures stand, and the file's hash."""
    stated = dataset.manifest["roles"]
    if dataset.folder.kind(stated["name"]) != "file" or dataset.folder.sha256(stated["name"]) != stated["sha256"]:
        raise DatasetError(f"{dataset.folder.uri}: {stated['name']} is not the file that the manifest names")
    return (dataset.folder / stated["name"]).uri, stated["sha256"]


def _planned(dataset: Dataset, shard: str) -> range:
    """The rows of the index that became a shard."""
    import pyarrow.parquet as pq

    with dataset.folder.open(planning.PLAN) as file:
        tasks = pq.ParquetFile(file).read(use_threads=False).to_pylist()
    for task in tasks:
        if task["shard"] == shard:
            return range(task["start"], task["stop"])
    raise DatasetError(f"{dataset.folder.uri}: {planning.PLAN} does not plan {shard}")


def _build(
    job: Job, split: Split, stored: Sample, planned: range, limit: int | None
) -> tuple[Sample | None, list[str]]:
    """The sample as it is built now; or None, and the reasons that building its rows gave."""
    out, reasons = Folder(job.out), list[str]()
    for row, is_its_own in _candidates(job, split, stored.image_key, planned, split.rows(limit)):
        name = key_hash(stored.sample_id, row).hex()
        task = ShardTask(
            task_id=name,
            source=split.source,
            split=split.part.split,
            start=row,
            stop=row + 1,
            shard=f"shards/{name}.parquet",
        )
        commit = build.build_task(job, task)
        if commit.shard is not None:
            with out.open(commit.shard.name) as file:
                for sample in read_shard(file):
                    if sample.sample_id == stored.sample_id:
                        return sample, []
        if is_its_own:
            reasons += _reasons(out, commit)
    return None, list(dict.fromkeys(reasons))


def _candidates(job: Job, split: Split, image_key: str, planned: range, stop: int) -> Iterator[tuple[int, bool]]:
    """Rows of the index that may give a sample, and whether they are its picture's.

    Where no row has its picture, these are the rows without one; first those that were planned for its shard.

    Args:
        stop: rows from there on are not built.
    """
    made = builder.load(split.spec.builder)
    keys = list(islice(made.image_keys(job.contexts[split.key], Folder(job.indexes[split.key])), stop))
    own = [row for row, key in enumerate(keys) if key == image_key]
    nameless = [row for row, key in enumerate(keys) if key == ""]
    for row in own or sorted(nameless, key=lambda row: (row not in planned, row)):
        yield row, bool(own)


def _reasons(out: Folder, commit: Commit) -> Iterator[str]:
    """Why a row gave no sample, or not all of its own."""
    if commit.quarantine is not None:
        with out.open(commit.quarantine.name) as file:
            for bad in read_quarantine(file):
                yield f"quarantined ({bad['reason']}): {bad['record']}: {bad['message']}"
    account: Account = commit.account
    for unit, counts in account.filtered.items():
        for reason, number in counts.items():
            yield f"filtered ({reason}): {number} {unit}"


def _changed(manifest: dict[str, Any], now: Any, key: str) -> str | None:
    """The first thing that goes into samples of a split and is not what it was."""
    before = {name: manifest[name] for name in now}
    source = manifest["sources"][key]
    if "replays" in manifest:  # it was built of some rows only
        source = source | {name: now["sources"][key][name] for name in ("index", "images")}
    before["sources"] = {key: source}
    used = now["generator"]["builders"]
    mine = {name: version for name, version in manifest["generator"]["builders"].items() if name in used}
    before["generator"] = {**manifest["generator"], "builders": mine}
    before, after = (json.loads(json.dumps(value)) for value in (before, dict(now)))
    return None if before == after else planning.difference(before, after)


# --- comparing -------------------------------------------------------------------------------------------------------


def differences(before: Any, now: Any, where: str = "") -> Iterator[Difference]:
    """The fields in which two samples differ, in the order of the format."""
    if dataclasses.is_dataclass(before) and type(before) is type(now):
        for f in dataclasses.fields(before):
            yield from differences(
                getattr(before, f.name), getattr(now, f.name), f"{where}.{f.name}" if where else f.name
            )
    elif _has_parts(before) and _has_parts(now):
        if len(before) != len(now):
            yield Difference(field=where, before=f"{len(before)} of them", now=f"{len(now)}")
        for number, (one, other) in enumerate(zip(before, now, strict=False)):
            yield from differences(one, other, f"{where}[{number}]")
    elif repr(before) != repr(now):  # in which NaN is NaN
        yield Difference(field=where, **_shown(before, now))


def _has_parts(value: Any) -> bool:
    """Whether it is a list of values that have fields; one without elements may be."""
    return isinstance(value, tuple) and all(map(dataclasses.is_dataclass, value))


def _shown(before: Any, now: Any) -> dict[str, str]:
    """Two values, each as much as shows that they differ."""
    texts = [_text(value) for value in (before, now)]
    same = next((n for n, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    start = max(0, same - BEFORE)
    if max(map(len, texts)) <= WIDTH or start < BEFORE:
        start = 0
    return {name: _cut(value, start) for name, value in zip(("before", "now"), texts, strict=True)}


def _cut(value: str, start: int) -> str:
    part = value[start : start + WIDTH]
    return f"{'…' if start else ''}{part}{'…' if start + WIDTH < len(value) else ''}"


def _text(value: Any) -> str:
    """A value in words. What is no ASCII is a picture: its length and hash."""
    if isinstance(value, bytes):
        if value.isascii():
            return value.decode()
        return f"{len(value):,} bytes of sha256 {hashlib.sha256(value).hexdigest()[:16]}"
    return json.dumps(value, ensure_ascii=False)


# --- files -----------------------------------------------------------------------------------------------------------

STORED, BUILT = "stored.json", "built.json"


def _new_folder(out: str) -> Path:
    folder = Path(out)
    if "://" in out or any((folder / name).exists() for name in (STORED, BUILT)):
        raise UserError(f"--out {out}: a local folder without {STORED} and {BUILT}")
    return folder


def _write(folder: Path, found: Reproduced) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, sample in ((STORED, found.stored), (BUILT, found.built)):
        if sample is not None:
            lines = json.dumps(printable(sample), indent=2, ensure_ascii=False)
            (folder / name).write_text(lines + "\n", encoding="utf-8")
