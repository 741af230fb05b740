"""SAM's automatic mask generator: what it does besides asking the model, with the settings that were published.

Segment Anything (arXiv 2304.02643, appendix B and `automatic_mask_generator.py`). Boxes here are x0, y0, x1, y1 of the
first and last pixel, as there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from dataengine import masks

EDGE_PX = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """Settings of a generator; the defaults are those of SAM's repository.

    points_per_side: of the grid on the whole picture; on crops of layer i it is divided by `crop_downscale`**i.
    points_per_batch: asked at a time. predicted_iou, stability: at least. stability_offset: of logits. box_nms,
    crop_nms: IoU of boxes above which the worse of two masks goes, within a crop and between crops. crop_layers: layer
    i has (2**i)**2 crops, which overlap by `crop_overlap` of the shorter side, times 2 / 2**i. min_region: px of holes
    and islands that are removed. max_area: share of the picture from which on a mask is dropped; None: none is.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    predicted_iou: float = 0.88
    stability: float = 0.95
    stability_offset: float = 1.0
    box_nms: float = 0.7
    crop_layers: int = 0
    crop_nms: float = 0.7
    crop_overlap: float = 512 / 1500
    crop_downscale: int = 1
    min_region: int = 0
    max_area: float | None = None


SAM = Generator()
PRESETS = {
    "sam": SAM,
    "sa-1b": replace(SAM, crop_layers=2, crop_downscale=2, min_region=100, max_area=0.95),
    "sam2": replace(SAM, predicted_iou=0.8),
    "semantic-sam": replace(SAM, points_per_batch=200, stability=0.92, min_region=10),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Masks of one crop or of all of them.

    rles: on the whole picture. boxes: (n, 4) float64 there. scores: (n,) predicted IoU. stability: (n,). points: (n, 2)
    px x, y of the picture. crops: (n, 4) int64 x0, y0, x1, y1, half open.
    """

    rles: list[bytes]
    boxes: np.ndarray
    scores: np.ndarray
    stability: np.ndarray
    points: np.ndarray
    crops: np.ndarray

    def __len__(self) -> int:
        return len(self.rles)

    def pick(self, kept: np.ndarray) -> Found:
        """Those at the places of `kept`: (m,) int64."""
        arrays = {name: getattr(self, name)[kept] for name in ("boxes", "scores", "stability", "points", "crops")}
        return Found(rles=[self.rles[place] for place in kept.tolist()], **arrays)


def join(parts: list[Found]) -> Found:
    """All masks of some parts, one at least."""
    names = ("boxes", "scores", "stability", "points", "crops")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Found(rles=[rle for part in parts for rle in part.rles], **arrays)


def grid(per_side: int) -> np.ndarray:
    """Centres of the cells of a grid on the unit square: (per_side**2, 2) float64 x, y, row by row."""
    centres = (np.arange(per_side) + 0.5) / per_side
    x, y = np.meshgrid(centres, centres)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def crops(height: int, width: int, settings: Generator) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """Layer and x0, y0, x1, y1 (half open) of each part of a picture that is looked at, the whole of it first."""
    yield 0, (0, 0, width, height)
    for layer in range(1, settings.crop_layers + 1):
        number = 2**layer
        overlap = int(settings.crop_overlap * min(height, width) * (2 / number))
        wide = math.ceil((overlap * (number - 1) + width) / number)
        high = math.ceil((overlap * (number - 1) + height) / number)
        for x in ((wide - overlap) * place for place in range(number)):
            for y in ((high - overlap) * place for place in range(number)):
                yield layer, (x, y, min(x + wide, width), min(y + high, height))


def points_of(layer: int, crop: tuple[int, int, int, int], settings: Generator) -> np.ndarray:
    """The points that are asked in a crop: (n, 2) float64 px x, y of the crop."""
    x0, y0, x1, y1 = crop
    per_side = int(settings.points_per_side / settings.crop_downscale**layer)
    return grid(max(per_side, 1)) * (x1 - x0, y1 - y0)


def near_crop_edge(boxes: np.ndarray, crop: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    """Which boxes of the picture come within 20 px of a side of their crop that is none of the picture.

    Args:
        boxes: (n, 4).
    Returns:
        (n,) bool.
    """
    near_crop = np.abs(boxes - np.array(crop)) <= EDGE_PX
    near_picture = np.abs(boxes - np.array([0, 0, width, height])) <= EDGE_PX
    return np.asarray((near_crop & ~near_picture).any(axis=1))


def nms(boxes: np.ndarray, scores: np.ndarray, limit: float) -> np.ndarray:
    """Places of the boxes that stay where of two whose IoU exceeds the limit the one with the lower score goes.

    Returns:
        (m,) int64, the best first; of equal scores the first.
    """
    order = np.argsort(-scores, kind="stable")
    x0, y0, x1, y1 = boxes[order].T.astype(np.float64)
    areas = (x1 - x0) * (y1 - y0)
    gone = np.zeros(len(order), dtype=bool)
    kept = []
    for place in range(len(order)):
        if gone[place]:
            continue
        kept.append(int(order[place]))
        rest = slice(place + 1, None)
        w = np.clip(np.minimum(x1[place], x1[rest]) - np.maximum(x0[place], x0[rest]), 0, None)
        h = np.clip(np.minimum(y1[place], y1[rest]) - np.maximum(y0[place], y0[rest]), 0, None)
        union = areas[place] + areas[rest] - w * h
        gone[rest] |= w * h > limit * union  # two boxes without area are not alike
    return np.array(kept, dtype=np.int64)


def box_of(rle: bytes, height: int, width: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the first and last pixel."""
    _, (x, y, w, h) = masks.measure(rle, height, width)
    return x, y, x + max(w - 1, 0), y + max(h - 1, 0)


def between_crops(found: Found, settings: Generator) -> Found:
    """Without what a smaller crop has found, too."""
    if not settings.crop_layers or not len(found):
        return found
    x0, y0, x1, y1 = found.crops.T
    return found.pick(nms(found.boxes, 1 / ((x1 - x0) * (y1 - y0)), settings.crop_nms))


def tidy(found: Found, height: int, width: int, settings: Generator) -> Found:
    """Holes filled and islands removed of less than `min_region` px; of what is alike then, unchanged masks stay."""
    if not settings.min_region or not len(found):
        return found
    rles, changed = [], []
    for rle in found.rles:
        mask = masks.decode(rle, height, width)
        filled, has_holes = without_small_regions(mask, settings.min_region, holes=True)
        whole, has_islands = without_small_regions(filled, settings.min_region, holes=False)
        changed.append(has_holes or has_islands)
        rles.append(masks.encode(whole) if changed[-1] else rle)
    boxes = np.array([box_of(rle, height, width) for rle in rles], dtype=np.float64)
    kept = nms(boxes, 1.0 - np.array(changed, dtype=np.float64), max(settings.box_nms, settings.crop_nms))
    return replace(found, rles=rles, boxes=boxes).pick(kept)


def without_small_regions(mask: np.ndarray, pixels: int, *, holes: bool) -> tuple[np.ndarray, bool]:
    """A mask without 8-connected holes or islands of less than so many pixels, and whether it had any.

    Where all islands are small, the largest stays. mask: (H, W) bool.
    """
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats((mask ^ holes).astype(np.uint8), connectivity=8)
    sizes = stats[1:, cv2.CC_STAT_AREA]
    small = sizes < pixels
    if not small.any():
        return mask, False
    if holes:
        return mask | np.isin(labels, np.flatnonzero(small) + 1), True
    stay = np.flatnonzero(~small) + 1 if not small.all() else np.array([int(sizes.argmax()) + 1])
    return np.isin(labels, stay), True
