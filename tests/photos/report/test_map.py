"""The map of a collection: similar pictures near each other, the same each time, of a bounded size."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from support import noise

from mgkit.explore.style import encoded
from mgkit.photos.report import map as module
from mgkit.photos.report.map import NEAR, TILE, Places, on_a_grid, placed, placed_once, sheets


def clusters(count, each, dims=16, seed=0):
    """L2-normalised descriptors in tight clusters, and the cluster of each."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(count), each)
    rows = rng.normal(size=(count, dims))[of] + 0.1 * rng.normal(size=(len(of), dims))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), of


def test_similar_pictures_lie_near_each_other_also_those_that_tsne_does_not_place():
    descriptors, of = clusters(4, 30)
    places = placed(descriptors, np.arange(0, len(of), 2))
    assert places.positions.shape == (120, 2) and 0 <= places.positions.min() <= places.positions.max() <= 1
    distances = np.linalg.norm(places.positions[:, None] - places.positions, axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (of[distances.argmin(1)] == of).mean() > 0.95


def test_the_map_is_the_same_each_time():
    descriptors, _ = clusters(3, 10)
    first, second = (placed(descriptors, np.arange(0, 30, 2)) for _ in range(2))
    np.testing.assert_array_equal(first.positions, second.positions)
    np.testing.assert_array_equal(first.near, second.near)


def test_places_are_kept_for_the_same_descriptors_only(tmp_path, monkeypatch):
    descriptors, _ = clusters(3, 10)
    tiles = np.arange(0, 30, 2)
    first = placed_once(descriptors, tiles, tmp_path)
    np.testing.assert_array_equal(first.positions, placed(descriptors, tiles).positions)
    anew = Places(np.zeros((30, 2)), np.zeros((30, NEAR)))
    monkeypatch.setattr(module, "placed", lambda *_: anew)
    again = placed_once(descriptors, tiles, tmp_path)
    np.testing.assert_array_equal(again.positions, first.positions)
    np.testing.assert_array_equal(again.near, first.near)
    monkeypatch.setattr(module, "write_arrays", lambda *_, **__: None)
    assert placed_once(descriptors[::-1], tiles, tmp_path) is anew
    assert placed_once(descriptors, tiles[1:], tmp_path) is anew
    (tmp_path / "map.npz").write_text("damaged")
    assert placed_once(descriptors, tiles, tmp_path) is anew


def test_the_nearest_thumbnails_are_those_of_a_slow_oracle_without_the_picture_itself():
    descriptors, _ = clusters(5, 8)
    tiles = np.arange(0, 40, 3)
    places = placed(descriptors, tiles)
    for i, near in enumerate(places.near):
        others = [t for t in range(len(tiles)) if tiles[t] != i]
        others.sort(key=lambda t: -float(descriptors[i] @ descriptors[tiles[t]]))
        assert near.tolist() == others[:NEAR]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "descriptors", [np.eye(9, 16), np.tile(np.eye(1, 16), (30, 1)), np.eye(16)[np.arange(30) % 2]]
)
def test_few_or_equal_pictures_have_no_map_or_a_finite_one(descriptors):
    places = placed(descriptors.astype(np.float32), np.arange(len(descriptors)))
    assert places is None or np.isfinite(places.positions).all()


def test_a_sheet_holds_its_thumbnails_row_by_row():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    thumbnails = [encoded(Image.new("RGB", (40, 30), colours[n % 3]), "jpeg") for n in range(18)]
    thumbnails[2] = b""  # of a file that is gone
    [content] = sheets(thumbnails)
    picture = np.asarray(Image.open(BytesIO(content)), int)
    assert picture.shape == (2 * TILE, 16 * TILE, 3)
    for n in (0, 1, 5, 15, 16, 17):
        row, column = divmod(n, 16)
        middle = picture[row * TILE + TILE // 2, column * TILE + TILE // 2]
        assert np.abs(middle - colours[n % 3]).max() < 12
    assert np.abs(picture[48, 2 * TILE + 48] - 200).max() < 12


def test_sheets_of_any_pictures_are_small(monkeypatch):
    monkeypatch.setattr(module, "MOST_SHEET_BYTES", 100_000)
    thumbnails = [encoded(noise(n, (128, 128)), "jpeg") for n in range(40)]
    assert sum(map(len, sheets(thumbnails))) <= 100_000


def test_a_cell_of_a_grid_shows_the_picture_nearest_to_its_middle():
    positions = np.array([[0.1, 0.1], [0.24, 0.26], [0.9, 0.2], [1.0, 1.0]])
    assert on_a_grid(positions, 2, 2) == {(0, 0): 1, (1, 0): 2, (1, 1): 3}
