"""Multi-scale deformable attention (Deformable DETR, eq. 3): the formula in plain PyTorch, or an installed kernel.

Both compute in float32 at least, whatever the dtype of the values, and give the same numbers up to rounding.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
)

# value, shapes (L, 2), first position of each level (L,), locations, weights; differentiable in 1, 4 and 5
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def deformable_attention(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    kernel: Kernel | None = None,
) -> Tensor:
    """For every query and head, the weighted sum of values read at its points, bilinearly, zero outside the maps.

    Args:
        value: (B, S, heads, D), the levels' positions row by row, one level after the other; S = sum of h w.
        shapes: (h, w) of each level.
        locations: (B, Q, heads, L, P, 2) float32, x and y; 0 and 1 are the outer borders of a level.
        weights: (B, Q, heads, L, P), of sum 1 over L and P.
        kernel: computes it instead of the formula; `installed_kernel` finds one.
    Returns:
        (B, Q, heads * D), of the dtype of `value`.
    """
    wide = torch.promote_types(value.dtype, torch.float32)
    with torch.autocast(value.device.type, enabled=False):
        arguments = value.to(wide), locations.to(wide), weights.to(wide)
        summed = _by_kernel(kernel, shapes, *arguments) if kernel else _by_formula(shapes, *arguments)
        return summed.to(value.dtype)


@cache
def installed_kernel(device: str) -> Kernel | None:
    """A compiled kernel for tensors on `device` ("cuda", "cpu", …), or None.

    mmcv's and Deformable DETR's own `MultiScaleDeformableAttention` are known; both run on CUDA alone.
    """
    if device != "cuda":
        return None
    for name, adapt in _KERNELS.items():
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            continue
        try:
            return adapt(importlib.import_module(name))
        except (ImportError, AttributeError, OSError):  # installed without its compiled part, or for another torch
            continue
    return None


class DeformableAttention(Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
    """Self-attention of the pixel decoder with the library's weights; sampling points are float32 throughout."""

    def attend(self, x: Tensor, positions: Tensor, reference: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """
        Args:
            x, positions: (B, S, C), all levels' positions and their position embeddings.
            reference: (S, 2) float32, x and y in 0 to 1, where each position lies.
            shapes: (h, w) of each level.
        Returns:
            (B, S, C).
        """
        batch, length, _ = x.shape
        query = x + positions
        points = (batch, length, self.n_heads, self.n_levels, self.n_points)
        offsets = self.sampling_offsets(query).float().view(*points, 2)
        weights = self.attention_weights(query).float().view(*points[:3], -1).softmax(-1).view(points)
        size = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32, device=x.device)
        locations = reference[:, None, None, None] + offsets / size[:, None]
        value = self.value_proj(x).view(batch, length, self.n_heads, -1)
        kernel = installed_kernel(x.device.type)
        return self.output_proj(deformable_attention(value, shapes, locations, weights, kernel))


def _by_formula(shapes: Sequence[tuple[int, int]], value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # L, B heads, Q, P, 2
    shares = weights.permute(3, 0, 2, 1, 4).flatten(1, 2).unsqueeze(2)  # L, B heads, 1, Q, P
    total = value.new_zeros(batch * heads, dim, queries)
    levels = value.split([h * w for h, w in shapes], dim=1)
    for (height, width), level, grid, share in zip(shapes, levels, grids, shares, strict=True):
        maps = level.permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        read = functional.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        total = total + (read * share).sum(-1)
    return total.view(batch, heads * dim, queries).transpose(1, 2)


def _by_kernel(
    kernel: Kernel, shapes: Sequence[tuple[int, int]], value: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    sizes = torch.tensor(list(shapes), dtype=torch.int64, device=value.device)
    starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
    return kernel(value.contiguous(), sizes, starts, locations.contiguous(), weights.contiguous())


def _mmcv(module: ModuleType) -> Kernel:
    apply = module.MultiScaleDeformableAttnFunction.apply
    return lambda value, *rest: apply(value, *rest, value.shape[0])  # the batch in one step


def _deformable_detr(module: ModuleType) -> Kernel:
    compute, differentiate = module.ms_deform_attn_forward, module.ms_deform_attn_backward

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Tensor) -> Tensor:
            ctx.save_for_backward(*arguments)
            return compute(*arguments, arguments[0].shape[0])

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            arguments = ctx.saved_tensors
            value, locations, weights = differentiate(*arguments, grad.contiguous(), arguments[0].shape[0])
            return value, None, None, locations, weights

    return Attention.apply


_KERNELS: dict[str, Callable[[ModuleType], Kernel]] = {
    "mmcv.ops.multi_scale_deform_attn": _mmcv,
    "MultiScaleDeformableAttention": _deformable_detr,
}
