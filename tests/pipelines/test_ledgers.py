"""Ledgers from sources, their way back to COCO and datasets, and the command line."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as pycoco
from pycocotools.coco import COCO
from typer.testing import CliRunner

from dataengine.errors import UserError
from dataengine.ledger.ledger import Ledger
from dataengine.ledger.records import Concept, Decision, Entry, Labeler, Picture, entry_id_of, mask_id_of
from dataengine.ledger.view import View
from dataengine.masks import encode
from dataengine.store import quarantine
from dataengine.store.dataset import open_dataset
from pipelines import build, recipe
from pipelines.cli import app
from pipelines.ledger_export import export
from pipelines.ledger_sources import Choice, create

ROBOT = Labeler(name="robot", revision="7")


def built(tmp_path, source: str) -> str:
    """A dataset of a source, given as YAML."""
    prompts = "prompts: {profile: published}\n" if "vgdseg" in source or "intseg" in source else ""
    path = tmp_path / "set.yaml"
    path.write_text(f"name: set\nsources:\n  {source}\n{prompts}budget: {{min_count: 100}}\n")
    build.run(recipe.load(str(path)), str(tmp_path / "set"), build.Settings())
    return str(tmp_path / "set")


def proposed(picture: Picture, x: int, concept: Concept, round: int = 1, **changes) -> Entry:
    """A robot's square of 3 x 3 px at x, 15."""
    raster = np.zeros((picture.height, picture.width), dtype=bool)
    raster[15:18, x : x + 3] = True
    rle = encode(raster)
    mask_id = mask_id_of(picture, concept, rle)
    facts = {
        "entry_id": entry_id_of(mask_id, round, ROBOT),
        "mask_id": mask_id,
        "picture": picture.key,
        "round": round,
        "origin": "model",
        "concept": concept,
        "rle": rle,
        "bbox": (float(x), 15.0, 3.0, 3.0),
        "area": 9,
        "labeler": ROBOT,
    }
    return Entry(**{**facts, **changes})


def masks_of(ledger: Ledger) -> set[tuple[str, int, bytes]]:
    return {(e.picture, e.concept.category_id, e.rle) for e in ledger.view().kept()}


# --- what a ledger begins with ---------------------------------------------------------------------------------------


def test_a_coco_folder_with_everything_accounted_for(coco_tree, tmp_path):
    """Five pictures: one missing, one with a broken annotation, one without any; a crowd."""
    tree = coco_tree(5)
    (tree.root / "train" / "1.jpg").unlink()
    tree.annotations[2]["segmentation"] = [[1, 2, 3]]  # annotation 20 of picture 2, category 3
    tree.annotations = [a for a in tree.annotations if a["image_id"] != 3]
    crowd = tree.annotations[-1]
    raster = np.asfortranarray(np.eye(24, 32, dtype=np.uint8))
    crowd |= {"iscrowd": 1, "segmentation": {"size": [24, 32], "counts": pycoco.encode(raster)["counts"].decode()}}
    tree.save()
    ledger = create([str(tree.root)], str(tmp_path / "ledger"), seed=7)
    assert ledger.seed == 7
    assert ledger.head.facts["records"] == {
        "read": {"images": 5, "annotations": 8},
        "built": {"images": 4, "annotations": 5},
        "quarantined": {"images": {"image_missing": 1}, "annotations": {"polygon_odd": 1}},
        "filtered": {"annotations": {"image_quarantined": 2}},
    }
    with ledger.folder.open(ledger.head.named("quarantine")[0].name) as file:
        assert [row["reason"] for row in quarantine.read(file)] == ["image_missing", "polygon_odd"]
    pictures = {p.key: p for p in ledger.pictures()}
    assert list(pictures) == [f"coco/{n:012d}" for n in (2, 3, 4, 5)]
    assert [p.exhaustive for p in pictures.values()] == [(1, 2), (), (1, 2, 3), (1, 2, 3)]
    fifth = pictures["coco/000000000005"]
    data = (tree.root / "train" / "5.jpg").read_bytes()
    assert fifth == Picture(
        key="coco/000000000005",
        path=str(tree.root / "train" / "5.jpg"),
        sha256=hashlib.sha256(data).hexdigest(),
        height=24,
        width=32,
        exhaustive=(1, 2, 3),
    )
    one, two = ledger.view().entries(fifth.key)
    assert (one.concept, one.origin, one.annotation_id) == (Concept(text="kind 3", category_id=3), "human", "50")
    expected = pycoco.frPyObjects(tree.annotations[-2]["segmentation"], 24, 32)[0]
    assert (one.rle, one.area, one.crowd) == (expected["counts"], int(pycoco.area(expected)), False)
    assert (two.crowd, two.area, two.bbox) == (True, 24, (0.0, 0.0, 24.0, 24.0))
    assert ledger.verify() == []


@pytest.mark.parametrize(("exhaustive", "expected"), [("all", [(1, 2, 3)] * 2), ("none", [()] * 2)])
def test_which_pictures_are_annotated_throughout_is_said(coco_tree, tmp_path, exhaustive, expected):
    tree = coco_tree(2)
    tree.annotations = tree.annotations[:2]
    tree.save()
    ledger = create([str(tree.root)], str(tmp_path / "ledger"), Choice(exhaustive=exhaustive))
    assert [p.exhaustive for p in ledger.pictures()] == expected


def test_what_images_say_of_categories_is_known(coco_tree, tmp_path):
    tree = coco_tree(3)
    tree.images[0] |= {"neg_category_ids": [1], "not_exhaustive_category_ids": [2]}
    tree.images[1] |= {"neg_category_ids": [], "not_exhaustive_category_ids": [9]}
    tree.save()
    ledger = create([str(tree.root)], str(tmp_path / "a"))
    assert [(p.exhaustive, p.absent) for p in ledger.pictures()] == [((3,), (1,)), ((1, 2, 3), ())]
    assert ledger.steps[0].facts["records"]["quarantined"] == {"images": {"bad_field": 1}}
    ledger = create([str(tree.root)], str(tmp_path / "b"), Choice(exhaustive="all"))
    assert [(p.exhaustive, p.absent) for p in ledger.pictures()] == [((1, 2, 3), ())] * 2


@pytest.mark.parametrize("images", ["embed", "reference"])
def test_a_dataset_gives_the_same_masks_as_its_source(coco_tree, tmp_path, images):
    tree = coco_tree(4)
    source = f"coco: {{builder: coco, task: vgdseg, root: {tree.root}, options: {{images: {images}}}}}"
    out = built(tmp_path, source + f"\n  two: {{builder: coco, task: intseg, root: {tree.root}}}")
    ledger, direct = create([out], str(tmp_path / "a")), create([str(tree.root)], str(tmp_path / "b"))
    assert masks_of(ledger) == masks_of(direct)
    assert {e.entry_id for e in ledger.view().kept()} == {e.entry_id for e in direct.view().kept()}
    assert [(p.key, p.sha256) for p in ledger.pictures()] == [(p.key, p.sha256) for p in direct.pictures()]
    assert [p.exhaustive for p in ledger.pictures()] == [(2, 3), (1, 3), (1, 2), (2, 3)]  # what was asked for
    assert ledger.head.facts["records"]["read"] == {"samples": 8, "objects": 16}
    for picture in ledger.pictures():
        assert hashlib.sha256(Path(picture.path).read_bytes()).hexdigest() == picture.sha256


def test_categories_that_a_dataset_asks_for_in_vain_are_absent(coco_tree, tmp_path):
    tree = coco_tree(2)
    options = "{variants: [instance], categories: all}"
    out = built(tmp_path, f"coco: {{builder: coco, task: genseg, root: {tree.root}, options: {options}}}")
    ledger = create([out], str(tmp_path / "a"))
    assert [(p.exhaustive, p.absent) for p in ledger.pictures()] == [((2, 3), (1,)), ((1, 3), (2,))]


def test_phrases_are_concepts_and_stay_out_of_coco(tmp_path):
    from pipelines.world_published import write_published

    write_published(tmp_path / "world", 6, layouts=("refer",))
    source = f"r: {{builder: refcoco, task: refseg, root: {tmp_path}/world/refer, options: {{dataset: refcoco}}}}"
    out = built(tmp_path, source)
    ledger = create([out], str(tmp_path / "ledger"))
    expected = {
        (sample.image_key, condition.text, sample.objects[index].rle)
        for sample in open_dataset(out).samples()
        for condition in sample.conditions
        for index in condition.objects
    }
    assert expected
    found = list(ledger.view().kept())
    assert {(e.picture, e.concept.text, e.rle) for e in found} == expected
    assert {e.concept.category_id for e in found} == {-1}
    done = export(ledger.view(), str(tmp_path / "coco"))
    assert (done.annotations, done.left_out) == (0, {"phrase": len(found)})


def test_pictures_alone_and_several_sources(coco_tree, make_jpeg, tmp_path):
    tree = coco_tree(2)
    more = tmp_path / "more"
    (more / "inner").mkdir(parents=True)
    (more / "000000000002.jpg").write_bytes((tree.root / "train" / "2.jpg").read_bytes())  # of the tree, too
    (more / "7.jpg").write_bytes(make_jpeg(seed=70))
    (more / "inner" / "beach.JPEG").write_bytes(make_jpeg(height=10, width=12))
    (more / "broken.png").write_bytes(b"nothing")
    (more / "notes.txt").write_text("no picture")
    choice = Choice(namespace="coco", categories=("zebra", "kind-1"))
    ledger = create([str(tree.root), str(more)], str(tmp_path / "ledger"), choice)
    pictures = {p.key: p for p in ledger.pictures()}
    assert list(pictures) == ["coco/000000000001", "coco/000000000002", "coco/000000000007", "coco/inner/beach"]
    assert [p.exhaustive for p in pictures.values()] == [(1, 2, 3), (1, 2, 3), (), ()]
    beach = pictures["coco/inner/beach"]
    assert (beach.height, beach.width, beach.path) == (10, 12, str(more / "inner" / "beach.JPEG"))
    assert [(c.id, c.name) for c in ledger.categories] == [(1, "kind-1"), (2, "kind-2"), (3, "kind-3"), (4, "zebra")]
    assert ledger.head.facts["records"]["filtered"] == {"images": {"known_already": 1}}
    assert ledger.head.facts["records"]["quarantined"] == {"images": {"image_unreadable": 1}}


def test_other_pictures_of_the_same_key_are_quarantined(make_jpeg, tmp_path):
    """a.jpg and a.png, 1.png and 0001.png: the same key, but not the same picture; b.jpg is there twice."""
    pool, more = tmp_path / "pool", tmp_path / "more" / "pool"
    for folder in (pool, more):
        folder.mkdir(parents=True)
    for seed, name in enumerate(("a.jpg", "a.png", "1.png", "0001.png")):
        (pool / name).write_bytes(make_jpeg(seed=seed))
    for folder in (pool, more):
        (folder / "b.jpg").write_bytes(make_jpeg(seed=9))
    ledger = create([str(pool), str(more)], str(tmp_path / "ledger"))
    assert [(p.key, Path(p.path).name) for p in ledger.pictures()] == [
        ("pool/000000000001", "0001.png"),
        ("pool/a", "a.jpg"),
        ("pool/b", "b.jpg"),
    ]
    records = ledger.head.facts["records"]
    assert records["quarantined"] == {"images": {"key_taken": 2}}
    assert records["filtered"] == {"images": {"known_already": 1}}
    with ledger.folder.open(ledger.head.named("quarantine")[0].name) as file:
        told = {row["record"]: row["message"] for row in quarantine.read(file)}
    for name, other in (("1.png", "0001.png"), ("a.png", "a.jpg")):
        assert str(pool / name) in told[name]
        assert str(pool / other) in told[name]


def test_a_table_of_categories_keeps_its_ids(coco_tree, make_jpeg, tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "7.jpg").write_bytes(make_jpeg(seed=7))
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"categories": [{"id": 90, "name": "tooth_brush"}, {"id": 2, "name": "kind-2"}]}))
    run = ["ledger", "init", str(tmp_path / "plain"), "--categories", str(table), "--category", "zebra"]
    done = CliRunner().invoke(app, [*run, "--out", str(tmp_path / "ledger")])
    assert done.exit_code == 0, done.output
    found = [(c.id, c.name, c.text) for c in Ledger.open(str(tmp_path / "ledger")).categories]
    assert found == [(2, "kind-2", "kind 2"), (90, "tooth_brush", "tooth_brush"), (91, "zebra", "zebra")]
    other = (Concept(text="whale", category_id=1),)
    with pytest.raises(UserError, match="category 1 is 'kind 1', in another source it is 'whale'"):
        create([str(coco_tree(2).root)], str(tmp_path / "other"), Choice(table=other))


def test_sources_that_cannot_be_used_are_named(coco_tree, tmp_path):
    tree, other = coco_tree(2), coco_tree(2)
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        create([str(tmp_path / "nowhere")], str(tmp_path / "l"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither a dataset .*, nor a COCO folder .*, nor a folder of pictures"):
        create([str(tmp_path / "empty")], str(tmp_path / "l"))
    with pytest.raises(UserError, match=r"instances_test\.json is missing; there are train"):
        create([str(tree.root)], str(tmp_path / "l"), Choice(split="test"))
    other.categories[0] = {"id": 1, "name": "whale"}
    other.save()
    with pytest.raises(UserError, match="category 1 is 'whale', in another source it is 'kind 1'"):
        create([str(tree.root), str(other.root)], str(tmp_path / "l"))
    other.categories[0] = {"id": 1, "name": "kind-1"}
    other.save()
    (other.root / "train" / "1.jpg").write_bytes((other.root / "train" / "2.jpg").read_bytes())
    with pytest.raises(UserError, match="picture coco/000000000001 is another file at"):
        create([str(tree.root), str(other.root)], str(tmp_path / "l"))
    assert not (tmp_path / "l" / "ledger.json").exists()


def test_published_annotations_are_the_masks_that_pycocotools_draws(fixtures, tmp_path):
    root = fixtures / "coco"
    (file,) = sorted((root / "annotations").glob("instances_*.json"))[:1]
    split = file.stem.removeprefix("instances_")
    ledger = create([str(root)], str(tmp_path / "ledger"), Choice(split=split))
    truth = COCO(str(file))
    found = {entry.annotation_id: entry for entry in ledger.view().kept()}
    assert len(found) == ledger.head.facts["records"]["built"]["annotations"] > 100
    for number, entry in found.items():
        annotation = truth.anns[int(number)]
        rle = truth.annToRLE(annotation)
        assert (entry.rle, entry.concept.category_id) == (rle["counts"], annotation["category_id"])
        assert (entry.area, entry.crowd) == (int(pycoco.area(rle)), bool(annotation["iscrowd"]))


@pytest.mark.parametrize("point", ["linked:kill:1", "linked:kill:4", "entries:kill", "step:kill"])
def test_a_beginning_that_is_killed_is_begun_again(coco_tree, tmp_path, monkeypatch, point):
    out = built(
        tmp_path, f"coco: {{builder: coco, task: intseg, root: {coco_tree(3).root}, options: {{images: embed}}}}"
    )
    whole, ledger = tmp_path / "whole", tmp_path / "ledger"
    create([out], str(whole))
    monkeypatch.setenv("DATAENGINE_FAULT", point)
    child = os.fork()
    if child == 0:
        try:
            create([out], str(ledger))
        finally:
            os._exit(0)
    monkeypatch.delenv("DATAENGINE_FAULT")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert "no ledger" in run("show", str(ledger), code=1)
    create([out], str(ledger))
    files = {p.relative_to(whole): p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    assert {p.relative_to(ledger): p.read_bytes() for p in ledger.rglob("*") if p.is_file()} == files
    assert len([name for name in files if name.parts[0] == "pictures"]) == 3


# --- back to COCO ----------------------------------------------------------------------------------------------------


@pytest.fixture
def relabeled(coco_tree, tmp_path) -> Ledger:
    """Two pictures with two human masks each; the robot proposed four, and a reviewer decided on two of them."""
    ledger = create([str(coco_tree(2).root)], str(tmp_path / "ledger"))
    one, two = ledger.pictures()
    good = proposed(one, 0, ledger.concept(1), score=0.75, stability=0.5)
    grey = proposed(one, 10, ledger.concept(2), state="review")
    poor = proposed(two, 0, ledger.concept(1), state="rejected", reason="confidence")
    phrase = proposed(two, 10, Concept(text="the left one"))
    ledger.append("relabel", 1, [good, grey, poor, phrase])
    said = [("accept", "kept", grey), ("reject", "rejected", good)]
    decisions = [Decision(entry_id=e.entry_id, state=s, by="reviewer:ann", action=a) for a, s, e in said]  # type: ignore
    ledger.append("review", 1, [], decisions)
    return ledger


def test_export_is_coco_with_lineage(relabeled, tmp_path):
    done = export(relabeled.view(1), str(tmp_path / "out"), pictures="copy")
    assert (done.pictures, done.annotations, done.left_out) == (2, 5, {"phrase": 1})
    data = json.loads(done.file.read_text())
    assert data["info"] == {"image_namespace": "coco"}
    assert [(c["id"], c["name"]) for c in data["categories"]] == [(1, "kind-1"), (2, "kind-2"), (3, "kind-3")]
    assert [(i["id"], i["file_name"], i["image_key"]) for i in data["images"]] == [
        (1, "000000000001.jpg", "coco/000000000001"),
        (2, "000000000002.jpg", "coco/000000000002"),
    ]
    assert [a["id"] for a in data["annotations"]] == [1, 2, 3, 4, 5]
    robots = [a for a in data["annotations"] if a["lineage"]["origin"] == "model"]
    (good,) = [e for e in relabeled.view(1).kept() if e.score == 0.75]
    assert robots == [
        {
            "id": 3,
            "image_id": 1,
            "category_id": 1,
            "bbox": [0.0, 15.0, 3.0, 3.0],
            "area": 9,
            "iscrowd": 0,
            "segmentation": {"size": [24, 32], "counts": good.rle.decode()},
            "lineage": {
                "entry_id": good.entry_id,
                "annotation_id": "",
                "origin": "model",
                "labeler": "robot",
                "revision": "7",
                "round": 1,
                "score": 0.75,
                "stability": 0.5,
                "reviewer": None,
            },
        }
    ]
    later = json.loads(export(relabeled.view(), str(tmp_path / "out")).file.read_text())["annotations"]
    assert [(a["category_id"], a["lineage"]["reviewer"]) for a in later if a["lineage"]["round"]] == [
        (2, "reviewer:ann")
    ]
    truth = COCO(str(done.file))
    for annotation in truth.anns.values():
        assert int(pycoco.area(truth.annToRLE(annotation))) == annotation["area"]


def test_what_is_known_of_categories_is_exported(relabeled, tmp_path):
    """Pictures 1 and 2 have masks of people of kinds 2, 3 and 1, 3; in none all masks of a kind are drawn, at first."""

    def known(name: str, ledger: Ledger, **choice: bool) -> list[tuple[list[int], list[int]]]:
        images = json.loads(export(ledger.view(), str(tmp_path / name), **choice).file.read_text())["images"]
        return [(one["neg_category_ids"], one["not_exhaustive_category_ids"]) for one in images]

    whole = [([1], []), ([2], [])]
    assert known("whole", relabeled) == whole == known("searched", relabeled, searched=True)
    pictures = [replace(one, exhaustive=(), absent=(3,)) for one in relabeled.pictures()][:1]
    pictures += [replace(one, exhaustive=()) for one in relabeled.pictures()][1:]
    ledger = Ledger.create(str(tmp_path / "open"), pictures, relabeled.categories, [])
    one, two = ledger.pictures()
    found = [proposed(one, 0, ledger.concept(1)), proposed(one, 10, ledger.concept(2))]
    found += [proposed(one, 20, ledger.concept(2), state="review"), proposed(two, 0, ledger.concept(1))]
    robot = {"labeler": {"name": "robot"}}
    ledger.append("relabel", 1, found, facts={**robot, "searched": [1, 2, 3], "unlabelled": [two.key]})
    assert known("open", ledger) == [([3], [1, 2]), ([], [1])]
    assert known("asked", ledger, searched=True) == [([3], [2]), ([], [1])]
    again = [proposed(one, 0, ledger.concept(1), round=2, supersedes=found[0].entry_id)]
    ledger.append("relabel", 2, again, facts={**robot, "searched": [1, 3], "unlabelled": []})
    assert known("later", ledger, searched=True) == [([3], [2]), ([1, 3], [])]  # what it saw in the second is gone
    assert known("people", ledger, searched=True, people=True) == [([3], []), ([1, 3], [])]
    grey = next(iter(ledger.view().grey()))
    no = Decision(entry_id=grey.entry_id, state="rejected", by="reviewer:ann", action="reject")
    ledger.append("review", 2, [], [no])
    assert known("decided", ledger, searched=True) == [([3], []), ([1, 3], [])]


def test_words_on_masks_open_categories(relabeled, tmp_path):
    """Of what was searched: in question, called otherwise, refused; what people said stands."""

    first = next(iter(relabeled.pictures()))

    def known(entries, decisions=(), **fields) -> tuple[list[int], list[int]]:
        number = len(list(tmp_path.iterdir()))
        picture = replace(first, **{"exhaustive": (), "absent": (), **fields})
        people = [one for one in entries if one.origin == "human"]
        ledger = Ledger.create(str(tmp_path / f"l{number}"), [picture], relabeled.categories, people)
        facts = {"labeler": {"name": "robot"}, "searched": [1, 2], "unlabelled": []}
        for round in (1, 2):
            if mine := [one for one in entries if one.origin == "model" and one.round == round]:
                ledger.append("relabel", round, mine, facts=facts)
        ledger.append("review", 1, [], decisions)
        out = str(tmp_path / f"e{number}")
        (image,) = json.loads(export(ledger.view(), out, searched=True).file.read_text())["images"]
        return image["neg_category_ids"], image["not_exhaustive_category_ids"]

    dog, cat = relabeled.concept(1), relabeled.concept(2)
    mask_id = proposed(first, 0, dog).mask_id
    by_hand = {"entry_id": entry_id_of(mask_id, 0, None), "origin": "human", "labeler": None}
    drawn = proposed(first, 0, dog, 0, **by_hand)
    other = proposed(first, 1, dog, state="review", relation="conflict", relative=drawn.entry_id)
    grey = proposed(first, 20, dog, state="review")
    assert known([drawn, other]) == ([2], [])  # another version of what is annotated
    assert known([drawn, grey]) == ([2], [1])
    assert known([grey], exhaustive=(1,)) == ([1, 2], [])
    assert known([grey], absent=(1,)) == ([1, 2], [])
    model = proposed(first, 0, dog)
    called = proposed(first, 0, cat, 2, state="review", relation="conflict", relative=model.entry_id)
    assert known([model, called]) == ([], [])  # a dog or a cat
    no = {"state": "rejected", "by": "reviewer:ann", "action": "reject"}
    assert known([model], [Decision(entry_id=model.entry_id, **no)]) == ([2], [])
    assert known([drawn], [Decision(entry_id=drawn.entry_id, **no)], exhaustive=(1, 3)) == ([3], [])
    refused = [Decision(entry_id=grey.entry_id, **no)]
    assert known([drawn, grey], refused) == ([2], [])
    assert known([grey], refused, exhaustive=(1, 3)) == ([1, 2, 3], [])


def test_what_a_later_round_does_not_find_again_is_not_current(relabeled, tmp_path):
    ledger = Ledger.create(str(tmp_path / "open"), relabeled.pictures(), relabeled.categories, [])
    one, two = ledger.pictures()
    kind, other = ledger.concept(1), ledger.concept(2)
    lost, weaker, accepted, elsewhere = (proposed(one, x, c) for x, c in ((0, kind), (4, kind), (8, kind), (12, other)))
    unseen, renewed = proposed(two, 0, kind), proposed(one, 16, kind)
    facts = {"labeler": {"name": "robot"}, "searched": [1, 2], "unlabelled": []}
    ledger.append("relabel", 1, [lost, weaker, accepted, elsewhere, unseen, renewed], facts=facts)
    yes = Decision(entry_id=accepted.entry_id, state="kept", by="reviewer:ann", action="accept")
    ledger.append("review", 1, [], [yes])

    def current(view: View) -> set[str]:
        of = view.current()
        return {s.entry.entry_id for p, found in view.walk() for s in of(p.key, found) if s.entry.state == "kept"}

    before = {e.entry_id for e in (lost, weaker, accepted, elsewhere, unseen, renewed)}
    assert current(ledger.view()) == before
    poor = {"state": "rejected", "reason": "earlier", "relation": "duplicate", "relative": weaker.entry_id}
    newest = proposed(one, 15, kind, round=2, supersedes=renewed.entry_id)
    found = [proposed(one, 5, kind, round=2, **poor), newest]
    ledger.append("relabel", 2, found, facts={**facts, "searched": [1], "unlabelled": [two.key]})
    view = ledger.view()
    assert current(view) == before - {lost.entry_id, renewed.entry_id} | {newest.entry_id}
    assert {e.entry_id for e in view.kept()} == current(view) | {lost.entry_id}  # the ledger keeps it
    ledger.append("relabel", 3, [], facts={**facts, "labeler": {"name": "other"}})
    assert current(ledger.view()) == current(view)
    done = export(view, str(tmp_path / "out"), searched=True)
    assert (done.annotations, done.left_out) == (5, {"not_found_again": 1})
    ledger.append("relabel", 4, [], facts=facts)
    assert current(ledger.view()) == {accepted.entry_id}


def test_masks_of_people_are_those_they_drew_or_accepted(relabeled, tmp_path):
    done = export(relabeled.view(), str(tmp_path / "out"), people=True)
    made = json.loads(done.file.read_text())["annotations"]
    assert [(one["lineage"]["origin"], one["lineage"]["reviewer"]) for one in made] == [
        *[("human", None)] * 2,
        ("model", "reviewer:ann"),
        *[("human", None)] * 2,
    ]
    assert done.left_out == {"not_by_people": 1}  # the phrase


def test_pictures_keep_their_numbers_where_most_have_one(tmp_path):
    keys = ["ade/000000000009", "aerial", "coco/000000000139", "coco/000000000785", "zoo/3"]
    pictures = [Picture(key=key, path="/x.PNG", sha256="0" * 64, height=4, width=4) for key in keys]
    ledger = Ledger.create(str(tmp_path / "ledger"), pictures, [], [])
    data = json.loads(export(ledger.view(), str(tmp_path / "out"), pictures="none").file.read_text())
    assert data["info"] == {"image_namespace": "coco"}
    numbers = {image["image_key"]: image["id"] for image in data["images"]}
    assert (numbers["coco/000000000139"], numbers["coco/000000000785"]) == (139, 785)
    assert len(set(numbers.values())) == 5
    assert min(numbers[key] for key in ("ade/000000000009", "aerial", "zoo/3")) > 10**12
    assert [i["file_name"] for i in data["images"] if i["id"] == 139] == ["000000000139.png"]


def test_rollback_restores_the_exact_bytes(relabeled, tmp_path):
    before = export(relabeled.view(0), str(tmp_path / "a")).file.read_bytes()
    after = export(relabeled.view(), str(tmp_path / "b")).file.read_bytes()
    assert before != after
    relabeled.rollback(0)
    assert export(Ledger.open(relabeled.folder).view(), str(tmp_path / "c")).file.read_bytes() == before
    relabeled.rollback(2)
    assert export(Ledger.open(relabeled.folder).view(), str(tmp_path / "c")).file.read_bytes() == after


def test_an_export_is_built_into_a_dataset_of_the_same_masks(relabeled, tmp_path):
    export(relabeled.view(), str(tmp_path / "coco"))
    out = built(tmp_path, f"coco: {{builder: coco, task: vgdseg, root: {tmp_path}/coco}}")
    samples = list(open_dataset(out).samples())
    found = {(s.image_key, o.category_id, o.rle) for s in samples for o in s.objects}
    assert found == {one for one in masks_of(relabeled) if one[1] != -1}
    assert masks_of(create([str(tmp_path / "coco")], str(tmp_path / "again"))) == found


def test_a_picture_that_is_bad_as_a_whole_is_left_out(relabeled, tmp_path):
    entry = next(relabeled.view().kept())
    bad = Decision(entry_id=entry.entry_id, state="rejected", by="reviewer:ann", action="whole_image_bad")
    relabeled.append("review", 1, [], [bad])
    done = export(relabeled.view(), str(tmp_path / "coco"))
    assert (done.pictures, done.annotations, done.left_out) == (1, 2, {"whole_image_bad": 1, "phrase": 1})
    assert [p.name for p in (tmp_path / "coco" / "images" / "train").iterdir()] == ["000000000002.jpg"]


def test_pictures_that_are_gone_or_others_are_told(relabeled, tmp_path):
    path = Path(relabeled.picture("coco/000000000002").path)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"picture coco/000000000002: .*2\.jpg is another file than when"):
        export(relabeled.view(), str(tmp_path / "out"), pictures="copy")
    path.unlink()
    for how in ("copy", "link"):
        with pytest.raises(UserError, match=r"picture coco/000000000002: .*2\.jpg is gone"):
            export(relabeled.view(), str(tmp_path / "out"), pictures=how)
    assert not list((tmp_path / "out" / "annotations").iterdir())
    assert export(relabeled.view(), str(tmp_path / "out"), pictures="none").pictures == 2
    with pytest.raises(UserError, match="is written to a local disk"):
        export(relabeled.view(), "s3://bucket/out")


# --- the command line ------------------------------------------------------------------------------------------------


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["ledger", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def test_the_commands(coco_tree, tmp_path):
    root, folder = str(coco_tree(2).root), str(tmp_path / "ledger")
    assert "kept human: 4" in run("init", root, "--out", folder)
    assert "images: 2 read = 2 taken" in run("init", root, "--out", f"{folder}2")
    assert "there is a ledger already" in run("init", root, "--out", folder, code=1)
    ledger = Ledger.open(folder)
    one = next(ledger.pictures())
    new = proposed(one, 10, ledger.concept(2), state="review", reason="stability", score=0.5)
    poor = proposed(one, 20, ledger.concept(2), state="rejected", reason="confidence")
    ledger.append("relabel", 1, [new, poor])
    said = Decision(entry_id=new.entry_id, state="kept", by="reviewer:ann", action="accept", seconds=2.0)
    ledger.append("review", 1, [], [said])

    shown = run("show", folder)
    assert "step 2 of 2, round 1, 2 pictures, 2 with masks that are kept" in shown
    assert "kept model: 1" in shown
    assert "rejected by confidence 1" in shown
    data = json.loads(run("show", folder, "--json", "--step", "1"))
    assert data["masks"] == {"kept human": 4, "rejected model": 1, "review model": 1}
    assert data["concepts"]["kind 2"] == {"kept": 1, "rejected": 1, "review": 1}
    assert [step["is_undone"] for step in data["steps"]] == [False, False, True]

    lines = [line.split() for line in run("diff", folder, "0").splitlines()]
    assert lines == [["concept", "added", "rejected"], ["kind", "2", "1", "1"], ["all", "1", "1"]]
    assert json.loads(run("diff", folder, "1", "2", "--json")) == {"kind 2": {"changed": 1}}
    assert f"changed  {new.entry_id}  {one.key}  kind 2  review → kept  accept" in run("diff", folder, "1", "--entries")
    assert run("diff", folder, "1", "1") == "nothing changed\n"

    story = run("blame", folder, new.entry_id[:10]).splitlines()
    assert story == [
        f"{one.key}: kind 2, 9 px at 10, 15, 3, 3: kept",
        f"  step 1, round 1: {new.entry_id} by robot 7: review; score 0.5; reason: stability",
        f"  step 2, round 1: reviewer:ann: accept, now kept, of {new.entry_id}; 2 s",
    ]
    assert run("blame", folder, one.key).count("\n\n") == 3
    assert "there is no picture and no entry 'nobody'" in run("blame", folder, "nobody", code=1)

    run("export", folder, "--out", str(tmp_path / "a"), "--step", "0")
    assert "step 3 goes back to step 0" in run("rollback", folder, "0", "--reason", "too many")
    assert "2 pictures, 4 annotations" in run("export", folder, "--out", str(tmp_path / "b"), "--split", "round0")
    exported = [tmp_path / "a/annotations/instances_train.json", tmp_path / "b/annotations/instances_round0.json"]
    first, second = [json.loads(path.read_text()) for path in exported]
    assert first == second
    assert exported[0].read_bytes() == exported[1].read_bytes()
    assert "there is no step 9; the newest is 3" in run("rollback", folder, "9", code=1)

    assert "4 steps, all good" in run("verify", folder)
    (tmp_path / "ledger" / "entries" / "000001" / "00000.parquet").write_bytes(b"")
    assert "entries/000001/00000.parquet is damaged or was changed" in run("verify", folder, code=1)
    assert "entries/000001/00000.parquet is damaged" in run("show", folder, "--step", "2", code=1)
    run("show", folder, "--step", "0")
    for wrong in (
        ["init", root, "--out", "x", "--exhaustive", "some"],
        ["export", folder, "--out", "x", "--pictures", "all"],
    ):
        run(*wrong, code=2)


def test_foreign_text_does_not_steer_a_terminal(relabeled, tmp_path):
    """What a labeler says, in the words of every command; JSON stays JSON of the same text."""
    folder = str(relabeled.folder.path)
    one = next(relabeled.pictures())
    text = "\x1b]0;pwned\x07 \x9b31m owl"
    said = Labeler(name="\x1b[2Jrobot", revision="\x07")
    made = proposed(one, 20, Concept(text=text))
    made = replace(made, entry_id=entry_id_of(made.mask_id, 2, said), round=2, labeler=said, reason="\x1b[1m")
    relabeled.append("relabel", 2, [made])
    (relabeled.folder.path / "entries" / "stray\x1b[1m").write_bytes(b"")
    shown = [
        run("show", folder),
        run("diff", folder, "2"),
        run("diff", folder, "2", "--entries"),
        run("blame", folder, made.entry_id),
        run("blame", folder, one.key),
        run("verify", folder, code=1),
        run("show", folder, "--json"),
        run("diff", folder, "2", "--json"),
    ]
    for output in shown:
        assert not {c for c in output if not c.isprintable()} - {"\n"}, output
    assert r"\x1b]0;pwned\x07 \x9b31m owl" in shown[1]
    assert text in json.loads(shown[-1]).popitem()[0]
