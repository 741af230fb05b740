"""The ADE20K builder: both editions in their published layouts, three variants, and what is left out of each."""

from __future__ import annotations

import io
import json
import shutil
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as oracle

from builders import ade20k, ade20k_files, ade20k_names
from dataengine import conversation, invariants, masks
from dataengine.builder import OptionError, SourceError
from dataengine.keyed import keyed
from dataengine.sample import Sample
from dataengine.store.files import Folder

ALL = ("semantic", "instance", "panoptic")
HEIGHT, WIDTH = 24, 32
THINGS = set(ade20k_names.INSTANCE_CLASSES)
WALL, SKY, BED, PERSON = 1, 3, 8, 13  # numbers in the class map
BED_INSTANCE, PERSON_INSTANCE = 1, 4  # numbers in the instance map


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def jpeg(height: int = HEIGHT, width: int = WIDTH) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 60)).save(file, "JPEG")
    return file.getvalue()


def rle(mask: np.ndarray) -> bytes:
    return oracle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


def colours(red: np.ndarray, green: np.ndarray, blue: np.ndarray | int = 0) -> np.ndarray:
    return np.stack(np.broadcast_arrays(red, green, blue), -1).astype(np.uint8)


class ChallengeTree:
    """ADEChallengeData2016 under construction."""

    def __init__(self, root: Path, split: str = "validation") -> None:
        self.root, self.split = root, split
        for role in ("images", "annotations", "annotations_instance"):
            (root / role / split).mkdir(parents=True, exist_ok=True)

    def add(self, stem: str, classes: np.ndarray, things: np.ndarray | None = None, seed: int = 0) -> None:
        """classes: (H, W) uint8. things: (H, W, 2) instance class and index; none by default."""
        things = np.zeros((*classes.shape, 2), np.uint8) if things is None else things
        blue = np.random.default_rng(seed).integers(0, 255, classes.shape)  # what it says is not published
        self.put("images", f"{stem}.jpg", jpeg(*classes.shape))
        self.put("annotations", f"{stem}.png", png(classes.astype(np.uint8)))
        self.put("annotations_instance", f"{stem}.png", png(colours(things[..., 0], things[..., 1], blue)))

    def put(self, role: str, name: str, data: bytes) -> None:
        (self.root / role / self.split / name).write_bytes(data)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A wall with a bed before it, a person known to the class map alone, sky wholly behind the bed, other pixels."""
    classes = np.full((HEIGHT, WIDTH), WALL)
    classes[:4] = 0
    classes[10:20, 4:16] = BED
    classes[12:14, 6:10] = SKY
    classes[6:9, 20:30] = PERSON
    things = np.zeros((HEIGHT, WIDTH, 2), np.uint8)
    things[10:20, 4:16] = BED_INSTANCE, 7
    return classes, things


@pytest.fixture
def tree(tmp_path) -> ChallengeTree:
    made = ChallengeTree(tmp_path / "ade")
    made.add("ADE_val_00000001", *scene())
    made.add("ADE_val_00000002", np.full((HEIGHT, WIDTH), 2))
    return made


def rendered(sample: Sample) -> Sample:
    made = conversation.render(sample, keyed(0, sample.sample_id, "conversation", 1))
    invariants.check(made)
    return made


def objects(sample: Sample) -> list[tuple[int, str, int]]:
    return [(thing.category_id, thing.annotation_id, thing.area) for thing in sample.objects]


# --- 2016 ------------------------------------------------------------------------------------------------------------


def test_three_variants_of_one_picture(read_source, tree):
    classes, things = scene()
    (reading,) = read_source(ade20k, tree.root, "ovseg", variants=ALL)
    semantic, instance, panoptic = map(rendered, reading.samples[:3])
    assert [s.sample_id for s in (semantic, instance)] == [
        "ade20k/validation/ade20k/ADE_val_00000001/ovseg/semantic",
        "ade20k/validation/ade20k/ADE_val_00000001/ovseg/instance",
    ]
    assert semantic.image_key == "ade20k/ADE_val_00000001"
    assert semantic.provenance.file == "annotations/validation/ADE_val_00000001.png"
    assert objects(semantic) == [
        (0, "label 1", int((classes == WALL).sum())),
        (2, "label 3", 8),
        (7, "label 8", 112),
        (12, "label 13", 30),
    ]
    assert semantic.ignore == rle(classes == 0)
    assert objects(instance) == [(7, "instance 1/7", 120)]
    assert instance.ignore is None
    assert objects(panoptic) == [(0, "label 1", int((classes == WALL).sum())), (7, "instance 1/7", 120)]
    assert panoptic.objects[1].rle == rle(things[..., 0] > 0)
    assert panoptic.ignore == rle((classes == 0) | (classes == PERSON))
    assert [len(s.conditions) for s in (semantic, instance, panoptic)] == [150, 100, 150]
    assert [c.category_id for c in panoptic.conditions] == list(range(150))
    account = reading.account
    assert account.read == {"images": 2, "segments": 4 + 1 + 4 + 1 + 0 + 1}
    assert account.filtered == {"segments": {"covered": 1, "no_instance": 1}}
    assert account.built == {"images": 2, "segments": 9}


def test_a_map_of_noise_is_ignored_where_it_says_nothing(read_source, tmp_path):
    """Thousands of segments that cannot be used are one union."""
    tree = ChallengeTree(tmp_path / "noise")
    rng = np.random.default_rng(0)
    classes, things = rng.integers(0, 256, (100, 100)), rng.integers(0, 256, (100, 100, 2), np.uint8)
    tree.add("ADE_val_00000001", classes, things)
    (reading,) = read_source(ade20k, tree.root, "ovseg", variants=ALL)
    semantic, instance, panoptic = reading.samples
    is_void = (things == 0).all(-1)
    is_refused = ~is_void & ((things[..., 0] == 0) | (things[..., 0] > 100) | (things[..., 1] == 0))
    is_stuff = (classes > 0) & (classes <= 150) & ~np.isin(classes, list(THINGS))
    assert semantic.ignore == rle((classes == 0) | (classes > 150))
    assert instance.ignore == rle(is_refused)
    assert panoptic.ignore == rle(is_refused | (is_void & ~is_stuff))
    assert len(reading.account.quarantined["segments"]) == 2


def painted(classes: np.ndarray, things: np.ndarray, instance_classes: dict[int, int]) -> dict[str, list]:
    """What each variant should hold, painted pixel by pixel: category, and the raster of each segment."""
    semantic = [(c - 1, classes == c) for c in np.unique(classes).tolist() if c]
    pairs = sorted({(int(g), int(r)) for r, g in things.reshape(-1, 2) if r or g})
    instance = [(instance_classes[r] - 1, (things[..., 0] == r) & (things[..., 1] == g)) for g, r in pairs]
    canvas = np.zeros(classes.shape, int)
    stuff = [(c, m) for c, m in semantic if c + 1 not in THINGS]
    for number, (_, mask) in enumerate([*stuff, *instance], start=1):
        canvas[mask] = number
    shown = [(c, canvas == number) for number, (c, _) in enumerate([*stuff, *instance], start=1)]
    return {"semantic": semantic, "instance": instance, "panoptic": [(c, m) for c, m in shown if m.any()]}


@pytest.mark.parametrize("seed", range(4))
def test_segments_equal_a_painting_pixel_by_pixel(read_source, tmp_path, seed):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 151, (4, 5)) * (rng.random((4, 5)) < 0.8)
    classes = np.kron(blocks, np.ones((7, 6), int))
    blocks = np.stack([rng.integers(1, 101, (7, 10)), rng.integers(1, 256, (7, 10))], -1)
    blocks *= (rng.random((7, 10, 1)) < 0.3).astype(int)
    things = np.kron(blocks, np.ones((4, 3, 1), int))
    tree = ChallengeTree(tmp_path / "ade", "training")
    tree.add("ADE_train_00000001", classes, things, seed)
    (reading,) = read_source(ade20k, tree.root, "genseg", variants=ALL)
    wanted = painted(classes, things, dict(enumerate(ade20k_names.INSTANCE_CLASSES, start=1)))
    for sample in map(rendered, reading.samples):
        segments = [(c, rle(m)) for c, m in wanted[sample.variant]]
        assert [(thing.category_id, thing.rle) for thing in sample.objects] == segments
    assert not reading.bad
    reading.account.check("all")


def test_training_asks_for_some_categories_and_open_vocabulary_for_all(read_source, tmp_path):
    tree = ChallengeTree(tmp_path / "ade", "training")
    for number in range(8):
        tree.add(f"ADE_train_{number:08}", *scene())
    (reading,) = read_source(ade20k, tree.root, "genseg")
    assert {len(s.conditions) for s in reading.samples} > {150}  # half of them ask for all
    (reading,) = read_source(ade20k, tree.root, "ovseg")
    assert {len(s.conditions) for s in reading.samples} == {150}
    (reading,) = read_source(ade20k, tree.root, "ovseg", categories="positives")
    assert [c.text for c in reading.samples[0].conditions] == ["wall", "sky", "bed", "person"]
    assert [c.objects for c in reading.samples[0].conditions] == [(0,), (1,), (2,), (3,)]


def test_the_same_every_time_and_in_any_slice(read_source, tree):
    first, again = (read_source(ade20k, tree.root, "genseg", variants=ALL)[0] for _ in range(2))
    assert first.samples == again.samples
    assert first.report.fingerprint == again.report.fingerprint
    (late,) = ade20k.read(first.context, first.index, 1, 2)
    assert late.samples == first.outcomes[1].samples
    keys = list(ade20k.image_keys(first.context, first.index))
    assert keys == ["ade20k/ADE_val_00000001", "ade20k/ADE_val_00000002"]
    assert [outcome.samples[0].image_key for outcome in first.outcomes] == keys


def test_chosen_rows_are_read_alone(read_source, tree, tmp_path):
    (reading,) = read_source(ade20k, tree.root, "ovseg")
    target = tmp_path / "chosen.arrow"
    assert ade20k.select(reading.index.path, {"ADE_val_00000002"}, target) == 1
    (outcome,) = ade20k.read(reading.context, Folder(str(target)), 0, 1)
    assert outcome.samples == reading.outcomes[1].samples


# --- what cannot be used ---------------------------------------------------------------------------------------------


def test_pictures_and_maps_without_each_other_are_accounted_for(read_source, tree):
    tree.put("images", "ADE_val_00000007.jpg", jpeg())
    tree.put("annotations", "ADE_val_00000008.png", png(np.zeros((4, 4), np.uint8)))
    tree.put("images", "ADE_val_00000002.png", png(np.zeros((4, 4), np.uint8)))
    tree.put("images", "a b.jpg", jpeg())
    tree.put("images", "Thumbs.db", b"")
    (reading,) = read_source(ade20k, tree.root, "ovseg")
    assert sorted((b.group, b.reason) for b in reading.bad) == [
        ("ADE_val_00000002", "duplicate_image"),
        ("ADE_val_00000007", "annotation_missing"),
        ("ADE_val_00000008", "image_missing"),
        ("a b", "unsafe_file_name"),
    ]
    assert reading.account.read["images"] == 6
    assert reading.account.built["images"] == 2


def sixteen_bits() -> bytes:
    return png(np.zeros((HEIGHT, WIDTH), np.uint16))


def palette() -> bytes:
    file = io.BytesIO()
    Image.new("P", (WIDTH, HEIGHT), 3).save(file, "PNG")
    return file.getvalue()


def four_bits() -> bytes:
    """A grey PNG of 4 bits a pixel, whose values Pillow would multiply by 17."""
    data = bytearray(png(np.zeros((HEIGHT, WIDTH), np.uint8)))
    data[24] = 4
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("role", "data", "reason"),
    [
        pytest.param("images", jpeg(8, 8), "segments_size", id="map of another size"),
        pytest.param("images", b"", "image_unreadable", id="empty picture"),
        pytest.param("images", jpeg()[:-3], "image_truncated", id="half a picture"),
        pytest.param("annotations", b"", "segments_unreadable", id="empty map"),
        pytest.param("annotations", png(np.zeros((HEIGHT, WIDTH), np.uint8))[:-20], "segments_unreadable", id="half"),
        pytest.param("annotations", png(np.zeros((HEIGHT, WIDTH, 3), np.uint8)), "segments_mode", id="coloured"),
        pytest.param("annotations", sixteen_bits(), "segments_mode", id="16 bits"),
        pytest.param("annotations", palette(), "segments_mode", id="palette"),
        pytest.param("annotations", four_bits(), "segments_mode", id="4 bits"),
        pytest.param("annotations", jpeg(), "segments_unreadable", id="a jpeg by the name of a png"),
        pytest.param("annotations_instance", png(np.zeros((HEIGHT, WIDTH), np.uint8)), "segments_mode", id="grey"),
    ],
)
def test_a_damaged_file_costs_its_picture_alone(read_source, tree, role, data, reason):
    name = "ADE_val_00000001.jpg" if role == "images" else "ADE_val_00000001.png"
    tree.put(role, name, data)
    (reading,) = read_source(ade20k, tree.root, "ovseg", variants=ALL)
    (bad,) = reading.bad
    assert (bad.unit, bad.group, bad.reason) == ("images", "ADE_val_00000001", reason)
    assert len(reading.samples) == 3
    assert reading.account.quarantined == {"images": {reason: 1}}


def test_files_that_vanish_after_indexing(read_source, tree):
    (reading,) = read_source(ade20k, tree.root, "ovseg")
    (tree.root / "annotations" / "validation" / "ADE_val_00000001.png").unlink()
    first, second = ade20k.read(reading.context, reading.index, 0, 2)
    assert [b.reason for b in first.bad] == ["segments_missing"]
    assert second.samples
    shutil.rmtree(tree.root / "annotations")
    with pytest.raises(SourceError, match="gone"):
        list(ade20k.read(reading.context, reading.index, 0, 2))


def test_unknown_labels_are_quarantined_and_their_pixels_ignored(read_source, tree):
    classes, things = scene()
    classes[0, :5] = 151
    things[20:22, 0:3] = 101, 1  # no such class
    things[20:22, 3:5] = 4, 0  # a person without an index
    things[20:22, 5:6] = 0, 9  # an index of nothing
    tree.add("ADE_val_00000001", classes, things)
    readings = {v: read_source(ade20k, tree.root, "ovseg", variants=[v])[0] for v in ALL}
    odd = (things[..., 0] != BED_INSTANCE) & things.any(-1)
    by_class = {"unknown_category": 1}
    by_instance = {"unknown_category": 2, "no_instance_index": 1}
    for variant, reasons, ignored in (
        ("semantic", by_class, (classes == 0) | (classes == 151)),
        ("instance", by_instance, odd),
        ("panoptic", Counter(by_class) + Counter(by_instance), np.isin(classes, (0, 151, PERSON)) | odd),
    ):
        reading = readings[variant]
        assert reading.account.quarantined == {"segments": reasons}
        assert rendered(reading.samples[0]).ignore == rle(ignored)
    assert str(readings["semantic"].bad[0]) == (
        "annotations/validation/ADE_val_00000001.png: label 151 (semantic, image ADE_val_00000001): "
        "label 151 is no category"
    )


# --- where the files are ---------------------------------------------------------------------------------------------


def test_layouts_that_are_found(read_source, tree, tmp_path):
    (tree.root / "objectInfo150.txt").write_text(names_file())
    flat = tmp_path / "flat"
    for role in ("images", "annotations"):
        shutil.copytree(tree.root / role / "validation", flat / role)
    above = tmp_path / "above"
    shutil.copytree(tree.root, above / "ADEChallengeData2016")
    named = {"images": str(flat / "images"), "annotations": str(flat / "annotations")}
    readings = [
        *read_source(ade20k, tree.root, "ovseg"),
        *read_source(ade20k, above, "ovseg"),
        *read_source(ade20k, flat, "ovseg"),
        *read_source(ade20k, None, "ovseg", files=named, splits=["validation"]),
    ]
    assert [r.part.split for r in readings] == ["validation"] * 4
    assert all([s.objects for s in r.samples] == [s.objects for s in readings[0].samples] for r in readings)
    assert ["names" in r.part.files for r in readings] == [True, True, False, False]
    assert list(readings[0].report.inputs) == ["names"]


@pytest.mark.parametrize(
    ("options", "removed", "said"),
    [
        pytest.param({"variants": ["panoptic"]}, "annotations_instance", "the instances folder is missing", id="b"),
        pytest.param({}, "annotations", "no ade20k here. Expected: images/SPLIT", id="no maps"),
        pytest.param({}, "images", "the images folder is missing", id="no pictures"),
        pytest.param({"edition": 2021}, None, "the option edition: 2016 reads another layout", id="other edition"),
    ],
)
def test_what_is_missing_is_said(read_source, tree, options, removed, said):
    if removed:
        shutil.rmtree(tree.root / removed)
    with pytest.raises(SourceError, match=said):
        read_source(ade20k, tree.root, "ovseg", **options)


def test_an_unknown_split_and_pictures_that_all_lack_maps(read_source, tree):
    with pytest.raises(SourceError, match="no split testing here; there are validation"):
        read_source(ade20k, tree.root, "ovseg", splits=["testing"])
    for file in (tree.root / "images" / "validation").iterdir():
        file.rename(file.with_stem(f"other_{file.stem}"))
    with pytest.raises(SourceError, match=r"no picture has all its files; the first: .*ADE_val_00000001"):
        read_source(ade20k, tree.root, "ovseg")


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        pytest.param("refseg", {}, "builds ovseg, genseg", id="task"),
        pytest.param("ovseg", {"edition": 2017}, "edition", id="edition"),
        pytest.param("ovseg", {"variants": []}, "variants", id="no variant"),
        pytest.param("ovseg", {"variants": ["semantic", "semantic"]}, "named twice", id="twice"),
        pytest.param("ovseg", {"names": "last"}, "names", id="names"),
        pytest.param("ovseg", {"synonyms": True}, "no option 'synonyms'", id="unknown"),
    ],
)
def test_options_that_cannot_be(task, options, said):
    with pytest.raises(OptionError, match=said):
        ade20k.parse_options(task, options)


# --- categories ------------------------------------------------------------------------------------------------------


def names_file(changes: dict[int, str] | None = None) -> str:
    """objectInfo150.txt, with its stray blanks."""
    names = [f"kind {n}, sort-{n} " for n in range(1, 151)]
    lines = [f"{n}{' ' * (n % 2)}\t0.1\t7\t1\t{name}" for n, name in enumerate(names, start=1)]
    for number, line in (changes or {}).items():
        lines[number - 1] = line
    return "Idx\tRatio\tTrain\tVal\tName\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("how", "text"), [pytest.param("first", "road", id="first"), pytest.param("all", "road, route", id="all")]
)
def test_a_question_names_the_first_synonym_or_all(read_source, tree, how, text):
    (reading,) = read_source(ade20k, tree.root, "ovseg", names=how)
    road = reading.report.categories[6]
    assert (road.id, road.name, road.text, road.is_thing) == (6, "road, route", text, False)
    assert road.synonyms == ("road", "route")
    assert f"<p>{text}</p>" in rendered(reading.samples[0]).turns[0].text
    assert reading.report.categories[2].synonyms == ()
    assert sum(c.is_thing for c in reading.report.categories) == 100


def test_published_names_are_read(read_source, tree):
    (tree.root / "objectInfo150.txt").write_text(names_file({4: "4\t0\t0\t0\tkind 5, other", 7: "7\t0\t0\t0\tA <p>"}))
    (reading,) = read_source(ade20k, tree.root, "ovseg")
    found = {c.id: (c.name, c.text) for c in reading.report.categories}
    assert found[0] == ("kind 1, sort-1", "kind 1")
    assert found[3] == ("kind 5, other", "kind 5, other")  # where two begin alike, all is said
    assert found[4] == ("kind 5, sort-5", "kind 5, sort 5")
    assert "<p>" not in found[6][1]
    assert rendered(reading.samples[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("", "columns Idx and Name", id="empty"),
        pytest.param("Idx,Ratio,Train,Val,Stuff,Name\n1,0,0,0,0,wall\n", "columns Idx and Name", id="the csv"),
        pytest.param(names_file({3: "9\t0\t0\t0\tsky"}), "line 4: category 3 and its name", id="out of order"),
        pytest.param(names_file({3: "3\t0\t0\t0\t , "}), "line 4", id="no name"),
        pytest.param(names_file({3: "3\t0"}), "line 4", id="short line"),
        pytest.param(names_file({150: ""}), "149 categories; there are 150", id="one too few"),
    ],
)
def test_names_that_cannot_be_read(read_source, tree, text, said):
    (tree.root / "objectInfo150.txt").write_text(text)
    with pytest.raises(SourceError, match=said):
        read_source(ade20k, tree.root, "ovseg")


def mapping_file(changed: dict[int, int] | None = None) -> str:
    """The published table: a header with its slip of the pen, 100 classes, three of them in two rows."""
    classes = dict(enumerate(ade20k_names.INSTANCE_CLASSES, start=1)) | (changed or {})
    rows = [f"{k}\t{v}\t{700 + k}" for k in classes for v in [classes[k]] * (2 if k in (5, 18, 57) else 1)]
    return "Instacne100\tSceneParse150\tFullADE20K\n" + "\n".join(rows) + "\n"


def test_a_published_mapping_is_read(read_source, tree):
    place = tree.root / "ade20k_instance_catid_mapping.txt"
    place.write_text(mapping_file())
    assert len(place.read_text().splitlines()) == 104
    (reading,) = read_source(ade20k, tree.root, "ovseg", variants=["instance"])
    assert objects(reading.samples[0]) == [(7, "instance 1/7", 120)]
    place.write_text(mapping_file({1: 1}))
    (reading,) = read_source(ade20k, tree.root, "ovseg", variants=["instance"])
    assert objects(reading.samples[0]) == [(0, "instance 1/7", 120)]
    assert next(c.id for c in reading.report.categories if c.is_thing) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("a b\n1\t8\n1\t9\n", "line 3: class 1 cannot stand for category 9", id="two targets"),
        pytest.param("a b\n1\t151\n", "line 2: class 1 cannot", id="no such category"),
        pytest.param("a b\n1\tx\n", "line 2: whole numbers", id="no number"),
        pytest.param("a b\n1\t" + "9" * 5000, "line 2: whole numbers", id="huge number"),
        pytest.param("a b\n", "it has no row", id="empty"),
    ],
)
def test_mappings_that_cannot_be_read(read_source, tree, text, said):
    (tree.root / "ade20k_instance_catid_mapping.txt").write_text(text)
    with pytest.raises(SourceError, match=said):
        read_source(ade20k, tree.root, "ovseg")


# --- 2021 ------------------------------------------------------------------------------------------------------------

CAR, ROAD, WINDOW, FULL_SKY = 401, 2131, 3055, 2420  # name_ndx
NAMES = {
    CAR: "car, auto, automobile, machine, motorcar",
    ROAD: "road, route",
    WINDOW: "window",
    FULL_SKY: "sky",
}


def described(number: int, name_ndx: object, name: object, level: object = 0) -> dict:
    """An object as the JSON files have it, with fields that change their type."""
    return {
        "id": number,
        "name": name,
        "name_ndx": name_ndx,
        "hypernym": [],
        "raw_name": "caf\u00e9",
        "attributes": "parked" if number % 2 else [],
        "depth_ordering_rank": number,
        "occluded": "no" if number % 2 else [],
        "crop": "0",
        "parts": {"hasparts": [], "ispartof": 1 if level else [], "part_level": level},
        "polygon": {"x": [1, 2, 3], "y": [1, 2, 1]},
        "saved_date": "25-Sep-2005 20:19:10",
    }


class FullTree:
    """ADE20K_2021_17_01 under construction."""

    def __init__(self, root: Path, split: str = "training") -> None:
        self.root, self.split = root / "images" / "ADE" / split, split

    def add(self, stem: str, classes: np.ndarray, indices: np.ndarray, objects: object, scene: str = "urban/street"):
        folder = self.root / scene
        (folder / stem).mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.jpg").write_bytes(jpeg(*classes.shape))
        tens = np.random.default_rng(0).integers(0, 10, classes.shape)  # what lies below 10 in red says nothing
        tens = np.minimum(classes // 256 * 10 + tens, 255)
        (folder / f"{stem}_seg.png").write_bytes(png(colours(tens, classes % 256, indices)))
        (folder / f"{stem}_parts_1.png").write_bytes(png(colours(tens, classes % 256, indices)))
        (folder / stem / f"instance_000_{stem}.png").write_bytes(png(np.zeros(classes.shape, np.uint8)))
        self.describe(stem, objects, scene)

    def describe(self, stem: str, objects: object, scene: str = "urban/street") -> None:
        value = {"annotation": {"filename": f"{stem}.jpg", "imsize": [HEIGHT, WIDTH, 3], "object": objects}}
        text = json.dumps(value, ensure_ascii=False)
        (self.root / scene / f"{stem}.json").write_bytes(text.encode("latin-1"))


def street() -> tuple[np.ndarray, np.ndarray]:
    """Two cars on a road of two outlines under the sky; a strip that nobody named."""
    classes, indices = np.zeros((2, HEIGHT, WIDTH), int)
    classes[:10], indices[:10] = FULL_SKY, 1
    classes[10:20], indices[10:20, :16], indices[10:20, 16:] = ROAD, 2, 3
    classes[12:16, 2:8], indices[12:16, 2:8] = CAR, 4
    classes[12:16, 20:25], indices[12:16, 20:25] = CAR, 5
    return classes, indices


@pytest.fixture
def full(tmp_path) -> FullTree:
    made = FullTree(tmp_path / "full")
    whole = [described(n, k, NAMES[k]) for n, k in enumerate((FULL_SKY, ROAD, ROAD, CAR, CAR))]
    made.add("ADE_train_00016869", *street(), [*whole, described(9, WINDOW, "window", 1), described(8, 77, "x", "2")])
    return made


def test_full_edition_in_three_variants(read_source, full):
    classes, indices = street()
    (reading,) = read_source(ade20k, full.root.parents[2], "genseg", edition=2021, variants=ALL)
    semantic, instance, panoptic = map(rendered, reading.samples)
    assert [(c.id, c.text, c.is_thing) for c in reading.report.categories] == [
        (CAR, "car", True),
        (ROAD, "road", False),
        (FULL_SKY, "sky", False),
    ]
    assert semantic.image_key == "ade20k/ADE_train_00016869"
    assert [(o.category_id, o.rle) for o in semantic.objects] == [(c, rle(classes == c)) for c in (CAR, ROAD, FULL_SKY)]
    cars = [(CAR, rle((classes == CAR) & (indices == n))) for n in (4, 5)]
    assert [(o.category_id, o.rle) for o in instance.objects] == cars
    stuff = [(c, rle(classes == c)) for c in (ROAD, FULL_SKY)]
    assert [(o.category_id, o.rle) for o in panoptic.objects] == [*stuff, *cars]
    assert panoptic.ignore == semantic.ignore == rle(classes == 0)
    assert {c.category_id for c in instance.conditions} == {CAR}
    assert reading.account.filtered == {"parts": {"part": 2}}
    assert reading.account.read == {"images": 1, "segments": 3 + 2 + 4, "parts": 2}


def test_full_edition_quarantines_what_it_cannot_use(read_source, full):
    classes, indices = street()
    classes[20:22, :4], indices[20:22, :4] = WINDOW, 6  # no object names it
    indices[12:16, 2:8] = 0
    whole = [described(0, CAR, NAMES[CAR]), described(1, ROAD, NAMES[ROAD]), described(2, FULL_SKY, "sky")]
    wrong = [described(3, "401", "car"), described(4, 5, []), described(5, 0, "x"), described(6, CAR, "x", "top"), 7]
    full.add("ADE_train_00016869", classes, indices, [*whole, *wrong])
    for stem in ("a", "b", "c", "d"):
        full.add(stem, *street(), described(0, CAR, NAMES[CAR]), "indoor/x")
    scene = full.root / "indoor" / "x"
    (scene / "a_seg.png").unlink()
    (scene / "b.jpg").unlink()
    (scene / "c.json").write_bytes(b'{"annotation": {"object": [')
    (scene / "d.json").unlink()
    full.add("e", *street(), "nothing", "indoor/x")
    full.add("ADE_train_00016869", *street(), whole, "zoo")
    (reading,) = read_source(ade20k, full.root.parents[2], "genseg", edition="2021", variants=["panoptic"])
    reasons = Counter((b.unit, b.reason) for b in reading.bad)
    assert reasons == {
        ("objects", "bad_field"): 4,
        ("objects", "bad_text"): 1,
        ("images", "segments_missing"): 1,
        ("images", "image_missing"): 1,
        ("images", "bad_json"): 1,
        ("images", "json_missing"): 1,
        ("images", "bad_field"): 1,
        ("images", "duplicate_image"): 1,
        ("segments", "unknown_category"): 1,
        ("segments", "no_instance_index"): 1,
    }
    assert reading.account.built["images"] == 1


def test_one_object_alone_and_none_at_all(read_source, full):
    full.describe("ADE_train_00016869", described(0, CAR, NAMES[CAR]))
    full.add("ADE_train_00000002", np.zeros((HEIGHT, WIDTH), int), np.zeros((HEIGHT, WIDTH), int), [])
    (reading,) = read_source(ade20k, full.root.parents[2], "genseg", edition=2021)
    assert [c.id for c in reading.report.categories] == [CAR]
    assert [len(s.objects) for s in reading.samples] == [0, 1]
    assert reading.account.quarantined == {"segments": {"unknown_category": 2}}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"annotation": []}', id="a list"),
        pytest.param(b'{"annotation": {"object": [{"name": "x", "name_ndx": 1e400}]}}', id="infinite"),
        pytest.param(b'{"annotation": {"object": [{"name": "\\ud800,<SEG>", "name_ndx": 5}]}}', id="surrogate"),
        pytest.param(b'{"annotation": {"object": [{"name": "x", "name_ndx": ' + b"9" * 5000 + b"}]}}", id="huge"),
        pytest.param(b'{"annotation": {"object": [{"parts": {"part_level": [[1]]}}]}}', id="nested level"),
    ],
)
def test_json_may_hold_anything(read_source, full, data):
    full.add("ADE_train_00000002", *street(), [described(0, CAR, NAMES[CAR])])
    (full.root / "urban" / "street" / "ADE_train_00000002.json").write_bytes(data)
    (reading,) = read_source(ade20k, full.root.parents[2], "genseg", edition=2021, variants=ALL)
    for sample in reading.samples:
        rendered(sample)
    assert reading.account.read["images"] == 2


def test_a_split_without_things_has_no_instances(read_source, full):
    full.describe("ADE_train_00016869", described(0, ROAD, NAMES[ROAD]))
    with pytest.raises(SourceError, match="no category"):
        read_source(ade20k, full.root.parents[2], "genseg", edition=2021, variants=["instance"])


# --- published data --------------------------------------------------------------------------------------------------


@pytest.fixture
def golden(fixtures) -> tuple[Path, dict]:
    folder = fixtures / "golden" / "formats" / "ade20k"
    return folder, json.loads((folder / "expected.json").read_text())


def test_built_in_tables_are_the_published_ones(fixtures, golden):
    published = (fixtures / "ade20k" / "objectInfo150.txt").read_bytes()
    assert ade20k_names.read_names(published, "x") == ade20k_names.NAMES
    classes = golden[1]["instance100_to_sceneparse150_one_based"]
    assert {str(k): v for k, v in enumerate(ade20k_names.INSTANCE_CLASSES, start=1)} == classes


def test_golden_segments(read_source, golden):
    folder, expected = golden
    for reading in read_source(ade20k, folder, "ovseg", variants=ALL):
        split = {"training": "train", "validation": "val"}[reading.part.split]
        samples = {(s.provenance.record.split()[1], s.variant): rendered(s) for s in reading.samples}
        for picture in expected["panoptic"][split]["annotations"]:
            sample = samples[picture["image_id"], "panoptic"]
            shown = [s for s in picture["segments_in_order"] if s["visible_pixels"]]
            assert [(o.category_id, o.area, o.rle.decode()) for o in sample.objects] == [
                (s["category_id"], s["visible_pixels"], s["visible"]["counts"]) for s in shown
            ]
            void = masks.area(sample.ignore, sample.height, sample.width) if sample.ignore else 0
            assert void == picture["void_pixels"]
            instances = [a for a in expected["instance"][split]["annotations"] if a["image_id"] == picture["image_id"]]
            assert [
                (o.category_id, o.area, list(o.bbox), o.rle.decode())
                for o in samples[picture["image_id"], "instance"].objects
            ] == [(a["category_id"], a["area"], a["bbox"], a["segmentation"]["counts"]) for a in instances]
            histogram = expected["semantic_shifted"][picture["file_name"]]
            semantic = samples[picture["image_id"], "semantic"]
            assert {str(o.category_id): o.area for o in semantic.objects} == {
                k: v for k, v in histogram.items() if k != "255"
            }


def test_published_pictures_build(read_source, fixtures, golden):
    (reading,) = read_source(ade20k, fixtures / "ade20k", "ovseg")
    assert reading.part.split == "validation"
    assert len(reading.samples) == 3
    for sample in map(rendered, reading.samples):
        name = f"{sample.image_key.removeprefix('ade20k/')}.png"
        histogram = Counter({str(o.category_id): o.area for o in sample.objects})
        histogram["255"] = masks.area(sample.ignore, sample.height, sample.width)
        assert histogram == golden[1]["fixture_semantic_shifted"][name]
    assert not reading.bad


def test_objects_beyond_all_measure_are_one_bad_picture(read_source, full):
    full.add("ADE_train_00000009", *street(), [0] * (ade20k_files.MAX_OBJECTS + 1))
    (reading,) = read_source(ade20k, full.root.parents[2], "genseg", edition=2021)
    (found,) = (bad for bad in reading.report.bad if bad.group == "ADE_train_00000009")
    assert (found.unit, found.reason) == ("images", "bad_field")


def test_a_folder_of_bad_records_alone_is_refused(read_source, full, monkeypatch):
    monkeypatch.setattr(ade20k_files, "MAX_BAD", 3)
    full.add("ADE_train_00000009", *street(), [0] * 4)
    with pytest.raises(SourceError, match=r"ADE_train_00000009\.json: more than 3 records cannot be used"):
        read_source(ade20k, full.root.parents[2], "genseg", edition=2021)
