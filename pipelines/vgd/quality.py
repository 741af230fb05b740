"""`vgd quality`: how good the prompts of a benchmark are, and those of the other profile on the same objects.

Objects are those of pictures drawn at random. Figures are measured on rendered prompts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dataengine.errors import UserError
from dataengine.keyed import keyed
from dataengine.prompts import render
from dataengine.sample import PROMPT_KINDS, Object, Prompt, Sample
from dataengine.store.dataset import open_dataset
from pipelines.vgd import lock as locks
from pipelines.vgd.benchmark import SIZES, is_ambiguous, size_of
from pipelines.vgd.lock import Lock

OBJECTS = 2000
ALL = "all"  # sizes together


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A prompt of an object and its figures. ratio: pixels of the rendered prompt to those of the object."""

    kind: str
    size: str
    status: str
    inside: float
    other: float
    ratio: float
    ambiguous: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An object and its picture; prompts: by profile and kind."""

    sample: Sample
    thing: Object
    size: str
    prompts: Mapping[str, Mapping[str, Prompt]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The prompts of some pictures' objects by profile, the benchmark's own first, and an object of each size."""

    lock: Lock
    pictures: int
    objects: int
    measured: Mapping[str, Sequence[Measured]]
    examples: Sequence[Example]

    def to_json(self) -> dict[str, Any]:
        """Shares are 0 to 1; what no prompt has is null."""
        tables = {
            profile: {
                kind: {
                    size: figures([m for m in found if m.kind == kind and size in (ALL, m.size)])
                    for size in (ALL, *SIZES)
                }
                for kind in PROMPT_KINDS
            }
            for profile, found in self.measured.items()
        }
        return {
            "lock": self.lock.id,
            "name": self.lock.name,
            "profile": self.lock.profile,
            "pictures": self.pictures,
            "objects": self.objects,
            "profiles": tables,
        }


def examine(uri: str, *, objects: int = OBJECTS, seed: int = 0) -> Quality:
    """Measure the prompts of about that many objects, in pictures drawn at random.

    Raises:
        LockError, DatasetError: it is no benchmark that can be trusted. UserError: it has no sample.
    """
    dataset = open_dataset(uri)
    lock = locks.read(dataset.folder)
    chosen = _chosen(lock, objects, seed)
    other = "strict" if lock.profile == "published" else "published"
    measured: dict[str, list[Measured]] = {lock.profile: [], other: []}
    examples: dict[str, Example] = {}
    pictures = number = 0
    for sample in dataset.samples():
        if sample.sample_id not in chosen:
            continue
        pictures += 1
        again = _simulated(sample, other, lock.seed)
        for own, new in zip(sample.objects, again, strict=True):
            if own.crowd:
                continue
            number += 1
            prompts = {lock.profile: own.prompts, other: new.prompts}
            for profile, made in prompts.items():
                measured[profile] += _measured(own, made, sample)
            _keep(examples, sample, own, prompts)
    return Quality(
        lock=lock,
        pictures=pictures,
        objects=number,
        measured=measured,
        examples=[examples[size] for size in SIZES if size in examples],
    )


def _chosen(lock: Lock, objects: int, seed: int) -> set[str]:
    """Samples of as many pictures as hold about that many objects."""
    names = sorted(name for name in lock.samples if name.rpartition("/")[2] not in lock.counts["samples"])
    total = lock.counts["objects"].get("targets", 0)
    if not names or not total:
        raise UserError(f"{lock.name}: the benchmark holds no object")
    number = min(len(names), math.ceil(objects * len(names) / total))
    drawn = keyed(seed, "quality", lock.id).choice(len(names), number, replace=False)
    return {names[i] for i in drawn.tolist()}


def _simulated(sample: Sample, profile: str, seed: int) -> Sequence[Object]:
    from prompts_sim import simulate

    return simulate(
        [replace(thing, prompts=()) for thing in sample.objects],
        sample.height,
        sample.width,
        profile=profile,
        seed=seed,
        image_key=sample.image_key,
        fallback=True,
    )


def _measured(thing: Object, prompts: Sequence[Prompt], sample: Sample) -> Iterator[Measured]:
    for prompt in prompts:
        drawn = render(prompt, sample.height, sample.width)
        yield Measured(
            kind=prompt.kind,
            size=size_of(thing.area),
            status=prompt.status,
            inside=prompt.inside,
            other=prompt.other,
            ratio=0.0 if drawn is None else np.count_nonzero(drawn.mask) / thing.area,
            ambiguous=is_ambiguous(prompt),
        )


TYPICAL = {"small": 16**2, "medium": 56**2, "large": 160**2}  # px: what the example of a size is close to


def _keep(examples: dict[str, Example], sample: Sample, thing: Object, prompts: Mapping[str, Sequence[Prompt]]) -> None:
    """Make an object the example of its size where it is closer to the typical area than the one so far."""
    size = size_of(thing.area)
    if sample.image is None or (size in examples and _oddness(thing, size) >= _oddness(examples[size].thing, size)):
        return
    made: dict[str, Mapping[str, Prompt]]
    made = {profile: {prompt.kind: prompt for prompt in found} for profile, found in prompts.items()}
    examples[size] = Example(sample=sample, thing=thing, size=size, prompts=made)


def _oddness(thing: Object, size: str) -> float:
    """How far an object is from a typical one: in area, and in filling its box."""
    return abs(math.log(thing.area / TYPICAL[size])) + abs(math.log(thing.area / (thing.bbox[2] * thing.bbox[3]) / 0.6))


def figures(found: Sequence[Measured]) -> dict[str, Any]:
    """Numbers of some prompts.

    missing, fallback: shares of all. The others are of those that the profile made: inside, other, ratio as mean and
    quantiles; ambiguous, mostly_outside (inside below one half): shares.
    """
    made = [m for m in found if m.status == "ok"]
    return {
        "objects": len(found),
        "missing": _share(m.status == "none" for m in found),
        "fallback": _share(m.status == "fallback" for m in found),
        "inside": _spread([m.inside for m in made]),
        "other": _spread([m.other for m in made]),
        "ratio": _spread([m.ratio for m in made]),
        "ambiguous": _share(m.ambiguous for m in made),
        "mostly_outside": _share(m.inside < 0.5 for m in made),
    }


def _share(values: Iterator[bool]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
    return {"mean": float(np.mean(values)), "p5": low, "median": middle, "p95": high}


def write(quality: Quality, out: Path) -> None:
    """Write `quality.json`, `prompts.png` and `distributions.png` into a local folder."""
    from pipelines.vgd import quality_pictures

    out.mkdir(parents=True, exist_ok=True)
    (out / "quality.json").write_text(json.dumps(quality.to_json(), indent=1) + "\n", encoding="utf-8")
    quality_pictures.draw_examples(quality, out / "prompts.png")
    quality_pictures.draw_distributions(quality, out / "distributions.png")


def summary(quality: Quality) -> str:
    """The most important figures as a table of text."""
    lines = [
        f"{quality.lock.name}: {quality.objects:,} objects of {quality.pictures:,} pictures",
        "medians of those that the profile made; odd: share of prompts that are missing or a fallback",
        f"{'':<20}{'size':<8}{'objects':>8}{'odd':>8}{'inside':>9}{'outside':>9}{'ambiguous':>11}{'size ratio':>12}",
        f"{'':<36}{'':>8}{'':>9}{'> half':>9}",
    ]
    for profile, kinds in quality.to_json()["profiles"].items():
        for kind, sizes in kinds.items():
            for size, found in sizes.items():
                if found["objects"]:
                    lines.append(f"{profile + ' ' + kind:<20}{size:<8}{_row(found)}")
    return "\n".join(lines)


def _row(found: Mapping[str, Any]) -> str:
    odd = found["missing"] + found["fallback"]
    if found["inside"] is None:
        return f"{found['objects']:>8,}{odd:>8.1%}"
    return (
        f"{found['objects']:>8,}{odd:>8.1%}{found['inside']['median']:>9.2f}{found['mostly_outside']:>9.1%}"
        f"{found['ambiguous']:>11.1%}{found['ratio']['median']:>12.2f}"
    )
