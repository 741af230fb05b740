"""The report of a loop: its file, its page, its lines."""

from __future__ import annotations

import json

import pytest

from pipelines.loop import recipe as recipes
from pipelines.loop import report

NOTHING = dict.fromkeys(("proposed", "added", "renewed", "lost", "in_review", "confirmed", "conflicted"), 0)
ROUNDS = [
    {
        **NOTHING,
        "round": 0,
        "by_filter": {},
        "by_rule": {},
        "by_people": {},
        "accept": None,
        "kept": {"all": 8, "human": 8, "model": 0},
        "hidden": {"kept": 0, "precision": None, "recall": 0.0},
        "drift": 0.0,
        "score": 0.25,
        "alone": None,
        "gold": None,
        "frozen": None,
        "human_seconds": 0.0,
    },
    {
        "round": 1,
        "proposed": 1200,
        "added": 700,
        "renewed": 0,
        "lost": 3,
        "in_review": 90,
        "confirmed": 200,
        "conflicted": 12,
        "by_filter": {"confidence": 150, "</script><b>": 10},
        "by_rule": {"earlier": 50},
        "by_people": {"accept": 7, "whole_image_bad": 2},
        "accept": 0.7,
        "kept": {"all": 708, "human": 8, "model": 700},
        "hidden": {"kept": 700, "precision": 0.95, "recall": 0.8},
        "drift": 0.125,
        "score": 0.312,
        "alone": 0.291,
        "gold": {"pictures": 3, "kept": 10, "right": 9, "objects": 12, "precision": 0.9, "recall": 0.75},
        "frozen": None,
        "human_seconds": 61.5,
    },
]


@pytest.fixture
def written(recipe, tmp_path):
    loaded = recipes.load(str(recipe()))
    report.write(tmp_path, loaded, ROUNDS, None)
    return tmp_path


def test_the_file_has_scores_before_and_after(written):
    found = json.loads((written / "report.json").read_text())
    assert [(one["before"], one["score"]) for one in found["rounds"]] == [(None, 0.25), (0.25, 0.312)]
    assert found["ended"] is None


def test_a_round_is_told_in_a_line():
    assert report.line(ROUNDS[:1]) == "score 25.0 %"
    assert report.line(ROUNDS) == (
        "score 31.2 %, before 25.0 %; 1,200 proposed; 700 added; 0 renewed; 200 confirmed; 12 conflicted; "
        "160 rejected by filters; 90 in review; precision 95.0 %, recall 80.0 % of what is hidden"
    )


def test_the_page_shows_every_round(written, watch):
    page = watch().page
    page.goto((written / "report.html").as_uri())
    rows = {
        cells[0]: cells[1:] for cells in (row.inner_text().split("\t") for row in page.query_selector_all("#rounds tr"))
    }
    assert rows["score before, %"] == ["–", "25.0"]
    assert rows["score after, %"] == ["25.0", "31.2"]
    assert rows["proposed"] == ["–", "1,200"]
    assert rows["not found again"] == ["–", "3"]
    assert rows["rejected by filters"] == ["–", "160"]
    assert rows["people: whole image bad"] == ["–", "2"]
    assert rows["seconds of people"] == ["–", "61.5"]
    assert "score with round 1's labels, %" not in rows  # nobody asked for it
    lost = page.inner_text("#rejected")
    assert "confidence\t150" in lost
    assert "</script><b>\t10" in lost
    assert page.query_selector_all("#curves .curves path.line")
    assert "round 1" in page.inner_text("#curves")
    assert "step" not in page.inner_text("#curves")
