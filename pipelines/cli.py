"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="dataengine",
    help="Training shards and benchmarks for segmentation MLLMs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
synth = typer.Typer(help="Write a synthetic source.", no_args_is_help=True)
app.add_typer(synth, name="synth")

Out = Annotated[str, typer.Option("--out", help="Output folder, a path or URI (s3://…).")]
Dataset = Annotated[str, typer.Argument(metavar="DIR", help="A dataset folder, a path or URI.")]


@contextmanager
def _errors(progress: Any = None) -> Iterator[None]:
    """Errors that a user can mend become one line and exit code 1; defects keep their traceback."""
    from dataengine.engine.executors import EngineError
    from dataengine.store.files import NondeterminismError
    from dataengine.store.lock import LockedError
    from dataengine.store.quarantine import BudgetError

    def stop(message: str, code: int) -> typer.Exit:
        if progress is not None:
            progress.fail(message)
        typer.secho(message, fg="red" if code == 1 else None, err=True)
        return typer.Exit(code)

    def terminate(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt:
        raise stop("interrupted; what is committed stays, --resume goes on", 130) from None
    except (ValueError, OSError, EngineError, NondeterminismError, LockedError, BudgetError) as error:
        raise stop(f"error: {error}", 1) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        import dataengine

        typer.echo(dataengine.__version__)
        raise typer.Exit


@app.command()
def build(
    recipe: Annotated[
        str, typer.Argument(help="A recipe that ships with the package (vgd, genseg, …) or a YAML file.")
    ],
    out: Out,
    source: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH: the folder of a source; may be given several times.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    engine: Annotated[str | None, typer.Option(help="ray or local; by default ray for more than one worker.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a build that was stopped.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N pictures of each split.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed than the recipe's.")] = None,
) -> None:
    """Build a dataset from a recipe."""
    from pipelines import build as building
    from pipelines import recipe as recipes
    from pipelines.progress import Console

    if engine not in (None, "ray", "local"):
        raise typer.BadParameter("--engine is ray or local")
    progress = Console()
    with _errors(progress):
        loaded = recipes.with_sources(recipes.load(recipe), source or [])
        settings = building.Settings(workers=workers, engine=engine, resume=resume, limit=limit, seed=seed)
        manifest = building.run(loaded, out, settings, progress)
        typer.echo(summary(out, manifest))


def summary(out: str, manifest: dict[str, Any]) -> str:
    """What a finished dataset holds, in a few lines."""
    counts = manifest["counts"]
    lines = [
        f"{out}: {counts['samples']} samples, {counts['objects']} objects in {len(manifest['shards'])} shards",
        *(f"  {task}: {number} samples" for task, number in counts["tasks"].items()),
    ]
    for unit, read in counts["records"]["read"].items():
        records = counts["records"]
        parts = [f"{records['built'].get(unit, 0)} built"]
        for kind in ("quarantined", "filtered"):
            parts += [f"{n} {kind} ({reason})" for reason, n in records[kind].get(unit, {}).items()]
        lines.append(f"  {unit}: {read} read = {' + '.join(parts)}")
    return "\n".join([*lines, f"  version {manifest['version'][:16]}"])


if __name__ == "__main__":
    sys.exit(app())
