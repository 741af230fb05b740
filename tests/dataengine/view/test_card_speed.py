"""How long a card of many masks takes to be drawn, in the browser's own clock."""

import numpy as np
import pytest
from pycocotools import mask as coco

from tests.dataengine.view.cards import card, counts, open_cards, prompt, sample, spans, thing

MASKS = 50


def blob(rng, height, width):
    """An outline of 40 corners about a place."""
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 40))
    reach = rng.uniform(0.05, 0.25) * height * rng.uniform(0.6, 1, 40)
    corners = np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], 1)
    clipped = np.clip(corners, 0, (width - 1, height - 1)).round(2)
    return coco.decode(coco.frPyObjects([clipped.ravel().tolist()], height, width)[0])


def crowded(height, width):
    """50 masks of 10 regions, each shown by a point, a box and a mask."""
    rng = np.random.default_rng(0)
    masks = [blob(rng, height, width) for _ in range(MASKS)]
    box = (5.0, 5.0, width / 3, height / 3)
    prompts = [
        [prompt("point", (9.5, 9.5), (1,), 5.0), prompt("box", box, (2,)), prompt("mask", rle=counts(mask))]
        for mask in masks
    ]
    text = "<image>\nFind " + ", ".join(["<p><region></p>"] * 10) + "."
    regions = [{"text": f"kind {n}", "objects": tuple(range(n, MASKS, 10)), "exemplar": n} for n in range(10)]
    things = [thing(mask, str(n), prompts=prompts[n]) for n, mask in enumerate(masks)]
    return sample([text, "<SEG>"], things, spans(text, *regions), height, width, task="vgdseg")


class Clock:
    """Processor time of a page's main thread, which other programs on the machine do not lengthen."""

    def __init__(self, page):
        self.session = page.context.new_cdp_session(page)
        self.session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def ms(self):
        """Of scripts, styles and layout so far."""
        found = {m["name"]: m["value"] for m in self.session.send("Performance.getMetrics")["metrics"]}
        return 1000 * sum(found[name] for name in ("ScriptDuration", "RecalcStyleDuration", "LayoutDuration"))


@pytest.mark.parametrize(("height", "width"), [(480, 640), (960, 1280)])
def test_fifty_masks_are_drawn_within_100_ms(watch, height, width):
    page = open_cards(watch(), [card(crowded(height, width))])
    clock = Clock(page)
    first, lit = [], []
    for _ in range(3):
        page.reload()  # metrics begin anew: all from the first script to the drawn card
        page.wait_for_selector(".stage[data-draw-ms]")
        first.append(clock.ms())
    for number in range(10):
        before = clock.ms()
        page.hover(f'[data-condition="{number}"]')
        lit.append(clock.ms() - before)
        assert page.get_attribute(f'[data-condition="{number}"]', "class").split()[-1] == "lit"
    print(f"{width} x {height}: loaded, decoded and drawn {min(first):.1f} ms, lit {min(lit):.1f} ms")
    assert min(first) <= 100
    assert min(lit) <= 30


def test_only_cards_near_the_screen_are_drawn(watch):
    data = card(crowded(480, 640))
    page = open_cards(watch(), [data] * 64)
    assert page.evaluate("window.built") < 2000
    drawn = page.locator(".stage[data-draw-ms]").count()
    assert 1 <= drawn < 12
    page.locator(".stage").last.scroll_into_view_if_needed()
    page.wait_for_selector(".card:last-child .stage[data-draw-ms]")
    page.wait_for_selector(".card:first-child .stage:not([data-draw-ms])", state="attached")
    first = page.eval_on_selector(".stage canvas", "canvas => [canvas.width, canvas.height]")
    assert first == [0, 0]
    print(f"64 cards built in {page.evaluate('window.built'):.0f} ms")
