"""Errors that a user can mend. The command line prints them as one line; anything else is a defect of the program."""

from __future__ import annotations


class UserError(ValueError):
    """Something given to the program cannot be used; the message names file, record and reason."""


class ReasonError(UserError):
    """A record that cannot be used. `reason` is a stable identifier for accounting, the message is for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, so that it can be pickled
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])
