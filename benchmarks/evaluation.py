"""Scoring a file of predictions for a VGD benchmark, as `dataengine eval vgd` does it: seconds and peak memory.

The benchmark has val2017's numbers of pictures and objects, and one canvas, so that any mask may be predicted anywhere:
predictions are masks of the benchmark, a picture's own among them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataengine.keyed import keyed
from pipelines import build as building
from pipelines.evaluate.benchmark import Benchmark, open_benchmark
from pipelines.evaluate.writing import write
from pipelines.vgd import benchmark as benchmarks

HEIGHT, WIDTH = 480, 640
IMAGES, FOUND_OF_IMAGE = 5_000, 100
TRUE_OF_IMAGE = 7.3562  # val2017 has 36,781 objects
CATEGORIES, OF_PICTURE = 80, 3  # of val2017 a picture has 2.9
CORNERS = 24
KIND = "point"
PARTS = ("benchmark", "reading", "scoring")


def write_tree(root: Path, num_images: int, seed: int = 0) -> None:
    """A COCO tree of rough ellipses, most of them small; all names are links to one empty picture."""
    rng = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "val2017" / "1.jpg")
    for number in range(2, num_images + 1):
        os.link(root / "val2017" / "1.jpg", root / "val2017" / f"{number}.jpg")
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    annotations = []
    for number in range(1, round(num_images * TRUE_OF_IMAGE) + 1):
        image = int(rng.integers(num_images)) + 1
        centre, radius = rng.uniform((0, 0), (WIDTH, HEIGHT)), np.exp(rng.uniform(np.log(8), np.log(160), 2))
        outline = centre + radius * np.stack([np.cos(angle), np.sin(angle)], 1) * rng.uniform(0.8, 1.1, (CORNERS, 1))
        outline = np.clip(outline, 0, (WIDTH, HEIGHT)).round(2)
        annotations.append(
            {
                "id": number,
                "image_id": image,
                "category_id": 1 + (image + int(rng.integers(OF_PICTURE))) % CATEGORIES,
                "iscrowd": 0,
                "segmentation": [outline.ravel().tolist()],
            }
        )
    document = {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "height": HEIGHT, "width": WIDTH} for n in range(1, num_images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": n, "name": f"kind {n}"} for n in range(1, CATEGORIES + 1)],
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(document))


def predictions(benchmark: Benchmark, seed: int = 0) -> Iterator[dict[str, Any]]:
    """That many masks for each sample: those of the picture, and of other pictures."""
    pool = [thing.rle.decode() for sample in benchmark.samples() for thing in sample.objects]
    for sample in benchmark.samples():
        rng = keyed(seed, sample.sample_id, "predictions", 1)
        asked = sorted(condition.category_id for condition in sample.conditions)
        if not asked:
            continue
        own = [(thing.category_id, thing.rle.decode()) for thing in sample.objects]
        for number, score in enumerate(rng.random(FOUND_OF_IMAGE).tolist()):
            category, counts = (
                own[number] if number < len(own) else (int(rng.choice(asked)), pool[int(rng.integers(len(pool)))])
            )
            yield {
                "sample_id": sample.sample_id,
                "category_id": category,
                "prompt": KIND,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts},
                "score": score,
            }


def measure(benchmark: Path, file: Path, backend: str = "hotcoco") -> dict[str, float]:
    """Score a file in a process of its own: seconds of each part and of all, peak memory in MB, AP."""
    code = f"""
import json, resource, sys, time
from pipelines.evaluate.evaluator import Evaluator
from pipelines.evaluate.predictions import Source
from pipelines.evaluate.scorers import Rules
times = [time.perf_counter()]
evaluator = Evaluator({str(benchmark)!r}, "vgdseg", Rules(backend={backend!r}))
times.append(time.perf_counter())
for place, record in Source({str(file)!r}).records():
    evaluator.add_record(place, record)
times.append(time.perf_counter())
result = evaluator.result()
times.append(time.perf_counter())
found = dict(zip({PARTS!r}, [b - a for a, b in zip(times, times[1:])]))
print(json.dumps(found | {{
    "seconds": times[-1] - times[0],
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "predictions": result["predictions"],
    "ap": result["scores"]["same_image"][{KIND!r}]["ap"],
}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def prepare(folder: Path, num_images: int) -> tuple[Path, list[Path]]:
    """A benchmark, and its predictions as JSON and as Parquet."""
    write_tree(folder / "coco", num_images)
    recipe = benchmarks.recipe_of(benchmarks.Settings(root=str(folder / "coco")))
    benchmarks.build(recipe, str(folder / "benchmark"), building.Settings())
    made = open_benchmark(str(folder / "benchmark"), "vgdseg")
    files = [folder / "predictions.json", folder / "predictions.parquet"]
    for file in files:
        write(predictions(made), file, made.id)
    return folder / "benchmark", files


def rows(num_images: int = IMAGES) -> list[tuple[str, str, str]]:
    """What was measured, the figure, the target."""
    with tempfile.TemporaryDirectory() as folder:
        benchmark, files = prepare(Path(folder), num_images)
        return [_row(benchmark, file, num_images) for file in files]


def _row(benchmark: Path, file: Path, num_images: int) -> tuple[str, str, str]:
    found = measure(benchmark, file)
    parts = ", ".join(f"{part} {found[part]:.1f}" for part in PARTS)
    return (
        f"eval vgd: {num_images:,} samples, {found['predictions']:,.0f} predictions, {file.suffix[1:]}, with strata",
        f"{found['seconds']:.1f} s ({parts}), {found['peak_mb']:,.0f} MB",
        "",
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.add_argument("--images", type=int, default=IMAGES)
    for row in rows(parser.parse_args().images):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
