"""Panoptic PNGs: runs of segments, and files that would not fit into memory."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as oracle

from builders import panoptic
from dataengine.images import ImageError


def png(ids: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def rles_of(starts: np.ndarray, owners: np.ndarray, height: int, width: int) -> dict[int, bytes]:
    """The masks of all ids, their areas and boxes compared with those of the other library."""
    found = panoptic.masks_from_runs(starts, owners, height, width)
    for rle, (area, box) in found.values():
        other = {"size": [height, width], "counts": rle}
        assert (area, [*box]) == (oracle.area(other), oracle.toBbox(other).tolist())
    return {name: rle for name, (rle, _) in found.items()}


def header_of(width: int, height: int) -> bytes:
    """A colour PNG that claims this size and holds nothing."""
    data = b"\x89PNG\r\n\x1a\n"
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for kind, content in ((b"IHDR", size), (b"IDAT", b""), (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return data


IDS = np.random.default_rng(0).integers(0, 4, (17, 13)) * 70_001
BLOCKS = np.kron(np.random.default_rng(1).integers(0, 1 << 24, (2, 3)), np.ones((9, 5), dtype=np.int64))


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param(IDS, id="short runs"),
        pytest.param(BLOCKS, id="runs over whole columns"),
        pytest.param(np.full((5, 4), (1 << 24) - 1), id="one segment, the largest id"),
        pytest.param(IDS[:1], id="one row"),
        pytest.param(IDS[:, :1], id="one column"),
    ],
)
@pytest.mark.parametrize("band", [1, 40, 1 << 20])
def test_runs_equal_the_raster_however_many_columns_are_read_at_a_time(monkeypatch, ids, band):
    monkeypatch.setattr(panoptic, "BAND_PIXELS", band)
    rles = rles_of(*panoptic.runs_from_png(png(ids), *ids.shape), *ids.shape)
    assert list(rles) == np.unique(ids).tolist()
    for name, rle in rles.items():
        assert rle == oracle.encode(np.asfortranarray((ids == name).astype(np.uint8)))["counts"]


WHOLE = png(IDS)
DAMAGED = WHOLE[:60] + bytes([WHOLE[60] ^ 1]) + WHOLE[61:]


@pytest.mark.parametrize(
    ("data", "size", "reason"),
    [
        pytest.param(header_of(13_000, 13_000), (13_000, 13_000), "image_too_large", id="too many pixels"),
        pytest.param(header_of(60_000, 60_000), (17, 13), "image_too_large", id="more than Pillow opens"),
        pytest.param(header_of(70_000, 1), (1, 70_000), "image_too_large", id="a side too long"),
        pytest.param(header_of(8_000, 8_000), (17, 13), "segments_size", id="another size"),
        pytest.param(b"hello", (17, 13), "segments_unreadable", id="text"),
        pytest.param(WHOLE[:-20], (17, 13), "segments_unreadable", id="cut off"),
        pytest.param(DAMAGED, (17, 13), "segments_unreadable", id="bit flipped"),
        pytest.param(header_of(13, 17), (17, 13), "segments_unreadable", id="no pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unusable_files_say_why(data, size, reason):
    with pytest.raises(ImageError) as caught:
        panoptic.runs_from_png(data, *size)
    assert caught.value.reason == reason


def grey(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("band", [1, 1 << 20])
def test_a_grey_map_holds_its_values(monkeypatch, band):
    monkeypatch.setattr(panoptic, "BAND_PIXELS", band)
    values = (IDS // 70_001 * 80).astype(np.uint8)
    rles = rles_of(*panoptic.runs_from_png(grey(values), 17, 13, "L"), 17, 13)
    wanted = {v: oracle.encode(np.asfortranarray((values == v).astype(np.uint8)))["counts"] for v in (0, 80, 160, 240)}
    assert rles == wanted


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_maps_of_16_bits_are_refused(mode):
    with pytest.raises(ImageError, match="16 bits"):
        panoptic.runs_from_png(grey(np.zeros((17, 13), np.uint16)), 17, 13, mode)


def test_an_overlay_has_a_run_wherever_either_map_changes():
    one = np.array([0, 4], np.int32), np.array([7, 8], np.uint32)
    other = np.array([0, 2, 4], np.int32), np.array([1, 2, 1], np.uint32)
    starts, first, second = panoptic.overlay(one, other)
    assert (starts.tolist(), first.tolist(), second.tolist()) == ([0, 2, 4], [7, 7, 8], [1, 2, 1])
    joined = rles_of(starts, first, 3, 2)
    assert joined == rles_of(*one, 3, 2)


def test_a_grey_picture_has_no_ids():
    file = io.BytesIO()
    Image.new("L", (13, 17)).save(file, "PNG")
    with pytest.raises(ImageError, match="mode L"):
        panoptic.runs_from_png(file.getvalue(), 17, 13)


def test_more_segments_than_a_picture_has(monkeypatch):
    monkeypatch.setattr(panoptic, "MAX_SEGMENTS", 3)
    with pytest.raises(ImageError) as caught:
        rles_of(*panoptic.runs_from_png(WHOLE, 17, 13), 17, 13)
    assert caught.value.reason == "segments_too_many"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_picture_takes_little_more_memory_than_its_pixels(tmp_path):
    Image.new("RGB", (5000, 5000)).save(tmp_path / "large.png")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from builders import panoptic\n"
        "panoptic.runs_from_png(Path(sys.argv[1]).read_bytes(), 5000, 5000)\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "large.png")]
    peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(peak) / 1024 < 320  # MiB; 100 of them are the picture
