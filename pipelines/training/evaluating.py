"""Evaluation while a stage trains: held-out samples are answered, scored as `dataengine eval` does, and some are drawn.

All processes answer their part of the samples; the first one scores. Pictures of the same few samples, each time, show
how predictions come about.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataengine.sample import PromptKind, Sample
from pipelines.evaluate.benchmark import Benchmark, open_benchmark
from pipelines.evaluate.evaluator import Evaluator
from pipelines.evaluate.generic import things_of
from pipelines.evaluate.scorers import Rules
from pipelines.training.recipe import ExamSpec, StageSpec, TrainingError

if TYPE_CHECKING:
    from PIL import Image as Pillow

    from model.inputs import Processor
    from model.predictions import Prediction
    from model.xsam import XSam

EVALUATIONS, PICTURES = "evaluations", "pictures"
RULES = Rules(strata=False)
DRAWN = 3  # samples of each exam
BATCH = 8
SURE = 0.5  # of the best score of a sample: what is drawn
PICTURE_PX = 320  # longest side of a drawn picture, at most
# of a result, what goes to logs and tables
SHOWN = ("ap", "ap50", "pq", "miou", "giou", "ciou", "meteor", "cider", "recall")


def check(stage: StageSpec, datasets: Mapping[str, str]) -> None:
    """Say what would go wrong at the first evaluation.

    Raises:
        UserError: a dataset has no sample of the task, a kind of prompt is missing, or the model has no answer to it.
    """
    for exam in stage.evaluate:
        if stage.train.stage == 1 and exam.task != "genseg":
            raise TrainingError(f"stage {stage.name}: evaluate: {exam.name}: a fixed head only answers genseg")
        if exam.task == "chat":
            raise TrainingError(f"stage {stage.name}: evaluate: {exam.name}: chat is not scored")
        if (exam.prompts is None) == (exam.task in ("vgdseg", "intseg")):
            wants = "needs the kinds of prompts to show" if exam.prompts is None else "is not asked by prompts"
            raise TrainingError(f"stage {stage.name}: evaluate: {exam.name}: {exam.task} {wants}")
        open_benchmark(datasets[exam.data], exam.task, exam.split)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was found in a sample by a kind of prompt. number: of the sample."""

    number: int
    kind: PromptKind | None
    prediction: Prediction


class Exams:
    """The exams of a stage: called with a model and a step, by all processes, gives scores by name to the first."""

    def __init__(
        self,
        stage: StageSpec,
        datasets: Mapping[str, str],
        processor: Processor,
        out: Path,
        steps: int,
        names: Mapping[int, str],
    ) -> None:
        """steps: at which the stage ends. names: of the classes of stage 1, by category id."""
        self.stage, self.processor, self.out, self.steps, self.names = stage, processor, out, steps, names
        self.datasets = datasets
        self._samples: dict[str, list[Sample]] = {}

    def __call__(self, model: XSam, step: int) -> dict[str, float]:
        from model.training import parallel

        scores: dict[str, float] = {}
        for exam in self.stage.evaluate:
            limit = exam.at_end if step >= self.steps else exam.samples
            benchmark = open_benchmark(self.datasets[exam.data], exam.task, exam.split, limit)
            samples = self._first(exam, benchmark)
            mine = list(self._answers(model, exam, benchmark, samples))
            parts = [mine] if self.stage.train.parallel == "fsdp" else parallel.gather(mine)
            answers = [answer for part in parts for answer in part]
            if parallel.rank():
                continue
            result = scored(exam, self.datasets[exam.data], limit, samples, answers)
            self._write(exam, step, result, samples, answers)
            scores |= named(exam, result)
        parallel.wait()
        return scores

    def _first(self, exam: ExamSpec, benchmark: Benchmark) -> list[Sample]:
        """Samples on the way are read once; those of the end are more."""
        if benchmark.limit != exam.samples:
            return list(benchmark.samples())
        if exam.name not in self._samples:
            self._samples[exam.name] = list(benchmark.samples())
        return self._samples[exam.name]

    def _answers(
        self, model: XSam, exam: ExamSpec, benchmark: Benchmark, samples: Sequence[Sample]
    ) -> Iterator[Answer]:
        """Of this process's part; where processes share out the weights all must do the same, so each does all."""
        from model.predicting import Predictor
        from model.training import parallel

        world = 1 if self.stage.train.parallel == "fsdp" else parallel.world()
        mine = range(parallel.rank() % world, len(samples), world)
        things = {id: thing for of_source in things_of(benchmark).values() for id, thing in of_source.items()}
        with parallel.precision(self.stage.train, next(model.parameters()).device):
            for kind in exam.prompts or (None,):
                able = [number for number in mine if kind is None or _has(samples[number], kind)]
                asked = [samples[number] for number in able]
                if model.config.language is None:
                    found = self._of_stage_1(model, asked, things)
                else:
                    predictor = Predictor(model, self.processor)
                    pairs = predictor.predictions(
                        asked, kind=kind, things=things, generate=exam.generate, batch_size=BATCH, max_new=exam.max_new
                    )
                    found = (prediction for _, prediction in pairs)
                for number, prediction in zip(able, found, strict=True):
                    yield Answer(number=number, kind=kind, prediction=prediction)

    def _of_stage_1(self, model: XSam, samples: Iterable[Sample], things: Mapping[int, bool]) -> Iterator[Prediction]:
        """A fixed head is asked for all of its classes at once."""
        from model.batches import collate
        from model.postprocess import EVALUATE, Frame
        from model.predictions import Asked, prediction_of

        asked = [
            Asked(text=self.names.get(id, str(id)), category_id=id, is_thing=things.get(id, True))
            for id in self.processor.classes
        ]
        device = next(model.parameters()).device
        for sample in samples:
            made = self.processor.from_sample(sample)
            outputs = model.answer(collate([made]).to(device))
            assert outputs is not None
            assert made.picture is not None
            frame = Frame(canvas=model.config.seg_px, scaled=made.picture.scaled_size, size=made.picture.size)
            class_logits, mask_logits = (part.float().cpu() for part in outputs.final)
            variant = sample.variant or "instance"
            yield prediction_of(
                sample.task, class_logits, mask_logits, frame, asked, thresholds=EVALUATE, variant=variant
            )

    def _write(
        self,
        exam: ExamSpec,
        step: int,
        result: Mapping[str, Any],
        samples: Sequence[Sample],
        answers: Sequence[Answer],
    ) -> None:
        """The result, and pictures of some samples: `truth.webp` and `step-N.webp`, each in a folder of its own."""
        place = self.out / EVALUATIONS / f"step-{step:08d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{exam.name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        first = exam.prompts[0] if exam.prompts else None
        by_number = {answer.number: answer.prediction for answer in answers if answer.kind == first}
        for number in _spread(min(exam.samples, len(samples)), DRAWN):
            if number not in by_number:
                continue
            folder = self.out / PICTURES / f"{exam.name}-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            for name, prediction in (
                ("truth", truth_of(samples[number])),
                (f"step-{step:08d}", surest(by_number[number])),
            ):
                if name != "truth" or not (folder / "truth.webp").exists():
                    (folder / f"{name}.webp").write_bytes(drawn(samples[number], prediction))


# --- scores ----------------------------------------------------------------------------------------------------------


def scored(
    exam: ExamSpec, dataset: str, limit: int | None, samples: Sequence[Sample], answers: Iterable[Answer]
) -> dict[str, Any]:
    """The result of answers, of all samples of an exam; see `Evaluator.result`."""
    from model.predictions import records_of

    evaluator = Evaluator(dataset, exam.task, RULES, exam.split, limit)
    for answer in sorted(answers, key=lambda one: (one.number, one.kind or "")):
        sample_id = samples[answer.number].sample_id
        records = records_of(answer.prediction, sample_id)
        for number, record in enumerate(records):
            evaluator.add_record(f"{sample_id}[{number}]", record)
        if not records:
            evaluator.add(sample_id, masks=[], prompt=answer.kind)
    return evaluator.result(exclude_faults=True)  # an untrained model says the same thing twice


def named(exam: ExamSpec, result: Mapping[str, Any]) -> dict[str, float]:
    """What is shown of a result, by names that begin with the exam's."""
    return {f"{exam.name}/{name}": value for name, value in headlines(result["scores"])}


def headlines(scores: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, float]]:
    """Scores that are shown, by their place in the tree; a branch that is alone is not named."""
    branches = {name: value for name, value in scores.items() if isinstance(value, Mapping)}
    numbers = {name: value for name, value in scores.items() if name in SHOWN and isinstance(value, float)}
    if numbers:
        for name, value in numbers.items():
            yield f"{place}/{name}".lstrip("/"), value
        return
    for name, branch in branches.items():
        yield from headlines(branch, place if len(branches) == 1 else f"{place}/{name}")


def _has(sample: Sample, kind: str) -> bool:
    """Whether all that is shown has a prompt of a kind."""
    shown = []
    for condition in sample.conditions:
        if condition.exemplar >= 0:
            shown.append(sample.objects[condition.exemplar].prompts)
        elif condition.reference >= 0:
            shown += [sample.references[index].prompts for index in (condition.reference, *condition.shots)]
    return all(any(prompt.kind == kind and prompt.status != "none" for prompt in prompts) for prompts in shown)


def _spread(number: int, wanted: int) -> list[int]:
    """So many numbers below another, evenly."""
    return sorted({number * place // wanted for place in range(wanted)}) if number else []


# --- pictures --------------------------------------------------------------------------------------------------------


def truth_of(sample: Sample) -> Prediction:
    """What an answer should have been."""
    from model.predictions import Mask, Prediction

    masks = [
        Mask(
            rle=sample.objects[index].rle,
            condition=place,
            category_id=condition.category_id,
            text=condition.text,
            score=1.0,
        )
        for place, condition in enumerate(sample.conditions)
        for index in condition.objects
    ]
    return Prediction(task="gcgseg", height=sample.height, width=sample.width, masks=tuple(masks))


def surest(prediction: Prediction) -> Prediction:
    """Without masks that are much less sure than the surest one, of which evaluation has many."""
    best = max((mask.score for mask in prediction.masks), default=0.0)
    return replace(prediction, masks=tuple(mask for mask in prediction.masks if mask.score >= SURE * best))


def drawn(sample: Sample, prediction: Prediction) -> bytes:
    """A picture with a prediction's masks, WebP."""
    from dataengine.store.dataset import picture_of
    from model.pictures import open_picture
    from model.predictions import overlay

    assert sample.image is not None
    picture: Pillow.Image = overlay(open_picture(picture_of(sample.image)), prediction)
    picture.thumbnail((PICTURE_PX, PICTURE_PX))
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=80)
    return file.getvalue()
