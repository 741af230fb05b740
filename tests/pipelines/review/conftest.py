"""The fixture `grey`; see `zones`."""

import hashlib

import pytest

from dataengine.ledger.records import Picture
from tests.pipelines.review.zones import CAT, DOG, HEIGHT, PHRASE, WIDTH, Grey, entry_of, rle_of


@pytest.fixture
def grey(tmp_path, make_jpeg) -> Grey:
    pictures = []
    for number, key in enumerate(("shapes/1", "../odd key/né")):
        path, data = tmp_path / f"{number}.jpg", make_jpeg(HEIGHT, WIDTH, seed=number)
        path.write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        pictures.append(Picture(key=key, path=str(path), sha256=sha256, height=HEIGHT, width=WIDTH))
    first, second = pictures
    entries = [
        entry_of(first, CAT, rle_of(2, 3, 5, 4, hole=True)),
        entry_of(first, DOG, rle_of(0, 0, 32, 24)),
        entry_of(first, PHRASE, rle_of(31, 23, 1, 1), score=1.0, reason="text\x00check"),
    ]
    return Grey(tmp_path, [(first, entries), (second, [entry_of(second, CAT, rle_of(10, 10, 3, 9))])])
