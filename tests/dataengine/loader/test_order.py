"""The order of draws: exact counts, tasks apart, nothing kept, the same for every number of processes."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from dataengine import mixing
from dataengine.errors import UserError
from dataengine.loader.groups import SourceRows
from dataengine.loader.order import Order


def sources(*given: tuple[str, str, list[int]]) -> tuple[SourceRows, ...]:
    """Sources by name, task and the rows of their row groups."""
    found, first = [], 0
    for name, task, rows in given:
        starts = np.cumsum([0, *rows])
        found.append(SourceRows(name=name, task=task, first=first, starts=starts))
        first += int(starts[-1])
    return tuple(found)


THREE = sources(("a", "vgdseg", [30, 20, 50]), ("b", "vgdseg", [7]), ("c", "genseg", [11, 12]))


def drawn(order: Order, epoch: int = 0) -> list:
    first = epoch * order.steps_per_epoch
    return [order.step(first + n) for n in range(order.steps_per_epoch)]


@pytest.mark.parametrize(
    "rule",
    [
        None,
        mixing.Balanced(threshold=0.5),
        mixing.Temperature(t=2, total=77),
        mixing.Weights({"a": 0.1, "b": 3, "c": 1}),
        mixing.Weights({"a": 1, "b": 0, "c": 1}, total=500),
    ],
    ids=["once", "balanced", "temperature", "weights", "a source left out"],
)
@pytest.mark.parametrize("epoch", [0, 3])
def test_an_epoch_draws_as_often_as_the_rule_says(rule, epoch):
    order = Order(THREE, rule, seed=5, batch=8)
    copies: dict[int, list[int]] = {}
    for step in drawn(order, epoch):
        for draw in step.draws:
            assert draw.epoch == epoch
            copies.setdefault(draw.number, []).append(draw.copy)
    table = mixing.table({s.name: s.num_samples for s in THREE}, rule or mixing.Balanced(threshold=0))
    for source, row in zip(THREE, table, strict=True):
        rows = mixing.indices(source.num_samples, row.length, seed=5, epoch=epoch, name=source.name)
        wanted = Counter((rows + source.first).tolist())
        got = {n: sorted(c) for n, c in copies.items() if source.first <= n < source.first + source.num_samples}
        assert got == {number: list(range(times)) for number, times in wanted.items()}


def test_steps_are_of_one_task_of_nearly_equal_size_and_mixed_over_the_epoch():
    order = Order(THREE, seed=1, batch=10)
    steps = drawn(order)
    tasks = {source.first: source.task for source in THREE}
    for step in steps:
        owners = {max(first for first in tasks if first <= draw.number) for draw in step.draws}
        assert {tasks[first] for first in owners} == {step.task}
    sizes = {task: Counter(len(s.draws) for s in steps if s.task == task) for task in ("vgdseg", "genseg")}
    assert sizes == {"vgdseg": {9: 3, 10: 8}, "genseg": {7: 1, 8: 2}}  # 107 in 11 steps, 23 in 3
    assert len({tuple(step.task for step in drawn(order, epoch)) for epoch in range(4)}) == 4


def test_a_step_depends_on_its_number_alone():
    order = Order(THREE, mixing.Balanced(threshold=0.5), seed=9, batch=16)
    steps = [order.step(n) for n in range(3 * order.steps_per_epoch)]
    again = pickle.loads(pickle.dumps(order))
    assert [again.step(n) for n in reversed(range(len(steps)))] == steps[::-1]
    assert Order(THREE, mixing.Balanced(threshold=0.5), seed=10, batch=16).step(0) != steps[0]
    per_epoch = order.steps_per_epoch
    assert [s.draws for s in steps[:per_epoch]] != [s.draws for s in steps[per_epoch : 2 * per_epoch]]


@pytest.mark.parametrize("world", [1, 3, 16])
def test_processes_share_a_step(world):
    order = Order(THREE, seed=1, batch=10)
    for step in drawn(order):
        parts = [step.of_rank(rank, world) for rank in range(world)]
        assert sorted((d.number, d.copy) for part in parts for d in part) == sorted(
            (d.number, d.copy) for d in step.draws
        )


def test_few_row_groups_are_in_use_at_a_time_and_all_rows_of_a_window_are_mixed():
    order = Order(sources(("a", "chat", [10] * 40)), seed=2, batch=4, block=50)
    numbers = [draw.number for step in drawn(order) for draw in step.draws]
    windows = [[n // 10 for n in numbers[at : at + 50]] for at in range(0, 400, 50)]
    assert [len(set(window)) for window in windows] == [5] * 8  # of 10 rows each
    neighbours = sum(a == b for window in windows for a, b in pairwise(window))
    assert neighbours < 120  # of 392 pairs: about a fifth by chance
    assert sorted(windows[0]) != [g for g in range(5) for _ in range(10)]  # nor are the groups as they are stored


def test_draws_of_like_length_share_a_step():
    lengths = np.random.default_rng(0).integers(0, 10_000, 130)
    order = Order(THREE, seed=1, batch=10, lengths=lengths, stretch=100)
    steps = drawn(order)
    assert sorted(d.number for s in steps for d in s.draws) == list(range(130))
    ranges = sorted(
        (min(lengths[d.number] for d in s.draws), max(lengths[d.number] for d in s.draws))
        for s in steps
        if s.task == "vgdseg"
    )
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))
    firsts = [lengths[s.draws[0].number] for s in steps if s.task == "vgdseg"]
    assert firsts != sorted(firsts)


def test_stand_ins_are_of_the_task_and_begin_behind_the_step():
    order = Order(THREE, seed=1, batch=10)
    steps = [step for step in drawn(order) if step.task == "genseg"]
    wanted = [*steps[2].draws, *steps[0].draws, *steps[1].draws]
    assert list(order.after(steps[1])) == wanted


def test_settings_tell_orders_apart():
    lengths = np.arange(130)
    orders = [
        Order(THREE, seed=1, batch=10),
        Order(THREE, seed=2, batch=10),
        Order(THREE, seed=1, batch=11),
        Order(THREE, seed=1, batch=10, block=5),
        Order(THREE, mixing.Balanced(), seed=1, batch=10),
        Order(THREE, mixing.Weights({"a": 1, "b": 1, "c": 1}), seed=1, batch=10),
        Order(THREE, seed=1, batch=10, lengths=lengths),
        Order(THREE, seed=1, batch=10, lengths=lengths + 1),
    ]
    assert len({repr(order.settings) for order in orders}) == len(orders)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"block": -1}, "block is -1"),
        ({"rule": mixing.Weights({"a": 1})}, "b, c has no weight"),
        ({"lengths": np.arange(3)}, "3 lengths for 130 samples"),
    ],
)
def test_what_cannot_be_ordered_is_said(given, said):
    with pytest.raises(UserError, match=said):
        Order(THREE, **{"seed": 1, "batch": 10, **given})
