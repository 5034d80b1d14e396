"""Exact search against sorting all products in float64."""

import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgkit.retrieval import search
from mgkit.retrieval.search import inner_products, similarities, top_k, top_pairs

CPU = torch.device("cpu")


def rows(n, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def exact_scores(queries, database):
    """Every inner product [Q,N] by itself, in float64."""
    return np.array(
        [[(q.astype(np.float64) * x.astype(np.float64)).sum() for x in database] for q in queries]
    ).reshape(len(queries), len(database))


def sorted_list(queries, database, k):
    """(scores [Q,k], indices [Q,k]) by sorting everything, ties by index."""
    scores = exact_scores(queries, database)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1).astype(np.float32), order


def sorted_pairs(queries, database, count, bias):
    scores = exact_scores(queries, database).astype(np.float32)
    scores = (scores - bias[:, None]).astype(np.float32).ravel()
    order = np.argsort(-scores, kind="stable")[:count]
    return scores[order], *np.divmod(order, len(database))


def with_ties(n, dim, kind, seed):
    """Descriptors with ties: random, repeated, small integers, repeated up to rounding, one many times.

    ulps: repeated up to the last bit of each value. wild: rows of zeros, denormal and huge ones, repeated.
    """
    random = np.random.default_rng(seed)
    x = unit(rows(n, dim, seed))
    if kind == "repeated":
        return x[random.integers(0, max(1, n // 3), n)]
    if kind == "integers":
        return random.integers(-2, 3, (n, dim)).astype(np.float32)
    if kind == "close":
        return x[random.integers(0, max(1, n // 3), n)] + np.float32(1e-7) * rows(n, dim, seed + 1)
    if kind == "ulps":
        x = x[random.integers(0, max(1, n // 3), n)]
        return np.nextafter(x, x * random.integers(0, 3, (n, dim)).astype(np.float32))
    if kind == "wild":
        norms = np.array([0, 1e-43, -1e-39, 1e-30, -1, 1, 1, 1e9, -1e17, 1e17], np.float32)
        return x[random.integers(0, max(1, n // 3), n)] * random.choice(norms, (n, 1))
    return np.repeat(x[:1], n, axis=0) if kind == "one" else x


@contextmanager
def limits(**values):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(search, name, value)
        yield


KINDS = ["random", "repeated", "integers", "close", "one", "ulps", "wild"]
cases = dict(
    queries=st.integers(1, 12), images=st.integers(1, 120), dim=st.integers(1, 40),
    kind=st.sampled_from(KINDS), order=st.sampled_from("CF"),
    memory=st.sampled_from([1, 40_000, search.MEMORY]), seed=st.integers(0, 999), data=st.data(),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(**cases, margin=st.sampled_from([0, 1, 8]))
def test_top_k_is_the_start_of_the_sorted_list(queries, images, dim, kind, order, memory, margin, seed, data):
    x = np.asarray(with_ties(images, dim, kind, seed), order=order)  # F: copied block by block
    q = np.concatenate([with_ties(queries, dim, kind, seed + 500), x[:1]])
    k = data.draw(st.integers(1, images))
    with limits(MEMORY=memory, MARGIN=margin):
        scores, indices = top_k(q, x, k=k, device=CPU)
    expected_scores, expected = sorted_list(q, x, k)
    assert scores.dtype == np.float32 and indices.dtype == np.int64
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(scores, expected_scores)


@settings(max_examples=60, deadline=None)
@given(**cases)
def test_top_pairs_is_the_start_of_all_pairs_sorted(queries, images, dim, kind, order, memory, seed, data):
    x = np.asarray(with_ties(images, dim, kind, seed), order=order)
    q = np.concatenate([with_ties(queries, dim, kind, seed + 500), x[:1]])
    count = data.draw(st.integers(1, len(q) * images + 3))
    bias = np.random.default_rng(seed).choice([0.0, 0.25, 0.3], len(q))
    with limits(MEMORY=memory):
        found = top_pairs(q, x, count=count, bias=bias, device=CPU)
    for ours, expected in zip(found, sorted_pairs(q, x, count, bias), strict=True):
        np.testing.assert_array_equal(ours, expected)


@settings(max_examples=60, deadline=None)
@given(**cases)
def test_similarities_are_all_scores(queries, images, dim, kind, order, memory, seed, data):
    x = np.asarray(with_ties(images, dim, kind, seed), order=order)
    q = np.concatenate([with_ties(queries, dim, kind, seed + 500), x[:1]])
    with limits(MEMORY=memory):
        parts = list(similarities(q, x))
    assert [i for part, _ in parts for i in range(part.start, part.stop)] == list(range(len(q)))
    scores = np.concatenate([scores for _, scores in parts])
    np.testing.assert_array_equal(scores, exact_scores(q, x).astype(np.float32))


def test_many_queries_at_once_find_the_same():
    """So many that faiss takes a matrix product, and that they are searched in two parts; k from 1 to N."""
    q, x = with_ties(1100, 24, "ulps", 7), with_ties(130, 24, "ulps", 8)
    expected_scores, expected = sorted_list(q, x, 130)
    for k in (1, 40, 130):
        scores, indices = top_k(q, x, k=k, device=CPU)
        np.testing.assert_array_equal(indices, expected[:, :k])
        np.testing.assert_array_equal(scores, expected_scores[:, :k])


@pytest.mark.parametrize("at_once", [1, 1000, 2**20])
@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_the_candidates_and_change_no_score(kind, at_once, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    q, x = with_ties(9, 40, kind, 0), with_ties(50, 40, kind, 1)
    with limits(BATCH_BYTES=at_once, CACHED_BYTES=at_once, FEWEST_BATCHES=0):
        scores, indices = top_k(q, x, k=30, device=CPU)
    expected_scores, expected = sorted_list(q, x, 30)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("kind", KINDS)
def test_what_gpus_run_finds_the_same(kind, monkeypatch):
    monkeypatch.setattr(search.faiss, "knn", lambda q, x, k, _: search.torch_knn(q, x, k, CPU))
    monkeypatch.setattr(search, "MEMORY", 10_000)
    q, x = with_ties(20, 24, kind, 500), np.asfortranarray(with_ties(200, 24, kind, 1))  # in blocks
    precision = torch.get_float32_matmul_precision()
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(top_k(q, x, k=30, device=CPU)[1], sorted_list(q, x, 30)[1])
    assert torch.get_float32_matmul_precision() == precision


def test_without_bias_pairs_are_compared_as_they_are():
    q, x = rows(5, 8), rows(30, 8, 1)
    for ours, expected in zip(top_pairs(q, x, count=7), sorted_pairs(q, x, 7, np.zeros(5)), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("order", ["rising", "falling", "shuffled"])
def test_the_order_of_the_database_changes_nothing(order):
    q, x = unit(rows(6, 24)), unit(rows(2000, 24, 1))
    by_score = np.argsort(x @ q[0])
    order = {
        "rising": by_score,
        "falling": by_score[::-1],
        "shuffled": np.random.default_rng(0).permutation(2000),
    }[order]
    scores, indices = top_k(q, x, k=40)
    again, reordered = top_k(q, np.ascontiguousarray(x[order]), k=40)
    np.testing.assert_array_equal(order[reordered], indices)
    np.testing.assert_array_equal(again, scores)


@pytest.mark.parametrize("dim", [1, 3, 17, 129, 512, 600, 2049, 8191, 8193, 20000])
def test_equal_rows_score_equally_wherever_they_stand(dim):
    x = rows(7, dim)
    x[[1, 4, 6]] = x[0]
    for count in (1, 2, 7):
        q = np.zeros(count, np.int64)
        exact = inner_products(rows(1, dim, 1), x, q, np.array([6, 0, 1, 4, 0, 6, 1])[:count])
        assert (exact == exact[0]).all()
        assert exact[0] == inner_products(rows(1, dim, 1), x[::-1], q[:1], np.array([0]))[0]
    [(_, scores)] = similarities(rows(1, dim, 1), x)
    assert (scores[0, [1, 4, 6]] == scores[0, 0]).all()


def test_a_border_within_the_rounding_error_is_settled_in_float64(monkeypatch):
    """500 rows that float32 cannot tell apart, k in the midst of them: one query takes more candidates."""
    asked, candidates = [], search.candidates
    monkeypatch.setattr(
        search, "candidates", lambda *given: asked.append((len(given[0]), given[2])) or candidates(*given)
    )
    q = unit(rows(4, 64))
    x = unit(rows(3000, 64, 1))
    x[1000:1500] = q[1] + 1e-7 * rows(500, 64, 2)
    _, indices = top_k(q, x, k=100, device=CPU)
    np.testing.assert_array_equal(indices, sorted_list(q, x, 100)[1])
    first = 100 + search.MARGIN
    assert asked == [(4, first), (1, 8 * first)]


def test_pairs_of_one_query_may_be_all_there_are():
    """The best pairs belong to two of many queries, and tie."""
    x, q = unit(rows(300, 16, 1)), 0.01 * unit(rows(80, 16))
    x[:200], q[[20, 50]] = x[0], x[0]
    for count in (100, 250, 330):
        for ours, expected in zip(
            top_pairs(q, x, count=count), sorted_pairs(q, x, count, np.zeros(80)), strict=True
        ):
            np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("magnitude", [1e-42, 1e-30, 1e-19, 1e-10, 1e8, 1e17])
def test_magnitude_does_not_matter(magnitude):
    q, x = unit(rows(5, 16)), (unit(rows(300, 16, 1)) * magnitude).astype(np.float32)
    np.testing.assert_array_equal(top_k(q, x, k=20)[1], sorted_list(q, x, 20)[1])
    np.testing.assert_array_equal(top_pairs(q, x, count=9)[2], sorted_pairs(q, x, 9, np.zeros(5))[2])


def test_each_image_is_nearest_to_itself():
    x = unit(rows(30, 8))
    scores, indices = top_k(x, x, k=1)
    assert indices[:, 0].tolist() == list(range(30))
    np.testing.assert_allclose(scores, 1, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_memory_mapped_file_is_searched_like_an_array(dtype, tmp_path):
    x = rows(500, 12).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ours, expected in zip(top_k(mapped[:9], mapped, k=5), top_k(x[:9], x, k=5), strict=True):
            np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_other_types_and_layouts_count_as_float32(dtype):
    x = (3 * rows(200, 10)).astype(dtype)
    q = x[:20:3]
    expected = top_k(q.astype(np.float32), x.astype(np.float32), k=4)
    for same in (x, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2]):
        for ours, theirs in zip(top_k(q, same, k=4), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_without_queries_there_is_nothing_to_find():
    x = rows(5, 3)
    assert [part.shape for part in top_k(x[:0], x, k=2)] == [(0, 2), (0, 2)]
    assert [len(part) for part in top_pairs(x[:0], x, count=2)] == [0, 0, 0]
    assert [len(part) for part in top_pairs(x, x[:0], count=2)] == [0, 0, 0]
    assert list(similarities(x[:0], x)) == []
    [(_, scores)] = similarities(x, x[:0])
    assert scores.shape == (5, 0)


# --- Memory

MEASURE = """
import numpy as np, sys
from mgkit.retrieval import search
from mgkit.retrieval.search import similarities, top_k, top_pairs

def peak():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])

def use(q, x):
    top_k(q, x, k=50)
    top_pairs(q, x, count=1000)
    for _ in similarities(q, x):
        pass

search.MEMORY = int(sys.argv[1])
x = np.random.default_rng(0).standard_normal((60_000, 32), dtype=np.float32)
same = x[:1].repeat(len(x), 0)
use(x[:20], x[:500])
x[:600] @ x[:2000].T  # what the libraries allocate once
before = peak()
use(x[:600], x)
top_k(x[:30], same, k=50)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_stays_within_its_bound():
    """All scores are 144 MB; the process may grow by the bound and what the allocator wastes."""
    bound = 24 * 2**20
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(bound)], capture_output=True, text=True, check=True
    )
    assert 0 < int(run.stdout) < 1.3 * bound


# --- Bad input


@pytest.mark.parametrize("k", [0, -1, 6])
def test_k_must_fit_the_database(k):
    with pytest.raises(ValueError, match="k must be between 1 and the 5 images"):
        top_k(rows(2, 3), rows(5, 3), k=k)


@pytest.mark.parametrize(
    ("queries", "database"), [((2, 3), (5, 4)), ((3,), (5, 3)), ((2, 3), (3,)), ((2, 0), (5, 0))]
)
def test_descriptors_must_have_one_dimension(queries, database):
    with pytest.raises(ValueError, match="must be"):
        top_k(np.zeros(queries, np.float32), np.zeros(database, np.float32), k=1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["queries", "database"])
def test_descriptors_that_are_not_finite_are_named(value, name):
    for call in (
        lambda **rows: top_k(**rows, k=1),
        lambda **rows: top_pairs(**rows, count=1),
        similarities,  # at once, not at the first block
    ):
        arrays = {"queries": rows(4, 3), "database": rows(4, 3)}
        arrays[name][2, 1] = value
        with pytest.raises(
            ValueError, match=f"^descriptors of the {name} are not finite, the first in row 2"
        ):
            call(**arrays)


def test_values_that_float32_cannot_hold_are_refused():
    with pytest.raises(ValueError, match="of the database are not finite"):
        top_k(rows(2, 3), np.full((4, 3), 1e50), k=1)
    with pytest.raises(ValueError, match="of the queries have norms above 1e19"):
        top_k(np.full((4, 3), 1e30, np.float32), rows(2, 3), k=1)
    for dtype in (object, complex, "U3"):
        with pytest.raises(ValueError, match="must be float32, got"):
            top_k(rows(2, 3), np.zeros((4, 3)).astype(dtype), k=1)


def test_a_bias_or_count_that_does_not_fit_is_refused():
    for bias in (np.zeros(3), np.zeros((2, 1)), np.array([0, np.nan])):
        with pytest.raises(ValueError, match="bias must hold 2 finite numbers"):
            top_pairs(rows(2, 3), rows(4, 3), count=1, bias=bias)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        top_pairs(rows(2, 3), rows(4, 3), count=0)


@pytest.mark.gpu
def test_a_gpu_finds_the_same():
    q, x = unit(rows(50, 64)), unit(rows(20_000, 64, 1))
    x[500:900] = x[0]
    torch.set_float32_matmul_precision("high")
    with torch.autocast("cuda", torch.bfloat16):
        gpu = torch.device("cuda")
        on_gpu = [top_k(q, x, k=60, device=gpu), top_pairs(q, x, count=500, device=gpu)]
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")
    on_cpu = [top_k(q, x, k=60, device=CPU), top_pairs(q, x, count=500, device=CPU)]
    for ours, theirs in zip(sum(on_gpu, ()), sum(on_cpu, ()), strict=True):
        np.testing.assert_array_equal(ours, theirs)
