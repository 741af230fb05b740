"""What a round did to the labels: counts, how good they are where the truth is known, how the classes drift."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any

from dataengine.ledger.ledger import Ledger
from dataengine.ledger.records import Entry, Picture, Proposal
from dataengine.ledger.view import View
from pipelines.relabel import calibrate

IOU = 0.75  # of a mask that is right with the true one, at least, as `calibrate.judge` has it


def measure(
    view: View, round: int, filters: Collection[str], truth: Ledger | None, hidden: Collection[str]
) -> dict[str, Any]:
    """Figures of a ledger at the end of a round, JSON values.

    proposed: masks of the round; added: kept where nothing was, renewed: in the place of an earlier round's; lost: kept
    once, and not found again since (`View.current`); in_review; confirmed: as a person drew them; conflicted: of the
    relation `conflict`, whatever became of them; by_filter, by_rule: rejected, by reason; by_people: words of reviewers
    on masks of the round, by action, `add` for what they drew where nothing was; accept: share that is kept of all that
    is not confirmed. kept: all masks that stand, of people and models; categories: these by what they show. hidden: see
    `Quality`.

    Args:
        filters: names of the chain's filters. truth: has the annotations of the pictures `hidden`, keys.
    """
    counts: Counter[str] = Counter()
    by_filter: Counter[str] = Counter()
    by_rule: Counter[str] = Counter()
    by_people: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    origins: Counter[str] = Counter()
    quality = Quality()
    true = None if truth is None else truth.view(0)
    current = view.current()
    for picture, found in view.walk(with_checks=False):
        standing = [s.entry for s in current(picture.key, found) if s.entry.state == "kept"]
        counts["lost"] += sum(s.entry.state == "kept" and not s.is_superseded for s in found) - len(standing)
        kept.update(entry.concept.text for entry in standing)
        origins.update(entry.origin for entry in standing)
        for entry, word in ((s.entry, s.decision) for s in found):
            if entry.round != round or round == 0:
                continue
            by_person = word is not None and word.is_by_reviewer
            if entry.origin == "human":
                by_people["add"] += entry.supersedes is None
                continue
            if word is not None and by_person:
                by_people[word.action] += 1
            counts["proposed"] += 1
            counts["conflicted"] += entry.relation == "conflict"
            if entry.state == "kept":
                counts["added" if entry.supersedes is None else "renewed"] += 1
            counts["in_review"] += entry.state == "review"
            if entry.state == "rejected" and not by_person:
                counts["confirmed"] += entry.reason == "confirmed"
                if entry.reason != "confirmed":
                    (by_filter if entry.reason in filters else by_rule)[entry.reason or "-"] += 1
        if true is not None and picture.key in hidden:
            quality.add(picture, standing, true.entries(picture.key))
    names = ("proposed", "added", "renewed", "lost", "in_review", "confirmed", "conflicted")
    asked = counts["proposed"] - counts["confirmed"]
    return {
        **{name: counts[name] for name in names},
        "by_filter": dict(sorted(by_filter.items())),
        "by_rule": dict(sorted(by_rule.items())),
        "by_people": {action: number for action, number in sorted(by_people.items()) if number},
        "accept": (counts["added"] + counts["renewed"]) / asked if asked else None,
        "kept": {"all": kept.total(), **{origin: origins[origin] for origin in ("human", "model")}},
        "categories": dict(sorted(kept.items())),
        "hidden": None if true is None else quality.as_dict(),
    }


def against(view: View, truth: Ledger) -> dict[str, Any]:
    """How right the masks are that a ledger keeps, of the categories that are annotated throughout in each picture.

    Args:
        truth: has annotations of the same pictures. Returns: see `Quality`.
    """
    quality, true = Quality(), truth.view(0)
    asked = {picture.key: {*picture.exhaustive, *picture.absent} for picture in truth.pictures()}
    for picture, found in view.walk(with_checks=False):
        of = asked[picture.key]
        kept = [one.entry for one in found if one.entry.state == "kept" and not one.is_superseded]
        known = true.entries(picture.key)
        quality.add(picture, *([e for e in some if not of or e.concept.category_id in of] for some in (kept, known)))
    return quality.as_dict()


class Quality:
    """How right the kept masks of pictures are whose truth is known: with an IoU of at least IOU, each object once."""

    def __init__(self) -> None:
        self.pictures = self.kept = self.right = self.objects = 0

    def add(self, picture: Picture, kept: list[Entry], truth: list[Entry]) -> None:
        proposals = [(Proposal(rle=e.rle, concept=e.concept, score=e.score), ()) for e in kept if not e.crowd]
        judged = calibrate.judge(proposals, truth, picture, IOU)
        self.pictures += 1
        self.kept += len(judged)
        self.right += sum(one.is_right for one in judged)
        self.objects += sum(not entry.crowd for entry in truth)

    def as_dict(self) -> dict[str, Any]:
        """precision, recall: None where there is nothing to divide by."""
        return {
            "pictures": self.pictures,
            "kept": self.kept,
            "right": self.right,
            "objects": self.objects,
            "precision": self.right / self.kept if self.kept else None,
            "recall": self.right / self.objects if self.objects else None,
        }


def drift(before: Mapping[str, int], now: Mapping[str, int]) -> float | None:
    """Total variation distance of the shares of categories, 0 (the same) to 1; None where there are no masks."""
    totals = sum(before.values()), sum(now.values())
    if not all(totals):
        return None
    return 0.5 * sum(abs(before.get(n, 0) / totals[0] - now.get(n, 0) / totals[1]) for n in {*before, *now})


def reason_to_stop(rounds: list[dict[str, Any]], gain: float | None, patience: int, accept: float | None) -> str | None:
    """Why a loop is to end after the rounds that there are, the first of which is round 0; None where it is not.

    Args:
        rounds: each with `score` (a share) and `accept`. gain, accept: points, None for no such rule.
    """
    scores = [one["score"] for one in rounds]
    gains = [100 * (after - before) for before, after in pairwise(scores)]
    if gain is not None and len(gains) >= patience and all(one < gain for one in gains[-patience:]):
        said = "one round" if patience == 1 else f"{patience} rounds running"
        return f"the score rose by less than {gain:g} points in {said}"
    shares = [one["accept"] for one in rounds[1:]]
    if accept is not None and len(shares) > 1 and None not in shares[-2:]:
        change = 100 * abs(shares[-1] - shares[-2])
        if change < accept:
            return f"the share of accepted masks changed by {change:.2g} points, less than {accept:g}"
    return None
