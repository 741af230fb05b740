"""Launchers: processes on this machine, or workers of Ray Train, all with the same loop (`run.go`)."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dataengine.errors import UserError
from pipelines.training import run as running
from pipelines.training.run import Run

TICK_S = 0.2
GRACE_S = 60.0  # that the others have to end when one has failed
_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
Say = Callable[[str], None]


class LaunchError(UserError):
    """Processes that did not come to an end by themselves."""


def is_launched() -> bool:
    """Whether this process is one of several already, by `torchrun`, `accelerate launch` or this module."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def here(run: Run, say: Say) -> int:
    """Train in this process; gives the exit code."""
    interrupted = running.go(run, say)
    return 0 if interrupted is None else 128 + interrupted


def local(run: Run, processes: int, say: Say) -> int:
    """Train in so many processes of this machine; gives the exit code.

    Signals are handed on to them. Where one fails the others are ended. What others than the first say goes to
    `rank-N.log` in the run's folder.
    """
    if processes == 1:
        return here(run, say)
    file = Path(run.out) / running.RUN
    children: list[subprocess.Popen[bytes]] = []
    with _handing_on(children):
        for rank in range(processes):
            with (Path(run.out) / f"rank-{rank}.log" if rank else Path(os.devnull)).open("wb") as log:
                children.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "pipelines.training.launch", str(file)],
                        env={**os.environ, **_environment(run, rank, processes)} | _meeting(children, processes),
                        stdout=None if rank == 0 else log,
                        stderr=None if rank == 0 else log,
                        start_new_session=True,  # a terminal's Ctrl-C comes once, from here
                    )
                )
        return _wait(children, Path(run.out))


_PORT: list[int] = []


def _meeting(children: list[Any], processes: int) -> dict[str, str]:
    """Where processes meet: a free port, found for the first one."""
    if not children:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            _PORT[:] = [free.getsockname()[1]]
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_PORT[0])}


def _environment(run: Run, rank: int, processes: int) -> dict[str, str]:
    """As `torchrun` has it; on the CPU, threads are shared out, and memory is kept."""
    from model.training.loop import malloc_environment

    found = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    found["LOCAL_WORLD_SIZE"] = str(processes)
    if run.cpu:
        found |= {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)), **malloc_environment()}
    return found


def _wait(children: list[subprocess.Popen[bytes]], out: Path) -> int:
    """The exit code of the first that failed, else 0."""
    failed: tuple[int, int] | None = None
    deadline = float("inf")
    while None in [child.poll() for child in children]:  # every one is asked
        for rank, child in enumerate(children):
            if child.returncode and failed is None:
                failed, deadline = (rank, child.returncode), time.monotonic() + GRACE_S
                _signal(children, signal.SIGTERM)
        if time.monotonic() > deadline:
            _signal(children, signal.SIGKILL)
        time.sleep(TICK_S)
    codes = [child.returncode for child in children]
    if failed is None:
        failed = next(((rank, code) for rank, code in enumerate(codes) if code), None)
    if failed is None:
        return 0
    rank, code = failed
    if rank:
        tail = (out / f"rank-{rank}.log").read_text(encoding="utf-8", errors="replace")[-2000:]
        sys.stderr.write(f"process {rank} ended with {code}:\n{tail}\n")
    return 128 - code if code < 0 else code


def _signal(children: list[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


@contextmanager
def _handing_on(children: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Within, SIGTERM and SIGINT are handed on; at its end no child is left."""

    def hand_on(number: int, _: object) -> None:
        _signal(children, number)

    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        yield
    finally:
        _signal(children, signal.SIGKILL)
        for child in children:
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def main(file: str) -> int:
    """One of several processes on this machine."""
    import ctypes

    with suppress(AttributeError, OSError, TypeError):  # another system than Linux
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    try:
        return here(running.read(Path(file)), lambda line: print(line, flush=True))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1


# --- Ray -------------------------------------------------------------------------------------------------------------


def on_ray(run: Run, processes: int, say: Say) -> int:
    """Train in so many workers of Ray Train: on the cluster of `RAY_ADDRESS`, else on one that is started here.

    The run's folder must be one that all workers see. Where a worker or its machine is lost, all go on from the newest
    checkpoint.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    mine = not ray.is_initialized()
    if mine:
        address = os.environ.get("RAY_ADDRESS", "local")
        ray.init(address=address, include_dashboard=False, log_to_driver=True, logging_level=logging.WARNING)
    try:
        trainer = TorchTrainer(
            _on_worker,
            train_loop_config={"run": run.model_dump_json()},
            torch_config=TorchConfig(backend="gloo" if run.cpu else "nccl"),
            scaling_config=ScalingConfig(num_workers=processes, use_gpu=not run.cpu),
            run_config=RunConfig(
                name="ray",
                storage_path=str(Path(run.out).absolute()),
                failure_config=FailureConfig(max_failures=2),
            ),
        )
        trainer.fit()
    except ray.train.TrainingFailedError as error:  # type: ignore[attr-defined]
        raise LaunchError(f"Ray Train: {error}") from None
    finally:
        if mine:
            ray.shutdown()
    return 0


def _on_worker(settings: dict[str, Any]) -> None:
    """What a worker of Ray Train does; it may be a second try."""
    run = Run.model_validate_json(settings["run"])
    running.go(run.model_copy(update={"resume": True}), lambda line: print(line, flush=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
