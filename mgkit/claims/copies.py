"""Strongly edited copies of validation images, where there is no Copydays."""

from pathlib import Path

import numpy as np
from PIL import Image

from mgkit.benchmarks.retrieval_set import RetrievalSet, unlabelled
from mgkit.data.images import ImageList, evenly, list_hash
from mgkit.engine.run import experiment_folder
from mgkit.machine.files import writing
from mgkit.mini.once import made_once
from mgkit.photos.copies.edits import edit

CROP = "two fifths cropped"  # of every copy, which has one of these edits besides
EDITS = ("JPEG quality 20", "brighter, paler", "border", "retouched", "a quarter of the resolution")
RECORD, QUALITY = "copies.json", 90  # the record's file; JPEG quality of the copies


def set_of_copies(images: ImageList, count: int, experiment: str) -> RetrievalSet:
    """At most `count` images, each looked for by a strongly edited copy among all images.

    The copies are written once to outputs/<experiment>/copies/. Raises RefusedError where they cannot be.
    """
    originals = evenly(len(images), count)
    folder = experiment_folder(experiment) / "copies" / list_hash(images)[:16] / f"of-{len(originals)}"
    with writing(folder):
        made_once(folder, RECORD, {"edits": list(EDITS)}, lambda new: write_copies(images, originals, new))
    copies = [str(folder / name_of(k)) for k in range(len(originals))]
    both = unlabelled(images.root, [*images.paths, *copies], exif=images.exif)
    queries = np.arange(len(images), len(both))
    answers = tuple(np.array([original]) for original in originals)
    return RetrievalSet("copies", both, queries, np.arange(len(images)), answers)


def write_copies(images: ImageList, originals: np.ndarray, folder: Path) -> dict:
    """Write an edited copy of each original; returns their number, for the record."""
    for k, index in enumerate(originals.tolist()):
        strong_copy(images, index, EDITS[k % len(EDITS)]).save(folder / name_of(k), quality=QUALITY)
    return {"copies": len(originals)}


def strong_copy(images: ImageList, index: int, name: str) -> Image.Image:
    """An image, cropped and edited; what is random depends on its name below the root."""
    below_root = images.names()[index]
    return edit(name, edit(CROP, images.load(index), below_root), below_root)


def name_of(k: int) -> str:
    """The file name of copy number k."""
    return f"{k:06d}.jpg"
