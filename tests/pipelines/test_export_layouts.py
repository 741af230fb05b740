"""Exports of the layouts of X-SAM, PSALM, LISA, GLaMM and LLaVA, decoded by what is not ours."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pictures
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from dataengine import masks
from dataengine.masks import Crop
from dataengine.records import Account, Category
from dataengine.sample import (
    Condition,
    Image,
    License,
    Object,
    Prompt,
    Provenance,
    Reference,
    Sample,
    Turn,
)
from dataengine.store import commits
from dataengine.store.files import Folder
from dataengine.store.shards import ShardWriter
from pipelines import export
from pipelines.export import gcg, reasonseg
from pipelines.export.output import safe_folder, safe_name

HEIGHT, WIDTH = 24, 32
CATEGORIES = (Category(id=3, name="cat", text="cat"), Category(id=5, name="dog", text="dog"))


def picture(kind: str = "JPEG") -> Image:
    file = io.BytesIO()
    Pictures.new("RGB", (WIDTH, HEIGHT), "gray").save(file, kind)
    return Image(bytes=file.getvalue(), path=f"any.{kind.lower()}")


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def thing(mask: np.ndarray, name: str, category: int = 3, **more) -> Object:
    rle = masks.encode(mask)
    area, bbox = masks.measure(rle, HEIGHT, WIDTH)
    return Object(rle=rle, bbox=tuple(map(float, bbox)), area=area, category_id=category, annotation_id=name, **more)


def phrase(text: str, *objects: int, turn: int = 0, seg: int = 0, opening: str = "<image>\n") -> tuple[Turn, Condition]:
    start = len(opening)
    text_turn = Turn(role="user", text=f"{opening}<p>{text}</p>", supervised=False)
    span = {"turn": turn, "start": start, "end": start + len(text) + 7, "seg": seg}
    return text_turn, Condition(kind="phrase", text=text, objects=objects, **span)


ANSWER = Turn(role="assistant", text="<SEG>", supervised=True)
CAT, DOG = thing(box(2, 2, 10, 12), "31"), thing(box(12, 4, 30, 20), "32", 5)


def sample(task: str, key: str = "coco/000000000139", split: str = "train", **more) -> Sample:
    values = {
        "sample_id": f"{task}/{split}/{key}/{task}",
        "source": task,
        "image": picture(),
        "height": HEIGHT,
        "width": WIDTH,
        "license": License(name="x"),
        "provenance": Provenance(file="f", record="r", builder="b", version=1, seed=0),
    }
    return Sample(**{**values, "task": task, "image_key": key, "split": split, **more})


def referring(task: str, *phrases: tuple, key: str = "coco/000000000139", split: str = "train", **more) -> Sample:
    """A sample with a pair of turns for each (text, *objects)."""
    turns, conditions = [], []
    for number, (text, *objects) in enumerate(phrases):
        opening = "" if number or more.get("image", True) is None else "<image>\n"
        turn, condition = phrase(text, *objects, turn=2 * number, seg=number, opening=opening)
        turns += [turn, ANSWER]
        conditions.append(condition)
    return sample(task, key, split, **{"objects": (CAT, DOG), **more}, turns=tuple(turns), conditions=tuple(conditions))


def exported(folder: Path, target: str, *samples: Sample, pictures: str = "copy") -> tuple[Path, dict]:
    """An export of a dataset of these samples, and its report."""
    place = Folder(str(folder / "dataset"))
    (folder / "dataset" / "shards").mkdir(parents=True)
    shards = []
    for split, some in itertools.groupby(samples, key=lambda sample: sample.split):
        name = f"shards/{len(shards)}.parquet"
        writer = ShardWriter(folder / "dataset" / name)
        for one in some:
            writer.write(one)
        writer.close()
        shards.append({"name": name, "rows": writer.rows, "source": "all", "split": split})
    table = [{"id": c.id, "name": c.name, "text": c.text, "is_thing": c.is_thing} for c in CATEGORIES]
    sources = {f"{s.source}/{s.split}": {"task": s.task, "builder": "b", "categories": table} for s in samples}
    facts = {
        "sources": sources,
        "recipe": {"name": "made by hand"},
        "seed": 0,
        "limit": None,
        "generator": {"dataengine": "0", "builders": {}},
        "forbidden": {"roles": {}, "missing": {}},
    }
    manifest = commits.write_manifest(place, facts, [])
    manifest["shards"] = shards
    manifest["counts"]["records"] = Account().as_dict()
    manifest["version"] = commits.version_of(manifest)
    place.replace(commits.MANIFEST, commits.canonical_json(manifest))
    export.export(str(folder / "dataset"), target, str(folder / "out"), pictures)
    return folder / "out", json.loads((folder / "out" / "export.json").read_text())["not_held"]


def decoded(rle: dict) -> np.ndarray:
    assert sorted(rle) == ["counts", "size"]
    assert isinstance(rle["counts"], str)
    return coco_masks.decode(rle).astype(bool)


# --- regions ---------------------------------------------------------------------------------------------------------


def prompts(**kinds) -> tuple[Prompt, ...]:
    base = {"profile": "published", "version": 1, "status": "ok"}
    return tuple(Prompt(**{**base, "kind": kind, **values}) for kind, values in kinds.items())


PROMPTED = replace(
    CAT,
    prompts=prompts(
        point={"points": (5.5, 6.5), "parts": (1,), "radius": 2.0},
        scribble={"points": (3.5, 3.5, 4.5, 4.5), "parts": (2,), "radius": 1.0},
        box={"points": (2.0, 2.0, 9.0, 11.0), "parts": (2,)},
        mask={"status": "none"},
    ),
)


def regions(task: str, *key: str, **more) -> Sample:
    """One region, shown by the object that has prompts."""
    question = Turn(role="user", text="<image>\n<p><region></p>", supervised=False)
    span = {"seg": 0, "turn": 0, "start": 8, "end": 23}
    shown = Condition(kind="region", text="cat", category_id=3, objects=(0,), exemplar=0, **span)
    return sample(task, *key, **{"objects": (PROMPTED,), "conditions": (shown,), "turns": (question, ANSWER), **more})


def test_vgd_has_what_its_loader_reads(tmp_path):
    crowd = thing(box(12, 14, 20, 20), "33", crowd=True)
    out, not_held = exported(
        tmp_path, "xsam", regions("vgdseg", objects=(PROMPTED, crowd)), regions("vgdseg", "ade20k/x.1")
    )
    (row, other) = json.loads((out / "coco_vgd" / "annotations" / "coco_vgdseg_train.json").read_text())
    (annotation,) = row["annotations"]
    assert {type(row[key]) for key in ("image_file", "image_id", "image_size")} == {str, int, list}
    assert (row["image_id"], row["image_info"]["id"], row["image_info"]["image_id"]) == (139, 139, 139)
    assert row["image_size"] == [HEIGHT, WIDTH]
    assert annotation["bbox_mode"] == 1
    shown = {name: decoded(rle) for name, rle in annotation["visual_prompts"].items()}
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    assert (shown["point_visual_prompt"] == ((xs - 5) ** 2 + (ys - 6) ** 2 <= 4)).all()
    plus = ((abs(xs - 3) + abs(ys - 3)) <= 1) | ((abs(xs - 4) + abs(ys - 4)) <= 1)
    assert (shown["scribble_visual_prompt"] == plus).all()
    assert (shown["box_visual_prompt"] == box(2, 2, 9, 11)).all()
    assert shown["mask_visual_prompt"].shape == (HEIGHT, WIDTH)
    assert not shown["mask_visual_prompt"].any()
    assert (decoded(annotation["segmentation"]) == box(2, 2, 10, 12)).all()
    assert not_held == {"vgdseg": {"objects: crowds": 1}}
    instances = COCO(str(out / "coco2017" / "annotations" / "instances_train2017.json"))
    assert instances.getImgIds() == [139, other["image_id"]]
    assert (instances.annToMask(instances.loadAnns(31)[0]) == box(2, 2, 10, 12)).all()
    assert {c["name"] for c in instances.loadCats(instances.getCatIds())} == {"cat", "dog"}
    for entry in (row, other):
        assert Pictures.open(out / "coco2017" / "train2017" / entry["image_file"]).size == (WIDTH, HEIGHT)


def test_derived_files_are_named_without_the_year(tmp_path):
    samples = [regions(task, split="val2017") for task in ("vgdseg", "intseg")]
    out, _ = exported(tmp_path, "xsam", *samples)
    names = {p.relative_to(out).as_posix() for p in out.rglob("*.json")}
    assert names == {
        "export.json",
        "coco2017/annotations/instances_val2017.json",
        "coco_vgd/annotations/coco_vgdseg_val.json",
        "coco_int/annotations/coco_interactive_val_psalm.json",
    }


def test_regions_of_other_pictures_are_counted(tmp_path):
    question = Turn(role="user", text="<image>\n<p><region></p>, <p><region></p>", supervised=False)
    own = regions("vgdseg").conditions[0]
    absent = replace(own, text="dog", category_id=5, objects=(), exemplar=-1, reference=0, start=25, end=40)
    elsewhere = Reference(
        image=picture(), image_key="coco/000000000140", annotation_id="7", category_id=5,
        height=HEIGHT, width=WIDTH, rle=DOG.rle, prompts=PROMPTED.prompts[:1],
    )  # fmt: skip
    one = regions("vgdseg", conditions=(own, absent), references=(elsewhere,), turns=(question, ANSWER))
    _, not_held = exported(tmp_path, "xsam", one)
    assert not_held == {"vgdseg": {"conditions: shown in another picture": 1}}


def test_psalm_has_undilated_prompts(tmp_path):
    second = regions("intseg", sample_id="second", objects=(replace(PROMPTED, annotation_id="x"),))
    out, _ = exported(tmp_path, "psalm", regions("intseg"), second, regions("intseg", "coco/000000000140"))
    rows = json.loads((out / "coco_interactive_train_psalm.json").read_text())
    assert [row["new_img_id"] for row in rows] == [0, 1]
    assert [len(row["anns"]) for row in rows] == [2, 1]
    row = rows[0]
    shown = {kind: decoded(row["anns"][0][f"{kind}_visual_prompt_mask"]) for kind in ("point", "scribble", "box")}
    assert np.argwhere(shown["point"]).tolist() == [[6, 5]]
    assert np.argwhere(shown["scribble"]).tolist() == [[3, 3], [4, 4]]
    assert (shown["box"] == box(2, 2, 9, 11)).all()
    assert [annotation["id"] for annotation in row["anns"]] == [31, 10**15]
    assert (out / "train2017" / row["image"]).is_file()


# --- phrases ---------------------------------------------------------------------------------------------------------


class OnlyData(pickle.Unpickler):
    def find_class(self, module, name):
        raise AssertionError(f"{module}.{name}")


def test_refs_pickle_is_plain_and_joins_instances(tmp_path):
    out, not_held = exported(
        tmp_path, "xsam",
        referring(
            "refseg", ("the cat", 0), ("left one", 0), ("der Hund – größer", 1), ("both", 0, 1), ("none",),
            source="refcocog",
        ),
        referring("refseg", ("the cat", 0), split="val", source="refcocog"),
        referring("refseg", ("it", 0), key="coco/000000000140", split="val", source="refcocog"),
    )  # fmt: skip
    folder = out / "img_refseg" / "refcocos" / "refcocog"
    data = (folder / "refs(umd).p").read_bytes()
    assert data[:2] == b"\x80\x02"
    refs = OnlyData(io.BytesIO(data)).load()
    assert refs == pickle.loads(data, encoding="latin1")
    assert [[s["sent"] for s in ref["sentences"]] for ref in refs] == [
        ["the cat", "left one", "both"], ["der Hund – größer", "both"], ["the cat"], ["it"]
    ]  # fmt: skip
    assert [ref["ref_id"] for ref in refs] == [0, 1, 2, 3]
    assert [i for ref in refs for i in ref["sent_ids"]] == [0, 1, 2, 3, 4, 5, 6]
    splits: dict[int, set[str]] = {}
    instances = COCO(str(folder / "instances.json"))
    for ref in refs:
        splits.setdefault(ref["image_id"], set()).add(ref["split"])
        (annotation,) = instances.loadAnns(ref["ann_id"])
        assert (annotation["image_id"], annotation["category_id"]) == (ref["image_id"], ref["category_id"])
        expected = box(12, 4, 30, 20) if ref["category_id"] == 5 else box(2, 2, 10, 12)
        assert (instances.annToMask(annotation) == expected).all()
    assert all(len(found) == 1 for found in splits.values())
    assert {entry["file_name"] for entry in instances.loadImgs(instances.getImgIds())} == {
        "000000000139.jpg", "000000000140.jpg"
    }  # fmt: skip
    assert (out / "img_refseg" / "refcocos" / "images" / "000000000139.jpg").is_file()
    assert not_held == {"refseg": {"conditions: nothing to be found": 1}}


def test_grefs_keep_several_targets_and_none(tmp_path):
    out, not_held = exported(
        tmp_path, "xsam", referring("grefseg", ("both", 0, 1), ("a bird",), ("a fish",), source="grefcoco")
    )
    refs = OnlyData((out / "img_refseg/refcocos/grefcoco/refs(unc).p").open("rb")).load()
    assert [(r["ann_id"], r["category_id"], r["no_target"]) for r in refs] == [
        ([31, 32], [3, 5], False), ([-1], [-1], True)
    ]  # fmt: skip
    assert [s["sent"] for s in refs[1]["sentences"]] == ["a bird", "a fish"]
    assert not_held == {}


def lisa(shapes: list[dict]) -> np.ndarray:
    """LISA's rule, written from its description: large shapes first, line and fill, 255 for what is ignored."""

    def drawn(shape: dict, value: int, canvas: np.ndarray) -> np.ndarray:
        points = np.array([shape["points"]], dtype=np.int32)
        cv2.polylines(canvas, points, True, value, 1)
        cv2.fillPoly(canvas, points, value)
        return canvas

    blank = np.zeros((HEIGHT, WIDTH), np.uint8)
    canvas = blank.copy()
    for shape in sorted(shapes, key=lambda s: -int(drawn(s, 1, blank.copy()).sum())):
        drawn(shape, 255 if "ignore" in shape["label"] else 1, canvas)
    return canvas


def test_reasonseg_pairs_draw_the_masks(tmp_path):
    ring = box(2, 2, 14, 14) & ~box(5, 5, 8, 9) & ~box(9, 5, 11, 12)
    ring[20, 3] = ring[21, 4] = True  # single pixels that touch at a corner
    ignore = box(20, 3, 28, 10) & ~box(22, 5, 25, 7)
    other = box(16, 14, 20, 20)
    texts = [("Where would it sleep?", 0), ("the place to rest", 1), ("which one eats", 0), ("nothing at all",)]
    things = thing(ring, "1"), thing(other, "2")
    made = referring("reaseg", *texts, objects=things, ignore=masks.encode(ignore), key="reasonseg/17_a")
    explained = replace(made.conditions[0], explanation="It is soft.")
    made = replace(made, conditions=(explained, *made.conditions[1:]))
    png = referring("reaseg", ("it", 0), key="reasonseg/18", image=picture("PNG"))
    out, not_held = exported(tmp_path, "xsam", made, png)
    folder = out / "img_reaseg" / "lisa" / "train"
    assert sorted(p.name for p in folder.iterdir()) == [
        f"17_a{n}.{kind}" for n in ("-1", "") for kind in ("jpg", "json")
    ]
    first, second = (json.loads((folder / f"17_a{n}.json").read_text()) for n in ("", "-1"))
    assert (first["text"], first["is_sentence"]) == (["Where would it sleep?", "which one eats"], True)
    assert (second["text"], second["is_sentence"]) == (["the place to rest"], False)
    assert json.loads((folder.parent / "explanatory" / "train.json").read_text()) == [
        {"image": "17_a.jpg", "query": "Where would it sleep?", "outputs": "It is soft."}
    ]
    for record, mask in ((first, ring), (second, other)):
        canvas = lisa(record["shapes"])
        assert ((canvas == 1) == mask).all()
        assert ((canvas == 255) == ignore).all()
    assert not_held == {"reaseg": {"conditions: nothing to be found": 1}}
    report = json.loads((out / "export.json").read_text())
    assert report["samples"]["reaseg"] == {"read": 2, "written": 1, "left_out": {"picture_not_jpeg": 1}}


@pytest.mark.parametrize(("variant", "is_sentence"), [("long", True), ("short", False)])
def test_reasonseg_questions_are_what_their_source_called_them(tmp_path, variant, is_sentence):
    made = (
        referring("reaseg", ("a place to rest", 0), ("Where?", 0)) if is_sentence else referring("reaseg", ("It?", 0))
    )
    out, _ = exported(tmp_path, "xsam", replace(made, variant=variant))
    (path,) = (out / "img_reaseg" / "lisa" / "train").glob("*.json")
    assert json.loads(path.read_text())["is_sentence"] is is_sentence


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.5, 0.8, 0.95]))
def test_outlines_give_any_mask_back(seed, share):
    mask = np.random.default_rng(seed).random((9, 11)) < share
    mask[4, 5] = True
    drawn = np.zeros(mask.shape, int)
    for points in reasonseg.outlines(Crop(mask, 0, 0)):
        assert len(points) >= 3
        drawn += reasonseg.draw(points, *mask.shape)
    assert (drawn == mask).all()  # each pixel once


@pytest.mark.parametrize(("marked", "caption", "phrases"), [
    ("<p>A cat</p> on <p>the mat</p>.", "a cat on the mat.", ["a cat", "the mat"]),
    ('  "The <p> White  cat </p> sits"', "the  white  cat  sits", ["white  cat"]),
    ("İ <p>Ölkanne</p> ΟΔΟΣ", "i̇ ölkanne οδος", ["ölkanne"]),
    ('<p>"quoted"</p> dog', 'quoted" dog', ['quoted"']),
    ("no phrase", "no phrase", []),
])  # fmt: skip
def test_captions_are_plain_and_spans_stand_in_them(marked, caption, phrases):
    found, spans = gcg.plain_caption(marked)
    assert found == caption
    assert [found[start:end] for start, end in spans] == phrases
    assert found.strip('"').strip().lower() == found  # what a loader does to it moves nothing


def captioned() -> Sample:
    """Phrases: one, one right after it, one of two objects, the first again, one of nothing."""
    caption = "<p>A cat</p><p>s paw</p> and <p>Two</p> on <p>a cat</p>, <p>a bird</p>."
    turns = (Turn(role="user", text="<image>\nDescribe.", supervised=False),)
    answer = f"{caption} <SEG>"
    targets = [(0,), (0,), (0, 1), (1,), ()]
    conditions = tuple(
        Condition(kind="phrase", text=m[1], objects=objects, seg=0, turn=1, start=m.start(), end=m.end())
        for m, objects in zip(re.finditer("<p>(.*?)</p>", answer), targets, strict=True)
    )
    turns += (Turn(role="assistant", text=answer, supervised=True),)
    return sample("gcgseg", caption=caption, objects=(CAT, DOG), conditions=conditions, turns=turns)


def test_gcg_spans_are_disjoint_and_what_does_not_fit_is_counted(tmp_path):
    made = captioned()
    out, not_held = exported(tmp_path, "xsam", made)
    (row,) = json.loads((out / "img_gcgseg/grand_f/annotations/train/GranDf_HA_GCG_train.json").read_text())
    assert row["caption"] == "a cats paw and two on a cat, a bird."
    assert {p: g["token_positives"] for p, g in row["groundings"].items()} == {"a cat": [0, 5], "two": [15, 18]}
    areas = [coco_masks.area(rle) for rle in row["groundings"]["two"]["rle_masks"]]
    assert areas == [80, 288]
    assert not_held == {
        "gcgseg": {
            "conditions: no gap to the phrase before": 1,
            "conditions: nothing to ground": 1,
            "conditions: phrase given twice": 1,
        }
    }
    assert (out / "img_gcgseg/grand_f/images/GranDf_HA_images/train" / row["file_name"]).is_file()


# --- conversations ---------------------------------------------------------------------------------------------------


def chat(key: str, image: Image | None) -> Sample:
    opening = "<image>\n" if image else ""
    turns = (
        Turn(role="user", text=opening + "Hi \u2039SEG\u203a", supervised=False),
        Turn(role="assistant", text="Hello", supervised=True),
    )
    return sample("chat", key, image=image, turns=turns, height=HEIGHT if image else 0, width=WIDTH if image else 0)


def test_llava_rows(tmp_path):
    out, not_held = exported(
        tmp_path, "llava",
        chat("llava/abc/d e", picture("PNG")), chat("llava/x", None), referring("refseg", ("a cat", 0)),
    )  # fmt: skip
    rows = json.loads((out / "llava_train.json").read_text())
    assert rows[0]["conversations"] == [
        {"from": "human", "value": "<image>\nHi \u2039SEG\u203a"}, {"from": "gpt", "value": "Hello"}
    ]  # fmt: skip
    assert rows[2]["conversations"][0]["value"] == "<image>\n<p>a cat</p>"
    assert Pictures.open(out / "images" / rows[0]["image"]).format == "PNG"
    assert "image" not in rows[1]
    assert not_held == {"refseg": {"objects: masks and prompts": 2}}


def test_a_picture_that_is_gone_takes_its_whole_group_along(tmp_path):
    gone = replace(chat("llava/x", Image(bytes=None, path=str(tmp_path / "gone.jpg"))), sample_id="second")
    out, _ = exported(tmp_path, "llava", chat("llava/x", picture()), gone, chat("llava/y", None))
    assert [row["id"] for row in json.loads((out / "llava_train.json").read_text())] == ["chat/train/llava/y/chat"]
    report = json.loads((out / "export.json").read_text())
    assert report["samples"]["chat"] == {"read": 3, "written": 1, "left_out": {"picture_missing": 2}}


def test_xsam_writes_chat(tmp_path):
    out, _ = exported(tmp_path, "xsam", chat("llava/x", picture()))
    rows = json.loads((out / "img_chat" / "llava" / "llava_train.json").read_text())
    assert (out / "img_chat" / "llava" / "llava_images" / rows[0]["image"]).is_file()


def test_coco_has_no_form_for_chat_and_phrases(tmp_path):
    out, _ = exported(tmp_path, "coco", chat("x/1", None), referring("refseg", ("a", 0)), regions("vgdseg"))
    report = json.loads((out / "export.json").read_text())
    assert report["samples"]["chat"] == {"read": 1, "written": 0, "left_out": {"no_such_form": 1}}
    assert report["samples"]["refseg"]["left_out"] == {"no_such_form": 1}
    assert report["samples"]["vgdseg"]["written"] == 1


# --- keys of the published files -------------------------------------------------------------------------------------

REFS = "img_refseg/refcocos/refseg/refs(unc).p"
PUBLISHED = [
    ("coco_vgd/annotations/coco_vgdseg_train.json", "coco_vgd/coco_vgdseg_train.json.gz", {"image_info": {"id"}}),
    (
        "coco_int/annotations/coco_interactive_train_psalm.json",
        "coco_interactive/coco_interactive_val_psalm.json.gz",
        {"image_info": {"image_key"}},
    ),
    (REFS, "refcoco/refcoco/refs(unc).readable.json", {}),
    ("img_refseg/refcocos/grefcoco/refs(unc).p", "grefcoco/grefcoco/grefs(unc).json", {}),
    ("img_reaseg/lisa/train/000000000139.json", "reasonseg/train/000000006818.json", {}),
    (
        "img_gcgseg/grand_f/annotations/train/GranDf_HA_GCG_train.json",
        "gcg/annotations/train/GranDf_HA_GCG_train.json",
        {"": {"height", "width"}},
    ),
    ("img_chat/llava/llava_train.json", "llava/llava_v1_5_mix665k.json", {}),
]


def loaded(path: Path):
    if path.suffix == ".p":
        return OnlyData(io.BytesIO(path.read_bytes())).load()
    return json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())


def same_keys(ours, theirs, extra: dict) -> None:
    """Compare keys and types of the first records, all the way down. extra: keys that only ours has, by place."""
    if isinstance(theirs, dict):
        optional = {"license", "coco_url", "date_captured", "flickr_url", "no_target"}
        own = extra.get("", set())
        assert ours.keys() - own - optional == theirs.keys() - optional
        for key in ours.keys() & theirs.keys() - {"segmentation"}:  # polygons there, RLE here: loaders take both
            pair = ours[key], theirs[key]
            if key == "groundings":  # by phrase
                pair = list(ours[key].values()), list(theirs[key].values())
            same_keys(*pair, {"": extra.get(key, set())})
    elif isinstance(theirs, list) and theirs and not isinstance(theirs[0], (int, float)):
        same_keys(ours[0], theirs[0], extra)
    else:
        assert isinstance(ours, type(theirs)) or {type(ours), type(theirs)} <= {int, float}


@pytest.fixture
def every_task(tmp_path) -> Path:
    """X-SAM's files of one sample of each task."""
    return exported(
        tmp_path, "xsam",
        *(regions(task) for task in ("vgdseg", "intseg")),
        *(referring(task, ("a thing", 0)) for task in ("refseg", "grefseg", "reaseg")),
        captioned(), chat("x/1", picture()),
    )[0]  # fmt: skip


@pytest.mark.parametrize(("name", "published", "extra"), PUBLISHED, ids=[p.split("/")[0] for _, p, _ in PUBLISHED])
def test_records_have_the_published_keys_and_types(every_task, fixtures, name, published, extra):
    ours, theirs = loaded(every_task / name), loaded(fixtures / "golden" / "formats" / published)
    same_keys(ours, theirs, extra)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [t for t in export.TARGETS if t != "psalm"])
def test_keys_cannot_leave_the_folder(tmp_path, target):
    hostile = ["../../../evil", "/etc/passwd", "coco/../../x", "a\\..\\b", "-rf", "x" * 4000, "a/b.tar.gz", "\n", "é/ü"]
    samples = [
        regions("vgdseg", key, sample_id=f"{key}/{n}", split="../up" if n % 2 else "a/b", source="..")
        for n, key in enumerate(hostile)
    ]
    before = sorted(p.name for p in tmp_path.iterdir())
    out, _ = exported(tmp_path, target, *samples)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "dataset", "out"])
    names = [p.relative_to(out).as_posix() for p in out.rglob("*")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.~+/-]+", name) for name in names)
    if target in ("coco", "llava"):
        assert sum(name.endswith(".jpg") for name in names) == len(hostile)


def test_names_of_different_keys_differ():
    keys = ["coco/000000000139", "000000000139", "shapes/000000000139", "a/b_c", "a_b/c", "a/b/c", "a_b_c", "a/b.c"]
    assert len({safe_name(key) for key in keys}) == len(keys)
    splits = ["a/b", "a_b", "..", ".", "", "a b", "x" * 300]
    assert len({safe_folder(split) for split in splits}) == len(splits)
    assert safe_name("coco/000000000139") == "000000000139"
    assert safe_name("shapes-train-0/000000000001") == "shapes-train-0_000000000001"
