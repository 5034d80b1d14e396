"""What a published benchmark consists of: images, archives, companion files."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

SHOWN = 3  # names in a finding

Images = Mapping[str, set[str]]  # folder of a set -> names of the images in it, in small letters


@dataclass(frozen=True)
class Archive:
    """An archive of images.

    urls: tried in this order. place: a file's path in the archive -> its path below the set's folder, None to leave it out.
    fills: the folders of the set that its images go to. sha256: in hexadecimal, where it is known.
    """

    urls: tuple[str, ...]
    place: Callable[[str], str | None]
    fills: tuple[str, ...]
    sha256: str | None = None


@dataclass(frozen=True)
class Companion:
    """A file beside the images: path (or pattern) below the set's folder, what for, and addresses tried in this order."""

    path: str
    use: str
    urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """A published set, as it lies in the folder of its name.

    folders: folder -> published number of images. names: patterns of the images' names. details: the set's folder, its images ->
    what is wrong with them beyond their number, as texts. by_hand: what a person does where there are no archives to fetch.
    """

    folders: Mapping[str, int]
    names: tuple[str, ...]
    details: Callable[[Path, Images], Iterable[str]]
    archives: tuple[Archive, ...] = ()
    companions: tuple[Companion, ...] = ()
    by_hand: str = ""


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def numbered(formats: Mapping[str, tuple[str, int]], folder: Path, images: Images) -> Iterator[str]:
    """Missing images where names are consecutive numbers: folder -> (format of a name, number of images)."""
    for each, (name, number) in formats.items():
        missing = [name.format(i) for i in range(number)] if images[each] else []
        missing = [image for image in missing if image.lower() not in images[each]]
        if missing:
            yield f"missing in {each}/: {some(missing)}"


def images_to(folder: str, path: str, *, out_of: str = "*", leave_out: Sequence[str] = ()) -> str | None:
    """Places the JPEG files of an archive, or those out of folders of one name, in one folder."""
    inside, name = PurePosixPath(path).parent.name, PurePosixPath(path).name
    wanted = (
        name.lower().endswith(".jpg")
        and not name.startswith(".")
        and name not in leave_out
        and fnmatch(inside, out_of)
    )
    return f"{folder}/{name}" if wanted else None


INRIA = "http://pascal.inrialpes.fr"
