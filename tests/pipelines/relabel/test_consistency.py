import numpy as np
import pytest
from scipy import ndimage

from dataengine import masks
from dataengine.errors import ReasonError
from dataengine.keyed import keyed
from dataengine.ledger.records import Concept, Proposal
from dataengine.masks import Crop, MaskError
from pipelines.relabel import consistency
from pipelines.relabel.consistency import LOOKS, Look, look
from tests.pipelines.relabel.masked import CAT, DOG, HEIGHT, WIDTH, picture, proposal, raster, rle


def blobs(seed=0):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((HEIGHT, WIDTH)), 8)
    return smooth > np.quantile(smooth, 0.8)


def test_a_mirrored_mask_is_the_mirrored_raster():
    mask = blobs()
    there = look("hflip").forth(masks.encode(mask), HEIGHT, WIDTH)
    np.testing.assert_array_equal(masks.decode(there, HEIGHT, WIDTH), mask[:, ::-1])
    assert look("hflip").back(there, HEIGHT, WIDTH) == masks.encode(mask)


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.25, 0.333])
def test_a_scaled_mask_takes_the_nearest_pixels(factor):
    mask, change = blobs(), Look(name="scaled", mirrored=True, factor=factor)
    tall, wide = change.size(HEIGHT, WIDTH)
    rows = np.floor((np.arange(tall) + 0.5) * HEIGHT / tall).astype(int)
    columns = np.floor((np.arange(wide) + 0.5) * WIDTH / wide).astype(int)
    there = change.forth(masks.encode(mask), HEIGHT, WIDTH)
    np.testing.assert_array_equal(masks.decode(there, tall, wide), mask[:, ::-1][rows][:, columns])


def test_back_on_the_larger_canvas_loses_nothing():
    for factor in (1.25, 2.0, 3.1):
        change, code = Look(name="scaled", factor=factor), masks.encode(blobs())
        assert change.back(change.forth(code, HEIGHT, WIDTH), HEIGHT, WIDTH) == code


def test_what_is_too_thin_vanishes():
    small = Look(name="scaled", factor=0.1).forth(rle((0, 0, 1, 1)), HEIGHT, WIDTH)
    assert masks.area(small, 10, 20) == 0
    assert Look(name="scaled", factor=0.1).back(small, HEIGHT, WIDTH) == masks.encode(raster())


def test_pixels_points_boxes_and_masks_move_alike():
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[20:60, 30:90] = 255
    for name in ("hflip", "scale-0.75", "scale-1.25"):
        change = look(name)
        moved = change.pixels(pixels)[..., 0] > 127
        there = masks.decode(change.forth(rle((30, 20, 90, 60)), HEIGHT, WIDTH), *moved.shape)
        assert (moved ^ there).sum() <= 0.05 * there.sum(), name
        x0, y0, x1, y1 = change.box((30, 20, 90, 60), HEIGHT, WIDTH)
        assert there.sum() == pytest.approx((x1 - x0) * (y1 - y0), rel=0.05)
        x, y = change.point((60.0, 40.0), HEIGHT, WIDTH)
        assert (x, y) == (pytest.approx((x0 + x1) / 2), pytest.approx((y0 + y1) / 2))
    assert look("hflip").box((30, 20, 90, 60), HEIGHT, WIDTH) == (110, 20, 170, 60)


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("cup on the left of the RIGHT plate", "cup on the right of the LEFT plate"),
        ("Leftmost man, right-hand side", "Rightmost man, left-hand side"),
        ("leftovers in bright light", "leftovers in bright light"),
    ],
)
def test_sides_are_swapped_in_a_mirrored_picture(text, mirrored):
    assert look("hflip").text(text) == mirrored
    assert look("scale-0.75").text(text) == text


def test_the_deepest_pixel_is_that_of_the_distance_transform():
    for seed in range(5):
        mask = blobs(seed)
        crop = masks.crop_from_rle(masks.encode(mask), HEIGHT, WIDTH)
        x, y = consistency.deepest(crop)
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        assert depth[int(y), int(x)] == depth.max()
        assert (x % 1, y % 1) == (0.5, 0.5)
    assert consistency.deepest(Crop(np.ones((3, 3), bool), 10, 20)) == (11.5, 21.5)


def test_jitter_is_bounded_keyed_and_on_the_picture():
    proposals = [proposal((0, 0, 150, 90)), proposal((100, 50, 104, 54))]
    one = consistency.requeries(proposals, picture(), look("jitter"), seed=1)
    assert one == consistency.requeries(proposals[::-1], picture(), look("jitter"), seed=1)[::-1]
    assert one != consistency.requeries(proposals, picture(), look("jitter"), seed=2)
    moved = np.array([query.box_xyxy for query in one]) - [[0, 0, 150, 90], [100, 50, 104, 54]]
    assert (abs(moved) <= 20).all()
    assert moved.any()
    box = np.array([50.0, 20.0, 90.0, 60.0])
    jittered = np.array([consistency.jittered(box, HEIGHT, WIDTH, keyed(k)) for k in range(2000)])
    assert abs((jittered - box).std(axis=0) - 4).max() < 0.3  # a tenth of 40 px
    assert abs((jittered - box).mean(axis=0)).max() < 0.3


def test_a_labeler_that_sees_the_same_is_consistent():
    discs = [
        Proposal(rle=masks.encode(np.hypot(*np.ogrid[-y : HEIGHT - y, -x : WIDTH - x]) < r), concept=CAT, score=1.0)
        for x, y, r in ((40, 50, 30), (120, 30, 12), (180, 80, 8))
    ]

    def again(change, queries):
        """Draws each disc anew on the changed picture."""
        tall, wide = change.size(HEIGHT, WIDTH)
        answers = []
        for query in queries:
            x0, y0, x1, y1 = change.box(query_box(query), HEIGHT, WIDTH)
            x, y, r = (x0 + x1) / 2 - 0.5, (y0 + y1) / 2 - 0.5, (x1 - x0) / 2
            answers.append([masks.encode(np.hypot(*np.ogrid[-y : tall - y, -x : wide - x]) < r)])
        return answers

    def query_box(query):
        x, y, w, h = masks.bbox_xywh(query.proposal.rle, HEIGHT, WIDTH)
        return x, y, x + w, y + h

    values = consistency.augmentation(discs, picture(), LOOKS, again)
    assert min(values) > 0.9


def test_the_smallest_overlap_of_all_looks_counts():
    half, whole = rle((20, 20, 60, 40)), rle((20, 20, 60, 60))

    def again(change, queries):
        said = {"hflip": [half, whole], "scale-1.25": [half], "jitter": [whole]}[change.name]
        return [[change.forth(one, HEIGHT, WIDTH) for one in said] for _ in queries]

    given = [proposal((20, 20, 60, 60))]
    assert consistency.augmentation(given, picture(), ["hflip", "jitter"], again) == [1.0], "the best answer counts"
    assert consistency.augmentation(given, picture(), ["hflip", "scale-1.25"], again) == [0.5]


def test_a_finder_answers_with_what_is_of_the_concept():
    phrase = Concept(text="cup on the left")
    mirrored = rle((140, 20, 180, 60))
    found = [
        Proposal(rle=mirrored, concept=Concept(text="cup on the right"), score=1.0),
        Proposal(rle=rle((0, 0, 9, 9)), concept=phrase, score=1.0),
        Proposal(rle=mirrored, concept=DOG, score=1.0),
    ]
    given = [proposal((20, 20, 60, 60), concept=one) for one in (phrase, DOG, CAT)]
    again = consistency.by_concepts(lambda change: found)
    assert consistency.augmentation(given, picture(), ["hflip"], again) == [1.0, 1.0, 0.0]


def test_only_who_takes_prompts_is_asked_by_them():
    given = [proposal((20, 20, 60, 60))]
    same = lambda change: [proposal((20, 20, 60, 60))]  # noqa: E731
    none = consistency.by_concepts(same)
    assert consistency.reprompt(given, picture(), none) == [None]
    assert consistency.augmentation(given, picture(), ["jitter"], none) == [None]
    some = consistency.by_concepts(same, lambda look, queries: [[rle((20, 20, 60, 40))]])
    assert consistency.reprompt(given, picture(), some) == [0.5]
    assert consistency.augmentation(given, picture(), ["jitter"], some) == [0.5]


def test_wrong_answers_are_refused():
    given = [proposal((20, 20, 60, 60))]
    with pytest.raises(ReasonError, match="2 answers came to 1 queries of the look hflip"):
        consistency.augmentation(given, picture(), ["hflip"], lambda change, queries: [[], []])
    with pytest.raises(MaskError):
        consistency.augmentation(given, picture(), ["scale-0.75"], lambda change, queries: [[rle((0, 0, 9, 9))]])
