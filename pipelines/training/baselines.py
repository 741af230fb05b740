"""What a trained model is compared with: the same model untrained, and for VGD the prompts as predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.evaluate.evaluator import Evaluator
from pipelines.training import evaluating, models
from pipelines.training import run as running
from pipelines.training.recipe import ExamSpec, StageSpec

RESULTS, TABLE = "results.json", "results.txt"
FIRST_STEP = 0


def write(run: running.Run, say: running.Say) -> None:
    """Score the baselines of the last stage's exams; all processes call it, the first one writes `results.json`."""
    from model.training import parallel

    stage = run.recipe.stages[-1]
    ready = running.ready_of(run, stage)
    exams = running.exams_of(run, ready, ready.processor(run.recipe))
    exams.out = exams.out / "untrained"
    exams.steps = FIRST_STEP  # as many samples count as at the end
    model = models.fresh(ready.config, stage.train.seed).to(parallel.join(run.cpu).device)
    untrained = exams(model, FIRST_STEP)
    if parallel.rank():
        return
    columns = {"trained": trained_of(run, stage), "untrained": untrained, "prompts": _prompts(run, stage)}
    (Path(run.out) / RESULTS).write_text(json.dumps(columns, indent=1) + "\n", encoding="utf-8")
    text = table(columns)
    (Path(run.out) / TABLE).write_text(text + "\n", encoding="utf-8")
    say(text)


def trained_of(run: running.Run, stage: StageSpec) -> dict[str, float]:
    """Scores of the evaluation at a stage's end."""
    steps = running.ready_of(run, stage).num_steps
    folder = run.folder_of(stage) / evaluating.EVALUATIONS / f"step-{steps:08d}"
    found: dict[str, float] = {}
    for exam in stage.evaluate:
        found |= evaluating.named(exam, json.loads((folder / f"{exam.name}.json").read_text(encoding="utf-8")))
    return found


def _prompts(run: running.Run, stage: StageSpec) -> dict[str, float]:
    found: dict[str, float] = {}
    for exam in stage.evaluate:
        if exam.task == "vgdseg":
            found |= evaluating.named(exam, _of_prompts(exam, run.datasets[exam.data]))
    return found


def _of_prompts(exam: ExamSpec, dataset: str) -> dict[str, Any]:
    from pipelines.vgd.baseline import predictions

    evaluator = Evaluator(dataset, exam.task, evaluating.RULES, exam.split, exam.at_end)
    for record in predictions(evaluator.benchmark.samples(), "prompts"):
        if record["prompt"] in (exam.prompts or ()):
            evaluator.add_record(record["sample_id"], record)
    return evaluator.result(exclude_faults=True)


def table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Scores in percent, a line each; a dash where a baseline has none."""
    names = list(columns["trained"])
    width = max((len(name) for name in names), default=0)
    lines = [" " * width + "".join(f"{title:>12}" for title in columns)]
    for name in names:
        cells = [f"{100 * column[name]:12.1f}" if name in column else f"{'-':>12}" for column in columns.values()]
        lines.append(name.ljust(width) + "".join(cells))
    return "\n".join(lines)
