"""The published benchmarks, and the retrieval sets that a folder holds: benchmarks, or the user's own images."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mgkit.benchmarks.copydays import COPYDAYS, LEVEL_KINDS, copydays, copydays_all, copydays_levels
from mgkit.benchmarks.disc21 import DISC21, disc21
from mgkit.benchmarks.holidays import HOLIDAYS, holidays
from mgkit.benchmarks.retrieval_set import RetrievalSet, columns, no_images, read_rows, unlabelled
from mgkit.benchmarks.revisited import ROXFORD5K, RPARIS6K, revisited
from mgkit.benchmarks.ukbench import UKBENCH, ukbench
from mgkit.data.folders import check_folder, image_files, list_folder
from mgkit.data.images import ImageList
from mgkit.data.layouts import META, class_folders, dataset_root, plain_images, split_folder, val_images
from mgkit.machine.download import file_hash
from mgkit.machine.progress import progress

SET_NAMES = ("holidays", "ukbench", "copydays", "copydays_levels", "roxford5k", "rparis6k", "disc21")
FIRST_FOLDERS = {
    "holidays": "jpg", "ukbench": "full", "copydays": "original", "roxford5k": "jpg", "rparis6k": "jpg", "disc21": "queries",
}  # fmt: skip
GROUPS = "groups.csv"


def find_sets(root: str | Path, *, names: Sequence[str] = (), distractors: str = "") -> list[RetrievalSet]:
    """The sets of those names below root, or all that are there, each in the folder of its name (`copydays_levels` in `copydays/`).

    Where there is none, or a `groups.csv`, root's own images: grouped by that csv, or by sub-folder, or else not at all; a tree in
    ImageNet's layout gives its validation images. root may itself be such a csv, of any name.
    distractors: a folder or list for Copydays; empty: `unlabelled/distractors` below root, where it exists. Raises ValueError
    for an unknown name, FileNotFoundError for a missing set, and what the readers of the sets raise, each naming the file.
    """
    unknown = [name for name in names if name not in SET_NAMES]
    if unknown:
        raise ValueError(
            f"sets: {unknown[0]!r} is unknown; some of {', '.join(SET_NAMES)}, or none for all that are there"
        )
    if Path(root).suffix.lower() == ".csv" and not Path(root).is_dir():
        if names:
            raise ValueError(f"sets: {names[0]} is looked for in a folder, but data is the file {root}")
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
        "holidays": lambda: [holidays(root / "holidays")],
        "ukbench": lambda: [ukbench(root / "ukbench")],
        "copydays": lambda: [copydays(root / "copydays", distractors=extra)],
        "copydays_levels": lambda: copydays_levels(root / "copydays", distractors=extra),
        "roxford5k": lambda: revisited(root / "roxford5k", "roxford5k"),
        "rparis6k": lambda: revisited(root / "rparis6k", "rparis6k"),
        "disc21": lambda: [disc21(root / "disc21")],
    }
    if {"copydays", "copydays_levels"} <= set(wanted):  # together, so that they share their images
        readers["copydays"] = lambda: copydays_all(root / "copydays", distractors=extra)
        wanted.remove("copydays_levels")
    return [each for name in wanted for each in readers[name]()]


def is_there(root: Path, name: str) -> bool:
    """Whether root has the folders of a set; a folder of the user's own may well be called holidays."""
    if name == "copydays_levels":
        return any((root / "copydays" / kind).is_dir() for kind in LEVEL_KINDS)
    return (root / name / FIRST_FOLDERS[name]).is_dir()


# --- The user's own images


def folder_set(root: Path) -> RetrievalSet:
    """A tree's validation images, or all of them where it has no val/, grouped by class if anything says the classes."""
    folder = split_folder(root, "val") or root
    if any(each.is_dir() and not each.name.startswith(".") for each in folder.iterdir()):
        return grouped_folder(folder)
    if folder != root and (root / META).is_file():  # ImageNet's flat original
        images = val_images(folder, root)
        return grouped(folder.name, images, images.labels)
    return plain_folder(folder)


def grouped_folder(root: str | Path) -> RetrievalSet:
    """Images grouped by sub-folder, as `grouped` by group; a line tells how many lie beside the sub-folders, and are left out."""
    images = class_folders(root, purpose="retrieval folder")
    loose = len(list_folder(str(root)).images)
    if loose:
        print(f"{root}: {loose} images beside the sub-folders are in no group, and left out")
    return grouped(Path(root).name, images, images.labels)


def csv_set(listing: Path) -> RetrievalSet:
    """The images that a csv lists with their groups, `image,group`; a line tells how many beside them it does not list.

    An image of an empty group is ranked but asks nothing. Raises as `read_groups` and `grouped`.
    """
    group_of = read_groups(listing)
    names, groups = np.unique(
        list(group_of.values()), return_inverse=True
    )  # sorted: an empty name comes first
    left_out = len(set(images_around(listing, group_of)) - set(group_of))
    if left_out:
        print(f"{listing} does not list {left_out} images beside those it lists: they are left out")
    name = listing.resolve().parent.name if listing.name == GROUPS else listing.stem
    return grouped(name, unlabelled(listing, group_of, exif=True), groups - (names[0] == ""))


def images_around(listing: Path, listed: Iterable[str]) -> list[str]:
    """The images below the folder of a `groups.csv`; for a list that may lie anywhere, those in the folders it lists some of."""
    if listing.name == GROUPS:
        return image_files(listing.parent)
    folders = sorted({os.path.dirname(path) for path in listed})
    return [os.path.join(folder, name) for folder in folders for name in list_folder(folder).images]


def grouped(name: str, images: ImageList, groups: np.ndarray) -> RetrievalSet:
    """Every image is a query, the others of its group are the positives.

    groups: [N] integers; a negative one is no group. An image without group, or alone in it, is ranked but asks nothing; a line
    tells how many are alone. Raises ValueError if no group has two images.
    """
    order = np.argsort(groups, kind="stable")
    borders = np.flatnonzero(np.diff(groups[order])) + 1
    members = [each for each in np.split(order, borders) if groups[each[0]] >= 0]
    positives = {i: each[each != i] for each in members if len(each) > 1 for i in each.tolist()}
    if not positives:
        raise ValueError(f"{images.root}: no group has two images, so there is nothing to retrieve")
    alone = sum(len(each) == 1 for each in members)
    if alone:
        print(f"{name}: {alone} of {len(members)} groups have one image, which is ranked but asks nothing")
    queries = sorted(positives)
    return RetrievalSet(
        name, images, np.array(queries), np.arange(len(images)), tuple(positives[i] for i in queries)
    )


def plain_folder(root: str | Path) -> RetrievalSet:
    """Images without any grouping: every image is a query, and there is no ground truth to measure against."""
    images = plain_images(root, purpose="retrieval folder")
    everything, nothing = np.arange(len(images)), no_images()
    return RetrievalSet(
        Path(root).name, images, everything, everything, (nothing,) * len(images), measure="none"
    )


# --- Distractors


def distractor_source(root: Path, source: str) -> Path:
    """The folder or list of distractors: the given one, or else `unlabelled/distractors` below root."""
    return Path(source) if source else root / "unlabelled" / "distractors"


def distractor_images(root: Path, source: str) -> ImageList | None:
    """The images of `distractor_source`; None where none was given and there is none below root."""
    found = distractor_source(root, source)
    return plain_images(found, purpose="distractors") if source or found.is_dir() else None


def distractor_record(images: ImageList, indices: np.ndarray, root: str | Path) -> str:
    """Which files served as distractors, a line each as sha256sum writes them: SHA-256 of the content, and path.

    indices: of the distractors among the images. root: their folder, or the list of them, whose folder counts; paths are relative
    to it, and absolute outside.
    """
    base = os.path.join(os.path.realpath(root if os.path.isdir(root) else os.path.dirname(root)), "")
    lines = []
    for index in progress(indices.tolist(), "hashing distractors", unit="file"):
        path = images.paths[index]
        name = path.removeprefix(base)
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        marked = "\\" if escaped != name else ""  # says that the name is escaped
        lines.append(f"{marked}{file_hash(Path(path))}  {escaped}\n")
    return "".join(lines)


GROUP_COLUMNS = ("image", "group")


def read_groups(path: Path) -> dict[str, str]:
    """The images that a csv lists, `image,group`, as {absolute path: group}; sorted, the group empty where an image has none.

    Paths are relative to the csv's folder; other columns are passed over. Raises FileNotFoundError for absent files (how many
    and the first), ValueError for a missing header, no images, or an image that is listed twice; each names the csv.
    """
    rows = read_rows(path)
    at = columns(rows[0][1], GROUP_COLUMNS)
    if at is None:
        raise ValueError(
            f"{path}: the first line should name the columns {','.join(GROUP_COLUMNS)}, got {','.join(rows[0][1])!r}"
        )
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


BENCHMARKS = {
    "holidays": HOLIDAYS,
    "ukbench": UKBENCH,
    "copydays": COPYDAYS,
    "roxford5k": ROXFORD5K,
    "rparis6k": RPARIS6K,
    "disc21": DISC21,
}
