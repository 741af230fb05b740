"""Simulated interaction: clicks, boxes and masks given to any predictor until it finds the object.

How the next click is chosen is a `Rules` value of independent choices; the presets are those of RITM, SAM, SAM 2 and
SEEM. Depths are exact squared Euclidean distances, so that ties are true ties; the first in row-major order wins.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from dataengine.errors import UserError
from dataengine.kernels import crops
from dataengine.keyed import Key, keyed
from dataengine.masks import MaskError

VERSION = 1
NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT = 0, 1, 2, 3  # labels as SAM's prompt encoder has them

Sampler = Literal["centre", "uniform"]
Sign = Literal["distance", "area", "pixel"]
Component = Literal["all", "largest"]
Repeat = Literal["allowed", "masked", "removed"]
BoxNoise = Literal["none", "normal", "uniform"]
Start = Literal["click", "box", "mask"]


@dataclass(frozen=True, slots=True)
class Click:
    """A place and what it says.

    x, y: column and row of the pixel, whole numbers; of a box's corners any. label: 1 the object, 0 not the object,
    2 and 3 top left and bottom right corner of a box, the last pixel included.
    """

    x: float
    y: float
    label: int

    @property
    def positive(self) -> bool:
        return self.label == POSITIVE


Predictor = Callable[[Sequence[Click], "np.ndarray | None"], np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How the next click is chosen. FN are pixels of the object that the prediction lacks, FP those it has too many.

    sampler: `centre`, the pixel deepest in the error; `uniform`, any pixel of it.
    first: the sampler of the first click, for which all of the object is FN.
    sign: `distance`, on the side whose deepest pixel is deeper (a tie is FP); `area`, on the side with more pixels (a
        tie is FN); `pixel`, FN and FP are one region, and the pixel chosen says which it is.
    component: `largest` takes of each region its largest 8-connected component only, the first of equals.
    border: what lies beyond the picture is outside the error too (the distance transform is padded with zeros).
    repeat: `allowed`; `masked`, a clicked pixel is not clicked again; `removed`, nor does it count in the error, and
        neither do pixels up to `click_reach` rows and columns away.
    threshold: a pixel is predicted where the prediction is greater; of no meaning for bool predictions.
    starts: how often an interaction starts with what.
    box_noise: on each coordinate of a box start, of `box_share` of the side (`normal`: sigma, `uniform`: at most), and
        at most `box_limit` px.
    from_truth: how often a click is drawn from the whole object, whatever was predicted.
    background: once nothing is wrong, a pixel outside the object is clicked instead of none.
    """

    sampler: Sampler = "centre"
    first: Sampler = "centre"
    sign: Sign = "distance"
    component: Component = "all"
    border: bool = True
    repeat: Repeat = "allowed"
    click_reach: int = 0
    threshold: float = 0.5
    starts: Mapping[Start, float] = field(default_factory=lambda: {"click": 1.0})
    box_noise: BoxNoise = "none"
    box_share: float = 0.1
    box_limit: float = 20.0
    from_truth: float = 0.0
    background: bool = False

    def __post_init__(self) -> None:
        for name, kind in (
            ("sampler", Sampler),
            ("first", Sampler),
            ("sign", Sign),
            ("component", Component),
            ("repeat", Repeat),
            ("box_noise", BoxNoise),
        ):
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(kind))}")
        if not 0 <= self.from_truth <= 1 or self.click_reach < 0 or math.isnan(self.threshold):
            raise UserError(
                f"from_truth {self.from_truth} is a share, click_reach {self.click_reach} a number of pixels,"
                f" threshold {self.threshold} a number"
            )
        shares = list(self.starts.values())
        if not set(self.starts) <= set(get_args(Start)) or not (sum(shares) > 0 and min(shares) >= 0):
            raise UserError(f"starts are {dict(self.starts)}; shares of {', '.join(get_args(Start))} are needed")


def ritm() -> Rules:
    """RITM's evaluation (Sofiiuk et al. 2022; isegm/inference/clicker.py): the deepest pixel of the deeper side."""
    return Rules(repeat="masked", threshold=0.49)


def sam_train() -> Rules:
    """SAM's training (Kirillov et al. 2023, appendix A): a uniform point or a noisy box, then uniform error pixels.

    The paper's two rounds that bring nothing new but the mask are not clicks, and are the training loop's to add.
    """
    return Rules(
        sampler="uniform", first="uniform", sign="pixel", starts={"click": 0.5, "box": 0.5}, box_noise="normal"
    )


def sam_eval() -> Rules:
    """SAM's evaluation (Kirillov et al. 2023, section 7.1, appendix D): the pixel deepest in the error region.

    The region is read as FN and FP together. A variant of theirs takes the first point uniformly: `first="uniform"`.
    """
    return Rules(sign="pixel")


def sam2_train() -> Rules:
    """SAM 2's training on video (Ravi et al. 2024; training/model/sam2.py): uniform in the error, 1 in 10 in all.

    Pictures start with a click or a box alone: `replace(sam2_train(), starts={"click": 0.5, "box": 0.5})`.
    """
    return Rules(
        sampler="uniform",
        first="uniform",
        sign="pixel",
        starts={"mask": 0.5, "click": 0.25, "box": 0.25},
        box_noise="uniform",
        from_truth=0.1,
        background=True,
    )


def sam2_eval() -> Rules:
    """SAM 2's `center` sampler (sam2/modeling/sam2_utils.py): RITM's rule, which may click a pixel again."""
    return Rules()


def seem() -> Rules:
    """SEEM's evaluation, mode `best` (Zou et al. 2023; modeling/architectures): the deepest pixel of the larger side.

    Prompted pixels, dilated by a 3 x 3 kernel, leave the error before its depth is taken.
    """
    return Rules(sign="area", repeat="removed", click_reach=1)


PRESETS: Mapping[str, Callable[[], Rules]] = {
    "ritm": ritm,
    "sam-train": sam_train,
    "sam-eval": sam_eval,
    "sam2-train": sam2_train,
    "sam2-eval": sam2_eval,
    "seem": seem,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What happened to one object.

    start: what it began with. clicks: all of them in order, a box start as its two corners. ious: in [0, 1], after each
    call of the predictor; a start is the first. seconds: of each call. found: (h, w) bool, the last prediction.
    """

    start: Start
    clicks: tuple[Click, ...]
    ious: tuple[float, ...]
    seconds: tuple[float, ...]
    found: np.ndarray


def interact(
    predict: Predictor,
    truth: np.ndarray,
    *,
    rules: Rules | str = "ritm",
    max_clicks: int = 20,
    stop_iou: float | None = 1.0,
    start: Start | None = None,
    ignore: np.ndarray | None = None,
    seed: int = 0,
    key: Key = "",
    clock: Callable[[], float] = time.perf_counter,
) -> Trace:
    """Click until the object is found.

    It ends after `max_clicks` calls of the predictor (a box or mask start is one), once the IoU reaches `stop_iou`, or
    where the rules have nothing left to click. What is drawn depends on seed, key and the number of the click only.

    Args:
        predict: gets all clicks so far and what it returned last (None at first, the object itself at a mask start,
            where there is no click yet); returns (h, w), bool or numbers that `rules.threshold` divides.
        truth: (h, w) bool, the object. ignore: (h, w) bool, pixels that count neither as error nor in the IoU.
        rules: or the name of a preset. stop_iou: None never stops early. start: instead of one drawn from the rules'.
        key: of the object, whatever names it.
    Raises:
        MaskError: `empty_mask`: the object has no pixel that is not ignored.
        UserError: no such preset or start; the predictor's answer has another shape, or is not of finite numbers.
    """
    if isinstance(rules, str):
        rules = preset(rules)
    if max_clicks < 1:
        raise UserError(f"max_clicks is {max_clicks}; at least one is needed")
    truth, ignore = _checked(truth, ignore)
    if start not in (None, *get_args(Start)):
        raise UserError(f"start is {start!r}; it must be one of {', '.join(get_args(Start))}")
    begin = start or _drawn_start(rules, keyed(seed, key, "start", VERSION))
    clicks: tuple[Click, ...] = ()
    ious: list[float] = []
    seconds: list[float] = []
    previous = truth.copy() if begin == "mask" else None
    found = np.zeros_like(truth)
    for number in range(max_clicks):
        draws = keyed(seed, key, "click", number, VERSION)
        if number == 0 and begin == "box":
            clicks = box_corners(truth, rules, draws)
        elif number > 0 or begin == "click":
            click = next_click(truth, found, rules, draws, ignore=ignore, clicks=clicks, first=number == 0)
            if click is None:
                break
            clicks = (*clicks, click)
        before = clock()
        answer = predict(clicks, previous)
        seconds.append(clock() - before)
        found, previous = _mask_of(answer, truth.shape, rules.threshold)
        ious.append(iou(truth, found, ignore))
        if stop_iou is not None and ious[-1] >= stop_iou:
            break
    return Trace(start=begin, clicks=clicks, ious=tuple(ious), seconds=tuple(seconds), found=found)


def preset(name: str) -> Rules:
    """The rules of a name.

    Raises:
        UserError: there are none.
    """
    if name not in PRESETS:
        raise UserError(f"no click rules {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()


def next_click(
    truth: np.ndarray,
    found: np.ndarray,
    rules: Rules,
    draws: np.random.Generator,
    *,
    ignore: np.ndarray | None = None,
    clicks: Sequence[Click] = (),
    first: bool = False,
) -> Click | None:
    """The click that the rules put next.

    The references that take the deepest pixel click the top left corner, as background, once nothing is wrong; here
    there is no click.

    Args:
        truth, found, ignore: (h, w) bool. clicks: those before. first: nothing came before, neither box nor mask.
    Returns:
        None where no pixel may be clicked.
    """
    whole = not first and rules.from_truth > 0 and draws.random() < rules.from_truth
    missed, extra = errors(truth, np.zeros_like(truth) if whole else found, ignore)
    if rules.background and not missed.any() and not extra.any():
        extra = ~truth if ignore is None else ~truth & ~ignore
    clicked = _pixels(clicks)
    if rules.repeat == "removed":
        for row, column in clicked:
            reach = rules.click_reach
            near = np.s_[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1]
            missed[near] = extra[near] = False
    sides = [missed | extra] if rules.sign == "pixel" else [missed, extra]
    if rules.component == "largest":
        sides = [_largest(side) for side in sides]
    kept = clicked if rules.repeat == "masked" else []
    sampler = rules.first if first else rules.sampler
    deepest = [_deepest(side, rules.border, kept) for side in sides if sampler == "centre" or rules.sign == "distance"]
    for row, column in kept:
        for side in sides:
            side[row, column] = False
    chosen = _side(sides, deepest, rules.sign)
    if sampler == "centre":
        depth, row, column = deepest[chosen]
        if not depth:
            return None
    else:
        pixels = np.flatnonzero(sides[chosen])
        if not pixels.size:
            return None
        row, column = divmod(int(pixels[draws.integers(pixels.size)]), truth.shape[1])
    return Click(column, row, POSITIVE if missed[row, column] else NEGATIVE)


def errors(truth: np.ndarray, found: np.ndarray, ignore: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """FN and FP, (h, w) bool each: pixels of the object that are missing, and others that were found; none ignored."""
    missed, extra = truth & ~found, found & ~truth
    return (missed, extra) if ignore is None else (missed & ~ignore, extra & ~ignore)


def iou(truth: np.ndarray, found: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """Intersection over union of (h, w) bool masks without ignored pixels; 1 where both are empty."""
    both, either = truth & found, truth | found
    if ignore is not None:
        both, either = both & ~ignore, either & ~ignore
    size = int(np.count_nonzero(either))
    return int(np.count_nonzero(both)) / size if size else 1.0


def box_corners(truth: np.ndarray, rules: Rules, draws: np.random.Generator) -> tuple[Click, Click]:
    """The object's tight box with the rules' noise, inside the picture: top left and bottom right, both included.

    SAM draws the noise of each coordinate from a normal distribution with a sigma of a tenth of the side, 20 px at most
    (appendix A); SAM 2 uniformly within a tenth of the side, 20 px at most (sample_box_points). A side is the
    difference of its two coordinates.
    """
    height, width = truth.shape
    rows, columns = np.flatnonzero(truth.any(axis=1)), np.flatnonzero(truth.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=np.float64)
    spread = rules.box_share * np.tile(box[2:] - box[:2], 2)
    if rules.box_noise == "normal":
        box += np.clip(draws.standard_normal(4) * spread, -rules.box_limit, rules.box_limit)
    elif rules.box_noise == "uniform":
        box += (2.0 * draws.random(4) - 1.0) * np.minimum(spread, rules.box_limit)
    x0, y0, x1, y1 = np.clip(box, 0, [width - 1, height - 1] * 2).tolist()
    return Click(min(x0, x1), min(y0, y1), TOP_LEFT), Click(max(x0, x1), max(y0, y1), BOTTOM_RIGHT)


def squared_depth(region: np.ndarray, border: bool = True) -> np.ndarray:
    """Squared distance of each pixel to the nearest one outside the region, in px²: (h, w) float64, whole numbers.

    Args:
        region: (h, w) bool.
        border: what lies beyond the picture is outside. Else only pixels are, and where there is none outside, all are
            equally far: h² + w².
    """
    h, w = region.shape
    if border or not region.any():
        return _depths(region)
    if region.all():
        return np.full((h, w), float(h * h + w * w))
    room = 8
    while True:
        # pixels beyond the padding count as outside; nothing nearer than they are has been missed
        squares = _depths(np.pad(region, room, constant_values=True))[room : room + h, room : room + w]
        if squares.max() < (room + 1) ** 2:
            return squares
        room = min(4 * room, math.ceil(math.hypot(h, w)))


def _depths(region: np.ndarray) -> np.ndarray:
    squares = np.empty(region.shape, dtype=np.float64)
    crops.squared_depth(np.ascontiguousarray(region), squares)
    return squares


def _deepest(region: np.ndarray, border: bool, clicked: Sequence[tuple[int, int]]) -> tuple[float, int, int]:
    """Squared depth, row and column of the deepest pixel that was not clicked; depth 0 where there is none."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if not rows.size:
        return 0.0, 0, 0
    top, bottom, left, right = 0, region.shape[0], 0, region.shape[1]
    if border:  # beyond the region's box nothing differs
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    squares = squared_depth(region[top:bottom, left:right], border)
    for row, column in clicked:
        if top <= row < bottom and left <= column < right:
            squares[row - top, column - left] = 0
    row, column = divmod(int(np.argmax(squares)), right - left)
    return float(squares[row, column]), row + top, column + left


def _side(sides: Sequence[np.ndarray], deepest: Sequence[tuple[float, int, int]], sign: Sign) -> int:
    """Which of the regions is clicked: FN 0, FP 1."""
    if sign == "distance":
        return 0 if deepest[0][0] > deepest[1][0] else 1
    if sign == "area":
        return 0 if np.count_nonzero(sides[0]) >= np.count_nonzero(sides[1]) else 1
    return 0


def _largest(region: np.ndarray) -> np.ndarray:
    labels, stats = crops.components(np.ascontiguousarray(region))
    if len(stats) < 2:
        return region
    largest: np.ndarray = labels == 1 + int(np.argmax(stats[:, 0]))
    return largest


def _pixels(clicks: Sequence[Click]) -> list[tuple[int, int]]:
    """Rows and columns of the clicks that are no corners of boxes."""
    return [(int(click.y), int(click.x)) for click in clicks if click.label in (NEGATIVE, POSITIVE)]


def _drawn_start(rules: Rules, draws: np.random.Generator) -> Start:
    kinds = sorted(rules.starts)
    shares = np.array([rules.starts[kind] for kind in kinds], dtype=np.float64)
    return kinds[int(draws.choice(len(kinds), p=shares / shares.sum()))]


def _checked(truth: np.ndarray, ignore: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    truth = np.asarray(truth)
    if truth.ndim != 2 or truth.dtype != bool:
        raise UserError(f"an object is an (h, w) bool mask, not {truth.dtype} of shape {truth.shape}")
    if ignore is not None:
        ignore = np.asarray(ignore)
        if ignore.shape != truth.shape or ignore.dtype != bool:
            raise UserError(f"what is ignored is {ignore.dtype} of shape {ignore.shape}; bool {truth.shape} is needed")
    if not (truth if ignore is None else truth & ~ignore).any():
        raise MaskError("empty_mask", "an object without a pixel cannot be clicked")
    return truth, ignore


def _mask_of(answer: np.ndarray, shape: tuple[int, ...], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The predictor's answer as a mask, and as the array it is given next."""
    values = np.asarray(answer)
    if values.shape != shape or values.dtype.kind not in "biuf":
        raise UserError(f"the predictor returned {values.dtype} of shape {values.shape}; numbers of {shape} are needed")
    if values.dtype == bool:
        return values.copy(), values
    if not np.isfinite(values).all():
        raise UserError("the predictor returned a number that is not finite")
    return values > threshold, values
