"""Reading a dataset back: by sample id, in order, or only some of it; and checking that it is what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from dataengine import images
from dataengine.keyed import key_hash, keyed
from dataengine.records import Account
from dataengine.sample import Image, Sample, from_row
from dataengine.store import commits, quarantine
from dataengine.store.commits import Commit, DatasetError
from dataengine.store.files import Folder, StoreError, public
from dataengine.store.shards import LogicalHash, read_shard, read_tables

if TYPE_CHECKING:
    import pyarrow as pa

PICTURE_SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "hdfs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A picture that a sample shows: its own, or that of one of its references.

    shard: name of its file. row: of the sample in the shard. reference: index of the reference, -1 for the sample's
    own picture. The rest is as in the sample; image_key is the picture's.
    """

    shard: str
    row: int
    reference: int
    sample_id: str
    task: str
    source: str
    split: str
    image_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A sample and where it stands. number: in the dataset's order, from 0. shard: name of its file."""

    number: int
    shard: str
    sample: Sample


@dataclass(frozen=True, slots=True)
class Dataset:
    """A finished dataset. manifest: as written; samples come in its order."""

    folder: Folder
    manifest: dict[str, Any]

    def samples(self, split: str | None = None) -> Iterator[Sample]:
        """All samples, one row group in memory at a time."""
        for shard in self.manifest["shards"]:
            if split in (None, shard["split"]):
                with self.opened(shard["name"]) as file:
                    yield from read_shard(file)

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of all samples, one row group in memory at a time; the others are not read."""
        import pyarrow.parquet as pq

        for entry in self.manifest["shards"]:
            with self.opened(entry["name"]) as file:
                shard = pq.ParquetFile(file)
                for group in range(shard.num_row_groups):
                    table = shard.read_row_group(group, columns=list(columns), use_threads=False)
                    table.validate(full=True)  # texts that are no UTF-8 are told here, not by whoever reads them
                    yield table

    def find(self, sample_id: str) -> Sample:
        """One sample; only the ids and its row group are read.

        Raises:
            DatasetError: there is none of that id.
        """
        return self.locate(sample_id)[1]

    def locate(self, sample_id: str) -> tuple[str, Sample]:
        """One sample and the name of the shard that holds it; the rest as `find`."""
        import pyarrow.parquet as pq

        source = sample_id.split("/", 1)[0]
        for entry in self.manifest["shards"]:
            if entry["source"] != source:
                continue
            with self.opened(entry["name"]) as file:
                shard = pq.ParquetFile(file)
                for group in range(shard.num_row_groups):
                    ids = shard.read_row_group(group, columns=["sample_id"], use_threads=False).column(0).to_pylist()
                    if sample_id in ids:
                        rows = shard.read_row_group(group, use_threads=False).slice(ids.index(sample_id), 1).to_pylist()
                        return entry["name"], from_row(rows[0])
        raise DatasetError(f"{self.folder.uri}: no sample {sample_id!r}")

    def pick(self, number: int, seed: int | None = None) -> list[Sample]:
        """The first samples, or some drawn at random; only row groups that hold one are read.

        Args:
            number: how many at most. seed: of the draw; None for the first ones.
        """
        total = sum(shard["rows"] for shard in self.manifest["shards"])
        number = min(number, total)
        chosen: Sequence[int] = range(number)
        if seed is not None:
            chosen = sorted(keyed(seed, "pick").choice(total, number, replace=False).tolist())
        return [row.sample for row in self.rows(chosen)]

    def rows(self, numbers: Sequence[int]) -> Iterator[Row]:
        """Some samples by their numbers; only row groups that hold one are read, one in memory at a time.

        Args:
            numbers: ascending; those that the dataset does not have are left out.
        """
        import pyarrow.parquet as pq

        base = 0
        for entry in self.manifest["shards"]:
            wanted = [number - base for number in numbers if base <= number < base + entry["rows"]]
            if wanted:
                with self.opened(entry["name"]) as file:
                    shard, first = pq.ParquetFile(file), 0
                    for group in range(shard.num_row_groups):
                        last = first + shard.metadata.row_group(group).num_rows
                        inside = [row - first for row in wanted if first <= row < last]
                        if inside:
                            table = shard.read_row_group(group, use_threads=False).take(inside)
                            for row, values in zip(inside, table.to_pylist(), strict=True):
                                number = base + first + row
                                yield Row(number=number, shard=entry["name"], sample=from_row(values))
                        first = last
            base += entry["rows"]

    def shown(self) -> Iterator[Shown]:
        """Every picture that every sample shows, without reading one."""
        import pyarrow.parquet as pq

        names = ["sample_id", "task", "source", "split", "image_key"]
        references = "references.list.element"
        columns = [*names, "image.path", f"{references}.image.path", f"{references}.image_key"]
        for entry in self.manifest["shards"]:
            with self.opened(entry["name"]) as file:
                shard, first = pq.ParquetFile(file), 0
                for group in range(shard.num_row_groups):
                    rows = shard.read_row_group(group, columns=columns, use_threads=False).to_pylist()
                    for number, row in enumerate(rows, first):
                        facts = {name: row[name] for name in names}
                        if row["image"] is not None:
                            yield Shown(shard=entry["name"], row=number, reference=-1, **facts)
                        for index, other in enumerate(row["references"] or ()):
                            facts["image_key"] = other["image_key"]
                            yield Shown(shard=entry["name"], row=number, reference=index, **facts)
                    first += len(rows)

    def pictures(self, shard: str, places: Sequence[tuple[int, int]]) -> Iterator[Image]:
        """Some pictures of a shard; of its columns only the pictures are read.

        Args:
            shard: name of its file. places: row and reference, as in `Shown`, in ascending order of rows.
        """
        import pyarrow.parquet as pq

        with self.opened(shard) as file:
            opened, first = pq.ParquetFile(file), 0
            for group in range(opened.num_row_groups):
                last = first + opened.metadata.row_group(group).num_rows
                inside = [(row - first, reference) for row, reference in places if first <= row < last]
                first = last
                if inside:
                    columns = ["image", "references.list.element.image"]
                    table = opened.read_row_group(group, columns=columns, use_threads=False)
                for row, reference in inside:
                    if reference < 0:
                        yield Image(**table["image"][row].as_py())
                    else:
                        yield Image(**table["references"][row].as_py()[reference]["image"])

    def quarantined(self) -> Iterator[dict[str, str]]:
        """The records that could not be built."""
        for entry in self.manifest["quarantine"]:
            with self.opened(entry["name"]) as file:
                yield from quarantine.read(file)

    @contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO]:
        """A file of the dataset; where it cannot be read, the error names it."""
        import pyarrow as pa

        try:
            with self.folder.open(name) as file:
                yield file
        except (pa.ArrowException, KeyError, TypeError, UnicodeDecodeError) as error:
            raise DatasetError(f"{self.folder.uri}: {name} is damaged: {error}") from None
        except OSError as error:
            if error.errno is not None:
                raise
            # pyarrow's, of pages that cannot be decoded or a store that does not answer
            raise DatasetError(f"{self.folder.uri}: {name} cannot be read: {error}") from None


def open_dataset(uri: str) -> Dataset:
    """Open a dataset by path or URI.

    Raises:
        DatasetError: it is not finished, or was changed.
    """
    folder = Folder(uri)
    return Dataset(folder, commits.read_manifest(folder))


@dataclass(slots=True)
class Findings:
    """What validation found. problems: in words, the worst thousand at most; samples: how many were checked."""

    samples: int = 0
    num_problems: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        self.num_problems += 1
        if len(self.problems) < 1000:
            self.problems.append(problem)


def validate(uri: str) -> Findings:
    """Check everything that can be checked in a dataset: hashes, links, masks, picture headers, ids, counts, files.

    Raises:
        DatasetError: there is no manifest that can be trusted.
    """
    dataset = open_dataset(uri)
    findings = Findings()
    _check_plan(dataset, findings)
    done, unreadable = _check_commits(dataset, findings)
    damaged = _check_committed_files(dataset, done, findings)
    seen: set[bytes] = set()
    counts: dict[str, int] = {}
    for shard in dataset.manifest["shards"]:
        if shard["name"] not in damaged:
            _check_shard(dataset, shard, findings, seen, counts)
    if not damaged:  # of which nothing can be counted
        _check_counts(dataset, counts, findings)
    if not unreadable:
        _check_accounts(dataset, done, damaged, findings)
    _check_files(dataset, done, findings)
    return findings


def _check_counts(dataset: Dataset, counts: dict[str, int], findings: Findings) -> None:
    stated = dataset.manifest["counts"]
    expected = {"samples": stated["samples"], "objects": stated["objects"]}
    expected |= {f"task {task}": number for task, number in stated["tasks"].items()}
    expected |= {f"licence {name}": number for name, number in stated["licenses"].items()}
    expected |= {f"prompt {kind}": number for kind, number in stated["prompts"].items()}
    for key in sorted({*expected, *counts}):
        if expected.get(key, 0) != counts.get(key, 0):
            findings.add(f"the manifest counts {expected.get(key, 0)} {key}, the shards hold {counts.get(key, 0)}")


def _check_plan(dataset: Dataset, findings: Findings) -> None:
    """Check that the plan is the manifest's, and that each of its tasks, and nothing else, is committed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with dataset.folder.open(commits.PLAN) as file:
            table = pq.ParquetFile(file).read(use_threads=False)  # pyarrow 26 may abort at exit after `read_table`
        tasks = table.column("task_id").to_pylist()
    except FileNotFoundError:
        findings.add(f"{commits.PLAN} is missing")
        return
    except (OSError, pa.ArrowException, KeyError) as error:
        findings.add(f"{commits.PLAN}: cannot be read: {error}")
        return
    stated = (table.schema.metadata or {}).get(b"dataengine.plan", b"").decode("ascii", "replace")
    if stated != dataset.manifest["plan"]:
        findings.add(f"{commits.PLAN}: is the plan {stated or 'of nothing'}, not the manifest's")
        return
    committed = _committed_tasks(dataset.folder)
    for task in sorted(set(tasks) - set(committed)):
        findings.add(f"{commits.name_of(task)} is missing, but the task is planned")
    for task in sorted(set(committed) - set(tasks)):
        findings.add(f"{commits.name_of(task)} is of a task that is not planned")


def _committed_tasks(folder: Folder) -> list[str]:
    """Ids of the tasks that have a commit record, damaged or not."""
    names = (folder / commits.FOLDER).names()
    return [name.removesuffix(".json") for name in names if name.endswith(".json")]


def _check_commits(dataset: Dataset, findings: Findings) -> tuple[list[Commit], set[str]]:
    """The commits that can be read, whatever became of their files; and the tasks of those that cannot."""
    done, unreadable = [], set()
    for task in _committed_tasks(dataset.folder):
        try:
            commit = commits.read(dataset.folder, task)
        except DatasetError as error:
            findings.add(str(error))
            unreadable.add(task)
            continue
        if commit is not None:
            done.append(commit)
    listed = {shard["name"] for shard in dataset.manifest["shards"] if shard["task_id"] not in unreadable}
    committed = {commit.shard.name for commit in done if commit.shard is not None}
    for name in sorted(listed ^ committed):
        findings.add(f"{name} is {'in the manifest but not committed' if name in listed else 'not in the manifest'}")
    return done, unreadable


def _check_committed_files(dataset: Dataset, done: list[Commit], findings: Findings) -> set[str]:
    """Names of the committed files that are missing or changed; each is one finding."""
    damaged = set()
    for commit in done:
        for stored in commit.files():
            try:
                commits.verify_file(dataset.folder, commit, stored)
            except DatasetError as error:
                findings.add(str(error))
                damaged.add(stored.name)
    return damaged


def _check_shard(
    dataset: Dataset, shard: dict[str, Any], findings: Findings, seen: set[bytes], counts: dict[str, int]
) -> None:
    import pyarrow as pa

    digest, rows = LogicalHash(), 0
    try:
        with dataset.folder.open(shard["name"]) as file:
            for table in read_tables(file):
                digest.update(table)
                for row in table.to_pylist():
                    sample = from_row(row)
                    rows += 1
                    _count(sample, counts)
                    for problem in _problems(sample, seen):
                        findings.add(f"{shard['name']}: {problem}")
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        findings.add(f"{shard['name']}: cannot be read: {error}")
        return
    findings.samples += rows
    if rows != shard["rows"]:
        findings.add(f"{shard['name']}: {rows} rows, the manifest says {shard['rows']}")
    if digest.hexdigest() != shard["logical_hash"]:
        findings.add(f"{shard['name']}: its values are not those that were committed (logical hash)")


def _problems(sample: Sample, seen: set[bytes]) -> Iterator[str]:
    from dataengine import invariants

    key = key_hash(sample.sample_id)
    if key in seen:
        yield f"{sample.sample_id}: the id is given twice"
    seen.add(key)
    try:
        invariants.check(sample)
    except invariants.InvariantError as error:
        yield str(error)
    except Exception as error:  # values that the schema allows and no check foresaw, such as a null among numbers
        yield f"{sample.sample_id}: cannot be checked: {type(error).__name__}: {error}"
    if sample.image is not None:
        try:
            images.check(picture_of(sample.image), sample.height, sample.width)
        except (images.ImageError, OSError) as error:
            yield f"{sample.sample_id}: {error}"


def picture_of(image: Image, max_bytes: int | None = None) -> bytes:
    """The bytes of a picture; a by-reference one is read from its place, on a disk or in an object store.

    Args:
        max_bytes: no more are read of a by-reference one.
    Raises:
        OSError: it cannot be read from there, has more bytes, or is elsewhere: a dataset must not make its readers
            call any address.
    """
    if image.bytes is not None:
        return image.bytes
    import pyarrow as pa

    scheme, mark, _ = (image.path or "").partition("://")
    if mark and scheme not in PICTURE_SCHEMES:
        raise StoreError(f"{image.path}: pictures are read from disks and object stores only")
    try:
        place = Folder(image.path or "")
        if max_bytes is None:
            return place.read()
        if place.size("") <= max_bytes:
            with place.open() as file:  # what the system makes up while it is read says that it is empty
                data = file.read(max_bytes + 1)
            if len(data) <= max_bytes:
                return data
        raise StoreError(f"{image.path}: the file has more than {max_bytes:,} bytes")
    except ValueError:  # a NUL, or text that is no Unicode
        raise StoreError(f"{image.path!r} is no path") from None
    except pa.ArrowException as error:  # a store that fails in its own way
        raise StoreError(f"{public(image.path or '')}: {error}") from None


def _count(sample: Sample, counts: dict[str, int]) -> None:
    keys = ["samples", f"task {sample.task}", f"licence {sample.license}"]
    keys += [f"prompt {p.kind}/{p.status}" for thing in sample.objects for p in thing.prompts]
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
    counts["objects"] = counts.get("objects", 0) + len(sample.objects)


def _check_accounts(dataset: Dataset, done: list[Commit], damaged: set[str], findings: Findings) -> None:
    total = Account()
    for commit in done:
        total.add(commit.account)
    if total.as_dict() != dataset.manifest["counts"]["records"]:
        findings.add("the manifest's record counts are not the sum of the commits'")
    try:
        total.check("all commits")
    except AssertionError as error:
        findings.add(str(error))
    if any(entry["name"] in damaged for entry in dataset.manifest["quarantine"]):
        return
    held = sum(1 for _ in dataset.quarantined())
    if held != total.num_quarantined():
        findings.add(f"{total.num_quarantined()} records are counted as quarantined, the quarantine holds {held}")


def _check_files(dataset: Dataset, done: list[Commit], findings: Findings) -> None:
    known = {commits.MANIFEST, commits.PLAN, "status.json", "README.md", "croissant.json", "report.html"}
    known |= {"benchmark.lock.json", "regions.parquet"}  # of a benchmark, which looks after them itself
    known |= {commits.name_of(task) for task in _committed_tasks(dataset.folder)}
    known |= {stored.name for commit in done for stored in commit.files()}
    stated = dataset.manifest.get("roles")
    if stated is not None:
        known.add(stated["name"])
        if dataset.folder.kind(stated["name"]) != "file":
            findings.add(f"{stated['name']} is missing")
        elif dataset.folder.sha256(stated["name"]) != stated["sha256"]:
            findings.add(f"{stated['name']} is not the file that the manifest names")
    known |= {entry["name"] for kind in ("shards", "quarantine") for entry in dataset.manifest[kind]}
    for name in dataset.folder.names(recursive=True):
        if name not in known:
            findings.add(f"{name} belongs to nothing")
