"""The SA-1B builder: names listed, files read row by row, scores kept, cuts counted."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as oracle

from builders import sa1b
from dataengine import conversation, invariants, masks
from dataengine.builder import OptionError, SourceError
from dataengine.keyed import keyed
from dataengine.sample import Sample

HEIGHT, WIDTH = 24, 32


def jpeg(height: int = HEIGHT, width: int = WIDTH) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def annotation(number: int, x: int, y: int, size: int = 6, **changes: Any) -> dict[str, Any]:
    """A square in the layout of SA-1B."""
    raster = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    raster[y : y + size, x : x + size] = 1
    rle = oracle.encode(raster)
    return {
        "id": number,
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()},
        "bbox": [x, y, size, size],
        "area": size * size,
        "predicted_iou": 0.9,
        "stability_score": 0.96,
        "crop_box": [0, 0, WIDTH, HEIGHT],
        "point_coords": [[x + 1.5, y + 1.5]],
    } | changes


def write_picture(folder: Path, number: int, annotations: Any, **image: Any) -> Path:
    """`sa_N.jpg` and `sa_N.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"sa_{number}.jpg").write_bytes(jpeg())
    about = {"image_id": number, "width": WIDTH, "height": HEIGHT, "file_name": f"sa_{number}.jpg"} | image
    path = folder / f"sa_{number}.json"
    path.write_text(json.dumps({"image": about, "annotations": annotations}))
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three pictures in two folders; numbers sort otherwise than names."""
    root = tmp_path / "sa1b"
    write_picture(root / "sa_000000", 10, [annotation(7, 2, 2), annotation(5, 12, 2, predicted_iou=1.02)])
    write_picture(root / "sa_000000", 9, [annotation(1, 3, 3, stability_score=0.5)])
    write_picture(root / "sa_000001", 11, [annotation(n, n, n, 3 + n) for n in range(8)])
    return root


def holds(sample: Sample) -> Sample:
    rendered = conversation.render(sample, keyed(0, sample.sample_id, "conversation", conversation.VERSION))
    invariants.check(rendered)
    return rendered


def test_pictures_become_samples_in_order_of_their_numbers(tree, read_source):
    (reading,) = read_source(sa1b, tree, "genseg")
    assert [sample.sample_id for sample in reading.samples] == [
        f"sa1b/train/sa1b/sa_{n}/genseg/instance" for n in (9, 10, 11)
    ]
    assert [[o.annotation_id for o in s.objects] for s in reading.samples] == [["1"], ["7", "5"], list("01234567")]
    assert list(sa1b.image_keys(reading.context, reading.index)) == [sample.image_key for sample in reading.samples]
    assert reading.account.as_dict() == {
        "read": {"annotations": 11, "images": 3},
        "built": {"annotations": 11, "images": 3},
        "quarantined": {},
        "filtered": {},
    }
    first = reading.samples[1]
    assert (first.provenance.file, first.variant) == ("sa_000000/sa_10.json", "instance")
    for sample in reading.samples:
        turns = holds(sample).turns
        assert turns[0].text.count("<p>object</p>") == 1
        assert sample.conditions[0].objects == tuple(range(len(sample.objects)))


def test_scores_go_into_the_lineage(tree, read_source):
    (reading,) = read_source(sa1b, tree, "genseg")
    lineages = [o.lineage for o in reading.samples[1].objects]
    assert {(line.origin, line.labeler) for line in lineages} == {("model", "SA-1B")}
    assert [(line.score, line.stability) for line in lineages] == [(0.9, 0.96), (1.0, 0.96)]  # 1.02 is cut


def test_masks_are_the_published_ones(tree, read_source):
    (reading,) = read_source(sa1b, tree, "genseg")
    for sample in reading.samples:
        file = json.loads((tree / sample.provenance.file).read_text())
        for thing, value in zip(sample.objects, file["annotations"], strict=True):
            assert np.array_equal(masks.decode(thing.rle, HEIGHT, WIDTH), oracle.decode(value["segmentation"]) > 0)
            assert (thing.area, list(thing.bbox)) == (value["area"], value["bbox"])


def test_the_cut_of_the_reference_is_counted(tree, read_source):
    (reading,) = read_source(sa1b, tree, "genseg", max_masks=2)
    assert [len(sample.objects) for sample in reading.samples] == [1, 2, 2]
    assert reading.account.filtered == {"annotations": {"max_masks": 6}}


def test_low_scores_are_filtered(tree, read_source):
    write_picture(tree / "sa_000001", 12, [annotation(1, 2, 2, predicted_iou=None), annotation(2, 9, 9)])
    write_picture(tree / "sa_000001", 13, [annotation(1, 2, 2, predicted_iou=0.2, stability_score=0.2)])
    (reading,) = read_source(sa1b, tree, "genseg", min_predicted_iou=0.9, min_stability=0.96)
    assert reading.account.filtered == {
        "annotations": {"low_predicted_iou": 2, "low_stability_score": 1},
        "images": {"no_target": 2},  # 9 and 13
    }
    assert [len(sample.objects) for sample in reading.samples] == [2, 8, 1]
    (reading,) = read_source(sa1b, tree, "genseg")
    assert reading.samples[3].objects[0].lineage.score is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(annotation(1, 0, 0, 0), "empty_mask", id="empty"),
        pytest.param({"segmentation": annotation(1, 1, 1)["segmentation"]}, "bad_field", id="no id"),
        pytest.param([1], "bad_field", id="a list"),
        pytest.param(annotation(50, 1, 1), "duplicate_annotation", id="id twice"),
        pytest.param(annotation(1, 1, 1, predicted_iou="0.9"), "bad_field", id="score is text"),
        pytest.param(annotation(1, 1, 1, stability_score=float("nan")), "bad_field", id="score is NaN"),
        pytest.param(annotation(1, 1, 1, predicted_iou=10**400), "bad_field", id="huge score"),
        pytest.param(annotation(1, 1, 1, segmentation={"size": [32, 24], "counts": "0"}), "rle_size", id="turned"),
        pytest.param(
            annotation(1, 1, 1, segmentation={"size": [24, 32], "counts": "\ud800"}), "rle_invalid", id="surrogate"
        ),
        pytest.param(annotation(1, 1, 1, segmentation=None), "segmentation_invalid", id="no mask"),
    ],
)
def test_bad_annotations_leave_the_good_ones(tmp_path, read_source, value, reason):
    write_picture(tmp_path / "sa_000000", 1, [annotation(50, 5, 5), value])
    (reading,) = read_source(sa1b, tmp_path, "genseg")
    assert [o.annotation_id for o in reading.samples[0].objects] == ["50"]
    assert [(b.reason, b.file, b.record) for b in reading.bad] == [
        (reason, "sa_000000/sa_1.json", "annotations[1] (image sa_000000/sa_1)")
    ]
    assert reading.account.read == {"images": 1, "annotations": 2}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(b"", "bad_json", id="empty"),
        pytest.param(b'{"image": ', "bad_json", id="cut off"),
        pytest.param(b"\xff\xfe\xfd", "bad_json", id="no text"),
        pytest.param(b"[" * 100_000, "bad_json", id="deep"),
        pytest.param(b'{"image": %s}' % (b"9" * 5000), "bad_json", id="a long number"),
        pytest.param(b"[]", "bad_field", id="a list"),
        pytest.param(b'{"image": {}, "annotations": {}}', "bad_field", id="annotations are no list"),
        pytest.param(b'{"image": {}, "annotations": []}', "bad_field", id="no size"),
        pytest.param(
            b'{"image": {"height": 24, "width": 32, "file_name": "../sa_2.jpg"}, "annotations": []}',
            "unsafe_file_name",
            id="climbs out",
        ),
        pytest.param(
            b'{"image": {"height": 24, "width": 32, "file_name": "sa_1.jpg"}, "annotations": [1, 2]}',
            "bad_field",
            id="names another picture",
        ),
        pytest.param(
            b'{"image": {"height": 24, "width": 33, "file_name": "sa_2.jpg"}, "annotations": [1, 2]}',
            "image_size",
            id="another size",
        ),
    ],
)
def test_bad_files_are_quarantined(tmp_path, read_source, text, reason):
    folder = tmp_path / "sa_000000"
    write_picture(folder, 1, [annotation(1, 2, 2)])
    write_picture(folder, 2, []).write_bytes(text)
    (reading,) = read_source(sa1b, tmp_path, "genseg")
    assert [(b.reason, b.group, b.unit) for b in reading.bad] == [(reason, "sa_000000/sa_2", "images")]
    assert str(reading.bad[0]).startswith("SA-1B: image sa_000000/sa_2: ")
    assert reading.account.read["annotations"] == (3 if b"[1, 2]" in text else 1)
    assert len(reading.samples) == 1


def test_files_that_change_or_go_are_quarantined(tree, read_source):
    options = sa1b.parse_options("genseg", {})
    (reading,) = read_source(sa1b, tree, "genseg")
    (tree / "sa_000000" / "sa_9.json").write_text("{}")
    (tree / "sa_000000" / "sa_10.json").unlink()
    (tree / "sa_000001" / "sa_11.jpg").unlink()
    outcomes = list(sa1b.read(reading.context, reading.index, 0, 3))
    assert [o.bad[0].reason for o in outcomes] == ["record_changed", "record_missing", "image_missing"]
    assert outcomes[2].account.filtered == {"annotations": {"image_quarantined": 8}}
    (part,) = sa1b.locate(str(tree), {}, (), options)
    report = sa1b.index(part, options, reading.index.path.with_name("again.arrow"))
    assert report.fingerprint != reading.report.fingerprint
    shutil.rmtree(tree / "sa_000000")
    with pytest.raises(SourceError, match="the folder is gone"):
        list(sa1b.read(reading.context, reading.index, 0, 3))


def test_nothing_in_the_folders_is_passed_over(tree, read_source):
    """A picture without its file, a picture that is there twice, names that are no text; what systems leave is not."""
    (tree / "sa_000000" / "sa_77.jpg").write_bytes(jpeg())
    (tree / "sa_000001" / "sa_9.json").write_text("{}")
    (tree / "sa_000001" / "._sa_9.json").write_text("x")
    (tree / "sa_000001" / "LICENSE.txt").write_text("x")
    (tree / "sa_000001" / "sa_00012.json").write_text("{}")
    try:
        (tree / "sa_000001" / b"\xff.json".decode("utf-8", "surrogateescape")).write_text("{}")
        no_text = 1
    except OSError:  # a file system that takes none but text
        no_text = 0
    (reading,) = read_source(sa1b, tree, "genseg")
    assert reading.account.filtered["images"] == {"no_record": 1}
    assert Counter(b.reason for b in reading.bad) == Counter(
        duplicate_image=1, bad_field=1, **({"unsafe_file_name": 1} if no_text else {})
    )
    assert [b.record for b in reading.bad if b.reason == "duplicate_image"] == ["sa_000001/sa_9.json"]
    assert [o.group for o in reading.outcomes][-1] == "sa_000001/sa_00012"
    assert len(reading.samples) == 3


def test_one_folder_alone_is_read_and_keys_stay(tree, read_source):
    (reading,) = read_source(sa1b, tree / "sa_000000", "genseg")
    assert [o.group for o in reading.outcomes] == ["sa_9", "sa_10"]
    (named,) = read_source(sa1b, None, "genseg", files={"folder": str(tree / "sa_000000")}, splits=["train"])
    assert [s.image_key for s in named.samples] == [s.image_key for s in reading.samples] == ["sa1b/sa_9", "sa1b/sa_10"]


def test_reading_is_a_function_of_the_rows(tree, read_source):
    (reading,) = read_source(sa1b, tree, "genseg", images="reference")
    parts = [next(sa1b.read(reading.context, reading.index, n, n + 1)).samples[0] for n in range(3)]
    assert parts == reading.samples
    target = reading.index.path.with_name("some.arrow")
    assert sa1b.select(reading.index.path, {"sa_000000/sa_10"}, target) == 1
    assert Path(parts[0].image.path) == tree / "sa_000000" / "sa_9.jpg"


@pytest.mark.parametrize(
    ("root", "files", "splits", "message"),
    [
        (True, {}, ("val",), "no split val here; there are train"),
        (True, {"images": "/x"}, (), "no file role 'images'"),
        (False, {}, (), "no folder is given"),
        (False, {"folder": "/nowhere"}, (), "/nowhere: no sa1b here"),
    ],
)
def test_missing_files_are_named(tree, root, files, splits, message):
    with pytest.raises(SourceError, match=message):
        sa1b.locate(str(tree) if root else None, files, splits, sa1b.parse_options("genseg", {}))


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("vgdseg", {}, "not vgdseg"),
        ("genseg", {"max_masks": 0}, "greater than or equal to 1"),
        ("genseg", {"min_stability": float("nan")}, "min_stability: "),
        ("genseg", {"min_predicted_iou": 88}, "less than or equal to 1"),
    ],
)
def test_options_are_checked(task, options, message):
    with pytest.raises(OptionError, match=message):
        sa1b.parse_options(task, options)


# --- published values ------------------------------------------------------------------------------------------------


def test_real_files_build(fixtures, read_source):
    """a.json: rows 1 to 4 of column 3 of a 10 x 5 px picture; the mask of b.json is empty, on a turned canvas."""
    (reading,) = read_source(sa1b, fixtures / "sa1b", "genseg")
    (sample,) = reading.samples
    (thing,) = sample.objects
    truth = json.loads((fixtures / "sa1b" / "a.json").read_text())["annotations"][0]
    assert np.array_equal(masks.decode(thing.rle, 5, 10), oracle.decode(truth["segmentation"]) > 0)
    assert (thing.area, thing.bbox, thing.annotation_id) == (4, (3.0, 1.0, 1.0, 4.0), "1")
    assert (thing.lineage.score, thing.lineage.stability) == (0.2633798018925796, 0.47182999738062237)
    assert [(b.reason, b.file) for b in reading.bad] == [("rle_size", "b.json")]
    assert reading.account.as_dict() == {
        "read": {"images": 2, "annotations": 2},
        "built": {"images": 1, "annotations": 1},
        "quarantined": {"annotations": {"rle_size": 1}},
        "filtered": {"images": {"no_target": 1}},
    }
    holds(sample)


def test_published_layout(fixtures, tmp_path, read_source):
    """Areas as the reference trainer has them, but for the empty mask, which it trains on."""
    golden = fixtures / "golden" / "formats" / "sa1b"
    expected = json.loads((golden / "expected.json").read_text())["images"]
    folder = tmp_path / "sa_000000"
    folder.mkdir()
    for stem, values in expected.items():
        shutil.copy(golden / "sa_000000" / f"{stem}.json", folder)
        shutil.copy((golden.parent / values["photo"]).resolve(), folder / f"{stem}.jpg")
    (reading,) = read_source(sa1b, tmp_path, "genseg")
    found = {sample.image_key: {int(o.annotation_id): o.area for o in sample.objects} for sample in reading.samples}
    assert found == {
        f"sa1b/{stem}": {n: area for n, area in zip(values["ids"], values["areas"], strict=True) if area}
        for stem, values in expected.items()
    }
    assert [b.reason for b in reading.bad] == ["empty_mask"]
    for sample in reading.samples:
        holds(sample)
