"""Small JPEG files of pictures: each picture is decoded once, and a later run reads them from a file."""

import base64
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mgkit.data.decoding import UnreadableImageError, load_image, without_warnings
from mgkit.data.images import ImageList, fingerprints
from mgkit.explore.style import GREY, encoded
from mgkit.photos.embedding.arrays import read_arrays, write_arrays

SIDE = 128  # of a thumbnail, px
QUALITIES = (75, 45, 20)  # of its JPEG: the first that keeps it small
MOST_BYTES = 5000
JPEG = b"\xff\xd8"  # how its files begin
MOST_KEPT = 10_000  # in the file: 50 MB at most


class Thumbnails:
    """Thumbnails of the pictures of a list.

    images: the pictures.
    folder: where they are kept; a missing or damaged file counts as empty.

    A thumbnail is known by the picture's path, size and time of change, as `fingerprints` gives them.
    """

    def __init__(self, images: ImageList, folder: Path):
        self.images, self.path = images, folder / "thumbnails.npz"
        self.kept = kept_at(self.path)
        self.used: dict[int, bytes] = {}
        self.made = 0

    def jpeg(self, i: int) -> bytes:
        """The thumbnail of picture i; empty if the file can no longer be read."""
        key = int(fingerprints(self.images.subset([i]))[0])
        if key not in self.used:
            self.used[key] = self.kept.get(key) or self.make(i)
        return self.used[key]

    def make(self, i: int) -> bytes:
        self.made += 1
        try:
            with without_warnings():
                small = self.images.load(i, least=SIDE)
        except UnreadableImageError:
            return b""
        small.thumbnail((SIDE, SIDE))
        return small_jpeg(small, MOST_BYTES)

    def save(self) -> None:
        """Add new thumbnails to the file, which keeps the last 10,000."""
        if not self.made:
            return
        later = {key: jpeg for key, jpeg in self.used.items() if jpeg}
        earlier = {key: jpeg for key, jpeg in self.kept.items() if key not in later}
        used = dict([*earlier.items(), *later.items()][-MOST_KEPT:])
        write_arrays(
            self.path,
            keys=np.array(list(used), dtype=np.uint64),
            ends=np.cumsum([len(jpeg) for jpeg in used.values()], dtype=np.int64),
            content=np.frombuffer(b"".join(used.values()), dtype=np.uint8),
        )


def kept_at(path: Path) -> dict[int, bytes]:
    """{fingerprint: JPEG} of a file of thumbnails; empty if it is missing, damaged or another file."""
    arrays = read_arrays(path, "keys", "ends", "content")
    if arrays is None or any(each.ndim != 1 for each in arrays) or len(arrays[0]) != len(arrays[1]):
        return {}
    keys, ends, content = arrays[0].tolist(), arrays[1].tolist(), arrays[2].tobytes()
    pieces = [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return {key: jpeg for key, jpeg in zip(keys, pieces, strict=True) if jpeg.startswith(JPEG)}


def small_jpeg(picture: Image.Image, most: int) -> bytes:
    """A picture as JPEG of the best of QUALITIES that needs at most `most` bytes, or of the last."""
    for quality in QUALITIES:
        jpeg = encoded(picture, "jpeg", quality=quality)
        if len(jpeg) <= most:
            break
    return jpeg


def jpeg_uri(jpeg: bytes) -> str:
    """A JPEG file as a data URI; empty if there is none."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}" if jpeg else ""


def square(jpeg: bytes, side: int) -> Image.Image:
    """The middle of a thumbnail as a square; grey if there is none. side: px."""
    try:
        return ImageOps.fit(load_image(jpeg, name="of a thumbnail"), (side, side))
    except UnreadableImageError:
        return Image.new("RGB", (side, side), GREY)
