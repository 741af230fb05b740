"""Panoptic quality against what panopticapi gave, by hand, and over files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataengine.errors import ReasonError, UserError
from dataengine.metrics.panoptic import (
    Pair,
    PanopticQuality,
    Segment,
    Tally,
    compare,
    ids_from_png,
    missed,
    panoptic_quality,
    segments_from_json,
)

KINDS = {1: True, 2: True, 9: False}


def listed(annotation) -> list[Segment]:
    return segments_from_json(annotation["segments_info"], truth=True)


def things(file: Path) -> dict[int, bool]:
    document = json.loads(file.read_text())
    rows = document["categories"] if isinstance(document, dict) else document
    return {row["id"]: bool(row["isthing"]) for row in rows}


def write(path: Path, ids: np.ndarray) -> Path:
    colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(path)
    return path


def segments(ids: np.ndarray, category_of) -> list[Segment]:
    """As many as the map has; category_of: of an id."""
    names, areas = np.unique(ids[ids > 0], return_counts=True)
    return [
        Segment(id=name, category=category_of(name), area=area)
        for name, area in zip(names.tolist(), areas.tolist(), strict=True)
    ]


def counted(tallies: dict[int, Tally]) -> dict[int, tuple[float, int, int, int]]:
    return {name: (sum(tally.ious), len(tally.ious), tally.fp, tally.fn) for name, tally in tallies.items()}


def recorded(rows) -> dict[int, tuple[float, int, int, int]]:
    """Of the reference, but categories that count nothing."""
    values = {int(name): (row["iou_sum"], row["tp"], row["fp"], row["fn"]) for name, row in rows.items()}
    return {name: row for name, row in values.items() if any(row)}


def check_scores(scores, expected) -> None:
    """Of a whole data set; the reference gives 0 where nothing is defined."""
    for name, group in (("All", scores.all), ("Things", scores.things), ("Stuff", scores.stuff)):
        assert group._asdict() == pytest.approx(
            {"num_categories": expected[name]["n"], **{key: expected[name][key] for key in ("pq", "sq", "rq")}},
            rel=1e-13,
        )
    counts = recorded(expected["counts"])
    for name, quality in scores.per_category.items():
        if name not in counts:
            assert quality == (None, None, None, 0, 0, 0, 0)
            continue
        row = expected["per_class"][str(name)]
        assert quality[:3] == pytest.approx((row["pq"], row["sq"], row["rq"]), rel=1e-13)
        assert quality[3:] == pytest.approx(counts[name], rel=1e-13)


# --- the recorded reference ------------------------------------------------------------------------------------------


@pytest.fixture
def golden(fixtures):
    """Pairs, categories and what panopticapi gave for the twelve cases."""
    folder = fixtures / "golden" / "metrics" / "panoptic"
    truth, found = (json.loads((folder / f"panoptic_{name}.json").read_text()) for name in ("gt", "pred"))
    rows = {row["image_id"]: row for row in found["annotations"]}
    pairs = [
        Pair(
            image=row["image_id"],
            truth=folder / "panoptic_gt" / row["file_name"],
            truth_segments=listed(row),
            found=folder / "panoptic_pred" / rows[row["image_id"]]["file_name"],
            found_segments=listed(rows[row["image_id"]]),
        )
        for row in truth["annotations"]
    ]
    return pairs, things(folder / "panoptic_gt.json"), json.loads((folder / "expected.json").read_text())


def test_each_case_is_that_of_the_reference(golden):
    pairs, categories, expected = golden
    for pair, row in zip(pairs, expected["per_image"], strict=True):
        maps = [ids_from_png(file.read_bytes()) for file in (pair.truth, pair.found)]
        tallies = compare(maps[0], pair.truth_segments, maps[1], pair.found_segments, categories)
        assert row["image_id"] == pair.image
        assert counted(tallies) == recorded(row["per_class"])


def test_all_cases_together_are_those_of_the_reference(golden):
    pairs, categories, expected = golden
    check_scores(panoptic_quality(pairs, categories), expected)


@pytest.mark.parametrize("name", ["perturbed", "identity"])
def test_real_pictures_are_those_of_the_reference(fixtures, name):
    folder = fixtures / "panoptic"
    recorded_file = json.loads((fixtures / "golden" / "metrics" / "panoptic" / f"sample_data_{name}.json").read_text())
    expected = recorded_file.get("expected", recorded_file)
    truth = json.loads((folder / "panoptic_examples.json").read_text())
    categories = things(folder / "panoptic_coco_categories.json")
    scores = PanopticQuality(categories)
    for row in truth["annotations"]:
        ids = ids_from_png((folder / "panoptic_examples" / row["file_name"]).read_bytes())
        guess, guessed = ids, [replace(segment, crowd=False) for segment in listed(row)]
        if name == "identity":
            guessed = [s for s in guessed if s.id not in {t.id for t in listed(row) if t.crowd}]
            guess = np.where(np.isin(ids, [s.id for s in guessed]), ids, 0)
        else:
            change = next(c for c in recorded_file["perturbation"] if c["image_id"] == row["image_id"])
            guess = np.roll(ids, change["roll_rows_cols"], (0, 1))
            guess = np.where(np.isin(guess, change["ids_set_to_void"]), 0, guess)
            rows = recorded_file["predictions"]["annotations"]
            guessed = segments_from_json(
                next(r for r in rows if r["image_id"] == row["image_id"])["segments_info"], truth=False
            )
        scores.add(row["image_id"], compare(ids, listed(row), guess, guessed, categories))
    check_scores(scores.result(), expected)


# --- worked out by hand ----------------------------------------------------------------------------------------------


def test_an_overlap_of_exactly_half_is_no_match():
    """12 of 24 px, then 13: (IoU ½ is not enough), 13/24."""
    truth, found = np.ones((1, 24), np.uint32), np.zeros((1, 24), np.uint32)
    real = [Segment(id=1, category=1, area=24)]
    found[:, :12] = 5
    assert counted(compare(truth, real, found, [Segment(id=5, category=1)], KINDS)) == {1: (0, 0, 1, 1)}
    found[:, 12] = 5
    assert counted(compare(truth, real, found, [Segment(id=5, category=1)], KINDS)) == {1: (13 / 24, 1, 0, 0)}


def test_void_leaves_the_union_and_crowds_take_predictions():
    """Ids: 3 of 10 px, of which the prediction has 6 and 9 px of void; 4 is a crowd that the other prediction is on."""
    truth = np.array([[3] * 10 + [0] * 10 + [4] * 10])
    found = np.array([[0] * 4 + [7] * 15 + [0] * 2 + [8] * 9])
    real = [Segment(id=3, category=1, area=10), Segment(id=4, category=2, area=10, crowd=True)]
    guessed = [Segment(id=7, category=1), Segment(id=8, category=2)]
    assert counted(compare(truth, real, found, guessed, KINDS)) == {1: (0.6, 1, 0, 0)}
    other = [guessed[0], Segment(id=8, category=9)]  # not of the crowd's category
    assert counted(compare(truth, real, found, other, KINDS)) == {1: (0.6, 1, 0, 0), 9: (0, 0, 1, 0)}


def test_qualities_of_two_categories():
    """One true positive of IoU 0.8, one false positive, one false negative; and three false negatives."""
    scores = PanopticQuality(KINDS)
    scores.add("a", {1: Tally(ious=[0.8], fp=1, fn=1), 9: Tally(fn=3)})
    result = scores.result()
    assert result.per_category[1] == (0.4, 0.8, 0.5, 0.8, 1, 1, 1)
    assert result.per_category[9] == (0, 0, 0, 0, 0, 0, 3)
    assert result.per_category[2] == (None, None, None, 0, 0, 0, 0)
    assert (result.all, result.things, result.stuff) == ((0.2, 0.4, 0.25, 2), (0.4, 0.8, 0.5, 1), (0, 0, 0, 1))


def test_without_any_segment_nothing_is_defined():
    result = PanopticQuality(KINDS).result()
    assert result.all == (None, None, None, 0)
    assert json.loads(json.dumps(result.to_json()))["things"] == {
        "pq": None,
        "sq": None,
        "rq": None,
        "num_categories": 0,
    }


# --- adding up -------------------------------------------------------------------------------------------------------


def test_a_picture_without_prediction_counts_its_segments_as_missed_or_by_the_other_convention_not():
    real = [Segment(id=3, category=1, area=10), Segment(id=4, category=2, area=10, crowd=True)]
    for convention, expected in (("all_images", (0.5, 1.0, 2 / 3, 1)), ("xsam", (1.0, 1.0, 1.0, 1))):
        scores = PanopticQuality(KINDS, convention)
        scores.add(1, {1: Tally(ious=[1.0])})
        scores.add(2, missed(real, KINDS), missing=True)
        result = scores.result()
        assert result.num_missing == 1
        assert result.num_images == (2 if convention == "all_images" else 1)
        if convention == "all_images":
            assert result.per_category[1] == (1 / 1.5, 1.0, 1 / 1.5, 1.0, 1, 0, 1)
        else:
            assert result.all == expected


def test_a_picture_is_counted_once():
    scores, other = PanopticQuality(KINDS), PanopticQuality(KINDS)
    scores.add(1, {})
    other.add(1, {})
    for again in (lambda: scores.add(1, {}), lambda: scores.merge(other)):
        with pytest.raises(ReasonError, match="image 1") as caught:
            again()
        assert caught.value.reason == "image_twice"
    with pytest.raises(UserError, match="merged"):
        scores.merge(PanopticQuality(KINDS, "xsam"))
    with pytest.raises(UserError, match="all_images, xsam"):
        PanopticQuality(KINDS, "other")  # type: ignore[arg-type]
    with pytest.raises(ReasonError, match="category 77"):
        scores.add(2, {77: Tally(fn=1)})


tallies = st.dictionaries(
    st.sampled_from(sorted(KINDS)),
    st.builds(
        Tally,
        ious=st.lists(st.floats(0.5, 1, exclude_min=True), max_size=4),
        fp=st.integers(0, 3),
        fn=st.integers(0, 3),
    ),
)


@settings(max_examples=50)
@given(st.lists(st.tuples(tallies, st.booleans()), max_size=8), st.data())
def test_parts_in_any_order_merge_to_the_same_whole(pictures, data):
    order = data.draw(st.permutations(range(len(pictures))))
    cut = data.draw(st.integers(0, len(pictures)))
    whole, one, two = (PanopticQuality(KINDS, "xsam") for _ in range(3))
    for place, (picture, missing) in enumerate(pictures):
        whole.add(place, picture, missing)
    for rank, place in enumerate(order):
        (one if rank < cut else two).add(place, *pictures[place])
    one.merge(two)
    assert one.result() == whole.result()


# --- properties of matching ------------------------------------------------------------------------------------------

maps = st.lists(st.integers(0, 5), min_size=24, max_size=24).map(lambda ids: np.array(ids, np.uint32).reshape(4, 6))


def category_of(name: int) -> int:
    return (1, 2, 9)[name % 3]


@settings(max_examples=50)
@given(maps.filter(np.any))
def test_ground_truth_as_prediction_scores_one_and_nothing_scores_zero(ids):
    real = segments(ids, category_of)
    for guess, expected in ((ids, 1), (np.zeros_like(ids), 0)):
        scores = PanopticQuality(KINDS)
        scores.add(1, compare(ids, real, guess, segments(guess, category_of), KINDS))
        assert scores.result().all[:3] == (expected,) * 3


@settings(max_examples=50)
@given(maps, maps, st.permutations(range(1, 6)))
def test_names_and_order_of_predictions_do_not_matter(ids, guess, names):
    real, guessed = segments(ids, category_of), segments(guess, category_of)
    renamed = np.array([0, *names], np.uint32)[guess] * 40_000
    other = [replace(segment, id=names[segment.id - 1] * 40_000) for segment in reversed(guessed)]
    one, two = compare(ids, real, guess, guessed, KINDS), compare(ids, real, renamed, other, KINDS)
    assert {name: (sorted(t.ious), t.fp, t.fn) for name, t in one.items()} == {
        name: (sorted(t.ious), t.fp, t.fn) for name, t in two.items()
    }


@settings(max_examples=50)
@given(maps, maps)
def test_every_match_is_what_counting_pixels_says(ids, guess):
    real, guessed = segments(ids, category_of), segments(guess, category_of)
    hits = {}
    for r in real:
        for g in guessed:
            both = int(((ids == r.id) & (guess == g.id)).sum())
            union = int(((ids == r.id) | ((guess == g.id) & (ids != 0))).sum())
            if r.category == g.category and 2 * both > union:
                hits.setdefault(r.category, []).append(both / union)
    found = compare(ids, real, guess, guessed, KINDS)
    assert {name: sorted(t.ious) for name, t in found.items() if t.ious} == {n: sorted(v) for n, v in hits.items()}


# --- what cannot be used ---------------------------------------------------------------------------------------------

ONE = Segment(id=1, category=1, area=4)


@pytest.mark.parametrize(
    ("found", "listed_found", "reason", "names"),
    [
        pytest.param(np.ones((2, 3), np.uint32), [ONE], "segments_size", "3 x 2 px", id="size"),
        pytest.param(np.full((2, 2), 6), [ONE], "segment_unlisted", "as 6", id="unlisted"),
        pytest.param(np.zeros((2, 2), int), [ONE], "segment_empty", "as 1", id="no-pixel"),
        pytest.param(np.ones((2, 2), int), [replace(ONE, category=5)], "unknown_category", "category 5", id="category"),
        pytest.param(np.ones((2, 2), int), [ONE, ONE], "segment_twice", "segment 1", id="twice"),
        pytest.param(np.ones((2, 2), int), [ONE, replace(ONE, id=0)], "segments_invalid", "id 0", id="void-listed"),
        pytest.param(np.full((2, 2), -1), [ONE], "segments_invalid", "outside", id="negative"),
        pytest.param(np.ones((2, 2)), [ONE], "segments_invalid", "float64", id="floats"),
    ],
)
def test_a_prediction_that_cannot_be_used_is_named(found, listed_found, reason, names):
    with pytest.raises(ReasonError, match=names) as caught:
        compare(np.ones((2, 2), np.uint32), [ONE], found, listed_found, KINDS)
    assert caught.value.reason == reason


def test_ground_truth_without_area_is_refused():
    with pytest.raises(ReasonError, match="area of 0 px"):
        missed([replace(ONE, area=0)], KINDS)


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        pytest.param(None, "NoneType", id="absent"),
        pytest.param([3], "segments_info 0 is a int", id="no-object"),
        pytest.param(
            [{"id": 1, "category_id": 1, "area": 3}, {"id": "2"}], "segments_info 1: its id is '2'", id="text"
        ),
        pytest.param([{"id": True, "category_id": 1, "area": 3}], "its id is True", id="bool"),
        pytest.param([{"id": 1, "category_id": 1.5, "area": 3}], "category_id is 1.5", id="fraction"),
        pytest.param([{"id": 1, "category_id": 1}], "area is None", id="no-area"),
        pytest.param([{"id": 1, "category_id": 1, "area": 3, "iscrowd": []}], "iscrowd is \\[\\]", id="crowd"),
    ],
)
def test_segments_that_are_none_are_named(rows, names):
    with pytest.raises(ReasonError, match=names) as caught:
        segments_from_json(rows, truth=True)
    assert caught.value.reason == "segments_invalid"


def test_only_ground_truth_has_areas_and_crowds():
    row = {"id": 1, "category_id": 2, "area": 3, "iscrowd": 1}
    assert segments_from_json([row], truth=True) == [Segment(id=1, category=2, area=3, crowd=True)]
    assert segments_from_json([row], truth=False) == [Segment(id=1, category=2)]


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path) -> list[Pair]:
    """Forty pictures of noise in blocks, two of them without prediction."""
    made = []
    for number in range(40):
        rng = np.random.default_rng(number)
        truth = np.kron(rng.integers(0, 6, (3, 4)), np.ones((4, 4), int))
        found = np.where(rng.random(truth.shape) < 0.2, 0, np.roll(truth, 1, 1))
        made.append(
            Pair(
                image=number,
                truth=write(tmp_path / f"truth{number}.png", truth),
                truth_segments=segments(truth, category_of),
                found=None if number in (3, 37) else write(tmp_path / f"found{number}.png", found),
                found_segments=segments(found, category_of),
            )
        )
    return made


def test_any_number_of_workers_gives_the_same_scores(pairs):
    one, two = (panoptic_quality(pairs, KINDS, workers=workers) for workers in (1, 2))
    assert one == two
    assert (one.num_images, one.num_missing) == (40, 2)
    assert 0 < one.all.pq < 1


def test_an_unusable_prediction_is_raised_or_handed_over_and_then_missing(pairs, tmp_path):
    cases = {
        "segments_unreadable": tmp_path / "torn.png",
        "file_missing": tmp_path / "nowhere.png",
        "segments_mode": tmp_path / "grey.png",
        "segments_size": write(tmp_path / "small.png", np.ones((2, 2), int)),
    }
    cases["segments_unreadable"].write_bytes(pairs[0].found.read_bytes()[:60])
    Image.new("L", (16, 12)).save(cases["segments_mode"])
    broken = [replace(pair, found=file) for pair, file in zip(pairs[4:8], cases.values(), strict=True)]
    given = [*pairs[:4], *broken, *pairs[8:]]
    for pair, reason in zip(broken, cases, strict=True):
        with pytest.raises(ReasonError, match=f"image {pair.image}: ") as caught:
            panoptic_quality([pair], KINDS)
        assert caught.value.reason == reason
    refused = []
    scores = panoptic_quality(
        given, KINDS, workers=2, refuse=lambda pair, error: refused.append((pair.image, error.reason))
    )
    assert refused == list(zip((4, 5, 6, 7), cases, strict=True))
    without = [replace(pair, found=None) if pair.image in (4, 5, 6, 7) else pair for pair in pairs]
    assert scores == panoptic_quality(without, KINDS)


def test_unusable_ground_truth_is_always_raised(pairs, tmp_path):
    for workers, bad in (
        (1, replace(pairs[0], truth=tmp_path / "nowhere.png")),
        (2, replace(pairs[0], truth_segments=[replace(ONE, category=5)])),
    ):
        with pytest.raises(ReasonError, match="image 0: ground truth"):
            panoptic_quality([bad, *pairs[1:]], KINDS, workers=workers, refuse=lambda pair, error: None)
