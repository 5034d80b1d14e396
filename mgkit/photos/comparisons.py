"""Comparisons of a collection's small pictures: each is made once, and kept for the next run.

alignments.rows    a `Table`: how well one picture can be laid over another
copies.rows        a `Table`: the same for the edited copies of a picture
look_alikes.npz    candidates for copies, however turned
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mgkit.machine.progress import progress
from mgkit.photos.copies.alignment import aligned, alignments
from mgkit.photos.copies.edits import EDITS, small_copies
from mgkit.photos.copies.small import as_turned
from mgkit.photos.copies.turned import ALIKE, best_turns, look_alikes, low_resolution
from mgkit.photos.embedding.arrays import read_arrays, write_arrays
from mgkit.photos.embedding.nearest import FEW, changed
from mgkit.photos.embedding.table import Table, right
from mgkit.photos.folder import PhotoList

FORMAT = 1  # increased when what is kept, or how it is measured, changes
FITS = np.dtype([("fits", "<f4", (len(EDITS),)), ("alike", "?", (len(EDITS),))])
PAIRS_AT_ONCE, PICTURES_AT_ONCE = 512, 8  # which a kill costs
SECONDS_WITHOUT_BAR = 3.0


@dataclass(frozen=True)
class Comparisons:
    """Compares pictures of a collection.

    grey, aspects: small pictures and their width / height, as by `small` ([N,64,64], [N]).
    keys: what the pictures are known by ([N] uint64).
    folder: keeps the results; None: nothing is kept.
    """

    grey: np.ndarray
    aspects: np.ndarray
    keys: np.ndarray | None = None
    folder: Path | None = None

    def aligned(self, pairs: np.ndarray) -> np.ndarray:
        """The alignments [P] of pairs (first, second, turn) [P,3], see `alignment.aligned`."""
        if self.folder is None:
            return aligned(self.grey, self.aspects, pairs)
        asked = keys_of_pairs(self.keys, pairs)
        new = np.flatnonzero([key not in self.known for key in asked.tolist()])
        if len(new):
            with self.alignments.locked():
                for part in parts(new, PAIRS_AT_ONCE, "laying pictures over each other"):
                    fits = aligned(self.grey, self.aspects, pairs[part])
                    self.alignments.append(asked[part], fits)
                    self.known.update(zip(asked[part].tolist(), fits.tolist(), strict=True))
        return np.array([self.known[key] for key in asked.tolist()], np.float32)

    @cached_property
    def known(self) -> dict[int, float]:
        """The alignments that are kept, by the keys of the pairs."""
        records = self.alignments.records()
        records = records[right(records)]
        return dict(zip(records["key"].tolist(), records["row"].tolist(), strict=True))

    @property
    def alignments(self) -> Table:
        return Table(self.folder / f"alignments-{FORMAT}.rows", np.dtype("<f4"))

    def of_copies(self, photos: PhotoList, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`laid_copies` of chosen pictures [m] to them."""
        looks = self.grey, self.aspects
        if self.folder is None:
            return laid_copies(photos.subset(chosen), looks, chosen)
        table = Table(self.folder / f"copies-{FORMAT}.rows", FITS)
        with table.locked():
            new = chosen[table.find(self.keys[chosen]) < 0]
            for part in parts(new, PICTURES_AT_ONCE, "laying edited copies over pictures"):
                rows = np.empty(len(part), FITS)
                rows["fits"], rows["alike"] = laid_copies(photos.subset(part), looks, part)
                table.append(self.keys[part], rows)
            found = table.records()["row"][table.find(self.keys[chosen])]
        return found["fits"], found["alike"]

    def look_alikes(self, own: int | None = None) -> np.ndarray:
        """Candidates for copies [P,3], see `turned.look_alikes`; own: of the first pictures, None: of all."""
        kept = None if self.folder is None else KeptCandidates(self.folder / f"look_alikes-{FORMAT}.npz")
        last = kept.read(own) if kept else None
        if last and np.array_equal(last[0], self.keys):
            return last[1]
        rows = low_resolution(self.grey)
        if last and own is None and changed(self.keys, last[0]) <= FEW:
            found = grown(*last, self.keys, rows)
        else:
            found = look_alikes(rows, None if own is None else np.arange(own))
        if kept:
            kept.write(own, self.keys, found)
        return found


def parts(indices: np.ndarray, count: int, description: str) -> Iterable[np.ndarray]:
    """The indices in parts of `count`, with a bar."""
    found = [indices[start : start + count] for start in range(0, len(indices), count)]
    return progress(found, description, unit="parts", delay=SECONDS_WITHOUT_BAR)


def keys_of_pairs(keys: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """What pairs (first, second, turn) [P,3] are known by, from the keys of the pictures: [P] uint64."""
    first, second, turn = pairs.T
    return mixed(mixed(mixed(keys[first]) + keys[second]) + turn.astype(np.uint64))


def mixed(values: np.ndarray) -> np.ndarray:
    """Numbers [n] uint64, each bit of which depends on all bits (Steele et al. 2014, splitmix64)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)  # modulo 2**64
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def laid_copies(
    photos: PhotoList, looks: tuple[np.ndarray, np.ndarray], chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Alignments [m,E] of edited copies of photos [m] to them, and whether they look alike [m,E].

    looks: of the whole collection, in which `chosen` says where the photos are ([m]).
    """
    grey, aspects = (each[chosen].repeat(len(EDITS), axis=0) for each in looks)
    copies, copy_aspects = small_copies(photos)
    copies = copies.reshape(grey.shape)
    alike, turns = best_turns(low_resolution(grey), low_resolution(copies))
    copies, copy_aspects = as_turned(copies, copy_aspects.ravel(), np.where(alike >= ALIKE, turns, 1))
    fits = alignments(grey, copies, aspects, copy_aspects)
    return fits.reshape(-1, len(EDITS)), (alike >= ALIKE).reshape(-1, len(EDITS))


# --- Candidates


@dataclass(frozen=True)
class KeptCandidates:
    """A file that keeps the candidates of the last run. path: of the file; it need not exist."""

    path: Path

    def read(self, own: int | None) -> tuple[np.ndarray, np.ndarray] | None:
        """The keys of the pictures [n], and the candidates [P,3]; None if they are of other queries."""
        arrays = read_arrays(self.path, "keys", "found", "own")
        if arrays is None:
            return None
        keys, found, queries = arrays
        whole = keys.dtype == np.uint64 and keys.ndim == 1 and found.dtype == np.int64
        whole = whole and found.ndim == 2 and found.shape[1] == 3
        whole = whole and np.array_equal(queries, number_of(own))
        inside = whole and ((found >= 0) & (found < [len(keys), len(keys), 9])).all()
        return (keys, found) if inside else None

    def write(self, own: int | None, keys: np.ndarray, found: np.ndarray) -> None:
        write_arrays(self.path, keys=keys, found=found, own=np.array(number_of(own)))


def number_of(own: int | None) -> int:
    return -1 if own is None else own


def grown(earlier: np.ndarray, found: np.ndarray, keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The candidates of pictures [N], most of which are among the earlier ones [n].

    found: the earlier candidates ([P,3]).
    rows: as by `low_resolution` ([N,256]).
    """
    _, here, there = np.intersect1d(keys, earlier, return_indices=True)
    place = np.full(len(earlier), -1)
    place[there] = here
    kept = np.column_stack([place[found[:, :2]], found[:, 2]])
    kept = kept[(kept[:, :2] >= 0).all(1)]
    new = np.setdiff1d(np.arange(len(keys)), here)
    return np.concatenate([kept, look_alikes(rows, new)])
