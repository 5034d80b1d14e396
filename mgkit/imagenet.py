"""ImageNet 2012 as it is distributed: names of its folders; the classes of flat validation images, from the devkit."""

import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

SPLIT_FOLDERS = {"train": ("train", "ILSVRC2012_img_train"), "val": ("val", "ILSVRC2012_img_val")}
META = Path("ILSVRC2012_devkit_t12/data/meta.mat")
GROUND_TRUTH = Path("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt")
VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)


def split_folder(root: Path, split: str) -> Path | None:
    """`root/train` or `root/ILSVRC2012_img_train` (likewise val), whichever exists."""
    return next((root / name for name in SPLIT_FOLDERS[split] if (root / name).is_dir()), None)


def validation_number(name: str) -> int | None:
    """The number, from 1, in the name of a validation image; None for any other name."""
    match = VALIDATION_IMAGE.fullmatch(name)
    return int(match[1]) or None if match else None


def validation_labels(names: Sequence[str], root: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Classes, the sorted WordNet ids, and labels [N] of the images of a flat val/: its number picks an image's ground truth.

    root: holds the devkit. Raises FileNotFoundError for a missing file of it, ValueError for a damaged or too short one
    and for an image that is not named like a validation image.
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

    Raises FileNotFoundError or ValueError, naming the file.
    """
    from scipy.io import loadmat  # takes a while, and most layouts need none of it

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
        raise ValueError(
            f"{path} is damaged, or not ImageNet's meta.mat: its classes have no ids, or one twice"
        )
    return dict(zip(numbers, wnids, strict=True))


def ground_truth(root: Path, wnids: dict[int, str]) -> list[str]:
    """The WordNet id of validation image 1, 2, …; ValueError names the line that is not the number of one of `wnids`."""
    path = devkit_file(root, GROUND_TRUTH)
    of_text = {str(number): wnid for number, wnid in wnids.items()}
    lines = [line.strip() for line in path.read_text(encoding="ascii", errors="replace").splitlines()]
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
