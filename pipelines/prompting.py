"""Visual prompts for the samples of one picture: simulated once, or brought, then exemplars chosen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from dataengine.keyed import keyed
from dataengine.sample import Condition, Object, Sample
from pipelines.recipe import PromptSpec

VERSION = 1  # of the choice of exemplars


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompted:
    """Samples with prompts and exemplars; what was left out because no object of it could be prompted."""

    samples: tuple[Sample, ...]
    conditions: int
    dropped: int


def attach(samples: Sequence[Sample], spec: PromptSpec | None, seed: int) -> Prompted:
    """Simulate prompts for the objects of those samples of one picture that show regions, and choose the exemplars.

    Objects that come with prompts keep them. A region condition whose objects have no prompt cannot be shown and is
    left out; a sample that loses all its conditions too. Samples without regions stay as they are.

    Args:
        spec: which prompts to simulate; None for none.
    """
    by_id = {thing.annotation_id: thing for sample in samples for thing in sample.objects}
    if (
        spec is not None
        and any(map(shows_regions, samples))
        and not all(thing.prompts or thing.crowd for thing in by_id.values())
    ):
        by_id = {thing.annotation_id: thing for thing in simulated(list(by_id.values()), samples[0], spec, seed)}
    kept = []
    for sample in samples:
        if not shows_regions(sample):
            kept.append(sample)
            continue
        things = tuple(by_id[thing.annotation_id] for thing in sample.objects)
        chosen = (_with_exemplar(c, things, sample, seed) for c in sample.conditions)
        conditions = tuple(c for c in chosen if c is not None)
        if conditions:
            kept.append(replace(sample, objects=things, conditions=conditions))
    read = sum(len(sample.conditions) for sample in samples)
    built = sum(len(sample.conditions) for sample in kept)
    return Prompted(samples=tuple(kept), conditions=built, dropped=read - built)


def shows_regions(sample: Sample) -> bool:
    """Whether a condition of the sample is shown by a visual prompt."""
    return any(condition.kind == "region" for condition in sample.conditions)


def simulated(
    objects: Sequence[Object],
    sample: Sample,
    spec: PromptSpec | None,
    seed: int,
    only: Collection[str] | None = None,
) -> Sequence[Object]:
    """Objects of a picture with their prompts; those that have some keep them.

    Args:
        objects: all of the picture, because a prompt's figures look at the others. sample: one of the picture.
        only: annotation ids of those that are to be prompted; None for all.
    """
    from prompts_sim import simulate

    if spec is None:
        return objects
    made = simulate(
        objects,
        sample.height,
        sample.width,
        profile=spec.profile,
        seed=seed,
        image_key=sample.image_key,
        kinds=spec.kinds,
        fallback=spec.fallback,
        only=only,
    )
    return [own if own.prompts else new for own, new in zip(objects, made, strict=True)]


def _with_exemplar(condition: Condition, objects: Sequence[Object], sample: Sample, seed: int) -> Condition | None:
    """The condition with its exemplar: one of its objects, drawn among those for which most kinds of prompt exist."""
    if condition.kind != "region":
        return condition
    candidates = condition.objects if condition.exemplar < 0 else (condition.exemplar,)
    usable = {i: sum(p.status != "none" for p in objects[i].prompts) for i in candidates}
    most = max(usable.values(), default=0)
    if not most:
        return None
    best = [i for i, number in usable.items() if number == most]
    if len(best) > 1:
        rng = keyed(seed, sample.image_key, "exemplar", condition.category_id, VERSION)
        best = [best[int(rng.integers(len(best)))]]
    return replace(condition, exemplar=best[0])
