"""The loops over pixels and runs that NumPy has no words for, compiled by Numba on their first use.

They do no checks of their own but those they say; callers pass arrays of the dtypes given and places inside them. Call
the functions of `masks` and `prompts`, which check.
Compiled code is kept beside this file or in the user's cache folder, so that it is made once a machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

MALFORMED, NEGATIVE, TOO_LONG = -1, -2, -3
MAX_OUTLINE = 1 << 22  # px, of all polygons of one mask; each may cost as much memory as a few borders
MAX_GROUPS = 8  # 5-bit groups of a number in a compressed RLE


def _compiled(function: F) -> F:
    try:
        return numba.njit(cache=True, nogil=True)(function)  # type: ignore[return-value]
    except RuntimeError:  # no folder that could keep compiled code
        return numba.njit(nogil=True)(function)  # type: ignore[return-value]


def cache_folder() -> str:
    """Where compiled code is kept; empty where it cannot be."""
    folder: str = components.stats.cache_path or ""  # type: ignore[attr-defined]
    return folder


# --- random numbers ----------------------------------------------------------------------------------------------


@_compiled
def _product(a: np.uint64, b: np.uint64) -> tuple[np.uint64, np.uint64]:
    """The upper and the lower 64 bits of a product."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    a0, a1, b0, b1 = a & mask, a >> half, b & mask, b >> half
    low, middle, other = a0 * b0, a1 * b0, a0 * b1
    carried = (low >> half) + (middle & mask) + (other & mask)
    return a1 * b1 + (middle >> half) + (other >> half) + (carried >> half), a * b


@_compiled
def philox(key: np.ndarray, numbers: np.ndarray) -> None:
    """Fill with the first numbers of `numpy.random.Generator(numpy.random.Philox(key=key)).random()`, bit for bit.

    Philox4x64-10 (Salmon et al., SC'11), whose first block has counter 1. A generator takes longer to make than these.

    Args:
        key: (2,) uint64. numbers: (n,) float64, written; in [0, 1).
    """
    block = np.zeros(4, dtype=np.uint64)
    for start in range(0, numbers.size, 4):
        block[:] = 0
        block[0] = start // 4 + 1
        k0, k1 = key[0], key[1]
        for _ in range(10):
            high0, low0 = _product(np.uint64(0xD2E7470EE14C6C93), block[0])
            high1, low1 = _product(np.uint64(0xCA5A826395121157), block[2])
            block[0], block[1] = high1 ^ block[1] ^ k0, low1
            block[2], block[3] = high0 ^ block[3] ^ k1, low0
            k0 += np.uint64(0x9E3779B97F4A7C15)
            k1 += np.uint64(0xBB67AE8584CAA73B)
        for place in range(min(4, numbers.size - start)):
            numbers[start + place] = (block[place] >> np.uint64(11)) * (1.0 / 9007199254740992.0)


# --- run lengths -------------------------------------------------------------------------------------------------


@_compiled
def runs_from_code(code: np.ndarray, pixels: int, runs: np.ndarray) -> int:
    """Decode COCO's compressed counts.

    A base-32 variable-length code with offset 48, least significant group first, whose values from the fourth on are
    differences to the run before the previous one (pycocotools, maskApi.c, rleFrString).

    Args:
        code: (n,) uint8. pixels: of the canvas. runs: (n,) int64, written.
    Returns:
        how many runs there are; or MALFORMED (no such code), NEGATIVE (a run is), TOO_LONG (they exceed the canvas).
    """
    number = 0
    groups = 0
    value = 0
    total = 0
    for byte in code:
        group = int(byte) - 48
        if group < 0 or group > 63 or groups == MAX_GROUPS:
            return MALFORMED
        value |= (group & 0x1F) << (5 * groups)
        groups += 1
        if group & 0x20:
            continue
        if group & 0x10:
            value -= 1 << (5 * groups)
        if number > 2:
            value += runs[number - 2]
        if value < 0:
            return NEGATIVE
        total += value
        if total > pixels:
            return TOO_LONG
        runs[number] = value
        number += 1
        groups = 0
        value = 0
    return number if groups == 0 else MALFORMED


@_compiled
def code_from_runs(runs: np.ndarray) -> np.ndarray:
    """Compress run lengths (pycocotools, maskApi.c, rleToString): (n,) int64 to (m,) uint8."""
    code = np.empty(runs.size * 7, dtype=np.uint8)
    at = 0
    for number in range(runs.size):
        value = runs[number]
        if number > 2:
            value -= runs[number - 2]
        going_on = True
        while going_on:
            group = value & 0x1F
            value >>= 5
            going_on = value != (-1 if group & 0x10 else 0)
            code[at] = 48 + (group | 0x20 if going_on else group)
            at += 1
    return code[:at]


@_compiled
def measure_runs(runs: np.ndarray, height: int) -> tuple[int, int, int, int, int]:
    """Area, and tight box x0, y0, x1, y1, half open, in px; zeros where no pixel is set. runs: (n,) int64."""
    area = 0
    place = 0
    x0 = y0 = 1 << 40
    x1 = y1 = 0
    for number in range(runs.size):
        run = runs[number]
        if number % 2 and run:
            area += run
            first, last = place // height, (place + run - 1) // height
            x0, x1 = min(x0, first), max(x1, last + 1)
            if first == last:
                top = place - first * height
                y0, y1 = min(y0, top), max(y1, top + run)
            else:  # it goes on over the border of a column
                y0, y1 = 0, height
        place += run
    if area == 0:
        return 0, 0, 0, 0, 0
    return area, x0, y0, x1, y1


@_compiled
def measure_codes(codes: np.ndarray, ends: np.ndarray, height: int, width: int) -> np.ndarray:
    """`measure_runs` of many masks of one canvas at once.

    Args:
        codes: (n,) uint8, the masks' compressed counts one after the other. ends: (k,) int64, where each of them ends.
    Returns:
        (k, 5) int64; area, x0, y0, x1, y1. The area of what is no mask of that canvas is -1.
    """
    figures = np.zeros((ends.size, 5), dtype=np.int64)
    pixels = height * width
    runs = np.empty(codes.size, dtype=np.int64)
    start = 0
    for index in range(ends.size):
        number = runs_from_code(codes[start : ends[index]], pixels, runs)
        start = ends[index]
        if number <= 0 or runs[:number].sum() != pixels:
            figures[index, 0] = -1
            continue
        figures[index] = measure_runs(runs[:number], height)
    return figures


@_compiled
def fill_runs(runs: np.ndarray, height: int, x0: int, y0: int, columns: np.ndarray) -> None:
    """Set the pixels of runs on a crop that holds them all. columns: (w, h) bool, zeros; x0, y0: its corner, px."""
    h = columns.shape[1]
    place = 0
    for number in range(runs.size):
        run = runs[number]
        if number % 2 and run:
            x, y = place // height - x0, place % height - y0
            if y + run <= h:
                columns[x, y : y + run] = True
            else:  # whole columns; the crop is as high as the canvas
                columns.reshape(-1)[place - x0 * height : place - x0 * height + run] = True
        place += run


@_compiled
def crop_of_code(code: np.ndarray, height: int, width: int) -> tuple[np.ndarray, int, int, int]:
    """Decode compressed counts and cut the mask to its box.

    Args:
        code: (n,) uint8.
    Returns:
        (h, w) bool, the place of its corner, x, y, px, and the number of set pixels; -1 where the code is malformed or
        does not fit the canvas.
    """
    runs = np.empty(code.size, dtype=np.int64)
    number = runs_from_code(code, height * width, runs)
    runs = runs[: max(number, 0)]
    if number <= 0 or runs.sum() != height * width:
        return np.zeros((0, 0), dtype=np.bool_), 0, 0, -1
    size, x0, y0, x1, y1 = measure_runs(runs, height)
    columns = np.zeros((x1 - x0, y1 - y0), dtype=np.bool_)
    fill_runs(runs, height, x0, y0, columns)
    return np.ascontiguousarray(columns.T), x0, y0, size


@_compiled
def runs_of_crop(mask: np.ndarray, x0: int, y0: int, height: int, width: int) -> np.ndarray:
    """Run lengths of a crop on its canvas. mask: (h, w) bool; x0, y0: its corner, px. Gives (n,) int64."""
    h, w = mask.shape
    # where a pixel differs from the one above it, row by row; then the same, column by column
    found = np.empty((4 * w + 64, 2), dtype=np.int64)
    next_in = np.zeros(w + 1, dtype=np.int64)
    number = 0
    nothing = np.zeros(w, dtype=np.bool_)
    for y in range(h + 1):
        if number + w > len(found):
            longer = np.empty((2 * len(found) + w, 2), dtype=np.int64)
            longer[:number] = found[:number]
            found = longer
        here = mask[y] if y < h else nothing
        above = mask[y - 1] if y else nothing
        for x in range(w):
            if here[x] != above[x]:
                found[number, 0], found[number, 1] = x, y
                number += 1
                next_in[x + 1] += 1
    next_in = np.cumsum(next_in)
    borders = np.empty(number, dtype=np.int64)
    for k in range(number):
        x = found[k, 0]
        borders[next_in[x]] = (x0 + x) * height + y0 + found[k, 1]
        next_in[x] += 1
    runs = np.empty(number + 1, dtype=np.int64)
    length = before = k = 0
    while k < number:
        if k + 1 < number and borders[k] == borders[k + 1]:  # a run that goes on in the next column
            k += 2
            continue
        runs[length] = borders[k] - before
        before = borders[k]
        length += 1
        k += 1
    if before < height * width:
        runs[length] = height * width - before
        length += 1
    return runs[:length].copy()


# --- pixels ------------------------------------------------------------------------------------------------------


@_compiled
def count_both(a: np.ndarray, b: np.ndarray, dx: int, dy: int) -> int:
    """How many pixels are set in both. a, b: bool; pixel (0, 0) of b lies at (dy, dx) of a."""
    left, right = max(0, dx), min(a.shape[1], dx + b.shape[1])
    both = 0
    for y in range(max(0, dy), min(a.shape[0], dy + b.shape[0])):
        mine, yours = a[y, left:right], b[y - dy, left - dx : right - dx]
        for x in range(right - left):
            both += mine[x] & yours[x]
    return both


@_compiled
def shares(
    bitmap: np.ndarray, x0: int, y0: int, own: int, boxes: np.ndarray, starts: np.ndarray, pixels: np.ndarray
) -> tuple[int, int, int]:
    """How many pixels a bitmap has, how many lie in an object, and how many at most in one of the other objects.

    Args:
        bitmap: (h, w) bool; x0, y0: its corner, px. own: index of the object.
        boxes: (n, 4) int64, x0, y0, x1, y1 of the objects. starts: (n,) int64, where each one's crop begins in
            pixels: (m,) bool.
    """
    h, w = bitmap.shape
    total = 0
    for y in range(h):
        row = bitmap[y]
        for x in range(w):
            total += row[x]
    inside = other = 0
    for number in range(boxes.shape[0]):
        a, b, c, d = boxes[number]
        if a >= x0 + w or c <= x0 or b >= y0 + h or d <= y0:
            continue
        crop = pixels[starts[number] : starts[number] + (d - b) * (c - a)].reshape(d - b, c - a)
        both = count_both(bitmap, crop, a - x0, b - y0)
        if number == own:
            inside = both
        else:
            other = max(other, both)
    return total, inside, other


@_compiled
def discs(pixels: np.ndarray, halves: np.ndarray, height: int, width: int) -> tuple[np.ndarray, int, int]:
    """Union of discs about pixels, cut at the canvas.

    Args:
        pixels: (n, 2) int64, x, y. halves: (2 r + 1,) int64, how far each row of a disc reaches from its middle.
    Returns:
        (h, w) bool, and the place of its corner, x, y, px.
    """
    reach = halves.size // 2
    x0, y0, x1, y1 = width, height, 0, 0
    for x, y in pixels:
        x0, x1 = min(x0, x - reach), max(x1, x + reach + 1)
        y0, y1 = min(y0, y - reach), max(y1, y + reach + 1)
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    bitmap = np.zeros((y1 - y0, x1 - x0), dtype=np.bool_)
    for x, y in pixels:
        for row in range(max(y0, y - reach), min(y1, y + reach + 1)):
            half = halves[row - y + reach]
            bitmap[row - y0, max(x0, x - half) - x0 : min(x1, x + half + 1) - x0] = True
    return bitmap, x0, y0


@_compiled
def disc_centres(
    bitmap: np.ndarray, x0: int, y0: int, halves: np.ndarray, height: int, width: int, most: int
) -> np.ndarray:
    """Pixels of a bitmap whose disc, as far as it lies on the canvas, lies in the bitmap, in raster order.

    Args:
        bitmap: (h, w) bool, tight; x0, y0: its corner on the canvas, px. halves: as for `discs`. most: how many
            are wanted at most.
    Returns:
        (n, 2) int64, x, y on the canvas; the first `most` + 1 where there are more than `most`.
    """
    h, w = bitmap.shape
    reach = halves.size // 2
    runs, firsts = _runs_of_rows(bitmap, x0 == 0, x0 + w == width)
    found = np.empty((64, 2), dtype=np.int64)
    number = 0
    fitting, kept = np.empty((2, w // 2 + 2, 2), dtype=np.int64)  # runs of pixels that fit, from left to right
    for y in range(h):
        fitting[0, 0], fitting[0, 1] = 0, w
        num_fitting = 1
        for down in range(-reach, reach + 1):
            row, half = y + down, halves[reach + down]
            if not 0 <= y0 + row < height:
                continue
            num_kept = 0
            if 0 <= row < h:
                run = firsts[row]
                for k in range(num_fitting):
                    a, b = fitting[k]
                    while run < firsts[row + 1] and runs[run, 1] - half <= a:
                        run += 1
                    other = run
                    while other < firsts[row + 1] and runs[other, 0] + half < b:
                        left, right = max(a, runs[other, 0] + half), min(b, runs[other, 1] - half)
                        if left < right:
                            kept[num_kept, 0], kept[num_kept, 1] = left, right
                            num_kept += 1
                        other += 1
            fitting, kept = kept, fitting
            num_fitting = num_kept
            if not num_fitting:
                break
        for k in range(num_fitting):
            for x in range(fitting[k, 0], fitting[k, 1]):
                if number > most:
                    return found[:number]
                if number == len(found):
                    longer = np.empty((2 * number, 2), dtype=np.int64)
                    longer[:number] = found
                    found = longer
                found[number, 0], found[number, 1] = x0 + x, y0 + y
                number += 1
    return found[:number]


@_compiled
def _runs_of_rows(bitmap: np.ndarray, open_left: bool, open_right: bool) -> tuple[np.ndarray, np.ndarray]:
    """Runs of set pixels: (n, 2) int32, first and last + 1, row by row; (h + 1,) int64, where each row's begin.

    Args:
        bitmap: (h, w) bool. open_left, open_right: whether runs that touch that side go on without end.
    """
    h, w = bitmap.shape
    endless = 1 << 29
    runs = np.empty((64, 2), dtype=np.int32)
    firsts = np.zeros(h + 1, dtype=np.int64)
    number = 0
    for y in range(h):
        if number + w > len(runs):
            longer = np.empty((2 * len(runs) + w, 2), dtype=np.int32)
            longer[:number] = runs[:number]
            runs = longer
        row = bitmap[y]
        before = False
        for x in range(w):
            if row[x] != before:
                before = row[x]
                if before:
                    runs[number, 0] = x if x or not open_left else -endless
                else:
                    runs[number, 1] = x
                    number += 1
        if before:
            runs[number, 1] = endless if open_right else w
            number += 1
        firsts[y + 1] = number
    return runs, firsts


@_compiled
def needed_discs(pixels: np.ndarray, halves: np.ndarray, height: int, width: int) -> np.ndarray:
    """Which discs a union needs: one after another, those that the rest covers are left out, the smallest first.

    Args:
        pixels, halves, height, width: as for `discs`, whose bitmap stays the same.
    Returns:
        (n,) bool.
    """
    bitmap, x0, y0 = discs(pixels, halves, height, width)
    depth = np.zeros(bitmap.shape, dtype=np.int32)  # discs over each pixel
    size = np.zeros(len(pixels), dtype=np.int64)
    reach = halves.size // 2
    needed = np.ones(len(pixels), dtype=np.bool_)
    h, w = bitmap.shape
    for place in range(len(pixels)):
        x, y = pixels[place, 0] - x0, pixels[place, 1] - y0
        for row in range(max(0, y - reach), min(h, y + reach + 1)):
            half = halves[row - y + reach]
            left, right = max(0, x - half), min(w, x + half + 1)
            depth[row, left:right] += 1
            size[place] += right - left
    for place in np.argsort(size, kind="mergesort"):
        x, y = pixels[place, 0] - x0, pixels[place, 1] - y0
        alone = False
        for row in range(max(0, y - reach), min(h, y + reach + 1)):
            half = halves[row - y + reach]
            alone = alone or (depth[row, max(0, x - half) : min(w, x + half + 1)] == 1).any()
        needed[place] = alone
        if not alone:
            for row in range(max(0, y - reach), min(h, y + reach + 1)):
                half = halves[row - y + reach]
                depth[row, max(0, x - half) : min(w, x + half + 1)] -= 1
    return needed


@_compiled
def rectangles(bitmap: np.ndarray, most: int) -> np.ndarray:
    """Disjoint rectangles that make up a bitmap: equal runs of successive rows, joined.

    Args:
        bitmap: (h, w) bool. most: how many are wanted at most.
    Returns:
        (n, 4) int64, x0, y0, x1, y1 in px of the bitmap, half open, in raster order of their first pixels; the first
        `most` + 1, cut short, where there are more than `most`.
    """
    h, w = bitmap.shape
    found = np.empty((16, 4), dtype=np.int64)
    number = 0
    above, here = np.empty((2, w // 2 + 1), dtype=np.int64)  # rectangles that reach a row, from left to right
    num_above = 0
    for y in range(h):
        if number > most:
            return found[: most + 1]
        num_here = 0
        other = 0
        x = 0
        while x < w:
            if not bitmap[y, x]:
                x += 1
                continue
            first = x
            while x < w and bitmap[y, x]:
                x += 1
            while other < num_above and found[above[other], 0] < first:
                other += 1
            name = number
            if other < num_above and found[above[other], 0] == first and found[above[other], 2] == x:
                name = above[other]
            elif number == len(found):
                longer = np.empty((2 * number, 4), dtype=np.int64)
                longer[:number] = found
                found = longer
            if name == number:
                found[name, 0], found[name, 1], found[name, 2] = first, y, x
                number += 1
            found[name, 3] = y + 1
            here[num_here] = name
            num_here += 1
        above, here = here, above
        num_above = num_here
    return found[: min(number, most + 1)]


@_compiled
def line(row_a: int, column_a: int, row_b: int, column_b: int) -> np.ndarray:
    """Bresenham's line with both ends, pixel for pixel scikit-image's `line`. Gives (n, 2) int64, x, y."""
    rows, columns = abs(row_b - row_a), abs(column_b - column_a)
    steep = rows > columns
    length, across = (rows, columns) if steep else (columns, rows)
    down = 1 if row_b >= row_a else -1
    right = 1 if column_b >= column_a else -1
    stroke = np.empty((length + 1, 2), dtype=np.int64)
    for step in range(length + 1):
        side = (2 * across * step + length) // (2 * length) if length else 0
        stroke[step, 0] = column_a + right * (side if steep else step)
        stroke[step, 1] = row_a + down * (step if steep else side)
    return stroke


@_compiled
def wave(stroke: np.ndarray, amplitude: float, frequency: float, phase: float, height: int, width: int) -> np.ndarray:
    """A line whose pixels move up and down as a sine, cut at the canvas. stroke: (n, 2) int64, x, y; so the result."""
    last = len(stroke) - 1
    waved = np.empty_like(stroke)
    for k in range(last + 1):
        place = 1.0 if k == last > 0 else k * (1.0 / max(last, 1))
        y = np.float32(stroke[k, 1] + amplitude * math.sin(2 * math.pi * frequency * place + phase))
        waved[k, 0] = min(stroke[k, 0], width - 1)
        waved[k, 1] = int(min(max(y, np.float32(0)), np.float32(height - 1)))
    return waved


@_compiled
def _mirrored(place: int, size: int) -> int:
    while place < 0 or place >= size:
        place = -place - 1 if place < 0 else 2 * size - 1 - place
    return place


@_compiled
def blur_above(
    mask: np.ndarray, weights: np.ndarray, margins: tuple[int, int, int, int], level: float, doubt: float
) -> tuple[np.ndarray, int]:
    """Where a mask, blurred along rows and columns with 17 weights, exceeds a level.

    Beyond the canvas the mask is mirrored, its last pixel twice ("reflect").

    Args:
        mask: (h, w) bool. weights: (9,) of any float type, the kernel's middle and one side.
        margins: how far the result goes beyond the mask, left, top, right, bottom, px: 8, or less at the canvas's edge.
    Returns:
        (h + top + bottom, w + left + right) bool; and how many values are as near to the level as the fraction `doubt`.
    """
    left, top, right, bottom = margins
    h, w = mask.shape
    height, width = h + top + bottom, w + left + right
    cuts = np.empty(3, dtype=weights.dtype)
    cuts[0], cuts[1], cuts[2] = level * (1 - doubt), level, level * (1 + doubt)
    low, cut, high = cuts
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = weights
    along = np.zeros((height + 16, width), dtype=weights.dtype)
    row = np.zeros(width + 16, dtype=weights.dtype)
    for y in range(h):
        for x in range(w):
            row[8 + left + x] = mask[y, x]
        for k in range(8):
            row[7 - k] = row[8 + _mirrored(-1 - k, width)]
            row[8 + width + k] = row[8 + _mirrored(width + k, width)]
        out = along[8 + top + y]
        for x in range(width):
            out[x] = (
                w0 * row[x + 8]
                + w1 * (row[x + 7] + row[x + 9])
                + w2 * (row[x + 6] + row[x + 10])
                + w3 * (row[x + 5] + row[x + 11])
                + w4 * (row[x + 4] + row[x + 12])
                + w5 * (row[x + 3] + row[x + 13])
                + w6 * (row[x + 2] + row[x + 14])
                + w7 * (row[x + 1] + row[x + 15])
                + w8 * (row[x] + row[x + 16])
            )
    for k in range(8):
        along[7 - k] = along[8 + _mirrored(-1 - k, height)]
        along[8 + height + k] = along[8 + _mirrored(height + k, height)]
    kept = np.empty((height, width), dtype=np.bool_)
    close = 0
    for y in range(height):
        a0 = along[y + 8]
        a1, b1, a2, b2 = along[y + 7], along[y + 9], along[y + 6], along[y + 10]
        a3, b3, a4, b4 = along[y + 5], along[y + 11], along[y + 4], along[y + 12]
        a5, b5, a6, b6 = along[y + 3], along[y + 13], along[y + 2], along[y + 14]
        a7, b7, a8, b8 = along[y + 1], along[y + 15], along[y], along[y + 16]
        inside = kept[y]
        for x in range(width):
            value = (
                w0 * a0[x]
                + w1 * (a1[x] + b1[x])
                + w2 * (a2[x] + b2[x])
                + w3 * (a3[x] + b3[x])
                + w4 * (a4[x] + b4[x])
                + w5 * (a5[x] + b5[x])
                + w6 * (a6[x] + b6[x])
                + w7 * (a7[x] + b7[x])
                + w8 * (a8[x] + b8[x])
            )
            inside[x] = value > cut
            close += (low <= value) & (value <= high)
    return kept, close


@_compiled
def squared_depth(mask: np.ndarray, squares: np.ndarray) -> None:
    """Squared distance from each pixel to the nearest one outside the mask, in px²; what lies beyond counts as outside.

    Exact, in whole numbers: the distance along the column, then for each row the best sum of squares over the columns
    that could still be nearer, many at a time.

    Args:
        mask: (h, w) bool. squares: (h, w) float32 or float64, written; it must hold h² + w² exactly.
    """
    h, w = mask.shape
    one = squares.dtype.type(1)
    for y in range(h):
        own, here = mask[y], squares[y]
        for x in range(w):
            here[x] = own[x]
        if y:
            above = squares[y - 1]
            for x in range(w):
                here[x] *= above[x] + one
    below = np.zeros(w, dtype=squares.dtype)
    for y in range(h - 1, -1, -1):
        here = squares[y]
        for x in range(w):
            here[x] = min(here[x], below[x] + one)
            below[x] = here[x]
    row = np.zeros(3 * w, dtype=squares.dtype)  # with what lies to both sides
    for y in range(h):
        best, own = squares[y], mask[y]
        reach = run = longest = 0
        for x in range(w):
            reach = max(reach, int(best[x]))
            run = (run + 1) * own[x]
            longest = max(longest, run)
            best[x] *= best[x]
            row[w + x] = best[x]
        for k in range(1, min(reach, (longest + 1) // 2 + 1)):
            square = squares.dtype.type(k * k)
            before, after = row[w - k : 2 * w - k], row[w + k : 2 * w + k]
            for x in range(w):
                best[x] = min(best[x], min(before[x], after[x]) + square)


@_compiled
def uneven(depth: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Depths plus a smooth field: (h, w) float32, plus (k, k) float32 values drawn out over them, linear between."""
    h, w = depth.shape
    spans = field.shape[0] - 1
    result = np.empty_like(depth)
    line = np.empty(spans + 1, dtype=np.float32)
    for y in range(h):
        place = np.float32((y + 0.5) * spans / h)
        top = min(int(place), spans - 1)
        share = place - np.float32(top)
        for k in range(spans + 1):
            line[k] = field[top, k] + share * (field[top + 1, k] - field[top, k])
        begin = 0
        for span in range(spans):
            end = w * (span + 1) // spans
            first, slope = line[span], line[span + 1] - line[span]
            out, own = result[y, begin:end], depth[y, begin:end]
            for x in range(end - begin):
                across = np.float32((begin + x + 0.5) * spans / w - span)
                out[x] = own[x] + first + slope * across
            begin = end
    return result


@_compiled
def polygon_figures(points: np.ndarray) -> tuple[float, float, float, float, float, float]:
    """Bounds x0, y0, x1, y1, signed area without its sign, and sum of the sides across and down. points: (n, 2)."""
    x0 = y0 = np.inf
    x1 = y1 = -np.inf
    twice = across = 0.0
    last = points.shape[0] - 1
    for k in range(points.shape[0]):
        x, y = points[k, 0], points[k, 1]
        before_x, before_y = points[last, 0], points[last, 1]
        x0, x1, y0, y1 = min(x0, x), max(x1, x), min(y0, y), max(y1, y)
        twice += before_x * y - before_y * x
        across += abs(x - before_x) + abs(y - before_y)
        last = k
    return x0, y0, x1, y1, 0.5 * abs(twice), across


@_compiled
def code_of_polygons(
    points: np.ndarray, ends: np.ndarray, height: int, width: int, room: float
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int, int]]:
    """Compressed counts of the union of polygons.

    Args:
        points: (n, 2) float64, x, y in px, the polygons one after the other. ends: (k,) int64, where each of them ends.
        room: px by which they may leave the canvas.
    Returns:
        code: (m,) uint8; empty where a polygon leaves the canvas further or has a number that is not finite, or where
            all outlines together are longer than MAX_OUTLINE.
        figures: (k, 3) float64, each polygon's signed area without its sign, its perimeter across and down, and the
            pixels it fills.
        measure: see `measure_runs`.
    """
    figures = np.empty((ends.size, 3), dtype=np.float64)
    start = 0
    for index in range(ends.size):
        x0, y0, x1, y1, figures[index, 0], figures[index, 1] = polygon_figures(points[start : ends[index]])
        inside = x0 >= -room and y0 >= -room and x1 <= width + room and y1 <= height + room
        if not inside or math.isnan(figures[index, 1]):
            return np.empty(0, dtype=np.uint8), figures, (0, 0, 0, 0, 0)
        start = ends[index]
    if figures[:, 1].sum() > MAX_OUTLINE:
        return np.empty(0, dtype=np.uint8), figures, (0, 0, 0, 0, 0)
    start = 0
    parts = []
    for index in range(ends.size):
        parts.append(_borders_of_polygon(points[start : ends[index]], height, width))
        figures[index, 2] = (parts[index][1::2] - parts[index][::2]).sum()
        start = ends[index]
    while len(parts) > 1:  # two by two, so that many polygons do not each pass over the union of all before
        for index in range(len(parts) // 2):
            parts[index] = _union_of_borders(parts[index], parts.pop())
    union = parts[0]
    runs = np.empty(union.size + 1, dtype=np.int64)
    place = 0
    for number in range(union.size):
        runs[number] = union[number] - place
        place = union[number]
    runs[-1] = height * width - place
    if runs[-1] == 0:
        runs = runs[:-1]
    return code_from_runs(runs), figures, measure_runs(runs, height)


@_compiled
def _borders_of_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Places, column by column, at which a polygon's pixels begin and end in turn: (2 n,) int64, ascending.

    Pixel for pixel as pycocotools fills it (maskApi.c, rleFrPoly): vertices are rounded to a fifth of a pixel, an edge
    is walked in steps of that size along its longer side, and where it passes the middle of a column, the upper one of
    the two steps is the border. Only those two steps of an edge are looked at here.
    """
    number = points.shape[0]
    size = 0
    found = np.empty(64, dtype=np.int64)
    last_x, last_y = int(5.0 * points[number - 1, 0] + 0.5), int(5.0 * points[number - 1, 1] + 0.5)
    for k in range(number):
        ax, ay = last_x, last_y
        bx, by = int(5.0 * points[k, 0] + 0.5), int(5.0 * points[k, 1] + 0.5)
        last_x, last_y = bx, by
        dx, dy = abs(bx - ax), abs(by - ay)
        first, stop = max(0, (min(ax, bx) + 2) // 5), min(width, (max(ax, bx) + 2) // 5)
        if first >= stop:
            continue
        if size + stop - first > found.size:
            longer = np.empty(2 * (size + stop - first), dtype=np.int64)
            longer[:size] = found[:size]
            found = longer
        if (dx >= dy and ax > bx) or (dx < dy and ay > by):
            ax, ay, bx, by = bx, by, ax, ay
        slope = (by - ay) / dx if dx >= dy else (bx - ax) / dy
        for column in range(first, stop):
            if dx >= dy:
                step = 5 * column + 2 - ax
                upper = min(int(ay + slope * step + 0.5), int(ay + slope * (step + 1) + 0.5))
            else:
                step = min(max(int((5 * column + 2.5 - ax) / slope), 0), dy)
                if slope > 0:  # the last step that is not over the middle
                    while step > 0 and int(ax + slope * step + 0.5) > 5 * column + 2:
                        step -= 1
                    while step < dy and int(ax + slope * (step + 1) + 0.5) <= 5 * column + 2:
                        step += 1
                else:
                    while step > 0 and int(ax + slope * step + 0.5) <= 5 * column + 2:
                        step -= 1
                    while step < dy and int(ax + slope * (step + 1) + 0.5) > 5 * column + 2:
                        step += 1
                upper = ay + step
            row = math.ceil(min(max((upper + 0.5) / 5.0 - 0.5, 0.0), float(height)))
            found[size] = column * height + int(row)
            size += 1
    found = np.sort(found[:size])
    kept = 0  # two borders in one place are none
    for place in found:
        if kept and found[kept - 1] == place:
            kept -= 1
        else:
            found[kept] = place
            kept += 1
    return found[:kept]


@_compiled
def _union_of_borders(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Borders of the pixels that lie in either of two sets; see `_borders_of_polygon`."""
    found = np.empty(a.size + b.size, dtype=np.int64)
    size = i = j = 0
    while i < a.size or j < b.size:
        if j == b.size or (i < a.size and a[i] <= b[j]):
            start, end = a[i], a[i + 1]
            i += 2
        else:
            start, end = b[j], b[j + 1]
            j += 2
        if size and start <= found[size - 1]:
            found[size - 1] = max(found[size - 1], end)
        else:
            found[size], found[size + 1] = start, end
            size += 2
    return found[:size]


@_compiled
def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """8-connected components, in raster order of their first pixel.

    Args:
        mask: (h, w) bool.
    Returns:
        labels: (h, w) int32, 0 outside, the components 1, 2, …; (0, 0) where there is one component or none.
        stats: (n, 7) int64, each one's area, x0, y0, x1, y1 (half open), sum of x, sum of y, in px of the crop.
    """
    h, w = mask.shape
    # runs of pixels: row, first, last + 1, and the run that stands for its component, which is the earliest
    runs = np.empty((64, 4), dtype=np.int64)
    number = 0
    above = 0  # first run of the row above
    for y in range(h):
        begin = number
        if number + w > len(runs):
            longer = np.empty((2 * len(runs) + w, 4), dtype=np.int64)
            longer[:number] = runs[:number]
            runs = longer
        row = mask[y]
        before = False
        for x in range(w):
            if row[x] != before:
                before = row[x]
                if before:
                    runs[number, 0], runs[number, 1], runs[number, 3] = y, x, number
                else:
                    runs[number, 2] = x
                    number += 1
        if before:
            runs[number, 2] = w
            number += 1
        other = above
        for own in range(begin, number):
            while other < begin and runs[other, 2] < runs[own, 1]:
                other += 1
            meeting = other
            while meeting < begin and runs[meeting, 1] <= runs[own, 2]:
                a, b = own, meeting
                while runs[a, 3] != a:
                    a = runs[a, 3]
                while runs[b, 3] != b:
                    b = runs[b, 3]
                low, high = min(a, b), max(a, b)
                runs[high, 3] = low
                runs[own, 3] = runs[meeting, 3] = low
                meeting += 1
        above = begin
    names = np.empty(number, dtype=np.int64)
    count = 0
    for run in range(number):
        if runs[run, 3] == run:
            names[run] = count
            count += 1
        else:
            names[run] = names[runs[run, 3]]
    stats = np.zeros((count, 7), dtype=np.int64)
    for run in range(number):
        y, first, end = runs[run, 0], runs[run, 1], runs[run, 2]
        one = stats[names[run]]
        if one[0] == 0:
            one[1], one[2] = first, y
        one[0] += end - first
        one[1], one[3], one[4] = min(one[1], first), max(one[3], end), y + 1
        one[5] += (first + end - 1) * (end - first) // 2
        one[6] += y * (end - first)
    if count < 2:
        return np.empty((0, 0), dtype=np.int32), stats
    labels = np.zeros((h, w), dtype=np.int32)
    for run in range(number):
        labels[runs[run, 0], runs[run, 1] : runs[run, 2]] = names[run] + 1
    return labels, stats
