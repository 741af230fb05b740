import itertools

import numpy as np
import pytest

from dataengine import masks
from dataengine.keyed import keyed
from dataengine.ledger.records import Check, Concept, Proposal
from pipelines.relabel.mistakes import Limits, find, rank
from tests.pipelines.relabel.masked import CAT, DOG, HEIGHT, WIDTH, entry, picture, proposal, raster

BOX = (20, 20, 60, 60)


def found(proposals, human, limits=None, verdict="accept", **values):
    checked = [(one, (Check(name="confidence", value=one.score, limit=0.5, verdict=verdict),)) for one in proposals]
    return find(checked, human, picture(**values), limits)


def test_a_missed_object():
    given = [proposal(BOX, score=0.8), proposal((100, 0, 140, 40), concept=DOG, score=0.9)]
    [one] = found(given, [], exhaustive=(1,)).mistakes
    assert (one.kind, one.suspicion, one.entry_id, one.proposal) == ("missed", 0.8, None, given[0])
    assert len(found(given, [], absent=(1, 2)).mistakes) == 2
    assert len(found(given, []).mistakes) == 0, "nobody said that all are annotated"
    assert len(found(given, [], Limits(all_categories=True)).mistakes) == 2
    assert found(given, [], exhaustive=(1,), verdict="reject").mistakes == ()
    crowd = [entry((0, 0, 100, 100), crowd=True)]
    assert found(given[:1], crowd, exhaustive=(1,)).mistakes == ()
    part = [entry((20, 20, 40, 60))]  # half of it is annotated
    assert [one.kind for one in found(given[:1], part, exhaustive=(1,)).mistakes] == ["sloppy_boundary"]


def test_a_spurious_annotation_counts_by_what_the_labeler_finds():
    lonely, known = entry((100, 0, 140, 40)), [entry((x, 60, x + 20, 80)) for x in (0, 40, 80)]
    bird = entry((150, 0, 190, 40), concept=Concept(text="bird", category_id=3))
    seen = found([proposal((x, 60, x + 20, 80)) for x in (0, 40, 80)], [lonely, *known, bird])
    ranked = rank([seen])
    assert [(one.kind, one.entry_id) for one in ranked] == [("spurious", lonely.entry_id), ("spurious", bird.entry_id)]
    # three of four cats are found, and none of the one bird
    assert [one.suspicion for one in ranked] == pytest.approx([4 / 6, 1 / 3])
    [half] = found([proposal((100, 0, 140, 15))], [lonely]).mistakes
    assert (half.kind, half.suspicion) == ("spurious", pytest.approx(1 - 15 / 40))


def test_a_wrong_class():
    [one] = found([proposal((20, 20, 60, 58), concept=DOG, score=0.9)], [entry(BOX)]).mistakes
    assert (one.kind, one.proposal.concept, one.concept) == ("wrong_class", DOG, CAT)
    assert (one.iou, one.suspicion) == (pytest.approx(0.95), pytest.approx(0.95 * 0.9))
    both = [proposal((20, 20, 60, 58), concept=DOG, score=0.9), proposal(BOX, score=0.4)]
    [one] = found(both, [entry(BOX)]).mistakes
    assert one.suspicion == pytest.approx(0.95 * 0.9 * 0.6), "the annotated class has a word too"
    assert found([*both, proposal(BOX, score=0.95)], [entry(BOX)]).mistakes == ()
    phrase = proposal(BOX, concept=Concept(text="black cat"))
    assert found([phrase], [entry(BOX)]).mistakes == (), "a phrase may be true of it"


def test_a_sloppy_boundary():
    assert found([proposal(BOX)], [entry(BOX)]).mistakes == ()
    given = proposal((20, 20, 60, 60), score=0.5)
    human = entry((26, 26, 66, 66))
    [one] = found([given], [human]).mistakes
    # 4 px is the distance: of both, the frames of 576 px share the corners where they cross
    distance = round(0.02 * np.hypot(HEIGHT, WIDTH))
    frames = [
        raster((k, k, k + 40, k + 40)) & ~raster((k + distance, k + distance, k + 40 - distance, k + 40 - distance))
        for k in (20, 26)
    ]
    share = (frames[0] & frames[1]).sum() / (frames[0] | frames[1]).sum()
    assert one.kind == "sloppy_boundary"
    assert one.boundary_iou == pytest.approx(share)
    assert one.suspicion == pytest.approx(0.5 * (1 - share))
    assert found([given], [human], Limits(boundary=0.02)).mistakes == ()


def test_one_without_proposals_or_people():
    assert [one.kind for one in found([], [entry(BOX)]).mistakes] == ["spurious"]
    assert found([], []).mistakes == ()
    assert rank([]) == []


def star(rng):
    """A star of 10 to 20 px somewhere on the left, middle or right."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    cy, cx, radius = rng.uniform(25, 75), rng.uniform(25, WIDTH - 25), rng.uniform(10, 20)
    angle = np.arctan2(y - cy, x - cx)
    return (y - cy) ** 2 + (x - cx) ** 2 < (radius * (1 + 0.2 * np.sin(4 * angle + rng.uniform(0, 6)))) ** 2


def spoiled_pictures(number):
    """Pictures with one object each of which some annotations are wrong, and a labeler that errs on its own.

    Gives what was compared, and the kind of the mistake of each picture that has one.
    """
    truth, compared = {}, []
    for place in range(number):
        rng = keyed(7, "mistakes", place)
        mask, concept = star(rng), (CAT, DOG)[rng.integers(2)]
        drawn, said = mask, concept
        kind = ("missed", "spurious", "wrong_class", "sloppy_boundary", *[None] * 16)[rng.integers(20)]
        key = f"p{place:04d}"
        human = [Proposal(rle=masks.encode(drawn), concept=said, score=1.0)]
        if kind == "missed":
            human = []
        elif kind == "spurious":
            human.append(Proposal(rle=masks.encode(star(rng) & ~mask), concept=said, score=1.0))
        elif kind == "wrong_class":
            human = [Proposal(rle=human[0].rle, concept=DOG if concept == CAT else CAT, score=1.0)]
        elif kind == "sloppy_boundary":
            human = [Proposal(rle=masks.encode(np.roll(mask, (4, 4), (0, 1))), concept=said, score=1.0)]
        if kind is not None:
            truth[key] = kind
        proposals = []
        if rng.random() > 0.02:  # 2 % are not found, 2 % are named wrongly, the outlines are off by a pixel
            name = concept if rng.random() > 0.02 else DOG if concept == CAT else CAT
            score = rng.uniform(0.7, 1) if name == concept else rng.uniform(0.4, 0.9)
            shift = tuple(rng.integers(-1, 2, 2))
            proposals.append(Proposal(rle=masks.encode(np.roll(mask, shift, (0, 1))), concept=name, score=float(score)))
        if rng.random() < 0.02:  # what is not there
            proposals.append(Proposal(rle=masks.encode(star(rng)), concept=CAT, score=float(rng.uniform(0.3, 0.8))))
        entries = [
            entry(origin="human", concept=one.concept, annotation_id=f"{key}-{n}", rle=one.rle, picture=key)
            for n, one in enumerate(human)
        ]
        compared.append(find([(one, ()) for one in proposals], entries, picture(key=key, exhaustive=(1, 2))))
    return compared, truth


def test_mistakes_come_first():
    compared, truth = spoiled_pictures(600)
    ranked = rank(compared)
    assert ranked == rank(compared[::-1])
    for top in (1, 30, len(ranked) + 1):
        assert rank(iter(compared), top) == ranked[:top]
    by_picture = {}
    for place, one in enumerate(ranked):
        by_picture.setdefault(one.picture, (place, one.kind))
    top = [one for one in ranked[: len(truth)] if truth.get(one.picture) == one.kind]
    assert len(truth) > 90
    assert len(top) / len(truth) > 0.75, "as many as there are mistakes, from the top"
    for kind in ("missed", "spurious", "wrong_class", "sloppy_boundary"):
        ours = [key for key, one in truth.items() if one == kind]
        hit = [key for key in ours if by_picture.get(key, (0, ""))[1] == kind]
        assert len(hit) / len(ours) > 0.8, kind
    suspicions = [one.suspicion for one in ranked]
    assert all(a >= b for a, b in itertools.pairwise(suspicions))
    assert 0 <= suspicions[-1] <= suspicions[0] <= 1
