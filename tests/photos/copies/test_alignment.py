"""Pictures laid over each other: copies fit, however cropped; bars are cut; turned ones are found."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from support import noise

from mgkit.photos.copies import turned as turned_module
from mgkit.photos.copies.alignment import aligned, alignments, best_places, coarse, overlap
from mgkit.photos.copies.small import SIDEWAYS, TURNS, UNDONE, as_turned, content_box, contrasts, small
from mgkit.photos.copies.turned import best_turns, look_alikes, low_resolution


def picture(seed, size=(240, 160)):
    """A picture with something to see in it: noise of two sizes."""
    coarse_noise = noise(seed, (7, 5)).resize(size, Image.Resampling.BICUBIC)
    return Image.blend(coarse_noise, noise(seed + 1000, (24, 16)).resize(size, Image.Resampling.BICUBIC), 0.5)


def fit(first, second):
    """The alignment of two pictures."""
    (a, ratio), (b, other) = small(first), small(second)
    return alignments(a[None], b[None], np.array([ratio]), np.array([other]))[0]


def looks(*pictures):
    grey, aspects = zip(*map(small, pictures), strict=True)
    return np.stack(grey), np.array(aspects)


# --- Alignment


@pytest.mark.parametrize("box", [(0, 0, 240, 160), (30, 40, 220, 150), (0, 0, 150, 100), (100, 0, 240, 110)])
def test_a_part_fits_its_picture_both_ways_and_another_picture_does_not(box):
    whole, part = picture(0), picture(0).crop(box)
    assert fit(whole, part) > 0.9 and fit(part, whole) > 0.9
    assert fit(picture(1), part) < 0.6


def test_light_and_a_patch_do_not_matter_much_and_plain_pictures_are_not_compared():
    whole = picture(0)
    assert fit(whole, whole) == pytest.approx(1, abs=1e-3)
    assert fit(whole, whole.point(lambda value: 40 + value // 2)) > 0.95
    patched = whole.copy()
    ImageDraw.Draw(patched).rectangle((20, 20, 90, 70), "red")
    assert fit(whole, patched) > 0.9
    plain = Image.new("RGB", (240, 160), "grey")
    assert math.isnan(fit(plain, plain)) and math.isnan(fit(whole, plain))


def test_two_parts_that_overlap_fit():
    """Neither holds the other, as a picture and a collage with a square from its middle."""
    whole = picture(3)
    assert fit(whole.crop((0, 0, 200, 160)), whole.crop((25, 0, 225, 150))) > 0.9


def test_the_best_place_is_that_of_a_slow_search():
    """Over all scales and shifts, by the correlation of what lies below the middle."""
    a, b = looks(picture(5), picture(5).crop((60, 30, 200, 125)))[0]
    below, above = coarse(contrasts(a[None])), coarse(contrasts(b[None]))
    found, place = best_places(below, above, torch.ones(1))
    side, best = below.shape[-1], -1.0
    for scale in np.geomspace(0.42, 1.0, 9):
        template = shrunk(above, scale)
        inner = torch.isfinite(shrunk(above, 0.65 * scale))
        rows, columns = (torch.nonzero(inner.any(axis))[:, 0] for axis in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        cut = template[top : top + len(rows), left : left + len(columns)]
        for y in range(side - len(rows) + 1):
            for x in range(side - len(columns) + 1):
                window = below[0, 0, y : y + len(rows), x : x + len(columns)]
                best = max(best, float(np.corrcoef(window.flatten(), cut.flatten())[0, 1]))
    assert found.item() == pytest.approx(best, abs=1e-3)
    assert place[0, 0].item() == pytest.approx(140 / 240, abs=0.07)
    assert place[0, 2:].tolist() == pytest.approx([2 * 130 / 240 - 1, 2 * 77.5 / 160 - 1], abs=0.1)


def shrunk(pictures, scale):
    """The picture, smaller about its centre; NaN around it."""
    axis = (torch.arange(pictures.shape[-1]) + 0.5) * 2 / pictures.shape[-1] - 1
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)[None] / scale
    values = torch.nn.functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    return values.masked_fill((grid.abs() > 1).any(-1)[:, None], math.nan)[0, 0]


def test_the_overlap_is_a_share_of_the_smaller_picture():
    places = torch.tensor([[1.0, 1, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0.5, 1, 0], [1, 1, 1, 1], [2, 2, 0, 0]])
    assert overlap(places).tolist() == pytest.approx([1, 1, 0.5, 0.25, 1])


@pytest.mark.filterwarnings("error")
def test_odd_shapes_and_unreadable_pictures_stop_nothing():
    thin = Image.new("RGB", (30_000, 2))
    assert math.isnan(fit(thin, picture(0))) and math.isnan(fit(picture(0), thin))
    grey, aspects = looks(picture(0), picture(0))
    pairs = np.array([[0, 1, 1], [0, 1, 6]])
    assert np.isnan(aligned(grey * np.array([1, 0], np.uint8)[:, None, None], aspects, pairs)).all()
    assert aligned(grey, aspects, pairs[:0]).shape == (0,)


# --- Bars


@pytest.mark.parametrize("colour", ["black", "white", (90, 120, 200)])
def test_bars_and_borders_are_cut_with_what_is_written_on_them(colour):
    screen = Image.new("RGB", (240, 520), colour)
    screen.paste(picture(0), (0, 180))
    ImageDraw.Draw(screen).text((10, 8), "12:45", "red")
    assert content_box(screen) == pytest.approx((0, 180, 240, 340), abs=3)
    framed = Image.new("RGB", (280, 200), colour)
    framed.paste(picture(0), (20, 20))
    assert content_box(framed) == pytest.approx((20, 20, 260, 180), abs=3)
    assert small(framed)[1] == pytest.approx(1.5, abs=0.05) and fit(framed, picture(0)) > 0.9


def test_nothing_is_cut_from_a_plain_sky_from_plain_pictures_or_to_less_than_a_quarter():
    sky = Image.new("RGB", (240, 320), (120, 160, 230))
    sky.paste(picture(0), (0, 160))
    tiny = Image.new("RGB", (300, 300))
    tiny.paste(picture(0, (90, 90)), (100, 100))
    for whole in (sky, tiny, picture(1), Image.new("RGB", (50, 40)), Image.new("RGB", (1, 1))):
        assert content_box(whole) == (0, 0, *whole.size)


# --- Turns


def test_turns_are_those_of_the_rotation_tag():
    image, tagged = picture(0, (60, 40)), Image.new("RGB", (1, 1))
    for turn, as_seen in TURNS.items():
        method = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(turn)  # of Pillow's exif_transpose
        right = image if method is None else image.transpose(Image.Transpose(method))
        grey = np.asarray(image.convert("L"))
        assert np.array_equal(as_seen(grey), np.asarray(right.convert("L")))
        assert np.array_equal(TURNS[UNDONE[turn]](as_seen(grey)), grey)
        assert (right.size != image.size) == (turn in SIDEWAYS)
    assert tagged.size == (1, 1)


@pytest.mark.parametrize("exact", [True, False])
def test_turned_and_mirrored_copies_are_candidates_both_ways(monkeypatch, exact):
    monkeypatch.setattr(turned_module, "MOST_EXACT", 1000 if exact else 1)
    pictures = [picture(seed) for seed in range(12)] + [Image.new("RGB", (30, 20))]
    grey, aspects = looks(*pictures)
    turns = np.arange(1, 9)
    copies, copy_aspects = as_turned(grey[:8], aspects[:8], turns)
    grey, aspects = np.concatenate([grey, copies]), np.concatenate([aspects, copy_aspects])
    rows = low_resolution(grey)
    assert not rows[12].any()
    found = {tuple(row) for row in look_alikes(rows).tolist()}
    right = {(i, 13 + i, UNDONE[i + 1]) for i in range(8)}
    assert found == right | {(j, i, UNDONE[turn]) for i, j, turn in right}
    assert {tuple(row) for row in look_alikes(rows, np.arange(12)).tolist()} == right
    assert aligned(grey, aspects, np.array(sorted(right))).min() > 0.97
    alike, turn = best_turns(rows[:8], rows[13:])
    assert alike.min() > 0.99 and turn.tolist() == [UNDONE[t] for t in turns.tolist()]


def test_one_picture_has_no_look_alikes():
    rows = low_resolution(looks(picture(0))[0])
    assert look_alikes(rows).shape == look_alikes(rows, np.empty(0, int)).shape == (0, 3)


def test_contrasts_of_plain_areas_beside_others_are_finite():
    """The variances of plain areas are sums that rounding may bring below 0."""
    rng = np.random.default_rng(42)
    grey = np.full((64, 64), rng.integers(0, 256), np.uint8)
    grey[:, :32] = rng.integers(0, 256, 32)
    assert contrasts(grey[None]).isfinite().all()
