"""Building COCO-VGD shards from a COCO-like tree: seconds with one and two workers, memory of a worker."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One build.

    seconds: of the whole command; build_s: from plan to manifest; report_s, report_mb: of the report at its end.
    worker_mb: largest RSS of a worker.
    """

    seconds: float
    build_s: float
    report_s: float
    report_mb: float
    images: int
    samples: int
    objects: int
    worker_mb: float


def run(tree: Path, recipe: str, workers: int, engine: str, limit: int | None = None) -> Run:
    """Build a tree into a temporary folder."""
    with tempfile.TemporaryDirectory(dir=tree.parent) as folder:
        out = Path(folder) / "out"
        command = [
            sys.executable,
            "-m",
            "pipelines.cli",
            "build",
            recipe,
            "--source",
            f"shapes={tree}",
            "--out",
            str(out),
        ]
        command += ["--workers", str(workers), "--engine", engine] + (["--limit", str(limit)] if limit else [])
        start = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _largest_worker(process.pid, engine))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        if process.returncode:
            raise RuntimeError(f"the build failed: {' '.join(command)}")
        manifest = json.loads((out / "manifest.json").read_text())
        status = json.loads((out / "status.json").read_text())
        return Run(
            seconds=seconds,
            build_s=status["seconds"]["building"],
            report_s=status["seconds"]["report"],
            report_mb=(out / "report.html").stat().st_size / 1e6,
            images=status["images_total"],
            samples=status["samples"],
            objects=manifest["counts"]["objects"],
            worker_mb=peak / 2**20,
        )


def _largest_worker(pid: int, engine: str) -> int:
    try:
        root = psutil.Process(pid)
        if engine == "local":
            return int(root.memory_info().rss)
        workers = [p for p in root.children(recursive=True) if p.name().startswith("ray::")]
        return max((int(p.memory_info().rss) for p in workers), default=0)
    except psutil.Error:
        return 0


VGD_IMAGES = 5_000  # as many as val2017 has
VARIANTS = ("--cross-image", "--negatives", "3", "--shots", "2")


def vgd_rows(tree: Path, split: str = "train") -> list[tuple[str, str, str]]:
    """Benchmarks of a tree's first pictures: what was measured, the figure, the target."""
    found = []
    for options, title, target in (((), "all four kinds", "60 s"), (VARIANTS, " ".join(VARIANTS), "")):
        with tempfile.TemporaryDirectory(dir=tree.parent) as folder:
            out = Path(folder) / "bench"
            command = [sys.executable, "-m", "pipelines.cli", "vgd", "build", "--coco", str(tree), "--split", split]
            command += ["--out", str(out), "--limit", str(VGD_IMAGES), "--workers", "2", *options]
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            counts = json.loads((out / "benchmark.lock.json").read_text())["counts"]
        regions = sum(counts["regions"].values())
        what = f"vgd build of {VGD_IMAGES:,} images, {counts['objects']['targets']:,} objects, {regions:,} regions"
        found.append((f"{what}, 2 workers, {title}", f"{seconds:.0f} s", target))
    return found


def rows(tree: Path | None, images: int) -> list[tuple[str, str, str]]:
    """What was measured, the figure, the target."""
    if tree is None:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "shapes"
            command = [sys.executable, "-m", "pipelines.cli", "synth", "shapes", "--images", str(images)]
            start = time.perf_counter()
            workers = str(os.cpu_count() or 1)
            subprocess.run([*command, "--out", str(made), "--workers", workers], check=True, stdout=subprocess.DEVNULL)
            rate = images / (time.perf_counter() - start)
            synth = (f"write a world of {images:,} pictures, {workers} workers", f"{rate:.0f} images/s", "")
            return [synth, *rows(made, images)]
    one = run(tree, "vgd", 1, "ray", images)
    two = run(tree, "vgd", 2, "ray", images)
    tenth = run(tree, "vgd", 2, "ray", images // 10)
    what = f"COCO-VGD of {two.images:,} images, {two.objects:,} objects"
    return [
        (f"{what}, 2 workers, the whole command", f"{two.seconds:.0f} s", "180 s for 20,000 images"),
        (f"{what}, 1 worker", f"{one.seconds:.0f} s", ""),
        ("two workers against one, build step", f"{one.build_s / two.build_s:.2f}×", "1.8×"),
        (
            f"report of {two.samples:,} samples, 64 of them shown",
            f"{two.report_s:.1f} s, {two.report_mb:.1f} MB",
            "15 s, 8 MB",
        ),
        ("memory of a worker", f"{two.worker_mb:.0f} MB", "700 MB"),
        ("memory of a worker, a tenth of the tree", f"{tenth.worker_mb:.0f} MB", "the same"),
        *vgd_rows(tree),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", type=Path, help="a COCO tree; a world of shapes is made if this is not given")
    parser.add_argument("--images", type=int, default=20_000)
    arguments = parser.parse_args()
    for row in rows(arguments.tree, arguments.images):
        print(" | ".join(row))
