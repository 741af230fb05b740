"""A ledger's grey zone goes out, and what comes back is a step; through the command line as well."""

import contextlib
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from dataengine.ledger.ledger import Ledger
from dataengine.records import Category
from dataengine.view.words import Said, Words
from pipelines.cli import app
from pipelines.review import ledgers
from pipelines.review import package as packages
from pipelines.review.marks import Mark
from tests.pipelines.review.zones import CAT, rle_of


@pytest.fixture
def ledger(grey) -> str:
    """Of the pictures of `grey`, its masks proposed in round 1."""
    place = str(grey.root / "ledger")
    categories = [Category(id=c.category_id, name=c.text, text=c.text) for c in grey.concepts]
    made = Ledger.create(place, [picture for picture, _ in grey.work], categories, [])
    made.append("relabel", 1, grey.entries)
    return place


def run(*arguments) -> str:
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def edited(folder, layout, change, out) -> None:
    """The file of a package, reviewed, beside the package."""
    found = packages.layout_of(layout)
    with (folder / found.FILE).open("rb") as opened:
        pages = found.parse(opened, packages.load(folder)).pages
    change(pages)
    out.write_bytes(found.dump(packages.load(folder), pages))


def say(pages, page, mark, said, **more) -> None:
    pages[page].marks[mark] = replace(pages[page].marks[mark], said=said, **more)


@pytest.mark.parametrize("layout", packages.LAYOUTS)
def test_a_review_is_a_step_of_the_ledger(grey, ledger, layout):
    cats, dog, phrase, other = (entry.entry_id for entry in grey.entries)
    out, file = grey.root / "out", grey.root / "back"
    printed = run("review", "export", ledger, "--to", layout, "--out", out)
    assert "4 masks of 2 pictures" in printed
    keys = [slot.key for slot in packages.load(out).slots]
    first = keys.index("shapes/1")

    def change(pages):
        say(pages, first, 0, "accept")
        say(pages, first, 1, "reject")
        say(pages, first, 2, "", rle=rle_of(30, 20, 2, 4))
        pages[first].marks.append(Mark(entry_id="", label="dog", rle=rle_of(1, 1, 3, 3), said="add"))

    edited(out, layout, change, file)
    printed = run("review", "import", ledger, out, "--by", "zoë", "--file", file)
    assert "step 2: 1 accept, 1 edit, 1 reject, 1 masks added" in printed

    opened = Ledger.open(ledger)
    assert (opened.head.kind, opened.head.round, opened.head.facts["reviewer"]) == ("review", 1, "zoë")
    standing = {s.entry.entry_id: s for s in opened.view().standings("shapes/1")}
    assert (standing[cats].entry.state, standing[dog].entry.state) == ("kept", "rejected")
    assert standing[phrase].is_superseded
    assert standing[cats].decision.by == "reviewer:zoë"
    kept = {(entry.origin, entry.area) for entry in opened.view().kept()}
    assert kept == {("model", 19), ("human", 8), ("human", 9)}
    assert [entry.entry_id for entry in opened.view().grey()] == [other]

    again = run("review", "import", ledger, out, "--by", "zoë", "--file", file)  # what was done is not done twice
    assert "step 3: 1 accept, 1 reject\n" in again
    assert "1 superseded" in again
    assert "1 duplicate_mask" in again
    assert {(entry.origin, entry.area) for entry in Ledger.open(ledger).view().kept()} == kept


def test_a_package_without_a_word_adds_no_step(grey, ledger):
    run("review", "export", ledger, "--out", grey.root / "out")
    assert "nothing was decided" in run("review", "import", ledger, grey.root / "out", "--by", "a")
    assert Ledger.open(ledger).head.number == 1


def test_refused_records_are_told(grey, ledger):
    out = grey.root / "out"
    run("review", "export", ledger, "--out", out)
    document = json.loads((out / "annotations.json").read_text())
    document["annotations"][0]["segmentation"]["counts"] = "~"
    document["annotations"][1].update(decision="accept")
    (out / "annotations.json").write_text(json.dumps(document))
    printed = run("review", "import", ledger, out, "--by", "a")
    assert "1 accept" in printed
    assert "1 records are refused: 1 rle_invalid" in printed
    assert "annotations[0]" in printed
    assert Ledger.open(ledger).head.facts["refused"] == {"rle_invalid": 1}


def test_a_package_of_an_undone_step_is_refused(grey, ledger):
    out = grey.root / "out"
    run("review", "export", ledger, "--out", out)
    edited(out, "coco", lambda pages: say(pages, 0, 0, "accept"), out / "annotations.json")
    Ledger.open(ledger).rollback(0)
    printed = run("review", "import", ledger, out, "--by", "a")
    assert "nothing was decided" in printed
    assert "4 unknown_id" in printed


def test_reviewers_are_compared(grey, ledger):
    """Both accept one mask and redraw another; they differ on the third."""
    out = grey.root / "out"
    run("review", "export", ledger, "--out", out)
    first = [slot.key for slot in packages.load(out).slots].index("shapes/1")

    def review(third, width):
        def change(pages):
            say(pages, first, 0, "accept")
            say(pages, first, 1, "", rle=rle_of(0, 0, width, 24))
            say(pages, first, 2, third)

        return change

    edited(out, "coco", review("accept", 16), grey.root / "a.json")
    edited(out, "coco", review("reject", 8), grey.root / "b.json")
    files = [f"a={grey.root / 'a.json'}", f"b={grey.root / 'b.json'}"]
    found = json.loads(run("review", "agreement", ledger, out, *files, "--json"))
    (pair,) = found["pairs"]
    assert (pair["both"], pair["same"], pair["drawn"], pair["drawn_iou"]) == (3, 2, 1, 0.5)
    # p_e: accept 2/3 * 1/3, edit 1/3 * 1/3, reject 0 * 1/3
    assert pair["kappa"] == pytest.approx((2 / 3 - 3 / 9) / (1 - 3 / 9))
    assert [one["edit_iou"] for one in found["reviewers"]] == [0.5, 0.25]
    assert "Cohen's kappa 0.500" in run("review", "agreement", ledger, out, *files)
    assert Ledger.open(ledger).head.number == 1

    printed = run("review", "import", ledger, out, *files)
    assert "step 2: 2 accept" in printed  # of one mask, by both
    assert "2 masks are disputed and go on waiting" in printed
    assert Ledger.open(ledger).head.facts["reviewers"] == ["a", "b"]
    assert json.loads(run("review", "agreement", ledger, out, *files, "--json")) == found  # of the package's own step
    document = json.loads((grey.root / "b.json").read_text())
    document["annotations"][0]["entry_id"] = None
    (grey.root / "b.json").write_text(json.dumps(document))
    assert "2 records of b are refused: 1 missing_id, 1 missing_record" in run(
        "review", "agreement", ledger, out, *files
    )


def test_the_time_of_all_pages_counts(grey, ledger):
    run("review", "export", ledger, "--out", grey.root / "out")

    def change(pages):
        say(pages, 0, 0, "accept")
        pages[0].seconds, pages[1].seconds = 3.0, 5.0  # nothing was wrong on the second

    edited(grey.root / "out", "coco", change, grey.root / "back")
    run("review", "import", ledger, grey.root / "out", "--by", "a", "--file", grey.root / "back")
    assert Ledger.open(ledger).head.facts["seconds"] == 8.0


def test_of_several_reviewers_equal_drawings_are_taken_once_and_others_are_disputed(grey, ledger):
    run("review", "export", ledger, "--out", grey.root / "out")
    cat, dog, _, other = (entry.entry_id for entry in grey.entries)

    def review(width):
        def change(pages):
            first = next(page for page in pages if page.slot.key == "shapes/1")
            first.marks[0] = replace(first.marks[0], rle=rle_of(2, 3, 5, 6))  # the same
            first.marks[1] = replace(first.marks[1], rle=rle_of(0, 0, width, 24))
            first.marks.append(Mark(entry_id="", label="dog", rle=rle_of(1, 1, 3, 3), said="add"))
            first.seconds = 4.0

        return change

    files = {"a": grey.root / "a.json", "b": grey.root / "b.json"}
    for width, file in zip((16, 8), files.values(), strict=True):
        edited(grey.root / "out", "coco", review(width), file)
    found, _ = ledgers.take_all(Ledger.open(ledger), grey.root / "out", files)
    assert [(d.entry_id, d.action) for d in found.decisions] == [(cat, "edit")]
    opened = Ledger.open(ledger)
    assert sorted((entry.area, entry.origin) for entry in opened.view().kept()) == [(9, "human"), (30, "human")]
    assert {dog, other} < {entry.entry_id for entry in opened.view().grey()}
    assert (found.disputed, opened.head.facts["seconds"]) == ([dog], 8.0)
    again, _ = ledgers.take_all(opened, grey.root / "out", files)
    assert (found.added, again.step, again.disputed, again.ignored) == (1, None, [dog], 0)


@pytest.mark.parametrize("files", [["a=x"], ["a=x", "a=y"], ["a", "b"]])
def test_two_reviewers_are_needed(grey, ledger, files):
    assert CliRunner().invoke(app, ["review", "agreement", ledger, str(grey.root), *files]).exit_code == 2


@pytest.mark.parametrize(
    "arguments", [[], ["a"], ["a=x", "a=y"], ["=x"], ["a=x", "--by", "b"], ["a=x", "--file", "y"], ["--file", "y"]]
)
def test_it_is_said_who_reviewed(grey, ledger, arguments):
    assert CliRunner().invoke(app, ["review", "import", ledger, str(grey.root), *arguments]).exit_code == 2
    assert Ledger.open(ledger).head.number == 1


def test_what_cannot_be_used_is_one_line(grey, ledger):
    run("review", "export", ledger, "--to", "cvat", "--out", grey.root / "out")
    (grey.root / "out" / "annotations.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>')
    done = CliRunner().invoke(app, ["review", "import", ledger, str(grey.root / "out"), "--by", "a"])
    assert done.exit_code == 1
    assert "declares a document type" in done.output
    done = CliRunner().invoke(app, ["review", "export", ledger, "--to", "yaml", "--out", str(grey.root / "x")])
    assert (done.exit_code, "no layout" in done.output) == (1, True)


# --- words of the viewer ---------------------------------------------------------------------------------------------


def speak(folder, reviewer, *said) -> None:
    with contextlib.closing(Words(folder, reviewer)) as opened:
        for entry_id, action in said:
            opened.say(Said(entry_id=entry_id, action=action, seconds=2.0), opened.serial)


def test_words_become_a_step_and_disputed_masks_wait(grey, ledger):
    cat, dog, phrase, other = (entry.entry_id for entry in grey.entries)
    place = grey.root / "words"
    speak(place, "a", (cat, "accept"), (dog, "accept"), (phrase, "skip"), (other, "reject"))
    speak(place, "b", (cat, "accept"), (dog, "reject"), ("0" * 32, "accept"))
    assert "step 2: 2 accept, 1 reject\n1 masks are disputed" in run("review", "collect", ledger, place)
    opened = Ledger.open(ledger)
    assert {entry.entry_id for entry in opened.view().grey()} == {dog, phrase}
    assert {entry.entry_id for entry in opened.view().kept()} == {cat}
    facts = dict(opened.head.facts)
    assert sorted(facts.pop("read")) == ["a", "b"]
    assert facts == {"reviewers": ["a", "b"], "disputed": 1, "seconds": 14.0}  # of all words, also those on others
    assert "nothing was decided" in run("review", "collect", ledger, place)  # not a second time

    speak(place, "b", (dog, "accept"))  # who changes their mind
    assert "step 3: 2 accept" in run("review", "collect", ledger, place)
    assert {entry.entry_id for entry in Ledger.open(ledger).view().grey()} == {phrase}
    assert Ledger.open(ledger).head.facts["seconds"] == 2.0  # of the new word alone
    speak(place, "b", (cat, "reject"))  # which is collected already
    assert "nothing was decided\n1 words say something else" in run("review", "collect", ledger, place)


def test_a_bad_picture_is_disputed_as_a_whole_by_who_accepts_a_mask_there(grey, ledger):
    picture, _ = grey.work[0]
    human = packages.human_entry(picture, CAT, rle_of(20, 5, 4, 4), 0, "coco", None)
    Ledger.open(ledger).append("relabel", 1, [human])
    cat, dog, phrase, other = (entry.entry_id for entry in grey.entries)
    place = grey.root / "words"
    speak(place, "ana", (cat, "whole_image_bad"), (other, "accept"))
    speak(place, "bo", (dog, "accept"))
    assert "1 accept\n3 masks are disputed" in run("review", "collect", ledger, place)
    view = Ledger.open(ledger).view()
    assert {entry.entry_id for entry in view.grey()} == {cat, dog, phrase}
    assert {entry.entry_id for entry in view.kept()} == {other, human.entry_id}
    speak(place, "bo", (dog, "whole_image_bad"))
    assert "8 whole_image_bad" in run("review", "collect", ledger, place)
    assert [entry.entry_id for entry in Ledger.open(ledger).view().kept()] == [other]


def test_a_bad_picture_is_a_word_on_all_its_masks_until_a_later_one(grey, ledger):
    cat, dog, phrase, _ = (entry.entry_id for entry in grey.entries)
    place = grey.root / "words"
    speak(place, "a", (phrase, "reject"), (cat, "whole_image_bad"), (dog, "accept"))
    assert "1 accept, 2 whole_image_bad" in run("review", "collect", ledger, place)
    standing = {s.entry.entry_id: s for s in Ledger.open(ledger).view().standings("shapes/1")}
    assert {name: s.entry.state for name, s in standing.items()} == {cat: "rejected", dog: "kept", phrase: "rejected"}
    assert [standing[name].decision.seconds for name in (cat, dog, phrase)] == [2.0, 2.0, None]


def test_words_need_a_folder_and_whole_lines(grey, ledger):
    done = CliRunner().invoke(app, ["review", "collect", ledger, str(grey.root / "none")])
    assert (done.exit_code, "no such folder" in done.output) == (1, True)
    (grey.root / "words").mkdir()
    (grey.root / "words" / "a.jsonl").write_text("{}\n")
    done = CliRunner().invoke(app, ["review", "collect", ledger, str(grey.root / "words")])
    assert (done.exit_code, "line 1" in done.output) == (1, True)
