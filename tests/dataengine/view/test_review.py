"""The review mode: its queue, what it refuses, and what a person does with it in a browser."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time

import numpy as np
import pytest
from pycocotools import mask as oracle
from starlette.testclient import TestClient

from dataengine.ledger.ledger import Ledger
from dataengine.ledger.records import Check, Concept, Decision, Entry, Labeler, Picture, entry_id_of, mask_id_of
from dataengine.records import Category
from dataengine.view import words
from dataengine.view.review import Reviews, make_app
from dataengine.view.server import HEADERS, Place

HEIGHT, WIDTH = 120, 160
LABELER = Labeler(name="noisy-oracle", revision="1")
HOSTILE = "</script><img src=x onerror=alert(1)>\u202e"
ORIGIN = "http://127.0.0.1:8766"


def entry_of(picture: Picture, concept: Concept, x: int, state: str = "review") -> Entry:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[20:80, x : x + 30] = 1
    rle = oracle.encode(np.asfortranarray(mask))["counts"]
    mask_id = mask_id_of(picture, concept, rle)
    return Entry(
        entry_id=entry_id_of(mask_id, 1, LABELER),
        mask_id=mask_id,
        picture=picture.key,
        round=1,
        origin="model",
        concept=concept,
        rle=rle,
        bbox=(float(x), 20.0, 30.0, 60.0),
        area=1800,
        labeler=LABELER,
        score=0.5,
        checks=(Check(name="stability", value=0.9, limit=0.95, verdict="review"),),
        state=state,
        reason="stability",
    )


@pytest.fixture
def ledger(tmp_path, make_jpeg) -> Ledger:
    """Two pictures: three masks that wait and one that is kept; one that waits."""
    pictures, cat = [], Concept(text="cat", category_id=1)
    for key in ("a", "b"):
        data = make_jpeg(HEIGHT, WIDTH, seed=len(pictures))
        (tmp_path / f"{key}.jpg").write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        path = str(tmp_path / f"{key}.jpg")
        pictures.append(Picture(key=key, path=path, sha256=sha256, height=HEIGHT, width=WIDTH))
    a, b = pictures
    made = Ledger.create(str(tmp_path / "ledger"), pictures, [Category(id=1, name="cat", text="cat")], [])
    entries = [entry_of(a, cat, 0), entry_of(a, Concept(text=HOSTILE), 40), entry_of(a, cat, 80), entry_of(b, cat, 0)]
    made.append("relabel", 1, [*entries, entry_of(a, cat, 120, "kept")])
    return made


@pytest.fixture
def reviews(ledger, tmp_path):
    with contextlib.closing(Reviews(ledger, tmp_path / "words")) as reviews:
        yield reviews


@pytest.fixture
def opened(reviews):
    with TestClient(make_app(reviews, Place(port=8766)), base_url=ORIGIN) as opened:
        yield opened


def post(opened, path, body, **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return opened.post(path, content=data, headers={"Origin": ORIGIN, "Content-Type": "application/json", **headers})


def speak(opened, reviewer, n, action, status=200):
    """Say something of a mask of the queue, as the page does."""
    state = opened.get("/api/state", params={"reviewer": reviewer}).json()
    entry_id = opened.get("/api/item", params={"n": n}).json()["entry_id"]
    body = {"reviewer": reviewer, "serial": state["serial"], "entry_id": entry_id, "action": action, "seconds": 2}
    answer = post(opened, "/api/word", body)
    assert answer.status_code == status
    return answer.json()


def test_a_reviewer_goes_through_the_queue(opened, tmp_path):
    state = opened.get("/api/state?reviewer=a").json()
    assert (state["total"], state["decided"], state["next"], state["can_undo"]) == (4, 0, 0, False)
    state = speak(opened, "a", 0, "accept")
    assert (state["decided"], state["next"], state["skipped"]) == (1, 1, [])
    state = speak(opened, "a", 1, "skip")
    assert (state["decided"], state["next"], state["skipped"]) == (1, 2, [1])
    state = speak(opened, "a", 3, "reject")
    assert (state["decided"], state["next"]) == (2, 2)
    assert [word.action for word in words.read(tmp_path / "words", "a")] == ["accept", "skip", "reject"]
    assert opened.get("/api/state?reviewer=b").json()["decided"] == 0  # everybody has their own


def test_asking_writes_nothing(opened, tmp_path):
    assert opened.get("/api/state?reviewer=a").json()["serial"] == words.FIRST_SERIAL
    opened.get("/api/agreement")
    assert not (tmp_path / "words").exists()
    assert speak(opened, "a", 0, "accept")["serial"] == words.FIRST_SERIAL + 1


def test_a_bad_picture_decides_all_its_masks(opened):
    state = speak(opened, "a", 1, "whole_image_bad")
    assert (state["decided"], state["next"]) == (3, 3)
    state = speak(opened, "a", 0, "accept")  # the last word counts
    found = opened.get("/api/agreement").json()["reviewers"][0]
    assert found["actions"] == {"accept": 1, "whole_image_bad": 2}


def test_undo_takes_back_the_newest_word(opened):
    speak(opened, "a", 0, "accept")
    state = speak(opened, "a", 1, "reject")
    state = post(opened, "/api/undo", {"reviewer": "a", "serial": state["serial"]}).json()
    assert (state["decided"], state["n"], state["next"]) == (1, 1, 1)
    state = post(opened, "/api/undo", {"reviewer": "a", "serial": state["serial"]}).json()
    assert (state["decided"], state["n"], state["can_undo"]) == (0, 0, False)
    assert post(opened, "/api/undo", {"reviewer": "a", "serial": state["serial"]}).status_code == 400


def test_the_same_word_is_not_taken_twice(opened):
    entry_id = opened.get("/api/item?n=0").json()["entry_id"]
    body = {"reviewer": "a", "serial": 1, "entry_id": entry_id, "action": "accept", "seconds": 1}
    assert opened.get("/api/state?reviewer=a").json()["serial"] == 1
    assert post(opened, "/api/word", body).status_code == 200
    again = post(opened, "/api/word", body)
    assert (again.status_code, again.json()["changed"]) == (409, True)
    assert opened.get("/api/state?reviewer=a").json()["serial"] == 2


def test_words_are_there_when_the_server_starts_again(opened, reviews, ledger):
    speak(opened, "a", 0, "accept")
    reviews.close()
    with contextlib.closing(Reviews(ledger, reviews.folder)) as again:
        assert again._state_of(again.words("a"))["decided"] == 1
    reviews._open.clear()


def test_words_on_what_no_longer_waits_are_kept_but_do_not_count(opened, reviews, ledger):
    speak(opened, "a", 0, "accept")
    reviews.close()
    reviews._open.clear()
    ledger.rollback(0)
    again = Reviews(Ledger.open(ledger.folder), reviews.folder)
    with contextlib.closing(again):
        assert again.queue == []
        state = again._state_of(again.words("a"))
        assert (state["total"], state["decided"], state["can_undo"]) == (0, 0, True)


def test_agreement_of_two(opened):
    """Of three masks, accept/accept, accept/reject, reject/reject: p_o = 2/3, p_e = 2/9 + 2/9, kappa = 0.4."""
    for n, (one, other) in enumerate([("accept", "accept"), ("accept", "reject"), ("reject", "reject")]):
        speak(opened, "a", n, one)
        speak(opened, "b", n, other)
    speak(opened, "a", 3, "accept")
    speak(opened, "b", 3, "skip")  # which is no decision
    (pair,) = opened.get("/api/agreement").json()["pairs"]
    assert (pair["both"], pair["same"]) == (3, 2)
    assert pair["kappa"] == pytest.approx(0.4)


def test_figures_are_of_all_words_also_after_a_part_was_decided(opened, reviews, ledger):
    for n, other in enumerate(("accept", "accept", "reject")):
        speak(opened, "a", n, "accept")
        speak(opened, "b", n, other)
    speak(opened, "a", 3, "whole_image_bad")
    speak(opened, "b", 3, "whole_image_bad")
    before = opened.get("/api/agreement").json()
    assert (before["pairs"][0]["both"], before["pairs"][0]["same"]) == (4, 3)
    reviews.close()
    reviews._open.clear()
    word = {"state": "kept", "by": "reviewer:a", "action": "accept"}
    ledger.append("review", 1, (), [Decision(entry_id=reviews.queue[n][0], **word) for n in (0, 1)])
    with contextlib.closing(Reviews(ledger, reviews.folder)) as again:
        assert len(again.queue) == 2
        assert again.figures().as_dict() == {key: tuple(value) for key, value in before.items()}


def test_disputed_masks_are_shown_again_when_nothing_is_left(opened):
    for n in range(4):
        speak(opened, "a", n, "accept")
    assert opened.get("/api/state?reviewer=a").json()["disputed"] == []
    speak(opened, "b", 1, "skip")
    assert speak(opened, "b", 2, "reject")["disputed"] == []  # as there is a next one
    speak(opened, "b", 0, "accept")
    assert speak(opened, "b", 3, "whole_image_bad")["disputed"] == [2, 3]
    assert opened.get("/api/state?reviewer=a").json()["disputed"] == [2, 3]
    assert speak(opened, "a", 2, "reject")["disputed"] == [3]
    assert speak(opened, "b", 1, "whole_image_bad")["disputed"] == [0, 1, 2, 3]  # a accepts masks of the picture


def test_an_item_says_what_a_person_needs(opened, ledger):
    item = opened.get("/api/item?n=1").json()
    assert (item["text"], item["reason"], item["labeler"]) == (HOSTILE, "stability", "noisy-oracle 1")
    assert item["checks"] == [{"name": "stability", "value": 0.9, "limit": 0.95, "verdict": "review"}]
    assert [other["state"] for other in item["others"]] == ["review", "review", "kept"]
    picture = opened.get(item["picture"]["url"])
    assert picture.headers["content-type"] == "image/jpeg"
    assert hashlib.sha256(picture.content).hexdigest() == ledger.picture("a").sha256
    assert "immutable" in picture.headers["cache-control"]


def test_a_picture_that_is_gone_is_an_answer(opened, tmp_path):
    (tmp_path / "a.jpg").unlink()
    answer = opened.get("/api/picture?n=0")
    assert (answer.status_code, set(answer.json())) == (422, {"error"})


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://127.0.0.1:8766"}, 403),
        ({"Origin": "http://127.0.0.1:8765"}, 403),
        ({"Origin": ""}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "evil.example:8766", "Origin": "http://evil.example:8766"}, 400),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({}, 200),
    ],
)
@pytest.mark.parametrize("path", ["/api/word", "/api/undo"])
def test_only_pages_of_this_server_write(opened, tmp_path, path, headers, status):
    state = speak(opened, "a", 0, "accept")
    before = (tmp_path / "words" / "a.jsonl").read_bytes()
    entry_id = opened.get("/api/item?n=1").json()["entry_id"]
    body = {"reviewer": "a", "serial": state["serial"], "entry_id": entry_id, "action": "accept", "seconds": 1}
    answer = post(opened, path, body, **headers)
    assert answer.status_code == status
    assert ((tmp_path / "words" / "a.jsonl").read_bytes() == before) == (status != 200)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_request_that_names_no_site_does_not_write(opened):
    answer = opened.post("/api/word", content=b"{}", headers={"Content-Type": "application/json"})
    assert answer.status_code == 403


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_words_are_posted_alone(opened, method):
    assert opened.request(method, "/api/word").status_code == 405


@pytest.mark.parametrize("path", ["/", "/api/state", "/api/item", "/api/agreement", "/static/review.js"])
def test_nothing_else_is_posted_to(opened, path):
    assert post(opened, path, {}).status_code == 405


GOOD = {"reviewer": "a", "serial": 1, "entry_id": "0" * 32, "action": "accept", "seconds": 1}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[" * 4000, 400),
        (b"[]", 400),
        (b'"x"', 400),
        (b"\xff", 400),
        (b" " * 5000, 413),
        ({**GOOD}, 400),  # no such entry
        ({**GOOD, "entry_id": "../x"}, 400),
        ({**GOOD, "entry_id": None}, 400),
        ({**GOOD, "action": "undo"}, 400),
        ({**GOOD, "action": ["accept"]}, 400),
        ({**GOOD, "seconds": -1}, 400),
        ({**GOOD, "seconds": "1"}, 400),
        ({**GOOD, "serial": "1"}, 400),
        ({**GOOD, "serial": True}, 400),
        ({**GOOD, "reviewer": "../a"}, 400),
        ({**GOOD, "reviewer": 7}, 400),
        (b'{"reviewer": "a", "seconds": NaN}', 400),
    ],
)
def test_wrong_words_are_refused_with_a_reason(opened, tmp_path, body, status):
    answer = post(opened, "/api/word", body)
    assert (answer.status_code, set(answer.json())) == (status, {"error"})
    for path in (tmp_path / "words").glob("*"):
        assert path.read_text().count("\n") == 1


@pytest.mark.parametrize(
    "path", ["/api/item", "/api/item?n=4", "/api/item?n=-1", "/api/state", "/api/state?reviewer=.."]
)
def test_wrong_questions_are_refused(opened, path):
    assert opened.get(path).status_code == 400


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture
def served(reviews):
    """The address of a server of the review."""
    uvicorn = pytest.importorskip("uvicorn")
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(reviews, Place(port=port)), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=10)


def actions(tmp_path, reviewer):
    return [word.action for word in words.read(tmp_path / "words", reviewer)]


def test_a_person_reviews_by_keys(served, watch, tmp_path):
    watched = watch()
    page = watched.page
    page.goto(served)
    page.get_by_label("Your name").fill("Zoë")
    page.keyboard.press("Enter")
    page.wait_for_selector('.work[data-n="0"] canvas[width]:not([width="0"])')
    assert page.url.endswith("/?reviewer=Zo%C3%AB")
    page.keyboard.press("a")
    page.wait_for_selector('.work[data-n="1"]')
    assert actions(tmp_path, "Zoë") == ["accept"]  # when the next one is shown, it is saved
    assert page.locator(".what").inner_text() == HOSTILE
    page.keyboard.press("r")
    page.wait_for_selector('.work[data-n="2"]')
    page.keyboard.press("u")
    page.wait_for_selector('.work[data-n="1"]')
    assert actions(tmp_path, "Zoë") == ["accept"]
    page.keyboard.press("s")
    page.wait_for_selector('.work[data-n="2"]')
    page.get_by_role("button", name="Reject").click()
    page.wait_for_selector('.work[data-n="3"]')
    assert page.get_by_role("status").inner_text() == "2 of 4 decided, 1 skipped"
    page.keyboard.press("Control+a")  # which is the browser's own
    page.keyboard.press("b")
    page.get_by_text("Nothing is left").wait_for()
    page.get_by_role("button", name="Look at 1 skipped again").click()
    page.wait_for_selector('.work[data-n="1"]')
    page.keyboard.press("a")
    page.get_by_text("4 decided", exact=True).wait_for()  # of the table, not of a status
    assert actions(tmp_path, "Zoë") == ["accept", "skip", "reject", "whole_image_bad", "accept"]
    assert all(0 < word.seconds < 60 for word in words.read(tmp_path / "words", "Zoë"))
    assert {url.split("/")[2] for url in watched.requests if url.startswith("http")} == {served.split("/")[2]}


def test_a_page_goes_on_where_its_reviewer_was(served, watch, reviews):
    name = reviews.queue[0][0]
    opened = reviews.words("a")
    opened.say(words.Said(entry_id=name, action="reject", seconds=1.0), opened.serial)
    page = watch().page
    page.goto(f"{served}/?reviewer=a")
    page.wait_for_selector('.work[data-n="1"]')


def test_a_person_looks_again_at_what_is_disputed(served, watch, reviews, tmp_path):
    for reviewer, actions_ in (("a", ("accept",) * 4), ("b", ("accept", "reject", "accept", "reject"))):
        opened = reviews.words(reviewer)
        for (name, _), action in zip(reviews.queue, actions_, strict=True):
            opened.say(words.Said(entry_id=name, action=action, seconds=1.0), opened.serial)
    page = watch().page
    page.goto(f"{served}/?reviewer=a")
    page.get_by_role("button", name="Look at 2 disputed again").click()
    page.wait_for_selector('.work[data-n="1"]')
    page.keyboard.press("a")  # still
    page.wait_for_selector('.work[data-n="3"]')
    page.keyboard.press("r")
    page.get_by_role("button", name="Look at 1 disputed again").wait_for()
    assert actions(tmp_path, "a")[4:] == ["accept", "reject"]


def test_a_held_key_speaks_once(served, watch, tmp_path):
    page = watch().page
    page.goto(f"{served}/?reviewer=a")
    page.wait_for_selector('.work[data-n="0"]')
    for _ in range(3):
        page.keyboard.down("a")  # the second and third are repeats
    page.wait_for_selector('.work[data-n="1"]')
    page.keyboard.up("a")
    assert actions(tmp_path, "a") == ["accept"]
