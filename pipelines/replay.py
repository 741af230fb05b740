"""`replay`: build the quarantined records of a dataset again, with the sources and the code as they are now."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataengine.store.dataset import Dataset, open_dataset
from pipelines import build
from pipelines import plan as planning
from pipelines.progress import Progress, silent
from pipelines.recipe import BudgetSpec, with_sources

WHOLE = ("images", "rows")  # units of which one is a whole row of an index


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A record that was quarantined. before, now: reasons; now is None where nothing is wrong with it any more."""

    file: str
    record: str
    before: str
    now: str | None
    message: str


def replay(
    uri: str, *, sources: list[str] | None = None, out: str | None = None, progress: Progress = silent
) -> list[Replayed]:
    """Build again every picture that has a quarantined record.

    The dataset itself is not touched. The plan knows where its sources are; `sources` says where they are now.

    Args:
        out: where to keep what is built: a dataset of the touched pictures, whose manifest says what it replays.
    Raises:
        DatasetError: there is no finished dataset.
    """
    dataset = open_dataset(uri)
    before = list(dataset.quarantined())
    if not before:
        return []
    with dataset.folder.open(planning.PLAN) as file:
        recipe = planning.recipe_of(file)
    recipe = with_sources(recipe, sources or [])
    recipe = recipe.model_copy(update={"budget": BudgetSpec(max_fraction=1, min_count=1 << 40)})
    groups: dict[str, set[str]] = {}
    for row in before:
        groups.setdefault(f"{row['source']}/{row['split']}", set()).add(row["group"])
    settings = build.Settings(engine="local", seed=dataset.manifest["seed"])
    subset = build.Subset(replays=dataset.manifest["version"], groups=groups)
    if out is not None:
        build.run(recipe, out, settings, progress, subset=subset)
        return _compare(before, open_dataset(out))
    with tempfile.TemporaryDirectory(prefix="dataengine-replay-") as folder:
        build.run(recipe, str(Path(folder) / "out"), settings, progress, subset=subset)
        return _compare(before, open_dataset(str(Path(folder) / "out")))


def _compare(before: Iterable[dict[str, str]], dataset: Dataset) -> list[Replayed]:
    def key(row: dict[str, str]) -> tuple[str, str, str]:
        return row["source"], row["split"], row["record"]

    now: dict[Any, dict[str, str]] = {key(row): row for row in dataset.quarantined()}
    images = {(*key(row)[:2], row["group"]): row for row in now.values() if row["unit"] in WHOLE}
    result = []
    for row in before:
        found = now.get(key(row)) or images.get((row["source"], row["split"], row["group"]))
        result.append(
            Replayed(
                file=row["file"],
                record=row["record"],
                before=row["reason"],
                now=found["reason"] if found else None,
                message=found["message"] if found else "",
            )
        )
    return result
