"""Pooled features -> descriptors: whitening, fewer dimensions, several scales (sections 3.6 and 4.3)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mgkit.model import MultiGrain
from mgkit.pooling import l2_normalize

ROWS = 8192  # at a time: bounds what is held beside the result


def plain(pooled: np.ndarray) -> np.ndarray:
    """L2-normalised GeM embeddings, [N,C] -> [N,C] float32."""
    return in_blocks(l2_normalize, [pooled], dimensions=pooled.shape[1])


def whitened(net: MultiGrain, pooled: np.ndarray, *, dims: int | None = None) -> np.ndarray:
    """Whitened descriptors of a whitened network, [N,C] -> [N,D] float32, L2-normalised (section 3.6).

    dims: keep that many components, those of largest variance; None: all C + 1. Raises ValueError for a network without
    whitening, or dims outside 1..C+1.
    """
    if net.whitening is None:
        raise ValueError(f"the {net.name} network has no whitening: make one with 03_whiten")
    size = net.width + 1
    if dims is not None and not 1 <= dims <= size:
        raise ValueError(
            f"dims must lie between 1 and the {size} dimensions of the whitened descriptor, got {dims}"
        )
    device = net.classifier.weight.device

    def describe(rows: Tensor) -> Tensor:
        return l2_normalize(net.whitening(rows.to(device))[:, :dims]).cpu()  # components fall in variance

    return in_blocks(describe, [pooled], dimensions=dims or size)


def multi_scale(descriptors: Sequence[np.ndarray]) -> np.ndarray:
    """One descriptor from those at several scales: the L2-normalised sum, S × [N,D] -> [N,D] float32."""
    return in_blocks(
        lambda *of_scales: l2_normalize(sum(of_scales)), descriptors, dimensions=descriptors[0].shape[1]
    )


def in_blocks(
    function: Callable[..., Tensor], arrays: Sequence[np.ndarray], *, dimensions: int
) -> np.ndarray:
    """function over the rows of arrays that lie on disk or in memory, a block at a time."""
    count = len(arrays[0])
    found = np.empty((count, dimensions), dtype=np.float32)
    with torch.no_grad():
        for start in range(0, count, ROWS):
            rows = slice(start, start + ROWS)
            # np.array: of what lies on disk the block alone is read, and is writable, as torch wants it
            found[rows] = function(*(torch.from_numpy(np.array(array[rows])) for array in arrays)).numpy()
    return found
