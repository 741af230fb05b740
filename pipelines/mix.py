"""`mix`: how often an epoch draws from each source of a recipe or of a built dataset."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dataengine import mixing
from dataengine.errors import UserError
from dataengine.mixing import is_training
from dataengine.store.commits import Commit
from dataengine.store.dataset import open_dataset
from dataengine.store.files import Folder
from pipelines.progress import Progress, silent
from pipelines.recipe import MixSpec, Recipe, SourceSpec


class MixError(UserError):
    """A mixing table that cannot be made; the message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A mixing table. counted: what its n_d count."""

    rows: tuple[mixing.Row, ...]
    counted: str

    def __str__(self) -> str:
        return f"{mixing.text(self.rows)}\nn_d counts {self.counted}"


def of_dataset(uri: str) -> Mixture:
    """The table of a finished dataset, by the rule it was built with.

    Raises:
        DatasetError, MixError
    """
    rows = open_dataset(uri).manifest.get("mixing")
    if rows is None:
        raise MixError(f"{uri}: its recipe has no mixing rule, or it has no training samples")
    return Mixture(rows=tuple(mixing.Row(**row) for row in rows), counted="training samples of the dataset")


def of_recipe(recipe: Recipe, progress: Progress = silent, *, placed: bool = False) -> Mixture:
    """The table of a recipe: of its sources where one of them is there, else at their published sizes.

    Args:
        placed: somebody said where the sources are, so they must be there.
    Raises:
        MixError: the recipe has no rule, or no source is there and the size of one is not known.
        SourceError, OptionError: a source is there and another is not, or cannot be used.
    """
    from pipelines import build

    if recipe.mixing is None:
        raise MixError(f"recipe {recipe.name} has no mixing rule; add `mixing:` to it")
    if placed or any(_is_there(spec) for spec in recipe.sources.values()):
        with tempfile.TemporaryDirectory(prefix="dataengine-mix-") as folder:
            sizes = dict.fromkeys(recipe.sources, 0)
            for split in build.index(recipe, Path(folder), progress, None):
                sizes[split.source] += split.report.rows if is_training(split.part.split) else 0
        return Mixture(
            rows=_table(sizes, recipe.mixing), counted="pictures or records of the sources; a build counts samples"
        )
    unknown = [name for name, spec in recipe.sources.items() if spec.expected is None]
    if unknown:
        raise MixError(f"recipe {recipe.name}: source {unknown[0]} is not there; use --root DIR or --source NAME=PATH")
    sizes = {name: spec.expected or 0 for name, spec in recipe.sources.items()}
    return Mixture(rows=_table(sizes, recipe.mixing), counted="records of the published sources")


def _is_there(spec: SourceSpec) -> bool:
    return any(Folder(path).exists() for path in (spec.root, *spec.files.values()) if path is not None)


def facts(recipe: Recipe, done: Iterable[Commit]) -> list[dict[str, Any]] | None:
    """The table of what a build made, as the manifest holds it; None without a rule or training samples."""
    sizes = dict.fromkeys(recipe.sources, 0)
    for commit in done:
        sizes[commit.source] += commit.rows if is_training(commit.split) else 0
    if recipe.mixing is None or not any(sizes.values()):
        return None
    return [asdict(row) for row in _table(sizes, recipe.mixing)]


def expectations(recipe: Recipe, done: Iterable[Commit]) -> dict[str, dict[str, int]]:
    """How many training records there should be and are, of each source whose recipe says it.

    Records are pictures, or rows where they are a source's; those that options filter are none, those that are
    forbidden or bad are some.
    """
    found: dict[str, Counter[str]] = {name: Counter() for name in recipe.sources}
    for commit in done:
        if is_training(commit.split):
            for unit, number in commit.account.read.items():
                reasons = commit.account.filtered.get(unit, Counter())
                by_options = sum(n for reason, n in reasons.items() if not reason.startswith("forbidden: "))
                found[commit.source][unit] += number - by_options
    return {
        name: {"expected": spec.expected, "found": found[name]["rows"] or found[name]["images"]}
        for name, spec in recipe.sources.items()
        if spec.expected is not None
    }


def surprises(expectations: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A line for each source that has more or fewer records than expected. Whole thousands are rounded numbers."""
    lines = []
    for name, numbers in expectations.items():
        expected, found = numbers["expected"], numbers["found"]
        is_rounded = expected % 1000 == 0
        if abs(found - expected) > (500 if is_rounded else 0):
            about = "about " if is_rounded else ""
            lines.append(f"warning: {name} has {found:,} training records; {about}{expected:,} are published")
    return lines


def _table(sizes: Mapping[str, int], spec: MixSpec) -> tuple[mixing.Row, ...]:
    try:
        return mixing.table(sizes, spec.to_rule())
    except ValueError as error:
        raise MixError(f"mixing: {error}") from None
