"""COCO-Interactive as PSALM publishes it: COCO's instances with four visual prompts each, to `intseg` with those.

The file holds clicks and traces as single pixels; the radius that is stored with them, 10 and 5 px, is what PSALM's and
X-SAM's loaders draw them with. Crowds, which PSALM drops on loading and X-SAM keeps, are filtered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from builders import coco, coco_prompted
from builders import options as opts
from builders.coco import image_keys
from builders.coco_prompted import Layout
from builders.rows import select
from dataengine.builder import About, Context, IndexReport, Outcome, Part
from dataengine.sample import PROMPT_KINDS
from dataengine.store.files import Folder

__all__ = [
    "ABOUT",
    "BRINGS_PROMPTS",
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

NAME = "coco_interactive"
VERSION = 1
TASKS = ("intseg",)
ABOUT = About(title="COCO-Interactive (PSALM)", url="https://github.com/zamling/PSALM", license=coco.ABOUT.license)
HELD_OUT = ("val",)
BRINGS_PROMPTS = True
_PLACES = ("", "annotations/", "coco_int/annotations/")
FILES = tuple(place + "coco_interactive_{split}_psalm.json" for place in _PLACES)
MARKS = tuple(file.format(split="*") for file in FILES)


class Options(opts.NumberedOptions):
    """max_regions: of one sample; more objects make more samples."""

    task: Literal["intseg"]
    max_regions: int = Field(default=32, ge=1, strict=True)


def parse_options(task: str, options: Mapping[str, Any]) -> Options:
    """See `Builder.parse_options`."""
    return opts.parse(Options, NAME, TASKS, task, options)


def _prompts(annotation: dict[str, Any]) -> dict[str, Any]:
    return {kind: annotation.get(f"{kind}_visual_prompt_mask") for kind in PROMPT_KINDS}


LAYOUT = Layout(name=NAME, files=FILES, annotations="anns", prompts=_prompts, is_traced=True)


def locate(root: str | None, files: Mapping[str, str], splits: Sequence[str], options: Options) -> list[Part]:
    """See `Builder.locate`; roles as for `coco_prompted.locate`."""
    return coco_prompted.locate(LAYOUT, root, files, splits)


def index(part: Part, options: Options, target: Path) -> IndexReport:
    """See `Builder.index`."""
    return coco_prompted.index(LAYOUT, part, target)


def read(context: Context, index: Folder, start: int, stop: int) -> Iterator[Outcome]:
    """See `Builder.read`. Counts images, annotations and prompts."""
    return coco_prompted.read(LAYOUT, context, index, start, stop, context.options.max_regions)
