"""Nearest neighbours against sorting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgkit.search import top_k


def rows(n, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    queries=st.integers(1, 9), images=st.integers(1, 20), dim=st.integers(1, 6), chunk=st.integers(1, 10),
    seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
def test_top_k_is_the_start_of_the_sorted_list(queries, images, dim, chunk, seed, data):
    q, x = rows(queries, dim, seed), rows(images, dim, seed + 100)
    k = data.draw(st.integers(1, images))
    scores, indices = top_k(q, x, k=k, chunk=chunk)
    assert scores.shape == indices.shape == (queries, k)
    for i in range(queries):
        similarity = [float(sum(a * b for a, b in zip(q[i], row, strict=True))) for row in x]
        np.testing.assert_allclose(scores[i], sorted(similarity, reverse=True)[:k], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores[i], [similarity[j] for j in indices[i]], rtol=1e-4, atol=1e-5)
        assert len(set(indices[i].tolist())) == k


def test_each_image_is_nearest_to_itself():
    x = rows(30, 8)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    scores, indices = top_k(x, x, k=1, chunk=7)
    assert indices[:, 0].tolist() == list(range(30))
    np.testing.assert_allclose(scores, 1, rtol=1e-5)


@pytest.mark.parametrize("k", [0, -1, 6])
def test_k_must_fit_the_database(k):
    with pytest.raises(ValueError, match="k must lie between 1 and the 5 images"):
        top_k(rows(2, 3), rows(5, 3), k=k)


@pytest.mark.parametrize(("queries", "database"), [((2, 3), (5, 4)), ((3,), (5, 3)), ((2, 3), (3,))])
def test_descriptors_must_have_one_dimension(queries, database):
    with pytest.raises(ValueError, match="must be"):
        top_k(np.zeros(queries, np.float32), np.zeros(database, np.float32), k=1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["queries", "database"])
def test_descriptors_that_are_not_finite_are_named(value, name):
    arrays = {"queries": rows(4, 3), "database": rows(4, 3)}
    arrays[name][2, 1] = value
    with pytest.raises(ValueError, match=f"1 descriptors of the {name} are not finite, the first in row 2"):
        top_k(**arrays, k=1)
