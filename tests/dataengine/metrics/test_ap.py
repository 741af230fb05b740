"""AP and AR against the arrays that pycocotools gave, and against what they must do for any input."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine import masks
from dataengine.errors import ReasonError, UserError
from dataengine.metrics import ap
from dataengine.metrics.ap import BACKENDS, Instances, average_precision

BOTH = pytest.mark.parametrize("backend", BACKENDS)
SIDE = 40  # px, of the canvases made here
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def box(x0: int, y0: int, width: int, height: int) -> bytes:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y0 : y0 + height, x0 : x0 + width] = True
    return masks.encode(mask)


def instances(*rows: tuple[int, int, bytes], **columns) -> Instances:
    """Of (image, category, mask)."""
    return Instances(
        image=np.array([row[0] for row in rows], np.int64),
        category=np.array([row[1] for row in rows], np.int64),
        rles=[row[2] for row in rows],
        **{name: np.array(values) for name, values in columns.items()},
    )


def numbers(result: ap.AveragePrecision) -> list[float | None]:
    """The twelve figures in COCO's order."""
    return list(result.to_json().values())[:12]


NOTHING = instances(score=np.zeros(0))


# --- the recorded reference ------------------------------------------------------------------------------------------


class Golden:
    def __init__(self, folder: Path) -> None:
        truth = json.loads(gzip.decompress((folder / "gt.json.gz").read_bytes()))
        found = json.loads(gzip.decompress((folder / "results.json.gz").read_bytes()))
        self.expected = json.loads((folder / "expected.json").read_text())
        self.sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
        self.categories = [category["id"] for category in truth["categories"]]
        rows = truth["annotations"]
        self.truth = instances(
            *map(self.row, rows),
            area=[row["area"] for row in rows],
            crowd=[bool(row["iscrowd"]) for row in rows],
        )
        self.found = instances(*map(self.row, found), score=[row["score"] for row in found])

    @staticmethod
    def row(row) -> tuple[int, int, bytes]:
        return row["image_id"], row["category_id"], row["segmentation"]["counts"].encode()


@pytest.fixture
def golden(fixtures) -> Golden:
    return Golden(fixtures / "golden" / "metrics" / "coco_segm")


@BOTH
@pytest.mark.parametrize(
    "name", ["all_images", "images_with_predictions_only", "category_3_only", "class_agnostic_useCats0"]
)
def test_every_figure_is_that_of_the_reference(golden, backend, name):
    result = average_precision(
        golden.truth,
        golden.found,
        golden.sizes,
        categories=[3] if name == "category_3_only" else golden.categories,
        images=np.unique(golden.found.image).tolist() if name == "images_with_predictions_only" else None,
        backend=backend,
        class_agnostic=name == "class_agnostic_useCats0",
    )
    expected = golden.expected[name]
    assert numbers(result) == [None if expected["stats"][key] == -1 else expected["stats"][key] for key in FIGURES]
    per_category = {int(key): (row["AP"], row["AP50"]) for key, row in expected.get("per_category", {}).items()}
    assert result.per_category == per_category
    assert result.backend.split() == [backend, importlib.metadata.version(backend)]


@BOTH
def test_the_arrays_behind_the_figures_are_those_of_the_reference(golden, backend, fixtures, monkeypatch):
    seen = []
    monkeypatch.setattr(ap, "_summary", lambda precision, recall, *rest: seen.append((precision, recall)))
    average_precision(golden.truth, golden.found, golden.sizes, categories=golden.categories, backend=backend)
    arrays = np.load(fixtures / "golden" / "metrics" / "coco_segm" / "all_images_arrays.npz")
    ((precision, recall),) = seen
    np.testing.assert_array_equal(precision, arrays["precision"])
    np.testing.assert_array_equal(recall, arrays["recall"])


# --- worked out by hand ----------------------------------------------------------------------------------------------


@BOTH
def test_one_hit_before_one_miss_and_one_object_not_found(backend):
    """Recall is ½ at precision 1, and 51 of the 101 recalls lie up to ½."""
    truth = instances((7, 3, box(0, 0, 10, 10)), (7, 3, box(20, 20, 10, 10)))
    found = instances((7, 3, box(0, 0, 10, 10)), (7, 3, box(0, 20, 10, 10)), score=[0.9, 0.8])
    result = average_precision(truth, found, {7: (SIDE, SIDE)}, categories=[3], backend=backend)
    assert result.ap == pytest.approx(51 / 101)
    assert (result.ar1, result.ar100) == (0.5, 0.5)
    assert (result.ap_medium, result.ap_large, result.ar_large) == (None, None, None)


@BOTH
@pytest.mark.parametrize(("first", "expected"), [(True, 1.0), (False, 0.5)], ids=["hit-first", "miss-first"])
def test_among_equal_scores_the_row_that_comes_first_counts_first(backend, first, expected):
    hit, miss = (1, 1, box(0, 0, 10, 10)), (1, 1, box(20, 20, 10, 10))
    rows = (hit, miss) if first else (miss, hit)
    found = instances(*rows, score=[0.5, 0.5])
    result = average_precision(instances(hit), found, {1: (SIDE, SIDE)}, categories=[1], backend=backend)
    assert result.ap == pytest.approx(expected)


@BOTH
def test_a_stated_area_decides_the_size_class_of_ground_truth(backend):
    truth = instances((1, 1, box(0, 0, 10, 10)), area=[2000.0])
    found = instances((1, 1, box(0, 0, 10, 10)), score=[0.5], area=[5.0])
    result = average_precision(truth, found, {1: (SIDE, SIDE)}, categories=[1], backend=backend)
    assert (result.ap_small, result.ap_medium) == (None, pytest.approx(1))


@BOTH
def test_a_crowd_takes_any_number_of_predictions_for_nothing(backend):
    truth = instances((1, 1, box(0, 0, 10, 10)), (1, 1, box(20, 0, 20, 40)), crowd=[False, True])
    found = instances(
        (1, 1, box(20, 0, 9, 9)), (1, 1, box(25, 20, 9, 9)), (1, 1, box(0, 0, 10, 10)), score=[0.9, 0.8, 0.7]
    )
    result = average_precision(truth, found, {1: (SIDE, SIDE)}, categories=[1], backend=backend)
    assert result.ap == pytest.approx(1)


@BOTH
def test_only_a_hundred_predictions_of_an_image_and_category_count(backend):
    hit, miss = (1, 1, box(0, 0, 10, 10)), (1, 1, box(20, 20, 5, 5))
    for misses, expected in ((99, 1 / 100), (100, 0.0)):
        found = instances(*[miss] * misses, hit, score=np.arange(misses + 1, 0, -1) / 200)
        result = average_precision(instances(hit), found, {1: (SIDE, SIDE)}, categories=[1], backend=backend)
        assert result.ap == pytest.approx(expected)


@BOTH
def test_a_missing_image_stays_in_the_denominator_unless_it_is_left_out(backend):
    truth = instances((1, 1, box(0, 0, 10, 10)), (2, 1, box(0, 0, 10, 10)))
    found = instances((1, 1, box(0, 0, 10, 10)), score=[0.5])
    sizes = {1: (SIDE, SIDE), 2: (SIDE, SIDE)}
    whole = average_precision(truth, found, sizes, categories=[1], backend=backend)
    part = average_precision(truth, found, sizes, categories=[1], images=[1], backend=backend)
    assert (whole.ar100, part.ar100) == (0.5, 1.0)


@BOTH
def test_images_of_any_name_and_several_sizes(backend):
    """Names may be large or negative; a mask is checked against the canvas of its own image."""
    wide = masks.encode(np.ones((4, 9), bool))
    truth = instances((-5, -1, wide), (2**60, 9, box(0, 0, 10, 10)))
    sizes = {2**60: (SIDE, SIDE), -5: (4, 9)}
    found = replace(truth, score=np.array([0.1, 0.2]))
    result = average_precision(truth, found, sizes, categories=[9, -1], backend=backend)
    assert {name: scores.ap for name, scores in result.per_category.items()} == pytest.approx({-1: 1, 9: 1})


def test_masks_are_measured_in_parts_of_bounded_size(monkeypatch):
    """Parts of one mask each, and canvases that take turns."""
    monkeypatch.setattr(ap, "_CHUNK_BYTES", 1)
    whole, half = masks.encode(np.ones((100, 100), bool)), masks.encode(np.tri(50, 100, dtype=bool))
    truth = instances((1, 1, whole), (2, 1, half), (3, 1, whole))
    sizes = {1: (100, 100), 2: (50, 100), 3: (100, 100)}
    result = average_precision(truth, replace(truth, score=np.ones(3)), sizes, categories=[1])
    assert [result.ap_small, result.ap_medium, result.ap_large] == [None, pytest.approx(1), pytest.approx(1)]


# --- nothing to find, nothing found ----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_no_prediction_scores_zero(backend, class_agnostic):
    truth = instances((1, 1, box(0, 0, 10, 10)))
    result = average_precision(
        truth, NOTHING, {1: (SIDE, SIDE)}, categories=[1, 2], backend=backend, class_agnostic=class_agnostic
    )
    assert (result.ap, result.ap50, result.ar100, result.ap_large) == (0.0, 0.0, 0.0, None)
    if not class_agnostic:
        assert result.per_category == {1: (0.0, 0.0), 2: (None, None)}


@BOTH
@pytest.mark.parametrize(
    ("found", "images", "categories"),
    [
        pytest.param(NOTHING, None, [1], id="no-prediction"),
        pytest.param(instances((1, 1, box(0, 0, 9, 9)), score=[0.5]), None, [1], id="a-false-one"),
        pytest.param(NOTHING, [], [1], id="no-image"),
        pytest.param(NOTHING, None, [], id="no-category"),
    ],
)
def test_without_ground_truth_nothing_is_defined(backend, found, images, categories):
    truth = instances()
    result = average_precision(truth, found, {1: (SIDE, SIDE)}, categories=categories, images=images, backend=backend)
    assert numbers(result) == [None] * 12
    assert json.loads(json.dumps(result.to_json()))["ap"] is None


# --- what cannot be used ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "reason", "names"),
    [
        pytest.param(instances((1, 1, b"\x00\xff"), score=[0.5]), "rle_invalid", "prediction 0", id="no-rle"),
        pytest.param(
            instances((1, 1, box(0, 0, 9, 9)), (1, 1, masks.encode(np.ones((3, 3), bool))), score=[0.5, 0.5]),
            "rle_size",
            "prediction 1",
            id="other-canvas",
        ),
        pytest.param(instances((1, 1, b""), score=[0.5]), "rle_invalid", "prediction 0", id="empty-rle"),
        pytest.param(instances((1, 1, box(0, 0, 9, 9)), score=[np.nan]), "bad_score", "nan", id="nan"),
        pytest.param(instances((8, 1, box(0, 0, 9, 9)), score=[0.5]), "unknown_image", "image 8", id="no-image"),
        pytest.param(instances((1, 1, box(0, 0, 9, 9))), "bad_columns", "scores", id="no-scores"),
        pytest.param(instances((1, 1, box(0, 0, 9, 9)), score=[0.5, 0.6]), "bad_columns", "score", id="lengths"),
    ],
)
def test_what_cannot_be_scored_is_named(found, reason, names):
    with pytest.raises(ReasonError, match=names) as caught:
        average_precision(instances((1, 1, box(0, 0, 9, 9))), found, {1: (SIDE, SIDE)}, categories=[1])
    assert caught.value.reason == reason


def test_an_unknown_backend_an_image_without_size_and_a_canvas_without_pixels():
    with pytest.raises(UserError, match="hotcoco, pycocotools"):
        average_precision(instances(), NOTHING, {}, categories=[], backend="other")
    with pytest.raises(ReasonError, match="image 5"):
        average_precision(instances(), NOTHING, {1: (4, 4)}, categories=[1], images=[1, 5])
    with pytest.raises(ReasonError, match="image 1"):
        average_precision(instances(), NOTHING, {1: (0, 4)}, categories=[1])


# --- properties ------------------------------------------------------------------------------------------------------

rectangles = st.tuples(st.integers(0, 29), st.integers(0, 29), st.integers(1, 10), st.integers(1, 10))
rows = st.tuples(st.integers(1, 3), st.integers(1, 2), rectangles.map(lambda sides: box(*sides)))
SIZES = {image: (SIDE, SIDE) for image in (1, 2, 3)}


@st.composite
def scored(draw) -> tuple[Instances, Instances]:
    """Ground truth and predictions, some of them right; all scores differ."""
    truth = draw(st.lists(rows, min_size=1, max_size=6))
    found = draw(st.lists(st.one_of(rows, st.sampled_from(truth)), min_size=1, max_size=8))
    order = draw(st.permutations(range(len(found))))
    crowd = draw(st.lists(st.booleans(), min_size=len(truth), max_size=len(truth)))
    return instances(*truth, crowd=crowd), instances(*found, score=[(place + 1) / 16 for place in order])


def shuffled(found: Instances, order: list[int]) -> Instances:
    columns = {name: getattr(found, name)[order] for name in ("image", "category", "score")}
    return replace(found, rles=[found.rles[place] for place in order], **columns)


@settings(max_examples=40)
@given(scored())
def test_both_backends_give_the_same_numbers(pair):
    truth, found = pair
    results = [
        average_precision(truth, found, SIZES, categories=[1, 2], backend=name, class_agnostic=agnostic).to_json()
        for agnostic in (False, True)
        for name in BACKENDS
    ]
    for result in results:
        result.pop("backend")
    assert results[0] == results[1]
    assert results[2] == results[3]


@settings(max_examples=40)
@given(st.lists(rows, min_size=1, max_size=8, unique=True))
def test_ground_truth_as_prediction_scores_one(truth):
    whole = instances(*truth)
    result = average_precision(whole, replace(whole, score=np.ones(len(truth))), SIZES, categories=[1, 2])
    assert (result.ap, result.ar100) == (pytest.approx(1), pytest.approx(1))


@settings(max_examples=40)
@given(scored(), st.randoms(use_true_random=False))
def test_the_order_of_predictions_does_not_matter(pair, random):
    truth, found = pair
    order = random.sample(range(len(found.rles)), len(found.rles))
    assert average_precision(truth, found, SIZES, categories=[1, 2]) == average_precision(
        truth, shuffled(found, order), SIZES, categories=[1, 2]
    )


@settings(max_examples=60)
@given(scored(), st.integers(1, 3), st.integers(1, 2), st.integers(0, 16))
def test_a_further_false_positive_never_raises_ap(pair, image, category, rank):
    """It lies where no ground truth is: the drawn ones leave the last column free."""
    truth, found = pair
    before = average_precision(truth, found, SIZES, categories=[1, 2])
    more = instances(
        *zip(found.image, found.category, found.rles, strict=True),
        (image, category, masks.encode(np.indices((SIDE, SIDE))[1] == SIDE - 1)),
        score=[*found.score, rank / 16 + 1 / 32],
    )
    after = average_precision(truth, more, SIZES, categories=[1, 2])
    assert [after.ap is None, after.ap50 is None] == [before.ap is None, before.ap50 is None]
    if before.ap is not None:
        assert after.ap <= before.ap + 1e-12
        assert after.ap50 <= before.ap50 + 1e-12


@settings(max_examples=20)
@given(st.lists(rows, min_size=1, max_size=6))
def test_no_prediction_scores_zero_for_any_ground_truth(truth):
    result = average_precision(instances(*truth), NOTHING, SIZES, categories=[1, 2])
    assert (result.ap, result.ap50, result.ar1, result.ar100) == (0, 0, 0, 0)
