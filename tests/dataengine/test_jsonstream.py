"""Streaming JSON records."""

from __future__ import annotations

import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine import jsonstream
from dataengine.jsonstream import SourceError, iter_records

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


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "is empty", id="no bytes"),
        pytest.param(b"  \n", "is empty", id="white space"),
        pytest.param(b"[1]", "expected a JSON object", id="a list"),
        pytest.param(b"\x89PNG", "not UTF-8", id="a picture"),
        pytest.param(b'{"a": [1, 2', "cut off", id="cut in a list"),
        pytest.param(b'{"a": [{"b": "c', "cut off", id="cut in a string"),
        pytest.param(b'{"a" 1}', "expected ':'", id="no colon"),
        pytest.param(b'{"a": [1 2]}', "expected ','", id="no comma"),
        pytest.param(b'{"a": ' + b"[" * 100_000, "nested too deeply", id="deep nesting"),
    ],
)
def test_unusable_files_say_why(data, message):
    with pytest.raises(SourceError, match=message) as caught:
        list(iter_records(io.BytesIO(data), "a.json"))
    assert str(caught.value).startswith("a.json: ")
