"""Inputs of the full model: milliseconds of CPU a sample on one core, from a row of a dataset to tensors, by parts.

The dataset is COCO-VGD of a world of shapes, whose pictures have COCO's sizes and bytes a pixel. What no part counts is
the checking of samples and whatever lies between.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WANTED, PRESET, PASSES = 12.0, "xsam-phi3-siglip2-saml", 3
PARTS = {  # the functions that do a part, by the module or class that has them
    "decode": [("model.pictures", "open_picture"), ("model.pictures", "_columns")],
    "resize 384": [("model.pictures", "_image_pixels")],
    "resize 1024": [("model.pictures", "_seg_pixels")],
    "prompts": [("model.inputs.Processor", "_shown")],
    "text": [("model.inputs.Processor", "_encode")],
    "masks": [("model.inputs.Processor", "_targets")],
    "check": [("dataengine.invariants", "check")],
}


def measure(dataset: Path, samples: int = 200) -> dict[str, float]:
    """CPU milliseconds a sample, in all and by parts; of the passes over the samples, the fastest."""
    import torch

    from dataengine.store.dataset import open_dataset
    from model.config import PRESETS
    from model.inputs import Processor
    from model.words import tiny_tokenizer

    torch.set_num_threads(1)
    processor = Processor(PRESETS[PRESET], tiny_tokenizer())  # the vocabulary is another; as many texts are encoded
    chosen = open_dataset(str(dataset)).pick(samples, seed=0)

    def once() -> float:
        start = time.process_time()
        for sample in chosen:
            processor.from_sample(sample)
        return 1000 * (time.process_time() - start) / len(chosen)

    once()  # loops are compiled or loaded
    total = min(once() for _ in range(PASSES))
    every: list[dict[str, float]] = []
    for _ in range(PASSES):
        with _counted() as spent:
            once()
        every.append({name: 1000 * seconds / len(chosen) for name, seconds in spent.items()})
    fastest = min(every, key=lambda parts: sum(parts.values()))
    return {"all": total, **fastest}


@contextmanager
def _counted() -> Iterator[dict[str, float]]:
    """CPU seconds of each part while this is open; parts do not lie in each other."""
    from pydoc import locate
    from unittest.mock import patch

    spent = dict.fromkeys(PARTS, 0.0)
    patches = []
    for part, functions in PARTS.items():
        for place, name in functions:
            owner = locate(place)
            patches.append(patch.object(owner, name, _timed(getattr(owner, name), part, spent)))
    for one in patches:
        one.start()
    try:
        yield spent
    finally:
        for one in patches:
            one.stop()


def _timed(function: Callable[..., Any], part: str, spent: dict[str, float]) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        start = time.process_time()
        try:
            return function(*arguments, **named)
        finally:
            spent[part] += time.process_time() - start

    return run


def rows(images: int = 300) -> list[tuple[str, str, str]]:
    """What was measured, the figure, the target."""
    with tempfile.TemporaryDirectory() as folder:
        tree, out = Path(folder) / "shapes", Path(folder) / "vgd"
        command = [sys.executable, "-m", "pipelines.cli"]
        quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([*command, "synth", "shapes", "--images", str(images), "--out", str(tree)], **quiet)
        subprocess.run([*command, "build", "vgd", "--source", f"shapes={tree}", "--out", str(out)], **quiet)
        done = subprocess.run([sys.executable, "-m", "benchmarks.inputs", str(out)], capture_output=True, check=True)
    figures = json.loads(done.stdout)
    parts = ", ".join(f"{name} {figures[name]:.1f}" for name in PARTS)
    return [(f"inputs of {PRESET}, one core", f"{figures['all']:.1f} ms a sample ({parts})", f"<= {WANTED:g} ms")]


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
