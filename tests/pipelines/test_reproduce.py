"""`reproduce`: one sample built again is the stored one, or what differs is named."""

import json
import shutil
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from dataengine.builder import SourceError
from dataengine.errors import UserError
from dataengine.sample import HUMAN
from dataengine.store.commits import DatasetError
from dataengine.store.dataset import open_dataset
from pipelines import build, recipe
from pipelines.build import Settings
from pipelines.cli import app
from pipelines.replay import replay
from pipelines.reproduce import Difference, differences, reproduce, text


@pytest.fixture
def tree(coco_tree):
    return coco_tree(7)


def built(tmp_path, tree, name="out", *, settings=None, **changes) -> str:
    """COCO-VGD and instances to segment, in shards of three pictures."""
    coco = {"builder": "coco", "root": None if tree is None else str(tree.root)}
    values = {
        "name": "two",
        "sources": {
            "vgd": {**coco, "task": "vgdseg"},
            "things": {**coco, "task": "genseg", "options": {"variants": ["instance"]}},
        },
        "prompts": {"profile": "strict"},
        "shard": {"images": 3},
        **changes,
    }
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps(values))
    build.run(recipe.load(str(file)), str(tmp_path / name), settings or Settings(engine="local"))
    return str(tmp_path / name)


def test_every_sample_is_built_again_as_it_is(tmp_path, tree):
    out = built(tmp_path, tree)
    samples = list(open_dataset(out).samples())
    assert len(samples) == 14
    for sample in samples[::4]:
        found = reproduce(out, sample.sample_id)
        assert found.is_identical
        assert (found.stored, found.built, found.changed) == (sample, sample, None)


def test_seed_and_limit_are_those_of_the_build(tmp_path, tree):
    out = built(tmp_path, tree, settings=Settings(engine="local", seed=77, limit=2))
    for sample in open_dataset(out).samples():
        found = reproduce(out, sample.sample_id)
        assert (found.is_identical, found.changed) == (True, None)


def test_variants_show_the_same_objects_of_other_pictures(tmp_path, tree):
    coco = {"builder": "coco", "task": "vgdseg", "root": str(tree.root)}
    out = built(tmp_path, tree, sources={"coco": coco}, variants={"cross_image": True, "negatives": 1, "shots": 2})
    samples = list(open_dataset(out).samples())
    shown = [sample for sample in samples if sample.references]
    assert {sample.variant for sample in shown} == {"cross_image", "negatives", "k_shot"}
    for sample in shown[::5]:
        assert text(reproduce(out, sample.sample_id)) == f"identical: {sample.sample_id}"


def test_a_held_out_picture_stays_out_of_reach(tmp_path, coco_tree):
    """Variants of training samples show no held-out picture, and reproducing one keeps to that."""
    train, val = coco_tree(5), coco_tree(5, split="val")
    shutil.copytree(val.root, train.root, dirs_exist_ok=True)
    val.images, val.annotations = val.images[3:], val.annotations[6:]
    (train.root / "annotations" / "instances_val.json").write_text(val.save().read_text())
    coco = {"builder": "coco", "task": "vgdseg", "root": str(train.root), "splits": ["train"]}
    out = built(tmp_path, train, sources={"coco": coco}, variants={"cross_image": True}, forbid=["coco/val"])
    assert open_dataset(out).manifest["forbidden"]["roles"] == {"coco/val": 2}
    samples = list(open_dataset(out).samples())
    assert {sample.image_key for sample in samples} == {f"coco/{n:012d}" for n in (1, 2, 3)}
    for sample in samples:
        found = reproduce(out, sample.sample_id)
        assert (found.is_identical, found.changed) == (True, None)


def test_a_source_that_changed(tmp_path, tree):
    out = built(tmp_path, tree)
    tree.annotations[4]["segmentation"] = [[2, 2, 12, 2, 12, 10, 2, 10]]  # of picture 3, the first object
    tree.annotations.pop(9)  # of picture 5, the second
    tree.save()
    first, third, fifth = (f"things/train/coco/{n:012d}/genseg/instance" for n in (1, 3, 5))
    found = reproduce(out, first)
    assert found.is_identical
    assert "sources.things/train.in" in str(found.changed)
    found = reproduce(out, third)
    assert not found.is_identical
    fields = {difference.field: difference for difference in found.differences}
    assert list(fields) == ["objects[0].rle", "objects[0].bbox", "objects[0].area"]
    assert fields["objects[0].area"].now == "80"
    fields = {difference.field: difference for difference in reproduce(out, fifth).differences}
    assert (fields["objects"].before, fields["objects"].now) == ("2 of them", "1")


def test_rows_that_moved_are_found_by_their_picture(tmp_path, tree, make_jpeg):
    out = built(tmp_path, tree)
    tree.images.insert(0, {"id": 0, "file_name": "0.jpg", "height": 24, "width": 32})
    tree.annotations.insert(0, tree.annotations[0] | {"id": 5, "image_id": 0})
    (tree.root / "train" / "0.jpg").write_bytes(make_jpeg())
    tree.save()
    for name in ("vgd/train/coco/000000000003/vgdseg", "vgd/train/coco/000000000004/vgdseg"):
        found = reproduce(out, name)
        assert found.is_identical
        assert found.changed is not None


def test_a_sample_that_is_not_built_any_more(tmp_path, tree):
    out = built(tmp_path, tree)
    name = "vgd/train/coco/000000000003/vgdseg"
    (tree.root / "train" / "3.jpg").unlink()
    found = reproduce(out, name)
    assert found.built is None
    assert "quarantined (image_missing): image 3" in text(found)
    (tree.root / "train" / "3.jpg").write_bytes((tree.root / "train" / "4.jpg").read_bytes())
    tree.annotations = [a for a in tree.annotations if a["image_id"] != 3]
    tree.save()
    assert "filtered (no_target): 1 images" in text(reproduce(out, name))
    tree.images = [image for image in tree.images if image["id"] != 3]
    tree.save()
    assert "its source has no such record any more" in text(reproduce(out, name))


def test_text_without_a_picture(tmp_path):
    """Its rows have no picture to be found by: they are looked for where they were, and then elsewhere."""
    file = tmp_path / "llava" / "talk.json"
    file.parent.mkdir()
    rows = [
        {"id": f"t{n}", "conversations": [{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": f"{n}!"}]}
        for n in range(8)
    ]
    file.write_text(json.dumps(rows))
    talk = {"builder": "llava", "task": "chat", "files": {"annotations": str(file), "images": str(file.parent)}}
    out = built(tmp_path, None, sources={"talk": talk}, prompts=None)
    samples = list(open_dataset(out).samples())
    assert [sample.image for sample in samples] == [None] * 8
    for sample in samples[::3]:
        found = reproduce(out, sample.sample_id)
        assert (found.is_identical, found.changed) == (True, None)
    rows[4]["conversations"][1]["value"] = "four"
    file.write_text(json.dumps(rows))
    (difference,) = reproduce(out, samples[4].sample_id).differences
    assert str(difference) == 'turns[1].text: was "4!", is "four"'


def test_a_replayed_sample(tmp_path, tree):
    """Its dataset was built of some pictures only; those that were not refused did not change what goes into it."""
    picture = tree.root / "train" / "3.jpg"
    data = picture.read_bytes()
    picture.unlink()
    out = built(tmp_path, tree)
    picture.write_bytes(data)
    replay(out, out=str(tmp_path / "patch"))
    for sample in open_dataset(str(tmp_path / "patch")).samples():
        found = reproduce(str(tmp_path / "patch"), sample.sample_id)
        assert (found.is_identical, found.changed) == (True, None)


def test_a_source_that_moved(tmp_path, tree):
    out = built(tmp_path, tree)
    moved = tree.root.rename(tmp_path / "elsewhere")
    name = "vgd/train/coco/000000000002/vgdseg"
    with pytest.raises(SourceError):
        reproduce(out, name)
    assert reproduce(out, name, sources=[f"vgd={moved}"]).is_identical  # of the other source nothing is needed


def test_what_cannot_be_reproduced(tmp_path, tree):
    out = built(tmp_path, tree)
    with pytest.raises(DatasetError, match="no sample 'vgd/train/9/vgdseg'"):
        reproduce(out, "vgd/train/9/vgdseg")
    name = "vgd/train/coco/000000000002/vgdseg"
    (tmp_path / "stored.json").write_text("")
    with pytest.raises(UserError, match=r"without stored\.json"):
        reproduce(out, name, out=str(tmp_path))
    roles = tmp_path / "out" / "roles.parquet"
    roles.write_bytes(roles.read_bytes() + b"x")
    with pytest.raises(DatasetError, match=r"roles\.parquet"):
        reproduce(out, name)


def test_the_command(tmp_path, tree):
    out = built(tmp_path, tree)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    name, kept = "vgd/train/coco/000000000002/vgdseg", tmp_path / "kept"
    result = CliRunner().invoke(app, ["reproduce", out, "--sample", name, "--out", str(kept)])
    assert (result.exit_code, result.stdout) == (0, f"identical: {name}\n")
    assert (kept / "stored.json").read_text() == (kept / "built.json").read_text()
    inspected = CliRunner().invoke(app, ["inspect", out, "--sample", name]).stdout
    assert json.loads((kept / "built.json").read_text()) == json.loads(inspected)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before

    (tree.root / "train" / "2.jpg").write_bytes((tree.root / "train" / "1.jpg").read_bytes())
    result = CliRunner().invoke(app, ["reproduce", out, "--sample", name])
    assert result.exit_code == 1
    assert "  image.bytes: was " in result.stdout
    result = CliRunner().invoke(app, ["reproduce", out, "--sample", "vgd/nothing"])
    assert result.exit_code == 1
    assert "no sample" in result.stderr


def test_differences_show_where_values_part(tmp_path, tree):
    sample = next(open_dataset(built(tmp_path, tree)).samples())
    turn = replace(sample.turns[0], text="A" * 80 + "b" + "C" * 80)
    other = replace(sample.turns[0], text="A" * 80 + "d" + "C" * 80)
    before = replace(sample, turns=(turn,), caption=None, height=24)
    now = replace(sample, turns=(other,), caption="a dog", height=25)
    found = {one.field: one for one in differences(before, now)}
    assert list(found) == ["height", "turns[0].text", "caption"]
    assert found["turns[0].text"] == Difference(
        field="turns[0].text", before=f"…{'A' * 15}b{'C' * 44}…", now=f"…{'A' * 15}d{'C' * 44}…"
    )
    assert str(found["caption"]) == 'caption: was null, is "a dog"'
    score = replace(HUMAN, score=float("nan"))
    assert not list(differences(score, replace(HUMAN, score=float("nan"))))
    assert [one.field for one in differences(score, HUMAN)] == ["score"]
