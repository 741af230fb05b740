"""`dataengine review …`. Nothing heavy is imported before a command needs it."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.command import errors, for_terminal, group

if TYPE_CHECKING:
    from dataengine.ledger.records import Decision
    from pipelines.review.ledgers import Collected
    from pipelines.review.marks import Refused

review = group("Send masks that people should look at to an annotation tool, and take back what they decided.")

LedgerFolder = Annotated[str, typer.Argument(metavar="LEDGER", help="A ledger's folder, a path or URI.")]
PackageFolder = Annotated[Path, typer.Argument(metavar="PACKAGE", help="The folder that `export` wrote.")]
WordsFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the reviewers' words, a file for each.")]
SHOWN = 20  # refused records


@review.command("export")
def export_package(
    ledger: LedgerFolder,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The package's folder, new or empty.")],
    to: Annotated[str, typer.Option("--to", metavar="coco|cvat|label-studio", help="The layout.")] = "coco",
    pictures: Annotated[
        str, typer.Option(metavar="copy|link|none", help="Copy the pictures, link to them, or only name them.")
    ] = "copy",
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="What Label Studio finds the pictures by, up to their names.")
    ] = None,
    step: Annotated[int | None, typer.Option(min=0, metavar="N", help="Of the ledger; by default the newest.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N pictures.")] = None,
) -> None:
    """Write the masks that wait for a review as a package for an annotation tool."""
    with errors():
        from dataengine.ledger.ledger import Ledger
        from pipelines.review import ledgers
        from pipelines.review.package import URL, layout_of

        written = ledgers.export(
            Ledger.open(ledger), out, to, step=step, pictures=pictures, url=URL if url is None else url, limit=limit
        )
        slots = written.package.slots
        masks = sum(len(slot.entries) for slot in slots)
        typer.echo(f"{out}: {masks:,} masks of {len(slots):,} pictures in {layout_of(to).FILE}")
        _tell(written.left_out, "pictures are left out")


@review.command("import")
def import_package(
    ledger: LedgerFolder,
    package: PackageFolder,
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=FILE…]", help="What came back from each of several reviewers, taken together."),
    ] = None,
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who reviewed it, where one did.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What came back, also in a ZIP archive; by default what lies in PACKAGE."),
    ] = None,
) -> None:
    """Make what reviewers decided a step of the ledger. Records that cannot be used are refused, with reasons.

    Of one reviewer, --by says who it was. Of several who each worked on the whole package, NAME=FILE does for each; of
    masks that they dispute nothing is decided.
    """
    if bool(files) == (by is not None) or (files and file is not None):
        raise typer.BadParameter("either --by NAME, with or without --file, or NAME=FILE for each reviewer")
    given = _named(files or [], 1)
    with errors():
        from dataengine.ledger.ledger import Ledger
        from pipelines.review import ledgers

        if by is None:
            collected, told = ledgers.take_all(Ledger.open(ledger), package, given)
            _tell_collected(ledger, collected)
            for name, each in told.items():
                _tell(each, f"records of {name} are refused")
            return
        step, (decisions, entries, refused, _) = ledgers.take(Ledger.open(ledger), package, by, file)
        added = sum(entry.supersedes is None for entry in entries)
        typer.echo(f"{ledger}: {_decided(step, decisions, added)}")
        _tell(refused, "records are refused")


@review.command("agreement")
def show_agreement(
    ledger: LedgerFolder,
    package: PackageFolder,
    files: Annotated[list[str], typer.Argument(metavar="NAME=FILE…", help="What came back from each reviewer.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how far reviewers agree who each worked on the same package. The ledger stays as it is."""
    given = _named(files, 2)
    with errors():
        from dataengine.ledger.ledger import Ledger
        from dataengine.metrics.agreement import text
        from pipelines.review import ledgers

        found, refused = ledgers.compare(Ledger.open(ledger), package, given)
        counts = {name: ledgers.counted(each) for name, each in refused.items()}
        typer.echo(json.dumps({**found.as_dict(), "refused": counts}, indent=1) if as_json else text(found))
        for name, each in refused.items():
            _tell(each, f"records of {name} are refused")


@review.command()
def serve(
    ledger: LedgerFolder,
    words: WordsFolder,
    port: Annotated[int, typer.Option(min=0, max=65_535, metavar="N", help="0 takes a free one.")] = 8766,
) -> None:
    """Review in a browser of this machine, mask by mask, by keys. What is said is saved at once. Ctrl-C ends it."""
    with errors():
        from dataengine.view import review as reviewing

        reviewing.serve(ledger, words, port, say=typer.echo)


@review.command()
def collect(ledger: LedgerFolder, words: WordsFolder) -> None:
    """Make what was said in the browser a step of the ledger; masks that reviewers dispute go on waiting."""
    with errors():
        from dataengine.errors import UserError
        from dataengine.ledger.ledger import Ledger
        from pipelines.review import ledgers

        if not words.is_dir():
            raise UserError(f"{words}: there is no such folder")
        _tell_collected(ledger, ledgers.collect(Ledger.open(ledger), words))


def _named(files: Sequence[str], least: int) -> dict[str, str]:
    """Files by the names of reviewers, of NAME=FILE. Raises BadParameter: fewer than `least`, or a name twice."""
    given = dict(file.partition("=")[::2] for file in files)
    if len(given) < len(files) or (files and len(given) < least) or not all(given.values()) or "" in given:
        raise typer.BadParameter(f"{'two or more ' * (least > 1)}NAME=FILE are needed, each name once")
    return given


def _decided(step: int | None, decisions: Sequence["Decision"], added: int) -> str:
    actions = Counter(decision.action for decision in decisions)
    parts = [f"{number:,} {action}" for action, number in sorted(actions.items())]
    parts += [f"{added:,} masks added"] if added else []
    return "nothing was decided" if step is None else f"step {step}: {', '.join(parts)}"


def _tell_collected(ledger: str, collected: "Collected") -> None:
    """Say what came of the words of several reviewers."""
    typer.echo(f"{ledger}: {_decided(collected.step, collected.decisions, collected.added)}")
    if collected.disputed:
        typer.secho(f"{len(collected.disputed):,} masks are disputed and go on waiting", fg="yellow", err=True)
    if collected.ignored:
        what = "words say something else of masks that were decided before, and are left out"
        typer.secho(f"{collected.ignored:,} {what}", fg="yellow", err=True)


def _tell(refused: Sequence["Refused"], what: str) -> None:
    """Say what nothing came of, on the error output."""
    if not refused:
        return
    reasons = Counter(each.reason for each in refused)
    counts = ", ".join(f"{number:,} {reason}" for reason, number in reasons.most_common())
    typer.secho(f"{len(refused):,} {what}: {counts}", fg="yellow", err=True)
    for each in refused[:SHOWN]:
        typer.echo(for_terminal(f"  {each}"), err=True)
    if len(refused) > SHOWN:
        typer.echo(f"  and {len(refused) - SHOWN:,} more", err=True)
