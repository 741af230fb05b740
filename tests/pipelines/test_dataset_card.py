"""The card: its counts, its code as it is written, its recipe built again, and text of others that stays text."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import yaml
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from dataengine.errors import UserError
from dataengine.sample import License
from dataengine.store.dataset import open_dataset, validate
from pipelines import build, card_facts, card_text, dataset_card, markdown, recipe
from pipelines.build import Settings
from pipelines.cli import app
from pipelines.croissant import About

ROOT = Path(__file__).parents[2]
HOSTILE = (
    "<script>alert(1)</script>",
    "<!-- -->",
    "[a](javascript:alert(1))",
    "![a](https://example.org/a.png)",
    "[a]: https://example.org",
    "a | b | c",
    "```\n# out",
    "`code` ``more``",
    "\n\n# head\n---\n",
    "\n---\nlicense: mit",
    "- item",
    "12. item",
    "<https://example.org> https://example.org www.example.org a@example.org",
    "&lt;b&gt; *a* _b_ ~~c~~ $$d$$",
    "\\",
    "\u202etxt.exe\u2028",
    ": yaml\t'\"{}[]#!",
)


def built(out: Path, sources: dict[str, dict], **values) -> Path:
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps({"name": "small", "sources": sources, "prompts": {}, "shard": {"images": 2}, **values}))
    build.run(recipe.load(str(path)), str(out), Settings(engine="local"))
    return out


@pytest.fixture
def trees(coco_tree):
    """A tree of five pictures in `train`, one with a licence of its own, and one of three in `val`."""
    train, val = coco_tree(5), coco_tree(3, "val")
    document = json.loads(train.save().read_text())
    document["licenses"] = [{"id": 4, "name": "shared", "url": "https://example.org/terms"}]
    document["images"][0]["license"] = 4
    document["annotations"][2]["segmentation"] = [[1, 2, 3]]
    train.file.write_text(json.dumps(document))
    return train, val


def sources_of(trees, images: str = "embed") -> dict[str, dict]:
    train, val = trees
    return {
        "vgd": {"builder": "coco", "task": "vgdseg", "root": str(train.root), "options": {"images": images}},
        "things": {
            "builder": "coco", "task": "genseg", "root": str(val.root),
            "options": {"variants": ["instance"], "images": images},
        },
    }  # fmt: skip


@pytest.fixture
def dataset(trees, tmp_path) -> Path:
    return built(tmp_path / "out", sources_of(trees))


def parts(folder: Path) -> tuple[dict, str]:
    """The YAML and the Markdown of a card."""
    _, head, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), body


def rows(body: str, *head: str) -> list[list[str]]:
    """Cells of the table with that head."""
    table = body.split("| " + " | ".join(head) + " |\n", 1)[1].split("\n\n", 1)[0]
    return [line.strip("| ").split(" | ") for line in table.splitlines()[1:]]


def blocks(body: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", body, re.M | re.S)


def test_it_counts_what_the_rows_hold(dataset):
    dataset_card.write(str(dataset))
    head, body = parts(dataset)
    samples = list(open_dataset(str(dataset)).samples())
    tasks = Counter(s.task + (f" {s.variant}" if s.variant else "") for s in samples)
    assert {row[0]: int(row[2]) for row in rows(body, "task", "meaning", "samples")} == tasks
    assert {row[0]: int(row[1]) for row in rows(body, "split", "samples", "files, MB")} == Counter(
        s.split for s in samples
    )
    licenses = Counter((s.license.name, s.license.url) for s in samples)
    assert ("shared", "https://example.org/terms") in licenses
    assert {(a, b): int(n) for a, b, n in rows(body, "licence", "URL", "samples")} == licenses
    assert f"{len(samples)} samples with {sum(len(s.objects) for s in samples)} masks" in body
    assert head["license"] == ["cc-by-4.0", "other"]
    assert "- 1 records could not be built" in body
    records = {row[0]: row[1:] for row in rows(body, "of", "read", "built", "not built")}
    assert records["annotations"][:2] == ["16", "15"]
    assert re.fullmatch(r"1 quarantined \(.*\)", records["annotations"][2])


def test_the_hub_takes_its_head(dataset):
    dataset_card.write(str(dataset))
    card = huggingface_hub.DatasetCard((dataset / "README.md").read_text())
    assert card.data.to_dict() == parts(dataset)[0]
    sizes = json.loads((Path(datasets.__file__).parent / "utils" / "resources" / "size_categories.json").read_text())
    assert card.data.size_categories == ["n<1K"]
    assert {name for _, name in card_text.SIZES} <= set(sizes)
    assert card.data.task_categories == ["image-segmentation", "mask-generation", "image-text-to-text"]


@pytest.mark.parametrize(("license", "head"), [
    (License(), {"license": "unknown"}),
    (License(name="CC BY 4.0", url="https://creativecommons.org/licenses/by/4.0/"), {"license": "cc-by-4.0"}),
    (License(name="Own terms (v2)", url="https://example.org/t"),
     {"license": "other", "license_name": "own-terms-v2", "license_link": "https://example.org/t"}),
    (License(url="javascript:alert(1)"), {"license": "other", "license_name": "see-licences-below"}),
])  # fmt: skip
def test_licenses_as_the_hub_names_them(license, head):
    assert card_text._license_head([license]) == head


CHECK = """
import json, re, sys
from pathlib import Path

for code in re.findall(r"^```python\\n(.*?)^```$", Path("README.md").read_text(), re.M | re.S):
    names = {}
    exec(code, names)
    if "row" in names:
        row, masks = names["row"], names["masks"]
        facts = {"image": str(type(row["image"])), "areas": [int(m.sum()) for m in masks], "span": names["span"]}
        facts |= {"id": row["sample_id"], "wanted": len(names["wanted"])}
    elif "bitmaps" in names:
        facts = {"id": names["sample"].sample_id, "areas": [int(m.sum()) for m in names["bitmaps"]]}
    else:
        facts = {"id": names["record"]["samples/sample_id"].decode()}
    print("FACTS", json.dumps(facts))
"""


@pytest.mark.parametrize("images", ["embed", "reference"])
def test_its_code_runs_as_it_is_written(trees, tmp_path, images):
    dataset = built(tmp_path / "out", sources_of(trees, images))
    dataset_card.write(str(dataset))
    if images == "reference":
        for tree in trees:
            for picture in tree.root.rglob("*.jpg"):
                picture.unlink()
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        cwd=dataset,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    facts = [json.loads(line.removeprefix("FACTS ")) for line in done.stdout.splitlines() if line.startswith("FACTS ")]
    assert len(facts) == 3
    samples = {s.sample_id: s for s in open_dataset(str(dataset)).samples()}
    for found in facts:
        sample = samples[found["id"]]
        assert found.get("areas", [o.area for o in sample.objects]) == [o.area for o in sample.objects]
    plain = facts[0]
    assert plain["image"] == ("<class 'dict'>" if images == "reference" else
                              "<class 'PIL.JpegImagePlugin.JpegImageFile'>")  # fmt: skip
    last = samples[plain["id"]].conditions[-1]
    assert re.fullmatch("<p>.*</p>", plain["span"])
    assert plain["wanted"] == len(last.objects)


def test_its_recipe_gives_the_same_dataset(trees, tmp_path):
    path = tmp_path / "first.yaml"
    values = {"name": "small", "seed": 3, "sources": sources_of(trees), "prompts": {"profile": "strict"}}
    path.write_text(json.dumps(values))
    build.run(recipe.load(str(path)), str(tmp_path / "first"), Settings(engine="local", seed=7, limit=2))
    dataset_card.write(str(tmp_path / "first"))
    body = (tmp_path / "first" / "README.md").read_text()
    assert str(tmp_path) not in body
    (text,), (command,) = blocks(body, "yaml"), blocks(body, "sh")
    for name, source in sources_of(trees).items():
        text = text.replace(f"PATH/TO/{name}\n", f"{source['root']}\n")
    (tmp_path / "recipe.yaml").write_text(text)
    arguments = command.replace(" recipe.yaml", f" {tmp_path}/recipe.yaml").replace(" again", f" {tmp_path}/again")
    done = CliRunner().invoke(app, arguments.split()[1:])
    assert done.exit_code == 0, done.output
    versions = {open_dataset(str(tmp_path / name)).manifest["version"] for name in ("first", "again")}
    assert len(versions) == 1


def test_it_is_written_again_and_belongs_to_the_dataset(dataset):
    written = dataset_card.write(str(dataset))
    first = [Path(name).read_bytes() for name in written.files]
    assert dataset_card.write(str(dataset)) == written
    assert [Path(name).read_bytes() for name in written.files] == first
    assert validate(str(dataset)).problems == []
    assert written.missing == ("url", "creator")


@pytest.mark.parametrize("name", ["README.md", "croissant.json"])
def test_files_of_others_are_kept(dataset, name):
    (dataset / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} that `card` did not write"):
        dataset_card.write(str(dataset))
    assert [p.name for p in dataset.iterdir() if p.name in ("README.md", "croissant.json")] == [name]
    assert (dataset / name).read_text() == "mine"
    dataset_card.write(str(dataset), force=True)
    assert (dataset / name).read_text() != "mine"


def test_a_card_that_somebody_claimed_is_kept(dataset):
    dataset_card.write(str(dataset))
    readme = dataset / "README.md"
    readme.write_text(readme.read_text().replace(card_text.MARK + "\n", "") + "My own words.\n")
    with pytest.raises(UserError, match="README"):
        dataset_card.write(str(dataset))
    assert "My own words." in readme.read_text()


def test_it_can_be_written_elsewhere(dataset, tmp_path):
    before = sorted(p.name for p in dataset.iterdir())
    dataset_card.write(str(dataset), out=str(tmp_path / "a" / "b"))
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["README.md", "croissant.json"]
    assert sorted(p.name for p in dataset.iterdir()) == before
    with pytest.raises(UserError, match="local folder"):
        dataset_card.write(str(dataset), out="s3://bucket/x")


def test_nothing_has_no_card(coco_tree, tmp_path):
    """What is built of records that still cannot be used."""
    tree = coco_tree(2)
    (tree.root / "train" / "1.jpg").unlink()
    dataset = built(tmp_path / "out", {"vgd": {"builder": "coco", "task": "vgdseg", "root": str(tree.root)}})
    done = CliRunner().invoke(app, ["replay", str(dataset), "--out", str(tmp_path / "again")])
    assert done.exit_code == 0, done.output
    manifest = open_dataset(str(tmp_path / "again")).manifest
    assert (manifest["counts"]["samples"], manifest["shards"]) == (0, [])
    with pytest.raises(UserError, match="no samples"):
        dataset_card.write(str(tmp_path / "again"))


def test_a_replay_is_no_recipe(dataset, trees, tmp_path):
    document = json.loads(trees[0].file.read_text())
    document["annotations"][2]["segmentation"] = [[2, 2, 10, 2, 10, 10]]
    trees[0].file.write_text(json.dumps(document))
    CliRunner().invoke(app, ["replay", str(dataset), "--out", str(tmp_path / "again")])
    dataset_card.write(str(tmp_path / "again"))
    body = parts(tmp_path / "again")[1]
    assert f"could not be built in the dataset `{open_dataset(str(dataset)).manifest['version']}`, built again" in body
    assert not blocks(body, "yaml")


@pytest.mark.parametrize("about", [
    About(url="javascript:alert(1)"), About(url="example.org"),
    About(published="tomorrow"), About(published="2026-13-01"),
])  # fmt: skip
def test_what_a_publisher_says_is_checked(dataset, about):
    with pytest.raises(UserError, match=r"--url|--published"):
        dataset_card.write(str(dataset), about=about)


def test_in_an_object_store(trees, tmp_path, s3_bucket):
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps({"name": "small", "sources": sources_of(trees), "prompts": {}}))
    build.run(recipe.load(str(path)), f"{s3_bucket}/out", Settings(engine="local"))
    first = dataset_card.write(f"{s3_bucket}/out")
    assert dataset_card.write(f"{s3_bucket}/out") == first
    assert validate(f"{s3_bucket}/out").problems == []
    folder = open_dataset(f"{s3_bucket}/out").folder
    assert b"8 samples" in folder.read("README.md") or b"7 samples" in folder.read("README.md")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", json.loads(folder.read("croissant.json"))["datePublished"])


def test_names_of_splits():
    shards = [{"split": name} for name in ("val_1", "val-1", "val 1", "train", "all", "-", "größe", "test.v2")]
    assert card_facts.split_names({"shards": shards}) == {
        "train": "train", "val_1": "val_1",
        "val 1": "val_1_2", "val-1": "val_1_3", "-": "split", "all": "split_2", "größe": "gr__e", "test.v2": "test_v2",
    }  # fmt: skip


def test_splits_with_odd_names_load(coco_tree, tmp_path):
    sources = {}
    for number, split in enumerate(("train", "train-extra", "all"), 1):
        tree = coco_tree(number, split)
        sources[f"s{number}"] = {"builder": "coco", "task": "vgdseg", "root": str(tree.root)}
    dataset = built(tmp_path / "out", sources)
    for split in ("val [1]", "val ?1?", "*"):
        for shard in (dataset / "shards").glob("all-0000[0-1]*"):
            shutil.copy(shard, shard.with_name(shard.name.replace("all", split)))
    manifest = open_dataset(str(dataset)).manifest
    more = [
        {"name": f"shards/{path.name}", "split": path.name.split("-0")[0]}
        for path in sorted((dataset / "shards").iterdir())
    ]
    card = dataset_card.card_of(open_dataset(str(dataset)))
    paths = dataset_card.shard_patterns({"shards": more})
    text = card_text.text(replace(card, manifest={**manifest, "shards": more}, paths=paths, bytes=Counter()))
    (dataset / "README.md").write_text(text)
    found = datasets.load_dataset(str(dataset), cache_dir=str(tmp_path / "cache"))
    assert {name: (set(part["split"]), part.num_rows) for name, part in found.items()} == {
        "train": ({"train"}, 1),
        "train_extra": ({"train-extra"}, 2),
        "split": ({"all"}, 3),
        "split_2": ({"all"}, 3),
        "val__1_": ({"all"}, 3),
        "val__1__2": ({"all"}, 3),
    }
    assert r"val \[1\] is val\_\_1\_" in text


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_others_stays_text(text):
    parser = MarkdownIt("commonmark").enable("table").enable("strikethrough")
    for shown, inside in [
        (markdown.plain(text), ["inline"]),
        ("\n".join(markdown.table(["a", "b"], [(markdown.plain(text), 1)])), ["inline"] * 4),
        ("- " + markdown.plain(text), ["inline"]),
    ]:
        tokens = parser.parse(shown)
        assert [
            t.type for t in tokens if t.type in ("inline", "html_block", "fence", "code_block", "hr", "heading_open")
        ] == inside
        texts = [child for t in tokens if t.children for child in t.children]
        assert {child.type for child in texts} <= {"text", "text_special"}
        assert markdown.printable(text) in "".join(child.content for child in texts)
    (span,) = parser.parse(markdown.code(text))[1].children
    assert (span.type, span.content) == ("code_inline", markdown.printable(text))
    (fence,) = parser.parse("\n".join(markdown.block(text, "yaml")))
    assert (fence.type, fence.content.strip("\n")) == ("fence", text.strip("\n"))


@pytest.mark.parametrize("url", ["https://example.org/a#b", "http://example.org/?a=1"])
def test_addresses_are_shown_as_they_are(url):
    assert markdown.address(url) == url


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "https://a.b/)[x](y", "https://a.b/<script>", "https://a.b/|c", ""]
)
def test_what_is_no_address_is_text(url):
    assert markdown.address(url) == markdown.plain(url)


def test_a_hostile_dataset(coco_tree, tmp_path):
    tree = coco_tree(3)
    tree.categories = [{"id": c + 1, "name": text} for c, text in enumerate(HOSTILE)]
    document = json.loads(tree.save().read_text())
    document["licenses"] = [{"id": n, "name": text, "url": text} for n, text in enumerate(HOSTILE[:3], 1)]
    for n, image in enumerate(document["images"], 1):
        image["license"] = n
    tree.file.write_text(json.dumps(document))
    sources = {"vgd": {"builder": "coco", "task": "vgdseg", "root": str(tree.root)}}
    dataset = built(tmp_path / "out", sources, description="".join(HOSTILE))
    dataset_card.write(str(dataset))
    card = huggingface_hub.DatasetCard((dataset / "README.md").read_text())
    assert card.data.to_dict()["license_name"] == "see-licences-below"
    assert card.data.pretty_name == "small"
    tokens = MarkdownIt("commonmark").enable("table").parse(card.text)
    assert [t.content.strip() for t in tokens if t.type == "html_block"] == [card_text.MARK]
    inner = {child.type for t in tokens if t.children for child in t.children}
    assert inner <= {"text", "text_special", "code_inline", "softbreak"}
    heads = [tokens[n + 1].content for n, t in enumerate(tokens) if t.type == "heading_open"]
    assert heads == ["small", "Contents", "Visual prompts", "How to load", "How it was made", "Splits", "Licences",
                     "Known limits", "How to cite"]  # fmt: skip
    fences = [t for t in tokens if t.type == "fence"]
    assert [t.info for t in fences] == ["python", "python", "python", "yaml", "sh", "bibtex"]
    assert yaml.safe_load(fences[3].content)["description"] == "".join(HOSTILE)
    assert datasets.load_dataset(str(dataset), cache_dir=str(tmp_path / "cache"))["train"].num_rows == 3


def test_the_command(dataset):
    done = CliRunner().invoke(app, ["card", str(dataset), "--published", "2026-01-31"])
    assert done.exit_code == 0
    assert done.stdout.split() == [str(dataset / "README.md"), str(dataset / "croissant.json")]
    assert "--url, --creator" in done.stderr
    assert json.loads((dataset / "croissant.json").read_text())["datePublished"] == "2026-01-31"
    (dataset / "README.md").write_text("mine")
    done = CliRunner().invoke(app, ["card", str(dataset)])
    assert done.exit_code == 1
    assert "--force" in done.stderr
