"""What a picture's file holds besides its pixels."""

import os
from dataclasses import dataclass

from mgkit.data.decoding import WHOLE, image_shape, without_warnings


@dataclass(frozen=True)
class Facts:
    """What is known of a picture's file.

    width, height: as shown (px).
    size: of the file (bytes).
    changed: its time of change (s since 1970).
    taken: when it was photographed (s since 1970), by the camera's data; None if it has none.
    camera: whether it names the camera.
    turned: whether a rotation tag turns it.
    remark: what was done to it while it was read, as text; empty: nothing.
    """

    width: int
    height: int
    size: int
    changed: float
    taken: float | None = None
    camera: bool = False
    turned: bool = False
    remark: str = ""


def read_facts(path: str, exif: bool = True) -> Facts:
    """The facts of a picture's file, from its header; of a file that is gone, 0 bytes."""
    try:
        status = os.stat(path)
    except OSError:
        return Facts(1, 1, 0, 0.0)
    with without_warnings():
        width, height = image_shape(path, exif, WHOLE)
    return Facts(width, height, status.st_size, status.st_mtime)
