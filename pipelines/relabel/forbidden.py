"""Pictures that must not be labelled: those that somebody tests on, or keeps as a gold set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dataengine.ledger.records import Picture
from dataengine.sample import Image
from dataengine.store.dataset import open_dataset, picture_of
from dataengine.store.files import Folder

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = ("image", "image_key")  # of a sample, and of each of its references


@dataclass(slots=True)
class Forbidden:
    """keys: `image_key`s. contents: sha256 (hex) of files. found: keys of those that were met, and left out."""

    keys: frozenset[str] = frozenset()
    contents: frozenset[str] = frozenset()
    found: set[str] = field(default_factory=set)

    def __call__(self, picture: Picture) -> bool:
        if picture.key not in self.keys and picture.sha256 not in self.contents:
            return False
        self.found.add(picture.key)
        return True


def pictures_of(places: Sequence[str]) -> Forbidden:
    """The pictures of finished datasets and of ledgers, exemplars too, known by key and by content.

    Raises:
        UserError: a folder is neither. OSError: a picture of a dataset cannot be read.
    """
    keys: set[str] = set()
    contents: set[str] = set()
    for place in places:
        for key, content in _of(place):
            keys.add(key)
            contents.add(content)
    return Forbidden(keys=frozenset(keys), contents=frozenset(contents))


def _of(place: str) -> Iterable[tuple[str, str]]:
    from dataengine.ledger.ledger import HEAD, Ledger

    if Folder(place).exists(HEAD):
        yield from ((picture.key, picture.sha256) for picture in Ledger.open(place).pictures())
        return
    seen: set[str] = set()
    for table in open_dataset(place).tables([*_SHOWN, *(f"references.list.element.{name}" for name in _SHOWN)]):
        for image, key in _shown(table):
            if key.as_py() not in seen and image.is_valid:
                seen.add(key.as_py())
                yield key.as_py(), hashlib.sha256(picture_of(Image(**image.as_py()))).hexdigest()


def _shown(table: pa.Table) -> Iterator[tuple[Any, Any]]:
    """Pictures and their keys: of the samples themselves, and those whose objects they refer to."""
    yield from zip(*(table[name] for name in _SHOWN), strict=True)
    for chunk in table["references"].chunks if "references" in table.column_names else ():
        others = chunk.flatten()
        yield from zip(*(others.field(name) for name in _SHOWN), strict=True)
