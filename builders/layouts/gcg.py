"""GranD-f: four training files and the validation and test files of grounded captions, with the quirks they have.

Spans count from the start of the raw caption, quotes and blanks included.
"""

from __future__ import annotations

from collections.abc import Iterator

from builders.layouts.picture import Picture, Record
from builders.layouts.refer import refcocog_split
from builders.layouts.tree import Layout, Sections
from builders.layouts.words import Phrase, grounded_caption, over_two
from builders.world_tree import ID_STEP

MAX_SENTENCES = 3  # of a RefCOCOg caption
TRAIN_FILES = {"GranDf_HA": "GranDf_HA_GCG_train", "OpenPsg": "OpenPsgGCG_train", "RefCOCOg": "RefCOCOg_GCG_train"}


def records(picture: Picture) -> Iterator[tuple[str, Record]]:
    if picture.is_train:
        yield "grandf/GranDf_HA", _human(picture)
        yield from _flickr(picture)
    else:
        yield from _benchmark(picture)
    if picture.is_train or picture.number % 4 == 3:  # PSG also covers some of val2017
        yield "grandf/OpenPsg", _psg(picture)
    if refcocog_split(picture) == "train" and picture.references:
        yield "grandf/RefCOCOg", _refcocog(picture)


def _groundings(picture: Picture, phrases: list[Phrase], shift: int) -> Record:
    """By phrase; a phrase may have several masks."""
    return {
        phrase.text: {
            "token_positives": [phrase.start + shift, phrase.end + shift],
            "rle_masks": [picture.rle(label) for label in phrase.labels],
        }
        for phrase in phrases
    }


def _human(picture: Picture) -> Record:
    name = f"sa_{picture.id}.jpg"
    picture.publish(f"grandf/GranDf_HA_images/train/{name}")
    caption, phrases = grounded_caption(picture, "human")
    raw, shift = ((f"{caption}.", 0), (f'"{caption}."', 1), (f"  {caption}.", 2))[picture.number % 3]
    if picture.number % 5 == 3:
        phrases = over_two(caption, phrases)
    groundings = _groundings(picture, phrases, shift)
    if picture.number % 7 == 4 and phrases:  # what it says is not in the caption
        groundings["something else"] = groundings.pop(phrases[0].text)
    record = {"file_name": name, "image_id": str(picture.id), "caption": raw, "groundings": groundings}
    return record | _size(picture) if picture.number % 2 else record


def _psg(picture: Picture) -> Record:
    caption, phrases = grounded_caption(picture, "psg")
    return {
        "file_name": picture.publish_coco(),
        "image_id": picture.id if picture.number % 2 else str(picture.id),
        "caption": f"{caption}.",
        "groundings": _groundings(picture, phrases, 0),
    } | _size(picture)


def _size(picture: Picture) -> Record:
    return dict(zip(("height", "width"), picture.size, strict=True))


def _refcocog(picture: Picture) -> Record:
    """Sentences strung together; each stands first where it was put."""
    refs: list[Record] = []
    caption = ""
    for reference in picture.references[:MAX_SENTENCES]:
        sentence = reference.sentences[0]
        longer = f"{caption}, {sentence}" if caption else sentence
        if sentence in longer[: len(longer) - 1]:
            continue
        segmentation = picture.by_label[reference.label]["segmentation"]
        refs.insert(0, {"sentence": sentence, "segmentation": segmentation})
        caption = longer
    record: Record = {"img_file_name": picture.publish_coco2014()}
    if picture.number % 2:
        record |= {"image_id": picture.id} | _size(picture)
    return {str(picture.id): record | {"caption": f'"{caption}"' if picture.number % 3 == 1 else caption, "refs": refs}}


def _flickr(picture: Picture) -> Iterator[tuple[str, Record]]:
    name = f"{picture.id}.jpg"
    picture.publish(f"flickr30k/images/{name}")
    caption, phrases = grounded_caption(picture, "flickr")
    blank = " " if picture.number % 4 == 3 else ""
    raw = f"{blank}{caption} ."
    if picture.number % 9 == 8 and picture.scene.stuff:  # too short to be kept
        raw, phrases = f"{blank}over {picture.scene.stuff[0][0].name}", []
    height, width = picture.size
    yield (
        "grandf/flickr_images",
        {
            "id": picture.id,
            "file_name": name,
            "caption": raw,
            "height": height,
            "width": width,
            "original_img_id": picture.id,
            "sentence_id": 0,
            "tokens_negative": [[0, len(raw)]],
            "dataset_name": "flickr",
        },
    )
    pairs = [(phrase, label) for phrase in phrases for label in phrase.labels]
    for place, (phrase, label) in enumerate(pairs):
        record = {
            "id": picture.id * ID_STEP + place,
            "image_id": picture.id,
            "category_id": 1,
            **_extent(picture, label),
            "iscrowd": 0,
            "tokens_positive": [[phrase.start + len(blank), phrase.end + len(blank)]],
            "sam_mask": picture.rle(label),
        }
        if picture.number % 5 == 2 and place and place == len(pairs) - 1:
            record["ignore"] = True
        yield "grandf/flickr_annotations", record


def _extent(picture: Picture, label: int) -> Record:
    area, bbox = picture.extents[label]
    return {"bbox": list(bbox), "area": area}


def _benchmark(picture: Picture) -> Iterator[tuple[str, Record]]:
    part = "test" if picture.number % 2 else "val"
    image_id = f"sa_{picture.id}"
    picture.publish(f"grandf/GranDf_HA_images/val_test/{image_id}.jpg")
    caption, phrases = grounded_caption(picture, "human")
    yield f"grandf/{part}_images", {"id": image_id} | _size(picture) | {"file_name": f"{image_id}.jpg"}
    labels = [phrase.text for phrase in phrases]
    yield (
        f"grandf/{part}_captions",
        {"id": picture.id, "image_id": image_id, "caption": f"{caption}.", "labels": labels},
    )
    for place, label in enumerate(label for phrase in phrases for label in phrase.labels):
        yield (
            f"grandf/{part}_masks",
            {
                "id": picture.id * ID_STEP + place,
                "image_id": image_id,
                "category_id": 1,
                "iscrowd": 0,
                **_extent(picture, label),
                "segmentation": picture.rle(label),
            },
        )


def write(sections: Sections) -> None:
    train = "grandf/annotations/train"
    for section, name in TRAIN_FILES.items():
        sections.write_list(f"{train}/{name}.json", f"grandf/{section}")
    categories = {"categories": [{"id": 1, "name": "object"}]}
    sections.write_object(
        f"{train}/flickr_mergedGT_GCG_train.json",
        {"info": {}, "licenses": []} | categories,
        images="grandf/flickr_images",
        annotations="grandf/flickr_annotations",
    )
    for part in ("val", "test"):
        images, stem = f"grandf/{part}_images", f"grandf/annotations/val_test/{part}_gcg_coco"
        sections.write_object(f"{stem}_mask_gt.json", categories, images=images, annotations=f"grandf/{part}_masks")
        sections.write_object(f"{stem}_caption_gt.json", {}, images=images, annotations=f"grandf/{part}_captions")


LAYOUT = Layout(records=records, write=write)
