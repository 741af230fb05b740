"""Post-processing against recorded results of the published code, and against what follows from logits made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dataengine import masks  # noqa: E402
from model import postprocess  # noqa: E402
from model.postprocess import EVALUATE, PUBLISHED, Frame, Thresholds  # noqa: E402

BIG = 20.0  # a logit whose probability is 1 in float32


# --- recorded results ------------------------------------------------------------------------------------------------


class Golden:
    def __init__(self, folder):
        from safetensors.torch import load_file

        self.tensors = load_file(folder / "tensors.safetensors")
        self.config = json.loads((folder / "config.json").read_text())

    def images(self, case):
        """Logits, frame, recorded tensors by name and recorded JSON of each picture of a case."""
        stated = self.config["cases"][case]
        sizes = stated.get("image_sizes", self.config["image_sizes"])
        scaled = stated.get("scaled_sizes", self.config["scaled_sizes"])
        for i, result in enumerate(stated["results"]):
            frame = Frame(canvas=self.config["canvas"][0], scaled=tuple(scaled[i]), size=tuple(sizes[i]))
            prefix = f"{case}.{i}."
            tensors = {k.removeprefix(prefix): v.numpy() for k, v in self.tensors.items() if k.startswith(prefix)}
            logits = self.tensors[f"{case}.class_logits"][i], self.tensors[f"{case}.mask_logits"][i]
            yield i, logits, frame, tensors, result


@pytest.fixture
def golden(fixtures):
    return Golden(fixtures / "golden" / "model" / "postprocess")


def raster(found, frame):
    return masks.decode(found.rle, *frame.size)


def test_semantic_maps_are_the_published_ones(golden):
    for _, logits, frame, recorded, _ in golden.images("semantic"):
        assert np.array_equal(postprocess.semantic(*logits, frame), recorded["segmentation"])


@pytest.mark.parametrize("case", ["instance_t0", "instance_t5", "instance_binary_maps", "vgdseg", "vgdseg_t5"])
def test_instances_are_the_published_ones(golden, case):
    stated = golden.config["cases"][case]
    for i, logits, frame, recorded, result in golden.images(case):
        found = postprocess.instances(*logits, frame, Thresholds(instance=stated["threshold"]))
        labels = recorded["instances.pred_classes"]
        if result.get("sampled_labels") is not None:  # there labels are those of the source, not columns
            shown = stated["sampled_labels_in"][i]
            assert result["sampled_labels"] == [stated["dataset_ids"].index(one) for one in shown]
            labels = [result["sampled_labels"].index(label) for label in labels]
        published = sorted(
            zip(recorded["instances.scores"].tolist(), labels, recorded["instances.pred_masks"], strict=True),
            key=lambda one: -one[0],
        )
        assert len(found) == len(published)
        for one, (score, label, mask) in zip(found, published, strict=True):
            assert one.score == pytest.approx(score, abs=1e-6)
            assert one.condition == label
            assert np.array_equal(raster(one, frame), mask.astype(bool))


@pytest.mark.parametrize("case", ["panoptic_t0", "panoptic_t5", "panoptic_id_collision", "panoptic_nothing"])
def test_panoptic_maps_are_the_published_ones(golden, case):
    stated = golden.config["cases"][case]
    thresholds = Thresholds(panoptic=stated["threshold"], published=True)
    for _, logits, frame, recorded, result in golden.images(case):
        found = postprocess.panoptic(*logits, frame, thresholds, stuff=stated["stuff_contiguous_ids"])
        assert np.array_equal(found.ids, recorded["segmentation"])
        assert [(one.id, one.condition, pytest.approx(one.score, abs=1e-6)) for one in found.segments] == [
            (one["id"], one["category_id"], one["score"]) for one in result["segments_info"]
        ]


def test_panoptic_ids_do_not_collide_unless_asked_to(golden):
    ((_, logits, frame, recorded, _),) = golden.images("panoptic_id_collision")
    found = postprocess.panoptic(*logits, frame, Thresholds(panoptic=0.5), stuff=[2, 3])
    # stuff 2, thing 0, stuff 2 again (fused), thing 1, thing 0: four segments, of which the published code lists five
    assert [(one.id, one.condition) for one in found.segments] == [(1, 2), (2, 0), (3, 1), (4, 0)]
    assert np.unique(found.ids[found.ids > 0]).tolist() == [1, 2, 3, 4]
    assert np.array_equal(found.ids > 0, recorded["segmentation"] > 0)


def test_referring_masks_are_the_published_ones(golden):
    for _, logits, frame, recorded, result in golden.images("refseg"):
        found = postprocess.referring(*logits, frame)
        assert np.array_equal(raster(found, frame), recorded["segmentation"] == 1)
        assert found.score == pytest.approx(result["segments_info"]["score"], abs=1e-6)


def test_grounded_masks_are_the_published_ones(golden):
    for _, logits, frame, recorded, result in golden.images("gcgseg"):
        found = postprocess.grounded(*logits, frame, PUBLISHED)
        for one, stated in zip(found, result["segments_info"], strict=True):
            assert np.array_equal(raster(one, frame), recorded["segmentation"] == stated["id"])
            assert one.score == pytest.approx(stated["score"], abs=1e-6)
        whole = postprocess.grounded(*logits, frame)
        assert np.array_equal(raster(whole[-1], frame), raster(found[-1], frame))
        covered = np.logical_or.reduce([raster(one, frame) for one in whole])
        assert np.array_equal(covered, recorded["segmentation"] != 255)


@pytest.mark.parametrize("case", ["intseg", "intseg_none_above"])
def test_interactive_masks_are_the_published_ones(golden, case):
    thresholds = Thresholds(interactive=golden.config["cases"][case]["threshold"])
    for i, logits, frame, recorded, result in golden.images(case):
        prompt = golden.tensors[f"{case}.vprompt_masks_in.{i}"][0]
        found = postprocess.interactive(*logits, frame, prompt, thresholds)
        assert np.array_equal(raster(found, frame), recorded["segmentation"] == 1)
        assert found.score == pytest.approx(result["segments_info"]["score"], abs=1e-6)


# --- logits made by hand ---------------------------------------------------------------------------------------------

SQUARE = Frame(canvas=8, scaled=(8, 8), size=(8, 8))


def classes(*p):
    """Class logits whose softmax is p, a row a query; what is missing to 1 is background."""
    rows = [[*row, 1 - sum(row)] for row in p]
    return torch.tensor(rows).clamp(min=1e-9).log()


def boxes(*ends, side=8):
    """Sharp mask logits of boxes x0, y0, x1, y1."""
    logits = torch.full((len(ends), side, side), -BIG)
    for number, (x0, y0, x1, y1) in enumerate(ends):
        logits[number, y0:y1, x0:x1] = BIG
    return logits


def box(x0, y0, x1, y1, size=(8, 8)):
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_the_canvas_is_cut_before_it_is_resized():
    # the picture is the upper half; the mask beside it, on the padding, must not be seen
    frame = Frame(canvas=8, scaled=(4, 8), size=(8, 16))
    found = postprocess.referring(classes([0.9]), boxes((4, 0, 8, 8)), frame)
    assert np.array_equal(raster(found, frame), box(8, 0, 16, 8, (8, 16)))
    found = postprocess.referring(classes([0.9]), boxes((0, 4, 8, 8)), frame)
    assert not raster(found, frame).any()


def test_logits_of_less_resolution_go_through_the_canvas():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 6, 6, generator=generator) * 4
    p = classes([0.1], [0.2], [0.9], [0.3], [0.4])
    frame = Frame(canvas=24, scaled=(24, 17), size=(40, 28))
    whole = torch.nn.functional.interpolate(logits[None].double(), (24, 24), mode="bilinear")
    whole = torch.nn.functional.interpolate(whole[..., :17], (40, 28), mode="bilinear")[0]
    found = postprocess.referring(p, logits, frame)
    assert found.query == 2
    assert np.array_equal(raster(found, frame), (whole[2] > 0).numpy())


def straight_semantic(class_logits, mask_logits, frame):
    """In float64, all at once."""
    p = class_logits.double().softmax(-1)[:, :-1]
    side = (frame.canvas, frame.canvas)
    whole = torch.nn.functional.interpolate(mask_logits[None].double(), side, mode="bilinear").sigmoid()
    scores = torch.einsum("qc,bqhw->bchw", p, whole)[..., : frame.scaled[0], : frame.scaled[1]]
    return torch.nn.functional.interpolate(scores, frame.size, mode="bilinear")[0]


@pytest.mark.parametrize("cells", [1, 3000, 1 << 25])
@pytest.mark.parametrize("size", [(37, 53), (9, 7)])
def test_semantic_maps_do_not_depend_on_how_many_rows_are_made_at_a_time(monkeypatch, cells, size):
    monkeypatch.setattr(postprocess, "CELLS", cells)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(7, 5, generator=generator) * 2, torch.randn(7, 6, 6, generator=generator) * 4
    frame = Frame(canvas=24, scaled=(17, 24), size=size)
    scores = straight_semantic(*logits, frame)
    first, second = scores.topk(2, dim=0).values
    clear = (first - second > 1e-5).numpy()
    assert clear.mean() > 0.99
    found = postprocess.semantic(*logits, frame)
    assert np.array_equal(found[clear], scores.argmax(0).numpy()[clear])


@pytest.mark.parametrize("task", ["instances", "panoptic"])
def test_few_masks_at_a_time_give_what_all_at_once_give(monkeypatch, task):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(20, 4, generator=generator) * 4, torch.randn(20, 8, 8, generator=generator) * 6
    frame = Frame(canvas=16, scaled=(16, 12), size=(48, 36))
    whole = getattr(postprocess, task)(*logits, frame)
    made = []
    interpolate = torch.nn.functional.interpolate

    def watched(*arguments, **options):
        made.append(interpolate(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(postprocess.functional, "interpolate", watched)
    monkeypatch.setattr(postprocess, "CELLS", 5000)
    few = getattr(postprocess, task)(*logits, frame)
    assert max(tensor.numel() for tensor in made) <= 5000
    if task == "panoptic":
        assert np.array_equal(few.ids, whole.ids)
        assert few.segments == whole.segments
        return
    assert [one.score for one in few] == pytest.approx([one.score for one in whole], abs=1e-6)
    assert [(one.rle, one.condition) for one in few] == [(one.rle, one.condition) for one in whole]


def test_an_instance_can_be_of_two_categories_and_an_empty_one_scores_nothing():
    p = classes([0.5, 0.4], [0.05, 0.02], [0.3, 0.01])
    found = postprocess.instances(p, boxes((0, 0, 4, 4), (4, 4, 8, 8), (0, 0, 0, 0)), SQUARE)
    # three queries, so the three likeliest pairs: 0.5 and 0.4 of the first query, 0.3 of the empty one
    assert [(one.query, one.condition, round(one.score, 4)) for one in found] == [(0, 0, 0.5), (0, 1, 0.4), (2, 0, 0.0)]
    assert np.array_equal(raster(found[0], SQUARE), box(0, 0, 4, 4))
    assert masks.area(found[2].rle, 8, 8) == 0


def test_instances_can_be_asked_of_some_conditions_alone():
    p = classes([0.5, 0.4], [0.05, 0.02])
    found = postprocess.instances(p, boxes((0, 0, 4, 4), (4, 4, 8, 8)), SQUARE, among=[1])
    assert [(one.query, one.condition, round(one.score, 4)) for one in found] == [(0, 1, 0.4), (1, 1, 0.02)]


def test_an_instances_score_has_the_mean_probability_inside():
    logits = torch.full((1, 8, 8), -1.0)
    logits[0, :, :2], logits[0, :, 2:4] = 1.0, 3.0
    (found,) = postprocess.instances(classes([0.5]), logits, SQUARE)
    mean = (1 / (1 + np.exp(-1)) + 1 / (1 + np.exp(-3))) / 2
    assert found.score == pytest.approx(0.5 * mean, abs=1e-6)
    assert postprocess.instances(classes([0.5]), logits, SQUARE, postprocess.SHOW) == []


@pytest.mark.parametrize(("covered", "stands"), [(4, False), (3, True)], ids=["12 of 16", "13 of 16"])
def test_a_panoptic_segment_must_remain_visible(covered, stands):
    ends = boxes((3, 0, 4, covered), (3, 0, 7, 4))  # the first is surer, and covers pixels of the second
    found = postprocess.panoptic(classes([0.9, 0.01], [0.01, 0.8]), ends, SQUARE)
    assert [one.condition for one in found.segments] == [0, 1][: 1 + stands]
    assert (found.ids == 2).sum() == 13 * stands


def test_only_stuff_is_fused():
    p = classes([0.9, 0.01], [0.9, 0.01], [0.01, 0.9], [0.01, 0.8])
    ends = boxes((0, 0, 2, 2), (4, 0, 6, 2), (0, 4, 2, 6), (4, 4, 6, 6))
    found = postprocess.panoptic(p, ends, SQUARE, stuff=[1])
    assert [(one.id, one.condition) for one in found.segments] == [(1, 0), (2, 0), (3, 1)]
    assert found.segments[2].score == pytest.approx(0.9)
    assert np.array_equal(found.ids == 3, box(0, 4, 2, 6) | box(4, 4, 6, 6))


def test_each_phrase_has_its_column():
    p = classes([0.8, 0.1], [0.1, 0.7])
    ends = boxes((0, 0, 2, 2), (4, 4, 8, 8))
    assert postprocess.referring(p, ends, SQUARE, condition=1).query == 1
    assert [one.query for one in postprocess.grounded(p, ends, SQUARE)] == [0, 1]


def test_later_phrases_paint_over_earlier_ones_only_as_published():
    p = classes([0.8, 0.1], [0.1, 0.7])
    ends = boxes((0, 0, 4, 4), (2, 2, 6, 6))
    whole = postprocess.grounded(p, ends, SQUARE)
    assert np.array_equal(raster(whole[0], SQUARE), box(0, 0, 4, 4))
    painted = postprocess.grounded(p, ends, SQUARE, PUBLISHED)
    assert np.array_equal(raster(painted[0], SQUARE), box(0, 0, 4, 4) & ~box(2, 2, 6, 6))
    assert painted[1] == whole[1]


def test_generalized_masks_are_unions_and_may_be_empty():
    ends = boxes((0, 0, 2, 2), (4, 4, 8, 8), (6, 0, 8, 2))
    found = postprocess.generalized(classes([0.7], [0.61], [0.5]), ends, SQUARE)
    assert np.array_equal(raster(found, SQUARE), box(0, 0, 2, 2) | box(4, 4, 8, 8))
    assert found.score == pytest.approx(0.7)
    none = classes([0.3], [0.2], [0.5])
    assert np.array_equal(raster(postprocess.generalized(none, ends, SQUARE), SQUARE), box(6, 0, 8, 2))
    empty = postprocess.generalized(none, ends, SQUARE, Thresholds(keep_best=False))
    assert masks.area(empty.rle, 8, 8) == 0


def test_a_prompt_chooses_by_boxes_or_by_masks():
    ring = boxes((0, 0, 8, 8))
    ring[0, 1:7, 1:7] = -BIG  # its box is that of the prompt, its pixels are few of the prompt's
    ends = torch.cat([ring, boxes((1, 1, 7, 7))])
    prompt = torch.ones(8, 8, dtype=torch.bool)
    p = classes([0.9], [0.6])
    assert postprocess.interactive(p, ends, SQUARE, prompt).query == 0
    assert postprocess.interactive(p, ends, SQUARE, prompt, Thresholds(choice="mask")).query == 1
    assert postprocess.interactive(p, ends, SQUARE, prompt, Thresholds(choice="mask", interactive=0.7)).query == 0


def test_of_equal_overlaps_the_better_score_wins():
    ends = boxes((0, 0, 2, 2), (4, 4, 8, 8))
    nothing = torch.zeros(8, 8)
    assert postprocess.interactive(classes([0.6], [0.9]), ends, SQUARE, nothing).query == 1


def test_half_precision_gives_the_same_clear_masks():
    p, ends = classes([0.8, 0.1], [0.1, 0.7]), boxes((0, 0, 4, 4), (4, 4, 8, 8))
    full = postprocess.panoptic(p, ends, SQUARE, EVALUATE)
    half = postprocess.panoptic(p.bfloat16(), ends.bfloat16(), SQUARE, EVALUATE)
    assert np.array_equal(half.ids, full.ids)
    assert np.array_equal(postprocess.semantic(p.half(), ends.half(), SQUARE), postprocess.semantic(p, ends, SQUARE))


def test_logits_are_left_as_they_were():
    p, ends = classes([0.8, 0.1], [0.1, 0.7]), boxes((0, 0, 4, 4), (4, 4, 8, 8))
    before = ends.clone()
    postprocess.semantic(p, ends, SQUARE)
    postprocess.instances(p, ends, SQUARE)
    postprocess.panoptic(p, ends, SQUARE)
    postprocess.grounded(p, ends, SQUARE)
    assert torch.equal(ends, before)


@pytest.mark.parametrize(
    ("class_logits", "mask_logits", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 8, 8), r"\(N, C \+ 1\)"),
        (torch.zeros(1, 2, 3), torch.zeros(2, 8, 8), r"\(N, C \+ 1\)"),
        (torch.zeros(2, 1), torch.zeros(2, 8, 8), "background"),
        (torch.zeros(0, 3), torch.zeros(0, 8, 8), "no query"),
        (torch.full((2, 3), float("nan")), torch.zeros(2, 8, 8), "NaN"),
        (torch.zeros(2, 3), torch.full((2, 8, 8), float("nan")), "NaN"),
    ],
    ids=["numbers differ", "a batch", "no condition", "no query", "NaN classes", "NaN masks"],
)
def test_logits_that_cannot_be_used_are_refused(class_logits, mask_logits, message):
    with pytest.raises(ValueError, match=message):
        postprocess.instances(class_logits, mask_logits, SQUARE)


@pytest.mark.parametrize(("scaled", "size"), [((8, 9), (8, 8)), ((0, 8), (8, 8)), ((8, 8), (8, 0))])
def test_a_picture_that_does_not_fit_its_canvas_is_refused(scaled, size):
    with pytest.raises(ValueError, match="canvas"):
        Frame(canvas=8, scaled=scaled, size=size)
