"""The embedded dataset: synthetic images with well-defined classes, instances and copies.

A *class* is a family of shapes. An *instance* has its own shape parameters, colours and texture. A *scene*
has its own pose, light, background and clutter; a *view* perturbs all of them, like a second photograph. A
*copy* is an edit of an image. `make_mini` writes JPEG files in the layouts of ImageNet, Holidays, UKBench and
Copydays.

Each image is a pure function of the seed and its names: neither the order of drawing, nor the number of
processes, nor the sizes of other sets change a byte (with the same NumPy and Pillow).
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mgkit.machine.progress import progress as watched
from mgkit.mini.once import made_once
from mgkit.mini.pictures import GREY, cropped, draw_picture, generator_of, strong_edit
from mgkit.mini.shapes import CLASS_NAMES

RECORD = "mini.json"  # the file that says which dataset a folder holds
VERSION = 2  # increase when any image changes: older sets are then refused
CHUNK = 24  # images per task of a process
CROPS = (10, 15, 20, 30, 40, 50, 60, 70, 80)  # per cent of the area removed
QUALITIES = (3, 5, 8, 10, 15, 20, 30, 50, 75)  # of the JPEG copies


@dataclass(frozen=True)
class MiniSizes:
    """Sizes of the sets: numbers of images, groups, objects and originals."""

    train_per_class: int = 130
    val_per_class: int = 26
    holidays_groups: int = 60
    ukbench_objects: int = 50
    copydays_originals: int = 40
    whiten: int = 800
    distractors: int = 300


# Limits of the digits in file names.
_MOST = MiniSizes(99_999, 999_999, 900, 25_000, 1_000, 1_000_000, 1_000_000)


# --- Files


class _Job(NamedTuple):
    """An image to write; for a Copydays original, `strong` > 0 is the number of its strong copies."""

    path: str
    class_index: int
    instance: str
    family: str
    scene: str
    strong: int = 0

    @property
    def files(self):
        return 1 + (len(CROPS) + len(QUALITIES) + self.strong if self.strong else 0)


def _single(path, class_index, strong=0):
    """Return the job of an image with its own instance and scene."""
    return _Job(path, class_index, path, path, path, strong)


def plan(sizes):
    """Return the jobs of all images of a dataset of these sizes."""
    classes, jobs = len(CLASS_NAMES), []
    for c in range(classes):
        wnid = f"n{1000001 + c:08d}"
        numbers = range(1, sizes.train_per_class + 1)
        jobs += [_single(f"imagenet/train/{wnid}/{wnid}_{n}.JPEG", c) for n in numbers]
        numbers = [n * classes + c + 1 for n in range(sizes.val_per_class)]
        jobs += [_single(f"imagenet/val/{wnid}/ILSVRC2012_val_{n:08d}.JPEG", c) for n in numbers]
    for g in range(sizes.holidays_groups):  # in pairs of one family: colours do not identify the group
        kin, name = f"holidays/family/{g // 2}", f"holidays/{g}"
        files = [f"holidays/jpg/{100000 + 100 * g + n}.jpg" for n in range(2 + g % 4)]
        jobs += [_Job(path, g // 2 % classes, name, kin, name) for path in files]
    for o in range(sizes.ukbench_objects):
        files = [f"ukbench/full/ukbench{4 * o + n:05d}.jpg" for n in range(4)]
        jobs += [_Job(path, o % classes, f"ukbench/{o}", f"ukbench/{o}", path) for path in files]
    originals = range(sizes.copydays_originals)
    jobs += [_single(f"copydays/original/{200000 + 100 * g}.jpg", g % classes, 1 + g % 3) for g in originals]
    for part in ("whiten", "distractors"):
        count = range(getattr(sizes, part))
        jobs += [_single(f"unlabelled/{part}/{n // 100:02d}/{n:06d}.jpg", n * 5 % classes) for n in count]
    return jobs


def _save(image, path, quality):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=quality)


def _write(folder, seed, job):
    """Draw and save the image of a job, and its copies."""
    path, rng = Path(folder, job.path), generator_of(seed, "file " + job.path)
    image = draw_picture(seed, job.class_index, job.instance, job.family, job.scene, job.path)
    if rng.uniform() < GREY:
        image = image.convert("L")
    _save(image, path, int(rng.integers(80, 93)))
    if not job.strong:
        return
    with Image.open(path, formats=["JPEG"]) as file:  # copies are made from the JPEG file
        image = file.convert("RGB")
    home, name = path.parents[1], path.name
    for percent in CROPS:
        _save(cropped(image, percent), home / f"crops/{percent}" / name, 90)
    for quality in QUALITIES:
        _save(image, home / f"jpegqual/{quality}" / name, quality)
    for n in range(1, job.strong + 1):
        _save(strong_edit(image, rng), home / f"strong/{int(path.stem) + n}.jpg", 85)


def _write_all(folder, seed, jobs):
    """Write the files of the jobs; return their number."""
    for job in jobs:
        _write(folder, seed, job)
    return sum(job.files for job in jobs)


def _written(folder, seed, jobs, workers):
    """Write the files of the jobs by `workers` processes; yield the number of files of each chunk."""
    chunks = [jobs[i : i + CHUNK] for i in range(0, len(jobs), CHUNK)]
    if workers == 1:
        yield from (_write_all(folder, seed, chunk) for chunk in chunks)
        return
    context = multiprocessing.get_context("spawn")  # a fork may hang beside threads (torch, Jupyter)
    pool = ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context)
    try:
        for future in as_completed([pool.submit(_write_all, folder, seed, chunk) for chunk in chunks]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _check(sizes, seed, workers):
    """Raise ValueError, naming the parameter, for a number out of range."""
    limits = {f"sizes.{f.name}": (getattr(sizes, f.name), 1, getattr(_MOST, f.name)) for f in fields(sizes)}
    limits |= {"seed": (seed, 0, 2**63), "workers": (workers, 1, 1024)}
    for name, (value, least, most) in limits.items():
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{name} must be an integer from {least} to {most}, got {value!r}")


def make_mini(root, *, seed=0, sizes=None, workers=None, progress=False) -> Path:
    """Create the dataset under `root` and return its path; do nothing if it exists.

    root: folder; it appears when the dataset is complete, an interrupted call leaves nothing
    seed: of all random numbers (integer >= 0)
    sizes: `MiniSizes`, None for the default
    workers: number of processes, None for one per core; more than one needs `if __name__ == "__main__":`
    progress: show a progress bar

    Raises ValueError for invalid sizes, seed or workers, or if `root` holds a dataset of another seed, sizes
    or version; FileExistsError if it holds something else.
    """
    sizes = MiniSizes() if sizes is None else sizes
    workers = (os.cpu_count() or 1) if workers is None else workers
    _check(sizes, seed, workers)
    jobs = plan(sizes)

    def write(folder):
        done = _written(folder, seed, jobs, workers)
        if progress:
            chunks = -(-len(jobs) // CHUNK)
            done = watched(done, "drawing the embedded dataset", total=chunks, unit="chunk")
        total = sum(done)
        names = "".join(f"n{1000001 + c:08d} {name}\n" for c, name in enumerate(CLASS_NAMES))
        (folder / "imagenet/classes.txt").write_text(names, encoding="utf-8")
        return {"files": total}

    return made_once(root, RECORD, {"version": VERSION, "seed": seed, "sizes": asdict(sizes)}, write)
