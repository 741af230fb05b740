"""What a run tells while it goes on: console, `metrics.jsonl`, and TensorBoard where it is installed."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from model.training.step import Taken

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"


class Log:
    """Of the first process; others have `Silent`."""

    def __init__(self, folder: Path, start: int, say: Callable[[str], None]) -> None:
        """start: steps that were taken before; what was logged after them is dropped, as it comes again."""
        folder.mkdir(parents=True, exist_ok=True)
        self.say = say
        self.scored = _cut(folder / METRICS, start)  # steps whose evaluation is there
        self.file = (folder / METRICS).open("a", encoding="utf-8")
        self.board = _board(folder / TENSORBOARD, start, say)

    def write(self, step: int, values: Mapping[str, float | str], text: str) -> None:
        """step: how many were taken. values: go to the files. text: what the console says."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in values.items():
                if not isinstance(value, str):
                    self.board.add_scalar(name, value, step)
        self.say(text)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: BaseException | type[BaseException] | TracebackType | None) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


class Silent(Log):
    """Tells nothing."""

    def __init__(self) -> None:
        self.scored = set()

    def write(self, step: int, values: Mapping[str, float | str], text: str) -> None:
        pass

    def __exit__(self, *_: BaseException | type[BaseException] | TracebackType | None) -> None:
        pass


class Meter:
    """Time of the steps since the last look: waiting for data, the model's work, and all the rest."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.start = time.perf_counter()
        self.steps = self.samples = self.lost = self.tokens = 0
        self.waited = self.worked = self.apart = 0.0

    def add(self, waited: float, taken: Taken) -> None:
        """waited: for data, in seconds."""
        self.steps += 1
        self.waited, self.worked = self.waited + waited, self.worked + taken.seconds
        self.samples, self.tokens = self.samples + taken.num_samples, self.tokens + taken.num_tokens
        self.lost += taken.num_lost

    def leave_out(self, seconds: float) -> None:
        """Of checkpoints and evaluations, which are no part of steps."""
        self.apart += seconds

    def read(self) -> dict[str, float]:
        """Rates and shares of the time of the steps."""
        seconds = max(time.perf_counter() - self.start - self.apart, 1e-9)
        steps = max(1, self.steps)
        return {
            "seconds_per_step": seconds / steps,
            "samples_per_second": self.samples / seconds,
            "tokens_per_second": self.tokens / seconds,
            "lost": self.lost,
            "data_wait_share": self.waited / seconds,
            "overhead_share": max(0.0, 1 - (self.waited + self.worked) / seconds),
        }


def memory_gib(device: torch.device) -> float:
    """The most memory that was taken so far: of the device, or of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def line(step: int, steps: int, task: str, values: Mapping[str, float]) -> str:
    """A step in words."""
    parts = " ".join(f"{name} {values[name]:.3g}" for name in ("language", "mask", "dice", "class") if values[name])
    return (
        f"step {step:,}/{steps:,} {task}: loss {values['loss']:.4g} ({parts}) rate {values['rate']:.2e} "
        f"gradient {values['gradient']:.2g} | {values['seconds_per_step']:.2f} s a step, "
        f"{values['samples_per_second']:.1f} samples/s, {values['tokens_per_second']:,.0f} tokens/s, "
        f"data wait {values['data_wait_share']:.1%}, overhead {values['overhead_share']:.1%}, "
        f"{values['memory_gib']:.1f} GiB" + (f", {values['lost']:.0f} samples lost" if values["lost"] else "")
    )


def _cut(file: Path, start: int) -> set[int]:
    """Keep the lines of the first `start` steps; a line that was cut off is dropped. Gives the steps with scores."""
    if not file.exists():
        return set()
    kept, scored = [], set[int]()
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(text)
            if values["step"] <= start:
                kept.append(text + "\n")
                scored |= {values["step"]} if any(name.startswith("eval/") for name in values) else set()
        except (ValueError, LookupError, TypeError):
            continue
    staged = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    staged.write_text("".join(kept), encoding="utf-8")
    staged.replace(file)
    return scored


def _board(folder: Path, start: int, say: Callable[[str], None]) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say("no TensorBoard events: the package tensorboard is not installed")
        return None
    return SummaryWriter(str(folder), purge_step=start + 1)
