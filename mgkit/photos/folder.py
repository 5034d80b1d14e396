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

from mgkit.data.decoder_process import load_apart, shape_apart
from mgkit.data.folders import NO_FILE, check_folder, kind, of_other_kinds, walk
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

    def fitted_size(self, index: int) -> tuple[int, int]:
        """(width, height) that `feature_maps` expects for the file of image `index`."""
        return fitted_shape(*self.shape(index), self.side, longest=True)[::-1]


@dataclass(frozen=True)
class PhotoFolder:
    """The contents of a user's folders.

    images: every file with an image's suffix, once; those of `photos` come first, then those of `against`.
    left_out: {path: reason} of the folders and files that were left out.
    others: number of files of other kinds, by suffix.
    own: number of the images of `photos`; None: all.
    notes: folders that were given more than once, in lines.
    """

    images: PhotoList
    left_out: dict[str, str]
    others: Counter
    own: int | None = None
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line: how many images there are, and what was left out."""
        parts = [f"{len(self.images):,} pictures below {shown_name(str(self.images.root))}", *self.notes]
        if self.own is not None:
            parts[0] += f", {self.own:,} of photos and {len(self.images) - self.own:,} of against"
        if self.left_out:
            first, why = next(iter(self.left_out.items()))
            parts.append(f"{len(self.left_out)} left out, the first {shown_name(first)}: {why}")
        if self.others:
            parts.append(of_other_kinds(Counter({shown_name(kind): n for kind, n in self.others.items()})))
        return "; ".join(parts)


@printable_errors()
def find_photos(
    folders: Sequence[str | Path], *, side: int, exif: str = "auto", against: Sequence[str | Path] = ()
) -> PhotoFolder:
    """The pictures below the folders, sorted, without hidden ones; no file is opened.

    A file with several names, by links or because folders overlap, counts once; one of `photos` that is in
    `against` under another name counts there, too, unless it is a link to the one of `photos`.

    side: pixels, see `PhotoList`.
    exif: `ignore` does not apply the rotation tag.
    against: folders in which the pictures are looked for.

    Raises an OSError for a folder that is missing or cannot be read, ValueError for one without pictures, and
    for one of `against` that overlaps with one of `photos`.
    """
    roots = real_folders(folders, "photos")
    others_roots = real_folders(against, "against")
    check_apart(roots, others_roots)
    left_out, others = {}, Counter()
    own = without_other_names(pictures_below(roots, "photos", left_out, others), left_out)
    theirs = pictures_below(others_roots, "against", left_out, others)
    theirs = without_other_names(without_links_to(own, theirs, left_out), left_out)
    paths = (*own, *theirs)
    labels = np.full(len(paths), UNLABELLED, dtype=np.int64)
    root = Path(os.path.commonpath([*roots, *others_roots]))
    images = PhotoList(root, paths, labels, exif=exif != "ignore", side=side)
    notes = tuple(repeated(roots, "photos") + repeated(others_roots, "against"))
    return PhotoFolder(images, left_out, others, len(own) if others_roots else None, notes)


def real_folders(folders: Sequence[str | Path], purpose: str) -> list[str]:
    """The folders' paths without links; raises an OSError, with the purpose, for what is no folder."""
    return [os.path.realpath(check_folder(folder, purpose)) for folder in folders]


def inside(path: str, root: str) -> bool:
    """Whether a path is a folder or lies below it; both without links."""
    return path == root or path.startswith(os.path.join(root, ""))


def check_apart(photos: Sequence[str], against: Sequence[str]) -> None:
    """Raise ValueError if a folder of one lies in, or is, a folder of the other."""
    for theirs in against:
        for ours in photos:
            if inside(theirs, ours) or inside(ours, theirs):
                how = "is" if ours == theirs else "lies in" if inside(theirs, ours) else "holds"
                raise ValueError(
                    f"against: {shown_name(theirs)} {how} {shown_name(ours)} of photos: folders apart from "
                    "each other are wanted"
                )


def repeated(roots: Sequence[str], purpose: str) -> list[str]:
    """Lines about folders that were given twice, or that lie in another one."""
    lines = []
    for k, root in enumerate(roots):
        around = next((other for j, other in enumerate(roots) if j != k and inside(root, other)), None)
        if root in roots[:k]:
            lines.append(f"{purpose}: {shown_name(root)} is given twice and counts once")
        elif around not in (None, root):
            lines.append(f"{purpose}: {shown_name(root)} lies in {shown_name(around)} and counts once")
    return lines


def pictures_below(
    roots: Sequence[str], purpose: str, left_out: dict[str, str], others: Counter
) -> list[str]:
    """The paths of the pictures below the folders, sorted; fill `left_out`, and `others` by suffix.

    Raises OSError for a folder that cannot be read, ValueError for one without pictures.
    """
    paths = []
    for root in roots:
        found, kinds = len(paths), Counter()
        with explained(root, purpose):
            for path, images, rest in progress(
                below(root, left_out), "looking for pictures", unit="folders", delay=SECONDS_WITHOUT_BAR
            ):
                paths += [os.path.join(path, name) for name in images]
                kinds.update(map(kind, rest))
        if len(paths) == found:
            raise ValueError(f"{purpose}: {no_pictures(root, left_out, kinds)}")
        others.update(kinds)
    return sorted(set(paths))


def below(root: str, left_out: dict[str, str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (folder, names of images, of other files) for root and each folder below; fill `left_out`."""

    def leave_out(path: str, error: OSError) -> None:
        left_out[path] = f"the folder cannot be read ({error.strerror})"

    for folder, _, listing in walk(root, on_error=leave_out):
        path = os.path.join(root, folder)
        left_out.update({os.path.join(path, name): f"{NO_FILE}, not a file" for name in listing.special})
        yield path, listing.images, listing.others


@contextmanager
def explained(root: str, purpose: str) -> Iterator[None]:
    """Have an OSError of the block name the folder that cannot be read."""
    try:
        yield
    except OSError as error:
        raise type(error)(
            f"{purpose}: the folder {shown_name(root)} cannot be read ({error.strerror})"
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
    for path in sorted(paths, key=lambda path: (os.path.islink(path), path)):  # a file before links to it
        identity = identity_of(path)
        if identity in first:
            left_out[path] = f"another name of {shown_name(first[identity])}"
        else:
            first[identity] = path
            kept.append(path)
    return sorted(kept)


def without_links_to(photos: Sequence[str], paths: Sequence[str], left_out: dict[str, str]) -> list[str]:
    """The paths without links to one of the photos, which keep no picture that is removed there."""
    known = {identity_of(path): path for path in photos} if paths else {}
    kept = []
    for path in paths:
        photo = known.get(identity_of(path))
        if photo and os.path.realpath(path) == os.path.realpath(photo) != path:
            left_out[path] = f"a link to {shown_name(photo)} of photos"
        else:
            kept.append(path)
    return kept


def identity_of(path: str) -> tuple[int, int] | str:
    """What tells a file from others, whatever its name; the path where that is not known."""
    try:
        status = os.stat(path)
    except OSError:  # reading it gives the reason
        return path
    return (status.st_dev, status.st_ino) if status.st_ino else path


def load_photo(path: str, *, least: int, exif: bool = True, srgb: bool = True) -> Image.Image:
    """A picture of at most 128 megapixels, as a browser shows it; of an animation, the first frame.

    Raises UnreadableImageError.
    """
    return load_apart(path, least=least, exif=exif, srgb=srgb)
