"""The file of a reviewer's words: whole lines only, on the disk, one writer."""

import json
import os
import subprocess
import sys

import pytest

from dataengine.errors import UserError
from dataengine.view import words
from dataengine.view.words import Changed, Said, Words

ONE, TWO = "1" * 32, "2" * 32


def said(entry_id=ONE, action="accept", seconds=1.5) -> Said:
    return Said(entry_id=entry_id, action=action, seconds=seconds)


@pytest.fixture
def opened(tmp_path):
    opened = Words(tmp_path, "zoë")
    yield opened
    opened.close()


def test_words_are_lines_that_only_grow(opened, tmp_path):
    path = tmp_path / "zoë.jsonl"
    sizes = [path.stat().st_size]
    serial = opened.say(said(), opened.serial)
    sizes.append(path.stat().st_size)
    before = path.read_bytes()
    opened.say(said(TWO, "reject"), serial)
    assert opened.undo(opened.serial) == said(TWO, "reject")
    assert path.read_bytes().startswith(before)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"format": 1, "reviewer": "zoë"},
        {"entry_id": ONE, "action": "accept", "seconds": 1.5},
        {"entry_id": TWO, "action": "reject", "seconds": 1.5},
        {"entry_id": TWO, "action": "undo"},
    ]
    assert words.read(tmp_path, "zoë") == opened.standing == [said()]
    assert words.reviewers(tmp_path) == ["zoë"]


def test_time_is_that_of_all_words_also_of_those_taken_back(opened, tmp_path):
    opened.say(said(), opened.serial)
    begin = len(words.lines(tmp_path, "zoë"))
    opened.say(said(TWO, "skip", 2.5), opened.serial)
    opened.undo(opened.serial)
    with opened.path.open("ab") as file:
        file.write(b'{"entry')  # of a writer who was killed
    data = words.lines(tmp_path, "zoë")
    assert (words.seconds_of(data), words.seconds_of(data[begin:])) == (4.0, 2.5)


def test_a_word_is_on_the_disk_before_it_is_answered(opened, monkeypatch):
    synced = []
    monkeypatch.setattr(words.os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    before = opened.path.stat().st_size
    opened.say(said(), opened.serial)
    assert synced == [opened.path.stat().st_size]
    assert synced[0] > before


def test_a_word_that_cannot_be_written_leaves_no_part_of_a_line(opened, monkeypatch):
    before = opened.path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(words.os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        opened.say(said(), opened.serial)
    monkeypatch.undo()
    assert opened.path.read_bytes() == before
    assert opened.standing == []
    opened.say(said(TWO), opened.serial)
    assert opened.standing == words.read(opened.path.parent, "zoë") == [said(TWO)]


def test_what_was_cut_off_is_forgotten_and_the_rest_stands(tmp_path):
    first = Words(tmp_path, "a")
    first.say(said(), first.serial)
    first.say(said(TWO, "skip"), first.serial)
    first.close()
    data = first.path.read_bytes()
    ends = [at for at in range(len(data) + 1) if at == 0 or data[at - 1 : at] == b"\n"]
    for cut in range(len(data)):
        first.path.write_bytes(data[:cut])
        again = Words(tmp_path, "a")
        whole = sum(end <= cut for end in ends) - 1  # lines
        assert again.standing == [said(), said(TWO, "skip")][: max(whole - 1, 0)]
        assert again.serial == max(whole, 1)
        again.say(said(TWO), again.serial)
        again.close()
        assert words.read(tmp_path, "a")[-1] == said(TWO)


def test_only_one_program_writes(opened, tmp_path):
    code = (
        "import sys; from pathlib import Path; from dataengine.view.words import Words\n"
        "try: Words(Path(sys.argv[1]), 'zoë')\nexcept ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "another program has it open" in done.stdout


def test_two_pages_of_a_reviewer_do_not_speak_over_each_other(opened):
    before = opened.serial
    opened.say(said(), before)
    for speak in (lambda: opened.say(said(TWO), before), lambda: opened.undo(before)):
        with pytest.raises(Changed):
            speak()
    assert opened.standing == [said()]


def test_there_is_not_always_something_to_undo(opened):
    with pytest.raises(UserError, match="nothing to undo"):
        opened.undo(opened.serial)


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON",
        b"[]",
        b"{}",
        b'{"entry_id": "x", "action": "accept", "seconds": 1}',
        b'{"entry_id": "%s", "action": "explode", "seconds": 1}' % ONE.encode(),
        b'{"entry_id": "%s", "action": "accept", "seconds": NaN}' % ONE.encode(),
        b'{"entry_id": "%s", "action": "accept", "seconds": -1}' % ONE.encode(),
        b'{"entry_id": "%s", "action": "accept"}' % ONE.encode(),
        b'{"entry_id": "%s", "action": "undo"}' % ONE.encode(),
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_bytes(b'{"format": 1, "reviewer": "a"}\n' + line + b"\n")
    for reading in (lambda: words.read(tmp_path, "a"), lambda: Words(tmp_path, "a")):
        with pytest.raises(UserError, match="line 2"):
            reading()


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".hidden", "a\0", "a b", "x" * 65])
def test_names_lead_nowhere(tmp_path, name):
    with pytest.raises(UserError):
        Words(tmp_path / "folder", name)
    assert not (tmp_path / "folder").exists()


def test_a_file_that_leads_elsewhere_is_not_followed(tmp_path):
    (tmp_path / "other").write_text("mine")
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic"):
        Words(tmp_path, "a")
    assert (tmp_path / "other").read_text() == "mine"
