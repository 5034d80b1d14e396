"""The photographs of `make real`: found in a folder by their layout, linked as the notebooks want them.

Looked for in the folder and in those directly below it: images of ImageNet's classes (class folders named by
WordNet ids, in `train/` and `val/` or one of them), INRIA Holidays, UKBench, and `unlabelled/whiten`."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mgkit.backbones.imagenet import imagenet_names
from mgkit.data.decoding import WHOLE, image_shape
from mgkit.data.folders import check_folder, image_files
from mgkit.data.images import evenly
from mgkit.data.layouts import META, split_folder, visible
from mgkit.machine.files import find_path, free_name, write_text

DESCRIPTION, LINKED = "data.json", "data"  # in the folder of the results
MOST_HEADERS = 1000  # read for the range of sizes of a set
SETS = ("classes", "unlabelled images", "holidays", "ukbench")
HOW = (
    "make real DATA=/folder: a folder with images of ImageNet's classes, Holidays or UKBench (data/README.md)"
)


@dataclass(frozen=True)
class RealSets:
    """The sets found in a folder.

    root: the folder
    links: {name in the notebooks' layout: folder}, as {"imagenet/val": …, "holidays": …}
    classes: number of ImageNet classes; 0 without such images
    """

    root: Path
    links: dict[str, Path]
    classes: int

    def has(self, name: str) -> bool:
        """Whether the set, of SETS, was found."""
        starts = {"classes": "imagenet", "unlabelled images": "unlabelled"}
        return any(link.startswith(starts.get(name, name)) for link in self.links)

    def describe(self) -> str:
        """One line: what is used, and what is missing."""
        used = ", ".join(dict.fromkeys(str(folder.relative_to(self.root)) for folder in self.links.values()))
        needed = [name for name in SETS if name != "unlabelled images" or not self.has("classes")]
        missing = [name for name in needed if not self.has(name)]
        return f"found in {self.root}: {used}; missing: {', '.join(missing) or 'nothing'}"


def find_real_sets(folder: str) -> RealSets:
    """Find the sets in a folder and in those directly below it; of several of a kind, the first by name.

    Of several trees of ImageNet's classes, the one with most classes is used. Folders that cannot be read are
    passed over. Raises OSError for a missing folder, ValueError if it has none of the sets.
    """
    if not folder:
        raise ValueError(HOW)
    root = check_folder(find_path(folder), "DATA")
    around = [root, *(root / name for name in visible(root)[0])]
    around = [each for each in around if os.access(each, os.R_OK | os.X_OK)]
    links, classes = {}, 0
    for tree in around:
        splits = class_splits(tree)
        if splits and (count := len(visible(splits["imagenet/train"])[0])) > classes:
            links, classes = splits, count
    for name, inner, pattern in (
        ("holidays", "jpg", r"1\d{5}\.jpe?g"),
        ("ukbench", "full", r"ukbench\d{5}\.jpe?g"),
    ):
        if found := next((each for each in around if holds(each / inner, pattern)), None):
            links[name] = found
    unlabelled = root / "unlabelled" / "whiten"
    if unlabelled.is_dir():
        links["unlabelled/whiten"] = unlabelled
    if not links:
        raise ValueError(f"DATA: {root} holds none of the sets; {HOW}")
    return RealSets(root, links, classes)


def class_splits(tree: Path) -> dict[str, Path]:
    """The links of a tree with folders of ImageNet's classes; a single split serves for both. Empty if none.

    A flat val/ beside train/ needs ImageNet's devkit, which is linked too.
    """
    folders = {split: split_folder(tree, split) for split in ("train", "val")}
    found = {split: folder for split, folder in folders.items() if folder and of_imagenet(folder)}
    if not found and of_imagenet(tree):
        found = {"val": tree}
    if not found:
        return {}
    [single, *_] = found.values()
    links = {f"imagenet/{split}": found.get(split, single) for split in ("train", "val")}
    if folders["val"] and "val" not in found and (tree / META).is_file():
        devkit = META.parts[0]
        links |= {"imagenet/val": folders["val"], f"imagenet/{devkit}": tree / devkit}
    return links


def of_imagenet(folder: Path) -> bool:
    """Whether all sub-folders are named by WordNet ids of ImageNet's 1000 classes; at least two of them."""
    names = visible(folder)[0]
    if len(names) < 2 or not all(re.fullmatch(r"n\d{8}", name) for name in names):
        return False
    return set(names) <= set(imagenet_names())


def holds(folder: Path, pattern: str) -> bool:
    """Whether a folder holds an image of that name."""
    if not folder.is_dir():
        return False
    return any(re.fullmatch(pattern, name, re.IGNORECASE) for name in visible(folder)[1])


def describe_sets(sets: RealSets) -> dict[str, dict]:
    """For each link to images: number, longest sides, and a SHA-256 of the names and sizes in bytes."""
    found, seen = {}, {}
    for name, folder in sets.links.items():
        if name.endswith(META.parts[0]):
            continue
        if folder not in seen:
            paths = image_files(folder)
            some = [paths[i] for i in evenly(len(paths), MOST_HEADERS)]
            sides = sorted(max(image_shape(path, False, WHOLE)) for path in some)
            longest = [side for side in sides if side > 1] or [0]  # 1: unreadable
            seen[folder] = {
                "folder": str(folder.relative_to(sets.root)),
                "images": len(paths),
                "longest_side": {
                    "least": longest[0],
                    "median": longest[len(longest) // 2],
                    "most": longest[-1],
                },
                "sha256": names_and_sizes(paths, folder),
            }
        found[name] = seen[folder]
    return found


def names_and_sizes(paths: Iterable[str], folder: Path) -> str:
    """SHA-256 of the paths below a folder and the sizes of the files in bytes, in order."""
    root, digest = os.path.realpath(folder), hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(os.path.relpath(path, root)) + b"\0%d\0" % os.path.getsize(path))
    return digest.hexdigest()


def link_sets(sets: RealSets, description: dict[str, dict], results: Path) -> None:
    """Link the sets in data/ below `results`, a folder of outputs/, in the layout of data/README.md.

    Results of other data are renamed and kept. Writes data.json, the description of the data.
    """
    written = results / DESCRIPTION
    if results.exists() and (
        not written.is_file() or hashes(read_description(written)) != hashes(description)
    ):
        kept = free_name(results)
        results.rename(kept)
        print(f"{results} has results of other data: they are kept in {kept}")
    write_text(written, json.dumps({"sets": description}, indent=1) + "\n")
    data = results / LINKED
    for path in sorted(data.rglob("*"), reverse=True):  # the folders of earlier links; none holds a file
        path.unlink() if path.is_symlink() else path.rmdir()
    for name, folder in sets.links.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).symlink_to(folder.resolve(), target_is_directory=True)


def read_description(path: Path) -> dict[str, dict]:
    """The sets of a data.json; ValueError for a damaged file."""
    try:
        sets = json.loads(path.read_text(encoding="utf-8"))["sets"]
        hashes(sets)
        return sets
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, or `git checkout` it") from None


def hashes(description: dict[str, dict]) -> dict[str, str]:
    """The SHA-256 of each set."""
    return {name: values["sha256"] for name, values in description.items()}


def other_sets(ours: dict[str, dict], theirs: dict[str, dict]) -> list[str]:
    """The names of the sets that are not the same in two descriptions."""
    ours, theirs = hashes(ours), hashes(theirs)
    return [name for name in dict.fromkeys([*theirs, *ours]) if ours.get(name) != theirs.get(name)]
