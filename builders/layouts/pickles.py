"""Pickles as Python 2 wrote them: its byte strings and long integers are opcodes that Python 3 reads but never writes.

Only lists, dicts, strings, integers, true and false. Opcodes: the Python library's `pickletools`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

BATCH = 1000  # elements that are appended at once, as the library does
LONGS = ("ann_id", "image_id")  # of protocol 0, as in RefCOCO+


def pickled(records: Iterable[Any], protocol: int) -> Iterator[bytes]:
    """A list, one record at a time. protocol: 2 (binary, what RefCOCO uses) or 0 (text, RefCOCO+)."""
    known: dict[str, int] = {}
    if protocol == 0:
        yield b"(l"
        for record in records:
            yield _text(record, known) + b"a"
    else:
        yield b"\x80\x02]"
        waiting: list[bytes] = []
        for record in records:
            waiting.append(_binary(record, known))
            if len(waiting) == BATCH:
                yield b"(" + b"".join(waiting) + b"e"
                waiting.clear()
        yield b"(" + b"".join(waiting) + b"e"
    yield b"."


def _key(name: str, known: dict[str, int], whole: Callable[[str], bytes], put: bytes, get: bytes) -> bytes:
    """A dict's key: once in full and put in the memo, then from there."""
    if name in known:
        return get % known[name]
    known[name] = len(known)
    return whole(name) + put % known[name]


def _binary(value: Any, known: dict[str, int]) -> bytes:
    if isinstance(value, dict):
        parts = [_key(k, known, _binary_string, b"q%c", b"h%c") + _binary(v, known) for k, v in value.items()]
        return b"}(" + b"".join(parts) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(_binary(element, known) for element in value) + b"e"
    if isinstance(value, str):
        return _binary_string(value)
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    return b"J" + int(value).to_bytes(4, "little", signed=True)


def _binary_string(text: str) -> bytes:
    data = text.encode("latin-1")
    if len(data) < 256:
        return b"U%c" % len(data) + data
    return b"T" + len(data).to_bytes(4, "little") + data


def _text(value: Any, known: dict[str, int], name: str = "") -> bytes:
    if isinstance(value, dict):
        parts = [_key(k, known, _text_string, b"p%d\n", b"g%d\n") + _text(v, known, k) + b"s" for k, v in value.items()]
        return b"(d" + b"".join(parts)
    if isinstance(value, list):
        return b"(l" + b"".join(_text(element, known) + b"a" for element in value)
    if isinstance(value, str):
        return _text_string(value)
    if isinstance(value, bool):
        return b"I%02d\n" % value
    return b"L%dL\n" % value if name in LONGS else b"I%d\n" % value


def _text_string(text: str) -> bytes:
    return b"S" + repr(text.encode("latin-1"))[1:].encode() + b"\n"
