"""Two datasets compared, against changes that were made by hand; IoU by pixels counted."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from dataengine import masks
from dataengine.sample import Image, Lineage, arrow_schema, to_row
from dataengine.store.dataset import open_dataset
from dataengine.view.compare import Comparison, changes
from dataengine.view.reader import Reader
from dataengine.view.signatures import signatures


@pytest.fixture
def pair(make_sample, write_dataset):
    """Samples before and after, by what was done to them."""
    before = [sample for n in range(60) if len((sample := make_sample(n)).objects) >= 2][:9]
    moved, relabelled, dropped, renamed, elsewhere, reworded, gone, *same = before
    first, *others = moved.objects
    shifted = replace(first, rle=box(12, 20))
    moved = replace(moved, objects=(replace(first, rle=box(12, 10)), *others))
    before[0] = moved
    after = {
        "mask": replace(moved, objects=(shifted, *others)),
        "lineage and category": replace(relabelled, objects=(relabel(relabelled.objects[0]), *relabelled.objects[1:])),
        "an object less": replace(dropped, objects=dropped.objects[1:]),
        "another": replace(renamed, sample_id=f"{renamed.source}/train/new/{renamed.task}"),
        "picture and provenance only": replace(
            elsewhere,
            image=Image(bytes=None, path="/elsewhere.jpg"),
            provenance=replace(elsewhere.provenance, seed=77, file="x"),
        ),
        "text": replace(reworded, turns=(replace(reworded.turns[0], text="Other."), *reworded.turns[1:])),
    }
    return before, [*reversed(same), *after.values()], (moved, relabelled, dropped, renamed, elsewhere, reworded, gone)


def box(height: int, width: int) -> bytes:
    mask = np.zeros((24, 32), dtype=bool)
    mask[:height, :width] = True
    return masks.encode(mask)


def relabel(thing):
    return replace(thing, category_id=9, lineage=Lineage(origin="model", labeler="next", round=7, score=0.5))


@pytest.fixture
def compared(pair, write_dataset):
    comparison = Comparison(*(Reader(open_dataset(str(write_dataset(samples)))) for samples in pair[:2]))
    comparison.fill(lambda: False)
    return comparison


def states(comparison) -> list[dict[str, tuple[int, float]]]:
    found = []
    for side in comparison.sides:
        ids = [side.reader.sample(n).sample_id for n in range(side.reader.num_rows)]
        found.append(dict(zip(ids, zip(side.change.tolist(), side.iou.tolist(), strict=True), strict=True)))
    return found


def test_every_sample_is_same_changed_added_or_removed(compared, pair):
    assert compared.counts() == {"same": 3, "changed": 4, "added": 1, "removed": 2}
    moved, relabelled, dropped, renamed, elsewhere, reworded, gone = pair[2]
    left, right = states(compared)
    assert left[elsewhere.sample_id][0] == right[elsewhere.sample_id][0] == 1
    assert left[gone.sample_id][0] == left[renamed.sample_id][0] == 4
    assert right[f"{renamed.source}/train/new/{renamed.task}"][0] == 3
    for sample, iou in ((moved, 0.5), (relabelled, 1.0), (dropped, 0.0), (reworded, 1.0)):
        assert left[sample.sample_id] == right[sample.sample_id] == (2, iou)
    assert compared.ready == 1
    assert not compared.problems


def test_changes_are_named_object_by_object(pair):
    _, after, (moved, relabelled, dropped, *_, reworded, _) = pair
    new = {sample.sample_id: sample for sample in after}

    def change(sample):
        return changes(sample, new[sample.sample_id])

    key = moved.objects[0].annotation_id
    assert change(moved) == {"fields": ["objects"], "objects": [{"annotation_id": key, "change": "mask", "iou": 0.5}]}
    key = relabelled.objects[0].annotation_id
    assert [(o["annotation_id"], o["change"]) for o in change(relabelled)["objects"]] == [
        (key, "category"),
        (key, "lineage"),
    ]
    key = dropped.objects[0].annotation_id
    assert change(dropped)["objects"] == [{"annotation_id": key, "change": "removed", "iou": None}]
    assert change(reworded) == {"fields": ["turns"], "objects": []}


def test_objects_of_one_annotation_id_belong_together_in_order(make_sample):
    sample = next(s for n in range(60) if len((s := make_sample(n)).objects) == 3)
    same = tuple(replace(thing, annotation_id="7") for thing in sample.objects)
    left = replace(sample, objects=same)
    right = replace(sample, objects=(same[0], replace(same[1], prompts=()), same[2], same[0]))
    found = changes(left, right)["objects"]
    prompts = [("7", "prompts")] if same[1].prompts else []
    assert [(o["annotation_id"], o["change"]) for o in found] == [*prompts, ("7", "added")]


def test_masks_of_another_canvas_or_that_are_none_have_no_iou(make_sample):
    sample = next(s for n in range(60) if (s := make_sample(n)).objects)
    broken = replace(sample, objects=(replace(sample.objects[0], rle=b"\xff\x00"), *sample.objects[1:]))
    assert changes(sample, broken)["objects"][0] | {"annotation_id": ""} == {
        "annotation_id": "",
        "change": "mask",
        "iou": None,
    }
    taller = replace(broken, height=99)
    assert changes(sample, taller)["objects"][0]["iou"] is None
    assert set(changes(sample, taller)["fields"]) == {"height", "objects"}


def test_a_signature_changes_with_every_value(make_sample):
    sample = next(s for n in range(60) if (s := make_sample(n)).references and s.objects and s.objects[0].prompts)

    def sign(*samples):
        table = pa.Table.from_pylist([to_row(s) for s in samples], schema=arrow_schema())
        return signatures(table).tolist()

    thing, *others = sample.objects
    prompt, *prompts = thing.prompts
    variants = [
        sample,
        replace(sample, caption=""),
        replace(sample, variant="x"),
        replace(sample, width=33),
        replace(sample, turns=sample.turns[:1]),
        replace(sample, objects=(replace(thing, crowd=True), *others)),
        replace(sample, objects=(replace(thing, prompts=(replace(prompt, points=(1.0,)), *prompts)), *others)),
        replace(sample, objects=(replace(thing, prompts=(replace(prompt, parts=(1,)), *prompts)), *others)),
        replace(sample, references=()),
        replace(sample, license=replace(sample.license, url="z")),
    ]
    found = sign(*variants)
    assert len(set(found)) == len(variants)
    assert sign(*reversed(variants)) == found[::-1]  # whatever stands beside it
    assert sign(sample) == found[:1]


@pytest.mark.parametrize("number", [0, 2])
def test_a_damaged_shard_leaves_its_samples_unknown(made_dataset, tmp_path, number):
    out = shutil.copytree(made_dataset, tmp_path / "damaged")
    damaged = sorted((out / "shards").iterdir())[number]
    damaged.write_bytes(b"PAR1")
    for folders in ((made_dataset, out), (out, made_dataset)):
        comparison = Comparison(*(Reader(open_dataset(str(folder))) for folder in folders))
        comparison.fill(lambda: False)
        assert comparison.ready == 1
        assert comparison.counts() == {"same": 110, "changed": 0, "added": 0, "removed": 0}
        assert any(damaged.name in problem for problem in comparison.problems)


def test_a_damaged_shard_hides_no_change_of_another_split(made_samples, write_dataset):
    one = write_dataset(made_samples)
    other = write_dataset([sample for sample in made_samples if sample.sample_id != made_samples[-1].sample_id])
    damaged = sorted((other / "shards").iterdir())[0]  # of another source than the sample that was removed
    damaged.write_bytes(b"PAR1")
    comparison = Comparison(*(Reader(open_dataset(str(folder))) for folder in (one, other)))
    comparison.fill(lambda: False)
    assert comparison.counts() == {"same": 109, "changed": 0, "added": 0, "removed": 1}


def test_against_nothing_all_is_new(made_dataset, write_dataset):
    comparison = Comparison(*(Reader(open_dataset(str(folder))) for folder in (write_dataset([]), made_dataset)))
    comparison.fill(lambda: False)
    assert comparison.counts() == {"same": 0, "changed": 0, "added": 120, "removed": 0}
    assert not comparison.problems
