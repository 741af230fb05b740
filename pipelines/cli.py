"""The command line. Nothing heavy is imported before a command needs it."""

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.command import Dataset, Out, Workers, errors, group
from pipelines.evaluate.cli import evaluate_predictions
from pipelines.ledgers import ledger
from pipelines.looking import NoReport, report, report_after, view
from pipelines.loop.cli import loop
from pipelines.predicting import import_xsam, predict
from pipelines.relabel.cli import relabel
from pipelines.review.cli import review
from pipelines.training.cli import train
from pipelines.vgd.cli import vgd

app = typer.Typer(
    name="dataengine",
    help="Training shards and benchmarks for segmentation MLLMs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help comes in half the time
)
synth = group("Write a synthetic source.")
app.add_typer(synth, name="synth")
app.add_typer(vgd, name="vgd")
app.add_typer(review, name="review")
app.add_typer(ledger, name="ledger")
app.command("eval")(evaluate_predictions)
app.command()(report)
app.command()(view)
app.command()(predict)
app.command("import-xsam")(import_xsam)
app.command()(train)
app.command()(relabel)
app.command()(loop)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        import dataengine

        typer.echo(dataengine.__version__)
        raise typer.Exit


@app.command()
def build(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe that ships with the package (vgd, genseg, …) or a YAML file."),
    ],
    out: Out,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="The folder of a source; may be given several times."),
    ] = None,
    root: Annotated[
        str | None, typer.Option(metavar="DIR", help="The folder that the recipe's relative paths are below.")
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this split of the sources; may be given several times."),
    ] = None,
    workers: Workers = 1,
    engine: Annotated[
        str | None,
        typer.Option(metavar="ray|local", help="By default ray for more than one worker; local is one process."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a build that was stopped.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the first N pictures of each split.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Another seed than the recipe's.")] = None,
    no_report: NoReport = False,
) -> None:
    """Build a dataset from a recipe."""
    from pipelines import build as building
    from pipelines import recipe as recipes
    from pipelines.progress import Console

    if engine not in (None, "ray", "local"):
        raise typer.BadParameter("--engine is ray or local")
    if engine == "local" and workers > 1:
        raise typer.BadParameter("--engine local is one process; leave --engine out for several workers")
    progress = Console()
    with errors(progress):
        loaded = recipes.load(recipe)
        loaded = loaded if root is None else loaded.with_root(root)
        loaded = recipes.with_splits(recipes.with_sources(loaded, source or []), split or [])
        settings = building.Settings(workers=workers, engine=engine, resume=resume, limit=limit, seed=seed)
        manifest = building.run(loaded, out, settings, progress)
        if not no_report:
            report_after(out, progress)
        typer.echo(summary(out, manifest))


@app.command()
def detect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder or file.")],
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a recipe that builds what is there.")
    ] = None,
) -> None:
    """Say which sources a folder or file is, what is missing, and how to build it."""
    from dataengine.errors import UserError
    from pipelines import detect as detecting

    with errors():
        found = detecting.detect(path)
        typer.echo(detecting.text(found, path))
        if recipe is not None:
            if recipe.exists():
                raise UserError(f"--recipe {recipe}: it exists already")
            recipe.write_text(detecting.recipe_of(found, re.sub(r"[^A-Za-z0-9_.-]", "_", recipe.stem)[:64]))
        if not any(source.missing is None for source in found):
            raise typer.Exit(1)


@app.command("mix")
def mix_table(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|DIR", help="A recipe, or the folder of a finished dataset.")],
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="The folder of a source; may be given several times."),
    ] = None,
    root: Annotated[
        str | None, typer.Option(metavar="DIR", help="The folder that the recipe's relative paths are below.")
    ] = None,
) -> None:
    """Print how often an epoch draws from each source: n_d, f_d, r_d, effective share, epochs."""
    from dataengine.errors import UserError
    from dataengine.store.commits import MANIFEST
    from dataengine.store.files import Folder
    from pipelines import mix
    from pipelines import recipe as recipes

    with errors():
        if recipe not in recipes.shipped() and Folder(recipe).exists(MANIFEST):
            if source or root is not None:
                raise UserError(
                    f"{recipe}: is a finished dataset, whose sources are counted; leave out --root and --source"
                )
            typer.echo(str(mix.of_dataset(recipe)))
            return
        loaded = recipes.load(recipe)
        loaded = loaded if root is None else loaded.with_root(root)
        loaded = recipes.with_sources(loaded, source or [])
        typer.echo(str(mix.of_recipe(loaded, placed=root is not None or bool(source))))


@synth.command("shapes")
def synth_shapes(
    images: Annotated[int, typer.Option("--images", min=1, metavar="N", help="How many pictures.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the tree to write.")],
    layout: Annotated[
        str,
        typer.Option(
            metavar="coco|published", help="One COCO tree, or a folder for each source in its published layout."
        ),
    ] = "coco",
    split: Annotated[str, typer.Option(metavar="NAME", help="Name of the split of a COCO tree.")] = "train",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the world.")] = 0,
    style: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="world, or simple, simple-colored, large-colored: small pictures of few objects."
        ),
    ] = "world",
    workers: Workers = 1,
) -> None:
    """Write a procedural world of shapes as a COCO tree with captions and referring, or as every source's files."""
    if layout not in ("coco", "published"):
        raise typer.BadParameter("--layout is coco or published")
    if layout == "published" and (split != "train" or images < 2):
        raise typer.BadParameter("--layout published has splits of its own, and 2 pictures at least")
    with errors():
        from builders.world import STYLES
        from dataengine.errors import UserError

        if style not in STYLES:
            raise UserError(f"--style {style}: there are {', '.join(STYLES)}")
        if layout == "published":
            from pipelines.world_published import write_published

            typer.echo(str(write_published(out, images, seed=seed, workers=workers, style=style)))
        else:
            from builders.world_tree import write_tree

            typer.echo(str(write_tree(out, images, seed=seed, split=split, workers=workers, style=style)))


@app.command()
def validate(directory: Dataset) -> None:
    """Check a dataset: hashes, links, masks, pictures, ids and counts. Exit code 1 where something is wrong."""
    from dataengine.store import dataset

    with errors():
        findings = dataset.validate(directory)
        for problem in findings.problems:
            typer.echo(problem)
        if findings.num_problems:
            typer.secho(
                f"{directory}: {findings.num_problems} problems in {findings.samples} samples", fg="red", err=True
            )
            raise typer.Exit(1)
        typer.echo(f"{directory}: {findings.samples} samples, all good")


@app.command()
def inspect(
    directory: Dataset,
    sample: Annotated[str | None, typer.Option(metavar="ID", help="A sample to print as JSON.")] = None,
) -> None:
    """Say what a dataset holds; or print one sample."""
    from dataengine.store.dataset import open_dataset

    with errors():
        opened = open_dataset(directory)
        if sample is None:
            typer.echo(summary(directory, opened.manifest))
            typer.echo(_sources(opened.manifest))
        else:
            import json

            from dataengine.view.rows import printable

            typer.echo(json.dumps(printable(opened.find(sample)), indent=2, ensure_ascii=False))


@app.command()
def stats(
    directory: Dataset,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with histograms and all categories.")] = False,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="PATH", help="Count the tokens of this tokenizer.json, or its folder.")
    ] = None,
) -> None:
    """Count what a dataset holds: samples, objects, sizes, words, tokens, prompts, categories."""
    import json

    from pipelines import stats as counting

    with errors():
        found = counting.stats(directory, tokenizer)
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False) if as_json else counting.text(found))


@app.command()
def card(
    directory: Dataset,
    out: Annotated[str | None, typer.Option("--out", help="Another local folder than the dataset's own.")] = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="Where the dataset is, or will be, published.")] = None,
    creator: Annotated[str | None, typer.Option(metavar="NAME", help="Who publishes it.")] = None,
    published: Annotated[
        str | None, typer.Option(metavar="DAY", help="When: YYYY-MM-DD; else the day its manifest was written.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are not of this command.")] = False,
) -> None:
    """Write README.md and croissant.json of a dataset: what it holds, how it was made, licences, how to load it."""
    from pipelines import dataset_card
    from pipelines.croissant import About

    with errors():
        about = About(url=url, creator=creator, published=published)
        written = dataset_card.write(directory, out=out, force=force, about=about)
        typer.echo("\n".join(written.files))
        if written.missing:
            options = ", ".join(f"--{name}" for name in written.missing)
            typer.echo(f"Croissant asks for what only its publisher knows: {options}", err=True)


@app.command()
def preview(
    directory: Dataset,
    out: Annotated[Path, typer.Option("--out", help="The PNG to write.")],
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="How many samples.")] = 8,
    seed: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Draw samples at random with this seed; else the first ones."),
    ] = None,
    sample: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A sample to show; may be given several times.")
    ] = None,
) -> None:
    """Write a contact sheet: pictures with masks and prompts, and the conversations, phrases coloured like masks."""
    from dataengine.errors import UserError
    from dataengine.sheet import contact_sheet
    from dataengine.store.dataset import open_dataset

    with errors():
        if out.suffix.lower() != ".png" or "://" in str(out):
            raise UserError(f"--out {out}: a sheet is written to a local file named ….png")
        opened = open_dataset(directory)
        chosen = [opened.find(name) for name in sample] if sample else opened.pick(samples, seed)
        contact_sheet(chosen).save(out)
        typer.echo(f"{out}: {len(chosen)} samples")


@app.command()
def replay(
    directory: Dataset,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Where a source is now; by default where it was."),
    ] = None,
    out: Annotated[str | None, typer.Option(help="Keep what is built as a dataset of its own.")] = None,
) -> None:
    """Build the quarantined records again, with sources and program as they are now, and say which pass."""
    from pipelines.progress import Console, silent
    from pipelines.replay import replay as run_replay

    with errors():
        progress = Console()
        rows = run_replay(directory, sources=source or [], out=out, progress=progress if out else silent)
        if out is not None and rows:
            report_after(out, progress)
        passing = sum(row.now is None for row in rows)
        for row in rows:
            typer.echo(f"{row.file}: {row.record}: {row.before} -> {row.now or 'passes'}")
        typer.echo(f"{passing} of {len(rows)} quarantined records pass now")


@app.command()
def reproduce(
    directory: Dataset,
    sample: Annotated[str, typer.Option(metavar="ID", help="The sample to build again.")],
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Where a source is now; by default where it was."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="A folder for the sample as it was and as it is: stored.json, built.json.")
    ] = None,
) -> None:
    """Build one sample again from its source, and compare it with the stored one. Exit code 1 where it differs."""
    from pipelines import reproduce as reproducing
    from pipelines.progress import Console

    progress = Console()
    with errors(progress):
        found = reproducing.reproduce(directory, sample, sources=source or [], out=out, progress=progress)
        typer.echo(reproducing.text(found))
        if not found.is_identical:
            raise typer.Exit(1)


@app.command()
def leaks(
    directories: Annotated[list[str], typer.Argument(metavar="DIR…", help="Dataset folders, paths or URIs.")],
    near: Annotated[
        int, typer.Option(min=0, max=10, metavar="N", help="Bits of 64 in which perceptual hashes may differ.")
    ] = 4,
    no_near: Annotated[bool, typer.Option("--no-near", help="Compare by identity and content only.")] = False,
    workers: Workers = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", dir_okay=False, help="Write every pair to this file.")
    ] = None,
) -> None:
    """Find pictures that several datasets, or splits of one, have in common. Exit code 1 where training data leaks."""
    from pipelines import leaks as search

    with errors():
        found = search.find(
            directories,
            near=None if no_near else near,
            workers=workers,
            json_file=json_file,
            say=lambda line: typer.echo(line, err=True),
        )
        typer.echo(search.text(found))
        if found.leaked:
            number = len(found.leaked)
            typer.secho(
                f"{number:,} training pictures are also in splits that are not for training", fg="red", err=True
            )
            raise typer.Exit(1)
        typer.echo("no leak: no training picture was found in a split that is not for training")


@app.command()
def export(
    directory: Dataset,
    to: Annotated[str, typer.Option(metavar="LAYOUT", help="xsam, psalm, coco, llava, webdataset or hub.")],
    out: Annotated[str, typer.Option("--out", help="A local folder, new or empty.")],
    pictures: Annotated[
        str,
        typer.Option(
            metavar="copy|link|none",
            help="Copy pictures, link to those of a by-reference dataset, or only name them as the dataset does.",
        ),
    ] = "copy",
) -> None:
    """Write a dataset in a layout that others read, and say what it cannot hold."""
    from pipelines.export import export as run_export

    with errors():
        exported = run_export(directory, to, out, pictures)
        typer.echo(f"{out}: {exported.account.built.total()} samples in the {to} layout\n{exported}")


def _sources(manifest: dict[str, Any]) -> str:
    lines = []
    for key, source in manifest["sources"].items():
        lines.append(f"  {key}: {source['task']} by {source['builder']}, {len(source['categories'])} categories")
    generator = manifest["generator"]
    lines.append(f"  recipe {manifest['recipe']['name']}, seed {manifest['seed']}, prompts {generator['prompts']}")
    return "\n".join(lines)


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
            reasons: dict[str, int] = {}
            for reason, number in records[kind].get(unit, {}).items():  # which split forbids it is in the manifest
                reasons[reason.partition(": ")[0]] = reasons.get(reason.partition(": ")[0], 0) + number
            parts += [f"{number} {kind} ({reason})" for reason, number in reasons.items()]
        lines.append(f"  {unit}: {read} read = {' + '.join(parts)}")
    forbidden = [f"{role} ({number} pictures)" for role, number in manifest["forbidden"]["roles"].items()]
    if forbidden:
        lines.append(f"  not trained on: {', '.join(forbidden)}")
    licenses = [f"{name} ({number} samples)" for name, number in counts["licenses"].items()]
    if licenses:
        lines.append(f"  licences of the pictures: {', '.join(licenses)}")
    if manifest.get("expected"):
        from pipelines import mix

        lines += [f"  {line}" for line in mix.surprises(manifest["expected"])]
    if manifest.get("mixing"):
        from dataengine import mixing

        table = mixing.text([mixing.Row(**row) for row in manifest["mixing"]])
        lines += ["  mixing, of training samples:", *(f"    {line}" for line in table.splitlines())]
    return "\n".join([*lines, f"  version {manifest['version'][:16]}"])


if __name__ == "__main__":
    sys.exit(app())
