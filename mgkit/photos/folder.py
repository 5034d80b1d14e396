"""A person's folders of pictures: what is in them, what is left out and why; decoded in bounded memory, never written to."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mgkit.data.decoding import (
    WHOLE,
    UnreadableImageError,
    cannot_read,
    decoding,
    image_shape,
    rotation,
    to_rgb,
    turned,
)
from mgkit.data.folders import check_folder, walk
from mgkit.data.images import UNLABELLED, ImageList
from mgkit.explore.browse import FORMATS
from mgkit.machine.progress import progress
from mgkit.transforms import fitted_shape

MOST_PIXELS = 128_000_000  # of a picture: 512 MB once it is decoded, unless it is a JPEG
MOST_SIDE = 2**15  # px, of a picture as it is decoded: what edits or shows it has limits, a JPEG's is 65,500
STRIP_PIXELS = 2**21  # that are converted at a time
NO_FILE = "a pipe, a socket or a device, and no file"
SHOWN_AS_THEY_ARE = "\u200d"  # joins emoji; not printable by itself
SECONDS_WITHOUT_BAR = 3.0


@dataclass(frozen=True)
class PhotoList(ImageList):
    """Images of any size, which `load` gives as the network wants them: whole, their longest side of `side` pixels."""

    side: int = 96

    def load(self, index: int, *, least: int | None = None) -> Image.Image:
        """Image `index` as RGB, turned as the camera says; its longest side has `side` pixels, or its sides at least `least`.

        Raises UnreadableImageError, naming the file.
        """
        picture = load_photo(self.paths[index], least=least or 2 * self.side, exif=self.exif)
        return picture if least else self.fitted(index, picture)

    def fitted(self, index: int, picture: Image.Image) -> Image.Image:
        """A picture of image `index` with its longest side of `side` pixels: the shape that `features.feature_maps` expects."""
        with without_warnings():
            width, height = image_shape(self.paths[index], self.exif, WHOLE)
        height, width = fitted_shape(width, height, self.side, longest=True)
        return picture.resize((width, height), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class PhotoFolder:
    """What is below a person's folders.

    images: every file with an image's suffix, once. left_out: {path: why} of folders and files that are not among them. others:
    how many files there are of other kinds, by suffix.
    """

    images: PhotoList
    left_out: dict[str, str]
    others: Counter

    def describe(self) -> str:
        """One line: how many images, what is passed over."""
        parts = [f"{len(self.images):,} pictures below {shown_name(str(self.images.root))}"]
        if self.left_out:
            first, why = next(iter(self.left_out.items()))
            parts.append(f"{len(self.left_out)} left out, the first {shown_name(first)}: {why}")
        if self.others:
            kinds = ", ".join(f"{shown_name(kind)} {n}" for kind, n in self.others.most_common(5))
            parts.append(f"{self.others.total()} files of other kinds ({kinds})")
        return "; ".join(parts)


def find_photos(folders: Sequence[str | Path], *, side: int, exif: str = "auto") -> PhotoFolder:
    """The pictures anywhere below the folders, hidden ones left out, sorted; no file is opened.

    side: pixels, of `PhotoList`. exif: `ignore` leaves pictures as the camera held them. A file with several names, by links
    or because folders overlap, counts once. Raises FileNotFoundError, NotADirectoryError, PermissionError and ValueError, naming
    the folder, for one that is missing, no folder, cannot be read, or holds no pictures.
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
                others.update(os.path.splitext(name)[1].lower() or "no suffix" for name in rest)
        if len(paths) == found:
            raise ValueError(f"photos: {no_pictures(root, left_out, others)}")
    once = without_other_names(sorted(set(paths)), left_out)
    labels = np.full(len(once), UNLABELLED, dtype=np.int64)
    images = PhotoList(Path(os.path.commonpath(roots)), tuple(once), labels, exif=exif != "ignore", side=side)
    return PhotoFolder(images, left_out, others)


def below(root: str, left_out: dict[str, str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """(folder, names of images, names of other files) of root and every folder below that can be read; left_out gets the rest."""

    def leave_out(path: str, error: OSError) -> None:
        left_out[path] = f"the folder cannot be read ({error.strerror})"

    for folder, _, listing in walk(root, on_error=leave_out):
        path = os.path.join(root, folder)
        left_out.update({os.path.join(path, name): NO_FILE for name in listing.special})
        yield path, listing.images, listing.others


@contextmanager
def explained(root: str) -> Iterator[None]:
    """An OSError in the block says in one line which folder cannot be read."""
    try:
        yield
    except OSError as error:
        raise type(error)(
            f"photos: the folder {shown_name(root)} cannot be read ({error.strerror})"
        ) from None


def no_pictures(root: str, left_out: dict[str, str], others: Counter) -> str:
    """Why nothing is found below a folder, as far as that can be told."""
    parts = [f"{shown_name(root)} holds no pictures"]
    if others:
        parts.append("; ".join(f"{n} files of kind {shown_name(kind)}" for kind, n in others.most_common(3)))
    if left_out:
        first, why = next(iter(left_out.items()))
        parts.append(f"{len(left_out)} left out, the first {shown_name(first)}: {why}")
    return parts[0] + (f" ({'; '.join(parts[1:])})" if parts[1:] else "")


def without_other_names(paths: Sequence[str], left_out: dict[str, str]) -> list[str]:
    """The paths without those that lead to a file that is there already: a link is no copy."""
    first, kept = {}, []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            kept.append(path)  # reading it will say why
            continue
        identity = (status.st_dev, status.st_ino) if status.st_ino else path
        if identity in first:
            left_out[path] = f"another name of {shown_name(first[identity])}"
        else:
            first[identity] = path
            kept.append(path)
    return kept


def shown_name(name: str) -> str:
    """A file's name as text that can be printed on one line, whatever bytes and characters it is made of."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() or c in SHOWN_AS_THEY_ARE else escape(c) for c in text)


def escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


# --- Decoding


def load_photo(path: str, *, least: int, exif: bool = True) -> Image.Image:
    """The picture as RGB, as a whole, its sides a whole fraction of the file's, with at least `least` pixels where it has them.

    A very long, thin one has fewer on its short side, for its long side has at most 32,768.
    A JPEG is decoded at that fraction; of others the decoded file is held once, and converted a strip at a time. exif: turned as
    the camera says, as a TIFF always is. The first frame of an animation. Raises UnreadableImageError, naming the file, also for more than 128
    megapixels.
    """

    def message(error: Exception) -> str:
        if isinstance(error, Image.DecompressionBombError):
            return too_large(path, f"more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f}")
        return cannot_read(path, error)

    with decoding(message), without_warnings(), Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            raise UnreadableImageError(too_large(path, f"{image.width * image.height / 1e6:.0f}"))
        image.draft(None, (least, least))
        image.load()
        factor = max(1, min(image.size) // least, -(-max(image.size) // MOST_SIDE))
        small = reduced(image, factor)
        return turned(small, rotation(image) if exif else 1)


def too_large(path: str, megapixels: str) -> str:
    return f"{path} has {megapixels} megapixels: at most {MOST_PIXELS / 1e6:.0f} are read"


def reduced(image: Image.Image, factor: int) -> Image.Image:
    """Any PIL image -> RGB, each factor × factor pixels averaged; no second picture of the file's size is held."""
    width, height = (-(-side // factor) for side in image.size)
    rows = factor * max(1, STRIP_PIXELS // (image.width * factor))
    small = Image.new("RGB", (width, height))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        small.paste(to_rgb(strip).reduce(factor), (0, top // factor))
    return small


@contextmanager
def without_warnings() -> Iterator[None]:
    """PIL warns of large pictures, for which another limit holds here, and of damaged ones, which are read or listed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
