"""Tables of results: numbers under their titles, whatever the task."""

from __future__ import annotations

import math

import pytest

from pipelines.evaluate import report

AP = {"ap": 0.5, "ap50": 1.0, "ap_large": None, "ar1": 0.1, "samples": 3, "per_category": {"1": {"ap": 0.5}}}
BASE = {
    "benchmark": "f" * 32,
    "name": "mine",
    "task": "vgdseg",
    "convention": "standard",
    "predictions": 1234,
    "excluded": {},
}


def result(scores, **more) -> dict:
    return {**BASE, "scores": scores, **more}


def test_scores_are_percent_under_their_titles():
    negative = {**AP, "ap": 0.123456, "false_positives": {"regions": 4, "rate": {"any": 1.0, "0.5": 0.25}}}
    text = report.text(result({"same_image": {"point": AP}, "negatives": {"box": negative}}))
    assert text.splitlines()[:2] == [
        f"vgdseg on mine ({'f' * 32})",
        "standard convention; 1,234 predictions; in percent",
    ]
    assert text.split("\n\n")[1].splitlines() == [
        "                     AP    AP50  APl  FP@0.5",
        "same_image/point  50.00  100.00    -",
        "negatives/box     12.35  100.00    -   25.00",
    ]


def test_conventions_stand_below_each_other():
    text = report.text(
        result({"a": {"point": AP}}, xsam={"scores": {"a": {"point": {**AP, "ap": 1.0}}}}, convention="both")
    )
    assert text.split("\n\n")[1].splitlines()[1:] == [
        "a/point   50.00  100.00    -",
        "  xsam   100.00  100.00    -",
    ]


def test_strata_stand_under_what_they_tell_apart():
    strata = {"size": {"small": {"ap": 0.5}, "large": {"ap": None}}, "instances": {"1": {"ap": 1.0}}}
    text = report.text(result({"a": {"point": {**AP, "strata": strata}}}))
    assert text.split("\n\n")[2].splitlines() == [
        "AP by stratum   size of what is shown   objects wanted",
        "                         small  large                1",
        "a/point                  50.00      -           100.00",
    ]


def test_other_tasks_have_tables_too():
    """Scores of any depth; counts are left out, and rows that share no score get a table of their own."""
    scores = {
        "panoptic": {"src": {"all": {"pq": 0.5, "num": 3}, "things": {"pq": 0.25, "num": 2}}},
        "semantic": {"src": {"miou": 0.75, "precision": {"0.5": 1.0}}},
    }
    assert report.text(result(scores)).split("\n\n")[1:3] == [
        "                        PQ\npanoptic/src/all     50.00\npanoptic/src/things  25.00",
        "               mIoU  Pr 0.5\nsemantic/src  75.00  100.00",
    ]


def test_what_is_missing_is_said():
    excluded = {"not_asked": {"count": 2000, "examples": ["f.json: predictions[0]: x"]}}
    text = report.text(result({"a": AP}, not_answered=["b/box"], names_benchmark=False, excluded=excluded))
    assert text.split("\n\n")[-1].splitlines() == [
        "without any prediction, and not scored: b/box",
        "the file does not say for which benchmark it was made",
        "left out: 2,000 not_asked, such as f.json: predictions[0]: x",
    ]


def test_a_file_never_holds_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write(result({"a": {**AP, "ap": math.nan}}), tmp_path / "out")
