"""Pixel shuffle: packs neighbouring pixels into channels, or unpacks channels into pixels, in X-SAM's own order."""

from __future__ import annotations

from torch import Tensor


def pixel_shuffle(x: Tensor, scale: float) -> Tensor:
    """A map made `scale` times as large, its channels fewer by `scale` squared.

    Scale 0.5 packs with the row offset outermost: `out[i, j, (dh * 2 + dw) * C + c] = x[2 i + dh, 2 j + dw, c]`.
    Scale 2 unpacks with the column offset outermost: `out[2 h + dh, 2 w + dw, c] = x[h, w, (dw * 2 + dh) * C / 4 + c]`.
    So the two do not undo each other, and neither is torch's PixelShuffle; weights were trained with this order
    (X-SAM AAAI26_Archive, model/utils/pixel_shuffle.py).

    Args:
        x: (B, H, W, C).
        scale: below 1 packs, above 1 unpacks.
    Returns:
        (B, H * scale, W * scale, C / scale ** 2).
    Raises:
        ValueError: sides or channels cannot be divided so.
    """
    batch, height, width, channels = x.shape
    rows, columns = int(height * scale), int(width * scale)
    narrow, packed = int(channels / scale), int(channels / scale**2)
    if rows * columns * packed != height * width * channels or columns * narrow != width * channels:
        raise ValueError(f"a map of {height} x {width} x {channels} cannot be shuffled by {scale}")
    x = x.reshape(batch, height, columns, narrow).transpose(1, 2)
    return x.reshape(batch, columns, rows, packed).transpose(1, 2)


def pixel_shuffle_nchw(x: Tensor, scale: float) -> Tensor:
    """`pixel_shuffle` of (B, C, H, W)."""
    return pixel_shuffle(x.permute(0, 2, 3, 1), scale).permute(0, 3, 1, 2)
