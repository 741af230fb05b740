"""The LVIS builder: what is known of a picture is asked for and nothing else; names; pictures found by URL."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as oracle

from builders import lvis
from dataengine import conversation, invariants, masks
from dataengine.builder import OptionError, SourceError
from dataengine.keyed import keyed
from dataengine.sample import Prompt, Sample

HEIGHT, WIDTH = 24, 32
NAMES = ("cat", "bus_(vehicle)", "bow_(weapon)", "bow_(decorative_ribbons)", "water_bottle", "zebra")


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def square(x: int, y: int, size: int = 6) -> list[list[int]]:
    return [[x, y, x + size, y, x + size, y + size, x, y + size]]


class LvisTree:
    """An LVIS file over COCO pictures of 32 x 24 px, which can be edited and saved.

    Picture 1 has cats and a bus and no bow; 2 has bottles, not all of them, and a cat; 3 has nothing but two
    categories that are known to be absent; 4, of val2017, has a zebra and nothing is known to be absent.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "lvis").mkdir(parents=True)
        self.images: list[dict[str, Any]] = [
            self.picture(1, "train2017", neg=[3, 6]),
            self.picture(2, "train2017", neg=[2], unfinished=[5]),
            self.picture(3, "train2017", neg=[1, 4]),
            self.picture(4, "val2017"),
        ]
        self.annotations: list[dict[str, Any]] = [
            self.annotation(11, 1, 1, square(2, 2)),
            self.annotation(12, 1, 1, square(12, 2)),
            self.annotation(13, 1, 2, square(22, 12)),
            self.annotation(21, 2, 5, square(2, 12)),
            self.annotation(22, 2, 1, square(12, 12)),
            self.annotation(41, 4, 6, [*square(2, 2), *square(20, 10)]),
        ]
        self.categories = [
            {
                "id": number,
                "name": name,
                "synonyms": [name],
                "synset": "x.n.01",
                "def": "a thing",
                "frequency": "rcf"[number % 3],
            }
            for number, name in enumerate(NAMES, start=1)
        ]
        self.save()

    def picture(self, number: int, folder: str, neg: Any = (), unfinished: Any = ()) -> dict[str, Any]:
        path = self.root / "coco" / folder / f"{number:012d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
        return {
            "id": number,
            "height": HEIGHT,
            "width": WIDTH,
            "license": 1,
            "coco_url": f"http://images.cocodataset.org/{folder}/{number:012d}.jpg",
            "neg_category_ids": list(neg),
            "not_exhaustive_category_ids": list(unfinished),
        }

    @staticmethod
    def annotation(number: int, image: int, category: int, segmentation: Any) -> dict[str, Any]:
        return {"id": number, "image_id": image, "category_id": category, "area": 36.0, "segmentation": segmentation}

    def save(self, split: str = "train") -> Path:
        document = {
            "info": {"version": "v1.0"},
            "licenses": [{"id": 1, "name": "CC", "url": "https://example.org/cc"}],
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
        }
        path = self.root / "lvis" / f"lvis_v1_{split}.json"
        path.write_text(json.dumps(document))
        return path


@pytest.fixture
def tree(tmp_path: Path) -> LvisTree:
    return LvisTree(tmp_path / "data")


def asked(sample: Sample) -> dict[str, int]:
    """Number of objects of each category that is asked for."""
    return {condition.text: len(condition.objects) for condition in sample.conditions}


def holds(sample: Sample) -> None:
    """Give objects a prompt where regions need one, render, and check every invariant."""
    if sample.task != "genseg":
        point = Prompt(kind="point", profile="strict", version=1, status="ok", points=(1.5, 1.5), parts=(1,))
        objects = tuple(replace(thing, prompts=(point,)) for thing in sample.objects)
        conditions = tuple(replace(c, exemplar=c.objects[0]) for c in sample.conditions)
        sample = replace(sample, objects=objects, conditions=conditions)
    invariants.check(conversation.render(sample, keyed(0, sample.sample_id, "conversation", conversation.VERSION)))


def test_only_what_is_known_of_a_picture_is_asked_for(tree, read_source):
    (reading,) = read_source(lvis, tree.root / "lvis", "genseg", categories="all")
    assert [asked(sample) for sample in reading.samples] == [
        {"cat": 2, "bus": 1, "bow (weapon)": 0, "zebra": 0},
        {"cat": 1, "bus": 0},
        {"cat": 0, "bow (decorative ribbons)": 0},
        {"zebra": 1},
    ]
    assert [sample.sample_id for sample in reading.samples][:1] == ["lvis/train/coco/000000000001/genseg/instance"]
    assert {(sample.variant, sample.ignore) for sample in reading.samples} == {("instance", None)}
    assert reading.account.as_dict() == {
        "read": {"annotations": 6, "images": 4},
        "built": {"annotations": 5, "images": 4},
        "quarantined": {},
        "filtered": {"annotations": {"not_exhaustive": 1}},
    }
    for sample in reading.samples:
        holds(sample)


def test_unfinished_categories_can_be_kept(tree, read_source):
    (reading,) = read_source(lvis, tree.root / "lvis", "genseg", categories="all", not_exhaustive="keep")
    assert asked(reading.samples[1]) == {"cat": 1, "bus": 0, "water bottle": 1}
    assert reading.account.filtered == {}


def test_the_choice_never_leaves_what_is_known(tree, read_source):
    """Over many seeds: every known category is asked for at some time, no other ever."""
    seen = Counter()
    for seed in range(40):
        (reading,) = read_source(lvis, tree.root / "lvis", "genseg", seed=seed)
        sample = reading.samples[0]
        assert {"cat", "bus"} <= set(asked(sample)) <= {"cat", "bus", "bow (weapon)", "zebra"}
        assert 1 <= len(reading.samples[2].conditions) <= 2
        seen.update(set(asked(sample)))
    assert 0 < seen["zebra"] < 40
    (reading,) = read_source(lvis, tree.root / "lvis", "genseg", categories="positives")
    assert asked(reading.samples[0]) == {"cat": 2, "bus": 1}
    assert asked(reading.samples[2]) == {"cat": 0, "bow (decorative ribbons)": 0}  # nothing else is known
    first, second = (read_source(lvis, tree.root / "lvis", "genseg", seed=3)[0].samples for _ in range(2))
    assert first == second


def test_a_category_with_a_refused_annotation_is_unknown(tree, read_source):
    """Asking for cats would teach to miss the one whose outline is lost; that a zebra is absent is in doubt as well."""
    tree.annotations[0]["segmentation"] = [[1, 2, 3]]
    tree.annotations.append(tree.annotation(14, 1, 6, []))
    tree.save()
    (reading,) = read_source(lvis, tree.root / "lvis", "genseg", categories="all")
    assert asked(reading.samples[0]) == {"bus": 1, "bow (weapon)": 0}
    assert reading.account.quarantined == {"annotations": {"polygon_odd": 1, "segmentation_invalid": 1}}
    assert reading.account.filtered == {"annotations": {"not_exhaustive": 2}}
    assert [b.record for b in reading.bad] == ["annotation 11 (image 1)", "annotation 14 (image 1)"]


def test_regions_show_finished_categories(tree, read_source):
    (reading,) = read_source(lvis, tree.root / "lvis", "vgdseg")
    assert [asked(sample) for sample in reading.samples] == [{"cat": 2, "bus": 1}, {"cat": 1}, {"zebra": 1}]
    assert reading.account.filtered == {"images": {"no_target": 1}, "annotations": {"not_exhaustive": 1}}
    (reading,) = read_source(lvis, tree.root / "lvis", "vgdseg", not_exhaustive="keep")
    assert [asked(sample) for sample in reading.samples][1] == {"cat": 1, "water bottle": 1}
    for sample in reading.samples:
        holds(sample)


def test_a_marked_object_needs_no_finished_category(tree, read_source):
    (reading,) = read_source(lvis, tree.root / "lvis", "intseg", max_regions=2)
    assert [[o.annotation_id for o in sample.objects] for sample in reading.samples] == [
        ["11", "12"],
        ["13"],
        ["21", "22"],
        ["41"],
    ]
    assert reading.account.built == {"images": 3, "annotations": 6}
    for sample in reading.samples:
        holds(sample)


def test_masks_are_what_the_polygons_fill(tree, read_source):
    (reading,) = read_source(lvis, tree.root / "lvis", "genseg")
    found = {o.annotation_id: o for sample in reading.samples for o in sample.objects}
    for annotation in tree.annotations:
        if str(annotation["id"]) not in found:
            continue
        truth = oracle.decode(oracle.merge(oracle.frPyObjects(annotation["segmentation"], HEIGHT, WIDTH))).astype(bool)
        thing = found[str(annotation["id"])]
        assert (masks.decode(thing.rle, HEIGHT, WIDTH) == truth).all()
        assert thing.area == truth.sum() == 36 * len(annotation["segmentation"])


def test_licences_and_keys(tree, read_source):
    (reading,) = read_source(lvis, tree.root / "lvis", "genseg", images="reference")
    assert [sample.image_key for sample in reading.samples] == [f"coco/{n:012d}" for n in (1, 2, 3, 4)]
    assert list(lvis.image_keys(reading.context, reading.index)) == [s.image_key for s in reading.samples]
    assert reading.samples[0].license.name == "CC"
    assert reading.samples[3].image.path.endswith("coco/val2017/000000000004.jpg")
    target = reading.index.path.with_name("some.arrow")
    assert lvis.select(reading.index.path, {"1", "4"}, target) == 2
    assert reading.report.extra["frequency"]["1"] == "c"


# --- names -----------------------------------------------------------------------------------------------------------


def test_qualifiers_stay_where_the_word_alone_is_ambiguous():
    """Names as in lvis_v1_train.json, the odd ones among them."""
    records = [
        {"id": 1, "name": "fish", "synonyms": ["fish"]},
        {"id": 2, "name": "fish_(food)", "synonyms": ["fish_(food)"]},
        {"id": 3, "name": "bow_(weapon)", "synonyms": ["bow_(weapon)"]},
        {"id": 4, "name": "bow_(decorative_ribbons)", "synonyms": ["bow_(decorative_ribbons)"]},
        {
            "id": 5,
            "name": "monitor_(computer_equipment) computer_monitor",
            "synonyms": ["monitor_(computer_equipment)"],
        },
        {
            "id": 6,
            "name": "bus_(vehicle)",
            "synonyms": ["bus_(vehicle)", "autobus", "charabanc", "motor_bus", "autobus"],
        },
        {"id": 7, "name": "Christmas_tree", "synonyms": ["Christmas_tree"]},
        {"id": 8, "name": "hot-air_balloon", "synonyms": "none"},
        {"id": 9, "name": "cap_(headwear)", "synonyms": ["cap_(headwear)"]},
        {"id": 10, "name": "bottle_cap", "synonyms": ["bottle_cap", "cap_(container_lid)", "fish", 5]},
    ]
    found = {c.id: (c.text, c.synonyms) for c in lvis.categories_of(records)}
    assert found == {
        1: ("fish", ()),
        2: ("fish (food)", ()),
        3: ("bow (weapon)", ()),
        4: ("bow (decorative ribbons)", ()),
        5: ("monitor", ()),
        6: ("bus", ("autobus", "charabanc", "motor bus")),
        7: ("christmas tree", ()),
        8: ("hot-air balloon", ()),
        9: ("cap (headwear)", ()),
        10: ("bottle cap", ("cap (container lid)",)),
    }


def test_names_that_would_be_one_stay_as_published():
    found = lvis.categories_of([{"id": 1, "name": "a_b"}, {"id": 2, "name": "a b"}, {"id": 3, "name": "c<p>\ud800"}])
    assert [c.text for c in found] == ["a_b", "a b", "c‹p›?"]
    assert found[2].name == "c<p>?"


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_are_found_in_their_layouts(tree, read_source):
    options = lvis.parse_options("genseg", {})
    (part,) = lvis.locate(str(tree.root / "lvis"), {}, (), options)
    assert (part.split, Path(part.files["images"])) == ("train", tree.root / "coco")
    (tree.root / "coco" / "annotations").mkdir()
    os.link(tree.save("val"), tree.root / "coco" / "annotations" / "lvis_v1_val.json")
    os.link(tree.save(), tree.root / "coco" / "annotations" / "lvis_v1_train_norare.json")
    (part,) = lvis.locate(str(tree.root / "coco"), {}, (), options)  # variants only where they are named
    assert (part.split, Path(part.files["images"])) == ("val", tree.root / "coco")
    (part,) = lvis.locate(str(tree.root / "coco"), {}, ("train_norare",), options)
    assert part.split == "train_norare"
    files = {"annotations": str(tree.save()), "images": str(tree.root / "coco" / "train2017")}
    (reading,) = read_source(lvis, None, "genseg", files=files, splits=("mine",))
    assert [sample.split for sample in reading.samples] == ["mine"] * 3
    assert [b.reason for b in reading.bad] == ["image_missing"]


@pytest.mark.parametrize(
    ("root", "files", "splits", "message"),
    [
        (True, {}, ("val",), "no split val here; there are train"),
        (True, {"images": "/nowhere"}, (), "images folder is missing"),
        (True, {"masks": "/x"}, (), "no file role 'masks'"),
        (False, {}, (), "no folder is given"),
        (True, {"annotations": "/x/lvis_v1_val.json"}, ("a", "b"), "one annotation file is one split"),
    ],
)
def test_missing_files_are_named(tree, root, files, splits, message):
    with pytest.raises(SourceError, match=message):
        lvis.locate(str(tree.root / "lvis") if root else None, files, splits, lvis.parse_options("genseg", {}))


def test_pictures_of_the_2014_release_are_found(tree, read_source):
    (tree.root / "coco" / "train2014").mkdir()
    (tree.root / "coco" / "train2017" / f"{1:012d}.jpg").rename(
        tree.root / "coco" / "train2014" / f"COCO_train2014_{1:012d}.jpg"
    )
    (reading,) = read_source(lvis, tree.root / "lvis", "genseg", images="reference")
    assert reading.samples[0].image.path.endswith(f"train2014/COCO_train2014_{1:012d}.jpg")
    assert reading.samples[0].image_key == f"coco/{1:012d}"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"coco_url": None}, "unsafe_file_name", id="no url"),
        pytest.param({"coco_url": 5}, "unsafe_file_name", id="url is a number"),
        pytest.param({"coco_url": "http://x/../passwd"}, "unsafe_file_name", id="climbs out"),
        pytest.param({"coco_url": "http://x"}, "unsafe_file_name", id="no path"),
        pytest.param({"coco_url": f"http://x/train2017/{2:012d}.jpg"}, "bad_field", id="url of another picture"),
        pytest.param({"neg_category_ids": None}, "bad_field", id="no negatives"),
        pytest.param({"neg_category_ids": [[1]]}, "bad_field", id="negatives are lists"),
        pytest.param({"neg_category_ids": [1.0]}, "bad_field", id="negative is a float"),
        pytest.param({"not_exhaustive_category_ids": [99]}, "bad_field", id="unknown category"),
        pytest.param({"not_exhaustive_category_ids": {"1": 2}}, "bad_field", id="an object"),
        pytest.param({"height": "24"}, "bad_field", id="height is text"),
        pytest.param({"width": 33}, "image_size", id="another size"),
    ],
)
def test_bad_pictures_are_quarantined_with_their_annotations_counted(tree, read_source, changes, reason):
    tree.images[0] |= changes
    tree.save()
    (reading,) = read_source(lvis, tree.root / "lvis", "genseg")
    assert [(b.reason, b.group) for b in reading.bad] == [(reason, "1")]
    assert reading.account.filtered["annotations"]["image_quarantined"] == 3
    assert len(reading.samples) == 3


def test_garbage_among_annotations_is_refused_alone(tree, read_source):
    tree.annotations[1] |= {"category_id": {"a": 1}}
    tree.annotations[2] |= {"iscrowd": "no"}
    tree.annotations += [7, {"id": 1}, {"id": 11, "image_id": 1, "category_id": 1}, {"id": 90, "image_id": 77}]
    tree.images[1]["license"] = ["x"]
    tree.save()
    (reading,) = read_source(lvis, tree.root / "lvis", "genseg")
    assert Counter(b.reason for b in reading.bad) == {
        "unknown_category": 1,
        "bad_field": 3,
        "duplicate_annotation": 1,
        "unknown_image": 1,
    }
    assert reading.account.read == {"images": 4, "annotations": 10}


def test_a_category_without_a_name_is_refused(tree, read_source):
    tree.categories[2]["name"] = " _ "
    tree.save()
    with pytest.raises(SourceError, match="category 3 has no name"):
        read_source(lvis, tree.root / "lvis", "genseg")


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("ovseg", {}, "not ovseg"),
        ("genseg", {"variants": ["instance"]}, "no option 'variants'"),
        ("genseg", {"not_exhaustive": "ask"}, "not_exhaustive: Input should be 'filter' or 'keep'"),
        ("genseg", {"categories": "every"}, "categories: Input should be"),
    ],
)
def test_options_are_checked(task, options, message):
    with pytest.raises(OptionError, match=message):
        lvis.parse_options(task, options)


# --- published values ------------------------------------------------------------------------------------------------


def test_published_layout(fixtures, tmp_path, read_source):
    """Against what a public loader finds and pycocotools fills; that loader drops the picture without annotations."""
    golden = fixtures / "golden" / "formats" / "lvis"
    expected = json.loads((golden / "expected.json").read_text())
    for name in expected["image_from_coco_url"].values():
        path = tmp_path / "coco" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (photo,) = (fixtures / "coco" / "images").glob(f"*/{path.name}")
        path.write_bytes(photo.read_bytes())
    (tmp_path / "lvis").mkdir()
    (tmp_path / "lvis" / "lvis_v1_train.json").write_bytes((golden / "lvis_v1_train.json").read_bytes())
    (reading,) = read_source(
        lvis, tmp_path / "lvis", "genseg", categories="all", not_exhaustive="keep", images="reference"
    )
    areas = {o.annotation_id: o.area for s in reading.samples for o in s.objects}
    assert areas == expected["mask_areas"]
    by_name = {row["image"]: {str(i) for i in row["annotation_ids"]} for row in expected["psalm_builder"]}
    by_name |= {expected["image_from_coco_url"][str(n)]: set() for n in expected["images_without_annotations"]}
    found = {"/".join(Path(s.image.path).parts[-2:]): {o.annotation_id for o in s.objects} for s in reading.samples}
    assert found == by_name
    assert {s.image_key: asked(s) for s in reading.samples} == {
        "coco/000000153299": {"giraffe": 2, "zebra": 0},
        "coco/000000458054": {"toilet": 3},
        "coco/000000463730": {"giraffe": 0, "bus": 2, "zebra": 0},
        "coco/000000226111": {"zebra": 0},
    }
    assert [c.synonyms for c in reading.report.categories] == [(), (), ("autobus", "charabanc"), ()]
    (strict,) = read_source(lvis, tmp_path / "lvis", "genseg", categories="all")
    assert strict.account.filtered == {"images": {"no_target": 1}, "annotations": {"not_exhaustive": 3}}
    document = json.loads((golden / "lvis_v1_train.json").read_text())
    sizes = {i["id"]: (i["height"], i["width"]) for i in document["images"]}
    objects = {o.annotation_id: o for s in reading.samples for o in s.objects}
    for annotation in document["annotations"]:
        height, width = sizes[annotation["image_id"]]
        truth = oracle.decode(oracle.merge(oracle.frPyObjects(annotation["segmentation"], height, width)))
        assert np.array_equal(masks.decode(objects[str(annotation["id"])].rle, height, width), truth.astype(bool))
    for sample in reading.samples:
        holds(sample)
