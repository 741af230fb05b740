"""Functions and servers as labelers: their answers are checked value by value, and none of them can hurt."""

from __future__ import annotations

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from dataengine import masks
from dataengine.errors import UserError
from dataengine.ledger.records import Concept
from pipelines.relabel import endpoint, labelers
from pipelines.relabel.labelers import AnswerError, Spec
from tests.pipelines.relabel import models
from tests.pipelines.relabel.models import HEIGHT, WIDTH

RASTER = np.zeros((HEIGHT, WIDTH), bool)
RASTER[10:20, 5:40] = True
RLE = {"size": [HEIGHT, WIDTH], "counts": masks.encode(RASTER).decode()}
GOOD = {"segmentation": RLE, "text": "dog", "category_id": 1, "score": 0.9}
ANSWER = {"version": 1, "pictures": [{"masks": [GOOD]}]}


def bright(pixels, categories, limit=128):
    """A labeler of one's own."""
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    return [
        {**GOOD, "segmentation": pixels[..., 0] > limit, "text": name, "prompt": {"limit": limit}}
        for name in categories
    ]


# --- functions -------------------------------------------------------------------------------------------------------


def called(function="bright", **settings):
    made = labelers.make(
        Spec(name="callable", settings={"call": f"tests.pipelines.relabel.test_endpoint:{function}", **settings})
    )
    made.load()
    return made


def test_a_function_is_a_labeler():
    made = called(categories={"dog": 1, "cat": 2}, arguments={"limit": 200}, revision="7")
    assert [one.text for one in made.asks] == ["dog", "cat"]
    (found,) = made.label([models.question()])
    assert [p.concept.text for p in found] == ["dog", "cat"]
    assert found[0].rle == masks.encode(models.pixels()[..., 0] > 200)
    assert found[0].prompt == '{"limit":200}'
    assert made.revision.endswith("-7")
    (some,) = made.label([models.question(absent=(1,))])
    assert [p.concept.text for p in some] == ["cat"]


def test_a_function_may_have_a_name_of_its_own():
    plain, named = called(categories=["dog"]), called(categories=["dog"], name="my.detector-2")
    assert (plain.name, named.name) == ("callable", "my.detector-2")
    assert named.settings == plain.settings
    for name in ("xsam", "callable", "a b", "", "x" * 65):
        with pytest.raises(UserError, match="labeler callable: name"):
            called(name=name, categories=["dog"])


def test_functions_that_cannot_be_had():
    for call, said in (("no.module:name", "No module"), ("json:none", "none"), ("json:__name__", "cannot be called")):
        with pytest.raises(UserError, match=said):
            labelers.make(Spec(name="callable", settings={"call": call})).load()
    with pytest.raises(UserError, match="call"):
        labelers.make(Spec(name="callable", settings={"call": "os.system('ls')"}))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "answer_schema"),
        ({}, "answer_schema"),
        ([3], "answer_schema"),
        ([{}], "answer_schema"),
        ([{**GOOD, "score": "0.9"}], "answer_schema"),
        ([{**GOOD, "extra": 1}], "answer_schema"),
        ([{**GOOD, "category_id": 1.5}], "answer_schema"),
        ([{**GOOD, "text": None}], "answer_schema"),
        ([{**GOOD, "prompt": float("nan")}], "answer_schema"),
        ([{**GOOD, "prompt": object()}], "answer_schema"),
        ([{**GOOD, "segmentation": {"size": [WIDTH, HEIGHT], "counts": "0"}}], "rle_size"),
        ([{**GOOD, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [1, 2]}}], "rle_size"),
        ([{**GOOD, "segmentation": {"size": [HEIGHT, WIDTH], "counts": "é"}}], "rle_invalid"),
        ([{**GOOD, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]}}], "rle_invalid"),
        ([{**GOOD, "segmentation": RASTER[1:]}], "rle_size"),
        ([{**GOOD, "segmentation": RASTER.astype(float)}], "rle_size"),
    ],
)
def test_answers_that_are_none(answer, reason):
    with pytest.raises(AnswerError) as caught:
        endpoint.proposals_of(answer, models.question().picture)
    assert caught.value.reason == reason


def test_masks_may_be_run_lengths():
    runs = [HEIGHT * 5 + 10, 10, HEIGHT * WIDTH - HEIGHT * 5 - 20]  # ten pixels of column 5, from row 10
    (found,) = endpoint.proposals_of(
        [{**GOOD, "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs}}], models.question().picture
    )
    assert masks.measure(found.rle, HEIGHT, WIDTH) == (10, (5, 10, 1, 10))


# --- servers ---------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Answers with what `reply` makes of a request: a status, and bytes or what becomes JSON."""

    daemon_threads = True

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.asked = reply, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/label?x=1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        status, answer = self.server.reply(body)
        if status is None:  # hang up
            self.close_connection = True
            return
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """Starts a server: `serve(reply)`."""
    servers = []

    def start(reply) -> Server:
        server = Server(reply)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def http(url, **settings):
    made = labelers.make(Spec(name="http", settings={"url": url, **settings}))
    made.load()
    return made


def test_a_server_is_a_labeler(serve):
    server = serve(lambda body: (200, {"version": 1, "pictures": [{"masks": [GOOD]} for _ in body["pictures"]]}))
    found = http(server.url, categories={"dog": 1}).label([models.question(seed=0), models.question(seed=1)])
    assert [[p.concept for p in some] for some in found] == [[Concept(text="dog", category_id=1)]] * 2
    assert found[0][0].rle == masks.encode(RASTER)
    ((path, body),) = server.asked
    assert path == "/label?x=1"
    assert body["categories"] == [{"name": "dog", "id": 1}]
    sent = Image.open(io.BytesIO(base64.b64decode(body["pictures"][1]["png"])))
    np.testing.assert_array_equal(np.asarray(sent), models.pixels(1))
    assert [(p["key"], p["height"], p["width"]) for p in body["pictures"]] == [("p", HEIGHT, WIDTH)] * 2


def test_a_server_is_not_asked_for_what_a_picture_lacks(serve):
    def reply(body):
        told = [{**GOOD, "text": one["name"], "category_id": one["id"]} for one in body["categories"]]
        return 200, {"version": 1, "pictures": [{"masks": told} for _ in body["pictures"]]}

    server = serve(reply)
    asked = [models.question(absent=absent) for absent in ((), (1,), (1, 2), ())]
    found = http(server.url, categories={"dog": 1, "cat": 2}).label(asked)
    assert [[p.concept.text for p in some] for some in found] == [["dog", "cat"], ["cat"], [], ["dog", "cat"]]
    assert [len(body["pictures"]) for _, body in server.asked] == [2, 1]
    dog = models.entry(1, 5, 6, 20, 10, origin="model")
    (named,) = http(server.url, categories=["dog", "cat"]).label([models.question([dog], absent=(1,))])
    assert [p.concept.text for p in named] == ["cat"], "a known mask says which category is called so"


@pytest.mark.parametrize(
    ("status", "answer", "reason"),
    [
        (500, b"", "http_status"),
        (302, b"", "http_status"),
        (200, b"{", "answer_schema"),
        (200, b"[" * 100_000, "answer_schema"),
        (200, {"version": 2, "pictures": []}, "answer_schema"),
        (200, {"version": 1, "pictures": []}, "answer_schema"),
        (200, {"version": 1, "pictures": [{"masks": 3}]}, "answer_schema"),
        (200, {"version": 1, "pictures": [{"masks": [{}]}]}, "answer_schema"),
        (200, {"version": 1, "pictures": [{"error": "too dark"}]}, "labeler_refused"),
        (200, b" " * 2_000_000, "answer_too_large"),
        (None, b"", "http_failed"),
    ],
)
def test_answers_of_servers_that_are_none(serve, status, answer, reason):
    made = http(serve(lambda body: (status, answer)).url, max_mb=1)
    with pytest.raises(AnswerError) as caught:
        made.label([models.question()])
    assert caught.value.reason == reason


def test_nan_is_found_by_the_check(serve):
    answer = json.dumps(ANSWER).replace("0.9", "NaN").encode()
    (found,) = http(serve(lambda body: (200, answer)).url).label([models.question()])
    with pytest.raises(AnswerError, match="nan"):
        labelers.check(found, models.question().picture)


def test_a_server_that_hangs_is_left(serve):
    stop = threading.Event()
    made = http(serve(lambda body: (stop.wait(10), (200, ANSWER))[1]).url, timeout_s=0.3)
    with pytest.raises(AnswerError) as caught:
        made.label([models.question()])
    stop.set()
    assert caught.value.reason == "labeler_hangs"


def test_a_server_that_is_away_ends_the_round(serve, pictures, relabel, monkeypatch):
    monkeypatch.setattr(endpoint, "RETRY_S", (0.01,))
    server = serve(lambda body: (503, b""))
    with pytest.raises(UserError, match="status 503"):
        http(server.url).label([models.question()])
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="cannot be reached"):
        http(server.url).label([models.question()])


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/",
        "http://example.com/label",
        "http://8.8.8.8/",
        "http://me:secret@127.0.0.1/",
        "http://[/",
        "label",
    ],
)
def test_addresses_that_are_not_called(url):
    with pytest.raises(UserError, match="http: url"):
        http(url)
