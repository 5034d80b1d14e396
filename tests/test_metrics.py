"""Measures against walks down a ranked list, ties against all their orders, bootstrap against a loop."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgkit.metrics import (
    average_precision,
    average_precision_at,
    bootstrap_interval,
    bootstrap_mean,
    mean_precision_recall,
    micro_average_precision,
    positive_ranks,
    precision_at,
    precision_recall_curve,
    recall_at,
    recall_at_precision,
    target_ranks,
    threshold_at,
    topk_accuracy,
    ukbench_score,
)


def accuracy_by_counting(logits, target, k):
    """A row counts if fewer than k other classes score as high as its target."""
    hits = 0
    for row, own in zip(logits.tolist(), target.tolist(), strict=True):
        rivals = sum(not score < row[own] for j, score in enumerate(row) if j != own)
        hits += rivals < k
    return hits / len(target)


def area_by_walking(ranks, n_positives):
    """Walk down the ranking and add a trapezoid between precision before and after each positive."""
    area, found = 0.0, 0
    for position in range(max(ranks, default=-1) + 1):
        if position in ranks:
            before = 1.0 if position == 0 else found / position
            found += 1
            area += (before + found / (position + 1)) / 2 * (1 / n_positives)
    return area


scores = st.sampled_from([-1.0, 0.0, 0.5, 0.5, 2.0, math.nan, math.inf, -math.inf])


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 7))
def test_topk_counts_ties_and_nan_against_the_target(data, rows, classes):
    logits = torch.tensor([[data.draw(scores) for _ in range(classes)] for _ in range(rows)])
    target = torch.tensor([data.draw(st.integers(0, classes - 1)) for _ in range(rows)])
    ks = (1, 2, 5)
    expected = [accuracy_by_counting(logits, target, min(k, classes)) for k in ks if k < classes]
    assert topk_accuracy(logits, target, ks)[: len(expected)] == pytest.approx(expected)
    assert topk_accuracy(logits, target, (classes, classes + 9)) == [1.0, 1.0]


def test_topk_on_distinct_scores_is_that_of_torch():
    logits = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    target = torch.arange(50) % 12
    expected = [(logits.topk(k).indices == target[:, None]).any(1).double().mean().item() for k in (1, 3, 5)]
    assert topk_accuracy(logits, target, (1, 3, 5)) == pytest.approx(expected)


def test_constant_and_nan_scores_are_never_right():
    target = torch.zeros(3, dtype=torch.int64)
    assert topk_accuracy(torch.zeros(3, 4), target) == [0.0, 1.0]  # 5 > 4 classes
    nan = torch.full((3, 4), math.nan)
    assert topk_accuracy(nan, target, (1, 3)) == [0.0, 0.0]
    assert target_ranks(nan, target).tolist() == [3, 3, 3]
    assert topk_accuracy(torch.zeros(3, 1), target, (1,)) == [1.0]


@pytest.mark.parametrize(("rows", "targets"), [(0, 0), (3, 2), (0, 2)])
def test_topk_rejects_no_rows_and_unequal_rows(rows, targets):
    with pytest.raises(ValueError, match="must be"):
        topk_accuracy(torch.zeros(rows, 4), torch.zeros(targets, dtype=torch.int64))


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 40), max_size=8), st.integers(0, 4), st.randoms())
def test_average_precision_is_the_area_walked(ranks, missing, random):
    n_positives = max(1, len(ranks) + missing)
    shuffled = random.sample(sorted(ranks), len(ranks))
    ours = average_precision(shuffled, n_positives)
    assert ours == pytest.approx(area_by_walking(ranks, n_positives), abs=1e-12)
    assert 0 <= ours <= 1


@pytest.mark.parametrize("case", range(6))
def test_average_precision_matches_the_reference(pieces, case):
    ours = average_precision(pieces[f"ap{case}__ranks"], int(pieces[f"ap{case}__positives"]))
    assert ours == pytest.approx(float(pieces[f"ap{case}__value"]), rel=1e-9)


def test_average_precision_by_hand():
    assert average_precision([0, 1, 2], 3) == 1.0
    assert average_precision([1], 1) == 0.25  # precision rises from 0 to 1/2
    assert average_precision([0], 2) == 0.5  # the other was never found
    assert average_precision([], 3) == 0.0


@pytest.mark.parametrize(
    ("ranks", "n_positives"), [([], 0), ([0], 0), ([0, 1], 1), ([1, 1], 2), ([-1], 1), ([], -1)]
)
def test_impossible_ranks_are_rejected(ranks, n_positives):
    with pytest.raises(ValueError):
        average_precision(ranks, n_positives)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sets(st.integers(0, 30), min_size=4, max_size=4).map(sorted), min_size=1, max_size=6))
def test_ukbench_counts_the_first_four(ranks):
    hits = 0
    for of_query in ranks:
        for rank in of_query:
            hits += rank in (0, 1, 2, 3)
    assert ukbench_score(ranks) == pytest.approx(hits / len(ranks))


def test_ukbench_bounds_and_no_query():
    assert ukbench_score([[0, 1, 2, 3]] * 4) == 4.0
    assert ukbench_score(np.array([[0, 4, 5, 6]])) == 1.0
    with pytest.raises(ValueError, match="at least one query"):
        ukbench_score([])


ranked_values = st.lists(st.integers(0, 4), min_size=1, max_size=12)


def walked_ranks(values, positives, junk=()):
    """Take the best remaining image repeatedly, negatives first among ties; note the positives' ranks."""
    left, ranks, position = set(range(len(values))) - set(junk), [], 0
    while left:
        best = max(values[i] for i in left)
        tied = [i for i in left if values[i] == best]
        taken = next((i for i in tied if i not in positives), tied[0])
        if taken in positives:
            ranks.append(position)
        left.remove(taken)
        position += 1
    return ranks


def orders_within_ties(values):
    """Every ranking by falling value, whichever way equal values are put."""
    groups = [[i for i in range(len(values)) if values[i] == v] for v in sorted(set(values), reverse=True)]
    for orders in itertools.product(*map(itertools.permutations, groups)):
        yield list(itertools.chain(*orders))


def draw_roles(data, count):
    """Disjoint positives (at least one) and junk among `count` images."""
    roles = data.draw(st.lists(st.sampled_from("+-j"), min_size=count, max_size=count))
    roles[data.draw(st.integers(0, count - 1))] = "+"
    return [i for i in range(count) if roles[i] == "+"], [i for i in range(count) if roles[i] == "j"]


@settings(max_examples=100, deadline=None)
@given(ranked_values, st.sampled_from([np.float32, np.float64, np.int64]), st.data())
def test_positive_ranks_are_those_of_a_walk_without_junk(values, dtype, data):
    positives, junk = draw_roles(data, len(values))
    ranks = positive_ranks(np.array(values, dtype), positives, junk=junk)
    assert ranks.tolist() == walked_ranks(values, positives, junk)
    # Junk that is removed beforehand, and images in another order, change nothing.
    kept = [i for i in range(len(values)) if i not in junk]
    without = positive_ranks(np.array(values, dtype)[kept], [kept.index(i) for i in positives])
    assert without.tolist() == ranks.tolist()
    order = data.draw(st.permutations(range(len(values))))
    moved = positive_ranks(
        np.array(values, dtype)[order],
        [order.index(i) for i in positives],
        junk=[order.index(i) for i in junk],
    )
    assert moved.tolist() == ranks.tolist()


def test_positive_ranks_by_hand():
    scores = [0.9, 0.8, 0.8, 0.8, 0.1]
    assert positive_ranks(scores, [2]).tolist() == [3]  # after the two that score the same
    assert positive_ranks(scores, [2], junk=[0, 1]).tolist() == [1]
    assert positive_ranks(scores, [2], junk=[1, 1, 4]).tolist() == [2]
    assert positive_ranks(scores, [4, 0]).tolist() == [0, 4]
    assert positive_ranks(scores, []).tolist() == []
    assert positive_ranks([], []).tolist() == []
    assert positive_ranks(np.zeros(4), [0, 1, 2, 3]).tolist() == [0, 1, 2, 3]


def test_positive_ranks_of_many_images_are_those_of_a_full_sort():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(50_000).astype(np.float32).round(3)  # a few thousand different values
    positives, junk = np.split(rng.permutation(50_000)[:1300], [300])
    wrong = ~np.isin(np.arange(50_000), positives)
    order = np.lexsort((~wrong, -scores))
    order = order[~np.isin(order, junk)]
    expected = np.flatnonzero(np.isin(order, positives))
    assert np.array_equal(positive_ranks(scores, positives, junk=junk), expected)


@settings(max_examples=40, deadline=None)
@given(ranked_values, st.integers(1, 4), st.data())
def test_duplicates_of_a_positive_that_are_negative_come_before_it(values, copies, data):
    positive = data.draw(st.integers(0, len(values) - 1))
    alone = positive_ranks(np.array(values, float), [positive])[0]
    doubled = values + [values[positive]] * copies
    assert positive_ranks(np.array(doubled, float), [positive]).tolist() == [alone + copies]
    all_right = [positive, *range(len(values), len(doubled))]
    assert positive_ranks(np.array(doubled, float), all_right).tolist() == list(
        range(alone, alone + copies + 1)
    )


@pytest.mark.parametrize(
    ("scores", "positives", "junk", "message"),
    [
        ([0.1, math.nan], [0], [], "scores must be finite numbers: nan at index 1 is not finite"),
        ([math.inf, 0.0], [1], [], "scores must be finite numbers: inf at index 0 is not finite"),
        ([[0.1, 0.2]], [0], [], "scores must have one dimension"),
        ([0.1, 0.2], [2], [], "positives must be indices of the 2 scores, got 2"),
        ([0.1, 0.2], [-1], [], "positives must be indices of the 2 scores, got -1"),
        ([0.1, 0.2], [0], [5], "junk must be indices of the 2 scores, got 5"),
        ([0.1, 0.2], [0, 1, 0], [], "positives must be distinct, got 0 more than once"),
        ([0.1, 0.2, 0.3], [0, 1], [2, 1], "image 1 is in both positives and junk"),
        ([0.1, 0.2], [True, False], [], "positives must be integers"),
        ([0.1, 0.2], [0.0], [], "positives must be integers"),
    ],
)
def test_positive_ranks_reject_what_cannot_be_ranked(scores, positives, junk, message):
    with pytest.raises(ValueError) as error:
        positive_ranks(np.array(scores), np.array(positives), junk=np.array(junk))
    assert message in str(error.value) and "\n" not in str(error.value)


def rectangles_by_walking(ranks, n_positives):
    """Walk down the ranking; each positive adds a strip: its recall step times the precision there."""
    area, found = Fraction(0), 0
    for position in range(max(ranks, default=-1) + 1):
        if position in ranks:
            found += 1
            area += Fraction(1, n_positives) * Fraction(found, position + 1)
    return area


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 40), max_size=8), st.integers(0, 4))
def test_rectangle_rule_is_the_area_walked(ranks, missing):
    n_positives = max(1, len(ranks) + missing)
    ours = average_precision(list(ranks), n_positives, rule="rectangle")
    assert ours == pytest.approx(float(rectangles_by_walking(ranks, n_positives)), abs=1e-12)
    assert average_precision(list(ranks), n_positives) <= ours + 1e-12  # precision rises at a positive


def test_rectangle_rule_by_hand():
    assert average_precision([0, 2], 2, rule="rectangle") == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([1], 2, rule="rectangle") == 0.25
    with pytest.raises(ValueError, match="rule must be trapezoid or rectangle, got 'simpson'"):
        average_precision([0], 1, rule="simpson")


def test_float_ranks_are_rejected():
    with pytest.raises(ValueError, match="ranks must be integers"):
        average_precision([0.5], 1)


def precision_by_walking(ranks, k):
    """Look at one image after another until k are seen or all positives are found."""
    seen = found = 0
    while seen < k and found < len(ranks):
        found += seen in ranks
        seen += 1
    return found / seen


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 15), min_size=1, max_size=8), st.integers(1, 20))
def test_precision_at_k_is_that_of_a_walk(ranks, k):
    assert precision_at(list(ranks), k) == precision_by_walking(ranks, k)


def test_precision_at_k_by_hand():
    assert precision_at([0], 10) == 1.0  # nothing more to find
    assert precision_at([0, 3], 10) == 0.5
    assert precision_at([0, 30], 10) == 0.1
    assert precision_at([10], 10) == 0.0
    assert precision_at([9], 10) == 0.1


@pytest.mark.parametrize(
    ("ranks", "k", "message"),
    [
        ([], 5, "ranks must hold at least one rank"),
        ([0], 0, "k must be at least 1, got 0"),
        ([1, 1], 5, "distinct"),
        ([-1], 5, ">= 0"),
    ],
)
def test_precision_at_rejects(ranks, k, message):
    with pytest.raises(ValueError, match=message):
        precision_at(ranks, k)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(1, 6), st.data())
def test_a_query_is_measured_in_the_worst_order_within_ties(values, k, data):
    positives, junk = draw_roles(data, len(values))
    ranks = positive_ranks(np.array(values, float), positives, junk=junk)
    possible = set()
    for order in orders_within_ties(values):
        kept = [i for i in order if i not in junk]
        possible.add(tuple(position for position, i in enumerate(kept) if i in positives))
    for measure, oracle in (
        (average_precision(ranks, len(positives)), lambda r: area_by_walking(r, len(positives))),
        (
            average_precision(ranks, len(positives), rule="rectangle"),
            lambda r: float(rectangles_by_walking(r, len(positives))),
        ),
        (precision_at(ranks, k), lambda r: precision_by_walking(r, k)),
    ):
        assert measure == pytest.approx(min(map(oracle, possible)), abs=1e-12)


predictions = st.lists(st.tuples(st.integers(-2, 3), st.booleans()), max_size=12)


def as_arrays(pairs):
    return np.array([s for s, _ in pairs], float), np.array([c for _, c in pairs], bool)


def worst_list(pairs):
    """Right or wrong, down the pooled ranking: falling scores, the wrong ones first among equals."""
    return [
        c for s in sorted({s for s, _ in pairs}, reverse=True) for c in sorted(c for t, c in pairs if t == s)
    ]


def points_walked(ranking, n_positives):
    """Exact (recall, precision) after each position of a list of right or wrong."""
    found = 0
    for position, is_right in enumerate(ranking, 1):
        found += is_right
        yield Fraction(found, n_positives), Fraction(found, position)


def micro_walked(ranking, n_positives):
    area, last = Fraction(0), Fraction(0)
    for recall, precision in points_walked(ranking, n_positives):
        area += (recall - last) * precision
        last = recall
    return area


def recall_walked(ranking, n_positives, precision):
    reached = [r for r, p in points_walked(ranking, n_positives) if p >= precision]
    return max(reached, default=Fraction(0))


@settings(max_examples=100, deadline=None)
@given(predictions, st.integers(0, 3), st.sampled_from(["0", "0.5", "0.6", "0.75", "0.9", "1"]), st.data())
def test_pooled_measures_are_those_of_a_walk(pairs, missing, precision, data):
    n_positives = max(1, sum(c for _, c in pairs) + missing)
    scores, correct = as_arrays(pairs)
    ranking = worst_list(pairs)
    micro = micro_average_precision(scores, correct, n_positives)
    assert micro == pytest.approx(float(micro_walked(ranking, n_positives)), abs=1e-12)
    recall = recall_at_precision(scores, correct, n_positives, float(precision))
    assert recall == float(recall_walked(ranking, n_positives, Fraction(precision)))
    curve = precision_recall_curve(scores, correct, n_positives)
    expected = [(float(r), float(p)) for r, p in points_walked(ranking, n_positives)]
    assert list(zip(*map(np.ndarray.tolist, curve), strict=True)) == expected
    # Another order of the predictions: exactly the same.
    order = np.array(data.draw(st.permutations(range(len(pairs)))), dtype=int)
    assert micro_average_precision(scores[order], correct[order], n_positives) == micro
    assert recall_at_precision(scores[order], correct[order], n_positives, float(precision)) == recall
    for ours, moved in zip(
        curve, precision_recall_curve(scores[order], correct[order], n_positives), strict=True
    ):
        assert np.array_equal(ours, moved)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6), st.integers(0, 2))
def test_pooled_predictions_are_measured_in_the_worst_order_within_ties(pairs, missing):
    n_positives = max(1, sum(c for _, c in pairs) + missing)
    rankings = {tuple(pairs[i][1] for i in order) for order in orders_within_ties([s for s, _ in pairs])}
    scores, correct = as_arrays(pairs)
    worst = min(micro_walked(r, n_positives) for r in rankings)
    assert micro_average_precision(scores, correct, n_positives) == pytest.approx(float(worst), abs=1e-12)
    for precision in (0.5, 0.9):
        worst = min(recall_walked(r, n_positives, Fraction(str(precision))) for r in rankings)
        assert recall_at_precision(scores, correct, n_positives, precision) == float(worst)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 3)), max_size=10), st.data())
def test_a_weight_is_as_many_copies(triples, data):
    scores, correct = as_arrays([t[:2] for t in triples])
    weights = np.array([t[2] for t in triples], dtype=np.int64)
    n_positives = int(weights[correct].sum()) + data.draw(st.integers(1, 3))
    copied = np.repeat(scores, weights), np.repeat(correct, weights)
    order = np.array(data.draw(st.permutations(range(len(triples)))), dtype=int)
    for measure in (micro_average_precision, recall_at_precision):
        expected = measure(*copied, n_positives)
        assert measure(scores, correct, n_positives, weights=weights) == expected
        assert measure(scores[order], correct[order], n_positives, weights=weights[order]) == expected


@settings(max_examples=40, deadline=None)
@given(ranked_values, st.integers(0, 2), st.data())
def test_micro_average_precision_of_one_query_is_its_average_precision(values, missing, data):
    positives, _ = draw_roles(data, len(values))
    correct = np.isin(np.arange(len(values)), positives)
    scores, n_positives = np.array(values, float), len(positives) + missing
    alone = average_precision(positive_ranks(scores, positives), n_positives, rule="rectangle")
    assert micro_average_precision(scores, correct, n_positives) == pytest.approx(alone, abs=1e-12)


def test_pooled_measures_by_hand():
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    correct = np.array([True, False, True, True])
    assert micro_average_precision(scores, correct, 4) == pytest.approx((1 + 2 / 3 + 3 / 4) / 4)
    assert recall_at_precision(scores, correct, 4) == 0.25
    assert recall_at_precision(scores, correct, 4, 0.75) == 0.75  # reached again after it was lost
    assert recall_at_precision(np.zeros(4), correct, 4) == 0.0  # the wrong one first: 0, 1/2, 2/3, 3/4
    assert recall_at_precision(np.zeros(4), correct, 4, 0.7) == 0.75
    ten = np.arange(10) != 9
    assert recall_at_precision(-np.arange(10.0), ten, 9) == 1.0
    assert (
        recall_at_precision(np.arange(10.0), ten, 9, 0.9) == 1.0
    )  # 9 of 10 is 0.9, with no rounding in between


def test_no_predictions_and_nothing_to_find():
    nothing = np.zeros(0), np.zeros(0, bool)
    assert micro_average_precision(*nothing, 3) == recall_at_precision(*nothing, 3) == 0.0
    assert [len(values) for values in precision_recall_curve(*nothing, 3)] == [0, 0]
    wrong = np.array([0.5, 0.2]), np.zeros(2, bool)
    assert micro_average_precision(*wrong, 3) == recall_at_precision(*wrong, 3) == 0.0
    assert math.isnan(micro_average_precision(*wrong, 0)) and math.isnan(recall_at_precision(*wrong, 0))
    with pytest.raises(ValueError, match="n_positives must be at least 1"):
        precision_recall_curve(*wrong, 0)


@pytest.mark.parametrize("measure", [micro_average_precision, recall_at_precision])
@pytest.mark.parametrize(
    ("scores", "correct", "n_positives", "weights", "message"),
    [
        (
            [0.1, math.nan],
            [True, True],
            2,
            None,
            "scores must be finite numbers: nan at index 1 is not finite",
        ),
        (
            [0.1, -math.inf],
            [True, True],
            2,
            None,
            "scores must be finite numbers: -inf at index 1 is not finite",
        ),
        ([0.1], [True, True], 2, None, "correct must be bool [1] like the scores, got bool [2]"),
        ([0.1, 0.2], [1, 0], 2, None, "correct must be bool [2] like the scores, got int64 [2]"),
        ([0.1, 0.2], [True, True], 1, None, ">= the 2 correct predictions, got 1"),
        ([0.1, 0.2], [True, True], 4, [2, 3], ">= the 5 correct predictions, got 4"),
        ([0.1, 0.2], [True, True], -1, None, ">= the 2 correct predictions, got -1"),
        ([0.1, 0.2], [True, True], 9, [1], "weights must be 2 integers >= 0"),
        ([0.1, 0.2], [True, True], 9, [1, -1], "weights must be 2 integers >= 0"),
        ([0.1, 0.2], [True, True], 9, [1.0, 0.5], "weights must be integers"),
    ],
)
def test_pooled_measures_reject(measure, scores, correct, n_positives, weights, message):
    weights = None if weights is None else np.array(weights)
    with pytest.raises(ValueError) as error:
        measure(np.array(scores), np.array(correct), n_positives, weights=weights)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("precision", [-0.1, 1.1, 90, math.nan])
def test_a_precision_outside_0_and_1_is_rejected(precision):
    with pytest.raises(ValueError, match="precision must be in 0..1"):
        recall_at_precision(np.zeros(1), np.ones(1, bool), 1, precision)


def interpolated_walked(ranks, n_positives, recall):
    """The highest precision at any positive that has this recall or more."""
    at = [(Fraction(j, n_positives), Fraction(j, rank + 1)) for j, rank in enumerate(sorted(ranks), 1)]
    return max((precision for reached, precision in at if reached >= recall), default=Fraction(0))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sets(st.integers(0, 12), max_size=5), st.integers(0, 3)), min_size=1, max_size=4),
    st.sampled_from([2, 3, 11, 31]),
)
def test_mean_precision_recall_is_that_of_a_walk(queries, points):
    queries = [(ranks, len(ranks) + missing) for ranks, missing in queries]
    ranks_per_query, numbers = [list(ranks) for ranks, _ in queries], [n for _, n in queries]
    asking = [(ranks, n) for ranks, n in queries if n]
    if not asking:
        with pytest.raises(ValueError, match="at least one query with positives"):
            mean_precision_recall(ranks_per_query, numbers, points)
        return
    recall, precision = mean_precision_recall(ranks_per_query, numbers, points)
    grid = [Fraction(i, points - 1) for i in range(points)]
    assert recall.tolist() == [float(r) for r in grid]
    expected = [
        float(sum(interpolated_walked(ranks, n, r) for ranks, n in asking) / len(asking)) for r in grid
    ]
    assert precision == pytest.approx(expected, abs=1e-12)
    assert (np.diff(precision) <= 1e-12).all()


def test_mean_precision_recall_by_hand():
    recall, precision = mean_precision_recall([[0, 3], [], [1]], [2, 0, 2])
    assert recall.shape == precision.shape == (101,)
    assert precision[0] == precision[50] == (1 + 0.5) / 2  # up to half of the positives
    assert precision[51] == precision[100] == (0.5 + 0) / 2  # the third query never finds its second


@pytest.mark.parametrize(
    ("ranks", "n_positives", "points", "message"),
    [
        ([], [], 101, "at least one query with positives"),
        ([[0]], [1], 1, "points must be at least 2"),
        ([[0]], [1, 1], 101, "ranks of 1 queries but n_positives of 2"),
        ([[0, 1]], [1], 101, "n_positives must be >= 1 and >= the 2 ranks, got 1"),
        ([[0]], [0], 101, "n_positives must be >= 1 and >= the 1 ranks, got 0"),
    ],
)
def test_mean_precision_recall_rejects(ranks, n_positives, points, message):
    with pytest.raises(ValueError, match=message):
        mean_precision_recall(ranks, n_positives, points)


def quantile_by_hand(values, share):
    """Linear between the two neighbours in the sorted list."""
    values, place = sorted(values), share * (len(values) - 1)
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12),
    st.sampled_from([0.5, 0.9, 0.95]),
    st.integers(1, 60),
    st.integers(0, 5),
)
def test_bootstrap_is_a_plain_loop_over_the_same_draws(values, level, samples, seed):
    drawn = []

    def mean_of_drawn(counts):
        drawn.append([q for q, count in enumerate(counts.tolist()) for _ in range(count)])
        return float(np.mean([values[q] for q in drawn[-1]]))

    interval = bootstrap_interval(mean_of_drawn, len(values), level=level, samples=samples, seed=seed)
    assert len(drawn) == samples
    assert all(len(queries) == len(values) for queries in drawn)
    means = [sum(values[q] for q in queries) / len(values) for queries in drawn]
    shares = (1 - level) / 2, 1 - (1 - level) / 2
    assert interval == pytest.approx([quantile_by_hand(means, share) for share in shares], abs=1e-12)
    assert bootstrap_mean(values, level=level, samples=samples, seed=seed) == pytest.approx(
        interval, abs=1e-12
    )


def test_bootstrap_of_a_pooled_measure_pools_the_queries_drawn():
    rng = np.random.default_rng(0)
    query = rng.integers(6, size=40)  # whose prediction it is
    scores, correct = rng.integers(0, 8, 40) / 8, rng.random(40) < 0.4
    positives = np.bincount(query[correct], minlength=6) + 1

    def of_copies(counts):
        rows = np.concatenate([np.flatnonzero(query == q) for q in range(6) for _ in range(counts[q])])
        return micro_average_precision(
            scores[rows], correct[rows], sum(positives[q] * counts[q] for q in range(6))
        )

    def of_weights(counts):
        return micro_average_precision(scores, correct, counts @ positives, weights=counts[query])

    low, high = bootstrap_interval(of_weights, 6, samples=200)
    assert (low, high) == bootstrap_interval(of_copies, 6, samples=200)
    assert low < of_weights(np.ones(6, dtype=int)) < high


def test_draws_are_uniform_with_replacement():
    counts = []
    bootstrap_interval(lambda c: counts.append(c) or 0.0, 5, samples=4000)
    counts = np.array(counts)  # [4000,5]
    assert counts.mean(0) == pytest.approx(np.ones(5), abs=0.09)
    assert counts.var(0) == pytest.approx(
        np.full(5, 0.8), abs=0.14
    )  # of a binomial of 5 draws: 5 * 1/5 * 4/5


def test_interval_is_that_of_known_values():
    """For many normal values the interval is the mean ± 1.96 standard errors and has its nominal coverage."""
    values = np.random.default_rng(1).normal(0.3, 0.2, 2000)
    low, high = bootstrap_mean(values)
    error = values.std() / math.sqrt(2000)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.4 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.4 * error)
    covered = 0
    for trial in range(200):
        low, high = bootstrap_mean(np.random.default_rng(trial).normal(0.3, 0.2, 60), level=0.9, samples=200)
        covered += low <= 0.3 <= high
    assert 0.76 <= covered / 200 <= 0.98


def test_interval_shrinks_with_queries_and_grows_with_the_level():
    values = np.random.default_rng(2).random(4000)
    widths = [np.diff(bootstrap_mean(values[:count]))[0] for count in (40, 400, 4000)]
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(10), rel=0.5)
    assert widths[1] / widths[2] == pytest.approx(math.sqrt(10), rel=0.3)
    narrow, wide = bootstrap_mean(values[:40], level=0.5), bootstrap_mean(values[:40], level=0.99)
    assert wide[0] < narrow[0] < values[:40].mean() < narrow[1] < wide[1]


def test_bootstrap_is_a_function_of_the_seed():
    values = np.random.default_rng(3).random(30)
    assert bootstrap_mean(values) == bootstrap_mean(values) == bootstrap_mean(values, seed=0)
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)


def test_paired_differences_are_surer_than_two_intervals():
    rng = np.random.default_rng(4)
    a = rng.random(100)  # queries differ much among each other, the systems little
    low, high = bootstrap_mean(a + 0.02 + 0.01 * rng.random(100) - a)
    assert 0.02 < low < high < 0.03
    assert np.diff(bootstrap_mean(a))[0] > 0.05


def test_queries_without_positives_are_left_out():
    values = np.array([0.2, math.nan, 0.7, 0.9, math.nan])
    assert bootstrap_mean(values) == bootstrap_mean(values[[0, 2, 3]])
    # A resample in which a pooled measure is undefined is left out too.
    sometimes = bootstrap_interval(lambda counts: 0.5 if counts[0] else math.nan, 4, samples=50)
    assert sometimes == (0.5, 0.5)


def test_one_query_has_no_spread():
    assert bootstrap_mean([0.3]) == (0.3, 0.3)
    assert bootstrap_mean([math.nan, 0.3]) == (0.3, 0.3)
    assert bootstrap_interval(lambda counts: float(counts.sum()), 1) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "queries and samples must be at least 1, got 0 and 1000"),
        ([math.nan], {}, "queries and samples must be at least 1, got 0 and 1000"),
        ([0.5, math.inf], {}, "values must be finite, or NaN"),
        ([0.5], {"samples": 0}, "queries and samples must be at least 1, got 1 and 0"),
        ([0.5], {"level": 0}, "level must be in the open interval (0, 1), got 0"),
        ([0.5], {"level": 1}, "level must be in the open interval (0, 1), got 1"),
        ([0.5], {"level": 95}, "level must be in the open interval (0, 1), got 95"),
        ([0.5], {"level": math.nan}, "level must be in the open interval (0, 1), got nan"),
    ],
)
def test_bootstrap_rejects(values, options, message):
    with pytest.raises(ValueError) as error:
        bootstrap_mean(np.array(values), **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_statistic_that_is_never_defined_is_an_error():
    with pytest.raises(ValueError, match="the statistic is NaN in every resample"):
        bootstrap_interval(lambda counts: math.nan, 3, samples=10)


# --- The first images, and queries without an answer


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 4), st.integers(1, 35))
def test_average_precision_of_the_first_images(ranks, missed, k):
    total = len(ranks) + missed
    precisions = [Fraction(sum(other <= rank for other in ranks), rank + 1) for rank in ranks if rank < k]
    expected = sum(precisions) / min(total, k) if total else 0
    assert average_precision_at(sorted(ranks), total, k) == pytest.approx(float(expected))


def test_whole_groups_are_drawn_for_the_interval_of_a_mean():
    """Of copies of values, as of the values alone; unequal groups as by drawing them one by one."""
    values = np.random.default_rng(0).normal(size=40)
    assert bootstrap_mean(np.repeat(values, 3), groups=np.repeat(np.arange(40), 3)) == pytest.approx(
        bootstrap_mean(values)
    )
    groups = np.array([0, 0, 0, 1, 2, 2, 9])
    rng, own = np.random.default_rng(0), [np.arange(3), np.array([3]), np.array([4, 5]), np.array([6])]
    means = [np.mean(values[np.concatenate([own[g] for g in rng.integers(4, size=4)])]) for _ in range(4000)]
    found = bootstrap_mean(values[:7], groups=groups, samples=4000, seed=1)
    assert found == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.08)


def test_recall_counts_queries_whose_first_answer_is_among_the_first_images():
    assert [recall_at([0, 3, 9, 10], k) for k in (1, 4, 10, 11)] == [0.25, 0.5, 0.75, 1.0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.sampled_from([0.01, 0.05, 0.1, 0.5, 0.95]))
def test_the_threshold_is_just_above_a_score(scores, rate):
    j = max(1, int(Fraction(rate).limit_denominator(1000) * (len(scores) + 1)))
    threshold, border = threshold_at(scores, rate), sorted(scores, reverse=True)[j - 1]
    assert [score >= threshold for score in scores] == [score > border for score in scores]


@pytest.mark.parametrize("count, rate", [(19, 0.05), (39, 0.05), (20, 0.1), (6, 0.05), (99, 0.01)])
def test_a_further_query_reaches_the_threshold_as_often_as_asked_for(count, rate):
    """Over many draws; as often as one of the queries and itself is the first, if these are too few."""
    rng, expected = np.random.default_rng(count), max(int(rate * (count + 1) + 1e-9), 1) / (count + 1)
    reached = [rng.random() >= threshold_at(rng.random(count), rate) for _ in range(20_000)]
    assert abs(np.mean(reached) - expected) < 0.007
    assert expected <= max(rate, 1 / (count + 1)) + 1e-9


@pytest.mark.parametrize(
    "call",
    [
        lambda: average_precision_at([0], 1, 0),
        lambda: recall_at([0], 0),
        lambda: recall_at([], 1),
        lambda: threshold_at([], 0.1),
        lambda: threshold_at([0.5], 1.1),
        lambda: threshold_at([0.5], 0.0),
        lambda: threshold_at([np.nan], 0.1),
    ],
)
def test_measures_of_the_first_images_refuse_what_they_cannot_count(call):
    with pytest.raises(ValueError, match="^[^\n]+$"):
        call()
