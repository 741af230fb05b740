"""Pictures resized as Pillow resizes them, to the last bit, and several times as fast.

Pillow's rules (src/libImaging/Resample.c): along each axis an output pixel is a weighted mean of the pixels under a
filter, which is as wide as the axis shrinks; weights are whole numbers of 2^-22, and what the first axis gives is
rounded to 8 bits before the second. Here whole rows are added up, many pixels at a time.
"""

from __future__ import annotations

import numpy as np

from dataengine.kernels.compiled import compiled

BITS = 22  # of a weight behind the point


@compiled
def resize(columns: np.ndarray, made: np.ndarray, is_cubic: bool) -> None:
    """Resize a picture, the width first.

    Args:
        columns: (W, H, 3) uint8, the picture column by column. made: (3, h, w) uint8, written.
        is_cubic: with Pillow's BICUBIC filter, else BILINEAR.
    """
    width, height = columns.shape[:2]
    channels, h, w = made.shape
    line = (w + 7) // 8 * 8
    narrow = np.zeros((line, (3 * height + 7) // 8 * 8), dtype=np.uint8)
    sums = np.empty(3 * max(height, line), dtype=np.int32)
    starts, counts, weights = filter_weights(width, w, is_cubic)
    rows = columns.reshape(width, 3 * height)
    for x in range(w):
        _add_up(rows, starts[x], weights[x, : counts[x]], sums)
        _round(sums, narrow[x, : 3 * height])
    # of each row first the reds, then the greens, then the blues
    turned = _turned(narrow)[: 3 * height].reshape(height, 3 * line)
    starts, counts, weights = filter_weights(height, h, is_cubic)
    for y in range(h):
        _add_up(turned, starts[y], weights[y, : counts[y]], sums)
        for channel in range(channels):
            _round(sums[channel * line :], made[channel, y])


@compiled
def filter_weights(size: int, scaled: int, is_cubic: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each pixel of a resized axis is made of.

    Args:
        size, scaled: px, before and after.
    Returns:
        starts, counts: (scaled,) int64, the first pixel and how many. weights: (scaled, most) int32, of 2^-22.
    """
    scale = size / scaled
    wide = max(scale, 1.0)
    support = (2.0 if is_cubic else 1.0) * wide
    starts = np.empty(scaled, dtype=np.int64)
    counts = np.empty(scaled, dtype=np.int64)
    most = int(np.ceil(support)) * 2 + 1
    weights = np.zeros((scaled, most), dtype=np.int32)
    shares = np.empty(most)
    for place in range(scaled):
        middle = (place + 0.5) * scale
        start = max(int(middle - support + 0.5), 0)
        count = min(int(middle + support + 0.5), size) - start
        total = 0.0
        for k in range(count):
            shares[k] = _filtered((k + start - middle + 0.5) * (1.0 / wide), is_cubic)
            total += shares[k]
        for k in range(count):
            share = (shares[k] / total if total != 0.0 else shares[k]) * (1 << BITS)
            weights[place, k] = int(share - 0.5) if share < 0 else int(share + 0.5)
        starts[place], counts[place] = start, count
    return starts, counts, weights


@compiled
def _filtered(x: float, is_cubic: bool) -> float:
    """Height of the filter at a distance of x px; the cubic one is Keys' with a = -0.5."""
    x = abs(x)
    if not is_cubic:
        return 1.0 - x if x < 1.0 else 0.0
    if x < 1.0:
        return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * -0.5
    return 0.0


@compiled
def _add_up(rows: np.ndarray, start: int, weights: np.ndarray, sums: np.ndarray) -> None:
    """Weighted sums of rows, (n,) int32, and a half for rounding. rows: (H, n) uint8."""
    sums = sums[: rows.shape[1]]
    one = weights[0]
    row = rows[start]
    for x in range(row.size):
        sums[x] = (1 << (BITS - 1)) + one * row[x]
    for k in range(1, weights.size):
        one = weights[k]
        row = rows[start + k]
        for x in range(row.size):
            sums[x] += one * row[x]


@compiled
def _round(sums: np.ndarray, made: np.ndarray) -> None:
    for x in range(made.size):
        made[x] = min(max(sums[x] >> BITS, 0), 255)


@compiled
def _turned(values: np.ndarray) -> np.ndarray:
    """The transposed matrix, whose sides are multiples of 8; it turns blocks of 8 x 8 bytes as 8 words.

    Half of a block's rows swap bytes with their neighbours, then pairs of bytes, then halves. values: it is changed.
    """
    height, width = values.shape
    words = values.view(np.uint64)
    turned = np.empty((width, height // 8), dtype=np.uint64)
    for top in range(0, height, 8):
        for step, mask in ((1, 0x00FF00FF00FF00FF), (2, 0x0000FFFF0000FFFF), (4, 0x00000000FFFFFFFF)):
            for row in range(8):
                if not row & step:
                    _swap(words[top + row], words[top + row + step], np.uint64(8 * step), np.uint64(mask))
        for x in range(width // 8):
            for row in range(8):
                turned[8 * x + row, top // 8] = words[top + row, x]
    return turned.view(np.uint8)


@compiled
def _swap(above: np.ndarray, below: np.ndarray, bits: np.uint64, mask: np.uint64) -> None:
    for x in range(above.size):
        other = ((above[x] >> bits) ^ below[x]) & mask
        below[x] ^= other
        above[x] ^= other << bits
