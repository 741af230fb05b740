"""COCO-VGD as X-SAM publishes it: COCO's instances with four visual prompts each, to `vgdseg` with those.

Points and scribbles are bitmaps drawn with discs of 10 and 5 px. Differences from X-SAM's loader: the targets do not
depend on the kind of prompt, the exemplar of a category is drawn once, and categories keep COCO's numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from builders import coco, coco_prompted
from builders import options as opts
from builders.coco import image_keys
from builders.coco_prompted import Layout
from builders.reading import RecordError
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

NAME = "coco_vgd"
VERSION = 1
TASKS = ("vgdseg",)
ABOUT = About(title="COCO-VGD (X-SAM)", url="https://huggingface.co/hao9610/X-SAM", license=coco.ABOUT.license)
HELD_OUT = ("val",)
BRINGS_PROMPTS = True
_PLACES = ("", "annotations/", "vgdseg_annotations/", "coco_vgd/annotations/")
_FILES = ("coco_vgdseg_{split}.json", "img_vgdseg_coco_{split}.json")
FILES = tuple(place + file for place in _PLACES for file in _FILES)
MARKS = tuple(file.format(split="*") for file in FILES)


class Options(opts.NumberedOptions):
    """Nothing but what all numbered sources have."""

    task: Literal["vgdseg"]


def parse_options(task: str, options: Mapping[str, Any]) -> Options:
    """See `Builder.parse_options`."""
    return opts.parse(Options, NAME, TASKS, task, options)


def _prompts(annotation: dict[str, Any]) -> dict[str, Any]:
    prompts = annotation.get("visual_prompts")
    if prompts is not None and not isinstance(prompts, dict):
        raise RecordError("bad_field", "visual_prompts must be an object")
    return {kind: (prompts or {}).get(f"{kind}_visual_prompt") for kind in PROMPT_KINDS}


LAYOUT = Layout(name=NAME, files=FILES, annotations="annotations", prompts=_prompts, is_traced=False)


def locate(root: str | None, files: Mapping[str, str], splits: Sequence[str], options: Options) -> list[Part]:
    """See `Builder.locate`; roles as for `coco_prompted.locate`."""
    return coco_prompted.locate(LAYOUT, root, files, splits)


def index(part: Part, options: Options, target: Path) -> IndexReport:
    """See `Builder.index`."""
    return coco_prompted.index(LAYOUT, part, target)


def read(context: Context, index: Folder, start: int, stop: int) -> Iterator[Outcome]:
    """See `Builder.read`. Counts images, annotations and prompts."""
    return coco_prompted.read(LAYOUT, context, index, start, stop)
