"""COCO 2017: instances, panoptic and captions of train2017 and val2017."""

from __future__ import annotations

from collections.abc import Iterator

from builders import world_text
from builders.layouts.picture import TRAIN, VAL, Picture, Record
from builders.layouts.tree import Layout, Sections
from builders.world import STUFF, THINGS
from builders.world_tree import ID_STEP, PNG, category_of, ids_to_bgr, segment_ids, segments_of

CATEGORIES = [category_of(kind) for kind in THINGS]


def records(picture: Picture) -> Iterator[tuple[str, Record]]:
    name = picture.publish_coco().partition("/")[2]
    split, stem = picture.split, name.removesuffix(".jpg")
    ids = segment_ids(picture.scene, picture.rng("ids"))
    picture.write_png(f"coco/annotations/panoptic_{split}/{stem}.png", ids_to_bgr(picture.scene.labels, ids), PNG)
    yield f"coco/images_{split}", picture.coco_image(name)
    for annotation in picture.annotations:
        yield f"coco/instances_{split}", annotation
    segments = segments_of(picture.scene, ids)
    yield f"coco/panoptic_{split}", {"image_id": picture.id, "file_name": f"{stem}.png", "segments_info": segments}
    for place, caption in enumerate(world_text.captions(picture.scene, picture.rng("captions"))):
        yield f"coco/captions_{split}", {"image_id": picture.id, "id": picture.id * ID_STEP + place, "caption": caption}


def write(sections: Sections) -> None:
    panoptic = [
        category_of(kind) | {"isthing": int(kind.is_thing), "color": list(kind.color)} for kind in (*THINGS, *STUFF)
    ]
    for split in (TRAIN, VAL):
        head = sections.info(split)
        for kind, more in (
            ("instances", {"categories": CATEGORIES}),
            ("panoptic", {"categories": panoptic}),
            ("captions", {}),
        ):
            sections.write_object(
                f"coco/annotations/{kind}_{split}.json",
                head | more,
                images=f"coco/images_{split}",
                annotations=f"coco/{kind}_{split}",
            )


LAYOUT = Layout(records=records, write=write)
