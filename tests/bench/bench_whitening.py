"""The fit of the whitening beside a covariance and its eigenvectors in numpy, both in float64."""

import numpy as np
from measuring import Row, compared, extra_memory

from mgkit.whitening import fit_pca_whitening

COUNT, DIM = 20_000, 2048


def rows(rounds: int = 5) -> list[Row]:
    x = np.random.default_rng(0).standard_normal((COUNT, DIM), dtype=np.float32)
    x *= np.geomspace(1, 0.03, DIM, dtype=np.float32)  # variances over three orders of magnitude

    def numpy() -> None:
        wide = x.astype(np.float64)
        wide -= wide.mean(0)
        np.linalg.eigh(wide.T @ wide / (COUNT - 1))

    found = compared(
        f"whitening fit, {COUNT:,} × {DIM:,}", lambda: fit_pca_whitening(x), numpy, rounds=rounds, wanted=1.3
    )
    grown = extra_memory(lambda: fit_pca_whitening(x))
    if grown is None:
        return [found]
    memory = Row(
        "whitening fit: memory beside the data", grown / 2**20, x.nbytes / 2**20, "MiB",
        grown / x.nbytes, 1.5, True, of="of the data",
    )  # fmt: skip
    return [found, memory]
