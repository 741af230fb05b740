"""COCO-VGD and COCO-Interactive: the files' prompts kept pixel for pixel, records checked, everything accounted for."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as oracle

from builders import coco, coco_categories, coco_interactive, coco_vgd
from dataengine import conversation, invariants
from dataengine.builder import OptionError, SourceError
from dataengine.keyed import keyed
from dataengine.prompts import render
from dataengine.sample import PROMPT_KINDS, Prompt
from pipelines import prompting

BUILDERS = {"coco_vgd": (coco_vgd, "vgdseg"), "coco_interactive": (coco_interactive, "intseg")}
RADII = {"point": 10, "scribble": 5}
HEIGHT, WIDTH = 24, 32


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def encoded(bitmap: np.ndarray) -> dict:
    rle = oracle.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def around(bitmap: np.ndarray, radius: int) -> np.ndarray:
    """All pixels within a distance of a set one, by brute force."""
    ys, xs = np.mgrid[: bitmap.shape[0], : bitmap.shape[1]]
    found = np.zeros(bitmap.shape, dtype=bool)
    for y, x in np.argwhere(bitmap).tolist():
        found |= (ys - y) ** 2 + (xs - x) ** 2 <= radius**2
    return found


def drawn(prompt: Prompt, height: int, width: int) -> np.ndarray:
    full = np.zeros((height, width), dtype=bool)
    crop = render(prompt, height, width)
    if crop is not None:
        h, w = crop.mask.shape
        full[crop.y0 : crop.y0 + h, crop.x0 : crop.x0 + w] = crop.mask
    return full


def pixels(*places: tuple[int, int]) -> np.ndarray:
    bitmap = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for x, y in places:
        bitmap[y, x] = True
    return bitmap


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    bitmap = np.zeros((HEIGHT, WIDTH), dtype=bool)
    bitmap[y0:y1, x0:x1] = True
    return bitmap


class Tree:
    """A folder as X-SAM or PSALM publish it: images of 32 x 24 px with two annotations; can be edited and saved."""

    def __init__(self, root: Path, name: str, num_images: int = 2, split: str = "train") -> None:
        self.root, self.name, self.split = root, name, split
        self.is_vgd = name == "coco_vgd"
        self.records = [self.record(number) for number in range(1, num_images + 1)]
        (root / "coco" / f"{split}2017").mkdir(parents=True, exist_ok=True)
        for number in range(1, num_images + 1):
            (root / "coco" / f"{split}2017" / f"{number:012d}.jpg").write_bytes(jpeg(number))
        self.save()

    def record(self, number: int) -> dict:
        file = f"{number:012d}.jpg"
        annotations = [self.annotation(number, k) for k in range(2)]
        if self.is_vgd:
            info = {"file_name": file, "height": HEIGHT, "width": WIDTH, "image_id": number}
            head = {"image_file": file, "image_id": number, "image_size": [HEIGHT, WIDTH]}
            return {**head, "annotations": annotations, "image_info": info}
        info = {"license": 1, "file_name": file, "height": HEIGHT, "width": WIDTH, "id": number}
        return {"image": file, "image_info": info, "new_img_id": number - 1, "anns": annotations}

    def annotation(self, number: int, k: int) -> dict:
        x = 2 + 12 * k
        annotation = {
            "segmentation": [[x, 2, x + 10, 2, x + 10, 12, x, 12]],
            "area": 100.0,
            "iscrowd": 0,
            "image_id": number,
            "bbox": [x, 2, 10, 10],
            "category_id": (18, 1)[k],
            "id": 10 * number + k,
        }
        bitmaps = {
            "point": pixels((x + 4, 7)),
            "scribble": pixels(*((x + s, 4 + s // 2) for s in range(9))),
            "box": box(x - 1, 1, x + 10, 13),
            "mask": box(x, 3, x + 9, 12) | box(x + 2, 2, x + 5, 14),
        }
        self.put(annotation, **{kind: encoded(self.as_stored(kind, bitmap)) for kind, bitmap in bitmaps.items()})
        return annotation | ({"bbox_mode": 1} if self.is_vgd else {})

    def as_stored(self, kind: str, bitmap: np.ndarray) -> np.ndarray:
        """X-SAM's file holds prompts as they are drawn, PSALM's holds the bare pixels of points and scribbles."""
        return around(bitmap, RADII[kind]) if self.is_vgd and kind in RADII else bitmap

    def put(self, annotation: dict, **prompts: object) -> None:
        for kind, value in prompts.items():
            if self.is_vgd:
                annotation.setdefault("visual_prompts", {})[f"{kind}_visual_prompt"] = value
            else:
                annotation[f"{kind}_visual_prompt_mask"] = value

    def annotations(self, number: int = 0) -> list[dict]:
        return self.records[number]["annotations" if self.is_vgd else "anns"]

    @property
    def file(self) -> Path:
        if self.is_vgd:
            return self.root / "vgdseg_annotations" / f"coco_vgdseg_{self.split}.json"
        return self.root / "coco_int" / "annotations" / f"coco_interactive_{self.split}_psalm.json"

    def save(self) -> Path:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.records, indent=None if self.is_vgd else 2))
        return self.file


@pytest.fixture(params=BUILDERS)
def tree(request, tmp_path) -> Tree:
    return Tree(tmp_path / "data", request.param)


@pytest.fixture
def read_tree(read_source):
    def read(tree: Tree, **options):
        (reading,) = read_source(*BUILDERS[tree.name][:1], tree.root, BUILDERS[tree.name][1], **options)
        return reading

    return read


def shown(sample):
    """A sample as it is written to a shard."""
    (sample,) = prompting.attach([sample], None, 0).samples
    sample = conversation.render(sample, keyed(0, sample.sample_id, "conversation", conversation.VERSION))
    invariants.check(sample)
    return sample


def golden_tree(fixtures: Path, root: Path, name: str) -> list[dict]:
    """The published layout over the fixtures' photos; gives the file's records."""
    formats = fixtures / "golden" / "formats"
    split = {"coco_vgd": "train", "coco_interactive": "val"}[name]
    file = {"coco_vgd": "coco_vgdseg_train.json", "coco_interactive": "coco_interactive_val_psalm.json"}[name]
    data = gzip.decompress((formats / name / f"{file}.gz").read_bytes())
    (root / "annotations").mkdir(parents=True)
    (root / f"{split}2017").mkdir()
    (root / "annotations" / file).write_bytes(data)
    for folder in ("train2017", "val2017"):
        for photo in (fixtures / "coco" / "images" / folder).glob("*.jpg"):
            os.symlink(photo, root / f"{split}2017" / photo.name)
    return json.loads(data)


# --- what the files say ----------------------------------------------------------------------------------------------


def test_golden_vgd_prompts_are_drawn_as_in_the_file(fixtures, tmp_path, read_source):
    records = golden_tree(fixtures, tmp_path / "data", "coco_vgd")
    expected = json.loads((fixtures / "golden/formats/coco_vgd/expected.json").read_text())
    (reading,) = read_source(coco_vgd, tmp_path / "data", "vgdseg")
    kept = {s.provenance.record.split()[1]: [int(o.annotation_id) for o in s.objects] for s in reading.samples}
    assert kept == {image: sorted(names) for image, names in expected["annotations_kept"].items()}
    stored = {str(a["id"]): a["visual_prompts"] for r in records for a in r["annotations"]}
    for sample in map(shown, reading.samples):
        for thing in sample.objects:
            assert [p.kind for p in thing.prompts] == list(PROMPT_KINDS)
            for prompt in thing.prompts:
                bitmap = drawn(prompt, sample.height, sample.width)
                key = f"{prompt.kind}_visual_prompt"
                assert (bitmap == oracle.decode(stored[thing.annotation_id][key])).all()
                assert bitmap.sum() == expected["prompt_areas"][thing.annotation_id][key]
                assert (prompt.status == "none") == (not bitmap.any())
                assert (prompt.profile, prompt.version) == ("published", 0)
    assert reading.account.as_dict() == {
        "read": {"annotations": 53, "images": 7, "prompts": 212},
        "built": {"annotations": 53, "images": 7, "prompts": 209},
        "quarantined": {},
        "filtered": {"prompts": {"empty": 3}},
    }


def test_golden_interactive_prompts_are_drawn_as_loaders_draw_them(fixtures, tmp_path, read_source):
    records = golden_tree(fixtures, tmp_path / "data", "coco_interactive")
    expected = json.loads((fixtures / "golden/formats/coco_interactive/expected.json").read_text())
    (reading,) = read_source(coco_interactive, tmp_path / "data", "intseg")
    stored = {str(a["id"]): a for r in records for a in r["anns"]}
    areas: dict[str, dict[str, int]] = {kind: {} for kind in PROMPT_KINDS}
    for sample in map(shown, reading.samples):
        for thing in sample.objects:
            for prompt in thing.prompts:
                bitmap = drawn(prompt, sample.height, sample.width)
                raw = oracle.decode(stored[thing.annotation_id][f"{prompt.kind}_visual_prompt_mask"])
                assert (drawn(replace(prompt, radius=0.0), *raw.shape) == raw).all()
                assert raw.sum() == expected["raw_prompt_pixels"][thing.annotation_id][prompt.kind]
                if prompt.status == "ok":
                    areas[prompt.kind][thing.annotation_id] = int(bitmap.sum())
    for kind, found in areas.items():
        rows = expected["xsam_aaai_load"][kind]["rows"]  # X-SAM keeps crowds
        assert found == {str(r["annotation_id"]): r["prompt_area_after_dilation"] for r in rows if not r["iscrowd"]}
    assert reading.account.filtered == {"annotations": {"crowd": 1}, "prompts": {"crowd": 4, "empty": 3}}


def test_prompts_of_a_small_tree_in_either_layout(tree, read_tree):
    reading = read_tree(tree)
    assert len(reading.samples) == 2
    for sample in reading.samples:
        for k, thing in enumerate(shown(sample).objects):
            x = 2 + 12 * k
            want = {
                "point": around(pixels((x + 4, 7)), 10),
                "scribble": around(pixels(*((x + s, 4 + s // 2) for s in range(9))), 5),
                "box": box(x - 1, 1, x + 10, 13),
                "mask": box(x, 3, x + 9, 12) | box(x + 2, 2, x + 5, 14),
            }
            objects = [oracle.decode({"size": [HEIGHT, WIDTH], "counts": o.rle}).astype(bool) for o in sample.objects]
            for prompt in thing.prompts:
                bitmap = drawn(prompt, HEIGHT, WIDTH)
                assert (bitmap == want[prompt.kind]).all(), prompt.kind
                assert prompt.inside == (bitmap & objects[k]).sum() / bitmap.sum()
                assert prompt.other == (bitmap & objects[1 - k]).sum() / bitmap.sum()
            point, scribble, boxed, mask = thing.prompts
            assert (point.points, point.parts, point.radius) == ((x + 4.5, 7.5), (1,), 10.0)
            assert (scribble.radius, set(scribble.parts)) == (5.0, {1})
            assert (boxed.points, boxed.parts) == ((x - 1, 1, x + 10, 13), (2,))
            assert (mask.points, mask.rle) == ((), encoded(want["mask"])["counts"].encode())
    counts = {"annotations": 4, "images": 2, "prompts": 16}
    assert reading.account.as_dict() == {"read": counts, "built": counts, "quarantined": {}, "filtered": {}}


def test_vgd_samples_are_those_of_builder_coco(tmp_path, read_source):
    tree = Tree(tmp_path / "data", "coco_vgd")
    tree.annotations().reverse()
    tree.save()
    keys = ("visual_prompts", "bbox_mode")
    instances = {
        "images": [r["image_info"] | {"id": r["image_id"]} for r in tree.records],
        "annotations": [{k: v for k, v in a.items() if k not in keys} for r in tree.records for a in r["annotations"]],
        "categories": [{"id": n, "name": name} for n, name in coco_categories.NAMES.items()],
    }
    (tmp_path / "instances_train.json").write_text(json.dumps(instances))
    files = {"annotations": str(tmp_path / "instances_train.json"), "images": str(tree.root / "coco" / "train2017")}
    (ours,) = read_source(coco_vgd, tree.root, "vgdseg")
    (theirs,) = read_source(coco, None, "vgdseg", files=files)

    def bare(sample):
        name = sample.sample_id.partition("/")[2]
        objects = tuple(replace(thing, prompts=()) for thing in sample.objects)
        return replace(sample, sample_id=name, source="", objects=objects, provenance=None, image=None)

    ours_bare = [bare(s) for s in ours.samples]
    assert [replace(s, conditions=()) for s in ours_bare] == [replace(bare(s), conditions=()) for s in theirs.samples]
    renamed = replace(ours.context, source="coco")  # the order of categories is drawn by the sample's name
    again = [bare(s) for o in coco_vgd.read(renamed, ours.index, 0, ours.report.rows) for s in o.samples]
    assert again == [bare(s) for s in theirs.samples]


def test_categories_come_from_the_instances_file_beside(tree, read_tree):
    assert {c.id: c.name for c in read_tree(tree).report.categories} == coco_categories.NAMES
    folder = tree.root / "coco" / "annotations"
    folder.mkdir()
    tables = {
        "info": {"image_namespace": "mine"},
        "licenses": [{"id": 1, "name": "a licence", "url": "u"}],
        "images": [{"id": "unread"}],
        "annotations": [],
        "categories": [{"id": 1, "name": "human"}, {"id": 18, "name": "dog"}],
    }
    (folder / "instances_train2017.json").write_text(json.dumps(tables))
    reading = read_tree(tree)
    assert {c.id: c.name for c in reading.report.categories} == {1: "human", 18: "dog"}
    assert {c.text for s in reading.samples for c in s.conditions} == {"human", "dog"}
    assert [s.image_key for s in reading.samples] == ["mine/000000000001", "mine/000000000002"]
    assert {s.license.name for s in reading.samples} == {"CC BY 4.0" if tree.is_vgd else "a licence"}
    (folder / "instances_train2017.json").write_text('{"categories": []}')
    with pytest.raises(SourceError, match="no category"):
        read_tree(tree)


def test_interactive_samples_hold_so_many_regions(tmp_path, read_tree):
    tree = Tree(tmp_path / "data", "coco_interactive", 1)
    tree.annotations()[0]["id"] = 99
    tree.save()
    reading = read_tree(tree, max_regions=1)
    assert [(s.sample_id, s.objects[0].annotation_id) for s in reading.samples] == [
        ("coco_interactive/train/coco/000000000001/intseg/0", "11"),
        ("coco_interactive/train/coco/000000000001/intseg/1", "99"),
    ]
    assert all(c.exemplar == 0 and c.objects == (0,) for s in reading.samples for c in s.conditions)


# --- what is odd -----------------------------------------------------------------------------------------------------


def test_overlapping_boxes_and_clicks_at_the_border(tmp_path, read_tree):
    tree = Tree(tmp_path / "data", "coco_vgd", 1)
    first, second = tree.annotations()
    clicks = around(pixels((1, 0), (31, 20)), 10)
    overlapping = box(2, 2, 12, 10) | box(8, 6, 20, 16)
    tree.put(first, point=encoded(clicks), box=encoded(overlapping))
    foreign = box(3, 3, 9, 8)  # no union of discs
    tree.put(second, point=encoded(foreign), scribble=encoded(box(0, 0, WIDTH, HEIGHT)))
    tree.save()
    (sample,) = map(shown, read_tree(tree).samples)
    point, _, boxed, _ = sample.objects[0].prompts
    assert (drawn(point, HEIGHT, WIDTH) == clicks).all()
    assert (len(point.parts), point.radius) == (2, 10.0)
    assert (drawn(boxed, HEIGHT, WIDTH) == overlapping).all()
    corners = np.array(boxed.points).reshape(-1, 4)
    assert ((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])).sum() == overlapping.sum()  # disjoint
    point, scribble, *_ = sample.objects[1].prompts
    assert (drawn(point, HEIGHT, WIDTH) == foreign).all()
    assert point.radius == 0
    assert drawn(scribble, HEIGHT, WIDTH).all()


def test_missing_and_empty_prompts_are_none(tree, read_tree):
    first, second = tree.annotations()
    tree.put(first, point=None, scribble=encoded(np.zeros((HEIGHT, WIDTH), bool)))
    for key in [key for key in second if "visual_prompt" in key]:
        del second[key]
    tree.save()
    reading = read_tree(tree)
    objects = reading.samples[0].objects
    assert [p.status for p in objects[0].prompts] == ["none", "none", "ok", "ok"]
    assert [p.status for p in objects[1].prompts] == ["none"] * 4
    assert reading.account.read["prompts"] == 8 + 3
    assert reading.account.filtered == {"prompts": {"empty": 1}}
    prompted = prompting.attach(reading.samples[:1], None, 0)
    assert (prompted.conditions, prompted.dropped) == (1, 1)


def test_crowds_show_nothing(tree, read_tree):
    tree.annotations()[0]["iscrowd"] = 1
    for annotation in tree.annotations(1):
        annotation["iscrowd"] = 1
    tree.save()
    reading = read_tree(tree)
    (sample,) = reading.samples
    assert [c.text for c in sample.conditions] == ["person"]
    assert [(o.crowd, len(o.prompts)) for o in sample.objects] == ([(True, 0)] if tree.is_vgd else []) + [(False, 4)]
    filtered = reading.account.filtered
    assert filtered["images"] == {"no_target": 1}
    assert filtered["prompts"] == {"crowd": 12}
    assert filtered["annotations"] == {"no_target": 2} | ({} if tree.is_vgd else {"crowd": 1})
    own = sample.objects[-1]
    crowd = drawn(replace(own.prompts[2], points=(2.0, 2.0, 12.0, 12.0)), HEIGHT, WIDTH)
    bitmap = drawn(own.prompts[0], HEIGHT, WIDTH)
    assert own.prompts[0].other == (bitmap & crowd).sum() / bitmap.sum()  # crowds among the others


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(7, "bad_prompt", id="number"),
        pytest.param([[1, 1, 5, 1, 5, 5]], "bad_prompt", id="polygon"),
        pytest.param({"size": [HEIGHT, WIDTH]}, "rle_invalid", id="no counts"),
        pytest.param({"size": [HEIGHT, WIDTH], "counts": "\ud800"}, "rle_invalid", id="surrogate"),
        pytest.param({"size": [HEIGHT, WIDTH], "counts": "2"}, "rle_size", id="short"),
        pytest.param({"size": [WIDTH, HEIGHT], "counts": "P`0"}, "rle_size", id="other size"),
        pytest.param({"size": "x", "counts": "P`0"}, "rle_size", id="size is text"),
        pytest.param({"size": "\ud800", "counts": "P`0"}, "rle_size", id="size is no Unicode text"),
        pytest.param({"size": [HEIGHT, WIDTH], "counts": [768.5]}, "rle_invalid", id="fraction"),
        pytest.param({"size": [HEIGHT, WIDTH], "counts": [-1, 769]}, "rle_invalid", id="negative"),
    ],
)
def test_a_bad_prompt_leaves_the_others(tree, read_tree, value, reason):
    tree.put(tree.annotations()[0], scribble=value)
    tree.save()
    reading = read_tree(tree)
    assert [p.status for p in reading.samples[0].objects[0].prompts] == ["ok", "none", "ok", "ok"]
    (found,) = reading.bad
    assert (found.unit, found.reason, found.group) == ("prompts", reason, "1")
    assert found.message.encode()  # as quarantine writes it
    assert str(found).startswith(f"{tree.file.name}: scribble of annotation 10 (image 1): ")
    assert reading.account.quarantined == {"prompts": {reason: 1}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"id": None}, "bad_field", id="no id"),
        pytest.param({"id": 10}, "duplicate_annotation", id="id twice"),
        pytest.param({"image_id": 5}, "unknown_image", id="of another image"),
        pytest.param({"category_id": 12}, "unknown_category", id="unknown category"),
        pytest.param({"segmentation": [[1, 1, 2, 2, 3]]}, "polygon_odd", id="odd polygon"),
        pytest.param({"segmentation": float("nan")}, "segmentation_invalid", id="nan"),
        pytest.param({"iscrowd": []}, "bad_field", id="crowd is a list"),
    ],
)
def test_a_bad_annotation_leaves_the_others(tree, read_tree, changes, reason):
    tree.annotations()[1].update(changes)
    tree.save()
    reading = read_tree(tree)
    assert [o.annotation_id for o in reading.samples[0].objects] == ["10"]
    assert [(b.unit, b.reason) for b in reading.bad] == [("annotations", reason)]
    assert reading.account.filtered == {"prompts": {"annotation_quarantined": 4}}


@pytest.mark.parametrize(
    ("changes", "reason", "at_index"),
    [
        pytest.param({"image_info": None, "image_id": None}, "bad_field", True, id="no id"),
        pytest.param({"image_id": True}, "bad_field", True, id="id is true"),
        pytest.param({"image_id": 3}, "bad_field", True, id="ids differ"),
        pytest.param({"image_size": None, "image_info": {"id": 1}}, "bad_field", False, id="no size"),
        pytest.param({"image": "../1.jpg", "image_file": "../1.jpg"}, "unsafe_file_name", False, id="climbs out"),
        pytest.param({"image": 5, "image_file": 5}, "unsafe_file_name", False, id="name is a number"),
        pytest.param({"anns": {}, "annotations": {}}, "bad_field", False, id="annotations are an object"),
        pytest.param({"image_info": {"id": 1, "height": 25, "width": WIDTH}}, "image_size", False, id="other size"),
    ],
)
def test_a_bad_image_leaves_the_others(tree, read_tree, changes, reason, at_index):
    tree.records[0].update(changes)
    tree.save()
    reading = read_tree(tree)
    assert [s.image_key for s in reading.samples] == ["coco/000000000002"]
    assert [(b.unit, b.reason) for b in reading.bad] == [("images", reason)]
    assert bool(reading.report.bad) == at_index
    held = 0 if "annotations" in changes else 2
    expected = {"annotations": {"image_quarantined": held}, "prompts": {"image_quarantined": 4 * held}} if held else {}
    assert reading.account.filtered == expected


def test_garbage_is_accounted_for(tree, read_tree):
    for junk in (None, 7, [], {}, "text", {"image_info": []}, float("nan")):
        tree.records.append(junk)
    tree.records.append(tree.records[0])
    for junk in (None, 7, [], {}, {"id": 1}, {"id": 77, "visual_prompts": 5}):
        tree.annotations(1).append(junk)
    tree.save()
    reading = read_tree(tree)
    assert len(reading.samples) == 2
    assert Counter(b.reason for b in reading.report.bad) == {"bad_field": 7, "duplicate_image": 1}
    assert reading.account.read == {"images": 10, "annotations": 2 + 8 + 2, "prompts": 24}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("[", "damaged"),
        ("7", "expected a JSON array"),
        ("[]", "no record of an image"),
        ("{}", "no record"),
    ],
)
def test_files_that_are_none_of_these(tree, read_tree, text, message):
    tree.file.write_text(text)
    with pytest.raises(SourceError, match=message) as raised:
        read_tree(tree)
    assert tree.file.name in str(raised.value)


# --- where the files are ---------------------------------------------------------------------------------------------


def test_splits_and_files(tree, tmp_path, read_source):
    builder, task = BUILDERS[tree.name]
    options = builder.parse_options(task, {})
    Tree(tree.root, tree.name, split="val")
    assert [p.split for p in builder.locate(str(tree.root), {}, (), options)] == ["train", "val"]
    assert [p.split for p in builder.locate(str(tree.root), {}, ("val",), options)] == ["val"]
    assert set(builder.HELD_OUT) == {"val"}
    assert any(list(tree.root.glob(mark)) for mark in builder.MARKS)
    images = str(tree.root / "coco" / "train2017")
    (part,) = builder.locate(None, {"annotations": str(tree.file), "images": images}, (), options)
    assert part.split == "train"
    for root, files, splits, message in (
        (None, {}, (), "no folder is given"),
        (str(tmp_path), {}, (), "Expected: coco_"),
        (str(tree.root), {}, ("test",), "no split test"),
        (str(tree.root), {"pictures": "x"}, (), "no file role 'pictures'"),
        (str(tree.root), {"instances": "x"}, (), "instances file is missing"),
        (str(tree.root), {"images": "x"}, (), "images folder is missing"),
        (str(tree.root), {"annotations": str(tree.file)}, ("a", "b"), "one annotation file is one split"),
    ):
        with pytest.raises(SourceError, match=message):
            builder.locate(root, files, splits, options)
    with pytest.raises(OptionError):
        builder.parse_options("genseg", {})
    with pytest.raises(OptionError):
        builder.parse_options(task, {"variants": ["instance"]})


def test_pictures_may_lie_under_their_2014_names(tree, read_source):
    builder, task = BUILDERS[tree.name]
    new = tree.root / "coco" / "train2017"
    old = tree.root / "old" / "train2014"
    old.mkdir(parents=True)
    for file in new.iterdir():
        file.rename(old / f"COCO_train2014_{file.name}")
    (reading,) = read_source(builder, tree.root, task, files={"images": str(tree.root / "old")})
    assert reading.samples[0].image.path == "train2014/COCO_train2014_000000000001.jpg"
    assert not reading.bad


def test_keys_selection_and_slices(tree, read_tree, tmp_path):
    builder, _ = BUILDERS[tree.name]
    reading = read_tree(tree)
    assert list(builder.image_keys(reading.context, reading.index)) == [s.image_key for s in reading.samples]
    assert list(builder.read(reading.context, reading.index, 1, 2)) == reading.outcomes[1:]
    assert list(builder.read(reading.context, reading.index, 0, 2)) == reading.outcomes
    target = tmp_path / "chosen.arrow"
    assert builder.select(reading.index.path, {"2", "9"}, target) == 1
    chosen = type(reading.index)(str(target))
    assert list(builder.read(reading.context, chosen, 0, 1)) == reading.outcomes[1:]
