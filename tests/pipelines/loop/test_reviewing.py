"""The review step: it waits, takes back once, and does not stop a round that leaves nothing in question."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

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
    assert ledger.head.facts["seconds"] == 8.0  # of all words


def test_a_package_that_comes_back_as_it_went_out_lets_the_loop_go_on(ledger, tmp_path):
    spec, folder = ReviewSpec(to="coco", pictures="none"), tmp_path / "review"
    with pytest.raises(Waiting, match="put what comes back into"):
        review(ledger, 1, spec, folder, print)
    (folder / "returned" / "ana.json").write_bytes((folder / "package" / "annotations.json").read_bytes())
    facts = {"step": 1, "sent": 2, "reviewers": ["ana"], "refused": {}}
    assert review(ledger, 1, spec, folder, print) == facts
    assert states(ledger) == ["review", "review"]


def give_back(folder, reviewer, *said, bad=False, **more) -> None:
    document = json.loads((folder / "package" / "annotations.json").read_text())
    for annotation, decision in zip(document["annotations"], said, strict=False):
        annotation["decision"] = decision
    document["images"][0].update(more, whole_image_bad=bad)
    (folder / "returned" / f"{reviewer}.json").write_text(json.dumps(document))


def test_reviewers_of_one_package_who_disagree_decide_nothing(ledger, tmp_path):
    spec, folder, said = ReviewSpec(to="coco", pictures="none"), tmp_path / "review", []
    with pytest.raises(Waiting):
        review(ledger, 1, spec, folder, said.append)
    give_back(folder, "ana", "accept", "accept")
    give_back(folder, "bo", "accept", "reject")
    facts = {"step": 2, "sent": 2, "reviewers": ["ana", "bo"], "refused": {}}
    assert review(ledger, 1, spec, folder, said.append) == facts
    assert states(ledger) == ["kept", "review"]
    assert said == ["1 masks are disputed and go on waiting"]
    assert (ledger.head.facts["reviewers"], ledger.head.facts["disputed"]) == (["ana", "bo"], 1)
    assert review(Ledger.open(ledger.folder), 1, spec, folder, said.append) == facts  # a second time adds no step
    give_back(folder, "bo", "reject", "accept")
    assert review(ledger, 1, spec, folder, said.append)["step"] == 3
    assert states(ledger) == ["kept", "kept"]
    assert said[-1] == "1 words say something else of masks that were decided before, and are left out"


def test_a_bad_picture_of_a_package_is_disputed_as_a_whole(ledger, tmp_path):
    spec, folder = ReviewSpec(to="coco", pictures="none"), tmp_path / "review"
    with pytest.raises(Waiting):
        review(ledger, 1, spec, folder, print)
    give_back(folder, "ana", bad=True)
    give_back(folder, "bo", "accept")
    said = []
    assert review(ledger, 1, spec, folder, said.append)["step"] == 1
    assert (said, states(ledger)) == (["2 masks are disputed and go on waiting"], ["review", "review"])
    give_back(folder, "bo", bad=True)
    assert review(ledger, 1, spec, folder, print)["step"] == 2
    assert states(ledger) == ["rejected", "rejected"]


def test_what_does_not_go_out_is_said_and_not_counted_as_sent(tmp_path):
    pictures = [picture_of(name) for name in ("one", "two")]
    made = Ledger.create(str(tmp_path / "ledger"), pictures, [Category(id=1, name="cat", text="cat")], [])
    made.append("relabel", 1, [entry(one, CAT, 0, 5, 1, state="review", reason="confidence") for one in pictures])
    spec, folder, said = ReviewSpec(to="coco", pictures="none", limit=1), tmp_path / "review", []
    with pytest.raises(Waiting, match="1 masks wait"):
        review(made, 1, spec, folder, said.append)
    give_back(folder, "ana", "accept")
    assert review(made, 1, spec, folder, said.append)["sent"] == 1
    assert said == ["1 of 2 masks in question did not go out, and go on waiting"] * 2


def test_pictures_that_are_left_out_are_said(tmp_path, make_jpeg):
    gone, there = picture_of("one"), picture_of("two")
    data = make_jpeg(there.height, there.width)
    (tmp_path / "two.jpg").write_bytes(data)
    there = replace(there, path=str(tmp_path / "two.jpg"), sha256=hashlib.sha256(data).hexdigest())
    made = Ledger.create(str(tmp_path / "ledger"), [gone, there], [Category(id=1, name="cat", text="cat")], [])
    made.append("relabel", 1, [entry(one, CAT, 0, 5, 1, state="review", reason="confidence") for one in (gone, there)])
    said = []
    with pytest.raises(Waiting, match="1 masks wait"):
        review(made, 1, ReviewSpec(to="coco"), tmp_path / "review", said.append)
    assert said[0].startswith("1 pictures are left out of the package (")
    assert said[1] == "1 of 2 masks in question did not go out, and go on waiting"


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
