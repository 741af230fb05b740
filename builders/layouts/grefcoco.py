"""gRefCOCO: expressions of several objects, of one, and of none, over the pictures of RefCOCO."""

from __future__ import annotations

from collections.abc import Iterator

from builders.layouts.coco import CATEGORIES
from builders.layouts.picture import Picture, Record, cycle, groups
from builders.layouts.refer import UNC
from builders.layouts.tree import Layout, Sections
from builders.world import COLORS, THINGS
from builders.world_tree import ID_STEP

MAX_GROUPS = 2
MAX_SINGLE = 2


def records(picture: Picture) -> Iterator[tuple[str, Record]]:
    name = picture.publish_coco2014()
    yield "grefcoco/images", picture.coco_image(name)
    for _, annotation in picture.objects:
        yield "grefcoco/annotations", annotation
    sent_id = picture.id * ID_STEP
    for place, (texts, targets) in enumerate(_expressions(picture)):
        sentences = [
            {"tokens": text.lower().split(), "raw": text, "sent_id": sent_id + i, "sent": text.lower()}
            for i, text in enumerate(texts)
        ]
        sent_id += len(texts)
        ref = {
            "image_id": picture.id,
            "split": cycle(UNC, picture),
            "sentences": sentences,
            "file_name": f"{name.removesuffix('.jpg')}_{place}.jpg",
            "category_id": [annotation["category_id"] for annotation in targets] or [-1],
            "ann_id": [annotation["id"] for annotation in targets] or [-1],
            "sent_ids": [sentence["sent_id"] for sentence in sentences],
            "ref_id": picture.id * ID_STEP + place,
        }
        if picture.number % 3 != 2:  # some leave the flag out
            ref["no_target"] = not targets
        yield "grefcoco/grefs(unc)", ref


def _expressions(picture: Picture) -> Iterator[tuple[list[str], list[Record]]]:
    """Sentences, and the annotations of all objects that they are true of."""
    several = [group for group in groups(picture) if len(group[2]) > 1]
    for kind, color, facts in several[:MAX_GROUPS]:
        texts = [f"All {color} {kind.plural}"] + ([f"both {color} {kind.plural}"] if len(facts) == 2 else [])
        yield texts, [picture.by_label[fact.label] for fact in facts]
    for reference in picture.references[:MAX_SINGLE]:
        yield list(reference.sentences), [picture.by_label[reference.label]]
    there = {(fact.kind, fact.color) for fact, _ in picture.objects}
    absent = [(k, c) for k in THINGS for c in COLORS if k not in picture.crowds and (k, c) not in there]
    kind, color = absent[picture.rng("absent").integers(len(absent))]
    yield [f"the {color} {kind.name}"], []


def write(sections: Sections) -> None:
    sections.write_list("grefcoco/grefs(unc).json", "grefcoco/grefs(unc)")
    sections.write_pickle("grefcoco/grefs(unc).p", "grefcoco/grefs(unc)", protocol=2)
    sections.write_object(
        "grefcoco/instances.json",
        sections.info("gRefCOCO") | {"categories": CATEGORIES},
        images="grefcoco/images",
        annotations="grefcoco/annotations",
    )


LAYOUT = Layout(records=records, write=write)
