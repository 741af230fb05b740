"""The unified sample: its values, and the Arrow and JSON schemas generated from them.

One `Sample` is one row of a shard. The dataclasses below are the only place where the fields are written down;
`invariants.py` says what must hold between them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 1

Task = Literal["genseg", "ovseg", "refseg", "grefseg", "reaseg", "gcgseg", "vgdseg", "intseg", "chat"]
TASKS: tuple[str, ...] = get_args(Task)
PromptKind = Literal["point", "scribble", "box", "mask"]
PROMPT_KINDS: tuple[str, ...] = get_args(PromptKind)
PROFILES = ("published", "strict")
PROMPT_STATUSES = ("ok", "fallback", "none")


def _column(arrow: str, doc: str, **kwargs: Any) -> Any:
    """A field with its Arrow type and meaning."""
    return field(metadata={"arrow": arrow, "doc": doc}, **kwargs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A picture, in the layout of the Hugging Face `Image` feature."""

    bytes: bytes | None = _column("binary", "the original file's bytes, never re-encoded")
    path: str | None = _column(
        "string", "file name; in by-reference datasets the picture's whole path or URI, and the only content"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of the conversation."""

    role: Literal["user", "assistant"] = _column("string", "user or assistant")
    text: str = _column("string", "rendered text with its markers")
    supervised: bool = _column("bool", "whether a trainer computes a loss on this turn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A visual prompt, simulated or of the source, stored as geometry; bitmaps are derived (`prompts.render`)."""

    kind: PromptKind = _column("string", "point, scribble, box or mask")
    profile: Literal["published", "strict"] = _column("string", "which generator profile made it")
    version: int = _column(
        "int16", "version of that generator; 0: the publisher's own, the prompt came with the source"
    )
    status: Literal["ok", "fallback", "none"] = _column(
        "string", "fallback: made by the fallback chain; none: no prompt could be made"
    )
    points: tuple[float, ...] = _column(
        "list<float>", "x, y pairs in pixels, at pixel centres; a box is two corners", default=()
    )
    parts: tuple[int, ...] = _column("list<int32>", "number of points in each stroke, box or click group", default=())
    radius: float = _column("float", "radius in pixels with which points are drawn", default=0.0)
    rle: bytes | None = _column("binary", "mask prompts: compressed COCO counts on the full canvas", default=None)
    inside: float = _column("float", "share of the rendered prompt inside its object", default=0.0)
    other: float = _column("float", "largest share of the rendered prompt inside another object", default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where an object's mask comes from. Human ground truth has origin `human` and nulls."""

    origin: Literal["human", "model", "merged"] = _column("string", "human, model or merged")
    labeler: str | None = _column("string", "name of the labeler", default=None)
    revision: str | None = _column("string", "revision of the labeler", default=None)
    round: int | None = _column("int16", "relabeling round", default=None)
    score: float | None = _column("float", "labeler's confidence, 0..1", default=None)
    stability: float | None = _column("float", "stability score, 0..1", default=None)
    reviewer: str | None = _column("string", "who accepted it", default=None)


HUMAN = Lineage(origin="human")


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """Something annotated in the picture: an instance, a stuff segment, a referred object."""

    rle: bytes = _column("binary", "compressed COCO counts, column-major, on height x width")
    bbox: tuple[float, float, float, float] = _column("list<float>[4]", "x, y, width, height in px")
    area: int = _column("int64", "pixels set in the mask")
    category_id: int = _column("int32", "the source's category id")
    annotation_id: str = _column("string", "the source's annotation id")
    crowd: bool = _column("bool", "a crowd region; serves no condition", default=False)
    prompts: tuple[Prompt, ...] = _column("list<Prompt>", "its visual prompts", default=())
    lineage: Lineage = _column("Lineage", "where the mask comes from", default=HUMAN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Something to segment: a category, phrase or sentence, or one `<region>`.

    `turns[turn].text[start:end]` is its `<p>…</p>` span, in code points; -1 before rendering.
    """

    kind: Literal["phrase", "region"] = _column("string", "phrase or region")
    text: str = _column("string", "category name, phrase or sentence; a region's category name")
    category_id: int = _column("int32", "the source's category id, -1 where there is none", default=-1)
    objects: tuple[int, ...] = _column(
        "list<int16>", "indices of the objects to segment; empty: nothing is to be found", default=()
    )
    exemplar: int = _column("int16", "object whose prompt a region shows, or -1", default=-1)
    reference: int = _column("int16", "reference whose prompt a region shows, or -1", default=-1)
    shots: tuple[int, ...] = _column(
        "list<int16>", "further references that show the same region, besides `reference`", default=()
    )
    explanation: str | None = _column(
        "string", "reaseg: what the answer says besides its mask; else null", default=None
    )
    seg: int = _column("int16", "ordinal of its <SEG> in the sample", default=-1)
    turn: int = _column("int16", "index of the turn its span stands in", default=-1)
    start: int = _column("int32", "first code point of the span", default=-1)
    end: int = _column("int32", "one past the span's last code point", default=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An exemplar in another picture, for cross-image regions and negatives."""

    image: Image = _column("Image", "the other picture")
    image_key: str = _column("string", "identity of that picture across sources")
    annotation_id: str = _column("string", "the source's annotation id")
    category_id: int = _column("int32", "the source's category id")
    height: int = _column("int32", "of the other picture, px")
    width: int = _column("int32", "of the other picture, px")
    rle: bytes = _column("binary", "compressed COCO counts on that picture's canvas")
    prompts: tuple[Prompt, ...] = _column("list<Prompt>", "its visual prompts", default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class License:
    """Licence of the picture, where the source gives one."""

    name: str | None = _column("string", "name", default=None)
    url: str | None = _column("string", "URL", default=None)

    def __str__(self) -> str:
        return self.name or self.url or "not stated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a sample comes from, precisely enough to make it again."""

    file: str = _column("string", "source file, relative to the source's root")
    record: str = _column("string", "record in that file")
    builder: str = _column("string", "builder name")
    version: int = _column("int16", "builder version")
    seed: int = _column("int64", "the build's seed")
    url: str | None = _column("string", "where the source is published", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image, one conversation, the things to be segmented, and their masks."""

    sample_id: str = _column("string", "{source}/{split}/{image_key}/{task}[/{n}], unique in a dataset")
    task: Task = _column("string", "one of TASKS")
    variant: str | None = _column(
        "string",
        "genseg, ovseg: panoptic, semantic or instance; reaseg: long or short; vgdseg of a benchmark: same_image, "
        "cross_image, negatives or k_shot; else null",
        default=None,
    )
    source: str = _column("string", "name of the source")
    split: str = _column("string", "the source's split")
    image: Image | None = _column("Image", "null for text-only chat")
    image_key: str = _column("string", "identity of the picture across sources")
    height: int = _column("int32", "px, as annotated")
    width: int = _column("int32", "px, as annotated")
    turns: tuple[Turn, ...] = _column("list<Turn>", "the rendered conversation", default=())
    caption: str | None = _column("string", "gcgseg: the caption with its spans; else null", default=None)
    objects: tuple[Object, ...] = _column("list<Object>", "what is annotated and used", default=())
    conditions: tuple[Condition, ...] = _column("list<Condition>", "what to segment", default=())
    references: tuple[Reference, ...] = _column("list<Reference>", "exemplars in other pictures", default=())
    ignore: bytes | None = _column("binary", "RLE of pixels that count neither way, or null", default=None)
    license: License = _column(
        "License", "licence of the picture, or of the source where a picture has none of its own", default=License()
    )
    provenance: Provenance = _column("Provenance", "where it comes from")


def reference_to(sample: Sample, thing: Object) -> Reference:
    """An object of a sample, with its prompts, as an exemplar for samples of other pictures."""
    return Reference(
        image=sample.image or Image(bytes=None, path=None),
        image_key=sample.image_key,
        annotation_id=thing.annotation_id,
        category_id=thing.category_id,
        height=sample.height,
        width=sample.width,
        rle=thing.rle,
        prompts=thing.prompts,
    )


_VALUES: dict[str, type] = {
    value.__name__: value for value in (Image, Turn, Prompt, Lineage, Object, Condition, Reference, License, Provenance)
}


# --- schemas, generated from the fields above ---------------------------------------------------------------------

_SCALARS = ("string", "binary", "bool", "int16", "int32", "int64", "float")


def _arrow_type(name: str) -> pa.DataType:
    import pyarrow as pa

    if name.startswith("list<"):
        item, _, size = name.removeprefix("list<").partition(">")
        length = int(size.strip("[]")) if size else -1
        return pa.list_(_arrow_type(item), length)
    if name in _VALUES:
        return pa.struct([(f.name, _arrow_type(f.metadata["arrow"])) for f in dataclasses.fields(_VALUES[name])])
    types = {"string": pa.string(), "binary": pa.binary(), "bool": pa.bool_(), "float": pa.float32()}
    return types[name] if name in types else pa.type_for_alias(name)


def arrow_schema() -> pa.Schema:
    """The Arrow schema of a shard."""
    import pyarrow as pa

    fields = [pa.field(f.name, _arrow_type(f.metadata["arrow"])) for f in dataclasses.fields(Sample)]
    return pa.schema(fields, metadata={"dataengine.format": str(FORMAT_VERSION)})


def _json_type(name: str) -> dict[str, Any]:
    if name.startswith("list<"):
        item, _, size = name.removeprefix("list<").partition(">")
        bounds = {"minItems": int(size.strip("[]")), "maxItems": int(size.strip("[]"))} if size else {}
        return {"type": "array", "items": _json_type(item), **bounds}
    if name in _VALUES:
        return _json_object(_VALUES[name])
    if name == "binary":
        return {"type": "string", "contentEncoding": "base64"}
    kinds = {"string": "string", "bool": "boolean", "float": "number"}
    return {"type": kinds.get(name, "integer")}


def _json_object(value: type) -> dict[str, Any]:
    properties = {}
    for f in dataclasses.fields(value):
        schema = _json_type(f.metadata["arrow"])
        if str(f.type).endswith("| None"):
            schema = {"anyOf": [schema, {"type": "null"}]}
        properties[f.name] = {**schema, "description": f.metadata["doc"]}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of one sample; binary values are base64 text."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Sample", **_json_object(Sample)}


def to_row(sample: Sample) -> dict[str, Any]:
    """A sample as the plain dict that `pyarrow.Table.from_pylist(rows, schema=arrow_schema())` takes."""
    row: dict[str, Any] = _writer("Sample")(sample)
    return row


@cache
def _writer(name: str) -> Callable[[Any], Any]:
    """The function that turns a value of that type into plain data, put together once from the fields."""
    if name.startswith("list<"):
        item = name.removeprefix("list<").partition(">")[0]
        if item in _SCALARS:
            return list
        write = _writer(item)
        return lambda values: [write(value) for value in values]
    fields = dataclasses.fields(_VALUES.get(name, Sample))
    plain = [f.name for f in fields if f.metadata["arrow"] in _SCALARS]
    nested = [(f.name, _writer(f.metadata["arrow"])) for f in fields if f.metadata["arrow"] not in _SCALARS]
    get = attrgetter(*plain)

    def write_value(value: Any) -> dict[str, Any] | None:
        if value is None:
            return None
        row = dict(zip(plain, get(value), strict=True))
        for key, write in nested:
            row[key] = write(getattr(value, key))
        return row

    return write_value


def from_row(row: dict[str, Any]) -> Sample:
    """The sample of one row read back from a shard (`table.to_pylist()`)."""
    sample: Sample = _reader("Sample")(row)
    return sample


@cache
def _reader(name: str) -> Callable[[Any], Any]:
    """The function that makes a value of that type from plain data, put together once from the fields."""
    if name.startswith("list<"):
        item = name.removeprefix("list<").partition(">")[0]
        if item in _SCALARS:
            return lambda values: None if values is None else tuple(values)
        read = _reader(item)
        return lambda values: None if values is None else tuple([read(value) for value in values])
    kind = _VALUES.get(name, Sample)
    columns = [(f.name, f.metadata["arrow"]) for f in dataclasses.fields(kind)]
    plain = [key for key, arrow in columns if arrow in _SCALARS]
    nested = [(key, _reader(arrow)) for key, arrow in columns if arrow not in _SCALARS]

    def read_value(row: dict[str, Any] | None) -> Any:
        if row is None:
            return None
        values = {key: row[key] for key in plain}
        for key, read in nested:
            values[key] = read(row[key])
        return kind(**values)

    return read_value
