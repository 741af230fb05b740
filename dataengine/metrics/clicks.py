"""Scores of interactive segmentation: clicks needed, failures, IoU after k clicks, seconds a click.

All take one list an object: its IoU after each click, ending where the interaction ended. An object that stopped early
keeps its last IoU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Convention = Literal["definition", "ritm"]


def noc(
    ious: Sequence[Sequence[float]], threshold: float, max_clicks: int = 20, *, convention: Convention = "definition"
) -> float | None:
    """NoC_N@τ: mean over objects of min{k ≤ N : IoU_k ≥ τ}, or N where there is none.

    Args:
        ious: one list an object, IoU in [0, 1] after click 1, 2, …. threshold: τ. max_clicks: N.
        convention: `ritm` looks for k in the whole list, so that a list longer than N may count more than N clicks
            (`isegm/inference/utils.py`, compute_noc_metric of ritm_interactive_segmentation).
    Returns:
        clicks; None of no objects.
    Raises:
        ValueError: an object without an IoU, one that is not finite, max_clicks below 1.
    """
    values = [_clicks_to(one, threshold, max_clicks, convention) or max_clicks for one in _checked(ious, max_clicks)]
    return math.fsum(values) / len(values) if values else None


def nof(
    ious: Sequence[Sequence[float]], threshold: float, max_clicks: int = 20, *, convention: Convention = "definition"
) -> int:
    """NoF_N@τ: number of objects whose IoU does not reach τ within N clicks.

    Args:
        convention: `ritm` counts objects whose number of clicks equals N, so that one that gets there exactly at click
            N fails too, and one that gets there later, in a longer list, does not (its `over_max`).
    Raises:
        ValueError: see `noc`.
    """
    found = [_clicks_to(one, threshold, max_clicks, convention) for one in _checked(ious, max_clicks)]
    if convention == "ritm":
        return sum((value or max_clicks) == max_clicks for value in found)
    return sum(value is None for value in found)


def miou_at(ious: Sequence[Sequence[float]], clicks: int) -> float | None:
    """mIoU@k: mean over objects of the IoU after k clicks, the last one of those that stopped before; None of none.

    Raises:
        ValueError: see `noc`.
    """
    values = [one[min(clicks, len(one)) - 1] for one in _checked(ious, clicks)]
    return math.fsum(values) / len(values) if values else None


def spc(seconds: Sequence[Sequence[float]]) -> float | None:
    """SPC: seconds a click, over all clicks of all objects; None where there was none.

    Args:
        seconds: one list an object, the predictor's time for each click.
    """
    every = [value for one in seconds for value in one]
    return math.fsum(every) / len(every) if every else None


def _clicks_to(ious: Sequence[float], threshold: float, max_clicks: int, convention: Convention) -> int | None:
    """The first click, from 1, whose IoU reaches the threshold."""
    looked_at = ious if convention == "ritm" else ious[:max_clicks]
    return next((number for number, iou in enumerate(looked_at, 1) if iou >= threshold), None)


def _checked(ious: Sequence[Sequence[float]], clicks: int) -> Sequence[Sequence[float]]:
    if clicks < 1:
        raise ValueError(f"a number of clicks is at least 1, not {clicks}")
    for number, one in enumerate(ious):
        if not len(one):
            raise ValueError(f"object {number} has no IoU")
        if not all(map(math.isfinite, one)):
            raise ValueError(f"object {number} has an IoU that is not finite")
    return ious
