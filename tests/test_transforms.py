"""Crops against the reference photos and plain PIL; augmentations at their limits."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from bench_loader import plain_transform
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from mgkit.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from mgkit.data.decoding import load_image
from mgkit.transforms import (
    TRAIN_KINDS,
    ColorJitter,
    CropAndResize,
    Lighting,
    eval_transform,
    fitted_shape,
    middle,
    to_levels,
    train_transform,
)


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


# --- Against torchvision on PIL images


def grey(width, height):
    return noise(width, height).convert("L").convert("RGB")


def smooth(width, height, low=0, high=256, seed=0):
    """Slow changes of colour, as in a photo; the levels run from low to high."""
    coarse = np.random.default_rng(seed).integers(low, high, (5, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


PICTURES = {
    "noise": noise(90, 61),
    "grey": grey(61, 90),
    "smooth": smooth(120, 100),
    "dark": smooth(70, 70, high=40),
    "bright": smooth(70, 50, low=190),
    "two levels": Image.fromarray(np.asarray(noise(40, 50)) // 128 * 255),
    "narrow": noise(150, 4),
    "one pixel": noise(1, 1),
}


def seeded(seed, transform, image):
    torch.default_generator.manual_seed(seed)
    return transform(image)


def levels_apart(ours, theirs):
    """The largest and the mean difference of two normalised views, in levels of 0..255."""
    apart = (ours - theirs).abs() * torch.tensor(IMAGENET_STD)[:, None, None] * 255
    return apart.max().item(), apart.mean().item()


@pytest.mark.parametrize("strength", [0.2, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("name", PICTURES)
def test_the_colour_jitter_is_torchvision_s_on_pil_images(name, strength):
    """Same seed, same pixels; strong factors clamp often. Fused multiply-adds may change a level by one."""
    own, plain = ColorJitter(strength), v2.ColorJitter(strength, strength, strength)
    levels = to_levels(v2.functional.pil_to_tensor(PICTURES[name]))
    for seed in range(25):
        expected = v2.functional.pil_to_tensor(seeded(seed, plain, PICTURES[name]))
        apart = (seeded(seed, own, levels.clone()) - expected).abs()
        assert apart.max() <= 1 and apart.mean() < 1e-3, seed


@pytest.mark.parametrize("size", [7, 32, 97])
@pytest.mark.parametrize("name", PICTURES)
def test_a_crop_is_torchvision_s_on_pil_images_to_one_level(name, size):
    limits = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
    own, plain = CropAndResize(size, **limits), v2.RandomResizedCrop(size, **limits)
    for seed in range(25):
        view = seeded(seed, own, PICTURES[name])
        expected = v2.functional.pil_to_tensor(seeded(seed, plain, PICTURES[name]))
        assert view.dtype == torch.uint8 and view.shape == (3, size, size)
        apart = (view.float() - expected.float()).abs()
        assert apart.max() <= 1 and apart.mean() < 0.3, seed  # halves of noise are the worst case


@pytest.mark.parametrize("crop_scale", [0.08, 0.5])
@pytest.mark.parametrize("kind", ["torch", "full", "senet"])
@pytest.mark.parametrize("name", PICTURES)
def test_a_view_is_that_of_the_plain_pipeline(name, kind, crop_scale):
    own, plain = (make(48, kind, crop_scale=crop_scale) for make in (train_transform, plain_transform))
    for seed in range(25):
        most, mean = levels_apart(*(seeded(seed, transform, PICTURES[name]) for transform in (own, plain)))
        assert most < 4.1 and mean < 0.5, seed


def test_views_of_photos_are_those_of_the_plain_pipeline(photos):
    """AutoAugment may part neighbouring levels, so there only the mean counts.

    The mean difference is at most 0.04 with AVX2, where resizing rounds as in PIL, and 0.16 without.
    """
    found = {kind: [] for kind in TRAIN_KINDS}
    for seed, path in enumerate(sorted(photos.glob("train/*/*"))[::3]):
        image = load_image(path)
        for kind in TRAIN_KINDS:
            views = [seeded(seed, make(224, kind), image) for make in (train_transform, plain_transform)]
            found[kind].append(levels_apart(*views))
    for kind, differences in found.items():
        most, mean = zip(*differences, strict=True)
        assert max(mean) < 0.6 and np.mean(mean) < 0.3, kind
        assert kind == "AA" or max(most) < 4.1, kind


def box_and_flip(view):
    """The box in a view of `ramp` (left, right, top, bottom, in levels), and whether it is flipped."""
    across, down = view[0].mean(0), view[1].mean(1)
    left, right = sorted((across[0].item(), across[-1].item()))
    return left, right, down[0].item(), down[-1].item(), float(across[0] > across[-1])


def ramp(width, height):
    """Red rises from left to right and green from top to bottom, each by its whole range."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).round().astype(np.uint8))


def colours(view):
    """Means and spreads of the channels and their differences, which all colour transforms change."""
    r, g, b = view
    return [f(x).item() for f in (torch.mean, torch.std) for x in (r, g, b, r - g, g - b)]


@pytest.mark.parametrize(
    ("kind", "image", "measure"),
    [
        ("torch", ramp(150, 100), box_and_flip),
        ("torch", ramp(60, 200), box_and_flip),
        ("full", smooth(40, 40), colours),
        ("senet", smooth(40, 40, seed=3), colours),
    ],
)
def test_views_of_other_seeds_have_the_distribution_of_the_plain_pipeline(kind, image, measure):
    """Kolmogorov-Smirnov test on 3,000 independent views of each; it finds shares that differ by 8%."""
    own, plain = train_transform(12, kind), plain_transform(12, kind)
    ours = np.array([measure(seeded(seed, own, image)) for seed in range(3000)])
    theirs = np.array([measure(seeded(seed, plain, image)) for seed in range(50_000, 53_000)])
    for k in range(ours.shape[1]):
        # Many crops touch an edge: rounding makes equals of those.
        assert ks_2samp(ours[:, k].round(1), theirs[:, k].round(1)).statistic < 0.08, k  # p = 1e-8


def test_a_view_leaves_the_image_as_it_was():
    """Copies share one decoded image, and much is done in place."""
    for kind in TRAIN_KINDS:
        image = noise(40, 30)
        for seed in range(5):
            seeded(seed, train_transform(24, kind), image)
        assert image == noise(40, 30), kind


def test_lighting_changes_the_tensor_itself_only_when_asked():
    grey = torch.full((3, 4, 4), 0.5)
    shifted = seeded(1, Lighting(0.1), grey)
    assert torch.equal(grey, torch.full((3, 4, 4), 0.5))
    assert seeded(1, Lighting(0.1, inplace=True), grey) is grey and torch.equal(grey, shifted)


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (2, 30000), (30000, 2), (1, 1), (40, 1281)])
def test_a_very_long_image_is_cropped_before_it_is_enlarged(size):
    """A strip of two colours that meet in its middle; no picture on the way is larger than 32 squares."""
    width, height = size
    image = Image.new("RGB", size, (255, 0, 0))
    half = (width // 2, 0, width, height) if width > height else (0, height // 2, width, height)
    image.paste((0, 0, 255), half)
    made, resize = [], v2.functional.resize

    def noted(image, shape, **options):
        made.append(shape[0] * shape[1])
        return resize(image, shape, **options)

    with patch("torchvision.transforms.v2.functional.resize", noted):
        x = eval_transform(28, "square")(image)
        for kind in TRAIN_KINDS:
            assert train_transform(28, kind)(image).shape == (3, 28, 28)
        assert eval_transform(28, "rect")(image).shape[1:] == fitted_shape(*size, 28, longest=True)
    assert x.shape == (3, 28, 28) and max(made) <= 32 * 32**2
    if width != height:
        ends = (x[0, :, 0], x[0, :, -1]) if width > height else (x[0, 0], x[0, -1])
        assert (ends[0] > ends[1]).all(), "red at the one end, blue at the other"


def test_ordinary_images_are_resized_whole():
    image = noise(50, 1600)
    assert middle(image) is image and middle(noise(50, 1602)).size == (50, 1600)
