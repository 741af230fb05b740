"""Image headers: each case is a file as it is found in the wild."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dataengine import images
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


def png_of(width: int, height: int, bits: int, *parts: tuple[bytes, bytes]) -> bytes:
    """A colour PNG of a header and these chunks."""
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)), *parts):
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return data


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


ROWS16 = zlib.compress(b"".join(b"\0" + bytes(30 * 6) for _ in range(20)))
PICTURE = Image.fromarray(NOISE)
JPEG = save(PICTURE)
PNG = save(PICTURE, "PNG")
WEBP = save(PICTURE, "WEBP")


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
        pytest.param(PNG + b"trailing", id="bytes after the png"),
        pytest.param(WEBP, id="webp"),
        pytest.param(WEBP + b"trailing", id="bytes after the webp"),
        pytest.param(save(PICTURE, "WEBP", lossless=True, exif=exif(1)), id="lossless webp with exif"),
        pytest.param(save(PICTURE, "MPO", save_all=True, append_images=[PICTURE]), id="jpeg of two pictures"),
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
        pytest.param(WEBP[:-2], "image_truncated", id="cut webp"),
        pytest.param(WEBP[:6], "image_truncated", id="webp of 6 bytes"),
        pytest.param(flipped(PNG, PNG.index(b"IDAT") + 40), "image_unreadable", id="bit flipped in a png"),
        pytest.param(flipped(PNG, len(PNG) - 1), "image_unreadable", id="bit flipped in a png's end"),
        pytest.param(png_of(30, 20, 8, (b"IEND", b"")), "image_truncated", id="png without pixels"),
        pytest.param(save(PICTURE, "GIF"), "image_unreadable", id="gif"),
        pytest.param(save(PICTURE, "TIFF"), "image_unreadable", id="tiff"),
        pytest.param(save(PICTURE, "BMP"), "image_unreadable", id="bmp"),
        pytest.param(save(PICTURE.resize((31, 20))), "image_size", id="another size"),
        pytest.param(save(PICTURE.convert("CMYK")), "image_mode", id="cmyk"),
        pytest.param(save(Image.new("I;16", (30, 20)), "PNG"), "image_mode", id="16-bit grey"),
        pytest.param(png_of(30, 20, 16, (b"IDAT", ROWS16), (b"IEND", b"")), "image_mode", id="16-bit colour"),
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


@pytest.mark.parametrize(
    ("width", "height"),
    [
        pytest.param(8193, 8192, id="a column more than allowed"),
        pytest.param(65_536, 1, id="a side too long"),
        pytest.param(10_000, 10_000, id="Pillow warns"),
        pytest.param(60_000, 60_000, id="Pillow refuses"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_claim_of_too_many_pixels_is_refused_by_its_header(width, height):
    data = png_of(width, height, 8, (b"IDAT", b""), (b"IEND", b""))
    with pytest.raises(ImageError) as caught:
        check(data, height, width)
    assert caught.value.reason == "image_too_large"


def test_the_largest_picture_is_allowed():
    check(png_of(8192, 8192, 8, (b"IDAT", b""), (b"IEND", b"")), 8192, 8192)


@pytest.mark.parametrize("error", [NotImplementedError, struct.error, SyntaxError, OverflowError, MemoryError])
def test_whatever_pillow_raises_is_a_bad_image(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error("odd")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ImageError, match=error.__name__.split(".")[-1]):
        check(PNG, 20, 30)


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(JPEG, id="baseline"),
        pytest.param(save(PICTURE, progressive=True, comment="c"), id="progressive with a comment"),
        pytest.param(save(PICTURE.convert("L"), icc_profile=bytes(40)), id="grey with a profile"),
        pytest.param(save(PICTURE.convert("CMYK")), id="cmyk"),
        pytest.param(save(PICTURE, exif=exif(6)), id="exif"),
        pytest.param(save(PICTURE, restart_marker_blocks=2, qtables=[[1] * 64]), id="restarts, one table"),
    ],
)
def test_what_is_read_of_a_jpeg_here_is_what_pillow_says(data, monkeypatch):
    """Bytes of its head are changed, cut and put in: the same header or reason as with Pillow alone."""
    rng = np.random.default_rng(0)
    end = data.index(b"\xff\xda") + 14
    markers = [at for at in range(end) if data[at] == 0xFF]
    files = [data, *(data[:at] for at in range(0, end, 7))]
    for number in range(400):
        at = int(rng.integers(2, end) if number % 2 else rng.choice(markers) + rng.integers(0, 12))
        changed = bytes(rng.integers(0, 256, rng.integers(0, 3), dtype=np.uint8))
        files.append(data[:at] + changed + data[at + rng.integers(0, 3) :])
    ours = [found(file) for file in files]
    monkeypatch.setattr(images, "_ordinary_jpeg", lambda data: None)
    assert ours == [found(file) for file in files]
    assert len(set(map(str, ours))) > 2


def found(data: bytes):
    """The header of a file, or why it has none."""
    try:
        return check(data)
    except ImageError as error:
        return error.reason, str(error)
