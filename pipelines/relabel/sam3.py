"""SAM 3 (Hugging Face `transformers`): all instances of each category that is named, a picture encoded once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from pydantic import Field

from dataengine import masks
from dataengine.errors import UserError
from dataengine.ledger.records import Concept, Proposal
from pipelines.relabel.concepts import Categories, concepts_of, of_concept, wanted
from pipelines.relabel.labelers import Question, canonical, settings_of
from pipelines.relabel.sam import (
    HALF,
    Where,
    check_finite,
    checkpoint,
    corners,
    digest_of,
    folder_config,
    load_model,
    mean_std,
    normalized,
    rounded,
    stability_of,
)

VERSION = "1"
KINDS = ("sam3", "sam3_video")
TEXT_LENGTH = 32  # ids, as the model was trained


class Sam3Settings(Where):
    """categories: see `concepts_of`. exemplars: show boxes of the picture's human masks of a category, too.

    min_score: least probability that the concept is in the picture, times that of the instance; SAM 3 takes 0.5.
    """

    categories: Categories
    exemplars: bool = False
    min_score: float = Field(default=0.5, ge=0, le=1)


class Sam3:
    """See `Sam3Settings`."""

    name = "sam3"
    needs_pixels = True

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings_of(Sam3Settings, settings, self.name)
        folder = checkpoint(self._settings.model)
        kind = folder_config(folder).get("model_type")
        if kind not in KINDS:
            raise UserError(f"sam3: {self._settings.model}: model_type {kind!r} is none of {', '.join(KINDS)}")
        self._concepts = concepts_of(self._settings.categories)
        self.asks = tuple(self._concepts)
        told = self._settings.model_dump(exclude={"model", "device", "categories"})
        self.settings = canonical({**told, "categories": [[c.text, c.category_id] for c in self._concepts]})
        self.revision = f"{VERSION}-{digest_of(folder)}"

    def load(self) -> None:
        from transformers import AutoTokenizer

        folder = checkpoint(self._settings.model)
        if self._settings.exemplars and find_spec("torchvision") is None:
            raise UserError("sam3: exemplars need the package torchvision, with which transformers cuts boxes out")
        self._model, self._device, self._dtype = load_model("Sam3Model", self._settings)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: no tokenizer: {error}") from None
        self._mean, self._std = mean_std(folder, HALF)
        self._side = int(self._model.config.vision_config.backbone_config.image_size)
        self._texts = {concept: self._encoded(concept.text) for concept in self._concepts}

    def label(self, questions: Sequence[Question]) -> list[list[Proposal]]:
        return [list(self._instances(question)) for question in questions]

    def _encoded(self, text: str) -> tuple[Any, Any]:
        """What the text encoder makes of a name, and which ids are text."""
        import torch

        ids = self._tokenizer(text, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
        ids = ids.to(self._device)
        with torch.no_grad():
            return self._model.get_text_features(**ids, return_dict=True), ids["attention_mask"]

    def _instances(self, question: Question) -> Iterator[Proposal]:
        import torch

        assert question.pixels is not None
        side = (self._side, self._side)
        values = normalized(question.pixels, side, self._side, self._mean, self._std)
        with torch.no_grad():
            seen = self._model.get_vision_features(pixel_values=values.to(self._device, self._dtype))
        for concept in wanted(self._concepts, question):
            boxes = self._boxes(question, concept)
            text, is_text = self._texts[concept]
            given = {} if boxes is None else {"input_boxes": boxes.to(self._device, self._dtype)[None]}
            with torch.no_grad():
                made = self._model(vision_embeds=seen, text_embeds=text, attention_mask=is_text, **given)
            yield from self._kept(made, question, concept, 0 if boxes is None else len(boxes))

    def _boxes(self, question: Question, concept: Concept) -> Any:
        """Boxes of known masks of a concept: (n, 4) centre x, y, width, height as shares of the picture; or None."""
        import torch

        if not self._settings.exemplars:
            return None
        height, width = question.picture.height, question.picture.width
        people = [entry for entry in question.known if entry.origin == "human" and not entry.crowd]
        same = of_concept(people, concept)
        if not same:
            return None
        x0, y0, x1, y1 = np.array([corners(people[place]) for place in same]).T
        found = np.stack([(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height], axis=1)
        return torch.tensor(found)

    def _kept(self, made: Any, question: Question, concept: Concept, exemplars: int) -> Iterator[Proposal]:
        """The instances of one concept with the score that is asked for.

        Raises:
            AnswerError: `not_finite`.
        """
        from torch.nn import functional

        check_finite(logits=made.pred_masks, scores=made.pred_logits, presence=made.presence_logits)
        size = (question.picture.height, question.picture.width)
        presence = float(made.presence_logits[0].float().sigmoid())
        scores = made.pred_logits[0].float().sigmoid() * presence
        for place in (scores >= self._settings.min_score).nonzero().flatten().tolist():
            logits = made.pred_masks[0, place].float()[None, None]
            likely = functional.interpolate(logits.sigmoid(), size, mode="bilinear", align_corners=False)[0, 0]
            mask = (likely > 0.5).cpu().numpy()
            if not mask.any():
                continue
            full = functional.interpolate(logits, size, mode="bilinear", align_corners=False)[0, 0]
            prompt: dict[str, Any] = {"kind": "text", "text": concept.text, "presence": rounded([presence])[0]}
            yield Proposal(
                rle=masks.encode(mask),
                concept=concept,
                score=float(scores[place]),
                stability=float(stability_of(full, 1.0)),
                prompt=canonical(prompt | ({"exemplars": exemplars} if exemplars else {})),
            )
