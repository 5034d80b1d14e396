"""faiss indices against exact search; what may go wrong with them, in a line."""

import warnings

import faiss
import numpy as np
import pytest
from support import one_line_error

from mgkit.retrieval import indices as module
from mgkit.retrieval.indices import build_index, compare, recall, search_index, table, trained_index
from mgkit.retrieval.search import top_k

COUNT, DIM = 3000, 16
FACTORIES = ["Flat", "IVF8,Flat", "OPQ4,IVF8,PQ4x4", "HNSW8", "IVF8,SQ8", "PCA8,IVF8,Flat", "PQ4x4"]


def clustered(n, seed=0):
    """Unit rows around 20 directions."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((20, DIM))
    x = centres[random.integers(0, 20, n)] + 0.4 * random.standard_normal((n, DIM))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def faiss_says_nothing(capfd):
    """Whether nothing was printed but our own line on few training rows."""
    said = capfd.readouterr()
    return not said.err and all("or more are recommended" in line for line in said.out.splitlines())


@pytest.fixture(scope="module")
def database():
    return clustered(COUNT)


@pytest.fixture(scope="module")
def queries():
    return clustered(40, seed=1)


@pytest.fixture(autouse=True)
def one_thread():
    faiss.omp_set_num_threads(1)


@pytest.mark.parametrize("factory", FACTORIES)
def test_indices_find_what_is_near(capfd, monkeypatch, database, queries, factory):
    monkeypatch.setattr(module, "BLOCK", 700)
    ann = build_index(factory, database, seed=1)
    assert (ann.count, ann.dim, ann.index.ntotal) == (COUNT, DIM, COUNT)
    nprobe = 8 if "IVF" in factory else None
    scores, indices = search_index(ann, queries, k=10, nprobe=nprobe)
    exact_scores, truth = top_k(queries, database, k=10)
    assert recall(indices, truth, 10) > (0.05 if "PQ" in factory or "PCA" in factory else 0.9)
    if factory in ("Flat", "IVF8,Flat"):
        np.testing.assert_array_equal(indices, truth)
        np.testing.assert_allclose(scores, exact_scores, rtol=1e-5)
    assert faiss_says_nothing(capfd)


def test_the_same_seed_makes_the_same_index(database, monkeypatch):
    monkeypatch.setattr(module, "SAMPLES_PER_CENTROID", 4)
    one, two, other = (
        faiss.serialize_index(build_index("IVF8,Flat", database, seed=seed).index).tobytes()
        for seed in (1, 1, 2)
    )
    assert one == two != other


def test_a_sample_is_enough_to_train_on(database, monkeypatch):
    monkeypatch.setattr(module, "SAMPLES_PER_CENTROID", 4)
    seen = []
    monkeypatch.setattr(
        module, "as_float32", lambda rows: seen.append(len(rows)) or np.ascontiguousarray(rows)
    )
    trained_index("IVF8,Flat", database)
    assert seen == [4 * 256]


def test_few_rows_to_train_on_print_one_line(database, capfd):
    for factory in ("OPQ4,IVF8,PQ4", "IVF64,Flat", "PQ4"):
        build_index(factory, database[:400])
        said = capfd.readouterr()
        assert said.err == "" and said.out.count("\n") == 1 and "or more are recommended" in said.out


def test_memory_mapped_rows_make_the_same_index(tmp_path, database, queries):
    np.save(tmp_path / "x.npy", database)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = search_index(build_index("IVF8,Flat", mapped), queries, k=3)
    np.testing.assert_array_equal(found[1], search_index(build_index("IVF8,Flat", database), queries, k=3)[1])


def test_lists_with_too_few_rows_leave_places_empty(database, queries):
    ann = build_index("IVF8,Flat", database[:400])
    scores, indices = search_index(ann, queries, k=390, nprobe=1)
    assert (indices[:, -1] == -1).all() and (scores[:, -1] == -np.inf).all()
    assert ((indices >= 0) == np.isfinite(scores)).all()


def test_the_comparison_measures_every_index_on_the_same_data(database, queries):
    rows = compare(["Flat", "OPQ4,IVF8,PQ4x4"], database, queries, nprobe=20, repeats=1)
    assert [row.factory for row in rows] == ["exact", "Flat", "OPQ4,IVF8,PQ4x4"]
    assert [row.recall10 for row in rows[:2]] == [1, 1]
    assert 0 < rows[2].recall10 < 1
    assert [row.bytes_per_vector for row in rows[:1]] == [4 * DIM]
    assert 4 * DIM <= rows[1].bytes_per_vector < 4 * DIM + 1
    assert 10 <= rows[2].bytes_per_vector < 11  # 2 of codes, 8 of an id
    assert [row.table_bytes > 0 for row in rows] == [False, True, True]
    assert all(row.query_ms > 0 and row.speedup > 0 for row in rows)
    lines = table(rows).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1 and "recall@10" in lines[0]
    with one_line_error(ValueError, "k must be at least 10"):
        compare(["Flat"], database, queries, k=5)


def test_recall_is_the_share_of_the_true_neighbours_that_are_found():
    truth = np.array([[1, 2, 3], [4, 5, 6]])
    found = np.array([[2, 1, -1], [4, 6, 9]])
    assert recall(found, truth, 1) == 0.5
    assert recall(found, truth, 3) == 4 / 6


# --- Bad input


@pytest.mark.parametrize(
    ("factory", "what"),
    [
        ("nonsense", "could not parse"),
        ("", "could not parse"),
        ("IDMap,Flat", "add_with_ids"),
        ("PQ5", "multiple of the number of subquantizers"),
        ("IVF8,PQ3", "multiple"),
        ("OPQ5,IVF8,PQ4", "multiple"),
        ("PCA64,Flat", "cannot output 64"),
        ("IVF4000,Flat", "needs 4000 descriptors to train on, got 3000"),
        ("PQ4x12", "needs 4096 descriptors"),
    ],
)
def test_a_factory_string_that_does_not_fit_is_said_in_a_line(database, capfd, factory, what):
    with one_line_error(ValueError, repr(factory), what):
        build_index(factory, database)
    assert faiss_says_nothing(capfd)


def test_queries_that_do_not_fit_are_refused(database, queries):
    ann = build_index("IVF8,Flat", database)
    with one_line_error(ValueError, "queries", "[n,16]", "(40, 7)"):
        search_index(ann, queries[:, :7], k=3)
    for k in (0, COUNT + 1):
        with one_line_error(ValueError, f"the {COUNT} images of the index, got {k}"):
            search_index(ann, queries, k=k)
    for nprobe in (0, 9):
        with one_line_error(ValueError, f"the 8 lists of 'IVF8,Flat', got {nprobe}"):
            search_index(ann, queries, k=3, nprobe=nprobe)
    with one_line_error(ValueError, "'Flat' has none"):
        search_index(build_index("Flat", database), queries, k=3, nprobe=2)
    bad = queries.copy()
    bad[3, 1] = np.nan
    with one_line_error(ValueError, "descriptors of the queries are not finite, the first in row 3"):
        search_index(ann, bad, k=3)
    with one_line_error(ValueError, "of the database are not finite"):
        build_index("Flat", bad)

        build_index("Flat", database, train=database[:, :7])
