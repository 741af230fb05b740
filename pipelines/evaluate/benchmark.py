"""What predictions are scored against: a locked benchmark, or any finished dataset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dataengine.errors import UserError
from dataengine.sample import Sample
from dataengine.store.dataset import Dataset, open_dataset
from pipelines.vgd import lock as locks


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """id: of its lock; of a dataset that has none, its version. split: whose samples are scored; None for all."""

    dataset: Dataset
    id: str
    name: str
    task: str
    split: str | None = None

    def samples(self) -> Iterator[Sample]:
        """The samples of the task."""
        return (sample for sample in self.dataset.samples(self.split) if sample.task == self.task)

    def categories(self) -> dict[int, str]:
        """Names of the categories of the task's sources, by id; ids of one source."""
        found: dict[int, str] = {}
        for source in self.dataset.manifest["sources"].values():
            if source["task"] == self.task:
                found |= {category["id"]: category["text"] for category in source["categories"]}
        return found


def open_benchmark(uri: str, task: str, split: str | None = None) -> Benchmark:
    """Open what predictions of a task are scored against.

    Raises:
        DatasetError, LockError: it is not finished, or was changed. UserError: it holds no sample of the task.
    """
    dataset = open_dataset(uri)
    identity, name = dataset.manifest["version"], dataset.manifest["recipe"]["name"]
    if dataset.folder.exists(locks.FILE):
        lock = locks.read(dataset.folder)
        identity, name = lock.id, lock.name
    tasks = dataset.manifest["counts"]["tasks"]
    if not tasks.get(task):
        raise UserError(f"{uri}: holds no sample of {task}; it has {', '.join(sorted(tasks)) or 'none'}")
    splits = sorted({shard["split"] for shard in dataset.manifest["shards"]})
    if split is not None and split not in splits:
        raise UserError(f"{uri}: has no split {split}; there are {', '.join(splits)}")
    return Benchmark(dataset=dataset, id=identity, name=name, task=task, split=split)
