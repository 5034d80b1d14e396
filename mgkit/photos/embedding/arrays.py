"""What is kept between runs, as arrays in a file of an experiment's features."""

import zipfile
from pathlib import Path

import numpy as np

from mgkit.machine.files import atomic_write


def read_arrays(path: Path, *names: str) -> tuple[np.ndarray, ...] | None:
    """The arrays of these names; None if the file is missing, damaged or another one."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return tuple(arrays[name] for name in names)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays atomically. Raises RefusedError."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
