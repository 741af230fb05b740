"""Answers that the model writes: against the recorded reference, and against answers that are given to it."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from model import inputs, words  # noqa: E402
from model.batches import collate  # noqa: E402
from model.config import preset  # noqa: E402
from model.inputs import Processor  # noqa: E402
from model.xsam import XSam  # noqa: E402
from tests.model.recorded import MARKERS, recorded_inputs, recorded_model  # noqa: E402


class Forced:
    """Says what it is told to, whatever the logits are; after that, the stop id."""

    def __init__(self, *answers: list[int], stop: int = 2) -> None:
        self.answers, self.stop, self.step = answers, stop, 0

    def __call__(self, logits):
        assert logits.shape[0] == len(self.answers)
        self.step += 1
        return torch.tensor([(answer + [self.stop] * self.step)[self.step - 1] for answer in self.answers])


def close(found, expected, tolerance=5e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


# --- recorded answers ------------------------------------------------------------------------------------------------

CASES = [
    *("genseg", "refseg", "gcgseg", "gcgseg_prompt_replaced", "no_seg_token", "seg_is_last_token", "seg_cut_at_limit"),
    "two_phrases_one_seg_refseg",
]


@pytest.fixture
def recorded(golden):
    whole, case = golden("e2e"), golden("predict")
    return recorded_model(whole).eval(), case, whole.tensors("common")


@pytest.mark.parametrize("name", CASES)
def test_answers_are_the_recorded_ones(recorded, name):
    model, case, common = recorded
    config, tensors = case.config["cases"][name], case.tensors("tensors", f"{name}.")
    made = recorded_inputs(config["task"], tensors, common, {}, image_index=config["image_index"], has_answer=False)
    written = model.generate(
        collate(made), MARKERS, [2], max_new=config["max_new_tokens"], choose=Forced(config["generated"])
    )
    assert written.ids[0].tolist() == config["generated"]
    close(written.states[0], tensors["last_hidden_state"][0])
    assert (written.outputs is not None) == config["seg_outputs"]
    if written.outputs is None:
        return
    close(written.vectors.conditions, tensors["cond_embeddings"])
    if "embed_masks" in tensors:
        assert torch.equal(written.vectors.mask, tensors["embed_masks"].bool())
    close(written.vectors.segs, tensors["seg_embeddings"].flatten(0, 1).expand_as(written.vectors.segs))
    class_logits, mask_logits = written.outputs.final
    close(class_logits, tensors["class_logits"])
    upsampled = torch.nn.functional.interpolate(mask_logits[:, :1], (128, 128), mode="bilinear")
    close(upsampled, tensors["mask_logits_upsampled_q0"])
    assert written.has_spans == (name.startswith("gcgseg"),)


# --- a tiny model ----------------------------------------------------------------------------------------------------

STOP = "<|end|>"


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    tokenizer = words.tiny_tokenizer()
    return XSam(preset("tiny")).eval(), Processor(preset("tiny"), tokenizer), tokenizer


@pytest.fixture(scope="module")
def pictures(tiny):
    rng = np.random.default_rng(0)
    return [tiny[1].picture(rng.integers(0, 256, size, dtype=np.uint8)) for size in ((32, 64, 3), (50, 40, 3))]


def write(tiny, made, *answers, **arguments):
    """What follows when the model says these answers."""
    model, processor, tokenizer = tiny
    stop = words.stop_ids(tokenizer, processor.template)
    said = [tokenizer.encode(answer + STOP, add_special_tokens=False) for answer in answers]
    forced = Forced(*said, stop=stop[0])
    return model.generate(collate(made), words.marker_ids(tokenizer), stop, choose=forced, **arguments)


def same(found, expected):
    for one, other in zip(found.final, expected.final, strict=True):
        close(one, other, 1e-4)


QUESTIONS = [
    ("segment <p>the red circle</p>", (), "It is <SEG>."),
    ("<p>a star</p>, <p>a ring</p>?", (inputs.box(2, 3, 20, 25),), "<SEG>"),
    ("Describe the picture.", (), "<p>A star</p> left of <p>a ring</p> <SEG>"),
    ("", (inputs.point((5, 6)), inputs.box(2, 3, 20, 25)), "Sure, <SEG>."),
]


def asked(tiny, picture, number, answer=None):
    text, prompts, _ = QUESTIONS[number]
    return tiny[1].from_prompt(picture, text, prompts, answer=answer)


@pytest.mark.parametrize("number", range(4))
def test_what_is_written_is_what_would_be_read(tiny, pictures, number):
    """The same text, generated and given, leads to the same masks, whatever the length of other prompts is."""
    answer = QUESTIONS[number][2]
    written = write(tiny, [asked(tiny, pictures[0], number)], answer)
    read = tiny[0].answer(collate([asked(tiny, pictures[0], number, answer)]))
    assert tiny[2].decode(written.ids[0]) == answer + STOP
    same(written.outputs, read)


def test_prompts_together_are_prompts_one_by_one(tiny, pictures):
    """Of different lengths, pictures and tasks; their answers end at different steps."""
    made = [asked(tiny, pictures[n % 2], n) for n in range(4)]
    answers = [answer for *_, answer in QUESTIONS]
    together = write(tiny, made, *answers)
    alone = [write(tiny, [one], answer) for one, answer in zip(made, answers, strict=True)]
    assert [row.sample for row in together.rows] == [0, 1, 2, 3]
    for n, one in enumerate(alone):
        assert torch.equal(together.ids[n], one.ids[0])
        close(together.states[n], one.states[0], 1e-4)
        found, expected = together.outputs.final, one.outputs.final
        num = expected[0].shape[-1] - 1
        close(found[0][n][:, [*range(num), -1]], expected[0][0], 1e-4)
        close(found[1][n], expected[1][0], 1e-4)
    assert together.has_spans == (False, False, True, False)


def test_own_choices_together_are_those_one_by_one(tiny, pictures):
    """Without force: greedy decoding does not depend on what else is in the batch."""
    model, processor, tokenizer = tiny
    made = [asked(tiny, pictures[0], n) for n in (0, 1)]
    stop = words.stop_ids(tokenizer, processor.template)
    markers = words.marker_ids(tokenizer)
    together = model.generate(collate(made), markers, stop, max_new=12)
    for n, one in enumerate(made):
        alone = model.generate(collate([one]), markers, stop, max_new=12)
        assert torch.equal(together.ids[n], alone.ids[0])


def test_earlier_answers_are_not_answered_again(tiny, pictures):
    """Of a conversation that went on, only the last question's phrase is asked for, and only the new <SEG> answers."""
    history = [("segment <p>the red circle</p>", "It is <SEG>.")]
    text, answer = "and <p>the blue star</p>", "Here: <SEG>."
    made = tiny[1].from_prompt(pictures[0], text, history=history)
    written = write(tiny, [made], answer)
    assert [(row.seg, row.classes) for row in written.rows] == [(0, ((0, 1),))]
    whole = tiny[1].from_prompt(pictures[0], text, history=history, answer=answer)
    batch = collate([whole])
    read = tiny[0].read(batch, tiny[0].see(batch))
    assert [row.seg for row in batch.rows] == [0, 1]
    close(written.vectors.segs[0], read.vectors.segs[1], 1e-4)
    close(written.vectors.conditions[0, 0], read.vectors.conditions[1, batch.rows[1].own], 1e-4)


def test_several_masks_for_several_phrases(tiny, pictures):
    """A referring answer with a <SEG> for each phrase gives each its own; otherwise the first <SEG> is for all."""
    made = replace(tiny[1].from_prompt(pictures[0], "<p>a star</p> and <p>a ring</p>"), task="refseg")
    each = write(tiny, [made], "<SEG> and <SEG>")
    assert [(row.seg, row.own) for row in each.rows] == [(0, 0), (1, 1)]
    assert not torch.allclose(each.vectors.segs[0], each.vectors.segs[1])
    for answer, task in (("<SEG>", "refseg"), ("<SEG>, <SEG>, <SEG>", "refseg")):
        found = write(tiny, [replace(made, task=task)], answer)
        assert [(row.seg, row.own) for row in found.rows] == [(0, 0), (0, 1)]
    found = write(tiny, [replace(made, task="genseg")], "<SEG> and <SEG>")
    assert [(row.seg, row.classes) for row in found.rows] == [(0, ((0, 0), (0, 1)))]


@pytest.mark.parametrize(
    ("answer", "classes", "has_spans"),
    [
        ("</p> <SEG>", ((0, 0),), False),
        ("<p> <SEG>", ((0, 0),), False),
        ("<p>a</p></p><p>b</p><p>c<p>d</p></p> <SEG>", ((0, 0), (0, 1)), True),
        ("<p></p> <SEG>", ((0, 0),), True),
        ("<SEG> <p>a</p>", ((0, 0),), True),
    ],
    ids=["only closed", "only opened", "tags that do not pair up", "an empty span", "a span after"],
)
def test_a_model_may_write_anything(tiny, pictures, answer, classes, has_spans):
    written = write(tiny, [asked(tiny, pictures[0], 0)], answer)
    assert {row.classes for row in written.rows} == {classes}
    assert written.has_spans == (has_spans,)
    assert all(torch.isfinite(values).all() for values in written.outputs.final)


def test_without_a_picture_nothing_is_segmented(tiny, pictures):
    """Next to an input with a picture, too."""
    text = tiny[1].from_prompt(None, "Where is <p>the star</p>?")
    written = write(tiny, [text, asked(tiny, pictures[0], 0)], "<SEG>", "<SEG>")
    assert [row.sample for row in written.rows] == [1]
    assert write(tiny, [text], "<SEG>").outputs is None


def test_a_marker_at_the_limit_is_lost(tiny, pictures):
    """Its state would be that of the next step."""
    limit = len(tiny[2].encode("<SEG>", add_special_tokens=False))
    assert write(tiny, [asked(tiny, pictures[0], 0)], "<SEG>", max_new=limit).outputs is None
    assert write(tiny, [asked(tiny, pictures[0], 0)], "<SEG>", max_new=limit + 1).outputs is not None


def test_stop_ids_are_read_once(tiny, pictures):
    """Not at each id: on an accelerator every reading would be a transfer."""

    class Counted(list):
        times = 0

        def __iter__(self):
            self.times += 1
            return super().__iter__()

    stop = Counted([2047])
    written = tiny[0].generate(
        collate([asked(tiny, pictures[0], 0)]), words.marker_ids(tiny[2]), stop, max_new=5, choose=Forced([7] * 5)
    )
    assert written.ids[0].tolist() == [7] * 5
    assert stop.times == 1


def test_an_answer_ends_with_the_positions_of_the_language_model(tiny, pictures):
    given = collate([asked(tiny, pictures[0], 0)])
    width = int(tiny[0].assemble(given, tiny[0].see(given)).attention_mask.sum())
    tiny[0].llm.config.max_position_embeddings, positions = width + 3, tiny[0].llm.config.max_position_embeddings
    try:
        written = tiny[0].generate(given, words.marker_ids(tiny[2]), [2047], max_new=9, choose=Forced([7] * 9))
    finally:
        tiny[0].llm.config.max_position_embeddings = positions
    assert written.ids[0].tolist() == [7] * 3
