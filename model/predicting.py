"""Questions about pictures, answered: from a picture and words, or samples of a benchmark, to `Prediction`s.

predictor = load("checkpoint")
viewed = predictor.see("dog.jpg")                       # the encoders run once
predictor.ask(viewed, "segment <p>the dog</p>")
predictor.ask(viewed, "", [inputs.point((31, 40))])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from dataengine.errors import ReasonError, UserError
from dataengine.sample import PROMPT_KINDS, Prompt, PromptKind, Sample, Task
from model import words
from model.batches import Batch, collate
from model.checkpoints import from_pretrained, save_pretrained
from model.inputs import AskedFor, InputError, Inputs, Processor
from model.pictures import Picture
from model.postprocess import EVALUATE, SHOW, Frame, Thresholds
from model.predictions import VARIANTS, Asked, Mask, Prediction, prediction_of, records_of
from model.segmentor import SegOutputs
from model.spans import REFERRING, Row
from model.words import REGION_ID, condition_ids
from model.xsam import Seen, XSam

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from model.pictures import Source

_GENERIC = ("genseg", "ovseg")
_PROMPTED = ("vgdseg", "intseg")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


# --- checkpoints with a tokenizer ------------------------------------------------------------------------------------


def save(folder: str | Path, model: XSam, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a model and its tokenizer; see `checkpoints.save_pretrained`."""
    save_pretrained(model, folder, model.config)
    tokenizer.save_pretrained(str(folder))


def load(folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Predictor:
    """The predictor of a checkpoint folder.

    Raises:
        UserError: settings, weights or tokenizer are missing, damaged, or do not fit each other.
    """
    model = from_pretrained(folder, XSam, device=device, dtype=dtype)
    if model.config.language is None:
        raise UserError(f"{folder}: a model of stage 1, which has no language; nothing can be asked")
    if not any((Path(folder) / name).is_file() for name in _TOKENIZER):
        raise UserError(f"{folder}: no tokenizer is here; save the one that the model was trained with to this folder")
    tokenizer = words.load_tokenizer(folder)
    check_tokenizer(tokenizer, model.config.language.settings.get("vocab_size"), str(folder))
    return Predictor(model, Processor(model.config, tokenizer))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int | None, name: str) -> None:
    """Raise UserError where a tokenizer has ids that the model has no embedding for."""
    most = max(tokenizer.get_vocab().values())
    if vocab_size is not None and most >= vocab_size:
        raise UserError(f"{name}: the tokenizer has ids up to {most:,}, the model embeddings for {vocab_size:,}")


# --- questions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewed:
    """A picture that the model has seen: it can be asked about any number of times."""

    picture: Picture
    seen: Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What an answer says of one of a batch's inputs. conditions: of the question, or with `has_spans` the phrases of
    the answer itself. rows: by their place in `outputs`."""

    text: str
    conditions: Sequence[AskedFor]
    rows: Mapping[int, Row]
    outputs: SegOutputs | None
    has_spans: bool = False


class Predictor:
    """A model and its processor."""

    def __init__(self, model: XSam, processor: Processor) -> None:
        """
        Raises:
            UserError: the model has no language, or the processor no tokenizer.
        """
        if model.config.language is None or processor.tokenizer is None:
            raise UserError(f"{model.config.name}: a model without language cannot be asked")
        self.model = model.eval()
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.markers = words.marker_ids(self.tokenizer)
        self.stop = words.stop_ids(self.tokenizer, processor.template)

    @property
    def device(self) -> torch.device:
        return self.model.bg_embeds.weight.device

    @torch.no_grad()
    def see(self, image: Source | Picture) -> Viewed:
        """A picture, for several questions: what is expensive is done here.

        Raises:
            ImageError: it cannot be read.
        """
        picture = self.processor.picture(image)
        batch = collate([self.processor.from_prompt(picture, "?")]).to(self.device)
        seen = self.model.see(batch)
        assert seen is not None
        return Viewed(picture=picture, seen=seen)

    def ask(
        self,
        image: Source | Picture | Viewed | None,
        text: str,
        prompts: Sequence[Prompt | np.ndarray] = (),
        *,
        task: Task | None = None,
        answer: str | None = None,
        history: Sequence[tuple[str, str]] = (),
        variant: str | None = None,
        thresholds: Thresholds = SHOW,
        max_new: int = 512,
    ) -> Prediction:
        """An answer with its masks; those of `image`'s own size.

        Args:
            image: a picture, what `see` made of it, or None for text alone.
            text, prompts, task, history: see `Processor.from_prompt`.
            answer: read, `<SEG>` and all, instead of generated.
            variant: of `genseg` and `ovseg`: panoptic, semantic or, by default, instance.
            max_new: ids of a generated answer, at most.
        Raises:
            ReasonError: picture, text or prompts cannot be used.
        """
        if variant not in (None, *VARIANTS):
            raise InputError("variant", f"{variant!r:.80} is none of {', '.join(VARIANTS)}")
        seen = image.seen if isinstance(image, Viewed) else None
        picture = image.picture if isinstance(image, Viewed) else image
        inputs = self.processor.from_prompt(picture, text, prompts, task=task, answer=answer, history=history)
        batch = collate([inputs], is_shared=False).to(self.device)
        if answer is None:
            (found,) = self._generated(batch, seen, max_new)
        else:
            (found,) = self._read(batch, seen, [answer])
        kinds = {"mask" if isinstance(prompt, np.ndarray) else prompt.kind for prompt in prompts}
        kind = cast(PromptKind, kinds.pop()) if len(kinds) == 1 else None
        is_caption = found.has_spans and inputs.task not in REFERRING
        task = cast(Task, "gcgseg" if is_caption else inputs.task)
        return self._prediction(inputs, task, found, _asked(found.conditions), variant, kind, thresholds)

    def predict_samples(
        self,
        samples: Iterable[Sample],
        *,
        kind: PromptKind | None = None,
        things: Mapping[int, bool] | None = None,
        generate: bool = False,
        batch_size: int = 4,
        thresholds: Thresholds = EVALUATE,
        max_new: int = 512,
        skipped: Callable[[str, str], None] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """The records by which `dataengine eval` knows the answers to samples of a benchmark.

        Samples of one picture that follow each other share it; those in one batch, what the encoders make of it, too.

        Args:
            kind: of prompt that is shown, which `vgdseg` and `intseg` need.
            things: whether a category is a thing, by id, for panoptic samples; all are by default.
            generate: whether the model writes the answers; else those of the samples are given, and segmented. What it
                says of phrases of its own is no answer, but to `gcgseg`.
            skipped: told the reason and a message of each sample that cannot be an input; it is left out, which the
                evaluation takes for an answer without masks. None: the first such sample ends everything.
        Raises:
            ReasonError: a sample cannot be an input; the message names it.
        """
        found = self.predictions(
            samples,
            kind=kind,
            things=things,
            generate=generate,
            batch_size=batch_size,
            thresholds=thresholds,
            max_new=max_new,
            skipped=skipped,
        )
        for sample, prediction in found:
            yield from records_of(prediction, sample.sample_id)

    def predictions(
        self,
        samples: Iterable[Sample],
        *,
        kind: PromptKind | None = None,
        things: Mapping[int, bool] | None = None,
        generate: bool = False,
        batch_size: int = 4,
        thresholds: Thresholds = EVALUATE,
        max_new: int = 512,
        skipped: Callable[[str, str], None] | None = None,
    ) -> Iterator[tuple[Sample, Prediction]]:
        """The answers to samples, whole; see `predict_samples`."""
        if kind not in (None, *PROMPT_KINDS):
            raise UserError(f"a prompt must be one of {', '.join(PROMPT_KINDS)}, not {kind!r:.80}")
        if batch_size < 1:
            raise UserError(f"a batch has at least one sample, not {batch_size}")
        made = self._inputs_of(samples, kind, generate, skipped)
        while some := list(islice(made, batch_size)):
            found = self._of_samples(some, kind, things or {}, generate, thresholds, max_new)
            for (sample, _), prediction in zip(some, found, strict=True):
                yield sample, prediction

    def _inputs_of(
        self,
        samples: Iterable[Sample],
        kind: PromptKind | None,
        generate: bool,
        skipped: Callable[[str, str], None] | None,
    ) -> Iterator[tuple[Sample, Inputs]]:
        """Each sample with what the model is given of it."""
        before, picture = None, None
        for sample in samples:
            try:
                if sample.task == "chat" or (sample.task in _PROMPTED and kind is None):
                    lacks = "has no masks to score" if sample.task == "chat" else "needs the kind of prompt to show"
                    raise InputError("task", f"{sample.sample_id}: {sample.task} {lacks}")
                inputs = self.processor.from_sample(
                    sample,
                    kind=kind,
                    with_answer=not generate,
                    may_cut=False,
                    picture=picture if sample.image == before else None,
                )
            except ReasonError as error:
                if skipped is None:
                    raise
                skipped(error.reason, str(error))
                continue
            before, picture = sample.image, inputs.picture
            yield sample, inputs

    def _of_samples(
        self,
        made: Sequence[tuple[Sample, Inputs]],
        kind: PromptKind | None,
        things: Mapping[int, bool],
        generate: bool,
        thresholds: Thresholds,
        max_new: int,
    ) -> list[Prediction]:
        batch = collate([inputs for _, inputs in made], is_shared=False).to(self.device)
        if generate:
            answers = self._generated(batch, None, max_new)
        else:
            answers = self._read(batch, None, [sample.turns[-1].text for sample, _ in made])
        return [
            self._prediction(
                inputs,
                sample.task,
                answer if sample.task == "gcgseg" or not answer.has_spans else replace(answer, rows={}),
                _asked(answer.conditions, things),
                sample.variant if sample.task in _GENERIC else None,
                kind if sample.task in _PROMPTED else None,
                thresholds,
            )
            for (sample, inputs), answer in zip(made, answers, strict=True)
        ]

    # --- answers -------------------------------------------------------------------------------------------------

    def _read(self, batch: Batch, seen: Seen | None, texts: Sequence[str]) -> list[_Answer]:
        """Answers that are given."""
        outputs = self.model.answer(batch, seen)
        return [
            _Answer(text=text, conditions=inputs.conditions, rows=_rows_of(batch.rows, number), outputs=outputs)
            for number, (inputs, text) in enumerate(zip(batch.inputs, texts, strict=True))
        ]

    def _generated(self, batch: Batch, seen: Seen | None, max_new: int) -> list[_Answer]:
        """Answers that the model writes."""
        written = self.model.generate(batch, self.markers, self.stop, max_new=max_new, seen=seen)
        found = []
        for number, inputs in enumerate(batch.inputs):
            ids = [id for id in written.ids[number].tolist() if id not in self.stop]
            has_spans = bool(written.has_spans) and written.has_spans[number]
            found.append(
                _Answer(
                    text=self._text(ids),
                    conditions=self._phrases(ids) if has_spans else inputs.conditions,
                    rows=_rows_of(written.rows, number),
                    outputs=written.outputs,
                    has_spans=has_spans,
                )
            )
        return found

    def _phrases(self, ids: Sequence[int]) -> list[AskedFor]:
        """Spans of what the model wrote, without their tags."""
        spans = condition_ids(ids, self.markers)
        tags = (self.markers.phrase_open, self.markers.phrase_close)
        texts = []
        for number in spans[spans >= 0].unique().tolist():
            inside = [id for id, span in zip(ids, spans.tolist(), strict=True) if span == number and id not in tags]
            texts.append(self._text(inside))
        return [AskedFor(text=text, category_id=-1, seg=0) for text in texts]

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids)).strip()

    def _prediction(
        self,
        inputs: Inputs,
        task: Task,
        answer: _Answer,
        asked: Sequence[Asked],
        variant: str | None,
        kind: PromptKind | None,
        thresholds: Thresholds,
    ) -> Prediction:
        """Masks of an input's rows. Each `<SEG>` is about its own conditions; phrases that are referred to are told
        from each other, and go together."""
        variant = (variant or "instance") if task in _GENERIC else None
        height, width = (0, 0) if inputs.picture is None else inputs.picture.size
        nothing = Prediction(
            task=task, variant=variant, prompt=kind, height=height, width=width, masks=(), text=answer.text
        )
        rows = {place: row for place, row in answer.rows.items() if row.classes}
        if inputs.picture is None or answer.outputs is None or not rows:
            return nothing
        frame = Frame(canvas=self.model.config.seg_px, scaled=inputs.picture.scaled_size, size=inputs.picture.size)
        class_logits, mask_logits = answer.outputs.final
        groups = [list(rows)] if task in REFERRING else [[place] for place in rows]
        masks: list[Mask] = []
        for places in groups:
            numbers = [number for _, number in rows[places[0]].classes]
            found = prediction_of(
                task,
                class_logits[places].float().cpu(),
                mask_logits[places].float().cpu(),
                frame,
                [asked[number] for number in numbers],
                thresholds=thresholds,
                variant=variant,
                prompt=kind,
                prompts=_prompts_of(inputs, numbers) if task == "intseg" else None,
            )
            masks += [replace(mask, condition=numbers[mask.condition]) for mask in found.masks]
        return replace(nothing, masks=tuple(masks))


def _rows_of(rows: Sequence[Row], sample: int) -> dict[int, Row]:
    """An input's rows by their place in the batch's."""
    return {place: row for place, row in enumerate(rows) if row.sample == sample}


def _asked(conditions: Sequence[AskedFor], things: Mapping[int, bool] | None = None) -> list[Asked]:
    things = things or {}
    return [
        Asked(text=one.text, category_id=one.category_id, is_thing=things.get(one.category_id, True))
        for one in conditions
    ]


def _prompts_of(inputs: Inputs, conditions: Sequence[int]) -> torch.Tensor:
    """(len(conditions), canvas, canvas) bool: what was shown in the picture for each condition."""
    assert inputs.picture is not None
    shown = torch.zeros(len(conditions), *inputs.picture.seg_pixel_values.shape[-2:], dtype=torch.bool)
    of_region = inputs.words.cond_ids[inputs.words.input_ids == REGION_ID].tolist()
    for prompt in inputs.shown:
        if prompt.picture < 0 and of_region[prompt.region] in conditions:
            shown[conditions.index(of_region[prompt.region])] |= prompt.mask
    return shown
