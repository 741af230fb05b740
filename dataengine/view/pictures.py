"""Pictures of rows, safely: only image files that match their row are shown, and none larger than memory holds."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass

from dataengine import images
from dataengine.images import ImageError
from dataengine.sample import Image
from dataengine.store.dataset import picture_of
from dataengine.store.files import public

MAX_BYTES = 256 << 20  # of an image file
MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
QUALITY = 78  # of small pictures, as WebP counts it
_AZURE = re.compile(r"[a-z0-9-]+(\.(blob|dfs)\.core\.windows\.net)?")  # a container, or an account at its own place


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A whole image file, checked. media_type: what a browser is told that it is."""

    data: bytes
    media_type: str


def load(image: Image, height: int, width: int, dataset: str = "") -> Picture:
    """The file of a picture; a by-reference one is read from its place.

    Args:
        height, width: px, as the row says. dataset: URI of the picture's dataset; see `check_place`.
    Raises:
        ImageError: it is no picture of that size, or its URI names a server. OSError: it cannot be read.
    """
    if image.bytes is None:
        check_place(image.path or "", dataset)
    data = picture_of(image, MAX_BYTES)
    return Picture(data=data, media_type=MEDIA_TYPES[images.check(data, height, width).format])


def small(picture: Picture, longest_px: int, quality: int = QUALITY) -> Picture:
    """A picture whose longer side is at most `longest_px`, as WebP: opaque, on white, without metadata.

    Raises:
        ImageError: its pixels cannot be decoded.
    """
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(picture.data), formats=images.FORMATS) as opened:
            opened.draft("RGB", (longest_px, longest_px))  # a JPEG is decoded no larger than needed
            opened.load()
            mode = "RGBA" if opened.has_transparency_data else "RGB"
            shown = opened if opened.mode == mode else opened.convert(mode)  # which copies all pixels
            shown.thumbnail((longest_px, longest_px), Pillow.Resampling.BOX, reducing_gap=2.0)
    except Exception as error:  # Pillow's plugins raise what they please on damaged files
        raise ImageError("image_unreadable", f"the image cannot be decoded: {type(error).__name__}") from None
    if shown.mode == "RGBA":
        shown = Pillow.alpha_composite(Pillow.new("RGBA", shown.size, "white"), shown).convert("RGB")
    file = io.BytesIO()
    shown.info = {}  # else metadata come along
    shown.save(file, "WEBP", quality=quality, method=2)
    return Picture(data=file.getvalue(), media_type="image/webp")


def check_place(path: str, dataset: str) -> None:
    """Refuse a picture whose URI names a server other than its dataset's: no row makes its readers call an address.

    Raises:
        ImageError: `image_elsewhere`.
    """
    scheme, mark, place = path.partition("://")
    if not mark or scheme == "file":
        return
    own = dataset.partition("://")[2]
    host, asked = place.partition("/")[0], place.partition("?")[2]
    is_server = scheme == "hdfs" or (scheme == "abfs" and not _AZURE.fullmatch(host.rpartition("@")[2]))
    if (asked and asked != own.partition("?")[2]) or (is_server and host != own.partition("/")[0]):
        raise ImageError("image_elsewhere", f"{public(path)}: names a server; only the dataset's own is asked")


def data_url(picture: Picture) -> str:
    """A picture as an address that holds it."""
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.data).decode('ascii')}"
