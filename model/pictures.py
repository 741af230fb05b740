"""Pictures as tensors for the two encoders, and masks on the segmentation encoder's canvas.

With Pillow and numpy alone; values equal the Pillow-backed image processors of transformers (SigLIP, SAM) bit for bit.
The canvas is a square of `seg_px`: the picture is scaled to its longest side, at the top left, and zeros follow.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dataengine import images
from dataengine.images import ImageError
from dataengine.masks import Crop

if TYPE_CHECKING:
    from PIL.Image import Image

    Source = bytes | str | Path | Image | np.ndarray

HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # mean and deviation, of SigLIP
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of SAM


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture as both encoders take it; made once, it serves any number of questions.

    pixel_values: (3, image_px, image_px) float32, or None in stage 1. seg_pixel_values: (3, seg_px, seg_px) float32.
    scaled_size: height and width in px within the canvas; what is outside is padding. size: of the picture as it is.
    """

    pixel_values: torch.Tensor | None
    seg_pixel_values: torch.Tensor
    scaled_size: tuple[int, int]
    size: tuple[int, int]


def prepare(source: Source, *, image_px: int | None, seg_px: int, expand_to_square: bool) -> Picture:
    """A picture for both encoders.

    Args:
        source: an image file's bytes or path, a Pillow image, or (H, W, 3) or (H, W) uint8 pixels.
        image_px: side for the image encoder; None: there is none.
        expand_to_square: whether that encoder sees the whole picture undistorted, on grey, or squeezed into a square.
    Raises:
        ImageError: see `open_picture`.
    """
    picture = open_picture(source)
    height, width = picture.height, picture.width
    seen = None
    if image_px is not None:
        seen = image_pixels(picture, image_px, expand_to_square)
    values, scaled = seg_pixels(picture, seg_px)
    return Picture(pixel_values=seen, seg_pixel_values=values, scaled_size=scaled, size=(height, width))


def open_picture(source: Source) -> Image:
    """A picture as RGB, turned as its EXIF orientation says.

    Grey and palette pictures get colours; of those with transparency the colours are taken as they are stored, as the
    reference does.

    Raises:
        ImageError: `image_unreadable`, `image_truncated`, `image_too_large`, `image_mode` (CMYK, 16 bit, …) or
            `image_empty` (no pixel).
    """
    from PIL import Image, ImageOps

    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or not (source.ndim == 2 or (source.ndim == 3 and source.shape[2] == 3)):
            raise ImageError("image_mode", f"pixels of shape {source.shape}, {source.dtype}; (H, W, 3) uint8 is needed")
        if not source.size:
            raise ImageError("image_empty", f"the picture has no pixel: its shape is {source.shape}")
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        if not source.width or not source.height:
            raise ImageError("image_empty", f"the picture is {source.width} x {source.height} px")
        images.check_size(source.height, source.width)
        picture = source
    else:
        picture = _decoded(source)
    if picture.mode not in images.ACCEPTED_MODES:
        raise ImageError("image_mode", f"the image has mode {picture.mode}; 8-bit grey or RGB is needed")
    turned = ImageOps.exif_transpose(picture)
    return turned.convert("RGB")


def image_pixels(picture: Image, side: int, expand_to_square: bool) -> torch.Tensor:
    """What SigLIP sees: (3, side, side) float32 in [-1, 1], scaled bicubically.

    Raises:
        ImageError: `image_too_large`: the square around a long narrow picture would not fit into memory.
    """
    from PIL import Image

    if expand_to_square and picture.width != picture.height:
        longest = max(picture.size)
        images.check_size(longest, longest)
        square = Image.new("RGB", (longest, longest), (127, 127, 127))  # the mean, rounded down
        square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
        picture = square
    return _normalized(picture.resize((side, side), Image.Resampling.BICUBIC), HALVES)


def seg_pixels(picture: Image, side: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """What SAM sees: (3, side, side) float32, scaled bilinearly, zeros below or to the right; and the scaled size."""
    from PIL import Image

    height, width = scaled_size(picture.height, picture.width, side)
    canvas = torch.zeros(3, side, side)
    canvas[:, :height, :width] = _normalized(picture.resize((width, height), Image.Resampling.BILINEAR), IMAGENET)
    return canvas, (height, width)


def scaled_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width in px once the longest side is `side`; at least one pixel each."""
    scale = side / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def mask_on_canvas(crop: Crop, size: tuple[int, int], side: int) -> np.ndarray:
    """(side, side) bool: `crop_on_canvas` on the whole canvas."""
    scaled = crop_on_canvas(crop, size, side)
    height, width = scaled.mask.shape
    canvas = np.zeros((side, side), dtype=bool)
    canvas[scaled.y0 : scaled.y0 + height, scaled.x0 : scaled.x0 + width] = scaled.mask
    return canvas


def crop_on_canvas(crop: Crop, size: tuple[int, int], side: int) -> Crop:
    """A mask on the segmentation encoder's canvas, scaled with the picture.

    A pixel takes the value of the one its middle falls into (Pillow's "nearest", as in the reference). A mask that none
    of these would hit keeps the pixels that its own middles fall into, so that it never vanishes.

    Args:
        crop: on the picture, with a pixel set. size: height and width of the picture, px.
    """
    height, width = scaled_size(*size, side)
    rows, columns = _nearest(size[0], height) - crop.y0, _nearest(size[1], width) - crop.x0
    y = ((rows >= 0) & (rows < crop.mask.shape[0])).nonzero()[0]
    x = ((columns >= 0) & (columns < crop.mask.shape[1])).nonzero()[0]
    mask = crop.mask[np.ix_(rows[y], columns[x])]
    if not mask.any():
        set_y, set_x = crop.mask.nonzero()
        y = ((set_y + crop.y0 + 0.5) * height / size[0]).astype(int)
        x = ((set_x + crop.x0 + 0.5) * width / size[1]).astype(int)
        mask = np.zeros((np.ptp(y) + 1, np.ptp(x) + 1), dtype=bool)
        mask[y - y.min(), x - x.min()] = True
    return Crop(mask, int(x.min()), int(y.min()))


def _nearest(size: int, scaled: int) -> np.ndarray:
    """(scaled,) int: the pixel that each scaled one takes. Steps are summed up, as Pillow does, for ties to agree."""
    steps = np.full(scaled, size / scaled)
    steps[0] *= 0.5
    return np.minimum(np.cumsum(steps).astype(int), size - 1)


def _decoded(source: bytes | str | Path) -> Image:
    from PIL import Image

    if isinstance(source, bytes):
        data = source
    else:
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise ImageError("image_unreadable", f"{source}: {error.strerror or error}") from None
    try:
        images.check(data)
    except ImageError as error:
        if error.reason != "image_rotated":  # here the picture is turned, with all that is said about it
            raise
    try:
        picture = Image.open(io.BytesIO(data), formats=images.FORMATS)
        picture.load()
    except Exception as error:  # Pillow's plugins raise what they please on damaged files
        raise ImageError("image_unreadable", f"the image cannot be decoded: {type(error).__name__}") from None
    return picture


def _normalized(picture: Image, scale: tuple[tuple[float, ...], tuple[float, ...]]) -> torch.Tensor:
    """(3, H, W) float32 of an RGB picture."""
    values = np.empty((3, picture.height, picture.width), dtype=np.float32)
    for channel, (table, pixels) in enumerate(zip(_table(*scale), np.moveaxis(np.asarray(picture), 2, 0), strict=True)):
        np.take(table, pixels, out=values[channel], mode="clip")
    return torch.from_numpy(values)


@cache
def _table(mean: tuple[float, ...], deviation: tuple[float, ...]) -> np.ndarray:
    """(3, 256) float32: what becomes of each value of each channel, rounded where transformers rounds."""
    shares = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    mean32, deviation32 = np.array(mean, dtype=np.float32), np.array(deviation, dtype=np.float32)
    table: np.ndarray = (shares - mean32[:, None]) / deviation32[:, None]
    return table
