import io

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from PIL import Image

from dataengine import masks
from dataengine.images import ImageError
from dataengine.masks import Crop
from model import pictures

SIZES = [(480, 640), (427, 640), (500, 375), (33, 1000), (1024, 1024), (1, 7)]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pixels_equal_the_pillow_processors_of_transformers(height, width):
    pytest.importorskip("transformers")
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    picture = Image.fromarray(noise(height, width))
    siglip = SiglipImageProcessorPil(size={"height": 384, "width": 384})(picture, return_tensors="pt")
    seen = pictures.image_pixels(picture, 384, expand_to_square=False)
    assert seen.dtype == torch.uint8
    assert torch.equal(pictures.normalized(seen[None]), siglip["pixel_values"])
    sam = SamImageProcessorPil()(picture, return_tensors="pt")
    values, scaled = pictures.seg_pixels(picture, 1024)
    assert values.dtype == torch.uint8
    assert torch.equal(pictures.normalized(values[None], torch.tensor([scaled])), sam["pixel_values"])
    assert scaled == tuple(sam["reshaped_input_sizes"][0].tolist())


@pytest.mark.parametrize("is_cubic", [False, True], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "scaled"),
    [
        ((640, 426), (1024, 682)),
        ((1333, 2000), (682, 1024)),  # scaled down in proportion
        ((2000, 1334), (1024, 683)),
        ((640, 640), (384, 384)),
        ((480, 640), (384, 384)),  # the height shrinks more than the width
        ((150, 200), (151, 199)),
        ((300, 5), (1, 7)),
        ((1, 1), (9, 3)),
        ((70, 50), (70, 50)),
    ],
)
def test_pixels_equal_pillows(size, scaled, is_cubic):
    """Where filters overshoot too: noise of black and white."""
    method = Image.Resampling.BICUBIC if is_cubic else Image.Resampling.BILINEAR
    for pixels in (noise(*size[::-1]), noise(*size[::-1]) // 128 * 255):
        made = np.zeros((3, scaled[1] + 2, scaled[0] + 3), dtype=np.uint8)
        pictures._resize(np.ascontiguousarray(pixels.swapaxes(0, 1)), made[:, :-2, :-3], is_cubic)
        expected = np.asarray(Image.fromarray(pixels).resize(scaled, method))
        np.testing.assert_array_equal(made[:, :-2, :-3], np.moveaxis(expected, 2, 0))
        assert not made[:, -2:].any()
        assert not made[:, :, -3:].any()


def test_pictures_of_a_batch_reach_as_far_as_their_sizes_say():
    pixels = torch.full((2, 3, 4, 5), 255, dtype=torch.uint8)
    values = pictures.normalized(pixels, torch.tensor([[4, 2], [3, 5]]))
    assert values.dtype == torch.float32
    inside = (values != 0).all(1)
    assert torch.equal(inside[0], torch.arange(5).expand(4, 5) < 2)
    assert torch.equal(inside[1], torch.arange(4)[:, None].expand(4, 5) < 3)
    assert pictures.normalized(values) is values  # what is normalised stays as it is


def test_values_are_normalised():
    white = Image.new("RGB", (4, 2), (255, 0, 127))
    values, scaled = pictures.seg_pixels(white, 4)
    assert scaled == (2, 4)
    values = pictures.normalized(values[None], torch.tensor([scaled]))[0]
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (127 / 255 - 0.406) / 0.225]
    np.testing.assert_allclose(values[:, 1, 3].numpy(), expected, rtol=1e-6)
    assert not values[:, 2:].any()  # padding is zero after normalising
    seen = pictures.normalized(pictures.image_pixels(white, 4, expand_to_square=True)[None])[0]
    np.testing.assert_allclose(seen[:, 1, 1].numpy(), [1, -1, 127 / 127.5 - 1], atol=1e-6)


@pytest.mark.parametrize(("size", "bars"), [((6, 2), (slice(0, 2), slice(4, 6))), ((6, 3), (slice(0, 1), slice(4, 6)))])
def test_expanding_puts_the_picture_in_the_middle_of_grey(size, bars):
    width = size[0]
    picture = Image.new("RGB", size, (255, 255, 255))
    seen = pictures.image_pixels(picture, width, expand_to_square=True)
    for bar in bars:
        assert (seen[:, bar] == 127).all()
    assert (seen[:, bars[0].stop : bars[1].start] == 255).all()
    turned = pictures.image_pixels(picture.transpose(Image.Transpose.TRANSPOSE), width, expand_to_square=True)
    assert torch.equal(turned, seen.transpose(1, 2))


@pytest.mark.parametrize(("height", "width"), [*SIZES, (512, 341), (2000, 1333)])
def test_masks_are_scaled_as_pillow_scales_to_the_nearest(height, width):
    rng = np.random.default_rng(height)
    mask = rng.random((height, width)) < 0.4
    y, x = mask.nonzero()
    box = (slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1))
    found = pictures.mask_on_canvas(Crop(mask[box], int(x.min()), int(y.min())), (height, width), 1024)
    h, w = pictures.scaled_size(height, width, 1024)
    nearest = Image.fromarray(mask.astype(np.uint8)).resize((w, h), Image.Resampling.NEAREST)
    expected = np.zeros((1024, 1024), dtype=bool)
    expected[:h, :w] = np.asarray(nearest)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("height", "width"), [*SIZES, (2000, 1333), (3, 2)])
@pytest.mark.parametrize("kind", ["noise", "columns", "all", "pixel"])
def test_run_lengths_are_scaled_as_pixels_are(height, width, kind):
    mask = np.random.default_rng(height).random((height, width)) < 0.4
    if kind == "columns":  # whole ones: runs that go on in the next
        mask[:] = mask[:1]
    elif kind != "noise":
        mask[:] = kind == "all"
    mask[height // 2, width // 3] = True
    found = pictures.rle_on_canvas(masks.encode(mask), (height, width), 1024)
    y, x = mask.nonzero()
    crop = Crop(mask[y.min() : y.max() + 1, x.min() : x.max() + 1], int(x.min()), int(y.min()))
    assert found == masks.encode(pictures.mask_on_canvas(crop, (height, width), 1024))


def test_run_lengths_that_are_no_mask_are_refused():
    with pytest.raises(masks.MaskError, match="sum to"):
        pictures.rle_on_canvas(masks.encode(np.ones((3, 3), bool)), (4, 4), 16)
    with pytest.raises(masks.MaskError, match="no pixel"):
        pictures.rle_on_canvas(masks.encode(np.zeros((4, 4), bool)), (4, 4), 16)


def test_a_crop_is_placed_where_it_belongs():
    crop = masks.crop_from_rle(masks.encode(np.pad(np.ones((2, 3), bool), ((4, 2), (1, 4)))), 8, 8)
    found = pictures.mask_on_canvas(crop, (8, 8), 16)  # doubled
    expected = np.zeros((16, 16), dtype=bool)
    expected[8:12, 2:8] = True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("place", [(0, 0), (3, 5), (4094, 2046), (4095, 2047)])
def test_a_single_pixel_of_a_large_picture_does_not_vanish(place):
    crop = Crop(np.ones((1, 1), dtype=bool), place[1], place[0])
    found = pictures.mask_on_canvas(crop, (4096, 2048), 1024)
    assert np.argwhere(found).tolist() == [[place[0] // 4, place[1] // 4]]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 7, (7, 7, 7)),
        ("1", 1, (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
        ("RGBA", (1, 2, 3, 0), (1, 2, 3)),
        ("LA", (9, 128), (9, 9, 9)),
    ],
)
def test_grey_palette_and_transparent_pictures_get_colours(mode, colour, expected):
    image = Image.new(mode, (3, 2), colour)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 255, 255])
    for source in (image, encoded(image)):
        picture = pictures.open_picture(source)
        assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", (3, 2), expected)


def test_a_picture_is_turned_as_its_orientation_says():
    image = Image.fromarray(noise(4, 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = pictures.open_picture(encoded(image, exif=exif))
    assert picture.size == (4, 6)
    np.testing.assert_array_equal(np.asarray(picture), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros((0, 5, 3), dtype=np.uint8), "image_empty"),
        (Image.new("RGB", (0, 5)), "image_empty"),
        (b"", "image_unreadable"),
        (b"no picture", "image_unreadable"),
        ("/nowhere/a.jpg", "image_unreadable"),
        (encoded(Image.fromarray(noise(50, 50)), "JPEG")[:-40], "image_truncated"),
        (Image.new("CMYK", (2, 2)), "image_mode"),
        (Image.new("I;16", (2, 2)), "image_mode"),
        (np.zeros((2, 2, 3)), "image_mode"),
        (np.zeros((2, 2, 4), dtype=np.uint8), "image_mode"),
        (Image.new("1", (65_536, 1)), "image_too_large"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_picture_is_refused_with_a_reason(source, reason):
    with pytest.raises(ImageError) as caught:
        pictures.open_picture(source)
    assert caught.value.reason == reason


def test_a_picture_too_narrow_for_a_square_is_refused():
    picture = Image.new("RGB", (60_000, 1))
    with pytest.raises(ImageError, match="60000 x 60000"):
        pictures.image_pixels(picture, 8, expand_to_square=True)
    assert pictures.seg_pixels(picture, 8)[1] == (1, 8)


def test_stage_1_has_one_encoder(make_jpeg):
    picture = pictures.prepare(make_jpeg(24, 32), image_px=None, seg_px=16, expand_to_square=True)
    assert picture.pixel_values is None
    assert (picture.scaled_size, picture.size) == ((12, 16), (24, 32))
