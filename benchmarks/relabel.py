"""What a round of labelling costs besides its labeler: pictures a second, by CPU time and by the clock, and memory."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from dataengine import masks
from dataengine.ledger.records import Concept, Entry, Picture, Proposal
from pipelines.relabel import labelers, pipeline
from pipelines.relabel.labelers import Question, Spec
from pipelines.relabel.pipeline import Rules, Settings

HEIGHT, WIDTH, MASKS, FILES = 480, 640, 8, 40
WARM_UP = 128  # pictures, by which compiled loops and libraries are loaded


class Free:
    """A labeler that costs nothing: eight masks that it has ready, other ones for each picture."""

    name, revision, settings, needs_pixels = "free", "1", "{}", True

    def load(self) -> None:
        rng, self._ready = np.random.default_rng(0), []
        yy, xx = np.mgrid[:HEIGHT, :WIDTH]
        for number in range(64):
            y, x, size = rng.uniform(60, 420), rng.uniform(60, 580), rng.uniform(20, 80)
            angle = np.arctan2(yy - y, xx - x)
            outline = size * (1 + 0.2 * np.sin(5 * angle + number) + 0.05 * np.sin(31 * angle))
            rle = masks.encode(np.hypot(yy - y, xx - x) < outline)
            concept = Concept(text=f"kind {number % 8}", category_id=number % 8)
            self._ready.append(Proposal(rle=rle, concept=concept, score=0.9, predicted_iou=0.93, stability=0.97))

    def label(self, questions: Sequence[Question]) -> list[list[Proposal]]:
        starts = [int(question.picture.key) % (64 - MASKS) for question in questions]
        return [self._ready[start : start + MASKS] for start in starts]


class Pictures:
    """So many pictures, of which only a few are different files."""

    def __init__(self, folder: Path, number: int) -> None:
        self._number, self._files = number, []
        for place in range(FILES):
            data = jpeg(place)
            file = folder / f"{place}.jpg"
            file.write_bytes(data)
            self._files.append((str(file), sha256(data).hexdigest()))

    def pictures(self) -> Iterator[Picture]:
        for number in range(self._number):
            path, digest = self._files[number % FILES]
            yield Picture(key=f"{number:08}", path=path, sha256=digest, height=HEIGHT, width=WIDTH)

    def entries(self, key: str) -> list[Entry]:
        return []


def jpeg(seed: int) -> bytes:
    """A picture of some 100 kB, as photographs of this size have."""
    import io

    from PIL import Image

    rng, layers = np.random.default_rng(seed), np.zeros((HEIGHT, WIDTH, 3))
    for size, strength in ((6, 70), (40, 35), (160, 18)):
        noise = rng.uniform(0, 255, (size * 3 // 4, size, 3)).astype(np.uint8)
        layers += strength / 128 * np.asarray(Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    file = io.BytesIO()
    Image.fromarray(np.clip(layers, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def measure(number: int, filters: str, workers: int = 1) -> dict[str, Any]:
    """A round once it is warm: pictures a second; in this process also for a CPU second, and memory in MB."""
    from dataengine.ledger import records
    from dataengine.records import Category
    from pipelines.relabel.chain import Chain
    from pipelines.relabel.merge import Rules as Merge
    from pipelines.relabel.rounds import ChainFilters, LedgerMerge

    by = records.Labeler(name="free", revision="1")
    kinds = tuple(Category(id=n, name=f"kind {n}", text=f"kind {n}") for n in range(8))
    rules = Rules(
        filters=ChainFilters(chain=Chain.parse(filters), labeler="free", seed=0),
        merge=LedgerMerge(rules=Merge(), round=1, labeler=by, categories=kinds),
        facts={},
    )
    times: dict[int, float] = {}
    clock: dict[int, float] = {}
    memory: dict[int, float] = {}

    def tick(done: int, of: int) -> None:
        times[done], clock[done] = time.process_time(), time.monotonic()
        memory[done] = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    with tempfile.TemporaryDirectory() as folder:
        snapshot = Pictures(Path(folder), number)
        spec = Spec(name="benchmarks.relabel:Free", settings={})
        labelers.make(spec)
        pipeline.run(snapshot, spec, rules, f"{folder}/out", Settings(workers=workers), tick=tick)
    first = min(done for done in times if done >= WARM_UP * workers)
    last = max(times)
    told = {"pictures": last, "per_s": (last - first) / (clock[last] - clock[first])}
    if workers > 1:
        return told
    return {
        **told,
        "per_cpu_s": (last - first) / (times[last] - times[first]),
        "early_mb": memory[min(done for done in memory if done >= last // 5)],
        "late_mb": memory[last],
    }


def rows(number: int = 5000) -> list[tuple[str, str, str]]:
    """What was measured, the figure, the target."""
    found = []
    for filters in ("none", "default"):
        given = ["--pictures", str(number), "--filters", filters]
        made, two = _run(given), _run([*given, "--workers", "2"])
        told = f"{made['per_cpu_s']:.0f} for a CPU second"
        flat = f"{made['early_mb']:.0f} MB after a fifth, {made['late_mb']:.0f} MB at the end"
        found.append(
            (f"labelling {number:,} pictures, 8 masks each, filters `{filters}`", told, "≥ 100 (200 on 2 cores)")
        )
        found.append(("memory of that", flat, "flat"))
        found.append(("the same, two workers on Ray", f"{two['per_s']:.0f} a second by the clock", "≥ 200"))
    return found


def _run(arguments: Sequence[str]) -> dict[str, Any]:
    """In a process of its own, so that nothing is warm and no memory is of another."""
    run = [sys.executable, "-m", "benchmarks.relabel", *arguments, "--json"]
    made: dict[str, Any] = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--filters", default="default")
    parser.add_argument("--workers", type=int, default=1, help="two or more work on Ray")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    made = measure(arguments.pictures, arguments.filters, arguments.workers)
    print(json.dumps(made) if arguments.json else made)


if __name__ == "__main__":
    main()
