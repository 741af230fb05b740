"""Random numbers of a key, without a generator."""

from __future__ import annotations

import numpy as np

from dataengine.kernels.compiled import compiled


@compiled
def _product(a: np.uint64, b: np.uint64) -> tuple[np.uint64, np.uint64]:
    """The upper and the lower 64 bits of a product."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    a0, a1, b0, b1 = a & mask, a >> half, b & mask, b >> half
    low, middle, other = a0 * b0, a1 * b0, a0 * b1
    carried = (low >> half) + (middle & mask) + (other & mask)
    return a1 * b1 + (middle >> half) + (other >> half) + (carried >> half), a * b


@compiled
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
