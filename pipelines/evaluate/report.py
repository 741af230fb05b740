"""The result of an evaluation as a file and as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def write(result: Mapping[str, Any], folder: Path) -> None:
    """Write `result.json` and `result.txt` into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "result.txt").write_text(text(result) + "\n", encoding="utf-8")


def text(result: Mapping[str, Any]) -> str:
    """The scores in percent, one line each, and what was left out."""
    lines = [f"{result['task']} on {result['name']} ({result['benchmark'][:16]}), convention {result['convention']}"]
    lines += _lines(result["scores"], "")
    for reason, fault in result["excluded"].items():
        lines.append(f"  left out: {fault['count']:,} {reason}, such as {fault['examples'][0]}")
    return "\n".join(lines)


def _lines(scores: Mapping[str, Any], place: str) -> Iterator[str]:
    for name, value in scores.items():
        if isinstance(value, Mapping) and name != "per_category":
            yield from _lines(value, f"{place}{name}/")
        elif isinstance(value, float) or value is None:
            yield f"  {place}{name}: {'-' if value is None else f'{100 * value:.2f}'}"
