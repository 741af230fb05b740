"""What a running build shows: a bar on a terminal, a line every ten seconds elsewhere, `status.json` for tools."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from dataengine.store.commits import Commit
from dataengine.store.files import Folder, public
from pipelines.plan import Plan

LINE_EVERY_S = 10.0
STATUS_EVERY_S = 1.0
STATUS = "status.json"


def command_line() -> str | None:
    """The command that runs, quoted for a shell and without the secrets of its URIs; None in another program."""
    if Path(sys.argv[0]).name not in ("dataengine", "cli.py"):
        return None
    return shlex.join(["dataengine", *map(public, sys.argv[1:])])


class Progress(Protocol):
    """What is told how a build goes on."""

    def start(self, out: Folder, workers: int = 1) -> None: ...
    def stage(self, name: str) -> None: ...
    def say(self, text: str) -> None: ...
    def plan(self, plan: Plan, done: Sequence[Commit]) -> None: ...
    def update(self, commit: Commit | None) -> None: ...
    def end(self, manifest: dict[str, Any]) -> None: ...


class _Silent:
    def start(self, out: Folder, workers: int = 1) -> None:
        pass

    def stage(self, name: str) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def plan(self, plan: Plan, done: Sequence[Commit]) -> None:
        pass

    def update(self, commit: Commit | None) -> None:
        pass

    def end(self, manifest: dict[str, Any]) -> None:
        pass


silent: Progress = _Silent()


class Console:
    """Progress for a person at a terminal, or a log file; and for tools, `status.json` in the output."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._bar_task: Any = None
        self._out: Folder | None = None
        self._began = time.time()
        self._ended: float | None = None
        self._first = 0
        self._images = self._total = self._tasks = self._tasks_total = self._samples = self._quarantined = 0
        self._last_line = self._last_status = 0.0
        self._workers = 1
        self._seconds: dict[str, float] = {}
        self._stage: tuple[str, float] | None = None

    def start(self, out: Folder, workers: int = 1) -> None:
        self._out = out
        self._workers = workers

    def stage(self, name: str) -> None:
        """What the build does from now on; what it did before took until now."""
        self._end_stage()
        self._stage = (name, time.monotonic())

    def _end_stage(self) -> None:
        if self._stage is not None:
            name, began = self._stage
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - began
            self._stage = None

    def say(self, text: str) -> None:
        self._status("indexing", force=True, message=text)
        self._print(text)

    def plan(self, plan: Plan, done: Sequence[Commit]) -> None:
        self.stage("building")
        self._began = self._last_line = time.time()
        self._total = sum(task.stop - task.start for task in plan.tasks)
        self._tasks_total = len(plan.tasks)
        for commit in done:
            self._count(commit)
        self._first = self._images
        if self._first:
            self._print(f"{self._tasks} of {self._tasks_total} tasks were done before")
        if self._stream.isatty():
            self._open_bar()
        self._status("building", force=True)

    def update(self, commit: Commit | None) -> None:
        if commit is not None:
            self._count(commit)
        now = time.time()
        if self._bar is not None:
            self._bar.update(self._bar_task, completed=self._images, rate=f"{self._rate():.0f}/s")
        elif now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            self._print(self._line())
        self._status("building")

    def end(self, manifest: dict[str, Any]) -> None:
        self.close()
        self._end_stage()
        self._ended = time.time()
        self._samples = manifest["counts"]["samples"]
        if self._out is not None:
            self._status("done", force=True)

    def reported(self, seconds: float) -> None:
        """The report was written, after the end."""
        self._seconds["report"] = seconds
        if self._out is not None:
            with contextlib.suppress(OSError):
                self._status("done", force=True)

    def fail(self, message: str, interrupted: bool = False) -> None:
        """The build stopped."""
        self.close()
        with contextlib.suppress(OSError):  # the output itself may be what failed
            self._status("interrupted" if interrupted else "failed", force=True, message=message)

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _count(self, commit: Commit) -> None:
        self._tasks += 1
        self._images += commit.stop - commit.start
        self._samples += commit.rows
        self._quarantined += commit.account.num_quarantined()

    def _rate(self) -> float:
        until = time.time() if self._ended is None else self._ended
        return (self._images - self._first) / max(until - self._began, 1e-6)

    def _eta_s(self) -> float | None:
        rate = self._rate()
        return (self._total - self._images) / rate if rate > 0 else None

    def _line(self) -> str:
        eta = self._eta_s()
        left = "" if eta is None else f", about {eta:.0f} s left"
        return (
            f"{self._images} of {self._total} images, {self._samples} samples, {self._quarantined} quarantined, "
            f"{self._rate():.0f} images/s{left}"
        )

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text)
        else:
            print(text, file=self._stream, flush=True)

    def _open_bar(self) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("images"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=RichConsole(file=self._stream))
        self._bar_task = self._bar.add_task("images", total=self._total, completed=self._images, rate="")
        self._bar.start()

    def _status(self, state: str, force: bool = False, message: str | None = None) -> None:
        now = time.time()
        if self._out is None or (not force and now - self._last_status < STATUS_EVERY_S):
            return
        self._last_status = now
        status = {
            "state": state,
            "images": self._images,
            "images_total": self._total,
            "tasks": self._tasks,
            "tasks_total": self._tasks_total,
            "samples": self._samples,
            "quarantined": self._quarantined,
            "images_per_s": round(self._rate(), 2),
            "eta_s": self._eta_s(),
            "started": self._began,
            "updated": now,
            "pid": os.getpid(),
            "images_before": self._first,
            "workers": self._workers,
            "command": command_line(),
            "seconds": {name: round(seconds, 3) for name, seconds in self._seconds.items()},
        }
        if message is not None:
            status["message"] = message
        self._out.replace(STATUS, json.dumps(status, indent=1).encode() + b"\n")
