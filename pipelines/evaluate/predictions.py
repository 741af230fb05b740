"""Predictions as a file holds them: read one by one, in bounded memory, with what is wrong counted by kind.

A file is JSON (`{"benchmark": ID, "predictions": [...]}`, or the list alone), JSON lines, or Parquet with one row a
prediction and the benchmark's id as metadata `benchmark`. What a prediction holds depends on the task; see
docs/evaluate.md.
"""

from __future__ import annotations

import codecs
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from dataengine import masks
from dataengine.errors import ReasonError, UserError
from dataengine.jsonstream import iter_records, iter_rows
from dataengine.kernels import runlengths
from dataengine.store.files import Folder

# What can be wrong with a prediction. All but the last stop an evaluation, unless faults are to be excluded.
FAULTS = {
    "bad_record": "no object, or a field is missing or of the wrong type",
    "unknown_sample": "no sample of the benchmark has this id",
    "bad_prompt": "no kind of prompt, or none although the sample is shown by several",
    "bad_score": "a score that is no finite number",
    "bad_mask": "a mask that cannot be read, or has another size than the picture",
    "bad_file": "a PNG that is not there, cannot be read, or is no map of the picture's size",
    "overlap": "masks that overlap where each pixel has one",
    "duplicate": "said twice",
    "not_asked": "a category or condition that the sample does not ask for; left out and counted",
}
TOLERATED = frozenset({"not_asked"})
EXAMPLES = 3


class PredictionError(UserError):
    """Predictions that cannot be scored."""


@dataclass(slots=True)
class Faults:
    """What is wrong with predictions: how many of each kind, and the first few of them in words."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    last: tuple[str, str] = ("", "")  # the kind and words of the last one that is not tolerated

    def add(self, reason: str, message: str) -> None:
        self.counts[reason] += 1
        if reason not in TOLERATED:
            self.last = reason, message
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES:
            shown.append(message)

    @property
    def wrong(self) -> int:
        """How many predictions cannot be scored, those aside that are tolerated."""
        return sum(number for reason, number in self.counts.items() if reason not in TOLERATED)

    def check(self, exclude: bool) -> None:
        """Raise PredictionError, a report by kind, where something is wrong that is not to be left out.

        Args:
            exclude: leave out whatever is wrong.
        """
        if not self.wrong or exclude:
            return
        lines = [f"{self.wrong:,} predictions cannot be scored; mend them, or leave them out by --exclude-faults:"]
        for reason, meaning in FAULTS.items():
            if self.counts[reason] and reason not in TOLERATED:
                lines.append(f"  {self.counts[reason]:,} {reason}: {meaning}")
                lines += [f"    {example}" for example in self.examples[reason]]
                if self.counts[reason] > len(self.examples[reason]):
                    lines.append("    …")
        raise PredictionError("\n".join(lines))

    def to_json(self) -> dict[str, Any]:
        return {reason: {"count": n, "examples": self.examples[reason]} for reason, n in sorted(self.counts.items())}


# --- files -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Source:
    """A file of predictions. benchmark: the id of what they were made for, where the file says it.

    `records` sets it while it reads; it is known at the end.
    """

    uri: str
    benchmark: str | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(self.uri.partition("?")[0]).name

    @property
    def folder(self) -> Folder:
        """Where the file lies: other files that it names are below it."""
        return Folder(self.uri).parent

    @property
    def pictures(self) -> Folder:
        """Where PNG files lie: a folder of the file's name without its suffix, else the folder of the file."""
        own = self.folder / PurePosixPath(self.name).stem
        return own if own.kind() == "folder" else self.folder

    def records(self) -> Iterator[tuple[str, Any]]:
        """Each prediction with its place in words.

        Raises:
            PredictionError, SourceError: the file cannot be read.
        """
        place = Folder(self.uri)
        try:
            if self.name.endswith(".parquet"):
                yield from self._from_parquet(place)
            else:
                with place.open() as file:
                    yield from self._from_json(file)
        except OSError as error:
            raise PredictionError(f"{self.uri}: cannot be read: {error.strerror or error}") from None

    def _from_json(self, file: BinaryIO) -> Iterator[tuple[str, Any]]:
        name = self.name  # which takes its time, asked for each record
        first = file.read(3).removeprefix(codecs.BOM_UTF8) or file.read(1)
        while first.isspace():
            first = file.read(1)
        file.seek(0)
        if not first.lstrip().startswith(b"{") or name.endswith((".jsonl", ".ndjson")):
            for record in iter_rows(file, name):
                if isinstance(record.value, dict) and record.value.keys() == {"benchmark"}:
                    self._state(record.value["benchmark"])  # the first of JSON lines may say it
                    continue
                yield f"{name}: [{record.position}]", record.value if record.error is None else record.error
            return
        lists: dict[str, bool] = {}
        for record in iter_records(file, name, lists):
            if record.section == "benchmark":
                self._state(record.value)
            elif record.section in ("predictions", "annotations") and lists.get(record.section):
                yield (
                    f"{name}: {record.section}[{record.position}]",
                    record.value if record.error is None else record.error,
                )
        if not any(lists.get(section) for section in ("predictions", "annotations")):
            raise PredictionError(
                f"{self.uri}: no list of predictions; JSON is a list, or an object with `benchmark` and `predictions`"
            )

    def _from_parquet(self, place: Folder) -> Iterator[tuple[str, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with place.open() as file:
                opened = pq.ParquetFile(file)
                stated = (opened.schema_arrow.metadata or {}).get(b"benchmark")
                if stated is not None:
                    self._state(stated.decode("utf-8", "replace"))
                number, name = 0, self.name
                for batch in opened.iter_batches(batch_size=4096, use_threads=False):
                    for row in batch.to_pylist():
                        yield f"{name}: row {number}", {k: v for k, v in row.items() if v is not None}
                        number += 1
        except (pa.ArrowException, UnicodeDecodeError, OverflowError) as error:  # the last of dates, on their way out
            raise PredictionError(f"{self.uri}: cannot be read: {error}") from None

    def _state(self, value: Any) -> None:
        if not isinstance(value, str):
            raise PredictionError(f"{self.uri}: `benchmark` must be the id of a benchmark, not {value!r:.80}")
        if self.benchmark not in (None, value):
            raise PredictionError(f"{self.uri}: names two benchmarks, {self.benchmark:.80} and {value:.80}")
        self.benchmark = value


# --- fields ----------------------------------------------------------------------------------------------------------


def text_of(record: Mapping[str, Any], key: str) -> str:
    """A text of a prediction. Raises ReasonError `bad_record`."""
    value = record.get(key)
    if not isinstance(value, str):
        raise ReasonError("bad_record", f"{key} must be a text, not {value!r:.80}")
    return value


def number_of(record: Mapping[str, Any], key: str) -> int:
    """A whole number of a prediction. Raises ReasonError `bad_record`."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ReasonError("bad_record", f"{key} must be a whole number, not {value!r:.80}")
    return value


def score_of(record: Mapping[str, Any]) -> float:
    """The score of a prediction. Raises ReasonError `bad_score`."""
    value = record.get("score")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ReasonError("bad_score", f"score must be a finite number, not {value!r:.80}")
    return float(value)


def mask_of(record: Mapping[str, Any], height: int, width: int) -> bytes:
    """The mask of a prediction, `segmentation`: COCO RLE, compressed or not; it may be empty.

    Returns:
        compressed COCO counts on height x width.
    Raises:
        ReasonError: `bad_record` where there is none, `bad_mask` where it cannot be used.
    """
    value = record.get("segmentation")
    if not isinstance(value, dict):
        raise ReasonError("bad_record", f"segmentation must be an RLE with size and counts, not {value!r:.80}")
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise ReasonError("bad_mask", f"the mask has the size {size!r:.80}, the picture [{height}, {width}]")
    try:
        if isinstance(counts, list):
            return masks.rle_from_counts(counts, height, width)
        rle = counts.encode("ascii") if isinstance(counts, str) else counts
        if not isinstance(rle, bytes):
            raise ReasonError("bad_mask", f"counts must be a text or a list, not {counts!r:.80}")
        if not runlengths.is_code(np.frombuffer(rle, np.uint8), height * width):
            masks.counts_from_rle(rle, height, width)  # says what is wrong
    except masks.MaskError as error:
        raise ReasonError("bad_mask", str(error)) from None
    except UnicodeEncodeError:
        raise ReasonError("bad_mask", "counts hold characters that no RLE has") from None
    return rle
