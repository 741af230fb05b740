"""Pictures as tensors for the two encoders, and masks on the segmentation encoder's canvas.

Pixels stay uint8 until they are where the model is (`normalized`); what becomes of them equals what the Pillow-backed
image processors of transformers (SigLIP, SAM) give, bit for bit.
The canvas is a square of `seg_px`: the picture is scaled to its longest side, at the top left, and zeros follow.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dataengine import images, masks
from dataengine.images import ImageError
from dataengine.kernels import crops, resampling, runlengths
from dataengine.masks import Crop

if TYPE_CHECKING:
    from PIL.Image import Image

    Source = bytes | str | Path | Image | np.ndarray

HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # mean and deviation, of SigLIP
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of SAM
GREY = 127  # the mean, rounded down


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture as both encoders take it; made once, it serves any number of questions.

    pixel_values: (3, image_px, image_px) uint8, or None in stage 1. seg_pixel_values: (3, seg_px, seg_px) uint8.
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
    pixels = _columns(picture)
    seen = None if image_px is None else _image_pixels(pixels, image_px, expand_to_square)
    values, scaled = _seg_pixels(pixels, seg_px)
    size = picture.height, picture.width
    return Picture(pixel_values=seen, seg_pixel_values=values, scaled_size=scaled, size=size)


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
    if picture.getexif().get(images.ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def image_pixels(picture: Image, side: int, expand_to_square: bool) -> torch.Tensor:
    """What SigLIP sees: (3, side, side) uint8, scaled bicubically.

    Raises:
        ImageError: `image_too_large`: the square around a long narrow picture would not fit into memory.
    """
    return _image_pixels(_columns(picture), side, expand_to_square)


def seg_pixels(picture: Image, side: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """What SAM sees: (3, side, side) uint8, scaled bilinearly, zeros below or to the right; and the scaled size."""
    return _seg_pixels(_columns(picture), side)


def normalized(pixels: torch.Tensor, sizes: torch.Tensor | None = None) -> torch.Tensor:
    """Pixels as an encoder takes them, computed where they are.

    Args:
        pixels: (I, 3, H, W), of SigLIP, or of SAM where sizes are given; uint8, or floats that are normalised already.
        sizes: (I, 2) int64, `Picture.scaled_size` of each; outside of it are zeros.
    Returns:
        (I, 3, H, W) float32, of uint8; floats as they are.
    """
    if pixels.dtype != torch.uint8:
        return pixels
    device = pixels.device
    table = torch.from_numpy(_table(*(HALVES if sizes is None else IMAGENET))).to(device)
    places = pixels.int() + 256 * torch.arange(3, dtype=torch.int32, device=device)[:, None, None]
    values = table.flatten().index_select(0, places.flatten()).view(pixels.shape)
    if sizes is None:
        return values
    height, width = pixels.shape[-2:]
    below = torch.arange(height, device=device) >= sizes[:, :1]
    beside = torch.arange(width, device=device) >= sizes[:, 1:]
    return values.masked_fill_((below[:, :, None] | beside[:, None])[:, None], 0)


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
    rows, columns = _nearest(size[0], height), _nearest(size[1], width)
    h, w = crop.mask.shape
    top, bottom = np.searchsorted(rows, (crop.y0, crop.y0 + h)).tolist()
    left, right = np.searchsorted(columns, (crop.x0, crop.x0 + w)).tolist()
    mask = crops.picked(np.ascontiguousarray(crop.mask), rows[top:bottom] - crop.y0, columns[left:right] - crop.x0)
    if not mask.any():
        set_y, set_x = crop.mask.nonzero()
        y = ((set_y + crop.y0 + 0.5) * height / size[0]).astype(int)
        x = ((set_x + crop.x0 + 0.5) * width / size[1]).astype(int)
        mask = np.zeros((np.ptp(y) + 1, np.ptp(x) + 1), dtype=bool)
        mask[y - y.min(), x - x.min()] = True
        left, top = int(x.min()), int(y.min())
    return Crop(mask, left, top)


def rle_on_canvas(rle: bytes, size: tuple[int, int], side: int) -> bytes:
    """`crop_on_canvas` from run lengths to run lengths, without a pixel in between.

    Raises:
        MaskError: see `masks.crop_from_rle`.
    """
    height, width = scaled_size(*size, side)
    if masks.measure(rle, *size)[0]:
        edges = np.searchsorted(_nearest(size[0], height), np.arange(size[0] + 1))
        code = runlengths.scaled_code(np.frombuffer(rle, dtype=np.uint8), *size, edges, _nearest(size[1], width), side)
        if code.size:
            return bytes(code.tobytes())
    return masks.rle_from_crop(crop_on_canvas(masks.crop_from_rle(rle, *size), size, side), side, side)


@lru_cache(maxsize=256)
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


def _columns(picture: Image) -> np.ndarray:
    """(W, H, 3) uint8: an RGB picture column by column."""
    from PIL import Image

    return np.asarray(picture.transpose(Image.Transpose.TRANSPOSE))


def _image_pixels(columns: np.ndarray, side: int, expand_to_square: bool) -> torch.Tensor:
    """`image_pixels` of a picture's columns."""
    width, height = columns.shape[:2]
    if expand_to_square and width != height:
        longest = max(width, height)
        images.check_size(longest, longest)
        square = np.full((longest, longest, 3), GREY, dtype=np.uint8)
        left, top = (longest - width) // 2, (longest - height) // 2
        square[left : left + width, top : top + height] = columns
        square.flags.writeable = False  # as columns are: one kind of array, one compiled loop
        columns = square
    made = np.empty((3, side, side), dtype=np.uint8)
    _resize(columns, made, is_cubic=True)
    return torch.from_numpy(made)


def _seg_pixels(columns: np.ndarray, side: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """`seg_pixels` of a picture's columns."""
    height, width = scaled_size(columns.shape[1], columns.shape[0], side)
    canvas = np.zeros((3, side, side), dtype=np.uint8)
    _resize(columns, canvas[:, :height, :width], is_cubic=False)
    return torch.from_numpy(canvas), (height, width)


def _resize(columns: np.ndarray, made: np.ndarray, is_cubic: bool) -> None:
    """Write a picture of another size, as the Pillow that is installed scales it.

    The first axis is rounded before the second, so their order shows. It is the width, but from Pillow 13 on the height
    where that shrinks more; how much more is Pillow's business, so such pictures are left to it.

    Args:
        columns: (W, H, 3) uint8. made: (3, h, w) uint8, written.
    """
    from PIL import Image

    (width, height), (h, w) = columns.shape[:2], made.shape[1:]
    if height <= h or height * w <= width * (h + 0.5):  # half a pixel is what keeping the proportions rounds
        resampling.resize(columns, made, is_cubic)
        return
    method = Image.Resampling.BICUBIC if is_cubic else Image.Resampling.BILINEAR
    picture = Image.fromarray(columns).transpose(Image.Transpose.TRANSPOSE)
    made[:] = np.moveaxis(np.asarray(picture.resize((w, h), method)), 2, 0)


@cache
def _table(mean: tuple[float, ...], deviation: tuple[float, ...]) -> np.ndarray:
    """(3, 256) float32: what becomes of each value of each channel, rounded where transformers rounds."""
    shares = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    mean32, deviation32 = np.array(mean, dtype=np.float32), np.array(deviation, dtype=np.float32)
    table: np.ndarray = (shares - mean32[:, None]) / deviation32[:, None]
    return table
