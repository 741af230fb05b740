"""The code of Label Studio's brush masks: run lengths over the four channels of a picture, row by row.

It is the format of @thi.ng/rle-pack (https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack): 32 bits for
the number of words, 5 for the size of one less one, four times 4 for the four sizes of a count less one; then blocks
of 1 bit (whether it is a run), 2 bits (which size), the count less one, and one word or, of no run, that many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from dataengine import masks
from dataengine.masks import Crop, MaskError

CHANNELS = 4  # red, green, blue, alpha; a pixel is set where its alpha is not zero, as Label Studio draws it
SET = 255  # in all channels, as Label Studio writes it
WORD = 8  # bits
SIZES = (3, 4, 8, 16)  # bits of a count


def code_from_rle(rle: bytes, height: int, width: int) -> bytes:
    """A compressed COCO mask as Label Studio has it."""
    crop = masks.crop_from_rle(rle, height, width)
    raster = np.zeros((height, width), dtype=bool)
    h, w = crop.mask.shape
    raster[crop.y0 : crop.y0 + h, crop.x0 : crop.x0 + w] = crop.mask
    flat = raster.ravel()
    edges = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    return encode(np.where(flat[edges[:-1]], SET, 0).tolist(), (CHANNELS * np.diff(edges)).tolist())


def rle_from_code(code: bytes, height: int, width: int) -> bytes:
    """A mask of Label Studio as compressed COCO counts.

    Raises:
        MaskError: `rle_invalid` (no such code), `rle_size` (of another picture), `empty_mask`.
    """
    words = CHANNELS * height * width
    if int.from_bytes(code[:4], "big") != words:
        raise MaskError("rle_size", f"the brush mask does not have {words} values, of {height} x {width} pixels")
    values, lengths = decode(code)
    mask = np.repeat(np.asarray(values) != 0, lengths)[CHANNELS - 1 :: CHANNELS].reshape(height, width)
    if not mask.any():
        raise MaskError("empty_mask", "the mask has no pixel")
    return masks.rle_from_crop(Crop(mask, 0, 0), height, width)


def encode(values: Sequence[int], lengths: Sequence[int], word: int = WORD, sizes: Sequence[int] = SIZES) -> bytes:
    """Code of runs, each of another value than the one before it.

    Args:
        word: bits of a value. sizes: ascending, bits of a count.
    """
    bits = [f"{sum(lengths):032b}{word - 1:05b}", *(f"{size - 1:04b}" for size in sizes)]
    for is_run, block in _blocks(values, lengths, 1 << sizes[-1]):
        count = block[0][1] if is_run else len(block)
        which = next(index for index, size in enumerate(sizes) if count <= 1 << size)
        bits.append(f"{is_run:b}{which:02b}{count - 1:0{sizes[which]}b}")
        bits += [f"{value:0{word}b}" for value, _ in block]
    text = "".join(bits)
    number = -(-len(text) // 8)
    return int(text.ljust(8 * number, "0"), 2).to_bytes(number, "big")


def _blocks(
    values: Sequence[int], lengths: Sequence[int], longest: int
) -> Iterator[tuple[bool, list[tuple[int, int]]]]:
    """Blocks of values with their lengths: one of a run, several of single values that follow one another."""

    def parts() -> Iterator[tuple[int, int]]:
        for value, length in zip(values, lengths, strict=True):
            for start in range(0, length, longest):
                yield value, min(longest, length - start)

    for is_run, group in groupby(parts(), key=lambda part: part[1] > 1):
        found = list(group)
        step = 1 if is_run else longest
        for start in range(0, len(found), step):
            yield is_run, found[start : start + step]


def decode(code: bytes) -> tuple[list[int], list[int]]:
    """Values and their lengths; what stands one by one has the length 1.

    Raises:
        MaskError: `rle_invalid`: the code ends too early or has too many values.
    """
    at = 0

    def read(size: int) -> int:
        nonlocal at
        at += size
        if at > 8 * len(code):
            raise MaskError("rle_invalid", "the brush mask ends too early")
        return int.from_bytes(code[(at - size) // 8 : -(-at // 8)], "big") >> -at % 8 & (1 << size) - 1

    number, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    lengths: list[int] = []
    while number > 0:
        is_run = read(1)
        count = read(sizes[read(2)]) + 1
        number -= count
        if number < 0:
            raise MaskError("rle_invalid", "the brush mask has more values than it says")
        if is_run:
            values.append(read(word))
            lengths.append(count)
        else:
            values += [read(word) for _ in range(count)]
            lengths += [1] * count
    return values, lengths
