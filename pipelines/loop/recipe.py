"""Loop recipes: YAML files that say what is labelled, by whom, how it is trained on, and when it ends. Checked here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dataengine.errors import UserError
from pipelines import recipe as building
from pipelines.recipe import Int, Name, Names, Seed, read_change

SHIPPED = building.SHIPPED / "loop"


class LoopError(UserError):
    """A loop recipe that cannot be used, or a loop that cannot go on; the message names the file and the field."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSpec(_Model):
    """What the ledger begins with, as `dataengine ledger init` takes it.

    roots: COCO folders, finished datasets, folders of pictures alone; relative ones lie below `--root`, or in the world
    that the training recipe draws. labelled: the share of pictures whose annotations are taken; those of the others are
    hidden, and only used to say how good the labels are that a model gives them.
    """

    roots: tuple[str, ...] = Field(min_length=1)
    split: Name | None = None
    exhaustive: Literal["annotated", "all", "none"] = "annotated"
    categories: tuple[str, ...] = ()
    namespace: Name | None = None
    labelled: float | None = Field(default=None, gt=0, lt=1)


class LabelerSpec(_Model):
    """Who labels: a name of `dataengine relabel --labeler`, and its settings.

    A setting `{model}` is the folder of the newest model, `{categories}` a JSON file of the ledger's categories,
    `{truth}` a COCO file of what was hidden, `{device}` cpu or cuda. `xsam` has the first two and the device, and
    `noisy-oracle` the truth, where the recipe does not say them. The others are as for `dataengine relabel`.
    """

    name: str = "xsam"
    settings: dict[str, Any] = {}
    batch: Int = Field(default=8, ge=1)
    per_task: Int = Field(default=64, ge=1)
    timeout: float = Field(default=600.0, gt=0)
    max_bad: float = Field(default=0.01, ge=0, le=1)


class TrainingSpec(_Model):
    """How a model is made of the labels.

    recipe: a training recipe by name, file (below the folder of the loop's recipe) or values. set: KEY=VALUE, as of
    `dataengine train`. labels: its datasets that are built anew of the ledger's masks in every round. people: the same,
    but of the masks alone that a person drew or accepted, so that `mixing` can give these a share of their own.
    start: `scratch`, or `previous`: rounds after the first train the last stage on, beginning with the model of the
    round before. later_steps: of the last stage in these rounds; None: as many as in the first.
    """

    recipe: str | dict[str, Any]
    set: tuple[str, ...] = ()
    labels: Names = Field(min_length=1)
    people: Names = ()
    start: Literal["scratch", "previous"] = "scratch"
    later_steps: Int | None = Field(default=None, ge=1)
    processes: Int = Field(default=1, ge=1)


class ScoreSpec(_Model):
    """What a model is judged by: the mean of a figure over all that the last stage's exam scores (kinds of prompts)."""

    exam: Name
    figure: Name = "ap"


class StopSpec(_Model):
    """When the loop ends before its last round; null is never.

    gain: points by which the score must rise, else it ends after `patience` rounds that do not reach it. accept: points
    by which the share of accepted masks must differ from the round before.
    """

    gain: float | None = Field(default=0.5, ge=0)
    patience: Int = Field(default=2, ge=1)
    accept: float | None = Field(default=1.0, ge=0)


class ReviewSpec(_Model):
    """Masks in question go to people, and the loop waits for them. to: a layout of packages, or the browser."""

    to: Literal["coco", "cvat", "label-studio", "browser"] = "coco"
    pictures: Literal["copy", "link", "none"] = "copy"
    url: str | None = None
    limit: Int | None = Field(default=None, ge=1)


class LoopRecipe(_Model):
    """A loop. seed: of the choice of what is labelled, and added to those of the training stages. filters, merge: as of
    `dataengine relabel`. people_alone, frozen_teacher: compare with training on people's masks alone, or on round 1's
    labels, in every round. gold: label the pictures of the scored exam too, apart from the ledger, and tell how good
    the accepted masks are."""

    name: Name
    description: str = ""
    seed: Seed = 0
    source: SourceSpec
    labeler: LabelerSpec = LabelerSpec()
    filters: str | list[Any] = "default"
    merge: dict[str, Any] = {}
    training: TrainingSpec
    score: ScoreSpec
    rounds: Int = Field(default=3, ge=1, le=1000)
    stop: StopSpec = StopSpec()
    review: ReviewSpec | None = None
    gold: bool = True
    people_alone: bool = False
    frozen_teacher: bool = False

    @model_validator(mode="after")
    def _truth_is_hidden(self) -> LoopRecipe:
        if self.source.labelled is None and "{truth}" in self.labeler.settings.values():
            raise ValueError("labeler.settings: nothing is hidden; there is {truth} only with source.labelled")
        return self


def shipped() -> list[str]:
    """Names of the loop recipes that ship with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load(name: str, changes: Sequence[str] = ()) -> LoopRecipe:
    """A recipe by the name of one that ships with the package, or by the path of a YAML file.

    Args:
        changes: KEY=VALUE, with a YAML value; KEY is a place in the recipe, such as `source.labelled`.
    Raises:
        LoopError: there is none, or it is not valid.
    """
    path = SHIPPED / f"{name}.yaml" if name in shipped() else Path(name)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        there = ", ".join(shipped())
        raise LoopError(
            f"{name}: no loop recipe of that name and no such file; those that ship with the package: {there}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise LoopError(f"{name}: not a YAML file: {error}") from None
    if not isinstance(values, dict):
        raise LoopError(f"{name}: keys with values are needed")
    for change in changes:
        _change(values, change)
    try:
        recipe = LoopRecipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise LoopError(f"{name}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
    training = recipe.training.recipe
    if isinstance(training, str) and (beside := path.parent / training).is_file():
        found = recipe.training.model_copy(update={"recipe": str(beside.absolute())})
        recipe = recipe.model_copy(update={"training": found})
    return recipe


def _change(values: dict[str, Any], change: str) -> None:
    key, value = read_change(change, "rounds=2", LoopError)
    *path, last = key.split(".")
    for step in path:
        inner = values.setdefault(step, {})
        if not isinstance(inner, dict):
            raise LoopError(f"--set {change}: {step} is {inner!r:.60}, and has no keys")
        values = inner
    values[last] = value
