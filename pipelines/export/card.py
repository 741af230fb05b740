"""The card of a Hugging Face repository: YAML for the hub, then what it holds, how it was made, and its licences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dataengine.sample import Sample
from pipelines.export.output import unit_of

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
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


@dataclass(slots=True)
class Tally:
    """What a card counts, gathered sample by sample."""

    tasks: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)  # by the names they have in the repository
    sources: Counter[str] = field(default_factory=Counter)
    licenses: Counter[tuple[str | None, str | None]] = field(default_factory=Counter)
    objects: int = 0
    elsewhere: int = 0  # samples whose pictures are named, and not in the files

    def add(self, sample: Sample, split: str) -> None:
        self.tasks[unit_of(sample)] += 1
        self.splits[split] += 1
        self.elsewhere += sample.image is not None and sample.image.bytes is None
        self.sources[f"{sample.source}/{sample.split}"] += 1
        self.licenses[sample.license.name, sample.license.url] += 1
        self.objects += len(sample.objects)


def text(manifest: Mapping[str, Any], tally: Tally, splits: Mapping[str, int]) -> str:
    """The card as Markdown.

    Args:
        splits: bytes of each split's files, by the name they have in the repository.
    """
    import yaml

    head = yaml.safe_dump(_head(manifest, tally, splits), sort_keys=False, allow_unicode=True)
    return "\n".join(["---", head.rstrip(), "---", *_body(manifest, tally, splits)]) + "\n"


def _head(manifest: Mapping[str, Any], tally: Tally, splits: Mapping[str, int]) -> dict[str, Any]:
    found = sorted({identifier(name, url) for name, url in tally.licenses})
    kinds = {task.split()[0] for task in tally.tasks}
    categories = ["image-segmentation", "mask-generation"] if kinds - {"chat"} else []
    total = tally.tasks.total()
    return {
        "pretty_name": manifest["recipe"]["name"],
        "license": found if len(found) > 1 else found[0],
        "task_categories": [*categories, "image-text-to-text"],
        "size_categories": [next((name for most, name in SIZES if total < most), "n>10M")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"data/{name}-*.parquet"} for name in splits],
            }
        ],
    }


def identifier(name: str | None, url: str | None) -> str:
    """A licence as the hub names it; `unknown` where the source gives none, `other` where the hub has no name."""
    if name is None and url is None:
        return "unknown"
    said = f"{name or ''} {url or ''}".lower()
    for pattern, known in LICENSES:
        if match := re.search(pattern, said):
            return known.format(*match.groups())
    return "other"


def _body(manifest: Mapping[str, Any], tally: Tally, splits: Mapping[str, int]) -> list[str]:
    total = tally.tasks.total()
    lines = [
        f"# {_plain(manifest['recipe']['name'])}",
        "",
        *([_plain(manifest["recipe"]["description"]), ""] if manifest["recipe"].get("description") else []),
        f"{total:,} samples with {tally.objects:,} masks: pictures, conversations with `<p>`, `<region>` and `<SEG>`, "
        "and what to segment.",
        "",
        "## Contents",
        *_table(("task", "meaning", "samples"), [
            (task, MEANINGS.get(task.split()[0], ""), f"{number:,}") for task, number in sorted(tally.tasks.items())
        ]),
        "",
        *_table(("split", "samples", "files, MB"), [
            (name, f"{tally.splits[name]:,}", f"{size / 1e6:,.1f}") for name, size in splits.items()
        ]),
        "",
        *([f"The pictures of {tally.elsewhere:,} samples are named by their paths and are not in the files.", ""]
          if tally.elsewhere else []),
        "## How to load",
        "```python",
        "from datasets import load_dataset",
        "",
        f'dataset = load_dataset("PATH/OR/NAME", split="{next(iter(splits))}")',
        'dataset[0]["image"]   # a PIL picture',
        'dataset[0]["turns"]   # the conversation',
        'dataset[0]["objects"] # masks: compressed COCO RLE on height x width',
        "```",
        "`pycocotools.mask.decode({\"size\": [height, width], \"counts\": object[\"rle\"]})` gives a mask.",
        "",
        "## How it was made",
        f"By dataengine from the recipe `{_plain(manifest['recipe']['name'])}`, seed {manifest['seed']}; "
        f"version `{manifest['version']}`.",
        "",
        *_table(("source", "builder", "task", "categories", "samples"), [
            (key, source["builder"], source["task"], len(source["categories"]), f"{tally.sources[key]:,}")
            for key, source in manifest["sources"].items()
        ]),
        "",
        *_records(manifest["counts"]["records"]),
        "## Licences",
        "Of the pictures, as their sources state them:",
        "",
        *_table(("licence", "URL", "samples"), [
            (name or "not stated", url or "", f"{number:,}")
            for (name, url), number in sorted(tally.licenses.items(), key=lambda item: (-item[1], str(item[0])))
        ]),
    ]  # fmt: skip
    return lines


def _records(records: Mapping[str, Any]) -> list[str]:
    """The account of what was read."""
    lines = []
    for unit, read in records["read"].items():
        parts = [f"{records['built'].get(unit, 0):,} built"]
        for kind in ("quarantined", "filtered"):
            parts += [f"{n:,} {kind} ({reason})" for reason, n in records[kind].get(unit, {}).items()]
        lines.append(f"- {unit}: {read:,} read = {' + '.join(parts)}")
    return [*lines, ""] if lines else []


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(_plain(str(cell)) for cell in line) + " |" for line in lines]


def _plain(text: str) -> str:
    """Text of a source that stays one cell of a table, and text."""
    return re.sub(r"([|<>`\[\]\\])", r"\\\1", " ".join(text.split()))
