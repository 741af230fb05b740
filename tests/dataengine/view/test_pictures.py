"""Pictures are made small as what they show, and refused where they are not what their row says."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image as Pillow

from dataengine.images import ImageError
from dataengine.sample import Image
from dataengine.view import pictures
from dataengine.view.pictures import Picture


def encoded(image: Pillow.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shown(data: bytes, longest: int = 64) -> np.ndarray:
    """(H, W, 3) uint8: pixels of the small picture."""
    made = pictures.small(Picture(data=data, media_type="image/png"), longest, quality=100)
    assert made.media_type == "image/webp"
    with Pillow.open(io.BytesIO(made.data)) as opened:
        assert opened.format == "WEBP"
        assert opened.mode == "RGB"
        return np.asarray(opened)


def half_clear() -> Pillow.Image:
    """Red; its right half is transparent black."""
    pixels = np.zeros((20, 40, 4), dtype=np.uint8)
    pixels[:, :20] = (255, 0, 0, 255)
    return Pillow.fromarray(pixels)


def palette(image: Pillow.Image) -> bytes:
    return encoded(image.quantize(4, method=Pillow.Quantize.FASTOCTREE))


@pytest.mark.parametrize(
    ("data", "left", "right"),
    [
        (encoded(half_clear()), (255, 0, 0), (255, 255, 255)),
        (palette(half_clear()), (255, 0, 0), (255, 255, 255)),
        (encoded(Pillow.new("LA", (40, 20), (80, 0))), (255, 255, 255), (255, 255, 255)),
        (encoded(Pillow.new("RGB", (40, 20), (0, 0, 255)), transparency=(0, 0, 255)), (255,) * 3, (255,) * 3),
        (encoded(Pillow.new("L", (40, 20), 80)), (80, 80, 80), (80, 80, 80)),
        (encoded(Pillow.new("1", (40, 20), 1)), (255, 255, 255), (255, 255, 255)),
        (encoded(Pillow.new("RGB", (40, 20), (0, 128, 0)), "JPEG", quality=100), (0, 128, 0), (0, 128, 0)),
    ],
    ids=["alpha", "palette with alpha", "grey with alpha", "one clear colour", "grey", "one bit", "jpeg"],
)
def test_small_pictures_are_opaque_on_white(data, left, right):
    pixels = shown(data).astype(int)
    assert pixels.shape == (20, 40, 3)
    assert np.abs(pixels[:, :16] - left).max() <= 8
    assert np.abs(pixels[:, 24:] - right).max() <= 8


@pytest.mark.parametrize(("width", "height", "size"), [(400, 100, (64, 16)), (100, 400, (16, 64)), (30, 20, (30, 20))])
def test_the_longer_side_is_bounded_and_nothing_grows(width, height, size):
    assert shown(encoded(Pillow.new("RGB", (width, height)))).shape[1::-1] == size


def test_metadata_are_left_out():
    exif = Pillow.Exif()
    exif[0x010E] = "secret place"
    data = encoded(Pillow.new("RGB", (40, 20)), "JPEG", exif=exif, comment=b"secret comment")
    made = pictures.small(Picture(data=data, media_type="image/jpeg"), 64)
    assert b"secret" in data
    assert b"secret" not in made.data


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it is 60,000 x 60,000 px."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def rotated() -> bytes:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    return encoded(Pillow.new("RGB", (40, 20)), "JPEG", exif=exif)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(Pillow.new("CMYK", (40, 20)), "JPEG"), "image_mode"),
        (encoded(Pillow.fromarray(np.zeros((20, 40), dtype=np.uint16))), "image_mode"),
        (rotated(), "image_rotated"),
        (bomb(), "image_too_large"),
        (encoded(Pillow.new("RGB", (41, 20))), "image_size"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "image_unreadable"),
        (encoded(Pillow.new("RGB", (40, 20)), "GIF"), "image_unreadable"),
        (b"", "image_unreadable"),
    ],
    ids=["cmyk", "16 bits", "exif rotation", "bomb", "another size", "svg", "gif", "empty"],
)
def test_what_is_not_as_its_row_says_is_refused(data, reason):
    with pytest.raises(ImageError) as caught:
        pictures.load(Image(path=None, bytes=data), 20, 40)
    assert caught.value.reason == reason


def test_damaged_pixels_are_told(make_jpeg):
    data = bytearray(encoded(Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8))))
    at = data.index(b"IDAT") + 10
    data[at : at + 20] = bytes(20)
    with pytest.raises(ImageError):
        pictures.small(Picture(data=bytes(data), media_type="image/png"), 64)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("http://127.0.0.1:9/x.png", "disks and object stores"),
        ("file\0name", "is no path"),
        ("/nowhere/x.png", "No such file"),
        ("/dev/zero", "no regular file"),
    ],
)
def test_pictures_elsewhere_are_told(path, error):
    with pytest.raises(OSError, match=error):
        pictures.load(Image(path=path, bytes=None), 20, 40)


@pytest.mark.parametrize(
    ("path", "dataset", "is_read"),
    [
        ("/pictures/a.jpg?b=c", "/data", True),
        ("file:///pictures/a.jpg", "s3://bucket/data", True),
        ("s3://bucket/a.jpg", "/data", True),
        ("s3://bucket/a.jpg?endpoint_override=evil.example", "/data", False),
        ("s3://bucket/a.jpg?endpoint_override=evil.example", "s3://bucket/data?endpoint_override=own.example", False),
        ("s3://other/a.jpg?endpoint_override=own.example", "s3://bucket/data?endpoint_override=own.example", True),
        ("hdfs://evil.example:9000/a.jpg", "/data", False),
        ("hdfs://evil.example:9000/a.jpg", "hdfs://own.example:9000/data", False),
        ("hdfs://own.example:9000/a.jpg", "hdfs://own.example:9000/data", True),
        ("abfs://container/a.jpg", "/data", True),
        ("abfs://container@account.dfs.core.windows.net/a.jpg", "/data", True),
        ("abfs://account:key@evil.example/container/a.jpg", "/data", False),
        ("abfs://account:key@127.0.0.1:10000/container/a.jpg", "/data", False),
        ("abfs://account.blob.core.windows.net.evil.example/container/a.jpg", "/data", False),
    ],
)
def test_a_row_cannot_name_a_server(path, dataset, is_read):
    if is_read:
        pictures.check_place(path, dataset)
        return
    with pytest.raises(ImageError, match="names a server") as caught:
        pictures.load(Image(path=path, bytes=None), 20, 40, dataset)
    assert caught.value.reason == "image_elsewhere"
    assert "key" not in str(caught.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(encoded(Pillow.new("RGB", (40, 20))))
    image = Image(path=str(tmp_path / "x.png"), bytes=None)
    assert pictures.data_url(pictures.load(image, 20, 40)).startswith("data:image/png;base64,")
    monkeypatch.setattr(pictures, "MAX_BYTES", 10)
    with pytest.raises(OSError, match="more than 10 bytes"):
        pictures.load(image, 20, 40)
