"""What several test modules share: tiny pictures on disk, and what an error for a person must look like."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def noise(seed: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """A picture of that (width, height) that no other seed gives."""
    width, height = size
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_picture(path: Path, *, seed: int = 0, size: tuple[int, int] = (24, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(seed, size).save(path)
    return path


def write_tree(root: Path, *names: str) -> Path:
    """A picture, each another one, for every name below root."""
    for seed, name in enumerate(names):
        write_picture(root / name, seed=seed)
    return root


@contextmanager
def one_line_error(kind: type[Exception], *names):
    """The block raises `kind`, its message is one line and holds every name."""
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert str(name) in message, message
