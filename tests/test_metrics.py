"""Measures against counting and step-by-step integration; ties, NaN, missing positives."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgkit.metrics import average_precision, positive_ranks, target_ranks, topk_accuracy, ukbench_score


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
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.data())
def test_positive_ranks_are_the_worst_of_any_order(values, data):
    chosen = data.draw(st.sets(st.integers(0, len(values) - 1), min_size=1))
    # Worst case: sort by falling score, and among equals the negatives first.
    order = sorted(range(len(values)), key=lambda i: (-values[i], i in chosen))
    expected = [rank for rank, i in enumerate(order) if i in chosen]
    assert positive_ranks(np.array(values, float), np.array(sorted(chosen))).tolist() == expected
    shuffled = data.draw(st.permutations(range(len(values))))
    moved = np.array([shuffled.index(i) for i in chosen])
    assert positive_ranks(np.array(values, float)[list(shuffled)], moved).tolist() == expected


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
