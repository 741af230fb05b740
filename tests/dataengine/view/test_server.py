"""The viewer's API, and the process that serves it."""

import io
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace

import pytest
from PIL import Image as Pillow
from starlette.testclient import TestClient
from typer.testing import CliRunner

from dataengine.records import Bad
from dataengine.store.dataset import open_dataset
from dataengine.store.files import Folder
from dataengine.view.rows import printable
from dataengine.view.server import make_app
from pipelines.cli import app as commands


@pytest.fixture(scope="module")
def viewer(made_dataset):
    """Answers of the opened dataset: `viewer(path)` gives JSON."""
    app = make_app([open_dataset(str(made_dataset))])

    def get(path: str, status: int = 200):
        answer = opened.get(path)
        assert answer.status_code == status, answer.text
        return answer.json()

    with TestClient(app, base_url="http://127.0.0.1:8765") as opened:
        app.state.viewer.work.wait()
        get.client = opened
        yield get


def test_datasets_are_introduced(viewer, made_dataset):
    (found,) = viewer("/api/datasets")["datasets"]
    assert (found["d"], found["name"], found["uri"], found["samples"]) == (0, "made", str(made_dataset), 120)
    assert found["version"] == open_dataset(str(made_dataset)).manifest["version"]
    assert found["ready"] == 1
    assert found["facets"]["source"] == [["alpha", 80], ["beta", 40]]


def test_a_page_of_rows(viewer, made_samples):
    found = viewer("/api/rows?offset=10&limit=20")
    assert (found["total"], found["offset"], found["ready"]) == (120, 10, 1)
    assert [row["number"] for row in found["rows"]] == list(range(10, 30))
    for row, sample in zip(found["rows"], made_samples[10:30], strict=True):
        said = sample.turns[0].text.replace("<image>", "").replace("<p>", "").replace("</p>", "")
        assert row == {
            "number": row["number"],
            "id": sample.sample_id,
            "task": sample.task,
            "variant": sample.variant,
            "source": sample.source,
            "split": sample.split,
            "picture": True,
            "objects": len(sample.objects),
            "conditions": len(sample.conditions),
            "value": None,
            "text": " ".join(said.split()),
        }


def test_filters_sorts_and_pages_go_together(viewer, made_samples):
    chosen = [n for n, s in enumerate(made_samples) if s.source == "alpha" and len(s.objects) >= 1]
    chosen.sort(key=lambda n: -len(made_samples[n].objects))
    path = "/api/rows?source=alpha&objects=1..&sort=objects&desc=1"
    found = viewer(f"{path}&offset=5&limit=7")
    assert found["total"] == len(chosen)
    assert [row["number"] for row in found["rows"]] == chosen[5:12]
    assert [row["value"] for row in found["rows"]] == [len(made_samples[n].objects) for n in chosen[5:12]]
    around = viewer(f"{path}&limit=7&around={chosen[16]}")
    assert around["offset"] == 14
    assert [row["number"] for row in around["rows"]] == chosen[14:21]
    assert viewer(f"{path}&limit=7&around=100000")["offset"] == 0  # which does not pass


def test_a_random_row_passes_the_filters(viewer, made_samples):
    for _ in range(5):
        assert made_samples[viewer("/api/random?source=beta")["number"]].source == "beta"
    assert viewer("/api/random?source=nowhere") == {"number": None}


def test_a_row_by_number_or_id_is_the_card_that_pages_draw(viewer, made_samples):
    number = next(n for n, sample in enumerate(made_samples) if sample.references)
    sample = made_samples[number]
    card = viewer(f"/api/row?n={number}")
    assert card == viewer(f"/api/row?id={sample.sample_id}")
    assert card["row"] == printable(sample)
    assert (card["number"], card["picture_error"]) == (number, None)
    assert card["shard"].startswith("shards/")
    for url, picture in (
        (card["picture"], sample.image),
        (card["references"][0]["picture"], sample.references[0].image),
    ):
        answer = viewer.client.get(url)
        assert answer.content == picture.bytes
        assert answer.headers["content-type"] == "image/jpeg"
        assert "immutable" in answer.headers["cache-control"]
    assert "no-store" in viewer.client.get(f"/api/picture?n={number}&v=another").headers["cache-control"]


def test_small_pictures(viewer):
    answer = viewer.client.get("/api/picture?n=0&px=16")
    assert answer.headers["content-type"] == "image/webp"
    assert max(Pillow.open(io.BytesIO(answer.content)).size) == 16


@pytest.mark.parametrize("path", ["/api/row?id=nobody", "/api/row?n=120", "/api/picture?n=0&r=9", "/api/nothing"])
def test_what_is_not_there(viewer, path):
    assert viewer(path, 404)["error"]


def test_quarantine(client, write_dataset, make_sample):
    bad = [
        Bad(
            unit="images",
            file="<b>.json",
            record=str(n),
            reason=("broken", "empty")[n % 2],
            message=f"message {n}",
            payload="x" * (5000 if n == 3 else n),
        )
        for n in range(30)
    ]
    out = write_dataset([make_sample(1)], bad=bad)
    opened = client(out)
    found = opened.get("/api/quarantine?offset=2&limit=3").json()
    assert found["total"] == 30
    assert found["reasons"] == [["broken", 15], ["empty", 15]]
    assert found["sources"] == [["alpha", 30]]
    assert shlex.split(found["replay"]) == ["dataengine", "replay", str(out)]
    assert [row["record"] for row in found["rows"]] == ["2", "3", "4"]
    assert [(len(row["payload"]), row["left"]) for row in found["rows"]] == [(2, 0), (4000, 1000), (4, 0)]
    found = opened.get("/api/quarantine?reason=empty&limit=2&offset=13").json()
    assert (found["total"], [row["record"] for row in found["rows"]]) == (15, ["27", "29"])
    assert found["reasons"] == [["broken", 15], ["empty", 15]]
    assert opened.get("/api/quarantine?source=beta").json()["total"] == 0
    assert opened.get("/api/datasets").json()["datasets"][0]["quarantined"] == 30


def test_two_datasets_are_compared(client, write_dataset, make_sample):
    before = [make_sample(n) for n in (1, 2, 4, 5)]
    after = [before[0], replace(before[1], caption="new"), replace(before[3], sample_id="alpha/train/x/vgdseg")]
    opened = client(write_dataset(before), write_dataset(after))
    found = opened.get("/api/compare").json()
    assert found["counts"] == {"same": 1, "changed": 1, "added": 1, "removed": 2}
    assert found["ready"] == 1
    rows = opened.get("/api/rows?d=0&change=removed&change=changed").json()["rows"]
    assert [(row["id"], row["change"]) for row in rows] == [
        (before[1].sample_id, "changed"),
        (before[2].sample_id, "removed"),
        (before[3].sample_id, "removed"),
    ]
    rows = opened.get("/api/rows?d=1&sort=change").json()["rows"]
    assert [(row["change"], row["value"]) for row in rows] == [("changed", 1.0), ("same", None), ("added", None)]
    found = opened.get(f"/api/change?id={before[1].sample_id}").json()
    assert found == {"left": 1, "right": 1, "fields": ["caption"], "objects": []}
    assert opened.get(f"/api/change?id={before[2].sample_id}").json()["right"] is None
    assert opened.get("/api/change?id=nobody").status_code == 404


def test_other_numbers_of_datasets_are_a_choice(client, made_dataset):
    opened = client(made_dataset, made_dataset, made_dataset)
    assert len(opened.get("/api/datasets").json()["datasets"]) == 3
    assert opened.get("/api/rows?d=2").json()["total"] == 120
    assert opened.get("/api/compare").status_code == 400
    assert "there are 3 datasets" in opened.get("/api/rows?d=3").json()["error"]


def test_rows_of_a_damaged_shard_say_so_and_others_are_shown(client, made_dataset, tmp_path):
    out = shutil.copytree(made_dataset, tmp_path / "damaged")
    sorted((out / "shards").iterdir())[1].write_bytes(b"PAR1 is what it was")
    opened = client(out)
    rows = opened.get("/api/rows?limit=30").json()["rows"]
    assert [row["number"] for row in rows if "error" in row] == list(range(10, 20))
    assert "damaged" in opened.get("/api/row?n=12").json()["error"]
    assert opened.get("/api/row?n=9").status_code == opened.get("/api/row?n=20").status_code == 200
    (damaged,) = opened.get("/api/datasets").json()["datasets"][0]["damaged"]
    assert damaged["shard"] == rows[10]["error"].split()[0]


def test_a_dataset_that_is_deleted_while_it_is_open(client, made_dataset, tmp_path):
    out = shutil.copytree(made_dataset, tmp_path / "gone")
    opened = client(out)
    shutil.rmtree(out)
    answer = opened.get("/api/row?n=100")
    assert (answer.status_code, answer.json()) == (503, {"error": "a file of the dataset is gone"})
    assert all("error" in row for row in opened.get("/api/rows?offset=90&limit=9").json()["rows"])


def test_datasets_in_an_object_store(client, made_dataset, s3_bucket):
    folder = Folder(f"{s3_bucket}/made")
    for file in sorted(made_dataset.rglob("*.*")):
        folder.replace(file.relative_to(made_dataset).as_posix(), file.read_bytes())
    opened = client(folder.uri)
    assert opened.get("/api/rows?q=zebra").json()["total"] > 0
    card = opened.get("/api/row?n=77").json()
    assert opened.get(card["picture"]).headers["content-type"] == "image/jpeg"


def test_the_command_serves_until_it_is_interrupted(made_dataset):
    command = [sys.executable, "-m", "pipelines.cli", "view", str(made_dataset), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(url) as answer:
            assert b"<html" in answer.read()
        taken = subprocess.run(
            [*command[:-1], url.strip("/").rpartition(":")[2]], capture_output=True, text=True, timeout=60
        )
        assert taken.returncode == 1
        assert "already in use" in taken.stderr
        assert taken.stderr.count("\n") == 1
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize("what", ["nothing", "unfinished"])
def test_what_is_no_finished_dataset_is_refused_in_one_line(tmp_path, what):
    if what == "unfinished":
        (tmp_path / "plan.parquet").write_bytes(b"")
    result = CliRunner().invoke(commands, ["view", str(tmp_path)])
    assert result.exit_code == 1
    assert {"nothing": "no dataset", "unfinished": "not finished"}[what] in result.output
    assert result.output.count("\n") == 1
