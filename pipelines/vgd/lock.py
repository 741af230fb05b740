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
from dataengine.store.files import Folder
from pipelines.variants import SAME_IMAGE

FILE = "benchmark.lock.json"
FORMAT = 1


class LockError(UserError):
    """A lock that is missing, damaged, or does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What identifies a benchmark.

    profile: of its prompts. generator: versions of all that decides what is asked. sources: sha256 of each source file,
    by role, and the categories' hash, by source and split. variants, limit: as it was built. counts: samples, regions
    and regions of absent categories by variant; objects and their prompts by kind and status. samples: hash of what
    each sample asks, by its id.
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


class Tally:
    """What a lock says of the samples of a benchmark, put together one by one."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}
        self._counts: dict[str, Counter[str]] = {
            name: Counter() for name in ("samples", "regions", "negatives", "objects", "prompts")
        }

    def add(self, sample: Sample) -> None:
        variant = str(sample.variant)
        self.digests[sample.sample_id] = digest(sample)
        self._counts["samples"][variant] += 1
        self._counts["regions"][variant] += len(sample.conditions)
        self._counts["negatives"][variant] += sum(not condition.objects for condition in sample.conditions)
        if variant == SAME_IMAGE:  # the others have the same objects
            self._counts["objects"]["targets"] += sum(not thing.crowd for thing in sample.objects)
            self._counts["objects"]["crowds"] += sum(thing.crowd for thing in sample.objects)
            self._counts["prompts"].update(f"{p.kind}/{p.status}" for thing in sample.objects for p in thing.prompts)

    def counts(self) -> dict[str, dict[str, int]]:
        """Numbers by variant; of objects and their prompts, those of the pictures."""
        return {name: dict(sorted(found.items())) for name, found in self._counts.items()}


def make(manifest: Mapping[str, Any], tally: Tally) -> Lock:
    """The lock of a benchmark that was just built. manifest: of its dataset. tally: of all its samples."""
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
        counts=tally.counts(),
        samples=tally.digests,
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
        raise LockError(
            f"{folder.uri}: no {FILE}; a folder becomes a benchmark by `dataengine vgd build`, and one whose build was "
            "stopped by the same command with --resume"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
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
    """Geometry and origin; numbers as a shard holds them, in single precision, little-endian."""
    return [
        [p.kind, p.profile, p.version, p.status, _hex([p.radius]), _hex(p.points), list(p.parts), _text(p.rle)]
        for p in prompts
    ]


def _hex(numbers: Sequence[float]) -> str:
    return np.array(numbers, dtype="<f4").tobytes().hex()


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
