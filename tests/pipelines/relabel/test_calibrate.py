import numpy as np
import pytest

from dataengine.keyed import keyed
from dataengine.ledger.records import Check
from pipelines.relabel import calibrate
from pipelines.relabel.calibrate import CalibrationError, Judged, judge, lower_bound, thresholds
from pipelines.relabel.chain import Chain
from tests.pipelines.relabel.masked import DOG, entry, picture, proposal


def gold(values, right, name="confidence"):
    return [Judged(values={name: float(v)}, is_right=bool(r)) for v, r in zip(values, right, strict=True)]


def drawn(number, *key):
    """Proposals whose confidence is the probability that they are right."""
    rng = keyed(0, *key)
    values = rng.random(number)
    return values, rng.random(number) < values


def test_exact_bounds():
    # of n right ones out of n: (1 - confidence) ** (1 / n); 59 is the first n for 0.95 at 95 %
    found = lower_bound(np.array([58, 59, 0, 0]), np.array([58, 59, 10, 0]), 0.95)
    np.testing.assert_allclose(found, [0.05 ** (1 / 58), 0.05 ** (1 / 59), 0, 0])
    assert found[0] < 0.95 < found[1]
    # at the bound, as many or more right ones come with probability 1 - confidence
    from scipy import stats

    [bound] = lower_bound(np.array([90]), np.array([100]), 0.95)
    assert stats.binom.sf(89, 100, bound) == pytest.approx(0.05)


def test_wilson_bounds():
    # the roots of (p - share)² = z² p (1 - p) / n
    for right, num in ((90, 100), (5, 5), (1, 20)):
        [bound] = lower_bound(np.array([right]), np.array([num]), 0.95, "wilson")
        z = 1.6448536269514722
        assert (bound - right / num) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / num)
        assert bound < right / num


def test_the_laxest_limit_that_reaches_the_target():
    # 300 right ones at 0.9, 300 of which 270 are right at 0.6, 300 wrong ones at 0.3
    values = np.repeat([0.9, 0.6, 0.3], 300)
    right = np.r_[np.ones(570), np.zeros(330)].astype(bool)
    right[300:600] = np.arange(300) < 270
    found = thresholds(gold(values, right), Chain.parse("confidence:0.5:0.1"), 0.92)
    [limit] = found.limits
    # 570 of 600 are right, of which the bound is just below 0.93; the three limits share 5 % of doubt
    assert (limit.accept, limit.reject, limit.num_accepted) == (0.6, 0.6, 600)
    assert limit.precision == 0.95
    assert limit.bound == pytest.approx(lower_bound(np.array([570]), np.array([600]), 1 - 0.05 / 3)[0])
    assert limit.recall == 1.0
    assert (found.num_accepted, found.precision, found.recall) == (600, 0.95, 1.0)
    assert found.chain.get("confidence").accept == 0.6
    assert found.unreached == ()
    strict = thresholds(gold(values, right), Chain.parse("confidence"), 0.95)
    assert strict.limits[0].accept == 0.9
    # below 0.9 270 of 600 are right, below 0.6 none: only those may be rejected
    assert strict.limits[0].reject == 0.6
    assert str(strict.limits[0]) == (
        "confidence: 0.9 accepts 300 of 900 (precision 1.000, at least 0.986, recall 0.526)"
    )


def test_a_target_out_of_reach_is_said():
    values, right = np.linspace(0, 1, 400), np.arange(400) % 5 > 0  # 80 % right, whatever the value
    chain = Chain.parse("confidence:0.5:0.2")
    found = thresholds(gold(values, right), chain, 0.95)
    assert found.unreached == ("confidence",)
    assert found.chain == chain, "the limits stay as they were"
    assert str(found.limits[0]).startswith(
        "confidence: no limit reaches a precision of 0.95; the nearest has precision"
    )
    few = thresholds(gold([0.9] * 40, [True] * 40), chain, 0.95)
    assert few.unreached == ("confidence",), "40 right ones of 40 are not enough: 59 are"
    assert str(few.limits[0]) == (
        "confidence: too little data: a precision of 0.95 takes at least 59 proposals, there are 40"
    )
    assert not found.limits[0].has_too_little
    none = thresholds([Judged(values={"confidence": None}, is_right=True)], chain, 0.9)
    assert str(none.limits[0]) == "confidence: no proposal of the gold set has a value"


@pytest.mark.parametrize("method", ["exact", "wilson"])
@pytest.mark.parametrize("target", [0.5, 0.9, 0.99])
def test_the_fewest_that_can_reach_a_target(method, target):
    """One less does not, however right they are."""
    chain = Chain.parse("confidence")
    [limit] = thresholds(gold([0.9], [True]), chain, target, method=method).limits
    assert lower_bound([limit.needed], [limit.needed], 0.95, method)[0] >= target
    assert lower_bound([limit.needed - 1], [limit.needed - 1], 0.95, method)[0] < target


def test_limits_rise_with_the_target_and_less_can_be_better():
    values, right = drawn(3000, "monotone")
    targets = np.linspace(0.55, 0.97, 15)
    chain = Chain.parse("confidence")
    accepts = [thresholds(gold(values, right), chain, float(t)).limits[0].accept for t in targets]
    reached = [accept for accept in accepts if accept is not None]
    assert reached == sorted(reached)
    assert accepts[: len(reached)] == reached
    assert len(reached) > 8
    turned = [
        thresholds(gold(1 - values, right, "components"), Chain.parse("components"), float(t), ["components"]).limits[0]
        for t in targets[: len(reached)]
    ]
    np.testing.assert_allclose([1 - limit.accept for limit in turned], reached)
    assert all(limit.reject >= limit.accept for limit in turned)


@pytest.mark.parametrize(("target", "number"), [(0.8, 500), (0.9, 3000)])
def test_the_promise_holds(target, number):
    """Behind a limit t a share of (1 + t) / 2 is right; in at most 5 % of gold sets less than the target was taken."""
    broken, reached = 0, 0
    for trial in range(100):
        values, right = drawn(number, "promise", trial)
        [limit] = thresholds(gold(values, right), Chain.parse("confidence"), target).limits
        if limit.accept is not None:
            reached += 1
            broken += (1 + limit.accept) / 2 < target
    assert reached > 50
    assert broken <= 0.05 * 100


def test_rejecting_costs_few_right_ones():
    values, right = drawn(4000, "floor")
    [limit] = thresholds(gold(values, right), Chain.parse("confidence"), 0.9, floor=0.2).limits
    # below t a share of t / 2 is right
    assert 0.2 < limit.reject < 0.4
    assert limit.reject < limit.accept


def test_what_the_whole_chain_accepts():
    rows = [Judged(values={"confidence": 0.9, "components": c}, is_right=c < 0.1) for c in [0.0] * 90 + [0.5] * 10]
    found = thresholds(rows, Chain.parse("confidence,components"), 0.5)
    assert (found.num_accepted, found.precision, found.recall) == (90, 1.0, 1.0)
    assert found.limits[0].precision == 0.9


def test_gold_masks_are_matched_once():
    def said(one):
        return one, (Check(name="confidence", value=one.score, limit=0.5, verdict="accept"),)

    truth = [entry((20, 20, 60, 60)), entry((100, 0, 140, 40), concept=DOG), entry((150, 50, 200, 100), crowd=True)]
    given = [
        proposal((20, 20, 60, 57), score=0.7),
        proposal((20, 20, 60, 60), score=0.6),  # its mask is taken by the one before
        proposal((100, 0, 140, 40), score=0.5),  # a cat where a dog is
        proposal((155, 55, 195, 95), score=0.4),  # in a crowd
        proposal((100, 0, 140, 25), concept=DOG, score=0.3),  # IoU 0.625
    ]
    found = judge([said(one) for one in given], truth, picture())
    assert [(one.values["confidence"], one.is_right) for one in found] == [
        (0.7, True),
        (0.6, False),
        (0.5, False),
        (0.3, False),
    ]
    assert judge([said(given[4])], truth, picture(), iou=0.6)[0].is_right
    assert not judge([said(given[0])], [], picture())[0].is_right


def test_what_cannot_be_calibrated():
    rows, chain = gold([0.5], [True]), Chain.parse("confidence")
    for arguments, message in [
        (([], chain, 0.9), "no proposals"),
        ((rows, chain, 0.9, ["stability"]), "stability is not in the chain"),
        ((rows, chain, 1.0), "a target of 1 is no share"),
        ((rows, chain, 0.9, None, 0.1, 0.0), "a confidence of 0 is no share"),
    ]:
        with pytest.raises(CalibrationError, match=message):
            thresholds(*arguments)
    assert calibrate.CANDIDATES == 32
