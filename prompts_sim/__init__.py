"""Simulated visual prompts: points, scribbles, boxes and masks, in named and versioned profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dataengine.keyed import keyed
from dataengine.sample import PROMPT_KINDS, Object

VERSIONS = {"published": 1}


def simulate(
    objects: Sequence[Object],
    height: int,
    width: int,
    *,
    profile: str,
    seed: int,
    image_key: str,
    kinds: Sequence[str] = PROMPT_KINDS,
) -> tuple[Object, ...]:
    """The same objects with `prompts` attached, in the order of `kinds`; crowds get none.

    Raises:
        ValueError: no such profile.
    """
    from prompts_sim import published

    if profile not in VERSIONS:
        raise ValueError(f"no prompt profile {profile!r}; there are {', '.join(VERSIONS)}")
    prompted = []
    for thing in objects:
        if thing.crowd:
            prompted.append(thing)
            continue
        shape = published.shape_from_rle(thing.rle, height, width)
        made = {}
        for kind in kinds:
            draws = published.KeyedDraws(keyed(seed, image_key, thing.annotation_id, kind, profile, VERSIONS[profile]))
            if kind == "mask":
                made[kind] = published.mask_prompt(shape)
            else:
                make = {
                    "point": published.point_prompt,
                    "scribble": published.scribble_prompt,
                    "box": published.box_prompt,
                }[kind]
                made[kind] = make(shape, draws)
        prompted.append(replace(thing, prompts=tuple(made.values())))
    return tuple(prompted)
