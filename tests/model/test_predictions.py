"""Answers from logits made by hand: conditions of masks, records, captions, and the picture they are drawn on."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402

from dataengine import masks  # noqa: E402
from dataengine.sheet.look import COLORS  # noqa: E402
from model.postprocess import Frame, Thresholds  # noqa: E402
from model.predictions import (  # noqa: E402
    Asked,
    Mask,
    Prediction,
    caption_of,
    overlay,
    prediction_of,
    records_of,
    to_json,
)

HEIGHT, WIDTH = 20, 30
FRAME = Frame(canvas=30, scaled=(HEIGHT, WIDTH), size=(HEIGHT, WIDTH))
CAT, GRASS = Asked(text="cat", category_id=17), Asked(text="grass", category_id=193, is_thing=False)
LEFT, RIGHT, SMALL = (0, 0, 10, 20), (20, 0, 30, 20), (22, 5, 26, 9)


def box(x0, y0, x1, y1):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def logits(*queries, columns):
    """Sharp masks of queries (box, condition, p) on the canvas; what is missing to 1 is background, the last column."""
    classes = torch.full((len(queries), columns), 1e-9)
    shapes = torch.full((len(queries), 30, 30), -20.0)
    for number, ((x0, y0, x1, y1), condition, p) in enumerate(queries):
        classes[number, condition], classes[number, -1] = p, 1 - p
        shapes[number, y0:y1, x0:x1] = 20.0
    return classes.log()[None], shapes[None]


def raster(mask):
    return masks.decode(mask.rle, HEIGHT, WIDTH)


def test_instances_name_their_condition():
    made = logits((LEFT, 0, 0.9), (SMALL, 1, 0.8), columns=3)
    found = prediction_of("genseg", *made, FRAME, [CAT, GRASS], variant="instance", thresholds=Thresholds(instance=0.5))
    assert [(one.condition, one.category_id, one.text) for one in found.masks] == [(0, 17, "cat"), (1, 193, "grass")]
    assert [one.score for one in found.masks] == pytest.approx([0.9, 0.8], abs=1e-5)
    assert np.array_equal(raster(found.masks[0]), box(*LEFT))
    assert records_of(found, "s")[1] == {
        "sample_id": "s",
        "category_id": 193,
        "score": found.masks[1].score,
        "segmentation": {"size": [20, 30], "counts": masks.encode(box(*SMALL)).decode()},
    }


def test_columns_between_conditions_and_background_are_padding():
    classes, shapes = logits((LEFT, 0, 0.9), (RIGHT, 0, 0.8), (SMALL, 0, 0.7), columns=2)
    padded = torch.cat([classes[..., :1], torch.full((1, 3, 2), -1e9), classes[..., 1:]], dim=-1)
    plain = prediction_of("vgdseg", classes, shapes, FRAME, [CAT], prompt="box")
    assert prediction_of("vgdseg", padded, shapes, FRAME, [CAT], prompt="box") == plain
    assert len(plain.masks) == 3


def test_stuff_is_fused_in_panoptic_answers():
    made = logits((LEFT, 1, 0.9), (RIGHT, 1, 0.8), columns=3)
    found = prediction_of("genseg", *made, FRAME, [CAT, GRASS], variant="panoptic")
    assert [(one.text, one.score) for one in found.masks] == [("grass", pytest.approx(0.9))]
    assert raster(found.masks[0]).all()  # each pixel goes to some query, however unlikely
    (record,) = records_of(found, "s")
    assert [(one["id"], one["category_id"]) for one in record["segments_info"]] == [(1, 193)]


def test_semantic_answers_cover_the_picture():
    made = logits((LEFT, 0, 0.9), ((10, 0, 30, 20), 1, 0.8), columns=4)
    found = prediction_of("ovseg", *made, FRAME, [CAT, GRASS, Asked(text="sky", category_id=3)], variant="semantic")
    assert {one.category_id: raster(one).sum() for one in found.masks} == {17: 200, 193: 400}
    assert [set(record) for record in records_of(found, "s")] == [{"sample_id", "category_id", "segmentation"}] * 2


@pytest.mark.parametrize("rows", [1, 2])
def test_each_phrase_has_one_mask_from_one_row_or_from_its_own(rows):
    classes, shapes = logits((LEFT, 0, 0.9), (RIGHT, 1, 0.8), columns=3)
    classes, shapes = classes.repeat(rows, 1, 1), shapes.repeat(rows, 1, 1, 1)
    if rows == 2:  # the second row has its own masks
        shapes[1, 1] = -20.0
        shapes[1, 1, 5:9, 22:26] = 20.0
    found = prediction_of("refseg", classes, shapes, FRAME, [CAT, GRASS])
    assert np.array_equal(raster(found.masks[0]), box(*LEFT))
    assert np.array_equal(raster(found.masks[1]), box(*(RIGHT if rows == 1 else SMALL)))
    assert [record["condition"] for record in records_of(found, "s")] == [0, 1]


def test_generalized_answers_may_be_empty():
    made = logits((LEFT, 0, 0.3), columns=2)
    found = prediction_of("grefseg", *made, FRAME, [CAT], thresholds=Thresholds(keep_best=False))
    (record,) = records_of(found, "s")
    assert masks.area(record["segmentation"]["counts"].encode(), HEIGHT, WIDTH) == 0


def test_each_prompt_chooses_its_mask():
    made = logits((LEFT, 0, 0.9), (RIGHT, 0, 0.85), columns=3)
    made[0][0, :, 1] = made[0][0, :, 0]
    prompts = torch.zeros(2, 30, 30, dtype=torch.bool)
    prompts[0, 4:8, 21:27], prompts[1, 0:20, 0:9] = True, True
    likely = Thresholds(interactive=0.4)  # two conditions share the probability
    found = prediction_of("intseg", *made, FRAME, [CAT, CAT], prompts=prompts, prompt="scribble", thresholds=likely)
    assert [raster(one).argmax(axis=1)[0] for one in found.masks] == [20, 0]
    assert [(r["condition"], r["prompt"]) for r in records_of(found, "s")] == [(0, "scribble"), (1, "scribble")]


def test_captions_go_with_their_phrases():
    made = logits((LEFT, 0, 0.9), (RIGHT, 1, 0.8), columns=3)
    text = "<p>A cat</p> on <p>grass</p>. The masks are <SEG>."
    found = prediction_of("gcgseg", *made, FRAME, [Asked(text="A cat"), Asked(text="grass")], text=text)
    (record,) = records_of(found, "s")
    assert record["caption"] == "<p>A cat</p> on <p>grass</p>."
    assert [phrase["text"] for phrase in record["phrases"]] == ["A cat", "grass"]


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("<p>A cat</p> sleeps. Segmentation: <SEG>.", "<p>A cat</p> sleeps."),
        ("<p>A cat</p> sleeps. <SEG>", "<p>A cat</p> sleeps."),
        ("It is late. <p>A cat</p> sleeps <SEG>", "It is late. <p>A cat</p> sleeps"),
        ("A cat. No masks.", "A cat. No masks."),
        ("", ""),
    ],
)
def test_an_answers_last_sentence_is_no_part_of_the_caption(text, caption):
    assert caption_of(text) == caption


def test_json_holds_everything():
    made = logits((LEFT, 0, 0.9), columns=2)
    found = prediction_of("refseg", *made, FRAME, [CAT], text="It is <SEG>.")
    stated = json.loads(json.dumps(to_json(found)))
    assert (stated["task"], stated["size"], stated["text"]) == ("refseg", [20, 30], "It is <SEG>.")
    assert (stated["masks"][0]["text"], stated["masks"][0]["category_id"]) == ("cat", 17)


@pytest.mark.parametrize(
    ("task", "rows", "columns", "more", "message"),
    [
        ("genseg", 2, 3, {"variant": "instance"}, "2 rows for 2 conditions"),
        ("refseg", 3, 3, {}, "3 rows for 2 conditions"),
        ("refseg", 1, 2, {}, "2 columns cannot be 2 conditions"),
        ("intseg", 1, 3, {"prompt": "box"}, "a prompt for each of 2"),
        ("genseg", 1, 3, {}, "needs a variant"),
        ("vgdseg", 1, 3, {"prompt": "line"}, "must be one of point"),
        ("cookseg", 1, 3, {}, "no task"),
    ],
)
def test_what_does_not_go_together_is_refused(task, rows, columns, more, message):
    classes, shapes = logits((LEFT, 0, 0.9), columns=columns)
    with pytest.raises(ValueError, match=message):
        prediction_of(task, classes.repeat(rows, 1, 1), shapes.repeat(rows, 1, 1, 1), FRAME, [CAT, GRASS], **more)


@pytest.mark.parametrize(("task", "message"), [("chat", "not scored"), ("vgdseg", "kind of prompt")])
def test_answers_without_a_score_have_no_records(task, message):
    with pytest.raises(ValueError, match=message):
        records_of(Prediction(task=task, height=4, width=4, masks=()), "s")


def prediction(*shown, size=(HEIGHT, WIDTH)):
    made = []
    for number, ((x0, y0, x1, y1), text) in enumerate(shown):
        mask = np.zeros(size, bool)
        mask[y0:y1, x0:x1] = True
        made.append(Mask(rle=masks.encode(mask), condition=number, category_id=1, text=text, score=1.0))
    return Prediction(task="refseg", height=size[0], width=size[1], masks=tuple(made))


def test_masks_are_tinted_and_small_ones_lie_on_top():
    shown = prediction(((0, 0, 150, 120), "a"), ((90, 60, 150, 120), "b"), size=(120, 200))
    drawn = np.asarray(overlay(Image.new("L", (200, 120), 100), shown)).astype(int)
    mixed = [(np.array(color) + 100) / 2 for color in COLORS[:2]]
    assert np.abs(drawn[110, 20] - mixed[0]).max() <= 1
    assert np.abs(drawn[70, 140] - mixed[1]).max() <= 1
    assert (drawn[:, 155:] == 100).all()


def test_any_text_and_empty_masks_can_be_drawn():
    shown = prediction((SMALL, "猫 " * 500), ((0, 0, 0, 0), "nothing"), ((29, 19, 30, 20), "corner\n"))
    drawn = overlay(Image.new("RGB", (WIDTH, HEIGHT)), shown)
    assert drawn.size == (WIDTH, HEIGHT)
    with pytest.raises(ValueError, match="30 x 21"):
        overlay(Image.new("RGB", (30, 21)), shown)
