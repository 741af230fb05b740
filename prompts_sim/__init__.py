"""Simulated visual prompts: points, scribbles, boxes and masks, in named and versioned profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dataengine.sample import PROMPT_KINDS, Object

VERSIONS = {"published": 1, "strict": 1}


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

    The numbers drawn depend on seed, image, annotation, kind, profile and its version only: not on the other objects,
    their order, or which kinds are asked for. (A `strict` click prefers a place that lies in no other object.)

    Args:
        objects: of one picture, with tight masks. height, width: of the picture, px.
        profile: `published` or `strict`.
    Raises:
        ValueError: no such profile or kind.
        MaskError: a mask is malformed or empty.
    """
    from dataengine import masks
    from dataengine.measure import Objects, measured
    from prompts_sim import published, strict
    from prompts_sim.shape import draws_of, shape_from_crop

    if profile not in VERSIONS:
        raise ValueError(f"no prompt profile {profile!r}; there are {', '.join(VERSIONS)}")
    unknown = set(kinds) - set(PROMPT_KINDS)
    if unknown:
        raise ValueError(f"no kind of prompt {min(unknown)!r}; there are {', '.join(PROMPT_KINDS)}")
    module = {"published": published, "strict": strict}[profile]
    if not objects:
        return ()
    crops = [masks.crop_from_rle(thing.rle, height, width) for thing in objects]
    together = Objects(crops)
    prompted = []
    for number, thing in enumerate(objects):
        if thing.crowd:
            prompted.append(thing)
            continue
        shape = shape_from_crop(crops[number], height, width)
        key = (image_key, thing.annotation_id, profile, VERSIONS[profile])
        draws = draws_of(seed, key, PROMPT_KINDS)
        made = module.draw(shape, kinds, draws, together, number)
        prompts = measured(made, profile, VERSIONS[profile], height, width, together, number)
        prompted.append(replace(thing, prompts=prompts))
    return tuple(prompted)
