"""The COCO index: order, bad records, accounts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders import coco_index
from dataengine.builder import SourceError

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
    rows = list(coco_index.read_index(tmp_path / "index.arrow"))
    assert [(r.image_id, [json.loads(a)["id"] for a in r.annotations]) for r in rows] == [(1, [3, 5]), (2, [9])]
    assert (index.images, index.annotations, index.bad) == (2, 3, [])
    assert [r.image_id for r in coco_index.read_index(tmp_path / "index.arrow", 1, 2)] == [2]
    again = index_of(write(tmp_path, annotations=[annotation(3), annotation(5), annotation(9, 2)]))
    assert again.fingerprint == index.fingerprint
    assert again.sha256 != index.sha256
    changed = index_of(write(tmp_path, annotations=[annotation(3), annotation(5), annotation(9, 2, iscrowd=1)]))
    assert changed.fingerprint != index.fingerprint


def test_rows_are_the_same_across_batches(tmp_path):
    images = [{"id": n} for n in range(1, 600)]
    index_of(write(tmp_path, images=images, annotations=[annotation(n, n) for n in range(1, 600)]))
    ids = [r.image_id for r in coco_index.read_index(tmp_path / "index.arrow", 250, 520)]
    assert ids == list(range(251, 521))
    wanted = {str(n) for n in range(1, 600, 2)} | {"777", "x"}
    assert coco_index.select(tmp_path / "index.arrow", wanted, tmp_path / "some.arrow") == 300
    ids = [r.image_id for r in coco_index.read_index(tmp_path / "some.arrow", 250, 270)]
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"a": 1}', "no COCO file"),
        ('{"images": [', "cut off"),
        ("[]", "JSON object"),
        ('{"images": [{"id": 1}], "categories": [{"id": "x", "name": "a"}]}', "category number 0"),
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
