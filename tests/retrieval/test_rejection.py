"""The threshold below which queries are rejected, what it accepts of others, and their intervals."""

import numpy as np
import pytest
from support import one_line_error

from mgkit.metrics import threshold_at
from mgkit.retrieval.rejection import rejection


def drawn(seed, *, objects=50, views=4, apart=3.0):
    """Scores of queries with an answer and, lower ones, of queries without; views of an object are alike."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(2 * objects), views)
    answered = groups < objects
    best = rng.normal(size=2 * objects)[groups] + 0.3 * rng.normal(size=len(groups)) + apart * answered
    return best, answered & (rng.random(len(groups)) < 0.9), answered, groups


@pytest.mark.parametrize("objects, rate", [(19, 0.05), (40, 0.05), (50, 0.2)])
def test_the_share_that_others_accept_is_at_most_what_was_asked_for(objects, rate):
    """On average over draws, of one view an object: a conformal threshold of the other objects."""
    draws = [drawn(seed, objects=objects, views=1) for seed in range(200)]
    rates = [rejection(*draw, false_rate=rate).found_rate for draw in draws]
    assert rate / 2 < np.mean(rates) < max(rate, 1 / (objects * 19 // 20 + 1)) + 0.01


def test_views_of_one_object_are_never_on_both_sides():
    """Its views are equal, and those of others lower: learned on one of them, the others were rejected."""
    best = np.repeat([0.9, 0.5, 0.4, 0.3], 4)
    answered, groups = np.repeat([False, False, False, True], 4), np.repeat(np.arange(4), 4)
    found = rejection(best, answered, answered, groups, false_rate=0.05)
    assert found.found_rate == 4 / 12


def test_rates_are_those_of_the_scores():
    best, right, answered, groups = drawn(0)
    found = rejection(best, right, answered, groups, false_rate=0.05)
    assert (best[~answered] >= found.threshold).mean() <= 0.05
    assert found.right_rate == ((best >= found.threshold) & right)[answered].mean()
    pairs = best[answered][:, None] > best[~answered][None]
    assert found.area == pytest.approx(pairs.mean())


def test_scores_in_float32_are_not_rounded_to_the_threshold():
    best, right, answered, groups = drawn(3)
    one = rejection(best.astype(np.float32), right, answered, groups, false_rate=0.1)
    assert one.accepted[~answered].sum() == int(0.1 * 201) - 1


def test_the_curve_holds_every_threshold():
    best, right, answered, groups = drawn(1, objects=5)
    found = rejection(best, right, answered, groups, false_rate=0.1)
    false, accepted, identified = found.roc()
    assert false[0] == accepted[0] == 0 and false[-1] == accepted[-1] == 1
    assert identified[-1] == right[answered].mean()
    for t, score in enumerate(sorted(set(best.tolist()), reverse=True), start=1):
        assert false[t] == (best[~answered] >= score).mean()
        assert identified[t] == (best[answered & right] >= score).sum() / answered.sum()


def test_intervals_are_over_objects_not_over_their_views():
    """Four views of an object tell hardly more than one."""
    best, right, answered, groups = drawn(2)
    together = rejection(best, right, answered, groups, false_rate=0.05).right_interval
    each = rejection(best, right, answered, np.arange(len(groups)), false_rate=0.05).right_interval
    assert np.diff(together) > np.diff(each) > 0


def test_intervals_of_the_threshold_hold_the_true_one():
    true = threshold_at(np.sort(drawn(99, objects=20_000, views=1)[0][20_000:]), 0.1)
    intervals = [rejection(*drawn(seed), false_rate=0.1).threshold_interval for seed in range(40)]
    assert np.mean([low <= true <= high for low, high in intervals]) > 0.8


def test_of_one_object_nothing_is_known_about_others():
    best, answered = np.array([0.9, 0.2, 0.3]), np.array([True, False, False])
    found = rejection(best, answered, answered, np.array([0, 1, 1]), false_rate=0.05)
    assert np.isnan(found.found_rate) and np.isnan(found.found_interval).all()


@pytest.mark.parametrize("answered", [[True, True], [False, False]])
def test_both_kinds_of_query_are_needed(answered):
    with one_line_error(ValueError, "without"):
        rejection(np.ones(2), np.ones(2, bool), np.array(answered), np.arange(2), false_rate=0.05)
