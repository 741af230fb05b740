"""How cards look: readable text in light and dark, no jumps, nothing wider than the screen."""

import numpy as np
import pytest

from dataengine.sample import License
from dataengine.sheet import look
from tests.dataengine.view.cards import box_mask, card, open_cards, pixel, prompt, reference, sample, spans, thing

CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((c, i) => c * a + under[i] * (1 - a));
  const behind = (node) => {
    if (!node) return [255, 255, 255];
    const color = rgba(getComputedStyle(node).backgroundColor);
    return color[3] === 1 ? color.slice(0, 3) : over(color, behind(node.parentElement));
  };
  const light = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const found = {};
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.checkVisibility() || node.closest(".stage svg")) continue;
    const under = behind(node), ink = over(rgba(getComputedStyle(node).color), under);
    const [a, b] = [luminance(ink), luminance(under)].sort((x, y) => y - x);
    const name = `${node.className} in ${node.parentElement.className}: ${text.data.slice(0, 20)}`;
    found[name] = Math.min(found[name] ?? 99, (a + 0.05) / (b + 0.05));
  }
  return found;
}"""


def colourful(conditions=40):
    """More conditions than there are colours, absent ones, prompts of all statuses, a reference, a crowd."""
    text = "<image>\nFind " + ", ".join(f"<p>thing {n}</p>" for n in range(conditions)) + " and <p><region></p>."
    given = [{"objects": (n,) if n % 13 else ()} for n in range(conditions)]
    given.append({"text": "cat", "objects": (0,), "exemplar": 0, "reference": -1})
    prompts = [
        prompt("point", (9.5, 9.5), (1,), 3.0, inside=0.2, other=0.9),
        prompt("box", (4.0, 10.0, 24.0, 30.0), (2,), status="fallback"),
        prompt("scribble", status="none"),
    ]
    things = [thing(box_mask(60, 80, 2 * (n % 20), n % 30, 30, 20), str(n), prompts=prompts) for n in range(conditions)]
    things.append(thing(box_mask(60, 80, 0, 50, 80, 10), "crowd", crowd=True))
    others = [reference(box_mask(30, 40, 5, 5, 9, 9), prompts)]
    return sample([text, "Here: <SEG>"], things, spans(text, *given), references=others, variant="panoptic")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable(watch, scheme):
    page = open_cards(watch(scheme=scheme), [card(colourful())])
    for summary in page.locator("summary").all():
        summary.click()

    def check(where):
        found = page.evaluate(CONTRAST)
        assert len(found) > 40
        poor = {name: round(ratio, 2) for name, ratio in found.items() if ratio < 4.5}
        assert not poor, where

    check("at rest")
    page.hover(".span.region")
    check("a region")
    page.hover(".span.absent")
    check("absent")
    page.evaluate("document.querySelectorAll('.span, .seg, .object').forEach(n => n.classList.add('lit'))")
    check("all lit")  # in each of the colours
    hues = page.eval_on_selector_all(".span", "nodes => nodes.map(n => n.style.getPropertyValue('--hue'))")
    assert {f"rgb({r} {g} {b})" for r, g, b in look.COLORS} <= set(hues)


def long_sample():
    words = "word " * 2000
    text = "<image>\n" + " ".join(f"<p>{'name ' * 8}{n}</p>," for n in range(100)) + words
    given = [{"objects": (n, n + 100) if n < 100 else ()} for n in range(100)]
    things = [
        thing(box_mask(60, 80, n % 70, n % 50, 9, 9), f"{n}" * 30, prompts=[prompt("point", (9.5, 9.5), (1,), 3.0)] * 4)
        for n in range(200)
    ]
    return sample(
        [text, "<SEG> " + "x" * 90_000, f"<p>{'y' * 10_000}</p>", "Fine."],
        things,
        [*spans(text, *given), *spans(f"<p>{'y' * 10_000}</p>", {"objects": (3,), "explanation": words}, turn=2)],
        sample_id="a/long/name" * 60,
        variant="k_shot",
        license=License(name="licence " * 200, url="https://example.org/" + "u" * 3000),
    )


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_jumps_and_nothing_is_wider_than_the_screen(watch, width):
    page = open_cards(watch(width=width), [card(long_sample()), card(colourful())])
    places = "n => n.map(x => { const b = x.getBoundingClientRect(); return [b.x, b.y + scrollY, b.width, b.height]; })"
    everything = ".stage, .controls, .about, .turn, details, .span"
    before = page.eval_on_selector_all(everything, places)
    for number in (0, 57, 100):
        page.locator(f'.card:first-child [data-condition="{number}"]').dispatch_event("pointerenter")
        assert page.locator(".card:first-child .about strong").count() == 1
        assert page.eval_on_selector_all(everything, places) == before
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    wide = (
        "n => n.filter(x => x.checkVisibility() && x.getBoundingClientRect().right > innerWidth).map(x => x.className)"
    )
    assert page.eval_on_selector_all("main *:not(.marks *)", wide) == []


def test_a_long_phrase_is_whole_when_it_is_pinned(watch):
    page = open_cards(watch(), [card(long_sample())])
    phrase = page.locator('[data-condition="100"]')
    assert "9,600 more" in phrase.inner_text()
    phrase.press("Enter")
    assert phrase.inner_text() == "101" + "y" * 10_000  # its number before it
    page.locator(".turn").nth(1).get_by_text("more characters").click()
    assert page.locator(".turn .text").nth(1).text_content() == "SEG " + "x" * 90_000


SHAPES = {"tall": (300, 100), "wide": (100, 300), "tiny": (24, 32), "dot": (1, 1), "strip": (20, 2000)}


@pytest.mark.parametrize("screen", [390, 1280])
def test_pictures_of_any_shape_fit(watch, screen):
    text = "<image>\n<p>it</p>"
    whole = [
        sample([text, "<SEG>"], [thing(np.ones(shape, dtype=np.uint8))], spans(text, {"objects": (0,)}), *shape)
        for shape in SHAPES.values()
    ]
    page = open_cards(watch(width=screen), [card(one) for one in whole])
    for number, (name, (height, width)) in enumerate(SHAPES.items()):
        stage = page.locator(".stage").nth(number)
        stage.scroll_into_view_if_needed()
        page.locator(".card").nth(number).locator(".stage[data-draw-ms]").wait_for()
        box = stage.bounding_box()
        assert box["width"] >= 40, name
        assert 20 <= box["height"] <= 0.7 * 900, name
        assert box["x"] + box["width"] <= screen, name
        if max(height, width) < 12 * min(height, width):
            assert box["width"] / box["height"] == pytest.approx(width / height, rel=0.02), name
        assert pixel(page, width / 2, height / 2, number)[3] > 0, name
        if max(height, width) <= 32:
            assert stage.locator("img").evaluate("n => getComputedStyle(n).imageRendering") == "pixelated"


def test_the_picture_stays_in_sight_on_a_phone(watch):
    """A tap on a phrase far below lights masks that can be seen."""
    asked = [t for n in range(12) for t in (f"{'<image>' * (n == 0)}\nWhere is <p>thing {n}</p>?", "<SEG>")]
    conditions = [c for n in range(12) for c in spans(asked[2 * n], {"objects": (0,)}, turn=2 * n, seg=n)]
    page = open_cards(
        watch(width=390, height=800), [card(sample(asked, [thing(box_mask(60, 80, 4, 10, 20, 20))], conditions))]
    )
    page.locator('[data-condition="11"]').scroll_into_view_if_needed()
    assert page.evaluate("scrollY") > 200
    box = page.locator(".stage").bounding_box()
    assert 0 <= box["y"] <= 20
    phrase = page.locator('[data-condition="11"]').bounding_box()
    assert phrase["y"] > box["y"] + box["height"]
