"""Hungarian matching of queries to targets (Mask2Former; X-SAM AAAI26_Archive, its matcher), all queries at once.

Everything is float32: points are drawn and read, and costs summed, at full precision under any autocast.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_UNBOUNDED = 1e10  # stands for infinite costs; NaN counts as 0

Pairs = tuple[Tensor, Tensor]  # queries ascending and their targets, both (K,) int64


def read_points(maps: Tensor, points: Tensor) -> Tensor:
    """Values of maps at points, bilinearly, zero outside.

    Args:
        maps: (B, C, H, W).
        points: (B, P, 2), x and y; 0 and 1 are the outer borders.
    Returns:
        (B, C, P).
    """
    return functional.grid_sample(maps, (2 * points - 1)[:, :, None], align_corners=False)[..., 0]


@torch.no_grad()
def match_cost(
    class_logits: Tensor, mask_logits: Tensor, labels: Tensor, targets: Tensor, weights: tuple[float, float, float]
) -> Tensor:
    """What it costs to give a target to a query: minus its class's probability, cross-entropy and dice at points.

    Args:
        class_logits: (N, C + 1). mask_logits: (N, P) at points.
        labels: (T,) int64. targets: (T, P), 0 to 1, at the same points.
        weights: of class, cross-entropy and dice.
    Returns:
        (N, T) float32, finite.
    """
    with torch.autocast(class_logits.device.type, enabled=False):
        mask_logits, targets = mask_logits.float(), targets.float()
        of_class = -class_logits.float().softmax(-1)[:, labels]
        apart = functional.softplus(mask_logits) @ (1 - targets).T + functional.softplus(-mask_logits) @ targets.T
        masks = mask_logits.sigmoid()
        shared = 2 * masks @ targets.T
        dice = 1 - (shared + 1) / (masks.sum(-1)[:, None] + targets.sum(-1) + 1)
        cost = weights[0] * of_class + weights[1] * apart / targets.shape[1] + weights[2] * dice
    return cost.nan_to_num(nan=0.0, posinf=_UNBOUNDED, neginf=-_UNBOUNDED).clamp(-_UNBOUNDED, _UNBOUNDED)


def assign(costs: Sequence[Tensor]) -> list[Pairs]:
    """The cheapest assignment of each cost matrix (N, T): min(N, T) pairs.

    All matrices go to the CPU in one transfer, where scipy solves them.
    """
    from scipy.optimize import linear_sum_assignment

    if not costs:
        return []
    flat = torch.cat([cost.reshape(-1) for cost in costs]).cpu().numpy()
    ends = np.cumsum([cost.numel() for cost in costs])
    matched = []
    for cost, values in zip(costs, np.split(flat, ends[:-1]), strict=True):
        queries, targets = linear_sum_assignment(values.reshape(tuple(cost.shape)))
        matched.append((_indices(queries, cost.device), _indices(targets, cost.device)))
    return matched


def _indices(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.as_tensor(values, dtype=torch.int64, device=device)
