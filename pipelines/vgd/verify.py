"""`vgd verify`: does a benchmark hold what its lock says, and do its sources still give it?"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from dataengine import builder
from dataengine.builder import Context
from dataengine.keyed import keyed
from dataengine.sample import Sample
from dataengine.store.dataset import Dataset, open_dataset
from dataengine.store.files import Folder
from pipelines import build as building
from pipelines import plan as planning
from pipelines.plan import Split
from pipelines.progress import Progress, silent
from pipelines.recipe import Recipe, with_sources
from pipelines.variants import Library, load_pool, write_pool
from pipelines.vgd import lock as locks
from pipelines.vgd.benchmark import REGIONS, write_regions
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
    with tempfile.TemporaryDirectory(prefix="dataengine-verify-") as place:
        table = Path(place) / REGIONS
        write_regions(_noted(dataset, pictures, found), table)
        result.samples = len(found)
        result.problems += locks.differences(lock.samples, found)
        missing = sorted(set(lock.samples) - {name for name, _ in found})
        result.problems += [f"{name}: is in the lock but not in the benchmark" for name in missing]
        result.problems += _compare_regions(dataset, table)
        if share > 0:
            with dataset.folder.open(planning.PLAN) as file:
                recipe = with_sources(planning.recipe_of(file), list(sources))
            _rebuild(lock, recipe, Path(place), pictures, share, seed, result, progress)
    return result


def _noted(dataset: Dataset, pictures: dict[str, list[str]], found: list[tuple[str, str]]) -> Iterator[Sample]:
    """All samples; notes their hashes, and which ones each picture has."""
    for sample in dataset.samples():
        found.append((sample.sample_id, locks.digest(sample)))
        pictures.setdefault(sample.image_key, []).append(sample.sample_id)
        yield sample


def _compare_regions(dataset: Dataset, table: Path) -> list[str]:
    """Is the table of regions that of the samples?"""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with dataset.folder.open(REGIONS) as file:
            same = pq.read_table(file).equals(pq.read_table(table))
    except FileNotFoundError:
        return [f"{REGIONS}: is missing"]
    except (pa.ArrowException, OSError) as error:
        return [f"{REGIONS}: is damaged: {error}"]
    return [] if same else [f"{REGIONS}: is not what the samples give"]


def _rebuild(
    lock: Lock,
    recipe: Recipe,
    place: Path,
    pictures: Mapping[str, list[str]],
    share: float,
    seed: int,
    result: Verified,
    progress: Progress,
) -> None:
    """Build some pictures again, from the sources; notes what differs."""
    for split in building.index(recipe, place, progress, None):
        stated = {role: sha for role, sha in lock.sources.get(split.key, {}).items() if role != "categories"}
        now = dict(split.report.inputs)
        changed = sorted(role for role in stated.keys() | now.keys() if stated.get(role) != now.get(role))
        result.problems += [
            f"{split.key}: {split.part.files.get(role, role)} is not the file that the benchmark was built from"
            for role in changed
        ]
        if not changed:
            _rebuild_split(split, lock, recipe, pictures, share, seed, result)


def _rebuild_split(
    split: Split,
    lock: Lock,
    recipe: Recipe,
    pictures: Mapping[str, list[str]],
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
    keys = list(islice(made.image_keys(context, index), rows))
    for row in chosen:
        (outcome,) = made.read(context, index, row, row + 1)
        finished = building.finish(outcome, recipe.prompts, lock.seed, library)
        now = [(sample.sample_id, locks.digest(sample)) for sample in finished.samples]
        result.pictures += 1
        result.rebuilt += len(now)
        result.problems += [f"{problem} (built again)" for problem in locks.differences(lock.samples, now)]
        before = {name for name in pictures.get(keys[row], ()) if name.startswith(f"{split.key}/")}
        reasons = sorted({f": {bad.message}" for bad in finished.bad})
        result.problems += [
            f"{name}: cannot be built again{''.join(reasons[:1])}"
            for name in sorted(before - {name for name, _ in now})
        ]


def _library(split: Split, context: Context, recipe: Recipe) -> Library | None:
    if recipe.variants is None:
        return None
    pool = None
    if recipe.variants.any:
        pool = load_pool(str(write_pool(split.spec.builder, context, split.index, split.report.bad)))
    return Library(
        builder=builder.load(split.spec.builder),
        context=context,
        index=Folder(str(split.index)),
        pool=pool,
        prompts=recipe.prompts,
        spec=recipe.variants,
    )
