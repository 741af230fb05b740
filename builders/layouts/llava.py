"""LLaVA: the rows of stage 1 (558k) and of the instruction mix (665k), every kind of row in turn.

Both as the published JSON and as JSON lines, as others rewrite them; the lines of the mix also have rows of several
pictures, which the published file has not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from builders import world_text
from builders.layouts.picture import Picture, Record, groups
from builders.layouts.tree import Layout, Sections
from builders.world_tree import ID_STEP

BRIEF = "Answer the question using a single word or phrase."
Turns = list[tuple[str, str]]


def records(picture: Picture) -> Iterator[tuple[str, Record]]:
    if not picture.is_train:
        return
    yield "llava/pretrain", _pretrain(picture)
    yield "llava/mix", KINDS[picture.number % len(KINDS)](picture)
    if picture.number % 4 == 1:
        yield "llava/mix", _text_only(picture)
    if picture.number % 8 == 6:
        yield "llava/several", _several(picture)


def _row(row_id: str | int, image: str | None, turns: Turns) -> Record:
    row: Record = {"id": row_id} | ({} if image is None else {"image": image})
    return row | {"conversations": [{"from": who, "value": value} for who, value in turns]}


def _image(picture: Picture, name: str) -> str:
    picture.publish(f"llava/llava_images/{name}")
    return name


def _captions(picture: Picture) -> list[str]:
    return world_text.captions(picture.scene, picture.rng("captions"))


def _count(picture: Picture) -> tuple[str, str]:
    """A question and its answer."""
    several = list(groups(picture))
    if not several:
        return "Is there anything on the ground?", "Yes" if picture.scene.facts else "No"
    kind, color, facts = several[picture.rng("question").integers(len(several))]
    return f"How many {color} {kind.plural} are there?", str(len(facts))


def _pretrain(picture: Picture) -> Record:
    name = f"{picture.id // 10_000:05d}/{picture.id:09d}.jpg"
    picture.publish(f"llava/LLaVA-Pretrain/images/{name}")
    ask = "Give a short and clear explanation of the subsequent image."
    question = (f"<image>\n{ask}", f"{ask}\n<image>", f"{ask}<image>", "<image>")[picture.number % 4]
    return _row(f"{picture.id:09d}", name, [("human", question), ("gpt", _captions(picture)[0])])


def _coco(picture: Picture) -> Record:
    question, answer = _count(picture)
    image = _image(picture, f"coco/{picture.coco_name}")
    first, second, _ = _captions(picture)
    turns = [
        ("human", f"<image>\n{question}\n{BRIEF}"),
        ("gpt", answer),
        ("human", "Describe the picture."),
        ("gpt", f"{first}."),
        ("human", "Once more, without colors."),
        ("gpt", f"{second}."),
    ]
    return _row(f"{picture.id:012d}", image, turns)


def _gqa(picture: Picture) -> Record:
    question, answer = _count(picture)
    return _row(
        str(picture.id),
        _image(picture, f"gqa/images/{picture.id}.jpg"),
        [("human", f"<image>\n{question}"), ("gpt", answer)],
    )


def _ocr(picture: Picture) -> Record:
    image = _image(picture, f"ocr_vqa/images/{picture.id:010d}.jpg")
    turns = [
        ("human", "What is written here?\n<image>"),
        ("gpt", "Nothing is written here."),
        ("human", f"Is it a book?\n{BRIEF}"),
        ("gpt", "No"),
    ]
    return _row(f"{picture.id:010d}", image, turns)


def _textvqa(picture: Picture) -> Record:
    image = _image(picture, f"textvqa/train_images/{picture.id:016x}.jpg")
    question, answer = _count(picture)
    return _row(f"{picture.id:016x}", image, [("human", f"{question}\n<image>\n{BRIEF}"), ("gpt", answer)])


def _region(picture: Picture) -> Record:
    """Boxes as text, of the picture's width and height."""
    folder = ("VG_100K", "VG_100K_2")[picture.number // len(KINDS) % 2]
    image = _image(picture, f"vg/{folder}/{picture.id}.jpg")
    turns: Turns = []
    height, width = picture.size
    for reference in picture.references[:2]:
        x, y, w, h = picture.by_label[reference.label]["bbox"]
        box = ", ".join(f"{value:.2f}" for value in (x / width, y / height, (x + w) / width, (y + h) / height))
        ask = "Please provide the bounding box coordinate of the region this sentence describes:"
        turns += [("human", f"{ask} {reference.sentences[0]}."), ("gpt", f"[{box}]")]
    turns = turns or [("human", "Please describe the picture."), ("gpt", _captions(picture)[2])]
    return _row(f"VG_{picture.id}", image, [("human", f"<image>\n{turns[0][1]}"), *turns[1:]])


def _odd(picture: Picture) -> Record:
    """What strays: an integer id, a marker in the middle, two questions in a row, one without an answer."""
    image = _image(picture, f"coco/{picture.coco_name}")
    question, answer = _count(picture)
    turns = [("human", "Look at <image> and say:"), ("human", f" {question}"), ("gpt", answer), ("human", "Why?")]
    return _row(picture.id, image, turns)


def _text_only(picture: Picture) -> Record:
    turns = [
        ("gpt", "Hello."),
        ("human", f"What is {picture.number} + 2?"),
        ("gpt", str(picture.number + 2)),
        ("human", "Is a < b && c > d the same as `(a < b) and (c > d)`?"),
        ("gpt", "In C and in Python, yes."),
    ]
    row = _row(f"shared_{picture.id * ID_STEP}", None, turns[picture.number // 4 % 2 :])
    return {"id": row["id"], "model": "", "conversations": row["conversations"]} if picture.number % 8 == 1 else row


def _several(picture: Picture) -> Record:
    """A row with a list of pictures."""
    names = [_image(picture, f"coco/{picture.coco_name}"), _image(picture, f"gqa/images/{picture.id}.jpg")]
    row = _row(f"several_{picture.id}", None, [("human", "<image>\n<image>\nIs it the same?"), ("gpt", "Yes")])
    return {"id": row["id"], "image": names, "conversations": row["conversations"]}


KINDS: tuple[Callable[[Picture], Record], ...] = (_coco, _gqa, _ocr, _textvqa, _region, _odd)


def write(sections: Sections) -> None:
    sections.write_list("llava/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", "llava/pretrain")
    sections.write_list("llava/LLaVA-Instruct-150K/llava_v1_5_mix665k.json", "llava/mix")
    sections.write_lines("llava/LLaVA-Pretrain/blip_laion_cc_sbu_558k.jsonl", "llava/pretrain")
    sections.write_lines("llava/LLaVA-Instruct-150K/llava_v1_5_mix665k.jsonl", "llava/mix", "llava/several")


LAYOUT = Layout(records=records, write=write)
