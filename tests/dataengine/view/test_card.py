"""The sample card in a browser: what a conversation and its picture say about each other, however one points."""

import dataclasses

import numpy as np
import pytest

from dataengine.sample import Lineage
from dataengine.sheet import look
from tests.dataengine.view.cards import (
    box_mask,
    card,
    counts,
    lit,
    open_cards,
    picture_url,
    pixel,
    prompt,
    reference,
    sample,
    spans,
    thing,
)

ASTRAL = "👩‍👩‍👧 e\u0301 漢字 שלום <p>𝒳-ray fish 🐟</p> und 🐕‍🦺 <p>القط</p>."
NO_HUE = (150, 154, 160)


def three_masks():
    """Two boxes side by side, and one that lies in the second."""
    return [box_mask(60, 80, 4, 10, 20, 20), box_mask(60, 80, 40, 10, 30, 40), box_mask(60, 80, 50, 20, 10, 10)]


def conversation():
    """Three turns of questions: the second asks for two objects, one of them asked for again by the third."""
    asked = [
        "<image>\nFind <p>a cat</p>.",
        "<SEG>",
        "And <p>two dogs</p>?",
        "Sure, <SEG>",
        "Only <p>the small one</p>.",
        "<SEG>.",
    ]
    conditions = [
        *spans(asked[0], {"objects": (0,)}, turn=0, seg=0),
        *spans(asked[2], {"objects": (1, 2)}, turn=2, seg=1),
        *spans(asked[4], {"objects": (2,)}, turn=4, seg=2),
    ]
    things = [thing(mask, str(100 + n), category_id=1 + (n > 0)) for n, mask in enumerate(three_masks())]
    return sample(asked, things, conditions)


@pytest.fixture
def page(watch):
    return open_cards(watch(), [card(conversation(), ["cat", "dog"])])


def over(page, x, y):
    """Move the pointer over a place of the picture, in its px."""
    box = page.locator(".stage").first.bounding_box()
    page.mouse.move(box["x"] + x * box["width"] / 80, box["y"] + y * box["height"] / 60)


def test_a_phrase_lights_its_masks_and_its_seg_and_dims_the_others(page):
    calm = [pixel(page, 14, 20), pixel(page, 45, 40)]
    page.hover('[data-condition="1"]')
    assert lit(page, ".span") == [1]
    assert lit(page, ".seg") == [1]
    assert pixel(page, 14, 20)[3] < calm[0][3]
    assert pixel(page, 45, 40)[3] > calm[1][3]
    assert pixel(page, 55, 25)[3] > calm[1][3]
    assert "two dogs" in page.inner_text(".about")
    page.mouse.move(2, 2)
    assert [pixel(page, 14, 20), pixel(page, 45, 40)] == calm
    assert lit(page, ".span") == []


def test_a_mask_lights_every_phrase_that_asks_for_it(page):
    over(page, 14, 20)
    assert (lit(page, ".span"), lit(page, ".seg")) == ([0], [0])
    assert "400 px, 8.3 % of the picture" in page.inner_text(".about")
    over(page, 55, 25)  # the small one lies on top of the large one
    assert (lit(page, ".span"), lit(page, ".seg")) == ([1, 2], [1, 2])
    assert "annotation 102" in page.inner_text(".about")
    over(page, 2, 2)
    assert lit(page, ".span") == []


def test_a_seg_lights_what_it_answers(page):
    page.hover('[data-seg="1"]')
    assert (lit(page, ".span"), lit(page, ".seg")) == ([1], [1])
    assert "SEG 2 answers 1 condition with 2 masks" in page.inner_text(".about")


def test_a_lit_mask_lies_on_top(page):
    """The large mask covers the small one while its own object is lit."""
    small = pixel(page, 55, 25)[:3]
    over(page, 45, 45)
    assert pixel(page, 55, 25)[:3] != small
    assert pixel(page, 55, 25)[:3] == pixel(page, 45, 45)[:3]


def test_colours_are_those_of_the_ranks(page):
    chosen = conversation()
    expected = look.colors_of(chosen)
    for number, color in expected.items():
        hue = page.eval_on_selector(f'[data-condition="{number}"]', "n => n.style.getPropertyValue('--hue')")
        assert hue == f"rgb({' '.join(map(str, color))})"
        seg = page.eval_on_selector(f'[data-seg="{number}"]', "n => n.style.getPropertyValue('--hue')")
        assert seg == hue
    assert close(pixel(page, 14, 20), expected[0])


def close(found, color):
    """Unpremultiplied bytes of a translucent pixel are a step or two off."""
    return np.abs(np.subtract(found[:3], color)).max() <= 3


def test_an_object_of_two_phrases_is_striped(page):
    colors = look.colors_of(conversation())
    found = {tuple(color) for x in range(52, 59) for color in colors.values() if close(pixel(page, x, 25), color)}
    assert found == {colors[1], colors[2]}


def test_a_click_pins_and_a_second_click_or_escape_lets_go(page):
    phrase = page.locator('[data-condition="1"]')
    phrase.click()
    page.mouse.move(2, 2)
    assert (lit(page, ".span"), phrase.get_attribute("aria-pressed")) == ([1], "true")
    page.hover('[data-condition="0"]')
    assert lit(page, ".span") == [0]  # a look at another one
    page.mouse.move(2, 2)
    assert lit(page, ".span") == [1]
    phrase.click()
    page.mouse.move(2, 2)
    assert (lit(page, ".span"), phrase.get_attribute("aria-pressed")) == ([], "false")
    phrase.click()
    page.mouse.move(2, 2)
    page.keyboard.press("Escape")
    assert (lit(page, ".span"), phrase.get_attribute("aria-pressed")) == ([], "false")
    over(page, 14, 20)
    page.mouse.down()
    page.mouse.up()
    page.mouse.move(2, 2)
    assert lit(page, ".span") == [0]
    over(page, 2, 2)
    page.mouse.down()
    page.mouse.up()  # beside all masks
    assert lit(page, ".span") == []


def test_the_keyboard_reaches_everything(page):
    """Tab goes through links, phrases, SEGs and controls; focus lights, Enter and space pin, Escape lets go."""
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate("document.activeElement.dataset.condition ?? document.activeElement.dataset.seg ?? ''")
        )
        if seen[-1] == "1" and "pinned" not in seen:
            assert lit(page, ".span") == [1]
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none"
            page.keyboard.press("Enter")
            assert page.get_attribute('[data-condition="1"]', "aria-pressed") == "true"
            page.keyboard.press("Escape")
            assert page.get_attribute('[data-condition="1"]', "aria-pressed") == "false"
            page.keyboard.press(" ")
            assert page.get_attribute('[data-condition="1"]', "aria-pressed") == "true"
            page.keyboard.press("Escape")
            seen.append("pinned")
    assert [name for name in seen if name in "012" and name][:6] == ["0", "0", "1", "1", "2", "2"]
    page.locator("summary", has_text="3 objects").press("Enter")
    page.locator(".object").nth(2).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert lit(page, ".span") == [1, 2]


def test_a_tap_pins(watch):
    watched = watch()
    context = watched.page.context.browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True)
    watched.page.close()
    watched.page = context.new_page()
    page = open_cards(watched, [card(conversation(), ["cat", "dog"])])
    page.tap('[data-condition="1"]')
    assert lit(page, ".span") == [1]
    page.tap('[data-condition="1"]')
    assert lit(page, ".span") == []
    box = page.locator(".stage").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 14 / 80, box["y"] + box["height"] * 20 / 60)
    assert lit(page, ".span") == [0]
    context.close()


def test_spans_count_code_points(watch):
    text = f"<image>\n{ASTRAL}"
    shown = sample(
        [text, "<SEG> <SEG>"], [thing(box_mask(60, 80, 5, 5, 9, 9))], spans(text, {"objects": (0,)}, {"seg": 1})
    )
    page = open_cards(watch(), [card(shown)])
    assert page.locator(".span").all_inner_texts() == ["𝒳-ray fish 🐟", "القط"]
    whole = page.locator(".turn .text").first.text_content()
    assert whole == "image\n" + ASTRAL.replace("<p>", "").replace("</p>", "")


def test_what_is_absent_and_what_nobody_asks_for_is_told_apart(watch):
    text = "<image>\nSegment <p>cat</p>, <p>dog</p>, <p>eel</p>."
    things = [
        thing(box_mask(60, 80, 2, 2, 20, 20)),
        thing(box_mask(60, 80, 40, 2, 20, 20), "2"),
        thing(box_mask(60, 80, 2, 30, 70, 28), "3", crowd=True),
    ]
    conditions = spans(text, {"objects": ()}, {"objects": (0,)}, {"objects": ()})
    shown = sample([text, "<SEG>"], things, conditions, ignore=counts(box_mask(60, 80, 64, 2, 14, 20)))
    page = open_cards(watch(), [card(shown)])
    assert page.locator(".span.absent").all_inner_texts() == ["cat", "eel"]
    assert close(pixel(page, 10, 10), look.COLORS[0])
    assert close(pixel(page, 50, 10), NO_HUE)
    for left, top, name in ((10, 40, "crowd"), (68, 8, "ignored")):
        alphas = {pixel(page, left + at / 4, top)[3] for at in range(16)}
        assert len(alphas) > 1, f"{name} is not hatched"
    legend = page.inner_text(".legend")
    assert all(word in legend for word in ("crowd", "ignored pixels", "not asked for", "asked for, not there"))
    page.hover(".span.absent")
    assert "nothing to be found" in page.inner_text(".about")


def test_specks_have_a_ring_and_can_be_pointed_at(watch):
    text = "<image>\n<p>a bird</p>"
    speck = sample(
        [text, "<SEG>"], [thing(box_mask(960, 1280, 700, 300, 1, 1))], spans(text, {"objects": (0,)}), 960, 1280
    )
    page = open_cards(watch(), [card(speck)])
    ring = page.locator("circle.speck")
    assert [float(ring.get_attribute(name)) for name in ("cx", "cy")] == [700.5, 300.5]
    box = page.locator(".stage").bounding_box()
    scale = box["width"] / 1280
    assert float(ring.get_attribute("r")) * scale == pytest.approx(8)
    page.mouse.move(box["x"] + 700 * scale + 5, box["y"] + 300 * scale + 4)
    assert lit(page, ".span") == [0]


def test_a_line_thinner_than_a_shown_pixel_stays_visible(watch):
    text = "<image>\n<p>a wire</p>"
    wire = np.zeros((2400, 3200), dtype=np.uint8)
    wire[np.arange(2000), np.arange(2000) + 101] = 1
    page = open_cards(
        watch(), [card(sample([text, "<SEG>"], [thing(wire)], spans(text, {"objects": (0,)}), 2400, 3200))]
    )
    painted = page.eval_on_selector(
        ".stage canvas",
        """c => { const p = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
          let n = 0; for (let i = 3; i < p.length; i += 4) n += p[i] > 0; return n; }""",
    )
    assert painted >= 2000 * page.locator(".stage").bounding_box()["width"] / 3200


KINDS = {
    "point": prompt("point", (10.5, 20.5, 30.5, 40.5), (1, 1), 3.0, inside=0.975, other=0.01),
    "scribble": prompt("scribble", (5.5, 5.5, 15.5, 25.5, 60.5, 8.5), (2, 1), 2.0, inside=0.5),
    "box": prompt("box", (4.0, 10.0, 24.0, 30.0, 40.0, 5.0, 60.0, 9.0), (2, 2), inside=0.25, other=0.5),
    "mask": prompt("mask", rle=counts(box_mask(60, 80, 4, 10, 20, 20)), status="fallback"),
}


def region(**changes):
    text = "<image>\nWhat is like <p><region></p>?"
    condition = {"text": "cat", "category_id": 1, "objects": (0,), "exemplar": 0, **changes}
    return text, spans(text, condition)


def numbers(page, selector, *names):
    script = "(nodes, names) => nodes.map(n => names.map(name => Number(n.getAttribute(name))))"
    return page.eval_on_selector_all(selector, script, list(names))


def test_prompts_are_drawn_where_they_are(watch):
    text, conditions = region()
    none = prompt("point", status="none", inside=0.0)
    shown = thing(box_mask(60, 80, 4, 10, 20, 20), prompts=[*KINDS.values(), none])
    page = open_cards(watch(), [card(sample([text, "<SEG>"], [shown], conditions, task="vgdseg"), ["cat"])])
    assert page.get_attribute(".marks", "viewBox") == "0 0 80 60"
    assert numbers(page, ".marks .reach", "cx", "cy", "r") == [[10.5, 20.5, 3], [30.5, 40.5, 3]]
    assert page.eval_on_selector_all(".marks .core", "n => n.map(x => x.getAttribute('points'))") == [
        "5.5,5.5 15.5,25.5",
        "60.5,8.5 60.5,8.5",
    ]
    width = page.locator(".stage").bounding_box()["width"] / 80
    assert numbers(page, ".marks .band:not(.edge)", "stroke-width") == [[max(4, 5 / width)]] * 2
    assert numbers(page, ".marks rect.frame", "x", "y", "width", "height") == [[4, 10, 20, 20], [40, 5, 20, 4]]
    bounds = page.eval_on_selector(
        ".marks path.frame", "n => { const b = n.getBBox(); return [b.x, b.y, b.width, b.height]; }"
    )
    assert bounds == [4, 10, 20, 20]
    page.hover(".span")
    chips = page.locator(".about .prompt").all_inner_texts()
    assert [" ".join(chip.split()) for chip in chips] == [
        "point 97.5 % inside 1 % in another",
        "scribble 50 % inside",
        "box 25 % inside 50 % in another",
        "mask 100 % inside fallback",
        "point none",
    ]
    assert page.locator(".about em.other").all_inner_texts() == ["50 % in another"]  # more than in its own object


def test_kinds_of_prompts_are_switched(watch):
    text, conditions = region()
    shown = thing(box_mask(60, 80, 4, 10, 20, 20), prompts=KINDS.values())
    data = card(sample([text, "<SEG>"], [shown], conditions, task="vgdseg"), ["cat"])
    page = open_cards(watch(), [data], {"prompts": ["box"]})

    def seen():
        return page.eval_on_selector_all(
            ".marks [data-kind]", "n => n.filter(x => x.getBoundingClientRect().width).map(x => x.dataset.kind)"
        )

    assert seen() == ["box"]
    page.click(".group .toggle:has-text('mask')")
    page.click(".group .toggle:has-text('box')")
    page.mouse.move(2, 2)
    assert seen() == ["mask"]
    page.hover(".span")
    assert sorted(seen()) == ["box", "mask", "point", "scribble"]  # what is lit shows all it has
    page.mouse.move(2, 2)
    page.evaluate("document.querySelector('.card').toggleMasks()")
    assert pixel(page, 14, 20)[3] == 0
    page.hover(".span")
    assert pixel(page, 14, 20)[3] > 0
    page.mouse.move(2, 2)
    page.evaluate("document.querySelector('.card').toggleMasks()")
    assert pixel(page, 14, 20)[3] > 0


def test_a_reference_has_its_own_picture_mask_and_prompt(watch):
    """A region of other pictures' objects, and one that this picture lacks."""
    text = "<image>\nLike <p><region></p> or <p><region></p>?"
    conditions = spans(
        text,
        {"text": "cat", "category_id": 1, "objects": (0,), "reference": 0, "shots": (1,)},
        {"text": "dog", "category_id": 2, "reference": 2},
    )
    point = prompt("point", (20.5, 12.5), (1,), 3.0)
    others = [
        reference(box_mask(30, 50, 15, 8, 12, 10), [point], "21"),
        reference(box_mask(50, 30, 5, 8, 12, 10), [KINDS["box"]], "22"),
        reference(box_mask(50, 30, 5, 8, 12, 10), [prompt("point", status="none")], "23", 2),
    ]
    shown = sample(
        [text, "<SEG>"], [thing(box_mask(60, 80, 4, 10, 20, 20))], conditions, references=others, task="vgdseg"
    )
    page = open_cards(watch(), [card(shown, ["cat", "dog"])])
    assert page.locator(".reference").count() == 3
    page.locator(".reference .stage").first.scroll_into_view_if_needed()
    page.wait_for_selector(".reference .stage[data-draw-ms]")
    assert numbers(page, ".reference .marks .reach", "cx", "cy", "r") == [[20.5, 12.5, 3]]
    assert close(pixel(page, 25, 10, stage=1), look.COLORS[0])
    assert pixel(page, 2, 2, stage=1)[3] == 0
    assert page.locator(".reference b", has_text="dog").count() == 1
    page.hover('[data-condition="0"]')
    names = page.eval_on_selector_all(".reference.lit", "n => n.map(x => x.querySelector('b').textContent)")
    assert names == ["cat", "cat"]
    assert "annotation 21 of another picture" in page.inner_text(".about")
    page.hover(".reference >> nth=2")
    assert lit(page, ".span") == [1]
    page.locator(".reference >> nth=0").focus()
    page.keyboard.press("Enter")
    assert page.get_attribute(".reference >> nth=1", "aria-pressed") == "true"


def test_ground_truth_and_pseudo_labels_are_shown_apart(watch):
    text = "<image>\n<p>cats</p>"
    model = Lineage(origin="model", labeler="sam", revision="r1", round=2, score=0.875, stability=0.5)
    things = [thing(box_mask(60, 80, 2, 10, 30, 40)), thing(box_mask(60, 80, 42, 10, 30, 40), "2", lineage=model)]
    page = open_cards(watch(), [card(sample([text, "<SEG>"], things, spans(text, {"objects": (0, 1)})))])

    def shown():
        return [pixel(page, 15, 30)[3] > 0, pixel(page, 55, 30)[3] > 0]

    assert shown() == [True, True]
    page.click("text=ground truth")
    assert shown() == [True, False]
    page.click("text=pseudo-labels")
    assert shown() == [False, True]
    page.click("text=both")
    over(page, 55, 30)
    about = page.inner_text(".about")
    assert "model, sam, r1, round 2, score 0.875, stability 0.5" in about
    assert "1 by a model" in page.inner_text(".facts")


def test_raw_row_and_commands_are_there_to_copy(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("summary:has-text('Raw row')")
    page.wait_for_selector('.raw pre:has-text(\'"sample_id": "world/train/1/refseg"\')')
    page.click("text=Copy JSON")
    page.wait_for_selector(".raw .said:has-text('copied'), .raw .said:has-text('by hand')")
    page.click("summary:has-text('Reproduce')")
    assert "dataengine reproduce data/out --sample world/train/1/refseg" in page.inner_text(".details")
    page.click("summary:has-text('Where it comes from')")
    assert "annotations.json" in page.inner_text("dl")


def test_a_chat_without_a_picture_has_no_stage(watch):
    chat = sample(["Hello?", "Hi."], image=None, height=0, width=0, task="chat")
    page = open_cards(watch(), [card(chat, picture=False)], drawn=False)
    page.wait_for_selector(".turn >> text=Hi.")  # visible: text that is not laid out yet reads as empty
    assert page.locator(".stage").count() == 0
    assert page.locator(".turn").all_inner_texts()[1].split() == ["assistant", "trained", "on", "Hi."]


def test_a_picture_that_cannot_be_had_leaves_its_masks(watch):
    gone = card(conversation(), picture=False)
    broken = {**card(conversation()), "picture": "data:image/png;base64,AAAA"}
    page = open_cards(watch(), [gone, broken])
    page.wait_for_selector("text=the picture cannot be shown")
    assert "the file is gone" in page.locator(".stage .missing").first.inner_text()
    assert pixel(page, 14, 20)[3] > 0


def test_cards_do_not_light_each_other(watch):
    one = card(conversation())
    other = card(dataclasses.replace(conversation(), sample_id="world/train/2/refseg"))
    page = open_cards(watch(), [one, other])
    page.hover(".card:first-child [data-condition='1']")
    assert page.locator(".card:last-child .lit").count() == 0
    assert picture_url(60, 80) == one["picture"]
