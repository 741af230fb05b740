"""How far masks of one picture agree: IoU, Dice, the share of the smaller one, IoU of boxes and of boundaries.

Everything is measured on run lengths; only boundaries need pixels, and then those of the masks' boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dataengine import masks
from dataengine.kernels import runlengths
from dataengine.ledger.records import Concept
from dataengine.masks import Borders, Crop, MaskError

BOUNDARY_RATIO = 0.02  # of the picture's diagonal (Cheng et al., "Boundary IoU", CVPR 2021)


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """The masks of one picture, decoded once.

    rles: n compressed COCO counts on height x width px. areas: (n,) int64, px. boxes_xyxy: (n, 4) int64, half open, px;
    zeros where no pixel is set.
    """

    rles: tuple[bytes, ...]
    height: int
    width: int
    borders: Borders

    @property
    def areas(self) -> np.ndarray:
        return self.borders.figures[:, 0]

    @property
    def boxes_xyxy(self) -> np.ndarray:
        return self.borders.figures[:, 1:5]


def decoded(rles: Sequence[bytes], height: int, width: int) -> Masks:
    """The masks of one picture.

    Raises:
        MaskError: one of them is no mask of that canvas; the message names it by its index.
    """
    borders = masks.borders_from_rles(rles, height, width)
    for index in np.flatnonzero(borders.figures[:, 0] < 0)[:1].tolist():
        try:
            masks.counts_from_rle(rles[index], height, width)
        except MaskError as error:
            raise MaskError(error.reason, f"mask {index}: {error}") from None
    return Masks(rles=tuple(rles), height=height, width=width, borders=borders)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlaps:
    """What n masks share with m others. shared: (n, m) int64, px. areas: (n,); other_areas: (m,) int64, px."""

    shared: np.ndarray
    areas: np.ndarray
    other_areas: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """(n, m) float64: intersection over union; 0 where both are empty."""
        return _share(self.shared, self.areas[:, None] + self.other_areas - self.shared)

    @property
    def dice(self) -> np.ndarray:
        """(n, m) float64: twice the intersection over the sum of the areas."""
        return _share(2 * self.shared, self.areas[:, None] + self.other_areas)

    @property
    def iom(self) -> np.ndarray:
        """(n, m) float64: the share of the smaller mask that lies in the larger one."""
        return _share(self.shared, np.minimum(self.areas[:, None], self.other_areas))

    @property
    def inside(self) -> np.ndarray:
        """(n, m) float64: the share of each mask that lies in the other."""
        return _share(self.shared, np.broadcast_to(self.areas[:, None], self.shared.shape))


def overlaps(one: Masks, other: Masks) -> Overlaps:
    """Of every pair."""
    a, b = one.borders, other.borders
    shared = runlengths.shared_pixels(a.places, a.stops, a.figures, b.places, b.stops, b.figures)
    return Overlaps(shared=shared, areas=one.areas, other_areas=other.areas)


def box_iou(one: Masks, other: Masks) -> np.ndarray:
    """Intersection over union of the tight boxes: (n, m) float64."""
    a, b = one.boxes_xyxy[:, None], other.boxes_xyxy[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = sides.clip(0).prod(-1)
    sizes = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b)]
    return _share(shared, sizes[0] + sizes[1] - shared)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)


def same_concepts(ones: Sequence[Concept], others: Sequence[Concept]) -> np.ndarray:
    """Which name the same: two categories by their ids, a phrase and whatever else by the words: (n, m) bool."""
    names: dict[str, int] = {}
    words = [
        np.array([names.setdefault(_words(concept.text), len(names)) for concept in concepts], dtype=np.int64)
        for concepts in (ones, others)
    ]
    ids = [np.array([concept.category_id for concept in concepts], dtype=np.int64) for concepts in (ones, others)]
    both = (ids[0][:, None] >= 0) & (ids[1] >= 0)
    return np.where(both, ids[0][:, None] == ids[1], words[0][:, None] == words[1])


def other_categories(ones: Sequence[Concept], others: Sequence[Concept]) -> np.ndarray:
    """Which are two categories, and not the same one; a phrase may well be true of what has a category: (n, m) bool."""
    are = [np.array([concept.category_id >= 0 for concept in some], dtype=bool) for some in (ones, others)]
    both: np.ndarray = are[0][:, None] & are[1] & ~same_concepts(ones, others)
    return both


@lru_cache(maxsize=4096)
def _words(text: str) -> str:
    return " ".join(text.casefold().split())


def boundary(crop: Crop, height: int, width: int, ratio: float = BOUNDARY_RATIO) -> Crop:
    """The pixels of a mask that lie within a distance of its outline.

    The distance is a share of the picture's diagonal, at least 1 px, and counted in steps to any of the eight
    neighbours, as in the published code; the picture's frame is an outline too.
    """
    import cv2

    distance = max(1, round(ratio * math.hypot(height, width)))
    padded = np.pad(crop.mask, 1).view(np.uint8)
    inner = cv2.erode(padded, np.ones((2 * distance + 1,) * 2, np.uint8))[1:-1, 1:-1]
    return Crop(crop.mask & (inner == 0), crop.x0, crop.y0)


def boundary_iou(one: bytes, other: bytes, height: int, width: int, ratio: float = BOUNDARY_RATIO) -> float:
    """IoU of two masks' boundaries (Cheng et al., CVPR 2021). Raises MaskError: one has no pixel, or is malformed."""
    a, b = (boundary(masks.crop_from_rle(rle, height, width), height, width, ratio) for rle in (one, other))
    shared = masks.overlap(a, b)
    return shared / (int(a.mask.sum()) + int(b.mask.sum()) - shared)
