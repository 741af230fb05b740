"""The refer family: pickles that are read safely, refs joined with annotations, samples of both kinds."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from pathlib import Path

import pytest
from pycocotools import mask as oracle

from builders import grefcoco, refcoco, refer
from builders.rows import select
from dataengine import conversation, invariants
from dataengine.builder import OptionError, SourceError
from dataengine.keyed import keyed
from dataengine.store.files import Folder

SQUARE = [[2, 2, 10, 2, 10, 10, 2, 10]]
RIGHT = [[20, 4, 30, 4, 30, 20, 20, 20]]


def ref(number: int, image: int, annotation, sents, split="train") -> dict:
    return {
        "ref_id": number,
        "ann_id": annotation,
        "image_id": image,
        "category_id": 1,
        "split": split,
        "file_name": f"COCO_train2014_{image:012d}_{number}.jpg",
        "sent_ids": [10 * number + i for i in range(len(sents))],
        "sentences": [
            {"tokens": s.split(), "raw": s.upper(), "sent": s, "sent_id": 10 * number + i} for i, s in enumerate(sents)
        ],
    }


class Tree:
    """A refer folder over two pictures with two annotations each."""

    def __init__(self, root: Path, jpeg, dataset: str = "refcoco", num_images: int = 2) -> None:
        self.root, self.folder = root / "refer", root / "refer" / dataset
        self.folder.mkdir(parents=True)
        self.pictures = self.root / "train2014"
        self.pictures.mkdir()
        self.images = [
            {"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "height": 24, "width": 32, "license": 3}
            for n in range(1, num_images + 1)
        ]
        for image in self.images:
            (self.pictures / image["file_name"]).write_bytes(jpeg(seed=image["id"]))
        self.annotations = [
            {"id": 10 * n + k, "image_id": n, "category_id": 1, "iscrowd": 0, "segmentation": shape}
            for n in range(1, num_images + 1)
            for k, shape in enumerate((SQUARE, RIGHT))
        ]
        self.instances()

    def instances(self) -> None:
        document = {
            "info": {},
            "licenses": [{"id": 3, "name": "CC BY", "url": "u"}],
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": 1, "name": "giraffe"}],
        }
        (self.folder / "instances.json").write_text(json.dumps(document))

    def refs(self, refs, name: str = "refs(unc).p", protocol: int = 2) -> None:
        (self.folder / name).write_bytes(pickle.dumps(refs, protocol))


@pytest.fixture
def tree(tmp_path, make_jpeg):
    return Tree(tmp_path, make_jpeg)


def render(sample):
    rendered = conversation.render(sample, keyed(0, sample.sample_id, "conversation", conversation.VERSION))
    invariants.check(rendered)
    return rendered


def means(sample) -> dict[str, list[str]]:
    """Annotation ids by sentence."""
    return {c.text: [sample.objects[i].annotation_id for i in c.objects] for c in sample.conditions}


# --- samples ---------------------------------------------------------------------------------------------------------


def test_training_pictures_hold_every_sentence_once(tree, read_source):
    tree.refs([ref(0, 1, 10, ["Left  one", "small one", "left one"]), ref(1, 1, 11, ["right one", "big one"])])
    (train, *rest) = read_source(refcoco, tree.root, "refseg")
    (sample,) = train.samples
    assert means(sample) == {"left one": ["10"], "small one": ["10"], "right one": ["11"], "big one": ["11"]}
    assert [c.category_id for c in sample.conditions] == [1] * 4
    assert sample.sample_id == "refcoco/train/coco/000000000001/refseg/0"
    assert (sample.license.name, sample.provenance.url) == ("CC BY", refcoco.ABOUT.url)
    for thing, shape in zip(sorted(sample.objects, key=lambda o: o.annotation_id), (SQUARE, RIGHT), strict=True):
        assert thing.rle == oracle.frPyObjects(shape, 24, 32)[0]["counts"]
    assert render(sample).turns[0].text.startswith("<image>\n")
    account = train.account.as_dict()
    assert account["read"] == {"images": 1, "refs": 2, "sentences": 5}
    assert account["filtered"] == {"sentences": {"repeated": 1}}
    assert [r.part.split for r in rest] == ["val", "testA", "testB"]
    assert [r.report.rows for r in rest] == [0, 0, 0]


def test_many_sentences_are_cut_into_chunks_and_none_is_lost(tree, read_source):
    sentences = [f"thing {n}" for n in range(19)]
    tree.refs([ref(0, 1, 10, sentences[:10]), ref(1, 1, 11, sentences[10:])])
    (reading,) = read_source(refcoco, tree.root, "refseg", splits=["train"], max_phrases=8)
    assert [len(s.conditions) for s in reading.samples] == [8, 8, 3]
    assert sorted(c.text for s in reading.samples for c in s.conditions) == sorted(sentences)
    assert [s.sample_id[-2:] for s in reading.samples] == ["/0", "/1", "/2"]
    mixed = [c.text for s in reading.samples for c in s.conditions]
    assert mixed != sentences  # phrases of a ref are spread over the samples
    (other,) = read_source(refcoco, tree.root, "refseg", splits=["train"], seed=1)
    assert [c.text for s in other.samples for c in s.conditions] != mixed
    for sample in reading.samples:
        render(sample)


def test_a_sentence_on_two_objects_means_both_in_training(tree, read_source):
    refs = [ref(0, 1, 10, ["animal"]), ref(1, 1, 11, ["Animal", "tall"])]
    tree.refs(refs)
    (train,) = read_source(refcoco, tree.root, "refseg", splits=["train"])
    (sample,) = train.samples
    assert {text: sorted(ids) for text, ids in means(sample).items()} == {"animal": ["10", "11"], "tall": ["11"]}
    tree.refs([r | {"split": "testA"} for r in refs])
    (test,) = read_source(refcoco, tree.root, "refseg", splits=["testA"])
    assert [means(s) for s in test.samples] == [{"animal": ["10"]}, {"animal": ["11"]}, {"tall": ["11"]}]
    assert [s.sample_id for s in test.samples] == [f"refcoco/testA/coco/000000000001/refseg/{n}" for n in range(3)]


def test_a_ref_belongs_to_its_own_split(tree, read_source):
    tree.refs([ref(0, 1, 10, ["a"]), ref(1, 1, 11, ["b"], "val")])
    train, val, *_ = read_source(refcoco, tree.root, "refseg")
    assert [means(s) for s in train.samples] == [{"a": ["10"]}]
    assert [means(s) for s in val.samples] == [{"b": ["11"]}]


def test_every_sentence_is_used_over_three_epochs(tree, read_source):
    """The share of sentences that three passes over the samples show; the reference's prefix rule shows fewer."""
    tree.refs([ref(k, 1, 10 + k % 2, [f"{k} {i}" for i in range(3)]) for k in range(6)])
    (reading,) = read_source(refcoco, tree.root, "refseg", splits=["train"])
    shown = [c.text for _ in range(3) for s in reading.samples for c in s.conditions]
    assert {shown.count(text) for text in {f"{k} {i}" for k in range(6) for i in range(3)}} == {3}


def test_general_refs_have_no_or_several_targets(tmp_path, make_jpeg, read_source):
    tree = Tree(tmp_path, make_jpeg, "grefcoco")
    refs = [
        ref(0, 1, [10, 11], ["both Giraffes"]),
        ref(1, 1, [-1], ["a zebra", "a zebra"]) | {"no_target": True},
        ref(2, 1, [-1], ["a lion"]),
        ref(3, 1, 11, ["the right one"]),
    ]
    for name in ("grefs(unc).json", "refs(unc).p"):
        for file in tree.folder.glob("*refs*"):
            file.unlink()
        (tree.folder / name).write_bytes(pickle.dumps(refs, 2) if name.endswith("p") else json.dumps(refs).encode())
        (train,) = read_source(grefcoco, tree.root, "grefseg", splits=["train"])
        (sample,) = train.samples
        assert means(sample) == {
            "both Giraffes": ["10", "11"],
            "a zebra": [],
            "a lion": [],
            "the right one": ["11"],
        }
        render(sample)
        assert train.account.as_dict()["filtered"] == {"sentences": {"repeated": 1}}


@pytest.mark.parametrize(
    ("folder", "made"),
    [
        ("train2017", "000000000001.jpg"),
        ("val2017", "000000000001.jpg"),
        ("train2014", "COCO_train2014_000000000001.jpg"),
    ],
)
def test_pictures_are_found_in_releases_of_either_year(tmp_path, make_jpeg, read_source, folder, made):
    tree = Tree(tmp_path, make_jpeg, num_images=1)
    tree.refs([ref(0, 1, 10, ["a"])])
    data = (tree.pictures / "COCO_train2014_000000000001.jpg").read_bytes()
    (tree.pictures / "COCO_train2014_000000000001.jpg").unlink()
    tree.pictures.rmdir()
    place = tmp_path / "coco" / folder
    place.mkdir(parents=True)
    (place / made).write_bytes(data)
    (reading,) = read_source(refcoco, tree.root, "refseg", splits=["train"])
    assert [s.image.bytes for s in reading.samples] == [data]
    (reading,) = read_source(refcoco, tree.root, "refseg", splits=["train"], images="reference")
    assert [s.image.path for s in reading.samples] == [str(place / made)]


def test_the_dataset_folder_itself_is_a_root(tree, read_source):
    tree.refs([ref(0, 1, 10, ["a"])])
    files = {"images": str(tree.pictures)}
    (reading,) = read_source(refcoco, tree.folder, "refseg", splits=["train"], files=files)
    assert len(reading.samples) == 1


def test_keys_and_selection(tree, read_source, tmp_path):
    tree.refs([ref(0, 2, 20, ["a"]), ref(1, 1, 11, ["b"])])
    (reading,) = read_source(refcoco, tree.root, "refseg", splits=["train"])
    keys = list(refcoco.image_keys(reading.context, reading.index))
    assert keys == [s.image_key for s in reading.samples] == ["coco/000000000001", "coco/000000000002"]
    assert select(Path(reading.index.uri), {"2"}, tmp_path / "some") == 1
    (outcome,) = refcoco.read(reading.context, Folder(str(tmp_path / "some")), 0, 1)
    assert outcome.samples == reading.outcomes[1].samples


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"ann_id": 99}, "unknown_annotation", id="no annotation"),
        pytest.param({"ann_id": 20}, "other_image", id="annotation of another picture"),
        pytest.param({"ann_id": "10"}, "bad_field", id="annotation id as text"),
        pytest.param({"ann_id": [10, 11]}, "several_targets", id="two targets"),
        pytest.param({"ann_id": [-1]}, "no_target", id="no target"),
        pytest.param({"image_id": None}, "bad_field", id="no picture id"),
        pytest.param({"image_id": 77}, "unknown_image", id="unknown picture"),
        pytest.param({"ref_id": -4}, "bad_field", id="negative id"),
        pytest.param({"ref_id": 1}, "duplicate_ref", id="id twice"),
        pytest.param({"sentences": []}, "bad_field", id="no sentences"),
        pytest.param({"sentences": "abc"}, "bad_field", id="sentences as text"),
        pytest.param({"split": 3}, "bad_field", id="split as number"),
        pytest.param({"split": ""}, "bad_field", id="no split"),
        pytest.param({"split": "testD"}, "bad_field", id="a split there is not"),
    ],
)
def test_bad_refs_are_quarantined_and_the_rest_is_built(tree, read_source, change, reason):
    tree.refs([ref(1, 1, 11, ["good one"]), ref(0, 1, 10, ["bad one"]) | change])
    (train,) = read_source(refcoco, tree.root, "refseg", splits=["train"])
    assert [means(s) for s in train.samples] == [{"good one": ["11"]}]
    assert [(b.unit, b.reason) for b in train.bad] == [("refs", reason)]
    assert train.account.read["refs"] == 2


def test_bad_sentences_are_quarantined_one_by_one(tree, read_source):
    wrong = ref(0, 1, 10, ["good", "  "])
    wrong["sentences"] += [{"sent": None}, 5, {"sent": "x" * 20_000}]
    wrong["sentences"].append({"sent": "the <SEG> of \ud800 <P>"})
    tree.refs([wrong, ref(1, 1, 11, ["\t"])])
    (train,) = read_source(refcoco, tree.root, "refseg", splits=["train"])
    (sample,) = train.samples
    assert sorted(means(sample)) == ["good", "the ‹seg› of ? ‹p›"]
    assert [b.reason for b in train.bad] == ["bad_text"] * 5
    assert train.account.read == {"images": 1, "refs": 2, "sentences": 7, "escaped_markers": 2}
    assert train.account.built == {"images": 1, "refs": 1, "sentences": 2, "escaped_markers": 2}
    assert train.account.filtered == {"refs": {"no_phrase": 1}}
    render(sample)


def test_a_picture_without_a_usable_sentence_is_filtered(tree, read_source):
    tree.refs([ref(0, 1, 10, [" "])])
    (train,) = read_source(refcoco, tree.root, "refseg", splits=["train"])
    assert train.samples == []
    assert train.account.as_dict()["filtered"] == {"images": {"no_phrase": 1}, "refs": {"no_phrase": 1}}


def test_a_bad_picture_is_quarantined_with_its_refs(tree, read_source):
    tree.refs([ref(0, 1, 10, ["a", "b"]), ref(1, 2, 20, ["c"])])
    (tree.pictures / tree.images[0]["file_name"]).unlink()
    (train,) = read_source(refcoco, tree.root, "refseg", splits=["train"])
    assert [b.reason for b in train.bad] == ["image_missing"]
    account = train.account.as_dict()
    assert account["filtered"] == {"refs": {"image_quarantined": 1}, "sentences": {"image_quarantined": 2}}
    assert account["built"] == {"images": 1, "refs": 1, "sentences": 1}


def test_an_annotation_is_nested_as_deeply_as_can_be_read(tree, read_source):
    """A row is read from a deeper call than the index was made from, and by another decoder; neither is a defect."""
    tree.refs([ref(0, 1, 10, ["a", "b"]), ref(1, 2, 20, ["c"])])
    reasons = set()
    for depth in (*range(900, 1000, 5), *range(940, 960)):
        tree.annotations[0]["segmentation"] = "deep"
        tree.instances()
        file = tree.folder / "instances.json"
        file.write_text(file.read_text().replace('"deep"', "[" * depth + "]" * depth))
        (train,) = read_source(refcoco, tree.root, "refseg", splits=["train"])
        assert [means(s) for s in train.samples] == [{"c": ["20"]}]
        assert train.account.read["sentences"] == 3
        reasons |= {bad.reason for bad in train.bad}
    assert reasons <= {"bad_json", "segmentation_invalid", "unknown_annotation"}
    assert reasons


def test_crowd_annotations_can_be_referred_to(tree, read_source):
    tree.annotations[0] |= {"iscrowd": 1, "segmentation": {"size": [24, 32], "counts": [50, 10, 708]}}
    tree.instances()
    tree.refs([ref(0, 1, 10, ["all of them"])])
    (train,) = read_source(refcoco, tree.root, "refseg", splits=["train"])
    assert [(o.crowd, o.area) for o in train.samples[0].objects] == [(False, 10)]


def test_lists_of_rles_are_their_union(tree, read_source):
    """As RefCLEF's annotations have it."""
    parts = [oracle.frPyObjects(shape, 24, 32)[0] for shape in (SQUARE, RIGHT)]
    rles = [{"size": [24, 32], "counts": part["counts"].decode()} for part in parts]
    tree.annotations[0]["segmentation"] = rles
    tree.annotations[1]["segmentation"] = [rles[0], 5]
    tree.instances()
    tree.refs([ref(0, 1, 10, ["both"]), ref(1, 1, 11, ["broken"])])
    (train,) = read_source(refcoco, tree.root, "refseg", splits=["train"])
    assert train.samples[0].objects[0].rle == oracle.merge(parts)["counts"]
    assert [b.unit for b in train.bad] == ["refs"]


def test_options_and_places_are_checked(tree):
    with pytest.raises(OptionError, match=r"refcoco\+ is split by unc, not umd"):
        refcoco.parse_options("refseg", {"dataset": "refcoco+", "by": "umd"})
    parsed = refcoco.parse_options("refseg", {})
    with pytest.raises(SourceError, match=r"the refs file is missing .*refcoco/refs\(unc\)\.p"):
        refcoco.locate(str(tree.root), {}, (), parsed)
    tree.refs([])
    with pytest.raises(SourceError, match=r"no split testC here; there are train, val, testA, testB"):
        refcoco.locate(str(tree.root), {}, ["testC"], parsed)


# --- pickles are untrusted -------------------------------------------------------------------------------------------


class Harmful:
    def __reduce__(self):
        return os.system, ("echo harm > harmed",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_with_code_is_refused_and_does_not_run(tree, read_source, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps([ref(0, 1, 10, ["a"]), Harmful()], protocol)
    (tree.folder / "refs(unc).p").write_bytes(data)
    with pytest.raises(SourceError, match=r"refs\(unc\)\.p: this pickle asks for .*; only lists, dicts, texts and num"):
        read_source(refcoco, tree.root, "refseg")
    assert not (tmp_path / "harmed").exists()
    pickle.loads(data)  # which it would have done
    assert (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("data", "asks"),
    [
        (b"cos\nsystem\n(S'x'\ntR.", r"GLOBAL \(os.system\)"),
        (b"(S'x'\nios\nsystem\n.", r"INST \(os.system\)"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"P1\n.", "PERSID"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "BYTEARRAY8"),
        (b"\x80\x04\x8f.", "EMPTY_SET"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"STACK_GLOBAL \('os', 'system'\)"),
        pytest.param(b"\x80\x02})" + b"\x85" * 2_000_000 + b"K\x01s.", "TUPLE", id="its hash ends the process"),
        (b"\x80\x02}K\x01K\x02s.", "a dict whose keys are no texts"),
        (b"\x80\x02}(K\x01K\x02u.", "a dict whose keys are no texts"),
        (b"(I1\nI2\nd.", "a dict whose keys are no texts"),
        (b"I1\np%d\n." % (2**61 - 1), "of its memo"),
    ],
)
def test_opcodes_of_other_values_are_refused(data, asks):
    with pytest.raises(SourceError, match=asks):
        refer.load_pickle(data, "x.p")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80", b"\x80\x02]q", b".", b"garbage", b"\x80\x02r\xff\xff\xff\xff.", b"S'\xff\n.", b"I9" * 5000 + b"\n."],
)
def test_damaged_pickles_are_named(data):
    with pytest.raises(SourceError, match=r"x\.p: the pickle is damaged or cut off"):
        refer.load_pickle(data, "x.p")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_every_protocol_are_read(protocol):
    value = [{"a": [1, -2, 2**70, 1.5, True, None], "é": ["x", []]}]
    assert refer.load_pickle(pickle.dumps(value, protocol), "x.p") == value


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"}" * 100, id="dicts"),
        pytest.param(b"(" * 100, id="marks"),
        pytest.param(b"]" * 100, id="lists"),
        pytest.param(b"N" + b"\x94" * 100, id="memo"),
        pytest.param(b"]" + b"2" * 500, id="one value on the stack, often"),
        pytest.param(b"U\x02ab" * 150, id="texts"),
        pytest.param(b"M\x00\x10" * 250, id="numbers"),
    ],
)
def test_values_that_would_fill_the_memory_are_refused(monkeypatch, data):
    """The same opcodes pass where there is room; a mark alone is no value."""
    monkeypatch.setattr(refer, "MAX_VALUES", 9_000)
    with pytest.raises(SourceError, match=r"x\.p: the values of this pickle would take more than 9,000 bytes"):
        refer.load_pickle(data + b".", "x.p")
    monkeypatch.setattr(refer, "MAX_VALUES", 9_000_000)
    with pytest.raises(SourceError, match="damaged") if data[:1] == b"(" else contextlib.nullcontext():
        refer.load_pickle(data + b".", "x.p")


def test_a_huge_memo_index_takes_no_memory():
    assert refer.load_pickle(b"\x80\x02]r\xf0\xff\xff\xff.", "x.p") == []


def test_values_that_hold_themselves_or_repeat_do_no_harm(tree, read_source):
    endless: list = []
    endless.append(endless)
    sentences = [{"sent": "word " * 100}] * 1000
    tree.refs([endless, ref(0, 1, 10, ["a"]) | {"split": endless}, {"split": "train", "ref_id": endless}])
    (train,) = read_source(refcoco, tree.root, "refseg", splits=["train"])
    assert [b.reason for b in train.bad] == ["bad_field"] * 3
    for shared in (sentences, [{"sent": None}] * 1000):
        tree.refs([ref(k, 1, 10, ["a"]) | {"sentences": shared} for k in range(500)])
        with pytest.raises(SourceError, match="the pickle repeats itself"):
            read_source(refcoco, tree.root, "refseg", splits=["train"])
    targets = list(range(1000))
    tree.refs([ref(k, 1, targets, ["a"]) for k in range(500)])
    with pytest.raises(SourceError, match="the pickle repeats itself"):
        read_source(refcoco, tree.root, "refseg", splits=["train"])
    tree.refs([ref(0, 1, [*targets, 1000], ["a"])])
    (train,) = read_source(refcoco, tree.root, "refseg", splits=["train"])
    assert "is no list of 1 to 1000 annotation ids" in train.bad[0].message


def test_other_pickles_are_refused(tree, read_source):
    (tree.folder / "refs(unc).p").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(SourceError, match="must hold a list of refs, not a dict"):
        read_source(refcoco, tree.root, "refseg")


# --- what reference loaders make of the same files -------------------------------------------------------------------


@pytest.fixture
def golden(fixtures, tmp_path):
    """A golden folder with its photos: `golden(folder)`."""

    def place(folder: str) -> Path:
        source = fixtures / "golden" / "formats" / folder
        root = tmp_path / "golden"
        (root / "train2014").mkdir(parents=True)
        for photo in (fixtures / "coco" / "images").glob("*/*.jpg"):
            (root / "train2014" / f"COCO_train2014_{photo.name}").symlink_to(photo)
        for dataset in source.iterdir():
            if dataset.is_dir():
                (root / dataset.name).symlink_to(dataset)
        return root

    return place


def expected(fixtures, folder: str) -> dict:
    return json.loads((fixtures / "golden" / "formats" / folder / "expected.json").read_text())


@pytest.mark.parametrize("dataset", ["refcoco", "refcoco+", "refcocog"])
def test_published_layouts_give_what_reference_loaders_give(fixtures, golden, read_source, dataset):
    told = expected(fixtures, "refcoco")
    root = golden("refcoco")
    readings = {r.part.split: r for r in read_source(refcoco, root, "refseg", dataset=dataset)}
    by_split = told["refer_py"][dataset]["ref_ids_by_split"]
    for split, ref_ids in by_split.items():
        reading = readings[split]
        assert reading.account.built["refs"] == len(ref_ids)
        assert reading.bad == []
        for sample in reading.samples:
            render(sample)
    areas = told["refer_py"][dataset]["mask_areas"]
    refs = {r["ref_id"]: r for r in json.loads(next((root / dataset).glob("*.readable.json")).read_text())}
    found = {o.annotation_id: o.area for r in readings.values() for s in r.samples for o in s.objects}
    for number, area in areas.items():
        if area["max_value"] == 1:  # else that loader counts where parts overlap twice
            assert found[str(refs[int(number)]["ann_id"])] == area["pixels"]
    for split, rows in ((s, r["rows"]) for s, r in told["xsam_aaai"][dataset].items()):
        theirs = {
            (row["image_id"], text, str(number))
            for row in rows
            for text, number in zip(row["sampled_sents"], row["annotation_ids"], strict=True)
        }
        ours = {
            (int(s.image_key[-12:]), text, number)
            for s in readings[split].samples
            for text, ids in means(s).items()
            for number in ids
        }
        # theirs loses sentences of training, and refs of pictures whose first ref is of another split; we lose none
        assert theirs <= ours
        if split == "train":
            said = {
                (r["image_id"], s["sent"].lower(), str(r["ann_id"]))
                for r in refs.values()
                if r["split"] == split
                for s in r["sentences"]
            }
            assert ours == said


def test_byte_strings_beyond_ascii_are_read(fixtures, golden, read_source):
    told = expected(fixtures, "refcoco")["latin1_pickle"]["encoding_latin1_sentences"]
    root = golden("refcoco")
    files = {role: str(root / "refcoco_latin1" / name) for role, name in (("refs", "refs(unc).p"),)}
    files["instances"] = str(root / "refcoco_latin1" / "instances.json")
    readings = read_source(refcoco, root, "refseg", files=files)
    texts = {c.text for r in readings for s in r.samples for c in s.conditions}
    assert set(told) <= texts


def test_published_general_refs_give_what_the_reference_gives(fixtures, golden, read_source):
    told = expected(fixtures, "grefcoco")["grefer_py"]
    readings = {r.part.split: r for r in read_source(grefcoco, golden("grefcoco"), "grefseg")}
    assert sum(r.account.read["sentences"] for r in readings.values()) == told["sents"]
    for split, ref_ids in told["ref_ids_by_split"].items():
        samples = readings[split].samples
        for number in ref_ids:
            row = told["by_ref"][str(number)]
            for text in row["sents"]:
                found = [(s, c) for s in samples for c in s.conditions if c.text == text]
                wanted = set() if row["no_target_by_ann_id"] else {str(n) for n in row["ann_ids"]}
                matching = [(s, c) for s, c in found if {s.objects[i].annotation_id for i in c.objects} == wanted]
                assert matching
                sample, condition = matching[0]
                parts = [
                    {"size": [sample.height, sample.width], "counts": sample.objects[i].rle} for i in condition.objects
                ]
                union = oracle.merge(parts) if parts else None
                assert (0 if union is None else oracle.area(union)) == (row.get("union_area") or 0)
        for sample in samples:
            render(sample)


def test_pickled_bytes_are_the_same_in_every_protocol(tree, read_source):
    refs = [ref(0, 1, 10, ["a", "b"]), ref(1, 2, 20, ["c"])]
    made = []
    for protocol in range(5):
        tree.refs(refs, protocol=protocol)
        (reading,) = read_source(refcoco, tree.root, "refseg", splits=["train"])
        made.append((reading.report.fingerprint, reading.samples))
    assert all(entry == made[0] for entry in made)


def test_only_what_is_called_train_is_trained_on():
    splits = {split for names in refcoco.SPLITS.values() for split in names}
    assert splits - set(refcoco.HELD_OUT) == {"train"}


def test_a_folder_images_counts_where_it_holds_pictures(tmp_path):
    """RefCLEF's folder lies in `images` too; COCO's pictures are then beside the root."""
    (tmp_path / "refer/images/saiapr_tc-12").mkdir(parents=True)
    (tmp_path / "coco2014").mkdir()
    assert refcoco.image_places(str(tmp_path / "refer"))[-1] == "images"
    (tmp_path / "refer/images/000000000139.jpg").touch()
    assert refcoco.image_places(str(tmp_path / "refer")).index("images") == len(refcoco.IMAGES_INSIDE)
