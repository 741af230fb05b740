"""Mixing rules: how many samples of each source an epoch draws, and which ones.

Pure functions of sizes, rule and seed. Whatever is drawn more than once, or less than once, is drawn from the whole
source, in another order each epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dataengine.keyed import keyed

VERSION = 1  # of `indices`


@dataclass(frozen=True, slots=True)
class Balanced:
    """Sources below a share of `threshold` are repeated r_d = max(1, sqrt(threshold / f_d)) times.

    The repeat factor of LVIS (Gupta et al. 2019, §4) with sources in place of categories, as X-SAM's concatenation
    has it. threshold: finite, not negative; 0 repeats nothing. mult: repeats of every source on top, positive.
    """

    threshold: float = 0.1
    mult: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise ValueError(f"threshold is {self.threshold}; a finite number of at least 0 is needed")
        if not (math.isfinite(self.mult) and self.mult > 0):
            raise ValueError(f"mult is {self.mult}; a positive, finite number is needed")


@dataclass(frozen=True, slots=True)
class Temperature:
    """Shares in proportion to n_d ** (1 / t) (Raffel et al. 2020, §3.5.2).

    t: positive; 1 keeps the proportions, infinity gives every source the same share. total: samples of an epoch; by
    default as many as there are.
    """

    t: float
    total: int | None = None

    def __post_init__(self) -> None:
        if not self.t > 0:
            raise ValueError(f"temperature is {self.t}; a positive number is needed")
        _check_total(self.total)


@dataclass(frozen=True, slots=True)
class Weights:
    """Shares as given: PSALM draws its four tasks 1:1:1:1.

    weights: one for each source, by name; only their ratios count; 0 leaves a source out. total: samples of an epoch;
    by default as many as there are.
    """

    weights: Mapping[str, float]
    total: int | None = None

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"the weight of {name} is {weight}; a finite number of at least 0 is needed")
        _check_total(self.total)


Rule = Balanced | Temperature | Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the rule makes of one source.

    num_samples: n_d. fraction: f_d, its part of all samples. factor: r_d, how often the rule repeats it, before
    `Balanced.mult`. length: samples that an epoch draws. share: their part of the epoch. epochs: how often an average
    sample is drawn in one epoch, length / n_d.
    """

    name: str
    num_samples: int
    fraction: float
    factor: float
    length: int
    share: float
    epochs: float


def is_training(split: str) -> bool:
    """Whether samples of a split are trained on, and counted: its name starts with `train`."""
    return split.startswith("train")


def table(sizes: Mapping[str, int], rule: Rule) -> tuple[Row, ...]:
    """The mixing table, in the order of `sizes`. A source without samples has factor 1 and length 0.

    Args:
        sizes: number of samples of each source, by name.
    Raises:
        ValueError: no sources, a size below 0, weights that do not name exactly the sources, or nothing to draw.
    """
    if not sizes:
        raise ValueError("there are no sources to mix")
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 0:
            raise ValueError(f"source {name} has {size!r} samples; an integer of at least 0 is needed")
    numbers = [int(size) for size in sizes.values()]
    if isinstance(rule, Balanced):
        factors, lengths = _balanced(numbers, rule)
    else:
        factors, lengths = _apportioned(numbers, _shares(sizes, rule), rule.total)
    total, epoch = sum(numbers), sum(lengths)
    return tuple(
        Row(
            name=name,
            num_samples=number,
            fraction=number / total if total else 0.0,
            factor=factor,
            length=length,
            share=length / epoch if epoch else 0.0,
            epochs=length / number if number else 0.0,
        )
        for name, number, factor, length in zip(sizes, numbers, factors, lengths, strict=True)
    )


def indices(num_samples: int, length: int, *, seed: int, epoch: int, name: str) -> np.ndarray:
    """The samples that an epoch draws of a source: whole permutations, then a part of one more.

    Every sample is drawn floor(length / num_samples) or ceil(length / num_samples) times. Which ones are drawn once
    more is another choice, from all of them, in each epoch.

    Args:
        num_samples: of the source. length: how many to draw. seed, epoch, name: the key of the draw.
    Returns:
        (length,) int64, in 0 .. num_samples - 1, in the order drawn.
    Raises:
        ValueError: a number below 0, or something to draw from nothing.
    """
    if num_samples < 0 or length < 0 or (length and not num_samples):
        raise ValueError(f"{name}: cannot draw {length} of {num_samples} samples")
    drawn = np.empty(length, dtype=np.int64)
    for number, start in enumerate(range(0, length, max(1, num_samples))):
        order = keyed(seed, name, "mix", VERSION, epoch, number).permutation(num_samples)
        drawn[start : start + num_samples] = order[: length - start]
    return drawn


def text(rows: Sequence[Row]) -> str:
    """The table in plain text, aligned, with a line of totals."""
    head = ("source", "samples n_d", "fraction f_d", "factor r_d", "drawn", "share", "epochs")
    number, length = sum(row.num_samples for row in rows), sum(row.length for row in rows)
    cells = [
        head,
        *(
            (
                row.name,
                f"{row.num_samples:,}",
                f"{row.fraction:.2%}",
                f"{row.factor:.3f}",
                f"{row.length:,}",
                f"{row.share:.2%}",
                f"{row.epochs:.2f}",
            )
            for row in rows
        ),
        ("total", f"{number:,}", "", "", f"{length:,}", "", f"{length / number:.2f}" if number else ""),
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = []
    for name, *values in cells:
        aligned = (value.rjust(width) for value, width in zip(values, widths[1:], strict=True))
        lines.append("  ".join((name.ljust(widths[0]), *aligned)).rstrip())
    return "\n".join(lines)


def _check_total(total: int | None) -> None:
    if total is not None and total < 1:
        raise ValueError(f"total is {total}; an epoch has at least 1 sample")


def _balanced(numbers: Sequence[int], rule: Balanced) -> tuple[list[float], list[int]]:
    total = sum(numbers)
    factors = [max(1.0, math.sqrt(rule.threshold / (number / total))) if number else 1.0 for number in numbers]
    # rounded down after this very product, as the reference does
    lengths = [int(number * (factor * rule.mult)) for number, factor in zip(numbers, factors, strict=True)]
    return factors, lengths


def _shares(sizes: Mapping[str, int], rule: Temperature | Weights) -> list[float]:
    """Wanted shares of sources that have samples, up to a common factor; 0 for the others."""
    if isinstance(rule, Temperature):
        largest = max(max(sizes.values()), 1)
        return [(size / largest) ** (1 / rule.t) if size else 0.0 for size in sizes.values()]
    missing, unknown = sorted(set(sizes) - set(rule.weights)), sorted(set(rule.weights) - set(sizes))
    if missing or unknown:
        parts = [f"{', '.join(missing)} has no weight"] if missing else []
        parts += [f"{', '.join(unknown)} is no source"] if unknown else []
        raise ValueError("; ".join(parts))
    if not any(rule.weights.values()):
        raise ValueError("all weights are 0; nothing can be drawn")
    shares = [rule.weights[name] if size else 0.0 for name, size in sizes.items()]
    if any(sizes.values()) and not any(shares):
        raise ValueError("every source with a weight is empty; nothing can be drawn")
    return shares


def _apportioned(numbers: Sequence[int], shares: Sequence[float], total: int | None) -> tuple[list[float], list[int]]:
    """Lengths that add up to the total, each within one of its share (largest remainders)."""
    total = sum(numbers) if total is None else total
    scale = math.fsum(shares)
    if not scale:
        return [1.0] * len(numbers), [0] * len(numbers)
    wanted = [total * (share / scale) for share in shares]
    lengths = [int(length) for length in wanted]
    nearest = sorted(range(len(wanted)), key=lambda i: (lengths[i] - wanted[i], i))
    for i in nearest[: total - sum(lengths)]:
        lengths[i] += 1
    factors = [length / number if number else 1.0 for length, number in zip(wanted, numbers, strict=True)]
    return factors, lengths
