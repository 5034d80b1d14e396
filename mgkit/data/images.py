"""Lists of images with their classes."""

import hashlib
import os
from collections.abc import Iterable, Mapping
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

    root: the folder they come from. paths: N absolute paths. labels: [N] int64, index into `classes`, or -1 throughout.
    exif: whether the camera's rotation tag is applied (a user's own photos) or not (benchmark sets); a TIFF's always is.
    views: by index, of the images that are not taken as they are; one file may be there whole and cropped.
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
        """Image `index` as RGB, rotated and cropped as the list says; least, and what is raised: as for `load_image`."""
        view = self.views.get(int(index), WHOLE)
        return load_image(self.paths[index], exif=self.exif, view=view, least=least)

    def subset(self, indices: Iterable[int]) -> "ImageList":
        """The images of those indices, in their order."""
        indices = np.fromiter(indices, dtype=np.int64)
        old = indices.tolist()
        views = {new: self.views[i] for new, i in enumerate(old) if i in self.views} if self.views else {}
        return replace(
            self, paths=tuple(self.paths[i] for i in old), labels=self.labels[indices], views=views
        )

    def first_per_class(self, count: int) -> "ImageList":
        """The first `count` images of every class (all, where a class has fewer)."""
        order = np.argsort(self.labels, kind="stable")
        taken = order[place_in_class(self.labels[order]) < count]
        return self.subset(np.sort(taken))

    def with_exif(self, exif: Literal["auto", "apply", "ignore"]) -> "ImageList":
        """`apply` or `ignore` the rotation tag; `auto` leaves what the layout suggests."""
        return self if exif == "auto" else replace(self, exif=exif == "apply")


def list_hash(images: ImageList) -> str:
    """SHA-256 over the paths below `root` and the labels, in their order; no image is opened.

    Two copies of a dataset, wherever they lie, have the same. Of an image elsewhere than below root, as a text file may list
    it, the whole path counts.
    """
    root = images.root.resolve()
    below = os.path.join(root.parent if root.is_file() else root, "")
    names = "\0".join(path.removeprefix(below) for path in images.paths)
    digest = hashlib.sha256(os.fsencode(names) + b"\0")
    digest.update(images.labels.astype("<i8").tobytes())
    return digest.hexdigest()


def evenly(total: int, count: int) -> np.ndarray:
    """Indices of at most `count` of so many things, evenly spread over them, the first and the last among them."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))


def place_in_class(labels: np.ndarray) -> np.ndarray:
    """How many equal labels stand before each of the sorted labels, [N] -> [N]."""
    return np.arange(len(labels)) - np.searchsorted(labels, labels)


def image_shapes(images: ImageList) -> list[tuple[int, int]]:
    """(width, height) of every image as it is loaded, from the file headers; an unreadable one counts as (1, 1)."""
    return [image_shape(path, images.exif, images.views.get(i, WHOLE)) for i, path in enumerate(images.paths)]
