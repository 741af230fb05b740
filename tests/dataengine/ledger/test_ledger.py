"""The ledger: steps that are there whole or not at all, what a view shows, rollback, and what is refused."""

from __future__ import annotations

import gc
import json
import math
import os
import random
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from dataengine import masks
from dataengine.ledger import tables, writing
from dataengine.ledger.ledger import Ledger
from dataengine.ledger.records import Check, Concept, Entry, entry_id_of, mask_id_of
from dataengine.ledger.tables import LedgerError, entries_of, table_of_entries
from dataengine.records import Bad, Category
from dataengine.store.files import Folder, StoreError
from dataengine.store.lock import LockedError, driver_lock


def ids(entries) -> list[str]:
    return [entry.entry_id for entry in entries]


# --- values ----------------------------------------------------------------------------------------------------------


def test_every_field_comes_back(squares, tmp_path):
    full = squares.entry(1, 20, 1, squares.DOG, squares.ROBOT, prompt='{"kind":"box","xy":[1,2]}', annotation_id="é")
    full = replace(
        full,
        crowd=True,
        score=0.1,
        predicted_iou=1 / 3,
        stability=math.nextafter(1, 0),
        crop=(0, 1, 30, 19),
        checks=(
            Check(name="area", value=16.0, limit=4.0, verdict="accept"),
            Check(name="nms", value=None, limit=None, verdict="review"),
        ),
        relation="part_of",
        relative=squares.entry(1, 1).entry_id,
        overlap=0.9,
        state="review",
        reason="nms",
        supersedes=squares.entry(1, 2).entry_id,
    )
    bare = squares.entry(2, 5, concept=Concept(text="the left one"))
    assert entries_of(table_of_entries([full, bare, full])) == [full, bare, full]
    assert entries_of(table_of_entries([full, bare]).slice(1)) == [bare]
    lean = entries_of(table_of_entries([full, bare]).select(tables.LEAN))
    assert lean == [replace(full, checks=()), bare]


def test_pictures_come_back_by_key_and_in_order(squares):
    pictures = [
        squares.picture(2, exhaustive=(1, 2)),
        squares.picture(1, absent=(2,), path="s3://bucket/1.jpg"),
        squares.picture(30, path="pictures/30.jpg"),
    ]
    ledger = Ledger.create(str(squares.root / "l"), pictures, squares.CATEGORIES, [])
    inside = replace(pictures[2], path=str(squares.root / "l" / "pictures" / "30.jpg"))
    assert list(ledger.pictures()) == [pictures[1], pictures[0], inside]
    assert (ledger.picture(inside.key), ledger.num_pictures) == (inside, 3)
    with pytest.raises(LedgerError, match="there is no picture 'shapes/4'"):
        ledger.view().entries("shapes/4")
    assert ledger.concept(2) == squares.DOG
    with pytest.raises(LedgerError, match="there is no category 3"):
        ledger.concept(3)


# --- steps and views -------------------------------------------------------------------------------------------------


def test_a_view_shows_what_was_written_up_to_its_step(squares):
    ledger = squares.ledger()
    first = squares.picture(1).key
    new = squares.entry(1, 20, 1, squares.DOG, squares.ROBOT, state="review", reason="stability")
    poor = squares.entry(2, 3, 1, squares.CAT, squares.ROBOT, state="rejected", reason="confidence")
    assert ledger.append("relabel", 1, [poor, new], facts={"seconds": 2.5}) == 1
    assert ledger.append("review", 1, [], [squares.decide(new, "accept", seconds=3.0)]) == 2
    for opened in (ledger, Ledger.open(ledger.folder)):
        assert [view.round for view in map(opened.view, (0, 1, 2))] == [0, 1, 1]
        assert len(opened.view(0).entries(first)) == 2
        assert list(opened.view(1).grey()) == [new]
        assert [e.state for e in opened.view(1).entries(first)] == ["kept", "kept", "review"]
        assert opened.view().entries(first)[2] == replace(new, state="kept", reason="accept")
        assert list(opened.view().grey()) == []
        assert [e.picture[-1] for e in opened.view().kept()] == ["1", "1", "1", "3"]
        assert opened.view().entries(squares.picture(2).key) == [poor]
        assert opened.head.counts == {"entries": {}, "decisions": {"accept": 1}}
        assert opened.steps[1].counts["entries"] == {"review": 1, "rejected": 1}
        assert opened.steps[1].facts == {"seconds": 2.5}
        assert opened.verify() == []


def test_the_newest_decision_counts(squares):
    ledger = squares.ledger()
    new = squares.entry(1, 20, 1, by=squares.ROBOT, state="review")
    ledger.append("relabel", 1, [new])
    said = [squares.decide(new, "accept", "reviewer:ann"), squares.decide(new, "reject", "reviewer:bob", reason="hole")]
    ledger.append("review", 1, [], said)
    assert ledger.view().entries(new.picture)[2] == replace(new, state="rejected", reason="hole")
    ledger.append("review", 1, [], said[:1])
    assert ledger.view().entries(new.picture)[2].state == "kept"
    assert ledger.view(2).entries(new.picture)[2].state == "rejected"


def test_a_mask_is_superseded_while_what_stands_for_it_is_kept(squares):
    ledger = squares.ledger()
    old = squares.entry(2, 3, 1, by=squares.ROBOT)
    better = squares.entry(2, 4, 2, by=squares.ROBOT, supersedes=old.entry_id, state="review")
    ledger.append("relabel", 1, [old])
    ledger.append("relabel", 2, [better])
    assert ids(ledger.view().entries(old.picture)) == ids([old, better])
    ledger.append("review", 2, [], [squares.decide(better, "accept")])
    assert ids(ledger.view().entries(old.picture)) == ids([better])
    assert [s.is_superseded for s in ledger.view().standings(old.picture)] == [True, False]
    ledger.append("review", 2, [], [squares.decide(better, "reject")])
    assert ids(ledger.view().kept())[2] == old.entry_id


def test_an_edit_puts_a_persons_mask_in_the_place_of_a_models(squares):
    ledger = squares.ledger()
    old = squares.entry(2, 3, 1, by=squares.ROBOT, state="review")
    ledger.append("relabel", 1, [old])
    drawn = squares.entry(2, 5, 1, supersedes=old.entry_id)
    ledger.append("review", 1, [drawn], [squares.decide(old, "edit", replacement=drawn.entry_id)])
    assert ledger.view().entries(old.picture) == [drawn]


def test_rollback_is_a_step_that_brings_the_same_view_back(squares, tree_of):
    ledger = squares.ledger()
    before = tree_of(ledger.folder.path)
    was = [standing for _, found in ledger.view().walk() for standing in found]
    first = squares.entry(2, 3, 1, by=squares.ROBOT)
    ledger.append("relabel", 1, [first])
    assert ledger.rollback(0, {"reason": "too many"}) == 2
    assert (ledger.head.kind, ledger.head.parent, ledger.view().round) == ("rollback", 0, 0)
    assert ledger.view().version == ledger.view(0).version != ledger.view(1).version
    assert [standing for _, found in ledger.view().walk() for standing in found] == was
    assert {name: data for name, data in tree_of(ledger.folder.path).items() if name in before} == before
    assert ledger.view().locate([first.entry_id]) == {}
    assert [place.step for place in ledger.locate([first.entry_id, "none"])[first.entry_id]] == [1]
    with pytest.raises(LedgerError, match="the ledger has no such entry"):
        ledger.append("review", 1, [], [squares.decide(first, "accept")])
    ledger.append("relabel", 1, [first])  # what was undone can be done again
    assert ledger.chain()[-1].parent == 2
    assert ledger.view().locate([first.entry_id])[first.entry_id].step == 3
    assert ids(ledger.view().entries(first.picture)) == [first.entry_id]
    assert ledger.rollback(1) == 4  # and an undo undone
    assert ledger.view().version == ledger.view(1).version
    with pytest.raises(LedgerError, match="there is no step 5; the newest is 4"):
        ledger.rollback(5)


def test_bytes_do_not_depend_on_order_or_place(squares, tree_of):
    squares.ledger("a")
    entries = [squares.entry(n, x, 1, by=squares.ROBOT) for n in (1, 2, 3) for x in (11, 14, 17)]
    Ledger.open(str(squares.root / "a")).append("relabel", 1, entries)
    again = squares.ledger("b")
    again.append("relabel", 1, iter(entries[6:] + entries[:6]))
    assert tree_of(squares.root / "a") == tree_of(squares.root / "b")


def test_files_of_workers_are_taken_as_they_are(squares, tree_of, tmp_path):
    entries = [squares.entry(n, x, 1, by=squares.ROBOT) for n in (1, 2, 3) for x in (11, 14)]
    ledger, other = squares.ledger("a"), squares.ledger("b")
    runs = [ledger.write_run(tmp_path / f"{n}.parquet", entries[2 * n : 2 * n + 2]) for n in (2, 0, 1)]
    ledger.append("relabel", 1, runs)
    other.append("relabel", 1, entries)
    assert tree_of(ledger.folder.path) == tree_of(other.folder.path)
    (tmp_path / "odd.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(LedgerError, match=r"odd\.parquet"):
        ledger.append("relabel", 2, [tmp_path / "odd.parquet"])
    with pytest.raises(LedgerError, match="come behind those of"):
        ledger.write_run(tmp_path / "x.parquet", reversed(entries))
    with pytest.raises(LedgerError, match="its columns are not those"):
        ledger.append("relabel", 2, [ledger.folder.path / "pictures.parquet"])


def test_many_small_groups_and_files_read_as_one(squares, monkeypatch):
    """The same view however rows are grouped, sorted in memory and cut into files; against a plain list."""
    monkeypatch.setattr(tables, "GROUP_ROWS", 3)
    monkeypatch.setattr(writing, "GROUP_ROWS", 3)
    monkeypatch.setattr(writing, "RUN_ENTRIES", 7)
    monkeypatch.setattr(writing, "FILE_ROWS", 8)
    ledger = Ledger.create(str(squares.root / "l"), map(squares.picture, range(40)), squares.CATEGORIES, [])
    expected: dict[str, list[str]] = {}
    rng = random.Random(5)
    for round in (1, 2):
        entries = [
            squares.entry(n, x, round, by=squares.ROBOT) for n in range(40) for x in range(rng.choice((0, 0, 1, 2, 7)))
        ]
        rng.shuffle(entries)
        ledger.append("relabel", round, iter(entries))
        for entry in entries:
            expected.setdefault(entry.picture, []).append(entry.entry_id)
    assert len(ledger.steps[1].named("entries")) > 2
    view = Ledger.open(ledger.folder).view()
    assert {p.key: ids(s.entry for s in found) for p, found in view.walk() if found} == expected
    keys = list(expected)
    rng.shuffle(keys)
    assert {key: ids(view.entries(key)) for key in keys} == expected
    assert {p.key: ids(view.entries(p.key)) for p in ledger.pictures() if p.key in expected} == expected


def test_keys_of_any_script_are_found(squares, monkeypatch):
    monkeypatch.setattr(tables, "GROUP_ROWS", 1)
    monkeypatch.setattr(writing, "GROUP_ROWS", 1)
    keys = ["\U0001f600", "z/1", "é", "\uffff", "Z", "z", "字/2"]
    pictures = [squares.picture(n, key=key) for n, key in enumerate(keys)]
    entries = [replace(squares.entry(n, 3), picture=key) for n, key in enumerate(keys)]
    ledger = Ledger.create(str(squares.root / "l"), pictures, squares.CATEGORIES, entries)
    assert [picture.key for picture in ledger.pictures()] == sorted(keys)
    assert [p.key for p, found in ledger.view().walk() if len(found) == 1] == sorted(keys)
    for entry in entries:
        assert ledger.view().entries(entry.picture) == [entry]


def test_no_more_than_a_row_group_is_in_memory(squares, monkeypatch):
    monkeypatch.setattr(tables, "GROUP_ROWS", 16)
    monkeypatch.setattr(writing, "GROUP_ROWS", 16)
    pictures = [squares.picture(n) for n in range(200)]
    entries = (squares.entry(n, x) for n in range(200) for x in (1, 9))
    ledger = Ledger.create(str(squares.root / "l"), pictures, squares.CATEGORIES, entries)
    others = sum(isinstance(one, Entry) for one in gc.get_objects())
    alive = []
    for number, _ in enumerate(ledger.view().walk()):
        if number % 20 == 0:
            alive.append(sum(isinstance(one, Entry) for one in gc.get_objects()) - others)
    assert 16 <= max(alive) <= 40  # the group that is being read and the one before; the ledger has 400


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "message"), [
    ({"picture": "shapes/7"}, "there is no picture 'shapes/7'"),
    ({"area": 15}, "its mask has 16 px in the box (20, 2, 4, 4), it says 15"),
    ({"bbox": (20.0, 2.0, 4.0, 5.0)}, "it says 16 in (20.0, 2.0, 4.0, 5.0)"),
    ({"mask_id": "0" * 32}, "its mask_id is not that of its mask"),
    ({"round": 0}, "its entry_id is not that of its mask, round"),
    ({"origin": "human"}, "models have a labeler, people have none"),
    ({"score": math.nan}, "is not finite"),
    ({"checks": (Check(name="area", value=math.inf, limit=None, verdict="accept"),)}, "is not finite"),
    ({"checks": (Check(name="area", value=1.0, limit=None, verdict="fine"),)}, "check area: a verdict is accept"),
    ({"state": "good"}, "one of kept, review, rejected is needed, not 'good'"),
    ({"relation": "twin"}, "one of new, duplicate"),
    ({"relative": "0" * 32}, "relative names '0000"),
    ({"supersedes": "0" * 32}, "supersedes names '0000"),
    ({"reason": "\ud800"}, "holds what a ledger cannot"),
    ({"prompt": "\ud800"}, "one of its texts is no Unicode"),
    ({"rle": b"\xff"}, "no COCO-compressed string"),
])  # fmt: skip
def test_an_entry_that_is_not_right_is_refused_by_name(squares, tree_of, changes, message):
    ledger = squares.ledger()
    before = tree_of(ledger.folder.path)
    bad = replace(squares.entry(1, 20, 1, by=squares.ROBOT), **changes)
    with pytest.raises(LedgerError) as caught:
        ledger.append("relabel", 1, [squares.entry(1, 15, 1, by=squares.ROBOT), bad])
    assert message in str(caught.value)
    assert bad.entry_id in str(caught.value) or "picture" in changes
    assert tree_of(ledger.folder.path) == before


@pytest.mark.parametrize(("rle", "message"), [
    (b"~", "no COCO-compressed string"),
    (masks.encode(masks.decode(masks.rle_from_counts([0, 9], 3, 3), 3, 3)), "RLE counts sum to 9"),
    (masks.rle_from_counts([600], 20, 30), "a mask without a pixel can only be rejected"),
])  # fmt: skip
def test_a_mask_that_is_none_is_refused(squares, rle, message):
    ledger, good = squares.ledger(), squares.entry(1, 20)
    mask_id = mask_id_of(squares.picture(1), good.concept, rle)
    bad = replace(good, rle=rle, mask_id=mask_id, entry_id=entry_id_of(mask_id, 0, None), area=0, bbox=(0.0,) * 4)
    with pytest.raises(LedgerError, match=message):
        ledger.append("relabel", 0, [bad])


def test_an_unknown_category_is_refused_and_a_phrase_is_not(squares):
    ledger = squares.ledger()
    with pytest.raises(LedgerError, match="the ledger has no category 9 'bird'"):
        ledger.append("relabel", 1, [squares.entry(2, 3, 1, Concept(text="bird", category_id=9), squares.ROBOT)])
    with pytest.raises(LedgerError, match="the ledger has no category 1 'bird'"):
        ledger.append("relabel", 1, [squares.entry(2, 3, 1, Concept(text="bird", category_id=1), squares.ROBOT)])
    assert ledger.append("relabel", 1, [squares.entry(2, 3, 1, Concept(text="a bird"), squares.ROBOT)]) == 1


def test_the_same_entry_is_refused_a_second_time(squares):
    ledger, new = squares.ledger(), squares.entry(1, 20, 1, by=squares.ROBOT)
    with pytest.raises(LedgerError, match=rf"entry {new.entry_id} \(picture shapes/0*1\) is in the ledger already"):
        ledger.append("relabel", 1, [new, new])
    ledger.append("relabel", 1, [new])
    with pytest.raises(LedgerError, match="is in the ledger already"):
        ledger.append("relabel", 2, [new])
    with pytest.raises(LedgerError, match="is of round 2, its step of 1"):
        ledger.append("relabel", 1, [squares.entry(1, 20, 2, by=squares.ROBOT)])


def test_people_win(squares):
    ledger = squares.ledger()
    human = squares.entry(1, 1, annotation_id="11")
    with pytest.raises(LedgerError, match="a model's mask cannot stand for a person's"):
        ledger.append("relabel", 1, [squares.entry(1, 2, 1, by=squares.ROBOT, supersedes=human.entry_id)])
    with pytest.raises(LedgerError, match="only people take back what people annotated"):
        ledger.append("review", 1, [], [squares.decide(human, "reject", "rule:mistakes")])
    ledger.append("review", 1, [], [squares.decide(human, "reject", "reviewer:ann")])
    assert human.entry_id not in ids(ledger.view().kept())


@pytest.mark.parametrize(("changes", "message"), [
    ({"entry_id": "0" * 32}, "the ledger has no such entry"),
    ({"state": "gone"}, "state is kept, review, rejected"),
    ({"action": "shrug"}, "action accept, reject, edit, whole_image_bad"),
    ({"by": "ann"}, "it is by reviewer:NAME or rule:NAME"),
    ({"by": "reviewer:"}, "it is by reviewer:NAME or rule:NAME"),
    ({"seconds": math.nan}, "is no time"),
    ({"action": "edit"}, "an edit names the mask"),
    ({"action": "edit", "replacement": "0" * 32}, "is no mask that a person made in its picture"),
])  # fmt: skip
def test_a_decision_that_is_not_right_is_refused(squares, changes, message):
    ledger = squares.ledger()
    said = replace(squares.decide(squares.entry(1, 1, annotation_id="11"), "accept"), **changes)
    with pytest.raises(LedgerError, match=message):
        ledger.append("review", 0, [], [said])
    assert Ledger.open(ledger.folder).head.number == 0


def test_a_replacement_must_supersede(squares):
    ledger = squares.ledger()
    human = squares.entry(1, 1, annotation_id="11")
    drawn = squares.entry(1, 5)
    with pytest.raises(LedgerError, match="does not supersede it"):
        ledger.append("review", 0, [drawn], [squares.decide(human, "edit", replacement=drawn.entry_id)])


@pytest.mark.parametrize(("changes", "message"), [
    ({"key": ""}, "a key is a text of 1 to 1000 bytes"),
    ({"key": "x" * 1001}, "a key is a text of 1 to 1000 bytes"),
    ({"key": "\ud800"}, "a key is a text"),
    ({"sha256": "12"}, "is no sha256 of its file"),
    ({"height": 0}, "30 x 0 px is no size"),
    ({"height": -1, "width": -1}, "is no size"),
    ({"path": ""}, "is no path"),
    ({"key": "shapes/000000000001"}, "is given twice"),
])  # fmt: skip
def test_a_picture_that_is_not_right_is_refused(squares, changes, message):
    pictures = [squares.picture(1), squares.picture(2, **changes)]
    with pytest.raises(LedgerError, match=message):
        Ledger.create(str(squares.root / "l"), pictures, squares.CATEGORIES, [])
    with pytest.raises(LedgerError, match="no ledger"):
        Ledger.open(str(squares.root / "l"))


def test_a_folder_that_holds_something_is_left_alone(squares, tmp_path):
    squares.ledger()
    with pytest.raises(LedgerError, match="there is a ledger already"):
        squares.ledger()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("…")
    with pytest.raises(LedgerError, match=r"it holds thesis\.tex"):
        squares.ledger("mine")
    with pytest.raises(LedgerError, match="there are no pictures"):
        Ledger.create(str(tmp_path / "none"), [], squares.CATEGORIES, [])
    twice = [*squares.CATEGORIES, Category(id=1, name="cow", text="cow")]
    with pytest.raises(LedgerError, match="categories need ids of their own"):
        Ledger.create(str(tmp_path / "none"), [squares.picture(1)], twice, [])
    with pytest.raises(LedgerError, match="must be JSON values"):
        Ledger.open(str(tmp_path / "ledger")).append("relabel", 1, facts={"loss": math.nan})


# --- several at once, and sudden ends --------------------------------------------------------------------------------


def test_a_second_appender_is_refused(squares):
    mine, theirs = squares.ledger(), Ledger.open(str(squares.root / "ledger"))
    with driver_lock(mine.folder), pytest.raises(LockedError, match="is writing here"):
        theirs.append("relabel", 1, [])
    mine.append("relabel", 1, [squares.entry(1, 20, 1, by=squares.ROBOT)])
    with pytest.raises(LedgerError, match="somebody added step 1 since it was opened at 0; open it again"):
        theirs.append("relabel", 1, [squares.entry(1, 21, 1, by=squares.ROBOT)])
    with pytest.raises(LedgerError, match="somebody added step 1"):
        theirs.rollback(0)
    assert Ledger.open(mine.folder).append("relabel", 1, [squares.entry(1, 21, 1, by=squares.ROBOT)]) == 2


def test_a_step_that_exists_is_never_written_over(squares, monkeypatch, tree_of):
    """As in an object store where the lock was lost: the first one stays."""
    mine, theirs = squares.ledger(), Ledger.open(str(squares.root / "ledger"))
    mine.append("relabel", 1, [squares.entry(1, 20, 1, by=squares.ROBOT)])
    before = tree_of(squares.root / "ledger")
    monkeypatch.setattr(Ledger, "_refuse_newer", lambda self: None)
    monkeypatch.setattr("dataengine.ledger.steps.remove_leftovers", lambda folder, steps: None)
    for entries in ([], [squares.entry(1, 21, 1, by=squares.ROBOT)]):
        with pytest.raises(LedgerError, match="somebody else is adding step 1"):
            theirs.append("relabel", 1, entries)
    assert tree_of(squares.root / "ledger") == before


def test_of_several_processes_that_append_at_once_one_does(squares):
    """Each opens the ledger first; then all are let go by the closing of a pipe."""
    ledger = squares.ledger()
    waiting, go = os.pipe()
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            code = 3
            try:
                os.close(go)
                mine = Ledger.open(ledger.folder)
                os.read(waiting, 1)
                mine.append("relabel", 1, [squares.entry(1, 10 + number, 1, by=squares.ROBOT)])
                code = 0
            except (LedgerError, LockedError):
                code = 1
            finally:
                os._exit(code)
        children.append(child)
    os.close(waiting)
    os.close(go)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert codes == [0, 1, 1, 1]
    again = Ledger.open(ledger.folder)
    assert (again.head.number, len(list(again.view().kept()))) == (1, 4)
    assert again.verify() == []


def in_a_child(work, fault: str, monkeypatch) -> int:
    """The status with which a process that does the work dies at a fault point."""
    monkeypatch.setenv("DATAENGINE_FAULT", fault)
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    monkeypatch.delenv("DATAENGINE_FAULT")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


POINTS = ["staged:kill:1", "linked:kill:1", "staged:kill:2", "linked:kill:2", "entries:kill", "staged:kill:3"]


@pytest.mark.parametrize("point", POINTS)
def test_an_append_that_is_killed_leaves_the_ledger_as_it_was(squares, monkeypatch, tree_of, point):
    whole, ledger = squares.ledger("whole"), squares.ledger()
    new = squares.entry(1, 20, 1, by=squares.ROBOT, state="review")
    other = squares.entry(2, 20, 1, by=squares.ROBOT)

    def work(ledger=ledger, entries=(new,)):
        ledger.append("relabel", 1, entries, [squares.decide(new, "accept")])

    was = ledger.view().version
    assert in_a_child(work, point, monkeypatch) == -signal.SIGKILL
    again = Ledger.open(ledger.folder)
    assert (again.head.number, again.view().version) == (0, was)
    assert len(list(again.view().kept())) == 3
    assert not [problem for problem in again.verify() if "belongs to no step" not in problem]
    work(again, (new, other))  # not what the other one was about to write
    work(whole, (new, other))
    assert tree_of(again.folder.path) == tree_of(whole.folder.path)
    assert again.verify() == []


@pytest.mark.parametrize("point", ["linked:kill:3", "step:kill"])
def test_an_append_that_is_killed_once_its_step_is_published_is_done(squares, monkeypatch, point):
    ledger, new = squares.ledger(), squares.entry(1, 20, 1, by=squares.ROBOT, state="review")
    work = lambda: ledger.append("relabel", 1, [new], [squares.decide(new, "accept")])  # noqa: E731
    assert in_a_child(work, point, monkeypatch) == -signal.SIGKILL
    again = Ledger.open(ledger.folder)
    assert (again.head.number, len(list(again.view().kept()))) == (1, 4)
    assert again.rollback(0) == 2
    assert again.verify() == []


@pytest.mark.parametrize(
    "point",
    [
        *(f"{name}:kill:{n}" for n in (1, 2, 3) for name in ("staged", "linked")),
        "entries:kill",
        "step:kill",
        "staged:kill:4",
    ],
)
def test_a_beginning_that_is_killed_is_done_again(squares, monkeypatch, tree_of, point):
    squares.ledger("whole")
    assert in_a_child(squares.ledger, point, monkeypatch) == -signal.SIGKILL
    with pytest.raises(LedgerError, match="no ledger"):
        Ledger.open(str(squares.root / "ledger"))
    squares.ledger()
    assert tree_of(squares.root / "ledger") == tree_of(squares.root / "whole")


@pytest.mark.parametrize("point", ["staged:enospc:1", "staged:enospc:2", "linked:enospc:1", "entries:enospc"])
def test_a_full_disk_leaves_the_ledger_as_it_was(squares, monkeypatch, tree_of, point):
    ledger, new = squares.ledger(), squares.entry(1, 20, 1, by=squares.ROBOT)
    monkeypatch.setattr("dataengine.engine.faults._passes", Counter())
    monkeypatch.setenv("DATAENGINE_FAULT", point)
    with pytest.raises((StoreError, OSError)):
        ledger.append("relabel", 1, [new])
    monkeypatch.delenv("DATAENGINE_FAULT")
    assert [step.number for step in ledger.steps] == [0]
    assert ledger.append("relabel", 1, [new]) == 1
    assert Ledger.open(ledger.folder).verify() == []


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(squares) -> Path:
    """A ledger with a file of each kind."""
    new = squares.entry(1, 20, 1, by=squares.ROBOT, state="review")
    bad = Bad(unit="images", file="x.json", record="image 9", reason="image_missing", message="gone", payload="{}")
    ledger = Ledger.create(
        str(squares.root / "ledger"), [squares.picture(1)], squares.CATEGORIES, [squares.entry(1, 1)], bad=[bad]
    )
    ledger.append("relabel", 1, [new], [squares.decide(new, "accept")])
    return ledger.folder.path


FILES = [
    "ledger.json",
    "pictures.parquet",
    "steps/000000.json",
    "steps/000001.json",
    "entries/000000/00000.parquet",
    "entries/000001/00000.parquet",
    "decisions/000001/00000.parquet",
    "quarantine/000000/00000.parquet",
]


def test_the_files_above_are_all(written, tree_of):
    assert sorted(tree_of(written)) == sorted(FILES)


def _flip(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage", [_flip, lambda data: data[:-7], lambda data: b"", None], ids=["flip", "cut", "empty", "gone"]
)
def test_a_file_that_is_damaged_is_named(written, name, damage):
    path = written / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    if (name, damage) == ("steps/000001.json", None):
        name = "entries/000001/00000.parquet"  # which now belongs to nothing: nobody can know of a step that was last
        assert any(name in problem for problem in Ledger.open(str(written)).verify())
        return
    try:
        ledger = Ledger.open(str(written))
    except LedgerError as error:
        assert name in str(error)
        return
    (problem,) = ledger.verify()
    assert name in problem
    with pytest.raises(LedgerError, match=name):
        Ledger.open(str(written)).view().entries("shapes/000000000001")


def _edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_edited_step_is_named_even_where_its_own_version_fits(written):
    from dataengine.store.commits import canonical_json, version_of

    first, second = written / "steps" / "000000.json", written / "steps" / "000001.json"
    good = second.read_bytes()
    _edit(second, round=7)
    with pytest.raises(LedgerError, match=r"steps/000001\.json was changed after it was written"):
        Ledger.open(str(written))
    second.write_bytes(good)
    data = json.loads(first.read_text()) | {"facts": {"records": {}}}
    first.write_bytes(canonical_json(data | {"version": version_of(data)}))
    with pytest.raises(LedgerError, match=r"steps/000001\.json was written for another steps/000000\.json"):
        Ledger.open(str(written))


@pytest.mark.parametrize("changes", [
    {"files": [{"name": "../../etc/passwd", "bytes": 1, "sha256": ""}]},
    {"files": [{"name": "entries/000000/00000.parquet", "bytes": 1, "sha256": ""}]},
    {"files": 3}, {"kind": "magic"}, {"parent": 1}, {"parent": -1}, {"parent": None}, {"parent": "0"}, {"number": 4},
    {"round": "1"}, {"counts": None, "facts": None, "files": None},
])  # fmt: skip
def test_a_step_that_was_made_up_is_refused(written, changes):
    from dataengine.store.commits import canonical_json, version_of

    path = written / "steps" / "000001.json"
    data = json.loads(path.read_text()) | changes
    path.write_bytes(canonical_json(data | {"version": version_of(data)}))
    with pytest.raises(LedgerError, match=r"steps/000001\.json"):
        Ledger.open(str(written))


@pytest.mark.parametrize("text", ["[]", "3", '{"version": 1}', "{", "[" * 5000, ""])
def test_a_head_that_is_none_is_refused(written, text):
    (written / "ledger.json").write_text(text)
    with pytest.raises(LedgerError, match=r"ledger\.json"):
        Ledger.open(str(written))


def test_a_ledger_of_a_later_format_is_refused(written):
    from dataengine.store.commits import canonical_json, version_of

    data = json.loads((written / "ledger.json").read_text()) | {"format": 2}
    (written / "ledger.json").write_bytes(canonical_json(data | {"version": version_of(data)}))
    with pytest.raises(LedgerError, match="of format 2; 1 is known"):
        Ledger.open(str(written))


def test_verify_finds_what_hashes_do_not(squares, written):
    """A step whose hashes fit, but whose entry is not of its picture: as a program of another version may write."""
    from dataengine.store.commits import canonical_json, version_of
    from dataengine.store.files import hash_file

    path, step = written / "entries" / "000001" / "00000.parquet", written / "steps" / "000001.json"
    wrong = replace(squares.entry(1, 20, 1, by=squares.ROBOT, state="review"), area=3)
    with tables.SortedWriter(path, tables.entry_schema()) as writer:
        writer.write(table_of_entries([wrong]))
    data = json.loads(step.read_text())
    with path.open("rb") as file:
        data["files"][0] |= {"bytes": path.stat().st_size, "sha256": hash_file(file)}
    step.write_bytes(canonical_json(data | {"version": version_of(data)}))
    (problem,) = Ledger.open(str(written)).verify()
    assert "entries/000001/00000.parquet" in problem
    assert wrong.entry_id in problem
    assert "it says 3" in problem
    (written / "entries" / "note.txt").write_text("hello")
    assert Ledger.open(str(written)).verify() == [problem, f"{written}: entries/note.txt belongs to no step"]


def test_a_ledger_in_an_object_store(squares, s3_bucket):
    folder = Folder(f"{s3_bucket}/ledger")
    ledger = Ledger.create(folder, [squares.picture(1)], squares.CATEGORIES, [squares.entry(1, 1)])
    new = squares.entry(1, 20, 1, by=squares.ROBOT, state="review")
    ledger.append("relabel", 1, [new], [squares.decide(new, "accept")])
    again = Ledger.open(folder)
    assert len(list(again.view().kept())) == 2
    assert again.verify() == []
    with pytest.raises(LedgerError, match="there is a ledger already"):
        Ledger.create(folder, [squares.picture(1)], squares.CATEGORIES, [])
    again.rollback(0)
    with pytest.raises(LedgerError, match="somebody added step 2"):
        ledger.append("relabel", 1, [])
    assert len(list(Ledger.open(folder).view().kept())) == 1
