"""`dataengine loop`. Nothing heavy is imported before it is needed."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.command import Workers, errors, for_terminal

WAITS = 3  # exit code of a loop that waits for reviewers


def loop(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="shapes-loop, or a YAML file.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The loop's folder, by default loops/RECIPE.")
    ] = None,
    root: Annotated[
        str | None, typer.Option(metavar="DIR", help="The folder of the sources of everything that is built.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value: rounds=2, source.labelled=0.05."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a loop that was stopped, or waited.")] = False,
    workers: Workers = 1,
    gpus: Annotated[float, typer.Option("--gpus", min=0, metavar="N", help="GPUs of each labeler on Ray.")] = 0.0,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where models run.")] = "auto",
) -> None:
    """Train, relabel, filter, review, merge and build, round by round. Exit code 3 where it waits for reviewers."""
    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter("--device is auto, cpu or cuda")
    with errors():
        from pipelines.loop import recipe as recipes
        from pipelines.predicting import require_model

        require_model()
        from pipelines.loop import run as running
        from pipelines.loop.reviewing import Waiting
        from pipelines.training.cli import _is_cpu

        def say(text: str) -> None:
            typer.echo(for_terminal(text))

        loaded = recipes.load(recipe, change or [])
        place = out or Path("loops") / loaded.name
        where = running.Where(root=root, workers=workers, gpus=gpus, cpu=_is_cpu(device))
        try:
            why = running.run(loaded, place, where, say, resume=resume)
        except Waiting as waits:
            say(str(waits))
            raise typer.Exit(WAITS) from None
        except running.Interrupted as interrupted:
            say(str(interrupted))
            raise typer.Exit(interrupted.code) from None
        say(f"{why}; {place / 'report.html'}")
