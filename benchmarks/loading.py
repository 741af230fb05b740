"""The loader: samples with decoded pictures against bare decoding, the first batch and memory on a million rows."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from dataengine.loader.groups import open_data
from dataengine.loader.loader import Loader
from dataengine.loader.order import Draw, Order
from dataengine.loader.pictures import decoded
from dataengine.loader.scratch import Scratch
from dataengine.sample import Sample

BATCH = 16
REPEATS = 5
WANTED = {"rate": 0.9, "first": 3.0, "memory": 300.0}


def size_of(sample: Sample, draw: Draw) -> tuple[int, ...]:
    """What is sent to the process that reads: not the pixels, which cost the same either way."""
    return decoded(sample).shape


def nothing(sample: Sample, draw: Draw) -> int:
    return len(sample.objects)


class Files:
    """Pictures decoded from their files, a batch at a time: what the loader is measured against."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __getitem__(self, number: int) -> list[tuple[int, ...]]:
        from PIL import Image

        shapes = []
        for path in self.paths[number * BATCH : (number + 1) * BATCH]:
            with open(path, "rb") as file:
                shapes.append(np.asarray(Image.open(io.BytesIO(file.read()))).shape)
        return shapes

    def __len__(self) -> int:
        return -(-len(self.paths) // BATCH)


def rates(dataset: Path, workers: int, samples: int, repeats: int = REPEATS) -> dict[str, float]:
    """Milliseconds a sample: bare decoding, the loader's first pass, later passes; wall clock and CPU of the workers.

    Each is measured from the first batch on, so that the start of processes is left out; medians of the repeats, which
    take turns.
    """
    from torch.utils.data import DataLoader

    data = open_data([dataset])
    order = Order(data.sources, seed=0, batch=BATCH)
    steps = min(samples // BATCH, order.steps_per_epoch)
    with tempfile.TemporaryDirectory(dir=dataset.parent) as folder:
        paths = _written(data, order, steps, Path(folder))
        found: dict[str, list[tuple[float, float]]] = {"bare": [], "first": [], "later": []}
        for repeat in range(repeats):
            bare = DataLoader(Files(paths), batch_size=None, num_workers=workers, collate_fn=list)
            found["bare"].append(_timed(bare, len(paths)))
            scratch = Scratch(Path(folder) / f"scratch-{repeat}")
            for name in ("first", "later"):
                loader = Loader(data, order, size_of, list, workers=workers, stop=steps, scratch=scratch)
                found[name].append(_timed(loader, len(paths)))
    return {
        f"{name} {what}": median(figures[i] for figures in measured)
        for name, measured in found.items()
        for i, what in enumerate(("wall", "cpu"))
    }


def _written(data: Any, order: Order, steps: int, folder: Path) -> list[str]:
    """The pictures of some steps as files, in the same order."""
    from dataengine.loader.rows import Rows

    rows, paths = Rows(data, Scratch(folder / "reading")), []
    for step in range(steps):
        for draw in order.step(step).draws:
            path = folder / f"{draw.number}.jpg"
            image = rows.read(draw.number).image
            path.write_bytes(image.bytes if image and image.bytes else b"")
            paths.append(str(path))
    return paths


def _timed(batches: Iterable[Any], samples: int) -> tuple[float, float]:
    """Milliseconds a sample: wall clock from the first batch on, and CPU of the workers."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    reading = iter(batches)
    next(reading)
    start = time.perf_counter()
    for _ in reading:
        pass
    wall = time.perf_counter() - start
    del reading
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1000 * wall / (samples - BATCH), 1000 * cpu / samples


def large(dataset: Path, workers: int = 2, seconds: float = 30.0) -> dict[str, float]:
    """Seconds until a dataset is open, until its first batch, and the memory of a worker; in this fresh process."""
    import torch  # noqa: F401  # whose own start is none of the loader's

    with tempfile.TemporaryDirectory(dir=dataset.parent) as folder:
        start = time.perf_counter()
        data = open_data([dataset])
        opened = time.perf_counter() - start
        order = Order(data.sources, seed=0, batch=64)
        loader = Loader(data, order, nothing, list, workers=workers, scratch=Scratch(Path(folder)))
        first = rss = uss = 0.0
        done = 0
        for micro in loader:
            first = first or time.perf_counter() - start
            done += len(micro.sample_ids)
            if micro.step % 50 == 0:
                about = [child.memory_full_info() for child in psutil.Process().children()]
                rss, uss = max(rss, *(a.rss for a in about)), max(uss, *(a.uss for a in about))
            if time.perf_counter() - start > seconds:
                break
        rate = done / (time.perf_counter() - start - first)
    return {"open_s": opened, "first_s": first, "rss_mb": rss / 2**20, "uss_mb": uss / 2**20, "rate": rate}


def rows(images: int = 2_000, num_rows: int = 1_000_000) -> list[tuple[str, str, str]]:
    """What was measured, the figure, the target."""
    from benchmarks.viewer import write_dataset

    found = []
    with tempfile.TemporaryDirectory() as folder:
        tree, out, made = Path(folder) / "shapes", Path(folder) / "vgd", Path(folder) / "made"
        command = [sys.executable, "-m", "pipelines.cli"]
        quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([*command, "synth", "shapes", "--images", str(images), "--out", str(tree)], **quiet)
        subprocess.run([*command, "build", "vgd", "--source", f"shapes={tree}", "--out", str(out)], **quiet)
        for workers in sorted({1, os.cpu_count() or 1}):
            ms = rates(out, workers, images)
            what = f"samples with decoded pictures, {workers} worker{'s' * (workers > 1)}"
            for name, title in (("first", "first pass"), ("later", "later passes")):
                found.append(
                    (
                        f"{what}, {title}, against bare decoding",
                        f"{ms['bare wall'] / ms[f'{name} wall']:.0%} ({1000 / ms[f'{name} wall']:.0f}/s; by CPU "
                        f"{ms['bare cpu'] / ms[f'{name} cpu']:.0%}, {ms[f'{name} cpu'] - ms['bare cpu']:.2f} ms more)",
                        f">= {WANTED['rate']:.0%}",
                    )
                )
        write_dataset(made, num_rows, max(num_rows // 5000, 1), tasks=("vgdseg",))
        done = subprocess.run([sys.executable, "-m", "benchmarks.loading", str(made)], capture_output=True, check=True)
        figures = json.loads(done.stdout)
    what = f"loader on {num_rows:,} rows, 2 workers"
    return [
        *found,
        (f"{what}: first batch", f"{figures['first_s']:.2f} s", f"<= {WANTED['first']:g} s"),
        (
            f"{what}: memory of a worker",
            f"{figures['rss_mb']:.0f} MB ({figures['uss_mb']:.0f} MB its own)",
            f"<= {WANTED['memory']:g} MB",
        ),
        (f"{what}: samples", f"{figures['rate']:.0f}/s", ""),
    ]


if __name__ == "__main__":
    print(json.dumps(large(Path(sys.argv[1]))))
