"""What the viewer keeps and reads for each row, on a small cut of what the benchmark measures on a million rows."""

import numpy as np
import pytest

from benchmarks.viewer import FILTERS, TEXTS, write_dataset
from dataengine.store.dataset import Dataset, open_dataset
from dataengine.view import reader as reading
from dataengine.view.catalog import Filters
from dataengine.view.listing import Listing

ROWS = 6000
BYTES_A_ROW = 250  # so that a million rows take half of the 500 MB that a server may have


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("scale") / "made", ROWS, 3)


@pytest.fixture(scope="module")
def listing(folder):
    listing = Listing(open_dataset(str(folder)))
    listing.catalog.fill(lambda: False)
    assert not listing.catalog.damaged
    return listing


def test_a_catalogue_keeps_few_bytes_a_row(listing):
    catalog = listing.catalog
    arrays = [*catalog.numbers.values(), *catalog._codes.values(), catalog.ids, catalog._known, catalog._ambiguous]
    arrays += [
        array for piece in catalog._pieces for array in (piece.row, piece.area, piece.category_row, piece.category)
    ]
    texts = sum(len(block.data) + len(block.ends) for block in catalog.texts.blocks)
    assert sum(array.nbytes for array in arrays) + texts < BYTES_A_ROW * ROWS


def test_the_first_page_opens_one_shard(folder, monkeypatch):
    listing = Listing(open_dataset(str(folder)))
    asked = []
    opened = Dataset.opened
    monkeypatch.setattr(Dataset, "opened", lambda self, name: asked.append(name) or opened(self, name))
    page = listing.page(Filters(), "number", False, 0, 50, None)
    assert page["total"] == ROWS
    assert len(page["rows"]) == 50
    assert set(asked) == {listing.reader.shards[0]["name"]}


def test_leafing_keeps_a_bounded_number_of_bytes(listing):
    for number in np.random.default_rng(0).integers(0, ROWS, 30).tolist():
        listing.reader.sample(number)
        listing.page(Filters(), "number", False, number, 20, None)
    assert listing.reader._groups._bytes <= reading.KEPT_BYTES
    assert listing.reader._pictures._bytes <= reading.KEPT_PICTURE_BYTES
    assert len(listing.reader._footers) <= reading.KEPT_FOOTERS


def test_what_the_benchmark_asks_for_is_answered(folder):
    from starlette.testclient import TestClient

    from dataengine.view.server import make_app

    app = make_app([open_dataset(str(folder))])
    with TestClient(app, base_url="http://127.0.0.1:8765") as client:
        app.state.viewer.work.wait()
        for query in (*FILTERS, *(f"q={text}" for text in TEXTS)):
            answer = client.get(f"/api/rows?limit=5&{query}").json()
            assert answer["ready"] == 1
            assert answer["total"] > 0 or query in ("q=frisbee", "q=000000999999")
