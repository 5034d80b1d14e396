"""Turnings and mirrorings one after the other, against Pillow's; along chains of pairs."""

import numpy as np
import pytest
from PIL import Image
from support import noise

from mgkit.data.decoding import TURNS
from mgkit.photos.copies.orientation import THEN, relative, turns_along
from mgkit.photos.copies.pairs import SAME_FILE, Pairs
from mgkit.photos.copies.small import UNDONE

ALL = range(1, 9)


def turned(picture, turn):
    """The picture as it is shown with a rotation tag."""
    return picture.transpose(TURNS[turn]) if turn in TURNS else picture


def same(first, second):
    return first.size == second.size and first.tobytes() == second.tobytes()


@pytest.mark.parametrize("first", ALL)
@pytest.mark.parametrize("then", ALL)
def test_two_turnings_make_one(first, then):
    picture = noise(0, (5, 3))
    twice = turned(turned(picture, first), then)
    assert [turn for turn in ALL if same(turned(picture, turn), twice)] == [THEN[first, then]]


@pytest.mark.parametrize("turn", ALL)
def test_a_turning_is_undone(turn):
    picture = noise(0, (5, 3))
    assert same(turned(turned(picture, turn), UNDONE[turn]), picture)


def pairs_of(pictures, ends):
    """The pairs with these ends; the second, shown with the turn as its tag, looks like the first."""
    turns = [next(turn for turn in ALL if same(turned(pictures[j], turn), pictures[i])) for i, j in ends]
    first, second = np.array(ends).T
    count = np.full(len(ends), 0.9)
    return Pairs(first, second, count, count, np.array(turns), np.full(len(ends), SAME_FILE))


def test_turns_follow_along_chains_of_pairs():
    original = noise(0, (5, 3))
    pictures = [turned(original, turn) for turn in (1, 6, 2, 8, 5, 3)]
    pairs = pairs_of(pictures, [(2, 5), (0, 3), (1, 3), (1, 2)])
    turns = turns_along(pairs, pairs.similarity, len(pictures))
    for kept in (0, 1, 2, 3, 4):
        members = np.array([0, 1, 2, 3, 5])
        for member, turn in zip(members, relative(turns[members], kept), strict=True):
            assert same(turned(pictures[member], turn), pictures[members[kept]])
    assert turns[4] == 1  # that is in no pair


def test_the_surest_pairs_decide():
    """A wrong turn of a weak pair, in a circle, changes nothing."""
    image = Image.new("RGB", (2, 2))
    pairs = pairs_of([image] * 3, [(0, 1), (0, 2), (1, 2)])
    turn, score = np.array([6, 3, 1]), np.array([0.9, 0.5, 0.95])
    pairs = Pairs(pairs.first, pairs.second, score, score, turn, pairs.grade)
    assert relative(turns_along(pairs, score, 3), 0) == (1, 6, 6)
