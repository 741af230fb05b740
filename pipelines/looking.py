"""Commands that show a dataset to people. Nothing heavy is imported before a command needs it."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.command import Dataset, errors

if TYPE_CHECKING:
    from pipelines.progress import Console

NoReport = Annotated[bool, typer.Option("--no-report", help="Do not write report.html beside the dataset.")]


def report(
    directory: Dataset,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE", help="The page, a path or URI; by default report.html in DIR."),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=0, max=200, metavar="N", help="How many samples it shows.")
    ] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of their draw.")] = 0,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="PATH", help="Count the tokens of this tokenizer.json, or its folder.")
    ] = None,
) -> None:
    """Write one HTML page of what a dataset holds: charts, account of records, samples."""
    from dataengine.store.files import Folder, public
    from pipelines import report as reports

    with errors():
        written = reports.write(directory, out, samples, seed, tokenizer)
        place = public(out or (Folder(directory) / reports.FILE).uri)
        typer.echo(f"{place}: {written.samples} samples, {len(written.html) / 1e6:.1f} MB")


def report_after(directory: str, progress: "Console") -> None:
    """Write the report of a dataset that was just built. Where that fails, the build does not: a line says so."""
    import shlex

    from pipelines import report as reports

    began = time.monotonic()
    try:
        reports.write(directory)
    except (Exception, KeyboardInterrupt) as error:
        what = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        again = f"dataengine report {shlex.quote(directory)}"
        typer.secho(f"warning: the report was not written ({what}); to try again: {again}", fg="yellow", err=True)
        return
    progress.reported(time.monotonic() - began)


def view(
    directories: Annotated[
        list[str], typer.Argument(metavar="DIR…", help="Dataset folders, paths or URIs; two are compared.")
    ],
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, metavar="N", help="0 takes a free one.")] = 8765,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name by which a browser may ask; may be given several times."),
    ] = None,
) -> None:
    """Show datasets in a browser: search, filter, sort, compare. Ctrl-C ends it."""
    from dataengine.view import server

    with errors():
        server.serve(directories, host, port, allow_host or [], say=typer.echo)
