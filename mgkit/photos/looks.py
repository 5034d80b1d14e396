"""What a picture's file holds besides its pixels."""

from dataclasses import dataclass


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
