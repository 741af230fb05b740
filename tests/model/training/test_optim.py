import math
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch import nn  # noqa: E402

from model.training import optim  # noqa: E402
from tests.model.training.runs import PLAIN  # noqa: E402


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        self.head = nn.Linear(3, 2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Parts()


def named(model, optimizer):
    """{name: (multiplier, decay)} of what the optimizer has."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (g["mult"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def test_the_longest_prefix_counts_and_what_is_frozen_has_no_group(model):
    stage = replace(PLAIN, lr_mult={"encoder": 0.1, "encoder.1": 0.5}, frozen=("encoder.0.bias",), weight_decay=0.05)
    optim.freeze(model, stage)
    assert named(model, optim.make_optimizer(model, stage)) == {
        "encoder.0.weight": (0.1, 0.05),
        "encoder.1.weight": (0.5, 0.05),
        "encoder.1.bias": (0.5, 0.05),
        "head.weight": (1.0, 0.05),
        "head.bias": (1.0, 0.05),
    }
    assert not model.encoder[0].bias.requires_grad


def test_norms_and_biases_need_not_decay(model):
    found = named(model, optim.make_optimizer(model, replace(PLAIN, decay_norms=False, weight_decay=0.05)))
    assert {name for name, (_, decay) in found.items() if decay} == {"encoder.0.weight", "head.weight"}


COSINE = replace(PLAIN, schedule="cosine", warmup=0.1)
STEPS = replace(PLAIN, schedule="multistep", milestones=(4, 6), gamma=0.1, warmup=0.0)


@pytest.mark.parametrize(
    ("stage", "step", "expected"),
    [
        (COSINE, 0, 1e-5),
        (COSINE, 5, 1e-5 + (1 - 1e-5) / 2),
        (COSINE, 10, 1.0),
        (COSINE, 55, 0.5),  # half of the way from 10 to 100
        (COSINE, 100, 0.0),
        (STEPS, 39, 1.0),
        (STEPS, 40, 0.1),
        (STEPS, 60, 0.01),
        (replace(PLAIN, warmup=0.5), 25, 1e-5 + (1 - 1e-5) / 2),
        (replace(PLAIN, warmup=0.5), 99, 1.0),
    ],
)
def test_rates(stage, step, expected):
    assert optim.factor(stage, step, 100, 10) == pytest.approx(expected, abs=1e-12)


def test_groups_get_their_rate(model):
    stage = replace(COSINE, lr=2e-3, lr_mult={"head": 0.1})
    optimizer = optim.make_optimizer(model, stage)
    assert optim.set_rates(optimizer, stage, 55, 100, 10) == pytest.approx(1e-3)
    assert {group["mult"]: group["lr"] for group in optimizer.param_groups} == pytest.approx({0.1: 1e-4, 1.0: 1e-3})


def test_the_average_is_exponential_and_only_lent(model):
    average = optim.Average(model, decay=0.75)
    start = model.head.weight.detach().clone()
    for step in (1.0, 2.0):
        with torch.no_grad():
            model.head.weight.copy_(start + step)
        average.update(model)
    now = model.head.weight.detach().clone()
    with average.applied(model):
        # 0.75 (0.25 · 1) + 0.25 · 2
        torch.testing.assert_close(model.head.weight, start + 0.6875)
    assert torch.equal(model.head.weight, now)
    assert math.isclose(average.decay, 0.75)
