"""The picture of a sample as an array, for those who take no other way to decode it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from dataengine import images
from dataengine.images import ImageError
from dataengine.sample import Sample
from dataengine.store.dataset import picture_of

if TYPE_CHECKING:
    from PIL.Image import Image


def decoded(sample: Sample) -> np.ndarray:
    """The pixels of a sample's picture, which is read from its place where the dataset is by reference.

    Returns:
        (height, width, 3) uint8, RGB, read-only.
    Raises:
        ImageError: `image_missing`: it has none; or it is not as annotated, or damaged (`images.check`).
        OSError: it cannot be read from its place.
    """
    from PIL import Image

    if sample.image is None:
        raise ImageError("image_missing", "the sample has no picture")
    data = picture_of(sample.image)
    images.check(data, sample.height, sample.width)
    try:
        with Image.open(io.BytesIO(data), formats=images.FORMATS) as picture:
            return _pixels(picture if picture.mode == "RGB" else picture.convert("RGB"))
    except Exception as error:  # Pillow's plugins raise what they please on damaged files
        raise ImageError("image_unreadable", f"the image cannot be decoded: {type(error).__name__}") from None


def _pixels(picture: Image) -> np.ndarray:
    """What `np.asarray` gives for an RGB picture, without the copies in pieces by which Pillow answers it.

    Pillow holds four bytes a pixel, and shows them as an Arrow array where they lie in one block
    (https://pillow.readthedocs.io/en/stable/reference/arrow_support.html).
    """
    import cv2
    import pyarrow as pa

    picture.load()
    try:
        stored = pa.array(picture)
    except (ValueError, MemoryError, pa.ArrowException):  # in several blocks, as large pictures are
        return np.asarray(picture)
    width, height = picture.size
    pixels = cv2.cvtColor(stored.values.to_numpy().reshape(height, width, 4), cv2.COLOR_RGBA2RGB)
    pixels.flags.writeable = False
    return pixels
