import itertools

import pytest

from dataengine import masks
from dataengine.keyed import keyed
from dataengine.ledger.records import Check, Concept, Decision, entry_id_of, mask_id_of
from pipelines.relabel.merge import Rules, RulesError, merge
from tests.pipelines.relabel.masked import CAT, DOG, LABELER, entry, picture, proposal, rle

BOX = (20, 20, 60, 60)
ACCEPTED = Check(name="confidence", value=0.9, limit=0.5, verdict="accept")
REVIEWED = Check(name="agreement", value=0.0, limit=1.0, verdict="review")
REJECTED = Check(name="stability", value=0.2, limit=0.9, verdict="reject")


def merged(proposals, human=(), earlier=(), checks=(ACCEPTED,), rules=None, decisions=(), round=1, **values):
    checked = [(one, tuple(checks)) for one in proposals]
    return merge(checked, human, earlier, picture(**values), rules or Rules(), round, LABELER, decisions)


def said(one):
    return one.relation, one.state, one.reason


@pytest.mark.parametrize(
    ("human", "wanted", "overlap"),
    [
        # the proposal is 40 x 40 px
        pytest.param(entry((20, 20, 60, 52)), ("duplicate", "rejected", "confirmed"), 0.8, id="IoU 0.8"),
        pytest.param(entry((20, 20, 60, 51)), ("conflict", "review", "conflict"), 0.775, id="IoU 0.775"),
        pytest.param(entry((20, 20, 60, 40)), ("conflict", "review", "conflict"), 0.5, id="IoU 0.5"),
        pytest.param(entry((20, 20, 60, 39)), ("part_of", "kept", ""), 1.0, id="IoU 0.475, a part"),
        pytest.param(entry((24, 20, 120, 100)), ("part_of", "kept", ""), 0.9, id="of which it is a part by 0.9"),
        pytest.param(entry((25, 20, 120, 100)), ("new", "kept", ""), None, id="by 0.875"),
        pytest.param(entry(BOX, concept=DOG), ("conflict", "review", "other_category"), 1.0, id="another category"),
        pytest.param(entry((20, 20, 60, 39), concept=DOG), ("new", "kept", ""), None, id="another category, IoU 0.475"),
        pytest.param(entry(BOX, concept=Concept(text="a cat")), ("new", "kept", ""), None, id="a phrase"),
        pytest.param(entry((0, 0, 100, 100), crowd=True), ("in_crowd", "rejected", "in_crowd"), 1.0, id="in a crowd"),
        pytest.param(entry((20, 40, 200, 100), crowd=True), ("in_crowd", "rejected", "in_crowd"), 0.5, id="by half"),
        pytest.param(entry((20, 41, 200, 100), crowd=True), ("new", "kept", ""), None, id="by less than half"),
        pytest.param(entry((30, 30, 40, 40), crowd=True), ("new", "kept", ""), None, id="a small crowd inside it"),
        pytest.param(entry(BOX, concept=DOG, crowd=True), ("new", "kept", ""), None, id="a crowd of others"),
    ],
)
def test_rules_beside_a_persons_mask(human, wanted, overlap):
    [found] = merged([proposal(BOX)], [human])
    assert said(found) == wanted
    assert found.relative == (None if overlap is None else human.entry_id)
    assert found.overlap == (None if overlap is None else pytest.approx(overlap))


def test_entries_hold_what_was_proposed():
    given = proposal(BOX, score=0.7, predicted_iou=0.9, stability=0.8, prompt="{}", crop=(0, 0, 100, 100))
    [found] = merged([given], round=3)
    mask_id = mask_id_of(picture(), CAT, given.rle)
    assert (found.mask_id, found.entry_id) == (mask_id, entry_id_of(mask_id, 3, LABELER, "{}"))
    assert (found.bbox, found.area, found.round, found.origin) == ((20.0, 20.0, 40.0, 40.0), 1600, 3, "model")
    assert (found.score, found.predicted_iou, found.stability) == (0.7, 0.9, 0.8)
    assert (found.prompt, found.crop, found.checks, found.labeler) == ("{}", given.crop, (ACCEPTED,), LABELER)


@pytest.mark.parametrize(
    ("checks", "human", "state", "reason"),
    [
        ((ACCEPTED,), [], "kept", ""),
        ((ACCEPTED, REVIEWED), [], "review", "agreement"),
        ((REVIEWED, REJECTED), [], "rejected", "stability"),
        ((REVIEWED,), [entry(BOX)], "rejected", "confirmed"),
        ((REJECTED,), [entry(BOX)], "rejected", "stability"),
        ((REVIEWED,), [entry((20, 20, 60, 50))], "review", "agreement"),
        ((REVIEWED,), [entry((20, 20, 60, 30))], "review", "agreement"),
    ],
)
def test_checks_and_rules_decide_together(checks, human, state, reason):
    [found] = merged([proposal(BOX)], human, checks=checks)
    assert (found.state, found.reason) == (state, reason)
    assert (found.relation != "new") == bool(human), "the relation is known whatever decided"


def test_exhaustive_and_federated_categories():
    given = [proposal(BOX), proposal(BOX, concept=DOG), proposal(BOX, concept=Concept(text="bird", category_id=3))]
    found = merged(given, exhaustive=(1,), absent=(2,))
    assert [said(one) for one in found] == [
        ("suspect", "review", "exhaustive"),
        ("suspect", "review", "absent"),
        ("new", "kept", ""),
    ]
    [part] = merged([proposal(BOX)], [entry((0, 0, 200, 100))], exhaustive=(1,))
    assert said(part) == ("part_of", "review", "exhaustive")
    [phrase] = merged([proposal(BOX, concept=Concept(text="cat"))], exhaustive=(1,))
    assert phrase.relation == "new"


def test_the_order_of_what_is_known_does_not_matter():
    human = [entry(BOX), entry((20, 20, 60, 60), annotation_id="2"), entry((21, 20, 60, 60)), entry((0, 0, 9, 9))]
    earlier = [entry((22, 20, 60, 60), origin="model", concept=c) for c in (CAT, DOG)]
    given = [proposal(BOX), proposal((20, 20, 59, 60), concept=DOG), proposal((0, 0, 9, 8))]
    wanted = merged(given, human, earlier)
    for people in itertools.permutations(human):
        assert merged(given, people, earlier[::-1]) == wanted
    turned = merged(given[::-1], human, earlier)
    assert turned == wanted[::-1]


def test_a_proposal_that_came_twice_is_one_entry():
    given = [proposal(BOX, score=0.6), proposal((0, 0, 9, 9)), proposal(BOX, score=0.8), proposal(BOX, prompt="[]")]
    found = merged(given)
    assert [(one.rle, one.score, one.prompt) for one in found] == [
        (rle(BOX), 0.8, ""),
        (rle((0, 0, 9, 9)), 0.9, ""),
        (rle(BOX), 0.9, "[]"),
    ]


# --- rounds --------------------------------------------------------------------------------------------------------


def test_a_new_version_supersedes_the_earlier_one():
    old, far = entry((20, 20, 60, 50), origin="model", round=1), entry((100, 0, 140, 40), origin="model", round=1)
    [found] = merged([proposal(BOX)], earlier=[old, far], round=2)
    assert (found.supersedes, *said(found)) == (old.entry_id, "new", "kept", "")
    [other] = merged([proposal(BOX, concept=DOG)], earlier=[old], round=2)
    assert other.supersedes is None, "a mask of another category is no version of it"
    [again] = merged([proposal(BOX)], earlier=merged([proposal(BOX)]), round=2)
    [first] = merged([proposal(BOX)])
    assert (again.supersedes, again.mask_id == first.mask_id) == (first.entry_id, True)


@pytest.mark.parametrize(
    ("old", "checks", "wins"),
    [
        ("kept", (ACCEPTED,), True),
        ("kept", (REVIEWED,), False),
        ("kept", (REJECTED,), False),
        ("review", (REVIEWED,), True),
        ("review", (REJECTED,), False),
        ("rejected", (REJECTED,), True),
    ],
)
def test_what_stands_better_stays(old, checks, wins):
    reason = {"kept": "", "review": "agreement", "rejected": "stability"}[old]
    said_before = (REVIEWED, REJECTED)
    known = entry((20, 20, 60, 55), origin="model", state=old, reason=reason, checks=said_before, round=1)
    [found] = merged([proposal(BOX)], earlier=[known], checks=checks, round=2)
    assert (found.supersedes == known.entry_id) == wins
    if not wins:
        assert (found.relation, found.relative, found.state) == ("duplicate", known.entry_id, "rejected")
        assert found.reason == ("stability" if REJECTED in checks else "earlier")


def test_another_category_where_one_was_kept_is_reviewed():
    old = entry(BOX, origin="model", round=1, concept=DOG)
    [found] = merged([proposal((20, 20, 60, 50))], earlier=[old], round=2)
    assert (found.relative, *said(found)) == (old.entry_id, "conflict", "review", "other_category")
    assert found.overlap == 0.75
    gone = entry(BOX, origin="model", round=1, concept=DOG, state="rejected", reason="stability", checks=(REJECTED,))
    assert said(merged([proposal(BOX)], earlier=[gone], round=2)[0]) == ("new", "kept", "")
    both = [old, entry(BOX, origin="model", round=1)]
    assert merged([proposal(BOX)], earlier=both, round=2)[0].supersedes == both[1].entry_id


def test_an_earlier_mask_that_stands_goes_before_a_nearer_one():
    """Of two proposals of an object NMS rejects one; a later round may come nearer to that one."""
    kept, poor = merged([proposal(BOX)]), merged([proposal((20, 20, 60, 52))], checks=[REJECTED])
    waits = merged([proposal((20, 20, 60, 54))], checks=[REVIEWED])
    [good] = merged([proposal((20, 20, 60, 53))], earlier=[*poor, *kept, *waits], round=2)
    assert good.supersedes == kept[0].entry_id
    [weak] = merged([proposal((20, 20, 60, 53))], earlier=[*poor, *kept], checks=[REVIEWED], round=2)
    assert (weak.relation, weak.relative, weak.state) == ("duplicate", kept[0].entry_id, "rejected")
    [good] = merged([proposal((20, 20, 60, 53))], earlier=[*poor, *waits], round=2)
    assert good.supersedes == waits[0].entry_id
    [far] = merged([proposal((20, 20, 40, 52))], earlier=[*poor, *kept], round=2)  # IoU 0.4 and 0.5
    assert far.supersedes == poor[0].entry_id


def test_one_supersedes_one_and_the_nearest_first():
    old = entry(BOX, origin="model", round=1)
    near, far = proposal((20, 20, 60, 58)), proposal((20, 20, 60, 50))
    for given in ([near, far], [far, near]):
        found = {one.rle: one.supersedes for one in merged(given, earlier=[old], round=2)}
        assert found == {near.rle: old.entry_id, far.rle: None}


# --- people always win ---------------------------------------------------------------------------------------------


def word(one, state, action, by="reviewer:ann"):
    return Decision(entry_id=one.entry_id, state=state, by=by, action=action)


def test_a_reviewers_words_bind():
    kept, gone = entry(BOX, origin="model", round=1), entry((100, 0, 140, 40), origin="model", round=1)
    words = [word(kept, "kept", "accept"), word(gone, "rejected", "reject")]
    given = [proposal((20, 20, 60, 58)), proposal((100, 0, 140, 39)), proposal((100, 0, 140, 25))]
    found = merged(given, earlier=[kept, gone], decisions=words, round=2)
    assert [said(one) for one in found] == [
        ("duplicate", "rejected", "confirmed"),
        ("duplicate", "rejected", "refused"),
        ("conflict", "review", "refused"),
    ]
    assert [one.supersedes for one in found] == [None] * 3
    assert [one.relative for one in found] == [kept.entry_id, gone.entry_id, gone.entry_id]


def test_a_rules_word_and_a_word_taken_back_do_not_bind():
    old = entry((20, 20, 60, 55), origin="model", round=1)
    [by_rule] = merged([proposal(BOX)], earlier=[old], decisions=[word(old, "rejected", "reject", "rule:x")], round=2)
    assert by_rule.supersedes == old.entry_id
    back = [word(old, "rejected", "reject"), word(old, "review", "accept")]
    [found] = merged([proposal(BOX)], earlier=[old], decisions=back, round=2)
    assert (found.supersedes, found.state) == (old.entry_id, "kept")


@pytest.mark.parametrize("reason", ["stability", "conflict", "reject"])
def test_a_reason_alone_is_nobodys_word(reason):
    """Whatever it is called, and although the checks are not there."""
    old = entry((20, 20, 60, 55), origin="model", round=1, state="rejected", reason=reason)
    [found] = merged([proposal(BOX)], earlier=[old], round=2)
    assert (found.supersedes, *said(found)) == (old.entry_id, "new", "kept", "")
    [refused] = merged([proposal(BOX)], earlier=[old], decisions=[word(old, "rejected", "reject")], round=2)
    assert said(refused) == ("duplicate", "rejected", "refused")


def test_a_picture_that_a_person_calls_bad_gets_nothing():
    old = entry((100, 0, 140, 40), origin="model", round=1)
    [found] = merged([proposal(BOX)], earlier=[old], decisions=[word(old, "rejected", "whole_image_bad")], round=2)
    assert (found.state, found.reason) == ("rejected", "picture_refused")


def test_a_persons_edit_wins_over_what_it_replaced():
    edit = entry((20, 20, 60, 56), round=1)
    [found] = merged([proposal(BOX)], earlier=[edit], round=2)
    assert (found.relative, *said(found)) == (edit.entry_id, "duplicate", "rejected", "confirmed")


def test_an_annotation_that_a_reviewer_rejected_is_none():
    wrong = entry(BOX)
    [found] = merged([proposal(BOX)], [wrong], decisions=[word(wrong, "rejected", "reject")])
    assert said(found) == ("duplicate", "rejected", "refused")


def test_rules_are_checked():
    assert Rules.parse(None) == Rules()
    assert Rules.parse({"duplicate": 0.9}).duplicate == 0.9
    for values, message in [
        ({"duplicate": 0.4}, "merge: duplicate .0.4. must not lie below conflict"),
        ({"part": 2}, "merge.part: Input should be less than or equal to 1"),
        ({"iou": 0.5}, "merge.iou: Extra inputs are not permitted"),
        ([], "merge: Input should be a valid dictionary"),
    ]:
        with pytest.raises(RulesError, match=message):
            Rules.parse(values)


def test_nothing_that_is_kept_covers_a_persons_mask():
    """Rules 1, 2 and 4 over many pictures of random boxes, against overlaps that are counted on rasters."""

    def boxes(rng, number):
        corners = rng.integers(0, [160, 60], (number, 2))
        return [
            (int(x), int(y), int(x + w), int(y + h))
            for (x, y), (w, h) in zip(corners, rng.integers(4, 40, (number, 2)), strict=True)
        ]

    relations = set()
    for seed in range(60):
        rng = keyed(seed, "people win")
        human = [
            entry(box, concept=(CAT, DOG)[rng.integers(2)], crowd=bool(rng.random() < 0.1), annotation_id=str(place))
            for place, box in enumerate(boxes(rng, 6))
        ]
        given = [proposal(box, concept=(CAT, DOG)[rng.integers(2)]) for box in boxes(rng, 8)]
        # some are people's masks, a little moved
        given += [proposal(moved(one, rng), concept=one.concept, prompt="again") for one in human]
        found = merged(given, human)
        assert len(found) == len({(one.rle, one.concept, one.prompt) for one in given})
        for one in found:
            relations.add(one.relation)
            mine = masks.decode(one.rle, 100, 200)
            for person in human:
                theirs = masks.decode(person.rle, 100, 200)
                shared = (mine & theirs).sum()
                iou, inside = shared / (mine | theirs).sum(), shared / mine.sum()
                if one.state == "kept" and not person.crowd:
                    assert iou < 0.5
                if one.state == "kept" and person.crowd and person.concept == one.concept:
                    assert inside < 0.5
                if person.entry_id == one.relative and one.relation in ("duplicate", "conflict"):
                    assert one.overlap == pytest.approx(iou)
    assert relations == {"new", "duplicate", "conflict", "part_of", "in_crowd"}


def moved(one, rng):
    x, y, w, h = map(int, one.bbox)
    dx, dy = rng.integers(-3, 4, 2).tolist()
    return max(x + dx, 0), max(y + dy, 0), x + dx + w, y + dy + h
