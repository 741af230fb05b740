"""Compiled loops against libraries that do the same."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pycocotools.mask as oracle
import scipy.ndimage
import skimage.measure
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dataengine import kernels, masks
from dataengine.kernels import crops, marks, philox, runlengths

rasters = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))
margins = st.tuples(*[st.integers(0, 3)] * 4)


@given(rasters, margins)
def test_runs_of_a_crop_are_those_of_its_canvas(mask, around):
    left, top, right, bottom = around
    canvas = np.pad(mask, ((top, bottom), (left, right)))
    height, width = canvas.shape
    runs = runlengths.runs_of_crop(mask, left, top, height, width)
    code = runlengths.code_from_runs(runs)
    assert code.tobytes() == oracle.encode(np.asfortranarray(canvas.astype(np.uint8)))["counts"]
    again = np.empty(code.size, dtype=np.int64)
    assert again[: runlengths.runs_from_code(code, height * width, again)].tolist() == runs.tolist()
    area, x0, y0, x1, y1 = runlengths.measure_runs(runs, height)
    assert area == canvas.sum()
    if area:
        rows, columns = np.nonzero(canvas)
        assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        drawn = np.zeros((x1 - x0, y1 - y0), dtype=bool)
        runlengths.fill_runs(runs, height, x0, y0, drawn)
        assert (canvas[y0:y1, x0:x1] == drawn.T).all()


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 70))
def test_random_numbers_are_those_of_numpy(low, high, number):
    key = np.array([low, high], dtype=np.uint64)
    found = np.empty(number)
    philox.philox(key, found)
    assert found.tolist() == np.random.Generator(np.random.Philox(key=key)).random(number).tolist()


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=30), fill=st.just(True)))
def test_depth_is_the_exact_distance(mask):
    expected = scipy.ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    for dtype in (np.float32, np.float64):
        squares = np.empty(mask.shape, dtype=dtype)
        crops.squared_depth(mask, squares)
        assert (squares == np.rint(expected**2)).all()


@given(rasters)
def test_components_are_those_of_scikit_image(mask):
    labels, stats = crops.components(mask)
    expected, number = skimage.measure.label(mask, connectivity=2, return_num=True)
    assert len(stats) == number
    if number > 1:
        assert (labels == expected).all()
    for name, figures in enumerate(stats.tolist(), start=1):
        rows, columns = np.nonzero(expected == name)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert figures == [rows.size, *box, columns.sum(), rows.sum()]


@given(st.lists(st.tuples(st.integers(0, 14), st.integers(0, 9)), min_size=1), st.integers(0, 4))
def test_discs_are_drawn_as_defined(pixels, radius):
    halves = np.array([int((radius**2 - row**2) ** 0.5) for row in range(-radius, radius + 1)])
    bitmap, x0, y0 = marks.discs(np.array(pixels, dtype=np.int64), halves, 10, 15)
    rows, columns = np.mgrid[:10, :15]
    expected = np.zeros((10, 15), dtype=bool)
    for x, y in pixels:
        expected |= (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    drawn = np.zeros((10, 15), dtype=bool)
    drawn[y0 : y0 + bitmap.shape[0], x0 : x0 + bitmap.shape[1]] = bitmap
    assert (drawn == expected).all()


def test_shares_of_masks_by_their_borders():
    rng = np.random.default_rng(0)
    full = rng.random((9, 13, 17)) < rng.random((9, 1, 1))
    full[7], full[8] = False, True
    borders = masks.borders_from_rles([masks.encode(mask) for mask in full], 13, 17)
    owners = np.arange(9) % 4
    stop = borders.stops[3]
    found = runlengths.shares(borders.places, borders.stops, owners, borders.places[:stop], borders.stops[:4])
    for mask, own, shared in zip(full, owners, found.tolist(), strict=True):
        both = [int((mask & thing).sum()) for thing in full[:4]]
        assert shared == [mask.sum(), both[own], max(n for k, n in enumerate(both) if k != own)]


def test_borders_do_not_show_how_a_code_was_written():
    """Runs of no pixels, which other programs write, leave no borders; what is no mask has none."""
    plain = masks.rle_from_counts([3, 4, 5], 3, 4)
    odd = masks.rle_from_counts([3, 2, 0, 2, 0, 0, 5, 0], 3, 4)
    found = masks.borders_from_rles([plain, b"zz!!", odd, b"0"], 3, 4)
    assert found.places.tolist() == [3, 7, 3, 7]
    assert found.stops.tolist() == [2, 2, 4, 4]
    assert found.figures[:, 0].tolist() == [4, -1, 4, -1]
    assert masks.rle_from_borders(found.places[2:], 3, 4) == plain != odd


def test_hostile_codes_are_told_apart():
    def decoded(code: bytes) -> int:
        return runlengths.runs_from_code(np.frombuffer(code, np.uint8), 16, np.empty(len(code), np.int64))

    assert decoded(b"\xff") == decoded(b"\x00") == decoded(b"P") == decoded(b"o" * 9 + b"0") == runlengths.MALFORMED
    assert decoded(b"O") == runlengths.NEGATIVE
    assert decoded(b"ooooooo0") == runlengths.TOO_LONG
    assert decoded(b"") == 0


def test_no_loop_calls_one_of_another_file():
    """Numba keeps what it compiled until the file of a function changes; of its callees' files it knows nothing."""
    folder = Path(kernels.__file__).parent
    for file in folder.glob("*.py"):
        imported = re.findall(r"dataengine\.kernels\S* import .*", file.read_text())
        assert set(imported) <= {"dataengine.kernels.compiled import compiled"}, file.name


@given(st.one_of(st.binary(max_size=6), st.lists(st.sampled_from(b"0123456789@P`"), max_size=6).map(bytes)))
def test_a_code_is_a_mask_where_it_can_be_decoded(code):
    try:
        masks.counts_from_rle(code, 4, 4)
        right = True
    except masks.MaskError:
        right = False
    assert runlengths.is_code(np.frombuffer(code, np.uint8), 16) == right
