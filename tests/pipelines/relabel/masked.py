"""Small pictures, proposals and entries of rectangles, for tests of filters and merging."""

from __future__ import annotations

import numpy as np

from dataengine import masks
from dataengine.ledger.records import Concept, Entry, Labeler, Picture, Proposal, entry_id_of, mask_id_of

HEIGHT, WIDTH = 100, 200
CAT, DOG = Concept(text="cat", category_id=1), Concept(text="dog", category_id=2)
LABELER = Labeler(name="labeler", revision="1")


def picture(**values) -> Picture:
    return Picture(**{"key": "p", "path": "p.jpg", "sha256": "0" * 64, "height": HEIGHT, "width": WIDTH} | values)


def raster(*boxes) -> np.ndarray:
    """(HEIGHT, WIDTH) bool: the union of boxes x0, y0, x1, y1, half open."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


def rle(*boxes) -> bytes:
    return masks.encode(raster(*boxes))


def proposal(*boxes, concept: Concept = CAT, score: float = 0.9, **values) -> Proposal:
    return Proposal(rle=rle(*boxes), concept=concept, score=score, **values)


def entry(*boxes, concept: Concept = CAT, origin="human", round=0, annotation_id="", **values) -> Entry:
    code = values.pop("rle", None) or rle(*boxes)
    mask_id = mask_id_of(picture(), concept, code)
    labeler = LABELER if origin == "model" else None
    made = {
        "entry_id": entry_id_of(mask_id, round, labeler, "", annotation_id),
        "mask_id": mask_id,
        "picture": "p",
        "round": round,
        "origin": origin,
        "concept": concept,
        "rle": code,
        "bbox": tuple(map(float, masks.bbox_xywh(code, HEIGHT, WIDTH))),
        "area": masks.area(code, HEIGHT, WIDTH),
        "labeler": labeler,
        "annotation_id": annotation_id,
    }
    return Entry(**made | values)
