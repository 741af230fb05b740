"""Scoring predictions: AP of a val2017 of masks beside pycocotools, and PQ of as many PNG files beside hotcoco.

Each run is a process of its own, so that its peak memory is its own. It starts from the columns in memory, and the
figure holds everything from there to the scores, handing masks over included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataengine import masks

HEIGHT, WIDTH = 480, 640
IMAGES = 5_000
TRUE_OF_IMAGE, FOUND_OF_IMAGE = 7.3562, 100  # val2017 has 36,781 objects
CATEGORIES = 80
CORNERS = 24
MAPS = 300  # different pairs of PNG files; further pictures are links to them
WORKERS = 2


# --- AP --------------------------------------------------------------------------------------------------------------


def write_masks(path: Path, num_images: int, seed: int = 0) -> tuple[int, int]:
    """Blobs as ground truth, and predictions that are mostly like them; both as columns in one file.

    Returns:
        the number of objects and of predictions.
    """
    rng = np.random.default_rng(seed)
    image = np.sort(rng.integers(0, num_images, round(num_images * TRUE_OF_IMAGE)))
    category = rng.integers(0, CATEGORIES, image.size)
    centre, radius = _places(rng, image.size)
    guess_image = np.repeat(np.arange(num_images), FOUND_OF_IMAGE)
    first, last = np.searchsorted(image, guess_image), np.searchsorted(image, guess_image, "right")
    like = np.minimum(rng.integers(first, np.maximum(last, first + 1)), image.size - 1)
    near = (rng.random(guess_image.size) < 0.7) & (last > first)
    other_centre, other_radius = _places(rng, guess_image.size)
    moved = centre[like] + rng.normal(0, 0.1, other_centre.shape) * radius[like]
    grown = radius[like] * np.exp(rng.normal(0, 0.1, other_radius.shape))
    right = near & (rng.random(guess_image.size) < 0.8)
    columns = {
        "image": image,
        "category": category,
        "guess_image": guess_image,
        "guess_category": np.where(right, category[like], rng.integers(0, CATEGORIES, guess_image.size)),
        "guess_score": np.round(rng.random(guess_image.size), 3),
    }
    blobs = {
        "": _blobs(rng, centre, radius),
        "guess_": _blobs(
            rng, np.where(near[:, None], moved, other_centre), np.where(near[:, None], grown, other_radius)
        ),
    }
    for name, rles in blobs.items():
        columns[f"{name}codes"] = np.frombuffer(b"".join(rles), np.uint8)
        columns[f"{name}ends"] = np.cumsum([len(rle) for rle in rles])
    np.savez(path, **columns)
    return image.size, guess_image.size


def _places(rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres and radii of ellipses, (n, 2) float64, x, y in px."""
    return rng.uniform((0, 0), (WIDTH, HEIGHT), (number, 2)), np.exp(rng.uniform(np.log(5), np.log(160), (number, 2)))


def _outlines(rng: np.random.Generator, centre: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """(n, CORNERS, 2) float64: rough ellipses, cut off at the frame."""
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    rough = 1 + 0.05 * rng.standard_normal((len(centre), CORNERS, 1))
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return np.clip(centre[:, None] + radius[:, None] * rough * ring, 0, (WIDTH, HEIGHT))


def _blobs(rng: np.random.Generator, centre: np.ndarray, radius: np.ndarray) -> list[bytes]:
    nothing = masks.rle_from_counts([HEIGHT * WIDTH], HEIGHT, WIDTH)
    rles = []
    for outline in _outlines(rng, centre, radius):
        try:
            rles.append(masks.rle_from_polygons([outline.ravel()], HEIGHT, WIDTH))
        except masks.MaskError:
            rles.append(nothing)
    return rles


_MEASURED = """
import json, os, re, sys, time
from pathlib import Path
def report(begun, value):
    cpu, wall = (end - start for start, end in zip(begun, now()))
    peak_kib = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]  # ru_maxrss has the parent's
    print(json.dumps({"cpu_s": cpu, "wall_s": wall, "peak_mb": int(peak_kib) / 1024, "value": value}))
def now():
    return sum(os.times()[:4]), time.perf_counter()
"""

_AP = f"""{_MEASURED}
import numpy as np
from dataengine.metrics.ap import Instances, average_precision
path, backend, num_images, num_categories, *size = sys.argv[1:]
columns = np.load(path)
def instances(name, score=None):
    codes, start, rles = columns[name + "codes"].tobytes(), 0, []
    for end in columns[name + "ends"].tolist():
        rles.append(codes[start:end])
        start = end
    return Instances(image=columns[name + "image"], category=columns[name + "category"], rles=rles, score=score)
truth, found = instances(""), instances("guess_", columns["guess_score"])
sizes = dict.fromkeys(range(int(num_images)), tuple(map(int, size)))
begun = now()
scores = average_precision(truth, found, sizes, categories=range(int(num_categories)), backend=backend)
report(begun, scores.to_json())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run in a process of its own. cpu_s: with its workers. peak_mb: RSS, without them. value: what it computed."""

    cpu_s: float
    wall_s: float
    peak_mb: float
    value: Any

    def __str__(self) -> str:
        return f"{self.cpu_s:.1f} s CPU time, {self.peak_mb:,.0f} MB peak"


def _run(code: str, *given: object) -> Run:
    done = subprocess.run([sys.executable, "-c", code, *map(str, given)], capture_output=True, text=True, check=True)
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def average_precisions(folder: Path, num_images: int) -> tuple[str, Run, Run]:
    """What was scored, our run and pycocotools'; they are checked to give the same numbers."""
    path = folder / "masks.npz"
    num_true, num_found = write_masks(path, num_images)
    ours, peer = (
        _run(_AP, path, backend, num_images, CATEGORIES, HEIGHT, WIDTH) for backend in ("hotcoco", "pycocotools")
    )
    if {**ours.value, "backend": ""} != {**peer.value, "backend": ""}:
        raise RuntimeError(f"AP differs: {ours.value['ap']} and {peer.value['ap']}")
    return f"AP of {num_images:,} images, {num_true:,} objects, {num_found:,} predicted masks", ours, peer


# --- PQ --------------------------------------------------------------------------------------------------------------


def write_maps(folder: Path, num_images: int, seed: int = 0) -> None:
    """Panoptic PNGs and json files of ground truth and predictions, in `truth`, `found`, `truth.json`, `found.json`."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    different = min(num_images, MAPS)
    annotations: dict[str, list[dict[str, Any]]] = {"truth": [], "found": []}
    for number in range(different):
        maps = dict(zip(annotations, _maps(rng), strict=True))
        for name, (ids, categories) in maps.items():
            (folder / name).mkdir(exist_ok=True)
            colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
            Image.fromarray(colours).save(folder / name / f"{number}.png")
            shown, areas = np.unique(ids, return_counts=True)
            segments = [
                {"id": value, "category_id": categories[value], "area": area, "iscrowd": 0}
                for value, area in zip(shown.tolist(), areas.tolist(), strict=True)
                if value
            ]
            annotations[name].append({"segments_info": segments})
    for name, rows in annotations.items():
        for number in range(different, num_images):
            os.link(folder / name / f"{number % different}.png", folder / name / f"{number}.png")
        whole = [
            {**rows[number % different], "image_id": number, "file_name": f"{number}.png"}
            for number in range(num_images)
        ]
        heads = [{"id": number, "file_name": f"{number}.jpg"} for number in range(num_images)]
        kinds = [{"id": kind, "name": str(kind), "isthing": int(kind < 80)} for kind in range(133)]
        document = {"images": heads, "categories": kinds, "annotations": whole}
        (folder / f"{name}.json").write_text(json.dumps(document))


def _maps(rng: np.random.Generator) -> list[tuple[np.ndarray, dict[int, int]]]:
    """A map and one much like it, each with the category of its ids: five regions of stuff under seven things."""
    import cv2

    centre, radius = _places(rng, 7)
    seeds = rng.uniform((0, 0), (WIDTH, HEIGHT), (5, 2))
    names = rng.choice(np.arange(1, 1 << 24), 12, replace=False)
    kinds = np.append(80 + rng.choice(53, 5, replace=False), rng.integers(0, 80, 7))
    categories = dict(zip(names.tolist(), kinds.tolist(), strict=True))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    maps = []
    for shift in (0.0, 0.05):
        moved = seeds + rng.normal(0, 100 * shift, seeds.shape)
        rough = rng.normal(0, 2, (HEIGHT, WIDTH)).cumsum(axis=0) / 4
        nearest = np.argmin([(x + rough - u) ** 2 + (y - v) ** 2 for u, v in moved], axis=0)
        places = nearest.astype(np.int32)
        for index, outline in enumerate(_outlines(rng, centre + rng.normal(0, shift, centre.shape) * radius, radius)):
            cv2.fillPoly(places, [outline.round().astype(np.int32)], index + 5)
        maps.append((names[places], categories))
    return maps


_PQ = f"""{_MEASURED}
from dataengine.metrics.panoptic import Pair, Segment, panoptic_quality
if __name__ == "__main__":
    root, workers = Path(sys.argv[1]), int(sys.argv[2])
    begun = now()
    truth, found = (json.loads((root / name).read_text()) for name in ("truth.json", "found.json"))
    def segments(row):
        return [Segment(id=s["id"], category=s["category_id"], area=s["area"]) for s in row["segments_info"]]
    pairs = [
        Pair(
            image=row["image_id"],
            truth=root / "truth" / row["file_name"],
            truth_segments=segments(row),
            found=root / "found" / other["file_name"],
            found_segments=segments(other),
        )
        for row, other in zip(truth["annotations"], found["annotations"], strict=True)
    ]
    things = {{row["id"]: bool(row["isthing"]) for row in truth["categories"]}}
    report(begun, panoptic_quality(pairs, things, workers=workers).all)
"""

_PQ_PEER = f"""{_MEASURED}
from hotcoco.panoptic import PanopticEval
begun = now()
evaluation = PanopticEval(sys.argv[1] + "/truth.json", sys.argv[1] + "/found.json")
evaluation.evaluate()
scores = evaluation.results()["All"]
report(begun, [scores[name] for name in ("pq", "sq", "rq", "n")])
"""


def panoptic_qualities(folder: Path, num_images: int) -> tuple[Run, Run]:
    """Our run and hotcoco's; they are checked to give the same numbers."""
    write_maps(folder, num_images)
    ours, peer = _run(_PQ, folder, WORKERS), _run(_PQ_PEER, folder)
    if not np.allclose(ours.value, peer.value, rtol=1e-12, atol=0):
        raise RuntimeError(f"PQ differs: {ours.value} and {peer.value}")
    return ours, peer


# --- report ----------------------------------------------------------------------------------------------------------


def rows(scale: float = 1.0) -> Iterator[tuple[str, str, str]]:
    """What was measured, the figure, the target. scale: of the 5,000 images."""
    num_images = max(1, round(IMAGES * scale))
    with tempfile.TemporaryDirectory() as folder:
        what, ours, peer = average_precisions(Path(folder), num_images)
    yield f"{what}, {ours.value['backend']}", str(ours), ""
    yield f"the same, {peer.value['backend']}, every number equal", str(peer), ""
    yield "AP, CPU time of pycocotools over ours", f"{peer.cpu_s / ours.cpu_s:.1f}×", "10×"
    yield "AP, peak memory of ours over pycocotools", f"{ours.peak_mb / peer.peak_mb:.2f}×", "0.5×"
    with tempfile.TemporaryDirectory() as folder:
        ours, peer = panoptic_qualities(Path(folder), num_images)
    size = f"{WIDTH} x {HEIGHT}"
    what = f"PQ of {num_images:,} pairs of {size} PNGs, reading included, {WORKERS} workers"
    yield what, f"{ours.wall_s:.1f} s ({ours.cpu_s:.1f} s CPU time of all processes)", "60 s"
    threads = os.cpu_count() or 1
    yield (
        f"the same, hotcoco with {threads} threads, numbers equal to 1e-12",
        f"{peer.wall_s:.1f} s ({peer.cpu_s:.1f} s CPU time)",
        "",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the 5,000 images")
    for row in rows(parser.parse_args().scale):
        print(" | ".join(row), flush=True)


if __name__ == "__main__":
    main()
