"""Image files as they are: what their headers say, and whether they are whole. Pixels are never decoded here."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

ORIENTATION = 0x0112  # EXIF tag
ACCEPTED_MODES = ("RGB", "L", "P", "1", "RGBA", "LA")


class ImageError(ValueError):
    """A picture that cannot be used. `reason` is a stable identifier for accounting."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """height, width: stored pixels, before any EXIF rotation. mode: Pillow's. format: JPEG, PNG …"""

    height: int
    width: int
    mode: str
    format: str


def check(data: bytes, height: int, width: int) -> Header:
    """Check the bytes of an image file against the annotated size.

    Args:
        data: the whole file.
        height, width: pixels, as annotated.
    Raises:
        ImageError: `image_unreadable`, `image_truncated`, `image_size`, `image_mode` (CMYK, 16 bit, …: loaders
            disagree on their colours) or `image_rotated` (an EXIF orientation that loaders disagree on applying).
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ImageError("image_unreadable", "the image file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            header = Header(height=image.height, width=image.width, mode=image.mode, format=image.format or "")
            # Pillow decodes a PNG to look for EXIF behind its pixels
            look = header.format != "PNG" or "exif" in image.info
            orientation = image.getexif().get(ORIENTATION, 1) if look else 1
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise ImageError("image_unreadable", f"the image cannot be read: {type(error).__name__}") from None
    if (header.height, header.width) != (height, width):
        raise ImageError(
            "image_size",
            f"the image is {header.width} x {header.height} px, its annotation says {width} x {height}",
        )
    if header.mode not in ACCEPTED_MODES:
        raise ImageError("image_mode", f"the image has mode {header.mode}; 8-bit grey or RGB is needed")
    if header.format == "PNG" and data[24] == 16:  # Pillow shows 16-bit colour PNGs as RGB
        raise ImageError("image_mode", "the image has 16 bits a channel; 8-bit grey or RGB is needed")
    if orientation not in (0, 1):
        raise ImageError("image_rotated", f"the image has EXIF orientation {orientation}; loaders disagree on it")
    whole = {"JPEG": _jpeg_is_whole, "PNG": _png_is_whole}.get(header.format)
    if whole is not None and not whole(data):
        raise ImageError("image_truncated", f"the {header.format} file ends before its picture does")
    return header


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether an end marker (FFD9) follows the start of scan; a thumbnail's end marker stands before it."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return False
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0xDA:
            return data.rfind(b"\xff\xd9") > at
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            at += 2
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return False


def _png_is_whole(data: bytes) -> bool:
    """Whether the chunks follow each other up to IEND."""
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + length
        if kind == b"IEND":
            return at <= len(data)
    return False
