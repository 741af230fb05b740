"""The report: its numbers, its draw of samples, its size, what it survives, and what it shows in a browser."""

import json
import re
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dataengine import masks
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
from dataengine.store.dataset import open_dataset, validate
from dataengine.store.files import Folder, public
from dataengine.store.shards import ShardWriter
from dataengine.view.bundle import json_text
from pipelines import build, gallery, recipe, report, stats
from pipelines.cli import app

EVIL = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>'\"&--> javascript:alert(3) \u202e"


def data_of(html) -> dict:
    html = html if isinstance(html, str) else html.decode()
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


def sample(name: str, **changes) -> Sample:
    """Text alone, with the changes."""
    values = {
        "sample_id": f"s/train/{name}/chat",
        "task": "chat",
        "source": "s",
        "split": "train",
        "image": None,
        "image_key": name,
        "height": 0,
        "width": 0,
        "turns": (
            Turn(role="user", text="Hello", supervised=False),
            Turn(role="assistant", text="Yes", supervised=True),
        ),
        "license": License(),
        "provenance": Provenance(file="f", record="r", builder="b", version=1, seed=0),
    }
    return Sample(**{**values, **changes})


def segmented(name: str, num_objects: int, size: int = 64, seed: int = 0, **changes) -> Sample:
    """Objects of noise, whose masks compress badly."""
    rng = np.random.default_rng(seed)
    things = []
    for n in range(num_objects):
        mask = rng.random((size, size)) < 0.3
        rle = masks.encode(mask)
        area, bbox = masks.measure(rle, size, size)
        prompt = Prompt(kind="mask", profile="published", version=1, status="ok", rle=rle, inside=1.0)
        things.append(Object(rle=rle, bbox=bbox, area=area, category_id=1, annotation_id=str(n), prompts=(prompt,)))
    asked = Condition(kind="phrase", text="noise", objects=tuple(range(num_objects)), category_id=1)
    values = {"task": "genseg", "height": size, "width": size, "objects": tuple(things), "conditions": (asked,)}
    return sample(name, **{**values, **changes})


def write(folder, shards: list[list[Sample]], **changes) -> str:
    """A dataset of these shards, whatever the samples are, with a full manifest."""
    (folder / "shards").mkdir(parents=True)
    entries = []
    for number, samples in enumerate(shards):
        writer = ShardWriter(folder / "shards" / f"{number}.parquet")
        for one in samples:
            writer.write(one, checked=True)
        writer.close()
        entry = {"name": f"shards/{number}.parquet", "rows": len(samples), "bytes": 1}
        entries.append({**entry, "source": samples[0].source, "split": samples[0].split})
    every = [one for shard in shards for one in shard]
    named = {f"{s.source}/{s.split}": {"builder": "b", "task": s.task, "images": 1, "categories": []} for s in every}
    records = {"read": {"rows": len(every)}, "built": {"rows": len(every)}, "quarantined": {}, "filtered": {}}
    manifest = {
        "shards": entries,
        "quarantine": [],
        "sources": named,
        "counts": {
            "samples": len(every),
            "objects": sum(len(s.objects) for s in every),
            "records": records,
            "licenses": {},
            "by_source": {},
        },
        "recipe": {"name": "made", "description": None},
        "generator": {"dataengine": "0", "prompts": {}},
        "forbidden": {"roles": {}, "by_content": 0, "missing": []},
        "expected": {},
        "mixing": None,
        "seed": 0,
        "limit": None,
        **changes,
    }
    manifest["version"] = commits.version_of(manifest)
    (folder / commits.MANIFEST).write_text(json.dumps(manifest))
    return str(folder)


@pytest.fixture
def call():
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def tree(coco_tree):
    """Six pictures; one file is missing, and names are hostile."""
    tree = coco_tree(6)
    tree.categories[0]["name"] = EVIL
    tree.categories[1]["name"] = "long " * 2000
    tree.save()
    (tree.root / "train" / "3.jpg").unlink()
    return tree


@pytest.fixture
def built(call, tree, tmp_path) -> str:
    done = call("build", "vgd", "--source", f"coco={tree.root}", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    return str(tmp_path / "out")


# --- what it says ----------------------------------------------------------------------------------------------------


def test_a_build_writes_a_report_of_its_numbers(built, tree):
    html = open_dataset(built).folder.read("report.html")
    data, found = data_of(html), stats.stats(built)
    for name in ("samples", "by", "per_sample", "mask_area_px", "prompts", "records", "pictures"):
        assert data["stats"][name] == found[name], name
    assert data["title"] == "vgd"
    assert data["version"] == open_dataset(built).manifest["version"]
    assert [c["row"]["sample_id"] for c in data["samples"]] == [s.sample_id for s in open_dataset(built).samples()]
    assert all(c["picture"].startswith("data:image/webp;base64,") and c["cut"] is None for c in data["samples"])
    (bad,) = data["quarantine"]["examples"]
    assert (data["quarantine"]["total"], bad["reason"], bad["unit"]) == (1, "image_missing", "images")
    assert "3.jpg" in bad["message"] + bad["payload"]
    assert data["quarantine"]["replay"] == f"dataengine replay {built}"
    assert not validate(built).problems


def test_it_says_how_long_each_stage_took(built):
    status = json.loads(open_dataset(built).folder.read("status.json"))
    assert list(status["seconds"]) == ["indexing", "planning", "building", "report"]
    assert all(seconds >= 0 for seconds in status["seconds"].values())
    assert (status["state"], status["workers"], status["images_before"]) == ("done", 1, 0)
    shown = data_of(open_dataset(built).folder.read("report.html"))["status"]
    assert list(shown["seconds"]) == ["indexing", "planning", "building"]  # it could not know its own


def test_long_names_are_cut_and_say_so(built):
    names = [c["name"] for c in data_of(report.make(built).html)["stats"]["categories"]["coco"]]
    (long,) = [name for name in names if name.startswith("long")]
    assert long.endswith(" more")
    assert len(long) < 400
    assert any(name.startswith("<script>alert(1)</script><img src=http") for name in names)


def test_quarantine_shows_a_few_records_of_each_reason_cut_to_size(built, monkeypatch):
    rows = [
        {"unit": "images", "reason": "bad", "source": "s", "split": "t", "file": "f", "record": str(n), "message": "m"}
        for n in range(9)
    ]
    rows.append({**rows[0], "reason": "rare", "record": EVIL})
    rows = [{**row, "group": "", "payload": "x" * (1 << 20)} for row in rows]
    dataset = open_dataset(built)
    dataset.manifest["counts"]["records"]["quarantined"] = {"images": {"bad": 9, "rare": 1}}
    monkeypatch.setattr(type(dataset), "quarantined", lambda self: iter(rows))
    found = report._quarantine(dataset, "out")
    assert [row["record"] for row in found["examples"]] == ["0", "1", "2", EVIL]
    assert {len(row["payload"]) + row["left"] for row in found["examples"]} == {1 << 20}
    assert len(json_text(report._printed(found))) < 20_000


@pytest.mark.parametrize("mark", ["?", "&", "://", "?a"])
def test_addresses_of_any_length_are_shown_at_once(mark):
    """They may be a row's; looking for secrets in a way that is quadratic in their length would take minutes."""
    uri, began = f"s3://bucket/{mark * 100_000}", time.process_time()
    assert public(uri) == uri
    assert time.process_time() - began < 5


def test_addresses_are_shown_without_their_secrets():
    assert public("s3://key:secret@bucket/vgd") == "s3://bucket/vgd"
    shown = public("s3://b/v?endpoint_override=127.0.0.1:9&access_key=A&secret_key=B&scheme=http")
    assert shown == "s3://b/v?endpoint_override=127.0.0.1:9&access_key=…&secret_key=…&scheme=http"
    assert public("/data/a@b/x?token=1") == "/data/a@b/x?token=…"
    assert public("out/vgd") == "out/vgd"


# --- the draw --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "number", "shares"),
    [
        ([100, 2, 50], 9, [4, 2, 3]),
        ([100, 2, 50], 2, [1, 0, 1]),
        ([3, 1], 64, [3, 1]),
        ([5, 5], 5, [3, 2]),
        ([], 4, []),
        ([7], 0, [0]),
    ],
    ids=[
        "the smallest gives all",
        "more strata than samples",
        "fewer than asked",
        "the first has more",
        "none",
        "no samples",
    ],
)
def test_shares_are_as_even_as_sizes_allow(sizes, number, shares):
    assert gallery.even_shares(sizes, number) == shares


def test_every_stratum_is_drawn_from_by_seed(tmp_path):
    many = [sample(f"a{n}") for n in range(300)]
    few = [sample(f"b{n}", task="refseg", source="t", variant="x") for n in range(3)]
    mixed = [sample(f"c{n}", task="genseg" if n % 50 else "ovseg", source="u") for n in range(100)]
    dataset = open_dataset(write(tmp_path / "d", [many, few, mixed]))
    drawn = gallery.draw(dataset, 12, 0)
    assert drawn.strata == [
        (("s", "train", "chat", ""), 300),
        (("t", "train", "refseg", "x"), 3),
        (("u", "train", "genseg", ""), 98),
        (("u", "train", "ovseg", ""), 2),
    ]
    rows = list(dataset.rows(drawn.numbers))
    assert [row.number for row in rows] == drawn.numbers == sorted(set(drawn.numbers))
    assert Counter((row.sample.source, row.sample.task) for row in rows) == {
        ("s", "chat"): 4,
        ("t", "refseg"): 3,
        ("u", "genseg"): 3,
        ("u", "ovseg"): 2,
    }
    every = list(dataset.samples())
    assert all(row.sample == every[row.number] for row in rows)
    assert {row.shard for row in rows} == {"shards/0.parquet", "shards/1.parquet", "shards/2.parquet"}
    assert gallery.draw(dataset, 12, 0) == drawn
    assert gallery.draw(dataset, 12, 1).numbers != drawn.numbers
    assert gallery.draw(dataset, 1000, 0).numbers == list(range(403))


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "total", "cap"), [([10, 20, 30], 100, 100), ([10, 20, 30], 50, 20), ([9, 9, 9], 12, 4), ([], 5, 5)]
)
def test_the_cap_lets_small_ones_be(sizes, total, cap):
    assert gallery.cap_of(sizes, total) == cap
    assert sum(min(size, cap) for size in sizes) <= total


@pytest.fixture
def mixed(tmp_path, make_jpeg):
    """Ordinary rows with pictures, one of many masks, one of much text, one that is large wherever one cuts."""
    picture = Image(bytes=make_jpeg(64, 64), path="x.jpg")
    reference = Reference(
        image=Image(bytes=make_jpeg(64, 64, seed=1), path="y.jpg"),
        image_key="y",
        height=64,
        width=64,
        rle=b"",
        category_id=1,
        annotation_id="1",
        prompts=(),
    )
    rows = [segmented(f"p{n}", 1, image=picture, seed=n) for n in range(4)]
    rows.append(segmented("shown", 1, image=picture, references=(reference,)))
    rows.append(segmented("masks", 60, image=picture))
    rows.append(sample("text", turns=(Turn(role="user", text="<" * 300_000, supervised=False),)))
    rows.append(segmented("wide", 1, conditions=tuple(Condition(kind="phrase", text="x" * 300) for _ in range(2000))))
    return open_dataset(write(tmp_path / "mixed", [rows]))


@pytest.mark.parametrize("most", [8_000_000, 400_000, 200_000, 30_000, 6_000])
def test_cards_fit_and_say_what_was_left_out(mixed, most):
    whole = list(mixed.samples())
    cards = gallery.cards(mixed, range(len(whole)), most)
    assert len(json_text(cards).encode()) <= most
    assert [card["number"] for card in cards] == list(range(len(whole)))
    for card, one in zip(cards, whole, strict=True):
        if card["cut"] is None:
            assert card["row"]["turns"][0]["text"] == one.turns[0].text
            assert [thing["rle"].encode() for thing in card["row"]["objects"]] == [thing.rle for thing in one.objects]
            assert bool(card["picture"]) == (one.image is not None)
        elif card["row"] is None:
            assert "whole row" in card["cut"]
        else:
            for thing in card["row"]["objects"]:  # a mask that is left out is empty, and still one of its canvas
                masks.decode(thing["rle"].encode(), 64, 64)
    if most == 8_000_000:
        assert all(card["cut"] is None for card in cards)
        assert cards[4]["references"][0]["picture"]
    if most == 400_000:
        assert cards[5]["cut"].endswith(" prompts")
        assert cards[6]["cut"] == "1 text end"
        assert cards[7]["cut"] == "its whole row"
        assert all(card["cut"] is None for card in cards[:5])
    if most == 200_000:
        assert cards[5]["cut"].startswith("60 prompts, ")
        assert cards[5]["cut"].endswith(" masks")


def test_pictures_become_smaller_before_they_are_left_out(tmp_path, make_jpeg):
    rows = [
        sample(f"p{n}", image=Image(bytes=make_jpeg(600, 800, seed=n), path="x"), height=600, width=800)
        for n in range(4)
    ]
    dataset = open_dataset(write(tmp_path / "d", [rows]))
    sizes = [
        [len(card["picture"] or "") for card in gallery.cards(dataset, range(4), most)]
        for most in (4_000_000, 300_000, 60_000, 9_000)
    ]
    assert all(min(larger) > max(smaller) for larger, smaller in pairwise(sizes))
    assert min(sizes[2]) > 0


def test_the_page_keeps_its_bounds(built, monkeypatch):
    whole = len(report.make(built).html)
    monkeypatch.setattr(report, "MAX_BYTES", whole - 2000)
    assert len(report.make(built).html) <= whole - 2000


# --- where it is written, and what it survives -----------------------------------------------------------------------


def test_out_may_be_any_file_but_no_folder(call, built, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("report", built, "--out", "mine.html", "--samples", "2", "--seed", "3")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("mine.html: 2 samples, ")
    assert len(data_of((tmp_path / "mine.html").read_text())["samples"]) == 2
    assert call("report", built, "--out", "new/folder/page.html").exit_code == 0
    for out in (tmp_path, "/dev/null"):
        refused = call("report", built, "--out", out)
        assert refused.exit_code == 1
        assert "is no file" in refused.stderr
    assert call("report", tmp_path / "nothing").exit_code == 1


def test_a_report_that_fails_does_not_fail_the_build(call, tree, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError("no more")

    monkeypatch.setattr(report, "write", fail)
    out = tmp_path / "o ut"
    done = call("build", "vgd", "--source", f"coco={tree.root}", "--out", out)
    assert done.exit_code == 0
    assert "the report was not written (MemoryError: no more)" in done.stderr
    assert f"dataengine report '{out}'" in done.stderr
    assert "5 samples" in done.stdout
    assert json.loads((out / "status.json").read_text())["state"] == "done"


def test_a_build_may_go_without(call, tree, tmp_path):
    args = ["build", "vgd", "--source", f"coco={tree.root}", "--out", tmp_path / "out"]
    assert call(*args, "--no-report").exit_code == 0
    assert not (tmp_path / "out" / "report.html").exists()
    assert call(*args, "--resume").exit_code == 0  # is finished, so that only the report is made
    assert (tmp_path / "out" / "report.html").exists()


def test_benchmarks_and_replays_have_a_report(call, built, tree, tmp_path):
    done = call("vgd", "build", "--coco", tree.root, "--split", "train", "--out", tmp_path / "vgd")
    assert done.exit_code == 0, done.output
    data = data_of((tmp_path / "vgd" / "report.html").read_text())
    assert {row["task"] for row in data["stats"]["by"]} == {"vgdseg"}
    assert not validate(str(tmp_path / "vgd")).problems
    (tree.root / "train" / "3.jpg").write_bytes((tree.root / "train" / "2.jpg").read_bytes())
    assert call("replay", built, "--out", tmp_path / "again").exit_code == 0
    data = data_of((tmp_path / "again" / "report.html").read_text())
    assert (data["replays"], data["stats"]["samples"]) == (open_dataset(built).manifest["version"], 1)


def test_datasets_and_reports_may_be_in_an_object_store(tree, s3_bucket):
    build.run(
        recipe.with_sources(recipe.load("vgd"), [f"coco={tree.root}"]),
        f"{s3_bucket}/out",
        build.Settings(engine="local"),
    )
    written = report.write(f"{s3_bucket}/out")
    assert Folder(f"{s3_bucket}/out").read("report.html") == written.html
    report.write(f"{s3_bucket}/out", f"{s3_bucket}/elsewhere/page.html")
    assert Folder(f"{s3_bucket}/elsewhere").names() == ["page.html"]
    assert not validate(f"{s3_bucket}/out").problems


def test_pictures_that_are_gone_are_told(tmp_path, make_jpeg):
    (tmp_path / "there.jpg").write_bytes(make_jpeg(24, 32))
    paths = [str(tmp_path / "there.jpg"), str(tmp_path / "gone.jpg"), "http://127.0.0.1:9/x.jpg", EVIL]
    rows = [sample(f"p{n}", image=Image(bytes=None, path=path), height=24, width=32) for n, path in enumerate(paths)]
    data = data_of(report.make(write(tmp_path / "d", [rows])).html)
    assert [bool(card["picture"]) for card in data["samples"]] == [True, False, False, False]
    assert "No such file" in data["samples"][1]["picture_error"]
    assert "disks and object stores only" in data["samples"][2]["picture_error"]
    assert data["stats"]["pictures"]["samples"] == {"embedded": 0, "by_reference": 4, "none": 0}


# --- in a browser ----------------------------------------------------------------------------------------------------


def test_a_row_does_not_make_it_call_a_server(tmp_path):
    path = "s3://bucket/a.jpg?endpoint_override=127.0.0.1:9&scheme=http"
    uri = write(tmp_path / "d", [[sample("a", image=Image(path=path, bytes=None), height=48, width=64)]])
    (card,) = data_of(report.make(uri).html)["samples"]
    assert card["picture"] is None
    assert "names a server" in card["picture_error"]


def test_rows_that_the_format_forbids_are_told(tmp_path):
    uri = write(tmp_path / "d", [[sample("a"), sample("b")]])
    (shard,) = (tmp_path / "d" / "shards").iterdir()
    table = pq.ParquetFile(shard).read()

    def told(name: str, values: pa.Array) -> str:
        pq.write_table(table.set_column(table.schema.get_field_index(name), name, values), shard)
        with pytest.raises(commits.DatasetError) as caught:
            report.make(uri)
        return str(caught.value)

    lists = table.schema.field("references").type
    assert f"row 0 in shards/{shard.name} is damaged" in told("references", pa.nulls(2, lists))
    text = pa.StringArray.from_buffers(2, *pa.array([b"\xff\xfe"] * 2, pa.binary()).buffers()[1:])
    assert f"{shard.name} is damaged" in told("task", text)


def opened(watched, uri: str, tmp_path):
    (tmp_path / "page.html").write_bytes(report.make(uri).html)
    watched.page.goto((tmp_path / "page.html").as_uri())
    watched.page.locator("main h1").wait_for()
    return watched.page


def test_hostile_texts_are_shown_as_texts(watch, tree, tmp_path):
    path = tmp_path / "evil.yaml"
    source = {"builder": "coco", "task": "vgdseg", "root": str(tree.root)}
    path.write_text(json.dumps({"name": "evil", "description": EVIL, "sources": {"coco": source}, "prompts": {}}))
    tree.images[1]["file_name"] = "<b>2</b>.jpg"
    tree.annotations[0]["segmentation"] = EVIL
    tree.save()
    budget = {"max_fraction": 1.0, "min_count": 100}
    loaded = recipe.load(str(path))
    loaded = loaded.model_copy(update={"budget": recipe.BudgetSpec(**budget)})
    build.run(loaded, str(tmp_path / "out"), build.Settings(engine="local"))
    watched = watch()
    page = opened(watched, str(tmp_path / "out"), tmp_path)
    assert EVIL in page.locator("header p").inner_text()
    assert page.locator("#categories th", has_text="<script>alert(1)").count() >= 1
    page.locator("#records details summary").first.click()
    assert page.locator(".bad-record").count() >= 2
    assert "<b>2</b>.jpg" in page.locator("#records").inner_text()
    page.locator("#samples").scroll_into_view_if_needed()
    page.locator(".card").first.wait_for()
    assert page.evaluate("document.querySelectorAll('main script, main b b, main img[src^=http]').length") == 0
    assert {url.split(":")[0] for url in watched.requests} <= {"file", "data"}


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_is_read_and_used(watch, built, tmp_path, width, scheme):
    watched = watch(width, scheme=scheme)
    page = opened(watched, built, tmp_path)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    links = page.locator("nav.contents a").all()
    assert [link.get_attribute("href") for link in links][-1] == "#samples"
    for link in links:
        assert page.locator(link.get_attribute("href")).count() == 1
    tiles = dict(tile.inner_text().split("\n")[:2] for tile in page.locator(".tiles div").all())
    assert (tiles["Samples"], tiles["Quarantined"]) == ("5", "1")
    page.get_by_text("All 3 categories").click()
    page.get_by_label("search categories").fill("kind 3")
    assert page.locator("#categories .long tbody tr").count() == 1
    assert page.locator("#categories [role=status]").inner_text() == "1 of 3"


def test_cards_are_drawn_when_they_come_near(watch, tmp_path):
    uri = write(tmp_path / "d", [[sample(f"n{n}") for n in range(40)]])
    watched = watch(height=600)
    page = opened(watched, uri, tmp_path)
    assert page.locator(".card").count() < 5
    page.locator(".slot").last.scroll_into_view_if_needed()
    page.locator(".slot").last.locator(".card").wait_for()


def test_paper_has_all_cards(watch, tmp_path):
    """Those far from the screen too; afterwards they are forgotten again."""
    uri = write(tmp_path / "d", [[segmented(f"n{n}", 2) for n in range(30)]])
    page = opened(watch(height=600), uri, tmp_path)
    assert page.locator(".card").count() < 30
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".card .stage[data-draw-ms]").count() == 30
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_function("() => document.querySelectorAll('.stage[data-draw-ms]').length < 10")


def test_one_may_look_at_one_kind_of_sample(watch, tmp_path):
    long = "long" * 20
    rows = [[sample("a", source=long)], [sample("b", source="t"), sample("c", source="t")]]
    page = opened(watch(390), write(tmp_path / "d", rows), tmp_path)
    page.locator("#samples select").select_option(label="t · train · chat (2)")
    assert page.locator(".slot:visible").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_rows_that_are_too_large_are_told(watch, mixed, tmp_path, monkeypatch):
    page_bytes = len(report.make(mixed.folder.uri, samples=0).html)
    monkeypatch.setattr(report, "MAX_BYTES", page_bytes + 60_000)
    page = opened(watch(height=20_000), mixed.folder.uri, tmp_path)
    page.get_by_text("is too large for this page").first.wait_for()
    assert page.get_by_text("Left out of this page:").count() >= 2


@pytest.mark.parametrize(
    "rows",
    [[sample("a")], [segmented("a", 1)], [replace(segmented("a", 1), conditions=())]],
    ids=["one of text alone", "one without a picture", "nothing asked"],
)
def test_tiny_datasets_have_a_page(watch, tmp_path, rows):
    page = opened(watch(), write(tmp_path / "d", [rows]), tmp_path)
    page.locator(".slot").scroll_into_view_if_needed()
    page.locator(".card").wait_for()


def test_five_hundred_categories_of_two_sources(watch, tmp_path):
    names = [{"id": n, "text": f"name {n}"} for n in range(500)]
    sources = {f"{s}/train": {"builder": "b", "task": "genseg", "images": 1, "categories": names} for s in "st"}
    uri = write(tmp_path / "d", [[segmented("a", 3)], [segmented("b", 2, source="t")]], sources=sources)
    page = opened(watch(), uri, tmp_path)
    assert page.locator("#categories table.bars tbody tr").count() == 1
    assert "499 of 500 categories have none" in page.locator("#categories").inner_text()
    page.locator("#categories select").select_option(index=1)
    assert page.locator("#categories table.bars .number").nth(2).inner_text() == "2"
