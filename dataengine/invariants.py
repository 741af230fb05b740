"""What must hold inside a sample; the shard writer enforces it and `validate` checks it again."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import product

import numpy as np

from dataengine import masks, tokens
from dataengine.errors import ReasonError
from dataengine.kernels import runlengths
from dataengine.sample import (
    PROFILES,
    PROMPT_KINDS,
    PROMPT_STATUSES,
    TASKS,
    Condition,
    Object,
    Prompt,
    Reference,
    Sample,
)

ROLES = ("user", "assistant")
CONDITION_KINDS = ("phrase", "region")
PROMPT_NAMES = frozenset(product(PROMPT_KINDS, PROFILES, PROMPT_STATUSES))
INT16_MAX, INT32_MAX = 2**15 - 1, 2**31 - 1
MAX_RADIUS = 1024.0  # px


class InvariantError(ReasonError):
    """A sample whose links do not hold. `reason` names the invariant, the message the sample."""

    def __init__(self, sample_id: str, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.args = (sample_id, reason, message)  # what it is made of again when it is unpickled
        self.sample_id, self.message = sample_id, message

    def __str__(self) -> str:
        return f"{self.sample_id}: {self.message}"


def check(sample: Sample) -> None:
    """Check every invariant that one sample can be checked for on its own.

    Uniqueness of `sample_id` and the image header are checked where shards and image bytes are read.

    Raises:
        InvariantError: the first invariant that does not hold.
    """
    if sample.task not in TASKS:
        raise InvariantError(sample.sample_id, "task", f"{sample.task!r} is no task")
    _check_ranges(sample)
    _check_roles(sample)
    _check_spans(sample)
    _check_regions(sample)
    _check_segs(sample)
    _check_links(sample)
    _check_masks(sample)
    for number, thing in enumerate(sample.objects):
        if thing.prompts:
            _check_prompts(sample.sample_id, f"object {number}", thing.prompts)
    _check_points(sample)
    _check_image_marker(sample)


def _check_ranges(sample: Sample) -> None:
    """Check that numbers fit their columns, so that a shard can hold the sample."""
    for name, number in (
        ("objects", len(sample.objects)),
        ("references", len(sample.references)),
        ("turns", len(sample.turns)),
    ):
        if number > INT16_MAX:
            raise InvariantError(sample.sample_id, "range", f"{number} {name}; at most {INT16_MAX} are possible")
    if not (0 <= sample.height <= INT32_MAX and 0 <= sample.width <= INT32_MAX):
        raise InvariantError(sample.sample_id, "range", f"a picture of {sample.height} x {sample.width} pixels")
    places: tuple[tuple[str, Sequence[Condition | Object | Reference]], ...] = (
        ("condition", sample.conditions),
        ("object", sample.objects),
        ("reference", sample.references),
    )
    for name, values in places:
        for number, value in enumerate(values):
            if not -INT32_MAX - 1 <= value.category_id <= INT32_MAX:
                raise InvariantError(
                    sample.sample_id, "range", f"{name} {number}: category {value.category_id} does not fit 32 bits"
                )


def _check_roles(sample: Sample) -> None:
    for index, turn in enumerate(sample.turns):
        if turn.role not in ROLES:
            raise InvariantError(sample.sample_id, "role", f"turn {index}: {turn.role!r} is no role")


def _check_image_marker(sample: Sample) -> None:
    images = sum(tokens.count(turn.text, tokens.IMAGE) for turn in sample.turns)
    if images != (sample.image is not None):
        wanted = "none is allowed without an image" if sample.image is None else "it must be there once"
        raise InvariantError(sample.sample_id, "image_marker", f"<image> stands {images} times; {wanted}")
    if images:
        first = next((turn.text for turn in sample.turns if turn.role == "user"), "")
        if not first.startswith(f"{tokens.IMAGE}\n"):
            raise InvariantError(
                sample.sample_id,
                "image_marker",
                "<image> and a newline do not stand at the start of the first question",
            )


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
        if condition.kind not in CONDITION_KINDS:
            raise InvariantError(
                sample.sample_id, "condition_kind", f"condition {number}: {condition.kind!r} is no kind of condition"
            )
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
        if len(shown) != (condition.kind == "region") or min(condition.exemplar, condition.reference) < -1:
            raise InvariantError(
                sample.sample_id,
                "region_prompt",
                f"condition {number} is a {condition.kind} with exemplar {condition.exemplar} and "
                f"reference {condition.reference}",
            )
        if condition.shots and condition.reference < 0:
            raise InvariantError(
                sample.sample_id, "region_prompt", f"condition {number} has further shots, but no reference"
            )
        for index, values in [*shown, *((shot, sample.references) for shot in condition.shots)]:
            if not 0 <= index < len(values) or all(p.status == "none" for p in values[index].prompts):
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
        if condition.exemplar >= 0 and condition.exemplar not in condition.objects:
            raise InvariantError(
                sample.sample_id,
                "exemplar",
                f"condition {number} shows object {condition.exemplar}, which is none of its objects",
            )


def _check_masks(sample: Sample) -> None:
    """Check all masks on the picture's canvas, decoded together, and those of references."""
    height, width = sample.height, sample.width
    places = [f"object {number}" for number in range(len(sample.objects))]
    rles = [thing.rle for thing in sample.objects]
    for number, thing in enumerate(sample.objects):
        for prompt in thing.prompts:
            if prompt.rle is not None:
                places.append(f"mask prompt of object {number}")
                rles.append(prompt.rle)
    if sample.ignore is not None:
        places.append("ignore")
        rles.append(sample.ignore)
    figures = _measured(sample.sample_id, places, rles, height, width)
    for number, (thing, (area, x0, y0, x1, y1)) in enumerate(zip(sample.objects, figures, strict=False)):
        if area != thing.area:
            raise InvariantError(
                sample.sample_id, "area", f"object {number}: area {thing.area} stated, {area} in the mask"
            )
        left, top, w, h = thing.bbox
        # a NaN is within no limits
        if not (abs(left - x0) <= 1 and abs(top - y0) <= 1 and abs(left + w - x1) <= 1 and abs(top + h - y1) <= 1):
            stated = (x0, y0, x1 - x0, y1 - y0)
            raise InvariantError(
                sample.sample_id, "bbox", f"object {number}: box {thing.bbox} stated, {stated} in the mask"
            )
    for place, (area, *_) in zip(places[len(sample.objects) :], figures[len(sample.objects) :], strict=True):
        if not area and place != "ignore":
            raise InvariantError(sample.sample_id, "prompt_rle", f"{place}: no pixel is set")
    for number, reference in enumerate(sample.references):
        masks_of = {f"reference {number}": reference.rle}
        masks_of |= {f"mask prompt {i} of reference {number}": p.rle for i, p in enumerate(reference.prompts) if p.rle}
        _measured(sample.sample_id, list(masks_of), list(masks_of.values()), reference.height, reference.width)
        _check_prompts(sample.sample_id, f"reference {number}", reference.prompts)
        for prompt in reference.prompts:
            _check_inside(sample.sample_id, f"reference {number}", prompt, reference.height, reference.width)


def _measured(sample_id: str, places: list[str], rles: list[bytes], height: int, width: int) -> list[list[int]]:
    """Area and box x0, y0, x1, y1 of each mask, px. places: what each is called in an error."""
    if not rles:
        return []
    possible = height > 0 and width > 0 and height * width < masks.MAX_PIXELS
    if possible:
        codes = np.frombuffer(b"".join(rles), dtype=np.uint8)
        ends = np.array([len(rle) for rle in rles], dtype=np.int64).cumsum()
        figures: list[list[int]] = runlengths.measure_codes(codes, ends, height, width).tolist()
    for index, (place, rle) in enumerate(zip(places, rles, strict=True)):
        if not possible or figures[index][0] < 0:
            try:
                masks.measure(rle, height, width)
            except masks.MaskError as error:
                reason = "prompt_rle" if "prompt" in place else "rle"
                raise InvariantError(sample_id, reason, f"{place}: {error}") from None
    return figures


def _check_prompts(sample_id: str, place: str, prompts: Sequence[Prompt]) -> None:
    """Check the fields of prompts, but for where their points and masks lie."""
    for prompt in prompts:
        if (prompt.kind, prompt.profile, prompt.status) not in PROMPT_NAMES:
            for name, value, known in (
                ("kind", prompt.kind, PROMPT_KINDS),
                ("profile", prompt.profile, PROFILES),
                ("status", prompt.status, PROMPT_STATUSES),
            ):
                if value not in known:
                    raise InvariantError(
                        sample_id,
                        f"prompt_{name}",
                        f"{place}: a prompt has the {name} {value!r}, which is none of {known}",
                    )
        if not _is_drawable(prompt):
            raise InvariantError(
                sample_id,
                "prompt_points",
                f"{place}: a {prompt.kind} ({prompt.status}) of {len(prompt.points)} numbers in {prompt.parts}",
            )
        if not (
            0 <= prompt.radius <= MAX_RADIUS
            and 0 <= prompt.inside <= 1
            and 0 <= prompt.other <= 1
            and 0 <= prompt.version <= INT16_MAX
        ):
            raise InvariantError(
                sample_id,
                "prompt_range",
                f"{place}: a {prompt.kind} has radius {prompt.radius}, inside {prompt.inside}, other {prompt.other}, "
                f"version {prompt.version}",
            )


def _is_drawable(prompt: Prompt) -> bool:
    """Whether a prompt has the geometry of its kind: whole parts, boxes of two ordered corners, masks as RLE."""
    if prompt.status == "none":
        return not prompt.points and not prompt.parts and prompt.rle is None
    if prompt.kind == "mask":
        return not prompt.points and not prompt.parts and prompt.rle is not None
    points, parts = prompt.points, prompt.parts
    if prompt.rle is not None or not parts or min(parts) < 1 or len(points) != 2 * sum(parts):
        return False
    if prompt.kind == "box":
        corners = zip(points[::4], points[1::4], points[2::4], points[3::4], strict=False)
        return set(parts) == {2} and all(a < c and b < d for a, b, c, d in corners)
    return prompt.kind == "scribble" or set(parts) == {1}


def _check_points(sample: Sample) -> None:
    """Check that the points of all objects' prompts lie in the picture."""
    packed = [
        struct.pack(f"{len(prompt.points)}d", *prompt.points)
        for thing in sample.objects
        for prompt in thing.prompts
        if prompt.points
    ]
    if not packed:
        return
    points = np.frombuffer(b"".join(packed))  # all at once: most samples have thousands
    if points.min() >= 0 and points[::2].max() <= sample.width and points[1::2].max() <= sample.height:
        return
    for number, thing in enumerate(sample.objects):
        for prompt in thing.prompts:
            _check_inside(sample.sample_id, f"object {number}", prompt, sample.height, sample.width)


def _check_inside(sample_id: str, place: str, prompt: Prompt, height: int, width: int) -> None:
    for x, y in zip(prompt.points[::2], prompt.points[1::2], strict=True):
        if not (0 <= x <= width and 0 <= y <= height):
            raise InvariantError(
                sample_id,
                "prompt_points",
                f"{place}: a {prompt.kind} has the point ({x:g}, {y:g}), outside the {width} x {height} picture",
            )
