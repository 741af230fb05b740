"""Searching the texts of a dataset: kept compressed, block by block, and looked through in turn.

What does not fit the budget is read from the shards again by each search.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dataengine.store.columns import leaves, rows

if TYPE_CHECKING:
    import pyarrow as pa

BUDGET_BYTES = 128 << 20  # compressed, of all blocks
CODEC = "lz4"
THREADS = 2
SEPARATOR = "\0"  # between a row's texts; no query holds one
FIELDS = ("sample_id", "turns.text", "conditions.text")


def leaf_names() -> list[str]:
    """The leaves that are searched."""
    return leaves(*FIELDS)


def joined(table: pa.Table) -> pa.Array:
    """(rows,) strings: the texts of each row in lower case, one after the other."""
    import pyarrow as pa
    import pyarrow.compute as pc

    every = rows(table)
    parts = [every.array("sample_id")]
    for name in ("turns", "conditions"):
        inner = every.each(name)
        offsets = np.concatenate([[0], np.cumsum(inner.counts)]).astype(np.int32)
        texts = pc.fill_null(inner.array("text"), "")
        parts.append(pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), texts), SEPARATOR))
    whole = pc.binary_join_element_wise(*parts, SEPARATOR, null_handling="replace", null_replacement="")
    return pc.utf8_lower(whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Texts of neighbouring rows. start: number of the first. data, ends: compressed; None: read them again.

    num_bytes: of data, not compressed.
    """

    start: int
    rows: int
    num_bytes: int
    data: bytes | None
    ends: bytes | None


class Texts:
    """The texts of all rows, in order."""

    def __init__(self, again: Callable[[int], pa.Array], budget: int = BUDGET_BYTES) -> None:
        """again: gives the texts of the block that begins with a row, where they are not kept."""
        self.blocks: list[Block] = []
        self._again = again
        self._left = budget
        self._pool = ThreadPoolExecutor(THREADS)  # kept: memory of threads that end is slow to come back

    def add(self, start: int, texts: pa.Array) -> None:
        """texts: of the rows from `start` on, as `joined` gives them."""
        import pyarrow as pa

        _, offsets, content = texts.buffers()
        ends = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
        first, last = int(ends[0]), int(ends[-1])
        data = pa.compress(content.slice(first, last - first) if content else b"", codec=CODEC, asbytes=True)
        stops = pa.compress((ends - first).astype(np.int32).tobytes(), codec=CODEC, asbytes=True)
        self._left -= len(data) + len(stops)
        kept = self._left >= 0
        self.blocks.append(
            Block(
                start=start,
                rows=len(texts),
                num_bytes=last - first,
                data=data if kept else None,
                ends=stops if kept else None,
            )
        )

    def look(self, blocks: Sequence[Block], text: str) -> Iterator[np.ndarray]:
        """For each block, which of its rows hold a text, given in lower case: (rows,) bool."""
        return self._pool.map(lambda block: self._holding(block, text), blocks)

    def _holding(self, block: Block, text: str) -> np.ndarray:
        import pyarrow as pa
        import pyarrow.compute as pc

        if block.data is None or block.ends is None:
            texts = self._again(block.start)
        else:
            ends = pa.decompress(block.ends, 4 * (block.rows + 1), codec=CODEC)
            data = pa.decompress(block.data, block.num_bytes, codec=CODEC)
            texts = pa.StringArray.from_buffers(block.rows, ends, data)
        # as an expression it is found three times faster than by match_substring
        found: np.ndarray = pc.match_substring_regex(texts, re.escape(text)).to_numpy(zero_copy_only=False)
        return found


class Search:
    """One search, which goes on as far as its callers wait for it.

    hits: (rows of the dataset,) bool. searched: how many rows, from the first on.
    """

    def __init__(self, texts: Texts, text: str, num_rows: int) -> None:
        import pyarrow.compute as pc

        self.hits = np.zeros(num_rows, dtype=bool)
        self.searched = 0
        self._texts = texts
        self._text = pc.utf8_lower(text).as_py()
        self._next = 0
        self._lock = threading.Lock()

    def advance(self, seconds: float) -> bool:
        """Search on, for about that long, and by a few blocks at least; whether there are no more of them now.

        Rows of damaged shards are in no block, so `searched` alone may stay below the number of rows.
        """
        stop = time.monotonic() + seconds
        with self._lock:
            while self._next < len(self._texts.blocks):
                blocks = self._texts.blocks[self._next : self._next + 8 * THREADS]
                for block, found in zip(blocks, self._texts.look(blocks, self._text), strict=True):
                    self.hits[block.start : block.start + block.rows] = found
                    self.searched = block.start + block.rows
                self._next += len(blocks)
                if time.monotonic() >= stop:
                    break
            return self._next >= len(self._texts.blocks)
