"""cIoU, gIoU, Pr@τ, N-acc, T-acc: recorded values, cases by hand, and what must hold of any masks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dataengine import masks
from dataengine.errors import UserError
from dataengine.masks import MaskError
from dataengine.metrics.overlap import GeneralizedOverlaps, Overlaps, areas

H, W = 4, 6
MASK = hnp.arrays(bool, (H, W))
SAMPLES = st.lists(st.tuples(MASK, MASK), min_size=1, max_size=5)


def row(*columns: int) -> bytes:
    """A mask of pixels of the first row."""
    mask = np.zeros((H, W), bool)
    mask[0, list(columns)] = True
    return masks.encode(mask)


def recorded(folder, name: str) -> list[dict]:
    return json.loads((folder / "golden" / "metrics" / name).read_text())["groups"]


def code(rle: dict | None) -> bytes | None:
    return rle and rle["counts"].encode()


def test_values_of_x_sam(fixtures):
    for group in recorded(fixtures, "iou.json"):
        overlaps = Overlaps()
        for number, sample in enumerate(group["samples"]):
            truth, found, ignore = (code(sample.get(name)) for name in ("gt", "pred", "ignore"))
            both = overlaps.add((number,), truth, found, *sample["gt"]["size"], ignore=ignore)
            assert both == (sample["intersection"][1], sample["union"][1])
        score = overlaps.result()
        assert 100 * score.ciou == pytest.approx(group["cIoU_percent"][1], rel=1e-12)
        assert 100 * score.giou == pytest.approx(group["gIoU_percent"][1], rel=1e-12)
        assert score.n == len(group["samples"])


def test_values_of_grefcoco(fixtures):
    for group in recorded(fixtures, "grefcoco.json"):
        overlaps = GeneralizedOverlaps()
        for number, sample in enumerate(group["samples"]):
            both = overlaps.add((number,), code(sample["gt"]), code(sample["pred"]), *sample["gt"]["size"])
            assert both == (sample["intersection"], sample["union"])
        score = overlaps.result()
        values = {"gIoU": score.giou, "cIoU": score.ciou, "N_acc": score.n_acc, "T_acc": score.t_acc}
        for name, value in values.items():
            assert value == (None if group[name] is None else pytest.approx(group[name], rel=1e-12)), name


def test_by_hand():
    overlaps = Overlaps()
    overlaps.add(("a", 1), row(0, 1, 2, 3), row(1, 2), H, W)  # 2 of 4
    overlaps.add(("a", 2), row(0), row(0), H, W)  # 1 of 1
    overlaps.add(("b", 1), row(0, 1, 2), row(4, 5), H, W)  # 0 of 5
    overlaps.add(("b", 2), row(), row(), H, W)  # nothing of nothing
    score = overlaps.result()
    assert score.ciou == 3 / 10
    assert score.giou == (0.5 + 1 + 0 + 1) / 4
    assert score.precision == {0.5: 0.75, 0.6: 0.5, 0.7: 0.5, 0.8: 0.5, 0.9: 0.5}


def test_ignored_pixels_leave_both():
    assert areas(row(0, 1, 2, 3), row(2, 3, 4, 5), H, W, row(3, 4)) == (1, 4, 3, 2)  # of 2, 6, 4, 4
    overlaps = Overlaps()
    overlaps.add((1,), row(0, 1), row(1, 2), H, W, ignore=row(0, 1, 2))
    assert overlaps.result().giou == overlaps.result().ciou == 1.0


def test_without_a_target():
    overlaps = GeneralizedOverlaps()
    overlaps.add((1,), row(), row(), H, W)  # right
    overlaps.add((2,), row(), row(0, 1, 2), H, W)  # three pixels too many
    overlaps.add((3,), row(0, 1), row(0), H, W)  # 1 of 2
    overlaps.add((4,), row(0), row(), H, W)  # missed, 0 of 1
    score = overlaps.result()
    assert (score.ciou, score.giou, score.n_acc, score.t_acc) == (1 / 6, (1 + 0 + 0.5 + 0) / 4, 0.5, 0.5)
    targets = overlaps.result("xsam")
    assert (targets.ciou, targets.giou, targets.n) == (1 / 3, 0.25, 2)
    assert (targets.n_acc, targets.t_acc) == (0.5, 0.5)


def test_keys_are_tuples_that_come_once():
    overlaps = Overlaps()
    overlaps.add((12, 34), row(0), row(0), H, W)
    overlaps.add((123, 4), row(0), row(0), H, W)  # run together they would be one
    with pytest.raises(UserError, match=r"\(12, 34\) was given twice"):
        overlaps.add((12, 34), row(0), row(0), H, W)
    with pytest.raises(UserError, match="a key is a tuple, not '1234'"):
        overlaps.add("1234", row(0), row(0), H, W)
    with pytest.raises(UserError, match=r"\(12, 34\) was given twice"):
        overlaps.merge(overlaps)
    with pytest.raises(UserError, match="do not merge"):
        overlaps.merge(Overlaps([0.5]))
    assert overlaps.result().n == 2


def test_a_mask_of_another_size_is_refused():
    overlaps = Overlaps()
    with pytest.raises(MaskError, match="24"):
        overlaps.add((1,), row(0), masks.encode(np.zeros((9, 9), bool)), H, W)
    assert overlaps.result().n == 0


@pytest.mark.parametrize("kind", [Overlaps, GeneralizedOverlaps])
def test_no_samples(kind):
    score = kind().result()
    assert (score.ciou, score.giou, score.n) == (None, None, 0)
    assert set(score.precision.values()) == {None}


@pytest.mark.parametrize("kind", [Overlaps, GeneralizedOverlaps])
@given(SAMPLES, st.data())
def test_what_holds_of_any_masks(kind, samples, data):
    whole, parts, perfect = kind(), (kind(), kind()), kind()
    order = data.draw(st.permutations(range(len(samples))))
    for number in range(len(samples)):
        truth, found = map(masks.encode, samples[number])
        whole.add((number,), truth, found, H, W)
        perfect.add((number,), truth, truth, H, W)
    for place, number in enumerate(order):
        parts[place % 2].add((number,), *map(masks.encode, samples[number]), H, W)
    parts[0].merge(parts[1])
    assert parts[0].result() == whole.result()
    assert (perfect.result().ciou, perfect.result().giou) == (1.0, 1.0)
    union = sum(int((truth | found).sum()) for truth, found in samples)
    inter = sum(int((truth & found).sum()) for truth, found in samples)
    assert whole.result().ciou == (inter / union if union else 1.0)


@given(MASK, MASK, MASK)
def test_areas_are_those_of_the_pixels(truth, found, ignore):
    kept = ~ignore
    wanted = (truth & found & kept, (truth | found) & kept, truth & kept, found & kept)
    assert areas(*map(masks.encode, (truth, found)), H, W, masks.encode(ignore)) == tuple(int(w.sum()) for w in wanted)
