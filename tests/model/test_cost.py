"""Counted operations of a step against a count by hand."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("scipy")

from benchmarks.model import count  # noqa: E402
from model.config import PRESETS  # noqa: E402


def test_operations_of_tiny_are_those_counted_by_hand():
    cost = count(PRESETS["tiny"], batch=2, text=40, labelled=10)
    # 8 x 8 tokens of the image encoder, 16 x 16 of the other shuffled to 8 x 8, and the text
    assert cost.positions == 40 + 64 + 64
    rows, length, dim, hidden, layers = 2, 168, 128, 384, 4
    products = 2 * rows * length * (4 * dim * dim + 3 * dim * hidden)  # q, k, v, o; gate, up, down
    squares = 2 * 2 * rows * length * length * dim  # scores, and their values
    assert cost.forward["llm"] == layers * (products + squares)
    assert cost.forward["llm: logits of what is learned"] == 2 * rows * 10 * dim * 2048
    assert cost.forward["llm_projector"] == 2 * rows * length * (dim * 64 + 64 * 64)
    assert cost.step == 3 * sum(cost.forward.values())
