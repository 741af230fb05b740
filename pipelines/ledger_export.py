"""A ledger at a step as a COCO folder: instances json with the lineage of every mask, and its pictures."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import orjson

from dataengine.errors import UserError
from dataengine.ledger.records import Entry, Picture
from dataengine.ledger.view import Standing, View
from dataengine.store.files import Folder
from pipelines.export.coco import NAMESPACE, Ids
from pipelines.export.output import compressed, safe_folder, safe_name

_NUMBERED = re.compile(r"([a-z0-9_-]{1,40})/[0-9]{12}")


@dataclass(slots=True)
class Exported:
    """What was written. left_out: pictures and masks by reason."""

    file: Path
    pictures: int = 0
    annotations: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def export(
    view: View,
    out: str,
    *,
    split: str = "train",
    pictures: str = "link",
    bare: bool = True,
    people: bool = False,
    searched: bool = False,
) -> Exported:
    """Write what is kept at a step as `annotations/instances_SPLIT.json` and `images/SPLIT/`, which `build` reads.

    The json depends on the view alone: it is the same, byte for byte, at an earlier step and after a rollback to it.
    Ids of pictures are the sources' own where their keys are numbers, those of annotations count from 1. Left out are
    masks of phrases, which are of no category, and pictures that a reviewer called bad as a whole.

    Args:
        out: a local folder; files of earlier exports in it are written anew, pictures kept. pictures: `link`, `copy`
            or `none`. bare: also write pictures without a mask that is written.
        people: only masks that a person drew or accepted. searched: a labeler is taken at its word: what an earlier
            round of it proposed and a later one did not find again is left out, and categories that it looked for in a
            picture are finished there, as those that people annotated throughout, unless a mask of them is in question.
    Raises:
        UserError: a picture is gone or is another than it was.
    """
    root = Path(out)
    if "://" in out:
        raise UserError(f"--out {out}: a COCO folder is written to a local disk")
    name = safe_folder(split)
    target = root / "annotations" / f"instances_{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    done = Exported(target)
    with tempfile.TemporaryFile(dir=target.parent) as spill:
        staged = target.with_name(f".{target.name}.part")
        try:
            with staged.open("wb") as file:
                _write(view, file, spill, done, root / "images" / name, pictures, bare, people, searched)
            os.replace(staged, target)
        finally:
            staged.unlink(missing_ok=True)
    return done


def _write(
    view: View,
    file: IO[bytes],
    spill: IO[bytes],
    done: Exported,
    folder: Path,
    pictures: str,
    bare: bool,
    people: bool,
    searched: bool,
) -> None:
    ids = _ids([picture.key for picture in view.ledger.pictures()])
    categories = [
        {"id": c.id, "name": c.name, "supercategory": c.name, "isthing": int(c.is_thing)}
        for c in view.ledger.categories
    ]
    head = {"info": {"image_namespace": ids.namespace or NAMESPACE}, "licenses": [], "categories": categories}
    file.write(orjson.dumps(head)[:-1] + b',\n"images":[')
    if pictures != "none":
        folder.mkdir(parents=True, exist_ok=True)
    looked_for, current = view.searched(), view.current()
    for picture, found in view.walk(with_checks=False):
        if any(s.decision is not None and s.decision.action == "whole_image_bad" for s in found):
            done.left_out["whole_image_bad"] += 1
            continue
        whole = found = [s for s in found if not s.is_superseded]
        if searched:
            found = current(picture.key, whole)
            if lost := sum(s.entry.state == "kept" for s in whole) - sum(s.entry.state == "kept" for s in found):
                done.left_out["not_found_again"] += lost
        kept = [s for s in found if s.entry.state == "kept"]
        if people:
            done.left_out.update("not_by_people" for s in kept if not _is_by_people(s))
            kept = [s for s in kept if _is_by_people(s)]
        if not kept and not bare:
            done.left_out["without_masks"] += 1
            continue
        name = safe_name(picture.key) + (PurePosixPath(picture.path).suffix.lower() or ".jpg")
        if pictures != "none":
            _place(picture, folder / name, pictures)
        image = {"id": ids.image(picture.key)[0], "file_name": name, "height": picture.height, "width": picture.width}
        looked = looked_for(picture.key) if searched else frozenset()
        image |= {"image_key": picture.key, **_knowledge(picture, found, kept, whole, looked)}
        file.write((b",\n" if done.pictures else b"\n") + orjson.dumps(image))
        done.pictures += 1
        for standing in kept:
            if standing.entry.concept.category_id == -1:
                done.left_out["phrase"] += 1
                continue
            done.annotations += 1
            record = annotation(standing, done.annotations, image)
            spill.write((b",\n" if done.annotations > 1 else b"\n") + orjson.dumps(record))
    file.write(b'\n],\n"annotations":[')
    spill.seek(0)
    shutil.copyfileobj(spill, file)
    file.write(b"\n]}\n")


def _knowledge(
    picture: Picture,
    found: Sequence[Standing],
    kept: Sequence[Standing],
    whole: Sequence[Standing],
    searched: frozenset[int],
) -> dict[str, list[int]]:
    """What is known of a picture's categories, as LVIS's lists: those it lacks, and those that may have more masks.

    What people said stands, whatever a model says. Of the categories that a labeler searched, those are open of which a
    mask is neither written nor refused, unless it is in question beside a written mask of the same; so are those of
    lost masks that have another category now. What a reviewer refused may be there, and wait to be drawn otherwise.

    Args:
        found: masks that stand. kept: those that are written. whole: those that stand, and lost ones.
    """
    entries = {standing.entry.entry_id: standing.entry for standing in whole}
    written = {standing.entry.entry_id for standing in kept}
    open_, refused, undrawn = set(), set(), set()
    for standing in found:
        entry, word = standing.entry, standing.decision
        category, other = entry.concept.category_id, entries.get(entry.relative or "")
        if entry.state == "rejected":
            if word is not None and word.is_by_reviewer:
                refused.add(category)
                undrawn |= {category} if entry.origin == "human" else set()
        elif entry.entry_id not in written:
            is_written = other is not None and other.entry_id in written
            if entry.state == "kept" or other is None or other.concept != entry.concept or not is_written:
                open_.add(category)
            if other is not None and not is_written:
                open_.add(other.concept.category_id)
    there = {standing.entry.concept.category_id for standing in kept} - {-1}
    by_people = {*picture.exhaustive} - undrawn
    return {
        "neg_category_ids": sorted(({*picture.absent} | by_people | (searched - open_ - refused)) - there),
        "not_exhaustive_category_ids": sorted(there - by_people - (searched - open_ - undrawn)),
    }


def _is_by_people(standing: Standing) -> bool:
    """Whether a person drew a mask, or said the newest word on it."""
    word = standing.decision
    return standing.entry.origin == "human" or (word is not None and word.is_by_reviewer)


def _ids(keys: Sequence[str]) -> Ids:
    """Numbers of pictures: their own in the namespace that most of them are of, others behind them."""
    spaces = Counter(found[1] for key in keys if (found := _NUMBERED.fullmatch(key)) is not None)
    common = min(spaces, key=lambda name: (-spaces[name], name), default=None)
    ids = Ids()
    for key in sorted(keys, key=lambda key: key.rpartition("/")[0] != common):
        ids.image(key)
    return ids


def annotation(standing: Standing, number: int, image: dict[str, Any]) -> dict[str, Any]:
    """`annotations[]` of an instances file, with where the mask comes from."""
    entry = standing.entry
    return {
        "id": number,
        "image_id": image["id"],
        "category_id": entry.concept.category_id,
        "bbox": list(entry.bbox),
        "area": entry.area,
        "iscrowd": int(entry.crowd),
        "segmentation": compressed(entry.rle, image["height"], image["width"]),
        "lineage": lineage(entry, standing),
    }


def lineage(entry: Entry, standing: Standing) -> dict[str, Any]:
    """Where a mask comes from: the fields of a sample's `Lineage`, the entry, and the source's annotation id."""
    by = None if standing.decision is None else standing.decision.by
    return {
        "entry_id": entry.entry_id,
        "annotation_id": entry.annotation_id,
        "origin": entry.origin,
        "labeler": None if entry.labeler is None else entry.labeler.name,
        "revision": None if entry.labeler is None else entry.labeler.revision,
        "round": entry.round,
        "score": entry.score if entry.origin == "model" else None,
        "stability": entry.stability,
        "reviewer": by,
    }


def _place(picture: Picture, target: Path, how: str) -> None:
    """Link to a picture, or copy it."""
    place = Folder(picture.path)
    if how == "link":
        if not place.is_local:
            raise UserError(f"--pictures link: {picture.path} is no file of this machine; copy the pictures")
        if not place.path.is_file():
            raise UserError(f"picture {picture.key}: {picture.path} is gone")
        target.unlink(missing_ok=True)
        target.symlink_to(place.path.absolute())
        return
    try:
        data = place.read()
    except FileNotFoundError:
        raise UserError(f"picture {picture.key}: {picture.path} is gone") from None
    if hashlib.sha256(data).hexdigest() != picture.sha256:
        raise UserError(f"picture {picture.key}: {picture.path} is another file than when the ledger was made")
    target.unlink(missing_ok=True)
    target.write_bytes(data)
