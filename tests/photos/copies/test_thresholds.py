"""Near-duplicates: a threshold that unrelated images rarely exceed, with many duplicates too."""

import math

import numpy as np
import pytest
from PIL import Image
from support import noise, one_line_error, pairs_above, write_picture

from mgkit.data.decoding import UnreadableImageError
from mgkit.photos.copies.edits import EDITS, EMBEDDED, FRAMES, edit, edited_copies, small_copies
from mgkit.photos.copies.groups import near_duplicates
from mgkit.photos.copies.thresholds import MOST, Strangers, between_strangers, calibrated
from mgkit.photos.embedding.nearest import neighbours_without_self
from mgkit.photos.folder import find_photos
from mgkit.retrieval.search import top_k


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def collection(strangers=1000, duplicates=0, dim=64, noise=0.2, seed=0):
    """Strangers of one cloud, and a near-duplicate of each of the first `duplicates`: descriptors [N,D]."""
    rng = np.random.default_rng(seed)
    rows = unit(rng.normal(size=(strangers, dim)))
    return unit(
        np.concatenate([rows, rows[:duplicates] + noise * rng.normal(size=(duplicates, dim)) / dim**0.5])
    )


def neighbours(descriptors, k=8):
    return neighbours_without_self(*top_k(descriptors, descriptors, k=min(k + 1, len(descriptors))))


def groups_above(descriptors, scores, indices, least):
    """The members of the groups by similarity alone."""
    pairs = pairs_above(scores, indices, least)
    found = near_duplicates(pairs, descriptors, least=least, choose=lambda members: (0, "the first"))
    return {group.members for group in found}


NO_COPIES = np.empty((0, len(EDITS)))
SETTLED = ("JPEG quality 20", "a quarter of the resolution", "brighter, paler")  # nothing random


# --- The threshold


def test_strangers_exceed_it_no_more_often_than_stated():
    scores, _ = neighbours(collection(4000))
    for rate in (0.01, 0.02, 0.1):
        threshold = calibrated(NO_COPIES, scores, false_rate=rate)
        assert threshold.false_images == pytest.approx(rate * 4000, rel=1e-4)
        assert (threshold.nearest >= threshold.value).mean() < 1.5 * rate
    assert (threshold.nearest >= threshold.value).mean() > 0.03  # of the last, 0.1


@pytest.mark.parametrize("share", [0.1, 0.3, 0.45])
def test_duplicates_among_the_images_do_not_hide_themselves(share):
    alone = calibrated(NO_COPIES, neighbours(collection(1000), k=32)[0]).value
    descriptors = collection(1000, duplicates=int(1000 * share / (2 - share)))
    scores, indices = neighbours(descriptors, k=32)
    threshold = calibrated(NO_COPIES, scores)
    assert threshold.value == pytest.approx(alone, abs=0.05)
    right = {(i, 1000 + i) for i in range(len(descriptors) - 1000)}
    found = groups_above(descriptors, scores, indices, threshold.value)
    assert len(found & right) >= 0.9 * len(right) and len(found - right) <= 0.02 * 1000


@pytest.mark.parametrize("times", [2, 4, 8])
def test_a_collection_whose_every_picture_is_there_several_times(times):
    rng = np.random.default_rng(1)
    rows = collection(500)
    copies = [rows] + [unit(rows + 0.3 * rng.normal(size=rows.shape) / 8) for _ in range(times - 1)]
    descriptors = np.concatenate(copies)
    scores, indices = neighbours(descriptors, k=32)
    threshold = calibrated(NO_COPIES, scores)
    assert threshold.value < 0.8
    right = {tuple(range(i, 500 * times, 500)) for i in range(500)}
    assert len(groups_above(descriptors, scores, indices, threshold.value) & right) > 460


def test_a_long_burst_does_not_hide_the_duplicates_of_others():
    rng = np.random.default_rng(2)
    rows = collection(500, duplicates=50)
    burst = unit(rows[:1] + 0.3 * rng.normal(size=(60, rows.shape[1])) / 8)
    descriptors = np.concatenate([rows, burst])
    scores, indices = neighbours(descriptors, k=32)
    threshold = calibrated(NO_COPIES, scores)
    assert threshold.value == pytest.approx(calibrated(NO_COPIES, neighbours(rows, k=32)[0]).value, abs=0.05)
    found = groups_above(descriptors, scores, indices, threshold.value)
    assert len({(i, 500 + i) for i in range(1, 50)} & found) >= 45


def test_rate_and_threshold_undo_each_other():
    strangers = Strangers.beyond(neighbours(collection(500), k=32)[0])
    for share in (0.5, 0.1, 0.01):
        assert strangers.rate(strangers.threshold(share)) == pytest.approx(share)


def test_a_tail_that_is_exponential_is_extrapolated_as_it_is():
    """Values of 400 images, each with a level of its own: the share whose largest exceeds a similarity."""
    rng = np.random.default_rng(0)
    levels = rng.normal(0, 0.02, (400, 1))
    values = -np.sort(-(levels + rng.exponential(0.05, (400, 2000))), axis=1)
    strangers = Strangers.beyond(values[:, :32])
    assert strangers.scale == pytest.approx(0.05, rel=0.05)
    for share in (0.3, 0.1, 0.02):
        value = strangers.threshold(share)
        there = np.quantile(values[:, 0], 1 - share)
        assert value == pytest.approx(there, abs=0.05)


def test_copies_that_are_far_from_strangers_set_the_threshold():
    """It is then as high as 90 % of the copies of each edit allow: no stranger comes near."""
    scores, _ = neighbours(collection(1000), k=32)
    copies = np.tile(np.linspace(0.8, 1, 101)[:, None], (1, len(EDITS)))
    copies[:, 3] -= 0.02
    copies[0, 1] = np.nan
    threshold = calibrated(copies, scores)
    assert threshold.value == pytest.approx(0.8) and "90 % of the copies of each edit" in threshold.how
    assert threshold.found["two fifths cropped"] == pytest.approx(91 / 101)
    assert threshold.false_images < 1
    near = calibrated(copies - 0.6, scores)
    assert near.value == calibrated(NO_COPIES, scores).value and "no copy exceeds it" in near.how


def test_copies_that_are_seldom_compared_do_not_count_and_are_not_found():
    copies = np.full((20, len(EDITS)), 0.9)
    copies[:, 2], compared = 0.5, np.ones(copies.shape, bool)
    compared[3:, 2] = False
    compared[0, 0] = False
    threshold = calibrated(copies, np.empty((0, 0)), compared=compared, images=100)
    assert threshold.value == pytest.approx(0.9) and threshold.images == 100
    assert threshold.found["a fifth cropped"] == 0
    assert threshold.found["JPEG quality 20"] == pytest.approx(0.95)


def test_between_strangers_and_copies_it_is_as_low_as_strangers_allow():
    scores, _ = neighbours(collection(1000), k=32)
    copies = np.full((50, len(EMBEDDED)), 0.95)
    threshold = between_strangers(copies, scores, false_rate=0.05)
    assert threshold.value == calibrated(NO_COPIES, scores, false_rate=0.05).value < 0.9
    assert list(threshold.found) == list(EMBEDDED) and threshold.false_images == pytest.approx(50)
    few = between_strangers(copies, scores[:10])
    assert few.value == pytest.approx(0.95) and "each edit" in few.how and math.isnan(few.false_images)
    assert between_strangers(copies, scores, given=0.97).found == dict.fromkeys(EMBEDDED, 0.0)


def test_strangers_among_any_are_extrapolated_from_the_largest():
    rng = np.random.default_rng(0)
    values = rng.exponential(0.05, (100, 16))
    values[:5, 0] = 1.0  # copies
    values[50:, 3] = -np.inf
    strangers = Strangers.among(values)
    assert strangers.scale == pytest.approx(0.05, rel=0.2)
    assert strangers.rate(0.3) == pytest.approx(1 - (1 - math.exp(-6)) ** 16, rel=0.6)
    assert Strangers.among(values[:19]) is None


def test_a_given_threshold_is_judged_and_the_copies_found_are_counted_by_edit():
    copies = np.array([[0.9, 0.5, 0.7, 0.2], [0.8, 0.5, 0.3, 0.2]])
    scores, _ = neighbours(collection(500), k=32)
    threshold = calibrated(copies, scores, edits=["JPEG quality 20", "b", "c", "d"], given=0.5)
    assert threshold.value == 0.5 and list(threshold.found.values()) == [1.0, 1.0, 0.5, 0.0]
    assert threshold.false_images == pytest.approx(500 * Strangers.beyond(scores).rate(0.5))
    line = threshold.describe()
    assert "0.500" in line and "JPEG quality 20 100 %" in line and "as given" in line and "\n" not in line


def test_few_images_leave_the_threshold_to_the_edited_copies():
    copies = np.tile(np.linspace(0, 1, 11)[:, None], (1, len(EDITS)))
    threshold = calibrated(copies, np.full((5, 4), 0.4))
    assert threshold.value == pytest.approx(0.1) and math.isnan(threshold.false_images)
    text = threshold.describe()
    assert "of each edit that can be compared reach it" in text and "not known" in text
    with one_line_error(ValueError, "edited copies"):
        calibrated(NO_COPIES, np.full((5, 4), 0.4))


def test_identical_images_are_above_any_threshold():
    threshold = calibrated(NO_COPIES, np.ones((50, 8), np.float32))
    assert threshold.value == MOST and "identical" in threshold.how
    descriptors = np.tile(unit(np.ones((1, 16))), (50, 1))
    assert groups_above(descriptors, *neighbours(descriptors), threshold.value) == {tuple(range(50))}


def without(scores, share, seed=0):
    """Scores [N,k] of an index that misses the tail of each row, and the whole of a share of rows."""
    rng = np.random.default_rng(seed)
    count = rng.integers(scores.shape[1] // 2, scores.shape[1], len(scores))
    count[rng.random(len(scores)) < share] = 0
    return np.where(np.arange(scores.shape[1]) < count[:, None], scores, -np.inf)


@pytest.mark.filterwarnings("error")
def test_neighbours_that_an_index_missed_do_not_count():
    scores, _ = neighbours(collection(1000, duplicates=100), k=32)
    missed = without(scores, 0.3)
    threshold, whole = calibrated(NO_COPIES, missed), calibrated(NO_COPIES, scores)
    assert threshold.value == pytest.approx(whole.value, abs=0.03) and threshold.how == whole.how
    assert len(threshold.nearest) == np.isfinite(missed[:, 0]).sum() < 850
    assert threshold.false_images == pytest.approx(0.02 * len(threshold.nearest))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("images", "share"), [(75, 0.7), (30, 0.5), (75, 1.0)])
def test_an_index_that_finds_hardly_any_neighbours_leaves_the_threshold_to_the_edited_copies(images, share):
    missed = without(neighbours(collection(images))[0], share)
    copies = np.tile(np.linspace(0, 1, 11)[:, None], (1, len(EDITS)))
    threshold = calibrated(copies, missed)
    assert threshold.value == pytest.approx(0.1) and math.isnan(threshold.false_images)
    assert np.isfinite(threshold.nearest).all()
    assert math.isnan(calibrated(NO_COPIES, missed, given=0.5).false_images)


# --- Neighbours


def test_an_image_is_no_neighbour_of_its_own():
    descriptors = collection(40)
    scores, indices = neighbours(descriptors, k=5)
    assert not (indices == np.arange(40)[:, None]).any()
    products = descriptors @ descriptors.T - 2 * np.eye(40)
    assert np.allclose(scores, -np.sort(-products, axis=1)[:, :5], atol=1e-6)
    alike, _ = neighbours(np.tile(unit(np.ones((1, 8))), (20, 1)), k=3)  # the first four need not hold it
    assert alike.shape == (20, 3)


# --- Edited copies


def test_each_picture_has_every_embedded_edit_once_and_its_shape(tmp_path):
    small = noise(0, (12, 9)).resize((300, 200), Image.Resampling.BICUBIC)
    small.save(tmp_path / "a.png")
    write_picture(tmp_path / "b.png", seed=1, size=(64, 90))
    photos = find_photos([tmp_path], side=96).images
    copies = edited_copies(photos)
    assert copies.paths == tuple(np.repeat(photos.paths, len(EMBEDDED)))
    original = np.asarray(photos.load(0), float)
    edited = [np.asarray(copies.load(i), float) for i in range(len(EMBEDDED))]
    assert all(picture.shape == original.shape for picture in edited)
    assert copies.load(len(EMBEDDED)).size == photos.load(1).size
    for i, picture in enumerate(edited):
        assert 1 < np.abs(picture - original).mean() < 80, list(EMBEDDED)[i]
        assert all(np.abs(picture - other).mean() > 1 for other in edited[:i])
        assert np.array_equal(picture, np.asarray(copies.load(i), float))  # what is random is the same


@pytest.mark.parametrize("name", EDITS | FRAMES)
def test_an_edit_changes_a_picture_of_any_size(name):
    picture = noise(0, (12, 9)).resize((120, 90), Image.Resampling.BICUBIC)
    edited = edit(name, picture, "a.jpg")
    assert edited.mode == "RGB" and edited.tobytes() != picture.tobytes()
    other = edit(name, picture, "b.jpg")
    assert (other.tobytes() == edited.tobytes()) == (name in SETTLED)
    for size in ((1, 1), (1, 500), (300, 2)):
        assert edit(name, Image.new("RGB", size), "a.jpg").mode == "RGB"


def test_a_very_long_thin_picture_is_edited_like_any_other(tmp_path):
    Image.new("RGB", (300_000, 2)).save(tmp_path / "x.png")
    copies = edited_copies(find_photos([tmp_path], side=96).images)
    assert [copies.load(i).size for i in range(len(EMBEDDED))] == [(96, 1)] * len(EMBEDDED)


def test_a_picture_that_cannot_be_edited_is_named(tmp_path, monkeypatch):
    write_picture(tmp_path / "x.png")
    copies = edited_copies(find_photos([tmp_path], side=96).images)

    def fail(image, random):
        raise TypeError("no such thing")

    monkeypatch.setitem(EDITS, "two fifths cropped", fail)
    assert copies.load(0).mode == "RGB"
    with one_line_error(UnreadableImageError, tmp_path / "x.png", "two fifths cropped", "no such thing"):
        copies.load(1)
    grey, aspects = small_copies(copies.subset([0]))
    assert not grey.any() and (aspects == 1).all()
