"""What the model is given: a sample of a dataset, or a picture with a question and visual prompts of a person.

`Processor` makes `Inputs` of either; `batches.collate` puts them together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from dataengine import invariants, masks, tokens
from dataengine import prompts as drawing
from dataengine.conversation import WORDINGS
from dataengine.errors import ReasonError
from dataengine.images import ImageError
from dataengine.masks import Crop, MaskError
from dataengine.sample import TASKS, Condition, Prompt, Sample
from model import pictures, spans, words
from model.config import XSamConfig, hub_config
from model.pictures import Picture
from model.regions import RegionError, num_tokens
from model.spans import Spans
from model.templates import template
from model.words import Exchange, Words, WordsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from model.pictures import Source

POINT_RADIUS, SCRIBBLE_RADIUS = 10.0, 5.0  # px, of a person's marks; those of the published prompts
ONE_MASK = (*spans.REFERRING, "gcgseg")  # tasks whose post-processing gives a phrase one mask, whatever it is made of
_NOTHING = torch.zeros(0, dtype=torch.int64)
_STAGE_1 = Words(input_ids=_NOTHING, labels=_NOTHING, cond_ids=_NOTHING, seg_ids=_NOTHING)
_SPAN_OR_REGION = re.compile(f"{tokens.PHRASE_OPEN}.*?{tokens.PHRASE_CLOSE}|{tokens.REGION}", re.DOTALL)


class InputError(ReasonError):
    """What cannot be a model's input: `spans`, `no_seg`, `category`, `no_image`, `task`, or a reason of its parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A prompt of a `<region>`.

    mask: (seg_px, seg_px) bool, on the padded canvas. region: number of the `<region>` in the text; several prompts of
    one are shots of it. picture: index into `Inputs.references`, or -1: the picture itself. label: the category's id,
    or -1.
    """

    mask: torch.Tensor
    region: int
    picture: int = -1
    label: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedFor:
    """A condition. text: phrase or category name. seg: number of the `<SEG>` that answers it, or -1."""

    text: str
    category_id: int
    seg: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """condition: what the mask answers, or in stage 1 its class. rle: COCO counts on the padded canvas."""

    condition: int
    rle: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """One conversation about one picture, ready for the model.

    words: ids, empty in stage 1. picture: None for text alone. references: further pictures that prompts are on, for
    the segmentation encoder only. has_answer: False where the model is to give the last answer.
    """

    task: str
    sample_id: str = ""
    words: Words
    picture: Picture | None = None
    references: tuple[Picture, ...] = ()
    shown: tuple[Shown, ...] = ()
    conditions: tuple[AskedFor, ...] = ()
    targets: tuple[Target, ...] = ()
    has_answer: bool = True

    def __post_init__(self) -> None:
        num, named = len(self.conditions), [target.condition for target in self.targets]
        is_stage_1 = not len(self.words.input_ids)  # whose classes only its head can count
        if any(number < 0 or (number >= num and not is_stage_1) for number in named):
            raise ValueError(f"{self.sample_id or self.task}: targets of the conditions {named}; there are {num}")

    @property
    def spans(self) -> Spans:
        """What rows are planned from; without an answer there are none yet, without a picture none ever."""
        num = self.words.num_segs if self.has_answer and self.picture is not None else 0
        owners = tuple(condition.seg for condition in self.conditions)
        return Spans(owners=owners, num_segs=num, is_referring=self.task in spans.REFERRING)


def num_image_tokens(config: XSamConfig) -> int:
    """Positions that `<image>` takes: those of the image encoder and, after pixel shuffle, of the other one."""
    if config.image_encoder is None:
        return 0
    from model.encoders import state_strides

    stride = state_strides(config.seg_encoder)[config.visual_layer]
    seen = config.image_px // hub_config(config.image_encoder).patch_size
    return int(seen**2 + int(config.seg_px // stride * config.downsample) ** 2)


class Processor:
    """Makes inputs of samples and of what a person asks."""

    def __init__(
        self,
        config: XSamConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        categories: Sequence[int] | None = None,
    ) -> None:
        """tokenizer: with the markers (`words.load_tokenizer`), None in stage 1. categories: in stage 1, the category
        ids in the order of the head's classes.

        Raises:
            ValueError: what the config needs is missing.
        """
        if config.language is None and (categories is None or len(categories) != config.num_labels):
            raise ValueError(f"{config.name}: the ids of its {config.num_labels} categories are needed, in order")
        if config.language is not None and tokenizer is None:
            raise ValueError(f"{config.name}: a tokenizer is needed")
        if set(config.tokens) != set(words.MARKERS):
            raise ValueError(f"{config.name}: conversations have the markers {words.MARKERS}, not {config.tokens}")
        self.config = config
        self.tokenizer = tokenizer
        self.template = template(config.template)
        self.classes = {category: label for label, category in enumerate(categories or ())}
        self.image_tokens = num_image_tokens(config)
        self.region_tokens = num_tokens(config.region)

    def picture(self, source: Source | Picture) -> Picture:
        """A picture for both encoders; given in place of a picture below, it is not made again."""
        if isinstance(source, Picture):
            return source
        config = self.config
        image_px = None if config.image_encoder is None else config.image_px
        return pictures.prepare(
            source, image_px=image_px, seg_px=config.seg_px, expand_to_square=config.expand_to_square
        )

    # --- samples --------------------------------------------------------------------------------------------------

    def from_sample(
        self,
        sample: Sample,
        *,
        kind: str | None = None,
        rng: np.random.Generator | None = None,
        with_answer: bool = True,
        may_cut: bool = True,
        every_instance: bool = False,
        picture: Picture | None = None,
    ) -> Inputs:
        """A sample of a dataset, with its conversation rendered.

        Args:
            kind: of the prompts shown; None: any.
            rng: draws among several prompts of an object; None: the first is taken.
            with_answer: False: the last answer is for the model to give.
            may_cut: whether a conversation that is too long may lose question-answer pairs at its end, with their
                conditions and targets (`Inputs.words.num_left_out` says how many).
            every_instance: show not only the exemplar of each region but every object it stands for that has a prompt,
                for the prompt swap of training (`batches.swap`).
            picture: the sample's own, where it was made ready before; None: it is read.
        Raises:
            ReasonError: an invariant of samples does not hold, or its picture, conversation or prompts cannot be used;
                the message names the sample.
        """
        invariants.check(sample)
        try:
            seen = self._picture_of(sample, picture)
            return self._from_sample(sample, seen, kind, rng, with_answer, may_cut, every_instance)
        except ReasonError as error:
            raise InputError(error.reason, f"{sample.sample_id}: {error}") from error

    def _from_sample(
        self,
        sample: Sample,
        picture: Picture | None,
        kind: str | None,
        rng: np.random.Generator | None,
        with_answer: bool,
        may_cut: bool,
        every_instance: bool,
    ) -> Inputs:
        if self.config.language is None:
            return self._stage_1(sample, picture)
        conversation = words.exchanges(sample.turns)
        if not with_answer and conversation:
            conversation[-1] = replace(conversation[-1], answer=None)
        encoded = self._encode(conversation, sample.image is not None, may_cut)
        kept = sample.conditions[: encoded.num_conditions]
        if with_answer:
            _check_answered(encoded, sample.conditions)
        shown, references = self._shown(sample, kept, kind, rng, every_instance)
        return Inputs(
            task=sample.task,
            sample_id=sample.sample_id,
            words=encoded,
            picture=picture,
            references=references,
            shown=shown,
            conditions=tuple(AskedFor(text=c.text, category_id=c.category_id, seg=c.seg) for c in kept),
            targets=tuple(self._targets(sample, kept)),
            has_answer=with_answer,
        )

    def _stage_1(self, sample: Sample, picture: Picture | None) -> Inputs:
        if picture is None:
            raise InputError("no_image", "stage 1 learns from pictures; this sample has none")
        size = sample.height, sample.width
        targets = []
        for condition in sample.conditions:
            for index in condition.objects:
                thing = sample.objects[index]
                if thing.category_id not in self.classes:
                    raise InputError("category", f"object {index}: category {thing.category_id} is none of the head's")
                targets.append(Target(condition=self.classes[thing.category_id], rle=self._scaled(thing.rle, size)))
        return Inputs(
            task=sample.task, sample_id=sample.sample_id, words=_STAGE_1, picture=picture, targets=tuple(targets)
        )

    def _picture_of(self, sample: Sample, picture: Picture | None) -> Picture | None:
        if sample.image is None:
            return None
        from dataengine.store.dataset import picture_of

        if picture is None:
            try:
                picture = self.picture(picture_of(sample.image))
            except OSError as error:
                raise ImageError("image_unreadable", str(error)) from None
        if picture.size != (sample.height, sample.width):
            height, width = picture.size
            raise ImageError(
                "image_size", f"the image is {width} x {height} px, its sample says {sample.width} x {sample.height}"
            )
        return picture

    def _shown(
        self,
        sample: Sample,
        conditions: Sequence[Condition],
        kind: str | None,
        rng: np.random.Generator | None,
        every_instance: bool,
    ) -> tuple[tuple[Shown, ...], tuple[Picture, ...]]:
        """Prompts of the regions, and the pictures other than the sample's own that they are on."""
        from dataengine.store.dataset import picture_of

        shown: list[Shown] = []
        places: dict[str, int] = {}
        others: list[Picture] = []
        for region, condition in enumerate(c for c in conditions if c.kind == "region"):
            label = condition.category_id
            for index in (condition.reference, *condition.shots) if condition.reference >= 0 else ():
                reference = sample.references[index]
                if reference.image_key not in places:
                    places[reference.image_key] = len(others)
                    try:
                        others.append(replace(self.picture(picture_of(reference.image)), pixel_values=None))
                    except OSError as error:
                        raise ImageError("image_unreadable", f"reference {index}: {error}") from None
                prompt = _choose(reference.prompts, kind, rng, f"reference {index}")
                mask = self._drawn(prompt, (reference.height, reference.width), f"reference {index}")
                shown.append(Shown(mask=mask, region=region, picture=places[reference.image_key], label=label))
            if condition.exemplar < 0:
                continue
            instances = [condition.exemplar]
            if every_instance:
                able = [i for i in condition.objects if any(p.status != "none" for p in sample.objects[i].prompts)]
                instances += [i for i in able if i != condition.exemplar]
            for index in instances:
                prompt = _choose(sample.objects[index].prompts, kind, rng, f"object {index}")
                mask = self._drawn(prompt, (sample.height, sample.width), f"object {index}")
                shown.append(Shown(mask=mask, region=region, label=label))
        return tuple(shown), tuple(others)

    def _targets(self, sample: Sample, conditions: Sequence[Condition]) -> list[Target]:
        """Masks to be found; a phrase that gets one mask has its objects' union."""
        size = sample.height, sample.width
        targets = []
        for number, condition in enumerate(conditions):
            rles = [sample.objects[index].rle for index in condition.objects]
            if sample.task in ONE_MASK and len(rles) > 1:
                rles = [masks.union(rles, *size)]
            targets += [Target(condition=number, rle=self._scaled(rle, size)) for rle in rles]
        return targets

    # --- persons --------------------------------------------------------------------------------------------------

    def from_prompt(
        self,
        image: Source | Picture | None,
        text: str,
        prompts: Sequence[Prompt | np.ndarray] = (),
        *,
        task: str | None = None,
        answer: str | None = None,
        history: Sequence[tuple[str, str]] = (),
    ) -> Inputs:
        """What a person asks about a picture.

        Args:
            image: a picture, or one that `picture` made ready; None: text alone.
            text: the question. `<p>…</p>` stands about what to segment, `<region>` for a visual prompt; where the text
                has no `<region>`, the prompts are named at its end, or asked for where it is empty.
            prompts: one for each `<region>`, those of `history` first: `point`, `box`, `scribble`, or an (H, W) bool
                mask, in pixels of the picture.
            task: None: `intseg` with prompts alone, `refseg` for one phrase, `ovseg` for several or both, else
                `gcgseg`, where the model may ground what it says.
            answer: given, it is not generated but read, `<SEG>` and all.
            history: questions and answers before this one.
        Raises:
            ReasonError: the picture, the text or a prompt cannot be used.
        """
        if self.config.language is None:
            raise WordsError("no_question", f"{self.config.name} has no language model to ask")
        if task not in (None, *TASKS):
            raise InputError("task", f"{task!r} is no task; there are {', '.join(TASKS)}")
        picture = None if image is None else self.picture(image)
        pairs = [*history, (_question(text, len(prompts), [q for q, _ in history]), answer)]
        conversation = [Exchange(question=_wrapped(question), answer=reply) for question, reply in pairs]
        if picture is not None:
            conversation[0] = replace(conversation[0], question=f"{tokens.IMAGE}\n{conversation[0].question}")
        encoded = self._encode(conversation, picture is not None, may_cut=False)
        last = tokens.find_spans(conversation[-1].question)
        if any(not span.content.strip() for span in last):
            raise WordsError("span", f"there is nothing between {tokens.PHRASE_OPEN} and {tokens.PHRASE_CLOSE}")
        task = task or _task_of([tokens.REGION in span.content for span in last])
        if task not in ("gcgseg", "chat") and not last:
            raise InputError("task", f"{task} needs {tokens.PHRASE_OPEN}…{tokens.PHRASE_CLOSE} or a visual prompt")
        if answer is not None and last and tokens.SEG not in answer:
            raise InputError("no_seg", f"the answer to a question about what to segment needs a {tokens.SEG}")
        shown = []
        for region, prompt in enumerate(prompts):
            if picture is None:
                raise RegionError("region_prompt", "a visual prompt needs a picture")
            shown.append(Shown(mask=self._drawn(prompt, picture.size, f"prompt {region}"), region=region))
        return Inputs(
            task=task,
            words=encoded,
            picture=picture,
            shown=tuple(shown),
            conditions=tuple(_asked_for(conversation, task)),
            has_answer=answer is not None,
        )

    # --- both -----------------------------------------------------------------------------------------------------

    def _encode(self, conversation: Sequence[Exchange], has_image: bool, may_cut: bool) -> Words:
        assert self.tokenizer is not None
        return words.encode(
            self.tokenizer,
            self.template,
            conversation,
            max_positions=self.config.max_length + (self.image_tokens if has_image else 0),
            image_tokens=self.image_tokens,
            region_tokens=self.region_tokens,
            has_image=has_image,
            may_cut=may_cut,
        )

    def _scaled(self, rle: bytes, size: tuple[int, int]) -> bytes:
        """A mask of the picture on the canvas."""
        return pictures.rle_on_canvas(rle, size, self.config.seg_px)

    def _drawn(self, prompt: Prompt | np.ndarray, size: tuple[int, int], name: str) -> torch.Tensor:
        """A prompt's bitmap on the canvas."""
        if isinstance(prompt, np.ndarray):
            if prompt.shape != size:
                raise RegionError("region_prompt", f"{name}: a mask of shape {prompt.shape} on a picture of {size}")
            if not prompt.any():
                raise RegionError("empty_prompt", f"{name}: no pixel of the mask is set")
            crop: Crop | None = Crop(prompt.astype(bool), 0, 0)
        else:
            try:
                crop = drawing.render(prompt, *size)
            except MaskError as error:
                reason = "empty_prompt" if error.reason == "empty_mask" else "region_prompt"
                raise RegionError(reason, f"{name}: {error}") from error
        if crop is None or not crop.mask.any():
            raise RegionError("empty_prompt", f"{name}: there is nothing to show")
        return torch.from_numpy(pictures.mask_on_canvas(crop, size, self.config.seg_px))


def _check_answered(encoded: Words, conditions: Sequence[Condition]) -> None:
    """Check that the text has the spans of all conditions, up to a cut, and each `<SEG>` that they name."""
    num, num_segs = encoded.num_conditions, encoded.num_segs
    if num > len(conditions) or (num < len(conditions) and not encoded.num_left_out):
        raise InputError("spans", f"the text has {num} spans for {len(conditions)} conditions")
    for number, condition in enumerate(conditions[:num]):
        if not 0 <= condition.seg < num_segs:
            raise InputError("no_seg", f"condition {number} names <SEG> {condition.seg}; the text has {num_segs}")


# --- visual prompts of a person -----------------------------------------------------------------------------------


def point(*points: tuple[float, float], radius: float = POINT_RADIUS) -> Prompt:
    """Clicks on one thing: x, y in px, drawn as discs."""
    return _mark("point", [value for xy in points for value in xy], [1] * len(points), radius)


def box(x0: float, y0: float, x1: float, y1: float) -> Prompt:
    """A box by two opposite corners, px."""
    corners = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
    return _mark("box", corners, [2], 0.0)


def scribble(points: Sequence[tuple[float, float]], radius: float = SCRIBBLE_RADIUS) -> Prompt:
    """A stroke through points x, y, px; what is between them is filled in.

    Raises:
        RegionError: `region_prompt`: points that are no finite numbers, or a stroke longer than can be drawn.
    """
    path = np.array(points, dtype=np.float64).reshape(-1, 2)
    steps = np.ceil(np.hypot(*np.diff(path, axis=0).T)) if len(path) > 1 else np.zeros(0)
    if not np.isfinite(path).all() or steps.sum() > drawing.MAX_PARTS:
        raise RegionError("region_prompt", f"a stroke of {len(path)} points is not finite, or too long to be drawn")
    parts = [np.linspace(a, b, int(n), endpoint=False) for (a, b), n in zip(pairwise(path), steps, strict=True)]
    dense = np.concatenate([*parts, path[-1:]])
    return _mark("scribble", dense.ravel().tolist(), [len(dense)], radius)


def _mark(kind: str, points: Sequence[float], parts: Sequence[int], radius: float) -> Prompt:
    return Prompt(
        kind=kind,  # type: ignore[arg-type]
        profile="strict",
        version=0,
        status="ok",
        points=tuple(map(float, points)),
        parts=tuple(parts),
        radius=radius,
    )


def _choose(prompts: Sequence[Prompt], kind: str | None, rng: np.random.Generator | None, name: str) -> Prompt:
    """One of the prompts there are."""
    able = [prompt for prompt in prompts if prompt.status != "none" and kind in (None, prompt.kind)]
    if not able:
        raise RegionError("region_prompt", f"{name} is to be shown, but has no {kind or 'visual'} prompt")
    return able[0 if rng is None else int(rng.integers(len(able)))]


# --- text of a person ---------------------------------------------------------------------------------------------


def _question(text: str, num_prompts: int, before: Sequence[str]) -> str:
    """The question, with a `<region>` for each prompt."""
    if any(tokens.IMAGE in part for part in (text, *before)):
        raise WordsError("span", f"{tokens.IMAGE} puts itself in front of the first question; leave it out")
    if any(tokens.SEG in part for part in (text, *before)):
        raise WordsError("span", f"{tokens.SEG} is for the model to say; leave it out of questions")
    earlier = sum(tokens.count(part, tokens.REGION) for part in before)
    if num_prompts > earlier and tokens.REGION not in text:
        regions = ", ".join([tokens.REGION_SPAN] * (num_prompts - earlier))
        text = f"{text} {regions}" if text.strip() else WORDINGS["intseg"].questions[0].replace("{spans}", regions)
    stated = earlier + tokens.count(text, tokens.REGION)
    if stated != num_prompts:
        raise RegionError("region_prompt", f"the text has {stated} {tokens.REGION} for {num_prompts} visual prompts")
    if not text.strip():
        raise WordsError("no_question", "neither a question nor a visual prompt is given")
    return text


def _wrapped(text: str) -> str:
    """The text with `<p>` and `</p>` about each `<region>` that stands alone."""
    return _SPAN_OR_REGION.sub(lambda m: tokens.REGION_SPAN if m.group() == tokens.REGION else m.group(), text)


def _task_of(are_regions: Sequence[bool]) -> str:
    if not are_regions:
        return "gcgseg"
    if all(are_regions):
        return "intseg"
    return "refseg" if len(are_regions) == 1 else "ovseg"


def _asked_for(conversation: Sequence[Exchange], task: str) -> list[AskedFor]:
    """The conditions of a conversation, each with the `<SEG>` of its own question-answer pair; regions by number."""
    asked: list[AskedFor] = []
    num_segs = num_regions = 0
    for exchange in conversation:
        found = [span for text in (exchange.question, exchange.answer or "") for span in tokens.find_spans(text)]
        segs = 1 if exchange.answer is None else tokens.count(exchange.answer, tokens.SEG)
        owners = [num_segs + owner for owner in spans.default_owners(len(found), segs, task)]
        for span, owner in zip(found, owners, strict=True):
            text = span.content
            if text == tokens.REGION:
                num_regions += 1
                text = f"region {num_regions}"
            asked.append(AskedFor(text=text, category_id=-1, seg=owner if segs else -1))
        num_segs += segs
    return asked
