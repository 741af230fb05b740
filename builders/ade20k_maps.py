"""ADE20K's label maps: what their PNGs say, and the segments they make up in each variant.

2016: `annotations` (8-bit grey, number of the category, 0 is other) and `annotations_instance` (R instance class, G
index in the picture). 2021: `_seg.png` (class (R // 10) 256 + G, B index in the picture).
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from builders import panoptic
from builders.pictures import NAME_ERRORS
from builders.reading import RecordError, make_object
from dataengine import images
from dataengine.builder import SourceError
from dataengine.sample import Object
from dataengine.store.files import Folder

Variant = Literal["instance", "panoptic", "semantic"]
VOID = 0
THING = 1 << 31  # set in keys of panoptic maps that come from instances
CLASS_BITS = 16
_CLASS = (1 << CLASS_BITS) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What labels stand for.

    classes: label of the class map to category id. things: label of the instance map to category id.
    stuff: category ids without instances.
    """

    classes: Mapping[int, int]
    things: Mapping[int, int]
    stuff: Set[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Maps:
    """The maps of one picture, as runs down its columns.

    starts: (n,) int32, place of each run's first pixel. classes: (n,) uint32 labels, 0 where there is none.
    things: (n,) uint32 `index << 16 | label`, 0 where there is none.
    """

    starts: np.ndarray
    classes: np.ndarray
    things: np.ndarray
    height: int
    width: int


@dataclass(slots=True, kw_only=True)
class Segments:
    """The segments of one variant.

    ignore: RLE of pixels that count neither way. refused: what messages call a segment, and what is wrong with it.
    filtered: those left out on purpose, by reason.
    """

    objects: list[Object] = field(default_factory=list)
    ignore: bytes | None = None
    refused: list[tuple[str, RecordError]] = field(default_factory=list)
    filtered: Counter[str] = field(default_factory=Counter)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_challenge(
    classes: tuple[Folder, str] | None, things: tuple[Folder, str] | None, height: int, width: int
) -> Maps:
    """The maps of a picture of ADEChallengeData2016. Of each its folder and name; None where it is not needed.

    Raises:
        RecordError: see `_runs`.
    """
    starts = np.zeros(1, dtype=np.int32)
    empty = starts, np.zeros(1, dtype=np.uint32)
    labels = empty if classes is None else _runs(*classes, height, width, "L")
    pairs = empty if things is None else _runs(*things, height, width, "RGB")
    starts, values, colours = panoptic.overlay(labels, pairs)
    keys = (colours >> np.uint32(8) & np.uint32(255)) << np.uint32(CLASS_BITS) | colours & np.uint32(255)
    return Maps(starts=starts, classes=values, things=keys, height=height, width=width)


def read_full(folder: Folder, name: str, stuff: Set[int], height: int, width: int) -> Maps:
    """The maps in a `_seg.png` of full ADE20K. stuff: labels that have no instances.

    Raises:
        RecordError: see `_runs`.
    """
    starts, colours = _runs(folder, name, height, width, "RGB")
    red, green, blue = (colours >> np.uint32(shift) & np.uint32(255) for shift in (0, 8, 16))
    classes = red // np.uint32(10) * np.uint32(256) + green
    lone = (classes == VOID) | np.isin(classes, np.array(sorted(stuff), dtype=np.uint32))
    things = np.where(lone, np.uint32(VOID), blue << np.uint32(CLASS_BITS) | classes)
    return Maps(starts=starts, classes=classes, things=things, height=height, width=width)


def _runs(
    folder: Folder, name: str, height: int, width: int, mode: Literal["RGB", "L"]
) -> tuple[np.ndarray, np.ndarray]:
    """See `panoptic.runs_from_png`.

    Raises:
        RecordError: `segments_missing`, `image_too_large`, or another reason of `panoptic.runs_from_png`.
        SourceError: the whole folder is gone. OSError: the disk or the network fails.
    """
    try:
        return panoptic.runs_from_png(folder.read(name), height, width, mode)
    except images.ImageError as error:
        raise RecordError(error.reason, f"{name}: {error}") from None
    except OSError as error:
        if not isinstance(error, FileNotFoundError) and error.errno not in (errno.ENOENT, *NAME_ERRORS):
            raise
        if folder.kind() != "folder":
            raise SourceError(f"{folder.uri}: the folder of label maps is gone") from None
        raise RecordError("segments_missing", f"{name} cannot be read from its folder") from None


# --- segments --------------------------------------------------------------------------------------------------------


def segments(maps: Maps, variant: Variant, meaning: Meaning) -> Segments:
    """The segments of a picture, in ascending label or index; a panoptic picture's stuff first.

    semantic: all pixels of a class are one; void is ignored. instance: one for each index of each class.
    panoptic: stuff of the class map, over which all instances are pasted; void is ignored, and so are pixels that only
    the class map gives to a thing (they are of no instance).
    Pixels of a refused segment are ignored: what they show is not known.
    """
    if variant == "semantic":
        keys = maps.classes
    elif variant == "instance":
        keys = maps.things
    else:
        keys = np.where(maps.things != VOID, maps.things | np.uint32(THING), maps.classes)
    try:
        by_key = panoptic.masks_from_runs(maps.starts, keys, maps.height, maps.width)
    except images.ImageError as error:
        raise RecordError(error.reason, str(error)) from None
    found = Segments()
    ignored = set() if variant == "instance" else {VOID}
    for key in sorted(by_key.keys() - {VOID}):
        label, of_instance = key & ~THING, variant == "instance" or key >= THING
        name = f"instance {label & _CLASS}/{label >> CLASS_BITS}" if of_instance else f"label {label}"
        try:
            category = _category(label, of_instance, meaning)
        except RecordError as error:
            found.refused.append((name, error))
            ignored.add(key)
            continue
        if variant == "panoptic" and not of_instance and category not in meaning.stuff:
            found.filtered["no_instance"] += 1
            ignored.add(key)
            continue
        rle, measured = by_key[key]
        found.objects.append(make_object(rle, maps.height, maps.width, category, name, measured=measured))
    if variant == "panoptic":
        found.filtered["covered"] = _num_covered(maps, by_key.keys(), meaning)
    found.ignore = panoptic.rle_of(ignored, maps.starts, keys, maps.height, maps.width)
    return found


def _category(label: int, of_instance: bool, meaning: Meaning) -> int:
    """Category of a label of the class map, or of `index << 16 | label`.

    Raises:
        RecordError: `unknown_category` or `no_instance_index`.
    """
    if not of_instance:
        if label not in meaning.classes:
            raise RecordError("unknown_category", f"label {label} is no category")
        return meaning.classes[label]
    if label & _CLASS not in meaning.things:
        raise RecordError("unknown_category", f"instance class {label & _CLASS} is no category")
    if not label >> CLASS_BITS:
        raise RecordError("no_instance_index", f"pixels of instance class {label & _CLASS} have the index 0")
    return meaning.things[label & _CLASS]


def _num_covered(maps: Maps, visible: Set[int], meaning: Meaning) -> int:
    """How many labels of stuff, or of nothing known, have no pixel that no instance covers."""
    hidden = set(np.flatnonzero(np.bincount(maps.classes)).tolist()) - {VOID} - visible
    return sum(label not in meaning.classes or meaning.classes[label] in meaning.stuff for label in hidden)
