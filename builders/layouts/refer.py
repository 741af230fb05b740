"""The refer family: RefCOCO, RefCOCO+, RefCOCOg (pictures of COCO train2014) and RefCLEF, pickles beside instances.

Splits take turns over the pictures, so that many test pictures lie in train2017, as in reality; RefCOCOg's Google split
is one of references, and its splits share pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from builders.layouts.coco import CATEGORIES
from builders.layouts.picture import Picture, Record, cycle
from builders.layouts.tree import Layout, Sections
from builders.world_tree import ID_STEP

PLACES = {"left", "right", "leftmost", "rightmost", "top", "bottom", "topmost", "bottommost", "above", "below"}
UNC = "train val train testA train testB train train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """splits: take turns, by the name in refs(NAME).p; protocol: of the pickles."""

    name: str
    splits: dict[str, str]
    protocol: int = 2


DATASETS = (
    Dataset(name="refcoco", splits={"unc": UNC, "google": "train train val test"}),
    Dataset(name="refcoco+", splits={"unc": UNC}, protocol=0),
    Dataset(name="refcocog", splits={"umd": "train train test train val train train", "google": "train val"}),
    Dataset(name="refclef", splits={"unc": "train testA train testB val", "berkeley": "train train val test"}),
)


def refcocog_split(picture: Picture) -> str:
    return cycle(DATASETS[2].splits["umd"], picture)


def records(picture: Picture) -> Iterator[tuple[str, Record]]:
    for dataset in DATASETS:
        refs = _refs(dataset, picture)
        if not refs:
            continue
        section = f"refer/{dataset.name}"
        if dataset.name == "refclef":
            folder = f"{picture.id // 1000:02d}"
            name = f"{folder}/images/{picture.id}.jpg"
            picture.publish(f"refer/images/saiapr_tc-12/{name}")
            yield (
                f"{section}/images",
                {"id": picture.id, "file_name": name} | dict(zip(("height", "width"), picture.size, strict=True)),
            )
        else:
            name = picture.publish_coco2014()
            yield f"{section}/images", picture.coco_image(name)
        stem = name.rpartition("/")[2].removesuffix(".jpg")
        for fact, annotation in picture.objects:
            if dataset.name == "refclef":  # masks, not outlines
                annotation = annotation | {"segmentation": [picture.rle(fact.label)]}
            yield f"{section}/annotations", annotation
        for by, splits in dataset.splits.items():
            for place, ref in enumerate(refs):
                split = cycle(splits, picture)
                if (dataset.name, by) == ("refcocog", "google"):
                    split = "val" if place % 3 == 2 else "train"
                yield f"{section}/refs({by})", {"file_name": f"{stem}_{place}.jpg", "split": split} | ref


def _refs(dataset: Dataset, picture: Picture) -> list[Record]:
    """References of a picture, all but their split; RefCOCO+ says nothing of places."""
    refs, sent_id = [], picture.id * ID_STEP
    for place, reference in enumerate(picture.references):
        texts = [t for t in reference.sentences if dataset.name != "refcoco+" or not PLACES & set(t.split())]
        if not texts:
            continue
        annotation = picture.by_label[reference.label]
        sentences = [
            {"tokens": text.split(), "raw": _typed(text, sent_id + i), "sent_id": sent_id + i, "sent": text}
            for i, text in enumerate(texts)
        ]
        sent_id += len(texts)
        refs.append(
            {
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "ann_id": annotation["id"],
                "ref_id": picture.id * ID_STEP + place,
                "image_id": picture.id,
                "sentences": sentences,
                "category_id": annotation["category_id"],
            }
        )
    return refs


def _typed(text: str, number: int) -> str:
    """A sentence as somebody typed it, sometimes beyond ASCII."""
    return (text, text.capitalize(), f"{text}.", f"«{text}»")[number % 4]


def write(sections: Sections) -> None:
    for dataset in DATASETS:
        section = f"refer/{dataset.name}"
        sections.write_object(
            f"{section}/instances.json",
            sections.info(dataset.name) | {"categories": CATEGORIES},
            images=f"{section}/images",
            annotations=f"{section}/annotations",
        )
        for by in dataset.splits:
            sections.write_pickle(f"{section}/refs({by}).p", f"{section}/refs({by})", dataset.protocol)


LAYOUT = Layout(records=records, write=write)
