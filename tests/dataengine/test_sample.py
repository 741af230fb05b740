"""Schemas, rows and invariants of a sample."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from dataengine import masks
from dataengine import sample as values
from dataengine.invariants import InvariantError, check

MASK = np.zeros((10, 12), bool)
MASK[2:5, 3:9] = True
RLE = masks.encode(MASK)
POINT = values.Prompt(kind="point", profile="strict", version=1, status="ok", points=(4.5, 3.5), parts=(1,))
THING = values.Object(rle=RLE, bbox=(3, 2, 6, 3), area=18, category_id=7, annotation_id="70", prompts=(POINT,))
QUESTION = "<image>\nSegment <p><region></p>, <p>cat</p>."
GOOD = values.Sample(
    sample_id="s/1",
    task="vgdseg",
    source="s",
    split="train",
    image=values.Image(bytes=b"x", path="a.jpg"),
    image_key="s/1",
    height=10,
    width=12,
    turns=(
        values.Turn(role="user", text=QUESTION, supervised=False),
        values.Turn(role="assistant", text="Sure, <SEG>.", supervised=True),
    ),
    objects=(THING, replace(THING, annotation_id="71", crowd=True, prompts=())),
    conditions=(
        values.Condition(
            kind="region", text="dog", category_id=7, objects=(0,), exemplar=0, seg=0, turn=0, start=16, end=31
        ),
        values.Condition(kind="phrase", text="cat", seg=0, turn=0, start=33, end=43),
    ),
    provenance=values.Provenance(file="a.json", record="1", builder="b", version=1, seed=0),
)
FIRST, SECOND = GOOD.conditions


def with_first(**changes):
    return {"conditions": (replace(FIRST, **changes), SECOND)}


def with_object(**changes):
    return {"objects": (replace(THING, **changes), GOOD.objects[1])}


def with_texts(*texts):
    return {"turns": tuple(replace(turn, text=text) for turn, text in zip(GOOD.turns, texts, strict=True))}


def test_a_good_sample_passes():
    check(GOOD)


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        pytest.param("task", {"task": "paint"}, id="unknown task"),
        pytest.param("span", with_first(start=15), id="span is shifted"),
        pytest.param("span", {"conditions": (SECOND, FIRST)}, id="spans out of order"),
        pytest.param("span", {"conditions": (FIRST,)}, id="a span without condition"),
        pytest.param("span", with_texts("<p>", "<SEG>"), id="span never closed"),
        pytest.param("region_count", with_texts(QUESTION + "<region>", "<SEG>"), id="stray region"),
        pytest.param("region_span", {"conditions": (replace(FIRST, kind="phrase", exemplar=-1),
                                                   replace(SECOND, kind="region", exemplar=0))}, id="kinds swapped"),
        pytest.param("region_prompt", with_first(exemplar=-1), id="region shows nothing"),
        pytest.param("region_prompt", with_first(reference=0), id="region shows two things"),
        pytest.param("region_prompt", with_first(exemplar=1), id="exemplar without prompt"),
        pytest.param("region_prompt", with_object(prompts=(replace(POINT, status="none"),)), id="prompt is none"),
        pytest.param("region_prompt", with_first(exemplar=9), id="exemplar does not exist"),
        pytest.param("seg", with_first(seg=1), id="seg without marker"),
        pytest.param("seg", with_texts(QUESTION, "<SEG><SEG>"), id="marker without condition"),
        pytest.param("object_index", with_first(objects=(2,)), id="object does not exist"),
        pytest.param("crowd", with_first(objects=(1,)), id="crowd is a target"),
        pytest.param("rle", with_object(rle=b"abc"), id="malformed rle"),
        pytest.param("rle", {"ignore": b"1"}, id="ignore of another size"),
        pytest.param("area", with_object(area=17), id="area is off"),
        pytest.param("bbox", with_object(bbox=(3, 2, 8, 3)), id="box is off"),
        pytest.param("bbox", with_object(bbox=(3, 2, float("nan"), 3)), id="box is nan"),
        pytest.param("image_marker", with_texts("<image>" + QUESTION[:-1], "<SEG>") | with_first(start=23, end=38)
                     | {"conditions": (replace(FIRST, start=23, end=38), replace(SECOND, start=40, end=50))},
                     id="two images"),
        pytest.param("image_marker", {"image": None}, id="marker without image"),
    ],
)  # fmt: skip
def test_each_invariant_is_enforced(reason, changes):
    with pytest.raises(InvariantError, match=r"^s/1: ") as caught:
        check(replace(GOOD, **changes))
    assert caught.value.reason == reason


def test_rows_come_back_as_they_went():
    table = pa.Table.from_pylist([values.to_row(GOOD)], schema=values.arrow_schema())
    assert values.from_row(table.to_pylist()[0]) == GOOD


def test_schemas_name_every_field():
    names = [f.name for f in dataclasses.fields(values.Sample)]
    assert values.arrow_schema().names == names
    schema = values.json_schema()
    assert list(schema["properties"]) == names
    prompt = schema["properties"]["objects"]["items"]["properties"]["prompts"]["items"]
    assert list(prompt["properties"]) == [f.name for f in dataclasses.fields(values.Prompt)]
    assert schema["properties"]["objects"]["items"]["properties"]["bbox"]["minItems"] == 4
