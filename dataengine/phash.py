"""Perceptual hashes of pictures, and which of many are nearly alike without comparing all with all."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dataengine.images import FORMATS, ImageError, check_size

BITS = 64
MAX_DISTANCE = 10  # beyond it unlike pictures are near, and most pairs would have to be looked at
DECODE_PX = 256  # JPEGs are decoded at the smallest scale that is no smaller; the hash looks at 32 x 32 px
FLAT_LEVELS = 4  # grey levels, of 256, below which a hash is one of noise
_PARTS = 4  # of a hash
_PART_BITS = BITS // _PARTS
_BLOCK = 1 << 22  # candidates in memory at a time, about 200 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """Perceptual hashes of a picture, 64 bits each. mirrored: of the picture with left and right swapped."""

    plain: int
    mirrored: int


def looks(data: bytes) -> Looks | None:
    """The DCT hashes of a picture (pHash of the library ImageHash): near for other sizes, qualities and formats of it.

    Crops and turned pictures are not near. EXIF orientation is not applied.

    Args:
        data: the whole image file.
    Returns:
        None for a picture that is almost one grey and has nothing to be compared.
    Raises:
        ImageError: `image_too_large` or `image_unreadable`.
    """
    import imagehash
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(image.height, image.width)
            image.draft("L", (DECODE_PX, DECODE_PX))
            grey = image.convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise what they please on damaged files
        raise ImageError("image_unreadable", f"the image cannot be decoded: {type(error).__name__}") from None
    if np.ptp(np.asarray(grey)) < FLAT_LEVELS:
        return None
    plain, mirrored = (
        int(str(imagehash.phash(seen)), 16) for seen in (grey, grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    )
    return Looks(plain=plain, mirrored=mirrored)


def near_pairs(a: np.ndarray, b: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All pairs of hashes that differ in at most `distance` bits, each once, in blocks.

    Of two hashes that differ in d bits one part of four differs in d // 4 bits at most (multi-index hashing, Norouzi et
    al. 2012), so only hashes with such a part are compared.

    Args:
        a, b: (N,) and (M,) uint64; each without duplicates, or a block may grow with their square.
        distance: 0 .. MAX_DISTANCE bits.
    Yields:
        indices into a, indices into b, distances: (K,) int64, (K,) int64, (K,) uint8.
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise ValueError(f"distance is {distance}; 0 to {MAX_DISTANCE} bits can be searched")
    within = distance // _PARTS
    for part in range(_PARTS):
        own, other = _part(a, part), _part(b, part)
        order = np.argsort(other, kind="stable")
        starts = np.concatenate(([0], np.cumsum(np.bincount(other, minlength=1 << _PART_BITS))))
        for flipped in _patterns(within):
            for rows, columns in _candidates(own ^ flipped, order, starts):
                differing = a[rows] ^ b[columns]
                bits = np.bitwise_count(differing)
                kept = bits <= distance
                rows, columns, bits, differing = rows[kept], columns[kept], bits[kept], differing[kept]
                new = np.ones(len(rows), dtype=bool)
                for earlier in range(part):  # where an earlier part is near, the pair was found there
                    new &= np.bitwise_count(_part(differing, earlier)) > within
                yield rows[new], columns[new], bits[new]


def _part(values: np.ndarray, part: int) -> np.ndarray:
    """One of the equal parts of (N,) uint64 values, as (N,) int64."""
    return (values >> np.uint64(part * _PART_BITS) & np.uint64((1 << _PART_BITS) - 1)).astype(np.int64)


def _patterns(most: int) -> Iterator[int]:
    """All parts with at most so many bits set."""
    for number in range(most + 1):
        for chosen in itertools.combinations(range(_PART_BITS), number):
            yield sum(1 << bit for bit in chosen)


def _candidates(values: np.ndarray, order: np.ndarray, starts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of all pairs of equal values, about `_BLOCK` at a time.

    Args:
        values: (N,) int64. order: (M,) indices that sort the other values. starts: where each value begins in it.
    """
    first = starts[values]
    number = starts[values + 1] - first
    ends = np.cumsum(number)
    start = 0
    while start < len(values):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _BLOCK, "right")))
        counts = number[start:stop]
        rows = np.repeat(np.arange(start, stop), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield rows, order[np.repeat(first[start:stop], counts) + within]
        start = stop
