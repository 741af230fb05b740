"""`report.html` of a run: curves of every stage, scores, and predictions over time, in one self-contained file."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataengine.view import bundle
from pipelines.training import baselines, evaluating
from pipelines.training import run as running
from pipelines.training.recipe import StageSpec

FILE, PAGE = "report.html", "train.html"
MOST_POINTS = 400  # of a curve
MOST_TIMES = 6  # pictures of a sample, the truth apart
MAX_PICTURES = 6_000_000  # bytes of all pictures
# what is drawn: title, unit, names in metrics.jsonl with their labels
CHARTS = (
    ("Loss", "", {"loss": "all"}),
    (
        "Parts of the loss",
        "",
        {"language": "language", "mask": "mask", "dice": "dice", "class": "class"},
    ),
    ("Learning rate", "", {"rate": "rate"}),
    ("Norm of the gradient", "", {"gradient": "before clipping"}),
    ("Speed", "tokens/s", {"tokens_per_second": "tokens"}),
    ("Samples", "samples/s", {"samples_per_second": "samples"}),
    ("Time of a step", "s", {"seconds_per_step": "step"}),
    ("Waiting for data, and overhead", "%", {"data_wait_share": "waiting for data", "overhead_share": "overhead"}),
    ("Memory", "GiB", {"memory_gib": "at most so far"}),
)


def write(out: Path) -> Path:
    """Write the page of a run's folder, whatever it holds so far.

    Raises:
        TrainingError: it is no run.
    """
    run = running.read(out / running.RUN)
    room = [MAX_PICTURES]
    data = {
        "title": run.recipe.name,
        "description": run.recipe.description,
        "folder": str(out),
        "stages": [_stage(run, stage, room) for stage in run.recipe.stages],
        "results": _json(out / baselines.RESULTS),
        "datasets": run.datasets,
    }
    target, staged = out / FILE, out / f".{FILE}.{os.getpid()}.tmp"
    staged.write_text(bundle.page(PAGE, data), encoding="utf-8")
    staged.replace(target)
    return target


def _stage(run: running.Run, stage: StageSpec, room: list[int]) -> dict[str, Any]:
    folder = run.folder_of(stage)
    lines = list(_lines(folder / "metrics.jsonl"))
    steps = [line for line in lines if "loss" in line]
    scores = [line for line in lines if any(name.startswith("eval/") for name in line)]
    charts = []
    for title, unit, names in CHARTS:
        factor = 100.0 if unit == "%" else 1.0
        curves = {label: _curve(steps, name, factor) for name, label in names.items()}
        shown = [{"name": label, "points": points} for label, points in curves.items() if any(y for _, y in points)]
        if shown:
            charts.append({"title": title, "unit": unit, "curves": shown})
    return {
        "name": stage.name,
        "steps": steps[-1]["step"] if steps else 0,
        "tasks": sorted({str(line["task"]) for line in steps if "task" in line}),
        "settings": _settings(stage),
        "charts": charts,
        "scores": list(_scores(scores)),
        "pictures": list(_pictures(folder / evaluating.PICTURES, room)),
    }


def _settings(stage: StageSpec) -> dict[str, str]:
    """What a reader asks first."""
    train = stage.train
    return {
        "data": ", ".join(stage.data),
        "batch": f"{train.batch}, {train.micro} at once",
        "learning rate": f"{train.lr:g}, {train.schedule}",
        "precision": train.precision,
        "parallel": train.parallel,
        "learned": ", ".join(train.trainable) or "everything",
        **({"frozen": ", ".join(train.frozen)} if train.frozen else {}),
    }


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """Lines of a log; one that is cut off ends it."""
    if not file.exists():
        return
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            return
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield line


def _curve(lines: list[dict[str, Any]], name: str, factor: float = 1.0) -> list[tuple[float, float]]:
    """Points of a curve; where there are too many, means of neighbours."""
    points = [(float(line["step"]), factor * line[name]) for line in lines if isinstance(line.get(name), int | float)]
    each = -(-len(points) // MOST_POINTS) or 1
    groups = [points[at : at + each] for at in range(0, len(points), each)]
    return [
        (sum(x for x, _ in group) / len(group), float(f"{sum(y for _, y in group) / len(group):.5g}"))
        for group in groups
    ]


def _scores(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A chart for each exam and kind of score."""
    names = dict.fromkeys(name for line in lines for name in line if name.startswith("eval/"))
    exams: dict[tuple[str, str], list[str]] = {}
    for name in names:
        _, exam, *_, score = name.split("/")
        exams.setdefault((exam, score), []).append(name)
    for (exam, score), members in exams.items():
        curves = [
            {"name": "/".join(name.split("/")[2:-1]) or exam, "points": _curve(lines, name, 100.0)} for name in members
        ]
        yield {"title": f"{exam}: {score}", "unit": "%", "curves": curves}


def _pictures(folder: Path, room: list[int]) -> Iterator[dict[str, Any]]:
    """Pictures of samples over time, as long as there is room."""
    for place in sorted(folder.iterdir()) if folder.is_dir() else ():
        times = sorted(place.glob("step-*.webp"))
        chosen = [times[round(i * (len(times) - 1) / (MOST_TIMES - 1))] for i in range(MOST_TIMES)]
        files = [*dict.fromkeys(chosen if len(times) > MOST_TIMES else times), place / "truth.webp"]
        shown = []
        for file in files:
            data = file.read_bytes() if file.exists() else b""
            if not data or len(data) > room[0]:
                continue
            room[0] -= len(data)
            about = "truth" if file.stem == "truth" else f"step {int(file.stem.removeprefix('step-')):,}"
            shown.append({"about": about, "src": f"data:image/webp;base64,{base64.b64encode(data).decode()}"})
        if shown:
            yield {"sample": place.name, "times": shown}


def _json(file: Path) -> Mapping[str, Any] | None:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return read if isinstance(read, dict) else None
