"""Each layout against what its tool writes, by hand, and against records that were edited by hand."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as oracle

from dataengine.errors import UserError
from dataengine.masks import MaskError
from pipelines.review import brush, cvat
from pipelines.review.marks import PackageError
from tests.pipelines.review.zones import CAT, DOG, HEIGHT, WIDTH, rle_of


def encode(mask) -> bytes:
    return oracle.encode(np.asfortranarray(np.asarray(mask, np.uint8)))["counts"]


def reasons(reviewed) -> list[str]:
    return [refused.reason for refused in reviewed.refused]


# --- COCO ------------------------------------------------------------------------------------------------------------


def test_coco_s_own_reader_reads_a_package(grey):
    grey.write("coco")
    coco = pytest.importorskip("pycocotools.coco")
    read = coco.COCO(str(grey.file))
    assert [read.cats[a["category_id"]]["name"] for a in read.anns.values()][:2] == ["cat", "dog"]
    for annotation, entry in zip(read.anns.values(), grey.entries, strict=True):
        truth = oracle.decode({"size": [HEIGHT, WIDTH], "counts": entry.rle})
        assert np.array_equal(read.annToMask(annotation), truth)
        assert (annotation["area"], tuple(annotation["bbox"])) == (entry.area, entry.bbox)


def coco_edit(grey, change):
    grey.write("coco")
    document = json.loads(grey.file.read_text())
    change(document)
    grey.file.write_text(json.dumps(document))
    return grey.read()


def test_masks_may_come_back_as_polygons(grey):
    """A box as a polygon is an edit of one that had a hole, and none of one that is the same."""
    box, whole = [2, 3, 7, 3, 7, 7, 2, 7], [0, 0, 32, 0, 32, 24, 0, 24]

    def change(document):
        document["annotations"][0]["segmentation"] = [box]
        document["annotations"][1]["segmentation"] = [whole]

    decisions, entries, refused, _ = coco_edit(grey, change)
    assert [decision.action for decision in decisions] == ["edit"]
    assert [entry.rle for entry in entries] == [rle_of(2, 3, 5, 4)]
    assert not refused


def annotation(**more):
    return lambda document: document["annotations"][0].update(more)


def without(name):
    return lambda document: document["annotations"][0].pop(name)


def rle(counts, size=(HEIGHT, WIDTH)):
    return annotation(segmentation={"size": list(size), "counts": counts})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without("entry_id"), ["missing_id", "missing_record"]),
        (annotation(entry_id=None), ["missing_id", "missing_record"]),
        (annotation(entry_id=7), ["unknown_id", "missing_record"]),
        (annotation(entry_id="x" * 10**5), ["unknown_id", "missing_record"]),
        (annotation(decision="maybe"), ["decision_unknown"]),
        (annotation(decision=["accept"]), ["decision_unknown"]),
        (annotation(decision="add"), ["added_with_id"]),
        (annotation(category_id=99), ["category_unknown"]),
        (annotation(category_id=10**400), ["category_unknown"]),
        (annotation(category_id=[1]), ["category_unknown"]),
        (annotation(image_id=99), ["unknown_picture"]),
        (annotation(image_id={}), ["unknown_picture"]),
        (rle("~~~"), ["rle_invalid"]),
        (rle("é"), ["rle_invalid"]),
        (rle("\ud800"), ["rle_invalid"]),
        (rle("0"), ["rle_size"]),
        (rle([HEIGHT * WIDTH]), ["empty_mask"]),
        (rle([0, 10**30]), ["rle_invalid"]),
        (rle([-5, HEIGHT * WIDTH + 5]), ["rle_invalid"]),
        (rle([0, HEIGHT * WIDTH], (WIDTH, HEIGHT)), ["rle_size"]),
        (annotation(segmentation=None), ["segmentation_invalid"]),
        (annotation(segmentation=[[0, 0, 1e999, 1, 2, 2]]), ["polygon_not_finite"]),
        (annotation(segmentation=[[0, 0, 90, 1, 2, 2]]), ["polygon_out_of_frame"]),
        (lambda d: d["images"][0].update(width=33), ["image_size", *["unknown_picture"] * 3]),
        (lambda d: d["images"][0].update(height="24"), ["image_size", *["unknown_picture"] * 3]),
        (
            lambda d: d["images"][0].update(file_name="../x.jpg"),
            ["unsafe_name", *["unknown_picture"] * 3, "missing_picture"],
        ),
        (lambda d: d["images"][0].update(whole_image_bad="yes"), ["decision_unknown", *["unknown_picture"] * 3]),
        (lambda d: d["annotations"].append(7), ["no_record"]),
        (lambda d: d["categories"].clear(), ["category_unknown"] * 4),
        (lambda d: d["categories"][0].update(name="tiger"), ["category_unknown"] * 2),
    ],
)
def test_edited_coco_records_are_refused(grey, change, expected):
    reviewed = coco_edit(grey, change)
    assert (reviewed.decisions, reviewed.entries) == ([], [])
    assert reasons(reviewed) == expected


def test_of_two_copies_neither_counts_though_one_is_broken(grey):
    def change(document):
        first = {**document["annotations"][0], "decision": "accept"}
        document["annotations"][0] = first
        document["annotations"].append({**first, "segmentation": None})

    reviewed = coco_edit(grey, change)
    assert (reviewed.decisions, reasons(reviewed)) == ([], ["segmentation_invalid", "duplicate_id"])


def test_a_file_that_is_cut_off_is_refused_as_a_whole(grey):
    grey.write("coco")
    grey.file.write_bytes(grey.file.read_bytes()[:-200])
    with pytest.raises(UserError, match="cut off"):
        grey.read()


# --- CVAT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "runs"),
    [
        ([[0, 0, 0, 1]], [3, 1]),
        ([[1, 1, 0, 0]], [0, 2, 2]),
        ([[0, 1], [1, 0]], [1, 2, 1]),
        ([[1]], [0, 1]),
    ],
    ids=["the background first", "no background first", "rows one after the other", "one pixel"],
)
def test_runs_worked_out_by_hand(mask, runs):
    assert cvat.runs_of(np.array(mask, bool)) == runs


def test_a_box_is_placed_on_its_picture():
    """x 1..2, y 2..3 of a picture of 4 x 5 px, the upper right and both lower pixels set."""
    truth = np.zeros((5, 4))
    truth[2, 2] = truth[3, 1] = truth[3, 2] = 1
    assert cvat.rle_of_box("1, 3", (1, 2, 2, 2), 5, 4) == encode(truth)
    assert cvat.rle_of_box(" 0,0 ,1,3,0", (1, 2, 2, 2), 5, 4) == encode(truth)  # empty runs in between
    wide = cvat.rle_of_box("4, 1, 2, 2", (0, 1, 3, 3), 5, 4)  # a box that is larger than the mask
    assert wide == encode([[0] * 4, [0] * 4, [0, 1, 0, 0], [0, 1, 1, 0], [0] * 4])


@given(st.data())
def test_masks_come_back_from_boxes(data):
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    cells = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width).filter(any))
    mask = np.array(cells).reshape(height, width)
    runs = cvat.runs_of(mask)
    assert sum(runs) == height * width
    assert all(runs[1:])
    assert cvat.rle_of_box(",".join(map(str, runs)), (0, 0, width, height), height, width) == encode(mask)


@pytest.mark.parametrize(
    ("runs", "box", "reason"),
    [
        ("1, 2", (0, 0, 2, 2), "rle_size"),
        ("1, 9999999999", (0, 0, 2, 2), "rle_size"),
        ("1, 99999999999", (0, 0, 2, 2), "rle_invalid"),
        ("", (0, 0, 2, 2), "rle_invalid"),
        ("1, -1, 4", (0, 0, 2, 2), "rle_invalid"),
        ("1, ٣", (0, 0, 2, 2), "rle_invalid"),
        ("1e0, 3", (0, 0, 2, 2), "rle_invalid"),
        ("4", (0, 0, 2, 2), "empty_mask"),
        ("0, 4", (3, 0, 2, 2), "bad_size"),
        ("0, 4", (0, 4, 2, 2), "bad_size"),
        ("0", (0, 0, 0, 2), "bad_size"),
    ],
)
def test_broken_boxes_are_refused(runs, box, reason):
    with pytest.raises(MaskError) as error:
        cvat.rle_of_box(runs, box, 5, 4)
    assert error.value.reason == reason


def test_a_package_is_xml_that_other_readers_understand(grey):
    grey.write("cvat")
    root = ElementTree.parse(grey.file).getroot()
    names = [label.find("name").text for label in root.iter("label")]
    assert names[:2] == ["cat", "dog"]
    assert names[2] == 'the <b>"Käse" & 猫</b> — l\'été � of 👩‍🔬'
    assert names[2] == root.findall("image/mask")[2].get("label")
    assert [each["name"] for each in json.loads((grey.folder / "labels.json").read_text())] == names
    first = root.find("image/mask")
    # x 2..6, y 3..6, without the pixel 4, 5: that is row 2, column 2 of the box, its 12th cell
    assert [first.get(name) for name in ("left", "top", "width", "height", "rle")] == [
        "2",
        "3",
        "5",
        "4",
        "0, 12, 1, 7",
    ]
    assert {each.get("name"): each.text for each in first} == {
        "entry_id": grey.entries[0].entry_id,
        "decision": "undecided",
        "score": "0.5",
        "reason": "stability",
    }


# as CVAT writes it: attributes in its own order, pictures in a folder, much more in its head
EXPORT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <job><id>5</id><size>2</size><mode>annotation</mode><labels><label><name>cat</name><color>#ff0000</color>
      <attributes><attribute><name>decision</name></attribute></attributes></label></labels></job>
    <dumped>2026-01-01 10:00:00.000000+00:00</dumped>
  </meta>
  <image id="0" name="images/shapes_1.jpg" width="32" height="24">
    <mask label="cat" source="manual" occluded="0" rle="0, 20" left="2" top="3" width="5" height="4" z_order="3">
      <attribute name="reason">stability</attribute>
      <attribute name="decision">accept</attribute>
      <attribute name="entry_id">{first}</attribute>
    </mask>
    <mask label="dog" source="file" occluded="0" rle="0, 768" left="0" top="0" width="32" height="24" z_order="0">
      <attribute name="entry_id">{second}</attribute>
      <attribute name="decision">reject</attribute>
    </mask>
    <mask label="dog" source="manual" occluded="0" rle="0, 2, 1, 1" left="8" top="9" width="2" height="2" z_order="0">
      <attribute name="entry_id"></attribute>
      <attribute name="decision">add</attribute>
    </mask>
    <box label="dog" source="manual" occluded="0" xtl="1.0" ytl="1.0" xbr="5.0" ybr="5.0" z_order="0"></box>
  </image>
  <image id="1" name="{name}" width="32" height="24">
    <tag label="whole image bad" source="manual"></tag>
  </image>
</annotations>
"""


def test_what_cvat_exports_is_understood(grey):
    written = grey.write("cvat")
    first, second, _, last = grey.entries
    name = written.package.slots[1].name
    grey.file.write_text(EXPORT.format(first=first.entry_id, second=second.entry_id, name=name))
    decisions, entries, refused, _ = grey.read()
    words = [(decision.entry_id, decision.action) for decision in decisions]
    assert words == [(first.entry_id, "edit"), (second.entry_id, "reject"), (last.entry_id, "whole_image_bad")]
    edited, added = entries
    assert (edited.rle, edited.supersedes, edited.concept) == (rle_of(2, 3, 5, 4), first.entry_id, CAT)
    truth = np.zeros((HEIGHT, WIDTH))
    truth[9, 8:10] = truth[10, 9] = 1  # 0, 2, 1, 1: both of the first row, the second of the second
    assert (added.rle, added.supersedes, added.concept) == (encode(truth), None, DOG)
    assert [each.reason for each in refused] == ["shape_unsupported", "missing_record"]


def cvat_edit(grey, pattern, new, count=1):
    grey.write("cvat")
    text, number = re.subn(pattern, new, grey.file.read_text(encoding="utf-8"), count=count)
    assert number
    grey.file.write_bytes(text.encode("utf-8", "surrogatepass"))
    return grey.read()


@pytest.mark.parametrize(
    ("pattern", "new", "expected"),
    [
        (r'<attribute name="entry_id">\w+</attribute>', "", ["missing_id", "missing_record"]),
        (r'(<attribute name="entry_id">)\w+', r"\1 7 ", ["unknown_id", "missing_record"]),
        (">undecided</attribute>", ">maybe</attribute>", ["decision_unknown"]),
        (">undecided</attribute>", ">add</attribute>", ["added_with_id"]),
        ('mask label="cat"', 'mask label="tiger"', ["category_unknown"]),
        ('mask label="cat"', "mask", ["category_unknown"]),
        ('rle="[^"]+"', 'rle="0, 21"', ["rle_size"]),
        ('rle="[^"]+"', 'rle="a"', ["rle_invalid"]),
        ('rle="[^"]+"', "", ["rle_invalid"]),
        ('left="2"', 'left="999999999999999999999"', ["bad_size"]),
        ('left="2"', 'left="-2"', ["bad_size"]),
        ('left="2"', 'left="2.5"', ["bad_size"]),
        ('left="2"', 'left="30"', ["bad_size"]),
        ('width="32" height', 'width="320000000000" height', ["image_size"]),
        ('width="32" height="24">', ">", ["image_size"]),
        ('name="shapes_1.jpg"', 'name="a/../shapes_1.jpg"', ["unsafe_name"]),
        ('name="shapes_1.jpg"', r'name="C:\\shapes_1.jpg"', ["unsafe_name", "missing_picture"]),
        ('name="shapes_1.jpg"', 'name="other.jpg"', ["unknown_picture", "missing_picture"]),
        ('name="shapes_1.jpg"', "", ["unknown_picture", "missing_picture"]),
        ("</image>", '<tag label="dog"></tag></image>', ["category_unknown"]),
    ],
)
def test_edited_cvat_records_are_refused(grey, pattern, new, expected):
    reviewed = cvat_edit(grey, pattern, new)
    assert (reviewed.decisions, reviewed.entries) == ([], [])
    assert reasons(reviewed) == expected


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))


@pytest.mark.parametrize(
    ("doctype", "reason"),
    [
        (f'<!DOCTYPE annotations [<!ENTITY l0 "lol">{LAUGHS}]>', "xml_doctype"),
        ('<!DOCTYPE annotations [<!ENTITY x SYSTEM "file:///etc/passwd">]>', "xml_doctype"),
        ('<!DOCTYPE annotations SYSTEM "http://127.0.0.1:1/x.dtd">', "xml_doctype"),
        ('<!DOCTYPE annotations [<!ATTLIST mask rle CDATA "0">]>', "xml_doctype"),
        ("<annotations>&lol;", "xml_invalid"),
        ("<a>" * 10_000, "xml_invalid"),
        ("<", "xml_invalid"),
        ("\ud800", "xml_invalid"),
    ],
    ids=["a billion laughs", "a file", "a server", "defaults", "an entity", "depth", "no element", "no text"],
)
def test_documents_that_do_more_than_hold_records_are_refused(grey, doctype, reason):
    with pytest.raises(PackageError) as error:
        cvat_edit(grey, "<annotations>", f"{doctype}<annotations>")
    assert error.value.reason == reason


@pytest.mark.parametrize("text", ["", "<annotation/>", "<annotations>", "no XML", '{"annotations": []}'])
def test_what_is_no_cvat_document_is_refused(grey, text):
    grey.write("cvat")
    grey.file.write_text(text)
    with pytest.raises(PackageError) as error:
        grey.read()
    assert error.value.reason == "xml_invalid"


def test_text_is_kept_of_attributes_alone_and_not_without_limit(grey):
    grey.write("cvat")
    good = grey.file.read_text()
    grey.file.write_text(
        good.replace("<version>", "<version>" + "x\n" * 10**5).replace("</mask>", "\n" * 10**5 + "</mask>")
    )
    assert grey.read() == ([], [], [], 0.0)
    grey.file.write_text(good.replace('name="reason">', 'name="reason">' + "x\n" * cvat.MAX_TEXT))
    with pytest.raises(PackageError, match="characters"):
        grey.read()


# --- Label Studio ----------------------------------------------------------------------------------------------------


def test_a_package_is_what_label_studio_imports(grey):
    grey.write("label-studio")
    tasks = json.loads(grey.file.read_text())
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=images/shapes_1.jpg"
    assert [task["data"]["picture"] for task in tasks] == ["shapes/1", "../odd key/né"]
    (prediction,) = tasks[0]["predictions"]
    interface = ElementTree.parse(grey.folder / "interface.xml").getroot()
    controls = {each.get("name"): each for each in interface}
    labels = {label.get("value") for label in controls["label"]}
    for region, entry in zip(prediction["result"], grey.entries[:3], strict=True):
        assert (region["id"], region["type"], region["value"]["format"]) == (entry.entry_id, "brushlabels", "rle")
        assert (region["from_name"], region["to_name"]) == ("label", controls["label"].get("toName"))
        assert set(region["value"]["brushlabels"]) <= labels
        assert (region["original_width"], region["original_height"]) == (WIDTH, HEIGHT)
        assert brush.rle_from_code(bytes(region["value"]["rle"]), HEIGHT, WIDTH) == entry.rle


def region(grey, number, **more):
    result = json.loads(grey.file.read_text())[0]["predictions"][0]["result"][number]
    return {**result, "origin": "prediction-changed", **more}


def choice(entry, value):
    base = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, "origin": "manual"}
    where = {"from_name": "decision", "to_name": "image", "type": "choices"}
    return {**base, **where, "id": entry.entry_id, "value": {"choices": [value]}}


def test_what_label_studio_exports_is_understood(grey):
    grey.write("label-studio")
    first, second, third, _ = grey.entries
    drawn = np.zeros((HEIGHT, WIDTH))
    drawn[9, 8:10] = 1
    flat = np.repeat(drawn.ravel().astype(int) * 255, 4)
    runs = [4 * (9 * WIDTH + 8), 8, 4 * (HEIGHT * WIDTH - 9 * WIDTH - 10)]
    assert flat[runs[0] - 1] == 0
    assert flat[runs[0]] == 255
    value = {"format": "rle", "rle": list(brush.encode([0, 255, 0], runs)), "brushlabels": ["dog"]}
    results = [
        choice(second, "reject"),  # in any order
        region(grey, 0),
        region(grey, 1),
        region(grey, 2, value={**value, "brushlabels": region(grey, 2)["value"]["brushlabels"]}),
        choice(first, "accept"),
        region(grey, 0, id="Xk3_9aQ-0z", origin="manual", value=value),
    ]
    tasks = json.loads(grey.file.read_text())
    annotation = {"id": 3, "completed_by": 1, "was_cancelled": False, "result": results, "lead_time": 4.0}
    tasks[0].update(id=11, annotations=[annotation], file_upload="x.json", drafts=[], total_annotations=1, meta={})
    grey.file.write_text(json.dumps(tasks))
    decisions, (edited, added), refused, _ = grey.read()
    words = [(decision.entry_id, decision.action, decision.seconds) for decision in decisions]
    assert words == [
        (first.entry_id, "accept", 4.0 / 3),
        (second.entry_id, "reject", 4.0 / 3),
        (third.entry_id, "edit", 4.0 / 3),
    ]
    assert (edited.rle, edited.supersedes, edited.concept) == (encode(drawn), third.entry_id, third.concept)
    assert (added.rle, added.supersedes, added.concept) == (encode(drawn), None, DOG)
    assert not refused


@pytest.mark.parametrize(
    ("reviewer", "expected"),
    [("1", ["accept"]), ("bo@example.org", ["reject"]), ("2", ["reject"]), ("3", []), ("None", [])],
)
def test_of_several_annotations_the_reviewer_s_own_counts(grey, reviewer, expected):
    grey.write("label-studio")
    tasks = json.loads(grey.file.read_text())
    results = tasks[0]["predictions"][0]["result"]
    tasks[0]["annotations"] = [
        {"completed_by": 1, "result": [*results, choice(grey.entries[0], "accept")]},
        {"completed_by": {"id": 2, "email": "bo@example.org"}, "result": [*results, choice(grey.entries[0], "reject")]},
        {"result": []},
    ]
    grey.file.write_text(json.dumps(tasks))
    reviewed = grey.read(reviewer=reviewer)
    assert [decision.action for decision in reviewed.decisions] == expected
    assert reasons(reviewed) == ([] if expected else ["several_annotations"])


def test_what_only_others_annotated_is_missing_for_a_reviewer_whom_the_file_names(grey):
    grey.write("label-studio")
    tasks = json.loads(grey.file.read_text())
    for task, entry, author in zip(tasks, (grey.entries[0], grey.entries[3]), ("ana", "bo"), strict=True):
        results = [*task["predictions"][0]["result"], choice(entry, "accept")]
        task["annotations"] = [{"completed_by": author, "result": results}]
    grey.file.write_text(json.dumps(tasks))
    for reviewer, number in (("ana", 0), ("bo", 3)):
        reviewed = grey.read(reviewer=reviewer)
        assert [decision.entry_id for decision in reviewed.decisions] == [grey.entries[number].entry_id]
        assert reasons(reviewed) == ["missing_picture"]
    assert len(grey.read(reviewer="zoë").decisions) == 2  # whom no annotation names


def studio_edit(grey, change):
    grey.write("label-studio")
    tasks = json.loads(grey.file.read_text())
    change(tasks)
    grey.file.write_text(json.dumps(tasks))
    return grey.read()


def result(**more):
    return lambda tasks: tasks[0]["predictions"][0]["result"][0].update(more)


def value(**more):
    return lambda tasks: tasks[0]["predictions"][0]["result"][0]["value"].update(more)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tasks: tasks[0]["predictions"][0]["result"][0].pop("id"), ["missing_id", "missing_record"]),
        (result(id=["x"]), ["unknown_id", "missing_record"]),
        (result(id="Xk3_9aQ-0z"), ["unknown_id", "missing_record"]),
        (result(original_width=33), ["image_size"]),
        (result(original_height=None), ["image_size"]),
        (result(type="rectanglelabels"), ["no_record", "missing_record"]),
        (result(value=[]), ["rle_invalid"]),
        (value(format="png"), ["rle_invalid"]),
        (value(rle=[1, 2, 300]), ["rle_invalid"]),
        (value(rle=[True] * 20), ["rle_invalid"]),
        (value(rle="AAEC"), ["rle_invalid"]),
        (value(rle=[255] * 40), ["rle_size"]),
        (value(rle=[0, 0, 12, 0, 57, 27, 255]), ["rle_invalid"]),
        (value(brushlabels=["tiger"]), ["category_unknown"]),
        (value(brushlabels=["cat", "dog"]), ["category_unknown"]),
        (value(brushlabels=[["cat"]]), ["category_unknown"]),
        (lambda tasks: tasks[0]["data"].update(name="x.jpg"), ["unknown_picture", "missing_picture"]),
        (lambda tasks: tasks[0]["data"].update(name="/x.jpg"), ["unsafe_name", "missing_picture"]),
        (lambda tasks: tasks[0].update(data=None), ["unknown_picture", "missing_picture"]),
        (lambda tasks: tasks[0].update(predictions=[{"result": 7}]), ["no_record"]),
        (lambda tasks: tasks[0].update(annotations=[{"result": []}] * 2), ["several_annotations"]),
        (lambda tasks: tasks[0].update(annotations=[{"result": []}]), ["missing_record"] * 3),
        (lambda tasks: tasks[0].update(annotations=[{"result": [], "was_cancelled": True}]), []),
        (lambda tasks: tasks.insert(0, 7), ["no_record"]),
    ],
)
def test_edited_label_studio_records_are_refused(grey, change, expected):
    reviewed = studio_edit(grey, change)
    assert (reviewed.decisions, reviewed.entries) == ([], [])
    assert reasons(reviewed) == expected
