"""Croissant 1.1: what a dataset is, which files it has, and what their columns mean, as JSON-LD for other programs.

The vocabulary is that of https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html; the fields of a record are
generated from `dataengine.sample`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataengine.sample import (
    FORMAT_VERSION,
    TASKS,
    Condition,
    Image,
    License,
    Lineage,
    Object,
    Provenance,
    Reference,
    Turn,
)
from dataengine.sample import Sample as Row
from dataengine.store.commits import MANIFEST
from dataengine.store.files import Stored

FILE = "croissant.json"
PUBLISHER = "dataengine"  # of this description, by which it is known again
LISTED_SHARDS = 1000  # more of them are not listed one by one; the manifest has them all
CONFORMS_TO = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
PARQUET = ["application/vnd.apache.parquet", "application/x-parquet"]  # as registered, and as mlcroissant knows it
SPLITS = {"train": "cr:TrainingSplit", "val": "cr:ValidationSplit", "test": "cr:TestSplit"}
_STRUCTS: Mapping[str, type] = {
    kind.__name__: kind for kind in (Condition, Image, License, Lineage, Object, Provenance, Reference, Turn)
}
_TYPES = {
    "string": "sc:Text",
    "binary": "sc:Text",  # COCO's compressed counts, which are ASCII
    "bool": "sc:Boolean",
    "int16": "cr:Int16",
    "int32": "cr:Int32",
    "int64": "cr:Int64",
    "float": "cr:Float32",
}
_TERMS = (
    "annotation arrayShape citeAs column containedIn equivalentProperty excludes extract field fileObject fileProperty "
    "fileSet format includes isArray isLiveDataset jsonPath key md5 parentField path readLines recordSet references "
    "regex repeated replace samplingRate sdVersion separator source subField transform unArchive"
)
CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    **{term: f"cr:{term}" for term in _TERMS.split()},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What only the one who publishes a dataset can say. published: a day, YYYY-MM-DD."""

    url: str | None = None
    creator: str | None = None
    published: str | None = None

    def missing(self) -> list[str]:
        """What Croissant asks for and nobody said."""
        return [name for name in ("url", "creator", "published") if getattr(self, name) is None]


def document(
    manifest: Mapping[str, Any],
    stored: Stored,
    *,
    about: About,
    licenses: Sequence[License],
    splits: Mapping[str, int],
    description: str,
    citation: str,
    facts: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """The description of a dataset.

    Args:
        stored: the manifest's file. splits: samples of each. facts: values of `rai:` properties, by their names.
    """
    said: dict[str, Any] = {"url": about.url, "datePublished": about.published}
    if about.creator is not None:
        said["creator"] = {"@type": "sc:Organization", "name": about.creator}
    return {
        "@context": dict(CONTEXT),
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": manifest["recipe"]["name"],
        "description": description,
        "license": [_license(one) for one in licenses] or [_license(License())],
        **{key: value for key, value in said.items() if value is not None},
        "version": f"{FORMAT_VERSION}.0.0+{manifest['version']}",
        "citeAs": citation,
        "keywords": ["segmentation", *(task for task in TASKS if task in manifest["counts"]["tasks"])],
        "isLiveDataset": False,
        "sdPublisher": {"@type": "sc:Organization", "name": PUBLISHER},
        **{f"rai:{name}": list(values) for name, values in facts.items() if values},
        "distribution": [*_files(manifest, stored)],
        "recordSet": [_splits(splits), _samples()],
    }


def to_bytes(found: Mapping[str, Any]) -> bytes:
    """The file's content."""
    return json.dumps(found, indent=1, ensure_ascii=True).encode() + b"\n"


def is_ours(data: bytes) -> bool:
    """Whether a file was written by `to_bytes`."""
    try:
        return bool(json.loads(data)["sdPublisher"]["name"] == PUBLISHER)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _license(one: License) -> Any:
    """A URL, where there is one that can be written as it is; else what is known of the licence."""
    if one.url is not None and re.fullmatch(r"https?://[^\s<>\"{}|\\^`]+", one.url):
        return one.url
    text = one.name or one.url
    return {"@type": "sc:CreativeWork", "name": text or "not stated by the source"}


def _files(manifest: Mapping[str, Any], stored: Stored) -> Iterator[dict[str, Any]]:
    text = "Counts, sources, shards and their hashes."
    yield _file("manifest", stored.name, stored.bytes, stored.sha256, "application/json", text)
    shards = manifest["shards"]
    if len(shards) <= LISTED_SHARDS:
        for number, shard in enumerate(shards):
            text = f"{shard['rows']} samples of {shard['source']}, split {shard['split']}."
            yield _file(f"shard-{number:05d}", shard["name"], shard["bytes"], shard["sha256"], PARQUET, text)
    yield {
        "@type": "cr:FileSet",
        "@id": "shards",
        "name": "shards",
        "description": f"All {len(shards)} shards; {MANIFEST} has the sha256 of each.",
        "encodingFormat": PARQUET,
        "includes": "shards/*.parquet",
    }


def _file(key: str, name: str, size: int, sha256: str, encoding: str | list[str], text: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": key,
        "name": name,
        "description": text,
        "contentUrl": name,
        "contentSize": f"{size} B",
        "encodingFormat": encoding,
        "sha256": sha256,
    }


def _splits(splits: Mapping[str, int]) -> dict[str, Any]:
    """The splits, which roles they have where their names say so, and how many samples each holds."""
    columns = {"name": "sc:Text", "url": ["sc:URL", "cr:Split"], "samples": "cr:Int64"}
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "description": "The splits, and how many samples each holds.",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [
            {"@type": "cr:Field", "@id": f"splits/{name}", "name": name, "dataType": kind}
            for name, kind in columns.items()
        ],
        "data": [
            {"splits/name": name, "splits/url": _role(name), "splits/samples": number}
            for name, number in splits.items()
        ],
    }


def _role(split: str) -> str | None:
    return next((role for start, role in SPLITS.items() if split.startswith(start)), None)


def _samples() -> dict[str, Any]:
    fields = []
    for column in dataclasses.fields(Row):
        kind, text = column.metadata["arrow"], column.metadata["doc"]
        if kind == "Image":
            fields.append(_leaf("image", "sc:ImageObject", text, "image", "bytes"))
            fields.append(_leaf("image_path", "sc:Text", _doc(Image, "path"), "image", "path"))
        elif kind in _TYPES:
            fields.append(_leaf(column.name, _TYPES[kind], text, column.name))
        else:
            fields.append(_nested(column.name, kind, text))
    split = next(field for field in fields if field["name"] == "split")
    # a reference to the splits would be a join, for which mlcroissant reads all shards, pictures and all, into memory
    split["dataType"] = ["sc:Text", "cr:Split"]
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "One picture, one conversation, the things to be segmented, and their masks.",
        "key": {"@id": "samples/sample_id"},
        "field": fields,
    }


def _nested(name: str, kind: str, text: str) -> dict[str, Any]:
    """The field of a struct or of a list of structs. Croissant cannot say what a list in such a list holds."""
    item = kind.removeprefix("list<").removesuffix(">")
    sub, missing = [], []
    for path, arrow, doc in _columns(_STRUCTS[item]):
        if not arrow.startswith("list<"):
            sub.append(_leaf(f"{name}/{path.replace('.', '_')}", _TYPES[arrow], doc, name, path))
        elif (values := arrow.removeprefix("list<").partition(">"))[0] in _TYPES:
            leaf = _leaf(f"{name}/{path.replace('.', '_')}", _TYPES[values[0]], doc, name, path)
            sub.append({**leaf, "isArray": True, "arrayShape": values[2].strip("[]") or "-1"})
        else:
            missing.append(path)
    left = f" Its column {', '.join(missing)} is in the files only." if missing else ""
    field = {"@type": "cr:Field", "@id": f"samples/{name}", "name": name, "description": text + left, "subField": sub}
    return {**field, "isArray": True, "arrayShape": "-1"} if kind.startswith("list<") else field


def _columns(kind: type) -> Iterator[tuple[str, str, str]]:
    """Path, Arrow type and meaning of what a struct holds; structs in it are opened."""
    for column in dataclasses.fields(kind):
        arrow, doc = column.metadata["arrow"], column.metadata["doc"]
        if arrow == "Image":
            yield f"{column.name}.path", "string", _doc(Image, "path")
        elif arrow in _STRUCTS:
            for path, inner, text in _columns(_STRUCTS[arrow]):
                yield f"{column.name}.{path}", inner, text
        else:
            yield column.name, arrow, doc


def _doc(kind: type, name: str) -> str:
    return next(str(field.metadata["doc"]) for field in dataclasses.fields(kind) if field.name == name)


def _leaf(name: str, kind: str, text: str, column: str, path: str | None = None) -> dict[str, Any]:
    source: dict[str, Any] = {"fileSet": {"@id": "shards"}, "extract": {"column": column}}
    if path is not None:
        source["transform"] = {"jsonPath": path}
    return {
        "@type": "cr:Field",
        "@id": f"samples/{name}",
        "name": name.rpartition("/")[2],
        "description": text,
        "dataType": kind,
        "source": source,
    }
