"""What is drawn anew: always a sample that holds together, keyed by sample, epoch and copy, and drawn as it says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from dataengine import invariants
from dataengine.errors import UserError
from dataengine.loader.fresh import Redraw
from dataengine.loader.groups import open_data
from dataengine.loader.order import Draw
from dataengine.loader.rows import Rows

from .conftest import chat

STORED = Redraw(seed=1, wording=False, categories=False, exemplars=False, kinds=())


@pytest.fixture
def rows(write_dataset, vgd, genseg) -> Rows:
    """Samples 0 to 2 are of c, 3 to 14 of g, 15 to 26 of v; twelve in a row group."""
    sources = {"v/train": [vgd("v", 12)], "g/train": [genseg("g", 12)], "c/train": [[chat("c", n) for n in range(3)]]}
    return Rows(open_data([write_dataset("d", sources, group=12)]))


def drawn(rows: Rows, redraw: Redraw, number: int, epoch: int = 0, copy: int = 0):
    sample = redraw(rows.read(number), Draw(number=number, epoch=epoch, copy=copy), rows)
    invariants.check(sample)
    return sample


@pytest.mark.parametrize("cross_image", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("limits", [{}, {"max_categories": 1}, {"max_negatives": 2, "max_categories": 3}])
def test_what_comes_out_holds_together(rows, cross_image, limits):
    redraw = Redraw(seed=7, cross_image=cross_image, region_negatives=2, **limits)
    for number in range(rows.data.num_samples):
        for epoch in range(3):
            sample = drawn(rows, redraw, number, epoch)
            if limits and sample.task != "chat":
                assert 1 <= len(sample.conditions) <= limits["max_categories"]


def test_nothing_else_changes(rows):
    for number in range(rows.data.num_samples):
        before = rows.read(number)
        assert drawn(rows, STORED, number) == before
        after = drawn(rows, Redraw(seed=7, cross_image=0.5, region_negatives=2), number)
        bare = {"turns": (), "conditions": (), "references": (), "objects": ()}
        assert replace(after, **bare) == replace(before, **bare)
        masks = [(thing.rle, thing.category_id, thing.annotation_id) for thing in before.objects]
        assert [(thing.rle, thing.category_id, thing.annotation_id) for thing in after.objects] == masks
        wanted = {c.category_id: c.objects for c in before.conditions if c.objects}
        assert {c.category_id: c.objects for c in after.conditions if c.objects} == wanted


def test_draws_are_keyed_by_sample_epoch_and_copy(rows):
    redraw = Redraw(seed=7, cross_image=0.5)
    found = {
        (epoch, copy): [drawn(rows, redraw, number, epoch, copy) for number in range(3, 27)]
        for epoch in range(2)
        for copy in range(2)
    }
    assert found[0, 0] == [drawn(Rows(rows.data), redraw, number) for number in reversed(range(3, 27))][::-1]
    assert len({repr(samples) for samples in found.values()}) == 4
    assert [drawn(rows, replace(redraw, seed=8), number) for number in range(3, 27)] != found[0, 0]


def test_categories_are_all_present_ones_and_some_of_the_others(rows):
    asked = [drawn(rows, Redraw(seed=7), 5, epoch) for epoch in range(300)]
    present = {c.category_id for c in rows.read(5).conditions if c.objects}
    assert len(present) == 2
    sizes = Counter(len(sample.conditions) for sample in asked)
    assert all(present <= {c.category_id for c in sample.conditions} for sample in asked)
    # half of the time all six, else the two and 0 to 4 others: six in 1/2 + 1/2 * 1/5 of the draws
    assert 150 < sizes[6] < 210
    assert all(15 < sizes[n] < 50 for n in range(2, 6))
    firsts = Counter(sample.conditions[0].category_id for sample in asked)
    assert len(firsts) == 6


@pytest.mark.parametrize("facts", [{"builder": "lvis"}, {"options": {"federated": True}}])
def test_categories_of_federated_sources_are_those_that_are_known(write_dataset, genseg, facts):
    rows = Rows(open_data([write_dataset("d", {"g/train": [genseg("g", 4)]}, **facts)]))
    known = {c.category_id for c in rows.read(2).conditions}
    for epoch in range(20):
        assert {c.category_id for c in drawn(rows, Redraw(seed=7), 2, epoch).conditions} <= known


def test_a_category_with_objects_is_never_asked_for_as_absent(rows):
    for epoch in range(20):
        for number in range(3, 15):
            sample = drawn(rows, Redraw(seed=7), number, epoch)
            there = {thing.category_id for thing in sample.objects}
            assert all(bool(c.objects) == (c.category_id in there) for c in sample.conditions)


def test_exemplars_are_any_object_of_the_category(rows):
    number = 15 + 2  # three objects, the first and the third of one category
    shown = Counter(
        next(c.exemplar for c in drawn(rows, Redraw(seed=7), number, epoch).conditions if len(c.objects) == 2)
        for epoch in range(60)
    )
    assert set(shown) == {0, 2}
    assert min(shown.values()) > 15


def test_exemplars_of_other_pictures_are_of_the_category(rows):
    redraw = Redraw(seed=7, cross_image=1.0)
    stored = {s.image_key: s for s in map(rows.read, range(15, 27))}
    origins = Counter()
    for epoch in range(10):
        for number in range(15, 27):
            sample = drawn(rows, redraw, number, epoch)
            for condition in sample.conditions:
                reference = sample.references[condition.reference]
                origin = stored[reference.image_key]
                assert reference.image_key != sample.image_key
                assert reference.image == origin.image
                (thing,) = [o for o in origin.objects if o.annotation_id == reference.annotation_id]
                assert thing.category_id == reference.category_id == condition.category_id
                assert reference.prompts[0] in thing.prompts
                origins[reference.image_key] += 1
    assert len(origins) == 12


def test_negative_regions_are_of_categories_that_the_picture_lacks(rows):
    redraw = Redraw(seed=7, region_negatives=2)
    numbers = Counter()
    for epoch in range(20):
        for number in range(15, 27):
            sample = drawn(rows, redraw, number, epoch)
            there = {thing.category_id for thing in sample.objects}
            negative = [c for c in sample.conditions if not c.objects]
            assert not there & {c.category_id for c in negative}
            assert [c.text for c in negative] == [f"kind {c.category_id}" for c in negative]
            numbers[len(negative)] += 1
    assert set(numbers) == {0, 1, 2}
    assert numbers[0] > numbers[1] + numbers[2]  # 2/3 of the draws


def test_each_object_keeps_one_prompt_of_the_wanted_kinds(rows):
    kinds = Counter()
    for epoch in range(60):
        for number in range(15, 27):
            for thing in drawn(rows, Redraw(seed=7, kinds=("box", "mask")), number, epoch).objects:
                (prompt,) = thing.prompts
                kinds[prompt.kind] += 1
    assert set(kinds) == {"box", "mask"}
    assert 0.8 < kinds["box"] / kinds["mask"] < 1.25


def test_an_exemplar_without_the_wanted_kinds_is_shown_as_it_can_be(rows):
    sample = rows.read(17)
    objects = tuple(replace(thing, prompts=thing.prompts[:1]) for thing in sample.objects)
    after = Redraw(seed=7, kinds=("box",))(replace(sample, objects=objects), Draw(number=17, epoch=0, copy=0), rows)
    invariants.check(after)
    assert {thing.prompts[0].kind for thing in after.objects} == {"point"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_categories": 0}, "max_categories is 0"),
        ({"cross_image": 1.5}, "cross_image is 1.5"),
        ({"region_negatives": -1}, "fewer than 0"),
        ({"kinds": ("lasso",)}, "'lasso' is no kind of prompt"),
    ],
)
def test_what_cannot_be_drawn_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        Redraw(seed=1, **given)
