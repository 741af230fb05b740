"""Records of a large JSON file, one at a time, in bounded memory.

Python's own decoder reads each element, because published files hold `NaN`, which strict parsers refuse for the
whole file where only one record is bad. An element that Python cannot hold, or that is nested deeper than MAX_DEPTH,
is a record that says so; the file goes on.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

from dataengine.builder import SourceError

CHUNK = 1 << 23  # bytes read at a time
MAX_ELEMENT = 1 << 28  # characters of one value
MAX_DEPTH = 200  # lists and objects in each other; published files have some ten, and Python's decoder reads some 900
CUT = 16  # characters; a number, word or escape that the end of the window cuts breaks within them
FOLLOWING = frozenset(" \t\r\n,:]}")  # what ends a number
DAMAGED = "the file is damaged or cut off"
TOKEN = re.compile(r'\\.|"|[\[{]+|[\]}]+', re.DOTALL)
SCALAR_END = re.compile(r"[\s,\]}]")
NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
TOO_DEEP = "nested too deeply"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One element of a top-level array, or the whole value of any other key.

    section: the key it stands under, "" in a file of rows. position: ordinal in its array. text: its JSON, as it stands
    in the file. error: why Python cannot hold the value, which is None then.
    """

    section: str
    position: int
    value: Any
    text: str
    error: str | None = None


class _Window:
    """A text buffer over a file that is refilled from its end and forgotten from its start.

    section, position: what is being read, for messages.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.section: str | None = None
        self.position: int | None = None
        self.text = ""
        self.at = 0
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._bytes = 0  # read so far
        self._done = False
        self._broken = ""  # what is wrong with the byte behind the text
        self._json = json.JSONDecoder()

    def error(self, message: str, at: int | None = None) -> SourceError:
        """An error at a place in the text, by default where reading stands, that names element and byte."""
        behind = self.text[self.at if at is None else at :].encode("utf-8", "surrogatepass")
        place = f"byte {self._bytes - len(self._decode.getstate()[0]) - len(behind)}"
        if self.section is not None:
            element = "" if self.position is None else f"[{self.position}]"
            place = f"{shown(self.section)}{element} ({place})"
        return SourceError(f"{self.name}: {place}: {message}")

    def _more(self) -> bool:
        if self._broken:
            raise self.error(self._broken, len(self.text))
        if self._done:
            return False
        length = len(self.text) - self.at
        if length > MAX_ELEMENT:
            raise self.error(f"a value of more than {MAX_ELEMENT:,} characters")
        # a value longer than the window doubles what is read, so that long values cost linear time
        data = self._file.read(max(CHUNK, min(length, MAX_ELEMENT - length)))
        self._done = not data
        self._bytes += len(data)
        try:
            text = self._decode.decode(data, final=self._done)
        except UnicodeDecodeError as error:  # what stands before it is read first
            text = error.object[: error.start].decode()
            self._bytes -= len(error.object) - error.start
            self._broken = f"not UTF-8 text ({error.reason})"
            self._decode.reset()
        self.text = self.text[self.at :] + text
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
        if self.peek() != expected:
            raise self.unexpected(repr(expected))
        self.at += 1

    def unexpected(self, expected: str) -> SourceError:
        found = self.peek()
        what = repr(found) if found else "the end of the file"
        return self.error(f"expected {expected}, found {what}; {DAMAGED}")

    def value(self) -> tuple[Any, str, str | None]:
        """The next value, its text, and why Python cannot hold it, if so."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self.text) - CUT or error.msg.startswith("Unterminated string")
                if cut and self._more():
                    continue
                raise self.error(f"{error.msg}; {DAMAGED}", error.pos) from None
            except RecursionError:
                skipped = self._skip(TOO_DEEP)
                if not is_too_deep(skipped[1]):  # it is the caller who has used up the interpreter's depth
                    raise
                return skipped
            except ValueError:
                return self._skip("a number has too many digits")
            following = self.text[end : end + 1]
            if following not in FOLLOWING and self._more():  # a number may go on in the next chunk
                continue
            text = self.text[self.at : end]
            self.at = end
            return (None, text, TOO_DEEP) if is_too_deep(text) else (value, text, None)

    def _skip(self, reason: str) -> tuple[None, str, str]:
        """Go behind a value that cannot be held."""
        while True:
            end = _end(self.text, self.at)
            if end >= 0:
                text = self.text[self.at : end]
                self.at = end
                return None, text, reason
            if not self._more():
                raise self.error(f"{reason}, and its end is missing; {DAMAGED}")


def iter_records(file: BinaryIO, name: str, lists: dict[str, bool] | None = None) -> Iterator[Record]:
    """Stream the elements of every top-level array of a JSON object, in file order.

    Args:
        file: the JSON file, opened. name: what messages call it.
        lists: is told of each key, when it is met, whether its value is an array.
    Raises:
        SourceError: the file is empty, no JSON object, damaged or cut off, or a value is longer than MAX_ELEMENT; the
            message says at which element and byte.
    """
    window = _Window(file, name)
    if not window.peek():
        raise SourceError(f"{name}: the file is empty")
    if window.peek() != "{":
        raise window.unexpected("a JSON object at the top level")
    window.take("{")
    while window.peek() != "}":
        if window.peek() != '"':
            raise window.unexpected("a key")
        section, *_ = window.value()
        window.section = section
        window.take(":")
        is_list = window.peek() == "["
        if lists is not None:
            lists[section] = is_list and lists.get(section, True)
        if is_list:
            yield from _elements(window, section)
        else:
            value, text, error = window.value()
            yield Record(section=section, position=0, value=value, text=text, error=error)
        window.section = None
        if window.peek() != "}":
            window.take(",")


def iter_rows(file: BinaryIO, name: str) -> Iterator[Record]:
    """Stream the elements of a file that is one JSON array, or one JSON value a line; their section is "".

    Args:
        file: the file, opened. name: what messages call it.
    Raises:
        SourceError: the file is empty, something else, damaged or cut off, or a value is longer than MAX_ELEMENT.
    """
    window = _Window(file, name)
    first = window.peek()
    if not first:
        raise SourceError(f"{name}: the file is empty")
    window.section = ""
    if first == "[":
        yield from _elements(window, "")
        if window.peek():
            raise window.unexpected("the end of the file")
    elif first == "{":
        position = 0
        while window.peek():
            window.position = position
            value, text, error = window.value()
            yield Record(section="", position=position, value=value, text=text, error=error)
            position += 1
    else:
        raise window.unexpected("a JSON array, or one JSON object a line")


def _elements(window: _Window, section: str) -> Iterator[Record]:
    window.take("[")
    window.position = 0
    while window.peek() != "]":
        value, text, error = window.value()
        yield Record(section=section, position=window.position, value=value, text=text, error=error)
        if window.peek() != "]":
            window.take(",")
        window.position += 1
    window.take("]")
    window.position = None


def _end(text: str, at: int) -> int:
    """Where the value at a place ends, or -1 if it is cut off. Brackets and quotes are counted, no more is checked."""
    if text[at] not in "[{":
        found = SCALAR_END.search(text, at)
        return found.start() if found else -1
    depth = 0
    quoted = False
    for match in TOKEN.finditer(text, at):
        token = match.group()
        if token == '"':
            quoted = not quoted
        elif quoted or token[0] == "\\":
            continue
        elif token[0] in "[{":
            depth += len(token)
        elif len(token) >= depth:
            return match.start() + depth
        else:
            depth -= len(token)
    return -1


def is_too_deep(text: str) -> bool:
    """Whether a JSON text has more than MAX_DEPTH lists and objects in each other, however deep the caller stands."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    data = text.encode("utf-8", "surrogatepass").replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = b"".join(data.split(b'"')[::2]).translate(None, NO_BRACKETS)  # of strings
    depth = 0
    for bracket in outside:
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def shown(key: str) -> str:
    """A key as messages show it: not too long, and without the lone surrogates that JSON can carry."""
    return key[:80].encode("utf-8", "replace").decode()


def decode(text: str) -> Any:
    """The value of a JSON text, as `json.loads` gives it, but numbers of more than 64 bits are floats.

    orjson takes a quarter of the time; what it refuses (NaN, lone surrogates), Python's own decoder reads.

    Raises:
        ValueError. RecursionError: what `iter_records` and `iter_rows` gave does not raise it.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)
