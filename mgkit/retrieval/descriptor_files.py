"""Descriptors in a folder of files: their format, and how those of others are read and checked.

    descriptors.npy   [N,D] float32 or float16, a row per image
    images.csv        a line per row: path, and more columns where known (`COLUMNS`)
    manifest.json     what made them; may be missing
    index.faiss       a faiss index of the rows; may be missing

Paths are relative to a root, or absolute. The folder may come from anyone. So nothing in it is unpickled, and
no index is read by faiss: `faiss.read_index` trusts the sizes in the file, and has written beyond its memory
for a crafted one (facebookresearch/faiss, issue 5400 and pull request 5485). The kit searches the rows.
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from mgkit.benchmarks.retrieval_set import columns, read_rows
from mgkit.data.folders import check_folder
from mgkit.data.images import ImageList, evenly
from mgkit.features import ROWS, empty_rows, plain
from mgkit.machine.files import find_path
from mgkit.machine.printable import csv_name, printable_errors, shown_name
from mgkit.machine.records import MOST_BYTES, read_json, shown
from mgkit.retrieval.search import as_float32, norms, slices

DESCRIPTORS, IMAGES, INDEX, MANIFEST = "descriptors.npy", "images.csv", "index.faiss", "manifest.json"
COLUMNS = ("row", "path", "bytes", "width", "height", "group")
MADE_WITH = (  # entries of the manifest that queries and gallery must share
    "network", "checkpoint_sha256", "weights_sha256", "size", "crop", "p", "tokens", "whitening",
)  # fmt: skip
UNIT = 1e-3  # that the length of an L2-normalised row may differ from 1, as float16 is rounded
HEADER = struct.Struct("<4siq")  # of an index: its kind, dimensions, number of rows
FLAT = (b"IxFI", b"IxF2", b"IxFl")  # kinds of index that hold the rows as they are
ROWS_AT = 45  # bytes, where these begin
SAMPLED = 100  # rows of a flat index that are compared
ALIKE = 0.99  # cosine similarity that they have at least


@dataclass(frozen=True)
class DescriptorFolder:
    """N descriptors in a folder.

    rows: as in the file ([N,D])
    row_of: {path: row}, for paths as `path_key` gives them
    sizes: bytes of each image's file, empty where unknown ([N])
    manifest: what made them; empty if unknown
    """

    folder: Path
    rows: np.ndarray
    row_of: dict[str, int]
    sizes: list[str]
    manifest: dict

    @cached_property
    def name(self) -> str:
        """The network that made them; the folder's name where that is unknown."""
        network = self.manifest.get("network")
        named = network if isinstance(network, str) and network else self.folder.resolve().name
        return shown_name(named[:80])

    @property
    def made(self) -> dict:
        """How they were made, as far as the manifest tells."""
        return {name: self.manifest[name] for name in MADE_WITH if name in self.manifest}

    @cached_property
    def root(self) -> str:
        """The folder that relative paths start from, if the manifest names one that exists; else empty."""
        root = self.manifest.get("root")
        return os.path.realpath(root) if isinstance(root, str) and os.path.isdir(root) else ""


# --- Reading


@printable_errors()
def read_descriptors(folders: Sequence[str]) -> list[DescriptorFolder]:
    """Read and check folders of descriptors that are searched together, as of queries and of a gallery.

    Raises FileNotFoundError for a missing folder or file; ValueError, one line that names the file, for files
    that are damaged or do not fit together, and for descriptors of different networks, sizes or p.
    """
    found = [read_folder(find_path(folder)) for folder in folders]
    for other in found[1:]:
        check_alike(found[0], other)
    return found


def read_folder(folder: Path) -> DescriptorFolder:
    """Read and check one folder; raises as `read_descriptors`."""
    check_folder(folder, "descriptors")
    for name in (DESCRIPTORS, IMAGES):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"descriptors: {folder} holds no {name}")
    rows = read_array(folder / DESCRIPTORS)
    row_of, sizes = read_images(folder / IMAGES)
    if len(sizes) != len(rows):
        raise ValueError(
            f"{folder}: {DESCRIPTORS} holds {len(rows)} rows, and {IMAGES} lists {len(sizes)} images: "
            "row and line belong together"
        )
    check_lengths(folder / DESCRIPTORS, rows)
    check_index(folder / INDEX, rows)
    return DescriptorFolder(folder, rows, row_of, sizes, read_manifest(folder / MANIFEST, rows))


def read_array(path: Path) -> np.ndarray:
    """Map rows [N,D] of floats from a file of numpy; ValueError for anything else, which is not unpickled."""
    try:
        rows = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OverflowError, EOFError, SyntaxError, TypeError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is cut off, damaged, or no array of numbers ({why})") from None
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"{path}: an array of rows [N,D] is needed, it is {shown(rows.shape)}")
    if rows.dtype.kind != "f" or rows.dtype.itemsize > 8:
        raise ValueError(f"{path}: float32 or float16 is needed, it is {rows.dtype}")
    return rows


def check_lengths(path: Path, rows: np.ndarray) -> None:
    """Raise ValueError for rows [N,D] that are not finite; print a line if they are not L2-normalised."""
    shortest, longest = np.inf, 0.0
    for part in slices(len(rows), ROWS):
        block = as_float32(rows[part])
        lengths = norms(block)
        bad = np.flatnonzero(~np.isfinite(lengths))
        if len(bad):
            raise ValueError(
                f"{path} has rows that are not finite, or too long, the first is {part.start + bad[0]}"
            )
        shortest, longest = min(shortest, lengths.min()), max(longest, lengths.max())
    if shortest < 1 - UNIT or longest > 1 + UNIT:
        print(f"{shown_name(path)}: rows of length {shortest:.3g} to {longest:.3g} are L2-normalised")


def read_images(path: Path) -> tuple[dict[str, int], list[str]]:
    """Read images.csv: {path: row}, and the sizes of the files (bytes, empty where unknown)."""
    (_, header), *lines = read_rows(path)
    at = columns(header, ("path",))
    if at is None:
        raise ValueError(f"{path}: the first line should name a column path, got {shown(','.join(header))}")
    places = {name: columns(header, (name,)) for name in ("row", "bytes")}
    row_of, sizes = {}, []
    for row, (number, cells) in enumerate(lines):
        name, given, size = (
            cells[where[0]] if where and where[0] < len(cells) else "" for where in (at, *places.values())
        )
        if not name:
            raise ValueError(f"{path}, line {number}: no image is named")
        if given not in ("", str(row)):
            raise ValueError(
                f"{path}, line {number}: row {row} of {DESCRIPTORS} is expected here, got {shown(given)}"
            )
        if row_of.setdefault(path_key(name), row) != row:
            raise ValueError(f"{path}, line {number}: {name!r} is listed twice")
        sizes.append(size)
    return row_of, sizes


def path_key(name: str) -> str:
    """A path of images.csv as it is looked up: without `.` and `..`, of an absolute one the real path."""
    return os.path.realpath(name) if os.path.isabs(name) else os.path.normpath(name)


def read_manifest(path: Path, rows: np.ndarray) -> dict:
    """Read the manifest of rows [N,D]; empty without one; ValueError for one that does not fit them."""
    if not path.is_file():
        return {}
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} is too large for a manifest ({MOST_BYTES:,} bytes at most)")
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise ValueError(f"{path} is damaged, it holds {shown(manifest)} instead of names and values")
    for name, there in zip(("count", "dimensions"), rows.shape, strict=True):
        if manifest.get(name, there) != there:
            raise ValueError(f"{path}: {name} is {shown(manifest[name])}, {DESCRIPTORS} has {there}")
    return manifest


def check_index(path: Path, rows: np.ndarray) -> None:
    """Raise ValueError for an index that is not of the rows [N,D], as far as its first bytes tell.

    Of a flat index, some rows are compared, too.
    """
    if not path.is_file():
        return
    with open(path, "rb") as file:
        start = file.read(HEADER.size)
    if len(start) < HEADER.size:
        raise ValueError(f"{path} is cut off: remove it, it is not needed")
    kind, dimensions, count = HEADER.unpack(start)
    if (count, dimensions) != rows.shape:
        raise ValueError(
            f"{path} is of another collection, or damaged: it holds {count} rows of {dimensions} dimensions, "
            f"{DESCRIPTORS} {len(rows)} of {rows.shape[1]}"
        )
    if kind not in FLAT:
        return
    if path.stat().st_size != ROWS_AT + 4 * rows.size:
        raise ValueError(f"{path} is cut off or damaged: remove it, it is not needed")
    sample = evenly(len(rows), SAMPLED)
    there = np.memmap(path, dtype="<f4", mode="r", offset=ROWS_AT, shape=rows.shape)[sample]
    products = (plain(as_float32(there)) * plain(as_float32(rows[sample]))).sum(1)
    other = sample[~(products >= ALIKE) & rows[sample].any(1)]
    if len(other):
        raise ValueError(f"{path} is of another collection: row {other[0]} is not that of {DESCRIPTORS}")


def check_alike(one: DescriptorFolder, other: DescriptorFolder) -> None:
    """Raise ValueError for descriptors that cannot be compared: of other widths, or made differently."""
    where = f"descriptors: {one.folder} and {other.folder} cannot be compared"
    widths = one.rows.shape[1], other.rows.shape[1]
    if widths[0] != widths[1]:
        raise ValueError(f"{where}: they have {widths[0]} and {widths[1]} dimensions")
    for name in one.made:
        if name in other.made and one.made[name] != other.made[name]:
            values = " and ".join(shown(each.made[name]) for each in (one, other))
            raise ValueError(f"{where}: {name} is {values}")


# --- The rows of images


def relative_names(images: ImageList, root: str | Path) -> list[str]:
    """The paths of images relative to a root, a folder or a file in it; absolute ones outside of it."""
    return replace(images, root=Path(root)).names()


@dataclass(frozen=True)
class RowsByPath:
    """Where the rows of several folders are, one folder after the other.

    absolute: {path: row}, also for relative paths of a manifest that names their root
    relative: {path: row}
    ambiguous: relative paths of several folders
    sizes: bytes of each image's file, empty where unknown
    """

    absolute: dict[str, int]
    relative: dict[str, int]
    ambiguous: set[str]
    sizes: list[str]

    @classmethod
    def of(cls, folders: Sequence[DescriptorFolder]) -> "RowsByPath":
        """Those of folders; of an absolute path in several, the first folder's."""
        found = cls({}, {}, set(), list(chain.from_iterable(each.sizes for each in folders)))
        start = 0
        for each in folders:
            for path, row in each.row_of.items():
                if each.root or os.path.isabs(path):
                    found.absolute.setdefault(os.path.normpath(os.path.join(each.root, path)), start + row)
                if found.relative.setdefault(path, start + row) != start + row:
                    found.ambiguous.add(path)
            start += len(each.rows)
        return found

    def row(self, path: str, name: str) -> int:
        """The row of an image by its absolute path, else by its name relative to the data; -1 for none."""
        for text in (path, csv_name(path), os.path.realpath(path)):
            if (key := text.strip()) in self.absolute:  # cells of a csv are read without spaces around
                return self.absolute[key]
        for text in (name, csv_name(name)):
            if (key := path_key(text.strip())) in self.relative:
                if key in self.ambiguous:
                    raise ValueError(f"descriptors: {name} is in several folders: give absolute paths there")
                return self.relative[key]
        return -1


@printable_errors()
def find_rows(folders: Sequence[DescriptorFolder], images: ImageList, root: str | Path) -> np.ndarray:
    """The row of each image among those of all folders, one after the other; -1 for one without [n].

    Paths are compared as they are and as `csv_name` writes them, absolute, then relative to the root.
    Raises ValueError for a relative path in several folders, and for an image whose file has another size
    than images.csv says.
    """
    rows = RowsByPath.of(folders)
    pairs = zip(images.paths, relative_names(images, root), strict=True)
    found = np.array([rows.row(path, name) for path, name in pairs], dtype=np.int64)
    changed = [
        path
        for path, row in zip(images.paths, found.tolist(), strict=True)
        if row >= 0 and rows.sizes[row] not in ("", str(os.path.getsize(path)))
    ]
    if changed:
        raise ValueError(
            f"descriptors: {len(changed)} images have changed since they were described, by the sizes of "
            f"their files; the first is {changed[0]}"
        )
    return found


def descriptors_at(folders: Sequence[DescriptorFolder], at: np.ndarray) -> np.ndarray:
    """L2-normalised descriptors at the rows `find_rows` gives [n] -> [n,D] float32; NaN for -1."""
    found = empty_rows((len(at), folders[0].rows.shape[1]))
    found[at < 0] = np.nan
    start = 0
    for each in folders:
        own = np.flatnonzero((at >= start) & (at < start + len(each.rows)))
        for part in slices(len(own), ROWS):
            found[own[part]] = plain(as_float32(each.rows[at[own[part]] - start]))
        start += len(each.rows)
    return found


def descriptors_of(folders: Sequence[str], images: ImageList, root: str | Path) -> np.ndarray:
    """L2-normalised descriptors of images from folders [n,D] float32, for `retrieve` and other measures.

    root: what the paths in images.csv are relative to

    Raises as `read_descriptors` and `find_rows`; ValueError for images without a row.
    """
    read = read_descriptors(folders)
    at = find_rows(read, images, root)
    if message := lacking(images, at):
        raise ValueError(message)
    return descriptors_at(read, at)


def lacking(images: ImageList, at: np.ndarray) -> str:
    """The message on images without a row, by their `find_rows` [n]; empty if there are none."""
    without = np.flatnonzero(at < 0)
    if not len(without):
        return ""
    first = shown_name(images.paths[without[0]])
    return (
        f"descriptors: {len(without)} of {len(images)} images have no row in {IMAGES}, the first is {first}"
    )
