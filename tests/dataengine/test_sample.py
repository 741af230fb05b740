"""Schemas, rows and invariants of a sample."""

from __future__ import annotations

import dataclasses
import pickle
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
REFERENCE = values.Reference(
    image=values.Image(bytes=b"y", path="b.jpg"),
    image_key="s/2",
    annotation_id="80",
    category_id=7,
    height=10,
    width=12,
    rle=RLE,
    prompts=(POINT,),
)
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


def with_prompt(**changes):
    return with_object(prompts=(replace(POINT, **changes),))


def with_question(text, shift):
    """Another question, and the conditions' spans shifted with it."""
    moved = (replace(c, start=c.start + shift, end=c.end + shift) for c in GOOD.conditions)
    return with_texts(text, GOOD.turns[1].text) | {"conditions": tuple(moved)}


CHAT = {
    "task": "chat",
    "objects": (),
    "conditions": (),
    "turns": (
        values.Turn(role="user", text="Hello", supervised=False),
        values.Turn(role="assistant", text="Yes?", supervised=True),
    ),
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="as it is"),
        pytest.param({"references": (REFERENCE,)}, id="with a reference"),
        pytest.param(with_first(objects=(), exemplar=-1, reference=0) | {"references": (REFERENCE,)},
                     id="a category shown in another picture, absent here"),
        pytest.param(with_prompt(kind="mask", points=(), parts=(), rle=RLE), id="a mask prompt"),
        pytest.param(with_prompt(kind="box", points=(0, 0, 12, 10), parts=(2,)), id="a box as large as the picture"),
        pytest.param(CHAT | {"image": None}, id="chat without a picture"),
        pytest.param(CHAT | {"image": None, "height": 0, "width": 0}, id="chat without a size"),
    ],
)  # fmt: skip
def test_a_good_sample_passes(changes):
    check(replace(GOOD, **changes))


def test_the_error_survives_a_process_border():
    error = InvariantError("s/1", "area", "object 0: area 1 stated, 2 in the mask")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is InvariantError
    assert (str(back), back.reason, back.sample_id) == (str(error), "area", "s/1")
    assert str(back) == "s/1: object 0: area 1 stated, 2 in the mask"


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
        pytest.param("image_marker", with_question(QUESTION.removeprefix("<image>\n"), -8), id="image without marker"),
        pytest.param("image_marker", with_question(QUESTION.replace("\n", " "), 0), id="marker without newline"),
        pytest.param("image_marker", with_question("Look: " + QUESTION, 6), id="marker inside the question"),
        pytest.param("role", {"turns": (replace(GOOD.turns[0], role="system"), GOOD.turns[1])}, id="a system turn"),
        pytest.param("condition_kind", {"conditions": (FIRST, replace(SECOND, kind="word"))}, id="unknown condition"),
        pytest.param("exemplar", with_first(objects=()), id="exemplar is not to be segmented"),
        pytest.param("region_prompt", {"conditions": (FIRST, replace(SECOND, exemplar=-70000))}, id="index under -1"),
        pytest.param("prompt_kind", with_prompt(kind="wink"), id="unknown prompt kind"),
        pytest.param("prompt_profile", with_prompt(profile="lax"), id="unknown profile"),
        pytest.param("prompt_status", with_prompt(status="foo"), id="unknown status"),
        pytest.param("prompt_points", with_prompt(points=(1e9, float("nan"))), id="point far outside and nan"),
        pytest.param("prompt_points", with_prompt(points=(4.5, float("nan"))), id="nan after a good number"),
        pytest.param("prompt_points", with_prompt(points=(float("nan"), 4.5)), id="nan before a good number"),
        pytest.param("prompt_points", with_prompt(points=(10.5, 11.5)), id="y and x swapped"),
        pytest.param("prompt_points", with_prompt(points=(-0.5, 3.5)), id="left of the picture"),
        pytest.param("prompt_points", with_prompt(points=(4.5, 3.5, 5.5)), id="half a point"),
        pytest.param("prompt_points", with_prompt(parts=(1, 1)), id="parts of more points"),
        pytest.param("prompt_points", with_prompt(parts=(-1, 2)), id="negative part"),
        pytest.param("prompt_points", with_prompt(points=(), parts=()), id="point without a place"),
        pytest.param("prompt_points", with_prompt(rle=THING.rle), id="point with a mask"),
        pytest.param("prompt_points", with_prompt(kind="mask", points=(), parts=()), id="mask without a mask"),
        pytest.param("prompt_points", with_prompt(kind="box", points=(1, 1), parts=(1,)), id="box of one corner"),
        pytest.param("prompt_points", with_prompt(kind="box", points=(5, 5, 1, 1), parts=(2,)), id="box turned"),
        pytest.param("prompt_range", with_prompt(radius=1e6), id="radius beyond any picture"),
        pytest.param("prompt_range", with_prompt(version=40000), id="version beyond 16 bits"),
        pytest.param("prompt_range", with_prompt(inside=float("nan")), id="share is nan"),
        pytest.param("prompt_range", with_prompt(other=1.5), id="share above one"),
        pytest.param("prompt_range", with_prompt(radius=float("inf")), id="endless radius"),
        pytest.param("prompt_rle", with_prompt(kind="mask", points=(), parts=(), rle=b"\xff"), id="malformed prompt"),
        pytest.param("prompt_rle", with_prompt(kind="mask", points=(), parts=(), rle=b"h3"), id="empty mask prompt"),
        pytest.param("range", with_first(category_id=2**31), id="category beyond 32 bits"),
        pytest.param("range", with_object(category_id=-(2**31) - 1), id="object's category beyond 32 bits"),
        pytest.param("range", {"objects": (THING,) * 32768}, id="more objects than indices"),
        pytest.param("range", {"height": -1}, id="negative height"),
        pytest.param("rle", {"references": (REFERENCE, replace(REFERENCE, rle=b"1"))}, id="malformed reference"),
        pytest.param("prompt_points", {"references": (replace(REFERENCE, prompts=(replace(POINT, points=(13, 1)),)),)},
                     id="reference's prompt outside"),
        pytest.param("prompt_status", {"references": (replace(REFERENCE, prompts=(replace(POINT, status=""),)),)},
                     id="reference's prompt status"),
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
