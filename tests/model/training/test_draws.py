from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from model.batches import collate, swap  # noqa: E402
from model.inputs import Processor  # noqa: E402
from model.training.draws import StepPoints, StepPrompts, swap_draws  # noqa: E402
from model.words import tiny_tokenizer  # noqa: E402
from tests.model.training.runs import CONFIG, inputs_of  # noqa: E402

CPU = torch.device("cpu")
QUERIES = 6


@pytest.fixture(scope="module")
def inputs():
    processor = Processor(CONFIG, tiny_tokenizer())
    return [inputs_of(processor, "vgdseg", number) for number in range(4)]


def points(inputs, seed=0, step=0):
    return StepPoints(seed, step, collate(inputs), QUERIES, CPU)


def test_a_row_has_its_points_in_any_batch(inputs):
    together, alone = points(inputs), [points([one]) for one in inputs]
    assert torch.equal(together.matching(2, 4, 10), torch.cat([one.matching(2, 1, 10) for one in alone]))
    for draw in ("candidates", "rest"):
        made = torch.cat([getattr(one, draw)(1, 0, 10) for one in alone])
        assert torch.equal(getattr(together, draw)(1, 0, 10), made)
    assert together.pairs == [1, 2, 1, 2]  # targets of each
    assert together.candidates(1, 6, 10).shape == (6, 10, 2)


def test_points_differ_by_purpose_prediction_step_seed_and_sample(inputs):
    draws = points(inputs[:2])
    drawn = [
        draws.matching(0, 1, 8)[0],
        draws.candidates(0, 1, 8)[0],
        draws.rest(0, 1, 8)[0],
        draws.matching(1, 1, 8)[0],
    ]
    drawn += [points(inputs[:1], seed=1).matching(0, 1, 8)[0], points(inputs[:1], step=1).matching(0, 1, 8)[0]]
    drawn += [draws.matching(0, 2, 8)[1]]
    assert len({tuple(one.flatten().tolist()) for one in drawn}) == len(drawn)
    assert all(one.dtype == torch.float32 and one.min() >= 0 and one.max() < 1 for one in drawn)


def test_more_targets_than_queries_have_as_many_pairs_as_queries(inputs):
    many = replace(inputs[1], targets=inputs[1].targets * 5)
    assert points([many]).pairs == [QUERIES]


def test_pixels_under_prompts_depend_on_step_and_number_alone():
    draws = StepPrompts(0, 3)
    first = draws.permutation(9)
    draws.integers(5, 4)
    assert torch.equal(first, draws.permutation(9))
    assert sorted(first.tolist()) == list(range(9))
    assert not torch.equal(first, StepPrompts(0, 4).permutation(9))


def test_swaps_depend_on_step_and_samples(inputs):
    labelled = [
        replace(one, shown=tuple(replace(shown, label=region) for region, shown in enumerate(one.shown)))
        for one in inputs
    ]
    batch = collate(labelled)

    def places(step, batch):
        swapped = swap(batch, swap_draws(0, step, batch))
        return swapped.region_pictures.tolist()

    assert places(0, batch) == places(0, batch)
    assert len({tuple(places(step, batch)) for step in range(8)}) > 1
