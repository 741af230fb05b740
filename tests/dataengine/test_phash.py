"""Perceptual hashes: what stays near, what does not, and the search against comparing all with all."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataengine import phash
from dataengine.images import ImageError


def picture(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Soft blobs: an enlarged grid of 8 x 6 random colours."""
    grid = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)


def stored(image: Image.Image, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bits(one: bytes, other: bytes) -> int:
    return (plain(one) ^ plain(other)).bit_count()


def plain(data: bytes) -> int:
    found = phash.looks(data)
    assert found is not None
    return found.plain


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: stored(picture(0), "JPEG", quality=40), id="worse JPEG"),
        pytest.param(lambda: stored(picture(0), "WEBP", quality=60), id="WEBP"),
        pytest.param(lambda: stored(picture(0).resize((160, 120)), "JPEG"), id="half the size"),
        pytest.param(lambda: stored(picture(0).resize((2000, 1500)), "JPEG"), id="large, decoded at a smaller scale"),
        pytest.param(lambda: stored(picture(0).resize((336, 336)), "PNG"), id="made square"),
        pytest.param(lambda: stored(picture(0).convert("RGBA"), "PNG"), id="with alpha"),
    ],
)
def test_the_same_picture_stored_otherwise_is_near(other):
    assert bits(stored(picture(0), "PNG"), other()) <= 4


def test_other_pictures_are_not_near():
    hashes = [plain(stored(picture(seed), "PNG")) for seed in range(20)]
    assert min((a ^ b).bit_count() for n, a in enumerate(hashes) for b in hashes[:n]) > phash.MAX_DISTANCE


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_picture_of_one_grey_has_no_hash(level):
    pixels = np.full((60, 80), level, dtype=np.uint8)
    pixels[::7, ::5] ^= 1  # noise of the last bit
    assert phash.looks(stored(Image.fromarray(pixels), "PNG")) is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "image_unreadable", id="empty"),
        pytest.param(b"no picture", "image_unreadable", id="text"),
        pytest.param(stored(picture(0), "JPEG")[:2000], "image_unreadable", id="half a JPEG"),
        pytest.param(stored(picture(0), "PNG")[:2000], "image_unreadable", id="half a PNG"),
        pytest.param(stored(picture(0), "GIF"), "image_unreadable", id="another format"),
        pytest.param(stored(Image.new("1", (70_000, 1)), "PNG"), "image_too_large", id="too long a side"),
    ],
)
def test_what_cannot_be_decoded_has_a_reason(data, reason):
    with pytest.raises(ImageError) as caught:
        phash.looks(data)
    assert caught.value.reason == reason


@given(st.integers(0, 2**32), st.integers(0, phash.MAX_DISTANCE), st.integers(0, 60), st.integers(0, 60))
def test_the_search_finds_what_comparing_all_finds(seed, distance, num_a, num_b):
    """Hashes around three centres, so that all distances occur."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, 3, dtype=np.uint64)

    def around(number: int) -> np.ndarray:
        flips = (rng.random((number, 64)) < rng.random((number, 1)) * 0.2) @ (1 << np.arange(64, dtype=np.uint64))
        return np.unique(centres[rng.integers(0, 3, number)] ^ flips.astype(np.uint64))

    a, b = around(num_a), around(num_b)
    found = [tuple(map(int, pair)) for block in phash.near_pairs(a, b, distance) for pair in zip(*block, strict=True)]
    distances = [(i, j, (int(x) ^ int(y)).bit_count()) for i, x in enumerate(a) for j, y in enumerate(b)]
    assert sorted(found) == [pair for pair in distances if pair[2] <= distance]


def test_the_search_in_small_blocks(monkeypatch):
    a = np.arange(300, dtype=np.uint64)
    whole = sum(len(rows) for rows, _, _ in phash.near_pairs(a, a, 2))
    monkeypatch.setattr(phash, "_BLOCK", 7)
    assert sum(len(rows) for rows, _, _ in phash.near_pairs(a, a, 2)) == whole


@pytest.mark.parametrize("distance", [-1, phash.MAX_DISTANCE + 1])
def test_distances_that_cannot_be_searched_are_refused(distance):
    with pytest.raises(ValueError, match="can be searched"):
        list(phash.near_pairs(np.zeros(1, np.uint64), np.zeros(1, np.uint64), distance))
