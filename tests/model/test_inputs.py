import io
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from PIL import Image as Pillow

from dataengine import conversation, masks
from dataengine.errors import ReasonError
from dataengine.sample import Condition, Image, Object, Prompt, Provenance, Reference, Sample, Turn
from model import inputs, words
from model.config import PRESETS, Part, preset, stage1
from model.inputs import Processor
from model.pictures import Picture
from model.words import IMAGE_ID, REGION_ID

H, W = 32, 64  # the canvas of 128 px holds the picture twice as large, in its upper half
TINY = preset("tiny")


@pytest.fixture(scope="module")
def tokenizer():
    return words.tiny_tokenizer()


@pytest.fixture(scope="module")
def processor(tokenizer):
    return Processor(TINY, tokenizer)


def picture(height=H, width=W, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "PNG")
    return Image(bytes=file.getvalue(), path="a.png")


def rectangle(x0, y0, x1, y1, height=H, width=W):
    mask = np.zeros((height, width), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def prompt_of(x0, y0, x1, y1, kind="box"):
    points, parts = ((x0, y0, x1, y1), (2,)) if kind == "box" else ((x0, y0), (1,))
    return Prompt(kind=kind, profile="strict", version=1, status="ok", points=points, parts=parts)


def thing(x0, y0, x1, y1, category=1, prompts=True):
    return Object(
        rle=masks.encode(rectangle(x0, y0, x1, y1)),
        bbox=(x0, y0, x1 - x0, y1 - y0),
        area=(x1 - x0) * (y1 - y0),
        category_id=category,
        annotation_id=f"{x0}-{y0}",
        prompts=(prompt_of(x0, y0, x1, y1), prompt_of(x0, y0, x1, y1, "point")) if prompts else (),
    )


THINGS = (thing(0, 0, 8, 8), thing(10, 0, 20, 10), thing(30, 10, 60, 30, category=2))


def sample(task, conditions=(), things=THINGS, seed=0, **values):
    base = Sample(
        sample_id=f"made/{task}",
        task=task,
        source="made",
        split="train",
        image=picture(),
        image_key="made/1",
        height=H,
        width=W,
        objects=things,
        conditions=conditions,
        provenance=Provenance(file="a", record="b", builder="c", version=1, seed=0),
    )
    return conversation.render(replace(base, **values), np.random.default_rng(seed))


def phrase(text, *objects, category=-1):
    return Condition(kind="phrase", text=text, objects=objects, category_id=category)


def region(*objects, exemplar=-1, category=1, **values):
    return Condition(kind="region", text="", objects=objects, exemplar=exemplar, category_id=category, **values)


def doubled(x0, y0, x1, y1):
    canvas = np.zeros((128, 128), dtype=bool)
    canvas[2 * y0 : 2 * y1, 2 * x0 : 2 * x1] = True
    return canvas


def decoded(target):
    return masks.decode(target.rle, 128, 128)


A, B, C = (0, 0, 8, 8), (10, 0, 20, 10), (30, 10, 60, 30)


class TestSamples:
    def test_categories_have_a_target_for_each_object(self, processor):
        made = processor.from_sample(sample("genseg", (phrase("a", 0, 1), phrase("b", 2), phrase("c"))))
        assert [target.condition for target in made.targets] == [0, 0, 1]
        for target, box in zip(made.targets, (A, B, C), strict=True):
            np.testing.assert_array_equal(decoded(target), doubled(*box))
        assert [(c.text, c.seg) for c in made.conditions] == [("a", 0), ("b", 0), ("c", 0)]
        assert (made.words.num_conditions, made.words.num_segs) == (3, 1)
        assert made.words.input_ids.tolist().count(IMAGE_ID) == 1
        assert made.picture.size == (H, W)
        assert made.picture.scaled_size == (64, 128)
        assert not made.spans.is_referring

    @pytest.mark.parametrize("task", ["refseg", "grefseg", "reaseg"])
    def test_phrases_have_one_target_each_the_union_of_their_objects(self, processor, task):
        made = processor.from_sample(sample(task, (phrase("both", 0, 1), phrase("none"), phrase("last", 2))))
        assert [target.condition for target in made.targets] == [0, 2]
        np.testing.assert_array_equal(decoded(made.targets[0]), doubled(*A) | doubled(*B))
        assert (made.spans.owners, made.spans.num_segs, made.spans.is_referring) == ((0, 1, 2), 3, True)

    def test_phrases_of_a_caption_are_found_in_the_answer(self, processor):
        caption = "<p>Two</p> things near <p>one</p>."
        made = processor.from_sample(sample("gcgseg", (phrase("Two", 0, 1), phrase("one", 2)), caption=caption))
        assert [target.condition for target in made.targets] == [0, 1]
        learned = made.words.labels[made.words.cond_ids >= 0]
        assert (learned >= 0).all()

    def test_without_answer_a_caption_has_no_conditions_yet(self, processor):
        facts = sample("gcgseg", (phrase("Two", 0),), caption="<p>Two</p>.")
        made = processor.from_sample(facts, with_answer=False)
        assert (made.conditions, made.targets, made.has_answer) == ((), (), False)
        assert set(made.words.labels.tolist()) == {words.IGNORED}

    def test_without_answer_a_question_keeps_its_conditions(self, processor):
        made = processor.from_sample(sample("genseg", (phrase("a", 0),)), with_answer=False)
        assert len(made.conditions) == len(made.targets) == 1
        assert made.spans.num_segs == 0

    def test_regions_show_the_prompt_of_their_exemplar(self, processor):
        facts = sample("vgdseg", (region(0, 1, exemplar=1), region(2, exemplar=2, category=2)))
        made = processor.from_sample(facts, kind="box")
        assert [(p.region, p.picture, p.label) for p in made.shown] == [(0, -1, 1), (1, -1, 2)]
        for shown, box in zip(made.shown, (B, C), strict=True):
            np.testing.assert_array_equal(shown.mask.numpy(), doubled(*box))
        points = processor.from_sample(facts, kind="point")
        assert [int(p.mask.sum()) for p in points.shown] == [4, 4]  # one pixel, doubled
        assert made.words.input_ids.tolist().count(REGION_ID) == 2

    def test_prompts_are_drawn_with_the_generator_given(self, processor):
        facts = sample("intseg", (region(0, exemplar=0),))
        sizes = {
            int(processor.from_sample(facts, rng=np.random.default_rng(seed)).shown[0].mask.sum()) for seed in range(8)
        }
        assert sizes == {4, 256}
        assert int(processor.from_sample(facts).shown[0].mask.sum()) == 256  # the first

    def test_every_instance_may_be_shown(self, processor):
        things = (*THINGS[:2], thing(*C, prompts=False))
        facts = sample("vgdseg", (region(0, 1, 2, exemplar=1),), things)
        made = processor.from_sample(facts, kind="box", every_instance=True)
        assert [p.region for p in made.shown] == [0, 0]
        np.testing.assert_array_equal(made.shown[0].mask.numpy(), doubled(*B))
        np.testing.assert_array_equal(made.shown[1].mask.numpy(), doubled(*A))

    def test_regions_of_other_pictures_bring_those_pictures(self, processor):
        def reference(key, seed):
            return Reference(
                image=picture(64, 32, seed),
                image_key=key,
                annotation_id="1",
                category_id=1,
                height=64,
                width=32,
                rle=masks.encode(rectangle(0, 0, 4, 4, 64, 32)),
                prompts=(prompt_of(4, 8, 12, 20),),
            )

        facts = sample(
            "vgdseg",
            (region(reference=1, shots=(0,)), region(2, exemplar=2), region(reference=2)),
            references=(reference("x", 1), reference("y", 2), reference("x", 1)),
        )
        made = processor.from_sample(facts)
        assert [(p.region, p.picture) for p in made.shown] == [(0, 0), (0, 1), (1, -1), (2, 1)]
        assert len(made.references) == 2
        assert all(other.size == (64, 32) and other.pixel_values is None for other in made.references)
        np.testing.assert_array_equal(made.shown[0].mask.numpy(), doubled(4, 8, 12, 20))

    def test_chat_without_picture(self, processor):
        turns = (
            Turn(role="user", text="Hello", supervised=False),
            Turn(role="assistant", text="Hi.", supervised=True),
        )
        made = processor.from_sample(sample("chat", things=(), image=None, turns=turns))
        assert made.picture is None
        assert IMAGE_ID not in made.words.input_ids.tolist()

    def test_a_cut_loses_the_conditions_and_targets_of_what_was_left_out(self, tokenizer):
        facts = sample("refseg", (phrase("a", 0), phrase("b", 1), phrase("c", 2)))
        whole = Processor(TINY, tokenizer).from_sample(facts)
        short = replace(TINY, max_length=len(whole.words.input_ids) - 2)
        made = Processor(short, tokenizer).from_sample(facts)
        assert (made.words.num_left_out, len(made.conditions), len(made.targets)) == (1, 2, 2)
        with pytest.raises(ReasonError, match=r"made/refseg: .* positions"):
            Processor(short, tokenizer).from_sample(facts, may_cut=False)

    def test_stage_1_labels_objects_by_the_heads_classes(self):
        config = replace(stage1(TINY), num_labels=3)
        facts = sample("genseg", (phrase("b", 2), phrase("a", 0, 1)))
        made = Processor(config, categories=(7, 2, 1)).from_sample(facts)
        assert [target.condition for target in made.targets] == [1, 2, 2]
        assert len(made.words.input_ids) == 0
        assert made.picture.pixel_values is None
        with pytest.raises(ReasonError, match="category 2 is none"):
            Processor(config, categories=(7, 8, 1)).from_sample(facts)


def without_seg(facts):
    turns = tuple(replace(t, text=t.text.replace("<SEG>", "it")) for t in facts.turns)
    return replace(facts, turns=turns)


def asked(picture, question="<image>\nHi"):
    turns = (Turn(role="user", text=question, supervised=False), Turn(role="assistant", text="Hi.", supervised=True))
    return sample("chat", things=(), turns=turns, image=picture)


ONE = sample("genseg", (phrase("a", 0),))
TWO = sample("refseg", (phrase("a", 0), phrase("b", 1)))
BAD = {
    "no prompt": (sample("intseg", (region(0, exemplar=0),), (thing(*A, prompts=False),)), "shows 0, which has no"),
    "prompt outside": (
        sample("intseg", (region(0, exemplar=0),), (replace(THINGS[0], prompts=(prompt_of(0, 0, 99, 9),)),)),
        r"point \(99, 9\), outside the 64 x 32 picture",
    ),
    "no such object": (replace(ONE, conditions=(replace(ONE.conditions[0], objects=(-3,)),)), "object -3 of 3"),
    "no such exemplar": (sample("intseg", (region(9, exemplar=9),)), "shows 9"),
    "no seg": (without_seg(ONE), "0 <SEG> markers"),
    "not rendered": (replace(ONE, turns=()), "the conversation has"),
    "no condition": (replace(ONE, conditions=()), "conditions claim the spans"),
    "question without answer": (
        replace(TWO, turns=TWO.turns[:3], conditions=(TWO.conditions[0], replace(TWO.conditions[1], seg=0))),
        "1 spans for 2 conditions",
    ),
    "other size": (asked(picture(H, W - 1)), "63 x 32 px, its sample says 64 x 32"),
    "no picture": (asked(Image(bytes=b"?", path="a")), "no JPEG"),
    "lost file": (asked(Image(bytes=None, path="/nowhere/1.png")), "nowhere"),
    "kind of prompt": (sample("intseg", (region(0, exemplar=0),)), "object 0 .* no scribble prompt"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_sample_that_cannot_be_used_is_named(processor, name):
    facts, message = BAD[name]
    with pytest.raises(ReasonError, match=f"{facts.sample_id}: .*({message})"):
        processor.from_sample(facts, kind="scribble")


class TestPersons:
    PICTURE = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)

    def text(self, processor, made):
        ids = made.words.input_ids
        return processor.tokenizer.decode(ids[ids >= 0])

    @pytest.mark.parametrize(
        ("text", "num", "task", "shown"),
        [
            ("Segment <p>the dog</p>.", 0, "refseg", "Segment <p>the dog</p>."),
            ("<p>a</p> and <p>b</p>", 0, "ovseg", "<p>a</p> and <p>b</p>"),
            ("What is this?", 0, "gcgseg", "What is this?"),
            ("Cut out <region> and <region>", 2, "intseg", "Cut out <p></p> and <p></p>"),
            ("Cut out <p><region></p>", 1, "intseg", "Cut out <p></p>"),
            ("Cut out", 2, "intseg", "Cut out <p></p>, <p></p>"),
            ("", 1, "intseg", "Segment the objects marked by these regions: <p></p>."),
            ("<p>dogs</p> like <region>", 1, "ovseg", "<p>dogs</p> like <p></p>"),
        ],
    )
    def test_questions(self, processor, text, num, task, shown):
        made = processor.from_prompt(self.PICTURE, text, [inputs.point((3, 4))] * num)
        assert made.task == task
        assert self.text(processor, made) == f"<s><|user|>\n{shown}<|assistant|>"
        assert made.words.input_ids.tolist().count(REGION_ID) == num == len(made.shown)
        assert {condition.seg for condition in made.conditions} <= {0}
        assert not made.has_answer

    def test_marks_are_drawn_in_pixels_of_the_picture(self, processor):
        mask = rectangle(*C)
        stroke = inputs.scribble([(2, 2), (10, 2), (10, 6)], radius=0)
        given = [inputs.box(20, 10, 10, 0), mask, inputs.point((3.5, 4.5), radius=0), stroke]
        made = processor.from_prompt(self.PICTURE, "", given)
        expected = [doubled(*B), doubled(*C), doubled(3, 4, 4, 5), doubled(2, 2, 11, 3) | doubled(10, 2, 11, 7)]
        for shown, wanted in zip(made.shown, expected, strict=True):
            np.testing.assert_array_equal(shown.mask.numpy(), wanted)

    def test_a_picture_made_ready_is_not_made_again(self, processor):
        ready = processor.picture(self.PICTURE)
        assert isinstance(ready, Picture)
        assert processor.from_prompt(ready, "What?").picture is ready

    def test_an_answer_may_be_given(self, processor):
        made = processor.from_prompt(self.PICTURE, "<p>a</p>", answer="It is <SEG>.")
        assert (made.has_answer, made.spans.num_segs, made.spans.owners) == (True, 1, (0,))

    def test_what_was_said_before_comes_first(self, processor):
        made = processor.from_prompt(
            self.PICTURE,
            "And <region>?",
            [inputs.point((1, 1)), inputs.point((9, 9))],
            history=[("Segment <region>", "<SEG>"), ("What is <p>it</p>?", "A dog.")],
        )
        assert self.text(processor, made) == (
            "<s><|user|>\nSegment <p></p><|assistant|><SEG><|end|><|user|>What is <p>it</p>?<|assistant|>A dog.<|end|>"
            "<|user|>And <p></p>?<|assistant|>"
        )
        named = [("region 1", 0), ("it", -1), ("region 2", 1)]
        assert [(condition.text, condition.seg) for condition in made.conditions] == named

    def test_text_alone(self, processor):
        made = processor.from_prompt(None, "Hello", task="chat")
        assert made.picture is None
        assert IMAGE_ID not in made.words.input_ids.tolist()

    @pytest.mark.parametrize(
        ("text", "prompts", "reason"),
        [
            ("", [], "no_question"),
            ("  ", [], "no_question"),
            ("<image>\nWhat?", [], "span"),
            ("Segment <p>a", [], "span"),
            ("Segment <region>", [], "region_prompt"),
            ("Segment <region>", [inputs.point((1, 1))] * 2, "region_prompt"),
            ("", [inputs.point((W + 1, 1))], "region_prompt"),
            ("", [inputs.point((float("nan"), 1))], "region_prompt"),
            ("", [inputs.point()], "region_prompt"),
            ("", [inputs.box(3, 3, 3, 9)], "region_prompt"),
            ("", [np.ones((W, H), dtype=bool)], "region_prompt"),
            ("", [np.zeros((H, W), dtype=bool)], "empty_prompt"),
            ("a" * 3000, [], "too_long"),
        ],
        ids=lambda value: str(value)[:12] if isinstance(value, str) else None,
    )
    def test_what_cannot_be_asked_is_refused(self, processor, text, prompts, reason):
        with pytest.raises(ReasonError) as caught:
            processor.from_prompt(self.PICTURE, text, prompts)
        assert caught.value.reason == reason

    @pytest.mark.parametrize("points", [[(0, 0), (float("inf"), 0)], [(0, 0), (1e9, 0)]])
    def test_strokes_that_cannot_be_drawn_are_refused(self, points):
        with pytest.raises(ReasonError, match="stroke of 2 points"):
            inputs.scribble(points)

    def test_a_prompt_needs_a_picture(self, processor):
        with pytest.raises(ReasonError, match="needs a picture"):
            processor.from_prompt(None, "", [inputs.point((1, 1))])

    def test_an_answer_needs_a_seg(self, processor):
        with pytest.raises(ReasonError, match="needs a <SEG>"):
            processor.from_prompt(self.PICTURE, "<p>a</p>", answer="No.")

    def test_an_unknown_task_is_refused(self, processor):
        with pytest.raises(ReasonError, match="'seg' is no task"):
            processor.from_prompt(self.PICTURE, "What?", task="seg")

    def test_stage_1_cannot_be_asked(self):
        with pytest.raises(ReasonError, match="no language model"):
            Processor(stage1(TINY), categories=range(133)).from_prompt(self.PICTURE, "What?")


def test_a_picture_becomes_as_many_tokens_as_the_reference_has():
    config = preset("xsam-phi3-siglip2-saml")
    assert inputs.num_image_tokens(config) == 729 + 1024
    assert config.max_length + inputs.num_image_tokens(config) <= 4096
    assert inputs.num_image_tokens(TINY) == 8 * 8 + 8 * 8


SWIN = Part(kind="swin", settings={"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 4, 4]})
DEEP_SWIN = Part(kind="swin", settings={"embed_dim": 16, "depths": [1] * 5, "num_heads": [2] * 5, "patch_size": 2})
HIERA = Part(
    kind="sam2_hiera_det_model",
    settings={
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "global_attention_blocks": [3],
    },
)


@pytest.mark.parametrize(
    ("encoder", "layer", "side"),
    [
        pytest.param(SWIN, -2, 128 // 16 // 2, id="Swin, the third of four stages"),
        pytest.param(DEEP_SWIN, -1, 128 // 32 // 2, id="Swin, the fifth stage, from 2 px"),
        pytest.param(HIERA, -2, 128 // 16 // 2, id="SAM 2"),
        pytest.param(replace(HIERA, settings={**HIERA.settings, "num_query_pool_stages": 1}), -1, 8, id="pools once"),
    ],
)
def test_a_pyramid_gives_the_tokens_of_the_stage_that_is_taken(encoder, layer, side):
    config = replace(TINY, seg_encoder=encoder, visual_layer=layer)
    assert inputs.num_image_tokens(config) == 8 * 8 + side * side


def test_text_without_picture_has_no_more_room_than_beside_one(tokenizer):
    processor = Processor(replace(TINY, max_length=40), tokenizer)
    with pytest.raises(ReasonError, match="40 are possible"):
        processor.from_prompt(None, "word " * 60)


@pytest.mark.parametrize("name", PRESETS)
def test_text_and_picture_fit_the_language_models_context(name):
    config = PRESETS[name]
    context = config.language.settings["max_position_embeddings"]
    assert config.max_length + inputs.num_image_tokens(config) <= context


def test_what_a_processor_needs_is_said():
    with pytest.raises(ValueError, match="tokenizer is needed"):
        Processor(TINY)
    with pytest.raises(ValueError, match="133 categories"):
        Processor(stage1(TINY))
    with pytest.raises(ValueError, match="have the markers"):
        Processor(replace(TINY, tokens=("<seg>", "<p>", "</p>")), words.tiny_tokenizer())


def test_masks_are_bool():
    made = Processor(TINY, words.tiny_tokenizer()).from_sample(sample("intseg", (region(0, exemplar=0),)))
    assert made.shown[0].mask.dtype == torch.bool
