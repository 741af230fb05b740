"""What must hold for whole runs, in processes of their own: any split, interrupts, a full disk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dataengine.keyed import keyed

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("scipy")
pytest.importorskip("accelerate")

from tests.model.training.runs import PLAIN, TASKS, Loader, metrics  # noqa: E402

ROOT = Path(__file__).parents[3]
STEPS = 6
KILLED = int(keyed(0, "killed").integers(3, STEPS))  # after the checkpoint of step 2
TERM, KILL = int(signal.SIGTERM), int(signal.SIGKILL)
SHARED = {"steps": STEPS, "save_every": 2}
RUNS = {
    "one": {"stage": SHARED | {"micro": 4, "ema": 0.5}},
    "two": {"world": 2, "stage": SHARED | {"micro": 1, "ema": 0.5}},
    "sharded": {"world": 2, "stage": SHARED | {"parallel": "fsdp", "ema": 0.5}},
    "killed": {"stage": SHARED, "end": KILLED, "by": [KILL]},
    "went on": {"stage": SHARED, "resume": True, "out": "killed"},
    "asked": {"world": 2, "stage": SHARED, "end": 2, "by": [TERM], "of": 1},
    # another number of processes, which share the weights
    "elsewhere": {"world": 1, "stage": SHARED | {"micro": 3}, "resume": True, "out": "asked"},
    "asked twice": {"stage": SHARED | {"save_every": 0}, "end": 1, "by": [TERM, TERM]},
    "before": {"stage": {"steps": 2, "save_every": 1}, "end": 0, "by": [TERM], "tasks": ["chat"]},
    "full": {
        "stage": {"steps": 2, "save_every": 1},
        "largest": 1 << 20,
        "resume": True,
        "out": "before",
        "tasks": ["chat"],
    },
    "after": {"stage": {"steps": 2, "save_every": 1}, "resume": True, "out": "before", "tasks": ["chat"]},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(folder, exit codes by run, what the program said)."""
    root = tmp_path_factory.mktemp("runs")
    wanted = [run | {"out": str(root / run.get("out", name))} for name, run in RUNS.items()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.training.runs", json.dumps(wanted)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    codes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return root, dict(zip(RUNS, codes, strict=True)), done.stderr


def curve(root, name, key="loss"):
    return [record[key] for record in metrics(root / name)]


def told(root, name, rank=0):
    """(step, ids) in the order in which they were asked for."""
    return [(step, *ids) for step, *ids in map(json.loads, Path(f"{root / name}-{rank}.ids").read_text().splitlines())]


@pytest.mark.parametrize("name", ["two", "sharded"])
def test_a_step_is_the_same_however_it_is_split(runs, name):
    root, codes, errors = runs
    assert codes[name] == [0, 0], errors
    for key in ("loss", "language", "mask", "dice", "class", "gradient", "rate"):
        assert curve(root, name, key) == pytest.approx(curve(root, "one", key), rel=1e-3, abs=1e-6), key
    assert [record["task"] for record in metrics(root / name)] == list(TASKS) * 2
    from model.checkpoints import read_state

    once, split = read_state(root / "one" / "model"), read_state(root / name / "model")
    for key, weight in once.items():
        torch.testing.assert_close(split[key], weight, atol=1e-3, rtol=1e-2, msg=key)


def test_killed_and_gone_on_with_it_takes_the_samples_and_losses_of_an_uninterrupted_run(runs):
    root, codes, errors = runs
    assert codes["killed"] == [-KILL]
    assert codes["went on"] == [0], errors
    at_once = [(step, *(f"{TASKS[step % 3]}/{n}" for n in Loader(stage=PLAIN).ids(step))) for step in range(STEPS)]
    asked_for = told(root, "killed")
    joined = [
        (step, *(i for s, *ids in asked_for[first:] if s == step for i in ids)) for first, step in ((0, 0), (0, 1))
    ]
    assert joined == at_once[:2]
    start = KILLED // 2 * 2  # its newest checkpoint
    again = max(place for place, (step, *_) in enumerate(asked_for) if step == start) - 1
    resumed = asked_for[again:]
    assert [(step, *(i for s, *ids in resumed if s == step for i in ids)) for step in range(start, STEPS)] == at_once[
        start:
    ]
    assert [record["step"] for record in metrics(root / "killed")] == list(range(1, STEPS + 1))
    assert curve(root, "killed") == pytest.approx(curve(root, "one"), rel=1e-5)
    assert curve(root, "killed", "gradient") == pytest.approx(curve(root, "one", "gradient"), rel=1e-4)


def test_a_signal_to_one_process_stops_all_after_the_same_step_and_others_can_go_on(runs):
    root, codes, errors = runs
    assert codes["asked"] == [128 + TERM] * 2, errors
    assert codes["elsewhere"] == [0], errors
    assert max(step for step, *_ in told(root, "asked", 1)) == 2
    assert curve(root, "asked") == pytest.approx(curve(root, "one"), rel=1e-3)


def test_a_second_signal_ends_a_run_at_once(runs):
    root, codes, _ = runs
    assert codes["asked twice"] == [-TERM]
    assert not list((root / "asked twice" / "checkpoints").glob("step-*"))


def test_a_full_disk_leaves_the_checkpoint_before(runs):
    root, codes, errors = runs
    assert codes["before"] == [128 + TERM]
    assert codes["full"] == [1]
    assert "could not be written" in errors
    assert "the newest before it is step-00000001" in errors
    assert codes["after"] == [0], errors
    kept = sorted(folder.name for folder in (root / "before" / "checkpoints").iterdir())
    assert kept == ["step-00000001", "step-00000002"]
