"""What predictions are scored against: a locked benchmark, or any finished dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dataengine.errors import UserError
from dataengine.sample import Sample
from dataengine.store.dataset import Dataset, open_dataset
from pipelines.vgd import lock as locks


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """id: of its lock; of a dataset that has none, its version. split: whose samples are scored; None for all.

    limit: only the first so many samples of the task are scored; None for all. locked: hash of what each sample asks,
    by its id, as the lock has it; None without a lock.
    """

    dataset: Dataset
    id: str
    name: str
    task: str
    split: str | None = None
    limit: int | None = None
    locked: Mapping[str, str] | None = None

    def samples(self) -> Iterator[Sample]:
        """The samples of the task.

        Raises:
            LockError: one of them asks something else than the lock says, or one is missing.
        """
        number = wanted = 0
        for sample in self.dataset.samples(self.split):
            if self.locked is not None and self.locked.get(sample.sample_id) != locks.digest(sample):
                raise self._changed(sample.sample_id)
            number += 1
            if sample.task == self.task:
                wanted += 1
                yield sample
            if wanted == self.limit:
                return
        if self.locked is not None and self.split is None and number != len(self.locked):
            raise self._changed(f"{number:,} of {len(self.locked):,} samples")

    def _changed(self, what: str) -> locks.LockError:
        place = self.dataset.folder.uri
        return locks.LockError(
            f"{place}: was changed: {what}, not as the lock says; `dataengine vgd verify` tells more"
        )

    def categories(self) -> dict[int, str]:
        """Names of the categories of the task's sources, by id; ids of one source."""
        found: dict[int, str] = {}
        for source in self.dataset.manifest["sources"].values():
            if source["task"] == self.task:
                found |= {category["id"]: category["text"] for category in source["categories"]}
        return found


def open_benchmark(uri: str, task: str, split: str | None = None, limit: int | None = None) -> Benchmark:
    """Open what predictions of a task are scored against.

    Raises:
        DatasetError, LockError: it is not finished, or was changed. UserError: it holds no sample of the task.
    """
    dataset = open_dataset(uri)
    identity, name, locked = dataset.manifest["version"], dataset.manifest["recipe"]["name"], None
    if dataset.folder.exists(locks.FILE):
        lock = locks.read(dataset.folder)
        identity, name, locked = lock.id, lock.name, lock.samples
    tasks = dataset.manifest["counts"]["tasks"]
    if not tasks.get(task):
        raise UserError(f"{uri}: holds no sample of {task}; it has {', '.join(sorted(tasks)) or 'none'}")
    splits = sorted({shard["split"] for shard in dataset.manifest["shards"]})
    if split is not None and split not in splits:
        raise UserError(f"{uri}: has no split {split}; there are {', '.join(splits)}")
    return Benchmark(dataset=dataset, id=identity, name=name, task=task, split=split, limit=limit, locked=locked)
