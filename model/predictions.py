"""What a model answers for one picture: masks as RLE, each with its condition, and the text.

From the segmentor's logits, to the records that `dataengine eval` reads (docs/evaluate.md, docs/evaluate-tasks.md), to
JSON, and to a picture with the masks drawn on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor

from dataengine import masks
from dataengine.sample import PROMPT_KINDS, PromptKind, Task
from model import postprocess
from model.postprocess import EVALUATE, Found, Frame, Thresholds

if TYPE_CHECKING:
    from PIL import Image as Pillow

VARIANTS = ("panoptic", "semantic", "instance")
_REFERRING = ("refseg", "grefseg", "reaseg", "intseg")  # one mask for each condition
_GENERIC = ("genseg", "ovseg")
_LABEL_PX = 160.0  # width of a label on a picture, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A condition that a model was given. category_id: the source's, -1 where there is none. is_thing: not stuff."""

    text: str
    category_id: int = -1
    is_thing: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """A mask. rle: compressed COCO counts. condition: index among those asked. category_id, text: of that condition."""

    rle: bytes
    condition: int
    category_id: int
    text: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """An answer about a picture of `height` x `width` px.

    variant: of `genseg` and `ovseg`, else None. prompt: the kind that was shown to `vgdseg` and `intseg`, else None.
    masks: of a panoptic or semantic map they do not overlap. text: what the model said, with its markers; of `gcgseg`
    the caption is in it.
    """

    task: Task
    height: int
    width: int
    masks: tuple[Mask, ...]
    variant: str | None = None
    prompt: PromptKind | None = None
    text: str = ""

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise ValueError(f"there is no task {self.task!r:.80}")
        if self.task in _GENERIC and self.variant not in VARIANTS:
            raise ValueError(f"{self.task} needs a variant of {', '.join(VARIANTS)}, not {self.variant!r:.80}")
        if self.prompt is not None and self.prompt not in PROMPT_KINDS:
            raise ValueError(f"a prompt must be one of {', '.join(PROMPT_KINDS)}, not {self.prompt!r:.80}")


def prediction_of(
    task: Task,
    class_logits: Tensor,
    mask_logits: Tensor,
    frame: Frame,
    asked: Sequence[Asked],
    *,
    thresholds: Thresholds = EVALUATE,
    variant: str | None = None,
    prompt: PromptKind | None = None,
    prompts: Tensor | None = None,
    text: str = "",
) -> Prediction:
    """The answer to one question about a picture, by the rule of its task.

    Args:
        class_logits: (R, N, C + 1) float; the columns are the conditions, then any padding, and the background last.
            mask_logits: (R, N, h, w) float. R is 1, or where each condition has its mask (`refseg`, `grefseg`,
            `reaseg`, `intseg`) also the number of conditions.
        frame: of the picture. asked: the conditions, at most C.
        prompts: of `intseg`, (len(asked), canvas, canvas) bool or {0, 1}: what was shown for each condition.
        text: what the model said.
    Raises:
        ValueError: rows, columns or prompts are not as many as the conditions need.
    """
    each = task in _REFERRING
    rows, columns = class_logits.shape[0], class_logits.shape[-1]
    if not asked or columns <= len(asked):
        raise ValueError(f"{columns} columns cannot be {len(asked)} conditions and the background")
    if rows != len(mask_logits) or rows not in ((1, len(asked)) if each else (1,)):
        raise ValueError(f"{task}: {rows} rows for {len(asked)} conditions")
    kept = torch.tensor([*range(len(asked)), columns - 1], device=class_logits.device)
    logits = [(class_logits[row][:, kept], mask_logits[row]) for row in range(rows)]
    if each:
        found = _one_for_each(task, logits * (len(asked) if rows == 1 else 1), frame, thresholds, prompts)
    elif task in _GENERIC and variant == "panoptic":
        found = _panoptic(*logits[0], frame, thresholds, asked)
    elif task in _GENERIC and variant == "semantic":
        found = _semantic(*logits[0], frame)
    elif task == "gcgseg":
        found = postprocess.grounded(*logits[0], frame, thresholds)
    else:
        found = postprocess.instances(*logits[0], frame, thresholds)
    return Prediction(
        task=task,
        variant=variant,
        prompt=prompt,
        height=frame.size[0],
        width=frame.size[1],
        masks=tuple(_named(one, asked) for one in found),
        text=text,
    )


def _one_for_each(
    task: Task,
    logits: Sequence[tuple[Tensor, Tensor]],
    frame: Frame,
    thresholds: Thresholds,
    prompts: Tensor | None,
) -> list[Found]:
    if task == "intseg":
        if prompts is None or len(prompts) != len(logits):
            raise ValueError(f"intseg needs a prompt for each of {len(logits)} conditions")
        return [
            postprocess.interactive(*of_row, frame, prompts[number], thresholds, condition=number)
            for number, of_row in enumerate(logits)
        ]
    rule = postprocess.generalized if task == "grefseg" else postprocess.referring
    return [rule(*of_row, frame, thresholds, condition=number) for number, of_row in enumerate(logits)]


def _panoptic(
    class_logits: Tensor, mask_logits: Tensor, frame: Frame, thresholds: Thresholds, asked: Sequence[Asked]
) -> list[Found]:
    stuff = [number for number, one in enumerate(asked) if not one.is_thing]
    made = postprocess.panoptic(class_logits, mask_logits, frame, thresholds, stuff=stuff)
    return [
        Found(rle=masks.encode(made.ids == one.id), condition=one.condition, score=one.score, query=-1)
        for one in made.segments
    ]


def _semantic(class_logits: Tensor, mask_logits: Tensor, frame: Frame) -> list[Found]:
    made = postprocess.semantic(class_logits, mask_logits, frame)
    return [
        Found(rle=masks.encode(made == condition), condition=condition, score=1.0, query=-1)
        for condition in np.flatnonzero(np.bincount(made.ravel())).tolist()
    ]


def _named(found: Found, asked: Sequence[Asked]) -> Mask:
    condition = asked[found.condition]
    return Mask(
        rle=found.rle,
        condition=found.condition,
        category_id=condition.category_id,
        text=condition.text,
        score=found.score,
    )


# --- records ---------------------------------------------------------------------------------------------------------


def records_of(prediction: Prediction, sample_id: str) -> list[dict[str, Any]]:
    """The records by which `dataengine eval` knows the answer to a sample; none where nothing was found.

    The conditions of the prediction must be those of the sample, in its order.

    Raises:
        ValueError: the task has no masks to score, or a kind of prompt is missing.
    """
    task, name = prediction.task, {"sample_id": sample_id}
    if task == "chat":
        raise ValueError(f"{sample_id}: a chat is not scored")
    if task == "gcgseg":
        phrases = [{"text": one.text, "score": one.score, **_mask(prediction, one)} for one in prediction.masks]
        return [{**name, "caption": caption_of(prediction.text), "phrases": phrases}]
    if task in _GENERIC and prediction.variant == "panoptic":
        segments = [
            {"id": number, "category_id": one.category_id, **_mask(prediction, one)}
            for number, one in enumerate(prediction.masks, start=1)
        ]
        return [{**name, "segments_info": segments}]
    if task in ("vgdseg", "intseg"):
        if prediction.prompt is None:
            raise ValueError(f"{sample_id}: {task} is scored by the kind of prompt, which the prediction lacks")
        name["prompt"] = prediction.prompt
    if task in _REFERRING:
        return [{**name, "condition": one.condition, **_mask(prediction, one)} for one in prediction.masks]
    scored = task == "vgdseg" or prediction.variant == "instance"
    return [
        {
            **name,
            "category_id": one.category_id,
            **({"score": one.score} if scored else {}),
            **_mask(prediction, one),
        }
        for one in prediction.masks
    ]


def to_json(prediction: Prediction) -> dict[str, Any]:
    """Everything as JSON values, for a person or another program."""
    return {
        "task": prediction.task,
        "variant": prediction.variant,
        "prompt": prediction.prompt,
        "size": [prediction.height, prediction.width],
        "text": prediction.text,
        "masks": [
            {
                "condition": one.condition,
                "text": one.text,
                "category_id": one.category_id,
                "score": one.score,
                **_mask(prediction, one),
            }
            for one in prediction.masks
        ],
    }


def caption_of(text: str) -> str:
    """The caption in a `gcgseg` answer: without its last sentence if that only carries `<SEG>`."""
    caption, marker, _ = text.partition("<SEG>")
    last = max(caption.rfind(end) for end in (". ", "! ", "? "))
    if marker and last > caption.rfind("</p>"):
        caption = caption[: last + 1]
    return caption.strip()


def _mask(prediction: Prediction, mask: Mask) -> dict[str, Any]:
    return {"segmentation": {"size": [prediction.height, prediction.width], "counts": mask.rle.decode("ascii")}}


# --- a picture -------------------------------------------------------------------------------------------------------


def overlay(picture: Pillow.Image, prediction: Prediction) -> Pillow.Image:
    """The picture with each mask tinted, outlined and named, in the colour of its condition; smaller ones lie on top.

    Args:
        picture: of the prediction's size. Any mode.
    Raises:
        ValueError: the picture has another size.
    """
    from PIL import Image as Pillow

    from dataengine.sheet.look import COLORS, TINT
    from dataengine.sheet.view import draw_outline

    if picture.size != (prediction.width, prediction.height):
        stated = f"{prediction.width} x {prediction.height}"
        raise ValueError(f"the picture has {picture.width} x {picture.height} px, the prediction {stated}")
    size = prediction.height, prediction.width
    areas = [masks.area(one.rle, *size) for one in prediction.masks]
    order = [number for number in np.argsort(areas)[::-1].tolist() if areas[number]]
    canvas = np.array(picture.convert("RGB"))
    colors = [COLORS[one.condition % len(COLORS)] for one in prediction.masks]
    owner = np.full(size, -1, np.int32)  # the mask that is seen at a pixel
    for number in order:
        owner[masks.decode(prediction.masks[number].rle, *size)] = number
    covered = owner >= 0
    if order:
        paint = np.array(colors, np.float32)[owner[covered]]
        canvas[covered] = np.floor(canvas[covered] * (1 - TINT) + paint * TINT + 0.5).astype(np.uint8)
    for number in order:
        draw_outline(canvas, masks.decode(prediction.masks[number].rle, *size), colors[number])
    drawn = Pillow.fromarray(canvas)
    for number in order:
        _draw_label(drawn, prediction.masks[number], colors[number], owner == number)
    return drawn


def _draw_label(picture: Pillow.Image, mask: Mask, color: tuple[int, int, int], seen: np.ndarray) -> None:
    """What a mask is, at the place of what is seen of it that is farthest from the edge. seen: (H, W) bool."""
    import cv2

    from dataengine.sheet.look import SMALL_PX
    from dataengine.sheet.text import draw_tag, drawable_text, shortened, tag_width

    label = shortened(drawable_text(mask.text).strip() or str(mask.condition + 1), SMALL_PX - 1, _LABEL_PX)
    crop = masks.crop_from_rle(mask.rle, *seen.shape)
    h, w = crop.mask.shape
    part = seen[crop.y0 : crop.y0 + h, crop.x0 : crop.x0 + w]
    depth = cv2.distanceTransform(np.pad(part if part.any() else crop.mask, 1).astype(np.uint8), cv2.DIST_L2, 3)
    y, x = np.unravel_index(int(depth[1:-1, 1:-1].argmax()), part.shape)
    width, height = tag_width(label), SMALL_PX + 3.0
    left = min(max(crop.x0 + float(x) - width / 2, 1), max(picture.width - width - 1, 0))
    top = min(max(crop.y0 + float(y) - height / 2, 1), max(picture.height - height - 1, 0))
    draw_tag(picture, (left, top, left + width, top + height), label, color)
