"""`dataengine train`. Nothing heavy is imported before it is needed."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from pipelines.command import errors

DEVICES = ("auto", "cpu", "cuda")


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="s1-segmentor, s2-align, s3-mixed, xsam (all three), shapes-tiny, or a YAML file."
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="A finished dataset; or the sources of one that the recipe builds."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The run's folder, by default runs/RECIPE.")
    ] = None,
    root: Annotated[
        str | None, typer.Option(metavar="DIR", help="The folder of the sources of everything that is built.")
    ] = None,
    init: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART=DIR|NAME",
            help="Weights: of llm, visual_encoder, segmentor.encoder, mask2former, checkpoint, stage1 or stage2.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest sound checkpoint.")] = False,
    launcher: Annotated[str, typer.Option(metavar="local|ray", help="Processes here, or Ray Train.")] = "local",
    processes: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that train; one a GPU.")] = 1,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where they train.")] = "auto",
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Another value: lr=1e-4, s1-segmentor.batch=32, model.preset=tiny."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, metavar="N", help="Steps of every stage.")] = None,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that build datasets.")] = 1,
) -> None:
    """Train an X-SAM by a recipe of stages."""
    if launcher not in ("local", "ray"):
        raise typer.BadParameter("--launcher is local or ray")
    if device not in DEVICES:
        raise typer.BadParameter(f"--device is {', '.join(DEVICES)}")
    with errors():
        code = _train(
            recipe,
            data or [],
            out,
            root,
            init or [],
            resume=resume,
            launcher=launcher,
            processes=processes,
            device=device,
            changes=change or [],
            steps=steps,
            workers=workers,
        )
    if code:
        raise typer.Exit(code)


def _train(
    name: str,
    data: Sequence[str],
    out: Path | None,
    root: str | None,
    init: Sequence[str],
    *,
    resume: bool,
    launcher: str,
    processes: int,
    device: str,
    changes: Sequence[str],
    steps: int | None,
    workers: int,
) -> int:
    from pipelines.predicting import require_model

    require_model()
    from dataengine.errors import UserError
    from dataengine.store.files import Folder
    from dataengine.store.lock import driver_lock
    from model.training import parallel
    from pipelines.training import data as reading
    from pipelines.training import launch, models
    from pipelines.training import recipe as recipes
    from pipelines.training import run as running

    loaded = recipes.of_options(recipes.load(name, changes), steps=steps)
    loaded = models.with_init(loaded, init)
    place = (out or Path("runs") / loaded.name).absolute()  # workers may run in another folder
    launched = launch.is_launched()
    if launched and processes > 1:
        raise UserError("--processes: several processes are here already (RANK and WORLD_SIZE are set)")
    with ExitStack() as opened:
        if launcher == "ray":
            opened.enter_context(launch.ray_session())
        cpu = _is_cpu(device, launch.has_gpus if launcher == "ray" else None)
        if not launched or parallel.join(cpu).is_first:
            running.check_free(place, resume)
            running.check_recipe(loaded)
            place.mkdir(parents=True, exist_ok=True)
            opened.enter_context(driver_lock(Folder(str(place))))
            places = reading.prepare(loaded, bound(data), root, place, workers, typer.echo)
            made = running.Run(recipe=loaded, datasets=places, out=str(place), resume=resume, cpu=cpu)
            running.check(made)
            running.write(made)
        if launched:
            parallel.wait()
            return launch.here(running.read(place / running.RUN), typer.echo)
        if launcher == "ray":
            return launch.on_ray(made, processes)
        return launch.local(made, processes, typer.echo)


def bound(given: Sequence[str]) -> dict[str, str]:
    """Datasets by name, of NAME=DIR. Raises UserError where it is not written so."""
    from dataengine.errors import UserError

    found: dict[str, str] = {}
    for text in given:
        name, mark, place = text.partition("=")
        if not mark or not name or not place:
            raise UserError(f"--data {text}: write NAME=DIR, for example --data coco=data/coco-vgd")
        if name in found:
            raise UserError(f"--data {name}: given twice")
        found[name] = place
    return found


def _is_cpu(device: str, has_gpus: Callable[[], bool] | None = None) -> bool:
    """has_gpus: tells of the machines that train, where those are others than this one."""
    import torch

    from dataengine.errors import UserError

    if device == "cpu":
        return True
    found = torch.cuda.is_available() if has_gpus is None else has_gpus()
    if device == "cuda" and not found:
        where = "torch finds no such device here" if has_gpus is None else "the cluster has no GPU"
        raise UserError(f"--device cuda: {where}")
    return not found
