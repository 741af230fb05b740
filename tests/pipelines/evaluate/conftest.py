"""What tests of scores need: datasets of samples written on the spot, and predictions about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataengine import masks
from dataengine.sample import Condition, Object, Provenance, Sample, arrow_schema, to_row
from dataengine.store import commits
from dataengine.store.files import Folder
from pipelines.evaluate.evaluator import evaluate
from pipelines.evaluate.scorers import Rules

HEIGHT, WIDTH = 20, 30
THINGS = {1: True, 2: True, 7: False, 9: False}  # category ids


class Bench:
    """A dataset under construction, and its scores. Pictures are 30 x 20 px."""

    size = (HEIGHT, WIDTH)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.samples: list[Sample] = []

    @staticmethod
    def box(x0: int, y0: int, x1: int, y1: int) -> bytes:
        """RLE of a rectangle, without its last column and row."""
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[y0:y1, x0:x1] = True
        return masks.encode(mask)

    @staticmethod
    def rle(code: bytes) -> dict[str, Any]:
        """A mask as predictions hold it."""
        return {"size": [HEIGHT, WIDTH], "counts": code.decode()}

    @staticmethod
    def thing(code: bytes, category: int = 1, **more: Any) -> Object:
        area, bbox = masks.measure(code, HEIGHT, WIDTH)
        box = tuple(map(float, bbox))
        return Object(rle=code, bbox=box, area=area, category_id=category, annotation_id="1", **more)

    def add(self, task: str, objects: Sequence[Object], wanted: Sequence[Any], **more: Any) -> str:
        """A sample. wanted: a condition each, or the indices of its objects. Gives the sample's id."""
        conditions = tuple(
            one if isinstance(one, Condition) else Condition(kind="phrase", text="x", objects=tuple(one))
            for one in wanted
        )
        number = len(self.samples)
        values = {
            "sample_id": f"src/val/coco/{number:012}/{task}",
            "source": "src",
            "split": "val",
            "image": None,
            "image_key": f"coco/{number:012}",
            "provenance": Provenance(file="f", record="r", builder="b", version=1, seed=0),
            **more,
        }
        sample = Sample(**values, task=task, height=HEIGHT, width=WIDTH, objects=tuple(objects), conditions=conditions)
        self.samples.append(sample)
        return sample.sample_id

    def generic(
        self, variant: str, objects: Sequence[Object], asked: Sequence[int] = tuple(THINGS), **more: Any
    ) -> str:
        """A genseg sample that asks for these categories."""
        conditions = [
            Condition(
                kind="phrase",
                text=f"category {category}",
                category_id=category,
                objects=tuple(n for n, o in enumerate(objects) if o.category_id == category and not o.crowd),
            )
            for category in asked
        ]
        return self.add("genseg", objects, conditions, variant=variant, **more)

    def save(self) -> str:
        """Write the dataset anew; gives its path."""
        place = self.folder / f"bench{len(self.samples)}"
        if place.exists():
            return str(place)
        (place / "shards").mkdir(parents=True)
        table = [{"id": c, "name": str(c), "text": str(c), "is_thing": thing} for c, thing in THINGS.items()]
        keys = {(s.source, s.split): s.task for s in self.samples}
        shards = []
        for number, (source, split) in enumerate(keys):
            name = f"shards/{number}.parquet"
            rows = [to_row(s) for s in self.samples if (s.source, s.split) == (source, split)]
            pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema()), place / name)
            shards.append({"name": name, "source": source, "split": split})
        tasks = {task: sum(s.task == task for s in self.samples) for task in sorted(set(keys.values()))}
        manifest: dict[str, Any] = {
            "recipe": {"name": "bench"},
            "counts": {"samples": len(self.samples), "tasks": tasks},
            "sources": {f"{s}/{p}": {"task": task, "categories": table} for (s, p), task in keys.items()},
            "shards": shards,
        }
        manifest["version"] = commits.version_of(manifest)
        Folder(str(place)).write_new(commits.MANIFEST, commits.canonical_json(manifest))
        return str(place)

    def score(self, records: Sequence[Any], *, exclude: bool = False, **rules: Any) -> dict[str, Any]:
        """The result for a file of these predictions, which lies beside the dataset."""
        file = self.folder / "predictions.json"
        file.write_text(json.dumps(list(records)))
        task = self.samples[0].task
        return evaluate(self.save(), task, str(file), Rules(**rules), exclude_faults=exclude)


@pytest.fixture
def bench(tmp_path) -> Bench:
    """An empty dataset to be filled."""
    return Bench(tmp_path)
