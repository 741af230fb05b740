"""Batches on their way between processes: one block of shared memory each, however many tensors are in it.

torch sends every tensor through a file of its own, which costs the receiving process half a millisecond or more.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

ALIGNED = 64  # bytes at which each tensor begins


@dataclass(frozen=True, slots=True)
class Packed:
    """A value without the memory of its arrays and tensors, which stands in `block`, (bytes,) uint8, at `places`."""

    value: bytes
    places: tuple[tuple[int, int], ...]
    block: torch.Tensor


class _Pickler(pickle.Pickler):
    """Leaves the memory of tensors to the buffers, as pickle does for arrays."""

    def reducer_override(self, value: Any) -> Any:
        import torch

        if isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.dtype is not torch.bfloat16:
            return torch.from_numpy, (value.detach().contiguous().numpy(),)
        return NotImplemented


def pack(value: Any) -> Packed:
    """value: anything that can be pickled."""
    import torch

    buffers: list[pickle.PickleBuffer] = []
    written = io.BytesIO()
    _Pickler(written, protocol=5, buffer_callback=buffers.append).dump(value)
    parts = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
    starts = np.cumsum([0, *(-(-len(part) // ALIGNED) * ALIGNED for part in parts)])
    block = torch.empty(int(starts[-1]), dtype=torch.uint8)
    memory = block.numpy()
    for start, part in zip(starts, parts, strict=False):
        memory[start : start + len(part)] = part
    places = tuple((int(start), len(part)) for start, part in zip(starts, parts, strict=False))
    return Packed(value=written.getvalue(), places=places, block=block)


def unpack(packed: Packed) -> Any:
    """What was packed, by the same program; its tensors share the block's memory."""
    memory = packed.block.numpy().data
    return pickle.loads(packed.value, buffers=[memory[start : start + size] for start, size in packed.places])


class Packing:
    """A map-style dataset whose items are packed."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __getitem__(self, key: Any) -> Packed:
        return pack(self.source[key])
