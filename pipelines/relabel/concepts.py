"""What labelers are asked for: categories by name, of a list, a mapping or a file; phrases of pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataengine.errors import UserError
from dataengine.ledger.records import Concept, Entry
from pipelines.relabel import overlaps
from pipelines.relabel.labelers import MAX_TEXT, Question, is_text

Categories = str | list[str] | dict[str, int]


def concepts_of(categories: Categories) -> list[Concept]:
    """The concepts of a setting: names, names with their ids, or a JSON file with `categories` (id, name), as COCO's.

    Raises:
        UserError: there is none, one is no text, or the file is no such file.
    """
    if isinstance(categories, str):
        found = [_concept(one.get("name"), one.get("id"), categories) for one in _read(categories)]
    elif isinstance(categories, Mapping):
        found = [_concept(name, number, "categories") for name, number in categories.items()]
    else:
        found = [_concept(name, -1, "categories") for name in categories]
    if not found:
        raise UserError("categories: there is none")
    if len({concept.text for concept in found}) < len(found):
        raise UserError("categories: a name stands for two of them")
    return found


def _concept(name: Any, number: Any, where: str) -> Concept:
    if not is_text(name, MAX_TEXT) or not name.strip() or type(number) is not int:
        raise UserError(f"{where}: a category of the name {name!r:.80} and the id {number!r:.40} cannot be asked for")
    return Concept(text=name, category_id=number)


def _read(path: str) -> list[Mapping[str, Any]]:
    document = read_json(path)
    found = document.get("categories") if isinstance(document, Mapping) else None
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise UserError(f"{path}: a list `categories` of id and name is needed")
    return sorted(found, key=lambda one: (str(type(one.get("id"))), one.get("id") or 0))


def phrases_of(path: str) -> dict[str, list[str]]:
    """Phrases by the name of their picture's file, of a JSON object. Raises UserError where it is none."""
    document = read_json(path)
    is_good = isinstance(document, Mapping) and all(
        isinstance(some, list) and all(is_text(one, MAX_TEXT) and one.strip() for one in some)
        for some in document.values()
    )
    if not is_good:
        raise UserError(f"{path}: an object is needed, of file names and lists of phrases")
    return {str(name): list(dict.fromkeys(some)) for name, some in document.items()}


def read_json(path: str) -> Any:
    """Raises UserError where a file is missing or no JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: no JSON: {error}") from None


def wanted(concepts: Sequence[Concept], question: Question) -> list[Concept]:
    """Those that a picture is not known to lack. Which category a name without an id is of, its known masks say."""
    absent = set(question.picture.absent)
    lacking = [Concept(text="", category_id=number) for number in sorted(absent)]
    lacking += [entry.concept for entry in question.known if entry.concept.category_id in absent]
    lacks = overlaps.same_concepts(concepts, lacking)
    return [concept for concept, row in zip(concepts, lacks, strict=True) if not row.any()]


def of_concept(known: Sequence[Entry], concept: Concept) -> list[int]:
    """Which masks show a concept: of its category, or, where an id is missing, in its words."""
    found: list[int] = overlaps.same_concepts([concept], [entry.concept for entry in known])[0].nonzero()[0].tolist()
    return found
