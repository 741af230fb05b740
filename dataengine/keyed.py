"""Keyed randomness: every random choice is a pure function of what it is for.

Nothing here keeps a stream, so results do not depend on order, worker or retry.
"""

from __future__ import annotations

import numpy as np
import xxhash

Key = str | int


def key_hash(*parts: Key) -> bytes:
    """128-bit digest of a key; parts are length-prefixed, so ("ab", "c") and ("a", "bc") differ.

    Args:
        parts: strings or integers. An integer and its decimal string give different digests.
    Returns:
        16 bytes (xxh3-128, big endian).
    """
    digest = xxhash.xxh3_128()
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, (str, int)):
            raise TypeError(f"a key part must be str or int, not {type(part).__name__}: {part!r}")
        tag = b"s" if isinstance(part, str) else b"i"
        data = str(part).encode()
        digest.update(tag + len(data).to_bytes(4, "little") + data)
    return digest.digest()


def keyed(seed: int, *parts: Key) -> np.random.Generator:
    """A generator that depends only on its key: `keyed(seed, sample_id, purpose, version)`.

    Philox is counter-based (Salmon et al., SC'11), so a 128-bit key selects one of 2**128 independent streams.
    """
    words = np.frombuffer(key_hash(seed, *parts), dtype="<u8")
    return np.random.Generator(np.random.Philox(key=words))


def uniforms(number: int, seed: int, *parts: Key) -> np.ndarray:
    """The first numbers of `keyed(seed, *parts).random()`, without making a generator: (number,) float64 in [0, 1)."""
    from dataengine.kernels.philox import philox

    numbers = np.empty(number)
    philox(np.frombuffer(key_hash(seed, *parts), dtype="<u8"), numbers)
    return numbers
