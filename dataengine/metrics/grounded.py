"""Masks of grounded captions (GCG): mIoU, recall, and the columns that AP50 needs.

The masks of a picture are matched one to one, the greatest overlap first. Accumulators of parts of a benchmark merge
into that of the whole; no result depends on the order of pictures. Scores are in [0, 1].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dataengine import masks
from dataengine.errors import UserError
from dataengine.metrics.captions import tokenize
from dataengine.metrics.overlap import Key, check_key, mean, unite

Similarity = Callable[[str, str], float]
Convention = Literal["all", "xsam"]
RECALL_IOU = 0.5
RECALL_SIMILARITY = 0.5


def token_f1(truth: str, found: str) -> float:
    """F1 of the words two phrases share, each as often as both have it, in [0, 1]; 1 where neither has a word.

    It knows no synonyms: `sofa` and `couch` share nothing.
    """
    wanted, given = Counter(tokenize(truth)), Counter(tokenize(found))
    total = wanted.total() + given.total()
    return 2 * (wanted & given).total() / total if total else 1.0


def same_text(truth: str, found: str) -> float:
    """1 where two phrases have the same words in the same order, else 0."""
    return float(tokenize(truth) == tokenize(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundedScore:
    """miou, recall: in [0, 1], None of nothing. similarity: name of what phrases were compared by, if any.

    convention: what was averaged. images, objects: numbers of pictures and of true objects in that."""

    miou: float | None
    recall: float | None
    similarity: str | None
    convention: Convention
    images: int
    objects: int


@dataclass(frozen=True, slots=True)
class _Picture:
    objects: int
    found: int
    ious: tuple[float, ...]  # of matched pairs
    recalled: int | None


class Grounded:
    """Scores of the masks of grounded captions.

    similarity: compares the phrases of a true object and a prediction; > 0.5 is a match. GLaMM's published recall uses
    the cosine of mean-pooled bert-base-uncased, which has to be given if numbers are to compare with it. name: what
    the result calls it.
    """

    def __init__(self, similarity: Similarity = token_f1, name: str | None = None) -> None:
        self._similarity = similarity
        self.similarity = name or getattr(similarity, "__name__", type(similarity).__name__)
        self._pictures: dict[Key, _Picture] = {}

    def add(
        self,
        key: Key,
        truth: Sequence[bytes],
        found: Sequence[bytes],
        height: int,
        width: int,
        *,
        truth_phrases: Sequence[str] | None = None,
        found_phrases: Sequence[str] | None = None,
    ) -> None:
        """Take in a picture, also one for which nothing was found.

        Args:
            key: its name, a tuple. truth, found: RLE of height x width. truth_phrases, found_phrases: one for each
                mask; without both, there will be no recall.
        Raises:
            UserError: the key was given before, or is no tuple; not as many phrases as masks.
            MaskError: an RLE is malformed.
        """
        check_key(key, self._pictures)
        for phrases, rles in ((truth_phrases, truth), (found_phrases, found)):
            if phrases is not None and len(phrases) != len(rles):
                raise UserError(f"picture {key!r} has {len(phrases)} phrases for {len(rles)} masks")
        ious = masks.iou(truth, found, height, width)
        recalled = None
        if truth_phrases is not None and found_phrases is not None:
            alike = np.zeros(ious.shape, dtype=bool)
            for row, column in np.argwhere(ious > RECALL_IOU):
                alike[row, column] = self._similarity(truth_phrases[row], found_phrases[column]) > RECALL_SIMILARITY
            recalled = len(match(np.where(alike, ious, 0.0)))
        pairs = tuple(float(ious[pair]) for pair in match(ious))
        self._pictures[key] = _Picture(len(truth), len(found), pairs, recalled)

    def merge(self, other: Grounded) -> None:
        """Take in the pictures of another accumulator.

        Raises:
            UserError: it has a key that is here too, or another similarity.
        """
        if self.similarity != other.similarity:
            raise UserError(f"similarities {self.similarity!r} and {other.similarity!r} do not merge")
        unite(self._pictures, other._pictures)

    def result(self, convention: Convention = "all") -> GroundedScore:
        """The scores.

        mIoU is the mean over all true objects of all pictures of the IoU with what they were matched with, 0 if with
        nothing. Recall is the share of them that are matched, one to one, with IoU > 0.5 and phrases alike.

        Args:
            convention: `xsam`: only pictures with a prediction count. mIoU is the mean over them of the mean IoU of the
                pairs matched (0 without a pair), so that objects without a match cost nothing; as GLaMM and X-SAM
                publish it. Their recall also stops at a picture's first pair that fails; ours never does.
        """
        pictures = [one for one in self._pictures.values() if one.found or convention == "all"]
        objects = sum(one.objects for one in pictures)
        if convention == "xsam":
            miou = mean([mean(one.ious) or 0.0 for one in pictures])
        else:
            ious = [iou for one in pictures for iou in one.ious]
            miou = mean([*ious, *[0.0] * (objects - len(ious))])
        recalled = [one.recalled for one in pictures if one.recalled is not None]
        named = bool(recalled) and len(recalled) == len(pictures)
        return GroundedScore(
            miou=miou,
            recall=sum(recalled) / objects if named and objects else None,
            similarity=self.similarity if named else None,
            convention=convention,
            images=len(pictures),
            objects=objects,
        )


def match(ious: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows and columns, one to one, the greatest value first, of equals the first by row; none of 0.

    Args:
        ious: (n, m) float64.
    """
    pairs: list[tuple[int, int]] = []
    rows, columns = set[int](), set[int]()
    for place in np.argsort(-ious, axis=None, kind="stable").tolist():
        row, column = divmod(place, ious.shape[1])
        if ious[row, column] <= 0:
            break
        if row not in rows and column not in columns:
            pairs.append((row, column))
            rows.add(row)
            columns.add(column)
    return pairs


def columns(rles: Sequence[Sequence[bytes]], scores: Sequence[Sequence[float]] | None = None) -> dict[str, Any]:
    """Masks of pictures as columns for average precision, all of category 1: AP50 of grounded captions.

    Args:
        rles: of each picture. scores: of each mask, of predictions; X-SAM's published AP50 gives each 1.
    Returns:
        `image` (n,) int64, the picture's place in `rles`; `category` (n,) int64; `rles`; `score` (n,) float64 if given.
    """
    flat: dict[str, Any] = {
        "image": np.repeat(np.arange(len(rles), dtype=np.int64), [len(one) for one in rles]),
        "category": np.ones(sum(map(len, rles)), dtype=np.int64),
        "rles": [rle for one in rles for rle in one],
    }
    if scores is not None:
        flat["score"] = np.array([score for one in scores for score in one], dtype=np.float64)
        if [len(one) for one in scores] != [len(one) for one in rles]:
            raise UserError("there must be one score for each mask of each picture")
    return flat
