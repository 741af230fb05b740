"""Contact sheets: colours that agree, and nothing in a sample that can break one."""

from __future__ import annotations

import io
import itertools
import struct
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pillow

from dataengine import masks
from dataengine.conversation import render
from dataengine.keyed import keyed
from dataengine.sample import Condition, Image, Object, Prompt, Provenance, Sample, Turn
from dataengine.sheet import contact_sheet, conversation, look, marks, picture, text
from dataengine.sheet.look import COLORS, MARGIN

H, W = 60, 80
TILE = 240  # so that a pixel of the pictures here is 3 x 3 shown ones
TOP = MARGIN + 2 * look.LINE_PX + 10  # of a card's picture, below its header


def png(height: int = H, width: int = W, color=(0, 0, 0)) -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", (width, height), color).save(file, "PNG")
    return file.getvalue()


def bomb() -> bytes:
    """A PNG whose header promises 40000 x 40000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def thing(y: int, x: int, side: int = 20, height: int = H, width: int = W, **changes) -> Object:
    mask = np.zeros((height, width), bool)
    mask[y : y + side, x : x + side] = True
    rle = masks.encode(mask)
    area, bbox = masks.measure(rle, height, width)
    return Object(**{"rle": rle, "bbox": bbox, "area": area, "category_id": 1, "annotation_id": f"{y}-{x}", **changes})


def sample(**changes) -> Sample:
    base = Sample(
        sample_id="s/train/1/genseg",
        task="genseg",
        variant="instance",
        source="s",
        split="train",
        image=Image(bytes=png(), path="a.png"),
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


def chat(*texts: str) -> Sample:
    roles = ("user", "assistant")
    turns = tuple(Turn(role=roles[n % 2], text=text, supervised=bool(n % 2)) for n, text in enumerate(texts))
    return sample(task="chat", variant=None, image=None, objects=(), conditions=(), turns=turns)


def drawn(*samples: Sample, tile_px: int = TILE, **options) -> np.ndarray:
    return np.asarray(contact_sheet(samples, tile_px=tile_px, **options))


def colors_in(pixels: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, pixels.reshape(-1, 3).tolist()))


def shown_at(pixels: np.ndarray, x: int, y: int, scale: int = TILE // W) -> tuple[int, ...]:
    """The shown pixel in the middle of a picture's pixel, on the first card."""
    return tuple(
        pixels[MARGIN + TOP + scale * y + scale // 2, 2 * MARGIN + scale * x + scale // 2].tolist(),
    )


def tint(color, under: int = 0) -> tuple[int, ...]:
    return tuple(int(look.TINT * channel + (1 - look.TINT) * under + 0.5) for channel in color)


# --- colours -------------------------------------------------------------------------------------------------------


def test_phrases_have_the_colour_of_their_masks():
    pixels = drawn(sample())
    assert look.colors_of(sample()) == {1: COLORS[0], 2: COLORS[1]}
    assert shown_at(pixels, 14, 14) == tint(COLORS[0])
    assert shown_at(pixels, 60, 40) == tint(COLORS[1])
    assert shown_at(pixels, 40, 5) == (0, 0, 0)
    chips = colors_in(pixels[MARGIN + TOP + 3 * H + 8 :])
    assert {COLORS[0], COLORS[1], look.ABSENT} <= chips
    assert COLORS[2] not in colors_in(pixels)


def test_a_small_object_lies_on_a_large_one_with_its_own_tint():
    nested = sample(objects=(thing(20, 20, 12), thing(10, 10, 40)))
    pixels = drawn(nested)
    assert shown_at(pixels, 26, 26) == tint(COLORS[0])
    assert shown_at(pixels, 44, 44) == tint(COLORS[1])


def test_an_object_of_two_conditions_is_striped_in_both_colours():
    both = tuple(Condition(kind="phrase", text=text, objects=(0,)) for text in ("cats", "the left cat"))
    pixels = drawn(sample(conditions=both))
    inside = colors_in(pixels[MARGIN + TOP + 24 : MARGIN + TOP + 66, 2 * MARGIN + 24 : 2 * MARGIN + 66])
    assert inside == {tint(COLORS[0]), tint(COLORS[1])}


def test_no_two_colours_are_alike():
    assert len(set(COLORS)) == len(COLORS)
    values = np.array(COLORS, dtype=int)
    apart = np.abs(values[:, None] - values[None]).sum(-1) + 1000 * np.eye(len(values), dtype=int)
    assert apart.min() > 24


@pytest.mark.parametrize(("number", "tagged"), [(8, False), (9, True)])
def test_conditions_are_numbered_where_colours_no_longer_do(number, tagged):
    conditions = tuple(Condition(kind="phrase", text=f"kind {n}", objects=(n % 2,)) for n in range(number))
    assert bool(look.tags_of(sample(conditions=conditions))) == tagged
    drawn(sample(conditions=conditions))


@pytest.mark.parametrize("color", COLORS, ids=str)
def test_words_on_chips_can_be_read(color):
    def luminance(rgb):
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    dark, light = sorted((luminance(color), luminance(conversation._ink_on(color))))
    assert (light + 0.05) / (dark + 0.05) >= 3.5  # WCAG asks 3 of large text, 4.5 of small


def test_crowds_and_ignored_pixels_are_hatched():
    plain = sample(conditions=(), turns=(Turn(role="user", text="x", supervised=False),))
    crowd = replace(plain, objects=(replace(plain.objects[0], crowd=True),))
    ignored = replace(plain, ignore=plain.objects[0].rle)
    place = np.s_[MARGIN + TOP + 20 : MARGIN + TOP + 70, 2 * MARGIN + 20 : 2 * MARGIN + 70]
    assert colors_in(drawn(crowd)[place]) == {look.CROWD, (105, 105, 105)}
    assert colors_in(drawn(ignored)[place]) == {look.IGNORED, (105, 105, 105)}
    assert colors_in(drawn(plain)[place]) == {(0, 0, 0)}


# --- layout --------------------------------------------------------------------------------------------------------


def test_it_is_the_same_every_time():
    assert drawn(sample(), chat("a", "b")).tobytes() == drawn(sample(), chat("a", "b")).tobytes()


def test_cards_stand_in_columns():
    one = drawn(sample())
    many = drawn(*[sample()] * 5, columns=2)
    assert one.shape[1] == TILE + 4 * MARGIN
    assert many.shape[1] == 2 * (TILE + 3 * MARGIN) + MARGIN
    assert many.shape[0] == 3 * (one.shape[0] - MARGIN) + MARGIN


def test_an_empty_sheet_is_paper():
    assert colors_in(drawn()) == {look.PAPER}


def test_lines_keep_within_the_card_and_never_begin_with_a_comma():
    texts = [
        "dining table",
        "a very long phrase of many words that takes more than a line of the card",
        "x" * 90,
        "cup",
    ]
    conditions = tuple(Condition(kind="phrase", text=text, objects=(n % 2,)) for n, text in enumerate(texts * 4))
    made = sample(conditions=conditions)
    lines = conversation._wrapped(list(conversation._pieces(made, 0)), TILE)
    assert len(lines) > 8
    for line in lines:
        assert conversation.right_end(line) <= TILE
        assert not line[0][1].text.startswith(",")
        for (x, piece), (after, following) in itertools.pairwise(line):
            overlap = 2 * look.PAD if piece.run >= 0 and piece.run == following.run else 0
            assert x + piece.width <= after + overlap


def shown_text(made: Sample) -> str:
    return " ".join(piece.text for piece in conversation._pieces(made, 0))


def test_of_many_absent_categories_most_are_only_counted():
    names = [Condition(kind="phrase", text=f"kind-{n}") for n in range(133)]
    names[120] = replace(names[120], objects=(0,))
    text = shown_text(sample(conditions=tuple(names)))
    assert "kind-120" in text  # present, so shown wherever it stands
    assert "kind-5" in text
    assert "kind-6" not in text
    assert f"… +{132 - look.MAX_ABSENT} more" in text
    assert "more" not in shown_text(sample(conditions=tuple(names[:8])))


def test_words_between_absent_phrases_of_a_caption_stay():
    caption = " ".join(f"before{n} <p>thing-{n}</p>" for n in range(20))
    conditions = tuple(Condition(kind="phrase", text=f"thing-{n}") for n in range(20))
    made = sample(task="gcgseg", variant=None, caption=caption, conditions=conditions)
    text = " ".join(piece.text for piece in conversation._pieces(made, 1))
    assert all(f"before{n}" in text and f"thing-{n}" in text for n in range(20))


def test_long_turns_and_long_conversations_are_cut():
    assert drawn(chat("Hello " * 900)).shape[0] < 24 * (look.MAX_LINES + 7)
    few, many = drawn(chat(*["Hello"] * look.MAX_TURNS)), drawn(chat(*["Hello"] * 400))
    assert 0 < many.shape[0] - few.shape[0] < 40


def test_regions_say_their_category_and_where_they_come_from():
    conditions = (
        Condition(kind="region", text="cat", objects=(0,), exemplar=0),
        Condition(kind="region", text="dog", objects=(1,), reference=0),
    )
    text = shown_text(sample(task="vgdseg", variant=None, conditions=conditions))
    assert "<region> cat ," in text
    assert "<region> dog (other picture)" in text


# --- prompts -------------------------------------------------------------------------------------------------------


def prompt(kind: str, **changes) -> Prompt:
    return Prompt(**{"kind": kind, "profile": "strict", "version": 1, "status": "ok", **changes})


PROMPTS = [
    prompt("point", points=(15.5, 15.5), parts=(1,), radius=4),
    prompt("scribble", points=(8.5, 8.5, 9.5, 9.5, 20.5, 9.5), parts=(2, 1), radius=2),
    prompt("box", points=(5, 5, 25, 25), parts=(2,)),
    prompt("mask", rle=thing(4, 4, 22).rle),
]


def with_prompts(*shown: Prompt) -> Sample:
    conditions = (Condition(kind="region", text="cat", objects=(0,), exemplar=0),)
    return sample(
        task="vgdseg",
        variant=None,
        objects=(replace(thing(5, 5), prompts=shown), thing(30, 50)),
        conditions=conditions,
    )


def place_of(pixels: np.ndarray) -> np.ndarray:
    return pixels[MARGIN + TOP : MARGIN + TOP + 3 * H, 2 * MARGIN : 2 * MARGIN + 3 * W]


def test_each_kind_of_prompt_is_drawn_its_own_way():
    pictures = [place_of(drawn(with_prompts(*shown))) for shown in ([prompt("point", status="none")], *zip(PROMPTS))]
    assert len({picture.tobytes() for picture in pictures}) == 5
    nothing, point, scribble, box, _ = (picture.astype(int) for picture in pictures)
    assert tuple(point[46, 46]) == COLORS[0]  # its dot
    assert tuple(scribble[28, 62]) == COLORS[0]  # the core of its second stroke
    assert (point[80:, 120:] == nothing[80:, 120:]).all()
    assert (box[20:70, 20:70] == nothing[20:70, 20:70]).all()  # a frame is hollow
    assert (box[15, 10:70] != nothing[15, 10:70]).any()


def test_the_legend_names_what_is_shown(monkeypatch):
    words = []
    monkeypatch.setattr(marks, "_icon", lambda kind: words.append(kind) or Pillow.new("RGB", (28, 18)))
    assert marks.legend_of(sample(), 560) is None
    crowded = with_prompts(PROMPTS[3], PROMPTS[0])
    crowded = replace(crowded, objects=(*crowded.objects, thing(0, 0, crowd=True)), ignore=thing(0, 0).rle)
    assert marks.legend_of(crowded, 560).height == 20
    assert words == ["crowd", "ignored", "point", "mask"]
    assert marks.legend_of(crowded, 100).height > 40


@pytest.mark.parametrize(
    "shown",
    [
        prompt("point", points=(float("nan"), 1.0, float("inf"), 2.0), parts=(1, 1), radius=3),
        prompt("point", points=(3.5,), parts=(1,), radius=3),
        prompt("box", points=(70, 50, 10, 20), parts=(2,)),
        prompt("box", points=(-20, -20, 160, 120), parts=(2,)),
        prompt("scribble", points=(), parts=(4,), radius=0),
        prompt("scribble", points=(1.5, 1.5), parts=(), radius=5),
        prompt("mask", rle=b"\xff"),
        prompt("mask", rle=None),
    ],
    ids=["not numbers", "half a point", "turned box", "outside", "empty", "no parts", "no mask", "no rle"],
)
def test_odd_prompts_do_no_harm(shown):
    drawn(with_prompts(shown))


# --- pictures and texts that are odd -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    [
        Image(bytes=None, path="far/away.jpg"),
        Image(bytes=None, path=None),
        Image(bytes=b"", path="x"),
        Image(bytes=b"no picture", path="x"),
        Image(bytes=png()[:60], path="x"),
        Image(bytes=bomb(), path="x"),
    ],
    ids=["by reference", "nowhere", "empty", "not a picture", "cut off", "bomb"],
)
def test_pictures_that_cannot_be_shown_leave_their_place_with_the_masks(image):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = drawn(sample(image=image))
    assert shown_at(pixels, 75, 55) == look.MISSING
    assert shown_at(pixels, 60, 40) == tint(COLORS[1], under=200)


def test_a_picture_by_reference_is_read_from_its_place(tmp_path):
    for path in ("far/away.jpg", "https://127.0.0.1/a.jpg"):
        _, notes = picture._decoded(sample(image=Image(bytes=None, path=path)), (8, 8))
        assert notes == [f"not there: {path}"]
    Pillow.new("RGB", (8, 8), (0, 255, 0)).save(tmp_path / "green.png")
    shown, notes = picture._decoded(sample(image=Image(bytes=None, path=str(tmp_path / "green.png"))), (8, 8))
    assert (shown.getpixel((4, 4)), notes) == ((0, 255, 0), [])


def test_a_huge_picture_is_not_decoded(monkeypatch):
    monkeypatch.setattr(picture, "MAX_PIXELS", 100)
    assert shown_at(drawn(sample()), 75, 55) == look.MISSING


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (2, 900), (900, 2), (7, 5)], ids=["a pixel", "wide", "tall", "small"]
)
def test_any_shape_of_picture_fits_its_card(height, width):
    objects = (thing(0, 0, 1, height, width), thing(height - 1, width - 1, 1, height, width))
    odd = sample(image=Image(bytes=png(height, width), path="a"), height=height, width=width, objects=objects)
    pixels = drawn(odd)
    assert pixels.shape[1] == TILE + 4 * MARGIN
    assert pixels.shape[0] < look.MAX_ASPECT * TILE + 500


def test_a_speck_of_a_large_picture_stays_visible():
    speck = thing(40, 1000, 1, 80, 2000)
    made = sample(image=Image(bytes=png(80, 2000), path="a"), height=80, width=2000, objects=(speck, thing(5, 5)))
    made = replace(made, objects=(speck,), conditions=made.conditions[:2])
    around = drawn(made)[MARGIN + TOP : MARGIN + TOP + 9, 2 * MARGIN + 110 : 2 * MARGIN + 130]
    assert tint(COLORS[0]) in colors_in(around)


def test_a_thin_line_of_a_large_picture_stays_visible():
    view = picture.view_of(replace(sample(), height=500, width=500), 50)
    shown = view.shrunk(masks.Crop(np.eye(400, dtype=bool), 50, 50))
    assert shown.shape == (50, 50)
    assert shown[20:30].any(axis=1).all()


def test_masks_that_cannot_be_read_are_counted():
    view = picture.view_of(sample(objects=(replace(thing(5, 5), rle=b"\xff"), thing(30, 50))), TILE)
    things, unread = picture._things(view)
    assert (len(things), unread) == (1, 1)
    drawn(view.sample)


def test_text_only_samples_have_no_picture():
    assert drawn(chat("Hello", "Yes?")).shape[0] < 200


ODD = [
    "",
    "\0\r\n\x1b[31m",
    "a" * 5000,
    "مرحبا",
    "😀" * 50,
    "‹SEG›",
    "\ud800",
    "{spans}",
    "e\u0301\u202e\u200d",
    "\U0010ffff",
]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_any_text_can_be_drawn(text):
    odd = replace(sample().conditions[1], text=text)
    shown = render(replace(sample(), conditions=(odd,), sample_id=text), keyed(0))
    drawn(replace(shown, image=Image(bytes=None, path=text)), chat(text, text))


@pytest.mark.parametrize(
    ("written", "shown"),
    [("naïve Größe", "naive Grosse"), ("a\tb\0c", "a b c"), ("e\u0301 \u202eok", "e ok"), ("日本😀", "···")],
    ids=["accents", "controls", "marks", "no glyph"],
)
def test_characters_that_the_font_lacks_are_replaced(written, shown):
    assert text.drawable_text(written) == shown
