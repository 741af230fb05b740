"""The card of a dataset: YAML for the Hugging Face hub, then what it holds, how it was made, and its licences.

Written beside shards by `card`, and into a repository by `export --to hub`. Counts are the manifest's and the shards'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dataengine.sample import License
from pipelines.card_facts import MEANINGS, Card, citation, limits, simulation, split_names, summary, units
from pipelines.markdown import address, block, code, is_address, plain, printable, table

if TYPE_CHECKING:
    from pipelines.recipe import Recipe

MARK = "<!-- Written by `dataengine card`, which writes it again. Delete this line to keep changes of your own. -->"
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
    yield from (plain(summary(card)), "")


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
        for name in ("objects", "conditions", "turns", "words")
        if (value := numbers["per_sample"][name])["count"]
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
    account = units(manifest["counts"]["records"], ", ")
    rows = [(plain(unit), read, made, plain(left.removeprefix(", "))) for unit, read, made, left in account]
    yield from table(("of", "read", "built", "not built"), rows)
    if manifest.get("mixing"):
        from dataengine import mixing

        yield from ("What an epoch draws from each source:", "")
        yield from (*block(mixing.text([mixing.Row(**row) for row in manifest["mixing"]])), "")
    if card.recipe is not None:
        yield from _again(manifest, card.recipe)


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


def _citing(card: Card) -> Iterator[str]:
    yield "## How to cite"
    yield "Cite the sources, where they are published, and this dataset by its version:"
    yield ""
    yield from (*block(citation(card), "bibtex"), "")
