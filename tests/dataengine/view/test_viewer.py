"""The viewer in a browser: what a person does with it, and what data must not do."""

from __future__ import annotations

import re
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dataengine.records import Bad
from dataengine.sample import Lineage
from dataengine.store.dataset import open_dataset

uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture
def serve():
    """Serves datasets on a free port of this machine: `serve(*folders)` gives the address."""
    running = []

    def start(*folders: Path) -> str:
        from dataengine.view.server import Place, make_app

        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        app = make_app([open_dataset(str(folder)) for folder in folders], Place(port=port))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.append((server, thread))
        return f"http://127.0.0.1:{port}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture
def watch(serve, watch):
    """Pages are closed before their server."""
    return watch


@pytest.fixture
def many(toy, write_dataset):
    """120 samples in three shards; every third is of another task, and has words of its own."""
    samples = [toy(n) for n in range(120)]
    for n in range(0, 120, 3):
        turn = replace(samples[n].turns[0], text=samples[n].turns[0].text + f"Number {n} is special.")
        samples[n] = replace(samples[n], task="reaseg", turns=(turn, samples[n].turns[1]))
    return write_dataset(samples, rows_a_shard=40)


def shown(page) -> str:
    """The id of the sample on the card."""
    return page.locator(".card").get_attribute("data-id")


def toy_id(number: int) -> str:
    return f"toy/train/toy/{number:06d}/refseg"


def expect_shown(page, sample_id: str) -> None:
    page.locator(f'.card[data-id="{sample_id}"]').wait_for()


def found(page, number: int) -> None:
    """Wait until the list says how many samples it found."""
    page.wait_for_function(
        "n => document.querySelector('.found')?.textContent === n", arg=f"{number} sample{'' if number == 1 else 's'}"
    )


def test_the_first_page(watch, serve, many):
    watched = watch()
    address = serve(many)
    page = watched.page
    page.goto(address)
    expect_shown(page, toy_id(0))
    found(page, 120)
    assert page.locator(".row").count() == 50
    assert page.locator(".card img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    assert all(url.startswith((address, "data:")) for url in watched.requests)


def test_filters_search_and_back(watch, serve, many):
    page = watch().page
    page.goto(serve(many))
    found(page, 120)
    page.locator('[data-filter="task"] .choice', has_text="reaseg").click()
    found(page, 40)
    assert "task=reaseg" in page.url
    page.keyboard.press("/")
    page.keyboard.type("number 33 IS")
    found(page, 1)
    expect_shown(page, toy_id(33))
    page.locator("button", has_text="Clear filters").click()
    found(page, 1)  # what is searched for stays
    page.locator('input[type="search"]').fill("")
    found(page, 120)
    page.go_back()
    found(page, 1)


def test_a_deep_link_and_one_that_leads_nowhere(watch, serve, many):
    watched = watch()
    address = serve(many)
    page = watched.page
    page.goto(f"{address}/?task=refseg&id={toy_id(110)}")
    expect_shown(page, toy_id(110))
    found(page, 80)
    assert page.locator(".row[aria-current]").count() == 1
    page.locator(".moves", has_text="74 of 80").wait_for()  # 0, 3, 6 … 108 are of the other task
    page.goto(f"{address}/?id=toy/train/none")
    page.locator(".trouble", has_text="toy/train/none").wait_for()
    watched.problems = [problem for problem in watched.problems if "404" not in problem]


def test_the_keyboard_turns_samples_and_pages(watch, serve, many):
    page = watch().page
    page.goto(f"{serve(many)}/?id={toy_id(49)}")
    expect_shown(page, toy_id(49))
    page.locator(".row[aria-current]").wait_for()
    page.keyboard.press("ArrowRight")
    expect_shown(page, toy_id(50))
    assert "51–100 of 120" in page.locator(".list .pager").inner_text()
    page.keyboard.press("ArrowLeft")
    expect_shown(page, toy_id(49))
    assert inked(page) > 0
    page.keyboard.press(" ")
    assert inked(page) == 0
    page.keyboard.press(" ")
    assert inked(page) > 0
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    page.keyboard.press("r")
    page.wait_for_function("id => document.querySelector('.card')?.dataset.id !== id", arg=toy_id(49))


def inked(page) -> int:
    """Pixels of the masks' canvas that are not transparent."""
    return page.locator(".card canvas.masks").first.evaluate(
        "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 === 3 && v).length"
    )


def test_the_theme_is_kept_and_text_alone_has_no_thumbnail(watch, serve, toy, write_dataset):
    alone = toy(0, image=None, height=0, width=0, objects=(), conditions=(), task="chat")
    watched = watch()
    page = watched.page
    page.goto(serve(write_dataset([alone, toy(1)])))
    found(page, 2)
    assert page.locator(".row img").count() == 1
    page.locator('.top button[title*="dark"]').click()
    page.reload()
    found(page, 2)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert not any("n=0&px" in url for url in watched.requests)


def test_order(watch, serve, toy, write_dataset):
    samples = [replace(toy(n), objects=toy(n).objects[: n + 1], conditions=()) for n in range(2)]
    page = watch().page
    page.goto(serve(write_dataset(samples)))
    found(page, 2)
    page.locator(".order select").select_option("objects")
    page.locator(".order button").click()
    expect_shown(page, toy_id(1))


def test_a_phrase_lights_its_mask_and_a_mask_its_phrase(watch, serve, many):
    page = watch().page
    page.goto(f"{serve(many)}/?id={toy_id(1)}")
    expect_shown(page, toy_id(1))
    dog, cat = page.locator(".span", has_text="dog"), page.locator(".span", has_text="cat")
    before = alpha(page, 10, 10)
    dog.hover()
    assert alpha(page, 10, 10) > before > alpha(page, 40, 30)
    box = page.locator(".stage").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 40 / 64, box["y"] + box["height"] * 30 / 48)
    assert "lit" in cat.get_attribute("class")
    assert "lit" not in dog.get_attribute("class")


def alpha(page, x: int, y: int) -> int:
    """Opacity of the masks' canvas at a pixel of the picture, 0 to 255."""
    return page.locator(".card canvas.masks").first.evaluate(
        "(c, [x, y]) => c.getContext('2d').getImageData(x / 64 * c.width, y / 48 * c.height, 1, 1).data[3]", [x, y]
    )


def test_two_rounds_side_by_side(watch, serve, toy, write_dataset):
    old = [toy(n) for n in range(6)]
    new = [toy(n) for n in range(1, 7)]
    moved = replace(old[0].objects[0], rle=old[0].objects[1].rle, area=400, bbox=(30, 20, 20, 20))
    model = Lineage(origin="model", labeler="x-sam", round=1, score=0.5)
    new[2] = replace(new[2], objects=(replace(moved, annotation_id="3-a", lineage=model), new[2].objects[1]))
    page = watch().page
    page.goto(serve(write_dataset(old), write_dataset(new)) + "/?d=1")
    found(page, 6)
    page.locator('[data-filter="change"] .choice', has_text="changed").click()
    found(page, 1)
    expect_shown(page, toy_id(3))
    page.keyboard.press("c")
    page.locator(".side").nth(1).wait_for()
    assert page.locator(".side .card").count() == 2
    assert "IoU 0.000" in page.locator(".change").inner_text()
    page.goto(page.url.replace("change=changed", "change=added").partition("&id=")[0])
    found(page, 1)
    page.locator(".change", has_text="It is new").wait_for()


def test_quarantine(watch, serve, toy, write_dataset):
    payload = '{"id": 7, "segmentation": "<b>bold</b>"}'
    bad = [
        Bad(unit="annotations", file="a.json", record=str(n), group=str(n), reason=why, message="odd", payload=payload)
        for n, why in enumerate(["mask_empty", "mask_empty", "polygon_odd"])
    ]
    page = watch().page
    page.goto(serve(write_dataset([toy(0)], bad=bad)) + "/?tab=quarantine")
    page.locator("h2", has_text="3 records could not be built").wait_for()
    assert page.locator(".command code").inner_text().startswith("dataengine replay ")
    page.locator(".reasons button", has_text="polygon_odd").click()
    page.locator(".records li").first.wait_for()
    page.wait_for_function("() => document.querySelectorAll('.records li').length === 1")
    page.locator(".records summary").click()
    page.locator(".records pre", has_text='"segmentation": "<b>bold</b>"').wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_has_all_of_it(watch, serve, many, scheme):
    page = watch(width=390, height=800, scheme=scheme).page
    page.goto(serve(many))
    expect_shown(page, toy_id(0))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("window.scrollY") == 0  # the list below has a chosen row as well, to which nothing jumps
    page.locator(".filters summary").click()
    page.locator('[data-filter="task"] .choice', has_text="reaseg").click()
    found(page, 40)
    page.locator(".moves button", has_text="next").click()
    expect_shown(page, toy_id(3))


@pytest.fixture
def rounds(toy, write_dataset):
    """Two datasets: of what is 0 to 5 in the old one, 1 to 6 are in the new one, and 3 has another mask there."""
    old, new = [toy(n) for n in range(6)], [toy(n) for n in range(1, 7)]
    moved = replace(old[3].objects[0], rle=old[3].objects[1].rle, area=400, bbox=(30, 20, 20, 20))
    new[2] = replace(new[2], objects=(moved, new[2].objects[1]))
    bad = [
        Bad(unit="annotations", file="a.json", record=str(n), group=str(n), reason="odd", message="", payload="")
        for n in range(60)
    ]
    return write_dataset(old, bad=bad), write_dataset(new)


def test_back_shows_what_the_address_says(watch, serve, rounds):
    """Also where the card's row has the same number in the other dataset, or another tab stood in between."""
    page = watch().page
    page.goto(serve(*rounds))
    expect_shown(page, toy_id(0))
    found(page, 6)
    page.locator("header select").select_option("1")
    expect_shown(page, toy_id(1))
    page.go_back()
    expect_shown(page, toy_id(0))
    page.keyboard.press("c")
    page.locator(".sides").wait_for()
    page.keyboard.press("c")
    page.locator(".sides").wait_for(state="detached")
    page.locator(".tab", has_text="Quarantine").click()
    page.locator(".quarantine").wait_for()
    page.go_back()
    expect_shown(page, toy_id(0))
    page.locator(".quarantine").wait_for(state="detached")


def test_quarantine_is_paged_by_its_address(watch, serve, rounds):
    page = watch().page
    page.goto(serve(*rounds) + "/?tab=quarantine")
    page.locator(".pager button", has_text="page →").click()
    page.locator(".pager", has_text="51–60 of 60").wait_for()
    assert "from=50" in page.url
    assert page.locator(".records li").count() == 10
    page.go_back()
    page.locator(".pager", has_text="1–50 of 60").wait_for()


def test_typing_and_changing_keep_the_focus(watch, serve, many):
    """Else the next letter would be a key of the page, and the next Tab would begin at its top."""
    page = watch().page
    page.goto(serve(many))
    found(page, 120)
    page.keyboard.press("/")
    for typed, number in (("number 3", 5), ("3", 1)):  # 3, 30, 33, 36, 39; then 33
        page.keyboard.type(typed)
        page.wait_for_function("n => document.querySelector('.found').textContent.startsWith(n + ' ')", arg=number)
    assert page.locator('input[type="search"]').input_value() == "number 33"
    page.locator('input[type="search"]').fill("")
    found(page, 120)
    box = page.locator('[data-filter="task"] input').first
    box.focus()
    page.keyboard.press(" ")
    page.locator(".filters .many").wait_for()
    assert page.evaluate("document.activeElement.type") == "checkbox"
    page.locator(".moves button", has_text="next").focus()
    before = shown(page)
    page.keyboard.press("Enter")
    page.wait_for_function("id => document.querySelector('.card').dataset.id !== id", arg=before)
    assert page.evaluate("document.activeElement.textContent") == "next →"


def test_an_older_answer_never_replaces_a_newer_one(watch, serve, many):
    page = watch().page
    page.goto(serve(many))
    expect_shown(page, toy_id(0))  # whose answer is not the one that is kept back
    held = []
    page.route("**/api/row?*", lambda route: held.append(route) if not held else route.continue_())
    page.keyboard.press("ArrowRight")  # its answer is kept back
    page.keyboard.press("ArrowRight")
    expect_shown(page, toy_id(2))
    held[0].continue_()
    page.keyboard.press("ArrowRight")
    expect_shown(page, toy_id(3))
    assert toy_id(3).replace("/", "%2F") in page.url
    assert page.locator(".row[aria-current]").get_attribute("data-number") == "3"


def test_a_server_that_does_not_answer_is_told(watch, serve, many):
    watched = watch()
    page = watched.page
    page.goto(serve(many))
    found(page, 120)
    page.route("**/api/row?*", lambda route: route.abort("connectionrefused"))
    page.keyboard.press("ArrowRight")
    page.locator(".trouble", has_text="does not answer").wait_for()
    assert page.locator(".card").count() == 0  # the address speaks of another sample
    page.unroute("**/api/row?*")
    page.keyboard.press("ArrowRight")
    expect_shown(page, toy_id(2))
    assert not page.locator("#view > .trouble").is_visible()
    watched.problems = [problem for problem in watched.problems if "ERR_CONNECTION_REFUSED" not in problem]


SHIFTS = """new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts = (window.shifts ?? 0) + entry.value;
}).observe({type: "layout-shift", buffered: true})"""


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_jumps(watch, serve, many, width):
    page = watch(width=width).page
    page.add_init_script(SHIFTS)
    page.goto(serve(many))
    found(page, 120)
    page.keyboard.press("ArrowRight")
    expect_shown(page, toy_id(1))
    assert page.evaluate("window.shifts ?? 0") == 0
    if width == 1280:  # what was just clicked stays under the pointer
        choice = page.locator('[data-filter="task"] .choice', has_text="reaseg")
        place = choice.bounding_box()
        choice.click()
        found(page, 40)
        assert choice.bounding_box() == place


def test_the_sample_is_two_keys_away(watch, serve, many):
    """Filters and list come before it: a hundred controls."""
    page = watch().page
    page.goto(serve(many))
    found(page, 120)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")


EVIL = "\"><img src=x onerror=alert(1)><script>alert(2)</script>'/../..\\ \u202egnp.exe\0"


def test_hostile_data_stays_text(watch, serve, toy, write_dataset, tmp_path):
    """Scripts in every text, pictures that are none, paths that lead outside: no dialog, no request elsewhere."""
    (tmp_path / "secret.txt").write_text("the secret")
    sample = toy(0)
    evil = EVIL.replace("\0", "")
    conditions = tuple(replace(condition, text=evil, explanation=evil) for condition in sample.conditions)
    objects = tuple(replace(thing, annotation_id=evil) for thing in sample.objects)
    turns = tuple(replace(turn, text=turn.text + evil * 100) for turn in sample.turns)
    hostile = replace(
        sample, conditions=conditions, objects=objects, turns=turns, sample_id=f"toy/train/{evil}", variant=evil,
        image_key=evil, provenance=replace(sample.provenance, file=evil, record=evil),
    )  # fmt: skip
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(3)</script></svg>'
    others = [
        replace(toy(1), image=replace(sample.image, bytes=svg)),
        replace(toy(2), image=replace(sample.image, bytes=None, path=str(tmp_path / "secret.txt"))),
        replace(toy(3), image=replace(sample.image, bytes=None, path="http://127.0.0.1:9/secret.png")),
    ]
    bad = Bad(unit="images", file=evil, record=evil, group=evil, reason=evil, message=evil, payload=evil)
    watched = watch()
    page = watched.page
    answers = []
    page.on("response", lambda response: answers.append((response.url, response.headers.get("content-type", ""))))
    address = serve(write_dataset([hostile, *others], bad=[bad]))
    page.goto(address)
    page.locator(".card").wait_for()
    assert page.locator(".card .id").inner_text() == f"toy/train/{evil}"
    page.locator(".raw summary").click()
    for number in (1, 2, 3):
        page.keyboard.press("Escape")
        page.locator(".moves button", has_text="next").click()
        expect_shown(page, toy_id(number))
        page.locator(".stage .missing").wait_for()
    page.locator(".tab", has_text="Quarantine").click()
    page.locator(".records summary").click()
    page.locator(".records pre").wait_for()
    assert page.locator("script:not([src])").count() == 0
    assert page.locator("img[onerror]").count() == 0
    assert all(url.startswith((address, "data:")) for url in watched.requests)
    assert not any(re.search("svg|html", kind) for url, kind in answers if "/api/" in url)
    watched.problems = [problem for problem in watched.problems if not re.search("status of 4", problem)]
