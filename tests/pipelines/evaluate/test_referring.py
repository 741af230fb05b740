"""Scores of refseg, reaseg, intseg and grefseg, on cases worked out by hand."""

from __future__ import annotations

import random

import pytest

from dataengine.sample import Condition, Prompt
from pipelines.evaluate.predictions import PredictionError


def answer(bench, sample_id: str, *box: int, **more) -> dict:
    return {"sample_id": sample_id, "segmentation": bench.rle(bench.box(*box)), **more}


@pytest.fixture
def two(bench):
    """Two samples of a 10 x 10 square each; the second one's has a twin that another condition wants."""
    square = bench.thing(bench.box(0, 0, 10, 10))
    twin = bench.thing(bench.box(20, 0, 30, 10))
    bench.first = bench.add("refseg", [square], [(0,)])
    bench.second = bench.add("refseg", [square, twin], [(0,), (1,)])
    return bench


def test_scores_are_those_worked_out_by_hand(two):
    records = [
        answer(two, two.first, 0, 0, 10, 10),  # 100 of 100 px
        answer(two, two.second, 0, 0, 10, 5, condition=0),  # 50 of 100
        answer(two, two.second, 15, 0, 25, 10, condition=1),  # 50 of 150
    ]
    scores = two.score(records)["scores"]["all"]
    assert scores["ciou"] == pytest.approx(200 / 350)
    assert scores["giou"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert scores["precision"] == pytest.approx({"0.5": 2 / 3, "0.6": 1 / 3, "0.7": 1 / 3, "0.8": 1 / 3, "0.9": 1 / 3})
    assert (scores["conditions"], scores["conditions_with_predictions"]) == (3, 3)


def test_what_is_missing_stays_in_the_denominator_but_for_xsam(two):
    records = [answer(two, two.first, 0, 0, 10, 10)]
    scores = two.score(records)["scores"]["all"]
    assert (scores["giou"], scores["ciou"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (scores["conditions"], scores["conditions_with_predictions"]) == (3, 1)
    published = two.score(records, convention="xsam")["scores"]["all"]
    assert (published["giou"], published["ciou"], published["conditions"]) == (1.0, 1.0, 1)


def test_no_predictions_score_nothing(two):
    scores = two.score([])["scores"]["all"]
    assert (scores["giou"], scores["ciou"], set(scores["precision"].values())) == (0.0, 0.0, {0.0})
    assert two.score([], convention="xsam")["scores"]["all"]["giou"] is None


def test_the_order_of_predictions_does_not_matter(two):
    records = [answer(two, two.second, 0, 0, 7 + n, 10, condition=n) for n in (0, 1)]
    records.append(answer(two, two.first, 1, 1, 9, 12))
    expected = two.score(records)
    random.Random(0).shuffle(records)
    assert two.score(records) == expected


def test_sources_are_scored_together_and_each(two):
    two.add("refseg", two.samples[0].objects, [(0,)], source="other", sample_id="other/1")
    scores = two.score([answer(two, "other/1", 0, 0, 10, 10)])["scores"]
    assert {name: scores[name]["giou"] for name in scores} == {"all": 0.25, "other/val": 1.0, "src/val": 0.0}
    assert (scores["other/val"]["conditions_with_predictions"], scores["src/val"]["conditions_with_predictions"]) == (
        1,
        0,
    )


def test_ignored_pixels_leave_prediction_and_truth(bench):
    name = bench.add("reaseg", [bench.thing(bench.box(0, 0, 10, 10))], [(0,)], ignore=bench.box(0, 0, 30, 5))
    # below the ignored rows the truth has 50 px, the prediction 100, 50 of them common
    scores = bench.score([answer(bench, name, 0, 0, 20, 10)])["scores"]["all"]
    assert scores["giou"] == scores["ciou"] == 0.5


def test_a_picture_number_finds_samples_that_say_they_are_long_or_short(bench):
    for variant in ("long", "short"):
        bench.add("reaseg", [bench.thing(bench.box(0, 0, 10, 10))], [(0,)], variant=variant)
    records = [{"image_id": number, "segmentation": bench.rle(bench.box(0, 0, 10, 10))} for number in (0, 1)]
    scores = bench.score(records)["scores"]
    assert {name: scores[name]["giou"] for name in scores} == {"all": 1.0, "src/val/long": 1.0, "src/val/short": 1.0}


def test_a_picture_number_stands_for_its_only_sample(two):
    square = two.rle(two.box(0, 0, 10, 10))
    assert two.score([{"image_id": 0, "segmentation": square}])["scores"]["all"]["conditions_with_predictions"] == 1
    two.add("refseg", two.samples[0].objects, [(0,)], image_key="coco/000000000000", sample_id="src/again")
    with pytest.raises(PredictionError, match="2 samples show the picture 0; sample_id must say which"):
        two.score([{"image_id": 0, "segmentation": square}])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sample_id": "nobody"}, "unknown_sample"),
        ({"sample_id": None}, "bad_record"),
        ({"sample_id": 7}, "bad_record"),
        ({"condition": "0"}, "bad_record"),
        ({"condition": True}, "bad_record"),
        ({"segmentation": None}, "bad_record"),
        ({"segmentation": {"size": [30, 20], "counts": [600]}}, "bad_mask"),
        ({"segmentation": {"size": [20, 30], "counts": "\ud800"}}, "bad_mask"),
        ({"segmentation": {"size": [20, 30], "counts": [-1, 601]}}, "bad_mask"),
        ({"segmentation": {"size": [20, 30], "counts": [10**30]}}, "bad_mask"),
        ({"segmentation": {"size": [20, 30], "counts": [float("nan")]}}, "bad_mask"),
    ],
)
def test_what_cannot_be_scored_is_refused_or_left_out(two, change, reason):
    good = answer(two, two.first, 0, 0, 10, 10)
    with pytest.raises(PredictionError, match=reason):
        two.score([{**good, **change}])
    result = two.score([good, {**good, **change}], exclude=True)
    assert result["excluded"][reason]["count"] == 1
    assert result["scores"] == two.score([good])["scores"]


def test_a_second_mask_is_a_duplicate(two):
    good, other = answer(two, two.first, 0, 0, 10, 10), answer(two, two.first, 0, 0, 5, 5)
    with pytest.raises(PredictionError, match="1 duplicate"):
        two.score([good, other])


def test_a_condition_that_is_not_there_is_counted(two):
    result = two.score([answer(two, two.second, 0, 0, 5, 5, condition=2)])
    assert result["excluded"]["not_asked"]["count"] == 1
    assert result["scores"]["all"]["conditions_with_predictions"] == 0
    with pytest.raises(PredictionError, match="condition must be a whole number, not None"):
        two.score([answer(two, two.second, 0, 0, 5, 5)])  # of two conditions


# --- interactive -----------------------------------------------------------------------------------------------------


@pytest.fixture
def clicked(bench):
    """Two regions; the second one's object has no scribble."""

    def prompted(code: bytes, *kinds: str):
        made = [
            Prompt(kind=k, profile="strict", version=1, status="ok" if k in kinds else "none")
            for k in ("point", "scribble")
        ]
        return bench.thing(code, prompts=tuple(made))

    objects = [prompted(bench.box(0, 0, 10, 10), "point", "scribble"), prompted(bench.box(20, 0, 30, 10), "point")]
    regions = [Condition(kind="region", text="x", objects=(n,), exemplar=n) for n in (0, 1)]
    bench.name = bench.add("intseg", objects, regions)
    return bench


def test_kinds_of_prompt_are_scored_apart(clicked):
    records = [
        answer(clicked, clicked.name, 0, 0, 10, 10, condition=0, prompt="scribble"),
        answer(clicked, clicked.name, 0, 0, 10, 10, condition=0),
        answer(clicked, clicked.name, 20, 0, 30, 10, condition=1),
    ]
    result = clicked.score(records, prompt="point")
    assert {kind: scores["all"]["giou"] for kind, scores in result["scores"].items()} == {"point": 1.0, "scribble": 0.5}
    assert result["not_answered"] == ["box", "mask"]
    published = clicked.score(records, prompt="point", convention="xsam")["scores"]
    assert published["scribble"]["all"]["giou"] == 1.0


def test_what_cannot_be_shown_leaves_only_with_xsams_convention(clicked):
    records = [answer(clicked, clicked.name, 0, 0, 1, 1, condition=1, prompt="scribble")]
    assert clicked.score(records)["scores"]["scribble"]["all"]["conditions"] == 2
    assert clicked.score(records, convention="xsam")["scores"]["scribble"]["all"]["conditions"] == 0


@pytest.mark.parametrize("prompt", [None, "circle", ["point"], 3], ids=str)
def test_a_prompt_must_be_named(clicked, prompt):
    with pytest.raises(PredictionError, match="bad_prompt"):
        clicked.score([answer(clicked, clicked.name, 0, 0, 1, 1, condition=0, prompt=prompt)])


def test_without_predictions_every_kind_scores_nothing(clicked):
    scores = clicked.score([])["scores"]
    assert {kind: scores[kind]["all"]["giou"] for kind in scores} == dict.fromkeys(
        ("point", "scribble", "box", "mask"), 0.0
    )
    assert list(clicked.score([], prompt="box")["scores"]) == ["box"]


# --- several targets, or none ----------------------------------------------------------------------------------------


@pytest.fixture
def general(bench):
    """An expression with two targets of 100 px, one with none, twice."""
    objects = [bench.thing(bench.box(0, 0, 10, 10)), bench.thing(bench.box(20, 0, 30, 10))]
    bench.both = bench.add("grefseg", objects, [(0, 1)])
    bench.nothing = bench.add("grefseg", [], [()])
    bench.add("grefseg", [], [()], sample_id="src/nothing")
    return bench


def test_masks_of_an_expression_are_united(general):
    records = [
        answer(general, general.both, 0, 0, 10, 10),
        answer(general, general.both, 0, 0, 10, 10),
        answer(general, general.both, 20, 0, 30, 5),
        answer(general, general.nothing, 0, 0, 0, 0),
        answer(general, "src/nothing", 0, 0, 10, 1),
    ]
    scores = general.score(records)["scores"]["all"]
    assert scores["giou"] == pytest.approx((150 / 200 + 1 + 0) / 3)
    assert scores["ciou"] == pytest.approx(150 / (200 + 0 + 10))
    assert (scores["n_acc"], scores["t_acc"]) == (0.5, 1.0)
    published = general.score(records, convention="xsam")["scores"]["all"]
    assert (published["giou"], published["conditions"]) == (0.75, 1)


def test_a_missing_answer_means_no_target(general):
    scores = general.score([])["scores"]["all"]
    assert (scores["n_acc"], scores["t_acc"], scores["ciou"]) == (1.0, 0.0, 0.0)
    assert scores["giou"] == pytest.approx(2 / 3)
