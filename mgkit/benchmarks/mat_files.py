"""Lists in MATLAB files, which are read without running anything."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np

Content = TypeVar("Content")


def read_mat(
    path: Path, what: str, names: Sequence[str], convert: Callable[[dict[str, np.ndarray]], Content]
) -> Content:
    """Read the named variables of a MATLAB file (version 5), squeezed to at least one axis, and convert them.

    what: what the file is, for errors
    convert: makes of {name: array} what is wanted, and may raise anything for a file that is not that
    Raises FileNotFoundError for a missing and ValueError for a damaged or another file.
    """
    from scipy.io import loadmat  # slow to import, and few sets need it

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: it is {what}")
    content = BytesIO(path.read_bytes())
    try:
        found = loadmat(content, squeeze_me=True, variable_names=list(names))
        return convert({name: np.atleast_1d(found[name]) for name in names})
    except Exception as error:  # a damaged file may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is damaged, or not {what}: {reason}") from None
