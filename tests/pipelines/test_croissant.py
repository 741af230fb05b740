"""croissant.json against mlcroissant: no complaint, the values of the rows, the hashes of the files, no network."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path

import mlcroissant
import pyarrow as pa
import pytest

from dataengine.sample import arrow_schema, to_row
from dataengine.store.dataset import open_dataset
from pipelines import build, croissant, dataset_card, recipe
from pipelines.build import Settings
from pipelines.croissant import About

ABOUT = About(url="https://example.org/small", creator="Somebody", published="2026-01-31")
NOT_DESCRIBED = ("objects.prompts", "references.prompts", "references.image.bytes")


@pytest.fixture
def make(coco_tree, tmp_path):
    """Builds a dataset of regions in `train`, and phrases in `val` whose pictures are elsewhere; writes its card."""

    def made(description: str = "", category: str | None = None) -> Path:
        train, val = coco_tree(3), coco_tree(2, "val")
        if category is not None:
            train.categories[0]["name"] = category
            train.save()
        reference = {"variants": ["instance"], "images": "reference"}
        sources = {
            "vgd": {"builder": "coco", "task": "vgdseg", "root": str(train.root)},
            "far": {"builder": "coco", "task": "genseg", "root": str(val.root), "options": reference},
        }
        path = tmp_path / "small.yaml"
        values = {
            "name": "small",
            "description": description,
            "sources": sources,
            "prompts": {},
            "shard": {"images": 2},
        }
        path.write_text(json.dumps(values))
        build.run(recipe.load(str(path)), str(tmp_path / "out"), Settings(engine="local"))
        dataset_card.write(str(tmp_path / "out"), about=ABOUT)
        return tmp_path / "out"

    return made


@pytest.fixture
def opened(monkeypatch, caplog):
    """Opens a croissant.json without a network; everything that mlcroissant says is in `caplog`."""

    def refuse(*_):
        raise AssertionError("mlcroissant calls somebody")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    def found(folder: Path) -> mlcroissant.Dataset:
        dataset = mlcroissant.Dataset(str(folder / croissant.FILE))
        issues = dataset.metadata.ctx.issues
        assert not issues.errors, issues.report()
        assert not issues.warnings, issues.report()
        assert not caplog.records
        return dataset

    return found


def in_croissant(row: dict) -> dict:
    """A row of a shard as records of `samples` give it: paths as names, text as bytes."""

    def value(found):
        if isinstance(found, list):
            return [value(one) for one in found]
        return found.encode() if isinstance(found, str) else found

    def flat(struct: dict, base: str, path: str = "") -> dict:
        out = {}
        for key, found in struct.items():
            if isinstance(found, dict):
                out |= flat(found, base, f"{path}{key}_")
            elif key != "prompts" and not (path == "image_" and key == "bytes"):
                out[f"{base}/{path}{key}"] = value(found)
        return out

    record = {}
    for key, found in row.items():
        base = f"samples/{key}"
        if key == "image":
            record["samples/image_path"] = value(found["path"])
        elif isinstance(found, dict):
            record[base] = flat(found, base)
        elif isinstance(found, list):
            record[base] = [flat(one, base) for one in found]
        else:
            record[base] = value(found)
    return record


def test_records_are_the_rows(make, opened):
    out = make()
    dataset = opened(out)
    records = {record["samples/sample_id"].decode(): record for record in dataset.records("samples")}
    samples = list(open_dataset(str(out)).samples())
    assert len(records) == len(samples) == 5
    for sample in samples:
        record = records[sample.sample_id]
        picture = record.pop("samples/image")
        if sample.split == "val":
            assert picture is None
        else:
            assert picture.size == (sample.width, sample.height)
        assert record == in_croissant(to_row(sample))
    assert list(dataset.records("splits")) == [
        {"splits/name": "train", "splits/url": "cr:TrainingSplit", "splits/samples": 3},
        {"splits/name": "val", "splits/url": "cr:ValidationSplit", "splits/samples": 2},
    ]


def test_every_column_is_described_or_known_to_be_missing(make):
    document = json.loads((make() / croissant.FILE).read_text())
    samples = next(one for one in document["recordSet"] if one["@id"] == "samples")
    leaves = [leaf for field in samples["field"] for leaf in field.get("subField", [field])]
    described = {
        ".".join(
            [leaf["source"]["extract"]["column"], *([t["jsonPath"]] if (t := leaf["source"].get("transform")) else [])]
        )
        for leaf in leaves
    }

    def columns(path: str, kind: pa.DataType) -> set[str]:
        if path in NOT_DESCRIBED:
            return set()
        if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            return columns(path, kind.value_type)
        if pa.types.is_struct(kind):
            return {leaf for field in kind for leaf in columns(f"{path}.{field.name}", field.type)}
        return {path}

    assert described == {leaf for field in arrow_schema() for leaf in columns(field.name, field.type)}
    texts = {field["@id"]: field["description"] for field in samples["field"]}
    assert "prompts" in texts["samples/objects"]
    assert len({field["@id"] for field in leaves}) == len(leaves)


def test_files_are_those_of_the_folder(make):
    out = make()
    document = json.loads((out / croissant.FILE).read_text())
    files = [one for one in document["distribution"] if one["@type"] == "cr:FileObject"]
    assert {one["contentUrl"] for one in files} == {
        "manifest.json", *(f"shards/{path.name}" for path in (out / "shards").iterdir())
    }  # fmt: skip
    for one in files:
        data = (out / one["contentUrl"]).read_bytes()
        assert one["sha256"] == hashlib.sha256(data).hexdigest()
        assert one["contentSize"] == f"{len(data)} B"


def test_what_is_said_of_the_dataset(make, opened):
    out = make("Small.")
    metadata = opened(out).metadata
    manifest = open_dataset(str(out)).manifest
    assert metadata.version == f"1.0.0+{manifest['version']}"
    assert metadata.name == "small"
    assert metadata.description.startswith("Small. 5 samples with ")
    assert metadata.license == ["https://creativecommons.org/licenses/by/4.0/"]
    assert (metadata.url, metadata.creators[0].name) == (ABOUT.url, ABOUT.creator)
    assert metadata.date_published.date().isoformat() == ABOUT.published
    limits = metadata.data_limitations
    assert "The pictures of 2 samples are named by their paths and are not in the files." in limits
    assert "https://cocodataset.org/#download" in metadata.data_collection
    assert metadata.cite_as.startswith("@misc{small-")


def test_hostile_text_stays_text(make, opened):
    text = '"}], "@id": "x", <script>alert(1)</script> \\u0000 \u202e \u2028 @context'
    out = make(text, category='"} {"@value": 1}')
    metadata = opened(out).metadata
    assert metadata.description.startswith('"}], "@id": "x", <script>alert(1)</script> \\u0000')
    assert b"</script>" in (out / croissant.FILE).read_bytes()
    assert len(list(opened(out).records("samples"))) == 5


def test_many_shards_are_a_set_only(make, opened, monkeypatch):
    monkeypatch.setattr(croissant, "LISTED_SHARDS", 1)
    out = make()
    document = json.loads((out / croissant.FILE).read_text())
    assert [one["@id"] for one in document["distribution"]] == ["manifest", "shards"]
    assert len(list(opened(out).records("samples"))) == 5


@pytest.mark.parametrize("url", ["javascript:alert(1)", "https://a b", 'https://x">', "terms.txt"])
def test_a_license_without_a_plain_url_is_a_work(url):
    found = croissant._license(croissant.License(name=None, url=url))
    assert found == {"@type": "sc:CreativeWork", "name": url}


def test_a_license_that_nobody_states():
    found = croissant._license(croissant.License())
    assert found == {"@type": "sc:CreativeWork", "name": "not stated by the source"}


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"sdPublisher": 1}', b'{"sdPublisher": {"name": "x"}}', b"[" * 99999]
)
def test_other_files_are_not_ours(data):
    assert not croissant.is_ours(data)
