"""Indexing a full-size instances file: seconds and peak memory."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

IMAGES, ANNOTATIONS = 118_287, 860_001  # of COCO train2017


def write_instances(path: Path, images: int = IMAGES, annotations: int = ANNOTATIONS, seed: int = 0) -> None:
    """An instances file with COCO's counts and about its size; annotations in random order of images."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(600_000, images, replace=False)) + 1
    with path.open("w") as file:
        categories = [{"id": n, "name": f"kind {n}"} for n in range(1, 81)]
        file.write(f'{{"info": {{}}, "categories": {json.dumps(categories)},\n"images": [')
        for number, image in enumerate(ids.tolist()):
            record = {
                "license": 1,
                "file_name": f"{image:012d}.jpg",
                "coco_url": f"https://example.org/train2017/{image:012d}.jpg",
                "height": 480,
                "width": 640,
                "date_captured": "2013-11-14 11:18:45",
                "id": image,
            }
            file.write((",\n" if number else "") + json.dumps(record))
        file.write('],\n"annotations": [')
        owners = rng.choice(ids, annotations).tolist()
        vertices = rng.integers(12, 60, annotations).tolist()
        for number, (image, count) in enumerate(zip(owners, vertices, strict=True)):
            points = np.round(rng.random(2 * count) * 400, 2).tolist()
            record = {
                "segmentation": [points],
                "area": 702.1057499999998,
                "iscrowd": 0,
                "image_id": image,
                "bbox": [10.5, 20.25, 100.0, 200.0],
                "category_id": 1 + number % 80,
                "id": number + 1,
            }
            file.write((",\n" if number else "") + json.dumps(record))
        file.write("]}\n")


def measure(path: Path) -> dict[str, float]:
    """Index a file in a process of its own."""
    code = (
        "import sys, resource, tempfile, time\n"
        "from pathlib import Path\n"
        "from builders.coco_index import build_index\n"
        "start = time.perf_counter()\n"
        "with open(sys.argv[1], 'rb') as file, tempfile.TemporaryDirectory() as folder:\n"
        "    found = build_index(file, 'instances', Path(folder) / 'index.arrow')\n"
        "print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, found.annotations)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    seconds, peak_kib, annotations = done.stdout.split()
    return {"s": float(seconds), "peak_mb": int(peak_kib) / 1024, "annotations": int(annotations)}


def rows(path: Path | None = None) -> list[tuple[str, str, str]]:
    """What was measured, the figure, the target."""
    if path is None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "instances.json"
            write_instances(path)
            return rows(path)
    size = path.stat().st_size / 1e6
    found = measure(path)
    return [
        (
            f"index an instances json of {size:.0f} MB, {found['annotations']:,} annotations",
            f"{found['s']:.1f} s, {found['peak_mb']:.0f} MB peak",
            "60 s, 1,500 MB",
        )
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, help="an instances json; one is made if this is not given")
    for row in rows(parser.parse_args().file):
        print(" | ".join(row))
