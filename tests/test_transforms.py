"""Crops against the reference photos and plain PIL; augmentations at their limits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mgkit.backbones import IMAGENET_MEAN, IMAGENET_STD
from mgkit.datasets import load_image
from mgkit.transforms import TRAIN_KINDS, Lighting, eval_transform, fitted_shape, train_transform


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def normalised(image):
    """PIL -> [3,h,w], by the formula."""
    pixels = np.asarray(image, dtype=np.float64) / 255
    return ((pixels - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)).transpose(2, 0, 1)


def test_every_crop_matches_the_reference(reference, photos, relative):
    with np.load(reference / "expected" / "transforms.npz") as arrays:
        expected = dict(arrays)
    crops = [key.removesuffix("__shape") for key in expected if key.endswith("__shape")]
    assert crops
    for key in crops:
        name, setting = key.split("@")
        crop = setting.lstrip("0123456789")
        x = eval_transform(int(setting.removesuffix(crop)), crop)(load_image(photos / name.replace("|", "/")))
        assert tuple(x.shape) == tuple(expected[f"{key}__shape"]), key
        assert relative(x[:, :8, -8:], expected[f"{key}__patch"]) < 1e-5, key
        for measure, ours in (("mean", x.mean((1, 2))), ("std", x.std((1, 2)))):
            np.testing.assert_allclose(ours, expected[f"{key}__{measure}"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("width", "height"), [(90, 61), (61, 90), (70, 70)])
def test_rect_is_a_bilinear_resize_of_the_whole_image(width, height):
    image = noise(width, height)
    x = eval_transform(47, "rect")(image)
    longest = max(width, height)
    resized = image.resize((47 * width // longest, 47 * height // longest), Image.Resampling.BILINEAR)
    assert x.shape[1:] == resized.size[::-1]
    np.testing.assert_allclose(x, normalised(resized), atol=1e-5)


@pytest.mark.parametrize(("width", "height"), [(90, 61), (61, 90), (70, 70)])
def test_square_resizes_the_short_side_and_takes_the_centre(width, height):
    image, short = noise(width, height), min(width, height)
    side = 256 * 28 // 224
    resized = image.resize((side * width // short, side * height // short), Image.Resampling.BILINEAR)
    left, top = (round((length - 28) / 2) for length in resized.size)
    expected = normalised(resized.crop((left, top, left + 28, top + 28)))
    np.testing.assert_allclose(eval_transform(28, "square")(image), expected, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 4000), height=st.integers(1, 4000), size=st.integers(1, 600))
def test_sides_are_truncated_and_never_zero(width, height, size):
    longest, shortest = max(width, height), min(width, height)
    expected = max(1, size * shortest // longest), size
    assert tuple(sorted(fitted_shape(width, height, size, longest=True))) == expected
    h, w = fitted_shape(width, height, size, longest=False)
    assert sorted((h, w)) == [size, size * longest // shortest]
    assert (h >= w) == (height >= width) or size * longest // shortest == size


@pytest.mark.parametrize(("width", "height"), [(2000, 1), (1, 2000), (900, 2), (1, 1)])
def test_extreme_aspect_ratios_keep_at_least_one_pixel(width, height):
    image = noise(width, height)
    whole = eval_transform(32, "rect")(image)
    shape = (round(32 * height / max(width, height)), round(32 * width / max(width, height)))
    assert tuple(whole.shape) == (3, max(1, shape[0]), max(1, shape[1])) and whole.isfinite().all()
    assert train_transform(32, "full")(image).shape == (3, 32, 32)


def test_square_of_a_narrow_image_is_square():
    assert eval_transform(16, "square")(noise(200, 3)).shape == (3, 16, 16)
    assert eval_transform(1, "square")(noise(20, 30)).shape == (3, 1, 1)


def test_mean_and_std_are_those_given():
    white = Image.new("RGB", (8, 8), "white")
    x = eval_transform(8, "rect", mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.1))(white)
    torch.testing.assert_close(x.mean((1, 2)), torch.tensor([1.0, 2.0, 5.0]))


@pytest.mark.parametrize("kind", TRAIN_KINDS)
@pytest.mark.parametrize(("width", "height"), [(40, 30), (5, 300)])
def test_every_augmentation_gives_finite_squares(kind, width, height):
    torch.manual_seed(0)
    transform = train_transform(24, kind)
    views = [transform(noise(width, height)) for _ in range(5)]
    for x in views:
        assert x.shape == (3, 24, 24) and x.dtype == torch.float32 and x.isfinite().all()
        pixels = x * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]
        assert pixels.min() >= -1e-5 and pixels.max() <= 1 + 1e-5
    assert not torch.equal(views[0], views[1])


def test_the_seed_fixes_the_augmentation():
    def view(seed):
        torch.manual_seed(seed)
        return train_transform(16, "AA")(noise(40, 30))

    assert torch.equal(view(5), view(5)) and not torch.equal(view(5), view(6))


def test_crop_scale_bounds_the_cropped_area_from_below():
    """With the whole area and no shape to change, only the flip is left."""
    image = noise(16, 16)
    whole = train_transform(16, "torch", crop_scale=1.0)
    expected = torch.from_numpy(normalised(image)).float()
    kept = []
    for seed in range(30):
        torch.manual_seed(seed)
        x = whole(image)
        kept.append(any(torch.allclose(x, e, atol=1e-5) for e in (expected, expected.flip(2))))
    torch.manual_seed(0)
    small = [train_transform(16, "torch", crop_scale=0.01)(image) for _ in range(30)]
    zoomed = [not any(torch.allclose(x, e, atol=1e-5) for e in (expected, expected.flip(2))) for x in small]
    assert sum(kept) > sum(not z for z in zoomed)


def test_lighting_shifts_each_channel_and_clamps():
    torch.manual_seed(0)
    grey = torch.full((3, 4, 4), 0.5)
    shifted = Lighting(0.1)(grey)
    assert torch.equal(shifted, shifted[:, :1, :1].expand(3, 4, 4)) and not torch.equal(shifted, grey)
    assert torch.equal(Lighting(0.0)(grey), grey)
    for _ in range(20):
        extreme = Lighting(20.0)(torch.tensor([0.0, 0.5, 1.0]).repeat(3, 1)[:, None, :])
        assert extreme.min() >= 0 and extreme.max() <= 1


def test_lighting_divides_by_one_plus_its_std():
    torch.manual_seed(0)
    average = torch.stack([Lighting(0.1)(torch.full((3, 1, 1), 0.5)) for _ in range(300)]).mean(0)
    torch.testing.assert_close(average.flatten(), torch.full((3,), 0.5 / 1.1), atol=5e-3, rtol=0)


@pytest.mark.parametrize("make", [train_transform, eval_transform])
def test_unknown_names_and_sizes_are_rejected(make):
    with pytest.raises(ValueError, match="'sqare' is unknown; one of"):
        make(32, "sqare")
    for size in (0, -3):
        with pytest.raises(ValueError, match="size must be at least 1"):
            make(size)
