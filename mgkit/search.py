"""Nearest neighbours among descriptors, exact."""

import numpy as np
import torch


def top_k(
    queries: np.ndarray, database: np.ndarray, *, k: int, chunk: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar rows of the database for each query, by inner product (cosine, for L2-normalised rows).

    queries [Q,D], database [N,D], float32. chunk: queries at a time. Returns (scores [Q,k], indices [Q,k]), best first.
    Raises ValueError for k > N, another D, or descriptors that are not finite.
    """
    check_descriptors(queries, database)
    if not 1 <= k <= len(database):
        raise ValueError(f"k must lie between 1 and the {len(database)} images of the database, got {k}")
    rows = torch.from_numpy(database)
    found = [
        (torch.from_numpy(part) @ rows.T).topk(k)
        for part in np.split(queries, range(chunk, len(queries), chunk))
    ]
    scores, indices = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return scores, indices


def check_descriptors(queries: np.ndarray, database: np.ndarray) -> None:
    """Raise ValueError unless both are finite [*,D] arrays of one D."""
    if queries.ndim != 2 or database.ndim != 2 or queries.shape[1] != database.shape[1]:
        raise ValueError(
            f"queries {queries.shape} and database {database.shape} must be [Q,D] and [N,D] of one D"
        )
    for name, rows in [("queries", queries), ("database", database)]:
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise ValueError(
                f"{len(bad)} descriptors of the {name} are not finite, the first in row {bad[0]}"
            )
