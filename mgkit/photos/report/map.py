"""A map of a collection: pictures on a plane, similar ones near each other, with thumbnails on it.

A sample of the pictures is placed by t-SNE (van der Maaten and Hinton 2008), whose time grows faster than the
number of pictures. Each of the others is placed among those of the sample that it is most similar to.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mgkit.explore.style import GREY, encoded
from mgkit.photos.embedding.arrays import read_arrays, write_arrays
from mgkit.photos.embedding.nearest import neighbours_without_self
from mgkit.photos.report.thumbnails import square
from mgkit.retrieval.search import top_k

FEWEST = 10  # pictures of a map; more than NEAR
MOST_TILES = 1200  # pictures with a thumbnail, which t-SNE places
DIMENSIONS = 50  # that t-SNE is given
ITERATIONS = 500  # as many as t-SNE needs for so few pictures
PERPLEXITY = 30  # effective number of neighbours
NEAR = 4  # most similar pictures with a thumbnail
SCATTER = 0.006  # distance around which pictures lie that would be placed at one point
TILE = 96  # side of a thumbnail on the map, px; a multiple of 16, a JPEG's blocks
TILES_PER_SIDE = 16  # of a sheet
QUALITIES = (70, 50, 30, 10)  # of the sheets as JPEG
MOST_SHEET_BYTES = 3_300_000  # of all sheets


@dataclass(frozen=True)
class Places:
    """Where n pictures lie on a map.

    positions: in 0..1, to the right and down [n,2].
    near: numbers of the tiles that each is most similar to, without itself [n,NEAR].
    """

    positions: np.ndarray
    near: np.ndarray


def placed(descriptors: np.ndarray, tiles: np.ndarray) -> Places | None:
    """The places of pictures with L2-normalised descriptors [n,D]; the same for the same descriptors.

    tiles: indices of the pictures that t-SNE places [t].

    None for fewer than 10 tiles, or descriptors that are all equal.
    """
    if len(tiles) < FEWEST or not np.ptp(descriptors[tiles], axis=0).any():
        return None
    of_tiles = by_tsne(descriptors[tiles])  # [t,2]
    scores, near = top_k(descriptors, descriptors[tiles], k=NEAR + 1)  # [n,k]
    positions = np.median(of_tiles[near], axis=1)  # [n,2]
    positions += np.random.default_rng(0).normal(scale=SCATTER, size=positions.shape)
    positions[tiles] = of_tiles
    own = np.full(len(near), -1)
    own[tiles] = np.arange(len(tiles))
    return Places(np.clip(positions, 0, 1), neighbours_without_self(scores, near, own)[1])


def placed_once(descriptors: np.ndarray, tiles: np.ndarray, folder: Path) -> Places | None:
    """As `placed`; the places are kept in a folder, for the next report on the same descriptors."""
    path = folder / "map.npz"
    digest = hashlib.sha256(np.ascontiguousarray(descriptors))
    digest.update(tiles.astype("<i8"))
    key = np.frombuffer(digest.digest(), dtype=np.uint8)
    kept = read_arrays(path, "key", "positions", "near")
    if kept and np.array_equal(kept[0], key):
        return Places(*kept[1:])
    places = placed(descriptors, tiles)
    if places:
        write_arrays(path, key=key, positions=places.positions, near=places.near)
    return places


def by_tsne(descriptors: np.ndarray) -> np.ndarray:
    """Positions in 0..1 [t,2] of descriptors [t,D]."""
    from sklearn.decomposition import PCA  # takes two seconds to import
    from sklearn.manifold import TSNE

    few = min(DIMENSIONS, *descriptors.shape)
    reduced = PCA(few, random_state=0).fit_transform(descriptors)
    perplexity = min(PERPLEXITY, (len(reduced) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, max_iter=ITERATIONS, random_state=0)
    plane = tsne.fit_transform(reduced)
    low = plane.min(axis=0)
    return (plane - low) / np.maximum(plane.max(axis=0) - low, 1e-9)


def sheets(thumbnails: Sequence[bytes]) -> list[bytes]:
    """JPEG files of 16 × 16 square thumbnails each, row by row; at most 3.3 MB together.

    thumbnails: JPEG files; an empty one leaves its place grey.
    """
    each = TILES_PER_SIDE**2
    pictures = [sheet(thumbnails[at : at + each]) for at in range(0, len(thumbnails), each)]
    for quality in QUALITIES:
        files = [encoded(picture, "jpeg", quality=quality) for picture in pictures]
        if sum(map(len, files)) <= MOST_SHEET_BYTES:
            break
    return files


def sheet(thumbnails: Sequence[bytes]) -> Image.Image:
    """One sheet, as wide as 16 thumbnails."""
    rows = -(-len(thumbnails) // TILES_PER_SIDE)
    picture = Image.new("RGB", (TILES_PER_SIDE * TILE, rows * TILE), GREY)
    for n, jpeg in enumerate(thumbnails):
        row, column = divmod(n, TILES_PER_SIDE)
        picture.paste(square(jpeg, TILE), (column * TILE, row * TILE))
    return picture


def on_a_grid(positions: np.ndarray, columns: int, rows: int) -> dict[tuple[int, int], int]:
    """{(column, row): picture} of a grid over the map; the picture nearest to the middle of each cell."""
    at = positions * (columns, rows)  # [n,2]
    cells = np.minimum(at.astype(int), (columns - 1, rows - 1))
    distance = np.linalg.norm(at - cells - 0.5, axis=1)
    order = np.argsort(-distance, kind="stable")  # the nearest is written last
    return {tuple(cells[i].tolist()): int(i) for i in order}
