"""WebDataset tars of about a thousand samples: `{key}.jpg` and `{key}.json`, the same bytes every time.

The JSON is the whole sample in the form of `json_schema()`, without its picture's bytes; pictures of its references are
`{key}.ref0.jpg`, …. Members are sorted, of nobody and of no time.
"""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataengine.errors import UserError
from dataengine.sample import Sample, to_row
from pipelines.export.output import Output, picture_bytes, safe_folder, safe_name, suffix_of, suffix_of_image

SAMPLES = 1000  # of one tar


def exporter(output: Output) -> WebDataset:
    """See `Exporter`."""
    if output.pictures == "link":
        raise UserError("--pictures link: tars hold pictures themselves; choose copy or none")
    return WebDataset(output)


@dataclass(slots=True)
class _Split:
    path: Path
    tar: tarfile.TarFile
    samples: int = 0


class WebDataset:
    def __init__(self, output: Output) -> None:
        self._output = output
        self._splits: dict[str, _Split] = {}

    def write(self, group: Sequence[Sample]) -> None:
        members = [self._members(sample) for sample in group]
        for sample, files in zip(group, members, strict=True):
            split = self._splits.get(sample.split)
            if split is None or split.samples % SAMPLES == 0:
                split = self._next(sample.split)
            key = f"{split.samples:09d}-{safe_name(sample.sample_id)}"
            for suffix, data in sorted(files.items()):
                info = tarfile.TarInfo(key + suffix)  # of user 0, time 0, mode 0644
                info.size = len(data)
                split.tar.addfile(info, io.BytesIO(data))
            split.samples += 1

    def _members(self, sample: Sample) -> dict[str, bytes]:
        """The files of a sample by their suffix."""
        files = {}
        if self._output.pictures == "copy":
            if sample.image is not None:
                files[suffix_of(sample)] = picture_bytes(sample.image, sample.height, sample.width)
            for number, other in enumerate(sample.references):
                suffix = f".ref{number}{suffix_of_image(other.image)}"
                files[suffix] = picture_bytes(other.image, other.height, other.width)
        return {**files, ".json": to_json(sample)}

    def _next(self, split: str) -> _Split:
        number = 0
        if split in self._splits:
            self._splits[split].tar.close()
            number = self._splits[split].samples
        path = self._output.root / f"{safe_folder(split)}-{number // SAMPLES:06d}.tar"
        tar = tarfile.open(path, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115
        self._splits[split] = _Split(path, tar, number)
        return self._splits[split]

    def finish(self) -> None:
        for split in self._splits.values():
            split.tar.close()


def to_json(sample: Sample) -> bytes:
    """A sample as JSON (`json_schema()`); binary values are base64, pictures are without their bytes."""
    row = to_row(sample)
    for place in (row, *row["references"]):
        if place["image"] is not None:
            place["image"] = {**place["image"], "bytes": None}
    return json.dumps(row, separators=(",", ":"), default=_base64).encode("ascii")


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")
