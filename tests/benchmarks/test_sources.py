"""The benchmark of the builders runs, and every builder is in it."""

from __future__ import annotations

import pytest

from benchmarks import sources
from dataengine import builder
from pipelines.world_published import write_published


def test_every_builder_is_measured():
    assert {source.builder for source in sources.SOURCES} == set(builder.names()) - {"shapes"}


def test_a_rate_is_of_samples_that_were_read(tmp_path):
    write_published(tmp_path / "world", 4, layouts=["coco"])
    found = sources.rate(sources.SOURCES[0], tmp_path / "world", seconds=0.0)
    assert found.read > 0
    assert found.whole > 0
    assert found.objects > 0


@pytest.mark.parametrize(("source", "write"), sources.LARGE, ids=[source.title for source, _ in sources.LARGE])
def test_files_of_published_size_are_written_as_published(source, write, tmp_path):
    """A builder that refuses the records of a file would be measured doing nothing."""
    write(tmp_path, 0.0005)
    module = builder.load(source.builder)
    files = {role: str(tmp_path / name) for role, name in source.files.items()}
    options = module.parse_options(source.task, source.options)
    report = module.index(builder.Part(split=source.split, files=files), options, tmp_path / "index.arrow")
    assert report.rows > 5
    assert not report.bad
