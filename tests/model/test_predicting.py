"""Predictions for a person at a prompt: text to masks of the picture's size, on pictures that were seen once."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from dataengine import masks  # noqa: E402
from dataengine.errors import ReasonError, UserError  # noqa: E402
from model import inputs, predicting, words  # noqa: E402
from model.config import preset, stage1  # noqa: E402
from model.inputs import Processor  # noqa: E402
from model.postprocess import EVALUATE, SHOW, Frame, interactive, referring  # noqa: E402
from model.predicting import Predictor  # noqa: E402
from model.xsam import XSam  # noqa: E402

H, W = 30, 48
PICTURE = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
FRAME = Frame(canvas=128, scaled=(80, 128), size=(H, W))
PHRASE = "segment <p>the red circle</p>"


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    tokenizer = words.tiny_tokenizer()
    return Predictor(XSam(preset("tiny")), Processor(preset("tiny"), tokenizer))


@pytest.fixture
def says(predictor, monkeypatch):
    """Makes the model say a text, whatever its logits are."""

    def set_answer(text):
        ids = iter(predictor.tokenizer.encode(f"{text}<|end|>", add_special_tokens=False))
        generate = predictor.model.generate
        monkeypatch.setattr(
            predictor.model,
            "generate",
            lambda *args, **kw: generate(*args, **kw, choose=lambda logits: torch.tensor([next(ids)] * len(logits))),
        )

    return set_answer


def test_a_phrase_has_the_mask_of_its_likeliest_query(predictor):
    """As post-processing makes it of the model's own outputs."""
    found = predictor.ask(PICTURE, PHRASE, answer="It is <SEG>.")
    assert (found.task, found.height, found.width, found.text) == ("refseg", H, W, "It is <SEG>.")
    (mask,) = found.masks
    assert (mask.text, mask.condition, mask.category_id) == ("the red circle", 0, -1)
    from model.batches import collate

    batch = collate([predictor.processor.from_prompt(PICTURE, PHRASE, answer="It is <SEG>.")])
    class_logits, mask_logits = predictor.model.answer(batch).final
    expected = referring(class_logits[0], mask_logits[0], FRAME)
    assert (mask.rle, mask.score) == (expected.rle, pytest.approx(expected.score, abs=1e-5))
    assert masks.decode(mask.rle, H, W).shape == (H, W)


@pytest.mark.parametrize(
    ("text", "prompts", "answer", "task", "texts"),
    [
        (PHRASE, (), "It is <SEG>.", "refseg", ["the red circle"]),
        ("", (inputs.box(2, 3, 20, 20), inputs.box(30, 3, 40, 20)), "<SEG>", "intseg", None),
        ("Describe it.", (), "<p>A star</p> and <p>a ring</p>. <SEG>", "gcgseg", ["A star", "a ring"]),
        ("What is it?", (), "A picture.", "gcgseg", []),
    ],
    ids=["phrase", "boxes", "caption", "no mask"],
)
def test_a_generated_answer_is_a_given_one(predictor, says, text, prompts, answer, task, texts):
    given = predictor.ask(PICTURE, text, prompts, answer=answer)
    says(answer)
    written = predictor.ask(PICTURE, text, prompts)
    assert (given.task, written.task, written.text) == (task, task, answer)
    assert [one.rle for one in written.masks] == [one.rle for one in given.masks]
    if texts is not None:
        assert [one.text for one in written.masks] == texts
    else:
        assert [one.condition for one in written.masks] == [0, 1]
        assert written.prompt == "box"


def test_several_questions_about_a_picture_see_it_once(predictor, request):
    calls = []
    for part in (predictor.model.segmentor.encoder.patch_embed, predictor.model.visual_encoder):
        hook = part.register_forward_hook(lambda module, *_: calls.append(type(module).__name__))
        request.addfinalizer(hook.remove)
    viewed = predictor.see(PICTURE)
    assert len(calls) == 2
    on_viewed = [
        predictor.ask(viewed, PHRASE, answer="<SEG>"),
        predictor.ask(viewed, "", [inputs.point((20, 10))], answer="<SEG>"),
        predictor.ask(viewed, PHRASE, max_new=3),
    ]
    assert len(calls) == 2
    assert on_viewed[0] == predictor.ask(PICTURE, PHRASE, answer="<SEG>")
    assert on_viewed[1] == predictor.ask(PICTURE, "", [inputs.point((20, 10))], answer="<SEG>")
    assert len(calls) == 6


def test_prompts_choose_among_what_was_found(predictor):
    """Each condition's mask is the one that its own prompt overlaps most, also where a phrase stands between."""
    text, boxes = "<region>, <p>a star</p> and <region>", (inputs.box(2, 3, 20, 20), inputs.box(30, 3, 40, 20))
    found = predictor.ask(PICTURE, text, boxes, task="intseg", answer="<SEG>")
    from model.batches import collate

    made = predictor.processor.from_prompt(PICTURE, text, boxes, task="intseg", answer="<SEG>")
    class_logits, mask_logits = (values[0] for values in predictor.model.answer(collate([made])).final)
    nothing = torch.zeros(128, 128, dtype=torch.bool)
    for number, shown in enumerate((made.shown[0].mask, nothing, made.shown[1].mask)):
        expected = interactive(class_logits, mask_logits, FRAME, shown, SHOW, condition=number)
        assert found.masks[number].rle == expected.rle
        assert found.masks[number].condition == number


def test_thresholds_decide_what_is_shown(predictor):
    text, answer = "<p>a star</p>, <p>a ring</p>", "<SEG>"
    everything = predictor.ask(PICTURE, text, answer=answer, thresholds=EVALUATE)
    shown = predictor.ask(PICTURE, text, answer=answer, thresholds=SHOW)
    assert (everything.task, everything.variant) == ("ovseg", "instance")
    assert len(everything.masks) == 20  # as many as there are queries
    assert list(shown.masks) == [one for one in everything.masks if one.score >= 0.5]


def test_earlier_questions_are_remembered(predictor, says):
    says("<SEG>")
    found = predictor.ask(PICTURE, "and <p>the star</p>", history=[(PHRASE, "It is <SEG>.")])
    assert [(one.condition, one.text) for one in found.masks] == [(1, "the star")]


def test_text_alone_is_answered(predictor, says):
    says("Two.")
    found = predictor.ask(None, "What is 1 + 1?")
    assert (found.text, found.masks) == ("Two.", ())


@pytest.mark.parametrize(
    ("text", "prompts", "arguments", "reason"),
    [
        ("segment <region>", (), {}, "region_prompt"),
        ("", (inputs.point((100, 3)),), {}, "region_prompt"),
        ("", (), {}, "no_question"),
        ("segment <p>this", (), {}, "span"),
        ("segment <p>this</p> <SEG>", (), {}, "span"),
        (PHRASE, (), {"answer": "It is there."}, "no_seg"),
        ("segment <p> </p>", (), {}, "span"),
        (PHRASE, (), {"task": "paint"}, "task"),
        ("segment this", (), {"task": "refseg"}, "task"),
        ("segment this", (), {"task": "intseg"}, "task"),
        (PHRASE, (), {"variant": "long"}, "variant"),
        ("", (np.zeros((H, W), bool),), {}, "empty_prompt"),
        ("", (np.ones((W, H), bool),), {}, "region_prompt"),
    ],
)
def test_questions_that_cannot_be_asked(predictor, text, prompts, arguments, reason):
    with pytest.raises(ReasonError) as raised:
        predictor.ask(PICTURE, text, prompts, **arguments)
    assert raised.value.reason == reason


def test_a_saved_predictor_answers_the_same(predictor, tmp_path):
    predicting.save(tmp_path, predictor.model, predictor.tokenizer)
    loaded = predicting.load(tmp_path)
    assert loaded.ask(PICTURE, PHRASE, answer="<SEG>") == predictor.ask(PICTURE, PHRASE, answer="<SEG>")
    assert loaded.ask(PICTURE, PHRASE, max_new=6).text == predictor.ask(PICTURE, PHRASE, max_new=6).text
    half = predicting.load(tmp_path, dtype=torch.bfloat16)
    (mask,) = half.ask(PICTURE, PHRASE, answer="<SEG>").masks
    assert 0 <= mask.score <= 1


def test_models_that_cannot_be_asked(predictor, tmp_path):
    from model.checkpoints import save_pretrained

    first = stage1(preset("tiny"))
    save_pretrained(XSam(first), tmp_path / "first", first)
    with pytest.raises(UserError, match="stage 1"):
        predicting.load(tmp_path / "first")
    save_pretrained(predictor.model, tmp_path / "mute", predictor.model.config)
    with pytest.raises(UserError, match="no tokenizer is here"):
        predicting.load(tmp_path / "mute")
    with pytest.raises(UserError, match="ids up to 514, the model embeddings for 300"):
        predicting.check_tokenizer(predictor.tokenizer, 300, "here")
