"""Learning: a fresh `tiny` learns the samples of one picture by heart, and the scores that users see show it."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from benchmarks.overfit import Schedule, overfit, write_dataset


def test_one_picture_is_learned_by_heart(tmp_path):
    """`benchmarks.overfit` on a picture instead of three. Two seeds reached AP 0.73 and 0.90, gIoU 0.96 and 0.93 in
    60 steps, 0.20 and 0.46 in 40."""
    found = overfit(write_dataset(tmp_path, 1, 1), Schedule(steps=60, threads=1))
    assert found.scores["vgdseg"] > 0.5
    assert found.scores["genseg"] > 0.5
    assert found.scores["refseg"] > 0.8
