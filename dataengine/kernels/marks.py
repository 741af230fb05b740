"""Discs and rectangles: drawn, and found again in a bitmap."""

from __future__ import annotations

import numpy as np

from dataengine.kernels.compiled import compiled


@compiled
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


@compiled
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


@compiled
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


@compiled
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


@compiled
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
