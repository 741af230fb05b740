"""Scores of genseg and ovseg by variant, on cases worked out by hand, and predictions that cannot be scored."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dataengine import masks
from pipelines.evaluate.benchmark import open_benchmark
from pipelines.evaluate.evaluator import evaluate
from pipelines.evaluate.predictions import PredictionError
from pipelines.evaluate.scorers import Rules, scorer_of


def write_png(bench, name: str, values: np.ndarray, bits: int = 8) -> None:
    file = bench.folder / name
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(values.astype(np.uint8 if bits == 8 else np.uint16)).save(file)


def write_ids(bench, name: str, ids: np.ndarray) -> None:
    write_png(bench, name, np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1))


# --- instance --------------------------------------------------------------------------------------------------------


@pytest.fixture
def instances(bench):
    """Two pictures with an object of category 1 each, the second one also with a crowd of it."""
    objects = [bench.thing(bench.box(0, 0, 10, 10))]
    bench.first = bench.generic("instance", objects, (1, 2))
    bench.second = bench.generic("instance", [*objects, bench.thing(bench.box(20, 0, 30, 20), crowd=True)], (1, 2))
    return bench


def instance(bench, sample_id: str, *box: int, score: float = 0.5, category: int = 1) -> dict:
    mask = bench.rle(bench.box(*box))
    return {"sample_id": sample_id, "category_id": category, "score": score, "segmentation": mask}


def test_average_precision_is_the_one_worked_out_by_hand(instances):
    records = [
        instance(instances, instances.first, 0, 0, 10, 10, score=0.9),
        instance(instances, instances.first, 20, 10, 30, 20, score=0.8),  # a false positive
        instance(instances, instances.second, 20, 0, 30, 20, score=0.7),  # on the crowd: neither
        instance(instances, instances.second, 0, 0, 10, 10, score=0.6),
    ]
    scores = instances.score(records)["scores"]["instance"]["src"]
    # precision 1 up to recall 0.5 (51 of 101 points), then 2 of 3
    assert scores["ap"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert scores["ap50"] == pytest.approx(scores["ap"])
    assert scores["ap_small"] == scores["ap"]
    assert scores["ap_large"] is None
    assert instances.score(records)["backend"].startswith("hotcoco ")
    assert instances.score(records, backend="pycocotools")["scores"]["instance"]["src"]["ap"] == scores["ap"]


def test_xsams_convention_counts_predicted_pictures_and_no_crowds(instances):
    records = [instance(instances, instances.first, 0, 0, 10, 10)]
    assert instances.score(records)["scores"]["instance"]["src"]["ap"] == pytest.approx(51 / 101)
    assert instances.score(records, convention="xsam")["scores"]["instance"]["src"]["ap"] == pytest.approx(1)
    crowd = instance(instances, instances.second, 20, 0, 30, 20, score=0.9)
    true = instance(instances, instances.second, 0, 0, 10, 10)
    assert instances.score([*records, true, crowd])["scores"]["instance"]["src"]["ap"] == pytest.approx(1)
    assert instances.score([*records, true, crowd], convention="xsam")["scores"]["instance"]["src"]["ap"] < 0.7


def test_ties_do_not_depend_on_the_order_of_the_file(instances):
    records = [instance(instances, instances.first, x, 0, 10 + x, 10) for x in range(6)]
    records += [instance(instances, instances.second, 0, y, 10, 10 + y) for y in range(4)]
    expected = instances.score(records)["scores"]
    for seed in range(3):
        random.Random(seed).shuffle(records)
        assert instances.score(records)["scores"] == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"score": float("nan")}, "bad_score"),
        ({"score": None, "x": 1}, "bad_score"),
        ({"score": True}, "bad_score"),
        ({"score": 10**400}, "bad_score"),
        ({"category_id": 1.0}, "bad_record"),
        ({"segmentation": [[0, 0, 1, 1, 1, 0]]}, "bad_record"),
        ({}, "duplicate"),
    ],
)
def test_instances_that_cannot_be_scored(instances, change, reason):
    good = instance(instances, instances.first, 0, 0, 10, 10)
    with pytest.raises(PredictionError, match=reason):
        instances.score([good, {**good, **change}])
    assert instances.score([good, {**good, **change}], exclude=True)["scores"] == instances.score([good])["scores"]


def test_categories_never_asked_for_are_left_out_and_counted(instances):
    good = instance(instances, instances.first, 0, 0, 10, 10)
    result = instances.score([{**good, "category_id": 7}, good])
    assert result["excluded"]["not_asked"]["count"] == 1
    assert result["scores"] == instances.score([good])["scores"]


# --- panoptic --------------------------------------------------------------------------------------------------------


@pytest.fixture
def panoptic(bench):
    """A thing of category 1 left of one of category 2, stuff 7 below; columns from 20 on belong to nothing."""
    objects = [
        bench.thing(bench.box(0, 0, 10, 10), 1),
        bench.thing(bench.box(10, 0, 20, 10), 2),
        bench.thing(bench.box(0, 10, 20, 20), 7),
    ]
    bench.first = bench.generic("panoptic", objects)
    bench.objects = objects
    return bench


def segments(bench, *listed: tuple) -> list[dict]:
    return [{"category_id": category, "segmentation": bench.rle(bench.box(*box))} for category, box in listed]


def test_panoptic_quality_is_the_one_worked_out_by_hand(panoptic):
    record = {
        "sample_id": panoptic.first,
        # half of the thing is too little; the other one reaches into void, which does not count; stuff 80 of 100 rows
        "segments_info": segments(panoptic, (1, (0, 0, 5, 10)), (2, (10, 0, 30, 10)), (7, (0, 10, 20, 18))),
    }
    scores = panoptic.score([record])["scores"]["panoptic"]["src"]
    assert scores["things"] == {"pq": 0.5, "sq": 0.5, "rq": 0.5, "num_categories": 2}
    assert scores["stuff"] == {"pq": 0.8, "sq": 0.8, "rq": 1.0, "num_categories": 1}
    assert scores["all"]["pq"] == pytest.approx(1.8 / 3)
    assert scores["per_category"]["1"]["pq"] == 0
    assert scores["per_category"]["9"]["pq"] is None


def test_png_files_and_masks_score_the_same(panoptic):
    listed = segments(panoptic, (1, (0, 0, 8, 10)), (2, (10, 0, 22, 9)), (9, (0, 10, 20, 20)))
    ids = np.zeros(panoptic.size, np.uint32)
    for number, box in ((300, (0, 0, 8, 10)), (7, (10, 0, 22, 9)), (70000, (0, 10, 20, 20))):
        ids[box[1] : box[3], box[0] : box[2]] = number
    named = [{"id": i, "category_id": one["category_id"]} for i, one in zip((300, 7, 70000), listed, strict=True)]
    expected = panoptic.score([{"sample_id": panoptic.first, "segments_info": listed}])["scores"]
    record = {"image_id": 0, "file_name": "a.png", "segments_info": named}
    for place in ("a.png", "predictions/a.png"):  # beside the file, and below a folder of its name
        write_ids(panoptic, place, ids)
        assert panoptic.score([record])["scores"] == expected
        (panoptic.folder / place).unlink()


def test_cocos_own_panoptic_json_is_read(panoptic):
    write_ids(panoptic, "a.png", np.pad(np.full((10, 10), 5), ((0, 10), (0, 20))))
    document = {
        "images": [{"id": 0}],
        "annotations": [
            {"image_id": 0, "file_name": "a.png", "segments_info": [{"id": 5, "category_id": 1, "area": 100}]}
        ],
        "categories": [],
    }
    file = panoptic.folder / "panoptic.json"
    file.write_text(json.dumps(document))
    scores = evaluate(panoptic.save(), "genseg", str(file))["scores"]["panoptic"]["src"]
    assert scores["all"]["pq"] == pytest.approx(1 / 3)


def test_pictures_without_a_prediction_count_but_for_xsam(panoptic):
    panoptic.generic("panoptic", panoptic.objects[:1])
    whole = [(o.category_id, o.bbox) for o in panoptic.objects]
    listed = segments(panoptic, *((c, tuple(int(v) for v in (x, y, x + w, y + h))) for c, (x, y, w, h) in whole))
    record = {"sample_id": panoptic.first, "segments_info": listed}
    scores = panoptic.score([record])["scores"]["panoptic"]["src"]
    assert scores["per_category"]["1"]["pq"] == pytest.approx(1 / 1.5)
    assert (scores["samples"], scores["samples_with_predictions"]) == (2, 1)
    published = panoptic.score([record], convention="xsam")["scores"]["panoptic"]["src"]
    assert (published["all"]["pq"], published["samples"]) == (1.0, 1)


def test_ignored_pixels_are_void(bench):
    name = bench.generic("panoptic", [bench.thing(bench.box(0, 0, 20, 10))], ignore=bench.box(10, 0, 30, 10))
    record = {"sample_id": name, "segments_info": segments(bench, (1, (0, 0, 10, 10)))}
    assert bench.score([record])["scores"]["panoptic"]["src"]["all"]["pq"] == 1


def test_segments_never_asked_for_become_void(bench):
    name = bench.generic("panoptic", [bench.thing(bench.box(0, 0, 10, 10))], (1,))
    record = {"sample_id": name, "segments_info": segments(bench, (1, (0, 0, 10, 10)), (2, (10, 0, 20, 10)))}
    result = bench.score([record])
    assert result["scores"]["panoptic"]["src"]["all"]["pq"] == 1
    assert result["excluded"]["not_asked"]["count"] == 1


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        (None, "bad_record"),
        ("many", "bad_record"),
        ([None], "bad_record"),
        ([{"category_id": "1"}], "bad_record"),
        ([{"category_id": 1}], "bad_record"),
        ([{"category_id": 1, "segmentation": {"size": [20, 30], "counts": [600]}}], "bad_mask"),
        ([{"category_id": 5, "segmentation": {"size": [20, 30], "counts": [600]}}], "bad_mask"),
        ([{"category_id": c, "segmentation": {"size": [20, 30], "counts": [0, 600]}} for c in (1, 2)], "overlap"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_segments_that_cannot_be_scored(panoptic, listed, reason):
    record = {"sample_id": panoptic.first, "segments_info": listed}
    with pytest.raises(PredictionError, match=reason):
        panoptic.score([record])
    result = panoptic.score([record], exclude=True)
    assert result["scores"] == panoptic.score([])["scores"]
    assert result["predictions"] == 0


def test_a_second_panoptic_prediction_is_a_duplicate(panoptic):
    record = {"sample_id": panoptic.first, "segments_info": []}
    with pytest.raises(PredictionError, match="1 duplicate"):
        panoptic.score([record, record])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../a.png", "leaves its folder"),
        ("/etc/hostname", "leaves its folder"),
        ("a\0.png", "no file name"),
        (["a.png"], "no file name"),
        ("none.png", "cannot be read"),
        ("predictions.json", "no PNG file"),
        ("small.png", "is 3 x 3 px, the picture 30 x 20"),
        ("grey.png", "8-bit RGB is needed"),
        ("cut.png", "ends before"),
        ("claims.png", "px, the picture 30 x 20"),
        ("unlisted.png", "unlisted"),
        ("absent.png", "without a pixel|no pixel"),
    ],
    ids=str,
)
def test_png_files_are_not_trusted(panoptic, name, said):
    write_ids(panoptic, "small.png", np.ones((3, 3), np.uint32))
    write_png(panoptic, "grey.png", np.ones(panoptic.size))
    write_ids(panoptic, "unlisted.png", np.full(panoptic.size, 6))
    write_ids(panoptic, "absent.png", np.zeros(panoptic.size, np.uint32))
    whole = (panoptic.folder / "unlisted.png").read_bytes()
    (panoptic.folder / "cut.png").write_bytes(whole[:-20])
    huge = (2**31 - 1).to_bytes(4, "big")
    (panoptic.folder / "claims.png").write_bytes(whole[:16] + huge + huge + whole[24:])
    record = {"sample_id": panoptic.first, "file_name": name, "segments_info": [{"id": 5, "category_id": 1}]}
    with pytest.raises(PredictionError, match=said):
        panoptic.score([record])


# --- semantic --------------------------------------------------------------------------------------------------------


@pytest.fixture
def semantic(bench):
    """Category 1 in the left third, 7 in the next one, nothing in the last; 5 rows of all are ignored."""
    objects = [bench.thing(bench.box(0, 0, 10, 20), 1), bench.thing(bench.box(10, 0, 20, 20), 7)]
    bench.first = bench.generic("semantic", objects, ignore=bench.box(0, 0, 30, 5))
    return bench


def labels(bench, *painted: tuple) -> np.ndarray:
    values = np.full(bench.size, 255)
    for value, (x0, y0, x1, y1) in painted:
        values[y0:y1, x0:x1] = value
    return values


GUESS = ((1, (0, 0, 15, 20)), (7, (15, 0, 18, 20)), (9, (18, 0, 30, 20)))  # 15 rows count


def test_semantic_scores_are_those_worked_out_by_hand(semantic):
    write_png(semantic, "s.png", labels(semantic, *GUESS))
    scores = semantic.score([{"sample_id": semantic.first, "file_name": "s.png"}])["scores"]["semantic"]["src"]
    # category 1: 10 columns of 15 predicted; category 7: 3 of 10
    assert scores["miou"] == pytest.approx((10 / 15 + 3 / 10) / 2)
    assert scores["fwiou"] == pytest.approx(scores["miou"])
    assert (scores["macc"], scores["pacc"]) == (pytest.approx(0.65), pytest.approx(13 / 20))
    assert scores["per_category"]["7"] == {"iou": pytest.approx(0.3), "acc": pytest.approx(0.3)}
    assert scores["num_pixels"] == 300


def test_label_maps_of_any_depth_and_masks_score_the_same(semantic):
    write_png(semantic, "s.png", labels(semantic, *GUESS))
    expected = semantic.score([{"image_id": 0, "file_name": "s.png"}])["scores"]
    deep = labels(semantic, *GUESS)
    write_png(semantic, "d.png", np.where(deep == 255, 65535, deep), bits=16)
    assert semantic.score([{"image_id": 0, "file_name": "d.png"}])["scores"] == expected
    records = [
        {"image_id": 0, "category_id": category, "segmentation": semantic.rle(semantic.box(*box))}
        for category, box in GUESS
    ]
    assert semantic.score(records)["scores"] == expected
    assert semantic.score(records[::-1])["scores"] == expected


def test_pictures_without_labels_count_but_for_xsam(semantic):
    semantic.generic("semantic", [semantic.thing(semantic.box(0, 0, 30, 20), 1)])
    records = [
        {"sample_id": semantic.first, "category_id": c, "segmentation": semantic.rle(semantic.box(*box))}
        for c, box in ((1, (0, 0, 10, 20)), (7, (10, 0, 20, 20)))
    ]
    scores = semantic.score(records)["scores"]["semantic"]["src"]
    assert scores["per_category"]["1"]["iou"] == pytest.approx(150 / 750)
    assert semantic.score(records, convention="xsam")["scores"]["semantic"]["src"]["miou"] == 1
    assert semantic.score([])["scores"]["semantic"]["src"]["miou"] == 0
    assert semantic.score([], convention="xsam")["scores"]["semantic"]["src"]["miou"] is None


def test_labels_that_cannot_be_scored(semantic):
    write_png(semantic, "strange.png", labels(semantic, (8, (0, 0, 1, 1))))
    write_png(semantic, "good.png", labels(semantic))
    good = {"sample_id": semantic.first, "file_name": "good.png"}
    mask = {"sample_id": semantic.first, "category_id": 1, "segmentation": semantic.rle(semantic.box(0, 0, 2, 2))}
    for records, said in (
        ([{**good, "file_name": "strange.png"}], "8 is no category; 255 stands for none"),
        ([good, good], "1 duplicate"),
        ([good, mask], "1 duplicate"),
        ([mask, good], "1 duplicate"),
        ([mask, mask], "a second mask for category 1"),
        ([mask, {**mask, "category_id": 2}], "overlaps another one"),
    ):
        with pytest.raises(PredictionError, match=said):
            semantic.score(records)
    assert semantic.score([{**mask, "category_id": 3}])["excluded"]["not_asked"]["count"] == 1


def test_labels_never_asked_for_are_of_no_category(bench):
    name = bench.generic("semantic", [bench.thing(bench.box(0, 0, 10, 20), 1)], (1, 2))
    write_png(bench, "s.png", labels(bench, (1, (0, 0, 5, 20)), (7, (5, 0, 10, 20))))
    result = bench.score([{"sample_id": name, "file_name": "s.png"}])
    assert result["scores"]["semantic"]["src"]["per_category"]["1"]["iou"] == 0.5
    assert result["excluded"]["not_asked"]["count"] == 1


# --- anything at all -------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=4) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    "sample_id",
    "image_id",
    "variant",
    "condition",
    "category_id",
    "score",
    "prompt",
    "file_name",
    "segments_info",
    "segmentation",
    "caption",
    "phrases",
)


@pytest.mark.parametrize("task", ["genseg", "refseg", "intseg", "grefseg", "gcgseg"])
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_record_stops_an_evaluation(bench, task, data):
    if not bench.samples:
        square = bench.thing(bench.box(0, 0, 10, 10))
        for variant in ("instance", "panoptic", "semantic"):
            if task == "genseg":
                bench.generic(variant, [square])
            else:
                bench.add(task, [square], [(0,), ()], caption="x")
        bench.scorer = scorer_of(open_benchmark(bench.save(), task), Rules())
    ids = st.sampled_from([sample.sample_id for sample in bench.samples])
    rle = st.fixed_dictionaries({"size": st.just([20, 30]) | values, "counts": st.just([600]) | values})
    some = {
        "sample_id": ids | values,
        "segmentation": rle | values,
        "category_id": st.sampled_from((1, 2, 3)) | values,
        "score": st.just(0.5) | values,
        "condition": st.sampled_from((0, 1, 2)) | values,
        "prompt": st.just("point") | values,
        "segments_info": st.lists(st.fixed_dictionaries({"category_id": st.just(1), "segmentation": rle}), max_size=2)
        | values,
        "caption": st.text(max_size=5) | values,
        "phrases": st.lists(st.fixed_dictionaries({"text": st.text(max_size=2) | values, "segmentation": rle}))
        | values,
    }
    record = data.draw(
        st.fixed_dictionaries({}, optional={name: some.get(name, values) for name in FIELDS}) | values, label="record"
    )
    before = bench.scorer.predictions + bench.scorer.faults.counts.total()
    bench.scorer.add("here", record)
    assert bench.scorer.predictions + bench.scorer.faults.counts.total() > before
    json.dumps(bench.scorer.result(), allow_nan=False).encode()


def test_ground_truth_as_predictions_is_perfect(bench):
    rng = np.random.default_rng(0)
    for variant in ("instance", "panoptic", "semantic"):
        owners = rng.integers(0, 4, bench.size)
        objects = [bench.thing(masks.encode(owners == n), c) for n, c in enumerate((1, 2, 7))]
        bench.generic(variant, objects)
    records = []
    for sample in bench.samples:
        parts = [{"category_id": o.category_id, "segmentation": bench.rle(o.rle)} for o in sample.objects]
        if sample.variant == "panoptic":
            records.append({"sample_id": sample.sample_id, "segments_info": parts})
        else:
            records += [{"sample_id": sample.sample_id, "score": 0.5, **part} for part in parts]
    scores = bench.score(records)["scores"]
    assert scores["instance"]["src"]["ap"] == pytest.approx(1)
    assert scores["panoptic"]["src"]["all"]["pq"] == 1
    assert scores["semantic"]["src"]["miou"] == 1
