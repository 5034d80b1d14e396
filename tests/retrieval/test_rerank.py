"""Query expansion and re-ranking against dense matrices and plain loops, written from the papers."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgkit.retrieval import rerank
from mgkit.retrieval.rerank import (
    alpha_query_expansion,
    database_augmentation,
    diffusion,
    diffusion_blocks,
    k_reciprocal,
    k_reciprocal_blocks,
)


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def made_up(n, dim, kind, seed):
    """Descriptors: random, in clusters, or repeated, which tie."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, dim))
    if kind == "repeated":
        x = x[random.integers(0, max(1, n // 3), n)]
    if kind == "clusters":
        x = 2 * x[random.integers(0, max(1, n // 6), n)] + random.standard_normal((n, dim))
    return unit(x)


def products(q, x):
    """All similarities [Q,N] in float64, each summed by itself."""
    return np.array([[(a.astype(float) * b.astype(float)).sum() for b in x] for a in q]).reshape(
        len(q), len(x)
    )


def ranked(scores, without=-1):
    """Rows by falling score [N], ties by row, without one of them."""
    return [int(i) for i in np.argsort(-scores, kind="stable") if i != without]


def a_set(queries, images, dim, kind, seed, known):
    """Queries, database and own: None, of some of the queries, or of all."""
    x = made_up(images, dim, kind, seed)
    q = made_up(queries, dim, kind, seed + 500)
    random = np.random.default_rng(seed)
    own = random.integers(0, images, queries)
    if known == "none":
        if kind == "repeated":  # queries tie with images too
            q[::2] = x[own[::2]]
        return q, x, None
    if known == "some":
        own[random.random(queries) < 0.5] = -1
    q[own >= 0] = x[own[own >= 0]]
    return q, x, own


def rows_of(own, queries):
    return np.full(queries, -1) if own is None else own


sets = dict(
    queries=st.integers(1, 8), images=st.integers(2, 40), dim=st.integers(2, 16),
    kind=st.sampled_from(["random", "clusters", "repeated"]), seed=st.integers(0, 999),
    known=st.sampled_from(["none", "some", "all"]), data=st.data(),
)  # fmt: skip


# --- Expansion


def slow_expansion(q, x, k, alpha, own):
    found = []
    for query, scores, row in zip(q, products(q, x), own, strict=True):
        total = query.astype(float)
        for i in ranked(scores, without=row)[:k]:
            total = total + (max(scores[i], 0) ** alpha) * x[i]
        found.append(total / np.linalg.norm(total))
    return np.array(found)


@settings(max_examples=60, deadline=None)
@given(**sets, alpha=st.sampled_from([0, 1, 3, 0.5]))
def test_alpha_query_expansion(queries, images, dim, kind, seed, known, data, alpha):
    q, x, own = a_set(queries, images, dim, kind, seed, known)
    k = data.draw(st.integers(1, images))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rerank, "GATHERED", data.draw(st.sampled_from([1, 2**20])))
        found = alpha_query_expansion(q, x, k, alpha, own=own)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow_expansion(q, x, k, alpha, rows_of(own, queries)), atol=1e-4)


def test_with_alpha_0_it_is_average_query_expansion():
    q, x = made_up(4, 8, "random", 0), made_up(30, 8, "random", 1)
    nearest = np.argsort(-q @ x.T)[:, :6]
    mean = (q + x[nearest].sum(1)) / 7
    np.testing.assert_allclose(alpha_query_expansion(q, x, 6, 0), unit(mean), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(**sets)
def test_database_augmentation(queries, images, dim, kind, seed, known, data):
    x = made_up(images, dim, kind, seed)
    k = data.draw(st.integers(1, images))
    expected = slow_expansion(x, x, k, 3, np.arange(images))
    np.testing.assert_allclose(database_augmentation(x, k, 3), expected, atol=1e-4)


# --- k-reciprocal encoding


def slow_k_reciprocal(q, x, k1, k2, lambda_, own):
    """Sections 3.2 to 3.4, each query alone with the database; an image is the first of its neighbours."""
    among = products(x, x)
    lists = [[i, *ranked(among[i], without=i)] for i in range(len(x))]

    def mutual(i, k):
        return {j for j in lists[i][: k + 1] if i in lists[j][: k + 1]}

    def extended(reciprocal):
        more = set(reciprocal)
        for j in reciprocal:
            half = mutual(j, round(k1 / 2))
            if 3 * len(half & reciprocal) >= 2 * len(half):
                more |= half
        return more

    def vector(reciprocal, scores):
        weights = np.zeros(len(x))
        for j in extended(reciprocal):
            weights[j] = np.exp(-(1 - scores[j]))
        return weights / weights.sum() if reciprocal else weights

    single = np.array([vector(mutual(i, k1), among[i]) for i in range(len(x))])
    encoded = np.array([single[lists[i][:k2]].mean(0) for i in range(len(x))])
    distances = np.empty((len(q), len(x)))
    for n, scores in enumerate(products(q, x)):
        if own[n] >= 0:
            vectors = encoded[own[n]]
        else:
            near, narrow = ranked(scores), scores.astype(np.float32)
            reciprocal = {
                j for j in near[:k1] if len(x) <= k1 or narrow[j] > np.float32(among[j, lists[j][k1]])
            }
            vectors = np.mean([vector(reciprocal, scores), *single[near[: k2 - 1]]], axis=0)
        for i in range(len(x)):
            smaller, larger = np.minimum(vectors, encoded[i]).sum(), np.maximum(vectors, encoded[i]).sum()
            distances[n, i] = (1 - lambda_) * (1 - smaller / larger) + lambda_ * (1 - scores[i])
    return distances


@settings(max_examples=80, deadline=None)
@given(**sets, lambda_=st.sampled_from([0, 0.3, 1]))
def test_k_reciprocal(queries, images, dim, kind, seed, known, data, lambda_):
    q, x, own = a_set(queries, images, dim, kind, seed, known)
    k1, k2 = data.draw(st.integers(1, images)), data.draw(st.integers(1, images))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rerank, "ENCODED", data.draw(st.sampled_from([1, 7, 4096])))
        found = k_reciprocal(q, x, k1, k2, lambda_, own=own)
    assert found.dtype == np.float32
    expected = slow_k_reciprocal(q, x, k1, k2, lambda_, rows_of(own, queries))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_queries_and_database_as_one_are_as_in_the_authors_program():
    """There, all queries are nodes too; with the papers' rule of two thirds, ≥."""
    q, x = made_up(5, 6, "clusters", 0), made_up(40, 6, "clusters", 0)
    whole = np.concatenate([q, x])
    alone = k_reciprocal(q, x, 6, 3)
    found = k_reciprocal(q, whole, 6, 3, own=np.arange(5))[:, 5:]
    np.testing.assert_allclose(found, slow_k_reciprocal(q, whole, 6, 3, 0.3, range(5))[:, 5:], atol=1e-5)
    assert np.abs(found - alone).max() > 0.05


def test_queries_do_not_affect_each_other():
    q, x = made_up(9, 6, "clusters", 0), made_up(60, 6, "clusters", 1)
    for call in (k_reciprocal, diffusion):
        together = call(q, x, 10)
        np.testing.assert_allclose(np.concatenate([call(one[None], x, 10) for one in q]), together, atol=1e-6)


# --- Diffusion


def slow_diffusion(q, x, k, query_k, gamma, alpha, truncation, own):
    among = products(x, x)
    lists = [ranked(among[i], without=i)[:k] for i in range(len(x))]
    affinity = np.zeros((len(x), len(x)))
    for i in range(len(x)):
        for j in lists[i]:
            if i in lists[j]:
                affinity[i, j] = max(among[i, j], 0) ** gamma
    result = []
    for scores, row in zip(products(q, x).astype(np.float32), own, strict=True):
        others = ranked(scores, without=row)
        images = [row, *others][:truncation] if row >= 0 else others[:truncation]
        first = [row] if row >= 0 else others[:query_k]
        start = np.array([max(scores[i], 0) ** gamma * (i in first) for i in images])
        part = affinity[np.ix_(images, images)]
        degree = part.sum(0)
        degree[degree == 0] = 1
        part = part / np.sqrt(np.outer(degree, degree))
        f = np.linalg.solve(np.eye(len(images)) - alpha * part, start)
        values = scores.astype(float)
        for i, value in zip(images, f, strict=True):
            if value > 1e-6 * f.max():
                values[i] = scores.max() + value / f.max()
        result.append(values)
    return np.array(result)


@settings(max_examples=80, deadline=None)
@given(**sets, alpha=st.sampled_from([0, 0.5, 0.99]), gamma=st.sampled_from([1, 3]))
def test_diffusion(queries, images, dim, kind, seed, known, data, alpha, gamma):
    q, x, own = a_set(queries, images, dim, kind, seed, known)
    k, query_k = data.draw(st.integers(1, images)), data.draw(st.integers(1, images))
    options = dict(gamma=gamma, alpha=alpha, truncation=data.draw(st.integers(query_k, images + 2)))
    found = diffusion(q, x, k, query_k=query_k, **options, own=own)
    assert found.dtype == np.float32
    expected = slow_diffusion(q, x, k, query_k, **options, own=rows_of(own, queries))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_is_not_reached_keeps_its_order_below():
    q, x = made_up(6, 8, "clusters", 0), made_up(200, 8, "clusters", 1)
    scores, plain = diffusion(q, x, 10, query_k=5, truncation=30), q @ x.T
    for found, before in zip(scores, plain, strict=True):
        rest = found <= before.max() + 1e-6
        assert rest.sum() >= 170
        np.testing.assert_allclose(found[rest], before[rest], atol=1e-6)


def test_diffusion_follows_a_curve():
    """On a bent line, the other end comes before images beside the line that are nearer to the query."""
    angle = np.linspace(0, np.pi, 40)
    line = np.stack([np.cos(angle), np.sin(angle), np.zeros(40)], 1)
    beside = np.array([[0.6, -0.8, 0.0], [0.6, -0.79, 0.1], [0.6, -0.79, -0.1]])
    x = unit(np.concatenate([line, beside]))
    query = x[:1]
    assert (query @ x.T)[0, 39] < (query @ x.T)[0, 40:].min()
    [scores] = diffusion(query, x, 3, query_k=3, own=np.array([0]))
    assert scores[39] > scores[40:].max()


# --- Blocks, files, memory


@pytest.mark.parametrize(
    ("whole", "blocks"), [(k_reciprocal, k_reciprocal_blocks), (diffusion, diffusion_blocks)]
)
def test_blocks_are_the_whole(whole, blocks, monkeypatch):
    q, x, own = a_set(30, 80, 8, "clusters", 3, "some")
    expected = whole(q, x, 10, own=own)
    monkeypatch.setattr("mgkit.retrieval.search.MEMORY", 7 * 12 * len(x))
    parts = list(blocks(q, x, 10, own=own))
    assert [part.start for part, _ in parts] == [0, 7, 14, 21, 28]
    np.testing.assert_allclose(np.concatenate([values for _, values in parts]), expected, atol=1e-6)


def test_memory_mapped_files_and_half_floats_are_taken_as_arrays(tmp_path):
    q, x, own = a_set(6, 60, 8, "clusters", 3, "some")
    for name, rows in (("q", q), ("x", x)):
        np.save(tmp_path / f"{name}.npy", rows)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "qx"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in (k_reciprocal, diffusion, lambda *given, **own: alpha_query_expansion(*given, 3, **own)):
            expected = call(q, x, 10, own=own)
            np.testing.assert_array_equal(call(*mapped, 10, own=own), expected)
            half = [rows.astype(np.float16) for rows in (q, x)]
            single = [rows.astype(np.float32) for rows in half]
            np.testing.assert_allclose(call(*half, 10, own=own), call(*single, 10, own=own), atol=1e-6)
        np.testing.assert_array_equal(database_augmentation(mapped[1], 5, 3), database_augmentation(x, 5, 3))


def test_without_queries_there_is_nothing():
    x = made_up(60, 4, "random", 0)
    assert alpha_query_expansion(x[:0], x, 3, 3).shape == (0, 4)
    assert k_reciprocal(x[:0], x).shape == diffusion(x[:0], x).shape == (0, 60)


def test_rows_of_zeros_have_no_direction():
    x = made_up(30, 4, "random", 0)
    x[:5] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (alpha_query_expansion(x[:1], x[:5], 2, 3) == 0).all()
        for call in (k_reciprocal, diffusion):
            assert np.isfinite(call(x[:8], x, 20)).all()


MEASURE = """
import numpy as np
from mgkit.retrieval.rerank import alpha_query_expansion, database_augmentation, diffusion_blocks
from mgkit.retrieval.rerank import k_reciprocal_blocks

def peak():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])

def use(x):
    alpha_query_expansion(x[:50], x, 10, 3)
    database_augmentation(x, 10, 3)
    for blocks in (k_reciprocal_blocks(x[:50], x), diffusion_blocks(x[:50], x, truncation=200)):
        for _ in blocks:
            pass

x = np.random.default_rng(0).standard_normal((16_000, 8), dtype=np.float32)
x /= np.linalg.norm(x, axis=1, keepdims=True)
use(x[:500])
before = peak()
use(x)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_no_array_is_of_the_size_of_all_pairs():
    """All pairs would be 1 GB in float32, 256 MB in bytes."""
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 250 * 2**20


# --- Bad input

CALLS = {
    "alpha_query_expansion": lambda q, x, k=5, own=None: alpha_query_expansion(q, x, k, 3, own=own),
    "k_reciprocal": lambda q, x, k=5, own=None: k_reciprocal(q, x, k, own=own),
    "k_reciprocal_blocks": lambda q, x, k=5, own=None: k_reciprocal_blocks(q, x, k, own=own),
    "diffusion": lambda q, x, k=5, own=None: diffusion(q, x, k, own=own),
    "diffusion_blocks": lambda q, x, k=5, own=None: diffusion_blocks(q, x, k, own=own),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_bad_input_is_named(call):
    """At once, also where blocks are asked for."""
    q, x = made_up(4, 6, "random", 0), made_up(30, 6, "random", 1)
    for k in (0, -1, 31):
        with pytest.raises(ValueError, match="^k1? must be between 1 and the 30 images of the database"):
            call(q, x, k)
    with pytest.raises(ValueError, match="must be"):
        call(q[:, :5], x)
    for name, rows in (("queries", q), ("database", x)):
        bad = rows.copy()
        bad[2, 1] = np.nan
        with pytest.raises(ValueError, match=f"of the {name} are not finite, the first in row 2$"):
            call(*(bad if rows is each else each for each in (q, x)))
    for own in (np.arange(3), np.zeros((4, 1), int), np.zeros(4), [True] * 4):
        with pytest.raises(ValueError, match="^own must hold one row for each of 4 queries"):
            call(q, x, own=own)
    for own in ([0, 1, 2, 30], [0, 1, -2, 3]):
        with pytest.raises(ValueError, match="^own must hold rows of the database, -1 to 29"):
            call(q, x, own=own)


def test_parameters_out_of_range_are_named():
    x = made_up(30, 6, "random", 1)
    for alpha in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match="alpha must be a finite number of at least 0"):
            alpha_query_expansion(x, x, 3, alpha)
    with pytest.raises(ValueError, match="^k must be between 1 and the 30 images"):
        database_augmentation(x, 31, 3)
    for changes, line in (
        ({"k2": 0}, "k2 must be between 1 and the 30 images"),
        ({"lambda_": 1.1}, "lambda_ must be between 0 and 1, got 1.1"),
        ({"lambda_": np.nan}, "lambda_ must be between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=line):
            k_reciprocal(x, x, **changes)
    for changes, line in (
        ({"query_k": 0}, "query_k must be between 1 and the 30 images"),
        ({"gamma": 0}, "gamma must be above 0"),
        ({"alpha": 1}, "alpha in 0 <= alpha < 1"),
        ({"truncation": 9}, "truncation must be at least query_k = 10"),
    ):
        with pytest.raises(ValueError, match=line):
            diffusion(x, x, 5, **changes)
