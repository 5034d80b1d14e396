"""Retrieval sets of one's own images: grouped by sub-folder or csv, with or without queries apart.

Without queries apart, every image asks for the others of its group. With them (a folder of queries, a csv of
queries and answers, or roles in `groups.csv`), queries may have no answer: a system is to reject those.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mgkit.benchmarks.retrieval_set import (
    RetrievalSet,
    columns,
    extended,
    named_columns,
    no_images,
    read_rows,
    real_paths,
    unlabelled,
)
from mgkit.data.folders import check_folder, image_files, list_folder
from mgkit.data.images import ImageList
from mgkit.data.layouts import META, class_folders, plain_images, split_folder, val_images, visible
from mgkit.machine.printable import say_once, shown_name
from mgkit.machine.records import shown

GROUPS = "groups.csv"
GROUP_COLUMNS = ("image", "group")
PAIR_COLUMNS = ("query", "image")
ROLES = ("query", "gallery", "both")
RECALLS = (1, 5, 10)  # k of the Recall@k of sets with queries apart


class Listed(NamedTuple):
    """What a csv says of an image; role: empty without a column `role`."""

    group: str
    role: str = ""


# --- Every image is a query


def folder_set(root: Path) -> RetrievalSet:
    """Read a folder's validation images, or all without val/, grouped by class if classes are known."""
    folder = split_folder(root, "val") or root
    if visible(folder)[0]:
        return grouped_folder(folder)
    if folder != root and (root / META).is_file():  # the original ImageNet, in one folder
        images = val_images(folder, root)
        return grouped(folder.name, images, images.labels)
    return plain_set(folder)


def grouped_folder(root: str | Path) -> RetrievalSet:
    """Read images grouped by sub-folder (see `grouped`); other images are ignored, with a line."""
    images = class_folders(root, purpose="retrieval folder")
    return grouped(Path(root).name, images, images.labels)


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


def plain_set(source: str | Path) -> RetrievalSet:
    """Read a folder, or a list of images, without groups: every image is a query without ground truth."""
    source = Path(source)
    images = plain_images(source, purpose="data")
    every, positives = np.arange(len(images)), (no_images(),) * len(images)
    name = source.stem if source.is_file() else source.name
    return RetrievalSet(shown_name(name), images, every, every, positives, measure="none")


# --- Groups from a csv


def csv_set(listing: Path) -> RetrievalSet:
    """Read the images of a csv `image,group`, or `image,group,role`; a line counts those it does not list.

    Without roles as `grouped`; images of an empty group are then in the database only. Images of the role
    `query` are asked for, those of `gallery` are the database, and of `both` they are both. A query of an
    empty group has no answer. Raises as `read_groups`, `grouped` and `apart`.
    """
    listed = read_groups(listing)
    names, groups = np.unique([entry.group for entry in listed.values()], return_inverse=True)
    groups = groups - (names[0] == "")  # "" is the first, and becomes -1
    ignored = len(set(images_around(listing, listed)) - set(listed))
    if ignored:
        say_once(f"{listing} does not list {ignored} images in its folders: they are ignored")
    name = listing.resolve().parent.name if listing.name == GROUPS else listing.stem
    roles = np.array([entry.role for entry in listed.values()])
    if not roles[0]:
        return grouped(name, unlabelled(listing, listed, exif=True), groups)
    return set_of_roles(name, unlabelled(listing, listed, exif=True), groups, roles)


def set_of_roles(name: str, images: ImageList, groups: np.ndarray, roles: np.ndarray) -> RetrievalSet:
    """Make a set of queries and gallery by the role of each image ([N]); groups: [N], negative for none."""
    asking, found = np.flatnonzero(roles != "gallery"), np.flatnonzero(roles != "query")
    for role, images_of_role in (("query", asking), ("gallery", found)):
        if not len(images_of_role):
            raise ValueError(f"{images.root}: no image has the role {role} or both")
    shown_groups = groups[asking]
    alone = shown_groups < 0  # each shows what no other image shows
    shown_groups[alone] = groups.max() + 1 + np.arange(alone.sum())
    answers = members_of(groups[found], shown_groups)
    paths = [images.paths[i] for i in asking]
    return apart(name, images.subset(found), paths, answers, shown_groups)


def images_around(listing: Path, listed: Iterable[str]) -> list[str]:
    """Return the images below the folder of a `groups.csv`; for another csv, those in its folders."""
    if listing.name == GROUPS:
        return image_files(listing.parent)
    folders = sorted({os.path.dirname(path) for path in listed})
    return [os.path.join(folder, name) for folder in folders for name in list_folder(folder).images]


def read_groups(path: Path) -> dict[str, Listed]:
    """Read a csv `image,group`, or `image,group,role`, as {absolute path: group and role}, sorted.

    Paths are relative to the csv's folder; the group may be empty, other columns are ignored. Raises
    FileNotFoundError for missing images, ValueError for a missing header, no images, an unknown role, or an
    image listed twice; messages name the csv.
    """
    rows = read_rows(path)
    at = named_columns(path, rows[0][1], GROUP_COLUMNS)
    at += columns(rows[0][1], ("role",)) or []
    folder, listed = os.path.realpath(path.parent), {}
    for number, row in rows[1:]:
        name, group, *role = cells(row, at)
        if not name:
            raise ValueError(f"{path}, line {number}: no image is named")
        if role and role[0].lower() not in ROLES:
            raise ValueError(
                f"{path}, line {number}: the role {shown(role[0])} should be {' or '.join(ROLES)}"
            )
        image = os.path.normpath(os.path.join(folder, name))
        if image in listed:
            raise ValueError(f"{path}, line {number}: {name!r} is listed twice")
        listed[image] = Listed(group, *map(str.lower, role))
    if not listed:
        raise ValueError(f"{path} lists no images")
    check_files(path, listed)
    return dict(sorted(listed.items()))


def cells(row: Sequence[str], at: Sequence[int]) -> list[str]:
    """Return the cells of a row in these columns; empty beyond its end."""
    return [row[k] if k < len(row) else "" for k in at]


def check_files(listing: Path, paths: Iterable[str]) -> None:
    """Raise FileNotFoundError for missing files, with their number and the first."""
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(f"{listing} lists {len(missing)} missing files, the first is {missing[0]!r}")


# --- Queries apart from the gallery


def queried_set(data: Path, queries: Path) -> RetrievalSet:
    """Read queries and the gallery that they search.

    data: the gallery: a folder, or for a csv of queries also a list of images
    queries: a folder, of which each sub-folder is answered by the one of its name in data; or a csv
    `query,image`, see `pair_set`
    Raises FileNotFoundError or ValueError, one line, for what cannot be read, and if no query has an answer.
    """
    if queries.suffix.lower() == ".csv" and not queries.is_dir():
        return pair_set(data, queries)
    if not data.is_dir():
        raise ValueError(f"queries: for the list {data}, a csv {','.join(PAIR_COLUMNS)} is wanted")
    check_folder(queries, "queries")
    both = [Path(os.path.realpath(folder)) for folder in (data, queries)]
    if both[0] in both[1].parents or both[1] in both[0].parents:
        raise ValueError(f"queries: {queries} and {data} should be apart, but one lies in the other")
    if not image_files(queries):
        raise ValueError(f"queries: {queries} holds no images")
    return folder_pair(data, queries)


def folder_pair(data: Path, queries: Path) -> RetrievalSet:
    """Read two folders, matched by the names of their sub-folders; raises as `queried_set`."""
    gallery, asking = class_folders(data, purpose="data"), class_folders(queries, purpose="queries")
    if not set(gallery.classes) & set(asking.classes):
        raise ValueError(f"queries: {queries} and {data} have no sub-folder in common")
    number = {name: k for k, name in enumerate(dict.fromkeys(gallery.classes + asking.classes))}
    groups = np.array([number[name] for name in asking.classes])[asking.labels]  # gallery's labels come first
    return apart(data.name, gallery, asking.paths, members_of(gallery.labels, groups), groups)


def pair_set(data: Path, listing: Path) -> RetrievalSet:
    """Read a csv `query,image` of queries and their answers among the images of data.

    Paths of queries are relative to the csv's folder, those of images to data, or to the folder of a list. A
    query has a row per answer, or a row without image. Raises as `read_pairs` and `apart`, and
    FileNotFoundError for an answer that data does not hold.
    """
    if not listing.is_file():
        raise FileNotFoundError(f"queries: the file {listing} does not exist")
    gallery = plain_images(data, purpose="data")
    pairs = read_pairs(listing, data if data.is_dir() else data.parent)
    check_files(listing, pairs)
    place = places(gallery)
    wanted = list(dict.fromkeys(image for images in pairs.values() for image in images))
    at = {image: place.get(real) for image, real in zip(wanted, real_paths(wanted), strict=True)}
    missing = [image for image in wanted if at[image] is None]
    if missing:
        what = f"{len(missing)} images that {data} does not hold, the first is {missing[0]!r}"
        raise FileNotFoundError(f"{listing} names {what}")
    answers = [np.array(sorted({at[image] for image in images}), np.int64) for images in pairs.values()]
    name = data.name if data.is_dir() else data.stem
    return apart(name, gallery, list(pairs), answers, np.arange(len(pairs)))


def read_pairs(path: Path, gallery: Path) -> dict[str, list[str]]:
    """Read a csv `query,image` as {absolute path of a query: absolute paths of its answers}, in its order.

    Raises ValueError, naming the line, for no rows, a row without query, a pair that is listed twice, and a
    query that is its own answer, or has answers and a row without.
    """
    rows = read_rows(path)
    at = named_columns(path, rows[0][1], PAIR_COLUMNS)
    of_queries, of_images = os.path.realpath(path.parent), os.path.realpath(gallery)
    pairs: dict[str, dict[str, None]] = {}
    for number, row in rows[1:]:
        query, image = cells(row, at)
        where = f"{path}, line {number}"
        if not query:
            raise ValueError(f"{where}: no query is named")
        asked = os.path.normpath(os.path.join(of_queries, query))
        answer = os.path.normpath(os.path.join(of_images, image)) if image else ""
        known = pairs.setdefault(asked, {})
        if answer in known:
            raise ValueError(f"{where}: {query!r} is listed twice with {image!r}")
        if answer == asked:
            raise ValueError(f"{where}: {query!r} is its own answer")
        known[answer] = None
        if len(known) > 1 and "" in known:
            raise ValueError(f"{where}: {query!r} has answers and a row without an image")
    if not pairs:
        raise ValueError(f"{path} lists no queries")
    return {query: [image for image in images if image] for query, images in pairs.items()}


def members_of(groups: np.ndarray, wanted: np.ndarray) -> list[np.ndarray]:
    """Return the indices into groups [M] of each of the wanted groups [Q], ascending."""
    order = np.argsort(groups, kind="stable")
    ends = (np.searchsorted(groups[order], wanted, side) for side in ("left", "right"))
    return [order[start:end] for start, end in zip(*ends, strict=True)]


def apart(
    name: str, gallery: ImageList, queries: Sequence[str], answers: Sequence[np.ndarray], groups: np.ndarray
) -> RetrievalSet:
    """Make a set of queries and the gallery that they search; a line counts queries without an answer.

    queries: their paths [Q]; a query that is a file of the gallery is the same image
    answers: indices into the gallery of each query's answers; itself is none
    groups: number of what each query shows ([Q])
    Raises ValueError for a file that is two queries, and if no query has an answer.
    """
    name = shown_name(name)
    place, of_file = places(gallery), {}
    for real, path in zip(real_paths(queries), queries, strict=True):
        if of_file.setdefault(real, path) != path:
            raise ValueError(f"{name}: the queries {of_file[real]} and {path} are the same file")
    others = {real: path for real, path in of_file.items() if real not in place}
    place |= {real: len(gallery) + k for k, real in enumerate(others)}
    at = np.array([place[real] for real in of_file])
    positives = tuple(found[found != query] for found, query in zip(answers, at, strict=True))
    unanswered = sum(not len(found) for found in positives)
    if unanswered == len(at):
        raise ValueError(f"{name}: no image of the gallery answers any of the {len(at)} queries")
    if unanswered:
        say_once(f"{name}: {unanswered} of {len(at)} queries have no answer: a system is to reject them")
    images, database = extended(gallery, list(others.values())), np.arange(len(gallery))
    return RetrievalSet(name, images, at, database, positives, recalls=RECALLS, query_groups=groups)


def places(images: ImageList) -> dict[str, int]:
    """Return {path without links: index}; of a file that is listed twice, the first."""
    found: dict[str, int] = {}
    for index, path in enumerate(real_paths(images.paths)):
        found.setdefault(path, index)
    return found
