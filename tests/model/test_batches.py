from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from model import batches, spans
from model.config import RegionConfig
from model.inputs import AskedFor, Inputs, Shown, Target
from model.pictures import Picture
from model.regions import RegionError, RegionSampler
from model.words import IGNORED, IMAGE_ID, NONE, REGION_ID, Words, WordsError

LINES = ("input_ids", "labels", "cond_ids", "seg_ids", "attention_mask", "position_ids")


@pytest.fixture
def load(fixtures):
    load_file = pytest.importorskip("safetensors.torch").load_file
    return lambda name: load_file(fixtures / "golden/model" / f"{name}.safetensors")


def integers(*values):
    return torch.tensor(values, dtype=torch.int64)


def encoded(ids, labels=None, conds=None, segs=None):
    nothing = [NONE] * len(ids)
    return Words(
        input_ids=integers(*ids),
        labels=integers(*(labels or [IGNORED] * len(ids))),
        cond_ids=integers(*(conds or nothing)),
        seg_ids=integers(*(segs or nothing)),
    )


def picture(value=0.0, seen=True):
    return Picture(
        pixel_values=torch.full((3, 2, 2), value) if seen else None,
        seg_pixel_values=torch.full((3, 4, 4), value),
        scaled_size=(4, 4),
        size=(8, 8),
    )


def mask(number):
    return torch.from_numpy(np.arange(16).reshape(4, 4) == number)


def asked(*segs):
    return tuple(AskedFor(text="a", category_id=1, seg=seg) for seg in segs)


# ids of a picture with two regions, of a picture with one phrase, and of text alone
REGIONS = encoded(
    [1, IMAGE_ID, 5, REGION_ID, 6, 5, REGION_ID, 6, 9], conds=[-1, -1, 0, 0, 0, 1, 1, 1, -1], segs=[-1] * 8 + [0]
)
PHRASE = encoded([1, IMAGE_ID, 5, 4, 6, 9], conds=[-1, -1, 0, 0, 0, -1], segs=[-1] * 5 + [0])
TEXT = encoded([1, 2], labels=[IGNORED, 2])


class TestReference:
    @pytest.mark.parametrize(
        "name",
        [
            "phrases_all_ones_mask",
            "phrases_true_mask",
            "regions_all_ones_mask",
            "regions_true_mask",
            "image_then_text_only",
        ],
    )
    def test_assembly(self, load, name):
        tensors = load("multimodal_inputs/tensors")
        given = {
            key.removeprefix(f"{name}.in."): value for key, value in tensors.items() if key.startswith(f"{name}.in.")
        }
        images = torch.cat([given["visual_tokens"], given["seg_tokens"]], dim=1)
        has_image = (given["input_ids"] == IMAGE_ID).any(1)
        found = batches.assemble(
            lambda ids: tensors["embed_tokens"][ids],
            *(given[line] for line in LINES[:-1]),
            images=[image if has else None for image, has in zip(images, has_image, strict=True)],
            regions=[given[f"region_feats.{n}"][:, None] if f"region_feats.{n}" in given else None for n in range(2)],
        )
        for line in LINES:
            assert torch.equal(getattr(found, line), tensors[f"{name}.out.{line}"]), line
        assert torch.equal(found.embeds, tensors[f"{name}.out.inputs_embeds"])

    @pytest.mark.parametrize(
        "name", ["genseg_loss", "genseg_one_empty_loss", "refseg_loss", "vgdseg_loss", "gcgseg_loss"]
    )
    def test_from_ids_to_the_vectors_of_the_segmentor(self, load, name):
        tensors, common, weights = load(f"e2e/{name}"), load("e2e/common"), load("e2e/weights")
        images = torch.cat([common["mid.visual_tokens"], common["mid.seg_tokens"]], dim=1)
        features = [tensors.get(f"mid.region_feats.{n}") for n in range(2)]
        given = {line: tensors[f"in.{line}"] for line in LINES[:-1]}
        found = batches.assemble(
            lambda ids: weights["llm.model.embed_tokens.weight"][ids],
            **given,
            images=list(images),
            regions=[None if f is None else f[:, None] for f in features],
        )
        torch.testing.assert_close(found.embeds, tensors["mid.llm_in.inputs_embeds"], atol=1e-5, rtol=0)
        assert torch.equal(found.labels, tensors["mid.llm_in.labels"])
        conditions = spans.index_means(tensors["mid.llm_embeds"], found.cond_ids)
        segs = spans.index_means(tensors["mid.llm_embeds"], found.seg_ids)
        is_referring = name.startswith("refseg")
        planned = [
            spans.Spans(
                owners=spans.default_owners(len(c), len(s), name.split("_")[0]),
                num_segs=len(s),
                is_referring=is_referring,
            )
            for c, s in zip(conditions, segs, strict=True)
        ]
        vectors = spans.row_vectors(spans.plan_rows(planned), conditions, segs, weights["bg_embeds.weight"])
        torch.testing.assert_close(vectors.conditions, tensors["mid.cond_embeddings"], atol=1e-5, rtol=0)
        torch.testing.assert_close(vectors.segs[:, None], tensors["mid.seg_embeddings"], atol=1e-5, rtol=0)
        if "mid.embed_masks" in tensors:
            assert torch.equal(vectors.mask.float(), tensors["mid.embed_masks"])


def assemble(inputs, images, regions, dim=2):
    batch = batches.collate(inputs)
    return batches.assemble(
        lambda ids: torch.stack([ids.float()] * dim, dim=-1),
        *(getattr(batch, line) for line in LINES[:-1]),
        images=images,
        regions=regions,
    )


class TestExpansion:
    def test_worked_out_by_hand(self):
        # text alone first, and an <image> that is the very first id: the reference confuses both
        first = encoded([IMAGE_ID, 5, REGION_ID, 6], labels=[IGNORED, 5, IGNORED, 6], conds=[-1, 3, 3, 3])
        image, region = torch.full((2, 2), 100.0), torch.tensor([[[200.0, 201], [202, 203]]])
        found = assemble(
            [Inputs(task="chat", words=TEXT), Inputs(task="chat", words=first)], [None, image], [None, region]
        )
        assert found.input_ids.tolist() == [
            [1, 2, -100, -100, -100, -100],
            [IMAGE_ID, IMAGE_ID, 5, REGION_ID, REGION_ID, 6],
        ]
        assert found.embeds[:, :, 1].tolist() == [[1, 2, 0, 0, 0, 0], [100, 100, 5, 201, 203, 6]]
        assert found.labels.tolist() == [[-100, 2, -100, -100, -100, -100], [-100, -100, 5, -100, -100, 6]]
        assert found.cond_ids.tolist() == [
            [-1] * 6,
            [-1, -1, 3, 3, 3, 3],
        ]  # what the region's place says, not its count
        assert found.attention_mask.sum(1).tolist() == [2, 6]
        assert found.position_ids.tolist() == [[0, 1, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]]

    def test_gradients_reach_embeddings_pictures_and_regions(self):
        table, image = torch.ones(20, 2, requires_grad=True), torch.ones(3, 2, requires_grad=True)
        region = torch.ones(2, 1, 2, requires_grad=True)
        batch = batches.collate([Inputs(task="vgdseg", words=REGIONS)])
        lines = [getattr(batch, line) for line in LINES[:-1]]
        batches.assemble(lambda ids: table[ids], *lines, images=[image], regions=[region]).embeds.sum().backward()
        assert (image.grad == 1).all()
        assert (region.grad == 1).all()
        assert table.grad[:, 0].tolist() == [0, 1, 0, 0, 0, 2, 2, 0, 0, 1, *[0] * 10]

    @pytest.mark.parametrize(
        ("words", "image", "region", "error"),
        [
            (PHRASE, None, None, WordsError),
            (TEXT, torch.zeros(2, 2), None, WordsError),
            (encoded([IMAGE_ID, IMAGE_ID]), torch.zeros(2, 2), None, WordsError),
            (REGIONS, torch.zeros(2, 2), None, RegionError),
            (REGIONS, torch.zeros(2, 2), torch.zeros(1, 1, 2), RegionError),
            (PHRASE, torch.zeros(2, 2), torch.zeros(1, 1, 2), RegionError),
        ],
        ids=["no picture", "no marker", "two markers", "no prompt", "one prompt of two", "no region"],
    )
    def test_markers_without_what_they_stand_for_are_refused(self, words, image, region, error):
        with pytest.raises(error, match="input 0"):
            assemble([Inputs(task="vgdseg", words=words)], [image], [region])


class TestCollate:
    def test_padding_is_at_the_right_and_the_mask_is_true(self):
        batch = batches.collate(
            [Inputs(task="chat", words=TEXT), Inputs(task="refseg", words=PHRASE, picture=picture())]
        )
        assert batch.input_ids[0].tolist() == [1, 2, 0, 0, 0, 0]
        assert batch.labels[0].tolist() == [-100, 2, -100, -100, -100, -100]
        assert batch.cond_ids[0].tolist() == batch.seg_ids[0].tolist() == [-1] * 6
        assert batch.attention_mask.tolist() == [[True] * 2 + [False] * 4, [True] * 6]

    def test_each_picture_is_there_once_and_references_come_last(self):
        shared, alone, other = picture(1), picture(2), replace(picture(3), pixel_values=None)
        shown = (Shown(mask=mask(0), region=0), Shown(mask=mask(1), region=1, picture=0))
        batch = batches.collate(
            [
                Inputs(task="vgdseg", words=REGIONS, picture=shared, shown=shown, references=(other,)),
                Inputs(task="chat", words=TEXT),
                Inputs(task="refseg", words=PHRASE, picture=alone),
                Inputs(task="vgdseg", words=REGIONS, picture=shared, shown=shown, references=(alone,)),
            ]
        )
        assert batch.images.tolist() == [0, -1, 1, 0]
        assert batch.pixel_values[:, 0, 0, 0].tolist() == [1, 2]
        assert batch.seg_pixel_values[:, 0, 0, 0].tolist() == [1, 2, 3]
        assert batch.region_pictures.tolist() == [0, 2, 0, 1]
        assert batch.region_samples.tolist() == [0, 0, 3, 3]
        assert batch.region_numbers.tolist() == [0, 1, 0, 1]
        assert torch.equal(batch.region_masks[3], mask(1))

    def test_rows_and_targets_follow_one_plan(self):
        def target(condition, name):
            return Target(condition=condition, rle=name)

        generic = Inputs(
            task="ovseg",
            words=encoded([9, 9], segs=[0, 1]),
            picture=picture(),
            conditions=asked(1, 0, 1),
            targets=(target(0, b"a"), target(0, b"b"), target(1, b"c"), target(2, b"d")),
        )
        referring = Inputs(
            task="refseg",
            words=encoded([9, 9], segs=[0, 1]),
            picture=picture(),
            conditions=asked(0, 1),
            targets=(target(1, b"e"),),
        )
        unanswered = replace(generic, has_answer=False)
        chat = Inputs(task="chat", words=TEXT)
        batch = batches.collate([referring, chat, generic, unanswered, referring])
        assert [row.sample for row in batch.rows] == [0, 0, 2, 2, 4, 4]
        found = [(t.labels.tolist(), t.rles) for t in batch.targets]
        assert found == [
            ([], ()),
            ([1], (b"e",)),
            ([0], (b"c",)),  # the second <SEG> of the sample answers conditions 0 and 2, the first condition 1
            ([0, 0, 1], (b"a", b"b", b"d")),
            ([], ()),
            ([3], (b"e",)),
        ]
        assert {target.size for target in batch.targets} == {(4, 4)}
        alone = batches.collate([referring, chat, generic, unanswered, referring], is_shared=False)
        assert alone.targets[-1].labels.tolist() == [1]

    def test_stage_1_has_a_row_for_each_picture_with_the_heads_classes(self):
        targets = (Target(condition=7, rle=b"a"), Target(condition=3, rle=b"b"))
        made = [
            Inputs(task="genseg", words=encoded([]), picture=picture(n, False), targets=targets[n:]) for n in (0, 1)
        ]
        batch = batches.collate(made)
        assert batch.pixel_values is None
        assert batch.input_ids.shape == (2, 0)
        assert [t.labels.tolist() for t in batch.targets] == [[7, 3], [3]]
        with pytest.raises(ValueError, match="stage 1"):
            batches.collate([*made, Inputs(task="chat", words=TEXT)])

    def test_text_alone_needs_no_picture(self):
        batch = batches.collate([Inputs(task="chat", words=TEXT)])
        assert batch.pixel_values is batch.seg_pixel_values is None
        assert (batch.rows, len(batch.region_masks)) == ((), 0)

    def test_a_batch_moves_but_for_its_prompts(self):
        """Points of prompts are looked for on the CPU: on an accelerator each prompt would be waited for."""
        moved = batches.collate([shows((0, 0, 1), (1, 1, 1))]).to("meta")
        assert moved.input_ids.device.type == moved.pixel_values.device.type == "meta"
        assert moved.seg_pixel_values.device.type == moved.images.device.type == "meta"
        assert moved.region_masks.device.type == moved.region_numbers.device.type == "cpu"
        sampler = RegionSampler(RegionConfig(points=4), 8)
        tokens = sampler(torch.empty(1, 2, 2, 8, device="meta"), moved.region_masks, moved.region_pictures)
        assert (tokens.device.type, tokens.shape) == ("meta", (2, 1, 8))

    @pytest.mark.parametrize(
        ("words", "condition"),
        [(PHRASE, -1), (PHRASE, 1), (encoded([]), -1)],
        ids=["negative", "too large", "negative in stage 1"],
    )
    def test_a_target_of_nothing_is_refused(self, words, condition):
        with pytest.raises(ValueError, match=rf"conditions \[{condition}\]"):
            Inputs(task="refseg", words=words, conditions=asked(0), targets=(Target(condition=condition, rle=b""),))

    def test_no_inputs_are_refused(self):
        with pytest.raises(ValueError, match="needs an input"):
            batches.collate([])


def shows(*prompts, words=REGIONS):
    shown = tuple(Shown(mask=mask(number), region=region, label=label) for number, region, label in prompts)
    return Inputs(task="vgdseg", words=words, picture=picture(), shown=shown, conditions=asked(0, 0))


class TestRegions:
    def test_shots_are_averaged_and_what_is_not_shown_is_zero(self):
        batch = batches.collate([shows((0, 0, 1), (1, 0, 1)), shows(words=TEXT), shows((2, 1, 1))])
        sampled = torch.tensor([[[2.0]], [[4.0]], [[7.0]]])
        assert [tokens.tolist() for tokens in batches.region_tokens(batch, sampled)] == [
            [[[3]], [[0]]],
            [],
            [[[0]], [[7]]],
        ]

    def test_a_swap_shows_the_same_categories_from_anywhere(self):
        batch = batches.collate([shows((0, 0, 5), (1, 1, 6)), shows((2, 0, 6), (3, 1, 8))])
        swapped = batches.swap(batch, Last())
        assert swapped.region_samples.tolist() == [0, 0, 1, 1]
        assert swapped.region_numbers.tolist() == [0, 1, 0, 1]
        assert swapped.region_labels.tolist() == [5, 6, 6, 8]
        assert swapped.region_pictures.tolist() == [0, 1, 1, 1]
        assert torch.equal(swapped.region_masks, torch.stack([mask(n) for n in (0, 2, 2, 3)]))

    def test_in_a_batch_of_one_exemplars_are_chosen_among_its_own(self):
        batch = batches.collate([shows((0, 0, 5), (1, 0, 5), (2, 1, 6))])
        swapped = batches.swap(batch, Last())
        assert torch.equal(swapped.region_masks, torch.stack([mask(1), mask(2)]))
        again = batches.swap(swapped, Last())
        assert torch.equal(again.region_masks, swapped.region_masks)


class Last:
    """Draws that take the last candidate."""

    def permutation(self, number):
        return torch.arange(number)

    def integers(self, high, number):
        return torch.full((number,), high - 1)
