"""`dataengine relabel`. Nothing heavy is imported before it is needed."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.command import Workers, errors, for_terminal

if TYPE_CHECKING:
    from pipelines.relabel.rounds import Round


def relabel(
    source: Annotated[
        str, typer.Argument(metavar="LEDGER|SOURCE", help="A ledger; or pictures or a dataset, with --out.")
    ],
    labeler: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="noisy-oracle, xsam, sam, sam3, callable, http, or module:class of your own."
        ),
    ],
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Where a ledger is begun, where SOURCE is none.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the labeler; may be given several times."),
    ] = None,
    filters: Annotated[
        str,
        typer.Option(metavar="CHAIN", help="Presets and filters, such as sam,confidence:0.6; a YAML file; or none."),
    ] = "default",
    rule: Annotated[
        list[str] | None,
        typer.Option("--merge", metavar="KEY=VALUE", help="A limit of merging, such as duplicate=0.9."),
    ] = None,
    workers: Workers = 1,
    engine: Annotated[
        str | None,
        typer.Option(metavar="ray|local", help="By default ray for more than one worker; local is one process."),
    ] = None,
    gpus: Annotated[float, typer.Option("--gpus", min=0, metavar="N", help="GPUs of each worker on Ray.")] = 0.0,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures in a call of the labeler.")] = 8,
    per_task: Annotated[
        int, typer.Option(min=1, metavar="N", help="Pictures that are committed, or done again, together.")
    ] = 64,
    timeout: Annotated[float, typer.Option(min=0.001, metavar="S", help="Longest call of the labeler.")] = 600.0,
    max_bad: Annotated[
        float, typer.Option(min=0, max=1, metavar="X", help="Share of pictures that may fail, 10 in any case.")
    ] = 0.01,
    forbid: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", help="A dataset or ledger whose pictures must not be labelled; several times."),
    ] = None,
    work: Annotated[
        str | None, typer.Option("--work", metavar="DIR", help="The round's folder until it is a step of the ledger.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a round that was stopped.")] = False,
) -> None:
    """Label the pictures of a ledger with a model, filter and merge what it proposes, and add it as a step."""
    with errors():
        from pipelines.relabel import forbidden as forbidding
        from pipelines.relabel import labelers, rounds
        from pipelines.relabel.chain import Chain
        from pipelines.relabel.merge import Rules
        from pipelines.relabel.pipeline import Settings

        spec = labelers.parse(labeler, change or [])
        limits = labelers.parse("merge", rule or []).settings
        settings = Settings(
            workers=workers,
            engine=engine,
            num_gpus=gpus,
            per_task=per_task,
            batch=batch,
            timeout_s=timeout,
            max_bad=max_bad,
            resume=resume,
        )
        chain, rules = Chain.load(filters), Rules.parse(limits, "--merge")
        made = labelers.make(spec)  # before anything is written
        chain.check_answerable(_others(source, made.name))
        found = rounds.relabel(
            rounds.opened_or_begun(source, out),
            spec,
            chain,
            rules,
            settings,
            forbidden=forbidding.pictures_of(forbid) if forbid else None,
            work=work,
            say=lambda text: typer.echo(for_terminal(text), err=True),
            tick=_tick if sys.stderr.isatty() else lambda done, pictures: None,
        )
        typer.echo(summary(found))


def _others(source: str, labeler: str) -> bool:
    """Whether another labeler has labelled what is a ledger."""
    from dataengine.ledger.ledger import HEAD, Ledger
    from dataengine.store.files import Folder

    if not Folder(source).exists(HEAD):
        return False
    return any(s.kind == "relabel" and s.facts["labeler"]["name"] != labeler for s in Ledger.open(source).steps)


def _tick(done: int, pictures: int) -> None:
    """Say how far it is, on the same line."""
    typer.echo(f"\r{done:,} of {pictures:,} pictures", err=True, nl=done == pictures)


def summary(found: "Round") -> str:
    """What came of a round, in a few lines."""
    result = found.result
    states = ", ".join(f"{number:,} {state}" for state, number in sorted(result.states.items())) or "none"
    lines = [f"step {found.step}: {result.pictures:,} pictures, masks: {states}"]
    told = ", ".join(f"{number:,} {relation}" for relation, number in sorted(result.relations.items()))
    lines += [f"  beside what was known: {told}"] if told else []
    bad = result.account.quarantined.get("images")
    if bad:
        lines.append("  not labelled: " + ", ".join(f"{number:,} ({reason})" for reason, number in sorted(bad.items())))
    return "\n".join(lines)
