"""Packages as CVAT's XML "CVAT for images 1.1": masks as row-major run lengths in their box, ids as attributes.

https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/ describes it. A document with a DOCTYPE is refused
as soon as that begins, so nothing in it can declare or expand an entity.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, BinaryIO
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from dataengine import masks
from dataengine.errors import ReasonError
from dataengine.masks import Crop, MaskError
from pipelines.review.marks import (
    WHOLE_IMAGE_BAD,
    Found,
    Mark,
    MarkError,
    Package,
    PackageError,
    Page,
    check_size,
    id_of,
    said_of,
    score_of,
)

FILE = "annotations.xml"
UNDECIDED = "undecided"  # CVAT's choices need a word for it
MAX_DEPTH = 20
MAX_TEXT = 10_000  # characters of an attribute
_CHUNK = 1 << 20
# what a reviewer draws gets the defaults, and so says that it was added
_ATTRIBUTES: tuple[dict[str, Any], ...] = (
    {"name": "entry_id", "input_type": "text", "mutable": False, "values": [""]},
    {
        "name": "decision",
        "input_type": "select",
        "mutable": False,
        "values": ["add", UNDECIDED, "accept", "reject"],
        "default_value": "add",
    },
    {"name": "score", "input_type": "text", "mutable": False, "values": [""]},
    {"name": "reason", "input_type": "text", "mutable": False, "values": [""]},
)


def extras(package: Package) -> dict[str, bytes]:
    """The labels of the task, as CVAT's constructor takes them ("Raw")."""
    labels: list[dict[str, Any]] = [
        {"name": label.name, "type": "mask", "attributes": list(_ATTRIBUTES)} for label in package.labels
    ]
    labels.append({"name": WHOLE_IMAGE_BAD, "type": "tag", "attributes": []})
    return {"labels.json": (json.dumps(labels, indent=1) + "\n").encode("ascii")}


def dump(package: Package, pages: Sequence[Page]) -> bytes:
    """The file of a package."""
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>"]
    lines += ["  <meta>", "    <task>", f"      <size>{len(pages)}</size>", "      <mode>annotation</mode>"]
    lines += ["      <labels>", *(_label(label.name) for label in package.labels)]
    lines += [f"        <label><name>{WHOLE_IMAGE_BAD}</name><type>tag</type><attributes></attributes></label>"]
    lines += ["      </labels>", "    </task>", "  </meta>"]
    for number, page in enumerate(pages):
        slot = page.slot
        size = f'width="{slot.width}" height="{slot.height}"'
        lines.append(f'  <image id="{number}" name={quoteattr(slot.name)} {size}>')
        for mark in page.marks:
            lines += _mask(mark, slot.height, slot.width)
        if page.bad:
            lines.append(f'    <tag label="{WHOLE_IMAGE_BAD}" source="manual"></tag>')
        lines.append("  </image>")
    return "\n".join([*lines, "</annotations>", ""]).encode("utf-8")


def _label(name: str) -> str:
    attributes = "".join(
        f"<attribute><name>{each['name']}</name><mutable>{each['mutable']}</mutable>"
        f"<input_type>{each['input_type']}</input_type><default_value>{each.get('default_value', '')}</default_value>"
        f"<values>{chr(10).join(each['values'])}</values></attribute>"
        for each in _ATTRIBUTES
    )
    return f"        <label><name>{escape(name)}</name><type>mask</type><attributes>{attributes}</attributes></label>"


def _mask(mark: Mark, height: int, width: int) -> list[str]:
    crop = masks.crop_from_rle(mark.rle, height, width)
    h, w = crop.mask.shape
    rle = ", ".join(map(str, runs_of(crop.mask)))
    source = "auto" if mark.entry_id else "manual"
    said = mark.said or UNDECIDED
    values = {"entry_id": mark.entry_id, "decision": said, "score": _number(mark.score), "reason": mark.reason}
    return [
        f'    <mask label={quoteattr(mark.label)} source="{source}" occluded="0" rle="{rle}" left="{crop.x0}" '
        f'top="{crop.y0}" width="{w}" height="{h}" z_order="0">',
        *(f'      <attribute name="{name}">{escape(value)}</attribute>' for name, value in values.items()),
        "    </mask>",
    ]


def _number(score: float | None) -> str:
    return "" if score is None else repr(score)


def runs_of(mask: np.ndarray) -> list[int]:
    """Run lengths of an (h, w) bool mask, row by row, of background first."""
    flat = mask.ravel()
    edges = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    runs: list[int] = np.diff(edges).tolist()
    return [0, *runs] if flat[0] else runs


def rle_of_box(runs: str, box: Sequence[int], height: int, width: int) -> bytes:
    """A mask of CVAT as compressed COCO counts.

    Args:
        runs: as they stand in the file. box: left, top, width, height, px.
    Raises:
        MaskError: `rle_invalid`, `rle_size`, `bad_size` (the box leaves the picture), `empty_mask`.
    """
    left, top, w, h = box
    if w < 1 or h < 1 or left + w > width or top + h > height:
        raise MaskError("bad_size", f"a box of {w} x {h} px at {left}, {top} leaves the {width} x {height} picture")
    counts = [_whole(text.strip()) for text in runs.split(",")]
    if None in counts:
        raise MaskError("rle_invalid", "the runs are no whole numbers with commas between them")
    lengths = np.array(counts, dtype=np.int64)
    if lengths.max() > w * h or lengths.sum() != w * h:
        raise MaskError("rle_size", f"the runs do not sum to {w * h}, the pixels of a box of {w} x {h}")
    flat = np.repeat(np.arange(lengths.size) % 2 == 1, lengths)
    if not flat.any():
        raise MaskError("empty_mask", "the mask has no pixel")
    return masks.rle_from_crop(Crop(flat.reshape(h, w), left, top), height, width)


def _whole(text: str | None) -> int | None:
    """A whole number of at most ten digits."""
    return int(text) if text is not None and re.fullmatch("[0-9]{1,10}", text, re.ASCII) else None


def parse(file: BinaryIO, package: Package, reviewer: str = "") -> Found:
    """What a file of a package, or of CVAT's export, holds.

    Raises:
        PackageError: `xml_doctype`, `xml_invalid`.
    """
    reader = _Reader(package)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.characters
    try:
        while chunk := file.read(_CHUNK):
            parser.Parse(chunk, False)
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise PackageError("xml_invalid", f"{FILE}: {error}; the file is damaged or cut off") from None
    if reader.root != "annotations":
        raise PackageError("xml_invalid", f"{FILE}: the document is <{reader.root}>; <annotations> is needed")
    return reader.found


def _refuse_doctype(*_: Any) -> None:
    raise PackageError("xml_doctype", f"{FILE}: the file declares a document type; a package has none")


class _Reader:
    """The document while it is read: what of it is open, and what was found."""

    def __init__(self, package: Package) -> None:
        self.found = Found()
        self.root = ""
        self._package = package
        self._open: list[str] = []
        self._page: Page | None = None
        self._image = self._mask = ""  # what messages call them
        self._given: dict[str, str] = {}  # the attributes of the mask's element
        self._values: dict[str, str] = {}  # those that the mask has
        self._name = ""
        self._parts: list[str] | None = None  # of the text of the attribute that is open
        self._length = self._images = self._masks = 0

    def start(self, tag: str, given: dict[str, str]) -> None:
        self._open.append(tag)
        if len(self._open) > MAX_DEPTH:
            raise PackageError("xml_invalid", f"{FILE}: elements are nested too deeply")
        where = self._open[1:]
        if len(self._open) == 1:
            self.root = tag
        elif where == ["image"]:
            self._begin_image(given)
        elif where == ["image", "mask"]:
            self._mask = f"{self._image} mask {self._masks}"
            self._masks += 1
            self._given, self._values = given, {}
        elif where == ["image", "mask", "attribute"]:
            self._name, self._parts, self._length = given.get("name", ""), [], 0
        elif where == ["image", "tag"]:
            self._tag(given)
        elif len(where) == 2 and where[0] == "image":
            self.found.refuse(f"{self._image} {tag}", MarkError("shape_unsupported", f"a {tag} is no mask"))

    def end(self, tag: str) -> None:
        where = self._open[1:]
        self._open.pop()
        if where == ["image", "mask", "attribute"]:
            self._values.setdefault(self._name, "".join(self._parts or ()))
            self._parts = None
        elif where == ["image", "mask"]:
            self._end_mask()
        elif where == ["image"]:
            self._page = None

    def characters(self, text: str) -> None:
        if self._parts is None:
            return
        self._length += len(text)
        if self._length > MAX_TEXT:
            raise PackageError(
                "xml_invalid", f"{FILE}: {self._mask}: an attribute has more than {MAX_TEXT:,} characters"
            )
        self._parts.append(text)

    def _begin_image(self, given: dict[str, str]) -> None:
        name = given.get("name")
        self._image = f"image {self._images}"
        self._images, self._masks = self._images + 1, 0
        try:
            slot = self._package.slot(name)
            check_size(slot, _whole(given.get("height")), _whole(given.get("width")))
            self._page = Page(slot=slot)
            self.found.pages.append(self._page)
        except ReasonError as error:
            self.found.refuse(self._image, error, name)

    def _tag(self, given: dict[str, str]) -> None:
        if given.get("label") != WHOLE_IMAGE_BAD:
            error = MarkError("category_unknown", f"a picture is not tagged with {given.get('label')!r:.80}")
            self.found.refuse(f"{self._image} tag", error)
        elif self._page is not None:
            self._page.bad = True

    def _end_mask(self) -> None:
        if self._page is None:  # which was refused with its picture
            return
        try:
            self._page.marks.append(self._read_mask(self._page))
        except ReasonError as error:
            self.found.refuse(self._mask, error, self._values.get("entry_id"))

    def _read_mask(self, page: Page) -> Mark:
        decision = self._values.get("decision", "")
        said = said_of("" if decision == UNDECIDED else decision)
        entry_id = id_of(self._values.get("entry_id", ""), said)
        label = self._package.check_label(self._given.get("label"))
        box = [_whole(self._given.get(name)) for name in ("left", "top", "width", "height")]
        sides = [side for side in box if side is not None]
        if len(sides) < 4:
            raise MarkError("bad_size", "the mask's left, top, width and height are no whole numbers")
        rle = rle_of_box(self._given.get("rle", ""), sides, page.slot.height, page.slot.width)
        score, reason = _score(self._values.get("score", "")), self._values.get("reason", "")
        return Mark(entry_id=entry_id, label=label, rle=rle, said=said, score=score, reason=reason)


def _score(text: str) -> float | None:
    try:
        return score_of(float(text))
    except ValueError:
        return None
