"""Registry of the published benchmarks, and the retrieval sets in a folder, published or of the user."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mgkit.benchmarks.classes.cars196 import CARS196, cars196
from mgkit.benchmarks.classes.cub200 import CUB200, cub200
from mgkit.benchmarks.classes.inshop import INSHOP, inshop
from mgkit.benchmarks.classes.sop import SOP, sop
from mgkit.benchmarks.copies.copydays import COPYDAYS, LEVEL_KINDS, copydays, copydays_all, copydays_levels
from mgkit.benchmarks.copies.disc21 import DISC21, disc21
from mgkit.benchmarks.instances.gldv2 import GLDV2, gldv2
from mgkit.benchmarks.instances.holidays import HOLIDAYS, holidays
from mgkit.benchmarks.instances.ilias import ILIAS, ilias
from mgkit.benchmarks.instances.instre import INSTRE, instre
from mgkit.benchmarks.instances.revisited import ROXFORD5K, RPARIS6K, revisited
from mgkit.benchmarks.instances.ukbench import UKBENCH, ukbench
from mgkit.benchmarks.retrieval_set import RetrievalSet, columns, no_images, read_rows, unlabelled
from mgkit.data.folders import check_folder, image_files, list_folder
from mgkit.data.images import ImageList
from mgkit.data.layouts import (
    META,
    class_folders,
    dataset_root,
    plain_images,
    split_folder,
    val_images,
    visible,
)
from mgkit.machine.download import file_hash
from mgkit.machine.printable import printable_errors, say_once, shown_name
from mgkit.machine.progress import progress
from mgkit.machine.records import shown

BENCHMARKS = {
    "holidays": HOLIDAYS, "ukbench": UKBENCH, "copydays": COPYDAYS,
    "roxford5k": ROXFORD5K, "rparis6k": RPARIS6K, "disc21": DISC21,
    "gldv2": GLDV2, "instre": INSTRE, "ilias": ILIAS,
    "sop": SOP, "cub200": CUB200, "cars196": CARS196, "inshop": INSHOP,
}  # fmt: skip
SET_NAMES = (
    "holidays", "ukbench", "copydays", "copydays_levels", "roxford5k", "rparis6k", "disc21",
    "gldv2", "instre", "ilias", "sop", "cub200", "cars196", "inshop",
)  # fmt: skip
GROUPS = "groups.csv"
GROUP_COLUMNS = ("image", "group")


@printable_errors()
def find_sets(
    root: str | Path, *, names: Sequence[str] = (), distractors: str = "", incomplete: str = "raise"
) -> list[RetrievalSet]:
    """Return the retrieval sets of those names below root, or all that exist, or the user's own images.

    root: folder; each benchmark is in the folder of its name (`copydays_levels` in `copydays/`). Other images
    are grouped by `groups.csv`, or by sub-folder, or not at all; ImageNet gives its validation images.
    A csv of groups may be given instead.
    names: of `SET_NAMES`
    distractors: folder or list for Copydays; "" for `unlabelled/distractors` below root, if it exists
    incomplete: `raise` an error for incomplete groups of Holidays and UKBench, or `skip` them, with a line
    Raises ValueError for an unknown name, FileNotFoundError for a missing set, and what readers raise.
    """
    unknown = [name for name in names if name not in SET_NAMES]
    if unknown:
        raise ValueError(f"sets: {unknown[0]!r} is unknown; any of {', '.join(SET_NAMES)}, or none for all")
    if Path(root).suffix.lower() == ".csv" and not Path(root).is_dir():
        if names:
            raise ValueError(f"sets: {names[0]} needs a folder, but data is the file {root}")
        if not Path(root).is_file():
            raise FileNotFoundError(f"data: the file {root} does not exist")
        return [csv_set(Path(root))]
    root = check_folder(root, "data")
    repeated = [name for name in names if list(names).count(name) > 1]
    if repeated:
        raise ValueError(f"sets: {repeated[0]} is named more than once")
    if not names and (root / GROUPS).is_file():
        return [csv_set(root / GROUPS)]
    wanted = list(names) or [name for name in SET_NAMES if is_there(root, name)]
    of_copydays = {"copydays", "copydays_levels"} & set(wanted)
    extra = distractor_images(root, distractors) if distractors or of_copydays else None
    if not wanted:
        return [folder_set(dataset_root(root))]
    readers = {
        "holidays": lambda: [holidays(root / "holidays", incomplete=incomplete)],
        "ukbench": lambda: [ukbench(root / "ukbench", incomplete=incomplete)],
        "copydays": lambda: [copydays(root / "copydays", distractors=extra)],
        "copydays_levels": lambda: copydays_levels(root / "copydays", distractors=extra),
        "roxford5k": lambda: revisited(root / "roxford5k", "roxford5k"),
        "rparis6k": lambda: revisited(root / "rparis6k", "rparis6k"),
        "disc21": lambda: [disc21(root / "disc21")],
        "gldv2": lambda: gldv2(root / "gldv2"),
        "instre": lambda: [instre(root / "instre")],
        "ilias": lambda: ilias(root / "ilias"),
        "sop": lambda: [sop(root / "sop")],
        "cub200": lambda: [cub200(root / "cub200")],
        "cars196": lambda: [cars196(root / "cars196")],
        "inshop": lambda: [inshop(root / "inshop")],
    }
    if {"copydays", "copydays_levels"} <= set(wanted):  # read together to share their images
        readers["copydays"] = lambda: copydays_all(root / "copydays", distractors=extra)
        wanted.remove("copydays_levels")
    return [found for name in wanted for found in readers[name]()]


def is_there(root: Path, name: str) -> bool:
    """Return whether root has the folders of a set; the user's own folder may have the same name."""
    if name == "copydays_levels":
        return any((root / "copydays" / kind).is_dir() for kind in LEVEL_KINDS)
    return BENCHMARKS[name].layout_of(root / name).is_in(root / name)


# --- The user's own images


def folder_set(root: Path) -> RetrievalSet:
    """Read a folder's validation images, or all without val/, grouped by class if classes are known."""
    folder = split_folder(root, "val") or root
    if visible(folder)[0]:
        return grouped_folder(folder)
    if folder != root and (root / META).is_file():  # the original ImageNet, in one folder
        images = val_images(folder, root)
        return grouped(folder.name, images, images.labels)
    return plain_folder(folder)


def grouped_folder(root: str | Path) -> RetrievalSet:
    """Read images grouped by sub-folder (see `grouped`); other images are ignored, with a line."""
    images = class_folders(root, purpose="retrieval folder")
    return grouped(Path(root).name, images, images.labels)


def csv_set(listing: Path) -> RetrievalSet:
    """Read the images of a csv `image,group` (see `grouped`); a line counts the images it does not list.

    Images of an empty group are in the database only. Raises as `read_groups` and `grouped`.
    """
    group_of = read_groups(listing)
    names, groups = np.unique(list(group_of.values()), return_inverse=True)  # "" is the first
    ignored = len(set(images_around(listing, group_of)) - set(group_of))
    if ignored:
        say_once(f"{listing} does not list {ignored} images in its folders: they are ignored")
    name = listing.resolve().parent.name if listing.name == GROUPS else listing.stem
    return grouped(name, unlabelled(listing, group_of, exif=True), groups - (names[0] == ""))


def images_around(listing: Path, listed: Iterable[str]) -> list[str]:
    """Return the images below the folder of a `groups.csv`; for another csv, those in its folders."""
    if listing.name == GROUPS:
        return image_files(listing.parent)
    folders = sorted({os.path.dirname(path) for path in listed})
    return [os.path.join(folder, name) for folder in folders for name in list_folder(folder).images]


def grouped(name: str, images: ImageList, groups: np.ndarray) -> RetrievalSet:
    """Make every image a query, with the other images of its group as positives.

    groups: group of each image ([N]); negative: none
    Images without group, or alone in it, are in the database only; a line counts single ones. Raises
    ValueError if no group has two images.
    """
    name = shown_name(name)
    order = np.argsort(groups, kind="stable")
    borders = np.flatnonzero(np.diff(groups[order])) + 1
    members = [indices for indices in np.split(order, borders) if groups[indices[0]] >= 0]
    positives = {i: same[same != i] for same in members if len(same) > 1 for i in same.tolist()}
    if not positives:
        raise ValueError(
            f"{shown_name(images.root)}: no group has two images, so there is nothing to retrieve"
        )
    single = sum(len(indices) == 1 for indices in members)
    if single:
        print(f"{name}: {single} of {len(members)} groups have one image, which is not used as a query")
    queries, database = sorted(positives), np.arange(len(images))
    return RetrievalSet(name, images, np.array(queries), database, tuple(positives[i] for i in queries))


def plain_folder(root: str | Path) -> RetrievalSet:
    """Read images without groups: every image is a query, there is no ground truth."""
    images = plain_images(root, purpose="retrieval folder")
    every, positives = np.arange(len(images)), (no_images(),) * len(images)
    return RetrievalSet(shown_name(Path(root).name), images, every, every, positives, measure="none")


# --- Distractors


def distractor_source(root: Path, source: str) -> Path:
    """Return the given folder or list of distractors, else `unlabelled/distractors` below root."""
    return Path(source) if source else root / "unlabelled" / "distractors"


def distractor_images(root: Path, source: str) -> ImageList | None:
    """Return the images of `distractor_source`; None if not given and not below root."""
    found = distractor_source(root, source)
    return plain_images(found, purpose="distractors") if source or found.is_dir() else None


def distractor_record(images: ImageList, indices: np.ndarray, root: str | Path) -> str:
    """Format SHA-256 and path of each distractor, one line each, as sha256sum does.

    images, indices: all images, and the indices of the distractors
    root: their folder, or list in it; paths are relative to the folder, absolute outside
    """
    base = os.path.join(os.path.realpath(root if os.path.isdir(root) else os.path.dirname(root)), "")
    lines = []
    for index in progress(indices.tolist(), "hashing distractors", unit="file"):
        path = images.paths[index]
        name = path.removeprefix(base)
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        marked = "\\" if escaped != name else ""  # marks an escaped name
        lines.append(f"{marked}{file_hash(Path(path))}  {escaped}\n")
    return "".join(lines)


def read_groups(path: Path) -> dict[str, str]:
    """Read a csv `image,group` as {absolute path: group}, sorted; the group may be empty.

    Paths are relative to the csv's folder; other columns are ignored. Raises FileNotFoundError for missing
    images, ValueError for a missing header, no images, or an image listed twice; messages name the csv.
    """
    rows = read_rows(path)
    at = columns(rows[0][1], GROUP_COLUMNS)
    if at is None:
        wanted, got = ",".join(GROUP_COLUMNS), shown(",".join(rows[0][1]))
        raise ValueError(f"{path}: the first line should name the columns {wanted}, got {got}")
    folder, groups = os.path.realpath(path.parent), {}
    for number, row in rows[1:]:
        name, group = (row[k] if k < len(row) else "" for k in at)
        if not name:
            raise ValueError(f"{path}, line {number}: no image is named")
        image = os.path.normpath(os.path.join(folder, name))
        if image in groups:
            raise ValueError(f"{path}, line {number}: {name!r} is listed twice")
        groups[image] = group
    if not groups:
        raise ValueError(f"{path} lists no images")
    missing = [image for image in groups if not os.path.isfile(image)]
    if missing:
        raise FileNotFoundError(f"{path} lists {len(missing)} missing files, the first is {missing[0]!r}")
    return dict(sorted(groups.items()))
