"""`report`: one self-contained HTML page of what a dataset holds: its numbers, its account of records, its samples."""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dataengine.errors import UserError
from dataengine.store.dataset import Dataset, open_dataset
from dataengine.store.files import Folder, public
from dataengine.view import bundle
from pipelines import gallery, mix
from pipelines.stats import stats

FILE = "report.html"
STATUS = "status.json"
MAX_BYTES = 8_000_000  # of the page
MOST_SAMPLES = 200  # of which rows and pictures fit
MOST_TEXT = 300  # characters of a name, licence, message, …
MOST_PAYLOAD = 1200  # characters of a quarantined record
MOST_ROWS = 5000  # of any table
EXAMPLES = 3  # of each reason for quarantine
MOST_REASONS = 40  # of which examples are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A page. seconds: what its parts took. samples: how many it shows."""

    html: bytes
    samples: int
    seconds: dict[str, float]


def make(uri: str, samples: int = 64, seed: int = 0, tokenizer: str | None = None) -> Report:
    """The page of a finished dataset, of at most `MAX_BYTES` bytes.

    Args:
        samples: how many to show, `MOST_SAMPLES` at most; see `gallery.draw`. seed: of their draw.
        tokenizer: see `stats`.
    Raises:
        DatasetError: it is not finished, or damaged. TokenizerError: the tokenizer cannot be used.
    """
    seconds: dict[str, float] = {}
    clock = time.monotonic()

    def lap(name: str) -> None:
        nonlocal clock
        now = time.monotonic()
        seconds[name] = round(now - clock, 2)
        clock = now

    dataset = open_dataset(uri)
    shown = replace(dataset, folder=Folder(public(uri)))  # what commands and texts call it
    data: dict[str, Any] = {"stats": stats(uri, tokenizer)}
    lap("numbers")
    drawn = gallery.draw(dataset, min(samples, MOST_SAMPLES), seed)
    data |= _facts(shown)
    data["status"] = _status(dataset)
    data["quarantine"] = _quarantine(dataset, shown.folder.uri)
    data["gallery"] = {"seed": seed, "strata": [[*key, size] for key, size in drawn.strata]}
    data = _printed(data)
    lap("account")
    room = MAX_BYTES - len(bundle.page(FILE, data).encode()) - 1000
    data["samples"] = gallery.cards(dataset, drawn.numbers, max(room, 0))
    lap("samples")
    html = bundle.page(FILE, data).encode()
    lap("page")
    return Report(html=html, samples=len(drawn.numbers), seconds=seconds)


def write(uri: str, out: str | None = None, samples: int = 64, seed: int = 0, tokenizer: str | None = None) -> Report:
    """Write the page: to `report.html` in the dataset's folder, or to a file by its path or URI.

    Raises:
        DatasetError, TokenizerError: see `make`. UserError: `out` is no file. OSError: it cannot be written.
    """
    folder, name = (Folder(uri), FILE) if out is None else _parted(out)
    found = make(uri, samples, seed, tokenizer)
    folder.replace(name, found.html)
    return found


def _parted(out: str) -> tuple[Folder, str]:
    """The folder of a file, and its name there."""
    place = Folder(out)
    is_else = place.path.exists() and not place.path.is_file() if place.is_local else place.kind() == "folder"
    if is_else:
        raise UserError(f"--out {out}: is no file; name one, such as {FILE}")
    return place.parent, place.path.name if place.is_local else out.partition("?")[0].rstrip("/").rpartition("/")[2]


# --- facts -----------------------------------------------------------------------------------------------------------


def _facts(dataset: Dataset) -> dict[str, Any]:
    manifest = dataset.manifest
    recipe = manifest["recipe"]
    return {
        "title": recipe["name"],
        "description": recipe.get("description") or "",
        "uri": dataset.folder.uri,
        "version": manifest["version"],
        "generator": manifest["generator"],
        "recipe": {name: recipe.get(name) for name in ("prompts", "variants")},
        "seed": manifest["seed"],
        "limit": manifest["limit"],
        "replays": manifest.get("replays"),
        "shards": len(manifest["shards"]),
        "objects": manifest["counts"]["objects"],
        "by_source": manifest["counts"]["by_source"],
        "sources": [
            {
                **{name: source.get(name) for name in ("task", "builder", "images", "options")},
                "source": key,
                "categories": len(source["categories"]),
            }
            for key, source in manifest["sources"].items()
        ],
        "forbidden": {name: manifest["forbidden"].get(name) for name in ("roles", "by_content", "missing")},
        "mixing": manifest.get("mixing"),
        "expected": manifest.get("expected") or {},
        "surprises": mix.surprises(manifest.get("expected") or {}),
        "validate": f"dataengine validate {shlex.quote(dataset.folder.uri)}",
    }


def _status(dataset: Dataset) -> dict[str, Any] | None:
    """What the build said last of itself; None where it did not, as builds that are called from Python do not."""
    try:
        status = json.loads(dataset.folder.read(STATUS))
    except (OSError, ValueError):
        return None
    names = ("state", "started", "updated", "images_per_s", "images", "images_before", "workers", "seconds", "command")
    return {name: status.get(name) for name in names} if isinstance(status, dict) else None


def _quarantine(dataset: Dataset, uri: str) -> dict[str, Any]:
    """How many records by unit and reason, some of them, and the command that builds them again."""
    reasons = dataset.manifest["counts"]["records"]["quarantined"]
    wanted = Counter({(unit, reason): number for unit, found in reasons.items() for reason, number in found.items()})
    return {
        "total": wanted.total(),
        "examples": _examples(dataset, dict(wanted.most_common(MOST_REASONS))),
        "replay": f"dataengine replay {shlex.quote(uri)}",
    }


def _examples(dataset: Dataset, wanted: Mapping[tuple[str, str], int]) -> list[dict[str, Any]]:
    """The first records of each reason. They are read a few at a time, since one may hold a megabyte."""
    left = {key: min(number, EXAMPLES) for key, number in wanted.items()}
    found = []
    for row in dataset.quarantined():
        if not any(left.values()):
            break
        key = (row["unit"], row["reason"])
        if left.get(key, 0) > 0:
            left[key] -= 1
            payload = row["payload"]
            found.append({**row, "payload": payload[:MOST_PAYLOAD], "left": max(len(payload) - MOST_PAYLOAD, 0)})
    return sorted(found, key=lambda row: (-wanted[row["unit"], row["reason"]], row["unit"], row["reason"]))


def _printed(value: Any, name: str = "") -> Any:
    """JSON values whose texts, lists and numbers a page can hold: long ones are cut, and say so."""
    if isinstance(value, str):
        most = MOST_PAYLOAD if name == "payload" else MOST_TEXT
        text = value if len(value) <= most else f"{value[:most]} … {len(value) - most:,} more"
        return text.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_printed(str(key)): _printed(item, str(key)) for key, item in list(value.items())[:MOST_ROWS]}
    if isinstance(value, list | tuple):
        return [_printed(item, name) for item in value[:MOST_ROWS]]
    if isinstance(value, int) and abs(value) >= 1 << 53:
        return str(value)
    return value
