"""The procedural world: what stands where in picture number n.

A scene is a label map (which pixel belongs to what), the facts of its objects, and the sprites to paint. It is a pure
function of (seed, split, number). `world_paint` draws it, `world_text` describes it, `world_tree` writes it as COCO.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from dataengine import masks
from dataengine.keyed import keyed
from dataengine.masks import Crop

VERSION = 1  # of the scenes: what a seed gives changes only together with this number

Outline = tuple[list[np.ndarray], list[np.ndarray]]  # outer rings, holes; (n, 2) float64 of x, y


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A category. tilt_deg: how far an object may be turned; `color` is what the panoptic picture shows it in."""

    id: int
    name: str
    plural: str
    group: str
    color: tuple[int, int, int]
    is_thing: bool = True
    tilt_deg: float = 180.0


THINGS = (
    Kind(id=1, name="circle", plural="circles", group="round", color=(220, 20, 60), tilt_deg=0),
    Kind(id=2, name="square", plural="squares", group="polygon", color=(0, 0, 230), tilt_deg=16),
    Kind(id=3, name="triangle", plural="triangles", group="polygon", color=(250, 170, 30)),
    Kind(id=4, name="star", plural="stars", group="symbol", color=(220, 220, 0)),
    Kind(id=6, name="ring", plural="rings", group="hollow", color=(0, 226, 252), tilt_deg=0),
    Kind(id=7, name="frame", plural="frames", group="hollow", color=(119, 11, 32), tilt_deg=16),
    Kind(id=8, name="cross", plural="crosses", group="symbol", color=(255, 77, 255), tilt_deg=16),
    Kind(id=9, name="crescent", plural="crescents", group="round", color=(174, 57, 255)),
    Kind(id=11, name="heart", plural="hearts", group="symbol", color=(197, 0, 100), tilt_deg=30),
    Kind(id=12, name="hexagon", plural="hexagons", group="polygon", color=(0, 125, 92)),
    Kind(id=13, name="arrow", plural="arrows", group="symbol", color=(255, 109, 65)),
    Kind(id=14, name="exclamation mark", plural="exclamation marks", group="symbol", color=(72, 0, 118), tilt_deg=20),
)
STUFF = (
    Kind(id=21, name="sky", plural="sky", group="outdoors", color=(70, 130, 180), is_thing=False),
    Kind(id=22, name="hills", plural="hills", group="outdoors", color=(134, 134, 103), is_thing=False),
    Kind(id=23, name="grass", plural="grass", group="ground", color=(124, 200, 92), is_thing=False),
    Kind(id=25, name="sand", plural="sand", group="ground", color=(210, 190, 140), is_thing=False),
    Kind(id=26, name="water", plural="water", group="ground", color=(58, 100, 255), is_thing=False),
    Kind(id=27, name="road", plural="road", group="ground", color=(128, 64, 128), is_thing=False),
)
KINDS = {kind.name: kind for kind in (*THINGS, *STUFF)}
SYNONYMS = {  # for layouts whose categories have some
    "circle": ("disc",),
    "ring": ("annulus", "hoop"),
    "cross": ("plus sign",),
    "crescent": ("half moon",),
    "exclamation mark": ("exclamation point",),
    "hills": ("hill country",),
    "water": ("lake",),
    "road": ("route",),
}
COLORS = {  # RGB
    "red": (206, 38, 38),
    "orange": (242, 132, 24),
    "yellow": (246, 214, 40),
    "green": (14, 122, 62),
    "cyan": (40, 205, 205),
    "blue": (34, 66, 205),
    "purple": (126, 44, 168),
    "pink": (246, 128, 178),
    "brown": (118, 70, 36),
    "white": (236, 236, 232),
    "black": (40, 40, 46),
}
SIZES = ((640, 480), (640, 427), (480, 640), (500, 375), (640, 480), (427, 640), (375, 500), (640, 480))

# labels of a scene's map: 0 is void, then stuff in the order of STUFF, the crowd, the things
VOID, FIRST_STUFF, CROWD, FIRST_THING = 0, 1, 15, 16
MAX_THINGS = 60
EMPTY_SHARE = 0.01  # pictures without any object
CROWD_SHARE = 0.06  # pictures with a crowd
CUT_SHARE = 0.12  # objects that may leave the frame
MEDIAN_SIDE = 66.0  # square root of an object's whole area, px on a canvas whose short side is 480
SIDE_SIGMA = 0.8
MIN_AREA = 24
MIN_VISIBLE = 0.4  # the least share of a shape in the frame, and of that which others may leave to be seen
MIN_STUFF_AREA = 100  # smaller rests of stuff become void


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How scenes are made up.

    sizes: width and height of canvases, drawn evenly. kinds: names of the things there are; num_kinds: how many of them
    a scene has, from and below. num_things: objects of a scene, from and below, drawn evenly; sides: square root of an
    object's whole area in short sides of the canvas, likewise; where they are None, numbers and sizes have long tails,
    as in photographs. empty_share, crowd_share: of the pictures. own_color: how likely an object has the color of its
    kind (`OWN_COLORS`) instead of any.
    """

    sizes: tuple[tuple[int, int], ...] = SIZES
    kinds: tuple[str, ...] = tuple(kind.name for kind in THINGS)
    num_kinds: tuple[int, int] = (2, 8)
    num_things: tuple[int, int] | None = None
    sides: tuple[float, float] | None = None
    empty_share: float = EMPTY_SHARE
    crowd_share: float = CROWD_SHARE
    own_color: float = 0.0


OWN_COLORS = {
    "circle": "red",
    "square": "blue",
    "triangle": "yellow",
    "star": "green",
    "ring": "purple",
    "cross": "orange",
    "crescent": "cyan",
    "heart": "pink",
}
_SIMPLE = Style(
    sizes=((160, 160), (160, 144), (144, 160)),
    kinds=tuple(OWN_COLORS),
    num_kinds=(2, 5),
    num_things=(3, 9),
    sides=(0.13, 0.3),
    crowd_share=0.0,
)
_LARGE = replace(_SIMPLE, num_kinds=(2, 4), num_things=(2, 6), sides=(0.2, 0.42), own_color=0.9)
# for models that train in minutes: small pictures of a few objects that can be made out
STYLES = {
    "world": Style(),
    "simple": _SIMPLE,
    "simple-colored": replace(_SIMPLE, own_color=0.9),
    "large-colored": _LARGE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sprite:
    """A shape to paint. crop: all its pixels, also those outside of the frame or behind others; painted in order."""

    crop: Crop
    color: str
    material: int
    offset: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """An object as it is annotated; a crowd is one object.

    label: its value in the label map. area: its visible pixels. bbox: of them, x, y, width, height.
    color: one of COLORS; None for a crowd. outline: the polygons it was filled from, where it is whole and has no hole;
    filled at this place, they may differ in a pixel.
    """

    label: int
    kind: Kind
    area: int
    bbox: tuple[int, int, int, int]
    color: str | None = None
    outline: tuple[np.ndarray, ...] | None = None
    occluded: bool = False
    truncated: bool = False
    crowd: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One picture of the world.

    labels: (H, W) uint8. ground: the same before shapes were put on it. stuff: the kinds with a pixel and how many,
    largest first. facts: the objects, back to front. sprites: what to paint, in that order.
    """

    labels: np.ndarray
    ground: np.ndarray
    stuff: tuple[tuple[Kind, int], ...]
    facts: tuple[Fact, ...]
    sprites: tuple[Sprite, ...]


def make_scene(seed: int, split: str, number: int, style: str = "world") -> Scene:
    """Picture `number` of a split, from 0. style: one of STYLES."""
    rng = keyed(seed, split, number, "scene", VERSION)
    made = STYLES[style]
    width, height = made.sizes[rng.integers(len(made.sizes))]
    labels = np.zeros((height, width), dtype=np.uint8)
    _lay_ground(rng, labels)
    ground = labels.copy()
    stage = _Stage(labels)
    if rng.random() >= made.empty_share:
        if rng.random() < made.crowd_share:
            stage.add_crowd(rng)
        sides = _sides(rng, made, min(width, height))
        depth = sides * rng.uniform(0.5, 2, len(sides))  # small ones mostly stand in front
        palette = rng.permutation(list(COLORS))[:6].tolist()
        kinds = rng.permutation(len(made.kinds))[: rng.integers(*made.num_kinds)].tolist()
        for side in sides[np.argsort(-depth, kind="stable")].tolist():
            kind = KINDS[made.kinds[kinds[rng.integers(len(kinds))]]]
            has_own = made.own_color and rng.random() < made.own_color
            stage.add_thing(rng, kind, [OWN_COLORS[kind.name]] if has_own else palette, side)
    stuff = [(kind, int(np.count_nonzero(labels == FIRST_STUFF + i))) for i, kind in enumerate(STUFF)]
    small = [stuff_label(kind.name) for kind, area in stuff if 0 < area < MIN_STUFF_AREA]
    if small:
        labels[np.isin(labels, small)] = VOID
    return Scene(
        labels=labels,
        ground=ground,
        stuff=tuple(sorted((s for s in stuff if s[1] >= MIN_STUFF_AREA), key=lambda s: -s[1])),
        facts=tuple(stage.facts()),
        sprites=tuple(stage.sprites),
    )


def _sides(rng: np.random.Generator, style: Style, short: int) -> np.ndarray:
    """(things,) float64: how large the objects of a scene are to be, px."""
    if style.num_things is not None and style.sides is not None:
        return short * rng.uniform(*style.sides, int(rng.integers(*style.num_things)))
    wanted = min(MAX_THINGS, 1 + int(rng.poisson(rng.gamma(1.4, 4.75))))
    unit = short / 480
    return np.clip(MEDIAN_SIDE * unit * np.exp(rng.normal(0, SIDE_SIGMA, wanted)), 8, 300 * unit)


def _histogram(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(256,) int64: pixels of each label inside of a mask."""
    import cv2

    return cv2.calcHist([labels], [0], mask.view(np.uint8), [256], [0, 256]).ravel().astype(np.int64)


# --- ground ----------------------------------------------------------------------------------------------------------


def stuff_label(name: str) -> int:
    """Value of a stuff kind in the label map."""
    return FIRST_STUFF + STUFF.index(KINDS[name])


def _wave(rng: np.random.Generator, num_points: int, amplitude: float) -> np.ndarray:
    """A smooth random line: (num_points,) float64 around 0."""
    at = np.linspace(0, 1, num_points)[:, None]
    waves = np.sin(2 * np.pi * (at * rng.uniform(0.4, 4, 4) + rng.random(4)))
    return amplitude * (waves * (0.6, 0.4, 0.2, 0.15)).sum(axis=1)


def _fill(labels: np.ndarray, points: np.ndarray, name: str) -> None:
    import cv2

    cv2.fillPoly(labels, [np.round(points).astype(np.int32)], stuff_label(name))


def _half(rng: np.random.Generator, labels: np.ndarray, middle: float, slope: float, rough: float, name: str) -> None:
    """Everything below a line: `middle` px from the top, falling by `slope` px to the right, `rough` px of waves."""
    height, width = labels.shape
    x = np.linspace(0, width, 65)
    y = middle + slope * (x / width - 0.5) + _wave(rng, 65, rough)
    low = max(height, float(y.max())) + 1
    _fill(labels, np.concatenate((np.column_stack((x, y)), [(width, low), (0, low)])), name)


def _lay_ground(rng: np.random.Generator, labels: np.ndarray) -> None:
    """Tile the canvas with stuff: a landscape under a sky, or grounds seen from above."""
    height, _ = labels.shape
    first, second = rng.permutation(["grass", "sand", "water"])[:2].tolist()
    if rng.random() < 0.75:
        horizon = height * rng.uniform(0.2, 0.5)
        labels[:] = stuff_label("sky")
        if rng.random() < 0.5:
            _half(rng, labels, horizon - height * rng.uniform(0.05, 0.14), 0, 0.05 * height, "hills")
        _half(rng, labels, horizon, 0, 0.006 * height, first)
        if rng.random() < 0.6:
            middle = rng.uniform(horizon + 0.12 * height, 0.95 * height)
            _half(rng, labels, middle, rng.normal(0, 0.1) * height, 0.03 * height, second)
        if rng.random() < 0.35 and first != "water":
            _road(rng, labels, horizon)
    else:
        labels[:] = stuff_label(first)
        _half(rng, labels, height * rng.uniform(0.2, 0.8), rng.normal(0, 0.6) * height, 0.05 * height, second)
        if rng.random() < 0.4:
            _lane(rng, labels)
        if rng.random() < 0.4 and "water" not in (first, second):
            _pond(rng, labels)


def _road(rng: np.random.Generator, labels: np.ndarray, horizon: float) -> None:
    """A road that comes from the horizon and widens towards the lower edge."""
    height, width = labels.shape
    t = np.linspace(0, 1, 24)
    far, near, bend = rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.9), rng.normal(0, 0.12)
    x = width * (far + (near - far) * t**1.6 + bend * np.sin(np.pi * t))
    y = horizon + 0.012 * height + (height - horizon) * t
    half = width * (0.006 + rng.uniform(0.09, 0.16) * t**1.4)
    _fill(labels, np.concatenate((np.column_stack((x - half, y)), np.column_stack((x + half, y))[::-1])), "road")


def _lane(rng: np.random.Generator, labels: np.ndarray) -> None:
    """A road across the canvas, seen from above."""
    height, width = labels.shape
    half = rng.uniform(0.05, 0.09) * height
    x = np.linspace(0, width, 33)
    y = height * rng.uniform(0.25, 0.75) + rng.normal(0, 0.3) * height * (x / width - 0.5) + _wave(rng, 33, half)
    if rng.random() < 0.5:
        x, y = y * width / height, x * height / width
        half = half * width / height
        edges = np.column_stack((x - half, y)), np.column_stack((x + half, y))
    else:
        edges = np.column_stack((x, y - half)), np.column_stack((x, y + half))
    _fill(labels, np.concatenate((edges[0], edges[1][::-1])), "road")


def _pond(rng: np.random.Generator, labels: np.ndarray) -> None:
    height, width = labels.shape
    angle = np.linspace(0, 2 * np.pi, 49)[:-1]
    radius = 1 + 0.16 * np.sin(2 * angle + rng.uniform(0, 6)) + 0.1 * np.sin(3 * angle + rng.uniform(0, 6))
    x = width * (rng.uniform(0.2, 0.8) + rng.uniform(0.12, 0.22) * radius * np.cos(angle))
    y = height * (rng.uniform(0.2, 0.8) + rng.uniform(0.1, 0.18) * radius * np.sin(angle))
    _fill(labels, np.column_stack((x, y)), "water")


# --- shapes ----------------------------------------------------------------------------------------------------------


def _polar(num: int, radius: Any = 1.0, start: float = -0.5) -> np.ndarray:
    """Points around a centre. radius: one number, or one a point. start: angle of the first, in units of pi."""
    angle = np.pi * (start + 2 * np.arange(num) / num)
    return np.column_stack((np.cos(angle), np.sin(angle))) * np.broadcast_to(radius, num)[:, None]


def _crescent() -> np.ndarray:
    outer = np.radians(np.linspace(51.3, 308.7, 40))
    inner = np.radians(np.linspace(282.6, 77.4, 28))[1:-1]
    bite = np.column_stack((0.45 + 0.8 * np.cos(inner), 0.8 * np.sin(inner)))
    return np.concatenate((np.column_stack((np.cos(outer), np.sin(outer))), bite))


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 45)[:-1]
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.column_stack((16 * np.sin(t) ** 3, -y))


def _cross() -> np.ndarray:
    a, b = 0.34, 1.0
    return np.array(
        [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    )


def _arrow() -> np.ndarray:
    return np.array([(-1, -0.3), (0.15, -0.3), (0.15, -0.8), (1, 0), (0.15, 0.8), (0.15, 0.3), (-1, 0.3)])


def _exclamation() -> list[np.ndarray]:
    bar = np.array([(-0.3, -1.2), (0.3, -1.2), (0.17, 0.35), (-0.17, 0.35)])
    return [bar, _polar(20, 0.28) + np.array((0, 0.9))]


_OUTLINES: dict[str, Callable[[], Outline]] = {
    "circle": lambda: ([_polar(48)], []),
    "square": lambda: ([_polar(4, start=0.25)], []),
    "triangle": lambda: ([_polar(3)], []),
    "star": lambda: ([_polar(10, np.tile((1.0, 0.45), 5))], []),
    "ring": lambda: ([_polar(48)], [_polar(48, 0.56)]),
    "frame": lambda: ([_polar(4, start=0.25)], [_polar(4, 0.58, start=0.25)]),
    "cross": lambda: ([_cross()], []),
    "crescent": lambda: ([_crescent()], []),
    "heart": lambda: ([_heart()], []),
    "hexagon": lambda: ([_polar(6)], []),
    "arrow": lambda: ([_arrow()], []),
    "exclamation mark": lambda: (_exclamation(), []),
}


@cache
def _unit_outline(name: str) -> Outline:
    """A shape of area 1 around the middle of its box."""
    outer, holes = _OUTLINES[name]()
    area = sum(_shoelace(ring) for ring in outer) - sum(_shoelace(ring) for ring in holes)
    every = np.concatenate(outer)
    middle = (every.min(axis=0) + every.max(axis=0)) / 2
    scale = 1 / np.sqrt(area)
    return [(ring - middle) * scale for ring in outer], [(ring - middle) * scale for ring in holes]


def _shoelace(ring: np.ndarray) -> float:
    x, y = ring.T
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """A rasterised shape around its own origin. mask: (h, w) bool. outer: rings, quarter pixels; holes: how many."""

    mask: np.ndarray
    outer: tuple[np.ndarray, ...]
    holes: int


def _make_shape(rng: np.random.Generator, kind: Kind, side: float) -> _Shape:
    """A shape of about side² px, turned at random. The raster is that of COCO's polygons, holes cut out."""
    outer, holes = _unit_outline(kind.name)
    turn = np.radians(rng.uniform(-kind.tilt_deg, kind.tilt_deg))
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = side * np.array([(cos, sin), (-sin, cos)])
    rings = [ring @ matrix for ring in (*outer, *holes)]
    low = np.floor(np.min([ring.min(axis=0) for ring in rings], axis=0))
    rings = [np.round((ring - low) * 4) / 4 for ring in rings]  # whole quarters: moving by whole pixels is exact
    width, height = (int(v) + 1 for v in np.max([ring.max(axis=0) for ring in rings], axis=0))
    mask = _raster(rings[: len(outer)], height, width)
    if holes:
        mask &= ~_raster(rings[len(outer) :], height, width)
    return _Shape(mask=mask, outer=tuple(rings[: len(outer)]), holes=len(holes))


def _raster(rings: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """(height, width) bool: the union of polygons as COCO fills them."""
    rle = masks.rle_from_polygons([ring.ravel().tolist() for ring in rings], height, width)
    return np.ascontiguousarray(masks.decode(rle, height, width))


# --- placing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    kind: Kind
    color: str | None
    shape: _Shape | None
    x0: int
    y0: int
    truncated: bool


class _Stage:
    """The label map while shapes are put on it, back to front; every one stays visible enough."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels
        self.sprites: list[Sprite] = []
        self._placed: dict[int, _Placed] = {}
        self._covered: dict[int, int] = {}  # pixels in the frame, hidden or not
        self._visible = np.zeros(256, dtype=np.int64)

    def add_thing(self, rng: np.random.Generator, kind: Kind, palette: list[str], side: float) -> None:
        """Put a shape where it hides nothing too much; leave it out where no such place is found.

        It gets a color of the palette that nothing has which it covers.
        """
        shape = _make_shape(rng, kind, side)
        if np.count_nonzero(shape.mask) < MIN_AREA:
            return
        label = FIRST_THING + len(self._placed)
        for _ in range(12):
            x0, y0 = self._place(rng, *shape.mask.shape)
            below = self._put(label, shape.mask, x0, y0, self._visible)
            if below is not None:
                taken = {self._placed[other].color for other in below}
                colors = [color for color in palette if color not in taken] or palette
                color = colors[rng.integers(len(colors))]
                height, width = self.labels.shape
                truncated = not (0 <= x0 <= width - shape.mask.shape[1] and 0 <= y0 <= height - shape.mask.shape[0])
                self._placed[label] = _Placed(kind=kind, color=color, shape=shape, x0=x0, y0=y0, truncated=truncated)
                self._paint(rng, shape, color, x0, y0)
                return

    def add_crowd(self, rng: np.random.Generator) -> None:
        """Many small shapes of one kind in a cluster: one region."""
        kind = THINGS[rng.integers(len(THINGS))]
        colors = rng.permutation(list(COLORS))[:3].tolist()
        height, width = self.labels.shape
        side = rng.uniform(13, 24)
        shapes = [_make_shape(rng, kind, side * f) for f in rng.uniform(0.85, 1.2, 5).tolist()]
        middle = rng.uniform(0.25, 0.75, 2) * (width, height)
        spread = side * rng.uniform((3.0, 1.6), (5.0, 2.6))
        places = middle + spread * rng.normal(0, 1, (int(rng.integers(16, 44)), 2))
        num_placed = 0
        for x, y in places[np.argsort(places[:, 1], kind="stable")].astype(int).tolist():
            shape = shapes[rng.integers(len(shapes))]
            if self._put(CROWD, shape.mask, x, y, np.zeros(256, dtype=np.int64)) is not None:
                self._paint(rng, shape, colors[rng.integers(len(colors))], x, y)
                num_placed += 1
        if num_placed:
            self._visible[CROWD] = self._covered[CROWD] = int((self.labels == CROWD).sum())
            self._placed[CROWD] = _Placed(kind=kind, color=None, shape=None, x0=0, y0=0, truncated=False)

    def _place(self, rng: np.random.Generator, h: int, w: int) -> tuple[int, int]:
        height, width = self.labels.shape
        if self._placed and rng.random() < 0.25:  # by another one
            other = self._placed[list(self._placed)[rng.integers(len(self._placed))]]
            if other.shape is not None:
                oh, ow = other.shape.mask.shape
                x = other.x0 + ow / 2 + rng.uniform(-0.5, 0.5) * (ow + w) - w / 2
                y = other.y0 + oh / 2 + rng.uniform(-0.5, 0.5) * (oh + h) - h / 2
                return int(np.clip(x, 0, max(0, width - w))), int(np.clip(y, 0, max(0, height - h)))
        if rng.random() < CUT_SHARE:
            return int(rng.integers(-w // 2, width - w // 2)), int(rng.integers(-h // 2, height - h // 2))
        return int(rng.integers(max(1, width - w + 1))), int(rng.integers(max(1, height - h + 1)))

    def _put(self, label: int, mask: np.ndarray, x0: int, y0: int, visible: np.ndarray) -> list[int] | None:
        """Write a mask into the map, unless it or something behind it would keep too little: then None.

        Args:
            mask: (h, w) bool at (x0, y0), which may leave the frame.
            visible: pixels by label, kept up to date.
        Returns:
            labels of the objects that it covers a part of.
        """
        height, width = self.labels.shape
        top, left = max(0, -y0), max(0, -x0)
        least = max(MIN_AREA, MIN_VISIBLE * np.count_nonzero(mask))
        mask = mask[top : max(top, height - y0), left : max(left, width - x0)]
        view = self.labels[max(0, y0) : y0 + top + mask.shape[0], max(0, x0) : x0 + left + mask.shape[1]]
        if not mask.size:
            return None
        hidden = _histogram(view, mask)
        inside = int(hidden.sum())
        below = [other for other in (np.flatnonzero(hidden[CROWD:]) + CROWD).tolist() if other in self._placed]
        left_over = [visible[other] - hidden[other] - MIN_VISIBLE * self._covered[other] for other in below]
        if inside < least or min(left_over, default=0) < 0:
            return None
        view[mask] = label
        visible -= hidden
        visible[label] = inside
        self._covered[label] = inside
        return below

    def _paint(self, rng: np.random.Generator, shape: _Shape, color: str, x0: int, y0: int) -> None:
        offset = rng.integers(0, 256, 2).tolist()
        material = int(rng.integers(1 << 16))
        self.sprites.append(
            Sprite(crop=Crop(shape.mask, x0, y0), color=color, material=material, offset=(offset[0], offset[1]))
        )

    def facts(self) -> list[Fact]:
        return [self._fact(label, placed) for label, placed in self._placed.items()]

    def _fact(self, label: int, placed: _Placed) -> Fact:
        import cv2

        shape, x0, y0 = placed.shape, max(0, placed.x0), max(0, placed.y0)
        if shape is None:
            view = self.labels
        else:
            view = self.labels[y0 : placed.y0 + shape.mask.shape[0], x0 : placed.x0 + shape.mask.shape[1]]
        mask = (view == label).view(np.uint8)
        x, y, w, h = cv2.boundingRect(mask)
        area = cv2.countNonZero(mask)
        occluded = area < self._covered[label]
        outline = None
        if shape is not None and not (shape.holes or occluded or placed.truncated):
            outline = tuple(ring + np.array((placed.x0, placed.y0)) for ring in shape.outer)
        return Fact(
            label=label,
            kind=placed.kind,
            area=area,
            bbox=(x0 + x, y0 + y, w, h),
            color=placed.color,
            outline=outline,
            occluded=occluded,
            truncated=placed.truncated,
            crowd=shape is None,
        )
