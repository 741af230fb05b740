"""The COCO index: order, bad records, accounts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders import coco_index
from builders.rows import read_rows, select
from dataengine.builder import SourceError
from dataengine.store.files import Folder

HUGE = "9" * 5000  # Python reads numbers of up to 4,300 digits
IMAGES = '"images": [{"id": 1}]'
CATEGORIES = '"categories": [{"id": 7, "name": "sky"}]'
SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]


def write(folder: Path, **sections) -> Path:
    document = {
        "images": [{"id": 2, "file_name": "b.jpg", "height": 9, "width": 8}, {"id": 1, "file_name": "a.jpg"}],
        "annotations": [],
        "categories": [{"id": 7, "name": "sky-other-merged"}],
    } | sections
    path = folder / "instances_x.json"
    path.write_text(json.dumps(document))
    return path


def annotation(number: int, image: int = 1, **changes) -> dict:
    return {"id": number, "image_id": image, "category_id": 7, "segmentation": SQUARE, "iscrowd": 0} | changes


def index_of(path: Path, key: str = "id") -> coco_index.Index:
    with path.open("rb") as file:
        return coco_index.build_index(file, path.name, path.parent / "index.arrow", key=key)


def test_rows_are_sorted_whatever_the_file_order(tmp_path):
    index = index_of(write(tmp_path, annotations=[annotation(5), annotation(9, 2), annotation(3)]))
    rows = list(read_rows(Folder(str(tmp_path / "index.arrow"))))
    assert [(int(r.key), [json.loads(a)["id"] for a in r.members]) for r in rows] == [(1, [3, 5]), (2, [9])]
    assert (index.images, index.annotations, index.bad) == (2, 3, [])
    assert [int(r.key) for r in read_rows(Folder(str(tmp_path / "index.arrow")), 1, 2)] == [2]
    again = index_of(write(tmp_path, annotations=[annotation(3), annotation(5), annotation(9, 2)]))
    assert again.fingerprint == index.fingerprint
    assert again.sha256 != index.sha256
    changed = index_of(write(tmp_path, annotations=[annotation(3), annotation(5), annotation(9, 2, iscrowd=1)]))
    assert changed.fingerprint != index.fingerprint


def test_rows_are_the_same_across_batches(tmp_path):
    images = [{"id": n} for n in range(1, 600)]
    index_of(write(tmp_path, images=images, annotations=[annotation(n, n) for n in range(1, 600)]))
    ids = [int(r.key) for r in read_rows(Folder(str(tmp_path / "index.arrow")), 250, 520)]
    assert ids == list(range(251, 521))
    wanted = {str(n) for n in range(1, 600, 2)} | {"777", "x"}
    assert select(tmp_path / "index.arrow", wanted, tmp_path / "some.arrow") == 300
    ids = [int(r.key) for r in read_rows(Folder(str(tmp_path / "some.arrow")), 250, 270)]
    assert ids == list(range(501, 541, 2))


def test_bad_records_are_named_and_the_counts_add_up(tmp_path):
    bad = [annotation(3), annotation(4, 99), annotation("x"), {"id": 6}, [1]]
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "again.jpg"}, {"id": None}]
    index = index_of(write(tmp_path, images=images, annotations=[annotation(3), *bad]))
    account = index.account.as_dict()
    assert account["quarantined"] == {
        "annotations": {"bad_field": 3, "duplicate_annotation": 1, "unknown_image": 1},
        "images": {"bad_field": 1, "duplicate_image": 1},
    }
    assert account["read"] == {"annotations": 5, "images": 2}
    index.account.check("index")
    assert (index.images, index.annotations) == (1, 1)
    assert "instances_x.json: annotation 4 (image 99): image 99 does not exist" in [str(b) for b in index.bad]
    assert any("again.jpg" in b.payload for b in index.bad)


def test_panoptic_annotations_are_known_by_their_image(tmp_path):
    segments = [{"image_id": 1, "segments_info": []}, {"image_id": 1, "segments_info": []}, {"segments_info": []}]
    index = index_of(write(tmp_path, annotations=segments), key="image_id")
    assert [b.reason for b in index.bad] == ["bad_field", "duplicate_annotation"]
    assert index.annotations == 1


def test_licences_and_namespace_are_read(tmp_path):
    licenses = [{"id": 1, "name": "CC", "url": "https://x"}, {"id": 2, "name": 3}, "x"]
    index = index_of(write(tmp_path, licenses=licenses, info={"image_namespace": "shapes"}))
    assert index.licenses == {"1": ["CC", "https://x"], "2": [None, None]}
    assert index.namespace == "shapes"
    assert index_of(write(tmp_path, info={"image_namespace": "../x"})).namespace is None


def test_a_namespace_is_a_short_plain_name():
    assert coco_index.checked_namespace("coco_2-x") == "coco_2-x"
    for text in ("", "A", "a/b", "a\n", "é", "a" * 41, None, 3):
        with pytest.raises(ValueError, match="must be 1 to 40"):
            coco_index.checked_namespace(text)


@pytest.mark.parametrize("key", ["id", "image_id"])
def test_records_that_python_cannot_hold_do_no_harm_to_the_others(tmp_path, key):
    path = tmp_path / "instances_x.json"
    deep = "[" * 5000 + "]" * 5000
    huge = f'{{"id": 3, "image_id": 1, "area": {HUGE}}}'
    path.write_text(
        f'{{"images": [{{"id": 1}}, {{"id": {HUGE}}}, {{"id": 2}}], {CATEGORIES}, "annotations": '
        f'[{{"id": 1, "image_id": 1}}, {huge}, {{"id": 4, "image_id": 1, "x": {deep}}}, {{"id": 5, "image_id": 2}}]}}'
    )
    index = index_of(path, key)
    assert [(b.unit, b.record, b.reason) for b in index.bad] == [
        ("images", "images[1]", "bad_json"),
        ("annotations", "annotations[1]", "bad_json"),
        ("annotations", "annotations[2]", "bad_json"),
    ]
    assert index.bad[1].payload == huge
    assert "annotations[1]: a number has too many digits" in str(index.bad[1])
    assert (index.images, index.annotations) == (2, 2)
    index.account.check("index")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"a": 1}', "no COCO file: images, annotations, categories missing; its keys are: a$"),
        ("{}", "its keys are: none"),
        ('{"images": [', "cut off"),
        ("[]", "JSON object"),
        (f'{{"info": {{}}, {IMAGES}, {CATEGORIES}}}', "annotations missing; its keys are: info, images, categories"),
        (f'{{{IMAGES}, {CATEGORIES}, "annotations": {{"1": []}}}}', "annotations must be a list; its keys are: images"),
        (f'{{"annotations": null, {IMAGES}, {CATEGORIES}}}', "annotations must be a list"),
        (f'{{{CATEGORIES}, "annotations": [], "images": {{"id": 1}}}}', "images must be a list"),
        (f'{{{IMAGES}, "annotations": [], "categories": {{"7": "sky"}}}}', "categories must be a list"),
        (f'{{"images": [], "annotations": [], {CATEGORIES}}}', "holds no image"),
        (f'{{{IMAGES}, "annotations": [], "categories": []}}', "holds no category"),
        (f'{{{IMAGES}, "annotations": [], "categories": [{HUGE}]}}', r"categories\[0\]: a number has too many digits"),
        (json.dumps(dict.fromkeys(range(1001), 1)), "more than 1,000 keys"),
        ('{"images": [{"id": 1}], "categories": [{"id": "x", "name": "a"}]}', r"categories\[0\]"),
        ('{"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "given twice"),
    ],
)
def test_unusable_files_stop_with_their_name(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=message) as caught:
        index_of(path)
    assert "bad.json" in str(caught.value)


def test_a_flood_of_bad_records_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_index, "MAX_BAD", 3)
    with pytest.raises(SourceError, match="more than 3 records"):
        index_of(write(tmp_path, annotations=[annotation(n, 99) for n in range(5)]))
