"""Flat columns against the same rows walked through in Python."""

import numpy as np
import pyarrow as pa
import pytest

from dataengine.store import columns

PROMPT = pa.struct([("kind", pa.string()), ("inside", pa.float32())])
LINEAGE = pa.struct([("origin", pa.string()), ("score", pa.float32()), ("round", pa.int16())])
OBJECT = pa.struct([("area", pa.int64()), ("lineage", LINEAGE), ("prompts", pa.list_(PROMPT))])
SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("image", pa.struct([("path", pa.string())])),
        ("objects", pa.list_(OBJECT)),
    ]
)


def thing(area, *prompts, score=None, rounds=None):
    made = [{"kind": kind, "inside": inside} for kind, inside in prompts]
    return {"area": area, "lineage": {"origin": "human", "score": score, "round": rounds}, "prompts": made}


ROWS = [
    {"task": "vgdseg", "image": {"path": "a.jpg"}, "objects": [thing(7, ("box", 0.5), ("point", 1.0)), thing(3)]},
    {"task": "chat", "image": None, "objects": None},
    {"task": "chat", "image": {"path": None}, "objects": []},
    {"task": "genseg", "image": {"path": "b.jpg"}, "objects": [thing(9, ("point", 0.25), score=0.5, rounds=2)]},
    {"task": "vgdseg", "image": {"path": "c.jpg"}, "objects": [{**thing(5), "prompts": None}, thing(1, (None, None))]},
]


def whole():
    return pa.Table.from_pylist(ROWS, schema=SCHEMA)


def chunked():
    return pa.concat_tables([whole().slice(0, 1), whole().slice(1, 3), whole().slice(4)])


TABLES = {
    "one chunk": whole(),
    "several chunks": chunked(),
    "a slice": chunked().slice(1, 3),
    "a slice of the end": whole().slice(3),
    "rows without objects": whole().slice(1, 2),
    "no rows": whole().slice(2, 0),
    "no chunks": pa.Table.from_batches([], schema=SCHEMA),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_every_element_and_its_owners(table):
    rows = columns.rows(table)
    objects = rows.each("objects")
    prompts = objects.each("prompts")
    plain = table.to_pylist()
    things = [(number, one) for number, row in enumerate(plain) for one in row["objects"] or []]
    made = [(row, k, p) for k, (row, one) in enumerate(things) for p in one["prompts"] or []]

    assert (len(rows), len(objects), len(prompts)) == (len(plain), len(things), len(made))
    assert objects.numbers("area").tolist() == [one["area"] for _, one in things]
    assert objects.row.tolist() == objects.parent.tolist() == [row for row, _ in things]
    assert objects.counts.tolist() == objects.num_per_row().tolist() == [len(r["objects"] or []) for r in plain]
    assert prompts.row.tolist() == [row for row, _, _ in made]
    assert prompts.parent.tolist() == [k for _, k, _ in made]
    assert prompts.counts.tolist() == [len(one["prompts"] or []) for _, one in things]
    assert prompts.num_per_row().tolist() == [sum(row == n for row, _, _ in made) for n in range(len(plain))]
    assert prompts.texts("kind").to_list() == [p["kind"] for _, _, p in made]
    assert rows.texts("task").to_list() == [row["task"] for row in plain]
    assert rows.array("image.path").to_pylist() == [(row["image"] or {}).get("path") for row in plain]
    assert rows.valid("image").tolist() == [row["image"] is not None for row in plain]
    smallest = [min((one["area"] for row, one in things if row == n), default=-1) for n in range(len(plain))]
    assert objects.per_row(objects.numbers("area"), np.minimum, -1).tolist() == smallest
    total = [sum(one["area"] for row, one in things if row == n) for n in range(len(plain))]
    assert objects.per_row(objects.numbers("area"), np.add, 0).tolist() == total


def test_which_kinds_a_row_has():
    prompts = columns.rows(whole()).each("objects").each("prompts")
    kinds = prompts.texts("kind")
    bits = np.where(kinds.codes >= 0, 1 << kinds.codes, 0)
    assert kinds.names == ("box", "point")
    assert prompts.per_row(bits, np.bitwise_or, 0).tolist() == [3, 0, 0, 2, 0]
    assert prompts.per_row(prompts.numbers("inside", 0), np.minimum, 2).tolist() == [0.5, 2, 2, 0.25, 0]


def test_nulls_among_numbers():
    objects = columns.rows(whole()).each("objects")
    assert objects.numbers("lineage.round", -1).tolist() == [-1, -1, 2, -1, -1]
    assert objects.numbers("lineage.round", -1).dtype == np.int16
    np.testing.assert_array_equal(objects.numbers("lineage.score"), [np.nan, np.nan, 0.5, np.nan, np.nan])
    assert objects.texts("lineage.origin").names == ("human",)


def test_fields_combined():
    prompts = columns.rows(whole()).each("objects").each("prompts")
    places, keys = columns.combine([prompts.texts("kind"), prompts.texts("kind")])
    assert [keys[place] for place in places] == [
        ("box", "box"),
        ("point", "point"),
        ("point", "point"),
        (None, None),
    ]
    assert len(keys) == 3


def test_many_combinations():
    many = [columns.Texts(codes=np.arange(999, -1, -1, dtype=np.int32), names=tuple(map(str, range(1000))))] * 3
    places, keys = columns.combine(many)
    assert [keys[place] for place in places] == [(str(n),) * 3 for n in range(999, -1, -1)]
    assert columns.combine([columns.Texts(codes=np.zeros(0, np.int32), names=())])[1] == []


def test_leaves_are_those_of_parquet():
    assert columns.leaves("height", "image.path", "objects.area", "objects.prompts.kind", "objects.bbox") == [
        "height",
        "image.path",
        "objects.list.element.area",
        "objects.list.element.prompts.list.element.kind",
        "objects.list.element.bbox.list.element",
    ]
    with pytest.raises(KeyError):
        columns.leaves("objects.nothing")


def test_only_leaves_that_are_named_are_there():
    rows = columns.rows(whole().select(["task"]))
    with pytest.raises(pa.ArrowInvalid, match="objects"):
        rows.each("objects")
