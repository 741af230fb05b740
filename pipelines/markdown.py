"""Markdown out of text that is not ours: what a source calls something stays text, whatever is in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

_ACTIVE = re.compile(r"[\\`*_\[\]<>|~&!#$@]|(?<=\w)(?=://)|(?<=www)(?=\.)|^(?=[-+=])|^\d+(?=[.)](?:\s|$))", re.I)
_URL = re.compile(r"https?://[A-Za-z0-9./_%?=,:;+-]+(#[A-Za-z0-9._-]*)?")


def printable(text: str) -> str:
    """Text on one line, without what is not seen: control characters, marks that turn the direction, surrogates."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def plain(text: str) -> str:
    """Text that is shown as it is, in a paragraph or a cell of a table: no markup, no HTML, no link."""

    def escape(match: re.Match[str]) -> str:
        found = match[0]
        return found + "\\" if found[:1].isdigit() or not found else "\\" + found

    return _ACTIVE.sub(escape, printable(text))


def code(text: str) -> str:
    """A span of code; not for a cell of a table."""
    text = printable(text)
    fence = "`" * (_longest_run(text) + 1)
    edge = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{edge}{text}{edge}{fence}"


def block(text: str, language: str = "") -> list[str]:
    """Lines of a block of code."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return [fence + language, *text.rstrip("\n").split("\n"), fence]


def address(url: str) -> str:
    """A URL as it is, which readers make a link of, where it is plainly one of the Web; else text."""
    return url if is_address(url) else plain(url)


def is_address(url: str) -> bool:
    """Whether a text is an address of the Web that needs no escape in Markdown."""
    return _URL.fullmatch(url) is not None


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a table, and an empty one. Cells are written as they are: pass text that is not ours through `plain`."""
    lines = [list(head), ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
