"""`export`: a finished dataset in the layouts that others read. What a layout cannot hold is counted, by reason."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from dataengine.errors import UserError
from dataengine.records import Account
from dataengine.sample import Sample
from dataengine.store.dataset import open_dataset
from pipelines.export.output import PICTURES, LeftOut, Output, unit_of

TARGETS = ("xsam", "psalm", "coco", "llava", "webdataset", "hub")
REPORT = "export.json"


class Exporter(Protocol):
    """What writes one layout; `pipelines.export.TARGET.exporter(output)` makes it."""

    def write(self, group: Sequence[Sample]) -> None:
        """Write the samples of one picture and one task, all or none.

        Raises:
            LeftOut: the layout cannot hold them; nothing of them is written.
        """

    def finish(self) -> None:
        """Complete the files; called once, after the last sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was written. tasks: samples; parts: what of written samples the layout cannot hold; files: how many."""

    target: str
    dataset: str
    account: Account
    parts: Mapping[str, Counter[str]]
    files: int

    def as_dict(self) -> dict[str, Any]:
        """The content of `export.json`."""
        counts = self.account.as_dict()
        tasks = {
            unit: {
                "read": number,
                "written": counts["built"].get(unit, 0),
                "left_out": counts["filtered"].get(unit, {}),
            }
            for unit, number in counts["read"].items()
        }
        parts = {unit: dict(sorted(found.items())) for unit, found in sorted(self.parts.items())}
        return {"to": self.target, "dataset": self.dataset, "samples": tasks, "not_held": parts, "files": self.files}

    def __str__(self) -> str:
        lines = []
        for unit, counts in self.as_dict()["samples"].items():
            parts = [f"{counts['written']} written"]
            parts += [f"{number} left out ({reason})" for reason, number in counts["left_out"].items()]
            lines.append(f"  {unit}: {counts['read']} samples = {' + '.join(parts)}")
            lines += [f"    not held: {number} {what}" for what, number in sorted(self.parts.get(unit, {}).items())]
        return "\n".join([*lines, f"  {self.files} files"])


def export(uri: str, target: str, out: str, pictures: str = "copy") -> Report:
    """Write a dataset in another layout; the same dataset gives the same bytes.

    Args:
        uri: the dataset's folder. target: one of `TARGETS`. out: a local folder, new or empty.
        pictures: `copy` them, `link` to those of a by-reference dataset, or `none`: name them as the dataset does.
    Raises:
        DatasetError: there is no finished dataset. UserError: an argument cannot be used, or nothing of the dataset
            has a place in that layout. OSError: the disk.
    """
    if target not in TARGETS:
        raise UserError(f"--to {target}: there are {', '.join(TARGETS)}")
    if pictures not in PICTURES:
        raise UserError(f"--pictures {pictures}: there are {', '.join(PICTURES)}")
    dataset = open_dataset(uri)
    with _staged(out) as work:
        output = Output(work, dataset.manifest, pictures)
        make: Callable[[Output], Exporter] = import_module(f"pipelines.export.{target}").exporter
        exporter = make(output)
        account = Account()
        for group in _groups(dataset.samples()):
            unit = unit_of(group[0])
            account.read[unit] += len(group)
            try:
                exporter.write(group)
            except LeftOut as left_out:
                account.filter(unit, left_out.reason, len(group))
            else:
                account.built[unit] += len(group)
        account.check(f"export to {target}")
        if not account.built.total():
            reasons = {reason for found in account.filtered.values() for reason in found}
            raise UserError(f"{uri}: nothing in it has a place in the {target} layout ({', '.join(sorted(reasons))})")
        exporter.finish()
        files = output.close()
        report = Report(
            target=target, dataset=dataset.manifest["version"], account=account, parts=output.parts, files=files
        )
        (work / REPORT).write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    return report


def _groups(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Samples of one picture, task and variant that follow each other."""
    for _, group in groupby(samples, key=lambda s: (s.source, s.split, s.image_key, s.task, s.variant)):
        yield list(group)


@contextmanager
def _staged(out: str) -> Iterator[Path]:
    """A folder beside `out` that takes its name when everything is in it; nothing stays behind on an error."""
    if "://" in out:
        raise UserError(f"--out {out}: exports are written to a local folder")
    target = Path(out).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--out {out}: exists and is not an empty folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".tmp", dir=target.parent))
    try:
        yield work
        work.chmod(0o755)  # that of a temporary folder keeps others out
        os.replace(work, target)  # an empty folder may be replaced
    finally:
        shutil.rmtree(work, ignore_errors=True)
