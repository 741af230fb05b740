"""Streaming JSON records."""

from __future__ import annotations

import inspect
import io
import json
import math
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine import jsonstream
from dataengine.jsonstream import SourceError, iter_records, iter_rows

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    texts,
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@given(
    st.dictionaries(
        texts,
        st.one_of(st.lists(values, max_size=4), scalars),
        max_size=4,
    ),
    st.integers(1, 40),
    st.booleans(),
)
def test_records_equal_json_loads_at_any_chunk_size(document, chunk, ascii_only):
    data = json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    before, jsonstream.CHUNK = jsonstream.CHUNK, chunk
    try:
        records = list(iter_records(io.BytesIO(data), "a.json"))
    finally:
        jsonstream.CHUNK = before
    expected = [
        (key, position, value)
        for key, content in document.items()
        for position, value in enumerate(content if isinstance(content, list) else [content])
    ]
    assert [(r.section, r.position, r.value) for r in records] == expected
    assert all(json.loads(r.text) == r.value for r in records)


def test_nan_is_one_bad_value_not_a_bad_file():
    (record,) = iter_records(io.BytesIO(b'{"a": [{"x": NaN}]}'), "a.json")
    assert math.isnan(record.value["x"])


HUGE = "9" * 5000  # Python reads numbers of up to 4,300 digits
STRING = json.dumps('"]}\\\\[[{')


@pytest.mark.parametrize("chunk", [7, 1 << 20])
@pytest.mark.parametrize(
    ("text", "error"),
    [
        pytest.param(HUGE, "too many digits", id="huge number"),
        pytest.param(f"[{HUGE}]", "too many digits", id="huge number in a list"),
        pytest.param(f'{{"s": {STRING}, "id": -{HUGE}, "t": {STRING}, "u": [[{{}}], 1]}}', "digits", id="in an object"),
        pytest.param("[" * 5000 + STRING + "]" * 5000, "nested too deeply", id="deeper than Python reads"),
        pytest.param('{"a": [' * 3000 + "]}" * 3000, "nested too deeply", id="deep objects"),
    ],
)
def test_an_element_that_python_cannot_hold_is_one_bad_record(monkeypatch, text, error, chunk):
    monkeypatch.setattr(jsonstream, "CHUNK", chunk)
    data = f'{{"a": [1, {text} , {{"b": 2}}], "c": {{"x": {text}}}, "d": [3]}}'.encode()
    records = list(iter_records(io.BytesIO(data), "a.json"))
    assert [(r.section, r.position, r.value) for r in records] == [
        ("a", 0, 1),
        ("a", 1, None),
        ("a", 2, {"b": 2}),
        ("c", 0, None),
        ("d", 0, 3),
    ]
    assert (records[1].text, records[3].text) == (text, f'{{"x": {text}}}')
    assert [error in (r.error or "") for r in records] == [False, True, False, True, False]


def below(frames: int, call):
    """The result of a call from so many frames further down."""
    return call() if frames == 0 else below(frames - 1, call)


@pytest.mark.parametrize("frames", [0, 600])
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_how_deep_an_element_may_be_does_not_depend_on_who_calls(monkeypatch, frames, chunk):
    monkeypatch.setattr(jsonstream, "CHUNK", chunk)
    lists = ["[" * depth + STRING + "]" * depth for depth in (200, 201)]
    objects = ['{"a": ' * depth + "1" + "}" * depth for depth in (200, 201)]
    flat = json.dumps([[], {}, '\\"[[' * 100] * 200)  # brackets beside each other, and in texts
    data = f"[{', '.join([*lists, *objects, flat])}]".encode()
    rows = below(frames, lambda: list(iter_rows(io.BytesIO(data), "a.json")))
    assert [row.error for row in rows] == [None, "nested too deeply", None, "nested too deeply", None]
    assert [row.text for row in rows] == [*lists, *objects, flat]
    assert rows[4].value == json.loads(flat)


def test_a_caller_without_room_is_no_fault_of_the_file():
    room = sys.getrecursionlimit() - len(inspect.stack()) - 50
    with pytest.raises(RecursionError):
        below(room, lambda: list(iter_rows(io.BytesIO(b"[" * 100 + b"]" * 100), "a.json")))


def test_lists_are_told_from_other_values():
    lists: dict[str, bool] = {}
    list(iter_records(io.BytesIO(b'{"a": [], "b": {}, "c": [1], "d": [], "d": 3}'), "a.json", lists))
    assert lists == {"a": True, "b": False, "c": True, "d": False}


@pytest.mark.parametrize("chunk", [3, 1 << 20])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "the file is empty", id="no bytes"),
        pytest.param(b"  \n", "the file is empty", id="white space"),
        pytest.param(b"[1]", "byte 0: expected a JSON object", id="a list"),
        pytest.param(b"\x89PNG", "byte 0: not UTF-8", id="a picture"),
        pytest.param(b'{"a": [1, 2', "a[1] (byte 11): expected ',', found the end of the file", id="cut in a list"),
        pytest.param(
            b'{"a": [1,', "a[1] (byte 9): Expecting value; the file is damaged or cut off", id="after a comma"
        ),
        pytest.param(b'{"a": [{"b": "c', "a[0] (byte 13): Unterminated string", id="cut in a string"),
        pytest.param(b'{"a" 1}', "a (byte 5): expected ':'", id="no colon"),
        pytest.param(b'{"a": [1 2]}', "a[0] (byte 9): expected ','", id="no comma"),
        pytest.param(b"{1: 2}", "byte 1: expected a key, found '1'", id="no key"),
        pytest.param(b'{"a": [1], "b": {"c": nix}}', "b (byte 22): Expecting value", id="no value"),
        pytest.param('{"é": [1, {"ü": x}]}'.encode(), "é[1] (byte 18): Expecting value", id="bytes, not characters"),
        pytest.param(b'\xef\xbb\xbf{"a": [1, x]}', "a[1] (byte 13): Expecting value", id="behind a mark"),
        pytest.param(b'{"a": [1, 2, "\xff"]}', "a[2] (byte 14): not UTF-8 text (invalid start byte)", id="bad byte"),
        pytest.param(b'{"a": [1, "\xc3', "a[1] (byte 11): not UTF-8 text (unexpected end", id="half a character"),
        pytest.param(b'{"a": ' + b"[" * 100_000, "a[0] (byte 7): nested too deeply", id="deep and cut"),
        pytest.param(b'{"a": [1, ' + b"9" * 5000, "a[1] (byte 10): a number has too many", id="huge and cut"),
    ],
)
def test_unusable_files_say_where_and_why(monkeypatch, data, message, chunk):
    monkeypatch.setattr(jsonstream, "CHUNK", chunk)
    with pytest.raises(SourceError) as caught:
        list(iter_records(io.BytesIO(data), "a.json"))
    assert str(caught.value).startswith(f"a.json: {message}")


def test_a_syntax_error_stops_reading(monkeypatch):
    monkeypatch.setattr(jsonstream, "CHUNK", 100)
    file = io.BytesIO(b'{"a": [{"b": 1}, {"b": oops}, ' + b'{"b": 2}, ' * 1000 + b"{}]}")
    with pytest.raises(SourceError, match=r"a\[1\] \(byte 23\)"):
        list(iter_records(file, "a.json"))
    assert file.tell() == 100


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b'"', id="string without end"),
        pytest.param(b"[", id="list without end"),
        pytest.param(b"[" * 5000, id="deep list without end"),
    ],
)
def test_a_value_without_end_is_not_read_whole(monkeypatch, start):
    monkeypatch.setattr(jsonstream, "CHUNK", 100)
    monkeypatch.setattr(jsonstream, "MAX_ELEMENT", 10_000)
    file = io.BytesIO(b'{"a": [1, ' + start + b"1, " * 100_000)
    with pytest.raises(SourceError, match=r"a\[1\] \(byte 10\): a value of more than 10,000 characters"):
        list(iter_records(file, "a.json"))
    assert file.tell() < 11_000


@given(values)
def test_a_text_is_decoded_as_python_does(value):
    text = json.dumps(value)
    expected = json.loads(text)
    found = jsonstream.decode(text)
    if not any(len(digits) > 18 for digits in re.findall(r"\d+", text)):  # 64 bits hold them
        assert found == expected
        assert repr(found) == repr(expected)


@pytest.mark.parametrize("text", ["NaN", '[Infinity, {"a": "\\ud800"}]', '"\ud800"', '{"a": 1, "a": 2}'])
def test_what_strict_decoders_refuse_is_decoded(text):
    assert repr(jsonstream.decode(text)) == repr(json.loads(text))


def test_numbers_beyond_64_bits_are_floats_and_no_text_is_an_error():
    assert jsonstream.decode("[100000000000000000000]") == [1e20]
    with pytest.raises(ValueError, match="Expecting"):
        jsonstream.decode("[1, ")
