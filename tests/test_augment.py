"""Random crops and flips of whole batches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.config import DataError
from hwsim.data.augment import augment, random_crop, random_flip

DTYPES = [torch.uint8, torch.float32]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def distinct(B, C, H, W, dtype=torch.float32):
    """Images in which no two pixels are equal and none is 0 (uint8: as far as 255 values allow)."""
    x = torch.arange(1, B * C * H * W + 1).reshape(B, C, H, W)
    return (x % 255 + 1 if dtype == torch.uint8 else x).to(dtype)


def crops(image_CHW, padding):
    """Every crop of one image, made pixel by pixel."""
    C, H, W = image_CHW.shape
    out = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = torch.zeros_like(image_CHW)
            for h in range(H):
                for w in range(W):
                    y, x = top + h - padding, left + w - padding
                    if 0 <= y < H and 0 <= x < W:
                        crop[:, h, w] = image_CHW[:, y, x]
            out[top, left] = crop
    return out


def offsets(x_BCHW, y_BCHW, padding):
    """The one place from which each image was cropped."""
    found = []
    for image, got in zip(x_BCHW, y_BCHW, strict=True):
        matches = [place for place, crop in crops(image, padding).items() if torch.equal(crop, got)]
        assert len(matches) == 1
        found += matches
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "W", "padding"), [(5, 4, 2), (3, 6, 1), (4, 4, 0)])
def test_every_crop_is_the_slow_crop_at_one_place(H, W, padding, dtype):
    x = distinct(8, 2, H, W, dtype)
    before = x.clone()
    y = random_crop(x, padding, generator())
    assert y.dtype == dtype and y.shape == x.shape and torch.equal(x, before)
    places = offsets(x, y, padding)
    assert padding == 0 or len(set(places)) > 1, "each image has its own place"


def test_crop_places_are_uniform_in_both_directions():
    padding, B = 1, 9000
    pixel = torch.zeros(B, 1, 5, 5)
    pixel[:, :, 2, 2] = 1
    place = random_crop(pixel, padding, generator(4)).flatten(1).argmax(1)
    counts = torch.stack([(place == 5 * h + w).sum() for h in (1, 2, 3) for w in (1, 2, 3)])
    assert counts.sum() == B
    chi2 = ((counts - B / 9) ** 2 / (B / 9)).sum()
    assert chi2 < 26.1  # 99.9 % of chi-square with 8 degrees of freedom


@pytest.mark.parametrize("dtype", DTYPES)
def test_flip_mirrors_left_to_right_half_of_the_time(dtype):
    B = 4000
    x = distinct(1, 2, 3, 4, dtype).expand(B, -1, -1, -1)
    y = random_flip(x, generator(1))
    mirrored = torch.stack([x[0, :, :, 3 - w] for w in range(4)], 2)
    flipped = (y == mirrored).flatten(1).all(1)
    assert ((y == x).flatten(1).all(1) ^ flipped).all() and y.dtype == dtype
    assert abs(flipped.sum().item() - B / 2) < 4 * math.sqrt(B / 4)


@given(st.integers(0, 2**32), st.sampled_from(["none", "crop", "crop-flip"]), st.sampled_from(DTYPES))
@settings(max_examples=20)
def test_same_seed_same_batch(seed, kind, dtype):
    x = distinct(6, 1, 8, 8, dtype)
    assert torch.equal(augment(x, kind, generator(seed)), augment(x, kind, generator(seed)))


@pytest.mark.parametrize("kind", ["crop", "crop-flip"])
def test_the_next_batch_is_augmented_anew(kind):
    x, g = distinct(16, 1, 8, 8), generator()
    assert not torch.equal(augment(x, kind, g), augment(x, kind, g))


def test_none_returns_the_batch_and_draws_nothing():
    x, g = distinct(3, 1, 8, 8), generator()
    state = g.get_state()
    assert augment(x, "none", g) is x and torch.equal(g.get_state(), state)


@pytest.mark.parametrize(("H", "padding"), [(32, 4), (28, 3), (8, 1)])
def test_crop_pads_an_eighth_of_the_height(H, padding):
    x = distinct(3, 1, H, H)
    assert torch.equal(augment(x, "crop", generator(2)), random_crop(x, padding, generator(2)))


def test_crop_flip_is_a_crop_and_then_a_flip():
    x, g = distinct(20, 1, 8, 8), generator(3)
    expected = random_flip(random_crop(x, 1, g), g)
    assert torch.equal(augment(x, "crop-flip", generator(3)), expected)


def test_the_border_is_black_before_normalization():
    x = torch.full((64, 1, 8, 8), 200, dtype=torch.uint8)
    assert set(augment(x, "crop", generator()).unique().tolist()) == {0, 200}


def test_bytes_and_floats_are_cropped_and_flipped_at_the_same_places():
    x = distinct(32, 3, 8, 8, torch.uint8)
    assert torch.equal(augment(x, "crop-flip", generator(5)).float(), augment(x.float(), "crop-flip", generator(5)))


def test_an_empty_batch_stays_empty():
    assert augment(torch.zeros(0, 1, 8, 8), "crop-flip", generator()).shape == (0, 1, 8, 8)


def test_unknown_kind_and_negative_padding_are_refused():
    with pytest.raises(DataError, match="no kind 'crop_flip'; did you mean 'crop-flip'"):
        augment(distinct(1, 1, 8, 8), "crop_flip", generator())
    with pytest.raises(DataError, match="padding is -1"):
        random_crop(distinct(1, 1, 8, 8), -1, generator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_cpu_generator_gives_the_same_batch_on_cuda():
    x = distinct(16, 3, 8, 8, torch.uint8)
    assert torch.equal(augment(x.cuda(), "crop-flip", generator(6)).cpu(), augment(x, "crop-flip", generator(6)))
    on_device = torch.Generator("cuda").manual_seed(6)
    assert augment(x.cuda(), "crop-flip", on_device).is_cuda
