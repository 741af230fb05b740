"""LVIS v1 over the pictures of COCO 2017: no crowds, but categories that are not exhaustive, and negative ones.

Its categories are numbered by name. Its val has pictures of COCO's train2017, as in reality.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from builders.layouts.picture import Picture, Record
from builders.layouts.tree import Layout, Sections
from builders.world import SYNONYMS, THINGS

NUMBERS = {kind: number for number, kind in enumerate(sorted(THINGS, key=lambda kind: kind.name), start=1)}
MAX_NEGATIVE = 3


def records(picture: Picture) -> Iterator[tuple[str, Record]]:
    picture.publish_coco()
    part = "train" if picture.is_train and picture.number % 8 != 7 else "val"
    there = {NUMBERS[fact.kind] for fact in picture.scene.facts}
    absent = sorted(set(NUMBERS.values()) - there)
    chosen = picture.rng("negatives").permutation(absent)[:MAX_NEGATIVE].tolist()
    image = picture.coco_image("")
    del image["file_name"]
    yield (
        f"lvis/images_{part}",
        image
        | {
            "neg_category_ids": sorted(chosen),
            "not_exhaustive_category_ids": sorted(NUMBERS[kind] for kind in picture.crowds),
        },
    )
    for fact, record in picture.objects:
        kept = {key: record[key] for key in ("id", "image_id", "area", "bbox", "segmentation")}
        yield f"lvis/annotations_{part}", kept | {"category_id": NUMBERS[fact.kind]}
    yield f"lvis/kinds_{part}", {"ids": [NUMBERS[fact.kind] for fact, _ in picture.objects]}


def write(sections: Sections) -> None:
    images: Counter[int] = Counter()
    instances: Counter[int] = Counter()
    for record in sections.records("lvis/kinds_train"):
        images.update(set(record["ids"]))
        instances.update(record["ids"])
    categories = [
        {
            "id": number,
            "synset": f"{_word(kind.name)}.n.01",
            "synonyms": [_word(name) for name in (kind.name, *SYNONYMS.get(kind.name, ()))],
            "def": f"a flat {kind.name}, as it stands about in the world of shapes",
            "name": _word(kind.name),
            "frequency": "r" if images[number] <= 10 else "c" if images[number] <= 100 else "f",
            "image_count": images[number],
            "instance_count": instances[number],
        }
        for kind, number in NUMBERS.items()
    ]
    for part in ("train", "val"):
        sections.write_object(
            f"lvis/lvis_v1_{part}.json",
            sections.info("LVIS v1") | {"categories": categories},
            images=f"lvis/images_{part}",
            annotations=f"lvis/annotations_{part}",
        )


def _word(name: str) -> str:
    return name.replace(" ", "_")


LAYOUT = Layout(records=records, write=write)
