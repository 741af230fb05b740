"""The card of a dataset: YAML for the Hugging Face hub, then what it holds, how it was made, and its licences.

Written beside shards by `card`, and into a repository by `export --to hub`. Counts are the manifest's and the shards'.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dataengine.sample import License, Sample
from pipelines import mix
from pipelines.markdown import address, block, code, is_address, plain, printable, table
from pipelines.roles import is_training

if TYPE_CHECKING:
    from pipelines.recipe import Recipe

MARK = "<!-- Written by `dataengine card`, which writes it again. Delete this line to keep changes of your own. -->"
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
LICENSES = (  # of the hub, by what names and URLs of licences hold
    (r"publicdomain/zero|cc0", "cc0-1.0"),
    (r"by-nc-sa/(\d\.\d)", "cc-by-nc-sa-{}"),
    (r"by-nc-nd/(\d\.\d)", "cc-by-nc-nd-{}"),
    (r"by-nc/(\d\.\d)", "cc-by-nc-{}"),
    (r"by-sa/(\d\.\d)", "cc-by-sa-{}"),
    (r"by-nd/(\d\.\d)", "cc-by-nd-{}"),
    (r"licenses/by/(\d\.\d)", "cc-by-{}"),
    (r"apache.*2\.0", "apache-2.0"),
)
SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
    (10**10, "1B<n<10B"),
)
FREQUENT = 12  # categories of a source that a card names


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


def is_ours(data: bytes) -> bool:
    """Whether a file is a card that nobody claimed since it was written."""
    return MARK.encode() in data.splitlines()


def text(card: Card) -> str:
    """The card as Markdown."""
    import yaml

    head = yaml.safe_dump(_head(card), sort_keys=False, allow_unicode=True, width=1000)
    parts = (_title, _contents, _prompts, _loading, _making, _splits, _licenses, _limits, _citing)
    mark = [] if card.recipe is None else [MARK]
    return "\n".join(["---", head.rstrip(), "---", *mark, "", *(line for part in parts for line in part(card))])


# --- for the hub -----------------------------------------------------------------------------------------------------


def _head(card: Card) -> dict[str, Any]:
    kinds = sorted({task for task, _ in card.tally.tasks})
    categories = ["image-segmentation", "mask-generation"] if set(kinds) - {"chat"} else []
    return {
        "pretty_name": printable(card.manifest["recipe"]["name"]),
        **_license_head(card.tally.licenses),
        "task_categories": [*categories, "image-text-to-text"],
        "size_categories": [next((name for most, name in SIZES if card.total < most), "n>1T")],
        "tags": ["segmentation", "dataengine", *(printable(kind) for kind in kinds)],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": name, "path": paths[0] if len(paths) == 1 else list(paths)}
                    for name, paths in card.paths.items()
                ],
            }
        ],
    }


def _license_head(licenses: Iterable[License]) -> dict[str, Any]:
    found = {one: identifier(one.name, one.url) for one in licenses}
    names = sorted(set(found.values()))
    head: dict[str, Any] = {"license": names if len(names) > 1 else names[0]}
    other = [one for one, name in found.items() if name == "other"]
    if names == ["other"]:
        slug = re.sub(r"[^a-z0-9.]+", "-", (other[0].name or "").lower()).strip("-.")[:64]
        head["license_name"] = slug if len(other) == 1 and slug else "see-licences-below"
        if len(other) == 1 and is_address(other[0].url or ""):
            head["license_link"] = other[0].url
    return head


def identifier(name: str | None, url: str | None) -> str:
    """A licence as the hub names it; `unknown` where the source gives none, `other` where the hub has no name."""
    if name is None and url is None:
        return "unknown"
    said = f"{name or ''} {url or ''}".lower()
    for pattern, known in LICENSES:
        if match := re.search(pattern, said):
            return known.format(*match.groups())
    return "other"


# --- for people ------------------------------------------------------------------------------------------------------


def _title(card: Card) -> Iterator[str]:
    recipe = card.manifest["recipe"]
    yield from (f"# {plain(recipe['name'])}", "")
    if recipe.get("description"):
        yield from (plain(recipe["description"]), "")
    yield from (plain(_summary(card)), "")


def _summary(card: Card) -> str:
    return (
        f"{card.total:,} samples with {card.masks:,} masks: pictures, conversations with <p>, <region> and <SEG>, and "
        "what to segment."
    )


def description(card: Card) -> str:
    """What the dataset is, in a few plain sentences."""
    said = printable(card.manifest["recipe"].get("description") or "")
    return f"{said} {_summary(card)}".strip()


def _contents(card: Card) -> Iterator[str]:
    tally = card.tally
    yield "## Contents"
    yield from table(
        ("task", "meaning", "samples"),
        [
            (plain(f"{task} {variant}"), MEANINGS.get(task, ""), f"{number:,}")
            for (task, variant), number in sorted(tally.tasks.items())
        ],
    )
    yield from table(
        ("split", "samples", "files, MB"),
        [(plain(name), f"{tally.splits[name]:,}", f"{card.bytes[name] / 1e6:,.1f}") for name in card.paths],
    )
    if card.numbers is not None:
        yield from _numbers(card.numbers)


def _numbers(numbers: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (f"{name} of a sample", f"{value['mean']:,.1f}", *(f"{value['quantiles'][q]:,}" for q in ("0.5", "0.95", "1")))
        for name, value in numbers["per_sample"].items()
        if value["count"]
    ]
    area = numbers["mask_area_px"]
    if area["count"]:
        rows.append(
            ("pixels of a mask", f"{area['mean']:,.0f}", *(f"{area['quantiles'][q]:,}" for q in ("0.5", "0.95", "1")))
        )
    yield from table(("", "mean", "median", "95%", "most"), rows)
    if area["count"]:
        sizes = area["sizes"]
        yield (
            f"Of the masks, {sizes['small']:,} are small (less than 32² px), {sizes['medium']:,} medium and "
            f"{sizes['large']:,} large (more than 96² px)."
        )
        yield ""
    for source, categories in numbers["categories"].items():
        there = [c for c in categories if c["objects"]]
        if there:
            named = ", ".join(f"{plain(str(c['name']))} ({c['objects']:,})" for c in there[:FREQUENT])
            more = f", and {len(there) - FREQUENT:,} more" if len(there) > FREQUENT else ""
            yield f"- categories of {plain(source)}, by masks: {named}{more}"
    yield ""


def _prompts(card: Card) -> Iterator[str]:
    prompts = card.numbers["prompts"] if card.numbers is not None else []
    if not prompts:
        return
    yield "## Visual prompts"
    yield (
        "Share of the drawn prompt inside its object, on average; prompts that lie in it wholly; and those that mark "
        "another object more than their own. A status other than `ok` says that a prompt was made by a fallback, or "
        "not at all."
    )
    yield ""
    yield from table(
        ("prompt", "profile", "status", "number", "inside", "wholly", "ambiguous"),
        [
            (*(plain(p[k]) for k in ("kind", "profile", "status")), f"{p['count']:,}",
             *(f"{p[k]:.1%}" for k in ("inside", "whole", "ambiguous")))
            for p in prompts
        ],
    )  # fmt: skip


def _loading(card: Card) -> Iterator[str]:
    split = next(iter(card.paths))
    yield "## How to load"
    yield "In this folder; elsewhere, give its path, or its name on the hub:"
    yield ""
    yield from block(
        (_ELSEWHERE if card.tally.elsewhere else _INSIDE).format(split=split) + _USE.rstrip("\n"), "python"
    )
    yield ""
    if card.recipe is not None:
        yield "As samples, in the order of the shards, with the package `dataengine`:"
        yield ""
        yield from block(_OURS.strip("\n"), "python")
        yield ""
        yield "By the description in `croissant.json`, with the package `mlcroissant`:"
        yield ""
        yield from block(_CROISSANT.strip("\n"), "python")
        yield ""


_INSIDE = """\
from pathlib import Path

from datasets import load_dataset
from pycocotools import mask

dataset = load_dataset(str(Path.cwd()), split="{split}")
row = dataset[0]
row["image"]  # a picture of PIL; None where there is none
"""
_ELSEWHERE = """\
from pathlib import Path

from datasets import Image, load_dataset
from pycocotools import mask

dataset = load_dataset(str(Path.cwd()), split="{split}").cast_column("image", Image(decode=False))
row = dataset[0]
row["image"]  # its path; the picture is not in the files
"""
_USE = """
size = [row["height"], row["width"]]
masks = [mask.decode({"size": size, "counts": thing["rle"]}) for thing in row["objects"]]  # (height, width) uint8
for turn in row["turns"]:
    print(turn["role"], turn["text"])
for condition in row["conditions"]:
    turn = row["turns"][condition["turn"]]
    span = turn["text"][condition["start"] : condition["end"]]  # <p>...</p>, in code points
    wanted = [masks[index] for index in condition["objects"]]  # what its <SEG> stands for
"""
_OURS = """
from dataengine import masks
from dataengine.store.dataset import open_dataset

for sample in open_dataset(".").samples():
    bitmaps = [masks.decode(thing.rle, sample.height, sample.width) for thing in sample.objects]
    break
"""
_CROISSANT = """
import mlcroissant

record = next(iter(mlcroissant.Dataset("croissant.json").records("samples")))
record["samples/turns"]
"""


def _making(card: Card) -> Iterator[str]:
    manifest = card.manifest
    generator = manifest["generator"]
    builders = ", ".join(f"{name} {number}" for name, number in generator["builders"].items())
    yield "## How it was made"
    yield (
        f"By dataengine {plain(str(generator['dataengine']))} from the recipe {code(manifest['recipe']['name'])}, seed "
        f"{manifest['seed']}. Versions of the builders: {plain(builders)}. Version of the dataset: "
        f"`{manifest['version']}`."
    )
    if generator.get("prompts"):
        yield plain(simulation(generator["prompts"]))
    yield ""
    yield from table(
        ("source", "builder", "task", "categories", "samples", "published at"),
        [
            (plain(key), plain(source["builder"]), plain(source["task"]), len(source["categories"]),
             f"{card.tally.sources[key]:,}", address(card.tally.urls.get(key.partition("/")[0], "")))
            for key, source in manifest["sources"].items()
        ],
    )  # fmt: skip
    units = _units(manifest["counts"]["records"], ", ")
    rows = [(plain(unit), read, made, plain(left.removeprefix(", "))) for unit, read, made, left in units]
    yield from table(("of", "read", "built", "not built"), rows)
    if manifest.get("mixing"):
        from dataengine import mixing

        yield from ("What an epoch draws from each source:", "")
        yield from (*block(mixing.text([mixing.Row(**row) for row in manifest["mixing"]])), "")
    if card.recipe is not None:
        yield from _again(manifest, card.recipe)


def account(records: Mapping[str, Any]) -> list[str]:
    """What became of all that was read, a line for each unit."""
    return [f"{unit}: {read} read = {made} built{left}" for unit, read, made, left in _units(records, " + ")]


def _units(records: Mapping[str, Any], mark: str) -> Iterator[tuple[str, str, str, str]]:
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


def simulation(prompts: Mapping[str, Any]) -> str:
    """Where visual prompts come from. prompts: what a manifest says of their generator."""
    return f"Visual prompts are simulated by dataengine: profile {prompts['profile']}, version {prompts['version']}."


def collection(card: Card) -> str:
    """Where the records come from."""
    urls = card.tally.urls
    sources = sorted({key.partition("/")[0] for key in card.manifest["sources"]})
    named = (f"{one} ({urls[one]})" if one in urls else one for one in sources)
    return f"Built from the files of {', '.join(named)}; nothing was collected for it."


def _again(manifest: Mapping[str, Any], recipe: Recipe) -> Iterator[str]:
    """The recipe without the places of a machine, and the command that builds the dataset from it."""
    import yaml

    values = recipe.model_dump(mode="json", exclude_defaults=True)
    for name, source in (values["sources"] | values.get("held_out", {})).items():
        if "root" in source:
            source["root"] = f"PATH/TO/{name}"
        if "files" in source:
            source["files"] = {role: f"PATH/TO/{name}/{role}" for role in source["files"]}
    values["seed"] = manifest["seed"]
    limit = "" if manifest["limit"] is None else f" --limit {manifest['limit']}"
    if "replays" in manifest:
        yield f"These are records that could not be built in the dataset {code(manifest['replays'])}, built again."
        yield ""
    else:
        yield "This recipe, saved as `recipe.yaml`, with the same sources at `PATH/TO/…`, gives this version again:"
        yield ""
        yield from block(yaml.safe_dump(values, sort_keys=False, width=100), "yaml")
        yield from ("", *block(f"dataengine build recipe.yaml --out again{limit}", "sh"), "")


def _splits(card: Card) -> Iterator[str]:
    manifest = card.manifest
    names = split_names(manifest)
    yield "## Splits"
    renamed = [f"{plain(split)} is {plain(name)}" for split, name in names.items() if split != name]
    if renamed:
        yield f"Splits keep their names in the column `split`; `datasets` knows them by others: {', '.join(renamed)}."
        yield ""
    roles = manifest["forbidden"]["roles"]
    if roles:
        yield "Pictures of these held-out splits are not trained on; samples of training splits on them were left out:"
        yield ""
        yield from table(("held out", "pictures"), [(plain(role), f"{number:,}") for role, number in roles.items()])
    else:
        yield from ("There was no held-out split whose pictures could be kept out of training.", "")


def _licenses(card: Card) -> Iterator[str]:
    yield "## Licences"
    yield "Of the pictures, as their sources state them, or of the source where it states none for a picture:"
    yield ""
    found = sorted(card.tally.licenses.items(), key=lambda item: (-item[1], str(item[0])))
    yield from table(
        ("licence", "URL", "samples"),
        [(plain(one.name or "not stated"), address(one.url or ""), f"{number:,}") for one, number in found],
    )


def _limits(card: Card) -> Iterator[str]:
    found = limits(card)
    if found:
        yield from ("## Known limits", *(f"- {plain(line)}" for line in found), "")


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


def _citing(card: Card) -> Iterator[str]:
    yield "## How to cite"
    yield "Cite the sources, where they are published, and this dataset by its version:"
    yield ""
    yield from (*block(citation(card), "bibtex"), "")


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
