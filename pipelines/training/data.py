"""What a stage reads: datasets by name, built first where the recipe says how, and the loader over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataengine.errors import UserError
from dataengine.keyed import key_hash
from dataengine.store.commits import MANIFEST
from dataengine.store.files import Folder
from pipelines import plan as planning
from pipelines import recipe as recipes
from pipelines.recipe import Recipe
from pipelines.training.recipe import DatasetSpec, StageSpec, TrainingError, TrainRecipe, WorldSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dataengine.loader.groups import Data as Rows
    from dataengine.loader.loader import Loader
    from dataengine.loader.order import Order
    from model.batches import Batch
    from model.inputs import Inputs, Processor
    from model.training.loop import Data

WORLD, DATA = "world", "data"
Say = Callable[[str], None]


# --- datasets --------------------------------------------------------------------------------------------------------


def prepare(
    recipe: TrainRecipe, given: Mapping[str, str], root: str | None, out: Path, workers: int, say: Say
) -> dict[str, str]:
    """Where each dataset of a recipe is; those that are to be built are built below `out`, once.

    Args:
        given: datasets by name, finished ones, or folders that the recipe's `build` reads. root: of the relative paths
            of what is built.
    Raises:
        UserError: a dataset is missing, or cannot be built.
    """
    if unknown := sorted(set(given) - set(recipe.data_names)):
        raise TrainingError(f"--data {unknown[0]}: recipe {recipe.name} needs {', '.join(recipe.data_names)}")
    places = {name: _place(recipe, name, given) for name in recipe.data_names}
    wanted = {name: (recipe_of(name, place[0]), *place) for name, place in places.items() if not isinstance(place, str)}
    if wanted and root is None and recipe.world is not None:
        root = str(draw(recipe.world, out / WORLD, workers, say))
    for name, (made, spec, own) in wanted.items():
        places[name] = _build(made, spec, own or spec.root or root, out / DATA / name, workers, say)
    return {name: _absolute(str(place)) for name, place in places.items()}


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).absolute())


def _place(recipe: TrainRecipe, name: str, given: Mapping[str, str]) -> str | tuple[DatasetSpec, str | None]:
    """A finished dataset; or how to build it, and the root that was given for that."""
    spec, own = recipe.datasets.get(name, DatasetSpec()), given.get(name)
    finished = own if own is not None else spec.path
    if finished is not None and Folder(finished).exists(MANIFEST):
        return finished
    if spec.build is None:
        what = f"{finished} is no finished dataset" if finished else "its dataset is not given"
        raise TrainingError(f"{name}: {what}; say where it is: --data {name}=DIR")
    if own is not None and not Folder(own).exists():
        raise TrainingError(f"--data {name}={own}: there is no such folder")
    return spec, own


def draw(spec: WorldSpec, root: Path, workers: int, say: Say) -> Path:
    """The world, drawn once; another one in its place is refused."""
    from pipelines.world_published import LAYOUTS, write_published

    facts, file = spec.model_dump(mode="json"), root / "world.json"
    if file.is_file():
        if json.loads(file.read_text(encoding="utf-8")) != facts:
            raise TrainingError(f"{root}: another world than the recipe's; take another folder")
        return root
    say(f"drawing {spec.images:,} scenes of shapes ({spec.style})")
    if unknown := sorted(set(spec.layouts) - set(LAYOUTS)):
        raise TrainingError(f"world.layouts: there is no {unknown[0]}; there are {', '.join(LAYOUTS)}")
    layouts = spec.layouts or None
    write_published(root, spec.images, seed=spec.seed, workers=workers, layouts=layouts, style=spec.style)
    file.write_text(json.dumps(facts), encoding="utf-8")
    return root


def recipe_of(name: str, spec: DatasetSpec) -> Recipe:
    """How a dataset with a `build` is made. Raises UserError."""
    if isinstance(spec.build, dict):
        return recipes.parse({"name": name, **spec.build}, f"datasets.{name}.build")
    assert spec.build is not None
    return recipes.load(spec.build)


def _build(recipe: Recipe, spec: DatasetSpec, root: str | None, out: Path, workers: int, say: Say) -> str:
    from pipelines import build as building
    from pipelines.vgd import benchmark, lock

    recipe = recipe if root is None else _rooted(recipe, root)
    if Folder(str(out)).exists(lock.FILE if spec.lock else MANIFEST):
        _check_same(recipe, spec.limit, out)
        return str(out)
    say(f"building {out.name}")
    settings = building.Settings(workers=workers, resume=out.exists(), limit=spec.limit)
    if spec.lock:
        benchmark.build(recipe, str(out), settings)
    else:
        building.run(recipe, str(out), settings)
    return str(out)


def _check_same(recipe: Recipe, limit: int | None, out: Path) -> None:
    """Raise TrainingError where a finished dataset is of another recipe than the one that would build it now."""
    with Folder(str(out)).open(planning.PLAN) as file:
        before, identity = planning.recipe_of(file), planning.identity_of(file)[1]
    was = before.model_dump(mode="json") | {"limit": identity["limit"]}
    now = recipe.with_absolute_paths().model_dump(mode="json") | {"limit": limit}
    if was != now:
        raise TrainingError(
            f"{out}: built by another recipe, {planning.difference(was, now)}; delete it, or take another --out"
        )


def _rooted(recipe: Recipe, root: str) -> Recipe:
    """The recipe with its paths below a folder; a single source that has none lies in that folder itself."""
    (name, source), *others = recipe.sources.items()
    if not others and source.root is None and not source.files:
        return recipes.with_sources(recipe, [f"{name}={root}"])
    return recipe.with_root(root)


# --- what is read of them --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a stage reads: samples by number, and in which order."""

    rows: Rows
    order: Order


def open_source(stage: StageSpec, datasets: Mapping[str, str], cache: Path | None = None) -> Source:
    """Open a stage's datasets; every shard is looked at.

    Args:
        cache: a folder that keeps lengths of samples.
    Raises:
        UserError: a dataset or shard is missing, or changed; the mixing rule does not fit; there is nothing to read.
    """
    from dataengine.loader.groups import open_data
    from dataengine.loader.lengths import text_lengths
    from dataengine.loader.order import Order

    rows = open_data([datasets[name] for name in stage.data], tasks=stage.train.tasks or None)
    rule = None if stage.mixing is None else stage.mixing.to_rule()
    lengths = text_lengths(rows, cache) if stage.by_length else None
    order = Order(
        rows.sources, rule, seed=stage.train.seed, batch=stage.train.batch, block=stage.block, lengths=lengths
    )
    return Source(rows=rows, order=order)


def categories_of(rows: Rows) -> dict[int, str]:
    """Names of all categories that the sources may show, by id: the classes of stage 1.

    Raises:
        TrainingError: two sources mean different things by one id.
    """
    names: dict[int, str] = {}
    wanted = {source.name.partition("#")[0] for source in rows.sources}
    for dataset in rows.datasets:
        for key, source in dataset.manifest["sources"].items():
            for category in source["categories"] if key.partition("/")[0] in wanted else ():
                before = names.setdefault(category["id"], category["text"])
                if before != category["text"]:
                    raise TrainingError(f"category {category['id']} is {before} and {category['text']}; one is needed")
    return names


def feed_of(stage: StageSpec, source: Source, processor: Processor) -> Data:
    """What the training loop reads. What is made of samples is part of the order, which a resume compares."""
    from dataengine.loader import fresh
    from model.training import draws
    from model.training.loop import Data

    made: dict[str, Any] = {
        "redraw": None if stage.redraw is None else {"version": fresh.VERSION, **stage.redraw.model_dump(mode="json")},
        "draws": draws.VERSION,
        "expand_to_square": processor.config.expand_to_square,
        "words": None if processor.tokenizer is None else _fingerprint(processor.tokenizer),
    }
    return Data(
        loader=partial(_loader, stage, source, processor),
        tasks=frozenset(source.order.tasks),
        steps_per_epoch=source.order.steps_per_epoch,
        fingerprint=source.rows.fingerprint,
        order={**source.order.settings, **made},
        place=partial(_place_of, source.rows),
        described=source.rows.describe(),
        check_same=source.rows.check_same,
    )


def _fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """The same for tokenizers of the same words and markers."""
    return key_hash(json.dumps(sorted(tokenizer.get_vocab().items()))).hex()


def _loader(stage: StageSpec, source: Source, processor: Processor, start: int) -> Loader[Inputs, Batch]:
    """This process's micro-batches from a step on."""
    from dataengine.loader.loader import Loader
    from model.training import parallel
    from model.training.draws import Collate, Make

    return Loader(
        source.rows,
        source.order,
        Make(processor=processor, stage=stage.train),
        Collate(stage=stage.train),
        rank=parallel.rank(),
        world=parallel.world(),
        micro=stage.train.micro,
        workers=stage.workers,
        start=start,
        stop=stage.train.num_steps(source.order.steps_per_epoch),
        fresh=None if stage.redraw is None else stage.redraw.to_redraw(stage.train.seed),
        budget=stage.budget,
    )


def _place_of(rows: Rows, sample_id: str) -> str:
    """The dataset that has a sample."""
    for dataset in rows.datasets:
        with suppress(UserError):
            dataset.locate(sample_id)
            return str(dataset.folder.uri)
    return "DATASET"
