"""The bundled X-SAM as a labeler: by names, by exemplars, by expressions, or by what it says of the picture itself."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dataengine import conversation, masks
from dataengine.errors import UserError
from dataengine.keyed import keyed
from dataengine.ledger.records import Concept, Entry, Picture, Proposal
from dataengine.sample import Condition, Image, Object, Prompt, PromptKind, Provenance, Reference, Sample, Task
from pipelines.relabel import overlaps
from pipelines.relabel.concepts import Categories, concepts_of, of_concept, phrases_of, read_json, wanted
from pipelines.relabel.labelers import AnswerError, Question, canonical, settings_of
from pipelines.relabel.sam import digest_of
from pipelines.relabel.views import VIEWS, Transform, joined

if TYPE_CHECKING:
    from model.predictions import Prediction

VERSION = "2"
POINT_RADIUS = 3.0  # px of a point that is asked about; a larger one would leave thin masks
CAPTION = "Describe this picture, and segment what you mention."
PROFILE: Literal["strict"] = "strict"  # its prompts always exist and lie inside their object


class XsamSettings(BaseModel):
    """model: a checkpoint folder with its tokenizer.

    task: `generic` (all instances of each category by name), `vgd` (by an exemplar of it), `refer` (one mask for each
    phrase), `gcg` (the phrases of a caption that the model writes).

    categories: of `generic` and `vgd`, see `concepts_of`; those that a picture is known to lack are not asked for.
    per_question: how many are asked for at once. exemplars: of `vgd`, a COCO instances file whose objects, in the
    folder `pictures`, show the categories, drawn anew for each picture; without it the picture's own human masks do.
    kind: of prompt that shows an exemplar. phrases: of `refer`, see `phrases_of`; without it the phrases that are known
    of the picture are asked again. min_score: of `generic` and `vgd`. views: of `generic`; 2 also asks about the
    mirrored picture, and 4 about both moved a little, and joins the answers (`relabel.views`). batch: questions at a
    time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str
    task: Literal["generic", "vgd", "refer", "gcg"] = "generic"
    categories: Categories | None = None
    per_question: int = Field(default=100, ge=1)
    exemplars: str | None = None
    pictures: str | None = None
    kind: PromptKind = "mask"
    phrases: str | None = None
    min_score: float = Field(default=0.1, ge=0, le=1)
    views: Literal[1, 2, 4] = 1
    batch: int = Field(default=4, ge=1)
    max_new: int = Field(default=256, ge=1)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class Xsam:
    """See `XsamSettings`."""

    name = "xsam"
    needs_pixels = True

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = one = settings_of(XsamSettings, settings, self.name)
        folder = Path(one.model)
        if not (folder / "config.json").is_file():
            raise UserError(f"xsam: {one.model}: no checkpoint folder")
        if (one.categories is None) == (one.task in ("generic", "vgd")):
            raise UserError(f"xsam: task {one.task} {'needs' if one.categories is None else 'takes no'} categories")
        if (one.exemplars is not None and one.task != "vgd") or (one.exemplars is None) != (one.pictures is None):
            raise UserError("xsam: exemplars, of task vgd, are a COCO file and the folder of its pictures")
        if one.views > 1 and one.task != "generic":
            raise UserError("xsam: views are for task generic: in a mirrored picture left is right")
        if one.phrases is not None and one.task != "refer":
            raise UserError("xsam: phrases are for task refer")
        self._concepts = [] if one.categories is None else concepts_of(one.categories)
        self.asks = tuple(self._concepts) if one.task == "generic" else ()  # not all are shown in every picture
        self._phrases = None if one.phrases is None else phrases_of(one.phrases)
        told = one.model_dump(exclude={"model", "device", "categories", "exemplars", "pictures", "phrases"})
        if one.views == 1:  # as it was before there were any
            del told["views"]
        told["categories"] = [[concept.text, concept.category_id] for concept in self._concepts]
        told["files"] = [_digest(path) for path in (one.exemplars, one.phrases) if path is not None]
        self.settings = canonical(told)
        self.revision = f"{VERSION}-{digest_of(folder)}"

    def load(self) -> None:
        import torch

        from model import predicting

        if self._settings.device != "cpu" and not torch.cuda.is_available():
            raise UserError(f"xsam: device {self._settings.device}: torch finds no such device here")
        dtype = getattr(torch, self._settings.dtype)
        self._predictor = predicting.load(self._settings.model, device=self._settings.device, dtype=dtype)
        self._exemplars = None
        if self._settings.exemplars is not None:
            assert self._settings.pictures is not None
            self._exemplars = Exemplars(self._settings.exemplars, self._settings.pictures, self._settings.seed)
            self._exemplars.check(self._concepts)

    def label(self, questions: Sequence[Question]) -> list[list[Proposal]]:
        if self._settings.task == "gcg":
            return [list(self._caption(question)) for question in questions]
        seen = VIEWS[: self._settings.views]
        answers = [self._answers([_seen(question, view) for question in questions]) for view in seen]
        if len(seen) == 1:
            return answers[0]
        return [joined(of, seen, one.picture) for one, *of in zip(questions, *answers, strict=True)]

    def _answers(self, questions: Sequence[Question]) -> list[list[Proposal]]:
        """To questions of the tasks whose answers a model does not write itself."""
        samples = [(place, sample) for place, one in enumerate(questions) for sample in self._samples(one)]
        found: list[list[Proposal]] = [[] for _ in questions]
        predictions = self._predictor.predictions(
            [sample for _, sample in samples],
            kind=self._settings.kind if self._settings.task == "vgd" else None,
            batch_size=self._settings.batch,
            thresholds=self._thresholds(),
        )
        for (place, sample), (_, prediction) in zip(samples, predictions, strict=True):
            found[place] += self._proposals(prediction, sample.conditions)
        return found

    def prompted(
        self, pixels: np.ndarray, *, points: np.ndarray | None = None, boxes: np.ndarray | None = None
    ) -> list[bytes]:
        """For each prompt, of the masks of what is like what it shows, the one that the prompt is on.

        Of a point that is the surest mask that holds it, of a box the mask whose box has the largest IoU with it; an
        empty mask where there is none.

        Args:
            pixels: (H, W, 3) uint8. points: (n, 2) px x, y. boxes: (n, 4) px x0, y0, x1, y1; one of the two is given.
        Returns:
            compressed COCO counts on H x W for each prompt.
        """
        from model import inputs

        height, width = pixels.shape[:2]
        if boxes is None:
            assert points is not None
            prompts = [inputs.point((x, y), radius=POINT_RADIUS) for x, y in points.tolist()]
            corners = np.tile(points, 2)
        else:
            prompts, corners = [inputs.box(*box) for box in boxes.tolist()], boxes
        picture = Picture(key="prompted", path="", sha256="", height=height, width=width)
        image = image_of(pixels)
        samples = [
            _asked_by(prompt, box, picture, image, self._settings.seed)
            for prompt, box in zip(prompts, corners, strict=True)
        ]
        predictions = self._predictor.predictions(
            samples,
            kind="point" if boxes is None else "box",
            batch_size=self._settings.batch,
            thresholds=self._thresholds(),
        )
        return [_meant(prediction, sample) for sample, prediction in predictions]

    def _thresholds(self) -> Any:
        from model.postprocess import EVALUATE

        return dataclasses.replace(EVALUATE, instance=self._settings.min_score)

    def _samples(self, question: Question) -> Iterator[Sample]:
        """The questions about a picture."""
        assert question.pixels is not None
        one, picture, image = self._settings, question.picture, image_of(question.pixels)
        if one.task == "refer":
            phrases = self._phrases.get(Path(picture.path).name, []) if self._phrases is not None else known(question)
            conditions = tuple(Condition(kind="phrase", text=phrase) for phrase in phrases)
            for number, condition in enumerate(conditions):
                yield sample_of(picture, image, "refseg", number, (condition,), one.seed)
            return
        concepts = wanted(self._concepts, question)
        for number, start in enumerate(range(0, len(concepts), one.per_question)):
            some = concepts[start : start + one.per_question]
            if one.task == "generic":
                named = tuple(Condition(kind="phrase", text=c.text, category_id=c.category_id) for c in some)
                yield sample_of(picture, image, "genseg", number, named, one.seed)
            elif self._exemplars is not None:
                shown, references = self._exemplars.show(some, picture.key, one.kind)
                if shown:
                    yield sample_of(picture, image, "vgdseg", number, shown, one.seed, references=references)
            else:
                shown, objects = own_exemplars(question, some, one.kind, one.seed)
                if shown:
                    yield sample_of(picture, image, "vgdseg", number, shown, one.seed, objects=objects)

    def _proposals(self, prediction: Prediction, conditions: Sequence[Condition]) -> Iterator[Proposal]:
        for mask in prediction.masks:
            condition = conditions[mask.condition]
            prompt: dict[str, Any] = {"kind": self._settings.task, "text": condition.text}
            if condition.kind == "region":
                prompt["prompt"] = self._settings.kind
            yield Proposal(
                rle=mask.rle,
                concept=Concept(text=condition.text, category_id=condition.category_id),
                score=min(max(mask.score, 0.0), 1.0) if mask.score == mask.score else mask.score,
                prompt=canonical(prompt),
            )

    def _caption(self, question: Question) -> Iterator[Proposal]:
        """What the model says of a picture, and the masks of its phrases."""
        assert question.pixels is not None
        found = self._predictor.ask(question.pixels, CAPTION, task="gcgseg", max_new=self._settings.max_new)
        for mask in found.masks:
            if mask.text.strip():
                prompt = canonical({"kind": "gcg", "caption": found.text[:2000]})
                yield Proposal(rle=mask.rle, concept=Concept(text=mask.text), score=mask.score, prompt=prompt)


def _seen(question: Question, view: Transform) -> Question:
    assert question.pixels is not None
    return dataclasses.replace(question, pixels=view.pixels(question.pixels))


# --- questions -------------------------------------------------------------------------------------------------------


def image_of(pixels: np.ndarray) -> Image:
    """Pixels, (H, W, 3) uint8, as the picture of a sample."""
    from PIL import Image as Pillow

    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "PNG", compress_level=0)
    return Image(bytes=file.getvalue(), path=None)


def sample_of(
    picture: Picture,
    image: Image,
    task: Task,
    number: int,
    conditions: tuple[Condition, ...],
    seed: int,
    objects: tuple[Object, ...] = (),
    references: tuple[Reference, ...] = (),
) -> Sample:
    """A question about a picture, worded as those of training are; always the same for the same picture."""
    sample = Sample(
        sample_id=f"relabel/{picture.key}/{task}/{number}",
        task=task,
        variant="instance" if task == "genseg" else None,
        source="relabel",
        split="",
        image=image,
        image_key=picture.key,
        height=picture.height,
        width=picture.width,
        objects=objects,
        conditions=conditions,
        references=references,
        provenance=Provenance(file=picture.path, record=picture.key, builder="relabel", version=1, seed=seed),
    )
    return conversation.render(sample, keyed(seed, sample.sample_id, "conversation", conversation.VERSION))


def known(question: Question) -> list[str]:
    """Phrases of a picture's masks, each once."""
    return list(dict.fromkeys(entry.concept.text for entry in question.known if entry.concept.category_id == -1))


def own_exemplars(
    question: Question, concepts: Sequence[Concept], kind: PromptKind, seed: int
) -> tuple[tuple[Condition, ...], tuple[Object, ...]]:
    """Regions that the picture's own human masks show, one of each category that it has; and those masks."""
    picture = question.picture
    people = [entry for entry in question.known if entry.origin == "human" and not entry.crowd]
    people = [people[place] for place in sorted({p for concept in concepts for p in of_concept(people, concept)})]
    objects = _prompted([_object(entry) for entry in people], picture.key, picture.height, picture.width, kind, seed)
    conditions = []
    for concept in concepts:
        same = tuple(place for place in of_concept(people, concept) if objects[place].prompts)
        if same:
            rng = keyed(seed, picture.key, concept.text, "exemplar", VERSION)
            exemplar = same[int(rng.integers(len(same)))]
            conditions.append(_region(concept, objects=same, exemplar=exemplar))
    return tuple(conditions), objects


def _region(concept: Concept, **links: Any) -> Condition:
    return Condition(kind="region", text=concept.text, category_id=concept.category_id, **links)


def _object(entry: Entry) -> Object:
    return Object(
        rle=entry.rle,
        bbox=entry.bbox,
        area=entry.area,
        category_id=entry.concept.category_id,
        annotation_id=entry.annotation_id or entry.entry_id,
    )


def _prompted(
    objects: Sequence[Object], key: str, height: int, width: int, kind: PromptKind, seed: int
) -> tuple[Object, ...]:
    """Objects with a prompt of one kind; without one where none can be made."""
    from prompts_sim import simulate

    made = simulate(objects, height, width, profile=PROFILE, seed=seed, image_key=key, kinds=(kind,))
    return tuple(dataclasses.replace(one, prompts=_there(one.prompts)) for one in made)


def _there(prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    return tuple(prompt for prompt in prompts if prompt.status != "none")


def _asked_by(prompt: Prompt, box: np.ndarray, picture: Picture, image: Image, seed: int) -> Sample:
    """A question by a prompt alone. box: (4,) px x0, y0, x1, y1 of it, in the place of an object that is not known."""
    height, width = picture.height, picture.width
    x0, y0 = np.floor(box[:2]).clip(0, [width - 1, height - 1]).astype(int)
    x1, y1 = np.ceil(box[2:]).clip([x0 + 1, y0 + 1], [width, height]).astype(int)
    there = np.zeros((height, width), dtype=bool)
    there[y0:y1, x0:x1] = True
    rle = masks.encode(there)
    area, (x, y, w, h) = masks.measure(rle, height, width)
    bbox = (float(x), float(y), float(w), float(h))
    thing = Object(rle=rle, bbox=bbox, area=area, category_id=-1, annotation_id="prompted", prompts=(prompt,))
    condition = _region(Concept(text="object"), objects=(0,), exemplar=0)
    return sample_of(picture, image, "vgdseg", 0, (condition,), seed, objects=(thing,))


def _meant(prediction: Prediction, sample: Sample) -> bytes:
    """COCO counts of the mask that the prompt of `_asked_by` is on: see `Xsam.prompted`."""
    size = sample.height, sample.width
    found = overlaps.decoded([mask.rle for mask in prediction.masks], *size)
    asked = overlaps.decoded([sample.objects[0].rle], *size)
    if prediction.prompt == "box":
        values = overlaps.box_iou(found, asked)[:, 0]
    else:
        holds = overlaps.overlaps(found, asked).shared[:, 0] > 0
        values = np.where(holds, [mask.score for mask in prediction.masks], 0.0)
    if not values.any():
        return masks.encode(np.zeros(size, dtype=bool))
    return prediction.masks[int(values.argmax())].rle


class Exemplars:
    """Objects of annotated pictures that show categories to the model."""

    def __init__(self, path: str, pictures: str, seed: int) -> None:
        """Raises UserError where the file is no COCO instances file."""
        document = read_json(path)
        try:
            self._ids = {str(c["name"]): int(c["id"]) for c in document.get("categories", ())}
            self._images = {
                i["id"]: (str(i["file_name"]), int(i["height"]), int(i["width"])) for i in document["images"]
            }
            by_category: dict[int, list[tuple[Any, str, Any]]] = {}
            for one in document["annotations"]:
                if not one.get("iscrowd") and one["image_id"] in self._images:
                    kept = (one["image_id"], str(one["id"]), one["segmentation"])
                    by_category.setdefault(int(one["category_id"]), []).append(kept)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"exemplars: {path}: no COCO instances file: {type(error).__name__}: {error}") from None
        self._path, self._by_category, self._folder, self._seed = path, by_category, Path(pictures), seed

    def check(self, concepts: Sequence[Concept]) -> None:
        """Raises UserError where none of the categories has an object."""
        if not any(self._of(concept) for concept in concepts):
            raise UserError(f"exemplars: {self._path}: none of the categories has an object there")

    def _of(self, concept: Concept) -> list[tuple[Any, str, Any]]:
        """The objects of a category; of a name without an id, as the file calls it."""
        number = concept.category_id if concept.category_id >= 0 else self._ids.get(concept.text, -1)
        return self._by_category.get(number, [])

    def show(
        self, concepts: Sequence[Concept], key: str, kind: PromptKind
    ) -> tuple[tuple[Condition, ...], tuple[Reference, ...]]:
        """Regions of a picture, each shown by an object of another one; categories without an object are left out.

        Raises:
            AnswerError: `exemplar`: an object cannot be shown.
        """
        conditions: list[Condition] = []
        references: list[Reference] = []
        for concept in concepts:
            some = self._of(concept)
            if not some:
                continue
            rng = keyed(self._seed, key, concept.text, "exemplar", VERSION)
            reference = self._reference(concept, *some[int(rng.integers(len(some)))], kind)
            conditions.append(_region(concept, reference=len(references)))
            references.append(reference)
        return tuple(conditions), tuple(references)

    def _reference(
        self, concept: Concept, image: Any, annotation: str, segmentation: Any, kind: PromptKind
    ) -> Reference:
        name, height, width = self._images[image]
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise AnswerError("exemplar", f"exemplar {annotation}: {name!r} leaves the folder of pictures")
        try:
            rle, (area, box) = masks.measured_from_segmentation(segmentation, height, width)
        except masks.MaskError as error:
            raise AnswerError("exemplar", f"exemplar {annotation}: {error}") from None
        thing = Object(rle=rle, bbox=box, area=area, category_id=concept.category_id, annotation_id=annotation)
        (made,) = _prompted([thing], name, height, width, kind, self._seed)
        if not made.prompts:
            raise AnswerError("exemplar", f"exemplar {annotation}: no {kind} can be made of it")
        return Reference(
            image=Image(bytes=None, path=str(self._folder / name)),
            image_key=name,
            annotation_id=annotation,
            category_id=concept.category_id,
            height=height,
            width=width,
            rle=rle,
            prompts=made.prompts,
        )


def _digest(path: str) -> str:
    from dataengine.store.files import Folder

    try:
        return Folder("").sha256(path)[:16]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
