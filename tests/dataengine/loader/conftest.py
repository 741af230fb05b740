"""Small datasets to read batches from: several sources, tasks, shards and row groups."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dataengine import conversation, masks
from dataengine.keyed import keyed
from dataengine.loader import scratch
from dataengine.sample import Condition, Image, Object, Prompt, Provenance, Sample, Turn
from dataengine.store import shards
from dataengine.store.commits import canonical_json, version_of
from dataengine.store.shards import ShardWriter

HEIGHT, WIDTH = 24, 32
CATEGORIES = [{"id": c, "name": f"kind {c}", "text": f"kind {c}"} for c in range(1, 7)]


@pytest.fixture(autouse=True)
def scratch_folder(tmp_path, monkeypatch) -> Path:
    """Where row groups are unpacked to."""
    folder = tmp_path / "scratch"
    monkeypatch.setattr(scratch, "default_folder", lambda: folder)
    return folder


@pytest.fixture
def write_dataset(tmp_path, monkeypatch):
    """Writes finished datasets: `write_dataset("name", {"SOURCE/SPLIT": [samples of a shard, …]})` gives the folder.

    group: rows of a row group. builder, options: of all sources.
    """

    def write(
        name: str,
        sources: dict[str, Sequence[Sequence[Sample]]],
        group: int = 4,
        builder: str = "coco",
        options: dict[str, bool] | None = None,
    ) -> Path:
        monkeypatch.setattr(shards, "ROW_GROUP_ROWS", group)
        out = tmp_path / name
        (out / "shards").mkdir(parents=True)
        entries, facts = [], {}
        for key, parts in sources.items():
            source, _, split = key.rpartition("/")
            task = next((s.task for part in parts for s in part), "chat")
            facts[key] = {"builder": builder, "options": options or {}, "task": task, "categories": CATEGORIES}
            for number, part in enumerate(parts):
                path = out / "shards" / f"{source}-{split}-{number}.parquet"
                writer = ShardWriter(path)
                for sample in part:
                    writer.write(sample, checked=sample.task == "chat")
                writer.close()
                entries.append({"name": f"shards/{path.name}", "rows": len(part), "source": source, "split": split})
        save_manifest(out, {"sources": facts, "shards": entries})
        return out

    return write


def save_manifest(out: Path, manifest: dict) -> None:
    """Write a manifest that describes the shards as they are now."""
    for entry in manifest["shards"]:
        data = (out / entry["name"]).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.pop("version", None)
    manifest["version"] = version_of(manifest)
    (out / "manifest.json").write_bytes(canonical_json(manifest))


@pytest.fixture
def vgd(make_jpeg):
    """Samples of `vgdseg`: `vgd("source", 7)`; up to three objects of six categories, each with all kinds of prompt."""
    return lambda source, number: [_vgd(source, n, make_jpeg(HEIGHT, WIDTH, seed=n)) for n in range(number)]


@pytest.fixture
def genseg(make_jpeg):
    """Samples of `genseg`: the categories that the picture has, and one that it lacks."""

    def make(source: str, number: int) -> list[Sample]:
        return [_genseg(source, n, make_jpeg(HEIGHT, WIDTH, seed=100 + n)) for n in range(number)]

    return make


def chat(source: str, n: int, image: Image | None = None) -> Sample:
    """A sample of `chat`, of text alone where there is no picture."""
    mark = "<image>\n" if image is not None else ""
    return Sample(
        sample_id=f"{source}/train/{n}/chat",
        task="chat",
        source=source,
        split="train",
        image=image,
        image_key=f"{source}/{n}",
        height=HEIGHT if image is not None else 0,
        width=WIDTH if image is not None else 0,
        turns=(
            Turn(role="user", text=f"{mark}Say {'ё' * n}.", supervised=False),
            Turn(role="assistant", text="Ё" * n, supervised=True),
        ),
        provenance=Provenance(file="a.json", record=str(n), builder="llava", version=1, seed=0),
    )


def _vgd(source: str, n: int, picture: bytes) -> Sample:
    objects = tuple(_object(n, k) for k in range(1 + n % 3))
    present = dict.fromkeys(thing.category_id for thing in objects)
    conditions = []
    for category in present:
        own = tuple(i for i, thing in enumerate(objects) if thing.category_id == category)
        region = Condition(kind="region", text=f"kind {category}", category_id=category, objects=own, exemplar=own[0])
        conditions.append(region)
    return _rendered(source, n, "vgdseg", picture, objects, conditions)


def _genseg(source: str, n: int, picture: bytes) -> Sample:
    objects = tuple(_object(n, k) for k in range(1 + n % 3))
    present = sorted({thing.category_id for thing in objects})
    lacking = next(c for c in range(1, 7) if c not in present)
    conditions = [
        Condition(
            kind="phrase",
            text=f"kind {category}",
            category_id=category,
            objects=tuple(i for i, thing in enumerate(objects) if thing.category_id == category),
        )
        for category in (*present, lacking)
    ]
    return _rendered(source, n, "genseg", picture, objects, conditions)


def _rendered(source, n, task, picture, objects, conditions) -> Sample:
    sample = Sample(
        sample_id=f"{source}/train/{n}/{task}",
        task=task,
        variant="instance" if task == "genseg" else None,
        source=source,
        split="train",
        image=Image(bytes=picture, path=f"{n}.jpg"),
        image_key=f"{source}/{n}",
        height=HEIGHT,
        width=WIDTH,
        objects=objects,
        conditions=tuple(conditions),
        provenance=Provenance(file="a.json", record=str(n), builder="coco", version=1, seed=0),
    )
    return conversation.render(sample, keyed(0, sample.sample_id, "conversation"))


def _object(n: int, k: int) -> Object:
    """An 8 x 8 square; the first and third of a picture are of one category."""
    x, y = 1 + 10 * k, 2 + n % 12
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + 8, x : x + 8] = True
    prompts = (
        _prompt("point", (x + 3.5, y + 3.5), (1,), 2.0),
        _prompt("scribble", (x + 2.5, y + 2.5, x + 3.5, y + 2.5, x + 4.5, y + 2.5), (3,), 1.0),
        _prompt("box", (float(x), float(y), x + 8.0, y + 8.0), (2,), 0.0),
        _prompt("mask", (), (), 0.0, masks.encode(mask)),
    )
    return Object(
        rle=masks.encode(mask),
        bbox=(float(x), float(y), 8.0, 8.0),
        area=64,
        category_id=1 + (n + k % 2) % 6,
        annotation_id=f"{n}-{k}",
        prompts=prompts,
    )


def _prompt(kind, points, parts, radius, rle=None) -> Prompt:
    return Prompt(
        kind=kind,
        profile="strict",
        version=1,
        status="ok",
        points=points,
        parts=parts,
        radius=radius,
        rle=rle,
        inside=1.0,
    )
