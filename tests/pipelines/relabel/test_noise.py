"""How well the filters tell right proposals from wrong ones, under the noise that the docs describe."""

import math
from functools import cache

import numpy as np
from scipy import ndimage

from dataengine import masks
from dataengine.keyed import keyed
from dataengine.ledger.records import Concept, Entry, Labeler, Picture, Proposal
from pipelines.relabel import calibrate, filters
from pipelines.relabel.chain import Chain
from pipelines.relabel.filters import Evidence
from pipelines.relabel.merge import Rules, merge

HEIGHT, WIDTH, PICTURES = 160, 240, 80
CONCEPTS = [Concept(text=f"kind-{number}", category_id=number) for number in range(8)]
Y, X = np.mgrid[:HEIGHT, :WIDTH]


def star(rng: np.random.Generator) -> np.ndarray:
    radius = rng.uniform(9, 30)
    cy, cx = rng.uniform(radius, HEIGHT - radius), rng.uniform(radius, WIDTH - radius)
    angle = np.arctan2(Y - cy, X - cx)
    edge = radius * (1 + 0.25 * np.sin(rng.integers(2, 7) * angle + rng.uniform(0, 6)))
    return (Y - cy) ** 2 + (X - cx) ** 2 < edge**2


def spoiled(mask: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Eroded, dilated or shifted by 7.5 to 15 % of the root of its area; an outline moves by half of that."""
    far = max(rng.uniform(0.075, 0.15) * math.sqrt(mask.sum()), 1.0)
    if kind == "shifted":
        angle = rng.uniform(0, 2 * math.pi)
        return ndimage.shift(mask.astype(np.uint8), (far * math.sin(angle), far * math.cos(angle)), order=0) > 0
    inward = ndimage.distance_transform_edt(mask) > max(far / 2, 1)
    outward = ndimage.distance_transform_edt(~mask) <= max(far / 2, 1)
    moved = inward if kind == "eroded" else outward
    return moved if moved.any() else mask


def labelled(truth: list[tuple[np.ndarray, Concept]], *key) -> list[Proposal]:
    """10 % missed, 5 % each of another category, eroded, dilated, shifted; one invented for each ten objects.

    The logit of the score is normal around 2 for an object of the right category and around -0.5 for others; the
    predicted IoU is the true one with an error of 0.05, of what is invented 0.4 to 0.9; the stability lacks a third of
    what the IoU lacks.
    """
    rng = keyed(0, "noise", *key)
    found = []

    def propose(mask, concept, overlap, centre):
        score = 1 / (1 + math.exp(-rng.normal(centre, 1)))
        iou, stability = rng.normal(overlap, 0.05), rng.normal(1 - (1 - overlap) / 3, 0.025)
        figures = (float(min(max(one, 0), 1)) for one in (score, iou, stability))
        names = ("score", "predicted_iou", "stability")
        found.append(Proposal(rle=masks.encode(mask), concept=concept, **dict(zip(names, figures, strict=True))))

    for mask, concept in truth:
        if rng.random() < 0.1:
            propose(star(rng), concept, rng.uniform(0.4, 0.9), -0.5)
        if rng.random() < 0.1:
            continue
        kind = rng.choice(["wrong", "eroded", "dilated", "shifted", "exact"], p=[0.05, 0.05, 0.05, 0.05, 0.8])
        if kind == "wrong":
            propose(mask, CONCEPTS[(concept.category_id + rng.integers(1, 8)) % 8], 1.0, -0.5)
        elif kind == "exact":
            propose(mask, concept, 1.0, 2.0)
        else:
            drawn = spoiled(mask, str(kind), rng)
            propose(drawn, concept, (drawn & mask).sum() / (drawn | mask).sum(), 2.0)
    return found


@cache
def world() -> list[tuple[Picture, list[Entry], list[list[Proposal]]]]:
    """Pictures with up to eight objects that do not cover each other, and what three labelers say of each."""
    found = []
    for number in range(PICTURES):
        rng, taken, truth = keyed(0, "world", number), np.zeros((HEIGHT, WIDTH), bool), []
        for _ in range(8):
            mask = star(rng) & ~taken
            taken |= mask
            if mask.sum() >= 150:
                truth.append((mask, CONCEPTS[rng.integers(8)]))
        key = f"p{number}"
        picture = Picture(key=key, path="", sha256=f"{number:064d}", height=HEIGHT, width=WIDTH)
        gold = [
            Entry(
                entry_id=f"{key}-{place}",
                mask_id="",
                picture=key,
                round=0,
                origin="human",
                concept=concept,
                rle=masks.encode(mask),
                bbox=(0.0, 0.0, 0.0, 0.0),
                area=int(mask.sum()),
            )
            for place, (mask, concept) in enumerate(truth)
        ]
        found.append((picture, gold, [labelled(truth, number, who) for who in range(3)]))
    return found


def kept_by(chain: Chain, num_others: int, iou: float = 0.75) -> tuple[float, float, float]:
    """Precision of what filters and merging keep; which share of the right proposals, and of all objects, that is."""
    labeler = Labeler(name="noisy", revision="1")
    hits = kept = right = objects = 0
    for picture, gold, (mine, *others) in world():
        evidence = Evidence(others={f"other-{k}": others[k] for k in range(num_others)})
        checked = filters.apply(mine, picture, chain, evidence)
        entries = merge(checked, [], [], picture, Rules(), 1, labeler)
        stay = [one for one, made in zip(checked, entries, strict=True) if made.state == "kept"]
        kept += len(stay)
        hits += sum(one.is_right for one in calibrate.judge(stay, gold, picture, iou))
        right += sum(one.is_right for one in calibrate.judge(checked, gold, picture, iou))
        objects += len(gold)
    return hits / kept, hits / right, hits / objects


def test_the_noise_is_what_it_says():
    precision, _, recall = kept_by(Chain(), 0)
    exact = kept_by(Chain(), 0, iou=0.999)[2]
    assert 0.68 < exact < 0.76, "0.9 * 0.8 of the objects are found as they are"
    assert 0.7 < precision < 0.85
    assert 0.72 < recall < 0.87


def test_default_filters_keep_what_is_right():
    """Over 400 such pictures: precision 0.984, 0.830 of the right proposals; with two others 1.000 and 0.812."""
    alone = kept_by(Chain.parse("default"), 0)
    assert alone[0] >= 0.95
    assert alone[1] >= 0.8
    agreed = kept_by(Chain.parse("default"), 2)
    assert agreed[0] >= 0.99
    assert agreed[1] >= 0.8
    assert agreed[0] > alone[0], "others who agree are worth something"


def test_calibrated_limits_keep_their_promise_on_other_pictures():
    chain = Chain.parse("default,confidence,-predicted_iou,-stability,agreement:missing=accept")
    half = PICTURES // 2
    judged = []
    for picture, gold, (mine, *_) in world()[:half]:
        judged += calibrate.judge(filters.apply(mine, picture, chain), gold, picture, 0.5)
    found = calibrate.thresholds(judged, chain, 0.9)
    assert found.unreached == ()
    held_out = []
    for picture, gold, (mine, *_) in world()[half:]:
        held_out += calibrate.judge(filters.apply(mine, picture, found.chain), gold, picture, 0.5)
    accepted = [one for one in held_out if one.values["confidence"] >= found.limits[0].accept]
    assert sum(one.is_right for one in accepted) / len(accepted) >= 0.9
    assert sum(one.is_right for one in accepted) / sum(one.is_right for one in held_out) >= 0.8
