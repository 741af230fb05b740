"""A caption whose phrases stand for known pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from builders.layouts.picture import Picture, groups
from builders.world import stuff_label
from builders.world_text import counted, joined

MAX_GROUPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrase:
    """A part of a caption, text[start:end], and the labels of what it stands for, one a mask."""

    text: str
    start: int
    end: int
    labels: tuple[int, ...]


def grounded_caption(picture: Picture, purpose: str) -> tuple[str, list[Phrase]]:
    """`Two red rings and a star over grass`: the objects of some groups, counted, and the ground; phrases in order."""
    found = list(groups(picture))
    order = picture.rng(purpose).permutation(len(found))[:MAX_GROUPS].tolist()
    parts = []
    for index in order:
        kind, color, facts = found[index]
        noun = f"{color} {kind.name}", f"{color} {kind.plural}"
        parts.append((counted(len(facts), *noun), tuple(fact.label for fact in facts)))
    ground = [(kind.name, (stuff_label(kind.name),)) for kind, _ in picture.scene.stuff[:2]]
    caption = " over ".join(joined([text for text, _ in some]) for some in (parts, ground) if some)
    caption = caption[:1].upper() + caption[1:]
    phrases, start = [], 0
    for text, labels in (*parts, *ground):
        start = caption.lower().index(text, start)
        phrases.append(
            Phrase(text=caption[start : start + len(text)], start=start, end=start + len(text), labels=labels)
        )
        start += len(text)
    return caption, phrases


def over_two(caption: str, phrases: Sequence[Phrase]) -> list[Phrase]:
    """The phrases, and one from the start of the first to the end of the second, which it overlaps."""
    if len(phrases) < 2:
        return list(phrases)
    first, second = phrases[:2]
    both = Phrase(
        text=caption[first.start : second.end],
        start=first.start,
        end=second.end,
        labels=first.labels + second.labels,
    )
    return [*phrases, both]
