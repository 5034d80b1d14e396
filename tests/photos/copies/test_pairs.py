"""Pairs of two grades, and thresholds learned on edited copies of the pictures themselves."""

import math

import numpy as np
import pytest
from PIL import Image
from support import noise

from mgkit.data.decoding import UnreadableImageError
from mgkit.photos.comparisons import Comparisons, laid_copies
from mgkit.photos.copies import calibration, thresholds
from mgkit.photos.copies import pairs as pairs_module
from mgkit.photos.copies.calibration import learn_thresholds
from mgkit.photos.copies.edits import EDITS, EMBEDDED
from mgkit.photos.copies.pairs import SAME_FILE, SAME_MOMENT, find_pairs, nearby
from mgkit.photos.copies.small import small
from mgkit.photos.copies.thresholds import Threshold, Thresholds
from mgkit.photos.folder import find_photos


def picture(seed, size=(120, 90)):
    return noise(seed, (9, 7)).resize(size, Image.Resampling.BICUBIC)


def looks_of(pictures):
    grey, aspects = zip(*map(small, pictures), strict=True)
    return Comparisons(np.stack(grey), np.array(aspects))


def at(file=0.8, moment=0.7, floor=0.3):
    none = np.empty((0, 0))
    one = [Threshold(value, math.nan, {}, none, none, "", 0) for value in (file, moment)]
    return Thresholds(*one, floor)


def as_tuples(pairs):
    columns = (pairs.first, pairs.second, pairs.turn, pairs.grade)
    return [tuple(row) for row in np.stack(columns, 1).tolist()]


def directions(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def test_pairs_have_the_grade_that_alignment_and_similarity_give_them():
    """0 and 1: cropped; 2 and 3: another frame; 4: 0 mirrored; 5: nothing; 6: like 5, but far from it."""
    crop = picture(0).crop((10, 10, 110, 85))
    mirrored = picture(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pictures = [picture(0), crop, picture(2), picture(3), mirrored, picture(5), picture(6)]
    descriptors = directions(0, 60, 100, 110, 200, 300, 345)
    near = np.array([[0, 1, 1], [1, 0, 0], [2, 3, 1], [5, 6, 1]])
    found = find_pairs(descriptors, near, looks_of(pictures), at(moment=0.9))
    assert as_tuples(found) == [(0, 1, 1, SAME_FILE), (0, 4, 2, SAME_FILE), (2, 3, 1, SAME_MOMENT)]
    assert found.alignment[0] > 0.9 > 0.5 > found.alignment[2]
    assert found.similarity == pytest.approx(np.cos(np.radians([60, 160, 10])), abs=1e-6)


def test_frames_that_fit_are_no_copies_if_they_were_taken_at_different_times():
    taken = np.array([100.0, 102.0, np.nan, 100.0])
    found = find_pairs(
        directions(0, 0, 0, 0), np.empty((0, 3), int), looks_of([picture(0)] * 4), at(), taken=taken
    )
    other = {(0, 1), (1, 3)}
    for i, j, turn, grade in as_tuples(found):
        assert turn == 1 and grade == (SAME_MOMENT if (i, j) in other else SAME_FILE)
    assert len(found) == 6


def test_frames_of_a_burst_differ_by_fractions_of_a_second():
    """0 and 1: both times have fractions; 2: an editor has dropped its fraction."""
    taken, none = np.array([100.1, 100.2, 100.0]), np.empty((0, 3), int)
    found = find_pairs(directions(0, 0, 0), none, looks_of([picture(0)] * 3), at(), taken=taken)
    assert [grade for *_, grade in as_tuples(found)] == [SAME_MOMENT, SAME_FILE, SAME_FILE]


def test_the_pairs_of_two_folders_join_one_of_each():
    pictures = [picture(0), picture(0), picture(0).transpose(Image.Transpose.ROTATE_90), picture(1)]
    near = np.array([[0, 1, 1], [0, 2, 1], [1, 3, 1]])
    descriptors = directions(0, 0, 0, 120)
    found = find_pairs(descriptors, near, looks_of(pictures), at(), own=2)
    # 6 turns by 90 degrees clockwise, which undoes Pillow's rotation to the left.
    assert as_tuples(found) == [(0, 2, 6, SAME_FILE), (1, 2, 6, SAME_FILE)]
    assert (0, 1, 1, SAME_FILE) in as_tuples(find_pairs(descriptors, near, looks_of(pictures), at()))


def test_pictures_without_a_descriptor_and_plain_ones():
    pictures = [picture(0), picture(0), Image.new("RGB", (40, 30)), Image.new("RGB", (40, 30))]
    descriptors = directions(0, 0, 5, 5)
    descriptors[1] = np.nan
    found = find_pairs(descriptors, np.array([[2, 3, 1]]), looks_of(pictures), at())
    assert as_tuples(found) == [(2, 3, 1, SAME_MOMENT)] and np.isnan(found.alignment).all()
    none = find_pairs(descriptors[:1], np.empty((0, 3), int), looks_of(pictures[:1]), at())
    assert len(none) == 0


def test_neighbours_of_the_moment_are_candidates_and_the_nearest_are_compared(monkeypatch):
    monkeypatch.setattr(pairs_module, "MOST_COMPARED", 4)
    scores = np.array(
        [[0.9, 0.8, 0.75, 0.72, 0.71, 0.5], [0.6, 0.5, 0.45, 0.4, 0.4, 0.35], [0.2, -np.inf] * 3]
    )
    nearest = np.arange(18).reshape(3, 6)
    of_first = [[0, k, int(k < 4)] for k in range(5)]
    assert nearby(scores, nearest, at()).tolist() == of_first + [[1, k, 1] for k in range(6, 10)]


def test_pairs_that_are_not_compared_are_of_one_moment_unless_they_look_alike():
    pictures = [picture(0), picture(0).crop((10, 10, 110, 85)), picture(0)]
    near = np.array([[0, 1, 0], [0, 2, 0]])
    found = find_pairs(directions(0, 5, 5), near, looks_of(pictures), at())
    assert as_tuples(found)[:2] == [(0, 1, 1, SAME_MOMENT), (0, 2, 1, SAME_FILE)]
    assert np.isnan(found.alignment[0]) and found.alignment[1] > 0.99


# --- What is learned


@pytest.fixture
def photos(tmp_path):
    for seed in range(24):
        picture(seed).save(tmp_path / f"{seed:02}.png")
    return find_photos([tmp_path], side=96).images


def learned(photos, monkeypatch, cosines, count=6, **options):
    monkeypatch.setattr(calibration, "ALIGNED", count)
    monkeypatch.setattr(thresholds, "FEWEST", 6)
    rng = np.random.default_rng(0)
    looks = looks_of([photos.load(i) for i in range(len(photos))])
    scores = -np.sort(-rng.exponential(0.05, (24, 200)), axis=1)[:, :12]
    farther = np.stack([rng.permutation(np.delete(np.arange(24), i))[:8] for i in range(24)])
    chosen = np.arange(len(photos))
    return learn_thresholds(photos, looks, scores, chosen, farther, cosines, **options)


def test_copies_of_each_edit_are_found_and_strangers_are_not_expected(photos, monkeypatch):
    cosines = np.random.default_rng(0).uniform(0.6, 0.9, (24, len(EMBEDDED)))
    found = learned(photos, monkeypatch, cosines)
    assert 0.5 < found.file.value < 1 and found.file.false_images < 1 and found.file.images == 24
    assert list(found.file.found) == list(EDITS) and min(found.file.found.values()) > 0.8
    assert found.file.copies.shape == (6, len(EDITS)) and found.file.nearest.shape == (6,)
    assert found.moment.value < 0.6 and list(found.moment.found.values()) == [1.0] * len(EMBEDDED)
    assert found.moment.false_images == pytest.approx(0.02 * 24)
    assert found.floor == found.moment.value
    higher = learned(photos, monkeypatch, cosines, given=0.95, count=2)
    assert higher.moment.value == 0.95 and higher.floor == pytest.approx(0.6, abs=0.02)


def test_without_a_network_the_copies_that_need_one_are_not_promised(photos, monkeypatch):
    found = learned(photos, monkeypatch, np.empty((0, len(EMBEDDED))), count=4, given=0.9)
    assert set(found.file.found) == set(EDITS) - set(EMBEDDED) and math.isnan(found.file.false_images)
    assert found.moment.value == 0.9 and found.floor == -math.inf


def test_a_picture_that_vanishes_is_left_out(photos, monkeypatch):
    original = type(photos).load

    def load(self, index, **options):
        if self.paths[index].endswith("01.png"):
            raise UnreadableImageError("vanished")
        return original(self, index, **options)

    grey = looks_of([photos.load(i) for i in range(24)])
    monkeypatch.setattr(type(photos), "load", load)
    fits, alike = laid_copies(photos.subset(np.arange(3)), (grey.grey, grey.aspects), np.arange(3))
    assert np.isnan(fits[1]).all() and not alike[1].any() and np.isfinite(fits[[0, 2]]).all()


def test_neighbours_as_similar_as_copies_are_no_strangers(photos, monkeypatch):
    """In a folder that holds each picture many times, farther neighbours are copies, too."""
    cosines, similar = np.full((24, len(EMBEDDED)), 0.8), np.full((24, 8), 0.3)
    alone = learned(photos, monkeypatch, cosines, given=0.7, similar=similar)
    original = Comparisons.aligned

    def aligned(self, pairs):
        return np.where(pairs[:, 1] < 6, 0.99, original(self, pairs))  # as of copies

    monkeypatch.setattr(Comparisons, "aligned", aligned)
    rng = np.random.default_rng(0)
    rng.exponential(0.05, (24, 200))
    farther = np.stack([rng.permutation(np.delete(np.arange(24), i))[:8] for i in range(24)])
    found = learned(photos, monkeypatch, cosines, given=0.7, similar=np.where(farther < 6, 0.9, 0.3))
    without = learned(photos, monkeypatch, cosines, given=0.7)
    assert found.file.value == pytest.approx(alone.file.value, abs=0.05) and without.file.value > 0.98
