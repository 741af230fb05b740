"""The viewer on a million rows: time to its first page, filters, memory of the server."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from dataengine import masks
from dataengine.sample import arrow_schema
from dataengine.store.commits import canonical_json, version_of
from dataengine.store.shards import ROW_GROUP_ROWS, shard_schema

KINDS = ("point", "scribble", "box", "mask")
CATEGORIES = 80
OBJECTS = 5  # of a row, on average
WORDS = """a the person dog cat bicycle car street left right red blue small large behind front holding standing near
table chair window tree sky water boat kite ball grass field building sign bench bird horse sheep plate cup which what
where find segment please show every each picture image side corner middle top bottom woman man child""".split()  # noqa: SIM905


def write_dataset(
    out: Path, rows: int, shards: int, seed: int = 0, tasks: Sequence[str] = ("genseg", "vgdseg", "refseg", "chat")
) -> Path:
    """A finished dataset of made rows whose pictures are elsewhere; only its masks, prompts and texts are varied.

    tasks: of its rows, drawn.
    """
    (out / "shards").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    bounds = np.linspace(0, rows, shards + 1).astype(int)
    entries = []
    for number, (start, stop) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        name = f"shards/train-{number:05d}-of-{shards:05d}.parquet"
        _write_shard(out / name, start, stop, rng, tasks)
        data = (out / name).read_bytes()
        entries.append(
            {
                "name": name,
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "logical_hash": "",
                "rows": stop - start,
                "source": "made",
                "split": "train",
                "task_id": f"{number:032x}",
            }
        )
    categories = [{"id": n, "name": f"kind {n}", "text": f"kind {n}", "is_thing": True} for n in range(CATEGORIES)]
    manifest = {
        "format": 1,
        "recipe": {"name": "made"},
        "seed": seed,
        "sources": {"made/train": {"builder": "made", "task": "vgdseg", "categories": categories}},
        "counts": {"samples": rows, "records": {"quarantined": {}}},
        "shards": entries,
        "quarantine": [],
    }
    manifest["version"] = version_of(manifest)
    (out / "manifest.json").write_bytes(canonical_json(manifest))
    return out


def _write_shard(path: Path, start: int, stop: int, rng: np.random.Generator, tasks: Sequence[str]) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, shard_schema(), compression="zstd") as writer:
        for first in range(start, stop, ROW_GROUP_ROWS):
            writer.write_table(_table(first, min(first + ROW_GROUP_ROWS, stop), rng, tasks))


def _table(start: int, stop: int, rng: np.random.Generator, tasks: Sequence[str]):
    """Rows as one table, put together column by column."""
    import pyarrow as pa

    schema = arrow_schema()
    num = stop - start
    counts = rng.integers(1, 2 * OBJECTS, num)
    total = int(counts.sum())
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    task = rng.integers(0, len(tasks), num)
    keys = [f"{n:012d}.jpg" for n in range(start, stop)]
    model = rng.random(total) < 0.3
    rles = _rles()
    chosen = rng.integers(0, len(rles), total)
    kind = np.tile(np.arange(4), total)
    prompts = pa.StructArray.from_arrays(
        _columns(
            schema.field("objects").type.value_type.field("prompts").type.value_type,
            4 * total,
            kind=pa.array(np.array(KINDS, dtype=object)[kind]),
            profile=pa.array(["strict"] * (4 * total)),
            status=pa.array(["ok"] * (4 * total)),
            points=_lists(rng.random(8 * total * 4, dtype=np.float32) * 480, np.full(4 * total, 8)),
            parts=_lists(np.full(4 * total, 4, dtype=np.int32), np.ones(4 * total, dtype=int)),
            inside=pa.array(rng.beta(8, 1, 4 * total).astype(np.float32)),
            other=pa.array(rng.beta(1, 8, 4 * total).astype(np.float32)),
        ),
        fields=list(schema.field("objects").type.value_type.field("prompts").type.value_type),
    )
    lineage_type = schema.field("objects").type.value_type.field("lineage").type
    lineage = pa.StructArray.from_arrays(
        _columns(
            lineage_type,
            total,
            origin=pa.array(np.where(model, "model", "human")),
            labeler=pa.array(np.where(model, "sam", "x"), mask=~model),
            round=pa.array(rng.integers(0, 3, total).astype(np.int16), mask=~model),
            score=pa.array(rng.random(total, dtype=np.float32), mask=~model),
            stability=pa.array(rng.random(total, dtype=np.float32), mask=~model),
        ),
        fields=list(lineage_type),
    )
    object_type = schema.field("objects").type.value_type
    category = rng.integers(0, CATEGORIES, total).astype(np.int32)
    objects = pa.StructArray.from_arrays(
        _columns(
            object_type,
            total,
            rle=pa.array([rles[n][0] for n in chosen.tolist()], pa.binary()),
            bbox=pa.FixedSizeListArray.from_arrays(pa.array(rng.random(4 * total, dtype=np.float32) * 100), 4),
            area=pa.array(np.array([area for _, area in rles])[chosen]),
            category_id=pa.array(category),
            annotation_id=pa.array([str(100 * start + n) for n in range(total)]),
            crowd=pa.array(np.zeros(total, dtype=bool)),
            prompts=pa.ListArray.from_arrays(pa.array(np.arange(0, 4 * total + 1, 4, dtype=np.int32)), prompts),
            lineage=lineage,
        ),
        fields=list(object_type),
    )
    words = np.array(WORDS, dtype=object)
    texts = []
    for row in rng.integers(0, len(WORDS), (num, 24)):
        said = " ".join(words[row].tolist())
        texts += [f"<image>\nPlease segment <p>{said}</p>.", "Sure, it is <p>this</p> <SEG>."]
    turn_type = schema.field("turns").type.value_type
    turns = pa.StructArray.from_arrays(
        [
            pa.array(["user", "assistant"] * num),
            pa.array(texts),
            pa.array([False, True] * num),
        ],
        fields=list(turn_type),
    )
    condition_type = schema.field("conditions").type.value_type
    conditions = pa.StructArray.from_arrays(
        _columns(
            condition_type,
            total,
            kind=pa.array(["phrase"] * total),
            text=pa.array([f"kind {n}" for n in category.tolist()]),
            category_id=pa.array(category),
        ),
        fields=list(condition_type),
    )
    image, provenance = schema.field("image").type, schema.field("provenance").type
    made = {name: pa.array(["made"] * num) for name in ("file", "record", "builder")}
    columns = {
        "sample_id": pa.array([f"made/train/{key}/{tasks[t]}" for key, t in zip(keys, task.tolist(), strict=True)]),
        "task": pa.array(np.array(tasks, dtype=object)[task]),
        "variant": pa.array(["instance"] * num),
        "source": pa.array(["made"] * num),
        "split": pa.array(["train"] * num),
        "image": pa.StructArray.from_arrays(
            [pa.nulls(num, pa.binary()), pa.array([f"/nowhere/{key}" for key in keys])], fields=list(image)
        ),
        "image_key": pa.array(keys),
        "height": pa.array(np.full(num, 480, dtype=np.int32)),
        "width": pa.array(np.full(num, 640, dtype=np.int32)),
        "turns": pa.ListArray.from_arrays(pa.array(np.arange(0, 2 * num + 1, 2, dtype=np.int32)), turns),
        "objects": pa.ListArray.from_arrays(pa.array(offsets), objects),
        "conditions": pa.ListArray.from_arrays(pa.array(offsets), conditions),
        "provenance": pa.StructArray.from_arrays(_columns(provenance, num, **made), fields=list(provenance)),
        "references": _empty(schema.field("references").type, num),
    }
    return pa.Table.from_arrays(_columns(pa.struct(list(schema)), num, **columns), schema=schema)


def _columns(struct, num: int, /, **given):
    """Arrays of all fields of a struct; numbers that are not given are 0, lists empty, all else null."""
    import pyarrow as pa

    found = []
    for field in struct:
        if field.name in given:
            found.append(given[field.name].cast(field.type))
        elif pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            found.append(pa.array(np.zeros(num)).cast(field.type))
        elif pa.types.is_list(field.type):
            found.append(_empty(field.type, num))
        elif pa.types.is_struct(field.type):
            inner = _columns(field.type, num)
            found.append(pa.StructArray.from_arrays(inner, fields=list(field.type)))
        else:
            found.append(pa.nulls(num, field.type))
    return found


def _empty(kind, num: int):
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(np.zeros(num + 1, dtype=np.int32)), pa.array([], kind.value_type)).cast(
        kind
    )


def _lists(values: np.ndarray, counts: np.ndarray):
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _rles(number: int = 64) -> list[tuple[bytes, int]]:
    """Small boxes as masks on 480 x 640 px, with their areas."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(number):
        height, width = rng.integers(4, 200, 2).tolist()
        crop = masks.Crop(np.ones((height, width), dtype=bool), 10, 20)
        found.append((masks.rle_from_crop(crop, 480, 640), height * width))
    return found


FILTERS = (
    "task=vgdseg",
    "category=kind 3",
    "kind=box&origin=model&round=1",
    "area=30000..",
    "inside=..0.5&ambiguous=1",
    "score=0.9..&sort=score&desc=1",
    "sort=words&desc=1",
)
TEXTS = ("frisbee", "RED CHAIR", "dog", "000000999999", "a")
WANTED = {"first": 2.0, "filter": 1.0, "memory": 500.0}


@dataclass(slots=True)
class Server:
    """A running `view`. first_s: from its start to its first rows."""

    process: subprocess.Popen[str]
    url: str
    first_s: float
    peak_mb: float = 0.0

    def get(self, path: str) -> tuple[dict[str, Any], float]:
        """An answer, and the seconds that it took."""
        start = time.perf_counter()
        with urllib.request.urlopen(self.url + urllib.parse.quote(path, safe="/?&=%.")) as answer:
            found = json.load(answer)
        seconds = time.perf_counter() - start
        self.peak_mb = max(self.peak_mb, psutil.Process(self.process.pid).memory_info().rss / 2**20)
        return found, seconds

    def cpu_s(self) -> float:
        used = psutil.Process(self.process.pid).cpu_times()
        return float(used.user + used.system)


@contextmanager
def running(*directories: Path) -> Iterator[Server]:
    """The server as a user starts it."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "pipelines.cli", "view", *map(str, directories), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        server = Server(process, process.stdout.readline().strip().rstrip("/"), 0.0)
        server.get("/api/rows?limit=50")
        server.first_s = time.perf_counter() - start
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)


def measure(directory: Path) -> dict[str, Any]:
    """Seconds and MB of a server from its start on."""
    rng = np.random.default_rng(0)
    with running(directory) as server:
        started = time.perf_counter()
        filling, ready = [], 0.0
        while ready < 1:
            for query in (*FILTERS, *(f"q={text}" for text in TEXTS)):
                answer, seconds = server.get(f"/api/rows?limit=50&{query}")
                filling.append((seconds, query))
            ready = server.get("/api/datasets")[0]["datasets"][0]["ready"]
            time.sleep(4)
        fill_s, cpu_s = time.perf_counter() - started, server.cpu_s()
        total = server.get("/api/rows?limit=1")[0]["total"]
        after = []
        for query in (*FILTERS, *(f"q={text}" for text in TEXTS), *(f"q=search {n}" for n in range(5))):
            answer, seconds = server.get(f"/api/rows?limit=50&{query}")
            after.append((seconds, f"{query}: {answer['total']:,} rows, {answer['ready']:.0%}"))
        pages = [server.get(f"/api/rows?limit=50&offset={n}")[1] for n in rng.integers(0, total, 200).tolist()]
        cards = [server.get(f"/api/row?n={n}")[1] for n in rng.integers(0, total, 500).tolist()]
        return {
            "first_s": server.first_s,
            "fill_s": fill_s,
            "fill_cpu_s": cpu_s,
            "filling": sorted(filling)[-3:],
            "after": sorted(after)[::-1],
            "page_s": float(np.median(pages)),
            "card_s": float(np.median(cards)),
            "peak_mb": server.peak_mb,
        }


def rows(num_rows: int = 1_000_000) -> list[tuple[str, str, str]]:
    """Lines of the table of figures."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(write_dataset(Path(folder) / "made", num_rows, max(num_rows // 5000, 1)))
    what = f"view of {num_rows:,} rows"
    return [
        (f"{what}: start to first rows", f"{found['first_s']:.2f} s", f"<= {WANTED['first']:g} s"),
        (f"{what}: slowest filter while it is catalogued", f"{found['filling'][-1][0]:.2f} s", "<= 1 s"),
        (f"{what}: slowest filter afterwards", f"{found['after'][0][0]:.2f} s", f"<= {WANTED['filter']:g} s"),
        (f"{what}: catalogued after", f"{found['fill_s']:.0f} s", ""),
        (f"{what}: memory of the server", f"{found['peak_mb']:.0f} MB", f"<= {WANTED['memory']:g} MB"),
    ]


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1])), indent=1))
