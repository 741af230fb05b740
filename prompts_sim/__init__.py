"""Simulated visual prompts: points, scribbles, boxes and masks, in named and versioned profiles."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dataengine.sample import PROMPT_KINDS, Object, Prompt

if TYPE_CHECKING:
    from dataengine.measure import Objects
    from prompts_sim.shape import Shape

FALLBACK = "strict"  # the profile whose prompts are never missing
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
    fallback: bool = False,
    only: Collection[str] | None = None,
) -> tuple[Object, ...]:
    """The same objects with `prompts` attached, in the order of `kinds`; crowds get none.

    The numbers drawn depend on seed, image, annotation, kind, profile and its version only: not on the other objects,
    their order, or which kinds are asked for. (A `strict` click prefers a place that lies in no other object.)

    Args:
        objects: of one picture, with tight masks. height, width: of the picture, px.
        profile: `published` or `strict`.
        fallback: make the prompts that the profile cannot make by the `strict` one, with the status `fallback`.
        only: annotation ids of the objects to prompt; None for all. The others are still looked at.
    Raises:
        ValueError: no such profile or kind.
        MaskError: see `measure.crops_of`.
    """
    from dataengine.measure import Objects, crops_of
    from prompts_sim.shape import shape_from_crop

    if profile not in VERSIONS:
        raise ValueError(f"no prompt profile {profile!r}; there are {', '.join(VERSIONS)}")
    unknown = set(kinds) - set(PROMPT_KINDS)
    if unknown:
        raise ValueError(f"no kind of prompt {min(unknown)!r}; there are {', '.join(PROMPT_KINDS)}")
    if not objects:
        return ()
    crops = crops_of(objects, height, width)
    together = Objects(crops)
    prompted = []
    for number, thing in enumerate(objects):
        if thing.crowd or (only is not None and thing.annotation_id not in only):
            prompted.append(thing)
            continue
        scene = _Scene(shape_from_crop(crops[number], height, width), together, number)
        key = (image_key, thing.annotation_id)
        prompts = _made(scene, profile, kinds, seed, key)
        missing = [prompt.kind for prompt in prompts if prompt.status == "none"]
        if fallback and missing:
            made = {p.kind: replace(p, status="fallback") for p in _made(scene, FALLBACK, missing, seed, key)}
            prompts = tuple(made.get(prompt.kind, prompt) for prompt in prompts)
        prompted.append(replace(thing, prompts=prompts))
    return tuple(prompted)


@dataclass(frozen=True, slots=True)
class _Scene:
    """An object and all objects of its picture, among which it has the index `own`."""

    shape: Shape
    together: Objects
    own: int


def _made(scene: _Scene, profile: str, kinds: Sequence[str], seed: int, key: tuple[str, str]) -> tuple[Prompt, ...]:
    """One object's prompts by a profile. key: image key and annotation id."""
    from dataengine.measure import measured
    from prompts_sim import published, strict
    from prompts_sim.shape import draws_of

    shape, version = scene.shape, VERSIONS[profile]
    draws = draws_of(seed, (*key, profile, version), PROMPT_KINDS)
    module = {"published": published, "strict": strict}[profile]
    drawn = module.draw(shape, kinds, draws, scene.together, scene.own)
    return measured(drawn, profile, version, shape.height, shape.width, scene.together, scene.own)
