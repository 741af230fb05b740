"""How far people who review the same masks agree: on what they decide, and on what they draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from dataengine import masks

GOOD = ("accept", "edit", "add")  # actions of who finds that a picture has a mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """What a reviewer made of a mask. drawn: compressed counts of what they drew in its place, if they did; then also
    mask_id: of that, shown: of the mask itself, and height, width: of its picture, px.
    """

    action: str
    drawn: bytes | None = None
    mask_id: str = ""
    shown: bytes = b""
    height: int = 0
    width: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewer:
    """One reviewer. actions: how often each; edit_iou: mean IoU of drawn masks with what they replace, or None."""

    name: str
    decided: int
    actions: Mapping[str, int]
    edit_iou: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two reviewers. both: masks that both decided on; same: those with the same action. kappa: see `cohens_kappa`.

    drawn: masks in whose place both drew another; drawn_iou: mean IoU of the two drawings, or None.
    """

    first: str
    second: str
    both: int
    same: int
    kappa: float | None
    drawn: int
    drawn_iou: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What several reviewers made of the same masks."""

    reviewers: tuple[Reviewer, ...]
    pairs: tuple[Pair, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def cohens_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Agreement of two raters beyond chance: (p_o - p_e) / (1 - p_e), of the observed and the expected share of equal
    ratings (J. Cohen, Educational and Psychological Measurement 20(1), 1960, page 40).

    Args:
        first, second: ratings of the same things, in the same order.
    Returns:
        at most 1; 0 is what chance gives. None where nothing was rated, or both gave all things the same one rating.
    """
    number = len(first)
    if number != len(second):
        raise ValueError(f"{number} and {len(second)} ratings are not of the same things")
    same = sum(a == b for a, b in zip(first, second, strict=True))
    shares, others = Counter(first), Counter(second)
    by_chance = sum(shares[rating] * others[rating] for rating in shares)  # times number squared
    if number * number == by_chance:
        return None
    return (same * number - by_chance) / (number * number - by_chance)


def agreement(words: Mapping[str, Mapping[str, Word]]) -> Agreement:
    """Figures of reviewers.

    Args:
        words: by the reviewer's name, of masks by their ids.
    """
    reviewers = []
    for name, mine in words.items():
        ious = [_iou(word.shown, word.drawn, word) for word in mine.values() if word.drawn is not None]
        actions = dict(sorted(Counter(word.action for word in mine.values()).items()))
        reviewers.append(Reviewer(name=name, decided=len(mine), actions=actions, edit_iou=_mean(ious)))
    pairs = [_pair(a, b, words[a], words[b]) for a, b in combinations(words, 2)]
    return Agreement(reviewers=tuple(reviewers), pairs=tuple(pairs))


def disputed(words: Mapping[str, Mapping[str, Word]], pictures: Mapping[str, str]) -> set[str]:
    """Ids of the masks on which nothing can be decided, as reviewers say different things of them.

    Where one says that a picture is bad as a whole and another one finds a mask of it good, these are all masks of it
    that anything was said of.

    Args:
        words: by the reviewer's name, of masks by their ids. pictures: of these masks.
    """
    verdicts: dict[str, set[str]] = {}
    bad: dict[str, set[str]] = {}  # pictures, and who says so
    good: dict[str, set[str]] = {}
    for reviewer, mine in words.items():
        for name, word in mine.items():
            verdicts.setdefault(name, set()).add(_verdict(word))
            side = bad if word.action == "whole_image_bad" else good if word.action in GOOD else {}
            side.setdefault(pictures[name], set()).add(reviewer)
    split = {key for key, those in bad.items() if any(one != other for one in those for other in good.get(key, ()))}
    return {name for name, said in verdicts.items() if len(said) > 1 or pictures[name] in split}


def _verdict(word: Word) -> str:
    return "rejected" if word.action in ("reject", "whole_image_bad") else f"{word.action} {word.mask_id}"


def _pair(first: str, second: str, mine: Mapping[str, Word], theirs: Mapping[str, Word]) -> Pair:
    both = [(mine[name], theirs[name]) for name in mine if name in theirs]
    drawn = [(a.drawn, b.drawn, a) for a, b in both if a.drawn is not None and b.drawn is not None]
    return Pair(
        first=first,
        second=second,
        both=len(both),
        same=sum(a.action == b.action for a, b in both),
        kappa=cohens_kappa([a.action for a, _ in both], [b.action for _, b in both]),
        drawn=len(drawn),
        drawn_iou=_mean([_iou(*each) for each in drawn]),
    )


def _iou(one: bytes, other: bytes, word: Word) -> float:
    return float(masks.iou([one], [other], word.height, word.width)[0, 0])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def text(found: Agreement) -> str:
    """The figures as lines."""
    lines = []
    for one in found.reviewers:
        actions = ", ".join(f"{number:,} {action}" for action, number in one.actions.items()) or "nothing"
        edits = "" if one.edit_iou is None else f"; IoU of edits with what they replace {one.edit_iou:.3f}"
        lines.append(f"{one.name}: {one.decided:,} decided: {actions}{edits}")
    for pair in found.pairs:
        kappa = "not defined" if pair.kappa is None else f"{pair.kappa:.3f}"
        drawn = "" if pair.drawn_iou is None else f"; IoU of {pair.drawn:,} masks that both drew {pair.drawn_iou:.3f}"
        lines.append(
            f"{pair.first} and {pair.second}: the same on {pair.same:,} of {pair.both:,}, Cohen's kappa {kappa}{drawn}"
        )
    return "\n".join(lines)
