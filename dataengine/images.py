"""Image files as they are: what their headers say, and whether they are whole. Pixels are never decoded here."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

from dataengine.errors import ReasonError

FORMATS = ("JPEG", "PNG", "WEBP")
ORIENTATION = 0x0112  # EXIF tag
ACCEPTED_MODES = ("RGB", "L", "P", "1", "RGBA", "LA")
MAX_PIXELS = 1 << 26  # a file of half a megabyte can claim more than memory holds
MAX_SIDE = 65_535  # px, of a JPEG


class ImageError(ReasonError):
    """A picture that cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """height, width: stored pixels, before any EXIF rotation. mode: Pillow's. format: JPEG, PNG or WEBP."""

    height: int
    width: int
    mode: str
    format: str


def check(data: bytes, height: int | None = None, width: int | None = None) -> Header:
    """Check the bytes of an image file against the annotated size.

    Args:
        data: the whole file.
        height, width: pixels, as annotated; None where nothing is annotated.
    Raises:
        ImageError: `image_unreadable` (no JPEG, PNG or WEBP file, or a damaged one), `image_truncated`,
            `image_too_large`, `image_size`, `image_mode` (CMYK, 16 bit, …: loaders disagree on their colours) or
            `image_rotated` (an EXIF orientation that loaders disagree on applying).
    """
    if not data:
        raise ImageError("image_unreadable", "the image file is empty")
    if data.startswith(b"RIFF") and not _riff_is_whole(data):  # Pillow only says that it cannot read it
        raise ImageError("image_truncated", "the WEBP file ends before its picture does")
    ordinary = _ordinary_jpeg(data)
    header, orientation = (ordinary, 1) if ordinary is not None else _header(data)
    check_size(header.height, header.width)
    if height is not None and (header.height, header.width) != (height, width):
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
    if header.format == "PNG":
        check_png(data)
    if header.format == "JPEG" and not _jpeg_is_whole(data):
        raise ImageError("image_truncated", "the JPEG file ends before its picture does")
    return header


def check_size(height: int, width: int) -> None:
    """Refuse a picture that would not fit into memory.

    Args:
        height, width: px, as the file's header states them.
    Raises:
        ImageError: `image_too_large`.
    """
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise ImageError(
            "image_too_large",
            f"the image is {width} x {height} px; at most {MAX_PIXELS:,} px and {MAX_SIDE:,} a side are read",
        )


def check_png(data: bytes) -> None:
    """Check that a PNG's chunks follow each other up to IEND, pixels among them, each with its checksum.

    Raises:
        ImageError: `image_truncated` or `image_unreadable`.
    """
    view = memoryview(data)
    at = 8
    kinds = set()
    while b"IEND" not in kinds:
        if at + 12 > len(data):
            raise ImageError("image_truncated", "the PNG file ends before its picture does")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length  # of the chunk's content; its checksum follows
        if end + 4 > len(data):
            raise ImageError("image_truncated", "the PNG file ends before its picture does")
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise ImageError("image_unreadable", f"the PNG's chunk at byte {at} does not match its checksum")
        kinds.add(kind)
        at = end + 4
    if b"IDAT" not in kinds:
        raise ImageError("image_truncated", "the PNG file holds no pixels")


def _header(data: bytes) -> tuple[Header, int]:
    """What the file says about itself, and its EXIF orientation; 1 if it has none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            kind = "JPEG" if image.format == "MPO" else image.format or ""  # a JPEG that more pictures follow
            header = Header(height=image.height, width=image.width, mode=image.mode, format=kind)
            # Pillow decodes a PNG to look for EXIF behind its pixels
            look = kind != "PNG" or "exif" in image.info
            return header, image.getexif().get(ORIENTATION, 1) if look else 1
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("image_too_large", str(error)) from None
    except UnidentifiedImageError:
        raise ImageError("image_unreadable", f"the image is no {', '.join(FORMATS)} file, or is damaged") from None
    except Exception as error:  # Pillow's plugins raise what they please on damaged files
        raise ImageError("image_unreadable", f"the image cannot be read: {type(error).__name__}") from None


def _ordinary_jpeg(data: bytes) -> Header | None:
    """What a JPEG says about itself where it says nothing but the usual, which Pillow takes a while to say.

    None where only Pillow can tell: EXIF, several pictures, junk between segments, anything damaged.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    at, header = 2, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = struct.unpack_from(">BH", data, at + 1)
        if length < 2 or at + 2 + length > len(data):
            return None
        if marker == 0xDA:  # start of scan
            return header
        content = data[at + 4 : at + 2 + length]
        if marker in (0xC0, 0xC1, 0xC2) and header is None:
            header = _frame(content)
            if header is None:
                return None
        elif not _is_usual(marker, content):
            return None
        at += 2 + length
    return None


def _frame(content: bytes) -> Header | None:
    """The header in a JPEG's start of frame; None where it is out of the ordinary."""
    if len(content) < 6:
        return None
    bits, height, width, layers = struct.unpack_from(">BHHB", content)
    if bits != 8 or layers not in (1, 3) or len(content) != 6 + 3 * layers or not 0 < height * width <= MAX_PIXELS:
        return None
    return Header(height=height, width=width, mode="L" if layers == 1 else "RGB", format="JPEG")


def _is_usual(marker: int, content: bytes) -> bool:
    """Whether a JPEG's segment is whole and says nothing of what is asked for here."""
    if marker == 0xDB:  # quantization tables of 8 bits
        return len(content) in (65, 130) and not any(number >> 4 for number in content[::65])
    if marker in (0xE0, 0xE2, 0xEE):
        return len(content) >= 14 and content.startswith((b"JFIF\0", b"ICC_PROFILE\0", b"Adobe"))
    return marker in (0xC4, 0xDD, 0xFE)  # Huffman tables, restart interval, comment


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


def _riff_is_whole(data: bytes) -> bool:
    """Whether the file is as long as its RIFF header says."""
    return len(data) >= 8 and 8 + struct.unpack_from("<I", data, 4)[0] <= len(data)
