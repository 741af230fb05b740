import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from dataengine.errors import UserError
from dataengine.sample import Turn
from model import words
from model.templates import TEMPLATES, template
from model.words import IGNORED, IMAGE_ID, NONE, REGION_ID, Exchange, WordsError, encode

LONG = 1 << 20


@pytest.fixture(scope="module")
def tokenizer():
    return words.tiny_tokenizer()


def turn(role, text, supervised=True):
    return Turn(role=role, text=text, supervised=supervised)


def golden(fixtures):
    folder = fixtures / "golden/encode"
    tokenizer = words.load_tokenizer(folder / "tokenizer")
    return tokenizer, json.loads((folder / "conversations.json").read_text())["conversations"]


def test_ids_of_the_reference(fixtures):
    tokenizer, cases = golden(fixtures)
    assert words.marker_ids(tokenizer) == words.MarkerIds(seg=424, phrase_open=425, phrase_close=426)
    for case in cases:
        has_output = case["input_ids_with_output"]
        found = encode(
            tokenizer,
            template({"phi3_chat": "phi3"}.get(case["template"], case["template"])),
            [Exchange(question=t["input"], answer=t["output"] if has_output else None) for t in case["conversation"]],
            max_positions=LONG,
            has_image=case["with_image_token"],
        )
        num = len(case["input_ids"])  # the reference cuts blindly at max_length; here nothing is cut
        assert num == min(len(found.input_ids), case["max_length"]), case["name"]
        assert found.input_ids[:num].tolist() == case["input_ids"], case["name"]
        assert found.labels[:num].tolist() == case["labels"], case["name"]
        assert found.seg_ids[:num].tolist() == case["seg_ids"], case["name"]
        if "truncated" not in case["name"]:
            assert found.cond_ids.tolist() == (case["cond_ids"] or [NONE] * num), case["name"]
        elif case["cond_ids"] is not None:  # a span whose </p> was cut off is none in the reference
            cut = words.condition_ids(case["input_ids"], words.marker_ids(tokenizer))
            assert cut.tolist() == case["cond_ids"], case["name"]


def test_each_position_says_what_it_is_for(tokenizer):
    found = encode(
        tokenizer,
        template("plain"),
        [Exchange(question="<image>\n<p><region></p>, <p>a</p>", answer="<SEG>.")],
        max_positions=LONG,
    )
    id_of = tokenizer.get_vocab()
    newline, comma, blank = (id_of[piece] for piece in ("Ċ", ",", "Ġ"))
    question = [id_of["<s>"], id_of["<|user|>"], IMAGE_ID, newline, id_of["<p>"], REGION_ID, id_of["</p>"], comma]
    question += [blank, id_of["<p>"], id_of["a"], id_of["</p>"], id_of["<|assistant|>"]]
    answer = [id_of["<SEG>"], id_of["."], id_of["<|end|>"]]
    assert found.input_ids.tolist() == question + answer
    assert found.labels.tolist() == [IGNORED] * len(question) + answer
    assert found.cond_ids.tolist() == [NONE] * 4 + [0] * 3 + [NONE] * 2 + [1] * 3 + [NONE] * 4
    assert found.seg_ids.tolist() == [NONE] * len(question) + [0, NONE, NONE]
    assert (found.num_conditions, found.num_segs, found.num_left_out) == (2, 1, 0)


def test_what_is_not_supervised_is_not_learned(tokenizer):
    pairs = words.exchanges([turn("user", "a"), turn("assistant", "b", supervised=False)])
    assert set(encode(tokenizer, template("phi3"), pairs, max_positions=LONG).labels.tolist()) == {IGNORED}


def test_pseudo_tokens_in_an_answer_are_not_learned(tokenizer):
    found = encode(tokenizer, template("plain"), [Exchange(question="a", answer="<p><region></p>")], max_positions=LONG)
    assert found.labels[found.input_ids == REGION_ID].tolist() == [IGNORED]
    assert int((found.labels >= 0).sum()) == 3  # <p>, </p>, <|end|>


def test_turns_are_paired_as_in_the_reference():
    turns = [
        turn("assistant", "dropped"),
        turn("user", "First. "),
        turn("user", "Second."),
        turn("assistant", "Both."),
        turn("assistant", "More."),
        turn("user", "dropped"),
    ]
    assert words.exchanges(turns) == [
        Exchange(question="First. Second.", answer="Both."),
        Exchange(question="", answer="More."),
    ]


class TestLength:
    PAIRS = (Exchange(question="<image>\na", answer="<SEG>"), Exchange(question="<p>b</p>", answer="<SEG>"))
    # BOS user image newline a assistant | SEG end | user p b /p assistant | SEG end
    FIRST, BOTH = 8, 15

    def encode(self, tokenizer, max_positions, **options):
        return encode(tokenizer, template("plain"), self.PAIRS, max_positions=max_positions, **options)

    def test_pictures_count_as_what_they_become(self, tokenizer):
        assert len(self.encode(tokenizer, self.BOTH + 99, image_tokens=100).input_ids) == self.BOTH
        with pytest.raises(WordsError, match=rf"take {self.BOTH + 99} positions; {self.BOTH + 98} are possible"):
            self.encode(tokenizer, self.BOTH + 98, image_tokens=100)

    def test_regions_count_as_what_they_become(self, tokenizer):
        region = [Exchange(question="<p><region></p>", answer=None)]  # BOS user p region /p assistant
        encode(tokenizer, template("plain"), region, max_positions=5 + 64, region_tokens=64)
        with pytest.raises(WordsError) as caught:
            encode(tokenizer, template("plain"), region, max_positions=4 + 64, region_tokens=64)
        assert caught.value.reason == "too_long"

    def test_a_cut_leaves_out_whole_pairs_and_says_so(self, tokenizer):
        found = self.encode(tokenizer, self.BOTH - 1, may_cut=True)
        assert (len(found.input_ids), found.num_left_out, found.num_segs) == (self.FIRST, 1, 1)

    def test_the_first_pair_is_never_left_out(self, tokenizer):
        with pytest.raises(WordsError, match="the first 1 of 2"):
            self.encode(tokenizer, self.FIRST - 1, may_cut=True)


@pytest.mark.parametrize(
    ("text", "message"), [("<p>a", "never closed"), ("a</p>", "without <p>"), ("<p>a<p>b</p></p>", "inside")]
)
def test_tags_that_do_not_pair_up_are_refused(tokenizer, text, message):
    with pytest.raises(WordsError, match=message):
        encode(tokenizer, template("plain"), [Exchange(question=text, answer=None)], max_positions=LONG)


def test_no_question_is_refused(tokenizer):
    with pytest.raises(WordsError, match="needs a question"):
        encode(tokenizer, template("plain"), [], max_positions=LONG)


def test_tags_that_a_model_wrote_need_not_pair_up():
    markers = words.MarkerIds(seg=7, phrase_open=8, phrase_close=9)
    assert words.condition_ids([9, 8, 1, 9, 8, 2], markers).tolist() == [NONE] * 6  # first <p>, first </p>: backwards
    assert words.condition_ids([8, 1, 9, 8, 2], markers).tolist() == [0, 0, 0, NONE, NONE]
    assert words.segment_ids([7, 8, 7], markers).tolist() == [0, NONE, 1]


def test_the_tiny_tokenizer_is_the_same_each_time_and_after_saving(tokenizer, tmp_path):
    again = words.tiny_tokenizer()
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    tokenizer.save_pretrained(tmp_path)
    loaded = words.load_tokenizer(tmp_path)
    text = "<|user|>Größe 10 µm? <p>Ünïcode 猫</p><SEG><|end|>"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert words.marker_ids(loaded) == words.marker_ids(tokenizer)
    assert loaded.decode(loaded.encode(text)) == text
    assert len(loaded) <= 2048  # rows of the tiny model's embedding


def test_markers_are_added_once_in_the_order_of_released_weights(tokenizer):
    assert words.add_markers(tokenizer) == 0
    ids = words.marker_ids(tokenizer)
    assert (ids.seg, ids.phrase_open, ids.phrase_close) == tuple(range(len(tokenizer) - 3, len(tokenizer)))


def test_an_answer_ends_with_the_suffix_or_eos(tokenizer):
    vocab = tokenizer.get_vocab()
    assert words.stop_ids(tokenizer, TEMPLATES["plain"]) == [vocab["<|end|>"]]
    assert words.stop_ids(tokenizer, TEMPLATES["vicuna"]) == [tokenizer.eos_token_id]


def test_a_folder_without_tokenizer_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        words.load_tokenizer(tmp_path)


def test_a_tokenizer_without_markers_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))
    with pytest.raises(UserError, match="lacks one of <SEG>"):
        words.marker_ids(plain)
