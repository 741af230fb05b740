"""Small pictures with known masks, labelled by labelers of `failing`."""

from __future__ import annotations

from hashlib import sha256

import pytest

from dataengine.ledger.records import Picture
from pipelines.relabel import pipeline
from pipelines.relabel.labelers import Spec
from pipelines.relabel.pipeline import Rules, Settings
from tests.pipelines.relabel import failing

RULES = Rules(filters=failing.plain_filters, merge=failing.plain_merge, facts={"rules": "plain"})


class Pictures:
    """A snapshot."""

    def __init__(self, pictures, known=None):
        self._pictures, self._known = pictures, known or {}

    def pictures(self):
        return iter(self._pictures)

    def entries(self, key):
        return self._known.get(key, [])


@pytest.fixture
def pictures(tmp_path, make_jpeg):
    """Makes a snapshot of so many pictures of 32 x 24 px, whose keys are their numbers."""

    def make(number: int, known=None) -> Pictures:
        found = []
        for key in range(number):
            file = tmp_path / f"{key}.jpg"
            file.write_bytes(make_jpeg(seed=key))
            digest = sha256(file.read_bytes()).hexdigest()
            found.append(Picture(key=str(key), path=str(file), sha256=digest, height=24, width=32))
        return Pictures(found, known)

    return make


@pytest.fixture
def relabel(tmp_path):
    """Runs a round: `relabel(snapshot, "Boxes", {"fault": …}, per_task=4)`."""

    def run(snapshot, kind="Boxes", options=None, out="out", rules=RULES, **settings):
        spec = Spec(name=f"tests.pipelines.relabel.failing:{kind}", settings=options or {})
        told = {"per_task": 4, "batch": 3, **settings}
        order = told.pop("order", list)
        said = []
        result = pipeline.run(snapshot, spec, rules, str(tmp_path / out), Settings(**told), said.append, order=order)
        return result, said

    return run


@pytest.fixture
def content(tmp_path):
    """The bytes of all files of a folder, by name."""

    def read(out="out"):
        folder = tmp_path / out
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    return read
