"""A round of labelling gives the same whatever happens on the way, and a bad picture costs only itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataengine import masks
from dataengine.engine.executors import EngineError
from dataengine.errors import UserError
from dataengine.ledger.records import Concept, Entry, Proposal
from dataengine.store import quarantine
from dataengine.store.commits import DatasetError
from dataengine.store.files import temporary_name
from dataengine.store.quarantine import BudgetError
from pipelines.relabel import hands, pipeline
from pipelines.relabel.labelers import Spec
from pipelines.relabel.pipeline import Settings
from tests.pipelines.relabel import failing
from tests.pipelines.relabel.conftest import RULES

ROOT = Path(__file__).parents[3]


def keys(result) -> list[int]:
    return [int(entry.picture) for entry in pipeline.entries_of(result)]


def bad(result) -> dict[int, str]:
    rows = [row for stored in result.quarantine for row in quarantine.read(Path(result.out) / stored["name"])]
    return {int(row["record"]): row["reason"] for row in rows}


def calls(log: Path) -> list[list[int]]:
    return [[int(number) for number in line.split()] for line in log.read_text().splitlines()]


def human(key: int) -> Entry:
    return Entry(
        entry_id=f"h{key}",
        mask_id="m",
        picture=str(key),
        round=0,
        origin="human",
        concept=Concept(text="dog", category_id=1),
        rle=failing.box_rle(key),
        bbox=(3.0, 2.0, 17.0, 8.0),
        area=17 * 8,
    )


# --- what it gives ---------------------------------------------------------------------------------------------------


def test_every_picture_has_its_entries_in_order(pictures, relabel):
    result, _ = relabel(pictures(10))
    assert keys(result) == list(range(10))
    assert result.pictures == 10
    assert [stored["name"] for stored in result.files] == [f"entries/{n:06}.parquet" for n in range(3)]  # 4, 4, 2
    assert result.facts()["records"]["read"] == {"images": 10, "masks": 10}


def test_known_masks_reach_the_merge(pictures, relabel):
    result, _ = relabel(pictures(5, {"3": [human(3)]}))
    assert [(e.picture, e.state) for e in pipeline.entries_of(result) if e.relation == "duplicate"] == [
        ("3", "rejected")
    ]
    assert result.states == {"kept": 4, "rejected": 1}


def test_entries_come_back_from_their_files_as_they_were(pictures, relabel):
    result, _ = relabel(pictures(1))
    (entry,) = pipeline.entries_of(result)
    (checked,) = failing.plain_filters([failing.good(0)], None, None)
    snapshot = pictures(1)
    (expected,) = failing.plain_merge([checked], [], [], next(iter(snapshot.pictures())))
    assert entry == expected


def test_pixels_are_those_of_the_picture(pictures, relabel, tmp_path):
    snapshot = pictures(5)
    (tmp_path / "2.jpg").write_bytes(b"not a jpeg")
    (tmp_path / "3.jpg").unlink()
    (tmp_path / "4.jpg").write_bytes((tmp_path / "1.jpg").read_bytes())
    result, _ = relabel(snapshot, options={"needs_pixels": True})
    assert keys(result) == [0, 1]
    assert bad(result) == {2: "image_changed", 3: "image_missing", 4: "image_changed"}


@pytest.mark.parametrize(
    "settings",
    [{"order": lambda tasks: tasks[::-1]}, {"batch": 1}, {"batch": 100}],
    ids=["tasks in another order", "one by one", "a task at once"],
)
def test_the_same_bytes_however_it_runs(pictures, relabel, content, settings):
    snapshot = pictures(10)
    relabel(snapshot, options={"fault": "nan", "at": [5]})
    relabel(snapshot, options={"fault": "nan", "at": [5]}, out="other", **settings)
    assert content("out") == content("other")
    assert {name.split("/")[0] for name in content()} == {
        "plan.json",
        "result.json",
        "entries",
        "quarantine",
        "commits",
    }


# --- labelers that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raises", "labeler_raised"),
        ("exits", "labeler_raised"),
        ("memory", "out_of_memory"),
        ("nan", "not_finite"),
        ("nan_iou", "not_finite"),
        ("score", "score_range"),
        ("rle", "rle_invalid"),
        ("shape", "rle_size"),
        ("array", "answer_type"),
        ("none", "answer_type"),
        ("many", "too_many_masks"),
        ("surrogate", "bad_text"),
        ("crop", "bad_crop"),
    ],
)
def test_a_picture_that_cannot_be_labelled_costs_only_itself(pictures, relabel, fault, reason):
    result, _ = relabel(pictures(10), options={"fault": fault, "at": [1, 6]})
    assert bad(result) == {1: reason, 6: reason}
    assert keys(result) == [0, 2, 3, 4, 5, 7, 8, 9]


def test_a_mask_without_pixels_is_no_mask(pictures, relabel):
    result, _ = relabel(pictures(3), options={"fault": "empty", "at": [1]})
    assert bad(result) == {}
    assert keys(result) == [0, 2]
    assert result.account.built["images"] == 3


class Hostile(failing.Boxes):
    """Values that cannot be looked at, or that no file holds: `fault` is the field."""

    def _answer(self, number):
        huge = {
            "score": {"score": 10**5000},
            "predicted_iou": {"predicted_iou": 10**400},
            "category_id": {"concept": Concept(text="dog", category_id=10**400)},
            "crop": {"crop": (0, 0, 10**5000, 1)},
            "text": {"concept": Concept(text=10**5000, category_id=1)},
            "whole": {"predicted_iou": 2**60 + 1},
        }
        one = failing.good(number)
        return [replace(one, **huge[self.fault])] if number in self.at else [one]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("score", "not_finite"),
        ("predicted_iou", "not_finite"),
        ("category_id", "answer_type"),
        ("crop", "answer_schema"),
        ("text", "answer_schema"),
        ("whole", None),
    ],
)
@pytest.mark.parametrize("asks_again", [False, True])
def test_numbers_beyond_all_bounds_cost_their_picture(pictures, tmp_path, fault, reason, asks_again):
    rules = pipeline.Rules(filters=failing.plain_filters, merge=failing.plain_merge, facts={}, asks_again=asks_again)
    spec = Spec(name=f"{__name__}:Hostile", settings={"fault": fault, "at": [1]})
    result = pipeline.run(pictures(3), spec, rules, str(tmp_path / "out"), Settings(batch=3))
    assert bad(result) == ({1: reason} if reason else {})
    assert keys(result) == ([0, 2] if reason else [0, 1, 2])


class Stammering(failing.Boxes):
    """Says everything thrice, and something of nothing."""

    def _answer(self, number):
        one = failing.good(number)
        nothing = replace(one, rle=masks.encode(np.zeros((24, 32), bool)))
        return [one, replace(one, score=0.75), replace(one, score=0.25), nothing]


def test_the_better_of_the_same_mask_counts_and_nothing_vanishes(pictures, tmp_path):
    spec = Spec(name=f"{__name__}:Stammering", settings={})
    result = pipeline.run(pictures(2), spec, RULES, str(tmp_path / "out"), Settings())
    assert [entry.score for entry in pipeline.entries_of(result)] == [0.75, 0.75]
    records = result.facts()["records"]
    assert (records["read"]["masks"], records["built"]["masks"]) == (8, 2)
    assert records["filtered"] == {"masks": {"doubled": 4, "empty": 2}}


class Echo(failing.Boxes):
    """Proposes what it is told."""

    def label(self, questions):
        return [
            [Proposal(rle=entry.rle, concept=entry.concept, score=0.5) for entry in question.known]
            for question in questions
        ]


def test_rejected_masks_are_told_to_the_merge_alone(pictures, tmp_path):
    told = []

    def merge(checked, human, earlier, picture):
        told.append((picture.key, len(checked), len(human)))
        return failing.plain_merge(checked, human, earlier, picture)

    rules = pipeline.Rules(filters=failing.plain_filters, merge=merge, facts={})
    snapshot = pictures(2, {"0": [human(0)], "1": [replace(human(1), state="rejected", reason="reject")]})
    pipeline.run(snapshot, Spec(name=f"{__name__}:Echo", settings={}), rules, str(tmp_path / "out"), Settings())
    assert told == [("0", 1, 1), ("1", 0, 1)]


def test_a_batch_with_too_few_answers_is_asked_one_by_one(pictures, relabel, tmp_path):
    result, _ = relabel(pictures(4), "TooFew", {"log": str(tmp_path / "log")})
    assert keys(result) == [0, 1, 2, 3]
    assert calls(tmp_path / "log") == [[0, 1, 2], [0], [1], [2], [3]]


def test_too_little_memory_halves_the_batch_and_says_so(pictures, relabel, tmp_path):
    result, said = relabel(pictures(8), options={"most": 2, "log": str(tmp_path / "log")}, per_task=8, batch=6)
    assert keys(result) == list(range(8))
    assert calls(tmp_path / "log") == [[0, 1, 2, 3, 4, 5], [0, 1, 2], [0], [1], [2], [3], [4], [5], [6], [7]]
    assert result.batch == 1
    assert [line.split()[-5:-3] for line in said] == [["with", "3"], ["with", "1"]]


def test_a_labeler_that_hangs_is_left_behind(pictures, relabel, tmp_path):
    options = {"fault": "hangs", "at": [5], "log": str(tmp_path / "log"), "seconds": 5}
    result, _ = relabel(pictures(8), options=options, timeout_s=0.5)
    assert bad(result) == {5: "labeler_hangs"}
    assert keys(result) == [0, 1, 2, 3, 4, 6, 7]
    # the first task; a batch that hangs; then its task anew, doubtful pictures alone and last; 5 is not asked again
    assert calls(tmp_path / "log") == [[0, 1, 2], [3], [4, 5, 6], [7], [4], [5], [7], [4], [6]]


def test_hanging_again_and_again_ends_the_round(pictures, relabel):
    options = {"fault": "hangs", "at": list(range(8)), "seconds": 5}
    with pytest.raises(EngineError, match="hung 4 times"):
        relabel(pictures(8), options=options, timeout_s=0.05, batch=1)


def test_a_round_that_hung_too_often_is_resumed_without_those_pictures(pictures, relabel, content, tmp_path):
    snapshot, log = pictures(4), tmp_path / "log"
    options = {"fault": "hangs", "at": [0, 1, 2], "seconds": 5, "log": str(log)}
    with pytest.raises(EngineError, match="hung 4 times"):
        relabel(snapshot, options=options, timeout_s=0.5)
    log.unlink()
    result, _ = relabel(snapshot, options=options, timeout_s=0.5, resume=True)
    assert calls(log) == [[3]]
    assert bad(result) == dict.fromkeys([0, 1, 2], "labeler_hangs")
    assert not [name for name in content() if name.startswith("doubts")]


def test_a_labeler_with_more_time_is_asked_again(pictures, relabel):
    snapshot = pictures(8)
    options = {"fault": "hangs", "at": list(range(8)), "seconds": 1}
    with pytest.raises(EngineError, match="hung 4 times"):
        relabel(snapshot, options=options, timeout_s=0.05)
    result, _ = relabel(snapshot, options=options, timeout_s=60, resume=True)
    assert keys(result) == list(range(8))


def test_the_budget_ends_the_round_and_resuming_may_raise_it(pictures, relabel):
    snapshot, options = pictures(12), {"fault": "nan", "at": [0, 1, 2]}
    with pytest.raises(BudgetError, match="3 pictures are quarantined"):
        relabel(snapshot, options=options, min_bad=2)
    result, _ = relabel(snapshot, options=options, min_bad=3, resume=True)
    assert bad(result) == dict.fromkeys([0, 1, 2], "not_finite")


def test_what_a_person_has_to_mend_ends_the_round(pictures, relabel):
    """It is no picture's fault: nothing is quarantined, and the round goes on once it is mended."""
    snapshot = pictures(6)
    with pytest.raises(UserError, match="away"):
        relabel(snapshot, "Away")
    result, _ = relabel(snapshot, resume=True)
    assert keys(result) == list(range(6))
    assert result.quarantine == []


def broken_merge(checked, human, earlier, picture):
    if picture.key == "2":
        raise KeyError("a defect")
    return failing.plain_merge(checked, human, earlier, picture)


def test_a_defect_of_a_rule_costs_its_picture(pictures, relabel):
    rules = pipeline.Rules(filters=failing.plain_filters, merge=broken_merge, facts={})
    result, _ = relabel(pictures(4), rules=rules)
    assert bad(result) == {2: "internal_error"}


def test_filters_may_ask_the_labeler_again(pictures, relabel, tmp_path):
    rules = pipeline.Rules(filters=failing.asking_filters, merge=failing.plain_merge, facts={}, asks_again=True)
    options = {"needs_pixels": True, "fault": "nan", "at": [2], "log": str(tmp_path / "log")}
    result, _ = relabel(pictures(7), options=options, rules=rules, per_task=7)
    assert bad(result) == {2: "not_finite", 5: "labeler_raised"}
    assert [entry.checks[0].verdict for entry in pipeline.entries_of(result)] == ["accept"] * 5
    assert calls(tmp_path / "log")[:3] == [[0, 1, 2], [0], [1]]


# --- stopping and resuming -------------------------------------------------------------------------------------------

RUN = """
import sys
from pathlib import Path
from pipelines.relabel import pipeline
from pipelines.relabel.labelers import Spec
from tests.pipelines.relabel.conftest import RULES, Pictures
from dataengine.ledger.records import Picture
from hashlib import sha256
root, out = map(Path, sys.argv[1:])
files = sorted(root.glob("*.jpg"), key=lambda file: int(file.stem))
made = [Picture(key=f.stem, path=str(f), sha256=sha256(f.read_bytes()).hexdigest(), height=24, width=32) for f in files]
spec = Spec(name="tests.pipelines.relabel.failing:Boxes", settings={"fault": "nan", "at": [5]})
pipeline.run(Pictures(made), spec, RULES, str(out), pipeline.Settings(per_task=4, batch=3, resume=True))
"""


@pytest.mark.parametrize("point", ["plan", "asking:3", "written:2", "linked:4", "commit:2", "result"])
def test_a_killed_round_goes_on_to_the_same_bytes(pictures, relabel, content, tmp_path, point):
    snapshot = pictures(10)
    relabel(snapshot, options={"fault": "nan", "at": [5]})
    name, _, number = point.partition(":")
    environment = {**os.environ, "DATAENGINE_FAULT": f"{name}:kill:{number or 1}", "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", RUN, str(tmp_path), str(tmp_path / "killed")]
    assert subprocess.run(run, cwd=ROOT, env=environment, check=False).returncode == -9
    log = tmp_path / "log"
    relabel(snapshot, options={"fault": "nan", "at": [5], "log": str(log)}, out="killed", resume=True)
    assert content("killed") == content("out")
    if point in ("commit:2", "result"):
        assert not log.exists() or [0, 1, 2] not in calls(log)  # what was committed is not done again


def test_a_finished_round_is_not_done_again(pictures, relabel, tmp_path, content):
    snapshot = pictures(6)
    first, _ = relabel(snapshot)
    before = content()
    again, _ = relabel(snapshot, options={"log": str(tmp_path / "log")}, resume=True)
    assert not (tmp_path / "log").exists()
    assert content() == before
    assert again.facts() == first.facts()
    assert again.files == first.files


def test_only_the_round_that_was_begun_is_resumed(pictures, relabel, tmp_path):
    snapshot = pictures(6)
    relabel(snapshot)
    with pytest.raises(UserError, match="add --resume"):
        relabel(snapshot)
    with pytest.raises(UserError, match="round was 1 and is 2"):
        relabel(snapshot, round=2, resume=True)
    with pytest.raises(UserError, match="inputs was"):
        relabel(pictures(6, {"3": [human(3)]}), resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UserError, match="no round of labelling"):
        relabel(snapshot, out="other")


def test_files_that_were_changed_are_named(pictures, relabel, tmp_path):
    snapshot = pictures(6)
    relabel(snapshot)
    (tmp_path / "out" / "entries" / "000001.parquet").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"000001[.]parquet is not the file"):
        relabel(snapshot, resume=True)


def test_a_key_stands_for_one_picture(pictures, relabel):
    snapshot = pictures(3)
    snapshot._pictures.append(snapshot._pictures[0])
    with pytest.raises(UserError, match="picture '0'"):
        relabel(snapshot)


def test_the_settings_of_files_hold_no_place_or_time(pictures, relabel, content, tmp_path):
    relabel(pictures(3))
    texts = b"".join(data for name, data in content().items() if name.endswith(".json"))
    assert str(tmp_path).encode() not in texts
    assert not {"seconds", "pid", "host"} & set(json.loads(content()["result.json"]))


# --- Ray -------------------------------------------------------------------------------------------------------------


def test_ray_gives_the_same_bytes(pictures, relabel, content, ray_session):
    snapshot = pictures(10)
    relabel(snapshot, options={"fault": "nan", "at": [5]})
    relabel(snapshot, options={"fault": "nan", "at": [5]}, out="ray", workers=2)
    assert content("ray") == content("out")


def test_a_labeler_that_kills_its_process_costs_a_picture(pictures, relabel, ray_session):
    result, _ = relabel(pictures(8), options={"fault": "dies", "at": [5]}, workers=2)
    assert bad(result) == {5: "labeler_died"}
    assert keys(result) == [0, 1, 2, 3, 4, 6, 7]


def test_a_labeler_that_hangs_on_ray_is_ended(pictures, relabel, ray_session):
    options = {"fault": "hangs", "at": [1], "seconds": 600}
    result, _ = relabel(pictures(4), options=options, workers=2, timeout_s=0.5, batch=1)
    assert bad(result) == {1: "labeler_hangs"}
    assert keys(result) == [0, 2, 3]


def test_a_labeler_that_is_never_loaded_ends_the_run_on_ray(pictures, relabel, ray_session, monkeypatch):
    monkeypatch.setattr(hands, "LOAD_S", 0.5)
    monkeypatch.setattr(hands, "MAX_DEATHS", 1)
    with pytest.raises(EngineError, match="2 workers ended before their labeler was loaded: it was not loaded within"):
        relabel(pictures(4), options={"fault": "loads", "seconds": 600}, workers=2)


def test_a_killed_worker_leaves_no_files_behind(pictures, relabel, content, tmp_path):
    def killed(tasks):
        left = tmp_path / "killed" / temporary_name("entries/000000.parquet")
        left.parent.mkdir(exist_ok=True)
        left.write_bytes(b"PAR1")
        return tasks

    relabel(pictures(5))
    relabel(pictures(5), out="killed", order=killed)
    assert content("killed") == content("out")


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
import ray
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
from pipelines.relabel import hands
hear, done = hands._Crew._hear, []
def and_kill(crew, hand):
    found = hear(crew, hand)
    if found is not None:
        done.append(found)
        if len(done) == 2:  # both nodes are at work now
            cluster.remove_node(other, allow_graceful=False)
    return found
hands._Crew._hear = and_kill
"""


def test_a_node_that_is_lost_costs_nothing(pictures, relabel, content, tmp_path):
    pytest.importorskip("ray")
    snapshot = pictures(24)
    relabel(snapshot, options={"fault": "nan", "at": [5]})
    script = CLUSTER + RUN.replace("batch=3,", "batch=3, workers=2,")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    run = [sys.executable, "-c", script, str(tmp_path), str(tmp_path / "cluster")]
    done = subprocess.run(run, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert content("cluster") == content("out")


def test_an_error_of_loading_comes_as_it_is(pictures, relabel, ray_session):
    with pytest.raises(UserError, match="no weights"):
        relabel(pictures(4), "Unloadable", workers=2)


def test_entries_files_are_read_by_others(pictures, relabel):
    result, _ = relabel(pictures(3))
    table = pq.read_table(Path(result.out) / result.files[0]["name"])
    assert {"entry_id", "mask_id", "picture", "rle", "checks", "state"} <= set(table.column_names)
