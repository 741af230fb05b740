"""The lock of a benchmark: what it was made of, by which versions, and a hash of what each sample asks.

Nothing in it depends on where files lie, when or on what machine a benchmark was built, or how its shards were cut.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dataengine.errors import UserError
from dataengine.sample import Condition, Object, Prompt, Reference, Sample
from dataengine.store.dataset import Dataset
from dataengine.store.files import Folder

FILE = "benchmark.lock.json"
FORMAT = 1


class LockError(UserError):
    """A lock that is missing, damaged, or does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What identifies a benchmark.

    profile: of its prompts. generator: versions of all that decides what is asked. sources: sha256 of each source file,
    by role, and the categories' hash, by source and split. variants, limit: as it was built. counts: samples, regions
    and prompts. samples: hash of what each sample asks, by its id.
    """

    name: str
    profile: str
    seed: int
    generator: Mapping[str, Any]
    variants: Mapping[str, Any] | None
    limit: int | None
    sources: Mapping[str, Mapping[str, str]]
    counts: Mapping[str, Any]
    samples: Mapping[str, str]

    @property
    def id(self) -> str:
        """Hash of all of it: what predictions name, and results."""
        return _sha256(self._content())[:32]

    def _content(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    def to_json(self) -> str:
        return json.dumps({"lock": self.id, **self._content()}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def make(dataset: Dataset) -> Lock:
    """The lock of a benchmark that was just built, from what stands in it."""
    manifest = dataset.manifest
    samples: dict[str, str] = {}
    counts: Counter[str] = Counter()
    regions: Counter[str] = Counter()
    for sample in dataset.samples():
        samples[sample.sample_id] = digest(sample)
        counts[str(sample.variant)] += 1
        regions[str(sample.variant)] += len(sample.conditions)
    generator = {
        key: value for key, value in manifest["generator"].items() if key not in ("dataengine", "conversation")
    }
    prompts = manifest["recipe"]["prompts"]
    return Lock(
        name=manifest["recipe"]["name"],
        profile="published" if prompts is None else prompts["profile"],
        seed=manifest["seed"],
        generator=generator,
        variants=manifest["recipe"]["variants"],
        limit=manifest["limit"],
        sources={
            key: {**source["inputs"], "categories": _sha256(source["categories"])}
            for key, source in manifest["sources"].items()
        },
        counts={
            "samples": dict(sorted(counts.items())),
            "regions": dict(sorted(regions.items())),
            "objects": manifest["counts"]["objects"],
            "prompts": manifest["counts"]["prompts"],
        },
        samples=samples,
    )


def write(folder: Folder, lock: Lock) -> None:
    """Write the lock into a benchmark's folder, whole or not at all."""
    with folder.staging(FILE) as staged:
        staged.write_text(lock.to_json(), encoding="utf-8")
        folder.publish(staged, FILE)


def read(folder: Folder) -> Lock:
    """The lock of a benchmark.

    Raises:
        LockError: there is none, or it was changed by hand.
    """
    try:
        data = json.loads(folder.read(FILE))
        stated = data.pop("lock")
        made = data.pop("format")
    except FileNotFoundError:
        raise LockError(f"{folder.uri}: no {FILE}; is it a benchmark of `dataengine vgd build`?") from None
    except (ValueError, KeyError, AttributeError):
        raise LockError(f"{folder.uri}: {FILE} is damaged: it is no lock") from None
    if made != FORMAT:
        raise LockError(f"{folder.uri}: {FILE} has format {made}; this version reads format {FORMAT}")
    try:
        lock = Lock(**data)
    except TypeError as error:
        raise LockError(f"{folder.uri}: {FILE} is damaged: {error}") from None
    if lock.id != stated:
        raise LockError(f"{folder.uri}: {FILE} was changed: its content has the hash {lock.id}, not {stated}")
    return lock


# --- hashes ----------------------------------------------------------------------------------------------------------


def digest(sample: Sample) -> str:
    """Hash of what a sample asks and what is right: masks, regions, exemplars, prompts; not its wording or picture."""
    return _sha256(
        [
            [sample.sample_id, sample.variant, sample.image_key, sample.height, sample.width],
            [_object(thing) for thing in sample.objects],
            [_condition(condition) for condition in sample.conditions],
            [_reference(reference) for reference in sample.references],
            _text(sample.ignore),
        ]
    )[:32]


def _object(thing: Object) -> list[Any]:
    return [thing.annotation_id, thing.category_id, thing.crowd, _text(thing.rle), _prompts(thing.prompts)]


def _condition(condition: Condition) -> list[Any]:
    shown = [condition.exemplar, condition.reference, list(condition.shots)]
    return [condition.kind, condition.text, condition.category_id, list(condition.objects), shown]


def _reference(reference: Reference) -> list[Any]:
    facts = [reference.image_key, reference.annotation_id, reference.category_id, reference.height, reference.width]
    return [facts, _text(reference.rle), _prompts(reference.prompts)]


def _prompts(prompts: Sequence[Prompt]) -> list[Any]:
    """Geometry and origin; numbers as a shard holds them, in single precision."""
    return [
        [
            [p.kind, p.profile, p.version, p.status, float(np.float32(p.radius))],
            np.asarray(p.points, dtype=np.float32).tolist(),
            list(p.parts),
            _text(p.rle),
        ]
        for p in prompts
    ]


def _text(rle: bytes | None) -> str | None:
    return None if rle is None else rle.decode("ascii")


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differences(before: Mapping[str, str], now: Iterable[tuple[str, str]]) -> list[str]:
    """What of some samples, by id and hash, is not as a lock has it, in words."""
    return [
        f"{sample}: {'is not in the lock' if sample not in before else 'asks something else than the lock says'}"
        for sample, found in now
        if before.get(sample) != found
    ]
