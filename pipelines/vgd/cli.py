"""`dataengine vgd …`. Nothing heavy is imported before a command needs it."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.command import Dataset, Out, Workers, errors, group
from pipelines.looking import NoReport, report_after

vgd = group("Build, verify and describe VGD benchmarks.")

Pictures = Annotated[
    str, typer.Option("--images", metavar="reference|embed", help="Refer to the pictures where they lie, or hold them.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a build that was stopped.")]


@vgd.command("build")
def build_benchmark(
    coco: Annotated[str, typer.Option("--coco", metavar="ROOT", help="A COCO folder: annotations/ and pictures.")],
    out: Out,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Split of that folder.")] = "val2017",
    profile: Annotated[
        str, typer.Option("--profile", metavar="published|strict", help="How prompts are simulated.")
    ] = "published",
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="S", help="Seed of prompts and exemplars.")] = 0,
    negatives: Annotated[
        int,
        typer.Option(
            "--negatives", min=0, max=1000, metavar="N", help="Also show N absent categories in each picture."
        ),
    ] = 0,
    cross_image: Annotated[
        bool, typer.Option("--cross-image", help="Also show each category by an object of another picture.")
    ] = False,
    shots: Annotated[
        int, typer.Option("--shots", min=0, max=100, metavar="K", help="Also show each category in K other pictures.")
    ] = 0,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name of the benchmark.")] = None,
    images: Pictures = "reference",
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N pictures.")] = None,
    workers: Workers = 1,
    resume: Resume = False,
    no_report: NoReport = False,
) -> None:
    """Build a locked benchmark from COCO annotations."""
    if profile not in ("published", "strict"):
        raise typer.BadParameter("--profile is published or strict")
    _check_pictures(images)
    from pipelines.vgd import benchmark

    settings = benchmark.Settings(
        root=coco,
        split=split,
        name=name,
        profile=profile,
        seed=seed,
        negatives=negatives,
        cross_image=cross_image,
        shots=shots,
        images=images,
    )
    with errors():
        _check_folder(coco)
        _build(benchmark.recipe_of(settings), out, workers, resume, limit, no_report)


@vgd.command("import-xsam")
def import_xsam(
    file: Annotated[str, typer.Argument(metavar="FILE", help="X-SAM's coco_vgdseg_val.json.")],
    coco: Annotated[str, typer.Option("--coco", metavar="ROOT", help="A COCO folder: annotations/ and pictures.")],
    out: Out,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="S", help="Seed of the exemplars.")] = 0,
    images: Pictures = "reference",
    workers: Workers = 1,
    resume: Resume = False,
    no_report: NoReport = False,
) -> None:
    """Make X-SAM's released COCO-VGD a locked benchmark, with its own prompts."""
    _check_pictures(images)
    from pipelines.vgd import benchmark

    with errors():
        _check_folder(coco)
        _build(benchmark.xsam_recipe(coco, file, seed, images), out, workers, resume, None, no_report)


def _check_pictures(images: str) -> None:
    if images not in ("reference", "embed"):
        raise typer.BadParameter("--images is reference or embed")


def _check_folder(root: str) -> None:
    from dataengine.errors import UserError
    from dataengine.store.files import Folder

    if Folder(root).kind() != "folder":
        raise UserError(f"--coco {root}: there is no such folder")


def _build(recipe: object, out: str, workers: int, resume: bool, limit: int | None, no_report: bool) -> None:
    from pipelines import build as building
    from pipelines.progress import Console
    from pipelines.vgd import benchmark

    progress = Console()
    with errors(progress):
        settings = building.Settings(workers=workers, resume=resume, limit=limit)
        lock = benchmark.build(recipe, out, settings, progress)  # type: ignore[arg-type]
        if not no_report:
            report_after(out, progress)
        typer.echo(benchmark.summary(out, lock))


@vgd.command()
def verify(
    directory: Dataset,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Where a source is now; by default where it was."),
    ] = None,
    share: Annotated[
        float, typer.Option(min=0, max=1, metavar="X", help="Share of the pictures that are built again.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="Seed of the draw of those pictures.")] = 0,
) -> None:
    """Compare a benchmark with its lock, and build a random part of it again. Exit code 1 where something differs."""
    from pipelines.vgd import verify as verifying

    with errors():
        found = verifying.verify(directory, sources=source or [], share=share, seed=seed)
        for problem in found.problems[:1000]:
            typer.echo(problem)
        if found.problems:
            typer.secho(f"{directory}: {len(found.problems):,} differences", fg="red", err=True)
            raise typer.Exit(1)
        typer.echo(
            f"{directory}: {found.samples:,} samples are as locked; {found.rebuilt:,} of them, of {found.pictures:,} "
            "pictures, were built again and are the same"
        )


@vgd.command()
def baseline(
    directory: Dataset,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="A .json, .jsonl or .parquet file.")],
    predict: Annotated[
        str,
        typer.Option("--predict", metavar="truth|prompts|noisy", help="What is predicted; see docs/evaluate.md."),
    ] = "prompts",
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="Seed of the noise.")] = 0,
) -> None:
    """Write predictions that need no model: the ground truth, the prompts themselves, or noisy ground truth."""
    from pipelines.evaluate.benchmark import open_benchmark
    from pipelines.evaluate.writing import write
    from pipelines.vgd import baseline as baselines

    if predict not in baselines.PREDICTORS:
        raise typer.BadParameter(f"--predict is {', '.join(baselines.PREDICTORS)}")
    with errors():
        benchmark = open_benchmark(directory, "vgdseg")
        number = write(baselines.predictions(benchmark.samples(), predict, seed), out, benchmark.id)
        typer.echo(f"{out}: {number:,} predictions for {benchmark.name} ({benchmark.id})")


@vgd.command()
def quality(
    directory: Dataset,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for quality.json, prompts.png and distributions.png.")
    ] = None,
    objects: Annotated[int, typer.Option(min=1, metavar="N", help="About how many objects are looked at.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="Seed of the draw of pictures.")] = 0,
) -> None:
    """Report how good a benchmark's prompts are, beside those of the other profile on the same objects."""
    from pipelines.vgd import quality as examining

    with errors():
        found = examining.examine(directory, objects=objects, seed=seed)
        if out is not None:
            examining.write(found, out)
        typer.echo(examining.summary(found))
