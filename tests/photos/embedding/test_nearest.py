"""Lists of neighbours that grow are those of a search among all."""

import numpy as np
import pytest

from mgkit.config import PhotosConfig, make
from mgkit.photos.embedding import nearest as module
from mgkit.photos.embedding.nearest import NEIGHBOURS, KeptLists, neighbours


def collection(count, seed=0, duplicates=0):
    rows = np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
    rows[:duplicates] = rows[count - duplicates : count]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def kept(tmp_path):
    return KeptLists(tmp_path / "neighbours.npz", "a network")


@pytest.fixture
def searches(monkeypatch):
    """The number of queries of every search, and of rows searched."""
    sizes, search = [], module.top_k

    def noted(queries, database, **options):
        sizes.append((len(queries), len(database)))
        return search(queries, database, **options)

    monkeypatch.setattr(module, "top_k", noted)
    return sizes


def same(found, fresh):
    np.testing.assert_allclose(found[0], fresh[0], rtol=1e-6)
    differ = found[1] != fresh[1]  # pictures that are equally near, up to rounding
    np.testing.assert_allclose(found[0][differ], fresh[0][differ], rtol=1e-6)
    assert differ.sum() <= 0.01 * differ.size


CONFIG = PhotosConfig()
PICTURES = collection(330, duplicates=20)
KEYS = np.random.default_rng(1).permutation(330).astype(np.uint64)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (range(300), range(330)),
        (range(330), range(20, 330)),
        (range(300), [*range(10, 150), *range(160, 320)]),
        (range(300), range(1, 300)),
        (range(300), range(299)),
        (range(300), range(299, -1, -1)),
    ],
    ids=["grown", "shrunk", "both", "one gone", "the last gone", "in another order"],
)
def test_lists_of_a_changed_folder_are_those_of_a_fresh_search(kept, searches, first, then):
    first, then = np.array(first), np.array(then)
    neighbours(CONFIG, PICTURES[first], KEYS[first], kept)
    fresh = neighbours(CONFIG, PICTURES[then])
    searches.clear()
    found = neighbours(CONFIG, PICTURES[then], KEYS[then], kept)
    same(found, fresh)
    assert found[1].dtype == fresh[1].dtype and (len(then), len(then)) not in searches
    searches.clear()
    again = neighbours(CONFIG, PICTURES[then], KEYS[then], kept)
    assert not searches and all(np.array_equal(*pair) for pair in zip(again, found, strict=True))


def test_many_steps_of_growth_are_exact(kept):
    random, inside = np.random.default_rng(5), np.arange(200)
    for _ in range(8):
        inside = np.union1d(random.permutation(inside)[5:], random.integers(0, 330, 10))
        found = neighbours(CONFIG, PICTURES[inside], KEYS[inside], kept)
    same(found, neighbours(CONFIG, PICTURES[inside]))


def test_a_folder_that_has_changed_a_lot_is_searched_anew(kept, searches):
    neighbours(CONFIG, PICTURES[:250], KEYS[:250], kept)
    searches.clear()
    neighbours(CONFIG, PICTURES, KEYS, kept)
    assert searches == [(330, 330)]


def test_a_small_folder_has_shorter_lists(kept):
    for count in (1, 2, 20, 33, 34, 35):
        scores, indices = neighbours(CONFIG, PICTURES[:count], KEYS[:count], kept)
        assert scores.shape == indices.shape == (count, min(count - 1, NEIGHBOURS))
        same((scores, indices), neighbours(CONFIG, PICTURES[:count]))


def test_lists_of_other_descriptors_are_not_taken(kept, searches, tmp_path):
    neighbours(CONFIG, PICTURES, KEYS, kept)
    searches.clear()
    neighbours(CONFIG, PICTURES, KEYS, KeptLists(kept.path, "another network"))
    assert searches == [(330, 330)]


@pytest.mark.parametrize("damage", ["empty", "cut", "pickled", "another size", "an index beyond"])
def test_damaged_lists_are_not_taken(kept, searches, damage):
    neighbours(CONFIG, PICTURES, KEYS, kept)
    with np.load(kept.path) as file:
        arrays = dict(file)
    if damage in ("empty", "cut"):
        content = kept.path.read_bytes()
        kept.path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    else:
        if damage == "pickled":
            arrays["scores"] = np.array([{}, []], object)
        elif damage == "another size":
            arrays["scores"] = arrays["scores"][:, 1:]
        else:
            arrays["indices"][3, 3] = 330
        with open(kept.path, "wb") as file:
            np.savez(file, **arrays)
    searches.clear()
    same(neighbours(CONFIG, PICTURES, KEYS, kept), neighbours(CONFIG, PICTURES))
    assert searches[0] == (330, 330)


def test_lists_of_an_index_grow(kept, capsys):
    config = make(PhotosConfig, {"index": "HNSW32"})
    neighbours(config, PICTURES[:300], KEYS[:300], kept)
    capsys.readouterr()
    found = neighbours(config, PICTURES, KEYS, kept)
    assert "approximate" not in capsys.readouterr().out
    exact = neighbours(CONFIG, PICTURES)
    assert (found[1] == exact[1]).mean() > 0.9
