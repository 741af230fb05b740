"""What contact sheets look like: colours, sizes, and which condition has which colour."""

from __future__ import annotations

from dataengine.sample import Sample

RGB = tuple[int, int, int]
Point = tuple[float, float]

# Okabe and Ito's colours, which colour-blind people can tell apart, and some between them
_BASE: tuple[RGB, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
    (154, 205, 50),
    (148, 103, 189),
    (255, 152, 150),
    (23, 190, 207),
    (188, 143, 99),
)
_PALE: tuple[RGB, ...] = tuple(((r + 255) // 2, (g + 255) // 2, (b + 255) // 2) for r, g, b in _BASE)
_DEEP: tuple[RGB, ...] = tuple((r * 5 // 8, g * 5 // 8, b * 5 // 8) for r, g, b in _BASE)
COLORS = _BASE + _DEEP + _PALE
EASY_COLORS = 8  # more than these are hard to tell apart: conditions are numbered too

PAPER, CARD, INK, FAINT = (240, 240, 238), (255, 255, 255), (32, 33, 36), (104, 107, 112)
SEG, ABSENT, MISSING, CROWD, IGNORED = (60, 64, 67), (229, 230, 232), (200, 200, 200), (150, 150, 150), (90, 90, 90)
TINT = 0.5  # of a mask's colour over the picture
MARGIN, GUTTER, PAD = 16, 74, 5
TEXT_PX, SMALL_PX = 15, 12
LINE_PX = 24
MAX_ABSENT = 6  # categories without an object that are written out
MAX_LINES = 14  # of a turn
MAX_TURNS = 12
MAX_TEXT = 4000  # code points of a turn between two spans
MAX_PHRASE = 240  # code points of a phrase
MAX_PIXELS = 1 << 26  # of a picture that is decoded
MAX_ASPECT = 1.2  # height of a shown picture to its width
MAX_ZOOM = 12.0
SMOOTH = 3  # prompts are drawn this many times larger, then reduced
HATCH_PX, STRIPE_PX = 9, 14  # across
SPECK_PX = 6  # objects that are shown no larger are marked


def colors_of(sample: Sample) -> dict[int, RGB]:
    """The colour of each condition that has an object, by its index; they repeat after `COLORS`."""
    return {number: COLORS[rank % len(COLORS)] for rank, number in enumerate(with_objects(sample))}


def with_objects(sample: Sample) -> list[int]:
    return [number for number, condition in enumerate(sample.conditions) if condition.objects]


def tags_of(sample: Sample) -> dict[int, str]:
    """Numbers of conditions, by index, where there are too many colours to tell apart."""
    found = with_objects(sample)
    return {n: str(rank + 1) for rank, n in enumerate(found)} if len(found) > EASY_COLORS else {}
