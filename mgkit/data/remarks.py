"""What was left out of a data set, and what looks like something else than it is taken for, in lines."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from mgkit.data.folders import FolderIndex, of_other_kinds
from mgkit.data.images import ImageList, evenly

PICTURES = {"images", "image", "imgs", "img", "jpegimages", "pictures"}  # folders of other tasks' layouts
TARGETS = {
    "annotations", "annotation", "labels", "label", "masks", "mask", "segmentation", "segmentationclass",
}  # fmt: skip
SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
MOST_SPLITS = 4  # folders of a tree that is taken for splits
COMPARED = 200  # validation images that are looked for among the training images


def left_out(folder: Path, index: FolderIndex, purpose: str) -> Iterator[str]:
    """A line that counts the pictures and films of kinds that are not read, if there are any."""
    if index.left_out:
        yield f"{purpose}: {of_other_kinds(index.left_out)} were left out below {folder}"


def remarks(folder: Path, index: FolderIndex, purpose: str) -> Iterator[str]:
    """Lines about a folder of class folders: what was left out, and what does not look like classes."""
    yield from left_out(folder, index, purpose)
    loose = sum(os.sep not in image for image in index.images)
    if loose:
        yield f"{folder}: {loose} images outside the sub-folders are ignored"
    inside, lower = defaultdict(list), defaultdict(list)
    for path in index.folders:
        name, _, rest = path.partition(os.sep)
        if name and not rest:
            lower[name.lower()].append(name)
        elif rest and os.sep not in rest:
            inside[name].append(rest)
    classes = index.sub_folders()
    alike = next((names for names in lower.values() if len(names) > 1), None)
    if alike:
        yield f"{purpose}: the classes {' and '.join(alike)} of {folder} differ by case only"
    same = inside[classes[0]]
    if len(classes) > 1 and len(same) > 1 and all(inside[name] == same for name in classes):
        alike = ", ".join(same[:3])
        yield f"{purpose}: all class folders of {folder} hold the same folders ({alike}): are those classes?"
    splits = [name for name in classes if SPLIT_WORDS & set(re.split(r"[\W_]+", name.lower()))]
    if len(splits) > 1 and len(classes) <= MOST_SPLITS:
        yield f"{purpose}: {', '.join(splits)} of {folder} are called like splits, but are taken as classes"
    if PICTURES & set(lower) and TARGETS & set(lower):
        yield f"{purpose}: {folder} looks like images with annotations, but its folders are taken as classes"


def shared_files(train: ImageList, val: ImageList) -> str | None:
    """The name of a validation image that is also a training image, among some of them; None if none is."""
    names = val.names()
    for index in evenly(len(val), COMPARED).tolist():
        other = os.path.join(os.path.realpath(train.root), names[index])
        try:
            size = os.path.getsize(val.paths[index])
            if size and size == os.path.getsize(other) and same_content(val.paths[index], other):
                return names[index]
        except OSError:  # not there, or unreadable
            continue
    return None


def same_content(first: str, second: str) -> bool:
    return Path(first).read_bytes() == Path(second).read_bytes()
