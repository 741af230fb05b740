"""What a labeler is, which ones there are, and what may come from one: every answer is checked before it counts."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from dataengine import masks
from dataengine.errors import ReasonError, UserError
from dataengine.ledger import records
from dataengine.ledger.records import Concept, Entry, Picture, Proposal

if TYPE_CHECKING:
    import numpy as np
    from pydantic import BaseModel

MAX_MASKS = 1000  # of a picture; the automatic generators of SAM give some hundreds
MAX_TEXT, MAX_PROMPT = 1000, 10_000  # characters of a concept, and of the JSON of a prompt
LABELERS = {
    "callable": "pipelines.relabel.endpoint:Callable",
    "http": "pipelines.relabel.endpoint:Http",
    "noisy-oracle": "pipelines.relabel.oracle:NoisyOracle",
    "sam": "pipelines.relabel.sam:Sam",
    "sam3": "pipelines.relabel.sam3:Sam3",
    "xsam": "pipelines.relabel.xsam:Xsam",
}

Settings = TypeVar("Settings", bound="BaseModel")


class AnswerError(ReasonError):
    """An answer of a labeler that cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A picture that a labeler is asked about.

    pixels: (height, width, 3) uint8 RGB, read-only; None for a labeler that does not look. known: masks that the
    picture has, of people and of earlier rounds, without those that were rejected.
    """

    picture: Picture
    pixels: np.ndarray | None
    known: tuple[Entry, ...] = ()


class Labeler(Protocol):
    """Proposes masks. What it is, is known at once; weights are loaded by `load`, once in each process that labels.

    name, revision, settings: see `records.Labeler`; the revision tells other weights or code apart. needs_pixels:
    whether pictures are decoded for it. It may also have `asks`, the concepts that it looks for in every picture that
    is not known to lack them; without it nothing is known to be absent where it finds nothing.
    """

    name: str
    revision: str
    settings: str
    needs_pixels: bool

    def load(self) -> None:
        """Make ready what labelling needs. Raises UserError where something is missing."""

    def label(self, questions: Sequence[Question]) -> list[list[Proposal]]:
        """The proposals for each picture, in the order of the questions.

        It may be called from any thread, but never twice at a time. What it raises is the fault of a picture; but too
        little memory halves the batch, and a UserError that is no ReasonError ends the round.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """Which labeler, as a person wrote it. name: of `LABELERS`, or `module:class` of a labeler that is elsewhere."""

    name: str
    settings: Mapping[str, Any]


def parse(name: str, settings: Sequence[str]) -> Spec:
    """A labeler of command line words. settings: `KEY=VALUE`; a value is JSON, or text where it is none.

    Raises:
        UserError: a setting is not written so, or given twice.
    """
    found: dict[str, Any] = {}
    for text in settings:
        key, mark, value = text.partition("=")
        if not mark or not key or key in found:
            raise UserError(f"--set {text}: write KEY=VALUE, each key once")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return Spec(name=name, settings=found)


def make(spec: Spec) -> Labeler:
    """The labeler, not yet loaded.

    Raises:
        UserError: there is no such labeler, or a setting is wrong.
    """
    place = LABELERS.get(spec.name, spec.name)
    module, mark, name = place.partition(":")
    if not mark:
        raise UserError(f"--labeler {spec.name}: there are {', '.join(sorted(LABELERS))}, and module:class of your own")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"--labeler {spec.name}: {error}") from None
    labeler: Labeler = factory(**spec.settings) if spec.name not in LABELERS else factory(spec.settings)
    return labeler


def record_of(labeler: Labeler) -> records.Labeler:
    """What the ledger says of a labeler."""
    return records.Labeler(name=labeler.name, revision=labeler.revision, settings=labeler.settings)


def settings_of(kind: type[Settings], given: Mapping[str, Any], name: str) -> Settings:
    """Settings, checked.

    Raises:
        UserError: one is unknown, missing or wrong.
    """
    from pydantic import ValidationError

    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "settings"
        known = ", ".join(sorted(kind.model_fields))
        raise UserError(f"labeler {name}: {where}: {first['msg']}; it has {known}") from None


def canonical(values: Any) -> str:
    """JSON text that depends on the values only."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


# --- answers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The proposals of an answer to one question, each mask once and none of them empty. empty, doubled: number of
    those that were left out."""

    proposals: list[Proposal]
    empty: int = 0
    doubled: int = 0


def check(answer: object, picture: Picture) -> list[Proposal]:
    """The proposals of an answer to one question; see `read`."""
    return read(answer, picture).proposals


def read(answer: object, picture: Picture) -> Answer:
    """An answer, checked. Of a mask that is proposed twice, the one with the higher score counts.

    Raises:
        AnswerError: `too_many_masks`, `answer_type`, `not_finite`, `score_range`, `bad_text`, `bad_crop`,
            `rle_invalid` or `rle_size`.
    """
    if not isinstance(answer, list | tuple):
        raise AnswerError("answer_type", f"a list of proposals is needed, not {type(answer).__name__}")
    if len(answer) > MAX_MASKS:
        raise AnswerError("too_many_masks", f"{len(answer):,} masks; at most {MAX_MASKS:,} are taken of a picture")
    for number, proposal in enumerate(answer):
        if not isinstance(proposal, Proposal):
            raise AnswerError("answer_type", f"mask {number}: a Proposal is needed, not {type(proposal).__name__}")
        _check_values(proposal, number, picture)
    if not answer:
        return Answer(proposals=[])
    size = picture.height, picture.width
    found: dict[tuple[bytes, Concept, str], Proposal] = {}
    decoded = masks.borders_from_rles([proposal.rle for proposal in answer], *size)
    start, empty = 0, 0
    for number, (proposal, stop) in enumerate(zip(answer, decoded.stops.tolist(), strict=True)):
        area = decoded.figures[number, 0]
        if area < 0:
            _say_what_is_wrong(proposal.rle, size, number)
        if area:  # the same mask must have the same counts, in which runs of nothing may stand
            rle = masks.rle_from_borders(decoded.places[start:stop], *size)
            key = rle, proposal.concept, proposal.prompt
            if key not in found or proposal.score > found[key].score:
                found[key] = _as_written(proposal, rle)
        else:
            empty += 1
        start = stop
    return Answer(proposals=list(found.values()), empty=empty, doubled=len(answer) - empty - len(found))


def _as_written(proposal: Proposal, rle: bytes) -> Proposal:
    """With numbers as files hold them: a whole one may be too large for that."""
    scores = proposal.score, proposal.predicted_iou, proposal.stability
    if rle == proposal.rle and not any(isinstance(one, int) for one in scores):
        return proposal
    score, iou, stability = (None if one is None else float(one) for one in scores)
    assert score is not None
    return replace(proposal, rle=rle, score=score, predicted_iou=iou, stability=stability)


def _say_what_is_wrong(rle: bytes, size: tuple[int, int], number: int) -> NoReturn:
    try:
        masks.counts_from_rle(rle, *size)
    except masks.MaskError as error:
        raise AnswerError(error.reason, f"mask {number}: {error}") from None
    raise AnswerError("rle_invalid", f"mask {number}: no COCO-compressed run lengths")


def _check_values(proposal: Proposal, number: int, picture: Picture) -> None:
    scores = (proposal.score, proposal.predicted_iou, proposal.stability)
    if any(isinstance(x, bool) or not isinstance(x, int | float) for x in scores if x is not None) or scores[0] is None:
        raise AnswerError("answer_type", f"mask {number}: score, predicted_iou and stability are numbers")
    most = sys.float_info.max
    if not all(abs(x) <= most for x in scores if x is not None):
        told = ["too large" if isinstance(x, int) and abs(x) > most else x for x in scores]
        raise AnswerError("not_finite", f"mask {number}: score, predicted_iou, stability are {told}")
    if not 0 <= proposal.score <= 1:
        raise AnswerError("score_range", f"mask {number}: a score is from 0 to 1, not {float(proposal.score)}")
    if not isinstance(proposal.rle, bytes):
        raise AnswerError(
            "answer_type", f"mask {number}: compressed counts are bytes, not {type(proposal.rle).__name__}"
        )
    concept = proposal.concept
    if not isinstance(concept, Concept) or type(concept.category_id) is not int or not isinstance(proposal.prompt, str):
        raise AnswerError("answer_type", f"mask {number}: a Concept with a whole category_id, and a prompt, are needed")
    if not is_text(concept.text, MAX_TEXT) or not concept.text or not is_text(proposal.prompt, MAX_PROMPT):
        raise AnswerError("bad_text", f"mask {number}: {concept.text!r:.80} or its prompt is no text, or too long")
    if not -1 <= concept.category_id < 1 << 63:
        raise AnswerError("answer_type", f"mask {number}: a category_id is from -1 to 2^63 - 1")
    if proposal.crop is not None:
        _check_crop(proposal.crop, number, picture)


def is_text(value: object, most: int) -> bool:
    """Whether a value is text that a file can hold, of `most` characters at most."""
    if not isinstance(value, str) or len(value) > most:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON may hold lone surrogates
        return False
    return True


def _check_crop(crop: object, number: int, picture: Picture) -> None:
    if isinstance(crop, tuple) and len(crop) == 4 and all(type(value) is int for value in crop):
        x, y, w, h = crop
        if x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= picture.width and y + h <= picture.height:
            return
    raise AnswerError("bad_crop", f"mask {number}: {crop!r:.80} is no x, y, w, h inside the picture")
