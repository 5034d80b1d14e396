"""The whitening of pictures: learned on them, or that of the network."""

import numpy as np
import torch

from mgkit.config import PhotosConfig
from mgkit.model import MultiGrain, Whitening, append_one
from mgkit.whitening import fit_pca_whitening

IMAGES_PER_DIMENSION = 10  # needed to learn a whitening without shrinkage
FEWEST_TO_WHITEN = 100  # pictures
# Towards equal variances, with fewer pictures per dimension. Lite0, 320 px, 100, 300 and 800 pictures: all
# views of an object are among 8 neighbours of 100.0, 99.6 and 99.0 % of them; with 0.5 of 85.6, 95.4 and
# 98.2 %, without a whitening of 100.0, 99.2 and 98.5 %.
SHRINKAGE = 0.9


def choose_whitening(config: PhotosConfig, net: MultiGrain, rows: np.ndarray) -> tuple[Whitening | None, str]:
    """The whitening of pooled features [n,C], and a phrase that names it and the reason.

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
    shrinkage = 0.0 if enough else SHRINKAGE
    try:
        mean, projection = fit_pca_whitening(append_one(torch.from_numpy(rows)), shrinkage=shrinkage)
    except ValueError as error:
        if asked == "photos":
            raise
        which = "no" if of_network is None else "the network's"
        return of_network, f"{which} whitening (none can be learned on the pictures: {error})"
    device = net.classifier.weight.device
    why = count if enough else f"{count}: shrunk by {shrinkage:g}"
    learned = Whitening(mean.to(device), projection.to(device))
    return learned, f"a whitening learned on the pictures themselves ({why})"
