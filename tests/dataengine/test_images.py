"""Image headers: each case is a file as it is found in the wild."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dataengine.images import ImageError, check

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def save(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def png16() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"".join(b"\0" + bytes(30 * 6) for _ in range(20)))
    header = struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


PICTURE = Image.fromarray(NOISE)
JPEG = save(PICTURE)
PNG = save(PICTURE, "PNG")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(JPEG, id="baseline"),
        pytest.param(save(PICTURE, progressive=True), id="progressive"),
        pytest.param(JPEG + b"\0\0trailing", id="bytes after the end"),
        pytest.param(save(PICTURE.convert("L")), id="grey"),
        pytest.param(save(PICTURE, exif=exif(1)), id="upright exif"),
        pytest.param(PNG, id="png"),
        pytest.param(save(PICTURE.convert("P"), "PNG"), id="palette png"),
    ],
)
def test_good_files_pass(data):
    header = check(data, 20, 30)
    assert (header.height, header.width) == (20, 30)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "image_unreadable", id="0 bytes"),
        pytest.param(b"hello", "image_unreadable", id="text"),
        pytest.param(JPEG[:100], "image_unreadable", id="only a header's start"),
        pytest.param(JPEG[: len(JPEG) * 2 // 3], "image_truncated", id="cut jpeg"),
        pytest.param(JPEG[:-2], "image_truncated", id="no end marker"),
        pytest.param(PNG[:-12], "image_truncated", id="png without end"),
        pytest.param(PNG[: len(PNG) // 2], "image_truncated", id="cut png"),
        pytest.param(save(PICTURE.resize((31, 20))), "image_size", id="another size"),
        pytest.param(save(PICTURE.convert("CMYK")), "image_mode", id="cmyk"),
        pytest.param(save(Image.new("I;16", (30, 20)), "PNG"), "image_mode", id="16-bit grey"),
        pytest.param(png16(), "image_mode", id="16-bit colour"),
        pytest.param(save(PICTURE, exif=exif(6)), "image_rotated", id="exif rotated"),
    ],
)
def test_bad_files_say_why(data, reason):
    with pytest.raises(ImageError) as caught:
        check(data, 20, 30)
    assert caught.value.reason == reason


def test_a_thumbnail_does_not_hide_a_cut():
    """An embedded picture has an end marker of its own, before the scan."""
    thumbnail = b"\xff\xe2" + struct.pack(">H", len(JPEG) + 2) + JPEG
    whole = JPEG[:2] + thumbnail + JPEG[2:]
    check(whole, 20, 30)
    with pytest.raises(ImageError, match="ends before"):
        check(whole[:-30], 20, 30)
