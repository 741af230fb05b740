"""Contact sheets: colours that agree, and nothing in a sample that can break one."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pillow

from dataengine import masks, sheet
from dataengine.conversation import render
from dataengine.keyed import keyed
from dataengine.sample import Condition, Image, Object, Prompt, Provenance, Sample, Turn
from dataengine.sheet import COLORS, contact_sheet

H, W = 60, 80


def picture(color=(0, 0, 0)) -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", (W, H), color).save(file, "PNG")
    return file.getvalue()


def thing(y: int, x: int, side: int = 20, **changes) -> Object:
    mask = np.zeros((H, W), bool)
    mask[y : y + side, x : x + side] = True
    rle = masks.encode(mask)
    area, bbox = masks.measure(rle, H, W)
    return Object(**{"rle": rle, "bbox": bbox, "area": area, "category_id": 1, "annotation_id": f"{y}-{x}", **changes})


def sample(**changes) -> Sample:
    base = Sample(
        sample_id="s/train/1/genseg",
        task="genseg",
        variant="instance",
        source="s",
        split="train",
        image=Image(bytes=picture(), path="a.png"),
        image_key="s/1",
        height=H,
        width=W,
        objects=(thing(5, 5), thing(30, 50)),
        conditions=(
            Condition(kind="phrase", text="nothing"),
            Condition(kind="phrase", text="cat", objects=(0,)),
            Condition(kind="phrase", text="dog", objects=(1,)),
        ),
        provenance=Provenance(file="a.json", record="1", builder="b", version=1, seed=0),
    )
    made = replace(base, **changes)
    return made if made.turns else render(made, keyed(0))


def pixels(image: Pillow.Image) -> set[tuple[int, int, int]]:
    return set(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))


def test_phrases_have_the_colour_of_their_masks():
    image = contact_sheet([sample()], tile_px=400)
    found = pixels(image)
    for color in COLORS[:2]:
        assert color in found  # the chip
        assert tuple(round(channel * sheet.TINT) for channel in color) in found  # the tint over black
    assert COLORS[2] not in found
    assert sheet.ABSENT in found
    assert sheet.colors_of(sample()) == {1: COLORS[0], 2: COLORS[1]}


def test_it_is_the_same_every_time():
    assert contact_sheet([sample()]).tobytes() == contact_sheet([sample()]).tobytes()


def test_cards_stand_in_columns():
    one = contact_sheet([sample()], tile_px=200)
    many = contact_sheet([sample()] * 5, columns=2, tile_px=200)
    assert many.width > 1.8 * one.width
    assert many.height > 2.8 * one.height


def prompt(kind: str, **changes) -> Prompt:
    return Prompt(**{"kind": kind, "profile": "strict", "version": 1, "status": "ok", **changes})


@pytest.mark.parametrize(
    "shown",
    [
        prompt("point", points=(15.5, 15.5), parts=(1,), radius=4),
        prompt("scribble", points=(8.5, 8.5, 9.5, 9.5, 20.5, 9.5), parts=(2, 1), radius=2),
        prompt("box", points=(5, 5, 25, 25), parts=(2,)),
        prompt("mask", rle=thing(4, 4, 22).rle),
    ],
    ids=lambda p: p.kind,
)
def test_each_kind_of_prompt_is_drawn_its_own_way(shown):
    conditions = (Condition(kind="region", text="cat", objects=(0,), exemplar=0),)
    base = sample(task="vgdseg", variant=None, conditions=conditions)
    with_prompt = replace(base, objects=(replace(base.objects[0], prompts=(shown,)), base.objects[1]))
    without = replace(base, objects=(replace(base.objects[0], prompts=(prompt("point", status="none"),)),) * 2)
    assert contact_sheet([with_prompt]).tobytes() != contact_sheet([without]).tobytes()


@pytest.mark.parametrize(
    "image",
    [Image(bytes=None, path="far/away.jpg"), Image(bytes=None, path=None), Image(bytes=b"no picture", path="x")],
    ids=["by reference", "nowhere", "not a picture"],
)
def test_pictures_that_cannot_be_shown_leave_their_place(image):
    assert (200, 200, 200) in pixels(contact_sheet([sample(image=image)]))


def test_a_huge_picture_is_not_decoded(monkeypatch):
    monkeypatch.setattr(sheet, "MAX_PIXELS", 100)
    assert (200, 200, 200) in pixels(contact_sheet([sample()]))


def test_text_only_samples_have_no_picture():
    turns = (Turn(role="user", text="Hello " * 900, supervised=False), Turn(role="assistant", text="", supervised=True))
    chat = sample(task="chat", image=None, objects=(), conditions=(), turns=turns)
    assert contact_sheet([chat]).height < 700


@pytest.mark.parametrize("text", ["", "\0\r\n\x1b[31m", "a" * 5000, "مرحبا", "😀" * 50, "‹SEG›", "\ud800", "{spans}"])
def test_any_text_can_be_drawn(text):
    odd = replace(sample().conditions[1], text=text)
    shown = render(replace(sample(), conditions=(odd,), sample_id=text or "x"), keyed(0))
    contact_sheet([shown])


def test_many_absent_categories_are_only_counted():
    names = tuple(Condition(kind="phrase", text=f"kind {n}") for n in range(130))
    few = contact_sheet([sample(conditions=names[:8])], tile_px=560)
    many = contact_sheet([sample(conditions=names)], tile_px=560)
    assert many.height < few.height + 60


def test_crowds_and_ignored_pixels_are_hatched():
    plain = sample(conditions=(), turns=(Turn(role="user", text="x", supervised=False),))
    crowd = replace(plain, objects=(replace(plain.objects[0], crowd=True),))
    ignored = replace(plain, ignore=plain.objects[0].rle)
    assert (150, 150, 150) in pixels(contact_sheet([crowd]))
    assert (90, 90, 90) in pixels(contact_sheet([ignored]))
    assert not {(150, 150, 150), (90, 90, 90)} & pixels(contact_sheet([plain]))
