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
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from dataengine.errors import UserError
from model.training.parallel import PATIENCE
from pipelines.training import run as running
from pipelines.training.run import Run

TICK_S = 0.2
GRACE_S = 60.0  # that the others have to end when one has failed
TRIES = 2  # more, after workers were lost
STOP, FAILED = "ray-stop", "ray-failed"  # files by which the driver and its workers tell each other
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
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    with _handing_on(lambda number: _signal(children, number)) as handed_on:
        try:
            for rank in range(processes):
                with (Path(run.out) / f"rank-{rank}.log" if rank else Path(os.devnull)).open("wb") as log:
                    children.append(
                        subprocess.Popen(
                            [sys.executable, "-m", "pipelines.training.launch", str(file)],
                            env={**os.environ, **_environment(run, rank, processes), **meeting},
                            stdout=None if rank == 0 else log,
                            stderr=None if rank == 0 else log,
                            start_new_session=True,  # a terminal's Ctrl-C comes once, from here
                        )
                    )
            return _wait(children, Path(run.out), handed_on)
        finally:  # no child is left
            _signal(children, signal.SIGKILL)
            for child in children:
                child.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _environment(run: Run, rank: int, processes: int) -> dict[str, str]:
    """As `torchrun` has it; on the CPU, threads are shared out."""
    found = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    found["LOCAL_WORLD_SIZE"] = str(processes)
    if run.cpu:
        found |= {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    return found


def _wait(children: list[subprocess.Popen[bytes]], out: Path, handed_on: Collection[int] = ()) -> int:
    """The exit code of the first that failed, else of the first that was interrupted, else 0.

    Args:
        handed_on: signals that the children were sent, to end by them; it may become more meanwhile.
    """
    failed: tuple[int, int] | None = None
    deadline = float("inf")
    while None in [child.poll() for child in children]:  # every one is asked
        for rank, child in enumerate(children):
            if child.returncode and failed is None and child.returncode - 128 not in handed_on:
                failed, deadline = (rank, child.returncode), time.monotonic() + GRACE_S
                _signal(children, signal.SIGTERM)
        if time.monotonic() > deadline:
            _signal(children, signal.SIGKILL)
        time.sleep(TICK_S)
    codes = [child.returncode for child in children]
    if failed is None:
        bad = [(rank, code) for rank, code in enumerate(codes) if code]
        failed = next((each for each in bad if each[1] - 128 not in handed_on), None)
        if failed is None:
            return bad[0][1] if bad else 0
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
def _handing_on(hand_on: Callable[[int], None]) -> Iterator[set[int]]:
    """Within, SIGTERM and SIGINT are handed on; yields those that came."""
    came: set[int] = set()

    def note(number: int, _: object) -> None:
        came.add(number)
        hand_on(number)

    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield came
    finally:
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


@contextmanager
def ray_session() -> Iterator[None]:
    """A session of Ray: the one that there is, that of `RAY_ADDRESS`, or one that is started here and ends here."""
    import ray

    mine = not ray.is_initialized()
    if mine:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = os.environ.get("RAY_ADDRESS", "local")
        ray.init(address=address, include_dashboard=False, log_to_driver=True, logging_level=logging.WARNING)
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


def has_gpus() -> bool:
    """Whether the cluster of this session has any."""
    import ray

    return ray.cluster_resources().get("GPU", 0) > 0


def on_ray(run: Run, processes: int) -> int:
    """Train in so many workers of Ray Train, in the session that there is; gives the exit code.

    The run's folder must be one that all workers see. Where a worker or its machine is lost, all go on from the newest
    checkpoint, `TRIES` times; what a user must mend is not tried again. SIGTERM and SIGINT end it with a checkpoint.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    out = Path(run.out).absolute()
    for name in (STOP, FAILED):
        (out / name).unlink(missing_ok=True)
    trainer = TorchTrainer(
        _on_worker,
        train_loop_config={"run": run.model_dump_json()},
        torch_config=TorchConfig(backend="gloo" if run.cpu else "nccl", timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=ScalingConfig(num_workers=processes, use_gpu=not run.cpu),
        run_config=RunConfig(name="ray", storage_path=str(out), failure_config=FailureConfig(max_failures=TRIES)),
    )
    with _handing_on(lambda number: _ask(out, number)) as came:
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:  # type: ignore[attr-defined]
            raise LaunchError(_failed(out) or f"Ray Train: {error}") from None
    if said := _failed(out):
        raise LaunchError(said)
    return 128 + min(came) if came else 0


def _failed(out: Path) -> str | None:
    """What a worker said that a user must mend."""
    file = out / FAILED
    return file.read_text("utf-8") if file.exists() else None


def _ask(out: Path, number: int) -> None:
    """Write for the workers which signal came."""
    staged = out / f".{STOP}.tmp"
    staged.write_text(str(number), encoding="ascii")
    staged.replace(out / STOP)


def _asked(out: Path) -> int | None:
    try:
        return int((out / STOP).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _on_worker(settings: dict[str, Any]) -> None:
    """What a worker of Ray Train does; it may be a second try.

    After what a user must mend, it does nothing: the first try raises, so that no other worker waits for it, and the
    second ends at once.
    """
    from model.training.loop import Asked

    run = Run.model_validate_json(settings["run"])
    out = Path(run.out)
    if _failed(out):
        return
    try:
        again = run.model_copy(update={"resume": True})
        running.go(again, lambda line: print(line, flush=True), Asked(look=partial(_asked, out)))
    except UserError as error:
        staged = out / f".{FAILED}.{os.getpid()}.tmp"
        staged.write_text(str(error), encoding="utf-8")
        staged.replace(out / FAILED)
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
