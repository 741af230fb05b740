"""Label Studio's brush code: published vectors, vectors worked out by hand, and what is broken."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as oracle

from dataengine.masks import MaskError
from pipelines.review import brush


def rle_of(mask: np.ndarray) -> bytes:
    return oracle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


def runs(values):
    """Runs of a list, plainly."""
    found = []
    for value in values:
        if found and found[-1][0] == value:
            found[-1][1] += 1
        else:
            found.append([value, 1])
    return [value for value, _ in found], [length for _, length in found]


# test/index.ts of @thi.ng/rle-pack: 1,024 words of 3 bits
MIDDLE = [1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 5, 4, 4, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1]
PUBLISHED = [0] * 512 + MIDDLE + [0] * (1024 - 512 - len(MIDDLE))
PACKED = {
    (3, 4, 8, 16): [0, 0, 4, 0, 17, 27, 255, 1, 255, 18, 24, 212, 78, 24, 5, 134, 68, 227, 82, 30, 3, 196, 0],
    (1, 2, 4, 9): [0, 0, 4, 0, 16, 9, 199, 255, 140, 134, 234, 206, 96, 89, 150, 119, 89, 15, 241, 0],
}


@pytest.mark.parametrize("sizes", PACKED)
def test_vectors_of_the_format_s_own_library(sizes):
    assert list(brush.encode(*runs(PUBLISHED), word=3, sizes=sizes)) == PACKED[sizes]
    values, lengths = brush.decode(bytes(PACKED[sizes]))
    assert np.repeat(values, lengths).tolist() == PUBLISHED


def test_a_vector_worked_out_by_hand():
    """2 x 1 px, the second set: 8 words. The code, bit by bit:

    00000000 00000000 00000000 00001000   8 words
    00111 0010 0011 0111 1111             words of 8 bits, counts of 3, 4, 8, 16 bits
    1 00 011 00000000                     a run, count of 3 bits, 4, of 0
    1 00 011 11111111                     a run, count of 3 bits, 4, of 255
    """
    bits = "00111 0010 0011 0111 1111  1 00 011 00000000  1 00 011 11111111".replace(" ", "")
    bits = bits.ljust(-(-len(bits) // 8) * 8, "0")
    code = [0, 0, 0, 8, *(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))]
    rle = rle_of(np.array([[0], [1]]))
    assert list(brush.code_from_rle(rle, 2, 1)) == code
    assert brush.rle_from_code(bytes(code), 2, 1) == rle


def test_rows_come_before_columns():
    mask = np.array([[0, 1, 1], [0, 0, 0]])
    values, lengths = brush.decode(brush.code_from_rle(rle_of(mask), 2, 3))
    assert (values, lengths) == ([0, 255, 0], [4, 8, 12])


@pytest.mark.parametrize(
    ("alpha", "is_set"), [(1, True), (255, True), (0, False)], ids=["faint", "opaque", "colour without alpha"]
)
def test_a_pixel_is_set_by_its_alpha_alone(alpha, is_set):
    code = brush.encode([9, alpha, 7], [3, 1, 4])
    mask = oracle.decode({"size": [2, 1], "counts": brush.rle_from_code(code, 2, 1)})
    assert mask.ravel().tolist() == [int(is_set), 1]


def test_runs_longer_than_a_count_holds_go_on_in_another():
    mask = np.ones((200, 200))  # 160,000 words: 2 x 65,536 and 28,928
    code = brush.code_from_rle(rle_of(mask), 200, 200)
    assert brush.decode(code) == ([255] * 3, [65536, 65536, 28928])
    assert brush.rle_from_code(code, 200, 200) == rle_of(mask)


@given(st.data())
def test_masks_come_back(data):
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    cells = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width).filter(any))
    rle = rle_of(np.array(cells).reshape(height, width))
    code = brush.code_from_rle(rle, height, width)
    assert brush.rle_from_code(code, height, width) == rle
    assert brush.code_from_rle(brush.rle_from_code(code, height, width), height, width) == code


@given(st.lists(st.integers(0, 31), min_size=1, max_size=200))
def test_any_words_come_back(words):
    code = brush.encode(*runs(words), word=5, sizes=(1, 2, 3, 4))
    values, lengths = brush.decode(code)
    assert np.repeat(values, lengths).tolist() == words


GOOD = brush.code_from_rle(rle_of(np.array([[0, 1], [1, 0]])), 2, 2)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (b"", "rle_size"),
        (b"\0\0", "rle_size"),
        (b"\xff\xff\xff\xff" + GOOD[4:], "rle_size"),
        (GOOD[:5], "rle_invalid"),
        (GOOD[:-2], "rle_invalid"),
        (brush.encode([255], [17])[:4].replace(b"\x11", b"\x10") + brush.encode([255], [17])[4:], "rle_invalid"),
        (brush.encode([0], [16]), "empty_mask"),
    ],
    ids=["nothing", "cut in its head", "other picture", "cut in its sizes", "cut", "one too many", "no pixel"],
)
def test_broken_codes_are_refused(code, reason):
    with pytest.raises(MaskError) as error:
        brush.rle_from_code(code, 2, 2)
    assert error.value.reason == reason
