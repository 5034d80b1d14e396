"""Find the pictures in a user's folders and decode them in bounded memory; nothing is written there."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mgkit.data.decoder_process import header_apart, load_apart, shape_apart
from mgkit.data.folders import NO_FILE, check_folder, kind, of_other_kinds, walk
from mgkit.data.headers import Header
from mgkit.data.images import UNLABELLED, ImageList
from mgkit.machine.printable import printable_errors, shown_name
from mgkit.machine.progress import progress
from mgkit.transforms import fitted_shape

SECONDS_WITHOUT_BAR = 3.0
# Of the decoded picture relative to the resized one, at least. For 320 px, a JPEG of 12 megapixels is decoded
# at 1/8; its embedding has a similarity of at least 0.997 to that from all pixels (at 1/4: 0.9996).
OVERSAMPLING = 1.5


@dataclass(frozen=True)
class PhotoList(ImageList):
    """Images of any size, which `load` shrinks for the network; decoded in a process apart.

    side: pixels of the longest side.
    srgb: whether colour profiles are applied, as by browsers.
    """

    side: int = 96
    srgb: bool = True

    def load(self, index: int, *, least: int | None = None) -> Image.Image:
        """Image `index` as RGB, its rotation tag applied; resized to `side`, or shrunk as by `load_photo`.

        Raises UnreadableImageError.
        """
        path = self.paths[index]
        if least:
            return load_photo(path, least=least, exif=self.exif, srgb=self.srgb)
        size = self.fitted_size(index)
        least = math.ceil(OVERSAMPLING * min(size))
        return load_apart(path, least=least, exif=self.exif, srgb=self.srgb, size=size)

    def shape(self, index: int) -> tuple[int, int]:
        """(width, height) of image `index` as it is shown, from the header; (1, 1) if unreadable."""
        return shape_apart(self.paths[index], self.exif)

    def header(self, index: int) -> Header:
        """What the header of image `index` tells: its shape, the camera's data, what is not shown."""
        return header_apart(self.paths[index], self.exif)

    def fitted_size(self, index: int) -> tuple[int, int]:
        """(width, height) that `feature_maps` expects for the file of image `index`."""
        return fitted_shape(*self.shape(index), self.side, longest=True)[::-1]


@dataclass(frozen=True)
class PhotoFolder:
    """The contents of a user's folders.

    images: every file with an image's suffix, once.
    left_out: {path: reason} of the folders and files that were left out.
    others: number of files of other kinds, by suffix.
    """

    images: PhotoList
    left_out: dict[str, str]
    others: Counter

    def describe(self) -> str:
        """One line: how many images there are, and what was left out."""
        parts = [f"{len(self.images):,} pictures below {shown_name(str(self.images.root))}"]
        if self.left_out:
            first, why = next(iter(self.left_out.items()))
            parts.append(f"{len(self.left_out)} left out, the first {shown_name(first)}: {why}")
        if self.others:
            parts.append(of_other_kinds(Counter({shown_name(kind): n for kind, n in self.others.items()})))
        return "; ".join(parts)


@printable_errors()
def find_photos(folders: Sequence[str | Path], *, side: int, exif: str = "auto") -> PhotoFolder:
    """The pictures below the folders, sorted, without hidden ones; no file is opened.

    A file with several names, by links or because folders overlap, counts once.

    side: pixels, see `PhotoList`.
    exif: `ignore` does not apply the rotation tag.

    Raises an OSError for a folder that is missing or cannot be read, ValueError for one without pictures.
    """
    roots = [os.path.realpath(check_folder(folder, "photos")) for folder in folders]
    paths, left_out, others = [], {}, Counter()
    for root in roots:
        found = len(paths)
        with explained(root):
            for path, images, rest in progress(
                below(root, left_out), "looking for pictures", unit="folders", delay=SECONDS_WITHOUT_BAR
            ):
                paths += [os.path.join(path, name) for name in images]
                others.update(map(kind, rest))
        if len(paths) == found:
            raise ValueError(f"photos: {no_pictures(root, left_out, others)}")
    once = without_other_names(sorted(set(paths)), left_out)
    labels = np.full(len(once), UNLABELLED, dtype=np.int64)
    images = PhotoList(Path(os.path.commonpath(roots)), tuple(once), labels, exif=exif != "ignore", side=side)
    return PhotoFolder(images, left_out, others)


def below(root: str, left_out: dict[str, str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (folder, names of images, of other files) for root and each folder below; fill `left_out`."""

    def leave_out(path: str, error: OSError) -> None:
        left_out[path] = f"the folder cannot be read ({error.strerror})"

    for folder, _, listing in walk(root, on_error=leave_out):
        path = os.path.join(root, folder)
        left_out.update({os.path.join(path, name): f"{NO_FILE}, not a file" for name in listing.special})
        yield path, listing.images, listing.others


@contextmanager
def explained(root: str) -> Iterator[None]:
    """Have an OSError of the block name the folder that cannot be read."""
    try:
        yield
    except OSError as error:
        raise type(error)(
            f"photos: the folder {shown_name(root)} cannot be read ({error.strerror})"
        ) from None


def no_pictures(root: str, left_out: dict[str, str], others: Counter) -> str:
    """The message for a folder without pictures, with what it holds instead."""
    parts = [f"{shown_name(root)} holds no pictures"]
    if others:
        parts.append("; ".join(f"{n} files of kind {shown_name(kind)}" for kind, n in others.most_common(3)))
    if left_out:
        first, why = next(iter(left_out.items()))
        parts.append(f"{len(left_out)} left out, the first {shown_name(first)}: {why}")
    return parts[0] + (f" ({'; '.join(parts[1:])})" if parts[1:] else "")


def without_other_names(paths: Sequence[str], left_out: dict[str, str]) -> list[str]:
    """The paths without further names of the same file, such as links."""
    first, kept = {}, []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            kept.append(path)  # reading it gives the reason
            continue
        identity = (status.st_dev, status.st_ino) if status.st_ino else path
        if identity in first:
            left_out[path] = f"another name of {shown_name(first[identity])}"
        else:
            first[identity] = path
            kept.append(path)
    return kept


def load_photo(path: str, *, least: int, exif: bool = True, srgb: bool = True) -> Image.Image:
    """A picture of at most 128 megapixels, as a browser shows it; of an animation, the first frame.

    Raises UnreadableImageError.
    """
    return load_apart(path, least=least, exif=exif, srgb=srgb)


def remarks(images: PhotoList) -> dict[str, str]:
    """{path: remark} of the pictures that are shown otherwise than they are stored, see `Header`.

    Every header is read, which takes a fraction of a millisecond each.
    """
    said = {path: images.header(i).remark for i, path in enumerate(images.paths)}
    return {path: remark for path, remark in said.items() if remark}


def describe_remarks(found: dict[str, str]) -> str:
    """One line: how many pictures have which of `remarks`; empty without any."""
    counts = Counter(part for remark in found.values() for part in remark.split("; "))
    return "; ".join(f"{part}: {count:,} pictures" for part, count in counts.most_common())
