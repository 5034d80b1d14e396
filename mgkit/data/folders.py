"""Find the images below a folder; the index of a large folder is kept on disk until a folder changes."""

import hashlib
import os
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mgkit.data.decoding import RAW_SUFFIXES
from mgkit.machine.files import atomic_write, project_root
from mgkit.machine.printable import shown_name
from mgkit.machine.progress import progress

# Of the formats that `decoding.FORMATS` reads; RAW_SUFFIXES are read as well.
READ = """.jpg .jpeg .jpe .jfif .pjpeg .pjp .mpo .png .apng .bmp .dib .gif .webp .avif .avifs .tif .tiff
    .ppm .pgm .pbm .pnm .pfm .jp2 .j2k .j2c .jpc .jpf .jpx .heic .heif .hif .heics .heifs"""
# Pictures and films that are not read. The index counts them; files of other kinds belong to a layout.
UNREAD = """.jxl .jxr .wdp .hdp .jls .svg .svgz .pdf .eps .ps .ai .psd .psb .xcf .kra .ico .icns .cur .tga
    .pcx .sgi .dds .exr .hdr .wmf .emf .fits .fit .dcm .nii .djvu .mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg
    .mts .m2ts .wmv .flv .3gp .ogv"""
IMAGE_SUFFIXES, UNREAD_SUFFIXES = RAW_SUFFIXES | set(READ.split()), frozenset(UNREAD.split())
# Folders that systems and archivers put beside the user's; counted as hidden.
OF_SYSTEMS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
NO_FILE = "a pipe, a socket or a device"

FORMAT = 3  # of the file that keeps an index
WORTH_KEEPING = 10_000  # images and folders; fewer are found in 0.1 s, and within seconds on a slow disk
SETTLED_NS = 2_000_000_000  # the coarsest clock of a file system: two changes within it may get one stamp
SECONDS_WITHOUT_BAR = 3.0


@dataclass(frozen=True)
class FolderIndex:
    """The images below a folder, without hidden files and folders.

    root: the folder, absolute.
    folders: root (`""`) and every folder below, as paths from root, sorted.
    stamps: [folders,2] int64, each folder's times of change (ns since 1970), see `stamp`.
    images: paths from root, sorted.
    left_out: number of pictures and films that are not read, by suffix; of pipes and devices, by `NO_FILE`.
    """

    root: str
    folders: Sequence[str]
    stamps: np.ndarray
    images: Sequence[str]
    left_out: Counter

    def paths(self) -> list[str]:
        """The images' absolute paths, sorted."""
        prefix = os.path.join(self.root, "")
        return [prefix + image for image in self.images]

    def sub_folders(self) -> list[str]:
        """The names of the folders directly below root, sorted."""
        return [name for name in self.folders if name and os.sep not in name]

    def below(self, folder: str) -> slice:
        """The slice of `images` that lies below one of `folders`."""
        after = chr(ord(os.sep) + 1)
        return slice(bisect_left(self.images, folder + os.sep), bisect_left(self.images, folder + after))


def image_files(folder: str | Path) -> list[str]:
    """The absolute paths of `image_index`, sorted."""
    return image_index(folder).paths()


def image_index(folder: str | Path) -> FolderIndex:
    """The images below a folder, by file name suffix; links to folders are followed.

    A kept index is used if no folder has changed since. Raises OSError for a folder that cannot be read.
    """
    root = os.path.realpath(folder)
    return remembered(root) or scan(root)


def of_other_kinds(kinds: Counter) -> str:
    """`12 files of other kinds (.heic 7, .mov 5)`, with the five most frequent kinds."""
    return (
        f"{kinds.total():,} files of other kinds ({', '.join(f'{k} {n}' for k, n in kinds.most_common(5))})"
    )


def kind(name: str) -> str:
    """The suffix of a file's name in lower case, or `no suffix`."""
    return os.path.splitext(name)[1].lower() or "no suffix"


def kinds_below(folder: str | Path) -> Counter:
    """Number of the files below a folder that are no images, by kind."""
    found = Counter()
    for _, _, listing in walk(os.path.realpath(folder)):
        found.update(map(kind, listing.others))
        found.update([NO_FILE] * len(listing.special))
    return found


# --- Scanning


class Listing(NamedTuple):
    """The names in one folder.

    dangling: whether one of them is a link without a target.
    special: pipes, sockets and devices with an image's suffix, which a reader might wait for without end.
    """

    folders: list[str]
    images: list[str]
    others: list[str]
    dangling: bool
    special: list[str]


def list_folder(folder: str) -> Listing:
    """List a folder, not those below; only links cost more than reading the directory."""
    folders, images, others, dangling, special = [], [], [], False, []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name in OF_SYSTEMS:
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
    """Whether an entry that is not a folder is not a file either; a dangling link counts as a file."""
    try:
        return not entry.is_file() and os.path.exists(entry.path)
    except OSError:
        return False


def walk(
    root: str, *, on_error: Callable[[str, OSError], object] | None = None
) -> Iterator[tuple[str, os.stat_result, Listing]]:
    """Yield (path from root, status, listing) of root and each folder below; no loop of links is followed.

    on_error: called for each folder below root that cannot be read; None: the error is raised.
    """
    pending = [("", frozenset())]
    while pending:
        folder, around = pending.pop()
        path = os.path.join(root, folder)
        try:
            status = os.stat(path)  # before listing, so that a later change shows in the stamp
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
    """Index a folder; keep the index if it is large and no folder changed during the last seconds."""
    began = time.time_ns()
    stamps, images, left_out, dangling = {}, [], Counter(), False
    for folder, status, listing in progress(
        walk(root), "looking for images", unit="folders", delay=SECONDS_WITHOUT_BAR
    ):
        stamps[folder] = stamp(status)
        prefix = os.path.join(folder, "")
        images += [prefix + name for name in sorted(listing.images)]
        left_out.update(suffix for suffix in map(kind, listing.others) if suffix in UNREAD_SUFFIXES)
        left_out.update([NO_FILE] * len(listing.special))
        dangling |= listing.dangling
    folders = sorted(stamps)
    times = np.array([stamps[folder] for folder in folders], dtype=np.int64)  # [folders,2]
    index = FolderIndex(root, folders, times, sorted(images), left_out)
    settled = index.stamps.max() < began - SETTLED_NS
    # The target of a dangling link may appear (a disk is mounted) without a change of any stamp here.
    if len(images) + len(folders) >= WORTH_KEEPING and settled and not dangling:
        remember(index)
    return index


def stamp(status: os.stat_result) -> tuple[int, int]:
    """Times of change of a folder's content and of its status: archivers reset the former only."""
    return status.st_mtime_ns, status.st_ctime_ns


# --- Remembering


def place(root: str) -> Path:
    """The file that keeps the index of root."""
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
    return project_root() / "data" / ".index" / f"{name}.npz"


def key(root: str) -> bytes:
    """What must agree for a kept index to be used."""
    return joined([str(FORMAT), root, *sorted(IMAGE_SUFFIXES), "", *sorted(UNREAD_SUFFIXES)])


def joined(names: Sequence[str]) -> bytes:
    """Names as bytes, each followed by a NUL, which no file name contains."""
    return os.fsencode("".join([name + "\0" for name in names]))


def separate(names: np.ndarray) -> list[str]:
    """The names of `joined`, from its bytes [n]."""
    return os.fsdecode(names.tobytes()).split("\0")[:-1]


def remember(index: FolderIndex) -> None:
    """Keep an index unless that is impossible (no space, no permission) or would change the folder itself."""
    names = {"key": key(index.root), "folders": joined(index.folders), "images": joined(index.images)}
    names["left_out"] = joined(list(index.left_out))
    counts = np.array(list(index.left_out.values()), dtype=np.int64)
    arrays = {name: np.frombuffer(content, dtype=np.uint8) for name, content in names.items()}
    with suppress(OSError):
        path = place(index.root)
        if path.resolve().is_relative_to(index.root):
            return
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, stamps=index.stamps, counts=counts, **arrays)


def remembered(root: str) -> FolderIndex | None:
    """The kept index of root; None if there is none, it is damaged, or a folder has changed since."""
    try:
        with np.load(place(root), allow_pickle=False) as kept:
            if kept["key"].tobytes() != key(root):
                return None
            folders, stamps = separate(kept["folders"]), kept["stamps"]
            if not np.array_equal(stamps, [stamp(os.stat(os.path.join(root, f))) for f in folders]):
                return None
            left_out = Counter(dict(zip(separate(kept["left_out"]), kept["counts"].tolist(), strict=True)))
            return FolderIndex(root, folders, stamps, separate(kept["images"]), left_out)
    except Exception:  # no file, or a folder is gone; a damaged archive may raise anything
        return None


def check_folder(folder: str | Path, purpose: str) -> Path:
    """The folder as a path; an OSError that names it and its purpose if it is none or cannot be read."""
    folder = Path(folder)
    shown = shown_name(folder)
    try:
        exists = folder.exists()
    except OSError as error:  # a folder around it may not be entered
        raise type(error)(f"{purpose}: the folder {shown} cannot be read ({error.strerror})") from None
    if not exists:
        raise FileNotFoundError(f"{purpose}: the folder {shown} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{purpose}: {shown} is not a folder")
    return folder
