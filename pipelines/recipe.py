"""Recipes: YAML files that say which sources become which samples. Checked here, at the boundary."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dataengine import builder
from dataengine.sample import Task

SHIPPED = Path(__file__).parent / "recipes"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the file and the field."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSpec(_Model):
    """One source: which builder reads it, what it becomes, where its files are.

    root: folder of the published layout. files: paths by role, for trees that are not laid out as published; they win.
    splits: the wanted ones; none means all there are. options: the builder's own.
    """

    builder: Name
    task: Task
    root: str | None = None
    files: dict[str, str] = {}
    splits: tuple[Name, ...] = ()
    options: dict[str, Any] = {}


class PromptSpec(_Model):
    """Which visual prompts are simulated for the objects of region conditions."""

    profile: Literal["published", "strict"] = "published"
    kinds: tuple[Literal["point", "scribble", "box", "mask"], ...] = ("point", "scribble", "box", "mask")


class ShardSpec(_Model):
    """images: how many pictures make one shard, which is one task."""

    images: int = Field(default=500, ge=1, le=100_000)


class BudgetSpec(_Model):
    """The job stops when more than `min_count` records, and more than `max_fraction` of all, are quarantined."""

    max_fraction: float = Field(default=0.01, ge=0, le=1)
    min_count: int = Field(default=100, ge=0)


class Recipe(_Model):
    """What a dataset is made of."""

    name: Name
    description: str = ""
    seed: int = 0
    sources: dict[Name, SourceSpec] = Field(min_length=1)
    prompts: PromptSpec | None = None
    shard: ShardSpec = ShardSpec()
    budget: BudgetSpec = BudgetSpec()

    def with_absolute_paths(self) -> Recipe:
        """The same recipe with local paths made absolute, so that it can be used from elsewhere."""

        def absolute(path: str) -> str:
            return path if "://" in path else str(Path(path).absolute())

        sources = {
            name: spec.model_copy(
                update={
                    "root": None if spec.root is None else absolute(spec.root),
                    "files": {role: absolute(path) for role, path in spec.files.items()},
                }
            )
            for name, spec in self.sources.items()
        }
        return self.model_copy(update={"sources": sources})


def shipped() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load(name: str) -> Recipe:
    """A recipe by the name of one that ships with the package, or by the path of a YAML file.

    Raises:
        RecipeError: there is none, or it is not valid.
    """
    path = SHIPPED / f"{name}.yaml" if name in shipped() else Path(name)
    try:
        data = yaml.safe_load(path.read_text())
    except OSError:
        raise RecipeError(
            f"{name}: no recipe of that name and no such file; recipes that ship with the package: "
            f"{', '.join(shipped())}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{name}: not a YAML file: {error}") from None
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise RecipeError(f"{name}: {where}: {first['msg']}") from None


def with_sources(recipe: Recipe, given: list[str]) -> Recipe:
    """The recipe with the folders of `--source NAME=PATH`.

    NAME is a source of the recipe. A recipe with a single source takes any name: samples then carry it, and where a
    builder of that name is installed, it reads the source.

    Raises:
        RecipeError: a source is not written NAME=PATH, or the recipe has no such source.
    """
    sources = dict(recipe.sources)
    for text in given:
        name, mark, root = text.partition("=")
        if not mark or not name or not root:
            raise RecipeError(f"--source {text}: write NAME=PATH, for example --source coco=/data/coco")
        if name not in sources and len(recipe.sources) == 1 and len(given) == 1:
            spec = sources.pop(next(iter(sources)))
            sources[name] = spec.model_copy(update={"builder": name if name in builder.names() else spec.builder})
        if name not in sources:
            raise RecipeError(f"--source {name}: recipe {recipe.name} has the sources {', '.join(recipe.sources)}")
        sources[name] = sources[name].model_copy(update={"root": root})
    try:
        return Recipe.model_validate(recipe.model_copy(update={"sources": sources}).model_dump())
    except ValidationError as error:
        raise RecipeError(f"--source: {error.errors()[0]['msg']}") from None
