"""What the card of a dataset says, for its text and for croissant.json: counts, names of splits, plain sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dataengine.mixing import is_training
from dataengine.sample import License, Sample
from pipelines import mix
from pipelines.markdown import printable

if TYPE_CHECKING:
    from pipelines.recipe import Recipe

MEANINGS = {
    "genseg": "generic segmentation for a list of categories",
    "ovseg": "open-vocabulary segmentation",
    "refseg": "referring segmentation",
    "grefseg": "referring segmentation of several objects or none",
    "reaseg": "reasoning segmentation",
    "gcgseg": "grounded caption generation",
    "vgdseg": "visual grounded segmentation: all objects of the kinds shown by regions",
    "intseg": "interactive segmentation: the object under each region",
    "chat": "conversation about a picture",
}


@dataclass(slots=True)
class Tally:
    """What a card counts. tasks: by task and variant; splits: by the names they have for `datasets`."""

    tasks: Counter[tuple[str, str]] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)  # by source/split
    urls: dict[str, str] = field(default_factory=dict)  # where each source is published
    licenses: Counter[License] = field(default_factory=Counter)
    origins: Counter[str] = field(default_factory=Counter)  # of masks
    elsewhere: int = 0  # samples whose pictures are named, and not in the files

    def add(self, sample: Sample, split: str) -> None:
        """Count a sample. split: its split's name for `datasets`."""
        self.count(sample.task, sample.variant, sample.source, sample.split, split, 1)
        self.licenses[sample.license] += 1
        self.origins.update(thing.lineage.origin for thing in sample.objects)
        self.elsewhere += sample.image is not None and sample.image.bytes is None
        if sample.provenance.url is not None:
            self.urls[sample.source] = sample.provenance.url

    def count(self, task: str, variant: str | None, source: str, split: str, name: str, number: int) -> None:
        """Count samples by what they are. name: of their split for `datasets`."""
        self.tasks[task, variant or ""] += number
        self.splits[name] += number
        self.sources[f"{source}/{split}"] += number


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a card is written from.

    paths: patterns of each split's files, by its name for `datasets`. bytes: of these files.
    numbers: what `stats` gives, and recipe: what the dataset was built from; for a card beside the shards, else None.
    """

    manifest: Mapping[str, Any]
    tally: Tally
    paths: Mapping[str, tuple[str, ...]]
    bytes: Mapping[str, int]
    numbers: Mapping[str, Any] | None = None
    recipe: Recipe | None = None

    @property
    def total(self) -> int:
        return self.tally.tasks.total()

    @property
    def masks(self) -> int:
        return self.tally.origins.total()


def split_names(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Names of a dataset's splits as `datasets` allows them: letters, digits and `_`; no two the same."""
    splits = sorted({shard["split"] for shard in manifest["shards"]})
    cleaned = {split: re.sub(r"[^A-Za-z0-9_]", "_", split) for split in splits}
    names = {split: name for split, name in cleaned.items() if split == name and name.strip("_") and name != "all"}
    for split in splits:
        if split not in names:
            base = name = cleaned[split] if cleaned[split].strip("_") and cleaned[split] != "all" else "split"
            number = 1
            while name in names.values():
                number += 1
                name = f"{base}_{number}"
            names[split] = name
    return {split: names[split] for split in splits}


def summary(card: Card) -> str:
    """How much it holds of what, in a sentence."""
    return (
        f"{card.total:,} samples with {card.masks:,} masks: pictures, conversations with <p>, <region> and <SEG>, and "
        "what to segment."
    )


def description(card: Card) -> str:
    """What the dataset is, in a few plain sentences."""
    said = printable(card.manifest["recipe"].get("description") or "")
    return f"{said} {summary(card)}".strip()


def collection(card: Card) -> str:
    """Where the records come from."""
    urls = card.tally.urls
    sources = sorted({key.partition("/")[0] for key in card.manifest["sources"]})
    named = (f"{one} ({urls[one]})" if one in urls else one for one in sources)
    return f"Built from the files of {', '.join(named)}; nothing was collected for it."


def simulation(prompts: Mapping[str, Any]) -> str:
    """Where visual prompts come from. prompts: what a manifest says of their generator."""
    made = f"profile {prompts['profile']}, version {prompts['version']}"
    return f"Visual prompts that did not come with their source are simulated by dataengine: {made}."


def account(records: Mapping[str, Any]) -> list[str]:
    """What became of all that was read, a line for each unit."""
    return [f"{unit}: {read} read = {made} built{left}" for unit, read, made, left in units(records, " + ")]


def units(records: Mapping[str, Any], mark: str) -> Iterator[tuple[str, str, str, str]]:
    """Each unit, how many were read and built, and how many not, by reason, each after a mark.

    Which held-out split forbids a picture is in the manifest.
    """
    for unit, read in records["read"].items():
        left = Counter[str]()
        for kind in ("quarantined", "filtered"):
            for reason, number in records[kind].get(unit, {}).items():
                left[f"{kind} ({reason.partition(': ')[0]})"] += number
        text = "".join(f"{mark}{number:,} {reason}" for reason, number in left.items())
        yield unit, f"{read:,}", f"{records['built'].get(unit, 0):,}", text


def limits(card: Card) -> list[str]:
    """What is known to be missing or weak, in plain sentences."""
    manifest, tally = card.manifest, card.tally
    records = manifest["counts"]["records"]
    found = []
    if tally.elsewhere:
        found.append(f"The pictures of {tally.elsewhere:,} samples are named by their paths and are not in the files.")
    if unknown := tally.licenses[License()]:
        found.append(f"No licence is stated for the pictures of {unknown:,} samples.")
    if manifest["limit"] is not None:
        found.append(f"Only the first {manifest['limit']:,} pictures of each split were read.")
    if bad := sum(sum(reasons.values()) for reasons in records["quarantined"].values()):
        found.append(f"{bad:,} records could not be built and are not in it; they are in its quarantine, with reasons.")
    if made := card.masks - tally.origins["human"]:
        found.append(f"{made:,} of {card.masks:,} masks are a model's, or merged with one's, and not a person's.")
    prompts = Counter[str]()
    for name, number in manifest["counts"]["prompts"].items():
        prompts[name.rpartition("/")[2]] += number
    for status, what in (("fallback", "are made by a fallback, not by their profile"), ("none", "could not be made")):
        if prompts[status]:
            found.append(f"{prompts[status]:,} of {prompts.total():,} visual prompts {what}.")
    missing = manifest["forbidden"]["missing"]
    if missing and any(is_training(shard["split"]) for shard in manifest["shards"]):
        found.append(f"Not found when it was built, so that their pictures may be trained on: {', '.join(missing)}.")
    surprises = mix.surprises(manifest["expected"]) if manifest.get("expected") else []
    return found + [f"{line.removeprefix('warning: ')}." for line in surprises]


def citation(card: Card) -> str:
    """A BibTeX entry of the dataset, which names its sources."""
    manifest = card.manifest

    def clean(text: str) -> str:
        return printable(re.sub(r"[{}\\]", " ", text))

    name, version = manifest["recipe"]["name"], manifest["version"]
    sources = sorted({key.partition("/")[0] for key in manifest["sources"]})
    made_of = "; ".join(clean(f"{one} ({card.tally.urls[one]})" if one in card.tally.urls else one) for one in sources)
    lines = [
        f"@misc{{{re.sub(r'[^A-Za-z0-9]+', '-', name)}-{version[:12]},",
        f"  title = {{{clean(name)}}},",
        f"  note = {{Version {version}, built by dataengine {clean(str(manifest['generator']['dataengine']))}}},",
        f"  howpublished = {{Made of {made_of}}},",
        "}",
    ]
    return "\n".join(lines)
