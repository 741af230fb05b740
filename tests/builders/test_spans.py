"""Where phrases stand in captions: stripped ends, words in any case, overlaps, markers."""

from __future__ import annotations

import pytest

from builders import spans


@pytest.mark.parametrize(
    ("raw", "offsets", "expected"),
    [
        ("a cat sits", (2, 5), "cat"),
        ('"a cat sits"', (3, 6), "cat"),
        ("   a cat sits ", (5, 8), "cat"),
        ('"  a cat sits"', (5, 8), "cat"),
        ("a cat sits", (1, 6), "cat"),  # blanks at its ends are no part of it
        ('"a cat"', (0, 7), "a cat"),  # nor what was stripped
        ("a cat sits", (2, 99), None),
        ("  a cat", (0, 2), None),
        ("a cat", (-1, -1), None),
        ("a cat", (3, 3), None),
    ],
)
def test_published_offsets_move_with_what_is_stripped(raw, offsets, expected):
    caption = spans.strip_caption(raw)
    span = spans.published(caption, *offsets)
    assert (span and caption.text[slice(*span)]) == expected


@pytest.mark.parametrize(
    ("text", "phrase", "near", "start"),
    [
        ("a woman and a man", "Man", None, 14),  # not in "woman"
        ("two giraffes", "giraffe", None, 4),  # the beginning of a word is better than nothing
        ("giraffes and a giraffe", "giraffe", None, 15),
        ("a woman", "man", None, None),
        ("a cat, a cat, a cat", "a cat", 12, 14),
        ("İ a cat", "A Cat", None, 2),  # the small form of the first letter is two code points
        ("a cat", "  ", None, None),
        ("İstanbul", "istanbul", None, 0),
        ("Ο ΟΔΟΣΑ", "ΟΔΟΣ", None, 2),  # the last sigma of a word has another small form
        ("the cafe\u0301, a cafe", "Cafe", None, 13),  # an accent of its own is part of the letter before it
        ("a 👩\u200d🚀 and a man", "A Man", None, 10),
    ],
)
def test_phrases_are_found_as_words_in_any_case(text, phrase, near, start):
    found = spans.find(spans.strip_caption(text), phrase, near)
    assert (found and found[0]) == start


def test_an_equal_phrase_is_the_next_one_until_there_is_none():
    caption = spans.strip_caption("a man and a man")
    assert spans.find(caption, "a man", taken={(0, 5)}) == (10, 15)
    assert spans.find(caption, "a man", taken={(0, 5), (10, 15)}) == (0, 5)


def test_overlaps_keep_the_first_and_what_only_touches():
    assert spans.without_overlaps([(10, 14), (0, 5), (0, 3), (4, 8), (5, 9), (12, 20)]) == [(0, 5), (5, 9), (10, 14)]


def test_a_tagged_caption_holds_no_marker_of_its_own():
    caption = spans.strip_caption("A <P>cat</P> and <SEG> <seg>")
    low = spans.tag(caption, [(5, 8)], lower=True)
    assert low.caption == "a ‹p›<p>cat</p>‹/p› and <seg> <seg>"
    assert (low.phrases, low.escaped) == (("cat",), 2)
    kept = spans.tag(caption, [(5, 8)], lower=False)
    assert kept.caption == "A <P><p>cat</p></P> and ‹SEG› <seg>"
    assert kept.escaped == 1
