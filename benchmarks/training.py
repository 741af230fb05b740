"""The trainer: how much of a step is waiting for data, and how much is neither that nor the model's own work."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from pipelines.training import data, recipe, run

IMAGES, STEPS, LEFT_OUT, EVERY = 300, 120, 40, 20  # LEFT_OUT: the first steps, in which worker and memory settle
RECIPE = {
    "name": "measured",
    "model": {
        "preset": "tiny",
        "set": {
            "image_px": 96,
            "seg_px": 96,
            "image_encoder": {"settings": {"image_size": 96}},
            "seg_encoder": {"settings": {"image_size": 96}},
        },
    },
    "world": {"images": IMAGES, "style": "simple-colored", "layouts": ["coco"]},
    "datasets": {
        "regions": {
            "build": {
                "prompts": {"profile": "strict"},
                "sources": {
                    "coco": {
                        "builder": "coco",
                        "task": "vgdseg",
                        "root": "coco",
                        "splits": ["train2017"],
                        "options": {"images": "reference"},
                    }
                },
            }
        }
    },
    "stages": [
        {
            "name": "s3",
            "stage": 3,
            "data": ["regions"],
            "redraw": {},
            "steps": STEPS,
            "batch": 8,
            "micro": 8,
            "precision": "fp32",
            "threads": 1,
            "workers": 1,
            "log_every": EVERY,
            "save_every": 0,
        }
    ],
}


def shares(folder: Path) -> dict[str, float]:
    """Of a step of the tiny model in one process of one thread, with one worker: medians."""
    loaded = recipe.TrainRecipe.model_validate(RECIPE)
    places = data.prepare(loaded, {}, None, folder, 1, lambda _: None)
    made = run.Run(recipe=loaded, datasets=places, out=str(folder / "run"), cpu=True)
    run.check(made)
    run.write(made)
    run.go(made, lambda _: None)
    lines = map(json.loads, (folder / "run" / "s3" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    kept = [line for line in lines if "loss" in line and line["step"] > LEFT_OUT]
    return {
        name: median(line[name] for line in kept) for name in ("seconds_per_step", "data_wait_share", "overhead_share")
    }


def rows() -> Iterator[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        found = shares(Path(folder))
    step = f"{found['seconds_per_step']:.2f} s"
    yield "a step of the tiny model, 8 pictures of 96 px as regions, one core", step, ""
    yield "of it waiting for data, 1 worker", f"{found['data_wait_share']:.1%}", "<= 2 %"
    yield "of it neither data nor model", f"{found['overhead_share']:.1%}", "<= 3 %"


if __name__ == "__main__":
    for row in rows():
        print(" | ".join(row))
