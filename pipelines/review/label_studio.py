"""Packages as Label Studio's task JSON: brush masks in a prediction, which a reviewer makes an annotation.

A mask is a region whose id is its entry's, which Label Studio keeps; regions that a reviewer draws get ids of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, BinaryIO
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from dataengine.errors import ReasonError
from dataengine.jsonstream import iter_rows
from pipelines.review import brush
from pipelines.review.coco import seconds_of
from pipelines.review.marks import (
    ENTRY_ID,
    WHOLE_IMAGE_BAD,
    Found,
    Mark,
    MarkError,
    Package,
    Page,
    Said,
    check_size,
    id_of,
    said_of,
    score_of,
    text_of,
)

FILE = "tasks.json"
_REGION = {"from_name": "label", "to_name": "image"}
_CHOICE = {"from_name": "decision", "to_name": "image", "type": "choices"}
_PICTURE = {"from_name": "picture", "to_name": "image", "type": "choices"}


def extras(package: Package) -> dict[str, bytes]:
    """The labelling interface that the tasks are made for."""
    labels = "".join(f"\n    <Label value={quoteattr(label.name)}/>" for label in package.labels)
    text = f"""<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="label" toName="image">{labels}
  </BrushLabels>
  <Choices name="decision" toName="image" perRegion="true" choice="single-radio">
    <Choice value="accept"/>
    <Choice value="reject"/>
  </Choices>
  <Choices name="picture" toName="image" choice="multiple">
    <Choice value="{WHOLE_IMAGE_BAD}"/>
  </Choices>
</View>
"""
    return {"interface.xml": text.encode()}


def dump(package: Package, pages: Sequence[Page]) -> bytes:
    """The file of a package; a task a line. Pages of which nothing is said are predictions."""
    rows = []
    for page in pages:
        slot = page.slot
        data = {"image": package.url + quote(slot.name), "name": slot.name, "picture": slot.key}
        results = [result for number, mark in enumerate(page.marks) for result in _results(mark, page, number)]
        task: dict[str, Any] = {"data": data}
        if page.bad or page.seconds is not None or any(mark.said for mark in page.marks):
            if page.bad:
                results.append({"id": "picture", **_PICTURE, "value": {"choices": [WHOLE_IMAGE_BAD]}})
            time = {} if page.seconds is None else {"lead_time": page.seconds}
            task["annotations"] = [{"result": results, "was_cancelled": False, **time}]
        else:
            task["predictions"] = [{"model_version": f"step {package.step}", "result": results}]
        rows.append(json.dumps(task))
    return ("[\n" + ",\n".join(rows) + "\n]\n").encode("ascii")


def _results(mark: Mark, page: Page, number: int) -> list[dict[str, Any]]:
    """The region of a mask, and what is said of it."""
    height, width = page.slot.height, page.slot.width
    size = {"original_width": width, "original_height": height, "image_rotation": 0}
    code = list(brush.code_from_rle(mark.rle, height, width))
    region: dict[str, Any] = {"id": mark.entry_id or f"added-{number}", **_REGION, "type": "brushlabels", **size}
    region["origin"] = "prediction" if mark.entry_id else "manual"
    region["value"] = {"format": "rle", "rle": code, "brushlabels": [mark.label]}
    if mark.score is not None:
        region["score"] = mark.score
    if mark.reason:
        region["meta"] = {"text": [mark.reason]}
    if mark.said in ("accept", "reject"):
        return [region, {"id": mark.entry_id, **_CHOICE, **size, "value": {"choices": [mark.said]}}]
    return [region]


def parse(file: BinaryIO, package: Package, reviewer: str = "") -> Found:
    """What a file of a package, or of Label Studio's export as JSON, holds.

    Args:
        reviewer: whose annotations are read: an id or email address in `completed_by`. Where no annotation of the file
            names them, a task's only one is theirs.
    Raises:
        SourceError: it is no JSON, or cut off.
    """
    works = (work for task in iter_rows(file, FILE) for work in _annotations(task.value))
    is_named = reviewer != "" and any(reviewer in _authors(work) for work in works)
    file.seek(0)
    found = Found()
    for record in iter_rows(file, FILE):
        what = f"tasks[{record.position}]"
        data = record.value.get("data") if isinstance(record.value, dict) else None
        name = data.get("name") if isinstance(data, dict) else None
        try:
            if not isinstance(record.value, dict):
                raise MarkError("no_record", record.error or "the task is no JSON object")
            _task(what, record.value, name, package, reviewer, is_named, found)
        except ReasonError as error:
            found.refuse(what, error, name)
    return found


def _task(
    what: str, task: dict[str, Any], name: Any, package: Package, reviewer: str, is_named: bool, found: Found
) -> None:
    """Read the task of a picture into what was found; what is wrong with all of it is raised."""
    work = _work(task, reviewer, is_named)
    results = work.get("result")
    if not isinstance(results, list):
        raise MarkError("no_record", "the task has no list of results")
    page = Page(slot=package.slot(name), seconds=seconds_of(work.get("lead_time")))
    said: dict[str, Any] = {}
    regions: list[tuple[str, dict[str, Any]]] = []
    for position, result in enumerate(results):
        where = f"{what}.result[{position}]"
        kind = result.get("type") if isinstance(result, dict) else None
        if kind == "brushlabels":
            regions.append((where, result))
        elif kind == "choices" and result.get("from_name") == _PICTURE["from_name"]:
            page.bad = _choice(result) == WHOLE_IMAGE_BAD
        elif kind == "choices" and isinstance(result.get("id"), str):
            said.setdefault(result["id"], _choice(result))
        else:
            found.refuse(where, MarkError("no_record", f"a result of type {kind!r:.40} is no brush mask"))
    for where, region in regions:
        try:
            page.marks.append(_mark(region, said, page, package))
        except ReasonError as wrong:
            found.refuse(where, wrong, region.get("id"))
    found.pages.append(page)


def _work(task: dict[str, Any], reviewer: str, is_named: bool) -> dict[str, Any]:
    """The annotation of a task, or the prediction where there is none."""
    done = [work for work in _annotations(task) if not work.get("was_cancelled")]
    if is_named and done and not any(reviewer in _authors(work) for work in done):
        raise MarkError("missing_picture", "the picture went out, but only others have annotated it")
    if len(done) > 1 or (is_named and done):
        number, done = len(done), [work for work in done if reviewer and reviewer in _authors(work)]
        if len(done) != 1:
            raise MarkError("several_annotations", f"{len(done)} of the task's {number} annotations are the reviewer's")
    guesses = _dicts(task.get("predictions"))
    return done[0] if done else guesses[0] if guesses else {}


def _annotations(task: Any) -> list[dict[str, Any]]:
    return _dicts(task.get("annotations")) if isinstance(task, dict) else []


def _authors(work: dict[str, Any]) -> list[str]:
    """What the author of an annotation may be called."""
    author = work.get("completed_by")
    names = [author.get("id"), author.get("email")] if isinstance(author, dict) else [author]
    return [str(name) for name in names if isinstance(name, int | str)]


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _choice(result: dict[str, Any]) -> Any:
    value = result.get("value")
    choices = value.get("choices") if isinstance(value, dict) else None
    return choices[0] if isinstance(choices, list) and len(choices) == 1 else choices


def _mark(region: dict[str, Any], choices: dict[str, Any], page: Page, package: Package) -> Mark:
    name, value = region.get("id"), region.get("value")
    said: Said = said_of(choices.get(name)) if isinstance(name, str) else ""
    if isinstance(name, str) and name and not ENTRY_ID.fullmatch(name) and region.get("origin") == "manual":
        if said == "reject":
            raise MarkError("decision_unknown", "a mask that was added is not rejected, but deleted")
        entry_id, said = "", "add"
    else:
        entry_id = id_of(name, said)
    if not isinstance(value, dict) or value.get("format") != "rle":
        raise MarkError("rle_invalid", "the region has no brush mask as rle")
    check_size(page.slot, region.get("original_height"), region.get("original_width"))
    labels = value.get("brushlabels")
    if not isinstance(labels, list) or len(labels) != 1:
        raise MarkError("category_unknown", f"the region has labels {labels!r:.80}; one is needed")
    rle = brush.rle_from_code(_bytes(value.get("rle")), page.slot.height, page.slot.width)
    meta = region.get("meta")
    texts = meta.get("text") if isinstance(meta, dict) else None
    reason = text_of(texts[0]) if isinstance(texts, list) and texts else ""
    label = package.check_label(labels[0])
    return Mark(entry_id=entry_id, label=label, rle=rle, said=said, score=score_of(region.get("score")), reason=reason)


def _bytes(value: Any) -> bytes:
    if isinstance(value, list) and all(type(number) is int and 0 <= number < 256 for number in value):
        return bytes(value)
    raise MarkError("rle_invalid", "the brush mask is no list of bytes")
