"""Launchers: several processes, processes that fail, signals, and Ray Train, on a few steps of a small model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.training import launch, recipe, run

ROOT = Path(__file__).parents[3]


@pytest.fixture
def alone(small) -> Path:
    """The recipe with stage 3 alone, and nothing evaluated."""
    import yaml

    values = yaml.safe_load(small.read_text())
    values |= {"stages": [values["stages"][2] | {"evaluate": [], "evaluate_every": 0}], "baselines": False}
    small.write_text(yaml.safe_dump(values))
    return small


def run_of(file: Path, datasets: dict[str, str], out: Path, *changes: str) -> run.Run:
    made = run.Run(recipe=recipe.load(str(file), changes), datasets=datasets, out=str(out), cpu=True)
    run.write(made)
    return made


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "three" / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_where_one_process_fails_the_others_are_ended_and_it_is_told(tmp_path, capfd):
    (tmp_path / "rank-1.log").write_text("it broke")
    codes = ("import time; time.sleep(600)", "import sys; sys.exit(3)")
    children = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]
    assert launch._wait(children, tmp_path) == 3
    assert [child.returncode for child in children] == [-signal.SIGTERM, 3]
    assert "process 1 ended with 3:\nit broke" in capfd.readouterr().err


def test_an_interrupted_run_goes_on_where_it_was_with_other_processes(alone, datasets, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pipelines.cli", "train", str(alone), "--out", str(out), "--device", "cpu"]
    command += ["--data", f"mixed={datasets['mixed']}", "--steps", "100000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen([*command, "--processes", "2"], env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    for line in first.stdout:  # until it has learned something
        if line.startswith("step 2/"):
            break
    first.send_signal(signal.SIGINT)
    first.stdout.read()
    assert first.wait(timeout=60) == 128 + signal.SIGINT
    done = max(int(folder.name[5:]) for folder in (out / "three" / "checkpoints").glob("step-*"))
    again = subprocess.Popen([*command, "--resume"], env=environment, stdout=subprocess.PIPE, text=True)
    assert again.stdout is not None
    numbers = []
    for line in again.stdout:
        if line.startswith("step "):
            numbers.append(int(line.split()[1].partition("/")[0].replace(",", "")))
            break
    again.send_signal(signal.SIGTERM)
    again.stdout.read()
    assert again.wait(timeout=60) == 128 + signal.SIGTERM
    assert numbers == [done + 1]


def test_two_workers_of_ray_train_learn_what_one_process_learns(alone, datasets, tmp_path, ray_session):
    assert launch.local(run_of(alone, datasets, tmp_path / "one"), 1, lambda _: None) == 0
    assert launch.on_ray(run_of(alone, datasets, tmp_path / "two"), 2, lambda _: None) == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    assert (tmp_path / "two" / "three" / "model" / "config.json").is_file()


def test_the_command_trains_and_says_what_is_wrong(alone, datasets, tmp_path):
    out = tmp_path / "out"
    call = ["train", str(alone), "--out", str(out), "--device", "cpu", "--steps", "1"]
    missing = CliRunner().invoke(app, [*call, "--set", "datasets={}"])
    assert missing.exit_code == 1
    assert "--data mixed=DIR" in missing.output
    done = CliRunner().invoke(app, [*call, "--data", f"mixed={datasets['mixed']}"])
    assert done.exit_code == 0, done.output
    assert (out / "report.html").is_file()
    again = CliRunner().invoke(app, [*call, "--data", f"mixed={datasets['mixed']}"])
    assert again.exit_code == 1
    assert "add --resume" in again.output
