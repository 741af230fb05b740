"""The model of a stage: its settings, the weights that it begins with, and the processor that feeds it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.checkpoints import CONFIG, HANDED_ON, load_into, read_state
from model.config import PRESETS, XSamConfig, from_json, stage1
from model.training.settings import is_within
from pipelines.training.recipe import PARTS, ModelSpec, StageSpec, TrainingError, TrainRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from model.inputs import Processor
    from model.xsam import XSam

FOLDERS = ("checkpoint", "stage1", "stage2")  # of `init`: whole checkpoint folders
TINY = "tiny"  # the tokenizer that is made on the spot


def config_of(spec: ModelSpec) -> XSamConfig:
    """The settings of the whole model.

    Raises:
        UserError: there is no such preset or file, or a setting is wrong.
    """
    if spec.config is not None:
        try:
            base = from_json(Path(spec.config).read_bytes(), spec.config)
        except OSError as error:
            raise TrainingError(f"model.config: {spec.config}: {error.strerror}") from None
    elif spec.preset is None or spec.preset not in PRESETS:
        raise TrainingError(f"model.preset: there is no {spec.preset!r}; there are {', '.join(PRESETS)}")
    else:
        base = PRESETS[spec.preset]
    return from_json(json.dumps(_merged(dataclasses.asdict(base), spec.set)), "model.set") if spec.set else base


def _merged(values: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, with those of `changes` in their places."""
    found = dict(values or {})
    for key, value in changes.items():
        found[key] = _merged(found.get(key), value) if isinstance(value, Mapping) else value
    return found


def config_of_stage(config: XSamConfig, stage: StageSpec, num_classes: int) -> XSamConfig:
    """The settings of the model that a stage trains. num_classes: of its data, which stage 1 has a class for each."""
    if stage.train.stage != 1:
        return config
    return dataclasses.replace(stage1(config), num_labels=num_classes)


def tokenizer_of(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """Raises UserError where it cannot be had."""
    from model.words import load_tokenizer, tiny_tokenizer

    return tiny_tokenizer() if spec.tokenizer == TINY else load_tokenizer(spec.tokenizer)


def processor_of(config: XSamConfig, spec: ModelSpec, classes: Sequence[int]) -> Processor:
    """classes: category ids of stage 1, in the order of the head's classes."""
    from model.inputs import Processor
    from model.predicting import check_tokenizer

    if config.language is None:
        return Processor(config, categories=classes)
    tokenizer = tokenizer_of(spec)
    check_tokenizer(tokenizer, config.language.settings.get("vocab_size"), spec.tokenizer)
    return Processor(config, tokenizer)


def fresh(config: XSamConfig, seed: int) -> XSam:
    """A model with random weights, the same for the same seed."""
    import torch

    from model.xsam import XSam

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return XSam(config)


def begin(recipe: TrainRecipe, stage: StageSpec, config: XSamConfig, exports: Mapping[str, Path]) -> XSam:
    """The model of a stage with all weights that it begins with.

    Args:
        exports: checkpoint folders of the stages before it in this run, by name.
    Raises:
        UserError: weights cannot be had, or do not fit.
    """
    from model.parts import load_part
    from model.training.export import take_over

    model = fresh(config, stage.train.seed)
    for part, source in stage.init.items():
        if part == "checkpoint":
            load_into(model, read_state(source), name=source)
        elif part in ("stage1", "stage2"):
            take_over(model, source, int(part[-1]))
        else:
            load_part(model, part, source)
    for earlier in recipe.stages[: [s.name for s in recipe.stages].index(stage.name)]:
        if prefixes := _taken(stage, earlier):
            load_into(model, read_state(exports[earlier.name]), only=prefixes, name=str(exports[earlier.name]))
    return model


def _taken(stage: StageSpec, earlier: StageSpec) -> tuple[str, ...]:
    """Prefixes of the weights that a stage takes of one before it."""
    return tuple(stage.take.get(earlier.name, HANDED_ON.get(earlier.train.stage, ())))


def check_parts(stage: StageSpec, model: XSam) -> None:
    """Say what of a stage's `init` and `take` its model has no place for.

    Args:
        model: of the stage; its weights need no values.
    Raises:
        TrainingError: a part that the model does not have.
    """
    names = [name for name, _ in model.named_parameters()]
    parts = dict(model.named_children())
    for part in stage.init:
        if part not in FOLDERS and part.partition(".")[0] not in parts and part != "mask2former":
            raise TrainingError(f"stage {stage.name}: init: its model has no {part}; it has {', '.join(parts)}")
    for earlier, prefixes in stage.take.items():
        for prefix in prefixes:
            if not any(is_within(name, (prefix,)) for name in names):
                raise TrainingError(
                    f"stage {stage.name}: take: {earlier}: its model has no {prefix}; it has {', '.join(parts)}"
                )


def check_inits(recipe: TrainRecipe) -> None:
    """Say what would be missing only when its stage begins.

    Raises:
        TrainingError: a folder of weights has no model, or what a stage requires comes from nowhere.
    """
    before: set[int] = set()
    for stage in recipe.stages:
        for part in FOLDERS:
            source = stage.init.get(part)
            if source is not None and not (Path(source) / CONFIG).is_file():
                raise TrainingError(f"stage {stage.name}: init: {part}: {source} is no checkpoint folder")
        for number in stage.requires:
            if number not in before and not {"checkpoint", f"stage{number}"} & set(stage.init):
                raise TrainingError(
                    f"stage {stage.name}: begins with what stage {number} makes; train that before, or say where it is "
                    f"by --init stage{number}=DIR"
                )
        before.add(stage.train.stage)


def check_published(recipe: TrainRecipe) -> None:
    """Fetch the settings of all published weights that the stages begin with. Raises UserError."""
    from model.parts import check_source

    for source in sorted({s for stage in recipe.stages for part, s in stage.init.items() if part not in FOLDERS}):
        check_source(source)


def with_init(recipe: TrainRecipe, given: Sequence[str]) -> TrainRecipe:
    """The recipe with the weights of `--init PART=WEIGHTS`, for every stage that can hold them.

    Raises:
        TrainingError: a part is unknown, or not written so.
    """
    stages = list(recipe.stages)
    for text in given:
        part, mark, source = text.partition("=")
        if not mark or not source or part not in PARTS:
            raise TrainingError(f"--init {text}: write PART=DIR|NAME; parts are {', '.join(PARTS)}")
        for place, stage in enumerate(stages):
            if _takes(stage, part):
                stages[place] = stage.model_copy(update={"init": {**stage.init, part: source}})
    for place, stage in enumerate(stages):  # workers may run in another folder
        found = {part: str(Path(s).absolute()) if Path(s).exists() else s for part, s in stage.init.items()}
        stages[place] = stage.model_copy(update={"init": found})
    return recipe.model_copy(update={"stages": tuple(stages)})


def _takes(stage: StageSpec, part: str) -> bool:
    number = stage.train.stage
    if part.startswith("stage"):
        return number > int(part[-1])
    return number > 1 or part in ("segmentor.encoder", "mask2former", "checkpoint")
