"""Groups: no stray pair joins two, a copy belongs to the picture that stays, any number of pictures."""

import time

import numpy as np
import pytest
from support import pairs_above

from mgkit.photos.copies import groups as module
from mgkit.photos.copies.groups import SHARE, Measure, matches, near_duplicates, pairs_beyond
from mgkit.photos.copies.orientation import THEN
from mgkit.photos.copies.pairs import SAME_FILE, SAME_MOMENT, Pairs
from mgkit.photos.embedding.nearest import neighbours_without_self
from mgkit.retrieval.search import top_k

LEAST = 0.6


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def neighbours(descriptors, k=8):
    return neighbours_without_self(*top_k(descriptors, descriptors, k=min(k + 1, len(descriptors))))


def first(members):
    """The choice of the picture with the smallest index."""
    return int(np.argmin(members)), "the first"


def last(members):
    return int(np.argmax(members)), "the last"


def files(scores, similarity=0.9):
    """Pairs of copies: {(first, second): alignment}."""
    ends = np.array(list(scores)).reshape(-1, 2).T
    alignment, count = np.array(list(scores.values())), len(scores)
    return Pairs(*ends, np.full(count, similarity), alignment, np.ones(count, int), np.full(count, SAME_FILE))


def apart(count):
    """Descriptors of pictures that are not alike."""
    return np.eye(count, dtype=np.float32)


def moments(descriptors, least=LEAST, k=8):
    """Groups by similarity alone."""
    pairs = pairs_above(*neighbours(descriptors, k), least)
    return near_duplicates(pairs, descriptors, least=least, choose=first)


def at(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


# --- Pairs


def test_pairs_are_those_above_the_threshold_each_once():
    descriptors = unit(np.random.default_rng(0).normal(size=(60, 4)))
    pairs = pairs_above(*neighbours(descriptors, k=59), 0.7)
    products = descriptors @ descriptors.T
    expected = [(i, j) for i in range(60) for j in range(i + 1, 60) if products[i, j] >= 0.7]
    assert sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == expected
    np.testing.assert_allclose(pairs.similarity, products[pairs.first, pairs.second], atol=1e-6)
    assert np.isnan(pairs.alignment).all() and set(pairs.grade) == {SAME_MOMENT} and set(pairs.turn) == {1}


@pytest.mark.parametrize(
    ("alike", "others", "beyond"), [(9, 0, False), (8, 5, False), (10, 0, True), (40, 5, True)]
)
def test_pairs_beyond_the_neighbours_are_known_of(alike, others, beyond):
    rows = np.concatenate([np.tile(at(10), (alike, 1)), at(*range(100, 100 + 50 * others, 50))])
    scores, _ = neighbours(rows, k=8)
    assert pairs_beyond(scores, 0.99, len(rows) - 1) is beyond


def test_one_picture_and_none_have_no_groups():
    descriptors = at(0)
    scores, indices = neighbours(descriptors)
    assert scores.shape == (1, 0) and not pairs_beyond(scores, 0.5, 0)
    assert near_duplicates(pairs_above(scores, indices, 0.5), descriptors, least=0.5, choose=first) == []
    assert found_elsewhere(pairs_above(scores, indices, 0.5), 1, 1) == []


# --- Frames of a moment


def test_one_stray_pair_joins_no_two_groups():
    """Two groups of five pictures each, and one pair above the threshold between them."""
    rng = np.random.default_rng(0)
    rows = np.repeat(np.eye(64)[:2], 5, axis=0)
    rows[4, :2], rows[5, :2] = at(20)[0], at(70)[0]
    descriptors = unit(rows + 0.02 * rng.normal(size=rows.shape))
    products = descriptors @ descriptors.T
    assert products[4, 5] > LEAST and np.delete(products[:5, 5:].ravel(), 20).max() < LEAST
    assert sorted(group.members for group in moments(descriptors)) == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]


def test_a_long_chain_falls_apart():
    """Each picture is like the next; components would be one group of 60 from 0 to 360 degrees."""
    groups = moments(at(*range(0, 360, 6)), least=np.cos(np.radians(7)))
    assert len(groups) > 3 and max(len(group.members) for group in groups) < 12
    for group in groups:
        inside = at(*range(0, 360, 6))[list(group.members)]
        products = inside @ inside.T
        mean = (products.sum() - len(inside)) / (len(inside) * (len(inside) - 1))
        assert group.tightness == pytest.approx(mean, abs=1e-5)
        assert mean >= SHARE * np.cos(np.radians(7))


def plain_average_linkage(products, least):
    """Groups by joining, one after the other, the two that are most alike in the mean."""
    groups = [[i] for i in range(len(products))]
    while len(groups) > 1:
        mean, a, b = max(
            (products[np.ix_(x, y)].mean(), i, i + 1 + j)
            for i, x in enumerate(groups)
            for j, y in enumerate(groups[i + 1 :])
        )
        if mean < least:
            break
        groups[a] += groups.pop(b)
    return {tuple(sorted(group)) for group in groups if len(group) > 1}


def test_groups_are_those_of_plain_average_linkage_within_components():
    rng = np.random.default_rng(1)
    rows = np.repeat(rng.normal(size=(12, 16)), 5, axis=0) + 0.8 * rng.normal(size=(60, 16))
    descriptors = unit(rows)
    products = (descriptors @ descriptors.T).astype(float)
    label = np.arange(60)
    for _ in range(60):  # until each has the least label of its component
        label = np.array([label[products[i] >= LEAST].min() for i in range(60)])
    expected = set()
    for component in np.unique(label):
        members = np.flatnonzero(label == component)
        inside = products[np.ix_(members, members)]
        for group in plain_average_linkage(inside, SHARE * LEAST):
            block = inside[np.ix_(group, group)] - 2 * np.eye(len(group))
            kept = [members[g] for g, row in zip(group, block, strict=True) if row.max() >= LEAST]
            expected |= {tuple(int(i) for i in kept)} if kept else set()
    found = moments(descriptors, k=59)
    assert {group.members for group in found} == expected and len(expected) > 5
    for group in found:
        block = products[np.ix_(group.members, group.members)] - 2 * np.eye(len(group.members))
        np.testing.assert_allclose(group.similarities, block.max(1), atol=1e-6)
        assert (group.grade, group.kept, group.going) == (SAME_MOMENT, 0, ())
    assert [group.strongest for group in found] == sorted((g.strongest for g in found), reverse=True)


def test_thousands_of_identical_pictures_are_one_group_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(module, "MOST", 100)
    descriptors = np.concatenate([np.tile(at(10), (1000, 1)), at(100, 100.1)])
    began = time.process_time()
    found = moments(descriptors, least=0.9)
    assert sorted(len(group.members) for group in found) == [2, 1000]
    [large] = [group for group in found if len(group.members) == 1000]
    assert large.tightness == pytest.approx(1) and min(large.similarities) == pytest.approx(1)
    assert time.process_time() - began < 20


def test_a_film_of_many_frames_is_cut_where_frames_are_least_alike(monkeypatch):
    monkeypatch.setattr(module, "MOST", 20)
    shots = [start + 0.05 * np.arange(10) for start in np.arange(0, 40, 4)]
    found = moments(at(*np.concatenate(shots)), least=0.99, k=12)
    assert sorted(group.members for group in found) == [
        tuple(range(10 * shot, 10 * shot + 10)) for shot in range(10)
    ]


# --- Copies of a file


def test_copies_are_grouped_around_the_picture_that_stays():
    """0 is the original of two crops that do not overlap; with 3 there is no original left."""
    pairs = files({(0, 1): 0.95, (0, 2): 0.9, (3, 4): 0.99})
    found = near_duplicates(pairs, apart(5), least=LEAST, choose=first)
    assert [group.members for group in found] == [(3, 4), (0, 1, 2)]
    group = found[1]
    assert group.similarities == pytest.approx([0.95, 0.95, 0.9]) and group.tightness == pytest.approx(0.925)
    assert (group.grade, group.kept, group.reason, group.going) == (SAME_FILE, 0, "the first", (1, 2))


def test_a_copy_of_a_copy_is_no_copy_of_the_one_that_stays():
    pairs = files({(0, 1): 0.95, (1, 2): 0.9})
    [group] = near_duplicates(pairs, apart(3), least=LEAST, choose=first)
    assert group.members == (0, 1) and group.going == (1,)


def test_pictures_that_were_not_compared_are_compared_with_the_one_that_stays():
    asked = []

    def score(i, j, turn):
        assert (turn == 1).all()
        asked.extend(zip(i.tolist(), j.tolist(), strict=True))
        return np.where(j == 2, 0.85, 0.2)

    pairs = files({(0, 1): 0.95, (1, 2): 0.9, (1, 3): 0.9})
    measure = Measure(score, 0.8)
    [group] = near_duplicates(pairs, apart(4), least=LEAST, choose=first, measure=measure)
    assert group.members == (0, 1, 2) and group.similarities == pytest.approx([0.95, 0.95, 0.85])
    assert sorted(asked) == [(0, 2), (0, 3)]


def test_turned_pictures_are_compared_as_they_are_turned():
    """With the tag 6, 1 looks like 0, and with the tag 2, 2 looks like 1: 2 is compared with 0 by both."""
    asked = []

    def score(i, j, turn):
        asked.extend(zip(i.tolist(), j.tolist(), turn.tolist(), strict=True))
        return np.where(j == 2, 0.9, np.nan)

    pairs = files({(0, 1): 0.95, (1, 2): 0.9, (1, 3): 0.9})
    pairs.turn[:] = [6, 2, 1]
    [group] = near_duplicates(pairs, apart(4), least=LEAST, choose=first, measure=Measure(score, 0.8))
    assert asked == [(0, 2, THEN[2, 6]), (0, 3, 6)] and group.turns == (1, 6, THEN[2, 6])


@pytest.mark.parametrize("strays", [60, 2000])
def test_a_component_of_many_originals_falls_into_them_by_few_comparisons(strays):
    """12 originals with 39 copies each, which are in a pair with a few others; stray pairs join them all."""
    rng, original = np.random.default_rng(0), np.repeat(np.arange(12), 40)
    i = np.repeat(np.arange(480), 4)
    copies = np.stack([i, 40 * original[i] + rng.integers(0, 40, len(i))], 1)
    ends = np.unique(np.sort(np.concatenate([copies, rng.integers(0, 480, (strays, 2))])), axis=0)
    pairs = files({(a, b): 0.95 if original[a] == original[b] else 0.81 for a, b in ends.tolist() if a < b})
    compared = []

    def score(a, b, turn):
        compared.extend(zip(a.tolist(), b.tolist(), strict=True))
        return np.where(original[a] == original[b], 0.9, 0.2)

    found = near_duplicates(pairs, apart(480), least=2, choose=first, measure=Measure(score, 0.8))
    assert len(set(compared)) == len(compared) <= 2 * len(pairs)
    if strays == 60:
        assert len(compared) < len(pairs)
        assert sum(len(group.members) for group in found) == 480 and len(found) == 12


def test_a_copy_belongs_to_the_most_similar_of_two_that_stay():
    """0 and 1 stay; the stray pair of 0 and 3 takes no copy from 1."""
    pairs = files({(0, 2): 0.95, (1, 3): 0.97, (0, 3): 0.81})
    found = near_duplicates(pairs, apart(4), least=LEAST, choose=first)
    assert [group.members for group in found] == [(1, 3), (0, 2)]


def test_of_copies_only_the_one_that_stays_is_in_a_group_of_a_moment():
    descriptors = at(0, 10, 1, 11, 90)
    copies = files({(0, 2): 0.9, (1, 3): 0.9}, similarity=0.99)
    other = pairs_above(*neighbours(descriptors), 0.9)
    alike = np.array([(a, b) not in ((0, 2), (1, 3)) for a, b in zip(other.first, other.second, strict=True)])
    columns = zip(vars(copies).values(), vars(other).values(), strict=True)
    pairs = Pairs(*(np.concatenate([ours, theirs[alike]]) for ours, theirs in columns))
    found = near_duplicates(pairs, descriptors, least=0.9, choose=last)
    assert [(group.grade, group.members) for group in found] == [
        (SAME_FILE, (0, 2)), (SAME_FILE, (1, 3)), (SAME_MOMENT, (2, 3)),
    ]  # fmt: skip
    assert [group.going for group in found] == [(0,), (1,), ()]  # frames of a moment are no copies
    some = near_duplicates(pairs, descriptors, least=0.9, choose=last, may_go=lambda i: i != 0)
    assert [group.going for group in some] == [(), (1,), ()]


def test_the_centre_of_copies_stays_though_another_is_better_among_them():
    """As criteria that do not apply to all files choose one of many and another of few."""
    pairs = files({(0, 1): 0.9, (0, 2): 0.9, (2, 3): 0.9})

    def choose(members):
        return (list(members).index(0), "it") if len(members) == 4 else (len(members) - 1, "the last")

    found = near_duplicates(pairs, apart(4), least=LEAST, choose=choose)
    assert found[0].members[found[0].kept] == 0 and 0 not in found[0].going


def test_twenty_thousand_copies_of_one_picture_are_one_group():
    """Each has 32 neighbours at most, so that most were not compared with the one that stays."""
    count, k = 20_000, 8
    i = np.repeat(np.arange(count - k), k)
    j = i + np.tile(np.arange(1, k + 1), count - k)
    ones = np.ones(len(i))
    pairs = Pairs(i, j, ones, 0.95 * ones, ones.astype(int), np.full(len(i), SAME_FILE))
    compared = []

    def score(a, b, turn):
        compared.append(len(a))
        return np.full(len(a), 0.9)

    began = time.process_time()
    descriptors = np.tile(at(10), (count, 1))
    [group] = near_duplicates(pairs, descriptors, least=LEAST, choose=first, measure=Measure(score, 0.8))
    assert len(group.members) == count and len(group.going) == count - 1
    assert sum(compared) <= count and time.process_time() - began < 20


# --- One folder against another


def found_elsewhere(pairs, count, own, covers=lambda kept, other: True):
    return matches(pairs, count, own, choose=first, covers=covers)


def test_each_picture_has_what_it_is_among_the_others():
    """0 and 1 against 2 to 5: pairs within one folder do not count."""
    pairs = files({(0, 1): 0.99, (0, 3): 0.9, (0, 4): 0.95, (3, 4): 0.99, (1, 5): 0.7})
    pairs.grade[-1] = SAME_MOMENT
    found = found_elsewhere(pairs, 6, 2)
    assert [(group.grade, group.members) for group in found] == [
        (SAME_FILE, (0, 3, 4)),
        (SAME_MOMENT, (1, 5)),
    ]
    assert found[0].similarities == pytest.approx([0.95, 0.9, 0.95])
    assert [(group.members[group.kept], group.reason) for group in found] == [
        (3, "the first"), (1, "no copy of it is there"),
    ]  # fmt: skip
    assert [group.going for group in found] == [(0,), ()]  # another frame is no reason to go


def test_a_picture_goes_only_for_a_copy_that_is_as_good():
    pairs = files({(0, 2): 0.9, (0, 3): 0.95, (1, 2): 0.9})
    found = found_elsewhere(pairs, 4, 2, covers=lambda kept, other: kept == 3)
    assert [(group.members, group.going, group.members[group.kept]) for group in found] == [
        ((0, 2, 3), (0,), 3), ((1, 2), (), 1),
    ]  # fmt: skip
    assert found[1].reason == "no copy there is as good"


def test_a_copy_elsewhere_counts_more_than_the_same_moment():
    pairs = files({(0, 1): 0.8, (0, 2): 0.99})
    pairs.grade[1] = SAME_MOMENT
    [group] = found_elsewhere(pairs, 3, 1)
    assert (group.grade, group.members) == (SAME_FILE, (0, 1))


def test_a_picture_that_is_like_two_gives_them_no_group_of_their_own():
    pairs = files({(0, 2): 0.9, (1, 2): 0.95})
    assert [group.members for group in found_elsewhere(pairs, 3, 2)] == [(1, 2), (0, 2)]
