"""Drawing prompts, against brute force on the full frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine import masks
from dataengine.prompts import render
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
