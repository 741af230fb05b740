"""Simulated interaction: the rules of the references, exact depths, and what stops it."""

from __future__ import annotations

import gzip
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dataengine import masks
from dataengine.errors import UserError
from dataengine.keyed import keyed
from dataengine.masks import MaskError
from prompts_sim import clicks as sim
from prompts_sim.clicks import Click, Rules, interact, next_click, preset

SMALL = hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))
PAIRS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


def draws(*key: int) -> np.random.Generator:
    return keyed(0, "test", *key)


def grid(text: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in text.split()])


# --- the references ----------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(fixtures):
    """Ground truths and predictions with the clicks that RITM and SAM 2 give."""
    with gzip.open(fixtures / "golden" / "clicks" / "pairs.json.gz") as file:
        found = json.load(file)["pairs"]
    for pair in found:
        pair["truth"], pair["found"] = (decoded(pair[name], pair["size"]) for name in ("gt", "pred"))
    return found


def decoded(rle: dict, size: list[int]) -> np.ndarray:
    return np.ascontiguousarray(masks.decode(rle["counts"].encode(), *size))


def expect(click: Click | None, x: int, y: int, positive: bool, wrong: bool) -> None:
    if wrong:
        assert click == Click(x, y, int(positive))
    else:
        # the references click the corner, as background, when nothing is wrong; the rules have no such click
        assert (x, y, positive, click) == (0, 0, False, None)


def test_next_click_of_ritm(pairs):
    for pair in pairs:
        truth, found, golden = pair["truth"], pair["found"], pair["ritm_no_ignore"]
        missed, extra = sim.errors(truth, found)
        depths = [sim.squared_depth(side).max() for side in (missed, extra)]
        assert depths == [golden["max_d2_fn"], golden["max_d2_fp"]]
        assert sim.iou(truth, found) == pytest.approx(golden["iou"], rel=1e-12)
        click = next_click(truth, found, preset("ritm"), draws())
        y, x = golden["click_yx"]
        expect(click, x, y, golden["positive"], any(depths))


def test_next_click_of_ritm_with_ignored_pixels(pairs):
    for pair in pairs:
        golden = pair["ritm_with_ignore"]
        ignore = decoded(golden["ignore"], pair["size"])
        depths = [sim.squared_depth(side).max() for side in sim.errors(pair["truth"], pair["found"], ignore)]
        assert depths == [golden["max_d2_fn"], golden["max_d2_fp"]]
        if (wanted := golden["iou_ignoring"]) is not None:  # null: nothing is left to compare
            assert sim.iou(pair["truth"], pair["found"], ignore) == pytest.approx(wanted, rel=1e-12)
        click = next_click(pair["truth"], pair["found"], preset("ritm"), draws(), ignore=ignore)
        y, x = golden["click_yx"]
        expect(click, x, y, golden["positive"], any(depths))


def discs(shape: tuple[int, ...], clicks, radius: dict[bool, int]) -> np.ndarray:
    """Discs about positive clicks, then less those about negative ones."""
    rows, columns = np.indices(shape)
    found = np.zeros(shape, bool)
    for positive in (True, False):
        for click in clicks:
            if click.positive is positive:
                found[(rows - click.y) ** 2 + (columns - click.x) ** 2 <= radius[positive] ** 2] = positive
    return found


def test_sequence_of_ritm(pairs):
    for pair in pairs:
        golden = pair["ritm_sequence"]
        radius = {True: golden["radius_positive"], False: golden["radius_negative"]}
        shape = pair["truth"].shape
        sizes = []

        def predict(clicks, previous, shape=shape, radius=radius, sizes=sizes):
            found = discs(shape, clicks, radius)
            sizes.append(int(found.sum()))
            return np.where(found, np.float32(0.495), np.float32(0.485))  # RITM's threshold lies between

        trace = interact(predict, pair["truth"], rules="ritm", max_clicks=5)
        wanted = golden["clicks"]
        assert [(c.y, c.x, c.positive) for c in trace.clicks] == [(*c["click_yx"], c["positive"]) for c in wanted]
        assert sizes == [c["pred_area_after"] for c in wanted]
        assert trace.ious == pytest.approx([c["iou_after"] for c in wanted], rel=1e-12)


@pytest.mark.parametrize(("name", "border"), [("sam2_center_padded", True), ("sam2_center_unpadded", False)])
def test_centre_clicks_of_sam2(pairs, name, border):
    rules = replace(preset("sam2-eval"), border=border)
    for pair in pairs:
        click = next_click(pair["truth"], pair["found"], rules, draws())
        if pair[name] is None:  # nothing lies outside, so that no distance is defined
            assert pair["truth"].all()
            assert click == Click(0, 0, 1)
            continue
        expect(click, *pair[name]["point_xy"], pair[name]["label"] == 1, (pair["truth"] != pair["found"]).any())


def test_first_clicks_of_sam2(pairs):
    for pair in pairs:
        click = next_click(pair["truth"], np.zeros_like(pair["truth"]), preset("sam2-eval"), draws(), first=True)
        golden = pair["sam2_center_no_pred"]
        assert click == Click(*golden["point_xy"], golden["label"])


def torch_rand(seed: int, number: int) -> np.ndarray:
    """`torch.manual_seed(seed); torch.rand(number)` on a CPU: the lower 24 bits of MT19937's words."""
    words = np.random.RandomState(seed).randint(0, 1 << 32, number, dtype=np.uint32)
    return (words & 0xFFFFFF).astype(np.float32) / np.float32(1 << 24)


@pytest.mark.parametrize(("name", "number", "empty"), [("sam2_random_4", 4, False), ("sam2_random_2_no_pred", 2, True)])
def test_uniform_clicks_of_sam2_are_draws_from_our_error(pairs, name, number, empty):
    """Their noise, put on our error regions, has its maximum at their click; the label is the one we give there."""
    for pair in pairs:
        truth, golden = pair["truth"], pair[name]
        missed, extra = sim.errors(truth, np.zeros_like(truth) if empty else pair["found"])
        if not missed.any() and not extra.any():
            extra = ~truth  # as `background` has it
        noise = torch_rand(golden["torch_seed"], number * truth.size * 2).reshape(number, *truth.shape, 2)
        for one, (x, y), label in zip(noise, golden["points_xy"], golden["labels"], strict=True):
            scores = np.stack([one[..., 0] * extra, one[..., 1] * missed], axis=-1)
            place = np.unravel_index(np.argmax(scores), scores.shape)
            assert place == (y, x, label)
            assert bool(missed[y, x]) is (label == 1)


class Given:
    """A generator whose next numbers are known."""

    def __init__(self, numbers: list[float]) -> None:
        self._numbers = np.array(numbers)

    def random(self, number: int) -> np.ndarray:
        return self._numbers[:number]

    standard_normal = random


def test_boxes_of_sam2(pairs):
    for pair in pairs:
        golden = pair["sam2_box"]
        corners = sim.box_corners(pair["truth"], preset("sam2-train"), Given(golden["uniform_draws_in_0_1"]))
        assert [c.label for c in corners] == golden["labels"]
        places = np.array([[c.x, c.y] for c in corners])
        np.testing.assert_allclose(places, golden["corners_xy"], rtol=1e-6, atol=1e-4)  # theirs are float32
        corners = sim.box_corners(pair["truth"], Rules(), draws())
        assert [[c.x, c.y] for c in corners] == pair["sam2_box_no_noise"]["corners_xy"]


# --- the rules, one by one ---------------------------------------------------------------------------------------


def test_boxes_of_sam_have_normal_noise_of_a_tenth_of_the_side_and_20_px_at_most():
    truth = np.zeros((600, 600), bool)
    truth[100:201, 100:501] = True  # sides of 100 and 400 px
    corners = sim.box_corners(truth, preset("sam-train"), Given([0.25, 0.5, -3.0, -1.0]))
    assert [(c.x, c.y) for c in corners] == [(110, 105), (480, 190)]


@given(SMALL, st.booleans())
def test_depths_are_scipys(mask, border):
    squares = sim.squared_depth(mask, border)
    if not border and mask.all():
        assert (squares == mask.shape[0] ** 2 + mask.shape[1] ** 2).all()
        return
    if border:
        wanted = scipy.ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    else:
        wanted = scipy.ndimage.distance_transform_edt(mask)
    np.testing.assert_array_equal(squares, np.rint(wanted**2))


def test_depths_without_a_border_where_the_outside_is_far():
    mask = np.ones((3, 500), bool)
    mask[1, 0] = False
    assert sim.squared_depth(mask, border=False)[0, 499] == 499**2 + 1
    assert sim.squared_depth(mask)[1, 499] == 1


# the object's left part is missed: 3 x 3 deep, 9 px; on the right a strip of 2 x 6 is too much, 12 px
TRUTH = grid("""
.............
.###.........
.###.........
.###.........
.............
.............""")
FOUND = grid("""
.............
.............
......######.
......######.
.............
.............""")


@pytest.mark.parametrize(
    ("sign", "wanted"),
    [("distance", Click(2, 2, 1)), ("area", Click(6, 2, 0)), ("pixel", Click(2, 2, 1))],
    ids=["the deeper side", "the larger side, first of equals", "the deepest pixel of both"],
)
def test_signs(sign, wanted):
    assert next_click(TRUTH, FOUND, Rules(sign=sign), draws()) == wanted


def test_ties_between_the_sides():
    truth, found = grid("#..."), grid("...#")
    assert next_click(truth, found, Rules(sign="distance"), draws()) == Click(3, 0, 0)
    assert next_click(truth, found, Rules(sign="area"), draws()) == Click(0, 0, 1)
    assert next_click(truth, found, Rules(sign="pixel"), draws()) == Click(0, 0, 1)


def test_one_region_of_both_signs_is_deeper_than_its_sides():
    """FN and FP side by side: taken as one region, the deepest pixel lies at their border."""
    truth, found = np.zeros((7, 8), bool), np.zeros((7, 8), bool)
    truth[1:6, 1:4] = True
    found[1:6, 4:7] = True
    assert next_click(truth, found, Rules(sign="pixel"), draws()) == Click(3, 3, 1)  # depth 3, alone it has 2
    assert next_click(truth, found, Rules(), draws()) == Click(5, 2, 0)


def test_the_largest_component_is_not_the_deepest():
    truth = grid("""
    ###.......
    ###.######
    ###.######""")
    nothing = np.zeros_like(truth)
    assert next_click(truth, nothing, Rules(), draws()) == Click(1, 1, 1)
    assert next_click(truth, nothing, Rules(component="largest"), draws()) == Click(4, 1, 1)


def test_without_a_border_the_edge_of_the_picture_is_deep():
    truth = grid("""
    ###..
    ###..
    ###..""")
    nothing = np.zeros_like(truth)
    assert next_click(truth, nothing, Rules(), draws()) == Click(1, 1, 1)
    assert next_click(truth, nothing, Rules(border=False), draws()) == Click(0, 0, 1)


@pytest.mark.parametrize(
    ("repeat", "reach", "wanted"),
    [
        ("allowed", 0, Click(2, 2, 1)),
        ("masked", 0, Click(1, 1, 1)),  # all pixels next to the centre keep their depth or are shallower
        ("removed", 1, Click(0, 0, 1)),
    ],
)
def test_clicked_pixels(repeat, reach, wanted):
    truth = np.ones((5, 5), bool)
    rules = Rules(repeat=repeat, click_reach=reach)
    click = next_click(truth, np.zeros_like(truth), rules, draws(), clicks=[Click(2, 2, 1)])
    assert click == wanted


def test_removed_pixels_change_the_depth_of_others_and_the_larger_side():
    truth, found = grid("#####......"), grid(".......####")
    rules = Rules(sign="area", repeat="removed", click_reach=1)
    assert next_click(truth, found, rules, draws()) == Click(0, 0, 1)
    assert next_click(truth, found, rules, draws(), clicks=[Click(2, 0, 1)]) == Click(7, 0, 0)


def test_nothing_left_to_click():
    truth = grid("#.")
    nothing = np.zeros_like(truth)
    for sampler in ("centre", "uniform"):
        rules = Rules(sampler=sampler, repeat="masked")
        assert next_click(truth, nothing, rules, draws(), clicks=[Click(0, 0, 1)]) is None
        assert next_click(truth, truth, rules, draws()) is None
    assert next_click(truth, truth, Rules(sampler="uniform", background=True), draws()) == Click(1, 0, 0)
    full = np.ones((1, 2), bool)
    assert next_click(full, full, Rules(sampler="uniform", background=True), draws()) is None


@given(PAIRS, st.sampled_from(sorted(sim.PRESETS)), st.integers(0, 5))
def test_a_click_lies_in_the_error_and_says_which(pair, name, number):
    truth, found = pair
    rules = replace(preset(name), from_truth=0.0, background=False)
    click = next_click(truth, found, rules, draws(number))
    assert (click is None) is bool((truth == found).all())
    if click is not None:
        assert truth[click.y, click.x] != found[click.y, click.x]
        assert click.positive is bool(truth[click.y, click.x])


def slow_centre(truth, found, rules: Rules, clicked: list[tuple[int, int]]) -> Click | None:
    """The rules for the deepest pixel, spelt out with SciPy."""
    missed, extra = truth & ~found, found & ~truth
    places = np.zeros_like(truth)
    for row, column in clicked:
        places[row, column] = True
    if rules.repeat == "removed":
        reach = np.ones((2 * rules.click_reach + 1,) * 2)
        near = scipy.ndimage.binary_dilation(places, reach)
        missed, extra = missed & ~near, extra & ~near
    sides = [missed | extra] if rules.sign == "pixel" else [missed, extra]
    depths, sizes = [], []
    for side in sides:
        if rules.component == "largest" and side.any():
            labels, number = scipy.ndimage.label(side, np.ones((3, 3)))
            areas = [(labels == n).sum() for n in range(1, number + 1)]
            side = labels == 1 + int(np.argmax(areas))
        width = int(rules.border)
        depth = scipy.ndimage.distance_transform_edt(np.pad(side, width))
        depth = np.rint(depth[width : depth.shape[0] - width, width : depth.shape[1] - width] ** 2)
        if not rules.border and side.all():
            depth[:] = 1
        if rules.repeat == "masked":
            depth[places] = 0
            side = side & ~places
        depths.append(depth)
        sizes.append(side.sum())
    first = rules.sign == "pixel" or (
        depths[0].max() > depths[1].max() if rules.sign == "distance" else sizes[0] >= sizes[1]
    )
    depth = depths[0 if first else 1]
    row, column = map(int, np.unravel_index(np.argmax(depth), depth.shape))
    return Click(column, row, int(missed[row, column])) if depth.max() else None


@given(
    PAIRS,
    st.builds(
        Rules,
        sign=st.sampled_from(["distance", "area", "pixel"]),
        component=st.sampled_from(["all", "largest"]),
        border=st.booleans(),
        repeat=st.sampled_from(["allowed", "masked", "removed"]),
        click_reach=st.integers(0, 1),
    ),
    st.data(),
)
def test_the_deepest_pixel_under_any_rules(pair, rules, data):
    truth, found = pair
    rows, columns = truth.shape
    places = st.tuples(st.integers(0, rows - 1), st.integers(0, columns - 1))
    clicked = data.draw(st.lists(places, max_size=3))
    assume(rules.border or not (rules.sign == "distance" and (truth ^ found).all()))  # depths without any outside
    click = next_click(truth, found, rules, draws(), clicks=[Click(column, row, 1) for row, column in clicked])
    assert click == slow_centre(truth, found, rules, clicked)


def test_uniform_clicks_reach_every_wrong_pixel_alike():
    truth, found = grid("##..#"), grid("...##")
    rules = Rules(sampler="uniform", sign="pixel")
    seen = [next_click(truth, found, rules, draws(n)) for n in range(300)]
    counts = {click: seen.count(click) for click in (Click(0, 0, 1), Click(1, 0, 1), Click(3, 0, 0))}
    assert sum(counts.values()) == 300
    assert min(counts.values()) > 70  # 100 each are expected, 8 of them is a standard deviation


def test_clicks_from_the_whole_object_whatever_was_found():
    truth = grid("####.")
    rules = Rules(sampler="uniform", sign="pixel", from_truth=1.0)
    seen = {next_click(truth, grid("###.#"), rules, draws(n), clicks=[Click(0, 0, 1)]) for n in range(100)}
    assert seen == {Click(x, 0, 1) for x in range(4)}


# --- the interaction ---------------------------------------------------------------------------------------------


def perfect_after(number: int, truth: np.ndarray):
    """Finds nothing but the first pixel until it has been asked so often."""
    asked = itertools.count(1)

    def predict(clicks, previous):
        found = np.zeros_like(truth)
        found[np.unravel_index(np.argmax(truth), truth.shape)] = True
        return truth.copy() if next(asked) >= number else found

    return predict


SQUARE = np.zeros((20, 30), bool)
SQUARE[5:11, 8:16] = True


def test_it_stops_at_the_iou_and_at_the_number_of_clicks():
    trace = interact(perfect_after(4, SQUARE), SQUARE)
    assert trace.ious == (1 / 48, 1 / 48, 1 / 48, 1.0)
    assert len(trace.clicks) == len(trace.seconds) == 4
    assert (trace.found == SQUARE).all()
    assert len(interact(perfect_after(99, SQUARE), SQUARE, max_clicks=3).ious) == 3
    assert len(interact(perfect_after(2, SQUARE), SQUARE, stop_iou=0.02).ious) == 1


def test_without_a_stop_it_ends_where_nothing_is_wrong_or_goes_on_in_the_background():
    assert len(interact(perfect_after(2, SQUARE), SQUARE, stop_iou=None).ious) == 2
    trace = interact(perfect_after(2, SQUARE), SQUARE, rules="sam2-train", start="click", stop_iou=None, max_clicks=8)
    assert len(trace.ious) == 8
    assert [click.positive for click in trace.clicks] == [bool(SQUARE[c.y, c.x]) for c in trace.clicks]


@pytest.mark.parametrize("name", sim.PRESETS)
def test_the_predictor_gets_all_clicks_and_its_own_answer(name):
    calls = []

    def predict(clicks, previous):
        calls.append((clicks, previous))
        return np.full(SQUARE.shape, 0.1 * len(calls), np.float32)

    trace = interact(predict, SQUARE, rules=name, start="click", max_clicks=5)
    assert [len(clicks) for clicks, _ in calls] == [1, 2, 3, 4, 5]
    assert calls[-1][0] == trace.clicks
    assert calls[0][1] is None
    for number, (_, previous) in enumerate(calls[1:], 1):
        np.testing.assert_array_equal(previous, np.full(SQUARE.shape, 0.1 * number, np.float32))


def test_starts():
    calls = []

    def predict(clicks, previous):
        calls.append((clicks, previous))
        return np.zeros_like(SQUARE)

    box = interact(predict, SQUARE, start="box", max_clicks=2)
    assert box.clicks == (Click(8, 5, 2), Click(15, 10, 3), Click(10, 7, 1))
    assert calls[0] == (box.clicks[:2], None)
    calls.clear()
    mask = interact(predict, SQUARE, start="mask", max_clicks=2)
    assert calls[0][0] == ()
    np.testing.assert_array_equal(calls[0][1], SQUARE)
    assert mask.clicks == (Click(10, 7, 1),)
    assert len(mask.ious) == len(box.ious) == 2


def test_starts_are_drawn_by_their_shares():
    starts = [interact(lambda c, p: SQUARE, SQUARE, rules="sam2-train", key=n).start for n in range(200)]
    counts = {start: starts.count(start) for start in ("mask", "click", "box")}
    assert abs(counts["mask"] - 100) < 30
    assert abs(counts["click"] - 50) < 25
    assert {interact(lambda c, p: SQUARE, SQUARE, key=n).start for n in range(20)} == {"click"}


def test_draws_depend_on_seed_and_key_only():
    def clicks(**key):
        return interact(lambda c, p: np.zeros_like(SQUARE), SQUARE, rules="sam-train", start="click", **key).clicks

    assert clicks(seed=1, key="a") == clicks(seed=1, key="a")
    assert len({clicks(seed=1, key="a"), clicks(seed=2, key="a"), clicks(seed=1, key="b")}) == 3
    assert clicks()[:7] == interact(lambda c, p: ~SQUARE & False, SQUARE, rules="sam-train", start="click").clicks[:7]


def test_ignored_pixels_count_neither_way():
    ignore = np.zeros_like(SQUARE)
    ignore[:, 12:] = True
    trace = interact(lambda c, p: SQUARE & ~ignore, SQUARE, ignore=ignore)
    assert trace.ious == (1.0,)
    assert trace.clicks[0].x < 12


def test_seconds_are_the_predictors():
    ticks = iter([1.0, 1.5, 10.0, 12.0])
    trace = interact(perfect_after(2, SQUARE), SQUARE, clock=lambda: next(ticks))
    assert trace.seconds == (0.5, 2.0)


@given(SMALL, st.sampled_from(sorted(sim.PRESETS)))
def test_every_object_is_found_by_a_predictor_that_takes_the_clicks(truth, name):
    """It marks what it is told, pixel by pixel: at most one click a pixel is needed."""
    assume(truth.any())

    def predict(clicks, previous):
        found = np.zeros_like(truth)
        for click in clicks:
            found[click.y, click.x] = click.positive
        return found

    rules = replace(preset(name), repeat="allowed", starts={"click": 1.0}, from_truth=0.0)
    trace = interact(predict, truth, rules=rules, max_clicks=100)
    assert trace.ious[-1] == 1.0
    assert len(trace.clicks) == truth.sum()
    assert list(trace.ious) == sorted(trace.ious)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (np.zeros((3, 3)), r"shape \(3, 3\); numbers of \(20, 30\)"),
        (np.full(SQUARE.shape, np.nan), "not finite"),
        (np.full(SQUARE.shape, "a"), "numbers of"),
    ],
    ids=["another size", "NaN", "texts"],
)
def test_answers_that_are_no_prediction(answer, said):
    with pytest.raises(UserError, match=said):
        interact(lambda c, p: answer, SQUARE)


def test_what_cannot_be_asked():
    with pytest.raises(MaskError, match="without a pixel"):
        interact(lambda c, p: SQUARE, np.zeros_like(SQUARE))
    with pytest.raises(MaskError, match="without a pixel"):
        interact(lambda c, p: SQUARE, SQUARE, ignore=SQUARE)
    with pytest.raises(UserError, match="bool mask"):
        interact(lambda c, p: SQUARE, SQUARE.astype(np.uint8))
    with pytest.raises(UserError, match="there are ritm, sam-train"):
        interact(lambda c, p: SQUARE, SQUARE, rules="sam-3")
    with pytest.raises(UserError, match="sign is 'depth'"):
        Rules(sign="depth")
    with pytest.raises(UserError, match="starts are"):
        Rules(starts={"click": 0.0})
    with pytest.raises(UserError, match="starts are"):
        Rules(starts={"click": 2.0, "box": -1.0})
    with pytest.raises(UserError, match="from_truth 2 is a share"):
        Rules(from_truth=2)
    with pytest.raises(UserError, match="start is 'point'"):
        interact(lambda c, p: SQUARE, SQUARE, start="point")
