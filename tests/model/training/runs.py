"""Small runs of the trainer: a model, data that is made up, and a loader that is a pure function of the step.

As a program it trains once: `python -m tests.model.training.runs JSON`, see `main`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataengine import masks as rles
from dataengine.keyed import keyed
from model.batches import Batch
from model.config import PRESETS, ConnectorConfig, Part, XSamConfig
from model.inputs import Inputs, Processor, Target, box
from model.training.draws import Collate
from model.training.loop import Data, Result, train
from model.training.settings import Stage
from model.words import tiny_tokenizer
from model.xsam import XSam

TINY = PRESETS["tiny"]
PX = 64


def _smaller(part: Part | None, **settings: Any) -> Part:
    assert part is not None
    return Part(kind=part.kind, settings={**part.settings, **settings})


CONFIG: XSamConfig = replace(
    TINY,
    name="small",
    language=_smaller(TINY.language, num_hidden_layers=2, hidden_size=64, intermediate_size=96, head_dim=16),
    image_encoder=_smaller(TINY.image_encoder, image_size=PX),
    seg_encoder=_smaller(TINY.seg_encoder, image_size=PX, num_hidden_layers=3, global_attn_indexes=[0, 1, 2]),
    connector=ConnectorConfig(hidden_dim=32, layers=(1, 2, 3)),
    decoder=replace(TINY.decoder, hidden_dim=32, num_queries=6, layers=2, points=32),
    image_px=PX,
    seg_px=PX,
)
TASKS = ("vgdseg", "genseg", "chat")
PLAIN = Stage(
    name="small",
    stage=3,
    steps=4,
    batch=4,
    micro=2,
    lr=1e-3,
    clip=1.0,
    warmup=0.0,
    schedule="constant",
    precision="fp32",
    shared_phrases=False,
    prompt_swap=False,
    save_every=1,
    log_every=1,
    threads=1,
    deterministic=True,
)


@dataclass(frozen=True, kw_only=True)
class Micro:
    step: int
    task: str
    index: int
    count: int
    sample_ids: tuple[str, ...]
    batch: Batch
    stand_in: bool = False
    lost: tuple[object, ...] = ()


def inputs_of(processor: Processor, task: str, number: int) -> Inputs:
    """A made-up sample: noise with a rectangle to be found; every other chat is without a picture."""
    rng = keyed(7, task, number)
    noise = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
    x, y = (int(value) for value in rng.integers(4, 24, 2))
    ask, seg = processor.from_prompt, "It is <SEG>."
    if task == "vgdseg":
        made = ask(
            noise,
            "What is like <region>, and <region>?",
            [box(x, y, x + 20, y + 15), box(2, 2, 9, 9)],
            task=task,
            answer=seg,
        )
    elif task == "chat":
        made = ask(
            noise if number % 2 else None,
            f"How many sides has shape {number}?",
            task=task,
            answer="Six. " * (1 + number % 3),
        )
    elif task == "refseg":
        made = ask(noise, f"Where is <p>thing {number}</p>?", task=task, answer=seg)
    else:
        made = ask(noise, "Segment <p>the ring</p>, <p>the red star</p> and <p>the sky</p>.", task=task, answer=seg)
    found = np.zeros((PX, PX), bool)
    found[y : y + 15, x : x + 20] = True
    targets = [Target(condition=k, rle=rles.encode(mask)) for k, mask in ((0, found), (1, ~found))]
    few = () if task == "chat" else tuple(targets[: 1 if task == "refseg" else 1 + number % 2])
    return replace(made, sample_id=f"{task}/{number}", targets=few)


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Steps take the tasks in turn, and of each its next samples."""

    stage: Stage
    rank: int = 0
    world: int = 1
    tasks: Sequence[str] = TASKS

    def ids(self, step: int) -> list[int]:
        return list(range(step * self.stage.batch, (step + 1) * self.stage.batch))[self.rank :: self.world]

    def __call__(self, start: int) -> Iterator[Micro]:
        processor, collate = Processor(CONFIG, tiny_tokenizer()), Collate(stage=self.stage)
        for step in range(start, 1000):
            task, ids, size = self.tasks[step % len(self.tasks)], self.ids(step), self.stage.micro
            parts = [ids[at : at + size] for at in range(0, len(ids), size)]
            for index, part in enumerate(parts):
                made = [inputs_of(processor, task, number) for number in part]
                yield Micro(
                    step=step,
                    task=task,
                    index=index,
                    count=len(parts),
                    sample_ids=tuple(one.sample_id for one in made),
                    batch=collate(made),
                )


def fresh(config: XSamConfig = CONFIG, seed: int = 0) -> XSam:
    torch.manual_seed(seed)
    model = XSam(config)
    for name, weight in model.named_parameters():
        if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            torch.nn.init.normal_(weight, std=0.02)  # at 0, where the masks look would be decided by rounding
    return model


def data_of(loader: Any, **changes: Any) -> Data:
    return replace(
        Data(loader=loader, tasks=frozenset(loader.tasks), steps_per_epoch=2, fingerprint="f", order={"seed": 1}),
        **changes,
    )


def run(stage: Stage, out: Path, loader: Any = None, model: XSam | None = None, **named: Any) -> Result:
    """A run in this process."""
    loader = loader or Loader(stage=stage)
    return train(stage, model or fresh(), data_of(loader), out, cpu=True, say=lambda _: None, **named)


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@dataclass(frozen=True, kw_only=True)
class Told(Loader):
    """Writes down the samples of each step, and sends its process signals when one of them is asked for."""

    file: str = ""
    end: int | None = None
    by: Sequence[int] = ()

    def __call__(self, start: int) -> Iterator[Micro]:
        for micro in super().__call__(start):
            if micro.step == self.end and not micro.index:
                for number in self.by:
                    os.kill(os.getpid(), number)
            with open(self.file, "a") as file:
                file.write(json.dumps([micro.step, *micro.sample_ids]) + "\n")
            yield micro


def main(arguments: str) -> None:
    """Train several runs, each in processes of its own that are forked from this one.

    arguments: JSON, a list of runs: {"out", "world", "stage": changes, "tasks", "resume", "end": a step,
            "by": signals, "of": the rank that gets them, "largest": bytes of a file}. Prints the exit codes of each
            run's processes.
    """
    torch.set_num_threads(1)
    _warm_up()
    for number, wanted in enumerate(json.loads(arguments)):
        children = []
        for rank in range(wanted.get("world", 1)):
            sys.stdout.flush()
            child = os.fork()
            if not child:
                try:
                    _train(number, rank, wanted)
                    os._exit(0)
                except BaseException:
                    import traceback

                    traceback.print_exc()
                    sys.stderr.flush()
                    os._exit(1)
            children.append(child)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


def _warm_up() -> None:
    """Load what every run loads, so that the forked ones have it."""

    rles.counts_from_rle(rles.encode(np.eye(4, dtype=bool)), 4, 4)
    next(Loader(stage=PLAIN)(0))


def _train(number: int, rank: int, wanted: dict[str, Any]) -> None:
    world, out = wanted.get("world", 1), Path(wanted["out"])
    if world > 1:
        out.mkdir(parents=True, exist_ok=True)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
        os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{out}/meeting-{number}", rank=rank, world_size=world
        )
    if "largest" in wanted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (wanted["largest"],) * 2)
    stage = dataclasses.replace(PLAIN, **wanted.get("stage", {}))
    loader = Told(
        stage=stage,
        rank=rank,
        world=world,
        tasks=tuple(wanted.get("tasks", TASKS)),
        file=f"{out}-{rank}.ids",
        end=wanted.get("end") if rank == wanted.get("of", 0) else None,
        by=wanted.get("by", ()),
    )
    result = train(
        stage, fresh(), data_of(loader), out, cpu=True, resume=wanted.get("resume", False), say=lambda _: None
    )
    if world > 1:
        torch.distributed.destroy_process_group()
    if result.signal:
        os._exit(128 + result.signal)


if __name__ == "__main__":
    main(sys.argv[1])
