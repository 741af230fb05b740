"""Cards for tests of the page's modules: samples made by hand, served to a page under the viewer's policy."""

from __future__ import annotations

import base64
import io
import json
from types import SimpleNamespace

import numpy as np
from PIL import Image as Pillow
from pycocotools import mask as coco

from dataengine.sample import Condition, Image, License, Lineage, Object, Prompt, Provenance, Reference, Sample, Turn
from dataengine.view import bundle, rows, server
from dataengine.view.rows import Shown

ADDRESS = "http://cards.test/"
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>cards</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="/static/style.css"><link rel="stylesheet" href="/static/card.css"></head>
<body><main class="cards" id="cards"></main><script type="module" src="/test.js"></script></body></html>"""
SCRIPT = """import {renderCard} from "/static/card.js";
import * as rle from "/static/rle.js";
import * as look from "/static/look.js";
Object.assign(window, {rle, look, renderCard});
const {cards, options} = await (await fetch("/data.json")).json();
const began = performance.now();
document.getElementById("cards").append(...cards.map((card) => renderCard(card, options)));
window.built = performance.now() - began;
document.body.dataset.ready = "1";"""


def open_cards(watched, cards, options=None, drawn=True):
    """A page that shows cards. Scripts and styles come from `static/`, and nothing else can be had."""
    page = watched.page
    answers = {
        "": ("text/html", PAGE),
        "test.js": ("text/javascript", SCRIPT),
        "data.json": ("application/json", json.dumps({"cards": cards, "options": options or {}})),
        "favicon.ico": ("image/png", ""),
    }

    def answer(route):
        name = route.request.url.removeprefix(ADDRESS)
        if name.startswith("static/"):
            kind, body = "text/css" if name.endswith(".css") else "text/javascript", bundle.static(name[7:])
        else:
            kind, body = answers[name]
        route.fulfill(body=body, content_type=kind, headers={"Content-Security-Policy": server.POLICY})

    page.route(f"{ADDRESS}**", answer)
    page.goto(ADDRESS)
    page.wait_for_selector("body[data-ready]", state="attached")
    if drawn:
        page.wait_for_selector(".stage[data-draw-ms]")
    return page


def card(sample, categories=(), references=None, picture=True, shard="shards/train-00000-of-00001.parquet"):
    """What a card draws, as JSON values. categories: names of the ids 1, 2, …"""
    named = [{"id": number, "text": text} for number, text in enumerate(categories, 1)]
    dataset = SimpleNamespace(
        manifest={"sources": {f"{sample.source}/{sample.split}": {"categories": named}}},
        folder=SimpleNamespace(uri="data/out"),
    )
    shown = Shown(url=picture_url(sample.height, sample.width)) if picture else Shown(error="the file is gone")
    others = [Shown(url=picture_url(r.height, r.width)) for r in sample.references]
    return rows.card_data(dataset, sample, 7, shard, shown, references or others)


def picture_url(height, width):
    file = io.BytesIO()
    Pillow.new("RGB", (width, height), (60, 90, 120)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def box_mask(height, width, x, y, w, h):
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def counts(mask):
    """COCO's compressed counts, by pycocotools."""
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


def thing(mask, annotation_id="1", category_id=1, prompts=(), crowd=False, lineage=None):
    area = int(mask.sum())
    bbox = coco.toBbox(coco.encode(np.asfortranarray(mask.astype(np.uint8)))).tolist() if area else [0.0] * 4
    return Object(
        rle=counts(mask),
        bbox=tuple(bbox),
        area=area,
        category_id=category_id,
        annotation_id=annotation_id,
        crowd=crowd,
        prompts=tuple(prompts),
        lineage=lineage or Lineage(origin="human"),
    )


def prompt(kind, points=(), parts=(), radius=0.0, rle=None, status="ok", inside=1.0, other=0.0, version=1):
    return Prompt(
        kind=kind,
        profile="published",
        version=version,
        status=status,
        points=tuple(points),
        parts=tuple(parts),
        radius=radius,
        rle=rle,
        inside=inside,
        other=other,
    )


def spans(text, *conditions, turn=0, seg=0):
    """Conditions of the `<p>` spans of a text, in order; each is a dict of what is not the default."""
    found, at = [], 0
    for given in conditions:
        start = text.index("<p>", at)
        at = text.index("</p>", start) + 4
        inner = text[start + 3 : at - 4]
        defaults = {
            "kind": "region" if inner == "<region>" else "phrase",
            "text": inner,
            "category_id": -1,
            "objects": (),
            "exemplar": -1,
            "reference": -1,
            "seg": seg,
            "turn": turn,
            "start": start,
            "end": at,
        }
        found.append(Condition(**{**defaults, **given}))
    return tuple(found)


def sample(turns, objects=(), conditions=(), height=60, width=80, references=(), **changes):
    """A sample. turns: texts, by the user and the assistant in turn."""
    values = {
        "sample_id": "world/train/1/refseg",
        "task": "refseg",
        "variant": None,
        "source": "world",
        "split": "train",
        "image": Image(bytes=b"", path="1.png"),
        "image_key": "world/1",
        "height": height,
        "width": width,
        "turns": tuple(
            Turn(role="assistant" if n % 2 else "user", text=text, supervised=bool(n % 2))
            for n, text in enumerate(turns)
        ),
        "caption": None,
        "objects": tuple(objects),
        "conditions": tuple(conditions),
        "references": tuple(references),
        "ignore": None,
        "license": License(name="CC0 1.0", url=None),
        "provenance": Provenance(
            file="annotations.json", record="1", builder="coco", version=1, seed=0, url="https://example.org"
        ),
    }
    return Sample(**{**values, **changes})


def reference(mask, prompts=(), annotation_id="9", category_id=1, key="world/other"):
    return Reference(
        image=Image(bytes=b"", path="2.png"),
        image_key=key,
        annotation_id=annotation_id,
        category_id=category_id,
        height=mask.shape[0],
        width=mask.shape[1],
        rle=counts(mask),
        prompts=tuple(prompts),
    )


def pixel(page, x, y, stage=0):
    """RGBA of the masks over a place of a picture (x, y in its px). page: a page or a card of it."""
    return (
        page.locator(".stage")
        .nth(stage)
        .evaluate(
            """(node, [x, y]) => {
              const canvas = node.querySelector("canvas");
              const [width, height] = node.querySelector("svg").getAttribute("viewBox").split(" ").slice(2).map(Number);
              const place = [Math.floor(x * canvas.width / width), Math.floor(y * canvas.height / height)];
              return [...canvas.getContext("2d").getImageData(...place, 1, 1).data];
            }""",
            [x, y],
        )
    )


def lit(page, selector):
    """Numbers of the conditions, SEGs or other nodes that are lit."""
    return page.eval_on_selector_all(
        f"{selector}.lit", "nodes => nodes.map(n => Number(n.dataset.condition ?? n.dataset.seg ?? -1))"
    )
