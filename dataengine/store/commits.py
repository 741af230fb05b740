"""Commits: what makes a finished task visible, exactly once; and the manifest, which is the union of the commits.

Order of a commit: shard published, quarantine published, commit record published. A task without a commit record was
not done, whatever files of it exist; a task with one is never done again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dataengine.errors import UserError
from dataengine.records import Account
from dataengine.store.files import Folder, Stored, is_temporary

FOLDER = "commits"
OWN_FOLDERS = ("shards", FOLDER, "quarantine")
MANIFEST = "manifest.json"
PLAN = "plan.parquet"


class DatasetError(UserError):
    """A dataset that is not what its manifest or commits say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The record of one finished task.

    shard: null where the task has no rows. tasks, licenses: samples by task, and by licence. logical_hash: of the
    shard's values.
    """

    task_id: str
    source: str
    split: str
    start: int
    stop: int
    rows: int
    shard: Stored | None
    logical_hash: str | None
    quarantine: Stored | None
    tasks: dict[str, int]
    licenses: dict[str, int]
    objects: int
    prompts: dict[str, int]
    account: Account

    def files(self) -> list[Stored]:
        return [stored for stored in (self.shard, self.quarantine) if stored is not None]

    def as_dict(self) -> dict[str, Any]:
        return {
            "task_id": self.task_id,
            "source": self.source,
            "split": self.split,
            "start": self.start,
            "stop": self.stop,
            "rows": self.rows,
            "shard": _stored(self.shard),
            "logical_hash": self.logical_hash,
            "quarantine": _stored(self.quarantine),
            "tasks": dict(sorted(self.tasks.items())),
            "licenses": dict(sorted(self.licenses.items())),
            "objects": self.objects,
            "prompts": dict(sorted(self.prompts.items())),
            "account": self.account.as_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Commit:
        values = dict(data)
        for key in ("shard", "quarantine"):
            values[key] = Stored(**values[key]) if values[key] is not None else None
        values["account"] = Account.from_dict(values["account"])
        return cls(**values)


def _stored(stored: Stored | None) -> dict[str, Any] | None:
    return None if stored is None else {"name": stored.name, "bytes": stored.bytes, "sha256": stored.sha256}


def canonical_json(data: Any) -> bytes:
    """JSON bytes that depend on the values only."""
    return json.dumps(data, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False).encode() + b"\n"


def name_of(task_id: str) -> str:
    return f"{FOLDER}/{task_id}.json"


def write(out: Folder, commit: Commit) -> None:
    """Publish the commit record of a task whose files are published."""
    out.write_new(name_of(commit.task_id), canonical_json(commit.as_dict()))


def read(out: Folder, task_id: str) -> Commit | None:
    """The commit record of a task, or None if it is not done."""
    try:
        data = out.read(name_of(task_id))
    except FileNotFoundError:
        return None
    try:
        return Commit.from_dict(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{out.uri}: {name_of(task_id)} is damaged: {error}; delete it to do the task again"
        ) from None


def verify_files(out: Folder, commit: Commit) -> None:
    """Check that the files of a commit are what it says.

    Raises:
        DatasetError: one is missing or differs.
    """
    for stored in commit.files():
        verify_file(out, commit, stored)


def verify_file(out: Folder, commit: Commit, stored: Stored) -> None:
    """Check that one file of a commit is what it says.

    Raises:
        DatasetError: it is missing or differs.
    """
    kind = out.kind(stored.name)
    if kind != "file":
        raise DatasetError(f"{out.uri}: {stored.name} is missing, but task {commit.task_id} committed it")
    if out.size(stored.name) != stored.bytes or out.sha256(stored.name) != stored.sha256:
        raise DatasetError(f"{out.uri}: {stored.name} is not the file that task {commit.task_id} committed")


def remove_temporary_files(out: Folder) -> int:
    """Delete what a killed process left half written; returns how many files. Only for the owner of the lock.

    Only names that this package gives, where it gives them: other `*.tmp` may be anybody's.
    """
    left = [name for name in out.names() if is_temporary(name)]
    for folder in OWN_FOLDERS:
        left += [f"{folder}/{name}" for name in (out / folder).names() if is_temporary(name)]
    for name in left:
        out.delete(name)
    return len(left)


def write_manifest(out: Folder, facts: dict[str, Any], commits: Iterable[Commit]) -> dict[str, Any]:
    """Publish the manifest: the facts of the job and the union of its commits, without times, hosts or paths.

    Its `version` is the sha256 of everything else in it.
    """
    done = sorted(commits, key=lambda c: (c.source, c.split, c.start, c.task_id))
    total = Account()
    by_source: dict[str, dict[str, Account]] = {}
    for commit in done:
        total.add(commit.account)
        by_source.setdefault(commit.source, {}).setdefault(commit.split, Account()).add(commit.account)
    total.check(MANIFEST)
    manifest = {
        **facts,
        "counts": {
            "samples": sum(c.rows for c in done),
            "objects": sum(c.objects for c in done),
            "tasks": _sum(c.tasks for c in done),
            "licenses": _sum(c.licenses for c in done),
            "prompts": _sum(c.prompts for c in done),
            "records": total.as_dict(),
            "by_source": {s: {p: a.as_dict() for p, a in splits.items()} for s, splits in by_source.items()},
        },
        "shards": [
            {
                **(_stored(c.shard) or {}),
                "logical_hash": c.logical_hash,
                "rows": c.rows,
                "source": c.source,
                "split": c.split,
                "task_id": c.task_id,
            }
            for c in done
            if c.shard is not None
        ],
        "quarantine": [{**(_stored(c.quarantine) or {}), "task_id": c.task_id} for c in done if c.quarantine],
    }
    manifest["version"] = version_of(manifest)
    out.write_new(MANIFEST, canonical_json(manifest))
    return manifest


def version_of(manifest: dict[str, Any]) -> str:
    """sha256 (hex) of a manifest without its `version`."""
    return hashlib.sha256(canonical_json({k: v for k, v in manifest.items() if k != "version"})).hexdigest()


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in counts:
        for key, number in part.items():
            total[key] = total.get(key, 0) + number
    return dict(sorted(total.items()))


def read_manifest(out: Folder) -> dict[str, Any]:
    """The manifest of a finished dataset.

    Raises:
        DatasetError: there is none, or it was changed after it was written.
    """
    try:
        data = out.read(MANIFEST)
    except FileNotFoundError:
        what = "its build is not finished; run it again with --resume" if out.exists(PLAN) else "no dataset"
        raise DatasetError(f"{out.uri}: {MANIFEST} is missing: {what}") from None
    try:
        manifest: dict[str, Any] = json.loads(data)
        version = manifest["version"]
    except (ValueError, KeyError, TypeError):
        raise DatasetError(f"{out.uri}: {MANIFEST} is damaged") from None
    if version != version_of(manifest):
        raise DatasetError(f"{out.uri}: {MANIFEST} was changed after it was written: its version does not match")
    return manifest
