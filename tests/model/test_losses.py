import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("scipy")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from dataengine import masks as coding  # noqa: E402
from model.config import DecoderConfig  # noqa: E402
from model.losses import (  # noqa: E402
    RandomDraws,
    Runs,
    Targets,
    count_masks,
    match,
    read_masks,
    segmentation_losses,
    total,
    uncertain_points,
)
from model.matching import assign, match_cost, read_points  # noqa: E402
from model.segmentor import SegOutputs  # noqa: E402

VARIANTS = ["generic", "referring", "duplicate_classes", "more_targets_than_queries", "all_empty"]


def draws(seed=0):
    return RandomDraws(torch.Generator().manual_seed(seed))


FORMS = ["bool", "float", "run lengths"]


def in_form(target: torch.Tensor, form: str) -> torch.Tensor | Runs:
    """(T, H, W) bool masks in one of the forms that losses read."""
    return {"bool": target, "float": target.float(), "run lengths": as_runs(target)}[form]


def as_runs(target: torch.Tensor) -> Runs:
    return Runs.of_rles([coding.encode(np.asarray(mask)) for mask in target], tuple(target.shape[1:]))


class Recorded:
    """A recorded case: its predictions with gradients, its targets, and its draws."""

    def __init__(self, case, variant, form, recorded_draws):
        self.tensors = case.tensors(variant)
        self.count = case.config["num_predictions"]
        self.config = DecoderConfig(points=case.config["num_points"])
        self.draws = recorded_draws(self.tensors, self.count)
        self.classes = [self.tensors[f"class_logits.{k}"].requires_grad_() for k in range(self.count)]
        self.masks = [self.tensors[f"mask_logits.{k}"].requires_grad_() for k in range(self.count)]
        self.outputs = SegOutputs(class_logits=tuple(self.classes), mask_logits=tuple(self.masks))
        self.targets = []
        for row in range(len(self.masks[0])):
            mask = self.tensors[f"mask_labels.{row}"].bool()
            labels = self.tensors[f"class_labels.{row}"]
            self.targets.append(Targets(labels=labels, masks=in_form(mask, form)))


@pytest.fixture
def recorded(golden, recorded_draws):
    """Makes `Recorded`s: `recorded(variant, form)`."""
    return lambda variant, form="bool": Recorded(golden("losses"), variant, form, recorded_draws)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_terms_and_gradients_as_recorded(recorded, variant, form):
    case = recorded(variant, form)
    terms = segmentation_losses(case.outputs, case.targets, case.config, case.draws)
    expected = {name[9:]: value for name, value in case.tensors.items() if name.startswith("weighted.")}
    assert set(terms) == set(expected)
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name], atol=1e-5, rtol=0)
    loss = total(terms)
    torch.testing.assert_close(loss, case.tensors["total"], atol=1e-4, rtol=0)
    loss.backward()
    for k in range(case.count):
        for kind, made in (("mask", case.masks[k].grad), ("class", case.classes[k].grad)):
            torch.testing.assert_close(made, case.tensors[f"grad_{kind}_logits.{k}"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pairs_as_recorded(recorded, variant):
    case = recorded(variant)
    for k, rows in enumerate(match(case.outputs, case.targets, case.config, case.draws)):
        for row, (queries, targets) in enumerate(rows):
            assert torch.equal(queries, case.draws[k, f"image{row}.src"])
            assert torch.equal(targets, case.draws[k, f"image{row}.tgt"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_costs_as_recorded(recorded, variant):
    case = recorded(variant)
    for k, row in itertools.product(range(case.count), range(len(case.targets))):
        target, points = case.targets[row], case.draws[k, f"image{row}.matcher_coords"][None]
        read = read_points(case.masks[k][row : row + 1], points)[0]
        wanted = read_masks(target.masks, torch.arange(len(target.labels)), points)
        cost = match_cost(case.classes[k][row], read, target.labels, wanted, (2.0, 5.0, 5.0))
        torch.testing.assert_close(cost, case.draws[k, f"image{row}.cost"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_chosen_points_as_recorded(recorded, variant):
    case = recorded(variant)
    for k, pairs in enumerate(match(case.outputs, case.targets, case.config, case.draws)):
        chosen = torch.cat([case.masks[k][row, queries] for row, (queries, _) in enumerate(pairs)])
        points = uncertain_points(chosen[:, None].detach(), case.config, case.draws, k)
        assert torch.equal(points, case.draws[k, "points_final"])


def bilinear(image, x, y):
    """One value of a (H, W) array at x, y in 0 to 1, in float64, zero outside."""
    height, width = image.shape
    x, y = x * width - 0.5, y * height - 0.5
    total = 0.0
    for column in (math.floor(x), math.floor(x) + 1):
        for row in (math.floor(y), math.floor(y) + 1):
            if 0 <= column < width and 0 <= row < height:
                total += (1 - abs(x - column)) * (1 - abs(y - row)) * float(image[row, column])
    return total


BORDER = [[0.0, 0.0], [1.0, 1.0], [0.5, 0.0], [0.03, 0.98], [1.0, 0.5]]


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (16, 3)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_masks_are_read_like_float_maps(shape, form):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(4, *shape, generator=generator) > 0.5
    target[0], target[1] = False, True
    chosen = torch.tensor([3, 0, 1, 2, 2])
    points = torch.cat([torch.rand(5, 20, 2, generator=generator), torch.tensor(BORDER).expand(5, -1, -1)], 1)
    made = read_masks(in_form(target, form), chosen, points)
    expected = [
        [bilinear(target[mask], *point) for point in own] for mask, own in zip(chosen, points.tolist(), strict=True)
    ]
    torch.testing.assert_close(made, torch.tensor(expected), atol=1e-5, rtol=0)
    library = read_points(target[chosen].float()[:, None], points)[:, 0]
    torch.testing.assert_close(made, library, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("side", "kind"), [(256, torch.Tensor), (257, Runs)], ids=str)
def test_small_canvases_are_float_maps_and_large_ones_stay_run_lengths(side, kind):
    mask = np.zeros((2, side, side), bool)
    mask[0, 10:40, 7:200] = mask[1, -3:, -9:] = True
    rles = [coding.encode(one) for one in mask]
    made = Targets.of_rles(torch.tensor([1, 0]), rles, (side, side))
    assert isinstance(made.masks, kind)
    points = torch.rand(2, 50, 2, generator=torch.Generator().manual_seed(0))
    wanted = read_masks(torch.from_numpy(mask), torch.arange(2), points)
    torch.testing.assert_close(read_masks(made.masks, torch.arange(2), points), wanted, atol=1e-5, rtol=0)
    nothing = Targets.of_rles(torch.zeros(0, dtype=torch.int64), [], (side, side))
    assert read_masks(nothing.masks, torch.arange(0), points[:1]).shape == (0, 50)


def test_all_masks_can_be_read_at_the_same_points():
    target = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(1)) > 0.5
    points = torch.rand(1, 9, 2, generator=torch.Generator().manual_seed(2))
    everything = torch.arange(3)
    for masks in (in_form(target, form) for form in FORMS):
        together = read_masks(masks, everything, points)
        assert torch.equal(together, read_masks(masks, everything, points.expand(3, -1, -1)))


def by_hand(outputs, targets, config, seed):
    """All terms in float64, pair by pair and point by point; matching tries every assignment."""
    source, terms, last = draws(seed), {}, len(outputs.class_logits) - 1
    matching = [source.matching(k, len(targets), config.points) for k in range(last + 1)]
    count = max(1, sum(len(target.labels) for target in targets))
    for k in (last, *range(last)):
        classes = outputs.class_logits[k].double().softmax(-1).numpy()
        logits = outputs.mask_logits[k].double().numpy()
        pairs = []
        for row, target in enumerate(targets):
            points = matching[k][row].tolist()
            costs = np.zeros((classes.shape[1], len(target.labels)))
            for q, t in np.ndindex(costs.shape):
                x = np.array([bilinear(logits[row, q], *p) for p in points])
                y = np.array([bilinear(target.masks[t], *p) for p in points])
                costs[q, t] = 5 * entropy(x, y).mean() + 5 * dice(x, y) - 2 * classes[row, q, target.labels[t]]
            best = min(
                itertools.permutations(range(costs.shape[0]), costs.shape[1]),
                key=lambda queries: sum(costs[q, t] for t, q in enumerate(queries)),
            )
            pairs += sorted((row, q, t) for t, q in enumerate(best))
        kept = int(config.importance * config.points)
        candidates = source.candidates(k, len(pairs), int(config.points * config.oversample)).tolist()
        rest = source.rest(k, len(pairs), config.points - kept).tolist()
        mask = half = 0.0
        for (row, q, t), own, others in zip(pairs, candidates, rest, strict=True):
            own = sorted(own, key=lambda p: abs(bilinear(logits[row, q], *p)))[:kept] + others
            x = np.array([bilinear(logits[row, q], *p) for p in own])
            y = np.array([bilinear(targets[row].masks[t], *p) for p in own])
            mask, half = mask + entropy(x, y).mean(), half + dice(x, y)
        given = {(row, q): int(targets[row].labels[t]) for row, q, t in pairs}
        none = classes.shape[2] - 1
        surprise = weight = 0.0
        for row, q in np.ndindex(classes.shape[:2]):
            share = 1.0 if (row, q) in given else config.no_object
            surprise -= share * math.log(classes[row, q, given.get((row, q), none)])
            weight += share
        suffix = "" if k == last else f"_{k}"
        terms[f"loss_mask{suffix}"] = 5 * mask / count
        terms[f"loss_dice{suffix}"] = 5 * half / count
        terms[f"loss_cls{suffix}"] = 2 * surprise / weight
    return terms


def entropy(x, y):
    return -(y * np.log(1 / (1 + np.exp(-x))) + (1 - y) * np.log(1 / (1 + np.exp(x))))


def dice(x, y):
    p = 1 / (1 + np.exp(-x))
    return 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


def predictions(rows=2, queries=5, classes=4, side=6, count=2, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return SegOutputs(
        class_logits=tuple(torch.randn(rows, queries, classes, generator=generator).to(dtype) for _ in range(count)),
        mask_logits=tuple(
            torch.randn(rows, queries, side, side, generator=generator).to(dtype) * 3 for _ in range(count)
        ),
    )


def target(*labels, side=9, seed=0):
    generator = torch.Generator().manual_seed(seed + 10 * len(labels))
    masks = torch.rand(len(labels), side, side, generator=generator) > 0.4
    return Targets(labels=torch.tensor(labels, dtype=torch.int64), masks=masks)


def test_terms_equal_a_computation_by_hand():
    outputs, config = predictions(), DecoderConfig(points=8)
    targets = [target(0, 2, 2), target(1)]
    made = segmentation_losses(outputs, targets, config, draws(4))
    expected = by_hand(outputs, targets, config, 4)
    assert list(made) == list(expected)
    assert {k: v.item() for k, v in made.items()} == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("shape", [(5, 3), (4, 4), (3, 5), (6, 1)], ids=str)
def test_assignment_is_the_cheapest_of_all(shape):
    costs = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]
    for cost, (queries, targets) in zip(costs, assign(costs), strict=True):
        small, large = min(shape), max(shape)
        tall = cost if shape[0] == large else cost.T
        best = min(
            sum(tall[q, t].item() for t, q in enumerate(chosen))
            for chosen in itertools.permutations(range(large), small)
        )
        assert cost[queries, targets].sum().item() == pytest.approx(best, abs=1e-5)
        assert len(set(queries.tolist())) == len(set(targets.tolist())) == small
        assert queries.tolist() == sorted(queries.tolist())


def test_costs_are_finite_whatever_the_logits():
    # infinite costs become ±1e10 and NaN 0, as in the reference
    classes = torch.tensor([[0.0, 0.0], [math.nan, 0.0], [0.0, 0.0]])
    masks = torch.tensor([[math.inf, 1.0], [1.0, 1.0], [1e30, -1e30]])
    cost = match_cost(classes, masks, torch.tensor([0]), torch.tensor([[0.0, 1.0]]), (2.0, 5.0, 5.0))
    assert cost.isfinite().all()
    assert cost[1, 0] == 0
    assert cost[2, 0] == 1e10
    assert len(assign([cost])[0][0]) == 1


def test_no_targets_leave_only_the_class_term():
    outputs = predictions()
    for logits in outputs.mask_logits:
        logits.requires_grad_()
    terms = segmentation_losses(outputs, [target(), target()], DecoderConfig(points=8), draws())
    assert all((term == 0) == (not name.startswith("loss_cls")) for name, term in terms.items())
    total(terms).backward()
    assert all(logits.grad is not None and not logits.grad.any() for logits in outputs.mask_logits)


def test_masks_are_counted_by_targets_not_pairs_and_averaged_over_processes(monkeypatch):
    targets = [target(0, 1, 2), target()]
    device = torch.device("cpu")
    assert count_masks(targets, device) == 3
    assert count_masks([target()], device) == 1
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.add_(4))  # another process has 4
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert count_masks(targets, device) == 3.5


class Operations(TorchDispatchMode):
    """Counts operations, and the elements of the largest result that is no input."""

    def __init__(self):
        super().__init__()
        self.count, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.count += 1
        if not func.is_view:
            self.largest = max([self.largest, *(x.numel() for x in tree_leaves(made) if isinstance(x, torch.Tensor))])
        return made


@pytest.mark.parametrize("runs", [False, True], ids=["bool", "run lengths"])
def test_cost_grows_with_points_and_not_with_pixels(runs):
    big = torch.zeros(3, 512, 512, dtype=torch.bool)
    big[:, 100:300, 50:400] = True
    targets = Targets(labels=torch.arange(3), masks=as_runs(big) if runs else big)
    config = DecoderConfig(points=32)
    with Operations() as seen:
        segmentation_losses(predictions(rows=1), [targets], config, draws())
    # 3 pairs, 96 candidates, 2 coordinates; runs hold 2 * 350 + 1 numbers a mask
    assert seen.largest <= 3 * 4 * (2 * 350 + 2)
    if not runs:
        assert seen.largest <= 3 * 96 * 2


def test_the_number_of_operations_does_not_grow_with_queries():
    counts = []
    for queries in (5, 50):
        with Operations() as seen:
            segmentation_losses(
                predictions(queries=queries), [target(0, 1), target(2)], DecoderConfig(points=8), draws()
            )
        counts.append(seen.count)
    assert counts[0] == counts[1]


def test_low_precision_masks_are_widened_row_by_row():
    """Of many rows, never all at once."""
    sizes = []
    for rows in (1, 6):
        outputs = predictions(rows=rows, side=64, dtype=torch.bfloat16)
        targets = [
            Targets(labels=torch.zeros(1, dtype=torch.int64), masks=torch.ones(1, 9, 9, dtype=torch.bool))
        ] * rows
        with Operations() as seen:
            match(outputs, targets, DecoderConfig(points=8), draws())
        sizes.append(seen.largest)
    assert sizes == [5 * 64 * 64] * 2


@pytest.mark.parametrize("label", [3, 4], ids=["the background's column", "no column"])
def test_labels_that_are_no_class_are_named(label):
    with pytest.raises(ValueError, match=rf"below 3, the number of classes: \[0, {label}\]"):
        segmentation_losses(predictions(), [target(0, label), target()], DecoderConfig(points=8), draws())


def test_low_precision_logits_give_finite_losses_at_float32_points():
    exact = predictions(classes=4)
    rough = SegOutputs(
        class_logits=tuple(x.bfloat16() for x in exact.class_logits),
        mask_logits=tuple(x.bfloat16() for x in exact.mask_logits),
    )
    same = SegOutputs(
        class_logits=tuple(x.float() for x in rough.class_logits),
        mask_logits=tuple(x.float() for x in rough.mask_logits),
    )
    targets, config = [target(0, 2), target(1)], DecoderConfig(points=64)
    with torch.autocast("cpu", torch.bfloat16):
        made = segmentation_losses(rough, targets, config, draws())
    # the same numbers in float32: nothing below the logits is rounded
    expected = segmentation_losses(same, targets, config, draws())
    assert all(term.dtype == torch.float32 for term in made.values())
    for name, term in made.items():
        torch.testing.assert_close(term, expected[name], atol=1e-5, rtol=0)


def test_draws_are_uniform_float32_and_follow_the_generator():
    points = draws(1).matching(0, 3, 1000)
    assert points.shape == (3, 1000, 2)
    assert points.dtype == torch.float32
    assert torch.equal(points, draws(1).matching(0, 3, 1000))
    assert 0 <= points.min() < 0.01 < 0.99 < points.max() < 1
    # finer than bfloat16, which has 256 steps between 0.5 and 1
    assert len(points[points > 0.5].unique()) > 1000


@pytest.mark.parametrize(
    ("labels", "said"), [([0], "1 labels of 2 masks"), ([0, -1], "negative")], ids=["too few", "no class"]
)
def test_targets_that_do_not_fit(labels, said):
    with pytest.raises(ValueError, match=said):
        Targets(labels=torch.tensor(labels), masks=torch.zeros(2, 4, 4, dtype=torch.bool))


def test_a_code_that_leaves_its_canvas_is_refused():
    rle = coding.encode(np.ones((4, 4), bool))
    with pytest.raises(coding.MaskError):
        Runs.of_rles([rle], (3, 4))
