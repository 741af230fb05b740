"""SA-1B: a json beside each picture with masks of everything, without categories."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from builders.layouts.picture import Picture, Record
from builders.layouts.tree import Layout
from builders.world_tree import ID_STEP, labels_of

FOLDER_SIZE = 10_000


def records(picture: Picture) -> Iterator[tuple[str, Record]]:
    if picture.is_train:
        stem = f"sa1b/sa_{picture.number // FOLDER_SIZE:06d}/sa_{picture.id}"
        picture.publish(f"{stem}.jpg")
        picture.write_json(f"{stem}.json", {"image": _image(picture), "annotations": _annotations(picture)})
    yield from ()


def _image(picture: Picture) -> Record:
    height, width = picture.size
    return {"image_id": picture.id, "width": width, "height": height, "file_name": f"sa_{picture.id}.jpg"}


def _annotations(picture: Picture) -> list[Record]:
    height, width = picture.size
    rng = picture.rng("quality")
    annotations = []
    for place, (label, _) in enumerate(labels_of(picture.scene)):
        area, bbox = picture.extents[label]
        crop = picture.crop(label)
        iou, stability = rng.uniform(0.88, 1.0, 2).round(4).tolist()
        row, column = divmod(int(rng.choice(np.flatnonzero(crop.mask))), bbox[2])
        annotations.append(
            {
                "id": picture.id * ID_STEP + place,
                "segmentation": picture.rle(label),
                "bbox": list(bbox),
                "area": area,
                "predicted_iou": iou,
                "stability_score": stability,
                "crop_box": [0, 0, width, height],
                "point_coords": [[crop.x0 + column + 0.5, crop.y0 + row + 0.5]],
            }
        )
    return annotations


LAYOUT = Layout(records=records)
