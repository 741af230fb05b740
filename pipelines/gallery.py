"""The samples of a report: a draw in which every kind of sample appears, as cards that fit into so many bytes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dataengine import masks
from dataengine.images import ImageError
from dataengine.keyed import keyed
from dataengine.sample import Image, Sample
from dataengine.store import columns
from dataengine.store.commits import DatasetError
from dataengine.store.dataset import Dataset, Row
from dataengine.view import pictures, rows
from dataengine.view.bundle import json_text
from dataengine.view.pictures import Picture
from dataengine.view.rows import Shown

VERSION = 1  # of `draw`
STRATUM = ("source", "split", "task", "variant")
LEVELS = ((640, 78), (512, 74), (384, 70), (288, 60), (192, 50), (128, 40))  # longest side in px, WebP's quality
REFERENCE_SHARE = 0.4  # of the longest side of a sample's own picture
ROWS_SHARE = 0.5  # of the bytes, that rows may take before anything is cut from them
MOST_TEXT = 4000  # code points of a turn in a row that is cut
LONG_PROMPT = 400  # bytes of a prompt in JSON
MOST_ERROR = 300  # characters of why there is no picture
THREADS = 2  # decode pictures, which lets go of the interpreter
PENDING = 8  # samples whose pictures are on their way


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Numbers of the samples drawn, ascending; and the strata they come of: names and samples of each."""

    numbers: list[int]
    strata: list[tuple[tuple[str, ...], int]]


def draw(dataset: Dataset, number: int, seed: int) -> Draw:
    """Draw samples, as many of each source, split, task and variant as of the others.

    A stratum that has fewer gives all it has. Where there are more strata than samples, the largest appear.

    Args:
        number: how many at most. seed: each stratum is drawn with `keyed(seed, its names, "gallery", VERSION)`.
    """
    found: dict[tuple[str, ...], list[np.ndarray]] = {}
    base = 0
    for table in dataset.tables(columns.leaves(*STRATUM)):
        read = columns.rows(table)
        places, keys = columns.combine([read.texts(name) for name in STRATUM])
        for place, key in enumerate(keys):
            named = tuple(text or "" for text in key)
            found.setdefault(named, []).append(base + np.flatnonzero(places == place))
        base += len(read)
    strata = {key: np.concatenate(parts) for key, parts in sorted(found.items())}
    sizes = [len(members) for members in strata.values()]
    numbers: list[int] = []
    for (key, members), take in zip(strata.items(), even_shares(sizes, number), strict=True):
        rng = keyed(seed, *key, "gallery", VERSION)
        numbers += rng.choice(members, take, replace=False).tolist()
    return Draw(numbers=sorted(numbers), strata=list(zip(strata, sizes, strict=True)))


def even_shares(sizes: Sequence[int], number: int) -> list[int]:
    """How many to take of each, as even as their sizes allow; the largest first where that does not come out even."""
    shares = [0] * len(sizes)
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    left = min(number, sum(sizes))
    while left:
        for index in order:
            if left and shares[index] < sizes[index]:
                shares[index] += 1
                left -= 1
    return shares


@dataclass(slots=True)
class _Card:
    """A card in the making. cut: how many of what was left out. pictures: its own, then those of its references."""

    data: dict[str, Any]
    cut: Counter[str] = field(default_factory=Counter)
    pictures: list[Picture | None] = field(default_factory=list)

    def bytes(self) -> int:
        return len(json_text(self.data).encode())

    def finished(self) -> dict[str, Any]:
        row = self.data["row"]
        parts = [f"{n:,} {what if n > 1 else what[:-1]}" for what, n in self.cut.items()] if row else ["its whole row"]
        return {**self.data, "cut": ", ".join(parts) or None}


def cards(dataset: Dataset, numbers: Sequence[int], most_bytes: int) -> list[dict[str, Any]]:
    """Card data of some samples, whose JSON has at most `most_bytes` bytes.

    Where that is little, first pictures become smaller, and masks and texts of the largest rows are left out; then
    pictures are, and at last whole rows. `cut` of a card says so in words, or is null.
    """
    level = _first_level(len(numbers), most_bytes)
    made = []
    for data, shown in _read(dataset, numbers, level):
        made.append(_Card(data=data, pictures=shown))
        _cut_rows(made[-1:], int(most_bytes * ROWS_SHARE))  # what fits in no page is not kept until all are read
    _cut_rows(made, int(most_bytes * ROWS_SHARE))
    room = most_bytes - sum(card.bytes() for card in made) - 200 * len(made)
    _fit_pictures(made, room, level)
    return [card.finished() for card in made]


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(
    dataset: Dataset, numbers: Sequence[int], level: int
) -> Iterator[tuple[dict[str, Any], list[Picture | None]]]:
    """Card data without pictures, and the pictures, made small by a few threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        pending: deque[tuple[Row, Future[list[Picture | str | None]]]] = deque()
        for row in dataset.rows(numbers):
            pending.append((row, pool.submit(_pictures, dataset.folder.uri, row.sample, level)))
            if len(pending) >= PENDING:
                yield _card(dataset, *pending.popleft())
        while pending:
            yield _card(dataset, *pending.popleft())


def _card(
    dataset: Dataset, row: Row, future: Future[list[Picture | str | None]]
) -> tuple[dict[str, Any], list[Picture | None]]:
    try:
        found = future.result()
        shown = [Shown(error=one) if isinstance(one, str) else Shown() for one in found]
        data = rows.card_data(dataset, row.sample, row.number, row.shard, shown[0], shown[1:])
    except TypeError as error:  # a null where the format has none
        raise DatasetError(f"{dataset.folder.uri}: row {row.number} in {row.shard} is damaged: {error}") from None
    return data, [one if isinstance(one, Picture) else None for one in found]


def _pictures(uri: str, sample: Sample, level: int) -> list[Picture | str | None]:
    """The sample's own picture and those of its references, or why there is none."""
    found = [_picture(uri, sample.image, sample.height, sample.width, level)]
    return found + [_picture(uri, r.image, r.height, r.width, level, REFERENCE_SHARE) for r in sample.references]


def _picture(
    uri: str, image: Image | None, height: int, width: int, level: int, share: float = 1
) -> Picture | str | None:
    if image is None:
        return None
    longest, quality = LEVELS[level]
    try:
        return pictures.small(pictures.load(image, height, width, uri), int(longest * share), quality)
    except (ImageError, OSError) as error:
        return str(error)[:MOST_ERROR]


# --- fitting ---------------------------------------------------------------------------------------------------------


def _first_level(number: int, most_bytes: int) -> int:
    """The level at which photographs of so many samples about fit; a byte holds some 7 px of them."""
    share = most_bytes * ROWS_SHARE / max(number, 1)
    fitting = [level for level, (longest, _) in enumerate(LEVELS) if longest**2 * 0.7 / 7 < share]
    return fitting[0] if fitting else len(LEVELS) - 1


def _cut_rows(made: list[_Card], most_bytes: int) -> None:
    """Leave out of the largest rows what makes them large, until all rows have at most `most_bytes`."""
    sizes = [card.bytes() for card in made]
    cap = cap_of(sizes, most_bytes)
    for card, size in zip(made, sizes, strict=True):
        if size > cap:
            _cut_row(card, size, cap)


def cap_of(sizes: Iterable[int], total: int) -> int:
    """The largest cap such that sizes, each cut to it, add up to at most `total`."""
    ascending = sorted(sizes)
    left = total
    for index, size in enumerate(ascending):
        share = left // (len(ascending) - index)
        if size > share:
            return share
        left -= size
    return total


def _cut_row(card: _Card, size: int, cap: int) -> None:
    """Leave out prompts, then the largest masks, then the ends of long texts, then all."""
    row = card.data["row"]
    if row is not None:
        size = _cut_masks(card, _cut_prompts(card, size, cap), cap)
    if row is not None and size > cap:
        for thing in (thing for thing in (*row["turns"], *row["conditions"]) if len(thing["text"] or "") > MOST_TEXT):
            thing["text"] = thing["text"][:MOST_TEXT]
            card.cut["text ends"] += 1
        row["caption"] = row["caption"] and row["caption"][:MOST_TEXT]
        size = card.bytes()
    if size > cap:
        named = {key: card.data[key] for key in ("number", "shard", "commands")}
        card.data = {**named, "commands": named["commands"] if cap >= MOST_TEXT else [], "row": None}
        card.pictures = []


def _cut_prompts(card: _Card, size: int, cap: int) -> int:
    """Empty long prompts, those that no region shows first, until the card has at most `cap` bytes or none is left."""
    row = card.data["row"]
    shown = {condition["exemplar"] for condition in row["conditions"]}
    rank = sorted(range(len(row["objects"])), key=lambda index: index in shown)
    for thing in (*(row["objects"][index] for index in rank), *row["references"]):
        for prompt in thing["prompts"]:
            length = len(prompt["rle"] or "") + 8 * len(prompt["points"])
            if size > cap and length > LONG_PROMPT:
                prompt["rle"], prompt["points"], prompt["parts"] = None, [], []
                card.cut["prompts"] += 1
                size -= length
    return card.bytes()


def _cut_masks(card: _Card, size: int, cap: int) -> int:
    """Empty the largest masks until the card has at most `cap` bytes, or about as many as it has then."""
    row = card.data["row"]
    try:
        empty = masks.rle_from_counts([row["height"] * row["width"]], row["height"], row["width"]).decode("ascii")
    except masks.MaskError:  # no canvas, or none that is possible
        empty = ""
    for thing in sorted(row["objects"], key=lambda thing: len(thing["rle"] or ""), reverse=True):
        left_out = len(thing["rle"] or "") - len(empty)
        if size <= cap or left_out <= 0:
            break
        size -= left_out
        thing["rle"] = empty
        card.cut["masks"] += 1
    return size


def _fit_pictures(made: list[_Card], room: int, level: int) -> None:
    """Put the pictures into their cards, smaller where there is less room, and none where there is no room left."""
    while sum(map(_url_bytes, _all(made))) > room and level + 1 < len(LEVELS):
        level += 1
        longest, quality = LEVELS[level]
        for card in made:
            card.pictures = [
                one and pictures.small(one, int(longest * (REFERENCE_SHARE if index else 1)), quality)
                for index, one in enumerate(card.pictures)
            ]
    for card in made:
        for index, one in enumerate(card.pictures):
            if one is None:
                continue
            room -= _url_bytes(one)
            shown = card.data if index == 0 else card.data["references"][index - 1]
            if room >= 0:
                shown["picture"] = pictures.data_url(one)
            else:
                shown["picture_error"] = "left out: the page would be too large"
                card.cut["pictures"] += 1


def _all(made: Iterable[_Card]) -> Iterator[Picture]:
    return (one for card in made for one in card.pictures if one is not None)


def _url_bytes(picture: Picture) -> int:
    return len(picture.data) * 4 // 3 + 30
