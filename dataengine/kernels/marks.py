"""Discs and rectangles: drawn, and found again in a bitmap."""

from __future__ import annotations

import numpy as np

from dataengine.kernels.compiled import compiled

POINT, SCRIBBLE, BOX, MASK = range(4)


@compiled
def geometry(
    borders: np.ndarray,
    stops: np.ndarray,
    figures: np.ndarray,
    kinds: np.ndarray,
    point: np.ndarray,
    scribble: np.ndarray,
    is_traced: bool,
    height: int,
    width: int,
    most: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The discs and rectangles that bitmaps of many prompts are made of.

    Args:
        borders, stops, figures: of k bitmaps, see `runlengths.borders_of_codes`. kinds: (k,) int64, POINT and so on.
        point, scribble: (2 r + 1,) int64, how far each row of their discs reaches from its middle.
        is_traced: whether the pixels of points and scribbles are the middles of discs that are yet to be drawn.
        most: how many discs or rectangles of one bitmap are wanted at most.
    Returns:
        points: (n, 2) float64, x, y in px, middles of discs, or two corners of each rectangle. ends: (k,) int64, where
        those of each bitmap end; one that takes more than `most` has `most` + 1. are_discs: (k,) bool, False where
        a bitmap is no union of discs and its points are its pixels. drawn, drawn_stops: borders, with the discs drawn.
    """
    pixel = np.zeros(1, dtype=np.int64)
    points = [np.empty((0, 2))]
    bitmaps = [borders[:0]]
    are_discs = np.ones(stops.size, dtype=np.bool_)
    start = 0
    for index in range(stops.size):
        own = borders[start : stops[index]]
        start = stops[index]
        area, box = figures[index, 0], figures[index, 1:]
        x0, y0, x1, y1 = box
        if not own.size or kinds[index] == MASK:
            points.append(points[0])
        elif kinds[index] == BOX:
            if area == (x1 - x0) * (y1 - y0):
                corners = box.copy().reshape(1, 4)
            else:
                corners = _rectangles_of_borders(own, box, height, most)
            points.append(corners.reshape(-1, 2).astype(np.float64))
        elif is_traced:
            pixels = _disc_centres(own, box, pixel, height, width, most)
            if len(pixels) <= most:
                again, x0, y0 = discs(pixels, point if kinds[index] == POINT else scribble, height, width)
                own = _borders(again, x0, y0, height)
            points.append(pixels + 0.5)
        else:
            halves = point if kinds[index] == POINT else scribble
            reach = halves.size // 2
            if _is_disc(own, x0 + reach, y0 + reach, halves, height):
                pixels = np.array([[x0 + reach, y0 + reach]])
            else:
                pixels = _disc_centres(own, box, halves, height, width, most)
                if len(pixels) <= most and not _are_all(
                    pixels, halves, _bitmap(own, x0, y0, x1, y1, height), height, width
                ):
                    are_discs[index] = False
                    pixels = _disc_centres(own, box, pixel, height, width, most)
                elif kinds[index] == POINT and 1 < len(pixels) <= most:
                    pixels = pixels[needed_discs(pixels, halves, height, width)]
            points.append(pixels + 0.5)
        bitmaps.append(own)
    ends = np.array([len(own) for own in points[1:]]).cumsum()
    drawn_stops = np.array([own.size for own in bitmaps[1:]]).cumsum()
    found, drawn = np.empty((ends[-1], 2)), np.empty(drawn_stops[-1], dtype=np.int64)
    for index in range(stops.size):
        found[ends[index] - len(points[index + 1]) : ends[index]] = points[index + 1]
        drawn[drawn_stops[index] - bitmaps[index + 1].size : drawn_stops[index]] = bitmaps[index + 1]
    return found, ends, are_discs, drawn, drawn_stops


@compiled
def _bitmap(borders: np.ndarray, x0: int, y0: int, x1: int, y1: int, height: int) -> np.ndarray:
    """A mask on its box: (h, w) bool."""
    bitmap = np.zeros((y1 - y0, x1 - x0), dtype=np.bool_)
    for k in range(0, borders.size, 2):
        place, end = borders[k], borders[k + 1]
        while place < end:  # a run may go on over the border of a column
            x, y = place // height, place % height
            length = min(end - place, height - y)
            bitmap[y - y0 : y - y0 + length, x - x0] = True
            place += length
    return bitmap


@compiled
def _borders(bitmap: np.ndarray, x0: int, y0: int, height: int) -> np.ndarray:
    """The borders of a mask on its box."""
    h, w = bitmap.shape
    found = np.empty((h + 1) * w, dtype=np.int64)
    size = 0
    for x in range(w):
        place = (x0 + x) * height + y0
        before = False
        for y in range(h + 1):
            here = y < h and bitmap[y, x]
            if here != before:
                before = here
                if size and size % 2 == 0 and found[size - 1] == place + y:
                    size -= 1  # it goes on in the next column
                else:
                    found[size] = place + y
                    size += 1
    return found[:size]


@compiled
def _is_disc(borders: np.ndarray, x: int, y: int, halves: np.ndarray, height: int) -> bool:
    """Whether a mask is the whole disc about a pixel; no other disc, cut at the canvas or not, lies in that."""
    reach = halves.size // 2
    if borders.size != 2 * halves.size or y + reach >= height:
        return False
    for k in range(halves.size):
        middle = (x - reach + k) * height + y
        if borders[2 * k] != middle - halves[k] or borders[2 * k + 1] != middle + halves[k] + 1:
            return False
    return True


@compiled
def _are_all(pixels: np.ndarray, halves: np.ndarray, bitmap: np.ndarray, height: int, width: int) -> bool:
    """Whether discs about the pixels, which lie in a bitmap, make up all of it."""
    if not len(pixels):
        return False
    again, _, _ = discs(pixels, halves, height, width)
    return again.shape == bitmap.shape and (again == bitmap).all()


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
            for column in range(max(x0, x - half) - x0, min(x1, x + half + 1) - x0):
                bitmap[row - y0, column] = True
    return bitmap, x0, y0


@compiled
def _disc_centres(
    borders: np.ndarray, box: np.ndarray, halves: np.ndarray, height: int, width: int, most: int
) -> np.ndarray:
    """Pixels of a mask whose disc, as far as it lies on the canvas, lies in the mask, in raster order.

    A disc is the same along rows and columns, so the mask's runs down its columns will do.

    Args:
        box: x0, y0, x1, y1 of the mask, px. halves: as for `discs`. most: how many are wanted at most.
    Returns:
        (n, 2) int64, x, y on the canvas; `most` + 1 of them where there are more than `most`.
    """
    x0, y0, x1, y1 = box
    runs, firsts = _runs_of_columns(borders, x0, y0, x1, height)
    found = _middles(runs, firsts, y1 - y0, x0, width, halves, most)
    places = np.sort((found[:, 0] + y0) * width + found[:, 1] + x0)
    found[:, 0], found[:, 1] = places % width, places // width
    return found


@compiled
def _middles(
    runs: np.ndarray, firsts: np.ndarray, length: int, first_line: int, lines: int, halves: np.ndarray, most: int
) -> np.ndarray:
    """The middles of the discs that lie in a bitmap, by its runs; see `_disc_centres`.

    Args:
        runs, firsts: see `_runs_of_columns`. length: of a line. first_line: the place of the first one on the canvas.
        lines: of the canvas.
    Returns:
        (n, 2) int64, the place in its line, and the line, counted from the first one.
    """
    reach = halves.size // 2
    found = np.empty((64, 2), dtype=np.int64)
    number = 0
    spans = np.empty((2, length // 2 + 2, 2), dtype=np.int64)
    fitting = 0  # runs of pixels that fit, from left to right
    num_lines = firsts.size - 1
    for line in range(num_lines):
        spans[fitting, 0, 0], spans[fitting, 0, 1] = 0, length
        num_fitting = 1
        for step in range(2 * reach + 1):
            down = step if step <= reach else reach - step  # the widest line first, that most fail to fit
            row, half = line + down, halves[reach + down]
            if not 0 <= first_line + row < lines:
                continue
            num_kept = 0
            if 0 <= row < num_lines:
                run = firsts[row]
                for k in range(num_fitting):
                    a, b = spans[fitting, k, 0], spans[fitting, k, 1]
                    while run < firsts[row + 1] and runs[run, 1] - half <= a:
                        run += 1
                    other = run
                    while other < firsts[row + 1] and runs[other, 0] + half < b:
                        left, right = max(a, runs[other, 0] + half), min(b, runs[other, 1] - half)
                        if left < right:
                            spans[1 - fitting, num_kept, 0], spans[1 - fitting, num_kept, 1] = left, right
                            num_kept += 1
                        other += 1
            fitting = 1 - fitting
            num_fitting = num_kept
            if not num_fitting:
                break
        for k in range(num_fitting):
            for x in range(spans[fitting, k, 0], spans[fitting, k, 1]):
                if number > most:
                    return found[:number]
                if number == len(found):
                    longer = np.empty((2 * number, 2), dtype=np.int64)
                    longer[:number] = found
                    found = longer
                found[number, 0], found[number, 1] = x, line
                number += 1
    return found[:number]


@compiled
def _runs_of_columns(borders: np.ndarray, x0: int, y0: int, x1: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Runs of set pixels down a mask's columns; those that touch the canvas's edge go on without end.

    Args:
        x0, y0, x1: of the mask's box, px.
    Returns:
        (n, 2) int32, first and last + 1, px below y0, column by column; (x1 - x0 + 1,) int64, where each one's begin.
    """
    endless = 1 << 29
    runs = np.empty((borders.size // 2 + x1 - x0, 2), dtype=np.int32)
    firsts = np.zeros(x1 - x0 + 1, dtype=np.int64)
    number = 0
    for k in range(0, borders.size, 2):
        place, end = borders[k], borders[k + 1]
        while place < end:
            x, y = place // height, place % height
            stop = min(height, y + end - place)
            runs[number, 0] = y - y0 if y else -endless
            runs[number, 1] = stop - y0 if stop < height else endless
            number += 1
            firsts[x - x0 + 1] += 1
            place += stop - y
    return runs[:number], np.cumsum(firsts)


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


@compiled
def _rectangles_of_borders(borders: np.ndarray, box: np.ndarray, height: int, most: int) -> np.ndarray:
    """`rectangles` of a mask by its borders, in px of the canvas. box: x0, y0, x1, y1, px."""
    x0, y0, x1, y1 = box
    runs, firsts = _runs_of_columns(borders, x0, y0, x1, height)
    changes = np.zeros(y1 - y0 + 1, dtype=np.bool_)  # rows that may differ from the one before
    for k in range(len(runs)):
        runs[k, 0], runs[k, 1] = max(runs[k, 0], 0), min(runs[k, 1], y1 - y0)
        changes[runs[k, 0]] = changes[runs[k, 1]] = True
    rows, band = np.flatnonzero(changes), np.cumsum(changes) - 1
    bands = np.zeros((rows.size - 1, x1 - x0), dtype=np.bool_)  # one for each kind of successive rows
    for x in range(x1 - x0):
        for k in range(firsts[x], firsts[x + 1]):
            bands[band[runs[k, 0]] : band[runs[k, 1]], x] = True
    found = rectangles(bands, most) + np.array([x0, 0, x0, 0])
    found[:, 1], found[:, 3] = rows[found[:, 1]] + y0, rows[found[:, 3]] + y0
    return found
