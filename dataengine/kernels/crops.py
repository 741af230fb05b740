"""Pixels of crops: what two share, the parts of one, and how deep its pixels lie."""

from __future__ import annotations

import numpy as np

from dataengine.kernels.compiled import compiled


@compiled
def count_both(a: np.ndarray, b: np.ndarray, dx: int, dy: int) -> int:
    """How many pixels are set in both. a, b: bool; pixel (0, 0) of b lies at (dy, dx) of a."""
    left, right = max(0, dx), min(a.shape[1], dx + b.shape[1])
    both = 0
    for y in range(max(0, dy), min(a.shape[0], dy + b.shape[0])):
        mine, yours = a[y, left:right], b[y - dy, left - dx : right - dx]
        for x in range(right - left):
            both += mine[x] & yours[x]
    return both


@compiled
def picked(mask: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(h, w) bool: the pixels in rows, (h,) int64, and columns, (w,) int64, of a (H, W) bool mask."""
    found = np.empty((rows.size, columns.size), dtype=np.bool_)
    for y in range(rows.size):
        if y and rows[y] == rows[y - 1]:
            found[y] = found[y - 1]
        else:
            row = mask[rows[y]]
            for x in range(columns.size):
                found[y, x] = row[columns[x]]
    return found


@compiled
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


@compiled
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


@compiled
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
