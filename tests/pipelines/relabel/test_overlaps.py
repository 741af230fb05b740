import numpy as np
import pytest
from scipy import ndimage

from dataengine import masks
from dataengine.ledger.records import Concept
from dataengine.masks import MaskError
from pipelines.relabel import overlaps
from tests.pipelines.relabel.masked import CAT, DOG, HEIGHT, WIDTH, raster, rle


def noise(count: int, seed: int) -> list[np.ndarray]:
    """Uneven masks; the last one has no pixel."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        smooth = ndimage.gaussian_filter(rng.standard_normal((HEIGHT, WIDTH)), 6)
        found.append(smooth > np.quantile(smooth, rng.uniform(0.4, 0.97)))
    return [*found, np.zeros((HEIGHT, WIDTH), bool)]


def test_overlaps_of_pairs_are_those_of_the_rasters():
    ones, others = noise(6, 0), noise(4, 1)
    a, b = (overlaps.decoded([masks.encode(mask) for mask in some], HEIGHT, WIDTH) for some in (ones, others))
    shared = overlaps.overlaps(a, b)
    both = np.array([[(x & y).sum() for y in others] for x in ones])
    sizes = np.array([[(x.sum(), y.sum()) for y in others] for x in ones])
    np.testing.assert_array_equal(shared.shared, both)
    np.testing.assert_allclose(shared.iou, both / np.maximum(sizes.sum(-1) - both, 1))
    np.testing.assert_allclose(shared.dice, 2 * both / np.maximum(sizes.sum(-1), 1))
    np.testing.assert_allclose(shared.iom, both / np.maximum(sizes.min(-1), 1))
    np.testing.assert_allclose(shared.inside, both / np.maximum(sizes[..., 0], 1))
    np.testing.assert_allclose(shared.iou, masks.iou(a.rles, b.rles, HEIGHT, WIDTH))


def test_boxes_overlap_as_their_rasters_do():
    boxes = [(0, 0, 10, 10), (5, 5, 15, 25), (10, 0, 20, 10), (3, 2, 9, 8)]
    found = overlaps.decoded([rle(box) for box in boxes], HEIGHT, WIDTH)
    filled = [raster(box) for box in boxes]
    wanted = [[(a & b).sum() / (a | b).sum() for b in filled] for a in filled]
    np.testing.assert_allclose(overlaps.box_iou(found, found), wanted)


def test_no_masks_have_no_overlaps():
    nothing, one = overlaps.decoded([], HEIGHT, WIDTH), overlaps.decoded([rle((0, 0, 5, 5))], HEIGHT, WIDTH)
    assert overlaps.overlaps(nothing, one).iou.shape == overlaps.box_iou(nothing, one).shape == (0, 1)
    assert overlaps.overlaps(one, nothing).iom.shape == overlaps.same_concepts([CAT], []).shape == (1, 0)


def test_a_malformed_mask_is_named():
    with pytest.raises(MaskError, match=r"^mask 1: .*20000 are needed") as caught:
        overlaps.decoded([rle((0, 0, 5, 5)), masks.encode(np.ones((5, 5), bool))], HEIGHT, WIDTH)
    assert caught.value.reason == "rle_size"


@pytest.mark.parametrize(
    ("one", "other", "same", "another_category"),
    [
        pytest.param(CAT, Concept(text="kitty", category_id=1), True, False, id="one id"),
        pytest.param(CAT, DOG, False, True, id="two ids"),
        pytest.param(CAT, Concept(text="cat", category_id=9), False, True, id="one word for two categories"),
        pytest.param(CAT, Concept(text="Cat "), True, False, id="a phrase that is the category's name"),
        pytest.param(CAT, Concept(text="black cat"), False, False, id="a phrase may be true of a category's object"),
        pytest.param(Concept(text="a  cat"), Concept(text="A cat"), True, False, id="case and spaces"),
    ],
)
def test_concepts(one, other, same, another_category):
    assert overlaps.same_concepts([one], [other]).tolist() == [[same]]
    assert overlaps.same_concepts([other], [one]).tolist() == [[same]]
    assert overlaps.other_categories([one], [other]).tolist() == [[another_category]]


def published_boundary(mask: np.ndarray, ratio: float) -> np.ndarray:
    """The mask less its erosion by 3 x 3 px, once for each px of the distance; nothing lies beyond the picture."""
    distance = max(1, round(ratio * np.hypot(*mask.shape)))
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)


@pytest.mark.parametrize("ratio", [0.001, 0.02])
def test_boundary_iou_is_that_of_the_whole_rasters(ratio):
    for a, b in zip(noise(5, 2)[:5], noise(5, 3)[:5], strict=True):
        ours, theirs = published_boundary(a, ratio), published_boundary(b, ratio)
        wanted = (ours & theirs).sum() / (ours | theirs).sum()
        found = overlaps.boundary_iou(masks.encode(a), masks.encode(b), HEIGHT, WIDTH, ratio)
        assert found == pytest.approx(wanted, abs=1e-12)


def test_boundary_iou_sees_what_iou_does_not():
    large, shifted = rle((20, 10, 180, 90)), rle((23, 13, 183, 93))
    assert masks.iou([large], [shifted], HEIGHT, WIDTH)[0, 0] > 0.89
    assert overlaps.boundary_iou(large, shifted, HEIGHT, WIDTH) < 0.3
