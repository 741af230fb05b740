import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch import nn  # noqa: E402

from model.training import optim, state  # noqa: E402
from model.training.parallel import Processes  # noqa: E402
from tests.model.training.runs import PLAIN  # noqa: E402

ALONE = Processes(rank=0, world=1, device=torch.device("cpu"))


class Parts(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.used, self.unused = nn.Linear(2, 3), nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.ones(()))


def trained(seed=0):
    model = Parts(seed)
    optimizer = optim.make_optimizer(model, PLAIN)
    average = optim.Average(model, 0.5)
    for _ in range(3):
        (model.used(torch.ones(1, 2)).sum() * model.scale).backward()
        optimizer.step()
        average.update(model)
    return model, optimizer, average


@pytest.fixture
def checkpoints(tmp_path):
    return state.Checkpoints(tmp_path / "checkpoints", 2, ALONE)


def save(checkpoints, step, parts=None):
    return checkpoints.save(step, state.tensors_of(*(parts or trained())), {"fingerprint": "f"})


def test_everything_comes_back_and_what_had_no_gradient_has_no_state(checkpoints):
    model, optimizer, average = trained()
    save(checkpoints, 3, (model, optimizer, average))
    other, fresh = Parts(seed=1), None
    fresh = optim.make_optimizer(other, PLAIN)
    found = checkpoints.newest()
    assert (found.step, found.run) == (3, {"fingerprint": "f"})
    averaged = optim.Average(other, 0.5)
    state.restore(checkpoints, found, other, fresh, averaged)
    for name, weight in model.named_parameters():
        mine = dict(other.named_parameters())[name]
        assert torch.equal(mine, weight)
        assert torch.equal(averaged.values[name], average.values[name])
        assert fresh.state.get(mine, {}).keys() == optimizer.state.get(weight, {}).keys()
        for kind, value in optimizer.state.get(weight, {}).items():
            assert torch.equal(fresh.state[mine][kind], value), (name, kind)
    assert not any(fresh.state.get(weight) for weight in other.unused.parameters())
    # and it goes on alike
    for parts, each in ((model, optimizer), (other, fresh)):
        parts.zero_grad()
        (parts.used(torch.ones(1, 2)).sum() * parts.scale).backward()
        each.step()
    assert torch.equal(model.used.weight, other.used.weight)


def test_only_the_newest_stay_and_unfinished_ones_go(checkpoints):
    for step in (1, 2, 3):
        save(checkpoints, step)
    (checkpoints.folder / f".step-00000009.{'0' * 32}.tmp").mkdir()
    save(checkpoints, 12345678901)
    assert sorted(f.name for f in checkpoints.folder.iterdir()) == ["step-00000003", "step-12345678901"]
    assert checkpoints.newest().step == 12345678901


def cut(folder):
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])


def flip(folder):
    file = next(folder.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def rewrite(**changes):
    def change(folder):
        values = json.loads((folder / state.STATE).read_text())
        (folder / state.STATE).write_text(json.dumps(values | changes))

    return change


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flip,
        lambda folder: next(folder.glob("*.safetensors")).unlink(),
        lambda folder: (folder / "more.safetensors").write_bytes(b""),
        lambda folder: (folder / state.STATE).unlink(),
        lambda folder: (folder / state.STATE).write_text("{"),
        lambda folder: (folder / state.STATE).write_text("[]"),
        rewrite(step=7),
        rewrite(step="2"),
        rewrite(files=[]),
        rewrite(format=99),
        rewrite(run=None),
    ],
    ids=[
        "cut",
        "flipped",
        "a file less",
        "a file more",
        "no state",
        "no JSON",
        "a list",
        "step",
        "text",
        "files",
        "format",
        "run",
    ],
)
def test_a_damaged_checkpoint_is_passed_over(checkpoints, damage):
    save(checkpoints, 1)
    damage(save(checkpoints, 2))
    assert checkpoints.newest().step == 1


def test_what_is_passed_over_is_named(checkpoints):
    save(checkpoints, 1)
    cut(save(checkpoints, 2))
    found, unsound = checkpoints.look()
    assert found.step == 1
    (reason,) = unsound
    assert "step-00000002: " in reason
    assert reason.endswith("is not as it was written")


def test_a_checkpoint_that_is_written_again_replaces_the_first(checkpoints):
    save(checkpoints, 1)
    cut(save(checkpoints, 2))
    save(checkpoints, 2)
    assert [f.name for f in sorted(checkpoints.folder.iterdir())] == ["step-00000001", "step-00000002"]
    assert checkpoints.newest().step == 2


def test_another_model_is_refused_and_nothing_is_read(checkpoints):
    save(checkpoints, 1)
    model = Parts(seed=1)
    model.used = nn.Linear(2, 4)
    before = model.used.weight.detach().clone()
    found = checkpoints.newest()
    with pytest.raises(state.StateError, match=r"weights\.used\.bias \(stored \(3,\), wanted \(4,\)\)"):
        state.restore(checkpoints, found, model, optim.make_optimizer(model, PLAIN), optim.Average(model, 0.5))
    assert torch.equal(model.used.weight, before)


def test_a_write_that_fails_leaves_nothing_behind(checkpoints, monkeypatch):
    save(checkpoints, 1)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state.os, "fsync", full)
    with pytest.raises(state.StateError, match=r"No space left on device; the newest before it is step-00000001"):
        save(checkpoints, 2)
    assert [f.name for f in checkpoints.folder.iterdir()] == ["step-00000001"]
    assert checkpoints.newest().step == 1


def test_frozen_weights_are_told_apart():
    weights = {"a": torch.arange(1000.0), "b": torch.zeros(2, 2, dtype=torch.bfloat16)}
    assert state.digest_of(weights) == state.digest_of(dict(reversed(weights.items())))
    for other in ({"a": weights["a"] + 1}, {"b": torch.zeros(4, dtype=torch.bfloat16)}, {"c": torch.zeros(1)}):
        assert state.digest_of(weights | other) != state.digest_of(weights)


def test_the_digest_of_a_weight_beyond_what_float32_counts():
    large = torch.zeros((1 << 24) + 4, dtype=torch.uint8)
    before = state.digest_of({"a": large})
    large[-1] = 1
    assert state.digest_of({"a": large}) != before


def test_many_files_are_one_checkpoint(checkpoints, monkeypatch):
    monkeypatch.setattr(state, "FILE", 64)
    folder = save(checkpoints, 1)
    assert len(list(folder.glob("*.safetensors"))) > 3
    model, optimizer, average = trained(seed=1)
    state.restore(checkpoints, checkpoints.newest(), model, optimizer, average)
    for weight, expected in zip(model.parameters(), trained()[0].parameters(), strict=True):
        assert torch.equal(weight, expected)
