"""How the loops are compiled, and where the compiled code is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """The function, compiled on its first use and then kept on disk where there is a folder for it."""
    try:
        return numba.njit(cache=True, nogil=True)(function)  # type: ignore[return-value]
    except RuntimeError:  # no folder that could keep compiled code
        return numba.njit(nogil=True)(function)  # type: ignore[return-value]


@compiled
def _nothing() -> None:
    """Asked where its compiled code would be kept; never called."""


def cache_folder() -> str:
    """Where compiled code is kept; empty where it cannot be."""
    folder: str = _nothing.stats.cache_path or ""  # type: ignore[attr-defined]
    return folder
