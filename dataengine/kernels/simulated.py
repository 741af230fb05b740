"""What simulated prompts are made of: lines, waves, blurred and uneven masks."""

from __future__ import annotations

import math

import numpy as np

from dataengine.kernels.compiled import compiled


@compiled
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


@compiled
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


@compiled
def _mirrored(place: int, size: int) -> int:
    while place < 0 or place >= size:
        place = -place - 1 if place < 0 else 2 * size - 1 - place
    return place


@compiled
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


@compiled
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
