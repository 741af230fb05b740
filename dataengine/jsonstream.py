"""Records of a large JSON file, one at a time, in bounded memory.

Python's own decoder reads each element, because published files hold `NaN`, which strict parsers refuse for the
whole file where only one record is bad.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from dataengine.builder import SourceError

CHUNK = 1 << 23  # bytes read at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One element of a top-level array, or the whole value of any other key.

    section: the key it stands under. position: ordinal in its array. text: its JSON, as it stands in the file.
    """

    section: str
    position: int
    value: Any
    text: str


class _Window:
    """A text buffer over a file that is refilled from its end and forgotten from its start."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.text = ""
        self.at = 0
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._done = False
        self._json = json.JSONDecoder()

    def _more(self) -> bool:
        if self._done:
            return False
        # a value longer than the window doubles what is read, so that long values cost linear time
        data = self._file.read(max(CHUNK, len(self.text) - self.at))
        self._done = not data
        try:
            self.text = self.text[self.at :] + self._decode.decode(data, final=self._done)
        except UnicodeDecodeError as error:
            raise SourceError(f"{self.name}: not UTF-8 text ({error.reason})") from None
        self.at = 0
        return True

    def peek(self) -> str:
        """The next character that is no white space, or "" at the end of the file."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in " \t\r\n":
                    return self.text[self.at]
                self.at += 1
            if not self._more():
                return ""

    def take(self, expected: str) -> None:
        found = self.peek()
        if found != expected:
            what = repr(found) if found else "the end of the file"
            raise SourceError(f"{self.name}: expected {expected!r}, found {what}; the file is damaged or cut off")
        self.at += 1

    def value(self) -> tuple[Any, str]:
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self._more():
                    continue
                raise SourceError(f"{self.name}: {error.msg}; the file is damaged or cut off") from None
            except RecursionError:
                raise SourceError(f"{self.name}: values are nested too deeply") from None
            except ValueError as error:  # a number of thousands of digits
                raise SourceError(f"{self.name}: {error}") from None
            following = self.text[end : end + 1]
            if following not in tuple(" \t\r\n,:]}") and self._more():  # a number may go on in the next chunk
                continue
            text = self.text[self.at : end]
            self.at = end
            return value, text


def iter_records(file: BinaryIO, name: str) -> Iterator[Record]:
    """Stream the elements of every top-level array of a JSON object, in file order.

    Raises:
        SourceError: the file is empty, no JSON object, damaged or cut off.
    """
    window = _Window(file, name)
    if not window.peek():
        raise SourceError(f"{name}: the file is empty")
    if window.peek() != "{":
        raise SourceError(f"{name}: expected a JSON object at the top level, found {window.peek()!r}")
    window.take("{")
    while window.peek() != "}":
        section, _ = window.value()
        if not isinstance(section, str):
            raise SourceError(f"{name}: expected a key, found {section!r}")
        window.take(":")
        if window.peek() == "[":
            yield from _elements(window, section)
        else:
            value, text = window.value()
            yield Record(section=section, position=0, value=value, text=text)
        if window.peek() != "}":
            window.take(",")


def _elements(window: _Window, section: str) -> Iterator[Record]:
    window.take("[")
    position = 0
    while window.peek() != "]":
        value, text = window.value()
        yield Record(section=section, position=position, value=value, text=text)
        position += 1
        if window.peek() != "]":
            window.take(",")
    window.take("]")
