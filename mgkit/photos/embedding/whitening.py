"""The whitening of pictures: learned on them, or that of the network.

One that was learned is kept until the folder has changed a lot. Otherwise each new picture would change the
descriptors of all.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mgkit.config import PhotosConfig
from mgkit.data.images import evenly
from mgkit.features import in_blocks, rows_at
from mgkit.model import MultiGrain, Whitening, append_one
from mgkit.photos.embedding.arrays import read_arrays, write_arrays
from mgkit.photos.embedding.nearest import FEW, changed
from mgkit.whitening import fit_pca_whitening

IMAGES_PER_DIMENSION = 10  # needed to learn a whitening without shrinkage
MOST_LEARNED = 30_000  # pictures, evenly spaced, of a large collection
FEWEST_TO_WHITEN = 100  # pictures
# Towards equal variances, with fewer pictures per dimension. Lite0, 320 px, 100, 300 and 800 pictures: all
# views of an object are among 8 neighbours of 100.0, 99.6 and 99.0 % of them; with 0.5 of 85.6, 95.4 and
# 98.2 %, without a whitening of 100.0, 99.2 and 98.5 %.
SHRINKAGE = 0.9


@dataclass(frozen=True)
class KeptWhitening:
    """A file that keeps the whitening which was learned on pictures.

    path: of the file; it need not exist.
    keys: what the n pictures of this run are known by ([n] uint64).
    """

    path: Path
    keys: np.ndarray

    def read(self, dimensions: int) -> tuple[Whitening, str] | None:
        """The whitening and the phrase on it; None if there is none, or the pictures are no longer those."""
        arrays = read_arrays(self.path, "mean", "projection", "keys", "why")
        if arrays is None or {each.dtype for each in arrays[:2]} != {np.dtype(np.float32)}:
            return None
        mean, projection, keys, why = *map(torch.from_numpy, arrays[:2]), arrays[2], str(arrays[3])
        shapes = (mean.shape, projection.shape) == ((dimensions,), (dimensions, dimensions))
        finite = shapes and bool(mean.isfinite().all() and projection.isfinite().all())
        if not finite:
            return None
        if changed(self.keys, keys) > FEW:
            print("the whitening is learned anew: more than a fifth of its pictures are new or gone")
            return None
        different = len(np.setxor1d(self.keys, keys))
        since = f"; {different:,} pictures are new or gone since" if different else ""
        return Whitening(mean, projection), why + since

    def write(self, whitening: Whitening, why: str) -> None:
        arrays = {name: value.cpu().numpy() for name, value in matrices(whitening).items()}
        write_arrays(self.path, **arrays, keys=self.keys, why=np.array(why))


def matrices(whitening: Whitening) -> dict[str, torch.Tensor]:
    return {"mean": whitening.pca.pca_m, "projection": whitening.pca.pca_P}


def identity_of(whitening: Whitening | None) -> str:
    """A SHA-256 of a whitening's values; empty for none."""
    if whitening is None:
        return ""
    digest = hashlib.sha256()
    for value in matrices(whitening).values():
        digest.update(value.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def choose_whitening(
    config: PhotosConfig, net: MultiGrain, rows: np.ndarray, kept: KeptWhitening | None = None
) -> tuple[Whitening | None, str]:
    """The whitening of pooled features [n,C], and a phrase that names it and the reason.

    kept: one that was learned in an earlier run is taken from it while the pictures are nearly the same, and
        one that is learned now is written to it; None: it is learned in any case

    auto: learned on the pictures if there are ten per dimension; else the network's; else learned on the
    pictures with shrinkage; none for fewer than 100. Raises ValueError if the configured one is missing.
    """
    dimensions = net.width + 1
    enough = len(rows) >= IMAGES_PER_DIMENSION * dimensions
    count = f"{len(rows):,} pictures, {dimensions} dimensions"
    asked, of_network = config.whitening, net.whitening
    if asked == "none":
        return None, "no whitening, as asked for"
    if asked == "network":
        if of_network is None:
            raise ValueError("whitening: the network has none; make one with 03_whiten, or choose auto")
        return of_network, "the network's whitening (as asked for)"
    if asked == "auto" and not enough and of_network is not None:
        return of_network, f"the network's whitening ({count}: too few to learn one on them)"
    if asked == "auto" and len(rows) < FEWEST_TO_WHITEN:
        return None, f"no whitening ({count}: too few to learn one on them, and the network has none)"
    if kept and (earlier := kept.read(dimensions)):
        return earlier[0].to(net.classifier.weight.device), earlier[1]
    try:
        learned = learned_on(rows, shrinkage=0.0 if enough else SHRINKAGE)
    except ValueError as error:
        if asked == "photos":
            raise
        which = "no" if of_network is None else "the network's"
        return of_network, f"{which} whitening (none can be learned on the pictures: {error})"
    why = count if enough else f"{count}: shrunk by {SHRINKAGE:g}"
    said = f"a whitening learned on the pictures themselves ({why})"
    if kept:
        kept.write(learned, said)
    return learned.to(net.classifier.weight.device), said


def learned_on(rows: np.ndarray, *, shrinkage: float) -> Whitening:
    """The whitening of pooled features [n,C], or of a sample of many; ValueError if there is none."""
    dimensions = rows.shape[1] + 1
    chosen = evenly(len(rows), max(MOST_LEARNED, IMAGES_PER_DIMENSION * dimensions))
    sample = in_blocks(append_one, [rows_at(rows, chosen)], dimensions=dimensions)  # [m,C+1]
    return Whitening(*fit_pca_whitening(sample, shrinkage=shrinkage))
