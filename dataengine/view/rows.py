"""A sample as JSON values: the raw row, and what a card needs beside it."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataengine.sample import Image, Sample
from dataengine.store.dataset import Dataset
from dataengine.store.files import public

SAFE_INTEGER = 2**53 - 1  # larger whole numbers are rounded by JavaScript


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A picture for a page. url: `data:` or a path of the server, or None. error: why there is none."""

    url: str | None = None
    error: str | None = None


def printable(value: Any) -> Any:
    """A sample, or a part of it, as JSON values; bytes of pictures as their number, other bytes as text."""
    if isinstance(value, Image):
        return {"path": value.path, "bytes": None if value.bytes is None else f"<{len(value.bytes)} bytes>"}
    if dataclasses.is_dataclass(value):
        return {f.name: printable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [printable(item) for item in value]
    return value.decode("ascii", "backslashreplace") if isinstance(value, bytes) else value


def card_data(
    dataset: Dataset, sample: Sample, number: int, shard: str, picture: Shown, references: Sequence[Shown]
) -> dict[str, Any]:
    """What `static/card.js` draws.

    Args:
        number: of the sample in the dataset's order. shard: name of its file. references: a picture for each of the
            sample's references.
    """
    return {
        "row": _exact(printable(sample)),
        "number": number,
        "shard": shard,
        "picture": picture.url,
        "picture_error": picture.error,
        "references": [{"picture": shown.url, "picture_error": shown.error} for shown in references],
        "categories": _categories(dataset.manifest, sample),
        "commands": commands(dataset.folder.uri, sample.sample_id),
    }


def commands(uri: str, sample_id: str) -> list[dict[str, str]]:
    """Commands about one sample, quoted for a shell; without the keys and passwords of the dataset's URI."""
    where, name = shlex.quote(public(uri)), shlex.quote(sample_id)
    return [
        {
            "label": "Build this sample again from its sources, and compare",
            "command": f"dataengine reproduce {where} --sample {name}",
        },
        {"label": "Print it", "command": f"dataengine inspect {where} --sample {name}"},
    ]


def _categories(manifest: Mapping[str, Any], sample: Sample) -> dict[str, str]:
    """Names of the category ids that a sample holds."""
    used = {thing.category_id for things in (sample.objects, sample.conditions, sample.references) for thing in things}
    source = manifest["sources"].get(f"{sample.source}/{sample.split}", {})
    return {str(c["id"]): c["text"] for c in source.get("categories", ()) if c["id"] in used}


def _exact(value: Any) -> Any:
    """JSON values without numbers that a browser would round, or that JSON has not."""
    if isinstance(value, dict):
        return {key: _exact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_exact(item) for item in value]
    if isinstance(value, int) and abs(value) > SAFE_INTEGER:
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
