"""Parquet shards: written in row groups, hashed by content, read row by row.

Image bytes are stored as they are; every other column is compressed with zstd. The logical hash covers values only, so
that shards written by two versions of pyarrow can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import xxhash

from dataengine.sample import Sample, arrow_schema, from_row, to_row

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP_BYTES = 16 << 20
ROW_GROUP_ROWS = 1024


class LogicalHash:
    """xxh3-128 over the values of a table, column by column; how rows are batched does not matter.

    Each column is flattened to its leaves. A leaf contributes its values (little endian, nulls as zero), each list and
    binary its lengths, each nullable level its validity, and all digests are hashed together in schema order.
    """

    def __init__(self) -> None:
        self._digests: dict[str, Any] = {}

    def update(self, table: pa.Table) -> None:
        for name in table.column_names:
            for chunk in table.column(name).chunks:
                self._add(name, chunk)

    def _feed(self, path: str, data: np.ndarray | memoryview) -> None:
        self._digests.setdefault(path, xxhash.xxh3_128()).update(data)

    def _add(self, path: str, array: pa.Array) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = array.type
        self._feed(path + "?", np.asarray(array.is_valid()).astype(np.uint8))
        if pa.types.is_struct(kind):
            for field, child in zip(kind, array.flatten(), strict=True):
                self._add(f"{path}.{field.name}", child)
        elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            lengths = pc.fill_null(pc.list_value_length(array), 0)
            self._feed(path + "#", np.asarray(lengths).astype("<i8"))
            self._add(path + "[]", array.flatten())
        elif pa.types.is_binary(kind) or pa.types.is_string(kind):
            filled = pc.fill_null(array.cast(pa.binary()), b"")
            self._feed(path + "#", np.asarray(pc.binary_length(filled)).astype("<i8"))
            _, offsets, data = filled.buffers()
            if len(filled):
                bounds = np.frombuffer(offsets, dtype=np.int32)[filled.offset : filled.offset + len(filled) + 1]
                if bounds[-1] > bounds[0]:
                    self._feed(path, memoryview(data)[bounds[0] : bounds[-1]])
        else:
            values = np.asarray(pc.fill_null(array, False if pa.types.is_boolean(kind) else 0))
            self._feed(path, values.astype(np.uint8 if values.dtype == bool else values.dtype.newbyteorder("<")))

    def hexdigest(self) -> str:
        total = xxhash.xxh3_128()
        for path in sorted(self._digests):
            total.update(path.encode() + b"\0" + self._digests[path].digest())
        return total.hexdigest()


def shard_schema() -> pa.Schema:
    """The schema of a shard, with what `datasets` needs to open the image column as pictures."""
    schema = arrow_schema()
    features = {field.name: _feature(field.type) for field in schema}
    features["image"] = {"_type": "Image"}
    info = json.dumps({"info": {"features": features}}, sort_keys=True)
    return schema.with_metadata({**(schema.metadata or {}), "huggingface": info})


def _feature(kind: pa.DataType) -> Any:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_fixed_size_list(kind):
        return {"_type": "List", "feature": _feature(kind.value_type), "length": kind.list_size}
    if pa.types.is_list(kind):
        return {"_type": "List", "feature": _feature(kind.value_type)}
    dtype = {"float": "float32", "double": "float64"}.get(str(kind), str(kind))
    return {"_type": "Value", "dtype": dtype}


def _leaves(path: str, kind: pa.DataType) -> Iterator[str]:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(f"{path}.{field.name}", field.type)
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    else:
        yield path


class ShardWriter:
    """Writes samples to one Parquet file, in row groups of about 16 MiB; each sample is checked on the way in."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self.rows = 0
        self._schema = shard_schema()
        leaves = [leaf for field in self._schema for leaf in _leaves(field.name, field.type)]
        texts = ("task", "variant", "source", "split")
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression={leaf: "NONE" if leaf == "image.bytes" else "ZSTD" for leaf in leaves},
            use_dictionary=[leaf for leaf in leaves if leaf in texts or leaf.endswith(("kind", "profile", "status"))],
            write_statistics=["sample_id", "task", "source", "split", "image_key"],
            store_schema=True,
        )
        self._pending: list[dict[str, Any]] = []
        self._bytes = 0
        self._hash = LogicalHash()

    def write(self, sample: Sample, *, checked: bool = False) -> None:
        """Add a sample.

        Args:
            checked: `invariants.check` has been passed already.
        Raises:
            InvariantError: its links do not hold; nothing is written of it.
        """
        if not checked:
            from dataengine import invariants  # which reads masks, as readers need not

            invariants.check(sample)
        self._pending.append(to_row(sample))
        image = sample.image.bytes if sample.image is not None and sample.image.bytes else b""
        self._bytes += len(image) + sum(len(o.rle) for o in sample.objects) + 4096
        self.rows += 1
        if self._bytes >= ROW_GROUP_BYTES or len(self._pending) >= ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._pending:
            table = pa.Table.from_pylist(self._pending, schema=self._schema)
            self._hash.update(table)
            self._writer.write_table(table)
        self._pending, self._bytes = [], 0

    def close(self) -> str:
        """Finish the file; returns the logical hash (hex)."""
        self._flush()
        self._writer.close()
        return self._hash.hexdigest()

    def abort(self) -> None:
        """Release the file without finishing it."""
        self._pending = []
        self._writer.close()


def read_shard(file: BinaryIO) -> Iterator[Sample]:
    """The samples of a shard, one row group in memory at a time."""
    for table in read_tables(file):
        for row in table.to_pylist():
            yield from_row(row)


def read_tables(file: BinaryIO) -> Iterator[pa.Table]:
    """The row groups of a shard.

    pyarrow's own threads and a Python file do not go together: a process may hang or abort at its end (apache/arrow
    issue 50482).
    """
    import pyarrow.parquet as pq

    shard = pq.ParquetFile(file)
    for number in range(shard.num_row_groups):
        yield shard.read_row_group(number, use_threads=False)


def logical_hash(file: BinaryIO) -> str:
    """Logical hash of a shard as it is stored."""
    digest = LogicalHash()
    for table in read_tables(file):
        digest.update(table)
    return digest.hexdigest()
