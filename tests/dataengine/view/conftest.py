"""Small datasets to look at."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dataengine import masks
from dataengine.records import Account, Bad
from dataengine.sample import Condition, Image, Object, Provenance, Sample, Turn
from dataengine.store import commits, quarantine
from dataengine.store.shards import ShardWriter


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


def make_sample(number: int, jpeg: bytes, **fields) -> Sample:
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
    """Makes samples: `toy(number, **fields)`, see `make_sample`."""
    return lambda number, **fields: make_sample(number, make_jpeg(48, 64, seed=number), **fields)


@pytest.fixture
def store(tmp_path):
    """Writes a dataset that can be opened: `store(name, samples, bad=(), rows_a_shard=…)` gives its folder's path."""

    def write(name: str, samples: list[Sample], bad: tuple[Bad, ...] = (), rows_a_shard: int = 1000) -> str:
        folder = tmp_path / name
        (folder / "shards").mkdir(parents=True)
        shards, counts = [], Counter(sample.task for sample in samples)
        for first in range(0, len(samples), rows_a_shard):
            part = samples[first : first + rows_a_shard]
            file = f"shards/{len(shards):05d}.parquet"
            writer = ShardWriter(folder / file)
            for sample in part:
                writer.write(sample, checked=True)
            digest, source, split = writer.close(), part[0].source, part[0].split
            size = (folder / file).stat().st_size
            entry = {"name": file, "bytes": size, "sha256": "", "rows": len(part), "source": source, "split": split}
            shards.append({**entry, "logical_hash": digest, "task_id": str(len(shards))})
        account = Account(read=Counter(records=len(samples) + len(bad)), built=Counter(records=len(samples)))
        kept = []
        if bad:
            account.quarantine(bad)
            (folder / quarantine.FOLDER).mkdir()
            kept = [{"name": f"{quarantine.FOLDER}/0.parquet", "bytes": 1, "sha256": "", "task_id": "0"}]
            quarantine.write(folder / kept[0]["name"], "toy", "train", bad)
        categories = [{"id": n, "name": text, "text": text, "is_thing": True} for n, text in ((1, "dog"), (2, "cat"))]
        manifest = {
            "recipe": {"name": name, "description": ""},
            "seed": 0,
            "format": 1,
            "plan": "",
            "limit": None,
            "generator": {"version": "0", "prompts": "published"},
            "sources": {"toy/train": {"builder": "toy", "task": "refseg", "categories": categories}},
            "forbidden": {"roles": {}},
            "counts": {
                "samples": len(samples),
                "objects": sum(len(sample.objects) for sample in samples),
                "tasks": dict(counts),
                "licenses": {"not stated": len(samples)},
                "prompts": {},
                "records": account.as_dict(),
                "by_source": {"toy": {"train": account.as_dict()}},
            },
            "shards": shards,
            "quarantine": kept,
        }
        manifest["version"] = commits.version_of(manifest)
        (folder / commits.MANIFEST).write_bytes(commits.canonical_json(manifest))
        return str(folder)

    return write
