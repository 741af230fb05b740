"""Maps of ids as PNGs, and the masks in them: COCO panoptic ones (`id = R + 256 G + 256² B`, 0 is void), and grey."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

import numpy as np

from dataengine import images, masks
from dataengine.images import ImageError

if TYPE_CHECKING:
    from PIL import Image

VOID = 0
MAX_SEGMENTS = 1 << 16
BAND_PIXELS = 1 << 20  # of the columns that are read at a time
NO_ID = 1 << 24  # ids have 24 bits


def rles_from_png(data: bytes, height: int, width: int) -> dict[int, bytes]:
    """Segment id to compressed RLE, for every id that has a pixel, void included.

    The runs of the picture, read down its columns, are the runs of its segments: no raster is made for any of them.

    Args:
        data: the PNG file. height, width: of the picture, px.
    Raises:
        ImageError: `segments_unreadable`, `segments_mode` (no 8-bit RGB), `segments_size`, `segments_too_many` or
            `image_too_large`.
    """
    return rles_from_runs(*runs_from_png(data, height, width), height, width)


def rles_from_runs(starts: np.ndarray, owners: np.ndarray, height: int, width: int) -> dict[int, bytes]:
    """Id to compressed RLE, for every id that owns a run.

    Args:
        starts, owners: see `runs_from_png`; neighbours may have one id.
    Raises:
        ImageError: `segments_too_many`.
    """
    new = np.append(True, owners[1:] != owners[:-1])
    starts, owners = starts[new], owners[new]
    order = np.argsort(owners, kind="stable")
    owners = owners[order]
    first = np.flatnonzero(np.append(True, owners[1:] != owners[:-1]))
    if first.size > MAX_SEGMENTS:
        raise ImageError("segments_too_many", f"{first.size:,} segments; a picture has at most {MAX_SEGMENTS:,}")
    ends = np.append(starts[1:], np.int32(height * width))
    rles = {}
    for name, runs in zip(owners[first].tolist(), np.split(order, first[1:]), strict=True):
        counts = np.empty(2 * runs.size + 1, dtype=np.int64)
        counts[1::2] = ends[runs] - starts[runs]
        counts[0], counts[2:-1:2] = starts[runs[0]], starts[runs[1:]] - ends[runs[:-1]]
        counts[-1] = height * width - ends[runs[-1]]
        rles[name] = masks.rle_from_counts(counts if counts[-1] else counts[:-1], height, width)
    return rles


def overlay(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The runs in which neither of two maps of one picture changes: starts, and the owners in each map.

    Args:
        one, other: starts and owners, see `runs_from_png`.
    """
    starts = np.sort(np.concatenate([one[0], other[0]]), kind="stable")
    starts = starts[np.append(True, starts[1:] != starts[:-1])]
    first, second = (owners[np.searchsorted(own, starts, "right") - 1] for own, owners in (one, other))
    return starts, first, second


def runs_from_png(
    data: bytes, height: int, width: int, mode: Literal["RGB", "L"] = "RGB"
) -> tuple[np.ndarray, np.ndarray]:
    """Runs of one id down the columns: (n,) int32, the place of each one's first pixel; (n,) uint32, its id.

    Args:
        mode: Pillow's, of 8 bits a channel; of a grey map (`L`) the ids are its values.
    Raises:
        ImageError: see `rles_from_png`.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            images.check_size(image.height, image.width)
            if image.mode != mode or data[24] != 8:  # Pillow shows 16-bit colours as RGB, and scales 4-bit grey
                raise ImageError("segments_mode", f"mode {image.mode} of {data[24]} bits; 8-bit {mode} is needed")
            if (image.height, image.width) != (height, width):
                raise ImageError(
                    "segments_size", f"{image.width} x {image.height} px; the picture is {width} x {height}"
                )
            images.check_png(data)
            return _runs_of_image(image)
    except ImageError as error:
        damaged = error.reason in ("image_truncated", "image_unreadable")
        raise ImageError("segments_unreadable", str(error)) if damaged else error from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("image_too_large", str(error)) from None
    except Exception as error:  # Pillow raises what it pleases on damaged files
        raise ImageError("segments_unreadable", f"cannot be read: {type(error).__name__}") from None


def _runs_of_image(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """See `runs_from_png`; a band of columns at a time, so that little more than the picture is in memory."""
    step = max(1, BAND_PIXELS // image.height)
    starts, owners = [], []
    before = NO_ID
    for x in range(0, image.width, step):
        band = image.crop((x, 0, min(x + step, image.width), image.height))
        ids = _ids(band)
        changes = np.empty(ids.size, dtype=bool)
        changes[0] = ids[0] != before
        np.not_equal(ids[1:], ids[:-1], out=changes[1:])
        places = np.flatnonzero(changes)
        starts.append((places + x * image.height).astype(np.int32))
        owners.append(ids[places].astype(np.uint32))
        before = int(ids[-1])
    return np.concatenate(starts), np.concatenate(owners)


def _ids(image: Image.Image) -> np.ndarray:
    """(width * height,) uint32, or uint8 of a grey map: the ids down the columns."""
    if image.mode == "L":
        values = np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(image.height, image.width)
        return np.ascontiguousarray(values.T).ravel()
    pixels = np.frombuffer(image.tobytes("raw", "RGBX"), dtype="<u4").reshape(image.height, image.width)
    return np.bitwise_and(pixels.T, np.uint32(0xFFFFFF), order="C").ravel()
