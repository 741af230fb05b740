"""Simulated prompts of both profiles: inside, measured, never missing, and dependent on their key only."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dataengine import masks
from dataengine.prompts import render
from dataengine.sample import PROMPT_KINDS, Object
from prompts_sim import simulate
from prompts_sim.strict import depth_of

H, W = 90, 110


def thing(mask: np.ndarray, name: str = "a", crowd: bool = False) -> Object:
    rle = masks.encode(mask)
    area, box = masks.measure(rle, *mask.shape)
    return Object(rle=rle, bbox=box, area=area, category_id=1, annotation_id=name, crowd=crowd)


def placed(small: np.ndarray, height: int = H, width: int = W, y: int = 30, x: int = 40) -> np.ndarray:
    full = np.zeros((height, width), bool)
    full[y : y + small.shape[0], x : x + small.shape[1]] = small
    return full


def prompts_of(mask: np.ndarray, profile: str = "strict", seed: int = 0):
    (one,) = simulate([thing(mask)], *mask.shape, profile=profile, seed=seed, image_key="k")
    return dict(zip(PROMPT_KINDS, one.prompts, strict=True))


def ring(radius: int, hole: float) -> np.ndarray:
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    distance = np.hypot(rows, columns)
    return (distance <= radius) & (distance >= hole)


ELL = np.zeros((40, 40), bool)
ELL[:, :5] = ELL[-5:] = True
COMB = np.zeros((30, 41), bool)
COMB[-2:] = COMB[:, ::4] = True
SHAPES = {
    "one pixel": np.ones((1, 1), bool),
    "two pixels": np.ones((1, 2), bool),
    "line": np.ones((1, 50), bool),
    "upright line": np.ones((50, 1), bool),
    "diagonal": np.eye(40, dtype=bool),
    "bar": np.ones((3, 60), bool),
    "ring": ring(20, 12),
    "thin ring": ring(20, 19.2),
    "ell": ELL,
    "comb": COMB,
    "disc": ring(25, 0),
    "two parts": np.hstack([ring(8, 0), np.zeros((17, 9), bool), ring(8, 5)]),
    "dust": np.kron(np.eye(5, dtype=bool), np.array([[1, 0], [0, 0]], bool)),
}


@given(hnp.arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30))))
def test_depth_is_the_exact_distance(small):
    expected = scipy.ndimage.distance_transform_edt(np.pad(small, 1))[1:-1, 1:-1]
    assert (depth_of(masks.Crop(small, 0, 0)) == expected.astype(np.float32)).all()


@pytest.mark.parametrize("name", SHAPES)
def test_strict_does_not_depend_on_how_opencv_was_built(name):
    mask = placed(np.kron(SHAPES[name], np.ones((2, 2), bool)), 200, 200)
    before = cv2.ipp.useIPP()
    found = []
    for used in (True, False):
        cv2.ipp.setUseIPP(used)
        found.append([prompts_of(mask, seed=seed) for seed in range(5)])
    cv2.ipp.setUseIPP(before)
    assert found[0] == found[1]


def check_strict(mask: np.ndarray, seed: int = 0) -> None:
    found = prompts_of(mask, seed=seed)
    for kind in ("point", "scribble", "mask"):
        assert found[kind].inside == 1, kind
    for kind, prompt in found.items():
        assert prompt.status in ("ok", "fallback")
        crop = render(prompt, *mask.shape)
        assert crop.mask.any(), kind
        assert crop.x0 >= 0 <= crop.y0
        assert crop.y0 + crop.mask.shape[0] <= mask.shape[0]
        assert crop.x0 + crop.mask.shape[1] <= mask.shape[1]
    x0, y0, x1, y1 = found["box"].points
    assert 0 <= x0 < x1 <= mask.shape[1]
    assert 0 <= y0 < y1 <= mask.shape[0]
    assert found["point"].status == "ok"
    size = int(mask.sum())
    if size >= 4:
        share = masks.area(found["mask"].rle, *mask.shape) / size
        assert 0.7 <= share <= 0.95


@pytest.mark.parametrize("name", SHAPES)
def test_strict_serves_hard_shapes(name):
    check_strict(placed(SHAPES[name]))
    check_strict(SHAPES[name])  # touching the border on all sides


@given(hnp.arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30))), st.integers(0, 2**32))
def test_strict_serves_any_mask(small, seed):
    assume(small.any())
    check_strict(placed(small), seed)


@given(st.sampled_from(sorted(SHAPES)), st.integers(0, 2**32), st.sampled_from(["strict", "published"]))
def test_size_does_not_depend_on_the_canvas(name, seed, profile):
    """The same object farther from the border of a larger picture gets the same prompts, moved."""
    near = prompts_of(placed(SHAPES[name], 180, 200, 60, 60), profile, seed)
    far = prompts_of(placed(SHAPES[name], 400, 500, 160, 160), profile, seed)
    for kind in ("point", "scribble", "box"):
        moved = tuple(value + 100 for value in near[kind].points)
        assert far[kind].points == moved
        assert far[kind].radius == near[kind].radius
    if profile == "strict":
        crops = (masks.crop_from_rle(near["mask"].rle, 180, 200), masks.crop_from_rle(far["mask"].rle, 400, 500))
        assert (crops[0].mask == crops[1].mask).all()


def test_strict_strokes_and_clicks_fit_the_size():
    for radius, expected in ((5, 1), (14, 3), (28, 5)):
        found = prompts_of(placed(ring(radius, 0), y=20, x=20))
        assert found["scribble"].radius == expected
        xs = found["scribble"].points[::2]
        assert max(xs) - min(xs) > 0.5 * radius
        assert found["point"].radius == pytest.approx(min(10, radius - 1), abs=radius / 2)
    far = prompts_of(placed(ring(20, 12)))["point"].points
    assert np.hypot(far[0] - 60.5, far[1] - 50.5) > 12  # on the ring, not in its hole


def two_objects():
    first, second = np.zeros((H, W), bool), np.zeros((H, W), bool)
    first[10:60, 10:70] = True
    second[30:80, 40:100] = True
    return thing(first, "a"), thing(second, "b"), thing(placed(ring(9, 0), y=5, x=5), "c", crowd=True)


@pytest.mark.parametrize("profile", ["published", "strict"])
def test_figures_equal_brute_force(profile):
    objects = two_objects()
    prompted = simulate(objects, H, W, profile=profile, seed=3, image_key="k")
    rasters = [masks.decode(o.rle, H, W) for o in objects]
    assert prompted[2] == objects[2]
    for number in (0, 1):
        for prompt in prompted[number].prompts:
            crop = render(prompt, H, W)
            full = placed(crop.mask, H, W, crop.y0, crop.x0)
            total = full.sum()
            assert prompt.inside == pytest.approx((full & rasters[number]).sum() / total, abs=1e-12)
            others = [(full & r).sum() / total for n, r in enumerate(rasters) if n != number]
            assert prompt.other == pytest.approx(max(others), abs=1e-12)
            assert prompt.profile == profile


@pytest.mark.parametrize("offset", [-11, -10, -9, 9, 10, 11])
def test_a_click_on_a_thin_object_is_measured_as_far_as_its_disc_reaches(offset):
    thin, beside = placed(np.ones((20, 1), bool)), placed(np.ones((40, 1), bool), y=20, x=40 + offset)
    first, _ = simulate([thing(thin), thing(beside, "b")], H, W, profile="published", seed=0, image_key="k")
    crop = render(first.prompts[0], H, W)
    full = placed(crop.mask, H, W, crop.y0, crop.x0)
    assert first.prompts[0].other == pytest.approx((full & beside).sum() / full.sum(), abs=1e-12)
    assert (first.prompts[0].other > 0) == (abs(offset) <= 10)


@pytest.mark.parametrize("profile", ["published", "strict"])
def test_prompts_depend_on_their_object_only(profile):
    first, second, crowd = two_objects()
    far = replace(second, annotation_id="z", rle=masks.encode(placed(ring(3, 0), y=80, x=100)))
    settings = {"profile": profile, "seed": 3, "image_key": "k"}

    def geometry(objects, **changes):
        prompted = simulate(objects, H, W, **(settings | changes))
        return {o.annotation_id: [(p.kind, p.points, p.rle, p.radius) for p in o.prompts] for o in prompted}

    every = geometry([first, second, crowd])
    assert geometry([crowd, second, first]) == every
    assert geometry([first, far])["a"] == geometry([first])["a"]
    boxes = geometry([first, second], kinds=("box",))
    assert boxes["b"] == [every["b"][2]]
    assert geometry([first], seed=4)["a"] != every["a"]
    assert geometry([first], image_key="other")["a"] != every["a"]
    assert simulate([], H, W, **settings) == ()


def test_strict_clicks_avoid_other_objects():
    first, second, _ = two_objects()
    alone = [simulate([first], H, W, profile="strict", seed=n, image_key="k")[0].prompts[0] for n in range(60)]
    beside = [simulate([first, second], H, W, profile="strict", seed=n, image_key="k")[0].prompts[0] for n in range(60)]
    inside_second = [masks.decode(second.rle, H, W)[int(p.points[1]), int(p.points[0])] for p in alone]
    avoided = [masks.decode(second.rle, H, W)[int(p.points[1]), int(p.points[0])] for p in beside]
    assert sum(inside_second) > 10
    assert sum(avoided) < sum(inside_second) / 3


@pytest.mark.parametrize(
    ("changes", "message"), [({"profile": "best"}, "profile 'best'"), ({"kinds": ("dot",)}, "'dot'")]
)
def test_unknown_names_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        simulate(two_objects(), H, W, **({"profile": "strict", "seed": 0, "image_key": "k"} | changes))


def test_real_objects(fixtures):
    """Strict never misses on published objects; published misses as the reference does."""
    import json

    counts = {"strict": 0, "published": 0}
    for split in ("train2017", "val2017"):
        document = json.loads((fixtures / "coco" / "annotations" / f"instances_{split}.json").read_text())
        sizes = {i["id"]: (i["height"], i["width"]) for i in document["images"]}
        for image, size in sizes.items():
            objects = []
            for a in document["annotations"]:
                if a["image_id"] == image:
                    rle = masks.rle_from_segmentation(a["segmentation"], *size)
                    area, box = masks.measure(rle, *size)
                    objects.append(
                        Object(
                            rle=rle,
                            bbox=box,
                            area=area,
                            category_id=1,
                            annotation_id=str(a["id"]),
                            crowd=bool(a["iscrowd"]),
                        )
                    )
            for profile in counts:
                for one in simulate(objects, *size, profile=profile, seed=0, image_key=str(image)):
                    for prompt in one.prompts:
                        counts[profile] += prompt.status == "none"
                        if profile == "strict" and prompt.kind != "box":
                            assert prompt.inside == 1
    assert counts["strict"] == 0
    assert 0 < counts["published"] < 20
