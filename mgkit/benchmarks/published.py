"""Records of published benchmarks: images, archives, companion files."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TypeVar

SHOWN = 3  # names in a finding
INRIA = "http://pascal.inrialpes.fr"

# folder of a benchmark -> its images in lower case, by name, or by path in that folder if they lie deeper
Images = Mapping[str, set[str]]

Lists = TypeVar("Lists")


@dataclass(frozen=True)
class Archive:
    """An archive of images.

    urls: addresses, tried in this order
    place: maps a path in the archive to a path in the benchmark's folder, None to skip the file
    fills: folders that its images go to
    sha256: in hexadecimal, if known
    stored: name of the downloaded file; "" for the one in the first address
    """

    urls: tuple[str, ...]
    place: Callable[[str], str | None]
    fills: tuple[str, ...]
    sha256: str | None = None
    stored: str = ""

    @property
    def file_name(self) -> str:
        """Name of the downloaded file."""
        return self.stored or server_name(self.urls)


@dataclass(frozen=True)
class Companion:
    """A file beside the images: path or pattern in the benchmark's folder, purpose, and addresses."""

    path: str
    use: str
    urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark, as stored in the folder of its name.

    folders: number of images by folder
    names: patterns of file names
    details: yields findings on the folder and its images beyond their number
    by_hand: instructions where there are no archives
    depth: most folders between one of `folders` and its images
    beside: patterns of other files and folders that come with the images (lower case)
    other: the record of another layout that the set is passed on in
    """

    folders: Mapping[str, int]
    names: tuple[str, ...]
    details: Callable[[Path, Images], Iterable[str]]
    archives: tuple[Archive, ...] = ()
    companions: tuple[Companion, ...] = ()
    by_hand: str = ""
    depth: int = 0
    beside: tuple[str, ...] = ()
    other: "Benchmark | None" = None

    def is_in(self, folder: Path) -> bool:
        """Return whether a folder holds the first of `folders`."""
        return (folder / next(iter(self.folders))).is_dir()

    def layout_of(self, folder: Path) -> "Benchmark":
        """Return the record of the layout that a folder has; this one if it has none."""
        return self.other if self.other and not self.is_in(folder) and self.other.is_in(folder) else self


def server_name(urls: Sequence[str]) -> str:
    """Return the file name in the first address."""
    return urls[0].rpartition("/")[2]


def abbreviated(names: Iterable[str]) -> str:
    """Format the first names, and the number of others."""
    names = sorted(names)
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def numbered(formats: Mapping[str, tuple[str, int]], folder: Path, images: Images) -> Iterator[str]:
    """Yield findings on missing images with consecutive numbers; formats: (name, number) by folder."""
    for inside, (name, number) in formats.items():
        missing = [name.format(i) for i in range(number)] if images[inside] else []
        missing = [image for image in missing if image.lower() not in images[inside]]
        if missing:
            yield f"missing in {inside}/: {abbreviated(missing)}"


def check_lists(
    read: Callable[[Path], Lists],
    compare: Callable[[Lists, Images], Iterable[str]],
    folder: Path,
    images: Images,
) -> Iterator[str]:
    """Yield what `compare` finds in a set's lists and images, or why `read` cannot read the lists.

    Lists that are missing are companions, which have findings of their own.
    """
    try:
        lists = read(folder)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        yield str(error)
        return
    yield from compare(lists, images)


def missing_images(listed: Iterable[str], images: Images) -> Iterator[str]:
    """Yield a finding on images that lists name, by their paths in the set's folder, and that are missing."""
    there = {f"{inside.lower()}/{name}" for inside, names in images.items() for name in names}
    missing = {path for path in listed if path.lower() not in there}
    if missing and there:
        yield f"missing: {abbreviated(missing)}"


def kept_from(top: str, path: str) -> str | None:
    """Place the files below an archive's folder of that name where they are, from that folder on."""
    parts = PurePosixPath(path).parts
    hidden = any(part.startswith(".") for part in parts if part not in (".", ".."))
    return "/".join(parts[parts.index(top) :]) if top in parts[:-1] and not hidden else None


def images_to(folder: str, path: str, *, out_of: str = "*", leave_out: Sequence[str] = ()) -> str | None:
    """Place the JPEG files of an archive, or of its folders named `out_of`, in one folder."""
    parent, name = PurePosixPath(path).parent.name, PurePosixPath(path).name
    is_image = name.lower().endswith(".jpg") and not name.startswith(".") and name not in leave_out
    return f"{folder}/{name}" if is_image and fnmatch(parent, out_of) else None
