"""`vgd baseline`: predictions that need no model, to see what a benchmark can tell apart, and what a file looks like.

`truth` is the ground truth. `prompts` takes the prompt itself for the mask of its category; where the category is
shown in another picture there is none. `noisy` is the ground truth with some of it lost, shifted, eroded and dilated,
and with masks for absent categories, scored at random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from dataengine import masks
from dataengine.keyed import keyed
from dataengine.masks import Crop
from dataengine.prompts import render
from dataengine.sample import Condition, Prompt, Sample

VERSION = 1  # of the noise
DROPPED = 0.2  # share of the objects that noise loses
FALSE = 0.3  # share of the absent categories for which noise returns a mask
MAX_SHIFT = 0.1  # of the sides of the object
MAX_STEP_PX = 3  # of erosion and dilation

Mask = tuple[bytes, float]  # RLE on the sample's canvas, score


def predictions(samples: Iterable[Sample], what: str, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Predictions for all regions of some samples, by each kind of prompt that they have.

    Args:
        what: one of PREDICTORS. seed: of `noisy`, which is drawn for each region and kind by keys.
    """
    predictor = PREDICTORS[what]
    for sample in samples:
        for condition in sample.conditions:
            for prompt in _prompts(sample, condition):
                for rle, score in predictor(sample, condition, prompt, seed):
                    yield {
                        "sample_id": sample.sample_id,
                        "category_id": condition.category_id,
                        "prompt": prompt.kind,
                        "segmentation": {"size": [sample.height, sample.width], "counts": rle.decode("ascii")},
                        "score": score,
                    }


def _prompts(sample: Sample, condition: Condition) -> Iterator[Prompt]:
    if condition.exemplar >= 0:
        return iter(sample.objects[condition.exemplar].prompts)
    return iter(sample.references[condition.reference].prompts)


def _truth(sample: Sample, condition: Condition, prompt: Prompt, seed: int) -> Iterator[Mask]:
    """Every object; of those annotated twice the second has a lower score, because it is another prediction."""
    seen: Counter[bytes] = Counter()
    for place in condition.objects:
        rle = sample.objects[place].rle
        seen[rle] += 1
        yield rle, 1 / seen[rle]


def _own_prompt(sample: Sample, condition: Condition, prompt: Prompt, seed: int) -> Iterator[Mask]:
    crop = render(prompt, sample.height, sample.width) if condition.exemplar >= 0 else None
    if crop is not None and crop.mask.any():
        yield masks.rle_from_crop(crop, sample.height, sample.width), 1.0


def _noisy(sample: Sample, condition: Condition, prompt: Prompt, seed: int) -> Iterator[Mask]:
    rng = keyed(seed, sample.sample_id, f"noisy {condition.category_id}", prompt.kind, VERSION)
    for place in condition.objects:
        kept, score = rng.random() >= DROPPED, round(float(rng.random()), 4)
        rle = _disturbed(sample.objects[place].rle, sample.height, sample.width, rng)
        if kept and rle is not None:
            yield rle, score
    if not condition.objects and sample.objects and rng.random() < FALSE:
        other = sample.objects[int(rng.integers(len(sample.objects)))]
        yield other.rle, round(float(rng.random()), 4)


def _disturbed(rle: bytes, height: int, width: int, rng: np.random.Generator) -> bytes | None:
    """A mask moved, and made larger or smaller; None where nothing of it is left."""
    import cv2

    step, (across, down) = int(rng.integers(-MAX_STEP_PX, MAX_STEP_PX + 1)), rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2)
    crop = masks.crop_from_rle(rle, height, width)
    pixels = np.pad(crop.mask, MAX_STEP_PX).astype(np.uint8)
    kernel = np.ones((2 * abs(step) + 1,) * 2, np.uint8)
    pixels = np.asarray(cv2.dilate(pixels, kernel) if step > 0 else cv2.erode(pixels, kernel), np.uint8)
    x0 = crop.x0 - MAX_STEP_PX + round(across * crop.mask.shape[1])
    y0 = crop.y0 - MAX_STEP_PX + round(down * crop.mask.shape[0])
    left, top = max(0, -x0), max(0, -y0)
    inside = pixels[top : max(top, height - y0), left : max(left, width - x0)].astype(bool)
    if not inside.any():
        return None
    return masks.rle_from_crop(Crop(np.ascontiguousarray(inside), x0 + left, y0 + top), height, width)


PREDICTORS = {"truth": _truth, "prompts": _own_prompt, "noisy": _noisy}
