"""Overfitting: a fresh `tiny` learns eight samples of shapes by heart, and the evaluation that users run scores it.

Three pictures, each as regions (`vgdseg`), by names of categories (`genseg`, instance) and, two of them, by expressions
(`refseg`). Their objects are large, because a mask of `tiny` has 32 x 32 cells: what is smaller than four cells cannot
reach the higher IoUs of AP, however well it is learned.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dataengine.sample import Sample
from dataengine.store.dataset import open_dataset
from model.batches import Batch, collate
from model.config import PRESETS, XSamConfig
from model.inputs import Inputs, Processor
from model.losses import RandomDraws
from model.postprocess import Frame, Thresholds
from model.predictions import Asked, prediction_of, records_of
from model.words import tiny_tokenizer
from model.xsam import XSam
from pipelines import build as building
from pipelines import recipe as recipes
from pipelines.evaluate.evaluator import Evaluator

WORLD, WORLD_SEED = 200, 7
LEAST_SIDE = 0.14  # root of an object's area, in sides of the padded picture
OBJECTS = range(2, 5)
PICTURES, WITH_REFERENCES = 3, 2
KIND = "box"  # of the prompts shown to `vgdseg`
# task: where its score stands in a result
SCORES = {
    "vgdseg": ("same_image", KIND, "ap"),
    "genseg": ("instance", "genseg", "ap"),
    "refseg": ("all", "giou"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """rate: of learning, after `warmup` steps, falling to 0 in the last `fall` of them. threads: of torch."""

    steps: int = 100
    rate: float = 1e-3
    warmup: int = 20
    fall: float = 0.4
    decay: float = 0.01
    clip: float = 1.0
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """seconds: of training, by the clock; cpu_seconds: of all threads. loss: of the last step. scores: by task."""

    seconds: float
    cpu_seconds: float
    loss: float
    scores: Mapping[str, float]


def write_dataset(folder: Path, num_pictures: int = PICTURES, num_referring: int = WITH_REFERENCES) -> Path:
    """A dataset of large shapes: a picture each as `vgdseg` and `genseg`, the first `num_referring` as `refseg` too."""
    from builders.world_tree import write_tree

    write_tree(folder / "world", WORLD, seed=WORLD_SEED)
    annotations = folder / "world" / "annotations"
    instances = json.loads((annotations / "instances_train.json").read_text())
    references = json.loads((annotations / "refs_train.json").read_text())["refs"]
    chosen = _large(instances, num_pictures)
    for name, images in (("instances_train", chosen), ("instances", chosen[:num_referring])):
        of_images = {
            "images": [one for one in instances["images"] if one["id"] in images],
            "annotations": [one for one in instances["annotations"] if one["image_id"] in images],
        }
        (folder / f"{name}.json").write_text(json.dumps({**instances, **of_images}))
    with (folder / "refs(unc).p").open("wb") as file:
        kept = [one for one in references if one["image_id"] in chosen[:num_referring]]
        pickle.dump([{**one, "sentences": one["sentences"][:1]} for one in kept], file, protocol=2)
    images = str(folder / "world" / "images" / "train")
    of_tree = {"annotations": str(folder / "instances_train.json"), "images": images}
    of_references = {
        "refs": str(folder / "refs(unc).p"),
        "instances": str(folder / "instances.json"),
        "images": images,
    }
    sources = {
        "vgdseg": {"builder": "shapes", "task": "vgdseg", "files": of_tree, "splits": ["train"]},
        "genseg": {
            "builder": "shapes",
            "task": "genseg",
            "files": of_tree,
            "splits": ["train"],
            "options": {"variants": ["instance"]},
        },
        "refseg": {"builder": "refcoco", "task": "refseg", "files": of_references, "splits": ["train"]},
    }
    values = {"name": "overfit", "sources": sources, "prompts": {"profile": "strict"}}
    building.run(recipes.parse(values, "overfit"), str(folder / "dataset"), building.Settings())
    return folder / "dataset"


def _large(instances: Mapping[str, Any], num_pictures: int) -> list[int]:
    """Ids of the first pictures with a few large objects and nothing else."""
    objects = defaultdict(list)
    for one in instances["annotations"]:
        objects[one["image_id"]].append(one)
    found = []
    for image in instances["images"]:
        least, mine = LEAST_SIDE * max(image["height"], image["width"]), objects[image["id"]]
        is_large = all(not one["iscrowd"] and math.sqrt(one["area"]) >= least for one in mine)
        if len(mine) in OBJECTS and is_large:
            found.append(image["id"])
    return found[:num_pictures]


def inputs_of(samples: Sequence[Sample], processor: Processor) -> list[Inputs]:
    """Their inputs; samples of one picture share it, so that it is encoded once."""
    pictures: dict[str, Any] = {}
    made = [processor.from_sample(sample, kind=KIND if sample.task == "vgdseg" else None) for sample in samples]
    for sample, one in zip(samples, made, strict=True):
        pictures.setdefault(sample.image_key, one.picture)
    return [replace(one, picture=pictures[sample.image_key]) for sample, one in zip(samples, made, strict=True)]


def train(model: XSam, batch: Batch, schedule: Schedule, seed: int = 0, every: int = 0) -> float:
    """Steps on one batch; gives the last loss. every: after how many steps a line is printed."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.rate, weight_decay=schedule.decay, fused=True)
    points = RandomDraws(torch.Generator().manual_seed(seed))
    model.train()
    for step in range(1, schedule.steps + 1):
        left = (schedule.steps + 1 - step) / schedule.steps
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate * min(1.0, step / schedule.warmup, left / schedule.fall)
        losses = model(batch, points)
        optimizer.zero_grad()
        losses.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        optimizer.step()
        if every and step % every == 0:
            terms = ", ".join(f"{name} {losses.terms[name]:.3f}" for name in ("loss_mask", "loss_dice", "loss_cls"))
            print(f"{step} steps: loss {losses.loss:.2f}, language {losses.language:.3f}, {terms}", flush=True)
    return losses.loss.item()


def score(model: XSam, samples: Sequence[Sample], inputs: Sequence[Inputs], dataset: Path) -> dict[str, float]:
    """The score of each task, of answers that are made one sample at a time."""
    evaluators = {task: Evaluator(str(dataset), task) for task in {sample.task for sample in samples}}
    model.eval()
    for sample, one in zip(samples, inputs, strict=True):
        outputs, picture = model.answer(collate([one])), one.picture
        if outputs is None or picture is None:
            raise ValueError(f"{sample.sample_id}: nothing was answered")
        prediction = prediction_of(
            sample.task,
            *outputs.final,
            Frame(canvas=model.config.seg_px, scaled=picture.scaled_size, size=picture.size),
            [Asked(text=asked.text, category_id=asked.category_id) for asked in one.conditions],
            thresholds=Thresholds(),
            variant=sample.variant if sample.task == "genseg" else None,
            prompt=KIND if sample.task == "vgdseg" else None,
        )
        for number, record in enumerate(records_of(prediction, sample.sample_id)):
            evaluators[sample.task].add_record(f"{sample.sample_id}[{number}]", record)
    return {task: _at(evaluator.result()["scores"], SCORES[task]) for task, evaluator in sorted(evaluators.items())}


def _at(scores: Any, path: Sequence[str]) -> float:
    for key in path:
        scores = scores[key]
    return float(scores)


def overfit(
    folder: Path, schedule: Schedule, config: XSamConfig = PRESETS["tiny"], seed: int = 0, every: int = 0
) -> Outcome:
    """Train a fresh model on a dataset of `write_dataset`, and score it on the same."""
    torch.set_num_threads(schedule.threads)
    samples = list(open_dataset(str(folder)).samples())
    torch.manual_seed(seed)
    model = XSam(config)
    inputs = inputs_of(samples, Processor(config, tiny_tokenizer()))
    start, cpu = time.perf_counter(), time.process_time()
    loss = train(model, collate(inputs, is_shared=False), schedule, seed, every)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    scores = score(model, samples, inputs, folder)
    return Outcome(seconds=seconds, cpu_seconds=cpu_seconds, loss=loss, scores=scores)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overfit", description=__doc__)
    usual = Schedule()
    parser.add_argument("--steps", type=int, default=usual.steps)
    parser.add_argument("--rate", type=float, default=usual.rate)
    parser.add_argument("--threads", type=int, default=usual.threads)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    schedule = Schedule(steps=arguments.steps, rate=arguments.rate, threads=arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = overfit(write_dataset(Path(folder)), schedule, seed=arguments.seed, every=10)
    scores = ", ".join(f"{task} {SCORES[task][-1]} {value:.3f}" for task, value in found.scores.items())
    print(f"{schedule.steps} steps, {found.seconds:.0f} s, {found.cpu_seconds:.0f} s of CPU: {scores}")


if __name__ == "__main__":
    main()
