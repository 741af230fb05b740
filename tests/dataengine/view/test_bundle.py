"""One file: nothing is loaded, nothing else runs, and data cannot leave their element."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dataengine.view import bundle

HOSTILE = "</script><script>alert(1)</script><!-- <img src=http://evil.example/x onerror=alert(1)> \u2028 & ' \" \\"
EMPTY = {"samples": []}


class Elements(HTMLParser):
    """Start tags with their attributes, and the text of each script and style."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.inside = [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag in ("script", "style")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.texts.append((self.tags[-1], data))


def test_json_text_stays_in_its_element_and_says_the_same():
    text = bundle.json_text({"name": HOSTILE})
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == {"name": HOSTILE}


@pytest.mark.parametrize("value", ["\ud800", 1 << 70], ids=["half a surrogate pair", "more than 64 bits"])
def test_json_text_holds_what_json_can(value):
    assert json.loads(bundle.json_text([value])) == [value]


def test_a_page_names_no_other_file():
    found = Elements(bundle.page("report.html", {"name": HOSTILE}))
    for tag, attributes in found.tags:
        for name in ("src", "href", "action", "data", "srcset"):
            assert attributes.get(name, "data:,").startswith("data:"), (tag, attributes)
    assert not any("@import" in text or "url(" in text for (tag, _), text in found.texts if tag == "style")


def test_scripts_and_styles_are_those_whose_hash_the_policy_names():
    found = Elements(bundle.page("report.html", {"name": HOSTILE}))
    (policy,) = [a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    scripts = [text for (tag, a), text in found.texts if tag == "script" and a.get("type") == "module"]
    styles = [text for (tag, _), text in found.texts if tag == "style"]
    for rule, texts in (("script-src", scripts), ("style-src", styles)):
        (text,) = texts
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_modules_come_after_what_they_import_and_keep_their_names_to_themselves():
    html = bundle.page("report.html", EMPTY)
    order = re.findall(r'^modules\["([\w.]+)"\] = ', html, re.M)
    assert len(order) == len(set(order))
    for name in order:
        for other in re.findall(r'^import .*"\./([\w.]+)";$', bundle.static(name), re.M):
            assert order.index(other) < order.index(name)
    assert not re.search(r"^(import|export) ", html, re.M)


def test_a_script_that_was_put_into_a_page_does_not_run(watch, tmp_path):
    """Even where markup got in, by a defect of ours: the policy lets only our own script run."""
    html = bundle.page("report.html", EMPTY)
    evil = '<script>window.evil = 1</script><img src="x" onerror="window.evil = 2"><img src="http://127.0.0.1:9/x.png">'
    (tmp_path / "page.html").write_text(html.replace("<body>", f"<body>{evil}"))
    watched = watch()
    watched.page.goto((tmp_path / "page.html").as_uri())
    assert watched.page.evaluate("window.evil") is None
    refused = [problem for problem in watched.problems if "Content Security Policy" in problem]
    assert len(refused) >= 3  # the script, the handler, the picture of another place
    watched.problems.clear()


def test_pages_are_written_in_120_columns():
    folder = Path(bundle.__file__).parent / "static"
    long = [
        (path.name, number)
        for path in sorted(folder.glob("*.*s"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > 120
    ]
    assert not long
