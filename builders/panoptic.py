"""Maps of ids as PNGs, and the masks in them: COCO panoptic ones (`id = R + 256 G + 256² B`, 0 is void), and grey."""

from __future__ import annotations

import io
from collections.abc import Set
from typing import TYPE_CHECKING, Literal

import numpy as np

from dataengine import images, masks
from dataengine.images import ImageError
from dataengine.kernels import runlengths

if TYPE_CHECKING:
    from PIL import Image

VOID = 0
MAX_SEGMENTS = 1 << 16
BAND_PIXELS = 1 << 20  # of the columns that are read at a time
NO_ID = 1 << 24  # ids have 24 bits


def masks_from_runs(starts: np.ndarray, owners: np.ndarray, height: int, width: int) -> dict[int, masks.Measured]:
    """Id to its mask, compressed and measured, for every id that owns a run, by ascending id.

    The runs of the picture, read down its columns, are the runs of its segments: no raster is made for any of them.

    Args:
        starts, owners: see `runs_from_png`; neighbours may have one id. height, width: of the picture, px.
    Raises:
        ImageError: `segments_too_many`.
    """
    order = np.argsort(owners, kind="stable")
    number = 1 + np.count_nonzero(np.diff(owners[order]))
    if number > MAX_SEGMENTS:
        raise ImageError("segments_too_many", f"{number:,} segments; a picture has at most {MAX_SEGMENTS:,}")
    names, codes, stops, measures = runlengths.codes_of_labels(starts, owners, order, height, width)
    text, begin = codes.tobytes(), 0
    found: dict[int, masks.Measured] = {}
    for name, stop, (area, x0, y0, x1, y1) in zip(names.tolist(), stops.tolist(), measures.tolist(), strict=True):
        found[name] = text[begin:stop], (area, (x0, y0, x1 - x0, y1 - y0))
        begin = stop
    return found


def rle_of(wanted: Set[int], starts: np.ndarray, owners: np.ndarray, height: int, width: int) -> bytes | None:
    """The pixels of all these ids together, compressed; None where there are none.

    One pass over the runs, for a damaged map may have tens of thousands of ids.

    Args:
        starts, owners: see `runs_from_png`.
    """
    is_wanted = np.isin(owners, np.array(sorted(wanted), dtype=np.uint32)).astype(np.uint32)
    if not is_wanted.any():
        return None
    return masks_from_runs(starts, is_wanted, height, width)[1][0]


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
        ImageError: `segments_unreadable`, `segments_mode` (not such pixels), `segments_size` or `image_too_large`.
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
        end = min(x + step, image.width)
        band = image if end - x == image.width else image.crop((x, 0, end, image.height))
        values, bits = _values(band)
        places, ids = runlengths.runs_of_map(values, bits, before)
        starts.append(places + np.int32(x * image.height))
        owners.append(ids)
        before = int(values[-1, -1] & bits)
    return np.concatenate(starts), np.concatenate(owners)


def _values(image: Image.Image) -> tuple[np.ndarray, np.unsignedinteger]:
    """(height, width) uint32, or uint8 of a grey map: its pixels; and the bits of them that are ids."""
    size = image.height, image.width
    if image.mode == "L":
        return np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(size), np.uint8(255)
    return np.frombuffer(image.tobytes("raw", "RGBX"), dtype="<u4").reshape(size), np.uint32(0xFFFFFF)
