"""The form of `package.json`, checked where it is read: it comes back from wherever the package was."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.review.marks import MAX_LABEL

Side = Annotated[int, Field(ge=1, le=1 << 20)]
Text = Annotated[str, Field(max_length=10_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class LabelRow(_Strict):
    name: Annotated[str, Field(min_length=1, max_length=MAX_LABEL)]
    text: Text
    category_id: Annotated[int, Field(ge=-1, lt=1 << 63)]


class PictureRow(_Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_~.-]{1,200}$")]
    key: Text
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    height: Side
    width: Side
    entries: Annotated[tuple[Annotated[str, Field(pattern="^[0-9a-f]{32}$")], ...], Field(strict=False)]


class PackageFile(_Strict):
    version: Literal[1]
    layout: Literal["coco", "cvat", "label-studio"]
    step: Annotated[int, Field(ge=0)]
    url: Text
    labels: list[LabelRow]
    pictures: list[PictureRow]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for rows in (self.labels, self.pictures):
            names = [row.name for row in rows]
            if len(set(names)) < len(names):
                raise ValueError("a name is there twice")
        return self
