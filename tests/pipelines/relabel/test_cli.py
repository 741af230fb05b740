"""The command's options as a person gives them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from dataengine import masks
from dataengine.ledger.ledger import Ledger
from pipelines.cli import app
from tests.pipelines.relabel import models


def run(*arguments, code: int = 0):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    return result


def near(pixels, mask, text):
    """A verifier: it believes in what lies in the upper half."""
    assert pixels.shape == (*mask.shape, 3)
    return 0.95 if text and mask[: len(mask) // 2].any() else 0.05


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ("default,verifier", "verifier: nobody verifies; give it call=module:function"),
        ("sam3", "exhaustivity: no other labeler has labelled this ledger yet"),
        ("verifier:call=no.module:f", "verifier: no.module:f: No module"),
    ],
)
def test_filters_that_nobody_can_answer_are_refused(coco_tree, tmp_path, filters, said):
    made = coco_tree(2)
    run("ledger", "init", made.root, "--out", tmp_path / "ledger")
    result = run("relabel", tmp_path / "ledger", "--labeler", "noisy-oracle", "--filters", filters, code=1)
    assert said in " ".join(result.output.split())


def test_a_verifier_is_asked(coco_tree, tmp_path):
    made, ledger = coco_tree(4), tmp_path / "ledger"
    run("ledger", "init", made.root, "--out", ledger)
    chain = f"verifier:0.9:0.1:call={__name__}:near"
    run("relabel", ledger, "--labeler", "noisy-oracle", "--filters", chain)
    opened = Ledger.open(str(ledger))
    found = [(p, e) for p in opened.pictures() for e in opened.view().entries(p.key) if e.origin == "model"]
    assert found
    for picture, entry in found:
        [check] = entry.checks
        is_near = masks.decode(entry.rle, picture.height, picture.width)[: picture.height // 2].any()
        assert (check.value, check.verdict) == ((0.95, "accept") if is_near else (0.05, "reject"))


def test_filters_may_stand_in_a_file(coco_tree, tmp_path):
    made, ledger, file = coco_tree(2), tmp_path / "ledger", tmp_path / "filters.yaml"
    file.write_text("- confidence: [0.6, 0.4]\n- max_area\n")
    run("ledger", "init", made.root, "--out", ledger)
    run("relabel", ledger, "--labeler", "noisy-oracle", "--filters", file)
    filters = json.loads(Ledger.open(str(ledger)).head.facts["rules"]["filters"])
    assert [list(one) for one in filters] == [["confidence"], ["max_area"]]
    assert filters[0]["confidence"]["reject"] == 0.4


def test_sam_is_asked_again_by_boxes_and_points(coco_tree, tmp_path):
    pytest.importorskip("transformers")
    made, ledger = coco_tree(2), tmp_path / "ledger"
    run("ledger", "init", made.root, "--out", ledger)
    sam = ("--labeler", "sam", "--set", f"model={models.sam(tmp_path / 'sam')}", "--set", "prompt=box")
    run("relabel", ledger, *sam, "--filters", "augmentation:0:looks=jitter,reprompt:0")
    opened = Ledger.open(str(ledger))
    found = [e for p in opened.pictures() for e in opened.view().entries(p.key) if e.origin == "model"]
    assert found
    assert all(check.value is not None for entry in found for check in entry.checks)
    assert any(check.value < 1 for entry in found for check in entry.checks)
