"""The noisy oracle spoils the truth as often and as much as it says, and always in the same way."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from dataengine import masks
from dataengine.errors import UserError
from dataengine.keyed import keyed
from dataengine.ledger.records import Concept, Entry, Picture
from pipelines.relabel import labelers, oracle
from pipelines.relabel.labelers import Question, Spec

HEIGHT, WIDTH = 60, 80
NOTHING = dict.fromkeys(("missed", "wrong_class", "eroded", "dilated", "shifted", "invented"), 0.0)


def picture(number: int) -> Picture:
    return Picture(key=str(number), path=f"/some/where/{number}.jpg", sha256="0" * 64, height=HEIGHT, width=WIDTH)


def square(x: int, y: int, side: int = 20) -> bytes:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + side, x : x + side] = True
    return masks.encode(mask)


def entry(number: int, rle: bytes, concept: str = "dog", **fields) -> Entry:
    told = {"origin": "human", "bbox": (0.0, 0.0, 1.0, 1.0), "area": 1, "annotation_id": str(number), **fields}
    named = Concept(text=concept, category_id=len(concept))
    return Entry(entry_id=f"e{number}", mask_id="m", picture="0", round=0, concept=named, rle=rle, **told)


def ask(known, number: int = 0, **settings):
    made = labelers.make(Spec(name="noisy-oracle", settings=settings))
    made.load()
    (found,) = made.label([Question(picture=picture(number), pixels=None, known=tuple(known))])
    assert labelers.check(found, picture(number)) == found
    return found


def noise_of(proposal) -> str:
    return json.loads(proposal.prompt)["noise"]


def test_without_noise_it_tells_the_truth():
    known = [entry(1, square(5, 5)), entry(2, square(40, 30), "cat")]
    found = ask(known, **NOTHING, iou_spread=0)
    assert [(p.rle, p.concept, p.predicted_iou, p.stability) for p in found] == [
        (e.rle, e.concept, 1.0, 1.0) for e in known
    ]


def test_crowds_and_other_models_are_no_truth():
    known = [entry(1, square(5, 5), crowd=True), entry(2, square(5, 5), origin="model")]
    assert ask(known, **NOTHING) == []


def test_it_depends_on_picture_and_annotation_alone():
    known = [entry(number, square(3 * number, 2 * number)) for number in range(12)]
    found = {p.prompt: p for p in ask(known)}
    assert {p.prompt: p for p in ask(known[::-1])} == found
    assert all(found[p.prompt] == p for p in ask(known[3:5]))
    assert {p.prompt: p for p in ask(known, number=1)} != found
    assert {p.prompt: p for p in ask(known, seed=1)} != found


@pytest.mark.parametrize(
    ("setting", "kind"),
    [("wrong_class", "wrong_class"), ("eroded", "eroded"), ("dilated", "dilated"), ("shifted", "shifted")],
)
def test_noise_is_of_one_kind(setting, kind):
    known = [entry(1, square(20, 20)), entry(2, square(40, 30), "cat")]
    found = ask(known, **{**NOTHING, setting: 1.0})
    assert [noise_of(p) for p in found] == [kind, kind]
    for proposal, truth in zip(found, known, strict=True):
        area, before = masks.area(proposal.rle, HEIGHT, WIDTH), masks.area(truth.rle, HEIGHT, WIDTH)
        assert (proposal.concept != truth.concept) == (kind == "wrong_class")
        assert {"eroded": area < before, "dilated": area > before, "shifted": area <= before}.get(kind, area == before)
        overlap = masks.iou([proposal.rle], [truth.rle], HEIGHT, WIDTH)[0, 0]
        assert proposal.predicted_iou == pytest.approx(overlap, abs=0.25)  # five times its spread
        assert (overlap < 1) == (kind != "wrong_class")


def test_the_shares_are_those_of_the_settings():
    """Of 4,000 objects; four standard deviations of a share p are 4 sqrt(p (1 - p) / 4,000), at most 0.02."""
    known = [entry(number, square(10, 10), "dog" if number % 2 else "cat") for number in range(4000)]
    found = [proposal for start in range(0, 4000, 500) for proposal in ask(known[start : start + 500])]
    kinds = Counter(map(noise_of, found))
    assert (4000 - kinds.total() + kinds["invented"]) / 4000 == pytest.approx(0.10, abs=0.02)
    assert kinds["invented"] / 4000 == pytest.approx(0.10, abs=0.02)
    for kind in ("wrong_class", "eroded", "dilated", "shifted"):
        assert kinds[kind] / 4000 == pytest.approx(0.9 * 0.05, abs=0.014)
    right = [p.score for p in found if noise_of(p) not in ("wrong_class", "invented")]
    assert np.mean(np.array(right) > 1 / (1 + np.exp(-2.0))) == pytest.approx(0.5, abs=0.034)  # the median's logit is 2


def test_an_erosion_moves_the_outline_by_the_stated_share():
    """20 px squares: at most 0.3 x 20 = 6 px in all, at least 3 px; so 3 or 2 px on each side."""
    areas = set()
    for seed in range(40):
        rle = oracle.spoiled(square(30, 20), HEIGHT, WIDTH, "eroded", 0.3, keyed(seed, "test"))
        areas.add(masks.area(rle, HEIGHT, WIDTH))
    assert areas == {16 * 16, 14 * 14}


def test_a_mask_that_would_vanish_stays():
    rle = square(5, 5, side=1)
    assert oracle.spoiled(rle, HEIGHT, WIDTH, "eroded", 1.0, keyed(0, "a")) == rle


def test_several_are_invented_where_more_than_one_is_wanted():
    found = ask([entry(1, square(10, 10))], **{**NOTHING, "missed": 1.0, "invented": 2.5})
    assert {noise_of(p) for p in found} == {"invented"}
    assert len(found) in (2, 3)
    assert all(p.predicted_iou < 0.95 for p in found)


def test_the_truth_may_be_a_file(tmp_path):
    document = {
        "images": [{"id": 7, "file_name": "folder/3.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 5,
                "iscrowd": 0,
                "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]],
            },
            {
                "id": 2,
                "image_id": 7,
                "category_id": 5,
                "iscrowd": 1,
                "segmentation": {"size": [60, 80], "counts": [0, 4800]},
            },
        ],
        "categories": [{"id": 5, "name": "dog"}, {"id": 6, "name": "cat"}],
    }
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(document))
    (found,) = ask([], 3, **NOTHING, truth=str(file))
    assert (found.concept, found.rle) == (Concept(text="dog", category_id=5), square(10, 10))
    assert ask([], 4, **NOTHING, truth=str(file)) == []
    (wrong,) = ask([], 3, **{**NOTHING, "wrong_class": 1.0}, truth=str(file))
    assert wrong.concept.text == "cat"
    made = [labelers.make(Spec(name="noisy-oracle", settings={"truth": str(file)})) for _ in range(2)]
    assert str(tmp_path) not in made[0].settings + made[0].revision
    file.write_text(json.dumps({**document, "annotations": []}))
    assert labelers.make(Spec(name="noisy-oracle", settings={"truth": str(file)})).revision != made[0].revision


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mised": 0.1}, "mised"),
        ({"missed": 2}, "missed"),
        ({"eroded": 0.9, "shifted": 0.9}, "more than 1"),
        ({"truth": "/no/such/file"}, "No such file"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(UserError, match=said):
        labelers.make(Spec(name="noisy-oracle", settings=settings))


@pytest.mark.parametrize("text", ["[]", "{", '{"images": [], "annotations": [{}], "categories": []}', '{"images": 3}'])
def test_files_that_are_no_truth(text, tmp_path):
    (tmp_path / "truth.json").write_text(text)
    made = labelers.make(Spec(name="noisy-oracle", settings={"truth": str(tmp_path / "truth.json")}))
    with pytest.raises(UserError, match=r"truth\.json: no COCO instances file"):
        made.load()
