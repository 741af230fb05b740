"""Limits of filters for a target precision, from pictures whose masks people have checked (a gold set).

A limit is taken only where the precision behind it is at least the target with the confidence asked for; where no limit
is, the result says so and what was reached. That the same gold set is looked at once for each candidate is paid for by
a stricter confidence for each of them (Bonferroni), so that the promise holds for the one that is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dataengine.errors import UserError
from dataengine.ledger.records import Entry, Picture
from pipelines.relabel import overlaps
from pipelines.relabel.chain import Chain
from pipelines.relabel.filters import Checked

Method = Literal["exact", "wilson"]
CANDIDATES = 32
CONTINUOUS = ("confidence", "predicted_iou", "stability", "augmentation", "reprompt", "verifier")


class CalibrationError(UserError):
    """A gold set or a target that cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A proposal of which it is known whether it is right. values: of the filters, by name; None: did not apply."""

    values: Mapping[str, float | None]
    is_right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A filter's limits for a target, and what they do on the gold set.

    accept: the laxest limit that reaches the target; None where none does. reject: the strictest limit of which, with
    the same confidence, at most `floor` of what it rejects is right; the worst value there is where no limit is.
    num: proposals with a value. num_accepted: of these behind `accept`, or behind the limit that came nearest.
    precision: of these. bound: lower confidence bound of it. recall: share of the right ones that are behind the limit.
    needed: the fewest proposals that can reach the target, if all are right.
    """

    name: str
    accept: float | None
    reject: float
    num: int
    num_accepted: int
    precision: float
    bound: float
    recall: float
    target: float
    needed: int

    @property
    def has_too_little(self) -> bool:
        """Whether there are too few proposals to reach the target, however good they are."""
        return self.num < self.needed

    def __str__(self) -> str:
        figures = f"precision {self.precision:.3f}, at least {self.bound:.3f}, recall {self.recall:.3f}"
        if not self.num:
            return f"{self.name}: no proposal of the gold set has a value"
        if self.has_too_little:
            return (
                f"{self.name}: too little data: a precision of {self.target:g} takes at least {self.needed} proposals, "
                f"there are {self.num}"
            )
        if self.accept is None:
            return f"{self.name}: no limit reaches a precision of {self.target:g}; the nearest has {figures}"
        return f"{self.name}: {self.accept:g} accepts {self.num_accepted} of {self.num} ({figures})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The limits, the chain with those that reach the target, and what that whole chain accepts of the gold set."""

    limits: tuple[Limit, ...]
    chain: Chain
    num_accepted: int
    precision: float | None
    recall: float | None

    @property
    def unreached(self) -> tuple[str, ...]:
        """Names of the filters that cannot reach the target alone; they keep the limits that they had."""
        return tuple(limit.name for limit in self.limits if limit.accept is None)


def judge(checked: Sequence[Checked], gold: Sequence[Entry], picture: Picture, iou: float = 0.75) -> list[Judged]:
    """Which proposals of a picture are right: the first, by confidence, to match a gold mask of its concept.

    What lies in a gold crowd region by half is neither right nor wrong, and left out.

    Args:
        gold: all masks of the picture's concepts that are asked for. iou: with the gold mask, at least.
    """
    size = picture.height, picture.width
    proposals = [proposal for proposal, _ in checked]
    mine, theirs = (overlaps.decoded([one.rle for one in some], *size) for some in (proposals, gold))
    same = overlaps.same_concepts([one.concept for one in proposals], [one.concept for one in gold])
    shared = overlaps.overlaps(mine, theirs)
    crowd = np.array([one.crowd for one in gold], dtype=bool)
    ious = np.where(same & ~crowd, shared.iou, -1.0)
    ignored = (shared.inside * (same & crowd) >= 0.5).any(axis=1)
    order = sorted(range(len(proposals)), key=lambda place: (-proposals[place].score, proposals[place].rle))
    right = np.zeros(len(proposals), dtype=bool)
    for place in order:
        best = int(ious[place].argmax()) if len(gold) else -1
        if best >= 0 and ious[place, best] >= iou:
            right[place] = True
            ious[:, best] = -1.0
    return [
        Judged(values={check.name: check.value for check in checks}, is_right=bool(right[place]))
        for place, (_, checks) in enumerate(checked)
        if right[place] or not ignored[place]
    ]


def thresholds(
    judged: Iterable[Judged],
    chain: Chain,
    target: float,
    names: Sequence[str] | None = None,
    floor: float = 0.1,
    confidence: float = 0.95,
    method: Method = "exact",
) -> Calibration:
    """Limits of a chain's filters, each so that it alone reaches a target precision.

    Args:
        judged: of the whole gold set. names: of the filters to set; None for those of `CONTINUOUS` in the chain.
        floor: how many of the masks that `reject` takes away may be right, as a share.
        confidence: of the bounds. method: `exact` (Clopper-Pearson) or `wilson`.
    Raises:
        CalibrationError: there are no proposals, a name is not in the chain, or a share is none.
    """
    rows = list(judged)
    if not rows:
        raise CalibrationError("the gold set has no proposals; limits cannot be set from it")
    names = [one.name for one in chain.filters if one.name in CONTINUOUS] if names is None else names
    limits = []
    for name in names:
        one = chain.get(name)
        if one is None:
            raise CalibrationError(f"{name} is not in the chain, so that its limits cannot be set")
        known = [row for row in rows if row.values.get(name) is not None]
        values = np.array([row.values[name] for row in known], dtype=float)
        right = np.array([row.is_right for row in known], dtype=bool)
        limits.append(_limit(name, values, right, one.more_is_better, target, floor, confidence, method))
    reached = {one.name: (one.accept, one.reject) for one in limits if one.accept is not None}
    chain = chain.with_limits(reached)
    accepted = [
        row.is_right
        for row in rows
        if all(one.check(row.values.get(one.name)).verdict == "accept" for one in chain.filters)
    ]
    num_right = sum(row.is_right for row in rows)
    return Calibration(
        limits=tuple(limits),
        chain=chain,
        num_accepted=len(accepted),
        precision=sum(accepted) / len(accepted) if accepted else None,
        recall=sum(accepted) / num_right if num_right else None,
    )


def lower_bound(num_right: np.ndarray, num: np.ndarray, confidence: float, method: Method = "exact") -> np.ndarray:
    """One-sided lower confidence bound of a share: `num_right` of `num`, both (k,); 0 where num is 0.

    `exact`: Clopper and Pearson (1934), never below its confidence. `wilson`: Wilson (1927), near it on average.
    """
    from scipy import stats

    num_right, num = np.asarray(num_right, float), np.asarray(num, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        if method == "exact":
            bound = stats.beta.ppf(1 - confidence, num_right, num - num_right + 1)
        else:
            z = stats.norm.ppf(confidence)
            share = num_right / num
            spread = z * np.sqrt(share * (1 - share) / num + z**2 / (4 * num**2))
            bound = (share + z**2 / (2 * num) - spread) / (1 + z**2 / num)
    return np.where(num_right > 0, bound, 0.0)


def _limit(
    name: str,
    values: np.ndarray,
    right: np.ndarray,
    more_is_better: bool,
    target: float,
    floor: float,
    confidence: float,
    method: Method,
) -> Limit:
    """See `thresholds`. values: (n,) float64; right: (n,) bool."""
    for share, what in ((target, "target"), (floor, "floor"), (confidence, "confidence")):
        if not 0 < share < 1:
            raise CalibrationError(f"a {what} of {share:g} is no share between 0 and 1")
    if not values.size:
        return Limit(
            name=name,
            accept=None,
            reject=0.0,
            num=0,
            num_accepted=0,
            precision=0.0,
            bound=0.0,
            recall=0.0,
            target=target,
            needed=_fewest(target, confidence, method),
        )
    signed = values if more_is_better else -values
    order = np.argsort(-signed, kind="stable")
    signed, hits = signed[order], right[order].cumsum()
    # a limit can only lie between values that differ; few are tried, because each costs confidence
    ends = np.flatnonzero(np.append(signed[1:] != signed[:-1], True)) + 1  # so many are behind each limit
    wanted = np.linspace(0, len(ends) - 1, min(CANDIDATES, len(ends))).round().astype(int)
    num = ends[wanted]
    each = 1 - (1 - confidence) / len(num)
    bounds = lower_bound(hits[num - 1], num, each, method)
    fits = np.flatnonzero(bounds >= target)
    chosen = int(fits[-1]) if fits.size else int(bounds.argmax())
    beyond = len(signed) - num
    wrong = beyond - (hits[-1] - hits[num - 1])
    poor = np.flatnonzero((beyond > 0) & (lower_bound(wrong, beyond, each, method) >= 1 - floor))
    poor = poor[poor >= chosen]
    limit_of = signed[num - 1] if more_is_better else -signed[num - 1]
    count, found = int(num[chosen]), int(hits[num[chosen] - 1])
    return Limit(
        name=name,
        accept=float(limit_of[chosen]) if fits.size else None,
        reject=float(limit_of[poor[0] if poor.size else -1]),
        num=len(values),
        num_accepted=count,
        precision=found / count,
        bound=float(bounds[chosen]),
        recall=found / int(hits[-1]) if hits[-1] else 0.0,
        target=target,
        needed=_fewest(target, each, method),
    )


def _fewest(target: float, confidence: float, method: Method) -> int:
    """How many right ones of as many have a lower bound of at least the target."""
    from scipy import stats

    if method == "exact":
        return math.ceil(math.log(1 - confidence) / math.log(target))
    return math.ceil(float(stats.norm.ppf(confidence)) ** 2 * target / (1 - target))
