"""A sample as JSON values for pages and terminals."""

import json
import math
import shlex

import pytest

from dataengine.sample import Image
from dataengine.view import rows
from tests.dataengine.view.cards import box_mask, card, counts, prompt, reference, sample, spans, thing

TEXT = "<image>\n<p>a cat</p>"


def full(**changes):
    mask = box_mask(60, 80, 4, 10, 20, 20)
    shown = thing(mask, prompts=[prompt("mask", rle=counts(mask))], category_id=2)
    return sample([TEXT, "<SEG>"], [shown], spans(TEXT, {"objects": (0,)}), references=[reference(mask)], **changes)


def test_bytes_are_numbers_of_pictures_and_texts_of_masks():
    row = rows.printable(full(image=Image(bytes=b"\x89PNG", path="a.png")))
    assert row["image"] == {"path": "a.png", "bytes": "<4 bytes>"}
    mask = counts(box_mask(60, 80, 4, 10, 20, 20)).decode("ascii")
    assert row["objects"][0]["rle"] == row["objects"][0]["prompts"][0]["rle"] == mask
    assert rows.printable(b"a\xff") == "a\\xff"
    assert rows.printable(Image(bytes=None, path="b.png")) == {"path": "b.png", "bytes": None}


def test_only_the_categories_of_the_sample_are_named():
    data = card(full(), ["cat", "dog", "eel"])
    assert data["categories"] == {"1": "cat", "2": "dog"}  # of its reference and its object
    assert (data["number"], data["shard"]) == (7, "shards/train-00000-of-00001.parquet")
    assert [sorted(entry) for entry in data["references"]] == [["picture", "picture_error"]]


def test_numbers_are_ones_that_a_browser_keeps():
    """JavaScript rounds whole numbers above 2^53 - 1, and JSON has neither NaN nor infinities."""
    odd = prompt("point", (math.nan, 1.5), (1,), math.inf, inside=-math.inf)
    shown = full()
    objects = (thing(box_mask(60, 80, 1, 1, 2, 2), prompts=[odd]),)
    data = card(sample([TEXT], objects, provenance=shown.provenance.__class__(
        file="f", record="r", builder="b", version=1, seed=2**53, url=None)))  # fmt: skip
    assert data["row"]["provenance"]["seed"] == "9007199254740992"
    assert data["row"]["objects"][0]["area"] == 4
    found = data["row"]["objects"][0]["prompts"][0]
    assert (found["points"], found["radius"], found["inside"]) == ([None, 1.5], None, None)
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize("name", ["a/b", "it's", "$(rm -rf /)", "-x --help", "a b\nc", "‮txt", ""])
def test_commands_reach_a_shell_as_they_are(name):
    uri = "s3://bucket/a dir"
    for entry in rows.commands(uri, name):
        words = shlex.split(entry["command"])
        assert words[0] == "dataengine"
        assert words[2:] == [uri, "--sample", name]


def test_commands_do_not_tell_keys():
    uri = "s3://me:key@bucket/d?secret_key=key&endpoint_override=own.example"
    for entry in rows.commands(uri, "a"):
        assert "key@" not in entry["command"]
        assert "=key" not in entry["command"]
        assert "bucket/d" in entry["command"]
