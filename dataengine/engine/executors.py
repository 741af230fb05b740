"""Executors: the same tasks in this process, or on Ray.

Only the job's description, tasks and their results cross process borders, never images or masks. A task may run more
than once (Ray repeats it when its worker dies); it is the commit that makes its output appear once.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from dataengine.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
RETRIES = 4  # of a task whose worker died
TICK_S = 1.0


class EngineError(UserError):
    """A task that could not be run, for a reason that is not in its data."""


def run_local(work: Callable[[Any, Task], Result], job: Any, tasks: Sequence[Task]) -> Generator[Result | None]:
    """Run the tasks one after the other in this process."""
    for task in tasks:
        yield work(job, task)


def run_ray(
    work: Callable[[Any, Task], Result], job: Any, tasks: Sequence[Task], workers: int
) -> Generator[Result | None]:
    """Run at most `workers` tasks at a time on Ray; yields results as they come, and None now and then meanwhile.

    A session that this process has already started is used; else one is started on this machine, or joined where
    `RAY_ADDRESS` names a cluster, and left at the end.

    Raises:
        EngineError: the cluster does not answer, or a task's worker died again and again.
        Exception: what a task raised, as it raised it.
    """
    with ray_session(workers) as ray:
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(work)
        shared = ray.put(job)
        waiting = list(reversed(tasks))
        running: dict[Any, Task] = {}
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    task = waiting.pop()
                    running[remote.remote(shared, task)] = task
                done, _ = ray.wait(list(running), num_returns=1, timeout=TICK_S)
                if not done:
                    yield None
                for ref in done:
                    task = running.pop(ref)
                    yield _result(ray, ref, task)
        finally:
            for ref in running:  # let what has begun end or fail by itself, without being repeated
                ray.cancel(ref, force=False, recursive=False)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=60)


@contextmanager
def ray_session(workers: int) -> Iterator[Any]:
    """The module `ray`, in a session: the one that this process has started, or one for as long as the context is open.

    Raises:
        EngineError: the cluster that `RAY_ADDRESS` names does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    mine = not ray.is_initialized()
    if mine:
        _start(ray, workers)
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def _result(ray: Any, ref: Any, task: Any) -> Any:
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        what = "ran out of memory" if isinstance(error, ray.exceptions.OutOfMemoryError) else "died"
        raise EngineError(f"{task}: its worker {what} {RETRIES + 1} times") from None


def _start(ray: Any, workers: int) -> None:
    import logging

    address = os.environ.get("RAY_ADDRESS", "local")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address in ("local", ""):
        options |= {"num_cpus": workers, "include_dashboard": False, "object_store_memory": 128 << 20}
        ray.init(address="local", **options)
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            raise EngineError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error})") from None
    ray.init(address=address, **options)
