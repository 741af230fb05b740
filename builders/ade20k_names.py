"""ADE20K's categories: the published names of SceneParse150, which of them have instances, and how both are read.

Names: objectInfo150.txt of CSAILVision/sceneparsing (its .csv cuts names into words: "swivel;chair"). Instance classes:
ade20k_instance_catid_mapping.txt of CSAILVision/ADE20K, whose 103 rows name 100 classes (5, 18 and 57 twice, with one
target each).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Literal

from builders.reading import clean_name, plain
from dataengine.builder import SourceError
from dataengine.records import Category

NAMES = """
wall
building, edifice
sky
floor, flooring
tree
ceiling
road, route
bed
windowpane, window
grass
cabinet
sidewalk, pavement
person, individual, someone, somebody, mortal, soul
earth, ground
door, double door
table
mountain, mount
plant, flora, plant life
curtain, drape, drapery, mantle, pall
chair
car, auto, automobile, machine, motorcar
water
painting, picture
sofa, couch, lounge
shelf
house
sea
mirror
rug, carpet, carpeting
field
armchair
seat
fence, fencing
desk
rock, stone
wardrobe, closet, press
lamp
bathtub, bathing tub, bath, tub
railing, rail
cushion
base, pedestal, stand
box
column, pillar
signboard, sign
chest of drawers, chest, bureau, dresser
counter
sand
sink
skyscraper
fireplace, hearth, open fireplace
refrigerator, icebox
grandstand, covered stand
path
stairs, steps
runway
case, display case, showcase, vitrine
pool table, billiard table, snooker table
pillow
screen door, screen
stairway, staircase
river
bridge, span
bookcase
blind, screen
coffee table, cocktail table
toilet, can, commode, crapper, pot, potty, stool, throne
flower
book
hill
bench
countertop
stove, kitchen stove, range, kitchen range, cooking stove
palm, palm tree
kitchen island
computer, computing machine, computing device, data processor, electronic computer, information processing system
swivel chair
boat
bar
arcade machine
hovel, hut, hutch, shack, shanty
bus, autobus, coach, charabanc, double-decker, jitney, motorbus, motorcoach, omnibus, passenger vehicle
towel
light, light source
truck, motortruck
tower
chandelier, pendant, pendent
awning, sunshade, sunblind
streetlight, street lamp
booth, cubicle, stall, kiosk
television, television receiver, television set, tv, tv set, idiot box, boob tube, telly, goggle box
airplane, aeroplane, plane
dirt track
apparel, wearing apparel, dress, clothes
pole
land, ground, soil
bannister, banister, balustrade, balusters, handrail
escalator, moving staircase, moving stairway
ottoman, pouf, pouffe, puff, hassock
bottle
buffet, counter, sideboard
poster, posting, placard, notice, bill, card
stage
van
ship
fountain
conveyer belt, conveyor belt, conveyer, conveyor, transporter
canopy
washer, automatic washer, washing machine
plaything, toy
swimming pool, swimming bath, natatorium
stool
barrel, cask
basket, handbasket
waterfall, falls
tent, collapsible shelter
bag
minibike, motorbike
cradle
oven
ball
food, solid food
step, stair
tank, storage tank
trade name, brand name, brand, marque
microwave, microwave oven
pot, flowerpot
animal, animate being, beast, brute, creature, fauna
bicycle, bike, wheel, cycle
lake
dishwasher, dish washer, dishwashing machine
screen, silver screen, projection screen
blanket, cover
sculpture
hood, exhaust hood
sconce
vase
traffic light, traffic signal, stoplight
tray
ashcan, trash can, garbage can, wastebin, ash bin, ash-bin, ashbin, dustbin, trash barrel, trash bin
fan
pier, wharf, wharfage, dock
crt screen
plate
monitor, monitoring device
bulletin board, notice board
shower
radiator
glass, drinking glass
clock
flag
""".strip().splitlines()
# of instance class 1, 2, …: its number in NAMES, from 1
INSTANCE_CLASSES = (
    8, 9, 11, 13, 15, 16, 19, 20, 21, 23, 24, 25, 28, 31, 32, 33, 34, 36, 37, 38, 39, 40, 42, 43, 44, 45, 46, 48,
    50, 51, 54, 56, 57, 58, 59, 63, 65, 66, 67, 68, 70, 71, 72, 73, 74, 75, 76, 77, 79, 81, 82, 83, 84, 86, 87,
    88, 89, 90, 91, 93, 94, 96, 98, 99, 103, 104, 105, 108, 109, 111, 112, 113, 116, 117, 119, 120, 121, 122, 124,
    125, 126, 127, 128, 130, 131, 133, 134, 135, 136, 137, 138, 139, 140, 143, 144, 145, 147, 148, 149, 150,
)  # fmt: skip
MAX_SHOWN = 60  # characters of a line that a message quotes


def read_names(data: bytes, file: str) -> list[str]:
    """The 150 names of objectInfo150.txt, in order: tab-separated columns, of which Idx and Name are read.

    Raises:
        SourceError
    """
    lines = data.decode("utf-8", "replace").splitlines()
    header = [cell.strip() for cell in lines[0].split("\t")] if lines else []
    if "Idx" not in header or "Name" not in header:
        raise SourceError(f"{file}: the columns Idx and Name are needed, tab-separated, as in objectInfo150.txt")
    at, named = header.index("Idx"), header.index("Name")
    names: list[str] = []
    for number, line in enumerate(lines[1:], start=2):
        cells = [cell.strip() for cell in line.split("\t")]
        if not any(cells):
            continue
        if len(cells) <= max(at, named) or cells[at] != str(len(names) + 1) or not is_name(cells[named]):
            raise SourceError(
                f"{file}: line {number}: category {len(names) + 1} and its name are expected, not {line[:MAX_SHOWN]!r}"
            )
        names.append(cells[named])
    if len(names) != len(NAMES):
        raise SourceError(f"{file}: {len(names)} categories; there are {len(NAMES)}")
    return names


def read_instance_classes(data: bytes, file: str) -> dict[int, int]:
    """Instance class to category number (from 1), from ade20k_instance_catid_mapping.txt.

    Its rows are `Instance100 SceneParse150 FullADE20K`; a class stands in several rows where it has several classes of
    full ADE20K.

    Raises:
        SourceError: a row is no such row, or a class has two targets.
    """
    found: dict[int, int] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines()[1:], start=2):
        cells = line.split()
        if not cells:
            continue
        if len(cells) < 2 or not all(cell.isascii() and cell.isdigit() and len(cell) < 6 for cell in cells[:2]):
            raise SourceError(f"{file}: line {number}: whole numbers are expected, not {line[:MAX_SHOWN]!r}")
        owner, target = int(cells[0]), int(cells[1])
        if not 1 <= owner <= 255 or not 1 <= target <= len(NAMES) or found.setdefault(owner, target) != target:
            raise SourceError(f"{file}: line {number}: class {owner} cannot stand for category {target}")
    if not found:
        raise SourceError(f"{file}: it has no row")
    return found


@lru_cache(maxsize=1 << 14)  # the same few thousand names come again and again
def is_name(text: str) -> bool:
    """Whether a name can be written in a question."""
    return bool(_synonyms(text))


def make_categories(
    names: Mapping[int, str], things: Collection[int], how: Literal["first", "all"]
) -> tuple[Category, ...]:
    """Categories by ascending id.

    Args:
        names: by id, synonyms separated by commas. things: ids of those that have instances.
        how: what a question says: the first synonym (all of them where another category begins with the same one), or
            all of them.
    """
    synonyms = {number: _synonyms(name) for number, name in sorted(names.items())}
    firsts = Counter(clean_name(words[0]) for words in synonyms.values())
    return tuple(
        Category(
            id=number,
            name=", ".join(words),
            text=clean_name(words[0] if how == "first" and firsts[clean_name(words[0])] == 1 else ", ".join(words)),
            is_thing=number in things,
            synonyms=words if len(words) > 1 else (),
        )
        for number, words in synonyms.items()
    )


def _synonyms(name: str) -> tuple[str, ...]:
    words = (" ".join(word.split()) for word in plain(name).split(","))
    return tuple(word for word in words if clean_name(word))
