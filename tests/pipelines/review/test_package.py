"""Packages: what goes out comes back, in each layout; what was said of it; what is wrong with it."""

import json
import random
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as oracle

from dataengine.errors import UserError
from dataengine.ledger.records import Concept
from pipelines.review import package as packages
from pipelines.review.marks import MAX_LABEL, Mark, PackageError, labels_of
from tests.pipelines.review.zones import CAT, DOG, HEIGHT, PHRASE, WIDTH, entry_of, rle_of

LAYOUTS = packages.LAYOUTS
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def reasons(reviewed) -> list[str]:
    return [refused.reason for refused in reviewed.refused]


def say(pages, page: int, mark: int, said: str) -> None:
    pages[page].marks[mark] = replace(pages[page].marks[mark], said=said)


# --- round trips -----------------------------------------------------------------------------------------------------


@each_layout
def test_a_package_that_nobody_touched_decides_nothing_and_is_written_the_same_again(grey, layout):
    grey.write(layout)
    before = grey.file.read_bytes()
    assert grey.read() == ([], [], [], 0.0)
    grey.edit(lambda pages: None)
    assert grey.file.read_bytes() == before


@each_layout
def test_a_reviewed_package_is_written_the_same_again(grey, layout):
    grey.write(layout)

    def review(pages):
        say(pages, 0, 0, "accept")
        say(pages, 0, 2, "reject")
        pages[0].marks.append(Mark(entry_id="", label="dog", rle=rle_of(4, 4, 9, 2), said="add"))
        pages[1].bad = True
        if layout != "cvat":
            pages[0].seconds = 12.5

    grey.edit(review)
    before = grey.file.read_bytes()
    grey.edit(lambda pages: None)
    assert grey.file.read_bytes() == before


@each_layout
def test_two_writes_are_the_same_bytes(grey, layout):
    grey.write(layout)
    names = [path.relative_to(grey.folder) for path in sorted(grey.folder.rglob("*")) if path.is_file()]
    first = [(grey.folder / name).read_bytes() for name in names]
    grey.folder = grey.root / "again"
    grey.write(layout)
    assert [(grey.folder / name).read_bytes() for name in names] == first
    assert len(names) == 4 + (layout != "coco")  # package.json, two pictures, the file, and what sets the tool up


@each_layout
def test_masks_in_a_package_are_the_ledger_s_pixel_for_pixel(grey, layout):
    grey.write(layout)
    found = [mark.rle for page in grey.found().pages for mark in page.marks]
    for mine, entry in zip(found, grey.entries, strict=True):
        truth, got = ({"size": [HEIGHT, WIDTH], "counts": rle} for rle in (entry.rle, mine))
        assert np.array_equal(oracle.decode(truth), oracle.decode(got))


# --- decisions -------------------------------------------------------------------------------------------------------


@each_layout
def test_what_a_reviewer_said_becomes_decisions(grey, layout):
    grey.write(layout)

    def review(pages):
        say(pages, 0, 0, "accept")
        say(pages, 0, 1, "reject")

    grey.edit(review)
    decisions, entries, refused, _ = grey.read()
    assert [(d.entry_id, d.state, d.action, d.by) for d in decisions] == [
        (grey.entries[0].entry_id, "kept", "accept", "reviewer:Zoë"),
        (grey.entries[1].entry_id, "rejected", "reject", "reviewer:Zoë"),
    ]
    assert (entries, refused) == ([], [])


@each_layout
@pytest.mark.parametrize("said", ["", "accept"])
def test_a_changed_mask_is_a_new_human_entry_in_the_other_s_place(grey, layout, said):
    grey.write(layout)

    def review(pages):
        pages[0].marks[0] = replace(pages[0].marks[0], rle=rle_of(2, 3, 5, 6), said=said)

    grey.edit(review)
    (decision,), (entry,), refused, _ = grey.read()
    old = grey.entries[0]
    assert (decision.entry_id, decision.state, decision.action) == (old.entry_id, "rejected", "edit")
    assert decision.replacement == entry.entry_id != old.entry_id
    assert (entry.supersedes, entry.origin, entry.state, entry.round) == (old.entry_id, "human", "kept", 1)
    assert (entry.rle, entry.bbox, entry.area) == (rle_of(2, 3, 5, 6), (2.0, 3.0, 5.0, 6.0), 30)
    assert (entry.picture, entry.concept, entry.labeler) == ("shapes/1", CAT, None)
    assert not refused


@each_layout
def test_a_changed_label_is_an_edit_too(grey, layout):
    grey.write(layout)

    def review(pages):
        pages[0].marks[0] = replace(pages[0].marks[0], label="dog")

    grey.edit(review)
    (decision,), (entry,), _, _ = grey.read()
    assert (decision.action, decision.reason) == ("edit", "label changed")
    assert (entry.concept, entry.rle) == (DOG, grey.entries[0].rle)


@each_layout
def test_a_changed_mask_that_is_rejected_is_rejected(grey, layout):
    grey.write(layout)

    def review(pages):
        pages[0].marks[0] = replace(pages[0].marks[0], rle=rle_of(2, 3, 5, 6), said="reject")

    grey.edit(review)
    (decision,), entries, _, _ = grey.read()
    assert (decision.action, entries) == ("reject", [])


@each_layout
def test_an_added_mask_is_a_human_entry(grey, layout):
    grey.write(layout)
    name = labels_of([PHRASE])[0].name

    def review(pages):
        pages[1].marks.append(Mark(entry_id="", label=name, rle=rle_of(0, 0, 2, 2), said="add"))

    grey.edit(review)
    decisions, (entry,), refused, _ = grey.read()
    assert (decisions, refused) == ([], [])
    assert (entry.picture, entry.concept, entry.area, entry.supersedes) == ("../odd key/né", PHRASE, 4, None)
    assert (entry.origin, entry.state, entry.crowd) == ("human", "kept", False)


@each_layout
def test_a_bad_picture_rejects_all_that_stands_in_it(grey, layout):
    picture, entries = grey.work[0]
    grey.write(layout)
    human = entry_of(picture, CAT, rle_of(20, 5, 4, 4), origin="human", state="kept")
    gone = entry_of(picture, CAT, rle_of(20, 5, 4, 5), state="rejected")
    grey.work[0] = (picture, [*entries, human, gone])  # as the ledger has it now

    def review(pages):
        pages[0].bad = True
        pages[0].marks.append(Mark(entry_id="", label="dog", rle=rle_of(4, 4, 9, 2), said="add"))

    grey.edit(review)
    decisions, added, refused, _ = grey.read()
    assert [d.entry_id for d in decisions] == [*(entry.entry_id for entry in entries), human.entry_id]
    assert {(d.state, d.action) for d in decisions} == {("rejected", "whole_image_bad")}
    assert (added, [each.reason for each in refused]) == ([], ["whole_image_bad"])


@pytest.mark.parametrize("layout", ["coco", "label-studio"])
def test_time_is_divided_among_the_decisions_of_a_picture(grey, layout):
    grey.write(layout)

    def review(pages):
        pages[0].seconds = 9.0
        for mark in range(3):
            say(pages, 0, mark, "accept")

    grey.edit(review)
    assert [decision.seconds for decision in grey.read().decisions] == [3.0, 3.0, 3.0]


def test_two_reviewers_who_draw_the_same_make_two_entries(grey):
    grey.write("coco")

    def review(pages):
        pages[0].marks[0] = replace(pages[0].marks[0], rle=rle_of(2, 3, 5, 6))

    grey.edit(review)
    one, other = grey.read(reviewer="a").entries[0], grey.read(reviewer="b").entries[0]
    assert one.mask_id == other.mask_id
    assert one.entry_id != other.entry_id


# --- labels ----------------------------------------------------------------------------------------------------------


def test_labels_are_unique_short_and_without_what_xml_cannot_hold():
    long = "x" * 100
    concepts = [
        *(Concept(text="cat", category_id=number) for number in (3, 1)),
        Concept(text="cat"),
        Concept(text=" \n "),
        Concept(text="whole image bad"),
        *(Concept(text=long + end) for end in "ab"),
        Concept(text="bell\x07"),
    ]
    found = {label.concept: label.name for label in labels_of(concepts)}
    assert [found[concept] for concept in concepts[:5]] == [
        "cat (2)",
        "cat",
        "cat (3)",
        "unnamed",
        "whole image bad (2)",
    ]
    assert found[concepts[5]] == "x" * 63 + "…"
    assert found[concepts[6]] == "x" * 59 + "… (2)"
    assert found[concepts[7]] == "bell\ufffd"
    assert max(map(len, found.values())) == MAX_LABEL


# --- refusals, whatever the layout -----------------------------------------------------------------------------------


def shorten(pages):
    del pages[0].marks[1]


def empty(pages):
    del pages[1]


def twice(pages):
    pages[0].marks.append(pages[0].marks[0])


def elsewhere(pages):
    pages[1].marks.append(pages[0].marks.pop(1))


def unknown(pages):
    pages[0].marks[1] = replace(pages[0].marks[1], entry_id="0" * 32)


def same(pages):
    pages[1].marks.append(Mark(entry_id="", label="cat", rle=rle_of(10, 10, 3, 9), said="add"))


def double(pages):
    pages.append(pages[1])


@each_layout
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (shorten, ["missing_record"]),
        (empty, ["missing_picture"]),
        (twice, ["duplicate_id", "duplicate_id"]),
        (elsewhere, ["other_picture"]),
        (unknown, ["unknown_id", "missing_record"]),
        (same, ["duplicate_mask"]),
        (double, ["duplicate_picture", "duplicate_picture"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_records_that_do_not_fit_are_refused_and_the_others_count(grey, layout, change, expected):
    grey.write(layout)
    grey.edit(lambda pages: (say(pages, 0, 2, "accept"), change(pages)))
    decisions, entries, refused, _ = grey.read()
    assert [each.reason for each in refused] == expected
    assert [decision.entry_id for decision in decisions] == [grey.entries[2].entry_id]
    assert entries == []


@each_layout
def test_what_was_replaced_in_the_meantime_is_refused(grey, layout):
    grey.write(layout)
    grey.edit(lambda pages: say(pages, 0, 0, "accept"))
    reviewed = grey.read(superseded={grey.entries[0].entry_id})
    assert (reviewed.decisions, reasons(reviewed)) == ([], ["superseded"])


def test_a_ledger_that_has_another_picture_refuses_it(grey):
    grey.write("coco")
    grey.edit(lambda pages: (say(pages, 0, 0, "accept"), say(pages, 1, 0, "accept")))
    (first, entries), (second, others) = grey.work
    grey.work = [(replace(first, sha256="0" * 64), entries), (replace(second, width=33), others)]
    reviewed = grey.read()
    assert (reviewed.decisions, reasons(reviewed)) == ([], ["other_picture", "image_size"])
    grey.work = []
    assert reasons(grey.read()) == ["unknown_picture", "unknown_picture"]


# --- whole packages --------------------------------------------------------------------------------------------------


def test_pictures_that_cannot_go_out_are_left_out_with_a_reason(grey):
    (first, _), (second, _) = grey.work
    (grey.root / "1.jpg").write_bytes((grey.root / "0.jpg").read_bytes())
    written = grey.write("coco")
    assert [(each.record, each.reason) for each in written.left_out] == [(second.key, "image_changed")]
    assert [slot.key for slot in written.package.slots] == [first.key]
    (grey.root / "0.jpg").unlink()
    grey.folder = grey.root / "again"
    with pytest.raises(UserError, match="nothing to review"):
        grey.write("coco")


@pytest.mark.parametrize("pictures", ["copy", "link", "none"])
def test_pictures_are_copied_linked_or_only_named(grey, pictures):
    grey.write("cvat", pictures=pictures)
    found = sorted((grey.folder / "images").iterdir()) if pictures != "none" else []
    assert [path.is_symlink() for path in found] == {"copy": [False] * 2, "link": [True] * 2, "none": []}[pictures]
    assert b'name="shapes_1.jpg"' in grey.file.read_bytes()
    assert grey.read() == ([], [], [], 0.0)


def test_a_package_needs_an_empty_folder(grey):
    grey.folder.mkdir()
    (grey.folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="empty folder"):
        grey.write("coco")
    assert [path.name for path in grey.folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("step"),
        lambda d: d.update(layout="yaml"),
        lambda d: d.update(labels=d["labels"] + d["labels"]),
        lambda d: d["pictures"][0].update(name="../../etc/passwd"),
        lambda d: d["pictures"][0].update(height=10**30),
        lambda d: d["pictures"][0].update(height=True),
        lambda d: d["pictures"][0].update(entries=["x"]),
        lambda d: d["labels"][0].update(category_id=99),
        lambda d: d["labels"][0].update(text="a dog, says the reviewer"),
    ],
)
def test_a_package_json_that_was_edited_is_refused(grey, change):
    grey.write("coco")
    document = json.loads((grey.folder / "package.json").read_text())
    change(document)
    (grey.folder / "package.json").write_text(json.dumps(document))
    with pytest.raises(PackageError):
        grey.read()


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a\nb", "x" * 65, "a b"])
def test_reviewers_have_names_that_files_can_have(grey, name):
    grey.write("coco")
    with pytest.raises(UserError, match="name"):
        grey.read(reviewer=name)


@each_layout
def test_a_file_may_come_back_alone_or_in_an_archive(grey, layout):
    grey.write(layout)
    before = grey.file.read_bytes()
    grey.edit(lambda pages: say(pages, 0, 0, "accept"))
    alone, archive = grey.root / "export", grey.root / "export.zip"
    alone.write_bytes(grey.file.read_bytes())
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("images/shapes_1.jpg", b"")
        opened.writestr(grey.file.name, grey.file.read_bytes())
    grey.file.write_bytes(before)
    assert grey.read().decisions == []
    assert len(grey.read(file=alone).decisions) == len(grey.read(file=archive).decisions) == 1


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["../annotations.json"], "unsafe_name"),
        (["/annotations.json"], "unsafe_name"),
        (["C:\\annotations.json"], "unsafe_name"),
        (["annotations.json", "images/../../x.jpg"], "unsafe_name"),
        (["annotations.json", "a/annotations.json"], "archive_invalid"),
        (["images/x.jpg"], "archive_invalid"),
    ],
)
def test_archives_that_lead_elsewhere_are_refused(grey, names, reason):
    grey.write("coco")
    archive = grey.root / "export.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for name in names:
            opened.writestr(name, grey.file.read_bytes())
    with pytest.raises(PackageError) as error:
        grey.read(file=archive)
    assert error.value.reason == reason


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_with_damaged_contents_is_refused(grey, kind):
    grey.write("coco")
    archive = grey.root / "export.zip"
    with zipfile.ZipFile(archive, "w", kind) as opened:
        opened.writestr("annotations.json", grey.file.read_bytes())
        size = opened.getinfo("annotations.json").compress_size
    good = archive.read_bytes()
    begin = 30 + len("annotations.json")  # the length of a local header
    for at in range(begin, begin + size, 7):
        archive.write_bytes(good[:at] + bytes(byte ^ 0xFF for byte in good[at : at + 3]) + good[at + 3 :])
        with pytest.raises(UserError):
            grey.read(file=archive)


def test_an_archive_s_file_that_is_too_large_is_not_unpacked(grey, monkeypatch):
    grey.write("coco")
    archive = grey.root / "export.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("annotations.json", b" " * 1_000_001)
    monkeypatch.setattr(packages, "MAX_BYTES", 1_000_000)
    with pytest.raises(PackageError) as error:
        grey.read(file=archive)
    assert error.value.reason == "archive_invalid"


@each_layout
def test_damage_of_any_kind_is_refused_and_never_more(grey, layout):
    """Bytes of a reviewed file are replaced, removed and repeated: what comes of it is told, not raised."""
    grey.write(layout)
    grey.edit(lambda pages: [say(pages, 0, mark, "accept") for mark in range(3)])
    good = grey.file.read_bytes()
    draw = random.Random(7)
    outcomes = set()
    for _ in range(300):
        data = bytearray(good)
        for _ in range(draw.choice((1, 1, 3))):
            at, length = draw.randrange(len(data)), draw.choice((1, 1, 2, 8, 40))
            kind = draw.choice(("replace", "remove", "repeat"))
            if kind == "replace":
                data[at : at + length] = draw.choice(
                    (b"0", b"-1", b"9" * 5000, b"NaN", b"null", b"\xff", b'"', b"<!--")
                )
            elif kind == "remove":
                del data[at : at + length]
            else:
                data[at:at] = data[at : at + length]
        grey.file.write_bytes(data)
        try:
            reviewed = grey.read()
        except UserError:
            outcomes.add("refused as a whole")
            continue
        outcomes |= {refused.reason for refused in reviewed.refused}
        assert all(refused.message for refused in reviewed.refused)
    assert "refused as a whole" in outcomes
    assert len(outcomes) > 4
