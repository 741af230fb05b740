"""What tests of the model share: one thread, and recorded tensors of the reference implementation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Two cores are shared by the test processes."""
    try:
        import torch
    except ImportError:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Golden:
    """One recorded case: `config` is its config.json, `tensors(file)` reads a safetensors file of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())

    def tensors(self, name: str, prefix: str = "") -> dict[str, Any]:
        """Those whose names begin with `prefix`, without it."""
        from safetensors.torch import load_file

        tensors = load_file(self.folder / f"{name}.safetensors")
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    def json(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text())


@pytest.fixture
def golden(fixtures):
    """Recorded cases of the public implementation (AAAI26_Archive): `golden(case)`."""
    root = fixtures / "golden" / "model"
    if not root.is_dir():
        pytest.skip(f"needs the recorded cases at {root}")
    return lambda case: Golden(root / case)


class RecordedDraws:
    """The random points of a recorded loss, in the place of `model.losses.RandomDraws`."""

    def __init__(self, tensors: dict[str, Any], num_predictions: int) -> None:
        self.tensors, self.last = tensors, num_predictions - 1

    def __getitem__(self, key: tuple[int, str]) -> Any:
        """What was recorded for a prediction under a name."""
        prediction, name = key
        return self.tensors[f"rng.{'final' if prediction == self.last else f'aux{prediction}'}.{name}"]

    def matching(self, prediction: int, rows: int, points: int) -> Any:
        import torch

        return torch.stack([self[prediction, f"image{row}.matcher_coords"] for row in range(rows)])

    def candidates(self, prediction: int, pairs: int, points: int) -> Any:
        return self[prediction, "points_oversampled"]

    def rest(self, prediction: int, pairs: int, points: int) -> Any:
        return self[prediction, "points_random_tail"]


@pytest.fixture
def recorded_draws():
    """The class `RecordedDraws`: `recorded_draws(tensors, num_predictions)`."""
    return RecordedDraws
