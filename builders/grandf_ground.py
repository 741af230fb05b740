"""The phrases of a GranD-f caption on its picture: each placed in the caption, its masks decoded, overlaps resolved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from builders import spans
from builders.grandf_index import Entry, Phrase, checked_places
from builders.pictures import Picture
from builders.reading import RecordError, bad, checked_flag, make_object
from builders.rows import Row
from dataengine import masks
from dataengine.builder import Context
from dataengine.errors import ReasonError
from dataengine.records import Account, Bad
from dataengine.sample import Object


@dataclass(slots=True, kw_only=True)
class Grounded:
    """The phrases of a caption: kept spans, in order, with their objects' indices; and what became of the rest.

    num_phrases: published ones that were kept; several may be one span. left_out: what was filtered.
    """

    spans: dict[spans.Span, tuple[int, ...]] = field(default_factory=dict)
    objects: list[Object] = field(default_factory=list)
    num_phrases: int = 0
    bad: list[Bad] = field(default_factory=list)
    left_out: Account = field(default_factory=Account)


@dataclass(slots=True, kw_only=True)
class Placed:
    """A phrase, where it stands, its objects, and why it is left out, if so. num_bad: of its masks."""

    phrase: Phrase
    spans: list[spans.Span] = field(default_factory=list)
    objects: list[Object] = field(default_factory=list)
    num_bad: int = 0
    fate: str | None = None


def ground(context: Context, row: Row, entry: Entry, caption: spans.Caption, picture: Picture) -> Grounded:
    """Place the phrases, decode their masks, resolve overlaps.

    In the benchmark every mask is an object, because all are scored; a caption whose phrases cannot be told apart is
    one phrase with all of them.
    """
    found = Grounded()
    is_benchmark = context.extra["layout"] == "benchmark"
    placed: list[Placed] = []
    taken: set[spans.Span] = set()
    without_mask = "unlinked" if entry.masks else "no_mask"
    for phrase in entry.phrases:
        one = _placed(context, row, phrase, caption, taken, found.bad)
        taken.update(one.spans)
        if one.fate is None or is_benchmark:
            one.objects, refused = _objects(context, row, phrase.masks, picture)
            one.num_bad = len(refused)
            found.bad += refused
            if one.fate is None and (refused or not phrase.masks):
                one.fate = "mask_quarantined" if refused else without_mask
        placed.append(one)
    kept = _kept(placed)
    found.spans = {span: () for span in kept}
    for one in placed:
        if one.fate is None or is_benchmark:
            indices = tuple(range(len(found.objects), len(found.objects) + len(one.objects)))
            found.objects += one.objects
            for span in one.spans if one.fate is None else ():
                if span in found.spans:
                    found.spans[span] += indices
        else:
            found.left_out.filter("annotations", one.fate, len(one.phrase.masks) - one.num_bad)
        if one.fate is None:
            found.num_phrases += 1
        elif one.fate != "phrase_quarantined":
            found.left_out.filter("phrases", one.fate)
    rest, refused = _objects(context, row, entry.masks, picture)
    found.objects += rest
    found.bad += refused
    if is_benchmark and not found.spans and found.objects:
        found.spans = {(0, len(caption.text)): tuple(range(len(found.objects)))}
    return found


def _kept(placed: list[Placed]) -> list[spans.Span]:
    """The spans that are kept, in order; the phrases of the others are told why.

    What is marked is all of a phrase or nothing: a span one of whose masks cannot be used is not kept.
    """
    partial = {span for one in placed if one.fate == "mask_quarantined" for span in one.spans}
    candidates: dict[spans.Span, None] = {}
    for one in placed:
        if one.fate is None:
            whole = [span for span in one.spans if span not in partial]
            candidates.update(dict.fromkeys(whole))
            one.fate = None if whole else "mask_quarantined"
    kept = spans.without_overlaps(candidates)
    shown = set(kept)
    for one in placed:
        if one.fate is None and shown.isdisjoint(one.spans):
            one.fate = "overlap"
    return kept


def _placed(
    context: Context, row: Row, phrase: Phrase, caption: spans.Caption, taken: set[spans.Span], refused: list[Bad]
) -> Placed:
    """A phrase and where it stands, if it can be used."""
    one = Placed(phrase=phrase)
    try:
        if not phrase.is_record:
            raise RecordError("bad_field", "a phrase with a list of its masks was expected")
        if checked_flag(phrase.ignored, "ignore"):
            one.fate = "ignored"
        else:
            one.spans = _spans(caption, phrase, taken)
            one.fate = None if one.spans else "not_in_caption"
    except RecordError as error:
        one.fate = "phrase_quarantined"
        quote = json.dumps(phrase.quote)
        refused.append(bad("phrases", context.extra["file"], f"phrase of image {row.key}", row, error, quote))
    return one


def _spans(caption: spans.Caption, phrase: Phrase, taken: set[spans.Span]) -> list[spans.Span]:
    """Where a phrase stands: where its offsets say, if it does stand there, else the nearest place in the caption.

    Raises:
        RecordError: `bad_span`, `bad_text`.
    """
    if phrase.text is None:
        found = [spans.published(caption, *pair) for pair in checked_places(phrase.places)]
        if None in found:
            raise RecordError("bad_span", f"token positions {str(phrase.places)[:200]} hold no text of the caption")
        return _distinct(found)
    if not isinstance(phrase.text, str) or not phrase.text.strip():
        raise RecordError("bad_text", f"the phrase {repr(phrase.text)[:200]} is no text")
    if phrase.places is None:
        found = [spans.find(caption, phrase.text, taken=taken)]
    else:
        found = []
        for start, end in checked_places(phrase.places):
            span = spans.published(caption, start, end)
            is_there = span is not None and spans.says(caption, span, phrase.text)
            found.append(span if is_there else spans.find(caption, phrase.text, near=max(start - caption.shift, 0)))
    return _distinct(found)


def _distinct(found: Sequence[spans.Span | None]) -> list[spans.Span]:
    return list(dict.fromkeys(span for span in found if span is not None))


def _objects(
    context: Context, row: Row, rles: Sequence[tuple[str, Any]], picture: Picture
) -> tuple[list[Object], list[Bad]]:
    """The objects of masks, each on its own, and the masks that cannot be used."""
    objects, refused = [], []
    for annotation_id, segmentation in rles:
        try:
            rle, measured = masks.measured_from_segmentation(segmentation, picture.height, picture.width)
            objects.append(make_object(rle, picture.height, picture.width, -1, annotation_id, measured=measured))
        except ReasonError as error:
            record = f"mask {annotation_id} of image {row.key}"
            payload = json.dumps(segmentation)
            refused.append(bad("annotations", context.extra["file"], record, row, error, payload))
    return objects, refused
