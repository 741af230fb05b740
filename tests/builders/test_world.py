"""The procedural world: what is published agrees with itself, is true, and is the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from builders.coco import objects_of
from builders.coco_index import build_index
from builders.rows import read_rows
from builders.world import OWN_COLORS, STUFF, THINGS, make_scene
from builders.world_text import captions, references
from builders.world_tree import TreeSummary, pixel_outlines, write_tree
from dataengine.keyed import keyed
from dataengine.store.files import Folder

NUM_IMAGES = 150
KINDS = {kind.id: kind for kind in (*THINGS, *STUFF)}
COLORS = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "white", "black"]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools


class Tree:
    """A written tree, read with nothing of the project."""

    def __init__(self, root: Path, summary: TreeSummary) -> None:
        self.root, self.summary = root, summary
        names = ("instances", "panoptic", "captions", "refs")
        self.files = {n: json.loads((root / "annotations" / f"{n}_train.json").read_text()) for n in names}
        self.images = {image["id"]: image for image in self.files["instances"]["images"]}
        self.objects: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in self.images}
        for annotation in self.files["instances"]["annotations"]:
            self.objects[annotation["image_id"]].append(annotation)
        self.segments = {record["image_id"]: record for record in self.files["panoptic"]["annotations"]}

    def mask(self, annotation: dict[str, Any]) -> np.ndarray:
        """(H, W) bool, as pycocotools decodes it."""
        image = self.images[annotation["image_id"]]
        return coco_mask(annotation["segmentation"], image["height"], image["width"])

    def ids(self, image_id: int) -> np.ndarray:
        """(H, W) panoptic ids."""
        with Image.open(self.root / "annotations" / "panoptic_train" / self.segments[image_id]["file_name"]) as file:
            assert file.mode == "RGB"
            red, green, blue = (np.asarray(channel, dtype=np.int32) for channel in file.split())
        return red + 256 * green + 65536 * blue


def coco_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    if isinstance(segmentation, list):
        rle = coco.merge(coco.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = coco.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    return coco.decode(rle).astype(bool)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    root = tmp_path_factory.mktemp("world")
    return Tree(root, write_tree(root, NUM_IMAGES))


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# --- the same bytes --------------------------------------------------------------------------------------------------


def test_workers_change_nothing_and_a_smaller_tree_is_a_prefix(tree: Tree, tmp_path: Path) -> None:
    write_tree(tmp_path / "two", 56, workers=2)
    write_tree(tmp_path / "one", 56, workers=1)
    one, two, larger = digests(tmp_path / "one"), digests(tmp_path / "two"), digests(tree.root)
    assert one == two
    pictures = {name: value for name, value in one.items() if not name.endswith(".json")}
    assert len(pictures) == 112
    assert pictures.items() <= larger.items()
    for name, value in tree.files.items():
        small = json.loads((tmp_path / "one" / "annotations" / f"{name}_train.json").read_text())
        body = "refs" if name == "refs" else "annotations"
        assert small["images"] == value["images"][:56]
        assert small[body] == [record for record in value[body] if record["image_id"] <= 56]
        assert {k: v for k, v in small.items() if k not in ("images", body)} == {
            k: v for k, v in value.items() if k not in ("images", body)
        }


@pytest.mark.parametrize(
    "other", [(1, "train", 0), (0, "val", 0), (0, "train", 1)], ids=["seed", "split", "number of the picture"]
)
def test_another_key_is_another_picture(other: tuple[int, str, int]) -> None:
    first, second = make_scene(0, "train", 0), make_scene(*other)
    assert first.labels.shape != second.labels.shape or (first.labels != second.labels).any()


def test_progress_counts_to_the_end_and_nothing_temporary_stays(tmp_path: Path) -> None:
    seen: list[int] = []
    summary = write_tree(tmp_path / "new" / "tree", 55, split="val", progress=seen.append)
    assert seen == [50, 55]
    assert sorted(p.name for p in (tmp_path / "new" / "tree").iterdir()) == ["annotations", "images"]
    assert summary.images == len(list((tmp_path / "new" / "tree" / "images" / "val").iterdir())) == 55
    assert str(summary).endswith("(seed 0)")


@pytest.mark.parametrize(
    "existing",
    ["images/train/1.jpg", "annotations/panoptic_train/1.png", "annotations/instances_train.json"],
    ids=["pictures", "segments", "annotations"],
)
def test_an_existing_split_is_refused_and_left_alone(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).parent.mkdir(parents=True)
    (tmp_path / existing).write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="train"):
        write_tree(tmp_path, 1)
    assert digests(tmp_path) == {existing: hashlib.sha256(b"mine").hexdigest()}
    write_tree(tmp_path, 1, split="val")


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(_: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_tree(tmp_path, 2, progress=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_images": 0}, "num_images"),
        ({"num_images": 1, "workers": 0}, "workers"),
        ({"num_images": 1, "split": "../x"}, "split"),
        ({"num_images": 1, "quality": 101}, "quality"),
    ],
    ids=["no image", "no worker", "a split that leaves the folder", "no JPEG quality"],
)
def test_bad_arguments_are_named(tmp_path: Path, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        write_tree(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


# --- a COCO tree that agrees with itself -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "key"), [("instances", "id"), ("panoptic", "image_id")])
def test_the_reader_takes_every_record(tree: Tree, tmp_path: Path, name: str, key: str) -> None:
    with (tree.root / "annotations" / f"{name}_train.json").open("rb") as file:
        index = build_index(file, name, tmp_path / "index", key=key)
    assert (index.images, index.bad) == (NUM_IMAGES, [])
    assert index.annotations == len(tree.files[name]["annotations"])
    assert index.licenses["1"][0] == "CC0 1.0"
    assert index.namespace == "shapes-train-0"
    for row in read_rows(Folder(str(tmp_path / "index"))) if name == "instances" else ():
        image = tree.images[int(row.key)]
        found, bad = objects_of(row, name, image["height"], image["width"], {kind.id for kind in THINGS})
        assert bad == []
        for thing, annotation in zip(found.objects, tree.objects[int(row.key)], strict=True):
            assert (thing.area, thing.bbox) == (annotation["area"], tuple(annotation["bbox"]))


def test_summary_counts_what_is_there(tree: Tree) -> None:
    crowds = sum(a["iscrowd"] for a in tree.files["instances"]["annotations"])
    pictures = list((tree.root / "images" / "train").iterdir())
    assert tree.summary == TreeSummary(
        root=tree.root,
        split="train",
        seed=0,
        images=NUM_IMAGES,
        objects=len(tree.files["instances"]["annotations"]) - crowds,
        crowds=crowds,
        segments=sum(len(r["segments_info"]) for r in tree.files["panoptic"]["annotations"]),
        captions=len(tree.files["captions"]["annotations"]),
        refs=len(tree.files["refs"]["refs"]),
        sentences=sum(len(r["sentences"]) for r in tree.files["refs"]["refs"]),
        num_bytes=sum(path.stat().st_size for path in pictures),
    )


def test_ids_are_unique_and_linked(tree: Tree) -> None:
    sentences = [s for ref in tree.files["refs"]["refs"] for s in ref["sentences"]]
    for records, key in (
        (tree.files["instances"]["annotations"], "id"),
        (tree.files["captions"]["annotations"], "id"),
        (tree.files["refs"]["refs"], "ref_id"),
        (sentences, "sent_id"),
    ):
        assert len({record[key] for record in records}) == len(records) > 0
    objects = {a["id"]: a for a in tree.files["instances"]["annotations"]}
    for ref in tree.files["refs"]["refs"]:
        target = objects[ref["ann_id"]]
        assert (target["image_id"], target["category_id"]) == (ref["image_id"], ref["category_id"])
        assert not target["iscrowd"]


def test_pictures_have_the_stated_size_and_license(tree: Tree) -> None:
    for image in tree.images.values():
        with Image.open(tree.root / "images" / "train" / image["file_name"]) as file:
            assert (file.size, file.mode, file.format) == ((image["width"], image["height"]), "RGB", "JPEG")
        assert image["license"] == 1
    sizes = {(image["width"], image["height"]) for image in tree.images.values()}
    assert {(640, 480), (480, 640), (500, 375), (640, 427)} <= sizes


def test_instances_and_panoptic_agree_pixel_for_pixel(tree: Tree) -> None:
    for image_id, record in tree.segments.items():
        ids, infos = tree.ids(image_id), record["segments_info"]
        image = tree.images[image_id]
        assert ids.shape == (image["height"], image["width"])
        assert set(np.unique(ids).tolist()) - {0} == {info["id"] for info in infos}
        assert len({info["id"] for info in infos}) == len(infos)
        objects = tree.objects[image_id]
        for place, info in enumerate(infos):
            pixels = ids == info["id"]
            ys, xs = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
            box = [xs[0], ys[0], xs[-1] - xs[0] + 1, ys[-1] - ys[0] + 1]
            assert (info["area"], info["bbox"]) == (np.count_nonzero(pixels), box)
            assert KINDS[info["category_id"]].is_thing == (place < len(objects))
            if place < len(objects):
                thing = objects[place]
                assert {key: thing[key] for key in ("category_id", "area", "bbox", "iscrowd")} == {
                    key: info[key] for key in ("category_id", "area", "bbox", "iscrowd")
                }
                assert not (tree.mask(thing) ^ pixels).any()


def test_panoptic_categories(tree: Tree) -> None:
    categories = tree.files["panoptic"]["categories"]
    assert [c["isthing"] for c in categories] == [1] * len(THINGS) + [0] * len(STUFF)
    assert all(len(c["color"]) == 3 for c in categories)
    assert [c["id"] for c in tree.files["instances"]["categories"]] == [c["id"] for c in categories if c["isthing"]]


@pytest.mark.parametrize("number", range(12))
def test_pixel_outlines_give_back_masks_that_only_touch_at_corners(number: int) -> None:
    mask = np.random.default_rng(number).random((9, 14)) < (0.2, 0.5, 0.8)[number % 3]
    padded = np.pad(mask, 1)
    outlines = pixel_outlines(mask)
    holes = cv2.connectedComponents((~padded).view(np.uint8), connectivity=4)[0] - 2
    assert (outlines is None) == (holes > 0)
    if outlines is not None and mask.any():
        np.testing.assert_array_equal(coco_mask([o.ravel().tolist() for o in outlines], 9, 14), mask)


# --- structure -------------------------------------------------------------------------------------------------------


def test_the_hard_cases_occur(tree: Tree) -> None:
    things = [a for a in tree.files["instances"]["annotations"] if not a["iscrowd"]]
    seen: Counter[str] = Counter()
    for thing in things:
        x, y, w, h = thing["bbox"]
        mask = np.pad(tree.mask(thing)[y : y + h, x : x + w], 1)
        holes = cv2.connectedComponents((~mask).view(np.uint8), connectivity=4)[0] > 2
        assert isinstance(thing["segmentation"], list) or holes
        seen["hole"] += holes
        seen["parts"] += cv2.connectedComponents(mask.view(np.uint8), connectivity=8)[0] > 2
        seen["polygon"] += isinstance(thing["segmentation"], list)
        seen["occluded"] += thing["attributes"]["occluded"]
        seen["truncated"] += thing["attributes"]["truncated"]
        assert thing["area"] >= 1
    share = {name: count / len(things) for name, count in seen.items()}
    assert share["hole"] > 0.1
    assert share["parts"] > 0.05
    assert share["polygon"] > 0.6
    assert 0.2 < share["occluded"] < 0.6
    assert share["truncated"] > 0.03
    assert {t["category_id"] for t in things} == {kind.id for kind in THINGS}
    assert {t["attributes"]["color"] for t in things} == set(COLORS)
    stuff = {i["category_id"] for r in tree.segments.values() for i in r["segments_info"]} - {k.id for k in THINGS}
    assert stuff == {kind.id for kind in STUFF}


def test_crowds_are_many_small_shapes_in_one_uncompressed_region(tree: Tree) -> None:
    crowds = [a for a in tree.files["instances"]["annotations"] if a["iscrowd"]]
    assert 0.02 * NUM_IMAGES < len(crowds) < 0.12 * NUM_IMAGES
    for crowd in crowds:
        assert isinstance(crowd["segmentation"]["counts"], list)
        assert crowd["area"] == tree.mask(crowd).sum()
    parts = [cv2.connectedComponents(tree.mask(c).view(np.uint8))[0] - 1 for c in crowds]
    assert np.median(parts) > 3


def test_statistics_are_like_coco() -> None:
    scenes = [make_scene(3, "train", number) for number in range(220)]
    counts = [sum(not fact.crowd for fact in scene.facts) for scene in scenes]
    sides = [fact.area**0.5 for scene in scenes for fact in scene.facts if not fact.crowd]
    assert 6.7 < np.mean(counts) < 8.3
    assert 0 < sum(not scene.facts for scene in scenes) < 0.03 * len(scenes)
    assert 50 < np.median(sides) < 70
    small, large = np.mean(np.array(sides) < 32), np.mean(np.array(sides) > 96)
    assert 0.1 < small < 0.4
    assert 0.15 < large < 0.4


# --- truth -----------------------------------------------------------------------------------------------------------
# The words' meaning once more, over the published records only: an expression is parsed, every object is asked.


def things_of(tree: Tree, image_id: int) -> list[dict[str, Any]]:
    return [a for a in tree.objects[image_id] if not a["iscrowd"]]


def is_a(noun: str) -> Callable[[dict[str, Any]], bool]:
    first, _, rest = noun.partition(" ")
    color, kind = (first, rest) if first in COLORS else (None, noun)
    assert kind == "shape" or kind in {k.name for k in THINGS}, noun

    def holds(thing: dict[str, Any]) -> bool:
        return kind in ("shape", KINDS[thing["category_id"]].name) and color in (None, thing["attributes"]["color"])

    return holds


def center(thing: dict[str, Any]) -> tuple[float, float]:
    x, y, w, h = thing["bbox"]
    return x + w / 2, y + h / 2


def denoted(sentence: str, things: list[dict[str, Any]], width: int, height: int) -> list[int]:
    """Ids of the objects an expression is true of."""
    assert sentence.startswith("the ")
    text = sentence[4:]
    if match := re.fullmatch(r"(.+) (left of|right of|above|below) the (.+)", text):
        anchors = [t for t in things if is_a(match[3])(t)]
        if len(anchors) != 1:
            return []
        x, y, w, h = anchors[0]["bbox"]
        test: Callable[[tuple[float, float]], bool] = {
            "left of": lambda c: c[0] < x,
            "right of": lambda c: c[0] > x + w,
            "above": lambda c: c[1] < y,
            "below": lambda c: c[1] > y + h,
        }[match[2]]
        return [t["id"] for t in things if is_a(match[1])(t) and t is not anchors[0] and test(center(t))]
    if match := re.fullmatch(r"(.+) (at the top|at the bottom|on the left|on the right)", text):
        test = {
            "at the top": lambda c: c[1] < height / 3,
            "at the bottom": lambda c: c[1] > height * 2 / 3,
            "on the left": lambda c: c[0] < width / 3,
            "on the right": lambda c: c[0] > width * 2 / 3,
        }[match[2]]
        return [t["id"] for t in things if is_a(match[1])(t) and test(center(t))]
    first, _, noun = text.partition(" ")
    beats: Callable[[dict[str, Any], dict[str, Any]], bool] | None = {
        "largest": lambda a, b: a["area"] >= 1.3 * b["area"],
        "smallest": lambda a, b: a["area"] <= b["area"] / 1.3,
        "leftmost": lambda a, b: center(a)[0] <= center(b)[0] - 0.05 * width,
        "rightmost": lambda a, b: center(a)[0] >= center(b)[0] + 0.05 * width,
        "topmost": lambda a, b: center(a)[1] <= center(b)[1] - 0.05 * height,
        "bottommost": lambda a, b: center(a)[1] >= center(b)[1] + 0.05 * height,
    }.get(first)
    if beats is None:
        return [t["id"] for t in things if is_a(text)(t)]
    members = [t for t in things if is_a(noun)(t)]
    assert len(members) > 1, sentence
    return [a["id"] for a in members if all(beats(a, b) for b in members if b is not a)]


def test_every_expression_denotes_exactly_its_object(tree: Tree) -> None:
    forms: Counter[str] = Counter()
    for ref in tree.files["refs"]["refs"]:
        image = tree.images[ref["image_id"]]
        things = things_of(tree, ref["image_id"])
        for sentence in ref["sentences"]:
            text = sentence["sent"]
            assert denoted(text, things, image["width"], image["height"]) == [ref["ann_id"]], text
            forms.update(word for word in ("largest", "most ", " of the ", "above", "at the", "on the") if word in text)
    assert min(forms.values()) > 20
    assert len(forms) == 6


def test_expressions_keep_off_crowds(tree: Tree) -> None:
    crowds = {
        a["image_id"]: KINDS[a["category_id"]].name for a in tree.files["instances"]["annotations"] if a["iscrowd"]
    }
    said = [
        (s["sent"], crowds[r["image_id"]])
        for r in tree.files["refs"]["refs"]
        if r["image_id"] in crowds
        for s in r["sentences"]
    ]
    assert said
    assert not [(text, kind) for text, kind in said if re.search(rf"\b({kind}|shape)\b", text)]


WORDS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
NUMBERS = {"a": 1, "an": 1} | {word: number for number, word in enumerate(WORDS, start=2)}


def parse_counts(text: str) -> dict[str, int]:
    """ "a red ring and two stars" to {"red ring": 1, "star": 2}; crowds are left out."""
    counts = {}
    for part in re.split(r", | and ", text):
        number, _, noun = part.partition(" ")
        if noun.startswith("crowd of "):
            continue
        value = NUMBERS.get(number) or int(number)
        words = {kind.plural: kind.name for kind in THINGS} | {"shapes": "shape"}
        for plural, singular in words.items():
            if value > 1 and re.search(rf"(^| ){plural}$", noun):
                noun = noun.removesuffix(plural) + singular
                break
        counts[noun] = value
    return counts


def test_captions_count_right_and_name_the_ground(tree: Tree) -> None:
    seen: Counter[str] = Counter()
    for caption in tree.files["captions"]["annotations"]:
        image_id, text = caption["image_id"], caption["caption"]
        things = things_of(tree, image_id)
        infos = tree.segments[image_id]["segments_info"]
        grounds = sorted((i for i in infos if not KINDS[i["category_id"]].is_thing), key=lambda i: -i["area"])
        names = [KINDS[i["category_id"]].name for i in grounds[:2]]
        place = " and ".join(names)
        if not tree.objects[image_id]:
            assert place in text
            assert "nothing else" in text or "empty" in text or "without" in text
            seen["empty"] += 1
            continue
        counted = text.removesuffix(f" over {place}").removeprefix(f"a scene of {place} with ")
        assert counted != text, text
        for noun, number in parse_counts(counted).items():
            assert sum(is_a(noun)(t) for t in things) == number, (text, noun)
            seen["shape" if noun == "shape" else "group"] += 1
        crowd = [KINDS[a["category_id"]].plural for a in tree.objects[image_id] if a["iscrowd"]]
        assert re.findall(r"crowd of ([a-z ]+?)(?: over|$)", text) == crowd
        seen["crowd"] += bool(crowd)
    assert min(seen[name] for name in ("empty", "shape", "group", "crowd")) > 0


def test_words_depend_on_their_key_only() -> None:
    scene = make_scene(0, "train", 5)
    assert references(scene, keyed(1)) == references(scene, keyed(1))
    assert captions(scene, keyed(1)) == captions(scene, keyed(1))


@pytest.mark.parametrize(
    ("style", "most", "side", "own"),
    [
        ("simple", 8, 0.1, (0.0, 0.25)),
        ("simple-colored", 8, 0.1, (0.75, 1.0)),
        ("large-colored", 5, 0.2, (0.75, 1.0)),
    ],
)
def test_simple_worlds_have_few_objects_that_can_be_made_out(style, most, side, own):
    """own: the share of objects in the color of their kind; by chance it is one of eleven, of which six are in use."""
    scenes = [make_scene(3, "train", number, style) for number in range(60)]
    facts = [fact for scene in scenes for fact in scene.facts]
    assert all(max(scene.labels.shape) == 160 for scene in scenes)
    assert {fact.kind.name for fact in facts} == set(OWN_COLORS)
    assert max(len(scene.facts) for scene in scenes) == most
    assert not any(fact.crowd for fact in facts)
    assert np.median([np.sqrt(fact.area) for fact in facts]) > side * 160
    share = np.mean([fact.color == OWN_COLORS[fact.kind.name] for fact in facts])
    assert own[0] <= share <= own[1]


def test_a_style_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no style 'cubist'; there are world, simple, simple-colored, large-colored"):
        write_tree(tmp_path, 1, style="cubist")
