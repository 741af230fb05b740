"""Fault points: named places where a test makes the process die or the disk fill up.

`DATAENGINE_FAULT=NAME:ACTION[:N]` acts at the N-th pass (1 by default) of the point NAME; ACTION is `kill` or
`term` (SIGKILL or SIGTERM to this process) or `enospc` (the OSError of a full disk). With `DATAENGINE_FAULT_ONCE=FILE`
it acts once over all processes: the one that creates the file. Without the variable a point costs a dictionary lookup.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter

_passes: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """Act if this point was chosen."""
    wanted = os.environ.get("DATAENGINE_FAULT")
    if not wanted:
        return
    point, action, *rest = wanted.split(":")
    if point != name:
        return
    _passes[name] += 1
    if _passes[name] < int(rest[0] if rest else 1):
        return
    marker = os.environ.get("DATAENGINE_FAULT_ONCE")
    if marker:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    elif action == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    else:
        raise ValueError(f"DATAENGINE_FAULT={wanted}: the action is kill, term or enospc")
