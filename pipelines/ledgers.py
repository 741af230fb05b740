"""`dataengine ledger …`. Nothing heavy is imported before a command needs it."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.command import errors, for_terminal, group

if TYPE_CHECKING:
    from dataengine.ledger.history import Change, Story, Word
    from dataengine.ledger.ledger import Ledger
    from dataengine.ledger.records import Entry
    from dataengine.ledger.view import View

ledger = group("Begin, read, undo and export a ledger of masks: what was proposed, by whom, and what became of it.")

Directory = Annotated[str, typer.Argument(metavar="DIR", help="A ledger folder, a path or URI.")]
AtStep = Annotated[int | None, typer.Option("--step", min=0, metavar="N", help="At this step; by default the newest.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@ledger.command()
def init(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE…", help="COCO folders, finished datasets, or folders of pictures alone."),
    ],
    out: Annotated[str, typer.Option("--out", help="The ledger's folder, new or empty, a path or URI.")],
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Only this split of the sources.")] = None,
    exhaustive: Annotated[
        str,
        typer.Option(
            metavar="annotated|all|none",
            help="In which pictures of a COCO folder all objects of its categories count as annotated.",
        ),
    ] = "annotated",
    category: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A category that the sources do not have; may be given several times."),
    ] = None,
    categories: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Categories with their ids: a JSON file with `categories`, as COCO's have."),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose numbers the names of pictures alone are; else the folder's name."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of all that is drawn for the ledger.")] = 0,
) -> None:
    """Begin a ledger with pictures and what people annotated in them."""
    if exhaustive not in ("annotated", "all", "none"):
        raise typer.BadParameter("--exhaustive is annotated, all or none")
    with errors():
        from pipelines.ledger_sources import Choice, create
        from pipelines.relabel.concepts import concepts_of

        choice = Choice(
            split=split,
            exhaustive=exhaustive,  # type: ignore[arg-type]
            categories=tuple(category or ()),
            table=() if categories is None else tuple(concepts_of(categories)),
            namespace=namespace,
        )
        made = create(sources, out, choice, seed)
        _say("\n".join([summary(out, made.view()), *_accounted(made)]))


def _accounted(made: "Ledger") -> list[str]:
    """What became of the records of the sources."""
    lines = []
    records = made.head.facts["records"]
    for unit, read in records["read"].items():
        parts = [f"{records['built'].get(unit, 0)} taken"]
        for kind in ("quarantined", "filtered"):
            parts += [f"{n} {kind} ({reason})" for reason, n in records[kind].get(unit, {}).items()]
        lines.append(f"  {unit}: {read} read = {' + '.join(parts)}")
    return lines


@ledger.command()
def show(directory: Directory, step: AtStep = None, as_json: AsJson = False) -> None:
    """Say what a ledger holds: its steps, and the masks as they stand at one of them."""
    with errors():
        from dataengine.ledger.ledger import Ledger

        opened = Ledger.open(directory)
        view = opened.view(step)
        if as_json:
            _print_json({"step": view.step, "version": view.version, "steps": steps_of(opened, step), **counted(view)})
        else:
            _say(summary(directory, view))
            _say(_table([["step", "parent", "kind", "round", "entries", "decisions", ""], *_rows(opened, step)]))


def steps_of(opened: "Ledger", step: int | None = None) -> list[dict[str, Any]]:
    """The steps of a ledger; `is_undone`: the one that is looked at does not stand on it."""
    chain = {one.number for one in opened.chain(step)}
    return [
        {
            "number": one.number,
            "parent": one.parent,
            "kind": one.kind,
            "round": one.round,
            "is_undone": one.number not in chain,
            "counts": one.counts,
            "facts": one.facts,
            "version": one.version,
        }
        for one in opened.steps
    ]


def _rows(opened: "Ledger", step: int | None) -> list[list[str]]:
    rows = []
    for one in steps_of(opened, step):
        entries, decisions = one["counts"]["entries"], one["counts"]["decisions"]
        rows.append(
            [
                str(one["number"]),
                "-" if one["parent"] is None else str(one["parent"]),
                one["kind"],
                str(one["round"]),
                _joined(entries),
                _joined(decisions),
                "not in this view" if one["is_undone"] else "",
            ]
        )
    return rows


def _joined(counts: Any) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counts.items()) or "-"


def counted(view: "View") -> dict[str, Any]:
    """The pictures of a view, its masks by state and origin, and by concept; rejected ones by reason."""
    pictures: Counter[str] = Counter()
    masks: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    concepts: dict[str, Counter[str]] = {}
    for _, found in view.walk(with_checks=False):
        pictures["all"] += 1
        pictures["with kept masks"] += any(s.entry.state == "kept" and not s.is_superseded for s in found)
        for standing in found:
            state = "superseded" if standing.is_superseded else standing.entry.state
            masks[f"{state} {standing.entry.origin}"] += 1
            concepts.setdefault(named(standing.entry), Counter())[state] += 1
            if state == "rejected":
                reasons[standing.entry.reason or "-"] += 1
    return {
        "pictures": dict(pictures),
        "masks": dict(sorted(masks.items())),
        "rejected": dict(reasons.most_common()),
        "concepts": {name: dict(sorted(counts.items())) for name, counts in sorted(concepts.items())},
    }


def named(entry: "Entry") -> str:
    """What an entry shows, in words."""
    return entry.concept.text if entry.concept.category_id != -1 else f"“{entry.concept.text}”"


def summary(directory: str, view: "View") -> str:
    """What a ledger holds at a step, in a few lines."""
    found = counted(view)
    pictures, masks = found["pictures"], found["masks"]
    lines = [
        f"{directory}: step {view.step} of {view.ledger.head.number}, round {view.round}, "
        f"{pictures['all']:,} pictures, {pictures['with kept masks']:,} with masks that are kept",
        *(f"  {name}: {number:,}" for name, number in masks.items()),
    ]
    if found["rejected"]:
        lines.append("  rejected by " + ", ".join(f"{name} {n:,}" for name, n in list(found["rejected"].items())[:10]))
    return "\n".join([*lines, f"  version {view.version[:16]}"])


@ledger.command()
def diff(
    directory: Directory,
    before: Annotated[int, typer.Argument(metavar="STEP", min=0, help="The earlier step.")],
    after: Annotated[int | None, typer.Argument(metavar="[STEP]", min=0, help="By default the newest.")] = None,
    entries: Annotated[bool, typer.Option("--entries", help="Also print every entry that changed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what changed between two steps: added, confirmed, rejected, changed, by concept."""
    with errors():
        from dataengine.ledger import history
        from dataengine.ledger.ledger import Ledger

        opened = Ledger.open(directory)
        changes = history.diff(opened, before, opened.head.number if after is None else after)
        if as_json:
            _print_json(tallied(changes))
            return
        tally: Counter[tuple[str, str]] = Counter()
        for change in changes:
            tally[named(change.entry), change.kind] += 1
            if entries:
                _say(_line(change))
        _say(difference(tally))


def tallied(changes: Iterable["Change"]) -> dict[str, dict[str, int]]:
    """Changes by concept and kind."""
    found: dict[str, Counter[str]] = {}
    for change in changes:
        found.setdefault(named(change.entry), Counter())[change.kind] += 1
    return {name: dict(sorted(kinds.items())) for name, kinds in sorted(found.items())}


def difference(tally: Counter[tuple[str, str]]) -> str:
    """A table of changes by concept."""
    from dataengine.ledger.history import KINDS

    if not tally:
        return "nothing changed"
    kinds = [kind for kind in KINDS if any(k == kind for _, k in tally)]
    concepts = sorted({concept for concept, _ in tally})
    rows = [[concept, *(f"{tally[concept, kind]:,}" for kind in kinds)] for concept in concepts]
    total = [f"{sum(tally[concept, kind] for concept in concepts):,}" for kind in kinds]
    return _table([["concept", *kinds], *rows, ["all", *total]])


def _line(change: "Change") -> str:
    entry = change.entry
    words = [
        change.kind,
        entry.entry_id,
        entry.picture,
        named(entry),
        f"{change.before or '-'} → {change.after or '-'}",
    ]
    return "  ".join([*words, entry.reason]).rstrip()


@ledger.command()
def rollback(
    directory: Directory,
    step: Annotated[int, typer.Argument(metavar="STEP", min=0, help="The step to go back to.")],
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why; it is kept with the step.")] = None,
) -> None:
    """Go back to an earlier step. Nothing is deleted: it is a step of its own, and can be undone like any other."""
    with errors():
        from dataengine.ledger.ledger import Ledger

        opened = Ledger.open(directory)
        number = opened.rollback(step, {} if reason is None else {"reason": reason})
        _say(f"step {number} goes back to step {step}\n{summary(directory, opened.view())}")


@ledger.command()
def blame(
    directory: Directory,
    name: Annotated[
        str, typer.Argument(metavar="ENTRY|PICTURE", help="An entry's id, or its beginning; or a picture.")
    ],
) -> None:
    """Tell the whole history of a mask, or of all masks of a picture."""
    with errors():
        from dataengine.ledger import history
        from dataengine.ledger.ledger import Ledger

        stories = history.blame(Ledger.open(directory), name)
        _say("\n\n".join(map(story, stories)) or f"{name}: nothing was ever proposed")


def story(told: "Story") -> str:
    """The history of a mask, a line a word."""
    first = next(word.entry for word in told.words if word.entry is not None)
    now = {"superseded" if s.is_superseded else s.entry.state: s.entry.entry_id for s in told.standing}
    state = "kept" if "kept" in now else next(iter(now), "undone")
    lines = [f"{told.picture}: {named(first)}, {first.area:,} px at {_box(first)}: {state}"]
    return "\n".join([*lines, *(f"  {_said(word)}" for word in told.words)])


def _box(entry: "Entry") -> str:
    return ", ".join(f"{value:g}" for value in entry.bbox)


def _said(word: "Word") -> str:
    place = f"step {word.step.number}{' (undone)' if word.is_undone else ''}, round {word.step.round}: "
    if word.decision is not None:
        said = word.decision
        parts = [f"{said.by}: {said.action}, now {said.state}, of {said.entry_id}"]
        parts += [f"reason: {said.reason}"] if said.reason else []
        parts += [f"{said.seconds:g} s"] if said.seconds is not None else []
        parts += [f"replaced by {said.replacement}"] if said.replacement is not None else []
        return place + "; ".join(parts)
    entry = word.entry
    if entry is None:
        raise AssertionError("a word is a proposal or a decision")
    by = "a person" if entry.labeler is None else f"{entry.labeler.name} {entry.labeler.revision}".rstrip()
    parts = [f"{'also ' if word.is_other else ''}{entry.entry_id} by {by}: {entry.state}"]
    parts += [f"score {entry.score:g}"] if entry.labeler is not None else []
    parts += [f"reason: {entry.reason}"] if entry.reason else []
    if entry.relation != "new":
        overlap = "" if entry.overlap is None else f" ({entry.overlap:.3f})"
        parts.append(f"{entry.relation} of {entry.relative}{overlap}" if entry.relative else entry.relation)
    parts += [f"in place of {entry.supersedes}"] if entry.supersedes is not None else []
    parts += [f"annotation {entry.annotation_id}"] if entry.annotation_id else []
    parts += [f"asked with {entry.prompt}"] if entry.prompt else []
    checks = [f"{c.name} {'-' if c.value is None else f'{c.value:g}'} {c.verdict}" for c in entry.checks]
    parts += [f"checks: {', '.join(checks)}"] if checks else []
    return place + "; ".join(parts)


@ledger.command()
def mistakes(
    directory: Directory,
    step: AtStep = None,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="How many are told, the most suspicious first.")] = 50,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Also write them to this JSON file, with their entries.")
    ] = None,
) -> None:
    """Rank people's annotations that the newest round of labelling disagrees with."""
    with errors():
        from dataengine.ledger.ledger import Ledger
        from pipelines.relabel import judging

        found = judging.ranked(Ledger.open(directory).view(step), top)
        if out is not None:
            Path(out).write_text(_json(judging.as_json(found)) + "\n")
        _say(
            f"{directory}: step {found.step.number}, round {found.step.round}, {found.pictures:,} pictures: "
            f"{judging.tally(found.kinds)}"
        )
        if found.mistakes:
            _say(_table(judging.table(found)))


@ledger.command()
def calibrate(
    directory: Directory,
    precision: Annotated[
        float, typer.Option(min=0, max=1, metavar="X", help="Share of right masks behind each limit, at least.")
    ],
    step: AtStep = None,
) -> None:
    """Set the limits of the newest round's filters by people's masks, and print them as a filters file."""
    with errors():
        from dataengine.ledger.ledger import Ledger
        from pipelines.relabel import judging

        _say(judging.as_yaml(judging.calibrated(Ledger.open(directory).view(step), precision)))


@ledger.command()
def export(
    directory: Directory,
    out: Annotated[str, typer.Option("--out", help="A local folder: a COCO folder that `dataengine build` reads.")],
    step: AtStep = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Name of the split that is written.")] = "train",
    pictures: Annotated[
        str,
        typer.Option(metavar="link|copy|none", help="Link to the pictures, copy them, or leave them where they are."),
    ] = "link",
    people: Annotated[bool, typer.Option("--people", help="Only masks that a person drew or accepted.")] = False,
    searched: Annotated[
        bool,
        typer.Option(
            "--searched",
            help="Take labelers at their word: categories that they looked for in a picture are finished there, unless "
            "masks of them are in question, and masks that they did not find again are left out.",
        ),
    ] = False,
) -> None:
    """Write the masks that are kept as COCO instances json, each with its lineage, and the pictures."""
    if pictures not in ("link", "copy", "none"):
        raise typer.BadParameter("--pictures is link, copy or none")
    with errors():
        from dataengine.ledger.ledger import Ledger
        from pipelines.ledger_export import export as run_export

        view = Ledger.open(directory).view(step)
        done = run_export(view, out, split=split, pictures=pictures, people=people, searched=searched)
        _say(f"{done.file}: {done.pictures:,} pictures, {done.annotations:,} annotations")
        for reason, number in sorted(done.left_out.items()):
            _say(f"  left out: {number:,} ({reason})")


@ledger.command()
def verify(directory: Directory) -> None:
    """Check every file and every entry of a ledger. Exit code 1 where something is wrong."""
    with errors():
        from dataengine.ledger.ledger import Ledger

        opened = Ledger.open(directory)
        problems = opened.verify()
        for problem in problems[:1000]:
            _say(problem)
        if problems:
            typer.secho(for_terminal(f"{directory}: {len(problems):,} problems"), fg="red", err=True)
            raise typer.Exit(1)
        _say(f"{directory}: {len(opened.steps):,} steps, all good")


def _say(text: str) -> None:
    typer.echo(for_terminal(text))


def _print_json(data: Any) -> None:
    typer.echo(_json(data))


def _json(data: Any) -> str:
    """JSON in which what would steer a terminal is escaped."""
    import json

    text = json.dumps(data, indent=1, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def _table(rows: list[list[str]]) -> str:
    """Columns; the first is words, the rest as wide as they must be."""
    rows = [[for_terminal(cell.replace("\n", " ")) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)
