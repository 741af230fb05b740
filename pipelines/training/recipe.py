"""Training recipes: YAML files that say which stages a model goes through, and on what. Checked here, at the boundary.

Values of a stage's own keys are those of `model.training.Stage`; the rest says where its data and weights come from.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dataengine.errors import UserError
from dataengine.loader.fresh import Redraw
from dataengine.sample import Task
from model.training.settings import Stage
from pipelines import recipe as building
from pipelines.recipe import Int, Kinds, MixSpec, Name, Names, read_change

SHIPPED = building.SHIPPED / "train"
STAGE_KEYS = tuple(field.name for field in dataclasses.fields(Stage))
PARTS = ("llm", "visual_encoder", "segmentor.encoder", "mask2former", "checkpoint", "stage1", "stage2")


def _part(value: str) -> str:
    if value not in PARTS:
        raise ValueError(f"there is no part {value!r}; there are {', '.join(PARTS)}")
    return value


class TrainingError(UserError):
    """A training recipe that cannot be used; the message names the file and the field."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WorldSpec(_Model):
    """A procedural world that is drawn first, in published layouts; sources without a root of their own lie in it."""

    images: Int = Field(ge=2)
    style: Literal["world", "simple", "simple-colored", "large-colored"] = "world"
    layouts: Names = ()
    seed: Int = Field(default=0, ge=0)


class DatasetSpec(_Model):
    """A dataset, by default one that `--data NAME=DIR` says.

    path: a finished one. build: a recipe (a name, a file, or its values) that makes it first; root: of its relative
    paths. limit: pictures of each split. lock: make it a VGD benchmark, whose questions are frozen.
    """

    path: str | None = None
    build: str | dict[str, Any] | None = None
    root: str | None = None
    limit: Int | None = Field(default=None, ge=1)
    lock: bool = False


class ModelSpec(_Model):
    """The model. preset: by name, or config: a `config.json`. tokenizer: a folder or a name on the hub; `tiny` is made
    on the spot. set: what is otherwise, as in config.json."""

    preset: str | None = None
    config: str | None = None
    tokenizer: str = "tiny"
    set: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_of_two(self) -> ModelSpec:
        if (self.preset is None) == (self.config is None):
            raise ValueError("either preset or config is needed")
        return self


class RedrawSpec(_Model):
    """What is drawn anew each time a sample is drawn; see `dataengine.loader.fresh.Redraw`."""

    wording: bool = True
    categories: bool = True
    max_negatives: Int | None = Field(default=None, ge=0)
    max_categories: Int | None = Field(default=None, ge=1)
    exemplars: bool = True
    cross_image: float = Field(default=0.0, ge=0, le=1)
    region_negatives: Int = Field(default=0, ge=0)
    kinds: tuple[Literal["point", "scribble", "box", "mask"], ...] = ("point", "scribble", "box", "mask")

    def to_redraw(self, seed: int) -> Redraw:
        return Redraw(seed=seed, **self.model_dump())


class ExamSpec(_Model):
    """What is scored while a stage trains, every `evaluate_every` steps and at its end.

    data: a dataset; split: of it. prompts: kinds that are shown, of vgdseg and intseg. samples: the first so many, on
    the way; at_end: at the end of the stage, where all count by default. generate: the model writes the answers, of at
    most max_new ids; else those of the samples are read.
    """

    name: Name
    data: Name
    task: Task
    split: str | None = None
    prompts: Kinds | None = None
    samples: Int = Field(default=100, ge=1)
    at_end: Int | None = Field(default=None, ge=1)
    generate: bool = False
    max_new: Int = Field(default=128, ge=1)


class StageSpec(_Model):
    """A stage: what it reads, where it begins, and `train`, how it learns, whose keys stand beside these in the file.

    data: names of datasets; mixing: how often their sources are drawn, by default each sample once. redraw: what is not
    taken as it is stored, but drawn anew each time. by_length: steps take samples whose conversations are of like
    length. workers: processes that read, for each one that trains. block: samples that are shuffled among each other.
    budget: share of samples that may be unusable. init: published weights
    of parts, by names on the hub or folders; `checkpoint` is a whole model, `stage1` and `stage2` what those stages
    made, where they are not of this run; requires: those without which it must not begin. take: parts that are taken of
    each earlier stage of this run, by its name, instead of what it usually hands on. expand_to_square: of the pictures
    that are learned from; by default as the model's settings say, which evaluation goes by.
    """

    train: Stage
    data: Names = Field(min_length=1)
    mixing: MixSpec | None = None
    redraw: RedrawSpec | None = None
    by_length: bool = False
    workers: Int = Field(default=1, ge=0, le=256)
    block: Int = Field(default=4096, ge=1)
    budget: float = Field(default=0.01, ge=0, le=1)
    requires: tuple[Literal[1, 2], ...] = ()
    init: dict[Annotated[str, AfterValidator(_part)], str] = {}
    take: dict[Name, tuple[str, ...]] = {}
    expand_to_square: bool | None = None
    evaluate: tuple[ExamSpec, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _parted(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "train" in values:
            return values
        own = {key: value for key, value in values.items() if key not in STAGE_KEYS}
        return own | {"train": {key: value for key, value in values.items() if key in STAGE_KEYS}}

    @property
    def name(self) -> str:
        return self.train.name


class TrainRecipe(_Model):
    """Stages in order. baselines: what the last stage's exams are compared with: an untrained model, and for VGD the
    prompts themselves."""

    name: Name
    description: str = ""
    model: ModelSpec
    world: WorldSpec | None = None
    datasets: dict[Name, DatasetSpec] = {}
    stages: tuple[StageSpec, ...] = Field(min_length=1)
    baselines: bool = False

    @model_validator(mode="after")
    def _names_are_known(self) -> TrainRecipe:
        names = [stage.name for stage in self.stages]
        if again := [name for n, name in enumerate(names) if name in names[:n]]:
            raise ValueError(f"two stages are called {again[0]}")
        for place, stage in enumerate(self.stages):
            if unknown := sorted(set(stage.take) - set(names[:place])):
                raise ValueError(f"stage {stage.name} takes of {unknown[0]}, which is no stage before it")
        return self

    @property
    def data_names(self) -> tuple[str, ...]:
        """Datasets that the stages need, in the order in which they do."""
        needed = [name for s in self.stages for name in (*s.data, *(exam.data for exam in s.evaluate))]
        return tuple(dict.fromkeys(needed))


def shipped() -> list[str]:
    """Names of the training recipes that ship with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load(name: str, changes: Sequence[str] = ()) -> TrainRecipe:
    """A recipe by the name of one that ships with the package, or by the path of a YAML file.

    Where `stages` has a text, all stages and datasets of the recipe of that name stand in its place.

    Args:
        changes: KEY=VALUE, with a YAML value. KEY is a place in the recipe (`model.set.decoder.points`), a key of one
            stage (`s1.lr`) or of all stages (`lr`).
    Raises:
        TrainingError: there is none, or it is not valid.
    """
    return _checked(_read(name), changes, name)


def parse(values: Mapping[str, Any], changes: Sequence[str], name: str) -> TrainRecipe:
    """The recipe of these values; see `load`. name: of what it is for, for messages. Raises TrainingError."""
    return _checked(_expanded(copy.deepcopy(dict(values)), name, ()), changes, name)


def _checked(values: dict[str, Any], changes: Sequence[str], name: str) -> TrainRecipe:
    for change in changes:
        _change(values, change, name)
    try:
        return TrainRecipe.model_validate(values)
    except ValidationError as error:
        raise TrainingError(f"{name}: {_first_of(error, values)}") from None


def _read(name: str, within: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a recipe by its name, those of others in their places."""
    path = SHIPPED / f"{name}.yaml" if name in shipped() else Path(name)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise TrainingError(
            f"{name}: no training recipe of that name and no such file; recipes that ship with the package: "
            f"{', '.join(shipped())}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise TrainingError(f"{name}: not a YAML file: {error}") from None
    return _expanded(values, name, within)


def _expanded(values: Any, name: str, within: tuple[str, ...]) -> dict[str, Any]:
    """Values of a recipe, those of others in their places."""
    if not isinstance(values, dict) or not isinstance(values.get("stages", []), list):
        raise TrainingError(f"{name}: keys with values are needed, among them a list of stages")
    stages: list[Any] = []
    for stage in values.get("stages", []):
        if not isinstance(stage, str):
            stages.append(stage)
            continue
        if stage in (*within, name):
            raise TrainingError(f"{name}: stages: {stage} is made of itself")
        other = _read(stage, (*within, name))
        stages += other["stages"]
        values["datasets"] = {**(other.get("datasets") or {}), **(values.get("datasets") or {})}
        values.setdefault("model", other.get("model"))
    return {**values, "stages": stages} if "stages" in values else values


def _change(values: dict[str, Any], change: str, name: str) -> None:
    key, value = read_change(change, "batch=8", TrainingError)
    stages = [stage for stage in values.get("stages", ()) if isinstance(stage, dict)]
    first, _, rest = key.partition(".")
    named = [stage for stage in stages if stage.get("name") == first]
    of_stage = (*STAGE_KEYS, *StageSpec.model_fields)
    if named and rest:
        places, key = named, rest
    elif first in of_stage and first not in TrainRecipe.model_fields:
        places = stages
    elif first in TrainRecipe.model_fields:
        places = [values]
    else:
        names = ", ".join(str(stage.get("name")) for stage in stages)
        raise TrainingError(
            f"--set {change}: {name} has no {first}; there are {', '.join(TrainRecipe.model_fields)}, the stages "
            f"{names}, and of stages {', '.join(key for key in of_stage if key != 'train')}"
        )
    for place in places:
        *path, last = key.split(".")
        for step in path:
            inner = place.setdefault(step, {})
            if not isinstance(inner, dict):
                raise TrainingError(f"--set {change}: {step} is {inner!r:.60}, and has no keys")
            place = inner
        place[last] = value


def _first_of(error: ValidationError, values: Mapping[str, Any]) -> str:
    """Where the first thing that is wrong stands, and what it is."""
    first = error.errors()[0]
    loc = [part for part in first["loc"] if part not in ("train", "[key]")]
    problem = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        problem = f"there is no such key; there are {', '.join(_keys_at(loc[:-1]))}"
    if len(loc) > 1 and loc[0] == "stages" and isinstance(loc[1], int):
        stage = values["stages"][loc[1]]
        if isinstance(stage, dict) and isinstance(stage.get("name"), str):
            loc[1] = stage["name"]
    return f"{'.'.join(map(str, loc)) or 'the top level'}: {problem}"


def _keys_at(loc: Sequence[Any]) -> list[str]:
    models: Mapping[str, type[BaseModel]] = {"model": ModelSpec, "world": WorldSpec, "datasets": DatasetSpec}
    if not loc:
        return list(TrainRecipe.model_fields)
    if loc[0] == "stages":
        inner: dict[str, type[BaseModel]] = {"evaluate": ExamSpec, "redraw": RedrawSpec, **building.RULES}
        for place in reversed(loc):
            if place in inner:
                return list(inner[place].model_fields)
        return sorted({*STAGE_KEYS, *StageSpec.model_fields} - {"train"})
    return list(models.get(str(loc[0]), TrainRecipe).model_fields)


def of_options(recipe: TrainRecipe, *, steps: int | None = None) -> TrainRecipe:
    """The recipe with what command line options ask of every stage."""
    if steps is None:
        return recipe
    stages = [s.model_copy(update={"train": dataclasses.replace(s.train, steps=steps)}) for s in recipe.stages]
    return recipe.model_copy(update={"stages": tuple(stages)})
