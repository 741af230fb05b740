"""Small datasets to look at."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from starlette.testclient import TestClient

from dataengine import masks
from dataengine.records import Bad
from dataengine.sample import (
    Condition,
    Image,
    License,
    Lineage,
    Object,
    Prompt,
    Provenance,
    Reference,
    Sample,
    Turn,
)
from dataengine.store import quarantine, shards
from dataengine.store.commits import canonical_json, version_of
from dataengine.store.dataset import open_dataset
from dataengine.store.shards import ShardWriter
from dataengine.view.server import Place, make_app


def made_sample(n: int, seed: int = 0) -> Sample:
    """A sample of any kind, with all that rows may hold; n: its number."""
    rng = np.random.default_rng([seed, n])
    height, width = 24, 32
    source, task = ("alpha", "vgdseg") if n % 3 else ("beta", "genseg")
    objects = tuple(_made_object(rng, n, k, height, width) for k in range(int(rng.integers(0, 4))))
    text = " ".join(rng.choice(WORDS, size=int(rng.integers(1, 9))).tolist())
    key = f"{n:06d}.jpg"
    return Sample(
        sample_id=f"{source}/train/{key}/{task}",
        task=task,
        variant=None if task == "vgdseg" else ("panoptic", "instance")[n % 2],
        source=source,
        split="train",
        image=Image(bytes=jpeg(height, width, seed=n), path=key),
        image_key=key,
        height=height,
        width=width,
        turns=(
            Turn(role="user", text=f"<image>\nFind <p>{text}</p>  please.", supervised=False),
            Turn(role="assistant", text="Здесь: <SEG>.", supervised=True),
        ),
        objects=objects,
        conditions=tuple(
            Condition(kind="phrase", text=f"Thing {n}-{k}", category_id=thing.category_id, objects=(k,))
            for k, thing in enumerate(objects)
        ),
        references=tuple(_made_reference(rng, n) for _ in range(int(n % 5 == 1))),
        license=License(name=("CC BY 4.0", None)[n % 2], url=(None, "https://example.org/terms")[n % 4 // 2]),
        provenance=Provenance(file="made.json", record=str(n), builder="made", version=1, seed=seed),
    )


WORDS = ["dog", "cat", "Zebra", "ёлка", "100%", "a.b", "snow man", "(left)"]


def _made_object(rng: np.random.Generator, n: int, k: int, height: int, width: int) -> Object:
    mask = np.zeros((height, width), dtype=bool)
    mask[: int(rng.integers(1, height)), : int(rng.integers(1, width))] = True
    human = rng.random() < 0.5
    lineage = Lineage(origin="human")
    if not human:
        lineage = Lineage(
            origin="model",
            labeler=("sam", "mine")[int(rng.integers(2))],
            round=int(rng.integers(3)),
            score=float(np.float32(rng.random())),
            stability=None if rng.random() < 0.3 else float(np.float32(rng.random())),
        )
    return Object(
        rle=masks.encode(mask),
        bbox=(0.0, 0.0, 1.0, 1.0),
        area=int(mask.sum()),
        category_id=int(rng.integers(1, 5)),
        annotation_id=f"{n}-{k}",
        prompts=tuple(_made_prompt(rng) for _ in range(int(rng.integers(0, 3)))),
        lineage=lineage,
    )


def _made_prompt(rng: np.random.Generator) -> Prompt:
    return Prompt(
        kind=("point", "scribble", "box", "mask")[int(rng.integers(4))],
        profile="strict",
        version=1,
        status=("ok", "fallback", "none")[int(rng.integers(3))],
        inside=float(np.float32(rng.random())),
        other=float(np.float32(rng.random())),
    )


def _made_reference(rng: np.random.Generator, n: int) -> Reference:
    return Reference(
        image=Image(bytes=jpeg(10, 12, seed=1000 + n), path="other.jpg"),
        image_key="other.jpg",
        annotation_id="r",
        category_id=1,
        height=10,
        width=12,
        rle=masks.encode(np.ones((10, 12), dtype=bool)),
        prompts=(_made_prompt(rng),),
    )


CATEGORIES = [{"id": n, "name": name, "text": name, "is_thing": True} for n, name in enumerate("abc", 1)]


def write(out: Path, samples: Sequence[Sample], bad: Sequence[Bad] = (), rows_a_shard: int = 10) -> Path:
    """A finished dataset, its shards in row groups of four."""
    (out / "shards").mkdir(parents=True)
    parts: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        parts.setdefault((sample.source, sample.split), []).append(sample)
    entries = []
    for (source, split), mine in sorted(parts.items()):
        for start in range(0, len(mine), rows_a_shard):
            name = f"shards/{source}-{split}-{start:05d}.parquet"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(shards, "ROW_GROUP_ROWS", 4)
                writer = ShardWriter(out / name)
                for sample in mine[start : start + rows_a_shard]:
                    writer.write(sample, checked=True)
                writer.close()
            entries.append({"name": name, "rows": writer.rows, "source": source, "split": split})
    stored = []
    if bad:
        (out / "quarantine").mkdir()
        quarantine.write(out / "quarantine" / "q.parquet", "alpha", "train", bad)
        stored.append({"name": "quarantine/q.parquet"})
    manifest = {
        "recipe": {"name": "made"},
        "sources": {f"{source}/{split}": {"categories": CATEGORIES} for source, split in parts},
        "counts": {"samples": len(samples), "records": {"quarantined": {"images": {"broken": len(bad)}}}},
        "shards": entries,
        "quarantine": stored,
    }
    manifest["version"] = version_of(manifest)
    (out / "manifest.json").write_bytes(canonical_json(manifest))
    return out


@pytest.fixture
def write_dataset(tmp_path):
    """Writes samples as a finished dataset: `write_dataset(samples, bad=(), rows_a_shard=10)` gives its folder."""
    numbers = itertools.count()

    def make(samples: Sequence[Sample], **options) -> Path:
        return write(tmp_path / f"dataset{next(numbers)}", samples, **options)

    return make


@pytest.fixture(scope="session")
def made_samples() -> list[Sample]:
    """120 samples in a dataset's order: sources one after the other."""
    return sorted((made_sample(n) for n in range(120)), key=lambda sample: sample.source)


@pytest.fixture(scope="session")
def made_dataset(made_samples, tmp_path_factory) -> Path:
    """A dataset of them in 12 shards, which no test may change."""
    return write(tmp_path_factory.mktemp("made") / "dataset", made_samples)


@pytest.fixture
def make_sample():
    """The function `made_sample`."""
    return made_sample


def jpeg(height: int, width: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def client():
    """Opens datasets in a viewer: `client(folder, …)` gives a client of it once all is catalogued and compared."""
    with ExitStack() as stack:

        def make(*folders: Path, place: Place | None = None) -> TestClient:
            app = make_app([open_dataset(str(folder)) for folder in folders], place)
            opened = stack.enter_context(TestClient(app, base_url="http://127.0.0.1:8765"))
            app.state.viewer.work.wait()
            return opened

        yield make


def square(x: int, y: int, side: int, annotation_id: str, *, height: int = 48, width: int = 64, **fields) -> Object:
    """An object whose mask is a square."""
    bitmap = np.zeros((height, width), dtype=bool)
    bitmap[y : y + side, x : x + side] = True
    rle = masks.encode(bitmap)
    area, box = masks.measure(rle, height, width)
    return Object(rle=rle, bbox=box, area=area, annotation_id=annotation_id, **{"category_id": 1, **fields})


def phrases(*names: str) -> tuple[tuple[Turn, ...], list[tuple[int, int]]]:
    """A question for some phrases, its answer, and where the phrases stand."""
    text, places = "<image>\nSegment ", []
    for name in names:
        span = f"<p>{name}</p>"
        places.append((len(text), len(text) + len(span)))
        text += span + ", "
    answer = Turn(role="assistant", text="Here: <SEG>.", supervised=True)
    return (Turn(role="user", text=text, supervised=False), answer), places


def toy_sample(number: int, jpeg: bytes, **fields) -> Sample:
    """A sample of 48 x 64 px (height x width) that asks for `dog 🐕` and `cat`, each a square; `hat` is absent."""
    turns, places = phrases("dog 🐕", "cat", "hat")
    values = {
        "sample_id": f"toy/train/toy/{number:06d}/refseg",
        "task": "refseg",
        "source": "toy",
        "split": "train",
        "image": Image(bytes=jpeg, path=f"{number}.jpg"),
        "image_key": f"toy/{number:06d}",
        "height": 48,
        "width": 64,
        "turns": turns,
        "objects": (square(4, 4, 16, f"{number}-a"), square(30, 20, 20, f"{number}-b", category_id=2)),
        "conditions": tuple(
            Condition(kind="phrase", text=text, objects=things, seg=0, turn=0, start=start, end=end)
            for text, things, (start, end) in zip(("dog 🐕", "cat", "hat"), ((0,), (1,), ()), places, strict=True)
        ),
        "provenance": Provenance(file="toy.json", record=str(number), builder="toy", version=1, seed=0),
    }
    return Sample(**{**values, **fields})


@pytest.fixture
def toy(make_jpeg):
    """Makes samples: `toy(number, **fields)`, see `toy_sample`."""
    return lambda number, **fields: toy_sample(number, make_jpeg(48, 64, seed=number), **fields)
