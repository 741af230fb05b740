"""Launchers: several processes, processes that fail, signals, and Ray Train, on a few steps of a small model."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dataengine.errors import UserError
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


def test_processes_that_end_by_a_signal_that_was_handed_on_have_not_failed(tmp_path, capfd):
    codes = (f"import sys; sys.exit({128 + signal.SIGINT})", f"import sys, time; time.sleep(1); sys.exit({130})")
    children = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]
    assert launch._wait(children, tmp_path, {signal.SIGINT}) == 128 + signal.SIGINT
    assert [child.returncode for child in children] == [130, 130]  # the second had its time
    assert capfd.readouterr().err == ""


def test_a_killed_run_learns_the_same_as_one_that_was_not(alone, datasets, tmp_path):
    """Of the real loader with a worker, prompts and wording drawn anew; killed at whichever step it is at."""
    changes = ("three.steps=8", "three.workers=1", "three.mixing={rule: weights, weights: {vgdseg: 2, genseg: 1}}")
    assert launch.local(run_of(alone, datasets, tmp_path / "whole", *changes), 1, lambda _: None) == 0
    out = tmp_path / "killed"
    run_of(alone, datasets, out, *changes)
    command = [sys.executable, "-m", "pipelines.training.launch", str(out / "run.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    last = random.randint(1, 6)
    for line in first.stdout:
        if line.startswith(f"step {last}/"):
            break
    first.kill()
    first.wait()
    assert not (out / "three" / "model").exists()
    again = json.loads((out / "run.json").read_text()) | {"resume": True}
    assert launch.local(run.Run.model_validate(again), 1, lambda _: None) == 0
    assert losses(out) == pytest.approx(losses(tmp_path / "whole"), rel=1e-5), f"killed at step {last}"


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
    assert "ended with" not in first.stdout.read()
    assert first.wait(timeout=60) == 128 + signal.SIGINT
    assert (out / "report.html").is_file()
    assert [f.name for f in out.iterdir() if f.name.endswith(".tmp")] == []
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
    assert launch.on_ray(run_of(alone, datasets, tmp_path / "two"), 2) == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    assert (tmp_path / "two" / "three" / "model" / "config.json").is_file()


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "pipelines.cli"],
    "accelerate": [
        *("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "pipelines.cli"),
    ],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_of_others_learn_what_one_process_learns(alone, datasets, tmp_path, launcher):
    assert launch.local(run_of(alone, datasets, tmp_path / "one"), 1, lambda _: None) == 0
    command = [sys.executable, *LAUNCHERS[launcher], "train", str(alone), "--out", str(tmp_path / "two")]
    command += ["--device", "cpu", "--data", f"mixed={datasets['mixed']}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


def test_what_a_user_must_mend_is_not_tried_again_by_ray(alone, datasets, tmp_path, ray_session):
    made = run_of(alone, datasets, tmp_path / "out", "three.lr_mult={nowhere: 2.0}")
    with pytest.raises(launch.LaunchError, match="lr_mult: no weight of the model begins with 'nowhere'"):
        launch.on_ray(made, 1)


def test_a_worker_tells_what_must_be_mended_and_a_second_one_does_not_train(alone, datasets, tmp_path, monkeypatch):
    made = run_of(alone, datasets, tmp_path / "out", "three.lr_mult={nowhere: 2.0}")
    settings = {"run": made.model_dump_json()}
    with pytest.raises(UserError, match="no weight of the model begins with 'nowhere'"):
        launch._on_worker(settings)
    assert "nowhere" in (tmp_path / "out" / launch.FAILED).read_text()
    trained: list[object] = []
    monkeypatch.setattr(launch.running, "go", lambda *arguments: trained.append(arguments))
    launch._on_worker(settings)
    assert trained == []
    (tmp_path / "out" / launch.FAILED).unlink()
    launch._on_worker(settings)
    assert len(trained) == 1


def test_a_run_by_ray_that_is_asked_to_stop_ends_with_a_checkpoint(alone, datasets, tmp_path, ray_session, monkeypatch):
    out = tmp_path / "out"
    made = run_of(alone, datasets, out, "three.steps=100000", "three.save_every=0")
    monkeypatch.setattr(launch, "_handing_on", asking_when(out / "three" / "metrics.jsonl", signal.SIGTERM))
    assert launch.on_ray(made, 1) == 128 + signal.SIGTERM
    (checkpoint,) = (out / "three" / "checkpoints").iterdir()
    assert checkpoint.name != "step-00100000"


def asking_when(file: Path, number: int):
    """As if a signal came when a file is there."""

    @contextmanager
    def handing_on(hand_on):
        came: set[int] = set()

        def watch() -> None:
            while not (file.exists() and file.read_text()):
                time.sleep(0.1)
            came.add(number)
            hand_on(number)

        threading.Thread(target=watch, daemon=True).start()
        yield came

    return handing_on


def test_a_folder_is_for_one_run_at_a_time(alone, datasets, tmp_path):
    from dataengine.store.files import Folder
    from dataengine.store.lock import driver_lock

    out = tmp_path / "out"
    out.mkdir()
    call = ["train", str(alone), "--out", str(out), "--device", "cpu", "--data", f"mixed={datasets['mixed']}"]
    with driver_lock(Folder(str(out))):
        refused = CliRunner().invoke(app, call)
    assert refused.exit_code == 1
    assert "another" in refused.output
    assert [f.name for f in out.iterdir()] == []


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
