"""CIDEr and METEOR: values of pycocoevalcap, tokens of Stanford's tokenizer, and what is said where there is none."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.metrics.captions import Absent, cider, meteor, tokenize

WORDS = st.lists(st.sampled_from(["a", "cat", "dog", "sits", "on", "the", "mat"]), max_size=8)


@pytest.fixture
def golden(fixtures):
    return json.loads((fixtures / "golden" / "metrics" / "captions.json").read_text())


def tokens_of(pairs: list[dict]) -> tuple[list[list[str]], list[list[list[str]]]]:
    return [pair["candidate_tokens"].split() for pair in pairs], [
        [one.split() for one in pair["reference_tokens"]] for pair in pairs
    ]


# --- tokens ------------------------------------------------------------------------------------------------------


def test_tokens_of_recorded_captions(golden):
    for pair in golden["pairs"]:
        assert tokenize(pair["candidate"]) == pair["candidate_tokens"].split()
        assert [tokenize(one) for one in pair["references"]] == [one.split() for one in pair["reference_tokens"]]


@pytest.mark.parametrize(
    ("text", "tokens"),
    # what PTBTokenizer of Stanford CoreNLP 3.4.1 gives, without what pycocoevalcap takes away
    [
        ("The U.S. flag (red, white) costs $5.00", "the u.s. flag -lrb- red white -rrb- costs $ 5.00"),
        ("3/4 of 1,000%. It is 10:30 -- or so...", "3/4 of 1,000 % it is 10:30 or so"),
        ("Mr. Smith can't go; he'll cannot \"stay\" at 5 p.m.", "mr. smith ca n't go he 'll can not stay at 5 p.m."),
        ("I'm gonna, 'tis they're", "i 'm gon na 't is they 're"),
        ("we've he'd John's dogs' rock 'n' roll", "we 've he 'd john 's dogs rock 'n' roll"),
        ("and/or black-and-white [box] {brace} #1", "and/or black-and-white -lsb- box -rsb- -lcb- brace -rcb- # 1"),
        ("she'd've shouldn't've o'brien ma'am y'all", "she 'd 've should n't 've o'brien ma'am y' all"),
        ("A T-shirt's 1990s '90s won’t “quoted” – dash", "a t-shirt 's 1990s '90s wo n't quoted dash"),
        ("no. 5 vs. Dr. Who Jr. on no.", "no. 5 vs. dr. who jr. on no"),
        (
            "the Rev. and the Gov. of Smith Bros. on Sept. 5, fig. 3",
            "the rev. and the gov. of smith bros. on sept. 5 fig. 3",
        ),
        ("<p> the man </p> and a + b = c * d", "<p> the man </p> and a + b = c * d"),
        ("a@b.com http://x.org/a?b=1 #tag @user", "a@b.com http://x.org/a?b=1 #tag @user"),
        ("AT&T fish & chips, left/right 2x4 50%", "at&t fish & chips left/right 2x4 50 %"),
        ("The ball.The dog wait…what", "the ball.the dog wait what"),
        ("café naïve 日本 £5 90° -5 +3 .5", "café naïve 日本 # 5 90 ° -5 +3 .5"),
        ("-left right- double--dash ?! !!!", "left right double dash ?! !!!"),
    ],
)
def test_tokens_are_stanfords(text, tokens):
    assert tokenize(text) == tokens.split()


@pytest.mark.parametrize(
    ("text", "ours", "stanfords"),
    [
        ("rock'n'roll", "rock'n'roll", "rock 'n' roll"),
        ("R&amp;B", "r&amp b", "r&b"),
        ("6'2\" tall", "6'2 tall", "6 2 tall"),
        ("😀 fish", "😀 fish", "fish"),
        ("US$5", "us $ 5", "us$ 5"),
    ],
)
def test_tokens_that_differ_from_stanfords(text, ours, stanfords):
    """Kept here so that what the documentation says of them stays true."""
    assert tokenize(text) == ours.split() != stanfords.split()


@given(st.text(max_size=30))
def test_any_text_has_tokens_in_lower_case_without_blanks(text):
    tokens = tokenize(text)
    assert all(tokens)
    assert not any(character.isspace() for token in tokens for character in token)


# --- CIDEr -------------------------------------------------------------------------------------------------------


def test_cider_of_recorded_captions(golden):
    pairs = golden["pairs"]
    texts = [tokenize(p["candidate"]) for p in pairs], [[tokenize(one) for one in p["references"]] for p in pairs]
    for arguments in (tokens_of(pairs), texts):
        score = cider(*arguments)
        assert score.per_item == pytest.approx([pair["CIDEr"] for pair in pairs], rel=1e-9, abs=1e-12)
        assert score.corpus == pytest.approx(golden["CIDEr"], rel=1e-12)


def test_cider_of_a_single_item_is_zero(golden):
    for alone in golden["single_pair_corpora"]:
        (pair,) = [pair for pair in golden["pairs"] if pair["id"] == alone["id"]]
        assert cider(*tokens_of([pair])).per_item == (alone["CIDEr"],)


def test_cider_by_hand():
    """Two items without a common n-gram: all weights are ln 2, so the cosines are those of counts."""
    score = cider([["a", "b"], ["x"]], [[["a", "c"]], [["x"]]])
    # item 0: of n = 1 one of two words is shared, cosine 1/2; of n = 2 nothing; equal lengths; mean over 4 orders
    # item 1: of n = 1 equal; a single word has no longer n-gram
    assert score.per_item == pytest.approx((10 * 0.5 / 4, 10 / 4))
    longer = cider([["a", "a", "a"], ["x"]], [[["a", "b"]], [["x"]]])
    # min(3, 1) · 1 / (3 · √2), a bigram more: e^(-1/72)
    assert longer.per_item[0] == pytest.approx(10 / 4 / (3 * math.sqrt(2)) * math.exp(-1 / 72))


@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=5), st.data())
def test_what_holds_of_any_captions(items, data):
    candidates, references = [list(side) for side in zip(*items, strict=True)]
    score = cider(candidates, references)
    assert all(0 <= value <= 10 + 1e-9 for value in score.per_item)
    order = data.draw(st.permutations(range(len(items))))
    other = cider([candidates[n] for n in order], [references[n][::-1] for n in order])
    assert other.corpus == score.corpus
    assert other.per_item == tuple(score.per_item[n] for n in order)


def test_the_best_caption_is_the_reference():
    texts = ["a cat sits on the mat", "two dogs run in a field", "the red bus stops here"]
    score = cider([tokenize(text) for text in texts], [[tokenize(text)] for text in texts])
    assert score.per_item == pytest.approx([10.0] * 3)
    assert cider([[], [], []], [[tokenize(text)] for text in texts]).corpus == 0.0


@pytest.mark.parametrize("score", [cider, meteor])
@pytest.mark.parametrize(
    ("candidates", "references", "said"),
    [
        ([["a"]], [], "1 candidates have 0 items"),
        ([["a"]], [[]], "item 0 has no reference"),
        (["a cat"], [[["a"]]], "lists of tokens"),
        ([["a"]], [["a cat"]], "lists of tokens"),
    ],
    ids=["lengths", "no reference", "a text", "a reference that is a text"],
)
def test_what_is_no_set_of_captions(score, candidates, references, said):
    with pytest.raises(ValueError, match=said):
        score(candidates, references)


@pytest.mark.parametrize("score", [cider, meteor])
def test_no_captions(score):
    assert score([], []) == Absent("there are no captions")


# --- METEOR ------------------------------------------------------------------------------------------------------

ONE = ([["a", "cat"]], [[["a", "dog"], ["the", "cat"]]])


def test_meteor_of_recorded_captions(golden):
    if shutil.which("java") is None:
        pytest.skip("METEOR needs Java")
    if not os.environ.get("METEOR_JAR") and importlib.util.find_spec("pycocoevalcap") is None:
        pytest.skip("METEOR needs meteor-1.5.jar: METEOR_JAR or pycocoevalcap")
    score = meteor(*tokens_of(golden["pairs"]))
    assert not isinstance(score, Absent), score
    assert score.per_item == pytest.approx([pair["METEOR"] for pair in golden["pairs"]], rel=1e-12)
    assert score.corpus == pytest.approx(golden["METEOR"], rel=1e-12)


def test_meteor_is_absent_without_java(tmp_path):
    assert meteor(*ONE, java=str(tmp_path / "java")) == Absent(
        f"METEOR needs Java; there is no program '{tmp_path / 'java'}'"
    )


def test_meteor_is_absent_without_its_jar(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pycocoevalcap" else found(name))
    monkeypatch.delenv("METEOR_JAR", raising=False)
    assert "set METEOR_JAR" in meteor(*ONE, java=sys.executable).reason
    monkeypatch.setenv("METEOR_JAR", str(tmp_path / "none.jar"))
    assert "no METEOR jar at" in meteor(*ONE, java=sys.executable).reason


@pytest.fixture
def stand_in(tmp_path):
    """Makes a program in Java's place: `script` answers each `line` METEOR would be given."""
    (tmp_path / "meteor.jar").touch()

    def make(script: str) -> dict:
        program = tmp_path / "java"
        body = "\n".join("    " + line for line in script.strip().splitlines())
        program.write_text(f"#!{sys.executable}\nimport sys, time\nfor line in map(str.strip, sys.stdin):\n{body}\n")
        program.chmod(0o755)
        return {"java": str(program), "jar": tmp_path / "meteor.jar"}

    return make


def test_meteor_is_asked_in_its_protocol(stand_in):
    script = """
answers = {
    "SCORE ||| a dog ||| the cat ||| a cat": "1 2",
    "SCORE ||| b ||| x y": "3 4",
    "EVAL ||| 1 2 ||| 3 4": "0.25\\n0.5\\n0.3",
}
print(answers[line], flush=True)
"""
    score = meteor([*ONE[0], ["x ||| y"]], [*ONE[1], [["b\n"]]], **stand_in(script))
    assert (score.corpus, score.per_item) == (0.3, (0.25, 0.5))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sys.exit('Error: no paraphrases')", "ended after 0 of 3 answers, exit status 1: Error: no paraphrases"),
        ("print('1 2', flush=True)\nbreak", "ended after 1 of 3 answers, exit status 0"),
        ("print('x' if line[0] == 'S' else 'x\\nx', flush=True)", "no number in [0, 1]: 'x'"),
        ("print('1' if line[0] == 'S' else 'nan\\nnan', flush=True)", "no number in [0, 1]: 'nan'"),
        ("time.sleep(60)", "took more than 1 s"),
    ],
    ids=["it fails", "it ends early", "it answers no numbers", "it answers NaN", "it hangs"],
)
def test_meteor_is_absent_where_it_fails(stand_in, script, reason):
    score = meteor(*ONE, **stand_in(script), timeout=1 if "sleep" in script else 60)
    assert isinstance(score, Absent)
    assert reason in score.reason
