"""Charts in a browser: what they say by pointer, by keyboard and as a table, and where their axes have ticks."""

import pytest

from dataengine.view import bundle

AREAS = {"edges": [50, 100, 200, 500, 1000, 2000], "counts": [1, 2, 3, 0, 4], "open": False}
MANY = {"edges": [0, 5, 10, 15, 20], "counts": [7, 0, 1, 2], "open": True}
SHARES = {"edges": [0, 0.5, 1], "counts": [1, 3]}


@pytest.fixture
def charts(watch, tmp_path, monkeypatch):
    """A page with the functions of charts.js at `window.charts`."""
    files = {
        "charts.html": '<!doctype html><html><head>\n<link rel="stylesheet" href="/static/style.css">\n'
        '<link rel="stylesheet" href="/static/charts.css">\n</head>\n<body>\n'
        '<script type="module" src="/static/own.js"></script>\n</body></html>',
        "own.js": 'import {barTable, binName, histogram, niceStep, partBar, shortNumber, ticksTo} from "./charts.js";\n'
        "window.charts = {barTable, binName, histogram, niceStep, partBar, shortNumber, ticksTo};\n"
        "window.show = (name, chart) => document.body.append(charts[name](chart));\n",
    }
    read = bundle.static
    monkeypatch.setattr(bundle, "static", lambda name: files.get(name) or read(name))
    (tmp_path / "charts.html").write_text(bundle.page("charts.html", None))

    def make(width=1280, scheme="light"):
        watched = watch(width, scheme=scheme)
        watched.page.goto((tmp_path / "charts.html").as_uri())
        return watched.page

    return make


def histogram(page, values, **more):
    chart = {"title": "Size of masks", "unit": "px", "of": "masks", **values, **more}
    page.evaluate("chart => show('histogram', chart)", chart)


def test_ticks_are_round(charts):
    page = charts()
    wanted = {0.3: 1, 1: 1, 1.2: 2, 2: 2, 3: 5, 7: 10, 12: 20, 30: 50, 99: 100, 101: 200}
    assert page.evaluate("numbers => numbers.map((n) => charts.niceStep(n))", list(wanted)) == list(wanted.values())
    assert page.evaluate("[1, 4, 7, 39, 1001].map((most) => charts.ticksTo(most, 4))") == [
        [0, 1],
        [0, 1, 2, 3, 4],
        [0, 2, 4, 6, 8],
        [0, 10, 20, 30, 40],
        [0, 500, 1000, 1500],
    ]
    assert page.evaluate("[0, 950, 1500, 20000, 1234567, 2e9].map(charts.shortNumber)") == [
        "0",
        "950",
        "1,500",
        "20 k",
        "1.23 M",
        "2 G",
    ]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (AREAS, ["50 to 99", "100 to 199", "200 to 499", "500 to 999", "1,000 to 1,999"]),
        (MANY, ["0 to 4", "5 to 9", "10 to 14", "15 or more"]),
        ({"edges": [3, 4, 5], "counts": [1, 1], "open": False}, ["3", "4"]),
        ({**SHARES, "shares": True}, ["0 % to 50 %", "50 % to 100 %"]),
    ],
    ids=["sizes", "the last is open", "single numbers", "shares"],
)
def test_bins_are_named_by_the_whole_numbers_they_hold(charts, values, names):
    page = charts()
    assert page.evaluate("chart => chart.counts.map((_, i) => charts.binName(chart, i))", values) == names


@pytest.mark.parametrize(
    ("values", "more", "ticks"),
    [
        (AREAS, {"log": True}, {"100": 1 / 5, "1,000": 4 / 5}),
        (MANY, {}, {"0": 0, "5": 1 / 4, "10": 2 / 4, "15": 3 / 4, "20+": 1}),
        (SHARES, {"shares": True}, {"0 %": 0, "25 %": 1 / 4, "50 %": 1 / 2, "75 %": 3 / 4, "100 %": 1}),
        ({"edges": [3, 4, 5], "counts": [1, 1], "open": False}, {}, {"3": 1 / 4, "4": 3 / 4}),
    ],
    ids=["powers of ten", "edges", "shares", "single numbers below their bar"],
)
def test_the_axis_has_ticks_where_the_numbers_are(charts, values, more, ticks):
    page = charts()
    histogram(page, values, **more)
    box = page.locator(".plot").bounding_box()
    found = {
        tick.inner_text(): (b["x"] + b["width"] / 2 - box["x"]) / box["width"]
        for tick in page.locator(".xaxis span").all()
        if (b := tick.bounding_box())
    }
    assert found == pytest.approx(ticks, abs=0.02)


def test_bars_are_as_high_as_the_axis_says(charts):
    page = charts()
    histogram(page, AREAS, log=True)
    plot = page.locator(".plot").bounding_box()["height"]
    heights = [bar.bounding_box()["height"] / plot for bar in page.locator(".bar").all()]
    assert heights == pytest.approx([1 / 4, 2 / 4, 3 / 4, 0, 4 / 4], abs=0.02)


def test_pointer_and_keyboard_give_the_numbers_of_a_bar(charts):
    page = charts()
    histogram(page, AREAS, log=True)
    said, plot = page.locator(".said-bin"), page.locator(".plot")
    assert said.inner_text() == "10 masks"
    box, before = plot.bounding_box(), page.locator(".axes").bounding_box()
    plot.hover(position={"x": box["width"] * 0.5, "y": 3})  # the third of five, far above the bar itself
    assert said.inner_text() == "200 to 499 px: 3 masks, 30 %"
    assert page.locator(".axes").bounding_box() == before  # nothing moves
    page.mouse.move(0, 0)
    assert said.inner_text() == "10 masks"
    page.keyboard.press("Tab")
    assert said.inner_text() == "50 to 99 px: 1 masks, 10 %"
    page.keyboard.press("ArrowRight")
    assert said.inner_text() == "100 to 199 px: 2 masks, 20 %"
    page.keyboard.press("End")
    assert said.inner_text() == "1,000 to 1,999 px: 4 masks, 40 %"
    page.keyboard.press("ArrowRight")  # there is no further one
    assert page.locator(".bar.lit").count() == 1
    page.keyboard.press("Tab")
    assert said.inner_text() == "10 masks"


def test_touching_a_bar_gives_its_numbers(charts):
    page = charts(390)
    histogram(page, AREAS, log=True)
    page.evaluate(
        """() => { const plot = document.querySelector(".plot"), box = plot.getBoundingClientRect();
        for (const type of ["pointerdown", "pointerup", "pointerleave"])
          plot.dispatchEvent(
            new PointerEvent(type, {pointerType: "touch", clientX: box.left + 5, clientY: box.top + 5})); }"""
    )
    assert page.locator(".said-bin").inner_text() == "50 to 99 px: 1 masks, 10 %"  # and stays


def test_a_table_has_the_same_numbers(charts):
    page = charts()
    histogram(page, MANY)
    page.get_by_text("Numbers").click()
    page.locator("tbody tr").first.wait_for()
    rows = [row.inner_text().split("\t") for row in page.locator("tbody tr").all()]
    assert rows == [
        ["0 to 4", "7", "70 %"],
        ["5 to 9", "0", "0 %"],
        ["10 to 14", "1", "10 %"],
        ["15 or more", "2", "20 %"],
    ]


@pytest.mark.parametrize("width", [1280, 390])
def test_bars_are_a_table_that_fits_the_page(charts, width):
    page = charts(width)
    rows = [{"labels": ["<b>cat</b>"], "value": 3000}, {"labels": ["x" * 300], "value": 1000}]
    page.evaluate(
        "rows => show('barTable', {caption: 'c', heads: ['category'], rows, unit: 'objects', of: 4000})", rows
    )
    cells = [row.inner_text().split("\t")[:3] for row in page.locator("tbody tr").all()]
    assert cells == [["<b>cat</b>", "3,000", "75 %"], ["x" * 300, "1,000", "25 %"]]
    widths = [bar.bounding_box()["width"] for bar in page.locator("td.track i").all()]
    assert widths[1] / widths[0] == pytest.approx(1 / 3, abs=0.02)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_parts_of_a_bar_are_their_shares(charts):
    page = charts()
    parts = [{"name": "small", "value": 1}, {"name": "medium", "value": 0}, {"name": "large", "value": 3}]
    page.evaluate("parts => show('partBar', {label: 'sizes', unit: 'masks', parts})", parts)
    assert [item.inner_text() for item in page.locator("li").all()] == [
        "small 25 % 1 masks",
        "medium 0 % 0 masks",
        "large 75 % 3 masks",
    ]
    widths = [part.bounding_box()["width"] for part in page.locator(".partbar i").all()]
    assert widths[1] / widths[0] == pytest.approx(3, rel=0.02)
