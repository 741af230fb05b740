"""The COCO index and its objects."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pycocotools import mask as oracle

from builders import coco
from dataengine.jsonstream import SourceError

FIXTURES = Path(os.environ.get("DATAENGINE_FIXTURES", Path(__file__).parents[2].parent / "shared" / "fixtures"))
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


def test_rows_are_sorted_whatever_the_file_order(tmp_path):
    path = write(tmp_path, annotations=[annotation(5), annotation(9, 2), annotation(3)])
    index = coco.build_index(path, tmp_path / "index.arrow")
    rows = list(coco.read_index(tmp_path / "index.arrow"))
    assert [(r.image_id, [json.loads(a)["id"] for a in r.annotations]) for r in rows] == [(1, [3, 5]), (2, [9])]
    assert (index.images, index.annotations, index.bad) == (2, 3, [])
    assert [r.image_id for r in coco.read_index(tmp_path / "index.arrow", 1, 2)] == [2]


def test_bad_records_are_named_and_the_counts_add_up(tmp_path):
    bad = [
        annotation(3),
        annotation(4, 99),
        annotation("x"),
        {"id": 6},
        [1],
    ]
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "again.jpg"}, {"id": None}]
    path = write(tmp_path, images=images, annotations=[annotation(3), *bad])
    index = coco.build_index(path, tmp_path / "index.arrow")
    assert index.reasons() == {"duplicate_annotation": 1, "duplicate_image": 1, "unknown_image": 1, "bad_field": 4}
    assert index.images + index.annotations + len(index.bad) == index.images_read + index.annotations_read == 9
    assert "instances_x.json: annotation 4: image 99 does not exist" in [str(b) for b in index.bad]
    assert any("again.jpg" in b.payload for b in index.bad)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"segmentation": [[1, 1, 2, 2, 3]]}, "polygon_odd", id="odd polygon"),
        pytest.param({"segmentation": [[1, 1, float("nan"), 2, 3, 3]]}, "polygon_not_finite", id="nan"),
        pytest.param({"segmentation": {"size": [9, 8], "counts": [3]}}, "rle_size", id="short rle"),
        pytest.param({"segmentation": None}, "segmentation_invalid", id="no segmentation"),
        pytest.param({"category_id": 8}, "unknown_category", id="unknown category"),
        pytest.param({"category_id": [7]}, "unknown_category", id="category is a list"),
    ],
)
def test_bad_annotations_leave_the_good_ones(tmp_path, changes, reason):
    path = write(tmp_path, annotations=[annotation(1), annotation(2, **changes)])
    coco.build_index(path, tmp_path / "index.arrow")
    row = next(coco.read_index(tmp_path / "index.arrow"))
    objects, bad = coco.objects_of(row, path.name, 9, 8, {7})
    assert [o.annotation_id for o in objects] == ["1"]
    assert [b.reason for b in bad] == [reason]
    assert str(bad[0]).startswith("instances_x.json: annotation 2 (image 1): ")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ('{"a": 1}', "no COCO instances file"), ('{"images": [', "cut off"), ("[]", "JSON object")],
)
def test_unusable_files_stop_with_their_name(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=message) as caught:
        coco.build_index(path, tmp_path / "index.arrow")
    assert "bad.json" in str(caught.value)


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "x/../../y", "..\\a.jpg", "C:\\a.jpg", "", None, "a\0b"])
def test_file_names_cannot_leave_the_folder(name):
    with pytest.raises(ValueError, match="file_name"):
        coco.safe_file_name(name)


def test_names():
    assert coco.safe_file_name("train2017/a.jpg") == "train2017/a.jpg"
    assert coco.image_key("coco", 139) == "coco/000000000139"
    names = ["sky-other-merged", "wall-brick", "water-other", "Banner", "playingfield", "food-other-merged"]
    assert [coco.clean_name(n) for n in names] == ["sky", "wall brick", "water", "banner", "playingfield", "food"]


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_published_file_is_accounted_for(tmp_path, split):
    path = FIXTURES / "coco" / "annotations" / f"instances_{split}.json"
    if not path.exists():
        pytest.skip(f"needs the COCO fixture at {path}")
    document = json.loads(path.read_text())
    index = coco.build_index(path, tmp_path / "index.arrow")
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    categories = {category.id for category in index.categories}
    found = {}
    for row in coco.read_index(tmp_path / "index.arrow"):
        objects, bad = coco.objects_of(row, path.name, *sizes[row.image_id], categories)
        assert bad == []
        found |= {int(o.annotation_id): o for o in objects}
    assert index.images == len(document["images"])
    assert sorted(found) == sorted(a["id"] for a in document["annotations"])
    for a in document["annotations"]:
        assert found[a["id"]].crowd == bool(a["iscrowd"])
        height, width = sizes[a["image_id"]]
        parts = oracle.frPyObjects(a["segmentation"], height, width)
        truth = oracle.merge(parts) if isinstance(parts, list) else parts
        assert found[a["id"]].rle == truth["counts"]
        assert found[a["id"]].area == oracle.area(truth)
