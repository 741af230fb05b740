"""The world in published layouts: the fields of real files, masks of the world's pixels, the same bytes every time."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import pickletools
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from builders.layouts.pickles import pickled
from builders.layouts.picture import pieces_without_holes
from builders.layouts.tree import Layout, write_layouts
from builders.world import STUFF, THINGS, make_scene
from builders.world_tree import write_tree
from pipelines.world_published import LAYOUTS, write_published

SEED, NUM_IMAGES = 25, 25  # both splits have a crowd, train2017 has a picture without objects
NUM_TRAIN = 20
NAMES = {kind.id: kind.name for kind in (*THINGS, *STUFF)}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("layouts") / "published"
    summary = write_published(root, NUM_IMAGES, seed=SEED)
    assert summary.images == {"train2017": NUM_TRAIN, "val2017": NUM_IMAGES - NUM_TRAIN}
    return root


@cache
def read(path: Path) -> Any:
    """A published file, whatever it is written as."""
    data = path.read_bytes()
    if path.suffix == ".p":
        return pickle.loads(data, encoding="latin1")
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    try:
        return json.loads(data)
    except UnicodeDecodeError:
        return json.loads(data.decode("cp1252"))


@cache
def split_of(tree: Path, split: str) -> tuple[dict[int, Any], dict[int, Any], dict[int, np.ndarray]]:
    """Annotations and panoptic records by id, and panoptic ids (H, W) by image id."""
    folder = tree / "coco/annotations"
    annotations = {a["id"]: a for a in read(folder / f"instances_{split}.json")["annotations"]}
    records = {r["image_id"]: r for r in read(folder / f"panoptic_{split}.json")["annotations"]}
    ids = {}
    for image_id, record in records.items():
        pixels = np.asarray(Image.open(folder / f"panoptic_{split}" / record["file_name"])).astype(int)
        ids[image_id] = pixels @ (1, 256, 65536)
    return annotations, records, ids


def annotation(tree: Path, number: int) -> dict[str, Any]:
    return split_of(tree, "val2017" if number > 50_000_000 else "train2017")[0][number]


def segments(tree: Path, image_id: int) -> list[tuple[str, np.ndarray]]:
    """Name and (H, W) bool mask of every panoptic segment of a picture."""
    _, records, ids = split_of(tree, "val2017" if image_id > 500_000 else "train2017")
    return [(NAMES[s["category_id"]], ids[image_id] == s["id"]) for s in records[image_id]["segments_info"]]


def decoded(segmentation: Any, height: int, width: int) -> np.ndarray:
    if isinstance(segmentation, list) and isinstance(segmentation[0], list):
        rle = coco.merge(coco.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation, list):
        (rle,) = segmentation
    elif isinstance(segmentation["counts"], list):
        rle = coco.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    return coco.decode(rle).astype(bool)


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- fields ----------------------------------------------------------------------------------------------------------


def fields(value: Any, path: str = "") -> set[str]:
    """Every path in a value with its type; `*` where the keys are data."""
    if isinstance(value, dict):
        keys = {k: "*" if k.isdigit() or path.endswith("groundings") else k for k in value}
        return set().union(*(fields(v, f"{path}.{keys[k]}") for k, v in value.items()), {f"{path}: dict"})
    if isinstance(value, list):
        return set().union(*(fields(v, f"{path}[]") for v in value), {f"{path}: list"})
    return {f"{path}: {'number' if type(value) in (int, float) else type(value).__name__}"}


GOLDEN = {
    "coco/annotations/instances_val2017.json": "coco/annotations/instances_val2017.json",
    "refer/refcoco/refs(unc).p": "golden/formats/refcoco/refcoco/refs(unc).p",
    "refer/refcoco/instances.json": "golden/formats/refcoco/refcoco/instances.json",
    "refer/refcoco+/refs(unc).p": "golden/formats/refcoco/refcoco+/refs(unc).p",
    "refer/refcocog/refs(umd).p": "golden/formats/refcoco/refcocog/refs(umd).p",
    "grefcoco/grefs(unc).json": "golden/formats/grefcoco/grefcoco/grefs(unc).json",
    "grefcoco/instances.json": "golden/formats/grefcoco/grefcoco/instances.json",
    "grandf/annotations/train/GranDf_HA_GCG_train.json": (
        "golden/formats/gcg/annotations/train/GranDf_HA_GCG_train.json"
    ),
    "grandf/annotations/train/OpenPsgGCG_train.json": "golden/formats/gcg/annotations/train/OpenPsgGCG_train.json",
    "grandf/annotations/train/RefCOCOg_GCG_train.json": "golden/formats/gcg/annotations/train/RefCOCOg_GCG_train.json",
    "grandf/annotations/train/flickr_mergedGT_GCG_train.json": (
        "golden/formats/gcg/annotations/train/flickr_mergedGT_GCG_train.json"
    ),
    "grandf/annotations/val_test/val_gcg_coco_mask_gt.json": (
        "golden/formats/gcg/annotations/val_test/val_gcg_coco_mask_gt.json"
    ),
    "grandf/annotations/val_test/test_gcg_coco_caption_gt.json": (
        "golden/formats/gcg/annotations/val_test/test_gcg_coco_caption_gt.json"
    ),
    "llava/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json": "golden/formats/llava/blip_laion_cc_sbu_558k.json",
    "llava/LLaVA-Instruct-150K/llava_v1_5_mix665k.json": "golden/formats/llava/llava_v1_5_mix665k.json",
    "reasonseg/train/*.json": "golden/formats/reasonseg/train/*.json",
    "reasonseg/explanatory/train.json": "golden/formats/reasonseg/explanatory/train.json",
    "coco_interactive/coco_interactive_val_psalm.json": (
        "golden/formats/coco_interactive/coco_interactive_val_psalm.json.gz"
    ),
    "coco_vgd/annotations/coco_vgdseg_train.json": "golden/formats/coco_vgd/coco_vgdseg_train.json.gz",
    "sa1b/sa_000000/*.json": "golden/formats/sa1b/sa_000000/*.json",
    "lvis/lvis_v1_train.json": "golden/formats/lvis/lvis_v1_train.json",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_fields_and_their_types_are_the_published_ones(name: str, tree: Path, fixtures: Path) -> None:
    def every(root: Path, pattern: str) -> set[str]:
        found = set().union(*(fields(read(path)) for path in sorted(root.glob(pattern))))
        return {path for path in found if not path.startswith(".info")}  # who wrote the file, and when

    assert every(tree, name) == every(fixtures, GOLDEN[name])


def test_ade20k_is_laid_out_as_published(tree: Path, fixtures: Path) -> None:
    ours, published = tree / "ade20k/ADEChallengeData2016", fixtures / "golden/formats/ade20k"
    for folder in ("images", "annotations", "annotations_instance"):
        for part in ("training", "validation"):
            mine, theirs = (sorted((root / folder / part).iterdir()) for root in (ours, published))
            assert {re.sub(r"\d", "0", p.name) for p in mine} == {re.sub(r"\d", "0", p.name) for p in theirs}
            assert Image.open(mine[0]).mode == Image.open(theirs[0]).mode
    head = (fixtures / "ade20k/objectInfo150.txt").read_text().splitlines()[0]
    assert (ours / "objectInfo150.txt").read_text().splitlines()[0] == head


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_coco_masks_are_the_panoptic_pixels(split: str, tree: Path) -> None:
    annotations, records, ids = split_of(tree, split)
    infos = [(image_id, info) for image_id, r in records.items() for info in r["segments_info"]]
    things = [(image_id, info) for image_id, info in infos if info["category_id"] <= len(THINGS) + 2]
    assert len(things) == len(annotations)
    for (image_id, info), record in zip(things, annotations.values(), strict=True):
        assert (record["image_id"], record["iscrowd"]) == (image_id, info["iscrowd"])
        assert isinstance(record["segmentation"], dict if record["iscrowd"] else list)
        pixels = ids[image_id] == info["id"]
        np.testing.assert_array_equal(decoded(record["segmentation"], *pixels.shape), pixels)


def test_the_coco_part_is_the_world_that_is_written_alone(tree: Path, tmp_path: Path) -> None:
    write_tree(tmp_path, 3, seed=SEED, split="train2017")
    for number in (1, 2, 3):
        name = f"{number:012d}"
        for ours, alone in (
            (f"train2017/{name}.jpg", f"images/train2017/{name}.jpg"),
            (f"annotations/panoptic_train2017/{name}.png", f"annotations/panoptic_train2017/{name}.png"),
        ):
            assert (tree / "coco" / ours).read_bytes() == (tmp_path / alone).read_bytes()


def masks_with_images(tree: Path) -> Iterator[tuple[str, int, Any]]:
    """Where an RLE stands for one segment of a picture: which file, the image's COCO id, the RLE."""
    train = tree / "grandf/annotations/train"
    for name in ("GranDf_HA_GCG_train", "OpenPsgGCG_train"):
        for record in read(train / f"{name}.json"):
            for grounding in record["groundings"].values():
                yield from ((name, int(record["image_id"]), rle) for rle in grounding["rle_masks"])
    for record in read(train / "flickr_mergedGT_GCG_train.json")["annotations"]:
        yield "flickr", record["image_id"], record["sam_mask"]
    for part in ("val", "test"):
        for record in read(tree / f"grandf/annotations/val_test/{part}_gcg_coco_mask_gt.json")["annotations"]:
            yield part, int(record["image_id"].removeprefix("sa_")), record["segmentation"]
    for path in (tree / "sa1b").rglob("*.json"):
        record = read(path)
        assert path.stem == f"sa_{record['image']['image_id']}"
        yield from (("sa1b", record["image"]["image_id"], a["segmentation"]) for a in record["annotations"])
    for record in read(tree / "refer/refclef/instances.json")["annotations"]:
        yield "refclef", record["image_id"], record["segmentation"]


def test_every_rle_is_one_segment_of_its_picture(tree: Path) -> None:
    seen: Counter[str] = Counter()
    for name, image_id, rle in masks_with_images(tree):
        height, width = split_of(tree, "val2017" if image_id > 500_000 else "train2017")[2][image_id].shape
        mask = decoded(rle, height, width)
        assert any((mask == pixels).all() for _, pixels in segments(tree, image_id)), (name, image_id)
        seen[name] += 1
    assert len(seen) == 7
    sa1b = sum(len(segments(tree, image_id)) for image_id in range(1, NUM_TRAIN + 1))
    assert seen["sa1b"] == sa1b


def test_sa1b_points_lie_in_their_masks(tree: Path) -> None:
    for path in (tree / "sa1b").rglob("*.json"):
        for record in read(path)["annotations"]:
            mask = coco.decode(record["segmentation"])
            ((x, y),) = record["point_coords"]
            assert mask[int(y), int(x)]
            assert record["area"] == mask.sum()
            assert record["bbox"] == coco.toBbox(record["segmentation"]).tolist()


def test_ade20k_maps_are_the_panoptic_pixels(tree: Path) -> None:
    root = tree / "ade20k/ADEChallengeData2016"
    rows = [line.split("\t") for line in (root / "objectInfo150.txt").read_text().splitlines()[1:]]
    names = {int(row[0]): row[4].split(", ")[0] for row in rows}
    mapping = [line.split("\t") for line in (root / "ade20k_instance_catid_mapping.txt").read_text().splitlines()[1:]]
    to_semantic = {int(a): int(b) for a, b, _ in mapping}
    assert (len(names), len(mapping), len(to_semantic)) == (150, 13, 12)
    held: Counter[str] = Counter()
    for number in range(NUM_TRAIN):
        stem = f"ADE_train_{number + 1:08d}"
        semantic = np.asarray(Image.open(root / f"annotations/training/{stem}.png"))
        red, green, _ = np.moveaxis(np.asarray(Image.open(root / f"annotations_instance/training/{stem}.png")), 2, 0)
        covered = np.zeros(semantic.shape, dtype=bool)
        objects = 0
        for name, pixels in segments(tree, number + 1):
            assert {names[value] for value in np.unique(semantic[pixels]).tolist()} == {name}
            covered |= pixels
            index = set(np.unique(green[pixels]).tolist())
            assert len(index) == 1
            if index != {0}:
                objects += 1
                np.testing.assert_array_equal(green == index.pop(), pixels)
                assert names[to_semantic[int(red[pixels][0])]] == name
        assert not semantic[~covered].any()
        assert objects == green.max()
        held.update({names[value] for value in np.unique(semantic).tolist() if value})
    assert {row[4].split(", ")[0]: int(row[2]) for row in rows if row[2] != "0"} == dict(held)


def test_reasonseg_outlines_fill_to_an_object(tree: Path) -> None:
    """Rasterised as the publisher does: lines of thickness 1, filled."""
    whole = 0
    for path in (tree / "reasonseg").rglob("[0-9]*.json"):
        candidates = segments(tree, int(path.stem.partition("_")[0]))
        canvas = np.zeros(candidates[0][1].shape, dtype=np.uint8)
        for shape in read(path)["shapes"]:
            if shape["label"] == "target":
                points = [np.array(shape["points"], dtype=np.int32)]
                cv2.polylines(canvas, points, True, 1, 1)
                cv2.fillPoly(canvas, points, 1)
        best = max(candidates, key=lambda c: (canvas & c[1]).sum() / (canvas | c[1]).sum())
        padded = np.pad(~best[1], 1, constant_values=True).view(np.uint8)
        if cv2.connectedComponents(padded, connectivity=4)[0] == 2:  # no hole
            np.testing.assert_array_equal(canvas.astype(bool), best[1])
            whole += 1
    assert whole > 8


# --- references ------------------------------------------------------------------------------------------------------

PICKLES = {
    "refcoco": ("unc", "google"),
    "refcoco+": ("unc",),
    "refcocog": ("umd", "google"),
    "refclef": ("unc", "berkeley"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_are_those_of_python_2_and_hold_plain_values(name: str, tree: Path) -> None:
    for by in PICKLES[name]:
        path = tree / f"refer/{name}/refs({by}).p"
        data = path.read_bytes()
        if name == "refcoco+":  # pickletools wants ASCII where strings are text
            data = data.replace(b"\\x", b"")
        codes = {code.name for code, _, _ in pickletools.genops(data)}
        assert not codes & {"GLOBAL", "STACK_GLOBAL", "INST", "REDUCE", "BUILD", "OBJ", "NEWOBJ"}
        assert codes & {"BINSTRING", "SHORT_BINSTRING", "STRING"}
        assert not {code for code in codes if "UNICODE" in code}
        assert ("PROTO" in codes) == (name != "refcoco+")
        assert ("LONG" in codes) == (name == "refcoco+")
        with pytest.raises(UnicodeDecodeError):  # «…» needs latin-1
            pickle.loads(path.read_bytes())
        images = {image["id"]: image for image in read(tree / f"refer/{name}/instances.json")["images"]}
        annotations = {a["id"] for a in read(tree / f"refer/{name}/instances.json")["annotations"]}
        refs = read(path)
        assert refs
        for ref in refs:
            assert ref["ann_id"] in annotations
            assert ref["category_id"] == annotation(tree, ref["ann_id"])["category_id"]
            assert ref["sent_ids"] == [s["sent_id"] for s in ref["sentences"]]
            assert all(s["tokens"] == s["sent"].split() for s in ref["sentences"])
            stem = Path(images[ref["image_id"]]["file_name"]).stem
            assert re.fullmatch(rf"{re.escape(stem)}_\d+\.jpg", ref["file_name"])
        for key in ("ref_id", "sent_id"):
            found = [r[key] for r in refs] if key == "ref_id" else [i for r in refs for i in r["sent_ids"]]
            assert len(set(found)) == len(found)


@pytest.mark.parametrize("protocol", [0, 2])
def test_pickled_gives_back_what_was_put_in(protocol: int) -> None:
    awkward = 'it\'s "é"\n\\ and\tso on'
    value = [{"ann_id": -1, "n": 2**31 - 1, "text": text} for text in (awkward, "", "x" * 300)]
    value += [{"list": [], "dict": {}, "n": number, "odd": number % 2 == 1} for number in range(1100)]
    again = pickle.loads(b"".join(pickled(value, protocol)), encoding="latin1")
    assert again == value
    assert again[-1]["odd"] is True
    assert pickle.loads(b"".join(pickled([], protocol))) == []


def test_refcoco_plus_says_nothing_of_places(tree: Path) -> None:
    text = " ".join(s["sent"] for ref in read(tree / "refer/refcoco+/refs(unc).p") for s in ref["sentences"])
    assert not re.search(r"left|right|top|bottom|above|below", text)


def test_the_refer_family_leaks_as_published(tree: Path) -> None:
    splits: dict[str, dict[int, set[str]]] = {}
    for name, pickles in PICKLES.items():
        for by in pickles:
            found = splits.setdefault(f"{name}/{by}", {})
            for ref in read(tree / f"refer/{name}/refs({by}).p"):
                found.setdefault(ref["image_id"], set()).add(ref["split"])
    refcoco, umd, google = splits["refcoco/unc"], splits["refcocog/umd"], splits["refcocog/google"]
    assert set().union(*refcoco.values()) == {"train", "val", "testA", "testB"}
    assert all(len(s) == 1 for s in refcoco.values())
    train2017 = {image["id"] for image in read(tree / "coco/annotations/instances_train2017.json")["images"]}
    assert any(split != {"train"} and image_id in train2017 for image_id, split in refcoco.items())
    assert any(refcoco[i] == {"train"} and umd.get(i) in ({"val"}, {"test"}) for i in refcoco)
    assert any(s == {"train", "val"} for s in google.values())


def test_grefcoco_expressions_are_of_several_one_and_no_object(tree: Path) -> None:
    seen: Counter[str] = Counter()
    for ref in read(tree / "grefcoco/grefs(unc).json"):
        number, split = ref["image_id"], "train2017" if ref["image_id"] < 500_000 else "val2017"
        scene = make_scene(SEED, split, number - (1 if split == "train2017" else 500_001))
        objects = [(fact.color, fact.kind) for fact in scene.facts if not fact.crowd]
        kinds = [record["category_id"] for record in split_of(tree, split)[0].values() if record["image_id"] == number]
        targets = [] if ref["ann_id"] == [-1] else ref["ann_id"]
        assert ref["category_id"] == ([annotation(tree, i)["category_id"] for i in targets] or [-1])
        assert set(ref["category_id"]) <= {*kinds, -1}
        color, _, noun = ref["sentences"][0]["sent"].partition(" ")[2].partition(" ")
        if len(targets) > 1:
            assert objects.count((color, next(k for k in THINGS if k.plural == noun))) == len(targets)
        elif not targets:
            assert objects.count((color, next(k for k in THINGS if k.name == noun))) == 0
        seen[f"{min(len(targets), 2)} {ref.get('no_target')}"] += 1
    assert set(seen) == {"0 True", "0 None", "1 False", "1 None", "2 False", "2 None"}


# --- grounded captions -----------------------------------------------------------------------------------------------

WORDS = ["a", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def check_phrase(phrase: str, num_masks: int, names: list[str]) -> None:
    """Its number is that of its masks; its masks are of what it names."""
    words = phrase.lower().split()
    assert len(set(names)) == 1
    plural = {kind.name: kind.plural for kind in (*THINGS, *STUFF)}[names[0]]
    if words[0] in (*WORDS, "an"):
        assert WORDS.index("a" if words[0] == "an" else words[0]) + 1 == num_masks
        assert " ".join(words).endswith(plural if num_masks > 1 else names[0])
    else:
        assert (words, num_masks) == (names[0].split(), 1)


def test_phrases_stand_for_their_masks(tree: Path) -> None:
    seen: Counter[str] = Counter()
    for name in ("GranDf_HA_GCG_train", "OpenPsgGCG_train"):
        for record in read(tree / f"grandf/annotations/train/{name}.json"):
            caption, known = record["caption"], segments(tree, int(record["image_id"]))
            seen["quoted"] += caption.startswith('"')
            seen["blank"] += caption.startswith(" ")
            seen["no size"] += "height" not in record
            spans = []
            for phrase, grounding in record["groundings"].items():
                start, end = grounding["token_positives"]
                pixels = [coco.decode(rle).astype(bool) for rle in grounding["rle_masks"]]
                names = [n for mask in pixels for n, segment in known if (segment == mask).all()]
                seen["several"] += len(pixels) > 1
                if caption[start:end] != phrase:
                    assert phrase == "something else"
                    seen["absent"] += 1
                elif any(s < end and start < e for s, e in spans):
                    seen["overlapping"] += 1
                else:
                    check_phrase(phrase, len(pixels), names)
                spans.append((start, end))
    assert min(seen[n] for n in ("quoted", "blank", "no size", "several", "absent", "overlapping")) > 0


def test_flickr_spans_and_their_quirks(tree: Path) -> None:
    file = read(tree / "grandf/annotations/train/flickr_mergedGT_GCG_train.json")
    captions = {image["id"]: image["caption"] for image in file["images"]}
    groups: dict[tuple[int, int, int], list[str]] = {}
    for record in file["annotations"]:
        ((start, end),) = record["tokens_positive"]
        mask = coco.decode(record["sam_mask"]).astype(bool)
        names = [n for n, segment in segments(tree, record["image_id"]) if (segment == mask).all()]
        groups.setdefault((record["image_id"], start, end), []).extend(names)
    for (image_id, start, end), names in groups.items():
        check_phrase(captions[image_id][start:end], len(names), names)
    assert any(caption.startswith(" ") for caption in captions.values())
    assert any(len(caption.split()) == 2 for caption in captions.values())
    assert any(record.get("ignore") for record in file["annotations"])
    assert set(captions) - {image_id for image_id, _, _ in groups}


def test_refcocog_sentences_stand_in_their_caption_and_denote_their_object(tree: Path) -> None:
    """A sentence is found where it was put, and it is one that RefCOCOg has for the same object."""
    said = {}
    for ref in read(tree / "refer/refcocog/refs(umd).p"):
        said[ref["image_id"], ref["sentences"][0]["sent"]] = ref["ann_id"]
    records = read(tree / "grandf/annotations/train/RefCOCOg_GCG_train.json")
    for record in records:
        ((image_id, value),) = record.items()
        for ref in value["refs"]:
            number = said[int(image_id), ref["sentence"]]
            assert annotation(tree, number)["segmentation"] == ref["segmentation"]
            start = value["caption"].index(ref["sentence"])
            before = value["caption"][:start].strip('"')
            assert before == "" or before.endswith(", ")
    assert any(value["caption"].startswith('"') for record in records for value in record.values())


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_imported_prompts_belong_to_their_annotations(tree: Path) -> None:
    """PSALM's are single pixels, X-SAM's discs of radius 10 about one that lies in the object."""
    crowds = 0
    for number, record in enumerate(read(tree / "coco_interactive/coco_interactive_train_psalm.json")):
        height, width = record["image_info"]["height"], record["image_info"]["width"]
        assert record["new_img_id"] == number
        for thing in record["anns"]:
            mask = decoded(thing["segmentation"], height, width)
            point = coco.decode(thing["point_visual_prompt_mask"]).astype(bool)
            components = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)[0] - 1
            assert point.sum() <= components
            assert not (point & ~mask).any()
            assert {k: thing[k] for k in ("id", "bbox", "area")} == {
                k: annotation(tree, thing["id"])[k] for k in ("id", "bbox", "area")
            }
            crowds += thing["iscrowd"]
    assert crowds == 1
    discs = kept = 0
    for record in read(tree / "coco_vgd/annotations/coco_vgdseg_train.json"):
        height, width = record["image_size"]
        for thing in record["annotations"]:
            prompts = {k: coco.decode(v).astype(bool) for k, v in thing["visual_prompts"].items()}
            mask = decoded(thing["segmentation"], height, width)
            assert (prompts["box_visual_prompt"] & mask).any()
            assert prompts["mask_visual_prompt"][mask].mean() > 0.5
            x, y, w, h = map(int, coco.toBbox(thing["visual_prompts"]["point_visual_prompt"]))
            if (w, h) == (21, 21):  # one disc, not cut by the frame
                assert prompts["point_visual_prompt"].sum() == 317
                assert mask[y + 10, x + 10]
                discs += 1
            kept += 1
    assert discs > kept / 2
    assert kept == sum(not a["iscrowd"] for a in split_of(tree, "train2017")[0].values())


# --- rows and files --------------------------------------------------------------------------------------------------


def test_llava_has_rows_of_every_kind(tree: Path) -> None:
    rows = read(tree / "llava/LLaVA-Instruct-150K/llava_v1_5_mix665k.json")
    folders = {row["image"].rpartition("/")[0] for row in rows if "image" in row}
    assert folders >= {"coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K"}
    assert "vg/VG_100K_2" in folders
    first = [row["conversations"][0]["value"] for row in rows if "image" in row]
    assert all(value.count("<image>") == 1 for value in first)
    assert any(value.endswith("<image>") for value in first)
    assert any(sum(turn["from"] == "human" for turn in row["conversations"]) > 2 for row in rows)
    assert any(row["conversations"][0]["from"] == "gpt" for row in rows)
    assert any(type(row["id"]) is int for row in rows)
    assert any("image" not in row for row in rows)
    for row in read(tree / "llava/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"):
        assert re.fullmatch(r"\d{5}/\d{9}\.jpg", row["image"])


def pictures_named(tree: Path) -> Iterator[tuple[str, int]]:
    """Every picture that a record names: its place in the tree, and its COCO id."""
    for split in ("train2017", "val2017"):
        for image in read(tree / f"coco/annotations/instances_{split}.json")["images"]:
            yield f"coco/{split}/{image['file_name']}", image["id"]
    for part in ("train", "val"):
        for image in read(tree / f"lvis/lvis_v1_{part}.json")["images"]:
            yield image["coco_url"].replace("http://images.cocodataset.org", "coco"), image["id"]
        for record in read(tree / f"coco_interactive/coco_interactive_{part}_psalm.json"):
            yield f"coco/{part}2017/{record['image']}", record["image_info"]["id"]
        for record in read(tree / f"coco_vgd/annotations/coco_vgdseg_{part}.json"):
            yield f"coco/{part}2017/{record['image_file']}", record["image_id"]
    for name in PICKLES:
        folder = "refer/images/saiapr_tc-12" if name == "refclef" else "coco2014/train2014"
        for image in read(tree / f"refer/{name}/instances.json")["images"]:
            yield f"{folder}/{image['file_name']}", image["id"]
    for image in read(tree / "grefcoco/instances.json")["images"]:
        yield f"coco2014/train2014/{image['file_name']}", image["id"]
    train = tree / "grandf/annotations/train"
    for record in read(train / "GranDf_HA_GCG_train.json"):
        yield f"grandf/GranDf_HA_images/train/{record['file_name']}", int(record["image_id"])
    for record in read(train / "OpenPsgGCG_train.json"):
        yield f"coco/{record['file_name']}", int(record["image_id"])
    for record in read(train / "RefCOCOg_GCG_train.json"):
        ((image_id, value),) = record.items()
        yield f"coco2014/train2014/{value['img_file_name']}", int(image_id)
    for image in read(train / "flickr_mergedGT_GCG_train.json")["images"]:
        yield f"flickr30k/images/{image['file_name']}", image["id"]
    for part in ("val", "test"):
        for image in read(tree / f"grandf/annotations/val_test/{part}_gcg_coco_mask_gt.json")["images"]:
            yield f"grandf/GranDf_HA_images/val_test/{image['file_name']}", int(image["id"].removeprefix("sa_"))
    for row in read(tree / "llava/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"):
        yield f"llava/LLaVA-Pretrain/images/{row['image']}", int(row["id"])
    for row in read(tree / "llava/LLaVA-Instruct-150K/llava_v1_5_mix665k.json"):
        if "image" in row:
            stem = Path(row["image"]).stem
            yield f"llava/llava_images/{row['image']}", int(stem, 16 if "textvqa" in row["image"] else 10)
    for line in (tree / "llava/LLaVA-Instruct-150K/llava_v1_5_mix665k.jsonl").read_text().splitlines():
        names = json.loads(line).get("image")
        for name in names if isinstance(names, list) else ():
            yield f"llava/llava_images/{name}", int(Path(name).stem)
    for path in (tree / "sa1b").rglob("*.json"):
        yield str(path.relative_to(tree).with_suffix(".jpg")), read(path)["image"]["image_id"]
    for path in (tree / "reasonseg").rglob("[0-9]*.json"):
        yield str(path.relative_to(tree).with_suffix(".jpg")), int(path.stem.partition("_")[0])


def test_a_picture_is_the_same_picture_everywhere(tree: Path) -> None:
    named = set(pictures_named(tree))
    for name, image_id in named:
        split = "train2017" if image_id < 500_001 else "val2017"
        assert (tree / name).samefile(tree / f"coco/{split}/{image_id:012d}.jpg"), name
    ade = tree / "ade20k/ADEChallengeData2016/images"
    assert (ade / "training/ADE_train_00000003.jpg").samefile(tree / "coco/train2017/000000000003.jpg")
    assert (ade / "validation/ADE_val_00000001.jpg").samefile(tree / "coco/val2017/000000500001.jpg")
    for path in (tree / "ade20k/ADE20K_2021_17_01").rglob("*.jpg"):
        assert path.samefile(ade / path.relative_to(tree).parts[4] / path.name)
    there = {str(p.relative_to(tree)) for p in tree.rglob("*.jpg") if not p.is_relative_to(tree / "ade20k")}
    assert there == {name for name, _ in named}


def test_reasonseg_files_and_explanations(tree: Path) -> None:
    def is_utf8(path: Path) -> bool:
        try:
            return bool(path.read_bytes().decode())
        except UnicodeDecodeError:
            return False

    files = list((tree / "reasonseg/train").glob("*.json"))
    assert 0 < sum(not is_utf8(path) for path in files) < len(files)
    labels = {shape["label"] for path in files for shape in read(path)["shapes"]}
    assert labels == {"target", "ignore", "flag"}
    assert {read(path)["is_sentence"] for path in files} == {True, False}
    questions = {path.with_suffix(".jpg").name: read(path)["text"][0] for path in files}
    explained = read(tree / "reasonseg/explanatory/train.json")
    assert {record["image"]: record["query"] for record in explained} == questions


def test_grefcocos_pickle_holds_what_its_json_does(tree: Path) -> None:
    refs = read(tree / "grefcoco/grefs(unc).p")
    assert refs == read(tree / "grefcoco/grefs(unc).json")
    assert {type(ref.get("no_target")) for ref in refs} == {bool, type(None)}


def test_llava_lines_hold_the_rows_and_rows_of_several_pictures(tree: Path) -> None:
    for name in ("LLaVA-Pretrain/blip_laion_cc_sbu_558k", "LLaVA-Instruct-150K/llava_v1_5_mix665k"):
        rows = [json.loads(line) for line in (tree / f"llava/{name}.jsonl").read_text().splitlines()]
        several = [row for row in rows if isinstance(row.get("image"), list)]
        assert [row for row in rows if row not in several] == read(tree / f"llava/{name}.json")
        assert bool(several) == ("mix" in name)
        for row in several:
            assert row["conversations"][0]["value"].count("<image>") == len(row["image"]) == 2
            assert all((tree / "llava/llava_images" / image).is_file() for image in row["image"])


def test_full_ade20k_is_laid_out_as_published(tree: Path) -> None:
    root = tree / "ade20k/ADE20K_2021_17_01"
    described = {path.stem: path for path in root.rglob("ADE_*.json")}
    with (root / "index_ade20k.pkl").open("rb") as file:
        index = pickle.load(file)
    assert {name.removesuffix(".jpg") for name in index["filename"]} == described.keys()
    parts = 0
    for column, (name, folder) in enumerate(zip(index["filename"], index["folder"], strict=True)):
        path = described[name.removesuffix(".jpg")]
        assert path.parent == root.parent / folder
        record = json.loads(path.read_bytes().decode("latin-1"))["annotation"]
        red, green, blue = np.moveaxis(np.asarray(Image.open(path.with_name(f"{path.stem}_seg.png"))).astype(int), 2, 0)
        assert [*red.shape, 3] == record["imsize"]
        whole = [entry for entry in record["object"] if not entry["parts"]["part_level"]]
        parts += len(record["object"]) - len(whole)
        number = int(path.stem[-8:])
        shown = segments(tree, number if "train" in path.stem else number + 500_000)
        assert len(whole) == len(shown) == blue.max()
        for instance, entry in enumerate(whole, start=1):
            pixels = blue == instance
            assert set((red[pixels] // 10 * 256 + green[pixels]).tolist()) == {entry["name_ndx"]}
            assert any(entry["name"].split(", ")[0] == name and (pixels == mask).all() for name, mask in shown)
            np.testing.assert_array_equal(np.asarray(Image.open(path.parent / entry["instance_mask"])) > 0, pixels)
        names = Counter(entry["name"] for entry in record["object"])
        assert [names[name] for name in index["objectnames"]] == index["objectPresence"][:, column].tolist()
    assert parts
    assert {path.parent.parent.parent.name for path in described.values()} == {"training", "validation"}


def test_lvis_says_what_is_absent_and_what_is_not_exhaustive(tree: Path) -> None:
    for part in ("train", "val"):
        file = read(tree / f"lvis/lvis_v1_{part}.json")
        names = {c["id"]: c["name"].replace("_", " ") for c in file["categories"]}
        assert [names[i] for i in sorted(names)] == sorted(names.values())
        annotated: dict[int, set[int]] = {}
        for record in file["annotations"]:
            annotated.setdefault(record["image_id"], set()).add(record["category_id"])
            assert NAMES[annotation(tree, record["id"])["category_id"]] == names[record["category_id"]]
        for image in file["images"]:
            seen = {name for name, _ in segments(tree, image["id"])}
            assert image["neg_category_ids"]
            assert not {names[i] for i in image["neg_category_ids"]} & seen
            crowded = {
                NAMES[a["category_id"]]
                for a in split_of(tree, image["coco_url"].split("/")[3])[0].values()
                if a["image_id"] == image["id"] and a["iscrowd"]
            }
            assert {names[i] for i in image["not_exhaustive_category_ids"]} == crowded
            assert seen - crowded - {kind.name for kind in STUFF} <= {names[i] for i in annotated.get(image["id"], ())}
    assert any("/train2017/" in image["coco_url"] for image in read(tree / "lvis/lvis_v1_val.json")["images"])


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_pieces_of_masks_with_holes_fill_to_the_mask(share: float) -> None:
    mask = np.random.default_rng(0).random((31, 40)) < share
    mask[:, 15:22] = False  # parts with empty columns between them
    rings = [ring.ravel().tolist() for ring in pieces_without_holes(mask)]
    np.testing.assert_array_equal(decoded(rings, *mask.shape), mask)


# --- the tree as a whole ---------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    """Also with other workers, and where only some layouts are written."""
    write_published(tmp_path / "one", 4, seed=1)
    write_published(tmp_path / "two", 4, seed=1, workers=2)  # a chunk for each split
    one = digests(tmp_path / "one")
    assert one == digests(tmp_path / "two")
    some = write_published(tmp_path / "some", 4, seed=1, layouts={"refer", "lvis"})
    found = digests(tmp_path / "some")
    assert found.items() < one.items()
    assert {name.partition("/")[0] for name in found} == {"refer", "coco2014", "lvis", "coco"}
    assert some.layouts == ("refer", "lvis")
    write_published(tmp_path / "other", 4, seed=2, layouts={"lvis"})
    assert digests(tmp_path / "other").items().isdisjoint(one.items())


def test_without_hard_links_pictures_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    write_published(tmp_path / "linked", 2, layouts={"sa1b", "lvis"})
    monkeypatch.setattr(os, "link", refuse)
    write_published(tmp_path / "copied", 2, layouts={"sa1b", "lvis"})
    assert digests(tmp_path / "copied") == digests(tmp_path / "linked")


def test_picture_n_is_the_same_in_a_larger_tree(tree: Path, tmp_path: Path) -> None:
    write_published(tmp_path / "small", 5, seed=SEED, layouts={"sa1b", "reasonseg", "coco"})
    small, large = digests(tmp_path / "small"), digests(tree)
    shared = {name for name in small if not name.endswith("7.json") and "explanatory" not in name}
    assert {name: small[name] for name in shared} == {name: large[name] for name in shared}
    assert sum(name.startswith("sa1b") for name in shared) == 8


def test_a_tree_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        write_layouts(tmp_path / "out", 2, {"sa1b": LAYOUTS["sa1b"], "bad": Layout(records=lambda _: [], write=fail)})
    assert not list(tmp_path.iterdir())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").touch()
    with pytest.raises(FileExistsError, match="folder of their own"):
        write_published(tmp_path / "full", 2)
    with pytest.raises(ValueError, match="no layout 'cocoa'"):
        write_published(tmp_path / "out", 2, layouts={"cocoa"})
    with pytest.raises(ValueError, match="at least 2 images"):
        write_published(tmp_path / "out", 1)
    with pytest.raises(ValueError, match="share ids"):
        write_published(tmp_path / "out", 700_000)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
