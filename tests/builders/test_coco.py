"""The COCO builder: files found, objects checked, samples and accounts."""

from __future__ import annotations

import datetime
import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as oracle

from builders import coco, panoptic
from builders.categories import choose_categories
from builders.pictures import numbered_key, safe_file_name
from builders.reading import clean_name
from dataengine import masks
from dataengine.builder import OptionError, SourceError, make_context
from dataengine.keyed import keyed
from dataengine.records import Account
from dataengine.sample import HUMAN, Lineage
from dataengine.store.files import Folder


def read_all(root: Path, folder: Path, task: str = "vgdseg", files=None, splits=(), seed: int = 0, **options):
    """All outcomes of a tree, and the report of its index."""
    parsed = coco.parse_options(task, options)
    (part,) = coco.locate(str(root), files or {}, splits, parsed)
    report = coco.index(part, parsed, folder / "index.arrow")
    context = make_context(coco, "coco", task, part, report, parsed, seed)
    return list(coco.read(context, Folder(str(folder / "index.arrow")), 0, report.rows)), report


def total(outcomes, report) -> Account:
    account = Account()
    account.add(report.account)
    for outcome in outcomes:
        outcome.account.check(outcome.group)
        account.add(outcome.account)
    account.check("all")
    return account


def test_one_region_for_each_category_present(tmp_path, coco_tree):
    tree = coco_tree(2)
    tree.annotations += [
        tree.annotations[0] | {"id": 500},
        tree.annotations[0] | {"id": 501, "iscrowd": 1, "segmentation": {"size": [24, 32], "counts": [0, 100, 668]}},
    ]
    tree.save()
    outcomes, report = read_all(tree.root, tmp_path)
    sample = outcomes[0].samples[0]
    assert sample.sample_id == "coco/train/coco/000000000001/vgdseg"
    assert [o.annotation_id for o in sample.objects] == ["10", "11", "500", "501"]
    assert {c.category_id: c.objects for c in sample.conditions} == {2: (0, 2), 3: (1,)}
    assert all(c.kind == "region" and c.exemplar == -1 for c in sample.conditions)
    assert [c.text for c in sample.conditions if c.category_id == 2] == ["kind 2"]
    assert total(outcomes, report).built == {"images": 2, "annotations": 6}


def test_an_image_with_nothing_to_show_is_filtered(tmp_path, coco_tree):
    tree = coco_tree(3)
    tree.annotations = [a for a in tree.annotations if a["image_id"] != 2]
    tree.annotations = [a | {"iscrowd": int(a["image_id"] == 3)} for a in tree.annotations]
    tree.save()
    outcomes, report = read_all(tree.root, tmp_path)
    assert [len(o.samples) for o in outcomes] == [1, 0, 0]
    assert total(outcomes, report).filtered == {"images": {"no_target": 2}, "annotations": {"no_target": 2}}
    outcomes, report = read_all(tree.root, tmp_path, "genseg", variants=["instance"])
    assert [len(o.samples) for o in outcomes] == [1, 1, 1]


def test_federated_pictures_are_asked_for_what_is_known_of_them(tmp_path, coco_tree):
    tree = coco_tree(4)
    lists = [([1], []), ([], [1]), ([3], [2]), ([], [2, 3])]  # pictures have 2 and 3, 1 and 3, 1 and 2, 2 and 3
    for image, (lacking, unfinished) in zip(tree.images, lists, strict=True):
        image |= {"neg_category_ids": lacking, "not_exhaustive_category_ids": unfinished}
    tree.save()
    options = {"variants": ["instance"], "categories": "all", "federated": True}
    outcomes, report = read_all(tree.root, tmp_path, "genseg", **options)
    asked = [{c.category_id: len(c.objects) for s in o.samples for c in s.conditions} for o in outcomes]
    assert asked == [{1: 0, 2: 1, 3: 1}, {3: 1}, {1: 1, 3: 0}, {}]
    assert [o.absent for o in outcomes] == [{1}, set(), {3}, set()]
    assert total(outcomes, report).filtered == {"annotations": {"not_exhaustive": 4}, "images": {"no_target": 1}}
    outcomes, _ = read_all(tree.root, tmp_path, "vgdseg", federated=True)
    assert [sorted(c.category_id for s in o.samples for c in s.conditions) for o in outcomes] == [[2, 3], [3], [1], []]
    outcomes, report = read_all(tree.root, tmp_path, "intseg", federated=True)
    assert [len(s.objects) for o in outcomes for s in o.samples] == [2, 2, 2, 2]
    assert total(outcomes, report).filtered == {}


@pytest.mark.parametrize("value", [None, [9], "1", [1.0]])
def test_federated_pictures_that_do_not_say_what_is_known_are_quarantined(tmp_path, coco_tree, value):
    tree = coco_tree(2)
    for image in tree.images:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    tree.images[0]["neg_category_ids"] = value
    tree.save()
    outcomes, report = read_all(tree.root, tmp_path, federated=True)
    assert [(len(o.samples), [b.reason for b in o.bad]) for o in outcomes] == [(0, ["bad_field"]), (1, [])]
    assert total(outcomes, report).built == {"images": 1, "annotations": 2}


def test_interactive_samples_hold_one_region_an_object(tmp_path, coco_tree):
    tree = coco_tree(1)
    tree.annotations = [tree.annotations[0] | {"id": n, "iscrowd": int(n == 9)} for n in range(1, 10)]
    tree.save()
    outcomes, report = read_all(tree.root, tmp_path, "intseg", max_regions=3)
    samples = outcomes[0].samples
    assert [s.sample_id.rsplit("/", 2)[1:] for s in samples] == [["intseg", "0"], ["intseg", "1"], ["intseg", "2"]]
    assert [[o.annotation_id for o in s.objects] for s in samples] == [["1", "2", "3"], ["4", "5", "6"], ["7", "8"]]
    assert all(c.objects == (i,) and c.exemplar == i for s in samples for i, c in enumerate(s.conditions))
    assert total(outcomes, report).filtered == {"annotations": {"crowd": 1}}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param(None, HUMAN, id="nothing"),
        pytest.param(
            {"entry_id": "e", "origin": "human", "round": 0, "reviewer": None}, HUMAN, id="people began with it"
        ),
        pytest.param({"origin": "human", "round": 2}, Lineage(origin="human", round=2), id="drawn in a review"),
        pytest.param(
            {
                "origin": "model",
                "labeler": "a\ud800",
                "revision": "1",
                "round": 3,
                "score": 1,
                "reviewer": "reviewer:ana",
            },
            Lineage(origin="model", labeler="a?", revision="1", round=3, score=1.0, reviewer="reviewer:ana"),
            id="of a model",
        ),
    ],
)
def test_the_lineage_of_an_annotation_is_kept(tmp_path, coco_tree, said, expected):
    tree = coco_tree(1)
    tree.annotations[1]["lineage"] = said
    tree.save()
    outcomes, _ = read_all(tree.root, tmp_path)
    assert [thing.lineage for thing in outcomes[0].samples[0].objects] == [HUMAN, expected]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"segmentation": [[1, 1, 2, 2, 3]]}, "polygon_odd", id="odd polygon"),
        pytest.param({"segmentation": [[1, 1, 2, 2]]}, "polygon_short", id="short polygon"),
        pytest.param({"segmentation": [[1, 1, float("nan"), 2, 3, 3]]}, "polygon_not_finite", id="nan"),
        pytest.param({"segmentation": [[1, 1, 90, 1, 90, 9]]}, "polygon_out_of_frame", id="out of frame"),
        pytest.param(
            {"segmentation": [[2, 2, 20, 20, 20, 2, 2, 20]]}, "polygon_self_intersecting", id="self-intersecting"
        ),
        pytest.param({"segmentation": {"size": [24, 32], "counts": [3]}}, "rle_size", id="short rle"),
        pytest.param({"segmentation": {"size": [24, 32], "counts": "0"}}, "rle_size", id="rle of nothing"),
        pytest.param({"segmentation": {"size": [24, 32], "counts": "\x01"}}, "rle_invalid", id="rle is no code"),
        pytest.param({"segmentation": None}, "segmentation_invalid", id="no segmentation"),
        pytest.param({"category_id": 8}, "unknown_category", id="unknown category"),
        pytest.param({"category_id": [7]}, "unknown_category", id="category is a list"),
        pytest.param({"iscrowd": "no"}, "bad_field", id="crowd is text"),
        pytest.param({"lineage": ["model"]}, "bad_lineage", id="lineage is a list"),
        pytest.param({"lineage": {"origin": ["model"]}}, "bad_lineage", id="origin is a list"),
        pytest.param({"lineage": {"origin": "a robot"}}, "bad_lineage", id="unknown origin"),
        pytest.param({"lineage": {"origin": "model", "labeler": 7}}, "bad_lineage", id="labeler is a number"),
        pytest.param({"lineage": {"origin": "model", "round": 1 << 15}}, "bad_lineage", id="too many rounds"),
        pytest.param({"lineage": {"origin": "model", "round": True}}, "bad_lineage", id="round is a flag"),
        pytest.param({"lineage": {"origin": "model", "score": float("nan")}}, "bad_lineage", id="score is nan"),
        pytest.param({"lineage": {"origin": "model", "score": 10**400}}, "bad_lineage", id="score is huge"),
    ],
)
def test_bad_annotations_leave_the_good_ones(tmp_path, coco_tree, changes, reason):
    tree = coco_tree(1)
    tree.annotations[1] |= changes
    tree.save()
    outcomes, report = read_all(tree.root, tmp_path)
    (outcome,) = outcomes
    assert [o.annotation_id for o in outcome.samples[0].objects] == ["10"]
    assert [b.reason for b in outcome.bad] == [reason]
    assert str(outcome.bad[0]).startswith("instances_train.json: annotation 11 (image 1): ")
    assert '"id": 11' in outcome.bad[0].payload
    assert total(outcomes, report).quarantined == {"annotations": {reason: 1}}


def cmyk(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        file = io.BytesIO()
        image.convert("CMYK").save(file, "JPEG")
    return file.getvalue()


def rotated(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        file = io.BytesIO()
        image.save(file, "JPEG", exif=exif)
    return file.getvalue()


def deep(data: bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((24, 32), np.uint16)).save(file, "PNG")
    return file.getvalue()


def wider(data: bytes) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (33, 24)).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(lambda data: data[:-40], "image_truncated", id="truncated"),
        pytest.param(lambda data: b"", "image_unreadable", id="empty"),
        pytest.param(lambda data: b"<html>", "image_unreadable", id="no image"),
        pytest.param(wider, "image_size", id="another size"),
        pytest.param(cmyk, "image_mode", id="cmyk"),
        pytest.param(deep, "image_mode", id="16 bit"),
        pytest.param(rotated, "image_rotated", id="rotated"),
        pytest.param(None, "image_missing", id="missing"),
        pytest.param("pipe", "image_unreadable", id="pipe"),
    ],
)
def test_bad_pictures_are_quarantined_with_their_annotations_counted(tmp_path, coco_tree, damage, reason):
    tree = coco_tree(2)
    path = tree.root / "train" / "2.jpg"
    if callable(damage):
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    if damage == "pipe":
        os.mkfifo(path)
    outcomes, report = read_all(tree.root, tmp_path)
    assert [len(o.samples) for o in outcomes] == [1, 0]
    (bad,) = outcomes[1].bad
    assert (bad.reason, bad.group, bad.unit) == (reason, "2", "images")
    assert str(bad).startswith("instances_train.json: image 2: ")
    assert '"file_name": "2.jpg"' in bad.payload
    account = total(outcomes, report)
    assert account.filtered == {"annotations": {"image_quarantined": 2}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"file_name": "../../etc/passwd"}, "unsafe_file_name", id="climbs out"),
        pytest.param({"height": 0}, "bad_field", id="no height"),
        pytest.param({"width": "32"}, "bad_field", id="width is text"),
        pytest.param({"width": 1 << 40}, "bad_field", id="huge"),
    ],
)
def test_bad_image_records_are_quarantined(tmp_path, coco_tree, changes, reason):
    tree = coco_tree(1)
    tree.images[0] |= changes
    tree.save()
    (outcome,), _ = read_all(tree.root, tmp_path)
    assert [b.reason for b in outcome.bad] == [reason]


def test_a_lost_image_folder_stops(tmp_path, coco_tree):
    tree = coco_tree(1)
    parsed = coco.parse_options("vgdseg", {})
    (part,) = coco.locate(str(tree.root), {}, (), parsed)
    report = coco.index(part, parsed, tmp_path / "index.arrow")
    for path in (tree.root / "train").iterdir():
        path.unlink()
    (tree.root / "train").rmdir()
    context = make_context(coco, "coco", "vgdseg", part, report, parsed, 0)
    with pytest.raises(SourceError, match="the image folder is gone"):
        list(coco.read(context, Folder(str(tmp_path / "index.arrow")), 0, 1))


def test_text_that_is_no_unicode_does_no_harm(tmp_path, coco_tree):
    tree = coco_tree(2)
    tree.categories[1]["name"] = "odd \ud800 <P-stuff>"
    tree.images[1]["file_name"] = "\ud800.jpg"
    tree.save()
    outcomes, report = read_all(tree.root, tmp_path)
    assert report.categories[1].text == "odd ? ‹p›"
    assert "odd ? ‹p›" in [c.text for c in outcomes[0].samples[0].conditions]
    assert [b.reason for b in outcomes[1].bad] == ["unsafe_file_name"]


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "x/../../y", "..\\a.jpg", "C:\\a.jpg", "", None, "a\0b"])
def test_file_names_cannot_leave_the_folder(name):
    with pytest.raises(ValueError, match="file_name"):
        safe_file_name(name)


def test_a_category_without_a_name_is_refused(tmp_path, coco_tree):
    tree = coco_tree(1)
    tree.categories[1]["name"] = " - "
    tree.save()
    with pytest.raises(SourceError, match="category 2 has no name that could be written"):
        read_all(tree.root, tmp_path)


def test_names():
    assert safe_file_name("train2017/a.jpg") == "train2017/a.jpg"
    assert numbered_key("coco", 139) == "coco/000000000139"
    names = [
        "sky-other-merged",
        "wall-brick",
        "water-other",
        "Banner",
        "playingfield",
        "food-other-merged",
        "a<p>",
        "-other",
        "a\nb ",
    ]
    assert [clean_name(n) for n in names] == [
        "sky",
        "wall brick",
        "water",
        "banner",
        "playingfield",
        "food",
        "a‹p›",
        "other",
        "a b",
    ]


def test_pictures_of_another_split_are_not_taken(tmp_path, coco_tree):
    tree = coco_tree(1)
    options = coco.parse_options("vgdseg", {})
    (tree.root / "images").mkdir()
    (tree.root / "train").rename(tree.root / "images" / "other")
    tree.file.with_name("instances_other.json").write_bytes(tree.file.read_bytes())
    with pytest.raises(SourceError, match="coco train: the images folder is missing"):
        coco.locate(str(tree.root), {}, ("train",), options)
    (tree.root / "images" / "other").rename(tree.root / "images" / ".thumbnails")
    (part,) = coco.locate(str(tree.root), {}, ("train",), options)  # one folder for all
    assert part.files["images"].endswith("/images")


def test_trees_are_found_in_both_layouts_and_by_name(tmp_path, coco_tree):
    tree = coco_tree(1)
    options = coco.parse_options("vgdseg", {})
    (tree.root / "images").mkdir()
    (tree.root / "train").rename(tree.root / "images" / "train")
    (part,) = coco.locate(str(tree.root), {}, (), options)
    assert part.files["images"].endswith("images/train")
    files = {"annotations": str(tree.file), "images": str(tree.root / "images" / "train")}
    (part,) = coco.locate(None, files, ("mine",), options)
    assert (part.split, dict(part.files)) == ("mine", files)


@pytest.mark.parametrize(
    ("root", "files", "splits", "message"),
    [
        (True, {}, ("val",), r"instances_val.json is missing; there are train"),
        (True, {"images": "/nowhere"}, (), "images folder is missing .looked for: /nowhere"),
        (True, {"masks": "/x"}, (), "no file role 'masks'"),
        (False, {}, (), "no folder is given"),
        (True, {"annotations": "/nowhere.json"}, (), "annotations file is missing"),
    ],
)
def test_missing_files_are_named(coco_tree, root, files, splits, message):
    tree = coco_tree(1)
    with pytest.raises(SourceError, match=message):
        coco.locate(str(tree.root) if root else None, files, splits, coco.parse_options("vgdseg", {}))


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("gcgseg", {}, "not gcgseg"),
        ("vgdseg", {"varaints": []}, "no option 'varaints'"),
        ("genseg", {"categories": "some"}, "categories: Input should be 'all'"),
        ("genseg", {"variants": ["instance", "panoptic"]}, "use two sources"),
        ("genseg", {"variants": []}, "at least 1"),
        ("intseg", {"max_regions": 0}, "greater than or equal to 1, not 0"),
        ("intseg", {"max_regions": "9"}, "valid integer, not '9'"),
        ("intseg", {"max_regions": True}, "valid integer, not True"),
        ("genseg", {"federated": True}, "panoptic files say nothing of it"),
        ("genseg", {"variants": 5}, "variants: Input should be a valid tuple, not 5"),
        ("genseg", {"variants": "instance"}, "valid tuple, not 'instance'"),
        ("genseg", {"variants": ["panoptic", "panoptic"]}, "named twice"),
        ("vgdseg", {"image_namespace": "a/../b"}, "image_namespace: image_namespace .a"),
        ("vgdseg", {"image_namespace": datetime.date(2020, 1, 1)}, "valid string"),
    ],
)
def test_options_are_checked(task, options, message):
    with pytest.raises(OptionError, match=message):
        coco.parse_options(task, options)


def test_categories_are_sampled_as_published():
    every = list(range(10, 30))
    lists = [choose_categories({12, 15}, every, "sampled", -1, keyed(n, "s")) for n in range(2000)]
    whole = sum(len(c) == 20 for c in lists) / 2000
    assert 0.5 <= whole < 0.58  # one half, and one in 19 of the other half
    rest = Counter(len(c) - 2 for c in lists if len(c) < 20)
    assert set(rest) == set(range(18))
    assert max(rest.values()) < 2 * min(rest.values())
    assert all({12, 15} <= set(c) <= set(every) and len(set(c)) == len(c) for c in lists)
    assert any(c != sorted(c) for c in lists)
    assert choose_categories({12}, every, "all", -1, keyed(0)) == every
    assert choose_categories({15, 12}, every, "positives", -1, keyed(0)) == [12, 15]
    assert choose_categories(set(), every, "positives", -1, keyed(0)) == every
    few = [choose_categories({12}, every, "sampled", 3, keyed(n)) for n in range(200)]
    assert {len(c) for c in few} == {1, 2, 3, 4}
    assert min(len(choose_categories(set(), every, "sampled", 3, keyed(n))) for n in range(50)) == 1


def test_choice_of_categories_follows_seed_and_split(tmp_path, coco_tree):
    tree = coco_tree(6)

    def lists(split, seed=0, **options):
        (tree.root / "annotations" / f"instances_{split}.json").write_bytes(tree.file.read_bytes())
        files = {"images": str(tree.root / "train")}
        found, _ = read_all(
            tree.root, tmp_path, "genseg", files, splits=(split,), seed=seed, variants=["instance"], **options
        )
        return [[c.category_id for c in o.samples[0].conditions] for o in found]

    assert lists("val") == [[1, 2, 3]] * 6
    assert lists("train") == lists("train") != lists("train", seed=1)
    assert lists("val", categories="positives") == [[2, 3], [1, 3], [1, 2]] * 2


def png(ids: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def panoptic_tree(tree, ids: np.ndarray, segments: list[dict]) -> None:
    folder = tree.root / "annotations" / "panoptic_train"
    folder.mkdir(exist_ok=True)
    (folder / "1.png").write_bytes(png(ids))
    document = {
        "images": tree.images,
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky-merged", "isthing": 0}],
    }
    (tree.root / "annotations" / "panoptic_train.json").write_text(json.dumps(document))


IDS = np.zeros((24, 32), np.int64)
IDS[2:9, 3:12] = 70000
IDS[10:20, 3:12] = 300
IDS[:, 20:] = 5
SEGMENTS = [
    {"id": 70000, "category_id": 1, "area": 63, "iscrowd": 0},
    {"id": 300, "category_id": 1, "area": 90, "iscrowd": 1},
    {"id": 5, "category_id": 2, "area": 288, "iscrowd": 0},
]


def test_panoptic_pictures_become_two_variants(tmp_path, coco_tree):
    tree = coco_tree(1)
    panoptic_tree(tree, IDS, SEGMENTS)
    outcomes, report = read_all(tree.root, tmp_path, "genseg", categories="all")
    pan, sem = outcomes[0].samples
    assert [(o.annotation_id, o.crowd, o.area) for o in pan.objects] == [
        ("5", False, 288),
        ("300", True, 90),
        ("70000", False, 63),
    ]
    assert [(c.text, c.objects) for c in pan.conditions] == [("cat", (2,)), ("sky", (0,))]
    assert [(o.area, o.crowd) for o in sem.objects] == [(153, False), (288, False)]
    assert [c.objects for c in sem.conditions] == [(0,), (1,)]
    assert (masks.decode(pan.ignore, 24, 32) == (IDS == 0)).all()
    assert (masks.decode(pan.objects[2].rle, 24, 32) == (IDS == 70000)).all()
    assert [s.variant for s in (pan, sem)] == ["panoptic", "semantic"]
    assert not report.categories[1].is_thing
    assert total(outcomes, report).built == {"images": 1, "annotations": 1, "segments": 3}


@pytest.mark.parametrize(
    ("ids", "segments", "unit", "reason"),
    [
        pytest.param(IDS, SEGMENTS[:2], "images", "unknown_segment", id="id without segment"),
        pytest.param(
            IDS, [*SEGMENTS, {"id": 9, "category_id": 1}], "segments", "empty_mask", id="segment without pixel"
        ),
        pytest.param(IDS, [SEGMENTS[0] | {"area": 64}, *SEGMENTS[1:]], "segments", "segment_area", id="area is off"),
        pytest.param(
            IDS, [SEGMENTS[0] | {"category_id": 9}, *SEGMENTS[1:]], "segments", "unknown_category", id="class"
        ),
        pytest.param(IDS, [SEGMENTS[0], *SEGMENTS], "images", "duplicate_segment", id="id twice"),
        pytest.param(IDS[:, 1:], SEGMENTS, "images", "segments_size", id="another size"),
        pytest.param(IDS, None, "images", "bad_field", id="no segments"),
    ],
)
def test_bad_panoptic_records(tmp_path, coco_tree, ids, segments, unit, reason):
    tree = coco_tree(1)
    panoptic_tree(tree, ids, segments)
    outcomes, report = read_all(tree.root, tmp_path, "genseg")
    account = total(outcomes, report)
    assert account.quarantined == {unit: {reason: 1}}
    assert account.read["segments"] == len(segments or [])


def test_pixels_of_a_refused_segment_count_neither_way(tmp_path, coco_tree):
    tree = coco_tree(1)
    panoptic_tree(tree, IDS, [SEGMENTS[0] | {"category_id": 9}, *SEGMENTS[1:]])
    for sample in read_all(tree.root, tmp_path, "genseg")[0][0].samples:
        assert (masks.decode(sample.ignore, 24, 32) == np.isin(IDS, (0, 70000))).all()


def test_png_runs_equal_the_raster():
    ids = np.random.default_rng(0).integers(0, 3, (17, 13)) * 70001
    found = panoptic.masks_from_runs(*panoptic.runs_from_png(png(ids), 17, 13), 17, 13)
    rles = {name: rle for name, (rle, _) in found.items()}
    for name in (0, 70001, 140002):
        assert rles[name] == oracle.encode(np.asfortranarray((ids == name).astype(np.uint8)))["counts"]


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_published_instances_are_accounted_for(tmp_path, fixtures, split):
    document = json.loads((fixtures / "coco" / "annotations" / f"instances_{split}.json").read_text())
    outcomes, report = read_all(fixtures / "coco", tmp_path, splits=(split,))
    found = {int(o.annotation_id): o for outcome in outcomes for s in outcome.samples for o in s.objects}
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    assert sorted(found) == sorted(a["id"] for a in document["annotations"])
    assert total(outcomes, report).read == {"images": len(sizes), "annotations": len(found)}
    for a in document["annotations"]:
        assert found[a["id"]].crowd == bool(a["iscrowd"])
        height, width = sizes[a["image_id"]]
        parts = oracle.frPyObjects(a["segmentation"], height, width)
        truth = oracle.merge(parts) if isinstance(parts, list) else parts
        assert found[a["id"]].rle == truth["counts"]
        assert found[a["id"]].area == oracle.area(truth)
    licenses = {entry["id"]: entry["name"] for entry in document["licenses"]}
    by_key = {numbered_key("coco", image["id"]): licenses[image["license"]] for image in document["images"]}
    for outcome in outcomes:
        for sample in outcome.samples:
            assert sample.license.name == by_key[sample.image_key]


def test_published_panoptic_is_accounted_for(tmp_path, fixtures):
    folder = fixtures / "panoptic"
    files = {
        "annotations": str(folder / "panoptic_examples.json"),
        "images": str(folder / "input_images"),
        "segments": str(folder / "panoptic_examples"),
    }
    outcomes, report = read_all(folder, tmp_path, "genseg", files, ("val2017",), categories="all")
    document = json.loads((folder / "panoptic_examples.json").read_text())
    detection = json.loads((folder / "panoptic_coco_detection_format.json").read_text())["annotations"]
    truth = Counter(
        (a["image_id"], a["category_id"], oracle.area(a["segmentation"]), a["segmentation"]["counts"])
        for a in detection
    )
    found = Counter(
        (int(o.group), thing.category_id, thing.area, thing.rle.decode())
        for o in outcomes
        for thing in o.samples[0].objects
    )
    assert found == truth
    assert len(report.categories) == 133
    assert total(outcomes, report).built["segments"] == sum(len(a["segments_info"]) for a in document["annotations"])
