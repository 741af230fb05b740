"""What the viewer refuses: other hosts and sites, other methods, wrong numbers, and pictures that are none."""

import io
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from PIL import Image as Pillow
from starlette.testclient import TestClient

from dataengine.sample import Image, Turn
from dataengine.store.dataset import open_dataset
from dataengine.view import pictures, server
from dataengine.view.reader import Reader
from dataengine.view.server import HEADERS, Place, make_app


@pytest.fixture(scope="module")
def opened(made_dataset):
    with TestClient(make_app([open_dataset(str(made_dataset))]), base_url="http://127.0.0.1:8765") as opened:
        opened.app.state.viewer.work.wait()
        yield opened


@pytest.mark.parametrize("path", ["/", "/static/card.js", "/api/datasets", "/api/picture?n=0", "/nothing", "/api/row"])
def test_every_answer_is_kept_to_its_place(opened, path):
    headers = opened.get(path).headers
    assert {name: headers[name] for name in HEADERS} == HEADERS
    policy = dict(part.strip().split(" ", 1) for part in HEADERS["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("place", "host", "served"),
    [
        ({}, "127.0.0.1:8765", True),
        ({}, "LOCALHOST:8765", True),
        ({}, "[::1]:8765", True),
        ({}, "127.0.0.1:80", False),
        ({}, "127.0.0.1", False),
        ({}, "evil.example:8765", False),
        ({}, "127.0.0.1.evil.example:8765", False),
        ({}, "evil.example#127.0.0.1:8765", False),
        ({}, "10.0.0.7:8765", False),
        ({}, "", False),
        ({}, "127.0.0.1:8765:8765", False),
        ({}, "127.0.0.1:٨٧٦٥", False),
        ({"port": 80}, "localhost", True),
        ({"host": "10.0.0.7"}, "10.0.0.7:8765", True),
        ({"host": "::2"}, "[::2]:8765", True),
        ({"host": "0.0.0.0"}, "10.0.0.7:8765", True),
        ({"host": "0.0.0.0"}, "box.example:8765", False),
        ({"host": "0.0.0.0", "names": ("Box.example",)}, "box.example:8765", True),
    ],
)
def test_only_requests_for_this_server_are_answered(place, host, served):
    assert Place(**place).serves(host) is served


def test_a_name_that_was_made_to_mean_this_machine_is_refused(opened):
    answer = opened.get("/api/datasets", headers={"Host": "evil.example:8765"})
    assert answer.status_code == 400
    assert "alpha" not in answer.text
    assert opened.get("/api/datasets", headers=[("Host", "127.0.0.1:8765"), ("Host", "x")]).status_code == 400


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_reading_is_answered(opened, method):
    assert opened.request(method, "/api/datasets").status_code == 405


def test_heads_are_answered(opened):
    answer = opened.head("/api/datasets")
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]
)
def test_pages_of_other_sites_get_nothing(opened, site, status):
    assert opened.get("/api/picture?n=0", headers={"Sec-Fetch-Site": site}).status_code == status
    assert opened.get("/", headers={"Sec-Fetch-Site": site}).status_code == 200  # a link to the page may be followed


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/server.py",
        "/static/server.py",
        "/static/view.html",
        "/static//etc/passwd",
        "/static/%00",
        "/..%2f..%2fetc/passwd",
        "//etc/passwd",
    ],
)
def test_no_path_reaches_the_file_system(opened, path):
    answer = opened.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "query",
    [
        "rows?d=1",
        "rows?d=-1",
        "rows?d=zero",
        "rows?d=1e3",
        "rows?offset=-1",
        "rows?limit=0",
        "rows?limit=٣",
        "rows?offset=999999999999999999999999",
        "rows?sort=__class__",
        "rows?change=x",
        "rows?area=1",
        "rows?area=a..b",
        "rows?area=nan..",
        "rows?q=%00",
        "rows?q=" + "x" * 501,
        "rows?q=a&q=b",
        "rows?" + "task=%d&" * 201 % tuple(range(201)),
        "row",
        "row?n=",
        "row?n=0x10",
        "row?id=%00",
        "picture?n=0&r=-2",
        "picture?n=0&px=-5",
        "quarantine?reason=" + "x" * 501,
        "compare",
    ],
)
def test_wrong_parameters_are_refused_with_a_reason(opened, query):
    answer = opened.get(f"/api/{query}")
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize(
    "query", ["rows?limit=100000", "rows?offset=999999999999", "rows?area=-inf..inf", "rows?q=%ff%fe"]
)
def test_what_is_large_is_cut(opened, query):
    answer = opened.get(f"/api/{query}")
    assert answer.status_code == 200
    assert len(answer.json()["rows"]) <= 500


HOSTILE = "</script><script>alert(1)</script>\"'<img src=x onerror=alert(2)>"


def test_texts_of_a_dataset_are_only_ever_json(client, write_dataset, make_sample):
    sample = replace(
        make_sample(1),
        sample_id=f"alpha/train/{HOSTILE}/vgdseg",
        variant=HOSTILE,
        turns=(Turn(role="user", text=HOSTILE, supervised=False),),
    )
    opened = client(write_dataset([sample]))
    for path in ("/api/rows", "/api/row?n=0", "/api/datasets", "/api/rows?q=alert(1)", f"/api/row?id={HOSTILE}"):
        answer = opened.get(path)
        assert answer.headers["content-type"] == "application/json"
    assert opened.get("/api/rows").json()["rows"][0]["id"] == sample.sample_id


@pytest.fixture
def shown(client, write_dataset, make_sample):
    """Answers to a request for a by-reference picture: `shown(path, …)`."""

    def ask(path: str, query: str = ""):
        sample = replace(make_sample(1), image=Image(bytes=None, path=path))
        return client(write_dataset([sample])).get(f"/api/picture?n=0{query}")

    return ask


def files(folder: Path) -> dict[str, Path]:
    """Things that are no pictures."""
    os.mkfifo(folder / "pipe")
    (folder / "page.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    (folder / "page.jpg").write_text("<html><script>alert(1)</script>")
    (folder / "empty.png").write_bytes(b"")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    Pillow.new("RGB", (32, 24)).save(folder / "one.gif")
    Pillow.new("RGB", (33, 24)).save(folder / "other-size.png")
    with (folder / "huge.jpg").open("wb") as file:
        file.truncate(1 << 40)
    return {name: folder / name for name in os.listdir(folder)} | {"folder": folder}


@pytest.mark.parametrize(
    "name", ["pipe", "page.svg", "page.jpg", "empty.png", "loop.png", "one.gif", "other-size.png", "huge.jpg", "folder"]
)
@pytest.mark.parametrize("query", ["", "&px=320"])
def test_files_that_are_no_pictures_of_the_row_are_not_shown(shown, tmp_path, name, query):
    (tmp_path / "files").mkdir()
    refused(shown(str(files(tmp_path / "files")[name]), query))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/dev/zero",
        "/dev/tty",
        "/proc/self/environ",
        "/proc/self/pagemap",
        "/proc/self/fd/0",
        "http://169.254.169.254/latest/meta-data/",
        "https://example.org/a.jpg",
        "ftp://example.org/a.jpg",
        "data:image/svg+xml,<svg/>",
        "s3://bucket/a.jpg?endpoint_override=169.254.169.254&scheme=http",
        "hdfs://evil.example:9000/a.jpg",
        "abfs://account:key@127.0.0.1:10000/container/a.jpg",
        "github://a:b@c/d",
        "a\0b.jpg",
        "",
        "x" * 10_000,
    ],
)
def test_places_that_hold_no_picture_are_not_read(shown, monkeypatch, path):
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    refused(shown(path))


def refused(answer) -> None:
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    assert "root:" not in answer.text


def test_a_small_file_that_claims_a_large_picture_is_not_decoded(client, write_dataset, make_sample):
    file = io.BytesIO()
    Pillow.new("1", (9_000, 9_000)).save(file, "PNG")
    sample = replace(make_sample(1), height=9_000, width=9_000, image=Image(bytes=file.getvalue(), path="a.png"))
    opened = client(write_dataset([sample]))
    before = psutil.Process().memory_info().rss
    for query in ("", "&px=320"):
        answer = opened.get(f"/api/picture?n=0{query}")
        assert answer.status_code == 422
        assert "9000 x 9000" in answer.json()["error"]
    assert psutil.Process().memory_info().rss - before < 200 << 20


def test_pictures_asked_for_all_at_once_are_decoded_a_few_at_a_time(opened, monkeypatch):
    lock, now, most = threading.Lock(), 0, 0
    small = pictures.small

    def counted(picture, px):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        try:
            return small(picture, px)
        finally:
            with lock:
                now -= 1

    monkeypatch.setattr(pictures, "small", counted)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: opened.get(f"/api/picture?n={n}&px=16").status_code, range(100)))
    assert answers == [200] * 100
    assert 1 <= most <= server.DECODERS


def test_errors_tell_nothing_of_the_program(opened, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("/home/somebody/secret")

    monkeypatch.setattr(Reader, "sample", fail)
    answer = opened.get("/api/row?n=0")
    assert answer.status_code == 500
    assert answer.json() == {"error": "this cannot be read: RuntimeError"}
