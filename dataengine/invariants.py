"""What must hold inside a sample; the shard writer enforces it and `validate` checks it again."""

from __future__ import annotations

from collections.abc import Sequence

from dataengine import masks, tokens
from dataengine.sample import TASKS, Object, Reference, Sample


class InvariantError(ValueError):
    """A sample whose links do not hold. `reason` names the invariant, the message the sample."""

    def __init__(self, sample_id: str, reason: str, message: str) -> None:
        super().__init__(f"{sample_id}: {message}")
        self.reason = reason


def check(sample: Sample) -> None:
    """Check every invariant that one sample can be checked for on its own.

    Uniqueness of `sample_id` and the image header are checked where shards and image bytes are read.

    Raises:
        InvariantError: the first invariant that does not hold.
    """

    def refuse(reason: str, message: str) -> InvariantError:
        return InvariantError(sample.sample_id, reason, message)

    if sample.task not in TASKS:
        raise refuse("task", f"{sample.task!r} is no task")
    _check_spans(sample)
    _check_regions(sample)
    _check_segs(sample)
    _check_links(sample)
    _check_masks(sample)
    images = sum(tokens.count(turn.text, tokens.IMAGE) for turn in sample.turns)
    if images > 1:
        raise refuse("image_marker", f"<image> stands {images} times; once at most is allowed")
    if images and sample.image is None:
        raise refuse("image_marker", "<image> stands in a sample without an image")


def _check_spans(sample: Sample) -> None:
    expected = []
    for index, turn in enumerate(sample.turns):
        try:
            found = tokens.find_spans(turn.text)
        except tokens.SpanError as error:
            raise InvariantError(sample.sample_id, "span", f"turn {index}: {error}") from None
        expected += [(index, span.start, span.end) for span in found]
    stated = [(c.turn, c.start, c.end) for c in sample.conditions]
    if stated != expected:
        raise InvariantError(
            sample.sample_id,
            "span",
            f"conditions claim the spans (turn, start, end) {stated}; the conversation has {expected}",
        )


def _check_regions(sample: Sample) -> None:
    markers = sum(tokens.count(turn.text, tokens.REGION) for turn in sample.turns)
    regions = [c for c in sample.conditions if c.kind == "region"]
    if markers != len(regions):
        raise InvariantError(
            sample.sample_id, "region_count", f"{markers} <region> markers for {len(regions)} region conditions"
        )
    for number, condition in enumerate(sample.conditions):
        span = sample.turns[condition.turn].text[condition.start : condition.end]
        if (condition.kind == "region") != (span == tokens.REGION_SPAN):
            raise InvariantError(
                sample.sample_id, "region_span", f"condition {number} is a {condition.kind} but its span is {span!r}"
            )
        places: list[tuple[int, Sequence[Object | Reference]]] = [
            (condition.exemplar, sample.objects),
            (condition.reference, sample.references),
        ]
        shown = [(index, values) for index, values in places if index >= 0]
        if len(shown) != (condition.kind == "region"):
            raise InvariantError(
                sample.sample_id,
                "region_prompt",
                f"condition {number} is a {condition.kind} with exemplar {condition.exemplar} and "
                f"reference {condition.reference}",
            )
        for index, values in shown:
            if index >= len(values) or all(p.status == "none" for p in values[index].prompts):
                raise InvariantError(
                    sample.sample_id, "region_prompt", f"condition {number} shows {index}, which has no prompt"
                )


def _check_segs(sample: Sample) -> None:
    count = sum(tokens.count(turn.text, tokens.SEG) for turn in sample.turns)
    segs = {c.seg for c in sample.conditions}
    if segs != set(range(count)):
        raise InvariantError(sample.sample_id, "seg", f"{count} <SEG> markers; conditions use {sorted(segs)}")


def _check_links(sample: Sample) -> None:
    for number, condition in enumerate(sample.conditions):
        for index in condition.objects:
            if not 0 <= index < len(sample.objects):
                raise InvariantError(
                    sample.sample_id,
                    "object_index",
                    f"condition {number} names object {index} of {len(sample.objects)}",
                )
            if sample.objects[index].crowd:
                raise InvariantError(sample.sample_id, "crowd", f"condition {number} names crowd object {index}")


def _check_masks(sample: Sample) -> None:
    for number, thing in enumerate(sample.objects):
        try:
            area, (x, y, w, h) = masks.measure(thing.rle, sample.height, sample.width)
        except masks.MaskError as error:
            raise InvariantError(sample.sample_id, "rle", f"object {number}: {error}") from None
        if area != thing.area:
            raise InvariantError(
                sample.sample_id, "area", f"object {number}: area {thing.area} stated, {area} in the mask"
            )
        left, top, width, height = thing.bbox
        offsets = (left - x, top - y, left + width - x - w, top + height - y - h)
        if not all(abs(offset) <= 1 for offset in offsets):
            raise InvariantError(
                sample.sample_id, "bbox", f"object {number}: box {thing.bbox} stated, {(x, y, w, h)} in the mask"
            )
    extras = [(f"reference {n}", r.rle, r.height, r.width) for n, r in enumerate(sample.references)]
    if sample.ignore is not None:
        extras.append(("ignore", sample.ignore, sample.height, sample.width))
    for name, rle, height, width in extras:
        try:
            masks.counts_from_rle(rle, height, width)
        except masks.MaskError as error:
            raise InvariantError(sample.sample_id, "rle", f"{name}: {error}") from None
