"""A run: the stages of a recipe one after the other, in this process or as one of several that train together.

In its folder: `run.json`; for each stage a folder of its name with what `model.training.loop.train` writes, results of
evaluations and pictures; `results.json` and `report.html`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from dataengine import malloc
from model.checkpoints import CONFIG
from model.training.settings import FIXED_CLASSES, changes
from pipelines import plan as planning
from pipelines.training import data as reading
from pipelines.training import evaluating, models
from pipelines.training.recipe import StageSpec, TrainingError, TrainRecipe, _Model

if TYPE_CHECKING:
    from model.config import XSamConfig
    from model.inputs import Processor
    from model.training.loop import Asked

RUN, CACHE = "run.json", "cache"
Say = Callable[[str], None]


class Run(_Model):
    """What the processes of a run must know. datasets: where they are, by name. cpu: leave accelerators alone."""

    recipe: TrainRecipe
    datasets: dict[str, str]
    out: str
    resume: bool = False
    cpu: bool = False

    def folder_of(self, stage: StageSpec) -> Path:
        return Path(self.out) / stage.name


def write(run: Run) -> Path:
    """Write `run.json`.

    Raises:
        TrainingError: the folder holds another run.
    """
    file = Path(run.out) / RUN
    check_free(Path(run.out), run.resume)
    if file.exists():
        _check_same(read(file), run)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(run.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return file


def check_free(out: Path, resume: bool) -> None:
    """Raise TrainingError where a folder holds a run that is not to be gone on with."""
    if (out / RUN).exists() and not resume:
        raise TrainingError(f"{out}: holds a run; add --resume to go on with it, or choose another --out")


def _check_same(before: Run, now: Run) -> None:
    """Raise TrainingError where what was begun would go on as something else."""
    if before.recipe.name != now.recipe.name:
        raise TrainingError(f"{now.out}: holds a run of {before.recipe.name}, not of {now.recipe.name}")
    begun = {stage.name: stage for stage in before.recipe.stages if before.folder_of(stage).exists()}
    stages = {stage.name: stage.train for stage in now.recipe.stages}
    lost = [f"there is no stage {name}" for name in begun if name not in stages]
    model = (before.recipe.model.model_dump(mode="json"), now.recipe.model.model_dump(mode="json"))
    if begun and model[0] != model[1]:
        lost.append(planning.difference(*model, "model"))
    for name in begun.keys() & stages.keys():
        stored = json.loads(json.dumps(dataclasses.asdict(begun[name].train)))
        lost += [f"{name}.{line}" for line in changes(stored, stages[name])]
    if lost:
        raise TrainingError("\n  ".join([f"{now.out}: holds another run; it cannot be gone on with:", *lost]))


def read(file: Path) -> Run:
    """Raises TrainingError where it is no run."""
    try:
        return Run.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise TrainingError(f"{file}: cannot be read: {error}") from None


# --- before step 1 ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A stage with what it reads, and the settings of its model. names: of the categories, by id."""

    stage: StageSpec
    source: reading.Source
    config: XSamConfig
    names: dict[int, str]

    @property
    def num_steps(self) -> int:
        return self.stage.train.num_steps(self.source.order.steps_per_epoch)

    def processor(self, recipe: TrainRecipe) -> Processor:
        return models.processor_of(self.config, recipe.model, sorted(self.names))

    def learning(self, processor: Processor) -> Processor:
        """The processor of what is learned from."""
        square = self.stage.expand_to_square
        if square is None or square == self.config.expand_to_square:
            return processor
        config = dataclasses.replace(self.config, expand_to_square=square)
        return type(processor)(config, processor.tokenizer, categories=sorted(self.names) or None)


def check(run: Run) -> None:
    """Say what would go wrong in any of the stages. Raises UserError."""
    check_recipe(run.recipe)
    from model.checkpoints import without_values
    from model.training.export import add_adapters
    from model.training.settings import check as check_stage
    from model.xsam import XSam

    for stage in run.recipe.stages:
        ready = ready_of(run, stage)
        evaluating.check(stage, run.datasets)
        model = without_values(XSam, ready.config)
        models.check_parts(stage, model)
        if stage.train.lora is not None:
            add_adapters(model, stage.train.lora, stage.train.seed)
        check_stage(stage.train, ready.config, [name for name, _ in model.named_parameters()], ready.source.order.tasks)


def check_recipe(recipe: TrainRecipe) -> None:
    """Say what would go wrong, of what can be told without data. Raises UserError."""
    models.check_inits(recipe)
    models.check_published(recipe)
    config = models.config_of(recipe.model)
    if any(stage.train.stage > 1 for stage in recipe.stages):
        models.processor_of(config, recipe.model, ())


def ready_of(run: Run, stage: StageSpec) -> Ready:
    """A stage with its data opened. Raises UserError."""
    whole = models.config_of(run.recipe.model)
    source = reading.open_source(stage, run.datasets, Path(run.out) / CACHE)
    names = {}
    if stage.train.stage == 1:
        if others := sorted(set(source.order.tasks) - set(FIXED_CLASSES)):
            raise TrainingError(f"stage {stage.name}: a fixed head of classes has no head for {', '.join(others)}")
        names = reading.categories_of(source.rows)
    config = models.config_of_stage(whole, stage, len(names))
    return Ready(stage=stage, source=source, config=config, names=names)


# --- all stages ------------------------------------------------------------------------------------------------------


def go(run: Run, say: Say, asked: Asked | None = None) -> int | None:
    """Train all stages, as the process that this is; gives the signal that interrupted them, or None.

    Args:
        asked: says when to stop, instead of signals that are caught here.
    Raises:
        UserError: see `model.training.loop.train`.
    """
    from model.training.loop import Interrupted, interrupts

    logging.basicConfig(format="%(message)s")
    if run.cpu:
        malloc.keep_all()
    with nullcontext(asked) if asked is not None else interrupts() as asked:
        try:
            return _stages(run, say, asked)
        except Interrupted:
            return asked.signal


def _stages(run: Run, say: Say, asked: Asked) -> int | None:
    from model.training import parallel

    first = parallel.join(run.cpu).is_first
    exports = {stage.name: run.folder_of(stage) / "model" for stage in run.recipe.stages}
    for stage in run.recipe.stages:
        if first:
            say(f"stage {stage.name}")
        interrupted = _train(run, stage, exports, say, asked)
        if first:
            _report(run, say)
        if interrupted is not None:
            return interrupted
    if run.recipe.baselines:
        from pipelines.training import baselines

        with asked.at_once():
            baselines.write(run, say)
        if first:
            _report(run, say)
    return None


def _train(run: Run, stage: StageSpec, exports: dict[str, Path], say: Say, asked: Asked) -> int | None:
    from model.training.loop import CHECKPOINTS, train

    out = run.folder_of(stage)
    if run.resume and (exports[stage.name] / CONFIG).is_file() and not (out / CHECKPOINTS).exists():
        say(f"{out}: its checkpoints are gone; its model is taken as it is")
        return None
    ready = ready_of(run, stage)
    processor = ready.processor(run.recipe)
    data = reading.feed_of(stage, ready.source, ready.learning(processor))
    exams = exams_of(run, ready, processor)
    model = models.begin(run.recipe, stage, ready.config, exports)
    result = train(
        stage.train,
        model,
        data,
        out,
        resume=run.resume,
        evaluate=exams if stage.evaluate else None,
        cpu=run.cpu,
        asked=asked,
        say=say,
    )
    if result.signal is None and processor.tokenizer is not None:
        processor.tokenizer.save_pretrained(str(out / "model"))
    return result.signal


def exams_of(run: Run, ready: Ready, processor: Processor) -> evaluating.Exams:
    """The exams of a stage."""
    out = run.folder_of(ready.stage)
    return evaluating.Exams(ready.stage, run.datasets, processor, out, ready.num_steps, ready.names)


def _report(run: Run, say: Say) -> None:
    """The report is no reason for a run to fail."""
    from pipelines.training import report

    try:
        report.write(Path(run.out))
    except Exception as error:
        say(f"warning: the report was not written: {type(error).__name__}: {error}")
