"""`report`: one self-contained HTML page of what a dataset holds, in numbers and samples."""

from __future__ import annotations

from typing import Any

from dataengine.sample import Sample
from dataengine.store.dataset import Dataset, open_dataset
from dataengine.view import bundle, pictures, rows

LONGEST_PX = 640  # of a picture in the page
REFERENCE_PX = 240


def report(uri: str, samples: int = 64, seed: int = 0) -> str:
    """The page."""
    dataset = open_dataset(uri)
    found = [_card(dataset, number, sample) for number, sample in enumerate(dataset.pick(samples, seed))]
    return bundle.page("report.html", {"title": dataset.manifest["recipe"]["name"], "samples": found})


def _card(dataset: Dataset, number: int, sample: Sample) -> dict[str, Any]:
    picture = pictures.inline(sample.image, sample.height, sample.width, LONGEST_PX)
    references = [pictures.inline(r.image, r.height, r.width, REFERENCE_PX) for r in sample.references]
    return rows.card_data(dataset, sample, number, "", picture, references)
