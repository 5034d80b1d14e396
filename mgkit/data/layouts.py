"""Image lists from ImageNet's layout, class folders, plain folders and lists of paths."""

import os
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np

from mgkit.data.folders import (
    FolderIndex,
    check_folder,
    image_index,
    kinds_below,
    list_folder,
    of_other_kinds,
)
from mgkit.data.images import UNLABELLED, ImageList, place_in_class
from mgkit.data.remarks import left_out, remarks, shared_files
from mgkit.machine.files import read_lines
from mgkit.machine.printable import printable_errors, say_once, shown_name


@printable_errors()
def class_folders(folder: str | Path, *, purpose: str = "images") -> ImageList:
    """One class per sub-folder, sorted by name; images anywhere below it.

    Raises FileNotFoundError for a missing folder, ValueError for no sub-folders or a class without images.
    """
    folder = check_folder(folder, purpose)
    return by_sub_folder(folder, image_index(folder), purpose)


def by_sub_folder(folder: Path, index: FolderIndex, purpose: str) -> ImageList:
    """The indexed images of a folder, one class per sub-folder; ValueError for no classes or an empty one."""
    classes = tuple(index.sub_folders())
    if not classes:
        raise ValueError(f"{purpose}: {folder} has no class folders (expected {folder}/<class>/<image>.jpg)")
    runs = [index.below(name) for name in classes]
    counts = [run.stop - run.start for run in runs]
    if 0 in counts:
        empty = folder / classes[counts.index(0)]
        kinds = kinds_below(empty)
        instead = f", but {of_other_kinds(kinds)}" if kinds else ""
        raise ValueError(f"{purpose}: the class folder {shown_name(empty)} holds no images{instead}")
    for line in remarks(folder, index, purpose):
        say_once(line)
    everything = index.paths()
    paths = tuple(chain.from_iterable(everything[run] for run in runs))
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    # ImageNet's classes are WordNet ids; other trees count as the user's own photos.
    wordnet = all(re.fullmatch(r"n\d{8}", name) for name in classes)
    return ImageList(folder, paths, labels, classes, exif=not wordnet)


@printable_errors()
def plain_images(source: str | Path, *, purpose: str = "images") -> ImageList:
    """Unlabelled images: everything below a folder, or the files listed in a text file, one path per line.

    Paths in a list are relative to its folder; blank lines and lines that start with # are skipped.
    Raises FileNotFoundError for a missing source or listed file, ValueError for a source without images.
    """
    source = Path(source)
    paths = read_list(source, purpose) if source.is_file() else folder_images(source, purpose)
    if not paths:
        raise ValueError(f"{purpose}: {source} holds no images")
    return ImageList(source, tuple(paths), np.full(len(paths), UNLABELLED, dtype=np.int64), exif=True)


def folder_images(folder: Path, purpose: str) -> list[str]:
    """The absolute paths of the images below a folder; a line counts pictures of kinds that are not read."""
    index = image_index(check_folder(folder, purpose))
    if index.images:
        for line in left_out(folder, index, purpose):
            say_once(line)
        return index.paths()
    kinds = kinds_below(folder)
    instead = f", but {of_other_kinds(kinds)}" if kinds else ""
    raise ValueError(f"{purpose}: {folder} holds no images{instead}")


def read_list(listing: Path, purpose: str) -> list[str]:
    """The absolute paths in a text file.

    Raises FileNotFoundError for missing files, ValueError for repeated ones, and for a csv.
    """
    if listing.suffix.lower() == ".csv":
        raise ValueError(f"{purpose}: {listing} is a csv: a folder, or a list of paths (.txt), is wanted")
    try:
        lines = [line.strip(" \t") for line in read_lines(listing)]
    except ValueError as error:
        raise ValueError(f"{purpose}: {error} (a list of images is needed, or a folder)") from None
    paths = [str((listing.parent / line).resolve()) for line in lines if line and not line.startswith("#")]
    repeated = [path for path, times in Counter(paths).items() if times > 1]
    if repeated:
        raise ValueError(f"{purpose}: {listing} repeats {len(repeated)} files, the first is {repeated[0]}")
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(
            f"{purpose}: {listing} lists {len(missing)} missing files, the first is {missing[0]}"
        )
    return paths


@printable_errors()
def labelled_images(root: str | Path, *, val_fraction: float = 0.1) -> tuple[ImageList, ImageList]:
    """Training and validation images of a tree in ImageNet's layout, or of class folders.

    root: see `dataset_root`. The splits are `train/` and `val/` (see `split_folder`) if present;
        `val/` may be flat, as in the original ImageNet, beside the devkit. Otherwise sub-folders are classes.
    val_fraction: the share of each class that is then held out for validation, by a hash of the file's path.

    Raises ValueError for one split without the other, for a single class, and for validation classes missing
    in training.
    """
    root = dataset_root(root)
    train_folder, val_folder = split_folder(root, "train"), split_folder(root, "val")
    if val_folder is None and is_class(train_folder):  # a vehicle
        train_folder = None
    if train_folder is None and val_folder is None:
        train, val = hold_out(class_folders(root, purpose="data"), val_fraction)
        return several_classes(train), val
    if train_folder is None or val_folder is None:
        lacking = "train" if train_folder is None else "val"
        others = ", ".join(SPLIT_FOLDERS[lacking][1:])
        raise ValueError(f"data: {root} has no {lacking} (or {others}) beside the other split")
    train = class_folders(train_folder, purpose="training images")
    val = val_images(val_folder, root)
    if shared := shared_files(train, val):
        say_once(f"data: {train_folder} and {val_folder} hold the same image, for example {shared}")
    val = relabelled(val, train.classes, f"those of {train_folder}")
    absent = sorted(set(range(len(train.classes))) - set(val.labels.tolist()))
    if absent:
        first = train.classes[absent[0]]
        say_once(
            f"data: {val_folder} has no images of {len(absent)} of {len(train.classes)} classes ({first})"
        )
    return several_classes(train), val


def is_class(train: Path | None) -> bool:
    """Whether `train/` is a class: it holds images, and several folders of other classes are beside it."""
    if train is None or visible(train)[0]:
        return False
    return len(visible(train.parent)[0]) > 2


def several_classes(images: ImageList) -> ImageList:
    """The same images; ValueError for a single class."""
    if len(images.classes) == 1:
        raise ValueError(
            f"data: {images.root} holds one class only ({images.classes[0]}); expected one folder per class"
        )
    return images


@printable_errors()
def validation_images(root: str | Path, *, val_fraction: float = 0.1) -> ImageList:
    """The validation images of `labelled_images`; beside ImageNet's devkit, `val/` needs no `train/`.

    Raises FileNotFoundError for a missing devkit; other errors as `labelled_images`.
    """
    tree = dataset_root(root)
    val_folder = split_folder(tree, "val")
    if val_folder is None or split_folder(tree, "train") is not None:
        return labelled_images(root, val_fraction=val_fraction)[1]
    classes = tuple(sorted(devkit_wnids(tree).values()))
    return relabelled(val_images(val_folder, tree), classes, "the devkit's classes")


def dataset_root(root: str | Path) -> Path:
    """`root/imagenet` if it exists, else root; if root holds nothing but one folder around a tree, that tree.

    A line says so. Errors as `check_folder`.
    """
    root = inner = check_folder(root, "data")
    for _ in range(MOST_AROUND + 1):
        if (inner / "imagenet").is_dir():
            return inner / "imagenet"
        folders, images = visible(inner)
        if (
            len(folders) != 1
            or images
            or any(folders[0].lower() in names for names in SPLIT_FOLDERS.values())
        ):
            break
        inner /= folders[0]
    if inner == root or len(folders) < 2:
        return root
    say_once(f"data: {root} holds nothing but {inner}, which is taken as the data")
    return inner


def val_images(folder: Path, root: Path) -> ImageList:
    """The images of a val/ folder: in class folders, or flat with the devkit below root.

    Raises ValueError for a mixture of both.
    """
    purpose = "validation images"
    index = image_index(check_folder(folder, purpose))
    loose = [image for image in index.images if os.sep not in image]
    if not loose:
        return by_sub_folder(folder, index, purpose)
    if index.sub_folders():
        raise ValueError(
            f"{purpose}: {folder} holds both folders ({index.sub_folders()[0]}) and images ({loose[0]}): "
            "expected class folders only, or ImageNet's flat original"
        )
    classes, labels = validation_labels(loose, root)
    return ImageList(folder, tuple(index.paths()), labels, classes)


def relabelled(images: ImageList, classes: tuple[str, ...], whose: str) -> ImageList:
    """The same images with labels that index `classes`; ValueError for a class that is not among them."""
    used = [images.classes[label] for label in np.unique(images.labels)]
    unknown = sorted(set(used) - set(classes))
    if unknown:
        raise ValueError(f"data: the class {shown_name(unknown[0])} of {images.root} is not among {whose}")
    position = {name: label for label, name in enumerate(classes)}
    to_label = np.array([position.get(name, UNLABELLED) for name in images.classes])
    return replace(images, labels=to_label[images.labels], classes=classes)


def hold_out(images: ImageList, fraction: float) -> tuple[ImageList, ImageList]:
    """Split each class by a hash of the path below root, with at least one image on either side.

    Raises ValueError for a class of one image, or a fraction outside (0,1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1, got {fraction}")
    counts = np.bincount(images.labels, minlength=len(images.classes))  # [K]
    if counts.min() < 2:
        name = shown_name(images.classes[counts.argmin()])
        raise ValueError(f"data: the class {name} of {images.root} has one image, too few to hold one out")
    hashes = [zlib.crc32(os.fsencode(name)) for name in images.names()]
    held_out = np.clip(np.rint(fraction * counts), 1, counts - 1)
    order = np.lexsort((hashes, images.labels))  # by class, by hash within a class
    val = np.zeros(len(images), dtype=bool)
    val[order] = place_in_class(images.labels[order]) < held_out[images.labels[order]]
    return images.subset(np.flatnonzero(~val)), images.subset(np.flatnonzero(val))


# In lower case; compared without regard to case.
SPLIT_FOLDERS = {
    "train": ("train", "training", "ilsvrc2012_img_train"),
    "val": ("val", "valid", "validation", "ilsvrc2012_img_val"),
}
TEST_FOLDERS = ("test", "testing")  # taken as val if there is no other
BESIDE_A_SPLIT = {
    "set",
    "image",
    "images",
    "img",
    "imgs",
    "data",
}  # `train_images`, `Training Set`, `testset`
MOST_AROUND = 3  # folders around a tree, one in another
META = Path("ILSVRC2012_devkit_t12/data/meta.mat")
GROUND_TRUTH = Path("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt")
VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)


def split_folder(root: Path, split: str) -> Path | None:
    """The folder of a split below root, in any spelling of SPLIT_FOLDERS; None if there is none.

    A `test/` of class folders beside `train/` is taken as val if there is no val, with a line.

    Raises ValueError for several spellings side by side.
    """
    folders = visible(root)[0]
    if (found := spelled(root, folders, SPLIT_FOLDERS[split])) or split == "train":
        return found
    has_train = spelled(root, folders, SPLIT_FOLDERS["train"])
    test = spelled(root, folders, TEST_FOLDERS) if has_train else None
    if test is None or not visible(test)[0]:
        return None
    say_once(f"data: {root} has no val, so {test} is taken for validation")
    return test


def spelled(root: Path, folders: Sequence[str], names: Sequence[str]) -> Path | None:
    """The only one of root's folders with one of the names, in any case; ValueError for several.

    Words of BESIDE_A_SPLIT may stand beside the name if no folder is called by the name alone.
    """
    found = [name for name in folders if name.lower() in names]
    found = found or [name for name in folders if without_words(name) in names]
    if len(found) > 1:
        raise ValueError(f"data: {root} holds {' and '.join(found)}: expected one of them")
    return root / found[0] if found else None


def without_words(name: str) -> str:
    """A folder's name in lower case, without the words of BESIDE_A_SPLIT and what joins them."""
    words = re.split(r"[\W_]+", name.lower())
    return "".join(word for word in words if word not in BESIDE_A_SPLIT).removesuffix("set")


def visible(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the folders and of the images directly in a folder, sorted."""
    listing = list_folder(str(folder))
    return sorted(listing.folders), sorted(listing.images)


def validation_number(name: str) -> int | None:
    """The number, from 1, in the name of a validation image; None for any other name."""
    match = VALIDATION_IMAGE.fullmatch(name)
    return int(match[1]) or None if match else None


def validation_labels(names: Sequence[str], root: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Classes (sorted WordNet ids) and labels [N] of a flat val/, whose file names give the images' numbers.

    root: the folder of the devkit.

    Raises FileNotFoundError for a missing file of the devkit, ValueError for a damaged or too short one and
    for an image that is not named like a validation image.
    """
    numbers = [validation_number(name) for name in names]
    if None in numbers:
        raise ValueError(
            f"validation images: {names[numbers.index(None)]} is not named ILSVRC2012_val_<8 digits>.JPEG, "
            "nor lies in a class folder"
        )
    wnids = devkit_wnids(root)
    truth = ground_truth(root, wnids)
    last = max(numbers)
    if last > len(truth):
        raise ValueError(
            f"{root / GROUND_TRUTH} has {len(truth)} lines, too few for {names[numbers.index(last)]}"
        )
    classes = tuple(sorted(wnids.values()))
    label = {wnid: index for index, wnid in enumerate(classes)}
    return classes, np.array([label[truth[number - 1]] for number in numbers], dtype=np.int64)


def devkit_wnids(root: Path) -> dict[int, str]:
    """ILSVRC2012_ID -> WordNet id of the classes: the devkit's synsets without children (1000 of 1860).

    Raises FileNotFoundError for a missing and ValueError for a damaged file.
    """
    from scipy.io import loadmat  # slow to import, and not needed for other layouts

    path = devkit_file(root, META)
    content = BytesIO(path.read_bytes())
    try:
        synsets = loadmat(content, squeeze_me=True, variable_names=["synsets"])["synsets"]  # [1860] records
        leaves = synsets[synsets["num_children"].astype(int) == 0]
        numbers, wnids = leaves["ILSVRC2012_ID"].astype(int).tolist(), leaves["WNID"].tolist()
        sound = all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids)
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is damaged, or not ImageNet's meta.mat: {reason}") from None
    if not sound or not len(set(numbers)) == len(set(wnids)) == len(leaves) > 0:
        raise ValueError(f"{path} is damaged, or not ImageNet's meta.mat: a class lacks an id or shares one")
    return dict(zip(numbers, wnids, strict=True))


def ground_truth(root: Path, wnids: dict[int, str]) -> list[str]:
    """The WordNet ids of validation images 1, 2, …; ValueError for a line that is not a number of `wnids`."""
    path = devkit_file(root, GROUND_TRUTH)
    of_text = {str(number): wnid for number, wnid in wnids.items()}
    lines = [line.strip() for line in read_lines(path)]
    for number, line in enumerate(lines, start=1):
        if line not in of_text:
            raise ValueError(
                f"{path}, line {number}: {line[:40]!r} is not the number of one of the {len(wnids)} classes"
            )
    return [of_text[line] for line in lines]


def devkit_file(root: Path, name: Path) -> Path:
    """A file of the devkit below root; FileNotFoundError says what it is for."""
    if not (root / name).is_file():
        raise FileNotFoundError(
            f"{root / name} does not exist: ImageNet's devkit, unpacked there, "
            "gives the classes of a val/ without class folders, or without train/ beside it"
        )
    return root / name
