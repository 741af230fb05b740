"""The review step: it waits, takes back once, and does not stop a round that leaves nothing in question."""

from __future__ import annotations

import json

import pytest

from dataengine.ledger.ledger import Ledger
from dataengine.records import Category
from dataengine.view.words import Said, Words
from pipelines.loop.recipe import LoopError, ReviewSpec
from pipelines.loop.reviewing import Waiting, review

from .test_measure import CAT, entry, picture_of


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    """A picture with two masks of round 1 in question."""
    one = picture_of("one")
    made = Ledger.create(str(tmp_path / "ledger"), [one], [Category(id=1, name="cat", text="cat")], [])
    made.append("relabel", 1, [entry(one, CAT, left, 5, 1, state="review", reason="confidence") for left in (0, 10)])
    return made


def states(ledger: Ledger) -> list[str]:
    return [standing.entry.state for _, found in ledger.view().walk() for standing in found]


def test_words_of_the_browser_are_collected_once(ledger, tmp_path):
    spec, folder, said = ReviewSpec(to="browser"), tmp_path / "review", []
    with pytest.raises(Waiting, match="2 masks wait for a review: dataengine review serve"):
        review(ledger, 1, spec, folder, said.append)
    first, second = (found.entry_id for found in ledger.view().grey())
    for reviewer, actions in (
        ("ana", {first: "accept", second: "accept"}),
        ("bo", {first: "accept", second: "reject"}),
    ):
        words = Words(folder / "words", reviewer)
        for entry_id, action in actions.items():
            words.say(Said(entry_id=entry_id, action=action, seconds=2.0), words.serial)
        words.close()
    facts = review(ledger, 1, spec, folder, said.append)
    assert facts == {"step": 2, "sent": 2, "reviewers": ["ana", "bo"], "refused": {}}
    assert states(ledger) == ["kept", "review"]
    assert said == ["1 masks are disputed and go on waiting"]
    assert review(Ledger.open(ledger.folder), 1, spec, folder, said.append) == facts
    assert len(ledger.steps) == 3
    assert ledger.head.facts["seconds"] == 4.0  # of what was decided


def test_a_package_that_comes_back_as_it_went_out_lets_the_loop_go_on(ledger, tmp_path):
    spec, folder = ReviewSpec(to="coco", pictures="none"), tmp_path / "review"
    with pytest.raises(Waiting, match="put what comes back into"):
        review(ledger, 1, spec, folder, print)
    (folder / "returned" / "ana.json").write_bytes((folder / "package" / "annotations.json").read_bytes())
    assert review(ledger, 1, spec, folder, print) == {"step": 1, "sent": 2, "reviewers": ["ana"], "refused": {}}
    assert states(ledger) == ["review", "review"]


def test_a_package_whose_writing_was_killed_is_written_anew(ledger, tmp_path):
    folder = tmp_path / "review"
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "annotations.json").write_text("{")
    with pytest.raises(Waiting):
        review(ledger, 1, ReviewSpec(pictures="none"), folder, print)
    assert len(json.loads((folder / "package" / "annotations.json").read_text())["annotations"]) == 2


def test_two_files_of_one_reviewer_are_refused(ledger, tmp_path):
    back = tmp_path / "review" / "returned"
    back.mkdir(parents=True)
    for name in ("ana.json", "ana.zip"):
        (back / name).write_text("{}")
    with pytest.raises(LoopError, match="two files are of reviewer ana"):
        review(ledger, 1, ReviewSpec(pictures="none"), back.parent, print)


def test_nothing_in_question_is_no_reason_to_wait(ledger, tmp_path):
    assert review(ledger, 0, ReviewSpec(), tmp_path / "review", print)["sent"] == 0
    assert not (tmp_path / "review").exists()
