"""Conversations: the wording of each task, and `render`, which puts a sample's facts into turns.

Facts come first: `render` is pure, so a trainer may render anew each epoch. `{spans}` stands for the conditions,
`{variant}` for panoptic, semantic or instance, `{caption}` and `{explanation}` for what the sample says of itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from dataengine import tokens
from dataengine.sample import Condition, Sample, Turn

VERSION = 1  # of the wording; part of a dataset's identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """Questions and answers of a task; one of each is drawn for every pair of turns."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]


_SEG_ANSWERS = (
    "<SEG>",
    "Here you are: <SEG>.",
    "Sure, the result is <SEG>.",
    "The segmentation is <SEG>.",
    "This is what I found: <SEG>.",
    "Done. <SEG>",
)

_GENERIC = Wording(
    questions=(
        "Give the {variant} segmentation of this picture for these categories: {spans}.",
        "Segment the picture ({variant}) into the following categories: {spans}.",
        "Which pixels belong to each of these categories? Answer with a {variant} segmentation. {spans}",
        "Here is a list of categories: {spans}. Provide the {variant} segmentation of the image.",
        "I need {variant} masks for {spans} in this image.",
        "Make a {variant} segmentation of what is shown, choosing from: {spans}.",
        "Look at the image and mark, as a {variant} segmentation, everything that falls under {spans}.",
        "Please return {variant} segmentation masks. The categories are {spans}.",
        "For the classes {spans}, what does the {variant} segmentation of this photo look like?",
    ),
    answers=_SEG_ANSWERS,
)

_REFERRING = Wording(
    questions=(
        "Segment {spans} in this image.",
        "Where is {spans}? Answer with a mask.",
        "Please mark the pixels of {spans}.",
        "Can you find {spans} and segment it?",
        "I am looking for {spans}. Show me its mask.",
        "Give me the segmentation of {spans}.",
        "Outline what this describes: {spans}.",
        "Which part of the picture is {spans}? Segment it.",
        "Return the mask for {spans}.",
    ),
    answers=_SEG_ANSWERS,
)

_GENERAL_REFERRING = Wording(
    questions=(
        "Segment everything that matches {spans}; there may be several objects or none.",
        "Find whatever fits {spans} and mask it.",
        "Mark all the pixels of {spans}, if there are any.",
        "Does the image show {spans}? Answer with a mask of all of it.",
        "Give one mask that covers {spans}.",
        "Which objects does {spans} describe? Segment all of them.",
        "Return the mask for {spans}; it is empty when nothing matches.",
        "Please segment each thing meant by {spans}.",
        "Cover every object that {spans} refers to.",
    ),
    answers=_SEG_ANSWERS,
)

_REASONING = Wording(
    questions=(
        "{spans} Answer with a segmentation mask.",
        "Think about the image, then segment the answer: {spans}",
        "{spans} Please show it as a mask.",
        "Work out what is meant and mark it. {spans}",
        "Here is a question about the picture: {spans} Segment what it asks for.",
        "{spans} Mark the pixels that answer this.",
        "Find the answer in the image and outline it: {spans}",
        "{spans} Respond with the mask of the answer.",
        "Read the question and segment the object it is about. {spans}",
    ),
    answers=_SEG_ANSWERS,
)

_EXPLAINED = Wording(
    questions=(
        "{spans} Answer with a segmentation mask and say why.",
        "Think about the image, segment the answer and give your reason: {spans}",
        "{spans} Explain your answer, and show it as a mask.",
        "Work out what is meant, explain it and mark it. {spans}",
        "Here is a question about the picture: {spans} Segment what it asks for, with an explanation.",
        "{spans} Tell me the reason, then mark the pixels.",
        "{spans} Please reason in words before you give the mask.",
        "Find the answer in the image, justify it and outline it: {spans}",
        "Read the question, say what it is about and why, and segment that. {spans}",
    ),
    answers=(
        "{explanation} <SEG>",
        "{explanation} Here is the mask: <SEG>.",
        "{explanation} The segmentation is <SEG>.",
        "{explanation} So the result is <SEG>.",
        "{explanation} It is marked here: <SEG>.",
    ),
)

_GROUNDED = Wording(
    questions=(
        "Describe the image and segment what you mention.",
        "What is in this picture? Ground each phrase with a mask.",
        "Write a caption, with masks for the things in it.",
        "Tell me what you see, and mark every object you name.",
        "Give a short description with grounded segmentation.",
        "Caption this image; the phrases should come with their masks.",
        "Describe the scene and show where each part of your description is.",
        "Please summarise the picture and segment the mentioned objects.",
        "What does the image show? Interleave the answer with segmentation masks.",
    ),
    answers=(
        "{caption} <SEG>",
        "{caption} The masks are <SEG>.",
        "{caption} Segmentation: <SEG>.",
        "{caption} Here are the masks: <SEG>.",
        "{caption} Each phrase is marked: <SEG>.",
    ),
)

_VISUAL = Wording(
    questions=(
        "Each of these regions shows a kind of object: {spans}. Segment every object of the same kinds.",
        "For the marked regions {spans}, find all objects of the same category in the image.",
        "Segment everything that is of the same type as {spans}.",
        "Use these regions as examples: {spans}. Which objects of their categories are in the picture?",
        "Here are visual prompts: {spans}. Return the masks of all instances they stand for.",
        "Look at {spans} and segment all instances of what they show.",
        "What else is like {spans}? Mask all of it, the examples too.",
        "Find and segment each object whose category is shown by one of {spans}.",
        "Given the examples {spans}, mark every instance of their classes.",
    ),
    answers=_SEG_ANSWERS,
)

_VISUAL_ELSEWHERE = Wording(  # some of the examples are in other pictures, and what they show need not be in this one
    questions=(
        "Each of these regions shows a kind of object: {spans}. Segment every object of those kinds in this image.",
        "For the marked regions {spans}, find all objects of their categories in this image, if there are any.",
        "Segment everything in this image that is of the same type as {spans}.",
        "Use these regions as examples: {spans}. Which objects of their categories are in this picture?",
        "Here are visual prompts: {spans}. Return the masks of all their instances in this image; there may be none.",
        "Look at {spans} and segment all instances of what they show, as far as this image has any.",
        "What in this image is like {spans}? Mask all of it.",
        "Find and segment each object of this image whose category is shown by one of {spans}.",
        "Given the examples {spans}, mark every instance of their classes in this image.",
    ),
    answers=_SEG_ANSWERS,
)

_INTERACTIVE = Wording(
    questions=(
        "Segment the objects marked by these regions: {spans}.",
        "Give the mask of each marked object: {spans}.",
        "I have marked some objects: {spans}. Cut them out.",
        "Which objects do {spans} point at? Segment exactly those.",
        "Please turn these marks into masks: {spans}.",
        "For {spans}, return the mask of the object under each mark.",
        "Segment what is selected: {spans}.",
        "Outline the object at each of {spans}.",
        "Make a precise mask for every selection: {spans}.",
    ),
    answers=_SEG_ANSWERS,
)

WORDINGS: Mapping[str, Wording] = {
    "genseg": _GENERIC,
    "ovseg": _GENERIC,
    "refseg": _REFERRING,
    "grefseg": _GENERAL_REFERRING,
    "reaseg": _REASONING,
    "gcgseg": _GROUNDED,
    "vgdseg": _VISUAL,
    "intseg": _INTERACTIVE,
}
_ONE_PER_TURN = ("refseg", "grefseg", "reaseg")


def render(sample: Sample, rng: np.random.Generator) -> Sample:
    """The sample with its conversation; each condition is given its span and its `<SEG>`.

    Pure: the same facts and the same generator state give the same text. What was rendered before is replaced. A
    `chat` sample keeps its turns, which are facts; a `gcgseg` sample needs its `caption`; a question that comes with an
    explanation asks for it.

    Args:
        rng: `keyed(seed, sample_id, "conversation", VERSION)`, or a trainer's own for another wording.
    Raises:
        ValueError: the sample's facts do not suffice for its task.
    """
    if sample.task == "chat":
        return sample
    if not sample.conditions:
        raise ValueError(f"{sample.sample_id}: a {sample.task} conversation needs a condition")
    wording = _VISUAL_ELSEWHERE if sample.references else WORDINGS[sample.task]
    opening = f"{tokens.IMAGE}\n" if sample.image is not None else ""
    turns: list[Turn] = []
    conditions: list[Condition] = []
    if sample.task in _ONE_PER_TURN:
        for number, condition in enumerate(sample.conditions):
            question, answer = _draw(_EXPLAINED if condition.explanation is not None else wording, rng)
            answer = answer.replace("{explanation}", condition.explanation or "")
            text, placed = _place(opening if not number else "", question, (condition,), 2 * number, number)
            turns += [_user(text), _assistant(answer)]
            conditions += placed
    elif sample.task == "gcgseg":
        question, answer = _draw(wording, rng)
        if sample.caption is None:
            raise ValueError(f"{sample.sample_id}: a gcgseg conversation needs a caption")
        text = answer.replace("{caption}", sample.caption)
        spans = tokens.find_spans(text)
        if len(spans) != len(sample.conditions):
            raise ValueError(
                f"{sample.sample_id}: the caption has {len(spans)} spans for {len(sample.conditions)} conditions"
            )
        turns += [_user(opening + question), _assistant(text)]
        conditions += [
            _placed(condition, 0, 1, span.start, span.end)
            for condition, span in zip(sample.conditions, spans, strict=True)
        ]
    else:
        question, answer = _draw(wording, rng)
        question = question.replace("{variant}", sample.variant or "generic")
        text, conditions = _place(opening, question, sample.conditions, 0, 0)
        turns += [_user(text), _assistant(answer)]
    return replace(sample, turns=tuple(turns), conditions=tuple(conditions))


def _draw(wording: Wording, rng: np.random.Generator) -> tuple[str, str]:
    question = wording.questions[int(rng.integers(len(wording.questions)))]
    return question, wording.answers[int(rng.integers(len(wording.answers)))]


def _place(
    opening: str, question: str, conditions: tuple[Condition, ...], turn: int, seg: int
) -> tuple[str, list[Condition]]:
    """Put the conditions' spans into the question, and the offsets into the conditions."""
    before, _, after = question.partition("{spans}")
    text = opening + before
    placed = []
    for number, condition in enumerate(conditions):
        text += ", " if number else ""
        start = len(text)
        content = tokens.REGION if condition.kind == "region" else condition.text
        text += f"{tokens.PHRASE_OPEN}{content}{tokens.PHRASE_CLOSE}"
        placed.append(_placed(condition, seg, turn, start, len(text)))
    return text + after, placed


def _placed(condition: Condition, seg: int, turn: int, start: int, end: int) -> Condition:
    """The condition with its place; written out, for `replace` takes twice as long and a question may name hundreds."""
    return Condition(
        kind=condition.kind,
        text=condition.text,
        category_id=condition.category_id,
        objects=condition.objects,
        exemplar=condition.exemplar,
        reference=condition.reference,
        shots=condition.shots,
        explanation=condition.explanation,
        seg=seg,
        turn=turn,
        start=start,
        end=end,
    )


def _user(text: str) -> Turn:
    return Turn(role="user", text=text, supervised=False)


def _assistant(text: str) -> Turn:
    return Turn(role="assistant", text=text, supervised=True)
