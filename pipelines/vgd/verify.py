"""`vgd verify`: does a benchmark hold what its lock says, and do its sources still give it?"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataengine import builder
from dataengine.builder import Context
from dataengine.keyed import keyed
from dataengine.store.dataset import Dataset, open_dataset
from dataengine.store.files import Folder
from pipelines import build as building
from pipelines import plan as planning
from pipelines.plan import Split
from pipelines.progress import Progress, silent
from pipelines.recipe import Recipe, with_sources
from pipelines.variants import Library, load_pool, write_pool
from pipelines.vgd import lock as locks
from pipelines.vgd.lock import Lock


@dataclass(slots=True, kw_only=True)
class Verified:
    """What was looked at. problems: in words; none where the benchmark is what it says. pictures: that were rebuilt."""

    samples: int = 0
    pictures: int = 0
    rebuilt: int = 0
    problems: list[str] = field(default_factory=list)


def verify(
    uri: str, *, sources: Sequence[str] = (), share: float = 0.1, seed: int = 0, progress: Progress = silent
) -> Verified:
    """Compare all samples of a benchmark with its lock, and build a random part of its pictures again.

    Args:
        sources: `NAME=PATH`, where a source is now; by default where it was. share: of the pictures, 0 to 1; 0 for
            none. seed: of the draw of pictures.
    Raises:
        LockError: there is no lock, or it was changed. DatasetError: the dataset is not finished or damaged.
        SourceError: a source is not there.
    """
    dataset = open_dataset(uri)
    lock = locks.read(dataset.folder)
    result = Verified()
    pictures: dict[str, list[str]] = {}
    found: list[tuple[str, str]] = []
    for sample in dataset.samples():
        found.append((sample.sample_id, locks.digest(sample)))
        pictures.setdefault(sample.image_key, []).append(sample.sample_id)
    result.samples = len(found)
    result.problems += locks.differences(lock.samples, found)
    missing = sorted(set(lock.samples) - {name for name, _ in found})
    result.problems += [f"{name}: is in the lock but not in the benchmark" for name in missing]
    if share > 0:
        with dataset.folder.open(planning.PLAN) as file:
            recipe = with_sources(planning.recipe_of(file), list(sources))
        _rebuild(dataset, lock, recipe, pictures, share, seed, result, progress)
    return result


def _rebuild(
    dataset: Dataset,
    lock: Lock,
    recipe: Recipe,
    pictures: dict[str, list[str]],
    share: float,
    seed: int,
    result: Verified,
    progress: Progress,
) -> None:
    """Build some pictures again, from the sources; notes what differs."""
    with tempfile.TemporaryDirectory(prefix="dataengine-verify-") as place:
        for split in building.index(recipe, Path(place), progress, None):
            stated = {role: sha for role, sha in lock.sources.get(split.key, {}).items() if role != "categories"}
            changed = sorted(role for role in stated if split.report.inputs.get(role) != stated[role])
            if changed:
                result.problems.append(
                    f"{split.key}: {split.part.files[changed[0]]} is another file than the benchmark was built from"
                )
                continue
            _rebuild_split(split, lock, recipe, pictures, share, seed, result)


def _rebuild_split(
    split: Split,
    lock: Lock,
    recipe: Recipe,
    pictures: dict[str, list[str]],
    share: float,
    seed: int,
    result: Verified,
) -> None:
    rows = split.rows(lock.limit)
    number = min(rows, math.ceil(rows * share))
    chosen = sorted(keyed(seed, "verify", split.key).choice(rows, number, replace=False).tolist())
    context = building.context_of(split, lock.seed)
    index = Folder(str(split.index))
    library = _library(split, context, recipe)
    made = builder.load(split.spec.builder)
    for row in chosen:
        (outcome,) = made.read(context, index, row, row + 1)
        samples = building.finish(outcome, recipe.prompts, lock.seed, library).samples
        result.pictures += 1
        result.rebuilt += len(samples)
        now = [(sample.sample_id, locks.digest(sample)) for sample in samples]
        result.problems += [f"{problem} (built again)" for problem in locks.differences(lock.samples, now)]
        if samples:
            lost = set(pictures.get(samples[0].image_key, ())) - {name for name, _ in now}
            result.problems += [f"{name}: is not built any more" for name in sorted(lost)]


def _library(split: Split, context: Context, recipe: Recipe) -> Library | None:
    if recipe.variants is None:
        return None
    pool = split.index.with_suffix(".pool.parquet")
    if recipe.variants.any:
        write_pool(split.spec.builder, context, split.index, pool)
    return Library(
        builder=split.spec.builder,
        context=context,
        index=Folder(str(split.index)),
        pool=load_pool(str(pool)) if recipe.variants.any else None,
        prompts=recipe.prompts,
        spec=recipe.variants,
    )
