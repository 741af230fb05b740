"""The published prompts, against values recorded from the reference implementation."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import skimage.draw
import skimage.measure
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dataengine import masks
from dataengine.kernels import simulated
from prompts_sim import published
from prompts_sim.shape import draws_of, shape_from_crop, shape_from_rle

FIXTURES = Path(os.environ.get("DATAENGINE_FIXTURES", Path(__file__).parents[2].parent / "shared" / "fixtures"))
GOLDEN = FIXTURES / "golden" / "prompts"
KINDS = ("point", "scribble", "box", "mask")


class Replay:
    """Recorded draws; each must be asked for in the recorded order, with the recorded bounds."""

    def __init__(self, draws):
        self.draws = list(draws)

    def uniform(self, low, high):
        kind, recorded_low, recorded_high, value = self.draws.pop(0)
        assert kind == "uniform"
        assert (low, high) == pytest.approx((recorded_low, recorded_high), abs=1e-12)
        return value

    def choice(self, number):
        kind, options, index = self.draws.pop(0)
        assert kind == "choice"
        assert number == len(options)
        return index


def golden_objects():
    path = GOLDEN / "objects.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))["objects"] if path.exists() else []


@pytest.mark.parametrize("kind", KINDS)
def test_golden_prompts_are_reproduced(kind):
    objects = golden_objects()
    if not objects:
        pytest.skip(f"needs the recorded prompts in {GOLDEN}")
    wrong = []
    for entry in objects:
        height, width = entry["size"]
        recorded = entry["prompts"][kind]
        rle = entry["object_rle"]["counts"].encode()
        if masks.area(rle, height, width) == 0:  # refused before prompting; the reference gives an empty prompt
            assert recorded["area"] == 0
            continue
        draws = Replay(recorded["draws"] if kind != "mask" else [])
        crop, _, _ = published.drawn(shape_from_rle(rle, height, width), kind, draws)
        assert draws.draws == []
        assert (crop is None) == (recorded["area"] == 0), entry["key"]
        if crop is not None and masks.rle_from_crop(crop, height, width) != recorded["rle"]["counts"].encode():
            wrong.append(entry["key"])
    assert wrong == []
    assert len(objects) == 79


def shape_of(mask):
    return shape_from_rle(masks.encode(mask), *mask.shape)


def draw(shape, kind, seed=0):
    return published.drawn(shape, kind, draws_of(seed, ("a",), KINDS)[kind])


@given(st.integers(0, 2**32), st.integers(8, 60), st.integers(8, 60))
def test_prompts_depend_on_their_key_only(seed, height, width):
    mask = np.zeros((100, 120), bool)
    mask[5 : 5 + height, 7 : 7 + width] = True
    shape = shape_of(mask)
    for kind in KINDS:
        crop, points, parts = draw(shape, kind, seed)
        again, same, _ = draw(shape, kind, seed)
        assert (crop.mask == again.mask).all()
        assert (points == same).all()
        assert crop.x0 >= 0
        assert crop.y0 >= 0
        assert crop.x0 + crop.mask.shape[1] <= 120
        assert crop.y0 + crop.mask.shape[0] <= 100
        assert sum(parts) == len(points)
    ((column, row),) = draw(shape, "point", seed)[1]
    assert mask[row, column]


def test_hard_shapes_have_the_published_gaps():
    line = np.zeros((60, 80), bool)
    line[30, 10:60] = True
    assert draw(shape_of(line), "scribble")[0] is None
    assert draw(shape_of(np.ones((60, 80), bool)), "mask")[0] is None


@given(*[st.integers(0, 40)] * 4)
def test_lines_are_those_of_scikit_image(row_a, column_a, row_b, column_b):
    rows, columns = skimage.draw.line(row_a, column_a, row_b, column_b)
    assert simulated.line(row_a, column_a, row_b, column_b).tolist() == np.column_stack((columns, rows)).tolist()


@given(hnp.arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14))))
def test_components_are_those_of_scikit_image(mask):
    assume(mask.any())
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    mask = np.ascontiguousarray(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    shape = shape_from_crop(masks.Crop(mask, 3, 5), 40, 40)
    expected = skimage.measure.regionprops(skimage.measure.label(np.pad(mask, ((5, 0), (3, 0)))))
    assert [(p.box, p.centroid, p.area) for p in shape.parts] == [
        (r.bbox, pytest.approx(r.centroid, abs=1e-12), r.area) for r in expected
    ]


def test_a_kind_that_needs_many_numbers_gets_them_by_key():
    def many():
        draws = draws_of(7, ("a", 1), KINDS)["box"]
        return [draws.uniform(0, 1) for _ in range(3000)]

    numbers = many()
    assert numbers == many()
    assert len(set(numbers)) == 3000
    assert 0.48 < np.mean(numbers) < 0.52
    choices = [draws_of(n, ("a",), KINDS)["point"].choice(4) for n in range(400)]
    assert min(choices.count(c) for c in range(4)) > 60
