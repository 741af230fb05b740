"""`dataengine eval TASK`. Nothing heavy is imported before it is needed."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.command import errors

NAMES = {"vgd": "vgdseg"}  # short names of tasks


def evaluate_predictions(
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="vgd, intseg, refseg, grefseg, reaseg, genseg, ovseg or gcgseg.")
    ],
    benchmark: Annotated[str, typer.Option("--benchmark", metavar="DIR", help="A benchmark, or a built dataset.")],
    predictions: Annotated[str, typer.Option("--predictions", metavar="FILE", help="JSON, JSON lines or Parquet.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for result.json and result.txt.")],
    split: Annotated[str | None, typer.Option("--split", metavar="NAME", help="Only samples of this split.")] = None,
    convention: Annotated[
        str, typer.Option("--convention", metavar="standard|xsam|both", help="How what is missing is counted.")
    ] = "standard",
    backend: Annotated[
        str, typer.Option("--backend", metavar="hotcoco|pycocotools", help="What computes average precision.")
    ] = "hotcoco",
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="KIND", help="The prompt that was shown, where predictions do not say it."),
    ] = None,
    exclude_faults: Annotated[
        bool, typer.Option("--exclude-faults", help="Leave out, and count, predictions that cannot be scored.")
    ] = False,
    strata: Annotated[bool, typer.Option(help="Break scores of regions down by difficulty.")] = True,
) -> None:
    """Score a model's predictions."""
    from pipelines.evaluate import report
    from pipelines.evaluate.evaluator import evaluate
    from pipelines.evaluate.scorers import Rules

    with errors():
        rules = Rules(convention=convention, backend=backend, prompt=prompt, strata=strata)
        result = evaluate(
            benchmark,
            NAMES.get(task, task),
            predictions,
            rules,
            split=split,
            exclude_faults=exclude_faults,
        )
        report.write(result, out)
        typer.echo(report.text(result))
