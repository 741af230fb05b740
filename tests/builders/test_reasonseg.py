"""The ReasonSeg builder: shapes drawn as LISA draws them, questions and explanations placed, everything counted."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builders import reasonseg
from dataengine import conversation, invariants, masks
from dataengine.builder import OptionError, SourceError
from dataengine.keyed import keyed
from dataengine.store.files import Folder

SQUARE = [[2, 2], [10, 2], [10, 10], [2, 10]]  # with its outline 9 x 9 px


def jpeg(height: int = 24, width: int = 32) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "JPEG")
    return file.getvalue()


def shape(points: Any, label: Any = "target") -> dict[str, Any]:
    """A shape with the keys that published ones have."""
    return {
        "label": label,
        "labels": [label],
        "shape_type": "polygon",
        "image_name": "x.jpg",
        "points": points,
        "group_id": None,
        "group_ids": [label],
        "flags": {},
    }


def record(text: Any = ("What floats?",), shapes: Any = (), is_sentence: Any = True) -> dict[str, Any]:
    return {"text": list(text), "is_sentence": is_sentence, "shapes": list(shapes) or [shape(SQUARE)]}


def write_picture(root: Path, split: str, stem: str, value: Any, picture: bytes | None = None) -> None:
    """A picture and its json. value: bytes are written as they are."""
    (root / split).mkdir(parents=True, exist_ok=True)
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    (root / split / f"{stem}.json").write_bytes(data)
    (root / split / f"{stem}.jpg").write_bytes(picture or jpeg())


def write_explanations(root: Path, values: list[Any]) -> None:
    (root / "explanatory").mkdir(parents=True, exist_ok=True)
    (root / "explanatory" / "train.json").write_text(json.dumps(values))


@pytest.fixture
def read_one(tmp_path, read_source):
    """What becomes of one split; every sample must render and hold."""

    def read(split: str = "train", **options):
        (reading,) = read_source(reasonseg, tmp_path, "reaseg", splits=[split], **options)
        for sample in reading.samples:
            invariants.check(conversation.render(sample, keyed(0, sample.sample_id)))
        keys = list(reasonseg.image_keys(reading.context, reading.index))
        for key, outcome in zip(keys, reading.outcomes, strict=True):
            assert {s.image_key for s in outcome.samples} <= {key}
        return reading

    return read


def decoded(sample) -> tuple[np.ndarray, np.ndarray]:
    """Target and ignored pixels."""
    target = masks.decode(sample.objects[0].rle, sample.height, sample.width)
    ignored = masks.decode(sample.ignore, sample.height, sample.width) if sample.ignore else np.zeros_like(target)
    return target, ignored


def test_all_questions_of_a_train_picture_make_one_sample(tmp_path, read_one):
    write_picture(tmp_path, "train", "5_a", record(["What  Floats?", "Show the <SEG> boat."]))
    reading = read_one()
    (sample,) = reading.samples
    assert sample.sample_id == "reasonseg/train/reasonseg/5_a/reaseg"
    assert (sample.image_key, sample.height, sample.width) == ("reasonseg/5_a", 24, 32)
    assert [c.text for c in sample.conditions] == ["What Floats?", "Show the ‹SEG› boat."]
    assert [c.objects for c in sample.conditions] == [(0,), (0,)]
    (thing,) = sample.objects
    assert (thing.area, thing.bbox, thing.category_id, thing.annotation_id) == (81, (2, 2, 9, 9), -1, "5_a")
    assert (sample.ignore, sample.provenance.file) == (None, "train/5_a.json")
    assert reading.account.as_dict() == {
        "read": {"escaped_markers": 1, "images": 1, "questions": 2, "shapes": 1},
        "built": {"escaped_markers": 1, "images": 1, "questions": 2, "shapes": 1},
        "quarantined": {},
        "filtered": {},
    }


@pytest.mark.parametrize("suffix", [".JPG", ".JPEG", ".PNG", ".jpeg", ".png"])
def test_pictures_are_found_by_any_suffix(tmp_path, read_one, suffix):
    write_picture(tmp_path, "train", "a", record())
    (tmp_path / "train" / "a.jpg").rename(tmp_path / "train" / f"a{suffix}")
    write_picture(tmp_path, "train", "b", record())
    (tmp_path / "train" / "b.json").unlink()
    (tmp_path / "train" / "b.jpg").rename(tmp_path / "train" / f"b{suffix}")  # which nothing describes
    reading = read_one()
    assert [s.image_key for s in reading.samples] == ["reasonseg/a"]
    assert [(b.reason, b.record) for b in reading.bad] == [("annotation_missing", f"b{suffix}")]


@pytest.mark.parametrize(("is_sentence", "variant"), [(True, "long"), (1, "long"), (False, "short"), (0, "short")])
@pytest.mark.parametrize("split", ["train", "val"])
def test_samples_say_whether_their_questions_are_sentences(tmp_path, read_one, split, is_sentence, variant):
    write_picture(tmp_path, split, "a", record(["a boat", "What floats?"], is_sentence=is_sentence))
    assert {s.variant for s in read_one(split).samples} == {variant}


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        pytest.param("train/a.jpg", record(), True, id="a pair"),
        pytest.param("test/a.PNG", record(), True, id="of another split, in capitals"),
        pytest.param("ReasonSeg/val/a.jpg", record(), True, id="a folder further down"),
        pytest.param("val/b.jpg", record(), False, id="no picture of that name"),
        pytest.param("train/a.jpg", {"image": {}, "annotations": []}, False, id="a json of another form"),
        pytest.param("train/a.jpg", [record()], False, id="a list"),
        pytest.param("train/a.jpg", b"\x81", False, id="no text"),
    ],
)
def test_a_folder_is_known_by_its_pairs(tmp_path, name, value, found):
    path = tmp_path / name
    write_picture(path.parent.parent, path.parent.name, "a", value)
    (path.parent / "a.jpg").rename(path)
    assert reasonseg.is_source(Folder(str(tmp_path))) is found


@pytest.mark.parametrize("split", ["val", "test"])
def test_each_question_of_a_held_out_picture_is_a_sample(tmp_path, read_one, split):
    write_picture(tmp_path, split, "a", record(["One?", "Two?"]))
    samples = read_one(split).samples
    assert [s.sample_id for s in samples] == [f"reasonseg/{split}/reasonseg/a/reaseg/{n}" for n in range(2)]
    assert [[c.text for c in s.conditions] for s in samples] == [["One?"], ["Two?"]]
    assert split in reasonseg.HELD_OUT


def test_short_and_long_questions_can_be_had_apart(tmp_path, read_one):
    write_picture(tmp_path, "test", "a", record(is_sentence=True))
    write_picture(tmp_path, "test", "b", record(is_sentence=False))
    assert [s.image_key for s in read_one("test").samples] == ["reasonseg/a", "reasonseg/b"]
    assert [s.image_key for s in read_one("test", queries="long").samples] == ["reasonseg/a"]
    reading = read_one("test", queries="short")
    assert [s.image_key for s in reading.samples] == ["reasonseg/b"]
    left_out = {"long_query": 1}
    assert reading.account.filtered == {"images": left_out, "questions": left_out, "shapes": left_out}


def test_smaller_shapes_lie_on_larger_ones(tmp_path, read_one):
    inner, innermost = [[4, 4], [8, 4], [8, 8], [4, 8]], [[5, 5], [6, 5], [6, 6], [5, 6]]  # 25 and 4 px
    shapes = [shape(innermost, "Target"), shape(inner, "ignore_region"), shape(SQUARE), shape(SQUARE, "FLAG")]
    write_picture(tmp_path, "train", "a", record(shapes=shapes))
    reading = read_one()
    target, ignored = decoded(reading.samples[0])
    expected = np.zeros((24, 32), int)
    expected[2:11, 2:11] = 1
    expected[4:9, 4:9] = 2
    expected[5:7, 5:7] = 1
    assert (target == (expected == 1)).all()
    assert (ignored == (expected == 2)).all()
    assert reading.account.filtered["shapes"] == {"flag": 1}


def test_of_two_equal_shapes_the_first_lies_on_top(tmp_path, read_one):
    """LISA reverses an ascending order, so of equal areas the later is painted first."""
    write_picture(tmp_path, "train", "a", record(shapes=[shape(SQUARE), shape(SQUARE, "ignore")]))
    assert read_one().samples[0].objects[0].area == 81
    write_picture(tmp_path, "train", "a", record(shapes=[shape(SQUARE, "ignore"), shape(SQUARE)]))
    assert read_one().account.filtered["images"] == {"no_target": 1}


def test_a_picture_without_a_target_is_filtered(tmp_path, read_one):
    write_explanations(tmp_path, [{"image": "a.jpg", "query": "What floats?", "outputs": "A boat."}])
    write_picture(tmp_path, "train", "a", record(shapes=[shape(SQUARE, "ignore"), shape(SQUARE, "flag")]))
    reading = read_one()
    assert not reading.samples
    assert not reading.bad
    assert reading.account.filtered == {
        "images": {"no_target": 1},
        "questions": {"no_target": 1},
        "shapes": {"no_target": 1, "flag": 1},
        "explanations": {"no_target": 1},
    }


def lisa(polygons: list[np.ndarray], ignored: list[bool], height: int, width: int) -> np.ndarray:
    """The published rule, each polygon on the whole canvas: 1 target, 2 ignored."""
    import cv2

    areas = []
    for polygon in polygons:
        alone = np.zeros((height, width), np.uint8)
        cv2.polylines(alone, [polygon], True, 1, 1)
        cv2.fillPoly(alone, [polygon], 1)
        areas.append(alone.sum())
    painted = np.zeros((height, width), np.uint8)
    for n in np.argsort(areas, kind="stable")[::-1]:
        cv2.polylines(painted, [polygons[n]], True, 2 if ignored[n] else 1, 1)
        cv2.fillPoly(painted, [polygons[n]], 2 if ignored[n] else 1)
    return painted


def test_drawing_in_boxes_is_drawing_on_the_canvas():
    """Polygons of few and many corners, crossing themselves, leaving the canvas on every side, far and near."""
    rng = np.random.default_rng(3)
    for _ in range(300):
        height, width = rng.integers(1, 70, 2).tolist()
        reach = [5, 60, 3000, reasonseg.MAX_COORDINATE - 1][int(rng.integers(4))]
        number = int(rng.integers(1, 5))
        floats = [rng.uniform(-reach, reach + 60, (int(rng.integers(3, 9)), 2)) for _ in range(number)]
        floats = [np.clip(f, 1 - reasonseg.MAX_COORDINATE, reasonseg.MAX_COORDINATE - 1) for f in floats]
        ignored = (rng.random(number) < 0.3).tolist()
        polygons = [reasonseg.checked_points(f.tolist()) for f in floats]
        shapes = []
        kept = []
        for polygon, flag in zip(polygons, ignored, strict=True):
            try:
                crop = reasonseg.draw(polygon, height, width)
            except reasonseg.RecordError:
                assert not lisa([polygon], [False], height, width).any()
                continue
            shapes.append(reasonseg.Shape(crop=crop, area=int(crop.mask.sum()), ignored=flag))
            kept.append((polygon, flag))
        found = reasonseg.paint(shapes, height, width)
        expected = lisa([p for p, _ in kept], [f for _, f in kept], height, width)
        for rle, value in zip(found, (1, 2), strict=True):
            pixels = np.zeros((height, width), bool) if rle is None else masks.decode(rle, height, width)
            assert (pixels == (expected == value)).all()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(shape([[2, 2], [5, 5]]), "bad_points", id="two points"),
        pytest.param(shape([]), "bad_points", id="no points"),
        pytest.param(shape([[1, 1], [5, float("nan")], [5, 5]]), "bad_points", id="nan"),
        pytest.param(shape([[1, 1], [5, 1e400], [5, 5]]), "bad_points", id="infinite"),
        pytest.param(shape([[1, 1], [5, 32768], [5, 5]]), "bad_points", id="far away"),
        pytest.param(shape([[1, 1], [5, 10**30], [5, 5]]), "bad_points", id="huge"),
        pytest.param(shape([["1", "1"], ["5", "1"], ["5", "5"]]), "bad_points", id="text"),
        pytest.param(shape([[1, 1], [5], [5, 5]]), "bad_points", id="ragged"),
        pytest.param(shape([[1, 1, 1], [5, 5, 5], [5, 5, 9]]), "bad_points", id="three numbers"),
        pytest.param(shape({"x": 1}), "bad_points", id="an object"),
        pytest.param(shape(None), "bad_points", id="null"),
        pytest.param(shape([[50, 50], [60, 50], [60, 60]]), "empty_mask", id="outside"),
        pytest.param(shape(SQUARE, None), "bad_field", id="no label"),
        pytest.param(shape(SQUARE, ["target"]), "bad_field", id="label is a list"),
        pytest.param("target", "bad_field", id="no object"),
    ],
)
def test_a_bad_shape_leaves_the_others(tmp_path, read_one, value, reason):
    write_picture(tmp_path, "val", "a", record(shapes=[value, shape(SQUARE)]))
    reading = read_one("val")
    assert [s.objects[0].area for s in reading.samples] == [81]
    (bad,) = reading.bad
    assert (bad.unit, bad.reason, bad.file, bad.record) == ("shapes", reason, "val/a.json", "shape 0 (image a)")
    assert reading.account.quarantined == {"shapes": {reason: 1}}


def test_a_bad_question_leaves_the_others(tmp_path, read_one):
    write_picture(tmp_path, "val", "a", record([5, "  ", "What?", None, "\ud800?"]))
    reading = read_one("val")
    assert [s.conditions[0].text for s in reading.samples] == ["What?", "??"]
    assert [b.record for b in reading.bad] == [f"question {n} (image a)" for n in (0, 1, 3)]
    write_picture(tmp_path, "val", "a", record([5]))
    assert read_one("val").account.filtered["images"] == {"no_question": 1}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(b"{", "bad_json", id="cut off"),
        pytest.param(b"", "bad_json", id="empty"),
        pytest.param(b"[" * 100_000, "bad_json", id="deep"),
        pytest.param(b'{"text": ' + b"9" * 5000 + b"}", "bad_json", id="too many digits"),
        pytest.param(b"[]", "bad_field", id="a list"),
        pytest.param(b'{"text": "a", "shapes": []}', "bad_field", id="text is no list"),
        pytest.param(b'{"text": [], "shapes": {}}', "bad_field", id="shapes are no list"),
        pytest.param(b'{"text": ["a"], "shapes": []}', "bad_field", id="no is_sentence"),
        pytest.param(record(is_sentence="yes"), "bad_field", id="is_sentence is text"),
    ],
)
def test_a_bad_file_leaves_the_others(tmp_path, read_one, value, reason):
    write_picture(tmp_path, "val", "a", value)
    write_picture(tmp_path, "val", "b", record())
    reading = read_one("val")
    assert [s.image_key for s in reading.samples] == ["reasonseg/b"]
    (bad,) = reading.bad
    assert (bad.unit, bad.reason, bad.group) == ("images", reason, "a")


def test_what_has_no_partner_is_quarantined(tmp_path, read_one):
    for stem in ("a", "b", "c", "d"):
        write_picture(tmp_path, "val", stem, record())
    (tmp_path / "val/a.jpg").unlink()
    (tmp_path / "val/b.json").unlink()
    (tmp_path / "val/c.jpg").write_bytes(b"no picture")
    (tmp_path / "val/d.json").write_bytes(b'{"text": ["\x81"]}')
    write_picture(tmp_path, "val", "e", record())
    reading = read_one("val")
    assert [s.image_key for s in reading.samples] == ["reasonseg/e"]
    assert sorted((b.unit, b.reason) for b in reading.bad) == [
        ("images", "annotation_missing"),
        ("images", "bad_encoding"),
        ("images", "image_missing"),
        ("images", "image_unreadable"),
    ]
    assert reading.account.read["images"] == 5


def test_old_encodings_are_read(tmp_path, read_one):
    text = json.dumps(record(["one’s basin – where?"]), ensure_ascii=False)
    write_picture(tmp_path, "val", "a", text.encode("cp1252"))
    write_picture(tmp_path, "val", "b", b"\xef\xbb\xbf" + text.encode())
    assert {s.conditions[0].text for s in read_one("val").samples} == {"one’s basin – where?"}


def test_explanations_stand_in_the_answers(tmp_path, read_one):
    write_picture(tmp_path, "train", "a", record(["Which?", "Which one?"]))
    write_picture(tmp_path, "train", "b", record(["Which?", "Which one?"]))
    write_picture(tmp_path, "train", "c", record(["Which?"]))
    values = [
        {"image": "a.jpg", "query": "Which one?", "outputs": "The <p>tall</p> one."},
        {"image": "a.jpg", "query": "Which?", "outputs": "The big one."},
        {"image": "b.jpg", "query": "Where?", "outputs": "Over there."},
        {"image": "c.jpg", "query": "Which?", "outputs": 5},
        {"image": "z.jpg", "query": "Which?", "outputs": "None."},
        7,
    ]
    write_explanations(tmp_path, values)
    reading = read_one(explanations="all")
    said = {s.image_key: [c.explanation for c in s.conditions] for s in reading.samples}
    assert said["reasonseg/a"] == ["The big one.", "The ‹p›tall‹/p› one."]
    assert said["reasonseg/b"] == ["Over there.", "Over there."]  # its questions are other words for "Where?"
    assert said["reasonseg/c"] == [None]
    sample = conversation.render(reading.samples[0], keyed(0))
    assert sample.turns[1].text.startswith("The big one. ")
    assert sample.turns[1].text.count("<SEG>") == 1
    assert [(b.unit, b.reason) for b in reading.bad] == [
        ("explanations", "unknown_image"),
        ("explanations", "unknown_image"),
        ("explanations", "bad_text"),
    ]
    assert (reading.account.read["explanations"], reading.account.built["explanations"]) == (6, 3)
    reading = read_one(explanations="none")
    assert {c.explanation for s in reading.samples for c in s.conditions} == {None}
    assert "explanatory" not in reading.part.files


def test_half_of_the_questions_are_explained(tmp_path, read_one):
    """Each is drawn by itself: of 400 questions 200 ± 5 standard deviations (10) are."""
    for n in range(40):
        write_picture(tmp_path, "train", f"{n}", record([f"Which {k}?" for k in range(10)]))
    write_explanations(tmp_path, [{"image": f"{n}.jpg", "query": "Which 0?", "outputs": "It."} for n in range(40)])
    reading = read_one()
    said = [c.explanation is not None for s in reading.samples for c in s.conditions]
    assert 150 < sum(said) < 250
    again = [c.explanation is not None for s in read_one().samples for c in s.conditions]
    assert said == again


def test_a_missing_explanation_file_matters_only_to_who_wants_all(tmp_path, read_one):
    write_picture(tmp_path, "train", "a", record())
    write_picture(tmp_path, "val", "a", record())
    assert len(read_one().samples) == 1
    assert len(read_one("val", explanations="all").samples) == 1
    with pytest.raises(SourceError, match="explanatory file is missing"):
        read_one(explanations="all")
    write_explanations(tmp_path, [])
    (tmp_path / "explanatory" / "train.json").write_text("[{")
    with pytest.raises(SourceError, match=r"explanatory/train\.json"):
        read_one()


def test_layouts(tmp_path, read_source):
    for split in ("train", "val", "test"):
        write_picture(tmp_path / "ReasonSeg", split, f"{split}_1", record())
    readings = read_source(reasonseg, tmp_path, "reaseg")
    assert [r.part.split for r in readings] == ["train", "val", "test"]
    assert [len(r.samples) for r in readings] == [1, 1, 1]
    files = {"annotations": str(tmp_path / "ReasonSeg" / "val")}
    (reading,) = read_source(reasonseg, None, "reaseg", files=files)
    assert (reading.part.split, len(reading.samples)) == ("val", 1)
    (reading,) = read_source(reasonseg, None, "reaseg", files=files, splits=["mine"], images="reference")
    assert reading.samples[0].image.path == str(tmp_path / "ReasonSeg" / "val" / "val_1.jpg")
    with pytest.raises(SourceError, match="no split dev"):
        read_source(reasonseg, tmp_path, "reaseg", splits=["dev"])
    (tmp_path / "empty" / "val").mkdir(parents=True)
    with pytest.raises(SourceError, match=r"no NAME\.json"):
        read_source(reasonseg, tmp_path / "empty", "reaseg")
    with pytest.raises(SourceError, match="no reasonseg here"):
        read_source(reasonseg, tmp_path / "empty" / "val", "reaseg")


@pytest.mark.parametrize("options", [{"queries": "phrase"}, {"explanations": 0.5}, {"colour": 1}])
def test_unknown_options_are_refused(options):
    with pytest.raises(OptionError):
        reasonseg.parse_options("reaseg", options)


def test_reading_is_pure_and_rows_can_be_selected(tmp_path, read_one):
    for n in range(6):
        write_picture(tmp_path, "val", f"{n}", record())
    reading = read_one("val")
    assert list(reasonseg.read(reading.context, reading.index, 2, 5)) == reading.outcomes[2:5]
    target = tmp_path / "some.arrow"
    assert reasonseg.select(reading.index.path, {"1", "4"}, target) == 2
    assert [o.group for o in reasonseg.read(reading.context, Folder(str(target)), 0, 2)] == ["1", "4"]


def test_golden_masks_and_questions(fixtures, tmp_path, read_one):
    """Masks and texts as LISA's own loader gives them, on real photos; samples as X-SAM's makes them."""
    golden = fixtures / "golden/formats/reasonseg"
    expected = json.loads((golden / "expected.json").read_text())
    for name, value in expected["lisa"].items():
        split, stem = name.split("/")
        photo = (golden / value["photo"]).resolve()
        if not photo.exists():
            photo = fixtures / "coco/images" / Path(*Path(value["photo"]).parts[-2:])
        write_picture(tmp_path, split, stem, (golden / f"{name}.json").read_bytes(), photo.read_bytes())
    (tmp_path / "explanatory").mkdir()
    (tmp_path / "explanatory/train.json").write_bytes((golden / "explanatory/train.json").read_bytes())
    kinds = {"all": "all", "long": "sentence", "short": "phrase"}
    for split in ("train", "val"):
        for queries, kind in kinds.items():
            reading = read_one(split, queries=queries, explanations="all")
            rows = expected["xsam_aaai"][f"{split}_{kind}"]["rows"]
            found = [(s.image_key, len(s.conditions)) for s in reading.samples]
            assert found == [(f"reasonseg/{Path(row['image_id']).stem}", len(row["sampled_sents"])) for row in rows]
            if (split, kind) == ("train", "all"):
                assert [{c.explanation for c in s.conditions} for s in reading.samples] == [
                    {row["explain"]} for row in rows
                ]
            for sample in reading.samples:
                truth = expected["lisa"][f"{split}/{sample.provenance.record.removeprefix('image ')}"]
                assert [sample.height, sample.width] == truth["size"]
                assert sample.objects[0].rle.decode() == truth["target"]["counts"]
                assert (sample.ignore is None) == (truth["ignore_area"] == 0)
                assert sample.ignore is None or sample.ignore.decode() == truth["ignore"]["counts"]
                assert {c.text for c in sample.conditions} <= set(truth["text"])
