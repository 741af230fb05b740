"""The viewer on a million rows: time to its first page, filters, memory of the server."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from dataengine import masks
from dataengine.sample import arrow_schema
from dataengine.store.commits import canonical_json, version_of
from dataengine.store.shards import ROW_GROUP_ROWS, shard_schema

TASKS = ("genseg", "vgdseg", "refseg", "chat")
KINDS = ("point", "scribble", "box", "mask")
CATEGORIES = 80
OBJECTS = 5  # of a row, on average
WORDS = ["the", "a", "person", "dog", "cat", "bicycle", "car", "street", "left", "right", "red", "blue", "small", "large", "behind", "front", "holding", "standing", "sitting", "near", "table", "chair", "window", "tree", "sky", "water", "boat", "kite", "ball", "grass", "field", "building", "sign", "bench", "bird", "horse", "sheep", "plate", "cup", "which", "what", "where", "find", "segment", "please", "show", "every", "each", "picture", "image", "side", "corner", "middle", "top", "bottom", "woman", "man", "child"]


def write_dataset(out: Path, rows: int, shards: int, seed: int = 0) -> Path:
    """A finished dataset of made rows whose pictures are elsewhere; only its masks, prompts and texts are varied."""
    (out / "shards").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    bounds = np.linspace(0, rows, shards + 1).astype(int)
    entries = []
    for number, (start, stop) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        name = f"shards/train-{number:05d}-of-{shards:05d}.parquet"
        _write_shard(out / name, start, stop, rng)
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


def _write_shard(path: Path, start: int, stop: int, rng: np.random.Generator) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, shard_schema(), compression="zstd") as writer:
        for first in range(start, stop, ROW_GROUP_ROWS):
            writer.write_table(_table(first, min(first + ROW_GROUP_ROWS, stop), rng))


def _table(start: int, stop: int, rng: np.random.Generator):
    """Rows as one table, put together column by column."""
    import pyarrow as pa

    schema = arrow_schema()
    num = stop - start
    counts = rng.integers(1, 2 * OBJECTS, num)
    total = int(counts.sum())
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    task = rng.integers(0, len(TASKS), num)
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
    image = schema.field("image").type
    columns = {
        "sample_id": pa.array([f"made/train/{key}/{TASKS[t]}" for key, t in zip(keys, task.tolist(), strict=True)]),
        "task": pa.array(np.array(TASKS, dtype=object)[task]),
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
