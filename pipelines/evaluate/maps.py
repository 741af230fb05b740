"""Maps of segments and of categories: PNG files that predictions name, and maps painted from masks.

Names and files are not trusted: a name stays below its folder, a file is as large as its picture can need, and has the
picture's size before it is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np

from builders.pictures import safe_file_name
from dataengine import images, masks
from dataengine.errors import ReasonError
from dataengine.images import ImageError
from dataengine.metrics.panoptic import ids_from_png
from dataengine.store.files import Folder

BYTES_PER_PIXEL = 8  # of a PNG file that is not even compressed; most need less than one
BYTES_BESIDES = 1 << 20
UNLABELLED = {8: 255, 16: 65535}  # by bits: the label of pixels without a category


def segment_ids(folder: Folder | None, name: Any, height: int, width: int) -> np.ndarray:
    """(height, width) uint32 ids of a panoptic PNG.

    Raises:
        ReasonError: `bad_file`.
    """
    data = _read(folder, name, height, width)
    try:
        return ids_from_png(data)
    except ImageError as error:
        raise ReasonError("bad_file", f"{name}: {error}") from None


def labels(folder: Folder | None, name: Any, height: int, width: int) -> tuple[np.ndarray, int]:
    """(height, width) integers of a PNG of grey values or palette indices, and the one of pixels without a category.

    Raises:
        ReasonError: `bad_file`.
    """
    from PIL import Image

    data = _read(folder, name, height, width)
    bits = data[24]
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if bits not in UNLABELLED or image.mode not in ("L", "P", "I;16", "I;16B", "I"):
                raise ReasonError("bad_file", f"{name}: mode {image.mode} of {bits} bits; 8 or 16-bit grey is needed")
            return np.asarray(image), UNLABELLED[bits]
    except ReasonError:
        raise
    except Exception as error:  # Pillow raises what it pleases on damaged files
        raise ReasonError("bad_file", f"{name}: cannot be read: {type(error).__name__}") from None


def _read(folder: Folder | None, name: Any, height: int, width: int) -> bytes:
    """A PNG file whose header has the picture's size, and whose chunks are whole."""
    if folder is None:
        raise ReasonError("bad_file", f"{name!r:.80}: there is no folder that files could be read from")
    try:
        safe = safe_file_name(name)
    except ReasonError as error:
        raise ReasonError("bad_file", f"{error}") from None
    try:
        with folder.open(safe) as file:
            most = BYTES_PER_PIXEL * height * width + BYTES_BESIDES
            data = file.read(most + 1)
    except (OSError, ValueError) as error:
        raise ReasonError("bad_file", f"{safe}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > most:
        raise ReasonError("bad_file", f"{safe}: a PNG of {width} x {height} px needs no more than {most:,} bytes")
    if len(data) < 33 or not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ReasonError("bad_file", f"{safe}: is no PNG file")
    stated = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if stated != (width, height):
        raise ReasonError("bad_file", f"{safe}: is {stated[0]} x {stated[1]} px, the picture {width} x {height}")
    try:
        images.check_png(data)
    except ImageError as error:
        raise ReasonError("bad_file", f"{safe}: {error}") from None
    return data


def painted(
    rles: Iterable[tuple[bytes, int]], background: int, height: int, width: int, *, disjoint: bool = False
) -> np.ndarray:
    """(height, width) int32 map of masks, each with its value; later ones cover earlier ones.

    Args:
        background: the value of all other pixels.
        disjoint: whether masks that overlap are an error.
    Raises:
        ReasonError: `overlap`.
    """
    canvas = np.full((height, width), background, dtype=np.int32)
    for rle, value in rles:
        if not masks.area(rle, height, width):
            continue
        crop = masks.crop_from_rle(rle, height, width)
        h, w = crop.mask.shape
        part = canvas[crop.y0 : crop.y0 + h, crop.x0 : crop.x0 + w]
        if disjoint and (part[crop.mask] != background).any():
            raise ReasonError("overlap", f"the mask of {value} overlaps another one; each pixel has one")
        part[crop.mask] = value
    return canvas
