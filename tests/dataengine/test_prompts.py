"""Drawing prompts, against brute force on the full frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine import masks
from dataengine.prompts import MAX_PARTS, Geometry, discs_crop, geometry, render
from dataengine.sample import Prompt


def prompt(kind, **changes) -> Prompt:
    return Prompt(kind=kind, profile="strict", version=1, **{"status": "ok", **changes})


def raster(crop: masks.Crop, height: int, width: int) -> np.ndarray:
    full = np.zeros((height, width), bool)
    h, w = crop.mask.shape
    full[crop.y0 : crop.y0 + h, crop.x0 : crop.x0 + w] = crop.mask
    return full


@given(
    st.lists(st.tuples(st.integers(0, 29), st.integers(0, 24)), min_size=1, max_size=6, unique=True),
    st.integers(0, 10),
)
def test_discs_equal_brute_force(pixels, radius):
    points = tuple(value + 0.5 for pixel in pixels for value in pixel)
    drawn = render(prompt("scribble", points=points, parts=(len(pixels),), radius=float(radius)), 25, 30)
    rows, columns = np.mgrid[:25, :30]
    expected = np.zeros((25, 30), bool)
    for x, y in pixels:
        expected |= np.sqrt((rows - y) ** 2 + (columns - x) ** 2) <= radius
    assert (raster(drawn, 25, 30) == expected).all()


def test_boxes_are_filled_and_joined():
    drawn = render(prompt("box", points=(1, 2, 4, 5, 10, 0, 12, 3), parts=(2, 2)), 8, 20)
    expected = np.zeros((8, 20), bool)
    expected[2:5, 1:4] = True
    expected[0:3, 10:12] = True
    assert (raster(drawn, 8, 20) == expected).all()


def test_masks_are_themselves_and_nothing_is_nothing():
    expected = np.zeros((8, 20), bool)
    expected[3:5, 7:9] = True
    assert (raster(render(prompt("mask", rle=masks.encode(expected)), 8, 20), 8, 20) == expected).all()
    assert render(prompt("point", status="none"), 8, 20) is None


@pytest.mark.parametrize(
    "shown",
    [
        prompt("point", points=(1e9, 5.0), parts=(1,), radius=3.0),
        prompt("point", points=(-1.0, 5.0), parts=(1,), radius=3.0),
        prompt("point", points=(float("nan"), 5.0), parts=(1,), radius=3.0),
        prompt("point", points=(5.0, 5.0), parts=(1,), radius=1e7),
        prompt("point", points=(5.0, 5.0), parts=(1,), radius=float("inf")),
        prompt("point", points=(), parts=(), radius=1.0),
        prompt("scribble", points=(5.0, 5.0, 7.0), parts=(1,), radius=1.0),
        prompt("box", points=(9.0, 9.0, 2.0, 2.0), parts=(2,)),
        prompt("box", points=(0.0, 0.0, 1e6, 10.0), parts=(2,)),
        prompt("mask", rle=b"\xff"),
    ],
)
def test_prompts_without_a_place_are_refused(shown):
    with pytest.raises(masks.MaskError):
        render(shown, 20, 30)


places = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 24)), min_size=1, max_size=6, unique=True)


def disc(radius: int) -> np.ndarray:
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return rows**2 + columns**2 <= radius**2


def recovered(kind: str, full: np.ndarray, radius: int = 0, *, is_traced: bool = False) -> Geometry:
    """What one bitmap is drawn with."""
    radii = {"point": float(radius), "scribble": float(radius)}
    borders = masks.borders_from_rles([masks.encode(full)], *full.shape)
    return geometry(borders, [kind], radii, *full.shape, is_traced=is_traced)[0]


def middles(found: Geometry) -> list[list[int]]:
    return (np.array(found.points).reshape(-1, 2) - 0.5).astype(int).tolist()


def eroded(full: np.ndarray, radius: int) -> list[list[int]]:
    """Pixels x, y whose disc lies in the bitmap, or beyond the canvas."""
    scipy = pytest.importorskip("scipy.ndimage")
    return [[x, y] for y, x in np.argwhere(scipy.binary_erosion(full, disc(radius), border_value=1)).tolist()]


def dilated(full: np.ndarray, radius: int) -> np.ndarray:
    scipy = pytest.importorskip("scipy.ndimage")
    return scipy.binary_dilation(full, disc(radius))


@given(places, st.integers(0, 10), st.integers(0, 3))
def test_centres_of_discs_are_the_erosion_with_the_outside_set(pixels, radius, noise):
    full = raster(discs_crop(np.array(pixels), float(radius), 25, 30), 25, 30)
    for x, y in pixels[:noise]:  # where it is no union of discs
        full[y, x] = False
    if not full.any():
        return
    found, wanted = recovered("scribble", full, radius), eroded(full, radius)
    inner = np.zeros_like(full)
    for x, y in wanted:
        inner[y, x] = True
    is_union = bool((dilated(inner, radius) == full).all())
    assert is_union or noise
    assert found.radius == (radius if is_union else 0)
    assert middles(found) == (wanted if is_union else eroded(full, 0))


@given(places, st.integers(0, 10))
def test_needed_discs_draw_the_same_and_none_is_spare(pixels, radius):
    size = (float(radius), 25, 30)
    full = raster(discs_crop(np.array(pixels), *size), 25, 30)
    needed = np.array(middles(recovered("point", full, radius)))
    assert (raster(discs_crop(needed, *size), 25, 30) == full).all()
    for left_out in range(len(needed) if len(needed) > 1 else 0):
        rest = np.delete(needed, left_out, axis=0)
        assert (raster(discs_crop(rest, *size), 25, 30) != full).any()
    if len(pixels) == 1:
        assert len(needed) == 1  # wherever it lies


@given(st.lists(st.tuples(*[st.integers(0, 15)] * 4), min_size=1, max_size=4))
def test_boxes_of_a_bitmap_are_disjoint_and_make_it_up(corners):
    full = np.zeros((25, 30), bool)
    for x, y, w, h in corners:
        full[y : y + h + 1, x : x + w + 1] = True
    covered = np.zeros((25, 30), int)
    found = np.array(recovered("box", full).points, dtype=int).reshape(-1, 4).tolist()
    for x0, y0, x1, y1 in found:
        covered[y0:y1, x0:x1] += 1
    assert (covered == full).all()
    if len(corners) == 1:
        assert len(found) == 1


def test_a_disc_may_be_larger_than_its_picture():
    """PSALM's click of 10 px on a picture of one pixel."""
    drawn = render(prompt("point", points=(0.5, 0.5), parts=(1,), radius=10.0), 1, 1)
    assert drawn.mask.tolist() == [[True]]


def test_a_bitmap_of_many_parts_is_given_up_early():
    """A few bytes of RLE can claim every pixel of a large picture; their places would take gigabytes."""
    full = np.ones((1000, 1000), bool)
    for radius in (0, 5):
        assert not recovered("scribble", full, radius).is_possible
    checks = np.add.outer(np.arange(1000), np.arange(1000)) % 2 == 0
    assert not recovered("box", checks).is_possible
    exactly = recovered("scribble", np.ones((256, 256), bool))
    assert exactly.is_possible
    assert len(middles(exactly)) == MAX_PARTS


def test_what_lies_on_the_far_edge_or_within_a_pixel_is_drawn():
    """Points at the frame's right and lower edge belong to its last pixels; a box covers the pixels it touches."""
    corner = raster(render(prompt("point", points=(8.0, 6.0), parts=(1,)), 6, 8), 6, 8)
    assert np.argwhere(corner).tolist() == [[5, 7]]
    box = raster(render(prompt("box", points=(2.2, 1.0, 2.8, 3.5), parts=(2,)), 6, 8), 6, 8)
    assert np.argwhere(box).tolist() == [[1, 2], [2, 2], [3, 2]]


def _odd_bitmaps(kind: str, rng: np.random.Generator, height: int, width: int) -> list[np.ndarray]:
    """Bitmaps of one and more discs, cut at the canvas and damaged, of boxes, and of anything."""
    rows, columns = np.mgrid[:height, :width]
    found = [np.ones((height, width), dtype=bool), rng.random((height, width)) < 0.1]
    for number in (1, 1, 1, 1, 2, 3, 6):
        drawn = np.zeros((height, width), dtype=bool)
        for x, y in rng.integers(0, (width, height), (number, 2)).tolist():
            if kind == "box":
                drawn[y : y + 9, x : x + 7] = True
            else:
                drawn |= (columns - x) ** 2 + (rows - y) ** 2 <= (4 if kind == "scribble" else 25)
        found.append(drawn)
        damaged = drawn.copy()
        damaged[rng.integers(height), rng.integers(width)] ^= True
        found.append(damaged)
    return [bitmap for bitmap in found if bitmap.any()]


@pytest.mark.parametrize("is_traced", [False, True])
@pytest.mark.parametrize("size", [(11, 11), (11, 40), (40, 11), (33, 29), (8, 30), (5, 5)])
def test_all_prompts_of_a_picture_are_recovered_as_one_by_one(size, is_traced):
    """A bitmap's neighbours change nothing; and it is drawn again pixel for pixel."""
    rng = np.random.default_rng(size)
    radii = {"point": 5, "scribble": 2}
    given = [
        (kind, full)
        for _ in range(6)
        for kind in ("point", "scribble", "box", "mask")
        for full in _odd_bitmaps(kind, rng, *size)
    ]
    borders = masks.borders_from_rles([masks.encode(full) for _, full in given], *size)
    kinds = [kind for kind, _ in given]
    found = geometry(borders, kinds, {k: float(r) for k, r in radii.items()}, *size, is_traced=is_traced)
    for (kind, full), one in zip(given, found, strict=True):
        alone = recovered(kind, full, radii.get(kind, 0), is_traced=is_traced)
        assert (one.is_possible, one.radius, one.points) == (True, alone.radius, alone.points)
        is_drawn = is_traced and kind in radii
        drawn = dilated(full, radii[kind]) if is_drawn else full
        assert masks.rle_from_borders(one.borders, *size) == masks.encode(drawn)
        if is_drawn:
            assert (one.radius, middles(one)) == (radii[kind], eroded(full, 0))
        if kind != "mask":
            shown = prompt(kind, points=one.points, parts=_parts(kind, one), radius=one.radius)
            assert (raster(render(shown, *size), *size) == drawn).all()


def _parts(kind: str, found: Geometry) -> tuple[int, ...]:
    return (2,) * (len(found.points) // 4) if kind == "box" else (1,) * (len(found.points) // 2)


def test_bitmaps_of_too_many_parts_are_not_possible():
    dots = np.zeros((600, 600), dtype=bool)
    dots[::2, ::2] = True  # 90,000
    borders = masks.borders_from_rles([masks.encode(dots)] * 3, 600, 600)
    radii = {"point": 10.0, "scribble": 5.0}
    found = geometry(borders, ["point", "scribble", "box"], radii, 600, 600, is_traced=False)
    assert not any(one.is_possible for one in found)
