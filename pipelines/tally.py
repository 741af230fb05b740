"""Numbers that are counted a batch at a time: how often each whole number or share occurs, and their histograms."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
MAX_BINS = 30
SHARE_BINS = 20


@dataclass(slots=True)
class Numbers:
    """Whole numbers from 0 on, of which only how often each occurs is kept."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, values: np.ndarray) -> None:
        """values: (n,) integers."""
        found, counts = np.unique(values, return_counts=True)
        self.counts.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))

    def to_json(self, *, log: bool = False) -> dict[str, Any]:
        """How many, their mean, quantiles (the smallest value that so large a share does not exceed) and histogram.

        Args:
            log: the bins grow with the values, as sizes of masks want it.
        """
        if not self.counts:
            return {"count": 0, "mean": None, "quantiles": {}, "histogram": _bins([], np.zeros(0), np.zeros(0))}
        values = np.array(sorted(self.counts))
        counts = np.array([self.counts[value] for value in values.tolist()])
        ends = np.cumsum(counts)
        places = np.searchsorted(ends, np.ceil(np.array(QUANTILES) * ends[-1]).clip(1))
        edges = edges_of_sizes(values[0], values[-1]) if log else edges_of_counts(values, ends)
        return {
            "count": int(ends[-1]),
            "mean": float((values * counts).sum() / ends[-1]),
            "quantiles": {f"{q:g}": int(v) for q, v in zip(QUANTILES, values[places].tolist(), strict=True)},
            "histogram": _bins(edges, values, counts),
        }


def _bins(edges: list[int], values: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """The histogram as JSON values.

    Bin i holds edges[i] <= value < edges[i + 1]. open: there are larger values than the last edge, which the last bin
    holds too.
    """
    if not edges:
        return {"edges": [], "counts": [], "open": False}
    places = np.searchsorted(edges, values, side="right") - 1
    held = np.bincount(places.clip(0, len(edges) - 2), counts, minlength=len(edges) - 1)
    return {"edges": edges, "counts": held.astype(np.int64).tolist(), "open": bool(values[-1] >= edges[-1])}


def edges_of_counts(values: np.ndarray, ends: np.ndarray) -> list[int]:
    """Edges of at most `MAX_BINS` equal bins, 1, 2, 5, 10, … wide.

    They reach from the smallest value to the largest, or where one in a hundred is far out, to the others' largest.

    Args:
        values: (n,) ascending, each once. ends: (n,) how many are not larger.
    """
    low, high = int(values[0]), int(values[-1])
    common = int(values[np.searchsorted(ends, 0.99 * ends[-1])])
    if high - low >= MAX_BINS and high - low > 1.5 * (common - low):
        high = max(common, low + MAX_BINS // 2)
    width = 1
    while high // width - low // width + 1 > MAX_BINS:
        width = _next(width)
    return [k * width for k in range(low // width, high // width + 2)]


def edges_of_sizes(low: int, high: int) -> list[int]:
    """Edges 0, 1, 2, 5, 10, 20, … around all values from `low` to `high`."""
    edges = [0, 1]
    while edges[-1] <= high:
        edges.append(_next(edges[-1]))
    first = sum(edge <= low for edge in edges) - 1
    return edges[max(0, first) :]


def _next(number: int) -> int:
    """The number after 1, 2, 5, 10, 20, 50, …"""
    return number * 5 // 2 if str(number)[0] == "2" else number * 2


@dataclass(slots=True)
class Shares:
    """Shares from 0 to 1. ones, zeros: how many are exactly that."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(SHARE_BINS, dtype=np.int64))
    total: float = 0.0
    zeros: int = 0
    ones: int = 0

    def add(self, values: np.ndarray) -> None:
        """values: (n,) float32; NaN stands for none."""
        values = values[~np.isnan(values)]
        # in float32, where 0.95 · 20 is 19
        places = (values.astype(np.float32) * np.float32(SHARE_BINS)).clip(0, SHARE_BINS - 1).astype(np.int64)
        self.counts += np.bincount(places, minlength=SHARE_BINS)
        self.total += float(values.sum(dtype=np.float64))
        self.zeros += int((values <= 0).sum())
        self.ones += int((values >= 1).sum())

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def to_json(self) -> dict[str, Any]:
        """How many, their mean, and a histogram.

        Its last bin holds 1 too; zeros, ones: how many of the first and last bin are exactly 0 and 1.
        """
        edges = [k / SHARE_BINS for k in range(SHARE_BINS + 1)]
        held = {"edges": edges, "counts": self.counts.tolist(), "zeros": self.zeros, "ones": self.ones}
        return {"count": self.count, "mean": self.total / self.count if self.count else None, "histogram": held}
