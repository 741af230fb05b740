"""The picture of a sample as an array, for those who take no other way to decode it."""

from __future__ import annotations

import io

import numpy as np

from dataengine import images
from dataengine.images import ImageError
from dataengine.sample import Sample
from dataengine.store.dataset import picture_of


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
            return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    except Exception as error:  # Pillow's plugins raise what they please on damaged files
        raise ImageError("image_unreadable", f"the image cannot be decoded: {type(error).__name__}") from None
