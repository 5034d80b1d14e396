"""The images below a folder, found once and remembered."""

import hashlib
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mgkit.machine.files import atomic_write, project_root
from mgkit.machine.progress import progress

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)

FORMAT = 2  # of what is remembered
WORTH_KEEPING = 10_000  # images and folders; fewer are found in 0.1 s, and within seconds on a slow disk

SETTLED_NS = (
    2_000_000_000  # the coarsest clock of a file system: two changes nearer than this may look like one
)

SECONDS_WITHOUT_BAR = 3.0


@dataclass(frozen=True)
class FolderIndex:
    """The images below a folder; hidden files and folders are left out.

    root: the folder, absolute. folders: it (`""`) and every folder below; images: both as paths from root, sorted.
    stamps: [folders,2] int64, when each folder was changed (ns since 1970), by content and by the file system's own clock.
    """

    root: str
    folders: Sequence[str]
    stamps: np.ndarray
    images: Sequence[str]

    def paths(self) -> list[str]:
        """The images' absolute paths, sorted."""
        prefix = os.path.join(self.root, "")
        return [prefix + image for image in self.images]

    def sub_folders(self) -> list[str]:
        """The names of the folders directly below root, sorted."""
        return [name for name in self.folders if name and os.sep not in name]

    def below(self, folder: str) -> slice:
        """Where in `images` those below one of `folders` stand: being sorted, they stand together."""
        after = chr(ord(os.sep) + 1)
        return slice(bisect_left(self.images, folder + os.sep), bisect_left(self.images, folder + after))


def image_files(folder: str | Path) -> list[str]:
    """Every image below the folder, by file name suffix, hidden ones left out; sorted absolute paths."""
    return image_index(folder).paths()


def image_index(folder: str | Path) -> FolderIndex:
    """The images below a folder, links to folders followed; from memory if nothing changed since the last scan.

    Raises OSError, naming it, for a folder that cannot be read.
    """
    root = os.path.realpath(folder)
    return remembered(root) or scan(root)


# --- Scanning


class Listing(NamedTuple):
    """One folder: the names of sub-folders, images and other files in it, and whether it holds a link that leads nowhere yet.

    special: what has an image's name and is a pipe, a socket or a device, of which a reader may wait for ever.
    """

    folders: list[str]
    images: list[str]
    others: list[str]
    dangling: bool
    special: list[str]


def list_folder(folder: str) -> Listing:
    """What a folder holds itself; only links cost more than reading the directory."""
    folders, images, others, dangling, special = [], [], [], False, []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if is_folder(entry):
                folders.append(name)
            elif name[name.rfind(".") :].lower() in IMAGE_SUFFIXES:
                (special if is_special(entry) else images).append(name)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                dangling = True
            else:
                others.append(name)
    return Listing(folders, images, others, dangling, special)


def is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into what may not be entered
        return False


def is_special(entry: os.DirEntry) -> bool:
    """Whether what is no folder is no file either; a link that leads nowhere counts as a file, which cannot be read."""
    try:
        return not entry.is_file() and os.path.exists(entry.path)
    except OSError:
        return False


def walk(
    root: str, *, on_error: Callable[[str, OSError], object] | None = None
) -> Iterator[tuple[str, os.stat_result, Listing]]:
    """(path from root, status, listing) of root and every folder below; a link to a folder around itself is not followed.

    on_error: told of every folder below root that cannot be read, which is then passed over; None: the error is raised.
    """
    pending = [("", frozenset())]
    while pending:
        folder, around = pending.pop()
        path = os.path.join(root, folder)
        try:
            status = os.stat(path)  # before listing: a change meanwhile must make the stamp look old
            identity = status.st_dev, status.st_ino
            if status.st_ino and identity in around:  # file systems without inode numbers say 0
                continue
            listing = list_folder(path)
        except OSError as error:
            if not on_error or not folder:
                raise
            on_error(path, error)
            continue
        yield folder, status, listing
        around = around | {identity}
        pending += [(os.path.join(folder, name), around) for name in sorted(listing.folders, reverse=True)]


def scan(root: str) -> FolderIndex:
    """The index of a folder, from its files; kept if it is large, and nothing in it was changing."""
    began = time.time_ns()
    stamps, images, dangling = {}, [], False
    for folder, status, listing in progress(
        walk(root), "looking for images", unit="folders", delay=SECONDS_WITHOUT_BAR
    ):
        stamps[folder] = stamp(status)
        prefix = os.path.join(folder, "")
        images += [prefix + name for name in sorted(listing.images)]
        dangling |= listing.dangling
    folders = sorted(stamps)
    index = FolderIndex(root, folders, np.array([stamps[f] for f in folders], dtype=np.int64), sorted(images))
    settled = index.stamps.max() < began - SETTLED_NS
    # The target of a dangling link may appear (a disk be mounted) without any stamp here changing.
    if len(images) + len(folders) >= WORTH_KEEPING and settled and not dangling:
        remember(index)
    return index


def stamp(status: os.stat_result) -> tuple[int, int]:
    """When a folder's content was changed; and its status, for archivers set the former back to what it was."""
    return status.st_mtime_ns, status.st_ctime_ns


# --- Remembering


def place(root: str) -> Path:
    """The file that remembers the index of root."""
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
    return project_root() / "data" / ".index" / f"{name}.npz"


def key(root: str) -> bytes:
    """What an index must have in common with the code that reads it."""
    return joined([str(FORMAT), root, *sorted(IMAGE_SUFFIXES)])


def joined(names: Sequence[str]) -> bytes:
    """Names as bytes, each ended by a NUL, the one character that no file name has."""
    return os.fsencode("".join([name + "\0" for name in names]))


def separate(names: np.ndarray) -> list[str]:
    """The names that `joined` made the bytes [n] of."""
    return os.fsdecode(names.tobytes()).split("\0")[:-1]


def remember(index: FolderIndex) -> None:
    """Keep an index; where that is impossible (no space, no permission), or would change the folder itself, do without."""
    names = {"key": key(index.root), "folders": joined(index.folders), "images": joined(index.images)}
    arrays = {name: np.frombuffer(content, dtype=np.uint8) for name, content in names.items()}
    with suppress(OSError):
        path = place(index.root)
        if path.resolve().is_relative_to(index.root):
            return
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, stamps=index.stamps, **arrays)


def remembered(root: str) -> FolderIndex | None:
    """The index that was kept of root; None where there is none, it is damaged, or a folder has changed since."""
    try:
        with np.load(place(root), allow_pickle=False) as kept:
            if kept["key"].tobytes() != key(root):
                return None
            folders, stamps = separate(kept["folders"]), kept["stamps"]
            if not np.array_equal(stamps, [stamp(os.stat(os.path.join(root, f))) for f in folders]):
                return None
            return FolderIndex(root, folders, stamps, separate(kept["images"]))
    except Exception:  # no file, a folder that is gone; and a damaged archive may raise anything
        return None


def check_folder(folder: str | Path, purpose: str) -> Path:
    """The folder as a path; FileNotFoundError, NotADirectoryError or PermissionError that names it and its purpose."""
    folder = Path(folder)
    try:
        exists = folder.exists()
    except OSError as error:  # a folder around it may not be entered
        raise type(error)(f"{purpose}: the folder {folder} cannot be read ({error.strerror})") from None
    if not exists:
        raise FileNotFoundError(f"{purpose}: the folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{purpose}: {folder} is not a folder")
    return folder
