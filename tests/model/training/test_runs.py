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

from model.checkpoints import read_state  # noqa: E402
from model.training import state  # noqa: E402
from model.training.parallel import Processes  # noqa: E402
from tests.model.training.runs import TASKS, metrics  # noqa: E402

ROOT = Path(__file__).parents[3]
STEPS = 5
KILLED = int(keyed(0, "killed").integers(3, STEPS))  # after the checkpoint of step 2
TERM, KILL = int(signal.SIGTERM), int(signal.SIGKILL)
SHARED = {"steps": STEPS, "save_every": 2, "ema": 0.5}
SHORT = {"stage": {"steps": 2}, "tasks": ["chat"], "out": "short"}
RUNS = {
    "one": {"stage": SHARED | {"micro": 4}},
    "killed": {"stage": SHARED, "end": KILLED, "by": [KILL]},
    "went on": {"stage": SHARED, "resume": True, "out": "killed"},
    "two": {"world": 2, "stage": SHARED | {"micro": 1}, "end": 2, "by": [TERM], "of": 1},
    "sharded": {"world": 2, "stage": SHARED | {"parallel": "fsdp"}, "resume": True, "out": "two"},
    "asked twice": {"stage": SHARED | {"save_every": 0}, "end": 1, "by": [TERM, TERM]},
    "before": SHORT | {"end": 0, "by": [TERM]},
    "full": SHORT | {"resume": True, "largest": 1 << 20},
    "after": SHORT | {"resume": True},
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


def test_a_step_is_the_same_for_any_micro_batches_processes_and_shares_of_the_weights(runs):
    root, codes, errors = runs
    assert codes["sharded"] == [0, 0], errors
    assert [record["task"] for record in metrics(root / "two")] == [TASKS[step % 3] for step in range(STEPS)]
    for key in ("loss", "language", "mask", "dice", "class", "gradient", "rate"):
        assert curve(root, "two", key) == pytest.approx(curve(root, "one", key), rel=1e-3, abs=1e-6), key
    once, split = (read_state(root / name / "model") for name in ("one", "two"))
    for key, weight in once.items():
        torch.testing.assert_close(split[key], weight, atol=1e-3, rtol=1e-2, msg=key)
    # what was shared out is stored whole
    once, split = (stored(root / name / "checkpoints" / f"step-{STEPS:08d}") for name in ("one", "two"))
    assert once.keys() == split.keys()
    for key, value in once.items():
        torch.testing.assert_close(split[key], value, atol=1e-3, rtol=1e-2, msg=key)


def stored(folder):
    """All tensors of a checkpoint."""
    found = state.Found(folder=folder, step=STEPS, run={})
    tensors = {name: torch.zeros(shape) for name, shape in state.stored_shapes(found).items()}
    processes = Processes(rank=0, world=1, device=torch.device("cpu"))
    state.Checkpoints(folder.parent, 1, processes).load(found, tensors)
    return tensors


def test_killed_and_gone_on_with_it_takes_the_samples_and_losses_of_an_uninterrupted_run(runs):
    root, codes, errors = runs
    assert codes["killed"] == [-KILL]
    assert codes["went on"] == [0], errors
    # micro-batches of two samples, two a step
    at_once = [
        (step, *(f"{TASKS[step % 3]}/{number}" for number in (first, first + 1)))
        for step in range(STEPS)
        for first in (4 * step, 4 * step + 2)
    ]
    saved = KILLED // 2 * 2  # step of its newest checkpoint
    assert told(root, "killed") == at_once[: 2 * KILLED] + at_once[2 * saved :]
    assert [record["step"] for record in metrics(root / "killed")] == list(range(1, STEPS + 1))
    assert curve(root, "killed") == pytest.approx(curve(root, "one"), rel=1e-5)
    assert curve(root, "killed", "gradient") == pytest.approx(curve(root, "one", "gradient"), rel=1e-4)


def test_a_signal_to_one_process_stops_all_after_the_same_step(runs):
    root, codes, errors = runs
    assert codes["two"] == [128 + TERM] * 2, errors
    assert {step for step, *_ in told(root, "two", 0)[: 3 * 2]} == {0, 1, 2}
    assert told(root, "two", 1)[3 * 2][0] == 3  # the first that the next run asked for


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
    kept = sorted(folder.name for folder in (root / "short" / "checkpoints").iterdir())
    assert kept == ["step-00000001", "step-00000002"]
