"""Executors: results, errors and limits are the same in this process and on Ray."""

from __future__ import annotations

import socket

import pytest

from dataengine.engine import faults
from dataengine.engine.executors import EngineError, run_local, run_ray


def double(job: int, task: int) -> int:
    if task == 13:
        raise ValueError("task 13 is bad")
    return job * task


def test_results_are_the_same(ray_session):
    tasks = list(range(10))
    local = [r for r in run_local(double, 2, tasks) if r is not None]
    ray = [r for r in run_ray(double, 2, tasks, workers=3) if r is not None]
    assert local == sorted(ray) == [2 * t for t in tasks]


def test_an_error_of_a_task_is_its_own(ray_session):
    for results in (run_local(double, 2, [1, 13, 2]), run_ray(double, 2, [1, 13, 2], workers=2)):
        with pytest.raises(ValueError, match="task 13 is bad"):
            list(results)


def test_a_cluster_that_does_not_answer_is_named(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(EngineError, match=f"127.0.0.1:{port}: no Ray cluster answers"):
        list(run_ray(double, 2, [1], workers=1))


def test_fault_points_act_at_their_pass_only(monkeypatch, tmp_path):
    monkeypatch.setattr(faults, "_passes", faults.Counter())
    monkeypatch.setenv("DATAENGINE_FAULT", "here:enospc:2")
    monkeypatch.setenv("DATAENGINE_FAULT_ONCE", str(tmp_path / "once"))
    faults.fault_point("there")
    faults.fault_point("here")
    with pytest.raises(OSError, match="No space left"):
        faults.fault_point("here")
    faults.fault_point("here")
