"""What reviewers say of masks, in one file for each: a line a word, on the disk before it is answered, never changed.

`DIR/NAME.jsonl`; the first line says what the file is. An undo is a word as well, so the file tells how it came about.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dataengine.errors import UserError

FORMAT = 1
SUFFIX = ".jsonl"
Action = Literal["accept", "reject", "skip", "whole_image_bad"]
ACTIONS: tuple[Action, ...] = get_args(Action)
MAX_SECONDS = 3600.0
FIRST_SERIAL = 1  # of a file that was just made
_NAME = re.compile(r"\w[\w.@+-]{0,63}")
_ENTRY = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A word on an entry. seconds: that it took, at most an hour."""

    entry_id: str
    action: Action
    seconds: float


class Changed(UserError):
    """The words are others than who speaks believes: another page of the same reviewer has spoken."""


def check_reviewer(name: str) -> None:
    """Raises UserError: the name cannot be one of a file or stand in a decision."""
    if not _NAME.fullmatch(name):
        raise UserError(f"a reviewer's name has letters, digits and . @ + - _, 64 at most, not {name!r:.80}")


class Words:
    """The words of one reviewer, and their file, which this object alone writes while it is open.

    standing: those that were not taken back, oldest first.
    """

    def __init__(self, folder: Path, reviewer: str) -> None:
        """Open the file, or make it. What a killed writer left of a last line is cut off: it was not answered.

        Raises:
            UserError: the name is none, somebody else has the file open, or it is damaged.
        """
        check_reviewer(reviewer)
        folder.mkdir(parents=True, exist_ok=True)
        self.reviewer, self.path = reviewer, folder / f"{reviewer}{SUFFIX}"
        self.serial = 0  # lines that the file has
        self._lock = threading.Lock()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{self.path}: another program has it open") from None
            data = self.path.read_bytes()
            whole = data.rfind(b"\n") + 1
            self.serial = data.count(b"\n")
            if whole < len(data):
                os.ftruncate(self._file, whole)
            if not whole:
                self._append({"format": FORMAT, "reviewer": reviewer})
                _sync(folder)
            self.standing = list(_standing(self.path, data[:whole]))
        except BaseException:
            os.close(self._file)
            raise

    def close(self) -> None:
        os.close(self._file)

    def say(self, word: Said, serial: int) -> int:
        """Add a word; it is on the disk when this returns.

        Args:
            serial: number of lines that the speaker knows of, so that nothing is said twice or by two pages at once.
        Returns:
            the new serial.
        Raises:
            Changed
        """
        with self._lock:
            self._check(serial)
            self._append({"entry_id": word.entry_id, "action": word.action, "seconds": word.seconds})
            self.standing.append(word)
            return self.serial

    def undo(self, serial: int) -> Said:
        """Take back the newest word that stands. Raises Changed; UserError: there is none."""
        with self._lock:
            self._check(serial)
            if not self.standing:
                raise UserError("there is nothing to undo")
            self._append({"entry_id": self.standing[-1].entry_id, "action": "undo"})
            return self.standing.pop()

    def _check(self, serial: int) -> None:
        if serial != self.serial:
            raise Changed("this reviewer has said something in another window meanwhile")

    def _append(self, line: dict[str, Any]) -> None:
        data = (json.dumps(line) + "\n").encode("ascii")
        at = os.fstat(self._file).st_size
        try:
            if os.write(self._file, data) < len(data):
                raise OSError("the line was not written whole")
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, at)  # a part of a line would spoil the next one
            raise
        self.serial += 1


def _sync(folder: Path) -> None:
    """So that the name of a new file is on the disk as well."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def reviewers(folder: Path) -> list[str]:
    """Names of those who have a file in a folder, sorted."""
    return sorted(path.stem for path in folder.glob(f"*{SUFFIX}") if _NAME.fullmatch(path.stem))


def read(folder: Path, reviewer: str) -> list[Said]:
    """The words of a reviewer that stand, oldest first, while others may write. Raises UserError: a line is damaged."""
    return list(_standing(folder / f"{reviewer}{SUFFIX}", lines(folder, reviewer)))


def lines(folder: Path, reviewer: str) -> bytes:
    """The whole lines of a reviewer's file."""
    data = (folder / f"{reviewer}{SUFFIX}").read_bytes()
    return data[: data.rfind(b"\n") + 1]


def seconds_of(data: bytes) -> float:
    """What the words of some lines took, also those that were taken back."""
    return sum(json.loads(line).get("seconds", 0.0) for line in data.splitlines())


def _standing(path: Path, data: bytes) -> Iterator[Said]:
    """Words that were not taken back."""
    found: list[Said] = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            value = json.loads(line)
            if number == 1:
                if value["format"] != FORMAT:
                    raise ValueError
            elif value["action"] == "undo":
                if found.pop().entry_id != value["entry_id"]:
                    raise ValueError
            else:
                found.append(said_of(value))
        except (ValueError, KeyError, TypeError, IndexError, RecursionError, UserError):
            raise UserError(f"{path}: line {number} is no word of a reviewer") from None
    yield from found


def said_of(value: Any) -> Said:
    """A word from JSON values. Raises UserError."""
    if not isinstance(value, dict):
        raise UserError("a word is a JSON object")
    entry_id, action, seconds = (value.get(name) for name in ("entry_id", "action", "seconds"))
    if not isinstance(entry_id, str) or not _ENTRY.fullmatch(entry_id):
        raise UserError("entry_id is no id of an entry")
    if action not in ACTIONS:
        raise UserError(f"action is {', '.join(ACTIONS)}")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < float("inf"):
        raise UserError("seconds is no time")
    return Said(entry_id=entry_id, action=action, seconds=min(float(seconds), MAX_SECONDS))
