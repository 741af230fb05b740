"""COCO panoptic PNGs: `id = R + 256 G + 256² B`, 0 is void."""

from __future__ import annotations

import io

import numpy as np

from dataengine import masks
from dataengine.images import ImageError

VOID = 0


def rles_from_png(data: bytes, height: int, width: int) -> dict[int, bytes]:
    """Segment id to compressed RLE, for every id that has a pixel, void included.

    The runs of the picture, read down its columns, are the runs of its segments: no raster is made for any of them.

    Args:
        data: the PNG file. height, width: of the picture, px.
    Raises:
        ImageError: `segments_unreadable`, `segments_mode` (no 8-bit RGB) or `segments_size`.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode != "RGB":
                raise ImageError("segments_mode", f"mode {image.mode}; 8-bit RGB is needed")
            if (image.height, image.width) != (height, width):
                raise ImageError(
                    "segments_size", f"{image.width} x {image.height} px; the picture is {width} x {height}"
                )
            pixels = np.asarray(image).astype(np.uint32)
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError("segments_unreadable", f"cannot be read: {type(error).__name__}") from None
    ids = (pixels[..., 0] | pixels[..., 1] << 8 | pixels[..., 2] << 16).T.ravel()
    starts = np.concatenate(([0], np.flatnonzero(ids[1:] != ids[:-1]) + 1))
    ends = np.append(starts[1:], ids.size)
    owners = ids[starts]
    order = np.argsort(owners, kind="stable")
    names, first = np.unique(owners[order], return_index=True)
    rles = {}
    for name, runs in zip(names.tolist(), np.split(order, first[1:]), strict=True):
        edges = np.column_stack((starts[runs], ends[runs])).ravel()
        counts = np.diff(edges, prepend=0, append=ids.size)
        rles[name] = masks.rle_from_counts(counts if counts[-1] else counts[:-1], height, width)
    return rles
