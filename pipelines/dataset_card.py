"""`card`: README.md and croissant.json of a finished dataset, written beside its manifest.

What they say is counted in the manifest and in the shards, of which no picture is read.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

from dataengine.errors import UserError
from dataengine.sample import License
from dataengine.store.commits import MANIFEST, PLAN, DatasetError
from dataengine.store.dataset import Dataset, open_dataset
from dataengine.store.files import Folder, Stored
from pipelines import card_facts, card_text, croissant, plan, stats
from pipelines.card_facts import MEANINGS, Card, Tally, split_names
from pipelines.croissant import About

README = "README.md"
COLUMNS = (
    "task",
    "variant",
    "source",
    "split",
    "image.path",
    "license",
    "provenance.url",
    "objects.list.element.lineage.origin",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written. files: where. missing: what Croissant asks for, and neither the dataset nor anybody says."""

    files: tuple[str, ...]
    missing: tuple[str, ...]


def write(uri: str, *, out: str | None = None, force: bool = False, about: About | None = None) -> Written:
    """Write the card of a finished dataset; once more over its own.

    Args:
        out: another local folder than the dataset's. force: write over files that are not ours.
        about: what only a publisher knows. Without a day of publication, it is the day the manifest was written.
    Raises:
        DatasetError: it is not finished, or damaged. UserError: a file of somebody else stands there, or `about` cannot
            be used. OSError: it cannot be read or written.
    """
    about = _checked(about or About())
    if out is not None and "://" in out:
        raise UserError(f"--out {out}: cards are written to a local folder, or beside the dataset")
    dataset = open_dataset(uri)
    target = dataset.folder if out is None else Folder(out)
    if not force:
        _refuse_foreign(target)
    card = card_of(dataset)
    if about.published is None:
        about = replace(about, published=_day_of(dataset.folder))
    files = {
        README: card_text.text(card).encode("utf-8"),
        croissant.FILE: croissant.to_bytes(_description(dataset, card, about)),
    }
    target.make()
    for name, data in files.items():
        target.replace(name, data)
    return Written(files=tuple((target / name).uri for name in files), missing=tuple(about.missing()))


def card_of(dataset: Dataset) -> Card:
    """What the card of a dataset is written from.

    Raises:
        DatasetError: it holds no samples, as what is left of a replay may not.
    """
    if not dataset.manifest["shards"]:
        raise DatasetError(f"{dataset.folder.uri}: holds no samples; there is nothing to write a card of")
    sizes, names = Counter[str](), split_names(dataset.manifest)
    for shard in dataset.manifest["shards"]:
        sizes[names[shard["split"]]] += shard["bytes"]
    with dataset.folder.open(PLAN) as file:
        recipe = plan.recipe_of(file)
    return Card(
        manifest=dataset.manifest,
        tally=tally_of(dataset),
        paths=shard_patterns(dataset.manifest),
        bytes=sizes,
        numbers=stats.stats(dataset.folder.uri),
        recipe=recipe,
    )


def _checked(about: About) -> About:
    if about.url is not None and not re.fullmatch(r"https?://[^\s<>\"{}|\\^`]+", about.url):
        raise UserError(f"--url {about.url}: an address that starts with http:// or https:// is needed")
    if about.published is not None:
        try:
            date.fromisoformat(about.published)
        except ValueError:
            raise UserError(f"--published {about.published}: a day is needed, as 2026-01-31") from None
    return about


def _refuse_foreign(target: Folder) -> None:
    """Raise UserError where a file that is not ours would be written over."""
    known = {README: card_text.is_ours, croissant.FILE: croissant.is_ours}
    for name, is_ours in known.items():
        kind = target.kind(name)
        if kind is not None and (kind != "file" or not is_ours(target.read(name))):
            raise UserError(
                f"{target.uri}: there is a {name} that `card` did not write, or that somebody keeps; choose another "
                "--out, or --force to write over it"
            )


def _day_of(folder: Folder) -> str | None:
    """The day on which the manifest was written, by the store's clock (UTC), where it has one."""
    seconds = folder.times().get(MANIFEST)
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _description(dataset: Dataset, card: Card, about: About) -> dict[str, Any]:
    manifest, data = card.manifest, dataset.folder.read(MANIFEST)
    tasks = sorted({task for task, _ in card.tally.tasks})
    prompts = manifest["generator"].get("prompts")
    return croissant.document(
        manifest,
        Stored(name=MANIFEST, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()),
        about=about,
        licenses=sorted(card.tally.licenses, key=str),
        splits=_by_split(card),
        description=card_facts.description(card),
        citation=card_facts.citation(card),
        facts={
            "dataLimitations": card_facts.limits(card),
            "dataUseCases": [f"Training and evaluation: {MEANINGS.get(task, task)}." for task in tasks],
            "dataCollection": [card_facts.collection(card)],
            "dataPreprocessingProtocol": card_facts.account(manifest["counts"]["records"]),
            "machineAnnotationTools": [card_facts.simulation(prompts)] if prompts else [],
        },
    )


def _by_split(card: Card) -> dict[str, int]:
    """Samples of each split, by the name that it has in the rows."""
    names = split_names(card.manifest)
    return {split: card.tally.splits[name] for split, name in names.items()}


def tally_of(dataset: Dataset) -> Tally:
    """The tally of a finished dataset; no picture is read."""
    import pyarrow.compute as pc

    tally, names = Tally(), split_names(dataset.manifest)
    referring = {key for key, source in dataset.manifest["sources"].items() if by_reference(source)}
    keys = ["task", "variant", "source", "split", "license.name", "license.url", "provenance.url", "named"]
    for whole in dataset.tables(COLUMNS):
        origins = whole.column("objects").combine_chunks().flatten().field("lineage").field("origin")
        tally.origins.update({row["values"]: row["counts"] for row in pc.value_counts(origins).to_pylist()})
        flat = whole.drop_columns(["objects"]).flatten()
        flat = flat.append_column("named", pc.is_valid(flat.column("image.path")))
        for row in flat.group_by(keys, use_threads=False).aggregate([([], "count_all")]).to_pylist():
            source, split, number = row["source"], row["split"], row["count_all"]
            if split not in names:
                raise DatasetError(
                    f"{dataset.folder.uri}: {MANIFEST} does not know the split {split!r} of {number} rows"
                )
            tally.count(row["task"], row["variant"], source, split, names[split], number)
            tally.licenses[License(name=row["license.name"], url=row["license.url"])] += number
            tally.elsewhere += number if row["named"] and f"{source}/{split}" in referring else 0
            if row["provenance.url"] is not None:
                tally.urls[source] = row["provenance.url"]
    return tally


def by_reference(source: Mapping[str, Any]) -> bool:
    """Whether samples of a manifest's source name their pictures, and do not hold them."""
    return bool(source["options"].get("images") == "reference")


def shard_patterns(manifest: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Patterns of the shards of each split, by its name for `datasets`; they match no other split's."""
    names, found = split_names(manifest), dict[str, dict[str, None]]()
    for shard in manifest["shards"]:
        match = re.fullmatch(r"(.*-)(\d+)(-of-)(\d+)(\.parquet)", shard["name"])
        pattern = glob.escape(shard["name"])
        if match is not None:
            pattern = f"{glob.escape(match[1])}{'?' * len(match[2])}-of-{'?' * len(match[4])}.parquet"
        found.setdefault(names[shard["split"]], {})[pattern] = None
    return {name: tuple(patterns) for name, patterns in found.items()}
