"""Values that went through a block of memory are as they were."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dataengine.loader.packed import ALIGNED, Packing, pack, unpack  # noqa: E402


@dataclass
class Batch:
    pixels: torch.Tensor
    words: tuple[torch.Tensor, ...]
    arrays: dict[str, np.ndarray]
    name: str


def test_everything_comes_back():
    words = torch.arange(6).view(2, 3)
    batch = Batch(
        pixels=torch.full((2, 3, 5, 7), 200, dtype=torch.uint8),
        words=(words, words.T, torch.zeros(0, 4), torch.tensor(3.5), torch.tensor([True, False])),
        arrays={"a": np.arange(5, dtype=np.float32), "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3))},
        name="ü",
    )
    packed = pack(batch)
    made = unpack(packed)
    assert made.name == batch.name
    assert all(start % ALIGNED == 0 for start, _ in packed.places)
    for before, after in zip((batch.pixels, *batch.words), (made.pixels, *made.words), strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)
    for name, array in batch.arrays.items():
        np.testing.assert_array_equal(made.arrays[name], array)
        assert made.arrays[name].dtype == array.dtype
    assert len(packed.value) < 2000  # none of the memory is in it


def test_what_comes_back_can_be_changed():
    made = unpack(pack(torch.zeros(3)))
    made += 1
    assert made.tolist() == [1, 1, 1]


@pytest.mark.parametrize("value", [ValueError("no"), (), None, torch.ones(2, dtype=torch.bfloat16)], ids=str)
def test_values_without_memory_to_share(value):
    made = unpack(pack(value))
    assert torch.equal(made, value) if isinstance(value, torch.Tensor) else repr(made) == repr(value)


def test_items_are_packed_where_they_are_made():
    assert unpack(Packing({3: torch.ones(2)})[3]).tolist() == [1, 1]
