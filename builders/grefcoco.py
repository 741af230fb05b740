"""gRefCOCO: `grefseg`. A sentence may mean one object, several, or none.

No-target sentences stay conditions without objects (X-SAM's loader drops them). Sentences keep their case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from builders import options as opts
from builders import places, refer
from builders.reading import outcomes
from builders.refcoco import (
    base_of,
    chunked,
    held,
    image_keys,
    image_places,
    is_training,
    refs_of,
    single_samples,
    without_phrases,
)
from builders.rows import Row, read_rows, select
from dataengine.builder import About, Context, IndexReport, Outcome, Part
from dataengine.sample import License
from dataengine.store.files import Folder

__all__ = [
    "ABOUT",
    "HELD_OUT",
    "MARKS",
    "NAME",
    "TASKS",
    "VERSION",
    "image_keys",
    "index",
    "locate",
    "parse_options",
    "read",
    "select",
]

NAME = "grefcoco"
VERSION = 1
TASKS = ("grefseg",)
ABOUT = About(
    title="gRefCOCO",
    url="https://github.com/henghuiding/gRefCOCO",
    license=License(name="CC BY-NC-SA 4.0", url="https://creativecommons.org/licenses/by-nc-sa/4.0/"),
)
HELD_OUT = ("val", "testA", "testB")
MARKS = (*(f"{base}grefs(*).{kind}" for kind in ("json", "p") for base in ("", "grefcoco/")), "grefcoco/refs(*).p")
REFS = ("grefs(unc).json", "grefs(unc).p", "refs(unc).p")
SPLITS = ("train", "val", "testA", "testB")
LAYOUT = "grefcoco/grefs(unc).json and grefcoco/instances.json"


class Options(opts.NumberedOptions):
    """max_phrases: of one training sample; a picture with more makes more samples."""

    max_phrases: int = Field(default=8, ge=1, strict=True)


def parse_options(task: str, options: Mapping[str, Any]) -> Options:
    """See `Builder.parse_options`."""
    return opts.parse(Options, NAME, TASKS, task, options)


def locate(root: str | None, files: Mapping[str, str], splits: Sequence[str], options: Options) -> list[Part]:
    """See `Builder.locate`. Roles: `refs` (JSON or pickle), `instances`, `images`."""
    places.check_roles(NAME, files, ("refs", "instances", "images"))
    refs = [f"{base}{name}" for name in REFS for base in ("grefcoco/", "")]
    found = {
        "refs": places.find(NAME, "refs", "file", root, files, refs),
        "instances": places.find(NAME, "instances", "file", root, files, ["grefcoco/instances.json", "instances.json"]),
        "images": places.find(NAME, "images", "folder", root, files, image_places(root)),
    }
    wanted = places.check_splits(NAME, str(root), splits, SPLITS, LAYOUT)
    return [Part(split=split, files=found) for split in wanted]


def index(part: Part, options: Options, target: Path) -> IndexReport:
    """See `Builder.index`."""
    return refer.build_index(part, target, SPLITS)


def read(context: Context, index: Folder, start: int, stop: int) -> Iterator[Outcome]:
    """See `Builder.read`. Counts images, refs, sentences, and the markers that were escaped in sentences."""
    return outcomes(context, read_rows(index, start, stop), _outcome, held)


def _outcome(context: Context, row: Row) -> Outcome:
    base = base_of(context, row)
    found = refs_of(context, row, base, lower=False, single=False)
    if not found.phrases:
        return without_phrases(row, found)
    if is_training(context.part.split):
        phrases = list(dict.fromkeys(found.phrases))
        repeated = len(found.phrases) - len(phrases)
        found.account.built["sentences"] -= repeated
        found.account.filter("sentences", "repeated", repeated)
        samples = chunked(context, base, found, phrases)
    else:
        samples = single_samples(base, found)
    found.account.built["images"] += 1
    return Outcome(group=row.key, samples=samples, bad=found.bad, account=found.account)
