"""Masks in the browser against pycocotools, and outlines against the browser's own fill."""

from itertools import product

import numpy as np
import pytest
from pycocotools import mask as coco

from tests.dataengine.view.cards import counts, open_cards


@pytest.fixture
def page(watch):
    return open_cards(watch(), [], drawn=False)


def ask(page, script, *values):
    return page.evaluate(f"(values) => {{ {script} }}", list(values))


def text(mask):
    return counts(mask).decode("ascii")


def noise(seed, height, width, share):
    return np.random.default_rng(seed).random((height, width)) < share


MASKS = {
    "empty": np.zeros((7, 5), dtype=bool),
    "full": np.ones((7, 5), dtype=bool),
    "first pixel": np.eye(1, 35, 0, dtype=bool).reshape(7, 5),
    "last pixel": np.eye(1, 35, 34, dtype=bool).reshape(7, 5),
    "canvas of one pixel": np.ones((1, 1), dtype=bool),
    "one row": noise(1, 1, 40, 0.5),
    "one column": noise(2, 40, 1, 0.5),
    "ring": np.pad(np.pad(np.zeros((3, 3), dtype=bool), 2, constant_values=True), 1),
    "checkerboard": np.indices((9, 8)).sum(0) % 2 == 1,
    **{f"noise {share}": noise(3, 31, 47, share) for share in (0.02, 0.3, 0.5, 0.7, 0.98)},
}


SCALES = {"same size": (1, 1), "smaller": (0.37, 0.61), "larger": (2.5, 3.25)}


def test_painted_masks_are_those_of_pycocotools(page):
    """Each rendered pixel shows the pixel of the mask that its centre lies in."""
    for (name, mask), (scale, sizes) in product(MASKS.items(), SCALES.items()):
        height, width = mask.shape
        rows, columns = max(1, round(height * sizes[0])), max(1, round(width * sizes[1]))
        found = ask(
            page,
            """const [text, height, width, rows, columns] = values;
               const owner = new Uint16Array(rows * columns);
               const painted = rle.paintRuns(owner, rle.decodeRuns(text, height, width), height,
                 rle.grid(width, columns), rle.grid(height, rows), rows, 3);
               return [Array.from(owner), painted];""",
            text(mask),
            height,
            width,
            rows,
            columns,
        )
        oracle = coco.decode({"counts": counts(mask), "size": [height, width]})
        down = ((np.arange(rows) + 0.5) * height / rows).astype(int)
        across = ((np.arange(columns) + 0.5) * width / columns).astype(int)
        expected = oracle[np.ix_(down, across)]
        assert found[0] == (3 * expected.T.ravel()).tolist(), (name, scale)
        assert found[1] == expected.sum(), (name, scale)


def test_a_large_canvas_is_decoded(page):
    height, width = 6000, 8000
    rle = coco.frPyObjects([[10, 20, 7990, 20, 7990, 5990, 10, 5990]], height, width)[0]
    area = ask(
        page,
        """const runs = rle.decodeRuns(...values);
           return runs.reduce((sum, place, at) => sum + (at % 2 ? place : -place), 0);""",
        rle["counts"].decode(),
        height,
        width,
    )
    assert area == coco.area(rle)


DAMAGED = {
    "nothing": ("", "do not fill"),
    "too few": ("5", "do not fill"),
    "ends within a number": ("R1Z", "damaged"),
    "a character below": ("\x1f", "damaged"),
    "a character above": ("~", "damaged"),
    "no ASCII": ("ü", "damaged"),
    "a number without end": ("oooooooooooooo", "damaged"),
    "too few pixels": ("99", "do not fill"),
    "a negative run": ("O", "do not fit"),
    "a run too long": ("0X9", "do not fit"),
    "a later negative run": ("PPPPP10", "do not fit"),
}


def test_damaged_counts_are_refused(page):
    script = """try { rle.decodeRuns(values[0], 7, 5); return null; }
      catch (error) { return [error instanceof rle.MaskError, error.message]; }"""
    for name, (damaged, says) in DAMAGED.items():
        found = ask(page, script, damaged)
        assert found is not None, name
        assert found[0], name
        assert says in found[1], name


def test_a_canvas_that_no_picture_has_is_refused(page):
    script = """try { rle.decodeRuns("1", ...values); return false; }
      catch (error) { return error instanceof rle.MaskError; }"""
    for height, width in [(0, 5), (5, -1), (2**31 - 1, 2**31 - 1), (1, 2**30), ("x", 5)]:
        assert ask(page, script, height, width), (height, width)


def test_outlines_hold_what_the_mask_holds(page):
    """The browser's even-odd fill of the path covers the centre of a pixel where the mask has it, holes included."""
    for name, mask in MASKS.items():
        height, width = mask.shape
        found = ask(
            page,
            """const [text, height, width] = values;
               const path = new Path2D(rle.outlinePath(rle.decodeRuns(text, height, width), height, width));
               const context = document.createElement("canvas").getContext("2d"), inside = [];
               for (let y = 0; y < height; y++) for (let x = 0; x < width; x++)
                 inside.push(context.isPointInPath(path, x + 0.5, y + 0.5, "evenodd") ? 1 : 0);
               return inside;""",
            text(mask),
            height,
            width,
        )
        assert found == mask.astype(int).ravel().tolist(), name


def test_an_outline_of_noise_is_made_coarser(page):
    mask = noise(5, 480, 640, 0.5)
    length, bounds = ask(
        page,
        """const runs = rle.decodeRuns(values[0], 480, 640), d = rle.outlinePath(runs, 480, 640);
           return [d.length, rle.boundsOf(runs, 480)];""",
        text(mask),
    )
    assert 0 < length < 200_000
    assert bounds == [0, 0, 640, 480]


def test_bounds_are_those_of_the_mask(page):
    for mask in MASKS.values():
        if mask.any():
            ys, xs = np.nonzero(mask)
            height, width = mask.shape
            found = ask(page, "return rle.boundsOf(rle.decodeRuns(...values), values[1]);", text(mask), height, width)
            assert found == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_colours_are_those_of_contact_sheets(page):
    from dataengine.sheet import look

    assert page.evaluate("look.COLORS") == [list(color) for color in look.COLORS]
    assert page.evaluate("look.EASY_COLORS") == look.EASY_COLORS
