"""The published prompts, against values recorded from the reference implementation."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as oracle

from dataengine import masks
from dataengine.keyed import keyed
from prompts_sim import published
from prompts_sim.published import KeyedDraws

FIXTURES = Path(os.environ.get("DATAENGINE_FIXTURES", Path(__file__).parents[2].parent / "shared" / "fixtures"))
GOLDEN = FIXTURES / "golden" / "prompts"
KINDS = {"point": published.point_prompt, "scribble": published.scribble_prompt, "box": published.box_prompt}


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


def bitmap(prompt, height, width):
    crop = published.render(prompt, height, width)
    if crop is None:
        return masks.encode(np.zeros((height, width), bool))
    return masks.rle_from_crop(crop, height, width)


@pytest.mark.parametrize("kind", [*KINDS, "mask"])
def test_golden_prompts_are_reproduced(kind):
    objects = golden_objects()
    if not objects:
        pytest.skip(f"needs the recorded prompts in {GOLDEN}")
    wrong = []
    for entry in objects:
        height, width = entry["size"]
        recorded = entry["prompts"][kind]
        rle = entry["object_rle"]["counts"].encode()
        if masks.area(rle) == 0:  # refused before prompting; the reference gives an empty prompt
            assert recorded["area"] == 0
            continue
        shape = published.shape_from_rle(rle, height, width)
        draws = Replay(recorded["draws"])
        prompt = published.mask_prompt(shape) if kind == "mask" else KINDS[kind](shape, draws)
        assert draws.draws == []
        assert (prompt.status == "none") == (recorded["area"] == 0), entry["key"]
        if bitmap(prompt, height, width) != recorded["rle"]["counts"].encode():
            wrong.append(entry["key"])
    assert wrong == []
    assert len(objects) == 79


def shape_of(mask):
    return published.shape_from_rle(masks.encode(mask), *mask.shape)


@given(st.integers(0, 2**32), st.integers(8, 60), st.integers(8, 60))
def test_prompts_depend_on_their_key_only(seed, height, width):
    mask = np.zeros((100, 120), bool)
    mask[5 : 5 + height, 7 : 7 + width] = True
    shape = shape_of(mask)
    for kind, make in KINDS.items():
        prompt = make(shape, KeyedDraws(keyed(seed, kind)))
        assert prompt == make(shape, KeyedDraws(keyed(seed, kind)))
        crop = published.render(prompt, 100, 120)
        assert crop is not None
        assert crop.x0 >= 0
        assert crop.y0 >= 0
        assert crop.x0 + crop.mask.shape[1] <= 120
        assert crop.y0 + crop.mask.shape[0] <= 100
    column, row = published.point_prompt(shape, KeyedDraws(keyed(seed))).points
    assert mask[int(row), int(column)]


def test_hard_shapes_have_the_published_gaps():
    line = np.zeros((60, 80), bool)
    line[30, 10:60] = True
    assert published.scribble_prompt(shape_of(line), KeyedDraws(keyed(0))).status == "none"
    assert published.mask_prompt(shape_of(np.ones((60, 80), bool))).status == "none"


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 24)), min_size=1, max_size=6, unique=True))
def test_discs_equal_brute_force(pixels):
    points = [value + 0.5 for pixel in pixels for value in pixel]
    prompt = published._prompt("scribble", points, [len(pixels)])
    rows, columns = np.mgrid[:25, :30]
    expected = np.zeros((25, 30), bool)
    for x, y in pixels:
        expected |= np.sqrt((rows - y) ** 2 + (columns - x) ** 2) <= 5
    assert bitmap(prompt, 25, 30) == oracle.encode(np.asfortranarray(expected.astype(np.uint8)))["counts"]
