"""The benchmark of scoring files scores what it says."""

from __future__ import annotations

from benchmarks import evaluation


def test_all_predictions_are_scored(tmp_path):
    """Faults would be measured as time spent on nothing."""
    benchmark, files = evaluation.prepare(tmp_path, 4)
    found = evaluation.measure(benchmark, files[1])
    assert found["predictions"] == 4 * evaluation.FOUND_OF_IMAGE
    assert 0 < found["ap"] < 1
    assert found["seconds"] >= found["scoring"] > 0
