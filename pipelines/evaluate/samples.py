"""Which sample a prediction is about: by its id, or by the number of its picture, as COCO's results have it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from dataengine import masks
from dataengine.errors import ReasonError
from dataengine.sample import Sample
from pipelines.evaluate.benchmark import Benchmark
from pipelines.evaluate.predictions import text_of

T = TypeVar("T")


class Samples(Generic[T]):
    """What is known about each sample of a benchmark, by its number, or found by what a prediction says."""

    def __init__(self, benchmark: Benchmark, know: Callable[[Sample, int], T]) -> None:
        """know: what is kept of a sample, which has that number."""
        self._all: list[T] = []
        self._by_id: dict[str, T] = {}
        self._by_picture: dict[str | int, list[tuple[str | None, T]]] = {}
        for number, sample in enumerate(benchmark.samples()):
            known = know(sample, number)
            self._all.append(known)
            self._by_id[sample.sample_id] = known
            name = sample.image_key.rpartition("/")[2]
            for picture in (name, _number(name)):
                if picture is not None:
                    self._by_picture.setdefault(picture, []).append((sample.variant, known))

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[T]:
        return iter(self._all)

    def __getitem__(self, number: int) -> T:
        return self._all[number]

    def find(self, record: Mapping[str, Any], variant: str | None = None) -> T:
        """The sample of a prediction: `sample_id`, or else `image_id` where one sample alone shows that picture.

        Args:
            variant: of the sample, where it is found by its picture; None for any. An image id is the number at the
                end of the sample's `image_key`, or its last part as a text.
        Raises:
            ReasonError: `bad_record`, `unknown_sample`.
        """
        picture = record.get("image_id")
        if record.get("sample_id") is not None or picture is None:
            name = text_of(record, "sample_id")
            if name not in self._by_id:
                raise ReasonError("unknown_sample", f"{name!r:.200} is no sample of the benchmark")
            return self._by_id[name]
        if isinstance(picture, bool) or not isinstance(picture, int | str):
            raise ReasonError("bad_record", f"image_id must be a number or a text, not {picture!r:.80}")
        found = [known for kind, known in self._by_picture.get(picture, []) if variant in (None, kind)]
        if len(found) != 1:
            many = f"{len(found)} samples show the picture" if found else "no sample shows a picture"
            kind = f" ({variant})" if variant else ""
            raise ReasonError("unknown_sample", f"{many} {picture!r:.80}{kind}; sample_id must say which")
        return found[0]


def empty(height: int, width: int) -> bytes:
    """RLE without a pixel."""
    return masks.rle_from_counts([height * width], height, width)


def _number(name: str) -> int | None:
    digits = re.search(r"[0-9]{1,18}$", name)
    return int(digits.group()) if digits else None
