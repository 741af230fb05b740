import pytest

pytest.importorskip("torch")

import torch

from model import spans
from model.spans import Row, SpanError, Spans


@pytest.fixture
def golden(fixtures):
    load_file = pytest.importorskip("safetensors.torch").load_file
    return load_file(fixtures / "golden/model/index_embeds/tensors.safetensors")


def generic(*owners, num_segs=1):
    return Spans(owners=owners, num_segs=num_segs, is_referring=False)


def referring(num):
    return Spans(owners=tuple(range(num)), num_segs=num, is_referring=True)


def vectors(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


class TestReference:
    def test_means(self, golden):
        for ids, name in (("cond_ids", "cond"), ("seg_ids", "seg")):
            for image, found in enumerate(spans.index_means(golden["states"], golden[ids])):
                close(found, golden[f"{name}.{image}"])

    def test_ids_with_gaps_are_ordered_and_a_sample_without_ids_keeps_its_place(self, golden):
        found = spans.index_means(golden["states"], golden["gap.ids"])
        close(found[0], golden["gap.out"])
        assert found[1].shape == (0, golden["states"].shape[-1])

    def test_rows_of_tasks_with_one_seg(self, golden):
        conditions = spans.index_means(golden["states"], golden["cond_ids"])
        segs = spans.index_means(golden["states"], golden["seg_ids"])
        rows = spans.plan_rows([generic(*[0] * len(values)) for values in conditions])
        found = spans.row_vectors(rows, conditions, segs, golden["bg_embeds"])
        close(found.conditions, golden["genseg.cond_embeds"])
        assert torch.equal(found.mask.float(), golden["genseg.embed_masks"])
        close(found.segs[:, None], golden["genseg.seg_embeds"])
        assert found.samples.tolist() == [0, 1]

    def test_rows_of_referring_tasks(self, golden):
        conditions = spans.index_means(golden["states"], golden["cond_ids"])
        segs = spans.index_means(golden["states"], golden["refseg.seg_ids"])
        rows = spans.plan_rows([referring(len(values)) for values in conditions])
        found = spans.row_vectors(rows, conditions, segs, golden["bg_embeds"])
        close(found.conditions, golden["refseg.cond_embeds"])
        close(found.segs[:, None], golden["refseg.seg_embeds"])
        assert found.mask.all()
        assert found.samples.tolist() == [0, 0, 0, 1]
        assert [row.own for row in rows] == [0, 1, 2, 3]


def test_the_mean_of_a_span_includes_its_tags():
    states = torch.arange(12.0).view(1, 6, 2)
    found = spans.index_means(states, torch.tensor([[-1, 0, 0, 0, -1, 1]]))
    assert found[0].tolist() == [[4, 5], [10, 11]]


def test_gradients_reach_the_states_of_a_span_alone():
    states = torch.zeros(1, 4, 2, requires_grad=True)
    spans.index_means(states, torch.tensor([[-1, 0, 0, -1]]))[0].sum().backward()
    assert states.grad[0].tolist() == [[0, 0], [0.5, 0.5], [0.5, 0.5], [0, 0]]


def test_the_mean_of_a_long_span_is_taken_in_single_precision():
    # bfloat16 counts no further than 256 by ones, and sums of it lose what is small
    states = torch.cat([torch.full((1, 1, 1), 256.0), torch.ones(1, 299, 1)], 1).bfloat16()
    (found,) = spans.index_means(states, torch.zeros(1, 300, dtype=torch.int64))
    assert found.dtype == torch.bfloat16
    assert found.item() == torch.tensor((256 + 299) / 300).bfloat16().item()
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = spans.index_means(states.float() + 2**-12, torch.zeros(1, 300, dtype=torch.int64))
    assert found.item() == pytest.approx((256 + 299) / 300 + 2**-12, rel=1e-6)


class TestPlan:
    def test_each_seg_of_a_sample_has_its_own_conditions(self):
        assert spans.plan_rows([generic(0, 1, 0, num_segs=2)]) == [
            Row(sample=0, seg=0, classes=((0, 0), (0, 2))),
            Row(sample=0, seg=1, classes=((0, 1),)),
        ]

    def test_phrases_are_told_from_those_of_other_samples_only_where_shared(self):
        batch = [referring(1), generic(0), referring(2)]
        everyone = ((0, 0), (2, 0), (2, 1))
        assert spans.plan_rows(batch) == [
            Row(sample=0, seg=0, classes=everyone, own=0),
            Row(sample=1, seg=0, classes=((1, 0),)),
            Row(sample=2, seg=0, classes=everyone, own=1),
            Row(sample=2, seg=1, classes=everyone, own=2),
        ]
        alone = spans.plan_rows(batch, is_shared=False)
        assert [(row.classes, row.own) for row in alone] == [
            (((0, 0),), 0),
            (((1, 0),), None),
            (((2, 0), (2, 1)), 0),
            (((2, 0), (2, 1)), 1),
        ]

    def test_samples_without_seg_have_no_row_and_the_others_keep_their_pictures(self):
        rows = spans.plan_rows([generic(num_segs=0), generic(0), generic(0, 0, num_segs=0), generic()])
        assert [(row.sample, row.classes) for row in rows] == [(1, ((1, 0),)), (3, ())]

    def test_one_seg_may_answer_several_phrases(self):
        rows = spans.plan_rows([Spans(owners=(0, 0), num_segs=1, is_referring=True)])
        assert [(row.seg, row.own) for row in rows] == [(0, 0), (0, 1)]

    @pytest.mark.parametrize("is_referring", [True, False])
    def test_conditions_that_no_seg_answers_have_no_row_and_are_no_class(self, is_referring):
        sample = Spans(owners=(-1, 0), num_segs=1, is_referring=is_referring)
        (row,) = spans.plan_rows([sample])
        assert row == Row(sample=0, seg=0, classes=((0, 1),), own=0 if is_referring else None)

    def test_a_condition_of_a_seg_that_is_not_there_is_refused(self):
        with pytest.raises(SpanError, match="sample 1"):
            spans.plan_rows([generic(0), generic(0, 1)])


class TestVectors:
    BACKGROUND = vectors([9, 9])

    def test_rows_with_fewer_classes_are_padded_before_the_background(self):
        conditions = [vectors([1, 0], [2, 0]), vectors([3, 0]), torch.zeros(0, 2)]
        segs = [vectors([1, 1]), vectors([2, 2]), vectors([3, 3])]
        rows = spans.plan_rows([generic(0, 0), generic(0), generic()])
        found = spans.row_vectors(rows, conditions, segs, self.BACKGROUND)
        assert found.mask.tolist() == [[True, True, True], [True, False, True], [False, False, True]]
        assert found.conditions[found.mask].tolist() == [[1, 0], [2, 0], [9, 9], [3, 0], [9, 9], [9, 9]]
        assert (found.conditions[~found.mask] == 9 - 1e9).all()
        assert found.segs.tolist() == [[1, 1], [2, 2], [3, 3]]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_padding_leaves_low_precision_finite_with_its_gradients(self, dtype):
        from model.segmentor import cosine_logits

        given = [torch.eye(2, dtype=dtype).requires_grad_(), torch.ones(1, 2, dtype=dtype).requires_grad_()]
        background = torch.full((1, 2), 0.5, dtype=dtype, requires_grad=True)
        rows = spans.plan_rows([generic(0, 0), generic(0)])
        found = spans.row_vectors(rows, given, [torch.ones(1, 2, dtype=dtype)] * 2, background)
        queries = torch.ones(2, 3, 2, dtype=dtype)
        logits = cosine_logits(queries, found.conditions, torch.zeros(1), found.mask)
        logits.softmax(-1)[..., 0].sum().backward()
        assert logits.isfinite().all()
        assert all(one.grad.isfinite().all() for one in (*given, background))

    def test_a_sample_before_it_without_conditions_does_not_shift_a_row(self):
        rows = spans.plan_rows([generic(num_segs=0), generic(0)])
        found = spans.row_vectors(
            rows, [torch.zeros(0, 2), vectors([5, 5])], [torch.zeros(0, 2), vectors([7, 7])], self.BACKGROUND
        )
        assert found.samples.tolist() == [1]
        assert found.conditions.tolist() == [[[5, 5], [9, 9]]]
        assert found.segs.tolist() == [[7, 7]]

    def test_a_batch_without_seg_is_refused(self):
        with pytest.raises(SpanError) as caught:
            spans.row_vectors([], [], [], self.BACKGROUND)
        assert caught.value.reason == "no_seg"

    @pytest.mark.parametrize(("num_conditions", "num_segs"), [(0, 1), (1, 0)])
    def test_states_that_lack_what_the_text_has_are_refused(self, num_conditions, num_segs):
        with pytest.raises(SpanError, match="sample 0"):
            spans.row_vectors(
                spans.plan_rows([generic(0)]),
                [torch.zeros(num_conditions, 2)],
                [torch.zeros(num_segs, 2)],
                self.BACKGROUND,
            )


@pytest.mark.parametrize(
    ("num_conditions", "num_segs", "task", "owners"),
    [(3, 1, "ovseg", (0, 0, 0)), (2, 2, "refseg", (0, 1)), (2, 1, "refseg", (0, 0)), (2, 0, "gcgseg", (0, 0))],
)
def test_conditions_find_their_seg(num_conditions, num_segs, task, owners):
    assert spans.default_owners(num_conditions, num_segs, task) == owners


def test_segs_that_are_nobodys_are_refused():
    with pytest.raises(SpanError, match="2 <SEG> for 3 conditions"):
        spans.default_owners(3, 2, "refseg")
