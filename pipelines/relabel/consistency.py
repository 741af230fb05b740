"""Asking a labeler again: of a changed picture, or by another prompt, and how far it says the same.

A `Look` changes the picture and takes masks, points and boxes there and back. Who runs the labeler gives a function
`Again`; this module makes its queries and compares the answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dataengine import masks
from dataengine.errors import ReasonError
from dataengine.kernels import crops
from dataengine.keyed import keyed
from dataengine.ledger.records import Concept, Picture, Proposal
from dataengine.masks import Crop, MaskError
from pipelines.relabel import overlaps

LOOKS = ("hflip", "scale-0.75", "scale-1.25", "jitter")
VERSION = 1
SIDES = re.compile(r"\b(left|right)(?=(?:most|side|hand|ward|wards)?\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A change of a picture: mirrored, then scaled. name: of the augmentation, or `point`."""

    name: str
    mirrored: bool = False
    factor: float = 1.0

    @property
    def is_prompt(self) -> bool:
        """Whether the picture stays as it is: only another prompt can ask anything new."""
        return not self.mirrored and self.factor == 1

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the changed picture, px."""
        return max(1, round(height * self.factor)), max(1, round(width * self.factor))

    def pixels(self, picture: np.ndarray) -> np.ndarray:
        """The changed picture. picture: (H, W, C) or (H, W), uint8."""
        import cv2

        if self.mirrored:
            picture = picture[:, ::-1]
        height, width = self.size(*picture.shape[:2])
        if (height, width) != picture.shape[:2]:
            way = cv2.INTER_AREA if self.factor < 1 else cv2.INTER_LINEAR
            picture = cv2.resize(np.ascontiguousarray(picture), (width, height), interpolation=way)
        return np.ascontiguousarray(picture)

    def forth(self, rle: bytes, height: int, width: int) -> bytes:
        """A mask of the picture, on the changed one; pixels take the value of the nearest one."""
        return _moved(rle, (height, width), self.size(height, width), self.mirrored)

    def back(self, rle: bytes, height: int, width: int) -> bytes:
        """A mask of the changed picture, on the picture of height x width px."""
        return _moved(rle, self.size(height, width), (height, width), self.mirrored)

    def point(self, xy: tuple[float, float], height: int, width: int) -> tuple[float, float]:
        """A point of the picture, on the changed one, px; the middle of the first pixel is 0.5, 0.5."""
        tall, wide = self.size(height, width)
        return (width - xy[0] if self.mirrored else xy[0]) * wide / width, xy[1] * tall / height

    def box(self, xyxy: tuple[float, float, float, float], height: int, width: int) -> tuple[float, ...]:
        """A box of the picture, on the changed one, px, half open."""
        a, b = self.point(xyxy[:2], height, width), self.point(xyxy[2:], height, width)
        return min(a[0], b[0]), a[1], max(a[0], b[0]), b[1]

    def text(self, phrase: str) -> str:
        """A phrase as it is true of the changed picture: left and right are swapped in a mirrored one."""
        return SIDES.sub(_other_side, phrase) if self.mirrored else phrase


def look(name: str) -> Look:
    """The look of one of `LOOKS`."""
    if name.startswith("scale-"):
        return Look(name=name, factor=float(name.removeprefix("scale-")))
    return Look(name=name, mirrored=name == "hflip")


def _other_side(match: re.Match[str]) -> str:
    side = match.group()
    other = "right" if side.lower() == "left" else "left"
    return other.upper() if side.isupper() else other.capitalize() if side[0].isupper() else other


def _moved(rle: bytes, size: tuple[int, int], target: tuple[int, int], mirrored: bool) -> bytes:
    """A mask on a canvas of another size; what is too thin for a smaller one may vanish."""
    try:
        crop = masks.crop_from_rle(rle, *size)
    except MaskError as error:
        if error.reason != "empty_mask":
            raise
        return masks.rle_from_counts([target[0] * target[1]], *target)
    mask, x0, y0 = crop.mask, crop.x0, crop.y0
    if mirrored:
        mask, x0 = np.ascontiguousarray(mask[:, ::-1]), size[1] - x0 - mask.shape[1]
    if size != target:
        rows, top = _nearest(y0, mask.shape[0], size[0], target[0])
        columns, left = _nearest(x0, mask.shape[1], size[1], target[1])
        if not rows.size or not columns.size:
            return masks.rle_from_counts([target[0] * target[1]], *target)
        mask, x0, y0 = crops.picked(mask, rows, columns), left, top
    return masks.rle_from_crop(Crop(mask, x0, y0), *target)


def _nearest(start: int, length: int, size: int, target: int) -> tuple[np.ndarray, int]:
    """Which pixels of a stretch show in which of another size: their indices in the stretch, and the first's place."""
    shown = (2 * np.arange(target) + 1) * size // (2 * target) - start
    places = np.flatnonzero((shown >= 0) & (shown < length))
    return shown[places], int(places[0]) if places.size else 0


# --- queries and answers -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Requery:
    """What a labeler is asked again about a mask that it proposed; places are px of the changed picture.

    proposal: as it was made of the unchanged picture. text: its concept's, true of the changed picture. box_xyxy: the
    mask's, half open, moved a little by the look `jitter`. point_xy: middle of the mask's deepest pixel.
    """

    proposal: Proposal
    text: str
    box_xyxy: tuple[float, ...]
    point_xy: tuple[float, float]


Again = Callable[[Look, Sequence[Requery]], Sequence[Sequence[bytes]] | None]
"""Runs the labeler on the changed picture. For each query the compressed masks, on that picture, that it answers:
the one of the prompt, or all of the concept, of which the best counts; none where it finds nothing. None instead of all
answers: it cannot be asked so."""
Prompted = Callable[[Look, Sequence[Requery]], Sequence[Sequence[bytes]]]


def by_concepts(label: Callable[[Look], Sequence[Proposal]], prompted: Prompted | None = None) -> Again:
    """Of a labeler that finds whatever there is: the answers to a query are the masks that it finds of its concept.

    Args:
        label: its proposals for the changed picture. prompted: its answers to boxes (look `jitter`) or points.
    """

    def again(look: Look, queries: Sequence[Requery]) -> Sequence[Sequence[bytes]] | None:
        if look.is_prompt:
            return None if prompted is None else prompted(look, queries)
        found = label(look)
        asked = [Concept(text=one.text, category_id=one.proposal.concept.category_id) for one in queries]
        same = overlaps.same_concepts(asked, [one.concept for one in found])
        return [[one.rle for one, fits in zip(found, row, strict=True) if fits] for row in same.tolist()]

    return again


def augmentation(
    proposals: Sequence[Proposal], picture: Picture, names: Sequence[str], again: Again, seed: int = 0
) -> Sequence[float | None]:
    """Smallest IoU, over looks, of each mask with the best answer; None where it cannot be asked about any look.

    They are compared on the smaller of the two canvases, so that what rounding takes away is not counted.

    Raises:
        ReasonError: `bad_answer`: there is not one answer for each query.
        MaskError: a mask is malformed, or is not of that canvas.
    """
    asked = [_asked(proposals, picture, look(name), again, seed) for name in names]
    found = [values for values in asked if values is not None]
    return np.min(found, axis=0).tolist() if found else [None] * len(proposals)


def reprompt(proposals: Sequence[Proposal], picture: Picture, again: Again) -> Sequence[float | None]:
    """IoU of each mask with the best answer to its deepest pixel, as a point; None where it cannot be asked so.

    Raises: see `augmentation`.
    """
    found = _asked(proposals, picture, Look(name="point"), again, 0)
    return [None] * len(proposals) if found is None else found.tolist()


def _asked(proposals: Sequence[Proposal], picture: Picture, look: Look, again: Again, seed: int) -> np.ndarray | None:
    height, width = picture.height, picture.width
    answers = again(look, requeries(proposals, picture, look, seed))
    if answers is None:
        return None
    if len(answers) != len(proposals):
        message = f"{len(answers)} answers came to {len(proposals)} queries of the look {look.name}"
        raise ReasonError("bad_answer", message)
    found = np.zeros(len(proposals))
    for place, (proposal, given) in enumerate(zip(proposals, answers, strict=True)):
        own, size = proposal.rle, (height, width)
        if look.factor < 1:
            own, size = look.forth(own, height, width), look.size(height, width)
        elif look.factor > 1 or look.mirrored:
            given = [look.back(rle, height, width) for rle in given]
        if given:
            mine, theirs = overlaps.decoded([own], *size), overlaps.decoded(given, *size)
            found[place] = overlaps.overlaps(mine, theirs).iou.max()
    return found


def requeries(proposals: Sequence[Proposal], picture: Picture, look: Look, seed: int = 0) -> list[Requery]:
    """One for each mask; the same for the same mask. seed: of the jitter."""
    height, width = picture.height, picture.width
    made = []
    for proposal in proposals:
        crop = masks.crop_from_rle(proposal.rle, height, width)
        box = np.array([crop.x0, crop.y0, crop.x0 + crop.mask.shape[1], crop.y0 + crop.mask.shape[0]], float)
        if look.name == "jitter":
            rng = keyed(seed, picture.sha256, proposal.rle.decode("ascii"), "relabel/jitter", VERSION)
            box = jittered(box, height, width, rng)
        made.append(
            Requery(
                proposal=proposal,
                text=look.text(proposal.concept.text),
                box_xyxy=look.box(tuple(box.tolist()), height, width),
                point_xy=look.point(deepest(crop), height, width),
            )
        )
    return made


def deepest(crop: Crop) -> tuple[float, float]:
    """Middle of the pixel that lies farthest from all that is not the mask, the first in raster order: x, y, px."""
    padded = np.pad(crop.mask, 1)
    depth = np.empty(padded.shape)
    crops.squared_depth(padded, depth)
    y, x = divmod(int(depth.argmax()), padded.shape[1])
    return crop.x0 + x - 0.5, crop.y0 + y - 0.5


def jittered(box: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A box whose edges were moved, by a standard deviation of a tenth of its sides and at most 20 px (SAM).

    box: (4,) float64, x0, y0, x1, y1, px. It stays on the picture, and at least one pixel wide and high.
    """
    sides = np.tile(box[2:] - box[:2], 2)
    moved = box + (0.1 * sides * rng.standard_normal(4)).clip(-20, 20)
    moved = moved.clip(0, [width, height, width, height])
    if (moved[2:] - moved[:2] < 1).any():
        return box
    return moved
