"""Lists of images with their classes; what identifies a list, and the state of its files."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from mgkit.data.decoding import WHOLE, View, image_shape, load_image

UNLABELLED = -1


@dataclass(frozen=True)
class ImageList:
    """N images with their classes.

    root: the folder they come from, or the text file that lists them.
    paths: N absolute paths.
    labels: [N] int64, index into `classes`; -1 for all if unlabelled.
    exif: whether the rotation tag is applied (own photos) or not (benchmark sets).
        A TIFF, AVIF or HEIF is always turned.
    views: {index: view} of the images that are turned or cropped; a file may be listed whole and cropped.
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...] = ()
    exif: bool = False
    views: Mapping[int, View] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int, *, least: int | None = None) -> Image.Image:
        """Image `index` as RGB, with its rotation tag and view; `least` and errors as for `load_image`."""
        view = self.views.get(int(index), WHOLE)
        return load_image(self.paths[index], exif=self.exif, view=view, least=least)

    def shape(self, index: int) -> tuple[int, int]:
        """(width, height) of image `index` as it is loaded, from the header; (1, 1) if unreadable."""
        return image_shape(self.paths[index], self.exif, self.views.get(int(index), WHOLE))

    def names(self) -> list[str]:
        """The paths below root; of a file elsewhere, as a text file may list it, the whole path."""
        root = os.path.realpath(self.root)
        prefix = os.path.join(os.path.dirname(root) if os.path.isfile(root) else root, "")
        return [path.removeprefix(prefix) for path in self.paths]

    def subset(self, indices: Iterable[int]) -> "ImageList":
        """The images with these indices, in their order."""
        indices = np.fromiter(indices, dtype=np.int64)
        old = indices.tolist()
        views = {new: self.views[i] for new, i in enumerate(old) if i in self.views} if self.views else {}
        return replace(
            self, paths=tuple(self.paths[i] for i in old), labels=self.labels[indices], views=views
        )

    def first_per_class(self, count: int) -> "ImageList":
        """The first `count` images of every class, or all of a smaller class."""
        order = np.argsort(self.labels, kind="stable")
        taken = order[place_in_class(self.labels[order]) < count]
        return self.subset(np.sort(taken))

    def with_exif(self, exif: Literal["auto", "apply", "ignore"]) -> "ImageList":
        """`apply` or `ignore` the rotation tag; `auto` keeps the choice of the layout."""
        return self if exif == "auto" else replace(self, exif=exif == "apply")


def evenly(total: int, count: int) -> np.ndarray:
    """At most `count` of the indices below `total`, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))


def place_in_class(labels: np.ndarray) -> np.ndarray:
    """The position of each of the sorted labels among its equals, [N] -> [N]."""
    return np.arange(len(labels)) - np.searchsorted(labels, labels)


def image_shapes(images: ImageList) -> list[tuple[int, int]]:
    """(width, height) of every image as it is loaded, from the file headers; (1, 1) of an unreadable one."""
    return [images.shape(i) for i in range(len(images))]


# --- Identity: `list_hash` says which data set it is, `files_hash` also whether its files have changed


def list_hash(*lists: ImageList) -> str:
    """SHA-256 of the names below root and the labels, in order; of several lists, joined by "-".

    Copies of a data set have the same, wherever they lie. No file is opened.
    """
    digests = []
    for images in lists:
        digest = hashlib.sha256(os.fsencode("\0".join(images.names())) + b"\0")
        digest.update(images.labels.astype("<i8").tobytes())
        digests.append(digest.hexdigest())
    return "-".join(digests)


def files_hash(images: ImageList) -> str:
    """SHA-256 of the names below root, sizes and times of change, in order, and of how the images are read.

    Whatever changes a pixel changes it; moving the folder or other labels do not. No file is opened.
    """
    digest = hashlib.sha256(reading(images))
    for state in file_states(images, images.names()):
        digest.update(state)
    return digest.hexdigest()


def fingerprints(images: ImageList) -> np.ndarray:
    """[N] uint64: as `files_hash`, for each image on its own, known by its absolute path."""
    read = reading(images)
    digests = (hashlib.blake2b(read + s, digest_size=8).digest() for s in file_states(images, images.paths))
    return np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.uint64)


def reading(images: ImageList) -> bytes:
    """Everything but the files that decides on the pixels: `exif`, `views`, and the fields of subclasses."""
    without_effect = ("root", "paths", "labels", "classes")
    return os.fsencode(repr({key: value for key, value in vars(images).items() if key not in without_effect}))


def file_states(images: ImageList, names: Sequence[str]) -> Iterator[bytes]:
    """Name, size and time of change of each file; a missing one counts as such."""
    for path, name in zip(images.paths, names, strict=True):
        try:
            status = os.stat(path)
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "missing"
        yield os.fsencode(f"{name}\0{state}\0")
