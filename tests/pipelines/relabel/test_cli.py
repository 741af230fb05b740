"""The command's options as a person gives them."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from dataengine.ledger.ledger import Ledger
from pipelines.cli import app


def test_filters_may_stand_in_a_file(coco_tree, tmp_path):
    made, ledger, file = coco_tree(2), tmp_path / "ledger", tmp_path / "filters.yaml"
    file.write_text("- confidence: [0.6, 0.4]\n- max_area\n")
    for arguments in (
        ["ledger", "init", made.root, "--out", ledger],
        ["relabel", ledger, "--labeler", "noisy-oracle", "--filters", file],
    ):
        result = CliRunner().invoke(app, [str(one) for one in arguments])
        assert result.exit_code == 0, result.output
    filters = json.loads(Ledger.open(str(ledger)).head.facts["rules"]["filters"])
    assert [list(one) for one in filters] == [["confidence"], ["max_area"]]
    assert filters[0]["confidence"]["reject"] == 0.4
