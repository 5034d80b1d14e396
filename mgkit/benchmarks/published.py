"""Records of published benchmarks: images, archives, companion files."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

SHOWN = 3  # names in a finding
INRIA = "http://pascal.inrialpes.fr"

Images = Mapping[str, set[str]]  # folder of a benchmark -> names of its images in lower case


@dataclass(frozen=True)
class Archive:
    """An archive of images.

    urls: addresses, tried in this order
    place: maps a path in the archive to a path in the benchmark's folder, None to skip the file
    fills: folders that its images go to
    sha256: in hexadecimal, if known
    """

    urls: tuple[str, ...]
    place: Callable[[str], str | None]
    fills: tuple[str, ...]
    sha256: str | None = None


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
    """

    folders: Mapping[str, int]
    names: tuple[str, ...]
    details: Callable[[Path, Images], Iterable[str]]
    archives: tuple[Archive, ...] = ()
    companions: tuple[Companion, ...] = ()
    by_hand: str = ""


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


def images_to(folder: str, path: str, *, out_of: str = "*", leave_out: Sequence[str] = ()) -> str | None:
    """Place the JPEG files of an archive, or of its folders named `out_of`, in one folder."""
    parent, name = PurePosixPath(path).parent.name, PurePosixPath(path).name
    is_image = name.lower().endswith(".jpg") and not name.startswith(".") and name not in leave_out
    return f"{folder}/{name}" if is_image and fnmatch(parent, out_of) else None
