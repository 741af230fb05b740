"""Objects ready for being compared with prompts, and pictures whose objects would not fit into memory."""

from __future__ import annotations

import numpy as np
import pytest

from dataengine import masks, measure
from dataengine.sample import Object
from prompts_sim import simulate


def thing(x0: int, y0: int, x1: int, y1: int) -> Object:
    raster = np.zeros((20, 30), dtype=bool)
    raster[y0:y1, x0:x1] = True
    box = (float(x0), float(y0), float(x1 - x0), float(y1 - y0))
    area = int(raster.sum())
    return Object(rle=masks.encode(raster), bbox=box, area=area, category_id=0, annotation_id=f"{x0} {y0}")


def test_crops_are_the_masks_in_their_boxes():
    crops = measure.crops_of([thing(2, 3, 7, 5), thing(0, 0, 30, 20)], 20, 30)
    assert [(crop.x0, crop.y0, crop.mask.shape) for crop in crops] == [(2, 3, (2, 5)), (0, 0, (20, 30))]
    assert all(crop.mask.all() for crop in crops)


def test_objects_that_do_not_fit_into_memory_are_refused(monkeypatch):
    objects = [thing(0, 0, 30, 20), thing(1, 0, 30, 20), thing(2, 0, 30, 20)]  # 600, 580 and 560 px
    monkeypatch.setattr(measure, "MAX_CROP_PIXELS", 600 + 580)
    assert len(measure.crops_of(objects[:2], 20, 30)) == 2
    for compared in (measure.crops_of, lambda *given: simulate(*given, profile="strict", seed=0, image_key="")):
        with pytest.raises(masks.MaskError, match=r"3 of 3 objects hold 1,740 px; at most 1,180") as caught:
            compared(objects, 20, 30)
        assert caught.value.reason == "objects_too_large"
