"""Conversations as ids: chunk by chunk, with pseudo ids where pictures and regions go, and what each position is for.

The rules are those of the reference (X-SAM `dataset/utils/encode.py`, branch AAAI26_Archive), but for one: it cuts
what is too long blindly; here whole question-answer pairs are left out, and the result says how many.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dataengine import tokens
from dataengine.conversation import WORDINGS
from dataengine.errors import ReasonError, UserError
from dataengine.sample import Turn
from model.templates import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMAGE_ID, REGION_ID = -200, -300  # stand for what pictures and regions become; no tokenizer knows them
IGNORED = -100  # label of a position that is not learned
NONE = -1  # condition and <SEG> number of a position that has none
MARKERS = (tokens.SEG, tokens.PHRASE_OPEN, tokens.PHRASE_CLOSE)  # in the order in which released weights expect them

_PSEUDO_IDS = {tokens.IMAGE: IMAGE_ID, tokens.REGION: REGION_ID}
_PSEUDO = re.compile(f"({'|'.join(map(re.escape, _PSEUDO_IDS))})")
_TINY_SPECIAL = ("<pad>", "<s>", "<|user|>", "<|assistant|>", "<|end|>")
_TINY_SIZE = 512
_TINY_NAMES = "circle, square, triangle, star, ring, cross, diamond, hexagon; red, green, blue, yellow, left, right"


class WordsError(ReasonError):
    """A conversation that cannot be encoded: `too_long`, `span`, `no_question`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A question and its answer; an answer that is None is for the model to give. is_learned: the answer has a loss."""

    question: str
    answer: str | None
    is_learned: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkerIds:
    """Ids of `<SEG>`, `<p>` and `</p>`."""

    seg: int
    phrase_open: int
    phrase_close: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """An encoded conversation.

    input_ids: (L,) int64, IMAGE_ID and REGION_ID where pictures and regions go. labels: (L,) int64, IGNORED where
    nothing is learned. cond_ids: (L,) int64, i within the i-th `<p>…</p>`, tags included, else NONE. seg_ids: (L,)
    int64, i at the i-th `<SEG>`, else NONE. num_left_out: question-answer pairs left out at the end.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    cond_ids: torch.Tensor
    seg_ids: torch.Tensor
    num_left_out: int = 0

    @property
    def num_conditions(self) -> int:
        return int(self.cond_ids.max()) + 1

    @property
    def num_segs(self) -> int:
        return int(self.seg_ids.max()) + 1


# --- conversations ------------------------------------------------------------------------------------------------


def exchanges(turns: Iterable[Turn]) -> list[Exchange]:
    """Turns as question-answer pairs.

    As in the reference, answers before the first question and a question after the last answer are left out, and
    questions that follow each other are one.
    """
    found: list[Exchange] = []
    question: str | None = None
    for turn in turns:
        if turn.role == "user":
            question = (question or "") + turn.text
        elif question is not None or found:
            found.append(Exchange(question=question or "", answer=turn.text, is_learned=turn.supervised))
            question = None
    return found


def encode(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    conversation: Sequence[Exchange],
    *,
    max_positions: int,
    image_tokens: int = 1,
    region_tokens: int = 1,
    has_image: bool = True,
    may_cut: bool = False,
) -> Words:
    """A conversation as ids.

    Text around `<image>` and `<region>` is tokenised piece by piece, as the reference does: tokenizers that put a
    blank in front of a text give other ids for the whole.

    Args:
        tokenizer: one that has the markers (`add_markers`).
        conversation: only the last answer may be None.
        max_positions: of the sequence after expansion, in which `<image>` takes `image_tokens` positions and `<region>`
            takes `region_tokens`.
        has_image: False: `<image>` and `<region>` are text like any other.
        may_cut: whether pairs that do not fit may be left out at the end; the first one never is.
    Raises:
        WordsError: `too_long`, `span` (`<p>` and `</p>` do not pair up), `no_question`, or `unicode` (half a
            character).
    """
    if not conversation:
        raise WordsError("no_question", "a conversation needs a question")
    markers = marker_ids(tokenizer)
    pieces = [
        _encode_exchange(tokenizer, template, exchange, has_image, template.adds_eos or not number)
        for number, exchange in enumerate(conversation)
    ]
    extra = {IMAGE_ID: image_tokens, REGION_ID: region_tokens}
    lengths = list(accumulate(sum(extra.get(id, 1) for id in ids) for ids, _ in pieces))
    num_kept = sum(length <= max_positions for length in lengths)
    if num_kept < len(pieces) and (not may_cut or not num_kept):
        number = len(pieces) if not may_cut else 1
        raise WordsError(
            "too_long",
            f"the first {number} of {len(pieces)} question-answer pairs take {lengths[number - 1]} positions; "
            f"{max_positions} are possible",
        )
    ids = [id for piece, _ in pieces[:num_kept] for id in piece]
    labels = [label for _, piece in pieces[:num_kept] for label in piece]
    _check_spans(ids, markers)
    return Words(
        input_ids=torch.tensor(ids, dtype=torch.int64),
        labels=torch.tensor(labels, dtype=torch.int64),
        cond_ids=condition_ids(ids, markers),
        seg_ids=segment_ids(ids, markers),
        num_left_out=len(pieces) - num_kept,
    )


def condition_ids(ids: Sequence[int], markers: MarkerIds) -> torch.Tensor:
    """(L,) int64: i from the i-th `<p>` to the i-th `</p>`, both included, else NONE; unpaired tags count for nothing.

    For ids that a model wrote, too, whose tags need not pair up.
    """
    found = torch.full((len(ids),), NONE, dtype=torch.int64)
    opened = [place for place, id in enumerate(ids) if id == markers.phrase_open]
    closed = [place for place, id in enumerate(ids) if id == markers.phrase_close]
    for number, (start, end) in enumerate(zip(opened, closed, strict=False)):
        found[start : end + 1] = number
    return found


def segment_ids(ids: Sequence[int], markers: MarkerIds) -> torch.Tensor:
    """(L,) int64: i at the i-th `<SEG>`, else NONE."""
    found = torch.full((len(ids),), NONE, dtype=torch.int64)
    for number, place in enumerate(place for place, id in enumerate(ids) if id == markers.seg):
        found[place] = number
    return found


def _encode_exchange(
    tokenizer: PreTrainedTokenizerBase, template: Template, exchange: Exchange, has_image: bool, opens: bool
) -> tuple[list[int], list[int]]:
    """Ids and labels of a question-answer pair. opens: whether BOS stands before it."""
    question = f"{template.before}{exchange.question}{template.after}"
    ids = [tokenizer.bos_token_id] if opens and template.has_bos and tokenizer.bos_token_id is not None else []
    ids += _ids(tokenizer, question, has_image)
    labels = [IGNORED] * len(ids)
    if exchange.answer is None:
        return ids, labels
    answer = _ids(tokenizer, exchange.answer + template.suffix, has_image)
    if template.adds_eos:
        answer.append(tokenizer.eos_token_id)
    separator = _ids(tokenizer, template.separator, False)
    labels += [id if exchange.is_learned and id >= 0 else IGNORED for id in answer] + [IGNORED] * len(separator)
    return ids + answer + separator, labels


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, has_pseudo: bool) -> list[int]:
    """Ids of a text; its pieces around pseudo tokens are tokenised one by one, blank ones too."""
    if odd := [place for place, char in enumerate(text) if "\ud800" <= char <= "\udfff"]:
        raise WordsError("unicode", f"character {odd[0]} is none of Unicode: {text[odd[0]]!a}")
    ids: list[int] = []
    for piece in _PSEUDO.split(text) if has_pseudo else (text,):
        if has_pseudo and piece in _PSEUDO_IDS:
            ids.append(_PSEUDO_IDS[piece])
        elif piece:
            ids += tokenizer.encode(piece, add_special_tokens=False)
    return ids


def _check_spans(ids: Sequence[int], markers: MarkerIds) -> None:
    is_open = False
    for id in ids:
        if id in (markers.phrase_open, markers.phrase_close):
            if is_open == (id == markers.phrase_open):
                raise WordsError("span", f"{'<p> inside <p>' if is_open else '</p> without <p>'} in the conversation")
            is_open = not is_open
    if is_open:
        raise WordsError("span", "<p> is never closed in the conversation")


# --- tokenizers ---------------------------------------------------------------------------------------------------


def load_tokenizer(place: str | Path, markers: Sequence[str] = MARKERS) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, or of that name on the hub, with the markers added.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(place), trust_remote_code=False)
    except Exception as error:  # the library's own errors have no common base
        raise UserError(f"{place}: no tokenizer can be read: {error}") from error
    add_markers(tokenizer, markers)
    return tokenizer


def add_markers(tokenizer: PreTrainedTokenizerBase, markers: Sequence[str] = MARKERS) -> int:
    """Makes `<SEG>`, `<p>`, `</p>` special tokens, in this order, where they are none yet.

    Returns:
        how many were added.
    """
    added: int = tokenizer.add_tokens(list(markers), special_tokens=True)
    return added


def marker_ids(tokenizer: PreTrainedTokenizerBase) -> MarkerIds:
    """Ids of the markers.

    Raises:
        UserError: the tokenizer does not have them.
    """
    ids = tokenizer.convert_tokens_to_ids(list(MARKERS))  # the whole vocabulary takes longer than a sample
    assert isinstance(ids, list)
    if None in ids or tokenizer.convert_ids_to_tokens(ids) != list(MARKERS):
        raise UserError(f"the tokenizer lacks one of {', '.join(MARKERS)}")
    seg, phrase_open, phrase_close = ids
    return MarkerIds(seg=seg, phrase_open=phrase_open, phrase_close=phrase_close)


def stop_ids(tokenizer: PreTrainedTokenizerBase, template: Template) -> list[int]:
    """Ids with which an answer ends: the template's suffix and the tokenizer's EOS."""
    ends = tokenizer.encode(template.suffix, add_special_tokens=False) if template.suffix else []
    ids = [*ends[:1], *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]
    return list(dict.fromkeys(ids))


def tiny_tokenizer(markers: Sequence[str] = MARKERS) -> PreTrainedTokenizerBase:
    """A byte-level BPE of some 500 pieces, learned on the wording of the tasks; made anew, it is the same."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_TINY_SIZE,
        special_tokens=list(_TINY_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    plain = re.compile(r"<[^>]+>|\{[^}]+\}")
    corpus = [text for wording in WORDINGS.values() for text in (*wording.questions, *wording.answers)]
    backend.train_from_iterator([plain.sub("", text) for text in (*corpus, _TINY_NAMES)], trainer)
    pad, bos, *_, end = _TINY_SPECIAL
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, bos_token=bos, eos_token=end)
    add_markers(tokenizer, markers)
    return tokenizer
