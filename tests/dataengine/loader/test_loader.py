"""Batches: the same whatever the workers, resumed by one integer, shared by processes, with losses counted."""

from __future__ import annotations

import io
import logging
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow

from dataengine import invariants, mixing
from dataengine.errors import UserError
from dataengine.loader.fresh import Redraw
from dataengine.loader.groups import open_data
from dataengine.loader.loader import Loader
from dataengine.loader.order import Order
from dataengine.loader.pictures import decoded
from dataengine.sample import Image
from dataengine.store.commits import DatasetError

from .conftest import chat


@pytest.fixture
def data(write_dataset, vgd, genseg):
    """Samples 0 to 4 are of c, 5 to 13 of g, 14 to 30 of v."""
    sources = {
        "v/train": [vgd("v", 11), vgd("w", 6)],
        "g/train": [genseg("g", 9)],
        "c/train": [[chat("c", n) for n in range(5)]],
    }
    return open_data([write_dataset("d", sources)])


def make(sample, draw):
    pixels = decoded(sample) if sample.image is not None else np.zeros((1, 1, 3), dtype=np.uint8)
    return draw, sample, int(pixels.astype(int).sum())


def order_of(data, **given) -> Order:
    return Order(data.sources, **{"seed": 3, "batch": 6, "block": 8, **given})


def load(data, order, **given) -> list:
    given = {"micro": 2, "stop": 2 * order.steps_per_epoch, **given}
    return list(Loader(data, order, make, list, **given))


@pytest.mark.parametrize("fresh", [None, Redraw(seed=1, cross_image=0.5, region_negatives=2)], ids=["stored", "fresh"])
def test_workers_change_nothing(data, fresh):
    order = order_of(data)
    alone = load(data, order, fresh=fresh, stop=order.steps_per_epoch)
    assert [(m.step, m.index) for m in alone] == [(m.step, i) for m in alone if not m.index for i in range(m.count)]
    for workers in (1, 2):
        assert load(data, order, fresh=fresh, stop=order.steps_per_epoch, workers=workers) == alone


def test_a_run_that_starts_again_goes_on_with_the_same(data):
    order = order_of(data)
    whole = load(data, order)
    for start in (1, order.steps_per_epoch, order.steps_per_epoch + 2):
        assert load(data, order_of(data), start=start) == [m for m in whole if m.step >= start]


def test_an_epoch_holds_every_sample_as_often_as_the_rule_says(data):
    rule = mixing.Weights({"v": 1, "g": 2, "c": 1}, total=50)
    order = order_of(data, rule=rule)
    seen = Counter(i for m in load(data, order, stop=order.steps_per_epoch, micro=None) for i in m.sample_ids)
    rows = [
        (row.name, row.num_samples, row.length)
        for row in mixing.table({s.name: s.num_samples for s in data.sources}, rule)
    ]
    for name, number, length in rows:
        counts = Counter(seen[i] for i in seen if i[0] in (("v", "w") if name == "v" else name))
        low, more = divmod(length, number)
        assert counts == Counter({times: n for times, n in {low: number - more, low + 1: more}.items() if times and n})


@pytest.mark.parametrize("world", [2, 5, 9])
def test_processes_share_each_step_and_take_as_many_turns(data, world):
    order = order_of(data)
    ranks = [load(data, order, rank=rank, world=world) for rank in range(world)]
    alone = Counter((m.step, i) for m in load(data, order) for i in m.sample_ids)
    together = Counter((m.step, i) for rank in ranks for m in rank if not m.stand_in for i in m.sample_ids)
    assert together == alone
    for turn in zip(*ranks, strict=True):
        assert len({(m.step, m.task, m.index, m.count) for m in turn}) == 1
        assert all(1 <= len(m.batch) <= 2 for m in turn)
        draws = order.step(turn[0].step).draws
        assert all(draw in draws for m in turn if not m.stand_in for draw, *_ in m.batch)


def test_samples_are_as_stored_unless_drawn_anew(data):
    order = order_of(data)
    stored = {s.sample_id: s for dataset in data.datasets for s in dataset.samples()}
    for micro in load(data, order, stop=order.steps_per_epoch):
        for _, sample, _ in micro.batch:
            assert sample == stored[sample.sample_id]
    texts: dict[str, set[str]] = {}
    for micro in load(data, order, fresh=Redraw(seed=1), stop=6 * order.steps_per_epoch):
        for _, sample, _ in micro.batch:
            invariants.check(sample)
            texts.setdefault(sample.sample_id, set()).add(sample.turns[0].text)
    assert all(len(found) > 1 for i, found in texts.items() if not i.endswith("chat"))


def test_the_global_generator_of_torch_is_left_alone(data):
    torch = pytest.importorskip("torch")
    before = torch.random.get_rng_state().clone()
    load(data, order_of(data), workers=1, stop=2)
    assert (torch.random.get_rng_state() == before).all()


# --- losses -----------------------------------------------------------------------------------------------------------


def damage(data, number: int) -> None:
    """Invert the head of a compressed page in a sample's row group."""
    place = data.place(number)
    path = data.datasets[0].folder.path / place.shard.name
    about = pq.read_metadata(path).row_group(place.group)
    columns = [about.column(i) for i in range(about.num_columns)]
    at = next(c.data_page_offset for c in columns if c.path_in_schema == "turns.list.element.text")
    content = bytearray(path.read_bytes())
    content[at : at + 60] = bytes(255 - value for value in content[at : at + 60])
    path.write_bytes(content)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_group_that_cannot_be_read_is_said_once_and_counted(data, workers, caplog):
    damage(data, 19)  # the second row group of v
    order = order_of(data)
    loader = Loader(data, order, make, list, micro=2, workers=workers, stop=2 * order.steps_per_epoch, budget=0.2)
    with caplog.at_level(logging.WARNING):
        micros = list(loader)
    lost = [lost for micro in micros for lost in micro.lost]
    assert Counter(one.draw.number for one in lost) == {18: 2, 19: 2, 20: 2, 21: 2}  # in two epochs
    assert loader.lost == {"row_group": 8}
    assert {one.reason for one in lost} == {"row_group"}
    assert all(str(data.datasets[0].folder.uri) in one.place for one in lost)
    (record,) = caplog.records
    assert "v-train-0.parquet" in record.getMessage()
    assert "(row group 1, 4 rows)" in record.getMessage()
    assert sum(len(m.sample_ids) for m in micros if not m.stand_in) + len(lost) == 2 * data.num_samples


def test_a_micro_batch_of_which_nothing_is_left_gets_a_stand_in(data):
    damage(data, 19)
    order = order_of(data)
    whole = load(data, order, micro=1, budget=1.0)
    empty = [m for m in whole if m.stand_in]
    assert len(empty) == 8
    for micro in empty:
        ((draw, sample, _),) = micro.batch
        step = order.step(micro.step)
        readable = [d for d in order.after(step) if d.number not in (18, 19, 20, 21)]
        assert (draw, sample.task) == (readable[0], micro.task)
        assert len(micro.lost) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_more_losses_than_the_budget_stop_the_run(data, workers):
    damage(data, 19)
    with pytest.raises(
        DatasetError, match=r"samples cannot be used by step \d+, of 31; the budget of 0\.1 allows 3.*v-train"
    ):
        load(data, order_of(data), workers=workers, budget=0.1)


def test_a_task_of_which_nothing_can_be_read_stops_the_run(data):
    for number in (0, 4):  # both row groups of c
        damage(data, number)
    with pytest.raises(DatasetError, match=r"no sample of chat can be used in its place: .*c-train"):
        load(data, order_of(data), budget=1.0)


def refuse(sample, draw, error):
    if sample.sample_id == "g/train/3/genseg":
        raise error
    return make(sample, draw)


def test_samples_that_cannot_be_used_are_lost_for_their_reason(data):
    order = order_of(data)
    for error, reason in (
        (invariants.InvariantError("g", "span", "no span"), "span"),
        (UserError("no"), "unusable"),
        (FileNotFoundError(2, "gone"), "unusable"),
    ):
        loader = Loader(data, order, partial(refuse, error=error), list, stop=order.steps_per_epoch, budget=0.1)
        (lost,) = [lost for micro in loader for lost in micro.lost]
        assert lost.reason == reason
        assert "g-train-0.parquet, row group 0, row 3 (g/train/3/genseg)" in lost.message


def test_a_damaged_picture_is_one_lost_sample(data):
    place = data.place(16)
    path = data.datasets[0].folder.path / place.shard.name
    content = bytearray(path.read_bytes())
    picture = next(s for s in data.datasets[0].samples() if s.sample_id == "v/train/2/vgdseg").image.bytes
    at = content.index(picture)
    content[at : at + 20] = b"\0" * 20
    path.write_bytes(content)
    order = order_of(data)
    loader = Loader(data, order, make, list, stop=order.steps_per_epoch, budget=0.1)
    assert [lost.draw.number for micro in loader for lost in micro.lost] == [16]
    assert loader.lost == {"image_unreadable": 1}


def test_a_defect_is_not_a_loss(data):
    order = order_of(data)
    with pytest.raises(TypeError) as caught:
        list(Loader(data, order, partial(refuse, error=TypeError("a defect")), list, stop=order.steps_per_epoch))
    assert "g/train/3/genseg" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": 2, "world": 2}, "there is no process 2 of 2"),
        ({"micro": 0}, "micro is 0"),
        ({"start": -1}, "steps -1"),
        ({"start": 5, "stop": 4}, "steps 5 to 4"),
    ],
)
def test_numbers_that_cannot_be_are_refused(data, given, said):
    with pytest.raises(UserError, match=said):
        Loader(data, order_of(data), make, list, **given)


@pytest.mark.parametrize("size", [(1, 1), (641, 3), (2500, 2000)])  # the last lies in several blocks
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_pixels_are_those_that_numpy_reads(size, mode):
    rng = np.random.default_rng(0)
    picture = Pillow.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=0)
    image = Image(bytes=file.getvalue(), path="a.png")
    pixels = decoded(replace(chat("c", 0), image=image, height=size[1], width=size[0]))
    np.testing.assert_array_equal(pixels, np.asarray(picture.convert("RGB")))
    assert not pixels.flags.writeable


def test_decoded_pictures_are_those_of_pillow(data):
    for micro in load(data, order_of(data), stop=3):
        for _, sample, total in micro.batch:
            if sample.image is not None:
                picture = Pillow.open(io.BytesIO(sample.image.bytes)).convert("RGB")
                assert total == np.asarray(picture).astype(int).sum()


def test_the_order_of_epochs_differs(data):
    order = order_of(data)
    ids = [i for m in load(data, order) for i in m.sample_ids]
    assert ids[: data.num_samples] != ids[data.num_samples :]
