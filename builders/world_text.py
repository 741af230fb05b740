"""Says true things about a scene: captions, and expressions that denote exactly one of its objects.

What the words mean, on what is published (visible pixels): `area` is an object's area, (cx, cy) the middle of its bbox
[x0, y0, x1, y1], the picture W x H. Objects are the annotations that are no crowd. A noun is a kind ("ring"), a color
and a kind ("red ring"), or "shape", which every object is ("shape", "red shape").

- `the NOUN`: the only object that is one.
- `the largest NOUN`, `the smallest NOUN`: of several, its area is at least 1.3 times (at most 1/1.3 of) every other's.
- `the leftmost NOUN` (rightmost, topmost, bottommost): of several, cx (cy) is beyond every other's by at least 5 % of
  W (H).
- `the NOUN at the top` (at the bottom, on the left, on the right): the only one with its middle in that third.
- `the NOUN left of the ANCHOR`: the anchor is a noun that is true of one object only; the only NOUN besides it with cx
  below the anchor's x0 (right of: above x1; above: cy below y0; below: cy above y1).

Where a picture has a crowd, its kind and the noun "shape" are not used: its members would be meant too.
Captions count objects by color and kind, by kind, or all of them; counts are exact, though some groups may be left
out. `over A and B` names the one or two stuff regions with the most visible pixels, largest first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from builders.world import Fact, Kind, Scene

MARGIN_AREA = 1.3
MARGIN_PLACE = 0.05
MAX_REFS = 8  # objects of a picture that are referred to
MAX_SENTENCES = 3  # of an object
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An object and expressions that denote it and nothing else."""

    label: int
    sentences: tuple[str, ...]


# --- expressions -----------------------------------------------------------------------------------------------------


def references(scene: Scene, rng: np.random.Generator) -> list[Reference]:
    """Expressions for some of the objects, of different forms where an object has several."""
    objects = [fact for fact in scene.facts if not fact.crowd]
    height, width = scene.labels.shape
    crowds = {fact.kind.name for fact in scene.facts if fact.crowd}
    found: dict[int, dict[str, list[str]]] = {}
    for form, text, fact in _expressions(objects, crowds, width, height):
        found.setdefault(fact.label, {}).setdefault(form, []).append(text)
    chosen = []
    for label in rng.permutation(sorted(found))[:MAX_REFS].tolist():
        forms = found[label]
        names = rng.permutation(sorted(forms))[:MAX_SENTENCES].tolist()
        chosen.append(Reference(label=label, sentences=tuple(forms[n][rng.integers(len(forms[n]))] for n in names)))
    return chosen


def _expressions(objects: Sequence[Fact], crowds: set[str], width: int, height: int) -> Iterator[tuple[str, str, Fact]]:
    """Every expression of the grammar that is true of one object: its form, its text, the object."""
    nouns = _nouns(objects, crowds)
    unique = [(noun, members[0]) for noun, members in nouns.items() if len(members) == 1]
    for noun, fact in unique:
        yield "noun", f"the {noun}", fact
    for noun, members in nouns.items():
        yield from _in_third(noun, members, width, height)
        if len(members) > 1:
            yield from _superlatives(noun, members, width, height)
            for anchor_noun, anchor in unique:
                yield from _relations(noun, members, anchor_noun, anchor)


def _nouns(objects: Sequence[Fact], crowds: set[str]) -> dict[str, list[Fact]]:
    nouns: dict[str, list[Fact]] = {}
    for fact in objects:
        words = [] if fact.kind.name in crowds else [fact.kind.name]
        words += [] if crowds else ["shape"]
        for word in words:
            nouns.setdefault(word, []).append(fact)
            nouns.setdefault(f"{fact.color} {word}", []).append(fact)
    return nouns


def _middle(fact: Fact) -> tuple[float, float]:
    x, y, w, h = fact.bbox
    return x + w / 2, y + h / 2


def _superlatives(noun: str, members: list[Fact], width: int, height: int) -> Iterator[tuple[str, str, Fact]]:
    by_area = sorted(members, key=lambda fact: fact.area)
    if by_area[-1].area >= MARGIN_AREA * by_area[-2].area:
        yield "size", f"the largest {noun}", by_area[-1]
    if by_area[1].area >= MARGIN_AREA * by_area[0].area:
        yield "size", f"the smallest {noun}", by_area[0]
    for axis, length, low, high in ((0, width, "leftmost", "rightmost"), (1, height, "topmost", "bottommost")):
        places = sorted(members, key=lambda fact: _middle(fact)[axis])
        at = [_middle(fact)[axis] for fact in places]
        if at[1] - at[0] >= MARGIN_PLACE * length:
            yield "extreme", f"the {low} {noun}", places[0]
        if at[-1] - at[-2] >= MARGIN_PLACE * length:
            yield "extreme", f"the {high} {noun}", places[-1]


def _in_third(noun: str, members: list[Fact], width: int, height: int) -> Iterator[tuple[str, str, Fact]]:
    middles = [_middle(fact) for fact in members]
    thirds = {
        "on the left": [3 * x < width for x, _ in middles],
        "on the right": [3 * x > 2 * width for x, _ in middles],
        "at the top": [3 * y < height for _, y in middles],
        "at the bottom": [3 * y > 2 * height for _, y in middles],
    }
    for words, inside in thirds.items():
        if sum(inside) == 1:
            yield "third", f"the {noun} {words}", members[inside.index(True)]


def _relations(noun: str, members: list[Fact], anchor_noun: str, anchor: Fact) -> Iterator[tuple[str, str, Fact]]:
    x0, y0, w, h = anchor.bbox
    others = [(fact, *_middle(fact)) for fact in members if fact is not anchor]
    for words, hits in (
        ("left of", [fact for fact, x, _ in others if x < x0]),
        ("right of", [fact for fact, x, _ in others if x > x0 + w]),
        ("above", [fact for fact, _, y in others if y < y0]),
        ("below", [fact for fact, _, y in others if y > y0 + h]),
    ):
        if len(hits) == 1:
            yield "relation", f"the {noun} {words} the {anchor_noun}", hits[0]


# --- captions --------------------------------------------------------------------------------------------------------


def captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Three captions: objects by color and kind, by kind, and all in all."""
    place = joined([kind.name for kind, _ in scene.stuff[:2]])
    objects = [fact for fact in scene.facts if not fact.crowd]
    crowds = [fact.kind for fact in scene.facts if fact.crowd]
    if not objects and not crowds:
        return [f"an empty scene of {place}", f"{place} and nothing else", f"a view of {place} without any shape"]
    countable = [fact for fact in objects if fact.kind not in crowds]
    tail = [f"a crowd of {kind.plural}" for kind in crowds]
    detailed = Counter((fact.kind, f"{fact.color} ") for fact in countable)
    plain = Counter((fact.kind, "") for fact in countable)
    total = [counted(len(objects), "shape", "shapes")] if objects else []
    return [
        f"{joined(_some(detailed, rng) + tail)} over {place}",
        f"a scene of {place} with {joined(_some(plain, rng) + tail)}",
        f"{joined(total + tail)} over {place}",
    ]


def scene_name(scene: Scene) -> str:
    """What kind of place it is, in one word."""
    there = {kind.name for kind, _ in scene.stuff}
    if "sky" not in there:
        return "aerial_view"
    return "highway" if "road" in there else "coast" if "water" in there else "landscape"


def _some(groups: Counter[tuple[Kind, str]], rng: np.random.Generator) -> list[str]:
    """Up to five groups in random order, counted."""
    keys = sorted(groups, key=lambda key: (key[0].id, key[1]))
    order: Callable[[int], np.ndarray] = rng.permutation
    chosen = [keys[i] for i in order(len(keys))[:5].tolist()]
    return [counted(groups[key], key[1] + key[0].name, key[1] + key[0].plural) for key in chosen]


def counted(number: int, singular: str, plural: str) -> str:
    if number == 1:
        return f"{'an' if singular[0] in 'aeiou' else 'a'} {singular}"
    return f"{NUMBERS[number] if number < len(NUMBERS) else number} {plural}"


def joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
