"""The whole model against the recorded reference: losses, gradients, teacher-forced and generated answers."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("scipy")

from model.batches import collate, swap  # noqa: E402
from tests.model.recorded import recorded_inputs, recorded_model  # noqa: E402


@pytest.fixture
def recorded(golden):
    """The recorded model, its case and the tensors that all batches share."""
    case = golden("e2e")
    return recorded_model(case).train(), case, case.tensors("common")


class SwapDraws:
    """The recorded choices of the prompt swap."""

    def __init__(self, draws: list[int]) -> None:
        self.draws = list(draws)

    def permutation(self, number: int):
        raise AssertionError("the swap permutes nothing")

    def integers(self, high: int, number: int):
        assert number == 1
        return torch.tensor([self.draws.pop(0)])


class PointDraws:
    """Draws that lead to the recorded points (as shares y, x) of prompts, in their order."""

    def __init__(self, masks, points) -> None:
        self.orders = []
        for mask, chosen in zip(masks, points, strict=True):
            pixels = (mask.nonzero() / torch.tensor(mask.shape, dtype=torch.float32)).tolist()
            places = {tuple(pixel): place for place, pixel in enumerate(pixels)}
            self.orders.append(torch.tensor([places[tuple(point)] for point in chosen.tolist()]))

    def permutation(self, number: int):
        return self.orders.pop(0)

    def integers(self, high: int, number: int):
        return self.orders.pop(0)[high:]


BATCHES = ["genseg_loss", "genseg_one_empty_loss", "refseg_loss", "vgdseg_loss", "gcgseg_loss", "imgconv_loss"]


@pytest.mark.parametrize("name", BATCHES)
def test_losses_and_gradients_are_the_recorded_ones(recorded, recorded_draws, name):
    model, case, common = recorded
    tensors, config = case.tensors(name), case.config["batches"][name]
    batch = collate(recorded_inputs(config["task"], tensors, common, config))
    prompts = {}
    if "swap" in config:
        batch = swap(batch, SwapDraws(config["swap"]["draws"]))
        chosen = [tensors[f"rng.points_yx.{i}.{j}"] for i, j in places_of(batch, tensors)]
        prompts = {"prompts": PointDraws(batch.region_masks, chosen)}
    found = model(batch, recorded_draws(tensors, 4), **prompts)
    torch.testing.assert_close(found.language, tensors["loss.loss_llm"], atol=1e-4, rtol=0)
    for term, value in found.terms.items():
        torch.testing.assert_close(value, tensors[f"loss.{term}"], atol=1e-4, rtol=0, msg=term)
    torch.testing.assert_close(found.loss, tensors["loss.loss"], atol=2e-4, rtol=0)
    found.loss.backward()
    expected = config["grad_norm"]
    norms = {key: None if p.grad is None else p.grad.norm().item() for key, p in model.named_parameters()}
    for key, norm in norms.items():
        if expected[key] is None:
            assert norm is None or norm == 0, key
        else:
            assert norm == pytest.approx(expected[key], rel=2e-3, abs=2e-6), key


def places_of(batch, tensors):
    """Where the recorded points of each prompt stand: every instance has its own, (image, number)."""
    every = [(i, j) for i in range(2) for j in range(len(tensors[f"in.vprompt_masks.{i}"]))]
    masks = [tensors[f"in.vprompt_masks.{i}"][j].bool() for i, j in every]
    return [
        next(place for place, other in zip(every, masks, strict=True) if torch.equal(other, mask))
        for mask in batch.region_masks
    ]


def test_a_teacher_forced_answer_is_the_recorded_one(recorded):
    model, case, common = recorded
    tensors = case.tensors("genseg_tensor")
    batch = collate(recorded_inputs("genseg", tensors, common, {}))
    outputs = model.eval().answer(batch)
    for k in range(4):
        torch.testing.assert_close(outputs.class_logits[k], tensors[f"out.class_logits.{k}"], atol=5e-5, rtol=0)
        torch.testing.assert_close(outputs.mask_logits[k], tensors[f"out.mask_logits.{k}"], atol=5e-5, rtol=0)
