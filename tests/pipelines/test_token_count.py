"""Tokens of conversations, by a tokenizer and without one."""

import json

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pipelines import token_count
from pipelines.cli import app

TEXTS = ["Please segment <p>the red cat</p>.", "It is <SEG>.", "", "<image>\nWhat is <p><region></p>?"]


@pytest.fixture
def tiny(tmp_path):
    """A folder with a byte-level BPE that knows no marker; it would cut texts off, and fill them up."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(["the cat, the red cat"] * 50, trainer)
    made.enable_truncation(2)
    made.enable_padding(length=64)
    folder = tmp_path / "tiny"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_markers_are_one_token_each(tiny):
    counted = token_count.of_tokenizer(str(tiny))
    assert counted.unit == "tokens of tiny"
    markers = "<image><p></p><region><SEG>"
    assert counted.count(pa.array([markers, "", None, "qqq", "<p>qqq</p>", "QXZJV"])).tolist() == [5, 0, 0, 3, 5, 5]
    assert token_count.of_tokenizer(str(tiny / "tokenizer.json")).unit == "tokens of tiny"


def test_published_tokenizer_agrees_with_the_reference(fixtures):
    """The golden ids of conversations: what stands between BOS and the end, markers included."""
    pytest.importorskip("tokenizers")
    folder = fixtures / "golden" / "encode"
    counted = token_count.of_tokenizer(str(folder / "tokenizer"))
    checked = 0
    for row in json.loads((folder / "conversations.json").read_text())["conversations"]:
        if len(row["input_ids"]) >= row["max_length"] or not row["input_ids_with_output"]:
            continue
        if not row["with_image_token"]:  # whose <image> is plain text
            continue
        turns = row["templated"]
        if any(turn.get("need_eos_token") for turn in turns):
            continue
        texts = [turn[key] + turn.get("sep", "") * (key == "output") for turn in turns for key in ("input", "output")]
        assert counted.count(pa.array(texts)).sum() == sum(1 for i in row["input_ids"] if i != 1)
        checked += 1
    assert checked


def test_without_a_tokenizer_pieces_are_counted():
    counted = token_count.pieces()
    assert counted.unit == "words, marks and markers"
    #  Please segment <p> the red cat </p> . | It is <SEG> . | | <image> What is <p> <region> </p> ?
    assert counted.count(pa.array(TEXTS)).tolist() == [8, 4, 0, 7]
    assert counted.count(pa.array(["Ein großes Äpfelchen", "a_b don't", "дом  1,5", None])).tolist() == [3, 4, 4, 0]


@pytest.mark.parametrize(("name", "text"), [("absent", None), ("broken.json", "{"), ("other.json", '{"a": 1}')])
def test_what_is_no_tokenizer(tmp_path, name, text):
    pytest.importorskip("tokenizers")
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(token_count.TokenizerError, match=name):
        token_count.of_tokenizer(str(tmp_path / name))


def test_what_to_install_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(token_count.TokenizerError, match="pip install tokenizers"):
        token_count.of_tokenizer(str(tmp_path))
    result = CliRunner().invoke(app, ["stats", str(tmp_path), "--tokenizer", str(tmp_path)])
    assert result.exit_code == 1
