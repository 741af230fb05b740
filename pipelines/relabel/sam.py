"""SAM, SAM 2 and SAM 3's tracker (Hugging Face `transformers`): asked by boxes and points, or all over the picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dataengine import masks
from dataengine.errors import UserError
from dataengine.ledger.records import Concept, Entry, Proposal
from pipelines.relabel import automatic
from pipelines.relabel.automatic import PRESETS, Found, Generator
from pipelines.relabel.labelers import AnswerError, Question, canonical, settings_of

if TYPE_CHECKING:
    import torch

VERSION = "1"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_MAX_HEADER = 100_000_000  # bytes, as safetensors allows


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Models that are asked alike. keeps_aspect: a picture is padded, not squashed, to a square."""

    model: str
    keeps_aspect: bool
    mean_std: tuple[tuple[float, ...], tuple[float, ...]]


FAMILIES = {
    "sam": Family(model="SamModel", keeps_aspect=True, mean_std=IMAGENET),
    "sam2": Family(model="Sam2Model", keeps_aspect=False, mean_std=IMAGENET),
    "sam2_video": Family(model="Sam2Model", keeps_aspect=False, mean_std=IMAGENET),
    "sam3_tracker": Family(model="Sam3TrackerModel", keeps_aspect=False, mean_std=HALF),
    "sam3_tracker_video": Family(model="Sam3TrackerModel", keeps_aspect=False, mean_std=HALF),
    "sam3_video": Family(model="Sam3TrackerModel", keeps_aspect=False, mean_std=HALF),
}


class Where(BaseModel):
    """model: a checkpoint folder, as `save_pretrained` writes and the hub has it."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class SamSettings(Where):
    """What SAM is asked.

    prompt: `box`, `point` or `both` of known masks: their box, their deepest pixel; `automatic`: a grid of points.
    of: whose masks are prompts. concept: what masks of `automatic` are said to show. preset: settings of `automatic`;
    generator: others in their place.
    """

    prompt: Literal["automatic", "box", "point", "both"] = "automatic"
    of: Literal["human", "all"] = "human"
    concept: str = Field(default="object", min_length=1)
    preset: str | None = None
    generator: dict[str, float | None] = {}
    prompts_per_batch: int = Field(default=64, ge=1)


class Sam:
    """See `SamSettings`. Scores are the predicted IoU, times the probability that there is an object, where told."""

    needs_pixels = True

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings_of(SamSettings, settings, "sam")
        folder = checkpoint(self._settings.model)
        kind = folder_config(folder).get("model_type")
        if kind not in FAMILIES:
            raise UserError(f"sam: {self._settings.model}: model_type {kind!r} is none of {', '.join(FAMILIES)}")
        self._family = FAMILIES[kind]
        self.name = "sam" if kind == "sam" else self._family.model.removesuffix("Model").lower()
        self._generator = generator_of(self._settings, "sam" if kind == "sam" else "sam2")
        told = self._settings.model_dump(exclude={"model", "device", "generator", "preset"})
        if self._settings.prompt == "automatic":
            told["generator"] = dataclasses.asdict(self._generator)
        self.settings = canonical(told)
        self.revision = f"{VERSION}-{digest_of(folder)}"

    def load(self) -> None:
        self._model = Promptable(self._settings, self._family)

    def label(self, questions: Sequence[Question]) -> list[list[Proposal]]:
        ask = self._everything if self._settings.prompt == "automatic" else self._known
        return [list(ask(question)) for question in questions]

    def prompted(
        self, pixels: np.ndarray, *, points: np.ndarray | None = None, boxes: np.ndarray | None = None
    ) -> list[bytes]:
        """The best mask of each prompt. points: (n, 2) px x, y. boxes: (n, 4) px x0, y0, x1, y1."""
        prompts = points if boxes is None else boxes
        assert prompts is not None
        seen, found, batch = self._model.see(pixels), [], self._settings.prompts_per_batch
        for start in range(0, len(prompts), batch):
            some = prompts[start : start + batch]
            given = {"points": some, "boxes": None} if boxes is None else {"points": None, "boxes": some}
            answer = self._model.ask(seen, several=boxes is None, **given)
            best = answer.scores.argmax(dim=1)[:, None, None, None]
            logits = self._model.full_size(answer.logits.take_along_dim(best, 1)[:, 0], seen)
            found += [masks.encode(one) for one in (logits > 0).cpu().numpy()]
        return found

    def _known(self, question: Question) -> Iterator[Proposal]:
        """A mask for each mask that is known."""
        asked = [e for e in question.known if not e.crowd and (e.origin == "human" or self._settings.of == "all")]
        if not asked:
            return
        assert question.pixels is not None
        height, width = question.pixels.shape[:2]
        kind = self._settings.prompt
        seen = self._model.see(question.pixels)
        for start in range(0, len(asked), self._settings.prompts_per_batch):
            some = asked[start : start + self._settings.prompts_per_batch]
            boxes = np.array([corners(entry) for entry in some]) if kind in ("box", "both") else None
            points = np.array([deepest(e, height, width) for e in some]) if kind in ("point", "both") else None
            answer = self._model.ask(seen, points=points, boxes=boxes, several=kind == "point")
            best = answer.scores.argmax(dim=1, keepdim=True)
            logits = self._model.full_size(answer.logits.take_along_dim(best[:, :, None, None], 1)[:, 0], seen)
            for number, entry in enumerate(some):
                mask = (logits[number] > 0).cpu().numpy()
                if not mask.any():
                    continue
                prompt: dict[str, Any] = {"kind": kind, "of": entry.entry_id}
                prompt |= {} if boxes is None else {"box": rounded(boxes[number])}
                prompt |= {} if points is None else {"point": rounded(points[number])}
                iou = float(answer.scores[number, best[number, 0]])
                yield Proposal(
                    rle=masks.encode(mask),
                    concept=entry.concept,
                    score=min(max(iou, 0.0), 1.0) * float(answer.presence[number]),
                    predicted_iou=iou,
                    stability=float(stability_of(logits[number], self._generator.stability_offset)),
                    prompt=canonical(prompt),
                )

    def _everything(self, question: Question) -> Iterator[Proposal]:
        """All masks that the generator lets through."""
        assert question.pixels is not None
        found = generate(self._model, question.pixels, self._generator)
        height, width = question.pixels.shape[:2]
        for number, rle in enumerate(found.rles):
            x0, y0, x1, y1 = found.crops[number].tolist()
            iou = float(found.scores[number])
            yield Proposal(
                rle=rle,
                concept=Concept(text=self._settings.concept),
                score=min(max(iou, 0.0), 1.0),
                predicted_iou=iou,
                stability=float(found.stability[number]),
                prompt=canonical({"kind": "point", "point": rounded(found.points[number])}),
                crop=None if (x0, y0, x1, y1) == (0, 0, width, height) else (x0, y0, x1 - x0, y1 - y0),
            )


def generator_of(settings: SamSettings, usual: str) -> Generator:
    """The settings of a generator. Raises UserError where one is unknown or wrong."""
    name = settings.preset or usual
    if name not in PRESETS:
        raise UserError(f"sam: preset: there are {', '.join(PRESETS)}, not {name!r:.40}")
    base = PRESETS[name]
    kinds = {field.name: field.type for field in dataclasses.fields(Generator)}
    changes: dict[str, Any] = {}
    for key, value in settings.generator.items():
        if key not in kinds:
            raise UserError(f"sam: generator: there is no {key!r:.40}; there are {', '.join(kinds)}")
        whole = kinds[key] == "int"
        least = 1 if key in ("points_per_side", "points_per_batch", "crop_downscale") else 0
        if value is None and key == "max_area":
            changes[key] = None
        elif value is None or not least <= value <= (4096 if whole else 1e6) or (whole and value != int(value)):
            raise UserError(f"sam: generator: {key} cannot be {value}")
        else:
            changes[key] = int(value) if whole else float(value)
    return replace(base, **changes)


# --- all over the picture --------------------------------------------------------------------------------------------


def generate(model: Promptable, pixels: np.ndarray, settings: Generator) -> Found:
    """All masks of a picture. pixels: (H, W, 3) uint8."""
    height, width = pixels.shape[:2]
    parts = []
    for layer, crop in automatic.crops(height, width, settings):
        x0, y0, x1, y1 = crop
        seen = model.see(np.ascontiguousarray(pixels[y0:y1, x0:x1]))
        points = automatic.points_of(layer, crop, settings)
        batch = settings.points_per_batch
        batches = [points[at : at + batch] for at in range(0, len(points), batch)]
        found = automatic.join([_of_points(model, seen, some, crop, height, width, settings) for some in batches])
        parts.append(found.pick(automatic.nms(found.boxes, found.scores, settings.box_nms)))
    found = automatic.between_crops(automatic.join(parts), settings)
    found = automatic.tidy(found, height, width, settings)
    if settings.max_area is None:
        return found
    shares = np.array([masks.area(rle, height, width) for rle in found.rles]) / (height * width)
    return found.pick(np.flatnonzero(shares < settings.max_area))


def _of_points(
    model: Promptable,
    seen: Seen,
    points: np.ndarray,
    crop: tuple[int, int, int, int],
    height: int,
    width: int,
    settings: Generator,
) -> Found:
    """What some points of a crop find; each stands for three masks."""
    answer = model.ask(seen, points=points, boxes=None, several=True)
    good = (answer.scores > settings.predicted_iou).nonzero().tolist()
    rles, rows, stable = [], [], []
    for row, choice in good:  # one by one: at full size they are large
        logits = model.full_size(answer.logits[row, choice][None], seen)[0]
        stability = float(stability_of(logits, settings.stability_offset))
        if stability >= settings.stability:
            mask = (logits > 0).cpu().numpy()
            if mask.any():
                rles.append(masks.rle_from_crop(masks.Crop(mask, crop[0], crop[1]), height, width))
                rows.append((row, choice))
                stable.append(stability)
    chosen = np.array(rows, dtype=np.int64).reshape(-1, 2)
    found = Found(
        rles=rles,
        boxes=np.array([automatic.box_of(rle, height, width) for rle in rles], dtype=np.float64).reshape(-1, 4),
        scores=answer.scores.cpu().numpy()[chosen[:, 0], chosen[:, 1]].astype(np.float64),
        stability=np.array(stable),
        points=points[chosen[:, 0]] + crop[:2],
        crops=np.tile(np.array(crop, dtype=np.int64), (len(rles), 1)),
    )
    return found.pick(np.flatnonzero(~automatic.near_crop_edge(found.boxes, crop, height, width)))


def stability_of(logits: torch.Tensor, offset: float) -> torch.Tensor:
    """Area above +offset by area above -offset: their IoU, one holding the other; 0 where there is nothing.

    Args:
        logits: (..., H, W).
    """
    inner, outer = ((logits > limit).sum(dim=(-2, -1)) for limit in (offset, -offset))
    return inner / outer.clamp(min=1)


# --- the model -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the encoder made of a picture. size: its height and width; scaled: those of it on the model's square."""

    features: Any
    size: tuple[int, int]
    scaled: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """logits: (n, k, h, w) float. scores: (n, k) predicted IoU. presence: (n,) probability of an object, else 1."""

    logits: torch.Tensor
    scores: torch.Tensor
    presence: torch.Tensor


class Promptable:
    """A model that answers points and boxes with masks."""

    def __init__(self, where: Where, family: Family) -> None:
        """Raises UserError where weights cannot be loaded."""
        folder = checkpoint(where.model)
        self._family = family
        self._model, self._device, self._dtype = load_model(family.model, where)
        self.side = int(self._model.config.prompt_encoder_config.image_size)
        self._mean, self._std = mean_std(folder, family.mean_std)

    def see(self, pixels: np.ndarray) -> Seen:
        """Encode a picture. pixels: (H, W, 3) uint8 RGB."""
        import torch

        height, width = pixels.shape[:2]
        scaled = scaled_size(height, width, self.side) if self._family.keeps_aspect else (self.side, self.side)
        values = normalized(pixels, scaled, self.side, self._mean, self._std).to(self._device, self._dtype)
        with torch.no_grad():
            features = self._model.get_image_embeddings(values)
        return Seen(features=features, size=(height, width), scaled=scaled)

    def ask(self, seen: Seen, *, points: np.ndarray | None, boxes: np.ndarray | None, several: bool) -> Answer:
        """Masks of prompts, each by itself.

        Args:
            points: (n, 2) px x, y of the picture. boxes: (n, 4) px x0, y0, x1, y1. several: three masks for each.
        Raises:
            AnswerError: `not_finite`.
        """
        import torch

        scale = np.array([seen.scaled[1] / seen.size[1], seen.scaled[0] / seen.size[0]])
        given: dict[str, Any] = {}
        if points is not None:
            given["input_points"] = torch.tensor(points * scale, dtype=self._dtype)[None, :, None]
            given["input_labels"] = torch.ones((1, len(points), 1), dtype=torch.int64)
        if boxes is not None:
            given["input_boxes"] = torch.tensor(boxes * np.tile(scale, 2), dtype=self._dtype)[None]
        given = {name: value.to(self._device) for name, value in given.items()}
        with torch.no_grad():
            made = self._model(image_embeddings=seen.features, multimask_output=several, **given)
        presence = getattr(made, "object_score_logits", None)
        check_finite(logits=made.pred_masks, predicted_iou=made.iou_scores, presence=presence)
        scores = made.iou_scores[0].float()
        return Answer(
            logits=made.pred_masks[0].float(),
            scores=scores,
            presence=torch.ones(len(scores)) if presence is None else presence[0].float().sigmoid().reshape(-1).cpu(),
        )

    def full_size(self, logits: torch.Tensor, seen: Seen) -> torch.Tensor:
        """(n, h, w) logits at the size of the picture, as the published code does it."""
        from torch.nn import functional

        full = logits[None]
        if self._family.keeps_aspect:
            full = functional.interpolate(full, (self.side, self.side), mode="bilinear", align_corners=False)
            full = full[..., : seen.scaled[0], : seen.scaled[1]]
        return functional.interpolate(full, seen.size, mode="bilinear", align_corners=False)[0]


def check_finite(**made: torch.Tensor | None) -> None:
    """Raise AnswerError, `not_finite`, where a model's figures are no numbers: to compare them would find nothing."""
    for name, values in made.items():
        if values is not None and not values.isfinite().all():
            raise AnswerError("not_finite", f"the model's {name} are not finite")


def load_model(name: str, where: Where) -> tuple[Any, Any, Any]:
    """A model of `transformers`, its device and type. Raises UserError where it cannot be loaded."""
    import torch
    import transformers

    if where.device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"device {where.device}: torch finds no such device here")
    dtype = getattr(torch, where.dtype)
    try:
        model = getattr(transformers, name).from_pretrained(where.model, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{where.model}: cannot be loaded as {name}: {error}") from None
    return model.eval().to(where.device), torch.device(where.device), dtype


def checkpoint(folder: str) -> Path:
    """The folder of a checkpoint. Raises UserError where it is none."""
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise UserError(f"{folder}: no checkpoint folder, it has no config.json; fetch one from the hub to a folder")
    return path


def folder_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON file of a checkpoint; empty where there is none. Raises UserError where it is damaged."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return found if isinstance(found, dict) else {}


def digest_of(folder: Path) -> str:
    """What tells the weights and settings of a checkpoint from those of others, however often they are written."""
    from dataengine.keyed import key_hash

    files = sorted({path.name for pattern in (*WEIGHTS, "*.json") for path in folder.glob(pattern)})
    return key_hash(*(part for name in files for part in (name, *_contents(folder / name)))).hex()[:16]


def _contents(path: Path) -> tuple[str, ...]:
    """Hashes of a file. The header of a `.safetensors` file, whose entries may stand in any order, is read first."""
    from dataengine.store.files import hash_file

    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            length = int.from_bytes(file.read(8), "little")
            try:
                header = json.loads(file.read(length)) if length <= _MAX_HEADER else None
            except ValueError:
                header = None
            if header is not None:
                return canonical(header), hash_file(file)
            file.seek(0)
        return (hash_file(file),)


def mean_std(folder: Path, usual: tuple[tuple[float, ...], tuple[float, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """By which pixels of 0 to 1 are normalized: the checkpoint's, or those its family was trained with."""
    told = folder_config(folder, "preprocessor_config.json")
    told = told or folder_config(folder, "processor_config.json").get("image_processor", {})
    mean, std = told.get("image_mean", usual[0]), told.get("image_std", usual[1])
    return np.array(mean, np.float32), np.array(std, np.float32)


def scaled_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width whose longer one is `side`."""
    scale = side / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def normalized(
    pixels: np.ndarray, scaled: tuple[int, int], side: int, mean: np.ndarray, std: np.ndarray
) -> torch.Tensor:
    """(1, 3, side, side) float32: the picture scaled as Pillow does, zeros to its right and below."""
    import torch
    from PIL import Image

    height, width = scaled
    small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    values = (np.asarray(small, np.float32) / 255 - mean) / std
    canvas = np.zeros((3, side, side), np.float32)
    canvas[:, :height, :width] = values.transpose(2, 0, 1)
    return torch.from_numpy(canvas)[None]


# --- prompts of known masks ------------------------------------------------------------------------------------------


def corners(entry: Entry) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of an entry's box, half open."""
    x, y, w, h = entry.bbox
    return x, y, x + w, y + h


def deepest(entry: Entry, height: int, width: int) -> tuple[float, float]:
    """x, y of the centre of the pixel that lies deepest in a mask; the first one of several."""
    import cv2

    crop = masks.crop_from_rle(entry.rle, height, width)
    depth = cv2.distanceTransform(np.pad(crop.mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return crop.x0 + int(x) + 0.5, crop.y0 + int(y) + 0.5


def rounded(values: Sequence[float] | np.ndarray) -> list[float]:
    """Numbers as they are written down."""
    return [round(float(value), 2) for value in values]
