"""What `validate` finds in a damaged dataset: each damage once, in words that name it."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow

from dataengine.records import Account, Bad
from dataengine.sample import Image, Provenance, Sample, Turn
from dataengine.store import commits, quarantine
from dataengine.store.commits import Commit
from dataengine.store.dataset import open_dataset, picture_of, validate
from dataengine.store.files import Folder, StoreError
from dataengine.store.shards import ShardWriter

PNG = io.BytesIO()
Pillow.fromarray(np.zeros((6, 8, 3), np.uint8)).save(PNG, "PNG")


def sample(number: int) -> Sample:
    return Sample(
        sample_id=f"s/train/{number}",
        task="chat",
        source="s",
        split="train",
        image=Image(bytes=PNG.getvalue(), path=None),
        image_key=f"s/{number}",
        height=6,
        width=8,
        turns=(Turn(role="user", text="<image>\nHello", supervised=False),),
        provenance=Provenance(file="a.json", record=str(number), builder="b", version=1, seed=0),
    )


def write_plan(out: Folder, plan: str, tasks: list[str]) -> None:
    table = pa.table({"task_id": tasks}).replace_schema_metadata({"dataengine.plan": plan})
    with out.staging(commits.PLAN) as staged:
        pq.write_table(table, staged)
        out.publish(staged, commits.PLAN)


def dataset(out: Folder, *numbers: list[int]) -> Folder:
    """A finished dataset with one task for each list of sample numbers; each task quarantined one picture."""
    out.make()
    write_plan(out, "p", [f"t{task}" for task in range(len(numbers))])
    done = []
    for task, inside in enumerate(numbers):
        account = Account()
        account.read["images"] = len(inside) + 1
        account.built["images"] = len(inside)
        bad = Bad(unit="images", file="a", record="r", group="g", reason="image_missing", message="m", payload="")
        account.quarantine([bad])
        with out.staging(f"shards/{task}.parquet") as staged:
            writer = ShardWriter(staged)
            for number in inside:
                writer.write(sample(number))
            digest = writer.close()
            shard = out.publish(staged, f"shards/{task}.parquet")
        with out.staging(f"quarantine/t{task}.parquet") as staged:
            quarantine.write(staged, "s", "train", [bad])
            refused = out.publish(staged, f"quarantine/t{task}.parquet")
        commit = Commit(
            task_id=f"t{task}",
            source="s",
            split="train",
            start=task,
            stop=task + 1,
            rows=len(inside),
            shard=shard,
            logical_hash=digest,
            quarantine=refused,
            tasks={"chat": len(inside)},
            licenses={"not stated": len(inside)},
            objects=0,
            prompts={},
            account=account,
        )
        commits.write(out, commit)
        done.append(commit)
    commits.write_manifest(out, {"plan": "p"}, done)
    return out


def cut(out: Folder, name: str) -> None:
    data = out.read(name)
    out.delete(name)
    out.write_new(name, data[: len(data) // 2])


def replan(out: Folder, plan: str, *tasks: str) -> None:
    out.delete(commits.PLAN)
    write_plan(out, plan, list(tasks))


def test_a_good_dataset_has_no_problems(tmp_path):
    findings = validate(dataset(Folder(str(tmp_path)), [1, 2], [3]).uri)
    assert (findings.problems, findings.samples) == ([], 3)


@pytest.mark.parametrize(
    ("damage", "problems"),
    [
        pytest.param(lambda out: out.delete("plan.parquet"), ["plan.parquet is missing"], id="no plan"),
        pytest.param(lambda out: cut(out, "plan.parquet"), ["plan.parquet: cannot be read"], id="half a plan"),
        pytest.param(lambda out: replan(out, "q", "t0", "t1"), ["the plan q, not the manifest's"], id="another plan"),
        pytest.param(lambda out: replan(out, "p", "t0"), ["commits/t1.json is of a task that is not planned"],
                     id="more commits than tasks"),
        pytest.param(lambda out: replan(out, "p", "t0", "t1", "t2"), ["commits/t2.json is missing"],
                     id="fewer commits than tasks"),
        pytest.param(lambda out: cut(out, "shards/0.parquet"), ["shards/0.parquet is not the file"], id="half a shard"),
        pytest.param(lambda out: out.delete("shards/0.parquet"), ["shards/0.parquet is missing"], id="no shard"),
        pytest.param(lambda out: cut(out, "commits/t0.json"), ["commits/t0.json is damaged"], id="half a commit"),
        pytest.param(lambda out: cut(out, "quarantine/t0.parquet"), ["quarantine/t0.parquet is not the file"],
                     id="half a quarantine"),
        pytest.param(lambda out: out.write_new("shards/9.parquet", b""), ["shards/9.parquet belongs to nothing"],
                     id="stray file"),
    ],
)  # fmt: skip
def test_each_damage_is_one_line(tmp_path, damage: Callable[[Folder], None], problems):
    out = dataset(Folder(str(tmp_path)), [1, 2], [3])
    damage(out)
    found = validate(out.uri).problems
    assert len(found) == len(problems), found
    for problem, expected in zip(found, problems, strict=True):
        assert expected in problem


def test_an_id_that_two_shards_have_is_found(tmp_path):
    out = dataset(Folder(str(tmp_path)), [1, 2], [2])
    assert validate(out.uri).problems == ["shards/1.parquet: s/train/2: the id is given twice"]


def test_rows_by_number_know_where_they_stand(tmp_path):
    out = dataset(Folder(str(tmp_path)), [1, 2, 3], [4, 5])
    every = list(open_dataset(out.uri).samples())
    found = list(open_dataset(out.uri).rows([1, 3, 4, 99]))
    assert [row.number for row in found] == [1, 3, 4]
    assert [row.sample for row in found] == [every[1], every[3], every[4]]
    shards = [shard["name"] for shard in open_dataset(out.uri).manifest["shards"]]
    assert [row.shard for row in found] == [shards[0], shards[1], shards[1]]
    assert list(open_dataset(out.uri).rows([])) == []


def test_a_store_that_fails_in_its_own_way_is_an_os_error(monkeypatch):
    def fail(*_: object) -> int:
        raise pa.ArrowException("no credentials")

    monkeypatch.setattr(Folder, "size", fail)
    with pytest.raises(StoreError, match=r"abfs://pictures/a\.jpg: no credentials"):
        picture_of(Image(path="abfs://pictures/a.jpg", bytes=None), 1000)
