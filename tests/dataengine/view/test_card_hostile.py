"""Cards of samples that lie: no text becomes an element, no number an exception, and what is well is still shown."""

import dataclasses
import json

import pytest

from dataengine.sample import Condition, License, Lineage, Provenance
from tests.dataengine.view.cards import (
    ADDRESS,
    box_mask,
    card,
    counts,
    open_cards,
    pixel,
    prompt,
    reference,
    sample,
    spans,
    thing,
)

TEXT = "<image>\nFind <p>a cat</p> and <p>a dog</p>."
NASTY = {
    "script": "<script>alert(1)</script>",
    "image": '"><img src=x onerror=alert(1)>',
    "svg": "<svg/onload=alert(1)><foreignObject><iframe src=javascript:alert(1)>",
    "link": "javascript:alert(1)",
    "end of data": "</script></style>--><b>out</b>\u2028\u2029",
    "direction": "abc\u202egnp.exe\u2066\u200f",
    "NUL": "a\x00b\x01\x1b[31m",
    "markers": "</p><p><SEG><image><region>",
    "prototype": "__proto__",
    "constructor": "constructor",
    "long": "w" * 50_000,
    "many lines": "line\n" * 3000,
}


def two_boxes(**changes):
    things = [
        thing(box_mask(60, 80, 4, 10, 20, 20), "1", prompts=[prompt("box", (4.0, 10.0, 24.0, 30.0), (2,))]),
        thing(box_mask(60, 80, 40, 10, 30, 40), "2", category_id=2),
    ]
    conditions = spans(TEXT, {"objects": (0,)}, {"objects": (1,)})
    return sample([TEXT, "<SEG>"], things, conditions, **changes)


def everywhere(text):
    """A sample whose every string is `text`, but for the spans that hold its conversation together."""
    lineage = Lineage(origin=text, labeler=text, revision=text, score=0.5, reviewer=text)
    talk = f"<image>\n{text.replace('<p>', '').replace('</p>', '')} <p>{text}</p>"
    condition = Condition(
        kind=text,
        text=text,
        objects=(0,),
        explanation=text,
        reference=0,
        seg=0,
        turn=0,
        start=talk.index("<p>"),
        end=len(talk),
    )
    odd = dataclasses.replace(prompt("point", (9.5, 9.5), (1,), 3.0), kind=text, profile=text, status=text)
    thing_ = thing(box_mask(60, 80, 4, 10, 20, 20), text, prompts=[odd], lineage=lineage)
    good = sample(
        [talk, text],
        [thing_, thing(box_mask(60, 80, 40, 10, 30, 40))],
        [condition],
        references=[reference(box_mask(30, 40, 5, 5, 9, 9), [odd], text, key=text)],
        sample_id=text,
        variant=text,
        source=text,
        split=text,
        image_key=text,
        caption=text,
        license=License(name=text, url=text),
        provenance=Provenance(file=text, record=text, builder=text, version=1, seed=2**63 - 1, url=text),
    )
    return dataclasses.replace(good, task=text, turns=(dataclasses.replace(good.turns[0], role=text), good.turns[1]))


def test_texts_stay_texts(watch):
    watched = watch()
    cards = [card(everywhere(text), [text], shard=text) for text in NASTY.values()]
    page = open_cards(watched, cards, {"href": "#row"})
    page.evaluate("document.querySelectorAll('details').forEach(node => { node.open = true; })")
    for number, (name, text) in enumerate(NASTY.items()):
        shown = page.locator(".card").nth(number)
        shown.locator(".object").first.hover()
        shown.locator(".span").first.press("Enter")
        shown.locator(".stage[data-draw-ms]").first.wait_for()
        assert pixel(shown, 10, 15)[3] > 0, name
        assert json.loads(shown.locator(".raw pre").text_content())["sample_id"] == text, name
    assert page.locator("script, iframe, foreignObject, b:text-is('out')").count() == 1  # the page's own module
    assert page.locator("img").evaluate_all("nodes => nodes.every(n => n.src.startsWith('data:image/png'))")
    assert page.locator("[onerror], [onload], a[href^='javascript']").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert all(url.startswith((ADDRESS, "data:")) for url in watched.requests)


def changed(**changes):
    """A good card whose row is changed by path: `objects__0__rle="…"`."""
    data = json.loads(json.dumps(card(two_boxes())))
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("__")]
        place = data["row"]
        for part in parents:
            place = place[part]
        place[last] = value
    return data


HUGE = 1e300
ROWS = {
    "counts of another canvas": {"objects__0__rle": counts(box_mask(9, 9, 1, 1, 3, 3)).decode()},
    "damaged counts": {"objects__0__rle": "\x00\xff~~~"},
    "no counts": {"objects__0__rle": None},
    "indices out of range": {
        "conditions__0__objects": [-1, 5, 32767],
        "conditions__0__exemplar": 99,
        "conditions__0__reference": 99,
        "conditions__0__shots": [-5, 99],
        "conditions__0__seg": 99,
    },
    "a turn that is not there": {"conditions__0__turn": 9},
    "a span beyond the text": {"conditions__0__start": 5, "conditions__0__end": 99999},
    "a span before the text": {"conditions__0__start": -5, "conditions__0__end": -1},
    "a span that ends before it starts": {"conditions__0__start": 20, "conditions__0__end": 10},
    "spans that overlap": {"conditions__0__start": 10, "conditions__0__end": 40},
    "numbers that are none": {
        "objects__0__area": None,
        "objects__0__bbox": [None] * 4,
        "objects__0__category_id": None,
    },
    "numbers without end": {
        "objects__0__area": HUGE,
        "objects__0__bbox": [HUGE] * 4,
        "objects__0__category_id": -(2**31),
    },
    "a number as text": {"objects__0__area": "9007199254740993", "provenance__seed": "9007199254740993"},
    "scores that are none": {"objects__0__lineage": {"origin": "model", "labeler": None, "score": None, "round": None}},
    "no lineage": {"objects__0__lineage": None},
    "an ignore mask that is none": {"ignore": "zzzz"},
    "a width that is none": {"width": 0},
    "a negative height": {"height": -60},
    "a canvas without end": {"height": 2**31 - 1, "width": 2**31 - 1},
    "a thin canvas without end": {"height": 1, "width": 2**31 - 1},
    "no provenance": {"provenance": None, "license": None},
}


def test_a_wrong_row_leaves_the_rest(watch):
    """The second object and its phrase are well: they are shown and linked, unless the canvas itself is wrong."""
    page = open_cards(watch(), [changed(**wrong) for wrong in ROWS.values()], drawn=False)
    for number, (name, wrong) in enumerate(ROWS.items()):
        shown = page.locator(".card").nth(number)
        phrase = shown.locator('[data-condition="1"]')
        assert phrase.text_content() == "a dog", name
        phrase.hover()
        if wrong.keys() & {"width", "height"}:
            continue
        shown.locator(".stage[data-draw-ms]").wait_for()
        assert pixel(shown, 50, 20)[3] > 0, name
        assert shown.locator(".span.lit").count() == 1, name
        shown.locator('[data-condition="0"]').hover()
        box = shown.locator(".stage").bounding_box()
        shown.locator(".stage").hover(position={"x": box["width"] * 0.7, "y": box["height"] * 0.5})
        assert "lit" in phrase.get_attribute("class"), name
        shown.locator(".objects summary").click()
        shown.locator(".object").first.hover()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"objects__0__rle": "\x00"}, "object 1: the mask's counts are damaged"),
        ({"objects__1__rle": "55"}, "object 2: the mask's counts do not fill its canvas"),
        ({"ignore": "zzzz"}, "ignored pixels: the mask's counts are damaged"),
        ({"height": 2**31 - 1}, "object 1: the canvas is too large to be shown"),
    ],
)
def test_what_is_wrong_with_a_mask_is_said(watch, change, says):
    page = open_cards(watch(), [changed(**change)], drawn=False)
    page.wait_for_selector(".trouble p")
    assert says in page.inner_text(".trouble")


PROMPTS = {
    "NaN": {"points": [None, 5.0, None, None], "radius": None, "inside": None, "other": None},
    "infinite": {"points": [HUGE, -HUGE, 3.0, HUGE], "radius": HUGE, "inside": HUGE, "other": -HUGE},
    "parts of more points": {"points": [5.0, 5.0], "parts": [7, 8]},
    "negative parts": {"points": [5.0, 5.0, 9.0, 9.0], "parts": [-3, 1, -(2**31), 2**31 - 1]},
    "an odd count": {"points": [5.0, 5.0, 9.0], "parts": []},
    "no points": {"points": [], "parts": []},
    "very many points": {"points": [5.0] * 100_000, "parts": [1] * 50_000},
    "boxes of negative size": {"points": [50.0, 50.0, 5.0, 5.0], "parts": [2]},
    "a mask of another canvas": {"rle": "5"},
    "a mask that is damaged": {"rle": "\x00\x7f"},
}


def test_a_wrong_prompt_leaves_the_rest(watch):
    text = "<image>\n<p><region></p>"
    good = [prompt(kind, (9.5, 9.5, 20.5, 20.5), (2,), 3.0) for kind in ("point", "scribble", "box", "mask")]
    row = sample(
        [text, "<SEG>"],
        [thing(box_mask(60, 80, 4, 10, 20, 20), prompts=good)],
        spans(text, {"text": "cat", "objects": (0,), "exemplar": 0}),
        task="vgdseg",
    )
    cards = []
    for changes in PROMPTS.values():
        cards.append(json.loads(json.dumps(card(row))))
        for wrong in cards[-1]["row"]["objects"][0]["prompts"]:
            wrong.update(changes)
    page = open_cards(watch(), cards)
    for number, name in enumerate(PROMPTS):
        shown = page.locator(".card").nth(number)
        shown.locator(".span").hover()
        shown.locator(".stage[data-draw-ms]").wait_for()
        assert shown.locator(".about .prompt").count() == 4, name
        assert shown.locator(".marks *").count() < 12_000, name
        assert shown.locator(".marks").evaluate("n => !/NaN|Infinity|null|undefined/.test(n.outerHTML)"), name
        assert pixel(shown, 12, 20)[3] > 0, name


def test_thousands_of_everything_are_shown_in_part(watch):
    """As many objects, turns and references as the format allows."""
    data = changed()
    row = data["row"]
    one, turn = row["objects"][0], {"role": "user", "text": "again and again", "supervised": False}
    row["objects"] += [one] * 8000
    row["turns"] += [turn] * 8000
    other = json.loads(json.dumps(card(everywhere("x"))))["row"]["references"][0]
    row["references"] = [other] * 1000
    page = open_cards(watch(), [data])
    assert page.evaluate("window.built") < 5000
    assert "more turns" in page.inner_text(".talk > button")
    page.click(".talk > button")
    assert page.locator(".turn").count() == 120
    page.hover('[data-condition="1"]')
    assert page.locator(".span.lit").count() == 1
