"""What a recipe may say to every builder, and the check of what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from builders.coco_index import checked_namespace
from dataengine.builder import OptionError


class SourceOptions(BaseModel):
    """images: `embed` the file's bytes, or `reference` its whole path or URI."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    images: Literal["embed", "reference"] = "embed"


class NumberedOptions(SourceOptions):
    """Of a source whose pictures have numbers.

    image_namespace: whose numbers these are; by default what the file's `info.image_namespace` says, else `coco`.
    """

    image_namespace: Annotated[str, AfterValidator(checked_namespace)] | None = None


Options = TypeVar("Options", bound=SourceOptions)


def parse(model: type[Options], name: str, tasks: Sequence[str], task: str, options: Mapping[str, Any]) -> Options:
    """The checked options of a builder; see `Builder.parse_options`."""
    if task not in tasks:
        raise OptionError(f"{name} builds {', '.join(tasks)}, not {task}")
    unknown = sorted(set(options) - set(model.model_fields) | {"task"} & set(options))
    if unknown:
        known = ", ".join(sorted(set(model.model_fields) - {"task"}))
        raise OptionError(f"{name} has no option {unknown[0]!r}; it has {known}")
    try:
        return model.model_validate({**options, "task": task})
    except ValidationError as error:
        first = error.errors()[0]
        problem = first["msg"].removeprefix("Value error, ")
        where = f"{first['loc'][0]}: " if first["loc"] else ""
        shown = f", not {first['input']!r}" if first["loc"] else ""
        raise OptionError(f"{name}: {where}{problem}{shown}") from None
