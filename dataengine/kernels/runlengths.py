"""Run lengths: of compressed codes, of crops, of polygons; and what can be measured on them."""

from __future__ import annotations

import math

import numpy as np

from dataengine.kernels.compiled import compiled

MALFORMED, NEGATIVE, TOO_LONG = -1, -2, -3
MAX_OUTLINE = 1 << 22  # px, of all polygons of one mask; each may cost as much memory as a few borders
MAX_GROUPS = 8  # 5-bit groups of a number in a compressed RLE


@compiled
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


@compiled
def is_code(code: np.ndarray, pixels: int) -> bool:
    """Whether compressed counts are a mask of a canvas of that many pixels.

    Args:
        code: (n,) uint8.
    """
    runs = np.empty(code.size, dtype=np.int64)
    number = runs_from_code(code, pixels, runs)
    return number > 0 and runs[:number].sum() == pixels


@compiled
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


@compiled
def _with_code(codes: np.ndarray, size: int, code: np.ndarray) -> np.ndarray:
    """The first `size` bytes of codes, then a code, in the same array where that has room: (n,) uint8."""
    if size + code.size > codes.size:
        longer = np.empty(2 * (size + code.size), dtype=np.uint8)
        longer[:size] = codes[:size]
        codes = longer
    codes[size : size + code.size] = code
    return codes


@compiled
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


@compiled
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


# --- crops -------------------------------------------------------------------------------------------------------


@compiled
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


@compiled
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


@compiled
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


@compiled
def scaled_code(
    code: np.ndarray, height: int, width: int, edges: np.ndarray, columns: np.ndarray, side: int
) -> np.ndarray:
    """Compressed counts of a mask on another canvas, whose pixels take the values of pixels of the first.

    Args:
        code: (n,) uint8, on height x width px, whole. edges: (height + 1,) int64, ascending: rows y of the first canvas
            show in rows edges[y] … edges[y + 1] of the other. columns: (w,) int64, ascending: what each column of the
            other shows; further ones are empty. side: height and width of the other canvas, px.
    Returns:
        (m,) uint8, empty where no pixel is set.
    """
    runs = np.empty(code.size, dtype=np.int64)
    runs = runs[: runs_from_code(code, height * width, runs)]
    borders = np.empty(2 * (runs.size + columns.size) + 64, dtype=np.int64)
    size = 0
    number = place = 0  # the first run that reaches into the column, and where it begins
    for x in range(columns.size):
        begin = columns[x] * height
        while number < runs.size and place + runs[number] <= begin:
            place += runs[number]
            number += 1
        run, at = number, place
        while run < runs.size and at < begin + height:
            end = at + runs[run]
            if run % 2:
                top, bottom = edges[max(at - begin, 0)], edges[min(end - begin, height)]
                if top < bottom:
                    if size and borders[size - 1] == x * side + top:
                        size -= 1
                    else:
                        if size + 2 > borders.size:
                            longer = np.empty(2 * borders.size, dtype=np.int64)
                            longer[:size] = borders[:size]
                            borders = longer
                        borders[size] = x * side + top
                        size += 1
                    borders[size] = x * side + bottom
                    size += 1
            at = end
            run += 1
    if not size:
        return np.empty(0, dtype=np.uint8)
    return code_of_borders(borders[:size], side * side)


# --- borders -----------------------------------------------------------------------------------------------------


@compiled
def borders_of_codes(
    codes: np.ndarray, ends: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decode many masks of one canvas to the places, column by column, at which their pixels begin and end in turn.

    Args:
        codes, ends: see `measure_codes`.
    Returns:
        borders: (2 n,) int64, ascending and different within a mask, the masks one after the other. stops: (k,) int64,
        where each of them ends. figures: (k, 5) int64, see `measure_codes`; what is no mask has no borders.
    """
    figures = np.zeros((ends.size, 5), dtype=np.int64)
    stops = np.empty(ends.size, dtype=np.int64)
    borders = np.empty(codes.size, dtype=np.int64)  # a run has a byte at least
    runs = np.empty(codes.size, dtype=np.int64)
    start = size = 0
    for index in range(ends.size):
        number = runs_from_code(codes[start : ends[index]], height * width, runs)
        start = ends[index]
        stops[index] = size
        if number <= 0 or runs[:number].sum() != height * width:
            figures[index, 0] = -1
            continue
        figures[index] = measure_runs(runs[:number], height)
        first, place = size, 0
        for k in range(number):
            if k % 2 and runs[k]:
                if size > first and borders[size - 1] == place:  # a run of no zeros lies between
                    size -= 1
                else:
                    borders[size] = place
                    size += 1
                borders[size] = place + runs[k]
                size += 1
            place += runs[k]
        stops[index] = size
    return borders[:size], stops, figures


@compiled
def code_of_borders(borders: np.ndarray, pixels: int) -> np.ndarray:
    """Compressed counts, (m,) uint8. borders: of one mask, see `borders_of_codes`. pixels: of the canvas."""
    return code_from_runs(_runs_of_borders(borders, pixels))


@compiled
def shares(
    borders: np.ndarray, stops: np.ndarray, owners: np.ndarray, things: np.ndarray, thing_stops: np.ndarray
) -> np.ndarray:
    """Of each mask: its pixels, those that lie in its object, and those at most in one of the other objects.

    Args:
        borders, stops: of k masks, see `borders_of_codes`. owners: (k,) int64, index of each one's object.
        things, thing_stops: borders of the objects.
    Returns:
        (k, 3) int64.
    """
    found = np.zeros((stops.size, 3), dtype=np.int64)
    start = 0
    for index in range(stops.size):
        mask = borders[start : stops[index]]
        start = stops[index]
        found[index, 0] = (mask[1::2] - mask[::2]).sum()
        begin = 0
        for number in range(thing_stops.size):
            both = _count_both(mask, things[begin : thing_stops[number]])
            begin = thing_stops[number]
            if number == owners[index]:
                found[index, 1] = both
            else:
                found[index, 2] = max(found[index, 2], both)
    return found


@compiled
def shared_pixels(
    places: np.ndarray,
    stops: np.ndarray,
    figures: np.ndarray,
    other_places: np.ndarray,
    other_stops: np.ndarray,
    other_figures: np.ndarray,
) -> np.ndarray:
    """How many pixels lie in both of two masks, for all pairs; only those whose boxes meet are looked at.

    Args:
        places, stops, figures: of n masks, see `borders_of_codes`; the others: of m masks.
    Returns:
        (n, m) int64.
    """
    found = np.zeros((stops.size, other_stops.size), dtype=np.int64)
    start = 0
    for i in range(stops.size):
        mask = places[start : stops[i]]
        start = stops[i]
        begin = 0
        for j in range(other_stops.size):
            other = other_places[begin : other_stops[j]]
            begin = other_stops[j]
            if (
                figures[i, 1] < other_figures[j, 3]
                and other_figures[j, 1] < figures[i, 3]
                and figures[i, 2] < other_figures[j, 4]
                and other_figures[j, 2] < figures[i, 4]
            ):
                found[i, j] = _count_both(mask, other)
    return found


@compiled
def _count_both(a: np.ndarray, b: np.ndarray) -> int:
    """How many pixels lie in both of two masks, by their borders."""
    if not a.size or not b.size or a[0] >= b[-1] or b[0] >= a[-1]:
        return 0
    i, j = np.searchsorted(a, b[0], "right") // 2 * 2, np.searchsorted(b, a[0], "right") // 2 * 2
    both = 0
    while i < a.size and j < b.size:
        both += max(0, min(a[i + 1], b[j + 1]) - max(a[i], b[j]))
        if a[i + 1] < b[j + 1]:
            i += 2
        else:
            j += 2
    return both


@compiled
def _runs_of_borders(borders: np.ndarray, pixels: int) -> np.ndarray:
    """Run lengths of a mask: (n,) int64."""
    runs = np.empty(borders.size + 1, dtype=np.int64)
    place = 0
    for number in range(borders.size):
        runs[number] = borders[number] - place
        place = borders[number]
    runs[-1] = pixels - place
    return runs[:-1] if runs[-1] == 0 else runs


# --- polygons ----------------------------------------------------------------------------------------------------


@compiled
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


@compiled
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
    runs = _runs_of_borders(parts[0], height * width)
    return code_from_runs(runs), figures, measure_runs(runs, height)


@compiled
def is_doubtful(signed: float, perimeter: float, filled: float) -> bool:
    """By a polygon's figures, see `code_of_polygons`: whether it may cross itself and enclose nobody knows what."""
    return abs(filled - signed) - 0.1 * filled > max(0.0, 0.5 * perimeter)


@compiled
def codes_of_polygons(
    points: np.ndarray, ends: np.ndarray, lasts: np.ndarray, height: int, width: int, room: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compressed counts of many unions of polygons; see `code_of_polygons`.

    Args:
        lasts: (m,) int64, how many of the polygons there are up to the last one of each union, which has one at least.
    Returns:
        codes: (n,) uint8, one after the other. stops: (m,) int64, where each of them ends; one is empty where
            `code_of_polygons` gives none, and where a polygon is doubtful. measures: (m, 5) int64, see `measure_runs`.
    """
    codes = np.empty(1024, dtype=np.uint8)
    stops = np.empty(lasts.size, dtype=np.int64)
    measures = np.zeros((lasts.size, 5), dtype=np.int64)
    size = first = start = 0
    for index in range(lasts.size):
        own = ends[first : lasts[index]]
        code, figures, measure = code_of_polygons(points[start : own[-1]], own - start, height, width, room)
        doubtful = False
        if code.size:
            for k in range(len(figures)):
                doubtful |= is_doubtful(figures[k, 0], figures[k, 1], figures[k, 2])
        if not doubtful:
            codes = _with_code(codes, size, code)
            size += code.size
            measures[index] = measure
        stops[index] = size
        first, start = lasts[index], own[-1]
    return codes[:size], stops, measures


@compiled
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


@compiled
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


# --- maps of labels ----------------------------------------------------------------------------------------------


@compiled
def runs_of_map(values: np.ndarray, bits: np.unsignedinteger, before: int) -> tuple[np.ndarray, np.ndarray]:
    """Runs of one label down the columns of a map.

    Args:
        values: (h, w) uint8 or uint32. bits: of a value that are its label, of the same type. before: the label that
            the first one continues if they are equal.
    Returns:
        (n,) int32, the place of each one's first pixel, column by column; (n,) uint32, its label.
    """
    h, w = values.shape
    next_in = np.zeros(w + 1, dtype=np.int64)
    top = np.zeros(w, dtype=np.bool_)  # whether a run begins at the top of a column
    for x in range(w):
        last = values[h - 1, x - 1] & bits if x else before
        top[x] = (values[0, x] & bits) != last
        next_in[x + 1] += top[x]
    for y in range(1, h):
        here, above = values[y], values[y - 1]
        for x in range(w):
            next_in[x + 1] += ((here[x] ^ above[x]) & bits) != 0
    next_in = np.cumsum(next_in)
    starts = np.empty(next_in[w], dtype=np.int32)
    labels = np.empty(next_in[w], dtype=np.uint32)
    for y in range(h):
        here, above = values[y], values[max(y - 1, 0)]
        for x in range(w):
            if top[x] if y == 0 else ((here[x] ^ above[x]) & bits) != 0:
                starts[next_in[x]] = x * h + y
                labels[next_in[x]] = here[x] & bits
                next_in[x] += 1
    return starts, labels


@compiled
def codes_of_labels(
    starts: np.ndarray, labels: np.ndarray, order: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Compressed counts of the pixels of each label.

    Args:
        starts, labels: runs of a whole map, see `runs_of_map`; neighbours may have one label. order: (n,) int64, which
            sorts the labels, and keeps the order of equal ones.
    Returns:
        names: (k,) uint32, the labels there are, ascending. codes: (m,) uint8, one after the other. stops: (k,) int64,
        where each of them ends. measures: (k, 5) int64, see `measure_runs`.
    """
    count = 0
    for k in range(order.size):
        count += k == 0 or labels[order[k]] != labels[order[k - 1]]
    names = np.empty(count, dtype=np.uint32)
    stops = np.empty(count, dtype=np.int64)
    measures = np.empty((count, 5), dtype=np.int64)
    codes = np.empty(2 * starts.size + 64, dtype=np.uint8)
    runs = np.empty(2 * starts.size + 1, dtype=np.int64)
    size = k = 0
    for name in range(count):
        names[name] = labels[order[k]]
        length = place = 0
        while k < order.size and labels[order[k]] == names[name]:
            run = order[k]
            end = starts[run + 1] if run + 1 < starts.size else height * width
            if length and starts[run] == place:
                runs[length - 1] += end - starts[run]
            else:
                runs[length], runs[length + 1] = starts[run] - place, end - starts[run]
                length += 2
            place = end
            k += 1
        if place < height * width:
            runs[length] = height * width - place
            length += 1
        code = code_from_runs(runs[:length])
        codes = _with_code(codes, size, code)
        size += code.size
        stops[name] = size
        measures[name] = measure_runs(runs[:length], height)
    return names, codes[:size], stops, measures
