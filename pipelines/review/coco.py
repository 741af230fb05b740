"""Packages as COCO instances JSON: masks as compressed RLE, with `entry_id`, `decision` and `reason` beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from dataengine import masks
from dataengine.errors import ReasonError
from dataengine.jsonstream import iter_records
from pipelines.review.marks import (
    Found,
    Mark,
    MarkError,
    Package,
    Page,
    canonical,
    check_size,
    id_of,
    said_of,
    score_of,
    text_of,
)

FILE = "annotations.json"
_LISTS = {"images": True, "annotations": True, "categories": True}


def extras(package: Package) -> dict[str, bytes]:
    """Other files of a package."""
    return {}


def dump(package: Package, pages: Sequence[Page]) -> bytes:
    """The file of a package; a record a line."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, page in enumerate(pages, start=1):
        slot = page.slot
        image = {"id": number, "file_name": slot.name, "height": slot.height, "width": slot.width}
        seconds = {} if page.seconds is None else {"seconds": page.seconds}
        images.append({**image, "picture": slot.key, "whole_image_bad": page.bad, **seconds})
        for mark in page.marks:
            area, bbox = masks.measure(mark.rle, slot.height, slot.width)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": package.numbers[mark.label],
                    "segmentation": {"size": [slot.height, slot.width], "counts": mark.rle.decode("ascii")},
                    "bbox": bbox,
                    "area": area,
                    "iscrowd": 0,
                    "entry_id": mark.entry_id,
                    "decision": mark.said,
                    "score": mark.score,
                    "reason": mark.reason,
                }
            )
    categories = [
        {"id": package.numbers[label.name], "name": label.name, "source_id": label.concept.category_id}
        for label in package.labels
    ]
    sections = {"images": images, "annotations": annotations, "categories": categories}
    return ("{" + ",\n".join(_section(name, rows) for name, rows in sections.items()) + "}\n").encode("ascii")


def _section(name: str, rows: Sequence[dict[str, Any]]) -> str:
    return f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]"


def parse(file: BinaryIO, package: Package, reviewer: str = "") -> Found:
    """What a file of a package holds.

    Raises:
        SourceError: it is no JSON, or cut off.
    """
    found = Found()
    read: dict[str, list[tuple[str, dict[str, Any]]]] = {name: [] for name in _LISTS}
    for record in iter_records(file, FILE, _LISTS):
        if record.section in read:
            what = f"{record.section}[{record.position}]"
            if isinstance(record.value, dict):
                read[record.section].append((what, record.value))
            else:
                found.refuse(what, MarkError("no_record", record.error or "the record is no JSON object"))
    pages = dict(_pages(read["images"], package, found))
    names: dict[int, Any] = {}
    for what, category in read["categories"]:
        if isinstance(category.get("id"), int) and category["id"] not in names:
            names[category["id"]] = category.get("name")
        else:
            found.refuse(
                what, MarkError("category_unknown", f"category id {category.get('id')!r:.40} is no new number")
            )
    for what, annotation in read["annotations"]:
        try:
            image = annotation.get("image_id")
            page = pages.get(image) if isinstance(image, int) else None
            if page is None:
                raise MarkError("unknown_picture", f"the file has no usable image {image!r:.40}")
            page.marks.append(_mark(annotation, page, names, package))
        except ReasonError as error:
            found.refuse(what, error, annotation.get("entry_id"))
    found.pages = [page for page in pages.values() if page is not None]
    return found


def _pages(
    images: list[tuple[str, dict[str, Any]]], package: Package, found: Found
) -> Iterator[tuple[int, Page | None]]:
    """Pages by the ids of their images; None for an id that two images have."""
    seen = set()
    for what, image in images:
        number = image.get("id")
        if not isinstance(number, int):
            found.refuse(what, MarkError("no_record", f"image id {number!r:.40} is no number"))
            continue
        try:
            if number in seen:
                yield number, None
                raise MarkError("duplicate_picture", f"image id {number} is there twice")
            seen.add(number)
            slot = package.slot(image.get("file_name"))
            check_size(slot, image.get("height"), image.get("width"))
            bad = image.get("whole_image_bad", False)
            if not isinstance(bad, bool):
                raise MarkError("decision_unknown", f"whole_image_bad is true or false, not {bad!r:.40}")
            yield number, Page(slot=slot, bad=bad, seconds=seconds_of(image.get("seconds")))
        except ReasonError as error:
            found.refuse(what, error, image.get("file_name"))


def _mark(annotation: dict[str, Any], page: Page, names: dict[int, Any], package: Package) -> Mark:
    said = said_of(annotation.get("decision"))
    entry_id = id_of(annotation.get("entry_id"), said)
    number = annotation.get("category_id")
    label = package.check_label(names.get(number) if isinstance(number, int) else None)
    rle = _rle(annotation.get("segmentation"), page.slot.height, page.slot.width)
    score, reason = score_of(annotation.get("score")), text_of(annotation.get("reason"))
    return Mark(entry_id=entry_id, label=label, rle=rle, said=said, score=score, reason=reason)


def _rle(segmentation: Any, height: int, width: int) -> bytes:
    """Compressed counts as they stand, checked; of another kind of segmentation the mask."""
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), str):
        rle = masks.code_from_segmentation(segmentation, height, width)
        canonical(rle, height, width)
        return rle
    return masks.rle_from_segmentation(segmentation, height, width)


def seconds_of(value: Any) -> float | None:
    """A time that a reviewer took; what is none is left out."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < 1e6 else None
