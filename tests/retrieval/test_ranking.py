"""Re-rankings by name are the functions of `rerank`, with as many neighbours as there are."""

import typing

import numpy as np
import pytest

from mgkit.config import Reranking
from mgkit.retrieval.ranking import RERANKED, InnerProducts, Scores, reranked
from mgkit.retrieval.rerank import alpha_query_expansion, database_augmentation, diffusion, k_reciprocal

OWN = np.array([3, -1, 0])


def rows(count, seed=0):
    found = np.random.default_rng(seed).normal(size=(count, 6))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def plain(count=30):
    database = rows(count)
    return InnerProducts(np.stack([database[3 % count], rows(1, 1)[0], database[0]]), database)


def test_every_name_in_a_config_is_a_re_ranking():
    assert set(typing.get_args(Reranking)) == set(RERANKED)


def test_re_rankings_are_the_functions():
    before, k = plain(), 2
    queries, database = before.queries, before.database
    mean = reranked("average_qe", before, OWN, k=k)
    np.testing.assert_array_equal(mean.queries, alpha_query_expansion(queries, database, k, 0.0, own=OWN))
    weighted = reranked("alpha_qe", before, OWN, k=k)
    np.testing.assert_array_equal(weighted.queries, alpha_query_expansion(queries, database, k, 3.0, own=OWN))
    assert weighted.database is database
    augmented = reranked("dba", before, OWN, k=k)
    np.testing.assert_array_equal(augmented.database, database_augmentation(database, k, 3.0))
    distances = k_reciprocal(queries, database, 6, 2, own=OWN)
    np.testing.assert_array_equal(reranked("k_reciprocal", before, OWN, k=k).scores, -distances)
    diffused = diffusion(queries, database, 6, query_k=2, alpha=2 / 3, own=OWN)
    np.testing.assert_array_equal(reranked("diffusion", before, OWN, k=k).scores, diffused)


@pytest.mark.parametrize("method", RERANKED)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_small_databases_are_re_ranked(method, count):
    own = np.minimum(OWN, count - 1)
    own[0] = 3 % count
    found = reranked(method, plain(count), own, k=4)
    scores, order = found.nearest(np.arange(3), count)
    assert scores.shape == order.shape == (3, count) and np.isfinite(scores).all()


def test_large_scores_are_kept_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("mgkit.features.MOST_IN_MEMORY", 0)
    before = plain()
    scores = Scores.collected(before.blocks(), (3, 30))
    assert isinstance(scores.scores, np.memmap)
    for ours, theirs in zip(scores.nearest(np.arange(3), 5), before.nearest(np.arange(3), 5), strict=True):
        np.testing.assert_array_equal(ours, theirs)
