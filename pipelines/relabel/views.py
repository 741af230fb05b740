"""Several views of a picture in place of one: itself, mirrored, and both moved, and their masks joined into one answer.

What a model says of changed views errs differently in each, so what they agree on is better than any of them, and can
teach the model something (Radosavovic et al., "Data Distillation", CVPR 2018). Scores are joined as boxes are by
Solovyev et al. ("Weighted boxes fusion", 2021): a mask that one view lacks loses that view's share of its score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dataengine import masks
from dataengine.ledger.records import Picture, Proposal
from pipelines.relabel import overlaps

SAME_IOU = 0.5  # masks of two views from this on are of one object
MOVED = 24  # a view is moved by one part in so many of the longer side


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """A picture, mirrored or not, then moved by dx, dy in units of its longer side over `MOVED`; its edges fill up."""

    mirrored: bool = False
    dx: int = 0
    dy: int = 0

    def pixels(self, picture: np.ndarray) -> np.ndarray:
        """What is seen of a picture: (H, W, C) uint8, as it is."""
        return _moved(picture[:, ::-1] if self.mirrored else picture, *self._shift(*picture.shape[:2]))

    def back(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the view, (H, W) bool, on the picture; nothing is where the view does not see."""
        dx, dy = self._shift(*mask.shape)
        moved = _moved(mask, -dx, -dy, fill=False)
        return moved[:, ::-1] if self.mirrored else moved

    def _shift(self, height: int, width: int) -> tuple[int, int]:
        unit = round(max(height, width) / MOVED)
        return self.dx * unit, self.dy * unit


VIEWS = (Transform(), Transform(mirrored=True), Transform(dx=1, dy=1), Transform(mirrored=True, dx=1, dy=-1))


def _moved(picture: np.ndarray, dx: int, dy: int, fill: bool = True) -> np.ndarray:
    """Moved to the right and down. fill: with the nearest pixels, else with zeros."""
    if not (dx or dy):
        return np.ascontiguousarray(picture)
    height, width = picture.shape[:2]
    around = ((max(dy, 0), max(-dy, 0)), (max(dx, 0), max(-dx, 0)), *[(0, 0)] * (picture.ndim - 2))
    wide = np.pad(picture, around, mode="edge" if fill else "constant")
    top, left = max(-dy, 0), max(-dx, 0)
    return np.ascontiguousarray(wide[top : top + height, left : left + width])


def joined(answers: Sequence[Sequence[Proposal]], views: Sequence[Transform], picture: Picture) -> list[Proposal]:
    """The answers to the views of a picture as one, the best scores first.

    Masks of one concept and an IoU of at least `SAME_IOU` are of one object, one of each view: beginning with the best,
    each takes what fits it best of every other view. Their mask has the pixels that hold half of the scores of those
    that see the pixel, and their score is the sum over the number of views.

    Args:
        answers: of each view, on the view's canvas, which is as large as the picture.
    """
    size = picture.height, picture.width
    found = [
        (number, replace(proposal, rle=masks.encode(view.back(masks.decode(proposal.rle, *size)))))
        for number, (view, answer) in enumerate(zip(views, answers, strict=True))
        for proposal in answer
    ]
    if not found:
        return []
    found.sort(key=lambda one: -one[1].score)
    view_of, pool = np.array([number for number, _ in found]), [proposal for _, proposal in found]
    made, concepts = overlaps.decoded([one.rle for one in pool], *size), [one.concept for one in pool]
    fits = overlaps.overlaps(made, made).iou * overlaps.same_concepts(concepts, concepts)
    seen = [view.back(np.ones(size, dtype=bool)) for view in views]
    is_free = np.ones(len(pool), dtype=bool)
    result = []
    for best in range(len(pool)):
        if not is_free[best]:
            continue
        is_free[best] = False
        group = [best]
        for view in range(len(views)):
            value = np.where(is_free & (view_of == view), fits[best], 0.0)
            other = int(value.argmax())
            if view != view_of[best] and value[other] >= SAME_IOU:
                is_free[other] = False
                group.append(other)
        one = _one_of([pool[i] for i in group], [seen[view_of[i]] for i in group], len(views), size)
        result += [] if one is None else [one]
    return sorted(result, key=lambda one: -one.score)


def _one_of(
    group: Sequence[Proposal], seen: Sequence[np.ndarray], num_views: int, size: tuple[int, int]
) -> Proposal | None:
    """The mask of a group, named as its best one; None where no pixel is left. seen: what the view of each shows."""
    total = sum(one.score for one in group)
    if not math.isfinite(total):  # that is for the check of answers to say
        return replace(group[0], score=total)
    held, most = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for one, there in zip(group, seen, strict=True):
        weight = one.score if total > 0 else 1.0
        held += np.float32(weight) * masks.decode(one.rle, *size)
        most += np.float32(weight) * there
    mask = (held > 0) & (2 * held >= most)
    return replace(group[0], rle=masks.encode(mask), score=min(1.0, total / num_views)) if mask.any() else None
