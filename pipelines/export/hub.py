"""A Hugging Face repository: `data/{split}-00000-of-00001.parquet`, pictures in it as pictures, and its card.

`datasets.load_dataset(folder)` opens it. Rows are samples as in a shard; the card is `pipelines.card_text`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from dataengine.errors import ReasonError, UserError
from dataengine.sample import Image, Sample
from dataengine.store.shards import ShardWriter
from pipelines import card_text
from pipelines.card_facts import Card, Tally, split_names
from pipelines.export.output import Output, picture_bytes

FILE_SAMPLES = 10_000
FILE_BYTES = 400 << 20  # of pictures in one file


def exporter(output: Output) -> Hub:
    """See `Exporter`."""
    if output.pictures == "link":
        raise UserError("--pictures link: the files hold pictures themselves; choose copy or none")
    return Hub(output)


@dataclass(slots=True)
class _Split:
    """Files of a split under way; the last one is open."""

    paths: list[Path] = field(default_factory=list)
    writer: ShardWriter | None = None
    bytes: int = 0


class Hub:
    def __init__(self, output: Output) -> None:
        self._output = output
        self._splits: dict[str, _Split] = {}
        self._names = split_names(output.manifest)
        self._tally = Tally()

    def write(self, group: Sequence[Sample]) -> None:
        name = self._names.get(group[0].split)
        if name is None:
            raise UserError(f"{group[0].sample_id}: the manifest does not know the split {group[0].split!r}")
        for whole in [self._embedded(sample) for sample in group]:
            split = self._splits.setdefault(name, _Split())
            if split.writer is not None and (split.writer.rows >= FILE_SAMPLES or split.bytes >= FILE_BYTES):
                split.writer.close()
                split.writer = None
            if split.writer is None:
                split.paths.append(self._output.scratch())
                split.writer, split.bytes = ShardWriter(split.paths[-1]), 0
            try:
                split.writer.write(whole)
            except ReasonError as error:
                raise UserError(f"{whole.sample_id}: {error}") from None
            if whole.image is not None and whole.image.bytes:
                split.bytes += len(whole.image.bytes)
            self._tally.add(whole, name)

    def _embedded(self, sample: Sample) -> Sample:
        """The sample with its pictures' bytes, and their names without folders."""
        if self._output.pictures == "none":
            return sample
        image = None if sample.image is None else _whole(sample.image, sample.height, sample.width)
        references = tuple(replace(r, image=_whole(r.image, r.height, r.width)) for r in sample.references)
        return replace(sample, image=image, references=references)

    def finish(self) -> None:
        sizes: Counter[str] = Counter()
        for name, split in self._splits.items():
            if split.writer is not None:
                split.writer.close()
            for number, path in enumerate(split.paths):
                final = self._output.root / "data" / f"{name}-{number:05d}-of-{len(split.paths):05d}.parquet"
                final.parent.mkdir(exist_ok=True)
                path.rename(final)
                sizes[name] += final.stat().st_size
        paths = {name: (f"data/{name}-*.parquet",) for name in self._splits}
        card = Card(manifest=self._output.manifest, tally=self._tally, paths=paths, bytes=sizes)
        (self._output.root / "README.md").write_text(card_text.text(card), encoding="utf-8")


def _whole(image: Image, height: int, width: int) -> Image:
    if image.bytes is not None:
        return image
    name = PurePosixPath((image.path or "").partition("?")[0]).name
    return Image(bytes=picture_bytes(image, height, width), path=name)
