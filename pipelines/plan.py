"""The plan: recipe + indexes → tasks. A pure function; written next to the output before any work starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import dataengine
from dataengine import builder, conversation, keyed
from dataengine.builder import Context, IndexReport, Part
from dataengine.sample import FORMAT_VERSION
from dataengine.store.commits import PLAN, DatasetError
from pipelines import prompting, variants
from pipelines.recipe import PromptSpec, Recipe, SourceSpec, VariantSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One indexed split of one source."""

    source: str
    spec: SourceSpec
    part: Part
    options: Any
    report: IndexReport
    index: Path

    @property
    def key(self) -> str:
        return f"{self.source}/{self.part.split}"

    def rows(self, limit: int | None) -> int:
        return self.report.rows if limit is None else min(limit, self.report.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """A range of index rows that becomes one shard. shard: its file name; null for what indexing itself refused."""

    task_id: str
    source: str
    split: str
    start: int
    stop: int
    shard: str | None

    def __str__(self) -> str:
        return f"{self.source}/{self.split} images {self.start} to {self.stop}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker needs besides its task. indexes: where each split's index stands, a path or URI.

    roles, roles_sha256: where the roles of all pictures stand, and the file's hash. forbid: those that must not be
    trained on. pools: where the objects of each split stand that other pictures may show; for variants only.
    """

    out: str
    builders: Mapping[str, str]
    contexts: Mapping[str, Context]
    indexes: Mapping[str, str]
    roles: str
    roles_sha256: str
    forbid: tuple[str, ...]
    prompts: PromptSpec | None
    variants: VariantSpec | None
    pools: Mapping[str, str]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The tasks, and the hash of everything that decides what they give."""

    tasks: tuple[ShardTask, ...]
    hash: str
    identity: Mapping[str, Any]


def make(
    recipe: Recipe,
    splits: list[Split],
    seed: int,
    limit: int | None,
    replays: str | None = None,
    forbidden: Mapping[str, Any] | None = None,
) -> Plan:
    """Cut every split into tasks, in order; task ids are hashes of what goes into a task.

    Args:
        replays: version of the dataset whose bad records are built again. forbidden: what must not be trained on.
    """
    identity = _identity(recipe, splits, seed, limit)
    identity["forbidden"] = dict(forbidden or {})
    if replays is not None:
        identity["replays"] = replays
    base = _digest(identity)
    tasks = []
    for name in sorted({split.part.split for split in splits}):
        same = sorted((s for s in splits if s.part.split == name), key=lambda s: s.source)
        ranges = [
            (s, start, min(start + recipe.shard.images, s.rows(limit)))
            for s in same
            for start in range(0, s.rows(limit), recipe.shard.images)
        ]
        for split in same:
            if split.report.bad:
                tasks.append(_task(base, split, 0, 0, None))
        for number, (split, start, stop) in enumerate(ranges):
            file = f"shards/{name}-{number:05d}-of-{len(ranges):05d}.parquet"
            tasks.append(_task(base, split, start, stop, file))
    return Plan(tasks=tuple(tasks), hash=_digest({**identity, "tasks": [t.task_id for t in tasks]}), identity=identity)


def _task(base: str, split: Split, start: int, stop: int, shard: str | None) -> ShardTask:
    digest = keyed.key_hash(base, split.source, split.part.split, start, stop, shard or "").hex()
    return ShardTask(task_id=digest, source=split.source, split=split.part.split, start=start, stop=stop, shard=shard)


def _identity(recipe: Recipe, splits: list[Split], seed: int, limit: int | None) -> dict[str, Any]:
    """What decides the output's bytes: no paths, hosts or times."""
    from prompts_sim import FALLBACK, VERSIONS

    prompts = recipe.prompts
    return {
        "format": FORMAT_VERSION,
        "generator": {
            "dataengine": dataengine.__version__,
            "builders": {s.spec.builder: builder.load(s.spec.builder).VERSION for s in splits},
            "conversation": conversation.VERSION,
            "exemplars": prompting.VERSION,
            "prompts": None if prompts is None else {"profile": prompts.profile, "version": VERSIONS[prompts.profile]},
            **({} if prompts is None or not prompts.fallback else {"fallback": {FALLBACK: VERSIONS[FALLBACK]}}),
            **({} if recipe.variants is None else {"variants": variants.VERSION}),
        },
        "recipe": {
            "name": recipe.name,
            "description": recipe.description,
            "prompts": None if prompts is None else prompts.model_dump(mode="json"),
            "variants": None if recipe.variants is None else recipe.variants.model_dump(mode="json"),
            "shard": recipe.shard.model_dump(mode="json"),
            "mixing": None if recipe.mixing is None else recipe.mixing.model_dump(mode="json"),
        },
        "seed": seed,
        "limit": limit,
        "sources": {
            s.key: {
                "builder": s.spec.builder,
                "task": s.spec.task,
                "options": s.spec.options,
                "inputs": dict(s.report.inputs),
                "index": s.report.fingerprint,
                "images": s.report.rows,
                "categories": [{**asdict(c), "synonyms": list(c.synonyms)} for c in s.report.categories],
            }
            for s in splits
        },
    }


def _digest(data: Any) -> str:
    return keyed.key_hash(json.dumps(data, sort_keys=True)).hex()


def to_parquet(plan: Plan, recipe: Recipe, path: Path) -> None:
    """Write the plan: one row a task; its hash, its identity, and the recipe with its paths as metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([asdict(task) for task in plan.tasks], schema=_schema())
    metadata = {
        "dataengine.plan": plan.hash,
        "dataengine.identity": json.dumps(plan.identity, sort_keys=True),
        "dataengine.recipe": recipe.model_dump_json(),
    }
    pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")


def _schema() -> Any:
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("task_id", "source", "split", "shard")]
    return pa.schema([*texts, ("start", pa.int64()), ("stop", pa.int64())])


def identity_of(file: Any) -> tuple[str, dict[str, Any]]:
    """Hash and identity of a plan as it was written."""
    metadata = _metadata(file)
    return metadata["dataengine.plan"], json.loads(metadata["dataengine.identity"])


def recipe_of(file: Any) -> Recipe:
    """The recipe of a plan, with the paths that were used."""
    try:
        return Recipe.model_validate_json(_metadata(file)["dataengine.recipe"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise DatasetError(f"{PLAN}: its recipe cannot be used by this version: {where}: {first['msg']}") from None


def _metadata(file: Any) -> dict[str, str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = {k.decode(): v.decode() for k, v in (pq.read_schema(file).metadata or {}).items()}
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DatasetError(f"{PLAN} is damaged: {error}") from None
    missing = {"dataengine.plan", "dataengine.identity", "dataengine.recipe"} - set(metadata)
    if missing:
        raise DatasetError(f"{PLAN} is no plan: {min(missing)} is missing")
    return metadata


def difference(before: Any, now: Any, where: str = "") -> str:
    """The first place where two identities differ, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                return difference(before.get(key), now.get(key), f"{where}.{key}" if where else str(key))
    shown = [text if len(text) <= 80 else text[:77] + "..." for text in (json.dumps(before), json.dumps(now))]
    return f"{where} was {shown[0]} and is {shown[1]}"
