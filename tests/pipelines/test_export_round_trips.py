"""Source → shards → export → source builder gives the same samples: every task, in every layout that holds it."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pictures
from pycocotools import mask as coco_masks

from dataengine import prompts
from dataengine.masks import decode
from dataengine.sample import Provenance, Sample, from_row, to_row
from dataengine.store.dataset import open_dataset
from dataengine.store.shards import read_shard
from pipelines import build, export, recipe
from pipelines.build import Settings
from pipelines.world_published import write_published

NUM_IMAGES = 10  # eight of train, two of val
LAYOUTS = ("coco", "coco_vgd", "coco_interactive", "refer", "grefcoco", "grandf", "reasonseg", "llava")
NOWHERE = Provenance(file="", record="", builder="", version=0, seed=0)
SOURCES = {
    "vgd": {"builder": "coco_vgd", "task": "vgdseg", "root": ""},
    "interactive": {"builder": "coco_interactive", "task": "intseg", "root": "coco_interactive"},
    "refs": {"builder": "refcoco", "task": "refseg", "root": "refer"},
    "plus": {"builder": "refcoco", "task": "refseg", "root": "refer", "options": {"dataset": "refcoco+"}},
    "grefs": {"builder": "grefcoco", "task": "grefseg", "root": "grefcoco"},
    "human": {"builder": "grandf", "task": "gcgseg", "root": "grandf", "options": {"part": "ha"}},
    "psg": {
        "builder": "grandf", "task": "gcgseg", "root": "grandf", "options": {"part": "psg"}, "splits": ["train"],
    },
    "sentences": {"builder": "grandf", "task": "gcgseg", "root": "grandf", "options": {"part": "refcocog"}},
    "flickr": {"builder": "grandf", "task": "gcgseg", "root": "grandf", "options": {"part": "flickr"}},
    "reasons": {"builder": "reasonseg", "task": "reaseg", "root": "reasonseg"},
    "talk": {"builder": "llava", "task": "chat", "root": "llava", "options": {"edition": "mix665k"}},
    "generic": {"builder": "coco", "task": "genseg", "root": "coco"},
    "things": {"builder": "coco", "task": "genseg", "root": "coco", "options": {"variants": ["instance"]}},
}  # fmt: skip
XSAM = {
    "vgd": "", "interactive": "", "refs": "img_refseg/refcocos", "plus": "img_refseg/refcocos",
    "grefs": "img_refseg/refcocos", "human": "img_gcgseg/grand_f", "psg": "img_gcgseg/grand_f",
    "sentences": "img_gcgseg/grand_f", "flickr": "img_gcgseg/grand_f",
    "reasons": "img_reaseg/lisa", "talk": "img_chat/llava", "generic": "coco2017", "things": "coco2017",
}  # fmt: skip


def built(out: Path, root: Path, sources: dict[str, dict]) -> list[Sample]:
    """The samples of a dataset of these sources, below a root."""
    rooted = {name: {**source, "root": str(root / source["root"])} for name, source in sources.items()}
    path = out.with_suffix(".yaml")
    value = {"name": "small", "sources": rooted, "prompts": {"profile": "published"}, "forbid": []}
    path.write_text(json.dumps(value))
    build.run(recipe.load(str(path)), str(out), Settings(engine="local"))
    return list(open_dataset(str(out)).samples())


def rebuilt(out: Path, root: Path, sources: dict[str, dict]) -> list[Sample]:
    """The samples of an export, of which nothing may be quarantined."""
    samples = built(out, root, sources)
    assert open_dataset(str(out)).manifest["counts"]["records"]["quarantined"] == {}
    return samples


def facts(samples: Iterable[Sample], *sources: str) -> list[Sample]:
    """Samples of some sources, by id, without what names files."""
    chosen = [s for s in samples if s.source in sources or not sources]
    return [
        replace(s, provenance=NOWHERE, image=s.image and replace(s.image, path=None))
        for s in sorted(chosen, key=lambda s: s.sample_id)
    ]


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """The procedural world in published layouts."""
    root = tmp_path_factory.mktemp("published") / "data"
    write_published(root, NUM_IMAGES, layouts=LAYOUTS)
    return root


@pytest.fixture(scope="session")
def everything(world, tmp_path_factory) -> tuple[Path, list[Sample]]:
    """A dataset of every task, and its samples."""
    out = tmp_path_factory.mktemp("first") / "all"
    return out, built(out, world, SOURCES)


@pytest.fixture(scope="session")
def xsam(everything, tmp_path_factory) -> Path:
    """All of it as X-SAM's files."""
    out = tmp_path_factory.mktemp("exported") / "xsam"
    export.export(str(everything[0]), "xsam", str(out))
    return out


@pytest.fixture(scope="session")
def again(xsam, tmp_path_factory) -> list[Sample]:
    """What the sources' builders make of X-SAM's files; they are told the folder, and no file in it."""
    sources = {name: {**source, "root": XSAM[name]} for name, source in SOURCES.items()}
    return rebuilt(tmp_path_factory.mktemp("second") / "all", xsam, sources)


# --- X-SAM -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", ["vgd", "interactive", "refs", "plus", "grefs", "reasons", "generic", "things"]
)  # fmt: skip
def test_samples_come_back_from_xsams_files_as_they_were(everything, again, source):
    before, after = facts(everything[1], source), facts(again, source)
    assert len(before) > 5
    assert before == after


def test_what_the_samples_hold_makes_the_comparison_worth_it(everything):
    samples = everything[1]
    shown = [prompt for s in samples if s.source == "vgd" for thing in s.objects for prompt in thing.prompts]
    assert {prompt.kind for prompt in shown if prompt.status != "none"} == {"point", "scribble", "box", "mask"}
    assert any(not c.objects for s in samples if s.source == "grefs" for c in s.conditions)
    assert any(len(c.objects) > 1 for s in samples if s.source == "grefs" for c in s.conditions)
    assert any(c.explanation for s in samples if s.source == "reasons" for c in s.conditions)
    kinds = {(s.variant, s.conditions[0].text[-1] in ".?!") for s in samples if s.source == "reasons"}
    assert kinds >= {("long", True), ("short", False)}
    assert any(s.ignore for s in samples if s.source == "reasons")
    assert any(s.image is None for s in samples if s.source == "talk")
    assert {s.split for s in samples} >= {"train", "train2017", "val", "val2017", "test", "testA", "testB"}


def unnumbered(samples: list[Sample]) -> list[Sample]:
    """Samples whose ids count rows of a file, and whose objects are in the order of its phrases, without these."""
    found = []
    for sample in samples:
        order = sorted(range(len(sample.objects)), key=lambda i: (sample.objects[i].area, sample.objects[i].rle))
        places = {old: new for new, old in enumerate(order)}
        found.append(
            replace(
                sample,
                sample_id=sample.sample_id.rpartition("/")[0],
                objects=tuple(replace(sample.objects[i], annotation_id="") for i in order),
                conditions=tuple(
                    replace(c, objects=tuple(sorted(places[i] for i in c.objects))) for c in sample.conditions
                ),
            )
        )
    return sorted(found, key=lambda s: (s.sample_id, str(s.turns)))


@pytest.mark.parametrize(
    ("source", "splits"),
    [("human", {"train", "val", "test"}), *((name, {"train"}) for name in ("psg", "sentences", "flickr"))],
)
def test_captions_come_back_with_spans_and_masks(everything, again, source, splits):
    before, after = (facts(samples, source) for samples in (everything[1], again))
    assert {s.split for s in before} == splits
    # how an answer is asked for is drawn by the sample's id, which counts the file's rows
    before, after = ([replace(s, turns=s.turns[1:]) for s in found] for found in (before, after))
    assert unnumbered(before) == unnumbered(after)


def test_conversations_come_back_with_the_identity_of_their_pictures(everything, again):
    before, after = unnumbered(facts(everything[1], "talk")), unnumbered(facts(again, "talk"))
    assert {key.partition("/")[0] for s in before if (key := s.image_key)} == {"coco", "vg", "textvqa", "ocr_vqa"}
    assert before == after


@pytest.mark.parametrize("part", ["train", "val"])
def test_the_vgd_file_meets_its_loaders_demands(everything, xsam, part):
    """Both ids, four compressed RLEs on the full canvas, categories known to the instances file, pictures in place."""
    rows = json.loads((xsam / f"coco_vgd/annotations/coco_vgdseg_{part}.json").read_text())
    instances = json.loads((xsam / f"coco2017/annotations/instances_{part}2017.json").read_text())
    known = {category["id"] for category in instances["categories"]}
    sizes = {image["id"]: (image["height"], image["width"]) for image in instances["images"]}
    kept = {annotation["id"]: annotation for annotation in instances["annotations"]}
    samples = {s.image_key: s for s in everything[1] if s.source == "vgd" and s.split == part}
    assert len(rows) == len(samples)
    for row in rows:
        info = row["image_info"]
        assert row["image_id"] == info["id"] == info["image_id"]
        assert (xsam / f"coco2017/{part}2017" / row["image_file"]).is_file()
        assert info["file_name"] == row["image_file"]
        assert tuple(row["image_size"]) == (info["height"], info["width"]) == sizes[row["image_id"]]
        things = {o.annotation_id: o for o in samples[f"coco/{row['image_id']:012d}"].objects}
        assert {str(annotation["id"]) for annotation in row["annotations"]} == things.keys()
        for annotation in row["annotations"]:
            assert annotation["category_id"] in known
            assert annotation["bbox_mode"] == 1
            assert not annotation["iscrowd"]
            assert kept[annotation["id"]]["segmentation"] == annotation["segmentation"]
            own = {p.kind: p for p in things[str(annotation["id"])].prompts}
            assert annotation["visual_prompts"].keys() == {f"{kind}_visual_prompt" for kind in own}
            for kind, prompt in own.items():
                rle = annotation["visual_prompts"][f"{kind}_visual_prompt"]
                assert type(rle["counts"]) is str
                crop = prompts.render(prompt, *row["image_size"])
                expected = np.zeros(row["image_size"], bool)
                if crop is not None:
                    height, width = crop.mask.shape
                    expected[crop.y0 : crop.y0 + height, crop.x0 : crop.x0 + width] = crop.mask
                assert (coco_masks.decode(rle).astype(bool) == expected).all()


def segmentations(value) -> Iterable:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("segmentation", "rle_masks") or key.endswith(("_visual_prompt", "_visual_prompt_mask")):
                yield from inner if key == "rle_masks" else [inner]
            else:
                yield from segmentations(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from segmentations(inner)


def test_no_file_has_a_segmentation_that_breaks_a_loader(xsam):
    """Uncompressed RLE breaks three of X-SAM's; polygons must be of an even number of coordinates, six or more."""
    number = 0
    for path in xsam.rglob("*.json"):
        for found in segmentations(json.loads(path.read_text())):
            number += 1
            if isinstance(found, list):
                assert all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in found)
            else:
                assert found.keys() == {"size", "counts"}
                assert type(found["counts"]) is str
    assert number > 300


def test_prompts_of_our_own_come_back_as_they_are_drawn(world, tmp_path):
    """Points and scribbles drawn by the published profile on COCO, and imported again as bitmaps."""
    sources = {
        "v": {"builder": "coco", "task": "vgdseg", "root": "coco"},
        "i": {"builder": "coco", "task": "intseg", "root": "coco"},
    }
    before = built(tmp_path / "first", world, sources)
    export.export(str(tmp_path / "first"), "xsam", str(tmp_path / "out"))
    after = rebuilt(tmp_path / "second", tmp_path / "out", {
        "v": {"builder": "coco_vgd", "task": "vgdseg", "root": ""},
        "i": {"builder": "coco_interactive", "task": "intseg", "root": ""},
    })  # fmt: skip
    bitmaps = [{}, {}]
    for found, samples in zip(bitmaps, (before, after), strict=True):
        for s in samples:
            assert s.split in (("train2017", "val2017"), ("train", "val"))[samples is after]
            for thing in s.objects:
                if not thing.crowd:
                    drawn = [prompts.render(p, s.height, s.width) for p in thing.prompts]
                    shown = [None if c is None else (c.x0, c.y0, c.mask.shape, c.mask.tobytes()) for c in drawn]
                    found[s.source, s.image_key, thing.annotation_id] = (thing.rle, thing.category_id, shown)
    assert len(bitmaps[0]) > 30
    assert bitmaps[0] == bitmaps[1]


# --- PSALM, COCO, LLaVA ----------------------------------------------------------------------------------------------


def test_interactive_samples_come_back_from_psalms_files(everything, tmp_path):
    export.export(str(everything[0]), "psalm", str(tmp_path / "out"))
    after = rebuilt(tmp_path / "second", tmp_path / "out", {"interactive": {**SOURCES["interactive"], "root": ""}})
    assert facts(after) == facts(everything[1], "interactive")
    rows = json.loads((tmp_path / "out" / "coco_interactive_train_psalm.json").read_text())
    things = {o.annotation_id: o for s in everything[1] if s.source == "interactive" for o in s.objects}
    for annotation in (a for row in rows for a in row["anns"]):
        raw = {k: coco_masks.decode(annotation[f"{k}_visual_prompt_mask"]) for k in ("point", "scribble")}
        for prompt in things[str(annotation["id"])].prompts[:2]:  # the trace is one pixel wide
            pixels = {(int(y), int(x)) for x, y in zip(prompt.points[::2], prompt.points[1::2], strict=True)}
            assert set(map(tuple, np.argwhere(raw[prompt.kind]).tolist())) == pixels


def test_generic_samples_come_back_from_coco_files(everything, tmp_path):
    report = export.export(str(everything[0]), "coco", str(tmp_path / "out"))
    left_out = {unit: counts["left_out"] for unit, counts in report.as_dict()["samples"].items()}
    assert {unit.partition(" ")[0] for unit, reasons in left_out.items() if reasons} == {
        "refseg",
        "grefseg",
        "gcgseg",
        "reaseg",
        "chat",
    }
    sources = {
        name: {**SOURCES[name], "root": "", "splits": ["train2017", "val2017"]} for name in ("generic", "things")
    }
    after = rebuilt(tmp_path / "second", tmp_path / "out", sources)
    assert facts(after) == facts(everything[1], "generic", "things")


def key_in_llava(key: str) -> str:
    """What a picture is called once its file lies among those of LLaVA's mix, which knows some sources."""
    space, _, name = key.partition("/")
    if space in ("", "coco", "vg", "textvqa", "ocr_vqa"):
        return key
    return f"llava/{name}" if space == "sa1b" else f"llava/{space}_{name}"


def test_every_task_is_a_conversation_that_llavas_builder_reads(everything, tmp_path):
    export.export(str(everything[0]), "llava", str(tmp_path / "out"))
    after = rebuilt(tmp_path / "second", tmp_path / "out", {"talk": {**SOURCES["talk"], "root": "", "options": {}}})
    training = [s for s in everything[1] if s.split in ("train", "train2017")]
    assert len(after) == len(training)
    assert Counter(s.image_key for s in after) == Counter(map(key_in_llava, (s.image_key for s in training)))
    texts = {tuple(turn.text for turn in s.turns) for s in after}
    for sample in training:
        escaped = [t.text for t in sample.turns]
        for marker in ("<p>", "</p>", "<region>", "<SEG>"):  # text of others holds no markers of its own
            escaped = [text.replace(marker, f"\u2039{marker[1:-1]}\u203a") for text in escaped]
        assert tuple(escaped) in texts
    names = {
        "llava_train.json", "llava_val.json", "llava_test.json", "llava_testA.json", "llava_testB.json", "export.json",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "out").glob("*.json")} == names


# --- open vocabulary: ADE20K -----------------------------------------------------------------------------------------

WALL, SKY, BED, BED_INSTANCE = 1, 3, 8, 1  # in the class map, and in the map of instances


@pytest.fixture(scope="session")
def ade(tmp_path_factory) -> Path:
    """A picture of ADEChallengeData2016: nothing labelled above, a wall, sky, and two beds."""
    root = tmp_path_factory.mktemp("ade") / "data"
    classes = np.full((24, 32), WALL, np.uint8)
    classes[:4], classes[4:8, 20:] = 0, SKY
    classes[10:20, 4:16] = classes[12:22, 18:30] = BED
    things = np.zeros((24, 32, 3), np.uint8)
    things[10:20, 4:16], things[12:22, 18:30] = (BED_INSTANCE, 1, 0), (BED_INSTANCE, 2, 0)
    for role, pixels, name in (
        ("images", np.repeat(classes[..., None], 3, 2), "ADE_val_00000001.jpg"),
        ("annotations", classes, "ADE_val_00000001.png"),
        ("annotations_instance", things, "ADE_val_00000001.png"),
    ):
        (root / role / "validation").mkdir(parents=True)
        Pictures.fromarray(pixels).save(root / role / "validation" / name)
    return root


def test_open_vocabulary_is_readable_as_coco(ade, tmp_path):
    variants = ("panoptic", "instance", "semantic")
    before = built(tmp_path / "first", ade, {
        v: {"builder": "ade20k", "task": "ovseg", "root": "", "options": {"variants": [v]}} for v in variants
    })  # fmt: skip
    export.export(str(tmp_path / "first"), "xsam", str(tmp_path / "out"))
    after = rebuilt(tmp_path / "second", tmp_path / "out" / "img_ovseg", {
        "panoptic": {"builder": "coco", "task": "genseg", "root": "", "options": {"variants": ["panoptic"]}},
        "instance": {"builder": "coco", "task": "genseg", "root": "", "options": {"variants": ["instance"]}},
    })  # fmt: skip
    by_variant = {s.variant: s for s in before}
    assert [len(by_variant[v].objects) for v in variants] == [4, 2, 3]
    for sample in after:
        held = {(o.rle, o.category_id, o.crowd) for o in sample.objects}
        assert held == {(o.rle, o.category_id, o.crowd) for o in by_variant[sample.variant].objects}
        assert (sample.image_key, sample.split) == ("exported/000000000001", "validation")
    (path,) = (tmp_path / "out" / "img_ovseg" / "panoptic_semseg_validation").iterdir()
    pixels = np.asarray(Pictures.open(path))
    listed = json.loads((tmp_path / "out/img_ovseg/annotations/semseg_validation_classes.json").read_text())
    assert set(np.unique(pixels)) == {0, 2, 7, 255}  # numbers of the class map less one, and what has no class
    for thing in by_variant["semantic"].objects:
        (index,) = {entry["index"] for entry in listed if entry["id"] == thing.category_id}
        assert ((pixels == index) == decode(thing.rle, 24, 32)).all()


# --- tars and the hub ------------------------------------------------------------------------------------------------


def unpacked(value, schema: dict):
    """Plain JSON as a row: base64 text of binary values is bytes again."""
    if "anyOf" in schema:
        return None if value is None else unpacked(value, schema["anyOf"][0])
    if schema["type"] == "object":
        return {key: unpacked(value[key], inner) for key, inner in schema["properties"].items()}
    if schema["type"] == "array":
        return [unpacked(inner, schema["items"]) for inner in value]
    return base64.b64decode(value) if schema.get("contentEncoding") == "base64" else value


def test_tars_hold_the_samples(everything, tmp_path):
    from dataengine.sample import json_schema

    export.export(str(everything[0]), "webdataset", str(tmp_path / "out"))
    found = []
    for path in sorted((tmp_path / "out").glob("*.tar")):
        pictures: dict[str, bytes] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                data = tar.extractfile(member).read()
                if suffix != "json":
                    pictures[key] = data
                    continue
                sample = from_row(unpacked(json.loads(data), json_schema()))
                assert (sample.image is None) == (key not in pictures)
                found.append(replace(sample, image=sample.image and replace(sample.image, bytes=pictures[key])))
    by_id = {s.sample_id: s for s in found}
    assert len(by_id) == len(found)
    assert by_id == {s.sample_id: s for s in everything[1]}


def test_the_hub_holds_the_samples(everything, tmp_path):
    datasets = pytest.importorskip("datasets")
    export.export(str(everything[0]), "hub", str(tmp_path / "out"))
    own = {s.sample_id: s for s in everything[1]}
    files = sorted((tmp_path / "out" / "data").glob("*.parquet"))
    read = [s for path in files for s in read_shard(io.BytesIO(path.read_bytes()))]
    assert {s.sample_id: s for s in read} == own
    opened = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    rows = [row for split in opened.values() for row in split.data.table.to_pylist()]
    assert len(rows) == len(own)
    for row in rows:
        assert from_row(row) == own[row["sample_id"]]
        assert row == to_row(own[row["sample_id"]])


# --- published files -------------------------------------------------------------------------------------------------


def without_other(sample: Sample) -> Sample:
    """A sample without the shares of its prompts in other objects."""
    things = (replace(o, prompts=tuple(replace(p, other=0.0) for p in o.prompts)) for o in sample.objects)
    return replace(sample, objects=tuple(things))


def grounded(samples: Iterable[Sample]) -> Counter[tuple[str, str, frozenset[bytes]]]:
    """The phrases of captions with their masks."""
    return Counter(
        (s.image_key, c.text, frozenset(s.objects[i].rle for i in c.objects))
        for s in samples
        if s.source == "human"
        for c in s.conditions
    )


def photos(fixtures: Path, *folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True)
        for photo in (fixtures / "coco" / "images").glob("*2017/*.jpg"):
            name = f"sa_{int(photo.stem)}.jpg" if folder.name == "val_test" else photo.name
            os.symlink(photo, folder / name)


@pytest.fixture
def golden(fixtures, tmp_path) -> Path:
    """Recorded annotations of published layouts over their photos."""
    formats, root = fixtures / "golden" / "formats", tmp_path / "golden"
    for packed in ("coco_vgd/coco_vgdseg_train.json", "coco_interactive/coco_interactive_val_psalm.json"):
        (root / packed).parent.mkdir(parents=True)
        (root / packed).write_bytes(gzip.decompress((formats / f"{packed}.gz").read_bytes()))
    for name in ("refcoco", "grefcoco", "gcg/annotations"):
        shutil.copytree(formats / name, root / name)
    photos(
        fixtures, root / "coco_vgd/train2017", root / "coco_interactive/val2017", root / "refcoco/images",
        root / "grefcoco/images", root / "gcg/GranDf_HA_images/train", root / "gcg/GranDf_HA_images/val_test",
    )  # fmt: skip
    shutil.copytree(formats / "reasonseg", root / "reasonseg")
    for name, value in json.loads((formats / "reasonseg/expected.json").read_text())["lisa"].items():
        shutil.copy(fixtures / "coco/images" / Path(*Path(value["photo"]).parts[-2:]), root / f"reasonseg/{name}.jpg")
    return root


def test_recorded_files_come_back(golden, tmp_path):
    sources = {
        "vgd": {"builder": "coco_vgd", "task": "vgdseg", "root": "coco_vgd"},
        "interactive": {"builder": "coco_interactive", "task": "intseg", "root": "coco_interactive"},
        "refs": {"builder": "refcoco", "task": "refseg", "root": "refcoco"},
        "grefs": {"builder": "grefcoco", "task": "grefseg", "root": "grefcoco"},
        "human": {"builder": "grandf", "task": "gcgseg", "root": "gcg", "options": {"part": "ha"}},
        "reasons": {"builder": "reasonseg", "task": "reaseg", "root": "reasonseg"},
    }
    rooted = {name: {**source, "root": str(golden / source["root"])} for name, source in sources.items()}
    before = built(tmp_path / "first", golden, rooted)
    report = export.export(str(tmp_path / "first"), "xsam", str(tmp_path / "out"))
    after = rebuilt(
        tmp_path / "second", tmp_path / "out", {name: {**sources[name], "root": XSAM[name]} for name in sources}
    )
    assert {s.source for s in before} == sources.keys()
    plain = ["vgd", "refs", "grefs", "reasons"]
    assert facts(before, *plain) == facts(after, *plain)
    # prompts are measured against all that is in a picture; crowds are in the recorded file, and in no sample
    interactive = [list(map(without_other, facts(samples, "interactive"))) for samples in (before, after)]
    assert interactive[0] == interactive[1]
    # one caption says "a man" of two men, which the form cannot hold; one has a mask that no label is of
    assert report.as_dict()["not_held"] == {
        "gcgseg": {"conditions: phrase given twice": 1, "objects: of no phrase": 1},
    }
    lost = grounded(before) - grounded(after)
    assert [(key, text) for key, text, _ in lost.elements()] == [("coco/000000252219", "a man")]
    assert not grounded(after) - grounded(before)
