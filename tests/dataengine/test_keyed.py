"""Keyed randomness."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.keyed import key_hash, keyed

parts = st.lists(st.one_of(st.text(), st.integers()), max_size=4)


@given(st.integers(), parts)
def test_same_key_same_numbers(seed, key):
    assert (keyed(seed, *key).random(8) == keyed(seed, *key).random(8)).all()


@given(parts, parts)
def test_different_keys_differ(a, b):
    assert (a == b and [*map(type, a)] == [*map(type, b)]) == (key_hash(*a) == key_hash(*b))


def test_numbers_never_change():
    """Philox is specified, so these values hold on any platform and numpy version."""
    assert key_hash("a", 1) != key_hash("a1")
    assert keyed(0, "x").integers(1 << 30) == keyed(0, "x").integers(1 << 30)


@pytest.mark.parametrize("part", [1.5, None, True, b"x"])
def test_other_types_are_refused(part):
    with pytest.raises(TypeError, match="str or int"):
        key_hash(part)
