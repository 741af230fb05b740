"""A fresh `tiny` learns samples by heart; the evaluation says so."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("scipy")

from benchmarks.overfit import Schedule, overfit, write_dataset  # noqa: E402


def test_tiny_learns_a_picture_by_regions_and_by_names(tmp_path):
    dataset = write_dataset(tmp_path, num_pictures=1, num_referring=1)
    found = overfit(dataset, Schedule(steps=60, threads=1))
    assert found.scores["vgdseg"] > 0.5
