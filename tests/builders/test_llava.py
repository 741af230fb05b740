"""The LLaVA builder: rows found, turns paired up, markers placed and escaped, pictures named, everything counted."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from builders import llava
from dataengine import conversation, invariants
from dataengine.builder import OptionError, SourceError
from dataengine.keyed import keyed
from dataengine.records import MAX_MESSAGE
from dataengine.store.dataset import open_dataset, validate
from dataengine.store.files import Folder
from pipelines import build, recipe
from pipelines.build import Settings

PICTURE = "coco/train2017/000000033471.jpg"


def jpeg(height: int = 24, width: int = 32) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "JPEG")
    return file.getvalue()


def talk(*texts: str, first: str = "human") -> list[dict[str, str]]:
    """Turns that alternate."""
    roles = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": roles[n % 2], "value": text} for n, text in enumerate(texts)]


def write_rows(file: Path, rows: Iterable[object]) -> None:
    """A JSON array, a row at a time, so that files of published size can be written; `.jsonl` has a row a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.suffix == ".jsonl"
    with file.open("w") as out:
        out.write("" if lines else "[")
        for number, row in enumerate(rows):
            out.write(("\n" if lines else ",\n") if number else "")
            out.write(json.dumps(row))
        out.write("\n" if lines else "]")


def write_tree(root: Path, rows: Iterable[object], edition: str = "mix665k", suffix: str = ".json") -> Path:
    """The published layout around some rows; each picture that a row names is there, unless its name says `missing`."""
    rows = list(rows)
    write_rows(root / llava.FOLDERS[edition] / f"{llava.STEMS[edition]}{suffix}", rows)
    pictures = root / llava.IMAGE_FOLDERS[edition][0]
    pictures.mkdir(parents=True, exist_ok=True)
    for row in rows:
        name = row.get("image") if isinstance(row, dict) else None
        if isinstance(name, str) and name and not name.startswith(("/", ".")) and "missing" not in name:
            (pictures / name).parent.mkdir(parents=True, exist_ok=True)
            (pictures / name).write_bytes(jpeg())
    return root


@pytest.fixture
def read_rows(tmp_path, read_source):
    """What becomes of some rows of the mix."""

    def read(*rows: object, **options):
        (reading,) = read_source(llava, write_tree(tmp_path / "llava", rows), "chat", **options)
        for sample in reading.samples:
            assert conversation.render(sample, keyed(0, sample.sample_id)) == sample
            invariants.check(sample)
        made = {o.group: o.samples[0].image_key if o.samples else None for o in reading.outcomes}
        keys = [made[str(n)] for n in sorted(map(int, made))]
        found = list(llava.image_keys(reading.context, reading.index))
        assert [key for key, there in zip(found, keys, strict=True) if there is not None] == [
            key for key in keys if key is not None
        ]
        return reading

    return read


def texts(sample) -> list[str]:
    return [turn.text for turn in sample.turns]


def test_a_row_becomes_a_conversation(read_rows):
    row = {"id": "000000033471", "image": PICTURE, "conversations": talk("<image>\nWhat?", "A bus.", "Red?", "Yes.")}
    (sample,) = read_rows(row).samples
    assert sample.sample_id == "llava/train/coco/000000033471/chat/0"
    assert (sample.task, sample.image_key, sample.height, sample.width) == ("chat", "coco/000000033471", 24, 32)
    assert texts(sample) == ["<image>\nWhat?", "A bus.", "Red?", "Yes."]
    assert [t.role for t in sample.turns] == ["user", "assistant"] * 2
    assert [t.supervised for t in sample.turns] == [False, True] * 2
    assert (sample.provenance.file, sample.provenance.record) == ("llava_v1_5_mix665k.json", "row 0")
    assert not sample.objects
    assert not sample.conditions


def test_ids_may_repeat(read_rows):
    row = {"id": "7", "image": PICTURE, "conversations": talk("<image>\nWhat?", "A bus.")}
    reading = read_rows(row, row, {"id": "7", "conversations": talk("Hi", "Hello")})
    assert [s.sample_id for s in reading.samples] == [
        "llava/train/coco/000000033471/chat/0",
        "llava/train/coco/000000033471/chat/1",
        "llava/train/text/chat/2",
    ]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        pytest.param("<image>\nWhat?", "<image>\nWhat?", id="at the start"),
        pytest.param("What?\n<image>", "<image>\nWhat?", id="at the end"),
        pytest.param("What<image>?", "<image>\nWhat?", id="inside"),
        pytest.param("<image>", "<image>\n", id="alone"),
        pytest.param("What?", "<image>\nWhat?", id="nowhere"),
        pytest.param("<SE<image>G>What?", "<image>\n‹SEG›What?", id="hiding another"),
        pytest.param("<im<image>age>What?", "<image>\n‹image›What?", id="hiding itself"),
    ],
)
def test_the_image_marker_opens_the_first_question(read_rows, question, expected):
    (sample,) = read_rows({"id": 1, "image": PICTURE, "conversations": talk(question, "A bus.")}).samples
    assert texts(sample) == [expected, "A bus."]


def test_a_marker_in_a_later_turn_moves_to_the_front(read_rows):
    rows = [
        {"id": 1, "image": PICTURE, "conversations": talk("Hi", "Hello", "<image>\nWhat?", "A bus.")},
        {"id": 2, "image": PICTURE, "conversations": talk("What?", "A bus. <image>")},
    ]
    first, second = read_rows(*rows).samples
    assert texts(first) == ["<image>\nHi", "Hello", "What?", "A bus."]
    assert texts(second) == ["<image>\nWhat?", "A bus."]


def test_other_markers_are_escaped_and_counted(read_rows):
    rows = [
        {"id": 1, "image": PICTURE, "conversations": talk("<image>\n<SEG> <p>a</p>?", "<region> \ud800")},
        {"id": 2, "conversations": talk("What is <image> in HTML?", "No <p>tag</p>.")},
    ]
    reading = read_rows(*rows)
    first, second = reading.samples
    assert texts(first) == ["<image>\n‹SEG› ‹p›a‹/p›?", "‹region› ?"]
    assert texts(second) == ["What is ‹image› in HTML?", "No ‹p›tag‹/p›."]
    assert reading.account.built["escaped_markers"] == 4 + 3


def test_turns_are_paired_up_and_each_is_counted(read_rows):
    turns = [
        ("gpt", "Welcome."),
        ("human", "<image>\nOne?"),
        ("human", " Two? "),
        ("gpt", "Both."),
        ("human", "Three?"),
        ("gpt", " "),
        ("gpt", "Yes."),
        ("gpt", "Indeed."),
        ("human", "Still"),
        ("human", "there?"),
    ]
    row = {"id": 1, "image": PICTURE, "conversations": [{"from": role, "value": text} for role, text in turns]}
    reading = read_rows(row)
    assert texts(reading.samples[0]) == ["<image>\nOne?\nTwo?", "Both.", "Three?", "Yes.\nIndeed."]
    assert reading.account.as_dict()["built"] == {"rows": 1, "turns": 6, "joined_turns": 2}
    assert reading.account.filtered == {"turns": {"leading_answer": 1, "empty": 1, "trailing_question": 2}}


def test_text_alone_has_no_picture(read_rows):
    rows = [
        {"id": "a", "conversations": talk("Hi", "Hello")},
        {"id": "b", "image": "", "conversations": talk("Hi", "Hello")},
        {"id": "c", "image": None, "conversations": talk("Hi", "Hello")},
        {"id": "d", "image": [], "conversations": talk("Hi", "Hello")},
    ]
    reading = read_rows(*rows)
    assert [s.image for s in reading.samples] == [None] * 4
    assert {(s.image_key, s.height, s.width) for s in reading.samples} == {("", 0, 0)}
    assert texts(reading.samples[0]) == ["Hi", "Hello"]
    assert list(llava.image_keys(reading.context, reading.index)) == [""] * 4
    reading = read_rows(*rows, text_only="filter")
    assert not reading.samples
    assert reading.account.filtered == {"rows": {"text_only": 4}, "turns": {"text_only": 8}}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param({"image": [PICTURE, PICTURE], "conversations": talk("a", "b")}, "several_images", id="list"),
        pytest.param(
            {"image": PICTURE, "conversations": talk("<image>", "b", "<image>", "d")}, "several_images", id="markers"
        ),
        pytest.param({"image": PICTURE, "conversations": []}, "no_answered_question", id="no turns"),
        pytest.param({"image": PICTURE, "conversations": talk("<image>")}, "no_answered_question", id="no answer"),
        pytest.param({"conversations": talk("a", first="gpt")}, "no_answered_question", id="no question"),
        pytest.param({"conversations": talk(" ", "b")}, "no_answered_question", id="empty question"),
    ],
)
def test_what_is_left_out_says_why(read_rows, row, reason):
    reading = read_rows({"id": 1, **row})
    assert not reading.samples
    assert not reading.bad
    assert reading.account.filtered["rows"] == {reason: 1}
    assert reading.account.read["turns"] == len(row["conversations"])


def test_a_list_of_one_picture_is_that_picture(read_rows):
    names = [{"id": 0, "image": PICTURE, "conversations": talk("<image>", "b")}]
    (_, sample) = read_rows(*names, names[0] | {"image": [PICTURE]}).samples
    assert sample.image_key == "coco/000000033471"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param({}, "bad_field", id="empty"),
        pytest.param({"conversations": "hello"}, "bad_field", id="conversations are text"),
        pytest.param({"conversations": [5]}, "bad_field", id="a turn is a number"),
        pytest.param({"conversations": [{"from": "human"}]}, "bad_field", id="a turn says nothing"),
        pytest.param({"conversations": [{"from": "human", "value": None}]}, "bad_field", id="a turn says null"),
        pytest.param({"conversations": [{"from": "system", "value": "x"}]}, "unknown_role", id="unknown role"),
        pytest.param({"conversations": [{"from": ["gpt"], "value": "x"}]}, "unknown_role", id="role is a list"),
        pytest.param({"conversations": [{"from": "g" * 5000, "value": "x"}]}, "unknown_role", id="endless role"),
        pytest.param({"image": 5, "conversations": talk("a", "b")}, "unsafe_file_name", id="image is a number"),
        pytest.param({"image": {}, "conversations": talk("a", "b")}, "unsafe_file_name", id="image is an object"),
        pytest.param({"image": ".", "conversations": talk("a", "b")}, "unsafe_file_name", id="image is the folder"),
        pytest.param({"image": "../a.jpg", "conversations": talk("a", "b")}, "unsafe_file_name", id="climbs out"),
        pytest.param({"image": "/a.jpg", "conversations": talk("a", "b")}, "unsafe_file_name", id="absolute"),
        pytest.param({"image": "vg/missing.jpg", "conversations": talk("a", "b")}, "image_missing", id="no picture"),
        pytest.param({"image": "a\nb/missing", "conversations": talk("a", "b")}, "image_missing", id="odd name"),
    ],
)
def test_a_bad_row_leaves_the_others(read_rows, row, reason):
    good = {"id": 2, "conversations": talk("Hi", "Hello")}
    reading = read_rows({"id": "odd \ud800", "big": 1e400, **row}, good)
    assert [s.sample_id for s in reading.samples] == ["llava/train/text/chat/1"]
    (bad,) = reading.bad
    assert len(bad.message) <= MAX_MESSAGE
    assert (bad.unit, bad.reason, bad.record, bad.group) == ("rows", reason, "row 0", "0")
    assert reading.account.quarantined == {"rows": {reason: 1}}


def test_what_is_no_row_is_quarantined_by_the_index(read_rows):
    reading = read_rows(5, None, ["x"], {"id": 2, "conversations": talk("Hi", "Hello")})
    assert [(b.record, b.reason) for b in reading.bad] == [(f"row {n}", "bad_row") for n in range(3)]
    assert [s.sample_id for s in reading.samples] == ["llava/train/text/chat/3"]
    assert reading.account.read["rows"] == 4


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("coco/train2017/000000033471.jpg", "coco/000000033471"),
        ("coco/train2014/COCO_train2014_000000033471.jpg", "coco/000000033471"),
        ("000000033471.jpg", "coco/000000033471"),
        ("gqa/images/2354786.jpg", "vg/2354786"),
        ("vg/VG_100K/2.jpg", "vg/2"),
        ("vg/VG_100K_2/2.jpg", "vg/2"),
        ("gqa/images/n161313.jpg", "llava/gqa/images/n161313"),
        ("textvqa/train_images/a5fb9ddd5a5d5ac4.jpg", "textvqa/a5fb9ddd5a5d5ac4"),
        ("ocr_vqa/images/0002005395.jpg", "ocr_vqa/0002005395"),
        ("00453/004539375.jpg", "llava_pretrain/00453/004539375"),
        ("sam/images/sa_1.jpg", "llava/sam/images/sa_1"),
        ("a\nb.jpg", "llava/a\nb"),
    ],
)
def test_pictures_are_known_across_sources(name, key):
    assert llava.image_key(name) == key


def test_pictures_are_found_under_the_names_they_have_on_disk(tmp_path, read_source):
    names = [PICTURE, "ocr_vqa/images/1.jpg", "ocr_vqa/images/2.jpg", "ocr_vqa/images/3.jpg"]
    rows = [{"id": n, "image": name, "conversations": talk("<image>", "b")} for n, name in enumerate(names)]
    pictures = write_tree(tmp_path, rows) / "llava_images"
    (pictures / "coco/val2014").mkdir()
    (pictures / PICTURE).rename(pictures / "coco/val2014/COCO_val2014_000000033471.jpg")
    (pictures / names[1]).rename(pictures / "ocr_vqa/images/1.png")
    (pictures / names[2]).unlink()
    (pictures / "ocr_vqa/images/2.gif").write_bytes(b"GIF89a\x01\x00\x01\x00\x00\x00\x00;")
    (pictures / names[3]).unlink()
    (reading,) = read_source(llava, tmp_path, "chat")
    assert [s.image.path for s in reading.samples] == [
        "coco/val2014/COCO_val2014_000000033471.jpg",
        "ocr_vqa/images/1.png",
    ]
    assert [(b.group, b.reason) for b in reading.bad] == [("2", "image_unreadable"), ("3", "image_missing")]
    (reading,) = read_source(llava, tmp_path, "chat", images="reference")
    assert reading.samples[0].image.path == str(pictures / "coco/val2014/COCO_val2014_000000033471.jpg")


def test_layouts(tmp_path, read_source):
    row = {"id": 1, "image": "00453/004539375.jpg", "conversations": talk("<image>", "b")}
    (reading,) = read_source(llava, write_tree(tmp_path / "a", [row], "pretrain", ".jsonl"), "chat")
    assert reading.samples[0].image_key == "llava_pretrain/00453/004539375"
    assert reading.part.split == "train"
    mix = {"id": 1, "image": PICTURE, "conversations": talk("<image>", "b")}
    write_rows(tmp_path / "b" / "llava_v1_5_mix665k.json", [mix])
    (tmp_path / "b" / "coco" / "train2017").mkdir(parents=True)
    (tmp_path / "b" / PICTURE).write_bytes(jpeg())
    (reading,) = read_source(llava, tmp_path / "b", "chat")
    assert len(reading.samples) == 1
    files = {"annotations": str(tmp_path / "b" / "llava_v1_5_mix665k.json"), "images": str(tmp_path / "b")}
    (reading,) = read_source(llava, None, "chat", files=files)
    assert len(reading.samples) == 1


def test_what_cannot_be_located_is_said(tmp_path, read_source):
    with pytest.raises(SourceError, match="no llava here"):
        read_source(llava, tmp_path, "chat")
    row = {"id": 1, "conversations": talk("a", "b")}
    write_tree(tmp_path, [row])
    write_tree(tmp_path, [row], "pretrain")
    with pytest.raises(SourceError, match="option `edition`"):
        read_source(llava, tmp_path, "chat")
    assert len(read_source(llava, tmp_path, "chat", edition="pretrain")) == 1
    with pytest.raises(SourceError, match="no split val"):
        read_source(llava, tmp_path, "chat", edition="pretrain", splits=["val"])
    (tmp_path / "llava_images").rmdir()
    with pytest.raises(SourceError, match="images folder is missing"):
        read_source(llava, tmp_path, "chat", edition="mix665k")


@pytest.mark.parametrize("options", [{"edition": "instruct"}, {"text_only": True}, {"colour": 1}])
def test_unknown_options_are_refused(options):
    with pytest.raises(OptionError):
        llava.parse_options("chat", options)
    with pytest.raises(OptionError):
        llava.parse_options("vgdseg", {})


@pytest.mark.parametrize("text", ["", "[]", "5", "[{", '[{"id": 1}, x]', '{"id": 1}\nx', '"a"', "[5, 6]", "\xff"])
def test_damaged_files_are_named(tmp_path, read_source, text):
    write_tree(tmp_path, [])
    file = tmp_path / "LLaVA-Instruct-150K" / "llava_v1_5_mix665k.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(SourceError, match="llava_v1_5_mix665k"):
        read_source(llava, tmp_path, "chat")


def test_reading_is_pure_and_rows_can_be_selected(tmp_path, read_rows):
    rows = [{"id": n, "conversations": talk(f"a{n}", "b")} for n in range(20)]
    reading = read_rows(*rows)
    again = list(llava.read(reading.context, reading.index, 7, 12))
    assert again == reading.outcomes[7:12]
    target = tmp_path / "some.arrow"
    assert llava.select(reading.index.path, {"3", "11"}, target) == 2
    some = list(llava.read(reading.context, Folder(str(target)), 0, 2))
    assert [o.group for o in some] == ["3", "11"]


@pytest.mark.parametrize("edition", ["pretrain", "mix665k", "jsonl"])
def test_golden_rows(fixtures, tmp_path, read_source, edition):
    """What X-SAM's loader makes of the rows, but for turns of one speaker, which it joins without a separator."""
    golden = fixtures / "golden/formats/llava"
    name = {"jsonl": "mix.jsonl"}.get(edition, f"{llava.STEMS.get(edition)}.json")
    expected = json.loads((golden / "expected.json").read_text())["xsam_aaai"][name]["rows"]
    for row in expected:
        if row["image_file"]:
            (tmp_path / row["image_file"]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / row["image_file"]).write_bytes(jpeg())
    files = {"annotations": str(golden / name), "images": str(tmp_path)}
    (reading,) = read_source(llava, None, "chat", files=files)
    assert not reading.bad
    assert len(reading.samples) == len(expected)
    for sample, row in zip(reading.samples, expected, strict=True):
        pairs = [(turn["input"], turn["output"]) for turn in row["conversation"]]
        pairs = [(question.replace("First and", "First\nand"), answer) for question, answer in pairs]
        opening = [("<image>\n", answer) if question == "<image>" else (question, answer) for question, answer in pairs]
        assert list(zip(texts(sample)[::2], texts(sample)[1::2], strict=True)) == opening
        assert (sample.image is None) == (row["image_file"] is None)
        assert sample.provenance.file == name


def test_text_alone_goes_through_a_build(tmp_path):
    """Rows without a picture are built beside pictures and prompts, validated, found again and shown."""
    from dataengine.sheet import contact_sheet

    rows = [
        {"id": 0, "image": PICTURE, "conversations": talk("<image>\nWhat?", "A bus.")},
        {"id": 1, "conversations": talk("Hi", "Hello")},
        {"id": 2, "image": "vg/missing.jpg", "conversations": talk("a", "b")},
    ]
    write_tree(tmp_path / "llava", rows)
    file = tmp_path / "chat.yaml"
    file.write_text(
        f"name: chat\nsources:\n  talk: {{builder: llava, task: chat, root: {tmp_path / 'llava'}}}\n"
        "prompts: {profile: strict}\n"
    )
    manifest = build.run(recipe.load(str(file)), str(tmp_path / "out"), Settings())
    assert manifest["counts"]["samples"] == 2
    findings = validate(str(tmp_path / "out"))
    assert findings.samples == 2
    assert not findings.problems
    dataset = open_dataset(str(tmp_path / "out"))
    sample = dataset.find("talk/train/text/chat/1")
    assert sample.image is None
    assert texts(sample) == ["Hi", "Hello"]
    assert contact_sheet([sample, dataset.find("talk/train/coco/000000033471/chat/0")]).width > 0
