"""Kept alignments, copies and candidates are those of a new run; only new pictures are compared."""

import numpy as np
import pytest
from PIL import Image
from support import noise

from mgkit.photos import comparisons as module
from mgkit.photos.comparisons import Comparisons, keys_of_pairs
from mgkit.photos.copies.small import small
from mgkit.photos.folder import find_photos


def looks_of(pictures):
    grey, aspects = zip(*map(small, pictures), strict=True)
    return np.stack(grey), np.array(aspects)


@pytest.fixture
def pictures():
    """Twelve, each with one like it that is turned."""
    found = [noise(seed, (9, 7)).resize((90, 70), Image.Resampling.BICUBIC) for seed in range(6)]
    return found + [each.transpose(Image.Transpose.ROTATE_90) for each in found]


KEYS = np.random.default_rng(0).integers(1, 2**63, 12, dtype=np.uint64)
PAIRS = np.array([[0, 1, 1], [0, 6, 6], [2, 3, 1], [2, 8, 6], [0, 1, 2]])


def test_kept_alignments_are_those_of_a_new_run(pictures, tmp_path, monkeypatch):
    looks = looks_of(pictures)
    plain = Comparisons(*looks).aligned(PAIRS)
    assert np.array_equal(Comparisons(*looks, KEYS, tmp_path).aligned(PAIRS), plain)
    again = Comparisons(*looks, KEYS, tmp_path)
    monkeypatch.setattr(module, "aligned", lambda *_: pytest.fail("laid again"))
    assert np.array_equal(again.aligned(PAIRS[::-1]), plain[::-1]) and plain[1] > 0.9 > plain[0]


def test_only_new_pairs_are_laid_and_a_cut_file_is_mended(pictures, tmp_path, monkeypatch):
    looks = looks_of(pictures)
    Comparisons(*looks, KEYS, tmp_path).aligned(PAIRS[:3])
    [path] = tmp_path.glob("alignments-*.rows")
    path.write_bytes(path.read_bytes()[:-5])  # as a kill leaves it
    laid, original = [], module.aligned
    monkeypatch.setattr(module, "aligned", lambda g, a, pairs: laid.extend(pairs) or original(g, a, pairs))
    found = Comparisons(*looks, KEYS, tmp_path).aligned(PAIRS)
    assert np.array_equal(found, original(*looks, PAIRS)) and len(laid) == 3
    assert np.array_equal(Comparisons(*looks, KEYS, tmp_path).aligned(PAIRS), found) and len(laid) == 3


def test_a_changed_picture_is_compared_again():
    keys = KEYS.copy()
    keys[0] += np.uint64(1)
    assert np.isin(keys_of_pairs(keys, PAIRS), keys_of_pairs(KEYS, PAIRS)).tolist() == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_keys_of_pairs_differ_by_each_picture_the_order_and_the_turn():
    pairs = np.stack(np.meshgrid(np.arange(12), np.arange(12), np.arange(1, 9)), -1).reshape(-1, 3)
    assert len(np.unique(keys_of_pairs(KEYS, pairs))) == len(pairs)


def as_set(found):
    return {tuple(row) for row in found.tolist()}


def test_grown_candidates_are_those_of_a_new_run(pictures, tmp_path):
    grey, aspects = looks_of(pictures)
    some = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11])  # without 10, which is 4 turned
    first = Comparisons(grey[some], aspects[some], KEYS[some], tmp_path)
    first.look_alikes()
    whole = Comparisons(grey, aspects, KEYS, tmp_path).look_alikes()
    ends = {frozenset(row[:2]) for row in Comparisons(grey, aspects).look_alikes().tolist()}
    assert {frozenset(row[:2]) for row in whole.tolist()} == ends == {frozenset((i, i + 6)) for i in range(6)}
    without = Comparisons(grey[some], aspects[some], KEYS[some], tmp_path).look_alikes()
    assert as_set(without) == as_set(Comparisons(grey[some], aspects[some]).look_alikes())


def test_kept_candidates_of_the_same_pictures_and_queries_are_taken(pictures, tmp_path, monkeypatch):
    looks = looks_of(pictures)
    kept = Comparisons(*looks, KEYS, tmp_path)
    of_all, of_some = kept.look_alikes(), kept.look_alikes(6)
    assert len(of_some) and set(of_some[:, 0]) <= set(range(6)) and len(of_some) < len(of_all)
    monkeypatch.setattr(module, "look_alikes", lambda *_: pytest.fail("searched again"))
    assert np.array_equal(Comparisons(*looks, KEYS, tmp_path).look_alikes(6), of_some)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing"])
def test_damaged_candidates_are_searched_again(pictures, tmp_path, content):
    looks = looks_of(pictures)
    found = Comparisons(*looks, KEYS, tmp_path).look_alikes()
    [path] = tmp_path.glob("look_alikes-*.npz")
    path.write_bytes(content)
    assert np.array_equal(Comparisons(*looks, KEYS, tmp_path).look_alikes(), found)


def test_copies_are_made_once(pictures, tmp_path, monkeypatch):
    for seed, each in enumerate(pictures):
        each.save(tmp_path / f"{seed:02}.png")
    photos = find_photos([tmp_path], side=96).images
    looks, chosen = looks_of(pictures), np.array([1, 4])
    plain = Comparisons(*looks).of_copies(photos, chosen)
    kept = tmp_path / "kept"
    kept.mkdir()
    for _ in range(2):
        for ours, theirs in zip(
            Comparisons(*looks, KEYS, kept).of_copies(photos, chosen), plain, strict=True
        ):
            assert np.array_equal(ours, theirs)
        monkeypatch.setattr(module, "small_copies", lambda *_: pytest.fail("made again"))
