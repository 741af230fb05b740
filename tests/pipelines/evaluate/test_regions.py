"""Scores of `vgdseg` against values worked out by hand: what is in the denominator, and what is left out."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest

from dataengine import masks
from dataengine.errors import UserError
from dataengine.sample import PROMPT_KINDS, Condition, Object, Prompt, Provenance, Sample
from pipelines.evaluate.predictions import PredictionError
from pipelines.evaluate.regions import Scorer
from pipelines.evaluate.scorers import Rules, scorer_of
from pipelines.evaluate.strata import STRATA, strata_of

SIDE = 200  # px of the pictures
HALF = 51 / 101  # COCO's AP where half is found, and nothing else: the recalls 0, 0.01 … 0.5 have the precision 1


@dataclass
class Benchmark:
    """As much of one as a scorer asks for."""

    all: list[Sample]
    task: str = "vgdseg"

    def samples(self):
        return iter(self.all)


def rle(x: int, y: int = 0, side: int = 10) -> bytes:
    """A square."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y : y + side, x : x + side] = True
    return masks.encode(mask)


EMPTY = masks.rle_from_counts([SIDE * SIDE], SIDE, SIDE)


def prompts(inside: float = 1.0, other: float = 0.0, status: str = "ok") -> tuple[Prompt, ...]:
    return tuple(
        Prompt(kind=kind, profile="strict", version=1, status=status, inside=inside, other=other)
        for kind in PROMPT_KINDS
    )


def thing(code: bytes, category: int = 1, **more) -> Object:
    area, box = masks.measure(code, SIDE, SIDE)
    made = {"prompts": prompts(), **more}
    return Object(rle=code, bbox=box, area=area, category_id=category, annotation_id=code.decode(), **made)


def sample(name: str, *objects: Object, absent: tuple[int, ...] = (), variant: str = "same_image") -> Sample:
    """Asks for all categories of its objects, shown by the first of each, and for absent ones."""
    conditions = []
    for category in sorted({o.category_id for o in objects if not o.crowd} | set(absent)):
        own = tuple(n for n, o in enumerate(objects) if o.category_id == category and not o.crowd)
        # what an absent category is shown by makes no difference here
        conditions.append(
            Condition(kind="region", text="", category_id=category, objects=own, exemplar=own[0] if own else 0)
        )
    return Sample(
        sample_id=name,
        task="vgdseg",
        variant=variant,
        source="s",
        split="val",
        image=None,
        image_key=name,
        height=SIDE,
        width=SIDE,
        objects=objects,
        conditions=tuple(conditions),
        provenance=Provenance(file="f", record="r", builder="b", version=1, seed=0),
    )


def found(name: str, code: bytes, score: float = 0.5, category: int = 1, prompt: str | None = "point") -> dict:
    record = {"sample_id": name, "category_id": category, "score": score, "prompt": prompt}
    return {**record, "segmentation": {"size": [SIDE, SIDE], "counts": code.decode()}}


def score(samples, records, **rules) -> dict:
    scorer = Scorer(Benchmark(list(samples)), Rules(**rules))
    for number, record in enumerate(records):
        scorer.add(f"[{number}]", record)
    scorer.faults.check(False)
    return scorer.result()


def point(samples, records, variant: str = "same_image", **rules) -> dict:
    return score(samples, records, **rules)["scores"][variant]["point"]


# --- what is in the denominator --------------------------------------------------------------------------------------

TWO = (sample("a", thing(rle(0))), sample("b", thing(rle(0))))


def test_a_sample_without_predictions_stays_in_the_denominator():
    made = point(TWO, [found("a", rle(0))])
    assert made["ap"] == pytest.approx(HALF)
    assert made["ar100"] == 0.5
    assert (made["samples"], made["samples_with_predictions"], made["predictions"]) == (2, 1, 1)


def test_xsam_counts_pictures_with_predictions_alone():
    made = point(TWO, [found("a", rle(0))], convention="xsam")
    assert made["ap"] == pytest.approx(1)
    assert made["ar100"] == 1
    assert (made["samples"], made["samples_with_predictions"]) == (1, 1)


def test_crowds_do_not_count_unless_as_xsam_has_it():
    """The mask on the crowd ranks first: left out of account, or a false positive that halves the precision."""
    samples = [sample("a", thing(rle(0)), thing(rle(50), crowd=True))]
    records = [found("a", rle(50), 0.9), found("a", rle(0), 0.8)]
    assert point(samples, records)["ap"] == pytest.approx(1)
    assert point(samples, records, convention="xsam")["ap"] == pytest.approx(0.5)


@pytest.mark.parametrize("status", ["none", "fallback"])
def test_xsam_drops_objects_whose_prompt_could_not_be_made(status):
    samples = [sample("a", thing(rle(0)), thing(rle(50), prompts=prompts(status=status)))]
    assert point(samples, [found("a", rle(0))])["ap"] == pytest.approx(HALF)
    assert point(samples, [found("a", rle(0))], convention="xsam")["ap"] == pytest.approx(1)


def test_nothing_scores_zero():
    result = score(TWO, [])
    assert list(result["scores"]["same_image"]) == list(PROMPT_KINDS)
    for made in result["scores"]["same_image"].values():
        assert [made[name] for name in ("ap", "ap50", "ap75", "ap_small", "ar100")] == [0] * 5
        assert made["ap_large"] is None  # there is no large object
        assert made["samples"] == 2
    assert result["not_answered"] == []
    assert result["samples_with_predictions"] == 0


def test_nothing_for_one_kind_scores_zero_for_that_kind():
    result = score(TWO, [], prompt="box")
    assert {kind: made["ap"] for kind, made in result["scores"]["same_image"].items()} == {"box": 0}
    assert result["not_answered"] == [f"same_image/{kind}" for kind in PROMPT_KINDS if kind != "box"]


def test_nothing_has_no_score_where_only_pictures_with_predictions_count():
    assert point(TWO, [], convention="xsam")["ap"] is None


def test_what_is_not_answered_has_no_score():
    samples = [*TWO, replace(TWO[0], sample_id="c", variant="cross_image")]
    result = score(samples, [found("a", rle(0), prompt="mask")])
    assert {v: list(kinds) for v, kinds in result["scores"].items()} == {"same_image": ["mask"]}
    assert len(result["not_answered"]) == 7
    assert "cross_image/mask" in result["not_answered"]


def test_the_kind_may_be_said_for_all():
    records = [found("a", rle(0), prompt=None), found("b", rle(0), prompt="box")]
    result = score(TWO, records, prompt="point")
    assert list(result["scores"]["same_image"]) == ["point", "box"]


def test_size_classes_are_those_of_the_masks():
    """Squares of 10, 50 and 120 px: below 32², between, above 96²."""
    things = [thing(rle(0, side=10), 1), thing(rle(40, 0, 50), 2), thing(rle(0, 70, 120), 3)]
    made = point([sample("a", *things)], [found("a", things[1].rle, category=2)])
    assert [made[f"ap_{size}"] for size in ("small", "medium", "large")] == pytest.approx([0, 1, 0])
    assert {name: values["ap"] for name, values in made["per_category"].items()} == pytest.approx(
        {"1": 0, "2": 1, "3": 0}
    )


# --- properties ------------------------------------------------------------------------------------------------------

MANY = [
    sample(str(n), thing(rle(0)), thing(rle(20 + n)), thing(rle(60), 2), thing(rle(90, 5, 40), 2)) for n in range(4)
]


def _random_records(rng: random.Random) -> list[dict]:
    """Moved masks, some of them far off, with few different scores, so that there are ties."""
    return [
        found(
            s.sample_id,
            rle(min(190, max(0, x + rng.randint(-3, 3))), rng.choice([0, 0, 100])),
            rng.randint(1, 3) / 4,
            c,
        )
        for s in MANY
        for c, places in ((1, (0, 20 + int(s.sample_id))), (2, (60,)))
        for x in places
        if rng.random() < 0.8
    ]


def _unique(records: list[dict]) -> list[dict]:
    return list({str(record): record for record in records}.values())


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_predictions_does_not_matter(seed):
    rng = random.Random(seed)
    records = _unique(_random_records(rng))
    before = score(MANY, records)
    rng.shuffle(records)
    assert score(MANY, records) == before


@pytest.mark.parametrize("seed", range(5))
def test_a_false_positive_never_raises_ap(seed):
    rng = random.Random(seed)
    records = _unique(_random_records(rng))
    before = point(MANY, records)
    more = found(rng.choice(MANY).sample_id, rle(150, 150), rng.random(), rng.choice([1, 2]))
    after = point(MANY, [*records, more])
    for name in ("ap", "ap50", "ap75", "ar100"):
        assert after[name] <= before[name] + 1e-12
    for name, labels in before["strata"].items():
        for label, values in labels.items():
            if values["ap"] is not None:
                assert after["strata"][name][label]["ap"] <= values["ap"] + 1e-12


# --- strata ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("region", "labels"),
    [
        ({"size": "small", "inside": 0.49, "ambiguous": False, "instances": 1}, ("small", "<0.5", "no", "1")),
        ({"size": "medium", "inside": 0.5, "ambiguous": True, "instances": 2}, ("medium", "0.5-0.9", "yes", "2-4")),
        ({"size": "large", "inside": 0.89, "ambiguous": True, "instances": 4}, ("large", "0.5-0.9", "yes", "2-4")),
        # as a shard holds it, 0.9 is a little less in double precision
        (
            {"size": "large", "inside": float(np.float32(0.9)), "ambiguous": False, "instances": 5},
            ("large", ">=0.9", "no", "5-9"),
        ),
        ({"size": "large", "inside": 1.0, "ambiguous": False, "instances": 10}, ("large", ">=0.9", "no", ">=10")),
    ],
)
def test_borders_of_strata(region, labels):
    assert tuple(s[n] for s, n in zip(STRATA.values(), strata_of(region), strict=True)) == labels


def test_absent_categories_have_no_number_of_instances():
    assert strata_of({"size": "small", "inside": 1.0, "ambiguous": False, "instances": 0})[3] == -1


def test_a_stratum_is_scored_by_its_regions_alone():
    """Category 1 is found in picture a, where it is small; in b, where it is large, there is only a false positive.

    The false positive ranks first, so that over both AP is half of HALF: recall 0.5 is reached with precision 0.5.
    """
    samples = [
        sample("a", thing(rle(0), prompts=prompts(inside=0.3, other=0.4))),
        sample("b", thing(rle(0, 0, 120)), thing(rle(150), prompts=())),
    ]
    made = point(samples, [found("a", rle(0), 0.5), found("b", rle(180, 180), 0.9)])
    # three objects, of which one is found behind a false positive: recalls 0 … 0.33 have the precision 0.5
    assert made["ap"] == pytest.approx(34 / 101 / 2)
    strata = {name: {label: v["ap"] for label, v in labels.items()} for name, labels in made["strata"].items()}
    one, none = pytest.approx(1), 0
    assert strata == {
        "size": {"small": one, "medium": None, "large": none},
        "inside": {"<0.5": one, "0.5-0.9": None, ">=0.9": none},
        "ambiguous": {"no": none, "yes": one},
        "instances": {"1": one, "2-4": none, "5-9": None, ">=10": None},
    }
    assert made["strata"]["size"]["large"]["regions"] == 1
    assert made["strata"]["size"]["large"]["samples"] == 1


def test_samples_of_a_stratum_without_predictions_are_in_its_denominator():
    made = point(TWO, [found("a", rle(0))])
    assert made["strata"]["size"]["small"]["ap"] == pytest.approx(HALF)
    assert made["strata"]["size"]["small"]["samples"] == 2


# --- negatives -------------------------------------------------------------------------------------------------------


def test_false_positives_are_counted_by_region():
    """Four absent regions: two masks in the first, one in the second, an empty mask in the third, none in the last."""
    samples = [sample(name, thing(rle(0)), absent=(7, 8), variant="negatives") for name in "ab"]
    records = [
        found("a", rle(0), 0.9),
        found("a", rle(0), 0.2, category=7),
        found("a", rle(9), 0.6, category=7),
        found("a", rle(0), 0.4, category=8),
        found("b", EMPTY, 0.9, category=7),
    ]
    made = point(samples, records, "negatives")["false_positives"]
    assert made == {"regions": 4, "rate": {"any": 0.5, "0.3": 0.5, "0.5": 0.25, "0.7": 0}}


# --- faults ----------------------------------------------------------------------------------------------------------

GOOD = found("a", rle(0))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        pytest.param(3, "bad_record", id="no object"),
        pytest.param({**GOOD, "sample_id": None}, "bad_record", id="no sample"),
        pytest.param({**GOOD, "sample_id": "z"}, "unknown_sample", id="unknown sample"),
        pytest.param({**GOOD, "prompt": "finger"}, "bad_prompt", id="unknown prompt"),
        pytest.param({**GOOD, "prompt": ["point"]}, "bad_prompt", id="several prompts"),
        pytest.param({**GOOD, "prompt": None}, "bad_prompt", id="no prompt"),
        pytest.param({**GOOD, "category_id": "1"}, "bad_record", id="category in words"),
        pytest.param({**GOOD, "category_id": True}, "bad_record", id="category true"),
        pytest.param({**GOOD, "score": float("nan")}, "bad_score", id="NaN"),
        pytest.param({**GOOD, "score": float("inf")}, "bad_score", id="infinite"),
        pytest.param({**GOOD, "score": None}, "bad_score", id="no score"),
        pytest.param({**GOOD, "score": 10**400}, "bad_score", id="score beyond double precision"),
        pytest.param({**GOOD, "segmentation": [[1, 2]]}, "bad_record", id="polygon"),
        pytest.param({**GOOD, "segmentation": {"size": [20, 10], "counts": "f6"}}, "bad_mask", id="wrong size"),
        pytest.param({**GOOD, "segmentation": {"size": [SIDE, SIDE], "counts": "f6"}}, "bad_mask", id="short runs"),
        pytest.param({**GOOD, "segmentation": {"size": [SIDE, SIDE], "counts": "ä"}}, "bad_mask", id="no code"),
        pytest.param({**GOOD, "segmentation": {"size": [SIDE, SIDE], "counts": [-1]}}, "bad_mask", id="negative run"),
        pytest.param({**GOOD, "segmentation": {"size": [SIDE, SIDE]}}, "bad_mask", id="no counts"),
        pytest.param(GOOD, "duplicate", id="duplicate"),
    ],
)
def test_faults_stop_and_are_left_out_where_wanted(record, reason):
    scorer = Scorer(Benchmark(list(TWO)), Rules())
    scorer.add("[0]", GOOD)
    scorer.add("[1]", record)
    with pytest.raises(PredictionError, match=rf"1 predictions cannot be scored.*\n  1 {reason}: .*\n    \[1\]: "):
        scorer.faults.check(False)
    scorer.faults.check(True)
    assert scorer.faults.to_json()[reason]["count"] == 1
    assert scorer.predictions == 1
    assert scorer.result()["scores"]["same_image"]["point"] == point(TWO, [GOOD])


@pytest.mark.parametrize("category", [2, -1, 10**30], ids=["other", "negative", "huge"])
def test_categories_that_are_not_asked_for_are_left_out_and_counted(category):
    scorer = Scorer(Benchmark(list(TWO)), Rules())
    scorer.add("[0]", GOOD)
    scorer.add("[1]", {**GOOD, "category_id": category, "score": 0.9})
    scorer.faults.check(False)
    assert scorer.faults.to_json()["not_asked"]["count"] == 1
    assert scorer.result()["scores"]["same_image"]["point"] == point(TWO, [GOOD])


def test_the_same_mask_with_another_score_category_or_prompt_is_another_prediction():
    samples = [sample("a", thing(rle(0)), thing(rle(50), 2))]
    records = [GOOD, {**GOOD, "score": 0.4}, {**GOOD, "category_id": 2}, {**GOOD, "prompt": "box"}]
    assert point(samples, records)["predictions"] == 3


def test_nothing_but_faults_scores_zero():
    scorer = Scorer(Benchmark(list(TWO)), Rules(prompt="point"))
    scorer.add("[0]", 3)
    assert scorer.result()["scores"]["same_image"]["point"]["ap"] == 0


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (Rules(convention="mine"), "standard, xsam"),
        (Rules(backend="mine"), "hotcoco, pycocotools"),
        (Rules(prompt="finger"), "point, scribble, box, mask"),
    ],
)
def test_unknown_rules_are_refused_before_anything_is_read(rules, message):
    with pytest.raises(UserError, match=message):
        scorer_of(Benchmark([]), rules)


def test_sources_whose_ids_mean_different_things_are_not_scored_together():
    """Else a person of one source and an aerosol of another, both 1, would be one category."""

    def named(name: str, source: str, text: str) -> Sample:
        made = sample(name, thing(rle(0)))
        return replace(made, source=source, conditions=tuple(replace(c, text=text) for c in made.conditions))

    score([named("a", "coco", "person"), named("b", "coco_train", "person")], [])
    with pytest.raises(UserError, match="category 1 is 'person' in source coco but 'aerosol' in lvis"):
        score([named("a", "coco", "person"), named("b", "lvis", "aerosol")], [])
