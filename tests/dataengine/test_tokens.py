"""Markers and spans."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine import tokens

words = st.text(alphabet="ab <>p/é", max_size=12).filter(lambda t: "<p>" not in t and "</p>" not in t)


@given(st.lists(st.tuples(words, words), max_size=5))
def test_spans_are_found_where_they_were_put(pieces):
    text, expected = "", []
    for before, content in pieces:
        text += before + " "
        start = len(text)
        text += f"<p>{content}</p>"
        expected.append((start, len(text), content))
    try:
        found = tokens.find_spans(text)
    except tokens.SpanError:
        # pieces that end in "<" can form a marker with what follows; then the scanner must see it too
        assert text.count("<p>") != len(pieces) or text.count("</p>") != len(pieces)
        return
    if text.count("<p>") == len(pieces):
        assert [(s.start, s.end, s.content) for s in found] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [("<p>a<p>b</p>", "inside the span"), ("a</p>", "closes nothing"), ("<p>a", "never closed")],
)
def test_unpaired_spans_are_refused(text, message):
    with pytest.raises(tokens.SpanError, match=message):
        tokens.find_spans(text)


@given(st.text(alphabet="<>pSEGimagero/ ", max_size=60))
def test_escaped_text_holds_no_marker(text):
    escaped, number = tokens.escape(text)
    assert not any(marker in escaped for marker in tokens.MARKERS)
    assert (number == 0) == (escaped == text)
    assert len(escaped) == len(text)


def test_region_span():
    (span,) = tokens.find_spans("look at <p><region></p>")
    assert span.is_region
